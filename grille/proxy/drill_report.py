"""What a drill found: for programs (JSON), for people (a page with a plot), and as evidence (an event over both)."""

from __future__ import annotations

import hashlib
import html
import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final, TextIO

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from grille.audit import evidence
from grille.audit.encoding import lifecycle, timestamp
from grille.audit.spool import Spool

DATA: Final = "report.json"
PAGE: Final = "report.html"
EVENT: Final = "drill"
"""Name of the event that holds the digests of both files."""
CELLS: Final = 64
"""Of a table in the plot."""
MOST_TOLD: Final = 100
"""Digests of rows in a finding."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that the regions do not agree on."""

    kind: str
    """``configuration``, ``key``, ``canary``, ``missing-table``, ``columns``, ``rows`` or ``sample``."""
    subject: str
    """Transformation, table or column."""
    what: str
    fix: str
    rows: tuple[str, ...] = ()
    """Keyed digests of the keys of differing rows, the first `MOST_TOLD`."""


class Compared(msgspec.Struct, frozen=True):
    """A table."""

    table: str
    rows: dict[str, int]
    """By region; empty if it was not compared."""
    strip: tuple[int, ...]
    """Differing buckets in each of `CELLS` parts."""
    differences: int
    """Rows."""
    notes: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """The whole drill.  Times are seconds since 1970."""

    began: float
    ended: float
    regions: tuple[str, ...]
    tables: tuple[Compared, ...]
    findings: tuple[Finding, ...]

    @property
    def differences(self) -> int:
        """Differing rows, and whatever else differs."""
        return sum(each.differences for each in self.tables) + sum(each.kind != "rows" for each in self.findings)

    @property
    def line(self) -> str:
        """The contract's last line."""
        rows = sum(max(each.rows.values(), default=0) for each in self.tables)
        verdict = "disagree" if self.findings else "agree"
        return f"drill tables={len(self.tables)} rows={rows} differences={self.differences} verdict={verdict}"


def strip(different: Collection[int], buckets: int) -> tuple[int, ...]:
    """How many differ in each cell of the plot."""
    cells = [0] * CELLS
    for each in different:
        cells[each * CELLS // buckets] += 1
    return tuple(cells)


def write(report: Report, directory: Path, key: Ed25519PrivateKey) -> None:
    """Write both files, and the signed event over them, which ``grille audit verify`` reads."""
    data = {"began": timestamp(report.began), "ended": timestamp(report.ended), "line": report.line}
    data |= {name: msgspec.to_builtins(getattr(report, name)) for name in ("regions", "tables", "findings")}
    (directory / DATA).write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")
    (directory / PAGE).write_text(_page(report), encoding="utf-8")
    spool = Spool(directory, 0, key)
    digests = {name: _digest(directory / name) for name in (DATA, PAGE)}
    text = json.dumps({"line": report.line, "regions": report.regions, "sha256": digests})
    spool.append(lifecycle(EVENT, text, time.time(), worker=0, level="power"))
    spool.close()


def verify(directory: Path, public_key: Path | None, out: TextIO) -> int:
    """``grille drill verify``: is the evidence whole, and are the files those that were signed?  The exit status."""
    status = evidence.verify_command(directory, public_key=public_key)
    if status:
        return status
    told = [json.loads(event.text) for event in evidence.show(directory) if event.name == EVENT]
    if not told:
        print(f"tampered: {directory} has no event of a drill", file=out)
        return 1
    for name, digest in told[-1]["sha256"].items():
        path = directory / name
        if name not in (DATA, PAGE) or not path.exists() or _digest(path) != digest:
            print(f"tampered: {name} is not what was signed", file=out)
            return 1
    print(told[-1]["line"], file=out)
    return 0


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


_STYLE: Final = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #d8dde4; }
.agree { color: #14663c; } .disagree { color: #a3201c; } small { color: #5b6573; } svg { width: 100%; height: auto; }
"""
_ROW: Final = 26
_LEFT: Final = 300


def _page(report: Report) -> str:
    verdict = "disagree" if report.findings else "agree"
    escape = html.escape
    findings = "".join(
        f"<tr><td>{escape(each.kind)}</td><td>{escape(each.subject)}</td><td>{escape(each.what)}"
        f"<br><small>{escape(each.fix)}</small></td></tr>"
        for each in report.findings
    )
    tables = "".join(
        f"<tr><td>{escape(each.table)}</td><td>{escape(_counts(each))}</td>"
        f"<td>{each.differences}</td><td>{escape('; '.join(each.notes))}</td></tr>"
        for each in report.tables
    )
    found = (
        f"<table><tr><th>what</th><th>of</th><th>found</th></tr>{findings}</table>" if findings else "<p>Nothing.</p>"
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Drill: regions {verdict}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Regions {escape(', '.join(report.regions))} "
        f'<span class="{verdict}">{verdict}</span></h1>'
        f"<p>{timestamp(report.began)} to {timestamp(report.ended)}. <code>{escape(report.line)}</code></p>"
        f"<p>Compared from keyed digests: no value, token or key has left its region.</p>"
        f"<h2>Tables</h2>{_plot(report)}<table><tr><th>table</th><th>rows</th>"
        f"<th>that differ</th><th></th></tr>{tables}"
        f"</table><h2>Differences</h2>{found}</body></html>\n"
    )


def _counts(compared: Compared) -> str:
    counts = sorted(set(compared.rows.values()))
    if len(counts) == 1:
        return f"{counts[0]} each"
    return ", ".join(f"{name} {rows}" for name, rows in compared.rows.items()) or "not compared"


def _plot(report: Report) -> str:
    """A strip a table, its keys in 64 parts by hash: green where all rows agree, the redder the more parts differ."""
    width, cell = _LEFT + CELLS * 9, 9
    lines = []
    for number, each in enumerate(report.tables):
        y = 4 + number * _ROW
        lines.append(f'<text x="0" y="{y + 14}" font-size="13">{html.escape(each.table[:44])}</text>')
        for place in range(CELLS):
            many = each.strip[place] if each.strip else -1
            color = "#c3c9d1" if many < 0 else "#2f9e62" if many == 0 else "#e0726b" if many < 8 else "#a3201c"
            x = _LEFT + place * cell
            lines.append(f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{_ROW - 8}" fill="{color}"/>')
    agree = sum(bool(each.strip) and not any(each.strip) for each in report.tables)
    label = f"{agree} of {len(report.tables)} tables agree"
    return (
        f'<svg viewBox="0 0 {width} {8 + _ROW * len(report.tables)}" role="img" aria-label="{label}" '
        f'font-family="system-ui, sans-serif">{"".join(lines)}</svg>'
        "<p><small>Each strip is a table, its rows by hash of the key. Green: equal. Red: parts that differ. "
        "Grey: not compared.</small></p>"
    )
