"""Bytes to segments to calls, and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grille.protocols.mq.calls import message, put, with_data
from grille.protocols.mq.segments import (
    MULTIPLEXED,
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
from tests.protocols.mq import build

# Hexadecimal as seen on the wire between IBM's Java client and a queue manager.
COMMIT = bytes.fromhex(
    "5453484d 00000034 00000001 00000000 028a3000 00000000 00000000 11010000 33030000"
    "00000034 00000000 00000000 00000000"
)
HEARTBEAT = bytes.fromhex("54534843 0000001c 02093000 00000000 00000000 22020000 33030000")
REQUEST = bytes.fromhex(
    "5453484d 0000004c 00000001 00000003 020e3100 00000000 00000000 11010000 33030000"
    "01000000 0c000000 00000000 01000000 00100000 05000002 00000000 00000000 0e000000 00000000"
)
SEEN = [COMMIT, HEARTBEAT, REQUEST]


def cut_up(data: bytes, limit: int = 32_748) -> list[Segment]:
    segments = Segments(limit)
    segments.feed(data)
    return list(segments)


def test_segments_that_were_seen_are_read_and_written_alike() -> None:
    commit, heartbeat, request = cut_up(b"".join(SEEN))
    assert (commit.type, commit.conversation, commit.little, commit.encoding) == (Type.MQCMIT, 1, True, 0x111)
    assert (heartbeat.type, heartbeat.eyecatcher, heartbeat.body) == (Type.HEARTBEAT, b"TSHC", b"")
    assert (request.request, request.flags) == (3, WHOLE | Flag.CONFIRM_REQUEST)
    assert [segment.encode() for segment in (commit, heartbeat, request)] == SEEN
    assert "0c00" not in repr(request)


def test_byte_by_byte() -> None:
    data = b"".join(SEEN) * 2
    segments = Segments()
    found = []
    for byte in data:
        segments.feed(bytes((byte,)))
        found += list(segments)
    assert b"".join(segment.encode() for segment in found) == data
    assert segments.pending == 0


@pytest.mark.parametrize("data", SEEN)
def test_a_part_of_a_segment_waits(data: bytes) -> None:
    for length in range(len(data)):
        segments = Segments()
        segments.feed(data[:length])
        assert list(segments) == []
        assert segments.pending == length


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((0, b"T"), None), ((0, b"X"), "not a segment"), ((0, b"\xe3\xe2\xc8\xd4"), "EBCDIC"),
        ((4, b"\0\0\0\x23"), "35 bytes is not within 36 and 32748"), ((4, b"\xff"), "is not within"),
        ((4, b"\0\0\x7f\xed"), "32749 bytes"), ((16, b"\0"), "byte order 0"), ((16, b"\3"), "byte order 3"),
        ((17, b"\x02"), "type 0x02"), ((17, b"\xa1"), "type 0xa1"), ((17, b"\xff"), "type 0xff"),
        ((19, b"\2"), "compressed"),
    ],
)  # fmt: skip
def test_what_is_no_segment(change: tuple[int, bytes], words: str | None) -> None:
    data = bytearray(COMMIT)
    at, new = change
    data[at : at + len(new)] = new
    if words is None:
        assert len(cut_up(bytes(data))) == 1
        return
    with pytest.raises(ProtocolError, match=words):
        cut_up(bytes(data))


def test_a_wrong_beginning_or_length_is_told_before_the_rest_is_there() -> None:
    segments = Segments()
    segments.feed(b"GET ")
    with pytest.raises(ProtocolError):
        next(segments)
    segments = Segments(limit=100)
    segments.feed(b"TSHM\0\0\0\x65")
    with pytest.raises(ProtocolError, match="101 bytes is not within 36 and 100"):
        next(segments)


def test_a_single_segment_is_whole() -> None:
    calls = Calls(1000)
    for segment in (*cut_up(COMMIT), build.put(b"x" * 10)):
        assert calls.add(segment) is segment
    assert calls.held == 0


@settings(max_examples=200)
@given(size=st.integers(0, 5000), limit=st.integers(700, 1500), streamed=st.booleans(), little=st.booleans())
def test_a_call_that_is_cut_is_put_together_again(size: int, limit: int, streamed: bool, little: bool) -> None:
    data = bytes(n % 251 for n in range(size))
    call = build.message(data, queue="SOME.QUEUE") if streamed else build.put(data)
    parts = cut(call, limit, data_at=message(call).data_at if streamed else 0)
    assert all(len(part.encode()) <= limit for part in parts)
    assert [bool(part.flags & Flag.FIRST) for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [bool(part.flags & Flag.LAST) for part in parts] == [False] * (len(parts) - 1) + [True]
    calls = Calls(size)
    segments = Segments(limit)
    whole = None
    for part in parts:
        assert whole is None
        segments.feed(part.encode())
        (again,) = segments
        whole = calls.add(again)
    assert whole is not None
    assert calls.held == 0
    told = message(whole) if streamed else put(whole)
    assert whole.body[told.data_at : told.data_at + told.length] == data
    assert with_data(whole, data).body[told.data_at :] == data


def test_conversations_interleave_and_other_calls_do_not() -> None:
    one, other = (cut(build.put(bytes(3000), conversation=number), 1000) for number in (1, 3))
    calls = Calls(3000)
    ended = [calls.add(segment) for pair in zip(one, other, strict=True) for segment in pair]
    assert [call.conversation for call in ended if call is not None] == [1, 3]
    calls.add(one[0])
    for wrong in (one[0], build.put(b""), build.simple(Type.MQCMIT), build.request(), build.put1("Q", b"")):
        with pytest.raises(ProtocolError, match="MQPUT of the same conversation"):
            calls.add(wrong)
    calls.forget(1)
    with pytest.raises(ProtocolError, match="without a beginning"):
        calls.add(one[1])


def test_a_call_has_a_limit() -> None:
    parts = cut(build.put(bytes(50_000)), 1000)
    calls = Calls(20_000)
    added = map(calls.add, parts)
    with pytest.raises(ProtocolError, match="longer than the 20000 bytes"):
        list(added)
    assert calls.held <= 20_000 + 4096 + 1000


@pytest.mark.parametrize(("at", "value"), [(16, 1), (16, 2000), (20, 0), (20, 2), (4, 9), (8, 9)])
def test_a_later_segment_of_a_streamed_message_must_fit(at: int, value: int) -> None:
    call = build.message(bytes(3000))
    first, second, *_ = cut(call, 1000, data_at=message(call).data_at)
    calls = Calls(3000)
    calls.add(first)
    body = bytearray(second.body)
    body[at : at + 2] = value.to_bytes(2, "little")
    second.body = bytes(body)
    with pytest.raises(ProtocolError):
        calls.add(second)


def test_too_little_room_for_the_structures() -> None:
    call = build.message(b"x")
    with pytest.raises(ValueError, match="too few"):
        cut(call, 100, data_at=message(call).data_at)


def test_padding() -> None:
    segment = Segment(Type.MQPUT, b"12345", eyecatcher=MULTIPLEXED)
    assert len(segment.encode()) == 44
    assert len(segment.encode(pad=False)) == 41
    assert len(Segment(Type.MQPUT, b"12345", eyecatcher=SINGLE).encode(pad=False)) == 33
