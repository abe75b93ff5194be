"""Limits that span statements: counters of each identity that all workers of a node share.

The counters stand in memory that the node makes and its workers map.  Whoever changes them holds a lock of the file
(flock(2)), which the kernel takes back from a process that dies; no file, name or copy outlives the node.  A number is
raised before what it stands for happens and lowered afterwards, so that a worker that dies in between leaves a number
too high, never too low.

Times are whole units of the monotonic clock, which all processes of a machine share.  A window of 60 seconds counts the
present second and the 60 before it, so that no 60 seconds, wherever they begin, hold more than the limit; likewise the
hour, in steps of 5 minutes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Final

from grille.controls import Refusal
from grille.policies.decision import Limits

MINUTE: Final = 60
"""Seconds, in steps of one."""
HOUR: Final = 12
"""Steps of `STEP` seconds."""
STEP: Final = 300
MAX_IDENTITIES: Final = 1 << 16
"""Identities with counters at a time; one that has been idle for an hour makes room."""
LATER: Final = (HOUR + 2) * STEP
"""Added to the clock, so that a number that was never set is older than every window, even when a machine has just
started."""
KEYS: Final = 1_000_000
"""Keys that a node remembers of all identities, unless it is told otherwise."""
MAX_LEASE: Final = 32
"""Statements that a worker may take out of an identity's minute at once."""
LEASE_SHARE: Final = 4
"""A worker takes at most one in so many of what would be its fair part of the rest."""
ALERT_SECONDS: Final = 60
"""An alert for one identity and one quota is raised at most so often."""
LOCK_TRIES: Final = 200
LOCK_SECONDS: Final = 0.0005
QUOTAS: Final = ("statements_per_minute", "concurrent", "distinct_keys_per_hour")

_WAYS: Final = 64
_HASH: Final = 8
_SET_BYTES: Final = _WAYS * (_HASH + 4)
_ID: Final = 16
_HEADER: Final = 64
_USED: Final = 0
_HAND: Final = 1
_CUTS: Final = 2
# one identity, in numbers of 32 bits
_SECOND: Final = 0
_MINUTE: Final = 1
_PERIOD: Final = _MINUTE + MINUTE + 1
_HOUR: Final = _PERIOD + 1
_CUT_UNTIL: Final = _HOUR + HOUR + 1
_ALERTED: Final = _CUT_UNTIL + 1
_RUNNING: Final = _ALERTED + len(QUOTAS)
_LOOKED_AT: Final = 64


class QuotaReached(Refusal):
    """A limit that spans statements is used up (AC-06)."""

    def __init__(self, quota: str, message: str, *, sqlstate: str = "53400", hint: str | None = None) -> None:
        super().__init__("AC-06", message, sqlstate=sqlstate, hint=hint)
        self.quota = quota
        """One of `QUOTAS`."""


def minute_used_up(limit: int, seconds: int) -> QuotaReached:
    """No more statements for so many seconds."""
    return QuotaReached(
        "statements_per_minute",
        f"you have run the {limit} statements that you may run in a minute",
        hint=f"Try again in {seconds} seconds.",
    )


def all_running(limit: int) -> QuotaReached:
    """No more statements at the same time."""
    return QuotaReached(
        "concurrent",
        f"you run the {limit} statements that you may run at the same time",
        sqlstate="53300",
        hint="Try again when one of them has ended.",
    )


def hour_used_up(limit: int, steps: int) -> QuotaReached:
    """No more keys for so many steps of `STEP` seconds."""
    return QuotaReached(
        "distinct_keys_per_hour",
        f"with this result you would have read more than the {limit} different keys that you may read in an hour",
        hint=f"Ask for fewer rows, or try again in {steps * STEP // 60} minutes.",
    )


