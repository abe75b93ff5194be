"""Messages whose fields are tokenized, decoded and masked, and messages that are not as they should be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from grille.protocols.mq import requests
from grille.protocols.mq.payload import decoded, encoded
from grille.protocols.mq.requests import BROWSE, INPUT_SHARED, OUTPUT, Described
from grille.proxy.config import ConfigError
from grille.proxy.mq_client import Client, Connection, MqError
from grille.proxy.serve import Worker
from grille.tokenization.provider import TokenizationError, TokenRequest
from tests.mq.lab import Lab, eventually
from tests.mq.manager import CHANNEL, NAME
from tests.mq.queues import Queue
from tests.mq.window import EVERYTHING

BOTH = INPUT_SHARED | OUTPUT
COPYBOOK = """
       01  PAYMENT.
           05  KIND            PIC X(4).
           05  CARD            PIC X(16).
           05  TAX-NO          PIC S9(9) COMP-3.
           05  NOTE            PIC X(10).
"""
CARD = "4929000000000007"
MORE = (
    """
[[keys]]
name = "fpe"
file = "fpe.key"
[[keys]]
name = "siv"
file = "siv.key"
[[transformations]]
name = "card"
kind = "fpe"
template = '(\\d{16})'
token_domain = "card"
key = "fpe"
[[transformations]]
name = "tax"
kind = "fpe"
template = '(\\d{9})'
token_domain = "tax"
key = "fpe"
[[transformations]]
name = "text"
kind = "siv"
alphabet = "text"
token_domain = "text"
key = "siv"
[[layouts]]
name = "payment"
format = "copybook"
copybook = "payment.cpy"
fields = [
  { name = "card", at = "CARD", transformation = "card" },
  { name = "tax", at = "TAX-NO", transformation = "tax" },
  { name = "note", at = "NOTE" },
]
[[layouts]]
name = "order"
format = "json"
ccsid = 1208
fields = [
  { name = "card", at = "payer.card", transformation = "card" },
  { name = "name", at = "payer.name", transformation = "text" },
]
[[layouts]]
name = "advice"
format = "xml"
ccsid = 1208
fields = [
  { name = "card", at = "Advice/Card/@number", transformation = "card" },
  { name = "name", at = "Advice/Name", transformation = "text" },
]
[[queues]]
name = "QM1/ADVICES"
layout = "advice"
quarantine = "BAD"
[[queues]]
name = "QM1/PAYMENTS"
layout = "payment"
quarantine = "BAD"
[[queues]]
name = "QM1/ORDERS"
layout = "order"
quarantine = "BAD"
""",
)  # fmt: skip
QUEUES = ("PAYMENTS", "ORDERS", "ADVICES", "PLAIN", "BAD", Queue("PAY.ALIAS", target="PAYMENTS"))


def record(card: str = CARD, tax: str = "123456789", note: str = "secret", ccsid: int = 1047) -> bytes:
    packed = bytes.fromhex(f"{tax}C")
    return encoded("PAY ", ccsid) + encoded(card.ljust(16), ccsid) + packed + encoded(note.ljust(10), ccsid)


def shown(data: bytes, ccsid: int = 1047) -> tuple[str, str, str]:
    return (
        decoded(data[4:20], ccsid).rstrip(),
        data[20:25].hex()[:-1],
        decoded(data[25:], ccsid).rstrip(),
    )


def columns(read: str, write: str = "allow") -> dict[str, dict[str, str]]:
    fields = {"PAYMENTS": ("card", "tax", "note"), "ORDERS": ("card", "name"), "ADVICES": ("card", "name")}
    return {
        f"{NAME}/{queue}.{name}": {"read": read if name != "note" or read != "token" else "clear", "write": write}
        for queue, names in fields.items() for name in names
    }  # fmt: skip


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    (tmp_path / "payment.cpy").write_text(COPYBOOK)
    for name, size in (("fpe", 32), ("siv", 64)):
        (tmp_path / f"{name}.key").touch(mode=0o600)
        (tmp_path / f"{name}.key").write_text(bytes(range(size)).hex())
    async with Lab(tmp_path, QUEUES, more=MORE, decision={"columns": columns("clear")}) as lab:
        yield lab


def stored(lab: Lab, queue: str = "PAYMENTS") -> list[bytes]:
    return [message.data for message in lab.manager.queues.named[queue].messages]


async def around(lab: Lab, queue: str, *data: bytes, described: Described | None = None) -> list[bytes]:
    """Put messages without Grille; their ids."""
    client = await Client.open("127.0.0.1", lab.upstream, CHANNEL, NAME)
    connection = await client.connect()
    described = described or Described("", 1047, 0x311, True)
    ids = [(await connection.put1(queue, each, described)).message_id for each in data]
    await client.close()
    return ids


EBCDIC = Described("", 1047, 0x311, True)


async def test_the_queue_has_tokens_and_the_agent_values(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("PAYMENTS", BOTH)
    await connection.put(handle, record(), EBCDIC)
    await connection.put1("PAYMENTS", record("4929000000000015", note=""), EBCDIC)
    first, second = stored(lab)
    card, tax, note = shown(first)
    assert card != CARD and card.isdecimal() and len(card) == 16 and tax != "123456789" and note == "secret"
    assert first[24] & 0x0F == 0xC and len(first) == len(record()) and shown(second)[1] == tax
    got = [await connection.get(handle), await connection.get(handle, wait=2.0)]
    assert [each.data for each in got if each] == [record(), record("4929000000000015", note="")]
    assert await connection.get(handle) is None
    put, _, fetched, _ = [event for event in lab.events(kind="statement") if event.message and not _intent(event)][:4]
    assert put.outcome is not None and fetched.outcome is not None
    assert (put.outcome.encoded, fetched.outcome.decoded) == (2, 2)
    assert put.relations[0].columns == ("card", "note", "tax")
    assert fetched.relations[0].sensitive == dict.fromkeys(("card", "note", "tax"), "clear")
    for path in (lab.directory / "audit").rglob("*"):
        assert not path.is_file() or CARD.encode() not in path.read_bytes()
    assert lab.manager.complaints == []


def _intent(event: Any) -> bool:
    return event.outcome is not None and event.outcome.status == "intent"


@pytest.mark.parametrize(
    ("read", "told"),
    [
        ("mask:last4", ("************0007", "000000000", "******")),
        ("mask:redact", ("[redacted]", "000000000", "[redacted]")),
        ("mask:null", ("", "000000000", "")),
        (None, ("", "000000000", "")),
        ("clear", (CARD, "123456789", "secret")),
    ],
)
@pytest.mark.parametrize("browse", [False, True])
async def test_what_an_agent_sees(lab: Lab, read: str | None, told: tuple[str, ...], browse: bool) -> None:
    connection = await lab.connection()
    await connection.put1("PAYMENTS", record(), EBCDIC)
    lab.grant({"client": EVERYTHING}, columns=columns(read) if read else {})
    handle = await connection.open("PAYMENTS", BROWSE if browse else INPUT_SHARED)
    got = await connection.get(handle, requests.BROWSE_FIRST if browse else requests.NO_SYNCPOINT)
    assert got is not None and len(got.data) == len(record())
    assert shown(got.data) == told
    assert len(stored(lab)) == browse


async def test_tokens_for_who_may_have_those_only(lab: Lab) -> None:
    connection = await lab.connection()
    await connection.put1("PAYMENTS", record(), EBCDIC)
    (before,) = stored(lab)
    lab.grant({"client": EVERYTHING}, columns=columns("token"))
    handle = await connection.open("PAYMENTS", INPUT_SHARED)
    got = await connection.get(handle)
    assert got is not None and got.data == before


@pytest.mark.parametrize(
    ("obligations", "options"),
    [
        ({"read": "deny", "write": "allow"}, INPUT_SHARED), ({"read": "deny"}, BROWSE), ({"read": "clear"}, OUTPUT),
        ({"read": "mask:odd", "write": "allow"}, BROWSE),
    ],
)  # fmt: skip
async def test_fields_that_are_not_to_be_had(lab: Lab, obligations: dict[str, str], options: int) -> None:
    connection = await lab.connection()
    lab.grant({"client": EVERYTHING}, columns={**columns("clear"), "QM1/PAYMENTS.card": obligations})
    with pytest.raises(MqError) as raised:
        await connection.open("PAYMENTS", options)
    assert raised.value.reason == 2035
    assert await connection.open("PLAIN", options)


@pytest.mark.parametrize(
    ("data", "described"),
    [
        (record()[:-1], EBCDIC), (record() + b"\0", EBCDIC), (record(ccsid=819), EBCDIC), (record("49290"), EBCDIC),
        (record(), Described("", 4711, 0x311)), (record(), Described("MQIMS", 1047, 0x311)),
        (record(), Described("MQHRF2", 1047, 0x311)), (record()[:20] + b"\xff" * 5 + record()[25:], EBCDIC),
    ],
)  # fmt: skip
async def test_a_put_that_has_not_the_layout(lab: Lab, data: bytes, described: Described) -> None:
    connection = await lab.connection()
    handle = await connection.open("PAYMENTS", OUTPUT)
    for work in (connection.put(handle, data, described), connection.put1("PAYMENTS", data, described)):
        with pytest.raises(MqError) as raised:
            await work
        assert raised.value.reason == 2110
    await connection.put(handle, record(), EBCDIC)
    assert len(stored(lab)) == 1
    denied = [event for event in lab.events(action="put") if event.verdict and event.verdict.control == "MQ-04"]
    assert len(denied) == 2 and all(event.outcome and event.outcome.reason == 2110 for event in denied)


# messages that are not as they should be


async def fetch(connection: Connection, handle: int, how: str) -> bytes | None:
    options = requests.SYNCPOINT if "unit" in how else requests.NO_SYNCPOINT
    got = await connection.get(handle, options, wait=1.0 if "wait" in how else 0.0)
    return got.data if got is not None else None


@pytest.mark.parametrize("how", ["now", "wait", "unit", "unit wait"])
async def test_a_bad_message_is_moved_and_the_next_is_given(lab: Lab, how: str) -> None:
    connection = await lab.connection()
    await connection.put1("PAYMENTS", record(), EBCDIC)
    (bad, worse) = await around(lab, "PAYMENTS", b"neither", record()[:20])
    await connection.put1("PAYMENTS", record("4929000000000015"), EBCDIC)
    handle = await connection.open("PAYMENTS", INPUT_SHARED)
    assert await fetch(connection, handle, how) == record()
    if "unit" in how:
        await connection.commit()
    assert await fetch(connection, handle, how) == record("4929000000000015")
    if "unit" in how:
        await connection.commit()
    assert await fetch(connection, handle, "now") is None
    assert stored(lab) == []
    moved = lab.manager.queues.named["BAD"].messages
    assert [(message.data, message.descriptor.msg_id) for message in moved] == [
        (b"neither", bad), (record()[:20], worse),
    ]  # fmt: skip
    events = lab.events(action="quarantine")
    assert [event.message.id for event in events if event.message] == [bad.hex(), worse.hex()]
    assert all(event.verdict and event.verdict.control == "MQ-04" for event in events)
    assert [use.name for use in events[0].relations] == ["QM1/PAYMENTS", "QM1/BAD"]
    assert lab.manager.complaints == []


async def test_a_bad_message_alone_is_moved_and_there_is_none(lab: Lab) -> None:
    await around(lab, "PAYMENTS", b"neither")
    connection = await lab.connection()
    handle = await connection.open("PAYMENTS", INPUT_SHARED)
    assert await connection.get(handle) is None
    await around(lab, "PAYMENTS", b"again")
    assert await connection.get(handle, wait=0.5) is None
    assert stored(lab, "BAD") == [b"neither", b"again"]


async def test_a_bad_message_in_a_unit_of_work_that_is_backed_out(lab: Lab) -> None:
    """The move is part of the client's unit: it is undone with it, and done again."""
    connection = await lab.connection()
    await connection.put1("PAYMENTS", record(), EBCDIC)
    await around(lab, "PAYMENTS", b"neither")
    await connection.put1("PAYMENTS", record("4929000000000015"), EBCDIC)
    handle = await connection.open("PAYMENTS", INPUT_SHARED)
    assert await fetch(connection, handle, "unit") == record()
    assert await fetch(connection, handle, "unit") == record("4929000000000015")
    await connection.backout()
    assert stored(lab, "BAD") == [] and len(stored(lab)) == 3
    assert [await fetch(connection, handle, "unit") for _ in range(2)] == [record(), record("4929000000000015")]
    await connection.commit()
    assert stored(lab, "BAD") == [b"neither"] and stored(lab) == []


