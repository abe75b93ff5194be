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

MAX_BUNDLE: Final = 32 << 20
MAX_CONTENT: Final = 64 << 20
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


def read(path: Path) -> Bundle:
    """Read a bundle file.  Raises `BundleReadError`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise BundleReadError(f"{path}: {error.strerror}") from None
    return parse(raw)


def parse(raw: bytes) -> Bundle:
    """Parse the bytes of a bundle.  Raises `BundleReadError`."""
    if len(raw) > MAX_BUNDLE:
        raise BundleReadError(f"the bundle is larger than {MAX_BUNDLE} bytes")
    files: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:gz") as archive:
            for member in archive:
                path = PurePosixPath(member.name.lstrip("/"))
                if member.isdir():
                    continue
                if not member.isfile() or ".." in path.parts:
                    raise BundleReadError(f"the bundle holds something that is not a plain file: {member.name}")
                total += member.size
                if total > MAX_CONTENT or len(files) >= MAX_FILES:
                    raise BundleReadError("the bundle's content is too large")
                content = archive.extractfile(member)
                assert content is not None  # noqa: S101
                if str(path) in files:
                    raise BundleReadError(f"the bundle holds a file twice: {path}")
                files[str(path)] = content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise BundleReadError(f"the file is not a gzipped tar archive: {error}") from None
    if "policy.wasm" not in files:
        raise BundleReadError("the bundle has no policy.wasm: build it with `opa build -t wasm`")
    try:
        manifest = json.loads(files.get(".manifest", b"{}"))
        data = json.loads(files.get("data.json", b"{}"))
    except ValueError as error:
        raise BundleReadError(f"the bundle's manifest or data is not JSON: {error}") from None
    revision = manifest.get("revision") if isinstance(manifest, dict) else None
    if not isinstance(revision, str) or not revision:
        raise BundleReadError("the bundle's manifest has no revision: build it with `opa build --revision`")
    if not isinstance(data, dict):
        raise BundleReadError("the bundle's data.json is not an object")
    sources = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name.endswith(".rego")}
    digest = hashlib.sha256(raw).hexdigest()[:12]
    return Bundle(files["policy.wasm"], data, f"{revision}+{digest}", sources)
