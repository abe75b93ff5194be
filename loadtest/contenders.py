"""The ways to reach one PostgreSQL over TLS: directly, through PgBouncer, through Grille with controls on or off."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grille.proxy.authority import Authority, write_private, write_signing_key
from grille.proxy.demo.cluster import SUPERUSER, Cluster, debian_binaries
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.provider import TokenRequest, Unfit
from grille.tokenization.transformation import Key, Transformation

TRUST_DOMAIN = "load.example"
POLICY = Path(__file__).parent / "policy.tar.gz"
DATABASE = "bench"
ACCOUNTS = 100_000
"""Rows of pgbench_accounts, whatever the number of branches: pgbench's scale 1."""
CONNECTIONS = 10_500
"""Agents that each proxy is configured to hold at once: p7 and p9 connect 10,000."""
CARD = r"(\d{16})"
"""Template of pgbench_accounts.card: the whole number is encoded."""


@dataclass(frozen=True)
class Variant:
    """Grille in one configuration: what is told apart is said here and nowhere else."""

    name: str
    level: str
    scopes: tuple[str, ...] = ()
    """Words of loadtest/policy/decision.rego that turn a control off."""
    sensitive: bool = True
    """The column ``card`` is configured as sensitive."""
    policies: int = 1
    """Entries of ``data.policies`` in the bundle; the last one grants."""
    card: bool = False
    """The script reads the column ``card`` besides."""


@dataclass(frozen=True)
class Contender:
    """One way in: libpq settings, and how to find the processes whose CPU and memory it costs."""

    name: str
    settings: dict[str, str]
    pids: Callable[[], list[int]]
    """The proxy's processes; none for the direct way."""
    level: str = ""
    card: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """The process environment for libpq's programs."""
        return {**os.environ, **self.settings}


class NotInstalled(Exception):
    """A part that a measurement needs is not on this machine."""


def program(name: str) -> str:
    """A client program of Debian's PostgreSQL, which speaks TLS (the wheel's do not).  Raises `NotInstalled`."""
    for directory in (debian_binaries(15), None):
        found = shutil.which(name, path=str(directory) if directory else None)
        if found:
            return found
    raise NotInstalled(f"{name} is not installed (Debian: postgresql-15)")


def card(aid: int) -> str:
    """The clear card number of one account."""
    return f"{4_000_000_000_000_000 + aid * 7_919_317:016d}"


