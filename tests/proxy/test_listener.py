"""Real handshakes over real sockets: who becomes a session, and who is turned away under which control."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from grille.protocols.postgres.framing import StartupFrames
from grille.protocols.postgres.messages import (
    CancelRequest,
    ErrorResponse,
    GSSENCRequest,
    SSLRequest,
    StartupMessage,
)
from grille.proxy import config
from grille.proxy.authority import DAY, Authority, Issued, key_usage
from grille.proxy.identity import Agent, Registry
from grille.proxy.listener import Listener, PostgresDoor
from grille.proxy.stream import ByteStream
from grille.proxy.tls import Certificates

# the hook that pytest-asyncio offers instead would hold for all tests
pytestmark = pytest.mark.filterwarnings('ignore:Overriding the "event_loop_policy" fixture')

STARTUP = StartupMessage({"user": "x", "database": "y"}).encode()
GREETING = b"Z\x00\x00\x00\x05I"
SCORER = "ns/fraud/sa/scorer"


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Every test runs on both loops."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


class EchoSession:
    """Greets after the startup message, then gives back what it gets."""

    def __init__(self, stream: ByteStream, agent: Agent) -> None:
        self.stream = stream
        self.agent = agent

    async def run(self) -> None:
        frames = StartupFrames()
        while next(frames, None) is None:
            data = await self.stream.receive()
            if not data:
                return
            frames.feed(data)
        self.stream.send(GREETING)
        while data := await self.stream.receive():
            self.stream.send(data)


class Front:
    """A listener with its files, and what it did."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bank = Authority("bank.example")
        self.partner = Authority("partner.example")
        self.server = self.bank.issue_server()
        self.agents: list[Agent] = []
        self.refused: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.cancelled: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.write()

    def write(self) -> None:
        """Write all files."""
        self.server.write(self.directory, "server")
        self.bank.write_bundle(self.directory / "bank.pem")
        self.partner.write_bundle(self.directory / "partner.pem")

    async def start(self, **settings: object) -> None:
        """Start listening."""
        options: dict[str, object] = {"port": 0, "handshake_timeout": 5.0, **settings}
        self.settings = config.Listener(
            certificate=self.directory / "server.pem", key=self.directory / "server.key", **options
        )
        domains = [
            config.TrustDomain(name=name, bundle=self.directory / f"{name.partition('.')[0]}.pem")
            for name in ("bank.example", "partner.example")
        ]
        self.certificates = Certificates(self.settings, domains)
        registry = Registry(
            [
                config.Identity(spiffe_id="spiffe://bank.example/ns/*", database="bank"),
                config.Identity(spiffe_id="spiffe://partner.example/auditor", database="bank"),
            ]
        )
        self.listener = Listener(
            self.settings,
            self.certificates,
            registry,
            self._session,
            door=PostgresDoor(lambda number, secret: self.cancelled.put_nowait((number, secret))),
            handshake_timeout=self.settings.handshake_timeout,
            on_refused=lambda peer, control, reason: self.refused.put_nowait((control, reason)),
        )
        self.port = await self.listener.start()

    def _session(self, stream: ByteStream, agent: Agent, peer: str) -> EchoSession:
        self.agents.append(agent)
        return EchoSession(stream, agent)

    def trust(self, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> ssl.SSLContext:
        """A client context that checks the server's name, without a certificate of its own."""
        context = ssl.create_default_context(cadata=self.bank.bundle_pem.decode())
        context.minimum_version = minimum
        return context

    def context(self, issued: Issued) -> ssl.SSLContext:
        """The same with a client certificate."""
        context = self.trust()
        certificate = issued.write(self.directory, f"client-{issued.certificate.serial_number:x}"[:40])
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context

    async def refusal(self) -> tuple[str, str]:
        """The next refusal that was recorded: control, reason."""
        return await asyncio.wait_for(self.refused.get(), 10)


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """Not started yet."""
    front = Front(tmp_path)
    yield front
    if hasattr(front, "listener"):
        await front.listener.close()


class Client:
    """One connection of a client."""

    def __init__(self, front: Front) -> None:
        self.front = front

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.front.port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def take(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), 10)

    async def rest(self) -> bytes:
        """All until the server closes."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self.reader.read(), 10)
        return b""

    async def secure(self, context: ssl.SSLContext) -> None:
        """SSLRequest and handshake."""
        await self.send(SSLRequest().encode())
        assert await self.take(1) == b"S"
        await self.writer.start_tls(context, server_hostname="localhost")

    async def start(self, context: ssl.SSLContext) -> bytes:
        """SSLRequest, handshake and startup; the first message that comes back."""
        await self.secure(context)
        await self.send(STARTUP)
        head = await self.take(5)
        return head + await self.take(int.from_bytes(head[1:]) - 4)

    async def is_echoed(self, data: bytes = b"hello") -> bool:
        await self.send(data)
        return await self.take(len(data)) == data

    @property
    def server_serial(self) -> int:
        der = self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number


# certificates, good and bad


def forge(
    signer: Authority | None,
    uris: Sequence[str] = (f"spiffe://bank.example/{SCORER}",),
    *,
    ca: bool | None = False,
    usage: x509.KeyUsage | None = key_usage(digital_signature=True),  # noqa: B008
    usage_critical: bool = True,
    purposes: Sequence[x509.ObjectIdentifier] | None = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ),
    begins: dt.timedelta = -DAY,
    ends: dt.timedelta = DAY,
    dns: Sequence[str] = (),
    subject: str = "agent",
) -> Issued:
    """A certificate with anything wrong with it; self-signed without a signer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(signer.certificate.subject if signer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((signer.key if signer else key).public_key()),
            critical=False,
        )
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if usage is not None:
        builder = builder.add_extension(usage, critical=usage_critical)
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(entry) for entry in dns]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Issued(builder.sign(signer.key if signer else key, hashes.SHA256()), key)


