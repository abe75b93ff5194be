"""The MQ decoders, with segments that were seen or built, and changed."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable
from typing import Final

import msgspec

from grille.protocols.mq import calls
from grille.protocols.mq.calls import message, put, with_data
from grille.protocols.mq.channel import Channel, State, Talk, initial_data, restricted, socket_action
from grille.protocols.mq.segments import ROOM, Calls, ProtocolError, Segment, Segments, Type, cut
from tests.protocols.mq import build
from tests.protocols.mq.test_segments import SEEN

SEGMENT_LIMIT: Final = 4096
MESSAGE_LIMIT: Final = 16_384
_READERS: Final[dict[Type, Callable[[Segment], object]]] = {
    Type.INITIAL_DATA: functools.partial(
        restricted, channel="C", segment_limit=4096, message_limit=1 << 20, conversations=3
    ),
    Type.SOCKET_ACTION: socket_action,
    Type.MQCONN: calls.connect,
    Type.MQOPEN: calls.open_,
    Type.SPI: calls.open_,
    Type.MQPUT: put,
    Type.MQPUT1: put,
    Type.REQUEST_MSGS: calls.request,
    Type.ASYNC_MESSAGE: message,
    Type.NOTIFICATION: calls.notification,
    Type.MQCONN_REPLY: calls.outcome,
    Type.MQCLOSE: calls.handle,
    Type.MQGET: calls.get,
    Type.MQGET_REPLY: calls.get,
    Type.MQINQ: calls.inquiry,
    Type.MQOPEN_REPLY: calls.opened,
    Type.SPI_REPLY: calls.opened,
    Type.MQPUT_REPLY: calls.answered_put,
    Type.MQPUT1_REPLY: calls.answered_put,
    Type.MQSTAT_REPLY: functools.partial(calls.with_failures, reason=2035, succeeded=1, failed=1),
}


_PIECES: Final = 200
"""In which a long input arrives at most."""


@functools.cache
def _whole() -> list[bytes]:
    """Conversations, a few segments each."""
    begin = [build.initial(), build.initial(multiplexed=True), build.connect()]
    both = [
        [*begin, build.spi_open("A.QUEUE", 0x2010, version=4, selection=b"n = 1"), build.put(b"data"), build.request()],
        [build.message(b"some data", queue="A.QUEUE"), build.simple(Type.MQCMIT), build.action(1, 3)],
        cut(build.put(bytes(9000)), 2000),
        cut(build.message(bytes(9000)), 2000, data_at=message(build.message(b"")).data_at),
        [build.put1("B", b"x" * 50), build.mqopen("C", 0x20), build.heartbeat(), build.action(2, 1, flags=0x38)],
    ]
    return [*SEEN, *(b"".join(segment.encode() for segment in part) for part in both)]


def make(source: random.Random) -> bytes:
    """A byte that says whose turn it is and how the rest arrives, then what arrives."""
    data = bytearray(b"".join(source.choice(_whole()) for _ in range(source.randint(1, 3))))
    for _ in range(source.choice((0, 1, 1, 2, 3, 8))):
        at = source.randrange(len(data))
        match source.randrange(6):
            case 0:
                data[at] = source.randrange(256)
            case 1:
                data[at] ^= 1 << source.randrange(8)
            case 2:
                data[at : at + 4] = source.choice((0, 1, 4, 24, 36, 364, 65536, 2**31 - 1, 2**32 - 1)).to_bytes(
                    4,
                    source.choice(("little", "big")),  # type: ignore[arg-type]
                )
            case 3:
                del data[at : at + source.randint(1, 40)]
            case 4:
                data[at:at] = source.randbytes(source.randint(1, 8))
            case _:
                del data[at:]
        if not data:
            break
    return source.randbytes(1) + bytes(data)


def check(data: bytes) -> None:
    """A protocol error, or calls that read and write alike; what is held stays within what was agreed."""
    if not data:
        return
    how, rest = data[0], data[1:]
    step = max((1, 7, 64, len(rest) or 1)[how & 3], len(rest) // _PIECES)
    channel = Channel()
    if how & 4:
        channel.state, channel.multiplexed, channel.talks, channel._agreed = State.OPEN, True, {1: Talk.CONNECTED}, 3
    segments, whole = Segments(SEGMENT_LIMIT), Calls(MESSAGE_LIMIT)
    taken = 0
    with contextlib.suppress(ProtocolError):
        for at in range(0, len(rest), step):
            segments.feed(rest[at : at + step])
            assert segments.pending <= SEGMENT_LIMIT + step
            for segment in segments:
                encoded = segment.encode(pad=False)
                same = msgspec.structs.replace(segment)
                assert encoded[:8] == rest[taken : taken + 8]
                assert rest[taken : taken + len(encoded)].endswith(segment.body)
                assert next(iter(_again(encoded))) == same
                taken += len(encoded)
                call = whole.add(segment)
                assert whole.held <= 3 * (MESSAGE_LIMIT + ROOM + SEGMENT_LIMIT)
                if call is not None:
                    _read(call)
                    (channel.from_client if how & 8 else channel.from_manager)(call)


def _again(encoded: bytes) -> Segments:
    segments = Segments(SEGMENT_LIMIT)
    segments.feed(encoded)
    return segments


def _answer(call: Segment) -> Segment:
    """The reply to an SPI open, as one that echoes it."""
    at = calls.API + 24
    body = call.body[: at + 3] + b"O" + call.body[at + 4 :]
    return msgspec.structs.replace(call, type=Type.SPI_REPLY, body=body)


def _read(call: Segment) -> None:
    reader = _READERS.get(call.type)
    if reader is None:
        return
    reader(call)
    if call.type is Type.INITIAL_DATA:
        initial_data(restricted(call, "C", segment_limit=1, message_limit=1, conversations=0))
    if call.type in (Type.MQOPEN, Type.SPI):
        told = calls.open_(call)
        assert calls.open_(calls.without_read_ahead(call)).what == told.what
        if not told.what.object_string and call.type is Type.SPI:
            selected = calls.with_selection(call, "n = 1")
            assert calls.open_(selected).what.selection == b"n = 1"
            back = calls.as_asked(msgspec.structs.replace(_answer(selected)), call)
            assert calls.opened(back).name == told.what.name and len(back.body) == len(call.body)
        if not told.what.object_string and not told.what.selection:
            newer = calls.with_version(call, 4)
            assert calls.open_(newer).what.name == told.what.name
            assert calls.open_(calls.with_version(newer, told.what.version)).what == told.what
    if call.type is Type.ASYNC_MESSAGE:
        told = put(calls.moving(call, "BAD"))
        assert told.what is not None and told.what.name == "BAD" and told.length == message(call).length
    if call.type in (Type.MQPUT, Type.MQPUT1, Type.ASYNC_MESSAGE):
        read = message if call.type is Type.ASYNC_MESSAGE else put
        told = read(call)
        other = with_data(call, b"another value")
        again = read(other)
        assert other.body[again.data_at :] == b"another value"
        assert other.body[: told.data_at][36:] != b""
    if Type.MQCONN <= call.type < Type.MQCONN_REPLY or call.type is Type.REQUEST_MSGS:
        for answer in calls.refused(call):
            assert next(iter(_again(answer.encode()))).type is answer.type
