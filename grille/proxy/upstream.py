"""Connections to the database, and the pool that lends them out.

An `UpstreamConnection` is opened with every setting pinned that changes what a statement means, carries one borrower's
units at a time, and dies at the first doubt: an unexpected reply, a setting that changed by itself, a half message.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Self, TypeVar

import msgspec

from grille.controls import Refusal
from grille.protocols.postgres.framing import Frames, ProtocolViolation, backend_limits
from grille.protocols.postgres.messages import (
    Authentication,
    BackendKeyData,
    CancelRequest,
    Close,
    ErrorResponse,
    ParameterStatus,
    Parse,
    PasswordMessage,
    ReadyForQuery,
    SSLRequest,
    StartupMessage,
    Terminate,
    TransactionStatus,
)
from grille.protocols.postgres.pipeline import (
    CLOSE_COMPLETE,
    ERROR_RESPONSE,
    NOTICE_RESPONSE,
    PARAMETER_STATUS,
    PARSE_COMPLETE,
    Expectation,
    Pipeline,
    Request,
    UnexpectedReply,
)
from grille.protocols.postgres.scram import ScramError, ScramExchange, tls_server_end_point
from grille.proxy.config import Database
from grille.proxy.stream import ByteStream

MESSAGE_LIMIT: Final = 64 * 1024 * 1024
"""Longest message in bytes that upstream may send, a row for instance."""
STATEMENT_LIMIT: Final = 500
"""Prepared statements kept on one connection; each takes 16 to 24 KiB in the server."""

_CANCEL_ATTEMPTS: Final = 3
_CANCEL_PATIENCE: Final = 0.5

if TYPE_CHECKING:
    from grille.proxy.pipe import Pipe

Connection = TypeVar("Connection", bound="UpstreamConnection")
Profile = tuple[tuple[str, str], ...]
"""Settings of a client that change what the server does, sorted by name: the GUC profile."""

PINNED: Final = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "search_path": "pg_catalog",
    "application_name": "grille",
    "bytea_output": "hex",
    "transform_null_equals": "off",
}
"""What every connection is opened with: a setting of the startup message is immune to a reload of the server."""

_REQUIRED: Final = {"client_encoding": "UTF8", "standard_conforming_strings": "on", "integer_datetimes": "on"}
_UNREACHABLE: Final = "the database cannot be reached at the moment"
_SSL_REQUEST: Final = SSLRequest().encode()


class UpstreamLost(Refusal):
    """The connection is gone or in doubt, and closed; what was in flight may or may not have taken effect."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "UP-01",
            "the connection to the database was lost",
            sqlstate="08006",
            hint="What was sent last may or may not have taken effect; check before you repeat a write.",
            detail_for_audit=reason,
        )


class Reply(NamedTuple):
    """One message from the database."""

    kind: int
    """Type byte."""
    payload: bytes
    expectation: Expectation | None
    """What was sent that this answers; None for a notice."""


