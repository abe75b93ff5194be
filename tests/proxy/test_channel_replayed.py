"""What IBM's Java client said to Grille in recorded runs, said again: each call ends as it did."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.mq import wire
from tests.mq.lab import DEADLINE, Lab
from tests.mq.suite import LONGEST
from tests.mq.test_manager import recorded, title
from tests.mq.transcript import HERE, THROUGH, Transcript, policy, read, segments
from tests.mq.window import EVERYTHING
from tests.mq.wire import Assembler, Segment

PATHS = [HERE / f"{name}.json.gz" for name in THROUGH]
Call = tuple[int, int, int, int, int, int, bytes]


def essence(call: Segment) -> Call:
    """Kind, conversation, lane, completion code and reason of a reply, or handle and code of a notification, data."""
    reply = 0x90 <= call.kind < 0xA0
    first = call.u32(4) if reply or call.kind == 0x0F else 0
    second = call.u32(8) if reply or call.kind == 0x0F else 0
    data = b""
    if call.kind == 0x0D and not call.flags & 0x10:  # a later segment
        data = call.body[24:]
    elif call.kind == 0x0D:  # behind a header whose name has a length, and a descriptor
        at = 52 + (3 + call.raw(54, 1)[0] + 3) // 4 * 4
        version = int.from_bytes(call.raw(at + 4, 4), "little" if call.order == "<" else "big")
        data = call.body[at + {1: 324, 2: 364}[version] :]
    return call.kind, call.conversation, call.request, first, second, call.i32(12) if reply else 0, data


class Heard:
    """What one socket is told, call by call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._assembler = Assembler(LONGEST)
        self._stream = bytearray()

    async def feed(self, data: bytes) -> None:
        self._stream += data
        while len(self._stream) >= 8:
            length = int.from_bytes(self._stream[4:8], "big")
            if len(self._stream) < length:
                return
            whole, self._stream = bytes(self._stream[:length]), self._stream[length:]
            (segment,) = await segments(whole)
            call = self._assembler.add(segment)
            if call is not None and call.kind not in (1, wire.HEARTBEAT):
                self.calls.append(essence(call))


async def replayed(transcript: Transcript, lab: Lab) -> dict[int, list[Call]]:
    """What Grille tells when the client says its part again, each part once the part before has been answered."""
    wanted: dict[int, Heard] = {}
    heard: dict[int, Heard] = {}
    writers: dict[int, asyncio.StreamWriter] = {}
    tasks = []
    changed = asyncio.Event()

    async def listen(socket: int, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await heard[socket].feed(data)
                changed.set()

    context = lab.context()
    async with asyncio.timeout(3 * DEADLINE):
        for turn in transcript.turns:
            socket, said = turn.socket, bytes.fromhex(turn.said)
            if socket not in writers:
                reader, writers[socket] = await asyncio.open_connection(
                    "127.0.0.1", lab.worker.mq_port, ssl=context, server_hostname="localhost"
                )
                heard[socket], wanted[socket] = Heard(), Heard()
                tasks.append(asyncio.create_task(listen(socket, reader)))
            if turn.client:
                writers[socket].write(said)
                await writers[socket].drain()
                continue
            await wanted[socket].feed(said)
            while len(heard[socket].calls) < len(wanted[socket].calls):
                changed.clear()
                await changed.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for writer in writers.values():
        writer.close()
    return {socket: each.calls for socket, each in heard.items()}


@pytest.mark.parametrize("path", PATHS, ids=title)
async def test_each_call_ends_as_it_did(tmp_path: Path, path: Path) -> None:
    transcript = read(path)
    (tmp_path / "stand").mkdir()
    async with transcript.standing(tmp_path / "stand") as stand:
        lab = Lab(
            tmp_path, grants={"client": EVERYTHING}, manager=stand.manager, upstream=stand.port,
            mq={"conversations": stand.manager.sharing, "max_message_bytes": LONGEST},
        )  # fmt: skip
        async with lab:
            policy(tmp_path)
            lab.worker.reload()
            told = await replayed(transcript, lab)
    wanted: dict[int, list[Call]] = {}
    for socket, said in recorded(transcript, client=False).items():
        heard = Heard()
        await heard.feed(said)
        wanted[socket] = heard.calls
    for socket, calls in wanted.items():
        assert sorted(told[socket]) == sorted(calls)
    assert stand.manager.complaints == []
