from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from grille.audit import chain, records
from grille.audit.encoding import decode
from grille.audit.event import Event, Outcome
from grille.audit.evidence import Report, show, verify
from grille.audit.fused import split
from grille.audit.spool import AuditUnavailable, Spool, segments

MakeEvent = Callable[..., Event]
OpenSpool = Callable[..., Spool]

WRITER = """
import os, sys, time
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grille.audit.encoding import event_id, timestamp
from grille.audit.event import Event, Outcome
from grille.audit.spool import AuditUnavailable, Spool

directory, block_events, segment_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

def event(status="ok", **fields):
    now = time.time()
    return Event(id=event_id(now), time=timestamp(now), kind="statement", name="statement", worker=0, sequence=0,
                 level="process", outcome=Outcome(status=status), **fields)

def open_spool():
    return Spool(directory, 0, key, block_events=block_events, segment_bytes=segment_bytes)
"""


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def run_writer(audit: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start another process that writes to the same chain."""
    started: list[subprocess.Popen[bytes]] = []

    def run(
        script: str, *, block_events: int = 4, segment_bytes: int = 1 << 26, directory: Path = audit
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER + script, str(directory), str(block_events), str(segment_bytes)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def check(directory: Path, key: Ed25519PrivateKey) -> Report:
    report = verify(directory, key.public_key())
    assert report.problems == ()
    return report


def headers(directory: Path) -> list[chain.Header]:
    return [
        chain.decode_header(block.header)
        for path in segments(directory)
        for record in records.scan(path.read_bytes())
        if record.kind == records.BLOCK and (block := chain.decode_block(record.payload)) is not None
    ]


def lifecycle_events(directory: Path) -> list[Event]:
    return sorted((event for event in show(directory) if event.kind == "lifecycle"), key=lambda event: event.sequence)


# Blocks


def test_the_first_block_names_the_chain_and_the_key(
    open_spool: OpenSpool, audit: Path, key: Ed25519PrivateKey
) -> None:
    spool = open_spool()
    first = headers(audit / "worker-000")[0]
    assert (first.sequence, first.previous, first.first_event) == (0, "0" * 64, 0)
    assert first.key == chain.fingerprint(key.public_key())
    assert chain.fingerprint(chain.parse_public_key((audit / "public-key.pem").read_bytes())) == first.key
    spool.close()


def test_a_block_is_sealed_when_it_has_its_number_of_events(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, key: Ed25519PrivateKey
) -> None:
    spool = open_spool(block_events=3)
    for _ in range(7):
        spool.append(make_event())
    assert [header.events for header in headers(audit / "worker-000")] == [1, 3, 3]
    spool.close()
    assert check(audit, key).events == 9


def test_a_block_is_sealed_when_it_has_had_its_time(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, clock: Any
) -> None:
    spool = open_spool(block_seconds=5)
    spool.append(make_event())
    clock.now += 4
    assert not spool.due
    spool.append(make_event())
    assert len(headers(audit / "worker-000")) == 1
    clock.now += 1
    assert spool.due
    spool.append(make_event())
    assert [header.events for header in headers(audit / "worker-000")] == [1, 2]
    spool.close()


def test_headers_say_which_times_events_and_policy_they_cover(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path
) -> None:
    spool = open_spool()
    spool.policy_revision = "r7"
    for second in (3, 1, 2):
        spool.append(make_event(time=f"2026-11-24T00:00:0{second}.000000Z"))
    spool.seal()
    header = headers(audit / "worker-000")[1]
    assert (header.t_min, header.t_max) == ("2026-11-24T00:00:01.000000Z", "2026-11-24T00:00:03.000000Z")
    assert (header.first_event, header.events, header.policy_revision) == (1, 3, "r7")
    spool.close()


def test_the_spool_numbers_the_events(open_spool: OpenSpool, make_event: MakeEvent, audit: Path) -> None:
    spool = open_spool(worker=7)
    assert [spool.append(make_event(sequence=99, worker=99)) for _ in range(3)] == [1, 2, 3]
    spool.close()
    assert [(event.worker, event.sequence) for event in show(audit)] == [(7, n) for n in range(5)]


def test_an_event_is_in_the_file_before_it_is_sealed(open_spool: OpenSpool, make_event: MakeEvent, audit: Path) -> None:
    spool = open_spool()
    spool.append(make_event(text="at once"))
    assert [event.text for event in show(audit)][-1] == "at once"
    spool.close()


def test_an_event_that_cannot_be_encoded_leaves_the_chain_whole(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, key: Ed25519PrivateKey
) -> None:
    spool = open_spool()
    with pytest.raises(ValueError):
        spool.append(make_event(application="\udfff"))
    assert spool.append(make_event()) == 1
    spool.close()
    assert check(audit, key).events == 3


# Groups


def test_a_group_is_split_where_a_block_or_a_segment_is_full(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, key: Ed25519PrivateKey
) -> None:
    spool = open_spool(block_events=3, segment_bytes=2000)
    spool.append(make_event())
    intent = make_event(outcome=Outcome("intent"))
    spool.append_encoded([split(event, 0) for event in (intent, *(make_event(text=f"{n}") for n in range(19)))])
    assert 0 < spool.pending <= 3
    assert {header.events for header in headers(audit / "worker-000")[1:]} == {3}
    spool.close()
    assert len(segments(audit / "worker-000")) > 2
    report = check(audit, key)
    kept = sorted(show(audit), key=lambda event: event.sequence)
    assert [event.text for event in kept if event.text.isdigit()] == [f"{n}" for n in range(19)]
    assert [event.sequence for event in kept] == list(range(report.events))
    assert next(event.text for event in kept if event.name == "open-intents") == intent.id


def test_a_group_of_blocks_of_one_event(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, key: Ed25519PrivateKey
) -> None:
    spool = open_spool(block_events=1, segment_bytes=1000)
    spool.append_encoded([split(make_event(outcome=Outcome("intent")), 0) for _ in range(5)])
    spool.append_encoded([])
    spool.close()
    assert check(audit, key).events > 7


def test_a_header_covers_the_times_of_a_group(open_spool: OpenSpool, make_event: MakeEvent, audit: Path) -> None:
    spool = open_spool()
    for group in ((5, 3), (9, 1, 4)):
        spool.append_encoded([split(make_event(time=f"2026-11-24T00:00:0{s}.000000Z"), 0) for s in group])
    spool.seal()
    header = headers(audit / "worker-000")[1]
    assert (header.t_min, header.t_max) == ("2026-11-24T00:00:01.000000Z", "2026-11-24T00:00:09.000000Z")
    assert (header.first_event, header.events) == (1, 5)
    spool.close()


def test_a_group_is_written_whole_or_not_at_all(
    audit: Path, key: Ed25519PrivateKey, open_spool: OpenSpool, run_writer: Callable[..., subprocess.Popen[bytes]]
) -> None:
    script = """
import resource
from grille.audit.fused import split
spool = open_spool()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for number in range(10):
    before = spool._segments[-1].size
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 100 * number, hard))  # room for some of them
    try:
        spool.append_encoded([split(event("intent", text="refused"), 0) for _ in range(6)])
    except AuditUnavailable:
        os.write(1, b"refused;")
    assert os.stat(spool._segments[-1].path).st_size == before and not spool._intents and not spool.pending
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
spool.append_encoded([split(event(text="kept"), 0) for _ in range(6)])
spool.close()
"""
    assert run_writer(script, block_events=100).communicate()[0] == b"refused;" * 10
    assert [event.text for event in show(audit) if event.kind == "statement"] == ["kept"] * 6
    assert check(audit, key).events == 8


# Runs


def test_a_new_run_continues_the_chain(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, key: Ed25519PrivateKey
) -> None:
    for _ in range(3):
        spool = open_spool()
        spool.append(make_event())
        spool.close()
    assert check(audit, key).events == 9
    assert len({header.chain for header in headers(audit / "worker-000")}) == 1
    assert [event.name for event in lifecycle_events(audit)] == ["start", "stop"] * 3


def test_workers_have_chains_of_their_own(open_spool: OpenSpool, audit: Path, key: Ed25519PrivateKey) -> None:
    spools = [open_spool(worker=worker) for worker in range(3)]
    for spool in spools:
        spool.close()
    assert len({part.head_hash for part in check(audit, key).chains}) == 3


def test_segments_follow_one_another(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, key: Ed25519PrivateKey
) -> None:
    spool = open_spool(block_events=2, segment_bytes=2000)
    for number in range(40):
        spool.append(make_event())
        if number % 8 == 0:
            spool.sync()
            assert not spool.unsynced
    spool.close()
    assert len(segments(audit / "worker-000")) > 4
    assert check(audit, key).events == 42
    open_spool().close()
    assert check(audit, key).events == 44


def test_a_chain_has_one_writer(
    open_spool: OpenSpool, audit: Path, run_writer: Callable[..., subprocess.Popen[bytes]], key: Ed25519PrivateKey
) -> None:
    spool = open_spool()
    script = """
