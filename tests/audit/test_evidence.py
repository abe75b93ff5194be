"""Control AU-02: evidence shows any change made to it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from grille.audit import chain, evidence, records
from grille.audit.encoding import commit
from grille.audit.event import Chain, Event, Outcome, Relation, Verdict
from grille.audit.evidence import NoEvidence, Report, reveals, verify
from grille.audit.spool import Spool, segments

MakeEvent = Callable[..., Event]
OpenSpool = Callable[..., Spool]


class Place(NamedTuple):
    """One record of a segment, and what it is."""

    start: int
    end: int
    kind: int
    block: int
    event: int | None


@pytest.fixture
def audit(tmp_path: Path, open_spool: OpenSpool, make_event: MakeEvent) -> Path:
    """An audit directory with one chain: two segments, six blocks."""
    spool = open_spool(block_events=3, segment_bytes=2500)
    for number in range(9):
        spool.append(make_event(template=f"SELECT {number}"))
    spool.close()
    directory = tmp_path / "audit"
    assert len(segments(directory / "worker-000")) == 2
    return directory


def places(path: Path) -> list[Place]:
    """Every record of a segment that is whole."""
    found = list(records.scan(path.read_bytes()))
    ends = [record.offset for record in found[1:]] + [path.stat().st_size]
    block = int(path.stem)
    result = []
    for record, end in zip(found, ends, strict=True):
        if record.kind == records.EVENT:
            sequence = msgspec.json.decode(record.payload)["sequence"]
            result.append(Place(record.offset, end, record.kind, block, sequence))
        else:
            result.append(Place(record.offset, end, record.kind, block, None))
            block += 1
    return result


def first(report: Report) -> tuple[int | None, int | None]:
    assert report.problems
    return report.problems[0].block, report.problems[0].event


def test_what_was_written_is_verified(audit: Path, key: Ed25519PrivateKey) -> None:
    report = verify(audit, key.public_key())
    assert report.problems == ()
    assert (report.events, report.blocks) == (11, 5)


def test_every_flipped_byte_is_found_in_its_block_and_event(audit: Path, key: Ed25519PrivateKey) -> None:
    for path in segments(audit / "worker-000"):
        whole = path.read_bytes()
        for place in places(path):
            expected: list[tuple[int, int | None]] = [(place.block, place.event)] * (place.end - place.start)
            if place.kind == records.BLOCK:
                block = chain.decode_block(whole[place.start + 14 : place.end])
                assert block is not None
                header = chain.decode_header(block.header)
                for leaf in range(header.events):
                    start = place.end - place.start - (header.events - leaf) * 32
                    expected[start : start + 32] = [(place.block, header.first_event + leaf)] * 32
            for offset, wanted in enumerate(expected, place.start):
                data = bytearray(whole)
                data[offset] ^= 1 << offset % 8
                path.write_bytes(data)
                assert first(verify(audit, key.public_key())) == wanted, (path.name, offset)
        path.write_bytes(whole)
    pem = audit / "public-key.pem"
    whole = pem.read_bytes()
    for offset in range(len(whole)):
        data = bytearray(whole)
        data[offset] ^= 1 << offset % 8
        pem.write_bytes(data)
        assert first(verify(audit, key.public_key())) == (None, None)
        assert evidence.verify_command(audit) == 1
    pem.write_bytes(whole)
    assert {path.name for path in audit.rglob("*") if path.is_file() and path.stat().st_size} == {
        "public-key.pem",
        *(path.name for path in segments(audit / "worker-000")),
    }


def test_a_dropped_record_is_named(audit: Path, key: Ed25519PrivateKey) -> None:
    last = segments(audit / "worker-000")[-1]
    for path in segments(audit / "worker-000"):
        whole = path.read_bytes()
        for place in places(path):
            path.write_bytes(whole[: place.start] + whole[place.end :])
            report = verify(audit, key.public_key())
            if path == last and place.end == len(whole):  # the last block: a cut end
                assert report.problems == ()
                assert "not sealed yet" in report.chains[0].notes[0]
            else:
                assert first(report) == (place.block, place.event)
                assert "missing" in report.problems[0].reason
        path.write_bytes(whole)


def test_a_repeated_record_is_named(audit: Path, key: Ed25519PrivateKey) -> None:
    for path in segments(audit / "worker-000"):
        whole = path.read_bytes()
        for place in places(path):
            path.write_bytes(whole[: place.end] + whole[place.start :])
            report = verify(audit, key.public_key())
            assert first(report) == (place.block, place.event)
            assert "repeated" in report.problems[0].reason
        path.write_bytes(whole)


def test_two_swapped_records_are_named(audit: Path, key: Ed25519PrivateKey) -> None:
    for path in segments(audit / "worker-000"):
        whole = path.read_bytes()
        found = places(path)
        for one, two in pairwise(found):
            path.write_bytes(
                whole[: one.start] + whole[two.start : two.end] + whole[one.start : one.end] + whole[two.end :]
            )
            wanted = (one.block, two.event if one.event is None else one.event)
            assert first(verify(audit, key.public_key())) == wanted
        path.write_bytes(whole)


def blocks(path: Path) -> list[bytes]:
    """A segment cut into whole blocks, each with its events before it."""
    data = path.read_bytes()
    ends = [place.end for place in places(path) if place.kind == records.BLOCK]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def test_dropped_repeated_and_swapped_blocks_are_named(audit: Path, key: Ed25519PrivateKey) -> None:
    path = segments(audit / "worker-000")[0]
    parts = blocks(path)
    assert len(parts) >= 3
    for number in range(len(parts)):
        path.write_bytes(b"".join(parts[:number] + parts[number + 1 :]))
        assert first(verify(audit, key.public_key())) == (number, None)
        path.write_bytes(b"".join(parts[: number + 1] + parts[number:]))
        assert first(verify(audit, key.public_key())) == (number, None)
    for number in range(len(parts) - 1):
        swapped = list(parts)
        swapped[number], swapped[number + 1] = swapped[number + 1], swapped[number]
        path.write_bytes(b"".join(swapped))
        assert first(verify(audit, key.public_key())) == (number, None)


def test_segments_that_are_missing_or_renamed_are_named(audit: Path, key: Ed25519PrivateKey) -> None:
    one, two = segments(audit / "worker-000")
    away = audit / "away"
    one.rename(away)
    assert first(verify(audit, key.public_key())) == (0, None)
    two.rename(one)
    away.rename(two)
    assert first(verify(audit, key.public_key())) == (0, None)
    two.rename(away)
    one.rename(two)
    away.rename(one)
    assert verify(audit, key.public_key()).problems == ()
    later = two.with_name("000000000009.seg")
    two.rename(later)
    report = verify(audit, key.public_key())
    assert first(report) == (int(two.stem), None)
    assert "renamed" in report.problems[0].reason


def forge(path: Path, place: Place, payload: bytes) -> None:
    """Replace a record by one with valid checksums."""
    data = path.read_bytes()
    path.write_bytes(data[: place.start] + records.frame(place.kind, payload) + data[place.end :])


def test_repaired_checksums_do_not_help(audit: Path, key: Ed25519PrivateKey) -> None:
    path = segments(audit / "worker-000")[0]
    whole = path.read_bytes()
    place = places(path)[3]
    payload = whole[place.start + 14 : place.end].replace(b"SELECT", b"DELETE")
    forge(path, place, payload)
    assert first(verify(audit, key.public_key())) == (place.block, place.event)
    # ... nor does the leaf hash, for the root is signed,
    block_place = next(later for later in places(path) if later.kind == records.BLOCK and later.start > place.start)
    block = chain.decode_block(path.read_bytes()[block_place.start + 14 : block_place.end])
    assert block is not None
    leaves = list(block.leaves)
    leaves[place.event - chain.decode_header(block.header).first_event] = chain.leaf_hash(payload)  # type: ignore[operator]
    forge(path, block_place, chain.encode_block(msgspec.structs.replace(block, leaves=tuple(leaves))))
    assert first(verify(audit, key.public_key())) == (place.block, None)
    # ... nor a new header, for the forger has no key.
    header = msgspec.structs.replace(chain.decode_header(block.header), root=chain.merkle_root(leaves).hex())
    forged = chain.seal(header, leaves, Ed25519PrivateKey.generate())
    block_place = next(later for later in places(path) if later.kind == records.BLOCK and later.start > place.start)
    forge(path, block_place, chain.encode_block(forged))
    assert first(verify(audit, key.public_key())) == (place.block, None)


def test_a_checksum_that_was_changed_with_its_own_checksum_is_named(audit: Path, key: Ed25519PrivateKey) -> None:
    path = segments(audit / "worker-000")[0]
    whole = path.read_bytes()
    for place in places(path):
        fields = whole[place.start : place.start + 6] + bytes(4)
        data = fields + crc32(fields).to_bytes(4, "big")
        path.write_bytes(whole[: place.start] + data + whole[place.start + 14 :])
        report = verify(audit, key.public_key())
        assert first(report) == (place.block, place.event)
        assert "checksum" in report.problems[0].reason


def test_two_pasts_of_one_chain_cannot_be_spliced(
    audit: Path, open_spool: OpenSpool, make_event: MakeEvent, key: Ed25519PrivateKey
) -> None:
    """Whoever can roll the directory back gets two runs signed with the same key; they do not fit together."""
    path = segments(audit / "worker-000")[-1]
    before = path.read_bytes()
    pasts = []
    for _ in range(2):
        path.write_bytes(before)
        spool = open_spool()
        spool.append(make_event())
        spool.seal()
        spool.close()
        pasts.append(blocks(path))
    assert verify(audit, key.public_key()).problems == ()
    path.write_bytes(b"".join([*pasts[0][:-1], pasts[1][-1]]))
    report = verify(audit, key.public_key())
    assert first(report) == (int(path.stem) + len(pasts[0]) - 1, None)
    assert "does not follow" in report.problems[0].reason


def test_the_first_block_must_name_the_key(audit: Path, key: Ed25519PrivateKey) -> None:
    path = segments(audit / "worker-000")[0]
    place = next(place for place in places(path) if place.kind == records.BLOCK)
    block = chain.decode_block(path.read_bytes()[place.start + 14 : place.end])
    assert block is not None
    header = msgspec.structs.replace(chain.decode_header(block.header), key="0" * 64)
    forge(path, place, chain.encode_block(chain.seal(header, block.leaves, key)))
    assert "names another key" in verify(audit, key.public_key()).problems[0].reason


def test_a_block_of_another_chain_does_not_fit(audit: Path, open_spool: OpenSpool, key: Ed25519PrivateKey) -> None:
    open_spool(worker=1).close()
    mine, other = (segments(audit / name)[0] for name in ("worker-000", "worker-001"))
    parts = blocks(mine)
    mine.write_bytes(b"".join([parts[0], blocks(other)[1], *parts[2:]]))
    report = verify(audit, key.public_key())
    assert first(report) == (1, None)
    assert "another chain" in report.problems[0].reason


def test_one_chain_cannot_take_the_place_of_another(audit: Path, open_spool: OpenSpool, key: Ed25519PrivateKey) -> None:
    open_spool(worker=1).close()
    for path in segments(audit / "worker-000"):
        path.unlink()
    for path in segments(audit / "worker-001"):
        (audit / "worker-000" / path.name).write_bytes(path.read_bytes())
    report = verify(audit, key.public_key())
    assert "another's place" in report.problems[0].reason


def test_a_later_problem_is_listed_too(audit: Path, key: Ed25519PrivateKey) -> None:
    path = segments(audit / "worker-000")[0]
    data = bytearray(path.read_bytes())
    one, two = places(path)[2], places(path)[-2]
    assert one.block != two.block
    data[one.end - 5] ^= 1
    data[two.end - 5] ^= 1
    path.write_bytes(data)
    problems = verify(audit, key.public_key()).problems
    assert [(problem.block, problem.event) for problem in problems] == [(one.block, one.event), (two.block, two.event)]


# Heads


def test_a_cut_end_shows_against_a_head(
    audit: Path, tmp_path: Path, key: Ed25519PrivateKey, open_spool: OpenSpool
) -> None:
    head = evidence.write_head(audit, tmp_path / "head.json")
    assert evidence.read_head(tmp_path / "head.json") == head
    path = segments(audit / "worker-000")[-1]
    whole = path.read_bytes()
    last = [place for place in places(path) if place.kind == records.BLOCK][-1]
    for end in range(last.start, len(whole)):
        path.write_bytes(whole[:end])
        assert verify(audit, key.public_key()).problems == ()
        report = verify(audit, key.public_key(), head)
        assert first(report) == (last.block, None)
        assert "cut" in report.problems[0].reason
    path.write_bytes(whole)
    open_spool().close()  # a chain that has grown since
    assert verify(audit, key.public_key(), head).problems == ()


def test_a_tail_that_was_written_anew_shows_against_a_head(
    audit: Path, tmp_path: Path, key: Ed25519PrivateKey, open_spool: OpenSpool
) -> None:
    head = evidence.write_head(audit, tmp_path / "head.json")
    path = segments(audit / "worker-000")[-1]
    cut = [place for place in places(path) if place.kind == records.BLOCK][-1].start
    path.write_bytes(path.read_bytes()[: cut - 60])
    open_spool().close()
    assert verify(audit, key.public_key()).problems == ()
    report = verify(audit, key.public_key(), head)
    assert "not the one that the head names" in report.problems[0].reason


def test_a_chain_that_is_gone_shows_against_a_head(
    audit: Path, tmp_path: Path, key: Ed25519PrivateKey, open_spool: OpenSpool
) -> None:
    open_spool(worker=1).close()
    head = evidence.write_head(audit, tmp_path / "head.json")
    (audit / "worker-001").rename(tmp_path / "away")
    assert verify(audit, key.public_key()).problems == ()
    assert "worker 1" in verify(audit, key.public_key(), head).problems[0].reason


def test_a_head_that_was_changed_is_not_accepted(audit: Path, tmp_path: Path, key: Ed25519PrivateKey) -> None:
    [head] = evidence.write_head(audit, tmp_path / "head.json").heads
    for changes in (
        {"sequence": 1},
        {"header_hash": "0" * 64},
        {"header": "{}"},
        {"signature": "00" * 64},
        {"chain": "x"},
    ):
        forged = evidence.Head(heads=(msgspec.structs.replace(head, **changes),))  # type: ignore[arg-type]
        report = verify(audit, key.public_key(), forged)
        assert "head is not signed" in report.problems[0].reason


# Commands


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_the_verify_command_says_what_it_found(
    audit: Path, tmp_path: Path, key: Ed25519PrivateKey, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evidence.verify_command(audit) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "verified events=11 blocks=5"
    assert "found beside the evidence" in out
    assert chain.fingerprint(key.public_key()) in out
    assert "UNVERIFIED" in out
    (tmp_path / "key.pem").write_bytes(chain.public_pem(key.public_key()))
    assert evidence.head_command(audit, tmp_path / "head.json") == 0
    capsys.readouterr()
    assert evidence.verify_command(audit, tmp_path / "head.json", tmp_path / "key.pem") == 0
    out = capsys.readouterr().out
    assert f"public key: {tmp_path / 'key.pem'} (given)" in out
    assert "compared with the head given, block 4" in out
    path = segments(audit / "worker-000")[0]
    data = bytearray(path.read_bytes())
    place = places(path)[2]
    data[place.start + 40] ^= 1
    path.write_bytes(data)
    assert evidence.verify_command(audit) == 1
    assert last_line(capsys).startswith(
        f"tampered block={place.block} event={place.event} reason=the event was altered"
    )


def test_one_chain_can_be_verified_alone(audit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.verify_command(audit / "worker-000") == 0
    assert last_line(capsys) == "verified events=11 blocks=5"


def test_evidence_signed_by_another_key_is_not_verified(
    audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.pem").write_bytes(chain.public_pem(Ed25519PrivateKey.generate().public_key()))
    assert evidence.verify_command(audit, None, tmp_path / "other.pem") == 1
    assert last_line(capsys).startswith("tampered block=")


def test_bad_usage_is_told_from_tampering(audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.pem").write_text("no key")
    assert evidence.verify_command(tmp_path / "nowhere") == 2
    assert evidence.verify_command(tmp_path / "empty") == 2
    assert evidence.verify_command(audit, tmp_path / "no-head.json") == 2
    assert evidence.verify_command(audit, tmp_path / "no.pem") == 2
    assert evidence.verify_command(audit, None, tmp_path / "no.pem") == 2
    assert evidence.show_command(tmp_path / "nowhere") == 2
    assert evidence.show_command(audit, since="yesterday") == 2
    assert evidence.head_command(tmp_path / "empty", tmp_path / "head.json") == 2
    assert evidence.head_command(audit, tmp_path / "nowhere" / "head.json") == 2
    (audit / "public-key.pem").unlink()
    assert evidence.verify_command(audit) == 2
    assert "--public-key" in capsys.readouterr().err


# Telling


@pytest.fixture
def told(tmp_path: Path, open_spool: OpenSpool, make_event: MakeEvent) -> Path:
    """Two workers; a customer-service agent under an injected prompt, and a fraud agent."""
    asked = Chain(
        source="comment",
        trust="asserted",
        traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01",
        prompt_id="prompt-4711",
        tool="export_customers",
        handler="desk.tools.export",
        agent="desk\x1b[2J",
    )
    spool = open_spool(worker=1)
    spool.append(
        make_event(
            time="2026-11-24T10:00:01.000000Z",
            spiffe_id="spiffe://bank.example/ns/desk/sa/agent",
            chain=asked,
            template="SELECT * FROM public.customer_export",
            relations=(
                Relation(
                    name="public.customer_export", access="read", columns=("id", "ssn"), sensitive={"ssn": "deny"}
                ),
            ),
            verdict=Verdict(id="d-1", allow=False, control="AC-03", reason="staff only"),
            outcome=Outcome(status="denied", sqlstate="42501"),
        )
    )
    spool.append(
        make_event(
            time="2026-11-24T10:00:03.000000Z",
            spiffe_id="spiffe://bank.example/ns/desk/sa/agent",
            chain=asked,
            template="SELECT id FROM public.customers WHERE id = $1",
            relations=(Relation(name="public.customers", access="read", columns=("id",)),),
            verdict=Verdict(id="d-2", allow=True, control="AC-01", reason="own branch"),
            outcome=Outcome(status="ok", tag="SELECT 1", rows=1, bytes=12, decoded=1),
        )
    )
    spool.close()
    spool = open_spool(worker=0)
    spool.append(
        make_event(
            time="2026-11-24T10:00:02.000000Z",
            spiffe_id="spiffe://bank.example/ns/fraud/sa/scorer",
            relations=(Relation(name="public.accounts", access="read"),),
            verdict=Verdict(id="d-3", allow=True, control="AC-01", reason="any branch"),
        )
    )
    spool.close()
    return tmp_path / "audit"


@pytest.mark.parametrize(
    ("filters", "decisions"),
    [
        ({"agent": "spiffe://bank.example/ns/desk/sa/agent"}, ["d-1", "d-2"]),
        ({"agent": "spiffe://bank.example/ns/desk"}, []),
        ({"agent": "spiffe://bank.example/ns/desk/*"}, ["d-1", "d-2"]),
        ({"decision": "deny"}, ["d-1"]),
        ({"decision": "allow"}, ["d-3", "d-2"]),
        ({"decision": "AC-03"}, ["d-1"]),
        ({"relation": "public.customers"}, ["d-2"]),
        ({"relation": "customer_export"}, ["d-1"]),
        ({"relation": "export"}, []),
        ({"since": "2026-11-24T10:00:02Z", "until": "2026-11-24T10:59"}, ["d-3", "d-2"]),
        ({"since": "2026-11-24T11:00:03+01:00", "decision": "allow"}, ["d-2"]),
        ({"until": "2026-11-24T10:00:01Z"}, ["d-1"]),
        ({"chain": "prompt-4711"}, ["d-1", "d-2"]),
        ({"chain": "ab" * 16}, ["d-1", "d-2"]),
        ({"chain": "export_customers", "decision": "allow"}, ["d-2"]),
        ({"chain": "prompt"}, []),
    ],
)
def test_events_are_filtered(told: Path, filters: dict[str, str], decisions: list[str]) -> None:
    shown = [event.verdict.id for event in evidence.show(told, **filters) if event.verdict is not None]  # type: ignore[arg-type]
    assert shown == decisions


def test_the_story_goes_from_the_prompt_to_the_rows(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.show_command(told, chain="prompt-4711") == 0
    out = capsys.readouterr().out
    order = [
        "asserted",
        "prompt-4711",
        "ab" * 16,
        "spiffe://bank.example/ns/desk/sa/agent",
        "export_customers",
        "desk.tools.export",
        "SELECT * FROM public.customer_export",
        "ssn: deny",
        "DENIED    by AC-03: staff only",
        "42501",
        "SELECT id FROM public.customers WHERE id = $1",
        "allowed   by AC-01: own branch",
        "SELECT 1: 1 rows",
        "1 tokens decoded",
    ]
    positions = [out.find(part) for part in order]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert "fraud" not in out


def test_what_an_agent_wrote_does_not_reach_the_terminal_raw(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence.show_command(told, chain="prompt-4711")
    evidence.show_command(told)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "desk\\x1b[2J" in out


def test_events_are_shown_as_lines_or_json(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.show_command(told, decision="deny") == 0
    [line] = capsys.readouterr().out.splitlines()
    assert "DENIED AC-03" in line
    assert evidence.show_command(told, decision="deny", json=True) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert msgspec.json.decode(line, type=Event).verdict == Verdict("d-1", False, "AC-03", "staff only")
    assert evidence.show_command(told, chain="nothing") == 0
    assert "no event" in capsys.readouterr().out


def test_who_knows_a_value_can_prove_it(tmp_path: Path, open_spool: OpenSpool, make_event: MakeEvent) -> None:
    spool = open_spool()
    spool.append(make_event(values=(commit(b"123-45-6789", "text"),)))
    spool.close()
    [value] = next(event for event in evidence.show(tmp_path / "audit") if event.values).values
    assert reveals(value, b"123-45-6789")
    assert not reveals(value, b"123-45-6788")
    assert b"45-6789" not in segments(tmp_path / "audit" / "worker-000")[0].read_bytes()


def test_a_directory_that_is_none_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(NoEvidence):
        list(evidence.show(tmp_path / "nowhere"))
