"""Catalogue snapshots of real servers, and how changes are noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import psycopg
import pytest

from grille.protocols.postgres.catalog import Catalog, UniqueKey
from grille.proxy.authority import Authority
from grille.proxy.catalog import READ_FAILURES, CatalogWatch, connect, read_catalog
from grille.proxy.config import Database
from grille.proxy.demo.cluster import Cluster, debian_binaries

SCHEMA = """
CREATE SCHEMA bank;
CREATE TYPE bank.state AS ENUM ('open', 'closed');
CREATE DOMAIN bank.iban AS text CHECK (length(VALUE) > 5);
CREATE TABLE bank.account (
    id int PRIMARY KEY,
    owner text NOT NULL,
    iban bank.iban UNIQUE,
    opened date DEFAULT now(),
    twice int GENERATED ALWAYS AS (id * 2) STORED,
    gone int,
    UNIQUE (owner, opened)
);
ALTER TABLE bank.account DROP COLUMN gone;
CREATE UNIQUE INDEX partial ON bank.account (owner) WHERE id > 5;
CREATE UNIQUE INDEX expression ON bank.account (lower(owner));
CREATE TABLE bank.child () INHERITS (bank.account);
CREATE TABLE bank.part (tenant int, note text) PARTITION BY LIST (tenant);
CREATE TABLE bank.part_2 PARTITION OF bank.part FOR VALUES IN (2);
CREATE VIEW bank.open_accounts AS SELECT id FROM bank.account;
CREATE MATERIALIZED VIEW bank.stored AS SELECT id FROM bank.account;
CREATE FUNCTION bank.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touched BEFORE INSERT ON bank.child FOR EACH ROW EXECUTE FUNCTION bank.touch();
CREATE RULE redirected AS ON DELETE TO bank.part_2 DO INSTEAD NOTHING;
CREATE FUNCTION bank.rate(int, VARIADIC rest text[] DEFAULT '{}') RETURNS SETOF int
    LANGUAGE sql STABLE SECURITY DEFINER AS 'SELECT 1';
