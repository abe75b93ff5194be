"""The structures of the Message Queue Interface as they stand in a call: sizes, and the fields that Grille looks at.

Names and versions are those of IBM MQ's reference (MQOD, MQMD, MQPMO, MQGMO, MQCNO).  Pointers take four bytes on the
wire, whatever the platform.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from grille.protocols.mq.segments import ProtocolError

OD_SIZES: Final = {1: 168, 2: 200, 3: 336, 4: 400}
MD_SIZES: Final = {1: 324, 2: 364}
PMO_SIZES: Final = {1: 128, 2: 152, 3: 176}
GMO_SIZES: Final = {1: 72, 2: 80, 3: 100, 4: 112}
_CHARV: Final = 20
_PUT_RECORDS: Final = ((1, 24), (2, 24), (4, 24), (8, 4), (16, 32))
"""Bits of PutMsgRecFields and the bytes that each adds to a record."""


class Fields:
    """Reads fields at offsets of a call's body.  Raises `ProtocolError` past its end."""

    __slots__ = ("_order", "body", "little")

    def __init__(self, body: bytes, *, little: bool) -> None:
        self.body = body
        self.little = little
        self._order = "<" if little else ">"

    def raw(self, offset: int, size: int) -> bytes:
        """Bytes."""
        if offset < 0 or size < 0 or offset + size > len(self.body):
            raise ProtocolError("a call is shorter than its structures")
        return self.body[offset : offset + size]

    def u32(self, offset: int) -> int:
        """MQULONG."""
        return int(struct.unpack(f"{self._order}I", self.raw(offset, 4))[0])

    def i32(self, offset: int) -> int:
        """MQLONG."""
        return int(struct.unpack(f"{self._order}i", self.raw(offset, 4))[0])

    def u16(self, offset: int) -> int:
        """MQUINT16."""
        return int(struct.unpack(f"{self._order}H", self.raw(offset, 2))[0])

    def name(self, offset: int, size: int) -> str:
        """A name of an object, padded with blanks or ended by a zero byte.

        Raises `ProtocolError` for characters that no name of an MQ object has.
        """
        text = self.raw(offset, size).partition(b"\0")[0].rstrip(b" ")
        if not all(0x20 <= byte < 0x7F for byte in text):
            raise ProtocolError("a name has characters that no MQ object has")
        return text.decode("ascii")

    def version(self, offset: int, mark: bytes, sizes: dict[int, int]) -> tuple[int, int]:
        """Version and size of the structure that begins here.  Raises `ProtocolError` for another or a newer one."""
        if self.raw(offset, 4) != mark:
            raise ProtocolError(f"{mark.decode().strip()} is missing where it has to be")
        version = self.u32(offset + 4)
        size = sizes.get(version)
        if size is None:
            raise ProtocolError(f"version {version} of {mark.decode().strip()} is unknown")
        self.raw(offset, size)
        return version, size


class ObjectDescriptor(msgspec.Struct, frozen=True):
    """MQOD: what is opened."""

    kind: int
    """MQOT: 1 queue, 5 queue manager, 8 topic."""
    name: str
    manager: str
    dynamic: str
    """The name, or its beginning and ``*``, that a dynamic queue is to get."""
    alternate_user: str
    records: int
    """Of a distribution list; 0: none."""
    object_string: bytes
    selection: bytes
    """The selection string, in its own character set."""
    selection_ccsid: int
    version: int
    resolved_name: str
    """Of a reply, from version 3 on: the queue that the name leads to, and its queue manager."""
    resolved_manager: str
    size: int
    """Bytes, with the strings behind it."""


class MessageDescriptor(msgspec.Struct, frozen=True):
    """MQMD: what is said of a message."""

    version: int
    kind: int
    """MQMT."""
    expiry: int
    encoding: int
    ccsid: int
    format: str
    persistence: int
    message_id: bytes
    correlation_id: bytes
    backout_count: int
    reply_queue: str
    reply_manager: str
    segmented: bool
    """It is a part of a message or of a group that the application cut itself."""
    size: int


