"""Policy bundles of the tests: repacked with another revision, and signed as ``opa sign`` does it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import jwt


def unpacked(raw: bytes) -> dict[str, bytes]:
    """The files of a bundle, by path."""
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return {member.name.lstrip("/"): tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def packed(files: dict[str, bytes]) -> bytes:
    """A bundle of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue())


def revised(raw: bytes, revision: str) -> bytes:
    """The same policy under another revision."""
    return packed(_revised(raw, revision))


def with_data(raw: bytes, data: object, revision: str) -> bytes:
    """The same policy over another data document, under another revision."""
    return packed({**_revised(raw, revision), "data.json": json.dumps(data).encode()})


def _revised(raw: bytes, revision: str) -> dict[str, bytes]:
    files = unpacked(raw)
    return {**files, ".manifest": json.dumps({**json.loads(files[".manifest"]), "revision": revision}).encode()}


def replace(path: Path, raw: bytes) -> None:
    """Put a bundle in place at once."""
    partial = path.with_suffix(".new")
    partial.write_bytes(raw)
    partial.replace(path)


def signed(raw: bytes, key: Any, algorithm: str = "ES256", scope: str = "") -> bytes:
    """The same bundle, signed; its documents hold no numbers that encoders write differently."""
    files = unpacked(raw)
    listed = []
    for name, content in files.items():
        if name.rpartition("/")[2] in ("data.json", ".manifest"):
            content = json.dumps(
                json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False
            ).encode()
        listed.append({"name": name, "hash": hashlib.sha256(content).hexdigest(), "algorithm": "SHA-256"})
    payload = json.dumps({"files": listed, **({"scope": scope} if scope else {})}).encode()
    token = jwt.api_jws.PyJWS().encode(payload, key, algorithm)
    return packed({**files, ".signatures.json": json.dumps({"signatures": [token]}).encode()})
