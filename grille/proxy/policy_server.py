"""An OPA server as the policy engine: its Data API, one question for each decision that is not cached.

The answer says under which bundles it was made (``provenance``); they are the revision, so a new bundle on the server
makes new decisions here.  It is looked at with every answer, and by a question of our own every ``reload_poll``
seconds.  Sources: OPA's documentation, "REST API", sections "Data API" and "Provenance".
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import msgspec

from grille.policies.decision import Decision
from grille.policies.pdp import (
    MAX_ANSWER,
    DecisionError,
    LoggedDecision,
    PolicyUnavailable,
    Unanswered,
    decode,
)
from grille.proxy.bundle_watch import PROBE
from grille.proxy.config import Policy
from grille.proxy.keys import bearer

CONNECTIONS: Final = 16
"""Connections to the server, kept open; more questions wait for one."""
_KEPT_SECONDS: Final = 0.1
_PIECE: Final = 64 * 1024

_Outcome = Decision | PolicyUnavailable | DecisionError


class _Bundle(msgspec.Struct):
    revision: str = ""


class _Provenance(msgspec.Struct):
    bundles: dict[str, _Bundle] = {}


class _Answer(msgspec.Struct):
    provenance: _Provenance
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    decision_id: str = ""


_ANSWERS: Final = msgspec.json.Decoder(_Answer)


class ServerEngine:
    """The server under one revision: a `PolicyDecisionPoint`."""

    def __init__(self, revision: str, ask: Callable[[bytes], asyncio.Future[None]]) -> None:
        self._revision = revision
        self._ask = ask
        self.answers: dict[bytes, _Outcome] = {}
        """What those who waited have yet to fetch."""

    @property
    def revision(self) -> str:
        """``name=revision`` of each bundle that the server has; ``unversioned`` if it has none."""
        return self._revision

    def decide(self, document: bytes) -> Decision:
        """The decision for one policy input (JSON).

        Raises `Unanswered` until the server has said something, then `PolicyUnavailable` or `DecisionError` if that is
        no decision.
        """
        outcome = self.answers.get(document)
        if outcome is None:
            raise Unanswered(asyncio.shield(self._ask(document)))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class PolicyServer:
    """The engine in force, and how its server is."""

    def __init__(self, policy: Policy, on_event: Callable[[str, str], None] | None = None) -> None:
        """`on_event(name, text)` is called with ``bundle`` or ``bundle-refused``.  The event loop must be running."""
        self._policy = policy
        self._on_event = on_event or (lambda name, text: None)
        self._loop = asyncio.get_running_loop()
        self._session: aiohttp.ClientSession | None = None
        self._flights: dict[bytes, asyncio.Task[None]] = {}
        self._look = asyncio.Event()
        self.current = ServerEngine("unversioned", self._fly)
        """The engine in force."""
        self.last_success = 0.0
        """Unix time of the last answer that was a decision; 0 before the first."""
        self.failures = 0
        self.problem = "the policy server has not answered yet"
        """Why the last question of our own had no usable answer; empty if it had."""

    @property
    def revision(self) -> str:
        """Revision in force."""
        return self.current.revision

    def reload(self) -> bool:
        """Look at the server's revision now; True, since what comes of it shows later."""
        self._look.set()
        return True

    async def watch(self) -> None:
        """Look at the server's revision again and again, until cancelled."""
        try:
            while True:
                await self.look()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._look.wait(), self._policy.reload_poll)
                self._look.clear()
        finally:
            await self.close()

    async def close(self) -> None:
        """Let go of the connections; what is being asked gets no answer."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def look(self) -> None:
        """Ask one question of our own, and see how the server is."""
        outcome = await self._asked(PROBE)
        problem = f"{self._policy.server_url}: {outcome}" if isinstance(outcome, Exception) else ""
        if problem == self.problem:
            return
        self.problem = problem
        if problem:
            self.failures += 1
            self._on_event("bundle-refused", problem)
        else:
            self._on_event("bundle", f"revision {self.revision} is in force")

    def _fly(self, document: bytes) -> asyncio.Future[None]:
        """Ask, together with all who ask the same now."""
        flight = self._flights.get(document)
        if flight is None:
            flight = self._flights[document] = self._loop.create_task(self._fetch(document))
        return flight

    async def _fetch(self, document: bytes) -> None:
        try:
            outcome = await self._asked(document)
            answers = self.current.answers
            answers[document] = outcome
            self._loop.call_later(_KEPT_SECONDS, answers.pop, document, None)
        finally:
            del self._flights[document]

    async def _asked(self, document: bytes) -> _Outcome:
        """One question and what comes of it."""
        try:
            async with asyncio.timeout(self._policy.timeout):
                status, raw = await self._post(b'{"input":%s}' % document)
        except TimeoutError:
            return PolicyUnavailable(f"the policy server did not answer within {self._policy.timeout:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return PolicyUnavailable(f"the policy server cannot be asked: {type(error).__name__}")
        if status != 200:
            return PolicyUnavailable(f"the policy server answers {status}")
        if len(raw) > MAX_ANSWER:
            return DecisionError("the answer is too long")
        try:
            answer = _ANSWERS.decode(raw)
            if answer.result is msgspec.UNSET:
                return PolicyUnavailable("the policy is undefined for this input")
            decision = decode(bytes(answer.result))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return DecisionError(f"the policy server's answer: {error}")
        except DecisionError as error:
            return error
        self._follow(answer.provenance)
        self.last_success = time.time()
        return LoggedDecision.of(decision, answer.decision_id) if answer.decision_id else decision

    def _follow(self, provenance: _Provenance) -> None:
        bundles = provenance.bundles
        revision = ",".join(f"{name}={bundles[name].revision}" for name in sorted(bundles)) or "unversioned"
        if revision != self.revision:
            self.current = ServerEngine(revision, self._fly)
            if not self.problem:
                self._on_event("bundle", f"revision {revision} is in force")

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer, of which one byte more than `MAX_ANSWER` is read at most."""
        policy = self._policy
        headers = {"Content-Type": "application/json", **bearer(policy.server_token_file)}
        async with self._client().post(
            policy.server_url, params={"provenance": "true"}, data=body, headers=headers, allow_redirects=False
        ) as answer:
            raw = bytearray()
            while len(raw) <= MAX_ANSWER and (piece := await answer.content.read(_PIECE)):
                raw += piece
            return answer.status, bytes(raw)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            context: Any = True
            if self._policy.server_url.startswith("https:"):
                context = ssl.create_default_context(cafile=self._policy.server_ca)
            connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self._session
