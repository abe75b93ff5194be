"""``python -m tests.differential``: generated statements through Grille and under native row security, compared."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

import grille
from grille.proxy.demo.cluster import Cluster, debian_binaries, embedded_binaries
from tests.differential import sqlsmith
from tests.differential.generator import script
from tests.differential.run import REGRESSIONS, Bench, Tally, campaign
from tests.differential.world import World, settings


def main() -> int:
    """Exit status 0 if no statement leaked, was answered wrongly, or crashed; else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--statements", type=int, default=10_000, metavar="N", help="how many to judge (10000)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the generator (1)")
    parser.add_argument("--start", type=int, default=0, metavar="NUMBER", help="the first script's number (0)")
    parser.add_argument("--lanes", type=int, default=4, help="pairs of sessions, each with databases of its own (4)")
    parser.add_argument("--server", choices=("pg15", "pg18"), default="pg18")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="only print the script of this number")
    parser.add_argument("--save", type=Path, default=REGRESSIONS, metavar="DIR", help="where differences are kept")
    parser.add_argument("--source", choices=("grammar", "sqlsmith"), default="grammar", help="their writer (grammar)")
    chosen = parser.parse_args()
    if chosen.source == "sqlsmith" and not sqlsmith.available():
        print("sqlsmith is not installed", file=sys.stderr)
        return 2
    if chosen.show is not None:
        for statement in script(chosen.seed, chosen.show).statements:
            print(statement.sql, statement.values or "")
        return 0
    binaries = embedded_binaries() if chosen.server == "pg18" else debian_binaries(15)
    if binaries is None:
        print(f"{chosen.server} is not installed", file=sys.stderr)
        return 1
    started = time.monotonic()
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):  # the first ends the run in order
        signal.signal(number, lambda got, _frame: sys.exit(128 + got) if stopped else stopped.append(got))

    def progress(tally: Tally) -> None:
        rate = tally.statements / (time.monotonic() - started)
        print(f"{tally.statements} of {chosen.statements} statements, {rate:.0f}/s, bad={tally.bad}", flush=True)

    with (
        Cluster(binaries, settings=settings()) as cluster,
        World(cluster, chosen.lanes) as world,
        Bench(world) as bench,
    ):
        started = time.monotonic()
        tally = campaign(
            bench,
            lambda tally: tally.statements >= chosen.statements or bool(stopped),
            chosen.seed,
            start=chosen.start,
            progress=progress,
            save=chosen.save,
            source=sqlsmith.source(world, chosen.seed) if chosen.source == "sqlsmith" else None,
        )
        exception = '"exception"' in world.log.read_text()
    seconds = time.monotonic() - started
    print(f"{chosen.server}, {grille.build()} build, seed {chosen.seed}: {tally.statements / seconds:.0f} statements/s")
    shown = {f"{reason} (such as number {tally.examples[reason]})": n for reason, n in tally.reasons.items()}
    _table("denied, though native row security answers", shown)
    _table("equal, with an allowed difference", tally.allowed)
    _table("equal pairs ended in", tally.ended)
    print(f"agreed: {tally.counts['agreed']} that Grille denies and native row security refuses as well")
    if exception:
        print("an exception stands in Grille's log")
        tally.counts["crash"] += 1
    print(tally.line())
    return 1 if tally.bad else 0


def _table(title: str, counts: dict[str, int]) -> None:
    print(f"{title}:")
    for name, count in sorted(counts.items(), key=lambda each: -each[1])[:10]:
        print(f"  {count:8} {name}")


if __name__ == "__main__":
    sys.exit(main())
