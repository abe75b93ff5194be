"""A server's position is told only where it can mean nothing but a token that the agent wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.protocols.postgres.positions import MAX_CHARACTERS, traced

SENT = "SELECT lower(t.name), 'ä'::int FROM (SELECT name FROM public.t WHERE branch = $1) t"


@pytest.mark.parametrize(
    ("word", "own", "expected"),
    [
        ("'ä'", "select 'ü', lower( name ), 'ä'::int from t", "'ä'"),
        ("lower", "SELECT 'ö' x, LOWER(name) FROM t", "LOWER"),
        ("lower", 'SELECT "lower"(name) FROM t', '"lower"'),
        ("name", "SELECT lower(name), 'ä'::int FROM t", None),  # twice in what was sent
        ("lower", "SELECT lower(lower(name)) FROM t", None),  # twice in the agent's own
        ("branch", "SELECT lower(name) FROM t", None),  # the policy's
        ("'ä'", "SELECT 'Ä'::int", None),
        ("ower", "SELECT lower(name)", None),  # no token begins there
        ("lower", "SELECT lower('", None),  # not a text that the scanner takes
        ("lower", "SELECT lower" + " " * MAX_CHARACTERS, None),
    ],
)
def test_where_a_token_is_traced_to(word: str, own: str, expected: str | None) -> None:
    found = traced(SENT.index(word) + 1, SENT, own)
    assert (None if found is None else own[found - 1 :].startswith(expected or "")) == (True if expected else None)


@given(st.integers(-5, 100), st.text(max_size=40), st.text(max_size=40))
def test_any_texts_and_positions_give_a_place_or_none(position: int, sent: str, own: str) -> None:
    found = traced(position, sent.replace("\0", ""), own.replace("\0", ""))
    assert found is None or 1 <= found <= len(own) + 1
