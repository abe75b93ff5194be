"""The fast path between scripted clients and a scripted database: bytes in, bytes out, in any order that is wished for.

The database's end speaks the backend protocol over transports in memory; time is virtual, so nothing here waits.  What
it answers carries a tag of its agent and statement, so a misrouted byte is seen.  Pool, pipes, sessions and recorder
are the real ones; decisions are scripted, the texts are words that this database understands:

    echo 'x'    one row              rows 'x'    three rows            large 'x'   2,000 rows (many: 12)
    fail 'x'    an error             half 'x'    a row, then an error  late 'x'    an error at Sync
    slow 'x'    57014 on a pipe      locked 'x'  55P03 on a pipe       retry 'x'   40001 on a pipe
    insert 'x'  a write              hidden 'x'  with a notice         open 'x'    leaves a transaction open on a pipe
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import os
import random
import re
import selectors
import struct
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from grille.audit.encoding import reveals
from grille.audit.event import Event
from grille.audit.spool import Spool
from grille.controls import Refusal
from grille.policies.decision import Limits
from grille.protocols.postgres.messages import (
    Bind,
    Close,
    Describe,
    ErrorResponse,
    Execute,
    Field,
    Parse,
    Query,
    RowDescription,
    StartupMessage,
    Sync,
    decode_data_row,
    encode_data_row,
)
from grille.protocols.postgres.rewrite import EncodeSlot, Plan, Transform
from grille.protocols.postgres.statement import SessionCommand
from grille.proxy import fastpath, upstream
from grille.proxy import pipe as pipes
from grille.proxy.config import Admin, Audit, Config, Database, Identity, Listener, Policy, Process
from grille.proxy.enforcement import Prepared, Ready, Understood
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.proxy.pipe import SharedPipes, Turn
from grille.proxy.quota import Quotas
from grille.proxy.recorder import Recorder
from grille.proxy.services import CancelTable, Services
from grille.proxy.session import Session
from grille.proxy.stream import ByteStream
from grille.proxy.telemetry import Metrics
from grille.proxy.upstream import UpstreamPool

LONG = bool(os.environ.get("GRILLE_LONG"))
SYNC = Sync().encode()
COLUMN = RowDescription((Field("v", 25),)).encode()


# a loop whose time is virtual and whose connections lead to the scripted database


class Selector(selectors.DefaultSelector):
    """Knows when nothing is left to do."""

    idle: asyncio.Future[None] | None = None
    threads = 0.0
    """Real seconds to wait for a thread before nothing is left to do."""
    advance: Callable[[float], None]

    def select(self, timeout: float | None = None) -> Any:
        waits = self.idle is not None and (timeout is None or timeout > 0)
        found = super().select(self.threads if waits else 0)
        if found or (timeout is not None and timeout <= 0):
            return found
        if self.idle is not None:
            idle, self.idle = self.idle, None
            idle.set_result(None)
            return []
        if timeout is None:
            return super().select(None)  # a thread is at work
        self.advance(timeout)
        return []


class Loop(asyncio.SelectorEventLoop):
    """Time passes when the test says so, or when there is nothing else to do."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.quiet = Selector()
        self.quiet.advance = self._pass
        self.dial: Callable[[Wire], Callable[[bytes], None]] | None = None
        super().__init__(self.quiet)

    def time(self) -> float:
        return self.now

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    async def settle(self, seconds: float = 0.0) -> None:
        """Let everything happen that can happen now, ``seconds`` later."""
        self.now += seconds
        self.quiet.idle = self.create_future()
        await self.quiet.idle

    async def create_unix_connection(  # type: ignore[override]
        self, factory: Any, path: Any = None, **_: Any
    ) -> Any:
        stream = factory()
        wire = Wire(self, stream)
        if self.dial is None:
            raise ConnectionRefusedError
        wire.peer = self.dial(wire)
        stream.connection_made(wire)
        return wire, stream


class Wire(asyncio.Transport):
    """A transport in memory: what is written goes to ``peer`` at once."""

    def __init__(self, loop: Loop, stream: asyncio.Protocol) -> None:
        super().__init__()
        self.loop = loop
        self.stream = stream
        self.peer: Callable[[bytes], None] = lambda data: None
        self.closed = False
        self.reading = True
        self.held = bytearray()

    def write(self, data: Any) -> None:
        if not self.closed and data:
            self.peer(bytes(data))

    def deliver(self, data: bytes) -> None:
        """The peer has sent this."""
        if self.closed:
            return
        if self.reading:
            self.stream.data_received(data)
        else:
            self.held += data

    def lose(self) -> None:
        """The peer has gone."""
        if not self.closed:
            self.closed = True
            self.stream.eof_received()
            self.loop.call_soon(self.stream.connection_lost, None)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.loop.call_soon(self.stream.connection_lost, None)
            self.peer(b"")

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        if self.held:
            held, self.held = bytes(self.held), bytearray()
            self.loop.call_soon(self.deliver, held)


# the database


