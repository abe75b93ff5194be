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
from grille.proxy import secret_file
from grille.proxy.config import Config, ConfigError, Policy, Problem, supplied_tweak
from grille.proxy.config import Key as KeyEntry
from grille.proxy.hsm import Hsm, HsmError
from grille.proxy.secret_file import Exposed
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.transformation import Key, Transformation

_HEXADECIMAL: Final = "Write 32 bytes (fpe) or 64 bytes (siv) as hexadecimal digits: openssl rand -hex 32"


def token_provider(config: Config) -> EmbeddedProvider:
    """The provider of all transformations whose keys Grille holds.  Raises `ConfigError`."""
    keys = _keys(config)
    transformations = [
        Transformation(
            name=transformation.name,
            kind=transformation.kind,
            token_domain=transformation.token_domain,
            key=transformation.key,
            alphabet=transformation.alphabet,
            template=transformation.template,
            fpe_algorithm=transformation.fpe_algorithm,
            supplied_tweak=supplied_tweak(transformation),
        )
        for transformation in config.transformations
        if transformation.provider == "embedded"
    ]
    try:
        return EmbeddedProvider(transformations, keys)
    except ValueError as error:
        raise _problem("transformations", "", str(error), "Correct that entry, or its [[keys]] entry.") from None


def materials(config: Config) -> dict[str, bytes]:
    """Key material by the name of its [[keys]] entry.  Raises `ConfigError`."""
    return {key.name: key.material for key in _keys(config)}


def _keys(config: Config) -> list[Key]:
    found = _on_token(config) if any(key.pkcs11 for key in config.keys) else {}
    return [
        Key(key.name, key.version, found[number] if key.pkcs11 else _token_key(number, key))
        for number, key in enumerate(config.keys)
    ]


def log_in(config: Config) -> None:
    """Log in to the PKCS#11 token and out again, if a key needs it.  Raises `ConfigError`.

    Before many workers start at once: each would try a wrong PIN, and together they could lock the token.
    """
    if not any(key.pkcs11 for key in config.keys):
        return
    try:
        with _hsm(config):
            pass
    except HsmError as error:
        raise _of_token(config, error) from None


def signing_key(config: Config) -> Ed25519PrivateKey:
    """The key that signs the evidence.  Raises `ConfigError`."""
    return read_signing_key("audit.signing_key", config.audit.signing_key)


def read_signing_key(name: str, path: Path) -> Ed25519PrivateKey:
    """An Ed25519 key in a file that ``name`` points at.  Raises `ConfigError`."""
    fix = f"Make one: openssl genpkey -algorithm ed25519 -out {path}"
    try:
        key = load_pem_private_key(secret_file.read(path), None)
    except Exposed as exposed:
        raise _problem(name, str(path), exposed.what, exposed.fix) from None
    except OSError as error:
        raise _problem(name, str(path), f"cannot be read ({error.strerror})", fix) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _problem(name, str(path), "is not a private key in PEM without a password", fix) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _problem(name, str(path), "is not an Ed25519 key", fix)
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


def _on_token(config: Config) -> dict[int, bytes]:
    """Material by number of the keys that the PKCS#11 token holds or unwraps; nothing of it is open afterwards."""
    materials: dict[int, bytes] = {}
    number, label = 0, ""
    try:
        with _hsm(config) as hsm:
            for number, key in enumerate(config.keys):
                label = key.pkcs11
                if label and key.file is not None:
                    materials[number] = hsm.unwrap(label, _hexadecimal(f"keys[{number}].file", key.file))
                elif label:
                    materials[number] = hsm.read(label)
    except HsmError as error:
        if error.part == "key":
            raise _problem(f"keys[{number}].pkcs11", label, error.what, error.fix) from None
        raise _of_token(config, error) from None
    return materials


def _hsm(config: Config) -> Hsm:
    settings = config.pkcs11
    if settings.module is None or settings.pin_file is None:
        raise _problem("pkcs11", "", "is incomplete, and a key names pkcs11", "Give module, token and pin_file.")
    return Hsm(settings.module, settings.token, _pin(settings.pin_file))


def _of_token(config: Config, error: HsmError) -> ConfigError:
    return _problem(f"pkcs11.{error.part}", str(getattr(config.pkcs11, error.part)), error.what, error.fix)


def _pin(path: Path) -> str:
    fix = "Put the PIN into its first line."
    try:
        pin = secret_file.read(path).decode().partition("\n")[0].rstrip("\r")
    except Exposed as exposed:
        raise _problem("pkcs11.pin_file", str(path), exposed.what, exposed.fix) from None
    except (OSError, UnicodeDecodeError):
        raise _problem("pkcs11.pin_file", str(path), "cannot be read", fix) from None
    if not pin:
        raise _problem("pkcs11.pin_file", str(path), "holds no PIN", fix)
    return pin


def _token_key(number: int, key: KeyEntry) -> bytes:
    if key.file is not None:
        return _hexadecimal(f"keys[{number}].file", key.file)
    try:
        return bytes.fromhex(os.environ.get(key.environment, ""))
    except ValueError:
        raise _problem(f"keys[{number}].environment", key.environment, "is not hexadecimal", _HEXADECIMAL) from None


def _hexadecimal(name: str, path: Path) -> bytes:
    try:
        return bytes.fromhex(secret_file.read(path).decode("ascii"))
    except Exposed as exposed:
        raise _problem(name, str(path), exposed.what, exposed.fix) from None
    except OSError as error:
        raise _problem(name, str(path), f"cannot be read ({error.strerror})", _HEXADECIMAL) from None
    except ValueError:
        raise _problem(name, str(path), "is not hexadecimal", _HEXADECIMAL) from None


def _problem(key: str, path: str, what: str, fix: str) -> ConfigError:
    return ConfigError("configuration", [Problem(key, f'"{path}"' if path else "", what, fix)])
