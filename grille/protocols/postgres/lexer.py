r"""The closed lexical subset in which a text's constants can be told from its structure
(docs/decisions/0003-plans-from-templates.md).

A text outside the subset is never cut: its exact text is its own template.  Within it, tokens end where PostgreSQL's
own scanner ends them, whatever its version and settings; the fuzz test compares both.  The subset:

* ASCII outside strings; no backslash, ``$``, ``--``, ``/*`` or NUL anywhere;
* names ``[A-Za-z_][A-Za-z0-9_]*`` of at most 63 bytes, also in double quotes;
* numbers ``[0-9]+(\.[0-9]+)?`` that touch no letter, ``_`` or ``.``;
* strings ``'..'`` with ``''`` inside; no quote follows a byte of a name, ``&`` or another quote (this drops E'', B'',
  X'', N'' and U&''), and no two strings are neighbours (PostgreSQL joins them across a line break);
* operators only ``= < > <= >= <> != + - * / % || -> ->> @> <@ ~ ::``, never two of them touching;
* ``( ) [ ] , ;`` and single dots that touch no digit and no other dot.

Tokens are joined with one space, so texts that differ in white space only share one template.
"""

from __future__ import annotations

import functools
import re
from typing import Final, Literal

import msgspec

_SPACE: Final = " \t\r\n\f"
# The last alternative takes the whole rest and leaves the group empty: findall then ends with an empty string.
_TOKEN: Final = re.compile(
    r"""[ \t\r\n\f]*+(?:(
    [A-Za-z_][A-Za-z0-9_]{0,62}+(?![A-Za-z0-9_])
  | [(),;\[\]]
  | \.(?![0-9.])
  | (?:::|->>|->|@>|<@|\|\||<>|<=|>=|!=|[=<>+\-*/%~])(?![=<>+\-*/%~!@\#^&|`?])
  | (?<![A-Za-z0-9_'"&])'(?:[^'\\\$\0\ud800-\udfff]++|'')*+'(?![ \t\r\n\f]*+')
  | (?<![A-Za-z0-9_.'"])[0-9]++(?:\.[0-9]++)?+(?![A-Za-z0-9_.])
  | (?<![A-Za-z0-9_'"&])"[A-Za-z_][A-Za-z0-9_]{0,62}+"(?!["'])
    )|[\s\S]+)""",
    re.VERBOSE,
)

Kind = Literal["STR", "INT4", "INT8", "NUM", "EDGE"]
_TYPES: Final[dict[Kind, int]] = {"STR": 0, "INT4": 23, "INT8": 20, "NUM": 1700, "EDGE": 0}
_MASKS: Final[dict[Kind, str]] = {"STR": "$s", "INT4": "$4", "INT8": "$8", "NUM": "$n", "EDGE": "$e"}
_EDGES: Final = (1 << 31, 1 << 63)
"""Behind a minus sign that is part of the number, they are of a smaller type than without it."""
_INT8_DIGITS: Final = 19
_MAX_DIGITS: Final = 1000


class Constant(msgspec.Struct, frozen=True):
    """One constant of a text."""

    value: str
    """Without quotes, a doubled quote halved: the text form of the parameter that may replace it."""
    kind: Kind
    """The class that PostgreSQL's grammar gives the constant, by its value; part of the key.

    EDGE is 2147483648 or 9223372036854775808 behind a minus: its class depends on what the minus is, so it is kept.
    """
    token: int
    """Its place among the tokens."""
    text: str
    """The text that it was cut from."""

    @property
    def type_oid(self) -> int:
        """The type to declare for the parameter: int4, int8 or numeric; 0 for strings (rule 5)."""
        return _TYPES[self.kind]

    @property
    def offset(self) -> int:
        """Byte offset in the text, as the parser reports it."""
        return _offsets(self.text)[self.token]


class Lexed(msgspec.Struct, frozen=True):
    """A text in the subset, cut into tokens."""

    tokens: tuple[str, ...]
    constants: tuple[Constant, ...]
    key: str
    """The tokens joined by one space, with the class of each constant in its place: equal exactly for texts that
    differ only in white space and in constants of the same classes."""

    def render(
        self, positions: frozenset[int], signed: frozenset[int] = frozenset()
    ) -> tuple[str, tuple[str, ...], list[Constant]]:
        """The template, the constants that it keeps, and those that became parameters.

        `positions` are indexes into `constants`; these become $1, $2, .. in their order in the text.  `signed` are
        those of them to which the minus before them belongs.
        """
        tokens = list(self.tokens)
        taken: list[Constant] = []
        kept: list[str] = []
        for index, constant in enumerate(self.constants):
            if index in positions:
                if index in signed:
                    tokens[constant.token - 1] = ""
                    constant = msgspec.structs.replace(constant, value=f"-{constant.value}")
                taken.append(constant)
                tokens[constant.token] = f"${len(taken)}"
            else:
                kept.append(constant.value)
        return " ".join([token for token in tokens if token]), tuple(kept), taken

    def origin(self, text: str, positions: frozenset[int], offset: int, signed: frozenset[int] = frozenset()) -> int:
        """Byte offset in `text`, which was cut, of the token that stands at byte `offset` of its template."""
        numbers = {self.constants[index].token: number for number, index in enumerate(sorted(positions), start=1)}
        signs = {self.constants[index].token - 1 for index in signed}
        end = -1
        for index, token in enumerate(self.tokens):
            if index in signs:
                continue
            end += 1 + len((f"${numbers[index]}" if index in numbers else token).encode())
            if offset < end:
                return _offsets(text)[index - 1 if index - 1 in signs else index]
        return 0

    def signs(self, text: str) -> dict[int, int]:
        """Byte offset of each minus that stands before a number -> the number's index among the constants."""
        found = {}
        for index, constant in enumerate(self.constants):
            if constant.kind != "STR" and constant.token and self.tokens[constant.token - 1] == "-":
                found[_offsets(text)[constant.token - 1]] = index
        return found


