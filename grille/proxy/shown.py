"""Which rows of the database the rows of a result show, for ``distinct_keys_per_hour``.

A *key* is the value of a relation's first unique key (its primary key, if it has one), where the result shows all of
its columns as they are stored.  The server says in RowDescription which column of which relation a result column is.
What a row shows of rows whose key it does not show counts as one new key each, so that a count is never too low:

- A result row shows at most one row of each relation that FROM names, at any depth.  Relations of the catalogue do not
  count, nor does what only a condition reads.
- `min`, `max` and their like show a value of one row more each; `count`, `sum` and their like show none.
- A written row holds what it copies of others: an agent could collect there what it reads later as one row.  So a write
  counts one for each row of another relation, or of the same once more, that a written row may hold.
- What gathers the values of many rows in one (string_agg, ARRAY(SELECT ...), a recursive WITH) is refused, and so is
  every function of the database's own, since what it reads is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from postgast import parse
from postgast import pg_query_pb2 as pb

from grille.controls import Refusal
from grille.protocols.postgres.analysis import SYSTEM_SCHEMAS
from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.messages import RowDescription
from grille.protocols.postgres.rewrite import Plan
from grille.proxy.enforcement import Lru, Prepared

PLANS: Final = 10_000
"""Plans about which an answer is remembered."""
ONE: Final = frozenset("min max any_value mode lag lead first_value last_value nth_value".split())
"""Aggregates and window functions that show a value of one row."""
NONE: Final = frozenset(
    "count sum avg bool_and bool_or every bit_and bit_or bit_xor stddev stddev_pop stddev_samp variance var_pop "
    "var_samp corr covar_pop covar_samp regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx "
    "regr_sxy regr_syy row_number rank dense_rank percent_rank cume_dist ntile".split()
)
"""Those that show the value of none."""
_CONDITIONS: Final = frozenset(
    "where_clause having_clause quals sort_clause group_clause window_clause distinct_clause locking_clause "
    "limit_count limit_offset with_clause agg_filter agg_order over infer".split()
)
"""What decides which rows are shown, and shows none itself."""


class Key(NamedTuple):
    """A key that a result shows: of which relation (OID), in which visible columns."""

    relation: int
    columns: tuple[int, ...]


def is_counted(prepared: Prepared) -> bool:
    """Whether the statement uses governed relations; those of the catalogue are not."""
    operation = prepared.understood.operation
    return operation is None or bool(operation.relations)


class Shown:
    """What results of one database show."""

    def __init__(self, catalog: Callable[[], Catalog]) -> None:
        self._catalog = catalog
        self._epoch = ""
        self._gathering: frozenset[str] = frozenset()
        self._keys: Mapping[int, tuple[int, ...]] = {}
        self._rows: Lru[str, int | Refusal] = Lru(PLANS)
        self._described: Lru[str, tuple[Key, ...]] = Lru(PLANS)

    def rows(self, plan: Plan) -> int:
        """Rows of the database that one row of this plan's result shows at most.

        Raises `Refusal` AC-06 if that cannot be told.
        """
        self._follow()
        found = self._rows.get(plan.sql)
        if found is None:
            try:
                found = self._statement(parse(plan.sql).stmts[0].stmt)
            except Refusal as refusal:
                found = refusal
            self._rows.put(plan.sql, found)
        if isinstance(found, Refusal):
            raise Refusal(found.control, found.message, sqlstate=found.sqlstate, hint=found.hint)
        return found

    def described(self, plan: Plan) -> bool:
        """Whether `describe` has been told of this plan."""
        self._follow()
        return self._described.peek(plan.sql) is not None

    def describe(self, plan: Plan, payload: bytes) -> None:
        """Take in what the server says of the plan's result (RowDescription).  Raises ProtocolViolation."""
        self._follow()
        places: dict[tuple[int, int], list[int]] = {}
        for n, field in enumerate(RowDescription.decode(payload).fields[plan.hidden_columns :]):
            if field.table_oid in self._keys:
                places.setdefault((field.table_oid, field.column), []).append(n)
        found: list[Key] = []
        for relation in {relation for relation, _ in places}:
            columns = [places.get((relation, number), []) for number in self._keys[relation]]
            if len(columns) == 1:
                found += [Key(relation, (n,)) for n in columns[0]]
            elif all(len(each) == 1 for each in columns):  # else they may be of different rows
                found.append(Key(relation, tuple(each[0] for each in columns)))
        self._described.put(plan.sql, tuple(found))

    def count(
        self, plan: Plan, rows: Sequence[Sequence[bytes | None]], hashed: Callable[[int, list[bytes]], bytes]
    ) -> tuple[set[bytes], int]:
        """The keys that these visible rows show, each as ``hashed`` has it, and how many more rows they show.

        Raises `Refusal` AC-06 if that cannot be told.
        """
        shown = self.rows(plan)
        keys = self._described.get(plan.sql) or ()
        found: set[bytes] = set()
        more = 0
        for row in rows:
            # Two columns that hold one key show one row of the two that the statement may have read.
            of_row = set()
            for key in keys:
                values = [value for n in key.columns if (value := row[n]) is not None]
                if len(values) == len(key.columns):
                    of_row.add(hashed(key.relation, values))
            found |= of_row
            more += max(0, shown - len(of_row))
        return found, more

    def copied(self, prepared: Prepared, written: int) -> int:
        """How many rows of others stand in so many rows that were written, none of which is returned.

        Raises `Refusal` AC-06 if that cannot be told.
        """
        if prepared.plan is None or prepared.action == "delete":
            return 0
        return written * max(0, self.rows(prepared.plan) - 1)

    def _follow(self) -> None:
        catalog = self._catalog()
        if catalog.epoch == self._epoch:
            return
        self._epoch = catalog.epoch
        self._gathering = frozenset(each.name for each in catalog.functions.values() if each.kind in "aw")
        self._keys = {
            relation.oid: tuple(
                column.number
                for name in relation.unique_keys[0].columns
                if (column := relation.column(name)) is not None
            )
            for relation in catalog.relations.values()
            if relation.unique_keys and relation.schema not in SYSTEM_SCHEMAS
        }
        self._rows.clear()
        self._described.clear()

    # trees

    def _statement(self, node: Any) -> int:
        kind = node.WhichOneof("node")
        if kind == "select_stmt":
            return self._select(node.select_stmt, {})
        if kind not in ("insert_stmt", "update_stmt", "delete_stmt"):
            raise _uncountable("it is neither SELECT, INSERT, UPDATE nor DELETE")
        return self._parts(getattr(node, kind), self._with(getattr(node, kind), {}))

    def _select(self, select: Any, known: Mapping[str, int]) -> int:
        known = self._with(select, known)
        if select.op != pb.SETOP_NONE:
            return max(self._select(select.larg, known), self._select(select.rarg, known))
        return self._parts(select, known)

    def _with(self, statement: Any, known: Mapping[str, int]) -> Mapping[str, int]:
        """What each query of WITH shows, by name, added to what is known."""
        if not statement.HasField("with_clause"):
            return known
        if statement.with_clause.recursive:
            raise _uncountable("WITH RECURSIVE may gather the values of many rows in one")
        for node in statement.with_clause.ctes:
            query = node.common_table_expr.ctequery
            known = {**known, node.common_table_expr.ctename: self._select(query.select_stmt, known)}
        return known

    def _parts(self, message: Any, known: Mapping[str, int]) -> int:
        """What is shown by all that is below a message."""
        total = 0
        for field, value in message.ListFields():
            if field.message_type is None or field.name in _CONDITIONS:
                continue
            for part in value if field.is_repeated else (value,):
                total += self._part(part, known)
        return total

    def _part(self, message: Any, known: Mapping[str, int]) -> int:
        name = message.DESCRIPTOR.name
        if name == "SelectStmt":
            return self._select(message, known)
        if name == "RangeVar":
            if not message.schemaname:
                return known.get(message.relname, 1)
            return 0 if message.schemaname in SYSTEM_SCHEMAS else 1
        if name == "SubLink":
            if message.sub_link_type == pb.ARRAY_SUBLINK:
                raise _uncountable("ARRAY(SELECT ...) gathers the values of many rows in one")
            if message.sub_link_type == pb.EXISTS_SUBLINK:
                return 0
        added = self._function(message) if name == "FuncCall" else 0
        return added + self._parts(message, known)

    def _function(self, call: Any) -> int:
        names = [part.string.sval for part in call.funcname]
        *schema, name = names
        if schema not in ([], ["pg_catalog"]):  # upstream, no other schema is searched
            raise _uncountable(f"what {'.'.join(names)} reads is not known")
        if name not in self._gathering or name in NONE:
            return 0
        if name in ONE:
            return 1
        raise _uncountable(f"{name} gathers the values of many rows in one")


def _uncountable(why: str) -> Refusal:
    return Refusal(
        "AC-06",
        f"the keys that this statement shows cannot be counted: {why}",
        hint="Select the rows themselves, with their primary key, or use count, sum, avg, min and max.",
    )
