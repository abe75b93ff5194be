"""Reading the chains back: are they what was written, and what do they tell.

``verify`` trusts nothing but the public key.  A cut end is the one thing that a chain cannot show by itself: that takes
a head, taken earlier with ``write_head`` and kept elsewhere.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from grille.audit import chain, records
from grille.audit.chain import Block, Header
from grille.audit.encoding import decode, encode
from grille.audit.encoding import reveals as reveals
from grille.audit.event import Event, Outcome
from grille.audit.records import Record
from grille.audit.spool import PUBLIC_KEY_FILE, chain_directory, segments


class Problem(msgspec.Struct, frozen=True):
    """One place where the evidence is not what was written."""

    block: int | None
    """Sequence of the block, None if it lies in none."""
    event: int | None
    """Sequence of the event, None if it lies in none."""
    reason: str
    path: Path
    offset: int = 0
    """Byte of the file at which the record in question begins."""


class ChainReport(msgspec.Struct, frozen=True):
    """What was found in one chain."""

    directory: Path
    worker: int | None
    events: int
    blocks: int
    head_sequence: int
    """Sequence of the last block, -1 if there is none."""
    head_hash: str
    known_to: int | None
    """Sequence of the block that the given head names, if the chain holds it; nothing up to there was cut."""
    notes: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """What ``verify`` found; no problems means that all sealed events are as they were written."""

    chains: tuple[ChainReport, ...]
    problems: tuple[Problem, ...]

    @property
    def events(self) -> int:
        """Events in sealed blocks."""
        return sum(part.events for part in self.chains)

    @property
    def blocks(self) -> int:
        """Sealed blocks."""
        return sum(part.blocks for part in self.chains)


class SignedHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last header of one chain with its signature: proof, elsewhere, of how far the chain had come."""

    chain: str
    worker: int
    sequence: int
    header_hash: str
    header: str
    """The header's bytes, which are JSON."""
    signature: str
    """Hexadecimal."""


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The heads of all chains of a directory."""

    heads: tuple[SignedHead, ...]


class _Sequence(msgspec.Struct):
    """The one field of an event that ``verify`` reads."""

    sequence: int


_SEQUENCE_DECODER: Final = msgspec.json.Decoder(_Sequence)


class NoEvidence(Exception):
    """The directory holds no chain, or a file given is not what it should be."""


def chain_directories(directory: Path) -> list[Path]:
    """The chains below an audit directory, or the directory itself if it is one; raises NoEvidence if there is none."""
    if not directory.is_dir():
        raise NoEvidence(f"{directory} is not a directory")
    if segments(directory):
        return [directory]
    found = [path for path in sorted(directory.iterdir()) if path.is_dir() and segments(path)]
    if not found:
        raise NoEvidence(f"{directory} holds no chain (no *.seg files, nor directories with any)")
    return found


# Verifying


def verify(directory: Path, public_key: Ed25519PublicKey, head: Head | None = None) -> Report:
    """Check every byte of every chain below ``directory`` against the public key, and against a head if one is given.

    Raises NoEvidence if there is no chain, OSError if a file cannot be read.
    """
    problems: list[Problem] = []
    pem = _public_key_path(directory)
    if pem.exists() and pem.read_bytes() != chain.public_pem(public_key):
        problems.append(Problem(None, None, f"{pem.name} is not the key that was used", pem))
    heads: dict[str, SignedHead] = {}
    for part in head.heads if head is not None else ():
        data = part.header.encode()
        header = _header(data)
        if (
            header is None
            or not chain.signed(data, _hexadecimal(part.signature), public_key)
            or (header.chain, header.worker, header.sequence) != (part.chain, part.worker, part.sequence)
            or chain.header_hash(data) != part.header_hash
        ):
            problems.append(Problem(part.sequence, None, "the head is not signed with this key", directory))
        else:
            heads[part.chain] = part
    reports = []
    for path in chain_directories(directory):
        walk = _Walk(path, public_key, heads)
        walk.run()
        wanted = heads.pop(walk.chain, None)
        reports.append(walk.report(wanted.sequence if wanted is not None else None))
        problems += walk.problems
        if path != directory and walk.worker is not None and path != chain_directory(directory, walk.worker):
            problems.append(Problem(0, None, f"the chain of worker {walk.worker} is in another's place", path))
    problems += [
        Problem(missing.sequence, None, f"the chain of worker {missing.worker} that the head names is gone", directory)
        for missing in heads.values()
    ]
    return Report(chains=tuple(reports), problems=tuple(problems))


class _Walk:
    """One pass over a chain: events gather until their block comes, and are judged by it."""

    def __init__(self, directory: Path, public_key: Ed25519PublicKey, heads: dict[str, SignedHead]) -> None:
        self.problems: list[Problem] = []
        self.chain = ""
        self._directory = directory
        self._public_key = public_key
        self._heads = heads
        self._path = directory
        self.worker: int | None = None
        self._expected = 0
        self._previous: str | None = chain.FIRST_PREVIOUS  # None: the block before was not readable
        self._next_event: int | None = 0
        self._gathered: list[Record] = []
        self._events = 0
        self._blocks = 0
        self._last = (-1, "")
        self._first_in_file = False
        self._notes: list[str] = []

    def run(self) -> None:
        paths = segments(self._directory)
        for path in paths:
            self._path = path
            self._first_in_file = True
            for record in records.scan(path.read_bytes()):
                if record.kind == records.BLOCK:
                    self._block(record)
                elif record.kind == records.TORN and path == paths[-1]:
                    self._notes.append(f"{len(record.payload)} bytes of a half-written record end the chain")
                else:
                    self._gathered.append(record)
        self._end()
        cut = sorted(path.name for path in self._directory.glob("*.cut"))
        if cut:
            self._notes.append(f"set aside after a crash, see the recovery events: {', '.join(cut)}")

    def report(self, known_to: int | None) -> ChainReport:
        return ChainReport(
            directory=self._directory,
            worker=self.worker,
            events=self._events,
            blocks=self._blocks,
            head_sequence=self._last[0],
            head_hash=self._last[1],
            known_to=known_to,
            notes=tuple(self._notes),
        )

    def _problem(self, block: int, event: int | None, reason: str, record: Record | None) -> None:
        offset = record.offset if record is not None else 0
        self.problems.append(Problem(block, event, reason, self._path, offset))

    def _block(self, record: Record) -> None:
        gathered, self._gathered = self._gathered, []
        first_in_file, self._first_in_file = self._first_in_file, False
        block = chain.decode_block(record.payload)
        header = _header(block.header) if block is not None else None
        if block is None or header is None or not chain.signed(block.header, block.signature, self._public_key):
            self._problem(self._expected, None, "the block's header or signature was altered", record)
            self._expected += 1
            self._previous = None
            self._next_event = None
            return
        if self.chain and header.chain != self.chain:
            self._problem(self._expected, None, "a block of another chain was put here", record)
            return
        if header.sequence < self._expected:
            self._problem(header.sequence, None, "the block is repeated or out of order", record)
            return
        found = len(self.problems)
        if header.sequence > self._expected:
            before, gathered = gathered[: -header.events], gathered[-header.events :]
            damaged = any(part.kind == records.DAMAGED for part in before)
            reason = "the block's record was altered" if damaged else "the block is missing or out of order"
            self._problem(self._expected, None, reason, before[-1] if before else record)
        elif self._previous is not None and header.previous != self._previous:
            self._problem(header.sequence, None, "the block does not follow the one before it", record)
        elif self._next_event is not None and header.first_event != self._next_event:
            self._problem(header.sequence, None, "the events of the block are numbered wrongly", record)
        elif header.sequence == 0 and header.key != chain.fingerprint(self._public_key):
            self._problem(0, None, "the first block names another key", record)
        self._judge(record, block, header, gathered)
        if len(self.problems) == found:
            if not record.intact:
                self._problem(header.sequence, None, "the checksum of the block's record was altered", record)
            elif first_in_file and self._path.stem != f"{header.sequence:012d}":
                self._problem(header.sequence, None, "the segment file was renamed", record)
        self.chain = header.chain
        self.worker = header.worker
        self._expected = header.sequence + 1
        self._previous = chain.header_hash(block.header)
        self._next_event = header.first_event + header.events
        self._blocks += 1
        self._events += header.events
        self._last = (header.sequence, self._previous)
        head = self._heads.get(header.chain)
        if head is not None and head.sequence == header.sequence and head.header_hash != self._previous:
            self._problem(header.sequence, None, "the block is not the one that the head names", record)

    def _judge(self, record: Record, block: Block, header: Header, gathered: list[Record]) -> None:
        """Compare the events found with the leaf hashes stored, and those with the root signed."""
        actual = [chain.leaf_hash(part.payload) if part.kind == records.EVENT else None for part in gathered]
        stored = list(block.leaves)
        root = bytes.fromhex(header.root)
        if len(stored) != header.events:
            self._problem(header.sequence, None, "the block has too few or too many leaf hashes", record)
            return
        if chain.merkle_root(stored) != root:
            leaves = [leaf for leaf in actual if leaf is not None]
            if len(leaves) == len(actual) == len(stored) and chain.merkle_root(leaves) == root:
                place = _difference(actual, stored)
                self._problem(header.sequence, header.first_event + place, "the event's leaf hash was altered", record)
            else:
                self._problem(header.sequence, None, "the block's leaf hashes were altered", record)
            return
        if actual != stored:
            place = _difference(actual, stored)
            at = gathered[place] if place < len(gathered) else record
            number, reason = _diagnose(actual, stored, place)
            self._problem(header.sequence, header.first_event + number, reason, at)
            return
        for number, part in enumerate(gathered, header.first_event):
            if not part.intact:
                self._problem(header.sequence, number, "the checksum of the event's record was altered", part)
                return
            if _SEQUENCE_DECODER.decode(part.payload).sequence != number:
                self._problem(header.sequence, number, "the event carries another sequence", part)
                return

    def _end(self) -> None:
        """Judge what follows the last block."""
        for number, part in enumerate(self._gathered):
            if not part.intact:
                sealed = part.kind != records.EVENT or self._next_event is None
                event = None if sealed else (self._next_event or 0) + number
                self._problem(self._expected, event, "a record after the last whole block was altered", part)
                break
        if self._gathered:
            self._notes.append(f"{len(self._gathered)} events after the last block are not sealed yet")
        head = self._heads.get(self.chain)
        if head is not None and head.sequence > self._last[0]:
            self._problem(self._last[0] + 1, None, f"the chain is cut: the head names block {head.sequence}", None)


def _header(data: bytes) -> Header | None:
    try:
        return chain.decode_header(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _hexadecimal(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _difference(actual: list[bytes | None], stored: list[bytes]) -> int:
    """The first place where the two differ."""
    for place, (one, other) in enumerate(zip(actual, stored, strict=False)):
        if one != other:
            return place
    return min(len(actual), len(stored))


def _diagnose(actual: list[bytes | None], stored: list[bytes], place: int) -> tuple[int, str]:
    """Which event of the block was touched, counted from 0, and how."""
    if len(actual) > len(stored):
        leaf = actual[place]
        if leaf in stored:
            return stored.index(leaf), "the event is repeated"
        return place, "an event was inserted before this one"
    if len(actual) < len(stored):
        return place, "the event is missing"
    if set(actual) == set(stored):
        return place, "the event is out of order"
    return place, "the event was altered"


# Heads and keys


def write_head(directory: Path, out: Path) -> Head:
    """Write the signed last header of each chain to a file, to be kept elsewhere.

    Raises NoEvidence if there is no chain or one has no block yet, OSError if the file cannot be written.
    """
    heads = []
    for path in chain_directories(directory):
        block = _last_block(path)
        header = _header(block.header) if block is not None else None
        if block is None or header is None:
            raise NoEvidence(f"{path} holds no sealed block")
        heads.append(
            SignedHead(
                chain=header.chain,
                worker=header.worker,
                sequence=header.sequence,
                header_hash=chain.header_hash(block.header),
                header=block.header.decode(),
                signature=block.signature.hex(),
            )
        )
    head = Head(heads=tuple(heads))
    out.write_bytes(msgspec.json.format(msgspec.json.encode(head), indent=2) + b"\n")
    return head


def read_head(path: Path) -> Head:
    """The head in a file; raises NoEvidence if it holds none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Head)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NoEvidence(f"{path} is not a head: {error}") from None


