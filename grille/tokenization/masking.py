"""The closed set of masks.

A mask has two forms with one meaning.  Where a column is stored tokenized the proxy decodes it and calls `apply`;
where it is stored clear, `grille.protocols.postgres.rewrite` writes the same thing in SQL.  NULL stays NULL under every
mask.  Lengths and positions count characters (code points), as PostgreSQL's char_length does in a UTF-8 database.

====== ================================================================ ==============================================
mask   result for a text v that is not NULL                             in SQL
====== ================================================================ ==============================================
null   NULL, of the column's own type                                   ``NULL::type``
last4  the last 4 characters; before them every character but hyphen    ``CASE WHEN char_length(v) < 8 THEN
       and space becomes ``*``; a text shorter than 8 characters has    regexp_replace(v, '[^ -]', '*', 'g') ELSE
       all of them replaced                                             regexp_replace(left(v, -4), '[^ -]', '*', 'g')
                                                                        || right(v, 4) END``
first1 the first character and ``***``; a text shorter than 2           ``CASE WHEN char_length(v) < 2 THEN '***' ELSE
       characters gives ``***``                                         left(v, 1) || '***' END``
email  the first character, ``***@`` and the domain; a text that does   ``CASE WHEN v ~ '^[^@]+@[^@]+$' THEN left(v, 1)
       not have exactly one ``@`` with characters on both sides gives   || '***@' || split_part(v, '@', 2) ELSE '***'
       ``***``                                                          END``
redact ``[redacted]``                                                   ``CASE WHEN v IS NULL THEN NULL ELSE
                                                                        '[redacted]' END``
====== ================================================================ ==============================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

DEFAULT: Final = "null"
"""The mask of a sensitive column that a decision does not name."""

REDACTED: Final = "[redacted]"

_SHOWABLE = re.compile("[^ -]")
_ONE_AT = re.compile("[^@]+@[^@]+")


def _null(value: str) -> str | None:
    return None


def _last4(value: str) -> str | None:
    if len(value) < 8:
        return _SHOWABLE.sub("*", value)
    return _SHOWABLE.sub("*", value[:-4]) + value[-4:]


def _first1(value: str) -> str | None:
    return "***" if len(value) < 2 else value[0] + "***"


def _email(value: str) -> str | None:
    return f"{value[0]}***@{value.partition('@')[2]}" if _ONE_AT.fullmatch(value) else "***"


def _redact(value: str) -> str | None:
    return REDACTED


MASKS: Final[dict[str, Callable[[str], str | None]]] = {
    "null": _null,
    "last4": _last4,
    "first1": _first1,
    "email": _email,
    "redact": _redact,
}
"""Every mask, by the name that follows ``mask:`` in a decision."""

TEXT_ONLY: Final = frozenset(MASKS) - {"null"}
"""Masks whose result is text: the column must be text, varchar, char or a domain over one of them."""


def apply(name: str, value: str | None) -> str | None:
    """The masked form of one value.  Raises KeyError for a name that is not in `MASKS`."""
    mask = MASKS[name]
    return None if value is None else mask(value)
