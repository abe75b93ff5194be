"""The closed type of a policy decision.

`decode` accepts exactly the document of docs/reference/policy.md: an unknown key, an unknown value or a
missing key raises `DecisionError`, and the caller denies.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal, Union

import msgspec

FieldOperator = Literal["eq", "ne", "lt", "le", "gt", "ge", "in"]
Scalar = Union[str, int, float, bool, None]


class FieldFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="field"):
    """A UCAST condition on one column: ``field operator value``."""

    operator: FieldOperator
    field: str
    value: Scalar | tuple[Scalar, ...]


class CompoundFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="compound"):
    """A UCAST combination of conditions."""

    operator: Literal["and", "or", "not"]
    value: tuple[FieldFilter | CompoundFilter, ...]


Filter = Union[FieldFilter, CompoundFilter]


class ColumnObligation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an agent may do with one sensitive column."""

    read: str
    """``clear``, ``token``, ``deny`` or ``mask:NAME`` (NAME out of grille.tokenization.masking.MASKS)."""
    predicate: Literal["equality", "deny"] = "deny"
    write: Literal["allow", "deny"] = "deny"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on one statement or one identity; ``None`` is no bound."""

    rows: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    statements_per_minute: int | None = None
    concurrent: int | None = None
    distinct_keys_per_hour: int | None = None


class CachePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a decision may be reused."""

    ttl_seconds: float = 0.0


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer of the policy engine, complete: every key is required, ``null`` where it does not apply."""

    allow: bool
    control: str
    reason: str
    passthrough: bool
    filters: dict[str, Filter | Literal[True]]
    """By ``schema.relation``.  A relation that is absent is denied; ``true`` is all rows."""
    columns: dict[str, ColumnObligation]
    """By ``schema.relation.column``."""
    limits: Limits
    locks: bool
    isolated: bool
    not_before: dt.datetime | None
    not_after: dt.datetime | None
    cache: CachePolicy
