"""A small client of IBM MQ: for ``grille mq check``, the demo and the load tests.

It speaks what `grille.protocols.mq.requests` has, on one socket whose conversations are each a `Connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from typing import Final, Literal

import msgspec

from grille.protocols.mq import calls, channel, requests
from grille.protocols.mq.calls import FAILED
from grille.protocols.mq.requests import Described
from grille.protocols.mq.segments import REPLY, SEGMENT_LIMIT, Calls, Flag, ProtocolError, Segment, Segments, Type, cut
from grille.protocols.mq.structures import MD_SIZES, MessageDescriptor
from grille.proxy.stream import ByteStream

NO_MESSAGE: Final = 2033
CONNECTION_BROKEN: Final = 2009
_CHECK_MSG, _STREAMING_FAILURE = 11, 14
_PRODUCT: Final = "MQGR09040000"
_PLAIN: Final = Described()


class MqError(Exception):
    """A call failed; ``reason`` is its MQRC."""

    def __init__(self, call: str, reason: int) -> None:
        super().__init__(f"{call}: MQRC {reason}")
        self.reason = reason


class Got(msgspec.Struct, frozen=True):
    """A message."""

    descriptor: MessageDescriptor
    data: bytes

    def __repr__(self) -> str:
        return f"Got({len(self.data)} bytes)"


class Client:
    """One socket."""

    def __init__(self, stream: ByteStream, manager: str) -> None:
        """Use `open`."""
        self._stream = stream
        self._manager = manager
        self._segments, self._calls = Segments(), Calls(0)
        self._channel = channel.Channel()
        self._connections: dict[int, Connection] = {}
        self._begun: dict[int, asyncio.Future[None]] = {}
        self._reader: asyncio.Task[None] | None = None
        self.broken = False
        self.agreed: channel.InitialData | None = None
        """What the channel is like."""

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        channel_name: str,
        manager: str,
        *,
        context: ssl.SSLContext | None = None,
        conversations: int = 10,
        message_limit: int = 4 * 1024 * 1024,
        user: str = "",
        seconds: float = 10.0,
    ) -> Client:
        """Agree on a channel, within so many ``seconds``.  ``message_limit`` in bytes; ``user``: whom to say one is.

        Raises OSError (TimeoutError, ssl.SSLError), `MqError` or `ProtocolError`.
        """
        async with asyncio.timeout(seconds):
            _, stream = await asyncio.get_running_loop().create_connection(ByteStream, host, port)
            client = cls(stream, manager)
            try:
                if context is not None:
                    await stream.start_tls(context, server_side=False, server_hostname=host)
                await client._agree(channel_name, conversations, message_limit)
                if user:
                    client.send(channel.user_data(user, requests.simple(Type.MQCMIT)), 1)
            except BaseException:
                stream.abort()
                raise
        client._reader = asyncio.create_task(client._read())
        return client

    async def _agree(self, name: str, conversations: int, message_limit: int) -> None:
        asked = requests.proposal(
            name, self._manager, conversations=conversations, message_limit=message_limit, product=_PRODUCT
        )
        while True:
            self.send(asked)
            answer = await self._next()
            self._channel.from_manager(answer)
            if answer.type is Type.STATUS:
                raise MqError("channel", 2540 if answer.body[4:5] == b"\1" else CONNECTION_BROKEN)
            if not answer.flags & Flag.ERROR:
                break
            asked = channel.adopted(asked, answer)
        if not self._channel.multiplexed:
            raise ProtocolError("the queue manager shares no conversations (SHARECNV)")
        if not answer.little:
            raise ProtocolError("the most significant byte comes first: this client does not speak so (Grille does)")
        told = self.agreed = channel.initial_data(answer)
        self._segments.limit = told.segment_limit
        self._calls.limit = told.message_limit

    async def connect(self, application: str = "grille") -> Connection:
        """MQCONN, on a conversation of its own.  Raises `MqError`."""
        number = max(self._connections, default=-1) + 2
        connection = self._connections[number] = Connection(self, number)
        if number > 1:
            begun = self._begun[number] = asyncio.get_running_loop().create_future()
            self.send(requests.begin(number))
            await begun
        await connection.call(requests.connect(self._manager, application), "MQCONN")
        return connection

    async def close(self) -> None:
        """Leave without a word: what is not committed is undone."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        self._stream.abort()
        self._break()

    def send(self, call: Segment, conversation: int | None = None) -> None:
        """Queue a call, on this conversation if one is named."""
        if conversation is not None:
            call = msgspec.structs.replace(call, conversation=conversation)
        self._channel.from_client(call)
        if len(call.body) + 36 <= SEGMENT_LIMIT:
            self._stream.send(call.encode())
        else:
            self._stream.send(b"".join(part.encode() for part in cut(call, SEGMENT_LIMIT)))

    async def drain(self) -> None:
        """Wait until what was sent has been taken."""
        await self._stream.drain()

    async def _next(self) -> Segment:
        while True:
            for segment in self._segments:
                call = self._calls.add(segment)
                if call is not None:
                    return call
            data = await self._stream.receive()
            if not data:
                raise MqError("channel", CONNECTION_BROKEN)
            self._segments.feed(data)

    async def _read(self) -> None:
        try:
            while True:
                call = await self._next()
                self._channel.from_manager(call)
                if call.type is Type.SOCKET_ACTION:
                    self._begun.pop(channel.socket_action(call).conversation).set_result(None)
                elif call.type is Type.HEARTBEAT:
                    if call.flags & Flag.CONFIRM_REQUEST:
                        self.send(msgspec.structs.replace(call, flags=call.flags & ~Flag.CONFIRM_REQUEST))
                elif call.conversation in self._connections:
                    self._connections[call.conversation].arrived(call)
        except (MqError, ProtocolError):
            self._stream.abort()
        finally:
            self._break()

    def _break(self) -> None:
        self.broken = True
        for begun in self._begun.values():
            if not begun.done():
                begun.set_exception(MqError("MQCONN", CONNECTION_BROKEN))
        for connection in self._connections.values():
            connection.wake()


