"""One worker: every part of the proxy made and joined, then run until it has drained.

``python -m grille.proxy.serve`` is what the node starts; it reads its assignment from standard input, and the end of
standard input is the end of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from prometheus_client import Counter

from grille.audit.encoding import event_id, lifecycle, timestamp
from grille.audit.event import Event, Verdict
from grille.audit.spool import AuditUnavailable, Spool, chain_directory
from grille.controls import Refusal
from grille.protocols.postgres.analysis import Sensitive
from grille.protocols.postgres.catalog import Catalog
from grille.proxy import keys
from grille.proxy.bundle_watch import BundleWatch
from grille.proxy.catalog import READ_FAILURES, CatalogWatch
from grille.proxy.channel import ChannelSession, MqDoor
from grille.proxy.config import Config, ConfigError, Database, Problem, decode
from grille.proxy.enforcement import Enforcement
from grille.proxy.identity import Agent, Registry
from grille.proxy.layouts import Payloads, read_layouts
from grille.proxy.listener import Address, Door, Listener, PostgresDoor, SessionFactory
from grille.proxy.listener import Session as ServedSession
from grille.proxy.node import (
    NODE,
    UNUSABLE,
    Ask,
    Assignment,
    Cancel,
    Datagram,
    Drain,
    LocalSocket,
    Reload,
    Report,
    Started,
    worker_name,
)
from grille.proxy.pipe import SharedPipes, Turn
from grille.proxy.providers import Provider
from grille.proxy.queues import Queues
from grille.proxy.quota import QuotaReached, Quotas, Table
from grille.proxy.quota_store import StoreCounters
from grille.proxy.recorder import Recorder
from grille.proxy.revocation import RevocationError, Revocations
from grille.proxy.services import CancelTable, Services
from grille.proxy.session import Session
from grille.proxy.shown import Shown
from grille.proxy.telemetry import Metrics, start_logging
from grille.proxy.tls import CertificateError, Certificates
from grille.proxy.upstream import UpstreamPool

if TYPE_CHECKING:
    from grille.proxy.policy_server import PolicyServer

log = logging.getLogger("grille.worker")

RETRY_SECONDS: Final = 1.0
GC_OBJECTS: Final = 20_000
"""New objects between two looks for cycles; few are left behind by statements."""
REFUSALS_PER_SECOND: Final = 10
_POOL_SECONDS: Final = 2.0
_AGENTS_SECONDS: Final = 1.0
_HYPOTHESES: Final = {
    "statements_per_minute": "an agent or its tool repeats a statement without waiting, or guesses values one by one",
    "concurrent": "an agent starts more work at once than its task needs, or its certificate is used in several places",
    "distinct_keys_per_hour": "an agent copies a relation in small bites, because it was turned by what it read or "
    "its certificate is in other hands, or its task needs more than its policy gives",
}
_NEXT_STEP: Final = (
    "read what it ran (grille audit show --agent {agent} --since {since}); if that is not its task, add it to "
    "listener.revocations, which ends its sessions; if it is, raise limits.{quota} in its policy"
)


class Worker:
    """One worker, from its first file read to its last event."""

    def __init__(self, config: Config, number: int = 0, workers: int = 1, quotas: Quotas | None = None) -> None:
        """Reads keys, certificates and the policy bundle.  Without ``quotas`` this worker has counters of its own.

        Raises `ConfigError`.  The event loop must be running.
        """
        self.config = config
        self.number = number
        self.metrics = Metrics()
        self._recorder: Recorder | None = None
        self.port = 0
        """Where this worker listens for PostgreSQL; 0 before it does."""
        self.mq_port = 0
        """The same for IBM MQ; 0 if it does not."""
        self.local: LocalSocket | None = None
        """This worker's end of the node's local socket; its datagrams go to `received`."""
        self._drains: set[asyncio.Task[None]] = set()
        self._workers = workers
        self._quotas = Quotas() if quotas is None else quotas
        self._store: StoreCounters | None = None
        if config.quotas.store:
            self._store = StoreCounters(self._quotas, config.quotas, keys.store_key(config), self._on_store)
        self._provider = Provider(config, self._note)
        self._layouts = read_layouts(config)
        self._signing_key = keys.signing_key(config)
        try:
            self._certificates = Certificates(config.listener, config.trust_domains, on_reload=self._on_certificates)
            self._revocations = Revocations(config.listener.revocations)
        except CertificateError as error:
            raise ConfigError("listener", [Problem("listener", "", str(error), "")]) from None
        except RevocationError as error:
            raise ConfigError("listener", [Problem("listener.revocations", "", str(error), "")]) from None
        self._policy: BundleWatch | PolicyServer
        if config.policy.server_url:
            from grille.proxy.policy_server import PolicyServer  # its HTTP client takes a while to import

            self._policy = PolicyServer(config.policy, self._on_policy)
        else:
            self._policy = BundleWatch(config.policy, self._on_policy)
            if not self._policy.reload():
                fix = f"Build it anew: opa build -t wasm -e {config.policy.entrypoint} --revision NAME ..."
                raise ConfigError("policy", [Problem("policy.bundle", "", self._policy.problem, fix)])
        self._catalogs = {
            database.name: CatalogWatch(database, self._on_catalog(database)) for database in config.databases
        }
        self._pools = {database.name: UpstreamPool(database) for database in config.databases}
        turn = Turn(asyncio.get_running_loop())
        self._pipes = {
            database.name: SharedPipes(database, turn) for database in config.databases if database.read_pipes
        }
        self._listeners: list[Listener] = []
        self._services: Services | None = None
        self._audit_problem = "not opened yet"
        self._catalog_problems = {database.name: "the catalogue has not been read yet" for database in config.databases}
        self._draining = False
        self._stopped = asyncio.Event()
        self._notes: set[asyncio.Task[None]] = set()
        self._counted: dict[int, int] = {}
        self._refusals = (0, 0)
        self._unrecorded = 0
        self.metrics.before_scrape.append(self._refresh_metrics)

    # what is not in order

    def reasons(self) -> tuple[str, ...]:
        """Why this worker is not ready; empty if it is."""
        found = []
        if self._draining:
            found.append("draining")
        if self._recorder is None:
            found.append(f"audit: {self._audit_problem}")
        elif problem := self._audit_state(self._recorder):
            found.append(f"audit: {problem}")
        if self.config.policy.server_url and self._policy.problem:
            found.append(f"policy: {self._policy.problem}")
        if self._certificates.not_after <= dt.datetime.now(dt.UTC):
            found.append("certificate: it has expired")
        if self._revocations.problem:
            found.append(f"revocations: {self._revocations.problem}")
        for name in self._catalogs:
            if self._catalog_problems[name]:
                found.append(f"database {name}: {self._catalog_problems[name]}")
        if not self.port or (self.config.queue_managers and not self.mq_port):
            found.append("does not listen yet")
        return tuple(found)

    def _audit_state(self, recorder: Recorder) -> str:
        """Why events cannot be kept, as far as can be seen without writing one; empty if they can."""
        if not recorder.healthy:
            return recorder.last_error
        directory = chain_directory(self.config.audit.directory, self.number)
        try:
            full = os.statvfs(directory).f_bavail == 0
        except OSError as error:
            return f"{directory}: {error.strerror}"
        if full:
            return f"{directory}: the disk is full"
        return "" if os.access(directory, os.W_OK) else f"{directory} cannot be written"

    # the whole life

    async def run(self, on_listening: Callable[[], None] = lambda: None) -> None:
        """Serve until `drain` has been called and done its work."""
        async with contextlib.AsyncExitStack() as stack:
            recorder = await self._open_audit()
            if recorder is None:
                return
            stack.push_async_callback(self._close_audit, recorder)
            if self._store is not None:
                stack.push_async_callback(self._store.close)
            for pool in self._pools.values():
                stack.push_async_callback(_close_pool, pool)
            for pipes in self._pipes.values():
                stack.push_async_callback(pipes.close)
            stack.push_async_callback(self._provider.close)
            tasks = [
                asyncio.create_task(self._policy.watch()),
                asyncio.create_task(self._certificates.watch()),
                asyncio.create_task(self._watch_agents()),
                *(asyncio.create_task(self._watch_catalog(each.name, each)) for each in self.config.databases),
            ]
            if self._provider.vault is not None:
                tasks.append(asyncio.create_task(self._provider.vault.watch()))
            stack.push_async_callback(_cancel, tasks)
            services = self._services = self._join(recorder)

            self.port = await self._listen(
                stack,
                self.config.listener,
                PostgresDoor(services.cancels.cancel),
                "postgres",
                lambda stream, agent, _: Session(stream, agent, services),
            )
            if self.config.queue_managers:
                self.mq_port = await self._listen(
                    stack,
                    self.config.mq,
                    MqDoor(self.config.mq.channel),
                    "mq",
                    lambda stream, agent, peer: ChannelSession(stream, agent, peer, services),
                )
            # What exists now stays: the collector need not look at it again, nor after every few hundred new objects.
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_OBJECTS, 20, 50)
            on_listening()
            stopped = asyncio.create_task(self._stopped.wait())
            stack.push_async_callback(_cancel, [stopped])
            ended, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()

    async def _listen(
        self,
        stack: contextlib.AsyncExitStack,
        settings: Address,
        door: Door,
        protocol: str,
        session_factory: SessionFactory,
    ) -> int:
        """Listen for one protocol, until the stack is left; the port.  Raises OSError."""
        listener = Listener(
            settings,
            self._certificates,
            Registry(self.config.identities),
            session_factory,
            door=door,
            handshake_timeout=self.config.listener.handshake_timeout,
            on_refused=functools.partial(self._on_refused, protocol),
            admit=self._admit,
        )
        stack.push_async_callback(listener.close)
        port = await listener.start()
        self._listeners.append(listener)
        return port

    def _sessions(self) -> list[ServedSession]:
        return [session for listener in self._listeners for session in tuple(listener.sessions)]

    async def drain(self, seconds: float) -> None:
        """Take no new connections and transactions, let those in flight finish for so long, then end `run`."""
        if self._draining:
            return
        self._draining = True
        log.info("draining", extra={"fields": {"seconds": seconds}})
        if self._services is not None:
            self._services.draining.set()
            for session in self._sessions():
                session.drain()
            await asyncio.gather(*(listener.finish(seconds) for listener in self._listeners))
        self._stopped.set()

    def reload(self) -> None:
        """Look at the policy bundle, the certificates and the revocations now."""
        self._policy.reload()
        self._certificates.reload()
        self._look_at_agents()

    def begin_drain(self, seconds: float | None = None) -> None:
        """`drain` in the background; as long as the configuration says, if no time is given."""
        task = asyncio.create_task(self.drain(self.config.process.drain_seconds if seconds is None else seconds))
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    def received(self, datagram: Datagram) -> None:
        """Do what another process of the node asks."""
        match datagram:
            case Ask(number) if self.local is not None:
                self.local.send(NODE, Report(number, self.number, self.reasons(), self.metrics.snapshot()))
            case Cancel(process_id, secret) if self._services is not None:
                self._services.cancels.cancel(process_id, secret, forwarded=True)
            case Drain(seconds):
                self.begin_drain(seconds)
            case Reload():
                self.reload()

    # parts

    async def _open_audit(self) -> Recorder | None:
        """The recorder, as soon as the audit directory can be written; None if the worker is ended before."""
        settings = self.config.audit
        told = ""
        while not self._draining:
            try:
                spool = Spool(
                    settings.directory,
                    self.number,
                    self._signing_key,
                    block_events=settings.block_events,
                    block_seconds=settings.block_milliseconds / 1000,
                    segment_bytes=settings.segment_bytes,
                )
            except AuditUnavailable as error:
                self._audit_problem = str(error)
                if told != str(error):
                    log.error("the audit directory cannot be used", extra={"fields": {"problem": str(error)}})
                    told = str(error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), RETRY_SECONDS)
                continue
            self._recorder = Recorder(spool, settings)
            self._recorder.policy_revision = self._policy.revision
            return self._recorder
        return None

    async def _close_audit(self, recorder: Recorder) -> None:
        while self._notes:
            await asyncio.wait(self._notes)
        try:
            await recorder.close()
        except AuditUnavailable as error:
            log.error("the end of the run could not be recorded", extra={"fields": {"problem": str(error)}})

    async def _watch_catalog(self, name: str, database: Database) -> None:
        """Poll until cancelled."""
        watch = self._catalogs[name]
        try:
            while True:
                await self._refresh_catalog(name)
                await asyncio.sleep(database.catalog_poll if watch.ready else min(RETRY_SECONDS, database.catalog_poll))
        finally:
            await watch.close()

    async def _refresh_catalog(self, name: str) -> None:
        """Read a catalogue; a failure is noted, counted and logged, and the old snapshot stays."""
        try:
            await self._catalogs[name].refresh()
        except READ_FAILURES as error:
            self.metrics.catalog_failures.labels(name).inc()
            problem = f"the catalogue cannot be read ({type(error).__name__})"
            if self._catalog_problems[name] != problem:
                log.error(
                    "a catalogue cannot be read", extra={"fields": {"database": name, "error": type(error).__name__}}
                )
            self._catalog_problems[name] = problem
        else:
            self.metrics.catalog_last_success.labels(name).set_to_current_time()
            if self._catalog_problems[name]:
                log.info("a catalogue was read", extra={"fields": {"database": name}})
            self._catalog_problems[name] = ""

    def _join(self, recorder: Recorder) -> Services:
        config = self.config
        domains = {transformation.name: transformation.token_domain for transformation in config.transformations}
        sensitive = {
            column.name: Sensitive(
                column.transformation, domains[column.transformation] if column.transformation is not None else None
            )
            for column in config.columns
        }

        def forward(worker: int | None, number: int, secret: bytes) -> None:
            others = [other for other in range(self._workers) if other != self.number]
            for other in others if worker is None else [worker]:
                if self.local is not None and other in others:
                    self.local.send(worker_name(other), Cancel(number, secret))

        return Services(
            config=config,
            worker=self.number,
            workers=self._workers,
            enforcement={
                database.name: Enforcement(
                    catalog=self._catalog_of(database.name),
                    pdp=lambda: self._policy.current,
                    provider=self._provider.tokens,
                    sensitive=sensitive,
                    functions=database.functions,
                    definitions=database.definitions,
                    passthrough=database.passthrough,
                    max_statement=config.listener.max_statement_bytes,
                    decision_entries=config.policy.cache_entries,
                )
                for database in config.databases
            },
            pools=self._pools,
            pipes=self._pipes,
            recorder=recorder,
            metrics=self.metrics,
            cancels=CancelTable(self.number, forward),
            server_version=lambda name: _version(self._catalog_of(name)().server_version),
            refresh=self._refresh_catalog,
            quotas=self._quotas,
            store=self._store,
            on_quota=self._on_quota,
            queues={
                manager.name: Queues(lambda: self._policy.current, config.policy.cache_entries, self._layouts)
                for manager in config.queue_managers
            },
            payloads=Payloads(self._layouts, self._provider.tokens),
            shown={database.name: Shown(self._catalog_of(database.name)) for database in config.databases},
        )

    def _catalog_of(self, name: str) -> Callable[[], Catalog]:
        watch = self._catalogs[name]

        def current() -> Catalog:
            if not watch.ready:
                raise Refusal(
                    "ST-08",
                    "the database's catalogue has not been read yet",
                    sqlstate="57P03",
                    hint="The database cannot be reached, or Grille has just started. Try again later.",
                )
            return watch.current

        return current

    # what happens meanwhile

    def _on_certificates(self, problem: str | None) -> None:
        if problem is None:
            log.info("certificates reloaded", extra={"fields": {"not_after": self._certificates.not_after}})
            self._note("certificates", f"reloaded, valid until {self._certificates.not_after:%Y-%m-%dT%H:%M:%SZ}")
        else:
            log.error("new certificates cannot be used; the old ones stay", extra={"fields": {"problem": problem}})
            self._note("certificates-refused", problem)

    def _on_policy(self, name: str, text: str) -> None:
        if name == "bundle":
            log.info("a policy bundle is in force", extra={"fields": {"revision": self._policy.revision}})
            if self._recorder is not None:
                self._recorder.policy_revision = self._policy.revision
        else:
            log.error("a new policy bundle cannot be used; the old one stays", extra={"fields": {"problem": text}})
        self._note(name, text)

    def _on_catalog(self, database: Database) -> Callable[[str, str], None]:
        def changed(name: str, text: str) -> None:
            log.info("the catalogue changed", extra={"fields": {"database": database.name, "epoch": text}})
            self._note(name, f"{database.name}: {text}")

        return changed

    def _on_refused(self, protocol: str, peer: str, control: str, reason: str) -> None:
        """Count, log and record a connection that did not become a session.

        Whoever can reach the port can cause these, so only `REFUSALS_PER_SECOND` are logged and recorded; the next one
        that is says how many were not.
        """
        self.metrics.refused(control)
        second = int(time.monotonic())
        if second != self._refusals[0]:
            self._refusals = (second, 0)
        self._refusals = (second, self._refusals[1] + 1)
        if self._refusals[1] > REFUSALS_PER_SECOND:
            self._unrecorded += 1
            return
        more = f" (and {self._unrecorded} other connections before it)" if self._unrecorded else ""
        self._unrecorded = 0
        log.warning("a connection was refused", extra={"fields": {"client": peer, "control": control}})
        when = time.time()
        self._keep(
            Event(
                id=event_id(when),
                time=timestamp(when),
                kind="session",
                name="refused",
                worker=self.number,
                sequence=0,
                level="process",
                client=peer,
                protocol=protocol,
                verdict=Verdict(id="", allow=False, control=control, reason=reason + more),
            )
        )

    # who may have a session

    def _admit(self, agent: Agent) -> None:
        """Raises `Refusal` (fatal) for an agent that may have no session now."""
        if self._revocations.revoked(agent):
            raise Refusal(
                "ID-07",
                "this identity, or this certificate, is revoked",
                sqlstate="28000",
                fatal=True,
            )
        seconds = self._quotas.cut_off(agent.spiffe_id)
        if self._store is not None:
            seconds = max(seconds, self._store.cut_off(agent.spiffe_id))
        if seconds:
            raise Refusal(
                "AC-06",
                "you have been cut off, because you reached a limit of your policy",
                sqlstate="53400",
                hint=f"Connect again in {seconds} seconds, or ask the owner of this policy.",
                fatal=True,
            )

    async def _watch_agents(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await asyncio.sleep(_AGENTS_SECONDS)
            self._quotas.tick()
            if self._store is not None:
                await self._store.tick()
            self._look_at_agents()

    def _look_at_agents(self) -> None:
        """End the sessions of who was revoked or cut off since the last look."""
        changed = self._revocations.poll()
        if changed:
            fields = {"entries": len(self._revocations), "problem": self._revocations.problem}
            log.log(
                logging.ERROR if self._revocations.problem else logging.INFO,
                "the revocations changed", extra={"fields": fields},
            )  # fmt: skip
            self._note("revocations", self._revocations.problem or f"{len(self._revocations)} entries")
        elsewhere = self._store is not None and self._store.new_cuts()
        if not self._quotas.new_cuts() and not elsewhere and not changed:
            return
        for session in self._sessions():
            try:
                self._admit(session.agent)
            except Refusal as refusal:
                reason = "revoked" if refusal.control == "ID-07" else "cut off"
                self.metrics.sessions_cut.labels(reason).inc()
                session.cut(refusal)

    def _on_quota(self, agent: Agent, protocol: str, session: str, reached: QuotaReached) -> None:
        """Count a statement that a quota refused; tell of the first in a while, and cut the agent off if so configured.

        What cannot be done because the counters are locked is done at the next refusal.
        """
        quota, settings = reached.quota, self.config.quotas
        self.metrics.quota_refusals.labels(quota).inc()
        with contextlib.suppress(Refusal):
            cut = quota in settings.cut_off
            if self._quotas.alert(agent.spiffe_id, quota):
                self._alert(agent, protocol, session, reached, settings.cut_off_seconds if cut else 0)
            if cut and not self._quotas.cut_off(agent.spiffe_id):
                self._quotas.cut(agent.spiffe_id, settings.cut_off_seconds)
                if self._store is not None:
                    self._store.cut(agent.spiffe_id, settings.cut_off_seconds)
                # not in the middle of what that session does now
                asyncio.get_running_loop().call_soon(self._look_at_agents)

    def _on_store(self, problem: str) -> None:
        """Count a question that the quota store did not answer; it logs by itself."""
        self.metrics.quota_store_failures.inc()

    def _alert(self, agent: Agent, protocol: str, session: str, reached: QuotaReached, cut_off_seconds: int) -> None:
        """Record that an agent has reached a quota, with what may be behind it and what to do."""
        self.metrics.alerts.labels(reached.quota).inc()
        log.warning(
            "an agent reached a quota", extra={"fields": {"agent": agent.spiffe_id, "quota": reached.quota}}
        )  # fmt: skip
        when = time.time()
        step = _NEXT_STEP.format(agent=agent.spiffe_id, since=timestamp(when - 3600), quota=reached.quota)
        done = f" It is cut off for {cut_off_seconds} seconds." if cut_off_seconds else ""
        self._keep(
            Event(
                id=event_id(when),
                time=timestamp(when),
                kind="session",
                name="alert",
                worker=self.number,
                sequence=0,
                level="process",
                spiffe_id=agent.spiffe_id,
                certificate_serial=agent.serial,
                certificate_sha256=agent.cert_sha256,
                session=session,
                protocol=protocol,
                database=agent.database if protocol == "postgres" else agent.queue_manager,
                verdict=Verdict(
                    id=reached.decision_id or "", allow=False, control=reached.control, reason=reached.message
                ),
                text=f"Quota {reached.quota} reached.{done} Hypothesis: {_HYPOTHESES[reached.quota]}. "
                f"Next step: {step}.",
            )
        )

    def _note(self, name: str, text: str) -> None:
        """Record something that is neither a statement nor a session."""
        self._keep(lifecycle(name, text, time.time(), worker=self.number, level="process"))

    def _keep(self, event: Event) -> None:
        recorder = self._recorder
        if recorder is None:
            return

        async def keep() -> None:
            with contextlib.suppress(Refusal):
                await recorder.keep(event)

        task = asyncio.create_task(keep())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    def _refresh_metrics(self) -> None:
        metrics = self.metrics
        for name, pool in self._pools.items():
            counts = pool.counts
            metrics.pool.labels(name, "idle").set(counts.idle)
            metrics.pool.labels(name, "busy").set(counts.in_use)
            metrics.pool_waiting.labels(name).set(counts.waiting)
        for name, pipes in self._pipes.items():
            metrics.pool.labels(name, "shared").set(pipes.open)
        metrics.bundle_info.clear()
        metrics.bundle_info.labels(self._policy.revision).set(1)
        metrics.bundle_last_success.set(self._policy.last_success)
        self._follow(metrics.bundle_failures, self._policy.failures)
        metrics.certificate_not_after.labels("listener").set(self._certificates.not_after.timestamp())
        metrics.revocations.set(len(self._revocations))
        vault = self._provider.vault
        if vault is not None:
            metrics.vault_up.set(not vault.problem and vault.login.lease_end > asyncio.get_running_loop().time())
            for outcome, count in vault.outcomes.items():
                self._follow(metrics.vault_requests.labels(outcome), count)
        recorder = self._recorder
        metrics.audit_healthy.set(recorder is not None and not self._audit_state(recorder))
        if recorder is not None:
            metrics.audit_lag.set(recorder.lag_seconds)
            self._follow(metrics.audit_events, recorder.events_total)
        if self._services is not None:
            enforcement = self._services.enforcement.values()
            for counter, caches in (
                (metrics.plan_cache, [each.plans for each in enforcement]),
                (
                    metrics.decision_cache,
                    [each.decisions for each in enforcement]
                    + [each.decisions for each in self._services.queues.values()],
                ),
            ):
                self._follow(counter.labels("hit"), sum(cache.hits for cache in caches))
                self._follow(counter.labels("miss"), sum(cache.misses for cache in caches))
        if self.local is not None:
            metrics.datagrams_ignored.set(self.local.ignored)

    def _follow(self, counter: Counter, total: int) -> None:
        """Bring a counter up to a total that is counted elsewhere."""
        seen = self._counted.get(id(counter), 0)
        counter.inc(total - seen)
        self._counted[id(counter)] = total


def _version(number: int) -> str:
    """server_version of server_version_num: 180004 is 18.4."""
    return f"{number // 10000}.{number % 10000}"


async def _close_pool(pool: UpstreamPool) -> None:
    try:
        async with asyncio.timeout(_POOL_SECONDS):
            await pool.close()
    except TimeoutError:
        pool.abort()


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# the process


async def _serve(config: Config, assignment: Assignment) -> int:
    """Join the node, run, and obey its datagrams and signals."""
    loop = asyncio.get_running_loop()
    table = Table(assignment.quotas, assignment.workers, config.quotas.keys)
    os.close(assignment.quotas)
    quotas = Quotas(table, assignment.number, assignment.salt)
    worker = Worker(config, assignment.number, assignment.workers, quotas)
    local = worker.local = LocalSocket(Path(assignment.directory), worker_name(assignment.number), worker.received)

    def node_ended() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            log.error("the node has ended, so this worker drains")
            worker.begin_drain()

    def listening() -> None:
        fields = {"loop": type(loop).__module__.partition(".")[0], "pid": os.getpid()}
        log.info("worker started", extra={"fields": fields})
        local.send(NODE, Started(assignment.number))

    try:
        loop.add_signal_handler(signal.SIGTERM, worker.begin_drain)
        loop.add_signal_handler(signal.SIGINT, worker.begin_drain)
        loop.add_signal_handler(signal.SIGHUP, worker.reload)
        loop.add_reader(0, node_ended)
        await worker.run(listening)
    finally:
        local.close()
    return 0


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's where it is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _read_line(descriptor: int) -> bytes:
    """The first line, and not a byte more."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 65536)
        if not byte:
            break
        line += byte
    return bytes(line)


def main() -> int:
    """Run one worker as its node says; the exit status."""
    try:
        assignment = msgspec.json.decode(_read_line(0), type=Assignment)
        config = decode(msgspec.json.decode(assignment.config), base=Path("/"), source="the node")
    except (msgspec.DecodeError, ConfigError):
        sys.stderr.write("grille: a worker is started by grille serve, not by hand\n")
        return UNUSABLE
    start_logging(config.process.log_level, worker=assignment.number)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(config, assignment))
    except ConfigError as error:
        for problem in error.problems:
            log.error("the configuration cannot be used", extra={"fields": {"problem": str(problem)}})
        return UNUSABLE
    except Exception:
        log.exception("the worker failed")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
