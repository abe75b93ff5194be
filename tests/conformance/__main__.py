"""``python -m tests.conformance SUITE``: run a suite directly and through Grille, and compare by test name.

The last line is ``suite=NAME policy=.. direct=P/T grille=P/T listed=N unexplained=N``; exit status 0 only with 0
unexplained, 1 with some, 2 if the suite cannot be run here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from grille.proxy.demo.cluster import ClusterError, debian_binaries
from tests.conformance import go, java, postgres, python, rust, targets
from tests.conformance.compare import Results, compare, count, divergences
from tests.conformance.share import share
from tests.conformance.targets import Kind, SuiteError
from tests.conformance.tools import Suite, cache, cached, server_user
from tests.mq import suite as mq
from tests.vault import suite as vault

SUITES = {suite.name: suite for family in (postgres, python, go, rust, java) for suite in family.SUITES}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.partition("\n")[0])
    parser.add_argument("suite", choices=sorted((*SUITES, mq.SUITE, vault.SUITE)))
    parser.add_argument("--policy", choices=("passthrough", "governed"), default="passthrough")
    parser.add_argument("--through", choices=("grille", "relay"), default="grille",
                        help="relay: only TLS ends there, to see what the suite itself makes of that")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.suite == mq.SUITE:
        with tempfile.TemporaryDirectory(prefix="grille-conf-") as scratch:
            return mq.main(Path(scratch))
    if arguments.suite == vault.SUITE:
        with tempfile.TemporaryDirectory(prefix="grille-conf-") as scratch:
            return vault.main(Path(scratch))
    suite: Suite = SUITES[arguments.suite]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end too
    try:
        listed = divergences(suite.name, arguments.policy) if arguments.through == "grille" else {}
        directory = cached(suite.name, suite.build)
        direct = run(suite, directory, "direct", arguments.policy)
        through = run(suite, directory, arguments.through, arguments.policy)
    except (SuiteError, ClusterError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    comparison = compare(direct, through, listed)
    for test in comparison.listed:
        print(f"listed ({listed[test].reason}): {test}")
    for line in comparison.unexplained:
        print(f"unexplained: {line}")
    print(
        f"suite={suite.name} policy={arguments.policy} direct={count(direct)} {arguments.through}={count(through)} "
        f"listed={len(comparison.listed)} unexplained={len(comparison.unexplained)}"
    )
    return 1 if comparison.unexplained else 0


def run(suite: Suite, directory: Path, kind: Kind, policy: str) -> Results:
    """One run on a new server; logs and results stay in the cache.  Raises `SuiteError` if no test ran."""
    binaries = postgres.binaries() if suite.from_source else debian_binaries(15)
    if binaries is None:
        raise SuiteError("Debian's postgresql-15 is not installed")
    logs = cache() / "logs" / suite.name / (kind if kind != "grille" else policy)
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="grille-conf-") as name:
        home = Path(name)
        home.chmod(0o711)
        scratch = home / "run"
        scratch.mkdir()
        if user := server_user():
            shutil.chown(scratch, user)
        try:
            with targets.server(binaries, home, suite.hba) as cluster:
                command = [binaries / "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", cluster.dsn()]
                if subprocess.run(command, input=suite.setup, text=True, check=False).returncode:
                    raise SuiteError(f"the databases of {suite.name} cannot be made; the reason is above")
                with targets.reach(
                    kind, cluster, home, policy=policy, sessions=suite.sessions, own_certificate=suite.own_certificate
                ) as target:
                    results = suite.run(directory, target, scratch)
            if kind == "grille" and policy == "governed":
                counted = share(home / "audit")
                (logs / "share.json").write_text(msgspec.json.format(msgspec.json.encode(counted)).decode())
                (logs / "share.md").write_text(counted.table())
                print(f"{counted.table()}\n{counted.line()}", flush=True)
        finally:
            for source in (scratch, home / "grille.log", home / "pg" / "postgres.log"):
                if source.is_dir():
                    shutil.copytree(source, logs / "run", symlinks=True)
                elif source.exists():
                    shutil.copy(source, logs)
    if not results:
        raise SuiteError(f"no test of {suite.name} ran; see {logs}")
    (logs / "results.json").write_text(json.dumps(dict(sorted(results.items())), indent=0))
    print(f"{kind}: {count(results)} of {len(results)} in {time.monotonic() - started:.0f} s", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
