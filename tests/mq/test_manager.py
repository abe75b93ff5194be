"""The stand-in is what IBM's Java client takes for a queue manager: live where there is Java, else from transcripts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from grille.protocols.mq import calls as product_calls
from grille.protocols.mq import segments as product
from grille.protocols.mq.channel import Channel
from tests.mq import wire
from tests.mq.manager import MESSAGE_LIMIT, Manager
from tests.mq.suite import RUNS, Standing, Stores, compile_cases, direct, fetched, queues
from tests.mq.transcript import HERE, Transcript, read, segments

DEADLINE = 60.0
PATHS = sorted(path for path in HERE.glob("*.gz") if not path.name.startswith("grille-"))
Streams: TypeAlias = dict[int, bytes]
"""Bytes by socket."""


def title(path: Path) -> str:
    return path.name.removesuffix(".json.gz")


# live


async def test_ibms_java_client(tmp_path: Path) -> None:
    directory = fetched()
    if directory is None or shutil.which("javac") is None:
        pytest.skip("IBM's Java client is not here: make conformance SUITE=ibm-mq-java fetches it, with Java and Maven")
    run = msgspec.structs.replace(RUNS[1], longest=2_000_000)
    outcomes = await direct(run, compile_cases(directory, tmp_path), tmp_path)
    assert {case: outcome for case, outcome in outcomes.items() if outcome != "ok"} == {}
    assert len(outcomes) >= 90


# replayed


def recorded(transcript: Transcript, *, client: bool) -> Streams:
    """What one side said on each socket."""
    found: dict[int, bytearray] = {}
    for turn in transcript.turns:
        if turn.client is client:
            found.setdefault(turn.socket, bytearray()).extend(bytes.fromhex(turn.said))
    return {socket: bytes(said) for socket, said in found.items()}


async def replayed(transcript: Transcript, port: int, piece: int = 1 << 20) -> Streams:
    """What the stand-in says when the client says its part again, in pieces of so many bytes."""
    told: dict[int, bytearray] = {}
    sockets: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    async with asyncio.timeout(DEADLINE):
        for turn in transcript.turns:
            if turn.socket not in sockets:
                sockets[turn.socket] = await asyncio.open_connection("127.0.0.1", port)
                told[turn.socket] = bytearray()
            reader, writer = sockets[turn.socket]
            said = bytes.fromhex(turn.said)
            if not turn.client:
                with contextlib.suppress(asyncio.IncompleteReadError):
                    told[turn.socket] += await reader.readexactly(len(said))
                continue
            for at in range(0, len(said), piece):
                writer.write(said[at : at + piece])
                await writer.drain()
        for _, writer in sockets.values():
            writer.close()
    return {socket: bytes(said) for socket, said in told.items()}


async def shown(streams: Streams) -> dict[int, list[wire.Segment]]:
    return {socket: await segments(said) for socket, said in streams.items() if said}


@pytest.mark.parametrize("path", PATHS, ids=title)
async def test_what_the_client_was_told_is_told_again(tmp_path: Path, path: Path) -> None:
    transcript = read(path)
    async with transcript.standing(tmp_path) as stand:
        told = await replayed(transcript, stand.port)
    assert stand.manager.complaints == []
    assert await shown(told) == await shown(recorded(transcript, client=False))


async def test_byte_by_byte(tmp_path: Path) -> None:
    transcript = read(HERE / "units.json.gz")
    async with transcript.standing(tmp_path) as stand:
        told = await replayed(transcript, stand.port, piece=1)
    assert await shown(told) == await shown(recorded(transcript, client=False))


async def test_what_is_in_the_transcripts() -> None:
    kinds = set()
    for path in PATHS:
        transcript = read(path)
        for client in (True, False):
            for socket in (await shown(recorded(transcript, client=client))).values():
                kinds |= {segment.kind for segment in socket}
    calls = {kind for kind, name in wire.CALLS.items() if name not in ("sub", "subrq")}
    assert calls <= kinds
    assert {kind + 0x10 for kind in calls} <= kinds
    assert {1, 5, 8, 9, 0x0C, 0x0D, 0x0E, 0x0F} <= kinds
    assert sum(path.stat().st_size for path in PATHS) < 1_000_000


# the product's byte code


@pytest.mark.parametrize("path", PATHS, ids=title)
async def test_the_product_reads_the_same(path: Path) -> None:
    """Two implementations that share nothing agree on every segment and on what the calls say."""
    transcript = read(path)
    for client in (True, False):
        for said in recorded(transcript, client=client).values():
            ours, theirs = await segments(said), product.Segments()
            theirs.feed(said)
            found = list(theirs)
            assert theirs.pending == 0
            assert len(found) == len(ours)
            for one, other in zip(ours, found, strict=True):
                assert (one.kind, one.flags, one.conversation, one.request) == (
                    other.type, other.flags, other.conversation, other.request,
                )  # fmt: skip
                assert other.body.startswith(one.body)
                assert (one.order == "<", one.eyecatcher) == (other.little, other.eyecatcher)


@pytest.mark.parametrize(
    "path", PATHS,
    ids=title,
)  # fmt: skip
async def test_the_product_follows_the_conversation(path: Path) -> None:
    transcript = read(path)
    channels: dict[int, Channel] = {}
    framers = {
        (turn.socket, turn.client): (product.Segments(), product.Calls(MESSAGE_LIMIT)) for turn in transcript.turns
    }
    puts = 0
    for turn in transcript.turns:
        channel = channels.setdefault(turn.socket, Channel())
        framer, assembler = framers[turn.socket, turn.client]
        framer.feed(bytes.fromhex(turn.said))
        for segment in framer:
            call = assembler.add(segment)
            if call is None:
                continue
            (channel.from_client if turn.client else channel.from_manager)(call)
            if turn.client and call.type in (product.Type.MQPUT, product.Type.MQPUT1):
                told = product_calls.put(call)
                at = wire.API + (told.what.size if told.what is not None else 0)
                ours = wire.Segment(call.type, call.body, order="<" if call.little else ">")
                descriptor = wire.Descriptor.read(ours, at)
                assert (told.message.message_id, told.message.correlation_id) == (
                    descriptor.msg_id,
                    descriptor.correl_id,
                )
                assert told.length == ours.u32(told.data_at - 4)
                puts += 1
    assert puts > 0


# what is not this protocol


async def ends(port: int, sent: bytes) -> bytes:
    """What the stand-in says until it closes the socket, when this is all that is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    writer.write_eof()
    async with asyncio.timeout(DEADLINE):
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
    writer.close()
    return answer


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    made = Manager(queues())
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    yield made
    await made.close()
    assert failures == []


