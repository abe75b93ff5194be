from __future__ import annotations

import hashlib
import math
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.audit.encoding import commit, decode, encode, event_id, lifecycle, reveals, salted, timestamp
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


def test_no_two_event_ids_are_alike_and_all_variants_occur() -> None:
    ids = [uuid.UUID(event_id(1_800_000_000.0 + number // 100)) for number in range(5000)]
    assert len({number.int & ((1 << 62) - 1) for number in ids}) == 5000
    assert {(number.version, number.variant) for number in ids} == {(7, uuid.RFC_4122)}
    assert {str(number)[19] for number in ids} == set("89ab")
    assert [number.int >> 80 for number in ids] == [1_800_000_000_000 + n // 100 * 1000 for n in range(5000)]


def test_a_forked_process_has_randomness_of_its_own() -> None:
    event_id(1.0)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, salted(b"")[0].encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    found = os.read(reader, 64).decode()
    os.close(reader)
    assert len(found) == 32
    assert found != salted(b"")[0]


@given(st.floats(-62e9, 253e9) | st.integers(0, 1 << 31) | st.floats(1.7e9, 1.9e9))
def test_times_are_those_of_datetime(seconds: float) -> None:
    assert timestamp(seconds) == datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


@pytest.mark.parametrize("seconds", [0.9999995, 0.9999996, 5.0000005, 6.0000015, 253_402_300_799.5, -0.25])
def test_times_are_rounded_as_datetime_rounds(seconds: float) -> None:
    test_times_are_those_of_datetime.hypothesis.inner_test(seconds)


@pytest.mark.parametrize("seconds", [math.inf, math.nan])
def test_what_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        timestamp(seconds)
    with pytest.raises((ValueError, OverflowError)):
        event_id(seconds)


def test_times_are_rfc_3339_with_microseconds() -> None:
    assert timestamp(1_800_000_000.25) == "2027-01-15T08:00:00.250000Z"
    assert lifecycle("start", "begins", 0.0, worker=2, level="power").time == "1970-01-01T00:00:00.000000Z"
