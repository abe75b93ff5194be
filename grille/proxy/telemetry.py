"""What operators see: Prometheus metrics, JSON logs, and the admin listener with health.

No label and no log line ever holds SQL text, a value, a key or anything else that an agent chose freely.
docs/reference/metrics.md lists every metric.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import logging
import sys
import traceback
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from grille.audit.event import Event

STAGES: Final = ("understand", "decide", "tokenize", "upstream", "audit", "total")
ACTIONS: Final = frozenset(
    {"select", "insert", "update", "delete", "begin", "commit", "rollback", "savepoint", "release"}
    | {"set", "reset", "show", "discard", "deallocate", "empty"}
)
_BUCKETS: Final = (
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    30_000_000,
)  # fmt: skip
"""Upper bounds in microseconds."""
_MOST_CONTROLS: Final = 200


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric with all its samples, as it travels from a worker to the node."""

    name: str
    documentation: str
    type: str
    samples: tuple[tuple[str, dict[str, str], float], ...]


class _Statements(Collector):
    """What statements add up to, as plain numbers: a statement is counted in a microsecond or two."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], int] = {}
        self.decisions: dict[tuple[bool, str], int] = {}
        self.rows = 0
        self.encoded = 0
        self.decoded = 0
        self._controls: set[str] = set()
        self._buckets = {stage: [0] * (len(_BUCKETS) + 1) for stage in STAGES}
        self._sums = dict.fromkeys(STAGES, 0)

    def outcome(self, action: str, status: str) -> None:
        key = (action, status)
        if key not in self.outcomes:
            action = action.lower()
            key = (action if action in ACTIONS else "other", status)
        self.outcomes[key] = self.outcomes.get(key, 0) + 1

    def decision(self, allow: bool, control: str) -> None:
        key = (allow, control)
        if key not in self.decisions and control not in self._controls:
            if len(self._controls) < _MOST_CONTROLS and len(control) <= 32:
                self._controls.add(control)
            else:
                key = (allow, "other")
        self.decisions[key] = self.decisions.get(key, 0) + 1

    def stage(self, stage: str, microseconds: int) -> None:
        self._buckets[stage][bisect_left(_BUCKETS, microseconds)] += 1
        self._sums[stage] += microseconds

    def idle(self, stage: str) -> None:
        """A stage that took no time."""
        self._buckets[stage][0] += 1

    def collect(self) -> Iterable[Metric]:
        statements = CounterMetricFamily(
            "grille_statements", "Statements by action and outcome.", labels=("action", "outcome")
        )
        for (action, status), count in self.outcomes.items():
            statements.add_metric((action, status), count)
        yield statements
        decisions = CounterMetricFamily(
            "grille_decisions", "Decisions by verdict and control.", labels=("allow", "control")
        )
        for (allow, control), count in self.decisions.items():
            decisions.add_metric(("true" if allow else "false", control), count)
        yield decisions
        stages = HistogramMetricFamily("grille_stage_seconds", "Time of a statement by stage.", labels=("stage",))
        bounds = [str(bound / 1e6) for bound in _BUCKETS] + ["+Inf"]
        for stage, counts in self._buckets.items():
            cumulated = list(itertools.accumulate(counts))
            stages.add_metric((stage,), list(zip(bounds, cumulated, strict=True)), self._sums[stage] / 1e6)
        yield stages
        yield CounterMetricFamily("grille_rows", "Rows that agents received.", value=self.rows)
        yield CounterMetricFamily("grille_values_encoded", "Values that became tokens.", value=self.encoded)
        yield CounterMetricFamily("grille_values_decoded", "Tokens that became values.", value=self.decoded)


class Metrics:
    """The metrics of one worker.

    What is counted is counted by a method call; what is a state (pools, health, expiry) is read by the callables in
    `before_scrape`, which run once for each scrape.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.before_scrape: list[Callable[[], None]] = []
        self._statements = _Statements()
        registry.register(self._statements)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"grille_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"grille_{name}", text, labels, registry=registry)

        self.sessions = gauge("sessions", "Sessions that are open.")
        self.sessions_total = counter("sessions_opened", "Sessions that passed startup.")
        self._refused = counter("handshakes_refused", "Connections refused before a session, by control.", "control")
        self.pool = gauge("pool_connections", "Upstream connections by state.", "database", "state")
        self.pool_waiting = gauge("pool_waiting", "Units that wait for an upstream connection.", "database")
        self.plan_cache = counter("plan_cache", "Plan look-ups by result.", "result")
        self.decision_cache = counter("decision_cache", "Decision look-ups by result.", "result")
        self.audit_healthy = gauge("audit_healthy", "1 if events can be kept.")
        self.audit_lag = gauge("audit_lag_seconds", "Age of the oldest event that is not sealed yet.")
        self.audit_events = counter("audit_events", "Events kept.")
        self.certificate_not_after = gauge(
            "certificate_not_after_seconds", "When Grille's own certificate ends (Unix time).", "use"
        )
        self.bundle_info = gauge("bundle_info", "1 for the policy bundle in force.", "revision")
        self.bundle_last_success = gauge(
            "bundle_last_success_seconds", "When a bundle was last put in force (Unix time)."
        )
        self.bundle_failures = counter("bundle_failures", "Bundles that could not be put in force.")
        self.catalog_last_success = gauge(
            "catalog_last_success_seconds", "When a catalogue was last read (Unix time).", "database"
        )
        self.catalog_failures = counter("catalog_failures", "Catalogue reads that failed.", "database")
        self.datagrams_ignored = gauge("datagrams_ignored", "Local datagrams that were malformed or not sent.")
        self.quota_refusals = counter("quota_refusals", "Statements refused because a quota is used up.", "quota")
        self.quota_store_failures = counter("quota_store_failures", "Questions that the quota store did not answer.")
        self.vault_requests = counter("vault_requests", "Requests to Vault Transform, by outcome.", "outcome")
        self.vault_up = gauge("vault_up", "1 if Vault gave Grille a token and answered the last request.")
        self.alerts = counter("alerts", "Alerts recorded, by the quota that was reached.", "quota")
        self.sessions_cut = counter("sessions_cut", "Sessions that were ended at once, by reason.", "reason")
        self.revocations = gauge("revocations", "Entries of the revocation file in force.")
        ProcessCollector(registry=registry)

    def observe(self, event: Event, action: str | None = None) -> None:
        """Count one statement's event.  ``action`` is read off the command tag if it is not given."""
        if event.kind != "statement" or event.outcome is None or event.outcome.status == "intent":
            return
        outcome, statements = event.outcome, self._statements
        statements.outcome(action or outcome.tag.partition(" ")[0], outcome.status)
        if event.verdict is not None:
            statements.decision(event.verdict.allow, event.verdict.control)
        statements.rows += outcome.rows
        statements.encoded += outcome.encoded
        statements.decoded += outcome.decoded
        for stage, microseconds in event.stages.items():
            if stage in STAGES:
                statements.stage(stage, microseconds)

    def count(
        self,
        action: str,
        status: str,
        control: str,
        rows: int,
        encoded: int,
        decoded: int,
        tokenize: int,
        upstream: int,
        audit: int,
        total: int,
    ) -> None:
        """Count one statement that was known and allowed, as ``observe`` does its event; stages in microseconds."""
        statements = self._statements
        statements.outcome(action, status)
        statements.decision(True, control)
        statements.rows += rows
        statements.encoded += encoded
        statements.decoded += decoded
        statements.idle("understand")
        statements.idle("decide")
        stage = statements.stage
        if tokenize:
            stage("tokenize", tokenize)
        else:
            statements.idle("tokenize")
        stage("upstream", upstream)
        stage("audit", audit)
        stage("total", total)

    def refused(self, control: str) -> None:
        """Count one connection that was refused before it was a session."""
        self._refused.labels(control).inc()

    def snapshot(self) -> tuple[Family, ...]:
        """Everything as plain data."""
        for refresh in self.before_scrape:
            refresh()
        return tuple(
            Family(
                metric.name,
                metric.documentation,
                metric.type,
                tuple((s.name, dict(s.labels), s.value) for s in metric.samples if not s.name.endswith("_created")),
            )
            for metric in self._registry.collect()
        )


