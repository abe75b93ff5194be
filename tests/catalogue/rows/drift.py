"""A catalogue that changes."""

# ruff: noqa: E501  (one statement a line)

from __future__ import annotations

from tests.catalogue.attacks import drift
from tests.catalogue.cases import row

ROWS = [
    row(
        'F1', 'a new column', 'CO-01',
        drift.new_column,
    ),
    row(
        'F2', 'a table that becomes a partition or child', 'ST-03',
        drift.new_partition,
    ),
    row(
        'F3', 'a view that is redefined', 'ST-08',
        drift.redefined_view,
    ),
    row(
        'F4', 'a listed function that is redefined', 'ST-08',
        drift.redefined_function,
    ),
    row(
        'F5', 'a new operator or cast', 'ST-04',
        drift.new_operator,
    ),
    row(
        'F6', 'a function marked leakproof by a superuser', 'RO-01',
        drift.marked_leakproof,
    ),
    row(
        'F7', 'the catalogue changes between the check and the execution', 'ST-08',
        drift.swapped_tables,
        why='A swapped table is refused in the same round trip. A column that is swapped within a table is seen at the next look at the catalogue (`catalog_poll`): agents have no DDL to do it with.',
    ),
    row(
        'F8', 'another server or a restored database', 'ST-08',
        drift.restored_database,
    ),
]  # fmt: skip
