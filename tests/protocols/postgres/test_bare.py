"""Trees without their positions: the bytes against the message with every position cleared by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
from postgast import PgQueryError, parse

from grille.protocols.postgres.bare import POSITIONS, bare
from grille.protocols.postgres.tree import parsed, same_tree, walk
from tests.differential.generator import script

TEXTS = [
    "SELECT 1",
    "SELECT a.x, count(*) FROM t a JOIN u b USING (id) WHERE a.x = 'abc' AND b.y IN (1, 2, 3) GROUP BY 1 LIMIT 5",
    "WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT r.a + 1 FROM r) SELECT * FROM r, LATERAL (SELECT r.a) q",
    "INSERT INTO t (a, b) VALUES (1, DEFAULT), (2, 'x') ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING *",
    "UPDATE t SET a = CASE WHEN b THEN 1.5 ELSE -2 END WHERE c = ARRAY[1, 2] OR d BETWEEN 1 AND 2",
    "CREATE TABLE t (a int PRIMARY KEY, b numeric(10, 2) CHECK (b > 0), FOREIGN KEY (a) REFERENCES u)",
    "SELECT x'1f', b'101', 1e10, NULL, true, 'a' COLLATE \"C\", interval '1' day, $1::int[]",
    "COPY (SELECT 1) TO STDOUT WITH (FORMAT csv, NULL 'x')",
    "SELECT " + " + ".join(str(n) for n in range(20)),
    "SELECT '" + "x" * 70_000 + "' AS " + "y" * 60,
    "; ;SELECT 1;;",
    "",
]


def cleared(message: Any) -> bytes:
    """The message without positions, as protobuf itself writes it."""
    copy = type(message)()
    copy.CopyFrom(message)
    for part in walk(copy):
        for field, _ in part.ListFields():
            if field.name in POSITIONS:
                part.ClearField(field.name)
    return bytes(copy.SerializeToString())


def spaced(text: str, chance: random.Random) -> str:
    """The same tokens elsewhere."""
    return "".join(letter if letter != " " else " " * chance.randrange(1, 200) for letter in text)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_positions_are_cut_and_nothing_else(text: str) -> None:
    whole = parse(text)
    assert bare(whole) == cleared(whole)
    assert type(whole).FromString(bare(whole)).SerializeToString() == bare(whole)
    for part in walk(whole):
        assert bare(part) == cleared(part)
    if " " in text:
        moved = parse("\n\n" + spaced(text, random.Random(5)))
        assert same_tree(whole, moved)
        assert whole != moved


@pytest.mark.parametrize("seed", range(40))
def test_generated_statements(seed: int) -> None:
    for statement in (each.sql for number in range(0, 80, 8) for each in script(seed, number).statements):
        try:
            whole = parse(statement)
        except PgQueryError:  # it is meant to fail
            continue
        assert bare(whole) == cleared(whole)
        assert same_tree(whole, parse(f"  {statement}"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT 1", "SELECT 2"), ("SELECT a", "SELECT b"), ("SELECT a", "SELECT a a"), ("SELECT 1", "SELECT '1'"),
        ("SELECT 1", "SELECT 1; SELECT 1"), ("SELECT a.b", "SELECT b.a"), ("SELECT NULL", "SELECT"),
    ],
)  # fmt: skip
def test_different_trees_differ(one: str, other: str) -> None:
    assert not same_tree(parse(one), parse(other))


def test_what_was_parsed_is_the_caller_s_own() -> None:
    first = parsed("SELECT 1 AS one")
    first.stmts[0].stmt.select_stmt.target_list[0].res_target.name = "two"
    assert parsed("SELECT 1 AS one").stmts[0].stmt.select_stmt.target_list[0].res_target.name == "one"
    with pytest.raises(PgQueryError):
        parsed("SELECT FROM WHERE")
