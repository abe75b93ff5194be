"""``python -m loadtest compare --scenario NAME --rounds N --json FILE``"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from loadtest.compare import SCENARIOS, compare
from loadtest.contenders import NotInstalled


def main() -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "compare",
        help="one scenario against each contender, alternating in one run",
        epilog="Example: python -m loadtest compare --scenario select-prepared-32 --rounds 5 --json result.json",
    )
    run.add_argument("--scenario", choices=sorted(SCENARIOS), default="select-prepared-32")
    run.add_argument("--rounds", type=int, default=5, help="rounds of every contender (default 5)")
    run.add_argument("--seconds", type=float, default=5.0, help="seconds a contender and round (default 5)")
    run.add_argument("--level", choices=("process", "power", "strict"), default="power", help="when events are kept")
    run.add_argument("--workers", type=int, default=1, help="Grille's worker processes (default 1)")
    run.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    chosen = parser.parse_args()
    try:
        report = compare(
            chosen.scenario, rounds=chosen.rounds, seconds=chosen.seconds, level=chosen.level, workers=chosen.workers
        )
    except NotInstalled as missing:
        print(f"loadtest: {missing}", file=sys.stderr)
        return 2
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")
    print(report["line"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
