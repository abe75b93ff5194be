"""OPA bundles: a gzipped tar with ``policy.wasm``, ``data.json``, ``.manifest`` and the Rego sources."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec

from grille.policies.signature import SignatureError, Verification, verify

MAX_BUNDLE: Final = 32 << 20
MAX_CONTENT: Final = 64 << 20
"""Bytes of the archive when it is unpacked, headers and all."""
MAX_FILES: Final = 1000


class BundleReadError(Exception):
    """A file that is not a usable bundle."""


class Bundle(msgspec.Struct, frozen=True):
    """What a bundle holds."""

    wasm: bytes
    data: dict[str, Any]
    revision: str
    """The manifest's revision and the first 12 hexadecimal digits of the file's SHA-256."""
    sources: dict[str, str]
    """Rego source by path -> SHA-256 of its text."""


def read(path: Path, verification: Verification | None = None) -> Bundle:
    """Read a bundle file.  Raises `BundleReadError`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise BundleReadError(f"{path}: {error.strerror}") from None
    return parse(raw, verification)


def parse(raw: bytes, verification: Verification | None = None) -> Bundle:
    """Parse the bytes of a bundle, which must be signed if ``verification`` is given.  Raises `BundleReadError`."""
    if len(raw) > MAX_BUNDLE:
        raise BundleReadError(f"the bundle is larger than {MAX_BUNDLE} bytes")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_unpacked(raw)), mode="r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name.lstrip("/"))
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or ".." in path.parts:
                    raise BundleReadError(f"the bundle holds something that is not a plain file: {member.name}")
                if len(files) >= MAX_FILES:
                    raise BundleReadError(f"the bundle holds more than {MAX_FILES} files")
                if str(path) in files:
                    raise BundleReadError(f"the bundle holds a file twice: {path}")
                content = archive.extractfile(member)
                files[str(path)] = b"" if content is None else content.read()
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise BundleReadError(f"the file is not a gzipped tar archive: {error}") from None
    if verification is not None:
        try:
            verify(files, verification)
        except SignatureError as error:
            raise BundleReadError(f"the bundle's signature: {error}") from None
    if "policy.wasm" not in files:
        raise BundleReadError("the bundle has no policy.wasm: build it with `opa build -t wasm`")
    try:
        manifest = json.loads(files.get(".manifest", b"{}"))
        data = json.loads(files.get("data.json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise BundleReadError(f"the bundle's manifest or data is not JSON: {error}") from None
    revision = manifest.get("revision") if isinstance(manifest, dict) else None
    if not isinstance(revision, str) or not revision:
        raise BundleReadError("the bundle's manifest has no revision: build it with `opa build --revision`")
    if not isinstance(data, dict):
        raise BundleReadError("the bundle's data.json is not an object")
    sources = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name.endswith(".rego")}
    digest = hashlib.sha256(raw).hexdigest()[:12]
    return Bundle(files["policy.wasm"], data, f"{revision}+{digest}", sources)


def _unpacked(raw: bytes) -> bytes:
    """The archive in the gzip file, at most `MAX_CONTENT` bytes: tarfile believes the sizes in its headers."""
    unpacker = zlib.decompressobj(wbits=31)
    archive = unpacker.decompress(raw, MAX_CONTENT + 1)
    if len(archive) > MAX_CONTENT:
        raise BundleReadError(f"the bundle's content is larger than {MAX_CONTENT} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise BundleReadError("the file is not a gzipped tar archive: it is cut short or has something behind its end")
    return archive
