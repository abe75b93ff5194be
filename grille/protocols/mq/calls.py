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
    OD_SIZES,
    Fields,
    GetOptions,
    MessageDescriptor,
    ObjectDescriptor,
    PutOptions,
    get_options,
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
_SPI_BLOCK: Final = API + 24
"""Where the block of an SPI call begins that has the call's own fields."""
_LISTENING: Final = 0x01
"""RequestFlags."""
_SYNCPOINT: Final = 0x2
_UTF8: Final = 1208
"""CCSID."""
_OUTPUT, _FAIL_IF_QUIESCING = 0x10, 0x2000
_NO_READ_AHEAD, _READ_AHEAD = 0x8_0000, 0x10_0000
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


class Get(msgspec.Struct, frozen=True):
    """MQGET, on a channel without conversations."""

    handle: int
    options: GetOptions
    message: MessageDescriptor
    """In a reply, of the message."""
    room: int
    """Bytes of the client's buffer; in a reply, of the whole message."""


class Inquiry(msgspec.Struct, frozen=True):
    """MQINQ."""

    handle: int
    selectors: tuple[int, ...]


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
    listening: bool
    """A function of the client's is called with messages, and no call waits for one."""


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
        at = _object_at(call)
        _, size = fields.version(_SPI_BLOCK + 12, b"LPOO", _LPOO_SIZES)
        return Open(object_descriptor(fields, at), fields.u32(at - size + 8))
    what = object_descriptor(fields, API)
    if what.object_string or what.selection:
        raise ProtocolError("strings of variable length in MQOPEN are not supported")
    return Open(what, fields.u32(API + what.size))


def opened(reply: Segment) -> ObjectDescriptor:
    """What was opened, as the reply to `open_` or to MQPUT1 says.  Raises `ProtocolError`."""
    return object_descriptor(_fields(reply), _object_at(reply))


def _object_at(call: Segment) -> int:
    """Where the object descriptor is: of MQOPEN, SPI open and MQPUT1, and of their replies."""
    if call.type not in (Type.SPI, Type.SPI_REPLY):
        return API
    fields = _fields(call)
    mark = b"SPOI" if call.type is Type.SPI else b"SPOO"
    if fields.raw(_SPI_BLOCK - 12, 4) != b"SPOU" or fields.raw(_SPI_BLOCK, 4) != mark:
        raise ProtocolError("the blocks of an open are missing")
    _, size = fields.version(_SPI_BLOCK + 12, b"LPOO", _LPOO_SIZES)
    return _SPI_BLOCK + 12 + size


def with_version(call: Segment, version: int) -> Segment:
    """MQOPEN, SPI open, MQPUT1 or a reply to one, with its object descriptor in another version.

    What a newer version adds is empty, what an older one lacks is left out; every length and offset says so.  Raises
    `ProtocolError`.
    """
    at = _object_at(call)
    what = object_descriptor(_fields(call), at)
    if what.version == version:
        return call
    if what.size != OD_SIZES[what.version]:
        raise ProtocolError("an object descriptor with more than itself cannot change its version")
    return _with_object(call, at, what.size, _in_version(call.body[at : at + what.size], version, call.little))


def with_selection(call: Segment, selection: str) -> Segment:
    """SPI open that opens the queue for the messages of this selection only.  Raises `ProtocolError`."""
    at = _object_at(call)
    what = object_descriptor(_fields(call), at)
    if call.type is not Type.SPI or what.object_string:
        raise ProtocolError("a selection cannot be put into this call")
    od = bytearray(_in_version(call.body[at : at + min(what.size, OD_SIZES[4])], 4, call.little))
    text = selection.encode()
    struct.pack_into("<IiIii" if call.little else ">IiIii", od, 356, 0, OD_SIZES[4], 0, len(text), _UTF8)
    return _with_object(call, at, what.size, bytes(od) + text + bytes(-len(text) % 4))


