"""Bundles from a bundle server: a real HTTP server that serves, refuses, lies, stalls and breaks off."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import grille.policies.bundles
from grille.proxy import bundle_fetch
from grille.proxy.authority import Authority
from grille.proxy.bundle_fetch import BundleFetch, FetchError
from grille.proxy.config import ConfigError, Policy
from tests.bundles import revised, signed

DEMO = (Path(grille.policies.bundles.__file__).parent / "demo.tar.gz").read_bytes()
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
FIRST, SECOND = signed(revised(DEMO, "first"), KEY), signed(revised(DEMO, "second"), KEY)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers with ``bundle`` under ``tag``, or as ``handler`` says."""

    def __init__(self) -> None:
        self.bundle, self.tag = FIRST, '"1"'
        self.handler: Handler | None = None
        self.requests: list[web.Request] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.handler is not None:
            return await self.handler(request)
        if request.headers.get("If-None-Match") == self.tag:
            return web.Response(status=304)
        return web.Response(body=self.bundle, headers={"ETag": self.tag} if self.tag else {})

    async def start(self, context: ssl.SSLContext | None = None) -> web.AppRunner:
        application = web.Application()
        application.router.add_get("/grille/bundle.tar.gz", self.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
        await site.start()
        self.port = runner.addresses[0][1]
        return runner


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    runner = await made.start()
    yield made
    await runner.cleanup()


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def policy(server: Server, public: Path, scheme: str = "http", **settings: Any) -> Policy:
    return Policy(
        bundle=public.parent / "bundle.tar.gz",
        bundle_url=f"{scheme}://localhost:{server.port}/grille/bundle.tar.gz",
        verification_key=public,
        verification_algorithm="ES256",
        **settings,
    )


async def test_the_file_follows_the_server(server: Server, public: Path) -> None:
    settings = policy(server, public)
    fetch = BundleFetch(settings)
    assert await fetch.fetch()
    assert (settings.bundle.read_bytes(), fetch.problem, fetch.failures) == (FIRST, "", 0)
    assert fetch.last_success > 0
    settings.bundle.write_bytes(b"touched")
    assert await fetch.fetch()
    assert server.requests[-1].headers["If-None-Match"] == '"1"'
    assert settings.bundle.read_bytes() == b"touched"  # 304: nothing is written
    server.bundle, server.tag = SECOND, '"2"'
    assert await fetch.fetch()
    assert settings.bundle.read_bytes() == SECOND
    assert [path.name for path in sorted(settings.bundle.parent.iterdir())] == ["bundle.tar.gz", "key.pem"]


async def test_without_an_entity_tag_it_is_fetched_each_time(server: Server, public: Path) -> None:
    server.tag = ""
    fetch = BundleFetch(policy(server, public))
    assert await fetch.fetch()
    assert await fetch.fetch()
    assert all("If-None-Match" not in request.headers for request in server.requests)


async def moved(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("https://elsewhere.example/")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    chunk = bytes(1 << 20)
    while True:
        await response.write(chunk)


async def broken_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(FIRST))})
    await response.prepare(request)
    await response.write(FIRST[:1000])
    assert request.transport is not None
    request.transport.abort()
    return response


async def status_500(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, body=FIRST)


async def squeezed(request: web.Request) -> web.StreamResponse:
    """As a server does that takes the file's own compression for an encoding of the transfer."""
    return web.Response(body=FIRST, headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (moved, "the server answers 302"),
        (status_500, "the server answers 500"),
        (endless, "larger than"),
        (broken_off, "ClientPayloadError"),
        (DEMO, "the bundle's signature: it is not signed"),
        (signed(DEMO, OTHER), "Signature verification failed"),
        (signed(DEMO, KEY, scope="write"), "signed for the scope 'write'"),
        (FIRST[:-100], "not a gzipped tar archive"),
        (b"", "not a gzipped tar archive"),
    ],
)
async def test_what_is_wrong_changes_nothing(server: Server, public: Path, answer: Any, problem: str) -> None:
    settings = policy(server, public)
    fetch = BundleFetch(settings)
    assert await fetch.fetch()
    if callable(answer):
        server.handler = answer
    else:
        server.bundle, server.tag = answer, '"2"'
    for _ in range(2):
        assert not await fetch.fetch()
        assert problem in fetch.problem
    assert fetch.failures == 2
    assert settings.bundle.read_bytes() == FIRST
    server.handler, server.bundle, server.tag = None, SECOND, '"3"'
    assert await fetch.fetch()
    assert fetch.problem == ""


