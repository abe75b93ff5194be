"""``grille policy``, as its user runs it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from grille.policies.bundle import read
from grille.policies.bundles import build
from grille.policies.golden import rego_tests
from grille.policies.signature import Verification
from grille.proxy import policy_commands
from grille.proxy.cli import parser
from grille.proxy.demo.cluster import Cluster
from tests.bundles import unpacked, with_data
from tests.setting import Setting

POLICY = """\
package grille

import data.grille_library.answer

decision := answer.allow("", {"public.accounts": true}, {"rows": data.rows}) if {
	input.identity.spiffe_id == "spiffe://bank.example/a"
} else := answer.deny("AC-03", "Not you.")
"""
TEST = """\
package grille_test

import data.grille

test_one if grille.decision.control == "AC-03" with input as {}

test_two if grille.decision.allow with input as {"identity": {"spiffe_id": "spiffe://bank.example/%s"}}
"""


def grille(*arguments: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "grille", "policy", *map(str, arguments)], capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, **({"PATH": path, "HOME": "/nonexistent"} if path is not None else {})},
    )  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A policy with a test of each kind."""
    if build.find_opa() is None:
        pytest.skip("the opa program is not installed, which alone can run and compile Rego")
    made = tmp_path / "policy"
    made.mkdir()
    (made / "decision.rego").write_text(POLICY)
    (made / "decision_test.rego").write_text(TEST % "a")
    (made / "data.json").write_text('{"rows": 5}')
    cases = [{"name": "a", "input": {"identity": {"spiffe_id": "spiffe://bank.example/a"}}}, {"name": "b", "input": {}}]
    (made / "decision_golden.json").write_text(json.dumps(cases))
    return made


def test_golden_decisions_are_written_kept_and_compared(sources: Path) -> None:
    first = grille("test", sources)
    assert first.returncode == 1
    assert first.stdout.splitlines() == [
        "FAIL  decision_golden.json: a", "      has no decision yet: --update writes it",
        "FAIL  decision_golden.json: b", "      has no decision yet: --update writes it",
        "test rego=2/2 golden=0/2",
    ]  # fmt: skip
    assert grille("test", sources, "--update").returncode == 0
    written = (sources / "decision_golden.json").read_text()
    assert json.loads(written)[0]["decision"]["limits"]["rows"] == 5
    again = grille("test", sources)
    assert (again.returncode, again.stdout) == (0, "test rego=2/2 golden=2/2\n")
    assert (sources / "decision_golden.json").read_text() == written
    (sources / "data.json").write_text('{"rows": 6}')
    changed = grille("test", sources)
    assert changed.returncode == 1
    assert changed.stdout.splitlines() == [
        "FAIL  decision_golden.json: a", "      limits.rows: expected 5, got 6", "test rego=2/2 golden=1/2",
    ]  # fmt: skip


def test_an_answer_that_is_none_is_told(sources: Path) -> None:
    grille("test", sources, "--update")
    (sources / "data.json").write_text('{"rows": -1}')
    done = grille("test", sources)
    assert done.returncode == 1 and "Expected `int` >= 0" in done.stdout
    assert grille("test", sources, "--update").returncode == 0
    assert json.loads((sources / "decision_golden.json").read_text())[0]["decision"] is None
    (sources / "data.json").write_text('{"rows": 1}')
    assert "must give no answer, and gives one" in grille("test", sources).stdout


def test_a_rego_test_that_fails(sources: Path) -> None:
    grille("test", sources, "--update")
    (sources / "decision_test.rego").write_text(TEST % "b")
    done = grille("test", sources)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["FAIL  grille_test.test_two", "test rego=1/2 golden=2/2"]
    (sources / "decision_test.rego").write_text(TEST.replace("test_one", "todo_test_one") % "a")
    assert sorted((one.passed, one.why) for one in rego_tests(sources)) == [(False, "skipped"), (True, "")]


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("decision.rego", "package grille\n\nx := ", "rego_parse_error"),
        ("decision.rego", "package grille\n\nimport data.x\n", "import data.x unused"),
        ("decision.rego", "package grille\n\nimport data.grille_library.x\n", "the library has no module x"),
        ("decision_golden.json", "{}", "Expected `array`"),
    ],
    ids=["no Rego", "not strict", "no such module", "no golden file"],
)
def test_sources_that_are_refused(sources: Path, name: str, text: str, what: str) -> None:
    (sources / name).write_text(text)
    done = grille("test", sources)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr and "Traceback" not in done.stderr
    assert all(line.startswith("grille: ") for line in done.stderr.splitlines())