def message(kind: str, payload: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!i", len(payload) + 4) + payload


def error_message(code: str, text: str, severity: str = "ERROR", routine: str = "") -> bytes:
    fields = {"S": severity, "V": severity, "C": code, "M": text}
    return ErrorResponse(fields | ({"R": routine} if routine else {})).encode()


SETTINGS = {"client_encoding": "UTF8", "standard_conforming_strings": "on", "integer_datetimes": "on",
            "TimeZone": "UTC", "server_version": "18.6"}  # fmt: skip
ROWS = {"echo": 1, "rows": 3, "late": 1, "slow": 1, "locked": 1, "large": 2000, "many": 12, "open": 1,
        "hidden": 1, "half": 1, "token": 1, "retry": 1}  # fmt: skip

EVENTS = ("error", "stray error", "notice", "parameter", "same parameter", "notification", "unexpected", "transaction",
          "disconnect", "fatal", "half message", "bad length")  # fmt: skip


class Backend:
    """One connection of the database."""

    def __init__(self, bank: Bank, wire: Wire) -> None:
        self.bank = bank
        self.wire = wire
        self.parameters: dict[str, str] = {}
        self.shared = False
        self.started = False
        self.cancels: int | None = None
        self.statements: dict[str, tuple[str, int]] = {}
        self.portal: tuple[str, bytes] | None = None
        self.out: list[bytes] = []
        """Replies that have not been delivered."""
        self.sent = 0
        """Replies, the first included, since the start."""
        self.seen: list[str] = []
        """Kinds of the messages that have arrived."""
        self.status = "I"
        self.skipping = False
        self.at_sync: bytes | None = None
        self.opens = False
        self.gone = False
        self._in = b""

    def received(self, data: bytes) -> None:
        if self.gone:
            return
        if not data:
            self.gone = True
            return
        self._in += data
        while not self.gone:
            head = 4 if not self.started else 5
            if len(self._in) < head:
                break
            length = struct.unpack("!i", self._in[head - 4 : head])[0] + head - 4
            if len(self._in) < length:
                break
            taken, self._in = self._in[:length], self._in[length:]
            if self.started:
                self._message(chr(taken[0]), taken[5:])
            else:
                self._startup(taken[4:])
        if not self.gone and not self.bank.holds(self):
            self.wire.loop.call_soon(self.pump)

    def _startup(self, payload: bytes) -> None:
        if struct.unpack("!i", payload[:4])[0] == 80877102:
            self.cancels = struct.unpack("!i", payload[4:8])[0]
            self.bank.cancel_requested(self)
            return
        words = payload[4:].split(b"\0")
        self.parameters = {k.decode(): v.decode() for k, v in zip(words[::2], words[1::2], strict=False) if k}
        self.shared = self.parameters.get("default_transaction_read_only") == "on"
        self.started = True
        said = SETTINGS | {k: v for k, v in self.parameters.items() if k in SETTINGS}
        self.wire.loop.call_soon(
            self.wire.deliver,
            message("R", b"\0\0\0\0")
            + b"".join(message("S", f"{k}\0{v}\0".encode()) for k, v in said.items())
            + message("K", struct.pack("!ii", self.bank.backends.index(self) + 1, 7))
            + message("Z", b"I"),
        )

    def pump(self, count: int | None = None, sizes: Iterator[int] | None = None) -> None:
        """Deliver ``count`` replies (all), as one piece or in pieces of these sizes."""
        count = len(self.out) if count is None else count
        data = b"".join(self.out[:count])
        del self.out[:count]
        data, lost, _ = data.partition(LOST)
        while data:
            size = next(sizes) if sizes is not None else len(data)
            self.wire.deliver(data[:size])
            data = data[size:]
        if lost:
            self.wire.lose()

    def lose(self) -> None:
        """Close."""
        self.gone = True
        self.wire.lose()

    # replies

    def _say(self, data: bytes) -> None:
        if self.gone:
            return
        kind = self.bank.event_now(self)
        if kind is not None:
            data = self._event(kind, data)
        self.sent += 1
        self.out.append(data)

    def _event(self, kind: str, data: bytes) -> bytes:
        if kind == "error":
            if data[:1] == b"Z" and self.out and self.out[-1][:1] == b"E":
                return data  # it has failed already
            self.skipping = data[:1] != b"Z"
            return error_message("XX000", "secret") + (data if data[:1] == b"Z" else b"")
        if kind == "transaction":
            if data[:1] == b"Z":
                return message("Z", b"T")
            self.opens = True
            return data
        before = {
            "stray error": error_message("XX000", "secret"),
            "notice": message("N", error_message("00000", "secret", "NOTICE")[5:]),
            "parameter": message("S", b"TimeZone\0Mars\0"),
            "same parameter": message("S", b"TimeZone\0UTC\0"),
            "notification": message("A", b"\0\0\0\1secret\0secret\0"),
            "unexpected": message("c"),
            "bad length": b"D\0\0\0\3",
        }.get(kind)
        if before is not None:
            return before + data
        self.gone = True
        if kind == "fatal":
            return error_message("57P01", "secret", "FATAL") + LOST
        return (data[: len(data) // 2] if kind == "half message" else b"") + LOST

    def _fail(self, code: str, text: str, routine: str = "") -> None:
        self.skipping = True
        if self.status == "T":
            self.status = "E"
        self._say(error_message(code, text, routine=routine))

    def _message(self, kind: str, payload: bytes) -> None:
        self.seen.append(kind)
        if kind == "X":
            self.gone = True
            return
        if kind == "S":
            if self.at_sync is not None:
                late, self.at_sync = self.at_sync, None
                self._say(late)
            self.skipping = False
            self.portal = None
            status, self.opens = ("T" if self.opens else self.status), False
            self._say(message("Z", status.encode()))
            return
        if kind == "H" or self.skipping:
            return
        getattr(self, f"_on_{kind.lower()}")(payload)

    def _on_p(self, payload: bytes) -> None:
        parse = Parse.decode(payload)
        word = parse.text.partition(" ")[0]
        if parse.name and parse.name in self.statements:
            self._fail("42P05", "exists")
        elif word == self.bank.unparsable:
            self._fail("55P03" if word == "locked" else "42703", "secret")
        else:
            self.statements[parse.name] = (parse.text, self.bank.generation)
            self.bank.parses[parse.text] += 1
            self._say(message("1"))

    def _statement(self, name: str) -> tuple[str, bool] | None:
        found = self.statements.get(name)
        if found is None:
            self._fail("26000", "does not exist")
            return None
        if found[1] != self.bank.generation:
            self._fail("0A000", "cached plan must not change result type", "RevalidateCachedQuery")
            return None
        return found[0], True

    def _on_d(self, payload: bytes) -> None:
        describe = Describe.decode(payload)
        if describe.target == "S":
            found = self._statement(describe.name)
            if found is None:
                return
            text = found[0]
            if text.partition(" ")[0] == self.bank.undescribable:
                self._fail("55P03", "secret")
                return
            self._say(message("t", struct.pack("!H", text.count("$")) + b"\0\0\0\x19" * text.count("$")))
            if self.skipping:
                return
        else:
            assert self.portal is not None
            text = self.portal[0]
        self._say(COLUMN if text.partition(" ")[0] in ROWS or "fail" in text else message("n"))

    def _on_b(self, payload: bytes) -> None:
        bind = Bind.decode(payload)
        found = self._statement(bind.statement)
        if found is not None:
            self.portal = found[0], (bind.values[0] if bind.values else b"") or b""
            self._say(message("2"))

    def _on_c(self, payload: bytes) -> None:
        self.statements.pop(Close.decode(payload).name, None)
        self._say(message("3"))

    def _on_e(self, payload: bytes) -> None:
        execute = Execute.decode(payload)
        assert self.portal is not None
        text, value = self.portal
        word = text.partition(" ")[0].lower()
        if self.status == "E" and word != "rollback":
            self._fail("25P02", "aborted")
            return
        self.bank.executed.append((word, value.decode(), self.shared))
        if not self.shared:
            self.bank.on_private()
        if word in ("begin", "commit", "rollback"):
            self.status = "T" if word == "begin" else "I"
            self._say(message("C", word.upper().encode() + b"\0"))
            return
        if word == "fail":
            self._fail("22012", f"secret {value.decode()}")
            return
        if word == "insert":
            if self.shared:
                self._fail("25006", "read only")
            else:
                self._say(message("C", b"INSERT 0 1\0"))
            return
        if self.shared and word in ("slow", "locked"):
            self._fail("57014" if word == "slow" else "55P03", "secret")
            return
        if word == "retry" and self.shared:
            self._fail("40001", "secret")
            return
        if word == "hidden":
            self._say(message("N", error_message("00000", f"secret {value.decode()}", "NOTICE")[5:]))
        row = encode_data_row([value])
        count = ROWS[word]
        suspended = 0 < execute.max_rows < count
        for _ in range(min(count, execute.max_rows) if suspended else count):
            self._say(row)
            if self.skipping or self.gone:
                return
        if word == "half":
            self._fail("22012", f"secret {value.decode()}")
            return
        if word == "late":
            self.at_sync = error_message("23505", f"secret {value.decode()}")
        if word == "open" and self.shared:
            self.opens = True
        self._say(message("s") if suspended else message("C", f"SELECT {count}\0".encode()))


LOST = b"\xffLOST\xff"


class Bank:
    """The database."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.backends: list[Backend] = []
        self.held = True
        """Replies on shared pipes wait for `pump`."""
        self.hold_private = False
        self.hold_cancels = False
        self.on_private: Callable[[], None] = lambda: None
        self.generation = 0
        self.unparsable = ""
        self.undescribable = ""
        self.cancels: list[Backend] = []
        self.event: tuple[int, str] | None = None
        """Before which reply of a shared pipe something happens, and what."""
        self.executed: list[tuple[str, str, bool]] = []
        """Word, value, whether on a shared pipe."""
        self.parses: Counter[str] = Counter()

    def dial(self, wire: Wire) -> Callable[[bytes], None]:
        backend = Backend(self, wire)
        self.backends.append(backend)
        return backend.received

    def holds(self, backend: Backend) -> bool:
        return backend.started and (self.held if backend.shared else self.hold_private)

    def event_now(self, backend: Backend) -> str | None:
        if self.event is None or not backend.shared or backend.sent != self.event[0]:
            return None
        _, kind = self.event
        self.event = None
        return kind

    def cancel_requested(self, backend: Backend) -> None:
        self.cancels.append(backend)
        if not self.hold_cancels:
            self.loop.call_soon(backend.lose)

    @property
    def pipes(self) -> list[Backend]:
        return [backend for backend in self.backends if backend.shared and not backend.gone]

    @property
    def private(self) -> list[Backend]:
        return [backend for backend in self.backends if backend.started and not backend.shared]

    @property
    def waiting(self) -> list[Backend]:
        """Those that have something to deliver."""
        return [backend for backend in self.backends if backend.out and not backend.wire.closed]


# decisions


class Scripted:
    """Every text of one word and a value is a plan of its own; the value is a parameter."""

    async def connect(self, agent: Agent) -> None:
        """Every session is governed."""

    def renew(self) -> int:
        return self.epoch + 1

    def __init__(self) -> None:
        self.limits: dict[str, Limits] = {}
        self.plans: dict[str, dict[str, Any]] = {}
        self.epoch = 0
        self.unfit: set[str] = set()
        """Values whose rows cannot be released."""
        self.release_later: asyncio.Event | None = None
        self.only = ""
        """The one transformation that `release_later` holds up; empty: everything."""
        self.away = False
        """The provider refuses all that it is asked for."""
        self._ready: dict[object, Ready] = {}

    def ready(
        self, agent: Agent, text: bytes, types: tuple[int, ...] = ()
    ) -> tuple[Ready, list[bytes | None] | None] | None:
        prepared = self._prepare(text.decode(), types)
        if prepared is None:
            return None
        key = agent.fingerprint, prepared.understood.text, self.epoch
        ready = self._ready.get(key)
        if ready is None:
            ready = self._ready[key] = Ready(prepared, 1e12, agent)
        values: list[bytes | None] | None = list(prepared.constants) if prepared.understood.is_template else None
        return ready, values

    def _prepare(self, text: str, types: tuple[int, ...]) -> Prepared | None:
        if text in ("begin", "commit", "rollback"):
            command = SessionCommand(text)
            command = msgspec.structs.replace(command, text=text.upper())
            understood = Understood(text, text.encode(), (), command, None, text, False, text.upper())
            return Prepared(text, command, None, (), Limits(), understood, None, False)
        found = re.fullmatch(r"(\w+) (?:'([^']*)'|\$1)", text)
        if found is None:
            return None
        word, value = found[1], found[2]
        sql = f"{word} $1"
        writes = word == "insert"
        plan = Plan(
            sql=sql, name=f"{word}{self.epoch}", parameter_types=(25,), client_parameters=1, literals=(), encode=(),
            injected=(), hidden_columns=0, swallow_rows=False, results=(), writes=writes, row_check_plan=False,
            pure=not writes, keyed=not writes, shared=True, returns_rows=not writes,
        )  # fmt: skip
        plan = msgspec.structs.replace(plan, **self.plans.get(word, {}))
        template = value is not None
        constants = (value.encode(),) if template else ()
        action = "insert" if writes else "select"
        understood = Understood(sql, sql.encode(), (25,), None, None, action, template, sql)
        return Prepared(action, None, plan, constants, self.limits.get(word, Limits()), understood, None, False)

    async def prepare(
        self, agent: Agent, text: str, types: Sequence[int] = (), *, simple: bool = False
    ) -> list[Prepared]:
        found = [self._prepare(part, tuple(types)) for part in text.split("; ")]
        if None in found:
            raise Refusal("ST-01", "not understood", sqlstate="42601")
        return [one for one in found if one is not None]

    def is_current(self, prepared: Prepared) -> bool:
        return prepared.plan is None or prepared.plan.name.endswith(str(self.epoch))

    def still_valid(self, verdict: object) -> None: ...

    async def bind(
        self, agent: Agent, prepared: Prepared, formats: Sequence[int], values: Sequence[bytes | None]
    ) -> tuple[list[int], list[bytes | None]]:
        if prepared.understood.is_template:
            return [0], list(prepared.constants)
        return list(formats), list(values)

    async def release(
        self, agent: Agent, prepared: Prepared, rows: list[list[bytes | None]], formats: Sequence[int]
    ) -> list[list[bytes | None]]:
        (refusal,) = await self.release_all([(prepared, rows)])
        if refusal is not None:
            raise refusal
        return rows

    async def release_all(self, results: Sequence[tuple[Prepared, list[list[bytes | None]]]]) -> list[Refusal | None]:
        needs = [each for prepared, _ in results if prepared.plan for each in prepared.plan.results if each]
        if self.release_later is not None and any(not self.only or each.transformation == self.only for each in needs):
            await self.release_later.wait()
        if self.away:
            raise Refusal("TK-01", "no answer", sqlstate="58000")
        refused: list[Refusal | None] = []
        for _, rows in results:
            bad = any(value is not None and value.decode() in self.unfit for row in rows for value in row)
            refused.append(Refusal("TK-02", "no token", sqlstate="XX001") if bad else None)
        return refused


class Kept(Recorder):
    """Remembers what it kept."""

    entries: list[tuple[bytes, bytes]]
    refuse: Callable[[Event], bool] | None = None

    def submit(self, head: bytes, tail: bytes, time: str, level: Any, done: Any, *args: Any, **more: Any) -> None:
        event = msgspec.json.decode(head + b"0" + tail, type=Event)
        assert level == event.level, "an event is kept at the level that it declares"
        if self.refuse is not None and self.refuse(event):
            asyncio.get_running_loop().call_soon(done, self.unrecordable("the test says so"))
            return

        def kept(refusal: Refusal | None) -> None:
            if refusal is None:
                self.entries.append((head, tail))
            done(refusal)

        super().submit(head, tail, time, level, kept, *args, **more)

    @property
    def events(self) -> list[Event]:
        """Statements, in the order in which they were kept."""
        found = [msgspec.json.decode(head + b"0" + tail, type=Event) for head, tail in self.entries]
        return [event for event in found if event.kind == "statement"]


# clients


Reply = tuple[tuple[str, bytes], ...]


class Client:
    """One agent's connection."""

    def __init__(self, world: World, name: str, agent: Agent) -> None:
        self.world = world
        self.name = name
        self.agent = agent
        self.got = bytearray()
        self.ended = False
        self.stream = ByteStream()
        self.wire = Wire(world.loop, self.stream)
        self.wire.peer = self._written
        self.stream.connection_made(self.wire)
        self.session = Session(self.stream, agent, world.services, f"{name}:1")
        self.task = world.loop.create_task(self.session.run())
        self.key = b""

    def _written(self, data: bytes) -> None:
        if not data:
            self.ended = True
        self.got += data

    def send(self, *messages: Any, sizes: Iterator[int] | None = None) -> None:
        data = b"".join(each if isinstance(each, bytes) else each.encode() for each in messages)
        while data:
            size = next(sizes) if sizes is not None else len(data)
            self.wire.deliver(data[:size])
            data = data[size:]

    def units(self) -> list[Reply]:
        """What has arrived, cut at each ReadyForQuery; what has no end yet comes last."""
        found: list[Reply] = []
        unit: list[tuple[str, bytes]] = []
        position = 0
        while position < len(self.got):
            kind = chr(self.got[position])
            length = struct.unpack_from("!i", self.got, position + 1)[0]
            end = position + 1 + length
            assert end <= len(self.got), "half a message"
            unit.append((kind, bytes(self.got[position + 5 : end])))
            if kind == "Z":
                found.append(tuple(unit))
                unit = []
            position = end
        if unit:
            found.append(tuple(unit))
        return found

    def take(self) -> list[Reply]:
        """`units`, and forget them."""
        found = self.units()
        self.got.clear()
        return found

    async def ask(self, *messages: Any) -> Reply:
        """One unit, answered by whichever connection at once."""
        self.send(*messages)
        await self.world.finish()
        (unit,) = self.take()
        return unit


def shown(unit: Reply) -> str:
    """A reply as kinds, with values and SQLSTATEs: ``T D:A1 C Z``."""
    words = []
    for kind, payload in unit:
        if kind == "D":
            words.append("D:" + ",".join((value or b"NULL").decode() for value in decode_data_row(payload)))
        elif kind == "E":
            words.append("E:" + ErrorResponse.decode(payload).fields["C"])
        elif kind == "Z":
            words.append("Z" if payload == b"I" else "Z" + payload.decode())
        else:
            words.append(kind)
    return " ".join(words)


# the world


class World:
    """One worker in front of the scripted database."""

    def __init__(self, loop: Loop, recorder: Kept, settings: dict[str, Any], config: dict[str, Any]) -> None:
        self.loop = loop
        self.bank = Bank(loop)
        loop.dial = self.bank.dial
        self.scripted = Scripted()
        self.recorder = recorder
        directory = Path("/nowhere")
        database = Database(name="bank", host="/scripted", database="bank", role="grille", tls="off",
                            **({"read_pipes": 1, "pool_size": 4} | settings))  # fmt: skip
        self.pool = UpstreamPool(database)
        self.pipes = SharedPipes(database, Turn(loop))
        self.refreshed = 0

        async def refresh(name: str) -> None:
            self.refreshed += 1
            self.scripted.epoch += 1

        self.services = Services(
            config=Config(
                listener=Listener(port=0, certificate=directory, key=directory, **config),
                trust_domains=(), identities=(), databases=(database,), policy=Policy(bundle=directory),
                audit=Audit(directory=directory, signing_key=directory), admin=Admin(), process=Process(),
            ),
            worker=1, workers=1, enforcement={"bank": self.scripted},  # type: ignore[dict-item]
            pools={"bank": self.pool}, recorder=recorder, metrics=METRICS, cancels=CancelTable(1),
            server_version=lambda name: "18.6", refresh=refresh, quotas=Quotas(), pipes={"bank": self.pipes},
        )  # fmt: skip
        self.clients: list[Client] = []

    async def open_pipes(self) -> None:
        self.pipes.choose(())
        await self.loop.settle()
        await self.loop.settle()

    async def client(self, name: str, *named: str, **parameters: str) -> Client:
        """A client that has started; ``named`` are words that it prepares under their own names."""
        client = Client(self, name, AGENTS[name])
        self.clients.append(client)
        client.send(StartupMessage({"user": "x", **parameters}))
        await self.loop.settle()
        (unit,) = client.take()
        assert unit[-1] == ("Z", b"I")
        client.key = next(payload for kind, payload in unit if kind == "K")
        if named:
            client.send(*(Parse(word, f"{word} $1") for word in named), SYNC)
            await self.finish()
            assert [shown(unit) for unit in client.take()] == ["1 " * len(named) + "Z"]
        return client

    async def finish(self) -> None:
        """Let the database answer everything."""
        await self.loop.settle()
        while self.bank.waiting:
            for backend in self.bank.waiting:
                backend.pump()
            await self.loop.settle()

    async def close(self) -> None:
        for client in self.clients:
            client.wire.lose()
        await self.loop.settle()
        await self.finish()
        assert all(client.task.done() for client in self.clients), "a session hangs"
        for client in self.clients:
            client.task.result()
        await self.pipes.close()
        await self.pool.close()
        await self.loop.settle()


METRICS = Metrics()
AGENTS = {
    name: Registry([Identity(spiffe_id=f"spiffe://bank.example/ns/test/sa/{name.lower()}", database="bank")]).agent(
        parse_spiffe_id(f"spiffe://bank.example/ns/test/sa/{name.lower()}"),
        cert_sha256="ab",
        serial="1",
        not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=1),
    )
    for name in "ABCD"
}


class Lab:
    """Makes worlds on one virtual loop with one recorder."""

    def __init__(self, directory: Path) -> None:
        self.loop = Loop()
        self._directory = directory
        self._numbers = itertools.count()
        self.problems: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.problems.append(context))
        self.recorders: list[Kept] = []

    def recorder(self, reads: str = "process", writes: str = "process") -> Kept:
        audit = Audit(directory=self._directory, signing_key=self._directory, reads=reads, writes=writes)  # type: ignore[arg-type]

        async def make() -> Kept:
            return Kept(Spool(self._directory / f"a{next(self._numbers)}", 0, Ed25519PrivateKey.generate()), audit)

        recorder = self.loop.run_until_complete(make())
        recorder.entries = []
        self.recorders.append(recorder)
        return recorder

    def run(self, play: Callable[[World], Coroutine[Any, Any, None]], *, recorder: Kept | None = None,
            listener: dict[str, Any] | None = None, **settings: Any) -> None:  # fmt: skip
        """Play in a world of its own."""
        recorder = recorder or (self.recorders[0] if self.recorders else self.recorder())
        recorder.entries.clear()

        async def played() -> None:
            world = World(self.loop, recorder, settings, listener or {})
            await world.open_pipes()
            await play(world)
            await world.close()

        self.loop.run_until_complete(played())
        assert not self.problems, self.problems

    def close(self) -> None:
        for recorder in self.recorders:
            self.loop.run_until_complete(recorder.close())
        self.loop.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    for task in asyncio.all_tasks(lab.loop):
        task.cancel()
    lab.close()


# what a client sends, and what it must get


class Unit(NamedTuple):
    """One unit, and its reply as `shown`."""

    data: bytes
    expect: str
    items: tuple[tuple[str, str], ...]
    """Word and value of each execution."""


def simple(word: str, tag: str) -> Unit:
    return Unit(Query(f"{word} '{tag}'").encode(), f"{_reply(word, tag, described=True)} Z", ((word, tag),))


def extended(word: str, tag: str) -> Unit:
    data = b"".join(
        each.encode()
        for each in (Parse("", f"{word} $1"), Bind("", "", (), (tag.encode(),)), Describe("P", ""), Execute(""))
    )
    return Unit(
        data + SYNC, f"1 2 {'n ' if word == 'insert' else ''}{_reply(word, tag, described=True)} Z", ((word, tag),)
    )


def bound(*items: tuple[str, str]) -> Unit:
    """Executions of statements that were prepared under their own words."""
    data = b"".join(Bind("", word, (), (tag.encode(),)).encode() + Execute("").encode() for word, tag in items)
    return Unit(data + SYNC, " ".join(f"2 {_reply(word, tag)}" for word, tag in items) + " Z", items)


def _reply(word: str, tag: str, *, described: bool = False) -> str:
    head = "T " if described and word != "insert" else ""
    rows = f"D:{tag} " * ROWS.get(word, 0)
    end = {"fail": "E:22012", "half": "E:22012", "late": "C E:23505"}.get(word, "C")
    return head + rows + end


def three(name: str, turn: int) -> list[Unit]:
    """Three units of one agent; their kinds change with the turn."""
    makers: list[Callable[[str], Unit]] = [
        lambda tag: simple("echo", tag),
        lambda tag: extended("rows", tag),
        lambda tag: bound(("echo", f"{tag}a"), ("rows", f"{tag}b")),
        lambda tag: simple("fail", tag),
        lambda tag: bound(("echo", tag)),
        lambda tag: extended("half", tag),
    ]
    return [makers[(turn + n * (1 + turn % 2)) % len(makers)](f"{name}{n}") for n in range(3)]


KILLS = frozenset(EVENTS) - {"error", "notice", "same parameter"}


def check(client: Client, units: Sequence[Unit], event: str | None) -> None:
    """Every unit has its own reply, in order; an error of the server may have taken the place of the end of it."""
    replies = [shown(unit) for unit in client.take()]
    assert len(replies) == len(units), (client.name, replies)
    for unit, reply in zip(units, replies, strict=True):
        if reply == unit.expect:
            continue
        assert event in ("error", "stray error"), (client.name, unit.expect, reply)
        before, found, end = reply.partition("E:XX000")
        assert found, reply
        assert end == " Z", reply
        assert unit.expect.startswith(before.strip()), (unit.expect, reply)


def check_events(world: World, units: Sequence[Unit], event: str | None) -> None:
    """Exactly one event for each execution that was answered; the first that failed in a unit is its last."""
    events = world.recorder.events
    open_ = [(word, tag) for unit in units for word, tag in unit.items]
    for kept in events:
        (value,) = kept.values
        assert kept.outcome is not None
        found = [(word, tag) for word, tag in open_ if reveals(value, tag.encode())]
        assert found, f"an event too many: {kept}"
        open_.remove(found[0])
        word, _ = found[0]
        if kept.outcome.status == "ok":
            assert word not in ("fail", "half", "late")
            assert kept.outcome.rows == ROWS.get(word, 1)
        else:
            assert kept.outcome.status == "error"
            assert kept.outcome.sqlstate in ("22012", "23505", "XX000"), kept.outcome
    if event not in ("error", "stray error"):
        assert not open_, "not recorded"


Step = str
"""``A`` or ``B``: this agent sends its next unit.  ``s``: the database answers one unit."""


async def play(world: World, steps: Sequence[Step], turn: int, event: tuple[int, str] | None) -> None:
    """One run of the exhaustive test."""
    plans = {name: three(name, turn + place) for place, name in enumerate("AB")}
    clients = {name: await world.client(name, "echo", "rows") for name in "AB"}
    world.recorder.entries.clear()
    (pipe,) = world.bank.pipes
    if event is not None:
        world.bank.event = pipe.sent + event[0], event[1]
    left = {name: list(units) for name, units in plans.items()}
    for step in steps:
        if step == "s":
            _answer_one(pipe)
        else:
            clients[step].send(left[step].pop(0).data)
        await world.loop.settle()
    await world.finish()
    happened = event[1] if event is not None and world.bank.event is None else None
    for name, client in clients.items():
        check(client, plans[name], happened)
    check_events(world, [*plans["A"], *plans["B"]], happened)
    if happened != "stray error":  # just before ReadyForQuery it is as good as any
        assert pipe.wire.closed == (happened in KILLS), happened
    assert not world.pipes.in_flight
    world.bank.event = None
    for name, client in clients.items():
        assert shown(await client.ask(Query(f"echo 'end{name}'"))) == f"T D:end{name} C Z"


def _answer_one(pipe: Backend) -> None:
    """Deliver up to the next ReadyForQuery."""
    for count, data in enumerate(pipe.out, 1):
        if data[:1] == b"Z":
            pipe.pump(count)
            return
    pipe.pump()


def orders(a: int, b: int) -> Iterator[str]:
    """All interleavings of ``a`` and ``b`` messages of two agents."""
    for places in itertools.combinations(range(a + b), a):
        yield "".join("A" if n in places else "B" for n in range(a + b))


def schedules(order: str) -> Iterator[str]:
    """All places of the database's answers among these messages."""

    def place(rest: str, unanswered: int) -> Iterator[str]:
        if not rest and not unanswered:
            yield ""
        if rest:
            for more in place(rest[1:], unanswered + 1):
                yield rest[0] + more
        if unanswered:
            for more in place(rest, unanswered - 1):
                yield "s" + more

    yield from place(order, 0)


def test_two_agents_in_every_interleaving(lab: Lab) -> None:
    count = 0
    for order in orders(3, 3):
        for number, steps in enumerate(schedules(order)):
            if LONG or number % 12 == 0:
                lab.run(lambda world, steps=steps, turn=count: play(world, steps, turn % 6, None))  # type: ignore[misc]
                count += 1
    assert count == (2640 if LONG else 220), count


@pytest.mark.parametrize("event", EVENTS)
def test_two_agents_and_an_event_at_any_place(lab: Lab, event: str) -> None:
    """Every place of the reply stream, the answers as early and as late as can be."""
    number = count = 0
    for order in orders(3, 3):
        for steps in (order, "".join(f"{name}s" for name in order)):
            for place in range(40):
                number += 1
                if LONG or number % 23 == 0:
                    lab.run(
                        lambda world, steps=steps, turn=number, place=place: play(  # type: ignore[misc]
                            world, steps, turn % 6, (place, event)
                        )
                    )
                    count += 1
    assert count == (1600 if LONG else 69), count


# one hazard at a time (facts of the protocol: see docs/explanation/how-a-statement-flows.md)


def test_begin_slips_through(lab: Lab) -> None:
    """A unit that leaves a transaction open ends its pipe, and is not forgotten with it."""

    async def play(world: World) -> None:
        a, b = await world.client("A"), await world.client("B")
        a.send(simple("open", "A0").data)
        await world.loop.settle()
        b.send(simple("echo", "B0").data)
        await world.finish()
        assert [shown(unit) for unit in a.take()] == ["T D:A0 C Z"]
        assert [shown(unit) for unit in b.take()] == ["T D:B0 C Z"]
        assert ("open", "A0", False) in world.bank.executed

    lab.run(play)


def test_a_statement_that_is_prepared_but_not_described(lab: Lab) -> None:
    """Describe is a request of its own and may fail by itself, on a lock for instance: rows never come without it."""

    async def play(world: World) -> None:
        client = await world.client("A")
        world.bank.undescribable = "echo"
        client.send(simple("echo", "A0").data)
        await world.loop.settle()
        world.bank.undescribable = ""
        client.send(extended("echo", "A1").data, simple("echo", "A2").data)
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["T D:A0 C Z", "1 2 T D:A1 C Z", "T D:A2 C Z"]
        assert not world.pipes.lost

    lab.run(play)


def test_order_holds_when_rows_are_refused_after_the_next_unit(lab: Lab) -> None:
    """Rows are decoded when all have arrived; the next unit is complete by then, and may not go first."""

    async def play(world: World) -> None:
        world.scripted.plans["token"] = {"results": (Transform(None, None),)}
        world.scripted.unfit = {"A0"}
        client = await world.client("A")
        client.send(simple("token", "A0").data, simple("echo", "A1").data, simple("echo", "A2").data)
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["T E:XX001 Z", "T D:A1 C Z", "T D:A2 C Z"]

    lab.run(play)


def test_order_holds_while_the_provider_is_asked(lab: Lab) -> None:
    async def play(world: World) -> None:
        world.scripted.plans["token"] = {"results": (Transform(None, None),)}
        world.scripted.release_later = asyncio.Event()
        a, b = await world.client("A"), await world.client("B")
        a.send(simple("token", "A0").data, simple("echo", "A1").data)
        b.send(simple("echo", "B0").data)
        await world.finish()
        assert not a.got
        assert [shown(unit) for unit in b.take()] == ["T D:B0 C Z"]
        a.send(simple("token", "A2").data, simple("fail", "A3").data, simple("echo", "A4").data)
        await world.finish()
        assert not a.got
        world.scripted.unfit = {"A2"}
        world.scripted.release_later.set()
        await world.finish()
        assert [shown(unit) for unit in a.take()] == [
            "T D:A0 C Z", "T D:A1 C Z", "T E:XX001 Z", "T E:22012 Z", "T D:A4 C Z",
        ]  # fmt: skip

    lab.run(play)


@pytest.mark.parametrize("waits", [False, True])
def test_a_provider_that_is_away_refuses_what_needs_it_and_nothing_else(lab: Lab, waits: bool) -> None:
    """Nothing hangs: each statement has its answer, and the session can go on."""

    async def play(world: World) -> None:
        world.scripted.plans["token"] = {"results": (Transform(None, None),)}
        world.scripted.away = True
        if waits:
            world.scripted.release_later = asyncio.Event()
        a, b = await world.client("A"), await world.client("B")
        a.send(simple("token", "A0").data, simple("echo", "A1").data)
        b.send(simple("token", "B0").data)
        await world.finish()
        if world.scripted.release_later is not None:
            assert not a.got
            world.scripted.release_later.set()
            await world.finish()
        assert [shown(unit) for unit in a.take()] == ["T E:58000 Z", "T D:A1 C Z"]
        assert [shown(unit) for unit in b.take()] == ["T E:58000 Z"]
        world.scripted.away = False
        a.send(simple("token", "A2").data)
        await world.finish()
        assert [shown(unit) for unit in a.take()] == ["T D:A2 C Z"]

    lab.run(play)


def test_rows_do_not_wait_for_tokens_that_only_others_need(lab: Lab) -> None:
    """Also if both came back in the same turn of the loop."""

    async def play(world: World) -> None:
        world.scripted.plans["token"] = {"results": (Transform("ssn", None),)}
        world.scripted.plans["echo"] = {"results": (Transform(None, None),)}
        world.scripted.plans["rows"] = {"results": (Transform("card", None),)}
        world.scripted.only = "ssn"
        world.scripted.release_later = asyncio.Event()
        clients = [await world.client(name) for name in "ABCD"]
        for client, word in zip(clients, ("token", "echo", "rows", "token"), strict=True):
            client.send(simple(word, client.name + "0").data)
        await world.finish()
        assert [bool(client.got) for client in clients] == [False, True, True, False]
        world.scripted.release_later.set()
        await world.finish()
        assert [shown(unit) for client in clients[::3] for unit in client.take()] == ["T D:A0 C Z", "T D:D0 C Z"]

    lab.run(play)


def test_rows_that_are_decoded_come_before_a_later_error(lab: Lab) -> None:
    """What was answered before the error is given whole, as the database gives it."""

    async def play(world: World) -> None:
        world.scripted.plans["token"] = {"results": (Transform(None, None),)}
        client = await world.client("A", "token", "fail", "late")
        world.recorder.entries.clear()
        client.send(bound(("token", "A0"), ("fail", "A1")).data, bound(("token", "A2"), ("late", "A3")).data)
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["2 D:A0 C 2 E:22012 Z", "2 D:A2 C 2 D:A3 C E:23505 Z"]
        outcomes = [event.outcome for event in world.recorder.events]
        assert [(o.status, o.rows) for o in outcomes if o] == [("ok", 1), ("error", 0), ("ok", 1), ("error", 1)]

    lab.run(play)


def test_cancel_never_reaches_a_shared_pipe(lab: Lab) -> None:
    """The statement is answered as cancelled, with none of its rows; its neighbour is not touched."""

    async def play(world: World) -> None:
        a, b = await world.client("A", "echo", "rows"), await world.client("B")
        world.recorder.entries.clear()
        a.send(bound(("echo", "A0"), ("rows", "A1")).data, simple("echo", "A2").data)
        b.send(simple("echo", "B0").data)
        await world.loop.settle()
        number, secret = struct.unpack("!i", a.key[:4])[0], a.key[4:]
        assert world.services.cancels.cancel(number, secret)
        await world.finish()
        assert [shown(unit) for unit in a.take()] == ["E:57014 Z", "T D:A2 C Z"]
        assert [shown(unit) for unit in b.take()] == ["T D:B0 C Z"]
        assert not world.bank.cancels
        told = Counter(event.outcome.status for event in world.recorder.events if event.outcome is not None)
        assert told["ok"] == 2
        assert told["error"] >= 1

    lab.run(play)


@pytest.mark.parametrize("begun", [False, True])
def test_cancel_of_what_waits_for_a_connection(lab: Lab, begun: bool) -> None:
    """It is answered at once and never runs; who stands behind it in the queue gets the connection."""

    async def play(world: World) -> None:
        world.bank.hold_private = True
        a, b, c = [await world.client(name) for name in "ABC"]
        c.send(simple("insert", "C0").data)  # the only connection
        await world.loop.settle()
        if begun:
            a.send(Query("begin"))
            await world.loop.settle()
            assert [shown(unit) for unit in a.take()] == ["C ZT"]
        a.send(simple("insert", "A0").data)
        b.send(simple("insert", "B0").data)
        await world.loop.settle()
        assert world.services.cancels.cancel(struct.unpack("!i", a.key[:4])[0], a.key[4:])
        await world.loop.settle()
        assert [shown(unit) for unit in a.take()] == ["E:57014 ZE" if begun else "E:57014 Z"]
        assert not world.bank.cancels
        world.bank.hold_private = False
        world.bank.private[0].pump()
        await world.finish()
        assert [shown(unit) for client in (b, c) for unit in client.take()] == ["C Z", "C Z"]
        assert {tag for _, tag, _ in world.bank.executed} >= {"B0", "C0"}
        assert "A0" not in {tag for _, tag, _ in world.bank.executed}
        if begun:
            assert shown(await a.ask(Query("rollback"))) == "C Z"
        assert shown(await a.ask(Query("insert 'A1'"))) == "C Z"
        told = [event.outcome.status for event in world.recorder.events if event.outcome is not None]
        assert "denied" in told

    lab.run(play, pool_size=1)


def test_cancel_of_a_private_connection_is_over_before_anything_more_is_sent(lab: Lab) -> None:
    async def play(world: World) -> None:
        world.bank.hold_cancels = True
        client = await world.client("A")
        assert shown(await client.ask(Query("begin"))) == "C ZT"
        world.bank.hold_private = True
        client.send(simple("echo", "A0").data)
        await world.loop.settle()
        (private,) = world.bank.private
        assert world.services.cancels.cancel(struct.unpack("!i", client.key[:4])[0], client.key[4:])
        await world.loop.settle()
        (cancel,) = world.bank.cancels
        assert not cancel.wire.closed
        private.pump()
        await world.loop.settle()
        assert [shown(unit) for unit in client.take()] == ["T D:A0 C ZT"]
        before = len(private.seen)
        client.send(simple("echo", "A1").data)
        await world.loop.settle()
        assert len(private.seen) == before, "sent while the cancel request may still hit it"
        cancel.lose()
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["T D:A1 C ZT"]
        world.bank.hold_private = False
        assert shown(await client.ask(Query("commit"))) == "C Z"

    lab.run(play)


def test_a_cancel_that_comes_before_its_statement_is_sent_again(lab: Lab) -> None:
    """The server forgets the first: its statement had not begun."""

    async def play(world: World) -> None:
        client = await world.client("A")
        world.bank.hold_private = True
        client.send(simple("insert", "A0").data)
        await world.loop.settle()
        (private,) = world.bank.private
        assert world.services.cancels.cancel(struct.unpack("!i", client.key[:4])[0], client.key[4:])
        await world.loop.settle()
        assert len(world.bank.cancels) == 1
        await asyncio.sleep(fastpath.CANCEL_AGAIN + 0.01)
        await world.loop.settle()
        assert len(world.bank.cancels) == 2
        private.pump()
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["C Z"]
        await asyncio.sleep(3 * fastpath.CANCEL_AGAIN)
        await world.loop.settle()
        assert len(world.bank.cancels) == 2

    lab.run(play)


@pytest.mark.parametrize("turns", [0, 1])
def test_a_connection_with_a_cancel_under_way_is_not_lent_again(lab: Lab, turns: int) -> None:
    async def play(world: World) -> None:
        world.bank.hold_cancels = True
        a, b = await world.client("A"), await world.client("B")
        world.bank.hold_private = True
        a.send(simple("insert", "A0").data)
        await world.loop.settle()
        (private,) = world.bank.private
        assert world.services.cancels.cancel(struct.unpack("!i", a.key[:4])[0], a.key[4:])
        if turns:
            await world.loop.settle()
        private.pump()
        b.send(simple("insert", "B0").data)
        await world.finish()
        assert [shown(unit) for unit in a.take()] == ["C Z"]
        assert [shown(unit) for unit in b.take()] == ["C Z"]
        assert len(world.bank.private) == 2
        for cancel in world.bank.cancels:
            cancel.lose()
        await world.finish()

    lab.run(play)


def test_the_event_of_a_failed_statement_tells_what_was_given(lab: Lab) -> None:
    """Rows that came before the error are given to the client, by either path, so the event counts them."""

    async def play(world: World) -> None:
        client = await world.client("A")
        assert shown(await client.ask(Query("half 'A0'"))) == "T D:A0 E:22012 Z"
        world.bank.held = False
        world.scripted.plans["half"] = {"pure": False}
        world.scripted.epoch += 1
        assert shown(await client.ask(Query("half 'A1'"))) == "T D:A1 E:22012 Z"
        outcomes = [event.outcome for event in world.recorder.events]
        assert [(o.status, o.sqlstate, o.rows, o.bytes > 0) for o in outcomes if o] == [("error", "22012", 1, True)] * 2

    lab.run(play)


def test_stale_plan(lab: Lab) -> None:
    """A plan that the server refuses after DDL is prepared again and the unit runs once more, whoever waits for it."""

    async def play(world: World) -> None:
        a, b, c = [await world.client(name) for name in "ABC"]
        for client in (a, b, c):
            await client.ask(simple("echo", f"{client.name}0").data)
        (pipe,) = world.bank.pipes
        world.bank.generation += 1
        a.send(simple("echo", "A1").data)
        b.send(simple("echo", "B1").data)
        await world.loop.settle()
        _answer_one(pipe)  # A's is stale
        c.send(simple("echo", "C1").data)  # prepared anew
        await world.loop.settle()
        _answer_one(pipe)  # B's is stale too, and says nothing of the new one
        await world.loop.settle()
        c.send(simple("echo", "C2").data, extended("echo", "C3").data)
        await world.finish()
        assert [shown(unit) for unit in a.take()] == ["T D:A1 C Z"]
        assert [shown(unit) for unit in b.take()] == ["T D:B1 C Z"]
        assert [shown(unit) for unit in c.take()] == ["T D:C1 C Z", "T D:C2 C Z", "1 2 T D:C3 C Z"]
        assert not pipe.gone
        assert Counter((word, shared) for word, tag, shared in world.bank.executed if tag == "C3") == {
            ("echo", True): 1
        }

    lab.run(play)


def test_a_statement_that_the_session_closed_on_its_connection(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths use one private connection, and its statements are what the server says they are."""
    monkeypatch.setattr(upstream, "STATEMENT_LIMIT", 4)
    monkeypatch.setattr(pipes, "STATEMENT_LIMIT", 4)

    async def play(world: World) -> None:
        client = await world.client("A")
        for text, reply in (
            ("begin", "C ZT"), ("echo 'A0'", "T D:A0 C ZT"), ("commit", "C Z"),
            ("rows '1'; late '2'; hidden '3'; slow '4'", None),  # the session's: closes what is used longest ago
            ("begin", "C ZT"), ("echo 'A4'", "T D:A4 C ZT"), ("commit", "C Z"),
        ):  # fmt: skip
            got = shown(await client.ask(Query(text)))
            assert reply is None or got == reply, (text, got)
        assert len({backend for backend in world.bank.private if not backend.gone}) == 1

    lab.run(play)


def test_a_lost_pipe_leaves_nobody_waiting(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "PIPE_DEPTH", 1)

    async def play(world: World) -> None:
        clients = [await world.client(name) for name in "ABCD"]
        for client in clients:
            client.send(simple("echo", f"{client.name}0").data)
        await world.loop.settle()
        (pipe,) = world.bank.pipes
        pipe.lose()
        await world.finish()
        assert [shown(unit) for client in clients for unit in client.take()] == [f"T D:{n}0 C Z" for n in "ABCD"]

    lab.run(play)


def test_a_client_that_was_paused_is_read_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives while there is no room is bounded; once there is room again, reading goes on."""
    monkeypatch.setattr(pipes, "PIPE_DEPTH", 1)

    async def play(world: World) -> None:
        a, b = await world.client("A"), await world.client("B")
        b.send(simple("echo", "B0").data)
        await world.loop.settle()
        long = "x" * 60_000
        for n in range(6):
            a.send(simple("echo", f"A{n}{long}").data)
            await world.loop.settle()
        assert not a.wire.reading
        await world.finish()
        assert a.wire.reading
        assert [shown(unit) for unit in a.take()] == [f"T D:A{n}{long} C Z" for n in range(6)]
        assert shown(await a.ask(Query("echo 'A6'"))) == "T D:A6 C Z"

    lab.run(play)


def test_an_overloaded_pipe_answers_within_the_queue_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Being overtaken does not start the wait anew, and the wait for a connection of one's own is part of it."""
    monkeypatch.setattr(pipes, "PIPE_DEPTH", 1)

    async def play(world: World) -> None:
        world.bank.hold_private = True
        a, b, c = [await world.client(name) for name in "ABC"]
        c.send(simple("insert", "C0").data)  # the only private connection
        a.send(*(simple("echo", f"A{n}").data for n in range(50)))
        await world.loop.settle()
        b.send(simple("echo", "B0").data)
        for _ in range(38):
            await world.loop.settle(0.25)
        assert not b.got
        for _ in range(4):
            await world.loop.settle(0.25)
        assert [shown(unit) for unit in b.take()] == ["E:53300 Z"]
        world.bank.hold_private = False
        await world.finish()

    lab.run(play, acquire_timeout=10.0, pool_size=1)


def test_fairness(lab: Lab) -> None:
    """One agent with 1,000 statements outstanding on ten connections does not hold up another."""

    async def play(world: World) -> None:
        many = [await world.client("A") for _ in range(10)]
        b = await world.client("B")
        for number, client in enumerate(many):
            client.send(*(simple("echo", f"A{number}.{n}").data for n in range(100)))
        await world.loop.settle()
        (pipe,) = world.bank.pipes
        ahead = sum(data[:1] == b"Z" for data in pipe.out)
        assert ahead <= pipes.AGENT_DEPTH + 1
        b.send(simple("echo", "B0").data)
        await world.loop.settle()
        for _ in range(ahead + 1):
            _answer_one(pipe)
        await world.loop.settle()
        assert [shown(unit) for unit in b.take()] == ["T D:B0 C Z"]
        await world.finish()
        for number, client in enumerate(many):
            assert [shown(unit) for unit in client.take()] == [f"T D:A{number}.{n} C Z" for n in range(100)]

    lab.run(play, acquire_timeout=1000.0)


def test_fairness_among_those_who_wait(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is served in turn by agent."""
    monkeypatch.setattr(pipes, "PIPE_DEPTH", 4)

    async def play(world: World) -> None:
        many = [await world.client("A") for _ in range(10)]
        b = await world.client("B")
        for number, client in enumerate(many):
            client.send(*(simple("echo", f"A{number}.{n}").data for n in range(100)))
        b.send(simple("echo", "B0").data)
        await world.loop.settle()
        (pipe,) = world.bank.pipes
        answered = 0
        while not b.got:
            _answer_one(pipe)
            await world.loop.settle()
            answered += 1
            assert answered < 20, "B waits behind more than a few of A's"
        await world.finish()

    lab.run(play, acquire_timeout=1000.0)


def test_order(lab: Lab) -> None:
    """What a client has in flight stays on one connection; a switch waits until it is drained."""

    async def play(world: World) -> None:
        world.bank.hold_private = True
        client = await world.client("A")
        (pipe,) = world.bank.pipes
        client.send(*(simple(word, f"A{n}").data for n, word in enumerate(("echo", "insert", "echo", "echo"))),
                    Query("begin"), simple("echo", "A5").data, Query("commit"), simple("echo", "A7").data)  # fmt: skip
        await world.loop.settle()
        assert [tag for _, tag, _ in world.bank.executed] == ["A0"]
        pipe.pump()
        await world.loop.settle()
        assert [tag for _, tag, _ in world.bank.executed] == ["A0", "A1"]
        (private,) = world.bank.private
        private.pump()
        await world.loop.settle()
        assert [tag for _, tag, _ in world.bank.executed] == ["A0", "A1", "A2", "A3"]
        pipe.pump()
        await world.loop.settle()
        # BEGIN is answered without the database, which gets it with the first statement.
        assert world.bank.executed[4:] == [("begin", "", False), ("echo", "A5", False)]
        private.pump()
        await world.loop.settle()
        assert world.bank.executed[6:] == [("commit", "", False)]
        world.bank.hold_private = False
        await world.finish()
        assert [shown(unit) for unit in client.take()] == [
            "T D:A0 C Z", "C Z", "T D:A2 C Z", "T D:A3 C Z", "C ZT", "T D:A5 C ZT", "C Z", "T D:A7 C Z",
        ]  # fmt: skip

    lab.run(play)


def control(word: str, name: str = "", *, described: bool = False) -> bytes:
    """BEGIN, COMMIT or ROLLBACK in the extended protocol, as drivers send them, without a Sync."""
    parse = b"" if name else Parse("", word).encode()
    describe = Describe("P", "").encode() if described else b""
    return parse + Bind("", name).encode() + describe + Execute("").encode()


def test_a_transaction_in_the_extended_protocol(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """BEGIN and COMMIT as a driver sends them, alone, described, prepared, or before the first statement."""

    async def play(world: World) -> None:
        client = await world.client("A", "echo")
        client.send(*(Parse(word, word) for word in ("begin", "commit")), SYNC)
        await world.finish()
        client.take()
        slow: list[object] = []
        heard = Session._message

        async def message(session: Session, *args: Any) -> None:
            slow.append(args)
            await heard(session, *args)

        monkeypatch.setattr(Session, "_message", message)
        for name in ("", "name"):
            begin, commit = (control(word, word if name else "") for word in ("begin", "commit"))
            parsed = "" if name else "1 "
            assert shown(await client.ask(begin, SYNC)) == f"{parsed}2 C ZT"
            assert shown(await client.ask(extended("insert", "A0").data)) == "1 2 n C ZT"
            assert shown(await client.ask(commit, SYNC)) == f"{parsed}2 C Z"
            assert world.bank.executed == [("begin", "", False), ("insert", "A0", False), ("commit", "", False)]
            world.bank.executed.clear()
            # As JDBC does: BEGIN has no Sync of its own.
            assert shown(await client.ask(begin, bound(("echo", "A1")).data)) == f"{parsed}2 C 2 D:A1 C ZT"
            assert shown(await client.ask(commit, SYNC)) == f"{parsed}2 C Z"
            assert world.bank.executed == [("begin", "", False), ("echo", "A1", False), ("commit", "", False)]
            world.bank.executed.clear()
        assert shown(await client.ask(control("begin", described=True), SYNC)) == "1 2 n C ZT"
        assert shown(await client.ask(control("rollback", described=True), SYNC)) == "1 2 n C Z"  # never begun there
        assert not world.bank.executed
        await client.ask(control("begin"), extended("echo", "A2").data)
        for _ in range(2):  # prepared on its connection at the first time, described from what is known at the second
            assert shown(await client.ask(control("commit", described=True), SYNC)) == "1 2 n C Z"
            await client.ask(control("begin"), extended("echo", "A2").data)
        await client.ask(Query("commit"))
        assert not slow
        # An error fails the transaction, and what is left of the unit is skipped.
        failing = Parse("", "fail $1").encode() + Bind("", "", (), (b"A3",)).encode() + Execute("").encode()
        assert shown(await client.ask(control("begin"), failing, SYNC)) == "1 2 C 1 2 E:22012 ZE"
        assert shown(await client.ask(extended("echo", "A4").data)) == "E:25P02 ZE"
        assert shown(await client.ask(control("rollback"), SYNC)) == "1 2 C Z"
        assert shown(await client.ask(simple("echo", "A5").data)) == "T D:A5 C Z"
        events = [(event.template, event.outcome.status) for event in world.recorder.events if event.outcome]
        assert events[-5:] == [("BEGIN", "ok"), ("fail $1", "error"), ("", "denied"), ("ROLLBACK", "ok"),
                               ("echo $1", "ok")]  # fmt: skip

    lab.run(play)


def test_more_than_one_command_in_a_unit_is_the_sessions(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fast path does not take keeps its order and its meaning."""

    async def play(world: World) -> None:
        slow: list[object] = []
        heard = Session._message

        async def message(session: Session, *args: Any) -> None:
            slow.append(args)
            await heard(session, *args)

        monkeypatch.setattr(Session, "_message", message)
        client = await world.client("A", "insert")
        insert = Bind("", "insert", (), (b"A0",)).encode() + Execute("").encode()
        assert shown(await client.ask(control("begin"), insert, control("commit"), SYNC)) == "1 2 C 2 C 1 2 C Z"
        assert [word for word, _, _ in world.bank.executed] == ["begin", "insert", "commit"]
        world.bank.executed.clear()
        assert shown(await client.ask(control("begin"), control("commit"), SYNC)) == "1 2 C 1 2 C Z"
        assert not world.bank.executed
        await client.ask(Query("begin"))
        assert shown(await client.ask(insert, control("rollback"), SYNC)) == "2 C 1 2 C Z"
        assert shown(await client.ask(Query("begin"))) == "C ZT"
        slow.clear()
        assert shown(await client.ask(control("commit"), insert, SYNC)) == "1 2 C 2 C Z"
        assert slow, "what follows a COMMIT that fails has to be skipped"

    lab.run(play)


def test_a_begin_that_cannot_be_recorded_fails_the_unit_that_it_begins(lab: Lab) -> None:
    async def play(world: World) -> None:
        client = await world.client("A", "insert")
        world.recorder.refuse = lambda event: event.template == "BEGIN"
        client.send(control("begin"), bound(("insert", "A0")).data, simple("echo", "A1").data)
        await world.finish()
        world.recorder.refuse = None
        first, second = client.take()
        assert [kind for kind, _ in first].count("E") == 1
        assert shown(first).endswith("E:58030 ZE")
        assert [word for word, _, _ in world.bank.executed] == ["begin", "insert"]
        assert shown(second) == "E:25P02 ZE"
        assert shown(await client.ask(Query("rollback"))) == "C Z"
        assert shown(await client.ask(bound(("insert", "A2")).data)) == "2 C Z"

    lab.run(play)


def test_what_follows_a_transaction_is_not_sent_on_its_connection(lab: Lab) -> None:
    """COMMIT is answered and its connection given back, but its event is not kept yet: the next read comes then."""

    async def play(world: World) -> None:
        client = await world.client("A")
        await client.ask(Query("begin"))
        await client.ask(Query("insert 'A0'"))
        world.bank.hold_private = True
        client.send(Query("commit"))
        await world.loop.settle()
        (private,) = world.bank.private
        private.pump()
        client.send(simple("echo", "A1").data)  # in the same turn
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["C Z", "T D:A1 C Z"]
        assert world.bank.executed[-1] == ("echo", "A1", True)

    lab.run(play)


def test_implicit_transaction(lab: Lab) -> None:
    """A unit is forwarded when it is whole, not before: what another client sends cannot come between."""

    async def play(world: World) -> None:
        a, b = await world.client("A", "echo"), await world.client("B")
        (pipe,) = world.bank.pipes
        world.recorder.entries.clear()
        before = len(pipe.seen)
        whole = bound(("echo", "A0"), ("echo", "A1")).data
        a.send(whole[:-1])
        await world.loop.settle()
        assert len(pipe.seen) == before
        assert shown(await b.ask(Query("echo 'B0'"))) == "T D:B0 C Z"
        a.send(whole[-1:])
        await world.finish()
        assert [shown(unit) for unit in a.take()] == ["2 D:A0 C 2 D:A1 C Z"]
        assert [tag for _, tag, _ in world.bank.executed] == ["B0", "A0", "A1"]

    lab.run(play)


def test_half_a_unit_goes_to_the_session_in_time(lab: Lab) -> None:
    async def play(world: World) -> None:
        client = await world.client("A")
        client.send(simple("echo", "A0").data[:-1])
        await world.loop.settle(1000)
        await world.loop.settle(1000)
        (unit,) = client.take()
        assert shown(unit) == "E:08P01"
        assert client.ended

    lab.run(play)


def test_error_after_success(lab: Lab) -> None:
    """CommandComplete, then an error at Sync (a deferred constraint): the outcome is that of ReadyForQuery."""

    async def play(world: World) -> None:
        client = await world.client("A")
        client.send(simple("late", "A0").data)
        await world.loop.settle()
        (pipe,) = world.bank.pipes
        pipe.pump(len(pipe.out) - 2)  # up to CommandComplete
        await world.loop.settle()
        assert not client.got
        assert not world.recorder.events
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["T D:A0 C E:23505 Z"]
        (event,) = world.recorder.events
        assert event.outcome is not None
        assert (event.outcome.status, event.outcome.sqlstate) == ("error", "23505")

    lab.run(play)


def test_unsolicited_messages(lab: Lab) -> None:
    """A notice reaches nobody; the text of a FATAL error neither."""

    async def play(world: World) -> None:
        client = await world.client("A")
        assert shown(await client.ask(Query("hidden 'A0'"))) == "T D:A0 C Z"
        (pipe,) = world.bank.pipes
        pipe.wire.deliver(message("N", error_message("00000", "secret", "NOTICE")[5:]))
        assert shown(await client.ask(Query("echo 'A1'"))) == "T D:A1 C Z"
        assert world.bank.executed[-1][2]
        pipe.wire.deliver(message("S", b"TimeZone\0UTC\0"))
        assert shown(await client.ask(Query("echo 'A2'"))) == "T D:A2 C Z"
        assert world.bank.executed[-1][2]
        pipe.wire.deliver(message("S", b"TimeZone\0Mars\0"))  # between units
        assert pipe.wire.closed
        assert shown(await client.ask(Query("echo 'A3'"))) == "T D:A3 C Z"

    lab.run(play)


def test_a_pipe_that_is_lost_is_opened_again(lab: Lab) -> None:
    """Whatever was in flight counts no more against its agent, and the next ones find a new pipe."""

    async def play(world: World) -> None:
        for turn in range(3):
            clients = [await world.client("A") for _ in range(2)]
            for client in clients:
                client.send(*(simple("echo", f"A{turn}.{n}").data for n in range(pipes.AGENT_DEPTH // 2)))
            await world.loop.settle()
            (pipe,) = world.bank.pipes
            assert len(pipe.out) > pipes.AGENT_DEPTH
            pipe.lose()
            await world.finish()
            for client in clients:
                assert len(client.take()) == pipes.AGENT_DEPTH // 2
            await world.open_pipes()
            await world.loop.settle(pipes.REOPEN_SECONDS)
        assert world.pipes.lost == 3
        assert shown(await clients[0].ask(Query("echo 'A9'"))) == "T D:A9 C Z"
        assert world.bank.executed[-1] == ("echo", "A9", True)

    lab.run(play)


def test_what_runs_again_is_counted_once(lab: Lab) -> None:
    """Against statements_per_minute; so is a unit of which only the first statements may still run."""

    async def play(world: World) -> None:
        world.scripted.limits["echo"] = Limits(statements_per_minute=3)
        client = await world.client("A", "echo")
        client.send(simple("echo", "A0").data)
        await world.loop.settle()
        world.bank.pipes[0].lose()
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["T D:A0 C Z"]
        unit = bound(("echo", "A1"), ("echo", "A2"), ("echo", "A3"))
        client.send(unit.data)
        await world.finish()
        (reply,) = client.take()
        assert shown(reply) == "2 D:A1 C 2 D:A2 C 2 E:53400 Z"

    lab.run(play)


@pytest.mark.parametrize("word", ["slow", "locked", "retry"])
def test_locks_and_slow_statements_run_again_privately(lab: Lab, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(world: World) -> None:
        a, b = await world.client("A"), await world.client("B")
        a.send(simple(word, "A0").data, simple("echo", "A1").data)
        b.send(simple("echo", "B0").data)
        await world.finish()
        assert [shown(unit) for unit in a.take()] == ["T D:A0 C Z", "T D:A1 C Z"]
        assert [shown(unit) for unit in b.take()] == ["T D:B0 C Z"]
        runs = [shared for run, tag, shared in world.bank.executed if tag == "A0"]
        assert runs == [True, False]
        await a.ask(Query(f"{word} 'A2'"))
        runs = [shared for run, tag, shared in world.bank.executed if tag == "A2"]
        assert runs == ([True, False] if word == "retry" else [False]), "it stays off the pipes"
        monkeypatch.setattr(fastpath, "PRIVATE_SECONDS", -1.0)
        world.scripted.epoch += 1
        await a.ask(Query(f"{word} 'A3'"))
        await a.ask(Query(f"{word} 'A4'"))
        runs = [shared for run, tag, shared in world.bank.executed if tag == "A4"]
        assert runs == [True, False], "after that time it may try again"

    lab.run(play)


def test_a_large_result_runs_again_privately(lab: Lab) -> None:
    async def play(world: World) -> None:
        client = await world.client("A")
        for tag in ("A0", "A1"):
            (unit,) = [await client.ask(Query(f"large '{tag}'"))]
            assert shown(unit) == "T " + f"D:{tag} " * 2000 + "C Z"
        assert [(tag, shared) for _, tag, shared in world.bank.executed] == [("A0", True), ("A0", False), ("A1", False)]
        assert not world.pipes.lost

    lab.run(play)


def test_what_waits_for_one_client_is_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many bytes that are not released yet, a client's units run one after the other; none is lost."""
    monkeypatch.setattr(fastpath, "LANE_BYTES", 100)

    async def play(world: World) -> None:
        client = await world.client("A")
        await client.ask(Query("echo 'A'"))
        tags = [f"A{number}" for number in range(9)]
        client.send(*(simple("echo", tag).data for tag in tags))
        await world.finish()
        assert [shown(unit) for unit in client.take()] == [f"T D:{tag} C Z" for tag in tags]
        ran = [tag for _, tag, shared in world.bank.executed if not shared]
        assert ran
        assert ran == tags[-len(ran) :]

    lab.run(play)


def test_what_never_goes_to_a_shared_pipe(lab: Lab) -> None:
    """Several statements in one Query, writes, plans that are not pure or not keyed, whatever else the plan says."""

    async def play(world: World) -> None:
        world.scripted.plans["rows"] = {"pure": False}
        world.scripted.plans["late"] = {"keyed": False}
        client = await world.client("A")
        for text in ("echo 'A0'; echo 'A1'", "insert 'A2'", "rows 'A3'", "late 'A4'"):
            await client.ask(Query(text))
        world.scripted.plans["insert"] = {"pure": True, "keyed": True}
        world.scripted.epoch += 1
        assert shown(await client.ask(Query("insert 'A5'"))) == "C Z"
        assert [shared for _, _, shared in world.bank.executed] == [False] * 6

    lab.run(play)


def test_client_settings(lab: Lab) -> None:
    """A client's settings are part of the key: other settings are other pipes, up to a number of them."""

    async def play(world: World) -> None:
        a = await world.client("A")
        b = await world.client("B", TimeZone="Asia/Tokyo")
        await b.ask(Query("echo 'B0'"))  # opens its pipe
        a.send(simple("echo", "A1").data)
        b.send(simple("echo", "B1").data)
        await world.finish()
        assert [tag for _, tag, shared in world.bank.executed if shared] == ["A1", "B1"]
        assert [pipe.parameters["TimeZone"] for pipe in world.bank.pipes] == ["UTC", "Asia/Tokyo"]
        assert [pipe.seen.count("E") for pipe in world.bank.pipes] == [1, 1]
        for number in range(2 * pipes.PIPE_PROFILES):
            other = await world.client("C", TimeZone=f"Zone/{number}")
            assert shown(await other.ask(Query(f"echo 'C{number}'"))) == f"T D:C{number} C Z"
        assert len(world.bank.pipes) == pipes.PIPE_PROFILES

    lab.run(play)


def test_statement_names(lab: Lab) -> None:
    """A Parse that fails is answered to all that waited for it, with its own error, and is tried again next time."""

    async def play(world: World) -> None:
        a, b = await world.client("A"), await world.client("B")
        world.bank.unparsable = "echo"
        a.send(simple("echo", "A0").data, simple("rows", "A1").data, extended("echo", "A2").data)
        b.send(simple("echo", "B0").data)
        await world.finish()
        # 42703 may be a change of the catalogue: each runs once more by itself, and fails there.
        assert [shown(unit) for unit in a.take()] == ["E:42703 Z", "T D:A1 D:A1 D:A1 C Z", "E:42703 Z"]
        assert [shown(unit) for unit in b.take()] == ["E:42703 Z"]
        assert not world.pipes.lost
        world.bank.unparsable = ""
        assert shown(await a.ask(Query("echo 'A3'"))) == "T D:A3 C Z"
        assert world.bank.executed[-1] == ("echo", "A3", True)

    lab.run(play)


def test_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe keeps so many statements.  What is asked for once more than that goes without a name; asked for again, it
    takes the place of the one that was used longest ago."""
    monkeypatch.setattr(pipes, "STATEMENT_LIMIT", 3)

    async def play(world: World) -> None:
        client = await world.client("A")
        (pipe,) = world.bank.pipes
        for number, word in enumerate(("echo", "rows", "late", "hidden", "rows", "late", "echo")):
            await client.ask(Query(f"{word} 'A{number}'"))
            assert len(pipe.statements.keys() - {""}) <= 3
        assert {world.bank.parses[f"{word} $1"] for word in ("echo", "rows", "late", "hidden")} == {1}
        for number, word in enumerate(("hidden", "hidden", "late", "echo", "rows", "rows", "late", "echo")):
            assert shown(await client.ask(Query(f"{word} 'B{number}'"))).startswith("T D:B")
            assert len(pipe.statements.keys() - {""}) <= 3
        parses = [world.bank.parses[f"{word} $1"] for word in ("echo", "rows", "late", "hidden")]
        # hidden took the place of rows, then rows that of hidden
        assert parses == [1, 3, 1, 2]
        world.bank.parses.clear()
        client.send(*(simple(word, f"A{n}").data for n, word in enumerate(("echo", "rows", "late", "hidden") * 5)))
        await world.finish()
        assert len(client.take()) == 20
        assert not world.pipes.lost

    lab.run(play)


def test_nothing_is_answered_before_its_event_is_kept(lab: Lab) -> None:
    async def play(world: World) -> None:
        client = await world.client("A", "echo")
        kept = len(world.recorder.entries)
        told: list[int] = []
        written = client.wire.peer

        def peer(data: bytes) -> None:
            told.append(len(world.recorder.entries) - kept)
            written(data)

        client.wire.peer = peer
        client.send(bound(("echo", "A0"), ("echo", "A1")).data)
        await world.finish()
        assert told == [2]
        world.recorder.refuse = lambda event: event.kind == "statement"
        client.send(bound(("echo", "A2"), ("echo", "A3")).data, simple("insert", "A4").data, Query("begin"))
        await world.finish()
        replies = [shown(unit) for unit in client.take()]
        world.recorder.refuse = None
        assert replies == ["2 D:A0 C 2 D:A1 C Z", "E:58030 Z", "E:58030 Z", "E:58030 ZE"]
        assert shown(await client.ask(Query("rollback"))) == "C Z"

    lab.run(play)


def test_a_client_that_leaves(lab: Lab) -> None:
    """Its replies go to nobody, and its neighbours on the pipe get theirs."""

    async def play(world: World) -> None:
        a, b = await world.client("A"), await world.client("B")
        a.send(simple("echo", "A0").data, simple("slow", "A1").data, simple("echo", "A2").data)
        b.send(simple("echo", "B0").data)
        await world.loop.settle()
        a.wire.lose()
        await world.finish()
        assert not a.got
        assert [shown(unit) for unit in b.take()] == ["T D:B0 C Z"]
        assert not world.pipes.lost
        assert not world.pipes.in_flight

    lab.run(play)


def test_a_write_whose_connection_is_lost(lab: Lab) -> None:
    """It is not sent again: its outcome is unknown, in the reply and in the event."""

    async def play(world: World) -> None:
        world.bank.hold_private = True
        client = await world.client("A")
        client.send(simple("insert", "A0").data, simple("echo", "A1").data)
        await world.loop.settle()
        (private,) = world.bank.private
        private.lose()
        world.bank.hold_private = False
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["E:08006 Z", "T D:A1 C Z"]
        assert [run for run in world.bank.executed if run[1] == "A0"] == [("insert", "A0", False)]
        outcomes = [event.outcome for event in world.recorder.events if event.outcome is not None]
        assert [outcome.status for outcome in outcomes] == ["unknown", "ok"]

    lab.run(play)


@pytest.mark.parametrize("how", ["lost", "large"])
def test_a_read_that_may_leave_something_behind_runs_once(lab: Lab, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """nextval, or a function of the database's own: what is not pure is not run again, whatever became of it."""
    monkeypatch.setattr(fastpath, "STREAM_BYTES", 20)

    async def play(world: World) -> None:
        world.scripted.plans["rows"] = {"pure": False}
        world.bank.hold_private = True
        client = await world.client("A")
        client.send(simple("rows", "A0aaaaaaaaaa").data, simple("echo", "A1").data)
        await world.loop.settle()
        if how == "lost":
            world.bank.private[0].lose()
        world.bank.hold_private = False
        await world.finish()
        row = "D:A0aaaaaaaaaa "
        first = "E:08006 Z" if how == "lost" else f"T {row * 3}C Z"
        assert [shown(unit) for unit in client.take()] == [first, "T D:A1 C Z"]
        assert [word for word, _, _ in world.bank.executed] == ["rows", "echo"]

    lab.run(play)


def test_a_transaction_whose_connection_is_lost(lab: Lab) -> None:
    async def play(world: World) -> None:
        client = await world.client("A")
        await client.ask(Query("begin"))
        await client.ask(Query("insert 'A0'"))
        world.bank.hold_private = True
        client.send(simple("echo", "A1").data)
        await world.loop.settle()
        (private,) = world.bank.private
        private.lose()
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["E:08006 ZE"]
        assert shown(await client.ask(Query("echo 'A2'"))) == "E:25P02 ZE"
        assert shown(await client.ask(Query("rollback"))) == "C Z"
        world.bank.hold_private = False
        await client.ask(Query("begin"))
        await client.ask(Query("insert 'A3'"))
        world.bank.hold_private = True
        client.send(Query("commit"))
        await world.loop.settle()
        world.bank.private[-1].lose()
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["E:08006 ZE"]
        event = world.recorder.events[-1]
        assert event.outcome is not None
        assert event.outcome.status == "unknown"
        world.bank.hold_private = False

    lab.run(play)


def test_a_connection_that_died_while_its_transaction_was_idle(lab: Lab) -> None:
    async def play(world: World) -> None:
        client = await world.client("A")
        await client.ask(Query("begin"))
        await client.ask(Query("echo 'A0'"))
        world.bank.private[0].lose()
        await world.loop.settle()
        assert shown(await client.ask(Query("echo 'A1'"))) == "E:08006 ZE"
        assert shown(await client.ask(Query("rollback"))) == "C Z"
        assert shown(await client.ask(Query("echo 'A2'"))) == "T D:A2 C Z"

    lab.run(play)


def test_more_units_than_one_client_may_have_in_flight(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastpath, "MAX_UNITS", 4)

    async def play(world: World) -> None:
        client = await world.client("A")
        client.send(*(simple("echo", f"A{n}").data for n in range(50)))
        await world.loop.settle()
        (pipe,) = world.bank.pipes
        assert pipe.seen.count("E") == 4
        await world.finish()
        assert [shown(unit) for unit in client.take()] == [f"T D:A{n} C Z" for n in range(50)]
        assert all(shared for _, _, shared in world.bank.executed)

    lab.run(play)


def test_a_row_limit(lab: Lab) -> None:
    async def play(world: World) -> None:
        world.scripted.limits["rows"] = Limits(rows=2)
        world.scripted.limits["echo"] = Limits(rows=1)
        client = await world.client("A", "echo", "rows")
        world.recorder.entries.clear()
        client.send(bound(("echo", "A0"), ("rows", "A1")).data, simple("echo", "A2").data)
        await world.finish()
        first, second = client.take()
        assert shown(first).endswith("E:53400 Z") or shown(first).endswith("E:54000 Z"), shown(first)
        assert shown(second) == "T D:A2 C Z"

    lab.run(play)


def test_values_that_are_tokenized_are_those_of_the_text(lab: Lab) -> None:
    """Texts that differ in constants share one entry, which was made for the constants of the first."""

    async def play(world: World) -> None:
        world.scripted.plans["echo"] = {"encode": (EncodeSlot(0, "card"),)}
        client = await world.client("A")
        for n in range(3):
            assert shown(await client.ask(Query(f"echo 'A{n}'"))) == f"T D:A{n} C Z"
        assert all(shared for _, _, shared in world.bank.executed)

    lab.run(play)


@pytest.mark.parametrize("turns", range(12))
def test_connections_that_open_one_after_the_other(lab: Lab, turns: int) -> None:
    """Whenever the next one is asked for, nobody's place is lost."""

    async def play(world: World) -> None:
        world.bank.hold_private = True
        a, b = await world.client("A"), await world.client("B")
        a.send(simple("insert", "A0").data)
        for _ in range(turns):
            await asyncio.sleep(0)
        b.send(simple("insert", "B0").data)
        await world.finish()
        assert [shown(unit) for client in (a, b) for unit in client.take()] == ["C Z", "C Z"]
        assert world.pool.counts.idle == 2

    lab.run(play, pool_size=2)


def test_a_strict_write_is_recorded_before_it_is_forwarded(lab: Lab) -> None:
    """The intent is on disk first, the outcome before the reply; what cannot be recorded is not sent."""

    async def play(world: World) -> None:
        client = await world.client("A")
        seen: list[int] = []
        world.bank.on_private = lambda: seen.append(len(world.recorder.events))
        world.bank.hold_private = True
        world.loop.quiet.threads = 0.1
        client.send(simple("insert", "A0").data)
        for _ in range(100):
            await world.loop.settle()
            if world.bank.waiting:
                break
        assert world.bank.executed == [("insert", "A0", False)]
        (intent,) = world.recorder.events
        assert intent.outcome is not None
        assert intent.outcome.status == "intent"
        assert seen == [1]
        assert not client.got
        world.bank.hold_private = False
        for _ in range(100):
            await world.finish()
            if client.got:
                break
        assert [shown(unit) for unit in client.take()] == ["C Z"]
        outcome = world.recorder.events[-1]
        assert outcome.intent == intent.id
        world.recorder.refuse = lambda event: event.outcome is not None and event.outcome.status == "intent"
        client.send(simple("insert", "A1").data)
        await world.finish()
        assert [shown(unit) for unit in client.take()] == ["E:58030 Z"]
        assert len(world.bank.executed) == 1
        world.recorder.refuse = None

    lab.run(play, recorder=lab.recorder(writes="strict"))


# generated runs


def generated(source: random.Random, name: str) -> list[Unit]:
    """Some units of one agent, of every kind, transactions among them."""
    units: list[Unit] = []
    number = itertools.count()

    def one() -> Unit:
        tag = f"{name}{next(number)}"
        word = source.choice(
            ("echo", "echo", "echo", "rows", "hidden", "fail", "half", "late", "slow", "locked", "retry", "many",
             "token", "bad", "insert", "open")
        )  # fmt: skip
        if word == "bad":
            return Unit(simple("token", f"{tag}bad").data, "T E:XX001 Z", (("token", f"{tag}bad"),))
        if word in ("rows", "echo") and source.random() < 0.4:
            items = [(source.choice(("echo", "rows")), f"{tag}.{n}") for n in range(source.randint(1, 3))]
            return bound(*items)
        return (simple if source.random() < 0.6 else extended)(word, tag)

    while len(units) < source.randint(2, 12):
        if source.random() < 0.15:
            units.append(Unit(Query("begin").encode(), "C ZT", ()))
            for _ in range(source.randint(0, 2)):
                inner = simple(source.choice(("echo", "rows", "insert")), f"{name}{next(number)}")
                units.append(inner._replace(expect=inner.expect + "T"))
            units.append(Unit(Query(source.choice(("commit", "rollback"))).encode(), "C Z", ()))
        else:
            units.append(one())
    return units


def pieces(source: random.Random) -> Iterator[int]:
    """Sizes in which bytes arrive."""
    style = source.choice((1, 7, 60, 5000))
    while True:
        yield source.randint(1, style)


async def play_generated(world: World, seed: int) -> None:
    source = random.Random(seed)
    world.scripted.plans["token"] = {"results": (Transform(None, None),)}
    names = "ABCD"
    plans = {name: generated(source, name) for name in names}
    world.scripted.unfit = {tag for units in plans.values() for unit in units for _, tag in unit.items if "bad" in tag}
    clients = {name: await world.client(name, "echo", "rows") for name in names}
    world.recorder.entries.clear()
    event = None
    if source.random() < 0.7:
        event = source.choice(EVENTS)
        world.bank.event = source.randrange(60), event
    world.bank.hold_private = source.random() < 0.5
    data = {name: b"".join(unit.data for unit in units) for name, units in plans.items()}
    depth = source.choice((20, 200, 100_000))
    sizes = {name: pieces(source) for name in names}
    upstream_sizes = pieces(source)
    while any(data.values()):
        name = source.choice([name for name, rest in data.items() if rest])
        size = source.randint(1, depth)
        clients[name].send(data[name][:size], sizes=sizes[name])
        data[name] = data[name][size:]
        if source.random() < 0.5:
            await world.loop.settle()
        for backend in world.bank.waiting:
            if source.random() < 0.4:
                backend.pump(source.randint(1, 8), upstream_sizes)
    world.bank.hold_private = False
    await world.finish()
    happened = event if event is not None and world.bank.event is None else None
    for name, client in clients.items():
        check(client, plans[name], happened)
    check_generated_events(world, [unit for units in plans.values() for unit in units], happened)
    assert not world.pipes.in_flight
    assert world.pool.counts.in_use == 0
    world.bank.event = None
    for name, client in clients.items():
        assert shown(await client.ask(Query(f"echo 'end{name}'"))) == f"T D:end{name} C Z"


def check_generated_events(world: World, units: Sequence[Unit], event: str | None) -> None:
    """Exactly one event tells the outcome of each execution that was answered; it has at most one intent."""
    open_ = Counter(tag for unit in units for _, tag in unit.items)
    intents: set[str] = set()
    told: set[str] = set()
    for kept in world.recorder.events:
        if not kept.values:
            continue  # BEGIN, COMMIT, ROLLBACK
        (value,) = kept.values
        assert kept.outcome is not None
        if kept.outcome.status == "intent":
            intents.add(kept.id)
            continue
        if kept.intent:
            assert kept.intent in intents
            assert kept.intent not in told
            told.add(kept.intent)
        (tag,) = [tag for tag in open_ if reveals(value, tag.encode())]
        open_[tag] -= 1
        assert open_[tag] == 0, f"two outcomes of {tag}"
    assert intents == told
    if event not in ("error", "stray error"):
        assert not +open_, f"not recorded: {+open_}"


def test_generated_runs_of_four_agents(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random units, pipelining, chunks on both sides, and one event."""
    monkeypatch.setattr(fastpath, "PIPE_ROWS", 10)
    first = int(os.environ.get("GRILLE_SEED", "1"))
    for seed in range(first, first + (100_000 if LONG else 100)):
        try:
            lab.run(lambda world, seed=seed: play_generated(world, seed))  # type: ignore[misc]
        except BaseException:
            print(f"GRILLE_SEED={seed}")
            raise