try:
    open_spool()
except AuditUnavailable as error:
    print(error)
"""
    other = run_writer(script)
    assert b"in use by another process" in other.communicate()[0]
    with pytest.raises(AuditUnavailable, match="in use by another process"):
        open_spool()
    spool.close()
    open_spool().close()
    assert check(audit, key).events == 4


def test_a_chain_is_not_continued_with_another_key(open_spool: OpenSpool, audit: Path) -> None:
    open_spool().close()
    with pytest.raises(AuditUnavailable, match="another key"):
        open_spool(key=Ed25519PrivateKey.generate())
    (audit / "public-key.pem").unlink()
    with pytest.raises(AuditUnavailable, match="another key"):
        open_spool(key=Ed25519PrivateKey.generate())


# Crashes


def test_killed_at_any_moment_no_event_is_lost(
    audit: Path, key: Ed25519PrivateKey, open_spool: OpenSpool, run_writer: Callable[..., subprocess.Popen[bytes]]
) -> None:
    script = """
spool = open_spool()
while True:
    os.write(1, b"%d\\n" % spool.append(event()))
"""
    chance = random.Random(7)
    acknowledged: set[int] = set()
    for _ in range(5):
        writer = run_writer(script, block_events=5, segment_bytes=20_000)
        assert writer.stdout is not None
        for _ in range(chance.randrange(1, 400)):
            acknowledged.add(int(writer.stdout.readline()))
        writer.send_signal(signal.SIGKILL)
        acknowledged.update(int(line) for line in writer.stdout.read().splitlines())
        writer.wait()
        check(audit, key)  # also before the repair: what is not sealed is no tampering
    open_spool().close()
    report = check(audit, key)
    events = {event.sequence: event for event in show(audit)}
    assert len(events) == report.events
    assert {events[sequence].kind for sequence in acknowledged} == {"statement"}
    assert sum(event.name == "recovery" for event in events.values()) == 5


@pytest.mark.parametrize("cut", [1, 7, 13, 14, 15, 60])
def test_half_a_record_at_the_end_is_set_aside(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, key: Ed25519PrivateKey, cut: int
) -> None:
    spool = open_spool()
    for _ in range(3):
        spool.append(make_event())
    path = segments(audit / "worker-000")[0]
    data = path.read_bytes()
    spool.close()
    path.write_bytes(data[:-cut])
    open_spool().close()
    report = check(audit, key)
    assert report.events == 1 + 2 + 3
    [recovery] = [event for event in lifecycle_events(audit) if event.name == "recovery"]
    assert "events 1 to 2 are sealed only now" in recovery.text
    last = list(records.scan(data))[-1]
    [set_aside] = (audit / "worker-000").glob("*.cut")
    assert set_aside.read_bytes() == data[last.offset : -cut]


def test_a_cut_block_is_sealed_again(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, key: Ed25519PrivateKey
) -> None:
    spool = open_spool()
    spool.append(make_event())
    spool.seal()
    path = segments(audit / "worker-000")[0]
    data = path.read_bytes()
    spool.close()
    path.write_bytes(data[:-40])
    open_spool().close()
    assert check(audit, key).events == 5
    assert [event.name for event in lifecycle_events(audit)] == ["start", "recovery", "start", "stop"]


def test_a_crash_before_the_first_block_is_repaired(open_spool: OpenSpool, audit: Path, key: Ed25519PrivateKey) -> None:
    open_spool().close()
    path = segments(audit / "worker-000")[0]
    data = path.read_bytes()
    for end in range(0, list(records.scan(data))[1].offset + 20, 9):
        path.write_bytes(data[:end])
        open_spool().close()
        assert headers(audit / "worker-000")[0].key == chain.fingerprint(key.public_key())
        check(audit, key)


def test_a_chain_damaged_before_its_end_is_not_continued(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path
) -> None:
    spool = open_spool(block_events=2)
    for _ in range(4):
        spool.append(make_event())
    spool.close()
    path = segments(audit / "worker-000")[0]
    data = bytearray(path.read_bytes())
    data[list(records.scan(bytes(data)))[3].offset + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(AuditUnavailable, match="damaged at byte"):
        open_spool()
    assert path.read_bytes() == data


def test_an_intent_without_outcome_becomes_unknown(
    audit: Path, key: Ed25519PrivateKey, open_spool: OpenSpool, run_writer: Callable[..., subprocess.Popen[bytes]]
) -> None:
    script = """
