"""Which rows of the database a result shows, as a real server answers what a real rewriter made of the statement."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator

import msgspec
import psycopg
import pytest

from grille.controls import Refusal
from grille.policies.decision import CachePolicy, Decision, Limits
from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.messages import Field, RowDescription
from grille.proxy.config import Identity
from grille.proxy.demo.cluster import Cluster
from grille.proxy.enforcement import Enforcement
from grille.proxy.identity import Registry, parse_spiffe_id
from grille.proxy.shown import NONE, ONE, Shown, is_counted
from grille.tokenization.embedded import EmbeddedProvider

SCHEMA = """
CREATE TABLE customers (id int PRIMARY KEY, name text, city text, parent int);
CREATE TABLE visits (customer int, day int, note text, PRIMARY KEY (customer, day));
CREATE TABLE loose (a int, b text);
CREATE VIEW everybody AS SELECT id, name FROM customers;
INSERT INTO customers VALUES (1, 'Ada', 'London', NULL), (2, 'Bob', 'Paris', 1), (3, 'Cid', 'Paris', 1);
INSERT INTO visits VALUES (1, 1, 'x'), (1, 2, 'y'), (2, 1, 'z');
INSERT INTO loose VALUES (1, 'x'), (1, 'x');
"""
AGENT = Registry([Identity(spiffe_id="spiffe://bank.example/a", database="bank")]).agent(
    parse_spiffe_id("spiffe://bank.example/a"), not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
)


class Everything:
    """Allows all rows of everything."""

    revision = "1"

    def decide(self, document: bytes) -> Decision:
        relations = msgspec.json.decode(document)["operation"]["relations"]
        return Decision(
            allow=True, control="AC-01", reason="", passthrough=False,
            filters={f"{each['schema']}.{each['name']}": True for each in relations},
            columns={}, limits=Limits(distinct_keys_per_hour=10), locks=True, isolated=False,
            not_before=None, not_after=None, cache=CachePolicy(60.0),
        )  # fmt: skip


class Bank:
    """Runs a statement as Grille would, and counts what it shows."""

    def __init__(self, cluster: Cluster, database: str, catalog: Catalog) -> None:
        self.dsn = cluster.dsn(database) + " options='-c search_path=pg_catalog'"
        self.enforcement = Enforcement(
            catalog=lambda: catalog, pdp=Everything, provider=EmbeddedProvider([], []), sensitive={},
        )  # fmt: skip
        self.shown = Shown(lambda: catalog)

    async def count(self, sql: str, *, describe: bool = True) -> tuple[set[str], int]:
        """The keys, and how many more; ``describe``: the server has told where the columns come from."""
        (prepared,) = await self.enforcement.prepare(AGENT, sql, (), simple=True)
        plan = prepared.plan
        assert plan is not None
        if not is_counted(prepared):
            return set(), 0
        self.shown.rows(plan)
        _, values = await self.enforcement.bind(AGENT, prepared, (), ())
        with psycopg.connect(self.dsn) as connection:
            connection.execute("BEGIN")
            result = connection.pgconn.exec_params(plan.sql.encode(), values, plan.parameter_types)
            if not plan.returns_rows:
                connection.rollback()
                return set(), self.shown.copied(prepared, result.command_tuples or 0)
            assert result.status == psycopg.pq.ExecStatus.TUPLES_OK, result.error_message
            fields = tuple(
                Field(str(result.fname(n)), result.ftype(n), table_oid=result.ftable(n), column=result.ftablecol(n))
                for n in range(result.nfields)
            )
            columns = range(plan.hidden_columns, result.nfields)
            rows = [[result.get_value(row, n) for n in columns] for row in range(result.ntuples)]
            connection.rollback()
        if describe:
            self.shown.describe(plan, RowDescription(fields).encode()[5:])
        assert self.shown.described(plan) == describe
        relations = {each.oid: each.name for each in self.shown._catalog().relations.values()}

        def named(relation: int, values: list[bytes]) -> bytes:
            return f"{relations[relation]} {b'/'.join(values).decode()}".encode()

        found, more = self.shown.count(plan, rows, named)
        return {key.decode() for key in found}, more


@pytest.fixture(scope="module")
def bank(pg18: Cluster, snapshot_of: Callable[[Cluster, str], Catalog]) -> Iterator[Bank]:
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE shown")
    with psycopg.connect(pg18.dsn("shown")) as connection:
        connection.execute(SCHEMA)
    yield Bank(pg18, "shown", snapshot_of(pg18, "shown"))
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute("DROP DATABASE shown WITH (FORCE)")


C = {"customers 1", "customers 2", "customers 3"}
V = {"visits 1/1", "visits 1/2", "visits 2/1"}
COUNTED: dict[str, tuple[set[str], int]] = {
    # the key is shown
    "SELECT id, name FROM customers": (C, 0),
    "SELECT name, id AS x FROM customers WHERE id = 2": ({"customers 2"}, 0),
    "SELECT * FROM customers": (C, 0),
    "SELECT id, id FROM customers": (C, 0),
    "SELECT day, note, customer FROM visits": (V, 0),
    "SELECT c.id, v.customer, v.day FROM customers c JOIN visits v ON v.customer = c.id": ({*V, "customers 1",
                                                                                          "customers 2"}, 0),
    "SELECT a.id, b.id FROM customers a, customers b WHERE b.parent = a.id": (C, 0),
    "SELECT x.id FROM (SELECT id, name FROM customers ORDER BY name LIMIT 2) x": ({"customers 1", "customers 2"}, 0),
    "WITH c AS (SELECT id FROM customers) SELECT c.id FROM c": (C, 0),
    "SELECT id FROM customers ORDER BY (SELECT count(*) FROM visits WHERE customer = id), id": (C, 0),
    "SELECT id FROM customers c WHERE EXISTS (SELECT 1 FROM visits WHERE customer = c.id)": (
        {"customers 1", "customers 2"}, 0,
    ),
    "SELECT id, EXISTS (SELECT 1 FROM visits WHERE customer = c.id) FROM customers c": (C, 0),
    "SELECT id FROM customers FOR UPDATE OF customers": (C, 0),
    "SELECT id, count(*) FROM customers GROUP BY id": (C, 0),
    "COPY customers (name, id) TO STDOUT": (C, 0),
    # it is not
    "COPY (SELECT name FROM customers) TO STDOUT": (set(), 3),
    "SELECT row_to_json(c) FROM customers c": (set(), 3),
    "SELECT name FROM customers": (set(), 3),
    "SELECT id + 0 FROM customers": (set(), 3),
    "SELECT id::text FROM customers": (set(), 3),
    "SELECT customer, note FROM visits": (set(), 3),
    "SELECT DISTINCT city FROM customers": (set(), 2),
    "SELECT a, b FROM loose": (set(), 2),
    "SELECT id FROM customers UNION ALL SELECT id FROM customers": (set(), 6),
    "SELECT id, name FROM everybody": (set(), 3),
    # some is
    "SELECT c.id, v.note FROM customers c JOIN visits v ON v.customer = c.id": ({"customers 1", "customers 2"}, 3),
    "SELECT a.id, a.id, b.name FROM customers a, customers b WHERE a.id = 1": ({"customers 1"}, 3),
    "SELECT a.id, b.id, c.name FROM customers a, customers b, customers c WHERE a.id = 1 AND b.id = 2": (
        {"customers 1", "customers 2"}, 3,
    ),
    "SELECT c.id, v.customer, v.day FROM customers c LEFT JOIN visits v ON v.customer = c.id WHERE c.id = 3": (
        {"customers 3"}, 1,
    ),
    "SELECT id, (SELECT note FROM visits WHERE customer = id AND day = 1) FROM customers": (C, 3),
    "SELECT id, lag(name) OVER (ORDER BY id) FROM customers": (C, 3),
    "SELECT v.customer, v.day, w.customer, w.day FROM visits v, visits w WHERE v.day = 2 AND w.day = 2": (set(), 2),
    # many rows are behind one
    "SELECT count(*) FROM customers": (set(), 1),
    "SELECT city, count(*), sum(id), min(name), max(name) FROM customers GROUP BY city": (set(), 6),
    "WITH a AS (SELECT x.name p, y.name q FROM customers x, customers y), b AS (SELECT s.p, t.q FROM a s, a t) "
    "SELECT u.p, w.q FROM b u, b w LIMIT 1": (set(), 8),
    # nothing is shown
    "SELECT 1": (set(), 0),
    "SELECT n FROM generate_series(1, 5) n": (set(), 0),
    "SELECT id FROM customers WHERE id > 99": (set(), 0),
    "SELECT relname FROM pg_catalog.pg_class LIMIT 3": (set(), 0),
    "SELECT c.relname, ARRAY(SELECT attname FROM pg_attribute WHERE attrelid = c.oid) FROM pg_class c": (set(), 0),
    "SELECT string_agg(table_name, ',') FROM information_schema.tables": (set(), 0),
    # writes
    "INSERT INTO customers (id, name) VALUES (7, 'Gil'), (8, 'Hal') RETURNING id": ({"customers 7", "customers 8"}, 0),
    "INSERT INTO customers (id, name) SELECT id + 10, name FROM customers RETURNING name": (set(), 6),
    "UPDATE customers SET city = 'Rome' WHERE id < 3 RETURNING id, name": ({"customers 1", "customers 2"}, 0),
    "UPDATE customers SET city = v.note FROM visits v WHERE v.customer = id AND v.day = 1 RETURNING name": (set(), 4),
    "DELETE FROM visits RETURNING customer, day": (V, 0),
    # writes that return nothing
    "INSERT INTO customers (id, name) VALUES (7, 'Gil'), (8, 'Hal')": (set(), 0),
    "INSERT INTO customers (id, name) SELECT id + 10, name FROM customers": (set(), 3),
    "INSERT INTO customers (id, name) SELECT a.id + 10 * b.id, a.name || b.name FROM customers a, customers b": (
        set(), 18,
    ),
    "UPDATE customers SET city = 'Rome', parent = parent + 1": (set(), 0),
    "UPDATE customers SET name = name || (SELECT note FROM visits WHERE customer = 2)": (set(), 3),
    "UPDATE customers SET city = v.note FROM visits v WHERE v.customer = id AND v.day = 1": (set(), 2),
    "UPDATE customers SET city = 'Rome' WHERE id IN (SELECT customer FROM visits)": (set(), 0),
    "DELETE FROM visits USING customers WHERE customer = id": (set(), 0),
}  # fmt: skip


@pytest.mark.parametrize("sql", COUNTED)
async def test_what_a_result_shows(bank: Bank, sql: str) -> None:
    assert await bank.count(sql) == COUNTED[sql]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT string_agg(name, ',') FROM customers",
        "SELECT x.all FROM (SELECT array_agg(id) AS all FROM customers) x",
        "SELECT json_agg(name) FROM customers",
        "SELECT json_agg(c) FROM customers c",
        "COPY (SELECT string_agg(name, ',') FROM customers) TO STDOUT",
        "SELECT jsonb_object_agg(id, name) FROM customers",
        "SELECT ARRAY(SELECT name FROM customers)",
        "SELECT id, ARRAY(SELECT note FROM visits WHERE customer = id) FROM customers",
        "SELECT array_agg(name) OVER () FROM customers",
        "SELECT percentile_disc('{0,0.5,1}'::float8[]) WITHIN GROUP (ORDER BY name) FROM customers",
        "WITH RECURSIVE r(n, t) AS (SELECT 0, '' UNION ALL SELECT n + 1, t || name FROM r JOIN customers ON id = n + 1)"
        " SELECT t FROM r",
        "WITH g AS (SELECT string_agg(name, ',') AS t FROM customers) SELECT t FROM g",
        "SELECT unnest(array_agg(name)) FROM customers",
        "UPDATE customers SET name = (SELECT string_agg(note, '') FROM visits) RETURNING name",
        "UPDATE customers SET name = (SELECT string_agg(note, '') FROM visits)",
        "INSERT INTO customers (id, name) SELECT 9, string_agg(note, '') FROM visits",
    ],
)
async def test_what_gathers_many_rows_in_one_is_refused(bank: Bank, sql: str) -> None:
    with pytest.raises(Refusal, match="cannot be counted") as refused:
        await bank.count(sql)
    assert (refused.value.control, refused.value.sqlstate) == ("AC-06", "42501")
    assert refused.value.hint


async def test_rows_are_counted_while_the_server_has_not_told_of_the_columns(bank: Bank) -> None:
    assert await bank.count("SELECT id, city, name FROM customers", describe=False) == (set(), 3)


def test_every_aggregate_and_window_function_is_sorted(bank: Bank) -> None:
    """A function of a newer server that nobody has looked at is refused, not taken for harmless."""
    bank.shown._follow()
    assert bank.shown._gathering >= NONE | ONE - {"any_value"}
    assert not NONE & ONE
    gathering = {name for name in bank.shown._gathering if name.endswith("_agg")}
    assert len(gathering) >= 8
    assert not gathering & (NONE | ONE)
