"""tokio-postgres: the crate holds its tests."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.conformance.compare import Outcome, Results
from tests.conformance.targets import SUPERUSER, SuiteError, Target
from tests.conformance.tools import Suite, execute, must

_VERSION = "0.7.18"
_FEATURES = "array-impls with-serde_json-1 with-uuid-1 with-chrono-0_4 with-bit-vec-0_8 with-time-0_3"
_CARGO = ["cargo", "test", "--test", "test", "--features", _FEATURES]
_LINE = re.compile(r"^test (\S+) \.\.\. (ok|FAILED|ignored)", re.MULTILINE)
_OUTCOMES: dict[str, Outcome] = {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}
_PASSWORD_METHODS = {"pass_user": "password", "md5_user": "md5", "scram_user": "scram-sha-256"}


def _build(directory: Path) -> None:
    if shutil.which("cargo") is None:
        raise SuiteError("cargo is not installed")
    wanted = directory / "wanted"
    (wanted / "src").mkdir(parents=True)
    (wanted / "src/lib.rs").touch()
    (wanted / "Cargo.toml").write_text(
        '[package]\nname = "wanted"\nversion = "0.0.0"\nedition = "2021"\n'
        f'[dependencies]\ntokio-postgres = "={_VERSION}"\n'
    )
    must(["cargo", "vendor", "--versioned-dirs", directory / "vendor"], directory, cwd=wanted)
    crate = directory / "crate"
    shutil.copytree(directory / "vendor" / f"tokio-postgres-{_VERSION}", crate)
    with (crate / "Cargo.toml").open("a") as file:
        file.write("\n[workspace]\n")
    shutil.copytree(crate / "tests", directory / "tests")
    must([*_CARGO, "--no-run"], directory, cwd=crate)


def _run(directory: Path, target: Target, scratch: Path) -> Results:
    """The port is a literal of the tests: they alone are compiled again for each run."""
    for original in (directory / "tests").rglob("*.rs"):
        copy = directory / "crate/tests" / original.relative_to(directory / "tests")
        copy.write_text(original.read_text().replace("5433", str(target.port)))
    execute([*_CARGO, "--no-fail-fast"], scratch / "log", cwd=directory / "crate")
    return outcomes((scratch / "log").read_text(errors="replace"))


def outcomes(text: str) -> Results:
    """What ``cargo test`` prints."""
    return {name: _OUTCOMES[outcome] for name, outcome in _LINE.findall(text)}


TOKIO_POSTGRES = Suite(
    name="tokio_postgres", sessions=((SUPERUSER, "postgres"),), build=_build, run=_run,
    hba=tuple(f"host all {role} 127.0.0.1/32 {method}" for role, method in _PASSWORD_METHODS.items()),
    setup="".join(
        f"SET password_encryption = '{'md5' if role == 'md5_user' else 'scram-sha-256'}';\n"
        f"CREATE ROLE {role} LOGIN PASSWORD 'password';\n"
        for role in _PASSWORD_METHODS
    )
    + "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree;",
)  # fmt: skip

SUITES = (TOKIO_POSTGRES,)
