"""Attacks on a catalogue that changes: the owner's DDL between one statement of the agent and the next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from tests.catalogue.world import DEADLINE, World

SEEN = [(1, "seen"), (2, "seen"), (3, "seen")]


def _answer(connection: psycopg.Connection[Any], sql: str) -> list[tuple[Any, ...]] | str:
    """Rows, or the control or SQLSTATE of an error."""
    try:
        cursor = connection.execute(sql)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else str(cursor.statusmessage)
    except psycopg.Error as error:
        _, _, control = str(error.diag.message_primary).partition("[control ")
        return control[:5] or str(error.sqlstate)


def _eventually(
    connection: psycopg.Connection[Any], sql: str, wanted: object, meanwhile: Callable[[Any], bool]
) -> None:
    """The answer becomes `wanted`, and until then every answer satisfies `meanwhile`."""
    deadline = time.monotonic() + DEADLINE
    while (answer := _answer(connection, sql)) != wanted:
        assert meanwhile(answer), f"{sql}: {answer}"
        assert time.monotonic() < deadline, f"{sql}: {answer}, and not {wanted}"
        time.sleep(0.02)


def _refused(answer: object) -> bool:
    """An error, whichever."""
    return isinstance(answer, str)


@contextlib.contextmanager
def undone(world: World, *undo: str) -> Iterator[None]:
    """Whatever happens, the owner does this at the end, and Grille sees it."""
    try:
        yield
    finally:
        for sql in undo:
            world.owner(sql)
        with world.connect("a") as connection:
            _eventually(connection, "SELECT id, name FROM swap ORDER BY id", SEEN, lambda answer: True)
            _eventually(connection, "SELECT id, note FROM loose ORDER BY id", SEEN, lambda answer: True)


def renamed(world: World) -> None:
    """Two tables change names; the one that now has the listed name is another one."""
    text = "SELECT id, name FROM swap ORDER BY id"
    with (
        world.connect("a") as connection,
        undone(world, "DROP TABLE IF EXISTS swap", "ALTER TABLE IF EXISTS swap_old RENAME TO swap"),
    ):
        assert _answer(connection, text) == SEEN
        world.owner(
            "BEGIN; ALTER TABLE swap RENAME TO swap_old; CREATE TABLE swap (id int, branch text, name text); "
            "INSERT INTO swap VALUES (1, '0007', 'hidden-value'), (2, '0042', 'new'); "
            "GRANT ALL ON swap TO grille_app; COMMIT"
        )
        _eventually(connection, text, [(2, "new")], _refused)


def swapped_tables(world: World) -> None:
    """As `renamed`, where nobody looks at the catalogue: the statement itself must notice."""
    text = "SELECT id, name FROM swap ORDER BY id"
    with (
        world.connect("slow") as connection,
        world.connect("slow") as writer,
        undone(world, "DROP TABLE IF EXISTS swap", "ALTER TABLE IF EXISTS swap_old RENAME TO swap"),
    ):
        for _ in range(7):  # prepared, and on a generic plan
            assert _answer(connection, text) == SEEN
        connection.execute("PREPARE q AS " + text)
        assert _answer(connection, "EXECUTE q") == SEEN
        world.owner(
            "BEGIN; ALTER TABLE swap RENAME TO swap_old; CREATE TABLE swap (id int, branch text, name text); "
            "INSERT INTO swap VALUES (1, '0042', 'hidden-value'); GRANT ALL ON swap TO grille_app; COMMIT"
        )
        for sql in ("EXECUTE q", text):
            # It may be read only as what it is: after the proxy has looked at the catalogue anew.
            answer = _answer(connection, sql)
            assert _refused(answer) or answer == [(1, "hidden-value")], answer
        for sql in ("UPDATE swap SET name = 'x'", "DELETE FROM swap", "INSERT INTO swap VALUES (5, '0042', 'x')"):
            assert _answer(writer, sql) != "UP-01"
    with world.connect("slow") as connection:
        _eventually(connection, text, SEEN, lambda answer: True)
    world.restore()


def new_column(world: World) -> None:
    """A column that nobody has classified yet, then one that is configured as sensitive and comes later."""
    with (
        world.connect("a") as connection,
        undone(world, "ALTER TABLE drift DROP COLUMN IF EXISTS iban", "ALTER TABLE drift DROP COLUMN IF EXISTS copy"),
    ):
        star = "SELECT * FROM drift WHERE id = 1"
        before = _answer(connection, star)
        world.owner("ALTER TABLE drift ADD COLUMN copy text GENERATED ALWAYS AS (upper(email)) STORED")
        _eventually(connection, star, [(*before[0], None)], lambda answer: answer == before or _refused(answer))
        assert _answer(connection, "SELECT copy FROM drift WHERE copy IS NOT NULL") == []
        assert _answer(connection, "UPDATE drift SET name = copy") == "CO-04"
        world.owner("ALTER TABLE drift DROP COLUMN copy")
        _eventually(connection, star, before, lambda answer: len(answer[0]) == 5 or _refused(answer))
        assert _answer(connection, "SELECT copy FROM drift") == "ST-03"


def new_partition(world: World) -> None:
    """A table of its own becomes a partition, then an inheritance child."""
    text = "SELECT id, note FROM loose ORDER BY id"
    with (
        world.connect("a") as connection,
        undone(world, "DROP TABLE IF EXISTS parent"),
    ):
        assert _answer(connection, text) == SEEN
        world.owner("CREATE TABLE parent (id int, branch text, note text); ALTER TABLE loose INHERIT parent")
        _eventually(connection, text, "ST-03", lambda answer: answer == SEEN)
        world.owner("ALTER TABLE loose NO INHERIT parent; DROP TABLE parent")
        _eventually(connection, text, SEEN, _refused)
        world.owner(
            "CREATE TABLE parent (id int, branch text, note text) PARTITION BY LIST (branch); "
            "ALTER TABLE parent ATTACH PARTITION loose FOR VALUES IN ('0042', '0007')"
        )
        _eventually(connection, text, "ST-03", lambda answer: answer == SEEN)
        world.owner("ALTER TABLE parent DETACH PARTITION loose; DROP TABLE parent")
        _eventually(connection, text, SEEN, _refused)


def redefined_view(world: World) -> None:
    """An approved view reads something else from now on."""
    text = "SELECT id, kind FROM kinds ORDER BY id LIMIT 2"
    original = "CREATE OR REPLACE VIEW kinds AS SELECT id, kind FROM accounts WHERE branch = '0042'"
    with world.connect("a") as connection, undone(world, original):
        before = [(1, "giro"), (2, "giro")]
        assert _answer(connection, text) == before
        world.owner("CREATE OR REPLACE VIEW kinds AS SELECT id, name AS kind FROM people WHERE branch = '0007'")
        world.settled("a")
        answer = _answer(connection, text)
        assert answer == "ST-03", answer
        world.owner(original)
        _eventually(connection, text, before, _refused)


def redefined_function(world: World) -> None:
    """A listed function does something else from now on."""
    text = "SELECT public.redefined(3)"
    head = "CREATE OR REPLACE FUNCTION redefined(int) RETURNS int LANGUAGE sql"
    original = head + " IMMUTABLE AS 'SELECT $1'"
    with world.connect("a") as connection, undone(world, original):
        assert _answer(connection, text) == [(3,)]
        world.owner(head + " SECURITY DEFINER AS 'SELECT count(*)::int FROM secrets'")
        world.settled("a")
        assert _answer(connection, text) == "ST-04"
        world.owner(original)
        _eventually(connection, text, [(3,)], _refused)


def new_operator(world: World) -> None:
    """An operator and a cast appear in public, which take part in ordinary expressions if nobody looks."""
    with (
        world.connect("a") as connection,
        undone(
            world, "DROP OPERATOR IF EXISTS public.= (text, int)", "DROP CAST IF EXISTS (text AS date)",
            "DROP FUNCTION IF EXISTS public.loose(text, int)", "DROP FUNCTION IF EXISTS public.dated(text)",
        ),
    ):  # fmt: skip
        texts = ("SELECT id FROM people WHERE name = 3", "SELECT id FROM people WHERE name OPERATOR(public.=) 3")
        for text in texts:
            assert _answer(connection, text) == "ST-04"
        world.owner(
            "CREATE FUNCTION public.loose(text, int) RETURNS bool LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE WARNING 'leak:%', $1; RETURN true; END $$; "
            "CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = int, FUNCTION = public.loose); "
            "CREATE FUNCTION public.dated(text) RETURNS date LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE WARNING 'leak:%', $1; RETURN NULL; END $$; "
            "CREATE CAST (text AS date) WITH FUNCTION public.dated(text) AS IMPLICIT"
        )
        world.leaked()
        world.settled("a")
        for text in (
            *texts, "SELECT id FROM people WHERE name::date IS NULL", "SELECT id FROM people WHERE name = current_date",
            "SELECT date_part('year', name) FROM people",
        ):  # fmt: skip
            answer = _answer(connection, text)
            assert answer == "ST-04", f"{text}: {answer}"
        assert not world.leaked()


def marked_leakproof(world: World) -> None:
    """A superuser marks functions leakproof: the mark alone moves nothing before the filter."""
    with (
        world.connect("a") as connection,
        undone(
            world,
            "ALTER FUNCTION leak(text) NOT LEAKPROOF",
            "ALTER FUNCTION pg_catalog.int4div(int, int) NOT LEAKPROOF",
        ),
    ):
        world.owner("ALTER FUNCTION leak(text) LEAKPROOF; ALTER FUNCTION pg_catalog.int4div(int, int) LEAKPROOF")
        world.settled("a")
        world.leaked()
        for _ in range(2):
            answer = _answer(connection, "SELECT count(*) FROM people WHERE public.leak(name) <> ''")
            assert answer == [(20,)], answer
            answer = _answer(connection, "SELECT count(*) FROM people WHERE 1 / (id - 77) > -5")
            assert answer == [(20,)], answer
        assert not world.leaked()


def restored_database(world: World) -> None:
    """Another database takes the place of the one that was looked at: other OIDs, other rows."""
    text = "SELECT count(*) FROM people"
    world.owner("DELETE FROM people WHERE id < 6", "restored")
    world.owner("DROP TABLE swap; CREATE TABLE swap (id int, branch text, name text); "
                "INSERT INTO swap VALUES (1, '0042', 'new'), (2, '0007', 'hidden-value'); "
                "GRANT ALL ON swap TO grille_app", "restored")  # fmt: skip
    with world.connect("switcher") as connection:
        assert _answer(connection, text) == [(20,)]
        assert _answer(connection, "SELECT id, name FROM swap ORDER BY id") == SEEN
        world.disown("restored", "switch")
        for sql in (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('switch', 'restored')",
            "ALTER DATABASE switch ALLOW_CONNECTIONS false", "ALTER DATABASE restored ALLOW_CONNECTIONS false",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('switch', 'restored')",
            "ALTER DATABASE switch RENAME TO gone", "ALTER DATABASE restored RENAME TO switch",
            "ALTER DATABASE switch ALLOW_CONNECTIONS true",
        ):  # fmt: skip
            _insist(world, sql)
    with world.connect("switcher") as connection:
        _eventually(connection, text, [(15,)], _refused)
        _eventually(connection, "SELECT id, name FROM swap ORDER BY id", [(1, "new")], _refused)


def _insist(world: World, sql: str) -> None:
    """Grille connects anew as soon as it can: try until nobody is connected."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            world.owner(sql, "postgres")
            return
        except psycopg.Error:
            assert time.monotonic() < deadline
            world.owner(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('switch', 'restored')",
                "postgres",
            )
