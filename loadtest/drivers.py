"""A client of the raw protocol over mutual TLS, for what pgbench cannot do, in a process of its own.

pgbench sends one Sync a pipeline, and one process of it does not hold ten thousand connections with as many
identities.  ``python -m loadtest.drivers`` connects, then takes one JSON command a line and answers each with one JSON
line (`Driver`).
"""

from __future__ import annotations

import collections
import contextlib
import gc
import json
import random
import resource
import selectors
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from loadtest.report import percentile

READY = b"Z\x00\x00\x00\x05I"
ONE_ROW = b"C\x00\x00\x00\x0dSELECT 1\x00"
ACCOUNTS = 100_000
SILENCE = 60.0
"""Seconds without any answer after which a run has failed."""
HANDSHAKES = 4
"""Connections that are opened at once: a handshake costs the proxy more than a statement."""
PROGRESS = 10
"""How often at most the driver says how far it is with connecting."""


def message(kind: bytes, body: bytes) -> bytes:
    """One message of protocol 3."""
    return kind + struct.pack("!i", len(body) + 4) + body


def query(aid: int, shape: int | None = None) -> bytes:
    """pgbench's select as a simple Query; a shape is a text of its own."""
    alias = "" if shape is None else f" AS shape_{shape}"
    return message(b"Q", f"SELECT abalance{alias} FROM pgbench_accounts WHERE aid = {aid}\0".encode())


def parse(card: bool) -> bytes:
    """The same select, prepared under the name ``pick``; with the column ``card`` besides."""
    text = f"SELECT abalance{', card' if card else ''} FROM pgbench_accounts WHERE aid = $1"
    return message(b"P", f"pick\0{text}\0".encode() + struct.pack("!hi", 1, 23))


SYNC = message(b"S", b"")


DEPTH = 50
"""Statements of one pipeline."""


def pipeline(depth: int, sync_each: bool) -> bytes:
    """So many Bind and Execute of the prepared select, with one Sync or with one each."""
    parts = []
    for _ in range(depth):
        value = str(random.randint(1, ACCOUNTS)).encode()
        bind = b"\0pick\0" + struct.pack("!hhi", 0, 1, len(value)) + value + struct.pack("!h", 0)
        parts += [message(b"B", bind), message(b"E", b"\0" + struct.pack("!i", 0))]
        if sync_each:
            parts.append(SYNC)
    return b"".join(parts) + (b"" if sync_each else SYNC)


def share(agents: int, shapes: int) -> list[range]:
    """Which of so many shapes each agent runs: all are run, and by as few as possible.

    So an agent repeats itself, and no figure is about the first time that an agent runs a statement.
    """
    if not shapes:
        return [range(0)] * agents
    return [range(number % min(agents, shapes), shapes, agents) for number in range(agents)]


class ServerError(Exception):
    """The server, or the proxy, answered with an error or with less than was asked for."""


def error_text(reply: bytes) -> str:
    """The text of the first ErrorResponse in a reply."""
    at = 0
    while at + 5 <= len(reply):
        size = int.from_bytes(reply[at + 1 : at + 5], "big")
        if reply[at : at + 1] == b"E":
            fields = reply[at + 5 : at + 1 + size].split(b"\0")
            found = {part[:1]: part[1:].decode(errors="replace") for part in fields if part}
            return f"{found.get(b'C', '')} {found.get(b'M', '')}".strip()
        at += 1 + size
    return "a reply without the rows that were asked for"


