"""``grille policy lint``: each finding against a real catalogue, and a policy in order without any."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grille.policies.bundle import parse
from grille.policies.bundles.build import DEMO
from grille.policies.decision import Decision
from grille.policies.pdp import PolicyDecisionPoint
from grille.policies.wasm import WasmEngine
from grille.proxy.demo.cluster import Cluster
from grille.proxy.demo.config_files import FRAUD, SERVICE
from grille.proxy.policy_lint import FINDINGS, STRANGER, lint
from tests.bundles import unpacked, with_data
from tests.setting import Setting

RAW = DEMO.read_bytes()
RELATION = {"access": ["read"], "rows": "all"}
LIMITS = {"rows": 100, "seconds": 5, "statements_per_minute": 60}
MASKED = {"read": "mask:last4", "predicate": "deny", "write": "deny"}


def data() -> Any:
    """The demo's data, cut down to a policy in which nothing is found: both agents read masked customers."""
    found = json.loads(unpacked(RAW)["data.json"])
    for name in ("fraud-analyst", "customer-service"):
        role = found["roles"][name]
        role["relations"] = {"public.customers": dict(RELATION)}
        role["columns"] = {"public.customers.ssn": dict(MASKED)}
        role["limits"] = dict(LIMITS)
    return found


def engine(policy: Any) -> WasmEngine:
    return WasmEngine(parse(with_data(RAW, policy, "test")), "grille/decision", timeout=5)


