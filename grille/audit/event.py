"""The audit event: one for each statement, complete and without values.

Values appear only as types and salted commitments (SHA-256 over a random salt and the value), so that a value can
be proven later by whoever knows it, and by nobody else.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["process", "power", "strict"]
"""When an event is kept: in the page cache, after the group's fdatasync, or intent and outcome both synced."""


class Chain(msgspec.Struct, frozen=True, omit_defaults=True):
    """The agent's own account of what led to the statement; only the SPIFFE identity is verified."""

    source: Literal["comment", "setting", "startup", "message", "none"] = "none"
    trust: Literal["asserted", "signed", "absent"] = "absent"
    traceparent: str | None = None
    prompt_id: str | None = None
    tool: str | None = None
    handler: str | None = None
    agent: str | None = None
    other: dict[str, str] = {}


class Value(msgspec.Struct, frozen=True, omit_defaults=True):
    """One literal or bind parameter: its type and a commitment, never itself."""

    type: str
    salt: str = ""
    commitment: str = ""
    null: bool = False


class Relation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One relation that a statement used."""

    name: str
    access: str
    columns: tuple[str, ...] = ()
    predicates: tuple[str, ...] = ()
    """Columns that took part in WHERE, ON, HAVING, ORDER BY or GROUP BY."""
    sensitive: dict[str, str] = {}
    """Sensitive column -> what the agent got: clear, token, mask:NAME, deny."""


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The decision under which the statement ran, or the control that refused it."""

    id: str
    allow: bool
    control: str
    reason: str
    revision: str = ""
    filters_hash: str = ""
    cached: bool = False
    statement: str = ""
    """Command tag of a statement of an isolated session."""
    passed: str = ""
    """The control that did not understand the statement, which went on unchanged by this decision."""


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came back; known at ReadyForQuery."""

    status: Literal["ok", "denied", "error", "unknown", "intent"]
    tag: str = ""
    sqlstate: str = ""
    error: str = ""
    """Full text of a server error, which the agent does not get."""
    reason: int = 0
    """Of a call of IBM MQ that was answered with one: the MQRC, like 2035."""
    rows: int = 0
    """Of a call of IBM MQ: messages."""
    bytes: int = 0
    encoded: int = 0
    decoded: int = 0


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """The message of an IBM MQ call: what its descriptor says, never its data."""

    id: str = ""
    """MsgId, hexadecimal."""
    correlation: str = ""
    """CorrelId, hexadecimal."""
    bytes: int = 0
    """Of data, with the headers before the payload."""
    format: str = ""
    ccsid: int = 0
    encoding: int = 0
    persistent: bool = False
    reply_to: str = ""
    """The queue, and after ``@`` its queue manager if the message names one."""
    backouts: int = 0


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One statement, fused from Parse, Bind, Execute and CommandComplete; or one lifecycle record."""

    id: str
    """UUID version 7, text form."""
    time: str
    """RFC 3339 with microseconds, UTC, at the start of the statement."""
    kind: Literal["statement", "session", "lifecycle"]
    name: str
    """``statement``; ``connect``/``disconnect``/``refused``/``alert``; ``start``/``stop``/``recovery``/..."""
    worker: int
    sequence: int
    """Strictly increasing within one worker's chain, set by the spool."""
    level: Level
    spiffe_id: str = ""
    certificate_serial: str = ""
    certificate_sha256: str = ""
    session: str = ""
    client: str = ""
    """Address and port of the client."""
    protocol: str = ""
    database: str = ""
    """Or the queue manager."""
    application: str = ""
    scopes: tuple[str, ...] = ()
    """Of the identity as it was configured; in ``connect`` only."""
    attributes: dict[str, str | int | bool] = {}
    """Of the identity as it was configured; in ``connect`` only."""
    chain: Chain = Chain()
    template: str = ""
    """The statement with every constant replaced by $n; for a text that could not be understood, empty."""
    template_sha256: str = ""
    statement_bytes: int = 0
    values: tuple[Value, ...] = ()
    message: Message | None = None
    action: str = ""
    """What the policy was asked about: ``select``, ``insert``, ``update``, ``delete``, ``passthrough``, ``connect``, or
    of IBM MQ ``put``, ``get``, ``browse``, ``inquire``.  Of its calls that no policy is asked about: ``open``,
    ``commit``, ``backout``."""
    relations: tuple[Relation, ...] = ()
    functions: tuple[str, ...] = ()
    verdict: Verdict | None = None
    outcome: Outcome | None = None
    intent: str = ""
    """Id of the intent event that this outcome completes (level ``strict`` and streamed results)."""
    stages: dict[str, int] = {}
    """Microseconds spent by stage: understand, decide, tokenize, upstream, audit, total."""
    text: str = ""
    """For lifecycle records, alerts, and statements that passed without being understood: a sentence."""
