"""From a parse tree to an understood statement: scopes, names, types, provenance.

The walk is closed: a node kind, or a field of a known kind, that is not in `FIELDS` refuses the statement (ST-02).
Every relation, column, function, operator and type is resolved in the catalogue snapshot; where a type cannot be
inferred, every candidate of that name must be acceptable.  Provenance follows tokenized columns (`Label`): an
expression over one that cannot carry a token is refused (CO-03).

The walk also collects, innermost first, the places that `grille.protocols.postgres.rewrite` will change once a
decision is known (`Site`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn

import msgspec
from postgast import pg_query_pb2 as pb

from grille.controls import Refusal
from grille.protocols.operation import Access, Operation, RelationUse
from grille.protocols.postgres import introspection, tree
from grille.protocols.postgres.bare import bare
from grille.protocols.postgres.catalog import Catalog, Column, Function, Relation
from grille.protocols.postgres.introspection import REG_TYPES, Lookup
from grille.protocols.postgres.purity import Purity, signature_of
from grille.protocols.postgres.resolve import Resolver
from grille.protocols.postgres.tree import Node, kind_of

BOOL: Final = 16
INT8: Final = 20
INT4: Final = 23
TEXT: Final = 25
UNKNOWN: Final = 705
BPCHAR: Final = 1042
VARCHAR: Final = 1043
NUMERIC: Final = 1700
RECORD: Final = 2249
TEXT_LIKE: Final = frozenset({TEXT, VARCHAR, BPCHAR, UNKNOWN})
_TEXT_ARRAYS: Final = (1009, 1015)
"""text[] and varchar[]."""
_OF_ANY: Final = ((pb.AEXPR_OP_ANY, "="), (pb.AEXPR_OP_ALL, "<>"))
"""What IN and NOT IN are short for."""
FIRST_USER_OID: Final = 16384
MAX_COLUMNS: Final = 1664
"""PostgreSQL's own limit on a select list (MaxTupleAttributeNumber)."""
MAX_RELATIONS: Final = 500
_VECTORS: Final = {22: 21, 30: 26}
"""int2vector and oidvector, with the types of their elements."""
HIDDEN: Final = "grille:"
_TOLD_APART: Final = f"{HIDDEN}column "
"""Begins the names of columns that have one name; nothing else is called so, and who writes such a name reads these."""
"""Identifiers that begin so are Grille's own and refused from agents."""

MAX_LISTED: Final = 64
"""Elements of an IN list, or rows of a VALUES list, up to which a statement counts as bounded."""

_DATED: Final = re.compile(r"\d|now|today|tomorrow|yesterday", re.IGNORECASE)
"""What a string must hold for its value as a date or time to depend on the clock or on TimeZone."""
_UNDATED_CATEGORIES: Final = frozenset("BEINSTUV")
"""pg_type.typcategory: boolean, enum, network, numeric, string, timespan, user-defined, bit string."""

_NOWS: Final = frozenset(
    {pb.SVFOP_CURRENT_DATE, pb.SVFOP_CURRENT_TIMESTAMP, pb.SVFOP_CURRENT_TIMESTAMP_N, pb.SVFOP_LOCALTIMESTAMP,
     pb.SVFOP_LOCALTIMESTAMP_N}
)  # fmt: skip
_CLOCK_NAMES: Final = {
    pb.SVFOP_CURRENT_DATE: "current_date",
    pb.SVFOP_CURRENT_TIME: "current_time",
    pb.SVFOP_CURRENT_TIME_N: "current_time",
    pb.SVFOP_CURRENT_TIMESTAMP: "current_timestamp",
    pb.SVFOP_CURRENT_TIMESTAMP_N: "current_timestamp",
    pb.SVFOP_LOCALTIME: "localtime",
    pb.SVFOP_LOCALTIME_N: "localtime",
    pb.SVFOP_LOCALTIMESTAMP: "localtimestamp",
    pb.SVFOP_LOCALTIMESTAMP_N: "localtimestamp",
}
_SHORT_INTERVAL: Final = re.compile(r"[0-9]{1,3} (second|minute|hour|day|week|month|year)s?")

_TOTAL_CASTS: Final = frozenset(
    {(21, target) for target in (23, 20, 700, 701, 1700)}
    | {(23, target) for target in (20, 700, 701, 1700)}
    | {(20, target) for target in (700, 701, 1700)}
    | {(700, 701), (19, 25), (BPCHAR, TEXT), (BPCHAR, VARCHAR)}
)
"""Conversions that run code and cannot raise: a number to a wider type, a name or padded text to text."""

_LEAVES: Final = frozenset({"Node", "String", "A_Star", "Integer", "Float", "Boolean", "BitString"})
"""Messages without a part that could be evaluated."""

_TRIVIAL = {"location", "xpr", "list_start", "list_end", "rexpr_list_start", "rexpr_list_end"}

FIELDS: Final[dict[str, frozenset[str]]] = {
    name: frozenset(fields.split()) | _TRIVIAL
    for name, fields in {
        "SelectStmt": "distinct_clause target_list from_clause where_clause group_clause group_distinct having_clause "
        "window_clause values_lists sort_clause limit_offset limit_count limit_option locking_clause with_clause op "
        "all larg rarg",
        "InsertStmt": "relation cols select_stmt on_conflict_clause returning_clause override",
        "UpdateStmt": "relation target_list where_clause from_clause returning_clause with_clause",
        "DeleteStmt": "relation using_clause where_clause returning_clause with_clause",
        "RangeVar": "catalogname schemaname relname inh relpersistence alias",
        "RangeSubselect": "lateral subquery alias",
        "RangeFunction": "lateral ordinality is_rowsfrom functions alias",
        "RangeTableSample": "relation method args repeatable",
        "JoinExpr": "jointype is_natural larg rarg using_clause quals",
        "Alias": "aliasname colnames",
        "ResTarget": "name val",
        "ColumnRef": "fields",
        "ParamRef": "number",
        "A_Const": "ival fval boolval sval bsval isnull",
        "A_Expr": "kind name lexpr rexpr",
        "BoolExpr": "boolop args",
        "NullTest": "arg nulltesttype",
        "BooleanTest": "arg booltesttype",
        "CaseExpr": "arg args defresult",
        "CaseWhen": "expr result",
        "CoalesceExpr": "args",
        "MinMaxExpr": "op args",
        "FuncCall": "funcname args agg_order agg_filter over agg_within_group agg_star agg_distinct funcformat "
        "func_variadic",
        "NamedArgExpr": "arg name argnumber",
        "TypeCast": "arg type_name",
        "TypeName": "names typmods typemod array_bounds",
        "SubLink": "sub_link_type testexpr oper_name subselect",
        "A_ArrayExpr": "elements",
        "RowExpr": "args row_format",
        "A_Indirection": "arg indirection",
        "A_Indices": "is_slice lidx uidx",
        "CollateClause": "arg collname",
        "SQLValueFunction": "op typmod",
        "GroupingSet": "kind content",
        "GroupingFunc": "args",
        "SetToDefault": "type_mod",
        "SortBy": "node sortby_dir sortby_nulls",
        "WindowDef": "name refname partition_clause order_clause frame_options start_offset end_offset",
        "LockingClause": "locked_rels strength wait_policy",
        "WithClause": "ctes recursive",
        "CommonTableExpr": "ctename aliascolnames ctematerialized ctequery",
        "OnConflictClause": "action infer target_list where_clause",
        "InferClause": "index_elems",
        "IndexElem": "name ordering nulls_ordering",
        "ReturningClause": "exprs",
        "List": "items",
    }.items()
}

_NAMED_COLUMN: Final = {
    "json_array_elements": "value",
    "json_array_elements_text": "value",
    "jsonb_array_elements": "value",
    "jsonb_array_elements_text": "value",
    "pg_partition_ancestors": "relid",
}
"""The only functions that agents may call whose one column has a name of its own (an OUT parameter).

A column that is not there would be taken for a call: ``f.f`` for ``f(f)``.
"""

SYSTEM_SCHEMAS: Final = frozenset({"pg_catalog", "information_schema"})
MAX_LOOKUPS: Final = 200
"""Catalogue relations and look-ups in one statement: each brings the condition on what is visible with it."""

SHOWING_TEXTS: Final = frozenset({"pg_cursors", "pg_prepared_statements", "pg_stat_activity"})
"""Views of pg_catalog that show rewritten statements, and with them the filters."""

SESSION_NAMES: Final = {
    pb.SVFOP_CURRENT_ROLE: "current_role",
    pb.SVFOP_CURRENT_USER: "current_user",
    pb.SVFOP_USER: "user",
    pb.SVFOP_SESSION_USER: "session_user",
    pb.SVFOP_CURRENT_CATALOG: "current_catalog",
    pb.SVFOP_CURRENT_SCHEMA: "current_schema",
}


_SETTINGS: Final = {
    "default_table_access_method": "heap",
    "default_tablespace": "",
    "max_identifier_length": "63",
    "max_index_keys": "32",
    "search_path": "public",
    "server_encoding": "UTF8",
    "standard_conforming_strings": "on",
}
"""What current_setting tells: the same for every agent."""

_SESSION_FUNCTIONS: Final = {
    "current_schemas": ("", "", 0),
    "getdatabaseencoding": ("UTF8", "name", 19),
    "pg_my_temp_schema": ("0", "oid", 26),
}
"""Functions that are answered from proxy state: value, type and its OID."""


class Sensitive(msgspec.Struct, frozen=True):
    """What the configuration says of one sensitive column."""

    transformation: str | None
    """Stored tokenized under this transformation; None: stored clear, masked in SQL."""
    token_domain: str | None


def with_sources(configured: Mapping[str, Sensitive], catalog: Catalog) -> dict[str, Sensitive]:
    """`configured`, and every column that repeats one of these or is computed from it (`Column.sources`).

    What those hold is not told: they are masked, and not written, unless the decision says otherwise.
    """
    known = dict(configured)
    columns = {
        f"{relation.schema}.{relation.name}.{column.name}": column.sources
        for relation in catalog.relations.values()
        for column in relation.columns
        if column.sources
    }
    while True:
        more = {name for name, of in columns.items() if name not in known and not known.keys().isdisjoint(of)}
        if not more:
            return known
        known.update(dict.fromkeys(more, Sensitive(None, None)))


class Label(msgspec.Struct, frozen=True):
    """Provenance of a value that is a token: the columns it may come from."""

    columns: frozenset[str]
    """``schema.relation.column``"""
    transformation: str
    token_domain: str


@dataclass(slots=True)
class Field:
    """One column of a range item or of a select list."""

    name: str
    type: int | None
    label: Label | None = None
    plain: bool = True
    """Its defining expression is leakproof: a condition on it may run before the row filter."""
    node: Node | None = None
    shown: str = ""
    """The name under which a star shows it, if its own is not the agent's."""

    record: Mapping[str, int] | None = None
    """Of a record whose fields are known, their types by name."""


@dataclass(slots=True, eq=False)
class Item:
    """One entry of a FROM clause, or the target of a write."""

    name: str
    kind: Literal["relation", "derived", "function", "target", "excluded", "catalogue"]
    fields: list[Field]
    relation: Relation | None = None
    node: Any = None
    """The Node that holds the RangeVar (kind relation), the subquery's SelectStmt (derived)."""
    inner: list[Item] = field(default_factory=list)
    """Governed relations below a derived item, and those of outer levels that it reads."""
    arguments: list[Item] = field(default_factory=list)
    """What the arguments of a function in FROM read: an SQL function may become part of the query."""
    cte: Any = None
    """The CommonTableExpr of a reference to one."""
    used: dict[str, None] = field(default_factory=dict)
    only: bool = False
    fenced: bool = False
    schema: str = ""
    """Of a catalogue relation."""
    whole: bool = False
    """It is read as a whole row somewhere."""
    sample: Any = None
    """The RangeTableSample around its RangeVar: only a part of its rows is read."""

    @property
    def qualified(self) -> str:
        """``schema.relation`` of a governed relation."""
        assert self.relation is not None  # noqa: S101
        return f"{self.relation.schema}.{self.relation.name}"

    def field(self, name: str) -> Field | None:
        """The field of this name, or None."""
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        return None


@dataclass(slots=True)
class Entry:
    """One name that an unqualified column reference can mean."""

    name: str
    field: Field
    owners: tuple[Item, ...]
    merged: bool = False
    """A column merged by USING or NATURAL."""
    origin: tuple[Item, str] | None = None
    """The item and its field that this is, if it is a single one: not so for a FULL JOIN's merged column."""


@dataclass(slots=True)
class Namespace:
    """What a FROM clause or a part of it makes visible."""

    entries: list[Entry] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    def add(self, other: Namespace) -> None:
        self.entries.extend(other.entries)
        self.items.extend(other.items)


@dataclass(slots=True)
class Scope:
    """One query level."""

    parent: Scope | None
    namespace: Namespace
    ctes: dict[str, Cte]

    def cte(self, name: str) -> Cte | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.ctes:
                return scope.ctes[name]
            scope = scope.parent
        return None


@dataclass(slots=True)
class Cte:
    """A WITH query in scope."""

    node: Any
    fields: list[Field]
    inner: list[Item]
    raises: bool = False
    """Evaluating it may raise."""


@dataclass(slots=True)
class RelationSite:
    """A RangeVar to be replaced by a governed subselect."""

    item: Item


@dataclass(slots=True)
class RowSite:
    """A reference to a whole row of a governed relation, to be put together from its columns."""

    node: Node
    item: Item


@dataclass(slots=True)
class QualSite:
    """A condition that is not leakproof and must not see hidden rows."""

    node: Node
    items: tuple[Item, ...]
    grouped: Literal["", "having", "full"] = ""
    """``having``: it must stay above the grouping; ``full``: on a FULL JOIN or in USING no guard can be added."""


@dataclass(slots=True)
class FenceSite:
    """A derived item that a leaky condition reads: it gets a fence if it holds a filtered relation."""

    item: Item


@dataclass(slots=True)
class LiteralSite:
    """A constant that is compared with, or stored in, a tokenized column."""

    node: Node
    value: str
    transformation: str


@dataclass(slots=True)
class WriteSite:
    """The target of an INSERT, UPDATE or DELETE."""

    statement: Any
    action: Literal["insert", "update", "delete"]
    item: Item
    written: tuple[str, ...]
    has_returning: bool
    on_conflict: Literal["", "nothing", "update"] = ""


@dataclass(slots=True)
class Binding:
    """A leakproof equality that every row of `item` that is read must satisfy: ``column = constant`` and the like."""

    item: Item
    column: str
    operand: int
    """The type that the operator takes on the column's side."""
    source: Item | None
    """The item whose column it is equal to; None: constants or parameters."""
    values: int
    """How many; more than one for an IN list."""


Site = RelationSite | RowSite | QualSite | FenceSite | LiteralSite | WriteSite


