"""A session that is carried unchanged, because policy and configuration both say so (control AC-08).

Its client talks to one backend of its own for as long as it stays: original texts, original errors, COPY, LISTEN,
cursors, DDL.  The wire is still understood.  Every message is cut, checked for its form and its place, and every reply
is matched to what asked for it; what is not known passes in neither direction.  Every Query and every Execute has its
audit event, and is not answered before that is kept.

Units go one by one: after a Sync or a Query the client is read again when ReadyForQuery, or the server's wish for COPY
data, has been passed on.  So a cancel request can hit nothing but the unit it was meant for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import secrets
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NoReturn

from grille.audit.encoding import commit
from grille.audit.event import Chain, Event, Outcome, Value
from grille.controls import Refusal
from grille.protocols.postgres import state
from grille.protocols.postgres.framing import Frames, ProtocolViolation
from grille.protocols.postgres.messages import (
    Bind,
    Close,
    CommandComplete,
    CopyData,
    CopyDone,
    CopyFail,
    Describe,
    ErrorResponse,
    Execute,
    Flush,
    FrontendMessage,
    Oversized,
    ParameterStatus,
    Parse,
    Query,
    Sync,
    Terminate,
    decode_in_any_encoding,
)
from grille.protocols.postgres.pipeline import (
    COMMAND_COMPLETE,
    COPY_DATA,
    COPY_IN_RESPONSE,
    DATA_ROW,
    ERROR_RESPONSE,
    NOTICE_RESPONSE,
    NOTIFICATION_RESPONSE,
    PARAMETER_STATUS,
    READY_FOR_QUERY,
    Expectation,
    Request,
    UnexpectedReply,
)
from grille.protocols.postgres.statement import redacted
from grille.proxy import enforcement
from grille.proxy.config import Database
from grille.proxy.errors import audit_text, refusal_fields, sqlstate
from grille.proxy.identity import Agent
from grille.proxy.relay import BATCH_BYTES, STREAM_BYTES, ClientGone
from grille.proxy.services import Services
from grille.proxy.startup import cut_comment
from grille.proxy.stream import ByteStream
from grille.proxy.upstream import Profile, UpstreamConnection, UpstreamLost

MAX_NAMES: Final = 10_000
"""Prepared statements, and portals, whose text is remembered for the audit event; more have events without one."""
MAX_TEMPLATE: Final = 16 * 1024
"""Characters of a template that is remembered with a name; a longer one is left out of the event."""
MAX_NOTICES: Final = 100
"""Notices of a startup that are passed on."""
MAX_EXECUTIONS: Final = 10_000
"""Executions before one Sync: each has an audit event that waits for the outcome of all."""
_FORWARD_BYTES: Final = 64 * 1024

_LENGTH: Final = struct.Struct("!i")
_SYNC: Final = Sync().encode()
_FLUSH: Final = Flush().encode()
_ANY_TIME: Final = frozenset({NOTICE_RESPONSE, PARAMETER_STATUS, NOTIFICATION_RESPONSE})
_LISTENING: Final = frozenset(
    {state.State.IDLE, state.State.TRANSACTION, state.State.FAILED_TRANSACTION, state.State.EXTENDED}
)
_COPYING: Final = frozenset({state.State.COPY_IN, state.State.COPY_IN_EXTENDED})
_AS_ASKED: Final = ("22", "42", "55")
"""Classes of errors that are about a setting which the client asked for at startup."""
_FORGETS_PORTALS: Final = frozenset(
    {"DECLARE CURSOR", "CLOSE CURSOR", "CLOSE CURSOR ALL", "DISCARD ALL", "COMMIT", "ROLLBACK"}
)
_TAGS_SHOWN: Final = 200
_STAND_INS: Final[dict[int, FrontendMessage]] = {
    Bind.kind: Bind("", ""),
    Describe.kind: Describe("S", ""),
    Close.kind: Close("S", ""),
}


class ServerRefused(Exception):
    """The server did not accept the settings of a startup message; ``fields`` are those of its error."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields.get("M", ""))
        self.fields = fields


