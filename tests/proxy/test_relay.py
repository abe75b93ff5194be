"""What the relay makes of single replies, and what it does with a server that misbehaves.

The conversations with a real server are in test_session.py.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.policies.decision import Limits
from grille.protocols.postgres.analysis import MAX_LISTED
from grille.protocols.postgres.framing import ProtocolViolation
from grille.protocols.postgres.messages import (
    AUTHENTICATION_OK,
    BIND_COMPLETE,
    PARSE_COMPLETE,
    BackendKeyData,
    CommandComplete,
    Field,
    ParameterStatus,
    ReadyForQuery,
    RowDescription,
    decode_data_row,
    encode_data_row,
)
from grille.protocols.postgres.rewrite import Plan
from grille.proxy.config import Database
from grille.proxy.enforcement import Prepared, Understood
from grille.proxy.identity import Agent
from grille.proxy.relay import (
    Kind,
    Portal,
    Relay,
    Run,
    Statement,
    Step,
    may_refuse,
    own_plan,
    visible_columns,
    visible_row,
)
from grille.proxy.stream import ByteStream
from grille.proxy.upstream import PINNED, UpstreamConnection, UpstreamLost

VALUES = st.lists(st.none() | st.binary(max_size=20), max_size=8)


@given(VALUES, st.integers(min_value=0, max_value=3))
def test_hidden_values_are_cut_off_a_row(values: list[bytes | None], hidden: int) -> None:
    payload = encode_data_row(values)[5:]
    if hidden > len(values):
        with pytest.raises(ProtocolViolation):
            visible_row(payload, hidden)
        return
    message = visible_row(payload, hidden)
    assert message == encode_data_row(values[hidden:])
    assert decode_data_row(message[5:]) == tuple(values[hidden:])


@given(st.binary(max_size=40), st.integers(min_value=1, max_value=3))
def test_a_malformed_row_never_passes_silently(payload: bytes, hidden: int) -> None:
    try:
        message = visible_row(payload, hidden)
    except ProtocolViolation:
        return
    assert len(message) <= len(payload) + 5


def test_hidden_columns_are_cut_off_a_description() -> None:
    fields = (Field("grille:check", 16), Field("id", 23), Field("name", 25))
    payload = RowDescription(fields).encode()[5:]
    assert RowDescription.decode(visible_columns(payload, 1)[5:]).fields == fields[1:]


# a server of the test's own, for what a real one never does

STARTUP = (
    AUTHENTICATION_OK
    + b"".join(
        ParameterStatus(name, value).encode() for name, value in {**PINNED, "integer_datetimes": "on"}.items()
    )
    + BackendKeyData(1, b"abcd").encode()
    + ReadyForQuery("I").encode()
)  # fmt: skip


@pytest.fixture
def plan() -> Plan:
    return Plan(
        sql="SELECT 1",
        name="g1",
        parameter_types=(),
        client_parameters=0,
        literals=(),
        encode=(),
        injected=(),
        hidden_columns=0,
        swallow_rows=False,
        results=(),
        writes=False,
        row_check_plan=False,
    )


async def run(plan: Plan, replies: bytes, directory: Path) -> tuple[Relay, Any]:
    """One Bind and Execute against a server that answers just this."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4))
        await reader.readexactly(size - 4)
        writer.write(STARTUP)
        await reader.readexactly(1)
        writer.write(replies)
        await writer.drain()
        while await reader.read(1000):
            pass
        writer.close()
        gone.set()

    gone = asyncio.Event()
    server = await asyncio.start_unix_server(serve, directory / ".s.PGSQL.5432")
    async with server:
        database = Database(name="b", host=str(directory), database="b", role="r", tls="off")
        relay = Relay(
            agent=Agent(
                spiffe_id="spiffe://a/b",
                trust_domain="a",
                path=("b",),
                cert_sha256="",
                serial="",
                not_after=dt.datetime.max.replace(tzinfo=dt.UTC),
                scopes=(),
                attributes={},
                database="b",
                fingerprint="",
            ),
            client=ByteStream(),
            enforcement=None,  # type: ignore[arg-type]
            permitted=lambda schema, relation, column: False,
            keep_intent=lambda run: asyncio.sleep(0),
        )
        understood = Understood("SELECT 1", b"", (), None, None, "select", False, "SELECT 1")
        prepared = Prepared("select", None, plan, (), Limits(), understood, None, False)
        portal = Portal(Statement("SELECT 1", (), prepared, None), prepared)
        execution = Run(portal)
        relay.runs.append(execution)
        relay.connection = connection = await UpstreamConnection.open(database)
        try:
            async with asyncio.timeout(10):
                failure = await relay.exchange(
                    [
                        Step(Kind.BIND, plan=plan, portal=portal),
                        Step(Kind.EXECUTE, plan=plan, portal=portal, run=execution),
                    ],
                    sync=True,
                )
            return relay, failure
        finally:
            connection.abort()
            await gone.wait()


GOOD = PARSE_COMPLETE + BIND_COMPLETE + encode_data_row([b"1"]) + CommandComplete("SELECT 1").encode()


async def test_what_was_asked_for_is_relayed(plan: Plan, tmp_path: Path) -> None:
    relay, failure = await run(plan, GOOD + ReadyForQuery("I").encode(), tmp_path)
    assert failure is None
    assert bytes(relay.out) == BIND_COMPLETE + encode_data_row([b"1"]) + CommandComplete("SELECT 1").encode()
    assert (relay.runs[0].rows, relay.runs[0].tag) == (1, "SELECT 1")


@pytest.mark.parametrize(
    "replies",
    [
        BIND_COMPLETE,  # no ParseComplete
        GOOD + encode_data_row([b"2"]),  # a row after the end
        GOOD + CommandComplete("SELECT 1").encode(),
        PARSE_COMPLETE + BIND_COMPLETE + ReadyForQuery("I").encode(),  # no result
        GOOD + ParameterStatus("TimeZone", "Asia/Tokyo").encode() + ReadyForQuery("I").encode(),
        b"y\0\0\0\x04",
        b"G\0\0\0\x07\0\0\0",  # CopyInResponse
        b"D\x7f\xff\xff\xff",
    ],
)
async def test_anything_else_ends_the_connection(plan: Plan, tmp_path: Path, replies: bytes) -> None:
    with pytest.raises(UpstreamLost):
        await run(plan, replies, tmp_path)


@pytest.mark.parametrize(
    ("limits", "plan", "expected"),
    [
        (Limits(), {}, False),
        (Limits(rows=10), {}, True),
        (Limits(bytes=10), {}, True),
        (Limits(rows=MAX_LISTED), {"writes": True, "keyed": True, "returns_rows": False}, False),
        (Limits(rows=MAX_LISTED - 1), {"writes": True, "keyed": True, "returns_rows": False}, True),
        (Limits(rows=MAX_LISTED), {"writes": True, "keyed": False, "returns_rows": False}, True),
        (Limits(rows=MAX_LISTED), {"writes": True, "keyed": True, "returns_rows": True}, True),
        (Limits(rows=MAX_LISTED), {"keyed": True}, True),
    ],
)
def test_what_may_still_be_refused_when_it_has_run(limits: Limits, plan: dict[str, bool], expected: bool) -> None:
    prepared = Prepared(
        "update", None, msgspec.structs.replace(own_plan("x"), **plan), (), limits,
        Understood("x", b"", (), None, None, "update", False, "x"), None, False,
    )  # fmt: skip
    assert may_refuse(prepared) is expected
