"""IBM MQ: put and get of a message, directly to the stand-in for a queue manager and through Grille.

Both times the client is Grille's own, over TLS with a client certificate; Grille speaks plain text with the stand-in,
on loopback.  The contenders alternate within each round.  A pair is an MQPUT and an MQGET outside of a unit of work.
The stand-in is of the tests, so this runs from a checkout.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import platform
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from grille.protocols.mq.requests import INPUT_SHARED, NO_SYNCPOINT, OUTPUT, SYNCPOINT, Described
from grille.proxy.mq_client import Client, Connection
from loadtest import report
from loadtest.contenders import build, cpu_seconds, grille_environment
from loadtest.report import Sample, Spread, percentile
from loadtest.scenarios import Options, RunFailed

KIB: Final = 1024
CASES: Final = {
    "1 KiB": (KIB, 1, False),
    "1 KiB, 32 conversations": (KIB, 32, False),
    "1 KiB, committed": (KIB, 1, True),
    "64 KiB": (64 * KIB, 1, False),
    "64 KiB, 32 conversations": (64 * KIB, 32, False),
}
"""Bytes of data, conversations on the one socket, and whether each pair is in two units of work."""
HEADLINE: Final = "1 KiB"
CONTENDERS: Final = ("direct", "grille")
_MESSAGES: Final = 2
"""Of a pair."""
_DEADLINE: Final = 30.0

Runs = dict[str, dict[str, list[Sample]]]


def compare(options: Options, console: Console) -> dict[str, Any]:
    """Run the scenario; the report, whose ``line`` is the contract's last line.  Raises `RunFailed`."""
    level = options.level or "power"
    runs: Runs = {about: {who: [] for who in CONTENDERS} for about in CASES}
    with contextlib.ExitStack() as stack:
        stage = _Stage(Path(stack.enter_context(tempfile.TemporaryDirectory())), options, level, stack)
        for number in range(options.rounds):
            for about in CASES:
                for who in CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]:
                    runs[about][who].append(stage.measure(about, who, options.seconds))
            console.print(f"round {number + 1}/{options.rounds}")
    for about, each in runs.items():
        console.print(table(about, each))
    made = build(options.plain)
    return {
        "scenario": "mq", "build": made, "level": level, "unit": "pairs", "rounds": options.rounds,
        "seconds": options.seconds,
        "machine": {
            "cores": os.cpu_count(), "architecture": platform.machine(), "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "cases": {
            about: {who: [dataclasses.asdict(sample) for sample in samples] for who, samples in each.items()}
            for about, each in runs.items()
        },
        "measured": True,
        "plot": report.plot(f"mq: pairs of put and get a second, {made} build, level {level}", runs),
        "line": line(runs, made),
    }  # fmt: skip


def line(runs: Runs, made: str) -> str:
    """The contract's last line: pairs a second to those of direct, and microseconds of Grille's CPU a message."""
    each = runs[HEADLINE]
    cpu = Spread.of([sample.cpu_us for sample in each["grille"]])
    ratio = report.ratio(each["grille"], each["direct"]).median
    return f"mq ratio_direct={ratio:.2f} cpu_us={cpu.median:.0f} build={made}"


def table(about: str, runs: Mapping[str, Sequence[Sample]]) -> Table:
    """Medians over rounds (lowest..highest), and the ratio to ``direct`` in the same round."""
    made = Table(title=f"mq: put and get, {about}", title_justify="left")
    made.add_column("contender", no_wrap=True)
    for heading in ("pairs a second", "p50 us", "p99 us", "CPU us a message", "to direct"):
        made.add_column(heading, justify="right")
    for who, samples in runs.items():
        made.add_row(
            who,
            Spread.of([sample.tps for sample in samples]).text(),
            Spread.of([sample.p50_us for sample in samples]).text(),
            Spread.of([sample.p99_us for sample in samples]).text(),
            Spread.of([sample.cpu_us for sample in samples]).text(1) if who == "grille" else "",
            report.ratio(samples, runs["direct"]).text(2),
        )
    return made


