"""Which statements a plan calls pure, keyed and limited; and real servers on what it calls keyed.

The table is the specification.  Every statement of it that is keyed is planned by the server over 100,000 rows: its
plan must reach each base relation through an index, and may not return more rows than the keys allow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psycopg
import pytest

from grille.controls import Refusal
from grille.protocols.postgres.analysis import MAX_LISTED, Sensitive
from grille.protocols.postgres.bounds import MAX_RELATIONS
from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.purity import Purity
from grille.protocols.postgres.resolve import Resolver
from grille.protocols.postgres.rewrite import ColumnTerms, Compare, Plan, RelationTerms, Terms, rewrite
from grille.protocols.postgres.statement import analyze, parse_text
from grille.proxy.demo.cluster import Cluster
from grille.proxy.explain import runs_on

ROWS = 100_000
SCHEMA = f"""
CREATE COLLATION plain (provider = libc, locale = 'C');
CREATE FUNCTION fixed(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION moved(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT $1';
CREATE TABLE acc (id int, cid int, branch text, bal numeric, name text, code varchar(20), maybe int, late int,
                  ts timestamptz, day date, ssn text, mail text, short char(8), label name);
CREATE TABLE cust (id bigint, tenant int, no int, ref int, title text, upper text COLLATE plain);
CREATE TABLE line (acc int, pos smallint, ref int);
CREATE TABLE family (id int);
CREATE TABLE kid () INHERITS (family);
CREATE TABLE part (id int, v int) PARTITION BY HASH (id);
CREATE TABLE part_0 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE part_1 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE guarded (id int);
INSERT INTO acc SELECT i, i, lpad((i % 100)::text, 4, '0'), i, 'n' || i, 'c' || i, i, i, now(),
    date '0001-01-01' + i, 's' || i, 'm' || i, i, 'l' || i FROM generate_series(1, {ROWS}) i;
INSERT INTO cust SELECT i, i % 100, i / 100, i, 't' || i, 'u' || i FROM generate_series(1, {ROWS}) i;
INSERT INTO line SELECT i / 4 + 10, i % 4, i FROM generate_series(1, {ROWS}) i;
INSERT INTO family SELECT generate_series(1, {ROWS});
INSERT INTO kid SELECT generate_series(1, 100);
INSERT INTO guarded SELECT generate_series(1, {ROWS});
INSERT INTO part SELECT i, i FROM generate_series(1, {ROWS}) i;
ALTER TABLE acc ADD PRIMARY KEY (id), ADD UNIQUE (code), ADD UNIQUE (maybe), ADD UNIQUE (late) DEFERRABLE,
    ADD UNIQUE (day), ADD UNIQUE (ssn), ADD UNIQUE (mail), ADD UNIQUE (short), ADD UNIQUE (label);
CREATE UNIQUE INDEX some_cid ON acc (cid) WHERE branch = '0042';
CREATE UNIQUE INDEX lower_name ON acc (lower(name));
CREATE UNIQUE INDEX mixed ON acc (cid, lower(name));
CREATE UNIQUE INDEX name_in_c ON acc (name COLLATE "C");
CREATE UNIQUE INDEX name_pattern ON acc (name text_pattern_ops);
CREATE INDEX plain_bal ON acc (bal);
ALTER TABLE cust ADD PRIMARY KEY (id), ADD UNIQUE (upper), ADD UNIQUE (tenant, no) INCLUDE (title);
ALTER TABLE line ADD PRIMARY KEY (acc, pos);
ALTER TABLE family ADD PRIMARY KEY (id);
ALTER TABLE part ADD PRIMARY KEY (id);
ALTER TABLE guarded ADD PRIMARY KEY (id);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE FUNCTION looked(int) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM acc WHERE cid = $1';
CREATE VIEW seen AS SELECT id, bal FROM acc;
CREATE MATERIALIZED VIEW stored AS SELECT 1 AS id;
CREATE UNIQUE INDEX stored_id ON stored (id);
ANALYZE;
"""
SENSITIVE = {"public.acc.ssn": Sensitive("ssn", "ssn"), "public.acc.mail": Sensitive(None, None)}
FUNCTIONS = ("public.fixed(int)", "public.looked(int)", "public.moved(int)")

# Each with what its plan says: pure, keyed, limited.
TABLE: list[tuple[str, bool, bool, int | None]] = [
    # One relation, by its key
    ("SELECT bal FROM acc WHERE id = 5", True, True, None),
    ("SELECT bal FROM acc WHERE 5 = id", True, True, None),
    ("SELECT bal FROM acc WHERE id = $1 AND branch = 'x' AND bal > 7", True, True, None),
    ("SELECT * FROM acc a (k, c) WHERE k = $1 FOR UPDATE", False, True, None),
    ("SELECT bal FROM acc", True, False, None),
    ("SELECT bal FROM acc WHERE id > 5", True, False, None),
    ("SELECT bal FROM acc WHERE id BETWEEN 5 AND 5", True, False, None),
    ("SELECT bal FROM acc WHERE id <> 5", True, False, None),
    ("SELECT bal FROM acc WHERE id = 5 OR id = 6", True, False, None),
    ("SELECT bal FROM acc WHERE id = 5 OR bal = 6", True, False, None),
    ("SELECT bal FROM acc WHERE NOT id = 5", True, False, None),
    ("SELECT bal FROM acc WHERE CASE WHEN id = 5 THEN true ELSE true END", True, False, None),
    ("SELECT bal FROM acc WHERE (id = 5) IS NOT FALSE", True, False, None),
    ("SELECT bal FROM acc WHERE id = id", True, False, None),
    ("SELECT bal FROM acc WHERE id = cid AND cid = 5", True, False, None),
    ("SELECT bal FROM acc WHERE id + 0 = 5", True, False, None),
    ("SELECT bal FROM acc WHERE bal = 5", True, False, None),
    ("SELECT bal FROM acc WHERE id IS NOT DISTINCT FROM 5", True, False, None),
    ("SELECT bal FROM acc WHERE id = ANY ($1)", True, False, None),
    ("SELECT bal FROM acc WHERE (id = 5 AND (bal > 1 AND branch = 'x'))", True, True, None),
    ("SELECT bal FROM acc WHERE id = NULL", True, False, None),
    # Lists
    ("SELECT bal FROM acc WHERE id IN (1, 2, $1)", True, True, None),
    (f"SELECT bal FROM acc WHERE id IN ({', '.join(map(str, range(MAX_LISTED)))})", True, True, None),
    (f"SELECT bal FROM acc WHERE id IN ({', '.join(map(str, range(MAX_LISTED + 1)))})", True, False, None),
    ("SELECT bal FROM acc WHERE id NOT IN (1, 2)", True, False, None),
    ("SELECT bal FROM acc WHERE id IN (1, cid)", True, False, None),
    ("SELECT bal FROM acc WHERE id IN (1, 2.5)", True, False, None),
    ("SELECT 1 FROM cust WHERE tenant IN (1, 2, 3, 4, 5, 6, 7, 8) AND no IN (1, 2, 3, 4, 5, 6, 7, 8)",
     True, True, None),
    ("SELECT 1 FROM cust WHERE tenant IN (1, 2, 3, 4, 5, 6, 7, 8) AND no IN (1, 2, 3, 4, 5, 6, 7, 8, 9)",
     True, False, None),
    # Which keys
    ("SELECT bal FROM acc WHERE maybe = 5", True, True, None),
    ("SELECT bal FROM acc WHERE late = 5", True, False, None),
    ("SELECT bal FROM acc WHERE cid = 5", True, False, None),
    ("SELECT bal FROM acc WHERE cid = 5 AND branch = '0042'", True, False, None),
    ("SELECT bal FROM acc WHERE lower(name) = 'n5'", True, False, None),
    ("SELECT bal FROM acc WHERE name = 'n5'", True, False, None),
    ("SELECT 1 FROM cust WHERE tenant = 5", True, False, None),
    ("SELECT 1 FROM cust WHERE no = 5", True, False, None),
    ("SELECT 1 FROM cust WHERE tenant = $1 AND no = $2", True, True, None),
    ("SELECT 1 FROM cust WHERE (tenant, no) = (5, 6)", True, True, None),
    ("SELECT 1 FROM cust WHERE (tenant, no) IN ((5, 6))", True, False, None),
    ("SELECT 1 FROM cust WHERE tenant = 5 AND no = tenant", True, False, None),
    ("SELECT 1 FROM part WHERE id = 5", True, True, None),
    ("SELECT 1 FROM part WHERE v = 5", True, False, None),
    ("SELECT 1 FROM family WHERE id = 5", True, False, None),
    ("SELECT 1 FROM ONLY family WHERE id = 5", True, True, None),
    ("SELECT 1 FROM stored WHERE id = 1", True, False, None),
    ("SELECT 1 FROM seen WHERE id = 1", False, False, None),
    ("SELECT 1 FROM guarded WHERE id = 1", False, True, None),
    # Which equality: one that the index serves
    ("SELECT bal FROM acc WHERE id = 5::int8", True, True, None),
    ("SELECT bal FROM acc WHERE id = 5000000000", True, True, None),
    ("SELECT bal FROM acc WHERE id = 5.0", True, False, None),
    ("SELECT bal FROM acc WHERE '5'::xid = id", True, False, None),
    ("SELECT bal FROM acc WHERE id = 5::oid", True, False, None),
    ("SELECT bal FROM acc WHERE id = 5::numeric", True, False, None),
    ("SELECT bal FROM acc WHERE id::int8 = 5", True, False, None),
    ("SELECT bal FROM acc WHERE id = '5'", True, True, None),
    ("SELECT bal FROM acc WHERE id = '5'::int", True, True, None),
    ("SELECT bal FROM acc WHERE id = $1::int", True, True, None),
    ("SELECT bal FROM acc WHERE code = 'c5'", True, True, None),
    ("SELECT bal FROM acc WHERE code = 'c5'::text", True, True, None),
    ("SELECT bal FROM acc WHERE short = '5'", True, True, None),
    ("SELECT bal FROM acc WHERE short = '5'::text", True, False, None),
    ("SELECT bal FROM acc WHERE code = 'c5' COLLATE \"C\"", True, False, None),
    ("SELECT bal FROM acc WHERE code COLLATE \"C\" = 'c5'", True, False, None),
    ("SELECT bal FROM acc WHERE code = 'c5'::name", True, False, None),
    ("SELECT bal FROM acc WHERE code = 'c5'::name::text", True, False, None),
    ("SELECT bal FROM acc WHERE label = 'l5'", True, True, None),
    ("SELECT 1 FROM cust WHERE upper = 'u5'", True, True, None),
    ("SELECT 1 FROM cust JOIN acc ON acc.code = cust.upper WHERE cust.id = 5", True, False, None),
    ("SELECT bal FROM acc WHERE day = '2026-01-01'", True, True, None),
    ("SELECT bal FROM acc WHERE day = '2026-01-01'::timestamptz", True, False, None),
    ("SELECT bal FROM acc WHERE ssn = '900'", True, True, None),
    ("SELECT bal FROM acc WHERE mail = 'm5'", True, False, None),  # compares the mask
    # Joins
    ("SELECT 1 FROM acc a JOIN cust c ON a.id = c.id WHERE c.id = $1", True, True, None),
    ("SELECT 1 FROM acc a, cust c WHERE a.id = c.id AND c.id = $1", True, True, None),
    ("SELECT 1 FROM acc a, cust c WHERE a.id = 1 AND c.id = 2", True, True, None),
    ("SELECT 1 FROM acc a, cust c WHERE a.id = 1", True, False, None),
    ("SELECT 1 FROM acc a JOIN cust c ON a.id = c.id", True, False, None),
    ("SELECT 1 FROM acc a JOIN part c USING (id) WHERE id = $1", True, True, None),
    ("SELECT 1 FROM acc a JOIN cust c USING (id) WHERE a.id = $1", True, True, None),
    ("SELECT 1 FROM acc a JOIN cust c USING (id) WHERE id = $1", True, False, None),  # int4 and int8: a.id is cast
    ("SELECT 1 FROM acc a NATURAL JOIN (SELECT id FROM cust WHERE id = 5) c", True, True, None),
    ("SELECT 1 FROM cust c JOIN line l ON l.acc = c.ref AND l.pos = 1 JOIN acc a ON a.id = l.ref "
     "WHERE c.tenant = 1 AND c.no = 2", True, True, None),
    ("SELECT 1 FROM cust c JOIN line l ON l.acc = c.ref WHERE c.id = 2", True, False, None),
    ("SELECT 1 FROM acc a LEFT JOIN cust c ON c.id = a.cid WHERE a.id = 1", True, True, None),
    ("SELECT 1 FROM acc a LEFT JOIN cust c ON c.id = a.cid AND a.id = 1", True, False, None),
    ("SELECT 1 FROM acc a LEFT JOIN cust c ON a.id = c.id AND c.id = 1", True, False, None),
    ("SELECT 1 FROM acc a LEFT JOIN cust c ON c.ref = a.cid WHERE a.id = 1", True, False, None),
    ("SELECT 1 FROM acc a LEFT JOIN part c USING (id) WHERE id = 1", True, True, None),
    ("SELECT 1 FROM acc a RIGHT JOIN cust c ON a.id = c.ref WHERE c.id = 1", True, True, None),
    ("SELECT 1 FROM acc a RIGHT JOIN cust c ON a.id = c.ref AND c.id = 1", True, False, None),
    ("SELECT 1 FROM acc a RIGHT JOIN part c USING (id) WHERE id = 1", True, True, None),
    ("SELECT 1 FROM acc a FULL JOIN cust c ON a.id = c.id", True, False, None),
    ("SELECT 1 FROM acc a FULL JOIN cust c ON a.id = c.id WHERE a.id = 1", True, False, None),
    ("SELECT 1 FROM acc a FULL JOIN cust c ON a.id = c.id WHERE a.id = 1 AND c.id = 1", True, True, None),
    ("SELECT 1 FROM acc a FULL JOIN cust c USING (id) WHERE id = 1", True, False, None),
    ("SELECT 1 FROM acc a FULL JOIN part c USING (id) WHERE id = 1 AND c.id = 1", True, False, None),
    ("SELECT 1 FROM acc a LEFT JOIN (cust c JOIN line l ON l.acc = c.ref AND l.pos = 0) ON c.id = a.cid "
     "WHERE a.id = 1", True, True, None),
    ("SELECT 1 FROM acc a, LATERAL (SELECT title FROM cust WHERE id = a.cid) s WHERE a.id = 1", True, True, None),
    ("SELECT 1 FROM acc a, LATERAL (SELECT max(no) AS m FROM cust WHERE id = a.cid) s WHERE a.id = 1",
     True, True, None),
    ("SELECT 1 FROM acc a, LATERAL (SELECT id FROM cust WHERE a.id = 1) s", True, False, None),
    ("SELECT 1 FROM acc a, LATERAL (SELECT c.id FROM cust c WHERE c.id = a.cid) s WHERE a.id = s.id",
     True, False, None),
    ("SELECT 1 FROM acc x, acc x2, acc y WHERE x.id = x2.id AND x2.id = y.id AND y.id = 3", True, True, None),
    ("SELECT 1 FROM acc x, acc y WHERE x.id = y.id AND x.bal = 3", True, False, None),
    # Derived tables, CTEs, set operations
    ("SELECT 1 FROM (SELECT cid FROM acc WHERE id = 1) s JOIN cust c ON c.id = s.cid", True, True, None),
    ("SELECT 1 FROM (SELECT name FROM acc WHERE id = 1) s JOIN cust c ON c.upper = s.name", True, False, None),
    ("SELECT 1 FROM (SELECT id FROM acc) s WHERE s.id = 1", True, False, None),
    ("WITH s AS (SELECT cid FROM acc WHERE id = 1) SELECT 1 FROM s JOIN cust c ON c.id = s.cid", True, True, None),
    ("WITH s AS (SELECT cid FROM acc) SELECT 1 FROM s, cust c WHERE c.id = 1", True, False, None),
    ("WITH RECURSIVE s AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM s) SELECT n FROM s LIMIT 5", True, False, 5),
    ("SELECT id FROM acc WHERE id = 1 UNION ALL SELECT no FROM cust WHERE id = 2", True, True, None),
    ("SELECT id FROM acc WHERE id = 1 UNION SELECT no FROM cust WHERE ref = 2", True, False, None),
    ("SELECT id FROM acc WHERE id = 1 UNION SELECT no FROM cust WHERE id = 2 LIMIT 7", True, True, None),
    # Sub-selects in expressions
    ("SELECT 1 FROM acc WHERE id = (SELECT ref FROM cust WHERE id = 2)", True, False, None),
    ("SELECT (SELECT title FROM cust WHERE id = a.cid) FROM acc a WHERE a.id = 1", True, True, None),
    ("SELECT (SELECT title FROM cust WHERE ref = a.cid) FROM acc a WHERE a.id = 1", True, False, None),
    ("SELECT 1 FROM acc a WHERE a.id = 1 AND EXISTS (SELECT 1 FROM cust c WHERE c.id = a.cid)", True, True, None),
    ("SELECT 1 FROM acc a WHERE EXISTS (SELECT 1 FROM cust c WHERE c.id = a.cid AND a.id = 1)", True, False, None),
    ("SELECT 1 FROM acc a WHERE a.id = 1 AND a.cid IN (SELECT c.ref FROM cust c WHERE c.id = a.cid)",
     True, True, None),
    ("SELECT 1 FROM acc a WHERE a.id = 1 AND a.cid IN (SELECT c.ref FROM cust c)", True, False, None),
    ("SELECT 1 FROM acc a WHERE a.id IN (SELECT c.ref FROM cust c WHERE c.id = 1)", True, False, None),
    ("SELECT 1 FROM acc a WHERE a.id = 1 OR EXISTS (SELECT 1 FROM cust c WHERE c.id = a.cid)", True, False, None),
    ("SELECT 1 FROM acc a WHERE a.id = 1 ORDER BY (SELECT c.no FROM cust c WHERE c.id = 3)", True, True, None),
    # No relation
    ("SELECT 1", True, True, None),
    ("SELECT now(), version(), $1::int", True, True, None),
    ("SELECT random()", True, True, None),
    ("VALUES (1), (2)", True, True, None),
    ("VALUES " + ", ".join(["(1)"] * MAX_LISTED), True, True, None),
    ("VALUES " + ", ".join(["(1)"] * (MAX_LISTED + 1)), True, False, None),
    ("SELECT generate_series(1, 10)", True, False, None),
    ("SELECT n FROM generate_series(1, 10) n", True, False, None),
    ("SELECT unnest(ARRAY[1, 2])", True, False, None),
    ("SELECT oid FROM pg_type WHERE oid = 23", True, False, None),
    # Functions of the database's own
    ("SELECT public.fixed(id) FROM acc WHERE id = 1", True, True, None),
    ("SELECT public.looked(id) FROM acc WHERE id = 1", True, False, None),
    ("SELECT public.moved(id) FROM acc WHERE id = 1", False, False, None),
    # LIMIT
    ("SELECT bal FROM acc LIMIT 10", True, False, 10),
    ("SELECT bal FROM acc LIMIT 1000 OFFSET 1000", True, False, 1000),
    ("SELECT bal FROM acc LIMIT 0", True, False, 0),
    ("SELECT bal FROM acc LIMIT 1001", True, False, None),
    ("SELECT bal FROM acc LIMIT 10 OFFSET 1001", True, False, None),
    ("SELECT bal FROM acc LIMIT 10 OFFSET $1", True, False, None),
    ("SELECT bal FROM acc LIMIT $1", True, False, None),
    ("SELECT bal FROM acc LIMIT ALL", True, False, None),
    ("SELECT bal FROM acc LIMIT '10'", True, False, None),
    ("SELECT bal FROM acc OFFSET 5", True, False, None),
    ("SELECT bal FROM acc FETCH FIRST 10 ROWS ONLY", True, False, 10),
    ("SELECT bal FROM acc WHERE id = 1 LIMIT 10", True, True, 10),
    ("SELECT bal FROM acc ORDER BY id LIMIT 10", True, False, None),
    ("SELECT bal FROM acc ORDER BY id FETCH FIRST 10 ROWS WITH TIES", True, False, None),
    ("SELECT DISTINCT bal FROM acc LIMIT 10", True, False, None),
    ("SELECT count(*) FROM acc LIMIT 10", True, False, None),
    ("SELECT 1 FROM acc GROUP BY branch LIMIT 10", True, False, None),
    ("SELECT 1 FROM acc HAVING true LIMIT 10", True, False, None),
    ("SELECT row_number() OVER () FROM acc LIMIT 10", True, False, None),
    ("SELECT (SELECT 1 UNION SELECT 1), count(*) FROM acc LIMIT 10", True, False, None),
    ("SELECT 1 FROM (SELECT count(*) FROM acc) s LIMIT 10", True, False, 10),
    # Locks and writes
    ("SELECT bal FROM acc WHERE id = 1 FOR SHARE", False, True, None),
    ("SELECT 1 FROM (SELECT id FROM acc WHERE id = 1 FOR NO KEY UPDATE) s", False, True, None),
    ("UPDATE acc SET bal = bal + $1 WHERE id = $2", False, True, None),
    ("UPDATE acc SET bal = 0 WHERE cid = 2", False, False, None),
    ("UPDATE acc SET bal = 0", False, False, None),
    ("UPDATE acc a SET bal = c.no FROM cust c WHERE c.id = a.id AND c.id = $1 RETURNING a.id", False, True, None),
    ("DELETE FROM acc WHERE id = 1", False, True, None),
    ("DELETE FROM acc a USING cust c WHERE c.id = 1", False, False, None),
    ("DELETE FROM family WHERE id = 1", False, False, None),
    ("INSERT INTO line VALUES ($1, $2, $3)", False, True, None),
    ("INSERT INTO line SELECT id, 1, 2 FROM acc WHERE id = 1", False, True, None),
    ("INSERT INTO line SELECT id, 1, 2 FROM acc", False, False, None),
    ("SELECT id FROM cust TABLESAMPLE SYSTEM (1) WHERE id = 1", True, False, None),
    ("SELECT id FROM cust TABLESAMPLE SYSTEM (1) LIMIT 5", True, False, None),
    ("INSERT INTO line VALUES " + ", ".join(["(1, 2, 3)"] * (MAX_LISTED + 1)), False, False, None),
]  # fmt: skip

REFUSED = [
    "SELECT nextval('s')", "SELECT setval('s', 1)", "SELECT currval('s')", "SELECT lastval()", "SELECT setseed(0.5)",
    "SELECT pg_notify('a', 'b')", "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_xact_lock(1)", "SELECT lo_creat(1)", "SELECT txid_current()", "SELECT pg_export_snapshot()",
    "SELECT bal INTO copied FROM acc",
    "WITH d AS (DELETE FROM acc WHERE id = 1 RETURNING id) SELECT id FROM d",
]  # fmt: skip
"""What a plan need not judge, because no statement with it gets as far as a plan."""

NAMES = ("acc", "cust", "line", "family", "part", "guarded", "seen", "stored")
CLEAR = {"ssn": ColumnTerms("clear", True, True), "mail": ColumnTerms("mask:last4", False, False)}
ALL = Terms(
    {f"public.{name}": RelationTerms(None, CLEAR if name == "acc" else {}) for name in NAMES},
    locks=True,
)
FILTERED = Terms(
    {**ALL.relations, "public.acc": RelationTerms(Compare("eq", "branch", 0), CLEAR)},
    locks=True,
)


class Bank(msgspec.Struct):
    """One server with the schema, and a snapshot of it."""

    cluster: Cluster
    database: str
    catalog: Catalog
    resolver: Resolver
    purity: Purity

    def plan(self, statement: str, terms: Terms = ALL, types: tuple[int, ...] = ()) -> Plan:
        (parsed,) = parse_text(statement, limit=1 << 16)
        analysis = analyze(parsed, self.resolver, self.purity, SENSITIVE, types)
        return rewrite(analysis, terms, self.resolver, types)


@pytest.fixture(scope="module")
def bank(server: Cluster, snapshot_of: Callable[[Cluster, str], Catalog]) -> Iterator[Bank]:
    database = "bounds"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    with psycopg.connect(server.dsn(database), autocommit=True) as connection:
        connection.execute(SCHEMA)
    catalog = snapshot_of(server, database)
    yield Bank(server, database, catalog, Resolver(catalog, FUNCTIONS), Purity(catalog, FUNCTIONS))
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.mark.parametrize(("statement", "pure", "keyed", "limited"), TABLE)
def test_the_table(bank: Bank, statement: str, pure: bool, keyed: bool, limited: int | None) -> None:
    for terms in (ALL, FILTERED):
        plan = bank.plan(statement, terms)
        assert (plan.pure, plan.keyed, plan.limited) == (pure, keyed, limited)
        assert keyed or plan.keys == ()


@pytest.mark.parametrize("statement", REFUSED)
def test_what_is_refused_needs_no_judgement(bank: Bank, statement: str) -> None:
    with pytest.raises(Refusal):
        bank.plan(statement)


def test_the_keys_are_named(bank: Bank) -> None:
    assert bank.plan("SELECT bal FROM acc WHERE id = 1").keys == ("acc_pkey",)
    assert bank.plan("SELECT bal FROM acc WHERE id IN (1, 2) AND maybe = 1").keys == ("acc_maybe_key",)
    joined = bank.plan("SELECT 1 FROM cust c JOIN acc a ON a.id = c.ref WHERE c.tenant = $1 AND c.no = $2")
    assert joined.keys == ("cust_tenant_no_title_key", "acc_pkey")
    assert bank.plan("SELECT 1").keys == ()


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("SELECT bal FROM acc WHERE id = 1", "a shared pipe (keyed by acc_pkey)"),
        ("SELECT 1", "a shared pipe (it reads no table)"),
        ("SELECT bal FROM acc LIMIT 5", "a connection of its own (not bounded by a key; it stops after 5 rows)"),
        ("SELECT bal FROM acc", "a connection of its own (not bounded by a key)"),
        (
            "DELETE FROM acc WHERE id = 1",
            "a connection of its own (it writes, locks rows, or runs what may leave a trace in the session)",
        ),
    ],
)
def test_explain_tells_where_it_runs(bank: Bank, statement: str, told: str) -> None:
    assert runs_on(bank.plan(statement)) == told


def test_declared_parameter_types_count(bank: Bank) -> None:
    text = "SELECT bal FROM acc WHERE id = $1"
    assert [bank.plan(text, types=(oid,)).keyed for oid in (0, 21, 23, 20, 1700)] == [True, True, True, True, False]
    text = "SELECT bal FROM acc WHERE code = $1"
    assert [bank.plan(text, types=(oid,)).keyed for oid in (0, 25, 1043, 19)] == [True, True, True, False]


def test_a_statement_of_many_relations_is_not_keyed(bank: Bank) -> None:
    def union(count: int) -> str:
        return " UNION ALL ".join(["SELECT bal FROM acc WHERE id = 1"] * count)

    assert bank.plan(union(MAX_RELATIONS)).keyed
    assert not bank.plan(union(MAX_RELATIONS + 1)).keyed


@pytest.mark.parametrize(
    ("statement", "shared"),
    [
        ("SELECT bal FROM acc WHERE id = $1", True),
        ("SELECT bal FROM acc WHERE bal = $1", False),
        ("SELECT bal FROM acc LIMIT 5", False),
        ("INSERT INTO line VALUES ($1, $2, $3)", True),
        ("INSERT INTO acc (id, ts) VALUES ($1, now())", True),
        ("INSERT INTO acc (id, ts) VALUES ($1, 'now')", False),
        ("INSERT INTO acc (id, ts) VALUES ($1, '2026-01-01')", False),
        ("INSERT INTO acc (id, name) VALUES ($1, 'today''s')", False),
        ("INSERT INTO acc (id, name) VALUES ($1, 'open')", True),
        ("UPDATE acc SET ts = 'Now'::timestamptz WHERE id = $1", False),
        ("UPDATE acc SET bal = 1 WHERE id = $1", True),
        ("SELECT bal FROM acc WHERE id = 1 AND ts > 'yesterday'", False),
        ("SELECT bal FROM acc WHERE id = 1 AND ts > now() - interval '1 day'", True),
        ("SELECT bal FROM acc WHERE id = '1'::int AND ts = ANY ('{now}'::timestamptz[])", False),
        ("SELECT 'now'::text FROM acc WHERE id = 1", True),
    ],
)
def test_which_statements_all_clients_share(bank: Bank, statement: str, shared: bool) -> None:
    assert bank.plan(statement).shared is shared


def test_an_implicit_cast_that_is_volatile_makes_nothing_pure(
    pg18: Cluster, fresh_database: Callable[[Cluster], str], snapshot_of: Callable[[Cluster, str], Catalog]
) -> None:
    database = fresh_database(pg18)
    setup = """
        CREATE TYPE mood AS ENUM ('good', 'bad');
        CREATE TABLE t (m mood);
        CREATE FUNCTION of_mood(mood) RETURNS text LANGUAGE sql {} AS $$SELECT 'x'$$;
    """
    cast = "CREATE CAST (mood AS text) WITH FUNCTION of_mood(mood) AS {}"
    terms = Terms({"public.t": RelationTerms(None, {})}, locks=False)
    found = {}
    with psycopg.connect(pg18.dsn(database), autocommit=True) as connection:
        connection.execute(setup.format("VOLATILE"))
        for volatility in ("VOLATILE", "STABLE"):
            for context in ("IMPLICIT", "ASSIGNMENT"):
                connection.execute(f"ALTER FUNCTION of_mood(mood) {volatility}")
                connection.execute(cast.format(context))
                catalog = snapshot_of(pg18, database)
                one = Bank(pg18, database, catalog, Resolver(catalog), Purity(catalog))
                found[volatility, context] = one.plan("SELECT length('x') FROM t", terms).pure
                connection.execute("DROP CAST (mood AS text)")
    assert {key for key, pure in found.items() if not pure} == {("VOLATILE", "IMPLICIT")}


KEYED = [statement for statement, _pure, keyed, _limited in TABLE if keyed]


@pytest.mark.parametrize("terms", [ALL, FILTERED], ids=["all rows", "filtered"])
@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_the_server_reaches_what_is_keyed_through_indexes(bank: Bank, mode: str, terms: Terms) -> None:
    """And reads no more rows than the keys allow; the statement is run, in a transaction that is rolled back."""
    wrong = []
    scans = 0
    with psycopg.connect(bank.cluster.dsn(bank.database), prepare_threshold=None) as connection:
        connection.execute("SELECT set_config('plan_cache_mode', %s, false)", [mode])
        connection.commit()
        for statement in KEYED:
            for node in _nodes(connection, bank.plan(statement, terms).sql):
                if "Relation Name" not in node or node["Node Type"] == "ModifyTable":
                    continue
                scans += 1
                loops = node["Actual Loops"]
                rows = loops * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
                if node["Node Type"] not in ("Index Scan", "Index Only Scan", "Bitmap Heap Scan") or rows > MAX_LISTED:
                    wrong.append((statement, node["Node Type"], node["Relation Name"], rows))
            connection.rollback()
    assert wrong == []
    assert scans > len(KEYED) / 2


def _nodes(connection: psycopg.Connection, sql: str) -> Iterator[dict[str, Any]]:
    connection.execute("DEALLOCATE ALL")
    connection.execute(f"PREPARE q AS {sql}".encode())
    row = connection.execute("SELECT cardinality(parameter_types) FROM pg_prepared_statements").fetchone()
    assert row is not None
    values = "('1'" + ", '1'" * (row[0] - 1) + ")" if row[0] else ""
    row = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE q{values}".encode()).fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    waiting = [plan[0]["Plan"]]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        yield node


def test_the_equality_on_what_an_operator_class_compares_is_in_its_family(
    server: Cluster, snapshot_of: Callable[[Cluster, str], Catalog]
) -> None:
    """A key names the type that its operator class compares; that finds the right operator for every built-in type."""
    with psycopg.connect(server.dsn()) as connection:
        found = connection.execute("""
            SELECT o.oid::regoperator::text, c.opcname,
                   EXISTS (SELECT 1 FROM pg_amop a WHERE a.amopfamily = c.opcfamily AND a.amopopr = o.oid
                                                     AND a.amopstrategy = 3),
                   o.oid
            FROM pg_operator o
                 JOIN pg_opclass c ON c.opcintype IN (o.oprleft, o.oprright) AND c.opcdefault AND c.oid < 16384
                 JOIN pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
            WHERE o.oprname = '=' AND o.oprnamespace = 'pg_catalog'::regnamespace
        """).fetchall()
    catalog = snapshot_of(server, "postgres")
    equal = {oid for oid, operator in catalog.operators.items() if operator.equality and operator.name == "="}
    assert {row[:2] for row in found if not row[2] and row[3] in equal} == set()
    assert equal == {row[3] for row in found if row[2]}
    assert len(equal) > 50
