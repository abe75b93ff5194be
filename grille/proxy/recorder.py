"""Keeping events at their level, many at a time: where asyncio meets the spool.

The events of one turn of the loop are written together.  Those that wait for the disk at the same moment share one
block and one fdatasync, which runs in a thread of its own; the next group gathers meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Final

from grille.audit.encoding import lifecycle, timestamp
from grille.audit.event import Event, Level
from grille.audit.fused import LARGEST, Entry, split
from grille.audit.spool import AuditUnavailable, Spool
from grille.controls import Refusal
from grille.proxy.config import Audit

RETRY_SECONDS: Final = 0.1
"""How often a spool that could not be written is tried again."""

SYNC_SECONDS: Final = 10.0
"""A sync that takes longer counts as failed: statements are refused, not kept waiting."""

Done = Callable[[Refusal | None], None]
"""Told once whether an event is kept (None) or refused."""


class _Disk:
    """The thread that waits for the disk, one job at a time.

    The loop learns of the end of a job through an event file descriptor: it costs a fifth of what an executor does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: Callable[[BaseException | None], None] | None = None
        self._failure: BaseException | None = None
        self._ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.add_reader(self._ended, self._tell)
        Thread(target=self._work, name="audit-sync", daemon=True).start()

    def run(self, job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Do the job in the thread, which must have none, then call ``done`` in the loop with what it raised."""
        self._done = done
        self._jobs.put(job)

    def close(self) -> None:
        """End the thread, which must have no job."""
        self._jobs.put(None)
        self._loop.remove_reader(self._ended)
        os.close(self._ended)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._failure = None
            try:
                job()
            except BaseException as error:
                self._failure = error
            os.eventfd_write(self._ended, 1)

    def _tell(self) -> None:
        os.eventfd_read(self._ended)
        done, self._done = self._done, None
        if done is not None:
            done(self._failure)


class Recorder:
    """One worker's way to its spool.

    Once the spool cannot be written, every event is refused (AU-01, SQLSTATE 58030) until a retry in the background has
    succeeded; that one records the gap.
    """

    def __init__(self, spool: Spool, settings: Audit) -> None:
        """Takes over the spool; the running loop is the one that ``keep`` is called in."""
        self.events_total = 0
        """Events kept at their level."""
        self.failures_total = 0
        """Events refused."""
        self.syncs_total = 0
        self.last_error = ""
        """For operators: why the spool was last unavailable."""
        self._spool = spool
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._disk = _Disk(self._loop)
        self._entries: list[Entry] = []  # submitted, to be written at the end of the turn
        self._levels: list[tuple[Level, Done]] = []  # of the same events
        self._waiting: list[Done] = []  # written, to be sealed and synced with the next group
        self._syncing = False  # the thread is at work
        self._synced: Callable[[BaseException | None], None] | None = None  # waits for it
        self._waiting_since = 0.0  # when the sync under way was asked for
        self._quiet: asyncio.Future[None] | None = None  # waits until there is none
        self._watch: asyncio.TimerHandle | None = None
        self._retry: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def healthy(self) -> bool:
        """Whether events can be kept, as far as is known."""
        return self._retry is None and not self._closed

    @property
    def lag_seconds(self) -> float:
        """How long the oldest event has been waiting for its block or its sync."""
        waiting = time.monotonic() - self._waiting_since if self._waiting_since else 0.0
        return max(waiting, self._spool.lag)

    @property
    def policy_revision(self) -> str:
        """Revision of the policy bundle in force, written into block headers."""
        return self._spool.policy_revision

    @policy_revision.setter
    def policy_revision(self, revision: str) -> None:
        self._spool.policy_revision = revision

    def level(self, *, writes: bool) -> Level:
        """The configured level for a statement that writes, or one that does not."""
        return self._settings.writes if writes else self._settings.reads

    def check(self) -> None:
        """Raise the refusal that ``keep`` would raise now.  To be asked before a statement is forwarded."""
        if not self.healthy:
            raise self._refusal()

    def submit(
        self, head: bytes, tail: bytes, time: str, level: Level, done: Done, intent_of: str = "", intent_id: str = ""
    ) -> None:
        """Keep an event, given as the spool takes it (see `grille.audit.fused.Entry`); returns at once, never raises.

        ``done`` is called in the loop: with None once the event is kept at its level, else with the refusal (AU-01).
        ``process``: it is in the page cache, where it comes with all others of this turn of the loop.  ``power`` and
        ``strict``: it is in a sealed block that has been synced.  For events of one level the calls come in the order
        of the events, but a refusal because no event can be kept, as is known already, comes at once.
        """
        if self._retry is not None or self._closed:
            self._tell(done, self._refusal())
        elif len(head) + len(tail) > LARGEST:
            self._tell(done, self.unrecordable("the event is larger than a record may be"))
        else:
            if not self._entries:
                self._loop.call_soon(self._flush)
            self._entries.append((head, tail, time, intent_of, intent_id))
            self._levels.append((level, done))

    async def keep(self, event: Event) -> None:
        """Return once the event is kept at ``event.level``; see ``submit``.

        Raises Refusal AU-01 if it cannot be kept; the statement must then not be answered.
        """
        self.check()
        try:
            head, tail, time, intent_of, intent_id = split(event, self._spool.worker)
        except (ValueError, TypeError) as error:
            raise self.unrecordable(str(error)) from None
        kept: asyncio.Future[None] = self._loop.create_future()

        def done(refusal: Refusal | None) -> None:
            if kept.done():  # whoever asked has left
                return
            if refusal is None:
                kept.set_result(None)
            else:
                kept.set_exception(refusal)

        self.submit(head, tail, time, event.level, done, intent_of, intent_id)
        await kept

    async def close(self) -> None:
        """Write the ``stop`` event, seal and sync.

        Raises AuditUnavailable if that fails; the chain then shows that the run did not stop in order.
        """
        if self._closed:
            return
        self._flush()
        self._closed = True
        for waiter in (self._timer, self._retry):
            if waiter is not None:
                waiter.cancel()
        while self._syncing or self._waiting:
            self._quiet = self._loop.create_future()
            await self._quiet
        if self._watch is not None:
            self._watch.cancel()
        closed: asyncio.Future[None] = self._loop.create_future()

        def done(failure: BaseException | None) -> None:
            self._disk.close()
            _settle(closed, failure)

        self._disk.run(self._spool.close, done)
        await closed

    def _tell(self, done: Done, refusal: Refusal | None) -> None:
        try:
            done(refusal)
        except Exception as error:  # must not keep the others from being told
            self._report(error)

    def _report(self, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": "an event was not kept in order", "exception": error})

    # Groups

    def _flush(self) -> None:
        """Write what was submitted in this turn."""
        entries, self._entries = self._entries, []
        levels, self._levels = self._levels, []
        if not entries:
            return
        try:
            if not self.healthy:
                raise AuditUnavailable(self.last_error)
            self._spool.append_encoded(entries)
        except Exception as error:
            self._refuse(error, [done for _, done in levels])
            return
        for level, done in levels:
            if level == "process":
                self.events_total += 1
                self._tell(done, None)
            else:
                self._waiting.append(done)
        if not self._waiting:
            self._arm()
        elif not self._syncing:
            self._begin_group()

    def _begin_group(self) -> None:
        """Seal and sync for all that wait."""
        group, self._waiting = self._waiting, []
        try:
            self._spool.seal()
        except Exception as error:
            self._refuse(error, group)
            return
        self._start_sync(functools.partial(self._end_group, group))

    def _end_group(self, group: list[Done], failure: BaseException | None) -> None:
        if failure is not None:
            waiting, self._waiting = self._waiting, []
            self._refuse(failure, group + waiting)
            return
        self.events_total += len(group)
        for done in group:
            self._tell(done, None)

    def _start_sync(self, synced: Callable[[BaseException | None], None]) -> None:
        """Sync in the thread, which must have nothing to do, then call ``synced`` with what it raised."""
        self._syncing = True
        self._synced = synced
        self._waiting_since = time.monotonic()
        if self._watch is None:
            self._watch = self._loop.call_later(SYNC_SECONDS, self._check_overdue)
        self._disk.run(self._spool.sync, self._end_sync)

    def _end_sync(self, failure: BaseException | None) -> None:
        self._syncing = False
        self._waiting_since = 0.0
        synced, self._synced = self._synced, None
        if failure is None:
            self.syncs_total += 1
        if synced is not None:
            synced(failure)
        # What was submitted just now is written at the end of this turn, and begins a group then.
        more = self._waiting or (failure is None and self._spool.unsynced)
        if more and not self._entries and not self._syncing:
            self._begin_group()
        if self._quiet is not None and not self._syncing and not self._quiet.done():
            self._quiet.set_result(None)

    def _check_overdue(self) -> None:
        """Give up on a sync that hangs; one timer serves many syncs."""
        self._watch = None
        if self._synced is None:
            return
        left = SYNC_SECONDS - (time.monotonic() - self._waiting_since)
        if left > 0:
            self._watch = self._loop.call_later(left, self._check_overdue)
            return
        synced, self._synced = self._synced, None
        synced(AuditUnavailable(f"a sync takes longer than {SYNC_SECONDS:g} s"))

    def _arm(self) -> None:
        """Have the block under way sealed in time."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._settings.block_milliseconds / 1000, self._seal)

    def _seal(self) -> None:
        self._timer = None
        if not self.healthy:
            return
        try:
            self._spool.seal()
        except AuditUnavailable as error:
            self._fail(error)
            return
        if self._spool.unsynced and not self._syncing:
            self._begin_group()

    # Failure and recovery

    def _refusal(self) -> Refusal:
        self.failures_total += 1
        return Refusal(
            "AU-01",
            "the audit trail cannot be written, so no statement is answered",
            sqlstate="58030",
            hint="Nothing is wrong with the statement. Try again later.",
            detail_for_audit=self.last_error,
        )

    def unrecordable(self, why: str) -> Refusal:
        """The refusal for an event that cannot be written down; ``why`` is for operators."""
        self.failures_total += 1
        return Refusal(
            "AU-01",
            "this statement cannot be recorded, so it is not answered",
            sqlstate="58030",
            detail_for_audit=why,
        )

    def _refuse(self, error: BaseException, refused: list[Done]) -> None:
        self._fail(error)
        for done in refused:
            self._tell(done, self._refusal())
        if not isinstance(error, AuditUnavailable):
            self._report(error)

    def _fail(self, error: BaseException) -> None:
        self.last_error = str(error) or type(error).__name__
        if self._retry is None and not self._closed:
            self._retry = self._loop.create_task(self._recover(time.time()))

    async def _recover(self, since: float) -> None:
        """Try until an event that names the gap is sealed and synced."""
        text = f"no event could be kept from {timestamp(since)} on: {self.last_error}"
        written = False
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if self._syncing:
                continue
            try:
                if not written:
                    now = time.time()
                    self._spool.append(lifecycle("unavailable", text, now, worker=self._spool.worker, level="power"))
                    written = True
                self._spool.seal()
                synced: asyncio.Future[None] = self._loop.create_future()
                self._start_sync(functools.partial(_settle, synced))
                await synced
            except Exception as error:
                self.last_error = str(error) or type(error).__name__
                continue
            self._retry = None
            return


def _settle(future: asyncio.Future[None], failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
