"""The lexical subset, against the server's own scanner (libpg_query)."""

from __future__ import annotations

import random
import re
from decimal import Decimal

import postgast
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grille.protocols.postgres.lexer import Lexed, cut, cut_places, tokenize

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
        ("2147483648.0", "NUM", 1700),
        ("1.0", "NUM", 1700),
        ("1" * 1000, "NUM", 1700),
    ],
)
def test_the_class_of_a_constant(literal: str, kind: str, type_oid: int) -> None:
    lexed = tokenize(f"SELECT {literal}")
    assert lexed is not None
    (constant,) = lexed.constants
    assert (constant.kind, constant.type_oid, constant.token) == (kind, type_oid, 1)


def test_what_the_sign_decides_has_a_class_of_its_own() -> None:
    for digits in ("2147483648", "0002147483648", "9223372036854775808"):
        for before in ("SELECT -", "SELECT - ", "SELECT a - ", "SELECT a -"):
            lexed = tokenize(before + digits)
            assert lexed is not None
            assert lexed.constants[0].kind == "EDGE"
            assert lexed.key.endswith("- $e")
        lexed = tokenize(f"SELECT a - b, {digits}")
        assert lexed is not None
        assert lexed.constants[0].kind != "EDGE"


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


def test_a_sign_goes_with_its_number() -> None:
    text = "UPDATE t SET a = a + -5, b = 'ü' WHERE c = - 6.5 AND d = 7"
    lexed = tokenize(text)
    assert lexed is not None
    every, signed = frozenset({0, 1, 2, 3}), frozenset({0, 2})
    template, kept, taken = lexed.render(every, signed)
    assert template == "UPDATE t SET a = a + $1 , b = $2 WHERE c = $3 AND d = $4"
    assert kept == ()
    assert [(one.value, one.type_oid) for one in taken] == [("-5", 23), ("ü", 0), ("-6.5", 1700), ("7", 23)]
    raw = text.encode()
    assert lexed.signs(text) == {raw.index(b"-5"): 0, raw.index(b"- 6"): 2}
    for word, here in (("SET", "SET"), ("$1", "-5"), (", b", ", b"), ("$2", "'ü"), ("WHERE", "WHERE"), ("$3", "- 6.5"),
                       ("AND", "AND"), ("d =", "d ="), ("$4", "7")):  # fmt: skip
        origin = lexed.origin(text, every, template.index(word), signed)
        assert raw[origin:].decode().startswith(here), word


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


# cut: the constants without the tokens

PLAIN = [
    "0", "1", "007", "12", "2147483647", "2147483648", "999999999999999999", "1.5", "0.250",
    "''", "'x'", "'a b'", "'0042'", "'(1'",
    "');'", "' OR 1 = 1 ;'", "'\"'", "'\"q\"'", "'a,b'", "'::int'", "'E'", "'x = 1'", "' -'", "'- '", "'*/'", "'/ *'",
    "'&'", "'U&'", "'now'", "'null'", "'%'", "'[1]'", "'.'", "'..'", "'1e5'", "'?'", "'@'", "'`'", "'{'", "'~'",
]  # fmt: skip
AROUND = [*ATOMS, *("a = ", "b <", "(", ", ", " ", "\n", "é", "'é'", "'é ", "' ,", " '", "= '", "' ", "x ", "\x0c")]


def same_shape(text: str, other: str) -> bool:
    """Assert that two texts which `cut` takes for one shape have the same tokens but for the constants it cuts, if the
    lexer and `cut_places` accept one of them; False if neither is accepted, or the shapes differ."""
    first, second = cut(text.encode()), cut(other.encode())
    if first is None or second is None or first[:2] != second[:2]:
        return False
    lexed = tokenize(text)
    places = cut_places(text.encode(), lexed) if lexed is not None else None
    if lexed is None or places is None:
        return False
    again = tokenize(other)
    assert again is not None, (text, other)
    assert again.key == lexed.key, (text, other)
    assert scanned(other) == list(again.tokens), other
    assert cut_places(other.encode(), again) == places, (text, other)
    kept = {lexed.constants[place].token for place in places.values()}
    for index, (one, two) in enumerate(zip(lexed.tokens, again.tokens, strict=True)):
        assert index in kept or one == two, (text, other)
    for number, place in places.items():
        assert lexed.tokens[lexed.constants[place].token].encode() == first[2][number]
        assert again.tokens[again.constants[place].token].encode() == second[2][number]
        value = second[2][number].decode()
        assert again.constants[place].value == (value[1:-1] if value[0] == "'" else value)
    return True


