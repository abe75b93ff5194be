"""Bytes to messages: where one message ends and the next begins, and how long each may be.

A length is judged as soon as its four bytes have arrived, before any memory is taken for the message.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from typing import Final

from grille.controls import Refusal

_HEADER = struct.Struct("!Bi")
_LENGTH = struct.Struct("!i")

STARTUP_LIMIT: Final = 10_000
"""Longest startup message in bytes, length word included (MAX_STARTUP_PACKET_LENGTH of the server)."""
DISCARD_LIMIT: Final = 0x3FFF_FFFF
"""A longer message than this is never waited for (MaxAllocSize of the server)."""
SMALL_LIMIT: Final = 10_000
"""Longest message of the kinds that hold no more than a name (PQ_SMALL_MESSAGE_LIMIT of the server)."""
PARAMETER_TYPES_LIMIT: Final = 4 * 65_535
"""Bytes that the type list of the longest legal Parse takes."""

OVERSIZED: Final = 0
"""The kind under which `Frames` reports a message that it discarded because it was too long."""

_DISCARDABLE: Final = frozenset(b"QPB")


class ProtocolViolation(Refusal):
    """A message that does not follow the protocol.

    ``fatal`` is false where the message is understood well enough that the connection can go on.
    """

    def __init__(self, message: str, *, sqlstate: str = "08P01", fatal: bool = True, control: str = "WP-01") -> None:
        super().__init__(control, message, sqlstate=sqlstate, fatal=fatal)


class StartupFrames:
    """Cuts the first messages of a connection, which carry a length but no kind.

    Iteration yields payloads (request code first, without the length) and ends when no whole message is left.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes that have arrived."""
        self._buffer += data

    def __iter__(self) -> StartupFrames:
        return self

    def __next__(self) -> bytes:
        """The next payload.  Raises ProtocolViolation for an impossible length."""
        buffer = self._buffer
        if len(buffer) < 4:
            raise StopIteration
        (length,) = _LENGTH.unpack_from(buffer)
        if not 8 <= length <= STARTUP_LIMIT:
            raise ProtocolViolation("invalid length of startup message")
        if len(buffer) < length:
            raise StopIteration
        payload = bytes(buffer[4:length])
        del buffer[:length]
        return payload

    @property
    def pending(self) -> int:
        """Bytes that have arrived and belong to no whole message yet.

        After SSLRequest this must be 0: nothing may be carried in clear before the handshake.
        """
        return len(self._buffer)

    def take_rest(self) -> bytes:
        """The bytes after the last message, to be fed to `Frames`; this object is empty afterwards."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


