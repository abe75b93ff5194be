"""Tests of a policy without a database: its Rego tests, and golden decisions.

A golden decision is a question with the whole answer that it must get, kept in a file that ends in ``_golden.json``
beside the policy: a list of ``{"name": .., "input": .., "decision": ..}``, in which ``decision`` is null where the
policy must give no usable answer.  The questions go to the compiled bundle, as they do in the proxy.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from grille.policies.bundles.build import contents, lay_out, needed_opa
from grille.policies.decision import Decision
from grille.policies.pdp import DecisionError, PolicyDecisionPoint, PolicyUnavailable, decode

PATTERN: Final = "*_golden.json"


class GoldenError(Exception):
    """A file of golden decisions that cannot be used; the message names it."""


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """One golden decision."""

    name: str
    input: dict[str, Any]
    """The question, as docs/reference/policy.md has it."""
    decision: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    """The answer; unset until ``grille policy test --update`` has written it."""


class RegoTest(msgspec.Struct, frozen=True):
    """One Rego test."""

    name: str
    passed: bool
    why: str = ""


def rego_tests(sources: Path) -> list[RegoTest]:
    """Check the sources strictly and run their tests with `opa`.

    Raises FileNotFoundError without `opa`, ValueError with its message if the sources are refused.
    """
    opa = needed_opa()
    tests = {str(path.relative_to(sources)): path.read_bytes() for path in sources.rglob("*_test.rego")}
    with tempfile.TemporaryDirectory() as directory:
        lay_out(contents(sources) | tests, Path(directory))

        def told(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [opa, *arguments, "."]
            return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)  # noqa: S603

        check = told("check", "--strict")
        if check.returncode:
            raise ValueError((check.stderr + check.stdout).strip())
        # 0: all passed, 2: some failed; the results stand in the output both times.
        done = told("test", "--format", "json")
    try:
        found = json.loads(done.stdout) or []
    except ValueError:
        raise ValueError((done.stderr + done.stdout).strip()) from None
    return [
        RegoTest(
            f"{each['package'].removeprefix('data.')}.{each['name']}",
            not any(each.get(key) for key in ("fail", "error", "skip")),
            str(each["error"].get("message", "")) if each.get("error") else "skipped" if each.get("skip") else "",
        )
        for each in found
    ]


def golden_files(sources: Path) -> list[Path]:
    """The files of golden decisions below a directory."""
    return sorted(sources.rglob(PATTERN))


def read_cases(path: Path) -> list[Case]:
    """The cases of one file.  Raises `GoldenError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Case])
    except OSError as error:
        raise GoldenError(f"{path}: {error.strerror}") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise GoldenError(f"{path}: {error}") from None


def write_cases(path: Path, cases: list[Case]) -> None:
    """Write the cases anew, readably."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(cases), indent=2) + b"\n")


def answer(engine: PolicyDecisionPoint, case: Case) -> tuple[dict[str, Any] | None, str]:
    """The decision as a document, every key written out; or None and why there is none."""
    try:
        decision = engine.decide(msgspec.json.encode(case.input))
    except (PolicyUnavailable, DecisionError) as error:
        return None, str(error)
    return document(decision), ""


def expected(case: Case) -> dict[str, Any] | None:
    """The golden decision as a document, every key written out.  Raises `GoldenError` if it is none."""
    if case.decision is msgspec.UNSET:
        raise GoldenError("has no decision yet: --update writes it")
    if case.decision is None:
        return None
    try:
        return document(decode(msgspec.json.encode(case.decision)))
    except DecisionError as error:
        raise GoldenError(f"has a decision that is none: {error}") from None


def differences(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two documents differ: place, old value, new value; a key that is missing counts as null."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif old != new:
        yield place, old, new


def document(decision: Decision) -> dict[str, Any]:
    """A decision as a document, every key written out."""
    return msgspec.json.decode(msgspec.json.encode(decision))  # type: ignore[no-any-return]
