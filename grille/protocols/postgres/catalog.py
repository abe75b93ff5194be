"""The catalogue snapshot: what one PostgreSQL database contains, as plain data.

`grille.proxy.catalog` reads it from pg_catalog over asyncpg; nothing here does input or output.  A snapshot
is immutable; DDL on the server leads to a new snapshot with another `epoch`.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Column(msgspec.Struct, frozen=True):
    """One row of pg_attribute that is neither dropped nor a system column."""

    name: str
    number: int
    type_oid: int
    typmod: int
    not_null: bool
    has_default: bool
    generated: Literal["", "s", "v"]
    collation: int = 0
    sources: tuple[str, ...] = ()
    """Columns (``schema.relation.column``) that a generated column is computed from, or that a foreign key makes it
    repeat: what they hold can be learned from it."""


class UniqueKey(msgspec.Struct, frozen=True):
    """A unique index in which an equality on all columns finds at most one row (pg_index).

    Valid, ready, immediate, neither partial nor on expressions; a btree of the server's own default operator classes,
    under the collations of its columns.
    """

    name: str
    columns: tuple[str, ...]
    operands: tuple[int, ...]
    """By column, the type that its operator class compares: the index serves an `Operator.equality` on that type."""


class Relation(msgspec.Struct, frozen=True):
    """One row of pg_class (tables, partitioned tables, views, materialized views, foreign tables)."""

    oid: int
    schema: str
    name: str
    kind: Literal["r", "p", "v", "m", "f"]
    row_type: int
    columns: tuple[Column, ...]
    parents: tuple[int, ...] = ()
    """OIDs of direct inheritance parents or the partitioned table (pg_inherits)."""
    unique_keys: tuple[UniqueKey, ...] = ()
    """The primary key first."""
    has_triggers: bool = False
    """A non-internal trigger exists."""
    has_rules: bool = False
    """A rewrite rule other than a view's own _RETURN exists."""
    definition_hash: str = ""
    """Hash of a view's definition (catalogue row F3), else empty."""
    row_security: bool = False
    """Row security is enabled: reading it runs expressions that this snapshot does not hold."""

    def column(self, name: str) -> Column | None:
        """The column of this name, or None."""
        for column in self.columns:
            if column.name == name:
                return column
        return None


class Type(msgspec.Struct, frozen=True):
    """One row of pg_type."""

    oid: int
    schema: str
    name: str
    kind: Literal["b", "c", "d", "e", "p", "r", "m"]
    category: str
    preferred: bool
    element: int = 0
    """typelem for true arrays (typcategory A), else 0."""
    array: int = 0
    base: int = 0
    """typbasetype of a domain, else 0."""
    relation: int = 0
    subtype: int = 0
    """Element type of a range, range type of a multirange, else 0 (pg_range)."""
    checked: bool = False
    """The domain has a CHECK constraint of its own."""


class Function(msgspec.Struct, frozen=True):
    """One row of pg_proc."""

    oid: int
    schema: str
    name: str
    kind: Literal["f", "p", "a", "w"]
    arguments: tuple[int, ...]
    defaults: int
    variadic: int
    """Element type of a VARIADIC argument, else 0."""
    result: int
    returns_set: bool
    volatility: Literal["i", "s", "v"]
    leakproof: bool
    strict: bool
    security_definer: bool
    source_hash: str = ""
    """Hash of prosrc+probin for routines outside pg_catalog (catalogue row F4), else empty."""


class Operator(msgspec.Struct, frozen=True):
    """One row of pg_operator."""

    oid: int
    schema: str
    name: str
    left: int
    """0 for a prefix operator."""
    right: int
    result: int
    function: int
    equality: bool = False
    """The server's own btree indexes serve it as an equality (pg_amop)."""


class Cast(msgspec.Struct, frozen=True):
    """One row of pg_cast."""

    source: int
    target: int
    function: int
    context: Literal["i", "a", "e"]
    method: Literal["f", "i", "b"]


class Catalog(msgspec.Struct, frozen=True, dict=True):
    """One immutable snapshot of one database."""

    epoch: str
    """Hash of everything below and of the server's system identifier; part of every cache key."""
    server_version: int
    """server_version_num, e.g. 180004."""
    database: str
    relations: dict[tuple[str, str], Relation]
    types: dict[int, Type]
    functions: dict[int, Function]
    operators: dict[int, Operator]
    casts: dict[tuple[int, int], Cast]
