"""The closed lexical subset in which a text's constants can be told from its structure (design review, section 2).

A text outside the subset is never cut: its exact text is its own template.  Within it, tokens end where PostgreSQL's
own scanner ends them; the fuzz test compares both.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

import msgspec

_TOKEN: Final = re.compile(
    r"""
    (?P<space>[ \t\r\n\f]+)
  | (?P<string>'(?:[^'\\\0]|'')*')
  | (?P<number>[0-9]+(?:\.[0-9]+)?(?![A-Za-z0-9_.\x80-\U0010ffff]))
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<quoted>"(?:[^"\\\0]|"")+")
  | (?P<operator>::|->>|->|@>|<@|\|\||<>|<=|>=|!=|[=<>+\-*/%~])(?![=<>+\-*/%~!@\#^&|`?])
  | (?P<punctuation>[(),;.\[\]])
    """,
    re.VERBOSE,
)
_COMMENT: Final = re.compile(r"/\*((?:[^*']|'[^'*]*')*)\*/\s*;?\s*\Z")
_PAIR: Final = re.compile(r"\s*([A-Za-z0-9_.%-]+)='([^']*)'\s*")

INT4: Final = 23
INT8: Final = 20
NUMERIC: Final = 1700


class Constant(msgspec.Struct, frozen=True):
    """One constant of a text."""

    value: str
    """Without quotes."""
    type_oid: int
    """Declared for the parameter: 0 (unspecified) for strings, else the type that the grammar would give."""
    offset: int
    """Byte offset in the text, as the parser reports it."""
    token: int


class Lexed(msgspec.Struct, frozen=True):
    """A text in the subset, cut into tokens."""

    tokens: tuple[str, ...]
    constants: tuple[Constant, ...]
    key: tuple[str | int, ...]
    """The tokens, with the class of each constant in its place: equal for texts that differ in constants only."""

    def render(self, positions: frozenset[int]) -> tuple[str, tuple[str, ...], list[Constant]]:
        """The template with the constants at `positions` as $1.., the constants kept, and those taken out."""
        tokens = list(self.tokens)
        taken: list[Constant] = []
        kept: list[str] = []
        for index, constant in enumerate(self.constants):
            if index in positions:
                taken.append(constant)
                tokens[constant.token] = f"${len(taken)}"
            else:
                kept.append(constant.value)
        return " ".join(tokens), tuple(kept), taken


def tokenize(text: str) -> Lexed | None:
    """Cut `text` into tokens, or None if it is not in the subset."""
    tokens: list[str] = []
    key: list[str | int] = []
    constants: list[Constant] = []
    position = 0
    previous = ""
    ascii_text = text.isascii()
    match = _TOKEN.match
    end = len(text)
    while position < end:
        found = match(text, position)
        if found is None:
            return None
        kind = found.lastgroup
        value = found[0]
        start, position = position, found.end()
        if kind == "space":
            previous = kind
            continue
        if kind == "string":
            # A prefix letter, & or another string before the quote would change its meaning.
            if previous in ("name", "string", "number", "quoted") or (tokens and key[-1] == 0):
                return None
            offset = start if ascii_text else len(text[:start].encode())
            constants.append(Constant(value[1:-1].replace("''", "'"), 0, offset, len(tokens)))
            key.append(0)
        elif kind == "number":
            if previous in ("name", "number", "quoted", "string") or (tokens and tokens[-1] == "."):
                return None
            type_oid = NUMERIC
            if "." not in value:
                magnitude = int(value) if len(value) < 20 else 1 << 63
                type_oid = INT4 if magnitude < 1 << 31 else INT8 if magnitude < 1 << 63 else NUMERIC
            offset = start if ascii_text else len(text[:start].encode())
            constants.append(Constant(value, type_oid, offset, len(tokens)))
            key.append(type_oid)
        elif kind == "name":
            if len(value) > 63 or previous in ("number", "quoted", "string"):
                return None
            key.append(value)
        elif kind == "quoted":
            if len(value) > 65 or not value.isascii() or previous in ("name", "quoted", "string", "number"):
                return None
            key.append(value)
        elif kind == "operator":
            if (value == "-" and text.startswith("--", start)) or (value == "/" and text.startswith("/*", start)):
                return None
            key.append(value)
        else:
            if value == "." and (text.startswith("..", start) or (tokens and tokens[-1] == ".")):
                return None
            key.append(value)
        tokens.append(value)
        previous = kind or ""
    return Lexed(tuple(tokens), tuple(constants), tuple(key))


def cut_comment(text: str) -> tuple[str, dict[str, str] | None]:
    """Cut one trailing sqlcommenter comment off: the text without it, and its decoded pairs.

    A comment that is not of that form (``key='urlencoded',...``) stays in the text, and None is returned.
    """
    if "/*" not in text:
        return text, None
    start = text.rfind("/*")
    found = _COMMENT.match(text, start)
    if found is None or ("'" in text[:start] and text[:start].count("'") % 2):
        return text, None
    pairs: dict[str, str] = {}
    body = found[1]
    position = 0
    while position < len(body):
        pair = _PAIR.match(body, position)
        if pair is None:
            return text, None
        pairs[unquote(pair[1])] = unquote(pair[2])
        position = pair.end()
        if position < len(body):
            if body[position] != ",":
                return text, None
            position += 1
    if not pairs:
        return text, None
    return text[:start].rstrip(), pairs
