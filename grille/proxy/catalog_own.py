"""The catalogue as one session sees it: with its temporary tables, its uncommitted DDL and its search path.

One query over the session's own connection reads what is not built in, by column, as JSON in UTF-8 whatever the
session's client_encoding is.  What initdb made is taken from the shared snapshot.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from grille.protocols.postgres.catalog import Cast, Catalog, Column, Function, Operator, Relation, Type, UniqueKey
from grille.protocols.postgres.purity import Purity
from grille.protocols.postgres.resolve import FIRST_NORMAL_OID, Resolver, SessionPath


def _table(source: str, order: str, *expressions: str) -> str:
    """A table by column, as JSON; each column of a table without a row is null."""
    names = [f"c{number}" for number in range(len(expressions))]
    arrays = ", ".join(f"pg_catalog.to_json(pg_catalog.array_agg(q.{name}))" for name in names)
    columns = ", ".join(f"{expression} AS {name}" for expression, name in zip(expressions, names, strict=True))
    return f"(SELECT pg_catalog.json_build_array({arrays}) FROM (SELECT {columns} {source} ORDER BY {order}) q)"  # noqa: S608


_SCHEMA: Final = "CASE WHEN n.oid = pg_catalog.pg_my_temp_schema() THEN 'pg_temp' ELSE n.nspname END::pg_catalog.text"
"""PostgreSQL understands the alias wherever it looks for a relation or a type."""
_VISIBLE: Final = "(c.relpersistence <> 't' OR c.relnamespace = pg_catalog.pg_my_temp_schema())"
_BIG: Final = "::pg_catalog.oid::pg_catalog.int8"
_NONE: Final = "'0'::pg_catalog.int8"

_RANGE: Final = f"""coalesce(CASE
    WHEN t.typtype = 'r' THEN (SELECT r.rngsubtype{_BIG} FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid)
    WHEN t.typtype = 'm' THEN (SELECT r.rngtypid{_BIG} FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid)
    END, {_NONE})"""  # noqa: S608
_RELATIONS: Final = _table(
    f"""FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid >= {FIRST_NORMAL_OID} AND n.nspname !~ '^pg_toast' AND {_VISIBLE}""",
    "c.oid",
    f"c.oid{_BIG}",
    _SCHEMA,
    "c.relname::pg_catalog.text",
    "c.relkind::pg_catalog.text",
    f"c.reltype{_BIG}",
    "EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)",
    "EXISTS (SELECT 1 FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN')",
    "(SELECT pg_catalog.md5(r.ev_action::pg_catalog.text) FROM pg_catalog.pg_rewrite r"
    " WHERE r.ev_class = c.oid AND r.rulename = '_RETURN')",
    "c.relrowsecurity",
)
_PARENTS: Final = _table(
    """FROM pg_catalog.pg_inherits i""", "i.inhrelid, i.inhseqno", f"i.inhrelid{_BIG}", f"i.inhparent{_BIG}"
)
_COLUMNS: Final = _table(
    f"""FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
 WHERE c.oid >= {FIRST_NORMAL_OID} AND a.attnum > 0 AND NOT a.attisdropped
   AND c.relkind = ANY ('{{r,p,v,m,f}}'::pg_catalog."char"[]) AND {_VISIBLE}""",
    "a.attrelid, a.attnum",
    f"a.attrelid{_BIG}",
    "a.attname::pg_catalog.text",
    "a.attnum",
    f"a.atttypid{_BIG}",
    "a.atttypmod",
    "a.attnotnull",
    "a.atthasdef",
    "a.attgenerated::pg_catalog.text",
    f"a.attcollation{_BIG}",
)
_KEYS: Final = _table(
    f"""FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
 CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(i.indkey), pg_catalog.unnest(i.indclass),
                               pg_catalog.unnest(i.indcollation)) WITH ORDINALITY k(attnum, class, coll, position)
 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
 JOIN pg_catalog.pg_opclass o ON o.oid = k.class JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod
 WHERE i.indrelid >= {FIRST_NORMAL_OID} AND i.indisunique AND i.indisvalid AND i.indisready AND i.indislive
   AND i.indimmediate AND NOT i.indisexclusion AND i.indpred IS NULL AND i.indexprs IS NULL
   AND {_VISIBLE}""",
    "i.indrelid, NOT i.indisprimary, i.indexrelid, k.position",
    f"i.indrelid{_BIG}",
    f"i.indexrelid{_BIG}",
    "c.relname::pg_catalog.text",
    "a.attname::pg_catalog.text",
    f"o.opcintype{_BIG}",
    "o.opcdefault AND o.oid < 16384 AND m.amname = 'btree' AND k.coll = a.attcollation",
)
_TYPES: Final = _table(
    f"""FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
 WHERE t.oid >= {FIRST_NORMAL_OID} AND n.nspname !~ '^pg_toast'
   AND (n.nspname !~ '^pg_temp_' OR n.oid = pg_catalog.pg_my_temp_schema())""",
    "t.oid",
    f"t.oid{_BIG}",
    _SCHEMA,
    "t.typname::pg_catalog.text",
    "t.typtype::pg_catalog.text",
    "t.typcategory::pg_catalog.text",
    "t.typispreferred",
    f"CASE WHEN t.typcategory = 'A' THEN t.typelem{_BIG} ELSE {_NONE} END",
    f"t.typarray{_BIG}",
    f"t.typbasetype{_BIG}",
    f"t.typrelid{_BIG}",
    _RANGE,
    "EXISTS (SELECT 1 FROM pg_catalog.pg_constraint o WHERE o.contypid = t.oid AND o.contype = 'c')",
)
_FUNCTIONS: Final = _table(
    f"""FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE p.oid >= {FIRST_NORMAL_OID} AND n.nspname !~ '^pg_temp_'""",
    "p.oid",
    f"p.oid{_BIG}",
    "n.nspname::pg_catalog.text",
    "p.proname::pg_catalog.text",
    "p.prokind::pg_catalog.text",
    "pg_catalog.array_to_string(p.proargtypes::pg_catalog.oid[], ' ')",
    "p.pronargdefaults",
    f"p.provariadic{_BIG}",
    f"p.prorettype{_BIG}",
    "p.proretset",
    "p.provolatile::pg_catalog.text",
    "p.proleakproof",
    "p.proisstrict",
    "p.prosecdef",
    "pg_catalog.md5(pg_catalog.concat_ws(' ', p.prosrc, p.probin, p.prosqlbody::pg_catalog.text, p.prolang,"
    " p.proconfig::pg_catalog.text))",
)
_OPERATORS: Final = _table(
    f"""FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
 WHERE o.oid >= {FIRST_NORMAL_OID}""",
    "o.oid",
    f"o.oid{_BIG}",
    "n.nspname::pg_catalog.text",
    "o.oprname::pg_catalog.text",
    f"o.oprleft{_BIG}",
    f"o.oprright{_BIG}",
    f"o.oprresult{_BIG}",
    f"o.oprcode{_BIG}",
)
_CASTS: Final = _table(
    f"""FROM pg_catalog.pg_cast c WHERE c.oid >= {FIRST_NORMAL_OID}""",
    "c.oid",
    f"c.castsource{_BIG}",
    f"c.casttarget{_BIG}",
    f"c.castfunc{_BIG}",
    "c.castcontext::pg_catalog.text",
    "c.castmethod::pg_catalog.text",
)
_PATH: Final = """
(SELECT pg_catalog.json_agg(CASE WHEN s.name = n.nspname THEN 'pg_temp' ELSE s.name END ORDER BY s.position)
 FROM pg_catalog.unnest(pg_catalog.current_schemas(true)) WITH ORDINALITY s(name, position)
 LEFT JOIN pg_catalog.pg_namespace n ON n.oid = pg_catalog.pg_my_temp_schema())