def test_texts_of_one_shape_differ_in_their_constants_only() -> None:
    """Hostile surroundings, and every place that `cut` found filled with other constants of the same class."""
    source = random.Random(20261125)
    accepted = 0
    for _ in range(100_000):
        text = source.choice(("", " ")).join(
            source.choice(PLAIN) if source.random() < 0.3 else source.choice(AROUND)
            for _ in range(source.randint(1, 10))
        )
        parts = cut(text.encode())
        if parts is None or not parts[1]:
            continue
        pieces, _classes, constants = parts
        filled = [pieces[0].decode()]
        for constant, piece in zip(constants, pieces[1:], strict=True):
            new = source.choice(PLAIN)
            if (new[0] == "'") != (constant[:1] == b"'"):
                new = constant.decode()
            filled += [new, piece.decode()]
        accepted += same_shape(text, "".join(filled)) + same_shape("".join(filled), text)
    assert accepted > 4_000, accepted


def test_colliding_texts_have_one_structure() -> None:
    """Short texts over the awkward characters, all pairs of those that `cut` takes for the same."""
    source = random.Random(7)
    by_shape: dict[object, set[str]] = {}
    for _ in range(300_000):
        text = "".join(source.choices(" ' 1,=(é\"xE-&;$", k=source.randint(3, 12)))
        parts = cut(text.encode())
        if parts is not None and parts[1]:
            by_shape.setdefault(parts[:2], set()).add(text)
    accepted = 0
    for texts in by_shape.values():
        some = sorted(texts)[:12]
        for text in some:
            for other in some:
                if text != other:
                    accepted += same_shape(text, other)
    assert accepted > 1_000, accepted


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_value_that_is_cut_never_becomes_structure(value: str) -> None:
    quoted = value.replace("'", "''")
    known = cut(b"SELECT a FROM t WHERE b = 'x' AND c = 5")
    parts = cut(f"SELECT a FROM t WHERE b = '{quoted}' AND c = 5".encode())
    assert known is not None
    if parts is not None and parts[:2] == known[:2]:
        assert parts[2] == [f"'{value}'".encode(), b"5"]
        assert not set(value) & set("'\\$")


@pytest.mark.parametrize(
    "text",
    ["SELECT 1 -- x", "SELECT '--'", "SELECT /* 1 */ 2", "SELECT '/*'"],
)
def test_a_comment_is_not_cut(text: str) -> None:
    assert cut(text.encode()) is None


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 'é' , 'x'",  # the first is not cut
        "SELECT E'a' , 'x'", "SELECT a$1 , 'x'", "SELECT 'it''s' , 'x'", "SELECT 1. , .5 , 2", "SELECT a1 , 1a , 1",
        "SELECT 1234567890123456789 , 1", "SELECT x'1' , 1", "SELECT b.1 , 1", "SELECT 1_0 , 1", "SELECT '\\' , 1",
        "SELECT 1.1234567890123456789 , 1", "SELECT 1.5.5 , 1", "SELECT 5/2 , 1", "SELECT 5::int , 1",
    ],
)  # fmt: skip
def test_only_plain_constants_are_cut(text: str) -> None:
    parts = cut(text.encode())
    assert parts is not None
    assert len(parts[2]) == 1, parts


def test_the_class_that_is_cut_is_the_lexers() -> None:
    for digits in (*PLAIN[:9], "4294967295", "000000000000000001", "000002147483648", "100000000000000000"):
        for sign, edge in (("", "INT8"), ("-", "EDGE"), ("- ", "EDGE"), ("a - ", "EDGE")):
            parts, lexed = cut(f"SELECT {sign}{digits}".encode()), tokenize(f"SELECT {sign}{digits}")
            assert parts is not None
            assert lexed is not None
            kinds = {b"4": "INT4", b"8": "INT8", b"n": "NUM", b"e": edge}
            assert kinds[parts[1]] == lexed.constants[0].kind, digits


def test_cut_takes_linear_time() -> None:
    for text in ("SELECT '" + "x" * 400_000, "SELECT 1" + "1" * 400_000, "= '" * 100_000, "(1 " * 100_000):
        cut(text.encode())
