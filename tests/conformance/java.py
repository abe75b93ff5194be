"""pgjdbc's own tests, and the R2DBC SPI's compatibility kit on r2dbc-postgresql: from Maven Central."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conformance.compare import Results
from tests.conformance.targets import SUPERUSER, SuiteError, Target
from tests.conformance.tools import Suite, execute, junit, must, unpack

_DATA = Path(__file__).parent / "data"
# Surefire before 3 does not start the JUnit 5 engine here, and says so in one warning only.
_MAVEN = ("mvn", "-B", "-Dmaven-surefire-plugin.version=3.5.3", "-Dmaven.test.failure.ignore=true")


def _test(project: Path, scratch: Path, **names: str) -> Results:
    reports = project / "target/surefire-reports"
    shutil.rmtree(reports, ignore_errors=True)
    execute([*_MAVEN, "test"], scratch / "log", cwd=project, environment=names)
    return junit(reports.glob("TEST-*.xml"))


def _need_maven() -> None:
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise SuiteError(f"{program} is not installed")


# pgjdbc


def _build_pgjdbc(directory: Path) -> None:
    _need_maven()
    artifact = "org.postgresql:postgresql:42.7.7:tar.gz:jdbc-src"
    must([*_MAVEN, "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={directory}"], directory)
    unpack(directory / "postgresql-42.7.7-jdbc-src.tar.gz", directory).rename(directory / "project")
    must([*_MAVEN, "test", "-Dtest=NoSuchTest", "-Dsurefire.failIfNoSpecifiedTests=false"], directory,
         cwd=directory / "project")  # fmt: skip


def _run_pgjdbc(directory: Path, target: Target, scratch: Path) -> Results:
    properties = {
        "test.url.PGHOST": target.host, "test.url.PGPORT": target.port, "test.url.PGDBNAME": "test",
        "user": "test", "password": "test", "privilegedUser": SUPERUSER, "privilegedPassword": "x",
    }  # fmt: skip
    text = "".join(f"{name}={value}\n" for name, value in properties.items())
    (directory / "project/build.local.properties").write_text(text)
    return _test(directory / "project", scratch)


PGJDBC = Suite(
    name="pgjdbc", build=_build_pgjdbc, run=_run_pgjdbc,
    sessions=(("test", "test"), (SUPERUSER, "test"), (SUPERUSER, "postgres")),
    setup="CREATE ROLE test LOGIN CREATEDB;\nCREATE DATABASE test OWNER test;\n\\c test\nCREATE EXTENSION hstore;",
)  # fmt: skip


# R2DBC


def _build_r2dbc(directory: Path) -> None:
    _need_maven()
    shutil.copytree(_DATA / "r2dbc", directory / "project")
    must([*_MAVEN, "test", "-Dtest=NoSuchTest", "-Dsurefire.failIfNoSpecifiedTests=false"], directory,
         cwd=directory / "project")  # fmt: skip


def _run_r2dbc(directory: Path, target: Target, scratch: Path) -> Results:
    shutil.copytree(_DATA / "r2dbc", directory / "project", dirs_exist_ok=True)  # our own part may be newer
    return _test(directory / "project", scratch, **target.environment())


R2DBC = Suite(
    name="r2dbc", sessions=((SUPERUSER, "r2dbc"),), build=_build_r2dbc, run=_run_r2dbc, own_certificate=True,
    setup="CREATE DATABASE r2dbc;",
)  # fmt: skip

SUITES = (PGJDBC, R2DBC)
