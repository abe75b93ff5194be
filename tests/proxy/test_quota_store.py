"""The counters that nodes share, in a real Redis or Valkey."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from grille.controls import Refusal
from grille.policies.decision import Limits
from grille.proxy import config, quota_store
from grille.proxy.quota import QuotaReached, Quotas
from grille.proxy.quota_store import StoreCounters
from tests.redis_server import Store, program

AGENT = "spiffe://bank.example/ns/test/sa/agent"
OTHER = "spiffe://bank.example/ns/test/sa/other"
KEY = b"k" * 32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    found = program()
    if found is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    store = Store(found, tmp_path_factory.mktemp("store"))
    store.start()
    yield store
    store.stop()


@pytest.fixture
async def store(server: Store) -> AsyncIterator[Store]:
    yield server
    server.thaw()
    async with Redis.from_url(server.url) as client:
        await client.flushall()


@pytest.fixture
async def nodes(store: Store) -> AsyncIterator[Callable[..., list[StoreCounters]]]:
    made: list[StoreCounters] = []

    def make(count: int, **settings: Any) -> list[StoreCounters]:
        chosen = config.Quotas(store=store.url, **{"store_timeout": 2.0, **settings})
        made.extend(StoreCounters(Quotas(), chosen, KEY) for _ in range(count))
        return made[-count:]

    yield make
    for node in made:
        await node.close()


async def allowed(node: StoreCounters, limit: int, agent: str = AGENT) -> bool:
    try:
        await node.count(agent, Limits(statements_per_minute=limit))
    except QuotaReached as reached:
        if (reached.control, reached.sqlstate, reached.quota) != ("AC-06", "53400", "statements_per_minute"):
            raise
        return False
    return True


async def entered(node: StoreCounters, limit: int, agent: str = AGENT, **more: Any) -> bool:
    try:
        await node.enter(agent, limit, **more)
    except QuotaReached as reached:
        if (reached.sqlstate, reached.quota) != ("53300", "concurrent"):
            raise
        return False
    return True


async def may_read(node: StoreCounters, limit: int, keys: list[bytes], rows: int = 0, agent: str = AGENT) -> bool:
    try:
        await node.read(agent, limit, [key.ljust(8, b".") for key in keys], rows)
    except QuotaReached as reached:
        if (reached.sqlstate, reached.quota) != ("53400", "distinct_keys_per_hour"):
            raise
        return False
    return True


async def settled(*nodes: StoreCounters) -> None:
    """Until nothing is under way in the background."""
    for node in nodes:
        while node._tasks:
            await asyncio.gather(*node._tasks)


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_all_nodes_together_run_exactly_the_limit(nodes: Any, limit: int) -> None:
    first, second, third = nodes(3)
    tried = await asyncio.gather(*(allowed(node, limit) for node in (first, second, third) for _ in range(limit + 20)))
    assert tried.count(True) == limit
    assert await allowed(first, limit, OTHER)


async def test_no_minute_holds_more_and_the_minute_slides(nodes: Any, store: Store) -> None:
    (node,) = nodes(1)
    async with Redis.from_url(store.url) as client:
        name = f"grille:minute:{node._name(AGENT)}"
        now = (await client.time())[0]
        await client.hset(name, mapping={now - 61: 50, now - 58: 2, now - 20: 1})
        with pytest.raises(QuotaReached) as caught:
            await node.count(AGENT, Limits(statements_per_minute=3))
        assert caught.value.hint in ("Try again in 3 seconds.", "Try again in 2 seconds.")
        assert await allowed(node, 4)
        assert not await client.hexists(name, str(now - 61))
        assert 0 < await client.ttl(name) <= 120


async def test_a_statement_that_did_not_run_does_not_count(nodes: Any) -> None:
    first, second = nodes(2)
    counted = await first.count(AGENT, Limits(statements_per_minute=1))
    assert not await allowed(second, 1)
    first.uncount(AGENT, counted)
    await settled(first)
    assert await allowed(second, 1)
    for _ in range(3):
        first.uncount(AGENT, counted)
    await settled(first)
    second.uncount(AGENT, (0, 0))
    assert await allowed(first, 3) and await allowed(second, 3)


async def test_what_the_store_refuses_is_not_counted_on_the_node(nodes: Any) -> None:
    first, second = nodes(2)
    assert await allowed(first, 1)
    for _ in range(50):
        assert not await allowed(second, 1)
    assert second._node._quotas._table.minute(second._node._quotas._agents[AGENT].offset).tolist().count(1) <= 1
    assert [await allowed(second, 10) for _ in range(10)] == [True] * 9 + [False]


async def test_as_many_run_at_the_same_time_as_the_limit(nodes: Any) -> None:
    first, second = nodes(2)
    tried = await asyncio.gather(*(entered(node, 5) for node in (first, second) for _ in range(10)))
    assert tried.count(True) == 5
    assert await entered(first, 1, OTHER)
    for node, number in ((first, tried[:10].count(True)), (second, tried[10:].count(True))):
        for _ in range(number):
            node.leave(AGENT)
    await settled(first, second)
    assert [await entered(second, 5) for _ in range(6)] == [True] * 5 + [False]


async def test_a_session_under_another_limit_is_counted_once(nodes: Any) -> None:
    first, second = nodes(2)
    assert await entered(first, 2)
    assert await entered(second, 2)
    assert not await entered(first, 1, again=True)
    second.leave(AGENT)
    await settled(second)
    assert await entered(first, 1, again=True)
    assert not await entered(second, 1)


async def test_sessions_that_come_and_go_leave_nothing(nodes: Any, store: Store) -> None:
    """Many at once on two nodes: never more than the limit, and the store ends empty."""
    pair = nodes(2)
    running, most, chance = 0, 0, random.Random(3)

    async def session(node: StoreCounters) -> None:
        nonlocal running, most
        for _ in range(20):
            if await entered(node, 4):
                running += 1
                most = max(most, running)
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                running -= 1
                node.leave(AGENT)

    await asyncio.gather(*(session(node) for node in pair for _ in range(8)))
    await settled(*pair)
    assert 1 <= most <= 4
    assert all(node._running == {} for node in pair)
    async with Redis.from_url(store.url) as client:
        assert await client.hgetall(f"grille:run:{pair[0]._name(AGENT)}") == {}


async def test_a_node_that_is_silent_is_taken_for_dead(nodes: Any, store: Store) -> None:
    (node,) = nodes(1)
    async with Redis.from_url(store.url) as client:
        name = f"grille:run:{node._name(AGENT)}"
        now = (await client.time())[0]
        await client.hset(name, mapping={"alive": f"1 {now}", "dead": f"2 {now - quota_store.SILENT_SECONDS - 2}"})
        assert not await entered(node, 1)
        assert await entered(node, 2)
        assert await client.hkeys(name) == [b"alive", node._worker.encode()]


async def test_what_runs_long_is_said_again(nodes: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = nodes(1)
    assert await entered(node, 2)
    async with Redis.from_url(store.url) as client:
        name = f"grille:run:{node._name(AGENT)}"
        await client.hset(name, node._worker, "1 5")
        await node.tick()
        assert await client.hget(name, node._worker) == b"1 5"  # it has just been said
        monkeypatch.setattr(quota_store, "SAY_SECONDS", 0.0)
        await node.tick()
        number, said = (await client.hget(name, node._worker)).split()
        assert number == b"1" and abs(int(said) - time.time()) < 60


async def test_a_worker_that_ends_takes_its_number_with_it(nodes: Any, store: Store) -> None:
    first, second = nodes(2)
    assert await entered(first, 1)
    assert not await entered(second, 1)
    await first.close()
    assert await entered(second, 1)


async def test_different_keys_are_counted_once_on_all_nodes(nodes: Any) -> None:
    first, second = nodes(2)
    assert await may_read(first, 5, [b"1", b"2", b"3"])
    assert await may_read(second, 5, [b"2", b"3", b"4", b"4"])
    assert await may_read(first, 5, [b"1", b"4"])
    assert not await may_read(second, 5, [b"5", b"6"])
    assert await may_read(second, 5, [b"6"])
    assert not await may_read(first, 5, [], rows=1)
    assert await may_read(first, 1, [b"1"], agent=OTHER)


async def test_rows_without_a_key_count_each_time(nodes: Any) -> None:
    first, second = nodes(2)
    assert await may_read(first, 10, [], rows=4)
    assert await may_read(second, 10, [], rows=4)
    assert not await may_read(first, 10, [b"1"], rows=2)
    assert await may_read(first, 10, [b"1"], rows=1)


async def test_the_hour_slides(nodes: Any, store: Store) -> None:
    (node,) = nodes(1)
    async with Redis.from_url(store.url) as client:
        name = node._name(AGENT)
        period = (await client.time())[0] // 300
        await client.zadd(
            f"grille:keys:{name}", {b"old.....": period - 13, b"early...": period - 12, b"late....": period - 1}
        )
        await client.hset(f"grille:rows:{name}", mapping={period - 13: 100, period - 12: 1})
        with pytest.raises(QuotaReached) as caught:
            await node.read(AGENT, 3, [b"new....."], 0)
        assert caught.value.hint == "Ask for fewer rows, or try again in 5 minutes."
        assert await may_read(node, 4, [b"new", b"early"])
        assert await client.zscore(f"grille:keys:{name}", b"early...") == period
        assert await client.zscore(f"grille:keys:{name}", b"old.....") is None
        assert 0 < await client.ttl(f"grille:keys:{name}") <= 14 * 300


async def test_the_store_holds_hashes_only(nodes: Any, store: Store) -> None:
    (node,) = nodes(1)
    key = Quotas(salt=KEY).hash(AGENT, 1, [b"4711-secret"])
    assert await allowed(node, 9) and await entered(node, 9) and await may_read(node, 9, [key])
    node.cut(AGENT, 5)
    await settled(node)
    found = b""
    async with Redis.from_url(store.url) as client:
        for name in await client.keys("*"):
            found += name + await client.dump(name)
    assert b"grille:minute:" in found
    assert b"bank.example" not in found and b"4711" not in found and KEY not in found


async def test_an_agent_that_is_cut_off_is_so_on_every_node(nodes: Any) -> None:
    first, second = nodes(2)
    await second.tick()
    second.new_cuts()
    first.cut(AGENT, 30)
    await settled(first)
    assert not second.new_cuts()
    await second.tick()
    assert second.new_cuts() and not second.new_cuts()
    assert 28 <= second.cut_off(AGENT) <= 31
    assert second.cut_off(OTHER) == 0
    (third,) = nodes(1)
    await third.tick()
    assert third.cut_off(AGENT) > 0
    first.cut(OTHER, 1)
    await settled(first)
    await second.tick()
    assert second.cut_off(OTHER) <= 2


def failed(problems: list[str]) -> Callable[[str], None]:
    return problems.append


async def test_without_the_store_nothing_goes_on(store: Store, nodes: Any) -> None:
    problems: list[str] = []
    settings = config.Quotas(store=store.url, store_timeout=0.1)
    node = StoreCounters(Quotas(), settings, KEY, failed(problems))
    assert await entered(node, 3)
    store.freeze()
    for work in (
        lambda: node.count(AGENT, Limits(statements_per_minute=5)),
        lambda: node.enter(AGENT, 3),
        lambda: node.read(AGENT, 5, [b"1......."], 0),
    ):
        with pytest.raises(Refusal) as caught:
            await work()
        assert (caught.value.control, caught.value.sqlstate) == ("AC-06", "53400")
        assert str(store.port) not in caught.value.message + (caught.value.hint or "")
        assert not isinstance(caught.value, QuotaReached)
    assert problems == ["no answer in time"] == [node.problem]  # asked once, then left alone for a second
    await node.count(AGENT, Limits(rows=5))  # no limit that spans statements
    await node.tick()
    node.leave(AGENT)
    await settled(node)
    store.thaw()
    node._down_until = 0.0
    await node.tick()
    assert node.problem == "" and node._running == {}
    async with Redis.from_url(store.url) as client:
        assert await client.hgetall(f"grille:run:{node._name(AGENT)}") == {}
    await node.close()


async def test_without_the_store_each_node_counts_if_it_is_told_so(store: Store) -> None:
    settings = config.Quotas(store=store.url, store_timeout=0.1, without_store="node")
    pair = [StoreCounters(Quotas(), settings, KEY) for _ in range(2)]
    store.freeze()
    for node in pair:
        assert [await allowed(node, 3) for _ in range(4)] == [True] * 3 + [False]
        assert [await entered(node, 2) for _ in range(3)] == [True, True, False]
        assert [await may_read(node, 2, [bytes([n])]) for n in range(3)] == [True, True, False]
    store.thaw()
    for node in pair:
        node._down_until = 0.0
        await node.tick()
    assert not await entered(pair[0], 4)  # four run, as the store has heard meanwhile
    assert await entered(pair[0], 5)
    for node in pair:
        await node.close()


async def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    node = StoreCounters(Quotas(), config.Quotas(store="redis://127.0.0.1:1/0", store_timeout=0.2), KEY)
    with pytest.raises(Refusal) as caught:
        await node.count(AGENT, Limits(statements_per_minute=5))
    assert "ConnectionError" in (caught.value.detail_for_audit or "")
    await node.close()


async def test_a_password(tmp_path: Path) -> None:
    found = program()
    if found is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    store = Store(found, tmp_path, password="open-sesame")
    store.start()
    try:
        (tmp_path / "password").write_text("open-sesame\nnot this\n")
        for file, fine in ((tmp_path / "password", True), (None, False)):
            settings = config.Quotas(store=store.url, store_timeout=2.0, store_password_file=file)
            node = StoreCounters(Quotas(), settings, KEY)
            if fine:
                assert await allowed(node, 5)
            else:
                with pytest.raises(Refusal) as caught:
                    await node.count(AGENT, Limits(statements_per_minute=5))
                assert "Authentication" in (caught.value.detail_for_audit or "")
            assert "sesame" not in node.problem
            await node.close()
    finally:
        store.stop()


async def test_a_session_that_is_ended_while_it_waits_for_the_store_ends(nodes: Any) -> None:
    (node,) = nodes(1)
    chance = random.Random(7)

    async def session() -> None:
        for _ in range(1000):
            await node.read(AGENT, 10**9, [os.urandom(8)], 1)
            await node.enter(AGENT, 10**6)
            try:
                await node.count(AGENT, Limits(statements_per_minute=10**9))
            finally:
                node.leave(AGENT)

    for _ in range(300):
        task = asyncio.create_task(session())
        for _ in range(chance.randrange(1, 60)):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=10)
        assert done and task.cancelled()
    await settled(node)
    assert node._running == {} and node.problem == ""
