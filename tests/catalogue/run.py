"""Runs rows of the catalogue in a `World`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import DiagnosticField, ExecStatus

from tests.catalogue.cases import CONTROL, NATIVE, SAME, SQLSTATE, Either, Row, Script
from tests.catalogue.world import World

Protocol = Literal["simple", "extended"]
_ID: Final = re.compile(r"decision [0-9a-f-]{36}")
_DONE: Final = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY)
_WRITE_TAG: Final = re.compile(r"(INSERT|UPDATE|DELETE|MERGE|COPY) ")


class Outcome:
    """How one text ended."""

    def __init__(self, kind: str, value: Any, message: str = "") -> None:
        self.kind = kind
        """``denied``, ``error``, ``rows`` or ``tag``."""
        self.value = value
        self.message = message

    def __repr__(self) -> str:
        return f"{self.kind} {self.value!r} {self.message}".rstrip()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and (self.kind, self.value, self.message) == (
            other.kind, other.value, other.message,
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]


def run_row(world: World, row: Row) -> None:
    """Try every attempt of a row, in both protocols.  Raises AssertionError if one succeeds."""
    for attempt in row.attempts:
        if not isinstance(attempt, Script):
            attempt(world)
            continue
        protocols: tuple[Protocol, ...] = ("simple",) if attempt.simple_only else ("simple", "extended")
        for protocol in protocols:
            _run_script(world, attempt, protocol)


def _run_script(world: World, script: Script, protocol: Protocol) -> None:
    old = world.version < script.least
    wrote = False
    try:
        world.leaked()
        answers: list[list[Outcome]] = []
        for agent, database in (("a", "whole"), ("visible", "visible")):
            texts = [sql.replace("{database}", database) for sql, _ in script.steps]
            told: list[bytes] = []
            answers.append(world.on_session(agent, texts, lambda c, t, told=told: _send_all(c, t, protocol, told)))
            _no_canary(world, told, script)
        wrote = any(
            _wrote(outcome, sql) for told in answers for outcome, (sql, _) in zip(told, script.steps, strict=True)
        )
        reached = world.leaked()
        assert not reached, f"hidden values reached the agent's expression: {sorted(reached)[:5]}"
        if not script.tells:
            for one, other, (sql, _) in zip(*answers, script.steps, strict=True):
                assert one == other, f"{protocol} {sql}: depends on hidden rows: {one} against {other}"
        for outcome, (sql, expected) in zip(answers[0], script.steps, strict=True):
            if old:
                assert outcome.kind in ("denied", "error"), f"{protocol} {sql}: {outcome} on an older server"
                continue
            _compare(world, sql, outcome, expected, protocol)
    finally:
        if wrote:
            world.restore()


def _send_all(
    connection: psycopg.Connection[Any], texts: Sequence[str], protocol: Protocol, told: list[bytes]
) -> list[Outcome]:
    return [_send(connection, sql, protocol, told) for sql in texts]


def _send(connection: psycopg.Connection[Any], sql: str, protocol: Protocol, told: list[bytes]) -> Outcome:
    wire = connection.pgconn
    if protocol == "simple":
        result = wire.exec_(sql.encode())
    else:
        result = wire.exec_params(sql.encode(), [])
    status = ExecStatus(result.status)
    if status not in _DONE:
        assert status == ExecStatus.FATAL_ERROR, f"{sql}: {status!r}"
        fields = {field: result.error_field(field) or b"" for field in DiagnosticField}
        told.extend(fields.values())
        state, message = fields[DiagnosticField.SQLSTATE].decode(), fields[DiagnosticField.MESSAGE_PRIMARY].decode()
        control = re.search(r"\[control ([A-Z]{2}-\d\d)", message)
        text = _ID.sub("decision ...", message)
        return Outcome("denied", control[1], f"{state} {text}") if control else Outcome("error", state, text)
    tag = (result.command_status or b"").decode()
    if not result.nfields:
        return Outcome("tag", tag)
    told.extend(result.fname(index) or b"" for index in range(result.nfields))
    told.extend(
        result.get_value(row, column) or b"" for row in range(result.ntuples) for column in range(result.nfields)
    )
    return Outcome("rows", _rows(connection, result, sql))


def _rows(connection: psycopg.Connection[Any], result: Any, sql: str) -> list[tuple[Any, ...]]:
    transformer = Transformer(connection)
    transformer.set_pgresult(result)
    rows = transformer.load_rows(0, result.ntuples, tuple)
    return list(rows) if "ORDER BY" in sql else sorted(rows, key=repr)


def _wrote(outcome: Outcome, sql: str) -> bool:
    return outcome.kind in ("tag", "rows") and bool(re.search(r"\b(INSERT|UPDATE|DELETE|MERGE|COPY|EXECUTE)\b", sql))


def _no_canary(world: World, told: Sequence[bytes], script: Script) -> None:
    asked = " ".join(sql for sql, _ in script.steps).encode()
    for value in told:
        for canary in world.canaries:
            assert canary not in value or canary in asked, f"{value!r} reached the agent: {script.steps}"


def _compare(world: World, sql: str, outcome: Outcome, expected: Any, protocol: Protocol) -> None:
    where = f"{protocol} {sql}"
    if isinstance(expected, Either):
        failures = []
        for end in expected.ends:
            try:
                _compare(world, sql, outcome, end, protocol)
            except AssertionError as error:
                failures.append(str(error))
        assert len(failures) < len(expected.ends), " and ".join(failures)
        return
    if expected is SAME or expected is NATIVE:
        assert outcome.kind in ("rows", "tag"), f"{where}: {outcome}"
        if expected is NATIVE:
            native = _native(world, sql)
            assert outcome == native, f"{where}: {outcome}, but native row security: {native}"
    elif isinstance(expected, list):
        assert outcome.kind == "rows", f"{where}: {outcome}"
        wanted = expected if "ORDER BY" in sql else sorted(expected, key=repr)
        assert outcome.value == wanted, f"{where}: {outcome}, not {wanted}"
    elif CONTROL.fullmatch(expected):
        assert (outcome.kind, outcome.value) == ("denied", expected), f"{where}: {outcome}, not denied by {expected}"
    elif SQLSTATE.fullmatch(expected) and not _WRITE_TAG.match(expected) and any(map(str.isdigit, expected)):
        assert (outcome.kind, outcome.value) == ("error", expected), f"{where}: {outcome}, not {expected}"
    else:
        assert (outcome.kind, outcome.value) == ("tag", expected), f"{where}: {outcome}, not {expected}"


def _native(world: World, sql: str) -> Outcome:
    """The same statement under PostgreSQL's own row security, undone."""
    cursor = psycopg.RawCursor(world.native)
    try:
        cursor.execute(sql)  # type: ignore[arg-type]
        if cursor.description is None:
            return Outcome("tag", cursor.statusmessage)
        rows = cursor.fetchall()
        return Outcome("rows", rows if "ORDER BY" in sql else sorted(rows, key=repr))
    except psycopg.Error as error:
        return Outcome("error", error.sqlstate)
    finally:
        world.native.rollback()
