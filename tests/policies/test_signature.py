"""Bundles that have to be signed: one by OPA itself, and every way in which one can be wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from grille.policies.bundle import BundleReadError, parse
from grille.policies.bundles import build
from grille.policies.signature import SIGNATURES, SignatureError, Verification, public_key, verify
from tests.bundles import packed, unpacked

# Written by OPA 1.22.2: opa build -b -t wasm -e grille/decision --revision r1 --signing-key KEY --signing-alg ES256
# --claims-file '{"scope":"read"}'.  Its data hold numbers, escapes and separators that encoders differ about.
SIGNED = Path(__file__).parent / "data" / "signed.tar.gz"
OPAS_KEY = public_key((Path(__file__).parent / "data" / "signed.pub.pem").read_bytes(), "ES256")
OPAS = Verification(OPAS_KEY, "ES256", "read")

PRIVATE = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
OURS = Verification(PRIVATE.public_key(), "ES256")
FILES = {"policy.wasm": b"\0asm", "data.json": b'{"b": 1.50, "a": ["x", null, true]}', "x/policy.rego": b"package x\n"}


def files() -> dict[str, bytes]:
    return unpacked(SIGNED.read_bytes())


def listed(**hashes: str) -> list[dict[str, str]]:
    canonical = b'{"a":["x",null,true],"b":1.50}'
    contents = {**FILES, "data.json": canonical}
    return [
        {
            "name": name,
            "hash": hashes.get(name) or hashlib.sha256(content).hexdigest(),
            "algorithm": "SHA-256",
        }
        for name, content in contents.items()
    ]


def token(payload: Any, key: Any = PRIVATE, algorithm: str = "ES256") -> str:
    return jwt.api_jws.PyJWS().encode(json.dumps(payload).encode(), key, algorithm)


def signed(payload: Any, contents: Mapping[str, bytes] = FILES, **how: Any) -> dict[str, bytes]:
    return {**contents, SIGNATURES: json.dumps({"signatures": [token(payload, **how)]}).encode()}


def test_what_opa_signs_is_accepted() -> None:
    verify(files(), OPAS)
    assert parse(SIGNED.read_bytes(), OPAS).revision.startswith("r1+")


@pytest.mark.parametrize("algorithm", ["RS256", "PS384", "ES256"])
def test_what_opa_signs_now(algorithm: Any, tmp_path: Path) -> None:
    opa = build.find_opa()
    if opa is None:
        pytest.skip("the opa program is not installed: only the bundle that it signed earlier is checked")
    private: Any = PRIVATE if algorithm == "ES256" else RSA
    key = tmp_path / "key.pem"
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    key.write_bytes(private.private_bytes(*encoding))
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "policy.rego").write_text("package grille\n\ndecision := data.limit + 1\n")
    (sources / "data.json").write_text('{"limit": 10.250, "\\u2028é<>": [12345678901234567890123, -1e3, "\\u0007\\b"]}')
    command = [opa, "build", "-b", "-t", "wasm", "-e", "grille/decision", "--revision", "r", "-o",
               tmp_path / "bundle.tar.gz", sources, "--signing-key", key, "--signing-alg", algorithm]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    raw = (tmp_path / "bundle.tar.gz").read_bytes()
    assert parse(raw, Verification(private.public_key(), algorithm)).revision.startswith("r+")
    with pytest.raises(BundleReadError, match="scope ''"):
        parse(raw, Verification(private.public_key(), algorithm, "read"))


@pytest.mark.parametrize("name", sorted(files().keys() - {SIGNATURES}))
def test_no_file_of_it_may_change_or_be_absent(name: str) -> None:
    whole = files()
    content = whole[name]
    changed = (
        json.dumps({**json.loads(content), "x": 1}).encode() if name in ("data.json", ".manifest") else content + b" "
    )
    with pytest.raises(SignatureError, match=re.escape(f"{name}: not the file that was signed")):
        verify({**whole, name: changed}, OPAS)
    del whole[name]
    with pytest.raises(SignatureError, match=re.escape(f"{name}: signed, but missing")):
        verify(whole, OPAS)


def test_no_file_may_be_added() -> None:
    with pytest.raises(SignatureError, match=r"more\.rego: not signed"):
        verify({**files(), "more.rego": b"package grille"}, OPAS)


def test_white_space_and_order_of_data_may_change() -> None:
    verify(signed({"files": listed()}), OURS)
    verify(signed({"files": listed()}, {**FILES, "data.json": b'{"a":["x",null,true],  "b":1.50}'}), OURS)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": ["x", null, true], "b": 1.5}',
        b'{"a": ["x", null, true], "b": 1.500}',
        b'{"b": 1.50}',
        b"[]",
        b'{"a": ["x", null, NaN], "b": 1.50}',
        b"{",
        b"",
        b"\xff",
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_data_that_mean_or_read_otherwise_are_refused(data: bytes) -> None:
    with pytest.raises(SignatureError, match=r"data\.json: not"):
        verify(signed({"files": listed()}, {**FILES, "data.json": data}), OURS)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (FILES, "it is not signed"),
        ({**FILES, SIGNATURES: b"{}"}, "signatures"),
        ({**FILES, SIGNATURES: b"\xff"}, "signatures"),
        ({**FILES, SIGNATURES: b'{"signatures": []}'}, "holds 0 signatures"),
        ({**FILES, SIGNATURES: b'{"signatures": ["a.b.c", "a.b.c"]}'}, "holds 2 signatures"),
        ({**FILES, SIGNATURES: b'{"signatures": ["a.b.c"]}'}, "signatures.json: "),
        ({**FILES, SIGNATURES: b'{"signatures": [""]}'}, "signatures.json: "),
        (signed({"files": listed()}, key=OTHER), "Signature verification failed"),
        (signed({"files": listed(), "scope": "write"}), "scope 'write', not ''"),
        (signed({"files": [*listed(), listed()[0]]}), "missing or named twice"),
        (signed({"files": listed()[1:]}), "policy.wasm: not signed"),
        (signed({"files": [{**listed()[0], "algorithm": "MD5"}, *listed()[1:]]}), "hashed by 'MD5'"),
        (signed({"files": "policy.wasm"}), "signatures.json: "),
        (signed([]), "signatures.json: "),
        (signed({"files": listed()}, key=RSA, algorithm="RS256"), "signatures.json: "),
    ],
)
def test_what_is_refused(contents: dict[str, bytes], message: str) -> None:
    with pytest.raises(SignatureError, match=re.escape(message)):
        verify(contents, OURS)


def test_an_unsigned_token_and_the_key_as_a_secret_are_refused() -> None:
    payload = base64.urlsafe_b64encode(json.dumps({"files": listed()}).encode()).rstrip(b"=").decode()
    head = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    pem = OURS.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    from hmac import digest

    confused = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=").decode() + f".{payload}"
    mac = base64.urlsafe_b64encode(digest(pem, confused.encode(), "sha256")).rstrip(b"=").decode()
    for forged in (f"{head}.{payload}.", f"{confused}.{mac}"):
        with pytest.raises(SignatureError, match="alg"):
            verify({**FILES, SIGNATURES: json.dumps({"signatures": [forged]}).encode()}, OURS)


def test_a_bundle_has_to_be_signed_where_a_key_is_pinned() -> None:
    manifest = {**FILES, ".manifest": b'{"revision": "1"}'}
    with pytest.raises(BundleReadError, match="signature: it is not signed"):
        parse(packed(manifest), OURS)
    assert parse(packed(manifest)).revision.startswith("1+")


def test_keys_that_cannot_be_used() -> None:
    encoding = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    private = PRIVATE.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for pem in (b"", private, b"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(SignatureError, match="no public key"):
            public_key(pem, "ES256")
    for other in (RSA.public_key(), ed25519.Ed25519PrivateKey.generate().public_key()):
        with pytest.raises(SignatureError, match="not one for ES256"):
            public_key(other.public_bytes(*encoding), "ES256")
    with pytest.raises(SignatureError, match="not one for PS256"):
        public_key(PRIVATE.public_key().public_bytes(*encoding), "PS256")
