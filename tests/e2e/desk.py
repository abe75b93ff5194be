"""A desk of agents whose limits span statements, with a node of Grille in front of their database.

Agents connect over mutual TLS, and the policy is the demo's with data of these tests: one role for each agent.
"""

from __future__ import annotations

import functools
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

import grille.policies
from grille.protocols.postgres.messages import Query, Sync
from grille.proxy.authority import Authority, write_signing_key
from grille.proxy.demo.cluster import Cluster
from tests.bundles import replace, with_data
from tests.e2e.served import DEADLINE, WORKERS, Served
from tests.e2e.test_faults import Closed, Connection, Result, extended

AGENTS = 64
DOMAIN = "bank.example"
SYNC = Sync()
LIMITS: dict[str, dict[str, Any]] = {
    "three": {"statements_per_minute": 3},
    "simple": {"statements_per_minute": 200},
    "extended": {"statements_per_minute": 333},
    "piped": {"statements_per_minute": 500},
    "slow": {"statements_per_minute": 100},
    "five": {"concurrent": 5},
    "leaver": {"concurrent": 3},
    "killed": {"concurrent": 4},
    "thief": {"distinct_keys_per_hour": 100},
    "revoked": {},
    "other": {},
}
CONFIG = """
[listener]
port = 0
certificate = "{identity}/server.pem"
key = "{identity}/server.key"
revocations = "{directory}/revocations"
[admin]
port = 0
[process]
workers = {workers}
drain_seconds = 5.0
[[trust_domains]]
name = "{domain}"
bundle = "{identity}/ca.pem"
[[identities]]
spiffe_id = "spiffe://{domain}/desk/*"
database = "desk"
[[databases]]
name = "desk"
host = "{host}"
port = {port}
database = "desk"
role = "grille_desk"
tls = "off"
pool_size = 40
passthrough = true
[quotas]
cut_off = ["distinct_keys_per_hour"]
cut_off_seconds = 2
{quotas}
[policy]
bundle = "{directory}/policy.tar.gz"
reload_poll = 0.05
[audit]
directory = "{directory}/audit"
signing_key = "{directory}/signing.pem"
reads = "process"
"""
SCHEMA = """
CREATE ROLE grille_desk LOGIN;
CREATE TABLE customers (id int PRIMARY KEY, name text, city text);
INSERT INTO customers SELECT n, 'name ' || n, 'city ' || n % 10 FROM generate_series(1, 2000) n;
CREATE TABLE visits (customer int, day int, note text, PRIMARY KEY (customer, day));
INSERT INTO visits SELECT n, d, 'note ' || n || '/' || d FROM generate_series(1, 100) n, generate_series(1, 3) d;
GRANT SELECT, INSERT, UPDATE ON customers, visits TO grille_desk;
"""


def spiffe_id(name: str) -> str:
    return f"spiffe://{DOMAIN}/desk/{name}"


def write_identity(directory: Path) -> Path:
    """A CA, and what it has issued for the agents and for nodes."""
    directory.mkdir(mode=0o700)
    authority = Authority(DOMAIN)
    authority.write_bundle(directory / "ca.pem")
    authority.issue_server().write(directory, "server")
    for name in LIMITS:
        authority.issue(f"desk/{name}").write(directory, name)
    return directory


@contextmanager
def desk(binaries: Path) -> Iterator[Cluster]:
    """The agents' database."""
    with Cluster(binaries) as cluster:
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE desk")
        with psycopg.connect(cluster.dsn("desk")) as connection:
            connection.execute(SCHEMA)
        yield cluster


class Node(Served):
    """One Grille and what is around it."""

    def __init__(self, directory: Path, cluster: Cluster, identity: Path, quotas: str = "") -> None:
        """``identity``: as `write_identity` has left it.  ``quotas``: more lines of that section."""
        self.directory = directory
        self.cluster = cluster
        self.opened: list[Connection] = []
        self.identity = identity
        write_signing_key(directory / "signing.pem")
        self.revocations = directory / "revocations"
        self.revocations.write_text("# nobody\n")
        self.write_bundle(LIMITS)
        config = CONFIG.format(
            identity=self.identity, directory=directory, domain=DOMAIN, host=cluster.host, port=cluster.port,
            workers=WORKERS, quotas=quotas,
        )  # fmt: skip
        (directory / "grille.toml").write_text(config)
        super().__init__(directory / "grille.toml")

    def write_bundle(self, limits: dict[str, dict[str, Any]], revision: str = "first") -> None:
        """The demo's compiled policy with a role for each agent."""
        relations = {
            name: {"access": ["read", "insert", "update"], "rows": "all"}
            for name in ("public.customers", "public.visits")
        }
        role = {"relations": relations, "columns": {}, "locks": False}
        shipped = Path(grille.policies.__file__).parent / "bundles" / "demo.tar.gz"
        data = {
            "agents": {spiffe_id(name): name for name in limits},
            "staff_only": [],
            "roles": {name: {**role, "limits": each} for name, each in limits.items()},
        }
        replace(self.directory / "policy.tar.gz", with_data(shipped.read_bytes(), data, revision))

    @functools.cache  # noqa: B019  (there are few nodes)
    def context(self, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.identity / "ca.pem"))
        context.set_alpn_protocols(["postgresql"])
        context.load_cert_chain(self.identity / f"{name}.pem", self.identity / f"{name}.key")
        return context

    async def session(self, name: str) -> Connection:
        """A session of this agent, which the test's end ends.  Raises `Closed`."""
        connection = await Connection.open(self, name)  # type: ignore[arg-type]
        self.opened.append(connection)
        return connection

    def owner(self) -> psycopg.Connection[Any]:
        """A connection around Grille."""
        return psycopg.connect(self.cluster.dsn("desk"), autocommit=True)

    def total(self, metric: str) -> int:
        """A metric of the node, summed over its workers."""
        text = self.get("/metrics")[1]
        found = re.findall(rf"^{metric} (\S+)$", text, re.M)
        assert found, text
        return int(sum(float(number) for number in found))

    def waiting(self) -> int:
        """Statements of agents that wait for a lock."""
        with self.owner() as owner:
            sql = "SELECT 1 FROM pg_stat_activity WHERE usename = 'grille_desk' AND wait_event_type = 'Lock'"
            return len(owner.execute(sql).fetchall())

    def stop(self) -> None:
        """The same, and what it recorded is verified."""
        super().stop()
        done = subprocess.run(
            [sys.executable, "-m", "grille", "audit", "verify", str(self.directory / "audit")],
            capture_output=True, text=True, timeout=5 * DEADLINE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


BY_KEY = "SELECT name FROM customers WHERE id = {}"
BY_SCAN = "SELECT count(*) FROM customers WHERE city = 'city {}'"


async def by_query(connection: Connection, n: int) -> list[Result]:
    return [*(await connection.ask(Query(BY_KEY.format(n)))).results]


async def by_scan(connection: Connection, n: int) -> list[Result]:
    return [*(await connection.ask(Query(BY_SCAN.format(n)))).results]


async def by_bind(connection: Connection, n: int) -> list[Result]:
    return [*(await connection.ask(*extended(BY_KEY.format("$1"), n, types=(23,)), SYNC)).results]


async def by_pipe(connection: Connection, n: int) -> list[Result]:
    """Three units at once, the second of two statements.  What came before the session was ended counts."""
    one = extended(BY_KEY.format("$1"), n, types=(23,))
    connection.send(*one, SYNC, *one, *one, SYNC, *one, SYNC)
    results: list[Result] = []
    try:
        for _ in range(3):
            results += (await connection.unit()).results
    except Closed:
        if not results:
            raise
    return results
