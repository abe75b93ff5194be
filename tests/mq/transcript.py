"""``python -m tests.mq.transcript FILE CASE..``: keep what IBM's client and the stand-in say to each other."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.conformance.tools import cached
from tests.mq.manager import Manager
from tests.mq.suite import DENIED, QUEUES, SUITE, build, run

HERE: Final = Path(__file__).parent / "transcripts"
Turn = tuple[int, str, bytes]
"""The number of a socket, ``client`` or ``manager``, and what that side said until somebody else spoke."""


def read(path: Path) -> list[Turn]:
    """A transcript that was kept."""
    turns = json.loads(gzip.decompress(path.read_bytes()))
    return [(socket, who, bytes.fromhex(said)) for socket, who, said in turns]


async def _record(cases: list[str]) -> tuple[dict[str, str], bytes]:
    """Outcomes by case, and the transcript."""
    manager = Manager(QUEUES, denied=DENIED)
    port = await manager.listen()
    said: list[Turn] = []

    numbers = itertools.count()

    async def pump(number: int, who: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            said.append((number, who, data))
            writer.write(data)
            await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(numbers)
        upstream, downstream = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(number, "client", reader, downstream), pump(number, "manager", upstream, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            directory = cached(SUITE, build)
            outcomes = await run(directory, server.sockets[0].getsockname()[1], Path(scratch), *cases)
    finally:
        server.close()
        await manager.close()
    turns = [
        (*who, b"".join(data for *_, data in group).hex())
        for who, group in itertools.groupby(said, lambda turn: turn[:2])
    ]
    return outcomes, gzip.compress(json.dumps(turns).encode(), mtime=0)


if __name__ == "__main__":
    ended, transcript = asyncio.run(_record(sys.argv[2:]))
    Path(sys.argv[1]).write_bytes(transcript)
    print(ended)