class _Stage:
    """The stand-in, twice over: with TLS for who goes directly, without for Grille."""

    def __init__(self, directory: Path, options: Options, level: str, stack: contextlib.ExitStack) -> None:
        from grille.proxy.authority import Authority
        from tests.mq.manager import NAME
        from tests.mq.window import EVERYTHING, TRUST_DOMAIN, write_config, write_policy

        self._directory = directory
        authority = Authority(TRUST_DOMAIN)
        server = authority.issue_server().write(directory, "manager")
        pair = directory / "manager-pair.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(server.read_bytes() + server.with_suffix(".key").read_bytes())
        self._client = authority.issue("client").write(directory, "client")
        self._name = NAME
        self._ports = {"direct": 0, "grille": 0}
        authority.write_bundle(directory / "agents.pem")
        self._ports["direct"] = self._start_manager(stack, "--tls-cert", str(pair), "--tls-ca", "agents.pem")
        behind = self._start_manager(stack)
        write_policy(directory / "policy.tar.gz", {"client": EVERYTHING})
        config = write_config(
            directory, behind, authority, ["client"], workers=options.workers, mq={"conversations": 100},
            audit={"reads": level, "writes": level},
        )  # fmt: skip
        log = directory / "grille.log"
        node = subprocess.Popen(
            [sys.executable, "-m", "grille", "serve", "--config", str(config)], env=grille_environment(options.plain),
            stdin=subprocess.DEVNULL, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        stack.callback(_end, node)
        serving = _line(log, "serving", node)
        self._ports["grille"] = serving["mq_port"]
        self._pids = [line["pid"] for line in _lines(log) if line["message"] == "worker started"]

    def _start_manager(self, stack: contextlib.ExitStack, *more: str) -> int:
        command = [
            sys.executable, "-m", "tests.mq.manager", "--port", "0", "--queue", "LOAD", "--sharing", "100", *more
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        process = subprocess.Popen(command, cwd=self._directory, stdout=subprocess.PIPE, text=True, env=environment)
        stack.callback(_end, process)
        assert process.stdout is not None
        said = process.stdout.readline()
        port = said.rstrip().rpartition(" ")[2]
        if not port.isdigit():
            raise RunFailed(f"the stand-in for a queue manager does not start: {said or 'it says nothing'}")
        return int(port)

    def measure(self, about: str, who: str, seconds: float) -> Sample:
        """One contender for so many seconds."""
        size, conversations, committed = CASES[about]
        settings = {
            "port": self._ports[who], "manager": self._name, "directory": str(self._directory), "seconds": seconds,
            "size": size, "conversations": conversations, "committed": committed,
        }  # fmt: skip
        before = cpu_seconds(self._pids)
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.mq"], input=json.dumps(settings), stdout=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RunFailed("the client failed; the reason is above")
        used = cpu_seconds(self._pids) - before
        told = json.loads(done.stdout)
        took = sorted(told["took_us"])
        return Sample(
            tps=len(took) / told["seconds"],
            p50_us=percentile(took, 0.5),
            p95_us=percentile(took, 0.95),
            p99_us=percentile(took, 0.99),
            cpu_us=used / len(took) / _MESSAGES * 1e6 if who == "grille" else 0.0,
            server_cpu_us=0.0,
            rss_mib=0.0,
        )


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def _line(log: Path, message: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + _DEADLINE
    while True:
        for line in _lines(log):
            if line["message"] == message:
                return line
        if process.poll() is not None or time.monotonic() > deadline:
            raise RunFailed(f"Grille does not start: {log.read_text()}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# In the process that loads


async def load(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs of put and get, for so many seconds: how long each took."""
    from tests.mq.manager import CHANNEL

    directory = Path(settings["directory"])
    context = ssl.create_default_context(cafile=str(directory / "agents.pem"))
    context.load_cert_chain(directory / "client.pem", directory / "client.key")
    client = await Client.open(
        "localhost", settings["port"], CHANNEL, settings["manager"], context=context, conversations=100
    )
    connections = [await client.connect("load") for _ in range(settings["conversations"])]
    data = os.urandom(settings["size"])
    took: list[float] = []
    began = time.perf_counter()
    until = began + settings["seconds"]
    await asyncio.gather(*(_pairs(each, data, until, took, settings["committed"]) for each in connections))
    seconds = time.perf_counter() - began
    await client.close()
    return {"took_us": took, "seconds": seconds}


async def _pairs(connection: Connection, data: bytes, until: float, took: list[float], committed: bool) -> None:
    handle = await connection.open("LOAD", INPUT_SHARED | OUTPUT)
    options = SYNCPOINT if committed else NO_SYNCPOINT
    described = Described(format="MQSTR")
    while (start := time.perf_counter()) < until:
        await connection.put(handle, data, described, options)
        if committed:
            await connection.commit()
        got = await connection.get(handle, options)
        if committed:
            await connection.commit()
        if got is None or len(got.data) != len(data):
            raise RunFailed("a message did not come back")
        took.append((time.perf_counter() - start) * 1e6)


if __name__ == "__main__":
    from grille.proxy.serve import loop_factory

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        json.dump(runner.run(load(json.load(sys.stdin))), sys.stdout)
