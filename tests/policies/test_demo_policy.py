"""The demo's policy: `opa test` where OPA is installed, and the same cases through the compiled bundle always."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import grille.policies.bundles
from grille.policies.bundle import parse, read
from grille.policies.bundles import build
from grille.policies.decision import Decision
from grille.policies.wasm import WasmEngine

DEMO = Path(grille.policies.bundles.__file__).parent / "demo.tar.gz"
SERVICE = "spiffe://bank.example/ns/service/sa/assistant"
FRAUD = "spiffe://bank.example/ns/fraud/sa/scorer"


@pytest.fixture(scope="module")
def engine() -> WasmEngine:
    return WasmEngine(read(DEMO), "grille/decision", timeout=5)


def _decide(engine: WasmEngine, spiffe_id: str, uses: list[tuple[str, str]], **attributes: Any) -> Decision:
    relations = [
        {"schema": "public", "name": name, "access": access, "columns": [], "predicates": []} for name, access in uses
    ]
    document = {
        "identity": {"spiffe_id": spiffe_id, "attributes": attributes or {"branch": "0042"}},
        "session": {"protocol": "postgres", "database": "bank"},
        "operation": {"action": "select", "functions": [], "relations": relations},
    }
    return engine.decide(json.dumps(document).encode())


def test_own_branch_and_masks(engine: WasmEngine) -> None:
    decision = _decide(engine, SERVICE, [("customers", "read")])
    assert decision.allow
    row_filter = decision.filters["public.customers"]
    assert row_filter is not True
    assert (row_filter.operator, row_filter.value) == ("eq", "0042")
    assert decision.columns["public.customers.ssn"].read == "mask:last4"


def test_all_rows_as_tokens(engine: WasmEngine) -> None:
    decision = _decide(engine, FRAUD, [("customers", "read"), ("accounts", "read")])
    assert decision.filters == {"public.customers": True, "public.accounts": True}
    assert decision.columns["public.customers.ssn"].read == "token"


def test_a_statement_without_relations_is_allowed(engine: WasmEngine) -> None:
    assert _decide(engine, SERVICE, []).allow


def test_the_export_is_for_staff_and_the_denial_says_what_to_do(engine: WasmEngine) -> None:
    decision = _decide(engine, SERVICE, [("customer_export", "read")])
    assert not decision.allow
    assert decision.control == "AC-07"
    assert "public.customers" in decision.reason
    assert _decide(engine, "spiffe://bank.example/ns/staff/sa/exporter", [("customer_export", "read")]).allow


def test_missing_and_unlisted_relations_share_one_answer(engine: WasmEngine) -> None:
    answers = [_decide(engine, SERVICE, [(name, "read")]) for name in ("no_such_table", "some_secret")]
    assert {answer.control for answer in answers} == {"AC-03"}
    assert answers[0].reason.replace("no_such_table", "X") == answers[1].reason.replace("some_secret", "X")


def test_an_analyst_writes_nothing(engine: WasmEngine) -> None:
    assert not _decide(engine, FRAUD, [("customers", "read"), ("customers", "update")]).allow


def test_a_stranger_is_denied(engine: WasmEngine) -> None:
    decision = _decide(engine, "spiffe://bank.example/ns/other/sa/thing", [("customers", "read")])
    assert not decision.allow
    assert decision.control == "AC-01"


def test_an_unknown_branch_leaves_the_relation_without_a_filter(engine: WasmEngine) -> None:
    assert _decide(engine, SERVICE, [("customers", "read")], other="x").filters == {}


def test_opa_agrees() -> None:
    opa = build.find_opa()
    if opa is None:
        pytest.skip("the opa program is not installed; the cases above ran through the compiled bundle")
    for arguments in (["test"], ["check", "--strict"]):
        result = subprocess.run([opa, *arguments, str(build.SOURCES)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


def test_the_shipped_bundle_is_made_of_the_sources() -> None:
    """Holds without `opa`: the revision is a digest of the sources, and the data is theirs."""
    bundle = parse(DEMO.read_bytes())
    assert bundle.revision.startswith(build.revision(build.SOURCES) + "+")
    assert {key: bundle.data[key] for key in ("agents", "roles", "staff_only")} == json.loads(
        (build.SOURCES / "data.json").read_text()
    )


def test_the_shipped_bundle_is_reproduced_byte_for_byte(tmp_path: Path) -> None:
    opa = build.find_opa()
    if opa is None:
        pytest.skip("the opa program is not installed; the sources inside the bundle were compared instead")
    version = subprocess.run([opa, "version"], capture_output=True, text=True, check=True).stdout
    if "Version: 1.22.2\n" not in version:
        pytest.skip(f"the bundle was built with opa 1.22.2, here is {version.splitlines()[0]}")
    build.build(output=tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == DEMO.read_bytes()