def tokenize(text: str | bytes) -> Lexed | None:
    """Cut `text` into tokens, or None if it is not in the subset (then its exact text is the key)."""
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            return None
    if "--" in text or "/*" in text:
        return None
    tokens: list[str] = _TOKEN.findall(text.rstrip(_SPACE))
    if not tokens or not tokens[-1]:
        return None
    masked = list(tokens)
    constants: list[Constant] = []
    for index, token in enumerate(tokens):
        first = token[0]
        if first == "'":
            value = token[1:-1]
            constants.append(Constant(value.replace("''", "'") if "'" in value else value, "STR", index, text))
            masked[index] = "$s"
        elif first in "0123456789":
            kind = _number(token)
            if kind is None:
                return None
            if kind != "INT4" and index and tokens[index - 1] == "-" and "." not in token and int(token) in _EDGES:
                kind = "EDGE"
            constants.append(Constant(token, kind, index, text))
            masked[index] = _MASKS[kind]
    return Lexed(tuple(tokens), tuple(constants), " ".join(masked))


_CUT: Final = re.compile(
    rb"(?<=[ \t\r\n(,=<>+*-])('[ -#%&(-\[\]-~]*+'|[0-9]{1,18}+(?:\.[0-9]{1,18}+)?+)(?=[ \t\r\n,);+*-]|\Z)"
)


def cut(text: bytes) -> tuple[tuple[bytes, ...], bytes, list[bytes]] | None:
    """`text` as what stands between its plain constants, the class of each of these, and the constants themselves.

    Much cheaper than `tokenize`, and enough once one text with the same pieces and classes has been looked at with it
    (`cut_places`): every constant that is cut here stands between bytes that belong to no token, or to an operator that
    ends there, so the tokens of two such texts differ in these constants only.  None for a text that may hold a
    comment.
    """
    if b"--" in text or b"/*" in text:
        return None
    parts = _CUT.split(text)
    constants = parts[1::2]
    classes = bytes([115 if c[0] == 39 else 52 if c.isdigit() and len(c) < 10 else _other_class(c) for c in constants])
    return tuple(parts[::2]), classes, constants


def _other_class(number: bytes) -> int:
    if b"." in number:
        return 110
    value = int(number)
    return 52 if value < 1 << 31 else 101 if value == 1 << 31 else 56


def cut_places(text: bytes, lexed: Lexed) -> dict[int, int] | None:
    """Which of `lexed.constants` each constant of `cut(text)` is, both counted from 0.

    None if one of them is not a constant to the lexer: then texts like this one must not be told apart by `cut`.
    """
    by_span = {}
    for index, constant in enumerate(lexed.constants):
        start = constant.offset
        by_span[start, start + len(lexed.tokens[constant.token].encode())] = index
    places = {}
    for number, found in enumerate(_CUT.finditer(text)):
        index = by_span.get(found.span(1), -1)
        if index < 0:
            return None
        places[number] = index
    return places


def _number(token: str) -> Kind | None:
    """The class of a number (gram.y, make_const): by value for whole numbers.  None if it is absurdly long."""
    if len(token) < 10 and "." not in token:
        return "INT4"
    if len(token) > _MAX_DIGITS:
        return None
    if "." in token:
        return "NUM"
    digits = token.lstrip("0")
    if len(digits) > _INT8_DIGITS:
        return "NUM"
    value = int(digits or "0")
    return "INT4" if value < 1 << 31 else "INT8" if value < 1 << 63 else "NUM"


@functools.lru_cache(maxsize=8)
def _offsets(text: str) -> tuple[int, ...]:
    """Byte offset of each token of an eligible text."""
    starts = [found.start(1) for found in _TOKEN.finditer(text.rstrip(_SPACE))]
    if text.isascii():
        return tuple(starts)
    offsets = []
    before, size = 0, 0
    for start in starts:
        size += len(text[before:start].encode())
        before = start
        offsets.append(size)
    return tuple(offsets)
