"""Ways around the window, as an attacker would try them: the catalogue of bypasses (A, B, C, D, P) and more (X).

Each statement runs on PostgreSQL as Grille rewrites it, twice: with the hidden rows in place and without them.  Both
must give the same rows, tags and error codes; and `leak`, a function that is cheaper than any filter and reports its
argument, must never be called with a hidden value.  Statements that this version refuses must be refused by name.
"""

# ruff: noqa: E501  (one statement a line)

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import asyncpg
import psycopg
import pytest
from google.protobuf.descriptor import FieldDescriptor
from postgast import pg_query_pb2 as pb
from psycopg.adapt import Transformer
from psycopg.pq import DiagnosticField, ExecStatus

from grille.controls import Refusal
from grille.policies.decision import (
    CachePolicy,
    ColumnObligation,
    CompoundFilter,
    Decision,
    FieldFilter,
    Filter,
    Limits,
)
from grille.protocols.postgres import analysis
from grille.protocols.postgres.analysis import Sensitive
from grille.protocols.postgres.catalog import Catalog
from grille.proxy.catalog import read_catalog
from grille.proxy.config import Identity
from grille.proxy.demo.cluster import Cluster
from grille.proxy.enforcement import Enforcement, Lru
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.transformation import Key, Transformation

SCHEMA = """
CREATE TABLE branches(id text PRIMARY KEY, city text);
CREATE TABLE people(id int PRIMARY KEY, branch text, name text, ssn text UNIQUE, card text, email text, pin int,
                    note text, score int, amount numeric, opened date);
CREATE TABLE accounts(id int PRIMARY KEY, person_id int, branch text, kind text, balance numeric, owner_ssn text);
CREATE TABLE secrets(id int, ssn text);
CREATE TABLE kid(extra text) INHERITS (people);
CREATE TABLE part(id int, branch text) PARTITION BY LIST (branch);
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN ('0042');
CREATE TABLE "People"(id int);
CREATE TABLE old_prices(branch text, price int);
CREATE VIEW v AS SELECT id, branch, name, ssn, note FROM people;
CREATE VIEW all_notes AS SELECT id, note FROM people WHERE branch = '0042';
CREATE MATERIALIZED VIEW mv AS SELECT * FROM people;
CREATE SEQUENCE counter;
CREATE DOMAIN amounts AS numeric CHECK (VALUE > 0);
CREATE DOMAIN present AS text NOT NULL;
CREATE TYPE pair AS (a int, b text);
CREATE TYPE hidden_mood AS ENUM ('good');
CREATE FUNCTION leak(int) RETURNS int LANGUAGE plpgsql STABLE COST 0.0000001
  AS $$ BEGIN RAISE NOTICE 'leak:%', $1; RETURN $1; END $$;
CREATE FUNCTION leak(text) RETURNS text LANGUAGE plpgsql STABLE COST 0.0000001
  AS $$ BEGIN RAISE NOTICE 'leak:%', $1; RETURN $1; END $$;
CREATE FUNCTION sets(int) RETURNS SETOF int LANGUAGE sql STABLE COST 0.0000001 AS 'SELECT public.leak($1)';
CREATE FUNCTION sd() RETURNS SETOF people LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM people';
CREATE FUNCTION spy(people) RETURNS text LANGUAGE sql AS 'SELECT $1.ssn';
CREATE FUNCTION louder(int, int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'leak:%', $1; RETURN $1 < $2; END $$;
CREATE OPERATOR <<< (LEFTARG = int, RIGHTARG = int, FUNCTION = louder);
INSERT INTO branches VALUES ('0042', 'Bern'), ('0007', 'Rome');
INSERT INTO people
SELECT i, CASE WHEN i <= 20 THEN '0042' ELSE '0007' END,
       CASE WHEN i <= 20 THEN 'visible ' ELSE 'hidden ' END || i,
       lpad((i * 1000003)::text, 9, '1'), lpad((i * 7)::text, 16, '4'), 'u' || i || '@bank.example', 1000 + i,
       CASE WHEN i <= 20 THEN 'open' WHEN i <= 60 THEN 'hidden-secret' ELSE NULL END,
       CASE WHEN i <= 20 THEN 1 ELSE 0 END, CASE WHEN i <= 20 THEN 10 ELSE 1e9 END, date '2020-01-01' + i
FROM generate_series(1, 100) i;
INSERT INTO accounts
SELECT i, i, CASE WHEN i <= 20 THEN '0042' ELSE '0007' END, CASE WHEN i <= 20 THEN 'giro' ELSE 'hidden kind' END,
       CASE WHEN i <= 20 THEN 5 ELSE 0 END, lpad((i * 1000003)::text, 9, '1')
FROM generate_series(1, 100) i;
INSERT INTO secrets SELECT i, 'hidden' FROM generate_series(1, 5) i;
INSERT INTO part VALUES (1, '0042');
ANALYZE;
CREATE ROLE grille_bypass LOGIN;
GRANT ALL ON ALL TABLES IN SCHEMA public TO grille_bypass;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO grille_bypass;
"""
WITHOUT_HIDDEN_ROWS = """
DELETE FROM public.people WHERE branch <> '0042'; DELETE FROM public.accounts WHERE branch <> '0042';
DELETE FROM public.secrets;
"""

SENSITIVE = {
    "public.people.ssn": Sensitive("ssn", "ssn"),
    "public.accounts.owner_ssn": Sensitive("ssn", "ssn"),
    "public.people.card": Sensitive("card", "card"),
    "public.people.email": Sensitive(None, None),
    "public.people.pin": Sensitive(None, None),
}
PROVIDER = EmbeddedProvider(
    [
        Transformation(name="ssn", kind="fpe", token_domain="ssn", key="fpe", alphabet="digits", template=r"(\d{9})"),
        Transformation(name="card", kind="fpe", token_domain="card", key="fpe", alphabet="digits",
                       template=r"(\d{16})"),
    ],
    [Key("fpe", 1, bytes(range(32)))],
)  # fmt: skip
OWN_BRANCH = CompoundFilter(
    "or", (FieldFilter("eq", "branch", "0042"), FieldFilter("eq", "branch", "none"), FieldFilter("eq", "branch", "no"))
)
"""Dearer than one comparison, so that a cheap condition of the agent would run first."""
FILTERS: dict[str, Filter | Literal[True]] = {
    "public.people": OWN_BRANCH,
    "public.accounts": OWN_BRANCH,
    "public.branches": True,
    "public.all_notes": True,
    "public.old_prices": FieldFilter("eq", "branch", "0042"),
}
COLUMNS = {
    "public.people.ssn": ColumnObligation("mask:last4", "equality", "allow"),
    "public.people.card": ColumnObligation("mask:null", "deny", "deny"),
    "public.people.email": ColumnObligation("mask:email", "deny", "deny"),
    "public.accounts.owner_ssn": ColumnObligation("mask:last4", "equality", "allow"),
}
FUNCTIONS = ("public.leak(integer)", "public.leak(text)", "public.sets(integer)")


class Policy:
    """One decision for everything, except for relations that it does not name."""

    revision = "1"

    def decide(self, document: bytes) -> Decision:
        return Decision(
            allow=True, control="AC-01", reason="", passthrough=False, filters=dict(FILTERS), columns=dict(COLUMNS),
            limits=Limits(), locks=True, isolated=False, not_before=None, not_after=None, cache=CachePolicy(60),
        )  # fmt: skip


