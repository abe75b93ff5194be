"""Records of a segment file: how they are framed, and how they are found again in a damaged one.

A record is ``0xFF, type, length, CRC-32 of the payload, CRC-32 of what precedes`` and the payload.  The header has a
CRC of its own, so that a torn record, which a crash may leave at the end, is told from a damaged one.  0xFF never
occurs in UTF-8, so no text in an event looks like a record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

EVENT: Final = 0x45
BLOCK: Final = 0x42
DAMAGED: Final = 0
"""Bytes that are no record; the scan goes on at the next record."""
TORN: Final = -1
"""A record that the end of the file cuts."""

MAX_PAYLOAD: Final = 64 * 1024 * 1024

_MAGIC: Final = 0xFF
_FIELDS: Final = struct.Struct(">BBII")
_CHECK: Final = struct.Struct(">I")
_HEADER: Final = struct.Struct(">BBIII")


class Record(NamedTuple):
    """One record as found."""

    kind: int
    offset: int
    payload: bytes
    intact: bool
    """The payload agrees with its CRC."""


def header(kind: int, payload: bytes) -> bytes:
    """What precedes the payload in the bytes of a record."""
    fields = _FIELDS.pack(_MAGIC, kind, len(payload), crc32(payload))
    return fields + _CHECK.pack(crc32(fields))


def frame(kind: int, payload: bytes) -> bytes:
    """The bytes of one record."""
    return header(kind, payload) + payload


def scan(data: bytes) -> Iterator[Record]:
    """Every record of a segment, in order, and what lies between them."""
    offset = 0
    end = len(data)
    while offset < end:
        if end - offset < _HEADER.size:
            yield Record(TORN, offset, data[offset:], intact=False)
            return
        length = _payload_length(data, offset)
        start = offset + _HEADER.size
        if length >= 0 and start + length <= end:
            payload = data[start : start + length]
            crc = int.from_bytes(data[offset + 6 : offset + 10], "big")
            yield Record(data[offset + 1], offset, payload, crc32(payload) == crc)
            offset = start + length
            continue
        following = _next_record(data, offset + 1)
        kind = TORN if length >= 0 and following == end else DAMAGED
        yield Record(kind, offset, data[offset:following], intact=False)
        offset = following


def _payload_length(data: bytes, offset: int) -> int:
    """Length of the payload that a valid record header announces, else -1."""
    magic, kind, length, _, check = _HEADER.unpack_from(data, offset)
    if magic != _MAGIC or kind not in (EVENT, BLOCK) or length > MAX_PAYLOAD:
        return -1
    if crc32(data[offset : offset + _FIELDS.size]) != check:
        return -1
    return int(length)


def _next_record(data: bytes, offset: int) -> int:
    """Offset of the next valid record header, or the end."""
    while (offset := data.find(b"\xff", offset)) >= 0 and len(data) - offset >= _HEADER.size:
        if _payload_length(data, offset) >= 0:
            return offset
        offset += 1
    return len(data)
