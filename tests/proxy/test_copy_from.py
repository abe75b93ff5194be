"""COPY FROM STDIN of governed sessions against a real PostgreSQL.

The policy's answers are scripted; enforcement, pool, recorder and server are the real ones.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from grille.audit.event import Event
from grille.policies.decision import ColumnObligation, FieldFilter, Limits
from grille.protocols.postgres.analysis import Sensitive
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
    Terminate,
)
from grille.proxy import copy_in, enforcement
from grille.proxy.catalog import read_catalog
from grille.proxy.shown import Shown
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.provider import TokenRequest
from grille.tokenization.transformation import Key, Transformation
from tests.proxy import test_passthrough
from tests.proxy.test_isolated import ALLOWED, Policies
from tests.proxy.test_passthrough import MakeWorld, World, error, kinds, until

make_world = test_passthrough.make_world

SSN = Transformation("ssn", "fpe", "ssn", "fpe", "digits", r"(\d{3})-(\d{2})-(\d{4})")
SCHEMA = """
CREATE TABLE people (id int PRIMARY KEY, branch text, ssn text UNIQUE, note text, amount numeric(6,2), code varchar(3));
CREATE TABLE things (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text DEFAULT 'none', big numeric,
                     double numeric GENERATED ALWAYS AS (big * 2) STORED, parts int[], flag bool);
