"""``grille policy lint``: combinations of a policy that defeat themselves.

The policy is not read but asked: every identity of the configuration about every relation of its database, in every way
of using it, and what it answers is held against the catalogue and against enforcement itself.  Nothing of an agent's
data is read and nothing is written.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, Literal, TextIO

import msgspec

from grille.controls import Refusal
from grille.policies.decision import CompoundFilter, Decision, FieldFilter, Filter
from grille.policies.pdp import DecisionError, PolicyDecisionPoint, PolicyUnavailable
from grille.protocols.operation import Access, Operation, RelationUse
from grille.protocols.postgres.analysis import SYSTEM_SCHEMAS, Sensitive
from grille.protocols.postgres.catalog import Catalog, Relation
from grille.protocols.postgres.copy import quoted_name
from grille.protocols.postgres.purity import Purity
from grille.protocols.postgres.resolve import Resolver
from grille.protocols.postgres.rewrite import FILTER_OPERATORS
from grille.proxy import keys
from grille.proxy.catalog import READ_FAILURES, connect, read_catalog
from grille.proxy.config import Config, Database
from grille.proxy.enforcement import CONNECT, Enforcement, answered, policy_input
from grille.proxy.identity import Agent, Registry, parse_spiffe_id

Level = Literal["error", "warning"]

FINDINGS: Final[Mapping[str, tuple[Level, str]]] = {
    "no-answer": ("error", "Answer every question completely: end the rule with an else that denies."),
    "no-filter": ("warning", "Give a filter for every relation that it may use, or deny with a reason."),
    "stranger": ("error", "Name the identities that may do something; deny all others."),
    "unenforceable": ("error", "Every such statement is denied; say what the proxy can enforce."),
    "encoding-oracle": (
        "error",
        "Let whoever writes clear values read masks, or whoever reads tokens not write.",
    ),
    "search-oracle": ("warning", "Limit statements_per_minute, or deny the predicate."),
    "leaky-filter": ("error", "Filter by a column whose comparison is on the server's leakproof list."),
    "token-filter": ("error", "Filter by a column that is stored clear."),
    "view-rows": ("error", "Give the view a filter of its own, or withdraw it."),
    "view-column": ("warning", "List the view's column as sensitive in the configuration too."),
    "no-limits": ("warning", "Limit rows or bytes, seconds, and statements_per_minute."),
    "passthrough": (
        "warning",
        "Nothing is filtered or masked there: keep it for tools that are trusted as the role is.",
    ),
    "expired": ("warning", "Take the grant out, or renew it."),
}
"""By code: how bad it is, and what to do."""

STRANGER: Final = "spiffe://{}/grille-lint/nobody"
_ACCESSES: Final[tuple[tuple[str, Access], ...]] = (
    ("select", "read"), ("insert", "insert"), ("update", "update"), ("delete", "delete"), ("select", "lock"),
)  # fmt: skip
_VIEWS: Final = """\
SELECT DISTINCT vn.nspname || '.' || v.relname, tn.nspname || '.' || t.relname, coalesce(a.attname, '')
FROM pg_catalog.pg_rewrite r
JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
JOIN pg_catalog.pg_namespace vn ON vn.oid = v.relnamespace
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
 AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype = 'n'