CREATE FUNCTION bank.newer(int) RETURNS int LANGUAGE sql RETURN $1;
CREATE TYPE bank.span AS RANGE (subtype = int4);
"""


def database(cluster: Cluster, name: str, **more: object) -> Database:
    return Database(
        name="bank", host=cluster.host, port=cluster.port, database=name, role="postgres", tls="off", **more
    )  # type: ignore[arg-type]


def run(cluster: Cluster, name: str, *statements: str) -> None:
    with psycopg.connect(cluster.dsn(name), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def bank(server: Cluster, fresh_database: Callable[[Cluster], str]) -> tuple[Cluster, str]:
    name = fresh_database(server)
    run(server, name, SCHEMA)
    return server, name


@pytest.fixture
async def watched(bank: tuple[Cluster, str]) -> AsyncIterator[tuple[CatalogWatch, Callable[[str], None], list[str]]]:
    """A watch with its first snapshot, a way to run DDL, and the events so far."""
    cluster, name = bank
    events: list[str] = []
    watch = CatalogWatch(database(cluster, name), lambda event, _text: events.append(event))
    await watch.refresh()
    yield watch, lambda statement: run(cluster, name, statement), events
    await watch.close()


async def snapshot(cluster: Cluster, name: str) -> Catalog:
    connection = await connect(database(cluster, name))
    try:
        return await read_catalog(connection)
    finally:
        await connection.close()


async def test_what_a_snapshot_holds(bank: tuple[Cluster, str]) -> None:
    catalog = await snapshot(*bank)
    relations = catalog.relations
    assert catalog.database == bank[1]
    assert catalog.server_version // 10000 in (15, 18)
    assert {key for key in relations if key[0] == "bank"} == {
        ("bank", name) for name in ("account", "child", "part", "part_2", "open_accounts", "stored")
    }
    account = relations["bank", "account"]
    assert [column.name for column in account.columns] == ["id", "owner", "iban", "opened", "twice"]
    assert [column.number for column in account.columns] == [1, 2, 3, 4, 5]
    assert [column.not_null for column in account.columns] == [True, True, False, False, False]
    assert [column.has_default for column in account.columns] == [False, False, False, True, True]
    assert [column.generated for column in account.columns] == ["", "", "", "", "s"]
    assert account.unique_keys == (
        UniqueKey("account_pkey", ("id",), (23,)),
        UniqueKey("account_iban_key", ("iban",), (25,)),
        UniqueKey("account_owner_opened_key", ("owner", "opened"), (25, 1082)),
    )
    assert (account.kind, account.has_triggers, account.has_rules, account.definition_hash) == ("r", False, False, "")
    assert catalog.types[account.row_type].relation == account.oid
    assert relations["bank", "child"].parents == (account.oid,)
    assert relations["bank", "child"].has_triggers
    assert relations["bank", "part"].kind == "p"
    assert relations["bank", "part_2"].parents == (relations["bank", "part"].oid,)
    assert relations["bank", "part_2"].has_rules
    view = relations["bank", "open_accounts"]
    assert (view.kind, view.has_rules) == ("v", False)
    assert view.definition_hash
    assert relations["bank", "stored"].kind == "m"
    assert ("pg_catalog", "pg_class") in relations

    types = {kind.name: kind for kind in catalog.types.values() if kind.schema == "bank"}
    assert types["state"].kind == "e"
    assert (types["iban"].kind, types["iban"].base, types["iban"].checked) == ("d", 25, True)
    assert (types["span"].kind, types["span"].subtype) == ("r", 23)
    assert [kind.subtype for kind in types.values() if kind.kind == "m"] == [types["span"].oid]
    assert catalog.types[1007].element == 23
    assert catalog.types[23].array == 1007
    assert catalog.types[19].element == 0

    functions = {function.name: function for function in catalog.functions.values() if function.schema == "bank"}
    rate = functions["rate"]
    assert (rate.arguments, rate.defaults, rate.variadic, rate.result) == ((23, 1009), 1, 25, 23)
    assert (rate.returns_set, rate.volatility, rate.security_definer, rate.kind) == (True, "s", True, "f")
    assert rate.source_hash
    assert functions["newer"].source_hash != functions["rate"].source_hash
    assert catalog.functions[65].source_hash == ""
    assert catalog.operators[96].function == 65
    assert (catalog.casts[23, 20].context, catalog.casts[23, 20].method) == ("i", "f")


async def test_the_epoch_depends_on_the_content_alone(bank: tuple[Cluster, str]) -> None:
    cluster, name = bank
    first = await snapshot(cluster, name)
    assert (await snapshot(cluster, name)).epoch == first.epoch
    run(cluster, name, "INSERT INTO bank.account (id, owner) VALUES (1, 'x')", "ANALYZE", "VACUUM bank.account")
    assert (await snapshot(cluster, name)).epoch == first.epoch
    run(cluster, name, "ALTER TABLE bank.account ADD COLUMN note text")
    assert (await snapshot(cluster, name)).epoch != first.epoch


async def test_two_servers_with_the_same_content_have_different_epochs(
    pg18: Cluster, fresh_database: Callable[[Cluster], str], tmp_path: Path
) -> None:
    name = fresh_database(pg18)
    with Cluster(pg18._binaries) as other:
        run(other, "postgres", f"CREATE DATABASE {name}")
        one, two = await snapshot(pg18, name), await snapshot(other, name)
    assert one.relations == two.relations
    assert one.epoch != two.epoch


DDL = [
    "CREATE TABLE bank.more (id int)",
    "DROP VIEW bank.open_accounts",
    "ALTER TABLE bank.account ADD COLUMN note text",
    "ALTER TABLE bank.account RENAME COLUMN owner TO holder",
    "ALTER TABLE bank.account RENAME TO accounts",
    "ALTER TABLE bank.part ALTER COLUMN note TYPE varchar(9)",
    "ALTER TABLE bank.account ALTER COLUMN opened DROP DEFAULT",
    "ALTER TABLE bank.account DROP CONSTRAINT account_pkey",
    "ALTER TABLE bank.part DETACH PARTITION bank.part_2",
    "ALTER TABLE bank.child NO INHERIT bank.account",
    "ALTER SCHEMA bank RENAME TO banking",
    "CREATE UNIQUE INDEX ON bank.account (twice)",
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'bank.account_pkey'::regclass",
    "ALTER TABLE bank.account DROP CONSTRAINT account_iban_key",
    "ALTER INDEX bank.account_pkey RENAME TO renamed",
    "ALTER TABLE bank.account ENABLE ROW LEVEL SECURITY",
    "CREATE TRIGGER more BEFORE UPDATE ON bank.account FOR EACH ROW EXECUTE FUNCTION bank.touch()",
    "DROP TRIGGER touched ON bank.child",
    "DROP RULE redirected ON bank.part_2",
    "CREATE OR REPLACE VIEW bank.open_accounts AS SELECT id FROM bank.account WHERE id > 5",
    "CREATE FUNCTION bank.other() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION bank.newer(int) RETURNS int LANGUAGE sql RETURN $1 + 1",
    "ALTER FUNCTION bank.newer(int) SECURITY DEFINER",
    "ALTER FUNCTION bank.newer(int) SET search_path = bank",
    "CREATE TYPE bank.extra AS ENUM ('x')",
    "ALTER DOMAIN bank.iban DROP CONSTRAINT iban_check",
    "CREATE CAST (bank.state AS int) WITH INOUT",
    "ALTER FUNCTION pg_catalog.textlike(text, text) LEAKPROOF",
    "CREATE OPERATOR pg_catalog.=== (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int)",
]


@pytest.mark.parametrize("statement", DDL)
async def test_ddl_is_noticed(pg18: Cluster, fresh_database: Callable[[Cluster], str], statement: str) -> None:
    name = fresh_database(pg18)
    run(pg18, name, SCHEMA)
    events: list[str] = []
    watch = CatalogWatch(database(pg18, name), lambda event, _text: events.append(event))
    try:
        before = await watch.refresh()
        with psycopg.connect(pg18.dsn(name)) as connection:
            connection.execute("SET allow_system_table_mods = on")
            connection.execute(statement)
            assert await watch.refresh() is before
            connection.commit()
        after = await watch.refresh()
        assert after.epoch != before.epoch
        assert watch.current is after
        assert events == ["catalogue"]
    finally:
        await watch.close()


async def test_a_change_that_commits_after_a_later_one_is_noticed(
    watched: tuple[CatalogWatch, Callable[[str], None], list[str]], bank: tuple[Cluster, str]
) -> None:
    watch, ddl, _ = watched
    cluster, name = bank
    with psycopg.connect(cluster.dsn(name)) as slow:
        slow.execute("ALTER TABLE bank.child RENAME TO renamed")
        ddl("CREATE TABLE bank.faster (id int)")
        middle = await watch.refresh()
        assert ("bank", "faster") in middle.relations
        assert ("bank", "child") in middle.relations
    assert ("bank", "renamed") in (await watch.refresh()).relations


async def test_what_changes_nothing_that_a_snapshot_holds_is_no_event(
    watched: tuple[CatalogWatch, Callable[[str], None], list[str]], bank: tuple[Cluster, str]
) -> None:
    watch, ddl, events = watched
    before = watch.current
    for statement in ("TRUNCATE bank.account CASCADE", "GRANT SELECT ON bank.account TO public", "REINDEX SCHEMA bank"):
        ddl(statement)
        assert (await watch.refresh()).epoch == before.epoch
    with psycopg.connect(bank[0].dsn(bank[1]), autocommit=True) as other:
        kept = await watch.refresh()
        other.execute("CREATE TEMP TABLE account (id int PRIMARY KEY)")
        assert await watch.refresh() is kept
    assert events == []


async def test_the_old_snapshot_stays_while_the_server_is_away(
    watched: tuple[CatalogWatch, Callable[[str], None], list[str]], bank: tuple[Cluster, str]
) -> None:
    watch, ddl, events = watched
    before = watch.current
    cluster, name = bank
    run(cluster, "postgres", f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # fmt: skip
    for _ in range(3):
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await watch.refresh()
    assert watch.current is before
    assert watch.ready
    run(cluster, "postgres", f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    ddl("CREATE TABLE bank.late (id int)")
    assert ("bank", "late") in (await watch.refresh()).relations
    assert events == ["catalogue"]


async def test_a_first_snapshot_that_cannot_be_read_leaves_nothing_in_force(pg18: Cluster) -> None:
    watch = CatalogWatch(database(pg18, "absent"))
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await watch.refresh()
    assert not watch.ready
    with pytest.raises(RuntimeError):
        watch.current  # noqa: B018


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"R\0\0\0\x08\0\0\0\x63",
        b"R\0\0\0\x06\0\0",
        b"R\0\0\0\x08\0\0\0\x05",
        b"R\0\0\0\x08\0\0\0\0K\0\0\0\x04Z\0\0\0\x05I",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_a_server_that_answers_out_of_turn_is_one_that_cannot_be_read(answer: bytes) -> None:
    """A server that goes down while asyncpg logs in ends in errors of several families, each met by the worker."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        watch = CatalogWatch(
            Database(name="bank", host=host, port=port, database="x", role="x", tls="off", connect_timeout=5.0)
        )
        with pytest.raises(READ_FAILURES):
            await watch.refresh()
        assert not watch.ready
        await watch.close()