CREATE TABLE ruled (id int);
CREATE RULE elsewhere AS ON INSERT TO ruled DO ALSO INSERT INTO people (id) VALUES (NEW.id);
CREATE TABLE watched (id int);
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER nothing BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE TABLE late (id int PRIMARY KEY, parent int REFERENCES late DEFERRABLE INITIALLY DEFERRED);
CREATE VIEW shown AS SELECT id FROM people;
CREATE TABLE hidden (id int);
INSERT INTO people VALUES (1, '0042', 'x', 'ours', 1, 'a'), (2, '0043', 'y', 'hidden words', 2, 'b');
"""
OURS = FieldFilter("eq", "public.people.branch", "0042")
HIDDEN = b"hidden words"
DONE = CopyDone()


def provider() -> EmbeddedProvider:
    return EmbeddedProvider([SSN], [Key("fpe", 1, bytes(32))])


@pytest.fixture
async def make_governed(make_world: MakeWorld) -> Callable[..., Any]:
    async def make(**given: Any) -> World:
        world = await make_world(**given)
        policies = Policies()
        policies.connect = ALLOWED
        policies.filters["public.people"] = OURS
        policies.columns["public.people.ssn"] = ColumnObligation("mask:last4", "equality", "allow")
        policies.columns["public.people.note"] = ColumnObligation("clear", "deny", "allow")
        world.policies = policies  # type: ignore[assignment]
        world.direct(SCHEMA)
        await look(world)
        return world

    return make


async def look(world: World) -> None:
    """Decide from here on with the catalogue as it is now."""
    place = conninfo_to_dict(world.dsn)
    connection = await asyncpg.connect(
        host=place["host"], port=place["port"], user=place["user"], database=place["dbname"]
    )
    try:
        catalog = await read_catalog(connection)
    finally:
        await connection.close()
    world.services.enforcement["bank"] = enforcement.Enforcement(  # type: ignore[index]
        catalog=lambda: catalog,
        pdp=lambda: world.policies,
        provider=provider(),
        sensitive={"public.people.ssn": Sensitive("ssn", "ssn"), "public.people.note": Sensitive(None, None)},
    )


@pytest.fixture
async def world(make_governed: Callable[..., Any]) -> World:
    made: World = await make_governed()
    return made


async def copied(world: World, sql: str, *data: bytes, end: Any = DONE) -> list[tuple[str, bytes]]:
    """What a new session is told of a COPY in the simple protocol."""
    client = await world.client()
    return await client.ask(Query(sql), *map(CopyData, data), end)


def extended(sql: str, *data: bytes, end: Any = DONE) -> list[Any]:
    """As libpq sends it: the first Sync comes before anybody knows that this is a COPY."""
    return [Parse("", sql), Bind("", ""), Describe("P", ""), Execute(""), Sync(), *map(CopyData, data), end, Sync()]


def people(world: World, columns: str = "id, branch, note") -> list[tuple[Any, ...]]:
    return world.direct(f"SELECT {columns} FROM people WHERE id > 2 ORDER BY id")


def last(world: World) -> Event:
    return world.statements()[-1]


def outcome(world: World) -> tuple[str, str, str, int]:
    event = last(world)
    assert event.outcome is not None
    return event.outcome.status, event.outcome.tag, event.outcome.sqlstate, event.outcome.rows


def unsaid(world: World, messages: list[tuple[str, bytes]], *words: bytes) -> None:
    """Neither the client nor the record was told any of this."""
    told = b"".join(payload for _, payload in messages)
    kept = b"".join(
        msgspec.json.encode(msgspec.structs.replace(each, outcome=msgspec.structs.replace(each.outcome, error="")))
        for each in world.statements() if each.outcome is not None
    )  # fmt: skip
    for word in (*words, HIDDEN):
        assert word not in told and word not in kept


# rows are written, checked and tokenized


async def test_rows_are_written_and_counted(world: World) -> None:
    told = await copied(world, "COPY people (id, branch, note) FROM STDIN", b"3\t0042\tthree\n4\t00", b"42\t\\N\n")
    assert kinds(told) == "GCZ"
    assert told[0][1] == b"\0\0\3" + bytes(6) and told[1][1] == b"COPY 2\0"
    assert people(world) == [(3, "0042", "three"), (4, "0042", None)]
    assert outcome(world) == ("ok", "COPY 2", "", 2)
    event = last(world)
    assert event.template == 'COPY "people" ("id", "branch", "note") FROM STDIN' and event.values == ()
    assert [(each.name, each.access, each.columns) for each in event.relations] == [
        ("public.people", "insert", ("branch", "id", "note"))
    ]
    assert event.verdict is not None and event.verdict.allow
    assert [each.outcome.status for each in world.statements() if each.outcome] == ["intent", "ok"]
    unsaid(world, told, b"three")


async def test_the_extended_protocol_as_libpq_speaks_it(world: World) -> None:
    client = await world.client()
    told = await client.ask(*extended("COPY people (id, branch) FROM STDIN", b"3\t0042\n"))
    assert kinds(told) == "12nGCZ"
    told = await client.ask(*extended("COPY people (id, branch) FROM STDIN", b"4\t0042\n5\t0043\n"))
    assert kinds(told) == "12nGEZ" and error(told)["C"] == "42501"
    assert people(world, "id") == [(3,)]
    assert kinds(await client.query("SELECT 1")) == "TDCZ"


async def test_a_prepared_copy_runs_again(world: World) -> None:
    client = await world.client()
    told = await client.ask(Parse("c", "COPY people (id, branch) FROM STDIN"), Describe("S", "c"), Sync())
    assert kinds(told) == "1tnZ" and told[1][1] == bytes(2)
    for number in (b"3", b"4"):
        told = await client.ask(Bind("", "c"), Execute(""), CopyData(number + b"\t0042\n"), Flush(), DONE, Sync())
        assert kinds(told) == "2GCZ"
    assert people(world, "id") == [(3,), (4,)]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1024, 1025, 3000])
async def test_any_number_of_rows_is_written_whole(world: World, count: int) -> None:
    data = "".join(f"{n}\t0042\n" for n in range(10, 10 + count)).encode()
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    told = await copied(world, "COPY people (id, branch) FROM STDIN", *pieces)
    assert told[1] == ("C", b"COPY %d\0" % count)
    assert world.direct("SELECT count(*), min(id), max(id) FROM people WHERE id >= 10") == [(count, 10, 9 + count)]
    assert outcome(world)[3] == count


@pytest.mark.parametrize("bad", [0, 70, 1500, 2999])
@pytest.mark.parametrize("row", ["%d\t0043\n", "%d\t\\N\n"])
async def test_one_row_outside_of_the_filter_undoes_all(world: World, bad: int, row: str) -> None:
    lines = [f"{n}\t0042\n" for n in range(10, 3010)]
    lines[bad] = row % (10 + bad)
    client = await world.client()
    told = await client.ask(
        Query("COPY people (id, branch) FROM STDIN"), *(CopyData(line.encode()) for line in lines), DONE
    )
    assert kinds(told) == "GEZ" and "RO-02" in error(told)["M"] and error(told)["C"] == "42501"
    assert people(world) == []
    assert outcome(world)[0] == "denied"
    told = await client.query("SELECT id FROM people")
    assert kinds(told) == "TDCZ"
    unsaid(world, told, b"0043")


async def test_tokenized_values_are_stored_as_tokens(world: World) -> None:
    rows = b"3,0042,123-45-6789\n4,0042,\n5,0042,987-65-4321\n"
    told = await copied(world, "COPY people (id, branch, ssn) FROM STDIN (FORMAT csv)", rows)
    assert told[1] == ("C", b"COPY 3\0")
    tokens = await provider().encode([TokenRequest("ssn", "123-45-6789"), TokenRequest("ssn", "987-65-4321")])
    assert people(world, "ssn") == [(str(tokens[0]),), (None,), (str(tokens[1]),)]
    event = last(world)
    assert event.outcome is not None and event.outcome.encoded == 2
    unsaid(world, told, b"123-45-6789", str(tokens[0]).encode())
    told = await copied(world, "COPY people (id, branch, ssn) FROM STDIN (FORMAT csv)", b"6,0042,not a number\n")
    assert error(told)["C"] == "22023" and "TK-02" in error(told)["M"] and len(people(world)) == 3
    unsaid(world, told, b"not a number")


async def test_a_column_whose_tokens_are_only_read_takes_no_value(world: World) -> None:
    old = msgspec.structs.replace(SSN, fpe_algorithm="ff3-1", supplied_tweak=bytes(7))
    ours = world.services.enforcement["bank"]
    ours._provider = EmbeddedProvider([old], [Key("fpe", 1, bytes(32))])
    before = people(world)
    told = await copied(world, "COPY people (id, branch, ssn) FROM STDIN (FORMAT csv)", b"3,0042,123-45-6789\n")
    assert error(told)["C"] == "0A000" and "TK-03" in error(told)["M"] and people(world) == before
    unsaid(world, told, b"123-45-6789")


async def test_a_column_that_may_not_be_written_is_refused(world: World) -> None:
    world.policies.columns["public.people.note"] = ColumnObligation("clear", "deny", "deny")  # type: ignore[attr-defined]
    for sql in ("COPY people FROM STDIN", "COPY people (id, branch, note) FROM STDIN"):
        client = await world.client()
        told = await client.query(sql)
        assert kinds(told) == "EZ" and "CO-02" in error(told)["M"] and '"public.people.note"' in error(told)["M"]
        assert last(world).template.startswith('COPY "people"')
    told = await copied(world, "COPY people (id, branch, ssn, amount, code) FROM STDIN", b"3\t0042\t\\N\t1\tx\n")
    assert kinds(told) == "GCZ"


async def test_the_policy_is_asked_as_for_an_insert(world: World) -> None:
    await copied(world, "COPY things FROM STDIN", b"")
    (asked,) = [each for each in world.policies.asked if each["action"] != "connect"]
    assert asked["action"] == "insert" and asked["functions"] == []
    (use,) = asked["relations"]
    assert use["access"] == "insert" and use["columns"] == ["big", "flag", "id", "name", "parts"]


async def test_a_hidden_table_is_told_as_a_missing_one(make_governed: Callable[..., Any]) -> None:
    world: World = await make_governed()
    client = await world.client()
    for columns in ("", "(id)", "(nope)", "(double)", "(id, id)"):
        told = []
        for name in ("hidden", "missing"):
            if name == "hidden":
                world.policies.hidden.add("public.missing")  # type: ignore[attr-defined]
            answer = await client.query(f"COPY {name} {columns} FROM STDIN (FORMAT csv, FORCE_NULL *)")
            assert kinds(answer) == "EZ"
            told.append({**error(answer), "M": error(answer)["M"].partition(" [")[0].replace(f".{name}", "?")})
        assert told[0] == told[1], columns


# what a table gives


async def test_defaults_identity_and_generated_columns(world: World) -> None:
    client = await world.client()
    told = await client.ask(
        Query("COPY things (id, name, big) FROM STDIN"), CopyData(b"7\tseven\t1.5\n8\t\\N\t2\n"), DONE
    )
    assert kinds(told) == "GCZ"
    told = await client.ask(Query("COPY things (parts) FROM STDIN"), CopyData(b"{1,2}\n\\N\n"), DONE)
    assert kinds(told) == "GCZ"
    assert world.direct("SELECT * FROM things ORDER BY id") == [
        (1, "none", None, None, [1, 2], None), (2, "none", None, None, None, None),
        (7, "seven", Decimal("1.5"), Decimal("3.0"), None, None), (8, None, Decimal(2), Decimal(4), None, None),
    ]  # fmt: skip
    told = await client.query("COPY things (double) FROM STDIN")
    assert error(told)["C"] == "42P10"


@pytest.mark.parametrize("table", ["ruled", "watched", "shown"])
async def test_tables_with_rules_or_triggers_and_views_are_refused(world: World, table: str) -> None:
    client = await world.client()
    told = await client.query(f"COPY {table} FROM STDIN")
    assert "ST-02" in error(told)["M"]


async def test_constraints_undo_all_and_say_no_value(world: World) -> None:
    client = await world.client()
    for row, code in (
        (b"1\t0042\tx\n", "23505"), (b"9\t0042\tquite long\n", "22001"), (b"\\N\t0042\tx\n", "23502"),
        (b"nine\t0042\tx\n", "22P02"), (b"9\t0042\t\xff\n", "22021"), (b"9\t0042\tx\0y\n", "22021"),
    ):  # fmt: skip
        told = await client.ask(
            Query("COPY people (id, branch, code) FROM STDIN"), CopyData(b"8\t0042\tok\n" + row), DONE
        )
        assert kinds(told) == "GEZ" and error(told)["C"] == code, (row, error(told))
        assert "W" not in error(told) and "D" not in error(told)
        assert people(world) == [] and outcome(world)[::2] == ("error", code)
        unsaid(world, told, b"quite long", b"nine")
    told = await client.ask(Query("COPY people (id, branch, amount) FROM STDIN"), CopyData(b"8\t0042\t12345\n"), DONE)
    assert error(told)["C"] == "22003"


async def test_a_deferred_constraint_undoes_all(world: World) -> None:
    told = await copied(world, "COPY late FROM STDIN", b"1\t2\n2\t3\n")
    assert kinds(told)[-2:] == "EZ" and error(told)["C"] == "23503"
    assert world.direct("SELECT * FROM late") == [] and outcome(world)[::2] == ("error", "23503")
    told = await copied(world, "COPY late FROM STDIN", b"1\t2\n2\t1\n")
    assert kinds(told) == "GCZ"


# transactions, and what ends a COPY


async def test_a_transaction_holds_it_or_fails_with_it(world: World) -> None:
    client = await world.client()
    assert kinds(await client.query("BEGIN")) == "CZ"
    sql = Query("COPY people (id, branch) FROM STDIN")
    assert (await client.ask(sql, CopyData(b"3\t0042\n"), DONE))[-1] == ("Z", b"T")
    assert people(world) == []
    await client.query("COMMIT")
    assert people(world, "id") == [(3,)]
    await client.query("BEGIN")
    await client.ask(sql, CopyData(b"4\t0042\n"), DONE)
    await client.query("SAVEPOINT s")
    assert (await client.ask(sql, CopyData(b"5\t0042\n5\n"), DONE))[-1] == ("Z", b"E")
    assert error(await client.query("SELECT 1"))["C"] == "25P02"
    await client.query("ROLLBACK TO s")
    assert (await client.ask(sql, CopyData(b"6\t0042\n"), DONE))[-1] == ("Z", b"T")
    await client.query("COMMIT")
    assert people(world, "id") == [(3,), (4,), (6,)]


@pytest.mark.parametrize("before", [b"", b"3\t0042\n" * 1, b"".join(b"%d\t0042\n" % n for n in range(3, 2000))])
async def test_copy_fail_and_nonsense_end_it(world: World, before: bytes) -> None:
    for protocol in ("simple", "extended"):
        for data, end, code in (
            (before, CopyFail("hidden words"), "57014"), (before + b"9\n", DONE, "22P04"),
            (before + b"9\t0042\tx\n", DONE, "22P04"),
        ):  # fmt: skip
            client = await world.client()
            sql = "COPY people (id, branch) FROM STDIN"
            asked = extended(sql, data, end=end) if protocol == "extended" else [Query(sql), CopyData(data), end]
            told = await client.ask(*asked)
            assert kinds(told)[-3:] == "GEZ" and error(told)["C"] == code
            assert told[-1] == ("Z", b"I") and people(world) == []
            assert kinds(await client.query("SELECT id FROM people")) == "TDCZ"
            unsaid(world, told)


async def test_data_after_the_error_are_dropped(world: World) -> None:
    client = await world.client()
    told = await client.ask(Query("COPY people (id, branch) FROM STDIN"), CopyData(b"9\n"))
    assert kinds(told) == "GEZ"
    told = await client.ask(CopyData(b"3\t0042\n"), DONE, CopyFail("x"), Query("SELECT id FROM people"))
    assert kinds(told) == "TDCZ" and people(world) == []


async def test_other_messages_close_the_session(world: World) -> None:
    for message in (Query("SELECT 1"), Parse("", "SELECT 1"), Execute("")):
        client = await world.client()
        told = await client.ask(
            Query("COPY people (id, branch) FROM STDIN"), CopyData(b"3\t0042\n"), message, DONE, Sync()
        )
        assert kinds(told) == "GE" or kinds(told[:-1]) == "GE", kinds(told)
        assert error(told)["C"] == "08P01" and people(world) == []


async def test_a_client_that_leaves_writes_nothing(world: World) -> None:
    client = await world.client()
    client.send(Query("COPY people (id, branch) FROM STDIN"))
    assert (await client.message())[0] == "G"
    client.send(CopyData(b"".join(b"%d\t0042\n" % n for n in range(3, 4000))), Terminate())
    await until(lambda: not world.sessions)
    assert people(world) == [] and outcome(world)[0] == "error"


async def test_several_statements_in_one_text(world: World) -> None:
    client = await world.client()
    sql = "INSERT INTO people (id, branch) VALUES (3, '0042'); COPY people (id, branch) FROM STDIN; SELECT 7 AS a"
    told = await client.ask(Query(sql), CopyData(b"4\t0042\n"), DONE)
    assert kinds(told) == "CGCTDCZ" and people(world, "id") == [(3,), (4,)]
    world.direct("DELETE FROM people WHERE id > 2")
    told = await client.ask(Query(sql), CopyData(b"4\t0043\n"), DONE)
    assert kinds(told) == "CGEZ" and people(world) == []


# limits


async def test_limits_bind_it(world: World) -> None:
    client = await world.client()
    sql = Query("COPY people (id, branch) FROM STDIN")
    rows = b"3\t0042\n4\t0042\n5\t0042\n"
    for limits, code in ((Limits(rows=2), "53400"), (Limits(bytes=20), "53400"), (Limits(rows=3, bytes=24), "")):
        world.policies.limits = limits  # type: ignore[attr-defined]
        world.policies.revision += "x"
        told = await client.ask(sql, CopyData(rows), DONE)
        assert kinds(told) == ("GEZ" if code else "GCZ"), limits
        assert not code or (error(told)["C"] == code and "AC-06" in error(told)["M"])
    assert people(world, "id") == [(3,), (4,), (5,)]


async def test_seconds_bind_it_whoever_is_slow(world: World) -> None:
    world.policies.limits = Limits(seconds=0.2)  # type: ignore[attr-defined]
    client = await world.client()
    told = await client.ask(Query("COPY people (id, branch) FROM STDIN"), CopyData(b"3\t0042\n"))
    assert kinds(told) == "GEZ" and error(told)["C"] == "57014" and "AC-06" in error(told)["M"]
    with psycopg.connect(world.dsn) as other:
        other.execute("LOCK people")
        told = await client.ask(Query("COPY people (id, branch) FROM STDIN"), CopyData(b"3\t0042\n"), DONE)
        assert kinds(told) == "GEZ" and error(told)["C"] == "57014" and "AC-06" in error(told)["M"]
    assert people(world) == []


async def test_a_cancel_request_ends_it(world: World) -> None:
    client = await world.client()
    client.send(Query("COPY people (id, branch) FROM STDIN"))
    assert (await client.message())[0] == "G"
    world.services.cancels.cancel(client.key.process_id, client.key.secret)
    told = await client.ask(CopyData(b"3\t0042\n"))
    assert kinds(told) == "EZ" and error(told)["C"] == "57014" and people(world) == []


async def test_a_policy_that_changes_ends_it(world: World) -> None:
    client = await world.client()
    client.send(Query("COPY people (id, branch) FROM STDIN"))
    assert (await client.message())[0] == "G"
    world.policies.filters["public.people"] = FieldFilter("eq", "public.people.branch", "0043")  # type: ignore[attr-defined]
    world.policies.revision = "2"
    told = await client.ask(CopyData(b"3\t0042\n"), DONE)
    assert kinds(told) == "EZ" and "ST-08" in error(told)["M"] and people(world) == []
    world.policies.hidden.add("public.people")  # type: ignore[attr-defined]
    world.policies.revision = "3"
    assert error(await client.query("COPY people (id, branch) FROM STDIN"))["C"] == "42501"


async def test_a_slow_database_slows_the_client(world: World) -> None:
    """What has not been written is not read: the client's data wait in its own socket."""
    client = await world.client()
    row = b"\t0042\t" + b"x" * 1000 + b"\n"
    data = b"".join(b"%d" % n + row for n in range(10, 20_010))
    with psycopg.connect(world.dsn) as other:
        other.execute("LOCK people")
        client.send(Query("COPY people (id, branch, note) FROM STDIN"))
        for at in range(0, len(data), 1 << 16):
            client.send(CopyData(data[at : at + (1 << 16)]))
        client.send(DONE)
        await world.runs("INSERT INTO", "wait_event_type = 'Lock'")
        (session,) = world.sessions
        await until(lambda: session.stream.buffered > 0)
        waiting = client.writer.transport.get_write_buffer_size()
        assert waiting > len(data) // 2 and session.stream.buffered < 1 << 20
    told = await client.unit()
    assert told[-2] == ("C", b"COPY 20000\0")


