"""The lexical subset, against the server's own scanner (libpg_query)."""

from __future__ import annotations

import random
import re
from decimal import Decimal

import postgast
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grille.protocols.postgres.lexer import Lexed, tokenize

ATOMS = [
    *(
        "'",
        "''",
        '"',
        '""',
        "a",
        "b1",
        "E",
        "e",
        "U&",
        "x",
        "X",
        "N",
        "B",
        "_",
        "é",
        "select",
        "null",
        "and",
        "in",
        "now",
    ),
    *("$", "$1", "$$", "$a$", "0", "1", "12", "007", "2147483647", "2147483648", "9223372036854775808", "1.5", "1.25"),
    *(".", "..", ".5", "1.", "1e5", "0x1F", "1_000", "0b1", "0o7"),
    *(" ", "  ", "\n", "\t", "\r", "\v", "\f", "\xa0", "\u2028", "\\", "--", "/*", "*/", "\0"),
    *("-", "+", "*", "/", "%", "=", "<", ">", "<=", ">=", "<>", "!=", "||", "->", "->>", "@>", "<@", "~", "::"),
    *(":", ":=", "=>", "!", "@", "#", "^", "&", "|", "`", "?", "(", ")", "[", "]", ",", ";", "{", "}"),
    *("'it''s'", "'é'", "'a b'", '"q"', '"Q q"', "'x' ", " = ", " , "),
]


def scanned(text: str) -> list[str] | None:
    """The tokens of PostgreSQL's scanner, or None if it refuses the text."""
    raw = text.encode()
    try:
        return [raw[token.start : token.end].decode() for token in postgast.scan(text).tokens]
    except postgast.PgQueryError:
        return None


def agrees(text: str) -> bool:
    """Assert that an eligible text is cut where PostgreSQL cuts it, as given and as a template; False if it is not."""
    lexed = tokenize(text)
    if lexed is None:
        return False
    assert scanned(text) == list(lexed.tokens), text
    assert scanned(" ".join(lexed.tokens)) == list(lexed.tokens), text
    return True


def test_two_hundred_thousand_hostile_texts_are_cut_as_postgresql_cuts_them() -> None:
    source = random.Random(20261124)
    eligible = 0
    for _ in range(200_000):
        glue = source.choice(("", "", " "))
        eligible += agrees(glue.join(source.choices(ATOMS, k=source.randint(1, 10))))
    assert eligible > 10_000


@settings(max_examples=1500, deadline=None)
@given(st.text(alphabet=st.sampled_from("'\"aEU_$1.-/*+=<>|&:\\ \n,;()é\v"), max_size=24))
def test_any_text_over_the_awkward_characters_is_cut_as_postgresql_cuts_it(text: str) -> None:
    agrees(text)


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_a_value_cannot_become_structure(value: str) -> None:
    quoted = value.replace("'", "''")
    lexed = tokenize(f"SELECT a FROM t WHERE b = '{quoted}' AND c = 5")
    if lexed is None:
        assert re.search(r"[\\$]|--|/\*", value)
        return
    assert lexed.key == "SELECT a FROM t WHERE b = $s AND c = $4"
    assert lexed.constants[0].value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "SELECT 1 -- x",
        "SELECT 1 /* x */",
        "SELECT 'a--b'",
        "SELECT '/*'",
        "SELECT $1",
        "SELECT '$'",
        "SELECT $$a$$",
        "SELECT '\\'",
        "SELECT E'a'",
        "SELECT B'1'",
        "SELECT X'1'",
        "SELECT N'a'",
        "SELECT U&'a'",
        'SELECT U&"a"',
        "SELECT _'a'",
        "SELECT 1'a'",
        "SELECT 'a''b",
        "SELECT 'a' 'b'",
        "SELECT 'a'\n'b'",
        "SELECT 'a''b''",
        "SELECT a&'b'",
        'SELECT "a""b"',
        'SELECT ""',
        'SELECT "a',
        'SELECT "é"',
        "SELECT é",
        "SELECT 1e5",
        "SELECT 1.",
        "SELECT .5",
        "SELECT 1.5.2",
        "SELECT 1_000",
        "SELECT 0x1F",
        "SELECT 1a",
        "SELECT a[1:2]",
        "SELECT 1..2",
        "SELECT a..b",
        "SELECT a=-1",
        "SELECT a*-1",
        "SELECT a ? 'b'",
        "SELECT a := 1",
        "SELECT a\vb",
        "SELECT a\xa0b",
        "SELECT 1\0",
        "SELECT '\ud800'",
        "SELECT " + "a" * 64,
        "SELECT " + "1" * 1001,
    ],
)
def test_outside_the_subset(text: str) -> None:
    assert tokenize(text) is None


