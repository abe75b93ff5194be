"""The resolver against the servers themselves: what PostgreSQL's parser chooses, read from its parse trees."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import psycopg
import pytest

from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.resolve import UNKNOWN, Resolver
from grille.proxy.demo.cluster import Cluster

SETUP = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int4 CHECK (VALUE > 0);
CREATE DOMAIN label AS text;
CREATE DOMAIN tag AS label;
CREATE DOMAIN amount AS numeric(12, 2);
CREATE DOMAIN numbers AS int4[];
CREATE FUNCTION verdicts(statements text[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    statement text;
    result text[] := '{}';
BEGIN
    FOREACH statement IN ARRAY statements LOOP
        BEGIN
            EXECUTE 'PREPARE probe AS ' || statement;
            DEALLOCATE probe;
            result := result || 'ok'::text;
        EXCEPTION WHEN OTHERS THEN
            result := result || SQLSTATE::text;
        END;
    END LOOP;
    RETURN result;
END $$;
"""
TYPES = """
    bool bytea "char" name int8 int2 int4 text oid json float4 float8 money bpchar varchar date time timestamp
    timestamptz interval timetz bit varbit numeric uuid jsonb int4[] int8[] text[] varchar[] numeric[] int4range tsrange
    int4multirange tsvector tsquery inet cidr macaddr point box circle xid pg_lsn mood pair positive label tag amount
    numbers mood[]
""".split()

UNDEFINED, AMBIGUOUS = "42883", "42725"
NODES = {"OPEXPR": "opno", "FUNCEXPR": "funcid", "AGGREF": "aggfnoid", "WINDOWFUNC": "winfnoid"}


class Choice(msgspec.Struct):
    """What the server made of an expression."""

    sqlstate: str
    node: str = ""
    oid: int = 0
    result: int = 0


