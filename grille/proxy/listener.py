"""Where agents arrive: from an accepted socket to a session over mutual TLS, or to a refusal.

Before TLS the socket is read by hand, byte for byte what one request needs, so that nothing sent in clear can be left
in a buffer and be taken for authenticated later (docs/decisions/0009-peek-before-tls.md).  PostgreSQL documentation:
chapter 54.2.10, "SSL Session Encryption", and 54.2.8, "Canceling Requests in Progress".
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

from grille.controls import Refusal
from grille.protocols.postgres.framing import ProtocolViolation, StartupFrames
from grille.protocols.postgres.messages import (
    CancelRequest,
    ErrorResponse,
    GSSENCRequest,
    SSLRequest,
    StartupMessage,
    decode_startup,
)
from grille.proxy import config
from grille.proxy.errors import refusal_fields
from grille.proxy.identity import Agent, Registry, identify
from grille.proxy.stream import CLOSE_SECONDS, ByteStream
from grille.proxy.tls import ALPN, Certificates, handshake_failure, presented_chain

log = logging.getLogger("grille.listener")

_TLS_RECORD: Final = b"\x16"
_BACKLOG: Final = 1024
_ACCEPT_PAUSE: Final = 0.2


class Session(Protocol):
    """What the listener, and the worker that has it, know of a session."""

    @property
    def agent(self) -> Agent:
        """Whose it is."""

    async def run(self) -> None:
        """Serve the client until one side ends it."""

    def drain(self) -> None:
        """End when nothing is under way."""

    def cut(self, refusal: Refusal) -> None:
        """End at once, and say why."""


SessionFactory = Callable[[ByteStream, Agent, str], Session]
"""(stream, agent, peer) -> session.  Nothing has been read from the stream: the client's startup message comes next."""


Address = config.Listener | config.Mq
"""Where to listen, and how many sessions there may be."""


class Door(Protocol):
    """What a protocol does with a connection that is not a session yet."""

    alpn: str
    """The application protocol that TLS from the first byte on must name; empty: none."""

    async def before_tls(self, accepted: socket.socket) -> Literal["negotiated", "direct"] | None:
        """Answer what comes in clear until a TLS handshake is next; None when the connection is done.

        Raises `Refusal` or OSError.
        """

    def check(self, agent: Agent) -> None:
        """Raise `Refusal` for an agent that this protocol leads nowhere."""

    async def tell(self, stream: ByteStream, refusal: Refusal) -> None:
        """Tell a client that has shaken hands why it gets no session.  May take longer than anybody waits."""


