"""Name resolution."""

# ruff: noqa: E501  (one statement a line)

from __future__ import annotations

from tests.catalogue.attacks import drift, wire
from tests.catalogue.cases import NATIVE, SAME, either, row

ROWS = [
    row(
        'A1', 'search_path changed by SET, RESET or set_config', 'ID-04',
        ("SELECT set_config('search_path', 'evil, public', false) FROM people", "ST-04"),
        ('SELECT id FROM evil.people', "ST-03"),
        [("SET search_path = evil, public", "ID-04"), ("SELECT id FROM people WHERE id = 1", NATIVE)],
        ("SET LOCAL search_path TO evil", "ID-04"),
        ("SELECT set_config('search_path', 'evil, public', false)", "ID-04"),
        ("SELECT pg_catalog.set_config('Search_Path', 'evil', true)", "ID-04"),
        [("SELECT public.turns('search_path', 'evil, public')", either("UP-01", SAME)), ("SELECT id, name FROM people WHERE id < 3 ORDER BY id", NATIVE)],
    ),
    row(
        'A2', 'search_path in the startup packet', 'ID-04',
        wire.startup_search_path,
    ),
    row(
        'A3', 'search_path of a role, a database or a function', 'ID-04',
        ('ALTER ROLE grille_bypass SET search_path = evil', "ST-05"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = evil AS 'SELECT 1'", "ST-05"),
        ("ALTER DATABASE whole SET search_path = evil", "ST-05"),
    ),
    row(
        'A4', 'a temporary table of the same name', 'ST-05',
        ('CREATE TEMP TABLE people AS SELECT 1', "ST-05"),
        [("CREATE TEMP TABLE people AS SELECT 1 AS id", "ST-05"), ("SELECT id FROM people WHERE id < 3 ORDER BY id", NATIVE)],
        ("CREATE TEMP TABLE people (id int)", "ST-05"),
        ("SELECT id FROM pg_temp.people", "ST-03"),
    ),
    row(
        'A5', "an operator of another schema in place of pg_catalog's", 'ST-04',
        ('SELECT id FROM people WHERE id OPERATOR(public.<<<) 3', "ST-04"),
        ('SELECT id FROM people WHERE id <<< 3', "ST-04"),
        [("SELECT public.turns('search_path', 'evil, pg_catalog')", either("UP-01", SAME)), ("SELECT id FROM people WHERE branch = '0007'", []), ("SELECT count(*) FROM people", NATIVE)],
        ("SELECT id FROM people WHERE branch OPERATOR(evil.=) '0007'", "ST-04"),
    ),
    row(
        'A6', "a function of another schema in place of pg_catalog's", 'ST-04',
        ('CREATE OPERATOR public.= (LEFTARG = int, RIGHTARG = int, FUNCTION = louder)', "ST-05"),
        ("SELECT evil.lower(name) FROM people", "ST-04"),
        ("CREATE FUNCTION lower(text) RETURNS text LANGUAGE sql AS 'SELECT 1'", "ST-05"),
        ("CREATE CAST (text AS int) WITH INOUT", "ST-05"),
        ("CREATE DOMAIN d AS text", "ST-05"),
        ("CREATE TYPE t AS (a int)", "ST-05"),
    ),
    row(
        'A7', 'the same relation by qualified and quoted names', 'RO-01',
        ('SELECT id FROM {database}.public.people', SAME),
        ('SELECT id FROM "public"."people"', SAME),
        ('SELECT id FROM other.public.people', "ST-03"),
    ),
    row(
        'A8', 'the same relation by other spellings of its name', 'ST-03',
        ('SELECT id FROM PEOPLE', SAME),
        ('SELECT id FROM U&"\\0070eople"', SAME),
        ('SELECT id FROM "People"', "ST-03"),
        ("SELECT id FROM people_which_is_a_name_of_more_than_sixty_three_bytes_and_so_is_cut_off", "ST-03"),
    ),
    row(
        'A9', "a CTE that hides the table's name from the outer query", 'RO-01',
        ('WITH people AS (SELECT * FROM people) SELECT id FROM people', SAME),
        ("WITH people AS (SELECT * FROM people WHERE public.leak(name) <> '') SELECT id FROM people ORDER BY id", NATIVE),
    ),
    row(
        'A10', 'a CTE in an inner scope, the table in the outer', 'RO-01',
        ('SELECT people.id FROM people, LATERAL (WITH people AS (SELECT 1 AS one) SELECT * FROM people) x', SAME),
    ),
    row(
        'A11', "recursive and nested WITH of the table's name", 'RO-01',
        ('WITH RECURSIVE people AS (SELECT 1 AS id UNION ALL SELECT id + 1 FROM people WHERE id < 3) SELECT id FROM people', [(1,), (2,), (3,)]),
        ('WITH RECURSIVE a AS (SELECT id FROM people), people AS (SELECT 1 AS id) SELECT * FROM a', SAME),
        ('WITH RECURSIVE r AS (SELECT id, public.leak(id) AS x FROM people WHERE id = 1 UNION ALL SELECT p.id, public.leak(p.id) FROM people p, r WHERE p.id = r.id + 1 AND r.x > 0) SELECT id FROM r', SAME),
        ("WITH a AS (WITH people AS (SELECT 1 AS id) SELECT id FROM people) SELECT count(*) FROM people, a", NATIVE),
    ),
    row(
        'A12', 'a partition by its own name', 'ST-03',
        ('SELECT * FROM part_1', "ST-03"),
        ("SELECT * FROM part_2", "ST-03"),
        ("SELECT id, note FROM part ORDER BY id", NATIVE),
        ("INSERT INTO part_2 VALUES (9, '0007', 'x')", "ST-03"),
    ),
    row(
        'A13', 'an inheritance child by its own name, and ONLY', 'ST-03',
        ('SELECT ssn FROM kid', "ST-03"),
        ('SELECT count(*) FROM ONLY people', [(20,)]),
        ("SELECT id FROM people ORDER BY id", NATIVE),
        ("SELECT * FROM people*", SAME),
    ),
    row(
        'A14', 'a view over the table', 'ST-03',
        ('SELECT ssn FROM v', "ST-03"),
    ),
    row(
        'A15', 'a materialized view over the table', 'ST-03',
        ('SELECT * FROM mv', "ST-03"),
    ),
    row(
        'A16', 'a foreign table', 'ST-03',
        ('CREATE FOREIGN TABLE ft (a int) SERVER s', "ST-05"),
        ("SELECT * FROM ft", "ST-03"),
        ("IMPORT FOREIGN SCHEMA s FROM SERVER nowhere INTO public", "ST-05"),
    ),
    row(
        'A17', 'sequences and TOAST relations', 'ST-03',
        ('SELECT last_value FROM counter', "ST-03"),
        ('SELECT * FROM pg_toast.pg_toast_1', "ST-03"),
        ("SELECT * FROM counter", "ST-03"),
    ),
    row(
        'A18', 'a table renamed between the check and the execution', 'ST-08',
        drift.renamed,
    ),
    row(
        'A19', 'look-alike names', 'ST-03',
        ('SELECT * FROM "people "', "ST-03"),
        ("SELECT * FROM \"p\u0435ople\"", "ST-03"),
        ("SELECT * FROM \"peopIe\"", "ST-03"),
    ),
]  # fmt: skip