"""
_PARTS: Final = (_PATH, _RELATIONS, _PARENTS, _COLUMNS, _KEYS, _TYPES, _FUNCTIONS, _OPERATORS, _CASTS)
_QUERY: Final = (
    f"SELECT pg_catalog.convert_to(pg_catalog.json_build_array({', '.join(_PARTS)})::pg_catalog.text, 'UTF8')"
)

LOOK: Final = re.sub(r" (=|<>|!~|>=|<) ", r" OPERATOR(pg_catalog.\1) ", _QUERY)
"""One row of one column, to be asked for in binary format.  No name in it is looked for on the session's path."""

_Columns = list[Any]
_decode = msgspec.json.Decoder(
    tuple[list[str], _Columns, _Columns, _Columns, _Columns, _Columns, _Columns, _Columns, _Columns]
).decode


VIEWS: Final = 16
"""Views that are kept, oldest first out."""
OBJECTS: Final = 100_000
"""Columns, relations and types that are kept to be used again; then all are forgotten."""


class BuiltIn:
    """What initdb made, out of a shared snapshot; kept for as long as that snapshot is in force."""

    def made(self, kind: Callable[..., Any], row: tuple[Any, ...]) -> Any:
        """``kind(*row)``, or the equal one that was made before: from one look to the next little changes."""
        key = kind, row
        found = self._objects.get(key)
        if found is None:
            if len(self._objects) > OBJECTS:
                self._objects.clear()
            found = self._objects[key] = kind(*row)
        return found

    def __init__(self, catalog: Catalog, hidden: frozenset[str] = frozenset()) -> None:
        self.catalog = catalog
        self.hidden = hidden
        """Relations (``schema.name``) that are not available: their definition is not the one that was approved."""
        self._objects: dict[object, Any] = {}
        self.before_16 = catalog.server_version < 160_000
        self.views: dict[bytes, View] = {}
        """By answer to `LOOK`."""
        self.like: dict[bytes, View] = {}
        """By the part of it about functions, operators and casts, whose indexes are dear."""
        self.relations = {key: item for key, item in catalog.relations.items() if item.oid < FIRST_NORMAL_OID}
        self.types = {key: item for key, item in catalog.types.items() if key < FIRST_NORMAL_OID}
        self.functions = {key: item for key, item in catalog.functions.items() if key < FIRST_NORMAL_OID}
        self.operators = {key: item for key, item in catalog.operators.items() if key < FIRST_NORMAL_OID}
        self.casts = {
            key: item
            for key, item in catalog.casts.items()
            if max(key) < FIRST_NORMAL_OID and item.function < FIRST_NORMAL_OID
        }


