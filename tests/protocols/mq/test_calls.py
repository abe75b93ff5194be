"""What calls say, how their data are changed, and how they are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.protocols.mq.calls import (
    connect,
    handle,
    message,
    notification,
    open_,
    outcome,
    put,
    refused,
    request,
    spi_verb,
    with_data,
)
from grille.protocols.mq.segments import SINGLE, ProtocolError, Segment, Type
from tests.protocols.mq import build
from tests.protocols.mq.test_segments import REQUEST, cut_up

# Answers that IBM's Java client took for what they are.
REFUSED_OPEN = bytes.fromhex(
    "5453484d 00000034 00000001 00000000 029c3000 00000000 00000000 11010000 33030000"
    "0000002c 02000000 f3070000 ffffffff"
)
REFUSED_GET = bytes.fromhex(
    "5453484d 00000034 00000001 00000001 020f3000 00000000 00000000 22020000 33030000"
    "01000000 2a000000 0e000000 f3070000"
)
NOTHING_THERE = bytes.fromhex(
    "5453484d 00000034 00000001 00000003 020f3000 00000000 00000000 22020000 33030000"
    "01000000 2a000000 0b000000 00000000"
)


def changed(call: Segment, at: int, new: bytes) -> Segment:
    body = bytearray(call.body)
    body[at : at + len(new)] = new
    return msgspec.structs.replace(call, body=bytes(body))


def test_a_request_that_was_seen() -> None:
    (call,) = cut_up(REQUEST)
    told = request(call)
    assert (told.handle, told.longest, told.confirmed, told.options, told.wait) == (12, 4096, True, 0x2000005, 0)


def test_opens() -> None:
    found = open_(build.spi_open("PAY.IN", 0x2010))
    assert (found.what.name, found.what.kind, found.what.manager, found.options) == ("PAY.IN", 1, "", 0x2010)
    found = open_(build.spi_open("PAY.IN", 1, version=4, selection=b"n = 1"))
    assert (found.what.selection, found.what.selection_ccsid, found.what.size) == (b"n = 1", 1208, 408)
    found = open_(build.mqopen("OTHER", 0x20))
    assert (found.what.name, found.options) == ("OTHER", 0x20)
    assert spi_verb(build.spi_open("Q", 1)) == "open"
    with pytest.raises(ProtocolError, match="verb 2 "):
        spi_verb(changed(build.spi_open("Q", 1), 16, b"\2"))


@pytest.mark.parametrize("version", [1, 2])
def test_puts(version: int) -> None:
    told = put(build.put(b"payload", version=version))
    assert (told.handle, told.length, told.what, told.message.ccsid, told.message.format) == (2, 7, None, 1208, "MQSTR")
    assert told.data_at + 36 == {1: 532, 2: 572}[version]
    assert not told.message.segmented
    first = put(build.put1("PAY.IN", b"x"))
    assert first.what is not None
    assert first.what.name == "PAY.IN"


def test_messages() -> None:
    told = message(build.message(b"hello", queue="SOME.QUEUE.OF.20.LET"))
    assert (told.queue, told.length, told.whole, told.data_at) == ("SOME.QUEUE.OF.20.LET", 5, 5, 52 + 24 + 364)
    assert message(build.message(b"")).data_at == 56 + 364


def test_the_rest() -> None:
    assert connect(build.connect("QM1")).manager == "QM1"
    assert handle(build.simple(Type.MQCLOSE, handle=6)) == 6
    assert outcome(build.simple(Type.MQCLOSE_REPLY, code=2, reason=2035)) == (2, 2035)
    (call,) = cut_up(NOTHING_THERE)
    assert (notification(call).handle, notification(call).code, notification(call).value) == (42, 11, 0)


def test_refusals_that_were_seen() -> None:
    opened = build.spi_open("Q", 1)
    opened.encoding = 0x111
    assert [segment.encode() for segment in refused(opened)] == [REFUSED_OPEN]
    asked = build.request(42)
    assert [segment.encode() for segment in refused(asked)] == [REFUSED_GET]
    assert [segment.encode() for segment in refused(build.request(42, confirmed=True))] == [REFUSED_GET, NOTHING_THERE]


def test_refusals() -> None:
    for call in (build.put(b"x"), build.put1("Q", b"x"), build.simple(Type.MQSUB), build.mqopen("Q", 1)):
        (answer,) = refused(call, 2051)
        assert answer.type == call.type + 0x10
        assert outcome(answer) == (2, 2051)
        assert len(answer.body) == (len(call.body) if call.type is Type.MQOPEN else 16)
    alone = build.mqopen("Q", 1)
    alone.eyecatcher = SINGLE
    (answer,) = refused(alone)
    assert (outcome(answer), handle(answer), answer.body[16:]) == ((2, 2035), -1, alone.body[16:])
    (answer,) = refused(build.connect())
    assert outcome(answer) == (2, 2035)
    assert answer.body[16:] == build.connect().body[16:]
    assert refused(build.put(b"x", options=0x12044)) == []
    for call in (build.heartbeat(), build.message(b""), build.simple(Type.MQPUT_REPLY)):
        with pytest.raises(ProtocolError):
            refused(call)


@given(old=st.binary(max_size=300), new=st.binary(max_size=300), streamed=st.booleans())
def test_other_data(old: bytes, new: bytes, streamed: bool) -> None:
    call = build.message(old, queue="Q") if streamed else build.put(old)
    call.body += bytes(-len(call.body) % 4)
    other = with_data(call, new)
    told = message(other) if streamed else put(other)
    assert other.body[told.data_at :] == new
    assert other.body[: told.data_at - 4 - 20 * streamed] != b""
    if streamed:
        assert struct.unpack_from("<II", other.body, 28) == (len(new), len(new))
    else:
        before, after = (int.from_bytes(each.body[:4], "big") for each in (call, other))
        assert after - before == len(new) - len(old)
        assert after == 36 + len(other.body)
    assert with_data(other, old).body[: told.data_at] == call.body[: told.data_at]


def test_a_truncated_message_keeps_its_data() -> None:
    for call in (build.message(b"half", reason=2079), build.message(b"half", whole=8)):
        with pytest.raises(ProtocolError, match="truncated"):
            with_data(call, b"x")


READERS: list[tuple[Callable[[Segment], object], Segment]] = [
    (open_, build.spi_open("Q", 1)), (open_, build.spi_open("Q", 1, version=4, selection=b"a = 'b'")),
    (open_, build.mqopen("Q", 1)), (put, build.put(b"data")), (put, build.put1("Q", b"data")),
    (message, build.message(b"data", queue="Q")), (request, build.request()), (connect, build.connect()),
    (notification, cut_up(NOTHING_THERE)[0]), (handle, build.simple(Type.MQCLOSE)),
    (outcome, build.simple(Type.MQCMIT)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(READERS)))
def test_a_call_that_ends_too_soon(number: int) -> None:
    read, call = READERS[number]
    read(call)
    needed = {connect: 16 + 120, handle: 16, outcome: 12}.get(read, len(call.body))
    if call.type is Type.MQOPEN:
        needed = 16 + 200 + 4
    if number == 1:
        needed -= 1  # the padding of its selection
    for length in range(needed):
        with pytest.raises(ProtocolError):
            read(msgspec.structs.replace(call, body=call.body[:length]))


@pytest.mark.parametrize(
    ("call", "at", "new", "words"),
    [
        (build.put(b"data"), 16, b"XX", "MD is missing"),
        (build.put(b"data"), 20, b"\3", "version 3 of MD"),
        (build.put(b"data"), 16 + 324, b"X", "PMO is missing"),
        (build.put(b"data"), 16 + 324 + 4, b"\4", "version 4 of PMO"),
        (build.put(b"data"), 16 + 324 + 152, b"\3", None),
        (build.put(b"data"), 16 + 324 + 152, b"\5", "not the length"),
        (build.put(b"datadata"), 16 + 324 + 152, b"\4", "not the length"),
        (build.put(b"data"), 16 + 324 + 152, b"\xff\xff\xff\xff", "not the length"),
        (build.put(b"data"), 16 + 32, b"\x80", "characters that no MQ object has"),
        (build.put(b"data"), 16 + 324 + 128, b"\xff\xff", "1000 records"),
        (build.put1("Q", b""), 16 + 168, b"\1", "distribution list"),
        (build.put1("Q", b""), 20, b"\5", "version 5 of OD"),
        (build.message(b"data"), 0, b"\2", "version 2"),
        (build.message(b"data"), 28, b"\5", "not the length"),
        (build.message(b"data"), 16, b"\5", "lies"),
        (build.message(b"data"), 54, b"\xff", "shorter|missing|characters"),
        (build.request(), 0, b"\2", "version 2"),
        (build.request(), 32, b"\x18", "shorter"),
        (build.spi_open("Q", 1), 28, b"X", "blocks of an open"),
        (build.spi_open("Q", 1), 52 + 4, b"\2", "version 2 of LPOO"),
        (build.spi_open("Q", 1, version=4, selection=b"a"), 52 + 88 + 356 + 12, b"\xff\xff\xff\xff", "not where"),
        (build.spi_open("Q", 1, version=4, selection=b"a"), 52 + 88 + 356 + 4, b"\4\0", "not where"),
        (build.spi_open("Q", 1, version=4, selection=b"a"), 52 + 88 + 356 + 12, b"\xff\0", "shorter"),
    ],
)  # fmt: skip
def test_structures_that_lie(call: Segment, at: int, new: bytes, words: str | None) -> None:
    read = {Type.MQPUT: put, Type.MQPUT1: put, Type.ASYNC_MESSAGE: message, Type.REQUEST_MSGS: request}.get(
        call.type, open_
    )
    if words is None:
        read(changed(call, at, new))
        return
    with pytest.raises(ProtocolError, match=words):
        read(changed(call, at, new))


def test_an_unpadded_segment_has_no_padding() -> None:
    call = build.put(b"data!")
    call.eyecatcher = SINGLE
    put(call)
    call.body += b"\0"
    with pytest.raises(ProtocolError, match="not the length"):
        put(call)


def test_lanes() -> None:
    for call, lane in ((build.request(), 3), (build.request(confirmed=True), 1), (build.message(b""), 3)):
        call.request = lane
        with pytest.raises(ProtocolError, match="another lane"):
            (message if call.type is Type.ASYNC_MESSAGE else request)(call)


def test_a_part_of_a_message_of_the_application() -> None:
    body = bytearray(build.put(b"x", version=2).body)
    struct.pack_into("<I", body, 16 + 356, 2)
    assert put(Segment(Type.MQPUT, bytes(body))).message.segmented
