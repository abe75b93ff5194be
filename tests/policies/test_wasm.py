"""The engine: what it refuses at load, and what it makes of an answer that is none."""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import json
import random
import tarfile
import weakref
import zlib
from pathlib import Path

import pytest

import grille.policies.bundles
from grille.policies import bundle as bundles
from grille.policies.bundle import MAX_BUNDLE, MAX_CONTENT, MAX_FILES, BundleReadError, parse
from grille.policies.bundles import build
from grille.policies.pdp import DecisionError, PolicyUnavailable
from grille.policies.wasm import MAX_INPUT, BundleError, WasmEngine

DEMO = Path(grille.policies.bundles.__file__).parent / "demo.tar.gz"
ENTRYPOINT = "grille/decision"
ENDLESS = """package grille
decision := count([1 |
	some a in input.n
	some b in input.n
	some c in input.n
	some d in input.n
	a + b + c + d > 0
])
"""


AGENTS = ["spiffe://bank.example/ns/service/sa/assistant", "spiffe://bank.example/ns/staff/sa/exporter", "spiffe://x/y"]


def _question(spiffe_id: str, relation: str) -> bytes:
    document = {
        "identity": {"spiffe_id": spiffe_id, "attributes": {"branch": "0042"}},
        "operation": {"relations": [{"schema": "public", "name": relation, "access": "read"}]},
    }
    return json.dumps(document).encode()


def _compiled(tmp_path: Path, rego: str) -> bytes:
    """A bundle of one Rego module, by OPA's own compiler."""
    if build.find_opa() is None:
        pytest.skip("the opa program is not installed: this case compiles a policy of its own")
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "policy.rego").write_text(rego)
    build.build(sources, tmp_path / "bundle.tar.gz")
    return (tmp_path / "bundle.tar.gz").read_bytes()


