"""What became of each statement of a governed run, counted from its audit events: the share that was enforced."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from grille.audit.evidence import show

SEVEN: Final = ("SELECT", "VALUES", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY")
_NAMED: Final = re.compile(r'"[^"]*"|\b[Pp]osition \d+|\$\d+')


class Share(msgspec.Struct, frozen=True):
    """Counts of statements that ran or were refused."""

    governed: dict[str, int]
    """By command tag: understood, decided and rewritten."""
    passed: dict[str, int]
    """By command tag: not understood, and let pass unchanged."""
    reasons: dict[str, int]
    """Of the seven kinds, by control and sentence: why they were not understood."""
    refused: dict[str, int]
    """By control."""
    catalogue: int
    """SELECTs that were not understood and name ``pg_catalog``: those of psql for its own commands, for instance."""
    own: int
    """Transaction control, names of the session's own, empty texts, and texts sent in a failed transaction."""

    @property
    def of_seven(self) -> tuple[int, int]:
        """Governed, and all, of the seven kinds."""
        governed = sum(self.governed.get(kind, 0) for kind in SEVEN)
        return governed, governed + sum(self.passed.get(kind, 0) for kind in SEVEN)

    def line(self) -> str:
        """The figures in one line."""
        governed, total = self.of_seven
        others = sum(self.governed.values()) + sum(self.passed.values()) - total
        share = f"{100 * governed / total:.1f}%" if total else "-"
        refused = sum(self.refused.values())
        return (
            f"seven kinds: {governed} of {total} governed ({share}); others={others} own={self.own} refused={refused}"
        )

    def table(self) -> str:
        """Markdown: by kind, then the ten most frequent reasons."""
        lines = ["| kind | statements | governed | not understood | share |", "|---|---:|---:|---:|---:|"]
        for kind in SEVEN:
            governed, passed = self.governed.get(kind, 0), self.passed.get(kind, 0)
            share = f"{100 * governed / (governed + passed):.1f}%" if governed + passed else "-"
            lines.append(f"| {kind} | {governed + passed} | {governed} | {passed} | {share} |")
        governed, total = self.of_seven
        share = f"{100 * governed / total:.1f}%" if total else "-"
        lines.append(f"| the seven kinds | {total} | {governed} | {total - governed} | {share} |")
        lines.append(f"| of these, SELECTs that name pg_catalog | - | - | {self.catalogue} | - |")
        others = {k: v for k, v in (Counter(self.governed) + Counter(self.passed)).items() if k not in SEVEN}
        more = sum(count for kind, count in self.governed.items() if kind not in SEVEN)
        lines.append(f"| DDL, utilities and texts that do not parse | {sum(others.values())} | {more} | "
                     f"{sum(others.values()) - more} | - |")  # fmt: skip
        lines += [f"| the session's own (BEGIN, FETCH, ...) | {self.own} | - | - | - |", "",
                  "| control | reason | statements |", "|---|---|---:|"]  # fmt: skip
        for reason, count in Counter(self.reasons).most_common(10):
            control, _, sentence = reason.partition(" ")
            lines.append(f"| {control} | {sentence} | {count} |")
        return "\n".join(lines) + "\n"


def share(audit: Path) -> Share:
    """Count the events below ``audit``."""
    governed: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    own = catalogue = 0
    for event in show(audit):
        if event.kind != "statement" or event.outcome is None or event.outcome.status == "intent":
            continue
        verdict = event.verdict
        if verdict is None:
            own += 1
        elif not verdict.allow:
            refused[verdict.control] += 1
        elif verdict.passed:
            passed[verdict.statement] += 1
            catalogue += verdict.statement == "SELECT" and "pg_catalog." in event.template
            if verdict.statement in SEVEN:
                reasons[f"{verdict.passed} {_NAMED.sub('...', event.text)}"] += 1
        else:
            governed[verdict.statement] += 1
    return Share(*(dict(each.most_common()) for each in (governed, passed, reasons, refused)), catalogue, own)
