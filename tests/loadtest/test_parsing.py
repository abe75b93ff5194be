"""What the load test reads: pgbench's output, samplers' output, the server's replies, /proc, a bundle."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from grille.policies import bundle
from grille.policies.bundles import build
from grille.policies.wasm import WasmEngine
from grille.proxy.authority import Authority
from grille.proxy.demo.cluster import debian_binaries
from loadtest import __main__ as command_line
from loadtest import agents, compare, contenders, drivers, profile, scenarios
from loadtest.contenders import Contender, Variant


def test_progress_lines() -> None:
    text = "progress: 2.0 s, 25823.1 tps, lat 2.466 ms stddev 1.120, 0 failed\n"
    assert scenarios.parse_progress(text) == (2.0, 25823.1)
    assert scenarios.parse_progress("pgbench: error: client 0 aborted") is None


def test_latency_logs_of_all_threads_are_read_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "latency.1").write_text("0 1 420 0 1764108000 100\n0 2 380 0 1764108000 900\n")
    (tmp_path / "latency.1.1").write_text("1 1 400 0 1764108000 200\n")
    assert scenarios.latencies(tmp_path.glob("latency.*")) == [380, 400, 420]


def test_statements_of_a_script() -> None:
    assert scenarios.statements(scenarios.SELECT) == 1
    assert scenarios.statements(scenarios.TRANSACTION) == 3
    assert scenarios.statements(scenarios.WRITES) == 7


def test_numbers_in_output() -> None:
    assert scenarios.number(r"tps = ([0-9.]+)", "tps = 12.5 (without initial connection time)") == 12.5
    assert scenarios.number(r"tps = ([0-9.]+)", "") == 0


def test_folded_stacks_lose_line_numbers_and_waiting_threads() -> None:
    lines = [
        "main (a.py:1);run (b.py:7) 3", "main (a.py:2);run (b.py:9) 2", "",
        "bootstrap (threading.py:1);_worker (concurrent/futures/thread.py:81) 90",
    ]  # fmt: skip
    stacks = profile.folded(lines)
    assert stacks == [(("main (a.py)", "run (b.py)"), 3), (("main (a.py)", "run (b.py)"), 2)]
    report = profile.text_report(stacks, cpu_us=50)
    assert report.startswith("5 samples\n")
    assert "100.0%           50.00  run (b.py)" in report


def test_recursion_counts_once_within() -> None:
    report = profile.text_report([(("f", "g", "f"), 1), (("g",), 1)], cpu_us=10)
    _, _, within = report.partition("with what it calls")
    assert " 50.0%            5.00  f" in within
    assert "100.0%           10.00  g" in within
    assert profile.text_report([], cpu_us=10) == "no samples\n"


def test_perf_samples() -> None:
    text = "python\n\t   7f01 inner+0x1\n\t   7f02 outer\n\npython\n\t   7f03 [unknown]\n\n"
    assert profile.scripted(text) == [(("outer", "inner+0x1"), 1), (("[unknown]",), 1)]


def test_a_pipeline_has_one_sync_or_one_each() -> None:
    def kinds(data: bytes) -> str:
        found, at = "", 0
        while at < len(data):
            found += chr(data[at])
            at += 1 + struct.unpack_from("!i", data, at + 1)[0]
        return found

    assert kinds(drivers.pipeline(3, False)) == "BEBEBES"
    assert kinds(drivers.pipeline(3, True)) == "BESBESBES"


def test_the_driver_names_an_error_and_never_takes_it_for_rows() -> None:
    reply = drivers.message(b"1", b"") + drivers.message(b"E", b"SERROR\0C42501\0Mno\0\0") + drivers.READY
    assert drivers.error_text(reply) == "42501 no"
    assert "without the rows" in drivers.error_text(drivers.READY)


def test_cpu_and_memory_of_a_process_family() -> None:
    code = "import sys; sum(range(20_000_000)); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in contenders.family(os.getpid())
        assert contenders.cpu_seconds([process.pid]) > 0.05
        assert contenders.resident_kib([process.pid]) > 1000
        process.communicate()
    assert contenders.cpu_seconds([process.pid]) == 0


def test_tokens_are_not_the_numbers_and_are_told_apart() -> None:
    cards = [contenders.card(aid) for aid in range(1, 200)]
    found = contenders.tokens(b"k" * 32, cards)
    assert len(set(found)) == len(cards) and not set(found) & set(cards)
    assert all(len(token) == 16 and token.isdecimal() for token in found)


@pytest.mark.parametrize("policies", [1, 500])
def test_the_bundle_grants_by_its_last_policy(tmp_path: Path, policies: int) -> None:
    contenders.write_policy(tmp_path / "policy.tar.gz", policies)
    made = bundle.read(tmp_path / "policy.tar.gz")
    assert len(made.data["policies"]) == policies
    engine = WasmEngine(made, "grille/decision", timeout=5)

    def decide(spiffe_id: str, scopes: str = "[]") -> object:
        return engine.decide(
            f"""{{"identity": {{"spiffe_id": "{spiffe_id}", "scopes": {scopes}, "attributes": {{"bid": 1}}}},
            "operation": {{"action": "select", "relations": [{{"schema": "public", "name": "pgbench_accounts",
            "access": "read"}}]}}}}""".encode()
        )

    granted = decide("spiffe://load.example/driver/1")
    assert granted.allow and not granted.passthrough  # type: ignore[attr-defined]
    assert granted.filters["public.pgbench_accounts"].value == 1  # type: ignore[attr-defined]
    assert granted.columns["public.pgbench_accounts.card"].read == "token"  # type: ignore[attr-defined]
    assert not decide("spiffe://other.example/driver/1").allow  # type: ignore[attr-defined]
    off = decide("spiffe://load.example/driver/1", '["all-rows", "no-limits", "clear-card"]')
    assert off.filters == {"public.pgbench_accounts": True}  # type: ignore[attr-defined]
    assert off.limits.rows is None  # type: ignore[attr-defined]
    assert off.columns["public.pgbench_accounts.card"].read == "clear"  # type: ignore[attr-defined]


def test_the_bundle_is_built_from_its_sources() -> None:
    sources = contenders.POLICY.parent / "policy"
    assert bundle.read(contenders.POLICY).revision.partition("+")[0] == build.revision(sources)


def test_each_control_that_can_be_turned_off_has_its_variant() -> None:
    found = {variant.name: variant for variant in compare.variants(scenarios.SCENARIOS["p1"], "power")}
    assert set(found) == {
        "grille", "grille+ff1", "grille-filter", "grille-limits", "grille-sensitive", "grille-audit",
    }  # fmt: skip
    assert found["grille-audit"].level == "process" and not found["grille-sensitive"].sensitive
    assert "grille-audit" not in {v.name for v in compare.variants(scenarios.SCENARIOS["p4"], "process")}
    writes = {variant.name: variant.level for variant in compare.variants(scenarios.SCENARIOS["writes"], "power")}
    assert writes["grille-strict"] == "strict"


def test_the_plain_build_is_measured_only_if_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRILLE_PLAIN", "1")
    assert command_line.main(["compare", "--scenario", "p1"]) == 2
    assert "--plain" in capsys.readouterr().err


@pytest.mark.parametrize("pooler", ["direct=/bin/true", "../x=/bin/true", "odd=/no/such/program", "odd"])
def test_a_pooler_is_a_name_and_a_program(pooler: str) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["compare", "--scenario", "p1", "--pooler", pooler])


@pytest.fixture
def scene() -> object:
    if debian_binaries(15) is None:
        pytest.skip("Debian's postgresql-15 is not installed")
    with contenders.stage(branches=1, pool_size=4, workers=1, plain=True) as made:
        yield made


def test_contenders_must_have_the_same_data(scene: contenders.Stage) -> None:
    grille, decoded = scene.grille(Variant("grille", "process")), scene.grille(
        Variant("grille+ff1", "process", ("clear-card",), card=True)
    )  # fmt: skip
    direct = scene.direct()
    assert compare.check_data(scene, [direct, grille, decoded]) == {}
    # Tokens where clear numbers are due, and the other way round.
    for settings, card in ((direct.settings, True), (decoded.settings, False)):
        with pytest.raises(compare.DifferentData, match="odd"):
            compare.check_data(scene, [Contender("odd", settings, list, card=card)])
    stranger = Authority("other.example").issue("driver/0").write(scene.directory, "stranger")
    port = int(grille.settings["PGPORT"])
    assert set(compare.check_data(scene, [Contender("x", scene.client(port, stranger), list)])) == {"x"}
    connected: list[int] = []
    with drivers.Driver(grille.settings, scene.agents(2), 3, connected.append) as driver:
        assert connected == [3]
        driver.command({"do": "warm up"})
        figures = driver.command({"do": "closed", "seconds": 0.2, "in_flight": 2})
        assert figures["count"] >= 2 and 0 < figures["p50_us"] <= figures["p99_us"]
        figures = driver.command({"do": "open", "seconds": 0.5, "active": 2, "rate": 20})
        assert figures["count"] == 10
    # A row that the filter hides is different data, and the raw driver misses it.
    subprocess.run(
        [contenders.program("psql"), "-Xqc", "UPDATE pgbench_accounts SET bid = 2 WHERE aid = 1"],
        env=direct.environment, check=True,
    )  # fmt: skip
    with pytest.raises(compare.DifferentData, match="grille"):
        compare.check_data(scene, [grille])
    with (
        drivers.Driver(grille.settings, scene.agents(1), 1) as driver,
        pytest.raises(drivers.ServerError, match="without the rows"),
    ):
        driver.command({"do": "warm up"})


def test_many_agents_beside_few(scene: contenders.Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """p7 at a small size: both are given the same load, and what it ends with are figures."""
    monkeypatch.setattr(agents, "ACTIVE", 4)
    said = io.StringIO()
    options = scenarios.Options("p7", rounds=1, seconds=0.5, plain=True, agents=12)
    runs, more = agents.p7(scene, options, "process", Console(file=said))
    assert list(runs) == ["4 connected", "12 connected"]
    few, many = (samples[0] for samples in runs.values())
    assert few.tps == pytest.approx(many.tps, rel=0.2)
    assert float(more["p99_ratio"]) > 0
    assert -2000 < float(more["kib_per_agent"]) < 2000
    assert "12 of 12 agents are connected" in said.getvalue()


def test_growth_has_one_beginning() -> None:
    axes = agents.points(10_000)
    assert {axis[0] for axis in axes.values()} == {agents.Point()}
    assert axes["identities"][-1].identities == axes["shapes"][-1].shapes == 10_000
    assert axes["policies"][-1].policies == 500


@pytest.mark.parametrize(("count", "shapes"), [(64, 10), (64, 10_000), (10_000, 10), (7, 7), (3, 0)])
def test_every_shape_is_run_and_every_agent_has_one(count: int, shapes: int) -> None:
    shared = drivers.share(count, shapes)
    assert len(shared) == count
    assert {shape for own in shared for shape in own} == set(range(shapes))
    assert all(shared) == bool(shapes)
    assert max(map(len, shared)) <= -(-shapes // count) if shapes else True
