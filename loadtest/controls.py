"""What each control costs by itself: a worker's code over a real catalogue, bundle, key and spool, without sockets.

The steps alternate within each round, in a process of their own that is started in the build to be measured.  Latency
is of one call; CPU is the process's own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from rich.console import Console
from rich.table import Table

from grille.audit.encoding import event_id, timestamp
from grille.audit.event import Chain, Level
from grille.audit.fused import session_piece, statement_event, values_piece
from grille.audit.spool import Spool
from grille.controls import Refusal
from grille.policies.bundle import read
from grille.policies.decision import Limits
from grille.policies.wasm import WasmEngine
from grille.protocols.postgres.analysis import Sensitive
from grille.proxy.catalog import connect, read_catalog
from grille.proxy.config import Audit, Database, Identity
from grille.proxy.demo.cluster import SUPERUSER
from grille.proxy.enforcement import Enforcement, Prepared, Ready
from grille.proxy.identity import Agent, Registry, identify, parse_spiffe_id, read_bundle
from grille.proxy.quota import Quotas
from grille.proxy.recorder import Recorder
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.transformation import Key, Transformation
from loadtest.contenders import ACCOUNTS, CARD, DATABASE, POLICY, TRUST_DOMAIN, Stage, grille_environment
from loadtest.report import Sample, Spread, percentile
from loadtest.scenarios import Options, RunFailed

CALLS = 2_000
"""Of each step in one round, at most."""
STATEMENT = "SELECT abalance, card FROM pgbench_accounts WHERE aid = {}"

ADDED = {
    "identity": ("identity: certificate to agent, once a connection", None),
    "plan_hit": ("statement: plan and decision hit", None),
    "plan_miss": ("statement: plan miss, decision hit", "statement: plan and decision hit"),
    "decision_miss": ("statement: plan hit, decision miss", "statement: plan and decision hit"),
    "row_filter": ("bind: row filter", "bind: no control"),
    "token": ("result: token decoded", "result: no control"),
    "mask": ("result: token decoded and masked", "result: token decoded"),
    "limits": ("limits: rate and concurrency", None),
    "audit_process": ("audit: process", None),
    "audit_power": ("audit: power, 64 at once", None),
    "audit_strict": ("audit: strict, intent and outcome, 64 at once", None),
}
"""What the last line calls each control, the step that has it, and the step that has all but it."""

Step = Callable[[int], Awaitable[None]]


def controls(
    scene: Stage, options: Options, level: str, console: Console
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """Samples by step, and what the last line adds: microseconds added by each control, median over the rounds.

    Raises `RunFailed`.
    """
    settings = {
        "rounds": options.rounds, "seconds": options.seconds, "host": scene.cluster.host, "port": scene.cluster.port,
        "ca": str(scene.ca), "certificate": str(scene.driver), "key": scene.card_key.hex(),
        "directory": str(scene.directory),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.controls"], input=json.dumps(settings), env=grille_environment(scene.plain),
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RunFailed("the steps could not be measured; the reason is above")
    told = json.loads(done.stdout)
    runs = {step: [Sample(**sample) for sample in samples] for step, samples in told.items()}
    added = {name: _added(runs, *steps) for name, steps in ADDED.items()}
    table = Table(title="microseconds added by each control: CPU, median over rounds (lowest..highest)")
    table.add_column("control")
    table.add_column("over")
    table.add_column("us", justify="right")
    for name, (step, base) in ADDED.items():
        table.add_row(step, base or "nothing", added[name].text(1))
    console.print(table)
    return runs, {f"{name}_us": f"{spread.median:.1f}" for name, spread in added.items()}


def _added(runs: Mapping[str, list[Sample]], step: str, base: str | None) -> Spread:
    own = [sample.cpu_us for sample in runs[step]]
    return Spread.of(own if base is None else [a - b.cpu_us for a, b in zip(own, runs[base], strict=True)])


# In the process that measures


@dataclasses.dataclass
class Bench:
    """One worker's parts."""

    enforcement: Enforcement
    recorder: Recorder
    registry: Registry
    chain: list[bytes]
    bundles: dict[str, tuple[x509.Certificate, ...]]

    def agent(self, path: str, *, certificate: str = "") -> Agent:
        return self.registry.agent(
            parse_spiffe_id(f"spiffe://{TRUST_DOMAIN}/{path}"), cert_sha256=certificate,
            not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=1),
        )  # fmt: skip

    async def steps(self) -> dict[str, Step]:
        """By name, in the order in which they are measured."""
        driver, clear, masked, whole = (self.agent(f"{name}/0") for name in ("driver", "clear", "masked", "all-rows"))
        new = [self.agent("driver/0", certificate=str(number)) for number in range(CALLS)]
        agents = iter(new * 1000)
        shapes = iter(range(1 << 60))
        one = {}
        for agent in (driver, clear, masked, whole):
            (one[agent.spiffe_id],) = await self.enforcement.prepare(agent, STATEMENT.format(1), simple=True)
        concurrent = 8
        limits = Limits(rows=1000, statements_per_minute=2_000_000_000, concurrent=concurrent)
        quotas = Quotas()

        async def identity(_n: int) -> None:
            identify(self.chain, self.bundles, self.registry)

        async def plan_hit(n: int) -> None:
            if self.enforcement.ready(driver, STATEMENT.format(n * 7919 % ACCOUNTS + 1).encode()) is None:
                raise RunFailed("a statement that was run before is not known")

        async def plan_miss(_n: int) -> None:
            await self.enforcement.prepare(driver, f"SELECT abalance AS a{next(shapes)}, card FROM pgbench_accounts "
                                           "WHERE aid = 1", simple=True)  # fmt: skip

        async def decision_miss(n: int) -> None:
            if n == 0:
                self.enforcement.decisions.clear()
            await self.enforcement.prepare(next(agents), STATEMENT.format(1), simple=True)

        def bind(agent: Agent) -> Step:
            async def step(_n: int) -> None:
                await self.enforcement.bind(agent, one[agent.spiffe_id], (), ())

            return step

        def result(agent: Agent, *, plain: bool = False) -> Step:
            prepared: Prepared = one[agent.spiffe_id]
            if plain and prepared.plan is not None:
                plan = msgspec.structs.replace(prepared.plan, results=())
                prepared = msgspec.structs.replace(prepared, plan=plan)
            token = self.token

            async def step(_n: int) -> None:
                await self.enforcement.release(agent, prepared, [[b"0", token]], ())

            return step

        async def limit(_n: int) -> None:
            quotas.count(driver.spiffe_id, limits)
            quotas.enter(driver.spiffe_id, concurrent)
            quotas.leave(driver.spiffe_id)

        ready = Ready(one[driver.spiffe_id], time.monotonic() + 3600, driver)

        def kept(level: Level, pieces: bytes) -> asyncio.Future[None]:
            """One event, from its encoding until it is kept."""
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            now = time.time()
            when = timestamp(now)
            head, tail = statement_event(
                pieces, ready.template, ready.verdict, event_id(now), when, 0, 60, values_piece(ready.types, [b"1"]),
                "ok", "SELECT 1", 1, 20, 0, 0, 0, 0, 0, 100, 150,
            )  # fmt: skip
            self.recorder.submit(head, tail, when, level, lambda refusal: _settle(future, refusal))
            return future

        def audit(level: Level, *, many: int = 1, each: int = 1) -> Step:
            session = session_piece(level, driver.spiffe_id, "1", "0" * 64, "s", "c", "3.0", "bench", "app", Chain())

            async def step(_n: int) -> None:
                for _ in range(each):
                    await asyncio.gather(*(kept(level, session) for _ in range(many)))

            return step

        names = dict.fromkeys(name for pair in ADDED.values() for name in pair if name)
        made: dict[str, Step] = {
            "identity: certificate to agent, once a connection": identity,
            "statement: plan and decision hit": plan_hit,
            "statement: plan miss, decision hit": plan_miss,
            "statement: plan hit, decision miss": decision_miss,
            "bind: no control": bind(whole),
            "bind: row filter": bind(driver),
            "result: no control": result(clear, plain=True),
            "result: token decoded": result(clear),
            "result: token decoded and masked": result(masked),
            "limits: rate and concurrency": limit,
            "audit: process": audit("process"),
            "audit: power, 64 at once": audit("power", many=64),
            "audit: strict, intent and outcome, 64 at once": audit("strict", many=64, each=2),
        }
        assert names.keys() == made.keys()
        return made

    token: bytes = b""


