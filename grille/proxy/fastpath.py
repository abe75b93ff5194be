"""The fast path: units of statements that are all known, taken whole in the callback in which they arrive.

A `Lane` is the client's side.  It takes a unit if it is complete and each statement of it is `Ready`; everything else
it hands to its `Session`, which understands all of the protocol, once nothing of this client is in flight any more.
The database's side is a `Pipe`.

A unit of bounded, pure SELECTs goes to a shared pipe, where units of many clients follow each other; any other has a
connection of its own until ReadyForQuery.  A reply is released when ReadyForQuery has arrived and the unit's events are
kept.  A read that a shared pipe cannot answer (too slow, too large, the pipe lost) has released nothing, and is handed
to the session, which runs it on a connection of its own.
"""

from __future__ import annotations

import asyncio
import functools
import struct
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from grille.audit.encoding import commit, event_id, timestamp
from grille.audit.fused import split, statement_event, values_piece
from grille.controls import Refusal
from grille.protocols.postgres.framing import ProtocolViolation
from grille.protocols.postgres.messages import (
    BIND_COMPLETE,
    NO_DATA,
    PARSE_COMPLETE,
    CommandComplete,
    Describe,
    ErrorResponse,
    Execute,
    Parse,
    ReadyForQuery,
    decode_data_row,
)
from grille.protocols.postgres.pipeline import (
    COMMAND_COMPLETE,
    DATA_ROW,
    ERROR_RESPONSE,
    PORTAL_SUSPENDED,
    ROW_DESCRIPTION,
    Expectation,
    Request,
)
from grille.proxy.errors import audit_text, refusal_fields, scrubbed_fields, sqlstate
from grille.proxy.pipe import SYNC, SYNC_EXPECTED, Described, Pipe
from grille.proxy.relay import (
    STREAM_BYTES,
    Portal,
    Run,
    Statement,
    judge,
    may_refuse,
    own_plan,
    own_position,
    visible_columns,
    visible_row,
)
from grille.proxy.stream import HIGH_WATER
from grille.proxy.upstream import Profile, UpstreamConnection, UpstreamLost

if TYPE_CHECKING:
    from grille.audit.event import Event, Level
    from grille.audit.fused import Entry
    from grille.protocols.postgres.commands import SessionCommand
    from grille.protocols.postgres.rewrite import Plan
    from grille.proxy.enforcement import Enforcement, Ready
    from grille.proxy.session import Session
    from grille.proxy.startup import Settings
    from grille.proxy.upstream import Waiter

MAX_UNIT_BYTES: Final = 64 * 1024
MAX_STATEMENTS: Final = 64
"""Of one unit."""
MAX_UNITS: Final = 256
"""Units of one client in flight; more wait in its connection."""
LANE_BYTES: Final = 8 * 1024 * 1024
"""Rows of one client that may wait for their release; what goes beyond it is run again, one unit after the other."""
PIPE_ROWS: Final = 1000
"""Rows of a statement that a shared pipe may answer with."""
CANCEL_AGAIN: Final = 1.0
"""Seconds after which a cancel request that has changed nothing is made again."""
PRIVATE_SECONDS: Final = 60.0
"""How long a statement that was too slow or too large for a shared pipe stays off it."""

_INT16: Final = struct.Struct("!H")
_INT32: Final = struct.Struct("!i")
_NO_FORMATS: Final[tuple[int, ...]] = ()
_NULL: Final = b"\xff\xff\xff\xff"
_TOO_SLOW: Final = frozenset({"57014", "55P03"})
_RECHECK: Final = _TOO_SLOW | {"40001", "40P01"}
"""A read that ends so on a shared pipe runs once more on a connection of its own."""
_MOST_LEARNED: Final = 1000
_DESCRIBE: Final = Describe("P", "").encode()
_READY_BYTES: Final = {status: ReadyForQuery(status).encode() for status in ("I", "T", "E")}
_CANCELLED: Final = b"SERROR\0VERROR\0C57014\0Mcancelled\0\0"
_LOST: Final = b"\0"
T = TypeVar("T")

_Q: Final = 81
_P: Final = 80
_B: Final = 66
_D: Final = 68
_E: Final = 69
_S: Final = 83

_BIND_COMPLETE: Final = 50
_NO_DATA: Final = 110

_BINDS: Final = tuple(Expectation(Request.BIND, item=n) for n in range(MAX_STATEMENTS))
_DESCRIBES: Final = tuple(Expectation(Request.DESCRIBE_PORTAL, item=n) for n in range(MAX_STATEMENTS))
_EXECUTES: Final = tuple(Expectation(Request.EXECUTE, item=n) for n in range(MAX_STATEMENTS))
_PARSES: Final = tuple(Expectation(Request.PARSE, ours=True, item=n) for n in range(MAX_STATEMENTS))
_OWN_PARSE: Final = Expectation(Request.PARSE, ours=True, item=-1)
_OWN_BIND: Final = Expectation(Request.BIND, ours=True, item=-1)
_OWN_EXECUTE: Final = Expectation(Request.EXECUTE, ours=True, item=-1)

_TAKEN: Final = 1
_PARTIAL: Final = 0
_SLOW: Final = -1
_BLOCKED: Final = -2


class Item:
    """One execution of one statement."""

    def __init__(self, ready: Ready, text: bytes, types: tuple[int, ...], values: Sequence[bytes | None]) -> None:
        self.ready = ready
        self.plan: Plan | None = ready.plan
        """What is sent."""
        self.text = text
        self.types = types
        self.values = values
        """What the client gave, for the audit event."""
        self.raw = b""
        """The client's own encoding of its values; empty where they have to be encoded."""
        self.wire = b""
        """Bind, from its formats on to its result formats."""
        self.says = b""
        """ParseComplete and BindComplete, where the client is to see them."""
        self.unnamed = ready.plan is not None and not ready.plan.shared
        """It is parsed each time, since a plan that the server kept would serve other values badly."""
        self.simple = False
        self.describe = False
        """The client is to see a RowDescription."""
        self.described: Described | None = None
        """How its statement was prepared on the connection; None if it has no name."""
        self.known = False
        """No Describe is sent with it."""
        self.result_formats: tuple[int, ...] = ()
        self.swallow = False
        self.hidden = 0
        self.transformed = False
        self.row_limit = 0
        """The first row too many; 0: none."""
        self.byte_limit = 0
        # what came back
        self.bound = False
        self.head = b""
        self.body: list[bytes] = []
        self.tail = b""
        self.to_release: list[list[bytes | None]] = []
        self.rows = 0
        self.nbytes = 0
        self.encoded = 0
        self.decoded = 0
        self.tag = ""
        self.tokenize = 0.0
        self.intent = ""
        self.counted = 0
        """What `Quotas.count` said."""


