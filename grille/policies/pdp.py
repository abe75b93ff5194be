"""The interface of a policy decision point (PDP): a document in, a `Decision` out, or an exception that denies."""

from __future__ import annotations

import functools
from collections.abc import Awaitable
from typing import Final, Protocol, Self

import msgspec

from grille.policies.decision import Decision, Limits

MAX_ANSWER = 1 << 20
"""Bytes; a longer answer is refused."""


class PolicyUnavailable(Exception):
    """The engine gave no answer: undefined, trap, time-out or over-size.  The caller denies."""


class Unanswered(Exception):
    """The engine has been asked, and answers later: wait for `answer`, which never raises, and ask again."""

    def __init__(self, answer: Awaitable[None]) -> None:
        super().__init__("the policy engine has not answered yet")
        self.answer = answer


class DecisionError(Exception):
    """The answer is not a decision: an unknown or missing key, an unknown value.  The caller denies."""


class PolicyDecisionPoint(Protocol):
    """What enforcement needs of an engine."""

    @property
    def revision(self) -> str:
        """Identifies the bundle in force; part of every cache key."""

    def decide(self, document: bytes) -> Decision:
        """The decision for one policy input (JSON).

        Raises `PolicyUnavailable` or `DecisionError`; `Unanswered` if the engine has to be waited for.
        """


class LoggedDecision(Decision, frozen=True, kw_only=True):
    """A decision that the engine has logged itself."""

    id: str
    """The engine's own id of it."""

    @classmethod
    def of(cls, decision: Decision, id: str) -> Self:
        """The same decision with this id."""
        return cls(**msgspec.structs.asdict(decision), id=id)


SMALL_ANSWER: Final = 4096
"""Up to this many bytes an answer that is given again, to another agent of the same kind, say, is decoded once."""
SMALL_ANSWERS: Final = 1024
"""How many of these are kept."""

_decoder = msgspec.json.Decoder(Decision)
_decode_small = functools.lru_cache(SMALL_ANSWERS)(_decoder.decode)


def decode(raw: bytes) -> Decision:
    """Decode one answer.  Raises `DecisionError` for anything but a complete, known decision."""
    if len(raw) > MAX_ANSWER:
        raise DecisionError("the answer is too long")
    try:
        return _decode_small(raw) if len(raw) <= SMALL_ANSWER else _decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise DecisionError(str(error)) from None


def not_with_connect(decision: Decision) -> str | None:
    """The first obligation of a passthrough or isolated session that nobody would keep, in words, or None."""
    if decision.filters:
        return "row filters"
    if decision.columns:
        return "columns"
    if decision.limits != Limits():
        return "limits"
    if decision.isolated and decision.passthrough:
        return "an isolated connection"
    return None


def obligations_not_enforced(decision: Decision) -> str | None:
    """The first obligation of the decision that this version does not enforce, in words, or None."""
    if decision.passthrough:
        return "passthrough"
    if decision.isolated:
        return "an isolated connection"
    return None
