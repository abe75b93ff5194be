"""The node: local datagrams, workers that die, drain, readiness."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from grille.proxy.node import Ask, Cancel, Datagram, Drain, LocalSocket, Reload, Report, worker_name
from grille.proxy.telemetry import Metrics

DEADLINE = 5.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: unix sockets have room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="grille-test-") as name:
        yield Path(name)


class Inbox:
    """Keeps datagrams and wakes who waits for one."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Datagram] = asyncio.Queue()

    async def next(self) -> Datagram:
        return await asyncio.wait_for(self.queue.get(), DEADLINE)


@pytest.fixture
async def ends(directory: Path) -> AsyncIterator[Callable[[str], tuple[LocalSocket, Inbox]]]:
    """Makes ends of the local socket, by name."""
    made: list[LocalSocket] = []

    def end(name: str) -> tuple[LocalSocket, Inbox]:
        inbox = Inbox()
        made.append(LocalSocket(directory, name, inbox.queue.put_nowait))
        return made[-1], inbox

    yield end
    for local in made:
        local.close()


async def test_every_datagram_arrives_as_it_was_sent(ends: Callable[[str], tuple[LocalSocket, Inbox]]) -> None:
    first, _ = ends("node")
    _, inbox = ends(worker_name(1))
    metrics = Metrics().snapshot()
    for datagram in (Cancel(7, b"1234"), Ask(3), Report(3, 1, ("no bundle",), metrics), Drain(1.5), Reload()):
        assert first.send(worker_name(1), datagram)
        assert await inbox.next() == datagram
    assert first.ignored == 0


async def test_malformed_and_unknown_datagrams_are_ignored_and_counted(
    ends: Callable[[str], tuple[LocalSocket, Inbox]], directory: Path
) -> None:
    local, inbox = ends("worker-0")
    other, _ = ends("worker-1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as raw:
        for data in (
            b"",
            b"\xff" * 1000,
            b"\x81\xa4type\xa4exec",
            b"\x82\xa4type\xa6reload\xa5extra\x01",
            b"\x82\xa4type\xa3ask\xa6number\xa1x",
        ):
            raw.sendto(data, str(directory / "worker-0"))
    assert other.send("worker-0", Reload())
    assert await inbox.next() == Reload()
    assert inbox.queue.empty()
    assert local.ignored == 5


async def test_sending_to_nobody_is_told_and_counted(ends: Callable[[str], tuple[LocalSocket, Inbox]]) -> None:
    local, _ = ends("worker-0")
    assert not local.send("worker-7", Reload())
    assert local.ignored == 1


def test_a_secret_hides_in_repr() -> None:
    assert "1234" not in repr(Cancel(7, b"1234"))
