"""``grille policy diff``: which recorded statements another policy would decide otherwise.

Every event that the policy was asked about is asked about again, of both policies: the operation out of the event, the
identity out of the event that began its session, the validity at the event's own time.  No database is needed.  What
enforcement would make of an answer is not compared, only the answers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any, Final, TextIO

import msgspec

from grille.audit.event import Event
from grille.audit.evidence import plain
from grille.policies.decision import Decision
from grille.policies.golden import differences, document
from grille.policies.pdp import DecisionError, PolicyDecisionPoint, PolicyUnavailable
from grille.proxy.identity import identity_document, parse_spiffe_id

KINDS: Final = ("denied", "allowed", "changed", "told")
"""Newly denied; newly allowed; allowed on other terms; denied for another reason."""
_TITLES: Final = {
    "denied": "would be DENIED",
    "allowed": "would be ALLOWED",
    "changed": "would be allowed on other terms",
    "told": "would be denied under another control or with other words",
}
_PROGRESS: Final = 20_000
"""Events between two lines of progress."""


class Answer(msgspec.Struct, frozen=True):
    """What a policy says to one question: a decision, or why there is none."""

    decision: Decision | None
    problem: str = ""

    def allows(self, relations: Iterable[str], when: str) -> bool:
        """Whether a statement that uses these relations is allowed at this time (RFC 3339)."""
        decision = self.decision
        if decision is None or not decision.allow or any(name not in decision.filters for name in relations):
            return False
        moment = dt.datetime.fromisoformat(when)
        return (decision.not_before is None or moment >= decision.not_before) and (
            decision.not_after is None or moment < decision.not_after
        )


class Change(msgspec.Struct, frozen=True):
    """One way in which statements change: what is counted together."""

    kind: str
    spiffe_id: str
    statement: str
    details: tuple[str, ...]


class Comparison(msgspec.Struct):
    """What became of the events."""

    changes: dict[Change, int] = {}
    same: int = 0
    unasked: int = 0
    """Statements that no policy was asked about: not understood, of the session itself, carried by passthrough."""
    unknown: int = 0
    """Statements whose session's beginning is not in the log, so that its identity's attributes are not known."""
    questions: int = 0

    def count(self, kind: str) -> int:
        """Statements that change in this way."""
        return sum(number for change, number in self.changes.items() if change.kind == kind)


def compare(
    old: PolicyDecisionPoint,
    new: PolicyDecisionPoint,
    events: Iterable[Event],
    *,
    since: str = "",
    until: str = "~",
    progress: TextIO | None = None,
) -> Comparison:
    """Replay the statements between two times (written as events have them), oldest first, through both policies.

    A line of progress is written every 20,000 events.
    """
    result = Comparison()
    identities: dict[str, dict[str, Any]] = {}
    answers: dict[bytes, tuple[Answer, Answer]] = {}
    for number, event in enumerate(events, 1):
        if progress is not None and number % _PROGRESS == 0:
            progress.write(f"{number} events, {len(answers)} questions\n")
        if event.kind == "session" and event.name == "connect" and event.action:
            identities[event.session] = _identity(event)
        elif event.kind != "statement" or (event.outcome is not None and event.outcome.status == "intent"):
            continue
        if not since <= event.time <= until:
            continue
        if not event.action:
            result.unasked += event.kind == "statement"
            continue
        identity = identities.get(event.session)
        if identity is None:
            result.unknown += 1
            continue
        question = msgspec.json.encode(
            {
                "identity": identity,
                "session": {"protocol": event.protocol, "database": event.database},
                "operation": _operation(event),
            }
        )
        if question not in answers:
            answers[question] = (_ask(old, question), _ask(new, question))
        change = _change(event, *answers[question])
        if change is None:
            result.same += 1
        else:
            result.changes[change] = result.changes.get(change, 0) + 1
    result.questions = len(answers)
    return result


def _identity(event: Event) -> dict[str, Any]:
    parts = parse_spiffe_id(event.spiffe_id)
    return identity_document(
        event.spiffe_id, parts.trust_domain, parts.path, event.certificate_sha256, event.scopes, event.attributes
    )


def _operation(event: Event) -> dict[str, Any]:
    """The question's ``operation``; the keys of `Operation`, and of `NotUnderstood` where it was one."""
    relations = [
        {
            "schema": used.name.partition(".")[0],
            "name": used.name.partition(".")[2],
            "access": used.access,
            "columns": used.columns,
            "predicates": used.predicates,
        }
        for used in event.relations
    ]
    asked: dict[str, Any] = {"action": event.action, "relations": relations, "functions": event.functions}
    if event.action == "passthrough" and event.verdict is not None:
        asked |= {"statement": event.verdict.statement, "control": event.verdict.passed}
    return asked


