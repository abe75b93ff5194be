"""Enforcement over a real catalogue and the demo's real policy: what is refused and why, tokens, masks, caches."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg
import msgspec
import psycopg
import pytest

import grille.policies.bundles
from grille.controls import Refusal
from grille.policies.bundle import read
from grille.policies.decision import Decision
from grille.policies.pdp import PolicyUnavailable
from grille.policies.wasm import WasmEngine
from grille.protocols.postgres.analysis import Sensitive
from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.rewrite import Transform
from grille.proxy.catalog import read_catalog
from grille.proxy.config import Identity
from grille.proxy.demo.cluster import Cluster
from grille.proxy.enforcement import Enforcement, Prepared
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.provider import TokenizationError, TokenRequest, Unfit
from grille.tokenization.transformation import Key, Transformation

SCHEMA = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE branches(id text PRIMARY KEY, city text);
CREATE TABLE customers(id int PRIMARY KEY, branch text, name text, ssn text, email text, card_number varchar(16),
                       score int, mood mood, created date DEFAULT current_date);
CREATE TABLE accounts(id int PRIMARY KEY, customer_id int, branch text, balance numeric, holder_ssn text);
CREATE TABLE transactions(id int PRIMARY KEY, account_id int, branch text, amount numeric);
CREATE TABLE secrets(id int);
CREATE VIEW customer_export AS SELECT * FROM customers;
CREATE TABLE parent(id int, branch text) PARTITION BY LIST (branch);
CREATE TABLE child PARTITION OF parent FOR VALUES IN ('0042');
CREATE FUNCTION leak(text) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION sd() RETURNS SETOF customers LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM customers';
"""
TRANSFORMATIONS = [
    Transformation(name="ssn", kind="fpe", token_domain="ssn", key="fpe", alphabet="digits",
                   template=r"(\d{3})-(\d{2})-(\d{4})"),
    Transformation(name="card", kind="fpe", token_domain="card", key="fpe", alphabet="digits", template=r"(\d{16})"),
    Transformation(name="email", kind="siv", token_domain="email", key="siv", alphabet="text", template=""),
]  # fmt: skip
PROVIDER = EmbeddedProvider(TRANSFORMATIONS, [Key("fpe", 1, bytes(range(32))), Key("siv", 1, bytes(range(64)))])
SENSITIVE = {
    f"public.{relation}.{column}": Sensitive(transformation, transformation)
    for relation in ("customers", "customer_export")
    for column, transformation in (("ssn", "ssn"), ("card_number", "card"), ("email", "email"))
}
DEMO = Path(grille.policies.bundles.__file__).parent / "demo.tar.gz"


def _agent(path: str, **attributes: str) -> Agent:
    name = f"spiffe://bank.example/ns/{path}"
    identity = Identity(spiffe_id=name, database="bank", attributes=attributes or {"branch": "0042"})
    return Registry([identity]).agent(parse_spiffe_id(name), not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=1))


SERVICE = _agent("service/sa/assistant")
FRAUD = _agent("fraud/sa/scorer")
TELLER = _agent("branch/sa/teller")


class CountingPolicy:
    """The demo's engine, counting its decisions; it may be told to change its answers or to fail."""

    def __init__(self, engine: WasmEngine) -> None:
        self._engine = engine
        self.revision = self._engine.revision
        self.calls = 0
        self.change: dict[str, object] = {}
        self.fail = False

    def decide(self, document: bytes) -> Decision:
        self.calls += 1
        if self.fail:
            raise PolicyUnavailable("stopped by the test")
        return msgspec.structs.replace(self._engine.decide(document), **self.change)


@pytest.fixture(scope="module")
def catalog(pg18: Cluster) -> Iterator[Catalog]:
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE enforcement")
    with psycopg.connect(pg18.dsn("enforcement")) as connection:
        connection.execute(SCHEMA)

    async def load() -> Catalog:
        connection = await asyncpg.connect(host=pg18.host, user="postgres", database="enforcement")
        try:
            return await read_catalog(connection)
        finally:
            await connection.close()

    yield asyncio.run(load())
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute("DROP DATABASE enforcement")


@pytest.fixture(scope="module")
def engine() -> WasmEngine:
    return WasmEngine(read(DEMO), "grille/decision", timeout=5)


@pytest.fixture
def policy(engine: WasmEngine) -> CountingPolicy:
    return CountingPolicy(engine)


@pytest.fixture
def enforcement(catalog: Catalog, policy: CountingPolicy) -> Enforcement:
    return Enforcement(
        catalog=lambda: catalog,
        pdp=lambda: policy,
        provider=PROVIDER,
        sensitive=SENSITIVE,
        max_statement=100_000,
    )


async def _one(enforcement: Enforcement, agent: Agent, sql: str, types: Sequence[int] = ()) -> Prepared:
    (prepared,) = await enforcement.prepare(agent, sql, types, simple=True)
    return prepared