class UpstreamConnection:
    """One connection to the database, used by one borrower at a time."""

    def __init__(self, database: Database, profile: Profile, stream: ByteStream) -> None:
        self.profile = profile
        self.stream = stream
        self.pipeline = Pipeline()
        self.statements: OrderedDict[str, None] = OrderedDict()
        """Names of the statements that the server has prepared, the one used longest ago first."""
        self.pipe: Pipe | None = None
        """What drives it by callbacks, once the fast path has used it."""
        self.parameters: dict[str, str] = {}
        """Every setting that the server reports, as it was when the connection opened."""
        self.dirty = False
        """Set by the borrower when it leaves state behind that the next must not meet; the pool then closes it."""
        self._database = database
        self._frames = Frames(backend_limits(MESSAGE_LIMIT), peer="backend")
        self._unpinned: set[str] = set()
        self._key: BackendKeyData | None = None
        self._lost: str | None = None
        self._cancels = 0
        self._no_cancel = asyncio.Event()
        self._no_cancel.set()

    @classmethod
    async def open(cls, database: Database, profile: Profile = (), *, shared: Mapping[str, str] | None = None) -> Self:
        """Connect, encrypt, authenticate, pin the settings and wait until the server is ready.

        ``shared``: the settings of a connection that many borrowers share, beyond those of all.

        Raises Refusal UP-01 08006 within ``connect_timeout``; the reason is in ``detail_for_audit`` only.
        """
        stream: ByteStream | None = None
        try:
            async with asyncio.timeout(database.connect_timeout):
                stream = await _connect(database)
                connection = cls(database, profile, stream)
                await connection._start(shared or {})
                return connection
        except BaseException as error:
            if stream is not None:
                stream.abort()
            if isinstance(error, Refusal):
                raise _unreachable(error.detail_for_audit or error.message) from None
            if isinstance(error, TimeoutError):
                raise _unreachable(f"not ready within {database.connect_timeout:g} s") from None
            if isinstance(error, OSError | ValueError | ScramError):  # ssl.SSLError is an OSError
                raise _unreachable(f"{type(error).__name__}: {error}") from None
            raise

    # what a borrower uses

    @property
    def transaction_status(self) -> TransactionStatus:
        """What the last ReadyForQuery said."""
        return self.pipeline.status

    @property
    def in_flight(self) -> int:
        """Messages sent and not fully answered."""
        return self.pipeline.in_flight

    @property
    def process_id(self) -> int:
        """The backend's process id."""
        return self._key.process_id if self._key is not None else 0

    @property
    def lost(self) -> bool:
        """True once the connection is of no more use."""
        return self._lost is not None or self.stream.at_end

    def prepare(
        self,
        name: str,
        text: str,
        types: tuple[int, ...],
        unit: list[Expectation],
        *,
        fresh: bool = False,
        item: int = 0,
    ) -> bytes:
        """The messages that must go before a Bind of this named statement; empty where the server has it.

        ``unit`` is the list of expectations that the borrower is composing, to be given to `send` with the messages;
        what is returned here is added to it, marked with ``item``.  ``fresh`` prepares anew even where the server has
        the statement (after its 0A000 "cached plan must not change result type").  The statement used longest ago is
        closed when there are too many.
        """
        under_way = [e for e in chain(reversed(unit), reversed(self.pipeline.requests)) if e.statement]
        last = next((e.request for e in under_way if e.statement == name), None)
        prepared = last is Request.PARSE or (last is None and name in self.statements)
        if name in self.statements:
            self.statements.move_to_end(name)
        if prepared and not fresh:
            return b""
        victim: str | None = None
        if fresh:
            victim = name
        else:
            opening = {e.statement for e in under_way if e.request is Request.PARSE}
            closing = {e.statement for e in under_way if e.request is Request.CLOSE}
            held = len(self.statements) + sum(new not in self.statements for new in opening)
            if held - len(closing) >= STATEMENT_LIMIT:
                victim = next((old for old in self.statements if old not in closing and old not in opening), None)
        messages = b""
        if victim is not None:
            messages = Close("S", victim).encode()
            unit.append(Expectation(Request.CLOSE, ours=True, statement=victim, item=item))
        unit.append(Expectation(Request.PARSE, ours=True, statement=name, item=item))
        return messages + Parse(name, text, types).encode()

    async def send(self, messages: bytes, expectations: Sequence[Expectation]) -> None:
        """Send whole messages; ``expectations`` has one entry for each that the server answers.

        Waits for a cancel request under way, so that it cannot hit what is sent here.  Raises UpstreamLost.
        """
        await self._no_cancel.wait()
        if self.lost:
            self._die(self._lost or "closed by the server")
        self.pipeline.sent(expectations)
        self.stream.send(messages)

    async def next_reply(self) -> Reply:
        """The next message.  Raises UpstreamLost, and the connection is closed."""
        if self._lost is not None:
            raise UpstreamLost(self._lost)
        try:
            while True:
                for kind, payload in self._frames:
                    if kind == PARAMETER_STATUS:
                        self.watch(ParameterStatus.decode(payload))
                        continue
                    if kind == ERROR_RESPONSE:
                        self.check_severity(payload)
                    expectation = self.pipeline.received(kind, payload)
                    if expectation is not None and expectation.statement:
                        self.acknowledge(kind, expectation.statement)
                    return Reply(kind, payload, expectation)
                data = await self.stream.receive()
                if not data:
                    self._die("closed by the server")
                self._frames.feed(data)
        except (ProtocolViolation, UnexpectedReply) as error:
            self._die(str(error))

    async def replies(self) -> AsyncIterator[Reply]:
        """Replies until all that was sent is answered.  Raises UpstreamLost."""
        while self.pipeline.in_flight:
            yield await self.next_reply()

    def unpin(self, name: str) -> None:
        """Let this setting change from now on (the borrower is about to SET it); the connection is not used again."""
        self._unpinned.add(name.lower())
        self.dirty = True

    @property
    def cancelling(self) -> bool:
        """True while a cancel request may still hit what runs here."""
        return self._cancels > 0

    async def not_cancelling(self) -> None:
        """Wait until no cancel request can hit what is sent here."""
        await self._no_cancel.wait()

    def cancel(self) -> Coroutine[Any, Any, bool]:
        """Ask the server to cancel what runs here, and wait until it has dealt with that.

        Nothing more is sent on this connection from the call on, and it is lent to nobody.  False: the server could not
        be asked, or did not close the cancel connection in time; this connection will not be used by another borrower.
        """
        self._cancels += 1
        self._no_cancel.clear()
        return self._cancel()

    async def _cancel(self) -> bool:
        stream: ByteStream | None = None
        done = False
        try:
            if self._key is None or self.lost:
                return False
            async with asyncio.timeout(self._database.connect_timeout):
                stream = await _connect(self._database)
                stream.send(CancelRequest(self._key.process_id, self._key.secret).encode())
                while await stream.receive():
                    pass
            done = True
        except (OSError, Refusal):  # ssl.SSLError and TimeoutError are OSErrors
            pass
        finally:
            if not done:
                self.dirty = True
            if stream is not None:
                stream.abort()
            self._cancels -= 1
            if self._cancels == 0:
                self._no_cancel.set()
        return done

    # what the pool uses

    @property
    def reusable(self) -> bool:
        """True if the next borrower would find the connection as a new one."""
        return not (
            self.dirty
            or self.lost
            or self._cancels
            or self.pipeline.in_flight
            or self.pipeline.status != "I"
            or self._frames.pending
            or self.stream.buffered
        )

    def close(self) -> None:
        """Say goodbye where that is possible, and close."""
        if not self.lost and not self.pipeline.in_flight:
            self.stream.send(Terminate().encode())
            self.stream.close()
        else:
            self.stream.abort()
        self._lost = self._lost or "closed by Grille"

    def abort(self, reason: str = "closed by Grille") -> None:
        """Close at once."""
        self.stream.abort()
        self._lost = self._lost or reason

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        await self.stream.wait_closed()

    def acknowledge(self, kind: int, name: str) -> None:
        """Note that the server has prepared or closed a statement."""
        if kind == PARSE_COMPLETE:
            self.statements[name] = None
        elif kind == CLOSE_COMPLETE:
            self.statements.pop(name, None)

    def watch(self, status: ParameterStatus) -> None:
        """A setting may only change if the borrower changes it.  Raises UpstreamLost."""
        if status.name.lower() not in self._unpinned and self.parameters.get(status.name) != status.value:
            self._die(f"setting {status.name} changed by itself")

    def check_severity(self, payload: bytes) -> None:
        """An error that ends the connection is for nobody.  Raises UpstreamLost."""
        error = ErrorResponse.decode(payload)
        if error.severity in ("FATAL", "PANIC"):
            self._die(f"{error.severity} {error.sqlstate}: {error.message}")

    def _die(self, reason: str) -> NoReturn:
        if self._lost is None:
            self._lost = reason
        self.stream.abort()
        raise UpstreamLost(self._lost)

    # opening

    def _settings(self) -> dict[str, str]:
        """The settings of the startup message."""
        timeout = str(round(self._database.statement_timeout * 1000))
        return {**PINNED, "statement_timeout": timeout, **dict(self.profile)}

    def _check_settings(self) -> None:
        """Raise ProtocolViolation if the server runs with settings that are not understood here."""
        for name, value in _REQUIRED.items():
            if self.parameters.get(name) != value:
                raise ProtocolViolation(f"the server runs with {name} = {self.parameters.get(name)!r}, not {value!r}")

    async def _start(self, shared: Mapping[str, str]) -> None:
        database = self._database
        parameters = {**self._settings(), **shared, "user": database.role, "database": database.database}
        self.stream.send(StartupMessage(parameters).encode())
        await self._authenticate()
        while True:
            kind, payload = await self._startup_message()
            if kind == ParameterStatus.kind:
                status = ParameterStatus.decode(payload)
                self.parameters[status.name] = status.value
            elif kind == BackendKeyData.kind:
                self._key = BackendKeyData.decode(payload)
            elif kind == ReadyForQuery.kind:
                if ReadyForQuery.decode(payload).status != "I":
                    raise ProtocolViolation("the server starts in a transaction")
                break
            elif kind == NOTICE_RESPONSE:
                self._noticed(payload)
            else:
                raise ProtocolViolation(f"unexpected message {chr(kind)!r} during startup")
        if self._key is None:
            raise ProtocolViolation("the server gives no cancel key")
        self._check_settings()

    def _noticed(self, payload: bytes) -> None:
        """A notice of the startup: nobody's, on a connection that many use."""

    async def _authenticate(self) -> None:
        exchange: ScramExchange | None = None
        while True:
            kind, payload = await self._startup_message()
            if kind == NOTICE_RESPONSE:
                continue
            if kind != Authentication.kind:
                raise ProtocolViolation(f"unexpected message {chr(kind)!r} during authentication")
            request = Authentication.decode(payload)
            if request.code == Authentication.SASL and exchange is None:
                exchange = ScramExchange(
                    request.mechanisms(), self._password(), channel_binding=_channel_binding(self.stream)
                )
                answer = PasswordMessage.sasl_initial(exchange.mechanism, exchange.first())
            elif request.code == Authentication.SASL_CONTINUE and exchange is not None:
                answer = PasswordMessage(exchange.answer(request.data))
            elif request.code == Authentication.SASL_FINAL and exchange is not None:
                exchange.verify(request.data)
                continue
            elif request.code == Authentication.OK:
                if exchange is not None and not exchange.verified:
                    raise ProtocolViolation("the server did not prove that it knows the password")
                return
            elif request.code in (Authentication.CLEARTEXT_PASSWORD, Authentication.MD5_PASSWORD):
                raise ProtocolViolation("the server asks for a clear or md5 password; use scram-sha-256 or cert")
            else:
                raise ProtocolViolation(f"the server asks for authentication {request.code}, which is not carried")
            self.stream.send(answer.encode())

    async def _startup_message(self) -> tuple[int, bytes]:
        while True:
            for kind, payload in self._frames:
                if kind == ERROR_RESPONSE:
                    self._refused(ErrorResponse.decode(payload))
                return kind, payload
            data = await self.stream.receive()
            if not data:
                raise ProtocolViolation("closed by the server during startup")
            self._frames.feed(data)

    def _refused(self, error: ErrorResponse) -> NoReturn:
        """The server does not let this connection start."""
        raise ProtocolViolation(f"{error.severity} {error.sqlstate}: {error.message}")

    def _password(self) -> str:
        file = self._database.password_file
        if file is None:
            raise ProtocolViolation("the server asks for a password, and no password_file is configured")
        return file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")


