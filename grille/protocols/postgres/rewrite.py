"""An understood statement and the terms of a decision become a `Plan`: the text that is sent, and its slots.

The form (docs/decisions/0002-flat-guarded-filters.md): every governed relation becomes a flattenable subselect with the
policy, the policy again as a hidden last column, and an OID pin; conditions that are not leakproof get a CASE guard;
derived tables that such a condition reads get ``OFFSET 0``.  Writes get a raising check as first RETURNING item.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec
from postgast import pg_query_pb2 as pb

from grille.controls import Refusal
from grille.protocols.postgres import bounds, introspection, tree
from grille.protocols.postgres.analysis import (
    Analysis,
    FenceSite,
    Field,
    Item,
    LiteralSite,
    QualSite,
    RelationSite,
    RowSite,
    WriteSite,
    placed,
    unavailable_relation,
)
from grille.protocols.postgres.catalog import Catalog, Column, Relation
from grille.protocols.postgres.resolve import Resolver
from grille.protocols.postgres.tree import Node

ROW_CHECK: Final = "grille_row_check"
"""Undotted, so that no SET, set_config or startup option can ever define it; reading it raises 42704."""
CATALOGUE_CHANGED: Final = "grille_catalogue_changed"

_ROW: Final = "grille:row"

FILTER_OPERATORS: Final = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """``column operator value``; the value is number `value` of the identity's injected values."""

    operator: Literal["eq", "ne", "lt", "le", "gt", "ge", "in"]
    column: str
    value: int


class Combine(msgspec.Struct, frozen=True, tag="combine"):
    """``and``, ``or`` or ``not`` of conditions."""

    operator: Literal["and", "or", "not"]
    items: tuple[Compare | Combine, ...]


Condition = Compare | Combine


class ColumnTerms(msgspec.Struct, frozen=True):
    """What an agent may do with one sensitive column."""

    read: str
    """``clear``, ``token``, ``deny`` or ``mask:NAME``"""
    equality: bool
    write: bool


class RelationTerms(msgspec.Struct, frozen=True):
    """The terms for one relation."""

    condition: Condition | None
    """The row filter; None is all rows."""
    columns: dict[str, ColumnTerms]
    """Every sensitive column of the relation."""


class Terms(msgspec.Struct, frozen=True):
    """A decision without the identity's own values: the skeleton under which plans are shared."""

    relations: dict[str, RelationTerms]
    """By ``schema.relation``; a relation that is absent is refused."""
    locks: bool


class Transform(msgspec.Struct, frozen=True):
    """What happens to one visible result column on its way out."""

    transformation: str | None
    """Decode the token under this transformation, if not None."""
    mask: str | None
    """Then apply this mask, if not None."""


class EncodeSlot(msgspec.Struct, frozen=True):
    """A parameter to be encoded before it is sent."""

    parameter: int
    """0-based index into the parameters of the plan."""
    transformation: str
    array: bool = False
    """It is an array, of which each element is encoded."""


class InjectedSlot(msgspec.Struct, frozen=True):
    """A parameter that carries one of the identity's values."""

    value: int
    """Index into the identity's values."""
    type_name: str
    array: bool


