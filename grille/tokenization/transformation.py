"""Transformations, templates, alphabets and token domains, in the words of Vault Transform.

A *transformation* says how one kind of value becomes a token: ``fpe`` (FF1, the token looks like the value) or ``siv``
(AES-SIV, for free text).  A *template* finds the characters to encode inside a value, an *alphabet* says what they may
be.  A *token domain* is a set of columns in which equal values have equal tokens.

A template is a small subset of regular expressions, so that three things are certain when the configuration is read:
the shortest string that is encrypted, that matching takes linear time, and that a token fits the template of its value,
split at the same places.  It is a sequence of

- groups ``(C{n})`` or ``(C{n,m})``, where C is the alphabet (``\\d``, ``[0-9]``, ``[a-z]``, ``[A-Z]`` or
  ``[0-9A-Za-z]``): these characters are encoded; all groups joined are one FF1 string;
- runs ``C{n}`` outside groups: these characters are kept;
- literal characters (a special one after a backslash): separators, kept.

A group of variable length ends the template or is followed by a literal that is not in the alphabet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Final, Literal

import msgspec

from grille.tokenization.ff1 import FF1, RECOMMENDED_DOMAIN, Halves
from grille.tokenization.provider import Unfit

_Transform = Callable[[int, Sequence[Halves], bytes], list[Halves]]

ALPHABETS: Final[dict[str, str]] = {
    "digits": "0123456789",
    "lower": "abcdefghijklmnopqrstuvwxyz",
    "upper": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "alphanumeric": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
}
"""Characters by alphabet; a character's numeral is its position."""

MAXIMUM_LENGTH: Final = 256
"""Most characters that one quantifier may ask for."""

_PIECE = re.compile(
    r"""
    (?P<group>\()?
    (?P<class>\\d|\[(?:0-9|a-z|A-Z|0-9A-Za-z|0-9a-zA-Z|A-Za-z0-9|a-zA-Z0-9)\])
    (?:\{(?P<least>[0-9]{1,4})(?:,(?P<most>[0-9]{1,4}))?\})?
    (?(group)\))
    | \\(?P<escaped>[^\w\s])
    | (?P<literal>[^\\()\[\]{}.*+?^$|])
    """,
    re.VERBOSE | re.ASCII,
)
_CLASSES: Final = {
    r"\d": "digits",
    "[0-9]": "digits",
    "[a-z]": "lower",
    "[A-Z]": "upper",
    "[0-9A-Za-z]": "alphanumeric",
    "[0-9a-zA-Z]": "alphanumeric",
    "[A-Za-z0-9]": "alphanumeric",
    "[a-zA-Z0-9]": "alphanumeric",
}


class TemplateError(ValueError):
    """A template, alphabet or key that cannot be used; the text says what to change."""


class Key(msgspec.Struct, frozen=True):
    """One tokenization key: 32 bytes for ``fpe``, 64 for ``siv``."""

    name: str
    version: int
    material: bytes

    def __repr__(self) -> str:
        return f"Key(name={self.name!r}, version={self.version}, material=<{len(self.material)} bytes>)"


class Transformation(msgspec.Struct, frozen=True):
    """How one kind of sensitive value becomes a token."""

    name: str
    kind: Literal["fpe", "siv"]
    token_domain: str
    key: str
    """Name of a key."""
    alphabet: str = "digits"
    """``fpe``: a name out of `ALPHABETS`.  ``siv`` encodes text as it is."""
    template: str = ""
    """``fpe`` only."""


def tweak(token_domain: str, key_version: int) -> bytes:
    """The FF1 tweak: the first 7 bytes of SHA-256 over the domain's length in bytes (4 bytes, big endian), the domain
    (UTF-8) and the key version (8 bytes, big endian).

    Stored tokens depend on it for ever.
    """
    domain = token_domain.encode()
    return hashlib.sha256(len(domain).to_bytes(4, "big") + domain + key_version.to_bytes(8, "big")).digest()[:7]


