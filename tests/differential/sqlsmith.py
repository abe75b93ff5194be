"""Statements that sqlsmith writes (Debian's package of that name), as a second source: it knows nothing of Grille.

It prints what it would run.  It is shown a database of its own with the tables of the others, and only immutable
functions of names on Grille's lists; of operators and types it sees all, so most of what it writes is denied.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Final

import psycopg

from grille.protocols.postgres.purity import PURE
from tests.differential.generator import Script
from tests.differential.wire import Statement
from tests.differential.world import HERE, World

_DATABASE: Final = "sqlsmith"
_ARBITRARY: Final = re.compile(r"\btablesample\b")
"""Of these either side may show any rows: they are not judged."""
_LIMIT: Final = re.compile(r"\blimit (?!1 offset)\d+")
_ANY_VALUE: Final = re.compile(r"\blimit 1 offset\b")
_WRITES: Final = re.compile(r"\s*(insert|update|delete|merge)\b", re.IGNORECASE)


def available() -> bool:
    """True if sqlsmith is installed."""
    return shutil.which("sqlsmith") is not None


def source(world: World, seed: int) -> Callable[[int], Script]:
    """Gives one script after another; ends with the world."""
    with psycopg.connect(world.cluster.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {_DATABASE}")
    names = sorted(set(re.findall(r"(\w+)\(", " ".join(PURE.values()))))
    with psycopg.connect(world.cluster.dsn(_DATABASE)) as connection:
        connection.execute((HERE / "schema.sql").read_text())
        connection.execute("CREATE SCHEMA shown")
        connection.execute("CREATE TABLE shown.names AS SELECT unnest(%s::text[]) AS name", [names])
        connection.execute(
            "CREATE VIEW shown.pg_proc AS SELECT * FROM pg_catalog.pg_proc"
            " WHERE pronamespace = 'public'::regnamespace"
            " OR (provolatile = 'i' AND proname IN (SELECT name FROM shown.names))"
        )
    process = subprocess.Popen(
        ["sqlsmith", "--dry-run", "--exclude-catalog", f"--seed={seed}",
         f"--target={world.cluster.dsn(_DATABASE)} options='-c search_path=shown,pg_catalog'"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    world.until_the_end(process.wait)
    world.until_the_end(process.kill)
    statements = _statements(process)

    def script(number: int) -> Script:
        sql = next(statements)
        judged = Statement(sql, fails=True)
        if _WRITES.match(sql):
            around = (Statement("BEGIN", judged=False), Statement("ROLLBACK", judged=False))
            return Script([around[0], judged, around[1]], number)
        return Script([judged], number)

    return script


def _statements(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.rstrip().endswith(";"):
            sql = " ".join("".join(lines).split()).removesuffix(";")
            lines.clear()
            if not _ARBITRARY.search(sql) and "shown." not in sql:
                yield _ANY_VALUE.sub("order by 1 limit 1 offset", _LIMIT.sub("limit 100000", sql))
    raise RuntimeError(f"sqlsmith ended with status {process.wait()}")