class Linted:
    """What was printed."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.lines = text.splitlines()
        self.found = [line.split()[1:] for line in self.lines if line.split()[0] in ("ERROR", "WARNING")]
        """Code and subject."""

    def about(self, code: str) -> str:
        """The lines below one finding, as one."""
        at = next(n for n, line in enumerate(self.lines) if line.split()[1:2] == [code])
        return " ".join(line.strip() for line in self.lines[at + 1 : at + 4])


@pytest.fixture
def setting(pg18: Cluster, fresh_database: Callable[[Cluster], str], tmp_path: Path) -> Setting:
    made = Setting(tmp_path, pg18, fresh_database(pg18))
    made.sql("ALTER TABLE customers ADD branch text")
    return made


async def linted(setting: Setting, pdp: PolicyDecisionPoint, *changes: tuple[str, str], accept: Any = ()) -> Linted:
    out = io.StringIO()
    status = await lint(setting.config(*changes), lambda: pdp, accept, out)
    return Linted(status, out.getvalue())


async def test_nothing_is_found(setting: Setting) -> None:
    done = await linted(setting, engine(data()))
    assert (done.status, done.found) == (0, [])
    assert done.lines[-1].startswith("lint errors=0 warnings=0 accepted=0 agents=2 relations=2 questions=")


async def test_writing_values_and_reading_tokens(setting: Setting) -> None:
    policy = data()
    role = policy["roles"]["customer-service"]
    role["relations"]["public.customers"]["access"] = ["read", "insert"]
    role["columns"]["public.customers.ssn"] = {"read": "token", "predicate": "deny", "write": "allow"}
    done = await linted(setting, engine(policy))
    assert (done.status, done.found) == (1, [["encoding-oracle", "public.customers.ssn"]])
    assert SERVICE in done.about("encoding-oracle") and FRAUD not in done.about("encoding-oracle")
    role["columns"]["public.customers.ssn"]["read"] = "mask:last4"
    assert (await linted(setting, engine(policy))).found == []


async def test_the_token_of_one_column_by_writing_another_of_its_domain(setting: Setting) -> None:
    policy = data()
    role = policy["roles"]["customer-service"]
    role["relations"]["public.customer_export"] = dict(RELATION)
    role["relations"]["public.customers"]["access"] = ["update"]
    role["columns"]["public.customers.ssn"] = {"read": "mask:last4", "predicate": "deny", "write": "allow"}
    role["columns"]["public.customer_export.ssn"] = {"read": "token", "predicate": "deny", "write": "deny"}
    done = await linted(setting, engine(policy))
    assert done.found == [["encoding-oracle", "public.customer_export.ssn"]]
    assert "writes clear values into public.customers.ssn" in done.about("encoding-oracle")


async def test_guesses_without_a_limit(setting: Setting) -> None:
    policy = data()
    policy["roles"]["fraud-analyst"]["columns"]["public.customers.ssn"]["predicate"] = "equality"
    assert (await linted(setting, engine(policy))).found == []
    del policy["roles"]["fraud-analyst"]["limits"]["statements_per_minute"]
    done = await linted(setting, engine(policy))
    assert done.found == [["search-oracle", "public.customers.ssn"], ["no-limits"]]
    assert "public.customers without a limit of statements_per_minute." in done.about("no-limits")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"seconds": 5, "statements_per_minute": 60}, "rows or bytes"),
        ({"rows": 1, "statements_per_minute": 60}, "seconds"),
        ({"bytes": 1, "seconds": 5}, "statements_per_minute"),
    ],
)
async def test_no_limits(setting: Setting, limits: Any, words: str) -> None:
    policy = data()
    policy["roles"]["fraud-analyst"]["limits"] = limits
    done = await linted(setting, engine(policy))
    assert done.found == [["no-limits"]]
    assert f"without a limit of {words}." in done.about("no-limits")


async def test_a_filter_by_a_comparison_that_is_not_leakproof(setting: Setting) -> None:
    policy = data()
    policy["roles"]["customer-service"]["relations"]["public.customers"]["rows"] = "own branch"
    assert (await linted(setting, engine(policy))).found == []
    setting.sql("ALTER TABLE customers ALTER branch TYPE jsonb USING NULL")
    done = await linted(setting, engine(policy))
    assert done.found == [["leaky-filter", "public.customers.branch"]]
    assert "comparison of pg_catalog.jsonb is not leakproof" in done.about("leaky-filter")


async def test_a_filter_by_tokens(setting: Setting) -> None:
    policy = data()
    policy["roles"]["customer-service"]["relations"]["public.customers"]["rows"] = "own branch"
    listed = ('name = "public.customers.email"', 'name = "public.customers.branch"')
    done = await linted(setting, engine(policy), listed)
    assert done.found == [["token-filter", "public.customers.branch"]]


async def test_what_enforcement_refuses(setting: Setting) -> None:
    policy = data()
    policy["roles"]["fraud-analyst"]["columns"]["public.customers.branch"] = dict(MASKED)
    done = await linted(setting, engine(policy))
    assert done.found == [["unenforceable", "public.customers"]]
    assert "does not list as sensitive. (public.customers.branch)" in done.about("unenforceable")


async def test_a_filter_by_a_column_that_there_is_not(setting: Setting) -> None:
    policy = data()
    policy["roles"]["customer-service"]["relations"]["public.customers"]["rows"] = "own branch"
    setting.sql("ALTER TABLE customers DROP branch")
    assert (await linted(setting, engine(policy))).found == [["unenforceable", "public.customers"]]


async def test_a_relation_without_a_filter(setting: Setting) -> None:
    policy = data()
    policy["roles"]["fraud-analyst"]["relations"]["public.customers"]["rows"] = "own branch"  # it has no branch
    done = await linted(setting, engine(policy))
    assert done.found == [["no-filter"]]
    assert "It may use public.customers and gets no row filter there" in done.about("no-filter")


async def test_a_view_that_shows_what_its_table_hides(setting: Setting) -> None:
    policy = data()
    relations = policy["roles"]["customer-service"]["relations"]
    relations["public.customers"]["rows"] = "own branch"
    relations["public.again"] = dict(RELATION)
    setting.sql(
        "CREATE VIEW public.between AS SELECT * FROM customers", "CREATE VIEW public.again AS SELECT * FROM between"
    )
    done = await linted(setting, engine(policy))
    assert ["view-rows", "public.again"] in done.found and ["view-column", "public.again"] in done.found
    assert "those of public.customers are filtered" in done.about("view-rows")
    columns = {line.split()[2] for line in done.lines if line.strip().startswith("It uses ")}
    assert columns == {f"public.customers.{name}," for name in ("ssn", "card_number", "email")}


async def test_an_agent_that_nobody_has_registered(setting: Setting) -> None:
    policy = data()
    stranger = STRANGER.format("bank.example")
    policy["agents"][stranger] = "fraud-analyst"
    done = await linted(setting, engine(policy))
    assert done.found == [["stranger", "public.customers"]]
    assert stranger in done.about("stranger")


async def test_no_usable_answer(setting: Setting) -> None:
    policy = data()
    policy["roles"]["fraud-analyst"]["limits"]["rows"] = -1
    done = await linted(setting, engine(policy))
    assert done.found == [["no-answer", "public.customers"]]
    assert "about read: Expected `int` >= 0" in done.about("no-answer")


class Answering:
    """The demo's policy with parts of its answers replaced."""

    def __init__(self, action: str, **parts: Any) -> None:
        self.revision = "test"
        self._engine = engine(data())
        self._action = f'"action":"{action}"'.encode()
        self._parts = parts

    def decide(self, document: bytes) -> Decision:

        decision = self._engine.decide(document)
        if self._action not in document or not decision.allow:
            return decision
        return msgspec.convert(msgspec.to_builtins(decision) | self._parts, Decision)