class Plan(msgspec.Struct, frozen=True):
    """What is sent upstream for one statement under one skeleton, for any client and any identity."""

    sql: str
    name: str
    """Stable name for a named upstream statement."""
    parameter_types: tuple[int, ...]
    """Declared in Parse: the client's parameters (or the template's constants), lifted literals, injected values."""
    client_parameters: int
    literals: tuple[str, ...]
    """Constants of an exact text that are encoded; they follow the client's parameters."""
    encode: tuple[EncodeSlot, ...]
    injected: tuple[InjectedSlot, ...]
    hidden_columns: int
    swallow_rows: bool
    results: tuple[Transform | None, ...]
    """By visible result column; empty if none is transformed."""
    writes: bool
    row_check_plan: bool
    returns_rows: bool = True
    """False for a write without RETURNING."""
    pure: bool = False
    """One SELECT that locks nothing and runs only what leaves no trace in its session: it may share a connection."""
    stateful: bool = False
    """It may leave something in its session: no other agent, and no later transaction, gets that connection."""
    keyed: bool = False
    """Every relation that it reads is bounded by a unique key: `grille.protocols.postgres.bounds`."""
    keys: tuple[str, ...] = ()
    """The unique indexes that bound it, one for each relation that it reads; empty if it is not keyed."""
    limited: int | None = None
    """The constant LIMIT, at most 1,000, of a SELECT that may stop as soon as it has so many rows."""
    shared: bool = False
    """All clients may share one named statement: no value makes another of its plans better, and none is kept from
    the time of its Parse.  So it is with `keyed` statements, and with INSERT ... VALUES, which reads nothing."""


Inline = Callable[[int, bool], str]
"""(index into the identity's values, whether it is an array) -> the value in text format."""


def rewrite(
    analysis: Analysis,
    terms: Terms,
    resolver: Resolver,
    parameter_types: Sequence[int],
    inline: Inline | None = None,
    *,
    visible: int = 0,
) -> Plan:
    """Build the plan.  `analysis` is used up.  Raises `Refusal`.

    With ``inline`` the identity's values are typed constants of the text, which is then good for that identity only.
    The arrays of `introspection.VISIBLE` are the identity's values from number ``visible`` on.
    """
    return _Rewrite(analysis, terms, resolver, parameter_types, inline, visible).plan()