async def _connect(database: Database) -> ByteStream:
    """A connected stream, encrypted unless the configuration says ``off``.  Raises OSError or Refusal."""
    loop = asyncio.get_running_loop()
    if database.host.startswith("/"):
        _, stream = await loop.create_unix_connection(ByteStream, f"{database.host}/.s.PGSQL.{database.port}")
        return stream
    _, stream = await loop.create_connection(ByteStream, database.host, database.port)
    try:
        keep_alive(stream)
        if database.tls != "off":
            context = ssl.create_default_context(cafile=str(database.ca) if database.ca is not None else None)
            context.set_alpn_protocols(["postgresql"])
            if database.client_certificate is not None:
                context.load_cert_chain(database.client_certificate, database.client_key)
            stream.send(_SSL_REQUEST)
            answer = await stream.receive()
            if answer == b"N":
                raise ProtocolViolation("the server does not offer TLS")
            if answer != b"S" or stream.buffered:
                # CVE-2021-23222: what arrives in clear must never be read as part of the encrypted session.
                raise ProtocolViolation("the server answered SSLRequest with more or other than one byte")
            await stream.start_tls(
                context, server_side=False, server_hostname=database.host, handshake_timeout=database.connect_timeout
            )
    except BaseException:
        stream.abort()
        raise
    return stream


