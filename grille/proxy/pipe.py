"""The database's side of the fast path: upstream connections driven by callbacks, and the shared ones among them.

A `Pipe` drives one upstream connection and matches each reply to the oldest request.  `SharedPipes` holds those on
which bounded reads of many agents follow each other.  What is sent in one turn of the event loop leaves in one write.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from grille.controls import Refusal
from grille.protocols.postgres.framing import ProtocolViolation
from grille.protocols.postgres.messages import (
    NO_DATA,
    Close,
    Describe,
    ParameterStatus,
    Parse,
    RowDescription,
    encode_data_row,
)
from grille.protocols.postgres.pipeline import (
    DATA_ROW,
    ERROR_RESPONSE,
    NOTICE_RESPONSE,
    PARAMETER_STATUS,
    READY_FOR_QUERY,
    ROW_DESCRIPTION,
    Expectation,
    Request,
    UnexpectedReply,
)
from grille.proxy.upstream import MESSAGE_LIMIT, STATEMENT_LIMIT, Profile, UpstreamConnection, UpstreamLost

if TYPE_CHECKING:
    from grille.protocols.postgres.rewrite import Plan
    from grille.proxy.config import Database
    from grille.proxy.fastpath import Item, Lane, Unit

PIPE_DEPTH: Final = 512
"""Units in flight on one shared pipe."""
AGENT_DEPTH: Final = 256
"""Units in flight of one agent on all shared pipes of a database."""
PIPE_STATEMENT_MILLISECONDS: Final = 50
PIPE_LOCK_MILLISECONDS: Final = 20
PIPE_PROFILES: Final = 8
"""Combinations of clients' settings that have pipes of their own; others run on private connections."""
REOPEN_SECONDS: Final = 1.0

SYNC: Final = b"S\0\0\0\4"
AT_SYNC: Final = 1 << 16
"""The item of a unit's Sync: beyond all statements."""
SYNC_EXPECTED: Final = Expectation(Request.SYNC, item=AT_SYNC)

_MOST_FORMATS: Final = 16