async def _refused(enforcement: Enforcement, agent: Agent, sql: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await _one(enforcement, agent, sql)
    return caught.value


REFUSED = [
    # parsing
    ("SELECT 1 FROM", "ST-01", "42601"),
    ("SELECT 'a\0b'", "ST-01", "22021"),
    ("SELECT " + "(" * 10_000 + "1" + ")" * 10_000, "ST-06", "54001"),
    ("SELECT '" + "x" * 100_001 + "'", "ST-06", "54000"),
    ("SELECT " + " || ".join(["name"] * 2000) + " FROM customers", "ST-06", "54001"),
    # node kinds
    ("MERGE INTO customers c USING accounts a ON c.id = a.id WHEN MATCHED THEN DELETE", "ST-05", "0A000"),
    ("COPY customers FROM '/tmp/x'", "ST-05", "0A000"),
    ("COPY (SELECT 1) TO PROGRAM 'cat'", "ST-05", "0A000"),
    ("EXPLAIN SELECT * FROM customers", "ST-05", "0A000"),
    ("EXPLAIN ANALYZE DELETE FROM customers", "ST-05", "0A000"),
    ("EXECUTE q(now())", "ST-05", "0A000"),
    ("EXECUTE q(' 5'::int)", "ST-05", "0A000"),
    ("LISTEN x", "ST-05", "0A000"),
    ("DO $$ BEGIN END $$", "ST-05", "0A000"),
    ("CALL x()", "ST-05", "0A000"),
    ("TRUNCATE customers", "ST-05", "0A000"),
    ("LOCK customers", "ST-05", "0A000"),
    ("CREATE TABLE x(a int)", "ST-05", "42501"),
    ("CREATE TEMP TABLE customers AS SELECT 1", "ST-05", "42501"),
    ("SELECT * INTO x FROM customers", "ST-02", "0A000"),
    ("DROP TABLE customers", "ST-05", "42501"),
    ("ALTER TABLE customers DISABLE ROW LEVEL SECURITY", "ST-05", "42501"),
    ("GRANT ALL ON customers TO public", "ST-05", "42501"),
    ("VACUUM", "ST-05", "42501"),
    ("ALTER SYSTEM SET x = 1", "ST-05", "42501"),
    ("PREPARE TRANSACTION 'x'", "ST-05", "0A000"),
    ("COMMIT AND CHAIN", "ST-05", "0A000"),
    ("WITH d AS (DELETE FROM customers RETURNING id) SELECT * FROM d", "ST-02", "0A000"),
    ("SELECT c FROM customers c", "CO-03", "42501"),
    ("SELECT row_to_json(c) FROM customers c", "CO-03", "42501"),
    ("SELECT c FROM customers c, branches b WHERE c IS NOT NULL", "CO-03", "42501"),
    ("SELECT (c).ssn || 'x' FROM customers c", "CO-03", "42501"),
    ("SELECT (c.name).ssn FROM customers c", "ST-02", "0A000"),
    ("SELECT * FROM customers TABLESAMPLE SYSTEM (10)", "ST-02", "0A000"),
    ("SELECT xmlelement(name a)", "ST-02", "0A000"),
    ('SELECT 1 AS "grille:ok1"', "ST-02", "42939"),
    ("UPDATE customers SET (name, score) = (SELECT 'a', 1)", "ST-02", "0A000"),
    ("INSERT INTO customer_export (id) VALUES (1)", "AC-07", "42501"),
    # names
    ("SELECT nothing FROM customers", "ST-03", "42501"),
    ("SELECT ctid FROM customers", "ST-03", "42501"),
    ("SELECT c.xmin FROM customers c", "ST-03", "42501"),
    ("SELECT * FROM pg_catalog.pg_authid", "AC-03", "42501"),
    ("SELECT * FROM pg_stats", "AC-03", "42501"),
    ("SELECT * FROM pg_toast.pg_toast_1", "AC-03", "42501"),
    ("SELECT * FROM otherdb.public.customers", "ST-03", "42501"),
    ("SELECT * FROM child", "AC-03", "42501"),
    ("SELECT id FROM customers, accounts", "ST-03", "42702"),
    # functions, operators, types
    ("SELECT leak(name) FROM customers", "ST-04", "42501"),
    ("SELECT public.leak(name) FROM customers", "ST-04", "42501"),
    ("SELECT * FROM sd()", "ST-04", "42501"),
    ("SELECT query_to_xml('select 1', true, true, '')", "ST-04", "42501"),
    ("SELECT set_config('role', 'postgres', false) FROM customers", "ST-04", "42501"),
    ("SELECT current_setting('data_directory') || ''", "ST-04", "42501"),
    ("SELECT pg_read_file('/etc/passwd')", "ST-04", "42501"),
    ("SELECT pg_sleep(1)", "ST-04", "42501"),
    ("SELECT nextval('x')", "ST-04", "42501"),
    ("SELECT pg_advisory_lock(1)", "ST-04", "42501"),
    ("SELECT lo_get(1)", "ST-04", "42501"),
    ("SELECT 'leak()'::regprocedure", "ST-04", "42501"),
    ("SELECT '{customers}'::regclass[]", "ST-04", "42501"),
    ("SELECT coalesce('customers'::regclass, 'secrets')", "ST-04", "42501"),
    ("SELECT CASE WHEN true THEN 'customers'::regclass ELSE $1 END", "ST-04", "42501"),
    ("SELECT ARRAY['customers'::regclass, 'secrets']", "ST-04", "42501"),
    ("SELECT array_append(ARRAY['customers'::regclass], 'secrets')", "ST-04", "42501"),
    ("SELECT ARRAY['customers'::regclass] || 'secrets'", "ST-04", "42501"),
    ("SELECT 'customers'::regclass UNION SELECT 'secrets'", "ST-04", "42501"),
    ("VALUES ('customers'::regclass), ('secrets')", "ST-04", "42501"),
    ("SELECT greatest('customers'::regclass, 'secrets')", "ST-04", "42501"),
    ("SELECT lag('customers'::regclass, 1, 'secrets') OVER ()", "ST-04", "42501"),
    ("SELECT has_table_privilege('customers', 'select')", "ST-04", "42501"),
    ("SELECT * FROM information_schema.role_table_grants", "AC-03", "42501"),
    ("SELECT pg_catalog.pg_backend_pid()", "ST-04", "42501"),
    ("SELECT 1 OPERATOR(public.+) 1", "ST-04", "42501"),
    ("SELECT 'x'::no_such_type", "ST-04", "42704"),
    ("SELECT repeat('x', 1000000000)", "ST-04", "42501"),
    # policy
    ("SELECT * FROM customer_export", "AC-07", "42501"),
    ("SELECT * FROM secrets", "AC-03", "42501"),
    ("SELECT * FROM no_such_table", "AC-03", "42501"),
    ("DELETE FROM customers", "AC-03", "42501"),
    ("SELECT id FROM customers FOR UPDATE", "AC-03", "42501"),
    # tokenized columns
    ("SELECT upper(ssn) FROM customers", "CO-03", "42501"),
    ("SELECT ssn || '' FROM customers", "CO-03", "42501"),
    ("SELECT substr(ssn, 1, 3) FROM customers", "CO-03", "42501"),
    ("SELECT max(ssn) FROM customers", "CO-03", "42501"),
    ("SELECT id FROM customers WHERE ssn LIKE '1%'", "CO-03", "42501"),
    ("SELECT id FROM customers WHERE ssn > '1'", "CO-03", "42501"),
    ("SELECT id FROM customers WHERE ssn = name", "CO-03", "42501"),
    ("SELECT id FROM customers WHERE ssn = email", "CO-03", "42501"),
    ("SELECT id FROM customers ORDER BY ssn", "CO-03", "42501"),
    ("SELECT id, ssn FROM customers ORDER BY 2", "CO-03", "42501"),
    ("SELECT ssn::varchar FROM customers", "CO-03", "42501"),
    ("SELECT coalesce(ssn, 'none') FROM customers", "CO-03", "42501"),
    ("SELECT ssn FROM customers UNION SELECT name FROM customers", "CO-03", "42501"),
    ("SELECT CASE WHEN ssn = '900-01-7920' THEN 1 END, CASE ssn WHEN 'x' THEN 1 END FROM customers", "CO-03", "42501"),
    ("SELECT ARRAY[ssn] FROM customers", "CO-03", "42501"),
    ("SELECT to_jsonb(ssn) FROM customers", "CO-03", "42501"),
    ("SELECT md5(ssn) FROM customers", "CO-03", "42501"),
    ("SELECT string_agg(ssn, ',') FROM customers", "CO-03", "42501"),
    ("SELECT row_number() OVER (ORDER BY ssn) FROM customers", "CO-03", "42501"),
    ("SELECT DISTINCT ON (ssn) id FROM customers", "CO-03", "42501"),
    ("SELECT id FROM customers WHERE card_number = '4111111111111111'", "CO-03", "42501"),
    ("SELECT card_number, count(*) FROM customers GROUP BY card_number", "CO-03", "42501"),
    ("UPDATE customers SET name = ssn WHERE id = 1", "CO-03", "42501"),
    ("UPDATE customers SET ssn = name WHERE id = 1", "CO-03", "42501"),
    ("INSERT INTO customers (id, branch, name) SELECT id, branch, ssn FROM customers", "CO-03", "42501"),
    ("INSERT INTO customers (id, branch, ssn) SELECT id, branch, email FROM customers", "CO-03", "42501"),
    ("SELECT x.s FROM (SELECT ssn AS s FROM customers) x WHERE x.s LIKE '9%'", "CO-03", "42501"),
    ("WITH w AS (SELECT ssn AS s FROM customers) SELECT lower(s) FROM w", "CO-03", "42501"),
    ("SELECT z || '' FROM customers AS c(a, b, n, z)", "CO-03", "42501"),
    # writes
    ("INSERT INTO transactions (id, branch) VALUES (1, '0042') ON CONFLICT DO NOTHING", "RO-02", "42501"),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "control", "sqlstate"), REFUSED)
