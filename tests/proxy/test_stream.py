"""TLS as the byte stream speaks it: real handshakes between two streams over loopback, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from grille.proxy import stream as module
from grille.proxy.authority import Authority
from grille.proxy.stream import HANDSHAKE_PIECE, HIGH_WATER, PIECE, ByteStream

# the hook that pytest-asyncio offers instead would hold for all tests
pytestmark = pytest.mark.filterwarnings('ignore:Overriding the "event_loop_policy" fixture')

DEADLINE = 10


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Every test runs on both loops."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@dataclass
class Tls:
    """A server's and a client's context, with a CA between them."""

    server: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    client: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Tls:
    """Contexts of one version of TLS."""
    authority = Authority("stream.example")
    authority.write_bundle(tmp_path / "ca.pem")
    certificate = authority.issue_server().write(tmp_path, "server")
    made = Tls()
    made.server.load_cert_chain(certificate, certificate.with_suffix(".key"))
    made.client.load_verify_locations(tmp_path / "ca.pem")
    made.client.maximum_version = made.client.minimum_version = request.param
    return made


@contextlib.asynccontextmanager
async def sockets() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    with client, server:
        client.setblocking(False)
        server.setblocking(False)
        yield client, server


@contextlib.asynccontextmanager
async def streams(tls: Tls) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    """Client and server after the handshake."""
    loop = asyncio.get_running_loop()
    client, server = ByteStream(), ByteStream()
    accepted = server.secure(tls.server, server_side=True)
    async with sockets() as (near, far), asyncio.timeout(DEADLINE):
        try:
            await loop.connect_accepted_socket(lambda: server, far)
            await loop.create_connection(lambda: client, sock=near)
            await client.start_tls(tls.client, server_side=False, server_hostname="localhost")
            await accepted
            yield client, server
        finally:
            for each in (client, server):
                each.abort()
                await each.wait_closed()


async def take(stream: ByteStream, size: int) -> bytes:
    """So many bytes, or what there is before the end."""
    data = b""
    while len(data) < size and (more := await stream.receive()):
        data += more
    return data


@pytest.mark.parametrize("size", [1, HANDSHAKE_PIECE, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 17, 2_000_000])
async def test_every_byte_arrives_in_both_directions(tls: Tls, size: int) -> None:
    sent = bytes(number * 31 % 251 for number in range(size))
    async with streams(tls) as (client, server):
        for one, other in ((client, server), (server, client)):
            one.send(sent)
            one.send(b"end")
            assert await take(other, size + 3) == sent + b"end"


async def test_what_follows_the_handshake_at_once_is_not_lost(tls: Tls) -> None:
    """The last bytes of the handshake and whole records behind them, in one piece and byte by byte."""
    loop = asyncio.get_running_loop()
    for step in (100_000, 1):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        agent = tls.client.wrap_bio(incoming, outgoing, server_hostname="localhost")
        async with sockets() as (near, far), asyncio.timeout(DEADLINE):
            server = ByteStream()
            handshake = server.secure(tls.server, server_side=True)
            await loop.connect_accepted_socket(lambda server=server: server, far)  # type: ignore[misc]
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    agent.do_handshake()
                    break
                await loop.sock_sendall(near, outgoing.read())
                incoming.write(await loop.sock_recv(near, 65536))
            agent.write(b"startup" * 100)
            data = outgoing.read()
            for start in range(0, len(data), step):
                await loop.sock_sendall(near, data[start : start + step])
            assert await take(server, 700) == b"startup" * 100
            await handshake
            server.abort()
            await server.wait_closed()


async def test_a_slow_reader_slows_its_sender(tls: Tls) -> None:
    sent = bytes(64 * HIGH_WATER)
    async with streams(tls) as (client, server):
        client.send(sent)
        assert client.writing_paused
        first = await server.receive()
        server.give_back(first)
        assert 0 < server.buffered <= 2 * HIGH_WATER
        assert await take(server, len(sent)) == sent
        await client.drain()
        assert not client.writing_paused


async def test_a_tap_takes_clear_bytes_and_hears_of_the_end(tls: Tls) -> None:
    class Taken:
        data = b""
        over = 0

        def received(self, data: bytes) -> None:
            self.data += data

        def ended(self) -> None:
            self.over += 1

    taken = Taken()
    async with streams(tls) as (client, server):
        server.tap = taken
        client.send(b"statement")
        client.close()
        await server.wait_closed()
    assert taken.data == b"statement"
    assert taken.over


async def test_the_end_comes_after_what_was_sent(tls: Tls) -> None:
    async with streams(tls) as (client, server):
        server.send(b"x" * 100_000)
        server.close()
        server.send(b"never sent")
        assert await take(client, 200_000) == b"x" * 100_000
        assert client.at_end
        await client.wait_closed()
        await server.wait_closed()


async def test_a_peer_that_has_more_to_say_is_not_reset(tls: Tls) -> None:
    """A reset could take what was sent before away from the peer."""
    loop = asyncio.get_running_loop()
    async with streams(tls) as (client, server):
        client.pause()
        with socket.socket(fileno=os.dup(client.extra("socket").fileno())) as near:
            near.setblocking(False)
            await loop.sock_sendall(near, b"unread" * 10_000)
            server.send(b"refused")
            server.close()
            size = 0
            while more := await loop.sock_recv(near, 65536):
                size += len(more)
            assert size > len(b"refused")
            await loop.sock_sendall(near, b"more" * 10_000)


async def test_a_peer_that_does_not_close_is_not_waited_for(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
    async with streams(tls) as (client, server):
        client.pause()
        server.send(b"x" * 50_000_000)
        server.close()
        await server.wait_closed()


async def test_forged_bytes_end_the_connection_and_are_not_taken(tls: Tls) -> None:
    async with streams(tls) as (client, server):
        with socket.socket(fileno=os.dup(client.extra("socket").fileno())) as beside:
            beside.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert await server.receive() == b""
        await server.wait_closed()


async def test_bytes_in_clear_before_tls_are_never_taken_for_encrypted(tls: Tls) -> None:
    loop = asyncio.get_running_loop()
    async with sockets() as (near, far), asyncio.timeout(DEADLINE):
        stream = ByteStream()
        await loop.create_connection(lambda: stream, sock=near)
        await loop.sock_sendall(far, b"early")
        stream.give_back(await stream.receive())
        with pytest.raises(ConnectionResetError, match="in clear"):
            await stream.start_tls(tls.client, server_side=False, server_hostname="localhost")
        stream.abort()
        await stream.wait_closed()


@pytest.mark.parametrize("end", [b"", b"\x16\x03\x01\x02"])
async def test_a_peer_that_leaves_during_the_handshake(tls: Tls, end: bytes) -> None:
    async with sockets() as (near, far), asyncio.timeout(DEADLINE):
        stream = ByteStream()
        handshake = stream.secure(tls.server, server_side=True)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: stream, far)
        near.send(end)
        near.close()
        with pytest.raises(ConnectionResetError):
            await handshake
        await stream.wait_closed()


async def test_a_silent_peer_times_out(tls: Tls) -> None:
    async with sockets() as (near, _), asyncio.timeout(DEADLINE):
        stream = ByteStream()
        await asyncio.get_running_loop().create_connection(lambda: stream, sock=near)
        with pytest.raises(TimeoutError):
            await stream.start_tls(tls.client, server_side=False, server_hostname="localhost", handshake_timeout=0.05)
        stream.abort()
        await stream.wait_closed()


async def test_tls_needs_an_open_connection(tls: Tls) -> None:
    with pytest.raises(ConnectionResetError, match="not open"):
        await ByteStream().start_tls(tls.client, server_side=False, server_hostname="localhost")


async def test_a_failed_check_is_raised_and_told(tls: Tls) -> None:
    loop = asyncio.get_running_loop()
    client, server = ByteStream(), ByteStream()
    accepted = server.secure(tls.server, server_side=True)
    async with sockets() as (near, far), asyncio.timeout(DEADLINE):
        await loop.connect_accepted_socket(lambda: server, far)
        await loop.create_connection(lambda: client, sock=near)
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.start_tls(tls.client, server_side=False, server_hostname="elsewhere.example")
        with contextlib.suppress(ssl.SSLError, OSError):  # TLS 1.3: the server is done before
            await accepted
        await client.wait_closed()
        server.abort()
        await server.wait_closed()
