"""COPY TO STDOUT as a governed query, and COPY FROM STDIN as a governed INSERT.

The query runs like any SELECT; its rows are decoded, masked and counted as such, and then written as COPY writes them.
Rows that come in are read by `grille.protocols.postgres.copy_rows`.
PostgreSQL 18: SQL command COPY ("File Formats"), chapter 54.2.6; src/backend/commands/{copy,copyto}.c.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from postgast import pg_query_pb2 as pb

from grille.controls import Refusal
from grille.protocols.postgres import tree
from grille.protocols.postgres.commands import SessionCommand
from grille.protocols.postgres.tree import Node, kind_of

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_ESCAPES: Final = {8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 92: "\\\\"}
_TRUE: Final = ("true", "on", "1", "")
_FALSE: Final = ("false", "off", "0")
_MARKS: Final = ("format", "delimiter", "null", "quote", "escape")
_CSV_ONLY: Final = frozenset({"quote", "escape", "force_quote", "force_null", "force_not_null"})
_AS_IT_IS: Final = (*(("freeze", word) for word in _FALSE), ("on_error", "stop"), ("log_verbosity", "default"))
"""Options of COPY FROM, with the values that ask for nothing."""
_LISTS: Final = ("force_quote", "force_null", "force_not_null")
_ROWS: Final = 64
"""Rows of one INSERT: the most of which a statement is still bounded (`analysis.MAX_LISTED`)."""
_PARAMETERS: Final = 1024
"""Of one INSERT, about."""


class _Format(msgspec.Struct, frozen=True):
    """How rows are written, in either direction."""

    format: str = "text"
    delimiter: str = "\t"
    null: str = "\\N"
    header: bool | Literal["match"] = False
    quote: str = '"'
    escape: str = '"'

    @property
    def binary(self) -> bool:
        """The values are in binary format."""
        return self.format == "binary"


class CopyIn(_Format, frozen=True):
    """How the rows that a client sends are written."""

    force_null: tuple[str, ...] | None = ()
    """Names of columns; None is all."""
    force_not_null: tuple[str, ...] | None = ()
    """The same."""

    def begin(self, columns: int) -> bytes:
        """CopyInResponse"""
        code = 1 if self.binary else 0
        return b"G" + struct.pack(f"!ibh{columns}h", 7 + 2 * columns, code, columns, *[code] * columns)


class CopyInCommand(SessionCommand, frozen=True):
    """``COPY relation (columns) FROM STDIN``"""

    target: tuple[str, ...] = ()
    """The parts of the relation's name, as they were written."""
    columns: tuple[str, ...] = ()
    """As they were written; none: all that can be written."""
    options: CopyIn = CopyIn()

    @property
    def shown(self) -> str:
        """The statement without its options, for the audit event."""
        columns = ", ".join(map(quoted_name, self.columns))
        return f"COPY {self._name} {f'({columns}) ' if columns else ''}FROM STDIN"

    def insert(self, columns: Sequence[str], rows: int) -> str:
        """The INSERT of so many rows of parameters; as COPY does, it takes the values given for identity columns."""
        if not columns:
            return f"INSERT INTO {self._name} DEFAULT VALUES"
        names = ", ".join(map(quoted_name, columns))
        width = len(columns)
        cells = (", ".join(f"${row * width + n}" for n in range(1, width + 1)) for row in range(rows))
        return f"INSERT INTO {self._name} ({names}) OVERRIDING SYSTEM VALUE VALUES ({'), ('.join(cells)})"  # noqa: S608

    @property
    def _name(self) -> str:
        return ".".join(map(quoted_name, self.target))