async def test_a_bundle_sent_with_a_content_encoding_is_the_same(server: Server, public: Path) -> None:
    settings = policy(server, public)
    server.handler = squeezed
    assert await BundleFetch(settings).fetch()
    assert settings.bundle.read_bytes() == FIRST


async def test_no_server(server: Server, public: Path) -> None:
    settings = policy(server, public)
    fetch = BundleFetch(msgspec.structs.replace(settings, bundle_url="http://localhost:1/grille/bundle.tar.gz"))
    assert not await fetch.fetch()
    assert "ClientConnectorError" in fetch.problem
    assert not settings.bundle.exists()


async def test_a_server_that_stalls(server: Server, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_fetch, "FETCH_SECONDS", 0.1)
    never = asyncio.Event()

    async def stalled(request: web.Request) -> web.StreamResponse:
        await never.wait()
        return web.Response()

    server.handler = stalled
    fetch = BundleFetch(policy(server, public))
    assert not await fetch.fetch()
    assert "no answer in time" in fetch.problem
    never.set()


async def test_the_token_is_sent_and_never_told(server: Server, public: Path) -> None:
    token = public.parent / "token"
    token.write_text("secret-token\nsecond line\n")
    fetch = BundleFetch(policy(server, public, bundle_token_file=token))
    server.handler = status_500
    assert not await fetch.fetch()
    assert server.requests[-1].headers["Authorization"] == "Bearer secret-token"
    for wrong in (b"secret\xfftoken", b"secret\rtoken", b"secret\x00token"):
        token.write_bytes(wrong)
        assert not await fetch.fetch()
        assert "secret" not in fetch.problem
    token.unlink()
    assert not await fetch.fetch()
    assert "No such file" in fetch.problem


async def test_a_query_is_sent_and_never_told(server: Server, public: Path) -> None:
    """In an address that was signed in advance it is the credential."""
    settings = policy(server, public)
    address = f"{settings.bundle_url}?signature=secret"
    fetch = BundleFetch(msgspec.structs.replace(settings, bundle_url=address))
    assert await fetch.fetch()
    assert server.requests[-1].query == {"signature": "secret"}
    absent = address.replace(str(server.port), "1")
    for wrong in (moved, endless, broken_off, status_500, None):
        server.handler = wrong
        failing = BundleFetch(msgspec.structs.replace(settings, bundle_url=absent if wrong is None else address))
        assert not await failing.fetch()
        assert failing.problem.startswith("http://localhost:")
        assert "secret" not in failing.problem


async def test_tls_is_verified(tmp_path: Path, public: Path) -> None:
    authority = Authority("bank.example")
    certificate = authority.issue_server().write(tmp_path, "server")
    authority.write_bundle(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    server = Server()
    runner = await server.start(context)
    try:
        trusting = BundleFetch(policy(server, public, "https", bundle_ca=tmp_path / "ca.pem"))
        assert await trusting.fetch()
        strict = BundleFetch(policy(server, public, "https"))
        assert not await strict.fetch()
        assert "CertificateError" in strict.problem
    finally:
        await runner.cleanup()


async def test_a_file_that_cannot_be_written(server: Server, public: Path) -> None:
    settings = policy(server, public)
    settings.bundle.mkdir()
    fetch = BundleFetch(settings)
    assert not await fetch.fetch()
    assert "cannot be written" in fetch.problem
    assert [path.name for path in sorted(settings.bundle.parent.iterdir())] == ["bundle.tar.gz", "key.pem"]


async def test_asking_now_does_not_wait_for_the_poll(server: Server, public: Path) -> None:
    settings = policy(server, public, bundle_poll=3600.0)
    fetch = BundleFetch(settings)
    asked = asyncio.Event()

    async def noted(request: web.Request) -> web.StreamResponse:
        asked.set()
        return web.Response(status=304)

    server.handler = noted
    watching = asyncio.create_task(fetch.watch())
    fetch.ask()
    await asyncio.wait_for(asked.wait(), 20)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_getting_writes_nothing(server: Server, public: Path) -> None:
    settings = policy(server, public)
    assert await BundleFetch(settings).get() == (FIRST, '"1"')
    assert not settings.bundle.exists()
    server.bundle = DEMO
    with pytest.raises(FetchError, match="not signed"):
        await BundleFetch(settings).get()


def test_a_key_that_is_none(server: Server, public: Path) -> None:
    settings = policy(server, public)
    public.write_bytes(b"no key")
    with pytest.raises(ConfigError, match="verification_key"):
        BundleFetch(settings)
