"""The rows of a COPY FROM STDIN, read as PostgreSQL reads them, whatever pieces they come in.

A value stays as it is written, in text or in binary: the parameter of an INSERT that it becomes is read by the same
input function.  What is wrong with a row is told by its number, never by what it holds.
PostgreSQL 18: SQL command COPY ("File Formats"); src/backend/commands/copyfromparse.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from grille.controls import Refusal
from grille.protocols.postgres.copy import CopyIn

Row = list[bytes | None]

_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
_ESCAPE: Final = re.compile(rb"\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|.)", re.DOTALL)
_CONTROLS: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_OCTAL: Final = frozenset(b"01234567")


def reader(options: CopyIn, columns: Sequence[str], *, largest: int, csv_marker: bool = False) -> Reader:
    """What reads the rows of these columns.

    No row may be longer than ``largest`` bytes.  ``csv_marker``: a line ``\\.`` ends the data in CSV too, as it does
    before PostgreSQL 18.
    """
    if options.binary:
        return _Binary(len(columns), largest)
    return _Lines(options, columns, largest, csv_marker)


class Reader:
    """Bytes to rows."""

    def feed(self, data: bytes) -> Iterator[Row]:
        """The rows that are whole with these bytes; to be taken before the next ones come.  Raises `Refusal`."""
        raise NotImplementedError

    def end(self) -> Iterator[Row]:
        """What is left when no more bytes come.  Raises `Refusal`."""
        raise NotImplementedError


class _Lines(Reader):
    """Rows in text or CSV format."""

    def __init__(self, options: CopyIn, columns: Sequence[str], largest: int, csv_marker: bool) -> None:
        self._columns = columns
        self._largest = largest
        self._header = options.header
        self._delimiter = options.delimiter.encode()
        self._null = options.null.encode()
        self._csv = options.format == "csv"
        self._marker = not self._csv or csv_marker
        self._quote = options.quote.encode()
        self._escape = options.escape.encode()
        self._to_null = _numbers(options.force_null, columns)
        self._to_text = _numbers(options.force_not_null, columns)
        self._forced = self._to_null | self._to_text
        # What can change how a byte is read.
        special = b"\r\n" + (self._quote + self._escape if self._csv else b"\\")
        self._special = re.compile(b"[" + re.escape(special) + b"]")
        self._buffer = bytearray()
        self._scanned = 0
        self._quoted = False
        self._escaped = False
        self._after_escape = 0
        """In a quoted field: an escape that no other escapes ended here."""
        self._end_of_line = b""
        """As the first line ended: the others must do the same."""
        self._line = 0
        self._over = False

    def feed(self, data: bytes) -> Iterator[Row]:
        if self._over:
            return
        self._buffer += data
        yield from self._rows(last=False)

    def end(self) -> Iterator[Row]:
        if not self._over:
            yield from self._rows(last=True)
        if self._header == "match":
            raise _wrong_header()

    def _rows(self, *, last: bool) -> Iterator[Row]:
        start = 0
        try:
            while (found := self._next_line(start, last=last)) is not None:
                line, start = found
                self._line += 1
                if self._marker and line == b"\\." and self._buffer[start - 1] in b"\r\n":
                    self._over = True
                    return
                row = self._row(line)
                if row is not None:
                    yield row
        finally:
            del self._buffer[:start]
            self._scanned -= start
            self._after_escape -= start
            if self._over:
                self._buffer.clear()

    def _next_line(self, start: int, *, last: bool) -> tuple[bytes, int] | None:
        """The next line without its end, and where the one behind it begins.  CopyReadLineText"""
        buffer, size = self._buffer, len(self._buffer)
        position = max(start, self._scanned)
        search = self._special.search
        while (match := search(buffer, position)) is not None:
            position = match.start()
            mark = buffer[position : position + 1]
            if self._csv and mark not in b"\r\n":
                self._in_csv(mark, position)
                position += 1
                continue
            if self._csv and self._quoted:
                position += 1
                continue
            if mark == b"\\":
                if position + 1 == size:
                    break  # what it stands before has not come
                position += 2
                continue
            if mark == b"\r" and position + 1 == size and not last:
                break  # it may be the first half of an end of line
            end = b"\r\n" if mark == b"\r" and buffer[position + 1 : position + 2] == b"\n" else bytes(mark)
            if self._end_of_line not in (b"", end):
                if not (end == b"\r\n" and self._end_of_line == b"\r"):
                    self._line += 1
                    raise self._wrong("ends in another way than those before it, or has an end of line in a value")
                end = b"\r"
            self._end_of_line = end
            self._scanned = position + len(end)
            return bytes(buffer[start:position]), self._scanned
        else:
            position = size
        self._scanned = position
        if size - start > self._largest:
            raise Refusal(
                "WP-03", f"a row of the COPY is longer than the {self._largest} bytes that this proxy accepts",
                sqlstate="54000", hint="Send long values as parameters of an INSERT.",
            )  # fmt: skip
        if not last or size == start:
            return None
        self._scanned = size
        return bytes(buffer[start:size]), size

    def _in_csv(self, mark: bytes | bytearray, position: int) -> None:
        """Follow quotes: an escape counts in a quoted field only, and not behind another."""
        separate = self._escape != self._quote
        if self._escaped and position != self._after_escape:
            self._escaped = False
        if separate and mark == self._escape:
            self._escaped = self._quoted and not self._escaped
            self._after_escape = position + 1
            return
        if not self._escaped:
            self._quoted = not self._quoted
        self._escaped = False

    def _row(self, line: bytes) -> Row | None:
        header, self._header = self._header, False
        if header is True:
            return None
        values = self._csv_values(line) if self._csv else self._text_values(line)
        if header == "match":
            if values != [name.encode() for name in self._columns]:
                raise _wrong_header()
            return None
        if len(values) != len(self._columns):
            raise self._wrong(f"has {len(values)} values for {len(self._columns)} columns")
        for number in self._forced:
            if values[number] is None and number in self._to_text:
                values[number] = self._null
            elif values[number] == self._null and number in self._to_null:
                values[number] = None
        return values

    def _text_values(self, line: bytes) -> Row:
        """CopyReadAttributesText"""
        parts = line.split(self._delimiter)
        if b"\\" not in line:
            null = self._null
            return [None if part == null else part for part in parts]
        values: Row = []
        held: list[bytes] = []
        for part in parts:
            held.append(part)
            if _ends_escaping(part):
                continue  # the delimiter behind it belongs to the value
            values.append(self._text_value(self._delimiter.join(held)))
            held = []
        if held:  # a backslash at the very end stands for nothing
            values.append(self._text_value(self._delimiter.join(held)[:-1]))
        return values

    def _text_value(self, written: bytes) -> bytes | None:
        if written == self._null:
            return None
        if b"\\" not in written:
            return written
        if b"\\." in written and any(escape[1] == b"." for escape in _ESCAPE.finditer(written)):
            raise self._wrong("has an end-of-copy marker that is not alone on its line")
        return _ESCAPE.sub(_unescaped, written)

    def _csv_values(self, line: bytes) -> Row:
        """CopyReadAttributesCSV"""
        delimiter, quote, escape, null = self._delimiter, self._quote, self._escape, self._null
        if quote not in line:
            return [None if part == null else part for part in line.split(delimiter)]
        values: Row = []
        position, size = 0, len(line)
        while True:
            value, was_quoted, start = bytearray(), False, position
            while True:
                # outside of quotes
                ends = line.find(delimiter, position)
                ends = size if ends < 0 else ends
                opens = line.find(quote, position, ends)
                if opens < 0:
                    value += line[position:ends]
                    break
                value += line[position:opens]
                was_quoted = True
                position = opens + 1
                # within quotes
                while True:
                    closes = line.find(quote, position)
                    escapes = line.find(escape, position, closes + 1 if closes >= 0 else size)
                    if escapes >= 0 and line[escapes + 1 : escapes + 2] in (quote, escape):
                        value += line[position:escapes] + line[escapes + 1 : escapes + 2]
                        position = escapes + 2
                    elif 0 <= escapes < closes:
                        value += line[position : escapes + 1]
                        position = escapes + 1
                    elif closes < 0:
                        raise self._wrong("has a quoted value without its end")
                    else:
                        value += line[position:closes]
                        position = closes + 1
                        break
            values.append(None if not was_quoted and line[start:ends] == null else bytes(value))
            if ends == size:
                return values
            position = ends + 1

    def _wrong(self, what: str) -> Refusal:
        return _wrong(f"Row {self._line} of the COPY {what}.")


class _Binary(Reader):
    """Rows in binary format."""

    def __init__(self, columns: int, largest: int) -> None:
        self._columns = columns
        self._largest = largest
        self._buffer = bytearray()
        self._begun = False
        self._over = False
        self._row_number = 0

    def feed(self, data: bytes) -> Iterator[Row]:
        if not data:
            return
        if self._over:
            raise _wrong("Data follow the end of the COPY.")
        self._buffer += data
        if not self._begun and not self._header():
            return
        start = 0
        try:
            while (found := self._next_row(start)) is not None:
                row, start = found
                if row is None:
                    if len(self._buffer) > start:
                        raise _wrong("Data follow the end of the COPY.")
                    return
                yield row
        finally:
            del self._buffer[:start]

    def end(self) -> Iterator[Row]:
        if not self._begun:
            raise _wrong("The header of the binary COPY is missing or wrong.")
        if self._buffer:
            raise _wrong(f"Row {self._row_number + 1} of the COPY is not whole.")
        return iter(())

    def _header(self) -> bool:
        """True once the whole header has come, and gone."""
        buffer = self._buffer
        if not _SIGNATURE.startswith(bytes(buffer[: len(_SIGNATURE)])):
            raise _wrong("The header of the binary COPY is missing or wrong.")
        if len(buffer) < len(_SIGNATURE) + 8:
            return False
        flags, extension = struct.unpack_from("!Ii", buffer, len(_SIGNATURE))
        if flags >> 16 or extension < 0:
            raise _wrong("The header of the binary COPY has flags that are not known, or a wrong length.")
        self._check(extension)
        whole = len(_SIGNATURE) + 8 + extension
        if len(buffer) < whole:
            return False
        del buffer[:whole]
        self._begun = True
        return True

    def _next_row(self, start: int) -> tuple[Row | None, int] | None:
        """The next row, None for the trailer, and where the one behind it begins; None if it is not whole."""
        buffer, size = self._buffer, len(self._buffer)
        if size - start < 2:
            return None
        (count,) = struct.unpack_from("!h", buffer, start)
        if count == -1:
            self._over = True
            return None, start + 2
        if count != self._columns:
            raise _wrong(f"Row {self._row_number + 1} of the COPY has {count} values for {self._columns} columns.")
        position = start + 2
        row: Row = []
        for _ in range(count):
            if size - position < 4:
                self._check(size - start)
                return None
            (length,) = struct.unpack_from("!i", buffer, position)
            position += 4
            if length == -1:
                row.append(None)
                continue
            if length < 0:
                raise _wrong(f"Row {self._row_number + 1} of the COPY has a value of a wrong length.")
            self._check(position + length - start)
            if size - position < length:
                return None
            row.append(bytes(buffer[position : position + length]))
            position += length
        self._row_number += 1
        return row, position

    def _check(self, size: int) -> None:
        if size > self._largest:
            raise Refusal(
                "WP-03", f"a row of the COPY is longer than the {self._largest} bytes that this proxy accepts",
                sqlstate="54000", hint="Send long values as parameters of an INSERT.",
            )  # fmt: skip


def _numbers(names: Sequence[str] | None, columns: Sequence[str]) -> frozenset[int]:
    return frozenset(range(len(columns)) if names is None else map(columns.index, names))


def _ends_escaping(part: bytes) -> bool:
    """The last byte is a backslash that none before it escapes."""
    return bool((len(part) - len(part.rstrip(b"\\"))) % 2)


def _unescaped(match: re.Match[bytes]) -> bytes:
    written = match[1]
    if written[0] in _OCTAL:
        return bytes([int(written, 8) & 0xFF])
    if len(written) > 1:
        return bytes([int(written[1:], 16)])
    return _CONTROLS.get(written, written)


def _wrong_header() -> Refusal:
    return Refusal(
        "ST-01", "The header of the COPY does not name the columns of the statement.", sqlstate="22P04",
        hint="Name the columns in the statement, in the order in which the rows have them.",
    )  # fmt: skip


def _wrong(sentence: str) -> Refusal:
    return Refusal("ST-01", sentence, sqlstate="22P04", hint="Correct the data and send them again.")
