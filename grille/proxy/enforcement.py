"""Where protocols, policies, tokenization and audit meet: from a statement's text to a plan with its slots filled.

    text -> template -> Operation     (cached by template)
    Operation + identity -> Decision  (L1: fingerprint, operation, revision, epoch)
    template + skeleton -> Plan       (L2)

A hit is dictionary look-ups: it parses no SQL and calls no policy engine.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypedDict, TypeVar

import msgspec

from grille.audit.event import Relation
from grille.audit.event import Verdict as EventVerdict
from grille.audit.fused import statement_piece
from grille.controls import Refusal
from grille.policies.decision import (
    CompoundFilter,
    Decision,
    FieldFilter,
    Filter,
    Limits,
)
from grille.policies.pdp import (
    DecisionError,
    LoggedDecision,
    PolicyDecisionPoint,
    PolicyUnavailable,
    Unanswered,
    not_with_connect,
    obligations_not_enforced,
)
from grille.protocols.operation import NotUnderstood, Operation, RelationUse
from grille.protocols.postgres import arrays, lexer
from grille.protocols.postgres.analysis import (
    SYSTEM_SCHEMAS,
    Analysis,
    Sensitive,
    placed,
    unavailable_relation,
    with_sources,
)
from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.catalog import Relation as CatalogRelation
from grille.protocols.postgres.commands import SessionCommand
from grille.protocols.postgres.copy import CopyInCommand, CopyOut, rows_at_once
from grille.protocols.postgres.definitions import redefined
from grille.protocols.postgres.introspection import VISIBLE, column_number
from grille.protocols.postgres.purity import Purity, normal_signature
from grille.protocols.postgres.resolve import Resolver
from grille.protocols.postgres.rewrite import (
    ColumnTerms,
    Combine,
    Compare,
    Condition,
    EncodeSlot,
    Plan,
    RelationTerms,
    Terms,
    Transform,
    rewrite,
)
from grille.protocols.postgres.statement import (
    ParsedStatement,
    analyze,
    parse_text,
    redacted,
    same_with_parameters,
    template_positions,
)
from grille.protocols.postgres.tree import Node
from grille.proxy import answers
from grille.proxy.catalog_own import VIEWS, BuiltIn, View
from grille.proxy.identity import Agent
from grille.proxy.startup import cut_comment
from grille.tokenization import masking
from grille.tokenization.provider import (
    ReadOnly,
    TokenizationError,
    TokenizationRefused,
    TokenProvider,
    TokenRequest,
    Unfit,
)

MAX_CONSTANTS = 1000
"""A text with more constants is its own template: it is longer as a template, and will hardly be seen again."""
MAX_ELEMENTS = 65_535
"""Of an array on a tokenized column: as many values as a statement can have parameters.  They are encoded at once."""
PLAN_ENTRIES = 10_000
CACHED_CHARACTERS = 1 << 26
"""Of text, in each cache keyed by texts: large statements push out small ones before memory runs out."""
DENIAL_SECONDS = 5.0
"""Longest time that a denial is reused."""
MAX_QUESTIONS = 1000
"""To a policy engine that has to be waited for, before one text is prepared."""
READY_ENTRIES = 100_000
VISIBLE_ENTRIES = 1_000
RELATIONS_AT_ONCE = 50
"""Asked about one after the other before other agents have their turn."""
READY_SECONDS = 3600.0
"""How long a session command is remembered."""
CSV_HAS_NO_MARKER = 180000
"""From this version on a line ``\\.`` is data in CSV."""
_QUOTE = ord("'")

CONNECT = Operation("connect")
"""What the policy is asked about a session as a whole."""

K = TypeVar("K")
V = TypeVar("V")
_Positions = tuple[frozenset[int], frozenset[int]]
_NO_POSITIONS: _Positions = (frozenset(), frozenset())


class Lru(Generic[K, V]):
    """A dictionary that forgets what was used longest ago, and counts its hits."""

    def __init__(self, size: int, *, weight: int | None = None) -> None:
        """At most `size` entries, whose weights together are at most `weight`."""
        self._size = size
        self._limit = weight
        self._weight = 0
        self._weights: dict[K, int] = {}
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def get(self, key: K) -> V | None:
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return found

    def peek(self, key: K) -> V | None:
        """`get`, without noting that it was used."""
        return self._entries.get(key)

    def put(self, key: K, value: V, weight: int = 0) -> None:
        if self._size <= 0 or (self._limit is not None and weight > self._limit):
            return
        if weight or key in self._weights:
            self._weight += weight - self._weights.get(key, 0)
            self._weights[key] = weight
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self._size or (self._limit is not None and self._weight > self._limit):
            oldest, _value = self._entries.popitem(last=False)
            self._weight -= self._weights.pop(oldest, 0)

    def clear(self) -> None:
        self._entries.clear()
        self._weights.clear()
        self._weight = 0

    def __len__(self) -> int:
        return len(self._entries)


class Verdict(msgspec.Struct, frozen=True):
    """A decision as it applies to one agent and one operation."""

    id: str
    decision: Decision
    revision: str
    terms: Terms
    skeleton: bytes
    """The terms, encoded: the part of the decision that a plan depends on."""
    values: tuple[object, ...]
    """The identity's own values, lifted out of the filters."""
    filters_hash: str
    expires: float
    """Monotonic time until which it may be reused; 0: only this once."""


class Understood(msgspec.Struct, frozen=True):
    """A text, understood: the same for every agent."""

    text: str
    """The template, or the exact text."""
    digest: bytes
    """SHA-256 of `text`, hexadecimal: the identity of the template."""
    parameter_types: tuple[int, ...]
    command: SessionCommand | None
    operation: Operation | None
    action: str
    is_template: bool
    shown: str
    """`text` with every constant replaced: what the audit event shows."""
    places: dict[str, int] = {}
    """Where `text` first names each relation, as byte offsets."""
    copy: CopyOut | None = None
    """It is a COPY TO STDOUT: how its rows are written."""
    introspects: bool = False
    """It reads the catalogue: what the agent may see goes with it as the last of its values."""


class Prepared(msgspec.Struct, frozen=True):
    """One understood and decided statement, ready to be bound."""

    action: str
    command: SessionCommand | None
    plan: Plan | None
    constants: tuple[bytes | None, ...]
    """Text-format values of the template's constants."""
    limits: Limits
    understood: Understood
    verdict: Verdict | None
    cached: bool
    """The decision came from the cache."""
    stages: dict[str, int] = {}
    """Microseconds: understand, decide."""

    @property
    def client_parameters(self) -> int:
        """How many parameters the client binds."""
        if self.plan is None or self.understood.is_template:
            return 0
        return self.plan.client_parameters


class Copying(msgspec.Struct, frozen=True):
    """One decided COPY FROM STDIN."""

    columns: tuple[str, ...]
    """What is written, in the order of the values of a row."""
    rows: int
    """How many rows `many` takes."""
    told: Prepared
    """`one` under the text of the COPY, for the audit event."""
    one: Prepared
    """The INSERT of one row."""
    many: Prepared
    csv_marker: bool
    """To this server a line ``\\.`` ends the data in CSV too."""


