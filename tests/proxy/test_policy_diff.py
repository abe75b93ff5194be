"""``grille policy diff``: events that sessions wrote, decided again by two policies."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest

from grille.audit.encoding import event_id, timestamp
from grille.audit.event import Event, Outcome, Relation, Verdict
from grille.policies.bundle import parse
from grille.policies.bundles.build import DEMO
from grille.policies.decision import Decision
from grille.policies.pdp import PolicyUnavailable
from grille.policies.wasm import WasmEngine
from grille.protocols.operation import Operation, RelationUse
from grille.proxy.config import Identity
from grille.proxy.demo.config_files import FRAUD, SERVICE
from grille.proxy.enforcement import asked_about, policy_input
from grille.proxy.identity import Registry, parse_spiffe_id
from grille.proxy.policy_diff import Comparison, compare, tell
from tests.bundles import unpacked, with_data

RAW = DEMO.read_bytes()
DATA = json.loads(unpacked(RAW)["data.json"])


def engine(data: Any = DATA) -> WasmEngine:
    return WasmEngine(parse(with_data(RAW, data, "test")), "grille/decision", timeout=5)


def changed(change: Any) -> WasmEngine:
    """The demo's policy after ``change`` of its roles."""
    data = json.loads(json.dumps(DATA))
    change(data["roles"])
    return engine(data)


def connect(spiffe_id: str, session: str, **attributes: str) -> Event:
    return Event(
        id=event_id(1.0), time=timestamp(1.0), kind="session", name="connect", worker=0, sequence=1, level="process",
        spiffe_id=spiffe_id, session=session, protocol="postgres", database="bank", action="connect",
        scopes=("customers:read",), attributes=dict(attributes),
    )  # fmt: skip


def statement(session: str, spiffe_id: str, relation: str, access: str = "read", **more: Any) -> Event:
    when = more.pop("when", 2.0)
    action = "select" if access == "read" else access
    known: dict[str, Any] = {
        "template": f"SELECT * FROM {relation}", "action": action,
        "relations": (Relation(f"public.{relation}", access, ("id",), ("id",)),), "outcome": Outcome("ok"), **more,
    }  # fmt: skip
    return Event(
        id=event_id(when), time=timestamp(when), kind="statement", name="statement", worker=0, sequence=2,
        level="process", spiffe_id=spiffe_id, session=session, protocol="postgres", database="bank", **known,
    )  # fmt: skip


EVENTS = [
    connect(FRAUD, "a"),
    connect(SERVICE, "b", branch="0042"),
    statement("a", FRAUD, "customers"),
    statement("a", FRAUD, "accounts"),
    statement("b", SERVICE, "customers"),
    statement("b", SERVICE, "customers", "delete", outcome=Outcome("denied")),
]


def told(result: Comparison) -> tuple[int, list[str]]:
    out = io.StringIO()
    status = tell(result, out)
    return status, out.getvalue().splitlines()


def test_the_same_policy_changes_nothing() -> None:
    status, lines = told(compare(engine(), engine(), EVENTS))
    assert (status, lines) == (
        0, ["diff same=6 denied=0 allowed=0 changed=0 told=0 unasked=0 unknown=0 questions=6"],
    )  # fmt: skip


def test_newly_denied_and_told_otherwise() -> None:
    result = compare(
        engine(), changed(lambda roles: roles["customer-service"]["relations"].pop("public.customers")), EVENTS
    )
    status, lines = told(result)
    assert status == 1
    assert lines[0] == "1 would be DENIED"
    assert lines[1:4] == [
        "  1 x  SELECT * FROM customers",
        f"      {SERVICE}",
        "      AC-03 This agent has no right to read public.customers. "
        "It may read: public.accounts, public.branches, public.transactions.",
    ]
    assert lines[4] == "1 would be denied under another control or with other words"
    assert lines[-1] == "diff same=4 denied=1 allowed=0 changed=0 told=1 unasked=0 unknown=0 questions=6"


def test_newly_allowed() -> None:
    def change(roles: Any) -> None:
        roles["customer-service"]["relations"]["public.customers"]["access"].append("delete")

    result = compare(engine(), changed(change), EVENTS)
    _, lines = told(result)
    assert lines[0] == "1 would be ALLOWED"
    assert lines[3].startswith("      was AC-03 This agent has no right to delete public.customers.")
    assert '"value":"0042"' in lines[4]
    assert result.count("allowed") == 1


def test_other_terms_are_named_one_by_one() -> None:
    def change(roles: Any) -> None:
        roles["fraud-analyst"]["limits"]["rows"] = 10
        roles["fraud-analyst"]["columns"]["public.customers.ssn"]["read"] = "mask:last4"
        roles["customer-service"]["relations"]["public.customers"]["rows"] = "all"

    result = compare(engine(), changed(change), EVENTS)
    assert {change.details for change in result.changes} == {
        ('columns.public.customers.ssn.read: "token" -> "mask:last4"', "limits.rows: 50000 -> 10"),
        ("limits.rows: 50000 -> 10",),
        ('filters.public.customers: {"type":"field","operator":"eq","field":"public.customers.branch","value":"0042"}'
         " -> true",),
    }  # fmt: skip
    assert result.count("changed") == 3


def test_a_session_that_would_be_carried_unchanged() -> None:
    class Open(WasmEngine):
        def decide(self, document: bytes) -> Decision:
            decision = super().decide(document)
            return msgspec.structs.replace(decision, passthrough=b'"connect"' in document)

    result = compare(engine(), Open(parse(RAW), "grille/decision", timeout=5), EVENTS)
    assert {change.details for change in result.changes} == {("session: governed -> passthrough",)}
    assert (result.count("changed"), result.same) == (2, 4)


