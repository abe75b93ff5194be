"""Grille is killed at every point of a conversation over IBM MQ: no message is lost, and none is without evidence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from grille.audit.event import Event
from grille.audit.evidence import show
from grille.protocols.mq import requests
from grille.protocols.mq.requests import INPUT_SHARED, OUTPUT, Described
from grille.protocols.mq.segments import ProtocolError
from grille.proxy.authority import Authority
from grille.proxy.mq_client import Client, MqError
from tests.e2e.served import until
from tests.mq.manager import CHANNEL, NAME, Manager
from tests.mq.window import EVERYTHING, TRUST_DOMAIN, Window, spiffe_id, write_config, write_policy

LONG = bool(os.environ.get("GRILLE_LONG"))
STEPS = 9
"""Points that are left out after each one that is tried, but in the long run."""


class Middle:
    """Passes bytes on, in both places where Grille has a socket, up to the piece at which it is killed."""

    def __init__(self) -> None:
        self.pieces = 0
        self.kill_at: float | None = None
        """The number of a piece, or half of one behind it: the first half of it passes."""
        self.kill = lambda: None
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, to: int) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to)
                await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.pieces += 1
                if self.kill_at is not None and self.pieces >= self.kill_at:
                    if self.pieces > self.kill_at:
                        writer.write(data[: len(data) // 2])
                    self.kill()
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    async def close(self) -> None:
        for server in self._servers:
            server.close()


class Scene:
    """One node, killed and started again, between a client and a queue manager that both live on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manager = Manager(("A.QUEUE",))
        self.middle = Middle()
        self.authority = Authority(TRUST_DOMAIN)
        self.window: Window | None = None
        self._pids: list[int] = []

    async def begin(self) -> None:
        behind = await self.middle.listen(await self.manager.listen())
        write_policy(self.directory / "policy.tar.gz", {"client": EVERYTHING})
        self.config = write_config(self.directory, behind, self.authority, ["client"], workers=1)
        self.middle.kill = self.kill

    async def start(self) -> int:
        """A new node; where its client connects."""
        self.window = await asyncio.to_thread(Window, self.config)
        self._pids = [line["pid"] for line in self.window.said("worker started", 1)]
        return await self.middle.listen(self.window.mq_port)

    def kill(self) -> None:
        """The worker first, so that it has no time to see its node die."""
        assert self.window is not None
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._pids = []
        self.window.process.kill()

    async def end(self) -> None:
        if self.window is not None:
            self.kill()
            await asyncio.to_thread(self.window.process.wait)
        await self.middle.close()
        await self.manager.close()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    await scene.begin()
    yield scene
    await scene.end()


class Story:
    """What the client knows of its messages."""

    def __init__(self) -> None:
        self.sent: set[bytes] = set()
        """Put, and the queue manager's yes has come."""
        self.tried: set[bytes] = set()
        self.got: list[bytes] = []
        """Given to the client; whether the unit of work of the second one has ended it may not know."""

    async def run(self, scene: Scene, port: int) -> None:
        """Put and get, with and without syncpoint."""
        scene.authority.issue("client").write(scene.directory, "client")
        context = ssl.create_default_context(cafile=str(scene.directory / "agents.pem"))
        context.load_cert_chain(scene.directory / "client.pem", scene.directory / "client.key")
        client = await Client.open("localhost", port, CHANNEL, NAME, context=context)
        try:
            connection = await client.connect()
            handle = await connection.open("A.QUEUE", INPUT_SHARED | OUTPUT)
            self.tried.add(b"alone")
            await connection.put(handle, b"alone", Described(persistent=True))
            self.sent.add(b"alone")
            self.tried.add(b"unit")
            await connection.put(handle, b"unit", Described(persistent=True), requests.SYNCPOINT)
            await connection.commit()
            self.sent.add(b"unit")
            first = await connection.get(handle, wait=5.0)
            assert first is not None
            self.got.append(first.data)
            second = await connection.get(handle, requests.SYNCPOINT)
            assert second is not None
            self.got.append(second.data)
            await connection.commit()
            await connection.disconnect()
        finally:
            await client.close()


def events(scene: Scene, action: str) -> list[Event]:
    return [event for event in show(scene.directory / "audit", agent=spiffe_id("client")) if event.action == action]


async def test_no_point_loses_a_message_or_its_evidence(scene: Scene) -> None:
    await Story().run(scene, await scene.start())
    assert scene.window is not None
    await asyncio.to_thread(scene.window.stop)
    whole = scene.middle.pieces
    assert whole > 40
    told = dict.fromkeys(("put", "get"), 0)
    points = [number / 2 for number in range(2, 2 * whole)]
    tried = 0
    for point in points if LONG else points[:: STEPS + 1]:
        queue = scene.manager.queues.named["A.QUEUE"]
        queue.messages.clear()
        before = {action: len(events(scene, action)) for action in told}
        port = await scene.start()
        scene.middle.pieces, scene.middle.kill_at = 0, point
        story = Story()
        with contextlib.suppress(MqError, OSError, ProtocolError):
            async with asyncio.timeout(20):
                await story.run(scene, port)
        scene.kill()
        await asyncio.to_thread(scene.window.process.wait)
        scene.middle.kill_at = None
        await asyncio.to_thread(until, lambda queue=queue: queue.outputs == queue.inputs == 0)
        left = [message.data for message in queue.messages]
        assert len(left) == len(set(left)), point
        assert set(left) <= story.tried, point
        for data in story.sent:
            assert data in left or data in story.got, (point, data)
        known = {action: events(scene, action)[before[action] :] for action in told}
        assert len([event for event in known["put"] if event.outcome and event.outcome.rows]) >= len(story.sent), point
        assert len([event for event in known["get"] if event.outcome and event.outcome.rows]) >= len(story.got), point
        gone = story.sent - set(left)
        assert len([event for event in known["get"] if event.outcome and event.outcome.rows]) >= len(gone), point
        tried += 1
    print(f"killed at {tried} of {len(points)} points")