async def test_refused(enforcement: Enforcement, sql: str, control: str, sqlstate: str) -> None:
    refusal = await _refused(enforcement, SERVICE, sql)
    assert (refusal.control, refusal.sqlstate) == (control, sqlstate), refusal.message
    assert refusal.message.endswith(".")
    assert "0042" not in refusal.message + (refusal.hint or "")


async def test_missing_and_forbidden_relations_get_the_same_answer(enforcement: Enforcement) -> None:
    answers = [
        await _refused(enforcement, SERVICE, f"SELECT nothing, leak(ssn) || 1 FROM {name}")
        for name in ("secrets", "absence")
    ]
    one, other = ((a.control, a.sqlstate, a.hint, a.message.replace(n, "X")) for a, n in zip(
        answers, ("secrets", "absence"), strict=True))  # fmt: skip
    assert one == other


async def test_a_decision_without_the_relation_denies(enforcement: Enforcement, policy: CountingPolicy) -> None:
    policy.change = {"filters": {}}
    assert (await _refused(enforcement, FRAUD, "SELECT id FROM customers")).control == "ST-03"


@pytest.mark.parametrize(
    ("change", "control"),
    [
        ({"passthrough": True}, "AC-05"),
        ({"isolated": True}, "AC-05"),
        ({"not_after": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)}, "AC-04"),
        ({"not_before": dt.datetime(2120, 1, 1, tzinfo=dt.UTC)}, "AC-04"),
        ({"allow": False, "control": "AC-01", "reason": "No."}, "AC-01"),
    ],
)
async def test_obligations_and_dates(
    enforcement: Enforcement, policy: CountingPolicy, change: dict[str, object], control: str
) -> None:
    policy.change = change
    refusal = await _refused(enforcement, FRAUD, "SELECT id FROM customers")
    assert refusal.control == control
    assert refusal.decision_id


