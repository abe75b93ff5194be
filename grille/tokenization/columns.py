"""A whole column of values at once: from texts to the halves that FF1 takes, and back, in NumPy.

One value at a time, looking for the characters to encode and joining them again costs ten times what FF1 itself costs
in a batch.  Here all values of one length are one matrix of bytes, in which each position of the template is a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from grille.tokenization.ff1 import FF1, Numbers

WORTH_IT: Final = 20
"""Values of one length from which on this is faster than one after the other."""
_INVALID: Final = 255
_Bytes = npt.NDArray[np.uint8]


class Layout(msgspec.Struct, frozen=True):
    """What a template asks of each position of a value of one length."""

    allowed: tuple[str, ...]
    """The characters that may stand at each position, all of them ASCII."""
    encoded: tuple[int, ...]
    """The positions that are encoded."""


class Columns:
    """FF1 under one tweak over values of one layout.

    The number of encoded characters must be one that `FF1.takes_arrays`.  Raises ValueError if it is not.
    """

    def __init__(self, ff1: FF1, tweak: bytes, characters: str, layout: Layout) -> None:
        if not ff1.takes_arrays(len(layout.encoded), tweak):
            raise ValueError(f"{len(layout.encoded)} characters of {len(characters)} do not fit two arrays")
        self._ff1 = ff1
        self._tweak = tweak
        self._width = len(layout.allowed)
        self._length = len(layout.encoded)
        self._encoded = np.array(layout.encoded, dtype=np.intp)
        self._whole = self._length == self._width
        self._kept = [
            (position, _table(allowed, [1] * len(allowed), 0))
            for position, allowed in enumerate(layout.allowed)
            if position not in layout.encoded
        ]
        radix = len(characters)
        self._numeral = _table(characters, range(radix), _INVALID)
        middle = self._length // 2
        self._powers = np.zeros((self._length, 2))
        for column, (start, end) in enumerate(((0, middle), (middle, self._length))):
            for position in range(start, end):
                # Exact: every partial sum is a whole number below 2**32.
                self._powers[position, column] = radix ** (end - 1 - position)
        self._lengths = middle, self._length - middle
        self._chunk = next(size for size in (4, 3, 2, 1) if radix**size <= 20_000)
        """Characters that are looked up at once."""
        self._texts = _chunks(characters, self._chunk)

    def transform(self, values: Sequence[str], *, decrypt: bool) -> tuple[list[str], list[bool] | None] | None:
        """The values that fit, encoded or decoded, and which of all values those are; None: all.

        The values must all have the layout's length.  None in place of the pair: they are not all ASCII, so they have
        to be looked at one by one.
        """
        joined = "".join(values)
        if not joined.isascii():
            return None
        width = self._width
        matrix = np.frombuffer(joined.encode("ascii"), dtype=np.uint8).reshape(len(values), width)
        numerals = self._numeral.take(matrix if self._whole else matrix[:, self._encoded])
        fits = None
        if numerals.max() == _INVALID:
            fits = (numerals != _INVALID).all(axis=1)
        for position, allowed in self._kept:
            good = allowed.take(matrix[:, position]).view(np.bool_)
            if not good.all():
                fits = good if fits is None else fits & good
        if fits is not None:
            numerals, matrix = numerals[fits], matrix[fits]
            if not len(matrix):
                return [], fits.tolist()
        halves = (numerals.astype(np.float64) @ self._powers).astype(np.uint64)
        transform = self._ff1.decrypt_arrays if decrypt else self._ff1.encrypt_arrays
        encoded = self._characters(transform(self._length, halves[:, 0], halves[:, 1], self._tweak))
        if not self._whole:
            changed = matrix.copy()
            changed[:, self._encoded] = encoded
            encoded = changed
        text = encoded.tobytes().decode("ascii")
        texts = [text[start : start + width] for start in range(0, len(text), width)]
        return texts, None if fits is None else fits.tolist()

    def _characters(self, halves: tuple[Numbers, Numbers]) -> _Bytes:
        """Two arrays of numbers as a matrix of characters."""
        matrix = np.empty((len(halves[0]), self._length), dtype=np.uint8)
        size = len(self._texts)
        start = 0
        for numbers, length in zip(halves, self._lengths, strict=True):
            rest = numbers.astype(np.uint32)
            end = start + length
            while end > start:
                taken = min(self._chunk, end - start)
                higher = rest // np.uint32(size)
                texts = self._texts.take(rest - higher * np.uint32(size), axis=0)
                matrix[:, end - taken : end] = texts[:, self._chunk - taken :]
                rest, end = higher, end - taken
            start += length
        return matrix


def _table(characters: str, entries: Sequence[int], other: int) -> _Bytes:
    """256 entries by character code."""
    table = np.full(256, other, dtype=np.uint8)
    for character, entry in zip(characters, entries, strict=True):
        table[ord(character)] = entry
    return table


def _chunks(characters: str, size: int) -> _Bytes:
    """A row with the characters of each number of `size` numerals."""
    codes = np.frombuffer(characters.encode("ascii"), dtype=np.uint8)
    numbers = np.arange(len(characters) ** size)
    columns = [codes[numbers // len(characters) ** (size - 1 - place) % len(characters)] for place in range(size)]
    return np.stack(columns, axis=1)