def opening() -> bytes:
    """What a client says on a socket from the negotiation to its end."""
    return recorded(read(HERE / "units.json.gz"), client=True)[0]


async def test_truncated(manager: Manager) -> None:
    port = await manager.listen()
    said = opening()
    for at in range(1, 700):
        await ends(port, said[:at])
    inside = [at for at in range(1, 700) if at not in lengths(said)]
    assert manager.complaints == ["the stream ends within a segment"] * len(inside)


def lengths(said: bytes) -> list[int]:
    """Places where a segment ends."""
    found, at = [], 0
    while at < len(said):
        at += int.from_bytes(said[at + 4 : at + 8], "big")
        found.append(at)
    return found


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda said: b"HTTP" + said[4:], "no eyecatcher of a segment"),
        (lambda said: said[:4] + (27).to_bytes(4, "big") + said[8:], "a segment of that length is not possible"),
        (lambda said: said[:4] + (40_000).to_bytes(4, "big") + said[8:], "a segment of that length is not possible"),
        (lambda said: said[:8] + b"\3" + said[9:], "a byte order that does not exist"),
        (lambda said: said[:9] + b"\x86" + said[10:], "a client that has not negotiated"),
        (lambda said: said[:28] + b"XX  " + said[32:], "initial data of a level that is not understood"),
        (lambda said: said[:268] + said[:268], "a client that does not adopt what was answered"),
    ],
)
async def test_not_this_protocol(manager: Manager, change: Callable[[bytes], bytes], complaint: str) -> None:
    said = change(opening())
    if complaint.startswith("a client that does not"):
        # The second time as on a socket that is shared.
        second = wire.Segment(1, said[28:268], 0x31, 1, order=">", encoding=0x111)
        said = said[:268] + second.encode()
    await ends(await manager.listen(), said)
    assert manager.complaints == [complaint]


async def test_an_unknown_channel_is_told_with_a_status(manager: Manager) -> None:
    answer = await ends(await manager.listen(), opening()[:52] + b"NO.SUCH".ljust(20) + opening()[72:])
    (status,) = await segments(answer)
    assert (status.kind, status.u32(4)) == (wire.STATUS, 1)


