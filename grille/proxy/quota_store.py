"""Limits that span statements, across nodes: the counters of `grille.proxy.quota` once more in Redis or Valkey.

Each node counts for itself first, so what it alone would refuse never asks; then the store counts for all nodes, in
one script a limit, by the store's clock.  A number is raised before what it stands for happens.  What runs is a number
for each worker, which the worker says anew every few seconds; after `SILENT_SECONDS` without it the worker is taken
for dead.  The store holds no SPIFFE ID and no key of a row, only hashes under the nodes' common key.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from grille.controls import Refusal
from grille.policies.decision import Limits
from grille.proxy import config
from grille.proxy.keys import store_password
from grille.proxy.quota import HOUR, MINUTE, STEP, Quotas, all_running, hour_used_up, minute_used_up

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

SAY_SECONDS: Final = 3.0
"""How often a worker says what it runs."""
SILENT_SECONDS: Final = 12
"""After so long without that, what it ran is not counted any more."""
DOWN_SECONDS: Final = 1.0
"""After a failure the store is not asked for so long, so that no statement waits for what has just failed."""

Count = tuple[int, int]
"""Of one statement: the second of the node, and of the store; 0 where it is not counted."""
T = TypeVar("T")

_CLOCK: Final = "local now = tonumber(redis.call('TIME')[1])\n"

_COUNT: Final = (
    _CLOCK
    + f"""
local sum, all, seconds = 0, redis.call('HGETALL', KEYS[1]), {{}}
for i = 1, #all, 2 do
  local second, n = tonumber(all[i]), tonumber(all[i + 1])
  if second < now - {MINUTE} then redis.call('HDEL', KEYS[1], all[i])
  else sum = sum + n; seconds[#seconds + 1] = {{second, n}} end
end
local much = sum + 1 - tonumber(ARGV[1])
if much > 0 then
  table.sort(seconds, function(a, b) return a[1] < b[1] end)
  for _, each in ipairs(seconds) do
    much = much - each[2]
    if much <= 0 then return {{0, each[1] + {MINUTE} + 1 - now}} end
  end
  return {{0, {MINUTE}}}
end
redis.call('HINCRBY', KEYS[1], now, 1)
redis.call('EXPIRE', KEYS[1], {2 * MINUTE})
return {{1, now}}
"""
)
"""KEYS: statements by second.  ARGV: the limit.  Gives 1 and the second, or 0 and the seconds to wait."""

_UNCOUNT: Final = """
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0') > 0 then redis.call('HINCRBY', KEYS[1], ARGV[1], -1) end
"""

_RUN: Final = (
    _CLOCK
    + f"""
local sum, all = tonumber(ARGV[2]), redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local n, said = string.match(all[i + 1], '^(%d+) (%d+)$')
  if tonumber(said) < now - {SILENT_SECONDS} then redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then sum = sum + tonumber(n) end
end
if ARGV[3] ~= '' and sum > tonumber(ARGV[3]) then return 0 end
if ARGV[2] == '0' then redis.call('HDEL', KEYS[1], ARGV[1])
else redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. now) end
redis.call('EXPIRE', KEYS[1], {10 * SILENT_SECONDS})
return 1
"""
)
"""KEYS: what runs, by worker.  ARGV: a worker, what it runs from now on, the limit or nothing.  Gives 0 if that is too
much; then nothing is changed."""

_READ: Final = (
    _CLOCK
    + f"""
local period, limit, rows = math.floor(now / {STEP}), tonumber(ARGV[1]), tonumber(ARGV[2])
local first = period - {HOUR}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', first - 1)
local sum, all, by = redis.call('ZCARD', KEYS[1]), redis.call('HGETALL', KEYS[2]), {{}}
for i = 1, #all, 2 do
  local each, n = tonumber(all[i]), tonumber(all[i + 1])
  if each < first then redis.call('HDEL', KEYS[2], all[i])
  else sum = sum + n; by[each] = n end
end
local fresh = 0
for i = 3, #ARGV do
  if not redis.call('ZSCORE', KEYS[1], ARGV[i]) then fresh = fresh + 1 end