# OpenSSL lets this through
KEY_AGREEMENT = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=True, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip

GOOD: dict[str, Callable[[Front], Issued]] = {
    "issued": lambda f: f.bank.issue(SCORER),
    "another trust domain, in its own name": lambda f: f.partner.issue("auditor"),
    "no extended key usage": lambda f: forge(f.bank, purposes=None),
    "no basic constraints": lambda f: forge(f.bank, ca=None),
    "a DNS name besides": lambda f: forge(f.bank, dns=["scorer.bank.example"]),
    "every allowed character": lambda f: forge(f.bank, ["spiffe://bank.example/ns/A-Z_a.z-0..9"]),
    "as long as may be": lambda f: forge(f.bank, ["spiffe://bank.example/ns/".ljust(2048, "x")]),
}

ID_01: dict[str, Callable[[Front], Issued]] = {
    "two URI names": lambda f: forge(f.bank, [f"spiffe://bank.example/{SCORER}", "spiffe://bank.example/ns/other"]),
    "a SPIFFE ID and another URI": lambda f: forge(f.bank, [f"spiffe://bank.example/{SCORER}", "https://bank.example"]),
    "no URI name": lambda f: forge(f.bank, [], dns=["scorer.bank.example"]),
    "no alternative name, the ID as common name": lambda f: forge(f.bank, [], subject="spiffe://bank.example/ns/a"),
    "another scheme": lambda f: forge(f.bank, [f"https://bank.example/{SCORER}"]),
    "scheme in capitals": lambda f: forge(f.bank, [f"SPIFFE://bank.example/{SCORER}"]),
    "a CA": lambda f: forge(f.bank, ca=True),
    "a CA that may sign": lambda f: forge(f.bank, ca=True, usage=key_usage(digital_signature=True, key_cert_sign=True)),
    "keyCertSign": lambda f: forge(f.bank, usage=key_usage(digital_signature=True, key_cert_sign=True)),
    "cRLSign": lambda f: forge(f.bank, usage=key_usage(digital_signature=True, crl_sign=True)),
    "no digitalSignature": lambda f: forge(f.bank, usage=KEY_AGREEMENT),
    "no key usage": lambda f: forge(f.bank, usage=None),
    "key usage not critical": lambda f: forge(f.bank, usage_critical=False),
    "for servers only": lambda f: forge(f.bank, purposes=[ExtendedKeyUsageOID.SERVER_AUTH]),
    "for clients only": lambda f: forge(f.bank, purposes=[ExtendedKeyUsageOID.CLIENT_AUTH]),
    "for signing code": lambda f: forge(f.bank, purposes=[ExtendedKeyUsageOID.CODE_SIGNING]),
    "expired": lambda f: forge(f.bank, begins=-2 * DAY, ends=-DAY),
    "not yet valid": lambda f: forge(f.bank, begins=DAY, ends=2 * DAY),
    "percent-encoded": lambda f: forge(f.bank, ["spiffe://bank.example/ns/fraud%2Fsa"]),
    "longer than may be": lambda f: forge(f.bank, ["spiffe://bank.example/ns/".ljust(2049, "x")]),
    "long trust domain": lambda f: forge(f.bank, [f"spiffe://{'x' * 256}/ns/a"]),
    "no path": lambda f: forge(f.bank, ["spiffe://bank.example"]),
    "root path": lambda f: forge(f.bank, ["spiffe://bank.example/"]),
    "trailing slash": lambda f: forge(f.bank, [f"spiffe://bank.example/{SCORER}/"]),
    "empty segment": lambda f: forge(f.bank, ["spiffe://bank.example/ns//a"]),
    "relative segment": lambda f: forge(f.bank, ["spiffe://bank.example/ns/../admin"]),
    "dot segment": lambda f: forge(f.bank, ["spiffe://bank.example/ns/./a"]),
    "trust domain in capitals": lambda f: forge(f.bank, [f"spiffe://Bank.example/{SCORER}"]),
    "port": lambda f: forge(f.bank, [f"spiffe://bank.example:80/{SCORER}"]),
    "user": lambda f: forge(f.bank, [f"spiffe://root@bank.example/{SCORER}"]),
    "query": lambda f: forge(f.bank, [f"spiffe://bank.example/{SCORER}?a=b"]),
    "fragment": lambda f: forge(f.bank, [f"spiffe://bank.example/{SCORER}#a"]),
    "a NUL": lambda f: forge(f.bank, [f"spiffe://bank.example/{SCORER}\0.evil"]),
    "a line break at the end": lambda f: forge(f.bank, [f"spiffe://bank.example/{SCORER}\n"]),
}

