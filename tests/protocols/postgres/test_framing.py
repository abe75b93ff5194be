import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.protocols.postgres.framing import (
    DISCARD_LIMIT,
    OVERSIZED,
    STARTUP_LIMIT,
    Frames,
    ProtocolViolation,
    StartupFrames,
    backend_limits,
    frontend_limits,
)

LIMITS = frontend_limits(max_message_bytes=4096, max_statement_bytes=1024)
SYNC = b"S\0\0\0\4"


def message(kind: str, payload: bytes, length: int | None = None) -> bytes:
    return kind.encode() + struct.pack("!i", len(payload) + 4 if length is None else length) + payload


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def frames_of(chunks: list[bytes]) -> list[tuple[int, bytes]]:
    frames = Frames(LIMITS)
    seen: list[tuple[int, bytes]] = []
    for chunk in chunks:
        frames.feed(chunk)
        seen.extend(frames)
    assert not frames.pending
    return seen


SESSION = [
    ("P", b"a\0select 1\0\0\0"),
    ("B", b"\0a\0" + bytes(6)),
    ("E", b"\0\0\0\0\0"),
    ("S", b""),
    ("Q", b"select 2\0"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_messages_are_the_same_however_the_bytes_arrive(size: int) -> None:
    stream = b"".join(message(kind, payload) for kind, payload in SESSION)
    assert frames_of(cut(stream, size)) == [(ord(kind), payload) for kind, payload in SESSION]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 1000])
def test_a_run_of_one_kind_is_the_same_however_the_bytes_arrive(size: int) -> None:
    data = [message("d", payload) for payload in (b"", b"a", b"bc" * 20, b"", b"d")]
    stream = message("Q", b"copy\0") + b"".join(data) + message("c", b"") + message("d", b"late")
    frames = Frames(LIMITS)
    seen: list[tuple[int, bytes]] = []
    bulk, count = b"", 0
    for chunk in cut(stream, size):
        frames.feed(chunk)
        for kind, payload in frames:
            seen.append((kind, payload))
            if kind == ord("d"):
                run, more = frames.run_of(kind)
                bulk += message("d", payload) + run
                count += more + 1
    assert not frames.pending
    assert bulk == b"".join(data) + message("d", b"late")
    assert count == 6
    assert [chr(kind) for kind, _ in seen if kind != ord("d")] == ["Q", "c"]


@pytest.mark.parametrize("length", [-1, 0, 3, 4097 + 4])
def test_a_run_ends_before_an_impossible_length(length: int) -> None:
    frames = Frames(LIMITS)
    frames.feed(message("d", b"a") + message("d", b"", length) + b"x" * 5000)
    assert frames.run_of(ord("d")) == (message("d", b"a"), 1)
    with pytest.raises(ProtocolViolation):
        next(frames)


def test_half_a_message_is_pending() -> None:
    frames = Frames(LIMITS)
    assert not frames.pending
    frames.feed(SYNC + b"Q\0\0\0\x20sel")
    assert next(frames) == (ord("S"), b"")
    with pytest.raises(StopIteration):
        next(frames)
    assert frames.pending


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 3])
def test_a_length_below_four_is_a_violation(length: int) -> None:
    frames = Frames(LIMITS)
    frames.feed(message("Q", b"", length))
    with pytest.raises(ProtocolViolation, match="length") as caught:
        next(frames)
    assert (caught.value.sqlstate, caught.value.fatal, caught.value.control) == ("08P01", True, "WP-01")


@pytest.mark.parametrize("kind", ["D", "E", "C", "S", "H", "X", "F", "d", "c", "f", "p"])
def test_a_length_over_the_limit_of_its_kind_is_judged_from_the_header_alone(kind: str) -> None:
    frames = Frames(LIMITS)
    frames.feed(message(kind, b"", 2**31 - 1))
    with pytest.raises(ProtocolViolation, match="too long") as caught:
        next(frames)
    assert caught.value.control == "WP-03"


@pytest.mark.parametrize("kind", list(LIMITS))
def test_each_kind_may_be_as_long_as_its_limit_and_no_longer(kind: int) -> None:
    frames = Frames(LIMITS)
    frames.feed(message(chr(kind), bytes(LIMITS[kind])))
    assert next(frames) == (kind, bytes(LIMITS[kind]))
    frames.feed(message(chr(kind), bytes(LIMITS[kind] + 1)))
    if chr(kind) in "QPB":
        assert next(frames) == (OVERSIZED, bytes((kind,)))
    else:
        with pytest.raises(ProtocolViolation):
            next(frames)


