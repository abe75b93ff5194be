"""Attacks on masks that take more than a text."""

from __future__ import annotations

from typing import Any

import psycopg

from grille.protocols.postgres.messages import Bind, Execute, Parse, Query, Sync
from tests.catalogue.attacks import drift
from tests.catalogue.world import World, clear_ssn, ssn


def binary_results_are_masked(world: World) -> None:
    text = "SELECT id, ssn, email, pin, card FROM people WHERE id = 3"
    with world.wire("a") as wire:
        for formats in ((1,), (1, 1, 1, 1, 1), (0, 1, 0, 1, 0)):
            reply = wire.ask(Parse("", text), Bind("", "", (), (), formats), Execute(""), Sync())
            told = b"".join(payload for _, payload in reply.messages)
            assert not any(canary in told for canary in world.canaries), reply
            ((number, *rest),) = reply.rows
            assert number in (b"3", b"\0\0\0\x03") and rest == [ssn(3).encode(), b"u***@bank.example", None, None], (
                reply
            )
    with world.connect("a") as connection:
        rows = connection.cursor(binary=True).execute(text).fetchall()
        assert rows == [(3, ssn(3), "u***@bank.example", None, None)], rows


def copies_show_what_a_select_shows(world: World) -> None:
    with world.connect("a") as connection:
        for query in (
            "SELECT * FROM people",
            "SELECT ssn, email, id FROM people ORDER BY id",
            "TABLE part",
            "TABLE drift",
        ):
            rows = connection.execute(query).fetchall()
            shown = [tuple(None if v is None else str(v) for v in row) for row in rows]
            with connection.cursor().copy(f"COPY ({query}) TO STDOUT") as copy:
                assert list(copy.rows()) == shown, query
        with connection.cursor().copy("COPY people (id, ssn) TO STDOUT (FORMAT csv)") as copy:
            lines = b"".join(copy).decode().split()
        assert lines == [f"{n},{ssn(n)}" for n in range(1, 21)], lines
    for text in ("COPY people TO STDOUT", "COPY people TO STDOUT (FORMAT binary)", "COPY kid TO STDOUT",
                 "COPY (SELECT p, q FROM drift p, drift q) TO STDOUT (FORMAT csv, FORCE_QUOTE *)"):  # fmt: skip
        for simple in (True, False):
            with world.wire("a") as wire:
                sent = [Query(text)] if simple else [Parse("", text), Bind("", "", (), ()), Execute(""), Sync()]
                reply = wire.ask(*sent)
                told = b"".join(payload for _, payload in reply.messages)
                assert not any(canary in told for canary in world.canaries), reply
                assert b"hidden" not in told, reply


def what_the_decision_does_not_name_is_masked(world: World) -> None:
    with world.connect("no-columns") as connection:
        row = connection.execute("SELECT id, ssn, email, pin, card FROM people WHERE id = 3").fetchone()
        assert row == (3, None, None, None, None), row
        for text, control in (
            (f"SELECT id FROM people WHERE ssn = '{clear_ssn(3)}'", "CO-03"),
            (f"UPDATE people SET ssn = '{clear_ssn(3)}' WHERE id = 3", "CO-02"),
            ("UPDATE people SET email = 'x' WHERE id = 3", "CO-02"),
        ):
            _denied(connection, text, control)


def _denied(connection: psycopg.Connection[Any], text: str, control: str) -> None:
    try:
        connection.execute(text)  # type: ignore[arg-type]
    except psycopg.Error as error:
        assert f"[control {control}" in str(error), error
        return
    raise AssertionError(f"{text} was allowed")


def virtual_generated_columns(world: World) -> None:
    """A column computed from a masked one when it is read (stored, where the server has no virtual ones)."""
    kind = "VIRTUAL" if world.version >= 18 else "STORED"
    with world.connect("a") as connection, drift.undone(world, "ALTER TABLE drift DROP COLUMN IF EXISTS shown"):
        world.owner(f"ALTER TABLE drift ADD COLUMN shown text GENERATED ALWAYS AS (email || '!') {kind}")
        world.settled("a")
        assert connection.execute("SELECT shown FROM drift WHERE id = 1").fetchall() == [(None,)]
        assert connection.execute("SELECT id FROM drift WHERE shown = 'clear1@bank.example!'").fetchall() == []
        _denied(connection, "UPDATE drift SET name = shown", "CO-04")
        _denied(connection, "DELETE FROM drift WHERE shown LIKE 'clear1%'", "CO-04")