class Connection:
    """One conversation.  All calls raise `MqError`, with 2009 once the socket is gone."""

    def __init__(self, client: Client, number: int) -> None:
        self._client = client
        self._number = number
        self._arrived: deque[Segment] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._received: dict[int, int] = {}
        self._last: dict[int, int] = {}

    def arrived(self, call: Segment) -> None:
        """The queue manager has said something."""
        self._arrived.append(call)
        self.wake()

    def wake(self) -> None:
        """Look again."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _next(self, name: str) -> Segment:
        while not self._arrived:
            if self._client.broken:
                raise MqError(name, CONNECTION_BROKEN)
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._arrived.popleft()

    def _send(self, call: Segment, name: str) -> None:
        if self._client.broken:
            raise MqError(name, CONNECTION_BROKEN)
        self._client.send(call, self._number)

    async def call(self, call: Segment, name: str) -> Segment:
        """Make a call of the interface; its reply."""
        self._send(call, name)
        await self._client.drain()
        while (reply := await self._next(name)).type != call.type + REPLY:
            pass  # of a get that was given up
        code, reason = calls.outcome(reply)
        if code == FAILED:
            raise MqError(name, reason)
        return reply

    async def open(self, queue: str, options: int, manager: str = "", dynamic: str = "") -> int:
        """MQOPEN with MQOO options; the handle."""
        return calls.handle(await self.call(requests.open_(queue, options, manager, dynamic), "MQOPEN"))

    async def put(
        self, handle: int, data: bytes, described: Described = _PLAIN, options: int = requests.NO_SYNCPOINT
    ) -> MessageDescriptor:
        """MQPUT with MQPMO options; the descriptor as the queue manager has filled it in."""
        return calls.answered_put(await self.call(requests.put(handle, data, described, options), "MQPUT"))

    async def put1(
        self,
        queue: str,
        data: bytes,
        described: Described = _PLAIN,
        options: int = requests.NO_SYNCPOINT,
        manager: str = "",
    ) -> MessageDescriptor:
        """MQPUT1."""
        return calls.answered_put(await self.call(requests.put1(queue, data, described, options, manager), "MQPUT1"))

    async def get(self, handle: int, options: int = requests.NO_SYNCPOINT, wait: float = 0.0) -> Got | None:
        """A message, with MQGMO options; None if there is none after so many seconds."""
        if wait:
            self._request(handle, options, confirmed=False, wait=wait)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    return await self._message(handle, confirmed=False)
        self._request(handle, options, confirmed=True)
        return await self._message(handle, confirmed=True)

    def _request(self, handle: int, options: int, *, confirmed: bool, wait: float = 0.0) -> None:
        call = requests.request(
            handle,
            received=self._received.pop(handle, 0),
            options=options | bool(wait),
            confirmed=confirmed,
            wait=int(wait * 1000),
            last=self._last.get(handle, 0),
        )
        self._send(call, "MQGET")

    async def _message(self, handle: int, *, confirmed: bool) -> Got | None:
        got: Got | None = None
        failed = 0
        while True:
            call = await self._next("MQGET")
            if call.type is Type.ASYNC_MESSAGE:
                told = calls.message(call)
                self._last[handle] = int.from_bytes(call.body[12:16], _order(call))
                self._received[handle] = self._received.get(handle, 0) + MD_SIZES[told.message.version] + told.length
                got = Got(told.message, call.body[told.data_at : told.data_at + told.length])
            elif call.type is Type.NOTIFICATION:
                said = calls.notification(call)
                if said.code == _STREAMING_FAILURE:
                    failed = said.value
                elif said.code != _CHECK_MSG:
                    continue
                if not confirmed and failed:
                    raise MqError("MQGET", failed)
            if confirmed and call.type is Type.NOTIFICATION and call.request == 3:
                if failed:
                    raise MqError("MQGET", failed)
                return got
            if not confirmed and got is not None:
                return got

    async def inquire(self, handle: int, *selectors: int, characters: int = 0) -> tuple[list[int], bytes]:
        """MQINQ: integers, and ``characters`` bytes of character attributes."""
        reply = await self.call(requests.inquire(handle, selectors, characters), "MQINQ")
        at = calls.API + 12 + 4 * len(selectors)
        order = _order(reply)
        count = int.from_bytes(reply.body[calls.API + 4 : calls.API + 8], order)
        numbers = [int.from_bytes(reply.body[at + 4 * n : at + 4 * n + 4], order, signed=True) for n in range(count)]
        return numbers, reply.body[at + 4 * count :]

    async def close(self, handle: int) -> None:
        """MQCLOSE."""
        await self.call(requests.simple(Type.MQCLOSE, handle), "MQCLOSE")

    async def commit(self) -> None:
        """MQCMIT."""
        await self.call(requests.simple(Type.MQCMIT), "MQCMIT")

    async def backout(self) -> None:
        """MQBACK."""
        await self.call(requests.simple(Type.MQBACK), "MQBACK")

    async def disconnect(self) -> None:
        """MQDISC, which commits."""
        await self.call(requests.simple(Type.MQDISC), "MQDISC")


def _order(call: Segment) -> Literal["little", "big"]:
    return "little" if call.little else "big"
