from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.audit import records
from grille.audit.chain import leaf_hash
from grille.audit.encoding import decode, encode, event_id, lifecycle, reveals, timestamp
from grille.audit.event import Chain, Event, Outcome, Relation, Value, Verdict
from grille.audit.fused import frame_events, session_piece, split, statement_event, statement_piece, values_piece

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
counts = st.one_of(st.just(0), st.integers(0, (1 << 63) - 1))
chains = st.builds(
    Chain,
    source=st.sampled_from(["comment", "setting", "startup", "none"]),
    trust=st.sampled_from(["asserted", "absent"]),
    traceparent=st.none() | texts,
    tool=st.none() | texts,
    other=st.dictionaries(texts, texts, max_size=3),
)
relations = st.builds(
    Relation,
    name=texts,
    access=texts,
    columns=st.lists(texts, max_size=3).map(tuple),
    sensitive=st.dictionaries(texts, texts, max_size=3),
)
verdicts = st.builds(
    Verdict,
    id=texts,
    allow=st.booleans(),
    control=texts,
    reason=texts,
    revision=texts,
    filters_hash=texts,
    cached=st.booleans(),
)
sessions = st.fixed_dictionaries(
    {
        "level": st.sampled_from(["process", "power", "strict"]),
        "spiffe_id": texts, "certificate_serial": texts, "certificate_sha256": texts, "session": texts,
        "client": texts, "protocol": texts, "database": texts, "application": texts, "chain": chains,
    },
)  # fmt: skip
statements = st.fixed_dictionaries(
    {
        "template": texts,
        "template_sha256": texts,
        "action": texts,
        "relations": st.lists(relations, max_size=3).map(tuple),
        "functions": st.lists(texts, max_size=3).map(tuple),
        "verdict": st.none() | verdicts,
    }
)
outcomes = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["ok", "denied", "error", "unknown"]),
        "tag": st.one_of(st.just("SELECT 1"), texts),
        "rows": counts,
        "bytes": counts,
        "encoded": counts,
        "decoded": counts,
    }
)
stages = st.fixed_dictionaries(dict.fromkeys(("understand", "decide", "tokenize", "upstream", "total"), counts))
values = st.lists(st.tuples(texts, st.none() | st.binary(max_size=20)), max_size=4)


@given(
    session=sessions,
    statement=statements,
    outcome=outcomes,
    stages=stages,
    values=values,
    size=counts,
    worker=st.integers(0, 2000),
    sequence=counts,
    when=st.floats(0, 4e9),
    completes=st.booleans(),
)
def test_the_pieces_make_the_bytes_of_the_whole(
    session: Any, statement: Any, outcome: Any, stages: Any, values: Any, size: int, worker: int, sequence: int,
    when: float, completes: bool,
) -> None:  # fmt: skip
    piece = values_piece([type for type, _ in values], [value for _, value in values])
    committed = msgspec.json.decode(piece.partition(b":")[2] or b"[]", type=tuple[Value, ...])
    event = Event(
        id=event_id(when),
        time=timestamp(when),
        kind="statement",
        name="statement",
        worker=worker,
        sequence=sequence,
        statement_bytes=size,
        values=committed,
        outcome=Outcome(**outcome),
        intent=event_id(when) if completes else "",
        stages=stages,
        **session,
        **statement,
    )
    template, verdict = statement_piece(**statement)
    head, tail = statement_event(
        session_piece(**session), template, verdict, event.id, event.time, worker, size, piece, outcome["status"],
        outcome["tag"], outcome["rows"], outcome["bytes"], outcome["encoded"], outcome["decoded"],
        stages["understand"], stages["decide"], stages["tokenize"], stages["upstream"], stages["total"], event.intent,
    )  # fmt: skip
    assert head + b"%d" % sequence + tail == encode(event)
    assert decode(head + b"%d" % sequence + tail) == event
    assert split(event, worker) == (head, tail, event.time, event.intent, "")


@given(values)
def test_values_are_committed_to_with_a_salt_of_their_own(values: list[tuple[str, bytes | None]]) -> None:
    piece = values_piece([type for type, _ in values], [value for _, value in values])
    committed = msgspec.json.decode(piece.partition(b":")[2] or b"[]", type=list[Value])
    assert [value.type for value in committed] == [type for type, _ in values]
    assert all(reveals(one, value) for one, (_, value) in zip(committed, values, strict=True))
    salts = [one.salt for one in committed if not one.null]
    assert len(set(salts)) == len(salts)
    assert all(len(bytes.fromhex(salt)) == 16 for salt in salts)


def test_a_value_without_a_type_is_of_unknown_type() -> None:
    piece = values_piece(["int4"], [b"1", None])
    committed = msgspec.json.decode(piece.partition(b":")[2], type=list[Value])
    assert [(value.type, value.null) for value in committed] == [("int4", False), ("unknown", True)]


def test_what_json_cannot_hold_is_in_no_piece() -> None:
    with pytest.raises(ValueError):
        session_piece("power", "", "", "", "", "", "", "", "\udfff", Chain())
    with pytest.raises(ValueError):
        statement_piece("\udfff", "", "", (), (), None)
    with pytest.raises(ValueError):
        values_piece(["\udfff"], [b""])


@given(texts)
def test_a_text_that_looks_like_the_sequence_is_none(text: str) -> None:
    event = lifecycle("note", text + '","sequence":0,', 1.0, worker=0, level="process")
    event = msgspec.structs.replace(event, id=text + ',"sequence":0', name='x,"sequence":0,"')
    head, tail, *_ = split(event, 3)
    assert decode(head + b"7" + tail) == msgspec.structs.replace(event, sequence=7, worker=3)


def test_an_intent_and_its_outcome_are_told_apart() -> None:
    intent = msgspec.structs.replace(lifecycle("x", "", 1.0, worker=0, level="strict"), outcome=Outcome("intent"))
    assert split(intent, 0)[3:] == ("", intent.id)
    outcome = msgspec.structs.replace(intent, id="o", outcome=Outcome("ok"), intent=intent.id)
    assert split(outcome, 0)[3:] == (intent.id, "")


@given(st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=30)), max_size=5), st.integers(0, 1 << 64))
def test_events_are_numbered_framed_and_hashed(parts: list[tuple[bytes, bytes]], first: int) -> None:
    payloads = [head + b"%d" % (first + number) + tail for number, (head, tail) in enumerate(parts)]
    data, leaves = frame_events([(head, tail, "", "", "") for head, tail in parts], first)
    assert data == b"".join(records.frame(records.EVENT, payload) for payload in payloads)
    assert leaves == [leaf_hash(payload) for payload in payloads]
    assert leaves == [hashlib.sha256(b"\0" + payload).digest() for payload in payloads]
