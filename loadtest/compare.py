"""Side-by-side measurement: contenders alternate within each round, so that a noisy machine is noisy for all."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from loadtest import agents, report
from loadtest.contenders import (
    ACCOUNTS,
    Contender,
    Stage,
    Variant,
    build,
    card,
    find_pgbouncer,
    prepares,
    program,
    stage,
)
from loadtest.controls import controls
from loadtest.report import Sample
from loadtest.scenarios import SCENARIOS, Case, Options, RunFailed, Scenario

FIXED_CONTROLS = (
    "cannot be turned off, so measured with all: mutual TLS and identity, the decision and its cache, the parse and "
    "the plan, the OID pin, matching of replies, the audit event itself (-audit lowers its level to process)"
)


class DifferentData(Exception):
    """Two contenders answer the same statement with different rows: there is nothing to compare."""


def variants(scenario: Scenario, level: str) -> list[Variant]:
    """Grille with every control on, then with one FF1 column, then with each control off in turn."""
    base = Variant("grille", level, scenario.scopes)
    found = [base]
    if scenario.strict and level != "strict":
        found.append(dataclasses.replace(base, name="grille-strict", level="strict"))
    if scenario.variants:
        found += [
            dataclasses.replace(base, name="grille+ff1", scopes=(*base.scopes, "clear-card"), card=True),
            dataclasses.replace(base, name="grille-filter", scopes=(*base.scopes, "all-rows")),
            dataclasses.replace(base, name="grille-limits", scopes=(*base.scopes, "no-limits")),
            dataclasses.replace(base, name="grille-sensitive", sensitive=False),
        ]
        if level != "process":
            found.append(dataclasses.replace(base, name="grille-audit", level="process"))
    return found


GROWING = {"p7": agents.p7, "p9": agents.p9, "controls": controls}
"""Scenarios that measure Grille beside itself."""


def compare(options: Options, console: Console) -> dict[str, Any]:
    """Run a scenario; the report, whose ``line`` is the contract's last line.

    Raises `NotInstalled`; `DifferentData` before anything is measured, or if a write went astray; `RunFailed` if p7 or
    p9 cannot be run.
    """
    scenario = SCENARIOS[options.scenario]
    level = options.level or scenario.level
    made = build(options.plain)
    skipped: dict[str, str] = {}
    cases: dict[str, dict[str, list[Sample]]] = {}
    with stage(
        branches=scenario.branches, pool_size=scenario.pool_size, workers=options.workers, plain=options.plain
    ) as scene:
        if options.scenario in GROWING:
            runs, more = GROWING[options.scenario](scene, options, level, console)
            cases[scenario.about] = runs
            first = {"grille": next(iter(runs.values()))}
        else:
            found = _usable(scene, scenario, level, options, skipped, console)
            for case in scenario.cases:
                cases[case.about] = _rounds(scene, case, found, options, skipped, console)
            first = cases[scenario.cases[0].about]
            more = _more(options.scenario, list(cases.values()))
        if scenario.branches > 1:
            _check_balances(scene)
    for about, runs in cases.items():
        console.print(report.table(f"{options.scenario}: {about} ({scenario.unit})", runs))
    if scenario.variants:
        console.print(FIXED_CONTROLS, soft_wrap=True)
    return {
        "scenario": options.scenario, "level": level, "build": made, "unit": scenario.unit,
        "workers": options.workers, "rounds": options.rounds, "seconds": options.seconds, "machine": machine(),
        "skipped": skipped, "fixed_controls": FIXED_CONTROLS,
        "cases": {
            about: {
                "runs": {who: [dataclasses.asdict(sample) for sample in samples] for who, samples in runs.items()},
                "summary": report.summary(runs),
            }
            for about, runs in cases.items()
        },
        "measured": bool(first.get("grille")),
        "plot": report.plot(f"{options.scenario}: {scenario.unit} a second, level {level}, {made} build", cases),
        "line": report.line(options.scenario, first, level=level, build=made, more=more),
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    version = subprocess.run([program("postgres"), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cores": os.cpu_count(), "architecture": platform.machine(), "kernel": platform.release(),
        "python": platform.python_version(), "postgres": version.strip(),
    }  # fmt: skip


def _usable(
    scene: Stage, scenario: Scenario, level: str, options: Options, skipped: dict[str, str], console: Console
) -> list[Contender]:
    """The contenders that are there and have the same data; the others are named and skipped."""
    found = _contenders(scene, scenario, level, options, skipped)
    skipped.update(check_data(scene, found))
    for name, reason in skipped.items():
        console.print(f"{name} is skipped: {reason}", soft_wrap=True)
    return [contender for contender in found if contender.name not in skipped]


def _contenders(
    scene: Stage, scenario: Scenario, level: str, options: Options, skipped: dict[str, str]
) -> list[Contender]:
    def wanted(name: str) -> bool:
        return not options.only or name in options.only

    found = []
    if wanted("direct"):
        found.append(scene.direct())
    bouncer = find_pgbouncer()
    poolers = [("pgbouncer", bouncer)] if bouncer else []
    if wanted("pgbouncer") and not bouncer:
        skipped["pgbouncer"] = "it is not installed"
    for name, path in [*poolers, *options.poolers]:
        if not wanted(name):
            continue
        if any(case.prepared for case in scenario.cases) and not prepares(path):
            skipped[name] = "this version has no prepared statements in transaction mode (PgBouncer has since 1.21)"
            continue
        found.append(scene.pooler(name, path))
    found += [scene.grille(variant) for variant in variants(scenario, level) if wanted(variant.name)]
    return found


def check_data(scene: Stage, found: Sequence[Contender]) -> dict[str, str]:
    """Compare what all contenders answer to the same statements; who cannot answer them, and why.

    Raises `DifferentData`.
    """
    totals = "SELECT count(*), sum(aid), sum(bid), sum(abalance) FROM pgbench_accounts"
    rows = "SELECT aid, bid, abalance, card FROM pgbench_accounts WHERE aid <= 1000 ORDER BY aid"
    refused: dict[str, str] = {}
    expected = _ask(scene.direct(), totals), _ask(scene.direct(), rows)
    if int(expected[0].split("|")[0]) != ACCOUNTS:
        raise DifferentData(f"pgbench_accounts has not {ACCOUNTS} rows: {expected[0]}")
    decoded = "".join(
        f"{text.rpartition('|')[0]}|{card(number)}\n" for number, text in enumerate(expected[1].splitlines(), 1)
    )
    for contender in found:
        try:
            answers = _ask(contender, totals), _ask(contender, rows)
        except RunFailed as error:
            refused[contender.name] = str(error)
            continue
        if answers != (expected[0], decoded if contender.card else expected[1]):
            raise DifferentData(
                f"{contender.name} does not answer like direct: {totals!r} gives {answers[0].strip()!r} against "
                f"{expected[0].strip()!r}, or other rows to {rows!r}"
            )
    return refused


def _ask(contender: Contender, statement: str) -> str:
    try:
        result = subprocess.run(
            [program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement],
            env=contender.environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RunFailed("no answer within two minutes") from None
    if result.returncode:
        raise RunFailed(" ".join(result.stderr.split()) or "psql failed")
    return result.stdout


def _check_balances(scene: Stage) -> None:
    """All balances agree with the history.  Raises `DifferentData`."""
    sums = _ask(
        scene.direct(),
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), "
        "(SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history)",
    ).strip()
    if len(set(sums.split("|"))) != 1:
        raise DifferentData(f"a write went astray: accounts, tellers, branches and history sum up to {sums}")


def _rounds(
    scene: Stage, case: Case, found: Sequence[Contender], options: Options, skipped: dict[str, str], console: Console
) -> dict[str, list[Sample]]:
    runs: dict[str, list[Sample]] = {contender.name: [] for contender in found}

    def run(contender: Contender, seconds: float) -> Sample | None:
        """One sample; None from the first failure on, which is told once."""
        if contender.name not in runs:
            return None
        try:
            return case.run(scene, contender, seconds)
        except RunFailed as error:
            skipped[contender.name] = f"{case.about}: {error}"
            console.print(f"{contender.name} is skipped: {case.about}: {error}", soft_wrap=True, highlight=False)
            # Rounds are compared with rounds, so half a series is none.
            del runs[contender.name]
            return None

    for contender in found:
        run(contender, 1)
    for number in range(options.rounds):
        for contender in found if number % 2 == 0 else found[::-1]:
            sample = run(contender, options.seconds)
            if sample is None:
                continue
            runs[contender.name].append(sample)
            console.print(
                f"round {number + 1}/{options.rounds} {contender.name:16} {sample.tps:9.0f} a second, "
                f"p50 {sample.p50_us:6.0f} us, p99 {sample.p99_us:6.0f} us, CPU {sample.cpu_us:6.1f} us a statement",
                soft_wrap=True,
                highlight=False,
            )
    return runs


def _more(scenario: str, cases: Sequence[report.Runs]) -> dict[str, str]:
    """What the last line of some scenarios says besides."""
    first, *others = cases
    grille, direct = first.get("grille"), first.get("direct")
    found = {}
    if scenario == "p4" and grille and direct:
        for key in ("p50", "p99"):
            found[f"added_us_{key}"] = f"{report.added(grille, direct, f'{key}_us').median:.0f}"
    if strict := first.get("grille-strict"):
        found["tps_strict"] = f"{report.Spread.of([sample.tps for sample in strict]).median:.0f}"
        if direct:
            found["ratio_direct_strict"] = f"{report.ratio(strict, direct).median:.2f}"
    suffix = {"p2": "sync_each", "copy": "in"}.get(scenario)
    if suffix and (second := others[0].get("grille")):
        found[f"tps_{suffix}"] = f"{report.Spread.of([sample.tps for sample in second]).median:.0f}"
        found[f"cpu_us_{suffix}"] = f"{report.Spread.of([sample.cpu_us for sample in second]).median:.1f}"
        if "direct" in others[0]:
            found[f"ratio_direct_{suffix}"] = f"{report.ratio(second, others[0]['direct']).median:.2f}"
    return found
