"""Bytes to segments, segments to calls, and back.

A direction of a socket is a plain sequence of segments.  A call whose data do not fit one segment is cut into several
of the same type: the first has the flag FIRST, the last LAST.  Conversations share a socket and may interleave.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

import msgspec


class ProtocolError(Exception):
    """Bytes that are not understood.  The message never repeats them."""


class Type(IntEnum):
    """Segment types; a reply is its request + 0x10."""

    INITIAL_DATA = 0x01
    STATUS = 0x05
    USERID_DATA = 0x08
    HEARTBEAT = 0x09
    CONAUTH_INFO = 0x0A
    SOCKET_ACTION = 0x0C
    ASYNC_MESSAGE = 0x0D
    REQUEST_MSGS = 0x0E
    NOTIFICATION = 0x0F
    MQCONN = 0x81
    MQDISC = 0x82
    MQOPEN = 0x83
    MQCLOSE = 0x84
    MQGET = 0x85
    MQPUT = 0x86
    MQPUT1 = 0x87
    MQSET = 0x88
    MQINQ = 0x89
    MQCMIT = 0x8A
    MQBACK = 0x8B
    SPI = 0x8C
    MQSTAT = 0x8D
    MQSUB = 0x8E
    MQSUBRQ = 0x8F
    MQCONN_REPLY = 0x91
    MQDISC_REPLY = 0x92
    MQOPEN_REPLY = 0x93
    MQCLOSE_REPLY = 0x94
    MQGET_REPLY = 0x95
    MQPUT_REPLY = 0x96
    MQPUT1_REPLY = 0x97
    MQSET_REPLY = 0x98
    MQINQ_REPLY = 0x99
    MQCMIT_REPLY = 0x9A
    MQBACK_REPLY = 0x9B
    SPI_REPLY = 0x9C
    MQSTAT_REPLY = 0x9D
    MQSUB_REPLY = 0x9E
    MQSUBRQ_REPLY = 0x9F


class Flag(IntFlag):
    """ControlFlags1 of a segment."""

    CONFIRM_REQUEST = 0x01
    ERROR = 0x02
    REQUEST_CLOSE = 0x04
    CLOSE_CHANNEL = 0x08
    FIRST = 0x10
    LAST = 0x20
    REQUEST_ACCEPTED = 0x40


REPLY: Final = 0x10
WHOLE: Final = Flag.FIRST | Flag.LAST
SINGLE, MULTIPLEXED, SOCKET = b"TSH ", b"TSHM", b"TSHC"
"""Eyecatchers: before multiplexing is agreed; of a conversation; of the whole socket."""
SEGMENT_LIMIT: Final = 32_748
"""Longest segment in bytes, header included, until something else is agreed (MaxTransmissionSize)."""
ROOM: Final = 4096
"""What a call may have besides the data of its message: structures, names, selection strings."""
_SIZES: Final = {SINGLE: 28, MULTIPLEXED: 36, SOCKET: 28}
_EBCDIC: Final = frozenset((b"\xe3\xe2\xc8\x40", b"\xe3\xe2\xc8\xd4", b"\xe3\xe2\xc8\xc3"))
_REST: Final = {True: struct.Struct("<BBBB8sIHH"), False: struct.Struct(">BBBB8sIHH")}
"""ByteOrder, SegmentType, ControlFlags1 and 2, LUWId, Encoding, CCSID, reserved."""
_MESSAGE_HEADER: Final = 24
"""Bytes that each segment of an ASYNC_MESSAGE repeats."""
_MESSAGE_LENGTH: Final = 16
_MESSAGE_INDEX: Final = 20


class Segment(msgspec.Struct):
    """One segment: its header, and the bytes after it."""

    type: Type
    body: bytes = b""
    flags: int = WHOLE
    conversation: int = 0
    """An odd number that the client chose; 0 on segments that are not of a conversation."""
    request: int = 0
    """1 and 3 for streamed messages, else 0."""
    eyecatcher: bytes = MULTIPLEXED
    little: bool = True
    """Integers have the least significant byte first (all but the lengths and ids of the header)."""
    encoding: int = 0x222
    ccsid: int = 819
    luw: bytes = bytes(8)

    def __repr__(self) -> str:
        return f"Segment({self.type.name}, conversation={self.conversation}, {len(self.body)} bytes)"

    def encode(self, *, pad: bool = True) -> bytes:
        """The segment's bytes, up to a multiple of four where ``pad``."""
        body = self.body + bytes(-len(self.body) % 4) if pad else self.body
        head = self.eyecatcher + (_SIZES[self.eyecatcher] + len(body)).to_bytes(4, "big")
        if self.eyecatcher == MULTIPLEXED:
            head += struct.pack(">II", self.conversation, self.request)
        order = 2 if self.little else 1
        rest = _REST[self.little].pack(order, self.type, self.flags, 0, self.luw, self.encoding, self.ccsid, 0)
        return head + rest + body