JOIN pg_catalog.pg_class t ON t.oid = d.refobjid AND t.oid <> v.oid
JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid AND a.attnum > 0
"""

Found = tuple[str, str, str]
"""Code, subject (a relation, a column or nothing) and what was found, in words."""


class Data(msgspec.Struct):
    """One database, as it was read."""

    catalog: Catalog
    views: dict[str, set[tuple[str, str]]]
    """By view: the columns (relation, column or nothing) that it is made of, through other views too."""


async def read_data(database: Database) -> Data:
    """The catalogue, and what views are made of.  Raises one of `READ_FAILURES`."""
    connection = await connect(database)
    try:
        catalog = await read_catalog(connection)
        rows = await connection.fetch(_VIEWS)
    finally:
        await connection.close()
    direct: dict[str, set[tuple[str, str]]] = {}
    for view, relation, column in rows:
        direct.setdefault(view, set()).add((relation, column))
    views = {}
    for view, parts in direct.items():
        found, ahead = set(parts), list(parts)
        while ahead:
            more = direct.get(ahead.pop()[0], set()) - found
            found |= more
            ahead += more
        views[view] = found
    return Data(catalog, views)


async def lint(config: Config, pdp: Callable[[], PolicyDecisionPoint], accepted: Collection[str], out: TextIO) -> int:
    """Print what was found; 0 if nothing but what is ``accepted`` (a code, or ``CODE:SUBJECT``), else 1; 2 if a
    database cannot be read.
    """
    found: dict[Found, list[str]] = {}
    questions = relations = agents = 0
    for database in config.databases:
        known = [each for each in config.identities if each.database == database.name]
        try:
            data = await read_data(database)
        except READ_FAILURES as error:
            out.write(f'database "{database.name}" cannot be read: {error}\n')
            return 2
        registry = Registry(config.identities)
        asker = _Asker(config, database, data, pdp)
        domains = {each.spiffe_id.split("/")[2] for each in known}
        for spiffe_id in [each.spiffe_id for each in known]:
            agent = registry.agent(parse_spiffe_id(spiffe_id.removesuffix("*") + "any" * spiffe_id.endswith("*")))
            for one in await asker.about(agent):
                found.setdefault(one, []).append(spiffe_id)
        for stranger in sorted(STRANGER.format(domain) for domain in domains):
            for one in await asker.about_stranger(stranger):
                found.setdefault(one, []).append(stranger)
        agents += len(known)
        relations += len(asker.relations)
        questions += asker.questions
    return _tell(found, accepted, f"agents={agents} relations={relations} questions={questions}", out)


def _tell(found: Mapping[Found, list[str]], accepted: Collection[str], counts: str, out: TextIO) -> int:
    numbers = {"error": 0, "warning": 0, "accepted": 0}
    order = list(FINDINGS)
    for code, subject, text in sorted(found, key=lambda one: (order.index(one[0]), one)):
        level, fix = FINDINGS[code]
        if code in accepted or f"{code}:{subject}" in accepted:
            numbers["accepted"] += 1
            continue
        numbers[level] += 1
        agents = found[code, subject, text]
        more = f" and {len(agents) - 3} more" if len(agents) > 3 else ""
        out.write(f"{level.upper():<8}{code}{f'  {subject}' if subject else ''}\n")
        out.write(f"        for {', '.join(agents[:3])}{more}\n        {text}\n        Fix: {fix}\n")
    out.write(f"lint errors={numbers['error']} warnings={numbers['warning']} accepted={numbers['accepted']} {counts}\n")
    return 1 if numbers["error"] or numbers["warning"] else 0


class _Asker:
    """Asks a policy about one database."""

    def __init__(self, config: Config, database: Database, data: Data, pdp: Callable[[], PolicyDecisionPoint]) -> None:
        self._pdp = pdp
        self._data = data
        self._domains = {each.name: each.token_domain for each in config.transformations}
        self._sensitive = {
            column.name: Sensitive(column.transformation, self._domains.get(column.transformation or ""))
            for column in config.columns
        }
        catalog = data.catalog
        self._resolver = Resolver(catalog, database.functions)
        self._purity = Purity(catalog, database.functions)
        self._enforcement = Enforcement(
            catalog=lambda: catalog,
            pdp=pdp,
            provider=keys.token_provider(config),
            sensitive=self._sensitive,
            functions=database.functions,
            definitions=database.definitions,
            max_statement=config.listener.max_statement_bytes,
        )
        self.relations = {
            f"{schema}.{name}": relation
            for (schema, name), relation in sorted(catalog.relations.items())
            if schema not in SYSTEM_SCHEMAS and not relation.parents
        }
        self.questions = 0

    async def about_stranger(self, spiffe_id: str) -> list[Found]:
        """What an identity that no policy can know is allowed."""
        parts = parse_spiffe_id(spiffe_id)
        agent = Agent(
            spiffe_id=spiffe_id, trust_domain=parts.trust_domain, path=parts.path, cert_sha256="", serial="",
            not_after=dt.datetime.max.replace(tzinfo=dt.UTC), scopes=(), attributes={}, database="", fingerprint="",
        )  # fmt: skip
        found = []
        for name, relation in self.relations.items():
            for action, access in _ACCESSES:
                decision = await self._decision(agent, action, _use(relation, access))
                if isinstance(decision, str):
                    found.append(
                        ("no-answer", name, f"The policy gives an unknown agent no usable answer: {decision}.")
                    )
                elif decision.allow and name in decision.filters:
                    found.append(("stranger", name, f"An agent that nobody has registered may {access} it."))
        return found

    async def about(self, agent: Agent) -> list[Found]:
        """What is wrong with the answers about one agent."""
        found: list[Found] = []
        allowed: dict[str, dict[Access, Decision]] = {}
        unfiltered: list[str] = []
        connected = await self._ask(agent, CONNECT)
        if isinstance(connected, Decision) and connected.allow and connected.passthrough:
            found.append(("passthrough", "", "Its sessions are carried unchanged."))
        for name, relation in self.relations.items():
            for action, access in _ACCESSES:
                decision = await self._decision(agent, action, _use(relation, access))
                if isinstance(decision, str):
                    found.append(("no-answer", name, f"The policy gives no usable answer about {access}: {decision}."))
                elif decision.allow and name in decision.filters:
                    allowed.setdefault(name, {})[access] = decision
                elif decision.allow and name not in unfiltered:
                    unfiltered.append(name)
        if unfiltered:
            names = ", ".join(unfiltered)
            text = f"It may use {names} and gets no row filter there: each statement is denied without a reason."
            found.append(("no-filter", "", text))
        for name, decisions in allowed.items():
            found += self._of_relation(name, decisions)
            if "read" in decisions:
                found += await self._refused(agent, name)
        found += self._unlimited(allowed)
        found += self._oracles(allowed)
        found += self._views(allowed)
        return found

    async def _decision(self, agent: Agent, action: str, use: RelationUse) -> Decision | str:
        """About all columns of a relation, or if that is denied about the first one that is not."""
        decision = await self._ask(agent, Operation(action, (use,)))
        if isinstance(decision, str) or decision.allow:
            return decision
        for column in use.columns:
            one = msgspec.structs.replace(use, columns=(column,), predicates=())
            narrow = await self._ask(agent, Operation(action, (one,)))
            if isinstance(narrow, str) or narrow.allow:
                return narrow
        return decision

    async def _ask(self, agent: Agent, operation: Operation) -> Decision | str:
        self.questions += 1
        document = msgspec.json.encode(policy_input(agent, operation))
        try:
            return await answered(lambda: self._pdp().decide(document))
        except (PolicyUnavailable, DecisionError) as error:
            return str(error)

    # what is looked for

    def _of_relation(self, name: str, decisions: Mapping[Access, Decision]) -> Iterator[Found]:
        now = dt.datetime.now(dt.UTC)
        filters = {access: decision.filters[name] for access, decision in decisions.items()}
        for field in sorted({part.field for each in filters.values() for part in _fields(each)}):
            yield from self._of_filter(name, field.rpartition(".")[2], filters)
        for decision in decisions.values():
            if decision.not_after is not None and decision.not_after < now:
                yield "expired", name, f"What allows it ended at {decision.not_after.isoformat()}."
                break

    def _of_filter(self, name: str, column: str, filters: Mapping[Access, Filter | Literal[True]]) -> Iterator[Found]:
        sensitive = self._sensitive.get(f"{name}.{column}")
        if sensitive is not None and sensitive.transformation is not None:
            yield (
                "token-filter",
                f"{name}.{column}",
                "The row filter compares a column that the database holds as tokens.",
            )
        for part in sorted({part.operator for each in filters.values() for part in _fields(each)}):
            known = self.relations[name].column(column)
            if known is None:
                continue  # `_refused` says so
            base = known.type_oid
            while (kind := self._data.catalog.types[base]).kind == "d":
                base = kind.base
            for operator in self._resolver.operator(FILTER_OPERATORS.get(part, "="), base, base):
                if not self._purity.leakproof(operator.function):
                    yield (
                        "leaky-filter", f"{name}.{column}",
                        f"The row filter's comparison of {kind.schema}.{kind.name} is not leakproof.",
                    )  # fmt: skip

    async def _refused(self, agent: Agent, name: str) -> list[Found]:
        """What enforcement says to a statement that the policy allows."""
        relation = self.relations[name]
        selected = ", ".join(quoted_name(column.name) for column in relation.columns)
        text = f"SELECT {selected} FROM {quoted_name(relation.schema)}.{quoted_name(relation.name)}"  # noqa: S608
        try:
            await self._enforcement.prepare(agent, text)
        except Refusal as refusal:
            if refusal.control == "AC-05":
                detail = f" ({refusal.detail_for_audit})" if refusal.detail_for_audit else ""
                return [("unenforceable", name, f"{refusal.message}{detail}")]
        return []

    def _unlimited(self, allowed: Mapping[str, Mapping[Access, Decision]]) -> Iterator[Found]:
        """Statements that may be as many, as long or as large as the agent likes."""
        without: dict[str, list[str]] = {}
        for name, decisions in allowed.items():
            limits = [decision.limits for decision in decisions.values()]
            for words, missing in (
                ("rows or bytes", any(each.rows is None and each.bytes is None for each in limits)),
                ("seconds", any(each.seconds is None for each in limits)),
                ("statements_per_minute", any(each.statements_per_minute is None for each in limits)),
            ):
                if missing:
                    without.setdefault(words, []).append(name)
        for words, names in without.items():
            yield "no-limits", "", f"It may use {', '.join(names)} without a limit of {words}."

    def _oracles(self, allowed: Mapping[str, Mapping[Access, Decision]]) -> Iterator[Found]:
        """Ways to learn a value that is hidden from an agent by guessing it."""
        written: dict[str, str] = {}
        for name, decisions in allowed.items():
            for access in ("insert", "update"):
                decision = decisions.get(access)
                for column, obligation in decision.columns.items() if decision is not None else ():
                    domain = self._domain(column)
                    if domain and column.rpartition(".")[0] == name and obligation.write == "allow":
                        written.setdefault(domain, column)
        for name, decisions in allowed.items():
            reading = decisions.get("read")
            for column, obligation in sorted(reading.columns.items()) if reading is not None else ():
                if column.rpartition(".")[0] != name:
                    continue
                writer = written.get(self._domain(column))
                if obligation.read == "token" and writer is not None:
                    yield (
                        "encoding-oracle", column,
                        f"It reads tokens here and writes clear values into {writer}, so it learns the token of every "
                        "value that it can guess.",
                    )  # fmt: skip
                unlimited = reading is not None and reading.limits.statements_per_minute is None
                if obligation.read != "clear" and obligation.predicate == "equality" and unlimited:
                    yield (
                        "search-oracle", column,
                        "It may search for clear values and does not read them, without a limit of guesses a minute.",
                    )  # fmt: skip

    def _domain(self, column: str) -> str:
        sensitive = self._sensitive.get(column)
        return (sensitive.token_domain or "") if sensitive is not None else ""

    def _views(self, allowed: Mapping[str, Mapping[Access, Decision]]) -> Iterator[Found]:
        """Views that show what their tables hide."""
        for view, parts in self._data.views.items():
            reading = allowed.get(view, {}).get("read")
            if reading is None:
                continue
            for table in sorted({table for table, _ in parts}):
                below = allowed.get(table, {}).get("read")
                if below is not None and below.filters[table] is not True and reading.filters[view] is True:
                    yield "view-rows", view, f"It shows all rows, and those of {table} are filtered."
            for table, column in sorted(parts):
                if f"{table}.{column}" in self._sensitive and f"{view}.{column}" not in self._sensitive:
                    yield (
                        "view-column",
                        view,
                        f"It uses {table}.{column}, which is sensitive, and lists no such column.",
                    )


def _use(relation: Relation, access: Access) -> RelationUse:
    columns = tuple(sorted(column.name for column in relation.columns))
    if access == "delete":
        columns = ()
    return RelationUse(relation.schema, relation.name, access, columns, columns if access == "read" else ())


def _fields(row_filter: Filter | Literal[True]) -> Iterator[FieldFilter]:
    if isinstance(row_filter, CompoundFilter):
        for part in row_filter.value:
            yield from _fields(part)
    elif isinstance(row_filter, FieldFilter):
        yield row_filter
