"""``grille mq check``: whether a queue manager answers as the relay relies on."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TextIO

from grille.protocols.mq import calls, requests
from grille.protocols.mq.requests import BROWSE, INPUT_SHARED, INQUIRE, OUTPUT, Described
from grille.protocols.mq.segments import ProtocolError, Type
from grille.proxy.channel import upstream_context
from grille.proxy.config import Config, QueueManager
from grille.proxy.mq_client import Client, Connection, MqError
from grille.proxy.report import Report

_LEVEL, _NAME = 31, 2015
_DEPTH: Final = 3
_LARGE: Final = 100_000
"""Bytes of a message that takes several segments."""
_WAIT: Final = 5.0


async def check_queue_managers(config: Config, out: TextIO, only: str | None, queue: str | None) -> int:
    """Print ``OK`` or ``FAIL`` for each item of each queue manager, or of ``only`` one; 0 if none failed, else 1."""
    report = Report(out)
    chosen = [manager for manager in config.queue_managers if only in (None, manager.name)]
    if not chosen:
        known = ", ".join(manager.name for manager in config.queue_managers) or "there is none"
        report.fail("queue managers", f"{only or 'any'} is not configured ({known})", "Add a [[queue_managers]] entry.")
    for manager in chosen:
        await check_queue_manager(config, manager, report, queue)
    return report.close()


async def check_queue_manager(config: Config, manager: QueueManager, report: Report, queue: str | None = None) -> None:
    """Check one, and with a ``queue`` also what is done with messages."""
    item = f"queue manager {manager.name} at {manager.host}:{manager.port}"
    users = {each.queue_manager_user: each for each in config.identities if each.queue_manager == manager.name}
    if not users:
        report.warn(item, "no identity names it, so nobody can connect to it")
    for user in sorted(users) or [""]:
        client = await _open(manager, item, user, report)
        if client is None:
            return
        try:
            if await _look(client, manager, item, user, report) and queue is not None:
                await _Trial(client, queue, f"{item}, queue {queue} as {user or 'nobody'}", report).run()
        finally:
            await client.close()


async def _open(manager: QueueManager, item: str, user: str, report: Report) -> Client | None:
    fix = "See that its listener runs, and that tls, ca and client_certificate are as its channel wants them."
    try:
        context = None if manager.tls == "off" else upstream_context(manager)
        client = await Client.open(
            manager.host, manager.port, manager.channel, manager.name,
            context=context, user=user, seconds=manager.connect_timeout,
        )  # fmt: skip
    except ssl.SSLError as error:
        report.fail(item, f"TLS fails ({error.reason or error})", fix)
    except TimeoutError:
        report.fail(item, f"does not answer within {manager.connect_timeout:g} seconds", fix)
    except OSError as error:
        report.fail(item, f"cannot be reached ({error.strerror or error})", fix)
    except MqError as error:
        report.fail(item, f"refuses the channel {manager.channel} ({error})", "See its error log.")
    except ProtocolError as error:
        report.fail(item, f"says what Grille does not understand: {error}", "Tell us its version and platform.")
    else:
        return client
    return None


async def _look(client: Client, manager: QueueManager, item: str, user: str, report: Report) -> bool:
    """Connect, and see who it is; True if that is as configured."""
    agreed = client.agreed
    assert agreed is not None  # noqa: S101
    try:
        async with asyncio.timeout(manager.connect_timeout):
            connection = await client.connect()
            handle = await connection.open("", INQUIRE)
            (level,), name = await connection.inquire(handle, _LEVEL, _NAME, characters=48)
            await connection.close(handle)
            await (await client.connect()).disconnect()
            await connection.disconnect()
    except MqError as error:
        fix = f"See that a channel authentication record lets Grille's certificate be {user}, who may connect."
        report.fail(item, f"does not let {user or 'nobody'} connect ({error})", fix)
    except (TimeoutError, ProtocolError, ValueError) as error:
        report.fail(item, f"does not answer as expected ({error or 'in time'})", "Tell us its version and platform.")
    else:
        called = name.decode("ascii", "replace").strip()
        if called != manager.name:
            report.fail(item, f"it is called {called}", "Give queue_managers.name its own name.")
            return False
        report.ok(
            item,
            f"as {user or 'nobody'}: level {level}, protocol level {agreed.level}, {agreed.conversations} "
            f"conversations a socket, messages to {agreed.message_limit} bytes, heartbeat {agreed.heartbeat} s",
        )
        return True
    return False


class _Trial:
    """What a relayed client does with a queue."""

    def __init__(self, client: Client, queue: str, item: str, report: Report) -> None:
        self._client = client
        self._queue = queue
        self._item = item
        self._report = report

    async def run(self) -> None:
        """Try one thing after the other; one that fails ends the trial of this user."""
        connection = await self._client.connect()
        handles: list[int] = []

        async def open_() -> str:
            like = requests.simple(Type.MQCMIT)
            reply = await connection.call(calls.resolving(like, "", self._queue), "MQOPEN")
            found = calls.opened(reply)
            await connection.close(calls.handle(reply))
            _expect(found.resolved_name == self._queue, f"the name leads to {found.resolved_name or 'nowhere'}")
            handle = await connection.open(self._queue, INPUT_SHARED | OUTPUT | BROWSE | INQUIRE)
            (depth,), _ = await connection.inquire(handle, _DEPTH)
            _expect(depth == 0, f"the queue has {depth} messages")
            handles.append(handle)  # what is there from now on is ours
            return "tells where the name leads"

        steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("open", open_),
            ("an empty queue", lambda: self._empty(connection, handles[0])),
            ("put and get", lambda: self._plain(connection, handles[0])),
            ("put1", lambda: self._put1(connection, handles[0])),
            ("browse", lambda: self._browse(connection, handles[0])),
            ("units of work", lambda: self._units(connection, handles[0])),
            ("a message of several segments", lambda: self._large(connection, handles[0])),
            ("a get that waits", lambda: self._waiting(connection, handles[0])),
        ]
        try:
            for name, step in steps:
                try:
                    async with asyncio.timeout(4 * _WAIT):
                        note = await step()
                except (MqError, ProtocolError, _Unexpected, TimeoutError) as error:
                    self._report.fail(f"{self._item}: {name}", str(error) or "no answer in time", _TELL)
                    return
                self._report.ok(f"{self._item}: {name}", note)
            await connection.close(handles[0])
            await connection.disconnect()
        finally:
            await self._emptied(connection, handles)

    @staticmethod
    async def _emptied(connection: Connection, handles: list[int]) -> None:
        """Take away what a failed step has left."""
        try:
            async with asyncio.timeout(_WAIT):
                while handles and await connection.get(handles[0]) is not None:
                    pass
        except (MqError, ProtocolError, TimeoutError):
            return

    @staticmethod
    async def _empty(connection: Connection, handle: int) -> str:
        _expect(await connection.get(handle) is None, "a message comes from nowhere")
        return "is told by a notification"

    @staticmethod
    async def _plain(connection: Connection, handle: int) -> str:
        data = os.urandom(200)
        put = await connection.put(handle, data, Described(correlation_id=b"grille mq check".ljust(24)))
        got = await connection.get(handle)
        _expect(got is not None and got.data == data, "another message comes back")
        assert got is not None  # noqa: S101
        _expect(got.descriptor.message_id == put.message_id, "the reply names another MsgId than the message has")
        return "the message comes as it was sent, with the id that the reply told"

    async def _put1(self, connection: Connection, handle: int) -> str:
        await connection.put1(self._queue, b"1")
        got = await connection.get(handle)
        _expect(got is not None and got.data == b"1", "another message comes back")
        return "puts without an open"

    @staticmethod
    async def _browse(connection: Connection, handle: int) -> str:
        await connection.put(handle, b"b")
        seen = await connection.get(handle, requests.BROWSE_FIRST)
        _expect(seen is not None and seen.data == b"b", "browsing shows another message")
        got = await connection.get(handle)
        _expect(got is not None, "browsing takes the message away")
        return "leaves the message where it is"

    @staticmethod
    async def _units(connection: Connection, handle: int) -> str:
        await connection.put(handle, b"u", options=requests.SYNCPOINT)
        await connection.backout()
        _expect(await connection.get(handle) is None, "a put that was backed out is there")
        await connection.put(handle, b"u", options=requests.SYNCPOINT)
        await connection.commit()
        got = await connection.get(handle, requests.SYNCPOINT)
        _expect(got is not None, "a put that was committed is not there")
        await connection.backout()
        again = await connection.get(handle, requests.SYNCPOINT)
        _expect(again is not None and again.descriptor.backout_count == 1, "the backout count is not 1")
        await connection.commit()
        return "are kept and undone, with a backout count"

    @staticmethod
    async def _large(connection: Connection, handle: int) -> str:
        data = os.urandom(_LARGE)
        await connection.put(handle, data)
        got = await connection.get(handle)
        _expect(got is not None and got.data == data, "it does not come back whole")
        return f"{_LARGE} bytes come back whole"

    async def _waiting(self, connection: Connection, handle: int) -> str:
        waiting = asyncio.create_task(connection.get(handle, wait=_WAIT))
        other = await self._client.connect()
        await other.put1(self._queue, b"w")
        got = await waiting
        _expect(got is not None and got.data == b"w", "the message does not come")
        await other.disconnect()
        return "is served when the message comes"


_TELL: Final = "Grille relies on this: do not relay to this queue manager yet, and tell us its version and platform"


class _Unexpected(Exception):
    """An answer that the relay does not expect."""


def _expect(so: bool, otherwise: str) -> None:
    if not so:
        raise _Unexpected(otherwise)
