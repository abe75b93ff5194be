"""Keeps the policy bundle current: loaded at start, reloaded when its file changes or on SIGHUP.

A new bundle is started and asked once before it takes over.  A broken one leaves the old one in force, is counted and
is reported; the same bytes are not tried again.  While it watches, bundles are compiled in a thread: that takes longer
than agents should wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from grille.policies.bundle import MAX_BUNDLE, BundleReadError, parse
from grille.policies.pdp import DecisionError, PolicyUnavailable
from grille.policies.wasm import BundleError, WasmEngine
from grille.proxy.config import Policy
from grille.proxy.keys import bundle_verification

PROBE = (
    b'{"identity":{"spiffe_id":"spiffe://probe.invalid/probe","trust_domain":"probe.invalid","path":["probe"],'
    b'"cert_sha256":"","scopes":[],"attributes":{}},"session":{"protocol":"postgres","database":"probe"},'
    b'"operation":{"action":"select","relations":[],"functions":[]}}'
)


class BundleWatch:
    """The engine in force, and what happened to the bundles since."""

    def __init__(self, policy: Policy, on_event: Callable[[str, str], None] | None = None) -> None:
        """`on_event(name, text)` is called with ``bundle`` or ``bundle-refused``.

        Raises `ConfigError` if the key that bundles must be signed with cannot be used.
        """
        assert policy.bundle is not None  # noqa: S101
        self._policy = policy
        self._path = policy.bundle
        self._verification = bundle_verification(policy)
        self._on_event = on_event or (lambda name, text: None)
        self._engine: WasmEngine | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._seen: bytes | None = None
        self._in_force: bytes | None = None
        self.last_success = 0.0
        """Unix time of the last bundle put in force; 0 before the first."""
        self.failures = 0
        self.problem = "the policy bundle has not been loaded yet"
        """Why the newest bundle is not in force; empty if it is."""

    @property
    def revision(self) -> str:
        """Revision in force; empty before the first bundle."""
        return self._engine.revision if self._engine is not None else ""

    @property
    def current(self) -> WasmEngine:
        """The engine in force.  Raises `BundleError` before the first bundle."""
        if self._engine is None:
            raise BundleError(self.problem)
        return self._engine

    def reload(self) -> bool:
        """Load the file if it is new; True if the newest bundle is in force."""
        raw = self._read()
        if raw is not None:
            self._take(raw, self._tried(raw))
        return not self.problem

    async def watch(self) -> None:
        """Poll the file until cancelled."""
        while True:
            await asyncio.sleep(self._policy.reload_poll)
            try:
                status = self._path.stat()
            except OSError:
                stamp = None
            else:
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                continue
            raw = self._read()
            if raw is not None:
                outcome = await asyncio.to_thread(self._tried, raw)
                if raw is self._seen:  # else `reload` has found a newer one meanwhile
                    self._take(raw, outcome)

    def _read(self) -> bytes | None:
        """The bytes of a file that has not been tried yet, else None."""
        path = self._path
        self._stamp = None
        try:
            status = path.stat()
            self._stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            with path.open("rb") as file:
                raw = file.read(MAX_BUNDLE + 1)
        except OSError as error:
            self._seen = None
            self._failed(f"{path}: {error.strerror}")
            return None
        if raw == self._in_force:
            self._seen = raw
            if self.problem:
                self.problem = ""
                self._on_event("bundle", f"revision {self.revision} is in force")
            return None
        if raw == self._seen:
            return None
        self._seen = raw
        return raw

    def _tried(self, raw: bytes) -> WasmEngine | str:
        """An engine that has answered once, or what is wrong with the bundle."""
        try:
            engine = WasmEngine(parse(raw, self._verification), self._policy.entrypoint, timeout=self._policy.timeout)
            engine.decide(PROBE)
        except (BundleReadError, BundleError, PolicyUnavailable, DecisionError) as error:
            return f"{self._path}: {error}"
        except Exception as error:  # an unforeseen fault of a bundle must not end the worker (OP-02)
            return f"{self._path}: {type(error).__name__}: {error}"
        return engine

    def _take(self, raw: bytes, outcome: WasmEngine | str) -> None:
        if isinstance(outcome, str):
            self._failed(outcome)
            return
        self._engine = outcome
        self._in_force = raw
        self.last_success = time.time()
        self.problem = ""
        self._on_event("bundle", f"revision {outcome.revision} is in force")

    def _failed(self, problem: str) -> None:
        self.failures += 1
        self.problem = problem
        self._on_event("bundle-refused", problem)
