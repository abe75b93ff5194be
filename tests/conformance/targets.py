"""What a suite connects to: a PostgreSQL 15, the same behind Grille, or behind a relay that only ends TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from grille.proxy.authority import Authority, write_signing_key
from grille.proxy.demo.cluster import SUPERUSER, Cluster

TRUST_DOMAIN: Final = "conformance.example"
POLICIES: Final = Path(__file__).parent / "policy"
SETTINGS: Final = ("max_connections=200", "max_prepared_transactions=10")
_SSL_REQUEST, _GSSENC_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102

Session: TypeAlias = tuple[str, str]
"""Role and database."""
Kind: TypeAlias = Literal["direct", "relay", "grille"]


class SuiteError(Exception):
    """A suite could not be fetched, built or started; the message says where to look."""


@dataclass(frozen=True)
class Target:
    """Where a suite connects; `certificate` holds libpq settings, empty for plain TCP."""

    host: str
    port: int
    certificate: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """libpq's variables."""
        names = {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY"}
        tls = {names[key]: value for key, value in self.certificate.items()} or {"PGSSLMODE": "disable"}
        return {"PGHOST": self.host, "PGPORT": str(self.port), "PGGSSENCMODE": "disable", **tls}

    def conninfo(self, user: str, database: str) -> str:
        """A libpq connection string."""
        tls = self.certificate or {"sslmode": "disable"}
        settings = {"host": self.host, "port": self.port, "user": user, "dbname": database, **tls}
        return " ".join(f"{key}={value}" for key, value in settings.items())


def server(binaries: Path, directory: Path, hba: Sequence[str] = ()) -> Cluster:
    """A new server on loopback, trust authentication, ``fsync=off``."""
    return Cluster(binaries, directory / "pg", tcp=True, settings=SETTINGS, hba=hba)


@contextlib.contextmanager
def reach(
    kind: Kind, cluster: Cluster, directory: Path, *, policy: str, sessions: Sequence[Session], own_certificate: bool
) -> Iterator[Target]:
    """The way to `cluster`.

    A suite that shows a certificate of its own gets that of ``sessions[0]``.  Any other speaks plain TCP to a shim that
    shows the certificate of the role and database that the startup packet asks for.
    """
    if kind == "direct":
        yield Target("localhost", cluster.port)
        return
    with contextlib.ExitStack() as stack:
        authority = Authority(TRUST_DOMAIN)
        ca = directory / "ca.pem"
        authority.write_bundle(ca)
        front = authority.issue_server().write(directory, "front")
        # The last one is nobody's: a role and database that no session names is refused by the proxy, not by the shim.
        certificates = [authority.issue(f"session/{number}").write(directory, f"session{number}")
                        for number in range(len(sessions) + 1)]  # fmt: skip
        if kind == "relay":
            port = stack.enter_context(_relay(cluster.port, ca, front))
        else:
            port = stack.enter_context(_grille(cluster, directory, policy, sessions))
        if own_certificate:
            key = str(certificates[0].with_suffix(".key"))
            settings = {"sslrootcert": str(ca), "sslcert": str(certificates[0]), "sslkey": key}
            yield Target("localhost", port, {"sslmode": "verify-full", **settings})
            return
        contexts = [_client_context(ca, certificate) for certificate in certificates]
        by_session = dict(zip(sessions, contexts, strict=False))
        yield Target("localhost", stack.enter_context(_shim(port, by_session, contexts[-1])))


# Grille


@contextlib.contextmanager
def _grille(cluster: Cluster, directory: Path, policy: str, sessions: Sequence[Session]) -> Iterator[int]:
    port, admin = _free_port(), _free_port()
    write_signing_key(directory / "signing.pem")
    text = f"""
[listener]
host = "127.0.0.1"
port = {port}
certificate = "front.pem"
key = "front.key"
max_message_bytes = {256 * 1024 * 1024}
max_statement_bytes = {64 * 1024 * 1024}
[[trust_domains]]
name = "{TRUST_DOMAIN}"
bundle = "ca.pem"
[policy]
bundle = {json.dumps(str(POLICIES / f"{policy}.tar.gz"))}
[audit]
directory = "audit"
signing_key = "signing.pem"
reads = "process"
writes = "process"
[admin]
port = {admin}
[process]
workers = 1
log_level = "info"
"""
    for number, (role, database) in enumerate(sessions):
        text += f"""
[[identities]]
spiffe_id = "spiffe://{TRUST_DOMAIN}/session/{number}"
database = "{number}"
[[databases]]
name = "{number}"
host = {json.dumps(cluster.host)}
port = {cluster.port}
database = {json.dumps(database)}
role = {json.dumps(role)}
tls = "off"
pool_size = 90
connect_timeout = 60
statement_timeout = 600
passthrough = true
catalog_poll = 600
"""
    config = directory / "grille.toml"
    config.write_text(text)
    log = (directory / "grille.log").open("wb")
    command = [sys.executable, "-m", "grille", "serve", "--config", str(config)]
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _await_port(process, port)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Readiness is not waited for: it wants every database, and a suite makes some of its own later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SuiteError("grille does not listen; see grille.log")


# plain TCP to TLS (the shim) and TLS to plain TCP (the relay)


_Handler: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.contextmanager
def _shim(port: int, contexts: dict[Session, ssl.SSLContext], nobody: ssl.SSLContext) -> Iterator[int]:
    """Plain PostgreSQL in; TLS with a certificate out.  A CancelRequest goes on in plain text, as libpq sends it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packet, code = await _first_packet(reader)
        while code in (_SSL_REQUEST, _GSSENC_REQUEST):
            writer.write(b"N")
            packet, code = await _first_packet(reader)
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(upstream):
            if code != _CANCEL_REQUEST:
                upstream.write((8).to_bytes(4, "big") + _SSL_REQUEST.to_bytes(4, "big"))
                if await upstream_reader.readexactly(1) != b"S":
                    return
                await upstream.start_tls(_context(packet), server_hostname="localhost")
            upstream.write(packet)
            await _join(reader, writer, upstream_reader, upstream)

    def _context(packet: bytes) -> ssl.SSLContext:
        words = packet[8:].split(b"\0")
        given = {name.decode(): value.decode() for name, value in zip(words[::2], words[1::2], strict=False)}
        user = given.get("user", "")
        return contexts.get((user, given.get("database") or user), nobody)

    with _serving(serve) as own:
        yield own


@contextlib.contextmanager
def _relay(port: int, ca: Path, certificate: Path) -> Iterator[int]:
    """TLS with a client certificate in, plain PostgreSQL out, every byte untouched."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packet, code = await _first_packet(reader)
        while code == _GSSENC_REQUEST:
            writer.write(b"N")
            packet, code = await _first_packet(reader)
        if code == _SSL_REQUEST:
            writer.write(b"S")
            await writer.start_tls(context)
            packet, code = await _first_packet(reader)
        elif code != _CANCEL_REQUEST:
            return
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(upstream):
            upstream.write(packet)
            await _join(reader, writer, upstream_reader, upstream)

    with _serving(serve) as own:
        yield own


def _client_context(ca: Path, certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


async def _first_packet(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    head = await reader.readexactly(8)
    return head + await reader.readexactly(int.from_bytes(head[:4], "big") - 8), int.from_bytes(head[4:], "big")


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    upstream_reader: asyncio.StreamReader,
    upstream: asyncio.StreamWriter,
) -> None:
    """Copy both ways until either end closes."""

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()

    tasks = [asyncio.create_task(copy(reader, upstream)), asyncio.create_task(copy(upstream_reader, writer))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _serving(handler: _Handler) -> Iterator[int]:
    """Serve on a free port of loopback, in a thread of its own, until the block ends."""
    loop = asyncio.new_event_loop()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                await handler(reader, writer)
        finally:
            writer.close()

    listening = loop.run_until_complete(asyncio.start_server(guarded, "127.0.0.1", 0, backlog=1000))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        listening.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


__all__ = ["SUPERUSER", "Kind", "Session", "SuiteError", "Target", "reach", "server"]
