"""One client's channel of IBM MQ: relayed to its queue manager, call by call, under the policy.

The two legs agree with their peers for themselves, and on the same values, so what is not changed passes as it is.
Everything is read before it goes on: a call out of turn, or one that is not understood, ends the channel.  Each
conversation is served by a task of its own, so one that waits (for the policy, the evidence, a queue manager's answer
to a call of Grille's own) does not hold up the others of its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import socket
import ssl
import time
from collections.abc import Coroutine
from typing import Any, Final, Literal

from grille.audit.encoding import event_id, timestamp
from grille.audit.event import Event, Level, Outcome
from grille.controls import Refusal
from grille.protocols.mq import calls, channel
from grille.protocols.mq.segments import (
    MULTIPLEXED,
    SEGMENT_LIMIT,
    SINGLE,
    SOCKET,
    Calls,
    Flag,
    ProtocolError,
    Segment,
    Segments,
    Type,
    cut,
)
from grille.proxy import config
from grille.proxy.conversation import Conversation, accepted, reason_of, refused_verdict
from grille.proxy.enforcement import Verdict
from grille.proxy.identity import Agent
from grille.proxy.listener import unregistered
from grille.proxy.queues import Queues
from grille.proxy.quota import QuotaReached
from grille.proxy.services import Services
from grille.proxy.stream import ByteStream
from grille.proxy.upstream import keep_alive

log = logging.getLogger("grille.channel")

_FOREVER: Final = 1e6
"""Seconds; no channel is open for longer, and a timer of the loop cannot be for ever."""


class MqDoor:
    """`Door` of IBM MQ: TLS from the first byte on."""

    alpn = ""

    def __init__(self, name: str) -> None:
        """``name``: of the channel that clients ask for."""
        self._name = name

    async def before_tls(self, accepted: socket.socket) -> Literal["direct"]:
        """Nothing comes in clear."""
        return "direct"

    def check(self, agent: Agent) -> None:
        """Raise `Refusal` for an agent that has no queue manager."""
        if not agent.queue_manager:
            raise unregistered(agent, "queue manager")

    async def tell(self, stream: ByteStream, refusal: Refusal) -> None:
        """Let the client connect as far as to MQCONN, which is refused.  Raises `ProtocolError`."""
        leg = _Leg(stream)
        with contextlib.suppress(ProtocolError, _Ended):
            asked = await leg.next()
            agreed = channel.restricted(
                asked, self._name, segment_limit=SEGMENT_LIMIT, message_limit=1 << 20, conversations=1
            )
            await _agree(leg, asked, agreed)
            while True:
                call = await leg.next()
                if call.type is Type.CONAUTH_INFO:
                    leg.send(accepted(call))
                elif call.type is Type.MQCONN:
                    for answer in calls.refused(call, reason_of(refusal)):
                        leg.send(answer)
                    await stream.receive()  # until the client has read it


class _Ended(Exception):
    """The peer has left."""


class _Leg:
    """One side of the relay: a socket, cut into calls, and what may come on it."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.segments = Segments()
        self.calls = Calls(0)
        self.channel = channel.Channel()
        self.limit = SEGMENT_LIMIT

    def agreed(self, told: channel.InitialData) -> None:
        """Take the limits that were agreed."""
        self.limit = self.segments.limit = max(told.segment_limit, SEGMENT_LIMIT // 8)
        self.calls.limit = told.message_limit

    async def next(self) -> Segment:
        """The next whole call.  Raises `_Ended` or `ProtocolError`."""
        while True:
            for segment in self.segments:
                call = self.calls.add(segment)
                if call is not None:
                    return call
            data = await self.stream.receive()
            if not data:
                raise _Ended
            self.segments.feed(data)

    @property
    def halfway(self) -> bool:
        """A segment or a call has begun and is not whole."""
        return bool(self.segments.pending or self.calls.held)

    def send(self, call: Segment, data_at: int = 0) -> None:
        """Queue a call for the peer.  Raises `ProtocolError` if it does not fit a segment."""
        pad = call.eyecatcher != SINGLE
        if len(call.body) + 36 <= self.limit:
            self.stream.send(call.encode(pad=pad))
            return
        try:
            parts = cut(call, self.limit, data_at=data_at)
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        for part in parts:
            self.stream.send(part.encode(pad=pad))


class ChannelSession:
    """One client's socket, from the handshake on."""

    def __init__(self, stream: ByteStream, agent: Agent, peer: str, services: Services) -> None:
        self.stream = stream
        self.agent = agent
        self.services = services
        self.manager = next(each for each in services.config.queue_managers if each.name == agent.queue_manager)
        self.queues: Queues = services.queues[agent.queue_manager]
        self.dynamic: dict[str, str] = {}
        """Queues that were made for this client, and the model of each."""
        self.local: set[str] = set()
        """Names that are known to be of a queue of this queue manager, and not to lead elsewhere."""
        self.front = _Leg(stream)
        self.back: _Leg | None = None
        self._id = event_id(time.time())
        self._peer = peer
        self._conversations: dict[int, Conversation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._draining = False

    # the whole life

    async def run(self) -> None:
        """Serve the client until it leaves, breaks the protocol, or the channel has to end."""
        self.services.metrics.sessions.inc()
        connected = False
        end: Refusal | None = None
        expiry = None
        try:
            async with asyncio.timeout(self.services.config.listener.handshake_timeout):
                begun = await self._begin()
            if begun:
                await self._note("connect", level=self.services.recorder.level(writes=False), scopes=self.agent.scopes,
                                 attributes=self.agent.attributes, action="connect")  # fmt: skip
                connected = True
                left = (self.agent.not_after - dt.datetime.now(dt.UTC)).total_seconds()
                expired = Refusal("ID-06", "your certificate has expired", sqlstate="28000", fatal=True)
                if left < _FOREVER:
                    expiry = asyncio.get_running_loop().call_later(left, self.cut, expired)
                self.spawn(self._from_client())
                self.spawn(self._from_manager())
                await self._ended
        except Refusal as refusal:
            end = refusal
        except ProtocolError as error:
            end = Refusal("WP-01", "a message of the channel is not understood", sqlstate="08P01", fatal=True,
                          detail_for_audit=str(error))  # fmt: skip
        except TimeoutError:
            end = Refusal("WP-04", "the handshake took too long", sqlstate="08P01", fatal=True)
        except (_Ended, ConnectionError):
            pass
        except asyncio.CancelledError:
            end = Refusal("OP-01", "this node is going out of service", sqlstate="57P01", fatal=True)
            raise
        except Exception:
            log.exception("a session failed", extra={"fields": {"session": self._id}})
            end = Refusal("UP-01", "the proxy met an internal error", sqlstate="XX000", fatal=True)
        finally:
            if expiry is not None:
                expiry.cancel()
            self.services.metrics.sessions.dec()
            await self._close(end, connected)

    async def _close(self, end: Refusal | None, connected: bool) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.back is not None:
            self.back.stream.close()
        if end is not None:
            like = Segment(Type.STATUS, eyecatcher=SOCKET if self.front.channel.multiplexed else SINGLE)
            code = channel.TERMINATING if end.sqlstate == "57P01" else channel.PROTOCOL
            with contextlib.suppress(ProtocolError):
                self.front.send(channel.ended(code, like))
        self.stream.close()
        with contextlib.suppress(Refusal):
            for conversation in self._conversations.values():
                await conversation.abandoned()
            if end is not None:
                outcome = Outcome("denied", sqlstate=end.sqlstate, error=end.detail_for_audit or "")
                await self._note("refused", verdict=refused_verdict(end), outcome=outcome)
            if connected:
                await self._note("disconnect")

    def drain(self) -> None:
        """End as soon as no conversation has anything under way."""
        self._draining = True
        self.look_at_end()

    def look_at_end(self) -> None:
        """End if this node drains and nothing is under way."""
        if self._draining and all(conversation.idle for conversation in self._conversations.values()):
            self.cut(Refusal("OP-01", "this node is going out of service", sqlstate="57P01", fatal=True))

    async def drained(self) -> None:
        """Wait until both peers have taken enough of what was sent.  Raises `_Ended`."""
        for leg in (self.front, self.back):
            if leg is not None:
                await leg.stream.drain()
                if leg.stream.at_end:
                    raise _Ended

    @property
    def draining(self) -> bool:
        """No new connection is begun."""
        return self._draining or self.services.draining.is_set()

    def cut(self, refusal: Refusal) -> None:
        """End at once, and say why."""
        self._fail(refusal)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something for as long as the channel lives; its end, or its failure, ends the channel."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self._fail(error)
            else:
                self._fail(_Ended())

        task = asyncio.create_task(guarded(), name="channel")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
            self._ended.exception()  # it may come when nobody waits any more

    # the beginning

    async def _begin(self) -> bool:
        """Agree with both sides; False if the client was told why that cannot be.

        Raises `ProtocolError`, `_Ended`, TimeoutError, `Refusal`.
        """
        asked = await self.front.next()
        self.front.channel.from_client(asked)
        mq = self.services.config.mq
        told = channel.initial_data(asked)
        if told.channel != mq.channel:
            self.front.send(channel.ended(channel.NO_CHANNEL, asked))
            raise Refusal("ID-04", f"the client asked for another channel than {mq.channel}", sqlstate="08P01")
        proposal = channel.restricted(
            asked,
            self.manager.channel,
            segment_limit=SEGMENT_LIMIT,
            message_limit=mq.max_message_bytes,
            conversations=mq.conversations,
        )
        try:
            self.back = _Leg(await _dial(self.manager))
            agreed = await self._propose(self.back, proposal)
        except (OSError, ProtocolError, _Ended) as error:
            self.front.send(channel.ended(channel.NO_MANAGER, asked))
            raise Refusal("UP-01", "the queue manager cannot be reached", sqlstate="08006",
                          detail_for_audit=str(error) or type(error).__name__) from None  # fmt: skip
        await _agree(self.front, asked, agreed)
        told = channel.initial_data(agreed)
        self.front.agreed(told)
        self.back.agreed(told)
        shared = self.front.channel.multiplexed
        if shared != self.back.channel.multiplexed:
            raise ProtocolError("the client and the queue manager disagree on sharing conversations")
        first = 1 if shared else 0
        like = Segment(Type.USERID_DATA, conversation=first, eyecatcher=MULTIPLEXED if shared else SINGLE,
                       little=agreed.little)  # fmt: skip
        self.to_manager(channel.user_data(self.agent.queue_manager_user, like))
        self._begun(first)
        return True

    @staticmethod
    async def _propose(back: _Leg, proposal: Segment) -> Segment:
        """Agree with the queue manager; its last INITIAL_DATA.  Raises `ProtocolError` or `_Ended`."""
        for _ in range(2):
            back.channel.from_client(proposal)
            back.send(proposal)
            answer = await back.next()
            back.channel.from_manager(answer)
            if answer.type is Type.STATUS:
                raise ProtocolError("the queue manager refuses the channel")
            if not answer.flags & Flag.ERROR:
                break
            proposal = channel.adopted(proposal, answer)
        return answer

    # what arrives

    async def _from_client(self) -> None:
        while True:
            call = await self._next_of_client()
            if call.type in (Type.STATUS, Type.HEARTBEAT, Type.SOCKET_ACTION, Type.INITIAL_DATA):
                self.front.channel.from_client(call)
                if call.type is Type.SOCKET_ACTION:
                    await self._action(call)
                else:
                    self.to_manager(call)
                if self.front.channel.state is channel.State.CLOSED:
                    return
                continue
            conversation = self._conversations.get(call.conversation)
            if conversation is None:
                raise ProtocolError(f"{call.type.name} on a conversation that does not exist")
            conversation.take(call, of_client=True)
            await conversation.room()

    async def _next_of_client(self) -> Segment:
        """The next call.  Raises `Refusal` WP-04 if the rest of one does not come."""
        seconds = self.services.config.listener.idle_message_timeout
        leg = self.front
        while True:
            for segment in leg.segments:
                call = leg.calls.add(segment)
                if call is not None:
                    return call
            try:
                async with asyncio.timeout(seconds if leg.halfway else None):
                    data = await self.stream.receive()
            except TimeoutError:
                raise Refusal("WP-04", f"the rest of a message did not arrive within {seconds:g} seconds",
                              sqlstate="08P01", fatal=True) from None  # fmt: skip
            if not data:
                raise _Ended
            leg.segments.feed(data)

    async def _action(self, call: Segment) -> None:
        told = channel.socket_action(call)
        if told.action == channel.END_CONV:
            conversation = self._conversations.pop(told.conversation, None)
            if conversation is not None:
                await conversation.end()
            self.front.calls.forget(told.conversation)
        self.to_manager(call)
        assert self.back is not None  # noqa: S101
        await self.back.stream.drain()

    async def _from_manager(self) -> None:
        assert self.back is not None  # noqa: S101
        while True:
            try:
                call = await self.back.next()
                self.back.channel.from_manager(call)
            except ProtocolError as error:
                raise Refusal("UP-01", "the queue manager said what is not understood", sqlstate="08006", fatal=True,
                              detail_for_audit=str(error)) from None  # fmt: skip
            if call.type is Type.HEARTBEAT:
                self.front.send(call)
            elif call.type is Type.SOCKET_ACTION:
                number = channel.socket_action(call).conversation
                self._begun(number)
                self.to_client(call)
            else:
                conversation = self._conversations.get(call.conversation)
                if conversation is not None:  # else the client has left it
                    conversation.take(call, of_client=False)
                    await conversation.room()

    def _begun(self, number: int) -> None:
        self._conversations[number] = Conversation(self)

    # what leaves

    def to_client(self, call: Segment, data_at: int = 0) -> None:
        """Send a call to the client.  Raises `ProtocolError` if it is out of turn."""
        self.front.channel.from_manager(call)
        self.front.send(call, data_at)

    def to_manager(self, call: Segment) -> None:
        """Send a call to the queue manager.  Raises `ProtocolError` if it is out of turn."""
        assert self.back is not None  # noqa: S101
        self.back.channel.from_client(call)
        self.back.send(call)

    # the record

    def event(self, kind: Any, name: str, level: Level, when: float, **more: Any) -> Event:
        """An event of this session."""
        return Event(
            id=more.pop("id", None) or event_id(when),
            time=timestamp(when),
            kind=kind,
            name=name,
            worker=self.services.worker,
            sequence=0,
            level=level,
            spiffe_id=self.agent.spiffe_id,
            certificate_serial=self.agent.serial,
            certificate_sha256=self.agent.cert_sha256,
            session=self._id,
            client=self._peer,
            protocol="mq",
            database=self.agent.queue_manager,
            **more,
        )

    async def _note(self, name: str, level: Level = "process", **more: Any) -> None:
        await self.services.recorder.keep(self.event("session", name, level, time.time(), **more))

    def quota_reached(self, verdict: Verdict, reached: QuotaReached) -> None:
        """Tell of a call that a quota refuses."""
        reached.decision_id = verdict.id
        self.services.on_quota(self.agent, "mq", self._id, reached)


async def _agree(leg: _Leg, asked: Segment, agreed: Segment) -> None:
    """Bring a client to what was agreed with its queue manager.  Raises `ProtocolError` or `_Ended`."""
    if leg.channel.state is channel.State.NEW:
        leg.channel.from_client(asked)
    while True:
        answer = channel.answer_to(asked, agreed)
        leg.channel.from_manager(answer)
        leg.send(answer)
        if not answer.flags & Flag.ERROR:
            return
        asked = await leg.next()
        leg.channel.from_client(asked)


def upstream_context(manager: config.QueueManager) -> ssl.SSLContext:
    """How Grille speaks TLS with a queue manager.  Raises OSError (ssl.SSLError)."""
    context = ssl.create_default_context(cafile=str(manager.ca) if manager.ca is not None else None)
    if manager.client_certificate is not None:
        context.load_cert_chain(manager.client_certificate, manager.client_key)
    return context


async def _dial(manager: config.QueueManager) -> ByteStream:
    """A connection to a queue manager, encrypted unless the configuration says ``off``.  Raises OSError."""
    async with asyncio.timeout(manager.connect_timeout):
        _, stream = await asyncio.get_running_loop().create_connection(ByteStream, manager.host, manager.port)
        try:
            keep_alive(stream)
            if manager.tls != "off":
                await stream.start_tls(
                    upstream_context(manager),
                    server_side=False,
                    server_hostname=manager.host,
                    handshake_timeout=manager.connect_timeout,
                )
        except BaseException:
            stream.abort()
            raise
    return stream