def _ask(pdp: PolicyDecisionPoint, question: bytes) -> Answer:
    try:
        return Answer(pdp.decide(question))
    except (PolicyUnavailable, DecisionError) as error:
        return Answer(None, str(error))


def _change(event: Event, old: Answer, new: Answer) -> Change | None:
    """How a statement's answers differ, or None.  What nobody sees of an answer is left out: the reason of an allowed
    statement, and how long an answer may be reused.
    """
    if event.action == "connect":
        was, now = _session(old), _session(new)
        return Change("changed", event.spiffe_id, "connect", (f"session: {was} -> {now}",)) if was != now else None
    relations = [used.name for used in event.relations]
    before, after = old.allows(relations, event.time), new.allows(relations, event.time)
    details: tuple[str, ...]
    if before and not after:
        kind, details = "denied", (_said(new, event),)
    elif after and not before:
        kind, details = "allowed", (f"was {_said(old, event)}", *_terms(new))
    elif before and after:
        assert old.decision is not None and new.decision is not None  # noqa: S101
        found = differences(_seen(old.decision), _seen(new.decision))
        kind, details = "changed", tuple(f"{place}: {_short(was)} -> {_short(now)}" for place, was, now in found)
    else:
        was, now = _said(old, event), _said(new, event)
        kind, details = "told", (f"was {was}", f"now {now}") if was != now else ()
    if not details:
        return None
    return Change(kind, event.spiffe_id, event.template or event.action, details)


def _session(answer: Answer) -> str:
    """What becomes of a session with this answer to ``connect``."""
    decision = answer.decision
    if decision is None or not decision.allow:
        return "governed"
    return "passthrough" if decision.passthrough else "isolated" if decision.isolated else "governed"


def _seen(decision: Decision) -> dict[str, Any]:
    whole = document(decision)
    return {key: value for key, value in whole.items() if key not in ("reason", "cache")}


def _terms(answer: Answer) -> Iterator[str]:
    assert answer.decision is not None  # noqa: S101
    for relation, row_filter in sorted(answer.decision.filters.items()):
        yield f"{relation}: {'all rows' if row_filter is True else _short(msgspec.to_builtins(row_filter))}"


def _said(answer: Answer, event: Event) -> str:
    decision = answer.decision
    if decision is None:
        return f"AC-02 no usable answer: {answer.problem}"
    if not decision.allow:
        return f"{decision.control} {decision.reason}"
    missing = [used.name for used in event.relations if used.name not in decision.filters]
    if missing:
        return f"ST-03 the answer has no filter for {', '.join(missing)}"
    return f"AC-04 valid from {decision.not_before or 'ever'} until {decision.not_after or 'ever'}"


def _short(value: object) -> str:
    return msgspec.json.encode(value).decode()


def tell(result: Comparison, out: TextIO) -> int:
    """Print what changes; 0 if nothing does, else 1."""
    for kind in KINDS:
        changes = sorted(
            ((change, number) for change, number in result.changes.items() if change.kind == kind),
            key=lambda one: (-one[1], one[0].spiffe_id, one[0].statement, one[0].details),
        )
        if changes:
            out.write(f"{result.count(kind)} {_TITLES[kind]}\n")
        for change, number in changes:
            out.write(f"  {number} x  {plain(change.statement)}\n      {plain(change.spiffe_id)}\n")
            out.writelines(f"      {plain(detail)}\n" for detail in change.details)
    counts = " ".join(f"{kind}={result.count(kind)}" for kind in KINDS)
    out.write(
        f"diff same={result.same} {counts} unasked={result.unasked} unknown={result.unknown} "
        f"questions={result.questions}\n"
    )
    return 1 if result.changes else 0
