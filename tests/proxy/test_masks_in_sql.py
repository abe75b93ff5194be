"""A mask means the same in the proxy and in SQL."""

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postgast import parse

from grille.protocols.postgres import tree
from grille.protocols.postgres.rewrite import sql_mask
from grille.tokenization.masking import MASKS, TEXT_ONLY, apply

VALUES = [
    None, "", "a", "ab", "1234567", "12345678", "123-45-6789", "4000 1234 5678 9012", "4000123456789012",
    "jane@bank.example", "@x", "x@", "a@b@c", "a\n@b\n", "j@x", "***", "\u00e9\u00e9\u00e9\u00e9wxyz", "\U0001f600x@y",
    "\t\t\t\t\t\t\t\t\t",
]  # fmt: skip


@pytest.fixture(scope="module", params=sorted(TEXT_ONLY))
def in_sql(request, server):
    """A mask, and a function from values to what the server makes of them."""
    statement = parse("SELECT x FROM unnest($1::text[]) WITH ORDINALITY AS t(v, n) ORDER BY n").stmts[0].stmt
    statement.select_stmt.target_list[0].CopyFrom(tree.target(sql_mask(request.param, tree.column("v"))))
    query = tree.text_of(statement).replace("%", "%%").replace("$1", "%s")
    with psycopg.connect(server.dsn(), autocommit=True) as connection:

        def ask(values):
            return [row[0] for row in connection.execute(query, (values,))]

        yield request.param, ask


def test_known_values(in_sql):
    name, ask = in_sql
    assert ask(VALUES) == [apply(name, value) for value in VALUES]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), max_size=50))
def test_any_text(in_sql, values):
    name, ask = in_sql
    assert ask(values) == [apply(name, value) for value in values]


def test_null_is_the_only_mask_that_is_not_text():
    assert set(MASKS) - TEXT_ONLY == {"null"}
