"""``python -m loadtest compare --scenario NAME``: Grille beside what its users run today, in one run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from loadtest.compare import DifferentData, compare
from loadtest.contenders import NotInstalled, build
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
    options = Options(
        scenario=chosen.scenario, rounds=chosen.rounds, seconds=chosen.seconds, level=chosen.level,
        workers=chosen.workers, plain=chosen.plain, only=tuple(filter(None, chosen.contenders.split(","))),
        poolers=tuple(_pooler(text) for text in chosen.pooler), agents=chosen.agents,
    )  # fmt: skip
    try:
        result = compare(options, console)
    except NotInstalled as missing:
        print(f"loadtest: {missing}", file=sys.stderr)
        return 2
    except RunFailed as failure:
        print(f"loadtest: {chosen.scenario} cannot be run: {failure}", file=sys.stderr)
        return 1
    except DifferentData as difference:
        print(f"loadtest: the contenders have different data: {difference}", file=sys.stderr)
        return 1
    svg = result.pop("plot")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / f"{chosen.scenario}.svg").write_text(svg)
    text = json.dumps(result, indent=2) + "\n"
    for path in filter(None, (chosen.out / f"{chosen.scenario}.json", chosen.json)):
        path.write_text(text)
    print(result["line"])
    return 0 if result["measured"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "compare",
        help="one scenario against each contender, alternating in one run",
        epilog="Example: python -m loadtest compare --scenario p1 --rounds 5 --json result.json",
    )
    run.add_argument("--scenario", choices=SCENARIOS, required=True)
    run.add_argument("--rounds", type=int, default=5, help="rounds of every contender (default 5)")
    run.add_argument("--seconds", type=float, default=5.0, help="seconds a contender and round (default 5)")
    run.add_argument(
        "--level", choices=("process", "power", "strict"), help="when events are kept (default: the scenario's)"
    )
    run.add_argument("--workers", type=int, default=1, help="Grille's worker processes (default 1)")
    run.add_argument("--contenders", default="", metavar="A,B", help="measure only these")
    run.add_argument(
        "--pooler", action="append", default=[], metavar="NAME=PATH",
        help="one more pooler: a program that reads PgBouncer's configuration file, given as its only argument",
    )  # fmt: skip
    run.add_argument("--agents", type=int, default=10_000, help="how far p7 and p9 go (default 10000)")
    run.add_argument("--plain", action="store_true", help="measure the plain build, not the compiled one")
    run.add_argument("--json", type=Path, metavar="FILE", help="write every figure here too")
    run.add_argument("--out", type=Path, default=Path("loadtest/report"), metavar="DIR", help="report's directory")
    return parser


def _pooler(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not path or not Path(path).is_file() or not _is_name(name):
        raise SystemExit(f"loadtest: --pooler {text}: give NAME=PATH, with the path of a program")
    return name, path


def _is_name(name: str) -> bool:
    """A pooler's name: it becomes part of a path and of the report."""
    return name.replace("-", "").replace("_", "").isalnum()


if __name__ == "__main__":
    raise SystemExit(main())
