"""Names, casts and configured routines; `tests/proxy/test_resolve_server.py` compares choices with the servers'."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.introspection import REG_TYPES
from grille.protocols.postgres.resolve import CLOSED_TYPES, UNKNOWN, Resolver
from grille.proxy.demo.cluster import Cluster

INT4, INT8, TEXT, NUMERIC, JSONB, INTS = 23, 20, 25, 1700, 3802, 1007


@pytest.fixture(scope="module")
def catalog(pg18: Cluster, snapshot_of: Callable[[Cluster, str], Catalog]) -> Iterator[Catalog]:
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE names")
        with psycopg.connect(pg18.dsn("names"), autocommit=True) as inside:
            inside.execute("""
                CREATE SCHEMA app;
                CREATE TYPE mood AS ENUM ('sad');
                CREATE TYPE app.tone AS ENUM ('low');
                CREATE TYPE numeric_like AS RANGE (subtype = numeric);
                CREATE DOMAIN plain AS text;
                CREATE DOMAIN checked AS text CHECK (length(VALUE) > 1);
                CREATE DOMAIN above_checked AS checked;
                CREATE TYPE raw;
                CREATE FUNCTION raw_in(cstring) RETURNS raw LANGUAGE internal STRICT IMMUTABLE AS 'textin';
                CREATE FUNCTION raw_out(raw) RETURNS cstring LANGUAGE internal STRICT IMMUTABLE AS 'textout';
                CREATE TYPE raw (INPUT = raw_in, OUTPUT = raw_out, LIKE = text);
                CREATE FUNCTION mood_of(int) RETURNS mood LANGUAGE sql AS $$SELECT 'sad'::mood$$;
                CREATE CAST (int AS mood) WITH FUNCTION mood_of(int);
                CREATE FUNCTION text_of(jsonb) RETURNS uuid LANGUAGE sql AS 'SELECT gen_random_uuid()';
                CREATE CAST (jsonb AS uuid) WITH FUNCTION text_of(jsonb) AS IMPLICIT;
                CREATE FUNCTION always(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true';
                CREATE OPERATOR = (FUNCTION = always, LEFTARG = int, RIGHTARG = int);
                CREATE FUNCTION app.rate(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
                CREATE FUNCTION app.rate(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
                CREATE FUNCTION app.hidden(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
                CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
            """)
            yield snapshot_of(pg18, "names")
        connection.execute("DROP DATABASE names WITH (FORCE)")


@pytest.fixture(scope="module")
def resolver(catalog: Catalog) -> Resolver:
    return Resolver(catalog)


def oid(resolver: Resolver, *names: str) -> int:
    kind = resolver.type_by_name(names)
    assert kind is not None, names
    return kind.oid


def test_type_names(resolver: Resolver) -> None:
    assert oid(resolver, "int4") == oid(resolver, "pg_catalog", "int4") == INT4
    assert oid(resolver, "mood") == oid(resolver, "public", "mood")
    assert oid(resolver, "plain") == oid(resolver, "public", "plain")
    assert oid(resolver, "app", "tone")
    for names in (("tone",), ("raw",), ("numeric_like",), ("integer",), ("nothing",), ("names", "public", "mood"), ()):
        assert resolver.type_by_name(names) is None, names


def test_operators_of_other_schemas_do_not_exist(resolver: Resolver) -> None:
    (found,) = resolver.operator("=", INT4, INT4)
    assert (found.schema, found.oid) == ("pg_catalog", 96)
    assert {operator.schema for operator in resolver.operator("=", None, None)} == {"pg_catalog"}


def test_an_operand_without_a_type_leaves_every_candidate(resolver: Resolver, catalog: Catalog) -> None:
    everything = {o.oid for o in catalog.operators.values() if o.name == "-" and o.schema == "pg_catalog" and o.left}
    assert {o.oid for o in resolver.operator("-", None, None)} == everything
    assert {o.oid for o in resolver.operator("-", None, UNKNOWN)} == everything
    assert {o.oid for o in resolver.operator("-", 0, None)} == {o.oid for o in catalog.operators.values()
                                                                if o.name == "-" and not o.left}  # fmt: skip
    some = {o.oid for o in resolver.operator("-", None, JSONB)}
    assert some < everything
    # A polymorphic pseudo-type is no type that an operand can have: it is taken as not known.
    assert {o.oid for o in resolver.operator("-", 2283, UNKNOWN)} == everything


def test_functions_are_found_in_pg_catalog_or_by_configuration(catalog: Catalog) -> None:
    resolver = Resolver(catalog, ("app.rate(int4)",))
    assert [f.schema for f in resolver.function(None, "lower", (TEXT,))] == ["pg_catalog"]
    assert resolver.function("public", "lower", (TEXT,)) == ()
    assert resolver.function(None, "rate", (INT4,)) == ()
    assert resolver.function("app", "hidden", (INT4,)) == ()
    # The overload that is not listed takes part in the choice; that it may not be called is told elsewhere.
    assert [f.result for f in resolver.function("app", "rate", (INT4,))] == [INT4]
    assert [f.result for f in resolver.function("app", "rate", (UNKNOWN,))] == [TEXT]
    assert Resolver(catalog).function("app", "rate", (INT4,)) == ()


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("array_append", (INTS, INT4), INTS),
        ("unnest", (INTS,), INT4),
        ("array_agg", (INT4,), INTS),
        ("max", (INTS,), INTS),
        ("lag", (INT4, INT4, INT8), INT8),
        ("first_value", (TEXT,), TEXT),
        ("json_build_array", (INT4, UNKNOWN, TEXT), 114),
        ("concat_ws", (UNKNOWN, INT4, TEXT, NUMERIC), TEXT),
        ("make_interval", (INT4,), 1186),
        ("upper", (3904,), INT4),
        ("range_merge", (4451,), 3904),
        ("multirange", (3904,), 4451),
        ("array_position", (None, INT4), INT4),
        ("array_append", (None, INT4), None),
        ("count", (), INT8),
    ],
)
def test_result_types(resolver: Resolver, name: str, arguments: tuple[int | None, ...], result: int | None) -> None:
    found = resolver.function(None, name, arguments)
    types = {resolver.result_type(function, arguments) for function in found}
    assert types == {result}


def test_casts_that_agents_may_not_write(resolver: Resolver, catalog: Catalog) -> None:
    for name in CLOSED_TYPES:
        kind = resolver.type_by_name((name,))
        assert kind is not None or name in ("regdatabase", "gtsvector"), name
        if kind is not None:
            for source in (None, UNKNOWN, TEXT, INT4):
                assert not resolver.castable(source, kind.oid), (source, name)
                assert not kind.array or not resolver.castable(source, kind.array), (source, name)
            assert resolver.castable(kind.oid, TEXT) == (kind.oid in REG_TYPES)
    raw, checked, above = (oid(resolver, "public", name) for name in ("raw", "checked", "above_checked"))
    for target in (raw, catalog.types[raw].array, checked, above, catalog.types[checked].array, 2275, 2276, 2249):
        for source in (None, UNKNOWN, TEXT):
            assert not resolver.castable(source, target), (source, target)
    mood = oid(resolver, "mood")
    assert not resolver.castable(INT4, mood)
    assert not resolver.castable(None, mood)
    assert not resolver.castable(INTS, catalog.types[mood].array)
    assert not resolver.castable(JSONB, 2950)
    assert not resolver.castable(INT4, 1082)


def test_casts_that_agents_may_write(resolver: Resolver, catalog: Catalog) -> None:
    plain, mood = oid(resolver, "plain"), oid(resolver, "mood")
    for source, target in (
        (UNKNOWN, INT4),
        (TEXT, INT4),
        (INT4, TEXT),
        (None, TEXT),
        (None, NUMERIC),
        (UNKNOWN, mood),
        (TEXT, mood),
        (mood, TEXT),
        (UNKNOWN, plain),
        (plain, INT4),
        (UNKNOWN, INTS),
        (INTS, 1016),
        (TEXT, JSONB),
        (UNKNOWN, catalog.types[mood].array),
    ):
        assert resolver.castable(source, target), (source, target)


def test_no_code_runs_where_types_are_binary_coercible(resolver: Resolver) -> None:
    plain, checked = oid(resolver, "plain"), oid(resolver, "checked")
    for source, target in ((1043, TEXT), (plain, TEXT), (checked, TEXT), (INT4, 2283), (INTS, 2277), (26, 2205)):
        assert resolver.binary_coercible(source, target), (source, target)
    for source, target in ((TEXT, plain), (TEXT, checked), (1042, TEXT), (INT4, INT8), (INT4, 2277), (TEXT, INT4)):
        assert not resolver.binary_coercible(source, target), (source, target)
