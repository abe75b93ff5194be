"""Writes statements over the tables of schema.sql, from a grammar, by seed and number.

Expressions are typed, so that nearly every statement is one that PostgreSQL accepts.  What a statement answers is
determined by the data: a LIMIT stands on an order by all columns, an aggregate that depends on order has one, a window
function gives peers the same value.  What fails fails on marked rows only, but for a few expressions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.differential.wire import Statement

# Types: OID to declare a parameter with (an enum's goes as text), and name in SQL.
_OIDS: Final = {
    "int": 23, "big": 20, "text": 25, "bool": 16, "num": 1700, "date": 1082, "ts": 1184, "json": 3802, "float": 701,
    "mood": 25, "tags": 1009, "ints": 1007,
}  # fmt: skip
_SQL: Final = {
    "int": "integer", "big": "bigint", "text": "text", "bool": "boolean", "num": "numeric", "date": "date",
    "ts": "timestamptz", "json": "jsonb", "float": "float8", "mood": "mood", "tags": "text[]", "ints": "integer[]",
}  # fmt: skip
_COMMON: Final = ("int", "int", "text", "text", "bool", "num", "date", "mood", "ts", "big", "json", "tags")


class Column(NamedTuple):
    """Something that an expression can name."""

    sql: str
    type: str
    marked: bool = False
    """A value of a hidden row is known as such: `leak` can report it."""
    key: str = ""
    """What it identifies: columns of one kind are worth joining."""


def _columns(text: str) -> tuple[Column, ...]:
    found = []
    for word in text.split():
        name, kind, *more = word.split(":")
        found.append(Column(name, kind, "m" in more, next((m for m in more if len(m) > 1), "")))
    return tuple(found)


TABLES: Final = {
    "regions": _columns("id:int:region name:text score:int"),
    "customers": _columns(
        "id:int:m:customer tenant:text region_id:int:region name:text:m level:mood score:int amount:num day:date "
        "seen:ts tags:tags data:json active:bool code:text:m"
    ),
    "accounts": _columns(
        "id:int:m:account tenant:text customer_id:int:customer kind:text amount:num day:date active:bool rate:float "
        "parts:ints"
    ),
    "cards": _columns("id:int:m tenant:text customer_id:int:customer name:text:m active:bool score:int"),
    "events": _columns("id:int:m tenant:text account_id:int:account name:text:m score:int seen:ts"),
    "ledger": _columns("id:int:m tenant:text customer_id:int:customer day:date amount:num name:text:m"),
    "things": _columns("id:int:m tenant:text name:text:m weight:big amount:num"),
    "active_customers": _columns("id:int:m:customer tenant:text name:text:m level:mood score:int"),
    "totals": _columns("tenant:text n:big score:int name:text:m"),
}
_VIEWS: Final = ("active_customers", "totals")
_KEYED: Final = ("regions", "customers", "accounts", "cards", "things")
_WRITABLE: Final = ("customers", "accounts", "cards", "events", "ledger", "things")


@dataclass
class Script:
    """One or several statements, the latter in one transaction that is rolled back."""

    statements: list[Statement]
    number: int = 0
    commits: bool = False
    """Its writes stay: the tables of both sides are compared afterwards, and put back."""


@dataclass
class _Source:
    """A FROM item."""

    sql: str
    columns: list[Column]
    names: list[str] = field(default_factory=list)
    keyed: bool = False


class _Out(NamedTuple):
    """A column of a query."""

    name: str
    type: str
    marked: bool


VARIANTS: Final = 8
"""So many scripts in a row are the same but for their constants: a plan that is shared must not depend on them."""


def script(seed: int, number: int) -> Script:
    """The script of this number under this seed, always the same."""
    shape = random.Random(f"{seed}/{number // VARIANTS}")
    return Generator(shape, random.Random(f"{seed}/{number}/values")).script(number)


class Generator:
    """Writes with the choices of one random generator, and the constants of another."""

    def __init__(self, choice: random.Random, values: random.Random) -> None:
        self._r = choice
        self._v = values
        self._levels: list[list[Column]] = []
        self._ctes: list[tuple[str, list[_Out]]] = []
        self._count = 0
        self._types: list[int] | None = None
        self._values: list[bytes | None] = []
        self._safe = 0
        """Above 0: no sub-selects, as the place does not take them or the statement is large already."""
        self._fails = False
        """An expression may fail on rows that the agent may see."""
        self._total = False
        """ORDER BY leaves no two rows that differ in any order."""

    # Scripts

    def script(self, number: int) -> Script:
        """One script."""
        roll = self._r.random()
        if roll < 0.72:
            return Script([self._statement(self._read)], number)
        if roll < 0.76:
            return Script(self._prepared() if self._chance(0.5) else self._cursor(), number)
        if roll < 0.78:
            return Script([self._copy() for _ in range(self._r.choice((1, 1, 2)))], number, commits=True)
        if roll < 0.81:
            return Script(
                [self._statement(self._write) for _ in range(self._r.choice((1, 1, 2)))], number, commits=True
            )
        steps = [Statement("BEGIN", judged=False)]
        for _ in range(self._r.choice((1, 1, 1, 2, 2, 3, 4))):
            step = self._statement(self._write if self._chance(0.75) else self._read)
            if self._chance(0.15):
                after = self._r.choice(("ROLLBACK TO s", "RELEASE s"))
                steps += [Statement("SAVEPOINT s", judged=False), step, Statement(after, judged=False)]
            else:
                steps.append(step)
        if self._chance(0.3):
            table = self._r.choice(_WRITABLE)
            steps.append(Statement(f"SELECT * FROM {table}"))
        steps.append(Statement("ROLLBACK", judged=False))
        return Script(steps, number)

    def _prepared(self) -> list[Statement]:
        """PREPARE and EXECUTE in SQL; the statement runs often enough for a plan that is the same for all values."""
        read = self._literal_read()
        times = self._r.choice((1, 2, 6))
        return [
            Statement(f"PREPARE p AS {read.sql}", fails=read.fails),
            *[Statement("EXECUTE p", ordered=read.ordered, fails=read.fails)] * times,
            Statement("DEALLOCATE p", judged=False),
        ]

    def _cursor(self) -> list[Statement]:
        read = self._literal_read()
        steps = [
            Statement("BEGIN", judged=False),
            Statement(f"DECLARE c CURSOR FOR {read.sql}", fails=read.fails),
            Statement("ROLLBACK", judged=False),
        ]
        counts = self._r.choice(((1, 2, "ALL"), (3, "ALL"), ("ALL",))) if self._total else ("ALL",)
        steps[2:2] = [Statement(f"FETCH {count} FROM c", ordered=read.ordered, fails=read.fails) for count in counts]
        return steps

    def _literal_read(self) -> Statement:
        while True:
            read = self._statement(self._read)
            if not read.types:
                return read

    def _statement(self, write: Callable[[], tuple[str, tuple[int, ...]]]) -> Statement:
        self._levels, self._ctes, self._count, self._values, self._safe = [], [], 0, [], 0
        self._fails = False
        self._types = [] if self._chance(0.4) else None
        sql, ordered = write()
        types = tuple(self._types or ())
        simple = not types and self._chance(0.15)
        return Statement(sql, types, tuple(self._values), ordered, simple, fails=self._fails)

    def _chance(self, share: float) -> bool:
        return self._r.random() < share

    def _alias(self, prefix: str = "t") -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    # Reads

    def _read(self) -> tuple[str, tuple[int, ...]]:
        size = self._r.choice((0, 0, 1, 1, 1, 1, 2, 2, 3))
        with_clause = self._with(size) if self._chance(0.15) else ""
        self._total = False
        sql, outputs = self._query(size, top=True)
        ordered: tuple[int, ...] = ()
        if self._chance(0.5):
            order, ordered = self._order(len(outputs), total=True)
            sql += order
            self._total = True
            if self._chance(0.4):
                sql += f" LIMIT {self._number(0, 9)}" + (f" OFFSET {self._number(0, 4)}" if self._chance(0.3) else "")
        elif self._chance(0.2):
            order, ordered = self._order(len(outputs), total=False)
            sql += order
        return with_clause + sql, ordered

    def _number(self, least: int, most: int) -> str:
        value = self._v.randint(least, most)
        if self._types is not None and self._chance(0.5):
            return self._parameter(20, str(value))
        return str(value)

    def _order(self, width: int, *, total: bool) -> tuple[str, tuple[int, ...]]:
        columns = list(range(width))
        self._r.shuffle(columns)
        if not total:
            columns = columns[: self._r.randint(1, width)]
        directions, nulls = ("", "", " DESC", " ASC"), ("", "", " NULLS FIRST", " NULLS LAST")
        parts = [f"{column + 1}{self._r.choice(directions)}{self._r.choice(nulls)}" for column in columns]
        return " ORDER BY " + ", ".join(parts), tuple(columns)

    def _with(self, size: int) -> str:
        parts = []
        recursive = self._chance(0.25)
        for _ in range(self._r.choice((1, 1, 2))):
            name = self._alias("w")
            if recursive and self._chance(0.7):
                sql, outputs = self._recursive(name)
                parts.append(sql)
            else:
                sql, outputs = self._query(min(size, 2))
                hint = self._r.choice(("", "", "", "MATERIALIZED ", "NOT MATERIALIZED "))
                parts.append(f"{name} AS {hint}({sql})")
            self._ctes.append((name, outputs))
        return f"WITH {'RECURSIVE ' if recursive else ''}{', '.join(parts)} "

    def _recursive(self, name: str) -> tuple[str, list[_Out]]:
        table = self._r.choice(("accounts", "cards", "ledger"))
        first, step = self._alias(), self._alias()
        start = self._constant("int")
        union = self._r.choice(("UNION", "UNION ALL"))
        extra = ""
        self._levels.append(self._named(table, step))
        if self._chance(0.6):
            extra = f" AND {self._condition(0)}"
        self._levels.pop()
        sql = (
            f"{name}(a, b) AS (SELECT {first}.id, 1 FROM {table} {first} WHERE {first}.id <= {start} {union} "
            f"SELECT {step}.customer_id, {name}.b + 1 FROM {name} JOIN {table} {step} ON {step}.id = {name}.a "
            f"WHERE {name}.b < 4{extra})"
        )
        return sql, [_Out("a", "int", False), _Out("b", "int", False)]

    def _query(self, size: int, want: Sequence[str] | None = None, *, top: bool = False) -> tuple[str, list[_Out]]:
        """A SELECT, or several under set operations."""
        if size > 0 and self._chance(0.12):
            return self._set_operation(size, want)
        kind = self._r.choices(
            (
                self._plain,
                self._grouped,
                self._aggregated,
                self._windowed,
                self._distinct,
                self._distinct_on,
                self._by_key,
            ),
            (50, 14, 8, 8, 7, 5, 4),
        )[0]
        if want is not None and kind in (self._windowed, self._by_key):
            kind = self._plain
        return kind(size, want, top)

    def _set_operation(self, size: int, want: Sequence[str] | None) -> tuple[str, list[_Out]]:
        want = want or [self._r.choice(_COMMON) for _ in range(self._r.randint(1, 3))]
        left, one = self._query(size - 1, want)
        right, other = self._values_query(want) if self._chance(0.15) else self._query(size - 1, want)
        operator = self._r.choice(
            ("UNION", "UNION ALL", "UNION ALL", "INTERSECT", "EXCEPT", "INTERSECT ALL", "EXCEPT ALL")
        )
        outputs = [_Out(a.name, a.type, a.marked and b.marked) for a, b in zip(one, other, strict=True)]
        return f"({left}) {operator} ({right})", outputs

    def _values_query(self, want: Sequence[str]) -> tuple[str, list[_Out]]:
        rows = [", ".join(self._cast_constant(kind) for kind in want) for _ in range(self._r.randint(1, 3))]
        return "VALUES " + ", ".join(f"({row})" for row in rows), [
            _Out(f"column{n + 1}", kind, False) for n, kind in enumerate(want)
        ]

    def _targets(self, size: int, want: Sequence[str] | None, top: bool) -> tuple[list[str], list[_Out]]:
        kinds = list(want) if want is not None else self._kinds(4)
        texts, outputs = [], []
        for position, kind in enumerate(kinds):
            column = self._column(kind, marked=self._chance(0.3))
            if column is not None and self._chance(0.6):
                text, marked = column.sql, column.marked
                if marked and kind in ("int", "text") and self._chance(0.25):
                    text = f"public.leak({text})"
            else:
                text, marked = self._expression(kind, min(size, 2)), False
            name = f"c{position + 1}"
            texts.append(text if top and self._chance(0.4) else f"{text} AS {name}")
            outputs.append(_Out(name, kind, marked))
        return texts, outputs

    def _plain(self, size: int, want: Sequence[str] | None, top: bool) -> tuple[str, list[_Out]]:
        source = self._from(size)
        self._levels.append(source.columns)
        if top and want is None and self._chance(0.08):
            targets, outputs = ["*"], [_Out(name, "text", False) for name in source.names]
        else:
            targets, outputs = self._targets(size, want, top)
        where = self._where(size)
        self._levels.pop()
        lock = ""
        if top and self._chance(0.12) and not self._ctes:
            lock = self._r.choice((" FOR UPDATE", " FOR SHARE", " FOR UPDATE SKIP LOCKED", " FOR NO KEY UPDATE"))
        sql = f"SELECT {', '.join(targets)} FROM {source.sql}{where}"
        if not top and self._chance(0.15):
            order, _ = self._order(len(outputs), total=True)
            sql += f"{order} LIMIT {self._r.randint(1, 6)}"
        elif lock and len(outputs) == len(targets) and targets != ["*"]:
            sql += lock if source.keyed else ""
        return sql, outputs

    def _grouped(self, size: int, want: Sequence[str] | None, top: bool) -> tuple[str, list[_Out]]:
        source = self._from(size)
        self._levels.append(source.columns)
        kinds = list(want) if want is not None else self._kinds(3)
        targets, outputs, keys, group = [], [], [], []
        for position, kind in enumerate(kinds):
            name = f"c{position + 1}"
            if self._chance(0.5):
                column = self._column(kind)
                literal, self._types = self._types, None  # one parameter in two places is two expressions
                text = column.sql if column is not None and self._chance(0.7) else self._expression(kind, 1, plain=True)
                self._types = literal
                if column is None or text != column.sql or self._chance(0.3):
                    group.append(str(position + 1) if self._chance(0.6) else text)
                else:
                    group.append(text)
                keys.append(text)
                marked = column is not None and column.marked and text == column.sql
            else:
                text, marked = self._aggregate(kind, min(size, 1)), False
            targets.append(f"{text} AS {name}")
            outputs.append(_Out(name, kind, marked))
        group = [each for each in group if each.isdigit() or _is_name(each) or "(" in each]
        if len(group) < len(keys):
            group = [str(n + 1) for n, target in enumerate(targets) if target.rpartition(" AS ")[0] in keys]
        where = self._where(size)
        clause = ""
        named = list(dict.fromkeys(key for key in keys if _is_name(key)))
        if len(named) == len(keys) > 0 and self._chance(0.2):
            clause = f" GROUP BY {self._r.choice(('ROLLUP', 'CUBE', 'GROUPING SETS'))} ({', '.join(named)})"
        elif group:
            clause = f" GROUP BY {', '.join(dict.fromkeys(group))}"
        if self._chance(0.4):
            left = self._aggregate("int", 0)
            clause += f" HAVING {left} {self._comparison()} {self._constant('int')}"
            if self._chance(0.4):
                clause += f" {self._r.choice(('AND', 'OR'))} {self._aggregate('bool', 1)}"
            if keys and self._chance(0.4):
                clause += f" AND {self._r.choice(keys)} IS NOT NULL"
        self._levels.pop()
        return f"SELECT {', '.join(targets)} FROM {source.sql}{where}{clause}", outputs

    def _aggregated(self, size: int, want: Sequence[str] | None, top: bool) -> tuple[str, list[_Out]]:
        source = self._from(size)
        self._levels.append(source.columns)
        kinds = list(want) if want is not None else self._kinds(3)
        targets = [f"{self._aggregate(kind, min(size, 1))} AS c{n + 1}" for n, kind in enumerate(kinds)]
        where = self._where(size)
        self._levels.pop()
        return f"SELECT {', '.join(targets)} FROM {source.sql}{where}", [
            _Out(f"c{n + 1}", kind, False) for n, kind in enumerate(kinds)
        ]

    def _windowed(self, size: int, _want: Sequence[str] | None, top: bool) -> tuple[str, list[_Out]]:
        source = self._from(size)
        self._levels.append(source.columns)
        targets, outputs = self._targets(size, None, top)
        named = self._chance(0.2)
        window = self._window(source)
        for _ in range(self._r.randint(1, 2)):
            name = f"c{len(targets) + 1}"
            kind, call = self._window_call()
            over = "w" if named else f"({window if self._chance(0.5) else self._window(source)})"
            targets.append(f"{call} OVER {over} AS {name}")
            outputs.append(_Out(name, kind, False))
        where = self._where(size)
        self._levels.pop()
        clause = f" WINDOW w AS ({window})" if named else ""
        return f"SELECT {', '.join(targets)} FROM {source.sql}{where}{clause}", outputs

    def _window(self, source: _Source) -> str:
        parts = []
        if self._chance(0.5):
            parts.append(f"PARTITION BY {self._expression(self._r.choice(_COMMON), 0)}")
        column = self._r.choice(source.columns)
        parts.append(f"ORDER BY {column.sql}{self._r.choice(('', ' DESC', ' NULLS FIRST'))}")
        if self._chance(0.2):
            parts.append("RANGE BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING")
        return " ".join(parts)

    def _window_call(self) -> tuple[str, str]:
        """A call that gives peers the same value."""
        if self._chance(0.5):
            return self._r.choice(
                (("big", "rank()"), ("big", "dense_rank()"), ("big", "count(*)"), ("float", "percent_rank()"))
            )
        if self._chance(0.5):
            column = self._column("int") or Column("1", "int")
            filtered = f" FILTER (WHERE {self._condition(0)})" if self._chance(0.3) else ""
            return "big", f"sum({column.sql}){filtered}"
        kind = self._r.choice(("int", "text", "date", "num"))
        return kind, f"{self._r.choice(('min', 'max'))}({self._expression(kind, 0)})"

    def _distinct(self, size: int, want: Sequence[str] | None, top: bool) -> tuple[str, list[_Out]]:
        source = self._from(size)
        self._levels.append(source.columns)
        targets, outputs = self._targets(size, want, top)
        where = self._where(size)
        self._levels.pop()
        return f"SELECT DISTINCT {', '.join(targets)} FROM {source.sql}{where}", outputs

    def _distinct_on(self, size: int, want: Sequence[str] | None, top: bool) -> tuple[str, list[_Out]]:
        source = self._from(size)
        self._levels.append(source.columns)
        targets, outputs = self._targets(size, want, False)
        where = self._where(size)
        self._levels.pop()
        first = self._r.randint(1, len(targets))
        ordinals = ", ".join(str(n + 1) for n in range(first))
        order = ", ".join(f"{n + 1}{self._r.choice(('', ' DESC'))}" for n in range(len(targets)))
        sql = f"SELECT DISTINCT ON ({ordinals}) {', '.join(targets)} FROM {source.sql}{where} ORDER BY {order}"
        return f"SELECT * FROM ({sql}) {self._alias('d')}", outputs

    def _by_key(self, size: int, _want: Sequence[str] | None, top: bool) -> tuple[str, list[_Out]]:
        """GROUP BY on a primary key, with columns that depend on it."""
        table = self._r.choice([name for name in _KEYED if name != "things"])
        alias = self._alias()
        own = self._named(table, alias)
        shown = self._r.sample(own, self._r.randint(1, 3))
        other, other_alias = self._r.choice(("accounts", "ledger", "cards")), self._alias()
        joined = self._named(other, other_alias)
        key = next((column for column in joined if column.key == "customer"), joined[0])
        self._levels.append(joined)
        call = self._aggregate("big", 0)
        self._levels.pop()
        self._levels.append(own)
        where = self._where(min(size, 1))
        having = f" HAVING count(*) {self._comparison()} {self._constant('int')}" if self._chance(0.3) else ""
        self._levels.pop()
        targets = [f"{column.sql} AS c{n + 1}" for n, column in enumerate(shown)] + [f"{call} AS c{len(shown) + 1}"]
        outputs = [_Out(f"c{n + 1}", column.type, column.marked) for n, column in enumerate(shown)]
        outputs.append(_Out(f"c{len(shown) + 1}", "big", False))
        join = self._r.choice(("JOIN", "LEFT JOIN"))
        return (
            f"SELECT {', '.join(targets)} FROM {table} {alias} {join} {other} {other_alias} ON {key.sql} = {alias}.id"
            f"{where} GROUP BY {alias}.id{having}"
        ), outputs

    # FROM

    def _named(self, table: str, alias: str) -> list[Column]:
        return [Column(f"{alias}.{c.sql}", c.type, c.marked, c.key) for c in TABLES[table]]

    def _from(self, size: int) -> _Source:
        """A FROM clause; what it makes visible is in the columns."""
        count = self._r.choices(
            (1, 2, 3, 4, 5), ((60, 40, 0, 0, 0), (50, 35, 10, 5, 0), (35, 35, 18, 8, 4))[min(size, 2)]
        )[0]
        result = self._item(size)
        loose = 0
        for _ in range(count - 1):
            lateral = size > 0 and self._chance(0.12)
            if lateral:
                self._levels.append(result.columns)
                right = self._lateral(size)
                self._levels.pop()
            else:
                right = self._item(size - 1)
            result, free = self._join(result, right, loose=loose < 1, lateral=lateral)
            loose += free
        return result

    def _item(self, size: int) -> _Source:
        roll = self._r.random()
        if self._ctes and roll < 0.35:
            name, outputs = self._r.choice(self._ctes)
            alias = self._alias()
            return _Source(f"{name} {alias}", [Column(f"{alias}.{o.name}", o.type, o.marked) for o in outputs],
                           [o.name for o in outputs])  # fmt: skip
        if size > 0 and self._safe == 0 and roll < 0.5:
            sql, outputs = self._query(size - 1)
            alias = self._alias("q")
            return _Source(f"({sql}) {alias}", [Column(f"{alias}.{o.name}", o.type, o.marked) for o in outputs],
                           [o.name for o in outputs])  # fmt: skip
        if roll > 0.97:
            kinds = [self._r.choice(_COMMON) for _ in range(self._r.randint(1, 2))]
            sql, _ = self._values_query(kinds)
            alias = self._alias("v")
            names = [f"x{n + 1}" for n in range(len(kinds))]
            return _Source(f"({sql}) {alias}({', '.join(names)})",
                           [Column(f"{alias}.{n}", k) for n, k in zip(names, kinds, strict=True)], names)  # fmt: skip
        if roll > 0.94:
            alias = self._alias("g")
            if roll > 0.96:
                series = ", ".join(f"generate_series(1, {self._r.randint(1, 9)})" for _ in range(2))
                return _Source(f"ROWS FROM ({series}) {alias}(n, m)",
                               [Column(f"{alias}.n", "int"), Column(f"{alias}.m", "int")], ["n", "m"])  # fmt: skip
            return _Source(
                f"generate_series(1, {self._r.randint(1, 9)}) {alias}(n)", [Column(f"{alias}.n", "int")], ["n"]
            )
        table = self._r.choices(tuple(TABLES), (5, 30, 22, 12, 12, 12, 12, 6, 3))[0]
        alias = self._alias() if self._chance(0.8) else f"{table}_{self._alias()}"
        only = "ONLY " if table == "things" and self._chance(0.15) else ""
        return _Source(
            f"{only}{table} {alias}", self._named(table, alias), [c.sql for c in TABLES[table]], table in _KEYED
        )

    def _lateral(self, size: int) -> _Source:
        alias = self._alias("l")
        tags, ints = self._column("tags"), self._column("ints")
        if tags is not None and self._chance(0.3):
            return _Source(f"unnest({tags.sql}) {alias}(x)", [Column(f"{alias}.x", "text")], ["x"])
        number, text = self._column("int"), self._column("text")
        if number is not None and text is not None and self._chance(0.2):
            return _Source(f"unnest(ARRAY[{number.sql}, 1], ARRAY[{text.sql}]) {alias}(x, y)",
                           [Column(f"{alias}.x", "int", number.marked), Column(f"{alias}.y", "text", text.marked)],
                           ["x", "y"])  # fmt: skip
        if ints is not None and self._chance(0.3):
            return _Source(f"unnest({ints.sql}) WITH ORDINALITY {alias}(x, o)",
                           [Column(f"{alias}.x", "int"), Column(f"{alias}.o", "big")], ["x", "o"])  # fmt: skip
        sql, outputs = self._query(size - 1)
        return _Source(f"LATERAL ({sql}) {alias}", [Column(f"{alias}.{o.name}", o.type, o.marked) for o in outputs],
                       [o.name for o in outputs])  # fmt: skip

    def _join(self, left: _Source, right: _Source, *, loose: bool, lateral: bool) -> tuple[_Source, bool]:
        both = [name for name in left.names if right.names.count(name) == 1 and left.names.count(name) == 1]
        typed = [
            name for name in both
            if _typed(left, name) is not None and _typed(left, name) == _typed(right, name)
        ]  # fmt: skip
        columns = left.columns + right.columns
        names = left.names + right.names
        kinds = (
            ("JOIN", "LEFT JOIN") if lateral else ("JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN")
        )
        kind = self._r.choice(kinds)
        natural = typed and len(typed) == len(both) and "LATERAL" not in right.sql
        if self._chance(0.8):  # of other types no equality is leakproof, or no join by it is worth much
            typed = [name for name in typed if _typed(left, name) in ("int", "text", "num", "date", "ts", "big")]
        if natural and self._chance(0.12):
            return self._merged(left, right, f"{left.sql} NATURAL {kind} {right.sql}", both), False
        if typed and self._chance(0.15):
            using = self._r.sample(typed, self._r.randint(1, min(2, len(typed))))
            return self._merged(left, right, f"{left.sql} {kind} {right.sql} USING ({', '.join(using)})", using), False
        if loose and self._chance(0.1):
            comma = self._r.choice((" CROSS JOIN ", ", ")) if " JOIN " not in left.sql else " CROSS JOIN "
            return _Source(f"{left.sql}{comma}{right.sql}", columns, names), True
        pairs = [(a, b) for a in left.columns for b in right.columns if a.type == b.type and a.key and a.key == b.key]
        if kind == "FULL JOIN" and not pairs and self._chance(0.9):
            kind = "LEFT JOIN"  # on other columns it can seldom be joined at all
        pairs = pairs or [(a, b) for a in left.columns for b in right.columns if a.type == b.type and a.type != "json"]
        free = not pairs
        self._levels.append(columns)
        if pairs and (kind == "FULL JOIN" or not self._chance(0.1)):
            one, other = self._r.choice(pairs)
            condition = f"{one.sql} = {other.sql}"
            if self._chance(0.05 if kind == "FULL JOIN" else 0.3):
                condition += f" {self._r.choice(('AND', 'AND', 'AND', 'OR'))} {self._condition(1)}"
        elif loose:
            condition, free = self._condition(1), True
        else:
            condition, free = "false", False
        self._levels.pop()
        left_sql = (
            left.sql if "," not in left.sql.split("(")[0] else f"(SELECT 1) {self._alias()} CROSS JOIN {left.sql}"
        )
        return _Source(f"{left_sql} {kind} {right.sql} ON {condition}", columns, names), free

    def _merged(self, left: _Source, right: _Source, sql: str, using: Sequence[str]) -> _Source:
        """The merged columns lose their qualifier; those of either side may still be named with it."""
        merged = [Column(name, _typed(left, name) or "text") for name in using if _typed(left, name)]
        names = [*using, *(n for n in left.names if n not in using), *(n for n in right.names if n not in using)]
        return _Source(sql, [*merged, *left.columns, *right.columns], names)

    def _where(self, size: int) -> str:
        if self._chance(0.25):
            return ""
        return f" WHERE {self._condition(min(size, 2) + 1)}"

    # Expressions

    def _column(self, kind: str, *, marked: bool = False) -> Column | None:
        """A visible column of this type, mostly of the innermost level."""
        levels = self._levels
        if not levels:
            return None
        level = levels[-1] if len(levels) == 1 or not self._chance(0.2) else self._r.choice(levels)
        found = [c for c in level if c.type == kind and (c.marked or not marked)]
        return self._r.choice(found) if found else None

    def _kinds(self, most: int) -> list[str]:
        """Some types, mostly of columns that can be named."""
        seen = [column.type for column in self._levels[-1] if column.type in _COMMON]
        return [
            self._r.choice(seen) if seen and self._chance(0.8) else self._r.choice(_COMMON)
            for _ in range(self._r.randint(1, most))
        ]

    def _parameter(self, oid: int, value: str) -> str:
        assert self._types is not None
        self._types.append(oid)
        self._values.append(value.encode())
        return f"${len(self._types)}"

    def _value(self, kind: str) -> str:
        r = self._v
        match kind:
            case "int" | "big":
                return str(r.choice((r.randint(0, 6), r.randint(1, 12), r.randint(0, 40), r.randint(1013, 1036))))
            case "num":
                return f"{r.randint(0, 300)}.{r.choice((0, 25, 5, 75))}"
            case "float":
                return f"{r.randint(0, 2)}.{r.choice((0, 25, 5))}"
            case "text":
                return r.choice(("a", "b", "ann 1", f"ann {r.randint(1, 12)}", "loan", "giro", "v1", "t0", "t1", "",
                                 "7", "north", f"hid {r.randint(13, 36)}", "zz"))  # fmt: skip
            case "bool":
                return r.choice(("true", "false"))
            case "date":
                return f"2020-0{r.randint(1, 3)}-{r.randint(1, 28):02d}"
            case "ts":
                return f"2020-01-0{r.randint(1, 5)} {r.randint(0, 23):02d}:00:00+00"
            case "json":
                return r.choice(('{"k": "v1"}', '{"n": "2"}', "{}", '{"list": [1]}', '"v2"', "[0, 1]"))
            case "mood":
                return r.choice(("low", "mid", "high"))
            case "tags":
                return r.choice(("{}", "{t0}", "{t1,t2}", "{t2,NULL}"))
            case _:
                return r.choice(("{}", "{1}", "{0,2,NULL}"))

    def _constant(self, kind: str, *, bare: bool = False) -> str:
        """A literal as an application writes it, or a parameter; ``bare``: its type follows from what is beside it."""
        value = self._value(kind)
        if self._types is not None and self._chance(0.75):
            text = self._parameter(_OIDS[kind], value)
            return f"{text}::mood" if kind == "mood" else text
        if kind in ("int", "num", "bool"):
            return value
        return f"'{value}'" if kind == "text" or (bare and self._chance(0.8)) else f"'{value}'::{_SQL[kind]}"

    def _cast_constant(self, kind: str) -> str:
        text = self._constant(kind)
        return text if "::" in text or kind in ("int", "bool") or text.startswith("$") else f"{text}::{_SQL[kind]}"

    def _leaf(self, kind: str) -> str:
        column = self._column(kind)
        if column is None and kind == "big":
            column = self._column("int")
            return f"{column.sql}::bigint" if column is not None else self._cast_constant(kind)
        if column is None:
            return self._cast_constant(kind)
        if column.marked and kind in ("int", "text") and self._chance(0.25):
            return f"public.leak({column.sql})"
        if self._chance(0.85):
            alias, dot, name = column.sql.partition(".")
            return f"({alias}).{name}" if dot and self._chance(0.03) else column.sql
        return self._cast_constant(kind)

    def _expression(self, kind: str, depth: int, *, plain: bool = False) -> str:
        """An expression of this type; ``plain``: without sub-selects."""
        if depth <= 0 or self._chance(0.25):
            return self._leaf(kind)
        self._safe += plain
        try:
            return self._compound(kind, depth - 1)
        finally:
            self._safe -= plain

    def _compound(self, kind: str, depth: int) -> str:
        e: Callable[[str], str] = lambda k: self._expression(k, depth)  # noqa: E731
        general: list[Callable[[], str]] = [
            lambda: f"COALESCE({self._leaf(kind)}, {e(kind)})",
            lambda: f"CASE WHEN {self._condition(depth)} THEN {e(kind)} ELSE {e(kind)} END",
            lambda: f"CASE {self._leaf('int')} WHEN {self._constant('int')} THEN {e(kind)} END",
            lambda: f"NULLIF({self._leaf(kind)}, {e(kind)})",
        ]
        if self._safe == 0 and self._chance(0.35):
            return self._scalar(kind, depth)
        special: dict[str, list[Callable[[], str]]] = {
            "int": [
                lambda: f"{e('int')} {self._r.choice('+-')} {self._constant('int')}",
                lambda: f"{self._leaf('int')} % 7",
                lambda: f"abs({e('int')})",
                lambda: f"length({e('text')})",
                lambda: f"cardinality({self._leaf('tags')})",
                lambda: f"({self._leaf('date')} - {self._constant('date')})",
                lambda: f"GREATEST({e('int')}, {self._leaf('int')})",
                lambda: f"date_part('day', {self._leaf('ts')})::int",
                lambda: f"({self._leaf('ints')})[{self._r.randint(1, 3)}]",
            ],
            "big": [lambda: f"{e('big')} + 1", lambda: f"{self._leaf('int')} * {self._leaf('big')}"],
            "text": [
                lambda: f"{self._r.choice(('lower', 'upper', 'trim', 'reverse', 'initcap'))}({e('text')})",
                lambda: f"({e('text')} || {self._leaf('text')})",
                lambda: f"substr({self._leaf('text')}, {self._r.randint(1, 4)}, {self._r.randint(0, 5)})",
                lambda: f"({self._leaf('int')})::text",
                self._whole,
                lambda: f"({self._leaf('mood')})::text",
                lambda: f"({self._leaf('json')} ->> 'k')",
                lambda: f"({self._leaf('tags')})[1]",
                lambda: f"replace({self._leaf('text')}, 'ann', 'x')",
                lambda: f"concat(VARIADIC ARRAY[{self._leaf('text')}, {self._leaf('text')}])",
                lambda: f"array_to_string({self._leaf('tags')}, ',')",
                lambda: f"to_char({self._leaf('date')}, 'YYYY-MM')",
            ],
            "bool": [lambda: self._condition(depth)],
            "num": [
                lambda: f"{e('num')} {self._r.choice('+-*')} {self._constant('num')}",
                lambda: f"round({e('num')}, 1)",
                lambda: f"({self._leaf('int')})::numeric",
                lambda: f"({self._leaf('num')} / {self._r.choice((2, 4, 8))})",
            ],
            "float": [lambda: f"{e('float')} * 2"],
            "date": [
                lambda: f"{self._leaf('date')} + {self._r.randint(0, 9)}",
                lambda: f"({self._leaf('ts')})::date",
                lambda: f"LEAST({e('date')}, {self._leaf('date')})",
            ],
            "ts": [
                lambda: f"date_trunc('day', {e('ts')})",
                lambda: f"{self._leaf('ts')} + interval '{self._r.randint(1, 9)} hours'",
            ],
            "json": [
                lambda: f"({self._leaf('json')} -> 'list')",
                lambda: f"jsonb_build_object('a', {self._leaf('int')}, 'b', {self._leaf('text')})",
                lambda: f"({self._leaf('json')} || {self._cast_constant('json')})",
                lambda: f"to_jsonb({self._leaf('int')})",
            ],
            "tags": [
                lambda: f"ARRAY[{self._leaf('text')}, {self._leaf('text')}]",
                lambda: f"({self._leaf('tags')} || {self._cast_constant('tags')})",
                lambda: f"array_append({self._leaf('tags')}, {self._leaf('text')})",
                lambda: f"string_to_array({self._leaf('text')}, ' ')",
            ],
            "ints": [lambda: f"ARRAY[{self._leaf('int')}, {self._leaf('int')}]"],
            "mood": [lambda: f"GREATEST({self._leaf('mood')}, {self._leaf('mood')})"],
        }
        own = special.get(kind, [])
        return self._r.choice(general if not own or self._chance(0.25) else own)()

    def _whole(self) -> str:
        """A row of a table in scope, as text."""
        column = self._column("int")
        if column is None or "." not in column.sql:
            return self._leaf("text")
        return f"format('%s', ROW({column.sql.partition('.')[0]}.*))"

    def _scalar(self, kind: str, depth: int) -> str:
        """A sub-select of one value."""
        if self._chance(0.5):
            sql, _ = self._aggregated(min(depth, 1), [kind], False)
            return f"({sql})"
        sql, _ = self._plain(min(depth, 1), [kind], True)
        if " FOR " in sql or " LIMIT " in sql:
            sql, _ = self._aggregated(min(depth, 1), [kind], False)
            return f"({sql})"
        return f"({sql} ORDER BY 1 LIMIT 1)"

    def _comparison(self) -> str:
        return self._r.choice(("=", "=", "=", "<>", "<", "<=", ">", ">="))

    def _condition(self, depth: int) -> str:
        """A boolean expression."""
        roll = self._r.random()
        if depth > 0 and roll < 0.3:
            parts = [self._condition(depth - 1) for _ in range(self._r.choice((2, 2, 3)))]
            return "(" + f" {self._r.choice(('AND', 'AND', 'OR'))} ".join(parts) + ")"
        if depth > 0 and roll < 0.36:
            return (
                f"NOT {self._condition(depth - 1)}"
                if self._chance(0.5)
                else f"({self._condition(depth - 1)}) IS NOT TRUE"
            )
        if depth > 0 and self._safe == 0 and roll < 0.55:
            return self._sub_condition(depth)
        if roll < 0.66:
            return self._leaky()
        return self._simple(depth)

    def _simple(self, depth: int) -> str:
        kind = self._r.choice(("int", *self._kinds(1))) if self._levels else "int"
        column = self._column(kind)
        named = column is not None and self._chance(0.75)
        left = column.sql if column is not None and named else self._expression(kind, min(depth, 1))
        other = self._column(kind)
        match self._r.randint(0, 11):
            case 0 | 1 | 2 | 3:
                right = other.sql if other is not None and self._chance(0.3) else self._constant(kind, bare=named)
                return f"{left} {self._comparison()} {right}"
            case 4:
                return f"{left} IS {self._r.choice(('', 'NOT '))}NULL"
            case 5:
                listed = ", ".join(self._constant(kind, bare=named) for _ in range(self._r.randint(1, 4)))
                return f"{left} {self._r.choice(('IN', 'IN', 'NOT IN'))} ({listed})"
            case 6:
                least, most = self._constant(kind, bare=named), self._constant(kind, bare=named)
                return f"{left} {self._r.choice(('', 'NOT '))}BETWEEN {least} AND {most}"
            case 7:
                return f"{left} IS {self._r.choice(('', 'NOT '))}DISTINCT FROM {self._cast_constant(kind)}"
            case 8:
                matched = self._column("text")
                pattern = self._r.choice(("ann%", "%1", "h_d%", "%a%", "_"))
                value = matched.sql if matched else self._leaf("text")
                return f"{value} {self._r.choice(('LIKE', 'NOT LIKE', 'ILIKE'))} '{pattern}'"
            case 9:
                kinds = ("int", "text") if kind not in ("int", "text") else (kind,)
                chosen = self._r.choice(kinds)
                array = "ints" if chosen == "int" else "tags"
                held = self._column(array)
                values = held.sql if held and self._chance(0.5) else self._cast_constant(array)
                return f"{self._leaf(chosen)} = ANY ({values})"
            case 10:
                tags, json = self._column("tags"), self._column("json")
                if json is not None and self._chance(0.5):
                    return self._r.choice(
                        (f'{json.sql} @> \'{{"k": "v1"}}\'', f"{json.sql} ? 'n'", f"{json.sql} ->> 'k' = 'v2'")
                    )
                if tags is not None:
                    return f"{tags.sql} {self._r.choice(('@>', '&&', '<@'))} {self._cast_constant('tags')}"
                return f"{left} = {self._cast_constant(kind)}"
            case _:
                flag = self._column("bool")
                return flag.sql if flag is not None else f"{left} IS NOT NULL"

    def _sub_condition(self, depth: int) -> str:
        """EXISTS, IN, a quantified comparison or a comparison with a scalar."""
        size = min(depth, 2) - 1
        kind = self._r.choice(("int", "int", "text", "date", "mood", "num"))
        match self._r.randint(0, 5):
            case 0 | 1:
                sql, _ = self._plain(size, None, False)
                return f"{self._r.choice(('', '', 'NOT '))}EXISTS ({sql})"
            case 2 | 3:
                sql, _ = self._query(size, [kind])
                return f"{self._leaf(kind)} {self._r.choice(('IN', 'IN', 'NOT IN'))} ({sql})"
            case 4:
                sql, _ = self._query(size, [kind])
                return f"{self._leaf(kind)} {self._comparison()} {self._r.choice(('ANY', 'ALL', 'SOME'))} ({sql})"
            case _:
                return f"{self._leaf(kind)} {self._comparison()} {self._scalar(kind, size)}"

    def _leaky(self) -> str:
        """A condition that reports, or fails, if it comes to see a marked row; few fail on others."""
        number, text = self._column("int", marked=True), self._column("text", marked=True)
        if (number is not None or text is not None) and self._chance(0.35):
            if text is None or (number is not None and self._chance(0.5)):
                assert number is not None
                return f"public.{self._r.choice(('sees', 'sees', 'watches'))}({number.sql})"
            return f"public.sees({text.sql})"
        roll = self._r.random()
        if number is not None and roll < 0.3:
            return f"public.leak({number.sql}) {self._comparison()} {self._constant('int')}"
        if text is not None and roll < 0.5:
            return self._r.choice(
                (f"public.leak({text.sql}) {self._comparison()} {self._constant('text')}",
                 f"public.leak({text.sql}) IS NOT NULL", f"public.leak({text.sql}) LIKE 'a%'")
            )  # fmt: skip
        if number is not None and roll < 0.75:
            hidden = self._r.randint(1013, 1036)
            return self._r.choice(
                (f"10 / ({number.sql} - {hidden}) <= 0", f"{hidden} % ({hidden} - {number.sql}) >= 0",
                 f"substr('abc', 1, {self._r.randint(1013, 1030)} - {number.sql}) <> 'x'",
                 f"sqrt(1020 - {number.sql}) > 0")
            )  # fmt: skip
        data = self._column("json")
        if data is not None and data.sql.endswith(".data") and roll < 0.88:
            return f"({data.sql} ->> 'n')::int {self._comparison()} {self._constant('int')}"
        code = self._column("text")
        if code is not None and code.sql.endswith(".code") and roll < 0.97:
            return f"({code.sql})::int {self._comparison()} {self._constant('int')}"
        if self._chance(0.1):
            self._fails = True
            return f"10 / ({self._leaf('int')} - {self._r.randint(1, 6)}) > 0"
        return f"length({self._leaf('text')}) > {self._r.randint(0, 6)}"

    def _aggregate(self, kind: str, depth: int) -> str:
        """An aggregate whose value does not depend on the order of its input."""
        self._safe += 1
        argument: Callable[[str], str] = lambda k: self._expression(k, depth)  # noqa: E731
        filtered = f" FILTER (WHERE {self._condition(0)})" if self._chance(0.15) else ""
        try:
            match kind:
                case "int":
                    text = self._r.choice((f"max({argument('int')})", f"min({argument('int')})", "count(*)::int"))
                    if text.endswith("::int"):
                        return f"(count(*){filtered})::int"
                case "big":
                    distinct = self._r.choice(("", "DISTINCT "))
                    text = self._r.choice(
                        ("count(*)", f"count({distinct}{argument(self._r.choice(_COMMON))})", f"sum({argument('int')})")
                    )
                case "num":
                    text = self._r.choice(
                        (f"sum({argument('num')})", f"avg({argument('int')})", f"max({argument('num')})")
                    )
                case "text":
                    one = self._leaf("text")
                    text = self._r.choice(
                        (
                            f"max({argument('text')})",
                            f"min({argument('text')})",
                            f"string_agg({one}, ',' ORDER BY {one})",
                        )
                    )
                    if "$" in one and "string_agg" in text:
                        text = f"max({one})"
                case "bool":
                    text = self._r.choice(
                        (
                            f"bool_or({argument('bool')})",
                            f"bool_and({argument('bool')})",
                            f"every({self._condition(0)})",
                        )
                    )
                case "json":
                    column = self._column("int")
                    text = f"jsonb_agg({column.sql} ORDER BY {column.sql})" if column else "to_jsonb(count(*))"
                    if not column:
                        return text
                case "tags":
                    column = self._column("text")
                    text = f"array_agg({column.sql} ORDER BY {column.sql} DESC)" if column else "array_agg('x'::text)"
                case _:
                    text = f"{self._r.choice(('max', 'min'))}({argument(kind)})"
            return text + filtered
        finally:
            self._safe -= 1

    # Writes

    def _write(self) -> tuple[str, tuple[int, ...]]:
        sql = self._r.choice((self._insert, self._insert, self._update, self._update, self._delete))()
        return sql, ()

    def _returning(self, columns: Sequence[Column]) -> str:
        if self._chance(0.4):
            return ""
        if self._chance(0.2):
            return f" RETURNING {columns[0].sql.partition('.')[0]}.*"  # not what it is joined to: any row that matches
        self._levels.append(list(columns))
        texts = [self._expression(self._r.choice(_COMMON), 1, plain=True) for _ in range(self._r.randint(1, 3))]
        self._levels.pop()
        return " RETURNING " + ", ".join(f"{text} AS r{n + 1}" for n, text in enumerate(texts))

    def _new_value(self, column: Column) -> str:
        name = column.sql
        if name == "tenant":
            return self._v.choice(("'a'", "'a'", "'a'", "'a'", "'a'", "'a'", "'a2'", "'b'", "NULL"))
        if name == "region_id":
            return self._v.choice(("1", "2", "NULL", "1", "9"))
        if name == "customer_id":
            return str(self._v.choice((1, 2, 3, 12, 99)))
        if name == "name":
            return f"'new {self._v.randint(1, 99)}'"
        if name == "code":
            return self._v.choice((f"'{self._v.randint(1, 99)}'", "NULL", "''"))
        if name == "day":
            return f"'2020-01-{self._v.randint(1, 31):02d}'"
        if self._v.random() < 0.1:
            return self._v.choice(("NULL", "DEFAULT"))
        return self._constant(column.type)

    def _new_id(self, table: str) -> str:
        roll = self._v.random()
        if roll < 0.85:
            return str(self._v.randint(400, 899))
        if roll < 0.95 or table in ("events", "ledger", "things"):
            return str(self._v.randint(1, 12))
        return str(self._v.randint(1013, 1036))

    def _insert(self) -> str:
        table = self._r.choice(_WRITABLE)
        columns = TABLES[table]
        named = (
            list(columns)
            if self._chance(0.3)
            else [c for c in columns if c.sql in ("id", "tenant", "name", "day") or self._chance(0.5)]
        )
        listed = ", ".join(c.sql for c in named)
        target = f"{table} ({listed})" if len(named) < len(columns) or self._chance(0.7) else table
        if self._chance(0.3):
            source, alias = self._r.choice(("customers", "cards", "things", "accounts")), self._alias()
            self._levels.append(self._named(source, alias))
            cells = []
            for column in named:
                if column.sql == "id":
                    cells.append(f"{alias}.id % 500 + 400")
                elif column.sql == "tenant":
                    cells.append(
                        self._r.choice((f"{alias}.tenant", f"{alias}.tenant", f"{alias}.tenant", "'a'", "'a'", "'b'"))
                    )
                elif column.sql == "name":
                    cells.append(
                        self._r.choice(
                            (f"coalesce({alias}.{'kind' if source == 'accounts' else 'name'}, 'none')", "'copy'")
                        )
                    )
                elif column.sql in ("day", "customer_id", "region_id"):
                    cells.append(f"{self._new_value(column)}::{_SQL[column.type]}")
                elif column.sql == "code":
                    cells.append("'5'")
                elif column.sql == "score":
                    cells.append(f"{alias}.id" if table == "cards" else f"length({self._leaf('text')})")
                else:
                    cells.append(self._expression(column.type, 1))
            where = self._where(1)
            self._levels.pop()
            body = f"SELECT {', '.join(cells)} FROM {source} {alias}{where}"
        else:
            rows = []
            for _ in range(self._r.choice((1, 1, 1, 2, 3))):
                rows.append(
                    "(" + ", ".join(self._new_id(table) if c.sql == "id" else self._new_value(c) for c in named) + ")"
                )
            body = f"VALUES {', '.join(rows)}"
        conflict = ""
        if table in _KEYED and self._chance(0.3):
            changed = self._r.choice(
                [c for c in columns if c.sql not in ("id", "region_id", "customer_id", "tenant", "code")]
            )
            if self._chance(0.15):
                conflict = " ON CONFLICT DO NOTHING"
            else:
                value = self._r.choice((f"EXCLUDED.{changed.sql}", f"{table}.{changed.sql}"))
                conflict = f" ON CONFLICT (id) DO UPDATE SET {changed.sql} = {value}"
                if self._chance(0.4):
                    self._levels.append(self._named(table, table))
                    conflict += f" WHERE {self._simple(0)}"
                    self._levels.pop()
        return f"INSERT INTO {target} {body}{conflict}{self._returning(self._named(table, table))}"

    def _copy(self) -> Statement:
        """A COPY FROM STDIN, and the INSERT of the same rows."""
        table = self._r.choice(_WRITABLE)
        named = [c for c in TABLES[table] if c.sql in ("id", "tenant", "name", "day") or self._chance(0.5)]
        csv = self._chance(0.5)
        count = self._v.choice((1, 1, 2, 3, 8, 70))
        rows = [
            [str(400 + n) if count > 3 and c.sql == "id" else self._copied(table, c, count) for c in named]
            for n in range(count)
        ]
        listed = ", ".join(c.sql for c in named)
        values = ", ".join(
            "(" + ", ".join("NULL" if v is None else "'" + v.replace("'", "''") + "'" for v in row) + ")"
            for row in rows
        )
        if csv:
            data = "".join(
                ",".join("" if v is None else '"' + v.replace('"', '""') + '"' for v in row) + "\n" for row in rows
            )
        else:
            data = "".join("\t".join("\\N" if v is None else v for v in row) + "\n" for row in rows)
        return Statement(
            f"INSERT INTO {table} ({listed}) VALUES {values}",
            copy=f"COPY {table} ({listed}) FROM STDIN{' (FORMAT csv)' if csv else ''}",
            data=data,
        )

    def _copied(self, table: str, column: Column, count: int) -> str | None:
        """A value as text."""
        if column.sql == "tenant" and count > 3 and self._v.random() < 0.97:
            return "a"
        if column.sql == "id":
            return self._new_id(table)
        if column.sql in ("tenant", "region_id", "customer_id", "name", "code", "day"):
            literal = self._new_value(column)
            return None if literal == "NULL" else literal.strip("'")
        return None if self._v.random() < 0.1 else self._value(column.type)

    def _update(self) -> str:
        table = self._r.choice(_WRITABLE)
        alias = self._alias() if self._chance(0.5) else table
        own = self._named(table, alias)
        changeable = [
            c for c in TABLES[table] if c.sql not in ("id", "region_id", "customer_id", "tenant", "day", "score")
        ]
        chosen = self._r.sample(changeable, self._r.randint(1, min(2, len(changeable))))
        self._levels.append(own)
        sets = []
        for column in chosen:
            value = (
                self._expression(column.type, 1, plain=self._chance(0.7))
                if self._chance(0.6)
                else self._new_value(column)
            )
            if column.sql == "name":
                value = f"coalesce({value}, 'none')"
                value = "'none'" if "DEFAULT" in value else value
            sets.append(f"{column.sql} = {value}")
        if self._chance(0.1):
            sets.append(f"tenant = {self._r.choice(('tenant', chr(39) + 'a' + chr(39), chr(39) + 'b' + chr(39)))}")
        self._levels.pop()
        source = self._from(1) if self._chance(0.3) else None
        self._levels.append(own + (source.columns if source else []))
        where = self._where(1)
        if source is not None:
            pairs = [(a, b) for a in own for b in source.columns if a.type == b.type and a.key and a.key == b.key]
            if pairs and not where:
                one, other = self._r.choice(pairs)
                where = f" WHERE {one.sql} = {other.sql}"
        self._levels.pop()
        head = f"{table} {alias}" if alias != table else table
        from_clause = f" FROM {source.sql}" if source else ""
        return f"UPDATE {head} SET {', '.join(sets)}{from_clause}{where}{self._returning(own) if not source else ''}"

    def _delete(self) -> str:
        table = self._r.choice(("accounts", "cards", "events", "ledger", "things", "customers"))
        alias = self._alias() if self._chance(0.5) else table
        own = self._named(table, alias)
        source = self._from(1) if self._chance(0.3) else None
        self._levels.append(own + (source.columns if source else []))
        where = self._where(1)
        self._levels.pop()
        head = f"{table} {alias}" if alias != table else table
        using = f" USING {source.sql}" if source else ""
        return f"DELETE FROM {head}{using}{where}{self._returning(own)}"


def _is_name(text: str) -> bool:
    return text.replace("_", "").replace(".", "").isalnum() and not text.isdigit()


def _typed(source: _Source, name: str) -> str | None:
    """The type of the one column of this name, or None."""
    found = [c.type for c in source.columns if c.sql.rpartition(".")[2] == name]
    return found[0] if len(set(found)) == 1 else None
