"""The closed type of a policy decision.

`decode` accepts exactly the document of docs/reference/policy.md: an unknown key, an unknown value or a
missing key raises `DecisionError`, and the caller denies.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal, Union

import msgspec

MAX_ROWS = (1 << 31) - 2
"""One more still fits the row count of PostgreSQL's Execute message, a 32-bit integer."""

Instant = Annotated[dt.datetime, msgspec.Meta(tz=True)]
"""A date and time with its offset from UTC: without one it could not be compared with the clock."""

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

    rows: Annotated[int, msgspec.Meta(ge=0, le=MAX_ROWS)] | None = None
    bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None
    statements_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    concurrent: Annotated[int, msgspec.Meta(ge=1)] | None = None
    distinct_keys_per_hour: Annotated[int, msgspec.Meta(ge=1)] | None = None


class CachePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a decision may be reused."""

    ttl_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0


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
    not_before: Instant | None
    not_after: Instant | None
    cache: CachePolicy
