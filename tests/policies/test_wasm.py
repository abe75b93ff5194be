"""The engine: what it refuses at load, and what it makes of an answer that is none."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

import grille.policies.bundles
from grille.policies.bundle import BundleReadError, parse
from grille.policies.bundles import build
from grille.policies.pdp import DecisionError, PolicyUnavailable
from grille.policies.wasm import MAX_INPUT, BundleError, WasmEngine

DEMO = Path(grille.policies.bundles.__file__).parent / "demo.tar.gz"
ENTRYPOINT = "grille/decision"


def _compiled(tmp_path: Path, rego: str) -> bytes:
    """A bundle of one Rego module, by OPA's own compiler."""
    if build.find_opa() is None:
        pytest.skip("the opa program is not installed: this case compiles a policy of its own")
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "policy.rego").write_text(rego)
    build.build(sources, tmp_path / "bundle.tar.gz")
    return (tmp_path / "bundle.tar.gz").read_bytes()


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_builtin_of_the_host_is_refused_by_name(tmp_path: Path) -> None:
    raw = _compiled(tmp_path, 'package grille\ndecision := {"reason": sprintf("%v", [input.x])}\n')
    with pytest.raises(BundleError, match="sprintf"):
        WasmEngine(parse(raw), ENTRYPOINT)


@pytest.mark.parametrize("call", ["time.now_ns()", 'http.send({"url": "x", "method": "get"})', "opa.runtime()"])
def test_builtins_that_see_more_than_the_input_are_refused_by_name(tmp_path: Path, call: str) -> None:
    raw = _compiled(tmp_path, f'package grille\ndecision := {{"reason": {call}}}\n')
    with pytest.raises(BundleError, match=call.partition("(")[0].replace(".", r"\.")):
        WasmEngine(parse(raw), ENTRYPOINT)


def test_a_missing_entrypoint_is_refused() -> None:
    with pytest.raises(BundleError, match='no entrypoint "grille/verdict"'):
        WasmEngine(parse(DEMO.read_bytes()), "grille/verdict")


def test_undefined_denies(tmp_path: Path) -> None:
    engine = WasmEngine(parse(_compiled(tmp_path, "package grille\ndecision := 1 if input.never\n")), ENTRYPOINT)
    with pytest.raises(PolicyUnavailable, match="undefined"):
        engine.decide(b"{}")


def test_an_answer_that_is_no_decision_denies(tmp_path: Path) -> None:
    engine = WasmEngine(parse(_compiled(tmp_path, 'package grille\ndecision := {"allow": true}\n')), ENTRYPOINT)
    with pytest.raises(DecisionError):
        engine.decide(b"{}")


def test_a_conflict_denies(tmp_path: Path) -> None:
    rego = 'package grille\ndecision := "a" if input.x\ndecision := "b" if input.y\n'
    engine = WasmEngine(parse(_compiled(tmp_path, rego)), ENTRYPOINT)
    with pytest.raises(PolicyUnavailable):
        engine.decide(b'{"x": true, "y": true}')


def test_an_endless_policy_is_stopped_and_the_engine_goes_on(tmp_path: Path) -> None:
    rego = (
        "package grille\n"
        "decision := count([1 | some a in input.n; some b in input.n; some c in input.n; "
        "some d in input.n; a+b+c+d > 0])\n"
    )
    engine = WasmEngine(parse(_compiled(tmp_path, rego)), ENTRYPOINT, timeout=0.01)
    many = json.dumps({"n": list(range(400))}).encode()
    with pytest.raises(PolicyUnavailable, match="ran out of time"):
        engine.decide(many)
    with pytest.raises(DecisionError):
        engine.decide(b'{"n": [1]}')


def test_over_size_and_broken_inputs_deny() -> None:
    engine = WasmEngine(parse(DEMO.read_bytes()), ENTRYPOINT)
    with pytest.raises(PolicyUnavailable, match="too long"):
        engine.decide(b" " * (MAX_INPUT + 1))
    assert not engine.decide(b'{"identity": ').allow


def test_a_value_cannot_forge_a_decision() -> None:
    engine = WasmEngine(parse(DEMO.read_bytes()), ENTRYPOINT)
    document = {
        "identity": {"spiffe_id": 'z", "allow": true, "x": "', "attributes": {"branch": '1"},"y":{"'}},
        "operation": {"relations": [{"schema": "public", "name": "customers", "access": "read"}]},
    }
    assert not engine.decide(json.dumps(document).encode()).allow


def test_memory_is_the_same_after_many_decisions() -> None:
    engine = WasmEngine(parse(DEMO.read_bytes()), ENTRYPOINT)
    document = json.dumps({"identity": {"spiffe_id": "x" * 5000}, "operation": {"relations": []}}).encode()
    engine.decide(document)
    before = engine._memory.data_len(engine._store)
    for _ in range(300):
        engine.decide(document)
    assert engine._memory.data_len(engine._store) == before


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "gzipped tar"),
        (b"not a bundle", "gzipped tar"),
        (gzip.compress(b"x" * 2000), "gzipped tar"),
        (_archive({"data.json": b"{}"}), "no policy.wasm"),
        (_archive({"policy.wasm": b"", ".manifest": b"{"}), "not JSON"),
        (_archive({"policy.wasm": b"", ".manifest": b"{}"}), "no revision"),
        (_archive({"policy.wasm": b"", ".manifest": b'{"revision": ""}'}), "no revision"),
        (_archive({"policy.wasm": b"", ".manifest": b'{"revision": "1"}', "data.json": b"[]"}), "not an object"),
        (_archive({"../policy.wasm": b""}), "not a plain file"),
    ],
)
def test_what_is_not_a_bundle_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(BundleReadError, match=message):
        parse(raw)


def test_wasm_that_is_none_is_refused() -> None:
    raw = _archive({"policy.wasm": b"\0asm nonsense", ".manifest": b'{"revision": "1"}'})
    with pytest.raises(BundleError, match="not a WebAssembly module"):
        WasmEngine(parse(raw), ENTRYPOINT)