class PrivateConnection(UpstreamConnection):
    """The connection of one passthrough session: with the client's settings, and never lent to another."""

    def __init__(self, database: Database, profile: Profile, stream: ByteStream) -> None:
        super().__init__(database, profile, stream)
        self.dirty = True
        self._authenticated = False
        self.notices: list[bytes] = []
        """Payloads of the notices that came before the first ReadyForQuery."""

    @property
    def frames(self) -> Frames:
        """The messages that have arrived."""
        return self._frames

    async def receive(self) -> None:
        """Wait for more messages.  Raises UpstreamLost."""
        data = await self.stream.receive()
        if not data:
            self._die("closed by the server")
        self._frames.feed(data)

    def received(self, kind: int, payload: bytes) -> Expectation:
        """What a message answers that cannot come at any time.  Raises UpstreamLost for one that was not due."""
        try:
            expectation = self.pipeline.received(kind, payload)
        except (UnexpectedReply, ProtocolViolation) as error:
            self._die(str(error))
        if expectation is None:
            self._die(f"message {chr(kind)!r} out of place")
        return expectation

    def broken(self, reason: str) -> NoReturn:
        """Close the connection.  Raises UpstreamLost."""
        self._die(reason)

    async def no_cancel(self) -> None:
        """Wait until no cancel request is under way."""
        await self._no_cancel.wait()

    def post(self, messages: bytes, expectations: Sequence[Expectation]) -> None:
        """As `send`, at once.  Raises UpstreamLost."""
        if self.lost:
            self._die(self._lost or "closed by the server")
        self.pipeline.sent(expectations)
        self.stream.send(messages)

    async def drain(self) -> None:
        """Wait until the server has taken enough of what was sent."""
        await self.stream.drain()

    def _settings(self) -> dict[str, str]:
        return dict(self.profile)

    def _check_settings(self) -> None: ...

    def watch(self, status: ParameterStatus) -> None: ...

    def _noticed(self, payload: bytes) -> None:
        if len(self.notices) < MAX_NOTICES:
            self.notices.append(payload)

    async def _authenticate(self) -> None:
        await super()._authenticate()
        self._authenticated = True

    def _refused(self, error: ErrorResponse) -> NoReturn:
        if self._authenticated and error.sqlstate[:2] in _AS_ASKED:
            raise ServerRefused(error.fields)
        super()._refused(error)


class Shown:
    """What an event says of a statement's text."""

    __slots__ = ("chain", "judged", "size", "template", "types")

    def __init__(self, text: str, types: tuple[int, ...] = ()) -> None:
        self.template = ""
        self.size = len(text.encode(errors="surrogateescape"))
        """Bytes of the original text."""
        self.chain: Chain | None = None
        self.types = types
        self.judged: Any = None
        """What was decided of it, in an isolated session."""
        with contextlib.suppress(Refusal, UnicodeEncodeError):
            text.encode()
            stripped, self.chain = cut_comment(text)
            template = redacted(stripped)
            self.template = template if len(template) <= MAX_TEMPLATE else ""


UNKNOWN: Final = Shown("")


class Bound:
    """A portal, as far as events are concerned."""

    __slots__ = ("shown", "values")

    def __init__(self, shown: Shown, values: tuple[Value, ...] = ()) -> None:
        self.shown = shown
        self.values = values


class Run:
    """One Query or one Execute: what its event will say."""

    __slots__ = ("began", "bound", "bytes", "clock", "done", "error", "intent", "item", "rows", "seen", "sqlstate",
                 "status", "tag")  # fmt: skip

    def __init__(self, bound: Bound, item: int) -> None:
        self.bound = bound
        self.item = item
        self.began = time.time()
        self.clock = time.perf_counter()
        self.status = "ok"
        self.tag = ""
        self.sqlstate = ""
        self.error = ""
        self.rows = 0
        self.seen = 0
        """Rows of the command that is not complete yet."""
        self.bytes = 0
        self.intent = ""
        self.done = False

    def complete(self, command: CommandComplete) -> None:
        """One command of the text has ended."""
        self.rows += self.seen or command.rows
        self.seen = 0
        if len(self.tag) < _TAGS_SHOWN:
            self.tag += f"; {command.tag}" if self.tag else command.tag