class _Rewrite:
    def __init__(
        self,
        analysis: Analysis,
        terms: Terms,
        resolver: Resolver,
        parameter_types: Sequence[int],
        inline: Inline | None,
        visible: int,
    ) -> None:
        self._analysis = analysis
        self._inline = inline
        self._visible = visible
        self._terms = terms
        self._resolver = resolver
        self._catalog: Catalog = resolver.catalog
        count = max([len(parameter_types), *analysis.parameters]) if analysis.parameters else len(parameter_types)
        self._types = [*parameter_types, *([0] * (count - len(parameter_types)))]
        self._literals: list[str] = []
        self._encode: list[EncodeSlot] = []
        self._injected: list[InjectedSlot] = []
        self._injected_types: list[int] = []
        self._numbers: dict[Item, int] = {}
        self._hidden = 0
        self._swallow = False
        self._row_check = False

    def plan(self) -> Plan:
        analysis = self._analysis
        keys = bounds.keys_of(analysis, self._masked_in_sql, self._resolver.inherited)
        limited = bounds.limit_of(analysis)
        self._permitted()
        self._parameters()
        client = len(self._types)
        literals = [site for site in analysis.sites if isinstance(site, LiteralSite)]
        for literal in literals:
            self._literal(literal)
        for row in analysis.sites:
            if isinstance(row, RowSite):
                self._row(row)
        leaky = {id(item) for site in analysis.sites if isinstance(site, QualSite) for item in site.items}
        for site in analysis.sites:
            if isinstance(site, RelationSite):
                self._relation(
                    site.item,
                    fence=site.item.relation is not None and site.item.relation.kind == "v" and id(site.item) in leaky,
                )
            elif isinstance(site, FenceSite):
                self._fence(site.item)
            elif isinstance(site, QualSite):
                self._guard(site)
            elif isinstance(site, WriteSite):
                self._write(site)
        statement = analysis.statement
        for reference in introspection.parameters(statement) if analysis.introspects else ():
            number = reference.number - introspection.PARAMETER - 1
            kind, _name = introspection.VISIBLE[number]
            reference.CopyFrom(self._inject(self._visible + number, kind, array=True).param_ref)
        try:
            sql = tree.text_of(statement)
            same = tree.parses_back(statement, sql)
        except Exception:  # the deparser's errors, and the limit on nesting of protobuf
            same = False
        if not same:
            raise Refusal(
                "ST-07",
                "The rewritten statement does not read back as it was checked.",
                sqlstate="0A000",
                hint="Write the statement in a simpler form.",
            )
        types = (*self._types, *self._injected_types)
        # Another catalogue, another name: a statement that was prepared before a change may not fit any more.
        named_by = (sql, types, self._resolver.catalog.epoch)
        digest = hashlib.sha256(repr(named_by).encode()).hexdigest()
        results = tuple(self._transform(output) for output in analysis.outputs)
        return Plan(
            sql=sql,
            name="g" + digest[:24],
            parameter_types=types,
            client_parameters=client,
            literals=tuple(self._literals),
            encode=tuple(self._encode),
            injected=tuple(self._injected),
            hidden_columns=self._hidden,
            swallow_rows=self._swallow,
            results=results if any(results) else (),
            writes=any(isinstance(site, WriteSite) for site in analysis.sites),
            row_check_plan=self._row_check,
            returns_rows=bool(analysis.outputs),
            pure=analysis.operation.action == "select" and not analysis.locks and not analysis.impure,
            stateful=analysis.stateful,
            keyed=keys is not None,
            keys=keys or (),
            limited=limited,
            shared=keys is not None and not analysis.dated,
        )

    # Permission

    def _permitted(self) -> None:
        """What the terms refuse outright."""
        places = self._analysis.places
        # In the order of look-up: the first that is missing, or else forbidden, must be the one that is named.
        for name in dict.fromkeys([*places, *(use.qualified for use in self._analysis.operation.relations)]):
            if name not in self._terms.relations:
                raise placed(unavailable_relation(name), places.get(name, 0))
        for name in sorted(self._analysis.looked_up):
            terms = self._terms.relations[name]
            if terms.condition is not None or any(column.read != "clear" for column in terms.columns.values()):
                raise Refusal(
                    "ST-04",
                    f'A function here looks in "{name}", of which this agent may not read all.',
                    hint="Read the relation itself.",
                )
        if self._analysis.locks and not self._terms.locks:
            raise Refusal(
                "AC-01",
                "The policy does not let this agent lock rows.",
                hint="Send the SELECT without FOR UPDATE or FOR SHARE.",
            )
        columns = self._analysis.column_places
        for use in self._analysis.operation.relations:
            for name in use.columns:
                key = f"{use.qualified}.{name}"
                column = self._terms.relations[use.qualified].columns.get(name)
                if column is None:
                    continue
                if use.access == "read" and column.read == "deny":
                    refusal = Refusal(
                        "CO-02",
                        f'Column "{key}" may not be read by this agent.',
                        hint="Name the columns that you need and leave this one out.",
                    )
                    raise placed(refusal, columns.get(key, 0))
                if use.access in ("insert", "update") and not column.write:
                    refusal = Refusal(
                        "CO-02",
                        f'Column "{key}" may not be written by this agent.',
                        hint="Leave this column out, or ask the owner of this agent's policy.",
                    )
                    raise placed(refusal, columns.get(f"{key}=", 0))
        for key in sorted(self._analysis.equalities):
            relation, _, name = key.rpartition(".")
            column = self._terms.relations[relation].columns.get(name)
            if column is None or not column.equality:
                refusal = Refusal(
                    "CO-03",
                    f'Column "{key}" may not be searched, joined or grouped by this agent.',
                    hint="Search by another column.",
                )
                raise placed(refusal, columns.get(key, 0))

    def _parameters(self) -> None:
        for number, uses in sorted(self._analysis.parameters.items()):
            kinds = set(uses)
            if len(kinds) > 1:
                raise Refusal(
                    "CO-03",
                    f"Parameter ${number} is used both for a tokenized column and elsewhere.",
                    hint="Use one parameter for each.",
                )
            transformation = kinds.pop()
            if transformation:
                self._encode.append(EncodeSlot(number - 1, transformation, number in self._analysis.arrays))

    def _literal(self, site: LiteralSite) -> None:
        self._literals.append(site.value)
        self._types.append(0)
        self._encode.append(EncodeSlot(len(self._types) - 1, site.transformation))
        site.node.CopyFrom(tree.parameter(len(self._types)))

    def _transform(self, output: Field) -> Transform | None:
        if output.label is None:
            return None
        reads = {self._column_terms(key).read for key in output.label.columns}
        if len(reads) != 1:
            raise Refusal(
                "CO-03",
                f'Result column "{output.name}" mixes columns with different rights.',
                hint="Select them as separate columns.",
            )
        read = reads.pop()
        if read == "token":
            return None
        if read == "clear":
            return Transform(output.label.transformation, None)
        mask = read.removeprefix("mask:")
        if mask == "null":
            return Transform(None, "null")
        return Transform(output.label.transformation, mask)

    def _column_terms(self, key: str) -> ColumnTerms:
        relation, _, name = key.rpartition(".")
        return self._terms.relations[relation].columns.get(name) or ColumnTerms("mask:null", False, False)

    # Relations

    def _condition(self, item: Item, *, qualifier: tuple[str, ...]) -> Node | None:
        """The row filter of `item` over its real columns, or None for all rows."""
        condition = self._terms.relations[item.qualified].condition
        assert item.relation is not None  # noqa: S101
        return None if condition is None else self._build(condition, item.relation, qualifier)

    def _build(self, condition: Condition, relation: Relation, qualifier: tuple[str, ...]) -> Node:
        if isinstance(condition, Combine):
            parts = [self._build(part, relation, qualifier) for part in condition.items]
            if not parts or (condition.operator == "not" and len(parts) != 1):
                raise _filter_refusal()
            if condition.operator == "not":
                return tree.negation(parts[0])
            return tree.both(parts) if condition.operator == "and" else tree.either(parts)
        column = relation.column(condition.column)
        if column is None:
            raise _filter_refusal()
        base = self._base(column)
        name = FILTER_OPERATORS.get(condition.operator, "=")
        candidates = self._resolver.operator(name, base, base)
        if len(candidates) != 1:
            raise _filter_refusal()
        left = tree.column(*qualifier, column.name)
        array = condition.operator == "in"
        value = self._inject(condition.value, base, array=array)
        return tree.equals_any(left, value) if array else tree.operator(name, left, value)

    def _base(self, column: Column) -> int:
        oid = column.type_oid
        while (kind := self._catalog.types[oid]).kind == "d":
            oid = kind.base
        return oid

    def _inject(self, value: int, type_oid: int, *, array: bool) -> Node:
        """A parameter for one of the identity's values, or its constant."""
        kind = self._catalog.types[type_oid]
        if self._inline is not None:
            wanted = self._catalog.types[kind.array] if array else kind
            return tree.cast(tree.text_constant(self._inline(value, array)), wanted.schema, wanted.name)
        slot = InjectedSlot(value, f"{kind.schema}.{kind.name}", array)
        if slot in self._injected:
            position = self._injected.index(slot)
        else:
            self._injected.append(slot)
            self._injected_types.append(kind.array if array else kind.oid)
            position = len(self._injected) - 1
        return tree.parameter(len(self._types) + position + 1)

    def _ok(self, item: Item) -> str:
        """Name of the hidden column of `item`; unique, so that a shadowed alias cannot answer for another."""
        number = self._numbers.setdefault(item, len(self._numbers) + 1)
        return f"grille:ok{number}"

    def _relation(self, item: Item, *, fence: bool) -> None:
        relation = item.relation
        assert relation is not None  # noqa: S101
        terms = self._terms.relations[item.qualified]
        targets = []
        for position, column in enumerate(relation.columns):
            if column.name not in item.used:
                continue
            visible = item.fields[position].name
            value = tree.column(column.name)
            if self._masked_in_sql(item, column.name):
                value = self._masked(column, terms.columns[column.name].read)
                targets.append(tree.target(value, visible))
            else:
                targets.append(tree.target(value, visible if visible != column.name else ""))
        condition = self._condition(item, qualifier=())
        if condition is not None:
            targets.append(tree.target(tree.is_true(_copy(condition)), self._ok(item)))
        elif item.whole or not targets:
            targets.append(tree.target(tree.boolean_constant(True), self._ok(item)))
        pin = _pin(relation)
        where = pin if condition is None else tree.both([condition, pin])
        source = pb.Node(range_var=tree.relation(relation.schema, relation.name, only=item.only))
        if item.sample is not None:
            source = self._sampled(item, source)
        select = tree.subselect(targets, source, where, fence=fence)
        item.node.CopyFrom(
            pb.Node(
                range_subselect=pb.RangeSubselect(
                    subquery=pb.Node(select_stmt=select), alias=pb.Alias(aliasname=item.name)
                )
            )
        )

    def _sampled(self, item: Item, source: Node) -> Node:
        """TABLESAMPLE, which tells how rows lie in the table's blocks: that would tell of hidden ones among them."""
        assert item.relation is not None  # noqa: S101
        if self._hides(item) or item.relation.row_security:
            raise Refusal(
                "ST-02",
                f'TABLESAMPLE on "{item.qualified}", of which this agent may not read all rows, is not supported: '
                "it would tell how many others there are.",
                sqlstate="0A000",
                hint="Use a condition on random() instead: WHERE random() < 0.1.",
            )
        sample = pb.RangeTableSample()
        sample.CopyFrom(item.sample)
        sample.relation.CopyFrom(source)
        return pb.Node(range_table_sample=sample)

    def _row(self, site: RowSite) -> None:
        """``(SELECT r FROM (SELECT p.a, p.b) r)``; NULL for a row that an outer join has filled up."""
        item = site.item
        columns = [tree.target(tree.column(item.name, f.name)) for f in item.fields]
        alias = pb.Alias(aliasname=_ROW)
        query = pb.Node(select_stmt=tree.subselect(columns, None, None, fence=False))
        source = pb.Node(range_subselect=pb.RangeSubselect(subquery=query, alias=alias))
        select = tree.subselect([tree.target(tree.column(_ROW))], source, None, fence=False)
        row = pb.Node(sub_link=pb.SubLink(sub_link_type=pb.EXPR_SUBLINK, subselect=pb.Node(select_stmt=select)))
        if item.kind == "relation":
            there = pb.Node(
                null_test=pb.NullTest(arg=tree.column(item.name, self._ok(item)), nulltesttype=pb.IS_NOT_NULL)
            )
            row = pb.Node(case_expr=pb.CaseExpr(args=[pb.Node(case_when=pb.CaseWhen(expr=there, result=row))]))
        site.node.CopyFrom(row)

    def _masked_in_sql(self, item: Item, name: str) -> bool:
        """True if the agent sees this column through a mask that the rewritten statement applies."""
        relation = self._terms.relations.get(item.qualified)
        terms = None if relation is None else relation.columns.get(name)
        if terms is None or terms.read == "clear":
            return False
        assert item.relation is not None  # noqa: S101
        return any(
            column.name == name and known.label is None
            for column, known in zip(item.relation.columns, item.fields, strict=True)
        )

    def _masked(self, column: Column, read: str) -> Node:
        """The SQL form of a mask on a column that is stored clear; it keeps type and modifier."""
        kind = self._catalog.types[column.type_oid]
        value = tree.column(column.name)
        mask = read.removeprefix("mask:")
        if mask == "null":
            masked = tree.null_constant()
        elif read == "token" or not read.startswith("mask:"):
            raise Refusal("AC-05", f'The policy asks for a token of "{column.name}", which is not tokenized.')
        elif self._base(column) not in (25, 1043, 1042):
            raise Refusal("AC-05", f'The policy asks for mask "{mask}" on "{column.name}", which is not text.')
        else:
            masked = sql_mask(mask, value)
        return tree.cast(masked, kind.schema, kind.name)

    def _fence(self, item: Item) -> None:
        if not any(self._hides(inner) for inner in item.inner):
            return
        if item.cte is not None:
            item.cte.ctematerialized = pb.CTEMaterializeAlways
        elif item.node is not None:
            tree.add_fence(item.node)

    def _hides(self, item: Item) -> bool:
        """True if rows of `item` may be hidden from the agent."""
        assert item.relation is not None  # noqa: S101
        return self._terms.relations[item.qualified].condition is not None or item.relation.kind == "v"

    def _guard(self, site: QualSite) -> None:
        guards = []
        for item in site.items:
            if item.kind == "catalogue" or (item.kind == "derived" and any(map(self._hides, item.inner))):
                guards.append(_unfoldable())
                continue
            if item.kind == "derived" or not self._hides(item):
                continue
            if site.grouped == "having" or self._terms.relations[item.qualified].condition is None:
                guards.append(_unfoldable())
            elif item.kind == "target":
                condition = self._condition(item, qualifier=(item.name,))
                assert condition is not None  # noqa: S101
                guards.append(condition)
            else:
                guards.append(tree.is_not_false(tree.column(item.name, self._ok(item))))
        if not guards:
            return
        if site.grouped == "full":
            if all(item.kind == "derived" for item in site.items):
                return
            raise Refusal(
                "ST-02",
                "This condition of FULL JOIN or USING cannot be checked row by row.",
                sqlstate="0A000",
                hint="Join with ON and a plain comparison.",
            )
        if site.grouped == "having":
            guards = [_stays_in_having()]
        inner = _copy(site.node)
        site.node.CopyFrom(tree.case(tree.both(guards), inner, tree.boolean_constant(False)))

    # Writes

    def _write(self, site: WriteSite) -> None:
        item, statement = site.item, site.statement
        relation = item.relation
        assert relation is not None  # noqa: S101
        columns = self._terms.relations[item.qualified].columns
        for name in item.used:
            terms = columns.get(name)
            labelled = any(f.name == name and f.label is not None for f in item.fields)
            if terms is not None and not labelled and terms.read != "clear":
                raise Refusal(
                    "CO-04",
                    f'Column "{item.qualified}.{name}" is masked: a write may not read it.',
                    hint="Leave it out of WHERE, SET and RETURNING.",
                )
        condition = self._condition(item, qualifier=(item.name,))
        if site.action in ("update", "delete"):
            parts = [] if not statement.HasField("where_clause") else [_copy(statement.where_clause)]
            if condition is not None:
                parts.append(_copy(condition))
            parts.append(_pin(relation))
            statement.where_clause.CopyFrom(tree.both(parts))
        if site.on_conflict and condition is not None:
            if site.on_conflict == "nothing":
                raise Refusal(
                    "RO-02",
                    f'ON CONFLICT DO NOTHING on "{item.qualified}" would tell of hidden rows.',
                    hint="Use INSERT without ON CONFLICT, or ON CONFLICT DO UPDATE.",
                )
            clause = statement.on_conflict_clause
            own = _copy(clause.where_clause) if clause.HasField("where_clause") else tree.boolean_constant(True)
            proposed = self._condition(item, qualifier=("excluded",))
            assert proposed is not None  # noqa: S101
            # As under native row security, a row that may not be written may not be proposed either.
            clause.where_clause.CopyFrom(tree.case(tree.both([_copy(condition), proposed]), own, _raise(ROW_CHECK)))
        if site.action in ("insert", "update") and condition is not None:
            check = tree.target(tree.case(condition, tree.boolean_constant(True), _raise(ROW_CHECK)), "grille:check")
            existing = [_copy(node) for node in statement.returning_clause.exprs] if site.has_returning else []
            statement.returning_clause.CopyFrom(pb.ReturningClause(exprs=[check, *existing]))
            self._hidden = 1
            self._swallow = not site.has_returning
            self._row_check = True