def _sets(keys: int) -> int:
    """Sets of `_WAYS` places: twice as many places as keys, so that a set is full only if all nearly are."""
    return max(1, -(-2 * keys // _WAYS))


def _width(workers: int) -> int:
    """Numbers of one identity."""
    return -(-(_RUNNING + workers) // 16) * 16


def create(workers: int, keys: int = KEYS) -> int:
    """New counters, all zero: a descriptor of memory, of which only what is used is taken.  Raises OSError."""
    descriptor = os.memfd_create("grille-quotas", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _HEADER + MAX_IDENTITIES * (_ID + 4 * _width(workers)) + _sets(keys) * _SET_BYTES)
    return descriptor


class Table:
    """One process's view of the counters."""

    def __init__(
        self, descriptor: int, workers: int, keys: int = KEYS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``workers`` and ``keys`` as they were given to `create`.  The descriptor stays the caller's.

        Raises OSError.
        """
        self._clock = clock
        # A lock belongs to an opening of a file, and an inherited descriptor is the same opening.
        self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self.memory = mmap.mmap(self._descriptor, 0)
        self.numbers = memoryview(self.memory).cast("I")
        self.workers = workers
        self._width = _width(workers)
        self._first = (_HEADER + MAX_IDENTITIES * _ID) // 4
        self._sets = _sets(keys)
        self._keys = 4 * (self._first + MAX_IDENTITIES * self._width)
        self.capacity = MAX_IDENTITIES

    def now(self) -> int:
        """The present second."""
        return int(self._clock()) + LATER

    def lock(self) -> None:
        """Wait for the lock, for a tenth of a second at most.  Raises `Refusal`."""
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_SECONDS)
            else:
                return
        raise Refusal(
            "AC-06",
            "the counters of your limits cannot be read now",
            sqlstate="53400",
            hint="Nothing was executed. Try again.",
        )

    def unlock(self) -> None:
        """Let others go on."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    # identities

    def find(self, key: bytes) -> int:
        """Where the numbers of an identity begin; -1 if it has none."""
        begin, end = _HEADER, _HEADER + self.numbers[_USED] * _ID
        at = begin
        while (at := self.memory.find(key, at, end)) >= 0:
            if (at - begin) % _ID == 0:
                return self._first + (at - begin) // _ID * self._width
            at += 1
        return -1

    def holds(self, offset: int, key: bytes) -> bool:
        """Whether the numbers at this place are still those of this identity."""
        at = _HEADER + (offset - self._first) // self._width * _ID
        return self.memory[at : at + _ID] == key

    def make(self, key: bytes) -> int:
        """Where the numbers of an identity begin, made for it if need be.  The lock is held.  Raises `Refusal`."""
        offset = self.find(key)
        if offset >= 0:
            return offset
        numbers = self.numbers
        number = numbers[_USED]
        if number >= self.capacity:
            number = self._idle()
            if number < 0:
                raise Refusal(
                    "AC-06",
                    "there is no room for the counters of your limits",
                    sqlstate="53400",
                    hint="More identities than this proxy has room for were active in the last hour. Try again later.",
                )
        offset = self._first + number * self._width
        for n in range(offset, offset + self._width):
            numbers[n] = 0
        at = _HEADER + number * _ID
        self.memory[at : at + _ID] = key
        if number == numbers[_USED]:
            numbers[_USED] = number + 1
        return offset

    def _idle(self) -> int:
        """An identity that may be forgotten, of the next few in turn; -1 if there is none."""
        numbers = self.numbers
        now = self.now()
        for _ in range(min(_LOOKED_AT, self.capacity)):
            number = numbers[_HAND] % self.capacity
            numbers[_HAND] = number + 1
            offset = self._first + number * self._width
            self.roll_minute(offset, now)
            self.roll_hour(offset, now // STEP)
            if numbers[offset + _CUT_UNTIL] <= now and not any(
                [*self.minute(offset), *self.hour(offset), *self.running(offset)]
            ):
                return number
        return -1

    # windows

    def roll_minute(self, offset: int, second: int) -> int:
        """Forget what is older than the window; the second that it ends with."""
        return self._roll(offset + _SECOND, MINUTE + 1, second)

    def roll_hour(self, offset: int, period: int) -> int:
        """Forget what is older than the window; the step that it ends with."""
        return self._roll(offset + _PERIOD, HOUR + 1, period)

    def _roll(self, at: int, length: int, now: int) -> int:
        numbers = self.numbers
        last = numbers[at]
        if now <= last:
            return last
        for passed in range(max(last + 1, now - length + 1), now + 1):
            numbers[at + 1 + passed % length] = 0
        numbers[at] = now
        return now

    def minute(self, offset: int) -> memoryview:
        """Statements by second, modulo the length of the window."""
        return self.numbers[offset + _MINUTE : offset + _MINUTE + MINUTE + 1]

    def hour(self, offset: int) -> memoryview:
        """Keys by the step in which they were read last, modulo the length of the window."""
        return self.numbers[offset + _HOUR : offset + _HOUR + HOUR + 1]

    def running(self, offset: int) -> memoryview:
        """What runs, by worker."""
        return self.numbers[offset + _RUNNING : offset + _RUNNING + self.workers]

    def forget(self, worker: int) -> None:
        """A worker has died: nothing runs there any more.

        The lock is not needed: no other process writes these numbers.
        """
        for number in range(self.numbers[_USED]):
            at = self._first + number * self._width + _RUNNING + worker
            if self.numbers[at]:
                self.numbers[at] = 0

    # keys

    def place(self, key: bytes, period: int, fresh: dict[int, bytes]) -> tuple[int, int]:
        """Where a key stands or may stand, and the step in which it was read last; 0: not within the hour.

        ``fresh`` are places that were given away meanwhile.  (-1, 0) if there is no room.
        """
        start = self._keys + int.from_bytes(key, "little") % self._sets * _SET_BYTES
        block = self.memory[start : start + _WAYS * _HASH]
        stamps = (start + _WAYS * _HASH) // 4
        at = -1
        while (at := block.find(key, at + 1)) >= 0:
            if at % _HASH == 0:
                way = at // _HASH
                stamp = self.numbers[stamps + way]
                if stamp + HOUR >= period:
                    return start // 4 + way, stamp
                break
        for way, stamp in enumerate(self.numbers[stamps : stamps + _WAYS]):
            if stamp + HOUR < period and start // 4 + way not in fresh:
                return start // 4 + way, 0
        return -1, 0

    def keep(self, place: int, key: bytes, period: int) -> None:
        """Note that a key was read."""
        start = self._keys + (4 * place - self._keys) // _SET_BYTES * _SET_BYTES
        way = place - start // 4
        at = start + way * _HASH
        self.memory[at : at + _HASH] = key
        self.numbers[(start + _WAYS * _HASH) // 4 + way] = period


class _Agent:
    """What this worker holds of one identity."""

    __slots__ = ("key", "left", "limit", "offset", "second", "size")

    def __init__(self, spiffe_id: str) -> None:
        self.key = _id(spiffe_id)
        self.offset = -1
        # the lease: statements of one second that are counted already
        self.left = 0
        self.size = 0
        self.second = 0
        self.limit = 0
        """The limit under which it was taken."""


def _id(spiffe_id: str) -> bytes:
    return hashlib.sha256(spiffe_id.encode()).digest()[:_ID]


class Quotas:
    """The counters as one worker uses them, by SPIFFE id.

    Only statements whose decision sets a limit are counted against it.
    """

    def __init__(self, table: Table | None = None, worker: int = 0, salt: bytes = b"") -> None:
        """``salt`` is the node's: keys are kept as hashes under it, and never as they are."""
        if table is None:
            descriptor = create(1)
            try:
                table = Table(descriptor, 1)
            finally:
                os.close(descriptor)
        self._table = table
        self._worker = worker
        self._salt = salt or os.urandom(32)
        self._agents: dict[str, _Agent] = {}
        self._leased: set[_Agent] = set()
        self._cuts = 0

    # statements a minute

    def count(self, spiffe_id: str, limits: Limits) -> int:
        """Count one statement against its agent's minute; what `uncount` takes.  Raises `Refusal` AC-06."""
        limit = limits.statements_per_minute
        if limit is None:
            return 0
        second = self._table.now()
        agent = self._agents.get(spiffe_id)
        if agent is not None and agent.left and agent.second == second and limit >= agent.limit:
            agent.left -= 1
            return second
        return self._lease(spiffe_id, limit)

    def _lease(self, spiffe_id: str, limit: int) -> int:
        """Take statements of the present second for this worker, and the first of them.

        Twice as many each time within one second, but a fraction of what is left, so that a worker that needs no more
        keeps little from the others, and none for longer than `tick`.
        """
        table = self._table
        agent = self._agent(spiffe_id)
        table.lock()
        try:
            offset = self._offset(agent)
            second = table.roll_minute(offset, self._table.now())
            self._give_back(agent, second)
            minute = table.minute(offset)
            left = limit - sum(minute)
            if left < 1:
                raise minute_used_up(limit, _wait(minute, second, 1 - left))
            again = agent.second == second
            size = max(1, min(2 * agent.size if again else 1, MAX_LEASE, left // (LEASE_SHARE * table.workers)))
            minute[second % len(minute)] += size
        finally:
            table.unlock()
        agent.second, agent.size, agent.left, agent.limit = second, size, size - 1, limit
        if agent.left:
            self._leased.add(agent)
        return second

    def uncount(self, spiffe_id: str, second: int) -> None:
        """Take back one `count`: the statement did not run, or is counted again when it does."""
        agent = self._agents.get(spiffe_id)
        if not second or agent is None:
            return
        if agent.second == second:
            agent.left += 1
            self._leased.add(agent)
            return
        self._subtract(agent, second, 1)

    def _give_back(self, agent: _Agent, now: int) -> None:
        """Return what is left of a lease.  The lock is held."""
        if agent.left and agent.second + MINUTE >= now:
            minute = self._table.minute(agent.offset)
            at = agent.second % len(minute)
            minute[at] = max(0, minute[at] - agent.left)
        agent.left = 0
        self._leased.discard(agent)

    def _subtract(self, agent: _Agent, second: int, count: int) -> None:
        table = self._table
        with contextlib.suppress(Refusal):  # too high is safe
            table.lock()
            try:
                offset = self._offset(agent)
                if second + MINUTE >= table.roll_minute(offset, self._table.now()):
                    minute = table.minute(offset)
                    at = second % len(minute)
                    minute[at] = max(0, minute[at] - count)
            finally:
                table.unlock()

    def tick(self) -> None:
        """Return the leases of seconds that are over; to be called about once a second."""
        now = self._table.now()
        for agent in [agent for agent in self._leased if agent.second < now]:
            self._leased.discard(agent)
            left, agent.left = agent.left, 0
            if left:
                self._subtract(agent, agent.second, left)

    # at the same time

    def enter(self, spiffe_id: str, limit: int, *, again: bool = False) -> None:
        """Count a session that begins to run statements; pairs with `leave`.

        ``again``: it is counted already, under another limit.  Raises `Refusal` AC-06.
        """
        table = self._table
        agent = self._agent(spiffe_id)
        table.lock()
        try:
            offset = self._offset(agent)
            running = table.running(offset)
            if sum(running) + (not again) > limit:
                raise all_running(limit)
            if not again:
                running[self._worker] += 1
        finally:
            table.unlock()

    def leave(self, spiffe_id: str) -> None:
        """Count a session that has ended its unit.  No other process writes this number, so there is no lock."""
        agent = self._agents[spiffe_id]
        self._table.running(agent.offset)[self._worker] -= 1

    def running(self, spiffe_id: str) -> int:
        """Sessions of this agent that run statements now, on the whole node."""
        offset = self._table.find(_id(spiffe_id))
        return sum(self._table.running(offset)) if offset >= 0 else 0

    # keys an hour

    def hash(self, spiffe_id: str, relation: int, values: Iterable[bytes]) -> bytes:
        """What is kept of a key: it tells equal keys of one agent and one relation from others, and no more."""
        found = hashlib.blake2b(spiffe_id.encode(), digest_size=_HASH, key=self._salt)
        for part in (str(relation).encode(), *values):
            found.update(len(part).to_bytes(4) + part)
        return found.digest()

    def read(self, spiffe_id: str, limit: int, keys: Iterable[bytes], rows: int) -> None:
        """Count what is about to be released: hashes of keys, and rows that show none, which count as new ones each.

        Nothing is counted if it is too much.  Raises `Refusal` AC-06.
        """
        table = self._table
        agent = self._agent(spiffe_id)
        table.lock()
        try:
            offset = self._offset(agent)
            period = table.roll_hour(offset, self._table.now() // STEP)
            hour = table.hour(offset)
            left = limit - sum(hour) - rows
            fresh: dict[int, bytes] = {}
            moved: list[tuple[int, bytes, int]] = []
            for key in set(keys):
                place, stamp = table.place(key, period, fresh)
                if place < 0:
                    raise QuotaReached(
                        "distinct_keys_per_hour",
                        "there is no room to count the keys that you read",
                        hint="Try again later, and tell the operator of this proxy (quotas.keys).",
                    )
                if not stamp:
                    fresh[place] = key
                elif stamp != period:
                    moved.append((place, key, stamp))
            if len(fresh) > left:
                raise hour_used_up(limit, _wait(hour, period, len(fresh) - left))
            now = period % len(hour)
            hour[now] += len(fresh) + len(moved) + rows
            for place, key in fresh.items():
                table.keep(place, key, period)
            for place, key, stamp in moved:
                table.keep(place, key, period)
                hour[stamp % len(hour)] -= 1
        finally:
            table.unlock()

    def keys(self, spiffe_id: str) -> int:
        """Different keys that this agent has read within the hour."""
        table = self._table
        offset = table.find(_id(spiffe_id))
        if offset < 0:
            return 0
        table.lock()
        try:
            table.roll_hour(offset, self._table.now() // STEP)
            return sum(table.hour(offset))
        finally:
            table.unlock()

    # what follows

    def alert(self, spiffe_id: str, quota: str) -> bool:
        """Whether an alert is due; no worker raises the same one within `ALERT_SECONDS`.  Raises `Refusal`."""
        table = self._table
        agent = self._agent(spiffe_id)
        table.lock()
        try:
            at = self._offset(agent) + _ALERTED + QUOTAS.index(quota)
            now = self._table.now()
            last = table.numbers[at]
            if last and now - last < ALERT_SECONDS:
                return False
            table.numbers[at] = now
        finally:
            table.unlock()
        return True

    def cut(self, spiffe_id: str, seconds: int) -> None:
        """Let this agent have no session for so long.  Raises `Refusal`."""
        table = self._table
        agent = self._agent(spiffe_id)
        table.lock()
        try:
            table.numbers[self._offset(agent) + _CUT_UNTIL] = self._table.now() + max(1, seconds)
            table.numbers[_CUTS] += 1
        finally:
            table.unlock()

    def cut_off(self, spiffe_id: str) -> int:
        """Seconds for which this agent can have no session; 0 if it can."""
        table = self._table
        if not table.numbers[_CUTS]:
            return 0
        offset = table.find(_id(spiffe_id))
        return max(0, table.numbers[offset + _CUT_UNTIL] - self._table.now()) if offset >= 0 else 0

    def new_cuts(self) -> bool:
        """Whether an agent was cut off since the last call."""
        seen, self._cuts = self._cuts, self._table.numbers[_CUTS]
        return seen != self._cuts

    def _agent(self, spiffe_id: str) -> _Agent:
        agent = self._agents.get(spiffe_id)
        if agent is None:
            if len(self._agents) >= 2 * self._table.capacity:
                table, worker = self._table, self._worker
                self._agents = {
                    name: each
                    for name, each in self._agents.items()
                    if each.left or (each.offset >= 0 and table.running(each.offset)[worker])
                }
            agent = self._agents[spiffe_id] = _Agent(spiffe_id)
        return agent

    def _offset(self, agent: _Agent) -> int:
        """Where its numbers begin.  The lock is held.  Raises `Refusal`."""
        if agent.offset < 0 or not self._table.holds(agent.offset, agent.key):
            agent.offset = self._table.make(agent.key)
        return agent.offset


def _wait(window: memoryview, now: int, much: int) -> int:
    """Steps until so much has left the window, which ends with step ``now``."""
    length = len(window)
    for step in range(now - length + 1, now + 1):
        much -= window[step % length]
        if much <= 0:
            return step + length - now
    return length
