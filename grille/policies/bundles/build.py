"""Builds a policy bundle from Rego sources with OPA's own compiler (``grille policy build``).

``opa build`` writes the same bytes for the same sources and the same version of OPA; the revision is a digest of the
sources.  What a policy imports of Grille's library (``import data.grille_library.tenant``) goes into the bundle.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

SOURCES = Path(__file__).parent.parent / "rego"
DEMO = Path(__file__).parent / "demo.tar.gz"
LIBRARY = Path(__file__).parent.parent / "library"
ENTRYPOINT = "grille/decision"
_BESIDE: Final = ("_test.rego", "_golden.json")
"""Endings of the files beside a policy that are not a part of it."""
_IMPORT: Final = re.compile(r"^import\s+data\.grille_library\.(\w+)", re.MULTILINE)


def find_opa() -> str | None:
    """The `opa` program on the path or where `go install` puts it, or None."""
    return shutil.which("opa") or shutil.which("opa", path=str(Path.home() / "go" / "bin"))


def needed_opa() -> str:
    """The `opa` program.  Raises FileNotFoundError with how to install it."""
    opa = find_opa()
    if opa is None:
        raise FileNotFoundError(
            "the `opa` program is not installed: go install github.com/open-policy-agent/opa@v1.22.2"
        )
    return opa


def source_files(sources: Path) -> list[Path]:
    """The files of a policy: Rego without its tests, and data without its golden decisions."""
    found = [path for path in sources.rglob("*") if path.suffix in (".rego", ".json")]
    return sorted(path for path in found if not path.name.endswith(_BESIDE))


def library_files(sources: Path) -> list[Path]:
    """The files of Grille's library that the policy or its tests import.  Raises ValueError for an unknown one."""
    names = {name for path in sources.rglob("*.rego") for name in _IMPORT.findall(path.read_text(encoding="utf-8"))}
    for name in sorted(names):
        if not (LIBRARY / f"{name}.rego").is_file():
            known = ", ".join(path.stem for path in source_files(LIBRARY))
            raise ValueError(f"the library has no module {name} (it has: {known})")
    return [LIBRARY / f"{name}.rego" for name in sorted(names)]


def contents(sources: Path) -> dict[str, bytes]:
    """What a bundle is built of, by path.

    Raises FileNotFoundError without Rego files, ValueError for an import that the library lacks.
    """
    if not any(path.suffix == ".rego" for path in source_files(sources)):
        raise FileNotFoundError(f"{sources} is not a directory with Rego files")
    own = {str(path.relative_to(sources)): path.read_bytes() for path in source_files(sources)}
    return own | {f"grille_library/{path.name}": path.read_bytes() for path in library_files(sources)}


def lay_out(files: dict[str, bytes], directory: Path) -> None:
    """Write these files below a directory."""
    for name, content in files.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def revision(sources: Path) -> str:
    """A digest over names and contents of the sources.  Raises ValueError for an import that the library lacks."""
    digest = hashlib.sha256()
    for name, content in contents(sources).items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def build(sources: Path, output: Path, *, key: Path | None = None, algorithm: str = "RS256") -> None:
    """Write the bundle, signed with a private key (PEM) if one is given.

    Raises FileNotFoundError without `opa` or without sources, ValueError with OPA's message if it refuses.
    """
    opa = needed_opa()
    files = contents(sources)
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "policy"
        lay_out(files, copy)
        made = Path(directory) / "bundle.tar.gz"
        command = [opa, "build", "-t", "wasm", "-e", ENTRYPOINT, "--revision", revision(sources), "-o", str(made), "."]
        if key is not None:
            command += ["--bundle", "--signing-key", str(key.absolute()), "--signing-alg", algorithm]
        result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode:
            raise ValueError((result.stderr + result.stdout).strip())
        output.write_bytes(made.read_bytes())