async def test_a_bad_message_is_not_shown_to_who_browses(lab: Lab) -> None:
    await around(lab, "PAYMENTS", b"neither")
    connection = await lab.connection()
    await connection.put1("PAYMENTS", record(), EBCDIC)
    handle = await connection.open("PAYMENTS", BROWSE)
    got = await connection.get(handle, requests.BROWSE_FIRST)
    assert got is not None and got.data == record()
    assert await connection.get(handle, requests.BROWSE_NEXT) is None
    assert len(stored(lab)) == 2 and stored(lab, "BAD") == []


async def test_a_quarantine_that_takes_nothing_ends_the_channel(lab: Lab) -> None:
    lab.manager.queues.named["BAD"].inhibit_put = 1
    await around(lab, "PAYMENTS", b"neither")
    connection = await lab.connection()
    handle = await connection.open("PAYMENTS", INPUT_SHARED)
    with pytest.raises(MqError) as raised:
        await connection.get(handle)
    assert raised.value.reason == 2009
    refused = await lab.event(name="refused")
    assert refused.verdict is not None and refused.verdict.control == "UP-01"
    await eventually(lambda: stored(lab) == [b"neither"])


async def test_a_stored_value_that_is_no_token(lab: Lab) -> None:
    await around(lab, "PAYMENTS", record("NO TOKEN"))
    connection = await lab.connection()
    handle = await connection.open("PAYMENTS", INPUT_SHARED)
    assert await connection.get(handle) is None
    assert stored(lab, "BAD") == [record("NO TOKEN")]