async def test_damaged_bytes_end_one_socket_and_nothing_else(manager: Manager) -> None:
    port = await manager.listen()
    draw = random.Random(4711)
    streams = [said for path in PATHS for said in recorded(read(path), client=True).values() if len(said) < 40_000]
    for _ in range(400):
        damaged = bytearray(draw.choice(streams))
        for _ in range(draw.choice((1, 2, 8))):
            damaged[draw.randrange(min(len(damaged), draw.choice((600, 3000, 40_000))))] = draw.choice(
                (0, 1, 255, 129, 16)
            )
        await ends(port, bytes(damaged))
    transcript = read(HERE / "units.json.gz")
    assert await segments((await replayed(transcript, port))[0])


def test_a_call_in_several_segments() -> None:
    data = bytes(range(256)) * 1000
    call = wire.Segment(0x86, b"head", conversation=1)
    parts = list(wire.cut(call, data))
    assert [part.flags for part in parts] == [wire.FIRST, *[0] * (len(parts) - 2), wire.LAST]
    assert all(len(part.encode()) == wire.TRANSMISSION for part in parts[:-1])
    assembler = wire.Assembler(len(data))
    whole = [assembler.add(part) for part in parts]
    assert whole[:-1] == [None] * (len(parts) - 1)
    assert whole[-1] is not None and whole[-1].body == b"head" + data
    small = wire.Assembler(1000)
    with pytest.raises(wire.WireError, match="longer than was agreed"):
        all(small.add(part) is None for part in parts)
    with pytest.raises(wire.WireError, match="first segment of a call is missing"):
        wire.Assembler(1000).add(parts[1])
    twice = wire.Assembler(1_000_000)
    twice.add(parts[0])
    with pytest.raises(wire.WireError, match="a call within a call"):
        twice.add(parts[0])


# a whole process, TLS, silence