class Server:
    """One server with the types of the corpus."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], catalog: Catalog) -> None:
        self.catalog = catalog
        self.resolver = Resolver(catalog)
        self.connection = connection
        query = "SELECT name, name::regtype::oid::bigint FROM unnest(%s::text[]) name"
        rows = connection.execute(query, (TYPES,)).fetchall()
        self.types: dict[str | None, int] = {None: UNKNOWN, **dict(rows)}
        self._notices: list[str] = []
        self.connection.add_notice_handler(lambda d: self._notices.append(f"{d.message_primary}{d.message_detail}"))

    def verdicts(self, statements: Sequence[str]) -> list[str]:
        """ "ok" or the SQLSTATE with which the parser refuses each statement."""
        found: list[str] = []
        for start in range(0, len(statements), 5000):
            row = self.connection.execute("SELECT verdicts(%s)", (list(statements[start : start + 5000]),)).fetchone()
            assert row is not None
            found += row[0]
        return found

    def choices(self, expressions: Sequence[str]) -> list[Choice]:
        """What the parser chooses for each expression."""
        choices = [Choice(verdict) for verdict in self.verdicts([f"SELECT {each}" for each in expressions])]
        accepted = [index for index, choice in enumerate(choices) if choice.sqlstate == "ok"]
        self.connection.execute(
            "SET client_min_messages = log; SET debug_print_parse = on; SET debug_pretty_print = off"
        )
        for start in range(0, len(accepted), 200):
            chunk = accepted[start : start + 200]
            self._notices.clear()
            self.connection.execute("PREPARE probe AS SELECT " + ", ".join(expressions[index] for index in chunk))
            for index, entry in zip(chunk, _entries(self._notices[-1]), strict=True):
                choices[index] = entry
            self.connection.execute("DEALLOCATE probe")
        self.connection.execute("RESET ALL")
        return choices


def _entries(notice: str) -> Iterator[Choice]:
    """The top node of each target of a printed parse tree."""
    assert notice.startswith("parse tree:")
    body = re.sub(r"\s+", " ", notice)
    body = body[body.index(":targetList (") + 13 :]
    depth = start = 0
    for brace in re.finditer(r"(?<!\\)[{}]", body):
        if brace[0] == "{":
            start = brace.end() if depth == 0 else start
            depth += 1
            continue
        depth -= 1
        if depth < 0:
            return
        if depth == 0:
            text = body[start : brace.start()]
            node = re.match(r"TARGETENTRY :expr \{(\w+)", text)
            assert node is not None
            oid = re.search(rf":{NODES.get(node[1], '-')} (\d+)", text)
            result = re.search(r":(?:opresulttype|funcresulttype|aggtype|wintype) (\d+)", text)
            yield Choice("ok", node[1], int(oid[1]) if oid else 0, int(result[1]) if result else 0)


@pytest.fixture(scope="module")
def parser(server: Cluster, snapshot_of: Callable[[Cluster, str], Catalog]) -> Iterator[Server]:
    name = "resolution"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(server.dsn(name), autocommit=True) as inside:
            inside.execute(SETUP)
            yield Server(inside, snapshot_of(server, name))
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def value(name: str | None) -> str:
    return "NULL" if name is None else f"NULL::{name}"


class Variations:
    """Argument types near those that an operator or function declares, and far from them."""

    def __init__(self, server: Server, source: random.Random) -> None:
        self._source = source
        self._catalog = server.catalog
        self._names = {oid: name for name, oid in server.types.items()}
        self._all: list[str | None] = [*TYPES, None]

    def near(self, declared: Sequence[int]) -> tuple[str | None, ...]:
        return tuple(self._one(oid) for oid in declared)

    def _one(self, oid: int) -> str | None:
        name = self._names.get(oid)
        chance = self._source.random()
        if name is None or chance < 0.15:
            return self._source.choice(self._all)
        if chance < 0.35:
            return None
        if chance < 0.7:
            category = self._catalog.types[oid].category
            return self._source.choice(
                [n for o, n in self._names.items() if self._catalog.types[o].category == category]
            )
        return name


def test_operators_are_chosen_as_the_server_chooses(parser: Server) -> None:
    source = random.Random(1)
    near = Variations(parser, source)
    cases: set[tuple[str, str | None, str | None]] = set()
    for operator in parser.catalog.operators.values():
        for _ in range(14):
            if operator.left:
                left, right = near.near((operator.left, operator.right))
                cases.add((operator.name, left, right))
            else:
                cases.add((operator.name, "", near.near((operator.right,))[0]))
    for name in {operator.name for operator in parser.catalog.operators.values()}:
        cases |= {(name, source.choice([*TYPES, None]), source.choice([*TYPES, None])) for _ in range(40)}
    ordered = sorted(cases, key=str)
    choices = parser.choices(
        [
            f"OPERATOR(pg_catalog.{n}) {value(r)}"
            if left == ""
            else f"{value(left)} OPERATOR(pg_catalog.{n}) {value(r)}"
            for n, left, r in ordered
        ]
    )
    single = 0
    for (name, left, right), choice in zip(ordered, choices, strict=True):
        types = 0 if left == "" else parser.types[left], parser.types[right]
        found = parser.resolver.operator(name, *types)
        case = name, left, right, [operator.oid for operator in found], choice
        if choice.sqlstate == "ok":
            assert choice.node == "OPEXPR", case
            assert [operator.oid for operator in found] == [choice.oid], case
            assert parser.resolver.operator_result(found[0], *types) == choice.result, case
            single += 1
            for hidden in ((None, types[1]), (types[0], None), (None, None)):
                if types[0] == 0:
                    hidden = (0, None)
                assert choice.oid in {operator.oid for operator in parser.resolver.operator(name, *hidden)}, case
        else:
            assert choice.sqlstate in (UNDEFINED, AMBIGUOUS), case
            assert len(found) != 1, case
            assert not found or choice.sqlstate == AMBIGUOUS, case
    assert single > 1500


# Declared, but only for the server's own use.
_INTERNAL_TYPE = 2281
INTERNAL = re.compile(
    r"(in|out|recv|send|_transfn|_accum|_combine|_final|finalfn|sel|support|handler)$|^(ri_|RI_|pg_|lo_|binary_up)"
)


def test_functions_are_chosen_as_the_server_chooses(parser: Server) -> None:
    near = Variations(parser, random.Random(2))
    cases: set[tuple[str, tuple[str | None, ...]]] = set()
    for function in parser.catalog.functions.values():
        own_use = INTERNAL.search(function.name) or _INTERNAL_TYPE in function.arguments
        if function.schema != "pg_catalog" or function.kind not in "fa" or own_use:
            continue
        for _ in range(9):
            declared = function.arguments
            if function.variadic:
                declared = (*declared[:-1], *([function.variadic] * near._source.randint(1, 3)))
            elif function.defaults:
                declared = declared[: len(declared) - near._source.randint(0, function.defaults)]
            cases.add((function.name, near.near(declared)))
    ordered = sorted(cases, key=str)
    choices = parser.choices([f'pg_catalog."{name}"({", ".join(map(value, given))})' for name, given in ordered])
    single = 0
    for (name, given), choice in zip(ordered, choices, strict=True):
        types = [parser.types[each] for each in given]
        found = parser.resolver.function(None, name, types)
        case = name, given, [function.oid for function in found], choice
        if choice.node in ("FUNCEXPR", "AGGREF", "WINDOWFUNC") and not may_be_cast(parser, name, types):
            assert [function.oid for function in found] == [choice.oid], case
            assert parser.resolver.result_type(found[0], types) == choice.result, case
            single += 1
            for index in range(len(types)):
                hidden = [None if at == index else oid for at, oid in enumerate(types)]
                assert choice.oid in {f.oid for f in parser.resolver.function(None, name, hidden)}, case
        elif choice.sqlstate in (UNDEFINED, AMBIGUOUS) and len(found) == 1:
            # The choice stands, but polymorphic arguments without a type are refused later.
            assert choice.sqlstate == UNDEFINED, case
            assert found[0].kind == "a" or parser.catalog.types[found[0].result].kind == "p", case
    assert single > 2000


def may_be_cast(parser: Server, name: str, types: Sequence[int]) -> bool:
    """``name(value)`` where `name` is a type: the server may make a cast of it."""
    kind = parser.resolver.type_by_name((name,))
    return kind is not None and len(types) == 1


def test_a_call_that_is_a_cast_gives_every_function_of_that_name(parser: Server) -> None:
    for name in ("date", "int4", "text", "numeric", "timestamptz", "interval"):
        found = parser.resolver.function(None, name, (UNKNOWN,))
        result = parser.resolver.type_by_name((name,))
        assert result is not None
        assert found
        assert {function.result for function in found} == {result.oid}


def test_implicit_coercion_is_the_servers(parser: Server) -> None:
    """A column of a VALUES list or a COALESCE takes the common type (chapter 10.5)."""
    pairs = [(one, other) for one in [*TYPES, None] for other in [*TYPES, None]]
    choices = parser.choices([f"coalesce({value(one)}, {value(other)})" for one, other in pairs])
    for (one, other), choice in zip(pairs, choices, strict=True):
        common = parser.resolver.common_type((parser.types[one], parser.types[other]))
        if choice.sqlstate != "ok":
            assert common is None or not (
                parser.resolver.can_coerce(parser.types[one], common)
                and parser.resolver.can_coerce(parser.types[other], common)
            ), (one, other, choice)
        else:
            row = parser.connection.execute(
                f"SELECT pg_typeof(coalesce({value(one)}, {value(other)}))::oid::bigint"
            ).fetchone()
            assert row == (common,), (one, other)


@pytest.mark.parametrize("context", ["i", "a", "e"])
def test_coercion_in_each_context_is_the_servers(parser: Server, context: str) -> None:
    columns = ", ".join(f"c{index} {name}" for index, name in enumerate(TYPES))
    parser.connection.execute(f"CREATE TABLE IF NOT EXISTS assigned ({columns})")
    pairs = [(one, index) for one in TYPES for index in range(len(TYPES))]
    if context == "e":
        expressions = [f"CAST(NULL::{one} AS {TYPES[index]})" for one, index in pairs]
        accepted = [choice.sqlstate == "ok" for choice in parser.choices(expressions)]
    elif context == "a":
        statements = [f"INSERT INTO assigned (c{index}) VALUES (NULL::{one})" for one, index in pairs]
        accepted = [verdict == "ok" for verdict in parser.verdicts(statements)]
    else:
        for index, name in enumerate(TYPES):
            parser.connection.execute(
                f"CREATE OR REPLACE FUNCTION takes{index}({name}) RETURNS int LANGUAGE sql AS 'SELECT 1'"
            )
        accepted = [c.sqlstate == "ok" for c in parser.choices([f"takes{index}(NULL::{one})" for one, index in pairs])]
    wrong = [
        (one, TYPES[index], said)
        for (one, index), said in zip(pairs, accepted, strict=True)
        if parser.resolver.can_coerce(parser.types[one], parser.types[TYPES[index]], context) != said  # type: ignore[arg-type]
    ]
    assert wrong == []


def test_every_cast_that_agents_may_write_exists(parser: Server) -> None:
    pairs = [(one, other) for one in [*TYPES, None] for other in TYPES]
    allowed = [p for p in pairs if parser.resolver.castable(parser.types[p[0]], parser.types[p[1]])]
    choices = parser.choices([f"CAST({value(one)} AS {other})" for one, other in allowed])
    assert [pair for pair, choice in zip(allowed, choices, strict=True) if choice.sqlstate != "ok"] == []
    assert len(allowed) > 500
    refused = {other for one, other in pairs if one is None} - {other for one, other in allowed if one is None}
    assert refused == {"pair", "positive"}
