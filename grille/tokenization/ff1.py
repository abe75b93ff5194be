"""FF1, the format-preserving encryption mode of NIST SP 800-38G revision 1.

FF1 maps a string of numerals of one radix to another of the same radix and length.  It is a Feistel network of ten
rounds over two halves of the string; the round function is a CBC-MAC with AES.  Here the halves are integers, and three
ways of doing the rounds give equal results:

- one value at a time, for any length;
- a batch with one AES call a round, in plain Python, where the changing part of a round's input is one AES block;
- the same with NumPy, where a half is below 2**32 (up to 18 decimal digits), so that a round fits unsigned 64-bit
  arithmetic; also for halves that are in arrays already, which is what whole columns of text use
  (`grille.tokenization.columns`).

The primitive accepts any domain of at least `MINIMUM_DOMAIN` strings.  What is stored in a database needs
`RECOMMENDED_DOMAIN`; `grille.tokenization.transformation` demands that.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

MINIMUM_DOMAIN: Final = 100
"""Fewest strings (radix ** length) that the primitive accepts."""
RECOMMENDED_DOMAIN: Final = 1_000_000
"""Fewest strings that the second draft of SP 800-38G r1 (2025) allows."""
MAXIMUM_RADIX: Final = 65536
MAXIMUM_TWEAK: Final = 65535
"""Bytes."""

Halves = tuple[int, int]
"""The first length // 2 numerals and the rest, each as one integer, most significant numeral first."""

Numbers = npt.NDArray[np.uint64]
"""One half of each of many strings."""

_ROUNDS: Final = 10
_LOW: Final = (1 << 64) - 1
_PLAIN_FROM: Final = 8
"""Batch size at which one AES call a round overtakes one value after the other."""
_NUMPY_FROM: Final = 24
"""Batch size at which NumPy overtakes plain Python."""
_SHAPES_KEPT: Final = 1024


