"""``grille mq check`` against the stand-in: what it tries, and how it tells of what is not as the relay expects."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from grille.proxy import cli
from grille.proxy.authority import Authority
from grille.proxy.config import load
from grille.proxy.mq_check import check_queue_managers
from grille.proxy.mq_client import Client
from tests.mq import queues
from tests.mq.manager import CHANNEL, DENIED_CHANNEL, NAME, Manager, Peer
from tests.mq.queues import Queue
from tests.mq.suite import Stores
from tests.mq.window import EVERYTHING, TRUST_DOMAIN, write_config, write_policy

Standing = Callable[..., Awaitable[tuple[Manager, int]]]
STEPS = [
    "open", "an empty queue", "put and get", "put1", "browse", "units of work", "a message of several segments",
    "a get that waits",
]  # fmt: skip


def configured(directory: Path, port: int, agents: tuple[str, ...] = ("client",), **manager: Any) -> Path:
    write_policy(directory / "policy.tar.gz", {"client": EVERYTHING})
    return write_config(directory, port, Authority(TRUST_DOMAIN), agents, manager=manager)


@pytest.fixture
async def standing() -> AsyncIterator[Standing]:
    """Makes a stand-in, and tells its port."""
    made: list[Manager] = []

    async def make(*names: str, context: Any = None, **options: Any) -> tuple[Manager, int]:
        made.append(Manager(names, **options))
        return made[-1], await made[-1].listen(0, context, "localhost" if context else "127.0.0.1")

    yield make
    for manager in made:
        await manager.close()


async def checked(config: Path, queue: str | None = "A.QUEUE", only: str | None = None) -> tuple[int, list[str]]:
    out = io.StringIO()
    status = await check_queue_managers(load(config), out, only, queue)
    return status, out.getvalue().splitlines()


@pytest.mark.parametrize("options", [{}, {"synchronous_get": True}], ids=str)
async def test_the_stand_in_is_in_order(tmp_path: Path, standing: Standing, options: dict[str, bool]) -> None:
    manager, port = await standing("A.QUEUE", **options)
    status, lines = await checked(configured(tmp_path, port, ("client", "other")))
    assert status == 0, lines
    assert lines[-1] == "all in order"
    first = f"OK   queue manager {NAME} at 127.0.0.1:{port}"
    assert lines[0].startswith(f"{first}: as client: level 942, protocol level 13, 10 conversations a socket, ")
    assert [line.split(": ")[1] for line in lines[1:9]] == STEPS
    assert lines[9].startswith(f"{first}: as other: ")
    assert {connected.user for connected in manager.connected} == {"client", "other"}
    assert manager.queues.named["A.QUEUE"].messages == [] and manager.complaints == []


async def test_the_other_byte_order_is_told(tmp_path: Path, standing: Standing) -> None:
    _, port = await standing("A.QUEUE", big_endian=True)
    status, lines = await checked(configured(tmp_path, port))
    assert status == 1 and "the most significant byte comes first" in lines[0]


async def test_over_tls(tmp_path: Path, standing: Standing) -> None:
    stores = Stores(tmp_path)
    _, port = await standing("A.QUEUE", context=stores.context)
    tls = {"host": "localhost", "tls": "verify-full", "ca": "ca.pem", "client_certificate": "client.pem",
           "client_key": "client.key"}  # fmt: skip
    status, lines = await checked(configured(tmp_path, port, **tls))
    assert status == 0, lines
    status, lines = await checked(configured(tmp_path, port, **{**tls, "ca": "agents.pem"}))
    assert status == 1 and "TLS fails (CERTIFICATE_VERIFY_FAILED)" in lines[0]


async def test_without_a_queue_only_the_connection_is_tried(tmp_path: Path, standing: Standing) -> None:
    _, port = await standing("A.QUEUE")
    status, lines = await checked(configured(tmp_path, port), None)
    assert status == 0 and len(lines) == 2


@pytest.mark.parametrize(
    ("manager", "told"),
    [
        ({"name": "QM7"}, "does not let client connect (MQCONN: MQRC 2058)"),
        ({"channel": DENIED_CHANNEL}, "does not let client connect (MQCONN: MQRC 2035)"),
        ({"channel": "NO.SUCH"}, "refuses the channel NO.SUCH (channel: MQRC 2540)"),
    ],
)
async def test_what_is_configured_wrongly(
    tmp_path: Path, standing: Standing, manager: dict[str, str], told: str
) -> None:
    _, port = await standing("A.QUEUE")
    config = configured(tmp_path, port, **manager)
    if "name" in manager:
        text = config.read_text().replace(f'queue_manager = "{NAME}"', f'queue_manager = "{manager["name"]}"')
        config.write_text(text)
    status, lines = await checked(config)
    assert status == 1 and told in lines[0]
    assert lines[-1] == "1 failed"


async def test_nobody_there(tmp_path: Path, standing: Standing) -> None:
    stand, port = await standing()
    await stand.close()
    status, lines = await checked(configured(tmp_path, port))
    assert status == 1 and "cannot be reached" in lines[0]
    status, lines = await checked(configured(tmp_path, port), only="QM9")
    assert status == 1 and "QM9 is not configured (QM1)" in lines[0]


def lost(self: queues.Queues, queue: Queue, message: object, unit: object) -> None:
    """A put that is answered, and not done."""


def committed(self: queues.Queues, unit: queues.Unit) -> None:
    """A backout that commits."""
    self.commit(unit)


def unresolved(self: Peer, call: Any, at: int, what: Any, queue: Queue | None) -> bytes:
    """An open that does not tell where its name leads."""
    body = bytearray(call.raw(at, what.total))
    body[240:336] = b"ELSEWHERE".ljust(96)
    return bytes(body)


@pytest.mark.parametrize(
    ("where", "name", "otherwise", "step", "told"),
    [
        (queues.Queues, "put", lost, "put and get", "another message comes back"),
        (queues.Queues, "back", committed, "units of work", "a put that was backed out is there"),
        (Peer, "_described", unresolved, "open", "the name leads to ELSEWHERE"),
    ],
)
async def test_a_queue_manager_that_is_not_as_expected(
    tmp_path: Path,
    standing: Standing,
    monkeypatch: pytest.MonkeyPatch,
    where: type,
    name: str,
    otherwise: Callable[..., object],
    step: str,
    told: str,
) -> None:
    monkeypatch.setattr(where, name, otherwise)
    _, port = await standing("A.QUEUE")
    status, lines = await checked(configured(tmp_path, port))
    assert status == 1
    (failed,) = (line for line in lines if line.startswith("FAIL"))
    assert f": {step}: {told}. Grille relies on this" in failed


async def test_a_queue_that_is_in_use(tmp_path: Path, standing: Standing) -> None:
    stand, port = await standing("A.QUEUE")
    config = configured(tmp_path, port)
    client = await Client.open("127.0.0.1", port, CHANNEL, NAME)
    await (await client.connect()).put1("A.QUEUE", b"theirs")
    await client.close()
    status, lines = await checked(config)
    assert status == 1 and "the queue has 1 messages" in lines[1]
    assert len(stand.queues.named["A.QUEUE"].messages) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, 9)
    assert cli.main(["mq", "check", "--config", str(config), "--queue", "A.QUEUE"]) == 1
    assert "cannot be reached" in capsys.readouterr().out
