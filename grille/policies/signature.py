"""Signatures of OPA bundles: ``.signatures.json`` holds one JWT that names every other file by its hash.

The format is OPA's (its documentation: "Bundles", section "Signing"), what ``opa build --bundle --signing-key`` and
``opa sign`` write.  Key, algorithm and scope are pinned by the configuration; what the token says of them only has to
agree.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

SIGNATURES: Final = ".signatures.json"
"""The file of a bundle that holds the token."""

Algorithm: TypeAlias = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
"""Asymmetric ones only: a proxy that could sign policies would be worth breaking into."""

_HASHES: Final = {"SHA-224": "sha224", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}
_STRUCTURED: Final = frozenset({"data.json", "data.yaml", "data.yml", ".manifest"})


PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey


class SignatureError(Exception):
    """The files are not what the holder of the key has signed."""


@dataclass(frozen=True)
class Verification:
    """What a bundle has to be signed with."""

    key: PublicKey
    algorithm: Algorithm
    scope: str = ""
    """The token's ``scope``; empty: it must have none."""


class _File(msgspec.Struct):
    name: str
    hash: str
    algorithm: str


class _Signed(msgspec.Struct):
    files: list[_File]
    scope: str = ""


class _Signatures(msgspec.Struct):
    signatures: list[str]


class _Literal(str):
    """A number as it was written."""

    __slots__ = ()


def public_key(pem: bytes, algorithm: Algorithm) -> PublicKey:
    """The public key of a PEM file.  Raises `SignatureError` if it is none, or not one for this algorithm."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError("it holds no public key in PEM form") from None
    if algorithm.startswith("ES"):
        if isinstance(key, EllipticCurvePublicKey):
            return key
    elif isinstance(key, RSAPublicKey):
        return key
    raise SignatureError(f"its key is not one for {algorithm}")


def verify(files: Mapping[str, bytes], verification: Verification) -> None:
    """Check that ``files``, by path, are exactly what was signed.  Raises `SignatureError`."""
    try:
        tokens = msgspec.json.decode(files[SIGNATURES], type=_Signatures).signatures
    except KeyError:
        raise SignatureError("it is not signed") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureError(f"{SIGNATURES}: {error}") from None
    if len(tokens) != 1:
        raise SignatureError(f"{SIGNATURES} holds {len(tokens)} signatures, not one")
    try:
        payload = jwt.api_jws.PyJWS().decode(tokens[0], verification.key, algorithms=[verification.algorithm])
        signed = msgspec.json.decode(payload, type=_Signed)
    except (jwt.PyJWTError, msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise SignatureError(f"{SIGNATURES}: {error}") from None
    if signed.scope != verification.scope:
        raise SignatureError(f"it is signed for the scope {signed.scope!r}, not {verification.scope!r}")
    unsigned = files.keys() - {SIGNATURES}
    for file in signed.files:
        if file.name not in unsigned:
            raise SignatureError(f"{file.name}: signed, but missing or named twice")
        unsigned = unsigned - {file.name}
        _check(file, files[file.name])
    if unsigned:
        raise SignatureError(f"{min(unsigned)}: not signed")


def _check(file: _File, content: bytes) -> None:
    name = _HASHES.get(file.algorithm)
    if name is None:
        raise SignatureError(f"{file.name}: hashed by {file.algorithm!r}, not by one of {', '.join(_HASHES)}")
    if file.name.rpartition("/")[2] in _STRUCTURED:
        content = _canonical(file.name, content)
    digest = hashlib.new(name, content).hexdigest()
    if not hmac.compare_digest(digest.encode(), file.hash.lower().encode()):
        raise SignatureError(f"{file.name}: not the file that was signed")


def _canonical(name: str, content: bytes) -> bytes:
    """A JSON document as OPA hashes it: keys sorted, no white space, numbers as they were written."""
    try:
        document = json.loads(content, parse_int=_Literal, parse_float=_Literal, parse_constant=_refused)
        return "".join(_walked(document)).encode()
    except (ValueError, RecursionError):
        raise SignatureError(f"{name}: not JSON, so its hash cannot be checked") from None


def _refused(name: str) -> Any:
    raise ValueError(name)


def _walked(value: Any) -> Iterator[str]:
    match value:
        case _Literal():
            yield str(value)
        case dict():
            yield "{"
            for number, key in enumerate(sorted(value, key=str.encode)):
                yield f",{_text(key)}:" if number else f"{_text(key)}:"
                yield from _walked(value[key])
            yield "}"
        case list():
            yield "["
            for number, item in enumerate(value):
                if number:
                    yield ","
                yield from _walked(item)
            yield "]"
        case _:
            yield _text(value)


def _text(value: str | bool | None) -> str:
    # Go's encoder escapes the two line separators of JavaScript, Python's does not.
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
