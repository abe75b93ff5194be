"""The node: local datagrams, workers that die, drain, readiness, one scrape for all workers.

The nodes here are real ``grille serve`` processes in front of a real PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.server
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from grille.audit.encoding import decode
from grille.audit.records import EVENT, scan
from grille.policies.bundles.build import find_opa
from grille.protocols.postgres.messages import CancelRequest, StartupMessage
from grille.proxy.config import load
from grille.proxy.demo import bank
from grille.proxy.demo.agents import connection_parameters
from grille.proxy.demo.cluster import Cluster
from grille.proxy.demo.config_files import SERVICE, write_config, write_secrets
from grille.proxy.node import Ask, Cancel, Datagram, Drain, LocalSocket, Reload, Report, worker_name
from grille.proxy.serve import Worker
from grille.proxy.telemetry import Metrics
from tests.bundles import revised, signed
from tests.opa import Opa

DEADLINE = 20.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: unix sockets have room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="grille-test-") as name:
        yield Path(name)


class Inbox:
    """Keeps datagrams and wakes who waits for one."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Datagram] = asyncio.Queue()

    async def next(self) -> Datagram:
        return await asyncio.wait_for(self.queue.get(), DEADLINE)


@pytest.fixture
async def ends(directory: Path) -> AsyncIterator[Callable[[str], tuple[LocalSocket, Inbox]]]:
    """Makes ends of the local socket, by name."""
    made: list[LocalSocket] = []

    def end(name: str) -> tuple[LocalSocket, Inbox]:
        inbox = Inbox()
        made.append(LocalSocket(directory, name, inbox.queue.put_nowait))
        return made[-1], inbox

    yield end
    for local in made:
        local.close()


async def test_every_datagram_arrives_as_it_was_sent(ends: Callable[[str], tuple[LocalSocket, Inbox]]) -> None:
    first, _ = ends("node")
    _, inbox = ends(worker_name(1))
    metrics = Metrics().snapshot()
    for datagram in (Cancel(7, b"1234"), Ask(3), Report(3, 1, ("no bundle",), metrics), Drain(1.5), Reload()):
        assert first.send(worker_name(1), datagram)
        assert await inbox.next() == datagram
    assert first.ignored == 0


