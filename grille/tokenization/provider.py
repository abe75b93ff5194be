"""The one interface behind which values become tokens and tokens become values.

The interface is asynchronous and takes batches: one call for all values of a flush, whoever the provider is
(embedded keys answer at once, Vault over the network).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec


class TokenizationError(Exception):
    """The provider could not answer: sealed, slow, down.  The caller denies.  The text, for operators, has no value."""


class TokenizationRefused(TokenizationError):
    """The provider answers, but refuses, or has another key or template: trying again later does not help."""


class ReadOnly(TokenizationError):
    """The transformation only reads tokens that were made elsewhere.  The caller denies; trying again is no use."""


class Unfit(msgspec.Struct, frozen=True):
    """A value that does not fit its template.  ``reason`` never repeats the value."""

    reason: str


class TokenRequest(msgspec.Struct, frozen=True):
    """One value to encode or one token to decode under one transformation."""

    transformation: str
    """Name of a transformation of the configuration."""
    value: str

    def __repr__(self) -> str:
        return f"TokenRequest({self.transformation!r}, <{len(self.value)} characters>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What rich prints, in tracebacks with local variables too: msgspec's own would show the value."""
        return [("transformation", self.transformation), ("characters", len(self.value))]


class TokenProvider(Protocol):
    """What enforcement needs of a provider.  Replies are in the order of the requests."""

    async def encode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        """Values to tokens.

        Raises `TokenizationError` if the provider does not answer, `ReadOnly` if a transformation makes no tokens.
        """

    async def decode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        """Tokens to values.  Raises `TokenizationError` if the provider does not answer."""
