"""One conversation of an IBM MQ channel: what its client may ask of the queue manager, and the record of it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from grille.audit.event import Chain, Level, Message, Outcome, Relation
from grille.audit.event import Verdict as EventVerdict
from grille.controls import Refusal
from grille.protocols.mq import calls, selection
from grille.protocols.mq.calls import ASYNC_RESPONSE, FAILED, TRUNCATED, Put
from grille.protocols.mq.payload import Mismatch
from grille.protocols.mq.segments import REPLY, SINGLE, WHOLE, ProtocolError, Segment, Type
from grille.protocols.mq.structures import MessageDescriptor, ObjectDescriptor
from grille.protocols.operation import Access
from grille.proxy.enforcement import Verdict, granted
from grille.proxy.layouts import QueueLayout
from grille.proxy.queues import QueueTerms, relation
from grille.proxy.quota import QuotaReached

if TYPE_CHECKING:
    from grille.proxy.channel import ChannelSession

NOT_AUTHORIZED: Final = 2035
NO_MESSAGE: Final = 2033
REASONS: Final = {
    "0A000": 2298,  # MQRC_FUNCTION_NOT_SUPPORTED
    "34000": 2019,  # MQRC_HOBJ_ERROR
    "3D000": 2058,  # MQRC_Q_MGR_NAME_ERROR
    "22P02": 2110,  # MQRC_FORMAT_ERROR
    "42P01": 2085,  # MQRC_UNKNOWN_OBJECT_NAME
    "54000": 2030,  # MQRC_MSG_TOO_BIG_FOR_Q
    "57P01": 2161,  # MQRC_Q_MGR_QUIESCING
    "58000": 2102,  # MQRC_RESOURCE_PROBLEM
    "58030": 2102,
}
"""What a client is told for a refusal, by its SQLSTATE; `NOT_AUTHORIZED` for any other."""

_PROTECTION_POLICIES: Final = "SYSTEM.PROTECTION.POLICY.QUEUE"
"""Clients look for message-protection policies there, and take 2035 for the answer to the call that they make."""
_QUEUE, _QUEUE_MANAGER = 1, 5
_OPENS_FOR: Final[tuple[tuple[int, Access], ...]] = ((0x07, "get"), (0x08, "browse"), (0x10, "put"), (0x20, "inquire"))
"""MQOO bits by the access that they ask for."""
_OPENS_WITH: Final = 0x7F_E380
"""MQOO bits that any open may have: SAVE_ALL_CONTEXT, PASS_*_CONTEXT, FAIL_IF_QUIESCING, BIND_*, RESOLVE_*, CO_OP,
READ_AHEAD and NO_READ_AHEAD, NO_MULTICAST, BIND_ON_GROUP."""
_FORGERY: Final = 0x1C00
"""MQPMO SET_IDENTITY_CONTEXT, SET_ALL_CONTEXT, ALTERNATE_USER_AUTHORITY."""
_SYNC_RESPONSE: Final = 0x2_0000
_SYNCPOINT: Final = 0x2
"""Of MQPMO and MQGMO."""
_NO_SYNCPOINT: Final = 0x4
_SYNCPOINT_IF_PERSISTENT: Final = 0x1000
_BROWSE_FIRST, _BROWSE_NEXT = 0x10, 0x20
_BROWSES: Final = 0x830
"""MQGMO BROWSE_FIRST, BROWSE_NEXT, BROWSE_MSG_UNDER_CURSOR."""
_NOT_CARRIED: Final = 0x0800_0008
"""MQGMO PROPERTIES_IN_HANDLE, whose layout is not known, and SET_SIGNAL."""
_MANAGER_SELECTORS: Final = frozenset({2, 13, 14, 30, 31, 32, 273, 2006, 2015, 2032})
"""What IBM's clients ask about a queue manager: CCSID, longest message, highest priority, syncpoint, level, platform,
capability, dead-letter queue, name and id."""
_DELETE: Final = 0x3
"""MQCO DELETE and DELETE_PURGE."""
_CHECK_MSG, _STREAMING_FAILURE = 11, 14
_ACCEPTED: Final = 0x40

_ACTIONS: Final = {
    Type.MQCONN: "connect", Type.MQDISC: "disconnect", Type.MQOPEN: "open", Type.SPI: "open", Type.MQPUT: "put",
    Type.MQPUT1: "put", Type.MQGET: "get", Type.REQUEST_MSGS: "get", Type.MQINQ: "inquire", Type.MQCMIT: "commit",
    Type.MQBACK: "backout",
}  # fmt: skip
"""The action that an event names, by the call; other calls have an event only if they are refused."""
_WRITES: Final = frozenset({"put", "get", "quarantine", "commit", "backout", "disconnect"})
"""Actions that change queues: their events are kept like those of statements that write."""
_BESIDE_CALLS: Final = (Type.REQUEST_MSGS, Type.NOTIFICATION)
"""What a client may send while a call is under way."""
_MOST_CALLS: Final = 1000
"""Calls of one conversation that may wait before its socket is read no further."""

Use = tuple[str, str, Access]
"""Queue manager, queue and access."""


class Handle(msgspec.Struct):
    """What the client has open."""

    manager: str
    queue: str
    """As the client opened it; empty: the queue manager itself."""
    selection: str = ""
    """The policy's part of the selection string that it was opened with."""
    leads: tuple[str, str] | None = None
    """Queue manager and queue that the name leads to, if it is another's."""
    layout: QueueLayout | None = None
    made: bool = False
    """The queue was made by this open."""
    sizes: deque[tuple[int, int]] = msgspec.field(default_factory=deque)
    """Of messages with a layout that the client has not said to have received: bytes as it got them, and as the queue
    manager sent them."""
    request: Segment | None = None
    """The last request for messages, as the queue manager got it."""
    until: float = 0.0
    """When its wait is over; 0: it has no end, or is none."""
    again: bool = False
    """The queue manager's answer to it is swallowed, and it is made again."""
    wanted: Access = "get"
    """How messages were asked for last, and the decision about that."""
    verdict: Verdict | None = None
    cached: bool = False
    options: int = 0
    """MQGMO of that, as the client said."""
    kept: bool = False
    """The queue manager was asked to keep a message that is got until a unit of work ends, unlike the client said."""
    confirmed: bool = False
    """The client waits to hear whether there is a message."""

    def received(self, size: int) -> int:
        """As many bytes as the client has received, as the queue manager counts them."""
        total = 0
        while self.sizes and (size > 0 or self.sizes[0][0] == 0):
            theirs, ours = self.sizes.popleft()
            size -= theirs
            total += ours
        return total


