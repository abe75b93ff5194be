"""What a session sends upstream, and what of the replies its client receives.

A segment is a list of `Step`s that is sent at once, with a Sync or a Flush behind it.  Replies are matched by
`grille.protocols.postgres.pipeline`; hidden columns and parameters are cut off, rows are transformed in batches, errors
are scrubbed.  What the client is to receive is gathered in `Relay.out` and leaves when the unit has ended and its audit
events are kept; a result of more than `STREAM_BYTES` leaves earlier, after an intent event has been kept.
"""

from __future__ import annotations

import asyncio
import functools
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from grille.controls import Refusal
from grille.protocols.postgres import pipeline
from grille.protocols.postgres.analysis import MAX_LISTED
from grille.protocols.postgres.copy import CopyOut
from grille.protocols.postgres.framing import ProtocolViolation
from grille.protocols.postgres.messages import (
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    EMPTY_QUERY_RESPONSE,
    NO_DATA,
    PORTAL_SUSPENDED,
    Bind,
    Close,
    CommandComplete,
    Describe,
    ErrorResponse,
    Execute,
    Flush,
    ParameterDescription,
    Parse,
    RowDescription,
    Sync,
    decode_data_row,
    encode_data_row,
)
from grille.protocols.postgres.pipeline import (
    COMMAND_COMPLETE,
    DATA_ROW,
    ERROR_RESPONSE,
    READY_FOR_QUERY,
    ROW_DESCRIPTION,
    Expectation,
    Request,
)
from grille.protocols.postgres.positions import traced
from grille.protocols.postgres.rewrite import Plan
from grille.proxy.errors import Permitted, audit_text, missing_setting, refusal_fields, scrubbed_fields, sqlstate
from grille.proxy.stream import ByteStream

if TYPE_CHECKING:
    from grille.audit.event import Chain, Value
    from grille.proxy.answers import Answer
    from grille.proxy.enforcement import Enforcement, Prepared, Ready
    from grille.proxy.identity import Agent
    from grille.proxy.shown import Shown
    from grille.proxy.upstream import UpstreamConnection

STREAM_BYTES: Final = 1024 * 1024
"""A reply that grows beyond this is sent before its end."""
BATCH_ROWS: Final = 500
BATCH_BYTES: Final = 256 * 1024
CANCEL_GRACE: Final = 10.0
"""Seconds that the server has to end a statement that was cancelled."""

_SYNC: Final = Sync().encode()
_FLUSH: Final = Flush().encode()
_LENGTH: Final = struct.Struct("!i")
_COUNT: Final = struct.Struct("!H")
_REPLANNED: Final = ("RevalidateCachedQuery", "ReportChangedTypes")
_POISON: Final = "grille_denied"
"""No prepared statement ever has this name: binding it fails, which is how a transaction is made to fail."""


class Statement:
    """One statement that the client has prepared, under whatever name."""

    __slots__ = ("answer", "chain", "encoded", "inner", "known", "named", "offset", "prepared", "text", "types")

    def __init__(
        self,
        text: str,
        types: tuple[int, ...],
        prepared: Prepared,
        chain: Chain | None,
        answer: Answer | None = None,
        *,
        named: bool = False,
    ) -> None:
        self.text = text
        self.encoded = text.encode()
        self.types = types
        self.prepared = prepared
        self.chain = chain
        """What the statement's own comment said of where it comes from."""
        self.answer = answer
        """What the proxy answers by itself."""
        self.named = named
        """The client gave it a name: it will be bound again."""
        self.known: tuple[int, Ready, list[bytes | None] | None] | None = None
        """What `Enforcement.ready` said of it, and under which generation of policy and catalogue."""
        self.inner: Statement | None = None
        """The query of a DECLARE CURSOR."""
        self.offset: int | None = 0
        """Characters before `text` in what the client sent; None if it was sent at another time."""