async def _cancelled(unit: Unit, pipe: Pipe, request: Coroutine[Any, Any, bool]) -> None:
    """Ask again while the unit is not answered: a server that hears of a cancel before the statement forgets it."""
    while await request and not unit.ended and unit.pipe is pipe:
        await asyncio.sleep(CANCEL_AGAIN)
        if unit.ended or unit.pipe is not pipe:
            return
        request = pipe.connection.cancel()


class Unit:
    """What one client sent up to one Sync or Query, while it is in flight."""

    def __init__(self, lane: Lane, items: list[Item], raw: bytes, began: float) -> None:
        self.lane = lane
        self.items = items
        self.raw = raw
        """The client's messages, in case that its session has to run them."""
        self.began = began
        """Seconds since 1970."""
        self.clock = time.perf_counter()
        self.sent_at = 0.0
        self.answered_at = 0.0
        self.pipe: Pipe | None = None
        self.pooled = False
        """The connection is its own until ReadyForQuery."""
        self.local = False
        """Nothing is sent."""
        self.more = False
        """The client's unit goes on behind it: the ReadyForQuery is that of the rest."""
        self.again = False
        """The session has to run it: nothing of it has been released."""
        self.error = b""
        """Payload of the ErrorResponse; empty if all went well."""
        self.failed = 0
        """Which item the error belongs to."""
        self.refusal: Refusal | None = None
        self.fields: dict[str, str] | None = None
        """The error that the client gets."""
        self.outcome: Run | None = None
        """What the event of the failed item says."""
        self.upstream = 0
        self.total = 0
        """Microseconds, up to the making of the events."""
        self.suspended = False
        """It has more rows than a shared pipe may answer with."""
        self.cancelled = False
        self.cancelling = False
        self.timed_out: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.status = "I"
        """Transaction status that the client is told."""
        self.unkept = 0
        """Events that are not kept yet."""
        self.ended = False
        """The database has answered it, or never will."""
        self.decoded = False
        """Its rows are transformed, or need not be."""
        self.over = False
        """Its reply can be released, or it is to be run again."""
        self.nbytes = 0
        self.releases = False
        """Some rows are to be decoded or masked."""

    # replies, called by the pipe

    def reply(self, kind: int, payload: bytes, number: int, message: bytes) -> None:
        """One reply to one of its requests; ``message`` is the whole of it, ``payload`` is empty for a row."""
        if number < 0:  # the fused BEGIN
            if kind == ERROR_RESPONSE:
                self.error = payload
                self.failed = 0
            return
        if number >= len(self.items):
            if kind == ERROR_RESPONSE:  # at Sync: a deferred constraint
                self.error = payload
                self.failed = len(self.items) - 1
            return
        item = self.items[number]
        if kind == DATA_ROW:
            if item.swallow or self.again:
                return
            item.rows += 1
            if item.row_limit and item.rows >= item.row_limit:
                self.give_up()
            elif item.transformed:
                row = list(decode_data_row(message[5:]))
                del row[: item.hidden]
                item.to_release.append(row)
                self.releases = True
                size = len(message)
                self.nbytes += size
                self.lane.buffered += size
            else:
                if item.hidden:
                    message = visible_row(message[5:], item.hidden)
                size = len(message)
                item.nbytes += size
                self.nbytes += size
                self.lane.buffered += size
                item.body.append(message)
                if item.byte_limit and item.nbytes > item.byte_limit:
                    self.give_up()
            if self.nbytes > STREAM_BYTES or self.lane.buffered > LANE_BYTES:
                self.give_up()
        elif kind == _BIND_COMPLETE:
            item.bound = True
            if item.describe and item.known and item.described is not None:
                shown = NO_DATA if item.swallow else item.described.shown(item.hidden, item.result_formats)
                item.head = item.says if item.simple and shown == NO_DATA else item.says + shown
            else:
                item.head = item.says
        elif kind == COMMAND_COMPLETE:
            item.tag, rows = _read_tag(payload)
            item.tail = message
            if item.ready.writes:
                item.rows = rows
        elif kind == ROW_DESCRIPTION:
            if item.describe and not item.swallow:
                item.head += visible_columns(payload, item.hidden)
            elif item.describe and not item.simple:
                item.head += NO_DATA
        elif kind == _NO_DATA:
            if item.describe and not item.simple:
                item.head += NO_DATA
        elif kind == PORTAL_SUSPENDED:
            self.suspended = True
            self.give_up()
        elif kind == ERROR_RESPONSE:
            self.error = payload
            self.failed = number

    def give_up(self) -> None:
        """The result is not for this path: a limit, or too large.  The session runs the unit and tells the client."""
        self.again = True
        until = time.monotonic() + PRIVATE_SECONDS
        for item in self.items:
            item.body.clear()
            item.to_release.clear()
            item.ready.private_until = until
            if not self.suspended:
                item.ready.large_until = until
        if self.pooled:  # it would go on for a long time, and nobody wants the rest
            self.cancel()

    def clear(self) -> None:
        """Give the client nothing of what came back."""
        for item in self.items:
            item.head = item.tail = b""
            item.body.clear()
            item.to_release.clear()
            item.rows = item.nbytes = 0

    def finished(self, status: str) -> None:
        """ReadyForQuery has arrived: the outcome is known."""
        self.ended = True
        self.answered_at = time.perf_counter()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.lane.answered(self, status)

    def lost(self, lost: UpstreamLost) -> None:
        """The connection is gone before the outcome was known."""
        if self.ended:
            return
        self.ended = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.lane.lost(self, lost)

    def expire(self, seconds: float) -> None:
        """The statement takes longer than its agent may use."""
        self.timed_out = seconds
        self.cancel()

    def cancel(self) -> None:
        """End it early."""
        pipe = self.pipe
        if self.cancelling or self.answered_at:
            return
        if pipe is None:
            self.lane.withdraw(self)
            return
        self.cancelling = True
        if pipe.shared:
            self.cancelled = True  # a cancel request could hit another client's statement
        else:
            self.lane.shared.spawn(_cancelled(self, pipe, pipe.connection.cancel()))

    def kept(self, refusal: Refusal | None) -> None:
        """One of its events is kept, or cannot be."""
        self.unkept -= 1
        if refusal is not None:
            self.refusal = refusal
        if self.unkept == 0:
            self.lane.recorded(self)