async def test_callers_that_wait_share_one_look(
    watched: tuple[CatalogWatch, Callable[[str], None], list[str]], bank: tuple[Cluster, str]
) -> None:
    watch, ddl, events = watched
    ddl("CREATE TABLE bank.shared (id int)")
    found = await asyncio.gather(*(watch.refresh() for _ in range(50)))
    assert len({id(catalog) for catalog in found}) == 1
    assert ("bank", "shared") in found[0].relations
    assert events == ["catalogue"]
    assert watch._finished <= 4


async def test_a_role_without_rights_reads_the_same_catalogue(bank: tuple[Cluster, str]) -> None:
    cluster, name = bank
    run(cluster, name, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public", "DROP ROLE IF EXISTS plain",
        "CREATE ROLE plain LOGIN")  # fmt: skip
    connection = await asyncpg.connect(host=cluster.host, port=cluster.port, user="plain", database=name)
    try:
        catalog = await read_catalog(connection)
    finally:
        await connection.close()
    run(cluster, name, "DROP ROLE plain")
    full = await snapshot(cluster, name)
    assert catalog.relations == full.relations
    assert catalog.functions == full.functions
    assert catalog.epoch != full.epoch


async def test_the_connection_uses_tls_and_checks_the_host(tmp_path: Path) -> None:
    binaries = debian_binaries(15)
    if binaries is None:
        pytest.skip("Debian's PostgreSQL 15 (the one with TLS) is not installed")
    ours, other = Authority("bank.example"), Authority("bank.example")
    ours.write_bundle(tmp_path / "ca.pem")
    other.write_bundle(tmp_path / "other.pem")
    issued = ours.issue("database", ips=("127.0.0.1",))
    (tmp_path / "server.pem").write_bytes(issued.certificate_pem)
    (tmp_path / "server.key").write_bytes(issued.key_pem)
    (tmp_path / "password").write_text("p\u00e4ss\n", encoding="utf-8")
    files = tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem"
    with Cluster(binaries, tls=files, hba=["hostssl all all all scram-sha-256"]) as cluster:
        run(cluster, "postgres", "CREATE ROLE reader LOGIN PASSWORD 'p\u00e4ss'")

        def settings(**more: object) -> Database:
            given = {"host": "127.0.0.1", "ca": tmp_path / "ca.pem", "password_file": tmp_path / "password", **more}
            return Database(name="bank", port=cluster.port, database="postgres", role="reader", **given)  # type: ignore[arg-type]

        connection = await connect(settings())
        try:
            query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert await connection.fetchval(query) is True
            assert (await read_catalog(connection)).database == "postgres"
        finally:
            await connection.close()
        for wrong in ({"ca": tmp_path / "other.pem"}, {"host": "localhost"}):
            with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
                await connect(settings(**wrong))


