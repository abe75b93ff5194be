"""What is measured: scripts, numbers of agents, and how one run of each is made and counted."""

from __future__ import annotations

import filecmp
import itertools
import math
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from loadtest.contenders import Contender, Stage, cpu_seconds, program, resident_kib
from loadtest.drivers import DEPTH, Driver, ServerError
from loadtest.report import Sample, percentile


@dataclass(frozen=True)
class Case:
    """One script under one mode.  A scenario has one case or two."""

    name: str
    about: str
    run: Callable[[Stage, Contender, float], Sample]
    """Measures one contender for so many seconds.  Raises `RunFailed`."""
    prepared: bool = False
    """Needs prepared statements, which PgBouncer has in transaction mode since 1.21."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    scenario: str
    rounds: int = 5
    seconds: float = 5.0
    level: str | None = None
    workers: int = 1
    plain: bool = False
    only: tuple[str, ...] = ()
    """Names of contenders; empty means all."""
    poolers: tuple[tuple[str, str], ...] = ()
    """Name and path of programs that read PgBouncer's configuration."""
    agents: int = 10_000
    """Agents that p7 connects; identities and statement shapes that p9 ends with."""


@dataclass(frozen=True)
class Scenario:
    """A set of cases over one set of tables; without cases, one of loadtest/agents.py."""

    cases: tuple[Case, ...] = ()
    about: str = ""
    level: str = "power"
    branches: int = 1
    pool_size: int = 16
    """Upstream connections of each pooler and of Grille."""
    strict: bool = False
    """Grille is measured at level ``strict`` besides."""
    scopes: tuple[str, ...] = ()
    """Scopes that every Grille of this scenario has."""
    variants: bool = True
    """Grille with one FF1 column, and with each control off, are measured besides."""
    unit: str = "transactions"


class RunFailed(Exception):
    """A contender could not run a script; the text says why."""


SELECT = "\\set aid random(1, 100000)\nSELECT abalance{card} FROM pgbench_accounts WHERE aid = :aid;\n"
"""pgbench's select-only script; ``{card}`` is the column ``card`` for the contender that decodes it."""

TRANSACTION = (
    "\\set aid random(1, 100000)\nBEGIN;\nSELECT abalance{card} FROM pgbench_accounts WHERE aid = :aid;\nCOMMIT;\n"
)

BRANCHES = 64
"""Branches of the writes scenario: with one, 64 agents wait for one row."""

WRITES = f"""\\set aid random(1, 100000)
\\set bid random(1, {BRANCHES})
\\set tid random(1, {10 * BRANCHES})
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance{{card}} FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""
"""pgbench's tpcb-like script."""


def _rows(count: int) -> str:
    return (
        f"\\set aid random(1, {100_000 - count})\n"
        f"SELECT aid, abalance{{card}} FROM pgbench_accounts WHERE aid >= :aid ORDER BY aid LIMIT {count};\n"
    )


PATIENCE = 90
"""Seconds that pgbench may take beyond the time it was given; then its run has failed."""