def keep_alive(stream: ByteStream) -> None:
    """Let the kernel find out within about a minute that the server's host has vanished."""
    connected = stream.extra("socket")  # noqa: S610  (not Django)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # macOS names the first one otherwise
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _channel_binding(stream: ByteStream) -> bytes | None:
    ssl_object = stream.extra("ssl_object")  # noqa: S610  (not Django)
    certificate = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
    return tls_server_end_point(certificate) if certificate is not None else None


def _unreachable(reason: str) -> Refusal:
    return Refusal(
        "UP-01",
        _UNREACHABLE,
        sqlstate="08006",
        hint="Nothing was executed; try again later.",
        detail_for_audit=reason,
    )


class PoolCounts(msgspec.Struct, frozen=True):
    """The state of one pool, for metrics."""

    open: int
    idle: int
    in_use: int
    waiting: int
    """Borrowers that wait for a connection."""
    opened: int
    """Connections opened since the start."""
    failed: int
    """Connections that could not be opened since the start."""


Lent = Callable[["UpstreamConnection | None", Exception | None], None]
"""Is given the connection, or why there is none."""


class Waiter:
    """Somebody who waits for a place."""

    __slots__ = ("borrower", "done", "kind", "profile", "timer")

    def __init__(self, borrower: str, profile: Profile, done: Lent, kind: type[UpstreamConnection]) -> None:
        self.kind = kind
        self.borrower = borrower
        self.profile = profile
        self.done: Lent | None = done
        self.timer: asyncio.TimerHandle | None = None


