"""AES-SIV (RFC 5297): deterministic tokens for free text, such as e-mail addresses.

The same text under the same key, token domain and key version gives the same token, so that equality, joins and
grouping work on tokens.  What a token shows is the length of the text in bytes, and which texts are equal.

A token is `PREFIX` and the unpadded URL-safe base64 (RFC 4648, section 5) of the 16-byte SIV and the ciphertext.
The associated data are the token domain (UTF-8) and the key version (8 bytes, big endian), two components of RFC 5297's
vector of associated data, so that neither can run into the other.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from grille.tokenization.provider import Unfit

PREFIX: Final = "gsiv_"
KEY_BYTES: Final = 64
"""AES-256 for the SIV and AES-256 for the ciphertext."""
MAXIMUM_BYTES: Final = 65536
"""Longest text, in bytes of UTF-8."""


class SIV:
    """One key, token domain and key version.  Raises ValueError for a key that does not have `KEY_BYTES`."""

    def __init__(self, key: bytes, token_domain: str, key_version: int) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"an AES-SIV key has {KEY_BYTES} bytes, not {len(key)}")
        self._aead = AESSIV(key)
        self._associated = [token_domain.encode(), key_version.to_bytes(8, "big")]

    def encode(self, text: str) -> str | Unfit:
        """Text to token.  A text that is a token of this key already is unfit: it would be wrapped twice."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return Unfit("the value is not valid Unicode text")
        if len(data) > MAXIMUM_BYTES:
            return Unfit(f"the value is longer than {MAXIMUM_BYTES} bytes")
        if text.startswith(PREFIX) and isinstance(self.decode(text), str):
            return Unfit("the value is a token already")
        return PREFIX + base64.urlsafe_b64encode(self._aead.encrypt(data, self._associated)).decode().rstrip("=")

    def decode(self, token: str) -> str | Unfit:
        """Token to text.  Anything that this key, domain and version did not make is unfit."""
        if not token.startswith(PREFIX):
            return Unfit("the stored value is not a token")
        body = token.removeprefix(PREFIX)
        try:
            sealed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return Unfit("the stored value is not a token")
        # Base64 has several spellings of the same bytes; only one of them is equal to the stored token.
        if base64.urlsafe_b64encode(sealed).decode().rstrip("=") != body or len(sealed) < 16:
            return Unfit("the stored value is not a token")
        try:
            return self._aead.decrypt(sealed, self._associated).decode()
        except (InvalidTag, UnicodeDecodeError):
            return Unfit("the stored value is not a token of this key and token domain")
