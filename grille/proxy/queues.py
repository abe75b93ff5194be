"""What the policy says of the queues of one queue manager: `grille.proxy.enforcement` for IBM MQ.

The relation of a queue is ``queue manager/queue``.  A decision is about one access of one agent to one queue, and is
cached like those about statements: the policy sees neither a message nor its properties.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable
from typing import Final

import msgspec

from grille.controls import Refusal
from grille.policies.decision import CompoundFilter, Decision, FieldFilter, Filter
from grille.policies.pdp import (
    DecisionError,
    LoggedDecision,
    PolicyDecisionPoint,
    PolicyUnavailable,
    obligations_not_enforced,
)
from grille.protocols.mq import selection
from grille.protocols.operation import Access, Operation, RelationUse
from grille.protocols.postgres.rewrite import Terms
from grille.proxy.enforcement import (
    DENIAL_SECONDS,
    Lru,
    Verdict,
    answered,
    check_allowed,
    identified,
    no_answer,
    policy_input,
)
from grille.proxy.identity import Agent

_NO_TERMS: Final = Terms({}, False)


def relation(manager: str, queue: str) -> str:
    """Under which key a decision speaks of a queue."""
    return f"{manager}/{queue}"


class Queues:
    """Decisions about the queues of one queue manager, and of others that are reached through it."""

    def __init__(self, pdp: Callable[[], PolicyDecisionPoint], entries: int) -> None:
        """``entries``: decisions that are kept."""
        self._pdp = pdp
        self.decisions: Lru[object, Verdict] = Lru(entries)

    async def decide(self, agent: Agent, manager: str, queue: str, access: Access) -> tuple[Verdict, bool]:
        """The decision that allows this access, and whether it was a cached one.  Raises `Refusal`.

        The only one of its ``values`` is the selection string for the messages that the agent may see; empty: all.
        """
        operation = Operation(access, (RelationUse(manager, queue, access),))
        try:
            return await answered(lambda: self._decide(agent, operation))
        except PolicyUnavailable as error:
            raise no_answer(error) from None

    def _decide(self, agent: Agent, operation: Operation) -> tuple[Verdict, bool]:
        pdp = self._pdp()
        key = (agent.fingerprint, operation, pdp.revision)
        verdict = self.decisions.get(key)
        cached = verdict is not None and time.monotonic() < verdict.expires
        if verdict is None or not cached:
            verdict = _ask(agent, operation, pdp)
            if verdict.expires:
                self.decisions.put(key, verdict)
        (use,) = operation.relations
        check_allowed(verdict, _not_enforced(verdict.decision, use.access))
        name = relation(use.schema, use.name)
        if name not in verdict.decision.filters:
            refusal = Refusal(
                "AC-03",
                f"The decision does not name the queue {name}.",
                hint="Ask the owner of this agent's policy if the task needs it.",
            )
            raise identified(refusal, verdict)
        return verdict, cached


def _ask(agent: Agent, operation: Operation, pdp: PolicyDecisionPoint) -> Verdict:
    identifier = str(uuid.uuid4())
    document = msgspec.json.encode(policy_input(agent, operation, "mq"))
    try:
        decision = pdp.decide(document)
    except (PolicyUnavailable, DecisionError) as error:
        raise identified(no_answer(error), identifier, pdp.revision) from None
    if isinstance(decision, LoggedDecision):
        identifier = decision.id
    (use,) = operation.relations
    try:
        selected = _selection(decision, relation(use.schema, use.name), use.access)
    except ValueError as error:
        refusal = Refusal(
            "AC-05",
            f"The policy asks for a filter of messages that cannot be enforced: the filter {error}.",
            hint="Tell the owner of this agent's policy.",
        )
        raise identified(refusal, identifier, pdp.revision) from None
    ttl = decision.cache.ttl_seconds if decision.allow else min(decision.cache.ttl_seconds, DENIAL_SECONDS)
    filters = msgspec.json.encode(decision.filters, order="sorted")
    return Verdict(
        id=identifier,
        decision=decision,
        revision=pdp.revision,
        terms=_NO_TERMS,
        skeleton=b"",
        values=(selected,),
        filters_hash=hashlib.sha256(filters).hexdigest(),
        expires=time.monotonic() + ttl if ttl > 0 else 0.0,
    )


def _selection(decision: Decision, name: str, access: Access) -> str:
    """What a decision's filter of a queue selects.  Raises ValueError, in words that follow "the filter"."""
    row_filter = decision.filters.get(name, True)
    if row_filter is True:
        return ""
    if access not in ("get", "browse"):
        raise ValueError("is about messages that are put or a queue that is inquired")
    text = _condition(row_filter, name)
    if len(text.encode()) > selection.MAX_LENGTH:
        raise ValueError("is too long for a selection string")
    return text


_OPERATORS: Final = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _condition(row_filter: Filter, name: str) -> str:
    if isinstance(row_filter, CompoundFilter):
        parts = [f"({_condition(part, name)})" for part in row_filter.value]
        if not parts or (row_filter.operator == "not" and len(parts) != 1):
            raise ValueError("combines no condition, or negates more than one")
        return f"NOT {parts[0]}" if row_filter.operator == "not" else f" {row_filter.operator.upper()} ".join(parts)
    assert isinstance(row_filter, FieldFilter)  # noqa: S101
    field = row_filter.field.removeprefix(f"{name}.")
    if row_filter.operator == "in":
        if not isinstance(row_filter.value, tuple) or not row_filter.value:
            raise ValueError("has no list of values")
        return " OR ".join(f"({selection.compare(field, '=', value)})" for value in row_filter.value)
    return selection.compare(field, _OPERATORS[row_filter.operator], row_filter.value)


def _not_enforced(decision: Decision, access: Access) -> str | None:
    """The first obligation of the decision that nobody keeps for a queue, in words, or None."""
    if decision.columns:
        return "obligations on fields"
    limits = decision.limits
    for name in ("rows", "seconds", "concurrent", "distinct_keys_per_hour"):
        if getattr(limits, name) is not None:
            return f"the limit {name} on a queue"
    if limits.bytes is not None and access != "put":
        return "the limit bytes on a queue that is read"
    return obligations_not_enforced(decision)
