"""Segments and structures of the client channel protocol, as the stand-in for a queue manager reads and writes them.

Written apart from `grille.protocols.mq`, so that the two check each other.  The layouts of MQMD, MQOD, MQPMO and
MQGMO are those of IBM's manual "Developing applications reference"; everything else is what IBM MQ classes for Java
9.4.2 send and accept.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

INITIAL_DATA, STATUS, USERID, HEARTBEAT, CONAUTH, SOCKET_ACTION = 0x01, 0x05, 0x08, 0x09, 0x0A, 0x0C
ASYNC_MESSAGE, REQUEST_MSGS, NOTIFICATION = 0x0D, 0x0E, 0x0F
CALLS: Final = {
    0x81: "conn", 0x82: "disc", 0x83: "open", 0x84: "close", 0x85: "get", 0x86: "put", 0x87: "put1", 0x88: "set",
    0x89: "inq", 0x8A: "cmit", 0x8B: "back", 0x8C: "spi", 0x8D: "stat", 0x8E: "sub", 0x8F: "subrq",
}  # fmt: skip
CONFIRM, ERROR, CLOSE_CHANNEL, FIRST, LAST, ACCEPTED = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
WHOLE: Final = FIRST | LAST
SINGLE, SHARED, SOCKET = b"TSH ", b"TSHM", b"TSHC"
TRANSMISSION: Final = 32748
"""Bytes of the longest segment, header included."""
API: Final = 16
"""Bytes of the header of a call: length, completion code, reason, handle."""


class WireError(Exception):
    """What arrived is not this protocol; the message names no value of it."""


class Segment(msgspec.Struct, frozen=True):
    """One segment, or a call that was put together from several."""

    kind: int
    body: bytes = b""
    flags: int = WHOLE
    conversation: int = 0
    request: int = 0
    eyecatcher: bytes = SHARED
    order: str = "<"
    """``<`` or ``>``, as `struct` spells byte orders."""
    encoding: int = 0x222
    ccsid: int = 819

    @property
    def header(self) -> int:
        """Bytes of the header."""
        return 36 if self.eyecatcher == SHARED else 28

    def u32(self, at: int) -> int:
        """An unsigned number of the body.  Raises `WireError` outside of it."""
        return int(self._unpack("I", at))

    def i32(self, at: int) -> int:
        """A number of the body.  Raises `WireError` outside of it."""
        return int(self._unpack("i", at))

    def u16(self, at: int) -> int:
        """A short number of the body.  Raises `WireError` outside of it."""
        return int(self._unpack("H", at))

    def raw(self, at: int, size: int) -> bytes:
        """Bytes of the body.  Raises `WireError` outside of it."""
        if not 0 <= at <= at + size <= len(self.body):
            raise WireError(f"segment type {self.kind:02X} is too short")
        return self.body[at : at + size]

    def text(self, at: int, size: int) -> str:
        """A padded name of the body.  Raises `WireError` outside of it."""
        return name_of(self.raw(at, size))

    def _unpack(self, code: str, at: int) -> int:
        (value,) = struct.unpack(self.order + code, self.raw(at, struct.calcsize(self.order + code)))
        return int(value)

    def encode(self) -> bytes:
        """The bytes, padded to four where conversations share the socket."""
        padding = b"" if self.eyecatcher == SINGLE and self.kind != INITIAL_DATA else b"\0" * (-len(self.body) % 4)
        shared = struct.pack(">II", self.conversation, self.request) if self.eyecatcher == SHARED else b""
        length = self.header + len(self.body) + len(padding)
        fixed = struct.pack(
            self.order + "BBBB8sIHH", 2 if self.order == "<" else 1, self.kind, self.flags, 0, b"", self.encoding,
            self.ccsid, 0,
        )  # fmt: skip
        return self.eyecatcher + struct.pack(">I", length) + shared + fixed + self.body + padding


async def read_segment(reader: asyncio.StreamReader) -> Segment | None:
    """The next segment; None at the end of the stream.  Raises `WireError`, also if the end comes within a segment."""
    try:
        start = await reader.readexactly(8)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise WireError("the stream ends within a segment") from None
        return None
    eyecatcher, length = start[:4], int.from_bytes(start[4:], "big")
    if eyecatcher not in (SINGLE, SHARED, SOCKET):
        raise WireError("no eyecatcher of a segment")
    header = 36 if eyecatcher == SHARED else 28
    if not header <= length <= TRANSMISSION + 64:
        raise WireError("a segment of that length is not possible")
    try:
        rest = await reader.readexactly(length - 8)
    except asyncio.IncompleteReadError:
        raise WireError("the stream ends within a segment") from None
    conversation, request = struct.unpack_from(">II", rest) if eyecatcher == SHARED else (0, 0)
    at = header - 28
    if rest[at] not in (1, 2):
        raise WireError("a byte order that does not exist")
    order = "<" if rest[at] == 2 else ">"
    kind, flags = rest[at + 1], rest[at + 2]
    if rest[at + 3]:
        raise WireError("control flags that are not understood")
    encoding, ccsid = struct.unpack_from(order + "IH", rest, at + 12)
    return Segment(kind, rest[header - 8 :], flags, conversation, request, eyecatcher, order, encoding, ccsid)


class Assembler:
    """Puts calls together that came in several segments, for one socket; ``limit``: bytes of a message at most."""

    def __init__(self, limit: int) -> None:
        self._limit = limit + 8192  # structures come before the message
        self._parts: dict[int, tuple[Segment, bytearray]] = {}

    def add(self, segment: Segment) -> Segment | None:
        """The call that is complete with this segment.  Raises `WireError`."""
        if segment.kind < 0x80 or segment.flags & WHOLE == WHOLE:
            if segment.conversation in self._parts and segment.kind >= 0x80:
                raise WireError("a call within a call")
            return segment
        if segment.flags & FIRST:
            if segment.conversation in self._parts:
                raise WireError("a call within a call")
            self._parts[segment.conversation] = segment, bytearray(segment.body)
            return None
        first, body = self._parts.get(segment.conversation, (segment, bytearray()))
        if segment.conversation not in self._parts or first.kind != segment.kind:
            raise WireError("the first segment of a call is missing")
        body += segment.body
        if len(body) > self._limit:
            raise WireError("a call is longer than was agreed")
        if not segment.flags & LAST:
            return None
        del self._parts[segment.conversation]
        return msgspec.structs.replace(first, body=bytes(body), flags=WHOLE)


def cut(call: Segment, data: bytes, head: Callable[[int, int], bytes] | None = None) -> Iterator[Segment]:
    """The call with ``data`` behind its body, in segments as long as they may be.

    ``head``: gives what every segment starts with, from its number and its bytes of data.
    """
    at, number = 0, 0
    while True:
        start = head(number, 0) if head is not None else b""
        room = TRANSMISSION - call.header - len(start) - (0 if number else len(call.body))
        piece = data[at : at + room]
        at += len(piece)
        flags = (0 if number else FIRST) | (LAST if at == len(data) else 0)
        start = head(number, len(piece)) if head is not None else b""
        yield msgspec.structs.replace(call, body=start + (b"" if number else call.body) + piece, flags=flags)
        if flags & LAST:
            return
        number += 1


def name_of(padded: bytes) -> str:
    """A name without its padding of blanks or zeros."""
    return padded.decode("latin-1").rstrip(" \0")


def padded(name: str, size: int) -> bytes:
    """A name with blanks behind."""
    return name.encode("latin-1")[:size].ljust(size)


_MD: Final = "4sIIIiiIi8sii24s24sI48s48s12s32s32si28s8s8s4s"
_MD2: Final = "24sIIIi"


class Descriptor(msgspec.Struct, array_like=True):
    """MQMD version 2, with the manual's names."""

    report: int
    msg_type: int
    expiry: int
    feedback: int
    encoding: int
    ccsid: int
    format: bytes
    priority: int
    persistence: int
    msg_id: bytes
    correl_id: bytes
    backout_count: int
    reply_to_q: bytes
    reply_to_q_mgr: bytes
    user: bytes
    accounting: bytes
    appl_identity: bytes
    put_appl_type: int
    put_appl_name: bytes
    put_date: bytes
    put_time: bytes
    appl_origin: bytes
    group_id: bytes = bytes(24)
    sequence: int = 1
    offset: int = 0
    msg_flags: int = 0
    original_length: int = -1

    @staticmethod
    def size(call: Segment, at: int) -> int:
        """Bytes of the MQMD at this place.  Raises `WireError` if there is none."""
        if call.raw(at, 4) != b"MD  " or call.u32(at + 4) not in (1, 2):
            raise WireError("no message descriptor")
        return 324 if call.u32(at + 4) == 1 else 364

    @classmethod
    def read(cls, call: Segment, at: int) -> Descriptor:
        """The MQMD at this place.  Raises `WireError` if there is none."""
        size = cls.size(call, at)
        raw = call.raw(at, size)
        fields = struct.unpack_from(call.order + _MD, raw)[2:]
        return cls(*fields, *(struct.unpack_from(call.order + _MD2, raw, 324) if size > 324 else ()))

    def encode(self, order: str, version: int) -> bytes:
        """The structure in one of its versions."""
        fields = msgspec.structs.astuple(self)
        first = struct.pack(order + _MD, b"MD  ", version, *fields[:22])
        return first + struct.pack(order + _MD2, *fields[22:]) if version > 1 else first


class Object(msgspec.Struct):
    """MQOD: what is opened."""

    size: int
    """Bytes of the structure without its strings."""
    total: int
    """Bytes with them."""
    kind: int
    name: str
    manager: str
    dynamic: str
    records: int
    selection: str

    @classmethod
    def read(cls, call: Segment, at: int) -> Object:
        """The MQOD at this place.  Raises `WireError` if there is none."""
        sizes = {1: 168, 2: 200, 3: 336, 4: 400}
        if call.raw(at, 4) != b"OD  " or call.u32(at + 4) not in sizes:
            raise WireError("no object descriptor")
        size = total = sizes[call.u32(at + 4)]
        selection = ""
        if size == 400:
            for string in (336, 356, 376):
                offset, length = call.i32(at + string + 4), call.i32(at + string + 12)
                if length > 0 and offset >= size:
                    total = max(total, offset + length + -length % 4)
                    if string == 356:
                        selection = call.raw(at + offset, length).decode(errors="replace")
        return cls(
            size, total, call.u32(at + 8), call.text(at + 12, 48), call.text(at + 60, 48), call.text(at + 108, 48),
            call.u32(at + 168) if size > 168 else 0, selection,
        )  # fmt: skip