class Turn:
    """What is sent at the end of the present turn of the event loop: one write a connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Pipe | Lane] = []

    def add(self, sender: Pipe | Lane) -> None:
        """Have `sender.flush` called."""
        if not self._waiting:
            self._loop.call_soon(self._end)
        self._waiting.append(sender)

    def later(self, callback: Callable[[UpstreamLost], None], lost: UpstreamLost) -> None:
        """Call this in another turn."""
        self._loop.call_soon(callback, lost)

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, []
        for sender in waiting:
            sender.flush()


class Described:
    """What the server said of a statement that is prepared on one connection."""

    __slots__ = ("by_formats", "columns", "error", "known", "pending")

    def __init__(self) -> None:
        self.pending = True
        """It has not been answered yet."""
        self.known = False
        """The server has described it: what is sent from now on needs no Describe of its own."""
        self.error = b""
        """Payload of the ErrorResponse to its Parse; empty if that went well."""
        self.columns = b""
        """Payload of its RowDescription; empty where it returns no rows."""
        self.by_formats: dict[tuple[int, tuple[int, ...]], bytes] = {}

    def shown(self, hidden: int, formats: tuple[int, ...]) -> bytes:
        """The RowDescription without its first ``hidden`` columns, for these result formats; or NoData."""
        if not self.columns:
            return NO_DATA
        key = (hidden, formats)
        found = self.by_formats.get(key)
        if found is None:
            if len(self.by_formats) >= _MOST_FORMATS:
                self.by_formats.clear()
            fields = RowDescription.decode(self.columns).fields[hidden:]
            if formats:
                fields = tuple(
                    msgspec.structs.replace(field, format=formats[0] if len(formats) == 1 else formats[n])
                    for n, field in enumerate(fields)
                )
            found = self.by_formats[key] = RowDescription(fields).encode()
        return found


class Preparation:
    """A Parse of the proxy's own on a connection, a unit of itself: it cannot be skipped by another's error."""

    def __init__(self, pipe: Pipe, name: str, described: Described) -> None:
        self.pipe = pipe
        self.name = name
        self.described = described

    def reply(self, kind: int, payload: bytes, item: int, message: bytes) -> None:
        """One reply to Close, Parse or Describe."""
        if kind == ROW_DESCRIPTION:
            self.described.columns = payload
        elif kind == ERROR_RESPONSE:
            self.described.error = payload

    def finished(self, status: str) -> None:
        """ReadyForQuery has arrived."""
        self.described.pending = False
        if self.described.error:
            self.pipe.forget(self.name, self.described)
        else:
            self.described.known = True

    def lost(self, lost: UpstreamLost) -> None:
        """The connection is gone, and with it all that is known of it."""


class Pipe:
    """One upstream connection, driven by callbacks: many units in flight, each with a Sync of its own."""

    def __init__(
        self, connection: UpstreamConnection, turn: Turn, on_free: Callable[[Pipe], None] | None = None
    ) -> None:
        self.connection = connection
        self.described: OrderedDict[str, Described] = OrderedDict()
        """Statements that are prepared, or about to be, the one used longest ago first."""
        self.units: deque[Unit | Preparation] = deque()
        self._turn = turn
        self._on_free = on_free
        """Called after each unit of a shared pipe, and when the pipe is lost."""
        self.shared = on_free is not None
        self._stream = connection.stream
        self._pipeline = connection.pipeline
        self._out: list[bytes] = []
        self._rest: bytearray | bytes = b""
        self._wanted_once: OrderedDict[str, None] = OrderedDict()
        """Statements that were sent without a name because there was no room, the last one last."""
        self._wanted = 0
        """How long the message that has begun will be, with its header."""
        self.lost = False
        if on_free is not None:
            self._stream.tap = self

    def find(self, plan: Plan) -> Described | None:
        """The named statement of this plan on this connection; it is prepared first where it is not.

        None: the connection is full, and the plan has not been asked for again among the last ones that found it so.
        It is to be sent without a name, which costs less than closing another one for it.
        """
        name = plan.name
        described = self.described.get(name)
        if described is not None and (described.pending or name in self.connection.statements):
            self.described.move_to_end(name)
            return described
        expectations = []
        messages = b""
        if name not in self.connection.statements:
            known = len(self.described) + (described is None)
            # The others are counted only where they matter: with many statements every one comes here.
            if (
                known > STATEMENT_LIMIT
                or known + len(self.connection.statements.keys() - self.described.keys()) > STATEMENT_LIMIT
            ):
                if name not in self._wanted_once:
                    self._wanted_once[name] = None
                    if len(self._wanted_once) > max(1, STATEMENT_LIMIT // 8):
                        self._wanted_once.popitem(last=False)
                    return None
                del self._wanted_once[name]
                victim = next(iter(self.described))
                self.described.pop(victim)
                messages = Close("S", victim).encode()
                expectations.append(Expectation(Request.CLOSE, ours=True, statement=victim))
            messages += Parse(name, plan.sql, plan.parameter_types).encode()
            expectations.append(Expectation(Request.PARSE, ours=True, statement=name))
        described = self.described[name] = Described()
        messages += Describe("S", name).encode() + SYNC
        expectations.append(Expectation(Request.DESCRIBE_STATEMENT, ours=True))
        expectations.append(SYNC_EXPECTED)
        self.send(Preparation(self, name, described), messages, expectations)
        return described

    def drop(self, name: str) -> None:
        """Close a statement that does not fit the server's catalogue any longer."""
        self.described.pop(name, None)
        if name in self.connection.statements and not self.lost:
            del self.connection.statements[name]
            messages = Close("S", name).encode() + SYNC
            expectations = [Expectation(Request.CLOSE, ours=True, statement=name), SYNC_EXPECTED]
            self.send(Preparation(self, name, Described()), messages, expectations)

    def forget(self, name: str, described: Described) -> None:
        """The statement could not be prepared."""
        if self.described.get(name) is described:
            del self.described[name]

    def send(self, unit: Unit | Preparation, messages: bytes, expectations: Sequence[Expectation]) -> None:
        """Send a unit with its Sync; its `reply` and `finished`, or `lost`, are called from here on."""
        if self.lost or self.connection.lost:
            self._die("closed by the server")
            # Not at once: whoever sends has not yet moved on from what it sends.
            self._turn.later(unit.lost, UpstreamLost("closed by the server"))
            return
        self._stream.tap = self
        self._pipeline.sent(expectations)
        self.units.append(unit)
        if not self._out:
            self._turn.add(self)
        self._out.append(messages)

    def flush(self) -> None:
        """Write what was sent in this turn."""
        out, self._out = self._out, []
        if out and not self.lost:
            self._stream.send(b"".join(out))

    # the stream's tap

    def received(self, data: bytes) -> None:
        """Replies have arrived."""
        position = 0
        if self._rest:
            if not isinstance(self._rest, bytearray):
                self._rest = bytearray(self._rest)
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest = b""
        size = len(data)
        self._wanted = 0
        try:
            while size - position >= 5:
                kind = data[position]
                length = (
                    data[position + 1] << 24 | data[position + 2] << 16 | data[position + 3] << 8 | data[position + 4]
                )
                if length < 4 or length > MESSAGE_LIMIT:
                    raise ProtocolViolation("invalid message length")
                end = position + 1 + length
                if end > size:
                    self._wanted = end - position
                    break
                self._message(kind, data[position:end])
                if self.lost:
                    return
                position = end
        except (ProtocolViolation, UnexpectedReply) as error:
            self._die(str(error))
            return
        except UpstreamLost as lost:
            self._die(lost.detail_for_audit or "")
            return
        if position < size:
            self._rest = data[position:]
        if not self.units and not self.shared and self._stream.tap is self:
            self._detach()

    def _message(self, kind: int, message: bytes) -> None:
        if kind == NOTICE_RESPONSE:
            return
        payload = b"" if kind == DATA_ROW else message[5:]
        if kind == PARAMETER_STATUS:
            self.connection.watch(ParameterStatus.decode(payload))
            return
        if kind == ERROR_RESPONSE:
            self.connection.check_severity(payload)
        expectation = self._pipeline.received(kind, payload)
        if expectation is None:
            return
        unit = self.units[0]
        if kind == READY_FOR_QUERY:
            status = self._pipeline.status
            if status != "I" and self.shared:
                raise ProtocolViolation("a shared pipe is left in a transaction")
            self.units.popleft()
            unit.finished(status)
            if self._on_free is not None:
                self._on_free(self)
            return
        if expectation.statement:
            self.connection.acknowledge(kind, expectation.statement)
        unit.reply(kind, payload, expectation.item, message)

    def ended(self) -> None:
        """The server has closed the connection."""
        self._die("closed by the server")

    def _die(self, reason: str) -> None:
        """Close at the first doubt; nobody gets another byte of this connection."""
        if self.lost:
            return
        self.lost = True
        self._stream.tap = None
        self._out.clear()
        self.connection.abort(reason)
        lost = UpstreamLost(reason)
        units, self.units = self.units, deque()
        for unit in units:
            unit.lost(lost)
        if self._on_free is not None:
            self._on_free(self)

    def _detach(self) -> None:
        """Let the connection be used by awaiting again."""
        self._stream.tap = None
        if self._rest:
            rest, self._rest = bytes(self._rest), b""
            self._stream.give_back(rest)

    def abandon(self) -> None:
        """Forget the units in flight: the connection is given up."""
        self.units.clear()
        self._detach()

    def close(self) -> None:
        """Close a shared pipe; what is in flight is lost."""
        self._die("closed by Grille")