def _last_block(directory: Path) -> Block | None:
    for path in reversed(segments(directory)):
        for record in reversed(list(records.scan(path.read_bytes()))):
            if record.kind == records.BLOCK and record.intact:
                return chain.decode_block(record.payload)
    return None


def _public_key_path(directory: Path) -> Path:
    """Where the writer left its public key: in the audit directory, also for one chain's directory."""
    path = directory / PUBLIC_KEY_FILE
    return path if path.exists() or not segments(directory) else directory.parent / PUBLIC_KEY_FILE


# Telling


def show(
    directory: Path,
    *,
    agent: str | None = None,
    decision: str | None = None,
    relation: str | None = None,
    since: str | None = None,
    until: str | None = None,
    chain: str | None = None,
) -> Iterator[Event]:
    """Events in the order of time, those that match every filter given.  Nothing is verified.

    ``agent``: a SPIFFE id, or all below it with ``/*`` at the end.  ``decision``: ``allow``, ``deny`` or a control.
    ``relation``: with or without schema.  ``since`` and ``until``: RFC 3339, UTC unless they say otherwise, both
    inclusive.  ``chain``: prompt id, trace id or tool of the agent's call chain.  Raises NoEvidence if there is no
    chain, ValueError for a bad time.
    """
    earliest = instant(since) if since is not None else ""
    latest = instant(until) if until is not None else "~"

    def wanted(event: Event) -> bool:
        return (
            (agent is None or _is_agent(event.spiffe_id, agent))
            and (decision is None or _decided(event, decision))
            and (relation is None or any(_names(used.name, relation) for used in event.relations))
            and earliest <= event.time <= latest
            and (chain is None or _in_chain(event, chain))
        )

    parts = [filter(wanted, _events(path)) for path in chain_directories(directory)]
    return heapq.merge(*parts, key=lambda event: event.time)


