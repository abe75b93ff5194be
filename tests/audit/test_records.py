from __future__ import annotations

import itertools
import struct
from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from grille.audit.records import BLOCK, DAMAGED, EVENT, TORN, frame, scan

payloads = st.lists(st.tuples(st.sampled_from([EVENT, BLOCK]), st.binary(max_size=60)), max_size=8)


@given(payloads)
def test_records_read_back(parts: list[tuple[int, bytes]]) -> None:
    found = list(scan(b"".join(frame(kind, payload) for kind, payload in parts)))
    assert [(record.kind, record.payload, record.intact) for record in found] == [
        (kind, payload, True) for kind, payload in parts
    ]


@given(payloads, st.integers(min_value=0))
def test_a_cut_leaves_whole_records_and_one_torn(parts: list[tuple[int, bytes]], at: int) -> None:
    framed = [frame(kind, payload) for kind, payload in parts]
    data = b"".join(framed)
    at %= len(data) + 1
    found = list(scan(data[:at]))
    ends = list(itertools.accumulate(map(len, framed)))
    whole = sum(end <= at for end in ends)
    assert [record.intact for record in found[:whole]] == [True] * whole
    assert [record.kind for record in found[whole:]] == ([] if at in (0, *ends) else [TORN])


@given(st.binary(max_size=400))
def test_the_scan_of_garbage_ends_and_covers_every_byte(data: bytes) -> None:
    found = list(scan(data))
    assert [record.offset for record in found] == sorted({record.offset for record in found})
    assert sum(len(record.payload) for record in found if record.kind in (DAMAGED, TORN)) <= len(data)
    assert not data or found[0].offset == 0


def test_after_damage_the_scan_goes_on_at_the_next_record() -> None:
    first, second, third = frame(EVENT, b"first"), frame(EVENT, b"second"), frame(BLOCK, b"third")
    for place in range(14):  # every byte of the second record's header
        damaged = bytearray(second)
        damaged[place] ^= 1
        kinds = [record.kind for record in scan(first + bytes(damaged) + third)]
        assert kinds == [EVENT, DAMAGED, BLOCK]


def test_a_length_that_reaches_over_the_end_hides_no_later_record() -> None:
    """Someone who repairs the checksum of a changed length cannot make the rest look torn off."""
    fields = struct.pack(">BBII", 0xFF, EVENT, 1 << 20, 0)
    forged = fields + struct.pack(">I", crc32(fields)) + b"first"
    assert [record.kind for record in scan(forged + frame(BLOCK, b"block"))] == [DAMAGED, BLOCK]
