"""Scenarios about the number of agents, statements and policies: Grille beside itself, at an equal load."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from loadtest import report
from loadtest.contenders import Contender, Stage, Variant, resident_kib
from loadtest.drivers import Driver, ServerError
from loadtest.report import Sample
from loadtest.scenarios import Meter, Options, RunFailed, driven

CLIENTS = 64
"""Statements in flight at once in p9."""
ACTIVE = 200
"""Agents of p7 that work; the others are connected."""
LOAD = 0.5
"""Share of its throughput with `ACTIVE` agents that Grille is given to do in p7."""


@dataclass(frozen=True)
class Point:
    """One place of p9: how many identities, statement shapes and policies there are."""

    identities: int = 1
    shapes: int = 10
    policies: int = 1

    @property
    def name(self) -> str:
        """As the report calls it."""
        return f"{self.identities} identities, {self.shapes} shapes, {self.policies} policies"


def points(most: int) -> dict[str, list[Point]]:
    """p9's points by what grows; each list begins with the same point."""
    base = Point()
    return {
        "identities": [base, Point(identities=100), Point(identities=most)],
        "shapes": [base, Point(shapes=1_000), Point(shapes=most)],
        "policies": [base, Point(policies=50), Point(policies=500)],
    }


def p9(scene: Stage, options: Options, level: str, console: Console) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """CPU a statement while identities, shapes and policies grow; samples by point, and what the last line adds.

    Raises `RunFailed`.
    """
    axes = points(options.agents)
    distinct = list(dict.fromkeys(point for axis in axes.values() for point in axis))
    runs: dict[str, list[Sample]] = {point.name: [] for point in distinct}
    with contextlib.ExitStack() as stack:
        drivers = []
        for number, point in enumerate(distinct):
            contender = scene.grille(Variant(f"grille-{number}", level, policies=point.policies))
            count = max(point.identities, CLIENTS)
            certificates = scene.agents(point.identities)
            driver = _connect(stack, console, contender, certificates, count, point.shapes)
            drivers.append((point, contender, driver))
            console.print(f"connected: {point.name}", soft_wrap=True, highlight=False)
        for number in range(options.rounds):
            for point, contender, driver in drivers if number % 2 == 0 else drivers[::-1]:
                command = {"do": "closed", "seconds": options.seconds, "in_flight": CLIENTS}
                sample = _driven(Meter(scene, contender), driver, command)
                runs[point.name].append(sample)
                _say(console, number, options.rounds, point.name, sample)
    found = {}
    for name, axis in axes.items():
        medians = [report.Spread.of([sample.cpu_us for sample in runs[point.name]]).median for point in axis]
        found[f"spread_{name}"] = f"{report.growth(medians):.2f}"
    return runs, {"spread": max(found.values(), key=float), **found}


def p7(scene: Stage, options: Options, level: str, console: Console) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """`ACTIVE` agents at an equal load, alone and beside thousands that are connected; as `p9`.

    Raises `RunFailed`.
    """
    few, many = f"{ACTIVE} connected", f"{options.agents} connected"
    runs: dict[str, list[Sample]] = {few: [], many: []}
    with contextlib.ExitStack() as stack:
        drivers = {}
        kib = {}
        for number, (name, count) in enumerate(((few, ACTIVE), (many, options.agents))):
            contender = scene.grille(Variant(f"grille-{number}", level))
            before = resident_kib(contender.pids())
            driver = _connect(stack, console, contender, scene.agents(count), count, 0)
            kib[name] = resident_kib(contender.pids()) - before
            drivers[name] = (contender, driver)
            console.print(f"connected: {name}, {kib[name] / count:.1f} KiB an agent", soft_wrap=True, highlight=False)
        calibration = drivers[few][1].command(
            {"do": "closed", "seconds": max(options.seconds / 2, 1), "in_flight": ACTIVE}
        )  # fmt: skip
        rate = calibration["tps"] * LOAD
        console.print(f"both are given {rate:.0f} statements a second", highlight=False)
        for number in range(options.rounds):
            for name in (few, many) if number % 2 == 0 else (many, few):
                contender, driver = drivers[name]
                command = {"do": "open", "seconds": options.seconds, "active": ACTIVE, "rate": rate}
                sample = _driven(Meter(scene, contender), driver, command)
                runs[name].append(sample)
                _say(console, number, options.rounds, name, sample)
    p99 = [b.p99_us / a.p99_us for a, b in zip(runs[few], runs[many], strict=True)]
    idle = max(options.agents - ACTIVE, 1)
    return runs, {
        "p99_ratio": f"{report.Spread.of(p99).median:.2f}", "kib_per_agent": f"{(kib[many] - kib[few]) / idle:.1f}",
    }  # fmt: skip


def _connect(
    stack: contextlib.ExitStack, console: Console, contender: Contender, certificates: Sequence[str], count: int,
    shapes: int,
) -> Driver:  # fmt: skip
    def progress(connected: int) -> None:
        console.print(f"{connected} of {count} agents are connected", highlight=False)

    try:
        driver = stack.enter_context(Driver(contender.settings, certificates, count, progress))
        driver.command({"do": "warm up", "shapes": shapes})
    except ServerError as error:
        raise RunFailed(str(error)) from None
    return driver


def _driven(meter: Meter, driver: Driver, command: dict[str, Any]) -> Sample:
    try:
        return driven(meter, driver, command)
    except ServerError as error:
        raise RunFailed(str(error)) from None


def _say(console: Console, number: int, rounds: int, name: str, sample: Sample) -> None:
    figures = dataclasses.asdict(sample)
    console.print(
        "round {}/{} {:42} {tps:8.0f} a second, p50 {p50_us:6.0f} us, p99 {p99_us:6.0f} us, CPU {cpu_us:6.1f} us a "
        "statement".format(number + 1, rounds, name, **figures),
        soft_wrap=True,
        highlight=False,
    )
