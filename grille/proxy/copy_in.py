"""COPY FROM STDIN of a governed session: the client's rows become INSERTs, which are checked as any other.

All of them belong to one unit, so that they are written together or not at all.  The client is read no faster than the
database takes the rows (docs/decisions/0016-copy-from.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final

from grille.controls import Refusal
from grille.protocols.postgres.copy_rows import Row, reader
from grille.protocols.postgres.messages import CopyData, CopyDone, CopyFail, FrontendMessage
from grille.proxy.relay import CountKeys, Kind, Relay, Run, Step, too_many_rows, too_slow

if TYPE_CHECKING:
    from grille.protocols.postgres.copy import CopyInCommand
    from grille.proxy.enforcement import Copying, Enforcement

BATCH_ROWS: Final = 1024
BATCH_BYTES: Final = 256 * 1024
"""Rows are sent on when there are so many, or so many bytes of them."""


class CopyStream:
    """One COPY FROM STDIN.

    ``receive`` gives the client's next message and raises TimeoutError at a loop time; ``send`` sends steps, and has
    told the client if it returns False; ``same_terms`` raises `Refusal` once policy or catalogue have changed.
    """

    def __init__(
        self,
        command: CopyInCommand,
        copying: Copying,
        run: Run,
        *,
        enforcement: Enforcement,
        relay: Relay,
        largest: int,
        receive: Callable[[float | None], Awaitable[FrontendMessage]],
        send: Callable[[list[Step]], Awaitable[bool]],
        same_terms: Callable[[], Awaitable[None]],
        count_keys: CountKeys,
    ) -> None:
        self.cancelled = False
        """Set by a cancel request; heeded with the next message, as in PostgreSQL."""
        self._options = command.options
        self._copying = copying
        self._run = run
        self._enforcement = enforcement
        self._relay = relay
        self._reader = reader(command.options, copying.columns, largest=largest, csv_marker=copying.csv_marker)
        self._receive = receive
        self._send = send
        self._same_terms = same_terms
        self._count_keys = count_keys
        self._rows: list[Row] = []
        self._size = 0
        self._deadline: float | None = None

    def begin(self) -> bytes:
        """CopyInResponse"""
        return self._options.begin(len(self._copying.columns))

    async def run(self) -> bool:
        """Take and write rows until CopyDone; False if that failed upstream.  Raises `Refusal`."""
        seconds = self._copying.told.limits.seconds
        if seconds is None:
            return await self._take()
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + seconds
        timer = loop.call_at(self._deadline, self._relay.expire, seconds)
        try:
            return await self._take()
        except TimeoutError:
            raise too_slow(seconds) from None
        finally:
            timer.cancel()

    async def _take(self) -> bool:
        limit = self._copying.told.limits.bytes
        while True:
            message = await self._receive(self._deadline)
            if self.cancelled:
                raise Refusal("WP-05", "the COPY was cancelled", sqlstate="57014")
            if isinstance(message, CopyData):
                self._run.bytes += len(message.data)
                if limit is not None and self._run.bytes > limit:
                    raise Refusal(
                        "AC-06", f"the COPY is larger than the {limit} bytes that you may write with one statement",
                        sqlstate="53400", hint="Copy fewer rows at a time.",
                    )  # fmt: skip
                if not await self._gather(self._reader.feed(message.data)):
                    return False
            elif isinstance(message, CopyDone):
                return await self._gather(self._reader.end()) and await self._write()
            elif isinstance(message, CopyFail):
                raise Refusal("WP-01", "COPY from stdin failed: the client gave it up", sqlstate="57014")

    async def _gather(self, rows: Iterator[Row]) -> bool:
        most = self._copying.told.limits.rows
        for row in rows:
            self._rows.append(row)
            self._size += sum([len(value) for value in row if value is not None])
            if most is not None and self._run.rows + len(self._rows) > most:
                raise too_many_rows(most)
            if (len(self._rows) >= BATCH_ROWS or self._size >= BATCH_BYTES) and not await self._write():
                return False
        return True

    async def _write(self) -> bool:
        """Write the rows that were gathered."""
        rows, self._rows, self._size = self._rows, [], 0
        if not rows:
            return True
        if self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline:
            raise TimeoutError
        await self._same_terms()
        portal = self._run.portal
        await self._count_keys(portal, [], len(rows))
        steps: list[Step] = []
        for plan, wire, encoded in await self._enforcement.bind_copy(self._copying, self._options.binary, rows):
            portal.encoded += encoded
            steps.append(Step(Kind.BIND, plan=plan, portal=portal, visible=False, wire=wire))
            steps.append(Step(Kind.EXECUTE, plan=plan, portal=portal, visible=False))
        # An error of any of them is an error of the run that the last one names.
        steps[-1].run = self._run
        if not await self._send(steps):
            return False
        self._run.rows += len(rows)
        return True