spool = open_spool()
ids = []
for number in range(6):
    intent = event("intent", template=f"statement {number}", spiffe_id="spiffe://bank.example/a")
    ids.append(intent.id)
    spool.append(intent)
spool.append(event(intent=ids[0]))
spool.append(event("error", intent=ids[1]))
for number in range(30):
    spool.append(event())  # into later segments
spool.append(event(intent=ids[2]))
os.write(1, b"done\\n")
os.kill(os.getpid(), 9)
"""
    writer = run_writer(script, segment_bytes=2000)
    assert writer.communicate()[0] == b"done\n"
    assert len(segments(audit / "worker-000")) > 2
    for _ in range(2):
        open_spool().close()
        unknown = [event for event in show(audit) if event.outcome is not None and event.outcome.status == "unknown"]
        assert sorted(event.template for event in unknown) == ["statement 3", "statement 4", "statement 5"]
        assert {event.spiffe_id for event in unknown} == {"spiffe://bank.example/a"}
        intents = {event.id: event for event in show(audit) if event.outcome and event.outcome.status == "intent"}
        assert all(intents[event.intent].template == event.template for event in unknown)
    check(audit, key)


# Full and unwritable


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where the machine lets us have one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_refuses_and_then_recovers(
    open_spool: OpenSpool, make_event: MakeEvent, small_disk: Path, key: Ed25519PrivateKey
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(24 * 1024))
    spool = open_spool(directory=small_disk, block_events=8)
    kept = 0

    def fill() -> None:
        nonlocal kept
        while True:
            spool.append(make_event(text="x" * random.Random(kept).randrange(900)))
            kept += 1

    for _ in range(3):
        with pytest.raises(AuditUnavailable, match="No space left"):
            fill()
        with pytest.raises(AuditUnavailable):
            spool.append(make_event(text="x" * 5000))
        assert not any("half-written" in note for note in check(small_disk, key).chains[0].notes)
        os.truncate(ballast, max(0, ballast.stat().st_size - 8192))
        assert spool.append(make_event(text="there is room again"))
        kept += 1
    ballast.unlink()
    spool.close()
    assert check(small_disk, key).events == kept + 2
    assert kept > 20


def test_a_file_size_limit_leaves_no_half_record(
    audit: Path, key: Ed25519PrivateKey, open_spool: OpenSpool, run_writer: Callable[..., subprocess.Popen[bytes]]
) -> None:
    script = """
