"""One agent's session: startup, then unit after unit until it ends.

A *unit* is what a client sends up to one Sync or Query.  Messages are taken in order.  What needs the database is
queued as steps and sent in segments: one with a Sync at the end of the unit, and earlier ones with a Flush where an
answer is needed before the next message can be judged.  What the proxy answers itself (SET, SHOW, an empty text) takes
its place in the same order.  BEGIN is answered at once and sent with the first statement, so that an empty transaction
never reaches the database.  A refusal inside a transaction that upstream has begun is followed by a message that fails
there too: client, proxy and database always agree on the transaction's state.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import hashlib
import itertools
import logging
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from grille.audit.encoding import commit, event_id, timestamp
from grille.audit.event import Chain, Event, Level, Outcome, Value, Verdict
from grille.audit.fused import session_piece
from grille.controls import Refusal
from grille.policies.decision import Limits
from grille.protocols.operation import Operation
from grille.protocols.postgres import state
from grille.protocols.postgres.commands import (
    DeclareCommand,
    ExecuteCommand,
    FetchCommand,
    PrepareCommand,
    SessionCommand,
    SettingsCommand,
    declared,
)
from grille.protocols.postgres.copy import CopyInCommand
from grille.protocols.postgres.framing import Frames, ProtocolViolation, StartupFrames, frontend_limits
from grille.protocols.postgres.messages import (
    AUTHENTICATION_OK,
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    EMPTY_QUERY_RESPONSE,
    NO_DATA,
    PARSE_COMPLETE,
    BackendKeyData,
    Bind,
    CancelRequest,
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
    NegotiateProtocolVersion,
    NoticeResponse,
    Oversized,
    ParameterDescription,
    ParameterStatus,
    Parse,
    Query,
    ReadyForQuery,
    StartupMessage,
    Sync,
    Terminate,
    decode_frontend,
    decode_startup,
    error_fields,
)
from grille.protocols.postgres.rewrite import Plan
from grille.proxy import answers, enforcement
from grille.proxy.answers import Answer
from grille.proxy.copy_in import CopyStream
from grille.proxy.enforcement import Copying, Prepared, Understood, asked_about, event_verdict, type_name
from grille.proxy.errors import TEMPLATES, refusal_fields
from grille.proxy.fastpath import Lane
from grille.proxy.identity import Agent
from grille.proxy.isolated import Isolated
from grille.proxy.passthrough import Passthrough, PrivateConnection, ServerRefused
from grille.proxy.quota import QuotaReached
from grille.proxy.quota_store import Count
from grille.proxy.relay import (
    STREAM_BYTES,
    ClientGone,
    Failure,
    Kind,
    Portal,
    Relay,
    Run,
    Statement,
    Step,
    may_refuse,
    own_plan,
)
from grille.proxy.services import Services
from grille.proxy.shown import is_counted
from grille.proxy.startup import (
    PROTOCOL_3_2,
    TRACE,
    Settings,
    Startup,
    accept,
    accept_passthrough,
    canonical_session_name,
    check,
    cut_comment,
    parse_trace,
    refuse_setting,
)
from grille.proxy.stream import ByteStream
from grille.proxy.upstream import PINNED, UpstreamConnection, UpstreamLost

log = logging.getLogger("grille.session")

MAX_STATEMENTS: Final = 10_000
"""Statements that one session may have prepared at a time."""
MAX_PORTALS: Final = 1000
"""Portals and cursors that one transaction may have open at a time."""
MAX_STATEMENT_CHARACTERS: Final = 16 * 1024 * 1024
"""How long the texts of these may be together."""
MAX_EXECUTIONS: Final = 10_000
"""Executions before one Sync: each has an audit event that waits for the outcome of all."""
MAX_PENDING_STEPS: Final = 1000
MAX_PENDING_BYTES: Final = 1024 * 1024
"""Beyond these a unit is sent in part before its Sync has arrived."""
MAX_RETRY_BYTES: Final = 64 * 1024
"""A unit above this is not run a second time after a change of the catalogue."""
IDLE_TRANSACTION_SECONDS: Final = 300.0
"""How long a client may think while its transaction, unfinished unit or cursor WITH HOLD has an upstream connection."""
_LONGEST_WAIT: Final = 3600.0


_LAZY_SAFE: Final = frozenset({"commit", "rollback"})
_EXIT: Final = frozenset({"commit", "rollback", "rollback_to"})
_CONTROL: Final = frozenset({"begin", "commit", "rollback", "savepoint", "release", "rollback_to"})
_TAGS: Final = {
    "settings": "SELECT 1",
    "begin": "BEGIN",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "savepoint": "SAVEPOINT",
    "release": "RELEASE",
    "rollback_to": "ROLLBACK",
}
_NO_LIMITS: Final = Limits()
_NO_SETTINGS: Final = Settings()
_NO_CHAIN: Final = Chain()
_NO_LOCAL_SETTINGS: Final[Mapping[str, str]] = {}


@functools.lru_cache(10_000)
def _named(columns: tuple[str, ...], predicates: tuple[str, ...]) -> frozenset[str]:
    """The columns that a statement names, one object for all sessions that run it."""
    return frozenset((*columns, *predicates))


class Session:
    """One authenticated connection.  `run` returns when it is over; the stream is closed then."""

    __slots__ = (
        "_before",
        "_copying",
        "_counted",
        "_cut",
        "_ending",
        "_enforcement",
        "_engaged",
        "_entered",
        "_failed",
        "_frames",
        "_half_since",
        "_held",
        "_holding",
        "_id",
        "_initial",
        "_isolation",
        "_key",
        "_known",
        "_lane",
        "_local_settings",
        "_numbers",
        "_open",
        "_passthrough",
        "_peer",
        "_pending_bytes",
        "_poison",
        "_pool",
        "_repeatable",
        "_retried",
        "_savepoints",
        "_stale",
        "_state",
        "_statement_characters",
        "_steps",
        "_task",
        "_timeout",
        "_told",
        "_undo",
        "_unit",
        "_unit_bytes",
        "agent",
        "begun",
        "chain",
        "config",
        "portals",
        "relay",
        "services",
        "settings",
        "statements",
        "status",
        "stream",
    )

    def __init__(self, stream: ByteStream, agent: Agent, services: Services, peer: str = "") -> None:
        """``peer`` is the client's address and port; nothing has been read from the stream after its TLS handshake."""
        self.stream = stream
        self.agent = agent
        self.services = services
        self.config = services.config.listener
        self._enforcement = services.enforcement[agent.database]
        self._pool = services.pools[agent.database]
        self.relay = Relay(
            agent=agent,
            client=stream,
            enforcement=self._enforcement,
            permitted=self.permitted,
            keep_intent=self._keep_intent,
            shown=services.shown.get(agent.database),
            count_keys=self._count_keys,
        )
        self._state = state.ClientState()
        self._state.happened(state.Event.ENCRYPTED)
        self._id = event_id(time.time())
        self._peer = peer or _address(stream)
        self.settings = self._initial = _NO_SETTINGS
        self.chain = _NO_CHAIN
        self._key: BackendKeyData | None = None
        self._frames = Frames(frontend_limits(self.config.max_message_bytes, self.config.max_statement_bytes))
        self._timeout: asyncio.Timeout | None = None
        self._lane: Lane | None = None
        """Takes units of known statements while the session waits for its client."""
        self._half_since: float | None = None
        """When the first byte came of a message that is not whole yet."""
        self._ending = False
        self._cut: Refusal | None = None
        """Why the session has to end at once."""
        self._task: asyncio.Task[Any] | None = None
        """What runs it, while it can be cut."""
        self._passthrough: Passthrough | None = None
        """What carries the session instead, if nothing of it is governed."""
        # the transaction
        self.status = "I"
        self.begun: str | None = None
        """BEGIN as it will be sent, answered but not sent yet."""
        self._copying: CopyStream | None = None
        """The COPY FROM STDIN that takes the client's messages."""
        self._before: Settings | None = None
        """The settings to which ROLLBACK goes back."""
        self._isolation = ""
        self._local_settings: Mapping[str, str] = _NO_LOCAL_SETTINGS
        """What SET LOCAL set."""
        self._savepoints: list[tuple[str, int, Settings, Mapping[str, str]]] = []
        """(name, portals opened before it, settings and local settings of then), oldest first."""
        self._told: tuple[str, ...] = ()
        """The reported settings as the client knows them."""
        # the unit
        self._steps: list[Step] = []
        self._engaged = False
        """Upstream has been sent a part of this unit and waits for more."""
        self._failed = False
        """A message of this unit failed."""
        self._poison = False
        """Upstream must be made to fail before this unit ends."""
        self._entered = 0
        """The limit under which this unit counts as running; 0: it does not."""
        self._counted: list[Count] = []
        """What `Quotas.count` said of its statements."""
        self._open = False
        """A message of this unit has been read."""
        self._unit: list[tuple[int, bytes]] = []
        """The messages, as long as the unit may have to run a second time."""
        self._repeatable = True
        self._unit_bytes = 0
        self._pending_bytes = 0
        self._undo: list[Callable[[], None]] = []
        self._retried = False
        self._stale = False
        # what the client has prepared and bound
        self.statements: dict[str, Statement] = {}
        self._statement_characters = 0
        """At least the length of their texts."""
        self.portals: dict[str, Portal] = {}
        self._held: dict[str, Portal] = {}
        """Cursors WITH HOLD, which outlive their unit; they live on ``_holding``."""
        self._holding: UpstreamConnection | None = None
        self._numbers = 0
        """Portals and savepoints so far."""
        self._known: dict[tuple[str, str], frozenset[str]] = {}
        """Columns by relation that this session's own statements named: what errors may name."""

    # the whole life

    async def run(self) -> None:
        """Serve the client until it leaves, breaks the protocol, or the session has to end."""
        self.services.metrics.sessions.inc()
        self._task = asyncio.current_task()
        connected = False
        self.stream.on_lost = self.cancel  # what runs
        try:
            connected = await self._startup()
            if connected and self._passthrough is not None:
                await self._passthrough.run(self._serve)
            elif connected:
                await self._serve()
        except Refusal as refusal:
            await self._close_with(refusal)
        except (ClientGone, ConnectionError):
            pass
        except asyncio.CancelledError:
            if self._cut is not None and self._task is not None:
                self._task.uncancel()
                await self._close_with(self._cut)
                return
            # The node does not wait any longer.
            ending = Refusal("OP-01", "this node is going out of service", sqlstate="57P01", fatal=True)
            self.stream.send(ErrorResponse(refusal_fields(ending)).encode())
            raise
        except Exception:
            log.exception("a session failed", extra={"fields": {"session": self._id}})
            await self._close_with(Refusal("UP-01", "the proxy met an internal error", sqlstate="XX000", fatal=True))
        finally:
            self._task = None
            self.stream.on_lost = None
            self.services.metrics.sessions.dec()
            if self._key is not None:
                self.services.cancels.remove(self._key)
            await self._abandon()
            self.stream.close()
            if connected:
                await self._note("disconnect")

    async def _abandon(self) -> None:
        """Give the upstream connection back in whatever state it is; what ran without an outcome is recorded."""
        if self._passthrough is not None:
            await self._passthrough.abandon()
        self._leave_quotas()
        if self._lane is not None:
            self._lane.close()
        runs, self.relay.runs = self.relay.runs, []
        for run in runs:
            if run.tag == "" and run.refusal is None and run.sqlstate == "":
                # A COPY that did not come to its end is undone with its connection.
                run.status = "unknown" if _writes(run.portal.prepared) and not run.portal.loads else "error"
        await self.relay.settled()
        self._release()
        self._let_go()
        for run in runs:
            with contextlib.suppress(Refusal):
                event = self.statement_event(run)
                await self.services.recorder.keep(event)
                self.services.metrics.observe(event, run.portal.prepared.action)

    async def _close_with(self, refusal: Refusal) -> None:
        """Tell the client why the connection ends.  A refusal that is worth recording is recorded first."""
        refusal.fatal = True
        with contextlib.suppress(Refusal):
            await self._record_refusal(refusal, "", name="refused")
        self.stream.send(ErrorResponse(_clean(refusal_fields(refusal))).encode())

    def _asked_to_connect(self) -> dict[str, Any]:
        """What the policy is asked about the session and its statements, but for the operation."""
        return {"action": "connect", "scopes": self.agent.scopes, "attributes": self.agent.attributes}

    async def _note(self, name: str, **more: Any) -> None:
        level = self.services.recorder.level(writes=False) if name == "connect" else "process"
        event = self._event("session", name, level, time.time(), **more)
        if name == "connect":
            await self.services.recorder.keep(event)
        else:
            with contextlib.suppress(Refusal):
                await self.services.recorder.keep(event)

    # startup

    async def _startup(self) -> bool:
        """True if the session has begun; False if it was a cancel request or the client left."""
        message = None
        frames = StartupFrames()
        try:
            async with asyncio.timeout(self.config.handshake_timeout):
                while message is None:
                    data = await self.stream.receive()
                    if not data:
                        return False
                    frames.feed(data)
                    message = next(frames, None)
        except TimeoutError:
            raise Refusal("WP-04", "no startup message arrived in time", sqlstate="08P01", fatal=True) from None
        first = decode_startup(message)
        self._state.receive(first)
        if isinstance(first, CancelRequest):
            self.services.cancels.cancel(first.process_id, first.secret)
            return False
        if not isinstance(first, StartupMessage):
            raise ProtocolViolation("a startup message was expected")
        version = first.major << 16 | first.minor
        verdict = await self._enforcement.connect(self.agent)
        reported: dict[str, str] = {}
        notices: list[bytes] = []
        process_id: int | None = None
        if verdict is not None:
            if verdict.decision.isolated:
                await self._isolate(version, first.parameters)
            startup, given = accept_passthrough(version, first.parameters)
            self._begin_session(startup)
            connection = await self._pass_through(verdict, given)
            if connection is None:
                return False
            reported, process_id = connection.parameters, connection.process_id
            if not verdict.decision.isolated:
                notices = connection.notices
        else:
            startup = accept(version, first.parameters)
            self._begin_session(startup)
            await self._note("connect", **self._asked_to_connect())
            self._told = self._reported()
            reported = dict(zip(answers.REPORTED, self._told, strict=True))
        out = bytearray()
        if startup.negotiate is not None:
            out += NegotiateProtocolVersion(startup.version, startup.negotiate).encode()
        out += AUTHENTICATION_OK
        for name, value in reported.items():
            out += ParameterStatus(name, value).encode()
        for payload in notices:
            out += b"N" + (len(payload) + 4).to_bytes(4, "big") + payload
        secret_bytes = 32 if startup.version >= PROTOCOL_3_2 else 4
        self._key = self.services.cancels.add(self, secret_bytes, process_id=process_id)
        out += self._key.encode()
        out += ReadyForQuery("I").encode()
        self.stream.send(bytes(out))
        self._state.happened(state.Event.READY_IDLE)
        self.services.metrics.sessions_total.inc()
        self._frames.feed(frames.take_rest())
        if self._passthrough is None and self.agent.database in self.services.pipes:
            self._lane = Lane(self)
        return True

    async def _isolate(self, version: int, parameters: Mapping[str, str]) -> None:
        """Make sure that an isolated session can begin.  Raises `Refusal` (fatal)."""
        try:
            if await enforcement.answered(lambda: self._enforcement.may_pass(self.agent, "SET", "ID-04")) is None:
                accept(version, parameters)
            try:
                self._enforcement.built_in()
            except Refusal:
                await self.services.refresh(self.agent.database)
                self._enforcement.built_in()
        except Refusal as refusal:
            refusal.fatal = True
            raise

    def _begin_session(self, startup: Startup) -> None:
        self.settings = self._initial = startup.settings
        self.chain = startup.chain
        self._check_end()

    async def _pass_through(self, verdict: enforcement.Verdict, given: dict[str, str]) -> PrivateConnection | None:
        """Hand this session over; None, and the client is told, if the server does not accept its settings."""
        try:
            connection = await self._pool.acquire_private(PrivateConnection, tuple(given.items()))
        except ServerRefused as error:
            refusal = Refusal("ID-04", "the database refused a setting of the startup message", fatal=True)
            refusal.detail_for_audit = str(error)
            await self._record_refusal(refusal, "", name="refused")
            self.stream.send(ErrorResponse(error.fields).encode())
            return None
        kind = Isolated if verdict.decision.isolated else Passthrough
        self._passthrough = kind(
            stream=self.stream,
            frames=self._frames,
            client=self._state,
            connection=connection,
            agent=self.agent,
            services=self.services,
            verdict=verdict,
            chain=self.chain,
            event=self._event,
            refused=self._record_refusal,
            check_end=self._check_end,
        )
        await self._note("connect", **self._asked_to_connect(), verdict=enforcement.granted(verdict))
        return connection

    def _shown(self, name: str) -> str | None:
        """What SHOW answers; None for a setting that the proxy does not know."""
        if name == "server_version":
            return self.services.server_version(self.agent.database)
        if name == "server_version_num":
            major, _, minor = self._shown("server_version").partition(".")  # type: ignore[union-attr]
            return f"{int(major) * 10000 + int(''.join(itertools.takewhile(str.isdigit, minor)) or 0)}"
        if name in ("session_authorization", "role"):
            return "/".join(self.agent.path)
        known = canonical_session_name(name)
        if known is not None and known in self._local_settings:
            return self._local_settings[known]
        if name in ("default_transaction_read_only", "default_transaction_deferrable"):
            return self.settings.get(name) or "off"
        if name == "default_transaction_isolation":
            return self.settings.get(name) or "read committed"
        if name == "transaction_isolation":
            return self._isolation or self._shown("default_transaction_isolation")
        if name in ("transaction_read_only", "transaction_deferrable"):
            return self._shown(f"default_{name}")
        if known == TRACE:
            return ""
        return (self.settings.get(known) if known is not None else None) or answers.FIXED.get(name)

    # reading

    async def _serve(self) -> None:
        while True:
            for kind, payload in self._frames:
                self._half_since = None
                await self._message(kind, payload)
                if self._state.state is state.State.CLOSED:
                    return
            if self._state.state is state.State.SKIPPING:
                # A client that sends no Sync before it has read the error must get the error now.
                with contextlib.suppress(Refusal):
                    await self._give()
            if self._passthrough is not None:
                await self._passthrough.forward()
            data = await self._read()
            if not data:
                return
            self._frames.feed(data)

    async def _read(self) -> bytes:
        """The next bytes.  Raises `Refusal` when the client is silent for too long, or when the session has to end."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        lane = self._lane
        if self._frames.pending:
            # Counted from its first byte, so that a message that trickles in is ended too.
            self._half_since = self._half_since or began
        else:
            self._half_since = None
            if lane is not None and not self._open and self.status != "E":
                lane.open()
        try:
            while True:
                self._check_end()
                silence = self._silence(began)
                left = (self.agent.not_after - dt.datetime.now(dt.UTC)).total_seconds()
                deadline = loop.time() + min(left, _LONGEST_WAIT)
                if silence is not None:
                    deadline = min(deadline, silence)
                try:
                    async with asyncio.timeout_at(deadline) as self._timeout:
                        return await self.stream.receive()
                except TimeoutError:
                    silence = self._silence(began)
                    if silence is not None and loop.time() >= silence:
                        raise self._silent() from None
                finally:
                    self._timeout = None
        finally:
            if lane is not None:
                lane.close()

    def _silence(self, began: float) -> float | None:
        """Loop time until which the client may be silent; None: for as long as it likes."""
        if self._half_since is not None:
            return self._half_since + self.config.idle_message_timeout
        if self.relay.connection is None and self._holding is None:
            return None
        return (max(began, self._lane.active) if self._lane is not None else began) + IDLE_TRANSACTION_SECONDS

    def _silent(self) -> Refusal:
        if self._half_since is None:
            return Refusal("WP-04", TEMPLATES["25P03"], sqlstate="25P03", fatal=True)
        return Refusal(
            "WP-04",
            f"the rest of a message did not arrive within {self.config.idle_message_timeout:g} seconds",
            sqlstate="08P01",
            fatal=True,
        )

    def drain(self) -> None:
        """End now if the session is idle, else after its transaction."""
        self.services.draining.set()
        self.interrupt()

    def cut(self, refusal: Refusal) -> None:
        """End at once, whatever runs: its connection is given up, and of its reply nothing more is sent."""
        if self._task is not None and self._cut is None:
            self._cut = refusal
            self._task.cancel()

    def interrupt(self) -> None:
        """Look again whether the session has to end, if it is waiting for its client."""
        if self._timeout is not None and self._idle and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def cancel(self) -> None:
        """Cancel the statement in flight, if there is one."""
        (self._passthrough or self.relay).cancel()
        if self._copying is not None:
            self._copying.cancelled = True
        if self._lane is not None:
            self._lane.cancel()

    @property
    def _idle(self) -> bool:
        """Between units, outside of a transaction."""
        if self._passthrough is not None:
            return self._passthrough.idle
        return self.status == "I" and not self._open and not (self._lane is not None and self._lane.busy)

    # what the fast path uses

    @property
    def settings_changed(self) -> bool:
        """True if the end of the transaction may take settings back."""
        return (self._before is not None and self._before != self.settings) or bool(self._local_settings)

    def begin(self, command: SessionCommand) -> None:
        """A transaction begins, of which the database is told with its first statement."""
        self._before = self.settings
        self._isolation = _isolation(command.text)
        self.begun, self.status = command.text, "T"

    def hold(self, connection: UpstreamConnection) -> None:
        """The transaction has this connection from here on."""
        self.relay.connection = connection
        self._reconsider()

    def went_on(self, status: str) -> None:
        """The database has answered a part of the transaction; ``status`` is what it is in now."""
        self.status = status
        if status == "I":
            self.end()

    def end(self) -> None:
        """The transaction is over."""
        self.status = "I"
        self.begun = None
        self._end_transaction()
        self._release()

    def broke(self) -> None:
        """The transaction's connection is lost or given up, and the transaction with it."""
        connection = self.relay.connection
        if connection is not None:
            connection.abort()
        self._release()
        self.begun = None
        if self.status != "I":
            self.status = "E"

    def event_piece(self, level: Level) -> bytes:
        """What all events of this session have in common at this level."""
        return session_piece(
            level,
            self.agent.spiffe_id,
            self.agent.serial,
            self.agent.cert_sha256,
            self._id,
            self._peer,
            "postgres",
            self.agent.database,
            self.settings.get("application_name") or "",
            self.chain,
        )

    def _reconsider(self) -> None:
        """Look again how long the client may be silent."""
        timeout = self._timeout
        if timeout is not None and not timeout.expired():
            latest = asyncio.get_running_loop().time() + IDLE_TRANSACTION_SECONDS
            when = timeout.when()
            if when is None or when > latest:
                timeout.reschedule(latest)

    def _check_end(self) -> None:
        """Raise the refusal that ends this session, if it has to end now."""
        if dt.datetime.now(dt.UTC) >= self.agent.not_after:
            raise Refusal("ID-06", "your certificate has expired", sqlstate="28000", fatal=True)
        if self.services.draining.is_set() and self._idle:
            raise Refusal("OP-01", "this node is going out of service", sqlstate="57P01", fatal=True)

    # messages

    async def _message(self, kind: int, payload: bytes) -> None:
        if self._passthrough is not None:
            await self._passthrough.message(kind, payload)
            return
        if self._state.state is state.State.SKIPPING and kind not in (Sync.kind, Terminate.kind):
            if kind not in _SKIPPED:
                self._state.receive(decode_frontend(kind, payload))
            return
        try:
            message = decode_frontend(kind, payload)
        except ProtocolViolation as violation:
            if violation.fatal:
                raise
            # Understood well enough to go on: the unit fails.
            self._begin_unit(kind, payload)
            self._state.receive(_STAND_INS[kind])
            await self._fail(violation, "")
            return
        if isinstance(message, Terminate | CopyData | CopyDone | CopyFail):
            self._state.receive(message)  # of a COPY that has failed: as in PostgreSQL it is dropped
            return
        if isinstance(message, Query) and self._steps and not await self._ahead():
            return
        self._begin_unit(kind, payload)
        self._state.receive(message)
        await self._dispatch(message)
        if len(self._steps) > MAX_PENDING_STEPS or (self._steps and self._pending_bytes > MAX_PENDING_BYTES):
            await self._ahead()
        if len(self.relay.out) > STREAM_BYTES and self._open:
            with contextlib.suppress(Refusal):
                await self._give()

    async def _ahead(self) -> bool:
        """Do what was asked so far, in the middle of a unit.  False if it failed: the rest of the unit is skipped."""
        self._pending_bytes = 0
        try:
            return await self._segment(sync=False)
        except UpstreamLost as lost:
            await self._lost(lost)
        except Refusal as refusal:
            if refusal.fatal:
                raise
            await self._fail(refusal, "")
        return False

    def _begin_unit(self, kind: int, payload: bytes) -> None:
        if not self._open:
            self._check_end()
            self._open = True
        self._unit_bytes += len(payload)
        self._pending_bytes += len(payload)
        if self._unit_bytes <= MAX_RETRY_BYTES and len(self._unit) < MAX_PENDING_STEPS:
            self._unit.append((kind, payload))
        else:
            self._repeatable = False
            self._unit.clear()

    async def _dispatch(self, message: FrontendMessage) -> None:
        try:
            match message:
                case Query():
                    await self._query(message)
                case Parse():
                    await self._parse(message)
                case Bind():
                    await self._bind(message)
                case Describe():
                    await self._describe(message)
                case Execute():
                    await self._execute(message)
                case Close():
                    await self._close(message)
                case Flush():
                    await self._flush()
                case Sync():
                    await self._sync()
                case Oversized():
                    raise self._too_large(message)
                case _:
                    raise ProtocolViolation(f"{type(message).__name__} is not expected here")
        except Refusal as refusal:
            if refusal.fatal:
                raise
            if isinstance(refusal, UpstreamLost):
                await self._lost(refusal)
            else:
                await self._fail(refusal, _text_of(message))
            if isinstance(message, Sync) or message.kind == Query.kind or _discarded_query(message):
                await self._finish()

    def _too_large(self, message: Oversized) -> Refusal:
        if message.discarded == Bind.kind:
            limit, what = self.config.max_message_bytes, "parameters are"
        else:
            limit, what = self.config.max_statement_bytes, "statement is"
        return Refusal(
            "WP-03",
            f"the {what} larger than the {limit} bytes that this proxy accepts",
            sqlstate="54000",
            hint="Send values as parameters, or split the work into several statements.",
        )

    # simple protocol

    async def _query(self, message: Query) -> None:
        self.statements.pop("", None)
        self.portals.pop("", None)
        text, chain = cut_comment(message.text)
        answer = self._driver_answer(text)
        if answer is not None:
            self._refuse_in_failed_transaction("select")
            self._say(answer.description() + answer.messages())
            self._answered(Portal(Statement(text, (), _local(None), chain, answer), _local(None)), answer.tag)
            await self._sync()
            return
        all_prepared = await self._enforcement.prepare(self.agent, text, (), simple=True)
        for prepared in all_prepared:
            statement = Statement(text, (), prepared, chain)
            self._refuse_in_failed_transaction(prepared.action)
            command = prepared.command
            if isinstance(command, ExecuteCommand | FetchCommand):
                await self._queue_simple(await self._opened(command, statement, Bind("", ""), simple=True))
                continue
            if command is not None:
                await self._command(command, Portal(statement, prepared, simple=True))
                if self._failed:
                    break
                continue
            portal = await self._bound(statement, prepared, Bind("", ""), simple=True)
            await self._queue_simple(portal)
        await self._sync()

    async def _queue_simple(self, portal: Portal) -> None:
        plan = portal.plan
        await self._enter(portal)
        self._step(Step(Kind.BIND, plan=plan, portal=portal, visible=False))
        self._step(Step(Kind.DESCRIBE_PORTAL, plan=plan, portal=portal))
        self._queue_execute(portal, 0)

    # extended protocol

    async def _parse(self, message: Parse) -> None:
        if message.name and message.name in self.statements:
            raise Refusal("WP-01", f'prepared statement "{_plain(message.name)}" already exists', sqlstate="42P05")
        self._make_room(len(message.text))
        text, chain = cut_comment(message.text)
        answer = self._driver_answer(text)
        if answer is not None:
            statement = Statement(text, message.types, _local(SessionCommand("answer")), chain, answer)
        else:
            (prepared,) = await self._enforcement.prepare(self.agent, text, message.types, simple=False)
            statement = Statement(text, message.types, prepared, chain, named=bool(message.name))
            if isinstance(prepared.command, DeclareCommand):
                statement.inner = await self._inside(prepared.command, message.types, chain)
        self._refuse_in_failed_transaction(statement.prepared.action)
        undo = self._put(self.statements, message.name, statement)
        plan = statement.prepared.plan
        kind = Kind.LOCAL if plan is None else Kind.PARSE
        portal = Portal(statement, statement.prepared)
        self._step(Step(kind, plan=plan, portal=portal, reply=PARSE_COMPLETE, undo=undo))

    def _make_room(self, characters: int) -> None:
        """Refuse a statement for which this session has no room."""
        self._statement_characters += characters
        if self._statement_characters > MAX_STATEMENT_CHARACTERS:
            self._statement_characters = sum(len(each.text) for each in self.statements.values()) + characters
        if len(self.statements) >= MAX_STATEMENTS or self._statement_characters > MAX_STATEMENT_CHARACTERS:
            raise Refusal(
                "WP-03",
                "this session has prepared more statements than the proxy keeps",
                sqlstate="53400",
                hint="Close prepared statements that are not needed any more (DEALLOCATE ALL).",
            )

    async def _bind(self, message: Bind) -> None:
        statement = self._statement(message.statement)
        if message.portal and message.portal in self.portals:
            raise Refusal("WP-01", f'portal "{_plain(message.portal)}" already exists', sqlstate="42P03")
        prepared = await self._current(statement)
        self._refuse_in_failed_transaction(prepared.action)
        if isinstance(prepared.command, ExecuteCommand | FetchCommand):
            portal = await self._opened(prepared.command, statement, message)
        else:
            portal = await self._bound(statement, prepared, message)
        portal.born = self._next_number()
        undo = self._put(self.portals, message.portal, portal)
        if portal.plan is None:
            self._step(Step(Kind.LOCAL, reply=BIND_COMPLETE, undo=undo))
        else:
            if message.portal:
                portal.upstream = f"p{portal.born}"
            self._step(Step(Kind.BIND, plan=portal.plan, portal=portal, undo=undo))

    async def _current(self, statement: Statement) -> Prepared:
        """The statement under the policy and the catalogue of now.  Raises `Refusal`."""
        if not self._enforcement.is_current(statement.prepared):
            try:
                (statement.prepared,) = await self._enforcement.prepare(
                    self.agent, statement.text, statement.types, simple=False
                )
            except Refusal as refusal:
                refusal.position = None  # in a text that the client has sent before
                raise
        return statement.prepared

    async def _bound(self, statement: Statement, prepared: Prepared, message: Bind, *, simple: bool = False) -> Portal:
        if statement.inner is not None:
            portal = Portal(statement, prepared)
            portal.inner = await self._bound(statement.inner, await self._current(statement.inner), message)
            return portal
        answer = statement.answer
        expected = len(answer.parameters) if answer is not None else prepared.client_parameters
        if len(message.values) != expected:
            raise Refusal(
                "WP-01",
                f"the statement takes {expected} parameters, and {len(message.values)} were given",
                sqlstate="08P01",
            )
        portal = Portal(
            statement,
            prepared,
            result_formats=message.result_formats,
            simple=simple,
        )
        if prepared.plan is None:
            return portal
        self.learn(prepared)
        values = prepared.constants if prepared.understood.is_template else message.values
        portal.values = _commitments(prepared.plan, values)
        began = time.perf_counter()
        portal.wire = await self._enforcement.bind(self.agent, prepared, message.formats, message.values)
        portal.tokenize = time.perf_counter() - began
        portal.encoded = sum(portal.wire[1][slot.parameter] is not None for slot in prepared.plan.encode)
        if prepared.plan.swallow_rows:
            portal.result_formats = ()
        if portal.copy is not None:
            portal.result_formats = (1,) if portal.copy.binary else ()
        return portal

    async def _describe(self, message: Describe) -> None:
        if message.target == "S":
            statement = self._statement(message.name)
            prepared = await self._current(statement)
            self._refuse_in_failed_transaction(prepared.action)
            plan, portal = prepared.plan, Portal(statement, prepared)
            if statement.inner is not None:
                # Described by its query, but it returns no rows itself.
                inner = await self._current(statement.inner)
                assert inner.plan is not None  # noqa: S101
                plan, portal = msgspec.structs.replace(inner.plan, swallow_rows=True), Portal(statement.inner, inner)
                prepared = inner
            elif isinstance(prepared.command, ExecuteCommand | FetchCommand):
                plan, portal = await self._described(prepared.command, portal)
            if plan is None:
                description = self._description(statement, ()) or NO_DATA
                types = statement.answer.parameters if statement.answer is not None else ()
                self._step(Step(Kind.LOCAL, reply=ParameterDescription(types).encode() + description))
            else:
                parameters = prepared.client_parameters
                self._step(Step(Kind.DESCRIBE_STATEMENT, plan=plan, portal=portal, parameters=parameters))
            return
        portal = self._portal(message.name)
        if portal.plan is None:
            description = self._description(portal.statement, portal.result_formats) or NO_DATA
            self._step(Step(Kind.LOCAL, reply=description))
        else:
            self._step(Step(Kind.DESCRIBE_PORTAL, plan=portal.plan, portal=portal))

    async def _execute(self, message: Execute) -> None:
        portal = self._portal(message.portal)
        prepared = portal.prepared
        self._refuse_in_failed_transaction(prepared.action)
        if portal.plan is not None:
            await self._same_terms(portal)
            await self._enter(portal)
            self._queue_execute(portal, max(0, message.max_rows))
            return
        if portal.done:
            raise Refusal("WP-01", "the portal has run already", sqlstate="55000")
        portal.done = True
        if portal.statement.answer is not None:
            self._check_room()
            self._say(portal.statement.answer.messages(portal.result_formats))
            self._answered(portal, portal.statement.answer.tag)
        elif prepared.command is not None:
            await self._command(prepared.command, portal)

    async def _same_terms(self, portal: Portal) -> None:
        """Refuse a portal or cursor whose decision or catalogue is no longer the one that it was opened under."""
        prepared, again = portal.prepared, await self._current(portal.statement)
        if again.plan != prepared.plan or _values_of(again) != _values_of(prepared):
            raise Refusal(
                "ST-08",
                "the portal was opened under a policy or a catalogue that has changed since",
                sqlstate="34000",
                hint="Bind and execute the statement again.",
            )
        if prepared.verdict is not None:
            self._enforcement.still_valid(prepared.verdict)

    async def _close(self, message: Close) -> None:
        if message.target == "S":
            self.statements.pop(message.name, None)
            self._step(Step(Kind.LOCAL, reply=CLOSE_COMPLETE))
            return
        portal = self.portals.get(message.name) or self._held.get(message.name)
        if portal is None or portal.plan is None:
            self.portals.pop(message.name, None)
            self._step(Step(Kind.LOCAL, reply=CLOSE_COMPLETE))
        else:
            self._close_portal(message.name, visible=True)

    def _close_portal(self, name: str, *, visible: bool) -> None:
        """Close a portal or cursor that upstream has; it stays open if an earlier step fails."""
        where = self.portals if name in self.portals else self._held
        portal = where[name]
        if where is self._held:
            self._take_holding(name)
        del where[name]
        if portal.plan is not None:
            undo = functools.partial(operator.setitem, where, name, portal)
            self._step(Step(Kind.CLOSE_PORTAL, portal=portal, visible=visible, undo=undo))

    def _statement(self, name: str) -> Statement:
        statement = self.statements.get(name)
        if statement is None:
            what = f'prepared statement "{_plain(name)}"' if name else "the unnamed prepared statement"
            raise Refusal("WP-01", f"{what} does not exist", sqlstate="26000")
        return statement

    def _portal(self, name: str) -> Portal:
        portal = self.portals.get(name)
        if portal is None:
            what = f'portal "{_plain(name)}"' if name else "the unnamed portal"
            raise Refusal("WP-01", f"{what} does not exist", sqlstate="34000")
        return portal

    def _put(self, where: dict[str, Any], name: str, what: object) -> Callable[[], None]:
        """Note a statement or portal; what is returned takes that back."""
        previous = where.get(name)

        def undo() -> None:
            if where.get(name) is what:
                if previous is None:
                    del where[name]
                else:
                    where[name] = previous

        if where is not self.statements and len(self.portals) + len(self._held) >= MAX_PORTALS:
            raise Refusal(
                "WP-03",
                f"this session has opened more than {MAX_PORTALS} portals and cursors",
                sqlstate="53400",
                hint="Close those that are not needed any more (CLOSE ALL).",
            )
        where[name] = what
        self._undo.append(undo)
        return undo

    # steps and segments

    def _step(self, step: Step) -> None:
        self._steps.append(step)

    def _say(self, reply: bytes) -> None:
        self._steps.append(Step(Kind.LOCAL, reply=reply))

    def _check_room(self) -> None:
        """Refuse one execution more than a unit may hold.  Raises `Refusal` WP-03."""
        if len(self.relay.runs) >= MAX_EXECUTIONS:
            raise Refusal(
                "WP-03",
                f"more than {MAX_EXECUTIONS} executions before one Sync",
                sqlstate="54000",
                hint="Send smaller batches.",
            )

    async def _enter(self, portal: Portal) -> None:
        """Count an execution against the limits of its agent.  Raises `Refusal` AC-06."""
        self._check_room()
        counters, limits = self.services.counters, portal.prepared.limits
        limit = limits.concurrent
        if limits.distinct_keys_per_hour is not None:
            self._countable(portal)
        try:
            if limit is not None and not 0 < self._entered <= limit:
                # A session runs one statement at a time, however many it has queued.
                await counters.enter(self.agent.spiffe_id, limit, again=self._entered > 0)
                self._entered = limit
            if limits.statements_per_minute is not None:
                self._counted.append(await counters.count(self.agent.spiffe_id, limits))
        except QuotaReached as reached:
            self.quota_reached(portal.prepared, reached)
            raise

    def _countable(self, portal: Portal) -> None:
        """Refuse a statement whose keys cannot be counted.  Raises `Refusal`."""
        prepared, shown = portal.prepared, self.services.shown.get(self.agent.database)
        if shown is None:
            raise Refusal("AC-05", "nobody counts the keys that you read")
        if prepared.plan is not None and is_counted(prepared):
            shown.rows(prepared.plan)

    async def _count_keys(self, portal: Portal, rows: list[list[bytes | None]], written: int) -> None:
        """Count what these rows show, or so many written ones hold, against the agent's hour.

        Raises `Refusal` AC-06 if it is too much.
        """
        prepared, spiffe_id = portal.prepared, self.agent.spiffe_id
        limit = prepared.limits.distinct_keys_per_hour
        if prepared.plan is None or limit is None or not is_counted(prepared):
            return
        shown = self.services.shown[self.agent.database]
        keys, more = shown.count(prepared.plan, rows, functools.partial(self.services.quotas.hash, spiffe_id))
        if written:
            more += shown.copied(prepared, written)
        if keys or more:
            try:
                await self.services.counters.read(spiffe_id, limit, keys, more)
            except QuotaReached as reached:
                self.quota_reached(prepared, reached)
                raise

    def quota_reached(self, prepared: Prepared, reached: QuotaReached) -> None:
        """Tell of a statement that a quota refuses."""
        if prepared.verdict is not None:
            reached.decision_id = prepared.verdict.id
        self.services.on_quota(self.agent, "postgres", self._id, reached)

    def _queue_execute(self, portal: Portal, max_rows: int) -> Step:
        prepared = portal.prepared
        if prepared.limits.distinct_keys_per_hour is not None and prepared.plan is not None:
            shown = self.services.shown.get(self.agent.database)
            if shown is not None and prepared.plan.returns_rows and not shown.described(prepared.plan):
                self._step(Step(Kind.DESCRIBE_PORTAL, plan=portal.plan, portal=portal, visible=False))
        run = Run(portal)
        self.relay.runs.append(run)
        step = Step(Kind.EXECUTE, plan=portal.plan, portal=portal, run=run, max_rows=max_rows)
        self._steps.append(step)
        if portal.plan is not None and portal.plan.stateful:
            self._queue_setting("search_path", PINNED["search_path"], local=False)
        return step

    async def _segment(self, *, sync: bool) -> bool:
        """Send what is queued.  False if something failed; the client is told then, and the unit with it.

        A statement that can still be refused after it has run (a limit, a token that cannot be decoded) must not be
        followed by, nor be, a write that is committed with it: such a segment is cut there and goes on with a Flush.
        """
        steps, self._steps = self._steps, []
        if not sync and all(step.kind is Kind.LOCAL for step in steps):
            for step in steps:
                self.relay.out += step.reply
            return True
        begin = 0
        try:
            for end in _cuts(steps):
                if not await self._send(steps[begin:end], sync=False):
                    self._take_back(steps[end:], None)
                    return False
                begin = end
            return await self._send(steps[begin:], sync=sync)
        except Refusal as refusal:
            if not refusal.fatal and not isinstance(refusal, UpstreamLost):
                self._take_back(steps[begin:], refusal)
            for step in reversed(steps[begin:]):
                if step.undo is not None:
                    step.undo()
            raise

    def _take_back(self, steps: Sequence[Step], refusal: Refusal | None) -> None:
        """Forget the executions that upstream never saw; where an intent was kept, the refusal is its outcome."""
        for step in steps:
            if step.run is None:
                continue
            if step.run.intent:
                step.run.refusal = refusal
            else:
                self.relay.runs.remove(step.run)

    async def _send(self, steps: list[Step], *, sync: bool) -> bool:
        relay = self.relay
        if not steps and not sync:
            return True
        await self._keep_strict_intents(steps)
        await self._acquire()
        if self.begun is not None:
            steps = [*self._control(self.begun), *steps]
            self.begun = None
        self._engaged = True
        failure = await relay.exchange(steps, sync=sync)
        if sync:
            self._engaged = False
            self.status = relay.status
        if failure is None:
            return True
        await self._failed_upstream(failure, sync=sync)
        return False

    async def _acquire(self) -> None:
        if self.relay.connection is not None:
            return
        patience = self._lane.patience() if self._lane is not None else None
        try:
            self.relay.connection = await self._pool.acquire(
                patience, profile=self.settings.for_server(), borrower=self.agent.spiffe_id
            )
        except Refusal as refusal:
            if "22023" in (refusal.detail_for_audit or ""):
                raise Refusal(
                    "ID-04",
                    "the database does not know the value of one of your settings (TimeZone, for instance)",
                    sqlstate="22023",
                    hint="Change it with SET or at startup.",
                ) from None
            raise

    def _release(self) -> None:
        self.portals.clear()
        self._release_connection()

    @staticmethod
    def _control(text: str) -> list[Step]:
        """A transaction command of the proxy's own, of which the client sees nothing."""
        plan = own_plan(text)
        portal = Portal(_NOTHING, _local(None))
        return [
            Step(Kind.BIND, plan=plan, portal=portal, visible=False),
            Step(Kind.EXECUTE, plan=plan, portal=portal, visible=False),
        ]

    def _queue_control(self, command: SessionCommand, portal: Portal) -> None:
        """A transaction command of the client's, which is sent as it is and whose tag the client sees."""
        plan = own_plan(command.text)
        run = Run(portal)
        self.relay.runs.append(run)
        self._step(Step(Kind.BIND, plan=plan, portal=portal, visible=False))
        self._step(Step(Kind.EXECUTE, plan=plan, portal=portal, run=run))

    async def _failed_upstream(self, failure: Failure, *, sync: bool) -> None:
        """An error or a late refusal came out of a segment."""
        self._failed = True
        if failure.stale and self._may_retry():
            self._stale = True
        if failure.refusal is not None and failure.refusal.decision_id is None:
            failure.refusal.decision_id = self._decision_of(failure.refusal)
            failure.fields = refusal_fields(failure.refusal)
        self.relay.out += ErrorResponse(_clean(failure.fields)).encode()
        self._skip()
        if failure.refusal is not None and not failure.server_failed:
            # Upstream did not fail, so it is made to, if there is a transaction to fail.
            self._poison = not sync or self.status == "T"

    def _decision_of(self, refusal: Refusal) -> str | None:
        for run in self.relay.runs:
            if run.refusal is refusal and run.portal.prepared.verdict is not None:
                return run.portal.prepared.verdict.id
        return None

    async def _fail(self, refusal: Refusal, text: str) -> None:
        """Refuse a message: what came before it in the unit still happens, what comes after is skipped."""
        if self._failed:
            return
        try:
            if self._steps and not await self._segment(sync=False):
                return
            await self._record_refusal(refusal, text)
        except UpstreamLost as lost:
            await self._lost(lost)
            return
        except Refusal as earlier:
            refusal = earlier
        self._tell(refusal)

    def _tell(self, refusal: Refusal) -> None:
        """Answer the unit with an error of the proxy's own."""
        self._failed = True
        self._poison = self.relay.connection is not None
        if self.status == "T" and self.relay.connection is None:
            self.status = "E"
        self.relay.out += ErrorResponse(_clean(refusal_fields(refusal))).encode()
        self._skip()

    def _skip(self) -> None:
        """An error was told: the rest of the unit is skipped."""
        if self._state.state in (state.State.EXTENDED, state.State.COPY_IN, state.State.COPY_IN_EXTENDED):
            self._state.happened(state.Event.FAILED)

    async def _lost(self, lost: UpstreamLost) -> None:
        """The upstream connection is gone: nobody knows what became of the writes of this unit."""
        for run in self.relay.runs:
            if run.sqlstate == "" and run.refusal is None and not run.local:
                run.status = "unknown" if _writes(run.portal.prepared) or run.portal.prepared.plan is None else "error"
                run.sqlstate = "08006"
                run.error = lost.detail_for_audit or ""
        self._steps.clear()
        self._engaged = self._poison = False
        self.begun = None
        if self.relay.connection is self._holding or any(not cursor.done for cursor in self._held.values()):
            self._let_go()
        self._release()
        if self.status != "I":
            self.status = "E"
        if not self._failed:
            self._failed = True
            self.relay.out += ErrorResponse(_clean(refusal_fields(lost))).encode()
            self._skip()

    def _refuse_in_failed_transaction(self, action: str) -> None:
        if self.status == "E" and action not in _EXIT:
            raise Refusal("WP-01", TEMPLATES["25P02"], sqlstate="25P02", hint="Send ROLLBACK.")

    # the end of a unit

    async def _flush(self) -> None:
        """Answer what was asked so far.

        A part that only prepares and describes leaves nothing behind upstream, so it ends with a Sync there, and the
        connection is free again while the client thinks about it.
        """
        light = (
            not self._engaged
            and self.status == "I"
            and all(step.kind in (Kind.PARSE, Kind.DESCRIBE_STATEMENT, Kind.LOCAL) for step in self._steps)
        )
        steps = [step for step in self._steps if step.kind is not Kind.LOCAL]
        if steps and light:
            await self._segment(sync=True)
            await self.relay.settled()
            if self.status == "I":
                self._release_connection()
        else:
            await self._segment(sync=False)
        if self._stale:
            await self._run_again()
            return
        await self._give()

    async def _give(self) -> None:
        """Send what is gathered before the unit has ended.  Raises `Refusal` if what ran cannot be recorded."""
        relay = self.relay
        if not relay.out or self._stale:
            return
        for run in relay.runs:
            if not run.intent and not run.local:
                await self._keep_intent(run)
        relay.streamed = True
        self.stream.send(bytes(relay.out))
        relay.out.clear()
        await self.stream.drain()

    async def _sync(self) -> None:
        """End the unit: upstream first, then the records, then the client."""
        if self._steps and all(step.kind is Kind.LOCAL for step in self._steps) and not self._engaged:
            await self._segment(sync=False)
        if not self._failed and (self._steps or self._engaged):
            await self._segment(sync=True)
        await self._finish()

    async def _finish(self) -> None:
        """The unit's last part: poison where due, settle, record, answer, release."""
        relay = self.relay
        self._steps.clear()
        try:
            if self._poison:
                await relay.exchange([Step(Kind.POISON)], sync=True)
                self.status, self._engaged, self._poison = relay.status, False, False
            elif self._engaged:
                await relay.exchange([], sync=True)
                self.status, self._engaged = relay.status, False
            await relay.settled()
        except UpstreamLost as lost:
            await self._lost(lost)
        if self._stale:
            await self._run_again()
            return
        if self.status == "I":
            self._end_transaction()
        try:
            await self._keep_outcomes()
        except Refusal as refusal:
            await self._unrecorded(refusal)
        self._leave_quotas()
        if self.status == "I":
            self.begun = None
            self._settle_held()
            self._release()
        out = relay.out + ReadyForQuery(self.status).encode()  # type: ignore[arg-type]
        self._reset_unit()
        self._state.happened(state.READY[self.status])  # type: ignore[index]
        self.stream.send(bytes(out))
        await self.stream.drain()

    def _reset_unit(self) -> None:
        relay = self.relay
        relay.out = bytearray()
        relay.runs = []
        relay.streamed = False
        self._failed = self._poison = self._engaged = self._retried = self._stale = False
        self._open = False
        self._unit.clear()
        self._repeatable = True
        self._unit_bytes = self._pending_bytes = 0
        self._undo.clear()
        self._counted.clear()

    def _leave_quotas(self) -> None:
        if self._entered:
            self.services.counters.leave(self.agent.spiffe_id)
            self._entered = 0

    def _release_connection(self) -> None:
        connection, self.relay.connection = self.relay.connection, None
        if connection is not None and connection is not self._holding:
            self._pool.release(connection)

    # cursors WITH HOLD

    def _take_holding(self, name: str) -> None:
        """This unit runs on the connection that the cursors WITH HOLD are on.  Raises `Refusal` if it cannot."""
        holding = self._holding
        if self.status != "I" or self.relay.connection not in (None, holding):
            raise Refusal(
                "ST-05", f'cursor "{_plain(name)}" WITH HOLD is used outside of transaction blocks only',
                sqlstate="0A000", hint="Fetch from it before BEGIN or after COMMIT, in a statement of its own.",
            )  # fmt: skip
        if holding is not None and holding.profile != self.settings.for_server():
            raise Refusal(
                "ST-05", "the settings of this session are not those that its cursors WITH HOLD were declared under",
                sqlstate="0A000", hint="Set them as they were, or declare the cursor again.",
            )  # fmt: skip
        self.relay.connection = holding

    def _settle_held(self) -> None:
        """A unit has ended: what it declared stays if it went well, and so does the connection, while there are any."""
        connection = self.relay.connection
        if self._failed:
            self._held = {name: cursor for name, cursor in self._held.items() if cursor.done}
        for cursor in self._held.values():
            cursor.done = True
        if self._held and self._holding is None:
            self._holding = connection
        elif not self._held:
            holding, self._holding = self._holding, None
            if holding is not None and holding is not connection:
                self._pool.release(holding)

    def _let_go(self) -> None:
        """Forget the cursors WITH HOLD, and end the connection that they are on."""
        self._held.clear()
        holding, self._holding = self._holding, None
        if holding is not None:
            holding.dirty = True
            if holding is not self.relay.connection:
                self._pool.release(holding)

    async def _unrecorded(self, refusal: Refusal) -> None:
        """The outcome cannot be kept, so the client does not get it (AU-01)."""
        relay = self.relay
        if not relay.streamed:
            relay.out.clear()
        relay.out += ErrorResponse(_clean(refusal_fields(refusal))).encode()
        if self.status == "T" and relay.connection is not None:
            try:
                await relay.exchange([Step(Kind.POISON)], sync=True)
                self.status = relay.status
            except UpstreamLost as lost:
                self._failed = True
                await self._lost(lost)

    # a catalogue that changed under a statement

    def _may_retry(self) -> bool:
        """Whether the whole unit can run once more: nothing of it is visible to anybody yet."""
        return (
            not self._retried
            and not self.relay.streamed
            and self._repeatable
            and self.status == "I"
            and self.begun is None
            and (self._holding is None or self.relay.connection is not self._holding)
        )

    async def _run_again(self) -> None:
        """Refresh the catalogue and run the unit once more, under new plans."""
        relay = self.relay
        for undo in reversed(self._undo):
            undo()
        if relay.connection is not None:
            relay.connection.dirty = True
        self._release()
        unit = self._unit.copy()
        self._leave_quotas()
        for count in self._counted:
            self.services.counters.uncount(self.agent.spiffe_id, count)
        self._reset_unit()
        self._retried = True
        await self.services.refresh(self.agent.database)
        self._state.state = state.State.IDLE
        for kind, payload in unit:
            self._begin_unit(kind, payload)
            if self._state.state is state.State.SKIPPING and kind != Sync.kind:
                continue
            message = decode_frontend(kind, payload)
            self._state.receive(message)
            await self._dispatch(message)

    # session commands

    async def _command(self, command: SessionCommand, portal: Portal) -> None:
        self._check_room()
        before = len(self.relay.runs)
        await self._obey(command, portal)
        if not self._failed and len(self.relay.runs) == before:
            self._answered(portal, _TAGS.get(command.kind, command.kind.upper()))

    def _answered(self, portal: Portal, tag: str) -> None:
        """Note a statement that the proxy answered by itself: it has an event too."""
        run = Run(portal)
        run.tag, run.local = tag, True
        self.relay.runs.append(run)

    async def _obey(self, command: SessionCommand, portal: Portal) -> None:
        kind = command.kind
        if kind in _CONTROL:
            await self._transaction(command, portal)
            return
        if kind == "show":
            answer = self._show(command.name)
            self._say((answer.description() if portal.simple else b"") + answer.messages(portal.result_formats))
            return
        if kind == "unlock_all":
            answer = answers.UNLOCKED
            self._say((answer.description() if portal.simple else b"") + answer.messages(portal.result_formats))
            return
        if kind == "empty":
            self._say(EMPTY_QUERY_RESPONSE)
            return
        if isinstance(command, DeclareCommand):
            await self._declare(command, portal)
            return
        if kind == "close":
            self._close_cursor(command.name)
            return
        if self._steps and not await self._segment(sync=False):
            return
        if kind == "set":
            await self._set(command.name, command.value, local=command.local)
            tag = "SET"
        elif kind == "set_transaction":
            if command.name == "transaction":
                if self._in_transaction:
                    self._queue_control(command, portal)
                    return
                self._warn("25P01", "SET TRANSACTION can only be used in transaction blocks")
            else:
                for name, value in _characteristics(command.text):
                    await self._set(name, value, local=False)
            tag = "SET"
        elif kind == "reset":
            await self._set(command.name, None, local=command.local)
            tag = "RESET"
        elif kind == "reset_all":
            await self._reset_all()
            tag = "RESET"
        elif kind == "discard":
            if command.name == "all":
                if self._in_transaction:
                    raise Refusal("ST-05", "DISCARD ALL cannot run inside a transaction", sqlstate="25001")
                self._close_all(portal)
                await self._reset_all()
                self._forget_statements()
            tag = f"DISCARD {command.name.upper()}"
        elif kind == "deallocate":
            if command.name:
                self._statement(command.name)
                del self.statements[command.name]
            else:
                self._forget_statements()
            tag = "DEALLOCATE" if command.name else "DEALLOCATE ALL"
        elif isinstance(command, PrepareCommand):
            if not await self._prepare(command, portal):
                return
            tag = "PREPARE"
        elif isinstance(command, SettingsCommand):
            await self._change_settings(command, portal)
            return
        elif kind == "set_constraints":
            if self._in_transaction:
                self._queue_control(command, portal)
                return
            self._warn("25P01", "SET CONSTRAINTS can only be used in transaction blocks")
            tag = "SET CONSTRAINTS"
        elif kind == "close_all":
            self._close_all(portal)
            tag = "CLOSE CURSOR ALL"
        elif kind == "unlisten":
            tag = "UNLISTEN"
        elif isinstance(command, CopyInCommand):
            await self._copy_in(command, portal)
            return
        else:
            raise Refusal("ST-05", "this command is not carried by this proxy", sqlstate="0A000")
        self._say(CommandComplete(tag).encode())

    # COPY FROM STDIN

    async def _copy_in(self, command: CopyInCommand, portal: Portal) -> None:
        """Take the client's rows until CopyDone.  Raises `Refusal` if it may not begin."""
        copying = await self._enforcement.prepare_copy(self.agent, command)
        statement = Statement(portal.statement.text, (), copying.told, portal.statement.chain)
        statement.offset = None
        told = Portal(statement, copying.told)
        told.loads = True
        await self._enter(told)
        self.learn(copying.one)
        run = Run(told)
        self.relay.runs.append(run)
        stream = CopyStream(
            command,
            copying,
            run,
            enforcement=self._enforcement,
            relay=self.relay,
            largest=self.config.max_message_bytes,
            receive=self._copied,
            send=functools.partial(self._send, sync=False),
            same_terms=functools.partial(self._same_copy, copying),
            count_keys=self._count_keys,
        )
        try:
            self.relay.out += stream.begin()
            await self._give()
            self._state.carry_copy()
            extended = self._state.state is state.State.EXTENDED
            self._state.happened(state.Event.COPY_IN_EXTENDED if extended else state.Event.COPY_IN)
            self._copying = stream
            done = await stream.run()
        except UpstreamLost:
            raise
        except Refusal as refusal:
            if refusal.fatal:
                raise
            run.refusal = refusal
            if refusal.decision_id is None and copying.told.verdict is not None:
                refusal.decision_id = copying.told.verdict.id
            self._tell(refusal)
            return
        finally:
            self._copying = None
        if done:
            run.tag = f"COPY {run.rows}"
            self._say(CommandComplete(run.tag).encode())
            if copying.one.plan is not None and copying.one.plan.stateful:
                self._queue_setting("search_path", PINNED["search_path"], local=False)

    async def _same_copy(self, copying: Copying) -> None:
        for each in (copying.one, copying.many):
            await self._same_terms(Portal(Statement(each.understood.text, (), each, None), each))

    async def _copied(self, deadline: float | None) -> FrontendMessage:
        """The client's next message, while it copies.  Raises TimeoutError at ``deadline`` (loop time)."""
        while True:
            for kind, payload in self._frames:
                self._half_since = None
                message = decode_frontend(kind, payload)
                self._state.receive(message)
                if isinstance(message, Terminate):
                    raise ClientGone
                return message
            async with asyncio.timeout_at(deadline):
                data = await self._read()
            if not data:
                raise ClientGone
            self._frames.feed(data)

    # statements and cursors that SQL names

    async def _inside(
        self, command: PrepareCommand | DeclareCommand, types: Sequence[int], chain: Chain | None
    ) -> Statement:
        """The statement inside PREPARE or DECLARE, understood and decided as if it had been sent alone."""
        self._make_room(len(command.text))
        try:
            (prepared,) = await self._enforcement.prepare(self.agent, command.text, types, simple=False)
        except Refusal as refusal:
            if refusal.position is not None:
                refusal.position += command.offset
            raise
        if prepared.plan is None:
            raise Refusal(
                "ST-05", "this statement is answered by the proxy: it can be sent, but not prepared or opened by name",
                sqlstate="0A000", hint="Send it by itself.",
            )  # fmt: skip
        named = isinstance(command, PrepareCommand)
        statement = Statement(command.text, tuple(types), prepared, chain, named=named)
        statement.offset = command.offset
        return statement

    async def _prepare(self, command: PrepareCommand, portal: Portal) -> bool:
        """PREPARE: the same statements, and the same names, as the protocol's own; False if the database refuses it."""
        if command.name in self.statements:
            raise Refusal("WP-01", f'prepared statement "{_plain(command.name)}" already exists', sqlstate="42P05")
        types = self._enforcement.type_oids(command.types)
        statement = await self._inside(command, types, portal.statement.chain)
        undo = self._put(self.statements, command.name, statement)
        plan = statement.prepared.plan
        self._step(Step(Kind.PARSE, plan=plan, portal=Portal(statement, statement.prepared), undo=undo))
        return await self._segment(sync=False)

    def _forget_statements(self) -> None:
        """DEALLOCATE ALL: the unnamed statement is not among them."""
        self.statements = {name: each for name, each in self.statements.items() if not name}

    async def _opened(
        self, command: ExecuteCommand | FetchCommand, statement: Statement, message: Bind, *, simple: bool = False
    ) -> Portal:
        """The portal behind EXECUTE, FETCH and MOVE, which returns what they return."""
        if message.values:
            raise Refusal("WP-01", f"{command.kind.upper()} takes no parameters", sqlstate="08P01")
        if isinstance(command, ExecuteCommand):
            source = self._statement(command.name)
            values = tuple(value.encode() if value is not None else None for value in command.arguments)
            again = Statement(
                source.text, source.types, source.prepared, statement.chain, source.answer, named=source.named
            )
            again.offset = None
            prepared = await self._current(again)
            if prepared.plan is None or source.inner is not None:
                raise Refusal(
                    "ST-05", "this prepared statement cannot be run with EXECUTE", sqlstate="0A000",
                    hint="Run it with the protocol's own messages, as it was prepared.",
                )  # fmt: skip
            bind = Bind("", command.name, (), values, message.result_formats)
            return await self._bound(again, prepared, bind, simple=simple)
        cursor = self._cursor(command.name)
        if command.name in self._held:
            self._take_holding(command.name)
        await self._same_terms(cursor)
        formats = cursor.result_formats if simple else message.result_formats
        again = Statement(cursor.statement.text, (), cursor.prepared, statement.chain)
        again.offset = None
        return Portal(
            again,
            cursor.prepared,
            result_formats=formats,
            simple=simple,
            plan=self._fetch_plan(command, cursor),
            cursor=cursor,
        )

    @staticmethod
    def _fetch_plan(command: FetchCommand, cursor: Portal) -> Plan:
        """FETCH or MOVE as it is sent: never for more than one row above the limit (AC-06)."""
        assert cursor.plan is not None  # noqa: S101
        limit = cursor.prepared.limits.rows
        most = None if limit is None or command.move else max(1, limit - cursor.rows + 1)
        return msgspec.structs.replace(
            cursor.plan,
            sql=command.sql(cursor.upstream, most),
            name="",
            shared=False,
            parameter_types=(),
            client_parameters=0,
        )

    async def _described(self, command: ExecuteCommand | FetchCommand, portal: Portal) -> tuple[Plan | None, Portal]:
        """What describes EXECUTE, FETCH or MOVE; as in PostgreSQL nothing does as long as its name is unknown."""
        if isinstance(command, ExecuteCommand):
            if command.name not in self.statements:
                return None, portal
            source = self._statement(command.name)
            return (await self._current(source)).plan, Portal(source, source.prepared)
        cursor = self.portals.get(command.name) or self._held.get(command.name)
        if cursor is None or cursor.plan is None or command.move:
            return None, portal
        return self._fetch_plan(command, cursor), cursor

    def _cursor(self, name: str) -> Portal:
        cursor = self.portals.get(name) or self._held.get(name)
        if cursor is None or cursor.plan is None:
            raise Refusal(
                "WP-01", f'cursor "{_plain(name)}" does not exist', sqlstate="34000",
                hint="A cursor lives until the end of the transaction that declares it, unless it is WITH HOLD.",
            )  # fmt: skip
        return cursor

    async def _declare(self, command: DeclareCommand, portal: Portal) -> None:
        held = command.hold
        if held and self.status != "I":
            raise Refusal(
                "ST-05", "A cursor WITH HOLD is declared outside of transaction blocks only.", sqlstate="0A000",
                hint="Declare it without WITH HOLD and fetch within the transaction, or page by key with LIMIT.",
            )  # fmt: skip
        if not held and not self._in_transaction:
            raise Refusal(
                "WP-01", "DECLARE CURSOR can only be used in transaction blocks", sqlstate="25P01",
                hint="Send BEGIN first.",
            )  # fmt: skip
        if command.name in self.portals or command.name in self._held:
            raise Refusal("WP-01", f'cursor "{_plain(command.name)}" already exists', sqlstate="42P03")
        query = portal.inner
        if query is None:
            statement = await self._inside(command, (), portal.statement.chain)
            query = await self._bound(statement, statement.prepared, Bind("", ""))
        else:
            await self._same_terms(query)
        assert query.plan is not None  # noqa: S101
        cursor = Portal(query.statement, query.prepared, result_formats=(1,) if command.binary else ())
        cursor.born = self._next_number()
        cursor.upstream = f"grille_c{cursor.born}"
        sql = declared(cursor.upstream, command.options, query.plan.sql)
        query.plan = msgspec.structs.replace(query.plan, sql=sql, name="", shared=False, results=())
        query.result_formats = ()
        await self._enter(query)
        if held and self._holding is not None:
            self._take_holding(command.name)
        undo = self._put(self._held if held else self.portals, command.name, cursor)
        self._step(Step(Kind.BIND, plan=query.plan, portal=query, visible=False))
        self._queue_execute(query, 0).undo = undo

    def _close_all(self, portal: Portal) -> None:
        """Close what is open but the portal that asks for it."""
        for name in [name for name, each in {**self.portals, **self._held}.items() if each is not portal]:
            self._close_portal(name, visible=False)

    def _close_cursor(self, name: str) -> None:
        self._cursor(name)
        self._close_portal(name, visible=False)
        self._say(CommandComplete("CLOSE CURSOR").encode())

    def _mark(self, kind: str, name: str) -> None:
        """Follow savepoints: what was opened or set after one goes with it."""
        places = [place for place, mark in enumerate(self._savepoints) if mark[0] == name]
        if kind == "savepoint":
            self._savepoints.append((name, self._next_number(), self.settings, self._local_settings))
        elif kind in _LAZY_SAFE:
            self._savepoints.clear()
            self.portals.clear()
        elif places:
            _, born, settings, local = self._savepoints[places[-1]]
            del self._savepoints[places[-1] + (kind == "rollback_to") :]
            if kind == "rollback_to":
                self.portals = {key: each for key, each in self.portals.items() if each.born < born}
                self.settings, self._local_settings = settings, local
                self._say(self._changed())

    @property
    def _in_transaction(self) -> bool:
        """In a transaction block, or in a unit of which upstream has already begun a part."""
        return self.status != "I" or self._engaged

    async def _transaction(self, command: SessionCommand, portal: Portal) -> None:
        kind = command.kind
        tag = CommandComplete(_TAGS[kind]).encode()
        if any(step.kind is not Kind.LOCAL for step in self._steps) and not await self._segment(sync=False):
            return
        if kind == "begin":
            if self.status == "T":
                self._warn("25001", "there is already a transaction in progress")
                self._say(tag)
                return
            if self.services.draining.is_set():
                raise Refusal("OP-01", "this node is going out of service", sqlstate="57P01")
            self._before = self.settings
            self._isolation = _isolation(command.text)
            if self._engaged:
                self._queue_control(command, portal)
            else:
                self.begun, self.status = command.text, "T"
                self._say(tag)
            return
        if self.status == "I" and not self._engaged:
            if kind not in _LAZY_SAFE:
                raise Refusal("WP-01", f"{_TAGS[kind]} can only be used in transaction blocks", sqlstate="25P01")
            self._warn("25P01", "there is no transaction in progress")
            self._say(tag)
            return
        if self.relay.connection is None and not (self.status == "T" and kind not in _LAZY_SAFE):
            # Nothing of this transaction has been sent.
            if kind in _LAZY_SAFE:
                failed = self.status == "E"
                if kind == "rollback" or failed:
                    self._roll_back_settings()
                self.begun, self.status = None, "I"
                self._say(CommandComplete("ROLLBACK" if kind == "rollback" or failed else "COMMIT").encode())
                return
            raise Refusal("WP-01", TEMPLATES["3B001"], sqlstate="3B001")
        if kind in _LAZY_SAFE and (kind == "rollback" or self.status == "E"):
            self._roll_back_settings()
        self._queue_control(command, portal)
        self._mark(kind, command.name)
        if kind in _LAZY_SAFE:
            # What follows in this unit is outside of the transaction, and what came before must not happen twice.
            self.status, self._repeatable = "I", False

    def _end_transaction(self) -> None:
        self._before = None
        self._isolation = ""
        self._savepoints.clear()
        if self._local_settings:
            self._local_settings = _NO_LOCAL_SETTINGS
            self.relay.out += self._changed()

    def _roll_back_settings(self) -> None:
        if self._before is not None and self._before != self.settings:
            self.settings = self._before
            self._say(self._changed())

    def _warn(self, code: str, text: str) -> None:
        self._say(NoticeResponse(error_fields("WARNING", code, text)).encode())

    async def _set(self, name: str, value: str | None, *, local: bool) -> None:
        """SET (``value`` given) or RESET of one setting."""
        known = canonical_session_name(name)
        if known is None:
            if name in answers.FIXED:
                if value is None or _same(answers.FIXED[name], value):
                    return
                refuse_setting(name)
            if name in ("transaction_isolation", "transaction_read_only"):
                raise Refusal("ID-04", "use SET TRANSACTION instead", sqlstate="0A000")
            refuse_setting(name)
        if known == TRACE:
            self.chain = parse_trace(value or "", "setting")
            return
        wanted = self._initial.get(known) if value is None else check(known, value)
        if local:
            if not self._in_transaction:
                self._warn("25P01", "SET LOCAL can only be used in transaction blocks")
                return
            await self._set_upstream(known, wanted or "", local=True)
            self._local_settings = {**self._local_settings, known: wanted or ""}
            self._say(self._changed())
            return
        if known in self._local_settings:
            self._local_settings = {name: text for name, text in self._local_settings.items() if name != known}
        old, self.settings = self.settings, self.settings.with_value(known, wanted)
        if self.settings.for_server() != old.for_server() and self.relay.connection is not None:
            await self._set_upstream(known, wanted or "", local=False)
        self._say(self._changed())

    async def _set_upstream(self, name: str, value: str, *, local: bool) -> None:
        """Change a setting on the connection that the present transaction holds; it is not lent again afterwards."""
        if name in ("application_name", "client_encoding"):
            return
        await self._acquire()
        connection = self.relay.connection
        if connection is not None:
            connection.unpin(name)
        self._queue_setting(name, value, local=local)

    def _queue_setting(self, name: str, value: str, *, local: bool) -> None:
        wire = ((0, 0, 0), (name.encode(), value.encode(), b"t" if local else b"f"))
        portal = Portal(_NOTHING, _local(None), wire=wire)
        self._step(Step(Kind.BIND, plan=_SET_CONFIG, portal=portal, visible=False))
        self._step(Step(Kind.EXECUTE, plan=_SET_CONFIG, portal=portal, visible=False))

    async def _reset_all(self) -> None:
        for name, _ in (*self.settings.values, *self._initial.values):
            await self._set(name, None, local=False)

    def _changed(self) -> bytes:
        """What tells the client of reported settings that it does not know as they are."""
        told, self._told = self._told, self._reported()
        return b"".join(
            ParameterStatus(name, value).encode()
            for name, value, known in zip(answers.REPORTED, self._told, told, strict=True)
            if value != known
        )

    def _reported(self) -> tuple[str, ...]:
        """The values of the reported settings as they are now."""
        return tuple(self._shown(name) or "" for name in answers.REPORTED)

    def _show(self, name: str) -> Answer:
        value = self._shown(name)
        if value is None:
            raise Refusal(
                "ID-04", f'setting "{_plain(name)}" is not known to this proxy, or may not be read', sqlstate="42704"
            )
        return answers.show(canonical_session_name(name) or name, value)

    async def _change_settings(self, command: SettingsCommand, portal: Portal) -> None:
        """set_config and current_setting, in their order.  Raises `Refusal`."""
        values: list[str | None] = []
        for call in command.calls:
            if call.value is not None:
                await self._set(call.name, call.value, local=call.local)
            value = self._shown(call.name)
            values.append(value if value is not None or call.missing_ok else self._show(call.name).rows[0][0])
        answer = msgspec.structs.replace(_settings_answer(command), rows=(tuple(values),))
        self._say((answer.description() if portal.simple else b"") + answer.messages(portal.result_formats))

    def _description(self, statement: Statement, formats: Sequence[int]) -> bytes:
        """The RowDescription of what the proxy answers; empty if it has no rows."""
        if statement.answer is not None:
            return statement.answer.description(formats)
        command = statement.prepared.command
        if command is not None and command.kind == "show":
            return self._show(command.name).description(formats)
        if command is not None and command.kind == "unlock_all":
            return answers.UNLOCKED.description(formats)
        if isinstance(command, SettingsCommand):
            return _settings_answer(command).description(formats)
        return b""

    def _driver_answer(self, text: str) -> Answer | None:
        return answers.driver_answer(
            text,
            {
                "server_version": self._shown("server_version") or "",
                "database": self.agent.database,
                "session_authorization": self._shown("session_authorization") or "",
            },
        )

    def _next_number(self) -> int:
        """What tells the order in which portals, cursors and savepoints came."""
        self._numbers += 1
        return self._numbers

    # what errors may name

    def learn(self, prepared: Prepared) -> None:
        operation = prepared.understood.operation
        if operation is None:
            return
        for use in operation.relations:
            relation = (use.schema, use.name)
            named = _named(use.columns, use.predicates)
            known = self._known.get(relation, named)
            self._known[relation] = known if named <= known else known | named

    def permitted(self, schema: str, relation: str, column: str) -> bool:
        """An error may name what a permitted statement of this session has named before."""
        columns = self._known.get((schema, relation))
        return columns is not None and (not column or column in columns)

    # the record

    def _event(self, kind: Any, name: str, level: Level, when: float, **more: Any) -> Event:
        return Event(
            id=more.pop("id", None) or event_id(when),
            time=timestamp(when),
            kind=kind,
            name=name,
            worker=self.services.worker,
            sequence=0,
            level=level,
            spiffe_id=self.agent.spiffe_id,
            certificate_serial=self.agent.serial,
            certificate_sha256=self.agent.cert_sha256,
            session=self._id,
            client=self._peer,
            protocol="postgres",
            database=self.agent.database,
            application=self.settings.get("application_name") or "",
            **more,
        )

    def _level(self, prepared: Prepared) -> Level:
        return self.services.recorder.level(writes=_writes(prepared))

    async def _keep_strict_intents(self, steps: Sequence[Step]) -> None:
        """Level strict: the intent is on disk before the statement is forwarded."""
        self.services.recorder.check()
        for step in steps:
            if step.run is not None and not step.run.intent and self._level(step.run.portal.prepared) == "strict":
                await self._keep_intent(step.run)

    async def _keep_intent(self, run: Run) -> None:
        event = self.statement_event(run, intent=True)
        await self.services.recorder.keep(event)
        run.intent = event.id

    async def _keep_outcomes(self) -> None:
        """Keep the final event of every execution of this unit, all in one group."""
        runs = self.relay.runs
        if not runs:
            return
        began = time.perf_counter()
        events = [self.statement_event(run) for run in runs]
        keep = self.services.recorder.keep
        if len(events) == 1:
            await keep(events[0])
        else:
            for result in await asyncio.gather(*map(keep, events), return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
        elapsed = int((time.perf_counter() - began) * 1e6)
        for run, event in zip(runs, events, strict=True):
            stages = {**event.stages, "audit": elapsed}
            stages["total"] = stages.get("total", 0) + elapsed
            self.services.metrics.observe(msgspec.structs.replace(event, stages=stages), run.portal.prepared.action)

    def statement_event(self, run: Run, *, intent: bool = False) -> Event:
        portal = run.portal
        prepared = portal.prepared
        plan, verdict, understood = prepared.plan, prepared.verdict, prepared.understood
        refusal = run.refusal
        more: dict[str, Any] = {}
        if verdict is not None:
            more["verdict"] = event_verdict(prepared, refusal)
            more.update(asked_about(understood.operation, verdict))
        # What the proxy answers for drivers is a closed set of texts without constants.
        shown = portal.statement.text if portal.statement.answer is not None else understood.shown
        if intent:
            outcome = Outcome("intent")
        else:
            outcome = Outcome(
                run.status if refusal is None else "denied",  # type: ignore[arg-type]
                tag=run.tag,
                sqlstate=refusal.sqlstate if refusal is not None else run.sqlstate,
                error=run.error or (refusal.detail_for_audit or "" if refusal is not None else ""),
                rows=run.rows,
                bytes=run.bytes,
                encoded=portal.encoded,
                decoded=run.decoded,
            )
        return self._event(
            "statement",
            "statement",
            self._level(prepared) if plan is not None else "process",
            run.began,
            chain=portal.statement.chain or self.chain,
            template=shown,
            template_sha256=_sha256(shown),
            statement_bytes=len(portal.statement.text.encode()),
            values=portal.values,
            outcome=outcome,
            intent="" if intent else run.intent,
            stages={
                **prepared.stages,
                "tokenize": int((portal.tokenize + run.tokenize) * 1e6),
                "upstream": int(run.upstream * 1e6),
                "total": int((time.perf_counter() - run.clock) * 1e6) + sum(prepared.stages.values()),
            },
            **more,
        )

    async def _record_refusal(self, refusal: Refusal, text: str, *, name: str = "statement") -> None:
        """Keep the event of something that was refused before it ran; sets the refusal's decision id."""
        when = time.time()
        identifier = event_id(when)
        if refusal.decision_id is None:
            refusal.decision_id = identifier
        stripped, chain = cut_comment(text)
        more: dict[str, Any] = {}
        if isinstance(refusal.operation, Operation):
            more.update(asked_about(refusal.operation, None))
        event = self._event(
            "statement" if name == "statement" else "session",
            name,
            self.services.recorder.level(writes=False),
            when,
            id=identifier,
            chain=chain or self.chain,
            template=refusal.template or "",
            template_sha256=_sha256(refusal.template or ""),
            statement_bytes=len(stripped.encode(errors="replace")),
            verdict=Verdict(
                id=refusal.decision_id,
                allow=False,
                control=refusal.control,
                reason=refusal.message,
                revision=refusal.revision,
            ),
            outcome=Outcome("denied", sqlstate=refusal.sqlstate, error=refusal.detail_for_audit or ""),
            **more,
        )
        await self.services.recorder.keep(event)
        self.services.metrics.observe(event)


# small things


@functools.lru_cache(maxsize=1024)
def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


_SKIPPED: Final = frozenset(b"QPBDECH") | {0}
_STAND_INS: Final[dict[int, FrontendMessage]] = {
    Bind.kind: Bind("", ""),
    Describe.kind: Describe("S", ""),
    Close.kind: Close("S", ""),
    Parse.kind: Parse("", ""),
    Query.kind: Query(""),
    Execute.kind: Execute(""),
}


def _local(command: SessionCommand | None) -> Prepared:
    """A statement that needs no decision, because the proxy answers or sends it on its own account."""
    action = command.kind if command is not None else "own"
    return Prepared(
        action, command, None, (), _NO_LIMITS, Understood("", b"", (), command, None, action, False, ""), None, False
    )


_NOTHING: Final = Statement("", (), _local(None), None)


_SET_CONFIG: Final = msgspec.structs.replace(
    own_plan("SELECT pg_catalog.set_config($1, $2, $3)"),
    name="grille_set_config",
    parameter_types=(25, 25, 16),
    swallow_rows=True,
)


def _settings_answer(command: SettingsCommand) -> Answer:
    return Answer("SELECT 1", tuple((call.column, answers.TEXT_OID) for call in command.calls))


def _writes(prepared: Prepared) -> bool:
    return prepared.plan is not None and prepared.plan.writes


def _cuts(steps: Sequence[Step]) -> list[int]:
    """Where a segment is cut: before a write that follows something refusable, and after a refusable write."""
    cuts = []
    refusable = False
    for number, step in enumerate(steps):
        if step.run is None:
            continue
        writes, refusable_itself = _writes(step.run.portal.prepared), may_refuse(step.run.portal.prepared)
        if writes and refusable:
            cuts.append(number)
            refusable = False
        if writes and refusable_itself:
            cuts.append(number + 1)
        else:
            refusable = refusable or refusable_itself
    return cuts


def _commitments(plan: Plan, values: Sequence[bytes | None]) -> tuple[Value, ...]:
    """Commitments to the client's values, in the form in which they came."""
    types = plan.parameter_types
    return tuple(commit(value, type_name(types[n]) if n < len(types) else "unknown") for n, value in enumerate(values))


def _values_of(prepared: Prepared) -> object:
    """The identity's own values under which a statement was decided."""
    return prepared.verdict.values if prepared.verdict is not None else None


def _characteristics(text: str) -> list[tuple[str, str]]:
    """The settings behind SET SESSION CHARACTERISTICS, from its canonical text."""
    found = []
    for option in text.partition("AS TRANSACTION ")[2].split(", "):
        if option.startswith("ISOLATION LEVEL "):
            found.append(("default_transaction_isolation", option.removeprefix("ISOLATION LEVEL ").lower()))
        elif option in ("READ ONLY", "READ WRITE"):
            found.append(("default_transaction_read_only", "on" if option == "READ ONLY" else "off"))
        elif option in ("DEFERRABLE", "NOT DEFERRABLE"):
            found.append(("default_transaction_deferrable", "on" if option == "DEFERRABLE" else "off"))
    return found


def _isolation(text: str) -> str:
    """The isolation level that a BEGIN names, or nothing."""
    _, found, rest = text.partition("ISOLATION LEVEL ")
    return rest.partition(",")[0].lower() if found else ""


def _same(fixed: str, value: str) -> bool:
    """Whether a SET asks for what is so anyway."""
    words = {"true": "on", "yes": "on", "1": "on", "false": "off", "no": "off"}
    lowered = value.lower()
    return fixed == lowered or (fixed in ("on", "off") and words.get(lowered, lowered) == fixed)


def _plain(name: str) -> str:
    """A client's own name, short and printable."""
    return "".join(c if c.isprintable() and c != '"' else "?" for c in name[:63])


def _clean(fields: dict[str, str]) -> dict[str, str]:
    """Fields as the protocol can carry them."""
    return {code: text.replace("\0", "\ufffd") for code, text in fields.items()}


def _text_of(message: FrontendMessage) -> str:
    return message.text if isinstance(message, Query | Parse) else ""


def _discarded_query(message: FrontendMessage) -> bool:
    return isinstance(message, Oversized) and message.discarded == Query.kind


def _address(stream: ByteStream) -> str:
    name = stream.extra("peername")  # noqa: S610  (not Django)
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) and len(name) >= 2 else ""