class Segments:
    """Cuts bytes into segments.  Iteration ends when no whole segment is left, and raises `ProtocolError`."""

    __slots__ = ("_buffer", "limit")

    def __init__(self, limit: int = SEGMENT_LIMIT) -> None:
        self.limit = limit
        """Longest segment in bytes; may be set anew once it is agreed."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes that have arrived."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """Bytes of a segment that is not whole yet."""
        return len(self._buffer)

    def __iter__(self) -> Segments:
        return self

    def __next__(self) -> Segment:
        buffer = self._buffer
        if len(buffer) >= 4 and bytes(buffer[:4]) not in _SIZES:
            if bytes(buffer[:4]) in _EBCDIC:
                raise ProtocolError("a segment header in EBCDIC is not supported")
            raise ProtocolError("not a segment of an MQ channel")
        if len(buffer) < 8:
            raise StopIteration
        eyecatcher = bytes(buffer[:4])
        size = _SIZES[eyecatcher]
        length = int.from_bytes(buffer[4:8], "big")
        if not size <= length <= self.limit:
            raise ProtocolError(f"a segment of {length} bytes is not within {size} and {self.limit}")
        if len(buffer) < length:
            raise StopIteration
        whole = bytes(buffer[:length])
        del buffer[:length]
        return _segment(eyecatcher, whole, size)


def _segment(eyecatcher: bytes, whole: bytes, size: int) -> Segment:
    conversation = request = 0
    offset = 8
    if eyecatcher == MULTIPLEXED:
        conversation, request = struct.unpack_from(">II", whole, 8)
        offset = 16
    order = whole[offset]
    if order not in (1, 2):
        raise ProtocolError(f"byte order {order} of a segment is unknown")
    little = order == 2
    _, number, flags, compressed, luw, encoding, ccsid, _ = _REST[little].unpack_from(whole, offset)
    try:
        kind = Type(number)
    except ValueError:
        raise ProtocolError(f"segment type {number:#04x} is not carried") from None
    if compressed:
        raise ProtocolError("a compressed segment is not supported")
    return Segment(kind, whole[size:], flags, conversation, request, eyecatcher, little, encoding, ccsid, luw)


class Calls:
    """Puts the segments of a call together, for each conversation of one direction of a socket."""

    __slots__ = ("_begun", "limit")

    def __init__(self, limit: int) -> None:
        """``limit``: longest message in bytes."""
        self.limit = limit
        self._begun: dict[int, tuple[Segment, list[bytes], int]] = {}

    def add(self, segment: Segment) -> Segment | None:
        """The call that ends with this segment, as one long segment; None if more are to come.

        Raises `ProtocolError` for a segment out of turn and for a call above the limit.
        """
        first, last = bool(segment.flags & Flag.FIRST), bool(segment.flags & Flag.LAST)
        begun = self._begun.get(segment.conversation)
        if not _spans(segment.type) or (begun is None and first and last):
            if begun is not None:
                raise ProtocolError(f"{segment.type.name} within {begun[0].type.name} of the same conversation")
            return segment
        if begun is None:
            if not first:
                raise ProtocolError(f"{segment.type.name} goes on without a beginning")
            begun = self._begun[segment.conversation] = (segment, [segment.body], len(segment.body))
        else:
            if first:
                raise ProtocolError(f"{segment.type.name} begins within {begun[0].type.name} of the same conversation")
            head, parts, size = begun
            if (segment.type, segment.request, segment.little) != (head.type, head.request, head.little):
                raise ProtocolError(f"{segment.type.name} within {head.type.name} of the same conversation")
            body = segment.body
            if head.type is Type.ASYNC_MESSAGE:
                body = _later(head, body, len(parts))
            parts.append(body)
            begun = self._begun[segment.conversation] = (head, parts, size + len(body))
        head, parts, size = begun
        if size > self.limit + ROOM:
            raise ProtocolError(f"a call is longer than the {self.limit} bytes of a message that were agreed")
        if not last:
            return None
        del self._begun[segment.conversation]
        return msgspec.structs.replace(head, body=b"".join(parts), flags=head.flags | segment.flags)

    def forget(self, conversation: int) -> None:
        """The conversation has ended."""
        self._begun.pop(conversation, None)

    @property
    def held(self) -> int:
        """Bytes of calls that are not whole yet."""
        return sum(size for _, _, size in self._begun.values())


def _spans(kind: Type) -> bool:
    return kind >= Type.MQCONN or kind is Type.ASYNC_MESSAGE


def _later(head: Segment, body: bytes, index: int) -> bytes:
    """The data of a later segment of a streamed message, whose own header says how many and which it is."""
    order = "<" if head.little else ">"
    if len(body) < _MESSAGE_HEADER:
        raise ProtocolError("a segment of a streamed message is too short")
    length, number = struct.unpack_from(f"{order}IH", body, _MESSAGE_LENGTH)
    if number != index or body[:_MESSAGE_LENGTH] != head.body[:_MESSAGE_LENGTH]:
        raise ProtocolError("a segment of a streamed message is out of turn")
    data = body[_MESSAGE_HEADER : _MESSAGE_HEADER + length]
    if len(data) != length or len(body) - _MESSAGE_HEADER - length > 3:
        raise ProtocolError("a segment of a streamed message lies about its length")
    return data


def cut(call: Segment, limit: int, *, data_at: int = 0) -> list[Segment]:
    """The segments of a call, none longer than ``limit`` bytes with its header.

    ``data_at``: where in its body the data of an ASYNC_MESSAGE begin, whose header each segment repeats.
    Raises ValueError if the first segment would have no room for the structures.
    """
    room = (limit - _SIZES[call.eyecatcher]) // 4 * 4
    body = call.body
    streamed = call.type is Type.ASYNC_MESSAGE
    if streamed:
        if room < data_at or room <= _MESSAGE_HEADER:
            raise ValueError(f"{limit} bytes of a segment are too few")
        order = "<" if call.little else ">"
        header, data = body[:data_at], body[data_at:]
        bodies = []
        first = data[: room - data_at]
        bodies.append(_numbered(header, order, len(first), 0) + first)
        rest = data[room - data_at :]
        step = room - _MESSAGE_HEADER
        for index, offset in enumerate(range(0, len(rest), step), 1):
            part = rest[offset : offset + step]
            bodies.append(_numbered(header[:_MESSAGE_HEADER], order, len(part), index) + part)
    else:
        bodies = [body[offset : offset + room] for offset in range(0, len(body), room)] or [b""]
    base = call.flags & ~WHOLE
    segments = [msgspec.structs.replace(call, body=each, flags=base) for each in bodies]
    segments[0].flags |= Flag.FIRST
    segments[-1].flags |= Flag.LAST
    return segments


def _numbered(header: bytes, order: str, length: int, index: int) -> bytes:
    """The header of a segment of a streamed message with its own SegmentLength and SegmentIndex."""
    own = bytearray(header)
    struct.pack_into(f"{order}IH", own, _MESSAGE_LENGTH, length, index)
    return bytes(own)
