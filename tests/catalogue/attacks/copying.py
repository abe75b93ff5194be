"""Attacks by the rows of a COPY FROM STDIN."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from grille.protocols.postgres.messages import (
    Bind,
    CopyData,
    CopyDone,
    CopyFail,
    Describe,
    Execute,
    Flush,
    Parse,
    Query,
    Sync,
)
from tests.catalogue.wire import Reply, Wire
from tests.catalogue.world import World, clear_ssn, ssn

DONE = CopyDone()
ALIVE = Query("SELECT id FROM people WHERE id < 3 ORDER BY id")
_TOLD = frozenset("SVCMHstcn")
"""Fields of an error that an agent may see."""
_DECISION = re.compile(rb"decision [0-9a-f-]{36}")


def _sent(sql: str, data: Sequence[bytes], end: Any, simple: bool) -> list[Any]:
    rows = [CopyData(each) for each in data]
    if simple:
        return [Query(sql), *rows, end]
    return [Parse("", sql), Bind("", ""), Describe("P", ""), Execute(""), Sync(), *rows, end, Sync()]


def _alive(wire: Wire) -> None:
    assert wire.ask(ALIVE).rows == [(b"1",), (b"2",)]


def _copied(world: World, sql: str, *data: bytes, end: Any = DONE) -> Iterator[Reply]:
    """The reply in each protocol, which must be the same from a database without the hidden rows."""
    for simple in (True, False):
        told = []
        for agent in ("a", "visible"):
            try:
                with world.wire(agent) as wire:
                    reply = wire.ask(*_sent(sql, data, end, simple))
                    _alive(wire)
            finally:
                world.restore()
            told.append(
                (agent == "a" and reply, [(kind, _DECISION.sub(b"", payload)) for kind, payload in reply.messages])
            )
            for fields in reply.errors:
                assert fields.keys() <= _TOLD, fields
        assert told[0][1] == told[1][1], f"{sql}: depends on hidden rows: {told}"
        whole = b"".join(payload for _, payload in told[0][1])
        assert b"hidden" not in whole and not any(canary in whole for canary in world.canaries), told
        assert told[0][0]
        yield told[0][0]


def _denied(world: World, control: str, sql: str, *data: bytes, end: Any = DONE) -> None:
    """It is denied once it has begun, and nothing is written."""
    tables = ("loose", "part", "people", "secrets", "old_prices", "accounts", "drift")
    before = {table: world.owner(f"SELECT count(*) FROM {table}") for table in tables}
    for simple in (True, False):
        with world.wire("a") as wire:
            reply = wire.ask(*_sent(sql, data, end, simple))
            assert "G" in reply.kinds and reply.kinds.endswith("EZ") and reply.denied(control), (sql, data, reply)
            assert {table: world.owner(f"SELECT count(*) FROM {table}") for table in tables} == before, sql
            _alive(wire)
    for reply in _copied(world, sql, *data, end=end):
        assert reply.denied(control), (sql, reply)


def _binary(*rows: tuple[bytes | None, ...]) -> bytes:
    body = b"".join(
        struct.pack("!h", len(row))
        + b"".join(struct.pack("!i", -1) if v is None else struct.pack("!i", len(v)) + v for v in row)
        for row in rows
    )
    return b"PGCOPY\n\xff\r\n\0" + bytes(8) + body + b"\xff\xff"


def a_row_outside_of_the_filter(world: World) -> None:
    """First, last, and at each end of what is sent on at once; one byte a message, or all in one."""
    for bad in (0, 63, 64, 1023, 1024, 2047, 2499):
        rows = [b"%d\t%s\tx\n" % (1000 + n, b"0007" if n == bad else b"0042") for n in range(2500)]
        _denied(world, "RO-02", "COPY loose (id, branch, note) FROM STDIN", b"".join(rows))
    sql = "COPY loose (id, branch) FROM STDIN (FORMAT csv)"
    _denied(world, "RO-02", sql, *(b"%c" % byte for byte in b'900,"00""07"\n901,0042\n902,"0007"\n'))
    _denied(world, "RO-02", "COPY loose (id, branch) FROM STDIN", b"900\t\\060007\n")
    _denied(world, "RO-02", "COPY loose (id, branch) FROM STDIN", b"900\t\\x30007\n")
    _denied(world, "RO-02", "COPY loose (id, branch) FROM STDIN", b"900\t\\N\n")
    _denied(world, "RO-02", "COPY loose (id) FROM STDIN", b"900\n")
    _denied(world, "RO-02", "COPY loose (branch) FROM STDIN (NULL '0042')", b"0042\n")
    _denied(world, "RO-02", "COPY loose (branch) FROM STDIN (FORMAT csv, NULL '0042', FORCE_NULL *)", b'"0042"\n')
    rows = _binary((struct.pack("!i", 900), b"0042"), (struct.pack("!i", 901), b"0007"))
    _denied(world, "RO-02", "COPY loose (id, branch) FROM STDIN (FORMAT binary)", rows)
    _denied(world, "RO-02", "COPY part (id, branch) FROM STDIN", b"900\t0042\n901\t0007\n")
    _denied(world, "RO-02", "COPY people (branch, id) FROM STDIN", b"0042\t900\n0007\t901\n")


def values_are_stored_as_tokens(world: World) -> None:
    new = "123456789"
    with world.wire("a") as wire:
        forms = (
            ("", b"%d\t0042\t123456789\n"),
            ("(FORMAT csv)", b'%d,0042,"123456789"\n'),
            ("", b"%d\t0042\t\\x31\\x323456789\n"),
            ("(FORMAT csv, NULL 'x', FORCE_NOT_NULL (ssn))", b"%d,0042,123456789\n"),
        )
        for number, (options, data) in enumerate(forms):
            reply = wire.ask(
                Query(f"COPY people (id, branch, ssn) FROM STDIN {options}"), CopyData(data % (900 + number)), DONE
            )
            assert reply.kinds == "GCZ", reply
            ((stored,),) = world.owner(f"SELECT ssn FROM people WHERE id = {900 + number}")
            assert stored != new and len(stored) == len(new)
            shown = wire.ask(Query(f"SELECT ssn FROM people WHERE ssn = '{new}'"))
            assert shown.rows == [(f"*****{new[-4:]}".encode(),)], shown
            world.owner(f"DELETE FROM people WHERE id = {900 + number}")
        rows = _binary((struct.pack("!i", 910), b"0042", new.encode()))
        assert (
            wire.ask(Query("COPY people (id, branch, ssn) FROM STDIN (FORMAT binary)"), CopyData(rows), DONE).kinds
            == "GCZ"
        )
        assert world.owner("SELECT ssn FROM people WHERE id = 910") != [(new,)]
    world.restore()
    # A token is no clear value, and a clear value that a hidden row has says no more than in an INSERT.
    for value in (b"abc", b"12345678", b"1234567890", b"\xff" * 9):
        _denied(world, "TK-02", "COPY people (id, branch, ssn) FROM STDIN", b"900\t0042\t" + value + b"\n")
    with world.wire("a") as wire:
        reply = wire.ask(
            Query("COPY people (id, branch, ssn) FROM STDIN"), CopyData(f"900\t0042\t{clear_ssn(77)}\n".encode()), DONE
        )
        assert reply.errors[0]["C"] == "23505" and clear_ssn(77) not in str(reply) and ssn(77) not in str(reply)
        assert reply.errors[0].keys() <= _TOLD
        _alive(wire)


def errors_say_nothing_of_rows(world: World) -> None:
    """PostgreSQL shows the line of the COPY, and the key of the row that is there already."""
    for sql, data, code in (
        ("COPY checked (id, branch, note) FROM STDIN", b"1\t0042\thidden-words\n", "23505"),
        ("COPY checked (id, branch, note) FROM STDIN", b"900\t0042\tforbidden\n", "23514"),
        ("COPY checked (id, branch, note) FROM STDIN", b"900\t0042\t\\N\n", "23502"),
        ("COPY checked (id, branch, note) FROM STDIN", b"hidden-words\t0042\tx\n", "22P02"),
        ("COPY checked (id, branch, note) FROM STDIN", b"900\t0042\thidden\xff\n", "22021"),
        ("COPY checked (id, branch, note) FROM STDIN", b"900\t0042\thidden\0\n", "22021"),
        ("COPY checked (id, branch, note) FROM STDIN", b"900\t0042\n", "22P04"),
        ("COPY checked (id, branch, note) FROM STDIN", b"900\t0042\thidden\thidden\n", "22P04"),
        ("COPY checked (id, branch, note) FROM STDIN", b"900\t0042\thidden\r\n901\t0042\thidden\n", "22P04"),
        ("COPY checked (id, branch, note) FROM STDIN (FORMAT csv)", b'900,0042,"hidden\n', "22P04"),
        ("COPY checked (id, branch, note) FROM STDIN (FORMAT csv, HEADER match)", b"id,branch,hidden\n", "22P04"),
        ("COPY checked (id, branch, note) FROM STDIN (FORMAT binary)", b"hidden-words", "22P04"),
        ("COPY old_prices (branch, price) FROM STDIN", b"0042\t99999999999\n", "22003"),
    ):
        for reply in _copied(world, sql, data):
            assert reply.errors[0]["C"] == code, (data, reply)
    # A key of a hidden row exists: native row security tells that too, and no more.
    with world.wire("a") as wire:
        reply = wire.ask(Query("COPY people (id, branch) FROM STDIN"), CopyData(b"77\t0042\n"), DONE)
        assert reply.errors[0]["C"] == "23505" and reply.errors[0].keys() <= _TOLD and "77" not in str(reply.errors)


def messages_among_the_rows(world: World) -> None:
    row = CopyData(b"900\t0042\tx\n")
    begin = Query("COPY loose (id, branch, note) FROM STDIN")
    for message in (
        Query("SELECT ssn FROM secrets"),
        Parse("", "SELECT 1"),
        Bind("", ""),
        Execute(""),
        Describe("S", ""),
    ):
        with world.wire("a") as wire:
            reply = wire.ask(begin, row, message, row, DONE, Sync())
            assert reply.closed and reply.errors[0]["C"] == "08P01" and not reply.rows, reply
    for message in (Flush(), Sync()):
        with world.wire("a") as wire:
            assert wire.ask(begin, row, message, message, row, DONE).kinds == "GCZ"
            _alive(wire)
    world.restore()
    for stray in (row, DONE, CopyFail("x")):  # behind a COPY they are dropped, and write nothing
        for last in (DONE, CopyFail("hidden")):
            with world.wire("a") as wire:
                assert wire.ask(begin, last).kinds in ("GCZ", "GEZ")
                wire.send(stray, stray)
                _alive(wire)
    # A COPY that was denied takes no rows: what is sent for it is not expected.
    with world.wire("a") as wire:
        wire.send(Query("COPY secrets FROM STDIN"), CopyData(b"1\tx\n"), DONE, ALIVE)
        reply = wire.reply()
        assert reply.denied("ST-03") and wire.reply().closed
    # Text behind the end of the rows is neither a row nor a statement.
    with world.wire("a") as wire:
        data = b"901\t0042\t'); DELETE FROM secrets; --\n\\.\n902\t0042\tx\nSELECT 1;\n"
        assert wire.ask(begin, CopyData(data), DONE).kinds == "GCZ"
        _alive(wire)
    assert world.owner("SELECT id, note FROM loose WHERE id > 900") == [(901, "'); DELETE FROM secrets; --")]
    world.restore()
    with world.wire("a") as wire:
        reply = wire.ask(Query("COPY loose FROM STDIN; SELECT ssn FROM secrets"))
        assert reply.denied("ST-03") and "G" not in reply.kinds
        reply = wire.ask(Query("COPY loose FROM STDIN; COPY secrets FROM STDIN"), row, DONE)
        assert reply.denied("ST-03") and reply.kinds == "GCEZ", reply
        _alive(wire)
    assert world.owner("SELECT count(*) FROM loose WHERE id >= 900") == [(0,)]
    assert world.owner("SELECT count(*) FROM secrets") == [(5,)]
    for end in (CopyFail("hidden"), DONE):
        with world.wire("a") as wire:
            wire.ask(Query("BEGIN"))
            bad = [] if isinstance(end, CopyFail) else [CopyData(b"1\n")]
            assert wire.ask(begin, row, *bad, end).messages[-1] == ("Z", b"E")
            reply = wire.ask(Query("COMMIT"))
            assert reply.messages[0] == ("C", b"ROLLBACK\0"), reply
    assert world.owner("SELECT count(*) FROM loose WHERE id >= 900") == [(0,)]