class Analysis:
    """An understood statement, before a decision; used up by one rewrite."""

    def __init__(self, statement: Node, operation: Operation) -> None:
        self.statement = statement
        self.operation = operation
        self.items: list[Item] = []
        """Every governed relation item."""
        self.sites: list[Site] = []
        """Innermost first."""
        self.outputs: list[Field] = []
        """Visible result columns."""
        self.parameters: dict[int, list[str]] = {}
        """Client parameter -> for each use ``""`` (plain) or the transformation under which it is encoded."""
        self.arrays: set[int] = set()
        """Client parameters that are arrays of values to be encoded."""
        self.equalities: set[str] = set()
        """Sensitive columns that take part in an equality or grouping."""
        self.locks = False
        self.bindings: list[Binding] = []
        self.listed = 1
        """Rows of all VALUES lists, multiplied."""
        self.unbounded = False
        """It reads something else than relations that can be bounded by a key: a set-returning function, a recursive
        query, the catalogue, or a function of the database's own that may read tables."""
        self.impure = False
        """It runs, or may run, code of the database's own that is volatile or that the snapshot does not hold."""
        self.stateful = False
        """It runs a volatile function of the database's own, which may leave settings or locks in its session."""
        self.aggregated = False
        """The outermost SELECT has an aggregate or window function."""
        self.introspects = False
        """It reads the catalogue, limited to what the agent may see: `introspection.VISIBLE` goes with it."""
        self.looked_up: set[str] = set()
        """Relations (``schema.name``) that functions look in: nothing of these may be filtered or hidden."""
        self.dated = False
        """A constant stays in it whose value may depend on the clock or on TimeZone when the server parses it."""
        self.places: dict[str, int] = {}
        """Where the statement first names each relation (``schema.relation``): byte offsets, in order of look-up."""
        self.column_places: dict[str, int] = {}
        """The same of columns that are read (``schema.relation.column``) or written (``schema.relation.column=``)."""


@dataclass(slots=True)
class _Info:
    type: int | None = None
    label: Label | None = None
    leakproof: bool = True
    constant: bool = False
    """PostgreSQL evaluates it while planning: literals and immutable code over them.  An error shows then, whatever the
    rows are.  A parameter or ``current_date`` is no constant: code over them may run, and raise, for each row."""
    record: Mapping[str, int] | None = None
    """Types by name of its fields, if they are known."""


