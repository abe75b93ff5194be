"""A stand-in that is set up for the transformations of a test, and how Grille logs in to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hvac

from grille.proxy.authority import write_private
from grille.proxy.config import Vault as Settings
from grille.tokenization.transformation import ALPHABETS
from grille.tokenization.vault import VaultTransformation
from tests.vault.server import Vault

ROLE = "grille"
SSN = (r"(\d{3})-(\d{2})-(\d{4})", "digits")


def transformation(name: str = "ssn", form: tuple[str, str] = SSN, **more: Any) -> VaultTransformation:
    return VaultTransformation(name, f"{name}-domain", *form, **more)


@contextlib.contextmanager
def admin(vault: Vault, namespace: str | None = None) -> Iterator[hvac.Client]:
    """A client that may do everything."""
    client = hvac.Client(url=vault.url, token=vault.root, namespace=namespace)
    yield client
    client.adapter.close()


def set_up(vault: Vault, made: Sequence[VaultTransformation], mount: str = "transform", namespace: str = "") -> None:
    """Mount an engine with these transformations, as ``grille tokens setup`` would make them."""
    engine = vault.mount(mount, namespace)
    for each in made:
        engine.alphabets[f"grille-{each.alphabet}"] = {"alphabet": ALPHABETS[each.alphabet]}
        engine.templates[f"grille-{each.vault_name}"] = {
            "type": "regex", "pattern": each.template.pattern, "alphabet": f"grille-{each.alphabet}",
        }  # fmt: skip
        engine.transformations[each.vault_name] = {
            "type": "fpe", "templates": [f"grille-{each.vault_name}"], "tweak_source": "supplied",
            "allowed_roles": [ROLE], "fpe_algorithm": "ff1",
        }  # fmt: skip
        vault.rekey(each.vault_name, mount, namespace)
    engine.roles[ROLE] = {"transformations": [each.vault_name for each in made]}


def approle(vault: Vault, directory: Path, *, ttl: str = "1h", max_ttl: str = "24h", policy: Any = None) -> Settings:
    """Let Grille log in by AppRole; the settings that do."""
    with admin(vault) as client:
        paths = policy or {f"transform/{part}/{ROLE}": {"capabilities": ["update"]} for part in ("encode", "decode")}
        client.sys.create_or_update_policy("grille", {"path": paths})
        client.sys.enable_auth_method("approle")
        client.auth.approle.create_or_update_approle(
            "grille", token_policies=["grille"], token_ttl=ttl, token_max_ttl=max_ttl
        )
        role_id = client.auth.approle.read_role_id("grille")["data"]["role_id"]
        secret_id = client.auth.approle.generate_secret_id("grille")["data"]["secret_id"]
    write_private(directory / "role-id", role_id.encode())
    write_private(directory / "secret-id", f"{secret_id}\n".encode())
    return Settings(
        address=vault.url, role_id_file=directory / "role-id", secret_id_file=directory / "secret-id", timeout=10.0
    )


CONFIG = """
[listener]
certificate = "x"
key = "x"
[[trust_domains]]
name = "bank.example"
bundle = "x"
[[identities]]
spiffe_id = "spiffe://bank.example/agent"
database = "bank"
[[databases]]
name = "bank"
host = "/nowhere"
database = "bank"
role = "grille"
tls = "off"
[policy]
bundle = "x"
[audit]
directory = "audit"
signing_key = "x"
"""


def section(settings: Settings, more: str = "") -> str:
    """[vault] of a file."""
    return f"""
[vault]
address = "{settings.address}"
role_id_file = "{settings.role_id_file}"
secret_id_file = "{settings.secret_id_file}"
{more}
"""


def entry(made: VaultTransformation) -> str:
    """[[transformations]] of a file."""
    version = int(made.vault_name.rpartition("-v")[2]) if made.vault_name != made.name else 1
    return f"""
[[transformations]]
name = "{made.name}"
kind = "fpe"
provider = "vault"
alphabet = "{made.alphabet}"
template = '{made.template.pattern}'
token_domain = "{made.name}-domain"
version = {version}
check = "{made.check}"
"""


def config_file(directory: Path, settings: Settings, *made: VaultTransformation) -> Path:
    """A configuration of which only Vault is used."""
    write_private(directory / "x", b"x")
    path = directory / "grille.toml"
    path.write_text(CONFIG + section(settings) + "".join(entry(each) for each in made))
    return path