async def test_where_a_column_s_values_come_from(server: Cluster, fresh_database: Callable[[Cluster], str]) -> None:
    """Generated columns, through each other's expressions, and foreign keys, column by column."""
    name = fresh_database(server)
    run(
        server,
        name,
        "CREATE TABLE a (id int, mail text, other text, UNIQUE (id, mail), "
        "lower text GENERATED ALWAYS AS (lower(mail)) STORED, pair text GENERATED ALWAYS AS (mail || other) STORED, "
        "fixed int GENERATED ALWAYS AS (1 + 1) STORED)",
        "CREATE TABLE b (key int, receiver text, own text, FOREIGN KEY (receiver, key) REFERENCES a (mail, id))",
    )
    with psycopg.connect(server.dsn(name)) as owner:
        newest = owner.info.server_version >= 180000
    if newest:
        run(server, name, "ALTER TABLE a ADD COLUMN virtual text GENERATED ALWAYS AS (upper(other)) VIRTUAL")
    connection = await connect(database(server, name))
    try:
        catalog = await read_catalog(connection)
    finally:
        await connection.close()
    found = {
        f"{table}.{column.name}": column.sources
        for table in "ab"
        for column in catalog.relations["public", table].columns
        if column.sources
    }
    virtual = {"a.virtual": ("public.a.other",)} if newest else {}
    assert found == virtual | {
        "a.lower": ("public.a.mail",),
        "a.pair": ("public.a.mail", "public.a.other"),
        "b.key": ("public.a.id",),
        "b.receiver": ("public.a.mail",),
    }