@dataclass
class Stage:
    """One PostgreSQL with pgbench's tables, and everything that is started in front of it."""

    directory: Path
    authority: Authority
    cluster: Cluster
    ca: Path
    server: Path
    branches: int
    pool_size: int
    workers: int
    plain: bool
    card_key: bytes
    _stack: contextlib.ExitStack = field(repr=False)
    connecting: dict[str, float] = field(default_factory=dict)
    """Seconds that the agents of one script took to connect, at most, by contender."""

    def client(self, port: int, certificate: Path) -> dict[str, str]:
        """libpq's settings for the way through this port."""
        return {
            "PGDATABASE": DATABASE, "PGUSER": SUPERUSER, "PGHOST": "127.0.0.1", "PGPORT": str(port),
            "PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(self.ca), "PGSSLCERT": str(certificate),
            "PGSSLKEY": str(certificate.with_suffix(".key")), "PGGSSENCMODE": "disable", "PGCONNECT_TIMEOUT": "30",
        }  # fmt: skip

    @property
    def driver(self) -> Path:
        """Certificate of the load driver's identity."""
        return self.directory / "driver.pem"

    def agents(self, count: int) -> list[str]:
        """Certificates with their keys, one file each, of so many identities; the driver's own is the first."""
        home = self.directory / "agents"
        home.mkdir(exist_ok=True)
        paths = [home / f"{number}.pem" for number in range(count)]
        for number, path in enumerate(paths):
            if not path.exists():
                issued = self.authority.issue(f"driver/{number}")
                path.write_bytes(issued.certificate_pem + issued.key_pem)
        return [str(path) for path in paths]

    def direct(self) -> Contender:
        """PostgreSQL itself, over TLS with a client certificate."""
        return Contender("direct", self.client(self.cluster.port, self.driver), list)

    def server_pids(self) -> list[int]:
        """The postmaster and its children."""
        return family(self.cluster.pid)

    def pooler(self, name: str, path: str) -> Contender:
        """PgBouncer, or another program that reads PgBouncer's configuration, in transaction mode with TLS in front."""
        port = free_port()
        home = self.directory / f"pooler-{name}"
        home.mkdir(mode=0o755)
        (home / "users.txt").write_text(f'"{SUPERUSER}" ""\n')
        for file, source in (
            ("ca.pem", self.ca), ("server.pem", self.server), ("server.key", self.server.with_suffix(".key")),
        ):  # fmt: skip
            shutil.copyfile(source, home / file)
        prepared = "max_prepared_statements = 200\n" if prepares(path) else ""
        (home / "pooler.ini").write_text(
            f"[databases]\n{DATABASE} = host={self.cluster.host} port={self.cluster.port} dbname={DATABASE} "
            f"user={SUPERUSER}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {home}/users.txt\npool_mode = transaction\n"
            f"default_pool_size = {self.pool_size}\nmax_client_conn = {CONNECTIONS}\nlisten_backlog = 1024\n"
            f"client_tls_sslmode = verify-ca\nclient_tls_ca_file = {home}/ca.pem\n"
            f"client_tls_key_file = {home}/server.key\nclient_tls_cert_file = {home}/server.pem\n"
            f"client_tls_protocols = tlsv1.3\nignore_startup_parameters = extra_float_digits\n"
            f"logfile = {home}/log\npidfile = {home}/pid\n{prepared}"
        )
        user = None
        if os.geteuid() == 0:
            user = "postgres"
            for each in (home, *home.iterdir()):
                shutil.chown(each, user)
        process = subprocess.Popen(
            [path, str(home / "pooler.ini")], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, user=user
        )
        self._stack.callback(_end, process)
        _await_port(process, port, home / "log")
        return Contender(name, self.client(port, self.driver), lambda: family(process.pid))

    def grille(self, variant: Variant) -> Contender:
        """Grille as the variant says, on a port of its own."""
        port, admin = free_port(), free_port()
        home = self.directory / variant.name
        home.mkdir()
        write_signing_key(home / "signing.pem")
        write_private(home / "card.hex", self.card_key.hex().encode())
        write_policy(home / "policy.tar.gz", variant.policies)
        attributes = f"last_bid = {self.branches}" if self.branches > 1 else "bid = 1"
        sensitive = f"""
[[keys]]
name = "card"
file = {json.dumps(str(home / "card.hex"))}
[[transformations]]
name = "card"
kind = "fpe"
template = {json.dumps(CARD)}
token_domain = "card"
key = "card"
[[columns]]
name = "public.pgbench_accounts.card"
sensitivity = "pci"
transformation = "card"
"""
        scopes = variant.scopes if variant.sensitive else (*variant.scopes, "card-not-sensitive")
        (home / "grille.toml").write_text(
            f"""
[listener]
port = {port}
certificate = {json.dumps(str(self.server))}
key = {json.dumps(str(self.server.with_suffix(".key")))}
max_connections = {CONNECTIONS}
[[trust_domains]]
name = "{TRUST_DOMAIN}"
bundle = {json.dumps(str(self.ca))}
[[identities]]
spiffe_id = "spiffe://{TRUST_DOMAIN}/driver/*"
database = "{DATABASE}"
scopes = {json.dumps(scopes)}
attributes = {{ {attributes} }}
[[databases]]
name = "{DATABASE}"
host = {json.dumps(self.cluster.host)}
port = {self.cluster.port}
database = "{DATABASE}"
role = "{SUPERUSER}"
tls = "off"
pool_size = {self.pool_size}
passthrough = {json.dumps("passthrough" in variant.scopes)}
[policy]
bundle = {json.dumps(str(home / "policy.tar.gz"))}
[audit]
directory = {json.dumps(str(home / "audit"))}
signing_key = {json.dumps(str(home / "signing.pem"))}
reads = "{variant.level}"
writes = "{variant.level}"
[admin]
port = {admin}
[process]
workers = {self.workers}
log_level = "warning"
{sensitive if variant.sensitive else ""}"""
        )
        log = self._stack.enter_context((home / "log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", "grille", "serve", "--config", str(home / "grille.toml")],
            env=grille_environment(self.plain), stdout=log, stderr=log,
        )  # fmt: skip
        self._stack.callback(_end, process)
        _await_ready(process, admin, home / "log")
        return Contender(
            variant.name, self.client(port, self.driver), lambda: family(process.pid), variant.level, variant.card
        )


@contextlib.contextmanager
def stage(*, branches: int, pool_size: int, workers: int, plain: bool) -> Iterator[Stage]:
    """PostgreSQL with its tables and a certificate authority.  Raises `NotInstalled`."""
    binaries = debian_binaries(15)
    if binaries is None:
        raise NotInstalled("Debian's postgresql-15 is not installed: the wheel's server has no TLS to compare with")
    # PostgreSQL, the poolers and Grille inherit it; p7 opens ten thousand connections.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grille-load-")))
        directory.chmod(0o711)
        authority = Authority(TRUST_DOMAIN)
        ca = directory / "ca.pem"
        authority.write_bundle(ca)
        server = authority.issue_server().write(directory, "server")
        authority.issue("driver/0").write(directory, "driver")
        cluster = stack.enter_context(
            Cluster(
                binaries, directory / "pg", tls=(server, server.with_suffix(".key"), ca),
                settings=["max_connections=1000", "shared_buffers=256MB", "fsync=on", "max_wal_size=4GB"],
                hba=[f"hostssl all {SUPERUSER} 127.0.0.1/32 trust clientcert=verify-ca"],
            )
        )  # fmt: skip
        made = Stage(
            directory, authority, cluster, ca, server, branches, pool_size, workers, plain, secrets.token_bytes(32),
            stack,
        )  # fmt: skip
        _make_tables(made)
        yield made