ID_02: dict[str, Callable[[Front], Issued]] = {
    "self-signed": lambda f: forge(None),
    "unknown CA": lambda f: Authority("bank.example").issue(SCORER),
    "a CA in the name of another trust domain": lambda f: forge(f.partner),
    "the other way round": lambda f: forge(f.bank, ["spiffe://partner.example/auditor"]),
    "trust domain that is not configured": lambda f: forge(f.bank, ["spiffe://other.example/ns/a"]),
}

ID_05: dict[str, Callable[[Front], Issued]] = {
    "not registered": lambda f: f.bank.issue("elsewhere/a"),
    "only the prefix": lambda f: f.bank.issue("ns"),
    "below an exact entry": lambda f: f.partner.issue("auditor/sub"),
}

BAD = [
    pytest.param(control, make, id=f"{control} {name}")
    for control, table in (("ID-01", ID_01), ("ID-02", ID_02), ("ID-05", ID_05))
    for name, make in table.items()
]


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in GOOD.items()])
async def test_a_good_certificate_becomes_an_agent(front: Front, make: Callable[[Front], Issued]) -> None:
    await front.start()
    issued = make(front)
    async with Client(front) as client:
        assert await client.start(front.context(issued)) == GREETING
        assert await client.is_echoed()
    (agent,) = front.agents
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [agent.spiffe_id] == names.get_values_for_type(x509.UniformResourceIdentifier)
    assert agent.cert_sha256 == issued.certificate.fingerprint(hashes.SHA256()).hex()
    assert agent.serial == f"{issued.certificate.serial_number:x}"
    assert agent.not_after == issued.certificate.not_valid_after_utc


@pytest.mark.parametrize(("control", "make"), BAD)
async def test_a_bad_certificate_is_turned_away(front: Front, control: str, make: Callable[[Front], Issued]) -> None:
    await front.start()
    async with Client(front) as client:
        try:
            reply = await client.start(front.context(make(front)))
        except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
            reply = None  # OpenSSL refused it already
        recorded, _ = await front.refusal()
        assert recorded == control
        if reply is not None:
            error = ErrorResponse.decode(reply[5:])
            assert (error.severity, error.sqlstate) == ("FATAL", "28000")
            assert f"[control {control}]" in error.message
            assert await client.rest() == b""
    assert front.agents == []
    assert front.refused.empty()


# what TLS itself refuses


async def alert(front: Front, context: ssl.SSLContext) -> str:
    """The alert that a client sees (asyncio's own streams would not show it)."""

    def connect() -> str:
        with socket.create_connection(("127.0.0.1", front.port), 10) as plain:
            plain.sendall(SSLRequest().encode())
            assert plain.recv(1) == b"S"
            try:
                with context.wrap_socket(plain, server_hostname="localhost") as tls:
                    tls.sendall(STARTUP)
                    return f"no alert, but {tls.recv(1)!r}"
            except ssl.SSLError as error:
                return str(error.reason)

    return await asyncio.to_thread(connect)