@pytest.mark.parametrize("read", ["mask:unknown", "plain", "", "mask:"])
async def test_an_unknown_obligation_denies(enforcement: Enforcement, policy: CountingPolicy, read: str) -> None:
    from grille.policies.decision import ColumnObligation

    policy.change = {"columns": {"public.customers.ssn": ColumnObligation(read)}}
    assert (await _refused(enforcement, FRAUD, "SELECT ssn FROM customers")).control == "AC-05"


async def test_an_engine_that_fails_denies(enforcement: Enforcement, policy: CountingPolicy) -> None:
    policy.fail = True
    refusal = await _refused(enforcement, FRAUD, "SELECT id FROM customers")
    assert refusal.control == "AC-02"
    assert "stopped by the test" not in refusal.message


async def test_a_column_that_the_decision_does_not_name_is_masked(
    enforcement: Enforcement, policy: CountingPolicy
) -> None:
    policy.change = {"columns": {}}
    prepared = await _one(enforcement, FRAUD, "SELECT id, ssn FROM customers")
    assert prepared.plan is not None
    assert prepared.plan.results == (None, Transform(None, "null"))
    rows = await enforcement.release(FRAUD, prepared, [[b"1", b"123-45-6789"]], ())
    assert rows == [[b"1", None]]


async def test_a_denied_column_cannot_be_referenced(enforcement: Enforcement, policy: CountingPolicy) -> None:
    from grille.policies.decision import ColumnObligation

    policy.change = {"columns": {"public.customers.ssn": ColumnObligation("deny")}}
    for sql in ("SELECT ssn FROM customers", "SELECT * FROM customers", "SELECT id FROM customers WHERE ssn IS NULL"):
        assert (await _refused(enforcement, FRAUD, sql)).control == "CO-02"
    await _one(enforcement, FRAUD, "SELECT id FROM customers")


async def test_a_masked_column_is_never_read_by_a_write(catalog: Catalog, policy: CountingPolicy) -> None:
    from grille.policies.decision import ColumnObligation

    enforcement = Enforcement(
        catalog=lambda: catalog, pdp=lambda: policy, provider=PROVIDER,
        sensitive={**SENSITIVE, "public.customers.name": Sensitive(None, None)},
    )  # fmt: skip
    policy.change = {"columns": {"public.customers.name": ColumnObligation("mask:first1", "deny", "allow")}}
    for sql in (
        "UPDATE customers SET score = 1 WHERE name = 'x'",
        "UPDATE customers SET mood = 'good', score = length(name)",
        "UPDATE customers SET score = 1 RETURNING name",
    ):
        assert (await _refused(enforcement, TELLER, sql)).control == "CO-04"
    prepared = await _one(enforcement, TELLER, "SELECT name FROM customers WHERE name = 'x'")
    assert prepared.plan is not None
    assert "left" in prepared.plan.sql


async def test_tokens_in_and_out(enforcement: Enforcement) -> None:
    ssn = "900-01-7920"
    (token,) = await PROVIDER.encode([TokenRequest("ssn", ssn)])
    assert isinstance(token, str)
    for sql, types, values in (
        (f"SELECT id, ssn FROM customers WHERE ssn = '{ssn}'", (), ()),
        (f"SELECT id, ssn FROM customers WHERE ssn IN ('{ssn}', '900-02-5840')", (), ()),
        (f"SELECT id, ssn FROM customers WHERE ssn = '{ssn}'::text AND lower(name) LIKE $1", (25,), (b"a%",)),
        ("SELECT id, ssn FROM customers WHERE ssn = $1", (25,), (ssn.encode(),)),
        ("SELECT id, ssn FROM customers WHERE ssn = $1::varchar", (), (ssn.encode(),)),
        ("SELECT id, ssn FROM customers WHERE $1 <> ssn", (), (ssn.encode(),)),
    ):
        prepared = await _one(enforcement, SERVICE, sql, types)
        _formats, bound = await enforcement.bind(SERVICE, prepared, (), values)
        assert token.encode() in bound, sql
        assert ssn.encode() not in bound, sql
        assert prepared.plan is not None
        assert ssn not in prepared.plan.sql
        rows = await enforcement.release(SERVICE, prepared, [[b"7", token.encode()], [b"8", None]], ())
        assert rows == [[b"7", b"***-**-7920"], [b"8", None]]
    prepared = await _one(enforcement, TELLER, "SELECT ssn FROM customers")
    assert await enforcement.release(TELLER, prepared, [[token.encode()]], ()) == [[ssn.encode()]]
    prepared = await _one(enforcement, FRAUD, "SELECT ssn FROM customers")
    assert await enforcement.release(FRAUD, prepared, [[token.encode()]], ()) == [[token.encode()]]


