"""The spool: one worker's chain on disk, written as events happen.

A chain is a directory of append-only segment files.  An event is a record in the page cache when ``append`` returns, so
it survives the end of the process; the block that seals it follows, and ``sync`` makes both survive a power cut.  A
failed write is cut off again, so a full disk never leaves half a record, and the spool works again once there is room.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from grille.audit import chain, records
from grille.audit.chain import Header
from grille.audit.encoding import decode, event_id, lifecycle
from grille.audit.event import Event, Outcome
from grille.audit.fused import Entry, frame_events, intent_id, split
from grille.audit.records import Record

PUBLIC_KEY_FILE: Final = "public-key.pem"
"""A convenience beside the chains; what is verified should be verified with a key kept elsewhere."""

_EPOCH: Final = 1


class AuditUnavailable(Exception):
    """The event, block or sync could not be written.  The message is for operators, never for agents."""


class _Segment:
    """One open segment file: how far it is written, and how far that has been synced."""

    __slots__ = ("descriptor", "path", "size", "sync_failed", "synced")

    def __init__(self, path: Path, *, create: bool) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        self.path = path
        self.descriptor = os.open(path, flags, 0o640)
        self.size = 0 if create else os.fstat(self.descriptor).st_size
        self.synced = self.size
        self.sync_failed = False


def segments(directory: Path) -> list[Path]:
    """The segment files of a chain's directory, in order."""
    return sorted(directory.glob("*.seg"))


def chain_directory(directory: Path, worker: int) -> Path:
    """Where a worker's chain lives below the audit directory."""
    return directory / f"worker-{worker:03d}"