class Analyzer:
    """Understands one statement.  Raises `Refusal`, whose ``operation`` holds what was resolved until then."""

    def __init__(
        self,
        resolver: Resolver,
        purity: Purity,
        sensitive: Mapping[str, Sensitive],
        parameter_types: Sequence[int],
        *,
        database: str,
    ) -> None:
        self._resolver = resolver
        self._catalog: Catalog = resolver.catalog
        self._purity = purity
        self._sensitive = sensitive
        self._parameter_types = parameter_types
        self._session_values = (
            {}
            if resolver.path is not None
            else {
                "current_role": "agent",
                "current_user": "agent",
                "user": "agent",
                "session_user": "agent",
                "current_catalog": database,
                "current_database": database,
                "current_schema": "public",
            }
        )
        self._uses: dict[tuple[str, str, Access], tuple[set[str], set[str]]] = {}
        self._functions: set[str] = set()
        self._references: dict[Item, None] = {}
        """Items that the current expression reads, at this level and outer ones."""
        self._loose: dict[Item, None] = {}
        """Those of them that are read outside a condition, where no guard stands."""
        self._in_qual = False
        self._in_predicate = False
        self._volatile_seen = False
        self._raising = 0
        """How many expressions so far may raise an error when they are evaluated."""
        self._joined: Any = None
        """The SubLink that is a conjunct of WHERE by itself: PostgreSQL may make a join of it."""
        self._outermost = True
        """Not within FROM or WITH: an aggregate here may be the outermost SELECT's."""
        self._bare: list[tuple[Item, str]] = []
        """Columns read outside aggregates by select list, HAVING and ORDER BY."""
        self._visited: dict[int, Any] = {}
        """Messages that the walk came to, by id; kept, so that their ids stay theirs."""
        self._lookups = 0
        self._here = 0
        """Where the column reference stands that is being looked up."""
        self._result = Analysis(None, Operation(""))
        self._places = self._result.places

    def analyze(self, statement: Node) -> Analysis:
        """Understand `statement`, which is changed in place (stars expanded, names qualified)."""
        kind = kind_of(statement)
        action = kind.removesuffix("_stmt")
        self._result.statement = statement
        self._result.impure = not self._purity.quiet_casts
        root = Scope(None, Namespace(), {})
        for declared in self._parameter_types:
            if declared not in (0, UNKNOWN) and not self._resolver.harmless(declared):
                raise Refusal("ST-04", "A parameter of this type is not supported: declare it as text.")
        try:
            if kind == "select_stmt":
                fields, _inner = self._select(statement.select_stmt, root)
                self._result.outputs = fields
            elif kind == "insert_stmt":
                self._insert(statement.insert_stmt, root)
            elif kind == "update_stmt":
                self._update(statement.update_stmt, root)
            elif kind == "delete_stmt":
                self._delete(statement.delete_stmt, root)
            else:
                _refuse_kind(kind)
            self._all_visited()
        except Refusal as refusal:
            self._rest(statement, action)
            refusal.operation = self._operation(action)
            refusal.places = self._places
            raise
        self._result.operation = self._operation(action)
        return self._result

    def _rest(self, statement: Node, action: str) -> None:
        """Note the relations that a refused statement names and that the walk did not come to.

        So the policy is asked the same whether the walk ended at a relation that is missing, or went on because it
        exists, and its answer does not tell one from the other.
        """
        names = {part.ctename for part in tree.walk(statement) if part.DESCRIPTOR.name == "CommonTableExpr"}
        message = getattr(statement, kind_of(statement))
        target = message.relation if action != "select" else None
        fields = [field.name for field, _ in message.ListFields()]
        others = {
            id(part): part
            for clause in tree.walk(statement)
            if clause.DESCRIPTOR.name in ("LockingClause", "IntoClause")
            for part in tree.walk(clause)
        }
        for part in tree.walk(statement):
            if part.DESCRIPTOR.name != "RangeVar" or id(part) in others or part.schemaname == "pg_catalog":
                continue
            if not part.schemaname and part.relname in names:
                continue
            key = (self._schema(part), part.relname)
            if key[0] in SYSTEM_SCHEMAS and self._resolver.path is None:
                continue
            access: Any = action if part is target else "read"
            if f"{key[0]}.{key[1]}" not in self._places or part is target:
                self._uses.setdefault((*key, access), (set(), set()))
                self._places.setdefault(f"{key[0]}.{key[1]}", part.location)
                if part is target and any(name in ("where_clause", "returning_clause") for name in fields):
                    self._uses.setdefault((*key, "read"), (set(), set()))

    def _operation(self, action: str) -> Operation:
        uses = [
            RelationUse(schema, name, access, tuple(sorted(columns)), tuple(sorted(predicates)))
            for (schema, name, access), (columns, predicates) in self._uses.items()
        ]
        return Operation(action, tuple(sorted(uses)), tuple(sorted(self._functions)))

    # The walk is closed

    def _closed(self, message: Any) -> None:
        """Refuse a message that has a field which the walk does not know; note that the walk was here."""
        name = message.DESCRIPTOR.name
        allowed = FIELDS.get(name)
        if allowed is None:
            _refuse_kind(name)
        for descriptor, _value in message.ListFields():
            if descriptor.name not in allowed:
                _refuse_kind(f"{name} with {descriptor.name}")
        self._visited[id(message)] = message

    def _closed_alias(self, message: Any) -> None:
        if message.HasField("alias"):
            self._closed(message.alias)

    def _built(self, message: Any) -> None:
        """`message` is Grille's own."""
        for part in tree.walk(message):
            self._visited[id(part)] = part

    def _all_visited(self) -> None:
        """Refuse a statement with a part that the walk did not come to."""
        for message in tree.walk(self._result.statement):
            if message.DESCRIPTOR.name not in _LEAVES and id(message) not in self._visited:
                _refuse_kind(message.DESCRIPTOR.name)

    # Statements

    def _select(self, select: Any, parent: Scope) -> tuple[list[Field], list[Item]]:
        """Returns the output columns and the governed relations below, also those that it reads of outer levels."""
        references, self._references = self._references, {}
        fields, inner = self._query(select, parent)
        below = (relation for item in self._references for relation in relations_of(item))
        inner = list(dict.fromkeys([*inner, *below]))
        self._references = {**references, **self._references}
        for candidate in fields:
            if candidate.type == UNKNOWN:
                candidate.type = TEXT
        return fields, inner

    def _query(self, select: Any, parent: Scope) -> tuple[list[Field], list[Item]]:
        self._closed(select)
        if max(len(select.sort_clause), len(select.group_clause), len(select.distinct_clause)) > MAX_COLUMNS:
            raise _too_many_columns()
        scope = Scope(parent, Namespace(), {})
        inner: list[Item] = []
        outermost = self._outermost
        if select.HasField("with_clause"):
            self._outermost = False
            inner += self._with(select.with_clause, scope)
            self._outermost = outermost
        if select.op != pb.SETOP_NONE:
            return self._set_operation(select, scope, inner)
        if select.values_lists:
            fields = self._values(select, scope)
            self._sort(select.sort_clause, scope, fields, outputs_only=True)
            self._limits(select, scope)
            return fields, inner
        self._outermost = False
        for node in select.from_clause:
            namespace = self._from(node, scope)
            scope.namespace.add(namespace)
        self._outermost = outermost
        for item in scope.namespace.items:
            inner += relations_of(item)
        self._expand_stars(select.target_list, scope, select=select)
        if not select.target_list:
            raise Refusal(
                "ST-02",
                "A SELECT without a select list is not supported.",
                sqlstate="0A000",
                hint="Name at least one column or constant.",
            )
        if select.HasField("where_clause"):
            self._qual(select.where_clause, scope, binds=scope.namespace.items, where=True)
        bare, self._bare = self._bare, []
        fields = [self._output(target.res_target, scope) for target in select.target_list]
        outputs, self._bare = self._bare, []
        for node in select.group_clause:
            self._group_item(node, scope, fields)
        self._bare = outputs
        if select.HasField("having_clause"):
            self._qual(select.having_clause, scope, grouped="having")
        for node in select.window_clause:
            self._window(node.window_def, scope)
        self._sort(select.sort_clause, scope, fields)
        for node in select.distinct_clause:
            if kind_of(node):
                self._sort_key(node, scope, fields, ordering=True)
            else:
                self._equality_on(*(f.label for f in fields))
        self._extend_group(select, scope, fields)
        self._bare = bare + self._bare
        self._limits(select, scope)
        for node in select.locking_clause:
            self._locking(node.locking_clause, scope)
        self._note_outer(scope)
        return fields, inner

    def _set_operation(self, select: Any, scope: Scope, inner: list[Item]) -> tuple[list[Field], list[Item]]:
        left, left_inner = self._select(select.larg, scope)
        right, right_inner = self._select(select.rarg, scope)
        if len(left) != len(right):
            raise Refusal(
                "ST-01", "Each branch of a set operation must have the same number of columns.", sqlstate="42601"
            )
        fields = [self._merge(a, b) for a, b in zip(left, right, strict=True)]
        if select.op != pb.SETOP_UNION or not select.all:
            self._equality_on(*(f.label for f in fields))
        self._sort(select.sort_clause, scope, fields, outputs_only=True)
        self._limits(select, scope)
        if select.locking_clause:
            raise Refusal("ST-02", "A locking clause on a set operation is not supported.", sqlstate="0A000")
        return fields, [*inner, *left_inner, *right_inner]

    def _merge(self, left: Field, right: Field) -> Field:
        """One output column of a set operation."""
        label = None
        if left.label or right.label:
            label = self._same_domain(left.label, right.label)
        kind = left.type if left.type == right.type else None
        if kind is None:
            _no_mixed_names((left.type, right.type, UNKNOWN))
        return Field(left.name, kind, label, left.plain and right.plain and kind is not None)

    def _values(self, select: Any, scope: Scope) -> list[Field]:
        plain: list[bool] = []
        types: list[set[int | None]] = []
        self._result.listed *= len(select.values_lists)
        for row in select.values_lists:
            self._closed(row.list)
            plain += [True] * (len(row.list.items) - len(plain))
            types += [set() for _ in range(len(row.list.items) - len(types))]
            for index, cell in enumerate(row.list.items):
                info = self._expression(cell, scope)
                self._unlabelled(cell, info)
                types[index].add(info.type)
                plain[index] = plain[index] and (info.constant or kind_of(cell) == "param_ref")
        fields = []
        for index, (known, kinds) in enumerate(zip(plain, types, strict=True)):
            _no_mixed_names(kinds)
            same = kinds.pop() if kinds <= REG_TYPES.keys() and len(kinds) == 1 else None
            fields.append(Field(f"column{index + 1}", same, None, known))
        return fields

    def _with(self, clause: Any, scope: Scope) -> list[Item]:
        self._closed(clause)
        self._result.unbounded = self._result.unbounded or clause.recursive
        inner: list[Item] = []
        for node in clause.ctes:
            cte = node.common_table_expr
            self._closed(cte)
            if kind_of(cte.ctequery) != "select_stmt":
                raise Refusal(
                    "ST-02",
                    "A WITH query that writes is not supported.",
                    sqlstate="0A000",
                    hint="Send the INSERT, UPDATE or DELETE as a statement of its own, with RETURNING.",
                )
            names = [name.string.sval for name in cte.aliascolnames]
            _own_identifier(cte.ctename, *names)
            select = cte.ctequery.select_stmt
            query_scope = scope
            if clause.recursive and select.op == pb.SETOP_UNION:
                arm, arm_inner = self._dry_run(select.larg, scope)
                fields = _renamed([Field(f.name, f.type, f.label, False) for f in arm], names)
                query_scope = Scope(scope, Namespace(), {cte.ctename: Cte(cte, fields, arm_inner)})
            raising = self._raising
            fields, below = self._select(select, query_scope)
            _name_outputs(select, fields)
            recursive = query_scope is not scope
            visible = [Field(f.name, f.type, f.label, f.plain and not recursive) for f in fields]
            scope.ctes[cte.ctename] = Cte(cte, _renamed(visible, names), below, raises=self._raising > raising)
            inner += below
        return inner

    def _dry_run(self, select: Any, scope: Scope) -> tuple[list[Field], list[Item]]:
        """Columns of the non-recursive arm, found on a copy so that nothing is collected twice."""
        copy = pb.SelectStmt()
        copy.CopyFrom(select)
        sites, items = len(self._result.sites), len(self._result.items)
        found = self._select(copy, scope)
        del self._result.sites[sites:], self._result.items[items:]
        return found

    def _insert(self, insert: Any, root: Scope) -> None:
        self._closed(insert)
        item = self._target(insert.relation, "insert")
        relation = item.relation
        assert relation is not None  # noqa: S101
        writable = [column.name for column in relation.columns if not column.generated]
        written = {node.res_target.name: node.res_target.location for node in insert.cols}
        if insert.cols:
            names = []
            for node in insert.cols:
                self._closed(node.res_target)
                names.append(node.res_target.name)
        else:
            names = writable
        scope = Scope(root, Namespace(), {})
        query = insert.select_stmt.select_stmt if insert.HasField("select_stmt") else None
        if query is not None:
            self._closed(query)
            width = len(query.values_lists[0].list.items) if query.values_lists else None
            if not insert.cols and width is not None:
                names = names[:width]
            if query.values_lists:
                self._result.listed *= len(query.values_lists)
                if any(d.name not in ("values_lists", "op", "limit_option") for d, _ in query.ListFields()):
                    raise Refusal(
                        "ST-02", "VALUES with WITH, ORDER BY or LIMIT is not supported in INSERT.", sqlstate="0A000"
                    )
                for row in query.values_lists:
                    self._closed(row.list)
                    if len(row.list.items) != len(names):
                        raise Refusal("ST-01", "INSERT has a different number of columns and values.", sqlstate="42601")
                    for name, cell in zip(names, row.list.items, strict=True):
                        self._assign(relation, name, cell, scope, written.get(name, 0))
            else:
                fields, _inner = self._select(query, scope)
                if not insert.cols:
                    names = names[: len(fields)]
                if len(fields) != len(names):
                    raise Refusal("ST-01", "INSERT has a different number of columns and values.", sqlstate="42601")
                for name, source in zip(names, fields, strict=True):
                    try:
                        self._assign_field(relation, name, source)
                    except Refusal as refusal:
                        placed(refusal, written.get(name, 0))
                        raise
        self._written(item, "insert", names)
        if query is not None and not insert.cols:
            insert.cols.extend(pb.Node(res_target=pb.ResTarget(name=name)) for name in names)
            for node in insert.cols:
                self._built(node)
        scope = Scope(root, _namespace_of(item), {})
        on_conflict: Literal["", "nothing", "update"] = ""
        if insert.HasField("on_conflict_clause"):
            on_conflict = self._on_conflict(insert.on_conflict_clause, item, scope, root)
        self._returning(insert, scope)
        self._result.sites.append(
            WriteSite(insert, "insert", item, tuple(names), insert.HasField("returning_clause"), on_conflict)
        )

    def _on_conflict(self, clause: Any, item: Item, scope: Scope, root: Scope) -> Literal["nothing", "update"]:
        self._closed(clause)
        if clause.HasField("infer"):
            self._closed(clause.infer)
            for element in clause.infer.index_elems:
                self._closed(element.index_elem)
                self._column_of(item, element.index_elem.name)
        if clause.action == pb.ONCONFLICT_NOTHING:
            return "nothing"
        excluded = Item("excluded", "excluded", item.fields, item.relation)
        both = Namespace()
        both.add(_namespace_of(item))
        both.items.append(excluded)
        update_scope = Scope(root, both, {})
        names = self._assignments(clause.target_list, item, update_scope)
        self._written(item, "update", names)
        if clause.HasField("where_clause"):
            self._expression_bool(clause.where_clause, update_scope)
        return "update"

    def _update(self, update: Any, root: Scope) -> None:
        self._closed(update)
        scope = Scope(root, Namespace(), {})
        if update.HasField("with_clause"):
            self._with(update.with_clause, scope)
        item = self._target(update.relation, "update")
        scope.namespace.add(_namespace_of(item))
        for node in update.from_clause:
            scope.namespace.add(self._from(node, scope))
        if update.HasField("where_clause"):
            self._qual(update.where_clause, scope, binds=scope.namespace.items, where=True)
        names = self._assignments(update.target_list, item, scope)
        self._written(item, "update", names)
        self._returning(update, scope)
        self._result.sites.append(WriteSite(update, "update", item, tuple(names), update.HasField("returning_clause")))

    def _delete(self, delete: Any, root: Scope) -> None:
        self._closed(delete)
        scope = Scope(root, Namespace(), {})
        if delete.HasField("with_clause"):
            self._with(delete.with_clause, scope)
        item = self._target(delete.relation, "delete")
        scope.namespace.add(_namespace_of(item))
        for node in delete.using_clause:
            scope.namespace.add(self._from(node, scope))
        if delete.HasField("where_clause"):
            self._qual(delete.where_clause, scope, binds=scope.namespace.items, where=True)
        self._returning(delete, scope)
        self._result.sites.append(WriteSite(delete, "delete", item, (), delete.HasField("returning_clause")))

    def _assignments(self, targets: Iterable[Node], item: Item, scope: Scope) -> list[str]:
        names = []
        for node in targets:
            target = node.res_target
            self._closed(target)
            names.append(target.name)
            assert item.relation is not None  # noqa: S101
            self._assign(item.relation, target.name, target.val, scope, target.location)
        return names

    def _assign(self, relation: Relation, name: str, value: Node, scope: Scope, location: int) -> None:
        """One value stored in one column, which is named at `location`."""
        self._result.column_places.setdefault(f"{relation.schema}.{relation.name}.{name}=", location)
        try:
            self._assign_value(relation, name, value, scope)
        except Refusal as refusal:
            placed(refusal, location)
            raise

    def _assign_value(self, relation: Relation, name: str, value: Node, scope: Scope) -> None:
        column = relation.column(name)
        if column is None:
            raise unavailable_column(name)
        label = self._label_of(relation, name)
        if kind_of(value) == "set_to_default":
            self._closed(value.set_to_default)
            return
        if label is None:
            self._unlabelled(value, self._expression(value, scope))
            self._unchecked(value, column)
        elif not self._encode_operand(value, label):
            info = self._expression(value, scope)
            if info.label is None or not _alike(info.label, label):
                raise Refusal(
                    "CO-03",
                    f'Column "{relation.name}.{name}" is stored tokenized: it takes a constant, a parameter or NULL.',
                    hint="Compute the value before you send it, then pass it as a quoted constant or a parameter.",
                )

    def _unchecked(self, value: Node, column: Column) -> None:
        """Give a parameter that is stored in a column of a domain the domain's base type.

        A constant is checked by its domain for each row that gets it; a parameter of the domain's type is checked when
        it is bound, also if no row is found.
        """
        kind = self._catalog.types.get(self._base(column.type_oid))
        if kind_of(value) != "param_ref" or kind is None or kind.oid == column.type_oid:
            return
        number = value.param_ref.number
        if number <= len(self._parameter_types) and self._parameter_types[number - 1] not in (0, UNKNOWN):
            return
        reference = pb.Node()
        reference.CopyFrom(value)
        value.CopyFrom(tree.cast(reference, kind.schema, kind.name))
        self._built(value)

    def _assign_field(self, relation: Relation, name: str, source: Field) -> None:
        if relation.column(name) is None:
            raise unavailable_column(name)
        label = self._label_of(relation, name)
        if label is None and source.label is None:
            return
        if label is None or source.label is None or not _alike(source.label, label):
            raise Refusal(
                "CO-03",
                f'Column "{relation.name}.{name}" cannot take this value: a token may only be copied '
                "between columns of one token domain.",
                hint="INSERT ... SELECT may copy a tokenized column to a tokenized column of the same domain.",
            )

    def _written(self, item: Item, access: Access, names: Sequence[str]) -> None:
        for name in names:
            self._column_of(item, name)
        columns, _predicates = self._use(item, access)
        columns.update(names)

    def _returning(self, statement: Any, scope: Scope) -> None:
        if statement.HasField("returning_clause"):
            self._closed(statement.returning_clause)
            self._expand_stars(statement.returning_clause.exprs, scope)
            self._result.outputs = [self._output(node.res_target, scope) for node in statement.returning_clause.exprs]

    def _target(self, var: Any, access: Access) -> Item:
        """The target of a write."""
        location = var.location
        try:
            return self._target_item(var, access)
        except Refusal as refusal:
            placed(refusal, location)
            raise

    def _target_item(self, var: Any, access: Access) -> Item:
        self._closed(var)
        relation = self._relation(var, access)
        if relation.kind not in "rp":
            raise Refusal("ST-02", f'"{relation.name}" cannot be written through the proxy: it is not a table.')
        if relation.has_triggers or relation.has_rules:
            raise Refusal(
                "ST-02", f'"{relation.name}" has triggers or rules that are not listed: it cannot be written.'
            )
        name = var.alias.aliasname if var.HasField("alias") else relation.name
        if var.HasField("alias"):
            self._closed(var.alias)
            if var.alias.colnames:
                raise Refusal(
                    "ST-02", "A column alias list on the target of a write is not supported.", sqlstate="0A000"
                )
        item = self._item(name, "target", relation)
        item.only = not var.inh
        self._use(item, access)
        qualified = tree.relation(relation.schema, relation.name, only=not var.inh, alias=name)
        var.CopyFrom(qualified)
        self._built(var)
        return item

    # FROM

    def _from(self, node: Node, scope: Scope) -> Namespace:
        kind = kind_of(node)
        if kind == "range_var":
            location = node.range_var.location
            try:
                return self._range_var(node, scope)
            except Refusal as refusal:
                placed(refusal, location)
                raise
        if kind == "join_expr":
            return self._join(node.join_expr, scope)
        if kind == "range_subselect":
            return self._range_subselect(node.range_subselect, scope)
        if kind == "range_function":
            return self._range_function(node.range_function, scope)
        if kind == "range_table_sample":
            return self._sampled(node, scope)
        return _refuse_kind(kind)

    def _sampled(self, node: Node, scope: Scope) -> Namespace:
        """``relation TABLESAMPLE method (percentage)``: rows or blocks are chosen by where they are stored."""
        sample = node.range_table_sample
        self._closed(sample)
        namespace = self._from(sample.relation, scope)
        item = namespace.items[0]
        if item.kind != "relation" or item.relation is None or item.relation.kind not in "rpm":
            raise _unsupported("TABLESAMPLE of anything but a table")
        if [part.string.sval for part in sample.method] not in (["bernoulli"], ["system"]) or len(sample.args) != 1:
            raise _unsupported("A sampling method other than BERNOULLI and SYSTEM")
        for number in [*sample.args, *([sample.repeatable] if sample.HasField("repeatable") else [])]:
            if kind_of(number) not in ("a_const", "param_ref"):
                raise _unsupported("TABLESAMPLE with anything but a constant or a parameter")
            self._unlabelled(number, self._expression(number, scope))
        item.node, item.sample = node, sample
        self._result.unbounded = True
        self._raising += True
        return namespace

    def _range_var(self, node: Node, scope: Scope) -> Namespace:
        var = node.range_var
        self._closed(var)
        self._closed_alias(var)
        alias = var.alias.aliasname if var.HasField("alias") else ""
        names = [name.string.sval for name in var.alias.colnames] if var.HasField("alias") else []
        _own_identifier(alias, *names)
        if not var.schemaname and not var.catalogname:
            cte = scope.cte(var.relname)
            if cte is not None:
                self._raising += cte.raises
                fields = _renamed([Field(f.name, f.type, f.label, f.plain) for f in cte.fields], names)
                return _namespace_of(Item(alias or var.relname, "derived", fields, inner=cte.inner, cte=cte.node))
        if self._resolver.path is None and self._schema(var) in SYSTEM_SCHEMAS:
            return self._catalogue_relation(node, alias, names)
        relation = self._relation(var, "read")
        item = self._item(alias or relation.name, "relation", relation)
        item.node = node
        item.only = not var.inh
        if names:
            item.fields = _renamed(item.fields, names)
        self._use(item, "read")
        if len(self._result.items) >= MAX_RELATIONS:
            raise Refusal("ST-06", f"A statement reads at most {MAX_RELATIONS} relations.", sqlstate="54000")
        self._result.items.append(item)
        self._result.impure = self._result.impure or relation.kind == "v" or relation.row_security
        self._raising += relation.kind == "v"
        self._result.sites.append(RelationSite(item))
        return _namespace_of(item)

    def _catalogue_relation(self, node: Node, alias: str, names: Sequence[str]) -> Namespace:
        """A readable relation of the catalogue, limited to the objects that the agent may see."""
        var = node.range_var
        schema = self._schema(var)
        readable = introspection.READABLE.get((schema, var.relname))
        relation = self._catalog.relations.get((schema, var.relname))
        if readable is None or names or var.catalogname or (relation is None and not readable.types):
            self._uses.setdefault((schema, var.relname, "read"), (set(), set()))
            self._places.setdefault(f"{schema}.{var.relname}", var.location)
            raise unavailable_relation(f"{schema}.{var.relname}")
        if relation is None:
            fields = [Field(*column) for column in zip(readable.columns, readable.types, strict=True)]
            targets = [tree.target(tree.column(f.name)) for f in fields]
        else:
            fields, targets = [], []
            for column in relation.columns:
                null = f"{column.name}=NULL" in readable.columns
                if null or column.name in readable.columns or not readable.columns:
                    fields.append(Field(column.name, self._base(column.type_oid)))
                    value = tree.column(column.name)
                    if null:  # as a CASE: so it has the column's type, whatever that is
                        value = tree.case(tree.boolean_constant(True), tree.null_constant(), value)
                    targets.append(tree.target(value, column.name if null else ""))
        select = tree.subselect(
            targets,
            pb.Node(range_var=tree.relation(schema, var.relname)),
            introspection.condition(readable),
            fence=True,
        )
        name = alias or var.relname
        subselect = pb.RangeSubselect(subquery=pb.Node(select_stmt=select), alias=pb.Alias(aliasname=name))
        node.CopyFrom(pb.Node(range_subselect=subselect))
        self._built(node)
        self._result.unbounded = True
        self._introspect()
        return _namespace_of(Item(name, "catalogue", fields, schema=schema))

    def _join(self, join: Any, scope: Scope) -> Namespace:
        self._closed(join)
        left = self._from(join.larg, scope)
        right_scope = Scope(
            scope.parent,
            Namespace(scope.namespace.entries + left.entries, scope.namespace.items + left.items),
            scope.ctes,
        )
        right = self._from(join.rarg, right_scope)
        if join.is_natural:
            join.is_natural = False
            names = [e.name for e in left.entries if any(o.name == e.name for o in right.entries)]
            if names:
                join.using_clause.extend(tree.string(name) for name in names)
            else:
                join.quals.CopyFrom(tree.boolean_constant(True))
        result = Namespace(items=left.items + right.items)
        binds = {pb.JOIN_INNER: result.items, pb.JOIN_LEFT: right.items, pb.JOIN_RIGHT: left.items}.get(
            join.jointype, []
        )
        merged: list[str] = []
        for node in join.using_clause:
            name = node.string.sval
            merged.append(name)
            result.entries.append(self._merged(name, left, right, join, binds))
        result.entries += [e for e in left.entries if e.name not in merged]
        result.entries += [e for e in right.entries if e.name not in merged]
        if join.HasField("quals"):
            self._qual(
                join.quals,
                Scope(scope.parent, result, scope.ctes),
                grouped="full" if join.jointype == pb.JOIN_FULL else "",
                binds=binds,
            )
        return result

    def _merged(self, name: str, left: Namespace, right: Namespace, join: Any, binds: Sequence[Item]) -> Entry:
        """A column merged by USING: an implicit equality."""
        one, other = _unique(left, name), _unique(right, name)
        label = None
        if one.field.label or other.field.label:
            label = self._same_domain(one.field.label, other.field.label)
            self._equality_on(one.field.label, other.field.label)
        self._here = 0
        for entry in (one, other):
            for owner in entry.owners:
                self._touch(owner, name, predicate=True)
        quiet = self._leakproof_operator("=", one.field.type, other.field.type)
        leakproof = one.field.plain and other.field.plain and quiet
        if not leakproof:
            owners = {
                owner: None
                for entry in (one, other)
                for owner in entry.owners
                # Rows of the catalogue are behind a fence, so only what is done to their values could tell of more.
                if not (quiet and entry.field.plain and owner.kind == "catalogue")
            }
            items = tuple(part for item in owners for part in _with_arguments(item))
            for item in items:
                if item.kind == "derived":
                    self._result.sites.append(FenceSite(item))
            guarded = tuple(item for item in items if item.kind not in ("derived", "function"))
            if guarded:
                self._result.sites.append(QualSite(None, guarded, "full"))
        elif one.origin is not None and other.origin is not None:
            self._bind_columns(one.origin, other.origin, binds)
        chosen = other if join.jointype == pb.JOIN_RIGHT else one
        plain = one.field.plain and other.field.plain
        kind = chosen.field.type if one.field.type == other.field.type else None
        origin = None if join.jointype == pb.JOIN_FULL else chosen.origin
        return Entry(name, Field(name, kind, label, plain), one.owners + other.owners, True, origin)

    def _range_subselect(self, sub: Any, scope: Scope) -> Namespace:
        self._closed(sub)
        if kind_of(sub.subquery) != "select_stmt":
            _refuse_kind(kind_of(sub.subquery))
        parent = scope if sub.lateral else Scope(scope.parent, Namespace(), scope.ctes)
        fields, inner = self._select(sub.subquery.select_stmt, parent)
        _name_outputs(sub.subquery.select_stmt, fields)
        self._closed_alias(sub)
        alias = sub.alias.aliasname if sub.HasField("alias") else ""
        names = [name.string.sval for name in sub.alias.colnames] if sub.HasField("alias") else []
        _own_identifier(alias, *names)
        fields = _renamed([Field(f.name, f.type, f.label, f.plain, record=f.record) for f in fields], names)
        return _namespace_of(Item(alias, "derived", fields, node=sub.subquery.select_stmt, inner=inner))

    def _range_function(self, function: Any, scope: Scope) -> Namespace:
        _spread_unnest(function)
        self._closed(function)
        own: list[str] = []
        fields: list[Field] = []
        references, self._references = self._references, {}
        rebuilt = None
        for entry in function.functions:
            call = entry.list.items[0] if entry.list.items else None
            if call is None or kind_of(call) != "func_call":
                _refuse_kind(kind_of(call) if call is not None else "list")
            self._closed(entry.list)
            if any(kind_of(part) for part in entry.list.items[1:]):
                raise _unsupported("A column definition list")
            name = call.func_call.funcname[-1].string.sval
            info = self._expression(call, scope)
            if kind_of(call) != "func_call":
                raise _unsupported("This function in FROM")
            self._unlabelled(call, info)
            if call.func_call.funcname[-1].string.sval != name:
                rebuilt = name
            kind = self._catalog.types.get(info.type or 0)
            if kind is None or kind.kind in "cp":
                raise _unsupported("A function in FROM that returns several columns")
            own.append(name)
            fields.append(Field(_NAMED_COLUMN.get(name) or name, info.type, None, False))
        arguments = list(self._references)
        self._references = {**references, **self._references}
        self._closed_alias(function)
        alias = function.alias.aliasname if function.HasField("alias") else ""
        names = [name.string.sval for name in function.alias.colnames] if function.HasField("alias") else []
        _own_identifier(alias, *names)
        if len(fields) == 1 and own[0] not in _NAMED_COLUMN:
            fields[0].name = alias or own[0]
        if function.ordinality:
            fields.append(Field("ordinality", INT8, None, False))
        if rebuilt is not None and len(names) < len(fields):
            raise _unsupported(f"{rebuilt} in FROM without an alias for each column")
        _renamed(fields, names)
        if len(own) > 1:
            self._told_apart(function, alias or own[0], fields)
        return _namespace_of(Item(alias or own[0], "function", fields, arguments=arguments))

    def _told_apart(self, function: Any, alias: str, fields: list[Field]) -> None:
        """Columns of one name, which only a star can reach, get names of their own; a star shows the old ones."""
        counts = Counter(f.name for f in fields)
        for position, entry in enumerate(fields):
            if counts[entry.name] > 1:
                entry.shown, entry.name = entry.name, f"{_TOLD_APART}{position}"
        function.alias.CopyFrom(pb.Alias(aliasname=alias, colnames=[tree.string(f.name) for f in fields]))
        self._built(function.alias)

    def _schema(self, var: Any) -> str:
        """The schema of a relation that is not a WITH query's."""
        found = var.schemaname or self._resolver.schema_of(var.relname)
        if found is None:
            found = "pg_catalog" if ("pg_catalog", var.relname) in introspection.READABLE else "public"
        return str(found)

    def _relation(self, var: Any, access: Access) -> Relation:
        schema, name, catalog = self._schema(var), var.relname, var.catalogname
        _own_identifier(name)
        self._uses.setdefault((schema, name, access), (set(), set()))
        self._places.setdefault(f"{schema}.{name}", var.location)
        if catalog and catalog != self._catalog.database:
            raise unavailable_relation(f"{catalog}.{schema}.{name}")
        relation = self._catalog.relations.get((schema, name))
        system = schema in SYSTEM_SCHEMAS and (self._resolver.path is None or access != "read" or name in SHOWING_TEXTS)
        if relation is None or system or relation.kind == "f":
            raise unavailable_relation(f"{schema}.{name}")
        if relation.parents:
            raise unavailable_relation(f"{schema}.{name}")
        return relation

    def _item(self, name: str, kind: Literal["relation", "target"], relation: Relation) -> Item:
        fields = [
            Field(column.name, self._base(column.type_oid), self._label_of(relation, column.name))
            for column in relation.columns
        ]
        return Item(name, kind, fields, relation)

    def _label_of(self, relation: Relation, name: str) -> Label | None:
        key = f"{relation.schema}.{relation.name}.{name}"
        known = self._sensitive.get(key)
        if known is None or known.transformation is None:
            return None
        return Label(frozenset({key}), known.transformation, known.token_domain or known.transformation)

    def _use(self, item: Item, access: Access) -> tuple[set[str], set[str]]:
        assert item.relation is not None  # noqa: S101
        return self._uses.setdefault((item.relation.schema, item.relation.name, access), (set(), set()))

    # Names

    def _touch(self, item: Item, name: str, *, predicate: bool) -> None:
        """Column `name` of `item` is read."""
        self._references[item] = None
        self._bare.append((item, name))
        if not self._in_qual:
            self._loose[item] = None
        if item.relation is None or item.kind == "excluded":
            return
        position = next(index for index, candidate in enumerate(item.fields) if candidate.name == name)
        real = item.relation.columns[position].name
        item.used[real] = None
        if self._here > 0:
            self._result.column_places.setdefault(f"{item.qualified}.{real}", self._here)
        columns, predicates = self._use(item, "read")
        columns.add(real)
        if predicate:
            predicates.add(real)

    def _column_of(self, item: Item, name: str) -> Field:
        found = item.field(name)
        if found is None:
            raise unavailable_column(name)
        return found

    def _column_ref(self, node: Node, scope: Scope) -> _Info:
        reference = node.column_ref
        self._closed(reference)
        self._here = reference.location
        parts = [part.string.sval if kind_of(part) == "string" else "*" for part in reference.fields]
        if parts[-1] == "*" and len(parts) > 1 and "*" not in parts[:-1]:
            _own_identifier(*parts[:-1])
            return self._whole_row(node, self._find_item(parts[:-1], scope))
        if "*" in parts:
            raise Refusal("ST-02", "A star is supported only as an item of a select list.", sqlstate="0A000")
        _own_identifier(*parts[:-1], parts[-1].removeprefix(_TOLD_APART))
        if len(parts) == 1:
            return self._unqualified(node, parts[0], scope)
        name = parts[-1]
        item = self._find_item(parts[:-1], scope)
        found = self._column_of(item, name)
        if len(parts) > 2:
            del reference.fields[:]
            reference.fields.extend([tree.string(item.name), tree.string(name)])
        self._touch(item, name, predicate=self._in_predicate)
        return _Info(found.type, found.label, found.plain, record=found.record)

    def _unqualified(self, node: Node, name: str, scope: Scope) -> _Info:
        level: Scope | None = scope
        while level is not None:
            matches = [entry for entry in level.namespace.entries if entry.name == name]
            if len(matches) > 1:
                raise Refusal(
                    "ST-03",
                    f'Column reference "{name}" is ambiguous.',
                    sqlstate="42702",
                    hint="Qualify it with the name or alias of its relation.",
                )
            if matches:
                entry = matches[0]
                for owner in entry.owners:
                    self._touch(owner, name, predicate=self._in_predicate)
                return _Info(entry.field.type, entry.field.label, entry.field.plain, record=entry.field.record)
            level = level.parent
        level = scope
        while level is not None:
            items = [item for item in level.namespace.items if item.name == name]
            if len(items) > 1:
                raise Refusal("ST-03", f'Table name "{name}" is specified more than once.', sqlstate="42712")
            if items:
                return self._whole_row(node, items[0])
            level = level.parent
        raise unavailable_column(name)

    def _whole_row(self, node: Node, item: Item) -> _Info:
        """A whole row, as a record of the columns that the agent could name one by one."""
        if item.kind not in ("relation", "target", "derived", "catalogue"):
            raise _unsupported(f'A reference to the whole row of "{item.name}"')
        if any(f.label is not None for f in item.fields):
            raise Refusal(
                "CO-03",
                f'"{item.name}" has tokenized columns, so its rows cannot be taken whole.',
                hint="Name the columns that you need.",
            )
        _distinct([f.name for f in item.fields])
        for f in item.fields:
            self._touch(item, f.name, predicate=self._in_predicate)
        item.whole = True
        if item.relation is not None:
            self._result.sites.append(RowSite(node, item))
        elif kind_of(node.column_ref.fields[-1]) == "a_star":
            node.CopyFrom(tree.column(item.name))
        self._built(node)
        return _Info(RECORD, None, False)

    def _find_item(self, parts: Sequence[str], scope: Scope) -> Item:
        name = parts[-1]
        if len(parts) > 3 or (len(parts) == 3 and parts[0] != self._catalog.database):
            raise unavailable_relation(".".join(parts))
        level: Scope | None = scope
        while level is not None:
            found = [item for item in level.namespace.items if item.name == name]
            if len(parts) > 1:
                found = [i for i in found if (i.relation.schema if i.relation else i.schema) == parts[-2]]
            if len(found) > 1:
                raise Refusal("ST-03", f'Table name "{name}" is specified more than once.', sqlstate="42712")
            if found:
                return found[0]
            level = level.parent
        raise unavailable_relation(".".join(parts))

    def _expand_stars(self, targets: Any, scope: Scope, *, select: Any = None) -> None:
        """Replace ``*`` and ``t.*`` by the columns of the snapshot, in place."""
        expanded: list[Node] = []
        changed = False
        for node in targets:
            value = node.res_target.val
            if kind_of(value) == "a_indirection":
                self._field_of_row(value, scope)
            parts = list(value.column_ref.fields) if kind_of(value) == "column_ref" else []
            if len(expanded) > MAX_COLUMNS:
                break
            if not parts or kind_of(parts[-1]) != "a_star":
                expanded.append(node)
                continue
            changed = True
            if len(parts) == 1:
                if select is not None and not select.from_clause:
                    raise Refusal("ST-01", "SELECT * with no tables specified is not valid.", sqlstate="42601")
                entries = scope.namespace.entries
                references = [
                    (entry.name,) if entry.merged or not entry.owners[0].name else (entry.owners[0].name, entry.name)
                    for entry in entries
                ]
                _distinct(references)
                expanded += [
                    tree.target(tree.column(*reference), entry.field.shown)
                    for reference, entry in zip(references, entries, strict=True)
                ]
            else:
                try:
                    item = self._find_item([part.string.sval for part in parts[:-1]], scope)
                except Refusal as refusal:
                    placed(refusal, value.column_ref.location)
                    raise
                _distinct([f.name for f in item.fields])
                expanded += [tree.target(tree.column(item.name, f.name), f.shown) for f in item.fields]
        if len(expanded) > MAX_COLUMNS:
            raise _too_many_columns()
        if changed:
            copies = [pb.Node.FromString(node.SerializeToString()) for node in expanded]
            del targets[:]
            targets.extend(copies)

    # Clauses

    def _output(self, target: Any, scope: Scope) -> Field:
        self._closed(target)
        _own_identifier(target.name)
        references, self._references = self._references, {}
        name = target.name or _figure_name(target.val)
        sites = len(self._result.sites)
        info = self._expression(target.val, scope)
        rebuilt = any(isinstance(site, RowSite) for site in self._result.sites[sites:])
        if not target.name and (rebuilt or _figure_name(target.val) != name):
            target.name = name  # it is another expression now, whose name would show
        self._references = {**references, **self._references}
        return Field(name, info.type, info.label, info.leakproof, target.val, record=info.record)

    def _qual(
        self,
        node: Node,
        scope: Scope,
        *,
        grouped: Literal["", "having", "full"] = "",
        binds: Sequence[Item] = (),
        where: bool = False,
    ) -> None:
        """A condition of WHERE, ON or HAVING: each conjunct is classified on its own.

        `binds`: the items of which it removes rows before they are read further; `where`: it is of WHERE.
        """
        if kind_of(node) == "bool_expr" and node.bool_expr.boolop == pb.AND_EXPR:
            self._closed(node.bool_expr)
            for part in node.bool_expr.args:
                self._qual(part, scope, grouped=grouped, binds=binds, where=where)
            return
        outer, self._references = self._references, {}
        was_volatile, self._volatile_seen = self._volatile_seen, False
        was, self._in_predicate = self._in_predicate, True
        was_qual, self._in_qual = self._in_qual, True
        self._joined = _sub_link_alone(node) if where else None
        info = self._expression_bool(node, scope)
        self._in_predicate, self._in_qual = was, was_qual
        if info.leakproof:
            self._bind(node, scope, binds)
        else:
            # A volatile condition runs for each row, whether it reads one or not.
            own = scope.namespace.items if self._volatile_seen else []
            items = tuple(dict.fromkeys(part for item in (*self._references, *own) for part in _with_arguments(item)))
            for item in items:
                if item.kind == "derived" and grouped != "having":
                    self._result.sites.append(FenceSite(item))
                elif item.kind in ("relation", "target") and grouped != "having":
                    self._unshadowed(item, scope)
            guarded = tuple(item for item in items if item.kind in ("relation", "target", "derived", "catalogue"))
            if guarded:
                self._result.sites.append(QualSite(node, guarded, grouped))
        self._volatile_seen = self._volatile_seen or was_volatile
        self._references = {**outer, **self._references}

    def _bind(self, node: Node, scope: Scope, binds: Sequence[Item]) -> None:
        """Note what a conjunct makes equal: ``a = b``, ``(a, b) = (c, d)``, ``a IN (...)``."""
        if kind_of(node) != "a_expr" or node.a_expr.name[-1].string.sval != "=":
            return
        message = node.a_expr
        if message.kind == pb.AEXPR_IN:
            self._bind_column(message.lexpr, message.rexpr.list.items, scope, binds)
        elif message.kind == pb.AEXPR_OP and message.HasField("lexpr"):
            pairs = [(message.lexpr, message.rexpr)]
            if kind_of(message.lexpr) == "row_expr" and kind_of(message.rexpr) == "row_expr":
                pairs = list(zip(message.lexpr.row_expr.args, message.rexpr.row_expr.args, strict=True))
            for left, right in pairs:
                origins = self._origin(left, scope), self._origin(right, scope)
                if origins[0] is not None and origins[1] is not None:
                    self._bind_columns(origins[0], origins[1], binds)
                else:
                    self._bind_column(left, [right], scope, binds)
                    self._bind_column(right, [left], scope, binds, swapped=True)

    def _bind_column(
        self, node: Node, values: Sequence[Node], scope: Scope, binds: Sequence[Item], *, swapped: bool = False
    ) -> None:
        """A column is equal to one of `values`, if they are constants or parameters."""
        origin = self._origin(node, scope)
        if origin is None or origin[0] not in binds or len(values) > MAX_LISTED:
            return
        item, name = origin
        column = _real_column(item, name)
        if column is None:
            return
        operands = set()
        for value in values:
            given = self._constant_operand(value, column)
            if given is None:
                return
            operands.add(self._equal_operand(self._base(column.type_oid), given, swapped=swapped))
        if len(operands) == 1 and (operand := operands.pop()):
            self._result.bindings.append(Binding(item, column.name, operand, None, len(values)))

    def _bind_columns(self, left: tuple[Item, str], right: tuple[Item, str], binds: Sequence[Item]) -> None:
        """Two columns are equal: each bounds the other once that is bounded."""
        types = self._column_of(*left).type, self._column_of(*right).type
        for one, other, kinds, swapped in ((left, right, types, False), (right, left, types[::-1], True)):
            column, source = _real_column(*one), _real_column(*other)
            if one[0] not in binds or column is None:
                continue
            if column.collation and (source is None or source.collation != column.collation):
                continue
            operand = self._equal_operand(kinds[0], kinds[1], swapped=swapped)
            if operand:
                self._result.bindings.append(Binding(one[0], column.name, operand, other[0], 1))

    def _equal_operand(self, column: int | None, other: int | None, *, swapped: bool) -> int:
        """What ``column = other`` (`swapped`: ``other = column``) takes on the column's side; 0 if it is not known."""
        found = self._resolver.operator("=", *((other, column) if swapped else (column, other)))
        if len(found) != 1 or not found[0].equality:
            return 0
        return found[0].right if swapped else found[0].left

    def _constant_operand(self, node: Node, column: Column) -> int | None:
        """The type of a constant or parameter, cast or not; None for anything else, or for one of another collation."""
        outer: int | None = None
        while kind_of(node) == "type_cast":
            wanted = self._type(node.type_cast.type_name)
            if column.collation and wanted not in TEXT_LIKE:
                return None
            outer = wanted if outer is None else outer
            node = node.type_cast.arg
        if kind_of(node) == "a_const" and not node.a_const.isnull:
            kind = _constant_type(node.a_const)
        elif kind_of(node) == "param_ref":
            number = node.param_ref.number
            kind = self._parameter_types[number - 1] if number <= len(self._parameter_types) else 0
            kind = kind or UNKNOWN
        else:
            return None
        if column.collation and kind not in TEXT_LIKE:
            return None
        return kind if outer is None else self._base(outer)

    def _origin(self, node: Node, scope: Scope) -> tuple[Item, str] | None:
        """The item and field that a column reference means, once it has been resolved."""
        if kind_of(node) != "column_ref":
            return None
        parts = [part.string.sval for part in node.column_ref.fields]
        if len(parts) > 1:
            return self._find_item(parts[:-1], scope), parts[-1]
        level: Scope | None = scope
        while level is not None:
            for entry in level.namespace.entries:
                if entry.name == parts[0]:
                    return entry.origin
            level = level.parent
        return None

    def _unshadowed(self, item: Item, scope: Scope) -> None:
        """Refuse a guard whose name would mean another item here."""
        if self._find_item([item.name], scope) is not item:
            raise Refusal(
                "ST-02",
                f'"{item.name}" names two relations here, and the condition reads the outer one.',
                sqlstate="0A000",
                hint="Give each relation an alias of its own.",
            )

    def _note_outer(self, scope: Scope) -> None:
        """References to this level's own items end here; those to outer levels go on."""
        own = set(map(id, scope.namespace.items))
        self._references = {item: None for item in self._references if id(item) not in own}
        self._loose = {item: None for item in self._loose if id(item) not in own}

    def _group_item(self, node: Node, scope: Scope, fields: Sequence[Field]) -> None:
        kind = kind_of(node)
        if kind == "grouping_set":
            self._closed(node.grouping_set)
            for part in node.grouping_set.content:
                self._group_item(part, scope, fields)
            return
        if kind == "row_expr":
            self._closed(node.row_expr)
            for part in node.row_expr.args:
                self._group_item(part, scope, fields)
            return
        if kind == "column_ref" and len(node.column_ref.fields) == 1:
            name = node.column_ref.fields[0].string.sval
            visible = any(entry.name == name for entry in scope.namespace.entries)
            if not visible and any(f.name == name for f in fields):
                self._sort_key(node, scope, fields, ordering=False)
                return
            self._group_value(node, scope)
            return
        if kind == "a_const":
            self._sort_key(node, scope, fields, ordering=False)
            return
        self._group_value(node, scope)

    def _extend_group(self, select: Any, scope: Scope, fields: Sequence[Field]) -> None:
        """GROUP BY a key allows the relation's other columns; over a sub-select they must be named (review, 3)."""
        grouped: set[tuple[Item, str]] = set()
        if self._resolver.path is not None:
            # Columns that are named would outlive the key, in a prepared statement for instance.
            self._without_key(select, scope, fields)
            return
        for node in select.group_clause:
            if kind_of(node) == "a_const":
                node = fields[node.a_const.ival.ival - 1].node
            if kind_of(node) == "grouping_set":
                self._without_key(select, scope, fields)
                return
            if kind_of(node) != "column_ref":
                continue
            parts = [part.string.sval for part in node.column_ref.fields]
            if len(parts) > 1:
                item = self._find_item(parts[:-1], scope)
                if item in scope.namespace.items:
                    grouped.add((item, parts[-1]))
            else:
                for entry in scope.namespace.entries:
                    if entry.name == parts[0] and not entry.merged:
                        grouped.add((entry.owners[0], parts[0]))
        for item, name in dict.fromkeys(self._bare):
            if item.kind != "relation" or item not in scope.namespace.items or (item, name) in grouped:
                continue
            assert item.relation is not None  # noqa: S101
            visible = {column.name: f.name for column, f in zip(item.relation.columns, item.fields, strict=True)}
            if any(all((item, visible[part]) in grouped for part in key.columns) for key in item.relation.unique_keys):
                node = pb.Node(column_ref=tree.column(item.name, name).column_ref)
                select.group_clause.append(node)
                self._built(select.group_clause[-1])

    def _without_key(self, select: Any, scope: Scope, fields: Sequence[Field]) -> None:
        """Refuse a grouping that leaves out a column which only a key of its relation could determine."""
        if not select.group_clause:
            return
        grouped: list[Node] = []
        ahead = list(select.group_clause)
        while ahead:
            node = ahead.pop()
            if kind_of(node) in ("grouping_set", "row_expr"):
                ahead += node.grouping_set.content if kind_of(node) == "grouping_set" else node.row_expr.args
                continue
            outputs: list[Field] = []
            if kind_of(node) == "a_const":
                outputs = list(fields[node.a_const.ival.ival - 1 :][:1])
            elif kind_of(node) == "column_ref":
                outputs = [f for f in fields if f.name == node.column_ref.fields[-1].string.sval]
            grouped += [node, *(f.node for f in outputs if f.node is not None)]
        named = {name for node in grouped for name in _columns_in(node)}
        # Of an expression that is grouped by, the columns are determined there and nowhere else.
        alone = {node.column_ref.fields[-1].string.sval for node in grouped if kind_of(node) == "column_ref"}
        texts = {bare(node) for node in grouped}
        beside = {
            name for f in fields if f.node is not None and bare(f.node) not in texts for name in _columns_in(f.node)
        }
        named -= beside - alone
        for item, name in dict.fromkeys(self._bare):
            own = item.kind == "relation" and item in scope.namespace.items
            if own and name not in named and item.relation is not None and item.relation.unique_keys:
                raise _unsupported("A column that is neither grouped nor aggregated, but for a key,")

    def _group_value(self, node: Node, scope: Scope) -> None:
        was, self._in_predicate = self._in_predicate, True
        info = self._expression(node, scope)
        self._in_predicate = was
        if info.label is not None:
            self._equality_on(info.label)

    def _sort(
        self, clause: Iterable[Node], scope: Scope, fields: Sequence[Field], *, outputs_only: bool = False
    ) -> None:
        for node in clause:
            self._closed(node.sort_by)
            self._sort_key(node.sort_by.node, scope, fields, ordering=True, outputs_only=outputs_only)

    def _sort_key(
        self, node: Node, scope: Scope, fields: Sequence[Field], *, ordering: bool, outputs_only: bool = False
    ) -> None:
        """An item of ORDER BY, DISTINCT ON or GROUP BY: an output name, an output position or an expression."""
        label: Label | None = None
        kind = kind_of(node)
        if kind == "column_ref" and len(node.column_ref.fields) == 1:
            name = node.column_ref.fields[0].string.sval
            self._closed(node.column_ref)
            named = [f for f in fields if f.name == name]
            if named:
                for candidate in named:
                    label = label or candidate.label
                    if candidate.node is not None and kind_of(candidate.node) == "column_ref":
                        was, self._in_predicate = self._in_predicate, True
                        self._expression(candidate.node, scope)
                        self._in_predicate = was
                self._ordered(label, ordering)
                return
        if kind == "a_const":
            self._closed(node.a_const)
            if node.a_const.WhichOneof("val") != "ival":
                refusal = Refusal("ST-01", "A constant in ORDER BY or GROUP BY must be a position.", sqlstate="42601")
                raise placed(refusal, node.a_const.location)
            position = node.a_const.ival.ival
            if not 1 <= position <= len(fields):
                refusal = Refusal("ST-01", f"Position {position} is not in the select list.", sqlstate="42P10")
                raise placed(refusal, node.a_const.location)
            self._ordered(fields[position - 1].label, ordering)
            return
        if outputs_only:
            raise Refusal("ST-02", "ORDER BY of a set operation takes output names or positions.", sqlstate="0A000")
        was, self._in_predicate = self._in_predicate, True
        info = self._expression(node, scope)
        self._in_predicate = was
        self._ordered(info.label, ordering)

    def _ordered(self, label: Label | None, ordering: bool) -> None:
        if label is None:
            return
        if ordering:
            raise _token_refusal(label, "be sorted by: the database holds tokens, whose order means nothing")
        self._equality_on(label)

    def _limits(self, select: Any, scope: Scope) -> None:
        for name in ("limit_offset", "limit_count"):
            if select.HasField(name):
                node = getattr(select, name)
                self._unlabelled(node, self._expression(node, scope))

    def _window(self, window: Any, scope: Scope) -> None:
        self._closed(window)
        for node in window.partition_clause:
            self._group_value(node, scope)
        self._sort(window.order_clause, scope, ())
        for name in ("start_offset", "end_offset"):
            if window.HasField(name):
                self._unlabelled(getattr(window, name), self._expression(getattr(window, name), scope))

    def _locking(self, clause: Any, scope: Scope) -> None:
        self._closed(clause)
        self._result.locks = True
        for node in clause.locked_rels:
            self._closed(node.range_var)
        named = {node.range_var.relname for node in clause.locked_rels}
        for item in scope.namespace.items:
            if named and item.name not in named:
                continue
            for relation_item in [item] if item.kind == "relation" else item.inner:
                self._use(relation_item, "lock")

    # Expressions

    def _expression_bool(self, node: Node, scope: Scope) -> _Info:
        info = self._expression(node, scope)
        self._unlabelled(node, info)
        return info

    def _expression(self, node: Node, scope: Scope) -> _Info:
        kind = kind_of(node)
        location = getattr(getattr(node, kind), "location", 0) if kind else 0
        try:
            if kind == "column_ref":
                return self._column_ref(node, scope)
            if kind == "a_const":
                self._closed(node.a_const)
                self._result.dated = self._result.dated or bool(_DATED.search(node.a_const.sval.sval))
                return _Info(_constant_type(node.a_const), None, True, True)
            if kind == "param_ref":
                self._closed(node.param_ref)
                return self._parameter(node.param_ref)
            method = getattr(self, f"_{kind}", None) if kind in _EXPRESSIONS else None
            if method is None:
                _refuse_kind(kind)
            message = getattr(node, kind)
            self._closed(message)
            info: _Info = method(node, message, scope)
            self._raising += not info.leakproof
            return info
        except Refusal as refusal:
            placed(refusal, location)
            raise

    def _all(self, nodes: Iterable[Node], scope: Scope) -> list[_Info]:
        infos = []
        for node in nodes:
            info = self._expression(node, scope)
            self._unlabelled(node, info)
            infos.append(info)
        return infos

    def _parameter(self, reference: Any) -> _Info:
        number = reference.number
        if number < 1 or number > 65535:
            raise Refusal("ST-01", f"There is no parameter ${number}.", sqlstate="42P02")
        self._result.parameters.setdefault(number, []).append("")
        known = self._parameter_types[number - 1] if number <= len(self._parameter_types) else 0
        return _Info(known or UNKNOWN, None, True)

    def _bool_expr(self, _node: Node, message: Any, scope: Scope) -> _Info:
        infos = self._all(message.args, scope)
        return _Info(BOOL, None, all(i.leakproof for i in infos), all(i.constant for i in infos))

    def _null_test(self, _node: Node, message: Any, scope: Scope) -> _Info:
        info = self._expression(message.arg, scope)
        return _Info(BOOL, None, info.leakproof, info.constant)

    def _boolean_test(self, _node: Node, message: Any, scope: Scope) -> _Info:
        info = self._expression_bool(message.arg, scope)
        return _Info(BOOL, None, info.leakproof, info.constant)

    def _a_expr(self, node: Node, message: Any, scope: Scope) -> _Info:
        kind = message.kind
        name = _operator_name(message.name)
        if kind in (pb.AEXPR_OP, pb.AEXPR_DISTINCT, pb.AEXPR_NOT_DISTINCT):
            return self._binary(message, name, scope)
        if kind == pb.AEXPR_IN:
            return self._in_list(message, name, scope)
        if kind in (pb.AEXPR_OP_ANY, pb.AEXPR_OP_ALL):
            left = self._expression(message.lexpr, scope)
            tokens = left.label if (kind, name) in _OF_ANY and left.type in (TEXT, VARCHAR) else None
            if tokens is not None and self._encode_array(message.rexpr, tokens):
                self._equality_on(tokens)
                return _Info(BOOL, None, left.leakproof)
            self._unlabelled(message.lexpr, left)
            right = self._expression(message.rexpr, scope)
            self._unlabelled(message.rexpr, right)
            element = self._element(right.type)
            return self._applied(name, left, _Info(element, None, right.leakproof, right.constant), BOOL)
        if kind in (pb.AEXPR_LIKE, pb.AEXPR_ILIKE, pb.AEXPR_SIMILAR):
            left, right = self._all((message.lexpr, message.rexpr), scope)
            return self._applied(name, left, right, BOOL)
        if kind in (pb.AEXPR_BETWEEN, pb.AEXPR_NOT_BETWEEN, pb.AEXPR_BETWEEN_SYM, pb.AEXPR_NOT_BETWEEN_SYM):
            self._closed(message.rexpr.list)
            left, low, high = self._all((message.lexpr, *message.rexpr.list.items), scope)
            parts = [self._applied(op, left, bound, BOOL) for op, bound in ((">=", low), ("<=", high))]
            return _Info(BOOL, None, all(p.leakproof for p in parts), all(p.constant for p in parts))
        if kind == pb.AEXPR_NULLIF:
            left, right = self._all((message.lexpr, message.rexpr), scope)
            applied = self._applied("=", left, right, BOOL)
            return _Info(left.type, None, applied.leakproof, applied.constant)
        raise _unsupported("This operator form")

    def _binary(self, message: Any, name: str, scope: Scope) -> _Info:
        if not message.HasField("lexpr"):
            right = self._expression(message.rexpr, scope)
            self._unlabelled(message.rexpr, right)
            return self._applied(name, None, right)
        if kind_of(message.lexpr) == "row_expr" and kind_of(message.rexpr) == "row_expr":
            return self._row_comparison(message, name, scope)
        left = self._expression(message.lexpr, scope)
        right = self._expression(message.rexpr, scope)
        if left.label or right.label:
            if message.kind == pb.AEXPR_OP and name not in ("=", "<>"):
                raise _token_refusal(left.label or right.label, f'be used with the operator "{name}"')
            self._token_equality(message.lexpr, left, message.rexpr, right)
            return _Info(BOOL, None, left.leakproof and right.leakproof)
        result = BOOL if message.kind != pb.AEXPR_OP else None
        info = self._applied(name, left, right, result)
        if not info.leakproof and name in ("+", "-") and _about_now(message.lexpr) and _short_while(message.rexpr):
            return _Info(info.type, None, True)
        return info

    def _row_comparison(self, message: Any, name: str, scope: Scope) -> _Info:
        self._closed(message.lexpr.row_expr)
        self._closed(message.rexpr.row_expr)
        lefts = self._all(message.lexpr.row_expr.args, scope)
        rights = self._all(message.rexpr.row_expr.args, scope)
        if len(lefts) != len(rights):
            raise Refusal("ST-01", "Unequal number of entries in row expressions.", sqlstate="42601")
        parts = [self._applied(name, a, b, BOOL) for a, b in zip(lefts, rights, strict=True)]
        return _Info(BOOL, None, all(p.leakproof for p in parts))

    def _in_list(self, message: Any, name: str, scope: Scope) -> _Info:
        left = self._expression(message.lexpr, scope)
        self._closed(message.rexpr.list)
        leakproof = left.leakproof
        constant = left.constant
        for item in message.rexpr.list.items:
            info = self._expression(item, scope)
            if left.label or info.label:
                self._token_equality(message.lexpr, left, item, info)
                leakproof = leakproof and info.leakproof
            else:
                applied = self._applied(name, left, info, BOOL)
                leakproof = leakproof and applied.leakproof
                constant = constant and applied.constant
        return _Info(BOOL, None, leakproof, constant)

    def _token_equality(self, left_node: Node, left: _Info, right_node: Node, right: _Info) -> None:
        """An equality in which at least one side is a token."""
        if left.label and right.label:
            self._same_domain(left.label, right.label)
        else:
            label = left.label or right.label
            assert label is not None  # noqa: S101
            other = right_node if left.label else left_node
            if not self._encode_operand(other, label, seen=True):
                raise _token_refusal(
                    label,
                    "be compared with an expression, only with a constant, a parameter or "
                    "a column of the same token domain",
                )
        self._equality_on(left.label, right.label)

    def _equality_on(self, *labels: Label | None) -> None:
        for label in labels:
            if label is not None:
                self._result.equalities |= label.columns

    def _same_domain(self, left: Label | None, right: Label | None) -> Label:
        if (
            left is None
            or right is None
            or left.token_domain != right.token_domain
            or left.transformation != right.transformation
        ):
            label = left or right
            assert label is not None  # noqa: S101
            raise _token_refusal(label, "be combined with a value of another token domain")
        return Label(left.columns | right.columns, left.transformation, left.token_domain)

    def _encode_operand(self, node: Node, label: Label, *, seen: bool = False) -> bool:
        """Mark a constant or parameter as to be encoded under `label`; False if `node` is neither."""
        kind = kind_of(node)
        if kind == "type_cast":
            self._closed(node.type_cast)
            found = self._type(node.type_cast.type_name)
            if node.type_cast.type_name.typmods:
                return False
            return found in TEXT_LIKE and self._encode_operand(node.type_cast.arg, label, seen=seen)
        if kind == "a_const":
            self._closed(node.a_const)
            if node.a_const.isnull:
                return True
            if node.a_const.WhichOneof("val") != "sval":
                return False
            self._result.sites.append(LiteralSite(node, node.a_const.sval.sval, label.transformation))
            return True
        if kind == "param_ref":
            self._closed(node.param_ref)
            info = self._parameter(node.param_ref)
            if info.type not in TEXT_LIKE:
                return False
            uses = self._result.parameters[node.param_ref.number]
            uses.remove("")
            if seen:
                uses.remove("")
            uses.append(label.transformation)
            return node.param_ref.number not in self._result.arrays
        return False

    def _encode_array(self, node: Node, label: Label) -> bool:
        """`_encode_operand` for each element of ``ARRAY[...]`` or of a parameter; False if `node` is neither."""
        kind = kind_of(node)
        if kind == "type_cast":
            self._closed(node.type_cast)
            found = self._type(node.type_cast.type_name)
            return (
                not node.type_cast.type_name.typmods
                and found in _TEXT_ARRAYS
                and self._encode_array(node.type_cast.arg, label)
            )
        if kind == "a_array_expr":
            self._closed(node.a_array_expr)
            return all(self._encode_operand(each, label) for each in node.a_array_expr.elements)
        if kind == "param_ref":
            self._closed(node.param_ref)
            number = node.param_ref.number
            if self._parameter(node.param_ref).type not in (*_TEXT_ARRAYS, UNKNOWN):
                return False
            uses = self._result.parameters[number]
            uses.remove("")
            if any(uses) and number not in self._result.arrays:
                return False
            uses.append(label.transformation)
            self._result.arrays.add(number)
            return True
        return False

    def _applied(self, name: str, left: _Info | None, right: _Info, result: int | None = None) -> _Info:
        """An operator applied to operands without tokens."""
        left_type = 0 if left is None else left.type
        candidates = self._resolver.operator(name, left_type, right.type)
        if not candidates:
            raise Refusal(
                "ST-04",
                f'No listed operator "{name}" takes these operands.',
                sqlstate="42883",
                hint="Add explicit casts, or use another operator.",
            )
        for candidate in candidates:
            if not self._purity.pure(candidate.function):
                raise Refusal("ST-04", f'Operator "{name}" is not on the list of operators that agents may use.')
            self._converted(left, candidate.left)
            self._converted(right, candidate.right)
            if left is not None:
                self._object_names((left, right), (candidate.left, candidate.right))
        leakproof = right.leakproof and (left is None or left.leakproof)
        constant = all(
            (left is None or self._folded(left, c.left))
            and self._folded(right, c.right)
            and self._catalog.functions[c.function].volatility == "i"
            for c in candidates
        )
        if not constant and leakproof:
            leakproof = all(
                self._purity.leakproof(c.function) and self._uncast(left, c.left) and self._uncast(right, c.right)
                for c in candidates
            )
        types = {candidate.result for candidate in candidates}
        return _Info(result or (types.pop() if len(types) == 1 else None), None, leakproof, constant)

    def _uncast(self, operand: _Info | None, wanted: int) -> bool:
        """True if `operand` reaches the operator without a conversion that could raise."""
        if operand is None or operand.type in (wanted, UNKNOWN):
            return True
        if operand.type is None:
            return False
        return bool(
            (operand.type, wanted) in _TOTAL_CASTS
            or self._resolver.binary_coercible(operand.type, wanted)
            or self._folded(operand, wanted)
        )

    def _converted(self, operand: _Info | None, wanted: int) -> None:
        """Refuse an operand that a cast of the database's own would convert on its way to `wanted`."""
        if operand is None or operand.type in (None, UNKNOWN, wanted):
            return
        cast = self._catalog.casts.get((self._base(operand.type or 0), self._base(wanted)))
        if cast is not None and cast.function >= FIRST_USER_OID:
            raise Refusal("ST-04", "A cast that is not on the list of casts that agents may use would convert this.")

    def _folded(self, operand: _Info, wanted: int) -> bool:
        """True if `operand` is a constant, and stays one when it is converted to `wanted`."""
        if not operand.constant or operand.type is None:
            return False
        if operand.type in (wanted, UNKNOWN) or self._resolver.binary_coercible(operand.type, wanted):
            return True
        cast = self._catalog.casts.get((self._base(operand.type), self._base(wanted)))
        if cast is None:
            return self._catalog.types[wanted].kind == "p"
        return cast.method == "b" or (cast.method == "f" and self._catalog.functions[cast.function].volatility == "i")

    def _leakproof_operator(self, name: str, left: int | None, right: int | None) -> bool:
        return self._applied(name, _Info(left), _Info(right)).leakproof

    def _case_expr(self, _node: Node, message: Any, scope: Scope) -> _Info:
        infos: list[_Info] = []
        subject = None
        if message.HasField("arg"):
            subject = self._all([message.arg], scope)[0]
            infos.append(subject)
        results = []
        for when in message.args:
            self._closed(when.case_when)
            condition, value = self._all((when.case_when.expr, when.case_when.result), scope)
            if subject is not None:
                condition = self._applied("=", subject, condition, BOOL)
            infos += [condition, value]
            results.append(value)
        if message.HasField("defresult"):
            value = self._all([message.defresult], scope)[0]
            infos.append(value)
            results.append(value)
        return _Info(_common(results), None, False, all(i.constant for i in infos))

    def _coalesce_expr(self, _node: Node, message: Any, scope: Scope) -> _Info:
        infos = self._all(message.args, scope)
        kind = _common(infos)
        leakproof = kind is not None and all(i.leakproof for i in infos)
        return _Info(kind, None, leakproof, all(i.constant for i in infos))

    def _min_max_expr(self, _node: Node, message: Any, scope: Scope) -> _Info:
        infos = self._all(message.args, scope)
        return _Info(_common(infos), None, False, all(i.constant for i in infos))

    def _func_call(self, node: Node, message: Any, scope: Scope) -> _Info:
        names = [part.string.sval for part in message.funcname]
        if len(names) > 2 or (
            len(names) == 2 and message.funcformat == pb.COERCE_SQL_SYNTAX and names[0] != "pg_catalog"
        ):
            raise _function_refusal(names[-1])
        schema = names[0] if len(names) == 2 else None
        name = names[-1]
        if schema in (None, "pg_catalog") and name in self._session_values and not message.args:
            return self._session_value(node, name)
        if schema in (None, "pg_catalog") and name == "current_setting" and self._resolver.path is None:
            return self._current_setting(node, message, scope)
        if schema in (None, "pg_catalog") and name in _SESSION_FUNCTIONS and self._resolver.path is None:
            return self._session_function(node, name)
        if (schema, name) == ("information_schema", "_pg_expandarray") and self._resolver.path is None:
            return self._expanded(message, scope)
        counting = schema in (None, "pg_catalog") and name == "count"
        infos: list[_Info] = []
        bare = len(self._bare)
        references, self._references = self._references, {}
        named = False
        for argument in message.args:
            if kind_of(argument) == "named_arg_expr":
                self._closed(argument.named_arg_expr)
                argument, named = argument.named_arg_expr.arg, True
            info = self._expression(argument, scope)
            if info.label is not None and counting:
                self._equality_on(info.label)
            else:
                self._unlabelled(argument, info)
            infos.append(info)
        if message.agg_within_group:
            for node in message.agg_order:
                self._closed(node.sort_by)
            infos += self._all([node.sort_by.node for node in message.agg_order], scope)
        else:
            self._sort(message.agg_order, scope, ())
        if message.HasField("agg_filter"):
            self._expression_bool(message.agg_filter, scope)
        read = self._references
        self._references = {**references, **read}
        if message.HasField("over"):
            self._window(message.over, scope)
        arguments = () if message.agg_star else tuple(info.type for info in infos)
        if named or message.func_variadic:
            return self._loose_call(message, schema, name, infos)
        candidates = self._resolver.function(schema, name, arguments)
        if not candidates:
            raise _function_refusal(name)
        lookup = self._lookup(message, candidates)
        for candidate in candidates:
            if lookup is None and not self._purity.pure(candidate.oid):
                raise _function_refusal(name)
            for given, wanted in zip(infos, candidate.arguments, strict=False):
                self._converted(given, wanted)
            self._object_names(infos, candidate.arguments)
            self._functions.add(f"{candidate.schema}.{candidate.name}")
            own = candidate.schema != "pg_catalog"
            self._result.stateful = self._result.stateful or (own and candidate.volatility == "v")
            self._result.impure = self._result.impure or self._result.stateful
            self._result.unbounded = self._result.unbounded or candidate.returns_set
            self._result.unbounded = self._result.unbounded or (own and candidate.volatility != "i")
        if lookup is not None:
            return self._looked_up(node, message, lookup, candidates[0])
        aggregate = any(c.kind in "aw" for c in candidates)
        grouped = aggregate and not message.HasField("over")
        if grouped and read and not any(item in read for item in scope.namespace.items):
            # It belongs to the outer query, whose rows a guard in here could no longer look at.
            raise _unsupported("An aggregate over columns of an outer query alone")
        if grouped:
            del self._bare[bare:]
        self._result.aggregated = self._result.aggregated or (self._outermost and aggregate)
        volatile = any(c.volatility == "v" for c in candidates)
        self._volatile_seen = self._volatile_seen or volatile
        constant = (
            bool(infos)
            and not aggregate
            and all(
                c.volatility == "i"
                and len(c.arguments) == len(infos)
                and all(self._folded(i, wanted) for i, wanted in zip(infos, c.arguments, strict=True))
                for c in candidates
            )
        )
        leakproof = not aggregate and all(i.leakproof for i in infos)
        if not infos and any(c.schema != "pg_catalog" for c in candidates):
            leakproof = False
        if leakproof and infos and not constant:
            leakproof = all(
                self._purity.leakproof(c.oid)
                and len(c.arguments) == len(infos)
                and all(self._uncast(i, wanted) for i, wanted in zip(infos, c.arguments, strict=True))
                for c in candidates
            )
        types = {self._resolver.result_type(candidate, arguments) for candidate in candidates}
        return _Info(types.pop() if len(types) == 1 else None, None, leakproof, constant)

    def _loose_call(self, message: Any, schema: str | None, name: str, infos: Sequence[_Info]) -> _Info:
        """A call with named arguments or VARIADIC: every function of this name must be one that it may mean.

        Which argument goes where is not known, so that each may go anywhere (docs/decisions/0006-candidate-sets.md).
        """
        candidates = self._resolver.functions(schema, name) if self._resolver.path is None else ()
        if any(c.kind in "aw" for c in candidates) or self._resolver.path is not None:
            raise _unsupported("A named argument, or VARIADIC, of such a function")
        if message.func_variadic and not any(c.variadic for c in candidates):
            raise _unsupported(f'VARIADIC of "{name}", which takes no such argument,')
        if not candidates or not all(self._purity.pure(c.oid) for c in candidates):
            raise _function_refusal(name)
        for candidate in candidates:
            own = candidate.schema != "pg_catalog"
            wanted = candidate.arguments
            for given in infos:
                for kind in wanted:
                    self._converted(given, kind)
            if any(self._catalog.types[kind].kind == "p" for kind in wanted):
                _no_mixed_names([self._object_type(info.type) for info in infos])
            self._functions.add(f"{candidate.schema}.{candidate.name}")
            self._result.stateful = self._result.stateful or (own and candidate.volatility == "v")
            self._result.impure = self._result.impure or self._result.stateful
            self._result.unbounded = (
                self._result.unbounded or candidate.returns_set or (own and candidate.volatility != "i")
            )
            self._volatile_seen = self._volatile_seen or candidate.volatility == "v"
        results = {candidate.result for candidate in candidates}
        result = results.pop() if len(results) == 1 else None
        if result is not None and self._catalog.types[result].kind == "p":
            result = None
        return _Info(result, None, False)

    def _session_value(self, node: Node, name: str) -> _Info:
        """``current_schema`` and the like are answered from proxy state: the upstream's own are not the agent's."""
        node.CopyFrom(tree.cast(tree.text_constant(self._session_values[name]), "pg_catalog", "name"))
        self._built(node)
        return _Info(19, None, True, True)

    def _session_function(self, node: Node, name: str) -> _Info:
        """Functions without arguments, and current_schemas, whose answer is the same for every agent."""
        arguments = list(node.func_call.args)
        if name == "current_schemas":
            if len(arguments) != 1 or arguments[0].a_const.WhichOneof("val") != "boolval":
                raise _function_refusal(name)
            shown = "{pg_catalog,public}" if arguments[0].a_const.boolval.boolval else "{public}"
            kind = tree.type_name("pg_catalog", "name", array=True)
            value = pb.Node(type_cast=pb.TypeCast(arg=tree.text_constant(shown), type_name=kind))
            node.CopyFrom(value)
            self._built(node)
            return _Info(1003, None, True, True)
        if arguments:
            raise _function_refusal(name)
        value, kind, oid = _SESSION_FUNCTIONS[name]
        node.CopyFrom(tree.cast(tree.text_constant(value), "pg_catalog", kind))
        self._built(node)
        return _Info(oid, None, True, True)

    def _current_setting(self, node: Node, message: Any, scope: Scope) -> _Info:
        """``current_setting(name)`` for what drivers and ORMs ask; NULL for all else."""
        if not 1 <= len(message.args) <= 2 or message.HasField("over"):
            raise _function_refusal("current_setting")
        name = self._all(message.args[:1], scope)[0]
        if name.type not in TEXT_LIKE:
            raise _function_refusal("current_setting")
        settings = {**_SETTINGS, "server_version_num": str(self._catalog.server_version)}
        if kind_of(message.args[0]) == "a_const" and message.args[0].a_const.sval.sval not in settings:
            raise _function_refusal("current_setting")
        case = pb.CaseExpr(
            arg=tree.cast(message.args[0], "pg_catalog", "text"),
            args=[
                pb.Node(case_when=pb.CaseWhen(expr=tree.text_constant(key), result=tree.text_constant(value)))
                for key, value in settings.items()
            ],
        )
        node.CopyFrom(tree.cast(pb.Node(case_expr=case), "pg_catalog", "text"))
        self._built(node)
        return _Info(TEXT, None, False)

    def _expanded(self, message: Any, scope: Scope) -> _Info:
        """The elements of a vector of the catalogue with their numbers, as pgjdbc asks for the columns of an index."""
        plain = {"funcname", "args", "funcformat", "location"} >= {field.name for field, _ in message.ListFields()}
        element = None
        if plain and len(message.args) == 1:
            element = _VECTORS.get(self._expression(message.args[0], scope).type or 0)
        if element is None:
            raise _function_refusal("_pg_expandarray")
        self._functions.add("information_schema._pg_expandarray")
        self._result.unbounded = True
        return _Info(RECORD, None, False, record={"x": element, "n": INT4})

    # Look-ups in the catalogue

    def _lookup(self, message: Any, candidates: Sequence[Function]) -> Lookup | None:
        """What a call tells of an object in the catalogue; None for other calls."""
        candidate = candidates[0]
        if len(candidates) > 1 or candidate.schema != "pg_catalog" or candidate.oid >= FIRST_USER_OID:
            return None
        lookup = introspection.LOOKUPS.get(signature_of(self._catalog, candidate))
        plain = not (message.HasField("over") or message.HasField("agg_filter") or message.agg_order)
        return lookup if plain else None

    def _looked_up(self, node: Node, message: Any, lookup: Lookup, function: Function) -> _Info:
        """A call that tells of an object in the catalogue becomes one that does so if the agent may see the object."""
        if self._resolver.path is not None:
            self._look_in(lookup.reads)
            return _Info(function.result, None, False)
        visible = lookup.visible
        if visible == "class":
            catalogue = message.args[1].a_const
            if catalogue.WhichOneof("val") != "sval":
                raise _unsupported(f"A catalogue for {function.name} that is not a constant")
            visible = introspection.CLASSES.get(catalogue.sval.sval, "built-in")
        call = pb.Node(func_call=message)
        del call.func_call.funcname[:]
        call.func_call.funcname.extend([tree.string("pg_catalog"), tree.string(function.name)])
        self._guarded(
            node, call, call.func_call.args[lookup.argument], visible, function.result, returns_set=function.returns_set
        )
        return _Info(function.result, None, False)

    def _guarded(
        self, node: Node, call: Node, argument: Node, visible: str, result: int, *, returns_set: bool = False
    ) -> None:
        """`node` becomes ``call``, or NULL if the object that ``argument``, a part of it, gives is not visible."""
        kind = self._catalog.types[result]
        if visible == "nothing" and returns_set:
            array = tree.type_name(kind.schema, kind.name, array=True)
            none = pb.Node(type_cast=pb.TypeCast(arg=tree.null_constant(), type_name=array))
            node.CopyFrom(tree.function("unnest", none))
        elif visible == "nothing":
            nothing = tree.boolean_constant(False) if result == BOOL else tree.null_constant()
            node.CopyFrom(tree.cast(nothing, kind.schema, kind.name))
        else:
            if self._aggregates(argument):
                raise _unsupported("An aggregate or window function within a look-up in the catalogue")
            node.CopyFrom(introspection.guarded(visible, call, argument))
            self._introspect()
        self._result.unbounded = True
        self._built(node)

    def _introspect(self) -> None:
        self._result.introspects = True
        self._lookups += 1
        if self._lookups > MAX_LOOKUPS:
            raise Refusal("ST-06", f"A statement looks in the catalogue at most {MAX_LOOKUPS} times.", sqlstate="54000")

    def _aggregates(self, node: Node) -> bool:
        """True if something in `node` may be an aggregate or a window function."""
        calls = [part for part in tree.walk(node) if part.DESCRIPTOR.name == "FuncCall"]
        names = {part.funcname[-1].string.sval for part in calls}
        return any(part.HasField("over") for part in calls) or any(
            function.kind in "aw" and function.name in names for function in self._catalog.functions.values()
        )

    def _look_in(self, relations: Sequence[str]) -> None:
        """Code that is called reads these relations of pg_catalog, whole: in a session of its own catalogue."""
        for name in relations:
            self._uses.setdefault(("pg_catalog", name, "read"), (set(), set()))
            self._result.looked_up.add(f"pg_catalog.{name}")
        self._result.unbounded = True

    def _object_names(self, infos: Sequence[_Info], wanted: Sequence[int]) -> None:
        """Refuse what PostgreSQL may take for the name of an object, because an object stands beside it.

        An untyped constant takes the type of the other values of a CASE or of a polymorphic argument, and regclass
        tells by its error which names exist.
        """
        generic = [info for info, kind in zip(infos, wanted, strict=False) if self._catalog.types[kind].kind == "p"]
        _no_mixed_names([self._object_type(info.type) for info in generic])

    def _object_type(self, oid: int | None) -> int | None:
        """The type, for an array that of its elements."""
        kind = self._catalog.types.get(oid or 0)
        return kind.element if kind is not None and kind.element else oid

    def _reg_cast(self, node: Node, message: Any, info: _Info, wanted: int) -> _Info:
        """A cast to a type of object identifiers: of a name, or of an OID."""
        reg = REG_TYPES[wanted]
        kind = self._catalog.types[wanted]
        if self._resolver.path is not None:
            self._look_in((reg.reads,))
            return _Info(wanted, None, False)
        named = info.type in TEXT_LIKE or info.type == 19
        if kind_of(message.arg) == "a_const" and message.arg.a_const.sval.sval.isdecimal():
            named = False
        if named and not reg.by_name:
            raise Refusal("ST-04", f"A name as {kind.name} is not available to agents.")
        cast = pb.Node(type_cast=message)
        if named:
            cast = tree.function(reg.by_name, message.arg)
            self._guarded(node, cast, cast.func_call.args[0], reg.visible, wanted)
        else:
            if info.type not in (UNKNOWN, 26) and not self._resolver.can_coerce(info.type or 0, 26, "e"):
                raise Refusal("ST-04", "This cast is not on the list of casts that agents may use.")
            self._guarded(node, cast, cast.type_cast.arg, reg.visible, wanted)
        return _Info(wanted, None, False)

    def _sqlvalue_function(self, node: Node, message: Any, _scope: Scope) -> _Info:
        name = SESSION_NAMES.get(message.op)
        if name is not None and name not in self._session_values:
            raise _function_refusal(name)
        if name is not None:
            return self._session_value(node, name)
        return _Info(
            {
                pb.SVFOP_CURRENT_DATE: 1082,
                pb.SVFOP_CURRENT_TIME: 1266,
                pb.SVFOP_CURRENT_TIME_N: 1266,
                pb.SVFOP_LOCALTIME: 1083,
                pb.SVFOP_LOCALTIME_N: 1083,
                pb.SVFOP_LOCALTIMESTAMP: 1114,
                pb.SVFOP_LOCALTIMESTAMP_N: 1114,
            }.get(message.op, 1184),
            None,
            True,
        )

    def _type_cast(self, node: Node, message: Any, scope: Scope) -> _Info:
        dated = self._result.dated
        info = self._expression(message.arg, scope)
        try:
            wanted = self._type(message.type_name)
        except Refusal as refusal:
            placed(refusal, message.type_name.location)
            raise
        if info.label is not None:
            raise _token_refusal(info.label, "be cast")
        if wanted in REG_TYPES:
            return self._reg_cast(node, message, info, wanted)
        if not self._resolver.castable(info.type, wanted):
            raise Refusal("ST-04", "This cast is not on the list of casts that agents may use.")
        if kind_of(message.arg) == "a_const" and self._catalog.types[wanted].category in _UNDATED_CATEGORIES:
            self._result.dated = dated
        # A modifier runs code: numeric(3,0) raises for larger numbers.
        if self._catalog.types[wanted].kind == "d":  # its constraints are checked when it is evaluated
            return _Info(self._base(wanted), None, False)
        constant = self._folded(info, wanted)
        leakproof = info.leakproof and (constant or (not message.type_name.typmods and self._uncast(info, wanted)))
        return _Info(self._base(wanted), None, leakproof, constant)

    def _type(self, name: Any) -> int:
        """Resolve a TypeName to its OID and qualify it.  Raises `Refusal`."""
        self._closed(name)
        names = tuple(part.string.sval for part in name.names)
        found = self._resolver.type_by_name(names)
        if found is not None and found.oid in REG_TYPES and name.array_bounds:
            raise Refusal("ST-04", "Arrays of object identifier types are not available to agents.")
        if found is None or found.kind not in "bderm":
            raise Refusal("ST-04", f'Type "{".".join(names)}" is not available to this agent.', sqlstate="42704")
        for modifier in name.typmods:
            if kind_of(modifier) != "a_const":
                raise _unsupported("This type modifier")
            self._closed(modifier.a_const)
        if (found.schema != "pg_catalog" or self._resolver.path is not None) and len(names) == 1:
            del name.names[:]
            name.names.extend([tree.string(found.schema), tree.string(found.name)])
        return found.array if name.array_bounds else found.oid

    def _sub_link(self, _node: Node, message: Any, scope: Scope) -> _Info:
        if kind_of(message.subselect) != "select_stmt":
            _refuse_kind(kind_of(message.subselect))
        kind = message.sub_link_type
        select = message.subselect.select_stmt
        if kind == pb.EXISTS_SUBLINK and not (select.target_list or select.values_lists or select.HasField("larg")):
            select.target_list.append(tree.target(tree.null_constant()))
        before, loose = self._references, self._loose
        was = self._in_predicate, self._in_qual
        joined, self._joined = self._joined is message, None
        raising = self._raising
        self._references, self._loose = {}, {}
        self._in_predicate = self._in_qual = False
        fields, inner = self._select(message.subselect.select_stmt, scope)
        self._in_predicate, self._in_qual = was
        correlated = bool(self._loose)
        if self._raising > raising:
            # Where it is no join it is evaluated when the first row asks for it, and that may be a hidden one.
            outer = bool(self._references)
            joined = joined and (kind == pb.EXISTS_SUBLINK or (kind == pb.ANY_SUBLINK and not outer))
            correlated = correlated or not (joined and _joinable(message.subselect.select_stmt))
        self._references = {**before, **self._references}
        self._loose = {**loose, **self._loose}
        if kind == pb.EXISTS_SUBLINK:
            return _Info(BOOL, None, not correlated)
        if kind == pb.ANY_SUBLINK or kind == pb.ALL_SUBLINK:
            name = _operator_name(message.oper_name) if message.oper_name else "="
            if len(fields) != 1:
                raise _unsupported("A sub-select of several columns here")
            left = self._expression(message.testexpr, scope)
            right = fields[0]
            if left.label or right.label:
                if name not in ("=", "<>"):
                    raise _token_refusal(left.label or right.label, f'be used with the operator "{name}"')
                self._same_domain(left.label, right.label)
                self._equality_on(left.label, right.label)
                return _Info(BOOL, None, left.leakproof and right.plain and not correlated)
            applied = self._applied(name, left, _Info(right.type, None, right.plain), BOOL)
            if not applied.leakproof:
                # It may become a join, whose condition sinks to the relations below.
                self._result.sites.append(
                    FenceSite(Item("", "derived", fields, node=message.subselect.select_stmt, inner=inner))
                )
            return _Info(BOOL, None, applied.leakproof and not correlated)
        if kind == pb.EXPR_SUBLINK:
            if len(fields) != 1:
                raise Refusal("ST-01", "A sub-select here must return one column.", sqlstate="42601")
            return _Info(fields[0].type, fields[0].label, False)
        if kind == pb.ARRAY_SUBLINK:
            if len(fields) != 1 or fields[0].label is not None:
                raise _unsupported("An array of this sub-select")
            return _Info(self._array_of(fields[0].type), None, False)
        raise _unsupported("This kind of sub-select")

    def _a_array_expr(self, _node: Node, message: Any, scope: Scope) -> _Info:
        infos = self._all(message.elements, scope)
        kind = self._array_of(_common(infos))
        leakproof = kind is not None and all(i.leakproof for i in infos)
        return _Info(kind, None, leakproof, all(i.constant for i in infos))

    def _row_expr(self, _node: Node, message: Any, scope: Scope) -> _Info:
        expanded: list[Node] = []
        changed = False
        for argument in message.args:
            if kind_of(argument) == "a_indirection":
                self._field_of_row(argument, scope)
            parts = list(argument.column_ref.fields) if kind_of(argument) == "column_ref" else []
            if len(parts) > 1 and kind_of(parts[-1]) == "a_star":  # ROW(t.*) has the columns of t, not its row
                item = self._find_item([part.string.sval for part in parts[:-1]], scope)
                _distinct([f.name for f in item.fields])
                expanded += [tree.column(item.name, f.name) for f in item.fields]
                changed = True
            else:
                expanded.append(argument)
            if len(expanded) > MAX_COLUMNS:
                raise _too_many_columns()
        if changed:
            copies = [pb.Node.FromString(node.SerializeToString()) for node in expanded]
            del message.args[:]
            message.args.extend(copies)
        self._all(message.args, scope)
        return _Info(None, None, False)

    def _a_indirection(self, node: Node, message: Any, scope: Scope) -> _Info:
        if self._field_of_row(node, scope):
            return self._expression(node, scope)
        base = self._all([message.arg], scope)[0]
        if base.record is not None and len(message.indirection) == 1:
            kind = base.record.get(message.indirection[0].string.sval)
            if kind is not None:
                return _Info(kind, None, False)
        for part in message.indirection:
            if kind_of(part) != "a_indices":
                raise _unsupported("Field selection from a composite value")
            self._closed(part.a_indices)
            for name in ("lidx", "uidx"):
                if part.a_indices.HasField(name):
                    self._all([getattr(part.a_indices, name)], scope)
        return _Info(None if base.type is None else self._element(base.type), None, False)

    def _field_of_row(self, node: Node, scope: Scope) -> bool:
        """Make ``(t).column`` and ``(t).*`` into ``t.column`` and ``t.*``, which they are where `t` is no column."""
        indirection = node.a_indirection
        argument = indirection.arg.column_ref if kind_of(indirection.arg) == "column_ref" else None
        if argument is None or len(argument.fields) != 1 or len(indirection.indirection) != 1:
            return False
        name, part = argument.fields[0].string.sval, indirection.indirection[0]
        if not name or kind_of(part) not in ("string", "a_star"):
            return False
        level: Scope | None = scope
        item: Item | None = None
        while level is not None:
            if any(entry.name == name for entry in level.namespace.entries):
                return False
            item = item or next((each for each in level.namespace.items if each.name == name), None)
            level = level.parent
        if item is None or item.kind == "function":
            return False
        fields = [pb.Node.FromString(each.SerializeToString()) for each in (argument.fields[0], part)]
        node.CopyFrom(pb.Node(column_ref=pb.ColumnRef(fields=fields, location=argument.location)))
        return True

    def _collate_clause(self, _node: Node, message: Any, scope: Scope) -> _Info:
        info = self._all([message.arg], scope)[0]
        names = [part.string.sval for part in message.collname]
        if (
            names[-1] not in ("C", "POSIX", "default", "ucs_basic", "unicode", "und-x-icu")
            or len(names) > 2
            or (len(names) == 2 and names[0] != "pg_catalog")
        ):
            raise Refusal("ST-04", "This collation is not on the list of collations that agents may use.")
        return _Info(info.type, None, info.leakproof, info.constant)

    def _grouping_func(self, _node: Node, message: Any, scope: Scope) -> _Info:
        for node in message.args:
            self._expression(node, scope)
        return _Info(INT4, None, False)

    def _unlabelled(self, node: Node, info: _Info) -> None:
        if info.label is not None:
            raise _token_refusal(info.label, "take part in this expression")

    # Types

    def _base(self, oid: int) -> int:
        kind = self._catalog.types.get(oid)
        while kind is not None and kind.kind == "d":
            oid = kind.base
            kind = self._catalog.types.get(oid)
        return oid

    def _element(self, oid: int | None) -> int | None:
        if oid is None or oid == UNKNOWN:
            return oid
        kind = self._catalog.types.get(oid)
        return kind.element or None if kind is not None else None

    def _array_of(self, oid: int | None) -> int | None:
        if oid is None:
            return None
        kind = self._catalog.types.get(TEXT if oid == UNKNOWN else oid)
        return kind.array or None if kind is not None else None


