"""JSON, XML and delimited text: where values are, to the byte, so that all that is not replaced stays as it was.

Sources: RFC 8259 (JSON), RFC 4180 (comma-separated values), W3C "Extensible Markup Language (XML) 1.0" and "Namespaces
in XML 1.0".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final
from xml.parsers import expat

from grille.protocols.mq.payload import (
    Field,
    LayoutError,
    Mismatch,
    Span,
    decoded,
    decoded_as,
    encoded,
    is_ebcdic,
    spliced,
)

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 100_000
_STEP: Final = re.compile(r"\.?([A-Za-z_$][\w$-]*)|\[\"((?:[^\"\\]|\\.)*)\"\]|(\[\])")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_STRING: Final = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+"')
_ATOM: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_EACH: Final = None
"""The step of a path to every element of an array."""
Path = tuple[str | None, ...]
Found = tuple[str, int, int, str, str]
"""Field, first and last character, value and form."""


class Json:
    """`Layout` of a JSON document.

    A field is at a path of keys, ``payer.accounts[].number``, where ``[]`` is every element of an array and
    ``["a.b"]`` a key with other characters.  Absent and null values stay as they are; a string or a number is a value,
    anything else a mismatch.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        """Raises `LayoutError`."""
        self._fields: dict[Path, str] = {}
        self._ways: set[Path] = set()
        for field in fields:
            path = _path(field.at)
            if path in self._fields:
                raise LayoutError(f"{field.at} is named twice")
            self._fields[path] = field.name
            self._ways |= {path[:length] for length in range(len(path))}
        self._known = self._ways | self._fields.keys()
        for path in self._fields:
            if path in self._ways:
                raise LayoutError(f"{self._fields[path]} holds another field")

    def find(self, data: bytes, ccsid: int) -> list[Span]:
        """See `Layout`."""
        text = decoded(data, ccsid)
        found: list[Found] = []
        end = self._value(text, _skip(text, 0), (), found, 0)
        if _skip(text, end) != len(text):
            raise Mismatch(f"something follows the document, at character {end}")
        found.sort(key=lambda each: each[1])
        return _in_bytes(text, ccsid, found)

    def replaced(self, data: bytes, changes: Sequence[tuple[Span, str | None]], ccsid: int) -> bytes:
        """See `Layout`."""
        new = []
        for span, value in changes:
            if value is None:
                new.append((span, encoded("null", ccsid)))
                continue
            if span.form == "number" and not (value.isascii() and _ATOM.fullmatch(value) and value not in _WORDS):
                raise Mismatch(f"a value of the field {span.field} is not a number")
            if span.form == "number":
                new.append((span, encoded(value, ccsid)))
                continue
            try:
                new.append((span, encoded(json.dumps(value, ensure_ascii=False), ccsid)))
            except Mismatch:  # as an escape, then
                new.append((span, encoded(json.dumps(value), ccsid)))
        return spliced(data, new)

    def _value(self, text: str, at: int, path: Path | None, found: list[Found], depth: int) -> int:
        """Read the value here; the place behind it.  ``path``: None where no field can be."""
        field = self._fields.get(path) if path is not None else None
        way = path if path in self._ways else None
        if depth > MAX_DEPTH:
            raise Mismatch(f"the document is nested more than {MAX_DEPTH} deep")
        first = text[at : at + 1]
        if first in ("{", "["):
            if field is not None:
                raise Mismatch(f"the field {field} is neither text nor number")
            return self._within(text, at, first, way, found, depth)
        pattern = _STRING if first == '"' else _ATOM
        matched = pattern.match(text, at)
        if matched is None:
            raise Mismatch(f"no JSON value, at character {at}")
        raw, end = matched[0], matched.end()
        if field is None:
            if way is not None and raw != "null":
                raise Mismatch(f"a value stands where a field should be looked for, at character {at}")
            return end
        if raw in ("true", "false"):
            raise Mismatch(f"the field {field} is neither text nor number")
        if raw != "null":
            if len(found) >= MAX_VALUES:
                raise Mismatch(f"the document has more than {MAX_VALUES} sensitive values")
            quoted = first == '"'
            found.append((field, at, end, json.loads(raw) if quoted else raw, "string" if quoted else "number"))
        return end

    def _within(self, text: str, at: int, first: str, way: Path | None, found: list[Found], depth: int) -> int:
        """Read the object or array here."""
        closing = "}" if first == "{" else "]"
        if way is not None and first == "{" and (*way, _EACH) in self._known:
            raise Mismatch(f"an object stands where an array should be, at character {at}")
        names: set[str] = set()
        at = _skip(text, at + 1)
        if text[at : at + 1] == closing:
            return at + 1
        while True:
            step: str | None = _EACH
            if first == "{":
                matched = _STRING.match(text, at)
                if matched is None:
                    raise Mismatch(f"no key of an object, at character {at}")
                step = str(json.loads(matched[0]))
                if step in names and way is not None:
                    raise Mismatch(f"an object has a key twice, at character {at}")
                names.add(step)
                at = _skip(text, matched.end())
                if text[at : at + 1] != ":":
                    raise Mismatch(f"no value for a key, at character {at}")
                at = _skip(text, at + 1)
            path = (*way, step) if way is not None else None
            if path is not None and path not in self._known:
                path = None
            at = _skip(text, self._value(text, at, path, found, depth + 1))
            if text[at : at + 1] == closing:
                return at + 1
            if text[at : at + 1] != ",":
                raise Mismatch(f"neither a comma nor an end, at character {at}")
            at = _skip(text, at + 1)


