"""A stand-in for a queue manager, which IBM's own Java client takes for one.

It keeps messages in memory, and answers what a client of the MQ classes for Java or JMS asks on a server-connection
channel: negotiation, conversations on one socket, open, put, get, browse, inquire, units of work, dynamic queues.  What
a real queue manager does beyond that (persistence, publish and subscribe, distribution lists, XA) it does not do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import ssl
import struct
from dataclasses import dataclass, field
from typing import Final

from grille.protocols.mq import calls, channel
from grille.protocols.mq.channel import ACCEPT_CONV, END_CONV, START_CONV, initial_data, socket_action
from grille.protocols.mq.segments import (
    MULTIPLEXED,
    SEGMENT_LIMIT,
    SINGLE,
    WHOLE,
    Calls,
    Flag,
    ProtocolError,
    Segment,
    Segments,
    Type,
    cut,
)
from grille.protocols.mq.structures import Fields

NAME: Final = "QM1"
MESSAGE_LIMIT: Final = 104_857_600
_SYNCPOINT, _IF_PERSISTENT = 0x2, 0x1000
_BROWSE_FIRST, _BROWSE_NEXT, _UNDER_CURSOR, _BROWSE_CURSOR = 0x10, 0x20, 0x100, 0x800
_NEW_MESSAGE_ID, _NEW_CORRELATION_ID = 0x40, 0x80
_LISTENING: Final = 0x01
"""RequestFlags of a consumer that is called with messages."""
_BY_ID, _BY_CORRELATION, _BY_TOKEN = 1, 2, 32
_QUERY: Final = (
    (1, 2, 2, 2, 1), (2, 1, 3, 1, 1), (3, 2, 2, 3, 1), (4, 1, 1, 1, 1), (5, 1, 1, 1, 1), (6, 1, 1, 1, 1),
    (7, 1, 1, 1, 1), (8, 1, 1, 1, 1), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (11, 1, 1, 1, 1), (12, 1, 2, 2, 1),
)  # fmt: skip
"""Verbs of the service interface with their versions, as current queue managers tell of them."""
_ATTRIBUTES: Final[dict[int, int | bytes]] = {
    31: 943, 32: 3, 2: 819, 273: 1, 2015: NAME.encode().ljust(48), 2032: b"QM1_2026-01-01_00.00.00".ljust(48),
    2006: b" " * 48, 3: 0, 15: 5000, 13: 4194304, 8: 1, 9: 0, 10: 0, 20: 1, 17: 1, 18: 1, 22: 0, 7: 1, 2019: b" " * 48,
}  # fmt: skip
"""Attributes by selector; what is asked besides is 2067."""
_BASE_QUEUE: Final = 2002
_CHARACTERS: Final = 2001
"""Selectors from here on name attributes of characters."""


@dataclass
class Stored:
    """A message on a queue."""

    descriptor: bytearray
    """MQMD version 2."""
    data: bytes
    token: bytes

    @property
    def message_id(self) -> bytes:
        return bytes(self.descriptor[48:72])

    @property
    def correlation_id(self) -> bytes:
        return bytes(self.descriptor[72:96])

    @property
    def persistent(self) -> bool:
        return int.from_bytes(self.descriptor[44:48], "little") == 1


@dataclass
class Queue:
    """Messages in the order in which they are given out."""

    name: str
    messages: list[Stored] = field(default_factory=list)
    temporary: bool = False
    waiting: list[tuple[Conversation, Handle]] = field(default_factory=list)


@dataclass
class Handle:
    """Something that a conversation has opened."""

    number: int
    queue: Queue | None
    """None: the queue manager itself."""
    request: Request | None = None
    cursor: int = -1
    """Place of the message that was browsed last."""
    md_version: int = 2
    index: int = 0
    selection: int = 0
    match: tuple[bytes, bytes, bytes] = (b"", b"", b"")
    """Message id, correlation id and token; zeros and nothing match every message."""


@dataclass
class Request:
    """What a client waits for."""

    options: int
    until: float | None
    """Loop time; None: for ever."""


@dataclass
class Conversation:
    """One connection of an application."""

    number: int
    peer: Peer
    handles: dict[int, Handle] = field(default_factory=dict)
    put: list[tuple[Queue, Stored]] = field(default_factory=list)
    got: list[tuple[Queue, Stored]] = field(default_factory=list)
    started: bool = True
    _next: int = 0

    def open(self, queue: Queue | None) -> Handle:
        self._next += 2
        made = self.handles[self._next] = Handle(self._next, queue)
        return made


class Manager:
    """Queues, shared by all sockets.  ``denied``: queues of which every open is refused with 2035."""

    def __init__(self, queues: tuple[str, ...] = (), *, denied: tuple[str, ...] = ()) -> None:
        self.queues = {name: Queue(name) for name in (*queues, "SYSTEM.PROTECTION.POLICY.QUEUE")}
        self.denied = denied
        self.model = "SYSTEM.DEFAULT.MODEL.QUEUE"
        self._numbers = itertools.count(1)
        self._peers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, port: int = 0, context: ssl.SSLContext | None = None) -> int:
        """Accept clients; the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=context)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End every socket."""
        if self._server is not None:
            self._server.close()
        for task in list(self._peers):
            task.cancel()
        await asyncio.gather(*self._peers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._peers.add(task)
        peer = Peer(self, writer)
        try:
            while data := await reader.read(1 << 16):
                peer.receive(data)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass
        except ProtocolError as error:
            print(f"stand-in: {error}", flush=True)
        finally:
            peer.gone()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._peers.discard(task)

    def number(self) -> int:
        """One that was not given before: of ids, tokens and dynamic queues."""
        return next(self._numbers)

    def give(self, queue: Queue) -> None:
        """Serve who waits for messages of this queue."""
        for conversation, handle in list(queue.waiting):
            conversation.peer.serve(conversation, handle)


class Peer:
    """One socket."""

    def __init__(self, manager: Manager, writer: asyncio.StreamWriter) -> None:
        self.manager = manager
        self.writer = writer
        self.talks: dict[int, Conversation] = {}
        self.multiplexed = False
        self._segments = Segments()
        self._calls = Calls(MESSAGE_LIMIT)
        self._channel = channel.Channel()

    def receive(self, data: bytes) -> None:
        """Answer what has arrived.  Raises `ProtocolError`."""
        self._segments.feed(data)
        for segment in self._segments:
            call = self._calls.add(segment)
            if call is not None:
                self._channel.from_client(call)
                self._answer(call)

    def gone(self) -> None:
        """What was not committed is taken back."""
        for conversation in list(self.talks.values()):
            self._end(conversation)

    def send(self, call: Segment, *, data_at: int = 0, shadow: bool = True) -> None:
        """Send a call of ours, in as many segments as it takes."""
        if shadow:
            self._channel.from_manager(call)
        for segment in cut(call, SEGMENT_LIMIT, data_at=data_at) if call.type >= Type.ASYNC_MESSAGE else [call]:
            self.writer.write(segment.encode())

    # the socket

    def _answer(self, call: Segment) -> None:
        match call.type:
            case Type.INITIAL_DATA:
                self._negotiate(call)
            case Type.HEARTBEAT:
                if call.flags & Flag.CONFIRM_REQUEST:
                    self.send(Segment(Type.HEARTBEAT, b"", WHOLE, eyecatcher=call.eyecatcher))
            case Type.SOCKET_ACTION:
                self._action(call)
            case Type.USERID_DATA:
                pass
            case Type.CONAUTH_INFO:
                self.send(Segment(Type.STATUS, b"", Flag.REQUEST_ACCEPTED, call.conversation))
            case _:
                self._call(call)

    def _negotiate(self, call: Segment) -> None:
        told = initial_data(call)
        again = call.eyecatcher == MULTIPLEXED
        received = call.body
        body = bytearray(240)
        body[:8] = b"ID  " + bytes((told.level, received[5], 0, 0))
        conversations = min(told.conversations, 10)
        struct.pack_into("<II", body, 12, SEGMENT_LIMIT, min(told.message_limit, MESSAGE_LIMIT))
        body[24:44] = told.channel.encode().ljust(20)
        struct.pack_into("<BBH", body, 44, received[44], 0, told.ccsid)
        body[48:96] = NAME.encode().ljust(48)
        struct.pack_into("<I", body, 96, told.heartbeat)
        body[104:122] = b"\0\xff\0" + b"\xff" * 15
        refuses = bool(received[132] & channel.MULTIPLEX_SYNCGET)
        struct.pack_into(
            "<iBBHIII", body, 128, conversations, received[132] & ~channel.MULTIPLEX_SYNCGET, 8 * refuses, 0, 1, 1, 1
        )
        body[148:160] = b"MQMM09040200"
        body[160:208] = b"QM1_2026-01-01_00.00.00".ljust(48)
        struct.pack_into("<10H", body, 208, 1, 0, *[0xFFFF] * 8)
        body[228:240] = os.urandom(12)
        flags = Flag.ERROR if refuses and not again else 0
        self.send(
            Segment(
                Type.INITIAL_DATA,
                bytes(body),
                flags,
                call.conversation,
                eyecatcher=MULTIPLEXED if again else SINGLE,
            )
        )
        if not flags:
            self.multiplexed = conversations > 0
            first = 1 if self.multiplexed else 0
            self.talks[first] = Conversation(first, self)

    def _action(self, call: Segment) -> None:
        told = socket_action(call)
        if told.action == START_CONV:
            self.talks[told.conversation] = Conversation(told.conversation, self)
            body = struct.pack("<IIIII", told.conversation, 0, ACCEPT_CONV, 1, 1)
            self.send(Segment(Type.SOCKET_ACTION, body, 0, told.conversation))
        elif told.action == END_CONV:
            conversation = self.talks.pop(told.conversation, None)
            if conversation is not None:
                self._end(conversation)
            if call.flags & Flag.CLOSE_CHANNEL:
                self.writer.close()

    def _end(self, conversation: Conversation) -> None:
        self._back(conversation)
        for handle in list(conversation.handles.values()):
            self._close(conversation, handle)

    # calls

    def _call(self, call: Segment) -> None:
        conversation = self.talks[call.conversation]
        answer = getattr(self, f"_{call.type.name.lower()}", None)
        if answer is None:
            self._reply(call, calls.FAILED, 2298)
        else:
            answer(call, conversation)

    def _reply(self, call: Segment, code: int = 0, reason: int = 0, handle: int = 0, rest: bytes = b"") -> None:
        length = 36 + calls.API + len(rest) - 8
        body = length.to_bytes(4, "big") + struct.pack("<IIi", code, reason, handle) + rest
        self.send(
            Segment(
                Type(call.type + 0x10), body, WHOLE, call.conversation,
                eyecatcher=call.eyecatcher, encoding=call.encoding, ccsid=call.ccsid,
            )
        )  # fmt: skip

    def _mqconn(self, call: Segment, _conversation: Conversation) -> None:
        told = calls.connect(call)
        body = bytearray(call.body)
        at = calls.API + 120
        version, flags = (
            Fields(call.body, little=call.little).u32(at + 4),
            Fields(call.body, little=call.little).u32(at + 8),
        )
        struct.pack_into("<II", body, at + 4, min(version, 3), flags | 1)
        body[at + 12 : at + 36] = b"AMQC" + NAME.encode().ljust(12) + self.manager.number().to_bytes(8, "big")
        right = told.manager in ("", "*", NAME)
        self._reply(call, *((0, 0) if right else (calls.FAILED, 2058)), rest=bytes(body[calls.API :]))

    def _mqdisc(self, call: Segment, conversation: Conversation) -> None:
        self._commit(conversation)
        self._end(conversation)
        self._reply(call)

    def _mqopen(self, call: Segment, conversation: Conversation) -> None:
        told = calls.open_(call)
        if told.what.kind == 5:
            self._reply(call, handle=conversation.open(None).number, rest=self._opened(call, told, None))
            return
        queue, reason = self._find(told)
        if queue is None:
            self._reply(call, calls.FAILED, reason, -1)
            return
        self._reply(call, handle=conversation.open(queue).number, rest=self._opened(call, told, queue))

    @staticmethod
    def _opened(call: Segment, told: calls.Open, queue: Queue | None) -> bytes:
        """The body of MQOPEN with what the answer says: one destination, no policy of message protection."""
        body = bytearray(call.body[calls.API :])
        struct.pack_into("<I", body, 172, 1)
        if queue is not None:
            body[12:60], body[60:108] = queue.name.encode().ljust(48), NAME.encode().ljust(48)
        at = told.what.size + 4
        if body[at : at + 4] == b"FOPA":
            struct.pack_into("<iiii", body, at + 12, -1, -1, -1, -1)
            struct.pack_into("<II", body, at + 76, 84, 0)
        return bytes(body)

    def _find(self, told: calls.Open) -> tuple[Queue | None, int]:
        name = told.what.name
        if name in self.manager.denied:
            return None, calls.NOT_AUTHORIZED
        if name == self.manager.model:
            real = told.what.dynamic.removesuffix("*") + f"{self.manager.number():016X}"
            self.manager.queues[real] = Queue(real, temporary=True)
            return self.manager.queues[real], 0
        queue = self.manager.queues.get(name)
        return queue, 0 if queue is not None else 2085

    def _spi(self, call: Segment, conversation: Conversation) -> None:
        start = call.body[calls.API : calls.API + 12]
        verb = calls.spi_verb(call)
        if verb == "query":
            rows = b"".join(struct.pack("<5I", *row) for row in _QUERY)
            block = struct.pack("<4sIII", b"SPQO", 1, 16 + len(rows), len(_QUERY)) + rows
            self._reply(call, rest=start + struct.pack("<4sII", b"SPQU", 1, 12) + block)
            return
        if verb == "reserve":
            base = b"AMQ " + NAME.encode().ljust(12) + self.manager.number().to_bytes(5, "big") + bytes(3)
            block = struct.pack("<4sIIII24s", b"SPRO", 1, 44, 0x00FFFFFF, 22, base)
            self._reply(call, rest=start + struct.pack("<4sII", b"SPRU", 1, 12) + block)
            return
        told = calls.open_(call)
        queue, reason = self._find(told)
        if queue is None:
            self._reply(call, calls.FAILED, reason, -1)
            return
        at = calls.API + 12 + 12 + 12
        what = bytearray(call.body[at + 88 : at + 88 + told.what.size])
        what[12:60] = queue.name.encode().ljust(48)
        what[60:108] = NAME.encode().ljust(48)
        struct.pack_into("<I", what, 172, 1)
        if len(what) >= 336:
            what[240:288], what[288:336] = queue.name.encode().ljust(48), NAME.encode().ljust(48)
        lpoo = bytearray(call.body[at : at + 88])
        struct.pack_into("<iiii", lpoo, 16, 0, 1, 0, 0)
        struct.pack_into("<II", lpoo, 80, 0, 0)
        block = struct.pack("<4sII", b"SPOO", 2, 12 + 88 + len(what)) + bytes(lpoo) + bytes(what)
        handle = conversation.open(queue)
        self._reply(call, handle=handle.number, rest=start + struct.pack("<4sII", b"SPOU", 1, 12) + block)

    def _mqclose(self, call: Segment, conversation: Conversation) -> None:
        handle = conversation.handles.get(calls.handle(call))
        if handle is None:
            self._reply(call, calls.FAILED, 2019, -1)
            return
        self._close(conversation, handle)
        self._reply(call, handle=-1)

    def _close(self, conversation: Conversation, handle: Handle) -> None:
        del conversation.handles[handle.number]
        if handle.queue is not None:
            self._forget(conversation, handle)
            if handle.queue.temporary:
                self.manager.queues.pop(handle.queue.name, None)

    @staticmethod
    def _forget(conversation: Conversation, handle: Handle) -> None:
        handle.request = None
        if handle.queue is not None and (conversation, handle) in handle.queue.waiting:
            handle.queue.waiting.remove((conversation, handle))

    def _mqinq(self, call: Segment, conversation: Conversation) -> None:
        fields = Fields(call.body, little=call.little)
        count = fields.u32(calls.API)
        selectors = [fields.u32(calls.API + 12 + 4 * place) for place in range(min(count, 256))]
        handle = conversation.handles.get(calls.handle(call))
        known = dict(_ATTRIBUTES)
        if handle is not None and handle.queue is not None:
            name = handle.queue.name.encode().ljust(48)
            known |= {3: len(handle.queue.messages), 2016: name, _BASE_QUEUE: b"*" * 48}
        if handle is None or any(selector not in known for selector in selectors):
            self._reply(call, calls.FAILED, 2067, calls.handle(call))
            return
        numbers = b"".join(struct.pack("<i", known[each]) for each in selectors if each < _CHARACTERS)
        characters = b"".join(value for each in selectors if isinstance(value := known[each], bytes))
        rest = struct.pack("<III", count, len(numbers) // 4, len(characters))
        rest += b"".join(struct.pack("<I", each) for each in selectors) + numbers + characters
        # A local queue has no base queue, as an alias has: IBM's client wants a warning, not a failure.
        warned = (1, 2068) if _BASE_QUEUE in selectors else (0, 0)
        self._reply(call, *warned, handle.number, rest)

    def _mqcmit(self, call: Segment, conversation: Conversation) -> None:
        self._commit(conversation)
        self._reply(call)

    def _mqback(self, call: Segment, conversation: Conversation) -> None:
        self._back(conversation)
        self._reply(call)

    def _commit(self, conversation: Conversation) -> None:
        written, conversation.put = conversation.put, []
        conversation.got.clear()
        for queue, stored in written:
            queue.messages.append(stored)
            self.manager.give(queue)

    def _back(self, conversation: Conversation) -> None:
        conversation.put.clear()
        taken, conversation.got = conversation.got, []
        for queue, stored in reversed(taken):
            count = int.from_bytes(stored.descriptor[96:100], "little") + 1
            stored.descriptor[96:100] = count.to_bytes(4, "little")
            queue.messages.insert(0, stored)
        for queue, _ in taken:
            self.manager.give(queue)

    def _mqstat(self, call: Segment, _conversation: Conversation) -> None:
        kind = call.body[calls.API : calls.API + 4]
        self._reply(call, rest=kind + struct.pack("<4sI", b"STAT", 1) + bytes(216))

    # messages

    def _mqput(self, call: Segment, conversation: Conversation) -> None:
        handle = conversation.handles.get(calls.handle(call))
        told = calls.put(call)
        if handle is None or handle.queue is None:
            self._reply(call, calls.FAILED, 2019, calls.handle(call))
            return
        self._store(call, conversation, handle.queue, told, call.body[calls.API : told.data_at])

    def _mqput1(self, call: Segment, conversation: Conversation) -> None:
        told = calls.put(call)
        assert told.what is not None
        queue, reason = self._find(calls.Open(told.what, 0x10))
        if queue is None:
            self._reply(call, calls.FAILED, reason)
            return
        self._store(call, conversation, queue, told, call.body[calls.API : told.data_at])

    def _store(
        self, call: Segment, conversation: Conversation, queue: Queue, told: calls.Put, structures: bytes
    ) -> None:
        """Keep a message, and answer with its structures filled in."""
        rest = bytearray(structures)
        at = 0 if told.what is None else told.what.size
        options = told.options.options
        if options & _NEW_MESSAGE_ID or not told.message.message_id.strip(b"\0 "):
            rest[at + 48 : at + 72] = b"AMQ " + NAME.encode().ljust(12) + self.manager.number().to_bytes(8, "big")
        if options & _NEW_CORRELATION_ID:
            rest[at + 72 : at + 96] = b"AMQ " + NAME.encode().ljust(12) + self.manager.number().to_bytes(8, "big")
        struct.pack_into("<I", rest, at + 96, 0)
        rest[at + 196 : at + 208] = b"mqm".ljust(12)
        rest[at + 240 : at + 272] = b" " * 32
        struct.pack_into("<i", rest, at + 272, 28)
        rest[at + 276 : at + 304] = b"stand-in".ljust(28)
        rest[at + 304 : at + 320] = b"2026010100000000"
        rest[at + 320 : at + 324] = b" " * 4
        if struct.unpack_from("<i", rest, at + 44)[0] not in (0, 1):
            struct.pack_into("<i", rest, at + 44, 0)
        if struct.unpack_from("<i", rest, at + 40)[0] < 0:
            struct.pack_into("<i", rest, at + 40, 0)
        descriptor = bytearray(rest[at : at + told.message.size])
        if told.message.size < 364:
            struct.pack_into("<I", descriptor, 4, 2)
            descriptor += bytes(24) + struct.pack("<IIIi", 1, 0, 0, -1)
        data = call.body[told.data_at : told.data_at + told.length]
        stored = Stored(descriptor, data, self.manager.number().to_bytes(16, "big"))
        pmo = at + told.message.size
        struct.pack_into("<I", rest, pmo + 20, 1)
        rest[pmo + 32 : pmo + 80] = queue.name.encode().ljust(48)
        rest[pmo + 80 : pmo + 128] = NAME.encode().ljust(48)
        if options & _SYNCPOINT:
            conversation.put.append((queue, stored))
        if not options & calls.ASYNC_RESPONSE:
            self._reply(call, handle=calls.handle(call), rest=bytes(rest))
        if not options & _SYNCPOINT:
            queue.messages.append(stored)
            self.manager.give(queue)

    def _request_msgs(self, call: Segment, conversation: Conversation) -> None:
        told = calls.request(call)
        fields = Fields(call.body, little=call.little)
        handle = conversation.handles.get(told.handle)
        if handle is None or handle.queue is None:
            for answer in calls.refused(call, 2019):
                self.send(answer)
            return
        flags = fields.u32(32)
        if flags & 0x10:
            handle.selection, handle.md_version = fields.u16(40), max(1, fields.u16(42))
            wanted, at, values = fields.u32(60), 64, []
            for bit, size in ((_BY_ID, 24), (_BY_CORRELATION, 24), (4, 24), (_BY_TOKEN, 16)):
                values.append(fields.raw(at, size) if wanted & bit else b"")
                at += size if wanted & bit else 0
            handle.match = (values[0], values[1], values[3])
        self._forget(conversation, handle)
        ends = not (flags & _LISTENING or told.confirmed or told.wait < 0)
        waits = asyncio.get_running_loop().time() + told.wait / 1000 if ends else None
        handle.request = Request(told.options, waits)
        handle.queue.waiting.append((conversation, handle))
        self.serve(conversation, handle)
        if told.confirmed:
            self._forget(conversation, handle)
            body = struct.pack("<IiIi", 1, told.handle, 11, 0)
            self.send(Segment(Type.NOTIFICATION, body, WHOLE, call.conversation, 3))

    def _notification(self, call: Segment, conversation: Conversation) -> None:
        told = calls.notification(call)
        if told.code == 3:
            conversation.started = told.value == 2
            if conversation.started:
                for handle in list(conversation.handles.values()):
                    self.serve(conversation, handle)
            elif call.flags & Flag.CONFIRM_REQUEST:
                body = struct.pack("<IiIi", 1, told.handle, 4, 0)
                self.send(Segment(Type.NOTIFICATION, body, WHOLE, call.conversation, 3))

    def serve(self, conversation: Conversation, handle: Handle) -> None:
        """Give the handle the message that it waits for, if there is one."""
        request, queue = handle.request, handle.queue
        if request is None or queue is None or not conversation.started:
            return
        if request.until is not None and asyncio.get_running_loop().time() > request.until:
            self._forget(conversation, handle)
            return
        browses = request.options & (_BROWSE_FIRST | _BROWSE_NEXT | _BROWSE_CURSOR)
        place = self._place(handle, request.options)
        if place is None:
            return
        stored = queue.messages[place]
        if browses:
            handle.cursor = place
        else:
            del queue.messages[place]
            if request.options & _SYNCPOINT or (request.options & _IF_PERSISTENT and stored.persistent):
                conversation.got.append((queue, stored))
        self._forget(conversation, handle)
        self._stream(conversation, handle, stored)

    @staticmethod
    def _place(handle: Handle, options: int) -> int | None:
        assert handle.queue is not None
        message_id, correlation_id, token = handle.match
        first = 0
        if options & _BROWSE_NEXT:
            first = handle.cursor + 1
        elif options & (_BROWSE_CURSOR | _UNDER_CURSOR):
            return handle.cursor if 0 <= handle.cursor < len(handle.queue.messages) else None
        for place, stored in enumerate(handle.queue.messages[first:], first):
            if (
                (message_id in (b"", bytes(24)) or stored.message_id == message_id)
                and (correlation_id in (b"", bytes(24)) or stored.correlation_id == correlation_id)
                and (not token or stored.token == token)
            ):
                return place
        return None

    def _stream(self, conversation: Conversation, handle: Handle, stored: Stored) -> None:
        handle.index += 1
        size = len(stored.data)
        head = struct.pack(
            "<IiIIIHHIII16sHBB", 1, handle.number, handle.index, handle.index, size, 0, handle.selection, 0, size, size,
            stored.token, 1, 0, 0,
        )  # fmt: skip
        descriptor = bytes(stored.descriptor)
        if handle.md_version == 1:
            descriptor = descriptor[:4] + (1).to_bytes(4, "little") + descriptor[8:324]
        body = head + descriptor
        self.send(Segment(Type.ASYNC_MESSAGE, body + stored.data, WHOLE, conversation.number, 1), data_at=len(body))


async def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mq.manager", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=1414)
    parser.add_argument("--queue", action="append", default=[], help="may be repeated")
    parser.add_argument("--denied", action="append", default=[], help="a queue that nobody may open")
    chosen = parser.parse_args()
    manager = Manager(tuple(chosen.queue), denied=tuple(chosen.denied))
    print(f"listening on {await manager.listen(chosen.port)}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