async def test_a_row_that_is_too_long_is_refused(make_governed: Callable[..., Any]) -> None:
    world: World = await make_governed(listener={"max_message_bytes": 1 << 16})
    sql = "COPY people (id, branch, note) FROM STDIN"
    told = await copied(world, sql, b"3\t0042\t", *[b"x" * 10_000] * 8)
    assert kinds(told) == "GEZ" and error(told)["C"] == "54000" and "WP-03" in error(told)["M"]


@pytest.mark.parametrize("writes", ["process", "strict"])
async def test_the_intent_is_kept_before_the_first_row(make_governed: Callable[..., Any], writes: str) -> None:
    world: World = await make_governed(writes=writes)
    client = await world.client()
    client.send(Query("COPY people (id, branch) FROM STDIN"))
    assert (await client.message())[0] == "G"
    assert outcome(world)[0] == "intent" and last(world).level == writes
    told = await client.ask(CopyData(b"3\t0042\n"), DONE)
    assert kinds(told) == "CZ" and outcome(world)[:2] == ("ok", "COPY 1")


# statements that are refused


@pytest.mark.parametrize(
    ("sql", "control", "code"),
    [
        ("COPY people (id) FROM STDIN WHERE id > 5", "ST-02", "0A000"),
        ("COPY people FROM '/etc/passwd'", "ST-05", "0A000"),
        ("COPY people FROM PROGRAM 'id'", "ST-05", "0A000"),
        ("COPY people FROM PROGRAM ''", "ST-05", "0A000"),
        ("COPY people FROM STDIN (FREEZE)", "ST-02", "0A000"),
        ("COPY people FROM STDIN (ON_ERROR ignore)", "ST-02", "0A000"),
        ("COPY people FROM STDIN (DEFAULT 'd')", "ST-02", "0A000"),
        ("COPY people FROM STDIN (ENCODING latin1)", "ST-02", "0A000"),
        ("COPY people FROM STDIN (REJECT_LIMIT 3)", "ST-02", "0A000"),
        ("COPY people FROM STDIN (LOG_VERBOSITY verbose)", "ST-02", "0A000"),
        ("COPY people FROM STDIN (FORCE_QUOTE *)", "ST-02", "0A000"),
        ("COPY people FROM STDIN (FORCE_NULL (id))", "ST-01", "22023"),
        ("COPY people FROM STDIN (FORMAT xml)", "ST-01", "22023"),
        ("COPY people FROM STDIN (FORMAT binary, HEADER)", "ST-01", "22023"),
        ("COPY people (id, id) FROM STDIN", "ST-01", "42701"),
        ("COPY people (id) FROM STDIN (FORMAT csv, FORCE_NULL (branch))", "ST-01", "42P10"),
        ("COPY people (nope) FROM STDIN", "ST-03", "42501"),
        ("COPY people (xmin) FROM STDIN", "ST-03", "42501"),
        ("COPY pg_catalog.pg_class FROM STDIN", "ST-03", "42501"),
        ("COPY other.public.people FROM STDIN", "ST-03", "42501"),
    ],
)
async def test_what_is_refused(world: World, sql: str, control: str, code: str) -> None:
    client = await world.client()
    told = await client.query(sql)
    assert kinds(told) == "EZ" and error(told)["C"] == code and control in error(told)["M"], error(told)
    assert kinds(await client.query("SELECT 1")) == "TDCZ"


