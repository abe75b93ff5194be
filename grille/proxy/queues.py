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
from grille.policies.decision import Decision
from grille.policies.pdp import (
    DecisionError,
    LoggedDecision,
    PolicyDecisionPoint,
    PolicyUnavailable,
    obligations_not_enforced,
)
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
        """The decision that allows this access, and whether it was a cached one.  Raises `Refusal`."""
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
        if verdict.decision.filters[name] is not True:
            refusal = Refusal(
                "AC-05",
                "The policy asks for a filter of messages, which this proxy cannot enforce.",
                hint="Tell the owner of this agent's policy.",
            )
            raise identified(refusal, verdict)
        return verdict, cached

    @staticmethod
    def _ask(agent: Agent, operation: Operation, pdp: PolicyDecisionPoint) -> Verdict:
        identifier = str(uuid.uuid4())
        document = msgspec.json.encode(policy_input(agent, operation, "mq"))
        try:
            decision = pdp.decide(document)
        except (PolicyUnavailable, DecisionError) as error:
            raise identified(no_answer(error), identifier, pdp.revision) from None
        if isinstance(decision, LoggedDecision):
            identifier = decision.id
        ttl = decision.cache.ttl_seconds if decision.allow else min(decision.cache.ttl_seconds, DENIAL_SECONDS)
        filters = msgspec.json.encode(decision.filters, order="sorted")
        return Verdict(
            id=identifier,
            decision=decision,
            revision=pdp.revision,
            terms=_NO_TERMS,
            skeleton=b"",
            values=(),
            filters_hash=hashlib.sha256(filters).hexdigest(),
            expires=time.monotonic() + ttl if ttl > 0 else 0.0,
        )


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