def as_asked(reply: Segment, asked: Segment) -> Segment:
    """The reply to an open, with its object descriptor in the form that the client sent.  Raises `ProtocolError`."""
    at, own = _object_at(reply), _object_at(asked)
    answered, wanted = object_descriptor(_fields(reply), at), object_descriptor(_fields(asked), own)
    od = bytearray(_in_version(reply.body[at : at + OD_SIZES[answered.version]], wanted.version, reply.little))
    if wanted.version == 4:
        od[336:376] = asked.body[own + 336 : own + 376]  # where its strings are
    strings = asked.body[own + OD_SIZES[wanted.version] : own + wanted.size]
    return _with_object(reply, at, answered.size, bytes(od) + strings)


def _in_version(od: bytes, version: int, little: bool) -> bytes:
    """An object descriptor without its strings, in another version."""
    order = "<" if little else ">"
    kept = min(len(od), OD_SIZES[version])
    return od[:4] + struct.pack(f"{order}I", version) + od[8:kept] + _EMPTY_OBJECT[order][kept : OD_SIZES[version]]


def _with_object(call: Segment, at: int, size: int, what: bytes) -> Segment:
    """The call with another object descriptor in the place of the one here, of ``size`` bytes with its strings."""
    order = "<" if call.little else ">"
    grown = len(what) - size
    body = bytearray(call.body)
    body[at : at + size] = what
    length = int.from_bytes(body[:4], "big") + grown
    if not 0 <= length < 1 << 32:
        raise ProtocolError("CallLength is too small for the call")
    body[:4] = length.to_bytes(4, "big")
    if call.type in (Type.SPI, Type.SPI_REPLY):
        changed = [API + 8, _SPI_BLOCK + 8]  # MaxReplySize, and the length of the block
        if call.type is Type.SPI_REPLY and at - _SPI_BLOCK - 12 == _LPOO_SIZES[3]:
            offset = at - 8  # PolicyDataOffset
            if struct.unpack_from(f"{order}I", body, offset)[0]:
                changed.append(offset)
        for offset in changed:
            value = struct.unpack_from(f"{order}I", body, offset)[0] + grown
            if not 0 <= value < 1 << 32:
                raise ProtocolError("a length of an open is too small for what it counts")
            struct.pack_into(f"{order}I", body, offset, value)
    return msgspec.structs.replace(call, body=bytes(body))


def get(call: Segment) -> Get:
    """Read MQGET or its reply.  Raises `ProtocolError`."""
    fields = _fields(call)
    message = message_descriptor(fields, API)
    options = get_options(fields, API + message.size)
    at = API + message.size + options.size
    return Get(fields.i32(12), options, message, fields.u32(at))


def with_request(call: Segment, *, options: int, received: int) -> Segment:
    """REQUEST_MSGS for one message of any length, with these MQGMO options and so many bytes received."""
    order = "<" if call.little else ">"
    body = bytearray(call.body)
    struct.pack_into(f"{order}IIiI", body, 8, received, 1, -1, options)
    return msgspec.structs.replace(call, body=bytes(body))


def with_get_options(call: Segment, options: int) -> Segment:
    """MQGET or its reply with other MQGMO options.  Raises `ProtocolError`."""
    at = API + message_descriptor(_fields(call), API).size
    get_options(_fields(call), at)
    body = bytearray(call.body)
    struct.pack_into("<I" if call.little else ">I", body, at + 8, options)
    return msgspec.structs.replace(call, body=bytes(body))


def without_read_ahead(call: Segment) -> Segment:
    """MQOPEN, SPI open or a reply to one, with the option that no message is sent before it is asked for.

    Raises `ProtocolError`.
    """
    at = _object_at(call)
    fields = _fields(call)
    if call.type in (Type.SPI, Type.SPI_REPLY):
        at = _SPI_BLOCK + 12 + 8
    else:
        at += object_descriptor(fields, at).size
    options = fields.u32(at) & ~_READ_AHEAD | _NO_READ_AHEAD
    body = bytearray(call.body)
    struct.pack_into("<I" if call.little else ">I", body, at, options)
    return msgspec.structs.replace(call, body=bytes(body))


