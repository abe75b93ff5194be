"""What a client of a queue manager says: calls of level 13 of the channel protocol, on conversations of one socket."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from grille.protocols.mq.channel import START_CONV
from grille.protocols.mq.segments import MULTIPLEXED, SINGLE, SOCKET, WHOLE, Flag, Segment, Type

LEVEL: Final = 13
INPUT_SHARED, BROWSE, OUTPUT, INQUIRE = 0x2, 0x8, 0x10, 0x20
"""MQOO."""
SYNCPOINT, NO_SYNCPOINT = 0x2, 0x4
"""MQPMO and MQGMO."""
BROWSE_FIRST, BROWSE_NEXT = 0x10, 0x20
"""MQGMO."""
_FAIL_IF_QUIESCING: Final = 0x2000
_NEW_MSG_ID: Final = 0x40
_PROPERTIES_FORCE_MQRFH2: Final = 0x0200_0000
_ANY_LENGTH: Final = -1


class Described(msgspec.Struct, frozen=True):
    """What a put says of its message."""

    format: str = ""
    ccsid: int = 1208
    encoding: int = 0x111
    persistent: bool = False
    correlation_id: bytes = bytes(24)
    reply_queue: str = ""
    reply_manager: str = ""


def proposal(channel: str, manager: str, *, conversations: int, message_limit: int, product: str) -> Segment:
    """INITIAL_DATA.  ``product``: 12 characters that say who the client is."""
    body = bytearray(240)
    struct.pack_into("<4sBB", body, 0, b"ID  ", LEVEL, 0x26)
    struct.pack_into("<II", body, 12, 32_748, message_limit)
    body[24:44] = _name(channel, 20)
    struct.pack_into("<BBH", body, 44, 0x41, 0, 819)
    body[48:96] = _name(manager or "*", 48)
    struct.pack_into("<I", body, 96, 300)
    body[104:122] = b"\0\xff\0" + b"\xff" * 15
    struct.pack_into("<iB", body, 128, conversations, 0x20)
    body[148:160] = _name(product, 12)
    struct.pack_into("<10H", body, 208, 0, *[0xFFFF] * 9)
    return Segment(Type.INITIAL_DATA, bytes(body), WHOLE | Flag.CONFIRM_REQUEST, eyecatcher=SINGLE)


def begin(conversation: int) -> Segment:
    """SOCKET_ACTION: begin a further conversation, whose number is odd."""
    return _action(START_CONV, conversation, WHOLE)


def end(conversation: int, *, last: bool) -> Segment:
    """SOCKET_ACTION: end a conversation, and with the last one the socket."""
    return _action(2, conversation, WHOLE | Flag.CLOSE_CHANNEL if last else WHOLE)


def _action(kind: int, conversation: int, flags: int) -> Segment:
    body = struct.pack("<5I", conversation, 0, kind, int(kind == START_CONV), 0)
    return Segment(Type.SOCKET_ACTION, body, flags, eyecatcher=SOCKET)


def connect(manager: str, application: str) -> Segment:
    """MQCONN."""
    fcno = struct.pack("<4sII", b"FCNO", 2, 0) + bytes(200)
    rest = _name(manager, 48) + _name(application, 28) + struct.pack("<i32sII", 6, bytes(32), 7, 0) + fcno
    return _call(Type.MQCONN, rest)


def open_(queue: str, options: int, manager: str = "", dynamic: str = "") -> Segment:
    """MQOPEN of a queue; of the queue manager itself without a name.  ``options``: MQOO."""
    rest = _object(queue, manager, dynamic) + struct.pack("<I", options | _FAIL_IF_QUIESCING)
    fopa = struct.pack("<4sIIiiII48sII", b"FOPA", 2, 84, -1, -1, 0, 0, b" " * 48, 0, 0)
    return _call(Type.MQOPEN, rest + fopa)


def put(handle: int, data: bytes, described: Described, options: int = NO_SYNCPOINT) -> Segment:
    """MQPUT.  ``options``: MQPMO."""
    return _call(Type.MQPUT, _message(described, options, data), handle)


def put1(queue: str, data: bytes, described: Described, options: int = NO_SYNCPOINT, manager: str = "") -> Segment:
    """MQPUT1: open, put and close in one."""
    return _call(Type.MQPUT1, _object(queue, manager) + _message(described, options, data))


def request(handle: int, *, received: int, options: int, confirmed: bool, wait: int = 0, last: int = 0) -> Segment:
    """REQUEST_MSGS: one message of any length.

    ``received``: bytes of descriptors and data since the last request.  ``wait``: milliseconds.  ``last``:
    GlobalMessageIndex of the last message of this handle.
    """
    flags = 0x0E if confirmed else 0x08
    body = struct.pack(
        "<IiIIiIiIII", 1, handle, received, 1, _ANY_LENGTH,
        options | _FAIL_IF_QUIESCING | _PROPERTIES_FORCE_MQRFH2, wait, 0, flags, last,
    )  # fmt: skip
    control = WHOLE | Flag.CONFIRM_REQUEST if confirmed else WHOLE
    return Segment(Type.REQUEST_MSGS, body, control, request=3 if confirmed else 1)


def simple(kind: Type, handle: int = 0) -> Segment:
    """MQCMIT, MQBACK or MQDISC; MQCLOSE of a handle."""
    return _call(kind, bytes(4) if kind is Type.MQCLOSE else b"", handle)


def inquire(handle: int, selectors: tuple[int, ...], characters: int = 0) -> Segment:
    """MQINQ.  ``characters``: bytes of all character attributes together."""
    numbers = sum(selector <= 2000 for selector in selectors)
    rest = struct.pack(f"<III{len(selectors)}I", len(selectors), numbers, characters, *selectors)
    return _call(Type.MQINQ, rest, handle)


def _call(kind: Type, rest: bytes, handle: int = 0) -> Segment:
    length = 36 + 16 + len(rest)
    return Segment(kind, length.to_bytes(4, "big") + struct.pack("<IIi", 0, 0, handle) + rest, eyecatcher=MULTIPLEXED)


def _object(queue: str, manager: str, dynamic: str = "") -> bytes:
    kind = 1 if queue else 5
    head = struct.pack("<4sII", b"OD  ", 2, kind) + _name(queue, 48) + _name(manager, 48)
    return head + _name(dynamic, 48) + b" " * 12 + bytes(32)


def _message(described: Described, options: int, data: bytes) -> bytes:
    md = struct.pack(
        "<4sIIIiiIi8sii24s24sI48s48s", b"MD  ", 2, 0, 8, -1, 0, described.encoding, described.ccsid,
        _name(described.format, 8), 4, int(described.persistent), bytes(24), described.correlation_id, 0,
        _name(described.reply_queue, 48), _name(described.reply_manager, 48),
    )  # fmt: skip
    md = md.ljust(324, b"\0") + bytes(24) + struct.pack("<IIIi", 1, 0, 0, -1)
    wanted = options | _FAIL_IF_QUIESCING | _NEW_MSG_ID
    pmo = struct.pack("<4sIIii", b"PMO ", 2, wanted, -1, 0).ljust(152, b"\0")
    return md + pmo + struct.pack("<I", len(data)) + data


def _name(text: str, size: int) -> bytes:
    return text.encode("ascii").ljust(size)[:size]
