"""What the sessions of one worker share: cancel keys, and the parts that serve them all."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from grille.protocols.postgres.messages import BackendKeyData
from grille.proxy.config import Config
from grille.proxy.enforcement import Enforcement
from grille.proxy.identity import Agent
from grille.proxy.layouts import Payloads
from grille.proxy.pipe import SharedPipes
from grille.proxy.queues import Queues
from grille.proxy.quota import QuotaReached, Quotas
from grille.proxy.quota_store import Counters, NodeCounters, StoreCounters
from grille.proxy.recorder import Recorder
from grille.proxy.shown import Shown
from grille.proxy.telemetry import Metrics
from grille.proxy.upstream import UpstreamPool

_OWN_NUMBER: Final = 1 << 30
"""Set in every number that Grille makes up; process ids of servers are smaller."""
_WORKER_BITS: Final = 23


class Cancellable(Protocol):
    """A session, as the cancel table knows it."""

    def cancel(self) -> None:
        """Cancel the statement in flight, if there is one."""


class CancelTable:
    """Which session a cancel key belongs to.

    The number that a client gets as its process id is unique on the node and carries the worker, so a request that
    another worker has accepted can be ``forward``-ed (worker, number, secret).  A passthrough session shows the process
    id of its backend instead.  That says nothing of the worker, so all others are asked (worker None); and backends of
    two servers may have the same, so the secret alone decides.
    """

    def __init__(self, worker: int, forward: Callable[[int | None, int, bytes], None] | None = None) -> None:
        self._worker = worker & 0x7F
        self._forward = forward
        self._numbers = itertools.count(1)
        self._entries: dict[int, list[tuple[bytes, Cancellable]]] = {}

    def add(self, session: Cancellable, secret_bytes: int, *, process_id: int | None = None) -> BackendKeyData:
        """A new key for this session, with a number of Grille's own or the ``process_id`` of its backend."""
        number = process_id
        while number is None:
            number = _OWN_NUMBER | self._worker << _WORKER_BITS | next(self._numbers) & 0x7F_FFFF
            if number in self._entries:
                number = None
        secret = secrets.token_bytes(secret_bytes)
        self._entries.setdefault(number, []).append((secret, session))
        return BackendKeyData(number, secret)

    def remove(self, key: BackendKeyData) -> None:
        """Forget a key."""
        left = [entry for entry in self._entries.pop(key.process_id, ()) if entry[0] != key.secret]
        if left:
            self._entries[key.process_id] = left

    def cancel(self, number: int, secret: bytes, *, forwarded: bool = False) -> bool:
        """Cancel what the owner of this key runs.  False if there is no such key here; nobody else learns that.

        ``forwarded``: another worker has sent it here, so it goes no further.
        """
        found: Cancellable | None = None
        for known, session in self._entries.get(number, ()):
            if hmac.compare_digest(known, secret):
                found = session
        if found is not None:
            found.cancel()
            return True
        worker = number >> _WORKER_BITS & 0x7F if number & _OWN_NUMBER else None
        if self._forward is not None and not forwarded and number > 0 and worker != self._worker:
            self._forward(worker, number, secret)
        return False


@dataclass(eq=False)
class Services:
    """What a worker's sessions share.  Mappings are by the configured database name, but for ``queues``."""

    config: Config
    worker: int
    workers: int
    enforcement: Mapping[str, Enforcement]
    pools: Mapping[str, UpstreamPool]
    recorder: Recorder
    metrics: Metrics
    cancels: CancelTable
    server_version: Callable[[str], str]
    """The version of a database's server as it reports it, like ``18.4``."""
    refresh: Callable[[str], Awaitable[object]]
    """Read a database's catalogue anew, because a statement met one that had changed."""
    quotas: Quotas = field(default_factory=Quotas)
    queues: Mapping[str, Queues] = field(default_factory=dict)
    """What the policy says of queues, by the configured queue manager's name."""
    payloads: Payloads | None = None
    """What is done with the fields of messages; None where there are no queue managers."""
    pipes: Mapping[str, SharedPipes] = field(default_factory=dict)
    """The shared pipes of each database; a database that has none is served without the fast path."""
    shown: Mapping[str, Shown] = field(default_factory=dict)
    """What results show, for quotas of keys; on a database that has none, such statements are refused."""
    on_quota: Callable[[Agent, str, str, QuotaReached], None] = lambda agent, protocol, session, reached: None
    """Hears of each statement that a quota refuses: whose, over which protocol, in which session, and why."""
    store: StoreCounters | None = None
    """Counts for all nodes, if there is a store."""
    counters: Counters = field(init=False)
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.counters = self.store or NodeCounters(self.quotas)

    def drain(self) -> None:
        """Begin no transaction any more; `Session.drain` ends each session."""
        self.draining.set()
