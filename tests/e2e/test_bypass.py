"""Ways around the window that are not one row of the catalogue (`tests.catalogue`): parameters, crashers, the walk.

Each statement runs on PostgreSQL as Grille rewrites it, twice: with the hidden rows in place and without them.  Both
must give the same rows, tags and error codes; and `leak`, a function that is cheaper than any filter and reports its
argument, must never be called with a hidden value.
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
    "SELECT (b).city, make_interval(days => 1), concat(VARIADIC ARRAY['a']) FROM branches b TABLESAMPLE SYSTEM (1) REPEATABLE (2)",
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
