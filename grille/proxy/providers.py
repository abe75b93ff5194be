"""The token provider of a configuration: embedded keys, a Vault, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from grille.proxy import keys
from grille.proxy.config import Config, ConfigError, Problem
from grille.tokenization.joined import JoinedProvider
from grille.tokenization.provider import TokenProvider
from grille.tokenization.vault import VaultTransformation

if TYPE_CHECKING:
    from grille.proxy.vault import VaultTransform


class Provider:
    """What makes and reads a configuration's tokens."""

    def __init__(self, config: Config, on_event: Callable[[str, str], None] | None = None) -> None:
        """Raises `ConfigError`.  With a Vault the event loop must be running, and so must `watch`."""
        embedded = keys.token_provider(config)
        self.tokens: TokenProvider = embedded
        self.vault: VaultTransform | None = None
        """The Vault, if a transformation is made there."""
        transformations = vault_transformations(config)
        if transformations:
            from grille.proxy.vault import VaultTransform  # its HTTP client takes a while to import

            self.vault = VaultTransform(config.vault, transformations, on_event)
            self.tokens = JoinedProvider(
                {each.name: self.vault if each.provider == "vault" else embedded for each in config.transformations}
            )

    async def close(self) -> None:
        """Let go of the connections."""
        if self.vault is not None:
            await self.vault.close()


def vault_transformations(config: Config) -> list[VaultTransformation]:
    """Those that a Vault makes.  Raises `ConfigError`."""
    made = []
    for number, each in enumerate(config.transformations):
        if each.provider == "vault":
            try:
                made.append(
                    VaultTransformation(
                        each.name, each.token_domain, each.template, each.alphabet, each.version, each.check
                    )
                )
            except ValueError as error:
                problem = Problem(f"transformations[{number}]", "", str(error), "Correct that entry.")
                raise ConfigError("configuration", [problem]) from None
    return made
