"""The contract on the stand-in: every case of the suite that a licensed Vault has to pass as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vault import contract
from tests.vault.suite import standing_in


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[contract.Target]:
    directory: Path = tmp_path_factory.mktemp("vault")
    with standing_in(directory) as standing:
        yield standing


@pytest.mark.parametrize("name", contract.CASES)
def test_case(name: str, target: contract.Target) -> None:
    contract.CASES[name](target)