class Lane:
    """The fast path of one session: it takes the client's bytes while the session waits for them."""

    def __init__(self, session: Session) -> None:
        services = session.services
        agent = session.agent
        self.session = session
        self.units: list[Unit] = []
        """In flight, or waiting for their events to be kept, oldest first."""
        self.shared = services.pipes[agent.database]
        self.enforcement: Enforcement = services.enforcement[agent.database]
        self.active = 0.0
        """Loop time at which a unit was last taken or answered."""
        self.buffered = 0
        """Bytes of rows that wait for their release."""
        self._agent = agent
        self._spiffe_id = agent.spiffe_id
        self._not_after = agent.not_after.timestamp()
        self._pool = services.pools[agent.database]
        self._recorder = services.recorder
        self._metrics = services.metrics
        self._services = services
        self._turn = self.shared.turn
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._decoding: list[Unit] = []
        """Answered, but behind one whose rows are being transformed, or that one itself."""
        self._redo: list[bytes] = []
        """Units that the session has to run, in order."""
        self._failing = False
        """One of those in flight has to run again, and so have all behind it."""
        self._slow = False
        """What has not been taken is for the session."""
        self._stop = False
        """Nothing more is taken until what is in flight is over."""
        self._waiting = False
        """There was no room on the shared pipes."""
        self._wait_until = 0.0
        """Loop time until which the next unit may wait for room; 0: it has not begun to."""
        self._waiter: Waiter | None = None
        """In the queue for a connection."""
        self._waited = False
        """The session's next statement has waited for room."""
        self._timer: asyncio.TimerHandle | None = None
        self._out: list[bytes] = []
        self._entered = 0
        """The limit under which the agent's running statements count this session; 0: they do not."""
        self._closed = False
        self._learned: set[Ready] = set()
        self._settings: Settings | None = None
        self._server_settings: Profile = ()
        self._pieces: dict[str, bytes] = {}
        self._pieces_of: tuple[object, object] = (None, None)

    # the session's side

    def open(self) -> None:
        """The session waits for its client: take what arrives."""
        self.active = self._loop.time()
        self.session.stream.tap = self

    @property
    def busy(self) -> bool:
        """True while units are in flight."""
        return bool(self.units)

    def close(self) -> None:
        """The session uses the connection itself from here on.

        If units are in flight, the session ends: those on a connection of their own are given up, and each is recorded
        when its outcome is known.
        """
        stream = self.session.stream
        if stream.tap is self:
            stream.tap = None
        self._disarm()
        if self._waiting:
            self._waiting = False
            self.shared.stop_waiting(self, self._spiffe_id)
        if not self.units or self._closed:
            return
        self._closed = True
        for unit in list(self.units):
            pipe = unit.pipe
            if pipe is None or pipe.shared or unit.answered_at:
                continue
            pipe.abandon()
            unit.lost(UpstreamLost("the client has left"))

    def patience(self) -> float | None:
        """How long in seconds the session's next statement may wait for a connection; None: as long as any."""
        waited, self._waited = self._waited, False
        return self.shared.wait_seconds if waited else None

    def cancel(self) -> None:
        """Cancel what runs for this client, on its request."""
        if self.units:
            self.units[0].cancel()

    # bytes

    def received(self, data: bytes) -> None:
        """Bytes of the client have arrived."""
        rest = self._rest
        self._rest = rest + data if rest else data
        if self._slow or self._stop or self._waiting:
            if len(self._rest) > HIGH_WATER:
                self.session.stream.pause()
            return
        self._take()

    def ended(self) -> None:
        """The client has left: the session sees that by itself."""

    def resume(self) -> None:
        """Go on with what has arrived and was not taken."""
        if self._waiting:
            self._waiting = False
            self._disarm()
        if not self._closed and not self._slow and not self._stop:
            self.session.stream.resume()
            self._take()

    def _take(self) -> None:
        """Take units from what has arrived, as many as can be."""
        data = self._rest
        position = 0
        size = len(data)
        self._disarm()
        while position < size:
            taken = self._unit(data, position, size)
            if taken > 0:
                position = taken
                continue
            if taken == _PARTIAL:
                if size - position > MAX_UNIT_BYTES:
                    self._slow = True
                else:
                    self._timer = self._loop.call_later(self.session.config.idle_message_timeout, self._give_up)
            elif taken == _SLOW:
                self._slow = True
            break
        self._rest = data[position:] if position else data
        if self._slow:
            self._hand_over()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        """Half a unit does not become whole, or there is no room for one on the shared pipes."""
        self._timer = None
        if self._waiting:
            self._waiting = False
            self._waited = True
            self._wait_until = 0.0
            self.shared.stop_waiting(self, self._spiffe_id)
        self._slow = True
        self._hand_over()

    def _hand_over(self) -> None:
        """Give the session what it has to do, once nothing is in flight."""
        if self.units or self._closed:
            return
        self._slow = self._stop = False
        data = b"".join(self._redo) + self._rest
        self._redo.clear()
        self._rest = b""
        stream = self.session.stream
        if stream.tap is self:
            stream.tap = None
        self._disarm()
        self._leave()
        stream.resume()
        if data:
            stream.give_back(data)

    # units

    def _unit(self, data: bytes, start: int, size: int) -> int:
        """Take the unit that begins at ``start``: where it ends, or why it was not taken."""
        session = self.session
        if len(self.units) >= MAX_UNITS or (self.buffered > STREAM_BYTES and self.units):
            self._stop = True
            return _BLOCKED
        kind = data[start]
        if kind != _Q and kind != _P and kind != _B:
            return _SLOW
        items: list[Item] = []
        position = start
        unnamed = session.statements.get("")
        parsed = b""
        executed = True
        simple = kind == _Q
        more = False
        generation = 0
        now = 0.0
        try:
            while True:
                if size - position < 5:
                    return _PARTIAL
                kind = data[position]
                length = (
                    data[position + 1] << 24 | data[position + 2] << 16 | data[position + 3] << 8 | data[position + 4]
                )
                end = position + 1 + length
                if length < 4 or end - start > MAX_UNIT_BYTES:
                    return _SLOW
                if end > size:
                    return _PARTIAL
                if kind == _Q:
                    if position != start or data[end - 1] != 0:
                        return _SLOW
                    text = data[position + 5 : end - 1]
                    found = self.enforcement.ready(self._agent, text)
                    if found is None:
                        return _SLOW
                    ready, values = found
                    if ready.plan is not None and len(values or ()) != ready.plan.client_parameters:
                        return _SLOW
                    item = Item(ready, text, (), values or ())
                    item.simple = item.describe = True
                    if ready.plan is not None and not self._bind(item, (), ()):
                        return _SLOW
                    items.append(item)
                    position = end
                    break
                if kind == _S:
                    if length != 4:
                        return _SLOW
                    position = end
                    break
                payload = data[position + 5 : end]
                if kind == _P:
                    parse = Parse.decode(payload)
                    if parse.name:
                        return _SLOW
                    text = parse.text.encode()
                    found = self.enforcement.ready(self._agent, text, parse.types)
                    if found is None:
                        return _SLOW
                    unnamed = Statement(parse.text, parse.types, found[0].prepared, None)
                    parsed = PARSE_COMPLETE
                elif kind == _B:
                    bound = _read_bind(payload)
                    if bound is None or len(items) >= MAX_STATEMENTS:
                        return _SLOW
                    name, formats, given, raw, result_formats = bound
                    statement = session.statements.get(name) if name else unnamed
                    if statement is None or statement.chain is not None or statement.answer is not None:
                        return _SLOW
                    if generation == 0:
                        generation = self.enforcement.renew()
                        now = time.monotonic()
                    known = statement.known
                    if known is None or known[0] != generation or now >= known[1].expires:
                        found = self.enforcement.ready(self._agent, statement.encoded, statement.types)
                        if found is None:
                            return _SLOW
                        known = statement.known = (generation, *found)
                    ready, values = known[1], known[2]
                    if values is None:
                        if len(given) != (ready.plan.client_parameters if ready.plan is not None else 0):
                            return _SLOW
                        item = Item(ready, statement.encoded, statement.types, given)
                    elif given:
                        return _SLOW
                    else:
                        item = Item(ready, statement.encoded, statement.types, values)
                        formats, raw = (), b""
                    if name and ready.plan is not None:
                        item.plan = ready.named
                        item.unnamed = False
                    item.result_formats = result_formats
                    item.raw = raw
                    if ready.plan is not None and not self._bind(item, formats, result_formats):
                        return _SLOW
                    item.says = parsed + BIND_COMPLETE
                    parsed = b""
                    items.append(item)
                    executed = False
                elif kind == _D:
                    if payload != b"P\0" or not items or executed or item.describe:
                        return _SLOW
                    item.describe = True
                elif kind == _E:
                    if not items or executed or len(payload) != 5 or payload[0] != 0:
                        return _SLOW
                    if payload[1:] != b"\0\0\0\0" and not item.swallow:
                        return _SLOW
                    executed = True
                    if item.ready.command is not None and len(items) == 1 and end < size and data[end] != _S:
                        more = True
                        position = end
                        break
                else:
                    return _SLOW
                position = end
        except (ProtocolViolation, Refusal, IndexError, UnicodeDecodeError, struct.error):
            return _SLOW
        if not items or not executed or parsed:
            return _SLOW
        taken = self._submit(items, data[start:position], more)
        if taken != _TAKEN:
            return taken
        session.portals.pop("", None)
        if simple:
            session.statements.pop("", None)
        elif unnamed is not None:
            session.statements[""] = unnamed
        return position

    def _bind(self, item: Item, formats: tuple[int, ...], result_formats: tuple[int, ...]) -> bool:
        """Compose the Bind of an item.  False if that has to wait for the token provider."""
        ready = item.ready
        plan = ready.plan
        if plan is None:
            return False
        prepared = ready.prepared
        limits = prepared.limits
        values = item.values
        if limits.distinct_keys_per_hour is not None:
            return False  # the session counts keys
        if self._services.store is not None and (limits.concurrent, limits.statements_per_minute) != (None, None):
            return False  # the session waits for the store
        if plan.encode:
            if prepared.understood.is_template:  # it was prepared with the constants of an earlier text
                prepared = msgspec.structs.replace(prepared, constants=tuple(values))
            bound = _at_once(self.enforcement.bind(self._agent, prepared, formats, values))
            if bound is None:
                return False
            filled_formats, filled = bound
            item.encoded = sum([filled[slot.parameter] is not None for slot in plan.encode])
            wire = _formats(filled_formats) + _values(filled, b"", 0)
        else:
            if any(formats):
                spread = formats * len(values) if len(formats) == 1 else formats
                head = _formats((*spread, *((0,) * ready.added)))
            else:
                head = b"\0\0"
            if item.raw:
                wire = head + _INT16.pack(len(values) + ready.added) + item.raw + ready.tail
            else:
                wire = head + _values(values, ready.tail, ready.added)
        item.swallow = plan.swallow_rows
        item.hidden = plan.hidden_columns
        item.transformed = bool(plan.results)
        if item.swallow or not result_formats:
            wire += b"\0\0"
        elif len(result_formats) == 1:
            wire += _formats(result_formats)
        else:
            wire += _formats((0,) * item.hidden + result_formats)
        item.wire = wire
        if limits.rows is not None and not plan.writes:
            item.row_limit = limits.rows + 1
        item.byte_limit = limits.bytes or 0
        return True

    def _submit(self, items: list[Item], raw: bytes, more: bool) -> int:
        """Send a unit where it may run."""
        session = self.session
        services = self._services
        now = time.time()
        if services.draining.is_set() or now >= self._not_after or session.stream.writing_paused:
            return _SLOW
        if not self._recorder.healthy:
            return _SLOW
        status = session.status
        unit = Unit(self, items, raw, now)
        command = items[0].ready.command
        if command is not None:
            if more and command.kind != "begin":  # it may fail, and what is behind it then has to be skipped
                return _SLOW
            if self.units:
                self._stop = True
                return _BLOCKED
            unit.more = more
            return self._command(unit, command)
        if status == "I":
            if session.begun is not None or session.relay.connection is not None:
                return _SLOW
            shared = self._may_share(items)
            if self.units:
                last = self.units[-1]
                if not shared or last.pipe is None or not last.pipe.shared or last.pipe.lost or last.again:
                    self._stop = True
                    return _BLOCKED
                pipe: Pipe | None = last.pipe
            else:
                pipe = self.shared.choose(self._profile()) if shared else None
            if pipe is not None:
                if not self.shared.enter(pipe, self._spiffe_id):
                    self._waiting = True
                    self.shared.wait(self, self._spiffe_id)
                    if not self._wait_until:
                        self._wait_until = self._loop.time() + self.shared.wait_seconds
                    self._timer = self._loop.call_at(self._wait_until, self._give_up)
                    return _BLOCKED
                self._wait_until = 0.0
                if not self._enter(items):
                    self.shared.leave(self._spiffe_id)
                    return _SLOW
                unit.pipe = pipe
                self._begin(unit)
                self._send(unit)
                return _TAKEN
            unit.pooled = True
        elif status != "T":
            return _SLOW
        if self.units:
            self._stop = True
            return _BLOCKED
        if len(items) > 1 or not self._may_write(items[0]):
            return _SLOW
        if items[0].ready.large_until and items[0].ready.large_until > time.monotonic():
            return _SLOW  # the session streams
        if not self._enter(items):
            return _SLOW
        self._begin(unit)
        self._intend(unit)
        return _TAKEN

    def _profile(self) -> Profile:
        settings = self.session.settings
        if settings is not self._settings:
            self._settings = settings
            self._server_settings = settings.for_server()
        return self._server_settings

    @staticmethod
    def _may_share(items: list[Item]) -> bool:
        now = 0.0
        for item in items:
            ready = item.ready
            if not ready.shared:
                return False
            if ready.private_until:
                now = now or time.monotonic()
                if now < ready.private_until:
                    return False
        return True

    @staticmethod
    def _may_write(item: Item) -> bool:
        """False for what cannot run again, and may have to: a write that may still be refused when it has run, or that
        returns rows, and a read that is not pure; and for what may leave something in its session."""
        plan = item.plan
        if plan is None or not plan.writes:
            return plan is None or plan.pure
        if plan.stateful:
            return False
        return not (may_refuse(item.ready.prepared) or plan.returns_rows)

    def _enter(self, items: list[Item]) -> bool:
        """Count the unit against its agent's limits.  False if the session has to refuse it."""
        quotas = self._services.quotas
        try:
            for item in items:
                limits = item.ready.prepared.limits
                limit = limits.concurrent
                if limit is not None and not 0 < self._entered <= limit:
                    quotas.enter(self._spiffe_id, limit, again=self._entered > 0)
                    self._entered = limit
                if limits.statements_per_minute is not None:
                    item.counted = quotas.count(self._spiffe_id, limits)
        except Refusal:
            self._uncount(items)
            if self._entered and not self.units:
                self._leave()
            return False
        return True

    def _uncount(self, items: list[Item]) -> None:
        """The session counts these, when it runs them."""
        for item in items:
            if item.counted:
                self._services.quotas.uncount(self._spiffe_id, item.counted)
                item.counted = 0

    def _leave(self) -> None:
        """Nothing of this client runs any more."""
        if self._entered:
            self._entered = 0
            self._services.quotas.leave(self._spiffe_id)

    def _begin(self, unit: Unit) -> None:
        """The unit is in flight from here on."""
        self.units.append(unit)
        self.active = self._loop.time()
        for item in unit.items:
            if item.ready not in self._learned:
                if len(self._learned) >= _MOST_LEARNED:
                    self._learned.clear()
                self._learned.add(item.ready)
                self.session.learn(item.ready.prepared)

    def _intend(self, unit: Unit) -> None:
        """At level strict the intent is kept before the statement is forwarded."""
        recorder = self._recorder
        if not any(recorder.level(writes=item.ready.writes) == "strict" for item in unit.items):
            self._lend(unit)
            return

        def kept(refusal: Refusal | None) -> None:
            if refusal is not None:
                for item in unit.items:
                    item.intent = ""
                self._refuse(unit, refusal)
            else:
                self._lend(unit)

        for item in unit.items:
            item.intent = event_id(unit.began)
            self._submit_event(unit, item, item.intent, "intent", kept)

    def _lend(self, unit: Unit) -> None:
        """Get the unit its connection."""
        session = self.session
        if session.relay.connection is not None:
            self._own(unit, session.relay.connection)
            return

        def lent(connection: UpstreamConnection | None, error: Exception | None) -> None:
            self._waiter = None
            if connection is None:
                self._refuse(unit, error if isinstance(error, Refusal) else UpstreamLost(type(error).__name__))
            elif self._closed:
                self._pool.release(connection)
                self._refuse(unit, UpstreamLost("the client has left"))
            else:
                if not unit.pooled:
                    session.hold(connection)
                self._own(unit, connection)

        self._waiter = self._pool.lend(lent, profile=self._profile(), borrower=self._spiffe_id)

    def withdraw(self, unit: Unit) -> None:
        """Cancel a unit that waits for a connection."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._pool.withdraw(waiter)
            self._refuse(
                unit,
                Refusal(
                    "UP-01",
                    "canceled by its client while it waited for a connection to the database",
                    sqlstate="57014",
                    hint="Nothing was executed.",
                ),
            )

    def _own(self, unit: Unit, connection: UpstreamConnection) -> None:
        """Send a unit on a connection that is its own, or its session's."""
        if connection.cancelling:  # it must not hit this one
            self.shared.spawn(self._own_later(unit, connection))
            return
        if connection.pipe is None:
            connection.pipe = Pipe(connection, self._turn)
        unit.pipe = connection.pipe
        seconds = unit.items[0].ready.prepared.limits.seconds
        if seconds is not None:
            unit.timer = self._loop.call_later(seconds, unit.expire, seconds)
        self._send(unit)

    async def _own_later(self, unit: Unit, connection: UpstreamConnection) -> None:
        await connection.not_cancelling()
        if self._closed:
            self._refuse(unit, UpstreamLost("the client has left"))
        else:
            self._own(unit, connection)

    def _send(self, unit: Unit) -> None:
        pipe = unit.pipe
        if pipe is None:
            raise RuntimeError("a unit has no connection to be sent on")
        session = self.session
        parts: list[bytes] = []
        expected: list[Expectation] = []
        shared = not unit.pooled and pipe.shared
        if session.begun is not None:
            begin = own_plan(session.begun)
            name = begin.name
            if pipe.find(begin) is None:
                name = ""
                parts.append(Parse("", begin.sql, begin.parameter_types).encode())
                expected.append(_OWN_PARSE)
            session.begun = None
            parts.append(_bind_message(name, b"\0\0\0\0\0\0") + _execute_message(0))
            expected += (_OWN_BIND, _OWN_EXECUTE)
        number = 0
        for item in unit.items:
            plan = item.plan
            if plan is None:
                continue
            name = ""
            if not item.unnamed:
                item.described = pipe.find(plan)
                if item.described is not None:
                    name = plan.name
                    item.known = item.described.known
            if not name:
                parts.append(Parse("", plan.sql, plan.parameter_types).encode())
                expected.append(_PARSES[number])
            parts.append(_bind_message(name, item.wire))
            expected.append(_BINDS[number])
            if item.describe and not item.known:
                parts.append(_DESCRIBE)
                expected.append(_DESCRIBES[number])
            cap = item.row_limit
            if shared and (not cap or cap > PIPE_ROWS + 1):
                cap = PIPE_ROWS + 1
            parts.append(_execute_message(0 if item.swallow or item.ready.writes else cap))
            expected.append(_EXECUTES[number])
            number += 1
        parts.append(SYNC)
        expected.append(SYNC_EXPECTED)
        unit.sent_at = time.perf_counter()
        pipe.send(unit, b"".join(parts), expected)

    # transactions

    def _command(self, unit: Unit, command: SessionCommand) -> int:
        """BEGIN, COMMIT and ROLLBACK."""
        session = self.session
        item = unit.items[0]
        kind = command.kind
        if kind == "begin" and session.status == "I" and session.relay.connection is None:
            self._begin(unit)
            session.begin(command)
            self._answer(unit, "BEGIN")
            return _TAKEN
        if kind not in ("commit", "rollback") or session.status != "T" or session.settings_changed:
            return _SLOW
        self._begin(unit)
        if session.relay.connection is None:
            session.end()
            self._answer(unit, kind.upper())
            return _TAKEN
        item.plan = own_plan(command.text)
        item.unnamed = False
        item.wire = b"\0\0\0\0\0\0"
        item.describe = item.describe and not item.simple
        self._own(unit, session.relay.connection)
        return _TAKEN

    def _answer(self, unit: Unit, tag: str) -> None:
        """Answer a command that the database does not see."""
        unit.local = True
        item = unit.items[0]
        item.tag = tag
        item.head = item.says + NO_DATA if item.describe and not item.simple else item.says
        item.tail = CommandComplete(tag).encode()
        unit.status = self.session.status
        unit.sent_at = unit.answered_at = unit.clock
        self._record(unit)

    # the outcome

    def answered(self, unit: Unit, status: str) -> None:
        """The database has answered a unit to its end."""
        pipe = unit.pipe
        if pipe is None:
            raise RuntimeError("a unit without a connection was answered")
        if pipe.shared:
            self.shared.leave(self._spiffe_id)
        elif unit.pooled:
            self._pool.release(pipe.connection)
        else:
            self.session.went_on(status)
        unit.status = status
        self.active = self._loop.time()
        if unit.cancelled and not unit.error:
            unit.error = _CANCELLED
            unit.clear()
        if unit.error and not unit.again:
            self._judge(unit, pipe)
        if unit.again or self._failing:
            self._run_again(unit)
        elif unit.releases and (pipe.shared or not unit.error):
            self._decoding.append(unit)
            self.shared.release_later(unit)
        elif self._decoding:  # whether it may go on depends on those before it
            self._decoding.append(unit)
            unit.decoded = True
        else:
            self._record(unit)

    def released(self, unit: Unit) -> None:
        """The rows of a unit are transformed."""
        unit.decoded = True
        decoding = self._decoding
        while decoding and decoding[0].decoded:
            unit = decoding.pop(0)
            if unit.again or self._failing:
                self._run_again(unit)
            else:
                self._record(unit)

    def _judge(self, unit: Unit, pipe: Pipe) -> None:
        """What the client is told of an error, or that the unit has to run again."""
        item = unit.items[unit.failed]
        payload = unit.error
        if item.described is not None and item.described.error and not item.bound:
            payload = item.described.error
        server = ErrorResponse.decode(payload).fields
        refusal, stale = judge(server, item.plan, unit.timed_out)
        code = sqlstate(server)
        if stale and item.described is not None and item.plan is not None:
            pipe.drop(item.plan.name)
        if pipe.shared and not unit.cancelled and (stale or code in _RECHECK):
            unit.again = True
            if code in _TOO_SLOW:
                item.ready.private_until = time.monotonic() + PRIVATE_SECONDS
            return
        if stale and unit.pooled and not item.intent:
            unit.again = True
            return
        if refusal is not None and refusal.decision_id is None and item.ready.prepared.verdict is not None:
            refusal.decision_id = item.ready.prepared.verdict.id
        unit.outcome = self._failed_run(unit, item)
        unit.outcome.status = "denied" if refusal is not None else "error"
        unit.outcome.sqlstate = refusal.sqlstate if refusal is not None else code
        unit.outcome.error = audit_text(server)
        unit.outcome.refusal = refusal
        if refusal is not None:
            unit.fields = refusal_fields(refusal)
        else:
            unit.fields = scrubbed_fields(server, self.session.permitted)
            unit.fields |= own_position(server, item.plan, item.text.decode())

    def lost(self, unit: Unit, lost: UpstreamLost) -> None:
        """The connection broke before the outcome of a unit was known."""
        pipe = unit.pipe
        if pipe is not None and pipe.shared:
            self.shared.leave(self._spiffe_id)
        elif unit.pooled and pipe is not None:
            self._pool.release(pipe.connection)
        elif not self._closed:
            self.session.broke()
            unit.status = self.session.status
        writes = any(item.ready.writes or item.ready.command is not None for item in unit.items)
        if (unit.pooled or (pipe is not None and pipe.shared)) and not writes and not self._closed:
            self._run_again(unit)
            return
        unit.clear()
        unit.failed = 0
        unit.error = _LOST
        unit.fields = refusal_fields(lost)
        unit.outcome = self._failed_run(unit, unit.items[0])
        unit.outcome.status = "unknown" if writes else "error"
        unit.outcome.sqlstate = lost.sqlstate
        unit.outcome.error = lost.detail_for_audit or ""
        self._record(unit)

    def _refuse(self, unit: Unit, refusal: Refusal) -> None:
        """A unit cannot be sent, or what it would do cannot be recorded."""
        item = unit.items[0]
        verdict = item.ready.prepared.verdict
        if refusal.decision_id is None and verdict is not None:
            refusal.decision_id = verdict.id
        unit.failed = 0
        unit.error = _LOST
        unit.fields = refusal_fields(refusal)
        unit.outcome = self._failed_run(unit, item)
        unit.outcome.status = "denied"
        unit.outcome.refusal = refusal
        if not unit.pooled:
            self.session.broke()
        unit.status = self.session.status
        self._record(unit)

    def _run_again(self, unit: Unit) -> None:
        """Leave the unit, and all behind it, to the session."""
        unit.again = unit.over = self._failing = self._slow = True
        self._uncount(unit.items)
        for item in unit.items:
            if item.intent:  # it was not sent again under this intent
                unit.outcome = Run(self._portal(item))
                unit.outcome.status = "error"
                event = self._event_of(unit.outcome, item)
                self._keep(split(event, self._services.worker), event.level, _ignore)
        self._advance()

    # the record

    def _portal(self, item: Item) -> Portal:
        """The item as the session's own records know it."""
        prepared = item.ready.prepared
        portal = Portal(Statement(item.text.decode(), item.types, prepared, None), prepared)
        portal.values = tuple(commit(value, name) for value, name in zip(item.values, item.ready.types, strict=False))
        portal.encoded = item.encoded
        return portal

    def _failed_run(self, unit: Unit, item: Item) -> Run:
        """The failed item as the session's own records know it."""
        run = Run(self._portal(item))
        run.began, run.clock = unit.began, unit.clock
        if unit.sent_at:
            run.upstream = (unit.answered_at or time.perf_counter()) - unit.sent_at
        return run

    def _event_of(self, run: Run, item: Item) -> Event:
        run.intent = item.intent
        return self.session.statement_event(run)

    def _record(self, unit: Unit) -> None:
        """Keep the events of a unit; `recorded` is called then."""
        count = unit.failed if unit.error else len(unit.items)
        outcome = unit.outcome if unit.error else None
        unit.unkept = count + (outcome is not None)
        now = time.perf_counter()
        for item in unit.items[:count]:
            self._submit_event(unit, item, event_id(unit.began), "ok", unit.kept, now)
        if outcome is not None:
            item = unit.items[unit.failed]
            outcome.rows, outcome.bytes, outcome.decoded = len(item.body), item.nbytes, item.decoded
            event = self._event_of(outcome, item)
            try:
                entry = split(event, self._services.worker)
            except ValueError as error:
                unit.kept(self._recorder.unrecordable(str(error)))
                return
            self._keep(entry, event.level, unit.kept)

    def _keep(self, entry: Entry, level: Level, done: Callable[[Refusal | None], None]) -> None:
        head, tail, when, intent_of, intent_id = entry
        self._recorder.submit(head, tail, when, level, done, intent_of=intent_of, intent_id=intent_id)

    def _submit_event(
        self, unit: Unit, item: Item, ident: str, status: str, done: Callable[[Refusal | None], None], now: float = 0.0
    ) -> None:
        ready = item.ready
        level: Level = self._recorder.level(writes=ready.writes) if ready.plan is not None else "process"
        when = timestamp(unit.began)
        upstream = int((unit.answered_at - unit.sent_at) * 1e6)
        total = int(((now or time.perf_counter()) - unit.clock) * 1e6)
        unit.upstream, unit.total = upstream, total
        head, tail = statement_event(
            self._piece(level),
            ready.template,
            ready.verdict,
            ident,
            when,
            self._services.worker,
            len(item.text),
            values_piece(ready.types, item.values),
            status,
            item.tag,
            item.rows,
            item.nbytes,
            item.encoded if status == "ok" else 0,
            item.decoded,
            0,
            0,
            int(item.tokenize * 1e6),
            upstream,
            total,
            item.intent if status == "ok" else "",
        )
        if status == "intent":
            self._recorder.submit(head, tail, when, level, done, intent_id=ident)
        else:
            self._recorder.submit(head, tail, when, level, done, intent_of=item.intent)

    def _piece(self, level: Level) -> bytes:
        """What is the same in all events of the session."""
        session = self.session
        if session.settings is not self._pieces_of[0] or session.chain is not self._pieces_of[1]:
            self._pieces.clear()
            self._pieces_of = (session.settings, session.chain)
        found = self._pieces.get(level)
        if found is None:
            found = self._pieces[level] = session.event_piece(level)
        return found

    def recorded(self, unit: Unit) -> None:
        """The events of a unit are kept, or cannot be: then the client does not get what it did (AU-01)."""
        if unit.refusal is not None and unit.more:
            # The database knows nothing of it.  The session refuses it, with what the client sent behind it.
            self.session.end()
            self._loop.call_soon(self._run_again, unit)
            return
        if unit.refusal is not None:
            unit.fields = refusal_fields(unit.refusal)
            unit.clear()
            if unit.status == "T":
                self.session.broke()
                unit.status = self.session.status
        unit.over = True
        self._advance()

    def _advance(self) -> None:
        """Release what is over, in order."""
        units = self.units
        audited = time.perf_counter()
        while units and units[0].over:
            unit = units.pop(0)
            self.buffered -= unit.nbytes
            if unit.again:
                self._redo.append(unit.raw)
                continue
            if self._closed:
                continue
            if not self._out:
                self._turn.add(self)
            out = self._out
            for item in unit.items:
                out.append(item.head)
                out += item.body
                out.append(item.tail)
            if unit.fields is not None:
                out.append(ErrorResponse(unit.fields).encode())
            if not unit.more:
                out.append(_READY_BYTES[unit.status])
            self._count(unit, audited)
        if units:
            return
        self._leave()
        if self._closed:
            return
        if self._slow:
            self._failing = False
            self._hand_over()
        elif self._stop:
            self._stop = False
            self.session.stream.resume()
            if self._rest:
                self._take()
        if self._services.draining.is_set():
            self.session.interrupt()

    def _count(self, unit: Unit, audited: float) -> None:
        audit = int((audited - unit.answered_at) * 1e6)
        count = unit.failed if unit.error else len(unit.items)
        for item in unit.items[:count]:
            prepared = item.ready.prepared
            self._metrics.count(
                prepared.action,
                "ok",
                prepared.verdict.decision.control if prepared.verdict is not None else "",
                item.rows,
                item.encoded,
                item.decoded,
                int(item.tokenize * 1e6),
                unit.upstream,
                audit,
                unit.total + audit,
            )
        if unit.error and unit.outcome is not None:
            item = unit.items[unit.failed]
            self._metrics.observe(self._event_of(unit.outcome, item), item.ready.prepared.action)

    def flush(self) -> None:
        """Send the client what was released in this turn."""
        out, self._out = self._out, []
        self.session.stream.send(b"".join(out))