def story(events: Iterable[Event]) -> str:
    """What happened, told from the prompt to the rows, for each call chain among these events."""
    told: dict[tuple[str, str, str], list[Event]] = {}
    for event in events:
        trace = _trace_id(event)
        told.setdefault((event.chain.prompt_id or "", trace, event.spiffe_id), []).append(event)
    return "\n\n".join(_tell(group) for group in told.values())


def _events(directory: Path) -> Iterator[Event]:
    for path in segments(directory):
        for record in records.scan(path.read_bytes()):
            if record.kind == records.EVENT and record.intact:
                yield decode(record.payload)


def instant(text: str) -> str:
    """A time (RFC 3339, UTC unless it says otherwise) as events have it.  Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _is_agent(spiffe_id: str, wanted: str) -> bool:
    return spiffe_id.startswith(wanted[:-1]) if wanted.endswith("/*") else spiffe_id == wanted


def _decided(event: Event, decision: str) -> bool:
    if event.verdict is None:
        return False
    if decision in ("allow", "deny"):
        return event.verdict.allow == (decision == "allow")
    return event.verdict.control == decision


def _names(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith("." + wanted)


def _trace_id(event: Event) -> str:
    """Trace id of the W3C traceparent, or ""."""
    parts = (event.chain.traceparent or "").split("-")
    return parts[1] if len(parts) == 4 else ""


def _in_chain(event: Event, wanted: str) -> bool:
    known = event.chain
    return wanted in (known.prompt_id, known.traceparent, known.tool) or wanted == _trace_id(event)


def plain(text: str) -> str:
    """Text that was chosen by an agent, made harmless for a terminal."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _answer(event: Event) -> str:
    """What came back, in words."""
    outcome = event.outcome
    if outcome is None:
        return event.text
    if event.protocol == "mq" and outcome.status in ("ok", "denied", "error"):
        return _queue_answer(event.action, outcome)
    if outcome.status == "denied":
        return f"nothing was answered but the refusal, SQLSTATE {outcome.sqlstate or 'none'}"
    if outcome.status == "error":
        return f"the server refused it, SQLSTATE {outcome.sqlstate}: {outcome.error}"
    if outcome.status == "intent":
        return "about to be sent; the outcome follows"
    if outcome.status == "unknown":
        return "the outcome is not known"
    answer = f"{outcome.tag}: {outcome.rows} rows, {outcome.bytes} bytes"
    if outcome.encoded or outcome.decoded:
        answer += f", {outcome.encoded} values tokenized, {outcome.decoded} tokens decoded"
    return answer


