from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from grille.audit.encoding import event_id, timestamp
from grille.audit.event import Event, Level, Outcome
from grille.audit.evidence import Report, show, verify
from grille.audit.fused import LARGEST, split
from grille.audit.spool import AuditUnavailable, Spool
from grille.controls import Refusal
from grille.proxy import recorder as recorder_module
from grille.proxy.config import Audit
from grille.proxy.recorder import Recorder

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


class GatedSpool(Spool):
    """A spool on a disk that can be held up, or can fail a sync."""

    def __init__(self, directory: Path, *, block_events: int = 1024) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.fail_syncs = self.syncs = 0
        super().__init__(directory, 0, KEY, block_events=block_events)
        self.syncs = 0
        """Syncs that were begun."""

    def sync(self) -> None:
        self.syncs += 1
        self.gate.wait()
        if self.fail_syncs:
            self.fail_syncs -= 1
            raise AuditUnavailable("the device refuses")
        super().sync()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[GatedSpool]:
    spool = GatedSpool(tmp_path)
    yield spool
    spool.gate.set()


@pytest.fixture
async def recorder(spool: GatedSpool, tmp_path: Path) -> AsyncIterator[Recorder]:
    settings = Audit(directory=tmp_path, signing_key=tmp_path / "key.pem", reads="power", writes="strict")
    recorder = Recorder(spool, settings)
    yield recorder
    spool.gate.set()
    await recorder.close()


def event(level: Level, **fields: object) -> Event:
    now = time.time()
    return Event(
        id=event_id(now),
        time=timestamp(now),
        kind="statement",
        name="statement",
        worker=0,
        sequence=0,
        level=level,
        outcome=Outcome(status="ok"),
        **fields,  # type: ignore[arg-type]
    )


def sealed(directory: Path) -> int:
    """Events in sealed blocks, the start event not counted."""
    report: Report = verify(directory, KEY.public_key())
    assert report.problems == ()
    return report.events - 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (what is waited for is on disk)
            await asyncio.sleep(0.001)


@contextlib.contextmanager
def full_disk(spool: Spool, tmp_path: Path) -> Iterator[None]:
    """The kernel refuses to let the segment grow; it is large enough not to disturb pytest's own files."""
    size = (tmp_path / "worker-000" / "000000000000.seg").stat().st_size
    assert size > 1_000_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_process_waits_for_no_disk(recorder: Recorder, spool: GatedSpool, tmp_path: Path) -> None:
    spool.gate.clear()
    await asyncio.wait_for(recorder.keep(event("process", text="at once")), 5)
    assert [kept.text for kept in show(tmp_path)][-1] == "at once"
    assert recorder.syncs_total == 0
    assert recorder.events_total == 1


async def test_a_block_is_sealed_in_time_without_further_events(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path
) -> None:
    await recorder.keep(event("process"))
    assert spool.pending == 1
    await until(lambda: spool.pending == 0)
    assert sealed(tmp_path) == 1
    assert recorder.lag_seconds == 0.0


@pytest.mark.parametrize("level", ["power", "strict"])
async def test_power_and_strict_are_held_until_the_sync(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path, level: Level
) -> None:
    spool.gate.clear()
    kept = asyncio.create_task(recorder.keep(event(level)))
    await until(lambda: sealed(tmp_path) == 1)
    done, _ = await asyncio.wait([kept], timeout=0.05)
    assert not done
    assert recorder.lag_seconds > 0.0
    spool.gate.set()
    await asyncio.wait_for(kept, 5)
    assert recorder.syncs_total == 1
    await until(lambda: recorder.lag_seconds == 0.0)


async def test_many_events_share_one_sync(recorder: Recorder, tmp_path: Path) -> None:
    async def agent() -> None:
        for _ in range(20):
            await recorder.keep(event("power"))

    await asyncio.gather(*(agent() for _ in range(50)))
    assert recorder.events_total == 1000
    assert sealed(tmp_path) == 1000
    assert recorder.syncs_total <= 100


