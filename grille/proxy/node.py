"""The node: one supervisor that keeps worker processes alive, and the local datagrams between them.

The supervisor carries no agent's traffic.  It holds the listening port (SO_REUSEPORT, so that every worker can listen
on it), starts one worker a core, restarts one that dies, passes signals on, and answers the admin listener for all of
them.  A worker lives as long as its standard input is open, so none outlives a killed supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Union

import msgspec

import grille
from grille import __version__, build
from grille.proxy import config as configuration
from grille.proxy import keys, quota
from grille.proxy.config import MOST_WORKERS, Config, encode
from grille.proxy.telemetry import Admin, Family, exposition

if TYPE_CHECKING:
    from grille.proxy.bundle_fetch import BundleFetch

log = logging.getLogger("grille.node")

UNUSABLE: Final = 2
"""Exit status of a worker that can never start with this configuration."""
REPORT_SECONDS: Final = 2.0
_GRACE_SECONDS: Final = 5.0
_BACKOFF: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
_STEADY_SECONDS: Final = 30.0
_COMMAND: Final = (sys.executable, "-P", "-m", "grille.proxy.serve")
_DATAGRAM_BYTES: Final = 1024 * 1024


# local datagrams


class _Datagram(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=str.lower):
    """One message between processes of a node."""


class Cancel(_Datagram, frozen=True):
    """To a worker: cancel what this session runs, if the secret is its own."""

    process_id: int
    secret: bytes

    def __repr__(self) -> str:
        return f"Cancel(process_id={self.process_id}, secret=<hidden>)"


class Started(_Datagram, frozen=True):
    """To the node: this worker accepts connections."""

    worker: int


class Ask(_Datagram, frozen=True):
    """To a worker: report."""

    number: int


class Report(_Datagram, frozen=True):
    """To the node: the answer to `Ask`."""

    number: int
    worker: int
    reasons: tuple[str, ...]
    """Why this worker is not ready; empty if it is."""
    metrics: tuple[Family, ...]


class Drain(_Datagram, frozen=True):
    """To a worker: finish transactions, take no new ones, end after so many seconds at most."""

    seconds: float


class Reload(_Datagram, frozen=True):
    """To a worker: look at the policy bundle and the certificates now."""


Datagram = Union[Cancel, Started, Ask, Report, Drain, Reload]


class LocalSocket:
    """One process's end: a unix datagram socket in a directory that only this user can enter.

    Datagrams that do not decode to exactly one of the types above are ignored and counted in `ignored`; so are those
    that could not be sent.
    """

    def __init__(self, directory: Path, name: str, receive: Callable[[Datagram], None]) -> None:
        """Binds ``directory/name``.  Must be called with the event loop running.  Raises OSError."""
        self._directory = directory
        self._path = directory / name
        self._receive = receive
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Datagram] = msgspec.msgpack.Decoder(Datagram)
        self.ignored = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _DATAGRAM_BYTES)
        self._path.unlink(missing_ok=True)
        self._socket.bind(str(self._path))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def send(self, name: str, datagram: Datagram) -> bool:
        """Send to the process called ``name``; False if it is not there or does not read."""
        try:
            self._socket.sendto(self._encoder.encode(datagram), str(self._directory / name))
        except OSError:
            self.ignored += 1
            return False
        return True

    def close(self) -> None:
        """Stop receiving and remove the socket."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._path.unlink(missing_ok=True)

    def _readable(self) -> None:
        for _ in range(64):
            try:
                data = self._socket.recv(_DATAGRAM_BYTES)
            except OSError:
                return
            try:
                datagram = self._decoder.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.ignored += 1
                continue
            self._receive(datagram)


NODE: Final = "node"


def worker_name(number: int) -> str:
    """The name of a worker's socket."""
    return f"worker-{number}"


# the supervisor


class Assignment(msgspec.Struct, frozen=True):
    """What a worker reads, as one JSON line, from its standard input."""

    number: int
    workers: int
    directory: str
    quotas: int
    """Descriptor of the node's counters: `grille.proxy.quota`."""
    salt: bytes
    """Under which they keep keys."""
    config: msgspec.Raw


