"""``python -m loadtest compare|profile --scenario NAME``: Grille beside what its users run today, in one run."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest import ff1, mq
from loadtest.compare import DifferentData, compare
from loadtest.contenders import NotInstalled, build
from loadtest.profile import profile
from loadtest.scenarios import SCENARIOS, Options, RunFailed

UNCOMPILED = (
    "Grille is not compiled here, so its figures would be those of the plain build. Run `make build` first, or say "
    "--plain to measure the plain build."
)


def main(arguments: list[str] | None = None) -> int:
    """Command line.  The exit status: 0 measured; 1 Grille could not be measured, or data differ; 2 cannot start."""
    chosen = _parser().parse_args(arguments)
    made = build(chosen.plain)
    if made != "compiled" and not chosen.plain:
        print(f"loadtest: {UNCOMPILED}", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(f"measuring the {made.upper()} build of Grille, scenario {chosen.scenario}", soft_wrap=True)
    # So that everything that was started ends with this process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen.out.mkdir(parents=True, exist_ok=True)
    options = Options(
        scenario=chosen.scenario, seconds=chosen.seconds, level=chosen.level, workers=chosen.workers,
        plain=chosen.plain, only=tuple(filter(None, chosen.contenders.split(","))),
        **({"rounds": chosen.rounds, "agents": chosen.agents, "poolers": tuple(chosen.pooler)}
           if chosen.command == "compare" else {}),
    )  # fmt: skip
    try:
        if chosen.command == "profile":
            text = profile(options, console, chosen.sampler)
            (chosen.out / f"{chosen.scenario}-profile.txt").write_text(text)
            print(text, end="")
            return 0
        result = {"ff1": ff1.compare, "mq": mq.compare}.get(options.scenario, compare)(options, console)
    except NotInstalled as missing:
        print(f"loadtest: {missing}", file=sys.stderr)
        return 2
    except RunFailed as failure:
        print(f"loadtest: {chosen.scenario} cannot be run: {failure}", file=sys.stderr)
        return 1
    except DifferentData as difference:
        print(f"loadtest: the data differ: {difference}", file=sys.stderr)
        return 1
    _write(result, chosen)
    print(result["line"])
    return 0 if result["measured"] else 1


def _write(result: dict[str, Any], chosen: argparse.Namespace) -> None:
    (chosen.out / f"{chosen.scenario}.svg").write_text(result.pop("plot"))
    text = json.dumps(result, indent=2) + "\n"
    for path in filter(None, (chosen.out / f"{chosen.scenario}.json", chosen.json)):
        path.write_text(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--scenario", choices=SCENARIOS, required=True)
    both.add_argument("--seconds", type=_positive, default=5.0, help="seconds a contender and round (default 5)")
    both.add_argument(
        "--level", choices=("process", "power", "strict"), help="when events are kept (default: the scenario's)"
    )
    both.add_argument("--workers", type=_count, default=1, help="Grille's worker processes (default 1)")
    both.add_argument("--contenders", default="", metavar="A,B", help="only these, like direct,grille,grille+ff1")
    both.add_argument("--plain", action="store_true", help="measure the plain build, not the compiled one")
    both.add_argument("--out", type=Path, default=Path("loadtest/report"), metavar="DIR", help="where reports go")
    run = commands.add_parser(
        "compare",
        parents=[both],
        help="one scenario against each contender, alternating in one run",
        epilog="Example: python -m loadtest compare --scenario p1 --rounds 5 --json result.json",
    )
    run.add_argument("--rounds", type=_count, default=5, help="rounds of every contender (default 5)")
    run.add_argument("--agents", type=_count, default=10_000, help="how far p7 and p9 go (default 10000)")
    run.add_argument(
        "--pooler", type=_pooler, action="append", default=[], metavar="NAME=PATH",
        help="one more pooler: a program that takes PgBouncer's configuration file as its only argument",
    )  # fmt: skip
    run.add_argument("--json", type=Path, metavar="FILE", help="write every figure here too")
    look = commands.add_parser(
        "profile",
        parents=[both],
        help="Grille alone under load: where the microseconds go, function by function",
        epilog="Example: python -m loadtest profile --scenario p1 --sampler .venv/bin/py-spy",
    )
    look.add_argument("--sampler", metavar="PATH", help="py-spy or perf (default: the first of them on the path)")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 86_400:
        raise argparse.ArgumentTypeError("give seconds, more than 0")
    return number


def _pooler(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    # The name becomes part of a path.
    if not re.fullmatch(r"[a-z0-9_-]+", name) or name in ("direct", "pgbouncer") or not Path(path).is_file():
        raise argparse.ArgumentTypeError("give NAME=PATH, with a name of your own and the path of a program")
    return name, path


if __name__ == "__main__":
    raise SystemExit(main())