async def test_options_that_ask_for_nothing(world: World) -> None:
    sql = "COPY people (id, branch) FROM STDIN (FREEZE false, ON_ERROR stop, ENCODING 'UTF-8', LOG_VERBOSITY default)"
    assert kinds(await copied(world, sql, b"3\t0042\n")) == "GCZ"


# binary


def binary(*rows: tuple[bytes | None, ...]) -> bytes:
    cells = (
        struct.pack("!h", len(row))
        + b"".join(b"\xff\xff\xff\xff" if v is None else struct.pack("!i", len(v)) + v for v in row)
        for row in rows
    )
    return b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"".join(cells) + b"\xff\xff"


async def test_binary_rows(world: World) -> None:
    sql = "COPY people (id, branch, ssn) FROM STDIN (FORMAT binary)"
    rows = binary((struct.pack("!i", 3), b"0042", b"123-45-6789"), (struct.pack("!i", 4), b"0042", None))
    told = await copied(world, sql, *(rows[at : at + 1] for at in range(len(rows))))
    assert kinds(told) == "GCZ" and told[0][1][:1] == b"\1"
    (token,) = await provider().encode([TokenRequest("ssn", "123-45-6789")])
    assert people(world, "id, ssn") == [(3, str(token)), (4, None)]
    for data, code in (
        (rows[:-2] + b"\0\2", "22P04"), (rows + b"x", "22P04"), (rows[1:], "22P04"), (rows[:15], "22P04"),
        (rows[:-3], "22P04"), (binary((b"abc", b"0042", None)), "08P01"), (binary((bytes(4), b"0043", None)), "42501"),
    ):  # fmt: skip
        told = await copied(world, sql, data)
        assert kinds(told) == "GEZ" and error(told)["C"] in (code, "22P03"), (data, error(told))
    assert len(people(world)) == 2


