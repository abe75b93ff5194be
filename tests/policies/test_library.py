"""Grille's Rego library: its own tests, in OPA and with all that it needs in the compiled bundle."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from grille.policies.bundle import read
from grille.policies.bundles import build
from grille.policies.golden import document
from grille.policies.wasm import WasmEngine

MODULES = [path.stem for path in build.source_files(build.LIBRARY)]
PROBE = """\
package grille
{imports}
allowed := answer.allow("", {filters}, {limits})
decision := object.union(allowed, {terms}) if {condition} else := answer.deny("AC-03", "no")
"""
TENANT = {"type": "field", "operator": "eq", "field": "branch", "value": "0042"}
PLACES = {"type": "field", "operator": "in", "field": "country", "value": ["BE", "NL"]}
USE = {"schema": "public", "name": "accounts", "access": "read", "columns": ["id"], "predicates": ["owner"]}
GRANT = {
    "ticket": "INC-1", "requested_by": "kim", "approved_by": "sam", "not_before": None,
    "not_after": "2026-11-27T12:00:00Z", "relations": {"public.accounts": ["read"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def opa() -> str:
    found = build.find_opa()
    if found is None:
        pytest.skip("the opa program is not installed, which alone can run and compile Rego")
    return found


@pytest.mark.parametrize("arguments", [["check", "--strict"], ["fmt", "--fail", "--list"], ["test"]], ids=" ".join)
def test_opa_agrees(opa: str, arguments: list[str]) -> None:
    done = subprocess.run([opa, *arguments, str(build.LIBRARY)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def decide(directory: Path, question: dict[str, Any], data: Any = None, **parts: str) -> Any:
    """The decision of a small policy that uses the library, out of the compiled bundle."""
    sources = directory / "policy"
    sources.mkdir()
    terms = {"filters": "{}", "limits": "{}", "terms": "{}", "condition": "true", **parts}
    imports = "\n".join(f"import data.grille_library.{name}" for name in MODULES)
    (sources / "decision.rego").write_text(PROBE.format(imports=imports, **terms))
    (sources / "data.json").write_text(json.dumps(data or {}))
    build.build(sources, directory / "policy.tar.gz")
    engine = WasmEngine(read(directory / "policy.tar.gz"), "grille/decision", timeout=5)
    return engine.decide(json.dumps(question).encode())


def question(**identity: Any) -> dict[str, Any]:
    identity = {"spiffe_id": "spiffe://bank.example/a", "scopes": [], "attributes": {}, **identity}
    return {"identity": identity, "operation": {"action": "select", "relations": [USE], "functions": []}}


FILTER = "{name: filter | some use in input.operation.relations; name := answer.relation(use); filter := %s}"


@pytest.mark.parametrize(
    ("identity", "data", "parts", "seen"),
    [
        ({"attributes": {"branch": "0042"}}, None,
         {"filters": FILTER % 'tenant.rows(input.identity, "branch", "branch")'},
         {"filters": {"public.accounts": TENANT}}),
        ({}, None, {"filters": FILTER % 'tenant.rows(input.identity, "branch", "branch")'}, {"filters": {}}),
        ({"scopes": ["region:benelux"]}, {"places": {"benelux": ["NL", "BE"]}},
         {"filters": FILTER % 'geography.rows(input.identity, "country", data.places)'},
         {"filters": {"public.accounts": PLACES}}),
        ({"scopes": ["purpose:fraud"]}, {"covers": {"public.accounts": ["fraud"]}},
         {"condition": "count(purpose.refused(input.identity, input.operation, data.covers)) == 0"}, {"allow": True}),
        ({"scopes": ["purpose:fraud"]}, {"covers": {}},
         {"condition": "count(purpose.refused(input.identity, input.operation, data.covers)) == 0"}, {"allow": False}),
        ({}, {"day": {"date": "2026-11-27", "offset": "+01:00"}},
         {"terms": 'hours.window(data.day, {"from": "08:00", "until": "18:00"})'},
         {"allow": True, "not_before": "2026-11-27T08:00:00+01:00", "not_after": "2026-11-27T18:00:00+01:00"}),
        ({}, {}, {"terms": 'hours.window(data.day, {"from": "08:00", "until": "18:00"})'}, {"allow": False}),
        ({}, {"grants": {"spiffe://bank.example/a": GRANT}},
         {"terms": 'break_glass.decision(break_glass.grant(input.identity, input.operation, data.grants), '
                   "input.operation, {}, {})"},
         {"allow": True, "control": "BG-01", "filters": {"public.accounts": True},
          "not_after": "2026-11-27T12:00:00Z"}),
        ({}, {"sets": {"public.accounts": ["id", "owner"]}},
         {"condition": "count(column_sets.outside(input.operation, data.sets)) == 0"}, {"allow": True}),
        ({}, {"sets": {"public.accounts": ["id"]}},
         {"condition": "count(column_sets.outside(input.operation, data.sets)) == 0"}, {"allow": False}),
        ({}, {"sets": {}},
         {"condition": "count(column_sets.outside(input.operation, data.sets)) == 0"}, {"allow": False}),
        ({}, {"of": {"public.accounts": {"rows": 10}}},
         {"limits": 'budgets.least(array.concat([{"rows": 100, "seconds": 5}], '
                    "budgets.of(input.operation, data.of)))"},
         {"limits": {"rows": 10, "seconds": 5.0}}),
    ],
    ids=[
        "tenant", "no tenant", "geography", "purpose", "no purpose", "hours", "no hours", "break-glass", "column sets",
        "column outside", "no column set", "budgets",
    ],
)  # fmt: skip
def test_the_library_decides_in_a_bundle(
    opa: str, tmp_path: Path, identity: Any, data: Any, parts: dict[str, str], seen: dict[str, Any]
) -> None:
    decision = seen_of(decide(tmp_path, question(**identity), data, **parts))
    assert {key: decision[key] for key in seen} == seen


def seen_of(decision: Any) -> dict[str, Any]:
    """A decision as a document, without the limits that it does not have."""
    found = document(decision)
    found["limits"] = {key: value for key, value in found["limits"].items() if value is not None}
    return found


def test_a_bundle_holds_what_is_imported_and_nothing_else(tmp_path: Path) -> None:
    sources = tmp_path / "policy"
    sources.mkdir()
    (sources / "decision.rego").write_text("package grille\nimport data.grille_library.tenant\n")
    assert [path.name for path in build.library_files(sources)] == ["tenant.rego"]
    before = build.revision(sources)
    (sources / "decision.rego").write_text("package grille\nimport data.grille_library.wishes\n")
    with pytest.raises(ValueError, match=r"the library has no module wishes .it has: answer, break_glass"):
        build.library_files(sources)
    (sources / "decision_test.rego").write_text("package grille_test\n")
    (sources / "decision_golden.json").write_text("[]")
    (sources / "decision.rego").write_text("package grille\nimport data.grille_library.tenant\n")
    assert build.revision(sources) == before


def test_the_demo_does_without(opa: str) -> None:
    assert build.library_files(build.SOURCES) == []


def test_every_module_is_listed_in_the_reference() -> None:
    page = (Path(__file__).parent.parent.parent / "docs/reference/policy.md").read_text()
    for name in MODULES:
        assert f"`{name}`" in page
