"""Selection strings: conditions on properties of messages, as a queue manager evaluates them (those of JMS, SQL-92)."""

from __future__ import annotations

import re
from typing import Final

from grille.protocols.mq.segments import ProtocolError

MAX_LENGTH: Final = 10_240
"""MQ_SELECTOR_LENGTH."""
_PROPERTY: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.]{0,255}")
_WORDS: Final = frozenset({"NULL", "TRUE", "FALSE", "NOT", "AND", "OR", "BETWEEN", "LIKE", "IN", "IS", "ESCAPE"})
_ENCODINGS: Final = {1208: "utf-8", 819: "latin-1", 367: "ascii", 850: "cp850", 437: "cp437", 1252: "cp1252",
                     37: "cp037", 500: "cp500"}  # fmt: skip


def text_of(selection: bytes, ccsid: int) -> str:
    """A client's selection string.  Raises `ProtocolError` for a character set that is not known, and for no text."""
    encoding = _ENCODINGS.get(ccsid)
    if encoding is None:
        raise ProtocolError(f"a selection string in CCSID {ccsid} is not read")
    try:
        return selection.decode(encoding)
    except UnicodeDecodeError:
        raise ProtocolError("a selection string is no text in its own character set") from None


def compare(name: str, operator: str, value: object) -> str:
    """One condition; ``operator`` is ``=``, ``<>``, ``<``, ``<=``, ``>`` or ``>=``.

    A message without the property is not selected, whatever the operator.  Raises ValueError.
    """
    if not _PROPERTY.fullmatch(name) or name.upper() in _WORDS:
        raise ValueError("the filter names what is not a property of a message")
    return f"{name} {operator} {_literal(value)}"


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return repr(value)
    if isinstance(value, str) and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    raise ValueError("the filter has a value that a selection string cannot hold")


def both(clients: str, policys: str) -> str:
    """What both select.  Raises `ProtocolError` if the client's does not end where its text does."""
    depth, quoted = 0, False
    for character in clients:
        if character == "'":
            quoted = not quoted
        elif not quoted:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth < 0:
                raise ProtocolError("a selection string closes a parenthesis that it has not opened")
    if quoted or depth:
        raise ProtocolError("a selection string is not whole")
    return f"({clients}) AND ({policys})"