class UpstreamPool:
    """The connections of one worker to one database, at most ``pool_size`` of them.

    Who waits is served in turn by borrower, so that one with many statements does not hold up the others.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._free = database.pool_size
        self._idle: deque[UpstreamConnection] = deque()
        self._in_use: set[UpstreamConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._queues: OrderedDict[str, deque[Waiter]] = OrderedDict()
        self._waiting = 0
        self._opened = 0
        self._failed = 0
        self._closing = False
        self._discarding: set[asyncio.Task[None]] = set()
        self._all_returned = asyncio.Event()
        self._all_returned.set()

    async def acquire(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        profile: Profile = (),
        borrower: str = "",
    ) -> UpstreamConnection:
        """Borrow a connection whose settings are those of ``profile``.

        ``timeout`` is in seconds, ``acquire_timeout`` of the configuration by default, and counts the wait for a free
        place; opening has its own.  Raises Refusal UP-01: 53300 when no place came free in time, 08006 when the
        database cannot be reached; OP-01 57P01 when the pool is closing.
        """
        return await self._acquire(UpstreamConnection, profile, borrower, timeout)

    async def acquire_private(self, kind: type[Connection], profile: Profile, borrower: str = "") -> Connection:
        """Open a connection of another ``kind`` under the same limits; it must never become `reusable`.

        Raises as `acquire`, and whatever else the opening of that kind raises.
        """
        return await self._acquire(kind, profile, borrower, None)

    async def _acquire(
        self,
        kind: type[Connection],
        profile: Profile,
        borrower: str,
        timeout: float | None,  # noqa: ASYNC109
    ) -> Connection:
        lent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(connection: UpstreamConnection | None, error: Exception | None) -> None:
            if lent.done():
                if connection is not None:
                    self.release(connection)
            elif connection is not None:
                lent.set_result(connection)
            else:
                lent.set_exception(error or _unreachable(""))

        waiter = self.lend(done, profile=profile, borrower=borrower, timeout=timeout, kind=kind)
        try:
            connection: Connection = await lent
            return connection
        except asyncio.CancelledError:
            if waiter is not None:
                self._forget(waiter)
            if lent.done() and not lent.cancelled() and lent.exception() is None:
                self.release(lent.result())
            raise

    def lend(
        self,
        done: Lent,
        *,
        profile: Profile = (),
        borrower: str = "",
        timeout: float | None = None,
        kind: type[UpstreamConnection] | None = None,
    ) -> Waiter | None:
        """`acquire` for a caller that is called back, at once if a connection is idle."""
        if self._closing:
            done(None, _closing())
            return None
        waiter = Waiter(borrower, profile, done, kind or UpstreamConnection)
        if self._free and not self._queues:
            self._free -= 1
            self._serve(waiter)
            return None
        queue = self._queues.get(borrower)
        if queue is None:
            queue = self._queues[borrower] = deque()
        queue.append(waiter)
        self._waiting += 1
        limit = self._database.acquire_timeout if timeout is None else timeout
        waiter.timer = asyncio.get_running_loop().call_later(limit, self._expire, waiter, limit)
        return waiter

    def _expire(self, waiter: Waiter, limit: float) -> None:
        done = waiter.done
        self._forget(waiter)
        if done is not None:
            done(
                None,
                Refusal(
                    "UP-01",
                    "all connections to the database are in use",
                    sqlstate="53300",
                    hint=f"No connection came free within {limit:g} s; nothing was executed; try again later.",
                ),
            )

    def withdraw(self, waiter: Waiter) -> None:
        """The caller of `lend` does not want a connection any more: it is not called back, if it was not yet."""
        self._forget(waiter)

    def _forget(self, waiter: Waiter) -> None:
        """Take a waiter out of its queue, if it is still in it."""
        if waiter.done is None:
            return
        waiter.done = None
        if waiter.timer is not None:
            waiter.timer.cancel()
        queue = self._queues.get(waiter.borrower)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            self._waiting -= 1
            if not queue:
                del self._queues[waiter.borrower]

    def _next(self) -> None:
        """A place is free: give it to the borrower whose turn it is."""
        if not self._queues:
            self._free += 1
            return
        borrower, queue = self._queues.popitem(last=False)
        waiter = queue.popleft()
        self._waiting -= 1
        if queue:
            self._queues[borrower] = queue  # at the end: its next one waits until all others had their turn
        if waiter.timer is not None:
            waiter.timer.cancel()
        self._serve(waiter)

    def _serve(self, waiter: Waiter) -> None:
        """Give a waiter, for whom a place is taken, its connection."""
        connection = self._take_idle(waiter.profile) if waiter.kind is UpstreamConnection else None
        if connection is not None:
            self._hand_over(waiter, connection)
            return
        while len(self._idle) > self._free:  # the place of the new one is taken already
            self._idle.popleft().close()
        task = asyncio.get_running_loop().create_task(self._open(waiter))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _hand_over(self, waiter: Waiter, connection: UpstreamConnection) -> None:
        self._in_use.add(connection)
        self._all_returned.clear()
        done, waiter.done = waiter.done, None
        if done is None:
            self.release(connection)
        else:
            done(connection, None)

    def release(self, connection: UpstreamConnection) -> None:
        """Give a connection back, in whatever state it is; only a clean one is lent again."""
        self._in_use.remove(connection)
        if connection.reusable and not self._closing:
            self._idle.append(connection)
        elif connection.in_flight and not connection.lost:
            task = asyncio.get_running_loop().create_task(_cancel_and_abort(connection))
            self._discarding.add(task)
            task.add_done_callback(self._discarding.discard)
        else:
            connection.close()
        if not self._in_use:
            self._all_returned.set()
        self._next()

    async def close(self) -> None:
        """Lend nothing more, close what is idle, and wait until all that is lent has come back."""
        self._closing = True
        self._refuse_waiting()
        while self._idle:
            self._idle.pop().close()
        await self._all_returned.wait()
        if self._discarding:
            await asyncio.gather(*self._discarding)

    def abort(self) -> None:
        """Close every connection at once, lent or not."""
        self._closing = True
        for connection in (*self._idle, *self._in_use):
            connection.abort()
        self._idle.clear()

    @property
    def counts(self) -> PoolCounts:
        """The present state, for metrics."""
        idle, in_use = len(self._idle), len(self._in_use)
        return PoolCounts(idle + in_use, idle, in_use, self._waiting, self._opened, self._failed)

    def _refuse_waiting(self) -> None:
        for waiter in [waiter for queue in self._queues.values() for waiter in queue]:
            done = waiter.done
            self._forget(waiter)
            if done is not None:
                done(None, _closing())

    def _take_idle(self, profile: Profile) -> UpstreamConnection | None:
        """The idle connection of this profile that was used last; dead ones are dropped on the way."""
        for connection in reversed(tuple(self._idle)):
            if not connection.reusable:
                self._idle.remove(connection)
                connection.abort()
            elif connection.profile == profile:
                self._idle.remove(connection)
                return connection
        return None

    async def _open(self, waiter: Waiter) -> None:
        try:
            connection = await waiter.kind.open(self._database, waiter.profile)
        except BaseException as error:
            self._failed += 1
            done, waiter.done = waiter.done, None
            if done is not None:
                done(None, error if isinstance(error, Exception) else _unreachable(type(error).__name__))
            self._next()
            if isinstance(error, Exception):
                return
            raise
        self._opened += 1
        if self._closing:
            connection.close()
            done, waiter.done = waiter.done, None
            if done is not None:
                done(None, _closing())
            self._next()
        else:
            self._hand_over(waiter, connection)


def _closing() -> Refusal:
    return Refusal("OP-01", "this node is going out of service", sqlstate="57P01", hint="Connect again.")


async def _cancel_and_abort(connection: UpstreamConnection) -> None:
    """End a connection whose borrower left while something ran: the server must not go on with it.

    A cancel request is lost if it overtakes the statement, so it is repeated until the server has answered.
    """
    try:
        for _ in range(_CANCEL_ATTEMPTS):
            if not await connection.cancel():
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_PATIENCE):
                    async for _ in connection.replies():
                        pass
                    break
    except UpstreamLost:
        pass
    finally:
        connection.abort()
