"""Reloading the policy bundle: a broken one leaves the old one in force (OP-02)."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Callable
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


def _archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo({"wasm": "policy.wasm", "manifest": ".manifest", "data": "data.json"}[name])
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


DEEP = _archive(wasm=b"x", manifest=b'{"revision": "1"}', data=b'{"a":' * 100_000)
"""More deeply nested than Python's own JSON reader goes."""


class Watched:
    """A watch that runs, and the events it has told."""

    def __init__(self, policy: Policy) -> None:
        self.path = policy.bundle
        self.events: list[tuple[str, str]] = []
        self._told = asyncio.Event()
        self.watch = BundleWatch(policy, self._on_event)
        assert self.watch.reload()
        self.task = asyncio.create_task(self.watch.watch())

    def _on_event(self, name: str, text: str) -> None:
        self.events.append((name, text))
        self._told.set()

    async def told(self, count: int) -> None:
        """Wait until so many events were told since the start."""
        async with asyncio.timeout(20):
            while len(self.events) < count:
                self._told.clear()
                await self._told.wait()

    async def noticed(self, raw: bytes) -> None:
        """Wait until these bytes were read, and no longer."""
        async with asyncio.timeout(20):
            while self.watch._seen != raw:
                await asyncio.wait([self.task], timeout=0.001)

    def replace(self, raw: bytes) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(raw)
        new.rename(self.path)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    running = Watched(_policy(tmp_path))
    yield running
    assert not running.task.done()
    running.task.cancel()
    await asyncio.gather(running.task, return_exceptions=True)


@pytest.mark.parametrize("raw", [b"broken", DEEP], ids=["not a bundle", "deeply nested"])
async def test_the_watch_goes_on_after_a_broken_bundle(watched: Watched, raw: bytes) -> None:
    engine = watched.watch.current
    watched.replace(raw)
    await watched.told(2)
    assert watched.events[1][0] == "bundle-refused"
    assert watched.watch.current is engine
    assert watched.watch.failures == 1
    watched.replace(DEMO.read_bytes())
    await watched.told(3)
    assert watched.events[2][0] == "bundle"
    assert not watched.watch.problem
    assert watched.watch.failures == 1


async def test_a_file_that_is_gone_is_reported_once_and_the_old_bundle_stays(watched: Watched) -> None:
    engine = watched.watch.current
    watched.path.unlink()
    await watched.told(2)
    assert watched.watch.problem
    for _ in range(5):
        await asyncio.wait([watched.task], timeout=0.02)
    watched.replace(DEMO.read_bytes())
    await watched.told(3)
    assert [name for name, _ in watched.events] == ["bundle", "bundle-refused", "bundle"]
    assert watched.watch.current is engine
    assert not watched.watch.problem


async def test_agents_do_not_wait_while_a_bundle_is_compiled(watched: Watched, another: Callable[[str], bytes]) -> None:
    before = watched.watch.revision
    new = another("# changed")
    watched.replace(new)
    await watched.noticed(new)
    assert watched.watch.revision == before  # the loop runs, and the new bundle is not ready
    await watched.told(2)
    assert watched.watch.revision != before


async def test_a_reload_overtakes_a_bundle_that_is_still_being_compiled(
    watched: Watched, another: Callable[[str], bytes]
) -> None:
    older, newer = another("# older"), another("# newer")
    watched.replace(older)
    await watched.noticed(older)
    watched.replace(newer)
    assert watched.watch.reload()
    revision = watched.watch.revision
    watched.path.unlink()
    await watched.told(3)  # the watch is past the older bundle: it has seen the file go
    assert [name for name, _ in watched.events] == ["bundle", "bundle", "bundle-refused"]
    assert watched.watch.revision == revision


@pytest.fixture
def another(tmp_path: Path) -> Callable[[str], bytes]:
    """The demo's bundle with a line more."""
    if build.find_opa() is None:
        pytest.skip("the opa program is not installed: this case compiles bundles of its own")

    def compile(line: str) -> bytes:
        sources = tmp_path / f"sources{len(list(tmp_path.iterdir()))}"
        sources.mkdir()
        for path in build.source_files(build.SOURCES):
            (sources / path.name).write_bytes(path.read_bytes())
        (sources / "decision.rego").write_text(f"{(build.SOURCES / 'decision.rego').read_text()}\n{line}\n")
        build.build(sources, sources / "new.tar.gz")
        return (sources / "new.tar.gz").read_bytes()

    return compile