_EXPRESSIONS: Final = frozenset(
    "bool_expr null_test boolean_test a_expr case_expr coalesce_expr min_max_expr func_call sqlvalue_function "
    "type_cast sub_link a_array_expr row_expr a_indirection collate_clause grouping_func".split()
)


def placed(refusal: Refusal, location: int) -> Refusal:
    """The refusal, with where the statement shows what is refused; what was noted further inside stays."""
    if not refusal.location and location > 0:
        refusal.location = location
    return refusal


def unavailable_relation(name: str) -> Refusal:
    """The one answer for a relation that is missing, unlisted or forbidden."""
    return Refusal(
        "ST-03",
        f'Relation "{name}" is not available to this agent.',
        hint="Check the name. If it is right, ask the owner of this agent's policy for access to it.",
    )


def unavailable_column(name: str) -> Refusal:
    """The one answer for a column that is missing or hidden."""
    return Refusal(
        "ST-03",
        f'Column "{name}" is not available to this agent.',
        hint="Check the name. If it is right, ask the owner of this agent's policy for access to it.",
    )


def _token_refusal(label: Label | None, what: str) -> Refusal:
    names = ", ".join(sorted(label.columns)) if label is not None else "?"
    return Refusal(
        "CO-03",
        f"Column {names} is stored tokenized and cannot {what}.",
        hint="It can be selected as it is, compared with = or <> or IN to constants and parameters, joined, grouped by "
        "and counted.",
    )


