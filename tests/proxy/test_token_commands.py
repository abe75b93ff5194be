"""``grille tokens vectors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grille.proxy.cli import main

VECTORS = Path(__file__).parent.parent / "tokenization" / "data" / "ff1-vectors.jsonl"
LINES = VECTORS.read_text().splitlines()
CASES = [json.loads(line) for line in LINES[1:]]
VALID = next(case for case in CASES if case["result"] == "valid" and case["radix"] == 10)
INVALID = next(case for case in CASES if case["result"] == "invalid" and case["ct"])


def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str], *cases: Any) -> tuple[int, list[str], str]:
    file = tmp_path / "cases.jsonl"
    file.write_text("\n".join(case if isinstance(case, str) else json.dumps(case) for case in cases))
    status = main(["tokens", "vectors", str(file)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_every_published_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokens", "vectors", str(VECTORS)]) == 0
    assert capsys.readouterr().out == "vectors ok=499 wrong=0\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ct": VALID["ct"][::-1]}, "encrypts to something else"),
        ({"result": "invalid"}, "is not refused"),
        ({"key": "00"}, "is refused: an FF1 key has 16, 24 or 32 bytes, not 1"),
        ({"msg": [10, *VALID["msg"][1:]]}, "is refused: a numeral is not within 0 to 9"),
        ({"ct": [], "result": "acceptable"}, "encrypts to something else"),
    ],
)
def test_a_wrong_case_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    status, out, err = checked(tmp_path, capsys, LINES[0], VALID, {**VALID, "flags": ["Odd"], **change}, INVALID)
    assert status == 1
    assert out == [f"line 3: radix 10 id {VALID['id']} (Odd): {words}", "vectors ok=2 wrong=1"]
    assert err == ""


def test_acceptable_is_refused_or_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [{**case, "result": "acceptable"} for case in (VALID, INVALID)]
    assert checked(tmp_path, capsys, *cases)[:2] == (0, ["vectors ok=2 wrong=0"])


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "null", json.dumps({**VALID, "key": "xx"}), json.dumps({**VALID, "result": "maybe"}),
        json.dumps({**VALID, "msg": "0123"}), json.dumps({**VALID, "radix": "ten"}),
        json.dumps({name: value for name, value in VALID.items() if name != "tweak"}), LINES[0], "\xff",
    ],
)  # fmt: skip
def test_another_format_is_an_error_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    status, out, err = checked(tmp_path, capsys, VALID, line)
    assert (status, out) == (2, [])
    assert err.startswith(f"grille: {tmp_path}/cases.jsonl, line 2: ")
    assert VALID["key"] not in err


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokens", "vectors", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"grille: {tmp_path}/none: No such file or directory\n"