class FF1:
    """One AES key (16, 24 or 32 bytes) and one radix (2 to 65536).

    Raises ValueError for any other key length or radix.  An instance is for one thread.
    """

    def __init__(self, key: bytes, radix: int) -> None:
        if len(key) not in (16, 24, 32):
            raise ValueError(f"an FF1 key has 16, 24 or 32 bytes, not {len(key)}")
        if not 2 <= radix <= MAXIMUM_RADIX:
            raise ValueError(f"an FF1 radix is 2 to {MAXIMUM_RADIX}, not {radix}")
        self.radix = radix
        encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 (FF1 is built from single blocks)
        self._aes = encryptor.update
        self._aes_into = encryptor.update_into
        self._shapes: dict[tuple[int, bytes], _Shape] = {}

    def __repr__(self) -> str:
        return f"FF1(radix={self.radix})"

    def encrypt(self, numerals: Sequence[int], tweak: bytes = b"") -> list[int]:
        """Encrypt one string of numerals, each 0 <= numeral < radix.

        Raises ValueError if the domain is too small, a numeral is out of range or the tweak is too long.
        """
        halves = self.encrypt_halves(len(numerals), [self.halves(numerals)], tweak)
        return self._join(len(numerals), halves[0])

    def decrypt(self, numerals: Sequence[int], tweak: bytes = b"") -> list[int]:
        """The inverse of `encrypt`, with the same errors."""
        halves = self.decrypt_halves(len(numerals), [self.halves(numerals)], tweak)
        return self._join(len(numerals), halves[0])

    def encrypt_halves(self, length: int, batch: Sequence[Halves], tweak: bytes) -> list[Halves]:
        """Encrypt many strings of `length` numerals, each given as its halves.

        The caller answers for the range of the halves.  Raises ValueError for the length or the tweak.
        """
        return self._transform(length, batch, tweak, range(_ROUNDS))

    def decrypt_halves(self, length: int, batch: Sequence[Halves], tweak: bytes) -> list[Halves]:
        """The inverse of `encrypt_halves`."""
        return self._transform(length, batch, tweak, range(_ROUNDS - 1, -1, -1))

    def takes_arrays(self, length: int, tweak: bytes) -> bool:
        """Whether `encrypt_arrays` and `decrypt_arrays` take strings of this length.  Raises ValueError like them."""
        shape = self._shape(length, tweak)
        return shape.one_block and shape.fits_uint64

    def encrypt_arrays(self, length: int, left: Numbers, right: Numbers, tweak: bytes) -> tuple[Numbers, Numbers]:
        """`encrypt_halves` for halves that are in two arrays already; these are not changed.

        The caller answers for the range of the halves.  Raises ValueError for the length or the tweak, also where
        `takes_arrays` is false.
        """
        return self._arrays(self._array_shape(length, tweak), left, right, range(_ROUNDS))

    def decrypt_arrays(self, length: int, left: Numbers, right: Numbers, tweak: bytes) -> tuple[Numbers, Numbers]:
        """The inverse of `encrypt_arrays`."""
        return self._arrays(self._array_shape(length, tweak), left, right, range(_ROUNDS - 1, -1, -1))

    def _array_shape(self, length: int, tweak: bytes) -> _Shape:
        if not self.takes_arrays(length, tweak):
            raise ValueError(f"the halves of {length} numerals of radix {self.radix} do not fit 32 bits each")
        return self._shape(length, tweak)

    def _transform(self, length: int, batch: Sequence[Halves], tweak: bytes, rounds: range) -> list[Halves]:
        shape = self._shape(length, tweak)
        if len(batch) < _PLAIN_FROM or not shape.one_block:
            return [self._one(shape, halves, rounds) for halves in batch]
        if len(batch) < _NUMPY_FROM or not shape.fits_uint64:
            return self._plain(shape, batch, rounds)
        return self._numpy(shape, batch, rounds)

    def _shape(self, length: int, tweak: bytes) -> _Shape:
        shape = self._shapes.get((length, tweak))
        if shape is None:
            if len(self._shapes) >= _SHAPES_KEPT:
                self._shapes.clear()
            shape = self._shapes[(length, tweak)] = self._new_shape(length, tweak)
        return shape

    def _new_shape(self, length: int, tweak: bytes) -> _Shape:
        if length < 2 or self.radix ** min(length, 7) < MINIMUM_DOMAIN:
            raise ValueError(f"{length} numerals of radix {self.radix} are fewer than {MINIMUM_DOMAIN} strings")
        if length >= 1 << 32:
            raise ValueError("an FF1 string has fewer than 2**32 numerals")
        if len(tweak) > MAXIMUM_TWEAK:
            raise ValueError(f"an FF1 tweak has at most {MAXIMUM_TWEAK} bytes, not {len(tweak)}")
        short = length // 2
        long = length - short
        # steps 3, 4 and 5 of algorithm 7
        width = ((self.radix**long - 1).bit_length() + 7) // 8
        digest = 4 * ((width + 3) // 4) + 4
        first = (
            bytes((1, 2, 1))
            + self.radix.to_bytes(3, "big")
            + bytes((10, short % 256))
            + length.to_bytes(4, "big")
            + len(tweak).to_bytes(4, "big")
        )
        padded = tweak + bytes((-len(tweak) - width - 1) % 16)
        whole = len(padded) // 16 * 16
        state = 0
        for block in _blocks(first + padded[:whole]):
            state = self._encrypt_block(state ^ block)
        return _Shape(
            moduli=(self.radix**short, self.radix**long),
            width=width,
            digest=digest,
            state=state,
            tail=padded[whole:],
        )

    def _encrypt_block(self, block: int) -> int:
        return int.from_bytes(self._aes(block.to_bytes(16, "big")), "big")

    def _one(self, shape: _Shape, halves: Halves, rounds: range) -> Halves:
        """Algorithms 7 and 8 for one value."""
        aes = self._aes
        forward = rounds.step > 0
        a, b = halves if forward else halves[::-1]
        if shape.one_block:
            shift, number = 8 * (16 - shape.digest), int.from_bytes
            if forward:
                for start, modulus in shape.steps:
                    a, b = b, (a + (number(aes((start ^ b).to_bytes(16, "big")), "big") >> shift)) % modulus
                return a, b
            for start, modulus in reversed(shape.steps):
                a, b = b, (a - (number(aes((start ^ b).to_bytes(16, "big")), "big") >> shift)) % modulus
            return b, a
        state, width, digest, tail = shape.state, shape.width, shape.digest, shape.tail
        for i in rounds:
            mac = state
            for block in _blocks(tail + bytes((i,)) + b.to_bytes(width, "big")):
                mac = self._encrypt_block(mac ^ block)
            result = mac.to_bytes(16, "big")
            for counter in range(1, (digest + 15) // 16):
                result += aes((mac ^ counter).to_bytes(16, "big"))
            y = int.from_bytes(result[:digest], "big")
            a, b = b, (a + y if forward else a - y) % shape.moduli[i & 1]
        return (a, b) if forward else (b, a)

    def _plain(self, shape: _Shape, batch: Sequence[Halves], rounds: range) -> list[Halves]:
        """The same for many values: one AES call a round."""
        digest = shape.digest
        forward = rounds.step > 0
        left, right = zip(*batch, strict=True)
        a: Sequence[int]
        b: Sequence[int]
        a, b = (left, right) if forward else (right, left)
        count = len(batch)
        ys: Sequence[int]
        for i in rounds:
            start, modulus = shape.steps[i]
            if digest == 8:
                low = start & _LOW
                words = [start >> 64] * (2 * count)
                words[1::2] = [low ^ half for half in b]
                ys = struct.unpack(f">{'Q8x' * count}", self._aes(struct.pack(f">{2 * count}Q", *words)))
            else:
                macs = self._aes(b"".join([(start ^ half).to_bytes(16, "big") for half in b]))
                ys = [int.from_bytes(macs[offset : offset + digest], "big") for offset in range(0, 16 * count, 16)]
            if forward:
                a, b = b, [(half + y) % modulus for half, y in zip(a, ys, strict=True)]
            else:
                a, b = b, [(half - y) % modulus for half, y in zip(a, ys, strict=True)]
        return list(zip(a, b, strict=True) if forward else zip(b, a, strict=True))

    def _numpy(self, shape: _Shape, batch: Sequence[Halves], rounds: range) -> list[Halves]:
        """The same where every half is below 2**32, so that the round's number is one 64-bit word."""
        halves = np.array(batch, dtype=np.uint64)
        left, right = self._arrays(shape, halves[:, 0], halves[:, 1], rounds)
        return list(zip(left.tolist(), right.tolist(), strict=True))

    def _arrays(self, shape: _Shape, left: Numbers, right: Numbers, rounds: range) -> tuple[Numbers, Numbers]:
        forward = rounds.step > 0
        a, b = (left, right) if forward else (right, left)
        count = len(left)
        blocks = np.empty((count, 2), dtype=">u8")
        blocks[:, 0] = shape.steps[0][0] >> 64  # a half and the round's number are in the low word
        source = blocks.view(np.uint8).reshape(-1).data
        macs = bytearray(16 * count + 15)  # update_into wants room for one more block
        words = np.frombuffer(macs, dtype=">u8", count=2 * count)[::2]
        reduced = np.empty(count, dtype=np.uint64)
        for i in rounds:
            start, modulus = shape.steps[i][0] & _LOW, np.uint64(shape.steps[i][1])
            np.bitwise_xor(b, np.uint64(start), out=reduced)
            blocks[:, 1] = reduced
            self._aes_into(source, macs)
            y = words.astype(np.uint64)
            np.remainder(y, modulus, out=y)
            if forward:
                np.add(y, a, out=y)
            else:
                np.subtract(a + modulus, y, out=y)
            # now below twice the modulus; where it is below the modulus, the difference wraps around to more
            np.subtract(y, modulus, out=reduced)
            np.minimum(y, reduced, out=y)
            a, b = b, y
        return (a, b) if forward else (b, a)

    def halves(self, numerals: Sequence[int]) -> Halves:
        """The halves of one string of numerals.  Raises ValueError for a numeral that is out of range."""
        radix = self.radix
        middle = len(numerals) // 2
        halves = []
        for part in (numerals[:middle], numerals[middle:]):
            number = 0
            for numeral in part:
                if not 0 <= numeral < radix:
                    raise ValueError(f"a numeral is not within 0 to {radix - 1}")
                number = number * radix + numeral
            halves.append(number)
        return halves[0], halves[1]

    def _join(self, length: int, halves: Halves) -> list[int]:
        numerals: list[int] = []
        for number, count in zip(halves, (length // 2, length - length // 2), strict=True):
            part = []
            for _ in range(count):
                number, numeral = divmod(number, self.radix)
                part.append(numeral)
            numerals += reversed(part)
        return numerals


class _Shape:
    """What is the same for all values of one length under one tweak."""

    __slots__ = ("digest", "fits_uint64", "moduli", "one_block", "state", "steps", "tail", "width")

    def __init__(self, *, moduli: tuple[int, int], width: int, digest: int, state: int, tail: bytes) -> None:
        self.moduli = moduli
        self.width = width
        """b of the standard: bytes of a half."""
        self.digest = digest
        """d of the standard: bytes of the round's number."""
        self.state = state
        """CBC-MAC over the first block and the whole blocks of the padded tweak."""
        self.tail = tail
        """The rest of the padded tweak, which shares a block with the round number and the half."""
        self.one_block = len(tail) + 1 + width == 16 and digest <= 16
        self.fits_uint64 = digest == 8
        """A half has at most 4 bytes, so that the round's number has 8."""
        self.steps: tuple[tuple[int, int], ...] = tuple(
            (state ^ int.from_bytes(tail + bytes((i,)) + bytes(width), "big") if self.one_block else 0, moduli[i & 1])
            for i in range(_ROUNDS)
        )
        """Of each round: its block without the half, and the modulus; with `one_block` only."""


def _blocks(data: bytes) -> list[int]:
    return [int.from_bytes(data[offset : offset + 16], "big") for offset in range(0, len(data), 16)]
