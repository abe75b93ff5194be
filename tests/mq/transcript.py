"""``python -m tests.mq.transcript``: keep anew what IBM's client and the stand-in say to each other.

Each transcript is the run and, in the order in which a relay between the two saw it, what either side said on which
socket.  The stand-in's clock stands still in them, so that they are the same every time but for the random bytes of the
negotiation.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import shutil
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from tests.conformance.tools import cached
from tests.mq.manager import NAME
from tests.mq.suite import DENIED, LONGEST, RUNS, SUITE, Run, Standing, Stores, compile_cases, execute, fetch
from tests.mq.window import EVERYTHING, Window, write_config, write_policy
from tests.mq.wire import Segment, read_segment

HERE: Final = Path(__file__).parent / "transcripts"
NONCE: Final = 228
"""Where the random bytes of INITIAL_DATA begin, in its body."""
_MESSAGES: Final = (
    "put-get descriptor empty empty-after-wait waiting-get put1 message-id correlation-id priority properties"
)
_JMS: Final = "jms-text jms-properties jms-kinds jms-nothing jms-transacted jms-client-acknowledge"
THROUGH: Final = {
    "grille-messages": ("plain", f"{_MESSAGES} browse read-ahead asynchronous-put size-200000 many-conversations"),
    "grille-units": ("plain", "rolled-back-put committed-put rolled-back-get atomic-move disconnect-commits"),
    "grille-objects": ("plain", "unknown-queue denied-queue usable-after-denial put1-denied alias inquire dynamic"),
    "grille-jms": ("plain", f"{_JMS} jms-browser jms-temporary-queue jms-denied jms-selectors jms-close"),
    "grille-listeners": ("plain", "jms-listener jms-transacted-listener jms-stop-start"),
    "grille-one-conversation": ("one-conversation", f"{_MESSAGES} browse size-200000 denied-queue {_JMS}"),
    "grille-big-endian": ("big-endian", f"{_MESSAGES} size-200000 dynamic {_JMS} jms-selectors"),
}
"""The same of what the client and Grille say to each other, with the stand-in behind."""
RECORDED: Final = {
    "messages": ("plain", f"{_MESSAGES} convert many-conversations disconnect"),
    "browsing": (
        "plain",
        "browse browse-under-cursor nothing-under-cursor browse-lock browse-by-id not-open-for-browse truncated "
        "truncated-then-whole",
    ),
    "units": ("plain", "rolled-back-put committed-put rolled-back-get atomic-move disconnect-commits"),
    "objects": (
        "plain",
        "unknown-manager denied-channel unknown-queue denied-queue usable-after-denial put1-denied alias "
        "alias-of-nothing exclusive inquire inquire-manager set dynamic permanent-dynamic full",
    ),
    "streams": ("plain", "size-0 size-4097 size-200000 asynchronous-put asynchronous-put-fails read-ahead"),
    "jms": ("plain", f"{_JMS} jms-browser jms-temporary-queue jms-read-ahead jms-denied jms-close"),
    "jms-selectors": ("plain", "jms-selectors jms-selector-of-header jms-browser-with-selector jms-wrong-selector"),
    "jms-listeners": ("plain", "jms-listener jms-transacted-listener jms-stop-start jms-poison jms-dead-letter"),
    "jms-32-conversations": ("tls", "jms-many-conversations"),
    "one-conversation": ("one-conversation", f"{_MESSAGES} browse truncated size-200000 denied-queue {_JMS}"),
    "synchronous-get": ("synchronous-get", f"{_MESSAGES} truncated size-200000 {_JMS}"),
    "big-endian": ("big-endian", f"{_MESSAGES} size-200000 dynamic set {_JMS} jms-selectors"),
}
"""Run and cases of each transcript; those of the run ``tls`` are kept in plain text."""


class Turn(msgspec.Struct, array_like=True, frozen=True):
    """What one side said until somebody else spoke."""

    socket: int
    client: bool
    said: str
    """In hexadecimal digits."""


class Transcript(msgspec.Struct, frozen=True):
    """One file."""

    run: str
    turns: list[Turn]

    def standing(self, scratch: Path) -> Standing:
        """The stand-in as it was for this transcript."""
        (run,) = (run for run in RUNS if run.name == self.run)
        return standing(run, scratch)


def standing(run: Run, scratch: Path) -> Standing:
    """The stand-in of a run, with a clock that stands still."""
    return Standing(run, scratch, now=lambda: 1_800_000_000.0)


def read(path: Path) -> Transcript:
    """A transcript that was kept."""
    return msgspec.json.decode(gzip.decompress(path.read_bytes()), type=Transcript)


async def segments(stream: bytes) -> list[Segment]:
    """A stream as segments.  Raises `tests.mq.wire.WireError`."""
    reader = asyncio.StreamReader()
    reader.feed_data(stream)
    reader.feed_eof()
    found = []
    while (segment := await read_segment(reader)) is not None:
        if segment.kind == 1:
            segment = msgspec.structs.replace(segment, body=segment.body[:NONCE])
        found.append(segment)
    return found


async def record(command: list[str], run: Run, scratch: Path, cases: list[str]) -> tuple[dict[str, str], Transcript]:
    """Outcomes by case, and the transcript."""
    said: list[tuple[int, bool, bytes]] = []
    numbers = itertools.count()

    async def pump(number: int, client: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            said.append((number, client, data))
            writer.write(data)
            await writer.drain()
        writer.close()

    async with standing(run, scratch) as stand:

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            number = next(numbers)
            upstream, downstream = await asyncio.open_connection("127.0.0.1", stand.port)
            await asyncio.gather(pump(number, True, reader, downstream), pump(number, False, upstream, writer))

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        programs = ["JmsCases" if cases[0].startswith("jms") else "Cases"]
        programs += ["JmsCases"] if cases[-1].startswith("jms") and programs == ["Cases"] else []
        outcomes = await execute(command, run, port, scratch, stand.restart, cases=cases, programs=programs)
        server.close()
    turns = [
        Turn(socket, client, b"".join(data for *_, data in group).hex())
        for (socket, client), group in itertools.groupby(said, lambda turn: turn[:2])
    ]
    return outcomes, Transcript(run.name, turns)


def policy(directory: Path) -> None:
    """The policy of `THROUGH`: all but the queues that nobody may open."""
    write_policy(directory / "policy.tar.gz", {"client": EVERYTHING}, denied=[f"{NAME}/{name}" for name in DENIED])


async def record_through(
    command: list[str], run: Run, scratch: Path, cases: list[str]
) -> tuple[dict[str, str], Transcript]:
    """Outcomes by case, and the transcript of what goes over TLS between the client and Grille."""
    said: list[tuple[int, bool, bytes]] = []
    numbers = itertools.count()
    stores = Stores(scratch)
    run = msgspec.structs.replace(run, tls="TLS_AES_256_GCM_SHA384")
    agent = ssl.create_default_context(cafile=str(scratch / "ca.pem"))
    agent.load_cert_chain(scratch / "client.pem", scratch / "client.key")

    async def pump(number: int, client: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                said.append((number, client, data))
                writer.write(data)
                await writer.drain()
        writer.close()

    async with standing(run, scratch) as stand:
        policy(scratch)
        config = write_config(scratch, stand.port, stores.authority, ["client"], workers=1,
                              mq={"conversations": run.sharing, "max_message_bytes": LONGEST})  # fmt: skip
        window = await asyncio.to_thread(Window, config)

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            number = next(numbers)
            upstream, downstream = await asyncio.open_connection("localhost", window.mq_port, ssl=agent)
            await asyncio.gather(pump(number, True, reader, downstream), pump(number, False, upstream, writer))

        server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=stores.context)
        port = server.sockets[0].getsockname()[1]
        programs = [name for name in ("Cases", "JmsCases") if any(case.startswith("jms") == (name == "JmsCases")
                                                                  for case in cases)]  # fmt: skip
        outcomes = await execute(
            command, run, port, scratch, stand.restart, stores=stores, cases=cases, programs=programs
        )
        server.close()
        await asyncio.to_thread(window.stop)
    turns = [
        Turn(socket, client, b"".join(data for *_, data in group).hex())
        for (socket, client), group in itertools.groupby(said, lambda turn: turn[:2])
    ]
    return outcomes, Transcript(run.name, turns)


def main() -> int:
    """Record all; the exit status."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        command = compile_cases(cached(SUITE, fetch), scratch)
        shutil.rmtree(HERE, ignore_errors=True)
        HERE.mkdir()
        for title, (wanted, cases) in (RECORDED | THROUGH).items():
            (scratch / title).mkdir()
            (run,) = (run for run in RUNS if run.name == wanted)
            made = record_through if title in THROUGH else record
            outcomes, transcript = asyncio.run(made(command, run, scratch / title, cases.split()))
            packed = gzip.compress(json.dumps(msgspec.to_builtins(transcript)).encode(), mtime=0)
            (HERE / f"{title}.json.gz").write_bytes(packed)
            missing = set(cases.split()) - {case for case, outcome in outcomes.items() if outcome == "ok"}
            wrong += len(missing)
            print(f"{title}: {len(packed)} bytes", *(f"{case}: {outcomes.get(case)}" for case in sorted(missing)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