async def test_events_that_come_during_a_sync_form_the_next_group(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path
) -> None:
    spool.gate.clear()
    one = asyncio.create_task(recorder.keep(event("power")))
    await until(lambda: sealed(tmp_path) == 1)
    others = [asyncio.create_task(recorder.keep(event("power"))) for _ in range(30)]
    spool.gate.set()
    await asyncio.wait_for(asyncio.gather(one, *others), 5)
    assert recorder.syncs_total == 2
    assert sealed(tmp_path) == 31


async def test_the_levels_come_from_the_configuration(recorder: Recorder) -> None:
    assert recorder.level(writes=False) == "power"
    assert recorder.level(writes=True) == "strict"


async def test_a_client_that_leaves_does_not_disturb_the_others(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path
) -> None:
    spool.gate.clear()
    tasks = [asyncio.create_task(recorder.keep(event("power"))) for _ in range(3)]
    await until(lambda: sealed(tmp_path) == 3)
    tasks[1].cancel()
    spool.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), asyncio.CancelledError, type(None)]
    await recorder.keep(event("power"))
    assert sealed(tmp_path) == 4


@pytest.mark.parametrize("level", ["process", "power"])
async def test_a_full_disk_refuses_until_there_is_room(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path, level: Level
) -> None:
    await recorder.keep(event("process", text="x" * 1_000_000))
    await until(lambda: spool.pending == 0)
    with full_disk(spool, tmp_path):
        for _ in range(3):
            with pytest.raises(Refusal) as refused:
                await recorder.keep(event(level))
            assert (refused.value.control, refused.value.sqlstate) == ("AU-01", "58030")
            assert str(tmp_path) not in f"{refused.value.message}{refused.value.hint}"
        assert not recorder.healthy
        with pytest.raises(Refusal):
            recorder.check()
        assert "File too large" in recorder.last_error
        assert recorder.failures_total >= 3
    await until(lambda: recorder.healthy)
    await recorder.keep(event(level, text="after"))
    await until(lambda: spool.pending == 0)
    names = [(kept.name, kept.text) for kept in sorted(show(tmp_path), key=lambda kept: kept.sequence)]
    assert [name for name, _ in names] == ["start", "statement", "unavailable", "statement"]
    assert "no event could be kept from" in names[2][1]
    assert sealed(tmp_path) == 3


async def test_a_block_that_cannot_be_sealed_makes_the_recorder_unhealthy(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path
) -> None:
    await recorder.keep(event("process", text="x" * 1_000_000))  # fits; its block will not
    with full_disk(spool, tmp_path):
        await until(lambda: not recorder.healthy)
        with pytest.raises(Refusal):
            await recorder.keep(event("process"))
    await until(lambda: recorder.healthy)
    assert sealed(tmp_path) == 2


async def test_a_sync_that_fails_refuses_all_that_wait(recorder: Recorder, spool: GatedSpool, tmp_path: Path) -> None:
    spool.fail_syncs = 2
    results = await asyncio.gather(*(recorder.keep(event("power")) for _ in range(5)), return_exceptions=True)
    assert {type(result) for result in results} == {Refusal}
    assert recorder.last_error == "the device refuses"
    await until(lambda: recorder.healthy)
    await recorder.keep(event("power"))
    assert [kept.name for kept in show(tmp_path)].count("unavailable") == 1
    assert sealed(tmp_path) == 7


async def test_a_sync_that_hangs_refuses_and_does_not_wait_for_ever(
    recorder: Recorder, spool: GatedSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "SYNC_SECONDS", 0.05)
    monkeypatch.setattr(recorder_module, "RETRY_SECONDS", 0.001)
    spool.gate.clear()
    kept = asyncio.create_task(recorder.keep(event("power")))
    with pytest.raises(Refusal):
        await asyncio.wait_for(kept, 5)
    assert not recorder.healthy
    await asyncio.wait([kept, asyncio.get_running_loop().create_future()], timeout=0.2)  # many retries
    assert spool.syncs == 1  # no second one behind the one that hangs
    spool.gate.set()
    await until(lambda: recorder.healthy)
    assert (spool.syncs, recorder.syncs_total) == (2, 2)
    await recorder.keep(event("power"))


