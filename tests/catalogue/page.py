"""``python -m tests.catalogue.page`` writes the table of docs/reference/bypass-catalogue.md anew."""

from __future__ import annotations

from tests.catalogue.rows import ROWS
from tests.catalogue.world import HERE

PAGE = HERE.parent.parent / "docs" / "reference" / "bypass-catalogue.md"
SECTIONS = {
    "A": "Name resolution", "B": "Row filter and side channels", "C": "Columns and tokens",
    "D": "Statements that carry or hide others", "E": "Wire protocol", "F": "A catalogue that changes",
    "P": "Parser, rewriter, caches, policy engine", "X": "Found on this proxy",
}  # fmt: skip


def table() -> str:
    """One table a section: row, attack, control."""
    lines = []
    for letter, title in SECTIONS.items():
        lines += [f"### {letter}: {title}", "", "| row | attack | control | attempts |", "|---|---|---|---|"]
        for row in ROWS:
            if row.id[0] == letter:
                link = f"[{row.control}](../explanation/threat-model.md#{row.control.lower()})"
                note = f"{row.title}. {row.why}" if row.why else row.title
                lines.append(f"| {row.id} | {note} | {link} | {len(row.attempts)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Replace what stands between the two marks."""
    text = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- rows -->\n", "<!-- end of rows -->"
    head, _, rest = text.partition(begin)
    PAGE.write_text(head + begin + "\n" + table() + "\n" + end + rest.partition(end)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
