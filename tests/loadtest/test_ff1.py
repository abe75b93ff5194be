"""The scenario that measures FF1: what it checks before it measures, and what its last line says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from grille.tokenization.ff1 import FF1
from loadtest import __main__ as command_line
from loadtest import ff1
from loadtest.report import Sample
from tests.tokenization.test_ff1 import NIST


def sample(us: float) -> Sample:
    return Sample(1e6 / us, us, us, us, us, 0.0, 0.0)


def test_the_loop_is_ff1() -> None:
    for key, radix, tweak, plain, cipher in NIST:
        numerals = [int(character, 36) for character in plain]
        assert ff1.loop(bytes.fromhex(key), radix, bytes.fromhex(tweak), numerals) == [int(c, 36) for c in cipher]
    numerals = [9, 0] * 8
    assert ff1.loop(bytes(32), 10, bytes(7), numerals) == FF1(bytes(32), 10).encrypt(numerals, bytes(7))


def test_the_last_line() -> None:
    cases = {
        ff1.BATCHES: {"grille": [sample(0.3), sample(0.5), sample(0.4)], "ff3": [sample(60), sample(60), sample(60)]},
        ff1.ALONE: {"grille": [sample(7), sample(9), sample(8)], "ff3": [sample(60)] * 3},
    }
    assert ff1.line(cases, "plain") == "ff1 us_batch=0.400 us_single=8.00 ratio_ff3=150 build=plain"


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--scenario", "ff1", "--plain", "--rounds", "2", "--seconds", "0.1", "--out", str(tmp_path)]
    assert command_line.main(arguments) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"ff1 us_batch=\d+\.\d{3} us_single=\d+\.\d\d ratio_ff3=\d+ build=plain", out.splitlines()[-1])
    for who in ("grille, provider", "grille, one by one", "ff3", "loop"):
        assert who in out
    assert (tmp_path / "ff1.json").exists()
    assert (tmp_path / "ff1.svg").exists()


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command_line.main(["compare", "--scenario", "ff1", "--plain", "--out", str(tmp_path)]) == 2
    assert "the ff3 package is not installed" in capsys.readouterr().err