def _function_refusal(name: str) -> Refusal:
    if name.startswith(("pg_advisory_", "pg_try_advisory_")):
        return Refusal(
            "ST-04",
            f'Function "{name}" is not carried: an advisory lock tells of, and holds up, agents that share it unseen.',
            hint="Lock rows with FOR UPDATE where the policy allows it, or let the database's constraints decide.",
        )
    return Refusal(
        "ST-04",
        f'Function "{name}" is not on the list of functions that agents may call.',
        hint="Use another function, or ask the operator of this proxy to review and list it.",
    )


def _unsupported(what: str) -> Refusal:
    return Refusal("ST-02", f"{what} is not supported.", sqlstate="0A000")


def _columns_in(node: Node) -> set[str]:
    """Names of the columns that an expression reads."""
    references = (part for part in tree.walk(node) if part.DESCRIPTOR.name == "ColumnRef")
    return {part.fields[-1].string.sval for part in references}


def _distinct(names: Sequence[object]) -> None:
    """Refuse a star over two columns of one name: only by their places could they be told apart."""
    if len(set(names)) < len(names):
        raise _unsupported("A star over two columns of one name")


def _too_many_columns() -> Refusal:
    return Refusal("ST-06", f"A list of columns has more than {MAX_COLUMNS} entries.", sqlstate="54011")