def moving(like: Segment, queue: str) -> Segment:
    """MQPUT1 of a message that was got, an ASYNC_MESSAGE, to another queue, in the unit of work.

    The message keeps its descriptor, and so its id.  Raises `ProtocolError`.
    """
    told = message(like)
    order = "<" if like.little else ">"
    od = bytearray(_EMPTY_OBJECT[order][: OD_SIZES[1]])
    struct.pack_into(f"{order}II", od, 4, 1, 1)
    od[12:60] = queue.encode("ascii").ljust(48)
    pmo = struct.pack(f"{order}4sIIii", b"PMO ", 1, _SYNCPOINT | _FAIL_IF_QUIESCING, -1, -1).ljust(128, b"\0")
    descriptor = like.body[told.data_at - told.message.size : told.data_at]
    data = like.body[told.data_at : told.data_at + told.length]
    rest = bytes(od) + descriptor + pmo + struct.pack(f"{order}I", len(data)) + data
    length = (36 if like.eyecatcher == MULTIPLEXED else 28) + API + len(rest)
    body = length.to_bytes(4, "big") + bytes(12) + rest
    return msgspec.structs.replace(like, type=Type.MQPUT1, flags=int(WHOLE), request=0, body=body)


def with_put_length(reply: Segment, length: int) -> Segment:
    """The reply to MQPUT or MQPUT1 that tells of so many bytes of data.  Raises `ProtocolError`."""
    fields = _fields(reply)
    at = API
    if reply.type is Type.MQPUT1_REPLY:
        at += object_descriptor(fields, at).size
    at += message_descriptor(fields, at).size
    at += put_options(fields, at).size
    fields.raw(at, 4)
    body = bytearray(reply.body)
    struct.pack_into("<I" if reply.little else ">I", body, at, length)
    return msgspec.structs.replace(reply, body=bytes(body))


def ending(like: Segment, kind: Type) -> Segment:
    """MQCMIT or MQBACK, on the conversation of ``like``."""
    length = (36 if like.eyecatcher == MULTIPLEXED else 28) + API
    body = length.to_bytes(4, "big") + bytes(12)
    return msgspec.structs.replace(like, type=kind, flags=int(WHOLE), request=0, body=body)


def inquiry(call: Segment) -> Inquiry:
    """Read MQINQ.  Raises `ProtocolError`."""
    fields = _fields(call)
    count = fields.u32(API)
    if count > 256:
        raise ProtocolError("MQINQ has more than 256 selectors")
    fields.raw(API + 12, 4 * count)
    return Inquiry(fields.i32(12), tuple(fields.u32(API + 12 + 4 * number) for number in range(count)))


def answered_put(reply: Segment) -> MessageDescriptor:
    """The descriptor of the message that was put, out of the reply.  Raises `ProtocolError`."""
    fields = _fields(reply)
    at = API
    if reply.type is Type.MQPUT1_REPLY:
        at += object_descriptor(fields, at).size
    return message_descriptor(fields, at)


def with_options(call: Segment, options: int) -> Segment:
    """MQPUT or MQPUT1 with other MQPMO options.  Raises `ProtocolError`."""
    told = put(call)
    body = bytearray(call.body)
    struct.pack_into("<I" if call.little else ">I", body, told.data_at - 4 - told.options.size + 8, options)
    return msgspec.structs.replace(call, body=bytes(body))