async def test_writes_are_tokenized(enforcement: Enforcement) -> None:
    ssn = "900-01-7920"
    (token,) = await PROVIDER.encode([TokenRequest("ssn", ssn)])
    assert isinstance(token, str)
    for sql in (
        f"INSERT INTO customers (id, branch, ssn) VALUES (1, '0042', '{ssn}')",
        f"INSERT INTO customers (id, branch, ssn) VALUES (1, '0042', '{ssn}'), (2, '0042', NULL), (3, '0042', DEFAULT)",
        f"UPDATE customers SET ssn = '{ssn}' WHERE id = 1",
        f"INSERT INTO customers VALUES (1, '0042', 'A', '{ssn}')",
        f"INSERT INTO customers (id, branch) VALUES (1, '0042') ON CONFLICT (id) DO UPDATE SET ssn = '{ssn}'",
    ):  # fmt: skip
        prepared = await _one(enforcement, SERVICE, sql)
        _formats, bound = await enforcement.bind(SERVICE, prepared, (), ())
        assert token.encode() in bound, sql
        assert prepared.plan is not None
        assert ssn not in prepared.plan.sql
        assert ssn.encode() not in bound
        assert prepared.plan.hidden_columns == 1
        assert prepared.plan.row_check_plan


async def test_a_value_that_does_not_fit_is_refused_on_write_and_finds_nothing_on_read(
    enforcement: Enforcement,
) -> None:
    prepared = await _one(enforcement, SERVICE, "UPDATE customers SET ssn = 'garbage-12' WHERE id = 1")
    with pytest.raises(Refusal) as caught:
        await enforcement.bind(SERVICE, prepared, (), ())
    assert caught.value.control == "TK-02"
    assert "garbage" not in caught.value.message
    assert caught.value.template == "UPDATE customers SET ssn = $1 WHERE id = $2"
    assert caught.value.decision_id
    prepared = await _one(enforcement, SERVICE, "SELECT id FROM customers WHERE ssn = 'garbage-12'")
    _formats, bound = await enforcement.bind(SERVICE, prepared, (), ())
    assert b"garbage-12" not in bound


async def test_a_parameter_cannot_be_both_token_and_plain(enforcement: Enforcement) -> None:
    refusal = await _refused(enforcement, SERVICE, "SELECT id FROM customers WHERE ssn = $1 OR name = $1")
    assert refusal.control == "CO-03"


async def test_a_stored_value_that_is_no_token_is_not_shown(enforcement: Enforcement) -> None:
    prepared = await _one(enforcement, TELLER, "SELECT ssn FROM customers")
    with pytest.raises(Refusal) as caught:
        await enforcement.release(TELLER, prepared, [[b"clear text"]], ())
    assert caught.value.control == "TK-02"
    assert "clear text" not in caught.value.message


class _Down:
    async def encode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        raise TokenizationError("sealed")

    decode = encode


async def test_a_provider_that_is_down_denies_only_what_needs_it(catalog: Catalog, policy: CountingPolicy) -> None:
    enforcement = Enforcement(
        catalog=lambda: catalog, pdp=lambda: policy, provider=_Down(), sensitive=SENSITIVE,
    )  # fmt: skip
    prepared = await _one(enforcement, SERVICE, "SELECT id FROM customers WHERE ssn = '900-01-7920'")
    with pytest.raises(Refusal) as caught:
        await enforcement.bind(SERVICE, prepared, (), ())
    assert (caught.value.control, caught.value.sqlstate) == ("TK-01", "58000")
    prepared = await _one(enforcement, TELLER, "SELECT ssn FROM customers")
    with pytest.raises(Refusal) as caught:
        await enforcement.release(TELLER, prepared, [[b"123-45-6789"]], ())
    assert caught.value.control == "TK-01"
    prepared = await _one(enforcement, SERVICE, "SELECT id FROM customers WHERE id = 1")
    await enforcement.bind(SERVICE, prepared, (), ())


async def test_a_column_that_is_only_read_is_neither_written_nor_searched(
    catalog: Catalog, policy: CountingPolicy
) -> None:
    old = msgspec.structs.replace(TRANSFORMATIONS[0], fpe_algorithm="ff3-1", supplied_tweak=bytes(7))
    provider = EmbeddedProvider([old], [Key("fpe", 1, bytes(range(32)))])
    enforcement = Enforcement(
        catalog=lambda: catalog, pdp=lambda: policy, provider=provider, sensitive=SENSITIVE,
    )  # fmt: skip
    for sql in (
        "SELECT id FROM customers WHERE ssn = '900-01-7920'",
        "SELECT id FROM customers WHERE ssn <> '900-01-7920'",
        "UPDATE customers SET ssn = '900-01-7920' WHERE id = 1",
    ):
        prepared = await _one(enforcement, SERVICE, sql)
        with pytest.raises(Refusal) as caught:
            await enforcement.bind(SERVICE, prepared, (), ())
        assert (caught.value.control, caught.value.sqlstate) == ("TK-03", "0A000")
        assert "7920" not in f"{caught.value.message} {caught.value.hint} {caught.value.detail_for_audit}"
    prepared = await _one(enforcement, TELLER, "SELECT ssn FROM customers")
    (decoded,) = await provider.decode([TokenRequest("ssn", "123-45-6789")])
    assert isinstance(decoded, str)
    assert await enforcement.release(TELLER, prepared, [[b"123-45-6789"]], ()) == [[decoded.encode()]]


