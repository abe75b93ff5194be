"""pgx and lib/pq: their modules as the Go module proxy has them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from tests.conformance.compare import Outcome, Results
from tests.conformance.targets import SUPERUSER, SuiteError, Target
from tests.conformance.tools import Suite, execute, must

_TEMPORARY = re.compile(r"(/tmp/[A-Za-z]+)\d+")
"""A directory of this run only, in the name of a subtest."""
_OUTCOMES: dict[str, Outcome] = {"pass": "passed", "fail": "failed", "skip": "skipped"}


def _build(module: str, version: str, directory: Path) -> None:
    """The module with its tests, compiled once so that later runs only link."""
    if shutil.which("go") is None:
        raise SuiteError("go is not installed")
    log = directory / "download.json"
    if execute(["go", "mod", "download", "-json", f"{module}@{version}"], log, cwd=directory) != 0:
        raise SuiteError(f"{module} cannot be downloaded; see {log}")
    text = log.read_text()
    downloaded = json.loads(text[text.index("{") :])["Dir"]
    source = directory / "source"
    shutil.copytree(downloaded, source)
    for path in (source, *source.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    must(["go", "test", "-exec", "true", "./..."], directory, cwd=source)


def _test(directory: Path, scratch: Path, arguments: list[str], **names: str) -> Results:
    log = scratch / "log"
    begun = log.stat().st_size if log.exists() else 0
    command = ["go", "test", "-json", "-count=1", "-timeout=30m", "-p", "1", *arguments]
    execute(command, log, cwd=directory / "source", environment=names)
    return outcomes(log.read_bytes()[begun:].decode(errors="replace"))


def outcomes(text: str) -> Results:
    """What ``go test -json`` prints, by ``package.Test/subtest``.  A test that begins and does not end has failed."""
    results: Results = {}
    for line in text.splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        if "Test" not in event:
            continue
        name = _TEMPORARY.sub(r"\1", f"{event['Package']}.{event['Test']}")
        if event["Action"] == "run":
            results[name] = "failed"
        elif event["Action"] in _OUTCOMES:
            results[name] = _OUTCOMES[event["Action"]]
    return results


# pgx


def _run_pgx(directory: Path, target: Target, scratch: Path) -> Results:
    # Not in libpq's variables: tests with a server of their own would read them.
    return _test(directory, scratch, ["./..."], PGX_TEST_DATABASE=target.conninfo(SUPERUSER, "pgx_test"))


PGX = Suite(
    name="pgx", sessions=((SUPERUSER, "pgx_test"),), own_certificate=True, run=_run_pgx,
    build=lambda directory: _build("github.com/jackc/pgx/v5", "v5.12.0", directory),
    setup="CREATE DATABASE pgx_test;\n\\c pgx_test\nCREATE EXTENSION hstore; CREATE EXTENSION ltree;\n"
    "CREATE DOMAIN uint64 AS numeric(20,0);\n"
    "CREATE ROLE \" tricky, ' } \"\" \\ test user \" LOGIN SUPERUSER;",
)  # fmt: skip


# lib/pq

_IMPATIENT = [f"TestListener{name}" for name in (
    "NotifyExtra", "Listen", "Unlisten", "UnlistenAll", "FailedQuery", "Reconnect", "Close", "Ping",
)]  # fmt: skip
"""They panic when an event takes more than 100 ms, and end all tests of their process with them: one process each."""


def _run_lib_pq(directory: Path, target: Target, scratch: Path) -> Results:
    names = {"PGHOST": target.host, "PGPORT": str(target.port), "PGSSLMODE": "disable"}
    results = _test(directory, scratch, ["-skip", f"SSL|^({'|'.join(_IMPATIENT)})$", "./..."], **names)
    for test in _IMPATIENT:
        results |= _test(directory, scratch, ["-run", f"^{test}$", "."], **names)
    return results


LIB_PQ = Suite(
    name="lib_pq", sessions=(("pqgo", "pqgo"),), run=_run_lib_pq,
    build=lambda directory: _build("github.com/lib/pq", "v1.12.3", directory),
    setup="CREATE ROLE pqgo LOGIN SUPERUSER;\nCREATE DATABASE pqgo OWNER pqgo;\n\\c pqgo\nCREATE EXTENSION hstore;",
)  # fmt: skip

SUITES = (PGX, LIB_PQ)
