"""Fetches signed policy bundles from a bundle server, as OPA does: HTTP GET with ``If-None-Match``.

What was fetched and verified replaces the file ``policy.bundle``, which every worker watches and verifies again.  So
there is one way to a policy in force, and a node starts with its last good bundle while the server is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp

from grille.policies.bundle import MAX_BUNDLE, BundleReadError, parse
from grille.proxy.config import Policy
from grille.proxy.keys import bearer, bundle_verification

log = logging.getLogger("grille.policy")

FETCH_SECONDS: Final = 60.0
"""Longest time for one bundle."""
_CONNECT_SECONDS: Final = 10.0
_CHUNK: Final = 64 * 1024


class FetchError(Exception):
    """There is no new bundle; the message, for operators, says why."""


class BundleFetch:
    """Keeps the bundle file as new as the bundle server's."""

    def __init__(self, policy: Policy) -> None:
        """Raises `ConfigError` if the key that bundles must be signed with cannot be used."""
        assert policy.bundle is not None  # noqa: S101
        self._policy = policy
        self._path = policy.bundle
        self._server = policy.bundle_url.partition("?")[0]  # what may follow is a credential
        self._verification = bundle_verification(policy)
        self._tag = ""  # of the bundle in the file
        self._asked = asyncio.Event()
        self.failures = 0
        self.last_success = 0.0
        """Unix time at which the server was last heard of with a usable bundle, or none newer; 0.0: never."""
        self.problem = "the bundle server has not been asked yet"
        """Why the newest bundle is not in the file; empty if it is."""

    @property
    def has_one(self) -> bool:
        """Whether there is a bundle, be it an old one."""
        return self._path.is_file()

    async def watch(self) -> None:
        """Ask again and again until cancelled; a little unevenly, so that nodes do not ask together."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._policy.bundle_poll * random.uniform(0.9, 1.1))  # noqa: S311
            self._asked.clear()
            await self.fetch()

    def ask(self) -> None:
        """Have `watch` ask now."""
        self._asked.set()

    async def fetch(self) -> bool:
        """Ask once; True if the file holds the newest bundle.  What went wrong is logged, once, and in `problem`."""
        try:
            await self._fetch()
        except FetchError as error:
            self.failures += 1
            if str(error) != self.problem:
                log.error("a policy bundle cannot be fetched", extra={"fields": {"problem": str(error)}})
            self.problem = str(error)
            return False
        self.last_success = time.time()
        self.problem = ""
        return True

    async def get(self) -> tuple[bytes, str]:
        """The server's bundle, verified, and its entity tag; nothing is written.  Raises `FetchError`."""
        async with self._answer() as answer:
            return await self._read(answer)

    async def _fetch(self) -> None:
        async with self._answer(self._tag) as answer:
            if answer.status == 304:
                return
            raw, tag = await self._read(answer)
        try:
            await asyncio.to_thread(_replace, self._path, raw)
        except OSError as error:
            raise FetchError(f"{self._path} cannot be written: {error.strerror}") from None
        self._tag = tag
        log.info("a policy bundle was fetched", extra={"fields": {"bytes": len(raw)}})

    @contextlib.asynccontextmanager
    async def _answer(self, tag: str = "") -> AsyncIterator[aiohttp.ClientResponse]:
        policy = self._policy
        headers = {"If-None-Match": tag} if tag else {}
        limits = aiohttp.ClientTimeout(total=FETCH_SECONDS, sock_connect=_CONNECT_SECONDS)
        try:
            headers |= bearer(policy.bundle_token_file)
            context = ssl.create_default_context(cafile=policy.bundle_ca)
            async with (
                aiohttp.ClientSession(timeout=limits, auto_decompress=False) as session,
                session.get(policy.bundle_url, headers=headers, ssl=context, allow_redirects=False) as answer,
            ):
                yield answer
        except TimeoutError:
            raise FetchError(f"{self._server}: no answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a token's text is in none of these messages
            said = _said(error).replace(policy.bundle_url, self._server)
            raise FetchError(f"{self._server}: {type(error).__name__}: {said}") from None

    async def _read(self, answer: aiohttp.ClientResponse) -> tuple[bytes, str]:
        url = self._server
        if answer.status != 200:
            raise FetchError(f"{url}: the server answers {answer.status}")
        raw = bytearray()
        async for chunk in answer.content.iter_chunked(_CHUNK):
            raw += chunk
            if len(raw) > MAX_BUNDLE:
                raise FetchError(f"{url}: the bundle is larger than {MAX_BUNDLE} bytes")
        try:
            await asyncio.to_thread(parse, bytes(raw), self._verification)
        except BundleReadError as error:
            raise FetchError(f"{url}: {error}") from None
        return bytes(raw), answer.headers.get("ETag", "")


def _said(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the token is not ASCII text"
    return str(error).partition("\n")[0]


def _replace(path: Path, raw: bytes) -> None:
    """Replace a file as a whole, durably.  Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".bundle-", delete=False) as file:
        try:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
