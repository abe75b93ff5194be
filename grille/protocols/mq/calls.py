"""What a whole call says, how its message is exchanged for another, and how a call is refused.

A call is one `Segment` as `grille.protocols.mq.segments.Calls` gives it.  Only what Grille carries is read; everything
else is a `ProtocolError` or a refusal of the caller's.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from grille.protocols.mq.segments import (
    MULTIPLEXED,
    REPLY,
    SINGLE,
    WHOLE,
    Flag,
    ProtocolError,
    Segment,
    Type,
)
from grille.protocols.mq.structures import (
    Fields,
    MessageDescriptor,
    ObjectDescriptor,
    PutOptions,
    message_descriptor,
    object_descriptor,
    put_options,
)

FAILED: Final = 2
"""MQCC_FAILED."""
NOT_AUTHORIZED: Final = 2035
"""MQRC_NOT_AUTHORIZED."""
ASYNC_RESPONSE: Final = 0x00010000
"""MQPMO_ASYNC_RESPONSE: nobody answers the put."""
TRUNCATED: Final = (2079, 2080)
"""MQRC_TRUNCATED_MSG_ACCEPTED and _FAILED."""
API: Final = 16
"""Bytes of the header of every call of the interface."""
SPI_OPEN: Final = 12
_SPI_VERBS: Final = {1: "query", 6: "reserve", SPI_OPEN: "open"}
_LPOO_SIZES: Final = {1: 32, 3: 88}
_MULTIPLEX_HEADER: Final = 8
"""Bytes by which the header of a conversation's segment is longer: no CallLength counts them."""
_CHECK_MSG, _STREAMING_FAILURE = 11, 14
_STREAM, _CONFIRMED = 1, 3
"""RequestIds of streamed messages: nobody waits for an answer; somebody does."""


class Open(msgspec.Struct, frozen=True):
    """MQOPEN, or the service interface's open."""

    what: ObjectDescriptor
    options: int
    """MQOO."""


class Put(msgspec.Struct, frozen=True):
    """MQPUT or MQPUT1."""

    handle: int
    what: ObjectDescriptor | None
    """Of MQPUT1."""
    message: MessageDescriptor
    options: PutOptions
    data_at: int
    """Where the data begin in the call's body."""
    length: int
    """Bytes of data."""


class Request(msgspec.Struct, frozen=True):
    """REQUEST_MSGS: give me messages of this handle."""

    handle: int
    received: int
    """Bytes consumed since the request before: descriptors and data."""
    longest: int
    """-1: any."""
    options: int
    """MQGMO."""
    wait: int
    """Milliseconds."""
    confirmed: bool
    """The client waits for a NOTIFICATION."""


class Message(msgspec.Struct, frozen=True):
    """ASYNC_MESSAGE: a message on its way to the client."""

    handle: int
    reason: int
    queue: str
    """Resolved name; empty but on the first message of a handle."""
    message: MessageDescriptor
    data_at: int
    length: int
    """Bytes of data that are here."""
    whole: int
    """Bytes of data that the message has."""


class Connect(msgspec.Struct, frozen=True):
    """MQCONN."""

    manager: str
    application: str
    options: int


class Notification(msgspec.Struct, frozen=True):
    """NOTIFICATION: of a handle's or a connection's state."""

    handle: int
    code: int
    value: int


def handle(call: Segment) -> int:
    """The handle in the header of a call of the interface."""
    return _fields(call).i32(12)


def outcome(call: Segment) -> tuple[int, int]:
    """Completion code and reason of a reply."""
    fields = _fields(call)
    return fields.u32(4), fields.u32(8)


def connect(call: Segment) -> Connect:
    """Read MQCONN.  Raises `ProtocolError`."""
    fields = _fields(call)
    return Connect(fields.name(API, 48), _printable(fields.raw(API + 48, 28)), fields.u32(API + 116))


def spi_verb(call: Segment) -> str:
    """``query``, ``reserve`` or ``open``.  Raises `ProtocolError` for another."""
    number = _fields(call).u32(API)
    verb = _SPI_VERBS.get(number)
    if verb is None:
        raise ProtocolError(f"verb {number} of the service interface is not carried")
    return verb


def open_(call: Segment) -> Open:
    """Read MQOPEN, or SPI with the verb open.  Raises `ProtocolError`."""
    fields = _fields(call)
    if call.type is Type.SPI:
        at = API + 12
        if fields.raw(at, 4) != b"SPOU" or fields.raw(at + 12, 4) != b"SPOI":
            raise ProtocolError("the blocks of an open are missing")
        at += 24
        _, size = fields.version(at, b"LPOO", _LPOO_SIZES)
        return Open(object_descriptor(fields, at + size), fields.u32(at + 8))
    what = object_descriptor(fields, API)
    if what.object_string or what.selection:
        raise ProtocolError("strings of variable length in MQOPEN are not supported")
    return Open(what, fields.u32(API + what.size))


def put(call: Segment) -> Put:
    """Read MQPUT or MQPUT1.  Raises `ProtocolError`."""
    fields = _fields(call)
    at, what = API, None
    if call.type is Type.MQPUT1:
        what = object_descriptor(fields, at)
        at += what.size
        if what.records:
            raise ProtocolError("a distribution list in MQPUT1 is not supported")
    message = message_descriptor(fields, at)
    at += message.size
    options = put_options(fields, at)
    at += options.size
    length = fields.u32(at)
    at += 4
    _exactly(call, at, length)
    return Put(fields.i32(12), what, message, options, at, length)