async def test_a_client_certificate_is_demanded(front: Front) -> None:
    await front.start()
    assert await alert(front, front.trust()) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert await front.refusal() == ("ID-01", "no client certificate was presented")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (ID_01["expired"], "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
        (ID_01["for servers only"], "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
        (ID_02["unknown CA"], "TLSV1_ALERT_UNKNOWN_CA"),
    ],
)
async def test_the_client_is_told_why_tls_failed(front: Front, make: Callable[[Front], Issued], reason: str) -> None:
    await front.start()
    assert await alert(front, front.context(make(front))) == reason


async def test_tls_1_2_is_refused_by_default(front: Front) -> None:
    await front.start()
    context = front.context(front.bank.issue(SCORER))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await alert(front, context) == "TLSV1_ALERT_PROTOCOL_VERSION"
    control, reason = await front.refusal()
    assert (control, reason) == ("ID-03", "the TLS handshake failed (unsupported protocol)")


async def test_tls_1_2_is_accepted_where_it_is_configured(front: Front) -> None:
    await front.start(tls_minimum="1.2")
    context = front.context(front.bank.issue(SCORER))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with Client(front) as client:
        assert await client.start(context) == GREETING
        assert client.writer.get_extra_info("ssl_object").version() == "TLSv1.2"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_is_resumed_without_the_whole_check(front: Front, version: ssl.TLSVersion) -> None:
    await front.start(tls_minimum="1.2")
    context = front.context(front.bank.issue(SCORER))
    context.minimum_version = context.maximum_version = version
    async with Client(front) as client:
        await client.start(context)
        session = client.writer.get_extra_info("ssl_object").session
        client.writer.close()
        await client.rest()
    # the context that may remember the session stays, the bundles change
    bundles = {**front.certificates.current.bundles, "bank.example": (Authority("bank.example").certificate,)}
    front.certificates.current = msgspec.structs.replace(front.certificates.current, bundles=bundles)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost", session=session)
    async with Client(front) as client:
        await client.send(SSLRequest().encode())
        assert await client.take(1) == b"S"
        done = False
        while not done:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                await client.send(outgoing.read())
                incoming.write(await asyncio.wait_for(client.reader.read(65536), 10))
        assert tls.session_reused is (version == ssl.TLSVersion.TLSv1_2)
        tls.write(STARTUP)
        await client.send(outgoing.read())
        assert (await front.refusal())[0] == "ID-02"
    assert len(front.agents) == 1


# what comes before TLS


async def test_bytes_in_clear_behind_the_request_close_the_connection(front: Front) -> None:
    await front.start()
    async with Client(front) as client:
        await client.send(SSLRequest().encode() + b"Q\x00\x00\x00\x0dSELECT 1\x00")
        assert await client.rest() == b""
    assert await front.refusal() == ("ID-03", "bytes in clear follow the request for TLS")


async def test_bytes_in_clear_after_the_answer_do_not_reach_the_session(front: Front) -> None:
    await front.start()
    async with Client(front) as client:
        await client.send(SSLRequest().encode())
        assert await client.take(1) == b"S"
        await client.send(STARTUP)
        await client.rest()
    assert (await front.refusal())[0] == "ID-03"
    assert front.agents == []


async def test_a_startup_message_in_clear_is_refused_with_a_sentence(front: Front) -> None:
    await front.start()
    async with Client(front) as client:
        await client.send(STARTUP)
        reply = await client.rest()
    error = ErrorResponse.decode(reply[5:])
    assert (error.severity, error.sqlstate) == ("FATAL", "28000")
    assert "[control ID-03]" in error.message
    assert "sslmode=verify-full" in error.fields["H"]
    assert (await front.refusal())[0] == "ID-03"


async def test_a_cancel_request_in_clear_is_passed_on_and_not_answered(front: Front) -> None:
    await front.start()
    for secret in (b"\1\2\3\4", bytes(range(32))):
        async with Client(front) as client:
            await client.send(CancelRequest(7, secret).encode())
            assert await client.rest() == b""
        assert front.cancelled.get_nowait() == (7, secret)
    assert front.refused.empty()


async def test_requests_may_arrive_one_byte_at_a_time(front: Front) -> None:
    await front.start()
    async with Client(front) as client:
        for byte in CancelRequest(7, b"abcd").encode():
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.rest() == b""
    assert front.cancelled.get_nowait() == (7, b"abcd")


