"""Templates: which constants become parameters, and that the tree says the same with them."""

from __future__ import annotations

import random

import pytest

from grille.protocols.postgres.lexer import Lexed, tokenize
from grille.protocols.postgres.statement import same_with_parameters, template_positions


def _lexed(text: str) -> Lexed:
    lexed = tokenize(text)
    assert lexed is not None, text
    return lexed


def template(text: str) -> tuple[str, list[str]]:
    """The template of a text, and the values of its parameters."""
    lexed = _lexed(text)
    positions, signed = template_positions(text, lexed)
    rendered, _kept, taken = lexed.render(positions, signed)
    assert same_with_parameters(text, rendered, lexed, positions, signed)
    return rendered, [constant.value for constant in taken]


@pytest.mark.parametrize(
    ("text", "rendered", "values"),
    [
        # An operand of + - * among bare columns and numbers
        ("UPDATE t SET a = a + 5", "UPDATE t SET a = a + $1", ["5"]),
        ("UPDATE t SET a = a + -5", "UPDATE t SET a = a + $1", ["-5"]),
        ("UPDATE t SET a = a - - 5", "UPDATE t SET a = a - $1", ["-5"]),
        ("UPDATE t SET a=a-5*b", "UPDATE t SET a = a - $1 * b", ["5"]),
        ("UPDATE t SET a = 2 * (t.a - 1.50)", "UPDATE t SET a = $1 * ( t . a - $2 )", ["2", "1.50"]),
        ("UPDATE t SET a = b + 3000000000, c = 'x'", "UPDATE t SET a = b + $1 , c = $2", ["3000000000", "x"]),
        # A direct value, with its sign
        ("UPDATE t SET a = -5 WHERE b = - 6", "UPDATE t SET a = $1 WHERE b = $2", ["-5", "-6"]),
        ("UPDATE t SET a = - - 5 WHERE b = 1", "UPDATE t SET a = - - 5 WHERE b = $1", ["1"]),
        ("SELECT 1 FROM t WHERE a IN (-1, 2) AND b BETWEEN -3 AND 4",
         "SELECT 1 FROM t WHERE a IN ( $1 , $2 ) AND b BETWEEN $3 AND $4", ["-1", "2", "-3", "4"]),
        ("INSERT INTO t VALUES (1, -2, CURRENT_TIMESTAMP)",
         "INSERT INTO t VALUES ( $1 , $2 , CURRENT_TIMESTAMP )", ["1", "-2"]),
        # Numbers that are computed when the statement is planned
        ("UPDATE t SET a = a + 1 * 2", "UPDATE t SET a = a + 1 * 2", []),
        ("UPDATE t SET a = 1 + 2 + a", "UPDATE t SET a = 1 + 2 + a", []),
        ("UPDATE t SET a = a + 1 + 2", "UPDATE t SET a = a + $1 + $2", ["1", "2"]),
        ("INSERT INTO t VALUES (1 + 2)", "INSERT INTO t VALUES ( 1 + 2 )", []),
        # Beside anything else
        *((f"UPDATE t SET a = {source}", f"UPDATE t SET a = {source}", []) for source in (
            "a + '5'", "a / 5", "a % 5", "a || 5", "a + 5 / b", "f ( a ) + 5", "a + 5 :: int8", "a + 5 + NULL",
            "- ( a + 5 )", "a + ( - ( 5 ) ) * f ( 1 )", "CASE WHEN b THEN a + 5 ELSE 0 END", "( a + 5 ) :: int",
            "( SELECT a + 5 )", "a + b [ 1 ] + 5", "( a + 5 , 1 )", "a + 5 > 3", "( b ) . c + 5",
            "a + true", "a + ARRAY [ 5 ]", "+ 5", "+ 5 + a",
        )),
        ("SELECT a + 5 FROM t WHERE a + 6 = 7", "SELECT a + 5 FROM t WHERE a + 6 = 7", []),
        ("DELETE FROM t WHERE a + 6 > b", "DELETE FROM t WHERE a + 6 > b", []),
        # What is of a smaller type with its sign
        *((f"UPDATE t SET a = {source}", f"UPDATE t SET a = {source}", []) for source in (
            "- 2147483648", "a + - 2147483648", "a - 2147483648", "- 9223372036854775808", "a - 9223372036854775808",
        )),
        ("UPDATE t SET a = a + - 2147483649", "UPDATE t SET a = a + $1", ["-2147483649"]),
        ("UPDATE t SET a = a + 2147483648", "UPDATE t SET a = a + $1", ["2147483648"]),
    ],
)  # fmt: skip
def test_what_becomes_a_parameter(text: str, rendered: str, values: list[str]) -> None:
    assert template(text) == (rendered, values)


@pytest.mark.parametrize("sign", ["", "- "])
def test_a_parameter_that_is_not_the_constant_is_noticed(sign: str) -> None:
    text = f"UPDATE t SET a = a + {sign}5 WHERE b = 6"
    lexed = _lexed(text)
    positions, signed = template_positions(text, lexed)
    rendered = lexed.render(positions, signed)[0]
    assert same_with_parameters(text, rendered, lexed, positions, signed)
    other = _lexed(text.replace("5", "7"))
    assert not same_with_parameters(text, rendered, other, positions, signed)
    if sign:
        assert not same_with_parameters(text, rendered, lexed, positions)


NUMBERS = (
    "0", "1", "7", "007", "2147483647", "2147483648", "2147483649", "9223372036854775807", "9223372036854775808",
    "9223372036854775809", "1.5", "2147483648.0", "00000000002147483648",
)  # fmt: skip


def _source(random_: random.Random, depth: int = 0) -> str:
    choice = random_.random()
    if depth > 3 or choice < 0.25:
        return random_.choice(("a", "t.b", '"c"', "?", "?", "- ?", "-?", "- - ?", "f(?)", "'?'", "+ ?", "?::int"))
    if choice < 0.4:
        return f"({_source(random_, depth + 1)})"
    if choice < 0.45:
        return f"- {_source(random_, depth + 1)}"
    operator = random_.choice(("+", "-", "*", " + ", " - ", " * ", " + ", " - ", " / ", " = "))
    return f"{_source(random_, depth + 1)}{operator}{_source(random_, depth + 1)}"


def test_what_becomes_a_parameter_follows_from_the_key() -> None:
    """Texts of one key have one template, whatever their numbers are; with these put back, the tree is the text's."""
    source = random.Random(20261126)
    seen = taken = 0
    for _ in range(1500):
        form = source.choice((
            "UPDATE t SET x = {} WHERE y = {}", "INSERT INTO t VALUES ({}, ?), (?, {})",
            "UPDATE t SET x = {}, z = {}", "SELECT x FROM t WHERE y < {} AND z IN (?, {})",
        ))  # fmt: skip
        form = form.format(_source(source), _source(source))
        by_key: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
        for _ in range(6):
            text = "".join(source.choice(NUMBERS) if part == "?" else part for part in form)
            lexed = tokenize(text)
            if lexed is None:
                continue
            try:
                found = template_positions(text, lexed)
            except Exception as error:
                assert type(error).__name__ == "PgQueryError"  # noqa: PT017
                continue
            seen += 1
            taken += len(found[1])
            assert by_key.setdefault(lexed.key, found) == found, text
            assert same_with_parameters(text, lexed.render(*found)[0], lexed, *found), text
    assert seen > 3000
    assert taken > 500
