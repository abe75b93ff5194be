"""``python -m tests.conformance ibm-mq-java``: IBM's Java client with the stand-in, and through Grille.

The last line is ``suite=ibm-mq-java direct=P/T grille=P/T listed=N unexplained=N``: of the cases that pass directly, as
many as pass through Grille, those that `DIFFERENT` explains, and those that nothing explains.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from grille.proxy.authority import Authority
from tests.conformance.targets import SuiteError
from tests.conformance.tools import cache, cached, must
from tests.e2e.served import until
from tests.mq.manager import CHANNEL, NAME, Manager
from tests.mq.queues import Queue
from tests.mq.window import EVERYTHING, TRUST_DOMAIN, Window, write_config, write_policy

SUITE: Final = "ibm-mq-java"
DENIED: Final = ("DENIED.QUEUE",)
LONGEST: Final = 100 * 1024 * 1024
PROGRAMS: Final = ("Cases", "JmsCases")
Outcomes: TypeAlias = dict[str, str]
"""``ok`` or what went wrong, by name of case."""
_ARTIFACTS: Final = (
    "com.ibm.mq:com.ibm.mq.allclient:9.4.2.0",
    "javax.jms:javax.jms-api:2.0.1",
    "org.json:json:20240303",
)
_SOURCES: Final = Path(__file__).parent / "java"
_SECONDS: Final = 300
_PASSWORD: Final = "changeit"


class Run(msgspec.Struct, frozen=True):
    """One way to run the cases; `options` are those of `Manager`."""

    name: str
    sharing: int = 10
    options: dict[str, bool] = {}
    tls: str = ""
    """A cipher suite of JSSE."""
    longest: int = 1_000_000
    without: tuple[str, ...] = ()
    """Cases that are left out."""


_NOT_UNSHARED: Final = (
    "jms-reconnect", "jms-temporary-queue-deleted", "jms-listener", "jms-transacted-listener",
    "jms-listener-with-selector", "jms-stop-start", "jms-two-listeners", "jms-poison", "jms-dead-letter",
)  # fmt: skip
"""What the client cannot do without shared conversations.

