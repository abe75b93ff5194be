"""What a governed run is counted by, and the policy that it runs under."""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from grille.audit.event import Event, Outcome, Verdict
from grille.audit.spool import Spool
from grille.policies import bundle
from grille.policies.wasm import WasmEngine
from tests.conformance.share import share
from tests.conformance.targets import POLICIES


def test_statements_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0, Ed25519PrivateKey.generate())

    def ran(verdict: Verdict | None, status: str = "ok", text: str = "") -> None:
        spool.append(
            Event(
                id=f"0{spool.pending}", time="2026-01-01T00:00:00Z", kind="statement", name="statement", worker=0,
                sequence=0, level="process", verdict=verdict, outcome=Outcome(status), text=text,  # type: ignore[arg-type]
            )
        )  # fmt: skip

    governed = Verdict("d", True, "AC-01", "", statement="SELECT")
    ran(governed)
    ran(governed, status="error")
    ran(governed, status="intent")
    ran(Verdict("d", True, "AC-01", "", statement="COPY", passed="ST-05"), text='COPY of "a" is not carried.')
    ran(Verdict("d", True, "AC-01", "", statement="COPY", passed="ST-05"), text='COPY of "b" is not carried.')
    ran(Verdict("d", True, "AC-01", "", statement="SET", passed="ST-05"))
    ran(Verdict("d", False, "AC-05", ""), status="denied")
    ran(None)
    spool.close()
    found = share(tmp_path)
    assert found.governed == {"SELECT": 2}
    assert found.passed == {"COPY": 2, "SET": 1}
    assert found.reasons == {"ST-05 COPY of ... is not carried.": 2}
    assert (found.refused, found.own) == ({"AC-05": 1}, 1)
    assert found.of_seven == (2, 4)
    assert "| the seven kinds | 4 | 2 | 2 | 50.0% |" in found.table()
    assert "(50.0%)" in found.line()


def test_the_governed_policy_isolates_and_hides_no_row() -> None:
    engine = WasmEngine(bundle.read(POLICIES / "governed.tar.gz"), "grille/decision", timeout=5)

    def ask(**operation: object) -> object:
        decision = engine.decide(msgspec.json.encode({"operation": {"relations": [], "functions": [], **operation}}))
        return decision.allow, decision.isolated, decision.passthrough, decision.filters

    use = {"schema": "s", "name": "t", "access": "read", "columns": [], "predicates": []}
    assert ask(action="connect") == (True, True, False, {})
    assert ask(action="select", relations=[use]) == (True, False, False, {"s.t": True})
    assert ask(action="passthrough", statement="SET", control="ST-05") == (True, False, True, {})