class Portal:
    """One bound statement."""

    __slots__ = (
        "born",
        "copy",
        "cursor",
        "done",
        "encoded",
        "inner",
        "loads",
        "plan",
        "prepared",
        "result_formats",
        "rows",
        "simple",
        "statement",
        "tokenize",
        "upstream",
        "values",
        "wire",
    )

    def __init__(
        self,
        statement: Statement,
        prepared: Prepared,
        *,
        upstream: str = "",
        wire: tuple[Sequence[int], Sequence[bytes | None]] = ((), ()),
        result_formats: tuple[int, ...] = (),
        simple: bool = False,
        plan: Plan | None = None,
        cursor: Portal | None = None,
    ) -> None:
        self.statement = statement
        self.prepared = prepared
        self.plan = plan if plan is not None else prepared.plan
        """What is bound upstream: for FETCH that command, with the results of its cursor's query."""
        self.copy = prepared.understood.copy if cursor is None else None
        """It is a COPY TO STDOUT: how its rows are written."""
        self.loads = False
        """It is a COPY FROM STDIN: many statements make one run, whose rows are counted by who sends them."""
        self.cursor = cursor
        """The cursor that FETCH and MOVE work on: its rows are counted over all of them."""
        self.inner: Portal | None = None
        """The query of a DECLARE CURSOR, with its values."""
        self.born = 0
        """When it was opened, counted in portals of this session."""
        self.upstream = upstream
        """Name of the portal on the upstream connection."""
        self.values: tuple[Value, ...] = ()
        """Commitments to what the client gave."""
        self.encoded = 0
        """How many values were tokenized."""
        self.wire = wire
        """Formats and values as they are sent upstream; forgotten then."""
        self.result_formats = result_formats
        self.simple = simple
        self.tokenize = 0.0
        """Seconds that encoding the values took."""
        self.rows = 0
        """Rows fetched so far, over all Executes."""
        self.done = False


class Run:
    """One execution of one statement: what its audit event will say."""

    __slots__ = (
        "began",
        "bytes",
        "clock",
        "copied",
        "decoded",
        "error",
        "intent",
        "local",
        "mark",
        "portal",
        "refusal",
        "rows",
        "sqlstate",
        "status",
        "tag",
        "tokenize",
        "upstream",
    )

    def __init__(self, portal: Portal) -> None:
        self.portal = portal
        self.began = time.time()
        self.clock = time.perf_counter()
        self.status = "ok"
        self.tag = ""
        self.sqlstate = ""
        self.error = ""
        self.rows = 0
        self.bytes = 0
        self.decoded = 0
        self.copied: int | None = None
        """Rows of a COPY that the client was sent; None before it was told that rows follow."""
        self.intent = ""
        self.local = False
        """The proxy answered it by itself."""
        self.mark = -1
        self.refusal: Refusal | None = None
        self.tokenize = 0.0
        self.upstream = 0.0


class Kind(Enum):
    """What a step does."""

    PARSE = auto()
    BIND = auto()
    DESCRIBE_STATEMENT = auto()
    DESCRIBE_PORTAL = auto()
    EXECUTE = auto()
    CLOSE_PORTAL = auto()
    LOCAL = auto()
    """Nothing is sent; `Step.reply` takes its place in the order."""
    POISON = auto()
    """Fails on purpose, so that what the client was refused also fails its transaction upstream."""


class Step:
    """One thing to do, in order."""

    __slots__ = ("kind", "max_rows", "parameters", "plan", "portal", "reply", "run", "undo", "visible", "wire")

    def __init__(
        self,
        kind: Kind,
        *,
        plan: Plan | None = None,
        portal: Portal | None = None,
        run: Run | None = None,
        reply: bytes = b"",
        max_rows: int = 0,
        parameters: int = 0,
        visible: bool = True,
        undo: Callable[[], None] | None = None,
        wire: tuple[Sequence[int], Sequence[bytes | None]] | None = None,
    ) -> None:
        self.kind = kind
        self.plan = plan
        self.portal = portal
        self.run = run
        self.reply = reply
        """What the client gets once the step is done, besides what the server answers."""
        self.max_rows = max_rows
        self.parameters = parameters
        """How many parameters the client knows of (for DESCRIBE_STATEMENT)."""
        self.visible = visible
        self.undo = undo
        """Takes back what was noted for this step, if an earlier one failed and the server never saw it."""
        self.wire = wire
        """What a BIND sends instead of what its portal holds."""


