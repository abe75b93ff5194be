"""What every suite needs: the cache of what was fetched and built, subprocesses with a time limit, junit files."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.compare import Outcome, Results
from tests.conformance.targets import Session, SuiteError, Target

TIMEOUT = 1800.0
"""Seconds that one run of one suite may take; what it did until then counts."""


@dataclass(frozen=True)
class Suite:
    """One suite.

    `build` fetches and compiles into a directory of the cache, once.  `run` runs it from there against a target, with a
    scratch directory, and returns the outcome of every test.  `setup` is a psql script that makes databases and roles.
    `sessions` are all roles and databases that it connects as; the first one's certificate is the suite's own if it
    shows one.  `from_source` asks for a server of the very minor version of PostgreSQL's source.
    """

    name: str
    sessions: tuple[Session, ...]
    build: Callable[[Path], None]
    run: Callable[[Path, Target, Path], Results]
    setup: str = ""
    own_certificate: bool = False
    from_source: bool = False
    hba: tuple[str, ...] = ()


def cache() -> Path:
    """Where suites are kept.  The server's user must be able to read it, so for root it is not below /root."""
    named = os.environ.get("GRILLE_CONFORMANCE_CACHE")
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/grille-conformance")
    return Path.home() / ".cache" / "grille-conformance"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The directory that `build` filled: made anew unless an earlier build of it came to its end."""
    directory = cache() / name
    stamp = directory / ".complete"
    if not stamp.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        build(directory)
        stamp.touch()
    return directory


def server_user() -> str | None:
    """The user that the server runs as, if that is another one."""
    return "postgres" if os.geteuid() == 0 else None


def execute(
    command: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    timeout: float = TIMEOUT,
) -> int | None:
    """Run it with its output appended to `log`, in a session of its own; None if it had to be killed."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    group = pwd.getpwnam(user).pw_gid if user else None
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd,
            env={**given, **(environment or {})}, user=user, group=group, extra_groups=[] if user else None,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            output.write(b"\n[killed: out of time]\n")
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def must(
    command: Sequence[str | Path],
    directory: Path,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """A step of a build.  Raises `SuiteError` unless it exits 0."""
    log = directory / "build.log"
    if execute(command, log, cwd=cwd or directory, environment=environment) != 0:
        raise SuiteError(f"{command[0]} failed; see the end of {log}")


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack a tar file; returns its one top directory."""
    with tarfile.open(archive) as file:
        file.extractall(directory, filter="tar")
    (top,) = (path for path in directory.iterdir() if path.is_dir())
    return top


def sdist(name: str, version: str, directory: Path) -> Path:
    """A source distribution of PyPI, unpacked below `directory`."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name, f"{name}=={version}"]
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        must([*pip, "--dest", scratch], directory)
        (archive,) = Path(scratch).glob("*.tar.gz")
        target = directory / "source"
        target.mkdir()
        return unpack(archive, target)


def venv(directory: Path, *requirements: str) -> Path:
    """A virtual environment with these packages; returns its Python."""
    python = directory / "venv" / "bin" / "python"
    must([sys.executable, "-m", "venv", directory / "venv"], directory)
    must([python, "-m", "pip", "install", "--only-binary", ":all:", *requirements], directory)
    return python


def junit(files: Iterable[Path]) -> Results:
    """Outcomes by ``class::test``.  One name several times (a parametrized Java test) failed if any of them did."""
    rank: dict[Outcome, int] = {"skipped": 0, "passed": 1, "failed": 2}
    results: Results = {}
    for file in files:
        for case in ET.parse(file).iter("testcase"):
            outcome: Outcome = "passed"
            if case.find("failure") is not None or case.find("error") is not None:
                outcome = "failed"
            elif case.find("skipped") is not None:
                outcome = "skipped"
            name = f"{case.get('classname')}::{case.get('name')}"
            if name not in results or rank[outcome] > rank[results[name]]:
                results[name] = outcome
    return results