def request(call: Segment) -> Request:
    """Read REQUEST_MSGS.  Raises `ProtocolError`."""
    fields = _fields(call)
    if fields.u32(0) != 1:
        raise ProtocolError(f"version {fields.u32(0)} of REQUEST_MSGS is unknown")
    confirmed = bool(call.flags & Flag.CONFIRM_REQUEST)
    if call.request != (_CONFIRMED if confirmed else _STREAM):
        raise ProtocolError("REQUEST_MSGS has a request id of another lane")
    found = Request(
        handle=fields.i32(4),
        received=fields.u32(8),
        longest=fields.i32(16),
        options=fields.u32(20),
        wait=fields.i32(24),
        confirmed=confirmed,
    )
    fields.raw(0, 40)
    if fields.u32(32) & 0x10:
        wanted = fields.u32(60)
        fields.raw(64, sum(size for bit, size in ((1, 24), (2, 24), (4, 24), (32, 16)) if wanted & bit))
    return found


def message(call: Segment) -> Message:
    """Read ASYNC_MESSAGE.  Raises `ProtocolError`, also if a part of the data is missing."""
    fields = _fields(call)
    if fields.u32(0) != 1:
        raise ProtocolError(f"version {fields.u32(0)} of ASYNC_MESSAGE is unknown")
    if call.request != _STREAM:
        raise ProtocolError("ASYNC_MESSAGE has a request id of another lane")
    width = fields.raw(54, 1)[0]
    queue = fields.name(55, width)
    at = 52 + (3 + width + 3) // 4 * 4
    descriptor = message_descriptor(fields, at)
    at += descriptor.size
    length = fields.u32(28)
    _exactly(call, at, length)
    if fields.u32(16) > length:
        raise ProtocolError("a segment of a streamed message lies about its length")
    return Message(
        handle=fields.i32(4),
        reason=fields.u32(24),
        queue=queue,
        message=descriptor,
        data_at=at,
        length=length,
        whole=fields.u32(32),
    )


def notification(call: Segment) -> Notification:
    """Read NOTIFICATION.  Raises `ProtocolError`."""
    fields = _fields(call)
    if fields.u32(0) != 1:
        raise ProtocolError(f"version {fields.u32(0)} of NOTIFICATION is unknown")
    return Notification(fields.i32(4), fields.u32(8), fields.i32(12))


def with_data(call: Segment, data: bytes) -> Segment:
    """MQPUT, MQPUT1 or ASYNC_MESSAGE with other data; every length of the call says so.

    Raises `ProtocolError` as `put` and `message` do, and for a truncated message, whose end nobody has seen.
    """
    order = "<" if call.little else ">"
    body = bytearray(call.body)
    if call.type is Type.ASYNC_MESSAGE:
        found = message(call)
        if found.reason in TRUNCATED or found.whole != found.length:
            raise ProtocolError("a truncated message cannot be changed")
        struct.pack_into(f"{order}I", body, 16, len(data))
        struct.pack_into(f"{order}II", body, 28, len(data), len(data))
        return msgspec.structs.replace(call, body=bytes(body[: found.data_at]) + data)
    told = put(call)
    length = int.from_bytes(body[:4], "big") + len(data) - told.length
    if not 0 <= length < 1 << 32:
        raise ProtocolError("CallLength is too small for the call")
    body[:4] = length.to_bytes(4, "big")
    struct.pack_into(f"{order}I", body, told.data_at - 4, len(data))
    return msgspec.structs.replace(call, body=bytes(body[: told.data_at]) + data)


def refused(call: Segment, reason: int = NOT_AUTHORIZED) -> list[Segment]:
    """What a client gets instead of an answer to this call; nothing of the call may go on.

    An empty list for an asynchronous put, which nobody answers.  Raises `ProtocolError` for what cannot be refused.
    """
    if call.type is Type.REQUEST_MSGS:
        told = request(call)
        lanes = [(_STREAM, _STREAMING_FAILURE, reason)]
        if told.confirmed:
            lanes.append((_CONFIRMED, _CHECK_MSG, 0))
        order = "<" if call.little else ">"
        return [
            msgspec.structs.replace(
                call,
                type=Type.NOTIFICATION,
                flags=WHOLE,
                request=lane,
                encoding=0x222,
                body=struct.pack(f"{order}IiIi", 1, told.handle, code, value),
            )
            for lane, code, value in lanes
        ]
    if not Type.MQCONN <= call.type < Type.MQCONN_REPLY:
        raise ProtocolError(f"{call.type.name} cannot be refused by an answer")
    if call.type in (Type.MQPUT, Type.MQPUT1) and put(call).options.options & ASYNC_RESPONSE:
        return []
    # IBM's client reads a refused MQOPEN on a socket without conversations to its end, as it does MQCONN everywhere.
    whole = call.type is Type.MQCONN or (call.type is Type.MQOPEN and call.eyecatcher == SINGLE)
    body = bytearray(call.body if whole else _fields(call).raw(0, API))
    order = "<" if call.little else ">"
    none = -1 if call.type in (Type.MQOPEN, Type.SPI) else struct.unpack_from(f"{order}i", body, 12)[0]
    struct.pack_into(f"{order}IIi", body, 4, FAILED, reason, none)
    header = 36 if call.eyecatcher == MULTIPLEXED else 28
    length = header + len(body) - (_MULTIPLEX_HEADER if call.eyecatcher == MULTIPLEXED else 0)
    body[:4] = length.to_bytes(4, "big")
    return [msgspec.structs.replace(call, type=Type(call.type + REPLY), flags=WHOLE, body=bytes(body))]


def _fields(call: Segment) -> Fields:
    return Fields(call.body, little=call.little)


def _exactly(call: Segment, at: int, length: int) -> None:
    """The data end where the call does, up to its padding."""
    left = len(call.body) - at - length
    if not 0 <= left <= 3 or (left and call.eyecatcher == SINGLE):
        raise ProtocolError("a message has not the length that it says")


def _printable(text: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in text.partition(b"\0")[0]).rstrip()