class SharedPipes:
    """The shared pipes of one worker to one database, and what else its lanes share.

    Each profile of client settings has ``read_pipes`` of them.  Units that find no room wait, and are sent in turn by
    agent.
    """

    def __init__(self, database: Database, turn: Turn) -> None:
        self.turn = turn
        self._database = database
        self.wait_seconds = database.acquire_timeout / 2
        """How long a unit may wait for room; for a connection of its own it waits the other half."""
        self._loop = asyncio.get_running_loop()
        self._pipes: dict[Profile, list[Pipe]] = {}
        self._opening: dict[Profile, int] = {}
        self._not_before: dict[Profile, float] = {}
        self._running: dict[str, int] = {}
        self._waiting: OrderedDict[str, deque[Lane]] = OrderedDict()
        self._releasing: list[Unit] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self.opened = 0
        self.lost = 0

    def choose(self, profile: Profile) -> Pipe | None:
        """The pipe with least in flight; None if none is open (one is being opened then)."""
        pipes = self._pipes.get(profile)
        if pipes is None:
            if len(self._pipes) >= PIPE_PROFILES:
                return None
            pipes = self._pipes[profile] = []
        if len(pipes) + self._opening.get(profile, 0) < self._database.read_pipes:
            self._open(profile)
        if not pipes:
            return None
        best = pipes[0]
        for pipe in pipes:
            if len(pipe.units) < len(best.units):
                best = pipe
        return best

    def _open(self, profile: Profile) -> None:
        if self._closing or self._loop.time() < self._not_before.get(profile, 0.0):
            return
        self._opening[profile] = self._opening.get(profile, 0) + 1
        self.spawn(self._opened(profile))

    async def _opened(self, profile: Profile) -> None:
        try:
            connection = await UpstreamConnection.open(
                self._database,
                profile,
                shared={
                    "default_transaction_read_only": "on",
                    "statement_timeout": str(PIPE_STATEMENT_MILLISECONDS),
                    "lock_timeout": str(PIPE_LOCK_MILLISECONDS),
                },
            )
        except Refusal:
            self._not_before[profile] = self._loop.time() + REOPEN_SECONDS
            return
        finally:
            self._opening[profile] -= 1
        if self._closing:
            connection.close()
            return
        self.opened += 1
        self._pipes[profile].append(Pipe(connection, self.turn, self._freed))

    def _freed(self, pipe: Pipe) -> None:
        if pipe.lost:
            self.lost += 1
            for pipes in self._pipes.values():
                if pipe in pipes:
                    pipes.remove(pipe)
            waiting, self._waiting = self._waiting, OrderedDict()
            for lane in [lane for lanes in waiting.values() for lane in lanes]:
                lane.resume()
        elif self._waiting:
            agent, lanes = self._waiting.popitem(last=False)
            lane = lanes.popleft()
            if lanes:
                self._waiting[agent] = lanes  # at the end: first all other agents
            lane.resume()

    def enter(self, pipe: Pipe, agent: str) -> bool:
        """Count a unit of this agent; False if there is no room for it now."""
        running = self._running.get(agent, 0)
        if len(pipe.units) >= PIPE_DEPTH or running >= AGENT_DEPTH:
            return False
        self._running[agent] = running + 1
        return True

    def leave(self, agent: str) -> None:
        """Count the end of a unit that has entered."""
        running = self._running.get(agent, 0) - 1
        if running > 0:
            self._running[agent] = running
        else:
            self._running.pop(agent, None)

    def wait(self, lane: Lane, agent: str) -> None:
        """Have `lane.resume` called when there may be room."""
        self._waiting.setdefault(agent, deque()).append(lane)

    def stop_waiting(self, lane: Lane, agent: str) -> None:
        """The lane does not wait any longer."""
        lanes = self._waiting.get(agent)
        if lanes is not None and lane in lanes:
            lanes.remove(lane)
            if not lanes:
                del self._waiting[agent]

    def release_later(self, unit: Unit) -> None:
        """Transform the rows of this unit, together with those of all others that end in this turn of the loop."""
        if not self._releasing:
            self._loop.call_soon(self._release)
        self._releasing.append(unit)

    def _release(self) -> None:
        units, self._releasing = self._releasing, []
        work = self._released(units)
        try:
            work.send(None)
        except StopIteration:
            return
        work.close()
        parts: dict[frozenset[str], list[Unit]] = {}
        for unit in units:  # who needs no token, or others, does not wait for a provider that does not answer
            needs = {name for item in unit.items if item.to_release for name in _transformations(item)}
            parts.setdefault(frozenset(needs), []).append(unit)
        for part in parts.values():
            self.spawn(self._released(part))

    async def _released(self, units: list[Unit]) -> None:
        """One call to the token provider for all."""
        items = [(unit, item) for unit in units for item in unit.items if item.to_release]
        began = time.perf_counter()
        enforcement = units[0].lane.enforcement
        refused: Sequence[Refusal | None]
        try:
            refused = await enforcement.release_all([(item.ready.prepared, item.to_release) for _, item in items])
        except Refusal as away:  # the provider does not answer: each is run by its session, which tells it
            refused = [away] * len(items)
        took = time.perf_counter() - began
        for (unit, item), refusal in zip(items, refused, strict=True):
            item.tokenize += took
            if refusal is not None:
                unit.give_up()
                continue
            decoded = item.ready.decoded_columns
            for row in item.to_release:
                for n in decoded:
                    if row[n] is not None:
                        item.decoded += 1
                message = encode_data_row(row)
                item.nbytes += len(message)
                item.body.append(message)
            if item.byte_limit and item.nbytes > item.byte_limit:
                unit.give_up()
        for unit in units:
            unit.lane.released(unit)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine in the background; `close` waits for it."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def in_flight(self) -> int:
        """Units on all pipes."""
        return sum(len(pipe.units) for pipes in self._pipes.values() for pipe in pipes)

    @property
    def open(self) -> int:
        """Pipes that are open."""
        return sum(len(pipes) for pipes in self._pipes.values())

    async def close(self) -> None:
        """Close all pipes."""
        self._closing = True
        for pipes in list(self._pipes.values()):
            for pipe in list(pipes):
                pipe.close()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _transformations(item: Item) -> list[str]:
    """Those by which values of its rows are decoded."""
    plan = item.ready.plan
    results = plan.results if plan is not None else ()
    return [result.transformation for result in results if result is not None and result.transformation is not None]