class Bench:
    """Grille and the server, without the sockets between them."""

    def __init__(self, cluster: Cluster, database: str) -> None:
        with psycopg.connect(cluster.dsn(database)) as connection:
            connection.execute(SCHEMA)
        self.owner = psycopg.connect(cluster.dsn(database))
        self.app = psycopg.connect(cluster.dsn(database) + " options='-c search_path=pg_catalog'")
        self.app.execute("SET ROLE grille_bypass")
        self.app.commit()
        self.notices: list[str] = []
        self.app.add_notice_handler(lambda diagnostic: self.notices.append(diagnostic.message_primary or ""))
        catalog = asyncio.run(self._catalog(cluster, database))
        self.catalog = catalog
        self.enforcement = Enforcement(
            catalog=lambda: catalog, pdp=Policy, provider=PROVIDER, sensitive=SENSITIVE,
            functions=FUNCTIONS, max_statement=262_144,
        )  # fmt: skip
        name = "spiffe://bank.example/ns/service/sa/assistant"
        identity = Identity(spiffe_id=name, database=database, attributes={"branch": "0042"})
        self.agent: Agent = Registry([identity]).agent(
            parse_spiffe_id(name), not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
        )

    async def _catalog(self, cluster: Cluster, database: str) -> Catalog:
        connection = await asyncpg.connect(host=cluster.host, user="postgres", database=database)
        try:
            return await read_catalog(connection)
        finally:
            await connection.close()

    def close(self) -> None:
        self.app.close()
        self.owner.close()

    async def _prepared(self, sql: str, types: Sequence[int], values: Sequence[bytes | None]) -> list[Any]:
        made = []
        for prepared in await self.enforcement.prepare(self.agent, sql, types, simple=not types and not values):
            formats, bound = await self.enforcement.bind(self.agent, prepared, (), values)
            made.append((prepared, formats, bound))
        return made

    def run(self, sql: str, types: Sequence[int] = (), values: Sequence[bytes | None] = ()) -> list[Any]:
        """What the agent would be told, statement by statement, with the hidden rows and without."""
        try:
            made = asyncio.run(self._prepared(sql, types, values))
        except Refusal as refusal:
            return [refusal.control]
        answers = []
        for hidden in (True, False):
            self.notices.clear()
            if not hidden:
                self.app.execute("RESET ROLE")
                self.app.execute(WITHOUT_HIDDEN_ROWS)
                self.app.execute("SET LOCAL ROLE grille_bypass")
            answer = []
            for prepared, formats, bound in made:
                answer.append(self._execute(prepared, formats, bound))
            self.app.rollback()
            answers.append(answer)
            seen = {n.removeprefix("leak:") for n in self.notices if n.startswith("leak:")}
            reached = {s for s in seen if "hidden" in s or (s.isdigit() and (20 < int(s) <= 100 or int(s) >= 16384))}
            assert not reached, f"hidden values reached the agent's expression: {sorted(reached)[:5]}"
        assert answers[0] == answers[1], "the answer depends on hidden rows"
        return answers[0]

    def _execute(self, prepared: Any, formats: Any, bound: Any) -> Any:
        plan = prepared.plan
        self.app.execute("SAVEPOINT a")
        result = self.app.pgconn.exec_params(plan.sql.encode(), bound, list(plan.parameter_types), formats)
        if ExecStatus(result.status) not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
            if state == "42704" and plan.row_check_plan and b"grille_row_check" in result.error_message:
                state = "RO-02"
            self.app.execute("ROLLBACK TO a")
            return state
        if not result.nfields or plan.swallow_rows:
            return (result.command_status or b"").decode()
        transformer = Transformer(self.app)
        transformer.set_pgresult(result)
        rows = [list(row[plan.hidden_columns :]) for row in transformer.load_rows(0, result.ntuples, tuple)]
        for index, transform in enumerate(plan.results):
            for row in rows:
                row[index] = row[index] if transform is None else "***"
        return sorted((tuple(row) for row in rows), key=repr)


@pytest.fixture(scope="module")
def bench(pg18: Cluster) -> Iterator[Bench]:
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE bypass")
    made = Bench(pg18, "bypass")
    yield made
    made.close()
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute("DROP DATABASE bypass")
        connection.execute("DROP ROLE grille_bypass")


SAME = ...
"""The answer is the same with and without the hidden rows, and is not spelled out here."""

