"""asyncpg, psycopg2, SQLAlchemy, Django: from their source distributions on PyPI."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conformance.compare import Results
from tests.conformance.targets import SUPERUSER, Target
from tests.conformance.tools import Suite, execute, junit, sdist, venv

DATA = Path(__file__).parent / "data"
_PYTEST = "pytest==8.4.2"


def _pytest(python: Path, target: Target, scratch: Path, cwd: Path, arguments: list[str], **names: str) -> Results:
    report = scratch / "junit.xml"
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", "-q", *arguments]
    execute(command, scratch / "log", cwd=cwd, environment={**target.environment(), **names})
    return junit([report] if report.exists() else [])


# asyncpg


def _build_asyncpg(directory: Path) -> None:
    source = sdist("asyncpg", "0.32.0", directory)
    shutil.copytree(source / "tests", directory / "tests")
    venv(directory, "asyncpg==0.32.0", "distro==1.9.0", _PYTEST)


def _run_asyncpg(directory: Path, target: Target, scratch: Path) -> Results:
    names = {"PGUSER": SUPERUSER, "PGDATABASE": "postgres"}
    return _pytest(directory / "venv/bin/python", target, scratch, directory, ["tests"], **names)


ASYNCPG = Suite(
    name="asyncpg", sessions=((SUPERUSER, "postgres"),), build=_build_asyncpg, run=_run_asyncpg, own_certificate=True
)


# psycopg2


def _build_psycopg2(directory: Path) -> None:
    source = sdist("psycopg2", "2.9.13", directory)
    shutil.copytree(source / "tests", directory / "tests")
    venv(directory, "psycopg2-binary==2.9.13", _PYTEST)


def _run_psycopg2(directory: Path, target: Target, scratch: Path) -> Results:
    names = {"PSYCOPG2_TESTDB_HOST": target.host, "PSYCOPG2_TESTDB_PORT": str(target.port),
             "PSYCOPG2_TESTDB_USER": SUPERUSER}  # fmt: skip
    return _pytest(directory / "venv/bin/python", target, scratch, directory, ["tests"], **names)


PSYCOPG2 = Suite(
    name="psycopg2", sessions=((SUPERUSER, "psycopg2_test"),), build=_build_psycopg2, run=_run_psycopg2,
    setup="CREATE DATABASE psycopg2_test;\n\\c psycopg2_test\nCREATE EXTENSION hstore;", own_certificate=True,
)  # fmt: skip


# SQLAlchemy's dialect suite, over psycopg and over asyncpg


def _build_sqlalchemy(directory: Path) -> None:
    source = sdist("SQLAlchemy", "2.1.9", directory)
    for name in ("lib", "test", "setup.cfg", "pyproject.toml"):
        (source / name).rename(directory / name)
    drivers = ("psycopg[binary]==3.3.4", "asyncpg==0.32.0", "greenlet")
    venv(directory, "SQLAlchemy==2.1.9", *drivers, _PYTEST)


def _run_sqlalchemy(directory: Path, target: Target, scratch: Path) -> Results:
    results: Results = {}
    for driver in ("psycopg", "asyncpg"):
        folder = scratch / driver
        folder.mkdir()
        uri = f"postgresql+{driver}://{SUPERUSER}@{target.host}:{target.port}/sa"
        arguments = ["--dburi", uri, "test/dialect/test_suite.py"]
        for name, outcome in _pytest(directory / "venv/bin/python", target, folder, directory, arguments).items():
            results[f"{driver}: {name}"] = outcome
    return results


SQLALCHEMY = Suite(
    name="sqlalchemy", sessions=((SUPERUSER, "sa"),), build=_build_sqlalchemy, run=_run_sqlalchemy,
    setup="CREATE DATABASE sa;\nALTER DATABASE sa SET default_text_search_config = 'pg_catalog.english';\n\\c sa\n"
    "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE SCHEMA test_schema; CREATE SCHEMA test_schema_2;",
    own_certificate=True,
)  # fmt: skip


# Django, the apps whose tests look at the database


_APPS = """
    aggregation annotations backends basic bulk_create constraints datatypes db_functions delete distinct_on_fields
    expressions expressions_window indexes inspectdb introspection lookup model_fields multiple_database postgres_tests
    prefetch_related queries raw_query schema select_for_update transaction_hooks transactions update
""".split()


def _build_django(directory: Path) -> None:
    source = sdist("Django", "5.2.19", directory)
    shutil.copytree(source / "tests", directory / "tests")
    venv(directory, "Django==5.2.19", "psycopg[binary]==3.3.4", "psycopg-pool", "sqlparse", "tblib", "jinja2")


def _run_django(directory: Path, target: Target, scratch: Path) -> Results:
    shutil.copy(DATA / "django_settings.py", directory / "tests/grille_settings.py")
    outcomes = scratch / "outcomes"
    command = [directory / "venv/bin/python", "runtests.py", "--settings=grille_settings", "--parallel=1", "--noinput"]
    environment = {**target.environment(), "GRILLE_OUTCOMES": str(outcomes)}
    execute([*command, *_APPS], scratch / "log", cwd=directory / "tests", environment=environment)
    results: Results = {}
    for line in outcomes.read_text().splitlines() if outcomes.exists() else ():
        outcome, _, name = line.partition(" ")
        if results.get(name) != "failed":
            results[name] = "failed" if outcome == "failed" else "skipped" if outcome == "skipped" else "passed"
    return results


DJANGO = Suite(
    name="django", build=_build_django, run=_run_django,
    sessions=tuple((SUPERUSER, name) for name in ("postgres", "django", "django2", "test_django", "test_django2")),
    setup="CREATE DATABASE django; CREATE DATABASE django2;",
)  # fmt: skip

SUITES = (ASYNCPG, PSYCOPG2, SQLALCHEMY, DJANGO)
