"""The report's arithmetic: percentiles, ratios by round, spreads, the last line, the plot."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from loadtest import report
from loadtest.report import Sample, Spread


def sample(tps: float, *, p50: float = 100, p99: float = 300, cpu: float = 20) -> Sample:
    return Sample(tps=tps, p50_us=p50, p95_us=200, p99_us=p99, cpu_us=cpu, server_cpu_us=40, rss_mib=64)


RUNS = {
    "direct": [sample(1000, p50=90), sample(500, p50=80), sample(800, p50=70)],
    "pgbouncer": [sample(2000), sample(2000), sample(2000)],
    "grille": [sample(1500, cpu=19), sample(1500, cpu=25), sample(1600, cpu=21)],
}


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [report.percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert report.percentile([7.0], 0.99) == 7
    assert report.percentile([1.0, 2.0], 0.5) == 1
    with pytest.raises(ValueError, match="no latency"):
        report.percentile([], 0.5)


def test_spread_is_median_lowest_and_highest() -> None:
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of([3, 1, 2]).text(1) == "2.0\n1.0..3.0"
    assert Spread.of([4]).text() == "4"
    with pytest.raises(ValueError, match="no round"):
        Spread.of([])


def test_a_ratio_compares_within_a_round() -> None:
    # Of the medians it would be 1500 / 800.
    assert report.ratio(RUNS["grille"], RUNS["direct"]) == Spread(2.0, 1.5, 3.0)
    with pytest.raises(ValueError):
        report.ratio(RUNS["grille"], RUNS["direct"][:2])


def test_added_latency_compares_within_a_round() -> None:
    assert report.added(RUNS["grille"], RUNS["direct"], "p50_us") == Spread(20, 10, 30)


def test_growth() -> None:
    assert report.growth([20.0, 25.0, 22.0]) == pytest.approx(0.25)
    assert report.growth([20.0]) == 0


def test_summary_has_ratios_only_to_what_was_measured() -> None:
    found = report.summary({"direct": RUNS["direct"], "grille": RUNS["grille"]})
    assert found["grille"]["tps"] == {"median": 1500, "low": 1500, "high": 1600}
    assert found["grille"]["ratio_direct"]["median"] == 2.0
    assert "ratio_pgbouncer" not in found["grille"]
    assert json.loads(json.dumps(found)) == found


def test_the_last_line() -> None:
    assert report.line("p1", RUNS, level="power", build="plain", more={"spread": "0.05"}) == (
        "p1 tps=1500 ratio_direct=2.00 ratio_pgbouncer=0.75 cpu_us=21.0 level=power build=plain spread=0.05"
    )
    assert report.line("copy", {"direct": RUNS["direct"]}, level="power", build="compiled") == (
        "copy tps=absent ratio_direct=absent ratio_pgbouncer=absent cpu_us=absent level=power build=compiled"
    )


def test_the_table_has_a_row_for_each_contender() -> None:
    console = Console(width=160, record=True, quiet=False, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(report.table("p1", RUNS))
    text = captured.get()
    assert all(name in text for name in RUNS)
    assert "1.50..3.00" in text


def test_the_plot_is_svg_with_bars_in_proportion() -> None:
    root = ET.fromstring(report.plot("p1 <&>", {"64 agents": RUNS, "nobody": {}}))
    space = "{http://www.w3.org/2000/svg}"
    widths = {
        bar.get("class"): float(bar.get("width", "0")) for bar in root.iter(f"{space}rect") if bar.get("class")
    }  # fmt: skip
    assert widths["grille"] / widths["pooler"] == pytest.approx(1500 / 2000, abs=0.01)
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "p1 <&>" in texts and "1,500  (2.00 of direct)" in texts