CASES: list[tuple[str, str, Any]] = [
    ("A1", "SELECT set_config('search_path', 'evil, public', false) FROM people", "ST-04"),
    ("A1b", 'SELECT id FROM evil.people', "ST-03"),
    ("A3", 'ALTER ROLE grille_bypass SET search_path = evil', "ST-05"),
    ("A3b", "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = evil AS 'SELECT 1'", "ST-05"),
    ("A4", 'CREATE TEMP TABLE people AS SELECT 1', "ST-05"),
    ("A5", 'SELECT id FROM people WHERE id OPERATOR(public.<<<) 3', "ST-04"),
    ("A5b", 'SELECT id FROM people WHERE id <<< 3', "ST-04"),
    ("A6", 'CREATE OPERATOR public.= (LEFTARG = int, RIGHTARG = int, FUNCTION = louder)', "ST-05"),
    ("A7", 'SELECT id FROM bypass.public.people', SAME),
    ("A7b", 'SELECT id FROM "public"."people"', SAME),
    ("A7c", 'SELECT id FROM other.public.people', "ST-03"),
    ("A8", 'SELECT id FROM PEOPLE', SAME),
    ("A8b", 'SELECT id FROM U&"\\0070eople"', SAME),
    ("A8c", 'SELECT id FROM "People"', "ST-03"),
    ("A9", 'WITH people AS (SELECT * FROM people) SELECT id FROM people', SAME),
    ("A10", 'SELECT people.id FROM people, LATERAL (WITH people AS (SELECT 1 AS one) SELECT * FROM people) x', SAME),
    ("A11", 'WITH RECURSIVE people AS (SELECT 1 AS id UNION ALL SELECT id + 1 FROM people WHERE id < 3) SELECT id FROM people', [(1,), (2,), (3,)]),
    ("A11b", 'WITH RECURSIVE a AS (SELECT id FROM people), people AS (SELECT 1 AS id) SELECT * FROM a', SAME),
    ("A11c", 'WITH RECURSIVE r AS (SELECT id, public.leak(id) AS x FROM people WHERE id = 1 UNION ALL SELECT p.id, public.leak(p.id) FROM people p, r WHERE p.id = r.id + 1 AND r.x > 0) SELECT id FROM r', SAME),
    ("A12", 'SELECT * FROM part_1', "ST-03"),
    ("A13", 'SELECT ssn FROM kid', "ST-03"),
    ("A13b", 'SELECT count(*) FROM ONLY people', [(20,)]),
    ("A14", 'SELECT ssn FROM v', "ST-03"),
    ("A15", 'SELECT * FROM mv', "ST-03"),
    ("A16", 'CREATE FOREIGN TABLE ft (a int) SERVER s', "ST-05"),
    ("A17", 'SELECT last_value FROM counter', "ST-03"),
    ("A17b", 'SELECT * FROM pg_toast.pg_toast_1', "ST-03"),
    ("A19", 'SELECT * FROM "people "', "ST-03"),
    ("B1", "SELECT id FROM (SELECT * FROM people) p WHERE public.leak(ssn) <> ''", "CO-03"),
    ("B1b", "SELECT id FROM (SELECT * FROM people) p WHERE public.leak(name) <> ''", SAME),
    ("B2", "SELECT id FROM people WHERE branch = '0042' AND public.leak(name) <> ''", SAME),
    ("B3", "WITH p AS (SELECT * FROM people) SELECT id FROM p WHERE public.leak(name) <> ''", SAME),
    ("B3b", "WITH p AS NOT MATERIALIZED (SELECT id, public.leak(name) AS n FROM people) SELECT id FROM p WHERE n <> ''", SAME),
    ("B4", 'SELECT id FROM people WHERE 1 / (id - 77) > -5', SAME),
    ("B5", 'SELECT id FROM people WHERE name::int = 1', "22P02"),
    ("B6", "SELECT p.id FROM people p JOIN (VALUES (1)) x(a) ON public.leak(p.name) <> ''", SAME),
    ("B6b", "SELECT p.id FROM people p LEFT JOIN accounts a ON public.leak(a.kind) <> '' AND a.person_id = p.id", SAME),
    ("B6c", 'SELECT p.id FROM accounts a RIGHT JOIN people p ON public.leak(p.name) = a.kind', SAME),
    ("B6d", 'SELECT p.id FROM people p FULL JOIN accounts a ON p.id = a.person_id + public.leak(0)', "ST-02"),
    ("B7", "UPDATE people SET name = name WHERE public.leak(name) <> ''", "UPDATE 20"),
    ("B7b", "DELETE FROM people WHERE public.leak(name) = 'nobody'", "DELETE 0"),
    ("B7c", "UPDATE people p SET name = 'x' FROM accounts a WHERE a.person_id = p.id AND public.leak(p.name) <> '' AND public.leak(a.kind) <> ''", "UPDATE 20"),
    ("B7d", "DELETE FROM people p USING accounts a WHERE a.person_id = p.id AND public.leak(p.name || a.kind) = ''", "DELETE 0"),
    ("B8", 'UPDATE people SET name = name WHERE ctid IN (SELECT ctid FROM people)', "ST-03"),
    ("B9", 'SELECT id FROM people WHERE id = -1 OR true', SAME),
    ("B10", 'SELECT id FROM people WHERE public.leak(id) > 0 FOR UPDATE', SAME),
    ("B11", "EXPLAIN (ANALYZE) SELECT * FROM people WHERE note = 'x'", "ST-05"),
    ("B12", 'EXPLAIN EXECUTE q', "ST-05"),
    ("B13", "SELECT most_common_vals FROM pg_stats WHERE tablename = 'people'", "ST-03"),
    ("B13b", 'SELECT stavalues1 FROM pg_catalog.pg_statistic', "ST-03"),
    ("B15", "SELECT reltuples FROM pg_class WHERE relname = 'people'", "ST-03"),
    ("B15b", "SELECT pg_relation_size('people')", "ST-04"),
    ("B16", 'SELECT pg_sleep(1) FROM people', "ST-04"),
    ("B17", "INSERT INTO people (id, branch, ssn) VALUES (500, '0042', '123456789')", "INSERT 0 1"),
    ("B18", "INSERT INTO accounts (id, person_id, branch, owner_ssn) VALUES (500, 77, '0042', '123456789')", "INSERT 0 1"),
    ("B19", "UPDATE people SET branch = '0007' WHERE id = 3", "RO-02"),
    ("B20", "INSERT INTO people (id, branch) VALUES (77, '0042') ON CONFLICT DO NOTHING", "RO-02"),
    ("B20b", "INSERT INTO old_prices (branch, price) VALUES ('0042', 1) ON CONFLICT DO NOTHING", "RO-02"),
    ("B21", 'MERGE INTO people p USING (VALUES (77)) s(id) ON p.id = s.id WHEN NOT MATCHED THEN INSERT (id) VALUES (s.id)', "ST-05"),
    ("B23", "SELECT nextval('public.counter'), public.leak(name) FROM people", "ST-04"),
    # B26, D25, D26 (SET of a setting that is not listed, then a SELECT): tests/proxy/test_session.py
    ("C1", 'SELECT p FROM people p', "ST-02"),
    ("C1b", "SELECT format('%s', p) FROM people p", "ST-02"),
    ("C1c", 'SELECT (p.*)::text FROM people p', "ST-02"),
    ("C1d", 'SELECT p IS NULL FROM people p', "ST-02"),
    ("C1e", 'SELECT count(p.*) FROM people p', "ST-02"),
    ("C2", "SELECT to_jsonb(p) ->> 'ssn' FROM people p", "ST-02"),
    ("C2b", 'SELECT row_to_json(p) FROM (SELECT ssn FROM people) p', "ST-02"),
    ("C2c", 'SELECT json_agg(p) FROM people p', "ST-02"),
    ("C2d", 'SELECT xmlforest(p.ssn) FROM people p', "ST-02"),
    ("C3", 'SELECT (ARRAY[p])[1].ssn FROM people p', "ST-02"),
    ("C3b", 'SELECT (p).ssn FROM people p', "ST-02"),
    ("C4", 'SELECT ssn(p) FROM people p', "ST-02"),
    ("C4b", 'SELECT p.spy FROM people p', "ST-03"),
    ("C5", 'SELECT z FROM people AS p(a,b,c,z)', SAME),
    ("C5b", 'WITH w(a,b,c,z) AS (TABLE people) SELECT z FROM w', SAME),
    ("C5c", "SELECT ssn || '' FROM people AS p(ssn)", "ST-03"),
    ("C5d", "SELECT name || '' FROM people AS p(id, branch, ssn, name)", "CO-03"),
    ("C6", 'SELECT ssn AS name, name AS ssn FROM people WHERE id = 1', [('***', 'visible 1')]),
    ("C7", 'SELECT name FROM people UNION ALL SELECT ssn FROM people', "CO-03"),
    ("C8", "SELECT (SELECT p2.ssn FROM people p2 WHERE p2.id = p.id) || '' FROM people p", "CO-03"),
    ("C8b", 'SELECT (SELECT p2.ssn FROM people p2 WHERE p2.id = p.id) FROM people p', SAME),
    ("C8c", 'SELECT unnest(ARRAY[ssn]) FROM people', "CO-03"),
    ("C8d", 'SELECT min(s) FROM (SELECT ssn AS s FROM people) x', "CO-03"),
    ("C8e", "SELECT concat(ssn, '') FROM people", "CO-03"),
    ("C9", 'SELECT ssn FROM people a FULL JOIN people b USING (ssn)', SAME),
    ("C9b", 'SELECT a.id FROM people a JOIN secrets b USING (ssn)', "ST-03"),
    ("C9c", 'SELECT ssn FROM sd()', "ST-04"),
    ("C10", "SELECT id FROM people NATURAL JOIN (VALUES ('0007-SSN')) q(ssn)", "CO-03"),
    ("C10b", 'SELECT a.id FROM people a JOIN people b USING (card)', "CO-03"),
    ("C11", "SELECT id FROM people WHERE ssn LIKE '00%'", "CO-03"),
    ("C11b", "SELECT id FROM people WHERE ssn = ANY (ARRAY['1', '2'])", "CO-03"),
    ("C11c", "SELECT count(*) FILTER (WHERE ssn > '5') FROM people", "CO-03"),
    ("C11d", "SELECT id FROM people WHERE email LIKE 'u7@%'", []),
    ("C11e", 'SELECT id FROM people WHERE pin = 1007', []),
    ("C11f", "SELECT id FROM people WHERE email = 'u7@bank.example'", []),
    ("C11g", "SELECT count(*) FROM people HAVING max(ssn) > '5'", "CO-03"),
    ("C11h", "SELECT CASE WHEN ssn > '5' THEN 1 END FROM people", "CO-03"),
    ("C12", 'SELECT id FROM people ORDER BY 1, ssn', "CO-03"),
    ("C12b", 'SELECT id, ssn AS s FROM people ORDER BY s', "CO-03"),
    ("C12c", 'SELECT id, pin, email FROM people ORDER BY pin, email', SAME),
    ("C12d", 'SELECT rank() OVER w FROM people WINDOW w AS (ORDER BY ssn)', "CO-03"),
    ("C12e", 'SELECT max(id) OVER (PARTITION BY card) FROM people', "CO-03"),
    ("C12f", 'SELECT q.s FROM (SELECT ssn AS s FROM people UNION ALL SELECT ssn FROM people) q ORDER BY q.s', "CO-03"),
    ("C13", 'SELECT md5(ssn) FROM people', "CO-03"),
    ("C13b", 'SELECT md5(email) FROM people WHERE id = 3', [('5f9cff36157eeac2b00c3ba2b588579b',)]),
    ("C14", 'SELECT * FROM people WHERE id = 3', SAME),
    ("C14b", 'TABLE people', SAME),
    ("C14c", 'INSERT INTO old_prices SELECT * FROM people', "ST-01"),
    ("C15", "UPDATE people SET name = 'x' WHERE id = 3 RETURNING ssn", [('***',)]),
    ("C15b", "UPDATE people SET name = 'x' WHERE id = 3 RETURNING email", "CO-04"),
    ("C15c", 'DELETE FROM people WHERE id = 3 RETURNING people', "ST-02"),
    ("C15d", "UPDATE people SET name = 'x' WHERE id = 3 RETURNING old.ssn, new.name", "ST-03"),
    ("C15e", "UPDATE people SET name = 'x' WHERE id = 3 RETURNING WITH (OLD AS o) o.name", "ST-02"),
    ("C16", 'UPDATE people SET name = ssn WHERE id = 3', "CO-03"),
    ("C16b", 'UPDATE people SET name = email WHERE id = 3', "CO-04"),
    ("C16c", 'INSERT INTO people (id, branch, name) SELECT id + 500, branch, ssn FROM people', "CO-03"),
    ("C16d", 'INSERT INTO people (id, branch, name) SELECT id + 500, branch, email FROM people WHERE id = 3', "INSERT 0 1"),
    ("C17", 'UPDATE accounts a SET kind = p.ssn FROM people p WHERE p.id = a.person_id', "CO-03"),
    ("C17b", 'UPDATE accounts a SET owner_ssn = p.ssn FROM people p WHERE p.id = a.person_id', "UPDATE 20"),
    ("C17c", 'UPDATE accounts a SET owner_ssn = p.card FROM people p WHERE p.id = a.person_id', "CO-03"),
    ("C18", "INSERT INTO people (id, branch) VALUES (3, '0042') ON CONFLICT (id) DO UPDATE SET name = people.ssn", "CO-03"),
    ("C18b", "INSERT INTO people (id, branch, ssn) VALUES (3, '0042', '123456789') ON CONFLICT (id) DO UPDATE SET name = excluded.ssn", "CO-03"),
    ("C18c", "INSERT INTO people (id, branch) VALUES (3, '0042') ON CONFLICT (id) DO UPDATE SET name = people.email", "CO-04"),
    ("C18e", "INSERT INTO people AS excluded (id, branch) VALUES (77, '0042') ON CONFLICT (id) DO UPDATE SET name = 'x' WHERE public.leak(excluded.name) <> ''", "ST-03"),
    ("C18f", "INSERT INTO people (id, branch) VALUES (3, '0042') ON CONFLICT (id) DO UPDATE SET ssn = excluded.card", "CO-03"),
    ("C20", 'SELECT (p::people).ssn FROM people p', "ST-02"),
    ("C21", 'SELECT tableoid FROM people', "ST-03"),
    ("C24", 'SELECT count(*) FROM people p JOIN accounts a ON p.ssn = a.owner_ssn', [(20,)]),
    ("C24b", 'SELECT count(*) FROM people p JOIN accounts a ON p.card = a.owner_ssn', "CO-03"),
    ("D1", 'DO $$ BEGIN PERFORM 1; END $$', "ST-05"),
    ("D2", 'CALL f()', "ST-05"),
    ("D3", 'SELECT * FROM sd()', "ST-04"),
    ("D4", "SELECT query_to_xml('select ssn from people', true, true, '')", "ST-04"),
    ("D4b", "SELECT ts_rewrite('a'::tsquery, 'select 1')", "ST-04"),
    ("D4c", "SELECT * FROM ts_stat('select 1')", "ST-04"),
    ("D4d", "SELECT table_to_xml('people', true, true, '')", "ST-04"),
    ("D5", "SELECT dblink('host=x', 'select 1')", "ST-04"),
    ("D6", 'EXECUTE q((SELECT count(*) FROM people))', "ST-05"),
    ("D6b", 'EXECUTE q(leak(1))', "ST-05"),
    ("D7", 'DECLARE c CURSOR WITH HOLD FOR SELECT * FROM people', "ST-05"),
    ("D7b", 'DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1', "ST-05"),
    ("D7c", "UPDATE people SET name = 'x' WHERE CURRENT OF c", "ST-02"),
    ("D8", 'COPY people TO STDOUT', "ST-05"),
    ("D9", "COPY (SELECT 1) TO PROGRAM 'cat'", "ST-05"),
    ("D10", 'COPY people FROM STDIN', "ST-05"),
    ("D11", 'SELECT * INTO TEMP z FROM people', "ST-02"),
    ("D11b", 'CREATE TABLE z AS SELECT * FROM people', "ST-05"),
    ("D12", 'EXPLAIN ANALYZE DELETE FROM people', "ST-05"),
    ("D13", 'WITH d AS (DELETE FROM people RETURNING *) SELECT * FROM d', "ST-02"),
    ("D13b", "WITH u AS (UPDATE people SET name = 'x' RETURNING ssn) SELECT count(*) FROM u", "ST-02"),
    ("D14", 'VALUES ((SELECT max(ssn) FROM people))', "CO-03"),
    ("D14b", 'VALUES ((SELECT count(*) FROM people))', [(20,)]),
    ("D14c", '(SELECT id FROM people) EXCEPT (SELECT id FROM people WHERE public.leak(id) > 3)', [(1,), (2,), (3,)]),
    ("D15", "INSERT INTO people (id, branch) VALUES (77, '0042') ON CONFLICT (id) DO UPDATE SET name = 'x' RETURNING *", "CO-04"),
    ("D15b", "INSERT INTO people (id, branch) VALUES (3, '0042') ON CONFLICT (id) DO UPDATE SET name = 'x' RETURNING name", [('x',)]),
    ("D16", "INSERT INTO people (id, branch) VALUES (500, '0007')", "RO-02"),
    ("D16b", 'INSERT INTO people (id) VALUES (500)', "RO-02"),
    ("D16c", "UPDATE people SET branch = '0007'", "RO-02"),
    ("D16d", "INSERT INTO people (id, branch) SELECT id + 500, CASE WHEN id = 3 THEN '0007' ELSE '0042' END FROM people", "RO-02"),
    ("D17", 'MERGE INTO people p USING accounts a ON p.id = a.id WHEN MATCHED THEN DELETE', "ST-05"),
    ("D18", 'LOCK people IN ACCESS EXCLUSIVE MODE', "ST-05"),
    ("D18b", 'TRUNCATE people', "ST-05"),
    ("D19", 'CREATE POLICY p ON people USING (true)', "ST-05"),
    ("D19b", 'GRANT ALL ON people TO public', "ST-05"),
    ("D20", 'ALTER SYSTEM SET x = 1', "ST-05"),
    ("D20b", "LOAD 'x'", "ST-05"),
    ("D21", "SELECT pg_read_file('/etc/passwd')", "ST-04"),
    ("D21b", "SELECT lo_import('/etc/passwd')", "ST-04"),
    ("D21c", 'SELECT data FROM pg_largeobject', "ST-03"),
    ("D22", "SELECT get_raw_page('people', 0)", "ST-04"),
    ("D23", "SELECT pg_get_viewdef('v')", "ST-04"),
    ("D23b", 'SELECT prosrc FROM pg_proc', "ST-03"),
    ("D23c", 'SELECT query FROM pg_stat_activity', "ST-03"),
    ("D24", 'SELECT * FROM information_schema.columns', "ST-03"),
    ("D24b", "SELECT typname FROM pg_type WHERE typname = 'people'", []),
    ("D24c", "SELECT nspname FROM pg_namespace WHERE nspname = 'public'", [('public',)]),
    ("D25b", "SELECT set_config('role', 'postgres', false) FROM people", "ST-04"),
    ("D26b", "SELECT current_setting('is_superuser') FROM people", "ST-04"),
    ("D28", "SELECT pg_notify('x', 'y')", "ST-04"),
    ("D28b", 'SELECT pg_advisory_lock(1)', "ST-04"),
    ("D29", 'SELECT id FROM people WHERE amount::amounts > 0', "ST-04"),
    ("D29b", 'SELECT amount::present FROM people', SAME),
    ("D29c", 'SELECT name::public.pair FROM people', "ST-04"),
    ("D30", 'SELECT json_scalar(1)', "ST-02"),
    ("D30b", 'SELECT merge_action()', "ST-02"),
    ("D30c", "SELECT json_serialize('{}')", "ST-02"),
    ("D31", "INSERT INTO kid (id, branch) VALUES (1, '0042')", "ST-03"),
    ("P1", "SELECT /* /* nested */ ' */ id FROM people WHERE id = 3 -- ' comment", [(3,)]),
    ("P1b", "SELECT $tag$it's$tag$, E'a\\'b', U&'\\0061', 'a' 'b' FROM people WHERE id = 3", "ST-01"),
    ("P1c", "SELECT id FROM people WHERE name = '''; DROP TABLE people; --'", []),
    ("P2", "SELECT 1_000, -2^2, 0x1F, '1' || 2", [(1000, 4.0, 31, '12')]),
    ("P7", "SELECT 'people'::regclass", "ST-04"),
    ("P9", "SELECT XMLCONCAT('<a/>')", "ST-02"),
    ("P9b", "SELECT JSON_QUERY('{}', '$')", "ST-02"),
    ("P10", "SELECT interval '1' day, (id).x FROM people", "ST-02"),
    ("X1", 'SELECT id FROM people ORDER BY id USING OPERATOR(public.<<<)', "ST-02"),
    ("X2", 'SELECT 1 UNION SELECT 2 ORDER BY (SELECT count(*) FROM people)', "ST-02"),
    ("X3", 'SELECT 1 FROM people LIMIT (SELECT count(*) FROM secrets)', "ST-03"),
    ("X4", 'SELECT count(*) FROM people FOR UPDATE OF secrets', "0A000"),
    ("X5", "INSERT INTO old_prices (branch, price) VALUES ('0042', (SELECT count(*) FROM secrets))", "ST-03"),
    ("X6", "INSERT INTO old_prices (branch, price) VALUES ('0042', 1) ORDER BY (SELECT 1) LIMIT 1", "ST-02"),
    ("X7", 'WITH RECURSIVE t AS (SELECT public.leak(id) AS x FROM people UNION SELECT x FROM t WHERE x > 500) SELECT x FROM t WHERE x > 0', SAME),
    ("X8", "SELECT q.x FROM (SELECT 'a' AS x) q WHERE q.x = 'a'", [('a',)]),
    ("X9", 'SELECT p.name, p.score, count(a.id) FROM people p LEFT JOIN accounts a ON a.person_id = p.id GROUP BY p.id HAVING count(a.id) > 0 ORDER BY p.amount', SAME),
    ("X10", 'SELECT note, count(*) FROM people GROUP BY name', "42803"),
    ("X11", "SELECT p.id FROM people p JOIN (people q JOIN accounts a ON public.leak(q.name) <> '' AND a.person_id = q.id) ON EXISTS (SELECT 1 FROM people z WHERE z.id = p.id AND public.leak(z.name) <> '')", SAME),
    ("X12", "WITH w AS (SELECT id FROM people WHERE EXISTS (SELECT 1 FROM accounts a WHERE a.person_id = people.id AND public.leak(a.kind) <> '')) SELECT a.id FROM w a JOIN w b ON a.id = b.id AND public.leak(a.id) > 0", SAME),
    ("X13", "SELECT CASE WHEN EXISTS (SELECT 1 FROM accounts a WHERE public.leak(a.kind) <> '' AND a.id = p.id) THEN 1 END FROM people p LIMIT (SELECT count(*) FROM accounts WHERE public.leak(kind) <> '')", SAME),
    ("X14", "SELECT count(*) FILTER (WHERE id IN (SELECT a.person_id FROM accounts a WHERE public.leak(a.kind) <> '')), string_agg(name, (SELECT max(a.kind) FROM accounts a WHERE public.leak(a.kind) <> '') ORDER BY (SELECT count(*) FROM accounts a WHERE a.id <= people.id)) FROM people", SAME),
    ("X15", "SELECT sum(id) OVER (PARTITION BY (SELECT count(*) FROM accounts a WHERE public.leak(a.kind) <> '') ORDER BY id ROWS (SELECT count(*) FROM accounts a WHERE public.leak(a.kind) <> '') PRECEDING) FROM people", SAME),
    ("X16", "INSERT INTO accounts (id, person_id, branch) SELECT 500 + id, id, branch FROM people WHERE public.leak(name) <> '' UNION SELECT 600 + id, id, branch FROM people WHERE id IN (SELECT public.leak(person_id) FROM accounts)", "INSERT 0 40"),
    ("X17", "INSERT INTO people (id, branch) VALUES (3, '0042') ON CONFLICT (id) DO UPDATE SET name = (SELECT max(kind) FROM accounts WHERE public.leak(kind) <> '') WHERE EXISTS (SELECT 1 FROM accounts a WHERE a.id = people.id AND public.leak(a.kind) <> '')", "INSERT 0 1"),
    ("X18", "UPDATE people SET name = (SELECT max(a.kind) FROM accounts a WHERE public.leak(a.kind) <> '' AND a.person_id = people.id) WHERE id = 3 RETURNING (SELECT count(*) FROM accounts a WHERE public.leak(a.kind) <> '')", [(20,)]),
    ("X19", 'SELECT x.id FROM people x WHERE x.id IN (SELECT y.id FROM people y WHERE y.id = x.id AND public.leak(y.id + x.id) > 0 GROUP BY y.id HAVING public.leak(max(x.id) + y.id) > 0)', "42803"),
    ("X20", 'SELECT p.id FROM people p, LATERAL (SELECT public.leak(p.id) AS x UNION ALL SELECT 1) v WHERE v.x > 0', SAME),
    ("X21", 'SELECT p.id FROM people p LEFT JOIN LATERAL (SELECT public.leak(p.id) AS x) v ON v.x > 0', SAME),
    ("X22", 'SELECT p.id FROM people p JOIN LATERAL (SELECT public.leak(p.id) AS x) v USING (x)', "ST-03"),
    ("X23", 'SELECT p.id FROM people p, LATERAL (SELECT q.x FROM (SELECT public.leak(p.id) AS x) q) v WHERE v.x IS NOT NULL', SAME),
    ("X24", 'SELECT p.id FROM people p CROSS JOIN LATERAL (SELECT coalesce(public.leak(p.id), 1) AS x) v JOIN (VALUES (77)) c(n) ON v.x = c.n', []),
    ("X25", 'SELECT p.id FROM people p WHERE p.id IN (SELECT v.x FROM (SELECT public.leak(p.id) AS x) v)', SAME),
    ("X26", 'SELECT p.id FROM people p WHERE EXISTS (SELECT 1 FROM (SELECT public.leak(p.id) AS d) q WHERE q.d > 0)', SAME),
    ("X27", 'SELECT d.id FROM (SELECT DISTINCT id, public.leak(id) AS x FROM people) d WHERE d.x > 0', SAME),
    ("X28", 'SELECT d.id FROM (SELECT id, row_number() OVER (PARTITION BY public.leak(id)) AS x FROM people) d WHERE d.x = 1 AND d.id = 3', [(3,)]),
    ("X29", 'SELECT d.id FROM (SELECT id, max(public.leak(id)) AS x FROM people GROUP BY id) d WHERE d.x > 2', SAME),
    ("X30", 'SELECT id, generate_series(1, public.leak(id)) FROM people WHERE id < 3', [(1, 1), (2, 1), (2, 2)]),
    ("X31", 'SELECT id FROM people GROUP BY ROLLUP (id, name) HAVING public.leak(id) > 0', SAME),
    ("X32", "SELECT a.id FROM people a NATURAL JOIN people b WHERE public.leak(a.name) <> ''", "CO-03"),
    ("X33", "SELECT p.id FROM people p WHERE (p.id, p.name) = (SELECT 1, 'visible 1')", "ST-01"),
    ("X34", 'SELECT p.id FROM people p WHERE p.ssn IN (SELECT owner_ssn FROM accounts)', SAME),
    ("X35", 'SELECT p.id FROM people p WHERE p.card IN (SELECT card FROM people)', "CO-03"),
    ("X36", 'SELECT p.id FROM people p WHERE p.card IS NOT DISTINCT FROM p.card', "CO-03"),
    ("X37", 'SELECT array_agg(x) FROM (SELECT ssn FROM people) q(x)', "CO-03"),
    ("X38", 'SELECT json_object_agg(id, ssn) FROM people', "CO-03"),
    ("X39", 'SELECT any_value(ssn) FROM people', "CO-03"),
    ("X40", 'SELECT mode() WITHIN GROUP (ORDER BY ssn) FROM people', "CO-03"),
    ("X41", 'SELECT count(DISTINCT card) FROM people', "CO-03"),
    ("X42", 'SELECT count(DISTINCT ssn) FROM people', [(20,)]),
    ("X43", 'SELECT card, count(*) FROM people GROUP BY 1', "CO-03"),
    ("X44", 'SELECT card AS c, count(*) FROM people GROUP BY c', "CO-03"),
    ("X45", 'SELECT ROW(ssn) FROM people', "CO-03"),
    ("X46", 'SELECT ssn IS NULL FROM people WHERE id = 1', [(False,)]),
    ("X47", "SELECT coalesce((SELECT ssn FROM people LIMIT 1), 'x')", "CO-03"),
    ("X48", 'SELECT (SELECT ssn FROM people WHERE id = 3 UNION SELECT ssn FROM people WHERE id = 4 LIMIT 1) AS x', [('***',)]),
    ("X49", "WITH RECURSIVE t(s) AS (SELECT ssn FROM people WHERE id = 3 UNION ALL SELECT s || '' FROM t WHERE false) SELECT * FROM t", "CO-03"),
    ("X50", 'WITH RECURSIVE t(s, n) AS (SELECT ssn, 1 FROM people WHERE id = 3 UNION ALL SELECT s, n + 1 FROM t WHERE n < 3) SELECT s FROM t ORDER BY s', "CO-03"),
    ("X51", 'SELECT id FROM people WHERE public.leak(id) > 0', SAME),
    ("X52", "SELECT id FROM people WHERE note LIKE 'hidden%\\'", []),
    ("X53", "INSERT INTO people (id, branch) VALUES (500, '0042') OFFSET (SELECT count(*) FROM people)", "ST-02"),
    ("X54", "INSERT INTO people (id, branch) VALUES (500, '0042') OFFSET (SELECT pg_sleep(0)::text::int)", "ST-02"),
    ("X55", 'SELECT * FROM (VALUES (1), (2) ORDER BY (SELECT count(*) FROM people)) v', "ST-02"),
    ("X56", 'VALUES (1) ORDER BY pg_backend_pid()', "ST-02"),
    ("X57", 'SELECT c.id FROM people c, LATERAL (VALUES (public.leak(c.id))) v(x) WHERE v.x IS NOT NULL', SAME),
    ("X58", 'SELECT c.id FROM people c, LATERAL (SELECT public.leak(c.id) AS x) v WHERE v.x > 0', SAME),
    ("X59", 'SELECT 1 FROM people c, LATERAL (WITH w AS (SELECT public.leak(c.id) AS x) SELECT 1 AS o FROM w WHERE w.x > 0) v', SAME),
    ("X60", 'SELECT 1 FROM (SELECT 1 AS a) v WHERE v.a IN (SELECT public.leak(x.id) FROM people x)', [(1,)]),
    ("X61", "SELECT 1 FROM branches b WHERE b.id = '0042' AND b.id IN (SELECT public.leak(x.name) FROM people x)", []),
    ("X62", "SELECT 1 FROM (SELECT 'a'::text AS a) v WHERE v.a LIKE ANY (SELECT public.leak(x.name) FROM people x)", []),
    ("X63", 'SELECT c.id FROM people c, LATERAL sets(c.id) g WHERE g > 0', "ST-04"),
    ("X64", 'SELECT c.id FROM people c, LATERAL public.sets(c.id) g WHERE g > 0', SAME),
    ("X65", 'SELECT c.id FROM people c GROUP BY c.id HAVING CASE WHEN true THEN public.leak(c.id) > 0 ELSE count(*) > 0 END', SAME),
    ("X66", 'SELECT max(b.id) FROM branches b HAVING EXISTS (SELECT 1 FROM people c GROUP BY c.id HAVING public.leak(c.id) + count(b.id) > 0)', [('0042',)]),
    ("X67", 'SELECT id FROM people WHERE amount::numeric(3,0) = 10', SAME),
    ("X68", 'SELECT id FROM people WHERE id = 77 AND random(1, 0) > 0', []),
    ("X69", 'SELECT id FROM people WHERE id = 77 AND 1 / (0 * extract(epoch FROM clock_timestamp())) > 0', []),
    ("X70", "SELECT q.id FROM (SELECT id, note FROM people) q WHERE q.note LIKE 'hidden%\\'", []),
    ("X71", "WITH q AS (SELECT id, note FROM people) SELECT q.id FROM q WHERE q.note LIKE 'hidden%\\'", []),
    ("X72", "SELECT id FROM all_notes WHERE note LIKE 'hidden%\\'", []),
    ("X73", "SELECT note, count(*) FROM people GROUP BY note HAVING note LIKE 'hidden%\\' OR count(*) < 0", []),
    ("X74", "UPDATE people SET name = name WHERE EXISTS (SELECT 1 FROM accounts people WHERE people.branch IS NOT NULL AND public.leak(name) <> '')", "ST-02"),
    ("X75", 'WITH w("grille:ok1") AS (SELECT true) SELECT c.id FROM people c WHERE EXISTS (SELECT 1 FROM w c WHERE public.leak(name) <> \'\')', "ST-02"),
    ("X76", 'SELECT card FROM people INTERSECT SELECT card FROM people WHERE id = 7', "CO-03"),
    ("X77", 'SELECT count(*) FROM (SELECT DISTINCT card FROM people) q', "CO-03"),
    ("X78", "SELECT typname FROM pg_type WHERE public.leak(typname::text) <> ''", SAME),
    ("X79", "SELECT typname FROM pg_type WHERE typname LIKE 'secret\\'", []),
    ("X80", 'SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY id USING OPERATOR(public.<<<)) FROM people', "ST-02"),
    ("X81", 'SELECT q.d FROM (SELECT public.leak(id) AS d FROM people LIMIT ALL) q WHERE q.d > 0', SAME),
    ("X82", 'SELECT q.d FROM (SELECT public.leak(id) AS d FROM people UNION ALL SELECT 1) q WHERE q.d > 0', SAME),
    ("X83", 'SELECT q.d FROM (SELECT amount AS d FROM people UNION ALL SELECT 1::float8) q WHERE q.d IS NOT NULL', SAME),
    ("X84", 'SELECT $1', "ST-01"),
    ("X85", 'SELECT id, name, count(*) FROM people GROUP BY id', SAME),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sql", "expected"), CASES, ids=[case[0] for case in CASES])
def test_bypass(bench: Bench, name: str, sql: str, expected: Any) -> None:
    answers = bench.run(sql)
    assert len(answers) == 1
    if expected is not SAME:
        assert answers[0] == expected
    elif isinstance(answers[0], str):
        raise AssertionError(answers[0])


def test_existence_of_a_key_is_told_as_native_row_security_tells_it(bench: Bench) -> None:
    """C18: a conflict with a hidden row is refused, its values never reach the agent's expression."""
    with pytest.raises(AssertionError, match="depends on hidden rows"):
        bench.run(
            "INSERT INTO people (id, branch) VALUES (77, '0042') "
            "ON CONFLICT (id) DO UPDATE SET name = public.leak(people.name)"
        )
    bench.app.rollback()


# Parameters


@pytest.mark.parametrize("oid", [24, 2205, 2206, 2210, 4089, 3734, 1033, 1790, 194, 2249, 2276])
def test_parameters_of_types_that_read_the_catalogue(bench: Bench, oid: int) -> None:
    for sql in ("SELECT $1", "SELECT 1", "SELECT id FROM people WHERE name = $1"):
        assert bench.run(sql, [oid], [b"secrets"]) == ["ST-04"]


def test_parameters_of_user_types(bench: Bench) -> None:
    for name in ("pair", "people", "amounts", "_people"):
        oid = next(kind.oid for kind in bench.catalog.types.values() if kind.name == name)
        assert bench.run("SELECT 1", [oid], [b"(1,2)"]) == ["ST-04"]


@pytest.mark.parametrize("types", [[25], [1043], [1042], [705], [0]])
def test_a_parameter_is_encoded_whatever_text_type_is_declared(bench: Bench, types: list[int]) -> None:
    ((prepared, _formats, bound),) = asyncio.run(
        bench._prepared("SELECT id FROM people WHERE ssn = $1 OR $1 = ssn", types, [b"123456789"])
    )
    assert b"123456789" not in bound
    assert [slot.parameter for slot in prepared.plan.encode] == [0]
    for sql in ("SELECT $1, id FROM people WHERE ssn = $1", "SELECT id FROM people WHERE ssn = $1::varchar(3)"):
        assert bench.run(sql, types, [b"123456789"]) == ["CO-03"]


def test_a_parameter_that_is_no_text_is_not_compared_with_a_token(bench: Bench) -> None:
    for oid in (23, 17, 19, 1009):
        assert bench.run("SELECT id FROM people WHERE ssn = $1", [oid], [b"1"]) == ["CO-03"]


# Parsing


CRASHERS = {
    "sum": "'SELECT ' + '+'.join(['1'] * n)",
    "concatenation": "'SELECT ' + '||'.join(['a'] * n)",
    "cast": "'SELECT 1' + '::int' * n",
    "null test": "'SELECT 1' + ' ISNULL' * n",
    "collation": "'SELECT a' + ' COLLATE x' * n",
    "time zone": "'SELECT a' + ' AT LOCAL' * n",
    "across parentheses": "'SELECT ' + ('1+' * 2000 + '(') * 90 + '1' + ')' * 90",
    "union with commas": "' UNION '.join(['SELECT 1, 2'] * n)",
    "join": "'SELECT 1 FROM a' + ' JOIN a ON a AND b' * n",
    "nested comments": "'/*' * n + '*/' * n + 'SELECT 1'",
    "case": "'SELECT ' + 'CASE WHEN 1 THEN 1 ELSE ' * n + '1' + ' END' * n",
    "many statements": "'SELECT 1;' * n",
    "reset in a comment": "'SELECT 1' + '+1/*,*/' * n",
    "reset in a name": "'SELECT 1' + '+\",\"' * n",
}


def test_p5_no_text_kills_the_process_or_holds_it_up() -> None:
    """In a process of its own: before the limits, the first of these ended it with SIGSEGV."""
    program = f"""
import time
from grille.controls import Refusal
from grille.protocols.postgres.statement import parse_text, redacted
for name, expression in {CRASHERS!r}.items():
    text = eval(expression, {{"n": 40_000}})[:262_144]
    started = time.monotonic()
    try:
        parse_text(text, limit=262_144)
    except Refusal as refusal:
        print(name, refusal.control)
    redacted(text)
    assert time.monotonic() - started < 10, name
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    controls = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert set(controls) == set(CRASHERS)
    assert set(controls.values()) <= {"ST-06", "ST-01"}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + ", ".join(["*"] * 80_000) + " FROM people",
        "SELECT " + ", ".join(["id"] * 2000) + " FROM people",
        "SELECT id FROM people ORDER BY " + ", ".join(["id"] * 2000),
        "SELECT 1 FROM " + ", ".join(f"people p{i}" for i in range(2000)),
        "WITH a0 AS (SELECT id FROM people), "
        + ", ".join(f"a{i} AS (SELECT x.id FROM a{i - 1} x, a{i - 1} y)" for i in range(1, 60))
        + " SELECT "
        + ", ".join(["id"] * 1700)
        + " FROM a59",
    ],
    ids=["stars", "columns", "order", "relations", "doubling WITH"],
)
def test_p5_a_small_text_does_not_grow_without_bound(bench: Bench, sql: str) -> None:
    assert bench.run(sql) == ["ST-06"]


def test_caches_are_bounded_by_size_too() -> None:
    cache: Lru[int, int] = Lru(100, weight=10)
    for key in range(20):
        cache.put(key, key, 4)
    assert len(cache) == 2
    cache.put(50, 50, 11)
    assert cache.get(50) is None
    cache.put(19, 0, 10)
    assert len(cache) == 1


def test_p5_long_flat_texts_are_still_understood(bench: Bench) -> None:
    rows = ", ".join(f"({i}, 'name -- {i}', {i} + 1 * 2)" for i in range(2000))
    assert bench.run(f"SELECT count(*) FROM (VALUES {rows}) v") == [[(2000,)]]
    assert bench.run(f"SELECT count(*) FROM people WHERE id IN ({', '.join(map(str, range(9000)))})") == [[(20,)]]


@pytest.mark.parametrize(
    "part",
    [
        "EXISTS (SELECT 1 FROM people p{0} WHERE public.leak(p{0}.id) > 0 AND {1})",
        "id IN (SELECT public.leak(p{0}.id) FROM people p{0} WHERE {1})",
        "CASE WHEN {1} THEN public.leak(id) > 0 END",
        "public.leak(id) > (SELECT count(*) FROM (SELECT * FROM people) q{0} WHERE {1})",
        "NOT ({1} OR false)",
    ],
)
def test_p5_depth_ends_in_a_refusal_and_nothing_else(bench: Bench, part: str) -> None:
    condition = "true"
    refusal = None
    for depth in range(40):
        condition = part.replace("{0}", str(depth)).replace("{1}", condition)
        try:
            asyncio.run(bench._prepared(f"SELECT id FROM people WHERE {condition}", (), ()))
        except Refusal as caught:
            refusal = caught
            break
    assert refusal is not None
    assert refusal.control in ("ST-06", "ST-07")


def test_p6_texts_with_one_fingerprint_have_their_own_plans(bench: Bench) -> None:
    one, other = (
        asyncio.run(bench._prepared(sql, (), ()))[0][0].plan.sql
        for sql in ("SELECT x.id FROM people x, accounts y", "SELECT x.id FROM accounts x, people y")
    )
    assert one != other


def test_no_comment_reaches_the_audit_template(bench: Bench) -> None:
    ((prepared, *_),) = asyncio.run(
        bench._prepared("SELECT /* 123-45-6789 */ id FROM people WHERE note = 'x' -- 123-45-6789", (), ())
    )
    assert "6789" not in prepared.understood.shown
    assert "people" in prepared.understood.shown


# The walk


GRAFTED_ON = [
    "SELECT DISTINCT ON (id) id, GROUPING(id), count(*) FILTER (WHERE id > 1) OVER w, string_agg(name, ',' ORDER BY id) FROM people p "
    "JOIN accounts a USING (id), LATERAL (SELECT 1) l, generate_series(1, 2) WITH ORDINALITY g WHERE a.id IN (1, 2) "
    "GROUP BY ROLLUP (id), name HAVING count(*) > 1 WINDOW w AS (PARTITION BY id ORDER BY name ROWS 1 PRECEDING) "
    "ORDER BY id LIMIT 1 OFFSET 1",
    "SELECT id, name[1], (ARRAY[1,2])[1:2], CASE id WHEN 1 THEN 2 ELSE 3 END, coalesce(id, 1), greatest(id, 2), id::int8, "
    "ROW(1, 2), current_date, name COLLATE \"C\", id IS NULL, (id = 1) IS TRUE, EXISTS (SELECT 1), "
    "percentile_disc(0.5) WITHIN GROUP (ORDER BY id) FROM people WHERE id BETWEEN 1 AND 2 AND (id, id) = (1, 2) FOR UPDATE",
    "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t WHERE x < 3) SELECT x FROM t UNION SELECT 2 ORDER BY 1",
    "SELECT * FROM (VALUES (1), (2) LIMIT 1) v(a)",
    "INSERT INTO old_prices (branch, price) VALUES ('0042', 1), ('0042', DEFAULT)",
    "INSERT INTO people (id, branch) SELECT 1, '0042' ON CONFLICT (id) DO UPDATE SET name = 'x' WHERE people.id = 1 RETURNING id",
    "WITH w AS (SELECT 1 AS x) UPDATE people SET name = 'x' FROM w WHERE id = x RETURNING id",
    "WITH w AS (SELECT 1 AS x) DELETE FROM people USING w WHERE id = x RETURNING id",
]  # fmt: skip


def _grafts() -> Iterator[tuple[str, str, Any]]:
    """Each base statement with one forbidden call put into one field of one message, where no walk may miss it."""
    from postgast import parse

    forbidden = parse("SELECT pg_catalog.pg_sleep(1)").stmts[0].stmt.select_stmt.target_list[0].res_target.val
    for base in GRAFTED_ON:
        places = []
        stack: list[tuple[Any, tuple[Any, ...]]] = [(parse(base).stmts[0].stmt, ())]
        while stack:
            message, path = stack.pop()
            fields = analysis.FIELDS.get(message.DESCRIPTOR.name, frozenset())
            for field in message.DESCRIPTOR.fields:
                if field.type != FieldDescriptor.TYPE_MESSAGE:
                    continue
                if field.name in fields and field.message_type.name == "Node":
                    places.append((path, field))
                if field.is_repeated:
                    stack += [(m, (*path, (field.name, i))) for i, m in enumerate(getattr(message, field.name))]
                elif message.HasField(field.name):
                    stack.append((getattr(message, field.name), (*path, (field.name, None))))
        for path, field in places:
            tree = parse(base).stmts[0].stmt
            message = tree
            for name, index in path:
                message = getattr(message, name) if index is None else getattr(message, name)[index]
            if field.is_repeated:
                getattr(message, field.name).append(forbidden)
            else:
                getattr(message, field.name).CopyFrom(forbidden)
            yield base, f"{message.DESCRIPTOR.name}.{field.name}", tree


def test_no_field_that_is_allowed_is_left_unread(bench: Bench) -> None:
    """A call that is on no list, put into any field of any message that the walk accepts, refuses the statement."""
    resolver, purity = bench.enforcement._resolver, bench.enforcement._purity
    if resolver is None or purity is None:
        bench.run("SELECT 1")
        resolver, purity = bench.enforcement._resolver, bench.enforcement._purity
    assert resolver is not None
    assert purity is not None
    for base in GRAFTED_ON:
        assert not isinstance(bench.run(base)[0], str) or bench.run(base)[0][:3] != "ST-", base
    seen = set()
    for base, place, tree in _grafts():
        seen.add(place)
        try:
            analysis.Analyzer(resolver, purity, SENSITIVE, (), database="bypass").analyze(tree)
        except Exception:  # a refusal, or a tree that no text can give
            continue
        raise AssertionError(f"accepted in {place} of {base}")
    descriptors = pb.DESCRIPTOR.message_types_by_name
    every = {
        f"{name}.{field}"
        for name, fields in analysis.FIELDS.items()
        for field in fields
        if field in descriptors[name].fields_by_name
        and descriptors[name].fields_by_name[field].message_type is not None
        and descriptors[name].fields_by_name[field].message_type.name == "Node"
    }
    assert every - seen == set()
