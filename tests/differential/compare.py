"""What a pair of outcomes means.

The differences that are allowed are the members of `Allowed`, and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from tests.differential.wire import Outcome, Statement, same_rows


class Allowed(StrEnum):
    """Every way in which Grille and native row security may differ."""

    TEXT = "error text"
    """Grille replaces the server's words: SQLSTATEs are compared, not messages."""
    ORDER = "order of evaluation"
    """Which of several conditions runs first is the planner's choice: an expression that fails on a row that the agent
    may see fails on one side only, or another one fails first.  Allowed if the statement has such an expression, or if
    the answer is the same without the hidden rows."""
    CHECKS = "order of checks"
    """A written row that is outside of the filter *and* violates a constraint, or violates two, or would be changed
    twice: native row security checks the filter first, Grille after the constraints; both refuse."""
    TIME = "time limit"
    """One side ended at the statement's time limit, which is the same for both."""


class Verdict(NamedTuple):
    """``equal``, ``agreed``, ``denied``, ``leak``, ``wrong`` or ``crash``."""

    kind: str
    detail: str = ""
    ended: str = ""
    """How Grille ended it: ``rows``, ``tag``, an SQLSTATE or a control."""


_DATA: Final = ("22", "21")
"""Classes of errors that a value raises when an expression is evaluated."""
_CONSTRAINT: Final = "23"
_TIMED_OUT: Final = "57014"
_ROW_CHECK: Final = "RO-02"
_FULL_JOIN: Final = "0A000"
"""PostgreSQL joins FULL on hashable or mergeable conditions only, unless a strict WHERE makes another join of it; a
guard hides that the condition is strict.  The server then refuses, which counts as a denial."""


def judge(statement: Statement, ours: Outcome, native: Outcome, visible: Callable[[], Outcome]) -> Verdict:
    """Compare Grille's outcome with native row security's; ``visible`` runs the statement without the hidden rows."""
    ordered = statement.ordered
    if ours.kind == "lost" or native.kind == "lost" or ours.state[:2] in ("XX", "08"):
        return Verdict("crash", f"{ours.kind} {ours.state} {ours.message}; native {native.kind} {native.message}")
    if "57014" in (ours.state, native.state):
        return Verdict("equal", Allowed.TIME)
    if ours.kind == "denied":
        if ours.state == _ROW_CHECK and native.state == "42501":
            return Verdict("equal")
        if ours.state == _ROW_CHECK and native.state[:2] == _CONSTRAINT:
            return Verdict("equal", Allowed.CHECKS)
        if native.kind == "error":
            return Verdict("agreed", f"{ours.state}, native {native.state} {native.message}")
        if ours.state == _ROW_CHECK and " ON CONFLICT " not in statement.sql:
            return Verdict("wrong", f"a row that may be written is refused; native {_brief(native)}")
        return Verdict("denied", f"{ours.state} {ours.message}")
    if ours.kind == native.kind == "error" and ours.state == native.state:
        return Verdict("equal")
    if ours.kind == native.kind and ours.kind in ("rows", "tag"):
        if ours.tag != native.tag:
            what = f"tag {ours.tag}, native {native.tag}"
        elif (ours.names, ours.types) != (native.names, native.types):
            what = f"columns {ours.names} {ours.types}, native {native.names} {native.types}"
        elif same_rows(ours, native, ordered):
            return Verdict("equal")
        else:
            what = f"rows {ours.rows[:3]}, native {native.rows[:3]}"
    else:
        what = f"{_brief(ours)}, native {_brief(native)}"
    twice = ours.state == "21000" and " ON CONFLICT " in statement.sql
    if (
        native.kind == "error"
        and (twice or ours.state[:2] == _CONSTRAINT)
        and (native.state == "42501" or native.state[:2] == _CONSTRAINT)
    ):
        return Verdict("equal", Allowed.CHECKS)
    if ours.state == _FULL_JOIN and ours.kind == "error":
        return Verdict("denied", "0A000 a FULL JOIN that no longer becomes an outer join")
    states = {ours.state, native.state} - {""}
    failed = "error" in (ours.kind, native.kind) and all(state[:2] in _DATA for state in states)
    if failed and statement.fails:
        return Verdict("equal", Allowed.ORDER)
    without = visible()
    independent = (ours.kind, ours.state, ours.tag) == (without.kind, without.state, without.tag) and same_rows(
        ours, without, ordered
    )
    if not independent:
        return Verdict("leak", f"{what}, without hidden rows {_brief(without)}")
    if failed:
        return Verdict("equal", Allowed.ORDER)
    return Verdict("wrong", what)


def _brief(outcome: Outcome) -> str:
    if outcome.kind == "error":
        return f"{outcome.state} {outcome.message}"
    return f"{outcome.kind} {outcome.tag}" if outcome.kind == "tag" else f"{outcome.tag} {outcome.rows[:3]}"
