"""What an agent sees of the catalogue, on real servers: all of what it may read, and nothing of anything else.

Whatever the agent may not read has ``hidden`` in its name, its definition or its comment.  Every relation that is
readable is read whole, and every function and cast that tells of an object is called with every OID there is: the word
must not be in the answer.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from psycopg.pq import DiagnosticField, ExecStatus

from grille.controls import Refusal
from grille.policies.decision import CachePolicy, ColumnObligation, Decision, Limits
from grille.policies.pdp import Unanswered
from grille.protocols.postgres.analysis import Sensitive
from grille.protocols.postgres.introspection import LOOKUPS, READABLE, REG_TYPES
from grille.protocols.postgres.purity import Purity, signature_of
from grille.proxy import enforcement as module
from grille.proxy.config import Identity
from grille.proxy.demo.cluster import Cluster
from grille.proxy.enforcement import Enforcement
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.tokenization.embedded import EmbeddedProvider

SCHEMA = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE DOMAIN short AS text CHECK (length(VALUE) < 10);
CREATE TYPE hidden_mood AS ENUM ('hidden_good');
CREATE DOMAIN hidden_domain AS text DEFAULT 'hidden_default' CHECK (VALUE <> 'hidden');
CREATE SCHEMA hidden_schema;
CREATE TABLE hidden_schema.t (id int PRIMARY KEY);
CREATE TABLE other (id int PRIMARY KEY, name text NOT NULL DEFAULT 'x', mood mood, name2 short UNIQUE);
CREATE TABLE hidden_table (hidden_id int PRIMARY KEY, hidden_text hidden_domain DEFAULT 'hidden'
                           CHECK (hidden_text <> ''),
                           other int CONSTRAINT hidden_reference REFERENCES other);
CREATE TABLE shown (id int PRIMARY KEY, branch text NOT NULL DEFAULT '0042',
                    hidden_column hidden_mood DEFAULT 'hidden_good',
                    other int REFERENCES other, elsewhere int CONSTRAINT hidden_target REFERENCES hidden_table,
                    amount numeric CONSTRAINT positive CHECK (amount > 0),
                    doubled text GENERATED ALWAYS AS (CASE WHEN hidden_column = 'hidden_good' THEN branch END) STORED,
                    CONSTRAINT hidden_check CHECK (hidden_column <> 'hidden_good' OR branch <> ''));
CREATE INDEX hidden_index ON shown (hidden_column);
CREATE INDEX hidden_expression ON shown ((branch || 'hidden'));
CREATE INDEX hidden_partial ON shown (branch) WHERE hidden_column IS NOT NULL;
CREATE INDEX shown_branch ON shown (branch, amount);
CREATE INDEX other_lower ON other (lower(name)) WHERE id > 7;
CREATE STATISTICS hidden_statistics ON branch, amount FROM shown;
CREATE VIEW hidden_view AS SELECT hidden_id FROM hidden_table;
CREATE VIEW shown_view AS SELECT id, 'hidden' AS branch FROM hidden_table, other WHERE other.id = hidden_id;
CREATE MATERIALIZED VIEW hidden_copy AS SELECT 1 AS hidden_one;
CREATE SEQUENCE hidden_sequence;
CREATE FUNCTION hidden_function(hidden_argument int) RETURNS int LANGUAGE sql AS 'SELECT 1 -- hidden';
CREATE FUNCTION hidden_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END -- hidden';
CREATE TRIGGER hidden_trigger BEFORE INSERT ON shown FOR EACH ROW EXECUTE FUNCTION hidden_trigger();
CREATE RULE hidden_rule AS ON DELETE TO shown WHERE OLD.id = 1 DO ALSO DELETE FROM hidden_table;
CREATE POLICY hidden_policy ON shown USING (branch <> 'hidden');
CREATE TABLE hidden_child () INHERITS (shown);
CREATE TABLE parts (id int, branch text) PARTITION BY LIST (branch);
CREATE TABLE hidden_part PARTITION OF parts FOR VALUES IN ('hidden');
CREATE TABLE public."hidden Quoted" (id int);
COMMENT ON TABLE shown IS 'the shown one';
COMMENT ON COLUMN shown.branch IS 'the branch';
COMMENT ON COLUMN shown.hidden_column IS 'hidden';
COMMENT ON TABLE hidden_table IS 'hidden';
COMMENT ON INDEX hidden_index IS 'hidden';
COMMENT ON CONSTRAINT hidden_check ON shown IS 'hidden';
COMMENT ON TYPE hidden_mood IS 'hidden';
COMMENT ON SCHEMA hidden_schema IS 'hidden';
COMMENT ON FUNCTION hidden_function(int) IS 'hidden';
"""
VISIBLE = ("public.shown", "public.other", "public.shown_view", "public.parts")
NAMES = ("hidden_table", "hidden_view", "hidden_schema.t", "hidden_mood", "hidden_schema", '"hidden Quoted"')


