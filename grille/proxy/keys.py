"""Secrets that the configuration points at, read from where they are.  No error repeats what is there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from grille.policies.signature import SignatureError, Verification, public_key
from grille.proxy.config import Config, ConfigError, Policy, Problem
from grille.proxy.config import Key as KeyEntry
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.transformation import Key, Transformation

_HEXADECIMAL: Final = "Write 32 bytes (fpe) or 64 bytes (siv) as hexadecimal digits: openssl rand -hex 32"


def token_provider(config: Config) -> EmbeddedProvider:
    """The provider of all transformations whose keys Grille holds.  Raises `ConfigError`."""
    keys = [Key(key.name, key.version, _token_key(number, key)) for number, key in enumerate(config.keys)]
    transformations = [
        Transformation(
            name=transformation.name,
            kind=transformation.kind,
            token_domain=transformation.token_domain,
            key=transformation.key,
            alphabet=transformation.alphabet,
            template=transformation.template,
        )
        for transformation in config.transformations
        if transformation.provider == "embedded"
    ]
    try:
        return EmbeddedProvider(transformations, keys)
    except ValueError as error:
        raise _problem("transformations", "", str(error), "Correct that entry, or its [[keys]] entry.") from None


def signing_key(config: Config) -> Ed25519PrivateKey:
    """The key that signs the evidence.  Raises `ConfigError`."""
    path = config.audit.signing_key
    fix = f"Make one: openssl genpkey -algorithm ed25519 -out {path}"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise _problem("audit.signing_key", str(path), f"cannot be read ({error.strerror})", fix) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _problem("audit.signing_key", str(path), "is not a private key in PEM without a password", fix) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _problem("audit.signing_key", str(path), "is not an Ed25519 key", fix)
    return key


def bundle_verification(policy: Policy) -> Verification | None:
    """What policy bundles have to be signed with; None if they need not be.  Raises `ConfigError`."""
    path = policy.verification_key
    if path is None:
        return None
    fix = "Name the PEM file of the public key, like: openssl pkey -in private.pem -pubout"
    try:
        key = public_key(path.read_bytes(), policy.verification_algorithm)
    except OSError as error:
        raise _problem("policy.verification_key", str(path), f"cannot be read ({error.strerror})", fix) from None
    except SignatureError as error:
        raise _problem("policy.verification_key", str(path), f"cannot be used: {error}", fix) from None
    return Verification(key, policy.verification_algorithm, policy.verification_scope)


def store_key(config: Config) -> bytes:
    """The key under which the quota store has hashes; empty without a store.  Raises `ConfigError`."""
    path = config.quotas.store_key_file
    if not config.quotas.store or path is None:
        return b""
    key = _hexadecimal("quotas.store_key_file", path)
    if len(key) != 32:
        fix = "Make one for all nodes: openssl rand -hex 32"
        raise _problem("quotas.store_key_file", str(path), f"has {len(key)} bytes instead of 32", fix)
    return key


def quota_salt(config: Config) -> bytes:
    """Under which the node keeps hashes of keys that agents read: a new one, or with a store the same on all nodes.

    Raises `ConfigError`.
    """
    key = store_key(config)
    return hashlib.blake2b(b"keys of rows", key=key, digest_size=32).digest() if key else os.urandom(32)


def store_password(path: Path) -> str:
    """The first line of the file.  Raises `ConfigError`."""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        fix = "Put the password into its first line."
        raise _problem("quotas.store_password_file", str(path), "cannot be read", fix) from None


def bearer(path: Path | None) -> dict[str, str]:
    """The Authorization header for the token in the first line of a file, read anew each time; none without a file.

    Raises OSError or UnicodeDecodeError.
    """
    if path is None:
        return {}
    token = path.read_text(encoding="ascii").partition("\n")[0]
    return {"Authorization": f"Bearer {token}"}


def _token_key(number: int, key: KeyEntry) -> bytes:
    if key.file is not None:
        return _hexadecimal(f"keys[{number}].file", key.file)
    try:
        return bytes.fromhex(os.environ.get(key.environment, ""))
    except ValueError:
        raise _problem(f"keys[{number}].environment", key.environment, "is not hexadecimal", _HEXADECIMAL) from None


def _hexadecimal(name: str, path: Path) -> bytes:
    try:
        return bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as error:
        raise _problem(name, str(path), f"cannot be read ({error.strerror})", _HEXADECIMAL) from None
    except ValueError:
        raise _problem(name, str(path), "is not hexadecimal", _HEXADECIMAL) from None


def _problem(key: str, path: str, what: str, fix: str) -> ConfigError:
    return ConfigError("configuration", [Problem(key, f'"{path}"' if path else "", what, fix)])