class Ready:
    """One statement that one agent may run until `expires`: what the fast path needs, looked up once."""

    __slots__ = (
        "added",
        "command",
        "decoded_columns",
        "expires",
        "large_until",
        "named",
        "plan",
        "prepared",
        "private_until",
        "shared",
        "tail",
        "template",
        "types",
        "verdict",
        "writes",
    )

    def __init__(self, prepared: Prepared, expires: float, agent: Agent) -> None:
        plan, understood = prepared.plan, prepared.understood
        self.prepared = prepared
        self.plan = plan
        self.named = plan
        """The plan under the name of a statement that the client has prepared itself."""
        if plan is not None and not plan.shared:
            self.named = msgspec.structs.replace(plan, name=f"{plan.name}_{agent.fingerprint[:12]}")
        self.command = prepared.command
        self.expires = expires
        """Monotonic time."""
        self.private_until = 0.0
        """Monotonic time until which it is too slow or too large for a shared pipe."""
        self.large_until = 0.0
        """Monotonic time until which it is too large for the fast path."""
        self.writes = plan is not None and plan.writes
        self.shared = plan is not None and plan.pure and plan.keyed and not plan.writes
        """It may run on a shared pipe."""
        self.added = 0
        self.tail = b""
        """Bind's values after the client's, in text format, and how many they are."""
        if plan is not None and prepared.verdict is not None:
            values = [literal.encode() for literal in plan.literals]
            values += [_injected_text(prepared.verdict.values[slot.value], slot.array) for slot in plan.injected]
            self.added = len(values)
            self.tail = b"".join([len(value).to_bytes(4, "big") + value for value in values])
        self.decoded_columns = tuple(
            n for n, result in enumerate(plan.results if plan is not None else ()) if result and result.transformation
        )
        self.types = tuple(type_name(oid) for oid in plan.parameter_types) if plan is not None else ()
        """Names of the parameters' types, for the audit event."""
        shown = understood.shown
        operation = understood.operation
        asked = asked_about(operation if prepared.verdict is not None else None, prepared.verdict)
        self.template, self.verdict = statement_piece(
            shown,
            hashlib.sha256(shown.encode()).hexdigest() if shown else "",
            verdict=event_verdict(prepared, cached=True),
            **asked,
        )


class _Visible(msgspec.Struct):
    """What one agent sees of the catalogue under one revision of the policy."""

    waiting: list[RelationUse]
    """Relations that the policy has not been asked about yet, with all their columns."""
    relations: list[int]
    """OIDs of those that it may read."""
    hidden: list[int]
    """Columns of these that it may not read: `column_number`."""
    types: set[int]
    """OIDs of the types of the others."""
    expires: float
    """Monotonic time until which the answers hold."""
    arrays: tuple[tuple[int, ...], ...] = ()
    """The last three as they go with statements, which all hold these same ones."""


class _Shape:
    """What all texts have in common that differ in plain constants of the same classes only."""

    __slots__ = ("kept", "signed", "taken")

    def __init__(self, taken: tuple[int, ...], kept: tuple[int, ...], signed: tuple[int, ...] = ()) -> None:
        self.taken = taken
        """Which constants become parameters, in the order of the parameters."""
        self.signed = signed
        """Which parameters, counted from 0, are negative: the minus stands before the constant."""
        self.kept = kept
        """Which constants belong to the statement."""