class Policy:
    """The relations of `VISIBLE`, without one column."""

    revision = "1"

    def __init__(self) -> None:
        self.asked = 0

    def decide(self, document: bytes) -> Decision:
        self.asked += 1
        return Decision(
            allow=True, control="AC-01", reason="", passthrough=False, filters=dict.fromkeys(VISIBLE, True),
            columns={"public.shown.hidden_column": ColumnObligation("deny")}, limits=Limits(), locks=True,
            isolated=False, not_before=None, not_after=None, cache=CachePolicy(60),
        )  # fmt: skip


class Bench:
    """Grille and the server, without the sockets between them."""

    def __init__(self, cluster: Cluster, database: str, snapshot_of: Any) -> None:
        with psycopg.connect(cluster.dsn(database)) as connection:
            connection.execute(SCHEMA)
            (self.last,) = connection.execute("SELECT max(oid)::int FROM pg_class").fetchone() or (0,)
        self.connection = psycopg.connect(
            cluster.dsn(database) + " options='-c search_path=pg_catalog'", autocommit=True
        )
        self.catalog = snapshot_of(cluster, database)
        self.policy: Any = Policy()
        self.enforcement = self.fresh()
        self.agent = self.an_agent("a")

    def fresh(self) -> Enforcement:
        return Enforcement(
            catalog=lambda: self.catalog, pdp=lambda: self.policy, provider=EmbeddedProvider([], []),
            sensitive={"public.shown.hidden_column": Sensitive(None, None)}, functions=(),
        )  # fmt: skip

    def an_agent(self, name: str) -> Agent:
        spiffe = f"spiffe://bank.example/ns/test/sa/{name}"
        identity = Identity(spiffe_id=spiffe, database="bank", attributes={"branch": "0042"})
        return Registry([identity]).agent(
            parse_spiffe_id(spiffe), not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
        )

    async def _filled(self, sql: str, values: Sequence[bytes | None]) -> Any:
        (prepared,) = await self.enforcement.prepare(self.agent, sql)
        return prepared.plan, await self.enforcement.bind(self.agent, prepared, (), values)

    def rows(self, sql: str, *values: bytes | None) -> list[tuple[str | None, ...]]:
        """The agent's answer, as text.  A server's error is its SQLSTATE."""
        plan, (formats, bound) = asyncio.run(self._filled(sql, values))
        result = self.connection.pgconn.exec_params(plan.sql.encode(), bound, list(plan.parameter_types), formats)
        if ExecStatus(result.status) != ExecStatus.TUPLES_OK:
            return [((result.error_field(DiagnosticField.SQLSTATE) or b"").decode(),)]
        return [
            tuple(None if (v := result.get_value(r, c)) is None else v.decode() for c in range(result.nfields))
            for r in range(result.ntuples)
        ]


@pytest.fixture(scope="module")
def bench(server: Cluster, snapshot_of: Any) -> Iterator[Bench]:
    name = "grille_introspection"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name}")
    bench = Bench(server, name, snapshot_of)
    yield bench
    bench.connection.close()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name}")


def readable(bench: Bench) -> list[str]:
    """Those of the readable relations that this server has, or that information_schema has anywhere."""
    known = bench.catalog.relations
    return [".".join(key) for key in READABLE if key in known or key[0] == "information_schema"]


def test_no_readable_relation_shows_what_is_hidden(bench: Bench) -> None:
    for name in readable(bench):
        for row in bench.rows(f"SELECT * FROM {name}"):
            assert "hidden" not in repr(row), (name, row)