def _make_tables(made: Stage) -> None:
    """pgbench's own tables, with ``card`` besides; `ACCOUNTS` accounts spread over the branches."""
    environment = {
        **os.environ, "PGHOST": made.cluster.host, "PGPORT": str(made.cluster.port), "PGUSER": SUPERUSER,
    }  # fmt: skip
    psql = [program("psql"), "-qX", "-v", "ON_ERROR_STOP=1"]
    subprocess.run([*psql, "-c", f"CREATE DATABASE {DATABASE}", "postgres"], env=environment, check=True)
    subprocess.run(
        [program("pgbench"), "-i", "-q", "-I", "dt", DATABASE], env=environment, check=True, capture_output=True
    )
    rows = "".join(
        f"{aid}\t{(aid - 1) % made.branches + 1}\t0\t\t{token}\n"
        for aid, token in enumerate(tokens(made.card_key, [card(aid) for aid in range(1, ACCOUNTS + 1)]), 1)
    )
    script = (
        "ALTER TABLE pgbench_accounts ADD COLUMN card text;\n"
        f"INSERT INTO pgbench_branches (bid, bbalance) SELECT n, 0 FROM generate_series(1, {made.branches}) n;\n"
        "INSERT INTO pgbench_tellers (tid, bid, tbalance) "
        f"SELECT n, (n - 1) / 10 + 1, 0 FROM generate_series(1, {10 * made.branches}) n;\n"
        f"COPY pgbench_accounts (aid, bid, abalance, filler, card) FROM STDIN;\n{rows}\\.\n"
    )
    subprocess.run([*psql, DATABASE], input=script, text=True, env=environment, check=True)
    subprocess.run(
        [program("pgbench"), "-i", "-q", "-I", "pv", DATABASE], env=environment, check=True, capture_output=True
    )


def tokens(key: bytes, values: Sequence[str]) -> list[str]:
    """Grille's own tokens for card numbers."""
    provider = EmbeddedProvider(
        [Transformation("card", "fpe", "card", "card", "digits", CARD)], [Key("card", 1, key)]
    )  # fmt: skip
    replies = asyncio.run(provider.encode([TokenRequest("card", value) for value in values]))
    return [reply for reply in replies if not isinstance(reply, Unfit)]


def write_policy(path: Path, policies: int) -> None:
    """The bundle of loadtest/policy with so many entries in ``data.policies``, of which the last one grants."""
    with tarfile.open(POLICY) as source, tarfile.open(path, "w:gz") as target:
        for member in source:
            file = source.extractfile(member)
            content = b"" if file is None else file.read()
            if member.name.lstrip("/") == "data.json":
                data: dict[str, Any] = json.loads(content)
                others = [
                    {"prefix": f"spiffe://{TRUST_DOMAIN}/team-{number}/", "actions": ["select"]}
                    for number in range(1, policies)
                ]
                content = json.dumps({**data, "policies": others + data["policies"]}).encode()
                member.size = len(content)
            target.addfile(member, io.BytesIO(content))


def find_pgbouncer() -> str | None:
    """PgBouncer's path, or None."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def prepares(path: str) -> bool:
    """True if this PgBouncer carries prepared statements in transaction mode (1.21 and later)."""
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(?i)PgBouncer (\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= (1, 21)


def grille_environment(plain: bool) -> dict[str, str]:
    """The environment that Grille is started in."""
    return {**os.environ, "GRILLE_PLAIN": "1"} if plain else dict(os.environ)


def build(plain: bool) -> str:
    """``compiled`` or ``plain``: what a Grille that is started here says of itself."""
    command = [sys.executable, "-m", "grille", "version"]
    text = subprocess.run(
        command, env=grille_environment(plain), capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    found = re.search(r"\((\w+) build", text)
    if found is None:
        raise RuntimeError(f"`grille version` does not name its build: {text.strip()}")
    return found[1]


# processes


def family(pid: int) -> list[int]:
    """This process and all its descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            found += [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes and of their children that have ended, so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_kib(pids: Sequence[int]) -> int:
    """Resident memory of these processes (VmRSS), added up."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            total += int(found[1]) if found else 0
    return total


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""


def _await_ready(process: subprocess.Popen[bytes], admin: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        url = f"http://127.0.0.1:{admin}/readyz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"grille did not become ready:\n{_tail(log)}")


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the pooler does not listen:\n{_tail(log)}")