class Node:
    """``grille serve``: `run` returns the exit status."""

    def __init__(self, config: Config) -> None:
        """Must be called with the event loop running.  Raises `ConfigError`."""
        self._config = config
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count = config.process.workers or min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._started: set[int] = set()
        self._restarts = 0
        self._draining = False
        self._status = 0
        self._ask = 0
        self._awaited = 0
        self._reports: dict[int, Report] = {}
        self._all_reported: asyncio.Future[None] | None = None
        self._report_lock = asyncio.Lock()
        self._announced = False
        self._salt = keys.quota_salt(config)
        self._fetch: BundleFetch | None = None
        if config.policy.bundle_url:
            from grille.proxy.bundle_fetch import BundleFetch  # its HTTP client takes a while to import

            self._fetch = BundleFetch(config.policy)
        self._addresses: dict[str, Any] = {}

    async def run(self) -> int:
        """Serve until a signal ends it.  Raises OSError if a port cannot be had."""
        async with contextlib.AsyncExitStack() as stack:
            listener = self._config.listener
            reservation, port = _reserve("listener", listener)
            stack.callback(reservation.close)
            listener = msgspec.structs.replace(listener, port=port)
            self._config = msgspec.structs.replace(self._config, listener=listener)
            if self._config.queue_managers:
                mq_reservation, mq_port = _reserve("mq", self._config.mq)
                stack.callback(mq_reservation.close)
                self._config = msgspec.structs.replace(
                    self._config, mq=msgspec.structs.replace(self._config.mq, port=mq_port)
                )
                self._addresses = {"mq_host": self._config.mq.host, "mq_port": mq_port}
            self._quotas = quota.create(self._count, self._config.quotas.keys)
            stack.callback(os.close, self._quotas)
            self._counters = quota.Table(self._quotas, self._count, self._config.quotas.keys)
            directory = Path(tempfile.mkdtemp(prefix="grille-"))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            local = self._local = LocalSocket(directory, NODE, self._received)
            stack.callback(local.close)
            admin = Admin(self._metrics, self._readiness)
            stack.push_async_callback(admin.close)
            try:
                admin_port = await admin.start(self._config.admin.host, self._config.admin.port)
            except OSError as error:
                raise _address_error("admin", self._config.admin, error) from None
            self._addresses |= {"host": listener.host, "port": listener.port, "admin_port": admin_port}
            fields = {"version": __version__, "build": build(), "workers": self._count, "pid": os.getpid()}
            log.info("starting", extra={"fields": {**fields, "admin_port": admin_port}})
            loop = asyncio.get_running_loop()
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(name, self._drain)
            loop.add_signal_handler(signal.SIGHUP, self._reload)
            if self._fetch is not None:
                if not await self._fetch.fetch() and not self._fetch.has_one:
                    log.error("there is no policy bundle to start with")
                    return UNUSABLE
                stack.push_async_callback(_cancelled, asyncio.create_task(self._fetch.watch()))
            keepers = [asyncio.create_task(self._keep(number, directory)) for number in range(self._count)]
            stack.push_async_callback(self._end, keepers)
            await asyncio.wait([self._ended, *keepers], return_when=asyncio.FIRST_COMPLETED)
            if not self._draining:
                self._drain()
            limit = self._config.process.drain_seconds + _GRACE_SECONDS
            _, late = await asyncio.wait(keepers, timeout=limit)
            if late:
                log.error("workers did not end in time and are killed", extra={"fields": {"workers": len(late)}})
        log.info("stopped", extra={"fields": {"status": self._status}})
        return self._status

    async def _end(self, keepers: list[asyncio.Task[None]]) -> None:
        self._draining = True
        if not self._ended.done():
            self._ended.set_result(None)
        self._kill()
        await asyncio.wait(keepers)

    # workers

    async def _keep(self, number: int, directory: Path) -> None:
        """Start a worker, and start it again when it dies, until the node drains."""
        failures = 0
        assignment = msgspec.json.encode(
            Assignment(number, self._count, str(directory), self._quotas, self._salt, msgspec.Raw(encode(self._config)))
        )
        while not self._draining:
            begun = time.monotonic()
            try:
                status = await self._run_worker(number, assignment)
            except OSError as error:
                log.error("a worker cannot be started", extra={"fields": {"worker": number, "error": error.strerror}})
                status = None
            if self._draining:
                return
            if status == UNUSABLE and not self._announced:
                self._status = UNUSABLE
                return
            failures = 0 if time.monotonic() - begun > _STEADY_SECONDS else failures + 1
            delay = _BACKOFF[min(failures, len(_BACKOFF)) - 1] if failures else 0.0
            self._restarts += 1
            fields = {"worker": number, "status": status, "restart_in_seconds": delay}
            log.error("a worker ended unexpectedly", extra={"fields": fields})
            await asyncio.wait([self._ended], timeout=delay)

    async def _run_worker(self, number: int, assignment: bytes) -> int:
        """One life of a worker; its exit status.  Raises OSError if it cannot be started."""
        environment = {**os.environ, "PYTHONPATH": _import_path()}
        process = await asyncio.create_subprocess_exec(
            *_COMMAND, stdin=asyncio.subprocess.PIPE, process_group=0, env=environment, pass_fds=(self._quotas,)
        )
        self._processes[number] = process
        try:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.write(assignment + b"\n")
                    await process.stdin.drain()
            if self._draining:
                process.terminate()
            return await process.wait()
        finally:
            if process.stdin is not None:
                process.stdin.close()
            self._started.discard(number)
            self._counters.forget(number)
            del self._processes[number]

    def _drain(self) -> None:
        """First signal: drain.  Second: end now."""
        if self._draining:
            self._kill()
            return
        self._draining = True
        if not self._ended.done():
            self._ended.set_result(None)
        seconds = self._config.process.drain_seconds
        log.info("draining", extra={"fields": {"seconds": seconds}})
        for number, process in self._processes.items():
            if not self._local.send(worker_name(number), Drain(seconds)):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()

    def _reload(self) -> None:
        log.info("reloading the policy bundle and the certificates")
        if self._fetch is not None:
            self._fetch.ask()
        for number in self._processes:
            self._local.send(worker_name(number), Reload())

    def _kill(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    # reports

    def _received(self, datagram: Datagram) -> None:
        if isinstance(datagram, Started):
            self._started.add(datagram.worker)
            if len(self._started) == self._count and not self._announced:
                self._announced = True
                fields = {
                    "version": __version__,
                    "build": build(),
                    "workers": self._count,
                    "pid": os.getpid(),
                    **self._addresses,
                }
                log.info("serving", extra={"fields": fields})
        elif isinstance(datagram, Report) and datagram.number == self._ask:
            self._reports[datagram.worker] = datagram
            if len(self._reports) == self._awaited and self._all_reported and not self._all_reported.done():
                self._all_reported.set_result(None)

    async def _gather(self) -> dict[int, Report]:
        """The report of every worker that answers in time."""
        async with self._report_lock:
            self._ask += 1
            self._reports = {}
            self._all_reported = asyncio.get_running_loop().create_future()
            ask = Ask(self._ask)
            self._awaited = sum(self._local.send(worker_name(number), ask) for number in sorted(self._processes))
            if self._awaited:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._all_reported, REPORT_SECONDS)
            return dict(self._reports)

    async def _metrics(self) -> bytes:
        reports = await self._gather()
        up = tuple(
            ("grille_worker_up", {"worker": str(number)}, float(number in reports)) for number in range(self._count)
        )
        own = (
            Family("grille_worker_up", "1 if the worker answers.", "gauge", up),
            _single("grille_worker_restarts", "Workers that ended unexpectedly.", "counter", self._restarts),
            _single("grille_draining", "1 while the node drains.", "gauge", self._draining),
            *self._fetch_metrics(),
            _single("grille_build_info", "1, with version and build.", "gauge", 1, version=__version__, build=build()),
        )
        return exposition({"": own, **{str(number): reports[number].metrics for number in sorted(reports)}})

    def _fetch_metrics(self) -> tuple[Family, ...]:
        fetch = self._fetch
        if fetch is None:
            return ()
        return (
            _single("grille_bundle_fetch_failures", "Bundle fetches that failed.", "counter", fetch.failures),
            _single(
                "grille_bundle_fetch_last_success_seconds",
                "When the bundle server was last heard of with a usable bundle (Unix time).",
                "gauge",
                fetch.last_success,
            ),
        )

    async def _readiness(self) -> list[str]:
        if self._draining:
            return ["draining"]
        reports = await self._gather()
        reasons = []
        for number in range(self._count):
            if number in reports:
                reasons += [f"worker {number}: {reason}" for reason in reports[number].reasons]
            else:
                reasons.append(f"worker {number}: does not answer")
        return reasons


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _address_error(
    name: str, section: configuration.Listener | configuration.Mq | configuration.Admin, error: OSError
) -> OSError:
    text = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
    return OSError(error.errno, f"{name} address {section.host}:{section.port} {text}")


def _import_path() -> str:
    """Where a worker finds this very Grille, whatever directory the node was started in."""
    root = str(Path(grille.__file__).parent.parent)
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))


def _single(name: str, text: str, kind: str, value: float, **labels: str) -> Family:
    return Family(name, text, kind, ((f"{name}_total" if kind == "counter" else name, labels, float(value)),))


def _reserve(name: str, section: configuration.Listener | configuration.Mq) -> tuple[socket.socket, int]:
    """Bind a listening address without listening, so that all workers share its port, chosen here if it is 0.

    Raises OSError.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        section.host, section.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    reservation = socket.socket(family, kind, protocol)
    try:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind(address)
    except OSError as error:
        reservation.close()
        raise _address_error(name, section, error) from None
    return reservation, int(reservation.getsockname()[1])


def serve(config: Config) -> int:
    """Run a node until a signal ends it; the exit status."""

    async def run() -> int:
        return await Node(config).run()

    return asyncio.run(run())