# lengths


@pytest.mark.parametrize("size", [10, 40_000, 60_000])
async def test_tokens_that_are_longer_than_their_values(lab: Lab, size: int) -> None:
    connection = await lab.connection()
    handle = await connection.open("ORDERS", BOTH)
    documents = [
        json.dumps({"payer": {"name": f"{number}" + "x" * size, "card": CARD}, "n": number}).encode()
        for number in range(3)
    ]
    for document in documents:
        await connection.put(handle, document, Described("MQSTR", 1208, 273))
    assert all(len(token) > len(document) for token, document in zip(stored(lab, "ORDERS"), documents, strict=True))
    assert all(b"xxxxx" not in token for token in stored(lab, "ORDERS"))
    for document in documents:
        got = await connection.get(handle, wait=2.0)
        assert got is not None and got.data == document
    assert lab.manager.complaints == []


async def test_markup_has_tokens_on_the_queue(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("ADVICES", BOTH)
    document = f'<Advice xmlns="urn:bank"><Card number="{CARD}"/><Name>J&amp;J</Name><Note>x</Note></Advice>'.encode()
    await connection.put(handle, document, Described("MQSTR", 1208, 273))
    (token,) = stored(lab, "ADVICES")
    assert CARD.encode() not in token and b"J&amp;J" not in token and token.endswith(b"</Name><Note>x</Note></Advice>")
    got = await connection.get(handle, wait=2.0)
    assert got is not None and got.data == document
    for wrong in (b"<Advice>", document.replace(b"J&amp;J", b"J<b/>"), document.replace(CARD.encode(), b"1")):
        with pytest.raises(MqError) as raised:
            await connection.put(handle, wrong, Described("MQSTR", 1208, 273))
        assert raised.value.reason == 2110
    await around(lab, "ADVICES", b"<!DOCTYPE Advice><Advice/>", token, described=Described("MQSTR", 1208, 273))
    got = await connection.get(handle, wait=2.0)
    assert got is not None and got.data == document
    assert stored(lab, "BAD") == [b"<!DOCTYPE Advice><Advice/>"]
    assert lab.manager.complaints == []


async def test_the_reply_tells_the_clients_own_length(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("ORDERS", OUTPUT)
    data = json.dumps({"payer": {"name": "x"}}).encode()
    reply = await connection.call(requests.put(handle, data, Described("MQSTR", 1208, 273)), "MQPUT")
    assert int.from_bytes(reply.body[-4:], "little") == len(data)


async def test_properties_before_the_payload_stay(lab: Lab) -> None:
    from tests.protocols.mq.test_payload import rfh2

    connection = await lab.connection()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    head = rfh2([f"<usr><traceparent>{trace}</traceparent></usr>"], following=("", 1047, 0x311))
    handle = await connection.open("PAYMENTS", BOTH)
    await connection.put(handle, head + record(), Described("MQHRF2", 1208, 273))
    (data,) = stored(lab)
    assert data.startswith(head) and shown(data[len(head) :])[0] != CARD
    got = await connection.get(handle)
    assert got is not None and got.data == head + record()
    chains = [event.chain for event in lab.events(kind="statement") if event.chain.traceparent]
    assert {chain.traceparent for chain in chains} == {trace}
    assert {chain.source for chain in chains} == {"message"}


# what cannot be made safe


async def test_a_get_outside_of_an_open_unit_of_work(lab: Lab) -> None:
    connection = await lab.connection()
    await connection.put1("PAYMENTS", record(), EBCDIC)
    plain, handle = await connection.open("PLAIN", OUTPUT), await connection.open("PAYMENTS", INPUT_SHARED)
    await connection.put(plain, b"x", options=requests.SYNCPOINT)
    with pytest.raises(MqError) as raised:
        await connection.get(handle)
    assert raised.value.reason == 2035
    await connection.commit()
    assert (await connection.get(handle)) is not None


async def test_an_alias_is_not_the_way_to_a_layout(lab: Lab) -> None:
    connection = await lab.connection()
    for work in (
        connection.open("PAY.ALIAS", INPUT_SHARED), connection.open("PAY.ALIAS", OUTPUT),
        connection.put1("PAY.ALIAS", record(), EBCDIC),
    ):  # fmt: skip
        with pytest.raises(MqError) as raised:
            await work
        assert raised.value.reason == 2035


class Away:
    """A provider that does not answer."""

    async def encode(self, batch: Sequence[TokenRequest]) -> Sequence[str]:
        raise TokenizationError("away")

    decode = encode


async def test_without_the_provider_messages_stay_where_they_are(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("PAYMENTS", BOTH | BROWSE)
    await connection.put(handle, record(), EBCDIC)
    payloads = lab.worker._services.payloads  # type: ignore[union-attr]
    provider, payloads._provider = payloads._provider, Away()  # type: ignore[union-attr]
    for work in (
        connection.put(handle, record(), EBCDIC), connection.get(handle), connection.get(handle, wait=1.0),
        connection.get(handle, requests.BROWSE_FIRST),
    ):  # fmt: skip
        with pytest.raises(MqError) as raised:
            await work
        assert raised.value.reason == 2102
        assert len(stored(lab)) == 1
    plain = await connection.open("PLAIN", OUTPUT)
    await connection.put(plain, b"x")
    payloads._provider = provider  # type: ignore[union-attr]
    got = await connection.get(handle)
    assert got is not None and got.data == record() and got.descriptor.backout_count == 2
    await connection.put(handle, record(), EBCDIC)
    payloads._provider = Away()  # type: ignore[union-attr]
    with pytest.raises(MqError) as raised:
        await connection.get(handle, requests.SYNCPOINT)
    assert raised.value.reason == 2009
    await eventually(lambda: len(stored(lab)) == 1)


async def test_what_cannot_be_configured(lab: Lab) -> None:
    (lab.directory / "payment.cpy").write_text(COPYBOOK.replace("CARD ", "CARTE"))
    with pytest.raises(ConfigError, match=r"payment: cannot be used: the copybook has no item CARD"):
        Worker(lab.config)


async def test_commit_is_the_clients_own(lab: Lab) -> None:
    """A get of its own unit of work is not ended by Grille."""
    connection = await lab.connection()
    await connection.put1("PAYMENTS", record(), EBCDIC)
    handle = await connection.open("PAYMENTS", INPUT_SHARED)
    assert await fetch(connection, handle, "unit") == record()
    await connection.backout()
    got = await connection.get(handle)
    assert got is not None and got.descriptor.backout_count == 1
    ended = [event.action for event in lab.events(kind="statement") if event.action in ("commit", "backout")]
    assert ended == ["backout", "backout"]
