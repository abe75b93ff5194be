"""The demo's policy: `opa test` where OPA is installed, and the same cases through the compiled bundle always."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

import grille.policies.bundles
from grille.policies.bundle import parse, read
from grille.policies.bundles import build
from grille.policies.decision import Decision, FieldFilter
from grille.policies.pdp import decode
from grille.policies.wasm import WasmEngine

DEMO = Path(grille.policies.bundles.__file__).parent / "demo.tar.gz"
SERVICE = "spiffe://bank.example/ns/service/sa/assistant"
FRAUD = "spiffe://bank.example/ns/fraud/sa/scorer"
STAFF = "spiffe://bank.example/ns/staff/sa/exporter"
TELLER = "spiffe://bank.example/ns/branch/sa/teller"
STRANGER = "spiffe://bank.example/ns/other/sa/thing"
AGENTS = (SERVICE, FRAUD, STAFF, TELLER, STRANGER)

ACCESSES = ("read", "insert", "update", "delete", "lock")
RELATIONS = ("branches", "customers", "accounts", "transactions", "customer_export", "no_such_table")
EVERYTHING = "read insert update delete lock"
RIGHTS = {
    (SERVICE, "branches"): "read",
    (SERVICE, "customers"): "read insert update",
    (SERVICE, "accounts"): "read",
    (SERVICE, "transactions"): "read insert",
    (FRAUD, "branches"): "read",
    (FRAUD, "customers"): "read",
    (FRAUD, "accounts"): "read",
    (FRAUD, "transactions"): "read",
    (STAFF, "branches"): "read",
    (STAFF, "customers"): "read",
    (STAFF, "customer_export"): "read",
    (TELLER, "branches"): "read",
    (TELLER, "customers"): EVERYTHING,
    (TELLER, "accounts"): EVERYTHING,
    (TELLER, "transactions"): EVERYTHING,
}
"""Every right that there is; what is not listed is denied."""

COLUMNS = {
    (SERVICE, "customers"): {
        "ssn": ("mask:last4", "equality", "allow"),
        "card_number": ("mask:last4", "deny", "allow"),
        "email": ("mask:email", "equality", "allow"),
    },
    (FRAUD, "customers"): dict.fromkeys(("ssn", "card_number", "email"), ("token", "equality", "deny")),
    (STAFF, "customers"): dict.fromkeys(("ssn", "card_number", "email"), ("clear", "equality", "deny")),
    (STAFF, "customer_export"): dict.fromkeys(("ssn", "card_number", "email"), ("clear", "equality", "deny")),
    (TELLER, "customers"): dict.fromkeys(("ssn", "card_number", "email"), ("clear", "equality", "allow")),
}


@pytest.fixture(scope="module")
def engine() -> WasmEngine:
    return WasmEngine(read(DEMO), "grille/decision", timeout=5)


def _document(spiffe_id: str, uses: list[tuple[str, str]], **attributes: Any) -> dict[str, Any]:
    relations = [
        {"schema": "public", "name": name, "access": access, "columns": [], "predicates": []} for name, access in uses
    ]
    return {
        "identity": {"spiffe_id": spiffe_id, "attributes": attributes or {"branch": "0042"}},
        "session": {"protocol": "postgres", "database": "bank"},
        "operation": {"action": "select", "functions": [], "relations": relations},
    }


def _decide(engine: WasmEngine, spiffe_id: str, uses: list[tuple[str, str]], **attributes: Any) -> Decision:
    return engine.decide(json.dumps(_document(spiffe_id, uses, **attributes)).encode())


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("spiffe_id", AGENTS)
def test_every_agent_has_its_rights_and_no_other(engine: WasmEngine, spiffe_id: str, relation: str) -> None:
    granted = RIGHTS.get((spiffe_id, relation), "").split()
    assert [access for access in ACCESSES if _decide(engine, spiffe_id, [(relation, access)]).allow] == granted
    if "read" not in granted:
        return
    decision = _decide(engine, spiffe_id, [(relation, "read")])
    own_branch = spiffe_id in (SERVICE, TELLER) and relation != "branches"
    expected = FieldFilter("eq", f"public.{relation}.branch", "0042") if own_branch else True
    assert decision.filters == {f"public.{relation}": expected}
    assert {name: (each.read, each.predicate, each.write) for name, each in decision.columns.items()} == {
        f"public.{relation}.{name}": terms for name, terms in COLUMNS.get((spiffe_id, relation), {}).items()
    }
    assert decision.locks == (spiffe_id == TELLER)
    assert decision.limits.rows == {SERVICE: 1000, STAFF: 100_000, FRAUD: 50_000, TELLER: 10_000}[spiffe_id]


def test_one_relation_that_is_denied_denies_the_statement(engine: WasmEngine) -> None:
    for spiffe_id, other in itertools.product((SERVICE, FRAUD, STAFF, TELLER), RELATIONS):
        allowed = _decide(engine, spiffe_id, [("branches", "read"), (other, "read")]).allow
        assert allowed == ((spiffe_id, other) in RIGHTS)


def test_a_denial_tells_what_may_be_read_and_nothing_else(engine: WasmEngine) -> None:
    for spiffe_id, relation, access in itertools.product(AGENTS, RELATIONS, ACCESSES):
        decision = _decide(engine, spiffe_id, [(relation, access)], branch="7731")
        if decision.allow:
            continue
        assert (decision.filters, decision.columns) == ({}, {})
        for hidden in ("spiffe://", "7731", "own branch", "mask", "token", "teller", "fraud", "customer-service"):
            assert hidden not in decision.reason
        if spiffe_id != STRANGER:
            for name in (name for agent, name in RIGHTS if agent == spiffe_id):
                assert f"public.{name}" in decision.reason
            assert f"public.{relation}" in decision.reason


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


def test_opa_itself_decides_the_same(engine: WasmEngine, tmp_path: Path) -> None:
    """The shipped WebAssembly against OPA's interpreter: every single use, and many statements of several."""
    opa = build.find_opa()
    if opa is None:
        pytest.skip("the opa program is not installed; the shipped bundle alone was tested")
    chance = random.Random(3)
    every = list(itertools.product(RELATIONS, ACCESSES))
    attributes: list[dict[str, Any]] = [{"branch": "0042"}, {"branch": ""}, {"other": "x"}, {"branch": 'q"\\\u20ac'}]
    documents = [_document(agent, [use]) for agent in AGENTS for use in every]
    documents += [
        _document(chance.choice(AGENTS), chance.sample(every, chance.randint(0, 5)), **chance.choice(attributes))
        for _ in range(250)
    ]
    documents += [{}, {"identity": {}}, {"identity": {"spiffe_id": None}}, {"identity": {"spiffe_id": SERVICE}}]
    (tmp_path / "input.json").write_text(json.dumps(documents))
    query = "answers := [decision | some each in input; decision := data.grille.decision with input as each]"
    command = [opa, "eval", "-d", str(build.SOURCES), "-i", str(tmp_path / "input.json"), "-f", "json", query]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    answers = json.loads(result.stdout)["result"][0]["bindings"]["answers"]
    assert len(answers) == len(documents)
    for document, answer in zip(documents, answers, strict=True):
        assert engine.decide(json.dumps(document).encode()) == decode(json.dumps(answer).encode()), document


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
    build.build(build.SOURCES, tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == DEMO.read_bytes()