class Frames:
    """Cuts a stream into ``(kind, payload)``: the type byte, and what follows the length.

    ``limits`` names every kind that may occur and the longest payload in bytes that it may have; any other kind is a
    violation.  A Query, Parse or Bind over its limit, up to `DISCARD_LIMIT`, is discarded as it arrives and yielded as
    ``(OVERSIZED, type byte)``, so that the client can be told and the connection stays usable; any other message over
    its limit is a violation.
    """

    __slots__ = (
        "_buffer",
        "_discard",
        "_discarded_kind",
        "_limits",
        "_peer",
        "_position",
    )

    def __init__(self, limits: Mapping[int, int], *, peer: str = "frontend") -> None:
        self._limits = limits
        self._peer = peer
        self._buffer = bytearray()
        self._position = 0
        self._discard = 0
        self._discarded_kind = 0

    def feed(self, data: bytes) -> None:
        """Add bytes that have arrived."""
        if self._discard > 1 and self._position == len(self._buffer):
            cut = min(len(data), self._discard - 1)
            self._discard -= cut
            data = data[cut:]
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += data

    def __iter__(self) -> Frames:
        return self

    def __next__(self) -> tuple[int, bytes]:
        """The next message.  Raises ProtocolViolation; the stream is of no use afterwards."""
        buffer = self._buffer
        start = self._position
        available = len(buffer) - start
        if self._discard:
            return self._next_discarded(available)
        if available < 5:
            if available and buffer[start] not in self._limits:
                raise ProtocolViolation(f"invalid {self._peer} message type {buffer[start]}")
            raise StopIteration
        kind, length = _HEADER.unpack_from(buffer, start)
        limit = self._limits.get(kind)
        if limit is None:
            raise ProtocolViolation(f"invalid {self._peer} message type {kind}")
        if length < 4:
            raise ProtocolViolation("invalid message length")
        if length - 4 > limit:
            if kind not in _DISCARDABLE or length > DISCARD_LIMIT or self._peer != "frontend":
                raise ProtocolViolation("message is too long", control="WP-03")
            self._discarded_kind = kind
            self._discard = length + 1
            return self._next_discarded(available)
        if available <= length:
            raise StopIteration
        end = start + length + 1
        self._position = end
        return kind, bytes(buffer[start + 5 : end])

    def run_of(self, kind: int) -> tuple[bytes, int]:
        """All whole messages of this kind that come next, as they are on the wire, and how many they are.

        For bulk data: one copy for all of them.  Raises ProtocolViolation as `__next__` does.
        """
        buffer = self._buffer
        start = self._position
        end = start
        size = len(buffer)
        limit = self._limits[kind] + 4
        count = 0
        unpack = _LENGTH.unpack_from
        while not self._discard and size - end >= 5 and buffer[end] == kind:
            length: int = unpack(buffer, end + 1)[0]
            if not 4 <= length <= limit:
                break  # told by `__next__`
            if size - end <= length:
                break
            end += length + 1
            count += 1
        self._position = end
        return bytes(buffer[start:end]), count

    def _next_discarded(self, available: int) -> tuple[int, bytes]:
        cut = min(available, self._discard)
        self._position += cut
        self._discard -= cut
        if self._discard:
            raise StopIteration
        return OVERSIZED, bytes((self._discarded_kind,))

    @property
    def pending(self) -> bool:
        """True while part of a message has arrived and its rest has not."""
        return self._discard > 0 or len(self._buffer) > self._position


@functools.cache
def frontend_limits(max_message_bytes: int, max_statement_bytes: int) -> Mapping[int, int]:
    """The limits of what a client may send, its SQL text and everything else, in bytes; one object for all clients."""
    name = min(SMALL_LIMIT, max_message_bytes)
    return {
        ord("Q"): max_statement_bytes + 1,
        ord("P"): max_statement_bytes + SMALL_LIMIT + PARAMETER_TYPES_LIMIT,
        ord("B"): max_message_bytes,
        ord("D"): name,
        ord("E"): name,
        ord("C"): name,
        ord("S"): 0,
        ord("H"): 0,
        ord("X"): 0,
        ord("F"): max_message_bytes,
        ord("d"): max_message_bytes,
        ord("c"): 0,
        ord("f"): name,
        ord("p"): 65_535,
    }


def backend_limits(max_message_bytes: int) -> dict[int, int]:
    """The limits of what upstream may send, in bytes; a reply outside of it kills the connection."""
    small = min(SMALL_LIMIT, max_message_bytes)
    return {
        ord("R"): 65_535,
        ord("S"): 65_535,
        ord("K"): 260,
        ord("Z"): 1,
        ord("v"): 65_535,
        ord("1"): 0,
        ord("2"): 0,
        ord("3"): 0,
        ord("n"): 0,
        ord("s"): 0,
        ord("I"): 0,
        ord("t"): 2 + PARAMETER_TYPES_LIMIT,
        ord("T"): max_message_bytes,
        ord("D"): max_message_bytes,
        ord("C"): small,
        ord("E"): max_message_bytes,
        ord("N"): max_message_bytes,
        ord("A"): max_message_bytes,
        ord("G"): 65_535,
        ord("H"): 65_535,
        ord("W"): 65_535,
        ord("V"): max_message_bytes,
        ord("d"): max_message_bytes,
        ord("c"): 0,
    }