async def test_a_session_that_nothing_is_done_to(setting: Setting) -> None:
    done = await linted(setting, Answering("connect", passthrough=True))
    assert done.found == [["passthrough"]]


async def test_a_grant_that_has_ended(setting: Setting) -> None:
    done = await linted(setting, Answering("select", not_after="2026-01-01T00:00:00Z"))
    assert done.found == [["expired", "public.customers"]]
    assert (await linted(setting, Answering("select", not_after="2999-01-01T00:00:00Z"))).found == []


async def test_columns_that_are_denied_together_are_asked_about_one_by_one(setting: Setting) -> None:
    class OnlyNarrow(Answering):
        def decide(self, document: bytes) -> Decision:

            decision = super().decide(document)
            (used,) = json.loads(document)["operation"]["relations"] or [{"columns": []}]
            return msgspec.structs.replace(decision, allow=decision.allow and len(used["columns"]) < 2)

    found = (await linted(setting, OnlyNarrow("select", not_after="2026-01-01T00:00:00Z"))).found
    assert found == [["expired", "public.customers"]]


async def test_findings_are_accepted_by_code_or_by_subject(setting: Setting) -> None:
    policy = data()
    policy["roles"]["fraud-analyst"]["limits"] = {}
    policy["roles"]["fraud-analyst"]["columns"]["public.customers.ssn"]["predicate"] = "equality"
    done = await linted(setting, engine(policy), accept=["no-limits"])
    assert (done.status, done.found) == (1, [["search-oracle", "public.customers.ssn"]])
    done = await linted(setting, engine(policy), accept=["no-limits", "search-oracle:public.customers.ssn"])
    assert (done.status, done.found) == (0, [])
    assert "accepted=4" in done.lines[-1]
    done = await linted(setting, engine(policy), accept=["search-oracle:public.customers.email"])
    assert done.status == 1


async def test_many_agents_are_told_of_once(setting: Setting) -> None:
    policy = data()
    more = ""
    for number in range(5):
        policy["agents"][f"spiffe://bank.example/{number}"] = "fraud-analyst"
        more += f'[[identities]]\nspiffe_id = "spiffe://bank.example/{number}"\ndatabase = "bank"\n\n'
    policy["roles"]["fraud-analyst"]["limits"]["seconds"] = None
    done = await linted(setting, engine(policy), ("[[databases]]", f"{more}[[databases]]"))
    assert done.found == [["no-limits"]]
    assert "and 3 more" in done.about("no-limits") and "agents=7" in done.lines[-1]


async def test_a_database_that_cannot_be_read(setting: Setting) -> None:
    database = setting.database
    done = await linted(setting, engine(data()), (f'database = "{database}"\nrole', 'database = "nowhere"\nrole'))
    assert done.status == 2
    assert done.lines == ['database "bank" cannot be read: database "nowhere" does not exist']


def test_every_finding_is_explained() -> None:
    page = (Path(__file__).parent.parent.parent / "docs/reference/policy.md").read_text()
    for code, (level, _) in FINDINGS.items():
        assert f"| `{code}` | {level} |" in page
