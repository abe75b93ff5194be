"""Parser, rewriter, caches and policy engine."""

# ruff: noqa: E501  (one statement a line)

from __future__ import annotations

from tests.catalogue.attacks import parsing, rows, wire
from tests.catalogue.cases import NATIVE, SAME, row

ROWS = [
    row(
        'P1', 'comments and quoting', 'ST-01',
        ("SELECT /* /* nested */ ' */ id FROM people WHERE id = 3 -- ' comment", [(3,)]),
        ("SELECT $tag$it's$tag$, E'a\\'b', U&'\\0061', 'a' 'b' FROM people WHERE id = 3", "ST-01"),
        ("SELECT id FROM people WHERE name = '''; DROP TABLE people; --'", []),
        ("SELECT id FROM people WHERE id = 3 --\rOR true", NATIVE),
        ("SELECT $a$ $b$ ' $a$ AS x FROM people WHERE id = 3", [(" $b$ ' ",)]),
        ("SELECT 'a'\n'b' FROM people WHERE id = 3", [("ab",)]),
        ("SELECT U&'\\0061\\+000062' FROM people WHERE id = 3", [("ab",)]),
    ),
    row(
        'P2', 'texts that other grammars read otherwise', 'ST-01',
        ("SELECT 1_000, -2^2, 0x1F, '1' || 2", [(1000, 4.0, 31, '12')]),
        ("SELECT 0b101, 1e3, .5, 5::float8 ^ 2, 'a' || 1", SAME),
    ),
    row(
        'P3', 'a grammar newer than the server', 'ST-02',
        ("SELECT 0x1F, 1_000, 0b101", [(31, 1000, 5)]),
        ("SELECT json_scalar(id) FROM people", "ST-02"),
    ),
    row(
        'P4', 'an embedded NUL', 'WP-01',
        wire.nul_in_a_text,
    ),
    row(
        'P5', 'deep nesting', 'ST-06',
        parsing.deep_texts,
    ),
    row(
        'P6', 'texts with one fingerprint', 'RO-01',
        [("SELECT x.id FROM people x, branches y WHERE x.id = 1 AND y.id = '0042'", NATIVE), ("SELECT x.id FROM branches x, people y WHERE y.id = 1 AND x.id = '0042'", NATIVE)],
        [("SELECT id FROM people WHERE id = 1", NATIVE), ("SELECT id FROM evil.people WHERE id = 1", "ST-03")],
        [("SET TimeZone = 'UTC'", "SET"), ("SET ROLE = 'UTC'", "ID-04")],
    ),
    row(
        'P7', 'texts that differ in a constant only', 'ST-04',
        ("SELECT 'people'::regclass", [("public.people",)]),
        [("SELECT set_config('TimeZone', 'UTC', false)", SAME), ("SELECT set_config('role', 'postgres', false)", "ID-04")],
        [("SELECT 'people'::regclass", [("public.people",)]), ("SELECT 'secrets'::regclass", [(None,)]), ("SELECT 'nowhere'::regclass", [(None,)])],
        [("SELECT id, name FROM people WHERE id = 3 ORDER BY 1", NATIVE), ("SELECT id, name FROM people WHERE id = 77 ORDER BY 2", NATIVE)],
    ),
    row(
        'P8', 'one text of two agents', 'RO-01',
        rows.plans_are_not_shared_across_branches,
    ),
    row(
        'P9', 'unknown nodes', 'ST-02',
        ("SELECT XMLCONCAT('<a/>')", "ST-02"),
        ("SELECT JSON_QUERY('{}', '$')", "ST-02"),
        ("SELECT XMLSERIALIZE(CONTENT '<a/>' AS text)", "ST-02"),
        ("SELECT '<a/>' IS DOCUMENT", "ST-02"),
        ("SELECT GROUPING(id) FROM people GROUP BY CUBE (id) LIMIT 1", SAME),
        ("SELECT id FROM people TABLESAMPLE SYSTEM (100)", "ST-02"),
        ("SELECT * FROM ROWS FROM (json_to_record('{}') AS (a int)) r", "ST-02"),
        ("SELECT * FROM XMLTABLE('/a' PASSING '<a/>' COLUMNS x text) t", "ST-02"),
    ),
    row(
        'P10', 'a rewritten text that reads otherwise', 'ST-07',
        ("SELECT interval '1' day, (id).x FROM people", "ST-02"),
        ("SELECT id AS \"select\", name AS \"a\"\"b\" FROM people AS \"from\" WHERE \"from\".id = 3", NATIVE),
        ("SELECT - - id, + id, -(-1), NOT NOT true, (id) FROM people WHERE id = 3", NATIVE),
        ("SELECT 'a\\b', E'a\\\\b\\n', '''', '\"' FROM people WHERE id = 3", NATIVE),
        ("SELECT id FROM people WHERE (id BETWEEN 1 AND 2) = true AND id IS DISTINCT FROM 2 OR id = 4 ORDER BY id", NATIVE),
        ("SELECT interval '1 day' * 2, date '2020-01-01' + 1, time '10:00' AT TIME ZONE 'UTC' IS NULL", SAME),
    ),
    row(
        'P11', "a value that ends the policy's string", 'AC-02',
        parsing.quotes_in_an_attribute,
    ),
    row(
        'P12', 'a policy that is undefined, or wants what is not provided', 'AC-02',
        parsing.undefined_policy,
        parsing.unlisted_builtin,
    ),
    row(
        'P13', 'an answer without a filter', 'AC-03',
        parsing.shapes_of_answers,
    ),
    row(
        'P14', 'a filter that is text', 'AC-05',
        parsing.filters_are_not_text,
    ),
    row(
        'P15', 'two answers at once', 'AC-02',
        parsing.conflicting_answers,
    ),
]  # fmt: skip
