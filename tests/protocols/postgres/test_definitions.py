"""Approved definitions, and columns that repeat others, over snapshots made by hand."""

from __future__ import annotations

from grille.protocols.postgres.analysis import Sensitive, with_sources
from grille.protocols.postgres.catalog import Catalog, Column, Function, Relation, Type
from grille.protocols.postgres.definitions import definitions_of, redefined


def _relation(name: str, columns: dict[str, tuple[str, ...]], definition: str = "") -> Relation:
    made = tuple(
        Column(column, number, 25, -1, False, False, "", 0, sources)
        for number, (column, sources) in enumerate(columns.items(), start=1)
    )
    return Relation(1, "public", name, "v" if definition else "r", 2, made, definition_hash=definition)


def _catalog(*relations: Relation, source: str = "") -> Catalog:
    function = Function(20000, "public", "f", "f", (23, 1009), 0, 0, 23, False, "i", False, True, False, source)
    types = [Type(23, "pg_catalog", "int4", "b", "N", False), Type(25, "pg_catalog", "text", "b", "S", True),
             Type(1009, "pg_catalog", "_text", "b", "A", False, element=25)]  # fmt: skip
    named = {("public", relation.name): relation for relation in relations}
    return Catalog("1", 180000, "bank", named, {kind.oid: kind for kind in types}, {20000: function}, {}, {})


def test_definitions_are_named_as_a_configuration_names_them() -> None:
    catalog = _catalog(_relation("v", {}, "aa"), _relation("t", {}), source="bb")
    assert dict(definitions_of(catalog)) == {"public.v": "aa", "public.f(int4,text[])": "bb"}


def test_another_or_a_missing_definition_is_not_the_approved_one() -> None:
    catalog = _catalog(_relation("v", {}, "aa"), source="bb")
    assert redefined(catalog, {}) == frozenset()
    assert redefined(catalog, {"public.v": "AA", "public.f( integer , text[] )": "bb"}) == frozenset()
    assert redefined(catalog, {"public.v": "ab", "public.f(integer,text[])": ""}) == {
        "public.v", "public.f(int4,text[])",
    }  # fmt: skip
    assert redefined(catalog, {"public.w": "aa", "public.f(integer)": "bb"}) == {"public.w", "public.f(int4)"}


def test_what_is_computed_from_a_sensitive_column_is_sensitive_too() -> None:
    known = {"public.a.mail": Sensitive("siv", "mail")}
    catalog = _catalog(
        _relation("a", {"mail": (), "lower": ("public.a.mail",), "twice": ("public.a.lower",), "id": ()}),
        _relation("b", {"receiver": ("public.a.twice",), "of": ("public.a.id",)}),
    )
    masked = Sensitive(None, None)
    assert with_sources(known, catalog) == {
        **known, "public.a.lower": masked, "public.a.twice": masked, "public.b.receiver": masked,
    }  # fmt: skip
    told = {**known, "public.a.lower": Sensitive("siv", "mail")}
    assert with_sources(told, catalog)["public.a.lower"] == told["public.a.lower"]
