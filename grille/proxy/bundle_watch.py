"""Keeps the policy bundle current: loaded at start, reloaded when its file changes or on SIGHUP.

A new bundle is started and asked once before it takes over.  A broken one leaves the old one in force, is counted and
is reported; the same bytes are not tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from grille.policies.bundle import BundleReadError, parse
from grille.policies.pdp import DecisionError, PolicyUnavailable
from grille.policies.wasm import BundleError, WasmEngine
from grille.proxy.config import Policy

_PROBE = (
    b'{"identity":{"spiffe_id":"spiffe://probe.invalid/probe","trust_domain":"probe.invalid","path":["probe"],'
    b'"cert_sha256":"","scopes":[],"attributes":{}},"session":{"protocol":"postgres","database":"probe"},'
    b'"operation":{"action":"select","relations":[],"functions":[]}}'
)


class BundleWatch:
    """The engine in force, and what happened to the bundles since."""

    def __init__(self, policy: Policy, on_event: Callable[[str, str], None] | None = None) -> None:
        """`on_event(name, text)` is called with ``bundle`` or ``bundle-refused``."""
        self._policy = policy
        self._on_event = on_event or (lambda name, text: None)
        self._engine: WasmEngine | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._seen: bytes | None = None
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
        path = self._policy.bundle
        try:
            status = path.stat()
            raw = path.read_bytes()
        except OSError as error:
            return self._failed(f"{path}: {error.strerror}")
        self._stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if raw == self._seen:
            return not self.problem
        self._seen = raw
        try:
            engine = WasmEngine(parse(raw), self._policy.entrypoint, timeout=self._policy.timeout)
            engine.decide(_PROBE)
        except (BundleReadError, BundleError, PolicyUnavailable, DecisionError) as error:
            return self._failed(f"{path}: {error}")
        self._engine = engine
        self.last_success = time.time()
        self.problem = ""
        self._on_event("bundle", f"revision {engine.revision} is in force")
        return True

    async def watch(self) -> None:
        """Poll the file until cancelled."""
        while True:
            await asyncio.sleep(self._policy.reload_poll)
            try:
                status = self._policy.bundle.stat()
            except OSError:
                continue
            if (status.st_mtime_ns, status.st_size, status.st_ino) != self._stamp:
                self.reload()

    def _failed(self, problem: str) -> bool:
        self.failures += 1
        self.problem = problem
        self._on_event("bundle-refused", problem)
        return False