def _archive(
    files: dict[str, bytes], *, pax: dict[str, str] | None = None, kind: bytes = tarfile.REGTYPE, times: int = 1
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            member.size = len(content)
            member.pax_headers = pax or {}
            for _ in range(times):
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _gzipped(*pieces: tuple[bytes, int]) -> bytes:
    """Each piece repeated so often, without holding them all."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = [packer.compress(piece) for piece, times in pieces for _ in range(times)]
    return b"".join((*packed, packer.flush()))


def _pax_bomb() -> bytes:
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    header.size = 2 * MAX_CONTENT
    return _gzipped((header.tobuf(), 1), (bytes(1 << 20), 2 * MAX_CONTENT >> 20))


MANIFEST = {"policy.wasm": b"x", ".manifest": b'{"revision": "1"}'}


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


def test_an_interruption_anywhere_leaves_the_next_answers_as_they_were() -> None:
    engine = WasmEngine(parse(DEMO.read_bytes()), ENTRYPOINT, timeout=1)
    documents = [_question(agent, relation) for agent in AGENTS for relation in ("customers", "customer_export")]
    expected = [engine.decide(document) for document in documents]
    budget = engine._budget
    chance = random.Random(1)
    interrupted = 0
    for _ in range(200):
        engine._budget = chance.randrange(100, 120_000)
        try:
            engine.decide(chance.choice(documents))
        except PolicyUnavailable as error:
            interrupted += "ran out of time" in str(error)
        engine._budget = budget
        index = chance.randrange(len(documents))
        assert engine.decide(documents[index]) == expected[index]
    assert interrupted > 50


@pytest.mark.parametrize("how", ["time-out", "abort"])
def test_thousands_of_failed_evaluations_do_not_use_the_engine_up(how: str) -> None:
    """Each leaves up to 64 bytes on the policy's own stack, which has 64 KiB."""
    engine = WasmEngine(parse(DEMO.read_bytes()), ENTRYPOINT)
    document = _question(AGENTS[0], "customers")
    budget = engine._budget
    for _ in range(1500):
        engine._budget = 5000 if how == "time-out" else budget
        with pytest.raises(PolicyUnavailable):
            engine.decide(document if how == "time-out" else b'{"identity": "\xff"}')
    engine._budget = budget
    assert engine.decide(document).allow


def test_an_engine_that_was_interrupted_often_holds_no_more_than_one_instance() -> None:
    engine = WasmEngine(parse(DEMO.read_bytes()), ENTRYPOINT)
    stores = []
    engine._budget = 1000
    for _ in range(50):
        with pytest.raises(PolicyUnavailable):
            engine.decide(_question(AGENTS[0], "customers"))
        stores.append(weakref.ref(engine._store))
    gc.collect()
    assert len({id(store()) for store in stores if store() is not None}) <= 1


def test_the_time_out_stops_an_endless_policy(tmp_path: Path) -> None:
    engine = WasmEngine(parse(_compiled(tmp_path, ENDLESS)), ENTRYPOINT, timeout=0.1)
    with pytest.raises(PolicyUnavailable, match="ran out of time"):
        engine.decide(json.dumps({"n": list(range(400))}).encode())


def test_a_policy_that_eats_memory_is_stopped_and_the_engine_goes_on(tmp_path: Path) -> None:
    rego = "package grille\ndecision := count([x | some x in numbers.range(1, input.n)])\n"
    engine = WasmEngine(parse(_compiled(tmp_path, rego)), ENTRYPOINT, timeout=30)
    with pytest.raises(PolicyUnavailable, match="malloc"):
        engine.decide(b'{"n": 50000000}')
    with pytest.raises(DecisionError):
        engine.decide(b'{"n": 5}')


def test_deeply_nested_input_denies_and_the_engine_goes_on() -> None:
    engine = WasmEngine(parse(DEMO.read_bytes()), ENTRYPOINT)
    with pytest.raises(PolicyUnavailable):
        engine.decide(b'{"identity": ' + b"[" * 400_000 + b"]" * 400_000 + b"}")
    assert engine.decide(_question(AGENTS[0], "customers")).allow


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
        (_archive({**MANIFEST, "data.json": b'{"a":' * 100_000}), "not JSON"),
        (_archive({**MANIFEST, "data.json": b'{"a": "\xff"}'}), "not JSON"),
        (_archive({"../policy.wasm": b""}), "not a plain file"),
        (_archive({"a/../../policy.wasm": b""}), "not a plain file"),
        (_archive({"policy.wasm": b""}, kind=tarfile.SYMTYPE), "not a plain file"),
        (_archive({"policy.wasm": b""}, kind=tarfile.LNKTYPE), "not a plain file"),
        (_archive({"policy.wasm": b""}, kind=tarfile.FIFOTYPE), "not a plain file"),
        (_archive({"policy.wasm": b"x"}, times=2), "a file twice"),
        (_archive({"policy.wasm": b"1", "/policy.wasm": b"2"}), "a file twice"),
        (_archive({"policy.wasm": b"1", "./policy.wasm": b"2"}), "a file twice"),
        (_archive({f"{n}.rego": b"" for n in range(MAX_FILES + 1)}), "more than 1000 files"),
        (_archive(MANIFEST, pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "gzipped tar"),
        (_archive(MANIFEST)[:-20], "cut short"),
        (_archive(MANIFEST) + b"more", "behind its end"),
        (_gzipped((bytes(1 << 20), (MAX_CONTENT >> 20) + 1)), "larger than"),
        (_pax_bomb(), "larger than"),
        (bytes(MAX_BUNDLE + 1), "larger than"),
    ],
)
def test_what_is_not_a_bundle_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(BundleReadError, match=message):
        parse(raw)


def test_a_damaged_archive_is_read_or_refused() -> None:
    good = gzip.decompress(DEMO.read_bytes())
    chance = random.Random(1)
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.choice([chance.randrange(1600), chance.randrange(len(good))])] = chance.randrange(256)
        with contextlib.suppress(BundleReadError):
            parse(gzip.compress(bytes(damaged), 1))


def test_a_damaged_module_is_refused_or_gives_answers_that_deny() -> None:
    """Whatever the module is, only the three named exceptions come out."""
    demo = parse(DEMO.read_bytes())
    chance = random.Random(2)
    for _ in range(6):
        wasm = bytearray(demo.wasm)
        for _ in range(3):
            wasm[chance.randrange(len(wasm))] ^= 1 << chance.randrange(8)
        damaged = bundles.Bundle(bytes(wasm), demo.data, "damaged", {})
        try:
            engine = WasmEngine(damaged, ENTRYPOINT)
            for agent in AGENTS:
                engine.decide(_question(agent, "customers"))
        except (BundleError, PolicyUnavailable, DecisionError):
            pass


@pytest.mark.parametrize("data", [{"a": float("nan")}, {"a": "\ud800"}])
def test_data_that_the_policy_cannot_read_is_refused(data: dict[str, object]) -> None:
    demo = parse(DEMO.read_bytes())
    with pytest.raises(BundleError):
        WasmEngine(bundles.Bundle(demo.wasm, {**demo.data, **data}, "1", {}), ENTRYPOINT)


def test_wasm_that_is_none_is_refused() -> None:
    raw = _archive({"policy.wasm": b"\0asm nonsense", ".manifest": b'{"revision": "1"}'})
    with pytest.raises(BundleError, match="not a WebAssembly module"):
        WasmEngine(parse(raw), ENTRYPOINT)
