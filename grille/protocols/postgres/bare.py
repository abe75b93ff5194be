"""Parse trees without their source positions, as bytes: equal for equal trees.

The positions are cut out of the serialized message (Protocol Buffers encoding, "Message Structure"): reading every
field of a tree as a Python object costs several times as much.
"""

from __future__ import annotations

from typing import Any, Final

from postgast import pg_query_pb2 as pb

POSITIONS: Final = frozenset(
    {"location", "stmt_location", "stmt_len", "list_start", "list_end", "rexpr_list_start", "rexpr_list_end"}
)
"""Names of the fields that tell where something stands in the text; each is an integer."""

Table = dict[int, Any]
"""By the tag of a field: the table of its message, or None for a position; every other field is absent."""


def _tables() -> dict[str, Table]:
    """By the name of a message: that of `pb.ParseResult` and of all that it is made of."""
    tables: dict[str, Table] = {}
    ahead = [pb.ParseResult.DESCRIPTOR]
    while ahead:
        message = ahead.pop()
        if tables.get(message.name):
            continue
        table = tables.setdefault(message.name, {})
        for field in message.fields:
            if field.name in POSITIONS:
                table[field.number << 3] = None
            elif field.message_type is not None:
                table[field.number << 3 | 2] = tables.setdefault(field.message_type.name, {})
                ahead.append(field.message_type)
    return tables


_TABLES: Final = _tables()


def bare(message: Any) -> bytes:
    """A message of a parse tree, serialized without the positions in it and below it."""
    data: bytes = message.SerializeToString()
    found = _cut(data, 0, len(data), _TABLES[message.DESCRIPTOR.name])
    return data if found is None else found


def _cut(data: bytes, at: int, end: int, table: Table) -> bytes | None:
    """The message in ``data[at:end]`` without positions; None if it has none."""
    begin = at
    pieces: list[bytes] | None = None
    while at < end:
        start = at
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag &= 0x7F
            shift = 7
            while True:
                byte = data[at]
                at += 1
                tag |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
        wire = tag & 7
        if wire == 0:
            while data[at] >= 0x80:
                at += 1
            at += 1
            if tag in table:
                if pieces is None:
                    pieces = []
                pieces.append(data[begin:start])
                begin = at
            continue
        if wire == 1 or wire == 5:
            at += 8 if wire == 1 else 4
            continue
        value = at
        size = data[at]
        at += 1
        if size >= 0x80:
            size &= 0x7F
            shift = 7
            while True:
                byte = data[at]
                at += 1
                size |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
        if size and tag in table:
            inner = _cut(data, at, at + size, table[tag])
            if inner is not None:
                if pieces is None:
                    pieces = []
                pieces.append(data[begin:value])
                pieces.append(_varint(len(inner)))
                pieces.append(inner)
                begin = at + size
        at += size
    if pieces is None:
        return None
    pieces.append(data[begin:end])
    return b"".join(pieces)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
