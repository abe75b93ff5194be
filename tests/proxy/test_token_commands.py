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


@pytest.mark.parametrize("lines", [[], [""], ["", "  ", ""], [LINES[0]], [LINES[0], "", ""]])
def test_a_file_without_a_case_has_not_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str]
) -> None:
    status, out, err = checked(tmp_path, capsys, *lines)
    assert (status, out) == (2, [])
    assert err == f"grille: {tmp_path}/cases.jsonl: has no case, so nothing was checked\n"


@pytest.mark.parametrize("opened", ['{"a":', '{"more": [', '{"msg": [[[[', "["])
def test_deep_nesting_is_an_error_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: str
) -> None:
    for lines in ([VALID, opened * 200_000], [LINES[0], opened * 200_000], ["", opened * 200_000]):
        status, out, err = checked(tmp_path, capsys, *lines)
        assert (status, out) == (2, [])
        assert err.startswith(f"grille: {tmp_path}/cases.jsonl, line 2: ")
        if opened in ('{"a":', '{"more": ['):  # a field that is skipped has no type to be refused by
            assert err.endswith(": is nested too deeply\n")
    assert checked(tmp_path, capsys, opened * 200_000)[0] == 2


FORGED = "x\r\x1b[2K\nvectors ok=9 wrong=0\u2028\u202e\x85\x00"


@pytest.mark.parametrize("field", [{"comment": FORGED}, {"flags": [FORGED]}])
def test_a_case_cannot_forge_a_line_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: dict[str, Any]
) -> None:
    status, out, _ = checked(tmp_path, capsys, {**VALID, **field, "ct": VALID["ct"][::-1]})
    assert status == 1
    escaped = r"x\r\x1b[2K\nvectors ok=9 wrong=0\u2028\u202e\x85\x00"
    before = ", ".join(VALID["flags"])
    words = f"{before}, {escaped}" if "comment" in field and before else escaped
    assert out[0].endswith(": encrypts to something else")
    assert f"({words}" in out[0]
    assert out[1:] == ["vectors ok=0 wrong=1"]
    assert all(line.isprintable() for line in out)


def test_a_refused_line_cannot_forge_one_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = checked(tmp_path, capsys, {**VALID, "result": FORGED})
    assert out == []
    assert err.endswith("\n") and err[:-1].isprintable()


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokens", "vectors", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"grille: {tmp_path}/none: No such file or directory\n"
