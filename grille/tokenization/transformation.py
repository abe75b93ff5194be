"""Transformations, templates, alphabets and token domains, in the words of Vault Transform.

A *transformation* says how one kind of value becomes a token: ``fpe`` (FF1, the token looks like the value) or ``siv``
(AES-SIV, for free text).  A transformation may name FF3-1, the mode before FF1, to read what Vault made with it; such a
one makes no tokens.  A *template* finds the characters to encode inside a value, an *alphabet* says what they may
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
from typing import Any, Final, Literal

import msgspec

from grille.tokenization import ff3_1
from grille.tokenization.columns import WORTH_IT, Columns, Layout
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

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What rich prints, in tracebacks with local variables too: msgspec's own would show the bytes."""
        return [("name", self.name), ("version", self.version), ("bytes", len(self.material))]


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
    fpe_algorithm: Literal["ff1", "ff3-1"] = "ff1"
    """``ff3-1`` decodes and never encodes."""
    supplied_tweak: bytes = b""
    """``ff3-1`` only: the 7 bytes under which the tokens were made.  FF1 has `tweak`."""


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
        pieces: list[tuple[str, int, int, bool]] = []
        groups: list[bool] = []
        shortest = longest = 0
        example = ""
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
                pieces.append((literal, 1, 1, False))
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
                longest += most
                open_ended = least != most
            elif least != most:
                raise TemplateError("a run outside of groups must have one length")
            compiled.append(f"([{ALPHABETS[name]}]{{{least},{most}}})")
            groups.append(bool(piece["group"]))
            pieces.append((ALPHABETS[name], least, most, bool(piece["group"])))
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
        self.longest = longest
        """Most characters that are encrypted."""
        self.example = example
        """A value that fits, of as few characters as possible."""
        self._match = re.compile("".join(compiled), re.ASCII).fullmatch
        self._encoded = tuple(groups)
        self._whole = groups == [True]
        self._pieces = pieces
        self.most = sum(most for _, _, most, _ in pieces)
        """Most characters of a value, kept ones included."""

    def layout(self, length: int) -> Layout | None:
        """What stands where in a value of so many characters, if that can be said before the value is seen.

        None if no value has this length, if two groups share it in more than one way, or if a literal is not ASCII.
        """
        spare = length - sum(least for _, least, _, _ in self._pieces)
        if sum(least != most for _, least, most, _ in self._pieces) > 1 or not self.pattern.isascii():
            return None
        allowed: list[str] = []
        encoded: list[int] = []
        for characters, least, most, to_encode in self._pieces:
            count = least if least == most else least + spare
            if not least <= count <= most:
                return None
            if to_encode:
                encoded += range(len(allowed), len(allowed) + count)
            allowed += [characters] * count
        return Layout(tuple(allowed), tuple(encoded)) if len(allowed) == length else None

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
        self._columns: dict[int, Columns | None] = {}

    def encode(self, values: Sequence[str]) -> list[str | Unfit]:
        """Values to tokens, in order."""
        return self._all(values, self._ff1.encrypt_halves, "the value does not fit the template", decrypt=False)

    def decode(self, tokens: Sequence[str]) -> list[str | Unfit]:
        """Tokens to values, in order.  FF1 has no check value: any string that fits the template decodes."""
        return self._all(tokens, self._ff1.decrypt_halves, "the stored value does not fit the template", decrypt=True)

    def _all(self, values: Sequence[str], transform: _Transform, unfit: str, *, decrypt: bool) -> list[str | Unfit]:
        """Values of one length at once, where there are enough of them; the others one after the other."""
        if len(values) == 1:
            return [self._alone(values[0], transform, unfit)]
        if len(values) < WORTH_IT:
            return self._each(values, transform, unfit)
        lengths = set(map(len, values))
        if len(lengths) == 1:
            return self._same_length(lengths.pop(), values, transform, unfit, decrypt=decrypt)
        places: dict[int, list[int]] = {}
        for place, value in enumerate(values):
            places.setdefault(len(value), []).append(place)
        results: list[str | Unfit] = [Unfit(unfit)] * len(values)
        for length, found in places.items():
            some = [values[place] for place in found]
            replies = self._same_length(length, some, transform, unfit, decrypt=decrypt)
            for place, reply in zip(found, replies, strict=True):
                results[place] = reply
        return results

    def _same_length(
        self, length: int, values: Sequence[str], transform: _Transform, unfit: str, *, decrypt: bool
    ) -> list[str | Unfit]:
        if len(values) >= WORTH_IT and length <= self._template.most:
            if length not in self._columns:
                self._columns[length] = self._new_columns(length)
            columns = self._columns[length]
            found = columns.transform(values, decrypt=decrypt) if columns is not None else None
            if found is not None:
                texts, fits = found
                if fits is None:
                    return list[str | Unfit](texts)
                following = iter(texts)
                return [next(following) if good else Unfit(unfit) for good in fits]
        return self._each(values, transform, unfit)

    def _new_columns(self, length: int) -> Columns | None:
        layout = self._template.layout(length)
        if layout is None or not self._ff1.takes_arrays(len(layout.encoded), self._tweak):
            return None
        return Columns(self._ff1, self._tweak, self._characters, layout)

    def _alone(self, value: str, transform: _Transform, unfit: str) -> str | Unfit:
        split = self._template.split(value)
        if split is None:
            return Unfit(unfit)
        parts, text = split
        length = len(text)
        middle = length // 2
        ((left, right),) = transform(length, [(self._number(text[:middle]), self._number(text[middle:]))], self._tweak)
        return self._template.join(parts, self._text(left, middle) + self._text(right, length - middle))

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


PLAIN_ORDER: Final = ("digits", "lower", "upper")
"""Alphabets whose order is beyond doubt.  A character's numeral is its position, so a service that puts capitals after
small letters makes other tokens, and decoding them would give a plausible wrong value."""


class OldFPE:
    """One FF3-1 transformation, which reads what another system wrote: key, supplied tweak and template.

    It has no ``encode``.  Raises ValueError or `TemplateError`.
    """

    def __init__(self, key: Key, supplied_tweak: bytes, template: Template) -> None:
        if len(key.material) != 32:
            raise ValueError(f"the key {key.name!r} has {len(key.material)} bytes; an fpe key has 32 (AES-256)")
        if template.alphabet not in PLAIN_ORDER:
            raise TemplateError(
                f"ff3-1 reads the alphabets {', '.join(PLAIN_ORDER)}; in which order another system has the "
                f"characters of {template.alphabet!r} is not known"
            )
        self._characters = ALPHABETS[template.alphabet]
        self._numerals = {character: numeral for numeral, character in enumerate(self._characters)}
        self._ff3_1 = ff3_1.FF3_1(key.material, len(self._characters), supplied_tweak)
        if template.longest > self._ff3_1.longest:
            raise TemplateError(
                f"the groups hold up to {template.longest} characters; ff3-1 has at most {self._ff3_1.longest} "
                f"of {len(self._characters)}"
            )
        self._template = template

    def decode(self, tokens: Sequence[str]) -> list[str | Unfit]:
        """Tokens to values, in order.  FF3-1 has no check value: any string that fits the template decodes."""
        return [self._one(token) for token in tokens]

    def _one(self, token: str) -> str | Unfit:
        split = self._template.split(token)
        if split is None:
            return Unfit("the stored value does not fit the template")
        parts, text = split
        numerals = self._ff3_1.decrypt([self._numerals[character] for character in text])
        return self._template.join(parts, "".join([self._characters[numeral] for numeral in numerals]))
