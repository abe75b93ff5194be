"""The controls of Grille's threat model, and the one exception that enforces them.

Every denial, error and alert names one of these; `docs/explanation/threat-model.md` explains each.
A policy may name controls of its own in its decisions (the demo bundle's are in its README).
"""

from __future__ import annotations

from typing import Final

CONTROLS: Final[dict[str, str]] = {
    "ID-01": "an X.509-SVID must follow every rule of the SPIFFE specification",
    "ID-02": "a certificate is verified against its own trust domain's bundle only",
    "ID-03": "nothing is carried in clear before the TLS handshake",
    "ID-04": "startup parameters are rebuilt from an allow-list",
    "ID-05": "an identity must be registered before it may connect",
    "ID-06": "a session ends when its certificate does",
    "ID-07": "a revoked identity has no session",
    "WP-01": "a malformed message closes the connection",
    "WP-02": "a protocol feature that is not carried is refused",
    "WP-03": "sizes are limited before memory is taken",
    "WP-04": "a silent or half-sent message times out",
    "WP-05": "a cancel request cancels only what its key owns",
    "ST-01": "a statement that PostgreSQL's grammar does not accept is refused",
    "ST-02": "a syntax node that is not on the allow-list is refused",
    "ST-03": "unlisted and missing names share one answer",
    "ST-04": "functions, operators and types are called by OID from an allow-list",
    "ST-05": "utility statements are refused unless listed",
    "ST-06": "statement size and depth are limited before parsing",
    "ST-07": "only text that parses back to the checked tree is forwarded",
    "ST-08": "a plan is bound to the catalogue it was made for",
    "AC-01": "what the policy does not allow is denied",
    "AC-02": "a policy engine that fails, or an answer that is not understood, denies",
    "AC-03": "a relation that the decision does not name is denied",
    "AC-04": "a decision is valid only within its dates",
    "AC-05": "an obligation that cannot be enforced denies",
    "AC-06": "limits of a decision bind every statement",
    "AC-08": "a passthrough session takes the consent of policy and configuration, and ends without it",
    "AC-09": "in an isolated session each statement is enforced, or passes by a decision of its own",
    "RO-01": "rows are filtered before any expression of the agent sees them",
    "RO-02": "a written row must satisfy the same filter",
    "CO-01": "a sensitive column is masked unless the decision says otherwise",
    "CO-02": "a denied column cannot be referenced",
    "CO-03": "a tokenized column takes part only in equality, grouping and counting",
    "CO-04": "a masked column is never read by a write",
    "MQ-01": "whom a message is from, and what a queue is, are not for an agent to say",
    "MQ-02": "only queues and the queue manager itself are opened, under every name that they have",
    "MQ-03": "replies to a message go only where its sender may read",
    "MQ-04": "a message goes on only if it is as the layout of its queue says",
    "TK-01": "a token provider that does not answer denies",
    "TK-02": "a value that does not fit its template is refused on write",
    "TK-03": "a transformation that only reads makes no tokens",
    "AU-01": "a statement whose event cannot be kept is not answered",
    "AU-02": "evidence shows any change made to it",
    "UP-01": "an upstream that fails in doubt is closed, and its outcome recorded as unknown",
    "UP-02": "server errors are scrubbed by template",
    "OP-01": "a draining node finishes its transactions and takes no new ones",
    "OP-02": "a broken bundle leaves the old one in force",
}


class Refusal(Exception):
    """Something was not permitted, not understood or not possible; the agent is told so.

    ``message`` and ``hint`` go to the agent and must never hold a hidden value, a filter or another
    identity.  ``detail_for_audit`` goes to the audit event only.
    """

    def __init__(
        self,
        control: str,
        message: str,
        *,
        sqlstate: str = "42501",
        hint: str | None = None,
        fatal: bool = False,
        detail_for_audit: str | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(message)
        self.control = control
        self.sqlstate = sqlstate
        self.message = message
        self.hint = hint
        self.fatal = fatal
        self.detail_for_audit = detail_for_audit
        self.position = position
        """1-based character position in the agent's own text, where one is known."""
        self.location = 0
        """Byte offset in the text that was parsed, from which `position` is made; 0: none is known."""
        self.places: dict[str, int] = {}
        """`location` of each relation that the statement names, in the order in which they were looked up."""
        self.operation: object | None = None
        """What was understood of the statement before it was refused; the policy is asked about that first."""
        self.template: str | None = None
        """The statement with every constant replaced, where it could be parsed; for the audit event."""
        self.revision: str = ""
        """Revision of the policy that refused."""
        self.decision_id: str | None = None
        """Set by the proxy before the refusal is told and recorded."""
