"""A stand-in for Vault with its Transform engine, as their HTTP API documents them.

It is for tests: it keeps everything in memory and is no vault.  Its FPE is FF1 by ``grille.tokenization.ff1`` with a
key of its own for each transformation, so a token here says nothing about what a licensed Vault would make of the
value; what it holds us to is the API: paths, bodies, batches and their quirks, errors, tokens and their ends.

There: encode, decode, rewrap (single and ``batch_input``), validate, tokenized and metadata; roles, transformations
(fpe, masking, tokenization), templates, alphabets and stores; namespaces; policies in JSON; login by AppRole,
Kubernetes, JWT and certificate; looking up, renewing and revoking tokens; the errors that a client must survive, by
`Faults`.  Not there: snapshots, restoring and exporting of tokenization, key rotation, leases, response wrapping.

``python -m tests.vault.server --port 8200`` runs one by hand; its root token is ``root``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import json
import re
import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from grille.tokenization.ff1 import FF1

MAX_REQUEST: Final = 32 * 1024 * 1024
"""Vault's default ``max_request_size``."""
TWEAK_BYTES: Final = 7
_MINIMUM_DOMAIN: Final = 1_000_000

_ALPHABETS: Final = {
    "builtin/numeric": "0123456789",
    "builtin/alphalower": "abcdefghijklmnopqrstuvwxyz",
    "builtin/alphaupper": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "builtin/alphanumericlower": "0123456789abcdefghijklmnopqrstuvwxyz",
    "builtin/alphanumericupper": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "builtin/alphanumeric": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
}
_TEMPLATES: Final = {
    "builtin/creditcardnumber": r"(\d{4})[- ]?(\d{4})[- ]?(\d{4})[- ]?(\d{4})",
    "builtin/socialsecuritynumber": r"(\d{3})[- ]?(\d{2})[- ]?(\d{4})",
}


_SAID: Final = {
    412: "required index state not present",
    429: "request path rate limit exceeded",
    473: "performance standby",
    503: "Vault is sealed",
}


class Fault(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(*errors)
        self.status = status
        self.errors = list(errors)


class ItemFault(Exception):
    """One value cannot be done; Vault says so for the item of a batch, or with 400 for a single value."""


@dataclass
class Faults:
    """What is wrong with the server at the moment.  A test sets these while it runs."""

    sealed: bool = False
    statuses: deque[int] = field(default_factory=deque)
    """Answers of the next requests of the data path (encode, decode), one each."""
    status: int = 0
    """The answer of every request of the data path; 0: the true one."""
    only: str = ""
    """Such an answer (of ``status``) is given to this operation only, like ``decode``."""
    retry_after: str = ""
    """Header with these."""
    partial_status: int = 400
    """Status of a batch of which an item failed; 200 is the other that is seen."""
    decoded_name: str = "decoded_value"
    """Key of a decoded item of a batch; the documentation's sample has ``encoded_value``."""
    body: bytes | None = None
    """The body of every answer of the data path that is a 200."""
    drop: bool = False
    """Connections of the data path end without an answer."""
    held: bool = False
    """Requests of the data path get no answer until `Vault.release`."""


@dataclass
class Token:
    """A token of Vault."""

    id: str
    accessor: str
    policies: list[str]
    namespace: str
    created: float
    ttl: float
    expires: float
    """Unix time; infinity for root."""
    max_ttl: float
    renewable: bool
    path: str
    metadata: dict[str, str]


@dataclass
class Engine:
    """One mounted Transform engine."""

    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    transformations: dict[str, dict[str, Any]] = field(default_factory=dict)
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    alphabets: dict[str, dict[str, Any]] = field(default_factory=dict)
    stores: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, dict[str, tuple[str, float, dict[str, str]]]] = field(default_factory=dict)
    """Tokenization: value, end and metadata by token, by transformation."""

    def alphabet(self, name: str) -> str:
        """Raises `Fault`."""
        if name in _ALPHABETS:
            return _ALPHABETS[name]
        if name not in self.alphabets:
            raise Fault(400, f"alphabet {name} not found")
        return str(self.alphabets[name]["alphabet"])

    def template(self, name: str) -> dict[str, Any]:
        """Raises `Fault`."""
        if name in _TEMPLATES:
            return {"type": "regex", "pattern": _TEMPLATES[name], "alphabet": "builtin/numeric"}
        if name not in self.templates:
            raise Fault(400, f"template {name} not found")
        return self.templates[name]