def _settle(future: asyncio.Future[None], refusal: Refusal | None) -> None:
    if refusal is None:
        future.set_result(None)
    else:
        future.set_exception(refusal)


def _certificates(settings: dict[str, Any]) -> tuple[x509.Certificate, tuple[x509.Certificate, ...]]:
    leaf = x509.load_pem_x509_certificate(Path(settings["certificate"]).read_bytes())
    return leaf, read_bundle(Path(settings["ca"]).read_bytes())


async def _bench(settings: dict[str, Any]) -> Bench:
    database = Database(
        name="bench", host=settings["host"], port=settings["port"], database=DATABASE, role=SUPERUSER, tls="off"
    )
    connection = await connect(database)
    catalog = await read_catalog(connection)
    token = await connection.fetchval("SELECT card FROM public.pgbench_accounts WHERE aid = 1")
    await connection.close()
    engine = WasmEngine(read(POLICY), "grille/decision")
    provider = EmbeddedProvider(
        [Transformation("card", "fpe", "card", "card", "digits", CARD)],
        [Key("card", 1, bytes.fromhex(settings["key"]))],
    )
    attributes: dict[str, str | int | bool] = {"bid": 1}
    scopes = {"driver": (), "clear": ("clear-card",), "masked": ("mask-card",), "all-rows": ("all-rows", "clear-card")}
    registry = Registry(
        Identity(spiffe_id=f"spiffe://{TRUST_DOMAIN}/{name}/*", database="bench", scopes=given, attributes=attributes)
        for name, given in scopes.items()
    )
    home = Path(settings["directory"]) / "controls"
    home.mkdir()
    audit = Audit(directory=home, signing_key=home / "key")
    recorder = Recorder(Spool(home / "audit", 0, Ed25519PrivateKey.generate()), audit)
    leaf, bundle = _certificates(settings)
    enforcement = Enforcement(
        catalog=lambda: catalog, pdp=lambda: engine, provider=provider,
        sensitive={"public.pgbench_accounts.card": Sensitive("card", "card")},
    )  # fmt: skip
    made = Bench(enforcement, recorder, registry, [leaf.public_bytes(Encoding.DER)], {TRUST_DOMAIN: bundle})
    made.token = token.encode()
    return made


