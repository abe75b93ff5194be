"""From samples to a table, JSON, a plot and the last line.  Nothing here measures anything."""

from __future__ import annotations

import dataclasses
import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

ABSENT = "absent"
"""Stands in the last line for a ratio to a contender that was not measured."""


@dataclass(frozen=True)
class Sample:
    """One contender in one round."""

    tps: float
    """Units of the scenario a second: transactions; statements in p2; MB in copy."""
    p50_us: float
    p95_us: float
    p99_us: float
    cpu_us: float
    """CPU of the proxy's processes for one statement, in microseconds."""
    server_cpu_us: float
    """CPU of PostgreSQL's processes for one statement, in microseconds."""
    rss_mib: float
    """Resident memory of the proxy's processes, in MiB."""


@dataclass(frozen=True)
class Spread:
    """Median over rounds, with the lowest and the highest round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError without values."""
        if not values:
            raise ValueError("no round was measured")
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 0) -> str:
        """The median, and on a second line the lowest and highest round where they differ."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f}\n{self.low:.{digits}f}..{self.high:.{digits}f}"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank of a sorted list: the least value that at least this share of the values does not exceed.

    Raises ValueError for an empty list.
    """
    if not ordered:
        raise ValueError("no latency was recorded")
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample]) -> Spread:
    """Throughput to throughput of the same round.  Raises ValueError if the rounds are not the same."""
    return Spread.of([a.tps / b.tps for a, b in zip(ours, theirs, strict=True)])


def added(ours: Sequence[Sample], theirs: Sequence[Sample], key: str) -> Spread:
    """Latency over the other's of the same round, in microseconds."""
    return Spread.of([getattr(a, key) - getattr(b, key) for a, b in zip(ours, theirs, strict=True)])


def growth(values: Sequence[float]) -> float:
    """How far the largest value is above the smallest: 0.10 is ten per cent."""
    return max(values) / min(values) - 1


Runs = Mapping[str, Sequence[Sample]]


def summary(runs: Runs) -> dict[str, dict[str, dict[str, float]]]:
    """Every figure of every contender with its spread, and the ratios to ``direct`` and ``pgbouncer``."""
    result = {}
    for name, samples in runs.items():
        figures = {
            field.name: Spread.of([getattr(sample, field.name) for sample in samples])
            for field in dataclasses.fields(Sample)
        }
        for other in ("direct", "pgbouncer"):
            if other in runs:
                figures[f"ratio_{other}"] = ratio(samples, runs[other])
        result[name] = {key: dataclasses.asdict(value) for key, value in figures.items()}
    return result


def table(title: str, runs: Runs) -> Table:
    """The figures of one case as a table: median over rounds (lowest..highest)."""
    made = Table(title=title, title_justify="left")
    made.add_column("contender", no_wrap=True)
    columns = (
        ("a second", "tps", 0), ("to direct", "ratio_direct", 2), ("to pgbouncer", "ratio_pgbouncer", 2),
        ("p50 us", "p50_us", 0), ("p95 us", "p95_us", 0), ("p99 us", "p99_us", 0), ("proxy CPU us", "cpu_us", 1),
        ("server CPU us", "server_cpu_us", 1), ("RSS MiB", "rss_mib", 0),
    )  # fmt: skip
    for heading, _, _ in columns:
        made.add_column(heading, justify="right")
    for name, figures in summary(runs).items():
        made.add_row(
            name, *(Spread(**figures[key]).text(digits) if key in figures else "-" for _, key, digits in columns)
        )
    return made


def line(name: str, runs: Runs, *, level: str, build: str, more: Mapping[str, str] | None = None) -> str:
    """The contract's last line, about the contender ``grille``."""
    figures = summary(runs).get("grille", {})

    def text(key: str, digits: int) -> str:
        return f"{figures[key]['median']:.{digits}f}" if key in figures else ABSENT

    parts = {
        "tps": text("tps", 0), "ratio_direct": text("ratio_direct", 2), "ratio_pgbouncer": text("ratio_pgbouncer", 2),
        "cpu_us": text("cpu_us", 1), "level": level, "build": build, **(more or {}),
    }  # fmt: skip
    return " ".join([name, *(f"{key}={value}" for key, value in parts.items())])


def plot(title: str, cases: Mapping[str, Runs]) -> str:
    """An SVG: a bar a contender with its median throughput, a line from the lowest to the highest round."""
    bar, left, width, right = 22, 270, 420, 210
    y = 34
    body = []
    for heading, runs in cases.items():
        if not runs:
            continue
        largest = max(sample.tps for samples in runs.values() for sample in samples)
        body.append(f'<text x="10" y="{y + 12}" class="head">{html.escape(heading)}</text>')
        y += 22
        for name, figures in summary(runs).items():
            tps = Spread(**figures["tps"])
            low, middle, high = (value / largest * width for value in (tps.low, tps.median, tps.high))
            kind = name if name in ("direct", "grille") else "pooler" if not name.startswith("grille") else "variant"
            label = f"{tps.median:,.0f}"
            if "ratio_direct" in figures and name != "direct":
                label += f"  ({figures['ratio_direct']['median']:.2f} of direct)"
            body += [
                f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>',
                f'<rect x="{left}" y="{y + 2}" width="{middle:.1f}" height="{bar - 8}" class="{kind}"/>',
                f'<path d="M{left + low:.1f} {y + 9}H{left + high:.1f}" class="spread"/>',
                f'<text x="{left + max(high, middle) + 6:.1f}" y="{y + 13}">{label}</text>',
            ]
            y += bar
        y += 14
    total = left + width + right
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{y}" viewBox="0 0 {total} {y}">'
        "<style>text{font:12px sans-serif}.head{font-weight:bold}.title{font:bold 14px sans-serif}"
        ".direct{fill:#7f7f7f}.pooler{fill:#8fb3d9}.grille{fill:#2a7f62}.variant{fill:#9fd0bf}"
        ".spread{stroke:#222;stroke-width:2}</style>"
        f'<rect width="{total}" height="{y}" fill="#fff"/>'
        f'<text x="10" y="20" class="title">{html.escape(title)}</text>{"".join(body)}</svg>\n'
    )
