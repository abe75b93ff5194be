"""The counters behind limits that span statements, as several workers of one node use them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from grille.controls import Refusal
from grille.policies.decision import Limits
from grille.proxy import quota
from grille.proxy.quota import HOUR, MINUTE, STEP, QuotaReached, Quotas, Table, create

AGENT = "spiffe://bank.example/ns/test/sa/agent"
OTHER = "spiffe://bank.example/ns/test/sa/other"


class Node:
    """Workers that share counters, and the clock of their machine."""

    def __init__(self, workers: int, keys: int = 10_000) -> None:
        self.seconds = 0.0  # as if the machine had just started
        self.descriptor = create(workers, keys)
        self.tables = [Table(self.descriptor, workers, keys, lambda: self.seconds) for _ in range(workers)]
        self.workers = [Quotas(table, number, b"salt" * 8) for number, table in enumerate(self.tables)]


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(*arguments: int) -> Node:
        made.append(Node(*arguments))
        return made[-1]

    yield make
    for each in made:
        os.close(each.descriptor)


def done(name: str, sqlstate: str, work: Callable[[], object]) -> bool:
    """False if the quota of this name refuses; a refusal for another reason is an error."""
    try:
        work()
    except QuotaReached as reached:
        if (reached.control, reached.sqlstate, reached.quota) != ("AC-06", sqlstate, name):
            raise
        return False
    return True


def allowed(worker: Quotas, limit: int, agent: str = AGENT) -> bool:
    return done("statements_per_minute", "53400", lambda: worker.count(agent, Limits(statements_per_minute=limit)))


@pytest.mark.parametrize("limit", [1, 3, 8, 100, 1000])
def test_two_workers_allow_exactly_the_limit(node: Callable[..., Node], limit: int) -> None:
    workers = node(2).workers
    tried = [allowed(workers[n % 2], limit) for n in range(2 * limit + 100)]
    assert tried.count(True) == limit
    assert allowed(workers[0], limit, OTHER)


def test_one_worker_may_use_all_of_it(node: Callable[..., Node]) -> None:
    first, second = node(2).workers
    assert [allowed(first, 100) for _ in range(101)] == [True] * 100 + [False]
    assert not allowed(second, 100)


def test_no_minute_holds_more_than_the_limit_and_the_minute_slides(node: Callable[..., Node]) -> None:
    """Two workers at random moments: whatever minute is looked at, and nobody waits for longer than it."""
    bank, chance, limit = node(2), random.Random(5), 50
    ran: list[float] = []
    for _ in range(20_000):
        bank.seconds += chance.choice((0.0, 0.01, 0.3, 2.0))
        if chance.random() < 0.1:
            for worker in bank.workers:
                worker.tick()
        if allowed(chance.choice(bank.workers), limit):
            ran.append(bank.seconds)
    for n in range(limit, len(ran)):
        assert ran[n] - ran[n - limit] >= MINUTE
    assert len(ran) >= 0.8 * limit * bank.seconds / (MINUTE + 1)


def test_a_refusal_says_when_to_try_again(node: Callable[..., Node]) -> None:
    bank = node(2)
    worker = bank.workers[0]
    assert allowed(worker, 2)
    bank.seconds = 10.0
    assert allowed(worker, 2)
    bank.seconds = 30.0
    with pytest.raises(QuotaReached) as refused:
        worker.count(AGENT, Limits(statements_per_minute=2))
    assert refused.value.hint == "Try again in 31 seconds."
    bank.seconds = 60.9
    assert not allowed(worker, 2)
    bank.seconds = 61.0
    assert allowed(worker, 2)
    assert not allowed(worker, 2)


def test_what_a_worker_took_and_did_not_use_comes_back(node: Callable[..., Node]) -> None:
    bank = node(2)
    first, second = bank.workers
    assert [allowed(first, 400) for _ in range(20)] == [True] * 20  # and more are leased by now
    bank.seconds = 1.0
    first.tick()
    assert [allowed(second, 400) for _ in range(381)] == [True] * 380 + [False]


def test_a_worker_that_died_costs_no_more_than_its_lease(node: Callable[..., Node]) -> None:
    bank = node(2)
    first, second = bank.workers
    for _ in range(20):
        assert allowed(first, 400)
    bank.tables[0].forget(0)
    left = [allowed(second, 400) for _ in range(400)].count(True)
    assert 380 - quota.MAX_LEASE <= left <= 380


def test_a_statement_that_did_not_run_does_not_count(node: Callable[..., Node]) -> None:
    bank = node(1)
    (worker,) = bank.workers
    limits = Limits(statements_per_minute=1)
    for later in (0.0, 0.5, 5.0, 90.0):
        counted = worker.count(AGENT, limits)
        assert not allowed(worker, 1)
        bank.seconds += later
        worker.uncount(AGENT, counted)
        assert allowed(worker, 1)
        assert not allowed(worker, 1)
        bank.seconds += 61


def test_an_earlier_statement_that_did_not_run_does_not_count(node: Callable[..., Node]) -> None:
    bank = node(1)
    (worker,) = bank.workers
    earlier = worker.count(AGENT, Limits(statements_per_minute=2))
    bank.seconds = 5.0
    assert allowed(worker, 2)
    worker.uncount(AGENT, earlier)
    assert allowed(worker, 2)
    assert not allowed(worker, 2)
    bank.seconds = 100.0
    assert allowed(worker, 2)
    worker.uncount(AGENT, earlier)  # of a minute that is over
    assert allowed(worker, 2)
    assert not allowed(worker, 2)


def test_a_new_limit_holds_at_once(node: Callable[..., Node]) -> None:
    first, second = node(2).workers
    for _ in range(10):
        assert allowed(first, 1000)  # and more are leased
    assert not allowed(first, 10)
    assert not allowed(second, 10)
    assert allowed(first, 11)
    assert not allowed(first, 11)
    assert allowed(second, 1000)


# at the same time


def enters(worker: Quotas, limit: int) -> bool:
    return done("concurrent", "53300", lambda: worker.enter(AGENT, limit))


def test_the_node_runs_as_many_as_the_limit(node: Callable[..., Node]) -> None:
    first, second = node(2).workers
    assert [enters(each, 3) for each in (first, first, second, second, first)] == [True, True, True, False, False]
    second.leave(AGENT)
    assert enters(first, 3)
    assert not enters(second, 3)
    assert first.running(AGENT) == second.running(AGENT) == 3


def test_a_smaller_limit_of_a_later_statement_is_looked_at(node: Callable[..., Node]) -> None:
    first, second = node(2).workers
    assert enters(first, 8)
    assert enters(second, 8)
    first.enter(AGENT, 2, again=True)
    with pytest.raises(QuotaReached):
        first.enter(AGENT, 1, again=True)
    assert first.running(AGENT) == 2


def test_what_a_dead_worker_ran_comes_back(node: Callable[..., Node]) -> None:
    bank = node(2)
    first, second = bank.workers
    for _ in range(3):
        assert enters(first, 4)
    assert enters(second, 4)
    bank.tables[1].forget(0)
    assert second.running(AGENT) == 1
    assert enters(second, 2)
    assert not enters(second, 2)


# keys


def reads(worker: Quotas, limit: int, *keys: int, rows: int = 0, agent: str = AGENT) -> bool:
    hashes = [worker.hash(agent, 1, [str(key).encode()]) for key in keys]
    return done("distinct_keys_per_hour", "53400", lambda: worker.read(agent, limit, hashes, rows))


def test_different_keys_are_counted_once_on_the_whole_node(node: Callable[..., Node]) -> None:
    first, second = node(2).workers
    assert reads(first, 10, *range(6))
    assert reads(second, 10, *range(6))
    assert reads(second, 10, *range(3, 9))
    assert first.keys(AGENT) == second.keys(AGENT) == 9
    assert not reads(first, 10, 9, 10)
    assert first.keys(AGENT) == 9  # nothing of what was refused is counted
    assert reads(first, 10, 9)
    assert not reads(second, 10, 10)
    assert reads(second, 10, *range(10))
    assert reads(first, 10, 10, agent=OTHER)


def test_rows_without_a_key_count_each_time(node: Callable[..., Node]) -> None:
    (worker,) = node(1).workers
    assert reads(worker, 10, 1, 2, rows=3)
    assert reads(worker, 10, 1, 2, rows=5)
    assert not reads(worker, 10, rows=1)
    assert worker.keys(AGENT) == 10


def test_no_hour_holds_more_than_the_limit_and_the_hour_slides(node: Callable[..., Node]) -> None:
    """Against a plain account of what was read when."""
    bank, chance, limit = node(2, 2000), random.Random(7), 60
    last: dict[int, float] = {}
    refused = 0
    for _ in range(6000):
        bank.seconds += chance.choice((0.0, 1.0, 20.0, 400.0))
        keys = {chance.randrange(400) for _ in range(chance.randrange(1, 8))}
        if reads(chance.choice(bank.workers), limit, *keys):
            last.update(dict.fromkeys(keys, bank.seconds))
        else:
            refused += 1
            # Refused only if it had been too much for the hour and one step more.
            recent = {key for key, when in last.items() if when > bank.seconds - (HOUR + 1) * STEP}
            assert len(recent | keys) > limit
        assert sum(when > bank.seconds - HOUR * STEP for when in last.values()) <= limit
    assert refused > 100
    bank.seconds += (HOUR + 1) * STEP
    assert bank.workers[0].keys(AGENT) == 0
    assert reads(bank.workers[0], limit, *range(limit))


def test_keys_are_refused_when_there_is_no_room(node: Callable[..., Node]) -> None:
    bank = node(1, 64)  # two sets of 64 places
    (worker,) = bank.workers
    held = [reads(worker, 1000, key) for key in range(200)].index(False)
    assert 64 <= held <= 128
    assert worker.keys(AGENT) >= held
    with pytest.raises(QuotaReached, match="no room"):
        worker.read(AGENT, 1000, [worker.hash(AGENT, 1, [str(key).encode()]) for key in range(200, 400)], 0)
    bank.seconds += (HOUR + 1) * STEP
    assert reads(worker, 1000, 1000)


def test_keys_are_kept_as_salted_hashes_only(node: Callable[..., Node]) -> None:
    bank = node(1)
    worker = bank.workers[0]
    ssn = b"078-05-1120"
    key = worker.hash(AGENT, 1, [ssn])
    worker.read(AGENT, 10, [key], 0)
    memory = bytes(bank.tables[0].memory)
    assert ssn not in memory
    assert AGENT.encode() not in memory
    assert key in memory
    assert Quotas(bank.tables[0], 0, b"other salt").hash(AGENT, 1, [ssn]) != key
    assert worker.hash(AGENT, 2, [ssn]) != key
    assert worker.hash(OTHER, 1, [ssn]) != key
    assert worker.hash(AGENT, 1, [b"a", b"bc"]) != worker.hash(AGENT, 1, [b"ab", b"c"])


# what follows


def test_alerts_are_raised_once_on_a_node_and_again_after_a_minute(node: Callable[..., Node]) -> None:
    bank = node(2)
    first, second = bank.workers
    assert first.alert(AGENT, "concurrent")
    assert not second.alert(AGENT, "concurrent")
    assert second.alert(AGENT, "statements_per_minute")
    assert second.alert(OTHER, "concurrent")
    bank.seconds += quota.ALERT_SECONDS
    assert second.alert(AGENT, "concurrent")
    assert not first.alert(AGENT, "concurrent")


def test_an_agent_that_is_cut_off_is_so_on_every_worker_until_its_time_is_over(node: Callable[..., Node]) -> None:
    bank = node(2)
    first, second = bank.workers
    assert not second.new_cuts()
    first.cut(AGENT, 30)
    assert second.new_cuts()
    assert not second.new_cuts()
    assert second.cut_off(AGENT) == 30
    assert second.cut_off(OTHER) == 0
    bank.seconds += 29
    assert first.cut_off(AGENT) == 1
    bank.seconds += 1
    assert first.cut_off(AGENT) == 0


# memory and lock


def test_idle_identities_make_room_and_busy_ones_do_not(node: Callable[..., Node]) -> None:
    bank = node(1)
    (worker,) = bank.workers
    bank.tables[0].capacity = 4
    worker.enter("a", 5)
    worker.count("b", Limits(statements_per_minute=5))
    worker.read("c", 5, [], 1)
    worker.cut("d", 7200)
    with pytest.raises(Refusal, match="no room"):
        worker.count("e", Limits(statements_per_minute=5))
    bank.seconds += 61
    worker.count("e", Limits(statements_per_minute=5))  # where b was
    bank.seconds += (HOUR + 1) * STEP
    worker.count("f", Limits(statements_per_minute=5))
    worker.count("b", Limits(statements_per_minute=1))
    assert worker.running("a") == 1
    assert worker.cut_off("d") > 0
    with pytest.raises(QuotaReached):
        worker.count("b", Limits(statements_per_minute=1))
    worker.leave("a")
    assert worker.running("a") == 0


def test_a_lock_that_nobody_gives_back_refuses(node: Callable[..., Node]) -> None:
    bank = node(2)
    bank.tables[1].lock()
    with pytest.raises(Refusal, match="cannot be read"):
        allowed(bank.workers[0], 5)
    bank.tables[1].unlock()
    assert allowed(bank.workers[0], 5)


def test_a_killed_worker_gives_its_lock_back(node: Callable[..., Node]) -> None:
    bank = node(1)
    code = (
        "import os, signal, sys; from grille.proxy.quota import Table\n"
        "table = Table(int(sys.argv[1]), 1, 10_000)\n"
        "table.lock()\n"
        "print(flush=True)\n"
        "signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(bank.descriptor)], pass_fds=(bank.descriptor,), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(Refusal, match="cannot be read"):
            allowed(bank.workers[0], 5)
        process.kill()
        process.wait()
        assert allowed(bank.workers[0], 5)


CHILD = """
import os, sys
from grille.policies.decision import Limits
from grille.proxy.quota import QuotaReached, Quotas, Table
worker, tries = int(sys.argv[2]), int(sys.argv[3])
quotas = Quotas(Table(int(sys.argv[1]), 4, 10_000), worker, b"salt" * 8)
limits = Limits(statements_per_minute=10_000)
sys.stdin.readline()
counted = read = 0
for n in range(tries):
    try:
        counted += bool(quotas.count("a", limits))
    except QuotaReached:
        pass
    try:
        quotas.read("a", 500, [quotas.hash("a", 1, [b"%d" % ((worker * 7 + n) % 4000)])], 0)
        read += 1
    except QuotaReached:
        pass
print(counted, read)
"""


def test_four_processes_at_once_never_exceed(node: Callable[..., Node]) -> None:
    bank = node(4)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(bank.descriptor), str(number), "4000"],
            pass_fds=(bank.descriptor,), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for number in range(4)
    ]  # fmt: skip
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
    answers = [child.communicate()[0].split() for child in children]
    # One that ends early takes what is left of its last lease with it.
    assert 10_000 - 4 * quota.MAX_LEASE <= sum(int(counted) for counted, _ in answers) <= 10_000
    period = max(bank.tables[0].numbers[bank.tables[0].find(quota._id("a")) + quota._PERIOD], 0)
    bank.seconds = period * STEP - quota.LATER
    assert bank.workers[0].keys("a") == 500
