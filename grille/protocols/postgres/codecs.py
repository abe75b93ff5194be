"""Single values between their text and binary formats, for a closed list of types.

Only what a slot needs (a value to tokenize, to detokenize or to compare) passes through here; all other values are
carried as they are.  In text format every type is readable; in binary format the types below, and no other.

Source: the send and receive functions of PostgreSQL (``textsend``, ``int4send``, ``boolsend``, ...).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final

from grille.controls import Refusal
from grille.protocols.postgres.messages import BINARY, TEXT

BOOL: Final = 16
NAME: Final = 19
INT8: Final = 20
INT2: Final = 21
INT4: Final = 23
TEXT_OID: Final = 25
UNKNOWN: Final = 705
BPCHAR: Final = 1042
VARCHAR: Final = 1043
NUMERIC: Final = 1700

TEXT_LIKE: Final = frozenset({TEXT_OID, VARCHAR, BPCHAR, NAME, UNKNOWN})
"""Types whose binary format is their text in the client's encoding."""

_INTEGERS: Final = {INT2: struct.Struct("!h"), INT4: struct.Struct("!i"), INT8: struct.Struct("!q")}
_INTEGER_TEXT: Final = re.compile(r"\s*[+-]?[0-9]{1,20}\s*", re.ASCII)
_TRUE: Final = frozenset({"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"})
_FALSE: Final = frozenset({"f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"})


def format_at(formats: Sequence[int], index: int) -> int:
    """The format code of one parameter or result column: none means all text, one holds for all."""
    if not formats:
        return TEXT
    return formats[0] if len(formats) == 1 else formats[index]


def to_text(value: bytes, type_oid: int, code: int) -> str:
    """The text of a value that came in format ``code``.

    Raises Refusal: 22021 for bytes that are not UTF-8 or hold a NUL, 22P03 for a malformed binary value, 0A000 for a
    type that cannot be read in binary.
    """
    if code == TEXT or (code == BINARY and type_oid in TEXT_LIKE):
        return _decode(value)
    if code == BINARY and type_oid in _INTEGERS:
        integer = _INTEGERS[type_oid]
        if len(value) != integer.size:
            raise _malformed()
        return str(integer.unpack(value)[0])
    if code == BINARY and type_oid == BOOL:
        # boolrecv takes any byte but 0 as true.
        if len(value) != 1:
            raise _malformed()
        return "t" if value != b"\0" else "f"
    raise _not_carried()


def from_text(text: str, type_oid: int, code: int) -> bytes:
    """A value in format ``code``, of its text.

    Raises Refusal: 22021 for a NUL or a lone surrogate, 22P02 for text that is not of the type, 22003 for an integer
    that does not fit, 0A000 for a type that cannot be written in binary.
    """
    if code == TEXT or (code == BINARY and type_oid in TEXT_LIKE):
        return _encode(text)
    if code == BINARY and type_oid in _INTEGERS:
        if not _INTEGER_TEXT.fullmatch(text):
            raise Refusal("TK-02", "a value is not an integer", sqlstate="22P02")
        try:
            return _INTEGERS[type_oid].pack(int(text))
        except struct.error:
            raise Refusal("TK-02", "an integer is out of range", sqlstate="22003") from None
    if code == BINARY and type_oid == BOOL:
        word = text.strip().lower()
        if word in _TRUE:
            return b"\1"
        if word in _FALSE:
            return b"\0"
        raise Refusal("TK-02", "a value is not a boolean", sqlstate="22P02")
    raise _not_carried()


def _decode(value: bytes) -> str:
    if 0 in value:
        raise Refusal("WP-01", 'invalid byte sequence for encoding "UTF8": 0x00', sqlstate="22021")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Refusal("WP-01", 'invalid byte sequence for encoding "UTF8"', sqlstate="22021") from None


def _encode(text: str) -> bytes:
    if "\0" in text:
        raise Refusal("WP-01", 'invalid byte sequence for encoding "UTF8": 0x00', sqlstate="22021")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Refusal("WP-01", 'invalid byte sequence for encoding "UTF8"', sqlstate="22021") from None


def _malformed() -> Refusal:
    return Refusal("WP-01", "incorrect binary data format", sqlstate="22P03")


def _not_carried() -> Refusal:
    return Refusal(
        "AC-05",
        "a value of this type cannot be protected in binary format",
        sqlstate="0A000",
        hint="Ask for text format for this parameter or column.",
    )