end
local much = sum + rows + fresh - limit
if much > 0 then
  for each = first, period do
    much = much - redis.call('ZCOUNT', KEYS[1], each, each) - (by[each] or 0)
    if much <= 0 then return {{0, each + {HOUR} + 1 - period}} end
  end
  return {{0, {HOUR}}}
end
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], period, ARGV[i]) end
if rows > 0 then redis.call('HINCRBY', KEYS[2], period, rows) end
redis.call('EXPIRE', KEYS[1], {(HOUR + 2) * STEP})
redis.call('EXPIRE', KEYS[2], {(HOUR + 2) * STEP})
return {{1, sum + rows + fresh}}
"""
)
"""KEYS: hashes of keys by the step in which they were read last, and rows without a key by step.  ARGV: the limit, rows
without a key, hashes.  Gives 1, or 0 and the steps to wait; then nothing is counted."""

_CUT: Final = (
    _CLOCK
    + """
redis.call('HSET', KEYS[1], ARGV[1], now + tonumber(ARGV[2]))
redis.call('INCR', KEYS[2])
"""
)
_CUTS: Final = (
    _CLOCK
    + """
local version = redis.call('GET', KEYS[2]) or '0'
if version == ARGV[1] then return {version} end
local left, all = {version}, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local seconds = tonumber(all[i + 1]) - now
  if seconds <= 0 then redis.call('HDEL', KEYS[1], all[i])
  else left[#left + 1] = all[i]; left[#left + 1] = seconds end
end
return left
"""
)
"""KEYS: until when who is cut off, and how often that was changed.  ARGV: the number last seen.  Gives the number, and
if it is another one hash and seconds of each."""


class Counters(Protocol):
    """What a session counts with."""

    async def count(self, spiffe_id: str, limits: Limits) -> Count:
        """Count one statement against its agent's minute; what `uncount` takes.  Raises `Refusal` AC-06."""

    def uncount(self, spiffe_id: str, count: Count) -> None:
        """Take back one `count`."""

    async def enter(self, spiffe_id: str, limit: int, *, again: bool = False) -> None:
        """Count a session that begins to run statements; pairs with `leave`.  Raises `Refusal` AC-06.

        ``again``: it is counted already, under another limit.
        """

    def leave(self, spiffe_id: str) -> None:
        """Count a session that has ended its unit."""

    async def read(self, spiffe_id: str, limit: int, keys: Iterable[bytes], rows: int) -> None:
        """Count what is about to be released: hashes of keys, and rows that show none.  Raises `Refusal` AC-06."""


class NodeCounters:
    """The counters of this node alone."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def count(self, spiffe_id: str, limits: Limits) -> Count:
        return self._quotas.count(spiffe_id, limits), 0

    def uncount(self, spiffe_id: str, count: Count) -> None:
        self._quotas.uncount(spiffe_id, count[0])

    async def enter(self, spiffe_id: str, limit: int, *, again: bool = False) -> None:
        self._quotas.enter(spiffe_id, limit, again=again)

    def leave(self, spiffe_id: str) -> None:
        self._quotas.leave(spiffe_id)

    async def read(self, spiffe_id: str, limit: int, keys: Iterable[bytes], rows: int) -> None:
        self._quotas.read(spiffe_id, limit, keys, rows)


class _Running:
    """What this worker runs for one identity, and what the store knows of it."""

    __slots__ = ("known", "lock", "number", "said")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        """Held while the store is told, so that an older number never follows a newer one."""
        self.number = 0
        self.known = 0
        self.said = 0.0
        """Monotonic time at which the store was told last."""


class StoreCounters:
    """The counters of this node, and of all nodes in a store."""

    def __init__(
        self,
        quotas: Quotas,
        settings: config.Quotas,
        key: bytes,
        on_failure: Callable[[str], None] = lambda problem: None,
    ) -> None:
        """``key`` is the nodes' own.  ``on_failure`` hears of each question that the store did not answer, in words.

        Raises `ConfigError` if the password cannot be read.
        """
        self._node = NodeCounters(quotas)
        self._settings = settings
        self._key = key
        self._on_failure = on_failure
        self._worker = os.urandom(8).hex()
        self._running: dict[str, _Running] = {}
        self._names: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._down_until = 0.0
        self.problem = ""
        """Why the store did not answer last; empty if it did."""
        self._cuts: dict[str, float] = {}
        self._cuts_version = b""
        self._new_cuts = False
        self._redis = connect(settings)
        script = self._redis.register_script
        self._count, self._uncount, self._run = script(_COUNT), script(_UNCOUNT), script(_RUN)
        self._read, self._cut, self._cuts_of = script(_READ), script(_CUT), script(_CUTS)

    async def close(self) -> None:
        """End what is under way and the connections."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self._settings.store_timeout):
                names = [name for name, each in self._running.items() if each.known]
                await asyncio.gather(
                    *(self._run(keys=[f"grille:run:{name}"], args=[self._worker, 0, ""]) for name in names)
                )
        await self._redis.aclose()

    # statements a minute

    async def count(self, spiffe_id: str, limits: Limits) -> Count:
        second, _ = await self._node.count(spiffe_id, limits)
        limit = limits.statements_per_minute
        if limit is None:
            return second, 0
        try:
            answer = await self._ask(self._count, [f"grille:minute:{self._name(spiffe_id)}"], [limit])
            if answer is not None and not answer[0]:
                raise minute_used_up(limit, answer[1])
        except BaseException:
            self._node.uncount(spiffe_id, (second, 0))
            raise
        return second, 0 if answer is None else answer[1]

    def uncount(self, spiffe_id: str, count: Count) -> None:
        self._node.uncount(spiffe_id, count)
        if count[1]:
            # If it fails, the number stays too high for a minute.
            self._later(self._ask(self._uncount, [f"grille:minute:{self._name(spiffe_id)}"], [count[1]]))

    # at the same time

    async def enter(self, spiffe_id: str, limit: int, *, again: bool = False) -> None:
        await self._node.enter(spiffe_id, limit, again=again)
        name = self._name(spiffe_id)
        running = self._running.setdefault(name, _Running())
        running.number += not again
        try:
            async with running.lock:
                allowed = await self._say(name, running, limit)
            if not allowed:
                raise all_running(limit)
        except BaseException:
            if not again:
                self.leave(spiffe_id)
            raise

    def leave(self, spiffe_id: str) -> None:
        self._node.leave(spiffe_id)
        name = self._name(spiffe_id)
        self._running[name].number -= 1
        self._later(self._catch_up(name))

    async def _say(self, name: str, running: _Running, limit: int | None) -> bool:
        """Tell the store what runs here.  False if that is too much for the limit.  Its lock is held."""
        number = running.number
        arguments = [self._worker, number, "" if limit is None else limit]
        answer = await self._ask(self._run, [f"grille:run:{name}"], arguments)
        if answer == 0:
            return False
        if answer is not None:
            running.known, running.said = number, time.monotonic()
        return True

    async def _catch_up(self, name: str) -> None:
        """Tell the store what runs here, if it knows another number or has not heard of it for a while."""
        running = self._running.get(name)
        if running is None:
            return
        async with running.lock:
            due = running.number and time.monotonic() - running.said >= SAY_SECONDS
            if running.number != running.known or due:
                await self._say(name, running, None)
            if not running.number and not running.known and self._running.get(name) is running:
                # Nobody waits for its lock: who does has raised the number.
                del self._running[name]

    # keys an hour

    async def read(self, spiffe_id: str, limit: int, keys: Iterable[bytes], rows: int) -> None:
        hashes = tuple(set(keys))
        await self._node.read(spiffe_id, limit, hashes, rows)
        name = self._name(spiffe_id)
        answer = await self._ask(self._read, [f"grille:keys:{name}", f"grille:rows:{name}"], [limit, rows, *hashes])
        if answer is not None and not answer[0]:
            raise hour_used_up(limit, answer[1])

    # who is cut off

    def cut(self, spiffe_id: str, seconds: int) -> None:
        """Let this agent have no session on any node for so long."""
        arguments = [self._name(spiffe_id), max(1, seconds)]
        self._later(self._ask(self._cut, ["grille:cuts", "grille:cuts:version"], arguments))

    def cut_off(self, spiffe_id: str) -> int:
        """Seconds for which this agent can have no session, as far as the store has told; 0 if it can."""
        until = self._cuts.get(self._name(spiffe_id), 0.0)
        return max(0, int(until - time.monotonic()) + 1) if until > time.monotonic() else 0

    def new_cuts(self) -> bool:
        """Whether an agent was cut off since the last call."""
        new, self._new_cuts = self._new_cuts, False
        return new

    async def tick(self) -> None:
        """Say what runs, and hear who was cut off; to be called about once a second."""
        with contextlib.suppress(Refusal):
            await asyncio.gather(*map(self._catch_up, tuple(self._running)))
            keys = ["grille:cuts", "grille:cuts:version"]
            answer = await self._ask(self._cuts_of, keys, [self._cuts_version])
            if answer is not None and answer[0] != self._cuts_version:
                now = time.monotonic()
                self._cuts_version = answer[0]
                self._cuts = {
                    name.decode(): now + seconds for name, seconds in zip(answer[1::2], answer[2::2], strict=True)
                }
                self._new_cuts = True

    # the store

    def _name(self, spiffe_id: str) -> str:
        name = self._names.get(spiffe_id)
        if name is None:
            if len(self._names) >= 100_000:
                self._names.clear()
            name = hashlib.blake2b(spiffe_id.encode(), digest_size=16, key=self._key).hexdigest()
            self._names[spiffe_id] = name
        return name

    async def _ask(self, script: Callable[..., Coroutine[Any, Any, Any]], keys: list[str], arguments: list[Any]) -> Any:
        """What a script gives; None if there is no answer and this node goes on alone.

        Raises `Refusal` if there is none and the configuration says that nothing goes on without the store.
        """
        from redis.exceptions import RedisError

        if time.monotonic() >= self._down_until:
            # A task of its own: the client library may swallow a cancellation, and a session is ended by one.
            task = asyncio.ensure_future(script(keys=keys, args=arguments))
            try:
                await asyncio.wait({task}, timeout=self._settings.store_timeout)
            finally:
                if not task.done():
                    task.add_done_callback(lambda task: task.cancelled() or task.exception())
                    task.cancel()
            if not task.done() or task.cancelled():
                self._failed("no answer in time")
            elif (error := task.exception()) is None:
                if self.problem:
                    self.problem = ""
                    log.info("the quota store answers again")
                return task.result()
            elif isinstance(error, (RedisError, OSError, TimeoutError)):
                self._failed(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
            else:
                raise error
        if self._settings.without_store == "node":
            return None
        raise Refusal(
            "AC-06",
            "the counters of your limits cannot be reached now",
            sqlstate="53400",
            hint="Try again later, and tell the operator of this proxy.",
            detail_for_audit=f"quota store: {self.problem}",
        )

    def _failed(self, problem: str) -> None:
        self._down_until = time.monotonic() + DOWN_SECONDS
        if not self.problem:
            log.error("the quota store does not answer", extra={"fields": {"problem": problem}})
        self.problem = problem
        self._on_failure(problem)

    def _later(self, work: Awaitable[Any]) -> None:
        """Do something in the background; what fails is done again by `tick`, or leaves a number too high."""

        async def done() -> None:
            with contextlib.suppress(Refusal):
                await work

        task = asyncio.get_running_loop().create_task(done())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def connect(settings: config.Quotas) -> Redis:
    """A client of the store; it connects when it is first asked.  Raises `ConfigError`."""
    from redis.asyncio import Redis  # takes a while to import
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    more: dict[str, Any] = {}
    if settings.store.startswith("rediss:") and settings.store_ca is not None:
        more["ssl_ca_certs"] = str(settings.store_ca)
    if settings.store_password_file is not None:
        more["password"] = store_password(Path(settings.store_password_file))
    return Redis.from_url(
        settings.store, socket_timeout=settings.store_timeout, socket_connect_timeout=settings.store_timeout,
        retry=Retry(NoBackoff(), 0), client_name="grille", protocol=2, **more,
    )  # fmt: skip
