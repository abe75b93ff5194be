"""Vault Transform over HTTP: the data path, on connections that are kept open.

For each transformation and direction one request is in flight at a time; what comes meanwhile waits, and goes together
with the next.  So a node under load makes few large requests, and an idle one none that waits for company.  What is
asked, and what a reply means, is in `grille.tokenization.vault`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp

from grille.proxy.config import Vault
from grille.proxy.vault_login import VaultLogin
from grille.tokenization.provider import TokenizationError, TokenizationRefused, TokenRequest, Unfit
from grille.tokenization.vault import (
    Answer,
    Breaker,
    Cache,
    Direction,
    Queue,
    VaultTransformation,
    judge,
    wait_before,
)

log = logging.getLogger("grille.vault")

MAX_REPLY: Final = 64 * 1024 * 1024
"""Bytes of a reply that are read at most."""
_CONNECTIONS: Final = 16
_KEPT_SECONDS: Final = 60.0
_PIECE: Final = 64 * 1024
_UNFIT: Final[dict[str, Unfit]] = {
    "encode": Unfit("the value does not fit the template"),
    "decode": Unfit("the stored value does not fit the template"),
}


class VaultTransform:
    """A `TokenProvider` over a Vault's Transform engine; `watch` must run.

    Its errors, for operators, hold no value and no token.  The event loop must be running.
    """

    def __init__(
        self,
        settings: Vault,
        transformations: Sequence[VaultTransformation],
        on_event: Callable[[str, str], None] | None = None,
    ) -> None:
        """`on_event(name, text)` is called with what `VaultLogin` says, and with ``vault`` or ``vault-away``."""
        self._settings = settings
        self._on_event = on_event or (lambda name, text: None)
        self._loop = asyncio.get_running_loop()
        self._session: aiohttp.ClientSession | None = None
        self._seen_files: tuple[int, ...] | None = None
        self._leaving: list[aiohttp.ClientSession] = []
        self._closing: set[asyncio.Task[None]] = set()
        self.login = VaultLogin(settings, on_event)
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
        self.cache = Cache(settings.cache_entries, settings.cache_seconds)
        self.transformations = {each.name: each for each in transformations}
        self._lanes: dict[tuple[str, Direction], _Lane] = {}
        self.outcomes = {"answered": 0, "failed": 0, "refused": 0}
        """Attempts of the data path: answered, without an answer that can be used, and refused by Vault."""
        self.problem = ""
        """Why the last request had no answer; empty if it had one."""

    def __repr__(self) -> str:
        return f"VaultTransform({', '.join(self.transformations)})"

    async def encode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        """Values to tokens, in order.  Raises `TokenizationError` if Vault does not answer within ``vault.timeout``."""
        return await self._ask(batch, "encode")

    async def decode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        """Tokens to values, in order.  Raises `TokenizationError` if Vault does not answer within ``vault.timeout``."""
        return await self._ask(batch, "decode")

    async def watch(self) -> None:
        """Keep the login, until cancelled."""
        await self.login.watch()

    async def close(self) -> None:
        """Let go of the connections; what is being asked gets no answer."""
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        leaving, self._leaving = self._leaving, []
        for session in (*leaving, self._session):
            if session is not None:
                await session.close()
        await asyncio.gather(*self._closing)

    async def _ask(self, batch: Sequence[TokenRequest], direction: Direction) -> Sequence[str | Unfit]:
        """Waits for nothing, not even for a turn of the loop, if every answer is known.

        Who gives up waiting takes back what was not sent yet; so the coroutine may be tried and closed.
        """
        now = self._loop.time()
        answers: list[str | Unfit | None] = [None] * len(batch)
        places: dict[tuple[str, str], list[int]] = {}
        for place, request in enumerate(batch):
            places.setdefault((request.transformation, request.value), []).append(place)
        missing: list[tuple[VaultTransformation, str, list[int]]] = []
        for (name, value), where in places.items():
            transformation = self.transformations.get(name)
            if transformation is None:
                raise TokenizationError(f"the transformation {name!r} is not configured")
            answer: str | Unfit | None = _UNFIT[direction]
            if transformation.fits(value):
                answer = self.cache.get(direction, transformation.vault_name, value, now)
            if answer is None:
                missing.append((transformation, value, where))
            for place in where:
                answers[place] = answer
        if missing:
            if self.breaker.blocks(now):
                raise TokenizationError(f"Vault is not asked for a while: {self.problem}")
            await self._missing(missing, direction, answers)
        return [answer if answer is not None else Unfit("no reply") for answer in answers]

    async def _missing(
        self,
        missing: Sequence[tuple[VaultTransformation, str, list[int]]],
        direction: Direction,
        answers: list[str | Unfit | None],
    ) -> None:
        call = _Call(self._loop.create_future(), answers, len(missing))
        lanes: dict[_Lane, set[_Entry]] = {}
        try:
            for transformation, value, where in missing:
                lane = self._lane(transformation, direction)
                entry = _Entry(call, value, transformation.item(value), where)
                lane.queue.add(entry)
                lanes.setdefault(lane, set()).add(entry)
            for lane in lanes:
                lane.wake()
            timer = self._loop.call_later(self._settings.timeout, call.late, self._settings.timeout)
            try:
                await call.done
            finally:
                timer.cancel()
        finally:
            call.over = True
            if call.left:
                for lane, entries in lanes.items():
                    lane.queue.withdraw(entries)

    def _lane(self, transformation: VaultTransformation, direction: Direction) -> _Lane:
        lane = self._lanes.get((transformation.name, direction))
        if lane is None:
            lane = self._lanes[transformation.name, direction] = _Lane(self, transformation, direction)
        return lane

    # one request

    async def request(
        self, transformation: VaultTransformation, direction: Direction, entries: Sequence[_Entry]
    ) -> list[str | Unfit]:
        """Ask, and ask again while there is time and somebody waits.  Raises `TokenizationError`."""
        settings, loop = self._settings, self._loop
        deadline = loop.time() + settings.timeout
        body = transformation.body([entry.item for entry in entries], direction)
        attempt = 0
        replaced = False
        while True:
            wait = 0.0
            try:
                async with asyncio.timeout_at(deadline):
                    token = await self.login.token()
                    if not self.breaker.allows(loop.time()):
                        raise TokenizationError(f"Vault is not asked for a while: {self.problem}")
                    status, raw, wait = await self._post(f"{direction}/{settings.role}", body, token)
            except TimeoutError:
                raise self._failed(f"Vault did not answer within {settings.timeout:g} s") from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                problem = self._failed(f"Vault cannot be asked ({type(error).__name__})")
            else:
                match judge(status, raw):
                    case Answer.DONE:
                        return self._done(transformation, direction, entries, raw)
                    case Answer.FORBIDDEN:
                        self._answers("refused")
                        self.cache.clear()
                        if replaced:
                            raise TokenizationRefused("Vault refuses what Grille asks, though it has just logged in")
                        replaced = True
                        async with _until(deadline, settings.timeout):
                            await self.login.replace(token)
                        continue
                    case Answer.STALE:
                        self.breaker.succeeded()
                        problem = TokenizationError("Vault's replica is not up to date")
                    case Answer.BUSY:
                        problem = self._failed(f"Vault answers {status}")
                    case Answer.WRONG:
                        self._answers("refused")
                        raise TokenizationRefused(f"Vault answers {status} to a request to {direction}")
            wait = wait_before(attempt, random.random(), wait)  # noqa: S311
            attempt += 1
            if loop.time() + wait >= deadline or all(entry.call.over for entry in entries):
                raise problem
            await asyncio.sleep(wait)

    def _done(
        self, transformation: VaultTransformation, direction: Direction, entries: Sequence[_Entry], raw: bytes
    ) -> list[str | Unfit]:
        values = [entry.value for entry in entries]
        try:
            answers = transformation.read(raw, values, direction)
        except TokenizationRefused:
            self._answers("refused")
            self.cache.clear()
            raise
        except TokenizationError as error:
            raise self._failed(str(error)) from None
        self._answers("answered")
        now, end = self._loop.time(), self.login.lease_end
        for value, answer in zip(values, answers, strict=True):
            if isinstance(answer, str):
                self.cache.put(direction, transformation.vault_name, value, answer, now, end)
        return answers

    def _answers(self, outcome: str) -> None:
        """It is there, whatever it says."""
        self.outcomes[outcome] += 1
        self.breaker.succeeded()
        if self.problem:
            self.problem = ""
            log.info("Vault answers again")
            self._on_event("vault", "answers again")

    def _failed(self, problem: str) -> TokenizationError:
        self.outcomes["failed"] += 1
        self.breaker.failed(self._loop.time())
        if not self.problem:
            log.error("Vault does not answer", extra={"fields": {"problem": problem}})
            self._on_event("vault-away", problem)
        self.problem = problem
        return TokenizationError(problem)

    async def _post(self, path: str, body: bytes, token: str) -> tuple[int, bytes, float]:
        """Status and body of an answer, and the seconds after which Vault wants to be asked again."""
        settings = self._settings
        headers = {"Content-Type": "application/json", "X-Vault-Token": token, "X-Vault-Request": "true"}
        if settings.namespace:
            headers["X-Vault-Namespace"] = settings.namespace
        url = f"{settings.address.rstrip('/')}/v1/{settings.mount}/{path}"
        async with self._client().post(url, data=body, headers=headers, allow_redirects=False) as answer:
            raw = bytearray()
            while len(raw) <= MAX_REPLY and (piece := await answer.content.read(_PIECE)):
                raw += piece
            if len(raw) > MAX_REPLY:
                raise ValueError("too long")
            return answer.status, bytes(raw), _seconds(answer.headers.get("Retry-After", ""))

    def _client(self) -> aiohttp.ClientSession:
        """The connections in use; new ones if a certificate file was replaced, as SPIFFE helpers do every hour or so.

        Raises OSError or ValueError if there are none and the files cannot be used; else the old ones stay in use.
        """
        files = self._files()
        if self._session is not None and files == self._seen_files:
            return self._session
        self._seen_files = files
        settings = self._settings
        context: Any = True
        try:
            if settings.address.startswith("https:"):
                context = ssl.create_default_context(cafile=settings.ca)
                if settings.client_certificate is not None:
                    context.load_cert_chain(settings.client_certificate, settings.client_key)
        except (OSError, ValueError) as error:
            if self._session is None:
                self._seen_files = None
                raise
            log.error(
                "new certificates for Vault cannot be used; the old ones stay",
                extra={"fields": {"problem": type(error).__name__}},
            )
            return self._session
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=context, keepalive_timeout=_KEPT_SECONDS)
        old, self._session = (
            self._session,
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)),
        )
        if old is not None:
            self._leaving.append(old)
            self._loop.call_later(2 * settings.timeout, self._leave, old)  # after what is in flight there
        return self._session

    def _files(self) -> tuple[int, ...]:
        """When each certificate file was last written; 0 for one that is not there."""
        settings = self._settings
        found = []
        for path in (settings.ca, settings.client_certificate, settings.client_key):
            if path is not None:
                try:
                    found.append(path.stat().st_mtime_ns)
                except OSError:
                    found.append(0)
        return tuple(found)

    def _leave(self, session: aiohttp.ClientSession) -> None:
        if session not in self._leaving:
            return
        task = self._loop.create_task(session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._leaving.remove(session)


class _Call:
    """One call of `encode` or `decode`."""

    def __init__(self, done: asyncio.Future[None], answers: list[str | Unfit | None], left: int) -> None:
        self.done = done
        self.answers = answers
        self.left = left
        """Values without an answer."""
        self.over = False
        """Nobody waits any more."""

    def give(self, places: Sequence[int], answer: str | Unfit) -> None:
        """One value has its answer."""
        for place in places:
            self.answers[place] = answer
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: TokenizationError) -> None:
        """There will be none."""
        if not self.done.done() and not self.over:
            self.done.set_exception(error)

    def late(self, seconds: float) -> None:
        """The time is over."""
        self.fail(TokenizationError(f"Vault did not answer within {seconds:g} s"))


class _Entry:
    """One value of a call, at all places where it is."""

    __slots__ = ("call", "item", "places", "value")

    def __init__(self, call: _Call, value: str, item: bytes, places: Sequence[int]) -> None:
        self.call = call
        self.value = value
        self.item = item
        self.places = places

    @property
    def size(self) -> int:
        """Bytes of a request, with its reference and separators."""
        return len(self.item) + 16


class _Lane:
    """One transformation in one direction: one request at a time."""

    def __init__(self, owner: VaultTransform, transformation: VaultTransformation, direction: Direction) -> None:
        self._owner = owner
        self._transformation = transformation
        self._direction = direction
        settings = owner._settings
        self.queue: Queue[_Entry] = Queue(settings.batch_values, settings.batch_bytes - _ROOM)
        self.task: asyncio.Task[None] | None = None
        self._woken = False

    def wake(self) -> None:
        """Something waits: send it, after this turn of the loop, unless a request is in flight."""
        if self.task is None and not self._woken:
            self._woken = True
            self._owner._loop.call_soon(self._next)

    def _next(self) -> None:
        self._woken = False
        if self.task is None and (entries := self.queue.take()):
            self.task = self._owner._loop.create_task(self._run(entries))

    async def _run(self, entries: list[_Entry]) -> None:
        error = TokenizationError("the request was given up")
        answers: list[str | Unfit] | None = None
        try:
            answers = await self._owner.request(self._transformation, self._direction, entries)
        except TokenizationError as failed:
            error = failed
        finally:
            self.task = None
            if answers is None:
                for call in {entry.call for entry in entries}:
                    call.fail(error)
            else:
                for entry, answer in zip(entries, answers, strict=True):
                    entry.call.give(entry.places, answer)
            if len(self.queue):
                self.wake()


_ROOM: Final = 1024
"""Bytes of a request for what is not its values: the braces and the item that checks the key."""


class _until:  # noqa: N801  (it reads as a word)
    """`asyncio.timeout_at` whose end is a `TokenizationError`."""

    def __init__(self, deadline: float, seconds: float) -> None:
        self._timeout = asyncio.timeout_at(deadline)
        self._seconds = seconds

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            raise TokenizationError(f"Vault gave no new token within {self._seconds:g} s") from None


def _seconds(header: str) -> float:
    """Retry-After in seconds; its other form, a date, is not used by Vault and taken for nothing."""
    try:
        return max(0.0, float(header))
    except ValueError:
        return 0.0
