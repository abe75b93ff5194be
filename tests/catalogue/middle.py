"""Somebody between Grille and its database, with a certificate that Grille trusts: adds bytes when told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from pathlib import Path

from grille.proxy.demo.cluster import Cluster


class Middle:
    """Use as a context manager.  `forge_before_tls` and `forge` strike once."""

    def __init__(self, cluster: Cluster, certificate: Path) -> None:
        self._socket = f"{cluster.host}/.s.PGSQL.{cluster.port}"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._clients: set[asyncio.StreamWriter] = set()
        self.forge_before_tls = b""
        """Sent behind the ``S`` that answers the next request for TLS."""
        self.forge: tuple[bytes, bytes] | None = None
        """When the server's bytes hold the first, the second goes before them."""
        self.struck = threading.Event()

    def __enter__(self) -> Middle:
        self._thread.start()
        made = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "localhost", 0), self._loop)
        self._server = made.result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drop(self) -> None:
        """End every connection: the next statement needs a new one."""

        def abort() -> None:
            for writer in tuple(self._clients):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                await reader.readexactly(8)
                forged, self.forge_before_tls = self.forge_before_tls, b""
                writer.write(b"S" + forged)
                if forged:
                    self.struck.set()
                await writer.start_tls(self._context)
                up_reader, up = await asyncio.open_unix_connection(self._socket)
                try:
                    await asyncio.gather(self._copy(reader, up, False), self._copy(up_reader, writer, True))
                finally:
                    up.close()
        finally:
            self._clients.discard(writer)
            writer.transport.abort()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, forging: bool) -> None:
        while data := await source.read(65536):
            if forging and self.forge is not None and self.forge[0] in data:
                data, self.forge = self.forge[1] + data, None
                self.struck.set()
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError
