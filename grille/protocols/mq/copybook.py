"""COBOL copybooks: where the items of a record are, and how their values are written.

What is read is what records of messages are made of: levels, FILLER, PICTURE with X, A, 9, S and V, USAGE DISPLAY,
COMP-3 (PACKED-DECIMAL), COMP, COMP-4, COMP-5 and BINARY, COMP-1 and COMP-2, SIGN, OCCURS n, REDEFINES.  Anything else
is an error: an offset that is guessed would show one field for another.  Source: IBM, "Enterprise COBOL for z/OS
Language Reference", data division; "Programming Guide", "Formats for numeric data".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from grille.protocols.mq.payload import Field, LayoutError, Mismatch, Span, decoded, encoded, is_ebcdic, spliced

MAX_RECORD: Final = 1 << 20
"""Bytes."""
MAX_ITEMS: Final = 10_000
_DEEPEST: Final = 48
_TOKEN: Final = re.compile(r"'[^']*'|\"[^\"]*\"|[^\s.,;]+(?:\.[^\s.,;]+)*|\.")
_NUMBER: Final = re.compile(r"[0-9]{1,7}")
_PICTURE: Final = re.compile(r"(S?)((?:[9XAV](?:\([0-9]{1,7}\))?)+)", re.IGNORECASE)
_PART: Final = re.compile(r"([9XAV])(?:\(([0-9]+)\))?", re.IGNORECASE)
_USAGES: Final = {
    "DISPLAY": "display", "COMP-3": "packed", "COMPUTATIONAL-3": "packed", "PACKED-DECIMAL": "packed",
    "COMP": "binary", "COMPUTATIONAL": "binary", "COMP-4": "binary", "COMPUTATIONAL-4": "binary", "COMP-5": "binary",
    "COMPUTATIONAL-5": "binary", "BINARY": "binary", "COMP-1": "float", "COMPUTATIONAL-1": "float", "COMP-2": "double",
    "COMPUTATIONAL-2": "double",
}  # fmt: skip
_NOISE: Final = frozenset({"IS", "ARE", "TIMES", "USAGE", "MODE"})
_VALUE: Final = frozenset({"VALUE", "VALUES"})
_ZONE_EBCDIC, _ZONE_ASCII = 0xF0, 0x30
_SIGNS: Final = frozenset({0xC, 0xD, 0xF})
"""Sign nibbles that compilers write: plus, minus, unsigned."""


class Item(msgspec.Struct):
    """One item of a record."""

    level: int
    name: str
    """Empty: FILLER."""
    offset: int = 0
    """Bytes, of its first occurrence."""
    size: int = 0
    """Bytes of one occurrence."""
    kind: str = "group"
    """``group``, ``text``, ``zoned``, ``packed``, ``binary``, ``float`` or ``double``."""
    digits: int = 0
    signed: bool = False
    leading: bool = False
    separate: bool = False
    occurs: int = 1
    redefines: str = ""
    parents: tuple[str, ...] = ()
    """Names of its groups, the outermost first."""
    strides: tuple[tuple[int, int], ...] = ()
    """Of the tables that it is in, the outermost first: times and bytes of one occurrence."""


def parse(text: str) -> list[Item]:
    """The items of a copybook, in order; the first is the record, made up if there is no level 01.

    Raises `LayoutError`.
    """
    entries = (_item(sentence, number) for number, sentence in enumerate(_sentences(text), 1))
    items = [item for item in entries if item is not None]
    if not items:
        raise LayoutError("the copybook has no item")
    if len(items) > MAX_ITEMS:
        raise LayoutError(f"the copybook has more than {MAX_ITEMS} items")
    if items[0].level not in (1, 77):  # it is meant to be copied below a level 01
        items.insert(0, Item(0, ""))
    if _measured(items, 0, ()) != len(items):
        raise LayoutError("the copybook has more than one record: keep the one that messages have")
    _placed(items)
    return items


def _sentences(text: str) -> Iterator[list[str]]:
    """Words of each entry, which ends with a full stop."""
    lines = []
    for line in text.splitlines():
        fixed = len(line) > 6 and (_NUMBER.fullmatch(line[:6]) or not line[:6].strip())
        if fixed and line[6] in "*/":
            continue
        if fixed and line[6] == "-":
            raise LayoutError("a continued line is not read: join it with the one before")
        lines.append(line[7:72] if fixed else line.partition("*>")[0])
    words: list[str] = []
    for word in _TOKEN.findall("\n".join(lines)):
        if word == ".":
            if words:
                yield words
            words = []
        else:
            words.append(word)
    if words:
        raise LayoutError(f"the entry {' '.join(words[:3])} does not end with a full stop")


def _item(words: list[str], number: int) -> Item | None:
    if not _NUMBER.fullmatch(words[0]):
        raise LayoutError(f"entry {number} does not begin with a level number")
    level = int(words[0])
    if level in (66, 88):
        return None
    if not 1 <= level <= 49 and level != 77:
        raise LayoutError(f"level {level} of entry {number} is not 01 to 49")
    rest = [word if word[:1] in "'\"" else word.upper() for word in words[1:]]
    name = ""
    if rest and rest[0] not in ("REDEFINES", "PIC", "PICTURE", "OCCURS", "USAGE", *_USAGES):
        name = rest.pop(0)
    item = Item(level, "" if name == "FILLER" else name)
    picture, usage = "", "display"
    where = f"item {name or number}"
    while rest:
        word = rest.pop(0)
        if word in _NOISE:
            continue
        if word in ("PIC", "PICTURE"):
            while rest and rest[0] in _NOISE:
                rest.pop(0)
            picture = rest.pop(0) if rest else ""
            if not _PICTURE.fullmatch(picture):
                raise LayoutError(f"the picture of {where} is not made of X, A, 9, S and V")
        elif word in _USAGES:
            usage = _USAGES[word]
        elif word == "OCCURS":
            if not rest or not _NUMBER.fullmatch(rest[0]) or "DEPENDING" in rest or "TO" in rest[:2]:
                raise LayoutError(f"OCCURS of {where} is not a fixed number of times")
            item.occurs = int(rest.pop(0))
            if not 1 <= item.occurs <= MAX_RECORD:
                raise LayoutError(f"OCCURS of {where} is not within 1 and {MAX_RECORD}")
            while rest and rest[0] in ("INDEXED", "ASCENDING", "DESCENDING", "KEY", "BY", "TIMES"):
                if rest.pop(0) in ("BY", "KEY") and rest:
                    rest.pop(0)
        elif word == "REDEFINES":
            item.redefines = rest.pop(0) if rest else ""
        elif word == "SIGN":
            continue
        elif word in ("LEADING", "TRAILING"):
            item.leading = word == "LEADING"
        elif word == "SEPARATE":
            item.separate = True
            if rest and rest[0] == "CHARACTER":
                rest.pop(0)
        elif word in _VALUE:
            while rest and rest[0] in _NOISE:
                rest.pop(0)
            if rest:
                rest.pop(0)
        elif word in ("JUST", "JUSTIFIED", "BLANK"):
            raise LayoutError(f"{word} of {where} is not read: values would be written another way")
        else:
            raise LayoutError(f"{word} of {where} is not read")
    _measure(item, picture, usage, where)
    return item


def _measure(item: Item, picture: str, usage: str, where: str) -> None:
    """Kind and size of an elementary item."""
    if not picture:
        if usage in ("float", "double"):
            item.kind, item.size = usage, 4 if usage == "float" else 8
        elif usage != "display":
            raise LayoutError(f"{where} has a usage and no picture")
        return
    found = _PICTURE.fullmatch(picture)
    assert found is not None  # noqa: S101
    parts = [(symbol.upper(), int(count or 1)) for symbol, count in _PART.findall(found[2])]
    symbols = {symbol for symbol, _ in parts}
    item.signed = bool(found[1])
    item.digits = sum(count for symbol, count in parts if symbol == "9")
    characters = sum(count for symbol, count in parts if symbol != "V")
    if characters > MAX_RECORD:
        raise LayoutError(f"{where} is longer than {MAX_RECORD} bytes")
    if symbols <= {"9", "V"} and item.digits:
        if not item.digits <= 31:
            raise LayoutError(f"{where} has more than 31 digits")
        if usage == "display":
            item.kind, item.size = "zoned", item.digits + (item.signed and item.separate)
        elif usage == "packed":
            item.kind, item.size = "packed", item.digits // 2 + 1
        elif usage == "binary":
            item.kind, item.size = "binary", 2 if item.digits <= 4 else 4 if item.digits <= 9 else 8
        else:
            raise LayoutError(f"{where} has a picture that its usage does not take")
    elif "V" in symbols or item.signed or usage != "display":
        raise LayoutError(f"{where} has a picture that its usage does not take")
    else:
        item.kind, item.size = "text", characters


def _measured(items: list[Item], first: int, parents: tuple[str, ...]) -> int:
    """Give the group at this place its size, and what is below it offsets from its begin; the place behind them."""
    group = items[first]
    if len(parents) > _DEEPEST:
        raise LayoutError(f"items are nested more than {_DEEPEST} deep")
    group.parents = parents
    number = first + 1
    level = items[number].level if number < len(items) else 0
    at = 0
    beside: dict[str, Item] = {}
    while number < len(items) and items[number].level > group.level:
        item = items[number]
        if group.kind != "group":
            raise LayoutError(f"item {group.name or 'FILLER'} has a picture, and items below it")
        if item.level != level:
            raise LayoutError(f"level {item.level:02} of {item.name or 'FILLER'} does not fit its neighbours'")
        if item.redefines and item.redefines not in beside:
            raise LayoutError(f"{item.name or 'FILLER'} redefines {item.redefines}, which is not beside it")
        item.offset = beside[item.redefines].offset if item.redefines else at
        number = _measured(items, number, (*parents, group.name))
        if item.name:
            beside[item.name] = item
        at = max(at, item.offset + item.size * item.occurs)
    if group.kind == "group":
        group.size = at
    if group.size == 0:
        raise LayoutError(f"item {group.name or 'FILLER'} has neither a picture nor items below it")
    if group.size * group.occurs > MAX_RECORD:
        raise LayoutError(f"item {group.name or 'FILLER'} is longer than {MAX_RECORD} bytes")
    return number


def _placed(items: list[Item]) -> None:
    """Make offsets those from the begin of the record."""
    around: list[Item] = []
    for item in items:
        while around and around[-1].level >= item.level:
            around.pop()
        if around:
            item.offset += around[-1].offset
            item.strides = around[-1].strides
        if item.occurs > 1:
            item.strides = (*item.strides, (item.occurs, item.size))
        around.append(item)


class Copybook:
    """`Layout` of a fixed record."""

    def __init__(self, text: str, fields: Sequence[Field]) -> None:
        """``fields`` are at names of items, with ``OF`` or ``IN`` and the name of a group where one is not enough.

        Raises `LayoutError`.
        """
        items = parse(text)
        self.size = items[0].size * items[0].occurs
        """Bytes of the record."""
        places: list[tuple[int, str, Item]] = []
        for field in fields:
            item = _found(items, field.at)
            if item.kind not in ("text", "zoned", "packed"):
                raise LayoutError(f"{field.at} is {item.kind}, and no value can be put in its place")
            places += [(offset, field.name, item) for offset in _offsets(item)]
        places.sort(key=lambda place: place[0])
        for (before, _, item), (after, name, _) in itertools.pairwise(places):
            if before + item.size > after:
                raise LayoutError(f"the field {name} shares bytes with another")
        self._places = places

    def find(self, data: bytes, ccsid: int) -> list[Span]:
        """See `Layout`."""
        if len(data) != self.size:
            raise Mismatch(f"the record has {len(data)} bytes and not {self.size}")
        return [
            Span(name, offset, offset + item.size, _read(data[offset : offset + item.size], item, name, ccsid))
            for offset, name, item in self._places
        ]

    def replaced(self, data: bytes, changes: Sequence[tuple[Span, str | None]], ccsid: int) -> bytes:
        """See `Layout`."""
        items = {offset: item for offset, _, item in self._places}
        return spliced(
            data,
            [
                (span, _written(data[span.start : span.end], items[span.start], span.field, value, ccsid))
                for span, value in changes
            ],
        )


def _found(items: list[Item], at: str) -> Item:
    name, *groups = re.split(r"\s+(?:OF|IN)\s+", at.strip().upper())
    found = []
    for item in items:
        parents = list(item.parents)
        for group in groups:
            while parents and parents[-1] != group:
                parents.pop()
            if not parents:
                break
            parents.pop()
        else:
            if name and item.name == name:
                found.append(item)
    if len(found) != 1:
        what = "has no item" if not found else f"has {len(found)} items"
        fix = "" if not found else "; write ITEM OF GROUP"
        raise LayoutError(f"the copybook {what} {at}{fix}")
    return found[0]


def _offsets(item: Item) -> list[int]:
    offsets = [item.offset]
    for times, stride in item.strides:
        offsets = [offset + number * stride for offset in offsets for number in range(times)]
        if len(offsets) > MAX_ITEMS:
            raise LayoutError(f"{item.name} stands in the record more than {MAX_ITEMS} times")
    return sorted(offsets)


def _read(data: bytes, item: Item, name: str, ccsid: int) -> str:
    if item.kind == "text":
        return decoded(data, ccsid).rstrip(" ")
    if item.kind == "packed":
        digits = data.hex()
        sign = int(digits[-1], 16)
        if not digits[:-1].isdecimal() or sign not in _SIGNS or (len(digits) - 1 > item.digits and digits[0] != "0"):
            raise Mismatch(f"the field {name} is not a packed decimal of {item.digits} digits")
        return digits[:-1][-item.digits :]
    numerals, _ = _zoned(data, item, name, ccsid)
    return numerals


def _zoned(data: bytes, item: Item, name: str, ccsid: int) -> tuple[str, int]:
    """The digits of a zoned decimal, and the place of the byte that has its sign; -1: none, or a byte of its own."""
    ebcdic = is_ebcdic(ccsid)
    zone = _ZONE_EBCDIC if ebcdic else _ZONE_ASCII
    if item.signed and item.separate:
        sign, data = (data[0], data[1:]) if item.leading else (data[-1], data[:-1])
        if sign not in ((0x4E, 0x60) if ebcdic else (0x2B, 0x2D)):
            raise Mismatch(f"the field {name} has no sign where it should be")
        place = -1
    else:
        place = (0 if item.leading else len(data) - 1) if item.signed else -1
    digits = []
    for number, byte in enumerate(data):
        digit, high = byte & 0x0F, byte & 0xF0
        if number == place:
            fits = digit <= 9 and (high in (0xC0, 0xD0, 0xF0) if ebcdic else high in (0x30, 0x70))
            if not ebcdic and not fits and byte in _OVERPUNCHED:
                digit, fits = _OVERPUNCHED[byte], True
        else:
            fits = high == zone and digit <= 9
        if not fits:
            raise Mismatch(f"the field {name} is not a zoned decimal of {item.digits} digits")
        digits.append(str(digit))
    return "".join(digits), place


_PLUS, _MINUS = b"{ABCDEFGHI", b"}JKLMNOPQR"
_OVERPUNCHED: Final = {byte: digit for series in (_PLUS, _MINUS) for digit, byte in enumerate(series)}
"""Last digits with a sign, as they are after a conversion from EBCDIC to ASCII."""


def _written(data: bytes, item: Item, name: str, value: str | None, ccsid: int) -> bytes:
    if value is None:
        value = "" if item.kind == "text" else "0" * item.digits
    if item.kind == "text":
        new = encoded(value, ccsid)
        if len(new) > item.size:
            raise Mismatch(f"a value of the field {name} is longer than its {item.size} bytes")
        return new + encoded(" ", ccsid) * (item.size - len(new))
    if len(value) != item.digits or not value.isdecimal() or not value.isascii():
        raise Mismatch(f"a value of the field {name} is not {item.digits} digits")
    if item.kind == "packed":
        return bytes.fromhex(value.rjust(2 * item.size - 1, "0") + data.hex()[-1])
    _, place = _zoned(data, item, name, ccsid)
    first = 1 if item.signed and item.separate and item.leading else 0
    new_bytes = bytearray(data)
    for number, character in enumerate(value):
        digit, old = int(character), data[first + number]
        if number == place and not is_ebcdic(ccsid) and old in _OVERPUNCHED:
            new_bytes[first + number] = (_PLUS if old in _PLUS else _MINUS)[digit]
        else:
            new_bytes[first + number] = old & 0xF0 | digit
    return bytes(new_bytes)
