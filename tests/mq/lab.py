"""A worker of Grille in this process, between clients and the stand-in for a queue manager."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grille.audit.event import Event
from grille.audit.evidence import show
from grille.proxy.authority import Authority
from grille.proxy.config import load
from grille.proxy.mq_client import Client, Connection
from grille.proxy.serve import Worker
from tests.mq.manager import CHANNEL, NAME, Manager
from tests.mq.queues import Queue
from tests.mq.window import EVERYTHING, TRUST_DOMAIN, write_config, write_policy

DEADLINE = 20.0
Grants = Mapping[str, Mapping[str, Sequence[str]]]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Lab:
    """Use as an asynchronous context manager."""

    def __init__(
        self,
        directory: Path,
        queues: tuple[str | Queue, ...] = ("A.QUEUE", "B.QUEUE"),
        grants: Grants | None = None,
        **options: Any,
    ) -> None:
        """``options``: those of `write_config`, ``standing`` those of `Manager`, or ``manager`` one that listens at the
        port ``upstream``; ``grants``: those of `write_policy`.
        """
        self.directory = directory
        self.upstream = options.pop("upstream", 0)
        self.manager = options.pop("manager", None) or Manager(queues, **options.pop("standing", {}))
        self.agents = dict(grants if grants is not None else {"client": EVERYTHING})
        self._decision = options.pop("decision", {})
        self._options = options
        self._authority = Authority(TRUST_DOMAIN)
        self._stack = contextlib.AsyncExitStack()
        self._revision = 0

    async def __aenter__(self) -> Lab:
        if not self.upstream:
            self.upstream = await self.manager.listen()
            self._stack.push_async_callback(self.manager.close)
        self.grant(self.agents, **self._decision)
        names = [*self.agents, *self._options.pop("others", ())]
        self.config = load(
            write_config(self.directory, self.upstream, self._authority, names, workers=1, **self._options)
        )
        self.worker = Worker(self.config)
        listening = asyncio.Event()
        running = asyncio.create_task(self.worker.run(listening.set))
        self._stack.push_async_callback(self._end, running)
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait([asyncio.create_task(listening.wait()), running], return_when=asyncio.FIRST_COMPLETED)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _end(self, running: asyncio.Task[None]) -> None:
        async with asyncio.timeout(DEADLINE):
            await self.worker.drain(0.1)
            await running

    def grant(self, agents: Grants, denied: Sequence[str] = (), **more: object) -> None:
        """Another policy from now on."""
        self._revision += 1
        path = self.directory / "policy.tar.gz"
        write_policy(path, agents, denied=denied, revision=str(self._revision), **more)
        if self._revision > 1:
            self.worker.reload()

    def context(self, agent: str = "client") -> ssl.SSLContext:
        """What an agent connects with."""
        self._authority.issue(agent).write(self.directory, agent)
        context = ssl.create_default_context(cafile=str(self.directory / "agents.pem"))
        context.load_cert_chain(self.directory / f"{agent}.pem", self.directory / f"{agent}.key")
        return context

    async def client(self, agent: str = "client", channel: str = CHANNEL, manager: str = NAME, **more: Any) -> Client:
        """A socket of an agent; closed at the end."""
        client = await Client.open(
            "localhost", self.worker.mq_port, channel, manager, context=self.context(agent), **more
        )
        self._stack.push_async_callback(client.close)
        return client

    async def connection(self, agent: str = "client", **more: Any) -> Connection:
        """A connection of an agent, alone on its socket."""
        return await (await self.client(agent, **more)).connect()

    def events(self, **wanted: object) -> list[Event]:
        """What the evidence has by now, all fields as ``wanted``; sealed or not."""
        found = show(self.directory / "audit")
        return [event for event in found if all(getattr(event, name) == value for name, value in wanted.items())]

    async def event(self, **wanted: object) -> Event:
        """The last of such events, waited for until it is sealed."""
        async with asyncio.timeout(DEADLINE):
            while not (found := self.events(**wanted)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return found[-1]
