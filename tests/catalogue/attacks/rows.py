"""Attacks on the row filter that take more than one session, or a look at what the database did."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg

from grille.protocols.postgres.messages import Bind, Execute, Parse, Query, Sync
from tests.catalogue.world import DEADLINE, World, policy_data

SYNC = Sync()


def locks_only_what_is_seen(world: World) -> None:
    with world.connect("a") as connection:
        connection.execute("BEGIN")
        text = "SELECT id FROM people WHERE public.leak(id) = 3 AND id < 10 FOR UPDATE"
        assert connection.execute(text).fetchall() == [(3,)]
        for free in (1, 9, 77, 777):
            assert world.owner(f"SELECT id FROM people WHERE id = {free} FOR UPDATE NOWAIT") == [(free,)]
        try:
            world.owner("SELECT id FROM people WHERE id = 3 FOR UPDATE NOWAIT")
        except psycopg.errors.LockNotAvailable:
            pass
        else:
            raise AssertionError("the agent's own row is not locked")
        connection.execute("ROLLBACK")


def statements_are_limited(world: World) -> None:
    data = policy_data()
    data["base"]["limits"] = {"rows": 5, "statements_per_minute": 1000}
    world.put_in_force(data)
    try:
        with world.connect("a") as connection:
            assert len(connection.execute("SELECT id FROM people WHERE id < 5").fetchall()) == 4
            for text in ("SELECT id FROM people", "SELECT id FROM people ORDER BY id LIMIT 6"):
                try:
                    rows = connection.execute(text).fetchall()  # type: ignore[arg-type]
                except psycopg.Error as error:
                    assert "[control AC-06" in str(error) and error.sqlstate == "53400", error
                else:
                    raise AssertionError(f"{len(rows)} rows were given, and 5 are allowed")
    finally:
        world.put_in_force(policy_data())


def plans_are_not_shared_across_branches(world: World) -> None:
    """One text, one plan, one upstream statement; the branch is a parameter of each execution."""
    text = "SELECT count(*), min(id), max(branch) FROM people WHERE id > $1::int"
    wanted = {"a": [(b"20", b"1", b"0042")], "b": [(b"81", b"21", b"0007")]}
    with world.wire("a") as one, world.wire("b") as other:
        for _ in range(7):
            for name, wire in (("a", one), ("b", other)):
                reply = wire.ask(Parse("", text), Bind("", "", (), (b"0",)), Execute(""), SYNC)
                assert reply.rows == wanted[name], (name, reply)
                assert wire.ask(Query(text.replace("$1::int", "0"))).rows == wanted[name]


def no_value_of_another_agent(world: World) -> None:
    """Two agents take turns on the same few connections to the database, with failures and rollbacks in between."""
    count = "SELECT count(*) FROM people"
    with world.connect("a") as one, world.connect("b") as other:
        for turn in range(12):
            for connection, wanted in ((one, 20), (other, 81)):
                if turn % 3 == 1:
                    connection.execute("BEGIN")
                    connection.execute("SAVEPOINT a")
                if turn % 3 == 2:
                    try:
                        connection.execute("SELECT 1 / (count(*) - count(*)) FROM people")
                    except psycopg.errors.DivisionByZero:
                        pass
                    else:
                        raise AssertionError("it divided by zero")
                assert connection.execute(count).fetchall() == [(wanted,)]
                if turn % 3 == 1:
                    connection.execute("ROLLBACK TO a")
                    assert connection.execute(count).fetchall() == [(wanted,)]
                    connection.execute("ROLLBACK")
                assert connection.execute(count, prepare=True).fetchall() == [(wanted,)]


def notices_do_not_pass(world: World) -> None:
    world.leaked()
    with world.wire("a") as wire:
        reply = wire.ask(Query("SELECT id FROM people WHERE public.leak(name) <> '' AND id < 3"))
        assert len(reply.rows) == 2 and "N" not in reply.kinds, reply
    assert not world.leaked()


def key_lookups_keep_their_index(world: World) -> None:
    """The database counts how many rows it read one by one: none, where the key is given."""
    world.owner(
        "CREATE TABLE IF NOT EXISTS wide (id int PRIMARY KEY, branch text, note text); "
        "INSERT INTO wide SELECT i, '0042', 'open' FROM generate_series(1, 5000) i ON CONFLICT DO NOTHING; "
        "ANALYZE wide; GRANT ALL ON wide TO grille_app"
    )
    data = policy_data()
    data["roles"]["agent"]["filters"]["public.wide"] = "own branch"
    world.put_in_force(data)
    try:
        world.settled("a")
        counters = "SELECT seq_tup_read, idx_scan FROM pg_stat_user_tables WHERE relname = 'wide'"
        texts = (
            "SELECT note FROM wide WHERE id = 42",
            "SELECT note FROM wide WHERE id = 42 AND lower(note) LIKE 'o%'",
            "SELECT w.note FROM (SELECT * FROM wide) w WHERE w.id = 42",
            "UPDATE wide SET note = 'open' WHERE id = 42",
        )
        with world.connect("a") as connection:
            ((before, scans),) = world.owner(counters)
            deadline = time.monotonic() + DEADLINE
            while True:
                for text in texts:
                    connection.execute(text)  # type: ignore[arg-type]
                ((after, found),) = world.owner(counters)
                if found >= scans + 2 * len(texts):
                    break
                assert time.monotonic() < deadline, "the index was not used"
                time.sleep(0.1)
        assert after == before, f"{after - before} rows were read one by one"
    finally:
        world.put_in_force(policy_data())
        world.owner("DROP TABLE wide")


def parameters_do_not_raise_on_hidden_rows(world: World) -> None:
    """Prepared and on a generic plan, code over a parameter runs for each row that is reached."""
    for text, harmless, harmful in (
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (1 / $1::int > 0)", b"1", b"0"),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = ($1::text::date IS NULL)", b"2020-01-01", b"abc"),
        ("SELECT id FROM people WHERE id = 77 AND opened > date '2020-01-01' + $1::int", b"1", b"2147483647"),
        ("SELECT id FROM people WHERE id = 77 AND amount > $1::numeric::int", b"1", b"1e20"),
        ("SELECT id FROM people WHERE id = $1::int + 76", b"1", b"2147483647"),
    ):
        told = []
        for agent in ("a", "visible"):
            with world.wire(agent) as wire:
                replies = [wire.ask(Parse("s", text), SYNC)]
                for value in [harmless] * 8 + [harmful]:
                    replies.append(wire.ask(Bind("", "s", (), (value,)), Execute(""), SYNC))
                told.append([(r.rows, [e["C"] for e in r.errors]) for r in replies])
        assert told[0] == told[1], f"{text}: {told[0]} against {told[1]}"


def moved_while_waiting(world: World) -> None:
    """A row leaves the agent's branch while the agent's statement waits for its lock."""
    for text, wanted in (
        ("UPDATE people SET name = 'x' WHERE id = 3", "UPDATE 0"),
        ("DELETE FROM people WHERE id = 3", "DELETE 0"),
        ("SELECT id, name FROM people WHERE id = 3 FOR UPDATE", "SELECT 0"),
    ):
        with world.connect("a") as connection, psycopg.connect(world.cluster.dsn("whole")) as other:
            other.execute("UPDATE people SET branch = '0007', name = 'hidden now' WHERE id = 3")
            told: list[Any] = []

            def ask(connection: psycopg.Connection[Any] = connection, text: str = text, told: list[Any] = told) -> None:
                try:
                    told.append(connection.execute(text).statusmessage)  # type: ignore[arg-type]
                except psycopg.Error as error:
                    told.append(str(error))

            thread = threading.Thread(target=ask)
            thread.start()
            deadline = time.monotonic() + DEADLINE
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'whole'"
            while world.owner(waiting) == [(0,)]:
                assert time.monotonic() < deadline and thread.is_alive(), told
                time.sleep(0.02)
            other.commit()
            thread.join(DEADLINE)
            assert told == [wanted], told
        world.restore()