async def test_gssapi_encryption_is_declined_once_and_tls_follows(front: Front) -> None:
    await front.start()
    async with Client(front) as client:
        await client.send(GSSENCRequest().encode())
        assert await client.take(1) == b"N"
        assert await client.start(front.context(front.bank.issue(SCORER))) == GREETING
    async with Client(front) as client:
        await client.send(GSSENCRequest().encode())
        assert await client.take(1) == b"N"
        await client.send(GSSENCRequest().encode())
        assert await client.rest() == b""
    assert (await front.refusal())[0] == "ID-03"


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 16, b"\xff" * 16, b"\0\0\0\x08\0\2\0\0", b"\0\0\0\x09\x04\xd2\x16\x2f\0"],
    ids=["http", "zeros", "ones", "protocol 2", "long request"],
)
async def test_anything_else_closes_the_connection(front: Front, garbage: bytes) -> None:
    await front.start()
    async with Client(front) as client:
        await client.send(garbage)
        assert await client.rest() == b""
    assert (await front.refusal())[0] in ("WP-01", "WP-02")


async def test_a_client_that_leaves_is_no_refusal(front: Front) -> None:
    await front.start()
    for begun in (b"", b"\0\0\0", SSLRequest().encode()):
        async with Client(front) as client:
            await client.send(begun)
            client.writer.write_eof()
            await client.rest()
    assert front.refused.empty()


# direct TLS


