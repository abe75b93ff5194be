"""The demo's identities, keys and configuration, written to its directory."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Final, NamedTuple

import grille.policies
from grille.proxy.authority import Authority, write_private, write_signing_key
from grille.proxy.demo import bank
from grille.tokenization.transformation import Key

TRUST_DOMAIN: Final = "bank.example"
FRAUD: Final = f"spiffe://{TRUST_DOMAIN}/ns/fraud/sa/scorer"
SERVICE: Final = f"spiffe://{TRUST_DOMAIN}/ns/service/sa/assistant"
BRANCH: Final = "0042"
"""The branch of the customer service agent."""


class Files(NamedTuple):
    """What `write_secrets` wrote, by path."""

    directory: Path
    bundle: Path
    """The trust domain's CA certificate."""
    server: Path
    """Grille's certificate; the key is beside it, as ``.key``."""
    agents: dict[str, Path]
    """By SPIFFE ID: the agent's certificate, with ``.key`` (PEM) and ``.pk8`` (DER) beside it."""
    password: Path
    signing_key: Path
    audit: Path
    config: Path
    log: Path


def write_secrets(directory: Path) -> tuple[Files, list[Key]]:
    """Make a CA with three certificates, a database password, two token keys and a signing key, all new."""
    identity = directory / "identity"
    keys = directory / "keys"
    for place in (identity, keys):
        place.mkdir(mode=0o700)
    authority = Authority(TRUST_DOMAIN)
    authority.write_bundle(identity / "ca.pem")
    agents = {
        spiffe_id: authority.issue(spiffe_id.removeprefix(f"spiffe://{TRUST_DOMAIN}/")).write(identity, name)
        for spiffe_id, name in ((FRAUD, "scorer"), (SERVICE, "assistant"))
    }
    token_keys = [Key("fpe", 1, secrets.token_bytes(32)), Key("siv", 1, secrets.token_bytes(64))]
    for key in token_keys:
        write_private(keys / f"{key.name}.hex", key.material.hex().encode() + b"\n")
    write_private(keys / "database-password", secrets.token_urlsafe(24).encode() + b"\n")
    write_signing_key(keys / "audit-signing.pem")
    files = Files(
        directory=directory,
        bundle=identity / "ca.pem",
        server=authority.issue_server().write(identity, "grille"),
        agents=agents,
        password=keys / "database-password",
        signing_key=keys / "audit-signing.pem",
        audit=directory / "audit",
        config=directory / "grille.toml",
        log=directory / "grille.log",
    )
    return files, token_keys


def write_config(files: Files, token_keys: list[Key], socket: Path, port: int) -> None:
    """Write ``grille.toml`` for a PostgreSQL behind this unix socket directory and port number."""
    policy = Path(grille.policies.__file__).parent / "bundles" / "demo.tar.gz"
    sections = [
        "# Written by grille demo.  Every key is explained in docs/reference/configuration.md.",
        _section(
            "[listener]",
            host="127.0.0.1",
            port=0,
            certificate=files.server,
            key=files.server.with_suffix(".key"),
        ),
        _section("[admin]", host="127.0.0.1", port=0),
        _section("[process]", workers=1, drain_seconds=5.0),
        _section("[[trust_domains]]", name=TRUST_DOMAIN, bundle=files.bundle),
        _section("[[identities]]", spiffe_id=FRAUD, database=bank.DATABASE, scopes=["customers:read", "fraud:score"]),
        _section(
            "[[identities]]",
            spiffe_id=SERVICE,
            database=bank.DATABASE,
            scopes=["customers:read", "customers:write"],
        )
        + f"attributes = {{ branch = {_value(BRANCH)} }}\n",
        _section(
            "[[databases]]",
            name=bank.DATABASE,
            host=socket,
            port=port,
            database=bank.DATABASE,
            role=bank.ROLE,
            password_file=files.password,
            tls="off",
        ),
        *(
            _section("[[keys]]", name=key.name, version=key.version, file=files.password.parent / f"{key.name}.hex")
            for key in token_keys
        ),
        *(
            _section(
                "[[transformations]]",
                name=transformation.name,
                kind=transformation.kind,
                alphabet=transformation.alphabet if transformation.kind == "fpe" else "text",
                template=transformation.template,
                token_domain=transformation.token_domain,
                key=transformation.key,
            )
            for transformation in bank.TRANSFORMATIONS
        ),
        *(
            _section("[[columns]]", name=column, sensitivity="pci" if name == "card" else "pii", transformation=name)
            for column, name in bank.SENSITIVE.items()
        ),
        _section("[policy]", bundle=policy),
        _section("[audit]", directory=files.audit, signing_key=files.signing_key),
    ]
    files.config.write_text("\n".join(sections), encoding="utf-8")


def _section(header: str, **entries: object) -> str:
    return header + "\n" + "".join(f"{name} = {_value(value)}\n" for name, value in entries.items())


def _value(value: object) -> str:
    """A TOML value; a JSON string of printable characters is a TOML string."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