def _queue_answer(action: str, outcome: Outcome) -> str:
    """What came back of a call of IBM MQ, in words."""
    if action == "quarantine":
        return "the message was moved to quarantine, and the client got the next one"
    if outcome.status != "ok":
        who = "nothing was done; the client was told" if outcome.status == "denied" else "the queue manager refused it:"
        return f"{who} MQRC {outcome.reason}" + (f" ({outcome.error})" if outcome.error else "")
    if not outcome.rows:
        return f"MQRC {outcome.reason}" if outcome.reason else "done"
    answer = f"{outcome.rows} message, {outcome.bytes} bytes"
    if outcome.encoded or outcome.decoded:
        answer += f", {outcome.encoded} values tokenized, {outcome.decoded} tokens decoded"
    return answer


def _line(event: Event) -> str:
    """One event on one line."""
    parts = [event.time, event.spiffe_id or "-", event.name]
    if event.verdict is not None:
        parts.append(f"{'ALLOWED' if event.verdict.allow else 'DENIED'} {event.verdict.control}".rstrip())
    if event.template:
        parts.append(event.template)
    parts.append(_answer(event))
    return plain("  ".join(part for part in parts if part))


def _tell(events: list[Event]) -> str:
    first = events[0]
    known = first.chain
    facts = [
        ("prompt", known.prompt_id),
        ("trace", _trace_id(first)),
        ("agent says", known.agent),
        (
            "identity",
            f"{first.spiffe_id or 'none'} (verified, certificate {first.certificate_sha256[:16] or 'unknown'})",
        ),
        *sorted(known.other.items()),
    ]
    lines = [
        f"Call chain ({known.trust}, from the {known.source})" if known.source != "none" else "No call chain given"
    ]
    lines += [f"  {name:<11} {plain(value)}" for name, value in facts if value]
    for number, event in enumerate(events, 1):
        lines += ["", f"  {number}. {event.time}  {plain(event.name)}, event {event.worker}/{event.sequence}"]
        if event.chain.tool or event.chain.handler:
            by = f" (handler {plain(event.chain.handler)})" if event.chain.handler else ""
            lines.append(f"     tool      {plain(event.chain.tool or '-')}{by}")
        if event.template:
            lines.append(f"     {'call' if event.protocol == 'mq' else 'SQL':<9} {plain(event.template)}")
        elif event.statement_bytes:
            lines.append(f"     SQL       not understood, {event.statement_bytes} bytes")
        for used in event.relations:
            lines.append(f"     {used.access:<9} {plain(used.name)} ({plain(', '.join(used.columns))})")
            lines += [f"               {plain(name)}: {plain(given)}" for name, given in used.sensitive.items()]
        if event.verdict is not None:
            word = "allowed" if event.verdict.allow else "DENIED"
            lines.append(f"     {word:<9} by {plain(event.verdict.control)}: {plain(event.verdict.reason)}")
            lines.append(f"               decision {plain(event.verdict.id)}, policy {event.verdict.revision or '-'}")
        lines.append(f"     answer    {plain(_answer(event))}")
    return "\n".join(lines)