def calls(bench: Bench) -> Iterator[str]:
    """Every look-up that takes an OID, with every OID."""
    numbers = f"pg_catalog.generate_series(16000, {bench.last}) AS g(o)"
    others = {"oid": "g.o::oid", "int4": "1", "bool": "true", "regclass": "g.o::oid::regclass"}
    for signature, lookup in LOOKUPS.items():
        name, _, types = signature.removesuffix(")").partition("(")
        arguments = types.split(",")
        if arguments[lookup.argument] not in ("oid", "regclass") or name == "pg_partition_ancestors":
            continue
        if "name" in arguments:
            for catalogue in ("pg_class", "pg_type", "pg_namespace", "pg_constraint", "pg_proc", "pg_statistic_ext"):
                yield f"SELECT {name}(g.o::oid, '{catalogue}') FROM {numbers}"
        elif "pg_node_tree" in arguments:
            more = ", true" if len(arguments) > 2 else ""
            for place in ("d.adbin, g.o::oid{} FROM pg_attrdef", "d.conbin, g.o::oid{} FROM pg_constraint"):
                tree, _, relation = place.format(more).partition(" FROM ")
                yield f"SELECT {name}({tree}) FROM {relation} d, {numbers}"
        else:
            for number in range(4) if "int4" in arguments else (1,):
                given = ", ".join(str(number) if kind == "int4" else others[kind] for kind in arguments)
                yield f"SELECT {name}({given})::text FROM {numbers}"
    for oid in REG_TYPES:
        name = bench.catalog.types[oid].name
        yield f"SELECT (g.o::oid::{name})::text FROM {numbers}"
        yield f"SELECT g.o::oid::{name} FROM {numbers}"


def test_no_look_up_tells_of_what_is_hidden(bench: Bench) -> None:
    told = 0
    for sql in calls(bench):
        rows = bench.rows(sql)
        told += sum(row[0] is not None for row in rows)
        assert "hidden" not in repr(rows), sql
    assert told > 100


@pytest.mark.parametrize("kind", ["regclass", "regtype", "regnamespace"])
def test_a_hidden_name_is_like_no_name(bench: Bench, kind: str) -> None:
    for name in (*NAMES, "nowhere", "public.nowhere", "no.such.name"):
        text = name.replace("'", "''")
        for sql in (f"SELECT '{text}'::{kind}", f"SELECT to_{kind}('{text}')", f"SELECT ('{text}'::text)::{kind}::oid"):
            missing = "0A000" if name.count(".") > 1 else None
            if missing and kind == "regnamespace":
                continue  # dots in a schema's name are a syntax error
            assert bench.rows(sql) in ([(None,)], [("42602",)], [(missing,)]), sql
        assert bench.rows(f"SELECT $1::{kind}", name.encode()) in ([(None,)], [("42602",)], [("0A000",)])


def test_what_is_visible_is_shown(bench: Bench) -> None:
    own = "c.oid >= 16384"
    assert {row[0] for row in bench.rows(f"SELECT relname FROM pg_class c WHERE {own}")} >= {
        "shown", "shown_pkey", "shown_branch", "other", "other_pkey", "other_lower", "other_name2_key", "shown_view",
        "parts",
    }  # fmt: skip
    columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'shown'::regclass AND attnum > 0 ORDER BY attnum"
    assert [row[0] for row in bench.rows(columns)] == ["id", "branch", "other", "elsewhere", "amount", "doubled"]
    assert bench.rows("SELECT enumlabel FROM pg_enum WHERE enumtypid = 'mood'::regtype ORDER BY enumsortorder") == [
        ("good",), ("bad",)
    ]  # fmt: skip
    assert bench.rows("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attname = 'mood'") == [("mood",)]
    assert bench.rows("SELECT pg_get_indexdef('other_lower'::regclass::oid)") == [
        ("CREATE INDEX other_lower ON public.other USING btree (lower(name)) WHERE (id > 7)",)
    ]
    definitions = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'shown'::regclass"
    assert sorted(bench.rows(f"{definitions} AND contype <> 'n'")) == [
        ("positive", "CHECK ((amount > (0)::numeric))"),
        ("shown_other_fkey", "FOREIGN KEY (other) REFERENCES other(id)"),
        ("shown_pkey", "PRIMARY KEY (id)"),
    ]
    default = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'other'::regclass"
    assert bench.rows(default) == [("'x'::text",)]
    assert bench.rows("SELECT obj_description('shown'::regclass, 'pg_class')") == [("the shown one",)]
    assert bench.rows("SELECT description FROM pg_description WHERE objsubid = 2 AND objoid >= 16384") == [
        ("the branch",)
    ]
    assert bench.rows("SELECT table_name FROM information_schema.tables ORDER BY 1") == [
        ("other",), ("parts",), ("shown",), ("shown_view",)
    ]  # fmt: skip
    listed = "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'shown'"
    assert bench.rows(f"{listed} AND ordinal_position < 5 ORDER BY ordinal_position") == [
        ("id", "integer"),
        ("branch", "text"),
        ("other", "integer"),
    ]
    assert bench.rows("SELECT pg_table_is_visible('shown'::regclass), 'shown'::regclass, current_schemas(true)") == [
        ("t", "public.shown", "{pg_catalog,public}")
    ]
    assert bench.rows("SELECT count(*) FROM pg_class WHERE relname = 'pg_class'") == [("1",)]
    assert bench.rows("SELECT nspname FROM pg_namespace ORDER BY 1") == [
        ("information_schema",), ("pg_catalog",), ("public",)
    ]  # fmt: skip