def with_failures(reply: Segment, reason: int, succeeded: int, failed: int) -> Segment:
    """The reply to MQSTAT of asynchronous puts, with so many more of them that went well, and that failed.

    Raises `ProtocolError`.
    """
    fields = _fields(reply)
    at = API + 4
    if fields.raw(at, 4) != b"STAT":
        raise ProtocolError("STAT is missing where it has to be")
    fields.raw(at, 28)
    body = bytearray(reply.body)
    order = "<" if reply.little else ">"
    struct.pack_into(f"{order}I", body, at + 16, fields.u32(at + 16) + succeeded)
    struct.pack_into(f"{order}I", body, at + 24, fields.u32(at + 24) + failed)
    if failed and not fields.u32(at + 12):
        struct.pack_into(f"{order}II", body, at + 8, FAILED, reason)
    return msgspec.structs.replace(reply, body=bytes(body))


def close_options(call: Segment) -> int:
    """MQCO of MQCLOSE.  Raises `ProtocolError`."""
    return _fields(call).u32(API)


def closing(like: Segment, handle: int) -> Segment:
    """MQCLOSE of a handle, on the conversation of ``like``."""
    length = (36 if like.eyecatcher == MULTIPLEXED else 28) + API + 4
    order = "<" if like.little else ">"
    body = length.to_bytes(4, "big") + struct.pack(f"{order}IIiI", 0, 0, handle, 0)
    return msgspec.structs.replace(like, type=Type.MQCLOSE, flags=int(WHOLE), request=0, body=body)


def resolving(like: Segment, manager: str, queue: str) -> Segment:
    """MQOPEN for output of a queue, only to learn where its name leads, on the conversation of ``like``."""
    order = "<" if like.little else ">"
    od = bytearray(_EMPTY_OBJECT[order][: OD_SIZES[3]])
    struct.pack_into(f"{order}II", od, 4, 3, 1)
    od[12:60], od[60:108] = queue.encode("ascii").ljust(48), manager.encode("ascii").ljust(48)
    fopa = b"FOPA" + struct.pack(f"{order}IIiiii", 2, 84, -1, -1, 0, 0) + b" " * 48 + struct.pack(f"{order}II", 0, 0)
    rest = bytes(od) + struct.pack(f"{order}I", _OUTPUT | _FAIL_IF_QUIESCING) + fopa
    length = (36 if like.eyecatcher == MULTIPLEXED else 28) + API + len(rest)
    body = length.to_bytes(4, "big") + struct.pack(f"{order}IIi", 0, 0, 0) + rest
    return msgspec.structs.replace(like, type=Type.MQOPEN, flags=int(WHOLE), request=0, body=body)


def _empty_object(order: str) -> bytes:
    """An MQOD of version 4 without a name: where a newer version than the client's is filled up from."""
    od = bytearray(400)
    od[:4] = b"OD  "
    od[12:168] = b" " * 156
    od[240:336] = b" " * 96
    for at in (336, 356, 376):
        struct.pack_into(f"{order}i", od, at + 4, 400)
    return bytes(od)


_EMPTY_OBJECT: Final = {"<": _empty_object("<"), ">": _empty_object(">")}


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
        listening=bool(fields.u32(32) & _LISTENING),
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
    # IBM's client reads these to their end even if they are refused.
    whole = call.type in (Type.MQCONN, Type.MQOPEN, Type.MQGET)
    body = bytearray(call.body if whole else _fields(call).raw(0, API))
    order = "<" if call.little else ">"
    none = -1 if call.type in (Type.MQOPEN, Type.SPI) else struct.unpack_from(f"{order}i", body, 12)[0]
    struct.pack_into(f"{order}IIi", body, 4, FAILED, reason, none)
    header = 36 if call.eyecatcher == MULTIPLEXED else 28
    length = header + len(body) - (_MULTIPLEX_HEADER if call.eyecatcher == MULTIPLEXED else 0)
    body[:4] = length.to_bytes(4, "big")
    if call.type is Type.MQGET:
        at = API + message_descriptor(_fields(call), API).size
        at += get_options(_fields(call), at).size
        _fields(call).raw(at, 4)
        body[at : at + 4] = bytes(4)  # DataLength, where the request has BufferLength
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