class Pending(msgspec.Struct):
    """A call whose answer has not come."""

    call: Segment
    action: str
    began: float
    """Unix time."""
    clock: float
    uses: tuple[Use, ...] = ()
    verdict: Verdict | None = None
    cached: bool = False
    message: Message | None = None
    intent: str = ""
    what: ObjectDescriptor | None = None
    """Of an open."""
    selection: str = ""
    """Of an open: the policy's part of it."""
    options: int = 0
    """MQPMO or MQGMO, as the client said."""
    kept: bool = False
    """Of MQGET: as `Handle.kept`."""
    length: int = -1
    """Of a put whose data were changed: bytes of the client's; else -1."""
    encoded: int = 0
    decoded: int = 0
    chain: Chain = Chain()


class Conversation:
    """Its calls, one after the other, and what the queue manager says of them."""

    def __init__(self, session: ChannelSession) -> None:
        """Serve it until the channel or the conversation ends; a failure ends the channel."""
        self._session = session
        self._services = session.services
        self._client: deque[Segment] = deque()
        self._manager: deque[Segment] = deque()
        self._held = 0
        self._arrived: asyncio.Future[None] | None = None
        self._roomy: asyncio.Future[None] | None = None
        self._handles: dict[int, Handle] = {}
        self._pending: Pending | None = None
        self._busy = False
        self._unit = False
        """A unit of work is open."""
        self._application = ""
        self._unanswered = [0, 0]
        """Asynchronous puts since the client asked last: how many went well, how many failed."""
        self._unanswered_reason = 0
        self._task = session.spawn(self._run())

    # what the session uses

    @property
    def idle(self) -> bool:
        """No call is under way, and no unit of work is open."""
        return not (self._pending or self._busy or self._client or self._unit)

    def take(self, call: Segment, *, of_client: bool) -> None:
        """A call has arrived."""
        (self._client if of_client else self._manager).append(call)
        self._held += len(call.body)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def room(self) -> None:
        """Wait while too much waits to be served."""
        limit = 2 * self._services.config.mq.max_message_bytes
        while self._held > limit or len(self._client) + len(self._manager) > _MOST_CALLS:
            self._roomy = asyncio.get_running_loop().create_future()
            await self._roomy

    async def end(self) -> None:
        """The client leaves."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.abandoned()

    async def abandoned(self) -> None:
        """Record what will never be answered.  Raises `Refusal`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            await self._keep(pending, Outcome("unknown"))

    # one call after the other

    async def _run(self) -> None:
        while True:
            if self._manager:
                self._busy = True
                await self._from_manager(self._taken(self._manager))
            elif self._client and (self._pending is None or self._client[0].type in _BESIDE_CALLS):
                self._busy = True
                await self._from_client(self._taken(self._client))
            else:
                self._busy = False
                self._session.look_at_end()
                await self._wait()
                continue
            await self._session.drained()

    def _taken(self, waiting: deque[Segment]) -> Segment:
        call = waiting.popleft()
        self._held -= len(call.body)
        if self._roomy is not None and not self._roomy.done():
            self._roomy.set_result(None)
        return call

    async def _wait(self) -> None:
        self._arrived = asyncio.get_running_loop().create_future()
        try:
            await self._arrived
        finally:
            self._arrived = None

    async def _ask(self, call: Segment) -> Segment:
        """The queue manager's answer to a call of Grille's own, or to one whose answer the client does not get."""
        self._session.to_manager(call)
        return await self._arrival(call.type + REPLY)

    async def _arrival(self, kind: int) -> Segment:
        """The next segment of this type from the queue manager; others stay where they are."""
        while True:
            for number, found in enumerate(self._manager):
                if found.type == kind:
                    del self._manager[number]
                    self._held -= len(found.body)
                    return found
            await self._wait()

    # what the client asks

    async def _from_client(self, call: Segment) -> None:
        self._session.front.channel.from_client(call)
        pending = Pending(call, _ACTIONS.get(call.type, ""), time.time(), time.perf_counter())
        try:
            if call.type in _ACTIONS:
                self._services.recorder.check()
            await self._asked(call, pending)
        except Refusal as refusal:
            await self._refuse(pending, refusal)

    async def _asked(self, call: Segment, pending: Pending) -> None:
        """Check a call, and pass it on.  Raises `Refusal` or `ProtocolError`."""
        match call.type:
            case Type.USERID_DATA:
                pass  # the queue manager was told another
            case Type.CONAUTH_INFO:
                self._session.to_client(accepted(call))
            case Type.NOTIFICATION:
                calls.notification(call)
                self._session.to_manager(call)
            case Type.REQUEST_MSGS:
                await self._request(call, pending)
            case Type.MQCONN:
                self._connect(call)
                await self._forward(pending)
            case Type.MQOPEN:
                await self._open(call, pending)
            case Type.SPI:
                await self._service(call, pending)
            case Type.MQPUT | Type.MQPUT1:
                await self._put(call, pending)
            case Type.MQGET:
                await self._get(call, pending)
            case Type.MQINQ:
                await self._inquire(call, pending)
            case Type.MQCLOSE:
                handle = self._handle(calls.handle(call))
                if calls.close_options(call) & _DELETE and handle.queue not in self._session.dynamic:
                    raise Refusal("MQ-01", "only a queue that was made for you is yours to delete")
                await self._forward(pending)
            case Type.MQCMIT | Type.MQBACK | Type.MQDISC | Type.MQSTAT:
                await self._forward(pending)
            case Type.MQSET:
                raise Refusal("MQ-01", "attributes of a queue are not set through this proxy")
            case _:
                raise _unsupported(f"{call.type.name} is not carried")

    async def _forward(self, pending: Pending, call: Segment | None = None) -> None:
        """Pass a call on, as it is or changed; its intent is kept first where that is due."""
        if self._level(pending.action) == "strict" and pending.action in _WRITES:
            await self._keep_intent(pending)
        self._pending = pending
        self._session.to_manager(call or pending.call)

    def _connect(self, call: Segment) -> None:
        told = calls.connect(call)
        self._application = told.application
        name = self._session.manager.name
        if told.manager not in ("", "*", name):
            raise Refusal("ID-04", f"this agent is registered for the queue manager {name}", sqlstate="3D000")
        if self._session.draining:
            raise Refusal("OP-01", "this node is going out of service", sqlstate="57P01")

    async def _service(self, call: Segment, pending: Pending) -> None:
        try:
            verb = calls.spi_verb(call)
        except ProtocolError as error:
            raise _unsupported(str(error)) from None
        if verb == "open":
            await self._open(call, pending)
        else:
            pending.action = ""
            await self._forward(pending)

    async def _open(self, call: Segment, pending: Pending) -> None:
        told = calls.open_(call)
        what = pending.what = told.what
        if what.kind == _QUEUE_MANAGER:
            if told.options & ~(0x20 | _OPENS_WITH):
                raise _not_an_access()
            pending.action = ""
            await self._forward(pending)
            return
        manager = self._queue(what)
        layout = self._layout(manager, what.name)
        accesses = [access for bits, access in _OPENS_FOR if told.options & bits]
        if not accesses or told.options & ~(0x3F | _OPENS_WITH):
            raise _not_an_access()
        if layout is not None and call.eyecatcher == SINGLE and {"get", "browse"} & set(accesses):
            raise Refusal("AC-05", "a queue with a layout is read on a socket that shares conversations (SHARECNV)")
        pending.uses = tuple((manager, what.name, access) for access in accesses)
        for use in pending.uses:
            pending.verdict, pending.cached = await self._decide(use)
            if use[2] in ("get", "browse"):
                selected = _terms(pending.verdict).selection
                if pending.selection not in ("", selected):
                    raise Refusal("AC-05", "getting and browsing in one open need one filter")
                pending.selection = selected
        if what.version < 3:
            call = calls.with_version(call, 3)
        call = self._with_selection(call, what, pending.selection)
        if "get" in accesses:
            call = calls.without_read_ahead(call)
        await self._forward(pending, call)

    def _layout(self, manager: str, queue: str) -> QueueLayout | None:
        """The layout of a queue; None: its messages pass as they are."""
        payloads = self._services.payloads
        return payloads.of(relation(manager, queue)) if payloads is not None else None

    @staticmethod
    def _with_selection(call: Segment, what: ObjectDescriptor, policys: str) -> Segment:
        """The open, for the messages that both the client and the policy select.  Raises `Refusal`."""
        if not policys:
            return call
        if call.type is not Type.SPI:
            raise _unsupported("a filter of messages takes an open of the service interface")
        try:
            if what.selection:
                policys = selection.both(selection.text_of(what.selection, what.selection_ccsid), policys)
        except ProtocolError as error:
            raise Refusal("AC-05", f"the policy's filter cannot be added: {error}") from None
        if len(policys.encode()) > selection.MAX_LENGTH:
            raise Refusal("AC-05", "the selection string is too long with the policy's filter")
        return calls.with_selection(call, policys)

    def _queue(self, what: ObjectDescriptor) -> str:
        """Whose queue is named.  Raises `Refusal` if it is none."""
        if what.name == _PROTECTION_POLICIES:
            raise Refusal("MQ-02", "message protection is not carried", sqlstate="42P01")
        if what.kind not in (0, _QUEUE) or what.records or not what.name or what.object_string:
            raise Refusal("MQ-02", "only queues, one by one, and the queue manager itself can be opened")
        return what.manager or self._session.manager.name

    async def _put(self, call: Segment, pending: Pending) -> None:
        told = calls.put(call)
        pending.message, pending.options = _message(told.message, told.length), told.options.options
        if told.what is not None:
            manager, queue = self._queue(told.what), told.what.name
            leads, layout = None, self._layout(manager, queue)
        else:
            handle = self._handle(told.handle)
            manager, queue, leads, layout = handle.manager, handle.queue, handle.leads, handle.layout
        use: Use = (manager, queue, "put")
        pending.uses = (use,)
        if told.options.options & _FORGERY:
            raise Refusal("MQ-01", "a message is from who puts it: its context cannot be set, nor another user named")
        if told.options.records:
            raise Refusal("MQ-02", "a distribution list is not carried")
        pending.verdict, pending.cached = await self._decide(use)
        if leads is not None:
            await self._decide_leads(leads, "put", "")
        await self._check_put(told, pending.verdict)
        if told.what is not None:
            await self._check_leads(call, manager, queue)
        await self._count(pending.verdict)
        if layout is not None:
            call = await self._tokenized(call, told, layout, pending)
        if told.options.options & ASYNC_RESPONSE:
            await self._put_unanswered(call, pending)
        else:
            await self._forward(pending, call)

    async def _tokenized(self, call: Segment, told: Put, layout: QueueLayout, pending: Pending) -> Segment:
        """The put, with tokens for values.  Raises `Refusal`."""
        data = call.body[told.data_at : told.data_at + told.length]
        assert self._services.payloads is not None  # noqa: S101
        try:
            changed = await self._services.payloads.tokenized(layout, told.message, data)
        except Mismatch as mismatch:
            raise Refusal(
                "MQ-04", f"the message has not the layout {layout.name}: {mismatch}", sqlstate="22P02"
            ) from None
        pending.encoded, pending.length = changed.tokens, told.length
        pending.chain = _chain(changed.properties)
        return calls.with_data(call, changed.data)

    async def _check_put(self, told: Put, verdict: Verdict) -> None:
        """Raise `Refusal` for a message that is too long, or whose replies would go where its sender may not read."""
        limit = verdict.decision.limits.bytes
        if limit is not None and told.length > limit:
            raise Refusal("AC-06", f"the message is longer than the {limit} bytes that your policy allows",
                          sqlstate="54000")  # fmt: skip
        message, name = told.message, self._session.manager.name
        if message.reply_queue:
            try:
                await self._decide((message.reply_manager or name, message.reply_queue, "get"))
            except Refusal as refusal:
                refusal.control = "MQ-03"
                refusal.message = f"replies may go only to a queue that you may read: {refusal.message}"
                raise

    async def _check_leads(self, call: Segment, manager: str, queue: str) -> None:
        """Find out where the name of an MQPUT1 leads, which its own reply would tell too late.  Raises `Refusal`."""
        session = self._session
        if manager == session.manager.name and (queue in session.local or queue in session.dynamic):
            return
        reply = await self._ask(calls.resolving(call, "" if manager == session.manager.name else manager, queue))
        code, reason = calls.outcome(reply)
        if code == FAILED:
            raise _Answered(reason)
        what = calls.opened(reply)
        await self._ask(calls.closing(call, calls.handle(reply)))
        if what.name != queue:
            raise Refusal("MQ-02", "a message is put to a queue, not to a model of one")
        await self._check_resolved((manager, queue, "put"), what)

    async def _check_resolved(self, use: Use, what: ObjectDescriptor, policys: str = "") -> tuple[str, str] | None:
        """The queue that a name leads to, if it is another, once the policy was asked about it too.

        ``policys``: its part of the selection that the queue is opened with.  Raises `Refusal`.
        """
        manager, queue, access = use
        if not what.resolved_name:
            if access == "inquire":
                return None
            raise Refusal("AC-05", "the queue manager does not tell where the name leads")
        found = (what.resolved_manager or manager, what.resolved_name)
        if found != (manager, queue):
            layout = self._layout(*found)
            if layout is not None and layout is not self._layout(manager, queue):
                raise Refusal("AC-05", "the queue that the name leads to has a layout: open it by its own name")
            await self._decide_leads(found, access, policys)
            return found
        if manager == self._session.manager.name:
            self._session.local.add(queue)
        return None

    async def _decide_leads(self, leads: tuple[str, str], access: Access, policys: str) -> None:
        """Ask the policy about the queue behind a name.  Raises `Refusal`."""
        verdict, _ = await self._decide((*leads, access))
        if _terms(verdict).selection not in ("", policys):
            raise Refusal("AC-05", "messages of the queue that the name leads to are filtered: open it by its own name")

    async def _put_unanswered(self, call: Segment, pending: Pending) -> None:
        """A put that the client does not wait for: the queue manager is asked all the same, for the record's sake."""
        options = pending.options & ~ASYNC_RESPONSE | _SYNC_RESPONSE
        if self._level("put") == "strict":
            await self._keep_intent(pending)
        self._pending = pending
        reply = await self._ask(calls.with_options(call, options))
        self._pending = None
        code, reason = calls.outcome(reply)
        self._count_unanswered(reason if code == FAILED else 0)
        await self._keep(pending, self._put_outcome(pending, reply))

    def _count_unanswered(self, reason: int) -> None:
        self._unanswered[bool(reason)] += 1
        self._unanswered_reason = self._unanswered_reason or reason

    async def _get(self, call: Segment, pending: Pending) -> None:
        told = calls.get(call)
        pending.options = told.options.options
        await self._decide_get(told.handle, pending)
        options = self._kept_options(pending, None, told.options.wait)
        if options is not None:
            pending.kept, call = True, calls.with_get_options(call, options)
        await self._forward(pending, call)

    async def _request(self, call: Segment, pending: Pending) -> None:
        told = calls.request(call)
        pending.options = told.options
        handle = await self._decide_get(told.handle, pending)
        handle.verdict, handle.cached = pending.verdict, pending.cached
        handle.options, handle.confirmed = told.options, told.confirmed
        options = self._kept_options(pending, handle.layout, 1 if told.listening else told.wait)
        handle.kept = options is not None
        if options is not None or handle.layout is not None:
            received = handle.received(told.received) if handle.layout is not None else told.received
            call = calls.with_request(call, options=pending.options if options is None else options, received=received)
        handle.request, handle.again = call, False
        handle.until = time.monotonic() + told.wait / 1000 if told.wait > 0 else 0.0
        self._session.to_manager(call)

    def _kept_options(self, pending: Pending, layout: QueueLayout | None, wait: int) -> int | None:
        """MQGMO options with which the queue manager keeps the message that is got until the client has it.

        None where it does so anyway, and where it would not be this message alone: the client has a unit of work open,
        and gets outside of it.  Raises `Refusal` for that where the message could have to be given back: it may not be
        as the layout of its queue says, or come after a wait in which the policy changes.
        """
        if pending.action != "get" or pending.options & _SYNCPOINT:
            return None
        if self._unit and not pending.options & _SYNCPOINT_IF_PERSISTENT:
            if layout is not None or wait:
                raise Refusal("AC-05", "a get outside of the open unit of work cannot be made safe: end that first")
            return None
        return pending.options & ~(_NO_SYNCPOINT | _SYNCPOINT_IF_PERSISTENT) | _SYNCPOINT

    async def _let_go(self, call: Segment, options: int, *, persistent: bool) -> None:
        """The client has a message that the queue manager kept: end the unit of work, unless that is the client's.

        Raises `Refusal` UP-01 if the queue manager does not: it gives the message to somebody once more.
        """
        if options & _SYNCPOINT_IF_PERSISTENT and (persistent or self._unit):
            self._unit = True
            return
        await self._session.drained()
        await self._alone()
        await self._commit(call)

    async def _alone(self) -> None:
        """Wait until no call is under way: there is one at a time."""
        while self._pending is not None:
            await self._from_manager(await self._arrival(self._pending.call.type + REPLY))

    async def _commit(self, like: Segment) -> None:
        """End Grille's own unit of work.  Raises `Refusal` UP-01."""
        reply = await self._ask(calls.ending(like, Type.MQCMIT))
        code, reason = calls.outcome(reply)
        if code == FAILED:
            raise Refusal("UP-01", "the queue manager has not let go of a message", sqlstate="08006", fatal=True,
                          detail_for_audit=f"MQCMIT: {reason}")  # fmt: skip

    async def _decide_get(self, number: int, pending: Pending) -> Handle:
        handle = self._handle(number)
        access: Access = "browse" if pending.options & _BROWSES else "get"
        pending.action = handle.wanted = access
        use: Use = (handle.manager, handle.queue, access)
        pending.uses = (use,)
        if pending.options & _NOT_CARRIED:
            raise _unsupported("message properties in a handle, and signals, are not carried")
        pending.verdict, pending.cached = await self._decide(use)
        if _terms(pending.verdict).selection != handle.selection:
            raise Refusal("AC-05", "the policy's filter of messages has changed: open the queue anew")
        if handle.leads is not None:
            await self._decide_leads(handle.leads, access, handle.selection)
        await self._count(pending.verdict)
        return handle

    async def _inquire(self, call: Segment, pending: Pending) -> None:
        told = calls.inquiry(call)
        handle = self._handle(told.handle)
        if handle.queue:
            use: Use = (handle.manager, handle.queue, "inquire")
            pending.uses = (use,)
            pending.verdict, pending.cached = await self._decide(use)
        elif not set(told.selectors) <= _MANAGER_SELECTORS:
            raise Refusal("MQ-02", "of the queue manager only what a client needs to begin with can be inquired")
        await self._forward(pending)

    def _handle(self, number: int) -> Handle:
        handle = self._handles.get(number)
        if handle is None:
            raise Refusal("WP-01", "the handle is not open", sqlstate="34000")
        return handle

    async def _decide(self, use: Use) -> tuple[Verdict, bool]:
        """The decision about an access; about one to a queue that was made for the client, that about its model.

        Raises `Refusal`.
        """
        manager, queue, access = use
        if manager == self._session.manager.name:
            queue = self._session.dynamic.get(queue, queue)
        return await self._session.queues.decide(self._session.agent, manager, queue, access)

    async def _count(self, verdict: Verdict) -> None:
        """Count a call against its agent's minute.  Raises `Refusal` AC-06."""
        limits = verdict.decision.limits
        if limits.statements_per_minute is not None:
            try:
                await self._services.counters.count(self._session.agent.spiffe_id, limits)
            except QuotaReached as reached:
                self._session.quota_reached(verdict, reached)
                raise

    async def _refuse(self, pending: Pending, refusal: Refusal) -> None:
        """Answer a call that goes no further, once that is recorded."""
        call = pending.call
        if isinstance(refusal, _Answered):
            reason, outcome, verdict = refusal.reason, Outcome("error", reason=refusal.reason), None
        else:
            reason = reason_of(refusal)
            outcome = Outcome("denied", sqlstate=refusal.sqlstate, reason=reason, error=refusal.detail_for_audit or "")
            verdict = refused_verdict(refusal)
        if refusal.control != "AU-01":
            await self._keep(pending, outcome, verdict=verdict)
        if call.type in (Type.MQPUT, Type.MQPUT1) and pending.options & ASYNC_RESPONSE:
            self._count_unanswered(reason)
        for answer in calls.refused(call, reason):
            self._session.to_client(answer)

    # what the queue manager answers

    async def _from_manager(self, call: Segment) -> None:
        if call.type is Type.ASYNC_MESSAGE:
            await self._message(call)
        elif call.type is Type.NOTIFICATION:
            await self._notified(call)
        else:
            pending, self._pending = self._pending, None
            if pending is None:
                raise ProtocolError(f"{call.type.name} answers no call")
            try:
                call = await self._answered(pending, call)
            except Refusal as refusal:
                if refusal.control == "AU-01" or refusal.fatal:
                    raise
                await self._refuse(pending, refusal)
            else:
                self._session.to_client(call)
                if pending.kept and calls.outcome(call)[0] != FAILED:
                    got = calls.get(call).message
                    await self._let_go(pending.call, pending.options, persistent=got.persistence == 1)

    async def _answered(self, pending: Pending, reply: Segment) -> Segment:
        """Record an answer; what the client gets of it.  Raises `Refusal`, AU-01 if it cannot be recorded."""
        code, reason = calls.outcome(reply)
        status: Any = "error" if code == FAILED else "ok"
        outcome = Outcome(status, reason=reason)
        match pending.call.type:
            case Type.MQOPEN | Type.SPI:
                reply = await self._opened(pending, reply, code)
            case Type.MQCLOSE if code != FAILED:
                closed = self._handles.pop(calls.handle(pending.call), None)
                if closed is not None and closed.made:
                    self._session.dynamic.pop(closed.queue, None)
            case Type.MQPUT | Type.MQPUT1:
                outcome = self._put_outcome(pending, reply)
                if pending.length >= 0 and code != FAILED:
                    reply = calls.with_put_length(reply, pending.length)
            case Type.MQGET:
                if code != FAILED:
                    await self._still_given(pending)
                outcome = self._got(pending, reply)
                if pending.kept:
                    reply = calls.with_get_options(reply, pending.options)
            case Type.MQCMIT | Type.MQBACK | Type.MQDISC:
                self._unit = False
            case Type.MQSTAT:
                succeeded, failed = self._unanswered
                if code != FAILED and (succeeded or failed):
                    reply = calls.with_failures(reply, self._unanswered_reason, succeeded, failed)
                    self._unanswered, self._unanswered_reason = [0, 0], 0
        if pending.action:
            await self._keep(pending, outcome)
        return reply

    async def _opened(self, pending: Pending, reply: Segment, code: int) -> Segment:
        asked = pending.what
        if asked is None:
            return reply
        if code == FAILED:
            return calls.as_asked(reply, pending.call) if len(reply.body) > calls.API else reply
        number = calls.handle(reply)
        if asked.kind == _QUEUE_MANAGER:
            self._handles[number] = Handle(self._session.manager.name, "")
            return reply
        what = calls.opened(reply)
        manager = pending.uses[0][0]
        leads = None
        made = what.name != asked.name
        if made:
            self._session.dynamic[what.name] = self._session.dynamic.get(asked.name, asked.name)
        else:
            try:
                for use in pending.uses:
                    leads = await self._check_resolved(use, what, pending.selection) or leads
            except Refusal:
                await self._ask(calls.closing(pending.call, number))
                raise
        layout = self._layout(manager, what.name)
        self._handles[number] = Handle(manager, what.name, pending.selection, leads, layout, made)
        if any(access == "get" for _, _, access in pending.uses):
            reply = calls.without_read_ahead(reply)
        return calls.as_asked(reply, pending.call)

    def _put_outcome(self, pending: Pending, reply: Segment) -> Outcome:
        code, reason = calls.outcome(reply)
        if code == FAILED:
            return Outcome("error", reason=reason)
        put = calls.answered_put(reply)
        if pending.message is not None:
            pending.message = msgspec.structs.replace(
                pending.message, id=put.message_id.hex(), correlation=put.correlation_id.hex()
            )
        self._unit = self._unit or bool(pending.options & _SYNCPOINT)
        size = pending.message.bytes if pending.message else 0
        return Outcome("ok", reason=reason, rows=1, bytes=size, encoded=pending.encoded)

    def _got(self, pending: Pending, reply: Segment) -> Outcome:
        code, reason = calls.outcome(reply)
        if code == FAILED:
            return Outcome("ok" if reason == NO_MESSAGE else "error", reason=reason)
        told = calls.get(reply)
        pending.message = _message(told.message, told.room)
        return self._delivered(pending.options, told.message, told.room, reason)

    def _delivered(self, options: int, message: MessageDescriptor, size: int, reason: int) -> Outcome:
        if reason == TRUNCATED[1]:
            return Outcome("ok", reason=reason)  # it is still on the queue
        persistent = options & _SYNCPOINT_IF_PERSISTENT and message.persistence == 1
        if not options & _BROWSES and (options & _SYNCPOINT or persistent):
            self._unit = True
        return Outcome("ok", reason=reason, rows=1, bytes=size)

    async def _message(self, call: Segment) -> None:
        """A message on its way to the client."""
        told = calls.message(call)
        handle = self._handles.get(told.handle)
        if handle is None or handle.verdict is None:
            raise ProtocolError("a message that nobody asked for")
        handle.confirmed = False
        pending = Pending(
            call, handle.wanted, time.time(), time.perf_counter(), ((handle.manager, handle.queue, handle.wanted),),
            handle.verdict, handle.cached, _message(told.message, told.whole),
        )  # fmt: skip
        try:
            await self._still_allowed(handle, pending)
        except Refusal as refusal:
            await self._give_back(handle, pending, refusal)
            return
        if handle.layout is not None:
            shown = await self._shown(call, told, handle, pending)
            if shown is None:
                return
            call = shown
        outcome = self._delivered(handle.options, told.message, told.whole, told.reason)
        await self._keep(pending, msgspec.structs.replace(outcome, decoded=pending.decoded))
        self._session.to_client(call, told.data_at)
        if handle.kept and told.reason != TRUNCATED[1]:
            await self._let_go(call, handle.options, persistent=told.message.persistence == 1)

    async def _still_allowed(self, handle: Handle, pending: Pending) -> None:
        """Decide again as a message comes: it may have been waited for for long.  Raises `Refusal`."""
        pending.verdict, pending.cached = await self._decide(pending.uses[0])
        handle.verdict = pending.verdict
        if _terms(pending.verdict).selection != handle.selection:
            raise Refusal("AC-05", "the policy's filter of messages has changed: open the queue anew")
        if handle.leads is not None:
            await self._decide_leads(handle.leads, handle.wanted, handle.selection)

    async def _still_given(self, pending: Pending) -> None:
        """`_still_allowed` for a message that answers an MQGET: it is given back if not.

        Raises `Refusal`, a fatal one where giving it back takes the end of the channel.
        """
        try:
            await self._still_allowed(self._handle(calls.handle(pending.call)), pending)
        except Refusal as refusal:
            if pending.action == "get":
                refusal.fatal = self._unit or not pending.kept
                if not refusal.fatal:
                    await self._ask(calls.ending(pending.call, Type.MQBACK))
            raise

    async def _shown(self, call: Segment, told: calls.Message, handle: Handle, pending: Pending) -> Segment | None:
        """A message of a queue with a layout, as the client may see it; None: it gets another, or a refusal."""
        layout, verdict = handle.layout, handle.verdict
        assert layout is not None and verdict is not None and self._services.payloads is not None  # noqa: S101
        data = call.body[told.data_at : told.data_at + told.length]
        try:
            changed = await self._services.payloads.shown(layout, told.message, data, _terms(verdict).reads)
        except Mismatch as mismatch:
            await self._quarantine(call, told, handle, layout, str(mismatch))
            return None
        except Refusal as refusal:
            await self._give_back(handle, pending, refusal)
            return None
        pending.decoded, pending.chain = changed.tokens, _chain(changed.properties)
        size = told.message.size
        handle.sizes.append((size + len(changed.data), size + told.length))
        return calls.with_data(call, changed.data)

    async def _quarantine(
        self, call: Segment, told: calls.Message, handle: Handle, layout: QueueLayout, why: str
    ) -> None:
        """Move a message that has not its layout to where such messages are kept, and ask for the next.

        Raises `Refusal` UP-01 if it cannot be moved: the channel ends, and the queue manager has the message still.
        """
        refusal = Refusal("MQ-04", f"the message has not the layout {layout.name}: {why}", sqlstate="22P02")
        pending = Pending(
            call, "quarantine" if handle.wanted == "get" else "browse", time.time(), time.perf_counter(),
            ((handle.manager, handle.queue, handle.wanted),), handle.verdict, handle.cached,
            _message(told.message, told.whole),
        )  # fmt: skip
        size = told.message.size + told.length
        if handle.wanted == "get":
            pending.uses = (*pending.uses, (handle.manager, layout.quarantine, "put"))
            await self._alone()
            code, reason = calls.outcome(await self._ask(calls.moving(call, layout.quarantine)))
            if code == FAILED:
                what = f"a message cannot be moved to {layout.quarantine}"
                raise Refusal("UP-01", what, sqlstate="08006", fatal=True,
                              detail_for_audit=f"MQPUT1: {reason}; {why}")  # fmt: skip
        await self._keep(pending, Outcome("denied", sqlstate="22P02", reason=reason_of(refusal)),
                         refused_verdict(refusal))  # fmt: skip
        if handle.wanted == "get" and not self._unit:
            await self._commit(call)
        await self._next(handle, size)

    async def _next(self, handle: Handle, size: int) -> None:
        """Ask for the message behind one of so many bytes that the client does not get."""
        request = handle.request
        assert request is not None  # noqa: S101
        told = calls.request(request)
        options = told.options
        if options & _BROWSE_FIRST:
            options = options & ~_BROWSE_FIRST | _BROWSE_NEXT
        handle.request = calls.with_request(request, options=options, received=size)
        if told.confirmed:
            handle.again = True  # once its answer has come
        elif handle.until and time.monotonic() >= handle.until:
            handle.sizes.append((0, size))  # the client does not wait any more
        elif any(each.type is Type.REQUEST_MSGS and calls.request(each).handle == told.handle for each in self._client):
            handle.sizes.append((0, size))
        else:
            self._session.to_manager(handle.request)

    async def _give_back(self, handle: Handle, pending: Pending, refusal: Refusal) -> None:
        """Refuse a message that may not be had, or not be decoded now; it stays on its queue.

        Raises the refusal if it is in the client's unit of work, which is undone as the channel ends, and if no call
        waits for the message: nothing else would be noticed.
        """
        request = handle.request
        assert request is not None  # noqa: S101
        kept = handle.wanted == "get"
        if (kept and (self._unit or not handle.kept)) or calls.request(request).listening:
            raise refusal
        await self._keep(pending, Outcome("denied", sqlstate=refusal.sqlstate, reason=reason_of(refusal),
                                          error=refusal.detail_for_audit or ""), refused_verdict(refusal))  # fmt: skip
        if kept:
            await self._alone()
            await self._ask(calls.ending(request, Type.MQBACK))
        for answer in calls.refused(msgspec.structs.replace(request, flags=int(WHOLE), request=1), reason_of(refusal)):
            self._session.to_client(answer)

    async def _notified(self, call: Segment) -> None:
        told = calls.notification(call)
        handle = self._handles.get(told.handle)
        if handle is not None and handle.again and told.code == _CHECK_MSG and handle.request is not None:
            handle.again, handle.confirmed = False, True
            self._session.to_manager(handle.request)
            return
        nothing = told.code == _CHECK_MSG and handle is not None and handle.confirmed
        if handle is not None and (nothing or told.code == _STREAMING_FAILURE):
            handle.confirmed = False
            reason = NO_MESSAGE if nothing else told.value
            pending = Pending(
                call, handle.wanted, time.time(), time.perf_counter(), ((handle.manager, handle.queue, handle.wanted),),
                handle.verdict, handle.cached,
            )  # fmt: skip
            await self._keep(pending, Outcome("ok" if nothing else "error", reason=reason))
        self._session.to_client(call)

    # the record

    def _level(self, action: str) -> Level:
        return self._services.recorder.level(writes=action in _WRITES)

    async def _keep_intent(self, pending: Pending) -> None:
        event = self._event(pending, Outcome("intent"), self._allowed(pending))
        await self._services.recorder.keep(event)
        pending.intent = event.id

    async def _keep(self, pending: Pending, outcome: Outcome, verdict: EventVerdict | None = None) -> None:
        event = self._event(pending, outcome, verdict or self._allowed(pending))
        await self._services.recorder.keep(event)
        self._services.metrics.observe(event, pending.action or "other")

    @staticmethod
    def _allowed(pending: Pending) -> EventVerdict | None:
        verdict = pending.verdict
        if verdict is None:
            return None
        return granted(verdict, filters_hash=verdict.filters_hash, cached=pending.cached)

    def _event(self, pending: Pending, outcome: Outcome, verdict: EventVerdict | None) -> Any:
        kind = pending.call.type
        name = {Type.SPI: "MQOPEN", Type.REQUEST_MSGS: "MQGET", Type.ASYNC_MESSAGE: "MQGET"}.get(kind, kind.name)
        if kind is Type.NOTIFICATION:
            name = "MQGET"
        queues = dict.fromkeys(relation(manager, queue) for manager, queue, _ in pending.uses)
        template = " ".join((name, *queues))
        elapsed = int((time.perf_counter() - pending.clock) * 1e6)
        return self._session.event(
            "statement",
            "statement",
            self._level(pending.action),
            pending.began,
            application=self._application,
            template=template,
            template_sha256=hashlib.sha256(template.encode()).hexdigest(),
            action=pending.action,
            chain=pending.chain,
            relations=tuple(self._relation(pending, use) for use in pending.uses),
            message=pending.message,
            verdict=verdict,
            outcome=outcome,
            intent="" if outcome.status == "intent" else pending.intent,
            stages={} if outcome.status == "intent" else {"total": elapsed},
        )

    def _relation(self, pending: Pending, use: Use) -> Relation:
        manager, queue, access = use
        layout = self._layout(manager, queue)
        if layout is None:
            return Relation(relation(manager, queue), access)
        reads = _terms(pending.verdict).reads if pending.verdict is not None else {}
        return Relation(relation(manager, queue), access, tuple(sorted(layout.fields)), sensitive=reads)