It does not reconnect there, it deletes temporary queues late, and a listener's session that is closed gives its last
MQGET five seconds, which is what the queue manager was told to wait: if the answer is a moment late, MQCLOSE takes it
for its own.
"""
DIFFERENT: Final = {
    "denied-channel": "Grille has one channel, and takes another name for one that does not exist: 2540, not 2035",
    "set": "attributes of a queue are not set through Grille",
    "permanent-dynamic": "a queue that was made for a client is deleted by its maker alone, while that has it open",
}
"""Cases that end otherwise through Grille, by design."""
RUNS: Final = (
    Run("plain", longest=LONGEST),
    Run("tls", tls="TLS_AES_256_GCM_SHA384", sharing=32, longest=LONGEST),
    Run("tls12", tls="TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    Run("one-conversation", sharing=0, without=_NOT_UNSHARED),
    Run("synchronous-get", options={"synchronous_get": True}),
    Run("big-endian", options={"big_endian": True}),
)


def queues() -> tuple[str | Queue, ...]:
    """What the cases expect to be there."""
    return (
        "A.QUEUE", "B.QUEUE", "BACKOUT.QUEUE",
        Queue("AN.ALIAS", target="A.QUEUE"), Queue("A.BROKEN.ALIAS", target="NO.SUCH"),
        Queue("SMALL.QUEUE", max_length=1000, max_depth=2),
        Queue("POISON.QUEUE", backout_threshold=2, backout_queue="BACKOUT.QUEUE"),
        Queue("FATAL.QUEUE", backout_threshold=2, backout_queue="NO.SUCH"),
    )  # fmt: skip


def fetch(directory: Path) -> None:
    """Fetch the client from Maven Central.  Raises `SuiteError`."""
    for program in ("java", "javac", "mvn"):
        if shutil.which(program) is None:
            raise SuiteError(f"{program} is not installed")
    for artifact in _ARTIFACTS:
        must(
            ["mvn", "-B", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={directory}/jars"], directory
        )


def fetched() -> Path | None:
    """Where the client has been fetched to, if it has."""
    return cache() / SUITE if (cache() / SUITE / ".complete").exists() else None


def compile_cases(directory: Path, scratch: Path) -> list[str]:
    """Compile the cases; the command that runs them but for options and program.  Raises `SuiteError`."""
    jars, classes = f"{directory}/jars/*", scratch / "classes"
    must(["javac", "-nowarn", "-cp", jars, "-d", classes, *_SOURCES.glob("*.java")], scratch)
    return ["java", "-Xmx2g", "-cp", f"{classes}:{jars}"]


class Stores:
    """Certificates of a run: the server's context, and what JSSE is told of the client's."""

    def __init__(self, directory: Path) -> None:
        self.authority = authority = Authority(TRUST_DOMAIN)
        server = authority.issue_server().write(directory, "server")
        authority.write_bundle(directory / "ca.pem")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(server, server.with_suffix(".key"))
        self.context.load_verify_locations(directory / "ca.pem")
        self.context.verify_mode = ssl.CERT_REQUIRED
        shown = authority.issue("client").write(directory, "client")
        key = serialization.load_pem_private_key(shown.with_suffix(".key").read_bytes(), None)
        certificates = x509.load_pem_x509_certificates(shown.read_bytes())
        sealed = serialization.BestAvailableEncryption(_PASSWORD.encode())
        (directory / "client.p12").write_bytes(
            pkcs12.serialize_key_and_certificates(b"client", key, certificates[0], certificates[1:], sealed)  # type: ignore[arg-type]
        )
        ca = x509.load_pem_x509_certificates((directory / "ca.pem").read_bytes())
        trusted = [pkcs12.PKCS12Certificate(each, b"ca%d" % number) for number, each in enumerate(ca)]
        (directory / "trust.p12").write_bytes(pkcs12.serialize_java_truststore(trusted, sealed))
        self.properties = [
            f"-Djavax.net.ssl.{name}={value}"
            for store, file in (("keyStore", "client.p12"), ("trustStore", "trust.p12"))
            for name, value in ((store, directory / file), (f"{store}Password", _PASSWORD), (f"{store}Type", "PKCS12"))
        ]


class Standing:
    """The stand-in of a run, which can be restarted: what is persistent is there again afterwards."""

    def __init__(
        self, run: Run, scratch: Path, stores: Stores | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._run, self._journal, self._now = run, scratch / "journal", now
        self._context = stores.context if stores is not None else None
        self.manager = self._made()
        self.port = 0

    def _made(self) -> Manager:
        return Manager(
            queues(),
            denied=DENIED,
            journal=self._journal,
            sharing=self._run.sharing,
            now=self._now,
            **self._run.options,
        )

    async def __aenter__(self) -> Standing:
        self.port = await self.manager.listen(self.port, self._context)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.manager.close()

    async def restart(self) -> None:
        """End it, and start it anew on the same port."""
        await self.manager.close()
        complaints, most = self.manager.complaints, self.manager.most
        self.manager = self._made()
        self.manager.complaints, self.manager.most = complaints, most
        await self.manager.listen(self.port, self._context)


async def execute(
    command: Sequence[str],
    run: Run,
    port: int,
    scratch: Path,
    restart: Callable[[], Awaitable[None]],
    *,
    stores: Stores | None = None,
    cases: Sequence[str] = (),
    programs: Sequence[str] = PROGRAMS,
) -> Outcomes:
    """Run the programs against a port, all their cases or these.  Raises `SuiteError` if they print no case."""
    properties = {
        "host": "localhost", "port": port, "manager": NAME, "channel": CHANNEL, "sharing": run.sharing,
        "longest": run.longest, "without": ",".join(run.without),
    }  # fmt: skip
    options = [f"-Dmq.{name}={value}" for name, value in properties.items()]
    if stores is not None:
        options += [f"-Dmq.cipher={run.tls}", *stores.properties]
    outcomes: Outcomes = {}
    for program in programs:
        lines: list[str] = []
        async for line in _lines([*command, *options, program, *cases], scratch, restart):
            lines.append(line)
        found = re.findall(r"^case (\S+) (ok|FAIL.*)$", "\n".join(lines), re.MULTILINE)
        if not found and not cases:
            raise SuiteError(f"{program} printed no case: {' '.join(lines[-5:])}")
        outcomes.update(found)
    return outcomes


async def _lines(command: Sequence[str], scratch: Path, restart: Callable[[], Awaitable[None]]) -> AsyncIterator[str]:
    """What a program prints; what it asks for is done."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        async with asyncio.timeout(_SECONDS):
            async for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                yield line
                if line == "ask restart":
                    await restart()
                    process.stdin.write(b"\n")
                    await process.stdin.drain()
            await process.wait()
    except TimeoutError:
        yield f"case in-time FAIL not at its end after {_SECONDS} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def direct(run: Run, command: Sequence[str], scratch: Path, *cases: str) -> Outcomes:
    """The cases against the stand-in itself; a complaint of the stand-in counts as a case that failed."""
    stores = Stores(scratch) if run.tls else None
    async with Standing(run, scratch, stores) as standing:
        outcomes = await execute(command, run, standing.port, scratch, standing.restart, stores=stores, cases=cases)
        outcomes["no-complaint"] = "; ".join(standing.manager.complaints) or "ok"
        if run.sharing == 32 and not cases:
            outcomes["one-socket"] = "ok" if standing.manager.most == 32 else f"{standing.manager.most} conversations"
    return outcomes


