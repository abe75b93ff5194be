"""The demo's chapter on IBM MQ: payments in EBCDIC, tokens on the queue, and who sees what of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grille
from grille.policies.bundles.build import DEMO
from grille.protocols.mq.payload import decoded, encoded
from grille.protocols.mq.requests import BROWSE, BROWSE_FIRST, BROWSE_NEXT, INPUT_SHARED, OUTPUT, Described
from grille.proxy.authority import Authority, write_signing_key
from grille.proxy.mq_client import Client, MqError

if TYPE_CHECKING:
    from collections.abc import Callable

STAND_IN: Final = Path(grille.__file__).parent.parent / "tests" / "mq" / "manager.py"
"""It is of the tests: there is none in an installed package."""
QUEUE: Final = "PAYMENTS.IN"
CHANNEL: Final = "APP.SVRCONN"
CCSID: Final = 1047
AGENTS: Final = {
    "mainframe bridge": ("ns/mainframe/sa/bridge", "bridge"),
    "settlement": ("ns/payments/sa/settlement", "settle"),
    "reporting": ("ns/payments/sa/reporting", "report"),
}
"""Path of the SPIFFE ID and the queue manager's user, by title."""
STRANGER: Final = "ns/lab/sa/stranger"
PAYMENTS: Final = (("4602064961395864", 1_250_00, "RENT NOVEMBER"), ("7011477744980239", 89_90, "INVOICE 4711"))
COPYBOOK: Final = """\
       01  PAYMENT.
           05  KIND            PIC X(4).
           05  ACCOUNT-NO      PIC X(16).
           05  AMOUNT          PIC S9(9)V99 COMP-3.
           05  REFERENCE       PIC X(20).
"""
_CONFIG: Final = """\
[listener]
port = 0
certificate = "grille.pem"
key = "grille.key"
[admin]
port = 0
[process]
workers = 1
drain_seconds = 1.0
[[trust_domains]]
name = "bank.example"
bundle = "agents.pem"
[mq]
port = 0
channel = "{channel}"
[[queue_managers]]
name = "QM1"
host = "127.0.0.1"
port = {port}
channel = "{channel}"
tls = "off"
[[queues]]
name = "QM1/{queue}"
layout = "payment"
quarantine = "GRILLE.QUARANTINE"
[[layouts]]
name = "payment"
format = "copybook"
copybook = "payment.cpy"
fields = [{{ name = "account", at = "ACCOUNT-NO", transformation = "account" }}]
[[keys]]
name = "fpe"
file = "fpe.key"
[[transformations]]
name = "account"
kind = "fpe"
template = '(\\d{{16}})'
token_domain = "account"
key = "fpe"
[policy]
bundle = "policy.tar.gz"
[audit]
directory = "audit"
signing_key = "signing.pem"
"""
_IDENTITY: Final = """\
[[identities]]
spiffe_id = "spiffe://bank.example/{path}"
queue_manager = "QM1"
queue_manager_user = "{user}"
"""
_READY_SECONDS: Final = 60.0


def record(account: str, cents: int, reference: str) -> bytes:
    """A payment as the mainframe writes it."""
    text = encoded("PAY ", CCSID) + encoded(account.ljust(16), CCSID)
    return text + bytes.fromhex(f"{cents:011d}C") + encoded(reference.ljust(20), CCSID)