def _refuse_kind(kind: str) -> NoReturn:
    words = kind.removesuffix("_stmt").replace("_", " ") or "this form"
    raise Refusal("ST-02", f"Statements that contain {words} are not understood, so they are denied.", sqlstate="0A000")


def _own_identifier(*names: str) -> None:
    for name in names:
        if name.startswith(HIDDEN):
            raise Refusal("ST-02", f'Identifiers that begin with "{HIDDEN}" are reserved.', sqlstate="42939")


def relations_of(item: Item) -> list[Item]:
    """The governed relations that an item is or holds."""
    if item.kind in ("relation", "target"):
        return [item]
    return [relation for part in item.arguments for relation in relations_of(part)] or item.inner


def _with_arguments(item: Item) -> list[Item]:
    """`item`, and for a function in FROM what its arguments read."""
    return [item, *(part for argument in item.arguments for part in _with_arguments(argument))]


def _about_now(node: Node) -> bool:
    """True for ``current_date``, ``current_timestamp``, ``localtimestamp`` and ``now()``."""
    if kind_of(node) == "func_call":
        names = [part.string.sval for part in node.func_call.funcname]
        return names in (["now"], ["pg_catalog", "now"]) and not node.func_call.args
    return kind_of(node) == "sqlvalue_function" and node.sqlvalue_function.op in _NOWS


