"""Builds a policy bundle from Rego sources with OPA's own compiler.

    python -m grille.policies.bundles.build [SOURCES] [OUTPUT]

Without arguments it builds the demo's bundle.  ``opa build`` writes the same bytes for the same sources and the same
version of OPA; the revision is a digest of the sources.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "rego"
DEMO = Path(__file__).parent / "demo.tar.gz"
ENTRYPOINT = "grille/decision"


def find_opa() -> str | None:
    """The `opa` program on the path or where `go install` puts it, or None."""
    return shutil.which("opa") or shutil.which("opa", path=str(Path.home() / "go" / "bin"))


def source_files(sources: Path) -> list[Path]:
    """The files of a bundle: Rego without its tests, and data."""
    found = [path for path in sources.rglob("*") if path.suffix in (".rego", ".json")]
    return sorted(path for path in found if not path.name.endswith("_test.rego"))


def revision(sources: Path) -> str:
    """A digest over names and contents of the sources."""
    digest = hashlib.sha256()
    for path in source_files(sources):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(sources)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def build(sources: Path = SOURCES, output: Path = DEMO) -> None:
    """Write the bundle.  Raises FileNotFoundError without `opa`, ValueError with OPA's message if it refuses."""
    opa = find_opa()
    if opa is None:
        raise FileNotFoundError(
            "the `opa` program is not installed: go install github.com/open-policy-agent/opa@v1.22.2"
        )
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "policy"
        for path in source_files(sources):
            target = copy / path.relative_to(sources)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        made = Path(directory) / "bundle.tar.gz"
        command = [opa, "build", "-t", "wasm", "-e", ENTRYPOINT, "--revision", revision(sources), "-o", str(made), "."]
        result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode:
            raise ValueError(result.stderr.strip())
        output.write_bytes(made.read_bytes())


def main() -> int:
    """Command line: see the module's docstring."""
    sources = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCES
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else DEMO
    try:
        build(sources, output)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(f"{output}: revision {revision(sources)}")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
