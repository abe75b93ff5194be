"""Keeping events at their level, many at a time: where asyncio meets the spool.

Everything that waits for the disk at the same moment shares one block and one fdatasync, which runs in a thread of its
own; the next group gathers meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from grille.audit.encoding import lifecycle, timestamp
from grille.audit.event import Event, Level
from grille.audit.spool import AuditUnavailable, Spool
from grille.controls import Refusal
from grille.proxy.config import Audit

RETRY_SECONDS: Final = 0.1
"""How often a spool that could not be written is tried again."""

SYNC_SECONDS: Final = 10.0
"""A sync that takes longer counts as failed: statements are refused, not kept waiting."""


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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit-sync")
        self._waiting: list[asyncio.Future[None]] = []
        self._waiting_since = 0.0
        self._commit: asyncio.Task[None] | None = None
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

    async def keep(self, event: Event) -> None:
        """Return once the event is kept at ``event.level``.

        ``process``: it is in the page cache.  ``power`` and ``strict``: it is in a sealed block that has been synced.
        Raises Refusal AU-01 if it cannot be kept; the statement must then not be answered.
        """
        self.check()
        try:
            self._spool.append(event)
        except AuditUnavailable as error:
            self._fail(error)
            raise self._refusal() from None
        except (ValueError, TypeError) as error:
            self.failures_total += 1
            raise Refusal(
                "AU-01",
                "this statement cannot be recorded, so it is not answered",
                sqlstate="58030",
                detail_for_audit=str(error),
            ) from None
        if event.level == "process":
            self.events_total += 1
            self._arm()
            return
        kept: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(kept)
        if self._commit is None:
            self._commit = self._loop.create_task(self._commit_groups())
        await kept
        self.events_total += 1

    async def close(self) -> None:
        """Write the ``stop`` event, seal and sync.

        Raises AuditUnavailable if that fails; the chain then shows that the run did not stop in order.
        """
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._retry is not None:
            self._retry.cancel()
        if self._commit is not None:
            await self._commit
        try:
            await self._loop.run_in_executor(self._thread, self._spool.close)
        finally:
            self._thread.shutdown(wait=False)

    # Groups

    async def _commit_groups(self) -> None:
        """Seal and sync for all that wait, until none does."""
        while self._waiting or self._spool.unsynced:
            group, self._waiting = self._waiting, []
            self._waiting_since = time.monotonic()
            try:
                self._spool.seal()
                await self._sync()
            except BaseException as error:
                self._commit = None
                self._fail(error)
                refused, self._waiting = group + self._waiting, []
                for kept in refused:
                    if not kept.done():
                        kept.set_exception(self._refusal())
                if not isinstance(error, AuditUnavailable):
                    raise
                break
            for kept in group:
                if not kept.done():
                    kept.set_result(None)
        self._waiting_since = 0.0
        self._commit = None

    async def _sync(self) -> None:
        sync = self._loop.run_in_executor(self._thread, self._spool.sync)
        sync.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks after a time-out
        if not (await asyncio.wait([sync], timeout=SYNC_SECONDS))[0]:
            raise AuditUnavailable(f"a sync takes longer than {SYNC_SECONDS:g} s")
        sync.result()
        self.syncs_total += 1

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
        if self._spool.unsynced and self._commit is None:
            self._commit = self._loop.create_task(self._commit_groups())

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
            try:
                if not written:
                    now = time.time()
                    self._spool.append(lifecycle("unavailable", text, now, worker=self._spool.worker, level="power"))
                    written = True
                self._spool.seal()
                await self._sync()
            except AuditUnavailable as error:
                self.last_error = str(error)
                continue
            self._retry = None
            return
