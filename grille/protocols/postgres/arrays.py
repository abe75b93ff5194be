"""Arrays of text with one dimension, as clients bind them, in both formats.

Sources: PostgreSQL documentation, chapter 8.15.6 "Array Input and Output Syntax"; `array_recv` in
src/backend/utils/adt/arrayfuncs.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final

from grille.protocols.postgres.codecs import TEXT_OID

_SPACE: Final = b" \t\n\r\v\f"
_QUOTED: Final = re.compile(rb'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_BARE: Final = re.compile(rb'(?:[^"\\{},]|\\.)++', re.DOTALL)
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_HEAD: Final = struct.Struct("!iiI")
_SIZE: Final = struct.Struct("!i")
_DIMENSION: Final = struct.Struct("!ii")


class ArrayError(ValueError):
    """Bytes that are not such an array.  The text never repeats them."""


def read(data: bytes, *, binary: bool) -> list[bytes | None]:
    """The elements; None is NULL.  Raises `ArrayError`, also for more than one dimension and for bounds."""
    return _read_binary(data) if binary else _read_text(data)


def write(elements: Sequence[bytes | None], *, binary: bool, like: bytes = b"") -> bytes:
    """An array of these elements; ``like``: in binary the array that was read, whose type and lower bound it has."""
    if not binary:
        parts = [b"NULL" if each is None else b'"' + re.sub(rb'(["\\])', rb"\\\1", each) + b'"' for each in elements]
        return b"{" + b",".join(parts) + b"}"
    _, _, oid = _HEAD.unpack_from(like) if like else (0, 0, TEXT_OID)
    if not elements:
        return _HEAD.pack(0, 0, oid)
    _, lower = _DIMENSION.unpack_from(like, _HEAD.size) if like else (0, 1)
    out = [_HEAD.pack(1, int(None in elements), oid), _DIMENSION.pack(len(elements), lower)]
    for each in elements:
        out.append(_SIZE.pack(-1) if each is None else _SIZE.pack(len(each)) + each)
    return b"".join(out)


def _read_binary(data: bytes) -> list[bytes | None]:
    if len(data) < _HEAD.size:
        raise ArrayError("it ends too early")
    dimensions, flags, _ = _HEAD.unpack_from(data)
    if dimensions == 0 and flags in (0, 1) and len(data) == _HEAD.size:
        return []
    at = _HEAD.size + _DIMENSION.size
    if dimensions != 1 or flags not in (0, 1) or len(data) < at:
        raise ArrayError("it has not one dimension")
    count, _ = _DIMENSION.unpack_from(data, _HEAD.size)
    if not 0 < count <= (len(data) - at) // _SIZE.size:
        raise ArrayError("it ends too early")
    elements: list[bytes | None] = []
    for _ in range(count):
        if len(data) - at < _SIZE.size:
            raise ArrayError("it ends too early")
        (size,) = _SIZE.unpack_from(data, at)
        at += _SIZE.size
        if size < -1 or size > len(data) - at:
            raise ArrayError("an element has no such length")
        elements.append(None if size < 0 else data[at : at + size])
        at += max(size, 0)
    if at != len(data):
        raise ArrayError("something follows it")
    return elements


def _read_text(data: bytes) -> list[bytes | None]:
    text = data.strip(_SPACE)
    if text[:1] != b"{" or text[-1:] != b"}" or len(text) < 2:
        raise ArrayError("it has not one dimension")
    end = len(text) - 1
    at = _skip(text, 1)
    if at == end:
        return []
    elements: list[bytes | None] = []
    while True:
        at = _skip(text, at)
        matched = _QUOTED.match(text, at, end)
        if matched is not None:
            elements.append(_ESCAPED.sub(rb"\1", matched[1]))
        else:
            matched = _BARE.match(text, at, end)
            if matched is None:
                raise ArrayError("an element is missing, or it has more than one dimension")
            bare = _trimmed(matched[0])
            if not bare:
                raise ArrayError("an element is missing")
            elements.append(None if bare.upper() == b"NULL" else _ESCAPED.sub(rb"\1", bare))
        at = _skip(text, matched.end())
        if at == end:
            return elements
        if text[at : at + 1] != b",":
            raise ArrayError("something follows an element")
        at += 1


def _trimmed(bare: bytes) -> bytes:
    """Without the space behind it, unless that is escaped."""
    end = len(bare)
    while end and bare[end - 1] in _SPACE and not (end > 1 and _ends_in_escape(bare[: end - 1])):
        end -= 1
    return bare[:end]


def _ends_in_escape(bare: bytes) -> bool:
    return (len(bare) - len(bare.rstrip(b"\\"))) % 2 == 1


def _skip(text: bytes, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