def rows_at_once(columns: int) -> int:
    """Rows of the INSERT that takes most of what is copied into so many columns."""
    return max(1, min(_ROWS, _PARAMETERS // columns))


class CopyOut(_Format, frozen=True):
    """How the rows are written."""

    force_quote: tuple[str, ...] | None = ()
    """Names of columns; None is all."""
    names: tuple[str, ...] = ()
    """Of the result's columns."""

    def begin(self) -> bytes:
        """CopyOutResponse, and in text the line of names."""
        code = 1 if self.binary else 0
        count = len(self.names)
        body = struct.pack(f"!bh{count}h", code, count, *[code] * count)
        names = self._line([name.encode() for name in self.names], header=True) if self.header else b""
        return b"H" + struct.pack("!i", len(body) + 4) + body + (_data(names) if names else b"")

    def row(self, values: Sequence[bytes | None], *, first: bool) -> bytes:
        """One row as a CopyData message; in binary the first one also has the file's header, as clients expect."""
        if self.binary:
            cells = [b"\xff\xff\xff\xff" if v is None else struct.pack("!i", len(v)) + v for v in values]
            return _data((_HEADER if first else b"") + struct.pack("!h", len(values)) + b"".join(cells))
        return _data(self._line(values))

    def end(self, *, first: bool) -> bytes:
        """What comes after the last row, and CopyDone; ``first``: there was no row."""
        trailer = _data((_HEADER if first else b"") + _TRAILER) if self.binary else b""
        return trailer + b"c\0\0\0\4"

    def _line(self, values: Sequence[bytes | None], *, header: bool = False) -> bytes:
        if self.format == "csv":
            cells = [self._quoted(n, value, len(values), header=header) for n, value in enumerate(values)]
        else:
            escapes = {**_ESCAPES, ord(self.delimiter): "\\" + self.delimiter} if self.delimiter != "\t" else _ESCAPES
            cells = [self.null if value is None else value.decode().translate(escapes) for value in values]
        return (self.delimiter.join(cells) + "\n").encode()

    def _quoted(self, number: int, value: bytes | None, width: int, *, header: bool) -> str:
        """CopyAttributeOutCSV"""
        if value is None:
            return self.null
        text = value.decode()
        forced = not header and (self.force_quote is None or self.names[number] in self.force_quote)
        special = any(mark in text for mark in (self.delimiter, self.quote, "\n", "\r"))
        if forced or special or text == self.null or (width == 1 and text == "\\."):
            if self.escape != self.quote:
                text = text.replace(self.escape, self.escape * 2)
            return self.quote + text.replace(self.quote, self.escape + self.quote) + self.quote
        return text


def _data(data: bytes) -> bytes:
    return b"d" + struct.pack("!i", len(data) + 4) + data


def out(message: Any) -> tuple[Node, CopyOut]:
    """The query of a ``COPY .. TO STDOUT`` and its options.  Raises `Refusal` ST-01 or ST-02."""
    options = CopyOut(**_options(message.options, "TO", ("force_quote",)))
    if message.HasField("query"):
        if kind_of(message.query) != "select_stmt":
            raise _unsupported("COPY of a statement that writes")
        return message.query, options
    var = message.relation
    var.inh = False
    names = [part.string.sval for part in message.attlist]
    targets = [tree.target(tree.column(name)) for name in names]
    if not names:
        targets = [tree.target(pb.Node(column_ref=pb.ColumnRef(fields=[pb.Node(a_star=pb.A_Star())])))]
    select = tree.subselect(targets, pb.Node(range_var=var), None, fence=False)
    return pb.Node(select_stmt=select), options


def into(message: Any) -> CopyInCommand:
    """Read a ``COPY .. FROM STDIN``.  Raises `Refusal` ST-01 or ST-02."""
    if message.HasField("where_clause"):
        raise Refusal(
            "ST-02", "COPY FROM with WHERE is not supported.", sqlstate="0A000",
            hint="Leave out the rows that you do not want before you send them.",
        )  # fmt: skip
    options = CopyIn(**_options(message.options, "FROM", ("force_null", "force_not_null")))
    var = message.relation
    target = tuple(part for part in (var.catalogname, var.schemaname, var.relname) if part)
    columns = tuple(part.string.sval for part in message.attlist)
    if len(set(columns)) != len(columns):
        raise Refusal("ST-01", "COPY names a column twice.", sqlstate="42701")
    return CopyInCommand("copy", target=target, columns=columns, options=options)


def _options(nodes: Sequence[Node], direction: str, lists: Sequence[str]) -> dict[str, Any]:
    """ProcessCopyOptions; ``lists`` are the options of this direction that name columns."""
    given: dict[str, Any] = {}
    for node in nodes:
        element = node.def_elem
        name, kind = element.defname, kind_of(element.arg)
        if name in given:
            raise _wrong(f'Option "{name}" is given twice.')
        if name in lists:
            given[name] = None if kind == "a_star" else tuple(part.string.sval for part in element.arg.list.items)
            continue
        word = element.arg.string.sval if kind == "string" else element.arg.a_const.sval.sval if kind else ""
        if kind == "boolean":
            word = "true" if element.arg.boolean.boolval else "false"
        elif kind == "integer":
            word = str(element.arg.integer.ival)
        lower = word.lower()
        if name == "header" and lower in _TRUE + _FALSE:
            given[name] = lower in _TRUE
        elif name == "header" and lower == "match" and direction == "FROM":
            given[name] = "match"
        elif name == "encoding" and lower.replace("-", "") in ("utf8", "unicode"):
            given[name] = "utf8"
        elif direction == "FROM" and (name, lower) in _AS_IT_IS:
            given[name] = lower
        elif name in _MARKS:
            given[name] = word
        else:
            raise _unsupported(f'Option "{name}" of COPY {direction}, or this value of it,')
    kind = given.pop("format", "text")
    for name in ("encoding", *(name for name, _ in _AS_IT_IS)):
        given.pop(name, None)
    if kind not in ("text", "csv", "binary"):
        raise _wrong(f'COPY has no format "{kind[:20]}".')
    if kind == "binary" and given:
        raise _wrong("COPY in binary format takes no such option.")
    if kind != "csv" and given.keys() & _CSV_ONLY:
        raise _wrong(f"{', '.join(sorted(given.keys() & _CSV_ONLY)).upper()} of COPY needs the format csv.")
    if kind == "csv":
        given = {"delimiter": ",", "null": "", **given}
        given.setdefault("escape", given.get("quote", '"'))
    made = _Format(kind, **{name: value for name, value in given.items() if name not in _LISTS})
    single = [made.delimiter] + ([made.quote, made.escape] if kind == "csv" else [])
    if any(len(mark) != 1 or not mark.isascii() or mark in "\r\n\0" for mark in single):
        raise _wrong("A delimiter, quote or escape of COPY is one ASCII character, and not the end of a line.")
    if any(mark in made.null for mark in "\r\n") or made.delimiter in made.null:
        raise _wrong("The NULL of COPY may hold neither the delimiter nor the end of a line.")
    if kind == "text" and made.delimiter in "\\.abcdefghijklmnopqrstuvwxyz0123456789":
        raise _wrong("COPY in text format cannot have this delimiter.")
    if kind == "csv" and (made.delimiter == made.quote or made.quote in made.null):
        raise _wrong("The quote of COPY is neither its delimiter nor part of its NULL.")
    return {"format": kind, **given}


def quoted_name(name: str) -> str:
    """An identifier between quotation marks (PostgreSQL, chapter 4.1.1)."""
    return '"' + name.replace('"', '""') + '"'


def _wrong(sentence: str) -> Refusal:
    return Refusal("ST-01", sentence, sqlstate="22023")


def _unsupported(what: str) -> Refusal:
    return Refusal("ST-02", f"{what} is not supported.", sqlstate="0A000")
