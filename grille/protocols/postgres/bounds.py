"""How much an understood statement can read: whether unique keys bound it, and its LIMIT.

A relation is bounded if a unique key of it is equal, column by column, to constants, parameters, or columns of what is
bounded already (`Binding`).  A statement is bounded if every relation that it reads is, wherever it stands.  This
follows from the statement and the catalogue alone: no statistics, and no guess of what the planner will do.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Final

from postgast import pg_query_pb2 as pb

from grille.protocols.postgres.analysis import MAX_LISTED, Analysis, Binding, Item, WriteSite, relations_of
from grille.protocols.postgres.tree import kind_of

MAX_RELATIONS: Final = 16
"""A statement that reads more relations is not called bounded: planning it takes longer than running it."""
MAX_LIMIT: Final = 1000


def keys_of(analysis: Analysis, masked: Callable[[Item, str], bool], inherited: Set[int]) -> tuple[str, ...] | None:
    """The unique indexes that bound a statement, one for each relation that it reads; None if it is not bounded.

    `masked` says which columns the rewritten statement replaces by a mask: an equality on such a value uses no index.
    `inherited` holds the OIDs of relations with children, whose rows no index of the parent covers.
    """
    written = [s.item for s in analysis.sites if isinstance(s, WriteSite) and s.action in ("update", "delete")]
    read = [*analysis.items, *written]
    if analysis.unbounded or len(read) > MAX_RELATIONS:
        return None
    found: dict[Item, tuple[str, int]] = {}
    for _ in read:
        for item in read:
            if item not in found and _has_whole_keys(item, inherited):
                bound = _bound(item, analysis.bindings, masked, found)
                if bound is not None:
                    found[item] = bound
    if len(found) < len(read):
        return None
    rows = analysis.listed
    for _name, values in found.values():
        rows *= values
    return tuple(name for name, _values in found.values()) if rows <= MAX_LISTED else None


def limit_of(analysis: Analysis) -> int | None:
    """The constant LIMIT of the outermost SELECT if reading may stop there, else None.

    It may not where all rows are needed for the first one: ORDER BY, DISTINCT, grouping, aggregates, windows, set
    operations, a large OFFSET; and where a sample may hold too few.
    """
    if kind_of(analysis.statement) != "select_stmt" or analysis.aggregated:
        return None
    select = analysis.statement.select_stmt
    if (
        select.op != pb.SETOP_NONE
        or select.limit_option == pb.LIMIT_OPTION_WITH_TIES
        or select.sort_clause
        or any(item.sample is not None for item in analysis.items)
        or select.distinct_clause
        or select.group_clause
        or select.HasField("having_clause")
        or (select.HasField("limit_offset") and _small(select.limit_offset) is None)
    ):
        return None
    return _small(select.limit_count)


def _small(node: object) -> int | None:
    """The value of a constant integer up to `MAX_LIMIT`."""
    if kind_of(node) != "a_const":
        return None
    constant = node.a_const  # type: ignore[attr-defined]
    if constant.isnull or constant.WhichOneof("val") != "ival" or not 0 <= constant.ival.ival <= MAX_LIMIT:
        return None
    return int(constant.ival.ival)


def _has_whole_keys(item: Item, inherited: Set[int]) -> bool:
    """True if an index of the relation covers every row that is read under its name."""
    relation = item.relation
    if relation is None:
        return False
    # A partitioned table's unique index holds for all partitions together, an inheritance parent's for itself alone.
    return relation.kind == "p" or (relation.kind == "r" and (item.only or relation.oid not in inherited))


def _bound(
    item: Item, bindings: list[Binding], masked: Callable[[Item, str], bool], found: dict[Item, tuple[str, int]]
) -> tuple[str, int] | None:
    """The unique index that bounds `item`, and to how many rows."""
    assert item.relation is not None  # noqa: S101
    best: tuple[str, int] | None = None
    for key in item.relation.unique_keys:
        rows = 1
        for column, operand in zip(key.columns, key.operands, strict=True):
            usable = [
                binding.values
                for binding in bindings
                if binding.item is item
                and binding.column == column
                and binding.operand == operand
                and (binding.source is None or _settled(binding.source, found))
            ]
            if not usable or masked(item, column):
                break
            rows *= min(usable)
        else:
            if best is None or rows < best[1]:
                best = key.name, rows
    return best


def _settled(source: Item, found: dict[Item, tuple[str, int]]) -> bool:
    """True if an item is bounded: a relation by its key, anything else by all relations that it reads."""
    if source.kind in ("relation", "target"):
        return source in found
    return source.kind in ("derived", "function") and all(part in found for part in relations_of(source))
