"""The row filter: evaluation order and side channels."""

# ruff: noqa: E501  (one statement a line)

from __future__ import annotations

from tests.catalogue.attacks import rows
from tests.catalogue.cases import NATIVE, SAME, either, row, tells

ROWS = [
    row(
        'B1', 'a leaky function over a filtered sub-select', 'RO-01',
        ("SELECT id FROM (SELECT * FROM people) p WHERE public.leak(ssn) <> ''", "CO-03"),
        ("SELECT id FROM (SELECT * FROM people) p WHERE public.leak(name) <> ''", SAME),
    ),
    row(
        'B2', 'a leaky function beside the filter', 'RO-01',
        ("SELECT id FROM people WHERE branch = '0042' AND public.leak(name) <> ''", SAME),
    ),
    row(
        'B3', 'a leaky function over a CTE', 'RO-01',
        ("WITH p AS (SELECT * FROM people) SELECT id FROM p WHERE public.leak(name) <> ''", SAME),
        ("WITH p AS NOT MATERIALIZED (SELECT id, public.leak(name) AS n FROM people) SELECT id FROM p WHERE n <> ''", SAME),
    ),
    row(
        'B4', 'division by zero on a hidden row', 'RO-01',
        ('SELECT id FROM people WHERE 1 / (id - 77) > -5', SAME),
        ("SELECT q.id FROM (SELECT id, 1 / (id - 77) AS d FROM people) q WHERE q.d = 0 ORDER BY q.id", NATIVE),
        ("UPDATE people SET score = 1 WHERE 1 / (id - 77) > -5", "UPDATE 20"),
    ),
    row(
        'B5', 'a cast that fails on a hidden value', 'RO-01',
        ('SELECT id FROM people WHERE name::int = 1', "22P02"),
        ("SELECT id FROM people WHERE note::int = 1 AND id > 20", []),
        ("SELECT id FROM people WHERE replace(name, 'visible ', '')::int = 77", []),
    ),
    row(
        'B6', 'a leaky join condition', 'RO-01',
        ("SELECT p.id FROM people p JOIN (VALUES (1)) x(a) ON public.leak(p.name) <> ''", SAME),
        ("SELECT p.id FROM people p LEFT JOIN accounts a ON public.leak(a.kind) <> '' AND a.person_id = p.id", SAME),
        ('SELECT p.id FROM accounts a RIGHT JOIN people p ON public.leak(p.name) = a.kind', SAME),
        ('SELECT p.id FROM people p FULL JOIN accounts a ON p.id = a.person_id + public.leak(0)', "ST-02"),
    ),
    row(
        'B7', 'a leaky condition of UPDATE or DELETE', 'RO-01',
        ("UPDATE people SET name = name WHERE public.leak(name) <> ''", "UPDATE 20"),
        ("DELETE FROM people WHERE public.leak(name) = 'nobody'", "DELETE 0"),
        ("UPDATE people p SET name = 'x' FROM accounts a WHERE a.person_id = p.id AND public.leak(p.name) <> '' AND public.leak(a.kind) <> ''", "UPDATE 20"),
        ("DELETE FROM people p USING accounts a WHERE a.person_id = p.id AND public.leak(p.name || a.kind) = ''", "DELETE 0"),
        ("UPDATE people SET name = name WHERE 1 / (id - 77) > -5 RETURNING id", SAME),
    ),
    row(
        'B8', 'ctid as a fence', 'ST-03',
        ('UPDATE people SET name = name WHERE ctid IN (SELECT ctid FROM people)', "ST-03"),
    ),
    row(
        'B9', 'OR without parentheses', 'RO-01',
        ('SELECT id FROM people WHERE id = -1 OR true', SAME),
        ("SELECT id FROM people WHERE id = -1 OR true ORDER BY id", NATIVE),
        ("SELECT id FROM people WHERE NOT (branch = '0042')", []),
        ("DELETE FROM people WHERE id = -1 OR true", "DELETE 20"),
    ),
    row(
        'B10', 'locks on rows behind the filter', 'RO-01',
        ('SELECT id FROM people WHERE public.leak(id) > 0 FOR UPDATE', SAME),
        ("SELECT id FROM people WHERE id = 77 FOR UPDATE NOWAIT", []),
        ("SELECT id FROM people WHERE id > 70 FOR SHARE SKIP LOCKED", []),
        rows.locks_only_what_is_seen,
    ),
    row(
        'B11', 'EXPLAIN', 'ST-05',
        ("EXPLAIN (ANALYZE) SELECT * FROM people WHERE note = 'x'", "ST-05"),
        ("EXPLAIN (ANALYZE, VERBOSE, FORMAT json) SELECT * FROM people", "ST-05"),
    ),
    row(
        'B12', 'variants of EXPLAIN', 'ST-05',
        ('EXPLAIN EXECUTE q', "ST-05"),
        ("EXPLAIN (GENERIC_PLAN) SELECT * FROM people WHERE id = $1", "ST-05"),
        ("SET auto_explain.log_min_duration = 0", "ID-04"),
    ),
    row(
        'B13', "the planner's statistics", 'ST-03',
        ("SELECT most_common_vals FROM pg_stats WHERE tablename = 'people'", "ST-03"),
        ('SELECT stavalues1 FROM pg_catalog.pg_statistic', "ST-03"),
        ("SELECT * FROM pg_catalog.pg_statistic_ext_data", "ST-03"),
        ("SELECT most_common_vals FROM pg_stats_ext", "ST-03"),
    ),
    row(
        'B14', 'estimators that see sampled values', 'ST-04',
        ("CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq, RESTRICT = eqsel)", "ST-05"),
        ("SELECT count(*) FROM part WHERE note <> 'x' AND public.leak(note) = 'hidden'", [(0,)]),
    ),
    row(
        'B15', 'counters and sizes', 'ST-03',
        ("SELECT reltuples, relpages FROM pg_class WHERE relname = 'people'", [(None, None)]),
        ("SELECT pg_relation_size('people')", [(None,)]),
        ("SELECT n_live_tup FROM pg_stat_user_tables", "ST-03"),
        ("SELECT pg_total_relation_size('people')", [(None,)]),
        ("SELECT pg_stat_get_live_tuples(1)", "ST-04"),
        why='Tools that list tables ask for sizes: they are NULL.',
    ),
    row(
        'B16', 'time as a channel', 'ST-04',
        ('SELECT pg_sleep(1) FROM people', "ST-04"),
        ("SELECT CASE WHEN id = 77 THEN pg_sleep(1) END FROM people", "ST-04"),
        ("SELECT pg_sleep_for('1 s')", "ST-04"),
        ("SELECT id FROM people WHERE id = 77 AND name ~ '((a+)+)+$'", []),
    ),
    row(
        'B17', 'a unique key as an oracle', 'UP-02',
        ("INSERT INTO people (id, branch, ssn) VALUES (500, '0042', '123456789')", "INSERT 0 1"),
        tells(("INSERT INTO people (id, branch, name) VALUES (77, '0042', 'x')", "23505")),
        ("INSERT INTO people (id, branch, card) VALUES (500, '0042', '4000007788880077')", "CO-02"),
        ("INSERT INTO people (id, branch, email) VALUES (500, '0042', 'u77@bank.example')", "CO-02"),
    ),
    row(
        'B18', 'a foreign key as an oracle', 'CO-02',
        ("INSERT INTO accounts (id, person_id, branch, owner_ssn) VALUES (500, 77, '0042', '123456789')", "INSERT 0 1"),
        ("INSERT INTO fkc (id, branch, ssn) VALUES (1, '0042', '100770077')", "CO-02"),
        ("INSERT INTO letters (id, branch, receiver) VALUES (1, '0042', 'clear5@bank.example')", "CO-02"),
        ("UPDATE letters SET receiver = 'clear5@bank.example'", "CO-02"),
    ),
    row(
        'B19', "the failing row in an error's detail", 'UP-02',
        ("UPDATE people SET branch = '0007' WHERE id = 3", "RO-02"),
        ("INSERT INTO checked (id, branch, note) VALUES (500, '0042', NULL)", "23502"),
        ("INSERT INTO checked (id, branch, note) VALUES (500, '0042', 'forbidden')", "23514"),
        ("UPDATE checked SET note = NULL", "23502"),
        ("INSERT INTO part VALUES (7, '0099', 'x')", "23514"),
    ),
    row(
        'B20', 'existence by ON CONFLICT DO NOTHING', 'RO-02',
        ("INSERT INTO people (id, branch) VALUES (77, '0042') ON CONFLICT DO NOTHING", "RO-02"),
        ("INSERT INTO old_prices (branch, price) VALUES ('0042', 1) ON CONFLICT DO NOTHING", "RO-02"),
    ),
    row(
        'B21', 'existence by MERGE', 'ST-05',
        ('MERGE INTO people p USING (VALUES (77)) s(id) ON p.id = s.id WHEN NOT MATCHED THEN INSERT (id) VALUES (s.id)', "ST-05"),
    ),
    row(
        'B22', 'inference from sums over permitted rows', 'AC-06',
        ("SELECT count(*), max(amount), sum(id) FROM people", NATIVE),
        ("SELECT count(*) FROM people WHERE id <> 3", NATIVE),
        rows.statements_are_limited,
        why="Out of the rewrite's scope, as the catalogue says: the sums are right over permitted rows, the decision's limits bound how many are asked, each is recorded.",
    ),
    row(
        'B23', 'volatile calls in the select list', 'ST-04',
        ("SELECT nextval('public.counter'), public.leak(name) FROM people", "ST-04"),
    ),
    row(
        'B24', "a filter's own functions replaced", 'ST-04',
        [("SELECT public.turns('search_path', 'evil, pg_catalog')", either("UP-01", SAME)), ("SELECT email FROM people WHERE id = 3", NATIVE), ("SELECT id FROM people WHERE lower(name) = 'hidden'", [])],
    ),
    row(
        'B25', 'a plan made for another role or setting', 'ST-08',
        rows.plans_are_not_shared_across_branches,
        ("SET ROLE postgres", "ID-04"),
    ),
    row(
        'B26', 'debug output of the server', 'ID-04',
        [("SET client_min_messages = log", "ID-04"), ("SET debug_print_plan = on", "ID-04"), ("SELECT id FROM people WHERE id = 1", NATIVE)],
        rows.notices_do_not_pass,
    ),
    row(
        'B27', 'a fence that takes the index away', 'RO-01',
        rows.key_lookups_keep_their_index,
    ),
]  # fmt: skip
