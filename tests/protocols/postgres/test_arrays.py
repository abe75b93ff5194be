"""Arrays of text, held to what a real server reads and writes."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grille.protocols.postgres.arrays import ArrayError, read, write
from grille.proxy.demo.cluster import Cluster

TEXTS = st.text(alphabet="abcNULnul \\\",{}\t\n'\xe9\u4e2d[]=:1", max_size=6)
ELEMENTS = st.lists(st.none() | TEXTS, max_size=5)
HEAD = bytes.fromhex("00000001 00000000 00000019 00000002 00000001")
SERVER = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def server(pg18: Cluster) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        yield connection


def encoded(elements: list[str | None]) -> list[bytes | None]:
    return [each.encode() if each is not None else None for each in elements]


def as_text(connection: psycopg.Connection[tuple[object, ...]], data: bytes, code: int) -> list[str | None] | None:
    """What the server makes of a bound array; None: it refuses, or has another number of dimensions than one."""
    result = connection.pgconn.exec_params(
        b"SELECT e FROM (SELECT $1::text[] AS a) x, unnest(a) WITH ORDINALITY AS u(e, n) "
        b"WHERE coalesce(array_ndims(a), 1) = 1 ORDER BY n", [data], [1009], [code],
    )  # fmt: skip
    if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
        return None
    values = [result.get_value(row, 0) for row in range(result.ntuples)]
    return [value.decode() if value is not None else None for value in values]


@given(ELEMENTS)
def test_what_is_written_is_read(elements: list[str | None]) -> None:
    for binary in (False, True):
        written = write(encoded(elements), binary=binary)
        assert read(written, binary=binary) == encoded(elements)


@SERVER
@given(elements=ELEMENTS)
def test_the_server_reads_what_is_written(
    server: psycopg.Connection[tuple[object, ...]], elements: list[str | None]
) -> None:
    for binary in (False, True):
        assert as_text(server, write(encoded(elements), binary=binary), int(binary)) == elements


@SERVER
@given(elements=ELEMENTS)
def test_what_the_server_writes_is_read(
    server: psycopg.Connection[tuple[object, ...]], elements: list[str | None]
) -> None:
    for code in (0, 1):
        result = server.pgconn.exec_params(
            b"SELECT $1::text[]", [write(encoded(elements), binary=False)], [1009], [0], code
        )
        told = result.get_value(0, 0)
        assert told is not None
        assert read(told, binary=bool(code)) == encoded(elements)
        if code:
            assert write(encoded(elements), binary=True, like=told) == told


@SERVER
@given(text=st.text(alphabet='aNUL \\",{}\t', max_size=10).map(lambda inner: "{" + inner + "}"))
def test_no_text_is_read_otherwise_than_by_the_server(
    server: psycopg.Connection[tuple[object, ...]], text: str
) -> None:
    theirs = as_text(server, text.encode(), 0)
    try:
        ours = [each.decode() if each is not None else None for each in read(text.encode(), binary=False)]
    except ArrayError:
        assert theirs in (None, []), text  # an empty one of many dimensions, {{},{}}, is none here
    else:
        assert ours == theirs, text


@pytest.mark.parametrize(
    "text",
    ["", "{", "}", "a", "{a", "a}", "{a}}", "{{a}}", "{a,}", "{,a}", "{a,,b}", '{"a}', '{"a"b}', "[1:1]={a}", "{a{}"],
)  # fmt: skip
def test_what_is_no_array_in_text(text: str) -> None:
    with pytest.raises(ArrayError):
        read(text.encode(), binary=False)


def test_what_is_no_array_in_binary() -> None:
    whole = HEAD + bytes.fromhex("00000001 61 ffffffff")
    assert read(whole, binary=True) == [b"a", None]
    for cut in range(len(whole)):
        with pytest.raises(ArrayError):
            read(whole[:cut], binary=True)
    for wrong in (
        whole + b"x", b"\0\0\0\2" + whole[4:], b"\xff" * 4 + whole[4:], whole[:4] + b"\0\0\0\2" + whole[8:],
        whole[:12] + b"\xff" * 4 + whole[16:], whole[:12] + b"\x7f\xff\xff\xff" + whole[16:],
        whole[:12] + b"\0\0\0\0" + whole[16:20], whole[:20] + b"\xff\xff\xff\xfe" + whole[24:],
        HEAD[:12] + b"x", whole[:20] + b"\x7f\xff\xff\xff" + whole[24:],
    ):  # fmt: skip
        with pytest.raises(ArrayError):
            read(wrong, binary=True)
    assert read(bytes.fromhex("00000000 00000000 00000019"), binary=True) == []
