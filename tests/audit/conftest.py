from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from grille.audit.encoding import event_id, timestamp
from grille.audit.event import Event, Outcome
from grille.audit.spool import Spool

START = 1_800_000_000.0


class Clock:
    """Seconds since 1970 that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class OpenSpool(Protocol):
    def __call__(self, worker: int = 0, **settings: object) -> Spool: ...


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_event(clock: Clock) -> Callable[..., Event]:
    def make(**fields: object) -> Event:
        basis: dict[str, object] = {
            "id": event_id(clock.now),
            "time": timestamp(clock.now),
            "kind": "statement",
            "name": "statement",
            "worker": 0,
            "sequence": 0,
            "level": "process",
            "outcome": Outcome(status="ok", tag="SELECT 1", rows=1),
        }
        return Event(**(basis | fields))  # type: ignore[arg-type]

    return make


@pytest.fixture
def open_spool(tmp_path: Path, key: Ed25519PrivateKey, clock: Clock) -> OpenSpool:
    def open_(worker: int = 0, **settings: object) -> Spool:
        settings = {"clock": clock, "key": key, "directory": tmp_path / "audit"} | settings
        return Spool(worker=worker, **settings)  # type: ignore[arg-type]

    return open_
