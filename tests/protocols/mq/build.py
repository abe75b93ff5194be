"""Calls as IBM's Java client sends them, put together field by field."""

from __future__ import annotations

import struct

from grille.protocols.mq.segments import MULTIPLEXED, SINGLE, SOCKET, WHOLE, Flag, Segment, Type


def name(text: str, size: int) -> bytes:
    return text.encode().ljust(size)


def api(handle: int = 0, little: bool = True, length: int = 0) -> bytes:
    return length.to_bytes(4, "big") + struct.pack("<IIi" if little else ">IIi", 0, 0, handle)


def od(queue: str, version: int = 2, manager: str = "", selection: bytes = b"") -> bytes:
    size = {1: 168, 2: 200, 3: 336, 4: 400}[version]
    body = bytearray(size)
    struct.pack_into("<4sII", body, 0, b"OD  ", version, 1)
    body[12:60], body[60:108] = name(queue, 48), name(manager, 48)
    body[108:156], body[156:168] = name("", 48), name("", 12)
    if version == 4:
        for at in (336, 356, 376):
            struct.pack_into("<IiIii", body, at, 0, 400, 0, 0, 1208)
        if selection:
            struct.pack_into("<IiIii", body, 356, 0, 400, 0, len(selection), 1208)
            body += selection + bytes(-len(selection) % 4)
    return bytes(body)


def md(version: int = 1, message_id: bytes = bytes(24), persistence: int = 0) -> bytes:
    body = bytearray({1: 324, 2: 364}[version])
    struct.pack_into("<4sIIIiiIi", body, 0, b"MD  ", version, 0, 8, -1, 0, 273, 1208)
    body[32:40] = b"MQSTR   "
    struct.pack_into("<ii", body, 40, 4, persistence)
    body[48:72] = message_id
    body[100:148], body[148:196] = name("", 48), name("", 48)
    if version == 2:
        struct.pack_into("<i", body, 360, -1)
    return bytes(body)


def pmo(options: int = 0x22044, version: int = 2) -> bytes:
    body = bytearray({1: 128, 2: 152, 3: 176}[version])
    struct.pack_into("<4sII", body, 0, b"PMO ", version, options)
    return bytes(body)


def put(data: bytes, *, handle: int = 2, version: int = 1, options: int = 0x22044, conversation: int = 1) -> Segment:
    rest = md(version) + pmo(options) + struct.pack("<I", len(data)) + data
    return Segment(Type.MQPUT, api(handle, length=36 + 16 + len(rest)) + rest, WHOLE, conversation)


def put1(queue: str, data: bytes, *, conversation: int = 1) -> Segment:
    rest = od(queue) + md() + pmo() + struct.pack("<I", len(data)) + data
    return Segment(Type.MQPUT1, api(0, length=36 + 16 + len(rest)) + rest, WHOLE, conversation)


def spi_open(queue: str, options: int, *, version: int = 2, selection: bytes = b"", conversation: int = 1) -> Segment:
    lpoo = struct.pack("<4sIIIiiii", b"LPOO", 3, options, 0x20, -1, -1, -1, -1).ljust(80) + struct.pack("<II", 0, 10240)
    what = od(queue, version, selection=selection)
    block = struct.pack("<III", 12, 2, 296) + struct.pack("<4sII", b"SPOU", 1, 12)
    block += struct.pack("<4sII", b"SPOI", 2, 12 + len(lpoo) + len(what)) + lpoo + what
    return Segment(Type.SPI, api(-1) + block, WHOLE, conversation)


def mqopen(queue: str, options: int, *, conversation: int = 1) -> Segment:
    return Segment(Type.MQOPEN, api() + od(queue) + struct.pack("<I", options) + bytes(84), WHOLE, conversation)


def request(handle: int = 2, *, confirmed: bool = False, options: int = 0x2006005, longest: int = -1) -> Segment:
    body = struct.pack("<IiIIiIiIII", 1, handle, 0, 1, longest, options, 0, 0, 0x08, 0)
    flags = WHOLE | Flag.CONFIRM_REQUEST if confirmed else WHOLE
    return Segment(Type.REQUEST_MSGS, body, flags, 1, 3 if confirmed else 1)


def message(data: bytes, *, handle: int = 2, queue: str = "", reason: int = 0, whole: int | None = None) -> Segment:
    body = struct.pack("<IiIIIHH", 1, handle, 1, 1, len(data), 0, 1)
    body += struct.pack("<III16sHB", reason, len(data), len(data) if whole is None else whole, bytes(16), 1, len(queue))
    body += queue.encode()
    body += bytes(-(len(body) - 52) % 4) + md(2) + data
    return Segment(Type.ASYNC_MESSAGE, body, WHOLE, 1, 1)


def initial(*, level: int = 17, conversations: int = 10, multiplexed: bool = False, flags: int = 0x31) -> Segment:
    body = bytearray(240)
    struct.pack_into("<4sBBBB", body, 0, b"ID  ", level, 0x26, 0, 0)
    struct.pack_into("<II", body, 12, 32748, 104857600)
    body[24:44] = name("APP.SVRCONN", 20)
    struct.pack_into("<BBH", body, 44, 0x51, 0, 819)
    body[48:96] = name("QM1", 48)
    struct.pack_into("<I", body, 96, 300)
    body[104:122] = b"\0\xff\0" + b"\xff" * 15
    struct.pack_into("<iB", body, 128, conversations, 0x28)
    return Segment(
        Type.INITIAL_DATA, bytes(body), flags, int(multiplexed), eyecatcher=MULTIPLEXED if multiplexed else SINGLE
    )


def connect(manager: str = "QM1", *, conversation: int = 1) -> Segment:
    body = name(manager, 48) + name("App", 28) + struct.pack("<i32sII", 28, bytes(32), 7, 0x200000) + bytes(352)
    return Segment(Type.MQCONN, api(0) + body, WHOLE, conversation)


def simple(kind: Type, *, handle: int = 0, conversation: int = 1, code: int = 0, reason: int = 0) -> Segment:
    body = struct.pack("<4sIIi", bytes(4), code, reason, handle)
    return Segment(kind, body, WHOLE, conversation)


def action(number: int, conversation: int, *, flags: int = WHOLE, accept: bool = False) -> Segment:
    body = struct.pack("<IIIII", conversation, 0, number, 0, 0)
    eyecatcher = MULTIPLEXED if accept else SOCKET
    return Segment(Type.SOCKET_ACTION, body, flags, conversation if accept else 0, eyecatcher=eyecatcher)


def heartbeat(*, ask: bool = True) -> Segment:
    return Segment(Type.HEARTBEAT, b"", 0x31 if ask else 0x30, eyecatcher=SOCKET)