@dataclass
class Space:
    """One namespace."""

    engines: dict[str, Engine] = field(default_factory=dict)
    methods: dict[str, tuple[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    """Kind of an authentication method, and what was written to it by path, by where it is mounted."""
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Seen:
    """One request of the data path."""

    path: str
    items: int
    bytes: int
    peer: object
    namespace: str
    token: str


class _Handler(web.RequestHandler):
    """Takes LIST, which aiohttp's parser does not know, for the GET with ``list=true`` that Vault also documents."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Raw bytes of a connection."""
        if data.startswith(b"LIST "):
            target, _, rest = data[5:].partition(b" ")
            data = b"GET %s?list=true %s" % (target, rest)
        super().data_received(data)


class Vault:
    """The stand-in.  `start` runs it in a thread of its own: blocking clients and other processes can use it."""

    def __init__(
        self,
        *,
        version: str = "2.1.0+ent",
        max_request: int = MAX_REQUEST,
        tls: ssl.SSLContext | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Before version 2.1.0, FPE transformations say nothing of their algorithm (there it is FF3-1)."""
        self.version = version
        self.faults = Faults()
        self.seen: list[Seen] = []
        """Requests of the data path, in order."""
        self.logins: list[str] = []
        """Where was logged in, in order."""
        self.renewals = 0
        self.most_in_flight = 0
        """Most requests of the data path at the same time."""
        self.ahead = 0.0
        """Seconds by which this server's clock is ahead."""
        self._in_flight = 0
        self._now = now
        self._tls = tls
        self._max_request = max_request
        self._spaces: dict[str, Space] = {"": Space()}
        self._tokens: dict[str, Token] = {}
        self.root = "root"
        self._tokens[self.root] = Token(
            self.root, "a-root", ["root"], "", now(), 0, float("inf"), 0, False, "auth/token/root", {}
        )
        self._released: asyncio.Event | None = None
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self.port = 0

    # life

    @property
    def url(self) -> str:
        """Its address."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> Vault:
        """Listen, in a thread of its own."""
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._listen())
        return self

    def stop(self) -> None:
        """End it, and what is open to it."""
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        assert self._thread is not None
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Vault:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def down(self) -> None:
        """Close the port and every connection; what it knows stays."""
        self._do(self._close())

    def up(self) -> None:
        """Listen on the same port again."""
        self._do(self._listen())

    def release(self) -> None:
        """Answer those that were held."""
        self.faults.held = False
        assert self._released is not None
        self._loop.call_soon_threadsafe(self._released.set)

    def _do(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    async def _listen(self) -> None:
        application = web.Application(client_max_size=self._max_request)
        application.router.add_route("*", "/v1/{path:.*}", self._answer)
        self._released = asyncio.Event()
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        handlers = self._runner.server
        assert handlers is not None

        def handler() -> asyncio.Protocol:
            made = handlers()
            made.__class__ = _Handler
            return made

        self._server = await self._loop.create_server(handler, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._runner is not None:
            if self._released is not None:
                self._released.set()
            assert self._server is not None
            self._server.close()
            server = self._runner.server
            for connection in server.connections if server is not None else ():
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()
            self._runner = None
            for _ in range(8):  # until what was aborted is closed
                await asyncio.sleep(0)

    # what a test does to it

    def engine(self, mount: str = "transform", namespace: str = "") -> Engine:
        """What is mounted there."""
        return self._spaces[namespace].engines[mount]

    def mount(self, mount: str = "transform", namespace: str = "") -> Engine:
        """Mount an engine, in a namespace that is made if it has to be."""
        return self._spaces.setdefault(namespace, Space()).engines.setdefault(mount, Engine())

    def rekey(
        self, transformation: str, mount: str = "transform", namespace: str = "", key: bytes | None = None
    ) -> bytes:
        """Give a transformation another key, as a Vault that was set up anew has it; the one that it had.

        That is between two requests, never within one.
        """
        keys = self.engine(mount, namespace).keys
        before = keys.get(transformation, b"")

        async def change() -> None:
            keys[transformation] = key or secrets.token_bytes(32)

        self._do(change())
        return before

    def revoke_all(self) -> None:
        """Revoke every token but root's."""
        for each in [token for token in self._tokens if token != self.root]:
            del self._tokens[each]

    # requests

    def now(self) -> float:
        """Unix time, by this server's clock."""
        return self._now() + self.ahead

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"].strip("/")
        try:
            return await self._routed(request, path)
        except web.HTTPRequestEntityTooLarge:
            return _errors(413, ["http: request body too large"])
        except Fault as fault:
            headers = {"Retry-After": self.faults.retry_after} if self.faults.retry_after else {}
            return _errors(fault.status, fault.errors, headers)
        except ItemFault as fault:
            return _errors(400, [str(fault)])

    async def _routed(self, request: web.Request, path: str) -> web.StreamResponse:
        if path == "sys/health":
            return self._health()
        if self.faults.sealed:
            raise Fault(503, "Vault is sealed")
        raw = await request.read()
        body: dict[str, Any] = {}
        if raw:
            try:
                body = json.loads(raw)
            except ValueError:
                raise Fault(400, "failed to parse JSON input") from None
            if not isinstance(body, dict):
                raise Fault(400, "failed to parse JSON input")
        namespace = request.headers.get("X-Vault-Namespace", "").strip("/")
        space = self._spaces.get(namespace)
        login = re.fullmatch(r"auth/(.+)/login", path)
        if login is not None:
            if space is None:
                raise Fault(404, f'no handler for route "{path}". route entry not found.')
            return self._login(request, space, namespace, login[1], body)
        token = self._token(request, namespace)
        if space is None:
            raise Fault(404, f'no handler for route "{path}". route entry not found.')
        method = "LIST" if request.query.get("list") == "true" else request.method
        self._permit(space, token, method, path)
        engine, rest = self._mounted(space, path)
        if engine is None:
            return self._system(space, namespace, token, method, path, body)
        part, _, name = rest.partition("/")
        if part in ("encode", "decode", "rewrap", "validate", "tokenized", "metadata") and method in ("POST", "PUT"):
            peer = request.transport.get_extra_info("peername") if request.transport is not None else None
            items = body.get("batch_input")
            count = len(items) if isinstance(items, list) else 1
            self.seen.append(Seen(f"{part}/{name}", count, len(raw), peer, namespace, token.id))
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            try:
                return await self._data(request, engine, part, name, body)
            finally:
                self._in_flight -= 1
        return self._administer(engine, method, part, name, body)

    def _health(self) -> web.Response:
        status = 503 if self.faults.sealed else 200
        return _json(
            {"initialized": True, "sealed": self.faults.sealed, "standby": False, "version": self.version}, status
        )

    @staticmethod
    def _mounted(space: Space, path: str) -> tuple[Engine | None, str]:
        for mount in sorted(space.engines, key=len, reverse=True):
            if path.startswith(f"{mount}/"):
                return space.engines[mount], path[len(mount) + 1 :]
        return None, path

    def _token(self, request: web.Request, namespace: str) -> Token:
        given = request.headers.get("X-Vault-Token", "")
        if not given:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        token = self._tokens.get(given)
        if token is None or token.expires <= self.now():
            self._tokens.pop(given, None)
            raise Fault(403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
        if token.namespace and namespace != token.namespace and not namespace.startswith(f"{token.namespace}/"):
            raise Fault(403, "permission denied")
        return token

    def _permit(self, space: Space, token: Token, method: str, path: str) -> None:
        if "root" in token.policies or path in ("auth/token/lookup-self", "auth/token/renew-self",
                                                "auth/token/revoke-self"):  # fmt: skip
            return
        wanted = {"GET": "read", "LIST": "list", "DELETE": "delete"}.get(method, "update")
        for policy in token.policies:
            for pattern, rule in space.policies.get(policy, {}).get("path", {}).items():
                found = "".join("[^/]+" if c == "+" else re.escape(c) for c in pattern.removesuffix("*"))
                if re.fullmatch(found + (".*" if pattern.endswith("*") else ""), path):
                    capabilities = rule["capabilities"]
                    if wanted in capabilities or (wanted == "update" and "create" in capabilities):
                        return
        raise Fault(403, "1 error occurred:\n\t* permission denied\n\n")

    # tokens

    def _issue(
        self, namespace: str, path: str, policies: Sequence[str], ttl: float, max_ttl: float, metadata: dict[str, str],
        renewable: bool = True,
    ) -> Token:  # fmt: skip
        now = self.now()
        ttl = ttl or 2_764_800.0
        token = Token(
            f"hvs.{secrets.token_urlsafe(24)}", secrets.token_hex(12), list(policies), namespace, now, ttl, now + ttl,
            max_ttl, renewable, path, metadata,
        )  # fmt: skip
        self._tokens[token.id] = token
        return token

    def _auth(self, token: Token) -> web.Response:
        left = round(token.expires - self.now()) if token.expires != float("inf") else 0
        auth = {
            "client_token": token.id, "accessor": token.accessor, "policies": token.policies,
            "token_policies": token.policies, "metadata": token.metadata, "lease_duration": left,
            "renewable": token.renewable, "entity_id": "", "token_type": "service", "orphan": True,
        }  # fmt: skip
        return _json({"request_id": secrets.token_hex(8), "auth": auth, "data": None, "warnings": None})

    def _tokens_of(self, token: Token, namespace: str, method: str, action: str, body: dict[str, Any]) -> web.Response:
        if action in ("lookup", "renew", "revoke") and method in ("POST", "PUT"):
            found = self._tokens.get(str(body.get("token", "")))
            if found is None or found.expires <= self.now():
                raise Fault(403 if action == "lookup" else 400, "bad token")
            token, action = found, f"{action}-self"
        match action:
            case "lookup-self":
                left = 0 if token.expires == float("inf") else int(token.expires - self.now())
                return _data(
                    {"id": token.id, "accessor": token.accessor, "policies": token.policies, "ttl": left,
                     "creation_ttl": int(token.ttl), "renewable": token.renewable, "path": token.path,
                     "explicit_max_ttl": int(token.max_ttl), "meta": token.metadata, "type": "service"}
                )  # fmt: skip
            case "renew-self":
                if not token.renewable:
                    raise Fault(400, "lease is not renewable")
                self.renewals += 1
                wanted = self.now() + (_seconds(body.get("increment")) or token.ttl)
                most = token.created + token.max_ttl if token.max_ttl else float("inf")
                token.expires = min(wanted, most)
                return self._auth(token)
            case "revoke-self":
                del self._tokens[token.id]
                return _empty()
            case "create":
                ttl, most = _seconds(body.get("ttl")), _seconds(body.get("explicit_max_ttl"))
                made = self._issue(
                    namespace, "auth/token/create", body.get("policies") or token.policies, ttl, most, {},
                    bool(body.get("renewable", True)),
                )  # fmt: skip
                return self._auth(made)
        raise Fault(404, "unsupported path")

    # logging in

    def _login(
        self, request: web.Request, space: Space, namespace: str, mount: str, body: dict[str, Any]
    ) -> web.Response:
        kind, written = space.methods.get(mount, ("", {}))
        if not kind:
            raise Fault(403, "permission denied")
        role_name, role = {
            "approle": self._approle, "kubernetes": self._kubernetes, "jwt": self._jwt, "cert": self._certificate,
        }[kind](request, written, body)  # fmt: skip
        self.logins.append(f"{namespace}/{mount}".strip("/"))
        policies = role.get("token_policies") or role.get("policies") or []
        policies = policies.split(",") if isinstance(policies, str) else policies
        ttl, most = _seconds(role.get("token_ttl")), _seconds(role.get("token_max_ttl"))
        return self._auth(
            self._issue(namespace, f"auth/{mount}/login", ["default", *policies], ttl, most, {"role": role_name})
        )

    def _approle(
        self, request: web.Request, written: dict[str, dict[str, Any]], body: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        for path, role in written.items():
            if path.startswith("role/") and role["role_id"] == body.get("role_id"):
                if not role.get("bind_secret_id", True):
                    return path[5:], role
                left = role["secret_ids"].get(str(body.get("secret_id")))
                if left is not None:
                    if left == 1:
                        del role["secret_ids"][body["secret_id"]]
                    elif left:
                        role["secret_ids"][body["secret_id"]] = left - 1
                    return path[5:], role
        raise Fault(400, "invalid role or secret ID")

    def _claims(self, keys: Sequence[str], body: dict[str, Any], audiences: Sequence[str]) -> dict[str, Any]:
        for pem in keys:
            key = load_pem_public_key(pem.encode())
            assert isinstance(key, (RSAPublicKey, EllipticCurvePublicKey))
            algorithm = "RS256" if isinstance(key, RSAPublicKey) else "ES256"
            try:
                return dict(
                    jwt.decode(
                        str(body.get("jwt")), key, [algorithm], audience=list(audiences) or None,
                        options={"verify_exp": False, "verify_aud": bool(audiences)},
                    )
                )  # fmt: skip
            except jwt.PyJWTError:
                continue
        raise Fault(400, "error validating token: invalid signature, audience or claims")

    def _jwt(
        self, request: web.Request, written: dict[str, dict[str, Any]], body: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        name = str(body.get("role") or written.get("config", {}).get("default_role", ""))
        role = written.get(f"role/{name}")
        if role is None:
            raise Fault(400, f'role "{name}" could not be found')
        claims = self._claims(
            written.get("config", {}).get("jwt_validation_pubkeys", []), body, role.get("bound_audiences") or []
        )
        if claims.get("exp", 0) < self.now() - 60:
            raise Fault(400, "error validating token: token is expired")
        if role.get("bound_subject") and claims.get("sub") != role["bound_subject"]:
            raise Fault(400, "error validating claims: sub claim does not match")
        return name, role

    def _kubernetes(
        self, request: web.Request, written: dict[str, dict[str, Any]], body: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        name = str(body.get("role", ""))
        role = written.get(f"role/{name}")
        if role is None:
            raise Fault(400, f'invalid role name "{name}"')
        claims = self._claims(written.get("config", {}).get("pem_keys", []), body, [])
        _, _, where, account = (str(claims.get("sub", "")).split(":") + [""] * 4)[:4]
        spaces, accounts = role.get("bound_service_account_namespaces", []), role.get("bound_service_account_names", [])
        if where not in spaces and "*" not in spaces:
            raise Fault(403, "namespace not authorized")
        if account not in accounts and "*" not in accounts:
            raise Fault(403, "service account name not authorized")
        return name, role

    def _certificate(
        self, request: web.Request, written: dict[str, dict[str, Any]], body: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        transport = request.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        if der is None:
            raise Fault(400, "client certificate must be supplied")
        shown = x509.load_der_x509_certificate(der)
        uris: list[str] = []
        try:
            names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            pass
        for path, role in written.items():
            name = path.removeprefix("certs/")
            if body.get("name") and body["name"] != name:
                continue
            try:
                shown.verify_directly_issued_by(x509.load_pem_x509_certificate(role["certificate"].encode()))
            except (ValueError, TypeError):
                continue
            except Exception:
                continue
            allowed = role.get("allowed_uri_sans") or []
            allowed = allowed.split(",") if isinstance(allowed, str) else allowed
            if not allowed or any(uri in allowed for uri in uris):
                return name, role
        raise Fault(400, "failed to match all constraints for this login certificate")

    # system and methods

    def _system(
        self, space: Space, namespace: str, token: Token, method: str, path: str, body: dict[str, Any]
    ) -> web.Response:
        writes = method in ("POST", "PUT")
        if path.startswith("auth/token/"):
            return self._tokens_of(token, namespace, method, path[11:], body)
        kind, _, name = path.removeprefix("sys/").partition("/") if path.startswith("sys/") else ("", "", "")
        match kind:
            case "mounts" if not name:
                return _data({f"{mount}/": {"type": "transform"} for mount in space.engines})
            case "mounts" if writes:
                if body.get("type") != "transform":
                    raise Fault(400, f"plugin not found in the catalog: {body.get('type')}")
                if name in space.engines:
                    raise Fault(400, f"path is already in use at {name}/")
                space.engines[name] = Engine()
                return _empty()
            case "mounts" if method == "DELETE":
                space.engines.pop(name, None)
                return _empty()
            case "auth" if writes:
                if name in space.methods:
                    raise Fault(400, f"path is already in use at {name}/")
                space.methods[name] = (str(body["type"]), {})
                return _empty()
            case "auth" if method == "DELETE":
                space.methods.pop(name, None)
                return _empty()
            case "policy" | "policies":
                return self._policy(space, method, name.removeprefix("acl/"), body)
            case "namespaces" if writes:
                self._spaces.setdefault(f"{namespace}/{name}".strip("/"), Space())
                return _data({"path": f"{name}/", "id": secrets.token_hex(3)})
            case "namespaces" if method == "DELETE":
                self._spaces.pop(f"{namespace}/{name}".strip("/"), None)
                return _empty()
        for mount, (what, written) in space.methods.items():
            if path.startswith(f"auth/{mount}/"):
                return self._method(what, written, method, path[len(mount) + 6 :], body)
        raise Fault(404, f'no handler for route "{path}". route entry not found.')

    @staticmethod
    def _policy(space: Space, method: str, name: str, body: dict[str, Any]) -> web.Response:
        if method == "DELETE":
            space.policies.pop(name, None)
        elif method in ("POST", "PUT"):
            try:
                space.policies[name] = json.loads(body["policy"])
            except ValueError:
                raise Fault(400, "this stand-in reads policies in JSON only") from None
        else:
            if name not in space.policies:
                raise Fault(404)
            return _data({"name": name, "policy": json.dumps(space.policies[name])})
        return _empty()

    @staticmethod
    def _method(
        kind: str, written: dict[str, dict[str, Any]], method: str, path: str, body: dict[str, Any]
    ) -> web.Response:
        role, _, rest = path.removeprefix("role/").partition("/")
        found = written.get(f"role/{role}")
        if kind == "approle" and found is not None and rest == "role-id" and method == "GET":
            return _data({"role_id": found["role_id"]})
        if kind == "approle" and found is not None and rest == "secret-id":
            made = secrets.token_hex(16)
            found["secret_ids"][made] = int(found.get("secret_id_num_uses") or 0)
            return _data({"secret_id": made, "secret_id_accessor": secrets.token_hex(8), "secret_id_ttl": 0})
        if method in ("POST", "PUT"):
            kept = written.setdefault(path, {})
            if kind == "approle":
                kept.setdefault("role_id", secrets.token_hex(16))
                kept.setdefault("secret_ids", {})
            kept |= body
            return _empty()
        if path not in written:
            raise Fault(404)
        if method == "DELETE":
            del written[path]
            return _empty()
        return _data({name: value for name, value in written[path].items() if name != "secret_ids"})

    # the engine's configuration

    def _administer(self, engine: Engine, method: str, part: str, name: str, body: dict[str, Any]) -> web.Response:
        kind = ""
        if part == "transformations":
            kind, _, name = name.partition("/")
            part = "transformation"
        place = {
            "role": engine.roles, "transformation": engine.transformations, "template": engine.templates,
            "alphabet": engine.alphabets, "stores": engine.stores,
        }.get(part)  # fmt: skip
        if place is None:
            raise Fault(404, "unsupported path")
        builtin = {"alphabet": sorted(_ALPHABETS), "template": sorted(_TEMPLATES)}.get(part, [])
        if method == "LIST" or not name:
            keys = sorted([*place, *builtin])
            if method not in ("LIST", "GET") or (name and not keys):
                raise Fault(405, "unsupported operation")
            if not keys:
                raise Fault(404)
            return _data({"keys": keys})
        if method == "GET":
            if part == "alphabet" and name in _ALPHABETS:
                return _data({"alphabet": _ALPHABETS[name]})
            if part == "template" and name in _TEMPLATES:
                return _data(engine.template(name))
            if name not in place:
                raise Fault(404)
            return _data(place[name])
        if name in builtin:
            raise Fault(400, f"cannot modify builtin {part}")
        if method == "DELETE":
            place.pop(name, None)
            return _empty()
        if method not in ("POST", "PUT"):
            raise Fault(405, "unsupported operation")
        place[name] = getattr(self, f"_new_{part}")(engine, kind, name, body, place.get(name, {}))
        return _empty()

    @staticmethod
    def _new_stores(engine: Engine, kind: str, name: str, body: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
        return {**old, **{key: value for key, value in body.items() if key != "password"}}

    @staticmethod
    def _new_alphabet(
        engine: Engine, kind: str, name: str, body: dict[str, Any], old: dict[str, Any]
    ) -> dict[str, Any]:
        characters = str(body.get("alphabet", ""))
        if not 2 <= len(characters) <= 65536:
            raise Fault(400, "alphabet must contain between 2 and 65536 characters")
        if len(set(characters)) != len(characters):
            raise Fault(400, "alphabet contains duplicate characters")
        return {"alphabet": characters}

    @staticmethod
    def _new_template(
        engine: Engine, kind: str, name: str, body: dict[str, Any], old: dict[str, Any]
    ) -> dict[str, Any]:
        made = {**old, **body}
        if made.get("type", "regex") != "regex":
            raise Fault(400, "template type must be regex")
        engine.alphabet(str(made.get("alphabet", "")))
        try:
            pattern = re.compile(str(made.get("pattern", "")))
        except re.error:
            raise Fault(400, "unable to compile pattern") from None
        if not pattern.groups:
            raise Fault(400, "pattern must have a capture group")
        return {
            "type": "regex", "pattern": pattern.pattern, "alphabet": made["alphabet"],
            "encode_format": made.get("encode_format", ""), "decode_formats": made.get("decode_formats") or {},
        }  # fmt: skip

    def _new_transformation(
        self, engine: Engine, kind: str, name: str, body: dict[str, Any], old: dict[str, Any]
    ) -> dict[str, Any]:
        kind = kind or str(body.get("type") or old.get("type", ""))
        if kind not in ("fpe", "masking", "tokenization"):
            raise Fault(400, "unsupported transformation type")
        if old and old["type"] != kind:
            raise Fault(400, "type of an existing transformation cannot be changed")
        made: dict[str, Any] = {
            "type": kind, "allowed_roles": body.get("allowed_roles", old.get("allowed_roles", [])),
        }  # fmt: skip
        if kind == "tokenization":
            made |= {"mapping_mode": body.get("mapping_mode", "default"), "max_ttl": _seconds(body.get("max_ttl")),
                     "stores": body.get("stores") or ["builtin/internal"]}  # fmt: skip
            return made
        template = str(body.get("template") or (old.get("templates") or [""])[0])
        engine.alphabet(engine.template(template)["alphabet"])
        made["templates"] = [template]
        if kind == "masking":
            made["masking_character"] = str(body.get("masking_character") or "*")[:1]
            return made
        source = str(body.get("tweak_source") or old.get("tweak_source") or "supplied")
        if source not in ("supplied", "generated", "internal"):
            raise Fault(400, "invalid tweak source")
        if old and old["tweak_source"] != source:
            raise Fault(400, "tweak_source of an existing transformation cannot be changed")
        made["tweak_source"] = source
        if self.version >= "2.1":
            made["fpe_algorithm"] = str(body.get("fpe_algorithm") or old.get("fpe_algorithm") or "ff1")
        engine.keys.setdefault(name, secrets.token_bytes(32))
        return made

    @staticmethod
    def _new_role(engine: Engine, kind: str, name: str, body: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
        names = body.get("transformations") or []
        names = names.split(",") if isinstance(names, str) else names
        if not names:
            raise Fault(400, "at least one transformation is required")
        return {"transformations": list(names)}

    # the data path

    async def _data(
        self, request: web.Request, engine: Engine, part: str, name: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        faults = self.faults
        while faults.held:
            assert self._released is not None
            self._released.clear()
            await self._released.wait()
        if faults.drop and request.transport is not None:
            request.transport.abort()
            return web.Response()
        status = faults.statuses.popleft() if faults.statuses else faults.status
        if faults.only and faults.only != part:
            status = 0
        if status:
            raise Fault(status, _SAID.get(status, "internal error"))
        name, _, style = name.partition("/")
        items = body.get("batch_input")
        if items is None:
            return self._said(200, self._item(engine, part, name, style, body))
        if not isinstance(items, list) or not items:
            raise Fault(400, "missing batch input to process")
        results: list[dict[str, Any]] = []
        failed = False
        for item in items:
            try:
                if not isinstance(item, dict):
                    raise ItemFault("batch item is not an object")
                result = self._item(engine, part, name, style, item)
                if part == "decode" and "decoded_value" in result:
                    result[faults.decoded_name] = result.pop("decoded_value")
            except ItemFault as fault:
                failed = True
                result = {"error": str(fault)}
            if isinstance(item, dict) and item.get("reference"):
                result["reference"] = item["reference"]
            results.append(result)
        return self._said(faults.partial_status if failed else 200, {"batch_results": results})

    def _said(self, status: int, data: dict[str, Any]) -> web.Response:
        if self.faults.body is not None and status == 200:
            return web.Response(body=self.faults.body, content_type="application/json")
        return _data(data, status)

    def _item(self, engine: Engine, part: str, role: str, style: str, item: dict[str, Any]) -> dict[str, Any]:
        """One value.  Raises `Fault` for what concerns the whole request, `ItemFault` for the value."""
        value = item.get("value")
        if not isinstance(value, str) or not value:
            raise ItemFault("missing value")
        name = self._chosen(engine, role, item.get("transformation"))
        if part == "rewrap":
            before = self._chosen(engine, role, item.get("decode_transformation") or name)
            clear = self._changed(engine, before, value, item.get("decode_tweak"), "decode", "", {})
            return self._changed(engine, name, clear["decoded_value"], item.get("tweak"), "encode", "", item)
        return self._changed(engine, name, value, item.get("tweak"), part, style, item)

    @staticmethod
    def _chosen(engine: Engine, role: str, name: object) -> str:
        if role not in engine.roles:
            raise Fault(400, f"role {role} not found")
        allowed = engine.roles[role]["transformations"]
        if name is None:
            if len(allowed) != 1:
                raise ItemFault("transformation must be specified: the role has several")
            name = allowed[0]
        found = engine.transformations.get(str(name))
        if found is None or name not in allowed:
            raise ItemFault(f"transformation {name} not found in the role")
        if not any(each == role or (each.endswith("*") and role.startswith(each[:-1])) or each == "*"
                   for each in found["allowed_roles"]):  # fmt: skip
            raise ItemFault(f"role {role} is not allowed by the transformation")
        return str(name)

    def _changed(
        self, engine: Engine, name: str, value: str, tweak: object, part: str, style: str, item: dict[str, Any]
    ) -> dict[str, Any]:
        transformation = engine.transformations[name]
        if transformation["type"] == "tokenization":
            return self._tokenized(engine, name, value, part, item)
        if part not in ("encode", "decode"):
            raise ItemFault("operation is for tokenization transformations only")
        template = engine.template(transformation["templates"][0])
        pattern = re.compile(template["pattern"])
        found = pattern.fullmatch(value)
        if found is None:
            raise ItemFault("unable to find matching expression on value")
        spans = [found.span(number) for number in range(1, pattern.groups + 1) if found.span(number)[0] >= 0]
        alphabet = engine.alphabet(template["alphabet"])
        text = "".join(value[start:end] for start, end in spans)
        if transformation["type"] == "masking":
            if part == "decode":
                raise ItemFault("decode is not supported by masking")
            return {"encoded_value": _joined(value, spans, transformation["masking_character"] * len(text))}
        if any(character not in alphabet for character in text):
            raise ItemFault("value has characters outside of the alphabet")
        if len(alphabet) ** len(text) < _MINIMUM_DOMAIN:
            raise ItemFault("input is too short for the alphabet")
        result: dict[str, Any] = {}
        used = self._tweak(transformation["tweak_source"], name, tweak, part, result)
        ff1 = FF1(engine.keys[name], len(alphabet))
        numerals = [alphabet.index(character) for character in text]
        changed = ff1.encrypt(numerals, used) if part == "encode" else ff1.decrypt(numerals, used)
        answer = "".join(alphabet[numeral] for numeral in changed)
        joined = _joined(value, spans, answer)
        wanted = template.get("encode_format", "") if part == "encode" else ""
        if style:
            if style not in template.get("decode_formats", {}):
                raise ItemFault(f"decode format {style} not found")
            wanted = template["decode_formats"][style]
        if wanted:
            groups = pattern.fullmatch(joined)
            assert groups is not None
            joined = groups.expand(re.sub(r"\$\{?(\w+)\}?", r"\\g<\1>", wanted))
        return {f"{part}d_value": joined, **result}

    @staticmethod
    def _tweak(source: str, name: str, tweak: object, part: str, result: dict[str, Any]) -> bytes:
        if source == "internal":
            return name.encode()[:TWEAK_BYTES].ljust(TWEAK_BYTES, b"\0")
        if source == "generated" and part == "encode":
            made = secrets.token_bytes(TWEAK_BYTES)
            result["tweak"] = base64.b64encode(made).decode()
            return made
        if not isinstance(tweak, str) or not tweak:
            raise ItemFault("tweak must be supplied")
        try:
            given = base64.b64decode(tweak, validate=True)
        except binascii.Error:
            raise ItemFault("tweak is not base64") from None
        if len(given) != TWEAK_BYTES:
            raise ItemFault(f"incorrect tweak size, must be {TWEAK_BYTES} bytes")
        return given

    def _tokenized(self, engine: Engine, name: str, value: str, part: str, item: dict[str, Any]) -> dict[str, Any]:
        kept = engine.tokens.setdefault(name, {})
        live = {token: entry for token, entry in kept.items() if entry[1] > self.now()}
        match part:
            case "encode":
                ttl = _seconds(item.get("ttl"))
                token = secrets.token_urlsafe(32)
                kept[token] = (value, self.now() + ttl if ttl else float("inf"), dict(item.get("metadata") or {}))
                return {"encoded_value": token}
            case "decode":
                if value not in live:
                    raise ItemFault("token not found or expired")
                return {"decoded_value": live[value][0]}
            case "validate":
                return {"valid": value in live}
            case "tokenized":
                return {"tokenized": any(entry[0] == value for entry in live.values())}
        if value not in live:
            raise ItemFault("token not found or expired")
        return {"metadata": live[value][2]}


def _joined(value: str, spans: Sequence[tuple[int, int]], text: str) -> str:
    made, last = "", 0
    for start, end in spans:
        made += value[last:start] + text[: end - start]
        text, last = text[end - start :], end
    return made + value[last:]


def _seconds(value: object) -> float:
    """A duration as Vault takes it: seconds, or digits with a unit."""
    if isinstance(value, (int, float)):
        return float(value)
    found = re.fullmatch(r"(\d+)(s|m|h|d)?", str(value or "0"))
    if found is None:
        raise Fault(400, "invalid duration")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2] or "s"]


def _data(data: dict[str, Any], status: int = 200) -> web.Response:
    return _json(
        {"request_id": secrets.token_hex(8), "lease_id": "", "renewable": False, "lease_duration": 0, "data": data,
         "wrap_info": None, "warnings": None, "auth": None},
        status,
    )  # fmt: skip


def _json(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """As Vault says it: hvac reads errors only if the type has no charset."""
    return web.Response(body=json.dumps(body).encode(), status=status, headers=headers, content_type="application/json")


def _empty() -> web.Response:
    return web.Response(status=204)


def _errors(status: int, errors: Sequence[str], headers: dict[str, str] | None = None) -> web.Response:
    return _json({"errors": list(errors)}, status, headers)


def main() -> None:
    """Run one until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.vault.server")
    parser.add_argument("--port", type=int, default=8200)
    vault = Vault()
    vault.port = parser.parse_args().port
    with vault:
        print(f"VAULT_ADDR={vault.url} VAULT_TOKEN={vault.root}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
