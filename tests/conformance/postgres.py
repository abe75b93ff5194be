"""PostgreSQL's own suites, from Debian's source package and a server of the same minor version."""

from __future__ import annotations

import filecmp
import re
import shutil
from pathlib import Path

from tests.conformance.compare import Outcome, Results
from tests.conformance.targets import SUPERUSER, Target
from tests.conformance.tools import Suite, cached, execute, must, server_user

_SOURCES = """Types: deb deb-src
URIs: http://deb.debian.org/debian
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
"""Without the security archive, whose packages are newer than the sources that can be had."""
_PACKAGES = ("postgresql-15", "postgresql-client-15", "postgresql-server-dev-15", "libpq-dev", "libpq5")
_PREFIX = "server/usr/lib/postgresql/15"


def _build_source(directory: Path) -> None:
    """``source/``: the source package; ``server/``: the binary packages, unpacked but not installed."""
    apt = directory / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "debian.sources").write_text(_SOURCES)
    options = [f"-oDir::Etc::sourcelist={apt}/debian.sources", "-oDir::Etc::sourceparts=/dev/null",
               f"-oDir::State::lists={apt}/lists", f"-oDir::Cache={apt}/cache", "-oAPT::Sandbox::User="]  # fmt: skip
    must(["apt-get", *options, "update"], directory)
    must(["apt-get", *options, "source", "postgresql-15"], directory)
    (source,) = (path for path in directory.glob("postgresql-15-*") if path.is_dir())
    source.rename(directory / "source")
    (description,) = directory.glob("*.dsc")
    version = description.stem.partition("_")[2]
    must(["apt-get", *options, "download", *(f"{name}={version}" for name in _PACKAGES)], directory)
    for package in directory.glob("*.deb"):
        must(["dpkg", "-x", package, directory / "server"], directory)
    shutil.rmtree(apt)


def source() -> Path:
    """The cached source and server."""
    return cached("postgresql-15", _build_source)


def binaries() -> Path:
    """Programs of the server that is as old as the source."""
    return source() / _PREFIX / "bin"


def _include() -> list[str]:
    headers = source() / "server/usr/include/postgresql"
    return [f"-I{headers}/15/server", f"-I{headers}", f"-I{headers}/internal"]


_LINE = re.compile(r"^(?:test\s+|\s+)(\S+)\s+\.\.\. (?:\w+ )*(ok|FAILED|failed)\b", re.MULTILINE)


def _pg_regress(command: list[str | Path], target: Target, scratch: Path, cwd: Path, **names: str) -> Results:
    """Run one of the drivers that are made from pg_regress.c; a test counts as it says."""
    where = [f"--bindir={binaries()}", f"--host={target.host}", f"--port={target.port}", f"--user={SUPERUSER}"]
    environment = {"PGSSLMODE": "disable", "PGGSSENCMODE": "disable", **names}
    log = scratch / "log"
    execute([*command, *where], log, cwd=cwd, environment=environment, user=server_user())
    return outcomes(log.read_text(errors="replace"))


def outcomes(text: str) -> Results:
    """What such a driver prints; a failure that it ignores is one all the same."""
    return {name: "passed" if outcome == "ok" else "failed" for name, outcome in _LINE.findall(text)}


def _outputs(scratch: Path) -> Path:
    """The server writes some of them itself."""
    output = scratch / "output"
    for name in ("", "sql", "expected", "results"):
        (output / name).mkdir()
        if user := server_user():
            shutil.chown(output / name, user)
    return output


# the regression tests


def _build_regress(directory: Path) -> None:
    tests = source() / "source/src/test/regress"
    must(["gcc", "-fPIC", "-shared", *_include(), "-o", directory / "regress.so", tests / "regress.c"], directory)
    for name in ("refint.so", "autoinc.so"):
        (directory / name).symlink_to(source() / _PREFIX / "lib" / name)


def _run_regress(directory: Path, target: Target, scratch: Path) -> Results:
    tests = source() / "source/src/test/regress"
    command = [source() / _PREFIX / "lib/pgxs/src/test/regress/pg_regress", f"--dlpath={directory}",
               f"--inputdir={tests}", f"--outputdir={_outputs(scratch)}", f"--schedule={tests}/parallel_schedule",
               "--max-concurrent-tests=20", "--dbname=regression"]  # fmt: skip
    return _pg_regress(command, target, scratch, scratch)


REGRESS = Suite(
    name="regress", sessions=((SUPERUSER, "postgres"), (SUPERUSER, "regression")), build=_build_regress,
    run=_run_regress, from_source=True,
)  # fmt: skip


# the isolation tests


def _run_isolation(directory: Path, target: Target, scratch: Path) -> Results:
    tests = source() / "source/src/test/isolation"
    command = [source() / _PREFIX / "lib/pgxs/src/test/isolation/pg_isolation_regress", f"--inputdir={tests}",
               f"--outputdir={_outputs(scratch)}", f"--schedule={tests}/isolation_schedule"]  # fmt: skip
    return _pg_regress(command, target, scratch, scratch)


ISOLATION = Suite(
    name="isolation", sessions=((SUPERUSER, "postgres"), (SUPERUSER, "isolation_regression")),
    build=lambda directory: None, run=_run_isolation, from_source=True,
)  # fmt: skip


# ecpg


def _build_ecpg(directory: Path) -> None:
    tree = directory / "tree"
    shutil.copytree(source() / "source", tree, symlinks=True)  # with its times: else make wants bison
    must(["./configure", "--without-readline", "--without-zlib", "--with-openssl"], directory, cwd=tree)
    for goal in (["src/backend", "generated-headers"], ["src/interfaces"], ["src/test/regress"],
                 ["src/interfaces/ecpg/test"]):  # fmt: skip
        must(["make", "-s", "-C", *goal], directory, cwd=tree)


def _run_ecpg(directory: Path, target: Target, scratch: Path) -> Results:
    interfaces = directory / "tree/src/interfaces"
    libraries = [interfaces / name for name in ("libpq", "ecpg/ecpglib", "ecpg/pgtypeslib", "ecpg/compatlib")]
    work = scratch / "test"  # the driver writes beside the tests
    shutil.copytree(interfaces / "ecpg/test", work, symlinks=True)
    if user := server_user():
        for path in (work, *work.rglob("*")):
            shutil.chown(path, user)
    command: list[str | Path] = [
        "./pg_regress", "--dbname=ecpg1_regression,ecpg2_regression",
        "--create-role=regress_ecpg_user1,regress_ecpg_user2", "--schedule=./ecpg_schedule",
    ]  # fmt: skip
    return _pg_regress(command, target, scratch, work, LD_LIBRARY_PATH=":".join(map(str, libraries)))


ECPG = Suite(
    name="ecpg", build=_build_ecpg, run=_run_ecpg, from_source=True,
    sessions=(
        (SUPERUSER, "postgres"), (SUPERUSER, "ecpg1_regression"), (SUPERUSER, "ecpg2_regression"),
        ("regress_ecpg_user1", "ecpg1_regression"), ("regress_ecpg_user1", "ecpg2_regression"),
        ("regress_ecpg_user2", "ecpg1_regression"), ("regress_ecpg_user2", "ecpg2_regression"),
    ),
)  # fmt: skip


# libpq_pipeline, and its message traces


def _build_libpq_pipeline(directory: Path) -> None:
    code = source() / "source/src/test/modules/libpq_pipeline/libpq_pipeline.c"
    libraries = [f"-L{source() / _PREFIX / 'lib'}", "-lpgport", "-lpgcommon", "-l:libpq.so.5"]
    must(["gcc", "-w", *_include(), "-o", directory / "libpq_pipeline", code, *libraries], directory)


def _run_libpq_pipeline(directory: Path, target: Target, scratch: Path) -> Results:
    program = directory / "libpq_pipeline"
    traces = source() / "source/src/test/modules/libpq_pipeline/traces"
    names = scratch / "tests"
    execute([program, "tests"], names, cwd=scratch)
    results: Results = {}
    for name in names.read_text().split():
        expected, trace = traces / f"{name}.trace", scratch / f"{name}.trace"
        command: list[str | Path] = [program, "-r", "700"]
        if expected.exists():
            command += ["-t", trace]
        command += [name, target.conninfo(SUPERUSER, "postgres")]
        status = execute(command, scratch / "log", cwd=scratch, timeout=120)
        results[name] = _outcome(status == 0)
        if expected.exists():
            results[f"{name}: trace"] = _outcome(trace.exists() and filecmp.cmp(trace, expected, shallow=False))
    return results


def _outcome(passed: bool) -> Outcome:
    return "passed" if passed else "failed"


LIBPQ_PIPELINE = Suite(
    name="libpq_pipeline", sessions=((SUPERUSER, "postgres"),), build=_build_libpq_pipeline, run=_run_libpq_pipeline,
    own_certificate=True, from_source=True,
)  # fmt: skip

SUITES = (LIBPQ_PIPELINE, REGRESS, ISOLATION, ECPG)