def test_what_nobody_sees_is_no_change() -> None:
    class Other(WasmEngine):
        def decide(self, document: bytes) -> Decision:
            decision = super().decide(document)
            if not decision.allow:
                return decision
            return msgspec.structs.replace(decision, reason="in other words")

    other = Other(parse(RAW), "grille/decision", timeout=5)
    assert compare(engine(), other, EVENTS).same == 6


def test_validity_is_held_against_the_time_of_the_event() -> None:
    class Ending(WasmEngine):
        def decide(self, document: bytes) -> Decision:
            decision = super().decide(document)
            raw = msgspec.to_builtins(decision) | {"not_after": "1970-01-01T00:00:03Z"}
            return msgspec.convert(raw, Decision)

    new = Ending(parse(RAW), "grille/decision", timeout=5)
    old = Ending(parse(RAW), "grille/decision", timeout=5)
    events = [EVENTS[0], statement("a", FRAUD, "customers", when=2.9), statement("a", FRAUD, "customers", when=3.0)]
    assert compare(old, new, events).same == 3
    result = compare(engine(), new, events)
    (change,) = (change for change in result.changes if change.kind == "denied")
    assert change.details == ("AC-04 valid from ever until 1970-01-01 00:00:03+00:00",)
    assert (result.count("denied"), result.count("changed")) == (1, 1)


def test_a_policy_that_gives_no_answer_denies() -> None:
    class Silent(WasmEngine):
        def decide(self, document: bytes) -> Decision:
            raise PolicyUnavailable("undefined")

    result = compare(engine(), Silent(parse(RAW), "grille/decision"), EVENTS)
    assert (result.count("denied"), result.count("told"), result.same) == (3, 1, 2)
    assert all("AC-02 no usable answer: undefined" in change.details[-1] for change in result.changes)


def test_an_answer_without_a_filter_denies() -> None:
    result = compare(
        engine(), changed(lambda roles: roles["fraud-analyst"]["relations"]["public.accounts"].pop("rows")), EVENTS
    )
    (change,) = result.changes
    assert change.kind == "denied" and change.details == ("ST-03 the answer has no filter for public.accounts",)


def test_what_cannot_be_asked_again_is_counted() -> None:
    events = [
        *EVENTS,
        statement("a", FRAUD, "customers", action="", relations=()),
        statement("elsewhere", FRAUD, "customers"),
        statement("a", FRAUD, "customers", outcome=Outcome("intent")),
    ]
    result = compare(engine(), engine(), events)
    assert (result.same, result.unasked, result.unknown) == (6, 1, 1)


def test_only_the_statements_of_the_time_given_but_every_beginning() -> None:
    events = [EVENTS[0], statement("a", FRAUD, "customers", when=5.0), statement("a", FRAUD, "customers", when=9.0)]
    result = compare(engine(), engine(), events, since=timestamp(4.0), until=timestamp(6.0))
    assert (result.same, result.unknown) == (1, 0)


def test_a_statement_of_an_isolated_session_is_asked_about_as_it_was() -> None:
    asked: list[Any] = []

    class Listening(WasmEngine):
        def decide(self, document: bytes) -> Decision:
            asked.append(json.loads(document))
            return super().decide(document)

    verdict = Verdict("", True, "AC-01", "", statement="CREATE TABLE", passed="ST-05")
    event = statement("a", FRAUD, "x", action="passthrough", relations=(), verdict=verdict)
    compare(Listening(parse(RAW), "grille/decision"), engine(), [EVENTS[0], event])
    assert asked[-1]["operation"] == {
        "action": "passthrough", "relations": [], "functions": [], "statement": "CREATE TABLE", "control": "ST-05",
    }  # fmt: skip


def test_a_statement_chosen_by_an_agent_is_harmless_for_a_terminal() -> None:
    events = [EVENTS[0], statement("a", FRAUD, "customers", template="SELECT '\x1b[2J'")]
    _, lines = told(compare(engine(), changed(lambda roles: roles.pop("fraud-analyst")), events))
    assert "\x1b" not in "".join(lines)
    assert r"SELECT '\x1b[2J'" in lines[1]


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grille.proxy.policy_diff._PROGRESS", 2)
    progress = io.StringIO()
    compare(engine(), engine(), EVENTS, progress=progress)
    assert progress.getvalue().splitlines()[-1] == "6 events, 5 questions"


def test_the_keys_of_the_question_are_those_that_are_sent() -> None:
    """A replayed question has the keys, and the values, of the one that was asked."""
    identity = Identity(spiffe_id=SERVICE, database="bank", scopes=("customers:read",), attributes={"branch": "0042"})
    agent = Registry([identity]).agent(parse_spiffe_id(SERVICE), cert_sha256="ab")
    use = RelationUse("public", "customers", "read", ("id",), ("id",))
    operation = Operation("update", (use,), ("pg_catalog.lower",))
    wanted = json.loads(msgspec.json.encode(policy_input(agent, operation)))
    asked: list[Any] = []

    class Listening(WasmEngine):
        def decide(self, document: bytes) -> Decision:
            asked.append(json.loads(document))
            return super().decide(document)

    begun = msgspec.structs.replace(connect(SERVICE, "a", branch="0042"), certificate_sha256="ab")
    event = statement("a", SERVICE, "customers", **asked_about(operation, None))
    compare(Listening(parse(RAW), "grille/decision"), engine(), [begun, event])
    assert asked[-1] == wanted
