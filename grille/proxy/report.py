"""What the commands that check something print: one line an item."""

from __future__ import annotations

from typing import TextIO


class Report:
    """Prints one line an item, as it goes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.failed = 0

    def ok(self, item: str, note: str = "") -> None:
        """The item is in order."""
        self._line("OK  ", item, note)

    def fail(self, item: str, what: str, fix: str) -> None:
        """The item is not; ``fix`` says what to do."""
        self.failed += 1
        self._line("FAIL", item, f"{what}. {fix}".rstrip(". ") + ".")

    def warn(self, item: str, note: str) -> None:
        """The item works, but should not stay as it is."""
        self._line("WARN", item, note)

    def _line(self, word: str, item: str, note: str) -> None:
        self._out.write(f"{word} {item}{': ' if note else ''}{note}\n")
        self._out.flush()

    def close(self) -> int:
        """Print the last line; the exit status: 0 if nothing failed, else 1."""
        self._out.write(f"{self.failed} failed\n" if self.failed else "all in order\n")
        return 1 if self.failed else 0
