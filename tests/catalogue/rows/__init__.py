"""The rows, by section."""

from __future__ import annotations

from tests.catalogue.rows import columns, drift, filters, found, names, parsing, protocol, statements

ROWS = [
    *names.ROWS, *filters.ROWS, *columns.ROWS, *statements.ROWS, *protocol.ROWS, *drift.ROWS, *parsing.ROWS,
    *found.ROWS,
]  # fmt: skip
"""Every row, in the order of the catalogue."""