def _at_once(work: Coroutine[Any, Any, T]) -> T | None:
    """The result of a coroutine that does not have to wait for anything, else None.  Raises what it raises."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    return None


def _read_bind(
    payload: bytes,
) -> tuple[str, tuple[int, ...], list[bytes | None], bytes, tuple[int, ...]] | None:
    """Statement, formats, values, the same as they were encoded, and result formats of a Bind to the unnamed portal.

    None if it is another, or malformed: then the session tells what is wrong with it.  Raises IndexError or
    UnicodeDecodeError for some that are malformed.
    """
    size = len(payload)
    if payload[0] != 0:
        return None
    end = payload.find(0, 1)
    if end < 0:
        return None
    name = payload[1:end].decode()
    position = end + 1
    count = payload[position] << 8 | payload[position + 1]
    position += 2
    formats = _NO_FORMATS
    if count:
        formats = _read_formats(payload, position, count)
        position += 2 * count
    parameters = payload[position] << 8 | payload[position + 1]
    position += 2
    if count > 1 and count != parameters:
        return None
    start = position
    values: list[bytes | None] = []
    for _ in range(parameters):
        if payload[position] == 255:
            if payload[position : position + 4] != _NULL:
                return None
            values.append(None)
            position += 4
            continue
        length = (
            payload[position] << 24 | payload[position + 1] << 16 | payload[position + 2] << 8 | payload[position + 3]
        )
        position += 4
        if length > size - position:
            return None
        values.append(payload[position : position + length])
        position += length
    raw = payload[start:position]
    count = payload[position] << 8 | payload[position + 1]
    position += 2
    results = _NO_FORMATS
    if count:
        results = _read_formats(payload, position, count)
        position += 2 * count
    if position != size:
        return None
    return name, formats if parameters else _NO_FORMATS, values, raw, results


def _read_formats(payload: bytes, position: int, count: int) -> tuple[int, ...]:
    codes = struct.unpack_from(f"!{count}h", payload, position)
    for code in codes:
        if code not in (0, 1):
            raise ProtocolViolation(f"unsupported format code: {code}", fatal=False)
    return codes


def _formats(codes: Sequence[int]) -> bytes:
    return struct.pack(f"!H{len(codes)}h", len(codes), *codes)


def _values(values: Sequence[bytes | None], tail: bytes, added: int) -> bytes:
    parts = [_INT16.pack(len(values) + added)]
    for value in values:
        parts.append(_NULL if value is None else _INT32.pack(len(value)) + value)
    parts.append(tail)
    return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def _read_tag(payload: bytes) -> tuple[str, int]:
    """Command tag and number of rows of a CommandComplete.  Raises ProtocolViolation."""
    complete = CommandComplete.decode(payload)
    return complete.tag, complete.rows


def _bind_message(name: str, wire: bytes) -> bytes:
    encoded = name.encode()
    return b"B" + _INT32.pack(len(encoded) + len(wire) + 6) + b"\0" + encoded + b"\0" + wire


@functools.lru_cache(maxsize=1024)
def _execute_message(rows: int) -> bytes:
    return Execute("", rows).encode()


def _ignore(refusal: Refusal | None) -> None:
    """Nobody waits for this event."""