class ClientGone(Exception):
    """The client closed its connection while a result was being sent."""


class Failure:
    """Why a segment ended early: a refusal of ours, or an error of the server."""

    __slots__ = ("fields", "refusal", "server_failed", "stale")

    def __init__(
        self,
        fields: dict[str, str],
        *,
        refusal: Refusal | None = None,
        server_failed: bool = True,
        stale: bool = False,
    ) -> None:
        self.fields = fields
        """What the client is told."""
        self.refusal = refusal
        self.server_failed = server_failed
        """False if only the proxy knows of the failure."""
        self.stale = stale
        """True if the plan was made for a catalogue that is no longer the server's."""


CountKeys = Callable[[Portal, list[list[bytes | None]], int], Awaitable[None]]


async def _count_nothing(portal: Portal, rows: list[list[bytes | None]], written: int) -> None:
    pass


class Relay:
    """The upstream side of one session.

    ``keep_intent`` keeps the intent event of a run, and ``permitted`` says which object names the agent may be told.
    ``count_keys`` counts what rows show before they are released, or how many were written, and raises `Refusal` if
    that is too much.
    """

    __slots__ = (
        "_agent",
        "_cancelling",
        "_client",
        "_count_keys",
        "_current",
        "_enforcement",
        "_keep_intent",
        "_permitted",
        "_refusal",
        "_rows",
        "_rows_bytes",
        "_shown",
        "_timed_out",
        "_timer",
        "_unnamed",
        "connection",
        "out",
        "running",
        "runs",
        "status",
        "streamed",
    )

    def __init__(
        self,
        *,
        agent: Agent,
        client: ByteStream,
        enforcement: Enforcement,
        permitted: Permitted,
        keep_intent: Callable[[Run], Awaitable[None]],
        shown: Shown | None = None,
        count_keys: CountKeys = _count_nothing,
    ) -> None:
        self._agent = agent
        self._shown = shown
        self._count_keys = count_keys
        self._client = client
        self._enforcement = enforcement
        self._permitted = permitted
        self._keep_intent = keep_intent
        self.connection: UpstreamConnection | None = None
        self.out = bytearray()
        self.runs: list[Run] = []
        """The executions of the present unit, in order."""
        self.streamed = False
        """True once a byte of the present unit's replies has been sent."""
        self.status = "I"
        """What upstream's last ReadyForQuery said."""
        self.running = False
        """True while upstream works on a segment."""
        self._rows: list[list[bytes | None]] = []
        self._rows_bytes = 0
        self._unnamed: Plan | None = None
        """The plan that the unnamed statement holds at this place of the segment being composed."""
        self._refusal: Refusal | None = None
        self._current: Run | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timed_out: float | None = None
        self._cancelling: asyncio.Task[bool] | None = None

    # sending

    async def exchange(self, steps: Sequence[Step], *, sync: bool) -> Failure | None:
        """Send a segment and take in its replies.  With ``sync`` the unit ends and `status` is renewed.

        Returns what went wrong, or None.  Raises `UpstreamLost`, `ClientGone`, and any other `Refusal` if an intent
        event cannot be kept.
        """
        connection = self.connection
        if connection is None:
            raise RuntimeError("there is no upstream connection to send on")
        requests = bytearray()
        expectations: list[Expectation] = []
        self._unnamed = None
        for number, step in enumerate(steps):
            self._encode(connection, step, number, requests, expectations)
        if sync:
            expectations.append(Expectation(Request.SYNC, item=len(steps)))
        requests += _SYNC if sync else _FLUSH
        if any(step.plan is not None and step.plan.stateful for step in steps):
            connection.dirty = True
        self._refusal = None
        self._timed_out = None
        self.running = True
        began = time.perf_counter()
        try:
            await connection.send(bytes(requests), expectations)
            return await self._replies(connection, steps)
        finally:
            self.running = False
            self._disarm()
            elapsed = time.perf_counter() - began
            for step in steps:
                if step.run is not None:
                    step.run.upstream += elapsed

    def _encode(
        self,
        connection: UpstreamConnection,
        step: Step,
        number: int,
        requests: bytearray,
        expectations: list[Expectation],
    ) -> None:
        """Add what one step sends."""
        kind, plan, portal = step.kind, step.plan, step.portal
        if kind is Kind.LOCAL:
            return
        if kind is Kind.POISON:
            requests += Bind("", _POISON).encode()
            expectations.append(Expectation(Request.BIND, ours=True, item=number))
            return
        name = self._name(step)
        if plan is not None and kind in (Kind.PARSE, Kind.BIND, Kind.DESCRIBE_STATEMENT):
            if name:
                requests += connection.prepare(name, plan.sql, plan.parameter_types, expectations, item=number)
            elif self._unnamed is not plan:
                requests += Parse("", plan.sql, plan.parameter_types).encode()
                expectations.append(Expectation(Request.PARSE, ours=True, item=number))
                self._unnamed = plan
        if kind is Kind.DESCRIBE_STATEMENT and plan is not None:
            requests += Describe("S", name).encode()
            expectations.append(Expectation(Request.DESCRIBE_STATEMENT, item=number))
        if portal is None:
            return
        if kind is Kind.BIND and plan is not None:
            result_formats = portal.result_formats
            if len(result_formats) > 1:
                result_formats = (0,) * plan.hidden_columns + result_formats
            formats, values = portal.wire if step.wire is None else step.wire
            requests += Bind(portal.upstream, name, tuple(formats), tuple(values), result_formats).encode()
            expectations.append(Expectation(Request.BIND, ours=not step.visible, item=number))
            portal.wire, step.wire = ((), ()), None
        elif kind is Kind.DESCRIBE_PORTAL:
            requests += Describe("P", portal.upstream).encode()
            expectations.append(Expectation(Request.DESCRIBE_PORTAL, ours=not step.visible, item=number))
        elif kind is Kind.EXECUTE:
            requests += Execute(portal.upstream, self._cap(step)).encode()
            expectations.append(Expectation(Request.EXECUTE, ours=not step.visible, item=number))
        elif kind is Kind.CLOSE_PORTAL:
            requests += Close("P", portal.upstream).encode()
            expectations.append(Expectation(Request.CLOSE, ours=not step.visible, item=number))

    def _name(self, step: Step) -> str:
        """What the statement of a step is called upstream; empty: it is parsed each time.

        The server keeps one plan for all values once a named statement was run a few times, so that an agent could
        choose the plan of all others: only a plan for which that makes no difference is shared by name
        (docs/explanation/how-a-statement-flows.md).
        """
        if step.plan is None:
            return ""
        if step.plan.shared:
            return step.plan.name
        if step.portal is None or not step.portal.statement.named:
            return ""
        return f"{step.plan.name}_{self._agent.fingerprint[:12]}"

    @staticmethod
    def _cap(step: Step) -> int:
        """Rows to ask for: what the client wants, but never more than one above the limit (AC-06)."""
        portal, plan = step.portal, step.plan
        if portal is None or plan is None:
            return step.max_rows
        if portal.copy is not None:
            step.max_rows = 0  # COPY runs to its end, whatever the client says
        if plan.swallow_rows:
            # To the client this write returns no rows, so a row limit (pgjdbc sends 1) must not suspend it.
            return 0
        limit = portal.prepared.limits.rows
        if limit is None or plan.writes:
            return step.max_rows
        left = max(1, limit - (portal.cursor or portal).rows + 1)
        return min(step.max_rows, left) if step.max_rows > 0 else left

    # receiving

    async def _replies(self, connection: UpstreamConnection, steps: Sequence[Step]) -> Failure | None:
        failure: Failure | None = None
        emitted = 0
        failed_at = len(steps)
        server_failed = False
        self._arm(steps, 0)
        while connection.in_flight:
            kind, payload, expectation = await connection.next_reply()
            if expectation is None:
                continue
            if kind == READY_FOR_QUERY:
                self.status = connection.transaction_status
                continue
            if failure is not None or self._refusal is not None:
                server_failed = server_failed or kind == ERROR_RESPONSE
                continue
            number = expectation.item
            while emitted < number:
                self.out += steps[emitted].reply
                emitted += 1
            if kind == ERROR_RESPONSE:
                failed_at = number
                failure = self._error(payload, steps, number)
                continue
            step = steps[number]
            if kind == DATA_ROW:
                await self._row(step, payload)
            else:
                await self._reply(steps, step, number, expectation, kind, payload)
            if self._refusal is not None:
                failed_at = number
        if self._refusal is not None:
            failure = Failure(refusal_fields(self._refusal), refusal=self._refusal, server_failed=server_failed)
        if failure is None:
            for step in steps[emitted:]:
                self.out += step.reply
            return None
        for step in reversed(steps[failed_at:]):
            if step.undo is not None:
                step.undo()
        if failure.refusal is not None and failure.refusal is self._refusal:
            for step in steps[failed_at + 1 :]:
                if step.run is not None:
                    self.runs.remove(step.run)
        return failure

    async def _reply(
        self, steps: Sequence[Step], step: Step, number: int, expectation: Expectation, kind: int, payload: bytes
    ) -> None:
        """Every reply but rows, errors and ReadyForQuery."""
        out = self.out
        shown = not expectation.ours
        if kind in (COMMAND_COMPLETE, pipeline.PORTAL_SUSPENDED, pipeline.EMPTY_QUERY_RESPONSE):
            await self._end_of_rows(step, kind, payload, shown)
            self._arm(steps, number + 1)
        elif kind == ROW_DESCRIPTION:
            plan = step.plan
            self._learn(step, payload)
            if plan is not None and plan.swallow_rows:
                if shown and not (step.portal is not None and step.portal.simple):
                    out += NO_DATA
            elif step.portal is not None and step.portal.copy is not None:
                if shown and not step.portal.simple:
                    out += NO_DATA
            elif shown:
                out += visible_columns(payload, plan.hidden_columns if plan is not None else 0)
        elif not shown:
            return
        elif kind == pipeline.BIND_COMPLETE:
            out += BIND_COMPLETE
        elif kind == pipeline.CLOSE_COMPLETE:
            out += CLOSE_COMPLETE
        elif kind == pipeline.NO_DATA:
            if not (step.portal is not None and step.portal.simple):
                out += NO_DATA
        elif kind == pipeline.PARAMETER_DESCRIPTION:
            types = ParameterDescription.decode(payload).types
            out += ParameterDescription(types[: step.parameters]).encode()

    def _learn(self, step: Step, payload: bytes) -> None:
        """Note where the columns of a result come from whose keys are counted."""
        prepared = step.portal.prepared if step.portal is not None else None
        if prepared is None or prepared.limits.distinct_keys_per_hour is None or self._shown is None:
            return
        if prepared.plan is not None:
            self._shown.describe(prepared.plan, payload)

    async def _row(self, step: Step, payload: bytes) -> None:
        portal, run, plan = step.portal, step.run, step.plan
        if plan is None or portal is None or plan.swallow_rows or run is None:
            return
        if run.mark < 0:
            run.mark = len(self.out)
        run.rows += 1
        counter = portal.cursor or portal
        counter.rows += 1
        limits = portal.prepared.limits
        if limits.rows is not None and counter.rows > limits.rows:
            self._refuse(run, too_many_rows(limits.rows))
            return
        self._begin_copy(portal, run)
        if (plan.results and any(plan.results)) or limits.distinct_keys_per_hour is not None:
            row = list(decode_data_row(payload))
            del row[: plan.hidden_columns]
            self._rows.append(row)
            self._rows_bytes += len(payload)
            if len(self._rows) >= BATCH_ROWS or self._rows_bytes >= BATCH_BYTES:
                await self._release(step, run)
        else:
            if portal.copy is not None:
                message = _copied(portal.copy, run, decode_data_row(payload)[plan.hidden_columns :])
            else:
                message = visible_row(payload, plan.hidden_columns)
            self._count(run, len(message))
            if self._refusal is not None:
                return
            self.out += message
        if len(self.out) >= (BATCH_BYTES if self.streamed else STREAM_BYTES):
            await self._stream()

    def _begin_copy(self, portal: Portal, run: Run) -> None:
        """Tell the client once that rows of a COPY follow."""
        if portal.copy is not None and run.copied is None:
            run.copied = 0
            self.out += portal.copy.begin()

    async def _release(self, step: Step, run: Run) -> None:
        """Transform the rows that were gathered, and add them to what the client receives."""
        rows, self._rows, self._rows_bytes = self._rows, [], 0
        portal, plan = step.portal, step.plan
        if not rows or self._refusal is not None or portal is None or plan is None:
            return
        width = len(rows[0])
        formats = portal.result_formats
        formats = (0,) * width if not formats else formats * width if len(formats) == 1 else formats
        began = time.perf_counter()
        try:
            await self._count_keys(portal, rows, 0)
            released = await self._enforcement.release(self._agent, portal.prepared, rows, formats)
        except Refusal as refusal:
            self._refuse(run, refusal)
            return
        finally:
            run.tokenize += time.perf_counter() - began
        decoded = [n for n, result in enumerate(plan.results) if result is not None and result.transformation]
        for row in released:
            run.decoded += sum(1 for n in decoded if row[n] is not None)
            message = encode_data_row(row) if portal.copy is None else _copied(portal.copy, run, row)
            self._count(run, len(message))
            if self._refusal is not None:
                return
            self.out += message

    def _count(self, run: Run, size: int) -> None:
        run.bytes += size
        limit = run.portal.prepared.limits.bytes
        if limit is not None and run.bytes > limit:
            self._refuse(
                run,
                Refusal(
                    "AC-06",
                    f"the result is larger than the {limit} bytes that you may read with one statement",
                    sqlstate="53400",
                    hint="Ask for fewer rows or columns.",
                ),
            )

    async def _end_of_rows(self, step: Step, kind: int, payload: bytes, shown: bool) -> None:
        run, portal = step.run, step.portal
        if run is not None and self._rows:
            await self._release(step, run)
        if self._refusal is not None:
            return
        if kind == COMMAND_COMPLETE:
            complete = CommandComplete.decode(payload)
            if portal is not None:
                portal.done = True
            if run is not None and portal is not None and not portal.loads:
                if portal.copy is not None:
                    complete = CommandComplete(f"COPY {run.rows}")
                    self._begin_copy(portal, run)
                    self.out += portal.copy.end(first=not run.copied)
                run.tag = complete.tag
                limit = run.portal.prepared.limits.rows
                if step.plan is not None and step.plan.writes:
                    run.rows = complete.rows
                    if limit is not None and complete.rows > limit:
                        self._refuse(run, too_many_rows(limit))
                        return
                    if not step.plan.returns_rows:
                        try:
                            await self._count_keys(run.portal, [], complete.rows)
                        except Refusal as refusal:
                            self._refuse(run, refusal)
                            return
            if shown:
                self.out += complete.encode()
        elif kind == pipeline.PORTAL_SUSPENDED:
            if shown:
                self.out += PORTAL_SUSPENDED
        elif shown:
            self.out += EMPTY_QUERY_RESPONSE

    def _refuse(self, run: Run, refusal: Refusal) -> None:
        """Give up a run whose result the client must not get.  The rest of the replies is dropped."""
        self._refusal = refusal
        run.refusal = refusal
        self._rows, self._rows_bytes = [], 0
        if not self.streamed and run.mark >= 0:
            del self.out[run.mark :]
        if run.tag == "":
            self.cancel()

    def _error(self, payload: bytes, steps: Sequence[Step], number: int) -> Failure:
        """Take in the server's error to one step (or to the Sync behind the last one)."""
        server = ErrorResponse.decode(payload).fields
        code = sqlstate(server)
        step = steps[number] if number < len(steps) else None
        run = self._run_of_failure(steps, number)
        self._rows, self._rows_bytes = [], 0
        plan = step.plan if step is not None else None
        refusal, stale = judge(server, plan, self._timed_out)
        if run is not None:
            run.status = "denied" if refusal is not None else "error"
            run.sqlstate = refusal.sqlstate if refusal is not None else code
            run.error = audit_text(server)
            run.refusal = refusal
        if refusal is not None:
            return Failure(refusal_fields(refusal), refusal=refusal, stale=stale)
        fields = scrubbed_fields(server, self._permitted)
        if step is not None and step.portal is not None:
            statement = step.portal.statement
            fields |= own_position(server, plan, statement.text, statement.offset)
        return Failure(fields, stale=stale)

    def _run_of_failure(self, steps: Sequence[Step], number: int) -> Run | None:
        """The execution that an error belongs to; those behind it never happen and are forgotten."""
        if number >= len(steps):  # at Sync: a deferred constraint undoes everything
            last = next((step.run for step in reversed(steps) if step.run is not None), None)
            return last or next((run for run in reversed(self.runs) if run.portal.loads), None)
        failed = steps[number]
        run = failed.run
        for step in steps[number:]:
            if step.run is None or step.run is run:
                continue
            if run is None and step.portal is failed.portal:
                run = step.run
            else:
                self.runs.remove(step.run)
        if run is None and failed.portal is not None and failed.visible:
            run = Run(failed.portal)
            self.runs.append(run)
        return run

    async def _stream(self) -> None:
        """Send what is gathered before the unit has ended, once intents are kept; waits for a slow client."""
        if not self.streamed:
            for run in self.runs:
                if run.intent or run.local:
                    continue
                try:
                    await self._keep_intent(run)
                except Refusal as refusal:
                    self._refuse(run, refusal)
                    return
            self.streamed = True
        self._client.send(bytes(self.out))
        self.out.clear()
        for run in self.runs:
            run.mark = 0
        await self._client.drain()
        if self._client.at_end:
            raise ClientGone

    # time and cancelling

    def _arm(self, steps: Sequence[Step], first: int) -> None:
        """Start the clock of the next execution that has a limit in seconds."""
        self._disarm()
        for step in steps[first:]:
            if step.run is not None:
                seconds = step.run.portal.prepared.limits.seconds
                if seconds is not None:
                    self._timer = asyncio.get_running_loop().call_later(seconds, self.expire, seconds)
                return

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def expire(self, seconds: float) -> None:
        """The statement that runs has had its ``seconds``."""
        self._timed_out = seconds
        self.cancel()

    def cancel(self) -> None:
        """Ask the server to stop what it does for this session; nothing happens if it does nothing."""
        connection = self.connection
        if connection is None or not self.running or self._cancelling is not None:
            return
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(CANCEL_GRACE, connection.abort)
        self._cancelling = asyncio.create_task(connection.cancel())

    async def settled(self) -> None:
        """Wait until a cancel request that was sent can no longer hit anything but what it was meant for."""
        if self._cancelling is not None:
            await asyncio.wait([self._cancelling])
            self._cancelling = None


