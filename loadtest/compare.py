"""Side-by-side measurement: contenders alternate within each round, so that a noisy machine is noisy for all."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from typing import Any

import grille
from loadtest.contenders import Contender, contenders, cpu_seconds, pgbench

SCENARIOS: dict[str, tuple[str, int]] = {
    "select-simple-1": ("simple", 1),
    "select-simple-32": ("simple", 32),
    "select-prepared-1": ("prepared", 1),
    "select-prepared-32": ("prepared", 32),
}
"""pgbench's select-only script: query mode, clients."""


def compare(scenario: str, *, rounds: int, seconds: float, level: str, workers: int) -> dict[str, Any]:
    """Run a scenario; the report, whose ``line`` is the contract's last line."""
    mode, clients = SCENARIOS[scenario]
    runs: dict[str, list[dict[str, float]]] = {}
    with contenders(scale=1, level=level, workers=workers) as (found, missing):
        for line in missing:
            print(line, flush=True)
        usable = []
        for contender in found:
            refusal = _warm(contender, mode, clients)
            if refusal is None:
                usable.append(contender)
            else:
                print(f"{contender.name} cannot run {scenario}: {refusal}: skipped", flush=True)
        for number in range(rounds):
            for contender in usable if number % 2 == 0 else reversed(usable):
                run = _run(contender, mode, clients, seconds)
                runs.setdefault(contender.name, []).append(run)
                print(
                    f"round {number + 1}/{rounds} {contender.name:10} {run['tps']:9.0f} TPS "
                    f"{run['latency_us']:7.0f} us  CPU {run['cpu_us']:6.1f} us a statement",
                    flush=True,
                )
    return _report(scenario, runs, level)


def _warm(contender: Contender, mode: str, clients: int) -> str | None:
    """Run shortly; what went wrong, or None."""
    try:
        _run(contender, mode, clients, 1)
    except subprocess.CalledProcessError as error:
        text = str(error.stderr).strip().splitlines()
        return text[-1] if text else "it failed"
    return None


def _run(contender: Contender, mode: str, clients: int, seconds: float) -> dict[str, float]:
    before = cpu_seconds(contender.pids)
    result = subprocess.run(
        [pgbench(), "-n", "-S", "-M", mode, "-c", str(clients), "-j", "1", "-T", str(max(int(seconds), 1))],
        env={**os.environ, **contender.settings}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    spent = cpu_seconds(contender.pids) - before
    tps = _number(r"tps = ([0-9.]+)", result.stdout)
    count = _number(r"transactions actually processed: ([0-9]+)", result.stdout)
    if _number(r"failed transactions: ([0-9]+)", result.stdout):
        raise subprocess.CalledProcessError(1, "pgbench", stderr="some transactions failed")
    return {
        "tps": tps,
        "latency_us": 1000 * _number(r"latency average = ([0-9.]+) ms", result.stdout),
        "cpu_us": spent / count * 1e6,
    }


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def _report(scenario: str, runs: dict[str, list[dict[str, float]]], level: str) -> dict[str, Any]:
    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[name])

    def ratio(name: str) -> str:
        """Median over rounds of Grille's TPS divided by the contender's of the same round."""
        if name not in runs:
            return "absent"
        pairs = zip(runs["grille"], runs[name], strict=True)
        values = sorted(ours["tps"] / theirs["tps"] for ours, theirs in pairs)
        spreads[name] = [round(values[0], 3), round(values[-1], 3)]
        return f"{statistics.median(values):.2f}"

    spreads: dict[str, list[float]] = {}
    line = (
        f"{scenario} tps={median('grille', 'tps'):.0f} ratio_direct={ratio('direct')} "
        f"ratio_pgbouncer={ratio('pgbouncer')} cpu_us={median('grille', 'cpu_us'):.1f} level={level} "
        f"build={grille.build()}"
    )
    for name, spread in spreads.items():
        print(f"ratio to {name}: spread {spread[0]:.2f} to {spread[1]:.2f}")
    return {"scenario": scenario, "level": level, "build": grille.build(), "runs": runs, "ratio_spread": spreads,
            "line": line}  # fmt: skip