class Enforcement:
    """Understands, decides and rewrites statements for one upstream database.

    `catalog` and `pdp` give the snapshot and the engine in force now.
    """

    def __init__(
        self,
        *,
        catalog: Callable[[], Catalog],
        pdp: Callable[[], PolicyDecisionPoint],
        provider: TokenProvider,
        sensitive: Mapping[str, Sensitive],
        functions: Sequence[str] = (),
        definitions: Mapping[str, str] | None = None,
        passthrough: bool = False,
        max_statement: int = 65_536,
        decision_entries: int = 100_000,
    ) -> None:
        self._catalog = catalog
        self._pdp = pdp
        self._provider = provider
        self._configured = dict(sensitive)
        self._sensitive: dict[str, Sensitive] = {}
        self._by_relation: dict[str, list[str]] = {}
        self._listed = tuple(functions)
        self._definitions = dict(definitions or {})
        self._redefined: frozenset[str] = frozenset()
        self.functions: tuple[str, ...] = ()
        """Routines outside pg_catalog that the configuration lists, and that are as they were approved."""
        self.changes = 0
        """Counts what isolated sessions have committed that others may have to look after."""
        self._built_in: BuiltIn | None = None
        self.seen: Lru[object, tuple[View, int, float]] = Lru(VIEWS)
        """By settings of the startup: what a new isolated session saw, at what count of `changes`, and until when
        (monotonic) another may begin with it."""
        self._passthrough = passthrough
        self._max_statement = max_statement
        self._epoch = ""
        self._resolver: Resolver | None = None
        self._purity: Purity | None = None
        self._positions: Lru[object, _Positions] = Lru(PLAN_ENTRIES, weight=CACHED_CHARACTERS)
        """Masked tokens -> which constants become parameters, and which of them with the minus before them."""
        self.texts: Lru[object, tuple[Understood, ...]] = Lru(PLAN_ENTRIES, weight=CACHED_CHARACTERS)
        self.decisions: Lru[object, Verdict] = Lru(decision_entries)
        self._fresh: dict[tuple[bytes, tuple[int, ...]], Analysis] = {}
        """Of the text that was read last: not used up yet, so its plan needs no second analysis."""
        self._visible: Lru[object, _Visible] = Lru(VISIBLE_ENTRIES)
        """By agent: what it sees of the catalogue."""
        self.plans: Lru[object, Plan] = Lru(PLAN_ENTRIES, weight=CACHED_CHARACTERS)
        self._shapes: Lru[object, _Shape] = Lru(PLAN_ENTRIES, weight=CACHED_CHARACTERS)
        self._ready: Lru[object, Ready] = Lru(READY_ENTRIES, weight=CACHED_CHARACTERS)
        self._ready_pdp: object = None
        self._ready_epoch = ""
        self._generation = 0

    def ready(
        self, agent: Agent, text: bytes, types: tuple[int, ...] = ()
    ) -> tuple[Ready, list[bytes | None] | None] | None:
        """A single statement that this agent may run now, and the values of the constants that became parameters.

        The values are None where the client binds its own.  None: it has to be prepared with `prepare`, which tells
        what is wrong with it.  A hit parses no SQL and asks no policy engine.
        """
        if len(text) > self._max_statement or not self.renew():
            return None
        values: list[bytes | None] | None = None
        found: Ready | None
        parts = lexer.cut(text) if not types else None
        if parts is not None and parts[1] and len(parts[1]) <= MAX_CONSTANTS:
            pieces, classes, constants = parts
            shape = self._shapes.peek((pieces, classes))
            if shape is None:
                shape = self._shape(text)
                self._shapes.put((pieces, classes), shape, len(text))
            kept = tuple([constants[n] for n in shape.kept])
            key: object = (agent.fingerprint, pieces, classes, kept)
            if shape.taken:
                values = [value[1:-1] if value[0] == _QUOTE else value for n in shape.taken if (value := constants[n])]
                for n in shape.signed:
                    values[n] = b"-" + constants[shape.taken[n]]
        else:
            key = (agent.fingerprint, text, types)
        found = self._ready.peek(key)
        if found is None or time.monotonic() >= found.expires:
            found = self._make_ready(agent, text, types, values)
            if found is None:
                return None
            self._ready.put(key, found, len(text) + _held(found.prepared))
        return found, values

    def renew(self) -> int:
        """Forget what was ready under another policy or catalogue; the number of the present generation.

        0: there is no catalogue yet.
        """
        pdp = self._pdp()
        try:
            epoch = self._catalog().epoch
        except Refusal:
            return 0
        if pdp is not self._ready_pdp or epoch != self._ready_epoch:
            self._ready.clear()
            self._ready_pdp, self._ready_epoch = pdp, epoch
            self._generation += 1
        return self._generation

    def _shape(self, text: bytes) -> _Shape:
        """Which of the constants that `lexer.cut` finds become parameters; all are kept where that cannot be told."""
        count = len((lexer.cut(text) or ((), b"", []))[1])
        nothing = _Shape((), tuple(range(count)))
        lexed = lexer.tokenize(text)
        places = lexer.cut_places(text, lexed) if lexed is not None else None
        if lexed is None or places is None or len(lexed.constants) > MAX_CONSTANTS:
            return nothing
        try:
            if self._template(lexed, text.decode()) is None:
                return nothing
        except Refusal:
            return nothing
        positions, signed = self._positions.get(lexed.key) or _NO_POSITIONS
        where = {index: number for number, index in places.items()}
        if not positions <= where.keys():
            return nothing
        ordered = sorted(positions)
        taken = tuple(where[index] for index in ordered)
        kept = tuple(number for number in range(count) if number not in taken)
        return _Shape(taken, kept, tuple(number for number, index in enumerate(ordered) if index in signed))

    def _make_ready(
        self, agent: Agent, text: bytes, types: tuple[int, ...], values: list[bytes | None] | None
    ) -> Ready | None:
        try:
            decoded = text.decode()
            stripped, chain = cut_comment(decoded)
            if chain is not None or stripped != decoded or "\0" in decoded or answers.may_answer(decoded):
                return None
            all_prepared = self._prepare(agent, decoded, types, simple=False)
        except (Refusal, Unanswered, UnicodeDecodeError):
            return None
        (prepared,) = all_prepared
        understood = prepared.understood
        if understood.is_template != (values is not None) or understood.copy is not None or understood.introspects:
            return None
        expires = time.monotonic() + READY_SECONDS
        verdict = prepared.verdict
        if verdict is not None:
            expires = verdict.expires
            end = verdict.decision.not_after
            if end is not None:
                expires = min(expires, time.monotonic() + (end - dt.datetime.now(dt.UTC)).total_seconds())
            if prepared.plan is None or not expires:
                return None
        elif prepared.command is None or isinstance(prepared.command, CopyInCommand):
            return None
        return Ready(prepared, expires, agent)

    async def prepare(
        self, agent: Agent, text: str, types: Sequence[int] = (), *, simple: bool = False
    ) -> list[Prepared]:
        """Understand and decide `text`; several statements only if `simple`.  Raises `Refusal`."""
        try:
            try:
                return await answered(lambda: self._prepare(agent, text, tuple(types), simple))
            except PolicyUnavailable as error:
                raise no_answer(error) from None
        except Refusal as refusal:
            if refusal.template is None:
                refusal.template = redacted(text) if len(text) <= self._max_statement else ""
            if refusal.position is None and refusal.location:
                refusal.position = self._position(text, tuple(types), refusal.location)
            raise

    def _prepare(self, agent: Agent, text: str, types: tuple[int, ...], simple: bool) -> list[Prepared]:
        self._follow_catalog()
        started = time.perf_counter_ns()
        understood, constants = self._understand(agent, text, types)
        if len(understood) > 1 and not simple:
            raise Refusal("ST-01", "A prepared statement holds exactly one command.", sqlstate="42601")
        understood_at = time.perf_counter_ns()
        prepared = []
        for one in understood:
            if one.operation is None:
                prepared.append(Prepared(one.action, one.command, None, (), Limits(), one, None, False))
                continue
            verdict, cached = self._decide(agent, one.operation, one.places)
            if one.introspects:
                verdict = self._with_visible(agent, verdict)
            plan = self._plan(one, verdict)
            decided_at = time.perf_counter_ns()
            stages = {"understand": (understood_at - started) // 1000, "decide": (decided_at - understood_at) // 1000}
            prepared.append(
                Prepared(one.action, None, plan, constants, verdict.decision.limits, one, verdict, cached, stages)
            )
        return prepared

    async def prepare_copy(self, agent: Agent, command: CopyInCommand) -> Copying:
        """Decide a COPY FROM STDIN as the INSERT that it becomes.  Raises `Refusal`."""
        self._follow_catalog()
        names, generated = command.columns, frozenset[str]()
        relation = self._relation_of(command.target)
        if relation is not None:
            generated = frozenset(column.name for column in relation.columns if column.generated)
            names = names or tuple(column.name for column in relation.columns if not column.generated)
        try:
            (one,) = await self.prepare(agent, command.insert(names, 1))
            # Only now may anything be told of the relation.
            if not names:
                raise Refusal("ST-02", "COPY needs a table with columns that can be written.", sqlstate="0A000")
            if not generated.isdisjoint(names):
                raise Refusal("ST-01", "COPY cannot write a generated column.", sqlstate="42P10")
            options = command.options
            forced = (*(options.force_null or ()), *(options.force_not_null or ()))
            if not set(forced) <= set(names):
                raise Refusal(
                    "ST-01", "FORCE_NULL or FORCE_NOT_NULL names a column that is not copied.", sqlstate="42P10"
                )
            rows = rows_at_once(len(names))
            (many,) = await self.prepare(agent, command.insert(names, rows)) if rows > 1 else (one,)
        except Refusal as refusal:
            refusal.template, refusal.position = command.shown, None
            raise
        shown = msgspec.structs.replace(command, columns=names).shown
        told = msgspec.structs.replace(one, understood=msgspec.structs.replace(one.understood, shown=shown))
        return Copying(names, rows, told, one, many, self._catalog().server_version < CSV_HAS_NO_MARKER)

    def _relation_of(self, target: Sequence[str]) -> CatalogRelation | None:
        """The relation of this name, if there is one: the policy has not been asked about it."""
        assert self._resolver is not None  # noqa: S101
        name = target[-1]
        schema = target[-2] if len(target) > 1 else self._resolver.schema_of(name) or "public"
        return self._resolver.catalog.relations.get((schema, name))

    def type_oids(self, types: Sequence[tuple[tuple[str, ...], bool]]) -> tuple[int, ...]:
        """OIDs of declared parameter types, each given by its name's parts and whether it is an array of that.

        Raises `Refusal` ST-04 for a type that is not available to agents.
        """
        self._follow_catalog()
        assert self._resolver is not None  # noqa: S101
        return self._resolver.type_oids(types)

    async def bind(
        self, agent: Agent, prepared: Prepared, formats: Sequence[int], values: Sequence[bytes | None]
    ) -> tuple[list[int], list[bytes | None]]:
        """Fill the slots of a plan: formats and values of every upstream parameter.  Raises `Refusal`."""
        try:
            return await self._fill(prepared, formats, values)
        except Refusal as refusal:
            refusal.template = prepared.understood.shown
            refusal.operation = prepared.understood.operation
            if prepared.verdict is not None:
                raise identified(refusal, prepared.verdict) from None
            raise

    async def _fill(
        self, prepared: Prepared, formats: Sequence[int], values: Sequence[bytes | None]
    ) -> tuple[list[int], list[bytes | None]]:
        plan, verdict = prepared.plan, prepared.verdict
        if plan is None or verdict is None:
            raise Refusal("ST-05", "This statement takes no parameters.", sqlstate="08P01")
        self.still_valid(verdict)
        if prepared.understood.is_template:
            values, formats = prepared.constants, ()
        if len(values) != plan.client_parameters:
            raise Refusal(
                "ST-01",
                f"The statement takes {plan.client_parameters} parameters, not {len(values)}.",
                sqlstate="08P01",
            )
        all_formats = _spread(formats, len(values))
        filled: list[bytes | None] = [*values, *(literal.encode() for literal in plan.literals)]
        all_formats += [0] * len(plan.literals)
        if plan.encode:
            await self._encode(plan, filled, all_formats)
        for slot in plan.injected:
            filled.append(_injected_text(verdict.values[slot.value], slot.array))
            all_formats.append(0)
        return all_formats, filled

    async def bind_copy(
        self, copying: Copying, binary: bool, rows: Sequence[Sequence[bytes | None]]
    ) -> list[tuple[Plan, tuple[list[int], list[bytes | None]], int]]:
        """The INSERTs of these rows: each one's plan, its formats and values, and how many of these are tokens.

        Raises `Refusal`.
        """
        one, many = copying.one.plan, copying.many.plan
        assert one is not None and many is not None and copying.told.verdict is not None  # noqa: S101
        self.still_valid(copying.told.verdict)
        width = len(copying.columns)
        flat = [value for row in rows for value in row]
        slots = [
            EncodeSlot(start + slot.parameter, slot.transformation)
            for start in range(0, len(flat), width)
            for slot in one.encode
        ]
        if slots:
            await self._encode(msgspec.structs.replace(one, encode=tuple(slots)), flat)
        encoded = [sum(row[slot.parameter] is not None for slot in one.encode) for row in rows]
        found = []
        whole = len(rows) // copying.rows * copying.rows
        for prepared, first, last, step in (
            (copying.many, 0, whole, copying.rows),
            (copying.one, whole, len(rows), 1),
        ):
            plan, verdict = prepared.plan, prepared.verdict
            assert plan is not None and verdict is not None  # noqa: S101
            injected = [_injected_text(verdict.values[slot.value], slot.array) for slot in plan.injected]
            formats = [int(binary)] * (step * width) + [0] * len(injected)
            for start in range(first, last, step):
                end = start + step
                values = [*flat[start * width : end * width], *injected]
                found.append((plan, (formats, values), sum(encoded[start:end])))
        return found

    async def release(
        self, agent: Agent, prepared: Prepared, rows: list[list[bytes | None]], formats: Sequence[int]
    ) -> list[list[bytes | None]]:
        """Decode and mask a batch of visible rows, in place.  Raises `Refusal`."""
        (refusal,) = await self.release_all([(prepared, rows)])
        if refusal is not None:
            raise refusal
        return rows

    async def release_all(self, results: Sequence[tuple[Prepared, list[list[bytes | None]]]]) -> list[Refusal | None]:
        """`release` for the rows of many statements, with one call to the provider.

        What each is refused with, or None.  Raises `Refusal` if the provider does not answer.
        """
        requests: list[TokenRequest] = []
        places: list[tuple[int, list[bytes | None], int, Transform]] = []
        refused: list[Refusal | None] = [None] * len(results)
        for number, (prepared, rows) in enumerate(results):
            if prepared.plan is None:
                continue
            for column, transform in enumerate(prepared.plan.results):
                if transform is None:
                    continue
                name = transform.transformation
                for row in rows:
                    value = row[column]
                    if value is None:
                        continue
                    if name is None:
                        row[column] = None
                    else:
                        requests.append(TokenRequest(name, value.decode()))
                        places.append((number, row, column, transform))
        if not requests:
            return refused
        decoded = await self._call(self._provider.decode, requests)
        for (number, row, column, transform), clear in zip(places, decoded, strict=True):
            if isinstance(clear, Unfit):
                refused[number] = Refusal(
                    "TK-02",
                    "A stored value is not a token of its column's transformation.",
                    sqlstate="XX001",
                    hint="Tell the operator of this proxy: the column may hold values that were never tokenized.",
                )
                continue
            shown = clear if transform.mask is None else masking.apply(transform.mask, clear)
            row[column] = None if shown is None else shown.encode()
        return refused

    def still_valid(self, verdict: Verdict) -> None:
        """`within_dates`."""
        within_dates(verdict)

    def is_current(self, prepared: Prepared) -> bool:
        """False if policy or catalogue changed since `prepared` was made, or its decision expired: prepare again."""
        self._follow_catalog()
        verdict = prepared.verdict
        if verdict is None:
            return True
        return (
            verdict.revision == self._pdp().revision
            and time.monotonic() < verdict.expires
            and (
                prepared.plan is not None
                and self.plans.get(self._plan_key(prepared.understood, verdict)) is prepared.plan
            )
        )

    # Whole sessions

    async def connect(self, agent: Agent) -> Verdict | None:
        """The decision that makes an agent's session passthrough or isolated, or None: its session is governed.

        An engine that does not answer this question makes a governed session too, where every statement is decided.
        Raises a fatal `Refusal`: AC-08 without the configuration's consent, AC-05 for an obligation that could not be
        met, AC-04 outside the decision's dates.
        """
        pdp = self._pdp()
        try:
            document = msgspec.json.encode(policy_input(agent, CONNECT))
            decision = await answered(lambda: pdp.decide(document))
        except (PolicyUnavailable, DecisionError):
            return None
        if not (decision.allow and (decision.passthrough or decision.isolated)):
            return None
        what = "passthrough" if decision.passthrough else "an isolated session"
        verdict = Verdict(
            id=str(uuid.uuid4()),
            decision=decision,
            revision=pdp.revision,
            terms=Terms({}, decision.locks),
            skeleton=b"",
            values=(),
            filters_hash="",
            expires=0.0,
        )
        obligation = not_with_connect(decision)
        refusal: Refusal | None = None
        if obligation is not None:
            refusal = Refusal(
                "AC-05",
                f"The policy asks for {what} and for {obligation}, which exclude each other.",
                hint="Tell the owner of this agent's policy.",
                fatal=True,
            )
        elif not self._passthrough:
            refusal = Refusal(
                "AC-08",
                f"The policy asks for {what}, and the configuration of this proxy allows none here.",
                hint="Tell the operator of this proxy, and the owner of this agent's policy.",
                fatal=True,
            )
        if refusal is not None:
            raise identified(refusal, verdict)
        self._check_dates(verdict)
        return verdict

    async def still_passthrough(self, agent: Agent, verdict: Verdict) -> Verdict:
        """The decision under which a passthrough session goes on.  Raises a fatal `Refusal` 57P01 if it must end."""
        try:
            if verdict.revision == self._pdp().revision:
                self._check_dates(verdict)
                return verdict
            again = await self.connect(agent)
        except Refusal as refusal:
            refusal.sqlstate = "57P01"
            raise
        if again is None:
            raise Refusal(
                "AC-08",
                "The policy has changed, and this session is not passthrough any more.",
                sqlstate="57P01",
                hint="Connect again: your statements will be decided one by one.",
                fatal=True,
            )
        return again

    def still_isolated(self, verdict: Verdict) -> None:
        """Raise a fatal `Refusal` 57P01 if an isolated session must end: its statements were decided one by one."""
        try:
            self._check_dates(verdict)
        except Refusal as refusal:
            refusal.sqlstate = "57P01"
            raise
        if verdict.revision != self._pdp().revision:
            raise Refusal(
                "AC-09",
                "The policy has changed, and with it what the statements of this session were decided under.",
                sqlstate="57P01",
                hint="Connect again.",
                fatal=True,
            )

    # Statements of isolated sessions

    def built_in(self) -> BuiltIn:
        """The part of the snapshot in force that is the server's own.  Raises `Refusal` ST-08 before there is one."""
        self._follow_catalog()
        catalog = self._catalog()
        if self._built_in is None or self._built_in.catalog is not catalog:
            self._built_in = BuiltIn(catalog, self._redefined)
        return self._built_in

    def govern(
        self, agent: Agent, node: Node, types: tuple[int, ...], resolver: Resolver, purity: Purity
    ) -> tuple[Plan, Operation, Verdict, bool]:
        """Decide and rewrite one statement in the catalogue of one session, which is ``resolver``'s.

        The text of the plan holds the identity's values.  The last of the result says whether the decision came from
        the cache.  ``node`` is used up.  Raises `Refusal`; AC-05 for what takes work on parameters or replies.
        """
        analysis = self._analyze(agent, ParsedStatement(None, node), types, resolver, purity)
        operation = analysis.operation
        verdict, cached = self._decide(agent, operation, analysis.places)

        def inline(value: int, array: bool) -> str:
            return _injected_text(verdict.values[value], array).decode()

        try:
            plan = rewrite(analysis, verdict.terms, resolver, types, inline)
            checked = plan.hidden_columns or plan.swallow_rows or plan.row_check_plan
            if plan.encode or plan.results or checked or verdict.decision.limits != Limits():
                raise Refusal(
                    "AC-05",
                    "This statement takes work on its values or its result, which an isolated session does not do.",
                    hint="Run it in a session that is not isolated, or ask the owner of this agent's policy.",
                )
        except Refusal as refusal:
            refusal.operation = operation
            raise identified(refusal, verdict) from None
        return plan, operation, verdict, cached

    def may_pass(self, agent: Agent, statement: str, control: str) -> Verdict | None:
        """The decision that lets a statement which is not understood go on unchanged, or None."""
        try:
            pdp = self._pdp()
            question = NotUnderstood("passthrough", statement=statement, control=control)
            key = (agent.fingerprint, agent.database, question, pdp.revision)
            verdict = self.decisions.get(key)
            if verdict is None or time.monotonic() >= verdict.expires:
                verdict = self._ask(agent, question, pdp)
                if verdict.expires:
                    self.decisions.put(key, verdict)
            self.still_valid(verdict)
        except Refusal:
            return None
        decision = verdict.decision
        granted = decision.allow and decision.passthrough and not decision.isolated
        return verdict if granted and not_with_connect(decision) is None else None

    def _check_dates(self, verdict: Verdict) -> None:
        try:
            self.still_valid(verdict)
        except Refusal as refusal:
            refusal.fatal = True
            raise

    def _position(self, text: str, types: tuple[int, ...], location: int) -> int:
        """The character of `text`, counted from 1, at byte `location` of what was parsed for it."""
        lexed = self._lexed(text, types)
        if lexed is not None and self._template(lexed, text) is not None:
            positions, signed = self._positions.get(lexed.key) or _NO_POSITIONS
            location = lexed.origin(text, positions, location, signed)
        return len(text.encode()[:location].decode(errors="replace")) + 1

    # Understanding

    def _follow_catalog(self) -> None:
        catalog = self._catalog()
        if catalog.epoch != self._epoch:
            self._epoch = catalog.epoch
            changed = self._redefined = redefined(catalog, self._definitions)
            if changed:
                relations = {key: value for key, value in catalog.relations.items() if ".".join(key) not in changed}
                catalog = msgspec.structs.replace(catalog, relations=relations)
            self.functions = tuple(name for name in self._listed if normal_signature(name) not in changed)
            self._resolver = Resolver(catalog, self.functions)
            self._purity = Purity(catalog, self.functions)
            self._sensitive = with_sources(self._configured, catalog)
            self._by_relation = {}
            for key in self._sensitive:
                relation, _, column = key.rpartition(".")
                self._by_relation.setdefault(relation, []).append(column)
            self._fresh.clear()
            for cache in (self.texts, self.decisions, self.plans, self._visible):
                cache.clear()

    def _understand(
        self, agent: Agent, text: str, types: tuple[int, ...]
    ) -> tuple[tuple[Understood, ...], tuple[bytes | None, ...]]:
        lexed = self._lexed(text, types)
        if lexed is not None:
            template = self._template(lexed, text)
            if template is not None:
                rendered, values = template
                constant_types = tuple(constant.type_oid for constant in values)
                known = self.texts.get((rendered, constant_types, True))
                if known is None:
                    known = self._read(agent, rendered, constant_types, is_template=True)
                    self.texts.put((rendered, constant_types, True), known, _weight(known))
                return known, tuple(constant.value.encode() for constant in values)
        key = (text, types, False)
        known = self.texts.get(key)
        if known is None:
            known = self._read(agent, text, types, is_template=False)
            self.texts.put(key, known, _weight(known))
        return known, ()

    def _lexed(self, text: str, types: tuple[int, ...]) -> lexer.Lexed | None:
        """The tokens of a text that may have a template."""
        lexed = lexer.tokenize(text) if not types and len(text) <= self._max_statement else None
        return lexed if lexed is not None and 0 < len(lexed.constants) <= MAX_CONSTANTS else None

    def _template(self, lexed: lexer.Lexed, text: str) -> tuple[str, list[lexer.Constant]] | None:
        """The template of a text and its constants, or None if its exact text is the key."""
        found = self._positions.get(lexed.key)
        if found is None:
            parsed = parse_text(text, limit=self._max_statement)
            found = _NO_POSITIONS
            if len(parsed) == 1 and parsed[0].command is None:
                positions, signed = template_positions(text, lexed)
                rendered = lexed.render(positions, signed)[0]
                if positions and same_with_parameters(text, rendered, lexed, positions, signed):
                    found = positions, signed
            self._positions.put(lexed.key, found, len(lexed.key))
        if not found[0]:
            return None
        rendered, _kept, values = lexed.render(*found)
        return rendered, values

    def _read(self, agent: Agent, text: str, types: tuple[int, ...], *, is_template: bool) -> tuple[Understood, ...]:
        found = []
        self._fresh.clear()
        statements = parse_text(text, limit=self._max_statement)
        digest = hashlib.sha256(text.encode()).hexdigest().encode()
        shown = redacted(text)
        for index, statement in enumerate(statements):
            if statement.command is not None:
                words = statement.action.replace("_", " ").upper()
                found.append(
                    Understood(text, digest, types, statement.command, None, statement.action, is_template, words)
                )
                continue
            action = statement.action
            analysis = self._analyze(agent, statement, types)
            copy = statement.copy
            if copy is not None:
                if any(
                    item.only and item.relation is not None and item.relation.kind == "p" for item in analysis.items
                ):
                    raise Refusal(
                        "ST-02",
                        "A partitioned table has no rows of its own to copy.",
                        sqlstate="0A000",
                        hint="Use COPY (SELECT ...) TO STDOUT.",
                    )
                copy = msgspec.structs.replace(copy, names=tuple(field.name for field in analysis.outputs))
            one = digest if len(statements) == 1 else digest + f".{index}".encode()
            self._fresh[one, types] = analysis
            found.append(
                Understood(
                    text, one, types, None, analysis.operation, action, is_template, shown, analysis.places,
                    copy, analysis.introspects,
                )
            )  # fmt: skip
        return tuple(found)

    def _analyze(
        self,
        agent: Agent,
        statement: ParsedStatement,
        types: tuple[int, ...],
        resolver: Resolver | None = None,
        purity: Purity | None = None,
    ) -> Analysis:
        resolver, purity = resolver or self._resolver, purity or self._purity
        assert resolver is not None and purity is not None  # noqa: S101
        try:
            return analyze(statement, resolver, purity, self._sensitive, types)
        except Refusal as refusal:
            operation = refusal.operation
            if isinstance(operation, Operation) and operation.relations:
                verdict, _cached = self._decide(agent, operation, refusal.places)
                # What is wrong with a statement tells of its relations: first they must be the agent's to know.
                # The first in order of look-up is named, and shown where it stands, be it missing or forbidden.
                for name in dict.fromkeys([*refusal.places, *(use.qualified for use in operation.relations)]):
                    if name not in verdict.terms.relations:
                        unavailable = placed(unavailable_relation(name), refusal.places.get(name, 0))
                        raise identified(unavailable, verdict) from None
            raise

    # Deciding

    def _decide(
        self, agent: Agent, operation: Operation, places: Mapping[str, int] | None = None
    ) -> tuple[Verdict, bool]:
        """The verdict for one operation, cached by L1.  Raises `Refusal` if it is no.

        ``places`` says where the statement names its relations.
        """
        try:
            return self._verdict(agent, operation)
        except Refusal as refusal:
            refusal.operation = operation
            named = [name for name in places or () if name in refusal.message]
            if places and named:
                # The relation that the policy's reason names first.
                placed(refusal, places[min(named, key=refusal.message.index)])
            raise

    def _verdict(self, agent: Agent, operation: Operation) -> tuple[Verdict, bool]:
        pdp = self._pdp()
        key = (agent.fingerprint, agent.database, operation, pdp.revision, self._epoch)
        verdict = self.decisions.get(key)
        cached = verdict is not None and time.monotonic() < verdict.expires
        if verdict is None or not cached:
            verdict = self._ask(agent, operation, pdp)
            if verdict.expires:
                self.decisions.put(key, verdict)
        check_allowed(verdict, obligations_not_enforced(verdict.decision))
        return verdict, cached

    # What an agent sees of the catalogue

    def _with_visible(self, agent: Agent, verdict: Verdict) -> Verdict:
        """``verdict`` with the arrays of `VISIBLE` as its last values: what this agent could SELECT.

        Raises `Unanswered` while there are relations to ask about.
        """
        pdp = self._pdp()
        key = (agent.fingerprint, agent.database, pdp.revision)
        found = self._visible.get(key)
        if found is None or (not found.waiting and time.monotonic() >= found.expires):
            found = _Visible(self._governed_relations(), [], [], set(), time.monotonic() + READY_SECONDS)
            self._visible.put(key, found)
        for _ in range(RELATIONS_AT_ONCE):
            if not found.waiting:
                break
            self._look_at(agent, found.waiting[-1], found)
            found.waiting.pop()
        if found.waiting:
            raise Unanswered(asyncio.ensure_future(asyncio.sleep(0)))
        if not found.arrays:
            found.arrays = (tuple(found.relations), tuple(found.hidden), tuple(sorted(found.types)))
        expires = min(verdict.expires, found.expires) if verdict.expires else 0.0
        return msgspec.structs.replace(verdict, values=(*verdict.values, *found.arrays), expires=expires)

    def _governed_relations(self) -> list[RelationUse]:
        """Every relation that an agent could be allowed to read, with all its columns."""
        assert self._resolver is not None  # noqa: S101
        return [
            RelationUse(schema, name, "read", tuple(sorted(column.name for column in relation.columns)))
            for (schema, name), relation in self._resolver.catalog.relations.items()
            if schema not in SYSTEM_SCHEMAS and relation.kind != "f" and not relation.parents
        ]

    def _look_at(self, agent: Agent, use: RelationUse, found: _Visible) -> None:
        """Note whether the agent may read this relation, and which of its columns."""
        assert self._resolver is not None  # noqa: S101
        catalog = self._resolver.catalog
        relation = catalog.relations[use.schema, use.name]
        readable = self._readable(agent, use, found)
        if readable is None:
            readable = frozenset()
            if self._readable(agent, msgspec.structs.replace(use, columns=()), found) is None:
                return
            for name in use.columns:
                readable |= self._readable(agent, msgspec.structs.replace(use, columns=(name,)), found) or frozenset()
        found.relations.append(relation.oid)
        for column in relation.columns:
            if column.name in readable:
                found.types |= _with_parts(catalog, column.type_oid)
            else:
                found.hidden.append(column_number(relation.oid, column.number))

    def _readable(self, agent: Agent, use: RelationUse, found: _Visible) -> frozenset[str] | None:
        """Those of the columns that the agent may read if it reads them all in one SELECT; None: it may not."""
        try:
            verdict, _cached = self._verdict(agent, Operation("select", (use,)))
        except Refusal:
            return None
        end = verdict.decision.not_after
        left = (end - dt.datetime.now(dt.UTC)).total_seconds() if end is not None else READY_SECONDS
        found.expires = min(found.expires, verdict.expires, time.monotonic() + left)
        terms = verdict.terms.relations.get(use.qualified)
        if terms is None:
            return None
        return frozenset(
            name for name in use.columns if name not in terms.columns or terms.columns[name].read != "deny"
        )

    def _ask(self, agent: Agent, operation: Operation, pdp: PolicyDecisionPoint) -> Verdict:
        identifier = str(uuid.uuid4())
        document = msgspec.json.encode(policy_input(agent, operation))
        try:
            decision = pdp.decide(document)
            if isinstance(decision, LoggedDecision):
                identifier = decision.id
        except (PolicyUnavailable, DecisionError) as error:
            raise identified(no_answer(error), identifier, pdp.revision) from None
        try:
            terms, values = self._terms(decision)
        except Refusal as refusal:
            raise identified(refusal, identifier, pdp.revision) from None
        ttl = decision.cache.ttl_seconds if decision.allow else min(decision.cache.ttl_seconds, DENIAL_SECONDS)
        filters = msgspec.json.encode(decision.filters, order="sorted")
        return Verdict(
            id=identifier,
            decision=decision,
            revision=pdp.revision,
            terms=terms,
            skeleton=msgspec.msgpack.encode(terms, order="deterministic"),
            values=tuple(values),
            filters_hash=hashlib.sha256(filters).hexdigest(),
            expires=time.monotonic() + ttl if ttl > 0 else 0.0,
        )

    def _terms(self, decision: Decision) -> tuple[Terms, list[object]]:
        """The decision in this protocol's words, with the identity's values lifted out of it."""
        values: list[object] = []
        relations = {}
        for relation, row_filter in sorted(decision.filters.items()):
            condition = None if row_filter is True else _condition(row_filter, relation, values)
            columns = {}
            for column in self._by_relation.get(relation, ()):
                obligation = decision.columns.get(f"{relation}.{column}")
                if obligation is None:
                    columns[column] = ColumnTerms(f"mask:{masking.DEFAULT}", False, False)
                    continue
                read = obligation.read
                known = read in ("clear", "token", "deny") or read.removeprefix("mask:") in masking.MASKS
                if not known or (read.startswith("mask:") is False and read not in ("clear", "token", "deny")):
                    raise Refusal(
                        "AC-05",
                        "The policy asks for a mask that this proxy does not know.",
                        hint="Tell the owner of this agent's policy.",
                    )
                columns[column] = ColumnTerms(read, obligation.predicate == "equality", obligation.write == "allow")
            for key in decision.columns:
                owner, _, column = key.rpartition(".")
                if owner == relation and column not in columns:
                    raise Refusal(
                        "AC-05",
                        "The policy speaks of a column that the configuration does not list as sensitive.",
                        hint="Tell the operator of this proxy.",
                        detail_for_audit=key,
                    )
            relations[relation] = RelationTerms(condition, columns)
        return Terms(relations, decision.locks), values

    # Planning

    def _plan_key(self, understood: Understood, verdict: Verdict) -> object:
        return understood.digest, understood.parameter_types, verdict.skeleton

    def _plan(self, understood: Understood, verdict: Verdict) -> Plan:
        key = self._plan_key(understood, verdict)
        plan = self.plans.get(key)
        if plan is not None:
            return plan
        assert self._resolver is not None and self._purity is not None  # noqa: S101
        try:
            analysis = self._fresh.pop((understood.digest, understood.parameter_types), None)
            if analysis is None:
                statements = parse_text(understood.text, limit=self._max_statement)
                index = int(understood.digest.partition(b".")[2] or b"0")
                analysis = analyze(
                    statements[index], self._resolver, self._purity, self._sensitive, understood.parameter_types
                )
            visible = len(verdict.values) - len(VISIBLE) if understood.introspects else 0
            plan = rewrite(analysis, verdict.terms, self._resolver, understood.parameter_types, visible=visible)
        except Refusal as refusal:
            raise identified(refusal, verdict) from None
        self.plans.put(key, plan, len(plan.sql))
        return plan

    # Values

    async def _encode(self, plan: Plan, values: list[bytes | None], formats: Sequence[int] = ()) -> None:
        """Put tokens in the place of values; ``formats`` only if the plan has arrays."""
        if any(slot.array for slot in plan.encode):
            await self._encode_arrays(plan, values, formats)
            return
        requests, places = [], []
        for slot in plan.encode:
            value = values[slot.parameter]
            if value is None:
                continue
            try:
                requests.append(TokenRequest(slot.transformation, value.decode()))
            except UnicodeDecodeError:
                raise Refusal("TK-02", "A value for a tokenized column is not valid UTF-8.", sqlstate="22021") from None
            places.append(slot.parameter)
        encoded = await self._call(self._provider.encode, requests)
        for place, token in zip(places, encoded, strict=True):
            if isinstance(token, Unfit):
                if plan.writes:
                    raise Refusal(
                        "TK-02",
                        f"A value does not fit the format of its column: {token.reason}.",
                        sqlstate="22023",
                        hint="Correct the value and send the statement again.",
                    )
                # No stored token can equal a value that has none; this text is no token either.
                values[place] = b"\x01"
            else:
                values[place] = token.encode()

    async def _encode_arrays(self, plan: Plan, values: list[bytes | None], formats: Sequence[int]) -> None:
        """`_encode` for a plan with arrays: their elements are values like the others."""
        flat: list[bytes | None] = []
        slots: list[EncodeSlot] = []
        lengths = []
        for slot in plan.encode:
            value = values[slot.parameter]
            elements: list[bytes | None] = [value]
            try:
                if slot.array and value is not None:
                    elements = arrays.read(value, binary=bool(formats[slot.parameter]))
            except arrays.ArrayError as error:
                raise Refusal("TK-02", f"A list of values for a tokenized column cannot be read: {error}.",
                              sqlstate="22P02", hint="Bind a plain array of text, or write IN.") from None  # fmt: skip
            if len(elements) > MAX_ELEMENTS:
                raise Refusal("TK-02", f"A list of values for a tokenized column has more than {MAX_ELEMENTS} of them.",
                              sqlstate="54000", hint="Send several statements.")  # fmt: skip
            slots += [EncodeSlot(place, slot.transformation) for place in range(len(flat), len(flat) + len(elements))]
            flat += elements
            lengths.append(len(elements))
        await self._encode(msgspec.structs.replace(plan, encode=tuple(slots)), flat)
        at = 0
        for slot, length in zip(plan.encode, lengths, strict=True):
            value, tokens = values[slot.parameter], flat[at : at + length]
            at += length
            if value is not None:
                binary = bool(formats[slot.parameter])
                values[slot.parameter] = arrays.write(tokens, binary=binary, like=value) if slot.array else tokens[0]

    async def _call(
        self, method: Callable[[Sequence[TokenRequest]], object], requests: list[TokenRequest]
    ) -> Sequence[str | Unfit]:
        try:
            return await method(requests)  # type: ignore[misc, no-any-return]
        except ReadOnly as error:
            # Also on a search: no rows would be an answer, and a wrong one.
            raise Refusal(
                "TK-03",
                "The statement gives a value for a tokenized column whose tokens are only read here, not made.",
                sqlstate="0A000",
                hint="Such a column can be selected; it cannot be written, or compared with a value.",
                detail_for_audit=str(error),
            ) from None
        except TokenizationRefused as error:
            raise Refusal(
                "TK-01",
                "The tokenization provider does not serve this proxy, or has another key, so the statement is denied.",
                sqlstate="58000",
                hint="The operator of this proxy has to correct it. Statements without tokenized columns go on.",
                detail_for_audit=str(error),
            ) from None
        except TokenizationError as error:
            raise Refusal(
                "TK-01",
                "The tokenization provider does not answer, so the statement is denied.",
                sqlstate="58000",
                hint="Try again later. Statements without tokenized columns go on.",
                detail_for_audit=str(error),
            ) from None


def _with_parts(catalog: Catalog, oid: int) -> set[int]:
    """OIDs of a type and of those that it is made of."""
    found: set[int] = set()
    ahead = [oid]
    while ahead:
        kind = catalog.types.get(ahead.pop())
        if kind is not None and kind.oid not in found:
            found.add(kind.oid)
            ahead += [kind.element, kind.base, kind.subtype]
    return found


class AskedAbout(TypedDict):
    """The fields of an audit event that say what the policy was asked about."""

    action: str
    relations: tuple[Relation, ...]
    functions: tuple[str, ...]


def asked_about(operation: Operation | None, verdict: Verdict | None) -> AskedAbout:
    """What the policy was asked about a statement, and what the decision said of its sensitive columns."""
    if operation is None:
        return AskedAbout(action="", relations=(), functions=())
    terms = verdict.terms.relations if verdict is not None else {}
    found = []
    for use in operation.relations:
        known = terms.get(use.qualified)
        sensitive = {}
        if known is not None and use.access == "read":
            sensitive = {name: known.columns[name].read for name in use.columns if name in known.columns}
        found.append(Relation(use.qualified, use.access, use.columns, use.predicates, sensitive))
    return AskedAbout(action=operation.action, relations=tuple(found), functions=operation.functions)


def event_verdict(
    prepared: Prepared, refusal: Refusal | None = None, *, cached: bool | None = None
) -> EventVerdict | None:
    """The decision of a statement, or what refused it later, as its audit event tells it."""
    verdict = prepared.verdict
    if verdict is None:
        return None
    told = granted(verdict, filters_hash=verdict.filters_hash, cached=prepared.cached if cached is None else cached)
    if refusal is None:
        return told
    return msgspec.structs.replace(told, allow=False, control=refusal.control, reason=refusal.message)


def granted(verdict: Verdict, **more: Any) -> EventVerdict:
    """A decision that allowed something, as an audit event tells it, with ``more`` of its fields."""
    decision = verdict.decision
    return EventVerdict(verdict.id, True, decision.control, decision.reason, verdict.revision, **more)


def type_name(oid: int) -> str:
    """The name of a common type, the number of any other; for the audit event."""
    return _TYPE_NAMES.get(oid) or str(oid)


_TYPE_NAMES = {
    0: "unknown", 16: "bool", 17: "bytea", 18: "char", 19: "name", 20: "int8", 21: "int2", 23: "int4", 25: "text",
    26: "oid", 114: "json", 700: "float4", 701: "float8", 705: "unknown", 1042: "bpchar", 1043: "varchar",
    1082: "date", 1083: "time", 1114: "timestamp", 1184: "timestamptz", 1186: "interval", 1266: "timetz",
    1700: "numeric", 2950: "uuid", 3802: "jsonb",
}  # fmt: skip


def _weight(understood: Sequence[Understood]) -> int:
    """Characters that an entry of the text cache holds."""
    return len(understood[0].text) * 2 + len(understood[0].shown)


def _held(prepared: Prepared) -> int:
    """Characters that a prepared statement keeps alive, also once the other caches have forgotten them."""
    return _weight((prepared.understood,)) + (len(prepared.plan.sql) if prepared.plan is not None else 0)


def policy_input(agent: Agent, operation: Operation, protocol: str = "postgres") -> dict[str, object]:
    """The document that the policy engine sees: identity, session, operation; no clock, no literal, no counter."""
    session = {"protocol": protocol}
    session |= {"database": agent.database} if protocol == "postgres" else {"queue_manager": agent.queue_manager}
    return {"identity": agent.document, "session": session, "operation": operation}


def check_allowed(verdict: Verdict, missing: str | None) -> None:
    """Refuse what a decision does not allow, or with ``missing``, an obligation of it that nobody would keep.

    Raises `Refusal`.
    """
    decision = verdict.decision
    if not decision.allow:
        refusal = Refusal(
            decision.control, decision.reason, hint="Ask the owner of this agent's policy if the task needs it."
        )
        raise identified(refusal, verdict)
    if missing is not None:
        raise identified(
            Refusal(
                "AC-05",
                f"The policy asks for {missing}, which this proxy cannot enforce.",
                hint="Tell the owner of this agent's policy.",
            ),
            verdict,
        )
    within_dates(verdict)


def within_dates(verdict: Verdict) -> None:
    """Refuse a decision outside its dates.  Raises `Refusal` AC-04."""
    now = dt.datetime.now(dt.UTC)
    decision = verdict.decision
    if (decision.not_before and now < decision.not_before) or (decision.not_after and now >= decision.not_after):
        raise identified(
            Refusal(
                "AC-04",
                "The decision for this statement is not valid at this time.",
                hint="Ask the owner of this agent's policy when access is open.",
            ),
            verdict,
        )


def no_answer(error: PolicyUnavailable | DecisionError) -> Refusal:
    return Refusal(
        "AC-02",
        "The policy engine gave no usable answer, so the statement is denied.",
        hint="Try again later, and tell the operator of this proxy.",
        detail_for_audit=str(error),
    )


async def answered(work: Callable[[], V]) -> V:
    """What ``work`` returns once the policy engine has answered all that it asks.

    Raises `PolicyUnavailable` if the engine's revision changes faster than it answers.
    """
    for _ in range(MAX_QUESTIONS):
        try:
            return work()
        except Unanswered as asked:
            await asked.answer
    raise PolicyUnavailable("the policy engine answers under ever new revisions")


def _condition(row_filter: Filter, relation: str, values: list[object]) -> Condition:
    if isinstance(row_filter, CompoundFilter):
        return Combine(row_filter.operator, tuple(_condition(part, relation, values) for part in row_filter.value))
    assert isinstance(row_filter, FieldFilter)  # noqa: S101
    prefix, _, column = row_filter.field.rpartition(".")
    if prefix not in ("", relation, relation.rpartition(".")[2]):
        raise Refusal(
            "AC-05",
            "The policy's row filter names a column of another relation.",
            hint="Tell the owner of this agent's policy.",
        )
    is_list = isinstance(row_filter.value, tuple)
    if row_filter.value is None or is_list != (row_filter.operator == "in"):
        raise Refusal(
            "AC-05",
            "The policy's row filter has a value that its operator cannot take.",
            hint="Tell the owner of this agent's policy.",
        )
    values.append(row_filter.value)
    return Compare(row_filter.operator, column, len(values) - 1)


def _injected_text(value: object, array: bool) -> bytes:
    """One of the identity's values in text format."""
    if array:
        assert isinstance(value, tuple)  # noqa: S101
        items = []
        for item in value:
            text = _injected_text(item, False).decode()
            items.append('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
        return ("{" + ",".join(items) + "}").encode()
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return str(value).encode()


def _spread(formats: Sequence[int], count: int) -> list[int]:
    """Format codes, one for each parameter (PostgreSQL, Bind message)."""
    if not formats:
        return [0] * count
    if len(formats) == 1:
        return [formats[0]] * count
    return list(formats)


def identified(refusal: Refusal, verdict: Verdict | str, revision: str = "") -> Refusal:
    """The refusal with the decision that it stands on."""
    if isinstance(verdict, Verdict):
        refusal.decision_id, refusal.revision = verdict.id, verdict.revision
    else:
        refusal.decision_id, refusal.revision = verdict, revision
    return refusal