async def through(run: Run, command: Sequence[str], scratch: Path, *cases: str) -> Outcomes:
    """The cases through Grille, which speaks TLS with the client and none with the stand-in."""
    run = msgspec.structs.replace(run, tls=run.tls or "TLS_AES_256_GCM_SHA384")
    stores = Stores(scratch)
    async with Standing(run, scratch) as standing:
        directory = scratch / "grille"
        directory.mkdir()
        write_policy(directory / "policy.tar.gz", {"client": EVERYTHING}, denied=[f"{NAME}/{name}" for name in DENIED])
        config = write_config(
            directory,
            standing.port,
            stores.authority,
            ["client"],
            mq={"conversations": run.sharing, "max_message_bytes": LONGEST},
            listener={"tls_minimum": "1.2"},
        )
        window = await asyncio.to_thread(Window, config)

        async def restart() -> None:
            await standing.manager.close()  # which Grille passes on, as a broken connection
            await asyncio.to_thread(until, lambda: window.sessions() == 0)
            await standing.restart()

        try:
            outcomes = await execute(command, run, window.mq_port, scratch, restart, stores=stores, cases=cases)
            outcomes["no-complaint"] = "; ".join(standing.manager.complaints) or "ok"
            users = {connected.user for connected in standing.manager.connected}
            secrets = any(connected.credentials for connected in standing.manager.connected)
            outcomes["mapped-user"] = "ok" if users == {"client"} and not secrets else f"{users}, {secrets}"
            if run.sharing == 32 and not cases:
                outcomes["one-socket"] = (
                    "ok" if standing.manager.most == 32 else f"{standing.manager.most} conversations"
                )
        finally:
            await asyncio.to_thread(window.stop)
    return outcomes


def main(scratch: Path) -> int:
    """Fetch, compile and run; the exit status."""
    total: dict[str, Outcomes] = {"direct": {}, "grille": {}}
    try:
        command = compile_cases(cached(SUITE, fetch), scratch)
        for run in RUNS:
            for way, made in (("direct", direct), ("grille", through)):
                started = time.monotonic()
                place = scratch / f"{run.name}-{way}"
                place.mkdir()
                outcomes = asyncio.run(made(run, command, place))
                total[way].update({f"{run.name}:{case}": outcome for case, outcome in outcomes.items()})
                print(f"{run.name}, {way}: {_count(outcomes)} in {time.monotonic() - started:.0f} s", flush=True)
    except SuiteError as error:
        print(error, file=sys.stderr)
        return 2
    listed = unexplained = 0
    for way, outcomes in total.items():
        for case, outcome in outcomes.items():
            if outcome == "ok":
                continue
            why = DIFFERENT.get(case.partition(":")[2]) if way == "grille" else None
            passes = way == "grille" and total["direct"].get(case, "ok") == "ok"
            listed += passes and why is not None
            unexplained += passes and why is None
            print(f"{way} {case}: {outcome}{f' ({why})' if why else ''}")
    print(f"suite={SUITE} direct={_count(total['direct'])} grille={_count(total['grille'])} "
          f"listed={listed} unexplained={unexplained}")  # fmt: skip
    return 0 if not unexplained and all(outcome == "ok" for outcome in total["direct"].values()) else 1


def _count(outcomes: Outcomes) -> str:
    return f"{sum(outcome == 'ok' for outcome in outcomes.values())}/{len(outcomes)}"