import resource
spool = open_spool()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
kept = 0
for limit in (3000, 3001, 3100, 6000, 6500):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    while True:
        try:
            spool.append(event())
        except AuditUnavailable:
            break
        kept += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
spool.append(event())
os.write(1, b"%d" % (kept + 1))
os.kill(os.getpid(), 9)
"""
    kept = int(run_writer(script).communicate()[0])
    check(audit, key)
    open_spool().close()
    assert check(audit, key).events == 1 + kept + 3
    assert not list((audit / "worker-000").glob("*.cut"))


def test_a_new_segment_that_cannot_be_written_forgets_no_intent(
    audit: Path, key: Ed25519PrivateKey, open_spool: OpenSpool, run_writer: Callable[..., subprocess.Popen[bytes]]
) -> None:
    script = """
import resource
spool = open_spool()
spool.append(event("intent", template="open"))
while len(list(directory.glob("*/*.seg"))) == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    spool.append(event())
    if spool.pending == 4:
        spool.seal()
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))  # a file may be begun, nothing written
        try:
            spool.append(event())
        except AuditUnavailable:
            os.write(1, b"refused;")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append(event())
spool.seal()
os.kill(os.getpid(), 9)
"""
    assert b"refused" in run_writer(script, segment_bytes=1000).communicate()[0]
    open_spool().close()
    unknown = [event for event in show(audit) if event.outcome is not None and event.outcome.status == "unknown"]
    assert [event.template for event in unknown] == ["open"]
    check(audit, key)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path, open_spool: OpenSpool) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditUnavailable, match="cannot be written"):
        open_spool(directory=tmp_path / "file" / "audit")


def test_a_directory_without_permission_is_refused_until_it_is_given(
    run_writer: Callable[..., subprocess.Popen[bytes]], key: Ed25519PrivateKey
) -> None:
    """At start, and later when a new segment is due; root may write anywhere, so the writer is somebody else."""
    script = """