class _Node(Collector):
    def __init__(self, parts: Mapping[str, Iterable[Family]]) -> None:
        self._parts = parts

    def collect(self) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        for worker, families in self._parts.items():
            for family in families:
                metric = found.get(family.name)
                if metric is None:
                    metric = found[family.name] = Metric(family.name, family.documentation, family.type)
                for name, labels, value in family.samples:
                    metric.add_sample(name, {"worker": worker, **labels} if worker else labels, value)
        return found.values()


def exposition(parts: Mapping[str, Iterable[Family]]) -> bytes:
    """Prometheus text of the whole node: each worker's samples carry its number as label ``worker``.

    A part named ``""`` (the node itself) gets no label.
    """
    return generate_latest(_Node(parts))


# logs


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Of an exception only its type and the places it passed are kept: its text may hold SQL or values.  Of a record by
    another library only the first line of its template is kept, for the same reason.
    """

    def __init__(self, **constant: Any) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        ours = record.name == "grille" or record.name.startswith("grille.")
        line: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if ours else str(record.msg).partition("\n")[0],
            **self._constant,
        }
        fields = getattr(record, "fields", None)
        if ours and isinstance(fields, dict):
            line.update(fields)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["at"] = [
                f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(record.exc_info[2])
            ]
        try:
            return msgspec.json.encode(line, enc_hook=str).decode()
        except UnicodeEncodeError:
            # a file name that is not UTF-8
            return msgspec.json.encode({name: ascii(value) for name, value in line.items()}).decode()


def start_logging(level: str, **constant: Any) -> None:
    """Send every log line to stderr as JSON; ``constant`` is on each line."""
    logging.raiseExceptions = False  # a closed standard error is no reason to fail
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonFormatter(**constant))
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(level.upper())


# the admin listener

_MOST_REQUEST_BYTES: Final = 8192
_REQUEST_SECONDS: Final = 5.0


class Admin:
    """``/metrics``, ``/livez`` and ``/readyz`` over HTTP/1.1, one request a connection.

    ``readiness`` returns the reasons why the node is not ready; none means ready.
    """

    def __init__(
        self, metrics: Callable[[], Awaitable[bytes]], readiness: Callable[[], Awaitable[Sequence[str]]]
    ) -> None:
        self._metrics = metrics
        self._readiness = readiness
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.  Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_MOST_REQUEST_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_REQUEST_SECONDS):
                request = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0].split(b" ")
                status, kind, body = await self._answer(request)
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + (b"" if request[0] == b"HEAD" else body))
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _answer(self, request: list[bytes]) -> tuple[str, str, bytes]:
        text = "text/plain; charset=utf-8"
        if len(request) != 3 or not request[2].startswith(b"HTTP/1."):
            return "400 Bad Request", text, b"not an HTTP/1.1 request\n"
        if request[0] not in (b"GET", b"HEAD"):
            return "405 Method Not Allowed", text, b"only GET\n"
        path = request[1].partition(b"?")[0]
        if path == b"/metrics":
            return "200 OK", "text/plain; version=0.0.4; charset=utf-8", await self._metrics()
        if path == b"/livez":
            return "200 OK", text, b"alive\n"
        if path == b"/readyz":
            reasons = await self._readiness()
            if reasons:
                return "503 Service Unavailable", text, "".join(f"{reason}\n" for reason in reasons).encode()
            return "200 OK", text, b"ready\n"
        return "404 Not Found", text, b"there is /metrics, /livez and /readyz\n"
