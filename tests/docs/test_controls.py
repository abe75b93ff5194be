"""Controls that other tests exercise without naming them: WP-05, ST-07, RO-01, CO-01, UP-02."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psycopg
import pytest

import grille.policies.bundles
from grille.controls import Refusal
from grille.policies import bundle
from grille.policies.decision import Decision
from grille.policies.wasm import WasmEngine
from grille.protocols.postgres import tree
from grille.protocols.postgres.analysis import Sensitive
from grille.protocols.postgres.rewrite import Transform
from grille.proxy.catalog import read_catalog
from grille.proxy.config import Identity
from grille.proxy.demo.cluster import Cluster
from grille.proxy.enforcement import Enforcement
from grille.proxy.errors import scrubbed_fields
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.proxy.services import CancelTable
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.transformation import Key, Transformation

DEMO = Path(grille.policies.bundles.__file__).parent / "demo.tar.gz"
TELLER = "spiffe://bank.example/ns/branch/sa/teller"
DATABASE = "controls"
SSN = Transformation("ssn", "fpe", "ssn", "fpe", "digits", r"(\d{3})-(\d{2})-(\d{4})")
LEAK = """
CREATE FUNCTION leak(score int) RETURNS bool LANGUAGE plpgsql STABLE COST 0.00000001
AS $$BEGIN IF score = 0 THEN RAISE EXCEPTION 'a hidden row was seen'; END IF; RETURN true; END$$
"""
"""So cheap that the server runs it before any other condition, if it may."""


class ForgetfulPolicy:
    """The demo's engine, whose answers name no column."""

    def __init__(self) -> None:
        self._engine = WasmEngine(bundle.read(DEMO), "grille/decision", timeout=5)
        self.revision = self._engine.revision

    def decide(self, document: bytes) -> Decision:
        return msgspec.structs.replace(self._engine.decide(document), columns={})


@pytest.fixture(scope="module")
def cluster(pg18: Cluster) -> Iterator[Cluster]:
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    with psycopg.connect(pg18.dsn(DATABASE)) as connection:
        connection.execute("CREATE TABLE customers(id int PRIMARY KEY, branch text, ssn text, score int)")
        connection.execute("INSERT INTO customers VALUES (1, '0042', 'a', 5), (2, '0011', 'b', 0), (3, NULL, 'c', 0)")
        connection.execute(LEAK)
    yield pg18
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture(scope="module")
def enforcement(cluster: Cluster) -> Enforcement:
    async def read() -> Any:
        connection = await asyncpg.connect(host=cluster.host, user="postgres", database=DATABASE)
        try:
            return await read_catalog(connection)
        finally:
            await connection.close()

    catalog = asyncio.run(read())
    policy = ForgetfulPolicy()
    return Enforcement(
        catalog=lambda: catalog,
        pdp=lambda: policy,
        provider=EmbeddedProvider([SSN], [Key("fpe", 1, bytes(32))]),
        sensitive={"public.customers.ssn": Sensitive("ssn", "ssn")},
        functions=["public.leak(integer)"],
    )


@pytest.fixture(scope="module")
def teller() -> Agent:
    identity = Identity(spiffe_id=TELLER, database="bank", attributes={"branch": "0042"})
    return Registry([identity]).agent(parse_spiffe_id(TELLER))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id FROM customers WHERE public.leak(score)",
        "SELECT a.id FROM customers a JOIN customers b ON public.leak(b.score) AND a.id = b.id",
        "SELECT q.id FROM (SELECT id, score FROM customers) q WHERE public.leak(q.score)",
        "SELECT q.id FROM (SELECT id, public.leak(score) AS seen FROM customers) q WHERE q.seen",
        "SELECT id FROM customers c WHERE id IN (SELECT d.id FROM customers d WHERE public.leak(d.score))",
    ],
)
async def test_ro_01_no_expression_of_the_agent_sees_a_hidden_row(
    sql: str, enforcement: Enforcement, teller: Agent, cluster: Cluster
) -> None:
    """RO-01: the hidden rows have a score of 0; a function that saw one would raise."""
    (prepared,) = await enforcement.prepare(teller, sql, simple=True)
    _, values = await enforcement.bind(teller, prepared, (), ())
    assert prepared.plan is not None
    with psycopg.connect(cluster.dsn(DATABASE)) as connection:
        with pytest.raises(psycopg.errors.RaiseException):
            connection.execute(sql)  # type: ignore[call-overload]
        connection.rollback()
        cursor = psycopg.RawCursor(connection)
        texts = [None if value is None else value.decode() for value in values]
        assert cursor.execute(prepared.plan.sql, texts).fetchall() == [(1,)]  # type: ignore[arg-type]


async def test_co_01_a_column_that_the_decision_forgets_is_masked(enforcement: Enforcement, teller: Agent) -> None:
    """CO-01"""
    (prepared,) = await enforcement.prepare(teller, "SELECT id, ssn FROM customers", simple=True)
    assert prepared.plan is not None
    assert prepared.plan.results == (None, Transform(None, "null"))
    assert await enforcement.release(teller, prepared, [[b"1", b"a"]], ()) == [[b"1", None]]


async def test_st_07_only_text_that_parses_back_is_forwarded(
    enforcement: Enforcement, teller: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ST-07: a deparser that leaves a condition out is found out."""
    right = tree.text_of
    monkeypatch.setattr(tree, "text_of", lambda statement: right(statement).replace(" WHERE ", " WHERE true OR ", 1))
    with pytest.raises(Refusal) as refused:
        await enforcement.prepare(teller, "SELECT id FROM customers", simple=True)
    assert refused.value.control == "ST-07"


def test_up_02_the_words_of_the_server_do_not_pass() -> None:
    """UP-02"""
    fields = {
        "S": "ERROR", "V": "ERROR", "C": "22P02", "M": 'invalid input syntax for type integer: "900-01-7920"',
        "D": "hidden", "W": "hidden", "s": "public", "t": "customers", "c": "ssn", "n": "customers_ssn_key",
    }  # fmt: skip
    told = scrubbed_fields(fields, lambda schema, relation, column: False)
    assert told["C"] == "22P02"
    assert set(told) == {"S", "V", "C", "M"}
    assert "900-01-7920" not in told["M"]


class _Running:
    """Stands for a session that has a statement in flight."""

    cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def test_wp_05_a_cancel_request_reaches_only_the_owner_of_its_key() -> None:
    """WP-05"""
    mine, other = _Running(), _Running()
    forwarded: list[tuple[int, int, bytes]] = []
    cancels = CancelTable(3, lambda *request: forwarded.append(request))
    key, _ = cancels.add(mine, 32), cancels.add(other, 32)  # type: ignore[arg-type]
    assert not cancels.cancel(key.process_id, bytes(32))
    assert not cancels.cancel(key.process_id + 100, key.secret)
    assert (mine.cancelled, other.cancelled, forwarded) == (0, 0, [])
    assert cancels.cancel(key.process_id, key.secret)
    assert (mine.cancelled, other.cancelled) == (1, 0)
    cancels.remove(key)
    assert not cancels.cancel(key.process_id, key.secret)
    assert mine.cancelled == 1
