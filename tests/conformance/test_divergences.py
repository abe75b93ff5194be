"""The comparison of outcomes, and the files that explain divergences."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from grille.policies.bundles.build import revision
from tests.conformance.__main__ import SUITES
from tests.conformance.compare import DIVERGENCES, REASONS, Divergence, Results, compare, count, divergences
from tests.conformance.go import outcomes as go_outcomes
from tests.conformance.postgres import outcomes as regress_outcomes
from tests.conformance.rust import outcomes as rust_outcomes
from tests.conformance.targets import POLICIES
from tests.conformance.tools import junit

LISTED = {"t": Divergence("t", "passwords", "wants a password")}
INTERMITTENT = {"t": Divergence("t", "intermittent", "a race of its own")}


@pytest.mark.parametrize("path", sorted(DIVERGENCES.iterdir()), ids=lambda path: path.name)
def test_every_file_belongs_to_a_suite_and_is_well_formed(path: Path) -> None:
    suite, policy, extension = path.name.split(".")
    assert suite in SUITES and policy in ("passthrough", "governed") and extension == "toml"
    assert divergences(suite, policy)


@pytest.mark.parametrize(
    ("direct", "through"),
    [("passed", "failed"), ("passed", "skipped"), ("passed", None), ("failed", None), ("skipped", "failed"),
     (None, "failed"), (None, "skipped"), ("failed", "skipped")],
)  # fmt: skip
def test_a_divergence_must_be_listed(direct: str | None, through: str | None) -> None:
    before, after = _results(direct), _results(through)
    assert len(compare(before, after, {}).unexplained) == 1
    assert compare(before, after, LISTED) == compare(before, after, INTERMITTENT)
    assert compare(before, after, LISTED).listed == ("t",) and not compare(before, after, LISTED).unexplained


@pytest.mark.parametrize(
    ("direct", "through"), [("passed", "passed"), ("failed", "failed"), ("skipped", "skipped"), ("failed", "passed")]
)
def test_what_does_not_diverge_must_not_be_listed(direct: str, through: str) -> None:
    before, after = _results(direct), _results(through)
    assert not compare(before, after, {}).unexplained
    assert compare(before, after, LISTED).unexplained
    assert not compare(before, after, INTERMITTENT).unexplained


def test_a_listed_test_that_does_not_exist_is_stale() -> None:
    other: Results = {"other": "passed"}
    assert compare(other, other, LISTED).unexplained and compare(other, other, INTERMITTENT).unexplained


def test_one_failure_does_not_hide_behind_another() -> None:
    before: Results = {"a": "passed", "b": "failed", "t": "passed"}
    after: Results = {"a": "failed", "b": "passed", "t": "failed"}
    assert count(before) == count({"x": "skipped", **before}) == "2/3" and count(after) == "1/3"
    assert compare(before, after, LISTED).unexplained == ("a: passed directly, failed through the proxy",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[divergence]]\ntest = "t"\nreason = "because"\nwhy = "x"', "unknown reason"),
        ('[[divergence]]\ntest = "t"\nreason = "passwords"', "why"),
        ('[[divergence]]\ntest = "t"\nreason = "passwords"\nwhy = " "', "one line"),
        ('[[divergence]]\ntest = "t"\nreason = "passwords"\nwhy = "x\\ny"', "one line"),
        ('[[divergence]]\ntest = "t"\nreason = "passwords"\nwhy = "x"\n' * 2, "twice"),
        ('[[divergence]]\ntest = "t"\nreason = "passwords"\nwhy = "x"\nuntil = 1', "until"),
        ("[[divergence]", "Expected"),
    ],
)
def test_a_file_that_explains_nothing_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.passthrough.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        divergences("s", "passthrough", tmp_path)


def test_no_file_explains_nothing(tmp_path: Path) -> None:
    assert divergences("s", "passthrough", tmp_path) == {}
    assert all(REASONS.values())


@pytest.mark.parametrize("policy", ["passthrough", "governed"])
def test_the_bundles_are_those_of_their_sources(policy: str) -> None:
    with tarfile.open(POLICIES / f"{policy}.tar.gz") as bundle:
        manifest = bundle.extractfile("/.manifest")
        assert manifest is not None
        assert json.load(manifest)["revision"] == revision(POLICIES / policy)


# what the suites' own programs print

REGRESS_OUTPUT = """\
test test_setup                   ... ok          221 ms
parallel group (3 tests):  boolean random copy
     boolean                      ... ok          101 ms
     random                       ... failed (ignored)       44 ms
     copy                         ... FAILED      144 ms
test tablespace                   ... FAILED (test process exited with exit code 2)      8 ms
test connect/test5                ... stderr FAILED      901 ms
"""
GO_OUTPUT = """\
go: downloading a module
{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"x"}
{"Action":"pass","Package":"p","Test":"A","Elapsed":0.1}
{"Action":"run","Package":"p","Test":"B"}
{"Action":"run","Package":"p","Test":"B/sub"}
{"Action":"skip","Package":"p","Test":"B/sub","Elapsed":0.1}
{"Action":"run","Package":"p","Test":"C"}
{"Action":"pass","Package":"p","Test":"D/file='/tmp/TestD42/001/x'"}
{"Action":"fail","Package":"p","Elapsed":1}
"""
RUST_OUTPUT = """\
running 3 tests
test binary_copy::read_basic ... ok
test types::test_bool_params ... FAILED
test runtime::unix_socket ... ignored
"""
JUNIT_OUTPUT = """\
<testsuites><testsuite>
<testcase classname="m.C" name="a"/><testcase classname="m.C" name="b"><failure message="x"/></testcase>
<testcase classname="m.C" name="c"><error/></testcase><testcase classname="m.C" name="d"><skipped/></testcase>
<testcase classname="m.C" name="a"><failure/></testcase><testcase classname="m.C" name="a"/>
</testsuite></testsuites>
"""


def test_outcomes_are_read() -> None:
    assert regress_outcomes(REGRESS_OUTPUT) == {
        "test_setup": "passed", "boolean": "passed", "random": "failed", "copy": "failed", "tablespace": "failed",
        "connect/test5": "failed",
    }  # fmt: skip
    assert go_outcomes(GO_OUTPUT) == {"p.A": "passed", "p.B": "failed", "p.B/sub": "skipped", "p.C": "failed",
                                       "p.D/file='/tmp/TestD/001/x'": "passed"}  # fmt: skip
    assert rust_outcomes(RUST_OUTPUT) == {
        "binary_copy::read_basic": "passed", "types::test_bool_params": "failed", "runtime::unix_socket": "skipped",
    }  # fmt: skip


def test_outcomes_of_junit_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(JUNIT_OUTPUT)
    found = junit(tmp_path.glob("*.xml"))
    assert found == {"m.C::a": "failed", "m.C::b": "failed", "m.C::c": "failed", "m.C::d": "skipped"}


def _results(outcome: str | None) -> Results:
    known: dict[str, Results] = {"passed": {"t": "passed"}, "failed": {"t": "failed"}, "skipped": {"t": "skipped"}}
    return known[outcome] if outcome else {}
