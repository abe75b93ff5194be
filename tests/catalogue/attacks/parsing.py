"""Attacks on the parser and on the policy engine."""

from __future__ import annotations

from typing import Any

import psycopg

from grille.protocols.postgres.messages import Query
from tests.catalogue.world import HERE, World, policy_data


def deep_texts(world: World) -> None:
    """None of them ends the process or holds it up: each is refused, and the session goes on."""
    n = 40_000
    texts = [
        "SELECT " + "+".join(["1"] * n), "SELECT " + "||".join(["'a'"] * n), "SELECT 1" + "::int" * n,
        "SELECT 1" + " ISNULL" * n, "SELECT " + "(" * n + "1" + ")" * n, "SELECT " + "- " * n + "1",
        " UNION ".join(["SELECT 1, 2"] * n), "SELECT 1 FROM a" + " JOIN a ON a AND b" * n,
        "/*" * n + "*/" * n + "SELECT 1",
        "SELECT " + "CASE WHEN 1 THEN 1 ELSE " * n + "1" + " END" * n, "SELECT 1;" * n,
        "SELECT id FROM people WHERE " + "NOT " * n + "true", "SELECT 1" + "+1/*,*/" * n,
        "SELECT " + ", ".join(["*"] * 80_000) + " FROM people",
        "SELECT 1 FROM " + ", ".join(f"people p{i}" for i in range(2000)),
    ]  # fmt: skip
    for text in texts:
        with world.wire("a") as wire:
            reply = wire.ask(Query(text[:33_000]))
            assert not reply.rows and len(reply.errors) == 1 and not reply.closed, reply
            assert any(f"[control {control}" in reply.errors[0]["M"] for control in ("ST-06", "ST-01")), reply
            assert wire.ask(Query("SELECT count(*) FROM people")).rows == [(b"20",)]


COUNT = "SELECT count(*) FROM people"


def _answers(world: World, agent: str, wanted: object) -> None:
    """Rows, or the control that denies."""
    with world.connect(agent) as connection:
        answer: Any
        try:
            answer = connection.execute(COUNT).fetchall()
        except psycopg.Error as error:
            answer = str(error.diag.message_primary).partition("[control ")[2][:5]
        assert answer == wanted, f"{agent}: {answer}, not {wanted}"


def quotes_in_an_attribute(world: World) -> None:
    """An attribute that would end a string and go on as a document stays a value: no row has it."""
    _answers(world, "quoted", [(0,)])


def undefined_policy(world: World) -> None:
    _answers(world, "undefined", "AC-02")


def conflicting_answers(world: World) -> None:
    _answers(world, "conflicting", "AC-02")


def shapes_of_answers(world: World) -> None:
    for agent, wanted in (
        ("no-filters", "AC-02"), ("empty-filters", "ST-03"), ("null-filter", "AC-02"), ("unknown-key", "AC-02"),
        ("nobody", "AC-01"), ("open-filter", [(101,)]),
    ):  # fmt: skip
        _answers(world, agent, wanted)


def filters_are_not_text(world: World) -> None:
    _answers(world, "quoted-field", "AC-05")
    _answers(world, "number-for-text", [(0,)])


def unlisted_builtin(world: World) -> None:
    """A bundle that calls what is not provided does not replace the one in force."""
    world.policy.with_suffix(".new").write_bytes((HERE / "unlisted.tar.gz").read_bytes())
    world.policy.with_suffix(".new").replace(world.policy)
    try:
        world.await_log("sprintf")
        _answers(world, "a", [(20,)])
    finally:
        world.put_in_force(policy_data())
