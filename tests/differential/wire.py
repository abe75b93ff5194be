"""Statements sent in batches over libpq's pipeline, and how each ended."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, NamedTuple

import psycopg
from psycopg import pq

_CONTROL: Final = re.compile(r"\[control ([A-Z]{2}-\d\d)")
_ORIGIN: Final = re.compile(r" \[control .*", re.DOTALL)
_NUMERIC: Final = 1700
_DONE: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)

Row = tuple[bytes | None, ...]


class Statement(NamedTuple):
    """One text with its typed parameters, and what its order promises."""

    sql: str
    types: tuple[int, ...] = ()
    values: tuple[bytes | None, ...] = ()
    ordered: tuple[int, ...] = ()
    """The result columns, 0-based, whose sequence ORDER BY promises."""
    simple: bool = False
    """Sent as a simple Query."""
    judged: bool = True
    """False for BEGIN and the like."""
    fails: bool = False
    """An expression in it may fail on rows that the agent may see."""
    copy: str = ""
    """A COPY FROM STDIN for Grille; row security has none, so there `sql` is the INSERT of its rows."""
    data: str = ""
    """The rows of `copy`."""
    binary: bool = False
    """Its rows are asked for in the binary format."""


class Outcome(NamedTuple):
    """How one statement ended on one side."""

    kind: str
    """``rows``, ``tag``, ``error``, ``denied`` or ``lost``."""
    state: str = ""
    """SQLSTATE; for a denial the control."""
    message: str = ""
    tag: str = ""
    names: tuple[bytes | None, ...] = ()
    types: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()


def send(connection: pq.abc.PGconn, statements: Sequence[Statement]) -> None:
    """Send all of them, each with a Sync of its own; nothing may be in flight.  Not for simple Queries.

    A connection that breaks meanwhile is noticed by `receive`.
    """
    connection.enter_pipeline_mode()
    with contextlib.suppress(psycopg.OperationalError):
        for statement in statements:
            values, types = list(statement.values) or None, list(statement.types) or None
            connection.send_query_params(statement.sql.encode(), values, types)
            connection.pipeline_sync()


def receive(connection: pq.abc.PGconn, count: int) -> list[Outcome]:
    """The outcomes of what was sent."""
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        found = Outcome("lost")
        while (result := connection.get_result()) is not None:
            found = _outcome(result)
        synced = connection.get_result()
        if synced is None or synced.status != pq.ExecStatus.PIPELINE_SYNC:
            lost = Outcome("lost", message=found.message or connection.error_message.decode(errors="replace"))
            return outcomes + [lost] * (count - len(outcomes))
        outcomes.append(found)
    connection.exit_pipeline_mode()
    return outcomes


def ask(connection: pq.abc.PGconn, statements: Sequence[Statement], *, copies: bool = True) -> list[Outcome]:
    """Send one after the other, simple Queries as such, and receive.  ``copies``: COPY is sent as such."""
    outcomes = []
    for statement in statements:
        if connection.status != pq.ConnStatus.OK:
            outcomes.append(Outcome("lost"))
        elif statement.copy and copies:
            outcomes.append(_copy(connection, statement))
        elif statement.simple:
            result = connection.exec_(statement.sql.encode())
            out = result.status == pq.ExecStatus.COPY_OUT
            outcomes.append(_copied(connection) if out else _outcome(result))
        else:
            outcomes.append(
                _outcome(
                    connection.exec_params(
                        statement.sql.encode(),
                        list(statement.values) or None,
                        list(statement.types) or None,
                        result_format=pq.Format(statement.binary),
                    )
                )
            )
    return outcomes


def _copy(connection: pq.abc.PGconn, statement: Statement) -> Outcome:
    result = connection.exec_(statement.copy.encode())
    if result.status == pq.ExecStatus.COPY_IN:
        connection.put_copy_data(statement.data.encode())
        connection.put_copy_end()
        found = Outcome("lost")
        while (ended := connection.get_result()) is not None:
            found = _outcome(ended)
    else:
        found = _outcome(result)
    return found._replace(tag=found.tag.replace("COPY ", "INSERT 0 "))


def _copied(connection: pq.abc.PGconn) -> Outcome:
    """The rows of COPY TO STDOUT in the text format."""
    rows: list[Row] = []
    while (got := connection.get_copy_data(0))[0] > 0:
        rows.append(tuple(bytes(got[1]).rstrip(b"\n").split(b"\t")))
    found = Outcome("lost")
    while (result := connection.get_result()) is not None:
        found = _outcome(result)
    return found._replace(kind="rows", rows=tuple(rows)) if found.kind == "tag" else found


def _outcome(result: pq.abc.PGresult) -> Outcome:
    if result.status not in _DONE:
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
        severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        if not state or severity != b"ERROR":
            return Outcome("lost", state, message or result.error_message.decode(errors="replace"))
        control = _CONTROL.search(message)
        if control:
            return Outcome("denied", control[1], _ORIGIN.sub("", message), state)
        return Outcome("error", state, message)
    tag = (result.command_status or b"").decode()
    width = result.nfields
    if not width:
        return Outcome("tag", tag=tag)
    types = tuple(result.ftype(column) for column in range(width))
    rows = tuple(
        tuple(
            result.get_value(row, column) if result.fformat(column) else _value(result.get_value(row, column), kind)
            for column, kind in enumerate(types)
        )
        for row in range(result.ntuples)
    )
    return Outcome("rows", tag=tag, names=tuple(result.fname(c) for c in range(width)), types=types, rows=rows)


def _value(value: bytes | None, kind: int) -> bytes | None:
    if kind != _NUMERIC or value is None:
        return value
    # 1.0 and 1.00 are one value, of which DISTINCT, UNION and min may show either.
    return str(Decimal(value.decode()).normalize()).encode()


def same_rows(one: Outcome, other: Outcome, ordered: Sequence[int]) -> bool:
    """True if both have the same rows, in the same order as far as `ordered` promises it."""
    if one.rows == other.rows:
        return True
    if len(one.rows) != len(other.rows):
        return False
    for column in ordered:
        if any(a[column] != b[column] for a, b in zip(one.rows, other.rows, strict=True)):
            return False
    return sorted(one.rows, key=_key) == sorted(other.rows, key=_key)


def _key(row: Row) -> list[tuple[bool, bytes]]:
    return [(value is None, value or b"") for value in row]