async def test_malformed_and_unknown_datagrams_are_ignored_and_counted(
    ends: Callable[[str], tuple[LocalSocket, Inbox]], directory: Path
) -> None:
    local, inbox = ends("worker-0")
    other, _ = ends("worker-1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as raw:
        for data in (
            b"",
            b"\xff" * 1000,
            b"\x81\xa4type\xa4exec",
            b"\x82\xa4type\xa6reload\xa5extra\x01",
            b"\x82\xa4type\xa3ask\xa6number\xa1x",
        ):
            raw.sendto(data, str(directory / "worker-0"))
    assert other.send("worker-0", Reload())
    assert await inbox.next() == Reload()
    assert inbox.queue.empty()
    assert local.ignored == 5


async def test_sending_to_nobody_is_told_and_counted(ends: Callable[[str], tuple[LocalSocket, Inbox]]) -> None:
    local, _ = ends("worker-0")
    assert not local.send("worker-7", Reload())
    assert local.ignored == 1


def test_a_secret_hides_in_repr() -> None:
    assert "1234" not in repr(Cancel(7, b"1234"))


# whole nodes


class Bank:
    """A small bank on a real server, and the files of a node in front of it."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.files, self._keys = write_secrets(directory)
        password = self.files.password.read_text().strip()
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [bank.ROLE]).fetchall():
                connection.execute(f"CREATE ROLE {bank.ROLE} LOGIN")
            connection.execute(f"ALTER ROLE {bank.ROLE} PASSWORD '{password}'")

    def create(self, database: str) -> None:
        """The customers, in a database of this test."""
        self.database = database
        with self.owner() as connection:
            connection.execute(
                "CREATE TABLE customers (id int PRIMARY KEY, branch text, name text, ssn text, email text, "
                "card_number text, created date)"
            )
            connection.execute("INSERT INTO customers SELECT n, '0042', 'name ' || n FROM generate_series(1, 10) n")
            connection.execute(f"GRANT SELECT, INSERT, UPDATE ON customers TO {bank.ROLE}")

    def owner(self) -> psycopg.Connection[Any]:
        """A connection around Grille."""
        return psycopg.connect(self.cluster.dsn(self.database), autocommit=True)

    def configure(self, *changes: tuple[str, str], host: str = "") -> Path:
        """Write the configuration with these replacements in its text."""
        write_config(self.files, self._keys, Path(host or self.cluster.host), self.cluster.port)
        text = self.files.config.read_text()
        for old, new in (('database = "bank"\nrole', f'database = "{self.database}"\nrole'), *changes):
            assert old in text
            text = text.replace(old, new)
        self.files.config.write_text(text)
        return self.files.config


class Running:
    """One ``grille serve`` and what it says."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.lines: list[dict[str, Any]] = []
        self._said = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grille", "serve", "--config", str(bank.files.config)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._said:
                    self.lines.append(json.loads(line) if line.startswith(b"{") else {"text": line.decode()})
                    self._said.notify_all()
        with self._said:
            self.lines.append({"message": "end of log"})
            self._said.notify_all()

    def said(self, message: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until a message was logged so often."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines if line.get("message") == message]

        with self._said:
            assert self._said.wait_for(lambda: len(found()) >= count, DEADLINE), self.lines
            return found()

    def get(self, path: str) -> tuple[int, str]:
        """Ask the admin listener."""
        (starting,) = self.said("starting")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{starting['admin_port']}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def until(self, path: str, condition: Callable[[int, str], bool]) -> str:
        """Ask until the answer is as wanted."""
        deadline = time.monotonic() + DEADLINE
        while True:
            status, text = self.get(path)
            if condition(status, text):
                return text
            assert time.monotonic() < deadline, (status, text, self.lines)
            time.sleep(0.02)

    def ready(self) -> None:
        """Wait until the node is ready."""
        self.until("/readyz", lambda status, _: status == 200)

    def connect(self, spiffe_id: str = SERVICE, **options: Any) -> psycopg.Connection[Any]:
        """A session of this agent."""
        (serving,) = self.said("serving")
        files = self.bank.files
        return psycopg.connect(
            **connection_parameters(files.agents[spiffe_id], files.bundle, serving["port"]), **options
        )

    def end(self) -> int:
        """The exit status, once it has ended."""
        status = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return status


@pytest.fixture
def small_bank(pg18: Cluster, fresh_database: Callable[[Cluster], str], tmp_path: Path) -> Bank:
    made = Bank(pg18, tmp_path)
    made.create(fresh_database(pg18))
    return made


@pytest.fixture
def serve(small_bank: Bank) -> Iterator[Callable[..., Running]]:
    """Starts a node with these changes of its configuration."""
    started: list[Running] = []

    def serve(*changes: tuple[str, str], host: str = "") -> Running:
        small_bank.configure(*changes, host=host)
        started.append(Running(small_bank))
        return started[-1]

    yield serve
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.end()


TWO = ("workers = 1", "workers = 2")


def test_one_scrape_shows_every_worker(serve: Callable[..., Running]) -> None:
    running = serve(TWO)
    running.ready()
    (serving,) = running.said("serving")
    assert serving["workers"] == 2
    with running.connect() as agent:
        assert agent.execute("SELECT count(*) FROM customers").fetchone() == (10,)
    text = running.get("/metrics")[1]
    for worker in "01":
        assert f'grille_worker_up{{worker="{worker}"}} 1.0' in text
        assert f'grille_audit_healthy{{worker="{worker}"}} 1.0' in text
        assert re.search(rf'process_cpu_seconds_total{{worker="{worker}"}}', text)
    assert sum(float(n) for n in re.findall(r"^grille_sessions_opened_total{.*} (.*)$", text, re.M)) == 1
    assert text.count("# TYPE grille_statements_total counter") == 1
    assert re.search(r'^grille_statements_total{action="select",outcome="ok",worker="[01]"} 1.0$', text, re.M)
    assert "customers" not in text
    loops = {line["loop"] for line in running.said("worker started", 2)}
    assert loops == {"uvloop"}


def test_a_killed_worker_is_started_again(serve: Callable[..., Running]) -> None:
    running = serve(TWO)
    running.ready()
    first = {line["worker"]: line["pid"] for line in running.said("worker started", 2)}
    os.kill(first[0], signal.SIGKILL)
    again = running.said("worker started", 3)[2]
    assert again["worker"] == 0
    assert again["pid"] not in first.values()
    running.ready()
    assert "grille_worker_restarts_total 1.0" in running.get("/metrics")[1]
    (ended,) = running.said("a worker ended unexpectedly")
    assert (ended["worker"], ended["status"]) == (0, -signal.SIGKILL)
    with running.connect() as agent:
        assert agent.execute("SELECT count(*) FROM customers").fetchone() == (10,)


def test_sigterm_lets_a_transaction_finish_and_takes_no_new_one(serve: Callable[..., Running]) -> None:
    running = serve()
    running.ready()
    with contextlib.closing(running.connect()) as busy, contextlib.closing(running.connect(autocommit=True)) as idle:
        busy.execute("UPDATE customers SET name = 'drained' WHERE id = 1")
        idle.execute("SELECT 1")
        running.process.send_signal(signal.SIGTERM)
        running.said("draining", 2)
        assert running.get("/readyz") == (503, "draining\n")
        assert running.get("/livez")[0] == 200
        with pytest.raises(psycopg.OperationalError) as told:
            idle.execute("SELECT 1")
        assert told.value.sqlstate == "57P01"
        with pytest.raises(psycopg.OperationalError):
            running.connect()
        assert busy.execute("SELECT name FROM customers WHERE id = 1").fetchone() == ("drained",)
        busy.commit()
        with pytest.raises(psycopg.OperationalError) as told:
            busy.execute("SELECT 1")
        assert told.value.sqlstate == "57P01"
    assert running.end() == 0
    with running.bank.owner() as owner:
        assert owner.execute("SELECT name FROM customers WHERE id = 1").fetchone() == ("drained",)


def test_a_drain_ends_in_time_and_rolls_back_what_is_left(serve: Callable[..., Running]) -> None:
    running = serve(("drain_seconds = 5.0", "drain_seconds = 0.3"))
    running.ready()
    with contextlib.closing(running.connect()) as busy:
        busy.execute("UPDATE customers SET name = 'lost' WHERE id = 1")
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
    with running.bank.owner() as owner:
        assert owner.execute("SELECT name FROM customers WHERE id = 1").fetchone() == ("name 1",)


def test_a_second_signal_ends_at_once(serve: Callable[..., Running]) -> None:
    running = serve(("drain_seconds = 5.0", "drain_seconds = 600.0"))
    running.ready()
    with contextlib.closing(running.connect()) as busy:
        busy.execute("SELECT count(*) FROM customers")
        running.process.send_signal(signal.SIGTERM)
        running.said("draining", 2)
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0


def test_workers_do_not_outlive_a_killed_node(serve: Callable[..., Running]) -> None:
    running = serve()
    running.ready()
    running.process.kill()
    running.said("the node has ended, so this worker drains")
    running.said("end of log")


def test_not_ready_without_the_database_and_ready_once_it_is_there(
    serve: Callable[..., Running], small_bank: Bank, tmp_path: Path
) -> None:
    place = tmp_path / "s"
    running = serve(host=str(place))
    running.said("serving")
    text = running.until("/readyz", lambda _, text: "cannot be read" in text)
    assert "worker 0: database bank: the catalogue cannot be read (FileNotFoundError)" in text
    with pytest.raises(psycopg.OperationalError) as told:
        running.connect()
    assert told.value.sqlstate == "57P03" or "has not been read yet" in str(told.value)
    assert re.search(
        r'^grille_catalog_failures_total{database="bank",worker="0"} [1-9]', running.get("/metrics")[1], re.M
    )
    place.symlink_to(small_bank.cluster.host)
    running.ready()
    with running.connect() as agent:
        assert agent.execute("SELECT count(*) FROM customers").fetchone() == (10,)


def test_not_ready_without_the_audit_directory_and_ready_once_it_is_there(
    serve: Callable[..., Running], small_bank: Bank
) -> None:
    parent = small_bank.directory / "evidence"
    parent.write_text("in the way")
    running = serve((f'"{small_bank.files.audit}"', f'"{parent / "audit"}"'))
    (problem,) = running.said("the audit directory cannot be used")
    assert "cannot be written" in problem["problem"]
    status, text = running.get("/readyz")
    assert status == 503
    assert "worker 0: audit: " in text
    assert "cannot be written" in text
    parent.unlink()
    running.ready()
    with running.connect() as agent:
        assert agent.execute("SELECT count(*) FROM customers").fetchone() == (10,)


def shipped_bundle(small_bank: Bank) -> tuple[str, Path]:
    """The line of the configuration that names the demo's bundle, and a copy of it."""
    text = small_bank.configure().read_text()
    line = next(line for line in text.splitlines() if line.startswith("bundle = ") and "tar.gz" in line)
    copy = small_bank.directory / "bundle.tar.gz"
    copy.write_bytes(Path(json.loads(line.partition("= ")[2])).read_bytes())
    return line, copy


def test_a_broken_bundle_leaves_the_old_one_in_force(serve: Callable[..., Running], small_bank: Bank) -> None:
    line, bundle = shipped_bundle(small_bank)
    running = serve((line, f'bundle = "{bundle}"'))
    running.ready()
    bundle.write_bytes(b"not a bundle")
    running.process.send_signal(signal.SIGHUP)
    running.said("a new policy bundle cannot be used; the old one stays")
    assert 'grille_bundle_failures_total{worker="0"} 1.0' in running.get("/metrics")[1]
    assert running.get("/readyz")[0] == 200
    with running.connect() as agent:
        assert agent.execute("SELECT count(*) FROM customers").fetchone() == (10,)


def test_a_new_bundle_and_certificate_drop_no_connection(serve: Callable[..., Running], small_bank: Bank) -> None:
    line, bundle = shipped_bundle(small_bank)
    running = serve((line, f'bundle = "{bundle}"'))
    running.ready()
    with running.connect() as agent:
        assert agent.execute("SELECT count(*) FROM customers").fetchone() == (10,)
        partial = bundle.with_suffix(".new")
        partial.write_bytes(revised(bundle.read_bytes(), "next"))
        partial.replace(bundle)
        running.process.send_signal(signal.SIGHUP)
        running.said("certificates reloaded")
        running.until("/metrics", lambda _, text: 'grille_bundle_info{revision="next+' in text)
        assert agent.execute("SELECT count(*) FROM customers").fetchone() == (10,)


class BundleServer(http.server.ThreadingHTTPServer):
    """Serves one bundle to ``If-None-Match``."""

    def __init__(self, bundle: bytes) -> None:
        self.bundle = bundle
        super().__init__(("127.0.0.1", 0), BundleRequest)


class BundleRequest(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        bundle = self.server.bundle  # type: ignore[attr-defined]
        tag = hashlib.sha256(bundle).hexdigest()
        known = self.headers.get("If-None-Match") == tag
        self.send_response(304 if known else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", "0" if known else str(len(bundle)))
        self.end_headers()
        if not known:
            self.wfile.write(bundle)

    def log_message(self, format: str, *arguments: object) -> None: ...


def test_a_node_follows_its_bundle_server_and_starts_without_it(
    serve: Callable[..., Running], small_bank: Bank, tmp_path: Path
) -> None:
    line, shipped = shipped_bundle(small_bank)
    key = ec.generate_private_key(ec.SECP256R1())
    public = tmp_path / "policy.pub.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    raw = shipped.read_bytes()
    kept = tmp_path / "kept.tar.gz"
    with BundleServer(signed(revised(raw, "first"), key)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = (
            line,
            f'bundle = "{kept}"\nbundle_url = "http://127.0.0.1:{server.server_port}/b"\n'
            f'verification_key = "{public}"\nverification_algorithm = "ES256"',
        )
        running = serve(settings)
        running.ready()
        assert 'grille_bundle_info{revision="first+' in running.get("/metrics")[1]
        with running.connect() as agent:
            server.bundle = signed(revised(raw, "forged"), ec.generate_private_key(ec.SECP256R1()))
            running.process.send_signal(signal.SIGHUP)
            running.until("/metrics", lambda _, text: "grille_bundle_fetch_failures_total 1.0" in text)
            assert agent.execute("SELECT count(*) FROM customers").fetchone() == (10,)
            server.bundle = signed(revised(raw, "second"), key)
            running.process.send_signal(signal.SIGHUP)
            running.until("/metrics", lambda _, text: 'grille_bundle_info{revision="second+' in text)
            assert agent.execute("SELECT count(*) FROM customers").fetchone() == (10,)
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
        server.shutdown()
    again = serve(settings)
    again.until("/metrics", lambda _, text: 'grille_bundle_info{revision="second+' in text)
    assert "ClientConnectorError" in again.said("a policy bundle cannot be fetched")[0]["problem"]
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == 0
    kept.unlink()
    without = serve(settings)
    assert without.end() == 2
    without.said("there is no policy bundle to start with")


@pytest.fixture
def opa(tmp_path: Path) -> Iterator[Opa]:
    program = find_opa()
    if program is None:
        pytest.skip("the opa program is not installed: go install github.com/open-policy-agent/opa@v1.22.2")
    made = Opa(program, tmp_path)
    yield made
    made.stop()


def test_an_opa_server_decides(serve: Callable[..., Running], small_bank: Bank, opa: Opa) -> None:
    line, _ = shipped_bundle(small_bank)
    opa.start("first")
    running = serve((line, f'server_url = "{opa.url}"\nreload_poll = 0.1\ntimeout = 5'))
    running.ready()
    count = "SELECT count(*) FROM customers"
    with running.connect(autocommit=True) as agent:
        assert agent.execute(count).fetchone() == (10,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as denied:
            agent.execute("SELECT * FROM customer_export")
        assert "AC-" in str(denied.value)
        opa.stop()
        running.until("/readyz", lambda status, text: status == 503 and "policy: " in text)
        assert agent.execute(count).fetchone() == (10,)  # decided before
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="AC-02"):
            agent.execute("SELECT name FROM customers")
        opa.start("second")
        running.until("/metrics", lambda _, text: 'grille_bundle_info{revision="policy=second"' in text)
        running.ready()
        assert agent.execute("SELECT name FROM customers WHERE id = 1").fetchone() == ("name 1",)
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    opa.stop()
    events = [
        decode(record.payload)
        for path in small_bank.directory.rglob("*.seg")
        for record in scan(path.read_bytes())
        if record.kind == EVENT
    ]
    verdicts = [event.verdict for event in events if event.kind == "statement" and event.verdict is not None]
    logged = [verdict for verdict in verdicts if verdict.control != "AC-02"]
    assert {verdict.revision for verdict in logged} == {"policy=first", "policy=second"}
    assert {verdict.id for verdict in logged} <= opa.decided()
    assert len(logged) < len(verdicts)


def test_a_configuration_that_cannot_work_ends_the_node_with_status_2(
    serve: Callable[..., Running], small_bank: Bank
) -> None:
    line, bundle = shipped_bundle(small_bank)
    bundle.write_bytes(b"not a bundle")
    running = serve(TWO, (line, f'bundle = "{bundle}"'))
    assert running.end() == 2
    assert "policy.bundle" in running.said("the configuration cannot be used")[0]["problem"]


def test_a_port_in_use_is_one_clear_line(serve: Callable[..., Running]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = serve(
            ('host = "127.0.0.1"\nport = 0\ncertificate', f'host = "127.0.0.1"\nport = {port}\ncertificate')
        )
        assert running.end() == 2
    assert running.lines[0] == {"text": f"grille: listener address 127.0.0.1:{port} is in use\n"}


def test_an_admin_port_in_use_is_one_clear_line(serve: Callable[..., Running]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = serve(('[admin]\nhost = "127.0.0.1"\nport = 0', f"[admin]\nport = {port}"))
        assert running.end() == 2
    assert running.lines[0] == {"text": f"grille: admin address 127.0.0.1:{port} is in use\n"}


async def test_a_cancel_request_that_reaches_another_worker_is_forwarded(small_bank: Bank, directory: Path) -> None:
    config = load(small_bank.configure())
    workers = [Worker(config, number, 2) for number in range(2)]
    tasks = []
    for worker in workers:
        worker.local = LocalSocket(directory, worker_name(worker.number), worker.received)
        listening = asyncio.Event()
        tasks.append(asyncio.create_task(worker.run(listening.set)))
        await asyncio.wait_for(listening.wait(), DEADLINE)
    await eventually(lambda: not any(worker.reasons() for worker in workers))
    context = ssl.create_default_context(cafile=str(small_bank.files.bundle))
    certificate = small_bank.files.agents[SERVICE]
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    owner = small_bank.owner()
    agent = await asyncpg.connect(host="localhost", port=workers[0].port, user="x", database="x", ssl=context)
    try:
        with owner.transaction():
            owner.execute("LOCK TABLE customers")
            waiting = asyncio.create_task(agent.fetch("SELECT name FROM customers"))
            await eventually(lambda: waits_for_a_lock(small_bank))
            number, secret = agent._protocol.backend_pid, agent._protocol.backend_secret
            assert number >> 23 & 0x7F == 0
            secret = secret.to_bytes(4, "big", signed=True) if isinstance(secret, int) else secret
            for key in (b"\0\0\0\0", secret):
                _, writer = await asyncio.open_connection("127.0.0.1", workers[1].port)
                writer.write(CancelRequest(number, key).encode())
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            with pytest.raises(asyncpg.QueryCanceledError):
                await asyncio.wait_for(waiting, DEADLINE)
    finally:
        owner.close()
        await agent.close()
        for worker in workers:
            await worker.drain(1.0)
        await asyncio.gather(*tasks)
        for worker in workers:
            assert worker.local is not None
            worker.local.close()


def waits_for_a_lock(small_bank: Bank) -> bool:
    with small_bank.owner() as connection:
        return bool(connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall())


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 (it is another process that changes)
            await asyncio.sleep(0.01)


def test_refused_connections_are_all_counted_and_some_of_a_flood_recorded(serve: Callable[..., Running]) -> None:
    running = serve()
    running.ready()
    (serving,) = running.said("serving")
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", serving["port"]), DEADLINE) as client:
            client.sendall(StartupMessage({"user": "x"}).encode())
            while client.recv(4096):
                pass
    running.until(
        "/metrics", lambda _, text: 'grille_handshakes_refused_total{control="ID-03",worker="0"} 50.0' in text
    )
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    logged = len(running.said("a connection was refused"))
    assert 10 <= logged < 50
    show = [sys.executable, "-m", "grille", "audit", "show", str(running.bank.files.audit), "--json"]
    done = subprocess.run(show, capture_output=True, text=True, timeout=60, check=True)
    events = [event for line in done.stdout.splitlines() if (event := json.loads(line))["name"] == "refused"]
    assert len(events) == logged
    assert all(event["verdict"]["control"] == "ID-03" and not event["verdict"]["allow"] for event in events)
    assert all(event["client"].startswith("127.0.0.1:") for event in events)


def test_not_ready_once_the_audit_directory_is_gone(serve: Callable[..., Running]) -> None:
    running = serve()
    running.ready()
    running.bank.files.audit.rename(running.bank.directory / "moved")
    status, text = running.get("/readyz")
    assert status == 503
    assert "No such file or directory" in text
    assert 'grille_audit_healthy{worker="0"} 0.0' in running.get("/metrics")[1]
