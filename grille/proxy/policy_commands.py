"""The ``grille policy`` commands: what they read, run and print."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

from grille.audit import evidence
from grille.policies import golden
from grille.policies.bundle import BundleReadError, read
from grille.policies.bundles.build import ENTRYPOINT, build, revision
from grille.policies.golden import GoldenError
from grille.policies.pdp import PolicyDecisionPoint
from grille.policies.wasm import BundleError, WasmEngine
from grille.proxy import policy_diff
from grille.proxy.bundle_watch import BundleWatch
from grille.proxy.config import Config

if TYPE_CHECKING:
    from grille.proxy.policy_server import PolicyServer

FAILED = 1
USAGE = 2
PATIENCE = 5.0
"""Seconds of one decision: a policy is tried here on a machine that may be slow."""


class Unusable(Exception):
    """A policy or log that cannot be used; the message is for the user."""


def engine(path: Path, *, entrypoint: str = ENTRYPOINT, timeout: float = PATIENCE) -> WasmEngine:
    """A bundle, or a directory of sources, ready to decide.  Raises `Unusable`."""
    try:
        if not path.is_dir():
            return WasmEngine(read(path), entrypoint, timeout=timeout)
        with tempfile.TemporaryDirectory() as directory:
            made = Path(directory) / "policy.tar.gz"
            build(path, made)
            return WasmEngine(read(made), entrypoint, timeout=timeout)
    except (FileNotFoundError, ValueError, BundleReadError, BundleError) as error:
        raise Unusable(str(error)) from None


def run(chosen: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    """``build``, ``test`` or ``diff``; the exit status."""
    try:
        match chosen.part:
            case "build":
                return _build(chosen, out)
            case "test":
                return test(chosen.sources, chosen.update, out)
            case _:
                return _diff(chosen, out, err)
    except (Unusable, GoldenError) as error:
        err.writelines(f"grille: {line}\n" for line in str(error).splitlines())
        return USAGE


def _build(chosen: argparse.Namespace, out: TextIO) -> int:
    try:
        build(chosen.sources, chosen.output, key=chosen.signing_key, algorithm=chosen.signing_alg)
    except (OSError, ValueError) as error:
        raise Unusable(str(error)) from None
    out.write(f"{chosen.output}: revision {revision(chosen.sources)}\n")
    return 0


def test(sources: Path, update: bool, out: TextIO) -> int:
    """Run the Rego tests and the golden decisions; 0 if all pass.  Raises `Unusable` or `GoldenError`."""
    try:
        rego = golden.rego_tests(sources)
    except (FileNotFoundError, ValueError) as error:
        raise Unusable(str(error)) from None
    for one in rego:
        if not one.passed:
            out.write(f"FAIL  {one.name}{f'  {one.why}' if one.why else ''}\n")
    files = golden.golden_files(sources)
    if not rego and not files:
        raise Unusable(f"{sources} holds no tests: write *_test.rego or *_golden.json")
    policy = engine(sources)
    passed = total = 0
    for path in files:
        cases = golden.read_cases(path)
        for case in cases:
            total += 1
            given, problem = golden.answer(policy, case)
            if update:
                case.decision = given
            try:
                wanted = golden.expected(case)
                found = list(golden.differences(wanted, given)) if given is not None and wanted is not None else []
                same = wanted == given
            except GoldenError as error:
                same, found, problem = False, [], str(error)
            passed += same
            if same:
                continue
            out.write(f"FAIL  {path.relative_to(sources)}: {case.name}\n")
            if not found:
                out.write(f"      {problem or ('must give no answer, and gives one' if given is not None else '')}\n")
            for place, was, now in found:
                out.write(f"      {place}: expected {_json(was)}, got {_json(now)}\n")
        if update:
            golden.write_cases(path, cases)
            out.write(f"wrote {path}: {len(cases)} decisions\n")
    good = sum(one.passed for one in rego)
    out.write(f"test rego={good}/{len(rego)} golden={passed}/{total}\n")
    return 0 if good == len(rego) and passed == total else FAILED


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _diff(chosen: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    try:
        times = [evidence.instant(each) if each else each for each in (chosen.since, chosen.until)]
        result = policy_diff.compare(
            engine(chosen.old),
            engine(chosen.new),
            evidence.show(chosen.log),
            since=times[0] or "",
            until=times[1] or "~",
            progress=err if err.isatty() else None,
        )
    except (evidence.NoEvidence, ValueError, OSError) as error:
        raise Unusable(str(error)) from None
    return policy_diff.tell(result, out)


async def lint(config: Config, path: Path | None, accepted: Collection[str], out: TextIO, err: TextIO) -> int:
    """``grille policy lint``; the exit status.  Raises `ConfigError`."""
    from grille.proxy import policy_lint

    unknown = sorted({each.partition(":")[0] for each in accepted} - policy_lint.FINDINGS.keys())
    if unknown:
        err.write(f"grille: there is no finding {', '.join(unknown)}; there are: {', '.join(policy_lint.FINDINGS)}\n")
        return USAGE
    async with contextlib.AsyncExitStack() as stack:
        pdp: Callable[[], PolicyDecisionPoint]
        if path is not None:
            try:
                chosen = engine(path, entrypoint=config.policy.entrypoint)
            except Unusable as error:
                err.write(f"grille: {error}\n")
                return USAGE
            pdp = lambda: chosen  # noqa: E731
        else:
            policy = await policy_of(config, stack)
            if policy.problem:
                err.write(f"grille: {policy.problem}\n")
                return USAGE
            pdp = lambda: policy.current  # noqa: E731
        return await policy_lint.lint(config, pdp, accepted, out)


async def policy_of(config: Config, stack: contextlib.AsyncExitStack) -> BundleWatch | PolicyServer:
    """The configured policy, loaded once; closed with ``stack``.  Raises `ConfigError`."""
    if config.policy.server_url:
        from grille.proxy.policy_server import PolicyServer  # its HTTP client takes a while to import

        server = PolicyServer(config.policy)
        stack.push_async_callback(server.close)
        await server.look()
        return server
    watch = BundleWatch(config.policy)
    watch.reload()
    return watch