async def test_a_hit_parses_no_sql_and_asks_no_policy(
    enforcement: Enforcement, policy: CountingPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _one(enforcement, SERVICE, "SELECT name FROM customers WHERE id = 1")
    await _one(enforcement, SERVICE, "SELECT name FROM customers WHERE id = $1", (23,))
    calls = policy.calls
    parsed: list[str] = []

    def parse(text: str) -> object:
        parsed.append(text)
        raise AssertionError("a hit must not parse")

    monkeypatch.setattr("grille.protocols.postgres.statement.parsed", parse)
    hit = await _one(enforcement, SERVICE, "SELECT name  FROM customers WHERE id = 2")
    assert hit.constants == (b"2",)
    await _one(enforcement, SERVICE, "SELECT name FROM customers WHERE id = $1", (23,))
    assert not parsed
    assert policy.calls == calls
    with pytest.raises(AssertionError):
        await _one(enforcement, SERVICE, "SELECT id FROM customers WHERE name = 'new'")


async def test_identities_under_one_policy_share_plans_but_not_values(enforcement: Enforcement) -> None:
    sql = "SELECT name FROM customers WHERE id = 1"
    other = _agent("service/sa/assistant", branch="0007")
    one, two = await _one(enforcement, SERVICE, sql), await _one(enforcement, other, sql)
    assert one.plan is two.plan
    assert (await enforcement.bind(SERVICE, one, (), ()))[1] == [b"1", b"0042"]
    assert (await enforcement.bind(other, two, (), ()))[1] == [b"1", b"0007"]
    assert (await _one(enforcement, TELLER, "SELECT ssn FROM customers")).plan is not (
        await _one(enforcement, FRAUD, "SELECT ssn FROM customers")
    ).plan


async def test_a_new_revision_and_an_expired_decision_are_not_reused(
    enforcement: Enforcement, policy: CountingPolicy
) -> None:
    prepared = await _one(enforcement, SERVICE, "SELECT name FROM customers")
    assert enforcement.is_current(prepared)
    policy.revision = "another"
    assert not enforcement.is_current(prepared)
    policy.change = {"allow": False}
    assert (await _refused(enforcement, SERVICE, "SELECT name FROM customers")).control == "AC-01"


async def test_no_client_text_reaches_another_through_a_template(enforcement: Enforcement) -> None:
    """Kept constants are part of the template: two texts that differ in one never share a plan."""
    one = await _one(enforcement, SERVICE, "SELECT substr(name, 1, 2) FROM customers WHERE id = 5")
    two = await _one(enforcement, SERVICE, "SELECT substr(name, 1, 3) FROM customers WHERE id = 5")
    assert one.plan is not None
    assert two.plan is not None
    assert one.plan.sql != two.plan.sql
    assert one.constants == two.constants == (b"5",)


async def test_the_event_s_template_holds_no_constant(enforcement: Enforcement) -> None:
    for sql in (
        "SELECT name FROM customers WHERE name LIKE 'secret%' AND score = 77777",
        "SELECT 'secret' || name FROM customers WHERE id = $1",
    ):
        prepared = await _one(enforcement, SERVICE, sql)
        assert "secret" not in prepared.understood.shown
        assert "77777" not in prepared.understood.shown
        assert "customers" in prepared.understood.shown
    refusal = await _refused(enforcement, SERVICE, "SELECT id FROM secrets WHERE id = 123456")
    assert refusal.template == "SELECT id FROM secrets WHERE id = $1"


async def test_several_statements(enforcement: Enforcement) -> None:
    many = await enforcement.prepare(SERVICE, "SELECT 1; SELECT id FROM customers; ", simple=True)
    assert [each.action for each in many] == ["select", "select"]
    with pytest.raises(Refusal) as caught:
        await enforcement.prepare(SERVICE, "SELECT 1; SELECT 2")
    assert caught.value.sqlstate == "42601"
    many = await enforcement.prepare(SERVICE, "BEGIN; SELECT 1; COMMIT", simple=True)
    assert [each.action for each in many] == ["begin", "select", "commit"]
    with pytest.raises(Refusal):
        await enforcement.prepare(SERVICE, "SELECT 1; SELECT * FROM customer_export", simple=True)


async def test_the_agent_s_own_names_are_answered_from_proxy_state(enforcement: Enforcement) -> None:
    for sql in ("SELECT current_user", "SELECT session_user, user", "SELECT current_schema()", "SELECT current_schema"):
        prepared = await _one(enforcement, SERVICE, sql)
        assert prepared.plan is not None
        assert "current_" not in prepared.plan.sql.split(" AS ")[0]


# where the agent's text shows what is refused


@pytest.mark.parametrize(
    "marked",
    [
        "SELECT id, ¦nope FROM customers WHERE id = 5",
        "SELECT  'ä b',\n c.id, ¦c.nope FROM customers c WHERE  c.id = 5 AND c.name = 'ö'",
        "SELECT id FROM customers WHERE id = 5 AND ¦nope.id = 7",
        "SELECT id FROM customers WHERE id = 15 AND ¦pg_sleep(10) IS NULL",
        "SELECT id FROM customers WHERE ¦leak(name) AND id = 15",
        "SELECT id FROM   ¦missing WHERE id = 5",
        "SELECT id FROM   ¦secrets WHERE id = 5",
        "SELECT ä.id FROM customers ä, ¦public.secrets x",
        "SELECT id FROM customers WHERE name || 5 ¦= ARRAY[1]",
        "SELECT id FROM customers WHERE id = 1234567 AND ssn ¦LIKE '9%'",
        "SELECT id::¦nosuchtype FROM customers",
        "SELECT ¦secrets.* FROM customers",
        "SELECT id FROM customers ORDER BY ¦7",
        "UPDATE customers SET name = 'x', ¦nope = 7 WHERE id = 3",
        "UPDATE customers SET score = score - -71 * score + 2 WHERE id = - 3 AND ¦nope = 1",
        "UPDATE customers SET score = score + -71 + ¦nope WHERE id = 3",
        "INSERT INTO transactions (id, ¦nope) VALUES (1, 2)",
        "INSERT INTO ¦secrets VALUES (1)",
        "DELETE FROM ¦missing WHERE id = 1",
        "SELECT (SELECT max(¦nope) FROM accounts) FROM customers WHERE id IN (1, 2, 3)",
        "SELECT 1; SELECT ¦nope FROM customers",
        "SELECT 'ä', id FRO ¦customers WHERE id = 5",
        "SELECT id FROM ¦WHERE x",
    ],
)
async def test_a_refusal_shows_where(enforcement: Enforcement, marked: str) -> None:
    text = marked.replace("¦", "")
    with pytest.raises(Refusal) as refused:
        await enforcement.prepare(SERVICE, text, simple=True)
    assert refused.value.position is not None, refused.value.message
    assert text[: refused.value.position - 1] == marked.partition("¦")[0], refused.value.message


@pytest.mark.parametrize(
    "form",
    [
        "SELECT 1 FROM {}, accounts WHERE nope = 1", "SELECT 1 FROM {}, also_missing", "SELECT 1 FROM {}, child",
        "SELECT (SELECT 1 FROM also_missing) FROM {} WHERE id = 7", "SELECT nope FROM {}",
        "DELETE FROM {} WHERE id = x", "WITH a AS (SELECT 1 FROM {}) UPDATE customers SET nope = 1 FROM a, bbb",
        "SELECT 1 FROM accounts, {}, aaa",
    ],
)  # fmt: skip
async def test_forbidden_and_missing_relations_cannot_be_told_apart(enforcement: Enforcement, form: str) -> None:
    told = set()
    for name in ("secrets", "zzzzzzz"):
        with pytest.raises(Refusal) as refused:
            await enforcement.prepare(SERVICE, form.format(name))
        refusal = refused.value
        told.add((refusal.sqlstate, refusal.message.replace(name, "?"), refusal.hint, refusal.position))
    assert len(told) == 1


# what the fast path looks up

SLOTS = {
    "%s": ["''", "'x'", "'0042'", "'a b'", "') OR (1 = 1'", "'; DROP TABLE x;'", "'\"'", "'::int'", "'é'", "'it''s'",
           "' '", "'now'", "'null'", "'%'", "'1'", "'5'", "'$1'", "'a,b'", "'- 5'", "'{1}'", "'good'", "'2020-01-01'"],
    "%d": ["0", "1", "2", "5", "007", "12", "100", "2147483647", "2147483648", "4294967296", "999999999999999999",
           "-2147483648", "9223372036854775807", "9223372036854775808", "1.5", "1.0", "3", "4", "6", "7", "8", "-1",
           "- 5"],
}  # fmt: skip
COLUMNS = [("name", "%s"), ("branch", "%s"), ("id", "%d"), ("score", "%d"), ("ssn", "%s"), ("email", "%s"),
           ("card_number", "%s"), ("created", "%s"), ("mood", "%s")]  # fmt: skip


def _corpus() -> list[str]:
    """Statements with slots for constants, taken and kept ones, alone and beside each other."""
    found = []
    for column, slot in COLUMNS:
        for operator in ("=", "<>", "<", ">=", "IN"):
            value = f"({slot}, {slot})" if operator == "IN" else slot
            found.append(f"SELECT id, name FROM customers WHERE {column} {operator} {value}")
            found.append(f"SELECT id FROM customers WHERE id = %d AND {column} {operator} {value}")
            found.append(f"SELECT %s AS a, %d AS b FROM customers WHERE {column} {operator} {value} LIMIT %d")
            found.append(f"SELECT id, score FROM customers WHERE {column} {operator} {value} ORDER BY 1, %d")
        found += [
            f"SELECT id FROM customers WHERE {column} BETWEEN {slot} AND {slot}",
            f"SELECT id FROM customers WHERE {slot} = {column}",
            f"SELECT id FROM customers WHERE {column}={slot}",
            f"SELECT id FROM customers WHERE({column} = {slot})",
            f"SELECT id FROM customers WHERE {column} = {slot};",
            f"SELECT id FROM customers WHERE {column} = {slot} OFFSET %d",
            f"SELECT id, coalesce(name, %s) FROM customers WHERE {column} = {slot}",
            f"SELECT id FROM customers c WHERE c.{column} = {slot} AND EXISTS (SELECT FROM accounts WHERE id = %d)",
            f"SELECT id FROM customers WHERE {column} = {slot} OR name LIKE %s",
            f"SELECT id FROM customers WHERE {column} = {slot} AND score + %d > %d",
            f"SELECT id FROM customers WHERE {column} = {slot} AND created > date %s",
            f"SELECT id FROM customers WHERE {column} = {slot} AND score = -%d",
            f"SELECT id FROM customers WHERE {column} = {slot} AND score = - %d",
            f"UPDATE customers SET name = %s WHERE {column} = {slot}",
            f"UPDATE customers SET score = %d, email = %s WHERE {column} = {slot}",
            f"UPDATE customers SET score = score + %d WHERE {column} = {slot}",
            f"UPDATE customers SET score = score + -%d WHERE {column} = {slot}",
            f"UPDATE customers SET score = %d - score*%d, email = %s WHERE {column} = {slot}",
            f"UPDATE customers SET score = (score - - %d) * (%d + %d) WHERE {column} = {slot}",
            f"UPDATE customers SET score = abs(score + %d) + %d / 2 WHERE {column} = {slot}",
            f"INSERT INTO customers (id, branch, {column if column not in ('id', 'branch') else 'name'}) "
            f"VALUES (%d, %s, {slot})",
        ]  # fmt: skip
    for expression in (
        *("%d", "%s", "%d + 1", "abs(%d)", "length(%s)", "%s || name", "CASE WHEN id = %d THEN %s END"),
        *("%s::text", "CAST(%d AS text)", "interval %s", "round(%d, %d)", "substring(name, %d)"),
    ):
        found.append(f"SELECT {expression} FROM customers WHERE id = %d")
        found.append(f"SELECT {expression}, count(*) FROM customers WHERE id = %d GROUP BY 1")
    return found


async def test_what_is_looked_up_by_shape_means_what_the_text_means(catalog: Catalog, policy: CountingPolicy) -> None:
    """Every text gets the plan and the values that it gets by itself, whatever text of its shape came before."""

    def make() -> Enforcement:
        return Enforcement(catalog=lambda: catalog, pdp=lambda: policy, provider=PROVIDER, sensitive=SENSITIVE)

    fast, slow = make(), make()
    each = 20 if os.environ.get("GRILLE_LONG") else 3
    source = random.Random(20261125)
    corpus = _corpus()
    assert len(corpus) >= 300
    found = shared = templates = 0
    seen: dict[int, str] = {}
    for statement in corpus:
        for _ in range(each):
            text = re.sub("%[sd]", lambda slot: source.choice(SLOTS[slot[0]]), statement)
            try:
                ready = fast.ready(SERVICE, text.encode())
            except Refusal as refusal:  # pragma: no cover
                raise AssertionError(text) from refusal
            if ready is None:
                continue
            one, values = ready
            found += 1
            shared += id(one) in seen
            seen.setdefault(id(one), text)
            (prepared,) = await slow.prepare(SERVICE, text)
            assert one.plan is not None
            assert prepared.plan is not None
            assert (one.plan.sql, one.plan.parameter_types) == (prepared.plan.sql, prepared.plan.parameter_types), text
            if values is not None:
                templates += 1
                assert tuple(values) == prepared.constants, (text, seen[id(one)])
            assert one.prepared.verdict is not None
            assert prepared.verdict is not None
            assert one.prepared.verdict.values == prepared.verdict.values
            if not one.plan.encode:
                _, filled = await slow.bind(SERVICE, prepared, (), ())
                tail = b"".join(
                    len(value or b"").to_bytes(4, "big") + (value or b"") for value in filled[len(values or ()) :]
                )
                assert one.tail == tail, text
    assert found > 200 * each, found
    assert shared > 10 * each, shared
    assert templates > 150 * each, templates


async def test_a_text_that_is_too_long_is_not_looked_up(catalog: Catalog, policy: CountingPolicy) -> None:
    """The limit holds for every text, not only for the first of its shape."""
    enforcement = Enforcement(
        catalog=lambda: catalog, pdp=lambda: policy, provider=PROVIDER, sensitive=SENSITIVE, max_statement=200
    )
    assert enforcement.ready(SERVICE, b"SELECT id FROM customers WHERE name = 'x'") is not None
    text = f"SELECT id FROM customers WHERE name = '{'x' * 300}'"
    assert enforcement.ready(SERVICE, text.encode()) is None
    with pytest.raises(Refusal):
        await enforcement.prepare(SERVICE, text)


async def test_what_is_looked_up_counts_with_all_that_it_keeps_alive(
    catalog: Catalog, policy: CountingPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grille.proxy.enforcement.CACHED_CHARACTERS", 20_000)
    enforcement = Enforcement(catalog=lambda: catalog, pdp=lambda: policy, provider=PROVIDER, sensitive=SENSITIVE)
    for number in range(100):
        assert enforcement.ready(SERVICE, f"SELECT id AS n{number} FROM customers".encode()) is not None
    kept = [ready.prepared for ready in enforcement._ready._entries.values()]
    assert sum(len(each.understood.text) * 3 + len(each.plan.sql) for each in kept if each.plan is not None) < 20_000
    assert 20 < len(kept) < 100


async def test_what_is_looked_up_ends_with_policy_and_catalogue(
    catalog: Catalog, policy: CountingPolicy, engine: WasmEngine
) -> None:
    now, engine_now = catalog, policy
    enforcement = Enforcement(catalog=lambda: now, pdp=lambda: engine_now, provider=PROVIDER, sensitive=SENSITIVE)
    text = b"SELECT id FROM customers WHERE name = 'x'"

    def look() -> object:
        found = enforcement.ready(SERVICE, text)
        return found and found[0]

    first = look()
    assert first is not None
    assert look() is first
    calls = policy.calls
    assert look() is first
    assert policy.calls == calls
    now = msgspec.structs.replace(catalog, epoch=catalog.epoch + "x")
    second = look()
    assert second is not None
    assert second is not first
    engine_now = CountingPolicy(engine)
    third = look()
    assert third is not second
    other = enforcement.ready(FRAUD, text)
    assert other is None or other[0] is not third
