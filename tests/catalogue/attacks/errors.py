"""The database's own errors: each SQLSTATE that it has, and what they would tell."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import errors

from grille.protocols.postgres.messages import Query
from grille.proxy.errors import scrubbed_fields
from tests.catalogue.world import World

CODES: Final = tuple(
    sorted(
        {
            code
            for one in vars(errors).values()
            if isinstance(one, type) and issubclass(one, psycopg.Error) and (code := one.sqlstate)
        }
    )
)
"""Appendix A of PostgreSQL's documentation, as psycopg lists it."""


def every_sqlstate_in_words_of_our_own(world: World) -> None:
    """A function raises each with a hidden word in every field: of them the agent gets the SQLSTATE alone."""
    assert len(CODES) > 240 and len({code[:2] for code in CODES}) > 35
    with world.wire("a") as wire:
        for code in CODES:
            reply = wire.ask(Query(f"SELECT public.raises('{code}', 'secrets', 'hidden_column', 'hidden_name')"))
            (fields,) = reply.errors
            assert fields == scrubbed_fields({"C": code, "V": "ERROR"}, lambda *_: False), (code, fields)
            assert not reply.closed and reply.kinds.endswith("Z"), (code, reply)
            assert b"hidden" not in b"".join(payload for _, payload in reply.messages)
        # What an ORM needs survives, where the agent knows the table.
        reply = wire.ask(Query("SELECT public.raises('23505', 'people', 'id', 'people_pkey') FROM people WHERE id = 3"))
        (fields,) = reply.errors
        assert (fields["s"], fields["t"], fields["c"], fields["n"]) == ("public", "people", "id", "people_pkey")
        assert "hidden" not in repr(fields) and not fields.keys() & set("DHWqdpP")
        reply = wire.ask(
            Query("SELECT public.raises('23505', 'people', 'hidden_column', 'people_pkey') FROM people WHERE id = 3")
        )
        assert "c" not in reply.errors[0] and "hidden" not in repr(reply.errors[0])


def two_at_once(world: World) -> None:
    """Serialization failure, deadlock and a lock that is not to be had: the SQLSTATE a retry needs, and no more."""
    begin = "BEGIN ISOLATION LEVEL SERIALIZABLE"
    update = "UPDATE people SET score = score WHERE id = {}"
    try:
        with world.wire("a") as one, world.wire("a") as other:
            for wire, number in ((one, 4), (other, 4)):
                wire.ask(Query(begin))
                wire.ask(Query(f"SELECT score FROM people WHERE id = {number}"))
            assert one.ask(Query(update.format(4))).kinds == "CZ"
            assert one.ask(Query("COMMIT")).kinds == "CZ"
            (fields,) = other.ask(Query(update.format(4))).errors
            assert fields == scrubbed_fields({"C": "40001", "V": "ERROR"}, lambda *_: False), fields
        with world.wire("a") as one, world.wire("a") as other:
            for wire, number in ((one, 4), (other, 5)):
                wire.ask(Query("BEGIN"))
                assert wire.ask(Query(update.format(number))).kinds == "CZ"
            (fields,) = other.ask(Query("SELECT id FROM people WHERE id = 4 FOR UPDATE NOWAIT")).errors
            assert fields == scrubbed_fields({"C": "55P03", "V": "ERROR"}, lambda *_: False), fields
        with world.wire("a") as one, world.wire("a") as other:
            for wire, number in ((one, 4), (other, 5)):
                wire.ask(Query("BEGIN"))
                assert wire.ask(Query(update.format(number))).kinds == "CZ"
            one.send(Query(update.format(5)))
            replies = [other.ask(Query(update.format(4)))]
            if not replies[0].errors:
                other.ask(Query("ROLLBACK"))
            replies.append(one.reply())
            (fields,) = [fields for reply in replies for fields in reply.errors]
            assert fields == scrubbed_fields({"C": "40P01", "V": "ERROR"}, lambda *_: False), fields
    finally:
        world.owner("SELECT 1")