async def test_the_check_is_what_stops_a_row(world: World) -> None:
    """A COPY writes no row by another way than the statements that `Enforcement.prepare_copy` has decided."""
    agent = next(iter(world.sessions)).agent if world.sessions else None
    if agent is None:
        await world.client()
        agent = next(iter(world.sessions)).agent
    governed = world.services.enforcement["bank"]
    (statement,) = await governed.prepare(agent, "COPY people (id, branch) FROM STDIN", simple=True)
    copying = await governed.prepare_copy(agent, statement.command)  # type: ignore[arg-type]
    for each, count in ((copying.one, 1), (copying.many, copying.rows)):
        assert each.plan is not None and each.plan.row_check_plan and each.plan.swallow_rows
        assert each.plan.sql.count("grille_row_check") == 1 and each.plan.client_parameters == 2 * count
        assert each.plan.shared and copy_in.BATCH_ROWS % copying.rows == 0


async def test_copies_at_the_same_time_do_not_meet(world: World) -> None:
    async def one(start: int) -> None:
        rows = b"".join(b"%d\t0042\n" % n for n in range(start, start + 300))
        assert kinds(await copied(world, "COPY people (id, branch) FROM STDIN", rows)) == "GCZ"

    await asyncio.gather(*(one(1000 * n) for n in range(1, 8)))
    assert world.direct("SELECT count(*) FROM people WHERE id >= 1000") == [(2100,)]


async def test_it_reads_no_keys(world: World) -> None:
    """Rows that come from the agent itself hold none of the database's: `distinct_keys_per_hour` is no matter."""
    catalog = world.services.enforcement["bank"]._catalog
    world.services.shown["bank"] = Shown(catalog)  # type: ignore[index]
    world.policies.limits = Limits(distinct_keys_per_hour=1)  # type: ignore[attr-defined]
    rows = b"".join(b"%d\t0042\n" % n for n in range(10, 2010))
    assert kinds(await copied(world, "COPY people (id, branch) FROM STDIN", rows)) == "GCZ"
    assert world.services.quotas.keys(test_passthrough.SPIFFE_ID) == 0


async def test_statements_are_counted_once(world: World) -> None:
    world.policies.limits = Limits(statements_per_minute=2)  # type: ignore[attr-defined]
    client = await world.client()
    sql = Query("COPY people (id, branch) FROM STDIN")
    for start in (10, 2010):
        rows = b"".join(b"%d\t0042\n" % n for n in range(start, start + 2000))
        assert kinds(await client.ask(sql, CopyData(rows), DONE)) == "GCZ"
    told = await client.ask(sql)
    assert kinds(told) == "EZ" and error(told)["C"] == "53400"