_WORDS: Final = ("true", "false", "null")


def _path(at: str) -> Path:
    steps: list[str | None] = []
    place = 0
    while place < len(at):
        matched = _STEP.match(at, place)
        if matched is None:
            raise LayoutError(f"{at} is not a path like payer.accounts[].number")
        name, quoted, _ = matched.groups()
        steps.append(name or (json.loads(f'"{quoted}"') if quoted is not None else _EACH))
        place = matched.end()
    if not steps:
        raise LayoutError("a field has no path")
    return tuple(steps)


def _skip(text: str, at: int) -> int:
    matched = _SPACE.match(text, at)
    return matched.end() if matched is not None else at


_NAME: Final = re.compile(r"@?[^\W\d][\w.\-]*")
_TAG: Final = re.compile(rb"<[^\s/>]++((?:\s++[^\s=/>]++\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'))*+)\s*+/?>")
_ATTRIBUTE: Final = re.compile(rb"\s++([^\s=]++)\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)')")
_NO_CHARACTER: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_APART: Final = "\x01"
"""Between the parts of a name, as expat tells them: no document can hold it."""
_NEXT_LINE: Final = "\x85"


class Xml:
    """`Layout` of an XML document.

    A field is at a path of names, ``Document/Payer/Account``, the last of which may be an attribute's,
    ``Document/Payer/@account``.  Names have no prefix: what has the name is the field in whatever namespace it is, and
    every one that stands at the path is.  The root has to be that of a path.  Absent and empty ones stay as they are.
    What could be read in two ways is a mismatch: a document type, a field with elements, comments or instructions in
    it, text beside the elements on the way to a field, and a declared encoding under which the bytes are other text.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        """Raises `LayoutError`."""
        self._fields: dict[tuple[str, ...], str] = {}
        for field in fields:
            path = tuple(field.at.split("/"))
            elements = path[: max(1, len(path) - 1)]
            if not all(map(_NAME.fullmatch, path)) or any(step.startswith("@") for step in elements):
                raise LayoutError(f"{field.at} is not a path like Document/Payer/Account or Document/Payer/@account")
            if path in self._fields:
                raise LayoutError(f"{field.at} is named twice")
            self._fields[path] = field.name
        ends = [path[:-1] if path[-1].startswith("@") else path for path in self._fields]
        self._ways = {path[:length] for path in ends for length in range(1, len(path))}
        for path, name in self._fields.items():
            if path in self._ways:
                raise LayoutError(f"{name} holds another field")
        self._attributed = {path[:-1] for path in self._fields if path[-1].startswith("@")}
        self._roots = {path[:1] for path in ends}

    def find(self, data: bytes, ccsid: int) -> list[Span]:
        """See `Layout`."""
        text = decoded(data, ccsid)
        # Line ends of EBCDIC, for which XML 1.0 has no place; as many characters as before.
        feed = (text.replace(_NEXT_LINE, "\n") if is_ebcdic(ccsid) else text).encode()
        reading = _Reading(self._fields, self._ways, self._attributed, self._roots, feed)
        declared = reading.read()
        if declared is not None and decoded_as(data, declared) != text:
            raise Mismatch(f"the document says that it is in another encoding than the CCSID {ccsid} of the message")
        at = place = 0
        found: list[Found] = []
        for field, start, end, value, form in sorted(reading.found, key=lambda each: each[1]):
            begin = place + len(feed[at:start].decode())
            place = begin + len(feed[start:end].decode())
            at = end
            found.append((field, begin, place, value, form))
        return _in_bytes(text, ccsid, found)

    def replaced(self, data: bytes, changes: Sequence[tuple[Span, str | None]], ccsid: int) -> bytes:
        """See `Layout`."""
        return spliced(data, [(span, self._written(span, value or "", ccsid)) for span, value in changes])

    @staticmethod
    def _written(span: Span, value: str, ccsid: int) -> bytes:
        if _NO_CHARACTER.search(value):
            raise Mismatch(f"a value of the field {span.field} has a character that XML does not have")
        special = "&<>\r" if span.form == "text" else "&<>\"'\t\n\r"
        parts = []
        for character in value:
            escape = f"&#{ord(character)};"
            if character in special or (character == _NEXT_LINE and is_ebcdic(ccsid)):
                character = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}.get(character, escape)
            try:
                parts.append(encoded(character, ccsid))
            except Mismatch:
                parts.append(encoded(escape, ccsid))
        return b"".join(parts)


class _Reading:
    """One document being read, in UTF-8."""

    def __init__(
        self,
        fields: dict[tuple[str, ...], str],
        ways: set[tuple[str, ...]],
        attributed: set[tuple[str, ...]],
        roots: set[tuple[str, ...]],
        data: bytes,
    ) -> None:
        self.found: list[Found] = []
        """Places in bytes."""
        self._fields, self._ways, self._attributed, self._roots, self._data = fields, ways, attributed, roots, data
        self._path: list[str] = []
        self._field = ""
        """The one that is being read."""
        self._start = -1
        self._value: list[str] = []
        self._declared: str | None = None
        parser = self._parser = expat.ParserCreate("utf-8", _APART)
        parser.namespace_prefixes = True
        parser.ordered_attributes = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartCdataSectionHandler = self._section
        parser.CommentHandler = parser.ProcessingInstructionHandler = self._aside

    def read(self) -> str | None:
        """The encoding that the document declares, if it does.  Raises `Mismatch`."""
        try:
            self._parser.Parse(self._data, True)
        except expat.ExpatError as error:
            raise Mismatch(f"no well-formed XML: {expat.ErrorString(error.code)}, line {error.lineno}") from None
        return self._declared

    def _declaration(self, version: str, encoding: str | None, _: int) -> None:
        if version != "1.0":
            raise Mismatch("the document is not of XML 1.0")
        self._declared = encoding

    def _doctype(self, *_: object) -> None:
        raise Mismatch("the document has a document type")

    def _begin(self, name: str, attributes: list[str]) -> None:
        if self._field:
            raise Mismatch(f"the field {self._field} has an element in it")
        if len(self._path) >= MAX_DEPTH:
            raise Mismatch(f"the document is nested more than {MAX_DEPTH} deep")
        self._path.append(_local(name))
        path = tuple(self._path)
        if len(path) == 1 and path not in self._roots:
            raise Mismatch("the document has another root")
        if path in self._attributed:
            self._attributes(path, attributes)
        self._field = self._fields.get(path, "")
        self._start = -1
        self._value.clear()

    def _attributes(self, path: tuple[str, ...], attributes: list[str]) -> None:
        tag = _TAG.match(self._data, self._parser.CurrentByteIndex)
        places = list(_ATTRIBUTE.finditer(self._data, *tag.span(1))) if tag is not None else []
        places = [each for each in places if each[1] != b"xmlns" and not each[1].startswith(b"xmlns:")]
        names, values = attributes[::2], attributes[1::2]
        if [_qualified(name) for name in names] != [each[1].decode() for each in places]:
            raise Mismatch("the attributes of an element cannot be told apart")
        for place, name, value in zip(places, names, values, strict=True):
            field = self._fields.get((*path, f"@{_local(name)}"))
            if field is not None and value:
                self._add(field, *place.span(3 if place[2] is None else 2), value, "attribute")

    def _end(self, _: str) -> None:
        if self._field and self._start >= 0:
            self._add(self._field, self._start, self._parser.CurrentByteIndex, "".join(self._value), "text")
        self._field = ""
        self._path.pop()

    def _add(self, field: str, start: int, end: int, value: str, form: str) -> None:
        if len(self.found) >= MAX_VALUES:
            raise Mismatch(f"the document has more than {MAX_VALUES} sensitive values")
        if value:
            self.found.append((field, start, end, value, form))

    def _text(self, text: str) -> None:
        if self._field:
            self._section()
            self._value.append(text)
        elif tuple(self._path) in self._ways and text.strip(" \t\r\n"):
            raise Mismatch(f"text stands where a field should be looked for, at byte {self._parser.CurrentByteIndex}")

    def _section(self) -> None:
        if self._field and self._start < 0:
            self._start = self._parser.CurrentByteIndex

    def _aside(self, *_: object) -> None:
        if self._field:
            raise Mismatch(f"the field {self._field} has a comment or an instruction in it")


def _local(name: str) -> str:
    parts = name.split(_APART)
    return parts[1] if len(parts) > 1 else name


def _qualified(name: str) -> str:
    parts = name.split(_APART)
    return f"{parts[2]}:{parts[1]}" if len(parts) == 3 else parts[-1]


class Delimited:
    """`Layout` of lines of values.

    A field is at a column's number, counted from 1, or with ``header`` at its name in the first line.  Every line has
    the same number of columns.  An empty value stays empty.
    """

    def __init__(
        self, fields: Sequence[Field], separator: str = ",", quote: str = '"', *, header: bool = False
    ) -> None:
        """Raises `LayoutError`."""
        if len(separator) != 1 or len(quote) > 1 or separator == quote or {separator, quote} & set("\r\n\x85"):
            raise LayoutError("separator and quote are one character each, and no end of a line")
        for field in fields:
            if not header and not (field.at.isdecimal() and int(field.at) > 0):
                raise LayoutError(f"{field.at} is not the number of a column")
        if len({field.at for field in fields}) != len(fields):
            raise LayoutError("a column is named twice")
        self._fields = list(fields)
        self._separator, self._quote, self._header = separator, quote, header

    def find(self, data: bytes, ccsid: int) -> list[Span]:
        """See `Layout`."""
        text = decoded(data, ccsid)
        found: list[Found] = []
        columns: dict[int, str] = {}
        width = 0
        for number, line in enumerate(self._lines(text)):
            if number == 0:
                width = len(line)
                columns = self._columns([value for _, _, value in line])
                if self._header:
                    continue
            if len(line) != width:
                raise Mismatch(f"line {number + 1} has {len(line)} columns and not {width}")
            for place, field in columns.items():
                start, end, value = line[place]
                if value:
                    if len(found) >= MAX_VALUES:
                        raise Mismatch(f"the text has more than {MAX_VALUES} sensitive values")
                    found.append((field, start, end, value, "quoted" if text[start] == self._quote else ""))
        return _in_bytes(text, ccsid, found)

    def replaced(self, data: bytes, changes: Sequence[tuple[Span, str | None]], ccsid: int) -> bytes:
        """See `Layout`."""
        return spliced(data, [(span, encoded(self._written(span, value or ""), ccsid)) for span, value in changes])

    def _columns(self, first: list[str]) -> dict[int, str]:
        """Places of the fields, from 0, in order."""
        places: dict[int, str] = {}
        for field in self._fields:
            if self._header:
                if first.count(field.at) != 1:
                    raise Mismatch(f"the column of the field {field.name} is not in the header, or not alone")
                place = first.index(field.at)
            else:
                place = int(field.at) - 1
                if place >= len(first):
                    raise Mismatch(f"the field {field.name} is beyond the {len(first)} columns")
            places[place] = field.name
        return dict(sorted(places.items()))

    def _lines(self, text: str) -> Iterator[list[tuple[int, int, str]]]:
        line: list[tuple[int, int, str]] = []
        at = 0
        while at < len(text):
            start = at
            if self._quote and text[at] == self._quote:
                at += 1
                while True:
                    at = text.find(self._quote, at)
                    if at < 0:
                        raise Mismatch(f"a quoted value does not end, from character {start} on")
                    if text[at + 1 : at + 2] != self._quote:
                        break
                    at += 2
                at += 1
                value = text[start + 1 : at - 1].replace(self._quote * 2, self._quote)
            else:
                while at < len(text) and text[at] not in (self._separator, "\n", "\r", "\x85"):
                    if self._quote and text[at] == self._quote:
                        raise Mismatch(f"a quote within a value, at character {at}")
                    at += 1
                value = text[start:at]
            line.append((start, at, value))
            if at == len(text):
                break
            if text[at] == self._separator:
                at += 1
                if at == len(text):
                    line.append((at, at, ""))
                continue
            if text[at] not in "\r\n\x85":
                raise Mismatch(f"something follows a quoted value, at character {at}")
            at += 2 if text.startswith("\r\n", at) else 1
            yield line
            line = []
        if line:
            yield line

    def _written(self, span: Span, value: str) -> str:
        quote = self._quote
        if quote and (span.form == "quoted" or any(each in value for each in (self._separator, quote, "\n", "\r"))):
            return quote + value.replace(quote, quote * 2) + quote
        if any(each in value for each in (self._separator, "\n", "\r", "\x85")):
            raise Mismatch(f"a value of the field {span.field} has a separator")
        return value


def _in_bytes(text: str, ccsid: int, found: Sequence[Found]) -> list[Span]:
    """Places in characters to places in bytes."""
    spans = []
    at, place = 0, 0
    for field, start, end, value, form in found:
        begin = place + len(encoded(text[at:start], ccsid))
        place = begin + len(encoded(text[start:end], ccsid))
        at = end
        spans.append(Span(field, begin, place, value, form))
    return spans
