"""What the demo's CA issues is accepted by our own rules, by OpenSSL's strictest, and by libpq."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from grille.audit.chain import load_signing_key
from grille.protocols.postgres.framing import StartupFrames
from grille.proxy import config
from grille.proxy.authority import Authority, write_private, write_signing_key
from grille.proxy.identity import Agent, Registry, check_svid
from grille.proxy.listener import Listener, PostgresDoor
from grille.proxy.stream import ByteStream
from grille.proxy.tls import Certificates


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_an_issued_certificate_follows_every_rule() -> None:
    authority = Authority("bank.example")
    certificate = authority.issue("ns/fraud/sa/scorer", valid_for=dt.timedelta(hours=2)).certificate
    now = dt.datetime.now(dt.UTC)
    assert str(check_svid(certificate, now)) == "spiffe://bank.example/ns/fraud/sa/scorer"
    assert now + dt.timedelta(minutes=119) < certificate.not_valid_after_utc < now + dt.timedelta(minutes=121)
    certificate.verify_directly_issued_by(authority.certificate)


def test_a_certificate_never_outlives_its_ca() -> None:
    authority = Authority("bank.example", valid_for=dt.timedelta(hours=1))
    certificate = authority.issue("a").certificate
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


@pytest.mark.parametrize("domain", ["", "Bank.example", "bank.example/a", "bank example"])
def test_a_ca_needs_a_trust_domain(domain: str) -> None:
    with pytest.raises(ValueError, match=r"has|is not"):
        Authority(domain)


@pytest.mark.parametrize("path", ["", "/a", "a/", "a/../b", "a%20b"])
def test_a_path_that_no_id_can_have_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        Authority("bank.example").issue(path)


def test_files_are_written_for_this_user_only(tmp_path: Path) -> None:
    authority = Authority("bank.example")
    issued = authority.issue("a")
    certificate = issued.write(tmp_path, "agent")
    authority.write_bundle(tmp_path / "bundle.pem")
    files = {path.name: path for path in tmp_path.iterdir()}
    assert set(files) == {"agent.pem", "agent.key", "agent.pk8", "bundle.pem"}
    assert {mode(path) for path in files.values()} == {0o600}
    assert x509.load_pem_x509_certificate(certificate.read_bytes()) == issued.certificate
    for key in (
        serialization.load_pem_private_key(files["agent.key"].read_bytes(), None),
        serialization.load_der_private_key(files["agent.pk8"].read_bytes(), None),
    ):
        assert isinstance(key, EllipticCurvePrivateKey)
        assert key.private_numbers() == issued.key.private_numbers()


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"an older and longer content")
    path.chmod(0o644)
    write_private(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_signing_key_is_one_that_the_audit_accepts(tmp_path: Path) -> None:
    key = write_signing_key(tmp_path / "audit.key")
    loaded = load_signing_key(tmp_path / "audit.key")
    assert loaded.public_key() == key.public_key()


def test_openssl_accepts_the_server_even_when_it_is_strict(tmp_path: Path) -> None:
    authority = Authority("bank.example")
    server = authority.issue_server()
    server.write(tmp_path, "server")
    answering = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    answering.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    for name in ("localhost", "127.0.0.1", "::1"):
        asking = ssl.create_default_context(cadata=authority.bundle_pem.decode())
        asking.verify_flags |= ssl.VERIFY_X509_STRICT
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = asking.wrap_bio(to_client, to_server, server_hostname=name)
        other = answering.wrap_bio(to_server, to_client, server_side=True)
        for side in (client, other, client, other):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        assert client.version() == "TLSv1.3"


class Greeting:
    """As much of a session as libpq needs to think that it is connected."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream

    async def run(self) -> None:
        frames = StartupFrames()
        while next(frames, None) is None:
            data = await self.stream.receive()
            if not data:
                return
            frames.feed(data)
        parameters = (b"client_encoding\0UTF8\0", b"server_version\x0018.4\0")
        statuses = b"".join(b"S" + (len(p) + 4).to_bytes(4) + p for p in parameters)
        self.stream.send(b"R\0\0\0\x08\0\0\0\0" + statuses + b"Z\0\0\0\x05I")
        while await self.stream.receive():
            pass


@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
async def test_libpq_connects_with_verify_full(tmp_path: Path, negotiation: str) -> None:
    if negotiation == "direct" and psycopg.pq.version() < 170000:
        pytest.skip("direct TLS needs libpq 17")
    authority = Authority("bank.example")
    authority.issue_server().write(tmp_path, "server")
    authority.write_bundle(tmp_path / "bundle.pem")
    agents: list[Agent] = []
    refusals: list[tuple[str, str, str]] = []

    def session(stream: ByteStream, agent: Agent, peer: str) -> Greeting:
        agents.append(agent)
        return Greeting(stream)

    settings = config.Listener(port=0, certificate=tmp_path / "server.pem", key=tmp_path / "server.key")
    domain = config.TrustDomain(name="bank.example", bundle=tmp_path / "bundle.pem")
    listener = Listener(
        settings,
        Certificates(settings, [domain]),
        Registry([config.Identity(spiffe_id="spiffe://bank.example/ns/*", database="bank")]),
        session,
        door=PostgresDoor(lambda number, secret: None),
        handshake_timeout=10.0,
        on_refused=lambda *refusal: refusals.append(refusal),
    )
    port = await listener.start()

    def connect(name: str, path: str, **options: str) -> None:
        certificate = authority.issue(path).write(tmp_path, name)
        usual = {
            "sslmode": "verify-full",
            "sslrootcert": str(tmp_path / "bundle.pem"),
            "sslnegotiation": negotiation,
            "sslcert": str(certificate),
            "sslkey": str(certificate.with_suffix(".key")),
        }
        psycopg.connect(
            host="localhost", hostaddr="127.0.0.1", port=port, dbname="bank", user="x", connect_timeout=10,
            **{**usual, **options},
        ).close()  # fmt: skip

    try:
        await asyncio.to_thread(connect, "agent", "ns/a")
        assert [agent.spiffe_id for agent in agents] == ["spiffe://bank.example/ns/a"]
        with pytest.raises(psycopg.OperationalError, match=r"is not registered with this proxy \[control ID-05\]"):
            await asyncio.to_thread(connect, "stranger", "elsewhere/a")
        with pytest.raises(psycopg.OperationalError, match="certificate required"):
            await asyncio.to_thread(connect, "nobody", "ns/b", sslcertmode="disable")
        if negotiation == "postgres":
            with pytest.raises(psycopg.OperationalError, match=r"a connection without TLS is not accepted"):
                await asyncio.to_thread(connect, "clear", "ns/c", sslmode="disable")
    finally:
        await listener.close()
    assert [control for _, control, _ in refusals] == ["ID-05", "ID-01", "ID-03"][: len(refusals)]
    assert len(refusals) == (3 if negotiation == "postgres" else 2)