class Spool:
    """One worker's chain, open for writing.

    ``append`` and ``seal`` belong to one thread; ``sync`` may run in another at the same time.
    """

    def __init__(
        self,
        directory: Path,
        worker: int,
        key: Ed25519PrivateKey,
        *,
        block_events: int = 1024,
        block_seconds: float = 0.005,
        segment_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin the worker's chain, or resume it where it ended.

        ``directory`` is the audit directory, ``clock`` gives seconds since 1970.  A run that did not end with ``close``
        is repaired: half a record at the end is cut, whole events are sealed, intents without an outcome get the
        outcome ``unknown``, and a ``recovery`` event says so.  Raises AuditUnavailable if the directory cannot be
        written, the chain is in use, was begun with another key, or is damaged before its end.
        """
        self.worker = worker
        self.policy_revision = ""
        """Revision of the policy bundle in force, for the headers of blocks to come."""
        self._key = key
        self._block_events = block_events
        self._block_seconds = block_seconds
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._directory = chain_directory(directory, worker)
        self._chain = os.urandom(16).hex()
        self._sequence = 0  # of the next block
        self._previous = chain.FIRST_PREVIOUS
        self._next_event = 0
        self._leaves: list[bytes] = []  # of the events not yet sealed
        self._t_min = ""
        self._t_max = ""
        self._oldest = 0.0  # when the first of them was appended
        self._intents: set[str] = set()  # ids of intents without an outcome
        self._segments: list[_Segment] = []  # the last is written, the others are full and not yet synced
        self._new_files = True  # the directory itself is to be synced
        self._half_record = False  # a failed write is still to be cut off
        try:
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise AuditUnavailable(f"{self._directory} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._publish_key(directory / PUBLIC_KEY_FILE)
            self._resume()
        except BlockingIOError:
            self._release()
            raise AuditUnavailable(f"{self._directory} is in use by another process") from None
        except OSError as error:
            self._release()
            raise AuditUnavailable(f"{self._directory} cannot be written: {error.strerror}") from None
        except AuditUnavailable:
            self._release()
            raise

    @property
    def pending(self) -> int:
        """Events that are written but not yet in a sealed block."""
        return len(self._leaves)

    @property
    def unsynced(self) -> bool:
        """Whether a full segment waits for ``sync``, which also closes it."""
        return len(self._segments) > 1

    @property
    def due(self) -> bool:
        """Whether the block under way has had its time."""
        return bool(self._leaves) and self._clock() - self._oldest >= self._block_seconds

    @property
    def lag(self) -> float:
        """Age in seconds of the oldest event that is not yet sealed; 0.0 if there is none."""
        return max(0.0, self._clock() - self._oldest) if self._leaves else 0.0

    def append(self, event: Event) -> int:
        """Write one event and return its sequence; ``event.sequence`` and ``event.worker`` are set here.

        The event survives the end of the process from here on.  Raises AuditUnavailable if it could not be written, and
        then nothing of it is left; ValueError or TypeError if it cannot be encoded.
        """
        self.append_encoded([split(event, self.worker)])
        return self._next_event - 1

    def append_encoded(self, entries: Sequence[Entry]) -> None:
        """Write events, in this order and with one write; see `fused.Entry`.

        The events survive the end of the process from here on.  Raises AuditUnavailable if they could not be written,
        and then nothing of them is left, but where they are more than the block under way has room for: then those that
        filled it may stay.  ValueError if one is larger than a record may be.
        """
        done = 0
        while done < len(entries):
            self._make_room()
            part = entries[done : done + max(1, self._block_events - len(self._leaves))]
            self._append(part)
            done += len(part)

    def _make_room(self) -> None:
        """End the block and the segment that are full."""
        if len(self._leaves) >= self._block_events or self.due:
            self.seal()
        if not self._leaves and self._segments[-1].size >= self._segment_bytes:
            self._rotate()
        if self._intents and not self._segments[-1].size:
            # So that a restart need read no further back than the segment of the last block.
            text = " ".join(sorted(self._intents))
            self._append_own(lifecycle("open-intents", text, self._clock(), worker=self.worker, level="process"))

    def _append_own(self, event: Event) -> None:
        self._append([split(event, self.worker)])

    def _append(self, entries: Sequence[Entry]) -> None:
        data, leaves = frame_events(entries, self._next_event)
        self._write(data)
        self._note(leaves, [entry[2] for entry in entries])
        for _, _, _, completed, intent in entries:
            if completed or intent:
                self._note_intent(completed, intent)

    def _note(self, leaves: list[bytes], times: list[str]) -> None:
        """Take events that are written into the block under way."""
        if not self._leaves:
            self._oldest = self._clock()
            self._t_min = self._t_max = times[0]
        self._t_min = min(self._t_min, *times)
        self._t_max = max(self._t_max, *times)
        self._leaves += leaves
        self._next_event += len(leaves)

    def _note_intent(self, completed: str, intent: str) -> None:
        if completed:
            self._intents.discard(completed)
        elif intent:
            self._intents.add(intent)

    def seal(self) -> None:
        """Sign and write the block of the events not yet sealed, if there are any.

        Raises AuditUnavailable if it could not be written; the events stay and are sealed with the next block.
        """
        if not self._leaves:
            return
        if os.fstat(self._segments[-1].descriptor).st_nlink == 0:
            raise AuditUnavailable(f"{self._segments[-1].path} was removed")
        header = Header(
            chain=self._chain,
            worker=self.worker,
            epoch=_EPOCH,
            sequence=self._sequence,
            events=len(self._leaves),
            first_event=self._next_event - len(self._leaves),
            previous=self._previous,
            root=chain.merkle_root(self._leaves).hex(),
            t_min=self._t_min,
            t_max=self._t_max,
            policy_revision=self.policy_revision,
            key=chain.fingerprint(self._key.public_key()) if self._sequence == 0 else "",
        )
        block = chain.seal(header, self._leaves, self._key)
        self._write(records.frame(records.BLOCK, chain.encode_block(block)))
        self._previous = chain.header_hash(block.header)
        self._sequence += 1
        self._leaves = []

    def sync(self) -> None:
        """Make everything that was written before the call survive a power cut (fdatasync).

        Raises AuditUnavailable if the device refuses; call again to retry.
        """
        written = list(self._segments)  # the other thread may add one meanwhile; what it holds came after the call
        try:
            for segment in written:
                _sync(segment)
            for full in written[:-1]:
                self._segments.remove(full)
                os.close(full.descriptor)
            if self._new_files:
                _sync_directory(self._directory)
                _sync_directory(self._directory.parent)
                self._new_files = False
        except OSError as error:
            raise AuditUnavailable(f"{written[-1].path} cannot be synced: {error.strerror}") from None

    def close(self) -> None:
        """Write a ``stop`` event, seal, sync and let go of the chain.

        Raises AuditUnavailable if that could not be written; the files are closed all the same.
        """
        try:
            self.append(lifecycle("stop", "stopped", self._clock(), worker=self.worker, level="power"))
            self.seal()
            self.sync()
        finally:
            self._release()

    def _release(self) -> None:
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()
        os.close(self._lock)

    # Writing

    def _write(self, data: bytes) -> None:
        """Write one whole record at the end of the segment, or leave the segment as it was."""
        segment = self._segments[-1]
        try:
            if self._half_record:
                self._cut_half_record()
            self._half_record = True
            written = os.pwrite(segment.descriptor, data, segment.size)
            while written < len(data):
                written += os.pwrite(segment.descriptor, data[written:], segment.size + written)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._cut_half_record()
            raise AuditUnavailable(f"{segment.path} cannot be written: {error.strerror}") from None
        self._half_record = False
        segment.size += len(data)

    def _cut_half_record(self) -> None:
        if self._half_record:
            os.ftruncate(self._segments[-1].descriptor, self._segments[-1].size)
            self._half_record = False

    def _rotate(self) -> None:
        """Go on in a new segment."""
        full = self._segments[-1]
        try:
            self._cut_half_record()
        except OSError as error:
            raise AuditUnavailable(f"{full.path} cannot be written: {error.strerror}") from None
        self._create_segment()

    def _create_segment(self) -> None:
        path = self._directory / f"{self._sequence:012d}.seg"
        try:
            self._segments.append(_Segment(path, create=True))
        except OSError as error:
            raise AuditUnavailable(f"{path} cannot be created: {error.strerror}") from None
        self._new_files = True

    def _publish_key(self, path: Path) -> None:
        pem = chain.public_pem(self._key.public_key())
        if path.exists():
            if path.read_bytes() != pem:
                raise AuditUnavailable(f"{path} is another key's: the chains here were begun with that one")
            return
        # Another worker may write the same bytes at the same time.
        partial = path.with_name(f".{path.name}.{self.worker}")
        partial.write_bytes(pem)
        partial.replace(path)

    # Resuming

    def _resume(self) -> None:
        paths = segments(self._directory)
        tail: list[tuple[Path, Record]] = []
        for path in reversed(paths):  # back to the last block; usually it is in the last segment
            tail = [(path, record) for record in records.scan(path.read_bytes())] + tail
            if _last_block(tail) >= 0:
                break
        last_block = _last_block(tail)
        if last_block >= 0:
            self._take_up(tail[last_block][1])
        first = self._next_event
        last: Event | None = None
        cut = b""
        for index, (path, record) in enumerate(tail):
            if not record.intact:  # a killed run leaves this at the very end, and nowhere else
                if index < last_block or path != paths[-1]:
                    raise _damaged(path, record)
                cut = self._set_aside(path, record.offset)
                break
            if record.kind == records.EVENT:
                try:
                    last = decode(record.payload)
                except msgspec.DecodeError:
                    raise _damaged(path, record) from None
                if last.kind == "lifecycle" and last.name == "open-intents":
                    self._intents.update(last.text.split())
                if index < last_block:
                    self._note_intent(last.intent, intent_id(last))
                elif last.sequence == self._next_event:
                    self._note([chain.leaf_hash(record.payload)], [last.time])
                    self._note_intent(last.intent, intent_id(last))
                else:
                    raise _damaged(path, record)
        if paths:
            self._segments.append(_Segment(paths[-1], create=False))
            self._segments[-1].synced = 0  # what the previous run wrote may not be on the device yet
        else:
            self._create_segment()
        orderly = last is None or (last.kind == "lifecycle" and last.name == "stop" and not self._leaves)
        self._begin("" if orderly and not cut else self._describe_recovery(first, cut))

    def _take_up(self, record: Record) -> None:
        """Continue after this block."""
        block = chain.decode_block(record.payload)
        if block is None or not chain.signed(block.header, block.signature, self._key.public_key()):
            raise AuditUnavailable(f"{self._directory}: the last block is damaged or signed by another key")
        header = chain.decode_header(block.header)
        self._chain = header.chain
        self._sequence = header.sequence + 1
        self._previous = chain.header_hash(block.header)
        self._next_event = header.first_event + header.events
        self.policy_revision = header.policy_revision

    def _set_aside(self, path: Path, offset: int) -> bytes:
        """Cut a segment after its last whole record; what is cut is kept beside it, since it may be evidence."""
        cut = path.read_bytes()[offset:]
        path.with_suffix(f".{offset}.cut").write_bytes(cut)
        os.truncate(path, offset)
        return cut

    def _describe_recovery(self, first: int, cut: bytes) -> str:
        text = "the previous run did not stop in order"
        if self._leaves:
            text += f"; events {first} to {self._next_event - 1} are sealed only now"
        if cut:
            text += f"; {len(cut)} bytes after the last whole record were set aside, SHA-256 "
            text += hashlib.sha256(cut).hexdigest()
        if self._intents:
            text += f"; {len(self._intents)} intents have no known outcome"
        return text

    def _begin(self, recovery: str) -> None:
        """Write what the new run begins with, sealed and synced."""
        now = self._clock()
        if recovery:
            self._append_own(lifecycle("recovery", recovery, now, worker=self.worker, level="power"))
        for intent in self._find(self._intents):
            self._append_own(
                msgspec.structs.replace(
                    intent, id=event_id(now), intent=intent.id, outcome=Outcome(status="unknown"), level="power"
                )
            )
        text = f"{'continues' if self._sequence else 'begins'} chain {self._chain}"
        self._append_own(lifecycle("start", text, now, worker=self.worker, level="power"))
        self.seal()
        self.sync()

    def _find(self, ids: set[str]) -> list[Event]:
        """The intents of these ids, read back from the segments."""
        found: dict[str, Event] = {}
        for path in reversed(segments(self._directory)):
            if len(found) == len(ids):
                break
            for record in records.scan(path.read_bytes()):
                if record.kind == records.EVENT and b'"intent"' in record.payload:
                    event = decode(record.payload)
                    if event.id in ids:
                        found[event.id] = event
        return [found[id] for id in sorted(found)]


def _last_block(tail: list[tuple[Path, Record]]) -> int:
    """Index of the last whole block, or -1."""
    for index in range(len(tail) - 1, -1, -1):
        if tail[index][1].kind == records.BLOCK and tail[index][1].intact:
            return index
    return -1


def _damaged(path: Path, record: Record) -> AuditUnavailable:
    return AuditUnavailable(f"{path} is damaged at byte {record.offset}: run grille audit verify")


def _sync(segment: _Segment) -> None:
    end = segment.size
    if segment.synced == end and not segment.sync_failed:
        return
    try:
        if segment.sync_failed:
            _write_again(segment, end)
        os.fdatasync(segment.descriptor)
    except OSError:
        segment.sync_failed = True
        raise
    segment.sync_failed = False
    segment.synced = end


def _write_again(segment: _Segment, end: int) -> None:
    """After a failed fdatasync the kernel may hold the pages as clean; a second one alone would prove nothing."""
    data = os.pread(segment.descriptor, end - segment.synced, segment.synced)
    if len(data) != end - segment.synced or not all(record.intact for record in records.scan(data)):
        raise OSError(0, "written records are lost")
    os.pwrite(segment.descriptor, data, segment.synced)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