def test_bytes_must_be_utf_8() -> None:
    assert tokenize(b"SELECT '\xff'") is None
    assert tokenize("SELECT 'é'".encode()) == tokenize("SELECT 'é'")


@pytest.mark.parametrize(
    ("literal", "kind", "type_oid"),
    [
        ("'x'", "STR", 0),
        ("''", "STR", 0),
        ("0", "INT4", 23),
        ("007", "INT4", 23),
        ("2147483647", "INT4", 23),
        ("2147483648", "INT8", 20),
        ("0000000000000000000000000001", "INT4", 23),
        ("9223372036854775807", "INT8", 20),
        ("9223372036854775808", "NUM", 1700),
        ("1.0", "NUM", 1700),
        ("1" * 1000, "NUM", 1700),
    ],
)
def test_the_class_of_a_constant(literal: str, kind: str, type_oid: int) -> None:
    lexed = tokenize(f"SELECT {literal}")
    assert lexed is not None
    (constant,) = lexed.constants
    assert (constant.kind, constant.type_oid, constant.token) == (kind, type_oid, 1)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 70) | st.decimals(0, 10**9, places=3, allow_nan=False))
def test_the_class_of_a_number_is_the_parsers(value: int | Decimal) -> None:
    lexed = tokenize(f"SELECT {value}")
    assert lexed is not None
    constant = postgast.parse(f"SELECT {value}").stmts[0].stmt.select_stmt.target_list[0].res_target.val.a_const
    is_int4 = constant.WhichOneof("val") == "ival"
    assert (lexed.constants[0].kind == "INT4") == is_int4


def test_the_key_holds_everything_but_white_space_and_values() -> None:
    def key(text: str) -> str:
        lexed = tokenize(text)
        assert lexed is not None
        return lexed.key

    base = key("SELECT a FROM t WHERE b = 'x' AND c = 5")
    assert base == key("SELECT  a\nFROM t WHERE b='y' AND c = 77 ")
    for other in (
        "SELECT a FROM t WHERE b = 'x' AND c = 5.0",
        "SELECT a FROM t WHERE b = 'x' AND c = 3000000000",
        "SELECT a FROM t WHERE b = 'x' AND c = '5'",
        "SELECT a FROM t WHERE B = 'x' AND c = 5",
        "SELECT a FROM t WHERE \"b\" = 'x' AND c = 5",
        "SELECT a FROM t WHERE b = 'x' AND c = - 5",
        "SELECT a FROM t WHERE b = 'x' AND c = 5;",
    ):
        assert key(other) != base


def test_render_numbers_the_parameters_and_keeps_the_rest() -> None:
    lexed = tokenize("SELECT a, 7 FROM t WHERE b='it''s' AND c IN (1,2) LIMIT 10")
    assert lexed is not None
    assert [c.value for c in lexed.constants] == ["7", "it's", "1", "2", "10"]
    template, kept, taken = lexed.render(frozenset({1, 2, 3}))
    assert template == "SELECT a , 7 FROM t WHERE b = $1 AND c IN ( $2 , $3 ) LIMIT 10"
    assert kept == ("7", "10")
    assert [c.value for c in taken] == ["it's", "1", "2"]
    assert lexed.render(frozenset())[0] == " ".join(lexed.tokens)


def test_offsets_are_the_parsers_bytes() -> None:
    text = "SELECT 'é' AS x, 'ü€' AS y, 12 AS z"
    lexed = tokenize(text)
    assert isinstance(lexed, Lexed)
    targets = postgast.parse(text).stmts[0].stmt.select_stmt.target_list
    assert [c.offset for c in lexed.constants] == [t.res_target.val.a_const.location for t in targets]


def test_a_long_text_takes_linear_time() -> None:
    for text in ("SELECT '" + "''" * 200_000, "SELECT a" + " " * 200_000 + "'", "(" * 200_000, "a." * 100_000):
        tokenize(text)


def test_the_place_of_a_template_s_token_in_its_text() -> None:
    text = "SELECT  'ä  b',\n  c   FROM t WHERE  d = 12345 AND\te = 'ö'  AND f"
    lexed = tokenize(text)
    assert lexed is not None
    positions = frozenset({1, 2})
    template, _, _ = lexed.render(positions)
    for word in ("SELECT", "'ä  b'", "c", "FROM", "d", "AND", "e", "f"):
        offset = len(
            template[
                : template.index(f" {word} ") + 1 if word not in ("SELECT", "f") else template.rindex(word)
            ].encode()
        )
        origin = len(text.encode()[: lexed.origin(text, positions, offset)].decode())
        assert text[origin:].startswith(word), word
    assert lexed.origin(text, positions, 10_000) == 0
