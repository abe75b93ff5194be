"""Vault Transform without input or output: bodies, replies, batches, breaker and cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.tokenization.provider import TokenizationError, TokenizationRefused, Unfit
from grille.tokenization.transformation import TemplateError, tweak
from grille.tokenization.vault import (
    Answer,
    Breaker,
    Cache,
    Queue,
    VaultTransformation,
    judge,
    renew_after,
    wait_before,
)

SSN = VaultTransformation("ssn", "people", r"(\d{3})-(\d{2})-(\d{4})", "digits", check="481-22-9075")


def reply(*results: dict[str, Any]) -> bytes:
    return json.dumps({"request_id": "r", "data": {"batch_results": list(results)}, "errors": None}).encode()


def read(*results: dict[str, Any], values: Sequence[str] = ("123-45-6789",), direction: Any = "encode") -> Any:
    return SSN.read(reply(*results), values, direction)


GOOD = {"encoded_value": "999-99-9999", "reference": "0"}
CHECK = {"encoded_value": "481-22-9075", "reference": "1"}


def test_a_request_names_transformation_and_tweak_of_each_value_and_ends_with_the_check() -> None:
    body = json.loads(SSN.body([SSN.item("123-45-6789")], "encode"))
    assert [item["value"] for item in body["batch_input"]] == ["123-45-6789", "012-01-0123"]
    assert [item["reference"] for item in body["batch_input"]] == ["0", "1"]
    assert {item["transformation"] for item in body["batch_input"]} == {"ssn"}
    import base64

    assert {base64.b64decode(item["tweak"]) for item in body["batch_input"]} == {tweak("people", 1)}
    assert len(tweak("people", 1)) == 7
    assert json.loads(SSN.body([], "decode"))["batch_input"][0]["value"] == "481-22-9075"


def test_another_version_is_another_transformation_and_tweak() -> None:
    second = VaultTransformation("ssn", "people", r"(\d{9})", "digits", 2)
    assert second.vault_name == "ssn-v2"
    assert second.tweak != SSN.tweak


@given(st.text(max_size=40))
def test_any_text_is_one_item(value: str) -> None:
    body = json.loads(SSN.body([SSN.item(value)], "encode"))
    assert body["batch_input"][0]["value"] == value


def test_answers_are_in_order_and_an_error_is_only_its_items() -> None:
    results = [{"error": "no", "reference": "0"}, {"encoded_value": "999-99-9999", "reference": "1"},
               {"encoded_value": "481-22-9075", "reference": "2"}]  # fmt: skip
    found = SSN.read(reply(*results), ["123-45-6789", "123-45-6780"], "encode")
    assert found == [Unfit("Vault cannot encode it"), "999-99-9999"]


@pytest.mark.parametrize("name", ["decoded_value", "encoded_value"])
def test_a_decoded_value_has_either_name(name: str) -> None:
    assert read({name: "123-45-6789"}, {name: "012-01-0123"}, values=["999-99-9999"], direction="decode") == [
        "123-45-6789"
    ]


def test_references_may_be_missing() -> None:
    assert read({"encoded_value": "999-99-9999"}, {"encoded_value": "481-22-9075"}) == ["999-99-9999"]


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        ([GOOD], "another number"),
        ([], "another number"),
        ([GOOD, CHECK, CHECK], "another number"),
        ([{**GOOD, "reference": "1"}, {**CHECK, "reference": "0"}], "order"),
    ],
)
def test_a_reply_to_something_else_is_none(results: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(TokenizationError, match=problem) as caught:
        read(*results)
    assert not isinstance(caught.value, TokenizationRefused)


@pytest.mark.parametrize(
    "raw",
    [b"", b"<html>", b"null", b"[]", b"{}", b'{"data": null}', b'{"data": {"batch_results": null}}',
     b'{"data": {"batch_results": [{"encoded_value": 123456789}]}}', b"[" * 10_000, b"\xff"],
)  # fmt: skip
def test_what_is_no_reply_is_not_understood(raw: bytes) -> None:
    with pytest.raises(TokenizationError, match="not understood"):
        SSN.read(raw, ["123-45-6789"], "encode")


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        ([GOOD, {"encoded_value": "481-22-9074"}], "key"),
        ([GOOD, {"error": "transformation not found"}], "cannot encode by"),
        ([{"encoded_value": "999999999"}, CHECK], "template"),
        ([{"encoded_value": "999-99-99x9"}, CHECK], "template"),
        ([{"encoded_value": "9999-9-9999"}, CHECK], "template"),
        ([{"tweak": "AAAA"}, CHECK], "template"),
    ],
)
def test_another_key_or_template_is_refused(results: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(TokenizationRefused, match=problem) as caught:
        read(*results)
    assert "9999" not in str(caught.value)
    assert "123-45" not in str(caught.value)


def test_another_key_shows_when_decoding_too() -> None:
    with pytest.raises(TokenizationRefused, match="key"):
        read(
            {"decoded_value": "123-45-6789"}, {"decoded_value": "012-01-0124"},
            values=["999-99-9999"], direction="decode",
        )  # fmt: skip


def test_a_check_that_is_no_token_of_the_template_cannot_be_used() -> None:
    with pytest.raises(TemplateError, match="check"):
        VaultTransformation("ssn", "people", r"(\d{9})", "digits", check="481-22-9075")


@pytest.mark.parametrize(
    ("status", "raw", "answer"),
    [
        (200, b"{}", Answer.DONE),
        (400, b'{"data":{"batch_results":[]}}', Answer.DONE),
        (400, b'{"errors":["role not found"]}', Answer.WRONG),
        (401, b"", Answer.FORBIDDEN),
        (403, b"", Answer.FORBIDDEN),
        (404, b"", Answer.WRONG),
        (405, b"", Answer.WRONG),
        (302, b"", Answer.WRONG),
        (307, b"", Answer.BUSY),
        (412, b"", Answer.STALE),
        (413, b"", Answer.WRONG),
        (429, b"", Answer.BUSY),
        (472, b"", Answer.BUSY),
        (473, b"", Answer.BUSY),
        (500, b"", Answer.BUSY),
        (503, b"", Answer.BUSY),
    ],
)
def test_what_a_status_means(status: int, raw: bytes, answer: Answer) -> None:
    assert judge(status, raw) is answer


class Piece:
    def __init__(self, size: int) -> None:
        self.size = size


@given(st.lists(st.integers(1, 100), max_size=50), st.integers(1, 7), st.integers(1, 200))
def test_requests_take_all_in_order_and_keep_both_limits(sizes: list[int], most: int, most_bytes: int) -> None:
    queue: Queue[Piece] = Queue(most, most_bytes)
    pieces = [Piece(size) for size in sizes]
    for piece in pieces:
        queue.add(piece)
    taken: list[Piece] = []
    while batch := queue.take():
        assert len(batch) <= most
        assert len(batch) == 1 or sum(piece.size for piece in batch) <= most_bytes
        rest = pieces[len(taken) + len(batch) :]
        if rest and len(batch) < most:  # it could not have taken more
            assert sum(piece.size for piece in batch) + rest[0].size > most_bytes
        taken += batch
    assert taken == pieces


def test_what_is_withdrawn_is_not_sent() -> None:
    queue: Queue[Piece] = Queue(10, 100)
    pieces = [Piece(1) for _ in range(4)]
    for piece in pieces:
        queue.add(piece)
    queue.withdraw({pieces[1], pieces[3]})
    assert queue.take() == [pieces[0], pieces[2]]
    assert len(queue) == 0


def test_the_breaker_opens_after_failures_in_a_row_lets_one_through_after_its_pause_and_closes_with_that() -> None:
    breaker = Breaker(3, 5.0)
    for now in (0.0, 1.0):
        breaker.failed(now)
    breaker.succeeded()
    for now in (2.0, 3.0, 4.0):
        assert breaker.allows(now)
        breaker.failed(now)
    assert breaker.blocks(4.0)
    assert not breaker.allows(8.9)
    assert not breaker.blocks(9.0)
    assert breaker.allows(9.0)
    assert not breaker.allows(9.0)
    assert breaker.blocks(9.5)
    breaker.failed(10.0)
    assert not breaker.allows(14.9)
    assert breaker.allows(15.0)
    breaker.succeeded()
    assert breaker.allows(15.0)
    assert breaker.allows(15.0)


def test_a_question_that_never_ends_does_not_keep_the_breaker_open_for_ever() -> None:
    breaker = Breaker(1, 5.0)
    breaker.failed(0.0)
    assert breaker.allows(5.0)
    assert not breaker.allows(9.9)
    assert breaker.allows(10.0)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_waits_grow_to_two_seconds_and_are_not_below_what_the_server_wants(attempt: int, chance: float) -> None:
    assert 0.025 <= wait_before(attempt, chance) <= 2.0
    assert wait_before(attempt, chance, 7.0) == 7.0
    assert wait_before(0, 0.0) == 0.05
    assert wait_before(20, 0.0) == 2.0


@given(st.floats(1, 1e6), st.floats(0, 1))
def test_tokens_are_renewed_at_two_thirds_or_a_little_earlier(ttl: float, chance: float) -> None:
    assert ttl * 0.6 * 0.999 <= renew_after(ttl, chance) <= ttl * 2 / 3 * 1.001


def test_an_answer_is_kept_for_its_time_and_not_beyond_the_lease() -> None:
    cache = Cache(10, 60.0)
    cache.put("encode", "ssn", "v", "t", 0.0, 1000.0)
    cache.put("encode", "ssn", "w", "u", 0.0, 30.0)
    assert cache.get("encode", "ssn", "v", 59.9) == "t"
    assert cache.get("encode", "ssn", "v", 60.0) is None
    assert cache.get("encode", "ssn", "w", 29.9) == "u"
    assert cache.get("encode", "ssn", "w", 30.0) is None
    cache.put("encode", "ssn", "x", "y", 50.0, 50.0)
    assert len(cache) == 0


def test_answers_are_apart_by_direction_and_key() -> None:
    cache = Cache(10, 60.0)
    cache.put("encode", "ssn", "v", "t", 0.0, 1000.0)
    assert cache.get("decode", "ssn", "v", 0.0) is None
    assert cache.get("encode", "ssn-v2", "v", 0.0) is None


def test_neither_what_was_asked_nor_the_answer_is_kept_in_clear() -> None:
    cache, other = Cache(10, 60.0), Cache(10, 60.0)
    for each in (cache, other):
        for answer in ("987-65-4320", "987-65-4320"):  # also when it is put again
            each.put("encode", "ssn", "123-45-6789", answer, 0.0, 1000.0)
        each.put("decode", "ssn", "987-65-4320", "123-45-6789", 0.0, 1000.0)
    kept = repr((list(cache._kept.items()), list(other._kept.items())))
    assert "123-45" not in kept and "987-65" not in kept
    assert not cache._kept.keys() & other._kept.keys()
    nonces = [nonce for nonce, _, _ in cache._kept.values()]
    assert len({*nonces}) == len(nonces)
    before = dict(cache._kept)
    cache.clear()
    cache._kept.update(before)  # sealed with what was thrown away
    assert cache.get("encode", "ssn", "123-45-6789", 1.0) is None
    assert other.get("decode", "ssn", "987-65-4320", 1.0) == "123-45-6789"


def test_the_oldest_use_is_forgotten_first_and_nothing_is_kept_by_default() -> None:
    cache = Cache(2, 60.0)
    for value in "ab":
        cache.put("encode", "ssn", value, value, 0.0, 1000.0)
    assert cache.get("encode", "ssn", "a", 1.0)
    cache.put("encode", "ssn", "c", "c", 1.0, 1000.0)
    assert [cache.get("encode", "ssn", value, 2.0) for value in "abc"] == ["a", None, "c"]
    assert "a" not in repr(cache).replace("Cache", "")
    cache.clear()
    assert len(cache) == 0
    off = Cache(0, 60.0)
    off.put("encode", "ssn", "a", "a", 0.0, 1000.0)
    assert len(off) == 0
