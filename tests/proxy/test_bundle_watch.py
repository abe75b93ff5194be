"""Reloading the policy bundle: a broken one leaves the old one in force (OP-02)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import grille.policies.bundles
from grille.policies.bundles import build
from grille.policies.wasm import BundleError
from grille.proxy.bundle_watch import BundleWatch
from grille.proxy.config import Policy

DEMO = Path(grille.policies.bundles.__file__).parent / "demo.tar.gz"


def _policy(tmp_path: Path) -> Policy:
    path = tmp_path / "policy.tar.gz"
    path.write_bytes(DEMO.read_bytes())
    return Policy(bundle=path, reload_poll=0.01)


def test_before_the_first_bundle_nothing_is_decided(tmp_path: Path) -> None:
    watch = BundleWatch(Policy(bundle=tmp_path / "absent.tar.gz"))
    with pytest.raises(BundleError):
        _ = watch.current
    assert not watch.reload()
    with pytest.raises(BundleError, match="absent"):
        _ = watch.current


def test_a_broken_bundle_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    events: list[tuple[str, str]] = []
    policy = _policy(tmp_path)
    watch = BundleWatch(policy, lambda name, text: events.append((name, text)))
    assert watch.reload()
    engine = watch.current
    policy.bundle.write_bytes(b"broken")
    assert not watch.reload()
    assert watch.current is engine
    assert watch.failures == 1
    assert "gzipped tar" in watch.problem
    assert [name for name, _ in events] == ["bundle", "bundle-refused"]
    policy.bundle.write_bytes(DEMO.read_bytes())
    assert watch.reload()
    assert watch.problem == ""


async def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    if build.find_opa() is None:
        pytest.skip("the opa program is not installed: this case compiles a second bundle")
    noticed = asyncio.Event()
    policy = _policy(tmp_path)
    watch = BundleWatch(policy, lambda _name, _text: noticed.set())
    watch.reload()
    before = watch.revision
    noticed.clear()
    sources = tmp_path / "sources"
    sources.mkdir()
    for path in build.source_files(build.SOURCES):
        (sources / path.name).write_bytes(path.read_bytes())
    (sources / "decision.rego").write_text((build.SOURCES / "decision.rego").read_text() + "\n# changed\n")
    task = asyncio.create_task(watch.watch())
    build.build(sources, tmp_path / "new.tar.gz")
    (tmp_path / "new.tar.gz").rename(policy.bundle)
    async with asyncio.timeout(20):
        await noticed.wait()
    task.cancel()
    assert watch.revision != before
    assert not watch.problem