async def test_a_silent_client_is_asked_whether_it_is_there() -> None:
    manager = Manager(queues(), heartbeat=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", await manager.listen())
    said = opening()
    first, second, *_ = lengths(said)
    writer.write(said[:first])
    async with asyncio.timeout(DEADLINE):
        answer = await wire.read_segment(reader)
        assert answer is not None and answer.u32(96) == 1
        adopted = bytearray(said[first:second])
        adopted[36 + 96 : 36 + 100] = (1).to_bytes(4, "little")
        writer.write(adopted)
        await wire.read_segment(reader)
        beat = await wire.read_segment(reader)
        assert beat is not None
        assert (beat.kind, beat.eyecatcher, beat.flags) == (wire.HEARTBEAT, wire.SOCKET, wire.WHOLE | wire.CONFIRM)
        asked = wire.Segment(wire.HEARTBEAT, flags=wire.WHOLE | wire.CONFIRM, eyecatcher=wire.SOCKET)
        writer.write(asked.encode())
        answer = await wire.read_segment(reader)
        assert answer is not None and answer.kind == wire.HEARTBEAT
    writer.close()
    await manager.close()


async def first_byte(port: int, context: ssl.SSLContext) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(opening())
        await reader.readexactly(1)
    finally:
        writer.close()


async def test_a_client_without_a_certificate_is_not_served(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    async with Standing(RUNS[1], tmp_path, stores) as stand:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        context.check_hostname = False
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await first_byte(stand.port, context)
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.port, ssl=context)
        writer.write(opening()[:268])
        async with asyncio.timeout(DEADLINE):
            answer = await wire.read_segment(reader)
        assert answer is not None and answer.kind == wire.INITIAL_DATA
        writer.close()


async def test_it_runs_alone(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.mq.manager", "--port", "0", "--queue", "A.QUEUE", "--queue", "B.QUEUE",
        "--journal", str(tmp_path / "journal"), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE):
            line = await process.stdout.readline()
        told = await replayed(read(HERE / "units.json.gz"), int(line.split()[-1]))
        recorded_kinds = [
            segment.kind for segment in await segments(recorded(read(HERE / "units.json.gz"), client=False)[0])
        ]
        assert [segment.kind for segment in await segments(told[0])] == recorded_kinds
    finally:
        process.kill()
        await process.wait()


async def test_what_the_manager_saw_of_its_clients(tmp_path: Path) -> None:
    transcript = read(HERE / "jms.json.gz")
    async with transcript.standing(tmp_path) as stand:
        await replayed(transcript, stand.port)
    assert {connected.channel for connected in stand.manager.connected} == {"APP.SVRCONN"}
    assert {connected.application for connected in stand.manager.connected} == {"jms cases"}
    assert not any(connected.credentials for connected in stand.manager.connected)


# what no transcript shows


async def begun(port: int, title: str, last: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, wire.Segment]:
    """A client that has said what the first one of a transcript did, to its first call of this type, and that call."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = recorded(read(HERE / f"{title}.json.gz"), client=True)[0]
    for end, start in zip(lengths(said), [0, *lengths(said)], strict=False):
        writer.write(said[start:end])
        (segment,) = await segments(said[start:end])
        if segment.kind == last:
            return reader, writer, segment
    raise AssertionError("no such call")


async def answers(reader: asyncio.StreamReader, kind: int) -> list[wire.Segment]:
    """What comes, to the first segment of this type."""
    found: list[wire.Segment] = []
    async with asyncio.timeout(DEADLINE):
        while not found or found[-1].kind != kind:
            segment = await wire.read_segment(reader)
            assert segment is not None
            found.append(segment)
    return found


def call(kind: int, handle: int = 0, rest: bytes = b"", eyecatcher: bytes = wire.SHARED) -> bytes:
    body = struct.pack(">I", 0) + struct.pack("<IIi", 0, 0, handle) + rest
    return wire.Segment(kind, body, conversation=int(eyecatcher == wire.SHARED), eyecatcher=eyecatcher).encode()


def depth(manager: Manager) -> int:
    return len(manager.queues.named["A.QUEUE"].messages)


async def test_a_disconnection_commits(manager: Manager) -> None:
    reader, writer, _ = await begun(await manager.listen(), "units", 0x86)
    await answers(reader, 0x96)
    assert depth(manager) == 0
    writer.write(call(0x82))
    await answers(reader, 0x92)
    assert depth(manager) == 1
    writer.close()


async def test_a_lost_socket_undoes(manager: Manager) -> None:
    reader, writer, put = await begun(await manager.listen(), "units", 0x86)
    writer.write(call(0x8A))
    await answers(reader, 0x9A)
    assert depth(manager) == 1
    syncpoint = struct.pack("<IiIIiIiIII", 1, put.i32(12), 0, 1, -1, 2, 0, 0, 1, 0)
    writer.write(wire.Segment(wire.REQUEST_MSGS, syncpoint, wire.WHOLE, 1, 1).encode())
    await answers(reader, wire.ASYNC_MESSAGE)
    assert depth(manager) == 0
    writer.write(put.encode())
    await answers(reader, 0x96)
    writer.close()
    await manager.close()
    (message,) = manager.queues.named["A.QUEUE"].messages
    assert message.descriptor.backout_count == 1


async def test_a_stopped_consumer_is_told_nothing(manager: Manager) -> None:
    reader, writer, put = await begun(await manager.listen(), "units", 0x86)
    await answers(reader, 0x96)
    handle = put.i32(12)
    listens = struct.pack("<IiIIiIiIII", 1, handle, 0, 1, -1, 0, 0, 0, 1, 0)
    writer.write(wire.Segment(wire.REQUEST_MSGS, listens, wire.WHOLE, 1, 1).encode())
    stops, starts = (struct.pack("<IiII", 1, -1, 3, value) for value in (0, 2))
    writer.write(wire.Segment(wire.NOTIFICATION, stops, wire.WHOLE | wire.CONFIRM, 1, 3).encode())
    writer.write(call(0x8A))
    assert [segment.kind for segment in await answers(reader, 0x9A)] == [wire.NOTIFICATION, 0x9A]
    writer.write(wire.Segment(wire.NOTIFICATION, starts, wire.WHOLE, 1, 1).encode())
    await answers(reader, wire.ASYNC_MESSAGE)
    writer.close()


async def test_a_call_behind_a_waiting_get_is_answered_after_it(manager: Manager) -> None:
    manager.sharing = 0
    reader, writer, get = await begun(await manager.listen(), "one-conversation", 0x85)
    body = bytearray(get.body)
    size = wire.Descriptor.size(get, wire.API)
    at = wire.API + size + 8
    struct.pack_into("<II", body, at, get.u32(at) | 1, 50)  # MQGMO_WAIT, 50 ms
    writer.write(msgspec.structs.replace(get, body=bytes(body)).encode())
    writer.write(call(0x8A, eyecatcher=wire.SINGLE))
    told = await answers(reader, 0x9A)
    assert [segment.kind for segment in told[-3:]] == [0x95, 0x95, 0x9A]
    assert told[-2].u32(8) == 2033
    writer.close()
