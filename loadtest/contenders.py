"""The ways to reach one PostgreSQL over TLS: directly, through PgBouncer, through Grille."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grille.proxy.authority import Authority, write_private, write_signing_key
from grille.proxy.demo.cluster import SUPERUSER, Cluster, debian_binaries

TRUST_DOMAIN = "load.example"
DRIVER = f"spiffe://{TRUST_DOMAIN}/driver"
POLICY = Path(__file__).parent / "policy.tar.gz"
DATABASE = "bench"


@dataclass(frozen=True)
class Contender:
    """One way in: libpq settings, and the processes whose CPU it costs."""

    name: str
    settings: dict[str, str]
    pids: tuple[int, ...]


class NotInstalled(Exception):
    """A part that a measurement needs is not on this machine."""


def pgbench() -> str:
    """A pgbench that speaks TLS (Debian's; the wheel's does not)."""
    for directory in (debian_binaries(15), None):
        found = shutil.which("pgbench", path=str(directory) if directory else None)
        if found:
            return found
    raise NotInstalled("pgbench with TLS is not installed (Debian: postgresql-15)")


@contextlib.contextmanager
def contenders(*, scale: int, level: str, workers: int) -> Iterator[tuple[list[Contender], list[str]]]:
    """Start everything; yields the contenders and a line about each one that is missing."""
    binaries = debian_binaries(15)
    if binaries is None:
        raise NotInstalled("Debian's postgresql-15 is not installed: the wheel's server has no TLS to compare with")
    missing: list[str] = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grille-load-")))
        directory.chmod(0o711)
        authority = Authority(TRUST_DOMAIN)
        ca = directory / "ca.pem"
        authority.write_bundle(ca)
        server = authority.issue_server().write(directory, "server")
        driver = authority.issue("driver").write(directory, "driver")
        cluster = stack.enter_context(
            Cluster(
                binaries, directory / "pg", tls=(server, server.with_suffix(".key"), ca),
                settings=["max_connections=200", "shared_buffers=256MB"],
                hba=[f"hostssl all {SUPERUSER} 127.0.0.1/32 trust"],
            )
        )  # fmt: skip
        _make_database(cluster, scale)
        tls = {
            "PGDATABASE": DATABASE, "PGUSER": SUPERUSER, "PGHOST": "127.0.0.1", "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": str(ca), "PGSSLCERT": str(driver), "PGSSLKEY": str(driver.with_suffix(".key")),
            "PGGSSENCMODE": "disable",
        }  # fmt: skip
        found = [Contender("direct", {**tls, "PGPORT": str(cluster.port)}, ())]
        bouncer = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if bouncer is None:
            missing.append("pgbouncer is not installed: skipped")
        else:
            port, pid = stack.enter_context(_pgbouncer(bouncer, directory, cluster, ca, server))
            found.append(Contender("pgbouncer", {**tls, "PGPORT": str(port)}, (pid,)))
        port, pids = stack.enter_context(_grille(directory, cluster, ca, server, level, workers))
        found.append(Contender("grille", {**tls, "PGPORT": str(port)}, pids))
        yield found, missing


def cpu_seconds(pids: tuple[int, ...]) -> float:
    """User and system time of these processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _make_database(cluster: Cluster, scale: int) -> None:
    environment = {**os.environ, "PGHOST": cluster.host, "PGPORT": str(cluster.port), "PGUSER": SUPERUSER}
    psql = str((debian_binaries(15) or Path()) / "psql")
    subprocess.run([psql, "-qc", f"CREATE DATABASE {DATABASE}", "postgres"], env=environment, check=True)
    subprocess.run(
        [pgbench(), "-i", "-q", "-s", str(scale), DATABASE], env=environment, check=True, capture_output=True
    )


@contextlib.contextmanager
def _pgbouncer(program: str, directory: Path, cluster: Cluster, ca: Path, server: Path) -> Iterator[tuple[int, int]]:
    port = _free_port()
    home = directory / "pgbouncer"
    home.mkdir(mode=0o755)
    (home / "users.txt").write_text(f'"{SUPERUSER}" ""\n')
    for name, source in (("ca.pem", ca), ("server.pem", server), ("server.key", server.with_suffix(".key"))):
        shutil.copyfile(source, home / name)
    (home / "pgbouncer.ini").write_text(
        f"[databases]\n{DATABASE} = host={cluster.host} port={cluster.port} dbname={DATABASE} user={SUPERUSER}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {home}/users.txt\npool_mode = transaction\ndefault_pool_size = 16\nmax_client_conn = 500\n"
        f"client_tls_sslmode = verify-ca\nclient_tls_ca_file = {home}/ca.pem\nclient_tls_key_file = {home}/server.key\n"
        f"client_tls_cert_file = {home}/server.pem\nclient_tls_protocols = tlsv1.3\n"
        f"logfile = {home}/log\npidfile = {home}/pid\nmax_prepared_statements = 100\n"
    )
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < (1, 21):
        ini = home / "pgbouncer.ini"
        ini.write_text(ini.read_text().replace("max_prepared_statements = 100\n", ""))
    command = [program, str(home / "pgbouncer.ini")]
    user = None
    if os.geteuid() == 0:
        user = "postgres"
        for path in (home, *home.iterdir()):
            shutil.chown(path, user)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, user=user) as process:
        try:
            _await_port(port)
            yield port, process.pid
        finally:
            process.terminate()


@contextlib.contextmanager
def _grille(
    directory: Path, cluster: Cluster, ca: Path, server: Path, level: str, workers: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    port, admin = _free_port(), _free_port()
    write_signing_key(directory / "signing.pem")
    write_private(directory / "unused.hex", secrets.token_hex(32).encode())
    text = f"""
[listener]
port = {port}
certificate = {json.dumps(str(server))}
key = {json.dumps(str(server.with_suffix(".key")))}
[[trust_domains]]
name = "{TRUST_DOMAIN}"
bundle = {json.dumps(str(ca))}
[[identities]]
spiffe_id = "{DRIVER}"
database = "{DATABASE}"
attributes = {{ bid = 1 }}
[[databases]]
name = "{DATABASE}"
host = {json.dumps(cluster.host)}
port = {cluster.port}
database = "{DATABASE}"
role = "{SUPERUSER}"
tls = "off"
pool_size = 16
[policy]
bundle = {json.dumps(str(POLICY))}
[audit]
directory = {json.dumps(str(directory / "audit"))}
signing_key = {json.dumps(str(directory / "signing.pem"))}
reads = "{level}"
writes = "{level}"
[admin]
port = {admin}
[process]
workers = {workers}
log_level = "warning"
"""
    config = directory / "grille.toml"
    config.write_text(text)
    command = [sys.executable, "-m", "grille", "serve", "--config", str(config)]
    with subprocess.Popen(command) as process:
        try:
            _await_ready(process, admin)
            yield port, (process.pid, *_children(process.pid))
        finally:
            process.terminate()


def _children(pid: int) -> tuple[int, ...]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return tuple(int(child) for child in text.split())


def _await_ready(process: subprocess.Popen[bytes], admin: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        url = f"http://127.0.0.1:{admin}/readyz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError("grille did not become ready; its log is above")


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