class View:
    """One answer to `LOOK`, understood; sessions that see the same share it."""

    def __init__(self, raw: bytes, built_in: BuiltIn, functions: tuple[str, ...]) -> None:
        """Raises msgspec's errors, KeyError, TypeError or ValueError for an answer of another form."""
        path, relations, parents, columns, keys, types, *code = _decode(raw)
        catalog = built_in.catalog
        make = built_in.made
        own_relations, others = _relations(relations, parents, columns, keys, make)
        own_relations = {key: item for key, item in own_relations.items() if ".".join(key) not in built_in.hidden}
        code_key = msgspec.json.encode(code)
        like = built_in.like.get(code_key)
        if like is None:
            merged = (
                {**built_in.functions, **{row[0]: _function(row) for row in _rows(code[0])}},
                {**built_in.operators, **{row[0]: Operator(*row) for row in _rows(code[1])}},
                {**built_in.casts, **{(row[0], row[1]): Cast(*row) for row in _rows(code[2])}},
            )
        else:
            before = like.resolver.catalog
            merged = before.functions, before.operators, before.casts
        snapshot = Catalog(
            hashlib.sha256(catalog.epoch.encode() + raw).hexdigest()[:32],
            catalog.server_version,
            catalog.database,
            {**built_in.relations, **own_relations},
            {**built_in.types, **{row[0]: make(Type, row) for row in _rows(types)}},
            *merged,
        )
        self.temporary = "pg_temp" in path
        self.built_in = built_in
        self.resolver: Resolver = Resolver(
            snapshot,
            functions,
            path=SessionPath(tuple(path), frozenset(others)),
            like=None if like is None else like.resolver,
        )
        self.purity: Purity = Purity(snapshot, functions) if like is None else like.purity
        _keep(built_in.like, code_key, self)


def view(raw: bytes, built_in: BuiltIn, functions: tuple[str, ...]) -> View:
    """The view that an answer to `LOOK` gives, made or kept.  Raises as `View`."""
    found = built_in.views.get(raw)
    if found is None:
        found = View(raw, built_in, functions)
        _keep(built_in.views, raw, found)
    return found


def _keep(kept: dict[bytes, View], key: bytes, found: View) -> None:
    kept[key] = found
    if len(kept) > VIEWS:
        del kept[next(iter(kept))]


def _rows(columns: list[Any]) -> Any:
    """Rows of a table that came by column; a table without a row has null for each."""
    return zip(*columns, strict=True) if columns[0] is not None else ()


def _relations(
    relations: list[Any],
    parents: list[Any],
    columns: list[Any],
    keys: list[Any],
    make: Callable[[Callable[..., Any], tuple[Any, ...]], Any],
) -> tuple[dict[tuple[str, str], Relation], set[tuple[str, str]]]:
    by_relation: dict[int, list[tuple[Any, ...]]] = {}
    for row in _rows(columns):
        by_relation.setdefault(row[0], []).append(row)
    inherits: dict[int, list[int]] = {}
    for child, parent in _rows(parents):
        inherits.setdefault(child, []).append(parent)
    by_index: dict[int, list[tuple[Any, ...]]] = {}
    for row in _rows(keys):
        by_index.setdefault(row[0], []).append(row)
    found, others = {}, set()
    for row in _rows(relations):
        oid, schema, name, kind = row[:4]
        if kind not in "rpvmf":
            others.add((schema, name))
            continue
        parts = (by_relation.get(oid, ()), inherits.get(oid, ()), by_index.get(oid, ()))
        found[schema, name] = make(_relation, (row, *map(tuple, parts)))
    return found, others


def _relation(
    row: tuple[Any, ...],
    columns: tuple[tuple[Any, ...], ...],
    parents: tuple[int, ...],
    keys: tuple[tuple[Any, ...], ...],
) -> Relation:
    oid, schema, name, kind, row_type, triggers, rules, definition, security = row
    indexes: dict[int, tuple[str, list[str], list[int], list[bool]]] = {}
    for _, index, key, column, operand, usual in keys:
        parts = indexes.setdefault(index, (key, [], [], []))
        parts[1].append(column)
        parts[2].append(operand)
        parts[3].append(usual)
    return Relation(
        oid=oid,
        schema=schema,
        name=name,
        kind=kind,
        row_type=row_type,
        columns=tuple(Column(*each[1:]) for each in columns),
        parents=parents,
        unique_keys=tuple(
            UniqueKey(key, tuple(names), tuple(operands))
            for key, names, operands, usual in indexes.values()
            if all(usual)
        ),
        has_triggers=triggers,
        has_rules=rules,
        definition_hash=definition or "",
        row_security=security,
    )


def _function(row: tuple[Any, ...]) -> Function:
    arguments = tuple(int(oid) for oid in row[4].split())
    return Function(*(*row[:4], arguments, *row[5:]))