class _Answered(Refusal):
    """The queue manager itself refuses what the call would do."""

    def __init__(self, reason: int) -> None:
        super().__init__("UP-02", "the queue manager refuses it")
        self.reason = reason


def _terms(verdict: Verdict) -> QueueTerms:
    (terms,) = verdict.values
    assert isinstance(terms, QueueTerms)  # noqa: S101
    return terms


def _chain(properties: dict[str, str]) -> Chain:
    """The call chain that the properties of a message tell of."""
    traceparent = properties.get("usr.traceparent")
    return Chain(source="message", trust="asserted", traceparent=traceparent[:256]) if traceparent else Chain()


def reason_of(refusal: Refusal) -> int:
    """The MQRC that tells a client of a refusal."""
    return REASONS.get(refusal.sqlstate, NOT_AUTHORIZED)


def refused_verdict(refusal: Refusal) -> EventVerdict:
    """What an event says of a refusal."""
    return EventVerdict(
        id=refusal.decision_id or "",
        allow=False,
        control=refusal.control,
        reason=refusal.message,
        revision=refusal.revision,
    )


def accepted(call: Segment) -> Segment:
    """The answer to credentials: they are neither checked nor passed on, for the certificate says who the agent is."""
    return msgspec.structs.replace(call, type=Type.STATUS, flags=_ACCEPTED, body=b"")


def _unsupported(what: str) -> Refusal:
    return Refusal("WP-02", what, sqlstate="0A000")


def _not_an_access() -> Refusal:
    return Refusal("MQ-01", "an open may ask for get, browse, put and inquire, and not for another user or context")


def _message(descriptor: MessageDescriptor, size: int) -> Message:
    reply = descriptor.reply_queue
    if reply and descriptor.reply_manager:
        reply = f"{reply}@{descriptor.reply_manager}"
    return Message(
        id=descriptor.message_id.hex(),
        correlation=descriptor.correlation_id.hex(),
        bytes=size,
        format=descriptor.format,
        ccsid=descriptor.ccsid,
        encoding=descriptor.encoding,
        persistent=descriptor.persistence == 1,
        reply_to=reply,
        backouts=descriptor.backout_count,
    )