def sql_mask(mask: str, value: Node) -> Node:
    """The SQL form of a mask of grille.tokenization.masking over a text expression; it cannot raise."""
    text, number = tree.text_constant, tree.integer_constant
    if mask == "last4":
        stars = [text("[^ -]"), text("*"), text("g")]
        short = tree.operator("<", tree.function("char_length", value), number(8))
        all_hidden = tree.function("regexp_replace", value, *stars)
        head = tree.function("regexp_replace", tree.function("left", value, number(-4)), *stars)
        masked = tree.case(short, all_hidden, tree.operator("||", head, tree.function("right", value, number(4))))
    elif mask == "first1":
        short = tree.operator("<", tree.function("char_length", value), number(2))
        first = tree.operator("||", tree.function("left", value, number(1)), text("***"))
        masked = tree.case(short, text("***"), first)
    elif mask == "email":
        one_at = tree.operator("~", value, text("^[^@]+@[^@]+$"))
        domain = tree.function("split_part", value, text("@"), number(2))
        shown = tree.operator("||", tree.operator("||", tree.function("left", value, number(1)), text("***@")), domain)
        masked = tree.case(one_at, shown, text("***"))
    elif mask == "redact":
        masked = text("[redacted]")
    else:
        raise Refusal("AC-05", f'Mask "{mask}" is not known.', hint="Tell the owner of this agent's policy.")
    absent = pb.Node(null_test=pb.NullTest(arg=value, nulltesttype=pb.IS_NULL))
    return tree.case(absent, tree.null_constant(), masked)


