"""A byte stream over an asyncio transport, read by pulling: what listener, session and upstream all use."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol, cast

HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024


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

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._chunks = bytearray()
        self._eof = False
        self._error: Exception | None = None
        self._reading_paused = False
        self._receiver: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._writing_paused = False
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tap: Tap | None = None
        """Takes bytes as they arrive, instead of `receive`, while nothing waits to be received."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
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
        self._error = exc
        self._end()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if not self._closed.done():
            self._closed.set_result(None)

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
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

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
        """Upgrade to TLS.  Raises ssl.SSLError, TimeoutError or ConnectionError."""
        if self._transport is None:
            raise ConnectionResetError("the connection is not open")
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(
            self._transport,
            self,
            context,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=handshake_timeout,
        )
        if transport is None:
            raise ConnectionResetError("the connection was lost during the TLS handshake")
        self._transport = transport

    def extra(self, name: str) -> Any:
        """``transport.get_extra_info``: ``ssl_object``, ``peername``, ..."""
        return self._transport.get_extra_info(name) if self._transport is not None else None

    def close(self) -> None:
        """Close after what was sent has left."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        await asyncio.shield(self._closed)

    def _wake(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
