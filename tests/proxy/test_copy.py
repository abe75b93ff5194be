"""COPY as Grille writes it, byte for byte what PostgreSQL writes, and as Grille reads it, value for value."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import psycopg
import pytest

from grille.controls import Refusal
from grille.protocols.postgres import copy_rows
from grille.protocols.postgres.copy import CopyIn, CopyInCommand
from grille.protocols.postgres.framing import Frames
from grille.protocols.postgres.statement import parse_text
from grille.proxy.demo.cluster import Cluster
from tests.fuzz import targets as fuzz

NASTY = [
    "plain", "", " ", "\\", "\\.", "\\N", "a\tb", "a\nb", "a\rb", "\b\f\v", 'say "yes"', "it's", "a,b", "a;b", "NULL",
    "null", "x|y", "größer ✓", "\\x", '"', '""', "a\\b", "tab\\t", ".", "@", "\x01\x7f", "  two  ",
]  # fmt: skip
OPTIONS = [
    "", "(FORMAT text)", "(DELIMITER '|')", "(DELIMITER ';', NULL 'NULL')", "(HEADER)", "(FORMAT text, HEADER true)",
    "(FORMAT csv)", "(FORMAT csv, HEADER)", "(FORMAT csv, DELIMITER ';', NULL 'NULL', HEADER on)",
    "(FORMAT csv, QUOTE '@')", "(FORMAT csv, ESCAPE '\\')", "(FORMAT csv, QUOTE '''', ESCAPE '@')",
    "(FORMAT csv, FORCE_QUOTE *)", "(FORMAT csv, FORCE_QUOTE (b, \"c d\"), HEADER)", "(FORMAT csv, NULL '\\N')",
    "(FORMAT csv, ENCODING 'utf8')", "(FORMAT binary)", "CSV HEADER", "CSV", "BINARY", "DELIMITER AS '|' NULL AS 'x'",
    "WITH CSV QUOTE AS '''' FORCE QUOTE b",
]  # fmt: skip


@pytest.fixture(scope="module")
def connection(server: Cluster) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(server.dsn()) as connection:
        connection.execute(
            'CREATE TEMP TABLE t (a int, b text, "c d" text, e bool, f bytea, g numeric, h float8, i text[])'
        )
        for n, text in enumerate([*NASTY, None]):
            other = NASTY[-n] if text is not None else None
            connection.execute(
                "INSERT INTO t VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    n,
                    text,
                    other,
                    n % 2 > 0 if n % 3 else None,
                    None if n % 4 else b"\0\\'\xff",
                    n / 7,
                    n / 3,
                    [text, "x"],
                ),
            )
        yield connection
        connection.rollback()


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_as_postgresql_does(connection: psycopg.Connection[Any], options: str) -> None:
    for query in ("SELECT * FROM t ORDER BY a", "SELECT b FROM t ORDER BY a", "SELECT a, e FROM t WHERE false"):
        used = options if "b," in query or "*" in query else options.replace('(b, "c d")', "(b)")
        if "FORCE" in used and "b" not in query and "*" not in query:
            continue
        sql = f"COPY ({query}) TO STDOUT {used}"
        with connection.cursor().copy(sql) as copy:  # type: ignore[call-overload]
            expected = list(map(bytes, copy))
        (statement,) = parse_text(sql, limit=10_000)
        assert statement.copy is not None and statement.action == "select"
        result = connection.pgconn.exec_params(query.encode(), None, result_format=int(statement.copy.binary))
        names = tuple((result.fname(n) or b"").decode() for n in range(result.nfields))
        copied = msgspec.structs.replace(statement.copy, names=names)
        sent = copied.begin()
        for row in range(result.ntuples):
            sent += copied.row([result.get_value(row, column) for column in range(result.nfields)], first=row == 0)
        framer = Frames(dict.fromkeys(b"Hdc", 1 << 20), peer="backend")
        framer.feed(sent + copied.end(first=not result.ntuples))
        messages = list(framer)
        assert chr(messages[-1][0]) == "c" and chr(messages[0][0]) == "H"
        assert messages[0][1] == bytes([copied.binary]) + len(names).to_bytes(2, "big") + (
            bytes([0, copied.binary]) * len(names)
        )
        assert [payload for kind, payload in messages if chr(kind) == "d"] == expected, sql


@pytest.mark.parametrize(
    ("options", "sqlstate"),
    [
        ("(FORMAT xml)", "22023"), ("(DELIMITER 'ab')", "22023"), ("(DELIMITER '\n')", "22023"),
        ("(DELIMITER 'a')", "22023"), ("(QUOTE '\"')", "22023"), ("(FORMAT csv, QUOTE 'ab')", "22023"),
        ("(FORMAT csv, DELIMITER '\"')", "22023"), ("(FORMAT csv, DELIMITER 'ü')", "22023"),
        ("(FORMAT binary, HEADER)", "22023"), ("(FORMAT csv, FORMAT csv)", "22023"), ("(NULL 'a\nb')", "22023"),
        ("(DELIMITER '|', NULL 'a|b')", "22023"), ("(FORMAT csv, NULL '\"')", "22023"),
        ("(ENCODING 'latin1')", "0A000"), ("(FREEZE)", "0A000"), ("(FORCE_NULL (a))", "0A000"),
        ("(HEADER match)", "0A000"),
    ],
)  # fmt: skip
def test_options_that_are_refused(options: str, sqlstate: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_text(f"COPY (SELECT 1) TO STDOUT {options}", limit=10_000)
    assert caught.value.sqlstate == sqlstate


def test_the_table_form_is_a_query_of_its_own_rows() -> None:
    (named,) = parse_text("COPY public.t (b, a) TO STDOUT", limit=1000)
    (whole,) = parse_text("COPY t TO STDOUT", limit=1000)
    for statement, columns in ((named, ["b", "a"]), (whole, ["*"])):
        select = statement.node.select_stmt
        assert not select.from_clause[0].range_var.inh
        fields = [target.res_target.val.column_ref.fields[0] for target in select.target_list]
        assert [f.string.sval or "*" for f in fields] == columns


@pytest.mark.parametrize("where", ["TO '/tmp/x'", "TO PROGRAM 'cat'", "FROM PROGRAM ''", "FROM '/etc/passwd'"])
def test_what_is_still_refused(where: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_text(f"COPY t {where}", limit=1000)
    assert caught.value.control == "ST-05"


def test_a_statement_that_writes_is_not_copied() -> None:
    for query in itertools.chain(["DELETE FROM t RETURNING a", "INSERT INTO t VALUES (1) RETURNING a"]):
        with pytest.raises(Refusal) as caught:
            parse_text(f"COPY ({query}) TO STDOUT", limit=1000)
        assert caught.value.control == "ST-02"


# COPY FROM STDIN


def read(options: CopyIn, columns: Sequence[str], data: bytes, size: int, version: int) -> list[Any]:
    """The rows of these data, which come in pieces of this size."""
    rows = copy_rows.reader(options, columns, largest=1 << 20, csv_marker=version < 180000)
    found = [row for at in range(0, len(data), size) for row in rows.feed(data[at : at + size])]
    return [*found, *rows.end()]


@pytest.mark.parametrize("options", [each for each in OPTIONS if "FORCE" not in each])
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_reads_what_postgresql_writes(connection: psycopg.Connection[Any], options: str, size: int) -> None:
    """Every value that COPY TO writes is read as PostgreSQL reads it, whatever pieces it comes in."""
    connection.execute('CREATE TEMP TABLE IF NOT EXISTS back (a text, b text, "c d" text, f text, g text, i text)')
    for columns in ('a, b, "c d", f, g, i', "b", 'i, b, "c d"'):
        query = f"SELECT {columns} FROM t ORDER BY a"
        with connection.cursor().copy(f"COPY ({query}) TO STDOUT {options}") as copy:  # type: ignore[call-overload]
            data = b"".join(copy)
        sql = f"COPY back ({columns}) FROM STDIN {options}"
        (statement,) = parse_text(sql, limit=10_000)
        command = statement.command
        assert isinstance(command, CopyInCommand)
        found = read(command.options, command.columns, data, size, connection.info.server_version)
        if command.options.binary:
            result = connection.pgconn.exec_params(query.encode(), None, result_format=1)
            wanted = [[result.get_value(row, n) for n in range(result.nfields)] for row in range(result.ntuples)]
        else:
            connection.execute("TRUNCATE back")
            with connection.cursor().copy(sql) as copy:  # type: ignore[call-overload]
                copy.write(data)
            back = connection.execute(f"SELECT {columns} FROM back").fetchall()  # type: ignore[call-overload]
            wanted = [[None if v is None else v.encode() for v in row] for row in back]
        assert found == wanted and len(found) == len(NASTY) + 1


@pytest.mark.parametrize("seed", range(4))
def test_reads_as_postgresql_reads(connection: psycopg.Connection[Any], seed: int) -> None:
    """Bytes of any kind: the same rows, or refused by both."""
    source = random.Random(seed)
    version = connection.info.server_version
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS r (n serial, a text, b text)")
    refused = taken = 0
    for _ in range(400):
        number, *rest = fuzz._rows(source)
        options, data = fuzz.FORMATS[number % len(fuzz.FORMATS)], bytes(rest)
        if options.header is not False and (b"\\." in data or b"\0" in data or not data.isascii() or not data):
            continue  # Grille does not look at what stands in a header that is skipped
        connection.execute("SAVEPOINT s")
        connection.execute("TRUNCATE r")
        wanted: Any = None
        try:
            with connection.cursor().copy(written_out(options)) as copy:  # type: ignore[call-overload]
                copy.write(data)
            wanted = connection.execute("SELECT a, b FROM r ORDER BY n").fetchall()
        except psycopg.Error:
            connection.execute("ROLLBACK TO s")
        found: Any = None
        try:
            rows = read(options, ("a", "b"), data, source.choice((1, 2, 1000)), version)
            found = [tuple(None if v is None else text_of(v) for v in row) for row in rows]
        except (UnicodeDecodeError, Refusal):
            pass
        assert found == wanted, (options, data)
        taken, refused = taken + bool(found), refused + (found is None)
    assert refused > 50 and taken > 5


def text_of(value: bytes) -> str:
    """A value as the server takes it: valid UTF-8 without NUL."""
    return value.replace(b"\0", b"\xff").decode()


def written_out(options: CopyIn) -> str:
    """The COPY with these options."""
    words = [f"FORMAT {options.format}"]
    if not options.binary:
        header = "match" if options.header == "match" else str(options.header).lower()
        words += [f"DELIMITER '{options.delimiter}'", f"NULL '{options.null}'", f"HEADER {header}"]
    if options.format == "csv":
        quote, escape = options.quote.replace("'", "''"), options.escape.replace("'", "''")
        words += [f"QUOTE '{quote}'", f"ESCAPE '{escape}'"]
        for name in ("force_null", "force_not_null"):
            columns = getattr(options, name)
            words += [f"{name} ({', '.join(columns)})"] if columns else []
    return f"COPY r (a, b) FROM STDIN ({', '.join(words)})"
