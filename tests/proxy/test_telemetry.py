"""Metrics, logs and the admin listener."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest

from grille.audit.event import Event, Outcome, Verdict
from grille.proxy.telemetry import Admin, JsonFormatter, Metrics, exposition


def event(
    status: str = "ok", tag: str = "SELECT 3", allow: bool = True, control: str = "AC-07", rows: int = 3
) -> Event:
    outcome = msgspec.convert({"status": status, "tag": tag, "rows": rows, "decoded": 2}, Outcome)
    return Event(
        id="1", time="2026-11-24T00:00:00Z", kind="statement", name="statement", worker=0, sequence=1, level="power",
        verdict=Verdict(id="d", allow=allow, control=control, reason=""), outcome=outcome,
        stages={"understand": 40, "total": 900}, template="SELECT ssn FROM customers",
    )  # fmt: skip


def lines(metrics: Metrics) -> list[str]:
    return exposition({"0": metrics.snapshot()}).decode().splitlines()


def test_a_statement_is_counted_by_action_outcome_verdict_and_stage() -> None:
    metrics = Metrics()
    metrics.observe(event())
    metrics.observe(event())
    metrics.observe(event("denied", "", False, "AC-03", 0), "select")
    found = lines(metrics)
    assert 'grille_statements_total{action="select",outcome="ok",worker="0"} 2.0' in found
    assert 'grille_statements_total{action="select",outcome="denied",worker="0"} 1.0' in found
    assert 'grille_decisions_total{allow="true",control="AC-07",worker="0"} 2.0' in found
    assert 'grille_decisions_total{allow="false",control="AC-03",worker="0"} 1.0' in found
    assert 'grille_stage_seconds_bucket{le="0.001",stage="total",worker="0"} 3.0' in found
    assert 'grille_stage_seconds_bucket{le="0.0005",stage="total",worker="0"} 0.0' in found
    assert 'grille_rows_total{worker="0"} 6.0' in found


def test_a_statement_counted_without_its_event_is_counted_alike() -> None:
    observed, counted = Metrics(), Metrics()
    for action, rows, total in (("select", 3, 25), ("SELECT", 0, 26), ("update", 1, 40_000_000), ("vacuum", 0, 0)):
        stages = {"understand": 0, "decide": 0, "tokenize": 7, "upstream": 251, "audit": 1_000_000, "total": total}
        outcome = Outcome("ok", rows=rows, encoded=2 * rows, decoded=4)
        observed.observe(msgspec.structs.replace(event(), outcome=outcome, stages=stages), action)
        counted.count(action, "ok", "AC-07", rows, 2 * rows, 4, 7, 251, 1_000_000, total)
    of_process = ("process_", "# HELP process_", "# TYPE process_")
    found = [line for line in lines(counted) if not line.startswith(of_process)]
    assert found == [line for line in lines(observed) if not line.startswith(of_process)]
    assert 'grille_statements_total{action="other",outcome="ok",worker="0"} 1.0' in found
    assert 'grille_decisions_total{allow="true",control="AC-07",worker="0"} 4.0' in found
    assert 'grille_stage_seconds_bucket{le="2.5e-05",stage="total",worker="0"} 2.0' in found
    assert 'grille_stage_seconds_bucket{le="30.0",stage="total",worker="0"} 3.0' in found
    assert 'grille_stage_seconds_count{stage="total",worker="0"} 4.0' in found
    assert 'grille_stage_seconds_sum{stage="total",worker="0"} 40.000051' in found
    assert 'grille_values_encoded_total{worker="0"} 8.0' in found


def test_intents_and_lifecycle_records_are_not_statements() -> None:
    metrics = Metrics()
    metrics.observe(event("intent"))
    metrics.observe(msgspec.structs.replace(event(), kind="lifecycle", outcome=None))
    assert not [line for line in lines(metrics) if line.startswith("grille_statements_total")]


def test_labels_are_bounded_whatever_agents_and_policies_say() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.observe(event(control=f"X-{number}"), f"action{number}")
    metrics.observe(event(control="x" * 500))
    found = lines(metrics)
    assert len([line for line in found if line.startswith("grille_decisions_total")]) == 201
    assert len([line for line in found if line.startswith("grille_statements_total")]) == 2
    assert not [line for line in found if "x" * 33 in line]


def test_states_are_read_at_the_scrape() -> None:
    metrics = Metrics()
    metrics.before_scrape.append(lambda: metrics.pool.labels("bank", "idle").set(7))
    assert 'grille_pool_connections{database="bank",state="idle",worker="0"} 7.0' in lines(metrics)


def test_one_family_is_described_once_for_all_workers() -> None:
    first, second = Metrics(), Metrics()
    first.refused("ID-01")
    second.refused("ID-01")
    text = exposition({"0": first.snapshot(), "1": second.snapshot()}).decode()
    assert text.count("# TYPE grille_handshakes_refused_total counter") == 1
    assert 'grille_handshakes_refused_total{control="ID-01",worker="1"} 1.0' in text


def test_the_reference_page_lists_exactly_the_metrics_that_exist() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    listed = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `grille_")}
    made = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Metrics().snapshot()
        if family.name.startswith("grille_")
    }
    node = {
        "grille_worker_up",
        "grille_worker_restarts_total",
        "grille_draining",
        "grille_build_info",
        "grille_bundle_fetch_failures_total",
        "grille_bundle_fetch_last_success_seconds",
    }
    assert listed == made | node


# logs


def formatted(record: logging.LogRecord) -> dict[str, object]:
    text = JsonFormatter(worker=3).format(record)
    assert "\n" not in text
    return msgspec.json.decode(text, type=dict[str, object])


def test_a_log_line_is_one_json_object_with_its_fields() -> None:
    logger = logging.getLogger("grille.test")
    record = logger.makeRecord(
        "grille.test",
        logging.INFO,
        "f",
        1,
        "serving %d",
        (3,),
        None,
        extra={"fields": {"port": 6432, "path": Path("/x")}},
    )
    line = formatted(record)
    assert line["message"] == "serving 3"
    assert line["level"] == "info"
    assert (line["port"], line["path"], line["worker"]) == (6432, "/x", 3)
    assert str(line["time"]).endswith("+00:00")


def test_the_text_of_an_exception_is_never_logged() -> None:
    try:
        raise ValueError("SELECT 'secret value'")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("grille.test", logging.ERROR, "f", 1, "it failed", (), info)
    line = formatted(record)
    assert line["exception"] == "ValueError"
    assert "test_telemetry.py" in str(line["at"])
    assert "secret" not in str(line)


def test_records_of_other_libraries_keep_only_the_first_line_of_their_template() -> None:
    message = "Task exception was never retrieved\nfuture: <Task exception=ValueError('secret')>"
    line = formatted(logging.LogRecord("asyncio", logging.ERROR, "f", 1, message, (), None))
    assert line["message"] == "Task exception was never retrieved"
    line = formatted(logging.LogRecord("asyncpg", logging.ERROR, "f", 1, "query %s", ("secret",), None))
    assert line["message"] == "query %s"


def test_a_name_that_is_no_utf8_can_be_logged() -> None:
    record = logging.makeLogRecord({"name": "grille.test", "msg": "x", "fields": {"path": "/tmp/\udcff"}})
    assert formatted(record)["path"] == r"'/tmp/\udcff'"


# the admin listener


async def ask(port: int, request: bytes) -> tuple[str, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    writer.write_eof()
    head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head.decode().partition("\r\n")[0], body.decode()


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        ("GET /livez HTTP/1.1", "HTTP/1.1 200 OK", "alive\n"),
        ("GET /metrics HTTP/1.1", "HTTP/1.1 200 OK", "numbers"),
        ("GET /metrics?x=1 HTTP/1.0", "HTTP/1.1 200 OK", "numbers"),
        ("HEAD /livez HTTP/1.1", "HTTP/1.1 200 OK", ""),
        ("GET /readyz HTTP/1.1", "HTTP/1.1 503 Service Unavailable", "no bundle\nno catalogue\n"),
        ("POST /metrics HTTP/1.1", "HTTP/1.1 405 Method Not Allowed", "only GET\n"),
        ("GET /other HTTP/1.1", "HTTP/1.1 404 Not Found", "there is /metrics, /livez and /readyz\n"),
        ("nonsense", "HTTP/1.1 400 Bad Request", "not an HTTP/1.1 request\n"),
    ],
)
async def test_admin_answers(request_line: str, status: str, body: str) -> None:
    reasons = ["no bundle", "no catalogue"]

    async def metrics() -> bytes:
        return b"numbers"

    async def readiness() -> list[str]:
        return reasons

    admin = Admin(metrics, readiness)
    port = await admin.start("127.0.0.1", 0)
    try:
        assert await ask(port, f"{request_line}\r\nHost: x\r\n\r\n".encode()) == (status, body)
        reasons.clear()
        assert await ask(port, b"GET /readyz HTTP/1.1\r\n\r\n") == ("HTTP/1.1 200 OK", "ready\n")
        assert await ask(port, b"GET /readyz HTTP/1.1\r\n") == ("", "")
        assert await ask(port, b"x" * 20_000) == ("", "")
    finally:
        await admin.close()