def _short_while(node: Node) -> bool:
    """True for a number of days, or an interval, that leads from today to no date that is out of range."""
    if kind_of(node) == "type_cast":
        name, node = node.type_cast.type_name, node.type_cast.arg
        if [part.string.sval for part in name.names] != ["pg_catalog", "interval"] or name.typmods or name.array_bounds:
            return False
        return kind_of(node) == "a_const" and bool(_SHORT_INTERVAL.fullmatch(node.a_const.sval.sval))
    return kind_of(node) == "a_const" and node.a_const.WhichOneof("val") == "ival" and node.a_const.ival.ival < 100_000


def _sub_link_alone(node: Node) -> Any:
    """The SubLink of a conjunct that is EXISTS, NOT EXISTS or ``= ANY``; None for any other conjunct."""
    if kind_of(node) == "bool_expr" and node.bool_expr.boolop == pb.NOT_EXPR:
        node = node.bool_expr.args[0]
        if kind_of(node) != "sub_link" or node.sub_link.sub_link_type != pb.EXISTS_SUBLINK:
            return None
    return node.sub_link if kind_of(node) == "sub_link" else None


def _joinable(select: Any) -> bool:
    """True if PostgreSQL makes a join of a SubLink over it: then its expressions run on its own rows, before the join.

    Stricter than convert_EXISTS_sublink_to_join and convert_ANY_sublink_to_join (optimizer/plan/subselect.c).
    """
    plain = {"target_list", "from_clause", "where_clause", "limit_option", "op"}
    return (
        {field.name for field, _ in select.ListFields()} <= plain
        and select.op == pb.SETOP_NONE
        and len(select.from_clause) > 0
        and all(kind_of(node) == "range_var" for node in select.from_clause)
        and not any(part.DESCRIPTOR.name == "FuncCall" for node in select.target_list for part in tree.walk(node))
    )