@pytest.mark.parametrize("kind", ["Q", "P", "B"])
@pytest.mark.parametrize("size", [1, 1000, 65536, 10**7])
def test_an_oversized_statement_is_discarded_and_the_stream_goes_on(kind: str, size: int) -> None:
    stream = SYNC + message(kind, bytes(300_000)) + SYNC
    chunks = cut(stream, size) if size > 1 else [*cut(stream[:40], 1), stream[40:-8], *cut(stream[-8:], 1)]
    assert frames_of(chunks) == [(ord("S"), b""), (OVERSIZED, kind.encode()), (ord("S"), b"")]


def test_discarded_bytes_are_not_kept() -> None:
    frames = Frames(LIMITS)
    frames.feed(message("Q", b"", 2**29))
    for _ in range(64):
        assert list(frames) == []
        frames.feed(bytes(1 << 20))
    assert len(frames._buffer) <= 1 << 20
    assert frames.pending


def test_a_message_beyond_what_can_be_waited_for_is_a_violation() -> None:
    frames = Frames(LIMITS)
    frames.feed(message("Q", b"", DISCARD_LIMIT + 1))
    with pytest.raises(ProtocolViolation, match="too long"):
        next(frames)


@pytest.mark.parametrize("kind", sorted(set(range(256)) - set(LIMITS)))
def test_an_unknown_kind_is_a_violation_at_its_first_byte(kind: int) -> None:
    frames = Frames(LIMITS)
    frames.feed(bytes((kind,)))
    with pytest.raises(ProtocolViolation, match="invalid frontend message type"):
        next(frames)
    whole = Frames(LIMITS)
    whole.feed(bytes((kind,)) + b"\0\0\0\4")
    with pytest.raises(ProtocolViolation, match="invalid frontend message type"):
        next(whole)


def test_messages_before_a_violation_are_still_yielded() -> None:
    frames = Frames(LIMITS)
    frames.feed(SYNC + b"!")
    assert next(frames) == (ord("S"), b"")
    with pytest.raises(ProtocolViolation):
        next(frames)


def test_upstream_may_not_send_oversized_messages_either() -> None:
    frames = Frames(backend_limits(1 << 20), peer="backend")
    frames.feed(message("T", b"", 2**30 - 1))
    with pytest.raises(ProtocolViolation, match="too long"):
        next(frames)
    frames = Frames(backend_limits(1 << 20), peer="backend")
    frames.feed(b"q")
    with pytest.raises(ProtocolViolation, match="invalid backend message type"):
        next(frames)


@given(st.binary(max_size=200), st.integers(1, 20))
def test_garbage_gives_messages_or_a_violation_whole_or_in_pieces(data: bytes, size: int) -> None:
    def run(chunks: list[bytes]) -> list[object]:
        frames = Frames(LIMITS)
        seen: list[object] = []
        try:
            for chunk in chunks:
                frames.feed(chunk)
                seen.extend(frames)
        except ProtocolViolation as violation:
            seen.append(violation.message)
        return seen

    assert run(cut(data, size)) == run([data])


@given(st.lists(st.tuples(st.sampled_from("PBEDCSHQ"), st.integers(0, 5000)), max_size=8), st.integers(1, 3000))
def test_any_mix_of_lengths_is_cut_right(mix: list[tuple[str, int]], size: int) -> None:
    stream = b""
    expected = []
    for kind, length in mix:
        limit = LIMITS[ord(kind)]
        if kind not in "QPB":
            length = min(length, limit)
        stream += message(kind, bytes(length))
        expected.append((ord(kind), bytes(length)) if length <= limit else (OVERSIZED, kind.encode()))
    assert frames_of(cut(stream, size)) == expected


# StartupFrames


@pytest.mark.parametrize("size", [1, 3, 100])
def test_startup_messages_are_cut_however_they_arrive(size: int) -> None:
    stream = b"\0\0\0\x08\x04\xd2\x16\x2f" + b"\0\0\0\x09\0\3\0\0\0"
    frames = StartupFrames()
    seen = []
    for chunk in cut(stream, size):
        frames.feed(chunk)
        seen.extend(frames)
    assert seen == [b"\x04\xd2\x16\x2f", b"\0\3\0\0\0"]


@pytest.mark.parametrize("length", [-1, 0, 4, 7, STARTUP_LIMIT + 1, 2**31 - 1])
def test_an_impossible_startup_length_is_a_violation(length: int) -> None:
    frames = StartupFrames()
    frames.feed(struct.pack("!i", length))
    with pytest.raises(ProtocolViolation, match="length of startup"):
        next(frames)


def test_bytes_behind_a_startup_message_are_seen_and_can_be_taken() -> None:
    frames = StartupFrames()
    frames.feed(b"\0\0\0\x08\x04\xd2\x16\x2fGET /")
    assert next(frames) == b"\x04\xd2\x16\x2f"
    assert frames.pending == 5
    assert frames.take_rest() == b"GET /"
    assert frames.pending == 0
