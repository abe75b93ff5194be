"""The stand-in is what IBM's Java client takes for a queue manager: live where there is Java, else from transcripts."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from grille.protocols.mq.segments import Segment, Segments, Type
from tests.mq.manager import Manager
from tests.mq.suite import DENIED, QUEUES, built, run
from tests.mq.transcript import HERE, read

DEADLINE = 60.0
_PROMISED = 228
"""Bytes of INITIAL_DATA that are the same every time; then comes what is drawn anew."""


async def test_ibms_java_client(tmp_path: Path) -> None:
    directory = built()
    if directory is None or shutil.which("java") is None:
        pytest.skip("IBM's Java client is not here: make conformance SUITE=ibm-mq-java fetches it, with Java and Maven")
    manager = Manager(QUEUES, denied=DENIED)
    try:
        outcomes = await run(directory, await manager.listen(), tmp_path)
    finally:
        await manager.close()
    assert {case: outcome for case, outcome in outcomes.items() if outcome != "ok"} == {}
    assert len(outcomes) == 32


@pytest.mark.parametrize("path", sorted(HERE.glob("*.gz")), ids=lambda path: path.name.removesuffix(".json.gz"))
async def test_what_the_client_was_told_is_told_again(path: Path) -> None:
    turns = read(path)
    manager = Manager(QUEUES, denied=DENIED)
    port = await manager.listen()
    sockets: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    try:
        for number, who, said in turns:
            if number not in sockets:
                sockets[number] = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = sockets[number]
            if who == "client":
                writer.write(said)
                continue
            async with asyncio.timeout(DEADLINE):
                answer = await reader.readexactly(len(said))
            assert [_told(segment) for segment in _segments(answer)] == [_told(segment) for segment in _segments(said)]
    finally:
        for _, writer in sockets.values():
            writer.close()
        await manager.close()


def test_there_are_transcripts() -> None:
    kinds = {segment.type for path in HERE.glob("*.gz") for *_, said in read(path) for segment in _segments(said)}
    assert {Type.INITIAL_DATA, Type.MQCONN, Type.SPI, Type.MQPUT, Type.MQPUT1, Type.REQUEST_MSGS} <= kinds
    assert {Type.ASYNC_MESSAGE, Type.NOTIFICATION, Type.MQBACK, Type.MQCMIT, Type.MQINQ, Type.MQDISC} <= kinds


def _segments(data: bytes) -> list[Segment]:
    segments = Segments()
    segments.feed(data)
    found = list(segments)
    assert segments.pending == 0
    return found


def _told(segment: Segment) -> tuple[object, ...]:
    body = segment.body[:_PROMISED] if segment.type is Type.INITIAL_DATA else segment.body
    return segment.type, segment.flags, segment.conversation, segment.request, segment.little, body