class Listener:
    """Accepts connections on one port, beside other workers (SO_REUSEPORT)."""

    def __init__(
        self,
        settings: Address,
        certificates: Certificates,
        registry: Registry,
        session_factory: SessionFactory,
        *,
        door: Door,
        handshake_timeout: float,
        on_refused: Callable[[str, str, str], None],
        admit: Callable[[Agent], None] = lambda agent: None,
    ) -> None:
        """``on_refused`` gets peer, control and
        reason of every connection that was not let become a session.  ``admit`` raises `Refusal` for an agent that may
        have no session now.
        """
        self._settings = settings
        self._door = door
        self._handshake_timeout = handshake_timeout
        self._certificates = certificates
        self._registry = registry
        self._session_factory = session_factory
        self._on_refused = on_refused
        self._admit = admit
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._draining = False
        self.sessions: set[Session] = set()
        """The sessions that are open."""

    async def start(self) -> int:
        """Listen; returns the port.  Raises OSError."""
        settings = self._settings
        found = await asyncio.get_running_loop().getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # accepted sockets inherit it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listening.setblocking(False)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self._accepting = asyncio.create_task(self._accept(listening))
        return int(listening.getsockname()[1])

    async def stop_accepting(self) -> None:
        """Close the port; sessions go on."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            self._accepting = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def finish(self, seconds: float) -> None:
        """Close the port, wait until the sessions have ended by themselves, and end what is left after ``seconds``.

        A connection that is about to become a session is told 57P01 from now on; to tell the sessions is not the
        listener's part.
        """
        self._draining = True
        await self.stop_accepting()
        if self._connections:
            await asyncio.wait(self._connections, timeout=seconds)
        await self.close()

    async def close(self) -> None:
        """Close the port and every connection at once."""
        self._draining = True
        await self.stop_accepting()
        for connection in list(self._connections):
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    # before TLS

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    # most likely out of file descriptors: try again when some may have been closed
                    log.error("cannot accept a connection", extra={"fields": {"error": error.strerror}})
                    await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            peer = _peer(address)
            # as many again may be on their way to being a session, or to being told that there is no room
            if len(self._connections) >= 2 * self._settings.max_connections:
                accepted.close()
                self._on_refused(peer, "WP-03", "too many connections that are not sessions yet")
                continue
            accepted.setblocking(False)
            # One name for all: thousands of idle sessions would each keep a text of its own.
            connection = asyncio.create_task(self._serve(accepted, peer), name="connection")
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _serve(self, accepted: socket.socket, peer: str) -> None:
        """One connection from beginning to end."""
        arrived = await self._arrive(accepted, peer)
        if arrived is None:
            return
        stream, agent = arrived
        session: Session | None = None
        try:
            session = self._session_factory(stream, agent, peer)
            self.sessions.add(session)
            await session.run()
        except Exception:
            log.exception("a session failed", extra={"fields": {"peer": peer, "agent": agent.spiffe_id}})
        finally:
            if session is not None:
                self.sessions.discard(session)
            await _close(stream)

    async def _arrive(self, accepted: socket.socket, peer: str) -> tuple[ByteStream, Agent] | None:
        """Who shook hands; None, and the connection is closed, if nobody did who may become a session."""
        stream: ByteStream | None = None
        agent: Agent | None = None
        try:
            async with asyncio.timeout(self._handshake_timeout):
                kind: Literal["negotiated", "direct"] | None = None
                try:
                    kind = await self._door.before_tls(accepted)
                finally:
                    if kind is None:
                        accepted.close()
                if kind is None:
                    return None
                stream = await self._handshake(accepted)
                tls: ssl.SSLObject = stream.extra("ssl_object")  # noqa: S610
                alpn = self._door.alpn
                if kind == "direct" and alpn and tls.selected_alpn_protocol() != alpn:
                    self._on_refused(peer, "ID-03", f'direct TLS did not ask for the application protocol "{alpn}"')
                    return None
                agent = self._authenticate(presented_chain(tls))
            return stream, agent
        except Refusal as refusal:
            detail = f" ({refusal.detail_for_audit})" if refusal.detail_for_audit else ""
            self._on_refused(peer, refusal.control, refusal.message + detail)
            if stream is not None:
                with contextlib.suppress(TimeoutError, OSError):
                    async with asyncio.timeout(self._handshake_timeout):
                        await self._door.tell(stream, refusal)
        except TimeoutError:
            agent = None
            self._on_refused(peer, "WP-04", "the handshake took too long")
        except OSError:
            pass  # the client has left
        except Exception:
            log.exception("a connection failed", extra={"fields": {"peer": peer}})
        finally:
            if stream is not None and agent is None:
                await _close(stream)
        return None

    # TLS and after

    async def _handshake(self, accepted: socket.socket) -> ByteStream:
        """TLS on the socket, which belongs to the stream from here on.  Raises `Refusal` or OSError."""
        stream = ByteStream()
        handshake = stream.secure(self._certificates.current.context, server_side=True)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: stream, accepted)
            await handshake
        except ssl.SSLError as error:
            control, reason = handshake_failure(error)
            raise Refusal(control, reason, sqlstate="28000", fatal=True) from None
        except BaseException:
            stream.abort()
            raise
        return stream

    def _authenticate(self, chain: list[bytes]) -> Agent:
        """Who shook hands.  Raises `Refusal`."""
        agent = identify(chain, self._certificates.current.bundles, self._registry)
        self._door.check(agent)
        self._admit(agent)
        if self._draining:
            raise Refusal("OP-01", "this node is going out of service", sqlstate="57P01", fatal=True)
        if len(self.sessions) >= self._settings.max_connections:
            raise Refusal("WP-03", "this node has no room for more connections", sqlstate="53300", fatal=True)
        return agent


async def _close(stream: ByteStream) -> None:
    stream.close()
    try:
        async with asyncio.timeout(2 * CLOSE_SECONDS):
            await stream.wait_closed()
    except TimeoutError:
        stream.abort()


# PostgreSQL


class PostgresDoor:
    """`Door` of PostgreSQL: SSLRequest or TLS from the first byte on, and cancel requests in clear."""

    alpn = ALPN

    def __init__(self, cancel: Callable[[int, bytes], object]) -> None:
        """``cancel`` gets process id and secret, and does no more than they allow."""
        self._cancel = cancel

    def check(self, agent: Agent) -> None:
        """Raise `Refusal` for an agent that has no database."""
        if not agent.database:
            raise unregistered(agent, "database")

    async def tell(self, stream: ByteStream, refusal: Refusal) -> None:
        """Answer the startup message with a refusal.

        The message is read first: closing a socket that holds unread bytes resets the connection, and the client would
        not see the answer.
        """
        frames = StartupFrames()
        with contextlib.suppress(ProtocolViolation, TimeoutError):
            while next(frames, None) is None:
                data = await stream.receive()
                if not data:
                    return
                frames.feed(data)
        stream.send(ErrorResponse(refusal_fields(refusal)).encode())

    async def before_tls(self, accepted: socket.socket) -> Literal["negotiated", "direct"] | None:
        """Answer what comes in clear until a TLS handshake is next; None when the connection is done.

        Raises `Refusal`.
        """
        loop = asyncio.get_running_loop()
        if await _peek(accepted) == _TLS_RECORD:
            return "direct"
        gss_asked = False
        while payload := await _read_startup(accepted):
            match decode_startup(payload):
                case SSLRequest():
                    if _has_more(accepted):
                        raise _in_clear("bytes in clear follow the request for TLS")
                    await loop.sock_sendall(accepted, b"S")
                    return "negotiated"
                case GSSENCRequest() if not gss_asked:
                    gss_asked = True
                    await loop.sock_sendall(accepted, b"N")
                case GSSENCRequest():
                    raise _in_clear("GSSAPI encryption was already refused")
                case CancelRequest() as request:
                    self._cancel(request.process_id, request.secret)
                    return None
                case StartupMessage():
                    refusal = _in_clear("a connection without TLS is not accepted")
                    await loop.sock_sendall(accepted, ErrorResponse(refusal_fields(refusal)).encode())
                    raise refusal
        return None


def unregistered(agent: Agent, what: str) -> Refusal:
    """The refusal for an agent that the configuration connects to nothing of this kind."""
    return Refusal(
        "ID-05",
        f"{agent.spiffe_id} is not registered for a {what}",
        sqlstate="28000",
        hint=f"Ask the operator of the proxy to name a {what} for this SPIFFE ID in its configuration.",
        fatal=True,
    )


# a socket in clear


async def _peek(accepted: socket.socket) -> bytes:
    """The first byte, which stays in the socket; ``b""`` if the peer has closed.  Raises OSError."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(BlockingIOError):
            return accepted.recv(1, socket.MSG_PEEK)
        readable = loop.create_future()
        loop.add_reader(accepted.fileno(), _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(accepted.fileno())


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _has_more(accepted: socket.socket) -> bool:
    try:
        return bool(accepted.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def _read_startup(accepted: socket.socket) -> bytes | None:
    """Exactly one message of those that carry no kind, without its length; None at the end of the stream.

    Raises ProtocolViolation or OSError.
    """
    frames = StartupFrames()
    head = await _read_exactly(accepted, 4)
    frames.feed(head)
    next(frames, None)  # judges the length
    rest = await _read_exactly(accepted, int.from_bytes(head) - 4) if len(head) == 4 else b""
    frames.feed(rest)
    return next(frames, None)


async def _read_exactly(accepted: socket.socket, size: int) -> bytes:
    """So many bytes, fewer only at the end of the stream."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(accepted, size - len(data))
        if not more:
            break
        data += more
    return data


def _peer(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _in_clear(what: str) -> Refusal:
    return Refusal(
        "ID-03",
        what,
        sqlstate="28000",
        hint="Connect with sslmode=verify-full and a client certificate (sslcert, sslkey, sslrootcert).",
        fatal=True,
    )
