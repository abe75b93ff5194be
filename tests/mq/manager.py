"""A stand-in for a queue manager, which IBM's own Java client takes for one.

It answers what a client of the MQ classes for Java or JMS asks on a server-connection channel: negotiation, TLS,
conversations on one socket, open, put, get, browse, selectors, inquire and set, units of work, alias and dynamic
queues, read-ahead, asynchronous puts, heartbeats.  Persistent messages are kept in a journal, if there is one.  What
it does not do, a client is told: publish and subscribe, distribution lists, XA, properties in a handle.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from tests.mq import wire
from tests.mq.queues import DEAD_LETTER, Message, Queue, Queues, Unit
from tests.mq.selector import Condition, SelectorError, parse
from tests.mq.wire import API, Assembler, Descriptor, Object, Segment, WireError, name_of, padded

NAME: Final = "QM1"
IDENTIFIER: Final = "QM1_2026-01-01_00.00.00"
CHANNEL: Final = "APP.SVRCONN"
DENIED_CHANNEL: Final = "DENIED.SVRCONN"
"""A channel on which every MQCONN is refused with 2035."""
MESSAGE_LIMIT: Final = 104_857_600
_LEVEL: Final = 17

# Options, as IBM's manual has them (MQOO, MQGMO, MQPMO, MQCO, MQMO).
_SHARED, _INPUT, _EXCLUSIVE, _BROWSE, _OUTPUT, _INQUIRE, _SET = 0x2, 0x7, 0x4, 0x8, 0x10, 0x20, 0x40
_SET_IDENTITY, _SET_ALL = 0x400, 0x800
_WAIT, _SYNCPOINT, _IF_PERSISTENT, _FIRST, _NEXT = 0x1, 0x2, 0x1000, 0x10, 0x20
_UNDER_CURSOR, _BROWSE_CURSOR, _TRUNCATED, _LOCK, _UNLOCK = 0x100, 0x800, 0x40, 0x200, 0x400
_CONVERT, _NO_PROPERTIES, _IN_HANDLE = 0x4000, 0x0400_0000, 0x0800_0000
_ANY_BROWSE: Final = _FIRST | _NEXT | _BROWSE_CURSOR
_NEW_MSG_ID, _NEW_CORREL_ID, _PASS_IDENTITY, _PASS_ALL, _ASYNC_RESPONSE = 0x40, 0x80, 0x100, 0x200, 0x10000
_DELETE, _PURGE = 1, 2
_IDENTITY: Final = ("user", "accounting", "appl_identity")
_ORIGIN: Final = ("put_appl_type", "put_appl_name", "put_date", "put_time", "appl_origin")
_BY_ID, _BY_CORRELATION, _BY_GROUP, _BY_TOKEN = 1, 2, 4, 32

_OK, _WARNING, _FAILED = 0, 1, 2
_LISTENING: Final = 0x01
"""RequestFlags of REQUEST_MSGS for a consumer that is called with messages."""
_CONN_STATE, _CONN_STATE_REPLY, _CHECK_MSG, _STREAMING_FAILURE = 3, 4, 11, 14
_START_CONV, _END_CONV, _ACCEPT_CONV = 1, 2, 8
_SYNC_GET, _XA = 0x08, 0x10
_QUERY: Final = (
    (1, 2, 2, 2, 1), (2, 1, 3, 1, 1), (3, 2, 2, 3, 1), (4, 1, 1, 1, 1), (5, 1, 1, 1, 1), (6, 1, 1, 1, 1),
    (7, 1, 1, 1, 1), (8, 1, 1, 1, 1), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (11, 1, 1, 1, 1), (12, 1, 2, 2, 1),
)  # fmt: skip
"""Verbs of the service interface with their versions, as current queue managers tell of them."""
_CODECS: Final = {37: "cp037", 273: "cp273", 500: "cp500", 819: "latin-1", 850: "cp850", 1140: "cp1140", 1208: "utf-8"}
"""Character sets between which text is converted when a get asks for it."""


class Request(msgspec.Struct):
    """Messages that a client wants on a handle."""

    options: int
    limit: int
    """Bytes of a message at most; -1: any."""
    window: int
    """1: one message; else bytes that may be under way at once."""
    listening: bool = False
    until: float | None = None
    """Loop time after which nobody wants it; None: for ever."""
    call: Segment | None = None
    """MQGET, which is answered by a message or a reason; None: messages are streamed."""
    alarm: asyncio.TimerHandle | None = None


class Handle(msgspec.Struct, eq=False):
    """Something that a conversation has opened."""

    number: int
    conversation: Conversation
    queue: Queue | None
    """None: the queue manager itself."""
    options: int
    condition: Condition | None = None
    request: Request | None = None
    cursor: tuple[int, int] | None = None
    """Place of the message that was browsed last."""
    match: dict[int, bytes] = {}
    """What a message must have, by bit of MatchOptions."""
    selection: int = 0
    version: int = 2
    """Of MQMD in what is streamed."""
    target: tuple[int, int] = (0, 0)
    """CCSID and encoding that a get with conversion asks for."""
    saved: Descriptor | None = None
    """Of the message that was taken last: its context can be passed on."""
    index: int = 0
    outstanding: int = 0
    """Bytes that were streamed and not reported as consumed."""


class Conversation(msgspec.Struct, eq=False):
    """One connection of an application."""

    number: int
    peer: Peer
    handles: dict[int, Handle] = {}
    unit: Unit = msgspec.field(default_factory=Unit)
    stopped: bool = False
    application: bytes = b" " * 28
    put: int = 0
    failed: int = 0
    reason: int = 0
    """Asynchronous puts since they were asked for, those that failed, and why the first did."""
    last: int = 0
    getting: bool = False
    """Whether an MQGET waits: calls that come meanwhile are answered after it, in their order."""
    later: list[Segment] = []


class Connected(msgspec.Struct):
    """What the queue manager was told of a client at MQCONN."""

    channel: str
    user: str
    application: str
    credentials: bool
    """Whether it had sent a user id and password or token for this connection."""
    certificate: str
    """Subject of the client certificate, if there was one."""


class Manager:
    """The queue manager: queues, shared by all sockets.

    `queues` are names of local queues, or `Queue` for anything else; opening one that is `denied` is refused with 2035.
    With a `journal` persistent messages survive.  `sharing` is the most conversations on a socket, 0: none share one.
    """

    def __init__(
        self,
        queues: tuple[str | Queue, ...] = (),
        *,
        denied: tuple[str, ...] = (),
        journal: Path | None = None,
        sharing: int = 10,
        heartbeat: int = 300,
        big_endian: bool = False,
        synchronous_get: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.queues = Queues(NAME, queues, journal, now)
        self.queues.arrived = self.give
        self.denied = denied
        self.sharing = sharing
        self.heartbeat = heartbeat
        self.order = ">" if big_endian else "<"
        self.synchronous_get = synchronous_get
        self.connected: list[Connected] = []
        self.complaints: list[str] = []
        """What clients did wrong: never a value of a message."""
        self.most = 0
        """Conversations on one socket, at most."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, port: int = 0, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> int:
        """Accept clients; the port."""
        self._server = await asyncio.start_server(self._serve, host, port, ssl=context, limit=1 << 20)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End every socket, as if the process ended."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.queues.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(self, writer)
        try:
            while not peer.ended and (segment := await wire.read_segment(reader)) is not None:
                peer.receive(segment)
                await writer.drain()
        except WireError as error:
            self.complaints.append(str(error))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            peer.gone()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._tasks.discard(task)

    def give(self, queue: Queue) -> None:
        """Serve who waits for messages of this queue, the longest waiting first."""
        for handle in list(queue.waiting):
            handle.conversation.peer.serve(handle)