class PutOptions(msgspec.Struct, frozen=True):
    """MQPMO."""

    options: int
    records: int
    size: int
    """Bytes, with the records behind it."""


def object_descriptor(fields: Fields, at: int) -> ObjectDescriptor:
    """The MQOD at this offset.  Raises `ProtocolError`."""
    version, size = fields.version(at, b"OD  ", OD_SIZES)
    records = fields.u32(at + 168) if version >= 2 else 0
    end = size
    text, selection, ccsid = b"", b"", 0
    if version >= 4:
        text, end = _string(fields, at, 336, size, end)
        selection, end = _string(fields, at, 356, size, end)
        ccsid = fields.i32(at + 356 + 16)
    return ObjectDescriptor(
        kind=fields.u32(at + 8),
        name=fields.name(at + 12, 48),
        manager=fields.name(at + 60, 48),
        dynamic=fields.name(at + 108, 48),
        alternate_user=fields.name(at + 156, 12),
        records=records,
        object_string=text,
        selection=selection,
        selection_ccsid=ccsid,
        version=version,
        resolved_name=fields.name(at + 240, 48) if version >= 3 else "",
        resolved_manager=fields.name(at + 288, 48) if version >= 3 else "",
        size=end,
    )


def _string(fields: Fields, at: int, charv: int, size: int, end: int) -> tuple[bytes, int]:
    """The string of a CHARV, and where the strings so far end, both from the start of the structure."""
    length = fields.i32(at + charv + 12)
    if length == 0:
        return b"", end
    offset = fields.i32(at + charv + 4)
    if length < 0 or offset < size or offset % 4:
        raise ProtocolError("a string of variable length is not where it has to be")
    text = fields.raw(at + offset, length)
    return text, max(end, offset + (length + 3) // 4 * 4)


class GetOptions(msgspec.Struct, frozen=True):
    """MQGMO."""

    options: int
    wait: int
    """Milliseconds."""
    size: int


def get_options(fields: Fields, at: int) -> GetOptions:
    """The MQGMO at this offset.  Raises `ProtocolError`."""
    _, size = fields.version(at, b"GMO ", GMO_SIZES)
    return GetOptions(options=fields.u32(at + 8), wait=fields.i32(at + 12), size=size)


def message_descriptor(fields: Fields, at: int) -> MessageDescriptor:
    """The MQMD at this offset.  Raises `ProtocolError`."""
    version, size = fields.version(at, b"MD  ", MD_SIZES)
    segmented = version >= 2 and bool(
        fields.u32(at + 352) or fields.u32(at + 356) & 0x1E or fields.i32(at + 360) not in (-1, 0)
    )
    return MessageDescriptor(
        version=version,
        kind=fields.u32(at + 12),
        expiry=fields.i32(at + 16),
        encoding=fields.u32(at + 24),
        ccsid=fields.i32(at + 28),
        format=fields.name(at + 32, 8),
        persistence=fields.i32(at + 44),
        message_id=fields.raw(at + 48, 24),
        correlation_id=fields.raw(at + 72, 24),
        backout_count=fields.u32(at + 96),
        reply_queue=fields.name(at + 100, 48),
        reply_manager=fields.name(at + 148, 48),
        segmented=segmented,
        size=size,
    )


def put_options(fields: Fields, at: int) -> PutOptions:
    """The MQPMO at this offset.  Raises `ProtocolError`."""
    version, size = fields.version(at, b"PMO ", PMO_SIZES)
    records = fields.u32(at + 128) if version >= 2 else 0
    end = size
    if records:
        if records > 1000:
            raise ProtocolError("a distribution list has more than 1000 records")
        if fields.i32(at + 136):
            wanted = fields.u32(at + 132)
            end += records * sum(width for bit, width in _PUT_RECORDS if wanted & bit)
        if fields.i32(at + 140):
            end += records * 8
        fields.raw(at, end)
    return PutOptions(options=fields.u32(at + 8), records=records, size=end)