def judge(server: dict[str, str], plan: Plan | None, timed_out: float | None) -> tuple[Refusal | None, bool]:
    """What an error of the server means: a refusal that was raised on purpose, or a plan for another catalogue.

    ``timed_out`` is the limit in seconds after which the statement was cancelled, if it was.
    """
    missing = missing_setting(server)
    refusal: Refusal | None = None
    if missing == "grille_row_check" and plan is not None and plan.row_check_plan:
        refusal = Refusal("RO-02", "a row that you write would be outside of what you may see")
    elif missing == "grille_catalogue_changed":
        refusal = Refusal("ST-08", "the database was changed while the statement ran", sqlstate="40001")
    elif sqlstate(server) == "57014" and timed_out is not None:
        refusal = too_slow(timed_out)
    return refusal, plan is not None and (missing == "grille_catalogue_changed" or _is_stale(server))


def _copied(copy: CopyOut, run: Run, values: Sequence[bytes | None]) -> bytes:
    """One row of a COPY."""
    row = copy.row(values, first=not run.copied)
    run.copied = (run.copied or 0) + 1
    return row


@functools.lru_cache(maxsize=256)
def own_plan(text: str) -> Plan:
    """How a transaction command is sent: fixed ones as named statements, savepoints without a name."""
    return Plan(
        sql=text,
        name="" if '"' in text else "grille_" + text.lower().replace(" ", "_").replace(",", ""),
        parameter_types=(),
        client_parameters=0,
        literals=(),
        encode=(),
        injected=(),
        hidden_columns=0,
        swallow_rows=False,
        results=(),
        writes=False,
        row_check_plan=False,
        shared=True,
    )