class Chapter:
    """A queue manager's stand-in, a node of Grille before it, and four agents."""

    def __init__(
        self, directory: Path, cleanup: contextlib.ExitStack, say: Callable[[str, str], None],
        expect: Callable[[bool, str], None], stop: Callable[[subprocess.Popen[bytes]], None],
    ) -> None:  # fmt: skip
        """``say`` gets a line and its style; ``expect`` fails the demo if its first argument is false."""
        self._directory = directory / "mq"
        self._directory.mkdir()
        self._cleanup = cleanup
        self._say, self._expect, self._stop = say, expect, stop
        self._authority = Authority("bank.example")
        self.audit = self._directory / "audit"
        self._behind = self._port = 0

    def run(self) -> None:
        """Raises OSError or `MqError`; `expect` raises what it likes."""
        self._behind = self._start_stand_in()
        self._start_grille()
        asyncio.run(self._messages())

    # what runs

    def _start_stand_in(self) -> int:
        command = [sys.executable, "-m", "tests.mq.manager", "--port", "0", "--queue", QUEUE, "--queue",
                   "GRILLE.QUARANTINE"]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=STAND_IN.parent.parent.parent, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._cleanup.callback(self._stop, process)
        assert process.stdout is not None
        port = process.stdout.readline().decode().rpartition(" ")[2].strip()
        self._expect(port.isdecimal(), "the stand-in for a queue manager starts")
        return int(port)

    def _start_grille(self) -> None:
        directory = self._directory
        self._authority.write_bundle(directory / "agents.pem")
        self._authority.issue_server().write(directory, "grille")
        write_signing_key(directory / "signing.pem")
        (directory / "fpe.key").touch(mode=0o600)
        (directory / "fpe.key").write_text(secrets.token_hex(32))
        (directory / "payment.cpy").write_text(COPYBOOK)
        (directory / "policy.tar.gz").write_bytes(DEMO.read_bytes())
        config = directory / "grille.toml"
        identities = [_IDENTITY.format(path=path, user=user) for path, user in AGENTS.values()]
        config.write_text(_CONFIG.format(channel=CHANNEL, port=self._behind, queue=QUEUE) + "".join(identities))
        log = directory / "grille.log"
        root = str(Path(grille.__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "grille", "serve", "--config", str(config)], stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, env=environment, start_new_session=True,
            )  # fmt: skip
        self._cleanup.callback(self._stop, process)
        deadline = time.monotonic() + _READY_SECONDS
        while not self._port:
            self._expect(process.poll() is None and time.monotonic() < deadline, "grille serve listens for IBM MQ")
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                if '"serving"' in line:
                    self._port = json.loads(line)["mq_port"]
            time.sleep(0.05)
        self._say(f"Listening on localhost:{self._port} for the channel {CHANNEL}; configuration in {config}.", "")

    # what they do

    async def _messages(self) -> None:
        for account, cents, reference in PAYMENTS:
            await self._put("mainframe bridge", record(account, cents, reference))
            self._say(f"mainframe bridge> MQPUT {QUEUE}: {account}, {cents / 100:,.2f}, {reference} (EBCDIC)", "")
        held = await self._look_around()
        for data in held:
            self._say(f"  on the queue: {self._shown(data)}", "")
        self._expect(
            len(held) == len(PAYMENTS) and not any(encoded(account, CCSID) in data for account, _, _ in PAYMENTS
                                                   for data in held),
            "the queue holds tokens",
        )  # fmt: skip
        client = await self._connect("reporting")
        connection = await client.connect("report")
        handle = await connection.open(QUEUE, BROWSE)
        first = await connection.get(handle, BROWSE_FIRST)
        second = await connection.get(handle, BROWSE_NEXT)
        for got in (first, second):
            shown = self._shown(got.data) if got is not None else ""
            self._say(f"reporting> MQGET {QUEUE}, browsing: {shown}", "")
            self._expect(shown.startswith("************"), "a reporting agent sees masks")
        await self._denied("reporting", "gets, which takes the message away", INPUT_SHARED)
        await client.close()
        await self._around(b"not a payment")
        self._say("Somebody puts 13 bytes on the queue, around Grille, that are no payment.", "")
        client = await self._connect("settlement")
        connection = await client.connect("settle")
        handle = await connection.open(QUEUE, INPUT_SHARED)
        for payment in PAYMENTS:
            got = await connection.get(handle)
            self._expect(got is not None and got.data == record(*payment), "settlement gets what the mainframe put")
            assert got is not None
            self._say(f"settlement> MQGET {QUEUE}: {self._shown(got.data)}", "")
        self._expect(await connection.get(handle) is None, "there is no third payment")
        self._say(f"settlement> MQGET {QUEUE}: 2033, no message; the 13 bytes are in GRILLE.QUARANTINE", "")
        await client.close()
        client = await self._connect(STRANGER)
        try:
            await client.connect()
        except MqError as error:
            self._expect(error.reason == 2035, "an unknown agent is refused")
            self._say(f"stranger> MQCONN: {error.reason}, not authorized", "red")
        else:
            self._expect(False, "an unknown agent is refused")
        await client.close()

    async def _connect(self, who: str) -> Client:
        path = AGENTS[who][0] if who in AGENTS else who
        name = path.rpartition("/")[2]
        self._authority.issue(path).write(self._directory, name)
        context = ssl.create_default_context(cafile=str(self._directory / "agents.pem"))
        context.load_cert_chain(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        return await Client.open("localhost", self._port, CHANNEL, "QM1", context=context)

    async def _put(self, who: str, data: bytes) -> None:
        client = await self._connect(who)
        connection = await client.connect(who)
        handle = await connection.open(QUEUE, OUTPUT)
        await connection.put(handle, data, Described("", CCSID, 0x311, persistent=True))
        await connection.disconnect()
        await client.close()

    async def _denied(self, who: str, what: str, options: int) -> None:
        client = await self._connect(who)
        connection = await client.connect(who)
        try:
            await connection.open(QUEUE, options)
        except MqError as error:
            self._say(f"{who}> MQOPEN {QUEUE} for input, which {what}: {error.reason}, not authorized", "red")
            self._expect(error.reason == 2035, "the open is refused")
        else:
            self._expect(False, "the open is refused")
        await client.close()

    async def _look_around(self) -> list[bytes]:
        """What is on the queue, without Grille."""
        client = await Client.open("127.0.0.1", self._behind, CHANNEL, "QM1")
        connection = await client.connect()
        handle = await connection.open(QUEUE, BROWSE)
        found = []
        got = await connection.get(handle, BROWSE_FIRST)
        while got is not None:
            found.append(got.data)
            got = await connection.get(handle, BROWSE_NEXT)
        await client.close()
        return found

    async def _around(self, data: bytes) -> None:
        client = await Client.open("127.0.0.1", self._behind, CHANNEL, "QM1")
        await (await client.connect()).put1(QUEUE, data)
        await client.close()

    @staticmethod
    def _shown(data: bytes) -> str:
        amount = int(data[20:26].hex()[:-1]) / 100
        return f"{decoded(data[4:20], CCSID)}, {amount:,.2f}, {decoded(data[26:], CCSID).rstrip()}"