# Commands


def verify_command(directory: Path, head: Path | None = None, public_key: Path | None = None) -> int:
    """``grille audit verify``: the last line says ``verified`` or ``tampered``; 0, 1, or 2 if it cannot be done."""
    try:
        chain_directories(directory)
        path = public_key or _public_key_path(directory)
        try:
            key = chain.parse_public_key(path.read_bytes())
        except OSError as error:
            raise NoEvidence(f"{path} cannot be read: {error.strerror}; give one with --public-key") from None
        except ValueError as error:
            if public_key is not None:
                raise NoEvidence(f"{path} is {error}") from None
            return _say_tampered(Problem(None, None, f"{path.name} is {error}", path))
        origin = "given" if public_key else "found beside the evidence: compare the fingerprint with one kept elsewhere"
        _say(f"public key: {path} ({origin})")
        _say(f"fingerprint: SHA-256 {chain.fingerprint(key)}")
        report = verify(directory, key, read_head(head) if head is not None else None)
    except (NoEvidence, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for part in report.chains:
        state = "UNVERIFIED: a cut end shows only against a head" if part.known_to is None else ""
        state = state or f"compared with the head given, block {part.known_to}"
        _say(f"worker {part.worker}: events={part.events} blocks={part.blocks} head={part.head_sequence} ({state})")
        _say(f"  head hash {part.head_hash}")
        for note in part.notes:
            _say(f"  {note}")
    if not report.problems:
        _say(f"verified events={report.events} blocks={report.blocks}")
        return 0
    for problem in report.problems[1:]:
        _say(f"also: {_describe(problem)}")
    return _say_tampered(report.problems[0])


def show_command(
    directory: Path,
    *,
    agent: str | None = None,
    decision: str | None = None,
    relation: str | None = None,
    since: str | None = None,
    until: str | None = None,
    chain: str | None = None,
    json: bool = False,
) -> int:
    """``grille audit show``: one line an event, the story of a call chain if one is named, or JSON lines; 0 or 2."""
    try:
        events = show(
            directory, agent=agent, decision=decision, relation=relation, since=since, until=until, chain=chain
        )
        if json:
            for event in events:
                _say(encode(event).decode())
        elif chain is not None:
            _say(story(events) or f"no event of the call chain {chain}")
        else:
            for event in events:
                _say(_line(event))
    except (NoEvidence, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def head_command(directory: Path, out: Path) -> int:
    """``grille audit head``: write the signed head note; 0 or 2."""
    try:
        head = write_head(directory, out)
    except (NoEvidence, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for part in head.heads:
        _say(f"worker {part.worker}: block {part.sequence} {part.header_hash}")
    return 0


def _describe(problem: Problem) -> str:
    block = "-" if problem.block is None else problem.block
    event = "-" if problem.event is None else problem.event
    return f"block={block} event={event} reason={problem.reason} ({problem.path}, byte {problem.offset})"


def _say_tampered(problem: Problem) -> int:
    _say(f"tampered {_describe(problem)}")
    return 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
