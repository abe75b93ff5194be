"""Type resolution: which operator, function, cast or type a name means (PostgreSQL, chapter 10).

Where an operand's type is not known (None), every candidate of that name and arity is returned, and the caller must
find every one of them acceptable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from grille.protocols.postgres.catalog import Catalog, Function, Operator, Type

UNKNOWN: Final = 705
_ANY: Final = 2276
_ANYELEMENT: Final = 2283
_ANYARRAY: Final = 2277
_ANYNONARRAY: Final = 2776
_ANYENUM: Final = 3500
_ANYRANGE: Final = 3831
_ANYMULTIRANGE: Final = 4537
_COMPATIBLE: Final = 5077
_COMPATIBLE_ARRAY: Final = 5078
_COMPATIBLE_NONARRAY: Final = 5079
_COMPATIBLE_RANGE: Final = 5080
_COMPATIBLE_MULTIRANGE: Final = 4538
_RECORD: Final = 2249
_POLYMORPHIC: Final = frozenset(
    {
        _ANY,
        _ANYELEMENT,
        _ANYARRAY,
        _ANYNONARRAY,
        _ANYENUM,
        _ANYRANGE,
        _ANYMULTIRANGE,
        _COMPATIBLE,
        _COMPATIBLE_ARRAY,
        _COMPATIBLE_NONARRAY,
        _COMPATIBLE_RANGE,
        _COMPATIBLE_MULTIRANGE,
    }
)
_ELEMENTS: Final = frozenset({_ANYELEMENT, _ANYNONARRAY, _ANYENUM, _COMPATIBLE, _COMPATIBLE_NONARRAY})
_ARRAYS: Final = frozenset({_ANYARRAY, _COMPATIBLE_ARRAY})
_TEXT: Final = 25
_SPELLINGS: Final = {"int": "int4", "integer": "int4", "bigint": "int8", "smallint": "int2", "boolean": "bool"}


class Resolver:
    """Looks names up in one snapshot."""

    def __init__(self, catalog: Catalog, functions: Sequence[str] = ()) -> None:
        """`functions`: qualified names ``schema.name(...)`` outside pg_catalog that may be found."""
        self.catalog = catalog
        self._operators: dict[str, list[Operator]] = {}
        for operator in catalog.operators.values():
            if operator.schema == "pg_catalog":
                self._operators.setdefault(operator.name, []).append(operator)
        listed = {name.partition("(")[0] for name in functions}
        self._functions: dict[tuple[str, str], list[Function]] = {}
        for function in catalog.functions.values():
            if function.schema == "pg_catalog" or f"{function.schema}.{function.name}" in listed:
                self._functions.setdefault((function.schema, function.name), []).append(function)
        self._types = {(kind.schema, kind.name): kind for kind in catalog.types.values()}

    # Types

    def type_by_name(self, names: Sequence[str]) -> Type | None:
        """A type by its name parts: unqualified names are found in pg_catalog, then in public."""
        if len(names) == 2:
            return self._types.get((names[0], names[1]))
        if len(names) != 1:
            return None
        name = _SPELLINGS.get(names[0], names[0])
        return self._types.get(("pg_catalog", name)) or self._types.get(("public", name))

    def binary_coercible(self, source: int, target: int) -> bool:
        """True if a value of `source` is a value of `target` without any conversion."""
        source = self._base(source)
        if source == target:
            return True
        if target in _POLYMORPHIC:
            return self._fits_polymorphic(source, target)
        if target == _RECORD:
            kind = self.catalog.types.get(source)
            return kind is not None and kind.kind == "c"
        cast = self.catalog.casts.get((source, target))
        return cast is not None and cast.method == "b" and cast.context == "i"

    def castable(self, source: int | None, target: int) -> bool:
        """True if an explicit cast runs only built-in conversion code."""
        if source is None or source == UNKNOWN:
            return True
        base = self._base(source)
        goal = self._base(target)
        if base == goal:
            return True
        cast = self.catalog.casts.get((base, goal))
        if cast is not None:
            return cast.method != "f" or (
                cast.function in self.catalog.functions
                and (self.catalog.functions[cast.function].schema == "pg_catalog")
            )
        one, other = self.catalog.types.get(base), self.catalog.types.get(goal)
        if one is None or other is None:
            return False
        if one.element and other.element:
            return self.castable(one.element, other.element)
        return "S" in (one.category, other.category)

    def coercible(self, source: int, target: int) -> bool:
        """True if an implicit coercion exists (can_coerce_type)."""
        if source == UNKNOWN or self.binary_coercible(source, target):
            return True
        cast = self.catalog.casts.get((self._base(source), target))
        if cast is not None:
            return cast.context == "i"
        one, other = self.catalog.types.get(self._base(source)), self.catalog.types.get(target)
        if one is not None and other is not None and one.element and other.element:
            return self.coercible(one.element, other.element)
        return False

    # Operators

    def operator(self, name: str, left: int | None, right: int | None) -> tuple[Operator, ...]:
        """Candidates for ``left name right``; `left` is 0 for a prefix operator."""
        name = "<>" if name == "!=" else name
        candidates = [o for o in self._operators.get(name, ()) if (o.left == 0) == (left == 0)]
        if left is None or right is None:
            known = [
                o
                for o in candidates
                if (left is None or left == 0 or self.coercible(left, o.left))
                and (right is None or self.coercible(right, o.right))
            ]
            return tuple(known)
        left, right = self._base(left), self._base(right)
        if left == 0:
            exact = [o for o in candidates if o.right == right]
        else:
            # parse_oper.c: an unknown operand is first taken to have the other's type.
            one, other = (right if left == UNKNOWN else left), (left if right == UNKNOWN else right)
            exact = [o for o in candidates if (o.left, o.right) == (one, other)]
            if not exact and left != UNKNOWN and right != UNKNOWN and left == right:
                exact = []
        if exact:
            return (exact[0],)
        arguments = (right,) if left == 0 else (left, right)
        chosen = self._choose(arguments, [((o.right,) if o.left == 0 else (o.left, o.right), o) for o in candidates])
        return tuple(item for item in chosen if isinstance(item, Operator))

    # Functions

    def function(self, schema: str | None, name: str, arguments: Sequence[int | None]) -> tuple[Function, ...]:
        """Candidates for a call with these argument types."""
        found = self._functions.get((schema or "pg_catalog", name), [])
        count = len(arguments)
        fitting: list[tuple[tuple[int, ...], object]] = []
        for function in found:
            declared = self._declared(function, count)
            if declared is not None:
                fitting.append((declared, function))
        known = tuple(None if a is None else self._base(a) for a in arguments)
        if any(argument is None for argument in known):
            return tuple(
                item
                for declared, item in fitting
                if isinstance(item, Function)
                and all(a is None or self.coercible(a, d) for a, d in zip(known, declared, strict=True))
            )
        types = tuple(a for a in known if a is not None)
        exact = [item for declared, item in fitting if declared == types]
        if exact:
            return tuple(item for item in exact[:1] if isinstance(item, Function))
        return tuple(item for item in self._choose(types, fitting) if isinstance(item, Function))

    def result_type(self, function: Function, arguments: Sequence[int | None]) -> int | None:
        """The result type of a call, polymorphic ones resolved; None if it cannot be told."""
        result = function.result
        if result not in _POLYMORPHIC:
            return result
        declared = self._declared(function, len(arguments))
        if declared is None:
            return None
        element: int | None = None
        for kind, argument in zip(declared, arguments, strict=True):
            if argument is None:
                continue
            actual = self._base(argument)
            if kind in _ELEMENTS:
                element = _TEXT if actual == UNKNOWN else actual
                break
            if kind in _ARRAYS:
                found = self.catalog.types.get(actual)
                element = found.element or None if found is not None else None
                break
        if element is None:
            return None
        if result in _ELEMENTS:
            return element
        if result in _ARRAYS:
            found = self.catalog.types.get(element)
            return found.array or None if found is not None else None
        return None

    # The rules of chapter 10

    def _declared(self, function: Function, count: int) -> tuple[int, ...] | None:
        """The argument types that a call with `count` arguments meets, or None if it cannot be called so."""
        declared = function.arguments
        if function.variadic:
            fixed = declared[:-1]
            if count < len(fixed) or (count == len(fixed)):
                return None
            return (*fixed, *([function.variadic] * (count - len(fixed))))
        if len(declared) - function.defaults <= count <= len(declared):
            return declared[:count]
        return None

    def _choose(
        self, arguments: tuple[int, ...], candidates: Sequence[tuple[tuple[int, ...], object]]
    ) -> tuple[object, ...]:
        """func_match_argtypes and func_select_candidate (parse_func.c)."""
        fitting = [
            (declared, item)
            for declared, item in candidates
            if all(self.coercible(a, d) for a, d in zip(arguments, declared, strict=True))
        ]
        fitting = [c for c in fitting if self._consistent(arguments, c[0])]
        if len(fitting) <= 1:
            return tuple(item for _declared, item in fitting)
        known = [index for index, argument in enumerate(arguments) if argument != UNKNOWN]
        fitting = _best(fitting, lambda c: sum(c[0][i] == arguments[i] for i in known))
        if len(fitting) == 1:
            return (fitting[0][1],)
        fitting = _best(
            fitting, lambda c: sum(c[0][i] == arguments[i] or self._preferred(c[0][i], arguments[i]) for i in known)
        )
        if len(fitting) == 1:
            return (fitting[0][1],)
        for index, argument in enumerate(arguments):
            if argument != UNKNOWN:
                continue
            kinds = [self.catalog.types.get(c[0][index]) for c in fitting]
            categories = {kind.category for kind in kinds if kind is not None}
            category = "S" if "S" in categories else categories.pop() if len(categories) == 1 else None
            if category is None:
                break
            in_category = [c for c, kind in zip(fitting, kinds, strict=True) if kind and kind.category == category]
            preferred = [c for c in in_category if self.catalog.types[c[0][index]].preferred]
            fitting = preferred or in_category or fitting
        if len(fitting) == 1:
            return (fitting[0][1],)
        if known and len(known) < len(arguments):
            same = {arguments[i] for i in known}
            if len(same) == 1:
                kind = same.pop()
                assumed = [c for c in fitting if all(self.coercible(kind, d) for d in c[0])]
                if len(assumed) == 1:
                    return (assumed[0][1],)
        return tuple(item for _declared, item in fitting)

    def _consistent(self, arguments: Sequence[int], declared: Sequence[int]) -> bool:
        """True if the polymorphic arguments agree with each other."""
        element: int | None = None
        for argument, kind in zip(arguments, declared, strict=True):
            if argument == UNKNOWN or kind in (_ANY, _COMPATIBLE, _COMPATIBLE_NONARRAY):
                continue
            if kind in _ELEMENTS:
                actual: int | None = argument
            elif kind == _ANYARRAY:
                found = self.catalog.types.get(argument)
                actual = found.element if found is not None else None
            else:
                continue
            if element is not None and actual != element:
                return False
            element = actual
        return True

    def _preferred(self, declared: int, argument: int) -> bool:
        kind, own = self.catalog.types.get(declared), self.catalog.types.get(argument)
        return kind is not None and own is not None and kind.preferred and kind.category == own.category

    def _fits_polymorphic(self, source: int, target: int) -> bool:
        kind = self.catalog.types.get(source)
        if kind is None:
            return False
        if target in (_ANY, _ANYELEMENT, _COMPATIBLE):
            return True
        if target in (_ANYNONARRAY, _COMPATIBLE_NONARRAY):
            return not kind.element
        if target in _ARRAYS:
            return bool(kind.element)
        if target == _ANYENUM:
            return kind.kind == "e"
        if target in (_ANYRANGE, _COMPATIBLE_RANGE):
            return kind.kind == "r"
        return kind.kind == "m"

    def _base(self, oid: int) -> int:
        kind = self.catalog.types.get(oid)
        while kind is not None and kind.kind == "d":
            oid = kind.base
            kind = self.catalog.types.get(oid)
        return oid


def _best(candidates: list[tuple[tuple[int, ...], object]], score: object) -> list[tuple[tuple[int, ...], object]]:
    """The candidates with the highest score."""
    scores = [score(candidate) for candidate in candidates]  # type: ignore[operator]
    best = max(scores)
    return [candidate for candidate, value in zip(candidates, scores, strict=True) if value == best]
