"""What the policy says of the queues of one queue manager: `grille.proxy.enforcement` for IBM MQ.

The relation of a queue is ``queue manager/queue``.  A decision is about one access of one agent to one queue, and is
cached like those about statements: the policy sees neither a message nor its properties.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Mapping
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
from grille.proxy.layouts import QueueLayout
from grille.tokenization import masking

_NO_TERMS: Final = Terms({}, False)


def relation(manager: str, queue: str) -> str:
    """Under which key a decision speaks of a queue."""
    return f"{manager}/{queue}"


class QueueTerms(msgspec.Struct, frozen=True):
    """What a decision about a queue says besides yes."""

    selection: str = ""
    """Of the messages that the agent may see; empty: all."""
    reads: dict[str, str] = {}
    """Of each sensitive field: ``clear``, ``token`` or ``mask:NAME``."""


class Queues:
    """Decisions about the queues of one queue manager, and of others that are reached through it."""

    def __init__(
        self, pdp: Callable[[], PolicyDecisionPoint], entries: int, layouts: Mapping[str, QueueLayout] | None = None
    ) -> None:
        """``entries``: decisions that are kept.  ``layouts``: by relation."""
        self._pdp = pdp
        self._layouts = layouts or {}
        self.decisions: Lru[object, Verdict] = Lru(entries)

    async def decide(self, agent: Agent, manager: str, queue: str, access: Access) -> tuple[Verdict, bool]:
        """The decision that allows this access, and whether it was a cached one.  Raises `Refusal`.

        The only one of its ``values`` are `QueueTerms`.
        """
        layout = self._layouts.get(relation(manager, queue))
        fields = tuple(sorted(layout.fields)) if layout is not None and access != "inquire" else ()
        operation = Operation(access, (RelationUse(manager, queue, access, fields),))
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
            verdict = self._ask(agent, operation, pdp)
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

    def _ask(self, agent: Agent, operation: Operation, pdp: PolicyDecisionPoint) -> Verdict:
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
            terms = self._terms(decision, use)
        except ValueError as error:
            refusal = Refusal(
                "AC-05",
                f"The policy asks for what cannot be enforced: {error}.",
                hint="Tell the owner of this agent's policy.",
            )
            raise identified(refusal, identifier, pdp.revision) from None
        except Refusal as refusal:
            raise identified(refusal, identifier, pdp.revision) from None
        ttl = decision.cache.ttl_seconds if decision.allow else min(decision.cache.ttl_seconds, DENIAL_SECONDS)
        filters = msgspec.json.encode(decision.filters, order="sorted")
        return Verdict(
            id=identifier,
            decision=decision,
            revision=pdp.revision,
            terms=_NO_TERMS,
            skeleton=b"",
            values=(terms,),
            filters_hash=hashlib.sha256(filters).hexdigest(),
            expires=time.monotonic() + ttl if ttl > 0 else 0.0,
        )

    def _terms(self, decision: Decision, use: RelationUse) -> QueueTerms:
        """Raises ValueError for what cannot be enforced, and `Refusal` CO-02 for a field that may not be had."""
        name = relation(use.schema, use.name)
        layout = self._layouts.get(name)
        fields = layout.fields if layout is not None else {}
        for key in decision.columns:
            owner, _, field = key.rpartition(".")
            if owner == name and field not in fields:
                raise ValueError("it speaks of a field that no layout of the queue names")
        reads = {}
        for field in use.columns:
            obligation = decision.columns.get(f"{name}.{field}")
            read = obligation.read if obligation is not None else f"mask:{masking.DEFAULT}"
            if use.access == "put":
                if obligation is None or obligation.write != "allow":
                    raise Refusal("CO-02", f"messages with the field {field} are not yours to put")
                continue
            if read == "deny":
                raise Refusal("CO-02", f"messages with the field {field} are not yours to read")
            if read not in ("clear", "token") and read.removeprefix("mask:") not in masking.MASKS:
                raise ValueError("a mask is not known")
            if read == "token" and fields[field] is None:
                raise ValueError(f"the field {field} has no tokens")
            reads[field] = read
        return QueueTerms(_selection(decision, name, use.access), reads)


def _selection(decision: Decision, name: str, access: Access) -> str:
    """What a decision's filter of a queue selects.  Raises ValueError."""
    row_filter = decision.filters.get(name, True)
    if row_filter is True:
        return ""
    if access not in ("get", "browse"):
        raise ValueError("the filter is about messages that are put or a queue that is inquired")
    text = _condition(row_filter, name)
    if len(text.encode()) > selection.MAX_LENGTH:
        raise ValueError("the filter is too long for a selection string")
    return text


_OPERATORS: Final = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _condition(row_filter: Filter, name: str) -> str:
    if isinstance(row_filter, CompoundFilter):
        parts = [f"({_condition(part, name)})" for part in row_filter.value]
        if not parts or (row_filter.operator == "not" and len(parts) != 1):
            raise ValueError("the filter combines no condition, or negates more than one")
        return f"NOT {parts[0]}" if row_filter.operator == "not" else f" {row_filter.operator.upper()} ".join(parts)
    assert isinstance(row_filter, FieldFilter)  # noqa: S101
    field = row_filter.field.removeprefix(f"{name}.")
    if row_filter.operator == "in":
        if not isinstance(row_filter.value, tuple) or not row_filter.value:
            raise ValueError("the filter has no list of values")
        return " OR ".join(f"({selection.compare(field, '=', value)})" for value in row_filter.value)
    return selection.compare(field, _OPERATORS[row_filter.operator], row_filter.value)


def _not_enforced(decision: Decision, access: Access) -> str | None:
    """The first obligation of the decision that nobody keeps for a queue, in words, or None."""
    limits = decision.limits
    for name in ("rows", "seconds", "concurrent", "distinct_keys_per_hour"):
        if getattr(limits, name) is not None:
            return f"the limit {name} on a queue"
    if limits.bytes is not None and access != "put":
        return "the limit bytes on a queue that is read"
    return obligations_not_enforced(decision)