class Agent:
    """One connection, with one request in flight."""

    def __init__(self, settings: dict[str, str], context: ssl.SSLContext) -> None:
        """Connect.  Raises OSError, or `ServerError` if the connection is refused."""
        plain = socket.create_connection((settings["PGHOST"], int(settings["PGPORT"])), timeout=SILENCE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.sendall(struct.pack("!ii", 8, 80877103))
        if plain.recv(1) != b"S":
            raise ServerError("TLS is not offered")
        self.socket = context.wrap_socket(plain, server_hostname=settings["PGHOST"])
        startup = f"user\0{settings['PGUSER']}\0database\0{settings['PGDATABASE']}\0\0".encode()
        self.socket.sendall(struct.pack("!ii", len(startup) + 8, 196608) + startup)
        self.reply = b""
        while not self.reply.endswith(READY):
            self._read()
        self.sent_at = 0.0
        self.busy = False
        self.syncs = self.rows = 1
        self.backlog: collections.deque[float] = collections.deque()
        self.shapes: Sequence[int] = ()
        """The statement shapes that this agent runs; none: the plain statement."""

    def _read(self) -> None:
        data = self.socket.recv(65536)
        self.reply += data
        if not data or (self.reply[:1] == b"E" and READY not in self.reply):
            raise ServerError(error_text(self.reply) if self.reply else "the connection was closed")

    def ask(self, request: bytes, *, syncs: int = 1, rows: int = 1, at: float | None = None) -> None:
        """Send a request that is answered with so many ReadyForQuery and so many single rows."""
        self.reply, self.syncs, self.rows, self.busy = b"", syncs, rows, True
        self.sent_at = time.perf_counter() if at is None else at
        # Nothing else is in flight, so the socket's buffer has room for a request.
        self.socket.sendall(request)

    def ask_any(self, at: float | None = None) -> None:
        """Send the select for any account, in any of this agent's shapes."""
        self.ask(query(random.randint(1, ACCOUNTS), random.choice(self.shapes) if self.shapes else None), at=at)

    def answered(self) -> bool:
        """Read what is there; True when the reply is whole.  Raises `ServerError` for another reply."""
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                self._read()
                if self.reply.endswith(READY) and self.reply.count(READY) == self.syncs:
                    break
        if not self.reply.endswith(READY) or self.reply.count(READY) < self.syncs:
            return False
        if self.reply.count(ONE_ROW) != self.rows:
            raise ServerError(error_text(self.reply))
        self.busy = False
        return True

    def wait(self) -> None:
        """Block until the reply is whole."""
        while not self.answered():
            pass


class Agents:
    """Many agents in one process, and the ways to load them."""

    def __init__(
        self, settings: dict[str, str], certificates: Sequence[str], count: int,
        progress: Callable[[int], None] = lambda connected: None,
    ) -> None:  # fmt: skip
        """Connect.  ``progress`` hears now and then how many are connected."""

        step = max(count // HANDSHAKES // PROGRESS, 1)

        def open_some(first: int) -> list[tuple[int, Agent]]:
            own = ssl.create_default_context(cafile=settings["PGSSLROOTCERT"])
            found = []
            for number in range(first, count, HANDSHAKES):
                own.load_cert_chain(certificates[number % len(certificates)])
                found.append((number, Agent(settings, own)))
                if first == 0 and len(found) % step == 0:
                    progress(min(number + HANDSHAKES, count))
            return found

        with ThreadPoolExecutor(HANDSHAKES) as pool:
            opened = [pair for pairs in pool.map(open_some, range(HANDSHAKES)) for pair in pairs]
        self.all = [agent for _, agent in sorted(opened, key=lambda pair: pair[0])]
        self.selector = selectors.DefaultSelector()
        self._watch(self.all)
        # Else the collector walks over thousands of agents, and its pause is taken for the proxy's.
        gc.collect()
        gc.freeze()

    def _watch(self, agents: Sequence[Agent]) -> None:
        """Look at these from here on: to look at thousands that are idle would cost the driver, and so the others."""
        self.selector.close()
        self.selector = selectors.DefaultSelector()
        for agent in agents:
            self.selector.register(agent.socket, selectors.EVENT_READ, agent)

    def _answers(self, timeout: float = SILENCE) -> Iterable[Agent]:
        """The agents whose replies became whole.  Raises `ServerError` if nothing comes for `SILENCE` seconds."""
        ready = self.selector.select(timeout)
        if not ready and timeout == SILENCE:
            raise ServerError(f"no answer within {SILENCE} seconds")
        for key, _ in ready:
            agent: Agent = key.data
            if agent.answered():
                yield agent

    def warm_up(self, shapes: int) -> None:
        """Give each agent its part of the shapes, and let it run each of them once; without shapes, one statement."""
        for agent, own in zip(self.all, share(len(self.all), shapes), strict=True):
            agent.shapes = own
            for shape in own or [None]:
                agent.ask(query(1, shape))
                agent.wait()
            agent.socket.setblocking(False)

    def closed(self, seconds: float, in_flight: int) -> list[float]:
        """As many statements as possible with so many in flight, over all connections in turn; their latencies."""
        self._watch(self.all)
        latencies: list[float] = []
        waiting = collections.deque(self.all)
        end = time.perf_counter() + seconds
        for _ in range(min(in_flight, len(self.all))):
            waiting.popleft().ask_any()
        busy = len(self.all) - len(waiting)
        while busy:
            for agent in self._answers():
                now = time.perf_counter()
                latencies.append(now - agent.sent_at)
                waiting.append(agent)
                if now < end:
                    waiting.popleft().ask_any()
                else:
                    busy -= 1
        return latencies

    def open(self, seconds: float, active: int, rate: float) -> list[float]:
        """So many statements a second on the first connections in turn, whether answers keep up or not.

        A latency counts from the moment at which the statement was due.
        """
        self._watch(self.all[:active])
        latencies: list[float] = []
        begin = time.perf_counter()
        total, number, answered = int(seconds * rate), 0, 0
        while answered < total:
            now = time.perf_counter()
            while number < total and begin + number / rate <= now:
                agent, due = self.all[number % active], begin + number / rate
                number += 1
                if agent.busy:
                    agent.backlog.append(due)
                else:
                    agent.ask_any(due)
            timeout = max(begin + number / rate - time.perf_counter(), 0) if number < total else SILENCE
            for agent in self._answers(timeout):
                latencies.append(time.perf_counter() - agent.sent_at)
                answered += 1
                if agent.backlog:
                    agent.ask_any(agent.backlog.popleft())
        return latencies

    def prepare(self, card: bool) -> None:
        """Prepare the select on each connection."""
        for agent in self.all:
            agent.ask(parse(card) + SYNC, rows=0)
            agent.wait()
            agent.socket.setblocking(False)
        self.batches = {each: [pipeline(DEPTH, each) for _ in range(200)] for each in (False, True)}

    def pipelines(self, seconds: float, sync_each: bool) -> list[float]:
        """Pipelines of `DEPTH` statements, one in flight on each connection; the latency of each pipeline."""
        batches = self.batches[sync_each]
        terms = {"syncs": DEPTH if sync_each else 1, "rows": DEPTH}
        latencies: list[float] = []
        end = time.perf_counter() + seconds
        for agent in self.all:
            agent.ask(random.choice(batches), **terms)
        busy = len(self.all)
        while busy:
            for agent in self._answers():
                now = time.perf_counter()
                latencies.append(now - agent.sent_at)
                if now < end:
                    agent.ask(random.choice(batches), **terms)
                else:
                    busy -= 1
        return latencies


class Driver:
    """The driver's process, seen from the process that measures.  Raises `ServerError` for what goes wrong there."""

    def __init__(
        self, settings: dict[str, str], certificates: Sequence[str], count: int,
        progress: Callable[[int], None] = lambda connected: None,
    ) -> None:  # fmt: skip
        """Connect so many agents; they show the certificates (PEM, with the key) in turn.

        ``progress`` hears now and then how many are connected, about.
        """
        self._progress = progress
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.drivers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.command({"settings": settings, "certificates": list(certificates), "count": count})

    def command(self, command: dict[str, Any]) -> dict[str, Any]:
        """Have one command done."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        while True:
            text = self._process.stdout.readline()
            answer: dict[str, Any] = json.loads(text) if text else {"error": "the driver ended"}
            if "connected" not in answer:
                break
            self._progress(answer["connected"])
        if "error" in answer:
            raise ServerError(answer["error"])
        return answer

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()


def _figures(latencies: list[float], seconds: float, each: int = 1) -> dict[str, float]:
    ordered = sorted(value * 1e6 for value in latencies)
    return {
        "tps": len(ordered) * each / seconds, "count": len(ordered) * each, "p50_us": percentile(ordered, 0.50),
        "p95_us": percentile(ordered, 0.95), "p99_us": percentile(ordered, 0.99),
    }  # fmt: skip


def _obey(agents: Agents, command: dict[str, Any]) -> dict[str, Any]:
    seconds = command.get("seconds", 0.0)
    match command["do"]:
        case "warm up":
            agents.warm_up(command.get("shapes", 0))
            return {}
        case "prepare":
            agents.prepare(command["card"])
            return {}
        case "closed":
            return _timed(lambda: agents.closed(seconds, command["in_flight"]))
        case "open":
            return _timed(lambda: agents.open(seconds, command["active"], command["rate"]))
        case "pipelines":
            return _timed(lambda: agents.pipelines(seconds, command["sync_each"]), DEPTH)
    raise ValueError(command["do"])


def _timed(work: Callable[[], list[float]], each: int = 1) -> dict[str, float]:
    begin = time.perf_counter()
    latencies = work()
    return _figures(latencies, time.perf_counter() - begin, each)


def _say_connected(connected: int) -> None:
    print(json.dumps({"connected": connected}), flush=True)


def main() -> None:
    """One JSON command a line on the standard input: first what to connect, then what to do."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    agents: Agents | None = None
    for text in sys.stdin:
        command = json.loads(text)
        try:
            if agents is None:
                agents = Agents(command["settings"], command["certificates"], command["count"], _say_connected)
                answer: dict[str, Any] = {}
            else:
                answer = _obey(agents, command)
        except (OSError, ServerError) as error:
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