async def test_an_event_that_cannot_be_encoded_is_refused_alone(recorder: Recorder) -> None:
    with pytest.raises(Refusal) as refused:
        await recorder.keep(event("power", application="\ud800"))
    assert refused.value.control == "AU-01"
    assert recorder.healthy
    await recorder.keep(event("power"))


class Told:
    """What ``submit`` has told of each event, in that order."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.kept: list[int] = []
        self.refused: list[int] = []

    def submit(self, number: int, level: Level, **fields: object) -> None:
        head, tail, *rest = split(event(level, **fields), 0)

        def done(refusal: Refusal | None) -> None:
            assert refusal is None or (refusal.control, refusal.sqlstate) == ("AU-01", "58030")
            (self.kept if refusal is None else self.refused).append(number)

        self._recorder.submit(head, tail, rest[0], level, done, *rest[1:])


async def test_what_one_turn_submits_is_one_write_one_block_and_one_sync(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *call: writes.append(len(call[1])) or pwrite(*call))
    told = Told(recorder)
    for number in range(200):
        told.submit(number, "power")
    assert (told.kept, writes) == ([], [])
    await until(lambda: len(told.kept) == 200)
    assert told.kept == list(range(200))
    assert len(writes) == 2  # the events and their block
    assert (recorder.events_total, recorder.syncs_total, recorder.failures_total) == (200, 1, 0)
    assert verify(tmp_path, KEY.public_key()).chains[0].blocks == 2
    assert sealed(tmp_path) == 200


async def test_in_one_turn_each_event_waits_for_its_own_level(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path
) -> None:
    spool.gate.clear()
    told = Told(recorder)
    for number, level in enumerate(("power", "process", "strict", "process", "power")):
        told.submit(number, level)  # type: ignore[arg-type]
    await until(lambda: len(told.kept) == 2)
    assert told.kept == [1, 3]
    assert sealed(tmp_path) == 5
    told.submit(5, "power")
    told.submit(6, "process")
    await until(lambda: len(told.kept) == 3)
    spool.gate.set()
    await until(lambda: len(told.kept) == 7)
    assert told.kept == [1, 3, 6, 0, 2, 4, 5]
    assert (recorder.events_total, recorder.syncs_total) == (7, 2)


async def test_a_write_that_fails_refuses_the_whole_turn_in_order(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path
) -> None:
    await recorder.keep(event("process", text="x" * 1_000_000))
    await until(lambda: spool.pending == 0)
    told = Told(recorder)
    with full_disk(spool, tmp_path):
        for number in range(6):
            told.submit(number, "process" if number % 2 else "power")
        await until(lambda: len(told.refused) == 6)
        told.submit(6, "process")
        assert told.refused == [0, 1, 2, 3, 4, 5, 6]  # the last at once
        assert recorder.failures_total == 7
    await until(lambda: recorder.healthy)
    assert told.kept == []
    assert [kept.name for kept in show(tmp_path)] == ["start", "statement", "unavailable"]
    assert sealed(tmp_path) == 2


async def test_a_write_that_fails_leaves_the_group_that_is_being_synced_alone(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path
) -> None:
    await recorder.keep(event("process", text="x" * 1_000_000))
    await until(lambda: spool.pending == 0)
    told = Told(recorder)
    spool.gate.clear()
    told.submit(0, "power")
    await until(lambda: sealed(tmp_path) == 2)
    with full_disk(spool, tmp_path):
        told.submit(1, "power")
        await until(lambda: told.refused == [1])
        spool.gate.set()
        await until(lambda: told.kept == [0])
    await until(lambda: recorder.healthy)
    assert sealed(tmp_path) == 3


async def test_a_sync_that_fails_refuses_also_those_that_wait_for_the_next(
    recorder: Recorder, spool: GatedSpool, tmp_path: Path
) -> None:
    spool.fail_syncs = 1
    spool.gate.clear()
    told = Told(recorder)
    told.submit(0, "power")
    await until(lambda: sealed(tmp_path) == 1)
    told.submit(1, "power")
    await until(lambda: spool.pending == 1)
    spool.gate.set()
    await until(lambda: told.refused == [0, 1])
    await until(lambda: recorder.healthy)
    assert (recorder.events_total, recorder.failures_total) == (0, 2)


async def test_whoever_fails_when_told_keeps_no_other_from_being_told(recorder: Recorder, tmp_path: Path) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def broken(refusal: Refusal | None) -> None:
        raise ZeroDivisionError

    told = Told(recorder)
    for level in ("process", "power"):
        told.submit(0, level)  # type: ignore[arg-type]
        head, tail, when, *_ = split(event("process"), 0)
        recorder.submit(head, tail, when, level, broken)  # type: ignore[arg-type]
        told.submit(1, level)  # type: ignore[arg-type]
    await until(lambda: len(told.kept) == 4)
    assert [type(error) for error in reported] == [ZeroDivisionError] * 2
    assert recorder.healthy
    assert sealed(tmp_path) == 6


async def test_an_event_that_is_too_large_is_refused_alone(recorder: Recorder, tmp_path: Path) -> None:
    told = Told(recorder)
    told.submit(0, "power")
    told.submit(1, "power", text="x" * LARGEST)
    told.submit(2, "power")
    assert told.refused == [1]
    await until(lambda: told.kept == [0, 2])
    assert recorder.healthy
    assert sealed(tmp_path) == 2


async def test_what_was_submitted_is_kept_before_closing(recorder: Recorder, spool: GatedSpool, tmp_path: Path) -> None:
    told = Told(recorder)
    spool.gate.clear()
    told.submit(0, "power")
    await until(lambda: sealed(tmp_path) == 1)
    told.submit(1, "power")
    told.submit(2, "process")
    closed = asyncio.create_task(recorder.close())
    await until(lambda: told.kept == [2])
    spool.gate.set()
    await closed
    assert told.kept == [2, 0, 1]
    told.submit(3, "process")
    assert told.refused == [3]
    assert [kept.name for kept in show(tmp_path)] == ["start", "statement", "statement", "statement", "stop"]


async def test_what_was_submitted_in_the_turn_of_closing_is_kept(recorder: Recorder, tmp_path: Path) -> None:
    told = Told(recorder)
    for number in range(3):
        told.submit(number, "power")
    await recorder.close()
    assert (told.kept, told.refused) == ([0, 1, 2], [])
    assert sealed(tmp_path) == 4


async def test_an_intent_is_open_until_its_outcome_is_kept(recorder: Recorder, spool: GatedSpool) -> None:
    told = Told(recorder)
    intent = msgspec.structs.replace(event("strict"), outcome=Outcome("intent"))
    await asyncio.gather(recorder.keep(intent), recorder.keep(event("strict")))
    assert spool._intents == {intent.id}
    told.submit(0, "strict", intent=intent.id)
    await until(lambda: told.kept == [0])
    assert spool._intents == set()


async def test_closing_seals_and_says_stop(recorder: Recorder, tmp_path: Path) -> None:
    await asyncio.gather(*(recorder.keep(event("process")) for _ in range(3)), recorder.keep(event("power")))
    await recorder.close()
    assert [kept.name for kept in show(tmp_path)][-1] == "stop"
    assert sealed(tmp_path) == 5
    with pytest.raises(Refusal):
        await recorder.keep(event("process"))


async def test_the_policy_revision_goes_into_the_headers(recorder: Recorder, spool: GatedSpool) -> None:
    recorder.policy_revision = "r9"
    assert spool.policy_revision == recorder.policy_revision == "r9"
