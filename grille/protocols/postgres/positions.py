"""Where in the agent's own text an error of the server lies, if that can be told for certain.

The server reads the rewritten text, so its position is one in a text that the agent never sees.  A token that stands
exactly once in both texts is the agent's own in both; nothing is told of any other.
"""

from __future__ import annotations

from typing import Final

from postgast import PgQueryError, scan
from postgast import pg_query_pb2 as pb

MAX_CHARACTERS: Final = 16_384
"""Of a text; for longer ones nothing is told."""


def traced(position: int, sent: str, own: str) -> int | None:
    """The character of ``own``, counted from 1, that character ``position`` of ``sent`` means; None if unknown."""
    if position < 1 or len(sent) > MAX_CHARACTERS or len(own) > MAX_CHARACTERS:
        return None
    try:
        there, here = _tokens(sent), _tokens(own)
    except PgQueryError:
        return None
    offset = len(sent[: position - 1].encode())
    found = next((text for start, text in there if start == offset), None)
    if found is None or sum(text == found for _, text in there) != 1:
        return None
    starts = [start for start, text in here if text == found]
    return len(own.encode()[: starts[0]].decode()) + 1 if len(starts) == 1 else None


def _tokens(text: str) -> list[tuple[int, str]]:
    """Byte offset and spelling of each token; names as the server folds them."""
    data = text.encode()
    found = []
    for token in scan(text).tokens:
        spelling = data[token.start : token.end].decode()
        if token.token == pb.IDENT and spelling.startswith('"'):
            spelling = spelling[1:-1].replace('""', '"')
        elif not spelling.startswith("'"):
            spelling = spelling.lower()
        found.append((token.start, spelling))
    return found
