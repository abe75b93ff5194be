"""What is in a message: the common words of the layouts, and the character sets that they are written in."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec


class LayoutError(ValueError):
    """A layout that cannot be used; the text says what to change."""


class Mismatch(Exception):
    """A payload is not as its layout says.  The text names a field or an offset, and never repeats data."""


class Field(msgspec.Struct, frozen=True):
    """A sensitive field: its name, as the policy calls it, and where it is, in the words of the layout."""

    name: str
    at: str


class Span(msgspec.Struct, frozen=True):
    """A value found in a payload."""

    field: str
    start: int
    """First byte of the place that a new value is put in."""
    end: int
    value: str
    form: str = ""
    """How it is written there: of a JSON value ``number`` or ``string``; of an item its picture."""

    def __repr__(self) -> str:
        return f"Span({self.field!r}, {self.start}, {self.end}, <{len(self.value)} characters>)"


class Layout(Protocol):
    """How messages of one kind are made up."""

    def find(self, data: bytes, ccsid: int) -> list[Span]:
        """Every sensitive value, in the order in which they stand; an empty one is no value.

        Raises `Mismatch` if the payload is not so.
        """

    def replaced(self, data: bytes, changes: Sequence[tuple[Span, str | None]], ccsid: int) -> bytes:
        """The payload with other values in the places of these, which are in order; all other bytes stay.

        None is what the layout has for no value: blanks, zeros, null.  Raises `Mismatch` for a value that does not fit
        its place.
        """


def spliced(data: bytes, changes: Sequence[tuple[Span, bytes]]) -> bytes:
    """The data with these bytes in the places of the spans."""
    parts, at = [], 0
    for span, new in changes:
        parts += [data[at : span.start], new]
        at = span.end
    return b"".join((*parts, data[at:]))


_NAMES: Final = {
    37: "cp037", 273: "cp273", 367: "ascii", 437: "cp437", 500: "cp500", 819: "latin-1", 850: "cp850", 858: "cp858",
    912: "iso8859-2", 923: "iso8859-15", 1026: "cp1026", 1140: "cp1140", 1208: "utf-8", 1252: "cp1252",
}  # fmt: skip
_OPEN_SYSTEMS: Final = {0xAD: 0xBA, 0xBA: 0xAD, 0xBD: 0xBB, 0xBB: 0xBD, 0x5F: 0xB0, 0xB0: 0x5F}
"""Of 1047, by byte: the byte of 037 that has the same character, where it is another (IBM, "Code page 01047")."""
_FROM_1047: Final = bytes(_OPEN_SYSTEMS.get(byte, byte) for byte in range(256))
_EBCDIC: Final = frozenset({37, 273, 500, 1026, 1047, 1140})


def is_ebcdic(ccsid: int) -> bool:
    """Whether digits are 0xF0 to 0xF9.  Raises `Mismatch` for a character set that is not known."""
    _check(ccsid)
    return ccsid in _EBCDIC


def decoded(data: bytes, ccsid: int) -> str:
    """Text.  Raises `Mismatch` for a character set that is not known, and for bytes that are no text in it."""
    _check(ccsid)
    if ccsid == 1047:
        data, ccsid = data.translate(_FROM_1047), 37
    try:
        return codecs.decode(data, _NAMES[ccsid])
    except UnicodeDecodeError as error:
        raise Mismatch(f"byte {error.start} is no character of CCSID {ccsid}") from None


def decoded_as(data: bytes, name: str) -> str | None:
    """Text in the encoding of this name, as XML declares it; None if the bytes are none, or it is not known here."""
    if name.lower().replace("-", "").replace("_", "") in ("ibm1047", "cp1047"):
        return decoded(data, 1047)
    try:
        codec = codecs.lookup(name).name
        if codec not in {codecs.lookup(each).name for each in _NAMES.values()}:
            return None
        return codecs.decode(data, codec)
    except (LookupError, UnicodeError, ValueError):
        return None


def encoded(text: str, ccsid: int) -> bytes:
    """Bytes.  Raises `Mismatch` for a character set that is not known, and for characters that it does not have."""
    _check(ccsid)
    try:
        if ccsid == 1047:
            return codecs.encode(text, "cp037").translate(_FROM_1047)
        return codecs.encode(text, _NAMES[ccsid])
    except UnicodeEncodeError:
        raise Mismatch(f"a value has a character that CCSID {ccsid} does not have") from None


def _check(ccsid: int) -> None:
    if ccsid not in _NAMES and ccsid != 1047:
        raise Mismatch(f"CCSID {ccsid} is not known here")
