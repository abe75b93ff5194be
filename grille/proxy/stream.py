"""A byte stream over an asyncio transport, read by pulling: what listener, session and upstream all use.

TLS is spoken here, over the loop's plain transport: the TLS layers of asyncio and uvloop keep 256 KiB of buffer for
each connection, of which uvloop's has 8 in memory, and lose the alert of a failed handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
PIECE: Final = 16 * 1024
"""Bytes that go into or out of TLS at a time, as many as a record has: its buffers grow to that and never shrink."""
HANDSHAKE_PIECE: Final = 256
"""The same during the handshake, because an idle agent's buffers stay as large as that made them."""
CLOSE_SECONDS: Final = 2.0
"""How long a peer may take to read what was sent and to close, once a TLS connection is closed here."""


class Tap(Protocol):
    """What takes a stream's bytes at once, in the callback in which they arrive."""

    def received(self, data: bytes) -> None:
        """Bytes have arrived."""

    def ended(self) -> None:
        """No more bytes will arrive; may be called twice."""


class ByteStream(asyncio.Protocol):
    """One TCP or unix connection, with or without TLS.

    Reading pauses when `HIGH_WATER` bytes wait to be received, so a slow reader slows its sender.
    """

    __slots__ = (
        "__weakref__",
        "_chunks",
        "_closed",
        "_closing",
        "_deadline",
        "_eof",
        "_handshake",
        "_incoming",
        "_lost",
        "_outgoing",
        "_reading_paused",
        "_receiver",
        "_tls",
        "_transport",
        "_writable",
        "_writing_paused",
        "on_lost",
        "tap",
    )

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._chunks = bytearray()
        self._eof = False
        self._reading_paused = False
        self._receiver: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._writing_paused = False
        self._lost = False
        self._closed: asyncio.Future[None] | None = None
        """What waits until the connection is gone."""
        self.on_lost: Callable[[], None] | None = None
        """Called when the connection is gone."""
        self._tls: ssl.SSLObject | None = None
        self._incoming: ssl.MemoryBIO
        self._outgoing: ssl.MemoryBIO
        self._handshake: asyncio.Future[None] | None = None
        """What waits for the TLS handshake; None if there is none or it is over."""
        self._closing = False
        """Nothing is sent or received any more."""
        self._deadline: asyncio.TimerHandle | None = None
        self.tap: Tap | None = None
        """Takes bytes as they arrive, instead of `receive`, while nothing waits to be received."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._tls is None:
            self._arrived(data)
        elif not self._closing:
            self._decrypt(self._tls, data)

    def _arrived(self, data: bytes) -> None:
        tap = self.tap
        if tap is not None and not self._chunks:
            tap.received(data)
            return
        self.give_back(data)

    def give_back(self, data: bytes) -> None:
        """Let these bytes be received next."""
        self._chunks += data
        if len(self._chunks) >= HIGH_WATER:
            self.pause()
        self._wake()

    def eof_received(self) -> bool:
        self._end()
        return False

    def _end(self) -> None:
        self._eof = True
        self._wake()
        if self.tap is not None:
            self.tap.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._break_handshake(exc or ConnectionResetError("the connection was lost during the TLS handshake"))
        self._end()
        self.resume_writing()
        self._lost = True
        if self._closed is not None:
            self._closed.set_result(None)
        if self.on_lost is not None:
            self.on_lost()

    @property
    def writing_paused(self) -> bool:
        """True while the peer takes what is sent more slowly than it is sent."""
        return self._writing_paused

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # TLS

    def secure(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> asyncio.Future[None]:
        """Speak TLS from here on.

        Raises ConnectionResetError if bytes have come in clear that nobody has taken: they would be read as part of
        what is encrypted.  The future is done when the handshake is; it raises ssl.SSLError, after the peer was sent
        the alert and the connection closed, or an OSError.
        """
        if self._chunks:
            raise ConnectionResetError("bytes in clear precede the TLS handshake")
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        handshake = self._handshake = asyncio.get_running_loop().create_future()
        if self._transport is not None:
            self._shake_hands(self._tls)
        return handshake

    def _shake_hands(self, tls: ssl.SSLObject) -> None:
        """Go on with the handshake as far as what has arrived takes it."""
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._break_handshake(error)
            self._closing = True
            self._close_transport()
        else:
            self._flush()
            handshake, self._handshake = self._handshake, None
            if handshake is not None and not handshake.done():
                handshake.set_result(None)

    def _break_handshake(self, error: Exception) -> None:
        handshake, self._handshake = self._handshake, None
        if handshake is not None and not handshake.done():
            handshake.set_exception(error)

    def _decrypt(self, tls: ssl.SSLObject, data: bytes) -> None:
        """Take what the peer has sent, as far as its records are whole."""
        found: list[bytes] = []
        piece = PIECE if self._handshake is None else HANDSHAKE_PIECE
        left = False
        for start in range(0, len(data), piece):
            self._incoming.write(data[start : start + piece])
            if self._handshake is not None:
                self._shake_hands(tls)
                if self._closing:
                    return
                if self._handshake is not None:
                    continue
            try:
                # Asked before reading, because an exception for each statement costs more.
                while not left and (self._incoming.pending or tls.pending()):
                    clear = tls.read(PIECE)
                    left = not clear
                    found.append(clear)
            except ssl.SSLWantReadError:
                pass  # a record that goes on in the next piece
            except ssl.SSLError:
                self._flush()  # the alert
                self._closing = True
                self._close_transport()
                return
        if self._outgoing.pending:
            self._flush()
        if found and found[0]:
            self._arrived(found[0] if len(found) == 1 else b"".join(found))
        if left:
            self._end()
            self.close()

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())

    # what the rest of the proxy uses

    async def receive(self) -> bytes:
        """All bytes that have arrived, at least one; ``b""`` at the end of the stream."""
        while not self._chunks and not self._eof:
            self._receiver = asyncio.get_running_loop().create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        data = bytes(self._chunks)
        self._chunks.clear()
        self.resume()
        return data

    def pause(self) -> None:
        """Read nothing more from the peer until `resume`."""
        if not self._reading_paused and self._transport is not None and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._reading_paused and self._transport is not None and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()

    @property
    def buffered(self) -> int:
        """Bytes that have arrived and wait to be received."""
        return len(self._chunks)

    @property
    def at_end(self) -> bool:
        """True once the peer has closed or the connection is lost."""
        return self._eof

    def send(self, data: bytes) -> None:
        """Queue bytes for the peer; they are dropped if the connection is gone."""
        transport = self._transport
        if transport is None or self._closing or not data or transport.is_closing():
            return
        tls = self._tls
        if tls is None:
            transport.write(data)
            return
        try:
            if len(data) <= PIECE:
                tls.write(data)
                transport.write(self._outgoing.read())
                return
            view = memoryview(data)
            for start in range(0, len(data), PIECE):
                tls.write(view[start : start + PIECE])
                transport.write(self._outgoing.read())
        except ssl.SSLError:
            self.abort()

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was sent."""
        while self._writing_paused and not self._eof:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    async def start_tls(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        handshake_timeout: float = 10.0,
    ) -> None:
        """`secure`, and wait for the handshake.  Raises ssl.SSLError, TimeoutError or ConnectionError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is not open")
        async with asyncio.timeout(handshake_timeout):
            await self.secure(context, server_side=server_side, server_hostname=server_hostname)

    def extra(self, name: str) -> Any:
        """``transport.get_extra_info``: ``ssl_object``, ``peername``, ..."""
        if name == "ssl_object":
            return self._tls
        return self._transport.get_extra_info(name) if self._transport is not None else None

    def close(self) -> None:
        """Close after what was sent has left.

        A TLS connection is closed in both directions: its socket stays until the peer has closed too, or for
        `CLOSE_SECONDS`, because a socket that is closed with unread bytes takes what was sent away from the peer.
        """
        transport = self._transport
        if transport is None or self._closing:
            return
        self._closing = True
        if self._tls is None or self._handshake is not None or transport.is_closing():
            transport.close()
            return
        with contextlib.suppress(ssl.SSLError):  # the peer's part has not come
            self._tls.unwrap()
        self._flush()
        self.resume()
        self._deadline = asyncio.get_running_loop().call_later(CLOSE_SECONDS, transport.abort)
        with contextlib.suppress(OSError):  # the peer has left
            transport.write_eof()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        if self._lost:
            return
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._closed)

    def _close_transport(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _wake(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