def _copy(node: Node) -> Node:
    copy = pb.Node()
    copy.CopyFrom(node)
    return copy


def _unfoldable() -> Node:
    """True, but not while planning: within its CASE no condition is tried on sampled values of hidden rows.

    The planner estimates ``column LIKE constant`` by running it on the column's most common values, below OFFSET 0 too.
    """
    now = tree.function("now")
    return pb.Node(null_test=pb.NullTest(arg=now, nulltesttype=pb.IS_NOT_NULL))


def _stays_in_having() -> Node:
    """True, and an aggregate of this level: PostgreSQL moves a HAVING condition without one into WHERE."""
    count = tree.function("count")
    count.func_call.agg_star = True
    return pb.Node(null_test=pb.NullTest(arg=count, nulltesttype=pb.IS_NOT_NULL))


def _raise(setting: str) -> Node:
    """An expression that raises 42704 when it is evaluated; STABLE, so it is never folded while planning."""
    return tree.cast(tree.function("current_setting", tree.text_constant(setting)), "pg_catalog", "bool")


def _pin(relation: Relation) -> Node:
    """True while the name still means the relation that was checked; raises after a swap of names."""
    return pb.Node.FromString(_serialized_pin(relation.schema, relation.name, relation.oid))


@functools.lru_cache(maxsize=1024)
def _serialized_pin(schema: str, name: str, oid: int) -> bytes:
    quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))
    current = tree.cast(tree.cast(tree.text_constant(quoted), "pg_catalog", "regclass"), "pg_catalog", "oid")
    expected = tree.cast(tree.text_constant(str(oid)), "pg_catalog", "oid")
    pin = tree.case(tree.operator("=", current, expected), tree.boolean_constant(True), _raise(CATALOGUE_CHANGED))
    return bytes(pin.SerializeToString())


def _filter_refusal() -> Refusal:
    return Refusal(
        "AC-05",
        "The policy's row filter for this relation cannot be applied.",
        hint="Tell the owner of this agent's policy.",
    )