def _alike(one: Label, other: Label) -> bool:
    return one.token_domain == other.token_domain and one.transformation == other.transformation


def _name_outputs(select: Any, fields: Sequence[Field]) -> None:
    """Write the names of a sub-select's columns out, so that PostgreSQL cannot find others for them."""
    while select.op != pb.SETOP_NONE:
        select = select.larg
    for node, known in zip(select.target_list, fields, strict=False):
        if not node.res_target.name and kind_of(node.res_target.val) != "column_ref":
            node.res_target.name = known.name


def _namespace_of(item: Item) -> Namespace:
    return Namespace([Entry(f.name, f, (item,), origin=(item, f.name)) for f in item.fields], [item])


def _real_column(item: Item, name: str) -> Column | None:
    """The catalogue's column behind a field of a governed relation; None for other items."""
    if item.kind not in ("relation", "target"):
        return None
    assert item.relation is not None  # noqa: S101
    for field_, column in zip(item.fields, item.relation.columns, strict=True):
        if field_.name == name:
            return column
    return None


def _renamed(fields: list[Field], names: Sequence[str]) -> list[Field]:
    if len(names) > len(fields):
        raise Refusal("ST-01", "A column alias list is longer than its relation.", sqlstate="42P10")
    for candidate, name in zip(fields, names, strict=False):
        candidate.name = name
    return fields


def _spread_unnest(function: Any) -> None:
    """``unnest(a, b)`` in FROM is ``ROWS FROM (unnest(a), unnest(b))`` (PostgreSQL, chapter 7.2.1.4)."""
    if function.is_rowsfrom or len(function.functions) != 1 or len(function.functions[0].list.items) < 1:
        return
    written = function.functions[0].list
    call = written.items[0].func_call
    plain = {"funcname", "args", "funcformat", "location"} >= {field.name for field, _ in call.ListFields()}
    named = len(call.funcname) == 1 and call.funcname[0].string.sval == "unnest"
    if not named or not plain or len(call.args) < 2 or any(kind_of(part) for part in written.items[1:]):
        return
    calls = [
        pb.Node(list=pb.List(items=[tree.function("unnest", argument), pb.Node()])) for argument in list(call.args)
    ]
    for each in calls:
        each.list.items[0].func_call.location = call.location
    function.is_rowsfrom = True
    del function.functions[:]
    function.functions.extend(calls)


def _unique(namespace: Namespace, name: str) -> Entry:
    found = [entry for entry in namespace.entries if entry.name == name]
    if len(found) != 1:
        raise unavailable_column(name)
    return found[0]


def _operator_name(parts: Sequence[Node]) -> str:
    names = [part.string.sval for part in parts]
    if len(names) > 1 and names[:-1] != ["pg_catalog"]:
        raise Refusal("ST-04", "Only the server's own operators may be used.")
    return str(names[-1])


def _constant_type(constant: Any) -> int:
    kind = "" if constant.isnull else constant.WhichOneof("val")
    if kind == "ival":
        return INT4
    if kind == "boolval":
        return BOOL
    if kind == "bsval":
        return 1560
    if kind == "fval":
        text = constant.fval.fval
        return INT8 if text.isdigit() and int(text) < 2**63 else NUMERIC
    return UNKNOWN


def _no_mixed_names(types: Iterable[int | None]) -> None:
    """Refuse a type of object identifiers beside a value that has no type of its own."""
    types = set(types)
    if not types.isdisjoint(REG_TYPES) and not types.isdisjoint({UNKNOWN, None}):
        raise Refusal(
            "ST-04",
            "A constant or parameter without a type could be taken for the name of an object here.",
            hint="Cast both sides to text or to oid.",
        )


def _common(infos: Sequence[_Info]) -> int | None:
    types = {info.type for info in infos} - {UNKNOWN}
    _no_mixed_names(info.type for info in infos)
    if not types:
        return TEXT
    return types.pop() if len(types) == 1 else None


def _figure_name(node: Node) -> str:
    """The name that PostgreSQL gives an unnamed output column (FigureColname)."""
    return _figured(node)[1]


def _figured(node: Node) -> tuple[int, str]:
    """The name with its strength: 0 none, 1 of a type or of CASE, which others take precedence of, 2 of all else."""
    kind = kind_of(node)
    if kind == "column_ref":
        return 2, str(node.column_ref.fields[-1].string.sval)
    if kind == "a_indirection":
        names = [part.string.sval for part in node.a_indirection.indirection if kind_of(part) == "string"]
        return (2, str(names[-1])) if names else _figured(node.a_indirection.arg)
    if kind == "func_call":
        return 2, str(node.func_call.funcname[-1].string.sval)
    if kind == "type_cast":
        inner = _figured(node.type_cast.arg)
        return inner if inner[0] == 2 else (1, str(node.type_cast.type_name.names[-1].string.sval))
    if kind == "collate_clause":
        return _figured(node.collate_clause.arg)
    if kind == "case_expr":
        inner = _figured(node.case_expr.defresult) if node.case_expr.HasField("defresult") else (0, "")
        return inner if inner[0] == 2 else (1, "case")
    if kind == "sub_link":
        if node.sub_link.sub_link_type == pb.EXISTS_SUBLINK:
            return 2, "exists"
        if node.sub_link.sub_link_type == pb.ARRAY_SUBLINK:
            return 2, "array"
        if node.sub_link.sub_link_type == pb.EXPR_SUBLINK:
            select = node.sub_link.subselect.select_stmt
            if len(select.target_list) == 1:
                target = select.target_list[0].res_target
                return 2, str(target.name or _figure_name(target.val))
    if kind == "sqlvalue_function":
        return 2, SESSION_NAMES.get(node.sqlvalue_function.op) or _CLOCK_NAMES[node.sqlvalue_function.op]
    if kind == "min_max_expr":
        return 2, "greatest" if node.min_max_expr.op == pb.IS_GREATEST else "least"
    if kind == "a_expr" and node.a_expr.kind == pb.AEXPR_NULLIF:
        return 2, "nullif"
    known = _FIGURES.get(kind)
    return (2, known) if known is not None else (0, "?column?")


_FIGURES: Final = {
    "coalesce_expr": "coalesce",
    "a_array_expr": "array",
    "row_expr": "row",
    "grouping_func": "grouping",
}