@dataclass(frozen=True)
class Pgbench:
    """One pgbench script, run by so many agents."""

    script: str
    mode: str = "simple"
    clients: int = 64

    def __call__(self, stage: Stage, contender: Contender, seconds: float) -> Sample:
        """Measure.  CPU is counted from pgbench's first progress line to its last, so connecting is not in it."""
        wanted = max(round(seconds), 1) + 1
        while True:
            # pgbench's clock runs while it connects.
            duration = wanted + math.ceil(stage.connecting.get(contender.name, 0.0))
            sample, connecting = self._run(stage, contender, duration)
            stage.connecting[contender.name] = max(connecting, stage.connecting.get(contender.name, 0.0))
            if sample is not None and duration - connecting >= wanted - 1:
                return sample
            if duration > wanted + 120:
                raise RunFailed("connecting took two minutes")
            if sample is None:
                stage.connecting[contender.name] = float(duration)

    def _run(self, stage: Stage, contender: Contender, duration: int) -> tuple[Sample | None, float]:
        """One run of pgbench, and the seconds that it took to connect; no sample if nothing else was done."""
        script = stage.directory / "script.sql"
        script.write_text(self.script.format(card=", card" if contender.card else ""))
        for old in stage.directory.glob("latency.*"):
            old.unlink()
        command = [
            program("pgbench"), "-n", "-M", self.mode, "-c", str(self.clients), "-j", str(min(self.clients, 2)),
            "-P", "1", "-T", str(duration), "-l", "--log-prefix", str(stage.directory / "latency"), "-f", str(script),
        ]  # fmt: skip
        meter = Meter(stage, contender)
        before = meter.read()
        marks: list[tuple[float, float, Reading]] = []
        errors = []
        with subprocess.Popen(
            command, env=contender.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None and process.stdout is not None
            watchdog = threading.Timer(duration + PATIENCE, process.kill)
            watchdog.start()
            for text in process.stderr:
                progress = parse_progress(text)
                if progress is None:
                    errors.append(text.strip())
                else:
                    marks.append((*progress, meter.read()))
            output = process.stdout.read()
            watchdog.cancel()
        after = meter.read()
        if process.returncode or number(r"failed transactions: ([0-9]+)", output):
            found = [text for text in errors if "error" in text.lower()]
            raise RunFailed((found or errors or [f"pgbench did not end within {duration + PATIENCE} seconds"])[0])
        connecting = number(r"initial connection time = ([0-9.]+) ms", output) / 1000
        ordered = latencies(stage.directory.glob("latency.*"))
        count = number(r"transactions actually processed: ([0-9]+)", output)
        steady = sum((b[0] - a[0]) * b[1] for a, b in itertools.pairwise(marks))
        if steady:
            count, before, after = steady, marks[0][2], marks[-1][2]
        if not count or not ordered:
            return None, connecting
        tps = number(r"tps = ([0-9.]+)", output)
        shares = percentile(ordered, 0.50), percentile(ordered, 0.95), percentile(ordered, 0.99)
        return meter.sample(tps, shares, before, after, count * statements(self.script)), connecting


@dataclass(frozen=True)
class Pipelines:
    """4 agents, each with one pipeline of prepared selects in flight."""

    sync_each: bool

    def __call__(self, stage: Stage, contender: Contender, seconds: float) -> Sample:
        """Measure; the latency is that of a whole pipeline."""
        meter = Meter(stage, contender)
        try:
            with Driver(contender.settings, stage.agents(1), 4) as driver:
                driver.command({"do": "prepare", "card": contender.card})
                driver.command({"do": "pipelines", "seconds": 0.2, "sync_each": self.sync_each})
                return driven(meter, driver, {"do": "pipelines", "seconds": seconds, "sync_each": self.sync_each})
        except ServerError as error:
            raise RunFailed(str(error)) from None


COPIED = 400_000
"""Rows of 260 bytes in COPY's text format: 104 MB."""


@dataclass(frozen=True)
class Copy:
    """One psql, one COPY; the unit is a megabyte."""

    into: bool

    def __call__(self, stage: Stage, contender: Contender, seconds: float) -> Sample:
        """Measure one COPY, however long it takes, and check that nothing is missing."""
        data = _copied(stage)
        if self.into:
            self._psql(stage.direct(), "TRUNCATE copied_in")
        meter = Meter(stage, contender)
        before = meter.read()
        if self.into:
            with data.open("rb") as source:
                self._psql(contender, "COPY copied_in FROM STDIN", stdin=source)
        else:
            with (stage.directory / "copied.out").open("wb") as target:
                self._psql(contender, "COPY copied TO STDOUT", stdout=target)
        after = meter.read()
        if self.into:
            if self._psql(stage.direct(), "SELECT count(*), sum(id::int8) FROM copied_in") != self._psql(
                stage.direct(), "SELECT count(*), sum(id::int8) FROM copied"
            ):
                raise RunFailed("COPY FROM lost rows")
        elif not filecmp.cmp(data, stage.directory / "copied.out", shallow=False):
            raise RunFailed("COPY TO gave other bytes than the table holds")
        took = after.at - before.at
        megabytes = data.stat().st_size / 1e6
        return meter.sample(megabytes / took, (took * 1e6,) * 3, before, after, megabytes)

    def _psql(
        self, contender: Contender, statement: str, stdin: IO[bytes] | int = subprocess.DEVNULL,
        stdout: IO[bytes] | int = subprocess.PIPE,
    ) -> str:  # fmt: skip
        result = subprocess.run(
            [program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement], env=contender.environment,
            stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
        if result.returncode:
            raise RunFailed(" ".join(result.stderr.decode(errors="replace").split()) or "psql failed")
        return result.stdout.decode() if result.stdout else ""


def _copied(stage: Stage) -> Path:
    """The file that is copied, and at the first time the tables that hold it and receive it."""
    data = stage.directory / "copied.txt"
    if not data.exists():
        line = "x" * 250
        data.write_text("".join(f"{number:09d}\t{line}\n" for number in range(1, COPIED + 1)))
        make = [
            *("-c", "CREATE UNLOGGED TABLE copied (id text, filler text)"),
            *("-c", "CREATE UNLOGGED TABLE copied_in (LIKE copied)"), "-c", f"\\copy copied FROM '{data}'",
        ]  # fmt: skip
        subprocess.run([program("psql"), "-Xq", *make], env=stage.direct().environment, check=True)
    return data


def driven(meter: Meter, driver: Driver, command: dict[str, Any]) -> Sample:
    """One command of the raw driver, measured.  Raises `ServerError`."""
    before = meter.read()
    figures = driver.command(command)
    after = meter.read()
    ordered = (figures["p50_us"], figures["p95_us"], figures["p99_us"])
    return meter.sample(figures["tps"], ordered, before, after, figures["count"])


def statements(script: str) -> int:
    """SQL statements of a pgbench script."""
    return sum(text.rstrip().endswith(";") for text in script.splitlines())


def parse_progress(text: str) -> tuple[float, float] | None:
    """Seconds and transactions a second of one of pgbench's progress lines, or None for another line."""
    found = re.match(r"progress: ([0-9.]+) s, ([0-9.]+) tps", text)
    return (float(found[1]), float(found[2])) if found else None


def latencies(logs: Iterable[Path]) -> list[float]:
    """Latencies in microseconds, sorted, from pgbench's logs (client, number, time, script, epoch, microseconds)."""
    found = [float(text.split(b" ", 3)[2]) for path in logs for text in path.read_bytes().splitlines()]
    found.sort()
    return found


def number(pattern: str, text: str) -> float:
    """The number that the pattern's group finds, or 0."""
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


@dataclass(frozen=True)
class Reading:
    """CPU spent so far, in seconds, and resident memory."""

    proxy: float
    server: float
    rss_kib: int
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Meter:
    """Reads what the contender's processes and PostgreSQL's have used."""

    stage: Stage
    contender: Contender

    def read(self) -> Reading:
        """Now."""
        pids = self.contender.pids()
        return Reading(cpu_seconds(pids), cpu_seconds(self.stage.server_pids()), resident_kib(pids))

    def sample(
        self, tps: float, latency_us: tuple[float, float, float], before: Reading, after: Reading, count: float
    ) -> Sample:
        """The figures of a run that made ``count`` statements between two readings."""
        return Sample(
            tps=tps,
            p50_us=latency_us[0],
            p95_us=latency_us[1],
            p99_us=latency_us[2],
            cpu_us=(after.proxy - before.proxy) / count * 1e6,
            server_cpu_us=(after.server - before.server) / count * 1e6,
            rss_mib=after.rss_kib / 1024,
        )


SCENARIOS: dict[str, Scenario] = {
    "p1": Scenario((Case("p1", "64 agents, pgbench -S, simple protocol", Pgbench(SELECT)),)),
    "p1p": Scenario((Case("p1p", "64 agents, pgbench -S, prepared", Pgbench(SELECT, mode="prepared"), prepared=True),)),
    "p1tx": Scenario((Case("p1tx", "64 agents, BEGIN, SELECT, COMMIT, simple protocol", Pgbench(TRANSACTION)),)),
    "writes": Scenario(
        (Case("writes", f"64 agents, tpcb-like, {BRANCHES} branches, simple protocol", Pgbench(WRITES)),),
        branches=BRANCHES,
        pool_size=64,
        strict=True,
    ),
    "p4": Scenario((Case("p4", "1 agent, pgbench -S, simple protocol", Pgbench(SELECT, clients=1)),), level="process"),
    "p2": Scenario(
        (
            Case("p2", f"4 agents, pipelines of {DEPTH}, one Sync each pipeline", Pipelines(False), prepared=True),
            Case("p2-each", f"4 agents, pipelines of {DEPTH}, one Sync each statement", Pipelines(True), prepared=True),
        ),
        unit="statements",
    ),
    "p7": Scenario(about="200 agents at an equal load, alone and beside many", variants=False, unit="statements"),
    "p9": Scenario(about="more identities, statement shapes, policies", variants=False, unit="statements"),
    "ff1": Scenario(about="FF1 by itself, without a database", variants=False, unit="values"),
    "mq": Scenario(about="IBM MQ: put and get of a message", variants=False, unit="pairs"),
    "controls": Scenario(about="what each control adds, without sockets", variants=False, unit="calls"),
    "copy": Scenario(
        (Case("out", "COPY TO, 104 MB", Copy(False)), Case("in", "COPY FROM, 104 MB", Copy(True))),
        scopes=("passthrough",),
        variants=False,
        unit="megabytes",
    ),
    "rows8": Scenario((Case("rows8", "64 agents, 8 rows a statement, simple protocol", Pgbench(_rows(8))),)),
    "rows1000": Scenario((Case("rows1000", "64 agents, 1,000 rows a statement", Pgbench(_rows(1000))),)),
}
