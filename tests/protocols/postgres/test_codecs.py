import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.controls import Refusal
from grille.protocols.postgres.codecs import (
    BOOL,
    BPCHAR,
    INT2,
    INT4,
    INT8,
    NAME,
    NUMERIC,
    TEXT_LIKE,
    TEXT_OID,
    UNKNOWN,
    VARCHAR,
    format_at,
    from_text,
    to_text,
)
from grille.protocols.postgres.messages import BINARY, TEXT


@pytest.mark.parametrize(
    ("oid", "text", "binary"),
    [
        (TEXT_OID, "é", b"\xc3\xa9"),
        (VARCHAR, "", b""),
        (BPCHAR, "ab ", b"ab "),
        (NAME, "n", b"n"),
        (UNKNOWN, "?", b"?"),
        (INT2, "-2", b"\xff\xfe"),
        (INT4, "258", b"\0\0\1\2"),
        (INT8, "-9223372036854775808", b"\x80" + bytes(7)),
        (BOOL, "t", b"\1"),
        (BOOL, "f", b"\0"),
    ],
)
def test_text_and_binary_of_the_closed_list(oid: int, text: str, binary: bytes) -> None:
    assert to_text(binary, oid, BINARY) == text
    assert from_text(text, oid, BINARY) == binary
    assert to_text(text.encode(), oid, TEXT) == text
    assert from_text(text, oid, TEXT) == text.encode()


@pytest.mark.parametrize("oid", [NUMERIC, 17, 114, 3802, 1082, 1184, 2950, 1009, 0, 99999])
def test_every_other_type_is_text_only(oid: int) -> None:
    assert to_text(b"12.50", oid, TEXT) == "12.50"
    assert from_text("12.50", oid, TEXT) == b"12.50"
    for attempt in (lambda: to_text(b"\0\2\0\0", oid, BINARY), lambda: from_text("12.50", oid, BINARY)):
        with pytest.raises(Refusal) as caught:
            attempt()
        assert (caught.value.sqlstate, caught.value.control) == ("0A000", "AC-05")


@pytest.mark.parametrize(
    ("value", "oid", "code", "sqlstate"),
    [
        (b"\xff", TEXT_OID, TEXT, "22021"),
        (b"\xff", TEXT_OID, BINARY, "22021"),
        (b"a\0b", TEXT_OID, BINARY, "22021"),
        (b"a\0b", NUMERIC, TEXT, "22021"),
        (b"\0", INT2, BINARY, "22P03"),
        (b"\0\0\0\0\0", INT4, BINARY, "22P03"),
        (b"", INT8, BINARY, "22P03"),
        (b"", BOOL, BINARY, "22P03"),
        (b"\1\1", BOOL, BINARY, "22P03"),
        (b"x", TEXT_OID, 2, "0A000"),
    ],
)
def test_malformed_values_are_refused(value: bytes, oid: int, code: int, sqlstate: str) -> None:
    with pytest.raises(Refusal) as caught:
        to_text(value, oid, code)
    assert caught.value.sqlstate == sqlstate


@pytest.mark.parametrize(
    ("text", "oid", "code", "sqlstate"),
    [
        ("a\0", TEXT_OID, TEXT, "22021"),
        ("\ud800", TEXT_OID, TEXT, "22021"),
        ("x", INT4, BINARY, "22P02"),
        ("", INT4, BINARY, "22P02"),
        ("1_0", INT4, BINARY, "22P02"),
        ("\u0661", INT4, BINARY, "22P02"),
        ("9" * 5000, INT8, BINARY, "22P02"),
        ("32768", INT2, BINARY, "22003"),
        ("-2147483649", INT4, BINARY, "22003"),
        ("maybe", BOOL, BINARY, "22P02"),
        ("o", BOOL, BINARY, "22P02"),
        ("x", TEXT_OID, 2, "0A000"),
    ],
)
def test_text_that_is_not_of_the_type_is_refused(text: str, oid: int, code: int, sqlstate: str) -> None:
    with pytest.raises(Refusal) as caught:
        from_text(text, oid, code)
    assert caught.value.sqlstate == sqlstate


@pytest.mark.parametrize("word", ["t", "TRUE", " yes ", "on", "1"])
def test_booleans_are_read_as_the_server_reads_them(word: str) -> None:
    assert from_text(word, BOOL, BINARY) == b"\1"


def test_any_other_byte_is_true() -> None:
    assert to_text(b"\x02", BOOL, BINARY) == "t"


@pytest.mark.parametrize(
    ("formats", "expected"), [((), [0, 0, 0]), ((1,), [1, 1, 1]), ((0, 1, 0), [0, 1, 0])]
)  # fmt: skip
def test_format_codes_none_one_or_one_each(formats: tuple[int, ...], expected: list[int]) -> None:
    assert [format_at(formats, index) for index in range(3)] == expected


@given(st.text(max_size=50), st.sampled_from(sorted(TEXT_LIKE)), st.sampled_from([TEXT, BINARY]))
def test_any_text_survives_or_is_refused(text: str, oid: int, code: int) -> None:
    try:
        value = from_text(text, oid, code)
    except Refusal:
        assert "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)
        return
    assert to_text(value, oid, code) == text


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_integer_survives(number: int) -> None:
    assert to_text(from_text(str(number), INT8, BINARY), INT8, BINARY) == str(number)


@given(st.binary(max_size=20), st.integers(0, 2000), st.integers(-1, 3))
def test_garbage_is_text_or_refused(value: bytes, oid: int, code: int) -> None:
    try:
        assert isinstance(to_text(value, oid, code), str)
    except Refusal as refusal:
        assert refusal.sqlstate in ("22021", "22P03", "0A000")  # noqa: PT017
