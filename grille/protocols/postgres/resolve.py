"""Type resolution: which operator, function, cast or type a name means (PostgreSQL, chapter 10).

It follows parse_oper.c, parse_func.c and parse_coerce.c of PostgreSQL 18, with pg_catalog alone on the search path, or
for a `SessionPath` with all schemas on it, since the path may be another when a prepared statement is planned again.
Where an operand's type is not known (None), every candidate that could be chosen for some type is returned, and the
caller must find every one of them acceptable.  The same holds where PostgreSQL would call the choice ambiguous.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final, Generic, Literal, TypeVar

import msgspec

from grille.controls import Refusal
from grille.protocols.postgres.catalog import Catalog, Function, Operator, Type
from grille.protocols.postgres.introspection import REG_TYPES

UNKNOWN: Final = 705
"""Type of an untyped string literal, of NULL and of a parameter without a declared type."""
_TEXT: Final = 25
_RECORD: Final = 2249
_RECORD_ARRAY: Final = 2287
_INT2VECTOR: Final = 22
_OIDVECTOR: Final = 30

_ANY: Final = 2276
_ANYARRAY: Final = 2277
_ANYELEMENT: Final = 2283
_ANYNONARRAY: Final = 2776
_ANYENUM: Final = 3500
_ANYRANGE: Final = 3831
_ANYMULTIRANGE: Final = 4537
_ANYCOMPATIBLE: Final = 5077
_ANYCOMPATIBLEARRAY: Final = 5078
_ANYCOMPATIBLENONARRAY: Final = 5079
_ANYCOMPATIBLERANGE: Final = 5080
_ANYCOMPATIBLEMULTIRANGE: Final = 4538

_FAMILY1: Final = frozenset({_ANYELEMENT, _ANYARRAY, _ANYNONARRAY, _ANYENUM, _ANYRANGE, _ANYMULTIRANGE})
_FAMILY2: Final = frozenset(
    {_ANYCOMPATIBLE, _ANYCOMPATIBLEARRAY, _ANYCOMPATIBLENONARRAY, _ANYCOMPATIBLERANGE, _ANYCOMPATIBLEMULTIRANGE}
)
_POLYMORPHIC: Final = _FAMILY1 | _FAMILY2
_ANY_ARRAY: Final = frozenset({_ANYARRAY, _ANYCOMPATIBLEARRAY})
_ANY_RANGE: Final = frozenset({_ANYRANGE, _ANYCOMPATIBLERANGE})
_ANY_MULTIRANGE: Final = frozenset({_ANYMULTIRANGE, _ANYCOMPATIBLEMULTIRANGE})

FIRST_NORMAL_OID: Final = 16384
"""OIDs below are assigned by initdb (transam.h)."""

CLOSED_TYPES: Final = frozenset(
    """
    regproc regprocedure regoper regoperator regclass regcollation regtype regconfig regdictionary regnamespace
    regrole regdatabase aclitem refcursor pg_node_tree pg_ndistinct pg_dependencies pg_mcv_list pg_ddl_command
    pg_brin_bloom_summary pg_brin_minmax_multi_summary gtsvector
    """.split()
)
"""Built-in types whose input or output looks names up in the catalogue, or shows stored expressions or statistics."""

Context = Literal["i", "a", "e"]
"""Implicit, assignment, explicit: each allows what the one before it does (pg_cast.castcontext)."""
_RANK: Final[dict[Context, int]] = {"i": 0, "a": 1, "e": 2}

Named = TypeVar("Named", Operator, Function)


class _Candidate(msgspec.Struct, Generic[Named], frozen=True):
    """One operator or function with the argument types that a given call would meet."""

    arguments: tuple[int, ...]
    item: Named
    variadic: bool = False


class _Generics(msgspec.Struct, frozen=True):
    """What the polymorphic arguments of one call stand for; 0 where it is not determined."""

    element: int = 0
    array: int = 0
    range: int = 0
    multirange: int = 0
    compatible: int = 0
    compatible_range: int = 0
    compatible_multirange: int = 0


class SessionPath(msgspec.Struct, frozen=True):
    """Where one session looks for names without a schema."""

    schemas: tuple[str, ...]
    """current_schemas(true): pg_temp and pg_catalog in their places."""
    others: frozenset[tuple[str, str]] = frozenset()
    """Sequences, indexes, composite types, TOAST tables: names that hide a table further on."""


class Resolver:
    """Looks names up in one snapshot.  Its indexes are built on first use and kept."""

    def __init__(
        self,
        catalog: Catalog,
        functions: Sequence[str] = (),
        *,
        path: SessionPath | None = None,
        like: Resolver | None = None,
    ) -> None:
        """`functions`: routines outside pg_catalog that may be found, ``schema.name(type,type)``.

        All overloads of such a name are considered, as PostgreSQL does; `Purity` says which may be called.  `like` is
        an earlier one, whose indexes of functions and operators are taken over if those are the same objects.
        """
        self.catalog = catalog
        self.path = path
        if like is not None and like.catalog.functions is catalog.functions:
            self._functions = like._functions
            self._own_functions = like._own_functions
        if like is not None and like.catalog.operators is catalog.operators:
            self._operators = like._operators
            self._exact_operators = like._exact_operators
            self._own_operators = like._own_operators
        self._listed = {name.partition("(")[0].strip() for name in functions}

    # Types

    def type_oids(self, types: Sequence[tuple[tuple[str, ...], bool]]) -> tuple[int, ...]:
        """OIDs of declared parameter types, each given by its name's parts and whether it is an array of that.

        Raises `Refusal` ST-04 for a type that is not available to agents.
        """
        found = []
        for names, array in types:
            known = self.type_by_name(names)
            oid = 0 if known is None else known.array if array else known.oid
            if not oid:
                raise Refusal("ST-04", f'Type "{".".join(names)}" is not available to this agent.', sqlstate="42704")
            found.append(oid)
        return tuple(found)

    def type_by_name(self, names: Sequence[str]) -> Type | None:
        """The type of these name parts.

        A single name is looked for in pg_catalog, then among the enums and domains of public.
        """
        if len(names) == 2:
            return self._types.get((names[0], names[1]))
        if len(names) != 1:
            return None
        if self.path is not None:
            return next((self._types[s, names[0]] for s in self.path.schemas if (s, names[0]) in self._types), None)
        found = self._types.get(("pg_catalog", names[0]))
        if found is None:
            found = self._types.get(("public", names[0]))
            if found is not None and found.kind not in "ed":
                return None
        return found

    def schema_of(self, name: str) -> str | None:
        """The schema in which the session finds a relation of this name, or None; None without a `SessionPath`."""
        if self.path is None:
            return None
        places = ((schema, name) for schema in self.path.schemas)
        found = (place for place in places if place in self.catalog.relations or place in self.path.others)
        return next(found, (None, ""))[0]

    def base_type(self, oid: int) -> int:
        """The type below a domain; any other type as it is (getBaseType)."""
        kind = self.catalog.types.get(oid)
        while kind is not None and kind.kind == "d":
            oid = kind.base
            kind = self.catalog.types.get(oid)
        return oid

    def common_type(self, types: Sequence[int | None]) -> int | None:
        """The type of a CASE, COALESCE, UNION or VALUES column; None if there is none or it cannot be told.

        select_common_type: chapter 10.5.
        """
        known = [kind for kind in types if kind is not None]
        if len(known) < len(types) or not known:
            return None
        return self._common(known) or None

    # Coercion

    def can_coerce(self, source: int, target: int, context: Context = "i") -> bool:
        """True if PostgreSQL would convert `source` to `target` in this context (can_coerce_type)."""
        return self._coercible((source,), (target,), context)

    def binary_coercible(self, source: int, target: int) -> bool:
        """True if a value of `source` is a value of `target` and no code runs (IsBinaryCoercible)."""
        if source == target or target in (_ANY, _ANYELEMENT, _ANYCOMPATIBLE):
            return True
        source = self.base_type(source)
        if source == target:
            return True
        kind = self.catalog.types.get(source)
        if kind is None:
            return False
        if (
            (target in _ANY_ARRAY and kind.element)
            or (target in (_ANYNONARRAY, _ANYCOMPATIBLENONARRAY) and not kind.element)
            or (target == _ANYENUM and kind.kind == "e")
            or (target in _ANY_RANGE and kind.kind == "r")
            or (target in _ANY_MULTIRANGE and kind.kind == "m")
            or (target == _RECORD and kind.kind == "c")
        ):
            return True
        cast = self.catalog.casts.get((source, target))
        return cast is not None and cast.method == "b" and cast.context == "i"

    def harmless(self, oid: int) -> bool:
        """True if an agent may have the type's input function run: on constants and parameters."""
        return self._harmless(oid)

    def castable(self, source: int | None, target: int) -> bool:
        """True if an agent may write this explicit cast: it exists, and runs only the server's own, harmless code.

        Refused are types that read the catalogue (`CLOSED_TYPES`), base types of extensions (their input functions
        are anybody's code), domains with a CHECK constraint, and casts by a function outside pg_catalog.  With
        `source` None every cast to the target must be harmless.
        """
        if not self._harmless(target):
            return False
        if source is None:
            goal = self._innermost(target)
            return all(self._built_in(cast.function) for (_, to), cast in self.catalog.casts.items() if to == goal)
        if source == UNKNOWN:
            return True
        if not self._harmless(source, output=True):
            return False
        if not self.can_coerce(source, target, "e"):
            return False
        pair = self._innermost(source), self._innermost(target)
        casts = (self.catalog.casts.get(pair), self.catalog.casts.get((self.base_type(source), self.base_type(target))))
        return all(cast is None or self._built_in(cast.function) for cast in casts)

    # Operators

    def operator(self, name: str, left: int | None, right: int | None) -> tuple[Operator, ...]:
        """The operators that ``left name right`` may mean; `left` is 0 for a prefix operator.

        () if there is none, one if PostgreSQL's rules choose it, several if an operand is None or the choice is
        ambiguous.
        """
        left, right = self._concrete(left), self._concrete(right)
        prefix = left == 0
        candidates = self._operators.get((name, prefix), ())
        if left is None or right is None:
            given = (right,) if prefix else (left, right)
            return tuple(c.item for c in candidates if self._possible(given, c.arguments))
        arguments = (right,) if prefix else (left, right)
        exact = self._exact_operator(name, prefix, arguments)
        if exact:
            return exact
        fitting = [c for c in candidates if self._coercible(arguments, c.arguments, "i")]
        return tuple(c.item for c in self._select(arguments, fitting))

    def operator_result(self, operator: Operator, left: int | None, right: int | None) -> int | None:
        """The result type of an operator for these operands, polymorphic ones resolved; None if it cannot be told."""
        if operator.left == 0:
            return self._resolved(operator.result, (operator.right,), (right,))
        return self._resolved(operator.result, (operator.left, operator.right), (left, right))

    # Functions

    def function(self, schema: str | None, name: str, arguments: Sequence[int | None]) -> tuple[Function, ...]:
        """The functions that a call with these argument types may mean; names without a schema are pg_catalog's.

        Arguments are positional.  A call like ``date('2026-01-01')`` that PostgreSQL takes for a cast gives all
        functions of that name: their result is the cast's.
        """
        own = self._own_functions.get(name, ()) if schema is None else ()
        schema = schema or "pg_catalog"
        given = tuple(self._concrete(argument) for argument in arguments)
        found = self._candidates(schema, name, len(given), own)
        types = tuple(argument for argument in given if argument is not None)
        if len(types) < len(given):
            return tuple(c.item for c in found if self._possible(given, c.arguments))
        exact = [c for c in found if c.arguments == types]
        if exact:
            return tuple(c.item for c in exact)
        if self.path is not None and len(types) == 1 and name in self._own_types:
            return ()  # a cast to a type of the database's own
        if len(types) == 1 and self._is_cast(schema, name, types[0]):
            return tuple(c.item for c in found)
        fitting = [c for c in found if self._coercible(types, c.arguments, "i")]
        return tuple(c.item for c in self._select(types, fitting))

    def functions(self, schema: str | None, name: str) -> tuple[Function, ...]:
        """All functions of a name, whatever they take; none if it may be taken for a cast."""
        own = self._own_functions.get(name, ()) if schema is None else ()
        schema = schema or "pg_catalog"
        if (schema, name) in self._types or name in self._own_types:
            return ()
        return tuple(f for f in (*self._functions.get((schema, name), ()), *own) if f.kind != "p")

    def result_type(self, function: Function, arguments: Sequence[int | None]) -> int | None:
        """The result type of a call, polymorphic ones resolved; None if it cannot be told."""
        declared = _declared(function, len(arguments))
        return None if declared is None else self._resolved(function.result, declared, arguments)

    # What leaves no trace

    def quiet_function(self, name: str) -> bool:
        """True if all functions of this name are the server's own, and none is volatile."""
        found = self._functions.get(("pg_catalog", name), ())
        own = self._own_functions.get(name)
        return bool(found) and not own and all(f.volatility != "v" and f.oid < FIRST_NORMAL_OID for f in found)

    def quiet_operator(self, name: str) -> bool:
        """True if all operators of this name are the server's own."""
        return not any(key[0] == name for key in self._own_operators)

    # Indexes

    @functools.cached_property
    def inherited(self) -> frozenset[int]:
        """OIDs of the relations that have children or partitions."""
        return frozenset(parent for relation in self.catalog.relations.values() for parent in relation.parents)

    @functools.cached_property
    def _types(self) -> dict[tuple[str, str], Type]:
        return {(kind.schema, kind.name): kind for kind in self.catalog.types.values()}

    @functools.cached_property
    def _own_types(self) -> frozenset[str]:
        return frozenset(kind.name for kind in self.catalog.types.values() if kind.oid >= FIRST_NORMAL_OID)

    @functools.cached_property
    def _multiranges(self) -> dict[int, int]:
        """Range type -> its multirange type."""
        return {kind.subtype: kind.oid for kind in self.catalog.types.values() if kind.kind == "m"}

    @functools.cached_property
    def _operators(self) -> dict[tuple[str, bool], list[_Candidate[Operator]]]:
        index: dict[tuple[str, bool], list[_Candidate[Operator]]] = {}
        for operator in self.catalog.operators.values():
            if operator.schema == "pg_catalog" or self.path is not None:
                prefix = operator.left == 0
                arguments = (operator.right,) if prefix else (operator.left, operator.right)
                index.setdefault((operator.name, prefix), []).append(_Candidate(arguments, operator))
        return index

    @functools.cached_property
    def _exact_operators(self) -> dict[tuple[str, bool, tuple[int, ...]], Operator]:
        return {
            (name, prefix, candidate.arguments): candidate.item
            for (name, prefix), candidates in self._operators.items()
            for candidate in candidates
            if candidate.item.schema == "pg_catalog"
        }

    @functools.cached_property
    def _own_operators(self) -> dict[tuple[str, bool, tuple[int, ...]], Operator]:
        """Operators outside pg_catalog, which may stand before it on a session's path."""
        return {
            (name, prefix, candidate.arguments): candidate.item
            for (name, prefix), candidates in self._operators.items()
            for candidate in candidates
            if candidate.item.schema != "pg_catalog"
        }

    @functools.cached_property
    def _functions(self) -> dict[tuple[str, str], list[Function]]:
        index: dict[tuple[str, str], list[Function]] = {}
        for function in self.catalog.functions.values():
            if function.schema == "pg_catalog" or f"{function.schema}.{function.name}" in self._listed:
                index.setdefault((function.schema, function.name), []).append(function)
        return index

    @functools.cached_property
    def _own_functions(self) -> dict[str, list[Function]]:
        """By name, functions outside pg_catalog that a call without a schema may mean."""
        index: dict[str, list[Function]] = {}
        if self.path is not None:
            for function in self.catalog.functions.values():
                if function.schema != "pg_catalog":
                    index.setdefault(function.name, []).append(function)
        return index

    # parse_oper.c and parse_func.c

    def _exact_operator(self, name: str, prefix: bool, arguments: tuple[int, ...]) -> tuple[Operator, ...]:
        """binary_oper_exact: an unknown operand is first taken to have the other's type, then that one's base."""
        assumed = False
        if not prefix and UNKNOWN in arguments and arguments != (UNKNOWN, UNKNOWN):
            known = arguments[1] if arguments[0] == UNKNOWN else arguments[0]
            arguments, assumed = (known, known), True
        found = self._exactly(name, prefix, arguments)
        if not found and assumed:
            base = self.base_type(arguments[0])
            found = self._exactly(name, prefix, (base, base))
        return found

    def _exactly(self, name: str, prefix: bool, arguments: tuple[int, ...]) -> tuple[Operator, ...]:
        key = name, prefix, arguments
        found = self._exact_operators.get(key), self._own_operators.get(key)
        return tuple(operator for operator in found if operator is not None)

    def _candidates(
        self, schema: str, name: str, count: int, own: Sequence[Function] = ()
    ) -> list[_Candidate[Function]]:
        """FuncnameGetCandidates: by number of arguments, with defaults and VARIADIC expanded."""
        kept: dict[tuple[int, ...], list[_Candidate[Function]]] = {}
        for function in (*self._functions.get((schema, name), ()), *own):
            declared = _declared(function, count)
            if declared is None or function.kind == "p":
                continue
            candidate = _Candidate(declared, function, bool(function.variadic) and count >= len(function.arguments))
            rivals = kept.setdefault(declared, [])
            if candidate.variadic and any(not rival.variadic for rival in rivals):
                continue
            if not candidate.variadic:
                rivals[:] = [rival for rival in rivals if not rival.variadic]
            rivals.append(candidate)
        return [candidate for rivals in kept.values() for candidate in rivals]

    def _is_cast(self, schema: str, name: str, source: int) -> bool:
        """True if ``name(argument)`` is taken for a cast (func_get_detail, FUNCDETAIL_COERCION)."""
        target = self._types.get((schema, name))
        if target is None or target.relation:
            return False
        if source == UNKNOWN:
            return True
        cast = self.catalog.casts.get((self.base_type(source), self.base_type(target.oid)))
        if cast is not None:
            return cast.method != "f"
        base, goal = self.catalog.types.get(self.base_type(source)), self.catalog.types[self.base_type(target.oid)]
        if base is None or base.oid == goal.oid:
            return True
        if self._array_elements(base.oid, goal.oid) is not None and self.can_coerce(base.oid, goal.oid, "e"):
            return False
        composite = base.kind == "c" or base.oid == _RECORD
        return (goal.category == "S" and not composite) or base.category == "S"

    def _select(self, arguments: tuple[int, ...], candidates: list[_Candidate[Named]]) -> list[_Candidate[Named]]:
        """func_select_candidate; all that are left where it would give up."""
        if len(candidates) < 2:
            return candidates
        inputs = tuple(self.base_type(argument) for argument in arguments)
        known = [index for index, oid in enumerate(inputs) if oid != UNKNOWN]
        unknown = [index for index, oid in enumerate(inputs) if oid == UNKNOWN]

        candidates = _best(candidates, lambda c: sum(c.arguments[i] == inputs[i] for i in known))
        if len(candidates) == 1:
            return candidates
        candidates = _best(
            candidates,
            lambda c: sum(c.arguments[i] == inputs[i] or self._preferred(c.arguments[i], inputs[i]) for i in known),
        )
        if len(candidates) == 1 or not unknown:
            return candidates

        categories: dict[int, tuple[str, bool]] = {}
        for index in unknown:
            kinds = [self._category(c.arguments[index]) for c in candidates]
            names = {category for category, _ in kinds}
            category = "S" if "S" in names else names.pop() if len(names) == 1 else None
            if category is None:
                break
            categories[index] = category, any(preferred for name, preferred in kinds if name == category)
        else:
            stripped = [
                c
                for c in candidates
                if all(
                    self._category(c.arguments[index])[0] == category
                    and (not has_preferred or self._category(c.arguments[index])[1])
                    for index, (category, has_preferred) in categories.items()
                )
            ]
            candidates = stripped or candidates
            if len(candidates) == 1:
                return candidates

        if known and len({inputs[i] for i in known}) == 1:
            assumed = (inputs[known[0]],) * len(inputs)
            matching = [c for c in candidates if self._coercible(assumed, c.arguments, "i")]
            if len(matching) == 1:
                return matching
        return candidates

    def _possible(self, given: Sequence[int | None], declared: Sequence[int]) -> bool:
        """True if a candidate could be chosen for some types in place of None."""
        return all(g in (None, UNKNOWN) or self.can_coerce(g, d) for g, d in zip(given, declared, strict=True))

    # parse_coerce.c

    def _coercible(self, sources: Sequence[int], targets: Sequence[int], context: Context) -> bool:
        """can_coerce_type"""
        generics = False
        for source, target in zip(sources, targets, strict=False):
            if source == target or target == _ANY:
                continue
            if target in _POLYMORPHIC:
                generics = True
                continue
            if source == UNKNOWN or self._has_path(source, target, context):
                continue
            one, other = self.catalog.types.get(source), self.catalog.types.get(target)
            if one is None or other is None:
                return False
            if (source == _RECORD and other.kind == "c") or (target == _RECORD and one.kind == "c"):
                continue
            if target == _RECORD_ARRAY and one.element and self._is_composite(one.element):
                continue
            return False
        return not generics or self._generics(sources, targets) is not None

    def _has_path(self, source: int, target: int, context: Context) -> bool:
        """find_coercion_pathway"""
        source, target = self.base_type(source), self.base_type(target)
        if source == target:
            return True
        cast = self.catalog.casts.get((source, target))
        if cast is not None:
            return _RANK[context] >= _RANK[cast.context]
        elements = self._array_elements(source, target)
        if elements is not None and self._has_path(*elements, context):
            return True
        return (context != "i" and self._category(target)[0] == "S") or (
            context == "e" and self._category(source)[0] == "S"
        )

    def _array_elements(self, source: int, target: int) -> tuple[int, int] | None:
        if target in (_INT2VECTOR, _OIDVECTOR):
            return None
        one, other = self.catalog.types.get(source), self.catalog.types.get(target)
        return (one.element, other.element) if one and other and one.element and other.element else None

    def _generics(self, sources: Sequence[int], targets: Sequence[int]) -> _Generics | None:
        """check_generic_type_consistency: what the polymorphic arguments stand for, or None if they disagree."""
        element = array = range_ = multirange = compatible_range = compatible_multirange = 0
        compatible: list[int] = []
        for source, target in zip(sources, targets, strict=False):
            if target not in _POLYMORPHIC or source == UNKNOWN:
                continue
            base = self.base_type(source)
            kind = self.catalog.types.get(base)
            if kind is None:
                return None
            if target in (_ANYELEMENT, _ANYNONARRAY, _ANYENUM):
                if element not in (0, source):
                    return None
                element = source
            elif target == _ANYARRAY:
                if array not in (0, base):
                    return None
                array = base
            elif target == _ANYRANGE:
                if range_ not in (0, base):
                    return None
                range_ = base
            elif target == _ANYMULTIRANGE:
                if multirange not in (0, base):
                    return None
                multirange = base
            elif target == _ANYCOMPATIBLEARRAY:
                if not kind.element:
                    return None
                compatible.append(kind.element)
            elif target == _ANYCOMPATIBLERANGE:
                if compatible_range not in (0, base) or kind.kind != "r":
                    return None
                compatible_range = base
                compatible.append(kind.subtype)
            elif target == _ANYCOMPATIBLEMULTIRANGE:
                if compatible_multirange not in (0, base) or kind.kind != "m":
                    return None
                compatible_multirange = base
                compatible.append(self._subtype(kind.subtype, "r"))
            else:
                compatible.append(source)
        if array:
            found = self.catalog.types[array].element
            if not found or element not in (0, found):
                return None
            element = found
        if multirange:
            found = self._subtype(multirange, "m")
            if not found or range_ not in (0, found):
                return None
            range_ = found
        if range_:
            found = self._subtype(range_, "r")
            if not found or element not in (0, found):
                return None
            element = found
        if _ANYNONARRAY in targets and element and self.catalog.types[self.base_type(element)].element:
            return None
        if _ANYENUM in targets and (not element or self.catalog.types[element].kind != "e"):
            return None
        common = 0
        if compatible:
            common = self._common(compatible)
            if not common or not all(self.can_coerce(kind, common) for kind in compatible):
                return None
            if _ANYCOMPATIBLENONARRAY in targets and self.catalog.types[self.base_type(common)].element:
                return None
            if compatible_multirange:
                found = self._subtype(compatible_multirange, "m")
                if compatible_range not in (0, found):
                    return None
                compatible_range = found
            if compatible_range and self._subtype(compatible_range, "r") != common:
                return None
        return _Generics(element, array, range_, multirange, common, compatible_range, compatible_multirange)

    def _resolved(self, result: int, targets: Sequence[int], sources: Sequence[int | None]) -> int | None:
        """enforce_generic_type_consistency: the actual result type."""
        if result not in _POLYMORPHIC:
            return result
        given = [self._concrete(source) for source in sources]
        known = [source for source in given if source is not None]
        if len(known) < len(given):
            return None
        found = self._generics(known, targets)
        if found is None:
            return None
        if result in _FAMILY2:
            element = found.compatible or (_TEXT if all(k == UNKNOWN for k in known) else 0)
            range_, multirange = found.compatible_range, found.compatible_multirange
        else:
            element, range_, multirange = found.element, found.range, found.multirange
        if result in _ANY_ARRAY:
            kind = self.catalog.types.get(element)
            return (found.array if result == _ANYARRAY else 0) or (kind.array if kind is not None else 0) or None
        if result in _ANY_RANGE:
            return range_ or None
        if result in _ANY_MULTIRANGE:
            return multirange or self._multiranges.get(range_)
        return element or None

    def _common(self, types: Sequence[int]) -> int:
        """select_common_type_from_oids; 0 if there is none."""
        chosen = types[0]
        if chosen != UNKNOWN and all(kind == chosen for kind in types):
            return chosen
        chosen = self.base_type(chosen)
        for kind in types[1:]:
            other = self.base_type(kind)
            if other in (UNKNOWN, chosen):
                continue
            if chosen == UNKNOWN:
                chosen = other
            elif self._category(other)[0] != self._category(chosen)[0]:
                return 0
            elif (
                not self._category(chosen)[1] and self.can_coerce(chosen, other) and not self.can_coerce(other, chosen)
            ):
                chosen = other
        return _TEXT if chosen == UNKNOWN else chosen

    # pg_type

    def _concrete(self, oid: int | None) -> int | None:
        """None for a polymorphic pseudo-type or a type that the snapshot does not have: it stands for any type."""
        if oid is None or oid in (0, UNKNOWN):
            return oid
        return None if oid in _POLYMORPHIC or oid == _ANY or oid not in self.catalog.types else oid

    def _category(self, oid: int) -> tuple[str, bool]:
        kind = self.catalog.types.get(oid)
        return ("X", False) if kind is None else (kind.category, kind.preferred)

    def _preferred(self, declared: int, given: int) -> bool:
        """IsPreferredType"""
        category, preferred = self._category(declared)
        return preferred and category == self._category(given)[0]

    def _subtype(self, oid: int, kind: str) -> int:
        found = self.catalog.types.get(oid)
        return found.subtype if found is not None and found.kind == kind else 0

    def _is_composite(self, oid: int) -> bool:
        kind = self.catalog.types.get(oid)
        return kind is not None and kind.kind == "c"

    def _innermost(self, oid: int) -> int:
        """The type below domains and arrays."""
        base = self.base_type(oid)
        kind = self.catalog.types.get(base)
        return self._innermost(kind.element) if kind is not None and kind.element else base

    def _harmless(self, oid: int, *, output: bool = False) -> bool:
        """True if the type's input (or output) function may be run for an agent."""
        kind = self.catalog.types.get(oid)
        if kind is None:
            return False
        if kind.kind == "d":
            return (output or not kind.checked) and self._harmless(kind.base, output=output)
        if kind.element:
            return self._harmless(kind.element, output=output)
        if kind.kind == "e" or (output and (kind.kind == "c" or oid == _RECORD or oid in REG_TYPES)):
            return True
        return kind.kind in "brm" and kind.oid < FIRST_NORMAL_OID and kind.name not in CLOSED_TYPES

    def _built_in(self, function: int) -> bool:
        """True for no function, or one of pg_catalog's own."""
        found = self.catalog.functions.get(function)
        return function == 0 or (found is not None and found.schema == "pg_catalog" and function < FIRST_NORMAL_OID)


def _declared(function: Function, count: int) -> tuple[int, ...] | None:
    """The argument types that a call with `count` arguments meets, or None if it cannot be called so."""
    declared = function.arguments
    if function.variadic and count >= len(declared):
        return (*declared[:-1], *([function.variadic] * (count - len(declared) + 1)))
    if len(declared) - function.defaults <= count <= len(declared):
        return declared[:count]
    return None


def _best(candidates: list[_Candidate[Named]], score: Callable[[_Candidate[Named]], int]) -> list[_Candidate[Named]]:
    """The candidates with the highest score."""
    scores = [score(candidate) for candidate in candidates]
    best = max(scores)
    return [candidate for candidate, value in zip(candidates, scores, strict=True) if value == best]