def test_a_policy_without_tests_is_no_success(sources: Path) -> None:
    (sources / "decision_golden.json").unlink()
    (sources / "decision_test.rego").unlink()
    done = grille("test", sources)
    assert done.returncode == 2 and "holds no tests" in done.stderr


def test_a_bundle_is_built_and_signed(sources: Path, tmp_path: Path) -> None:
    output = tmp_path / "policy.tar.gz"
    done = grille("build", sources, output)
    assert (done.returncode, done.stdout) == (0, f"{output}: revision {build.revision(sources)}\n")
    assert {name for name in unpacked(output.read_bytes()) if name.endswith((".rego", ".json"))} == {
        "data.json", "decision.rego", "grille_library/answer.rego",
    }  # fmt: skip
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    done = grille("build", sources, output, "--signing-key", key, "--signing-alg", "ES256")
    assert done.returncode == 0, done.stderr
    verification = Verification(load_pem_public_key(public.read_bytes()), "ES256", "")  # type: ignore[arg-type]
    assert read(output, verification).data["rows"] == 5


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["build", "nowhere", "x.tar.gz"], "nowhere is not a directory with Rego files"),
        (["test", "nowhere"], "nowhere is not a directory with Rego files"),
        (["diff", "nowhere.tar.gz", "nowhere.tar.gz", "--log", "."], "nowhere.tar.gz: No such file"),
        (["diff", str(build.DEMO), str(build.DEMO), "--log", "/nonexistent"], "/nonexistent"),
        (["diff", str(build.DEMO), str(build.DEMO), "--log", ".", "--since", "soon"], "soon"),
    ],
    ids=" ".join,
)
def test_what_is_not_there(arguments: list[str], what: str) -> None:
    if build.find_opa() is None and arguments[0] != "diff":
        pytest.skip("the opa program is not installed, which is asked for first")
    done = grille(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("part", ["build", "test"])
def test_without_opa_it_says_how_to_get_it(part: str, tmp_path: Path) -> None:
    (tmp_path / "decision.rego").write_text("package grille\n")
    done = grille(part, tmp_path, *(["x.tar.gz"] if part == "build" else []), path="/nonexistent")
    assert done.returncode == 2
    assert done.stderr == (
        "grille: the `opa` program is not installed: go install github.com/open-policy-agent/opa@v1.22.2\n"
    )


@pytest.fixture
def setting(pg18: Cluster, fresh_database: Callable[[Cluster], str], tmp_path: Path) -> Setting:
    return Setting(tmp_path, pg18, fresh_database(pg18))


def test_lint_of_the_configured_policy_and_of_another(setting: Setting, tmp_path: Path) -> None:
    setting.config()
    done = grille("lint", "--config", setting.files.config)
    assert done.returncode == 1 and done.stderr == ""
    assert "WARNING search-oracle  public.customers.ssn" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("lint errors=1 warnings=")  # the table has no column "branch"
    data: Any = json.loads(unpacked(build.DEMO.read_bytes())["data.json"])
    data["agents"] = {}
    (tmp_path / "none.tar.gz").write_bytes(with_data(build.DEMO.read_bytes(), data, "none"))
    done = grille("lint", "--config", setting.files.config, "--policy", tmp_path / "none.tar.gz")
    assert done.returncode == 0
    assert done.stdout.startswith("lint errors=0 warnings=0 accepted=0 agents=2 ")


def test_lint_of_nothing(setting: Setting) -> None:
    setting.config()
    done = grille("lint", "--config", setting.files.config, "--accept", "everything")
    assert done.returncode == 2 and "there is no finding everything; there are: no-answer, " in done.stderr
    done = grille("lint", "--config", setting.files.config, "--policy", "nowhere.tar.gz")
    assert done.returncode == 2 and done.stderr == "grille: nowhere.tar.gz: No such file or directory\n"


def test_the_log_of_a_directory_without_chains(tmp_path: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    chosen = parser().parse_args(["policy", "diff", str(build.DEMO), str(build.DEMO), "--log", str(tmp_path)])
    assert policy_commands.run(chosen, out, err) == 2
    assert str(tmp_path) in err.getvalue()