def test_statements_of_a_kind_share_their_plan(bench: Bench) -> None:
    bench.rows("SELECT relname FROM pg_class WHERE relname = 'x'")
    before = len(bench.enforcement.plans)
    bench.agent, agent = bench.an_agent("b"), bench.agent
    bench.rows("SELECT relname FROM pg_class WHERE relname = 'y'")
    bench.agent = agent
    assert len(bench.enforcement.plans) == before


def test_the_policy_is_asked_once_for_each_relation(bench: Bench) -> None:
    enforcement, bench.enforcement = bench.enforcement, bench.fresh()
    before = bench.policy.asked
    bench.rows("SELECT relname FROM pg_class")
    first = bench.policy.asked - before
    bench.rows("SELECT attname FROM pg_attribute")
    assert bench.policy.asked - before == first  # even the question about the statement itself is the same
    bench.enforcement = enforcement


async def test_other_agents_have_their_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RELATIONS_AT_ONCE", 1)
    enforcement = bench.fresh()
    with pytest.raises(Unanswered) as caught:
        enforcement._prepare(bench.agent, "SELECT relname FROM pg_class", (), False)
    await caught.value.answer
    (prepared,) = await enforcement.prepare(bench.agent, "SELECT relname FROM pg_class")
    assert prepared.verdict is not None
    (whole,) = await bench.enforcement.prepare(bench.agent, "SELECT relname FROM pg_class")
    assert whole.verdict is not None and sorted(map(repr, prepared.verdict.values)) == sorted(
        map(repr, whole.verdict.values)
    )


def test_a_new_revision_changes_what_is_visible(bench: Bench) -> None:
    class Less(Policy):
        revision = "2"

        def decide(self, document: bytes) -> Decision:
            whole = super().decide(document)
            return Decision(
                **{f: getattr(whole, f) for f in whole.__struct_fields__ if f != "filters"},
                filters={"public.other": True},
            )

    policy, bench.policy = bench.policy, Less()
    assert bench.rows("SELECT to_regclass('shown'), to_regclass('other')") == [(None, "public.other")]
    bench.policy = policy
    assert bench.rows("SELECT to_regclass('shown'), to_regclass('other')") == [("public.shown", "public.other")]


def test_many_look_ups_end_in_a_refusal(bench: Bench) -> None:
    sql = "SELECT " + ", ".join(f"to_regclass('t{n}')" for n in range(300))
    with pytest.raises(Refusal, match="at most 200 times"):
        bench.rows(sql)


def test_no_function_in_from_has_a_column_of_another_name(bench: Bench) -> None:
    named = """SELECT p.proname, p.proargnames[cardinality(p.proargnames)] FROM pg_proc p
               WHERE p.oid < 16384 AND 't' = ANY (p.proargmodes) OR 'o' = ANY (p.proargmodes)"""
    own = {name: column for name, column in bench.connection.execute(named)}  # noqa: C416
    purity = Purity(bench.catalog)
    for function in bench.catalog.functions.values():
        known = purity.pure(function.oid) or signature_of(bench.catalog, function) in LOOKUPS
        if known and function.name in own and bench.catalog.types[function.result].kind not in "cp":
            sql = f"SELECT * FROM {function.name}({', '.join('NULL' for _ in function.arguments)})"
            try:
                (prepared,) = asyncio.run(bench.enforcement.prepare(bench.agent, sql))
            except Refusal:
                continue
            assert prepared.plan is not None and f"{function.name}.{own[function.name]}" in prepared.plan.sql, sql


async def test_what_is_visible_is_kept_once_for_an_agent(bench: Bench) -> None:
    found = []
    for number in range(3):
        (prepared,) = await bench.enforcement.prepare(bench.agent, f"SELECT relname, {number} + 0 FROM pg_class")
        assert prepared.verdict is not None
        found.append(prepared.verdict.values[-1])
        assert bench.enforcement.ready(bench.agent, f"SELECT relname, {number} + 0 FROM pg_class".encode()) is None
    assert found[0] is found[1] is found[2]
