"""More than the catalogue had: found by reading, and by attacking this proxy."""

# ruff: noqa: E501  (one statement a line)

from __future__ import annotations

from tests.catalogue.attacks import columns, errors, rows, wire
from tests.catalogue.cases import NATIVE, SAME, either, row, since, tells

ROWS = [
    row(
        'X1', "ORDER BY USING an operator of the database's own", 'ST-02',
        ('SELECT id FROM people ORDER BY id USING OPERATOR(public.<<<)', "ST-02"),
    ),
    row(
        'X2', 'a sub-select in ORDER BY of a set operation', 'ST-02',
        ('SELECT 1 UNION SELECT 2 ORDER BY (SELECT count(*) FROM people)', "ST-02"),
    ),
    row(
        'X3', 'a sub-select in LIMIT over a relation that is not listed', 'ST-03',
        ('SELECT 1 FROM people LIMIT (SELECT count(*) FROM secrets)', "ST-03"),
    ),
    row(
        'X4', 'FOR UPDATE OF a relation that is not there', 'RO-01',
        ('SELECT count(*) FROM people FOR UPDATE OF secrets', "0A000"),
    ),
    row(
        'X5', 'a sub-select in VALUES over a relation that is not listed', 'ST-03',
        ("INSERT INTO old_prices (branch, price) VALUES ('0042', (SELECT count(*) FROM secrets))", "ST-03"),
    ),
    row(
        'X6', 'VALUES with ORDER BY and LIMIT in INSERT', 'ST-02',
        ("INSERT INTO old_prices (branch, price) VALUES ('0042', 1) ORDER BY (SELECT 1) LIMIT 1", "ST-02"),
    ),
    row(
        'X7', 'a leaky recursive query', 'RO-01',
        ('WITH RECURSIVE t AS (SELECT public.leak(id) AS x FROM people UNION SELECT x FROM t WHERE x > 500) SELECT x FROM t WHERE x > 0', SAME),
    ),
    row(
        'X8', 'a constant in a derived table', 'RO-01',
        ("SELECT q.x FROM (SELECT 'a' AS x) q WHERE q.x = 'a'", [('a',)]),
    ),
    row(
        'X9', 'HAVING and ORDER BY over a join that is grouped by a key', 'RO-01',
        ('SELECT p.name, p.score, count(a.id) FROM people p LEFT JOIN accounts a ON a.person_id = p.id GROUP BY p.id HAVING count(a.id) > 0 ORDER BY p.amount, p.name', SAME),
    ),
    row(
        'X10', 'a column that GROUP BY does not have', 'RO-01',
        ('SELECT note, count(*) FROM people GROUP BY name', "42803"),
    ),
    row(
        'X11', 'leaky conditions in nested joins', 'RO-01',
        ("SELECT p.id FROM people p JOIN (people q JOIN accounts a ON public.leak(q.name) <> '' AND a.person_id = q.id) ON EXISTS (SELECT 1 FROM people z WHERE z.id = p.id AND public.leak(z.name) <> '')", SAME),
    ),
    row(
        'X12', 'a leaky condition over two references to one CTE', 'RO-01',
        ("WITH w AS (SELECT id FROM people WHERE EXISTS (SELECT 1 FROM accounts a WHERE a.person_id = people.id AND public.leak(a.kind) <> '')) SELECT a.id FROM w a JOIN w b ON a.id = b.id AND public.leak(a.id) > 0", SAME),
    ),
    row(
        'X13', 'leaky sub-selects in CASE and LIMIT', 'RO-01',
        ("SELECT CASE WHEN EXISTS (SELECT 1 FROM accounts a WHERE public.leak(a.kind) <> '' AND a.id = p.id) THEN 1 END FROM people p LIMIT (SELECT count(*) FROM accounts WHERE public.leak(kind) <> '')", SAME),
    ),
    row(
        'X14', "leaky sub-selects in FILTER and in an aggregate's ORDER BY", 'RO-01',
        ("SELECT count(*) FILTER (WHERE id IN (SELECT a.person_id FROM accounts a WHERE public.leak(a.kind) <> '')), string_agg(name, (SELECT max(a.kind) FROM accounts a WHERE public.leak(a.kind) <> '') ORDER BY (SELECT count(*) FROM accounts a WHERE a.id <= people.id)) FROM people", SAME),
    ),
    row(
        'X15', 'leaky sub-selects in a window', 'RO-01',
        ("SELECT sum(id) OVER (PARTITION BY (SELECT count(*) FROM accounts a WHERE public.leak(a.kind) <> '') ORDER BY id ROWS (SELECT count(*) FROM accounts a WHERE public.leak(a.kind) <> '') PRECEDING) FROM people", SAME),
    ),
    row(
        'X16', 'INSERT from a leaky set operation', 'RO-01',
        ("INSERT INTO accounts (id, person_id, branch) SELECT 500 + id, id, branch FROM people WHERE public.leak(name) <> '' UNION SELECT 600 + id, id, branch FROM people WHERE id IN (SELECT public.leak(person_id) FROM accounts)", "INSERT 0 40"),
    ),
    row(
        'X17', 'leaky sub-selects in ON CONFLICT DO UPDATE', 'RO-01',
        ("INSERT INTO people (id, branch) VALUES (3, '0042') ON CONFLICT (id) DO UPDATE SET name = (SELECT max(kind) FROM accounts WHERE public.leak(kind) <> '') WHERE EXISTS (SELECT 1 FROM accounts a WHERE a.id = people.id AND public.leak(a.kind) <> '')", "INSERT 0 1"),
    ),
    row(
        'X18', 'leaky sub-selects in SET and RETURNING', 'RO-01',
        ("UPDATE people SET name = (SELECT max(a.kind) FROM accounts a WHERE public.leak(a.kind) <> '' AND a.person_id = people.id) WHERE id = 3 RETURNING (SELECT count(*) FROM accounts a WHERE public.leak(a.kind) <> '')", [(20,)]),
    ),
    row(
        'X19', 'HAVING over an outer column', 'RO-01',
        ('SELECT x.id FROM people x WHERE x.id IN (SELECT y.id FROM people y WHERE y.id = x.id AND public.leak(y.id + x.id) > 0 GROUP BY y.id HAVING public.leak(max(x.id) + y.id) > 0)', "ST-02"),
    ),
    row(
        'X20', 'a leaky lateral set operation', 'RO-01',
        ('SELECT p.id FROM people p, LATERAL (SELECT public.leak(p.id) AS x UNION ALL SELECT 1) v WHERE v.x > 0', SAME),
    ),
    row(
        'X21', 'a leaky lateral side of an outer join', 'RO-01',
        ('SELECT p.id FROM people p LEFT JOIN LATERAL (SELECT public.leak(p.id) AS x) v ON v.x > 0', SAME),
    ),
    row(
        'X22', 'a lateral column in USING', 'ST-03',
        ('SELECT p.id FROM people p JOIN LATERAL (SELECT public.leak(p.id) AS x) v USING (x)', "ST-03"),
    ),
    row(
        'X23', 'a leaky lateral two levels down', 'RO-01',
        ('SELECT p.id FROM people p, LATERAL (SELECT q.x FROM (SELECT public.leak(p.id) AS x) q) v WHERE v.x IS NOT NULL', SAME),
    ),
    row(
        'X24', 'a leaky lateral column joined to constants', 'RO-01',
        ('SELECT p.id FROM people p CROSS JOIN LATERAL (SELECT coalesce(public.leak(p.id), 1) AS x) v JOIN (VALUES (77)) c(n) ON v.x = c.n', []),
    ),
    row(
        'X25', 'IN over a lateral value', 'RO-01',
        ('SELECT p.id FROM people p WHERE p.id IN (SELECT v.x FROM (SELECT public.leak(p.id) AS x) v)', SAME),
    ),
    row(
        'X26', 'EXISTS over an outer leaky value', 'RO-01',
        ('SELECT p.id FROM people p WHERE EXISTS (SELECT 1 FROM (SELECT public.leak(p.id) AS d) q WHERE q.d > 0)', SAME),
    ),
    row(
        'X27', 'DISTINCT over a leaky value', 'RO-01',
        ('SELECT d.id FROM (SELECT DISTINCT id, public.leak(id) AS x FROM people) d WHERE d.x > 0', SAME),
    ),
    row(
        'X28', 'a window partitioned by a leaky value', 'RO-01',
        ('SELECT d.id FROM (SELECT id, row_number() OVER (PARTITION BY public.leak(id)) AS x FROM people) d WHERE d.x = 1 AND d.id = 3', [(3,)]),
    ),
    row(
        'X29', 'an aggregate over a leaky value', 'RO-01',
        ('SELECT d.id FROM (SELECT id, max(public.leak(id)) AS x FROM people GROUP BY id) d WHERE d.x > 2', SAME),
    ),
    row(
        'X30', 'a set-returning function in the select list', 'RO-01',
        ('SELECT id, generate_series(1, public.leak(id)) FROM people WHERE id < 3', [(1, 1), (2, 1), (2, 2)]),
    ),
    row(
        'X31', 'HAVING over grouping sets', 'RO-01',
        ('SELECT id FROM people GROUP BY ROLLUP (id, name) HAVING public.leak(id) > 0', SAME),
    ),
    row(
        'X32', 'NATURAL JOIN of a table with itself', 'CO-03',
        ("SELECT a.id FROM people a NATURAL JOIN people b WHERE public.leak(a.name) <> ''", "CO-03"),
    ),
    row(
        'X33', 'a row compared with a sub-select', 'ST-01',
        ("SELECT p.id FROM people p WHERE (p.id, p.name) = (SELECT 1, 'visible 1')", "ST-01"),
    ),
    row(
        'X34', 'IN over tokens of one domain', 'RO-01',
        ('SELECT p.id FROM people p WHERE p.ssn IN (SELECT owner_ssn FROM accounts)', SAME),
    ),
    row(
        'X35', 'IN over a column that may not be searched', 'CO-03',
        ('SELECT p.id FROM people p WHERE p.card IN (SELECT card FROM people)', "CO-03"),
    ),
    row(
        'X36', 'IS NOT DISTINCT FROM over a column that may not be searched', 'CO-03',
        ('SELECT p.id FROM people p WHERE p.card IS NOT DISTINCT FROM p.card', "CO-03"),
    ),
    row(
        'X37', 'an array of tokens', 'CO-03',
        ('SELECT array_agg(x) FROM (SELECT ssn FROM people) q(x)', "CO-03"),
    ),
    row(
        'X38', 'an object of tokens', 'CO-03',
        ('SELECT json_object_agg(id, ssn) FROM people', "CO-03"),
    ),
    row(
        'X39', 'any_value over tokens', 'CO-03',
        ('SELECT any_value(ssn) FROM people', "CO-03"),
    ),
    row(
        'X40', 'mode over tokens', 'CO-03',
        ('SELECT mode() WITHIN GROUP (ORDER BY ssn) FROM people', "CO-03"),
    ),
    row(
        'X41', 'count DISTINCT over a column that may not be searched', 'CO-03',
        ('SELECT count(DISTINCT card) FROM people', "CO-03"),
    ),
    row(
        'X42', 'count DISTINCT over tokens', 'RO-01',
        ('SELECT count(DISTINCT ssn) FROM people', [(20,)]),
    ),
    row(
        'X43', 'GROUP BY the position of a column that may not be searched', 'CO-03',
        ('SELECT card, count(*) FROM people GROUP BY 1', "CO-03"),
    ),
    row(
        'X44', 'GROUP BY the alias of a column that may not be searched', 'CO-03',
        ('SELECT card AS c, count(*) FROM people GROUP BY c', "CO-03"),
    ),
    row(
        'X45', 'a row of a token', 'CO-03',
        ('SELECT ROW(ssn) FROM people', "CO-03"),
    ),
    row(
        'X46', 'IS NULL over a token', 'RO-01',
        ('SELECT ssn IS NULL FROM people WHERE id = 1', [(False,)]),
    ),
    row(
        'X47', 'COALESCE over a scalar sub-select of tokens', 'CO-03',
        ("SELECT coalesce((SELECT ssn FROM people LIMIT 1), 'x')", "CO-03"),
    ),
    row(
        'X48', 'a scalar set operation of tokens', 'RO-01',
        ('SELECT (SELECT ssn FROM people WHERE id = 3 UNION SELECT ssn FROM people WHERE id = 4 LIMIT 1) AS x', [("*****0003",)]),
    ),
    row(
        'X49', 'an expression over a recursive token', 'CO-03',
        ("WITH RECURSIVE t(s) AS (SELECT ssn FROM people WHERE id = 3 UNION ALL SELECT s || '' FROM t WHERE false) SELECT * FROM t", "CO-03"),
    ),
    row(
        'X50', 'ORDER BY a recursive token', 'CO-03',
        ('WITH RECURSIVE t(s, n) AS (SELECT ssn, 1 FROM people WHERE id = 3 UNION ALL SELECT s, n + 1 FROM t WHERE n < 3) SELECT s FROM t ORDER BY s', "CO-03"),
    ),
    row(
        'X51', 'a leaky function of a number', 'RO-01',
        ('SELECT id FROM people WHERE public.leak(id) > 0', SAME),
    ),
    row(
        'X52', "a pattern that fails, tried on the planner's samples", 'RO-01',
        ("SELECT id FROM people WHERE note LIKE 'hidden%\\'", []),
    ),
    row(
        'X53', 'OFFSET of INSERT ... VALUES with a sub-select', 'ST-02',
        ("INSERT INTO people (id, branch) VALUES (500, '0042') OFFSET (SELECT count(*) FROM people)", "ST-02"),
    ),
    row(
        'X54', 'OFFSET of INSERT ... VALUES with a call', 'ST-02',
        ("INSERT INTO people (id, branch) VALUES (500, '0042') OFFSET (SELECT pg_sleep(0)::text::int)", "ST-02"),
    ),
    row(
        'X55', 'ORDER BY of VALUES with a sub-select', 'ST-02',
        ('SELECT * FROM (VALUES (1), (2) ORDER BY (SELECT count(*) FROM people)) v', "ST-02"),
    ),
    row(
        'X56', 'ORDER BY of VALUES with a call', 'ST-02',
        ('VALUES (1) ORDER BY pg_backend_pid()', "ST-02"),
    ),
    row(
        'X57', 'lateral VALUES of a leaky value', 'RO-01',
        ('SELECT c.id FROM people c, LATERAL (VALUES (public.leak(c.id))) v(x) WHERE v.x IS NOT NULL', SAME),
    ),
    row(
        'X58', 'a lateral sub-select of a leaky value', 'RO-01',
        ('SELECT c.id FROM people c, LATERAL (SELECT public.leak(c.id) AS x) v WHERE v.x > 0', SAME),
    ),
    row(
        'X59', 'a lateral CTE of a leaky value', 'RO-01',
        ('SELECT 1 FROM people c, LATERAL (WITH w AS (SELECT public.leak(c.id) AS x) SELECT 1 AS o FROM w WHERE w.x > 0) v', SAME),
    ),
    row(
        'X60', 'IN over leaky values', 'RO-01',
        ('SELECT 1 FROM (SELECT 1 AS a) v WHERE v.a IN (SELECT public.leak(x.id) FROM people x)', [(1,)]),
    ),
    row(
        'X61', 'IN over leaky values, with a constant beside it', 'RO-01',
        ("SELECT 1 FROM branches b WHERE b.id = '0042' AND b.id IN (SELECT public.leak(x.name) FROM people x)", []),
    ),
    row(
        'X62', 'LIKE ANY over leaky values', 'RO-01',
        ("SELECT 1 FROM (SELECT 'a'::text AS a) v WHERE v.a LIKE ANY (SELECT public.leak(x.name) FROM people x)", []),
    ),
    row(
        'X63', 'a function in FROM without its schema', 'ST-04',
        ('SELECT c.id FROM people c, LATERAL sets(c.id) g WHERE g > 0', "ST-04"),
    ),
    row(
        'X64', 'a leaky function in FROM', 'RO-01',
        ('SELECT c.id FROM people c, LATERAL public.sets(c.id) g WHERE g > 0', SAME),
    ),
    row(
        'X65', 'HAVING that PostgreSQL would move into WHERE', 'RO-01',
        ('SELECT c.id FROM people c GROUP BY c.id HAVING CASE WHEN true THEN public.leak(c.id) > 0 ELSE count(*) > 0 END', SAME),
    ),
    row(
        'X66', 'HAVING in a sub-select with an outer aggregate', 'RO-01',
        ('SELECT max(b.id) FROM branches b HAVING EXISTS (SELECT 1 FROM people c GROUP BY c.id HAVING public.leak(c.id) + count(b.id) > 0)', "ST-02"),
    ),
    row(
        'X67', 'a cast with a modifier', 'RO-01',
        ('SELECT id FROM people WHERE amount::numeric(3,0) = 10', SAME),
    ),
    row(
        'X68', 'a volatile call that fails', 'RO-01',
        since(17, ('SELECT id FROM people WHERE id = 77 AND random(1, 0) > 0', [])),
    ),
    row(
        'X69', 'the clock in a division', 'RO-01',
        ('SELECT id FROM people WHERE id = 77 AND 1 / (0 * extract(epoch FROM clock_timestamp())) > 0', []),
    ),
    row(
        'X70', 'a pattern that fails, over a derived table', 'RO-01',
        ("SELECT q.id FROM (SELECT id, note FROM people) q WHERE q.note LIKE 'hidden%\\'", []),
    ),
    row(
        'X71', 'a pattern that fails, over a CTE', 'RO-01',
        ("WITH q AS (SELECT id, note FROM people) SELECT q.id FROM q WHERE q.note LIKE 'hidden%\\'", []),
    ),
    row(
        'X72', 'a pattern that fails, over a view', 'RO-01',
        ("SELECT id FROM all_notes WHERE note LIKE 'hidden%\\'", []),
    ),
    row(
        'X73', 'a pattern that fails, in HAVING', 'RO-01',
        ("SELECT note, count(*) FROM people GROUP BY note HAVING note LIKE 'hidden%\\' OR count(*) < 0", []),
    ),
    row(
        'X74', 'an alias that shadows the target of an update', 'ST-02',
        ("UPDATE people SET name = name WHERE EXISTS (SELECT 1 FROM accounts people WHERE people.branch IS NOT NULL AND public.leak(name) <> '')", "ST-02"),
    ),
    row(
        'X75', "a CTE column with the proxy's own name", 'ST-02',
        ('WITH w("grille:ok1") AS (SELECT true) SELECT c.id FROM people c WHERE EXISTS (SELECT 1 FROM w c WHERE public.leak(name) <> \'\')', "ST-02"),
    ),
    row(
        'X76', 'INTERSECT over a column that may not be searched', 'CO-03',
        ('SELECT card FROM people INTERSECT SELECT card FROM people WHERE id = 7', "CO-03"),
    ),
    row(
        'X77', 'DISTINCT over a column that may not be searched', 'CO-03',
        ('SELECT count(*) FROM (SELECT DISTINCT card FROM people) q', "CO-03"),
    ),
    row(
        'X78', 'a leaky condition over the catalogue', 'RO-01',
        ("SELECT typname FROM pg_type WHERE public.leak(typname::text) <> ''", SAME),
    ),
    row(
        'X79', 'a pattern that fails, over the catalogue', 'RO-01',
        ("SELECT typname FROM pg_type WHERE typname LIKE 'secret\\'", []),
    ),
    row(
        'X80', "WITHIN GROUP ordered USING an operator of the database's own", 'ST-02',
        ('SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY id USING OPERATOR(public.<<<)) FROM people', "ST-02"),
    ),
    row(
        'X81', 'LIMIT ALL below a leaky condition', 'RO-01',
        ('SELECT q.d FROM (SELECT public.leak(id) AS d FROM people LIMIT ALL) q WHERE q.d > 0', SAME),
    ),
    row(
        'X82', 'a set operation below a leaky condition', 'RO-01',
        ('SELECT q.d FROM (SELECT public.leak(id) AS d FROM people UNION ALL SELECT 1) q WHERE q.d > 0', SAME),
    ),
    row(
        'X83', 'a set operation of two types', 'RO-01',
        ('SELECT q.d FROM (SELECT amount AS d FROM people UNION ALL SELECT 1::float8) q WHERE q.d IS NOT NULL', SAME),
    ),
    row(
        'X84', 'a parameter without a value', 'ST-01',
        ('SELECT $1', "WP-01"),
    ),
    row(
        'X85', 'GROUP BY a key with other columns', 'RO-01',
        ('SELECT id, name, count(*) FROM people GROUP BY id', SAME),
    ),
    row(
        'X86', 'an error that a constant raises only when a hidden row is reached', 'RO-01',
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (1 / (current_date - current_date) > 0)", []),
        ("SELECT id FROM people WHERE id = 77 AND name = 'hidden 77' AND opened > current_date - 2147483647", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = ('abc'::text::date IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (timestamptz '2020-01-01' + interval '178000000 years' IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (to_char(timestamptz '2020-01-01', 'J')::int / 0 > 0)", SAME),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (NULL::present IS NULL)", []),
        ("UPDATE people SET score = 1 WHERE id = 77 AND (id = 77) = (1 / (current_date - current_date) > 0)", "UPDATE 0"),
        ("SELECT p.id FROM accounts a JOIN people p ON p.id = a.id AND (p.id = 77) = (1 / (current_date - current_date) > 0) WHERE p.id = 77", []),
    ),
    row(
        'X87', 'an error inside a sub-select that is run when a hidden row is reached', 'RO-01',
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = EXISTS (SELECT 1 FROM branches WHERE 1 / (length(city) - 4) > 0)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77 OR EXISTS (SELECT 1 FROM branches WHERE 1 / (length(city) - 4) > 0))", []),
        ("SELECT id FROM people WHERE id = 77 AND (id < 77 OR EXISTS (SELECT 1 FROM branches WHERE 1 / (length(city) - 4) > 0))", []),
        ("SELECT id FROM people WHERE id = 77 AND (branch IN (SELECT id FROM branches WHERE 1 / (length(city) - 4) > 0)) IS NOT NULL", []),
        ("SELECT id FROM people WHERE id = 77 AND branch <> ALL (SELECT id FROM branches WHERE 1 / (length(city) - 4) > 0)", []),
        ("WITH w AS (SELECT 1 / (length(city) - 4) AS d FROM branches) SELECT id FROM people WHERE id = 77 AND (id = 77) = EXISTS (SELECT d FROM w)", []),
        ("SELECT id FROM people p WHERE id = 77 AND (id < 0 OR EXISTS (SELECT 1 FROM branches b WHERE b.id = p.branch AND 1 / (length(b.city) - 4) > 0))", []),
        ("SELECT id FROM people p WHERE id = 77 AND EXISTS (SELECT count(*) FROM branches b WHERE b.id = p.branch AND 1 / (length(b.city) - 4) > 0 HAVING count(*) > 0)", []),
        ("SELECT id FROM people p WHERE id = 77 AND NOT EXISTS (SELECT 1 FROM branches b WHERE b.id = p.branch AND 1 / (length(b.city) - 4) > 0 LIMIT 1)", []),
    ),
    row(
        'X88', 'an error that a parameter raises only when a hidden row is reached', 'RO-01',
        rows.parameters_do_not_raise_on_hidden_rows,
    ),
    row(
        'X89', 'MERGE with RETURNING', 'ST-05',
        ("MERGE INTO people p USING accounts a ON p.id = a.id WHEN MATCHED THEN UPDATE SET name = 'x' RETURNING merge_action(), p.*", "ST-05"),
        ("WITH m AS (MERGE INTO people p USING accounts a ON p.id = a.id WHEN MATCHED THEN DELETE RETURNING p.id) SELECT * FROM m", "ST-02"),
    ),
    row(
        'X90', 'virtual generated columns', 'CO-01',
        columns.virtual_generated_columns,
    ),
    row(
        'X91', 'SQL/JSON constructors and aggregates', 'ST-02',
        ("SELECT JSON_OBJECTAGG(name VALUE ssn) FROM people", "ST-02"),
        ("SELECT JSON_ARRAYAGG(ssn) FROM people", "ST-02"),
        ("SELECT JSON_ARRAY(SELECT ssn FROM people)", "ST-02"),
        ("SELECT JSON_VALUE('{\"a\": 1}', '$.a')", "ST-02"),
        ("SELECT JSON_EXISTS('{}', '$.a')", "ST-02"),
    ),
    row(
        'X92', 'SYSTEM_USER and the other names of a session', 'ST-04',
        ("SELECT SYSTEM_USER", "ST-04"),
        ("SELECT current_user, current_schema, current_role", [("agent", "public", "agent")]),
        ("SELECT inet_client_addr()", "ST-04"),
        ("SELECT pg_backend_pid()", "ST-04"),
        ("SELECT current_schemas(true)", [(["pg_catalog", "public"],)]),
    ),
    row(
        'X93', 'temporal keys and PERIOD', 'ST-05',
        ("CREATE TABLE t (id int, valid daterange, PRIMARY KEY (id, valid WITHOUT OVERLAPS))", "ST-05"),
        ("ALTER TABLE people ADD FOREIGN KEY (id, PERIOD opened) REFERENCES people (id, PERIOD opened)", "ST-05"),
    ),
    row(
        'X94', "the queries of psql's backslash commands", 'ST-03',
        ("SELECT n.nspname, c.relname FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r','p','') AND c.relname IN ('people', 'secrets')", [("public", "people")]),
        ("SELECT r.rolname FROM pg_catalog.pg_roles r", []),
        ("SELECT count(*) FROM pg_catalog.pg_database d", [(1,)]),
        ("SELECT pg_catalog.pg_get_viewdef('v'::pg_catalog.regclass::pg_catalog.oid, true)", [(None,)]),
        ("SELECT l.lomowner FROM pg_catalog.pg_largeobject_metadata l", "ST-03"),
        ("SELECT polname, pg_catalog.pg_get_expr(polqual, polrelid) FROM pg_catalog.pg_policy", []),
        why='Introspection shows what the agent may read, and nothing else.',
    ),
    row(
        'X95', 'names of prepared statements and cursors that carry SQL', 'RO-01',
        [("PREPARE \"q; DROP TABLE people; --\" AS SELECT id FROM people WHERE id = 3", "PREPARE"), ("EXECUTE \"q; DROP TABLE people; --\"", [(3,)])],
        [("BEGIN", "BEGIN"), ("DECLARE \"c\"\"; ROLLBACK; --\" CURSOR FOR SELECT id FROM people WHERE id = 3", "DECLARE CURSOR"), ("FETCH ALL FROM \"c\"\"; ROLLBACK; --\"", [(3,)]), ("CLOSE \"c\"\"; ROLLBACK; --\"", "CLOSE CURSOR"), ("COMMIT", "COMMIT")],
        [("BEGIN", "BEGIN"), ("SAVEPOINT \"a\"\"; DROP TABLE people; --\"", "SAVEPOINT"), ("ROLLBACK TO \"a\"\"; DROP TABLE people; --\"", "ROLLBACK"), ("SELECT count(*) FROM people", NATIVE), ("COMMIT", "COMMIT")],
    ),
    row(
        'X96', 'EXECUTE arguments that are expressions', 'ST-05',
        [("PREPARE q(int) AS SELECT id FROM people WHERE id = $1", "PREPARE"), ("EXECUTE q((SELECT max(id) FROM secrets))", "ST-05"), ("EXECUTE q(pg_backend_pid())", "ST-05"), ("EXECUTE q('77'::int)", []), ("EXECUTE q('3'::int)", [(3,)])],
    ),
    row(
        'X97', 'snapshots, chained and two-phase transactions', 'ST-05',
        ("SELECT pg_export_snapshot()", "ST-04"),
        [("BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN"), ("SET TRANSACTION SNAPSHOT '00000003-00000002-1'", "ST-05")],
        [("BEGIN", "BEGIN"), ("COMMIT AND CHAIN", "ST-05")],
        [("BEGIN", "BEGIN"), ("PREPARE TRANSACTION 'x'", "ST-05")],
        ("COMMIT PREPARED 'x'", "ST-05"),
    ),
    row(
        'X98', 'a read-only transaction that writes', 'RO-02',
        [("BEGIN READ ONLY", "BEGIN"), ("DELETE FROM people WHERE id = 3", "25006")],
        [("BEGIN READ ONLY", "BEGIN"), ("SELECT id FROM people WHERE id = 3", [(3,)]), ("SET TRANSACTION READ WRITE", "25001")],
    ),
    row(
        'X99', 'SHOW of what the proxy does not know', 'ID-04',
        ("SHOW data_directory", "ID-04"),
        ("SHOW search_path", [("public",)]),
        ("SHOW ALL", "ID-04"),
        ("SHOW hba_file", "ID-04"),
    ),
    row(
        'X100', "the proxy's own names", 'ST-02',
        ("SELECT \"grille:ok1\" FROM people", "ST-02"),
        ("SELECT p.\"grille:ok1\" FROM people p", "ST-02"),
        ("SELECT id AS \"grille:check\" FROM people", "ST-02"),
        ("SELECT id FROM people AS \"grille:x\"", "ST-02"),
        ("UPDATE people SET name = 'x' WHERE id = 3 RETURNING \"grille:check\"", "ST-02"),
    ),
    row(
        'X101', 'SEARCH and CYCLE of a recursive query', 'ST-02',
        ("WITH RECURSIVE t(id) AS (SELECT id FROM people UNION ALL SELECT id FROM t WHERE false) SEARCH DEPTH FIRST BY id SET o SELECT * FROM t", "ST-02"),
        ("WITH RECURSIVE t(id) AS (SELECT id FROM people UNION ALL SELECT id FROM t WHERE false) CYCLE id SET c USING p SELECT * FROM t", "ST-02"),
    ),
    row(
        'X102', 'several columns assigned at once', 'ST-02',
        ("UPDATE people SET (name, note) = (email, note) WHERE id = 3", "ST-02"),
        ("UPDATE people SET (name, note) = (SELECT ssn, ssn FROM people WHERE id = 4) WHERE id = 3", "ST-02"),
        ("UPDATE people SET (name) = ROW(ssn) WHERE id = 3", "ST-02"),
    ),
    row(
        'X103', 'rows without values', 'RO-02',
        ("INSERT INTO people DEFAULT VALUES", "CO-02"),
        ("INSERT INTO old_prices DEFAULT VALUES", "RO-02"),
        ("INSERT INTO people (id, branch) OVERRIDING SYSTEM VALUE VALUES (500, '0007')", "RO-02"),
    ),
    row(
        'X104', 'a constraint named in ON CONFLICT', 'ST-02',
        ("INSERT INTO people (id, branch) VALUES (77, '0042') ON CONFLICT ON CONSTRAINT people_pkey DO UPDATE SET name = 'x'", "ST-02"),
        ("INSERT INTO people (id, branch) VALUES (77, '0042') ON CONFLICT ((lower(ssn))) DO UPDATE SET name = 'x'", "ST-02"),
        ("INSERT INTO people (id, branch) VALUES (77, '0042') ON CONFLICT (id) WHERE id > 0 DO UPDATE SET name = 'x'", "ST-02"),
    ),
    row(
        'X105', 'copies by way of a table that is not filtered', 'CO-01',
        [("INSERT INTO branches SELECT email, name FROM people WHERE id = 3", "INSERT 0 1"), ("SELECT id FROM branches WHERE city = 'visible 3'", [("u***@bank.example",)])],
        ("INSERT INTO branches SELECT ssn, name FROM people", "CO-03"),
        ("INSERT INTO branches SELECT name, name FROM people WHERE id > 20", "INSERT 0 0"),
    ),
    row(
        'X106', 'sub-selects in every clause', 'RO-01',
        ("SELECT id FROM people ORDER BY (SELECT count(*) FROM accounts a WHERE a.person_id = people.id), id LIMIT (SELECT count(*) FROM accounts) OFFSET (SELECT min(id) FROM people)", NATIVE),
        ("SELECT (SELECT array_agg(a.id ORDER BY a.id) FROM accounts a WHERE a.person_id >= p.id) FROM people p WHERE p.id > 18", NATIVE),
        ("SELECT ARRAY(SELECT email FROM people WHERE id < 3 ORDER BY id)", NATIVE),
        ("SELECT ARRAY(SELECT ssn FROM people)", "ST-02"),
        ("SELECT id FROM people WHERE id = ANY (ARRAY(SELECT person_id FROM accounts WHERE id > 18)) ORDER BY id", NATIVE),
        ("SELECT id FROM people WHERE (SELECT email) = 'u3@bank.example'", []),
        ("SELECT id FROM people WHERE (SELECT ssn) = '100030003'", SAME),
    ),
    row(
        'X107', 'window frames and exclusions', 'RO-01',
        ("SELECT id, sum(id) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING EXCLUDE CURRENT ROW) FROM people ORDER BY id", NATIVE),
        ("SELECT id, lag(name) OVER (ORDER BY id), lead(email, 1, 'none') OVER (ORDER BY id) FROM people ORDER BY id", NATIVE),
        ("SELECT lag(ssn) OVER (ORDER BY id) FROM people", "CO-03"),
    ),
    row(
        'X108', 'FETCH FIRST WITH TIES, GROUP BY DISTINCT, grouping sets', 'RO-01',
        ("SELECT count(*) FROM (SELECT id FROM people ORDER BY score FETCH FIRST 3 ROWS WITH TIES) q", [(20,)]),
        ("SELECT branch, note, count(*) FROM people GROUP BY DISTINCT ROLLUP (branch, note), CUBE (branch)", NATIVE),
        ("SELECT ssn, count(*) FROM people WHERE id < 3 GROUP BY GROUPING SETS ((ssn), ())", SAME),
    ),
    row(
        'X109', 'outer joins over what is hidden', 'RO-01',
        ("SELECT a.id, p.id, p.name FROM accounts a LEFT JOIN people p ON p.id = a.id + 15 ORDER BY a.id", NATIVE),
        ("SELECT p.id, a.kind FROM people p FULL JOIN accounts a ON a.id = p.id ORDER BY p.id, a.kind", NATIVE),
        ("SELECT p.id, a.kind FROM people p FULL JOIN accounts a ON a.id = p.id + 5", "ST-02"),
        ("SELECT b.id, count(p.id) FROM branches b LEFT JOIN people p ON p.branch = b.id GROUP BY b.id ORDER BY b.id", NATIVE),
        ("SELECT b.id FROM branches b WHERE NOT EXISTS (SELECT 1 FROM people p WHERE p.branch = b.id) ORDER BY b.id", NATIVE),
        ("SELECT b.id FROM branches b WHERE b.id NOT IN (SELECT branch FROM people) ORDER BY b.id", NATIVE),
        ("SELECT p.id FROM accounts a LEFT JOIN people p ON p.id = a.id AND length(p.name) > 9 WHERE coalesce(lower(p.name), 'none') = 'none' ORDER BY a.id", NATIVE),
    ),
    row(
        'X110', 'NATURAL and FULL joins', 'RO-01',
        ("SELECT count(*) FROM people NATURAL JOIN (SELECT id, branch FROM accounts) a", NATIVE),
        ("SELECT id, branch FROM people NATURAL FULL JOIN (SELECT id, branch FROM accounts) a ORDER BY id", NATIVE),
        ("SELECT count(*) FROM people JOIN accounts USING (id, branch) AS j", "ST-02"),
    ),
    row(
        'X111', 'errors of aggregates over the filtered rows', 'RO-01',
        ("SELECT 1 / (count(*) - 100) FROM people", NATIVE),
        ("SELECT branch FROM people GROUP BY branch HAVING 1 / (count(*) - 80) > -5", NATIVE),
        ("SELECT (SELECT id FROM people WHERE score = 0) IS NULL", NATIVE),
        ("SELECT (SELECT id FROM people WHERE score = 1)", "21000"),
    ),
    row(
        'X112', 'qualified column names', 'RO-01',
        ("SELECT public.people.id FROM public.people WHERE public.people.id = 3", NATIVE),
        ("SELECT {database}.public.people.id FROM people WHERE id = 3", [(3,)]),
        ("SELECT other.public.people.id FROM people", "ST-03"),
        ("SELECT evil.people.id FROM people", "ST-03"),
        ("SELECT people.id FROM people p", "ST-03"),
    ),
    row(
        'X113', 'masks inside recursive and lateral queries', 'CO-01',
        ("WITH RECURSIVE t(n, e) AS (SELECT id, email FROM people WHERE id = 1 UNION ALL SELECT p.id, p.email FROM people p, t WHERE p.id = t.n + 1) SELECT DISTINCT e FROM t", [("u***@bank.example",)]),
        ("SELECT l.e FROM people p, LATERAL (SELECT p.email AS e) l WHERE p.id = 3", [("u***@bank.example",)]),
        ("SELECT l.e FROM people p, LATERAL (SELECT string_agg(q.email, ',') AS e FROM people q WHERE q.id <= p.id) l WHERE p.id = 2", NATIVE),
    ),
    row(
        'X114', 'string and document functions over a mask', 'CO-01',
        ("SELECT json_build_object('e', email, 'p', pin), to_jsonb(email), quote_literal(email), reverse(email), email LIKE 'u3@%' FROM people WHERE id = 3", SAME),
        ("SELECT to_tsvector('simple', email)::text FROM people WHERE id = 3", NATIVE),
        ("SELECT json_build_object('s', ssn) FROM people", "CO-03"),
        ("SELECT to_tsvector('simple', ssn) FROM people", "CO-03"),
    ),
    row(
        'X115', 'constants that fail while the statement is planned', 'RO-01',
        ("SELECT id FROM people WHERE id = 77 AND 1 / 0 > 0", "22012"),
    ),
    row(
        'X116', 'settings of a transaction or session', 'ID-04',
        ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE", SAME),
        ("SET default_tablespace = x", "ID-04"),
        ("SET temp_tablespaces = x", "ID-04"),
        ("SET plan_cache_mode = force_generic_plan", "ID-04"),
        ("SET statement_timeout = 0", "SET"),
        ("SET statement_timeout = 1", "ID-04"),
        ("SET work_mem = '1TB'", "ID-04"),
        ("SET enable_seqscan = off", "ID-04"),
        ("SET \"TimeZone\" = 'UTC''; SELECT 1 --'", "ID-04"),
    ),
    row(
        'X117', 'utility statements of every kind', 'ST-05',
        ("DROP OWNED BY grille_app", "ST-05"),
        ("CREATE PUBLICATION p FOR ALL TABLES", "ST-05"),
        ("CREATE STATISTICS s ON id, branch FROM people", "ST-05"),
        ("CREATE INDEX ON people (lower(ssn))", "ST-05"),
        ("CREATE SCHEMA x", "ST-05"),
        ("CREATE DATABASE x", "ST-05"),
        ("CREATE ROLE x SUPERUSER", "ST-05"),
        ("CREATE ACCESS METHOD m TYPE TABLE HANDLER heap_tableam_handler", "ST-05"),
        ("CREATE AGGREGATE a (int) (SFUNC = int4pl, STYPE = int)", "ST-05"),
        ("CREATE COLLATION c FROM \"C\"", "ST-05"),
        ("CREATE TRANSFORM FOR int LANGUAGE sql (FROM SQL WITH FUNCTION f(internal))", "ST-05"),
        ("CREATE TABLESPACE t LOCATION '/tmp'", "ST-05"),
        ("CREATE TEXT SEARCH CONFIGURATION c (COPY = simple)", "ST-05"),
        ("CREATE SEQUENCE s", "ST-05"),
        ("CREATE CONVERSION c FOR 'LATIN1' TO 'UTF8' FROM f", "ST-05"),
        ("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO public", "ST-05"),
    ),
    row(
        'X118', "collations that run code or are the database's own", 'ST-04',
        ("SELECT id FROM people WHERE name COLLATE \"en-x-icu\" = 'x'", "ST-04"),
        ("SELECT id FROM people ORDER BY name COLLATE public.c", "ST-04"),
    ),
    row(
        'X119', 'functions with named, variadic and polymorphic arguments', 'ST-04',
        ("SELECT make_interval(days => 1)", "ST-02"),
        ("SELECT concat(VARIADIC ARRAY['a', 'b'])", "ST-02"),
        ("SELECT num_nulls(p) FROM people p", "CO-03"),
        ("SELECT pg_typeof(p) FROM people p", "CO-03"),
        ("SELECT int4eq(1, 1)", SAME),
        ("SELECT int4in('1')", "ST-04"),
        ("SELECT record_out(ROW(1))", "ST-04"),
        ("SELECT pg_input_is_valid('secrets', 'regclass')", "ST-04"),
        ("SELECT array_in('{1}', 23, -1)", "ST-04"),
    ),
    row(
        'X120', 'a function in FROM that returns records', 'ST-02',
        ("SELECT * FROM json_each('{\"a\": 1}')", "ST-04"),
        ("SELECT * FROM json_to_record('{\"a\": 1}') AS x(a int)", "ST-02"),
        ("SELECT * FROM unnest(ARRAY[1], ARRAY[2])", "ST-04"),
        ("SELECT * FROM pg_catalog.pg_ls_waldir()", "ST-04"),
        ("SELECT * FROM pg_get_keywords()", "ST-04"),
        ("SELECT g FROM generate_series(1, 3) WITH ORDINALITY AS x(g, n) ORDER BY g", NATIVE),
    ),
    row(
        'X121', 'rows that leave the filter while a statement waits for a lock', 'RO-01',
        rows.moved_while_waiting,
    ),
    row(
        'X122', 'portals of an earlier transaction', 'ST-08',
        wire.portals_end_with_their_transaction,
    ),
    row(
        'X123', 'a row moved through the key of another', 'RO-02',
        tells(("UPDATE people SET id = 77 WHERE id = 3", "23505")),
        ("UPDATE people SET id = 500 WHERE id = 77", "UPDATE 0"),
        ("DELETE FROM people WHERE id = 77 RETURNING name", []),
    ),
    row(
        'X124', 'two agents on one statement name and one text', 'RO-01',
        rows.no_value_of_another_agent,
    ),
    row(
        'X125', 'what the evidence and the log keep', 'UP-02',
        wire.nothing_hidden_in_the_log,
    ),
    row(
        'X126', 'names that a listed function turns elsewhere, within a transaction', 'ST-04',
        wire.names_keep_their_meaning_within_a_transaction,
    ),
    row(
        'X127', 'forms in which such an error is put beside the filter', 'RO-01',
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = ('{1,2'::text::int[] IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (coalesce(current_date - 2147483647, current_date) IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (greatest(current_date - 2147483647) IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (CASE WHEN true THEN current_date - 2147483647 END IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND id BETWEEN 77 AND 77 + 1 / (current_date - current_date)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id, score) = (77, 1 / (current_date - current_date))", []),
        ("SELECT id FROM people WHERE id = 77 AND id = ANY (ARRAY[77, 1 / (current_date - current_date)])", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) IS DISTINCT FROM (1 / (current_date - current_date) > 0)", []),
        ("SELECT p.id, q.x FROM people p JOIN (SELECT 77 AS id, 1 / (current_date - current_date) AS x) q USING (id)", []),
        ("SELECT p.id FROM people p LEFT JOIN (SELECT 77 AS id, 1 / (current_date - current_date) AS x) q ON q.id = p.id AND q.x > 0 WHERE p.id = 77", []),
        ("SELECT p.id FROM people p JOIN LATERAL (SELECT 1 / (current_date - current_date) AS x) q ON (p.id = 77) = (q.x IS NULL) WHERE p.id = 77", []),
        ("SELECT p.id FROM people p JOIN (VALUES (1 / (current_date - current_date))) q(x) ON p.id = 77 AND (p.id = 77) = (q.x IS NULL)", []),
        ("WITH q AS (SELECT 1 / (current_date - current_date) AS x) SELECT p.id FROM people p, q WHERE p.id = 77 AND (p.id = 77) = (q.x IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (localtimestamp(3) + interval '300000 years' IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (('now'::text)::date - 2147483647 IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (date_trunc('nonsense', timestamptz '2020-01-01') IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (concat('a', current_date - 2147483647) IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = ((current_date - 2147483647)::text COLLATE \"C\" IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = (nullif(current_date - 2147483647, current_date) IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND (id = 77) = ((ARRAY[1])[1 / (current_date - current_date)] IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 AND NOT (id <> 77 OR current_date - 2147483647 IS NULL)", []),
        ("SELECT id FROM people WHERE CASE id WHEN 77 THEN current_date - 2147483647 IS NULL ELSE false END", []),
        ("SELECT x.id FROM (SELECT id, current_date - 2147483647 AS d FROM people WHERE id = 77) x WHERE (x.id = 77) = (x.d IS NULL)", []),
        ("SELECT id FROM people WHERE id = 77 GROUP BY id HAVING (id = 77) = (1 / (current_date - current_date) > 0)", []),
        ("SELECT id FROM all_notes WHERE id = 77 AND (id = 77) = (1 / (current_date - current_date) > 0)", []),
        ("DELETE FROM people USING branches b WHERE people.id = 77 AND b.id = people.branch AND (people.id = 77) = (1 / (current_date - current_date) > 0)", "DELETE 0"),
        tells(("INSERT INTO people (id, branch) VALUES (77, '0042') ON CONFLICT (id) DO UPDATE SET name = 'x' WHERE (people.name = 'hidden 77') = (1 / (current_date - current_date) > 0)", "RO-02")),
    ),
    row(
        'X128', 'the words of an error of any SQLSTATE', 'UP-02',
        errors.every_sqlstate_in_words_of_our_own,
    ),
    row(
        'X129', 'errors over governed rows, class by class', 'UP-02',
        ("SELECT (SELECT id FROM people)", "21000"),
        ("SELECT score, (SELECT name FROM people p WHERE p.score = q.score) FROM people q", "21000"),
        ("SELECT 2147483647 + id FROM people WHERE id = 3", "22003"),
        ("SELECT name::date FROM people WHERE id = 3", "22007"),
        ("SELECT opened + 2147483647 FROM people WHERE id = 3", "22008"),
        ("SELECT substring(name FROM 1 FOR -id) FROM people WHERE id = 3", "22011"),
        ("SELECT 1 / (id - 3) FROM people", "22012"),
        ("SELECT 1 / (id - 77) FROM people WHERE id = 77", []),
        ("SELECT name LIKE 'a' ESCAPE note FROM people WHERE id = 3", "22025"),
        ("SELECT name LIKE '%' || chr(92) FROM people WHERE id = 3", "22025"),
        ("SELECT chr(-id) FROM people WHERE id = 3", either("22023", "54000")),
        ("SELECT ln(id - 3) FROM people WHERE id = 3", "2201E"),
        ("SELECT sqrt(-id) FROM people WHERE id = 3", "2201F"),
        ("SELECT width_bucket(id, 1, 1, 1) FROM people WHERE id = 3", "2201G"),
        ("SELECT id FROM people LIMIT -1", "2201W"),
        ("SELECT id FROM people OFFSET -1", "2201X"),
        ("SELECT name ~ '(' FROM people WHERE id = 3", "2201B"),
        ("SELECT name::int FROM people WHERE id = 3", "22P02"),
        ("SELECT name::uuid FROM people WHERE id = 3", "22P02"),
        ("SELECT name::jsonb FROM people WHERE id = 3", "22P02"),
        ("SELECT decode(name, 'hex') FROM people WHERE id = 3", "22023"),
        ("SELECT convert_from(decode('ff', 'hex'), 'UTF8')", "22021"),
        ("SELECT ARRAY[ARRAY[id], ARRAY[id, score]] FROM people WHERE id = 3", "2202E"),
        ("INSERT INTO checked VALUES (90, '0042', NULL)", "23502"),
        ("INSERT INTO checked VALUES (1, '0042', 'x')", "23505"),
        ("INSERT INTO checked VALUES (91, '0042', 'forbidden')", "23514"),
        [("BEGIN READ ONLY", "BEGIN"), ("INSERT INTO checked VALUES (92, '0042', 'x')", "25006"), ("SELECT 1", "WP-01"), ("ROLLBACK", "ROLLBACK")],
        ("FETCH nothing", "WP-01"),
        [("BEGIN", "BEGIN"), ("ROLLBACK TO SAVEPOINT nothing", either("3B001", "WP-01"))],
        ("SELECT id FROM people GROUP BY branch", "42803"),
    ),
    row(
        'X130', 'errors of two sessions at once', 'UP-02',
        errors.two_at_once,
    ),
]  # fmt: skip
