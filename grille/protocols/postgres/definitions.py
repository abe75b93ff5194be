"""Views and routines that were approved as they are: under another definition they are not available.

A policy and a configuration name them; what they do stands in the database, where their owner may change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.purity import normal_signature, signature_of


def definitions_of(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """``schema.view`` or ``schema.name(type,type)``, and the SHA-256 (hex) of its definition in this snapshot."""
    for relation in catalog.relations.values():
        if relation.definition_hash:
            yield f"{relation.schema}.{relation.name}", relation.definition_hash
    for function in catalog.functions.values():
        if function.source_hash:
            yield signature_of(catalog, function, qualified=True), function.source_hash


def redefined(catalog: Catalog, approved: Mapping[str, str]) -> frozenset[str]:
    """The approved names whose definition is another one, or that do not exist; routines as `normal_signature`."""
    found = dict(definitions_of(catalog)) if approved else {}
    names = {normal_signature(name) or name: digest for name, digest in approved.items()}
    return frozenset(name for name, digest in names.items() if found.get(name) != digest.lower())
