"""Decisions are a closed type: an answer decodes completely or denies (AC-02)."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grille.policies.decision import Decision
from grille.policies.pdp import DecisionError, decode, obligations_not_enforced

COMPLETE: dict[str, Any] = {
    "allow": True,
    "control": "AC-01",
    "reason": "granted",
    "passthrough": False,
    "filters": {
        "public.a": {"type": "field", "operator": "eq", "field": "a.b", "value": "1"},
        "public.b": True,
        "public.c": {
            "type": "compound",
            "operator": "or",
            "value": [{"type": "field", "operator": "in", "field": "x", "value": [1, 2]}],
        },
    },
    "columns": {"public.a.c": {"read": "mask:last4", "predicate": "equality", "write": "deny"}},
    "limits": {"rows": 10, "seconds": 1.5},
    "locks": False,
    "isolated": False,
    "not_before": "2026-01-01T00:00:00Z",
    "not_after": None,
    "cache": {"ttl_seconds": 60},
}


def _decode(document: object) -> Decision:
    return decode(json.dumps(document).encode())


def test_complete() -> None:
    decision = _decode(COMPLETE)
    assert decision.filters["public.b"] is True
    assert decision.limits.rows == 10


@pytest.mark.parametrize("key", sorted(COMPLETE))
def test_every_key_is_required(key: str) -> None:
    document = {name: value for name, value in COMPLETE.items() if name != key}
    with pytest.raises(DecisionError):
        _decode(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("unknown",), 1),
        (("allow",), "yes"),
        (("allow",), 1),
        (("filters", "public.a", "operator"), "like"),
        (("filters", "public.a", "sql"), "1=1"),
        (("filters", "public.b"), False),
        (("filters", "public.b"), {}),
        (("filters", "public.b"), ""),
        (("filters", "public.b"), None),
        (("columns", "public.a.c", "predicate"), "range"),
        (("columns", "public.a.c", "extra"), 1),
        (("columns", "public.a.c", "write"), "maybe"),
        (("limits", "rows"), "many"),
        (("limits", "columns"), 3),
        (("limits", "rows"), -1),
        (("limits", "rows"), 1 << 31),
        (("limits", "bytes"), -1),
        (("limits", "seconds"), 0),
        (("limits", "statements_per_minute"), 0),
        (("limits", "concurrent"), 0),
        (("not_after",), "tomorrow"),
        (("not_after",), "2026-12-31T00:00:00"),
        (("not_before",), "2026-01-01T00:00:00"),
        (("not_before",), 1767225600),
        (("cache", "ttl_seconds"), -1),
        (("cache", "for"), 1),
        (("control",), None),
    ],
)
def test_an_unknown_key_or_value_denies(path: tuple[str, ...], value: object) -> None:
    document = copy.deepcopy(COMPLETE)
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(DecisionError):
        _decode(document)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"passthrough": True}, "passthrough"),
        ({"isolated": True}, "isolated"),
        ({}, None),
    ],
)
def test_obligations_that_are_not_enforced_are_named(changed: dict[str, Any], word: str | None) -> None:
    found = obligations_not_enforced(_decode({**COMPLETE, **changed}))
    assert (found is None) if word is None else (found is not None and word in found)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(COMPLETE)), _JSON))
def test_any_answer_decodes_or_denies(changes: dict[str, Any]) -> None:
    try:
        decision = _decode({**COMPLETE, **changes})
    except DecisionError:
        return
    assert isinstance(decision.allow, bool)


@pytest.mark.parametrize("depth", [100, 5_000, 20_000])
def test_a_deeply_nested_filter_decodes_or_denies(depth: int) -> None:
    nested = b'{"type":"compound","operator":"not","value":[' * depth + b"]}" * depth
    try:
        decode(json.dumps({**COMPLETE, "filters": 0}).encode().replace(b'"filters": 0', b'"filters":{"a":%b}' % nested))
    except DecisionError:
        assert depth > 100


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_deny(raw: bytes) -> None:
    try:
        decode(raw)
    except DecisionError:
        pass
    else:
        pytest.fail("random bytes made a decision")