class Passthrough:
    """One passthrough session, after its startup.

    ``event`` makes an event of this session, ``refused`` records a refusal, ``check_end`` raises if the session has to
    end before its next unit.
    """

    _forgets_statements = frozenset({"PREPARE", "DEALLOCATE", "DEALLOCATE ALL", "DISCARD ALL"})

    def __init__(
        self,
        *,
        stream: ByteStream,
        frames: Frames,
        client: state.ClientState,
        connection: PrivateConnection,
        agent: Agent,
        services: Services,
        verdict: enforcement.Verdict,
        chain: Chain,
        event: Callable[..., Event],
        refused: Callable[[Refusal, str], Awaitable[None]],
        check_end: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._frames = frames
        self._state = client
        self._state.carry_copy()
        self._connection = connection
        self._agent = agent
        self._enforcement = services.enforcement[agent.database]
        self._pool = services.pools[agent.database]
        self._recorder = services.recorder
        self._metrics = services.metrics
        self._limits = services.config.listener
        self._verdict = verdict
        self._chain = chain
        self._event = event
        self._record_refusal = refused
        self._check_end = check_end
        self._level = services.recorder.level(writes=True)
        self._poison = f"grille_{secrets.token_hex(8)}"
        """No prepared statement has this name: binding it fails."""
        self._changed: asyncio.Future[None] | None = None
        self._cancelling: asyncio.Task[bool] | None = None
        self._intents = asyncio.Lock()
        # towards the server
        self._requests = bytearray()
        self._expectations: list[Expectation] = []
        self._sync_due = False
        self._items = itertools.count(1)
        # towards the client
        self._out = bytearray()
        self._early = False
        """What has come is passed on before the unit has ended."""
        self._over = False
        # the unit
        self._open = False
        self._runs: list[Run] = []
        self._by_item: dict[int, Run] = {}
        self._bound_by_item: dict[int, Bound] = {}
        self._poisons: dict[int, Refusal] = {}
        self._copying: Run | None = None
        self._own_item = -1
        """The item of requests that the client knows nothing of."""
        # names
        self._statements: dict[str, Shown] = {}
        self._portals: dict[str, Bound] = {}
        self._tentative: list[tuple[int, dict[str, Any], str, Any]] = []

    @property
    def idle(self) -> bool:
        """Between units, outside of a transaction."""
        return not self._open and self._connection.transaction_status == "I"

    async def run(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Relay in both directions until one side has ended.  ``serve`` reads the client and calls `message`."""

        async def read() -> None:
            await serve()

        client, server = asyncio.create_task(read()), asyncio.create_task(self._replies())
        try:
            await asyncio.wait({client, server}, return_when=asyncio.FIRST_COMPLETED)
            if client.done() and isinstance(client.exception(), UpstreamLost):
                await asyncio.wait({server}, timeout=1)  # the server's last words
            for task in (server, client):
                if task.done():
                    task.result()
                    return
        finally:
            client.cancel()
            server.cancel()
            await asyncio.gather(client, server, return_exceptions=True)

    async def abandon(self) -> None:
        """Close the upstream connection; what ran without an outcome is recorded."""
        if self._cancelling is not None:
            await asyncio.wait([self._cancelling])
        self._pool.release(self._connection)
        runs, self._runs = self._runs, []
        for run in runs:
            if not run.done and run.status == "ok":
                run.status = "unknown"
            with contextlib.suppress(Refusal):
                await self._keep(run)

    def cancel(self) -> None:
        """Cancel the unit in flight; nothing happens if there is none."""
        if self._connection.in_flight and (self._cancelling is None or self._cancelling.done()):
            self._cancelling = asyncio.create_task(self._connection.cancel())

    # from the client to the server

    async def message(self, kind: int, payload: bytes) -> None:
        """Take one message of the client.  Raises a fatal `Refusal`, or UpstreamLost."""
        try:
            message = decode_in_any_encoding(kind, payload)
        except ProtocolViolation as violation:
            if violation.fatal:
                raise
            message = _STAND_INS[kind]  # the server will say what is wrong with it
        await self._answered()
        if self._state.state is state.State.EXTENDED and (
            isinstance(message, Query | CopyData | CopyDone | CopyFail) or _oversized_query(message)
        ):
            await self._settle()
        if isinstance(message, Parse | Query) and self._state.state in _LISTENING:
            fresh = not self._open
            if fresh:
                await self._begin_unit()
            await self._consider(message, fresh)
        before = self._state.state
        after = self._state.receive(message)
        if isinstance(message, Terminate) or (before is state.State.SKIPPING and after is before):
            return
        if isinstance(message, CopyData | CopyDone | CopyFail) or before in _COPYING:
            if before in _COPYING:
                await self._copy(message, kind, payload)
            return
        if not self._open:
            await self._begin_unit()
        self._take(message, kind, payload)
        if after is state.State.ANSWERING:
            await self.forward()
            await self._answered()
        elif len(self._requests) > _FORWARD_BYTES:
            await self.forward()

    async def _begin_unit(self) -> None:
        self._check_end()
        await self._still_granted()
        self._open = True

    async def _still_granted(self) -> None:
        """Raise the refusal that ends the session if policy does not carry it any more."""
        self._verdict = await self._enforcement.still_passthrough(self._agent, self._verdict)

    async def _consider(self, message: Parse | Query, fresh: bool) -> None:
        """Look at a text before it is taken; ``fresh``: it is the first message of its unit."""

    def _take(self, message: FrontendMessage, kind: int, payload: bytes) -> None:
        """Queue one message and what is expected of it."""
        item = next(self._items)
        request: Request | None = None
        match message:
            case Query(text):
                request = Request.QUERY
                self._statements.pop("", None)
                self._portals.pop("", None)
                self._begin(Bound(Shown(text)), item)
            case Parse(name, text, types):
                request = Request.PARSE
                shown = Shown(text, types)
                self._bound_by_item[item] = Bound(shown)
                self._name(self._statements, name, shown, item)
            case Bind():
                request = Request.BIND
                shown = self._statements.get(message.statement, UNKNOWN)
                bound = self._bound_by_item[item] = Bound(shown, _commitments(shown, message))
                self._name(self._portals, message.portal, bound, item)
            case Describe("S", name):
                request = Request.DESCRIBE_STATEMENT
            case Describe():
                request = Request.DESCRIBE_PORTAL
            case Close(target, name):
                request = Request.CLOSE
                self._name(self._statements if target == "S" else self._portals, name, None, item)
            case Execute(portal):
                if len(self._runs) >= MAX_EXECUTIONS:
                    self._refuse(_too_many(), item)
                    return
                request = Request.EXECUTE_ANY
                self._begin(self._portals.get(portal, Bound(UNKNOWN)), item)
            case Flush():
                self._early = True
            case Sync():
                self._sync_due = True
                return
            case Oversized(discarded):
                self._refuse(self._too_large(discarded), item)
                self._sync_due = discarded == Query.kind
                return
            case _:
                raise ProtocolViolation(f"{type(message).__name__} is not expected here")
        self._requests += _raw(kind, payload)
        if request is not None:
            self._expectations.append(Expectation(request, item=item))

    def _begin(self, bound: Bound, item: int) -> None:
        run = Run(bound, item)
        self._runs.append(run)
        self._by_item[item] = run

    def _refuse(self, refusal: Refusal, item: int) -> None:
        """Make the server fail in place of a message that it must not get."""
        self._poisons[item] = refusal
        self._requests += Bind("", self._poison).encode()
        self._expectations.append(Expectation(Request.BIND, ours=True, item=item))

    def _too_large(self, kind: int) -> Refusal:
        limit = self._limits.max_message_bytes if kind == Bind.kind else self._limits.max_statement_bytes
        return Refusal(
            "WP-03",
            f"the message is larger than the {limit} bytes that this proxy accepts",
            sqlstate="54000",
            hint="Send values as parameters, or split the work into several statements.",
        )

    async def _copy(self, message: FrontendMessage, kind: int, payload: bytes) -> None:
        """Take a message while the server waits for COPY data; Flush and Sync are void then."""
        if isinstance(message, Flush | Sync):
            return
        self._requests += _raw(kind, payload)
        if isinstance(message, CopyData):
            self._requests += self._frames.run_of(kind)[0]
            if self._copying is not None:
                self._copying.bytes += len(self._requests)
        await self.forward()
        await self._answered()

    async def _answered(self) -> None:
        """Wait until a unit that is complete has been answered, or the server wants COPY data for it."""
        await self._until(lambda: self._state.state is not state.State.ANSWERING)

    async def _settle(self) -> None:
        """Wait until everything that was sent has been answered: the next message means another thing then."""
        self._requests += _FLUSH
        self._early = True
        await self.forward()
        await self._until(lambda: not self._connection.in_flight or self._state.state is not state.State.EXTENDED)

    async def forward(self) -> None:
        """Send what is queued; waits for a server that is slow to take it.  Raises UpstreamLost, AU-01."""
        if not self._requests and not self._sync_due:
            return
        connection = self._connection
        if not connection.in_flight:
            self._recorder.check()
        if self._level == "strict":
            await self._keep_intents()
        await connection.no_cancel()
        # Nothing is awaited from here until the bytes have left, or the meaning of a Sync could change.
        requests, self._requests = self._requests, bytearray()
        expectations, self._expectations = self._expectations, []
        if self._sync_due:
            self._sync_due = False
            if self._state.state is state.State.ANSWERING:
                requests += _SYNC
                expectations.append(Expectation(Request.SYNC, item=next(self._items)))
        connection.post(bytes(requests), expectations)
        await connection.drain()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # from the server to the client

    async def _replies(self) -> None:
        """Pass on what the server says until it has nothing more to say."""
        connection = self._connection
        try:
            while not self._over:
                for kind, payload in connection.frames:
                    if kind in (DATA_ROW, COPY_DATA):
                        await self._bulk(kind, payload)
                    else:
                        await self._reply(kind, payload)
                    if self._over:
                        return
                if self._out and (self._early or not self._open):
                    await self._give()
                self._wake()
                await connection.receive()
        except ProtocolViolation as violation:
            connection.broken(str(violation))

    async def _bulk(self, kind: int, payload: bytes) -> None:
        """Pass on all rows, or pieces of COPY data, that have arrived."""
        item = self._connection.received(kind, payload).item
        if item == self._own_item:
            self._own_row(payload)
            return
        run = self._by_item[item]
        more, count = self._connection.frames.run_of(kind)
        if kind == DATA_ROW:
            run.seen += count + 1
        run.bytes += len(payload) + 5 + len(more)
        self._out += _raw(kind, payload)
        self._out += more
        if len(self._out) >= (BATCH_BYTES if self._early else STREAM_BYTES):
            await self._give()

    async def _reply(self, kind: int, payload: bytes) -> None:
        if kind in _ANY_TIME:
            payload = self._unasked(kind, payload)
            if not payload:
                return
            self._out += _raw(kind, payload)
            self._early = self._early or (kind == NOTICE_RESPONSE and self._open)
            return
        error = ErrorResponse.decode(payload) if kind == ERROR_RESPONSE else None
        if error is not None and error.severity in ("FATAL", "PANIC"):
            await self._end(error, payload)
            return
        expectation = self._connection.received(kind, payload)
        if expectation.item == self._own_item:
            await self._own_reply(kind, payload, error, expectation)
            return
        if expectation.ours and error is None:
            self._connection.broken("a statement exists that nobody can have prepared")
        if error is not None:
            await self._failed(error, payload, expectation)
        elif kind == READY_FOR_QUERY:
            await self._ready(payload)
        elif kind == COPY_IN_RESPONSE:
            await self._copy_in(payload, expectation)
        else:
            self._out += _raw(kind, payload)
            if kind == COMMAND_COMPLETE:
                self._completed(CommandComplete.decode(payload), expectation)

    def _completed(self, command: CommandComplete, expectation: Expectation) -> None:
        run = self._by_item[expectation.item]
        run.complete(command)
        run.done = expectation.request is not Request.QUERY
        if command.tag in self._forgets_statements:
            self._statements.clear()
        if command.tag in _FORGETS_PORTALS:
            self._portals.clear()

    async def _copy_in(self, payload: bytes, expectation: Expectation) -> None:
        """The server waits for COPY data, so the client must hear that now."""
        simple = expectation.request is Request.QUERY
        self._state.happened(state.Event.COPY_IN if simple else state.Event.COPY_IN_EXTENDED)
        self._copying = self._by_item[expectation.item]
        self._out += _raw(COPY_IN_RESPONSE, payload)
        self._early = True
        await self._give()
        self._wake()

    async def _failed(self, error: ErrorResponse, payload: bytes, expectation: Expectation) -> None:
        """The server failed at one message, and skips the others of its unit."""
        item = expectation.item
        self._forget_from(item)
        refusal = self._poisons.get(item)
        run = self._by_item.get(item)
        if run is None and item in self._bound_by_item:
            run = Run(self._bound_by_item[item], item)
            self._runs.append(run)
        elif run is None and expectation.request is Request.SYNC and self._runs:
            run = self._runs[-1]  # a deferred constraint, for instance: nothing of the unit took effect
        if run is not None:
            item = run.item
            run.done = True
            run.status, run.sqlstate, run.error = "error", sqlstate(error.fields), audit_text(error.fields)
        for later in [each for each in self._runs if each.item > item]:
            if later.intent:
                later.status, later.sqlstate, later.done = "error", sqlstate(error.fields), True
                later.error = "not run: an earlier message of its unit failed"
            else:
                self._runs.remove(later)
        self._state.happened(state.Event.FAILED)
        self._early = self._early or self._state.state is state.State.SKIPPING
        if refusal is not None:
            await self._record_refusal(refusal, "")
            self._out += ErrorResponse(refusal_fields(refusal)).encode()
        else:
            self._out += self._error_for_client(error, payload, None if run is None else run.bound.shown)

    def _error_for_client(self, _error: ErrorResponse, payload: bytes, _shown: Shown | None) -> bytes:
        return _raw(ERROR_RESPONSE, payload)

    def _unasked(self, _kind: int, payload: bytes) -> bytes:
        """What the client gets of a message that comes at any time; empty: nothing."""
        return payload

    # what a session of another kind asks on its own account

    def _own_row(self, payload: bytes) -> None: ...

    async def _own_reply(
        self, kind: int, payload: bytes, error: ErrorResponse | None, expectation: Expectation
    ) -> None: ...

    async def _ready(self, payload: bytes) -> None:
        """The unit has ended: its events are kept, then its client is answered."""
        for run in self._runs:
            run.done = True
        if self._runs:
            async with self._intents:
                await _all([self._keep(run) for run in self._runs])
        self._out += _raw(READY_FOR_QUERY, payload)
        status = self._connection.transaction_status
        if status == "I":
            self._portals.clear()
        for gathered in (self._runs, self._by_item, self._bound_by_item, self._poisons, self._tentative):
            gathered.clear()
        self._copying = None
        self._early = self._open = False
        out, self._out = self._out, bytearray()
        self._stream.send(bytes(out))
        self._state.happened(state.READY[status])
        self._wake()
        await self._drained()

    async def _end(self, error: ErrorResponse, payload: bytes) -> None:
        """The server ends the connection."""
        for run in self._runs:
            if not run.done:
                run.done = True
                run.status, run.sqlstate, run.error = "unknown", sqlstate(error.fields), audit_text(error.fields)
        runs, self._runs = self._runs, []
        await _all([self._keep(run) for run in runs])
        self._out += _raw(ERROR_RESPONSE, payload)
        self._stream.send(bytes(self._out))
        self._over = True

    async def _give(self) -> None:
        """Send what has come before its unit has ended, once intents are kept; waits for a slow client."""
        if self._open:
            await self._keep_intents()
        else:
            # What comes unasked (a notification) is for passthrough sessions only.
            await self._still_granted()
        out, self._out = self._out, bytearray()
        self._early = self._open
        self._stream.send(bytes(out))
        await self._drained()

    async def _drained(self) -> None:
        await self._stream.drain()
        if self._stream.at_end:
            raise ClientGone

    # names, as far as they are known: for the audit event only

    def _name(self, where: dict[str, Any], name: str, what: object, item: int) -> None:
        """Note what a name stands for (None: nothing) until the server says otherwise."""
        self._tentative.append((item, where, name, where.get(name)))
        if what is None:
            where.pop(name, None)
        elif name in where or len(where) < MAX_NAMES:
            where[name] = what

    def _forget_from(self, item: int) -> None:
        """Take back what was noted for a message that failed, and for those behind it."""
        while self._tentative and self._tentative[-1][0] >= item:
            _, where, name, previous = self._tentative.pop()
            if previous is None:
                where.pop(name, None)
            else:
                where[name] = previous

    # the record

    async def _keep_intents(self) -> None:
        async with self._intents:
            await _all([self._keep_intent(run) for run in self._runs if not run.intent])

    async def _keep_intent(self, run: Run) -> None:
        event = self._statement_event(run, intent=True)
        await self._recorder.keep(event)
        run.intent = event.id

    async def _keep(self, run: Run) -> None:
        event = self._statement_event(run)
        await self._recorder.keep(event)
        self._metrics.observe(event)

    def _statement_event(self, run: Run, *, intent: bool = False) -> Event:
        shown = run.bound.shown
        if intent:
            outcome = Outcome("intent")
        else:
            outcome = Outcome(
                run.status,  # type: ignore[arg-type]
                tag=run.tag,
                sqlstate=run.sqlstate,
                error=run.error,
                rows=run.rows + run.seen,
                bytes=run.bytes,
            )
        elapsed = int((time.perf_counter() - run.clock) * 1e6)
        return self._event(
            "statement",
            "statement",
            self._level,
            run.began,
            chain=shown.chain or self._chain,
            template=shown.template,
            template_sha256=hashlib.sha256(shown.template.encode()).hexdigest() if shown.template else "",
            statement_bytes=shown.size,
            values=run.bound.values,
            outcome=outcome,
            intent="" if intent else run.intent,
            stages={"upstream": elapsed, "total": elapsed},
            **self._decided(shown),
        )

    def _decided(self, _shown: Shown) -> dict[str, Any]:
        """What an event says of the decision."""
        return {"verdict": enforcement.granted(self._verdict, cached=True)}


def _raw(kind: int, payload: bytes) -> bytes:
    return b"%c%s%s" % (kind, _LENGTH.pack(len(payload) + 4), payload)


async def _all(tasks: Sequence[Awaitable[None]]) -> None:
    """Wait for all, then raise the first exception."""
    if len(tasks) == 1:
        await tasks[0]
        return
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _commitments(shown: Shown, message: Bind) -> tuple[Value, ...]:
    types = shown.types
    return tuple(
        commit(value, str(types[number]) if number < len(types) and types[number] else "unknown")
        for number, value in enumerate(message.values)
    )


def _oversized_query(message: FrontendMessage) -> bool:
    return isinstance(message, Oversized) and message.discarded == Query.kind


def _too_many() -> Refusal:
    return Refusal(
        "WP-03",
        f"more than {MAX_EXECUTIONS} executions before one Sync",
        sqlstate="54000",
        hint="Send smaller batches.",
    )