async def direct(front: Front, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", front.port, ssl=context, server_hostname="localhost")


async def test_direct_tls_needs_the_application_protocol(front: Front) -> None:
    await front.start()
    for protocols in ([], ["h2"]):
        context = front.context(front.bank.issue(SCORER))
        if protocols:
            context.set_alpn_protocols(protocols)
        reader, writer = await direct(front, context)
        writer.write(STARTUP)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.transport.abort()
        assert await front.refusal() == (
            "ID-03", 'direct TLS did not ask for the application protocol "postgresql"',
        )  # fmt: skip
    assert front.agents == []


async def test_direct_tls_with_the_application_protocol_is_a_session(front: Front) -> None:
    await front.start()
    context = front.context(front.bank.issue(SCORER))
    context.set_alpn_protocols(["postgresql"])
    reader, writer = await direct(front, context)
    writer.write(STARTUP)
    assert await asyncio.wait_for(reader.readexactly(len(GREETING)), 10) == GREETING
    writer.transport.abort()


async def test_direct_tls_with_a_bad_certificate_is_told(front: Front) -> None:
    await front.start()
    context = front.context(front.bank.issue("elsewhere/a"))
    context.set_alpn_protocols(["postgresql"])
    reader, writer = await direct(front, context)
    writer.write(STARTUP)
    error = ErrorResponse.decode((await asyncio.wait_for(reader.read(), 10))[5:])
    assert "[control ID-05]" in error.message
    writer.transport.abort()


# silence, limits, going out of service


@pytest.mark.parametrize("begun", [b"", b"\0\0\0", b"\x16\x03\x01"], ids=["nothing", "half a request", "half a hello"])
async def test_silence_before_tls_times_out(front: Front, begun: bytes) -> None:
    await front.start(handshake_timeout=0.2)
    async with Client(front) as client:
        await client.send(begun)
        assert await client.rest() == b""
    assert await front.refusal() == ("WP-04", "the handshake took too long")


async def test_half_a_handshake_times_out(front: Front) -> None:
    await front.start(handshake_timeout=0.2)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = front.trust().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    for sent in (hello, hello[: len(hello) // 2], b""):
        async with Client(front) as client:
            await client.send(SSLRequest().encode())
            assert await client.take(1) == b"S"
            await client.send(sent)
            await client.rest()
        assert await front.refusal() == ("WP-04", "the handshake took too long")
    assert front.listener.sessions == set()


async def test_more_sessions_than_configured_are_told_so(front: Front) -> None:
    await front.start(max_connections=1)
    context = front.context(front.bank.issue(SCORER))
    async with Client(front) as first, Client(front) as second:
        assert await first.start(context) == GREETING
        error = ErrorResponse.decode((await second.start(context))[5:])
        assert (error.severity, error.sqlstate) == ("FATAL", "53300")
        assert (await front.refusal())[0] == "WP-03"
        assert await first.is_echoed()


async def test_connections_without_a_session_are_limited_too(front: Front) -> None:
    await front.start(max_connections=1)
    async with Client(front), Client(front), Client(front) as third:
        assert await third.rest() == b""
        assert (await front.refusal())[0] == "WP-03"


async def test_a_place_is_free_again_when_a_session_ends(front: Front) -> None:
    await front.start(max_connections=1)
    context = front.context(front.bank.issue(SCORER))
    for _ in range(3):
        async with Client(front) as client:
            assert await client.start(context) == GREETING
            client.writer.close()
            await client.rest()


async def test_finish_waits_for_sessions_and_takes_no_new_ones(front: Front) -> None:
    await front.start()
    context = front.context(front.bank.issue(SCORER))
    async with Client(front) as client, Client(front) as late:
        await client.start(context)
        await late.send(SSLRequest().encode())
        assert await late.take(1) == b"S"
        finishing = asyncio.create_task(front.listener.finish(10))
        await asyncio.sleep(0)
        await late.writer.start_tls(context, server_hostname="localhost")
        await late.send(STARTUP)
        error = ErrorResponse.decode((await late.rest())[5:])
        assert (error.sqlstate, error.message) == (
            "57P01", "this node is going out of service [control OP-01]",
        )  # fmt: skip
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", front.port)
        assert await client.is_echoed()
        assert not finishing.done()
        client.writer.close()
        await asyncio.wait_for(finishing, 5)


async def test_finish_ends_what_does_not_end_by_itself(front: Front) -> None:
    await front.start()
    async with Client(front) as client:
        await client.start(front.context(front.bank.issue(SCORER)))
        await asyncio.wait_for(front.listener.finish(0.05), 10)
        assert await client.rest() == b""
    assert front.listener.sessions == set()


# files that change under a live connection


async def test_a_new_certificate_is_used_and_the_live_connection_stays(front: Front) -> None:
    await front.start()
    watching = asyncio.create_task(front.certificates.watch(0.02))
    context = front.context(front.bank.issue(SCORER))
    async with Client(front) as old:
        await old.start(context)
        assert old.server_serial == front.server.certificate.serial_number
        front.server = front.bank.issue_server()
        before = front.certificates.current
        front.write()
        async with asyncio.timeout(10):
            while front.certificates.current is before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with Client(front) as new:
            assert await new.start(context) == GREETING
            assert new.server_serial == front.server.certificate.serial_number
        assert await old.is_echoed()
    watching.cancel()
    assert front.certificates.failures == 0


async def test_an_agent_of_a_removed_ca_is_refused(front: Front) -> None:
    await front.start()
    old_context = front.context(front.bank.issue(SCORER))
    async with Client(front) as live:
        await live.start(old_context)
        trust = front.bank
        front.bank = Authority("bank.example")
        front.bank.write_bundle(front.directory / "bank.pem")
        assert front.certificates.reload()
        async with Client(front) as refused:
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await refused.start(old_context)
        assert (await front.refusal())[0] == "ID-02"
        issued = front.bank.issue(SCORER)
        front.bank = trust  # which the client still has to trust for the server's certificate
        async with Client(front) as new:
            assert await new.start(front.context(issued)) == GREETING
        assert await live.is_echoed()


async def test_a_bundle_may_hold_an_authority_without_its_issuer(front: Front) -> None:
    await front.start()
    between = Authority("bank.example")
    between.certificate = (
        x509.CertificateBuilder()
        .subject_name(between.certificate.subject)
        .issuer_name(front.bank.certificate.subject)
        .public_key(between.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.now(dt.UTC) - DAY)
        .not_valid_after(dt.datetime.now(dt.UTC) + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(between.key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(front.bank.key.public_key()), critical=False)
        .sign(front.bank.key, hashes.SHA256())
    )
    between.write_bundle(front.directory / "bank.pem")
    assert front.certificates.reload()
    async with Client(front) as client:
        assert await client.start(front.context(between.issue(SCORER))) == GREETING
    async with Client(front) as client:
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await client.start(front.context(front.bank.issue(SCORER)))


async def test_an_empty_bundle_distrusts_everybody(front: Front) -> None:
    await front.start()
    (front.directory / "bank.pem").write_text('{"keys": []}')
    (front.directory / "partner.pem").write_text('{"keys": []}')
    assert front.certificates.reload()
    assert await alert(front, front.context(front.bank.issue(SCORER))) == "TLSV1_ALERT_UNKNOWN_CA"
    assert (await front.refusal())[0] == "ID-02"