if os.getuid() == 0:
    os.chown(directory, 65534, 65534)
    os.setuid(65534)
directory.chmod(0o500)
try:
    open_spool()
except AuditUnavailable as error:
    os.write(1, b"refused;" if "Permission denied" in str(error) else b"?;")
directory.chmod(0o700)
spool = open_spool()
while spool.append(event()) < 8:  # until the segment is full
    pass
(directory / "worker-000").chmod(0o500)
try:
    while True:
        spool.append(event())
except AuditUnavailable as error:
    os.write(1, b"refused;" if "Permission denied" in str(error) else b"?;")
(directory / "worker-000").chmod(0o700)
spool.append(event())
spool.close()
os.write(1, b"closed")
"""
    with tempfile.TemporaryDirectory() as place:  # pytest's own are closed to other users
        writer = run_writer(script, segment_bytes=1500, directory=Path(place))
        assert writer.communicate()[0] == b"refused;refused;closed"
        check(Path(place), key)


def test_a_removed_segment_stops_the_spool(open_spool: OpenSpool, make_event: MakeEvent, audit: Path) -> None:
    spool = open_spool()
    spool.append(make_event())
    segments(audit / "worker-000")[0].unlink()
    with pytest.raises(AuditUnavailable, match="was removed"):
        spool.seal()
    with pytest.raises(AuditUnavailable):
        spool.close()


def test_after_a_failed_sync_the_records_are_written_again(
    open_spool: OpenSpool, make_event: MakeEvent, audit: Path, key: Ed25519PrivateKey
) -> None:
    """No device here fails on demand: the state that a failed fdatasync leaves is set by hand."""
    spool = open_spool()
    spool.append(make_event())
    spool.seal()
    path = segments(audit / "worker-000")[0]
    whole = path.read_bytes()
    segment = spool._segments[-1]
    segment.sync_failed = True
    spool.sync()
    assert (path.read_bytes(), segment.synced, segment.sync_failed) == (whole, len(whole), False)
    spool.append(make_event())
    segment.sync_failed = True
    os.pwrite(segment.descriptor, bytes(40), segment.synced)  # the kernel has let go of the pages
    with pytest.raises(AuditUnavailable, match="cannot be synced"):
        spool.sync()
    with pytest.raises(AuditUnavailable):
        spool.close()


def test_what_is_stored_of_an_event_is_its_encoding(open_spool: OpenSpool, make_event: MakeEvent, audit: Path) -> None:
    spool = open_spool()
    event = make_event(outcome=Outcome(status="denied", sqlstate="42501"))
    spool.append(event)
    spool.close()
    stored = list(records.scan(segments(audit / "worker-000")[0].read_bytes()))[2]
    assert decode(stored.payload) == msgspec.structs.replace(event, sequence=1)
