from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.audit.encoding import commit, decode, encode, event_id, lifecycle, reveals, timestamp
from grille.audit.event import Event, Value


def test_an_event_reads_back_as_it_was(make_event: Callable[..., Event]) -> None:
    event = make_event(values=(commit(b"7", "int4"),), stages={"total": 5, "decide": 1}, template='SELECT "ä" = $1')
    assert decode(encode(event)) == event


def test_the_order_of_a_mapping_does_not_change_the_bytes(make_event: Callable[..., Event]) -> None:
    one = make_event(id="x", stages={"total": 5, "decide": 1})
    other = make_event(id="x", stages={"decide": 1, "total": 5})
    assert encode(one) == encode(other)


def test_what_json_cannot_hold_is_refused(make_event: Callable[..., Event]) -> None:
    with pytest.raises(ValueError):
        encode(make_event(application="\ud800"))


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_a_commitment_is_revealed_by_its_value_only(value: bytes, other: bytes) -> None:
    committed = commit(value, "text")
    assert reveals(committed, value)
    assert reveals(committed, other) == (value == other)
    assert not reveals(committed, None)


def test_a_commitment_is_the_hash_of_salt_and_value() -> None:
    committed = commit(b"123-45-6789", "text")
    assert len(bytes.fromhex(committed.salt)) == 16
    assert committed.commitment == hashlib.sha256(bytes.fromhex(committed.salt) + b"123-45-6789").hexdigest()


def test_equal_values_have_unequal_commitments() -> None:
    assert commit(b"x", "text").commitment != commit(b"x", "text").commitment


def test_null_is_recorded_as_null() -> None:
    assert commit(None, "int4") == Value(type="int4", null=True)
    assert reveals(commit(None, "int4"), None)
    assert not reveals(commit(None, "int4"), b"")


def test_an_event_id_is_a_version_7_uuid_of_its_time() -> None:
    number = uuid.UUID(event_id(1_800_000_000.123))
    assert number.version == 7
    assert number.variant == uuid.RFC_4122
    assert number.int >> 80 == 1_800_000_000_123
    assert event_id(1.0) != event_id(1.0)


def test_times_are_rfc_3339_with_microseconds() -> None:
    assert timestamp(1_800_000_000.25) == "2027-01-15T08:00:00.250000Z"
    assert lifecycle("start", "begins", 0.0, worker=2, level="power").time == "1970-01-01T00:00:00.000000Z"