class Template:
    """A parsed template.  Raises `TemplateError`."""

    def __init__(self, pattern: str, alphabet: str) -> None:
        if alphabet not in ALPHABETS:
            raise TemplateError(f"the alphabet {alphabet!r} is not one of {', '.join(ALPHABETS)}")
        self.pattern = pattern
        self.alphabet = alphabet
        characters = ALPHABETS[alphabet]
        compiled: list[str] = []
        groups: list[bool] = []
        example = ""
        shortest = 0
        open_ended = False
        position = 0
        while position < len(pattern):
            piece = _PIECE.match(pattern, position)
            if piece is None:
                raise TemplateError(
                    f"the template is not understood at character {position + 1}: use groups like (\\d{{3}}), "
                    "kept runs like \\d{2} and literal separators"
                )
            position = piece.end()
            if piece["class"] is None:
                literal = piece["escaped"] or piece["literal"]
                if open_ended and literal in characters:
                    raise TemplateError("a group of variable length is followed by a character of its own alphabet")
                open_ended = False
                compiled.append(f"({re.escape(literal)})")
                example += literal
                groups.append(False)
                continue
            if open_ended:
                raise TemplateError("a group of variable length must end the template or be followed by a separator")
            name = _CLASSES[piece["class"]]
            least = int(piece["least"] or 1)
            most = int(piece["most"] or least)
            if not 1 <= least <= most <= MAXIMUM_LENGTH:
                raise TemplateError(f"a length must be 1 to {MAXIMUM_LENGTH}, the least before the most")
            if piece["group"]:
                if name != alphabet:
                    raise TemplateError(f"a group of {name} does not hold exactly the alphabet {alphabet!r}")
                shortest += least
                open_ended = least != most
            elif least != most:
                raise TemplateError("a run outside of groups must have one length")
            compiled.append(f"([{ALPHABETS[name]}]{{{least},{most}}})")
            groups.append(bool(piece["group"]))
            example += (ALPHABETS[name] * least)[:least]
        if not any(groups):
            raise TemplateError("the template has no group: put what is to be encoded in parentheses, like (\\d{9})")
        if len(characters) ** shortest < RECOMMENDED_DOMAIN:
            raise TemplateError(
                f"the groups hold at least {shortest} characters of {len(characters)}, fewer than a million strings: "
                "too few to be encrypted"
            )
        self.shortest = shortest
        """Fewest characters that are encrypted."""
        self.example = example
        """A value that fits, of as few characters as possible."""
        self._match = re.compile("".join(compiled), re.ASCII).fullmatch
        self._encoded = tuple(groups)
        self._whole = groups == [True]

    def split(self, value: str) -> tuple[Sequence[str], str] | None:
        """All parts of a value in order and the characters to encode, joined; None if it does not fit."""
        found = self._match(value)
        if found is None:
            return None
        if self._whole:
            return (value,), value
        parts = found.groups()
        return parts, "".join(compress(parts, self._encoded))

    def same_form(self, value: str, other: str) -> bool:
        """Whether both fit, and differ in nothing but the characters to encode."""
        left, right = self.split(value), self.split(other)
        if left is None or right is None or len(value) != len(other):
            return False
        return self._whole or all(
            len(one) == len(two) if encoded else one == two
            for one, two, encoded in zip(left[0], right[0], self._encoded, strict=True)
        )

    def join(self, parts: Sequence[str], characters: str) -> str:
        """The value with its encoded parts replaced by `characters`, which has their length."""
        if self._whole:
            return characters
        result: list[str] = []
        start = 0
        for part, encoded in zip(parts, self._encoded, strict=True):
            if encoded:
                result.append(characters[start : start + len(part)])
                start += len(part)
            else:
                result.append(part)
        return "".join(result)


class FPE:
    """One FF1 transformation: key, tweak and template.  Raises ValueError or `TemplateError`."""

    def __init__(self, key: Key, token_domain: str, template: Template) -> None:
        if len(key.material) != 32:
            raise ValueError(f"the key {key.name!r} has {len(key.material)} bytes; an fpe key has 32 (AES-256)")
        self._characters = ALPHABETS[template.alphabet]
        self._numerals = {character: numeral for numeral, character in enumerate(self._characters)}
        self._ff1 = FF1(key.material, len(self._characters))
        self._tweak = tweak(token_domain, key.version)
        self._template = template

    def encode(self, values: Sequence[str]) -> list[str | Unfit]:
        """Values to tokens, in order."""
        return self._each(values, self._ff1.encrypt_halves, "the value does not fit the template")

    def decode(self, tokens: Sequence[str]) -> list[str | Unfit]:
        """Tokens to values, in order.  FF1 has no check value: any string that fits the template decodes."""
        return self._each(tokens, self._ff1.decrypt_halves, "the stored value does not fit the template")

    def _each(self, values: Sequence[str], transform: _Transform, unfit: str) -> list[str | Unfit]:
        results: list[str | Unfit] = [Unfit(unfit)] * len(values)
        by_length: dict[int, list[tuple[int, Sequence[str], str]]] = {}
        for position, value in enumerate(values):
            split = self._template.split(value)
            if split is not None:
                parts, characters = split
                by_length.setdefault(len(characters), []).append((position, parts, characters))
        for length, fitting in by_length.items():
            middle = length // 2
            halves = [(self._number(text[:middle]), self._number(text[middle:])) for _, _, text in fitting]
            for (position, parts, _), (left, right) in zip(
                fitting, transform(length, halves, self._tweak), strict=True
            ):
                characters = self._text(left, middle) + self._text(right, length - middle)
                results[position] = self._template.join(parts, characters)
        return results

    def _number(self, text: str) -> int:
        if len(self._characters) == 10:
            return int(text)
        number = 0
        for character in text:
            number = number * len(self._characters) + self._numerals[character]
        return number

    def _text(self, number: int, length: int) -> str:
        if len(self._characters) == 10:
            return f"{number:0{length}d}"
        characters = []
        for _ in range(length):
            number, numeral = divmod(number, len(self._characters))
            characters.append(self._characters[numeral])
        return "".join(reversed(characters))