EVENTS = {"audit: power, 64 at once": 64, "audit: strict, intent and outcome, 64 at once": 64}
"""Statements of one call, where it is not one."""


async def _measure(settings: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    bench = await _bench(settings)
    steps = await bench.steps()
    for step in steps.values():
        await step(0)
    told: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    share = settings["seconds"] / len(steps) * 5
    for number in range(settings["rounds"]):
        names = list(steps) if number % 2 == 0 else list(steps)[::-1]
        for name in names:
            gc.collect()
            step, each = steps[name], EVENTS.get(name, 1)
            latencies = []
            began, cpu = time.perf_counter(), time.process_time()
            for n in range(CALLS):
                start = time.perf_counter_ns()
                await step(n)
                latencies.append((time.perf_counter_ns() - start) / 1000)
                if time.perf_counter() - began > share:
                    break
            took, used = time.perf_counter() - began, time.process_time() - cpu
            count = len(latencies) * each
            ordered = sorted(latencies)
            told[name].append(
                {
                    "tps": count / took,
                    "p50_us": percentile(ordered, 0.5),
                    "p95_us": percentile(ordered, 0.95),
                    "p99_us": percentile(ordered, 0.99),
                    "cpu_us": used / count * 1e6,
                    "server_cpu_us": 0.0,
                    "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
            )
            sys.stderr.write(f"round {number + 1}/{settings['rounds']} {name}: CPU {told[name][-1]['cpu_us']:.1f} us\n")
    await bench.recorder.close()
    return told


if __name__ == "__main__":
    json.dump(asyncio.run(_measure(json.load(sys.stdin))), sys.stdout)