class Peer:
    """One socket."""

    def __init__(self, manager: Manager, writer: asyncio.StreamWriter) -> None:
        self.manager = manager
        self.queues = manager.queues
        self.ended = False
        self._writer = writer
        self._talks: dict[int, Conversation] = {}
        self._calls = Assembler(MESSAGE_LIMIT)
        self._channel = ""
        self._user = ""
        self._credentials: set[int] = set()
        self._agreed = False
        self._shared = False
        self._heard = True
        self._beat: asyncio.TimerHandle | None = None

    # the socket

    def receive(self, segment: Segment) -> None:
        """Answer what has arrived.  Raises `WireError`."""
        self._heard = True
        call = self._calls.add(segment)
        if call is None:
            return
        if call.kind == wire.INITIAL_DATA and not self._agreed:
            self._negotiate(call)
        elif not self._agreed:
            raise WireError("a client that has not negotiated")
        elif call.kind == wire.HEARTBEAT:
            if call.flags & wire.CONFIRM:
                self._send(wire.HEARTBEAT, eyecatcher=call.eyecatcher)
        elif call.kind == wire.STATUS and call.flags & wire.CLOSE_CHANNEL:
            self.ended = True  # how a client ends a socket that it does not share
        elif call.kind == wire.USERID:
            self._user = call.text(4, 12)
        elif call.kind == wire.SOCKET_ACTION and self._shared:
            self._action(call)
        elif call.conversation not in self._talks:
            raise WireError("a conversation that was not begun")
        else:
            self._converse(call, self._talks[call.conversation])

    def gone(self) -> None:
        """The socket is at its end: what was not committed is undone."""
        if self._beat is not None:
            self._beat.cancel()
        for conversation in list(self._talks.values()):
            self._end(conversation)

    def _send(
        self, kind: int, body: bytes = b"", flags: int = wire.WHOLE, conversation: int = 0, request: int = 0,
        eyecatcher: bytes = wire.SHARED,
    ) -> None:  # fmt: skip
        made = Segment(kind, body, flags, conversation, request, eyecatcher, self.manager.order, self._encoding)
        self._writer.write(made.encode())

    @property
    def _encoding(self) -> int:
        return 0x222 if self.manager.order == "<" else 0x111

    def _pack(self, layout: str, *values: object) -> bytes:
        return struct.pack(self.manager.order + layout, *values)

    def _into(self, layout: str, buffer: bytearray, at: int, *values: object) -> None:
        struct.pack_into(self.manager.order + layout, buffer, at, *values)

    def _negotiate(self, call: Segment) -> None:
        again = call.eyecatcher == wire.SHARED
        if call.raw(0, 4) != b"ID  " or len(call.body) < 240:
            raise WireError("initial data of a level that is not understood")
        self._channel = call.text(24, 20)
        if self._channel not in (CHANNEL, DENIED_CHANNEL):
            unknown = self._pack("II", 8, 1)
            self._send(wire.STATUS, unknown, wire.ERROR | wire.CLOSE_CHANNEL, eyecatcher=call.eyecatcher)
            self.ended = True
            return
        level, asked = call.raw(4, 1)[0], call.raw(132, 1)[0]
        refused = asked & (0 if self.manager.synchronous_get else _SYNC_GET)
        xa = call.raw(44, 1)[0] & _XA
        heartbeat = min(call.u32(96), self.manager.heartbeat)
        message = min(call.u32(16), MESSAGE_LIMIT)
        transmission = min(call.u32(12), wire.TRANSMISSION)
        if transmission < wire.TRANSMISSION:
            raise WireError("a maximum transmission size that is not understood")
        wrong = 0x80 * (heartbeat != call.u32(96)) | 0x10 * (message != call.u32(16)) | 0x08 * (level > _LEVEL)
        conversations = max(0, min(call.i32(128), self.manager.sharing))
        body = bytearray(240)
        body[:8] = b"ID  " + bytes((min(level, _LEVEL), call.raw(5, 1)[0], 0, wrong))
        self._into("II", body, 12, transmission, message)
        body[24:44] = padded(self._channel, 20)
        self._into("BBH", body, 44, call.raw(44, 1)[0] & ~xa, xa, call.u16(46))
        body[48:96] = padded(NAME, 48)
        self._into("I", body, 96, heartbeat)
        body[104:122] = b"\0\xff\0" + b"\xff" * 15
        self._into("iBBHIII", body, 128, conversations, asked & ~refused, refused, 0, 1, 1, 1)
        body[148:208] = b"MQMM09040200" + padded(IDENTIFIER, 48)
        self._into("10H", body, 208, 1, 0, *[0xFFFF] * 8)
        body[228:240] = os.urandom(12)
        changed = bool(wrong or refused or xa)
        self._send(
            wire.INITIAL_DATA, bytes(body), wire.ERROR if changed else 0, call.conversation, eyecatcher=call.eyecatcher
        )
        if changed:
            if again:
                raise WireError("a client that does not adopt what was answered")
            return
        self._agreed, self._shared = True, conversations > 0
        self._talks[int(self._shared)] = Conversation(int(self._shared), self)
        if self._shared and heartbeat:
            self._watch(heartbeat)

    def _watch(self, interval: int) -> None:
        """Ask a client whether it is there when it was silent for an interval."""
        if not self._heard:
            self._send(wire.HEARTBEAT, flags=wire.WHOLE | wire.CONFIRM, eyecatcher=wire.SOCKET)
        self._heard = False
        self._beat = asyncio.get_running_loop().call_later(interval, self._watch, interval)

    def _action(self, call: Segment) -> None:
        number, action = call.u32(0), call.u32(8)
        if action == _START_CONV and number not in self._talks and len(self._talks) < self.manager.sharing:
            self._talks[number] = Conversation(number, self)
            self.manager.most = max(self.manager.most, len(self._talks))
            self._send(wire.SOCKET_ACTION, self._pack("5I", number, 0, _ACCEPT_CONV, 1, 1), 0, number)
        elif action == _END_CONV:
            conversation = self._talks.pop(number, None)
            if conversation is not None:
                self._end(conversation)
            self.ended |= bool(call.flags & wire.CLOSE_CHANNEL)
        else:
            raise WireError("a socket action that is not understood")

    def _end(self, conversation: Conversation) -> None:
        self.queues.back(conversation.unit)
        for handle in list(conversation.handles.values()):
            self._drop(handle)

    def _converse(self, call: Segment, conversation: Conversation) -> None:
        if call.kind == wire.CONAUTH:
            self._credentials.add(call.conversation)
            self._send(wire.STATUS, b"", wire.ACCEPTED, call.conversation)
        elif call.kind == wire.REQUEST_MSGS:
            self._request(call, conversation)
        elif call.kind == wire.NOTIFICATION:
            self._notified(call, conversation)
        elif conversation.getting:
            conversation.later.append(call)
        elif call.kind not in wire.CALLS:
            raise WireError(f"segment type {call.kind:02X} is not understood")
        else:
            answer = getattr(self, f"_{wire.CALLS[call.kind]}", None)
            if answer is None:
                self._reply(call, _FAILED, 2298)
            else:
                answer(call, conversation)

    def _reply(
        self, call: Segment, code: int = _OK, reason: int = 0, handle: int = 0, rest: bytes = b"", data: bytes = b""
    ) -> None:
        """Answer a call; ``data`` is a message, which may take several segments."""
        length = call.header + API + len(rest) + len(data) - (8 if call.eyecatcher == wire.SHARED else 0)
        body = length.to_bytes(4, "big") + self._pack("IIi", code, reason, handle) + rest
        made = Segment(
            call.kind + 0x10, body, wire.WHOLE, call.conversation, 0, call.eyecatcher, self.manager.order, call.encoding
        )
        for segment in wire.cut(made, data):
            self._writer.write(segment.encode())

    # connections and objects

    def _conn(self, call: Segment, conversation: Conversation) -> None:
        body = bytearray(call.raw(API, len(call.body) - API))
        wanted = call.text(API, 48)
        conversation.application = call.raw(API + 48, 28)
        self.manager.connected.append(
            Connected(
                self._channel, self._user, name_of(conversation.application),
                call.conversation in self._credentials, self._certificate(),
            )
        )  # fmt: skip
        if body[120:124] == b"FCNO" and len(body) >= 260:
            version, flags = call.u32(API + 124), call.u32(API + 128)
            self._into("II", body, 124, min(version, 3), flags | 1)
            body[132:156] = b"AMQC" + self.queues.unique()[4:]
            if version > 3:
                body[120 + 268 :] = bytes(len(body) - 388)
        reason = 2035 if self._channel == DENIED_CHANNEL else 0 if wanted in ("", "*", NAME) else 2058
        self._reply(call, _FAILED if reason else _OK, reason, rest=bytes(body))

    def _certificate(self) -> str:
        shown = self._writer.get_extra_info("peercert")
        parts = [f"{key}={value}" for part in (shown or {}).get("subject", ()) for key, value in part]
        return ",".join(parts)

    def _disc(self, call: Segment, conversation: Conversation) -> None:
        self.queues.commit(conversation.unit)
        self._end(conversation)
        self._reply(call)

    def _find(self, what: Object, options: int) -> Queue | int:
        """The queue to open, or the reason why it is not opened."""
        if what.kind not in (0, 1):
            return 2043
        if what.records:
            return 2154
        if what.name in self.manager.denied:
            return 2035
        found = self.queues.find(what.name, what.manager, what.dynamic)
        if isinstance(found, int):
            return found
        if (found.exclusive and options & _INPUT) or (options & _EXCLUSIVE and found.inputs):
            return 2042
        return found

    def _opened(self, conversation: Conversation, what: Object, options: int) -> Handle | int:
        """A new handle, or the reason why there is none."""
        condition = None
        if what.selection:
            try:
                condition = parse(what.selection)
            except SelectorError:
                return 2459
        found = None if what.kind == 5 else self._find(what, options)
        if isinstance(found, int):
            return found
        conversation.last += 2
        handle = Handle(conversation.last, conversation, found, options, condition)
        conversation.handles[handle.number] = handle
        if found is not None:
            found.inputs += bool(options & _INPUT)
            found.outputs += bool(options & _OUTPUT)
            found.exclusive |= bool(options & _EXCLUSIVE)
            if found.dynamic and what.name != found.name and found.creator is None:
                found.creator = handle
        return handle

    def _described(self, call: Segment, at: int, what: Object, queue: Queue | None) -> bytes:
        """The MQOD of a request as it is answered."""
        body = bytearray(call.raw(at, what.total))
        if what.size > 168:
            self._into("I", body, 172, 1)
        if queue is not None:
            if queue.dynamic:
                body[12:60], body[60:108] = padded(queue.name, 48), padded(NAME, 48)
            if what.size >= 336:
                name, manager = (queue.target, queue.remote) if queue.remote else (queue.name, NAME)
                body[240:288], body[288:336] = padded(name, 48), padded(manager, 48)
        return bytes(body)

    def _open(self, call: Segment, conversation: Conversation) -> None:
        what = Object.read(call, API)
        handle = self._opened(conversation, what, call.u32(API + what.total))
        if isinstance(handle, int):
            # On a socket that is not shared the client reads the whole answer, also if it is a refusal.
            self._reply(call, _FAILED, handle, -1, call.raw(API, len(call.body) - API))
            return
        rest = bytearray(call.raw(API + what.total, len(call.body) - API - what.total))
        if rest[4:8] == b"FOPA" and len(rest) >= 32:
            queue = handle.queue
            values = (-1,) * 4 if queue is None else self._defaults(queue)
            self._into("iiii", rest, 16, *values)
            if len(rest) >= 88:
                self._into("II", rest, 80, 84, 0)
        self._reply(call, handle=handle.number, rest=self._described(call, API, what, handle.queue) + bytes(rest))

    @staticmethod
    def _defaults(queue: Queue) -> tuple[int, int, int, int]:
        return queue.default_persistence, queue.default_put_response, queue.default_read_ahead, 0

    def _spi(self, call: Segment, conversation: Conversation) -> None:
        verb, version = call.u32(API), call.u32(API + 4)
        start = call.raw(API, 12)
        if verb == 1:
            rows = b"".join(self._pack("5I", *row) for row in _QUERY)
            block = self._pack("4sIII", b"SPQO", 1, 16 + len(rows), len(_QUERY)) + rows
            self._reply(call, rest=start + self._pack("4sII", b"SPQU", 1, 12) + block)
        elif verb == 6:
            # Ids that the client may count up itself in three bytes, little endian.
            tag = self.queues.unique()[:21] + bytes(3)
            block = self._pack("4sIIII24s", b"SPRO", 1, 44, 0x00FFFFFF, 22, tag)
            self._reply(call, rest=start + self._pack("4sII", b"SPRU", 1, 12) + block)
        elif verb == 12 and version in (1, 2):
            at = API + 12 + 12 + 12
            size = 88 if version == 2 else 32
            what = Object.read(call, at + size)
            handle = self._opened(conversation, what, call.u32(at + 8))
            if isinstance(handle, int):
                self._reply(call, _FAILED, handle, -1)
                return
            lpoo = bytearray(call.raw(at, size))
            self._into("iiii", lpoo, 16, *((-1,) * 4 if handle.queue is None else self._defaults(handle.queue)))
            if version == 2:
                self._into("II", lpoo, 80, 0, 0)
            rest = bytes(lpoo) + self._described(call, at + size, what, handle.queue)
            block = self._pack("4sII", b"SPOO", version, 12 + len(rest)) + rest
            self._reply(call, handle=handle.number, rest=start + self._pack("4sII", b"SPOU", 1, 12) + block)
        else:
            self._reply(call, _FAILED, 2298)

    def _handle(self, call: Segment, conversation: Conversation, option: int, reason: int) -> Handle | None:
        """The handle that a call names, if it was opened with this option; None: the call has been refused."""
        handle = conversation.handles.get(call.i32(12))
        if handle is None or (option and handle.queue is None):
            reason = 2019
        elif handle.queue is not None and handle.queue.deleted:
            reason = 2052
        elif not option or handle.options & option:
            return handle
        self._reply(call, _FAILED, reason, call.i32(12))
        return None

    def _close(self, call: Segment, conversation: Conversation) -> None:
        handle = conversation.handles.get(call.i32(12))
        if handle is None:
            self._reply(call, _FAILED, 2019, -1)
            return
        options, queue = call.u32(API), handle.queue
        if options & (_DELETE | _PURGE) and queue is not None and not queue.deleted:
            if not queue.dynamic:
                self._reply(call, _FAILED, 2045, call.i32(12))
                return
            if options & _DELETE and queue.messages:
                self._reply(call, _FAILED, 2055, call.i32(12))
                return
            self.queues.delete(queue)
        self._drop(handle)
        self._reply(call, handle=-1)

    def _drop(self, handle: Handle) -> None:
        del handle.conversation.handles[handle.number]
        queue = handle.queue
        if queue is None:
            return
        self._forget(handle)
        self._unlock(handle)
        queue.inputs -= bool(handle.options & _INPUT)
        queue.outputs -= bool(handle.options & _OUTPUT)
        if handle.options & _EXCLUSIVE:
            queue.exclusive = False
        if queue.dynamic == "temporary" and queue.creator is handle and not queue.deleted:
            self.queues.delete(queue)

    def _cmit(self, call: Segment, conversation: Conversation) -> None:
        self.queues.commit(conversation.unit)
        self._reply(call)

    def _back(self, call: Segment, conversation: Conversation) -> None:
        self.queues.back(conversation.unit)
        self._reply(call)

    def _stat(self, call: Segment, conversation: Conversation) -> None:
        if call.u32(API) != 0:
            self._reply(call, _FAILED, 2298)
            return
        failed = conversation.failed
        told = (_FAILED if failed else 0, conversation.reason, conversation.put, 0, failed, 1)
        conversation.put = conversation.failed = conversation.reason = 0
        self._reply(call, rest=self._pack("I4sI6I", 0, b"STAT", 1, *told) + b" " * 192)

    # attributes

    def _attributes(self, handle: Handle) -> dict[int, int | bytes]:
        """Attributes by selector (MQIA and MQCA)."""
        queue = handle.queue
        if queue is None:
            return {
                31: 942, 32: 3, 2: 819, 273: 1, 13: MESSAGE_LIMIT, 14: 9, 30: 1, 2015: padded(NAME, 48),
                2032: padded(IDENTIFIER, 48), 2006: padded(DEAD_LETTER, 48), 2014: b" " * 64, 2025: b" " * 48,
            }  # fmt: skip
        made = time.gmtime(queue.made)
        return {
            20: 1, 3: len(queue.messages), 15: queue.max_depth, 13: queue.max_length, 17: queue.inputs,
            18: queue.outputs, 9: queue.inhibit_get, 10: queue.inhibit_put, 22: queue.backout_threshold,
            5: queue.default_persistence, 6: queue.default_priority, 8: 1, 12: 0, 16: 0,
            7: {"": 1, "permanent": 2, "temporary": 3}[queue.dynamic], 23: 1, 4: _SHARED, 21: 999_999_999,
            24: 0, 34: 0, 45: 1, 190: 0, 184: queue.default_put_response,
            188: queue.default_read_ahead, 2016: padded(queue.name, 48), 2013: b" " * 64, 2002: b"*" * 48,
            2019: padded(queue.backout_queue, 48), 2004: padded(time.strftime("%Y-%m-%d", made), 12),
            2005: padded(time.strftime("%H.%M.%S", made), 8),
        }  # fmt: skip

    def _inq(self, call: Segment, conversation: Conversation) -> None:
        handle = self._handle(call, conversation, 0, 0)
        if handle is None:
            return
        if not handle.options & _INQUIRE:
            self._reply(call, _FAILED, 2038, handle.number)
            return
        selectors = [call.u32(API + 12 + 4 * place) for place in range(min(call.u32(API), 256))]
        known = self._attributes(handle)
        if any(selector not in known for selector in selectors):
            self._reply(call, _FAILED, 2067, handle.number)
            return
        values = [known[selector] for selector in selectors]
        numbers = b"".join(self._pack("i", value) for value in values if isinstance(value, int))
        characters = b"".join(value for value in values if isinstance(value, bytes))
        rest = self._pack("III", len(selectors), len(numbers) // 4, len(characters))
        rest += b"".join(self._pack("I", selector) for selector in selectors) + numbers + characters
        # Only an alias has a base queue: IBM's client takes a warning for a local queue, but not a failure.
        warned = (_WARNING, 2068) if 2002 in selectors else (_OK, 0)
        self._reply(call, *warned, handle.number, rest)

    def _set(self, call: Segment, conversation: Conversation) -> None:
        handle = self._handle(call, conversation, _SET, 2040)
        if handle is None or handle.queue is None:
            return
        count = min(call.u32(API), 256)
        selectors = [call.u32(API + 12 + 4 * place) for place in range(count)]
        names = {9: "inhibit_get", 10: "inhibit_put"}
        if any(selector not in names for selector in selectors) or call.u32(API + 4) != count:
            self._reply(call, _FAILED, 2067, handle.number)
            return
        for place, selector in enumerate(selectors):
            setattr(handle.queue, names[selector], call.u32(API + 12 + 4 * (count + place)))
        self._reply(call, handle=handle.number, rest=call.raw(API, 12 + 8 * count))

    # put

    def _put(self, call: Segment, conversation: Conversation) -> None:
        at = API + Descriptor.size(call, API)
        handle = conversation.handles.get(call.i32(12))
        if handle is None or handle.queue is None or handle.queue.deleted:
            self._unput(call, conversation, at, 2019 if handle is None or handle.queue is None else 2052)
        elif not handle.options & _OUTPUT:
            self._unput(call, conversation, at, 2039)
        else:
            self._store(call, conversation, handle.queue, API, handle.options)

    def _put1(self, call: Segment, conversation: Conversation) -> None:
        what = Object.read(call, API)
        at = API + what.total
        found = self._find(what, _OUTPUT)
        if isinstance(found, int):
            self._unput(call, conversation, at + Descriptor.size(call, at), found)
        else:
            self._store(call, conversation, found, at, _OUTPUT | _SET_IDENTITY | _SET_ALL, what)

    def _unput(self, call: Segment, conversation: Conversation, at: int, reason: int) -> None:
        """Refuse a put, whose MQPMO is at this place; nobody waits for the answer to an asynchronous one."""
        if call.u32(at + 8) & _ASYNC_RESPONSE:
            conversation.failed += 1
            conversation.reason = conversation.reason or reason
        else:
            self._reply(call, _FAILED, reason, call.i32(12))

    def _store(
        self, call: Segment, conversation: Conversation, queue: Queue, at: int, opened: int, what: Object | None = None
    ) -> None:
        """Keep a message whose MQMD is at this place, and answer with its structures filled in."""
        size = Descriptor.size(call, at)
        descriptor = Descriptor.read(call, at)
        pmo = at + size
        sizes = {1: 128, 2: 152, 3: 176}
        if call.raw(pmo, 4) != b"PMO " or call.u32(pmo + 4) not in sizes:
            raise WireError("no put message options")
        end = pmo + sizes[call.u32(pmo + 4)]
        length, options = call.u32(end), call.u32(pmo + 8)
        data = call.raw(end + 4, length)
        context = conversation.handles.get(call.i32(pmo + 16))
        passed = context.saved if context is not None else None
        reason = self._unfit(queue, data, options, opened)
        if options & (_PASS_IDENTITY | _PASS_ALL) and passed is None:
            reason = 2097
        if reason:
            self._unput(call, conversation, pmo, reason)
            return
        self._complete(descriptor, conversation, queue, options, passed)
        now = self.queues.now()
        expires = now + descriptor.expiry / 10 if descriptor.expiry > 0 else None
        message = Message(self.queues.number(), descriptor, data, expires)
        if options & _ASYNC_RESPONSE:
            conversation.put += 1
        else:
            filled = bytearray(call.raw(pmo, end + 4 - pmo))
            self._into("I", filled, 20, 1)
            filled[32:128] = padded(queue.name, 48) + padded(NAME, 48)
            described = b"" if what is None else self._described(call, API, what, queue)
            rest = described + descriptor.encode(self.manager.order, 1 if size == 324 else 2) + bytes(filled)
            self._reply(call, handle=call.i32(12), rest=rest)
        self.queues.put(queue, message, conversation.unit if options & _SYNCPOINT else None)

    def _unfit(self, queue: Queue, data: bytes, options: int, opened: int) -> int:
        """Why a message cannot be put there; 0: it can."""
        if queue.inhibit_put:
            return 2051
        if len(data) > queue.max_length:
            return 2030
        if len(queue.messages) >= queue.max_depth:
            return 2053
        wanted = options & (_SET_IDENTITY | _SET_ALL)
        return 0 if not wanted & ~opened else 2095 if wanted & _SET_ALL else 2096

    def _complete(
        self, descriptor: Descriptor, conversation: Conversation, queue: Queue, options: int, passed: Descriptor | None
    ) -> None:
        """Fill in what the queue manager gives to a message."""
        if options & _NEW_MSG_ID or not descriptor.msg_id.strip(b"\0"):
            descriptor.msg_id = self.queues.unique()
        if options & _NEW_CORREL_ID:
            descriptor.correl_id = self.queues.unique()
        if descriptor.priority < 0:
            descriptor.priority = queue.default_priority
        if descriptor.persistence not in (0, 1):
            descriptor.persistence = queue.default_persistence
        descriptor.backout_count = 0
        if descriptor.ccsid == 0:
            descriptor.ccsid = 819
        names = _IDENTITY if options & _PASS_IDENTITY else _IDENTITY + _ORIGIN if options & _PASS_ALL else ()
        for name in names:
            setattr(descriptor, name, getattr(passed, name))
        if not options & (_SET_IDENTITY | _SET_ALL | _PASS_IDENTITY | _PASS_ALL):
            descriptor.user, descriptor.appl_identity = padded(self._user, 12), b" " * 32
            descriptor.accounting = bytes(32)
        if not options & (_SET_ALL | _PASS_ALL):
            now = self.queues.now()
            stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(now)) + f"{int(now * 100) % 100:02}"
            descriptor.put_date, descriptor.put_time = stamp[:8].encode(), stamp[8:].encode()
            descriptor.put_appl_type, descriptor.put_appl_name = 28, conversation.application
            descriptor.appl_origin = b" " * 4

    # get

    def _request(self, call: Segment, conversation: Conversation) -> None:
        number, received, window = call.i32(4), call.u32(8), call.u32(12)
        options, wait, flags = call.u32(20), call.i32(24), call.u32(32)
        confirmed = bool(call.flags & wire.CONFIRM)
        handle = conversation.handles.get(number)
        if handle is None or handle.queue is None:
            self._notify(number, _STREAMING_FAILURE, 2019, call.conversation)
        else:
            if flags & 0x10:
                self._select(call, handle)
            if received > handle.outstanding:
                self.manager.complaints.append("a client consumed more bytes than were streamed to it")
            handle.outstanding = max(0, handle.outstanding - received)
            request = Request(options, call.i32(16), window, bool(flags & _LISTENING))
            self._want(handle, request)
            if confirmed:
                self._forget(handle)
            elif window == 1 and wait >= 0 and not request.listening:
                request.until = asyncio.get_running_loop().time() + wait / 1000
        if confirmed:
            self._notify(number, _CHECK_MSG, 0, call.conversation, 3)

    @staticmethod
    def _select(call: Segment, handle: Handle) -> None:
        handle.selection, handle.version = call.u16(40), max(1, call.u16(42))
        handle.target = call.i32(44), call.u32(48)
        options, at = call.u32(60), 64
        handle.match = {}
        for bit, size in ((_BY_ID, 24), (_BY_CORRELATION, 24), (_BY_GROUP, 24), (_BY_TOKEN, 16)):
            if options & bit:
                handle.match[bit] = call.raw(at, size)
                at += size

    def _get(self, call: Segment, conversation: Conversation) -> None:
        handle = self._handle(call, conversation, _INPUT | _BROWSE, 2037)
        if handle is None:
            return
        size = Descriptor.size(call, API)
        gmo = API + size
        sizes = {1: 72, 2: 80, 3: 100, 4: 112}
        if call.raw(gmo, 4) != b"GMO " or call.u32(gmo + 4) not in sizes:
            raise WireError("no get message options")
        version, options, wait = call.u32(gmo + 4), call.u32(gmo + 8), call.i32(gmo + 12)
        wanted = call.u32(gmo + 72) if version > 1 else _BY_ID | _BY_CORRELATION
        sought = Descriptor.read(call, API)
        values = {_BY_ID: sought.msg_id, _BY_CORRELATION: sought.correl_id, _BY_GROUP: sought.group_id}
        if version > 2:
            values[_BY_TOKEN] = call.raw(gmo + 80, 16)
        handle.match = {bit: value for bit, value in values.items() if wanted & bit}
        handle.target = sought.ccsid, sought.encoding
        request = Request(options, call.u32(gmo + sizes[version]), 1, call=call)
        if not options & _WAIT:
            wait = 0
        if wait > 0:
            loop = asyncio.get_running_loop()
            request.alarm = loop.call_later(wait / 1000, self._late, handle, request)
        conversation.getting = True
        self._want(handle, request)
        if wait == 0:
            self._late(handle, request)

    def _late(self, handle: Handle, request: Request) -> None:
        if handle.request is request:
            self._forget(handle)
            self._got(handle, request, _FAILED, 2033)

    def _got(self, handle: Handle, request: Request, code: int, reason: int, message: Message | None = None) -> None:
        """Answer MQGET."""
        call = request.call
        assert call is not None and handle.queue is not None
        size = Descriptor.size(call, API)
        gmo = bytearray(call.raw(API + size, len(call.body) - API - size))
        gmo = gmo[: {1: 72, 2: 80, 3: 100, 4: 112}[call.u32(API + size + 4)]]
        described, length, data = call.raw(API, size), 0, b""
        if message is not None:
            descriptor, data = self._converted(handle, request, message)
            described = descriptor.encode(self.manager.order, 1 if size == 324 else 2)
            length, data = len(data), data[: request.limit]
            gmo[24:72] = padded(handle.queue.name, 48)
            if len(gmo) >= 100:
                gmo[80:96] = message.token
                self._into("i", gmo, 96, len(data))
        rest = described + bytes(gmo) + self._pack("I", length)
        self._reply(call, code, reason, handle.number, rest, data)
        handle.conversation.getting = False
        while handle.conversation.later and not handle.conversation.getting:
            self._converse(handle.conversation.later.pop(0), handle.conversation)

    def _notified(self, call: Segment, conversation: Conversation) -> None:
        number, code, value = call.i32(4), call.u32(8), call.u32(12)
        if code == _CONN_STATE:
            conversation.stopped = value != 2
            for handle in list(conversation.handles.values()):
                self.serve(handle)
        if call.flags & wire.CONFIRM:
            self._notify(number, _CONN_STATE_REPLY, 0, call.conversation, 3)

    def _notify(self, handle: int, code: int, value: int, conversation: int, request: int = 1) -> None:
        body = self._pack("IiII", 1, handle, code, value)
        self._send(wire.NOTIFICATION, body, wire.WHOLE, conversation, request)

    def _want(self, handle: Handle, request: Request) -> None:
        """Serve a request, or let it wait; it takes the place of an earlier one."""
        assert handle.queue is not None
        self._forget(handle)
        handle.request = request
        handle.queue.waiting.append(handle)
        self.serve(handle)

    @staticmethod
    def _forget(handle: Handle) -> None:
        if handle.request is not None and handle.queue is not None:
            if handle.request.alarm is not None:
                handle.request.alarm.cancel()
            handle.request = None
            handle.queue.waiting.remove(handle)

    def serve(self, handle: Handle) -> None:
        """Give the handle the messages that it waits for, as far as there are any."""
        while (request := handle.request) is not None:
            if request.until is not None and asyncio.get_running_loop().time() > request.until:
                self._forget(handle)
                return
            if request.listening and handle.conversation.stopped:
                return
            found = self._choose(handle, request.options)
            if found is None:
                return
            if isinstance(found, int):
                self._forget(handle)
                if request.call is not None:
                    self._got(handle, request, _FAILED if found else _OK, found)
                else:
                    self._notify(handle.number, _STREAMING_FAILURE, found, handle.conversation.number)
                return
            self._deliver(handle, request, found)

    def _choose(self, handle: Handle, options: int) -> Message | int | None:
        """The message that a get is for, the reason why it fails, or None: there is none yet."""
        queue = handle.queue
        assert queue is not None
        if queue.deleted:
            return 2052
        if queue.inhibit_get:
            return 2016
        if options & _IN_HANDLE:
            return 2298
        if options & (_ANY_BROWSE | _UNDER_CURSOR) and not handle.options & _BROWSE:
            return 2036
        if not options & _ANY_BROWSE and not handle.options & _INPUT:
            return 2037
        self.queues.expire(queue)
        if options & _UNLOCK:
            return 0 if self._unlock(handle) else 2209
        if options & (_BROWSE_CURSOR | _UNDER_CURSOR):
            under = [message for message in queue.messages if message.place == handle.cursor]
            return under[0] if under else 2034
        for message in queue.messages:
            # IBM's client asks for the first message with both bits.
            after = not options & _NEXT or options & _FIRST or handle.cursor is None or message.place > handle.cursor
            if (after or _BY_TOKEN in handle.match) and self._matches(handle, message):
                return message
        return None

    @staticmethod
    def _matches(handle: Handle, message: Message) -> bool:
        if message.locked is not None and message.locked is not handle:
            return False
        descriptor = message.descriptor
        has = {
            _BY_ID: descriptor.msg_id, _BY_CORRELATION: descriptor.correl_id, _BY_GROUP: descriptor.group_id,
            _BY_TOKEN: message.token,
        }  # fmt: skip
        for bit, value in handle.match.items():
            if value.strip(b"\0") and value != has[bit]:
                return False
        return handle.condition is None or handle.condition(message.seen()) is True

    @staticmethod
    def _unlock(handle: Handle) -> bool:
        assert handle.queue is not None
        locked = [message for message in handle.queue.messages if message.locked is handle]
        for message in locked:
            message.locked = None
        return bool(locked)

    def _deliver(self, handle: Handle, request: Request, message: Message) -> None:
        """Give a message to a handle, whole or as much of it as is wanted."""
        queue, options = handle.queue, request.options
        assert queue is not None
        descriptor, data = self._converted(handle, request, message)
        reason = 0
        # In a stream the client cuts a message itself: it would ask for the same length again.
        if request.window == 1 and 0 <= request.limit < len(data):
            reason = 2079 if options & _TRUNCATED else 2080
        if reason != 2080:
            if options & _ANY_BROWSE:
                handle.cursor = message.place
                if options & _LOCK:
                    self._unlock(handle)
                    message.locked = handle
            else:
                under_syncpoint = options & _SYNCPOINT or (options & _IF_PERSISTENT and message.persistent)
                message.locked, handle.saved = None, message.descriptor
                self.queues.get(queue, message, handle.conversation.unit if under_syncpoint else None)
        if request.call is not None:
            self._forget(handle)
            self._got(handle, request, _WARNING if reason else _OK, reason, message)
            return
        handle.outstanding += self._stream(handle, message, descriptor, data, request.limit if reason else -1, reason)
        if request.window == 1 or handle.outstanding >= request.window:
            self._forget(handle)

    def _converted(self, handle: Handle, request: Request, message: Message) -> tuple[Descriptor, bytes]:
        """The message as this get sees it: what is left of its life, and its text in the character set asked for."""
        descriptor, data = msgspec.structs.replace(message.descriptor), message.data
        if message.expires is not None:
            descriptor.expiry = max(1, round((message.expires - self.queues.now()) * 10))
        if request.options & _NO_PROPERTIES and descriptor.format == b"MQHRF2  ":
            order = "<" if descriptor.encoding & 2 else ">"
            (end,) = struct.unpack_from(order + "i", data, 8)
            descriptor.encoding, descriptor.ccsid, descriptor.format = struct.unpack_from(order + "ii8s", data, 12)
            data = data[end:]
        ccsid = handle.target[0] or 819
        if request.options & _CONVERT and descriptor.format == b"MQSTR   " and ccsid != descriptor.ccsid:
            source, target = _CODECS.get(descriptor.ccsid), _CODECS.get(ccsid)
            if source is not None and target is not None:
                with contextlib.suppress(UnicodeError):
                    data = data.decode(source).encode(target)
                    descriptor.ccsid, descriptor.encoding = ccsid, handle.target[1] or descriptor.encoding
        return descriptor, data

    def _stream(
        self, handle: Handle, message: Message, descriptor: Descriptor, data: bytes, limit: int, reason: int
    ) -> int:
        """Send a message in ASYNC_MESSAGE segments; the bytes that the client will report as consumed."""
        assert handle.queue is not None
        handle.index += 1
        sent = data if limit < 0 else data[:limit]
        # The first message on a handle tells what queue it came from.
        name = handle.queue.name.encode() + b"\0" if handle.index == 1 else b""
        described = descriptor.encode(self.manager.order, handle.version)
        told = self._pack("HB", 1, len(name)) + name
        first = (
            self._pack("III16s", reason, len(sent), len(data), message.token) + told + bytes(-len(told) % 4) + described
        )

        def head(number: int, size: int) -> bytes:
            index = handle.index
            return self._pack("IiIIIHH", 1, handle.number, index, index, size, number, handle.selection)

        call = Segment(
            wire.ASYNC_MESSAGE, first, wire.WHOLE, handle.conversation.number, 1, wire.SHARED, self.manager.order,
            self._encoding,
        )  # fmt: skip
        for segment in wire.cut(call, sent, head):
            self._writer.write(segment.encode())
        return len(described) + len(sent)


async def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mq.manager", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1414)
    parser.add_argument("--queue", action="append", default=[], help="a local queue; may be repeated")
    parser.add_argument("--alias", action="append", default=[], metavar="NAME=QUEUE")
    parser.add_argument("--denied", action="append", default=[], help="a queue that nobody may open")
    parser.add_argument("--journal", type=Path, help="keep persistent messages in this file")
    parser.add_argument("--sharing", type=int, default=10, help="conversations on a socket, 0: one without sharing")
    parser.add_argument("--tls-cert", type=Path, help="PEM with certificate and key")
    parser.add_argument("--tls-ca", type=Path, help="PEM with the authority of clients, whose certificate is demanded")
    chosen = parser.parse_args()
    context = None
    if chosen.tls_cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chosen.tls_cert)
        if chosen.tls_ca is not None:
            context.load_verify_locations(chosen.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    aliases = (Queue(name, target=target) for name, _, target in (each.partition("=") for each in chosen.alias))
    manager = Manager(
        (*chosen.queue, *aliases), denied=tuple(chosen.denied), journal=chosen.journal, sharing=chosen.sharing
    )
    print(f"listening on {await manager.listen(chosen.port, context, chosen.host)}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
