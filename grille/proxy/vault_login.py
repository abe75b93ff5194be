"""Grille's token for Vault: logging in, renewing, and logging in anew.

Both go through ``hvac``, which blocks, in a thread.  Sources: HashiCorp, "AppRole", "Kubernetes", "JWT/OIDC" and "TLS
certificates auth method (API)", and "Token auth method (API)", ``renew-self``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from grille.proxy.config import Vault
from grille.tokenization.provider import TokenizationError, TokenizationRefused
from grille.tokenization.vault import renew_after

log = logging.getLogger("grille.vault")

REQUEST_SECONDS: Final = 5.0
"""Longest time for one answer to a login or renewal."""
FRESH_SECONDS: Final = 1.0
"""A token that was logged in for so recently, and is refused, is not replaced: the next would be refused too."""
_RETRY_SECONDS: Final = 1.0
_LONGEST_RETRY: Final = 15.0


class LoginFailed(TokenizationError):
    """Vault cannot be reached, or does not let Grille in.  The text, for operators, holds no secret."""


class Token:
    """What a login gave."""

    def __init__(self, secret: str, ttl: float, renewable: bool, got: float) -> None:
        self.secret = secret
        self.ttl = ttl
        """Seconds from `got`."""
        self.renewable = renewable
        self.got = got
        """By the clock of the event loop."""

    def __repr__(self) -> str:
        return f"Token(ttl={self.ttl:g}, renewable={self.renewable})"

    @property
    def end(self) -> float:
        """By the clock of the event loop."""
        return self.got + self.ttl


class VaultLogin:
    """Keeps one token; `watch` must run."""

    def __init__(self, settings: Vault, on_event: Callable[[str, str], None] | None = None) -> None:
        """`on_event(name, text)` is called with ``vault-login``, ``vault-renewal`` or ``vault-login-failed``."""
        self._settings = settings
        self._on_event = on_event or (lambda name, text: None)
        self._token: Token | None = None
        self._asked = asyncio.Event()
        self._again = True
        self._waiting: set[asyncio.Future[None]] = set()
        self.problem = ""
        """Why the last attempt to log in failed; empty if it did not, or none was made."""

    @property
    def lease_end(self) -> float:
        """Until when the token is good, by the clock of the event loop; 0.0 without one."""
        return self._token.end if self._token is not None else 0.0

    async def token(self) -> str:
        """The token, as soon as there is one.  Raises `LoginFailed` if it cannot be had for the moment."""
        while True:
            token = self._token
            if token is not None and asyncio.get_running_loop().time() < token.end:
                return token.secret
            if self.problem:
                raise LoginFailed(self.problem)
            await self._changed()

    async def replace(self, refused: str) -> None:
        """Have a token that Vault refuses replaced, and wait for it.

        Raises `TokenizationRefused` if it is so new that another would not help, `LoginFailed` as `token` does.
        """
        token = self._token
        if token is not None and token.secret == refused:
            if asyncio.get_running_loop().time() - token.got < FRESH_SECONDS:
                raise TokenizationRefused("Vault refuses what Grille asks, though it has just logged in")
            self._token = None
            self._again = True
            self.problem = ""
            self._asked.set()
        await self.token()

    async def watch(self) -> None:
        """Log in, and keep the token renewed, until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._asked.clear()
            try:
                await self._once()
            except LoginFailed as failed:
                failures += 1
                wait = min(_RETRY_SECONDS * 2 ** min(failures - 1, 8), _LONGEST_RETRY) * random.uniform(0.5, 1)  # noqa: S311
                held = self._token
                if held is None or held.end <= loop.time():
                    self._token = None
                    self._failed(str(failed))
                else:
                    wait = min(wait, held.end - loop.time())
            else:
                failures = 0
                token = self._token
                assert token is not None  # noqa: S101
                wait = renew_after(token.ttl, random.random())  # noqa: S311
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), wait)

    async def _once(self) -> None:
        """Renew the token, or log in if there is none that can be renewed.  Raises `LoginFailed`."""
        loop = asyncio.get_running_loop()
        old = self._token
        if old is not None and old.renewable and not self._again:
            started = loop.time()
            auth = await asyncio.to_thread(_renewed, self._settings, old.secret)
            if auth is not None and auth["lease_duration"] > 0:
                token = Token(old.secret, auth["lease_duration"], auth["renewable"], started)
                # near the most that a token may live, renewals give less and less: then it is time for a new one
                self._again = not token.renewable or token.ttl < old.ttl / 2
                self._have(token, "vault-renewal")
                return
        started = loop.time()
        auth = await asyncio.to_thread(_logged_in, self._settings)
        if auth["lease_duration"] <= 0:
            raise LoginFailed("Vault gives a token that does not say when it ends")
        self._again = not auth["renewable"]
        token = Token(auth["client_token"], auth["lease_duration"], auth["renewable"], started)
        self._have(token, "vault-login")

    def _have(self, token: Token, event: str) -> None:
        self._token = token
        self.problem = ""
        log.info(
            "Vault has given a token" if event == "vault-login" else "Vault has renewed the token",
            extra={"fields": {"seconds": token.ttl}},
        )
        self._on_event(event, f"for {token.ttl:g} s")
        self._tell()

    def _failed(self, problem: str) -> None:
        if problem != self.problem:
            log.error("Vault does not let Grille log in", extra={"fields": {"problem": problem}})
            self._on_event("vault-login-failed", problem)
        self.problem = problem
        self._tell()

    def _tell(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    async def _changed(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)


# what hvac does, in a thread


def client(settings: Vault, token: str = "") -> Any:
    """An ``hvac.Client`` that takes nothing from the environment.  Its user closes it (``adapter.close()``)."""
    import hvac  # it takes a while to import

    shown: tuple[str, str] | bool = False  # not None: hvac would take one from the environment, and a token and CAs too
    if settings.client_certificate is not None and settings.client_key is not None:
        shown = (str(settings.client_certificate), str(settings.client_key))
    made = hvac.Client(
        url=settings.address.rstrip("/"),
        token=token,
        cert=shown,
        verify=str(settings.ca) if settings.ca is not None else _system_cas(),
        timeout=REQUEST_SECONDS,
        allow_redirects=False,
        namespace=settings.namespace or None,
    )
    made.session.trust_env = False  # no proxy, no .netrc, no other CAs
    return made


def _system_cas() -> str | bool:
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def log_in(settings: Vault) -> str:
    """Log in once, for a command: the token.  Blocks.  Raises `LoginFailed`."""
    return str(_logged_in(settings)["client_token"])


def _logged_in(settings: Vault) -> dict[str, Any]:
    """The ``auth`` part of a login's answer.  Raises `LoginFailed`."""
    try:
        secrets = [
            _first_line(path) for path in (settings.role_id_file, settings.secret_id_file, settings.jwt_file) if path
        ]
    except (OSError, UnicodeDecodeError):
        raise LoginFailed("a file that Grille logs in with cannot be read") from None
    mount, role = settings.auth_mount or settings.auth, settings.auth_role
    with _asking("the login") as hvac_client:
        asked = hvac_client(settings, "")
        match settings.auth:
            case "approle":
                answer = asked.auth.approle.login(secrets[0], secrets[1], mount_point=mount)
            case "kubernetes":
                answer = asked.auth.kubernetes.login(role, secrets[-1], mount_point=mount)
            case "jwt":
                answer = asked.auth.jwt.jwt_login(role, secrets[-1], path=mount)
            case _:
                answer = asked.auth.cert.login(role, mount_point=mount)
        return _auth(answer)
    raise AssertionError("unreachable")


def _renewed(settings: Vault, token: str) -> dict[str, Any] | None:
    """The same for a renewal; None if Vault does not renew it.  Raises `LoginFailed` if it does not answer."""
    from hvac.exceptions import Forbidden, InvalidRequest

    with _asking("the renewal") as hvac_client:
        try:
            return _auth(hvac_client(settings, token).auth.token.renew_self())
        except (Forbidden, InvalidRequest):
            return None
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _asking(what: str) -> Any:
    """Makes clients, closes them, and turns every error into `LoginFailed`, without its text: that is Vault's."""
    from hvac.exceptions import VaultError

    made: list[Any] = []

    def make(settings: Vault, token: str) -> Any:
        made.append(client(settings, token))
        return made[-1]

    try:
        yield make
    except VaultError as error:
        raise LoginFailed(f"Vault refuses {what} ({type(error).__name__})") from None
    except OSError as error:  # all of requests' errors are
        raise LoginFailed(f"Vault does not answer {what} ({type(error).__name__})") from None
    except (LookupError, TypeError, ValueError, AttributeError):
        raise LoginFailed(f"Vault's answer to {what} is not understood") from None
    finally:
        for each in made:
            each.adapter.close()


def _auth(answer: Any) -> dict[str, Any]:
    auth = answer["auth"]
    return {
        "client_token": str(auth["client_token"]),
        "lease_duration": float(auth["lease_duration"]),
        "renewable": bool(auth["renewable"]),
    }


def _first_line(path: Path) -> str:
    return path.read_text(encoding="ascii").partition("\n")[0].strip()
