"""Decryption with FF3-1, the mode of the first draft of NIST SP 800-38G revision 1 (2019), to read old ciphertext.

The second draft (2025) removes FF3-1 because of its weaknesses; Vault Transform made its tokens with it until FF1 took
its place.  So nothing here encrypts.  FF3-1 is a Feistel network of eight rounds over two halves; every string of bytes
and of numerals is read backwards, so that a half is a number with its least significant numeral first, and the cipher
is AES under the reversed key over little-endian blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

TWEAK_BYTES: Final = 7
"""Exactly."""
MINIMUM_DOMAIN: Final = 1_000_000
"""Fewest strings (radix ** length)."""
MAXIMUM_RADIX: Final = 65536
_HALF: Final = 96
"""Bits that a half may have."""
_ROUNDS: Final = 8


class FF3_1:  # noqa: N801 (the name of the mode)
    """One AES key (16, 24 or 32 bytes), one radix (2 to 65536) and one tweak of `TWEAK_BYTES`, for decryption.

    Raises ValueError for any other key length, radix or tweak; no message holds key bytes.
    """

    def __init__(self, key: bytes, radix: int, tweak: bytes) -> None:
        if len(key) not in (16, 24, 32):
            raise ValueError(f"an FF3-1 key has 16, 24 or 32 bytes, not {len(key)}")
        if not 2 <= radix <= MAXIMUM_RADIX:
            raise ValueError(f"an FF3-1 radix is 2 to {MAXIMUM_RADIX}, not {radix}")
        if len(tweak) != TWEAK_BYTES:
            raise ValueError(f"an FF3-1 tweak has {TWEAK_BYTES} bytes, not {len(tweak)}")
        self.radix = radix
        self.longest = longest(radix)
        """Most numerals of a string."""
        self._aes = Cipher(algorithms.AES(key[::-1]), modes.ECB()).encryptor().update  # noqa: S305 (built from single blocks)
        # algorithm 10, step 3: the tweak's 28 bits for the even and for the odd rounds, each before four zero bits
        left = bytes((*tweak[:3], tweak[3] & 0xF0))
        right = bytes((*tweak[4:], (tweak[3] & 0x0F) << 4))
        # The last four bytes of a block, which is read backwards: tweak and round number.
        self._tails = tuple(
            (int.from_bytes(right if i % 2 == 0 else left, "big") ^ i).to_bytes(4, "little") for i in range(_ROUNDS)
        )

    def __repr__(self) -> str:
        return f"FF3_1(radix={self.radix})"

    def decrypt(self, numerals: Sequence[int]) -> list[int]:
        """Decrypt one string of numerals, each 0 <= numeral < radix.

        Raises ValueError if the string is too short or too long or a numeral is out of range; the numeral is not told.
        """
        length = len(numerals)
        # With radix 2 and above, 20 numerals are a million strings.
        if self.radix ** min(length, 20) < MINIMUM_DOMAIN:
            raise ValueError(f"{length} numerals of radix {self.radix} are fewer than {MINIMUM_DOMAIN} strings")
        if length > self.longest:
            raise ValueError(f"an FF3-1 string of radix {self.radix} has at most {self.longest} numerals, not {length}")
        first = length - length // 2
        a, b = self._number(numerals[:first]), self._number(numerals[first:])
        moduli = self.radix**first, self.radix ** (length - first)
        for i in reversed(range(_ROUNDS)):
            block = a.to_bytes(_HALF // 8, "little") + self._tails[i]
            a, b = (b - int.from_bytes(self._aes(block), "little")) % moduli[i & 1], a
        return self._numerals(a, first) + self._numerals(b, length - first)

    def _number(self, numerals: Sequence[int]) -> int:
        number = 0
        for numeral in reversed(numerals):
            if not 0 <= numeral < self.radix:
                raise ValueError(f"a numeral is not within 0 to {self.radix - 1}")
            number = number * self.radix + numeral
        return number

    def _numerals(self, number: int, count: int) -> list[int]:
        numerals = []
        for _ in range(count):
            number, numeral = divmod(number, self.radix)
            numerals.append(numeral)
        return numerals


def longest(radix: int) -> int:
    """Most numerals of an FF3-1 string: twice as many as fit 96 bits."""
    half = 0
    while radix ** (half + 1) <= 1 << _HALF:
        half += 1
    return 2 * half
