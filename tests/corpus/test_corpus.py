"""Statements that clients really send: through Grille they end as they do around it, or are denied with a control."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from grille.policies.bundles.build import DEMO
from grille.proxy.authority import Authority, write_signing_key
from grille.proxy.demo.cluster import Cluster, debian_binaries
from tests.bundles import with_data
from tests.corpus.replay import CAPTURED, HIDDEN, SOURCES, Tally, replay, table
from tests.e2e.served import DEADLINE, Served

CONFIG = """
[listener]
port = 0
certificate = "{directory}/identity/server.pem"
key = "{directory}/identity/server.key"
[admin]
port = 0
[process]
workers = 2
[[trust_domains]]
name = "bank.example"
bundle = "{directory}/identity/ca.pem"
{parts}
[policy]
bundle = "{directory}/policy.tar.gz"
[audit]
directory = "{directory}/audit"
signing_key = "{directory}/signing.pem"
reads = "process"
"""
PART = """
[[identities]]
spiffe_id = "spiffe://bank.example/{name}"
database = "{name}"
[[databases]]
name = "{name}"
host = "{host}"
port = {port}
database = "agent_{name}"
role = "shop_agent"
tls = "off"
"""


def policy(tables: list[str]) -> bytes:
    """The demo's policy: every source's agent may do everything with these tables."""
    grant = {"access": ["read", "insert", "update", "delete", "lock"], "rows": "all"}
    role = {"relations": dict.fromkeys(tables, grant), "columns": {}, "limits": {}, "locks": True}
    agents = {f"spiffe://bank.example/{source}": "shop" for source in SOURCES}
    return with_data(DEMO.read_bytes(), {"agents": agents, "staff_only": [], "roles": {"shop": role}}, "corpus")


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tally]]:
    """Every source, replayed on PostgreSQL 15, which it was captured on."""
    binaries = debian_binaries(15)
    if binaries is None:
        pytest.skip("Debian's postgresql-15 is not installed, which the statements were captured on")
    directory = tmp_path_factory.mktemp("corpus")
    identity = directory / "identity"
    identity.mkdir(mode=0o700)
    authority = Authority("bank.example")
    authority.write_bundle(identity / "ca.pem")
    authority.issue_server().write(identity, "server")
    write_signing_key(directory / "signing.pem")
    with Cluster(binaries) as cluster:
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE shop_agent LOGIN")
            for source in SOURCES:
                authority.issue(source).write(identity, source)
                for side in ("agent", "owner"):
                    connection.execute(f'CREATE DATABASE "{side}_{source}"')
        tables: list[str] = []
        for source in SOURCES:
            for side in ("agent", "owner"):
                with psycopg.connect(cluster.dsn(f"{side}_{source}")) as connection:
                    connection.execute(_without_commands((CAPTURED / "shop.sql").read_text(encoding="utf-8")))  # type: ignore[arg-type]
                    connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO shop_agent")
                    connection.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO shop_agent")
                    rows = connection.execute(
                        "SELECT relname FROM pg_class "
                        "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"
                    ).fetchall()
                    tables = sorted(f"public.{name}" for (name,) in rows if name != "salaries")
        (directory / "policy.tar.gz").write_bytes(policy(tables))
        parts = "".join(PART.format(name=source, host=cluster.host, port=cluster.port) for source in SOURCES)
        (directory / "grille.toml").write_text(CONFIG.format(directory=directory, parts=parts))
        served = Served(directory / "grille.toml")
        try:
            found = {}
            for source in SOURCES:
                agent = _agent(identity, source, served.port)
                found[source] = replay(source, agent, cluster.dsn(f"owner_{source}"))
            yield found
            served.stop()
        finally:
            if served.process.poll() is None:
                os.killpg(served.process.pid, signal.SIGKILL)
                served.process.wait(DEADLINE)


def _agent(identity: Path, source: str, port: int) -> str:
    return (
        f"host=localhost hostaddr=127.0.0.1 port={port} dbname=x user=x sslmode=verify-full "
        f"sslrootcert={identity}/ca.pem "
        f"sslcert={identity}/{source}.pem sslkey={identity}/{source}.key"
    )


def _without_commands(text: str) -> str:
    """A dump without psql's own commands."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("\\"))


def test_every_statement_ends_as_it_does_around_grille_or_is_denied(tallies: dict[str, Tally]) -> None:
    print(table(tallies))
    assert {source: tally.different for source, tally in tallies.items() if tally.different} == {}
    for tally in tallies.values():
        assert tally.equal + sum(tally.denied.values()) == tally.application


def test_there_are_enough_statements_and_few_are_denied(tallies: dict[str, Tally]) -> None:
    texts = {text for tally in tallies.values() for text in tally.texts}
    assert len(texts) >= 300
    application = sum(tally.application for tally in tallies.values())
    denied = sum(sum(tally.denied.values()) for tally in tallies.values())
    assert denied < 0.02 * application, table(tallies)


def test_what_agents_are_told_of_the_catalogue_names_nothing_hidden(tallies: dict[str, Tally]) -> None:
    asked: Any = sum(tally.introspection for tally in tallies.values())
    assert asked > 100
    assert [text for tally in tallies.values() for text in tally.shown] == []
    dump = (CAPTURED / "shop.sql").read_bytes()
    assert all(name in dump for name in HIDDEN)
