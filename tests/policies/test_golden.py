"""Golden decisions: how they are read, compared and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grille.policies import golden
from grille.policies.bundle import read
from grille.policies.bundles.build import DEMO
from grille.policies.golden import Case, GoldenError
from grille.policies.wasm import WasmEngine

QUESTION = {
    "identity": {"spiffe_id": "spiffe://bank.example/ns/fraud/sa/scorer", "attributes": {}},
    "operation": {
        "action": "select",
        "functions": [],
        "relations": [{"schema": "public", "name": "accounts", "access": "read", "columns": [], "predicates": []}],
    },
}


@pytest.fixture(scope="module")
def engine() -> WasmEngine:
    return WasmEngine(read(DEMO), "grille/decision", timeout=5)


def test_an_answer_is_compared_key_by_key(engine: WasmEngine) -> None:
    given, problem = golden.answer(engine, Case("", QUESTION))
    assert given is not None and problem == ""
    case = Case("", QUESTION, json.loads(json.dumps(given)))
    assert golden.expected(case) == given
    assert isinstance(case.decision, dict)
    case.decision["limits"]["rows"] = 7
    case.decision["filters"] = {}
    assert list(golden.differences(golden.expected(case), given)) == [
        ("filters.public.accounts", None, True),
        ("limits.rows", 7, 50000),
    ]


def test_keys_that_a_policy_may_leave_out_need_not_be_written(engine: WasmEngine) -> None:
    given, _ = golden.answer(engine, Case("", QUESTION))
    assert given is not None
    short: Any = {**given, "limits": {key: value for key, value in given["limits"].items() if value is not None}}
    assert golden.expected(Case("", QUESTION, short)) == given


def test_no_answer_is_null(engine: WasmEngine) -> None:
    broken = {**QUESTION, "operation": []}
    given, problem = golden.answer(engine, Case("", broken))
    assert (given is None) == bool(problem)
    assert golden.expected(Case("", broken, None)) is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[", "truncated"),
        ("{}", "Expected `array`"),
        ('[{"name": "a"}]', "missing required field `input`"),
        ('[{"name": "a", "input": {}, "wanted": {}}]', "unknown field `wanted`"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "x_golden.json"
    path.write_text(text)
    with pytest.raises(GoldenError, match=what) as caught:
        golden.read_cases(path)
    assert str(path) in str(caught.value)
    with pytest.raises(GoldenError, match="No such file"):
        golden.read_cases(tmp_path / "none_golden.json")


def test_a_decision_that_is_none() -> None:
    with pytest.raises(GoldenError, match="no decision yet"):
        golden.expected(Case("", {}))
    with pytest.raises(GoldenError, match="missing required field `allow`"):
        golden.expected(Case("", {}, {}))


def test_cases_are_written_as_they_are_read(tmp_path: Path, engine: WasmEngine) -> None:
    given, _ = golden.answer(engine, Case("", QUESTION))
    cases = [Case("one", QUESTION, given), Case("two", {}, None), Case("three", {})]
    golden.write_cases(tmp_path / "x_golden.json", cases)
    assert golden.read_cases(tmp_path / "x_golden.json") == cases
    assert golden.golden_files(tmp_path) == [tmp_path / "x_golden.json"]
