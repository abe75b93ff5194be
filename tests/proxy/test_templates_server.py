"""Real servers on what a parameter is worth: a text with its numbers, and its template with these as parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from grille.protocols.postgres.lexer import Constant, tokenize
from grille.protocols.postgres.statement import same_with_parameters, template_positions
from grille.proxy.demo.cluster import Cluster

TYPES = {
    "int2": ("7", "32767", "-32768", "0"),
    "int4": ("7", "2147483647", "-2147483648", "0"),
    "int8": ("7", "9223372036854775807", "-9223372036854775808"),
    "numeric": ("7.25", "-0.00001", "NaN", "99999999999999999999999"),
    "numeric(6,2)": ("7.25", "9999.99", "-9999.99"),
    "float4": ("7.25", "3.4e38", "-1e-40", "Infinity", "NaN"),
    "float8": ("7.25", "1.7e308", "-1e-320", "-Infinity"),
    "date": ("2026-02-28", "5874897-12-31", "infinity"),
    "timestamp": ("2026-02-28 12:00:00", "infinity"),
    "timestamptz": ("2026-02-28 12:00:00+00",),
    "time": ("23:59:59",),
    "interval": ("1 mon 2 days 03:00:00.5", "-178000000 years"),
    "money": ("7.25", "92233720368547758.07"),
    "oid": ("7", "4294967295"),
    "text": ("7",),
    "bool": ("t",),
    "positive": ("7", "2147483647"),
}
"""Column types, and what stands in the column."""

NUMBERS = (
    "0", "1", "- 1", "007", "- 007", "32768", "2147483647", "- 2147483647", "2147483648", "- 2147483648",
    "- 2147483649", "4294967296", "9223372036854775807", "- 9223372036854775807", "9223372036854775808",
    "- 9223372036854775808", "1.5", "- 0.0", "- 1.50", "0.1", "100000000000000000000.5", "1" * 40,
)  # fmt: skip
FORMS = ("c + {0}", "c - {0}", "c * {0}", "{0} - c", "(c - {0}) * {1} + c * {0}", "{0}")
EDGES = ("- 2147483648", "- 9223372036854775808")
"""Behind a minus these are of a smaller type than without it; they are kept."""


class Server:
    """Runs an UPDATE of one row, or of none, and undoes it."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.pgconn = connection.pgconn

    def run(self, text: str, values: Sequence[Constant] | None = None) -> tuple[str, list[bytes | None]]:
        """SQLSTATE, or the command's tag and what is in the column now."""
        self.pgconn.exec_(b"BEGIN")
        if values is None:
            result = self.pgconn.exec_(text.encode())
        else:
            types = [one.type_oid for one in values]
            result = self.pgconn.exec_params(text.encode(), [one.value.encode() for one in values], types)
        code = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE)
        rows = [result.get_value(n, 0) for n in range(result.ntuples)]
        found = (code.decode(), []) if code else ((result.command_status or b"").decode(), rows)
        self.pgconn.exec_(b"ROLLBACK")
        return found

    def generic(self, text: str, values: Sequence[Constant]) -> tuple[str, list[bytes | None]]:
        """`run` as a named statement with one plan for all values."""
        prepared = self.pgconn.prepare(b"generic", text.encode(), [one.type_oid for one in values])
        code = prepared.error_field(psycopg.pq.DiagnosticField.SQLSTATE)
        if code:
            return code.decode(), []
        self.pgconn.exec_(b"BEGIN")
        result = self.pgconn.exec_prepared(b"generic", [one.value.encode() for one in values])
        code = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE)
        rows = [result.get_value(n, 0) for n in range(result.ntuples)]
        found = (code.decode(), []) if code else ((result.command_status or b"").decode(), rows)
        self.pgconn.exec_(b"ROLLBACK")
        self.pgconn.exec_(b"DEALLOCATE generic")
        return found


@pytest.fixture(scope="module")
def database(server: Cluster) -> Iterator[Server]:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE templates")
    with psycopg.connect(server.dsn("templates"), autocommit=True) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute("CREATE DOMAIN positive AS int4 CHECK (VALUE > 0)")
        for number, (name, values) in enumerate(TYPES.items()):
            connection.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY, c {name})")
            for row, value in enumerate(values):
                connection.execute(f"INSERT INTO t{number} VALUES ({row}, '{value}')")
        yield Server(connection)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("DROP DATABASE templates WITH (FORCE)")


def template(text: str) -> tuple[str, list[Constant]]:
    lexed = tokenize(text)
    assert lexed is not None, text
    positions, signed = template_positions(text, lexed)
    rendered, _kept, taken = lexed.render(positions, signed)
    assert same_with_parameters(text, rendered, lexed, positions, signed)
    return rendered, taken


@pytest.mark.parametrize("name", TYPES)
def test_a_number_that_became_a_parameter_computes_what_it_computed(database: Server, name: str) -> None:
    number = list(TYPES).index(name)
    succeeded = failed = 0
    for form, one, row in itertools.product(FORMS, NUMBERS, range(len(TYPES[name]))):
        source = form.format(one, NUMBERS[(NUMBERS.index(one) + row + 1) % len(NUMBERS)])
        text = f"UPDATE t{number} SET c = {source} WHERE id = {row} RETURNING c"
        rendered, values = template(text)
        if not any(edge in source for edge in EDGES):
            assert one.replace(" ", "").lstrip("-") in [value.value.lstrip("-") for value in values], text
        wanted = database.run(text)
        assert database.run(rendered, values) == wanted, (text, rendered)
        assert database.generic(rendered, values) == wanted, (text, rendered)
        succeeded += wanted[0] == "UPDATE 1"
        failed += wanted[0] != "UPDATE 1"
    assert failed or name == "numeric"
    assert succeeded or name in ("text", "bool", "time", "timestamp", "timestamptz")


def test_values_of_an_insert(database: Server) -> None:
    for number, one in itertools.product(range(len(TYPES)), NUMBERS):
        text = f"INSERT INTO t{number} VALUES (100, {one}), (101, {one}) RETURNING c"
        rendered, values = template(text)
        assert len(values) == (2 if one in EDGES else 4), text
        wanted = database.run(text)
        assert database.run(rendered, values) == wanted, text
        assert database.generic(rendered, values) == wanted, text


def test_a_comparison_with_a_signed_number(database: Server) -> None:
    for number, one in itertools.product(range(len(TYPES)), NUMBERS):
        text = f"SELECT c FROM t{number} WHERE c > {one} AND id BETWEEN - 1 AND 100 ORDER BY id"
        rendered, values = template(text)
        wanted = database.run(text)
        assert database.run(rendered, values) == wanted, text
        assert database.generic(rendered, values) == wanted, text
