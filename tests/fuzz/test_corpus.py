"""Inputs that once crashed something, and a short run of every target."""

from __future__ import annotations

import random

import pytest

from grille.proxy.demo.cluster import Cluster
from tests.fuzz.__main__ import CORPUS, crashes, smallest
from tests.fuzz.targets import Target, targets

SHORT = {
    "frames": 3000,
    "startup": 10_000,
    "lexer": 10_000,
    "rows": 5000,
    "mq": 5000,
    "payload": 5000,
    "statements": 1500,
}


@pytest.fixture(scope="module")
def every(pg18: Cluster) -> dict[str, Target]:
    return {target.name: target for target in targets(pg18)}


@pytest.mark.parametrize("name", sorted(SHORT))
def test_a_short_run(every: dict[str, Target], name: str) -> None:
    assert every.keys() == SHORT.keys()
    source = random.Random(f"20261126/{name}")
    for _ in range(SHORT[name]):
        every[name].check(every[name].make(source))


def test_what_crashed_once_does_so_no_more(every: dict[str, Target]) -> None:
    for path in sorted(CORPUS.glob("*/*")):
        every[path.parent.name].check(path.read_bytes())


def test_a_crash_is_seen_and_made_small() -> None:
    def check(data: bytes) -> None:
        if b"x" in data and b"y" in data:
            raise ValueError

    broken = Target("broken", lambda source: source.randbytes(3), check)
    data = b"aaaaxbbbbbbbycccccc"
    assert crashes(broken, data) and not crashes(broken, b"xx")
    assert smallest(data, lambda trial: crashes(broken, trial)) == b"xy"