def may_refuse(prepared: Prepared) -> bool:
    """Whether the proxy may still refuse the statement when its replies are there.

    A write without RETURNING that is bounded by unique keys touches at most `MAX_LISTED` rows, whatever they are.
    """
    plan, limits = prepared.plan, prepared.limits
    if plan is not None and limits.distinct_keys_per_hour is not None:
        return True
    if plan is not None and plan.writes and plan.keyed and not plan.returns_rows:
        return limits.rows is not None and limits.rows < MAX_LISTED
    return plan is not None and (limits.rows is not None or limits.bytes is not None or any(plan.results))


@functools.lru_cache(maxsize=4096)
def visible_columns(payload: bytes, hidden: int) -> bytes:
    """A RowDescription message without its first ``hidden`` columns.  Raises ProtocolViolation."""
    return RowDescription(RowDescription.decode(payload).fields[hidden:]).encode()


def visible_row(payload: bytes, hidden: int) -> bytes:
    """A DataRow message without its first ``hidden`` values.  Raises ProtocolViolation."""
    if not hidden:
        return b"D" + _LENGTH.pack(len(payload) + 4) + payload
    try:
        (count,) = _COUNT.unpack_from(payload)
        position = 2
        for _ in range(hidden):
            (length,) = _LENGTH.unpack_from(payload, position)
            position += 4 + max(0, length)
    except struct.error:
        raise ProtocolViolation("insufficient data left in message") from None
    if position > len(payload) or count < hidden:
        raise ProtocolViolation("insufficient data left in message")
    rest = payload[position:]
    return b"D" + _LENGTH.pack(len(rest) + 6) + _COUNT.pack(count - hidden) + rest


def _is_stale(server: dict[str, str]) -> bool:
    """True if a prepared statement is gone or no longer fits, or a name that was resolved no longer exists."""
    code = server.get("C")
    return code in ("26000", "42P01", "42703", "42883") or (code == "0A000" and server.get("R") in _REPLANNED)


def own_position(server: dict[str, str], plan: Plan | None, text: str, offset: int | None = 0) -> dict[str, str]:
    """The field that shows in the client's own text what a server's error complains of; empty if it cannot be traced.

    ``offset`` characters came before ``text`` in what the client sent; None: it was sent at another time.
    """
    given = server.get("P", "")
    if plan is None or offset is None or not (given.isascii() and given.isdigit()):
        return {}
    position = traced(int(given), plan.sql, text)
    return {"P": str(position + offset)} if position is not None else {}


def too_slow(seconds: float) -> Refusal:
    """The refusal of a statement that has had its seconds."""
    return Refusal(
        "AC-06",
        f"the statement took longer than the {seconds:g} seconds that you may use",
        sqlstate="57014",
        hint="Ask for less: add a condition on an indexed column, or a LIMIT.",
    )


def too_many_rows(limit: int) -> Refusal:
    """The refusal of a statement that reads or writes more rows than it may."""
    return Refusal(
        "AC-06",
        f"the statement touches more than the {limit} rows that you may read or write at once",
        sqlstate="53400",
        hint=f"Add a condition, or LIMIT {limit}.",
    )
