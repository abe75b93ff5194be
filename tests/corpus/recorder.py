"""A relay between a client and PostgreSQL that notes what the client has run: texts, parameters, COPY data.

It reads the client's messages by their lengths ("Message Flow" and "Message Formats" in PostgreSQL's documentation) and
passes every byte.
"""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import Any

_TEXTS = 80877103, 80877104
"""SSLRequest and GSSENCRequest: answered N, so that what follows can be read."""


@dataclass
class Recorder:
    """Listens on a port of loopback; `sessions` has one list of executions for each connection."""

    host: str
    port: int
    sessions: list[list[dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.listens: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        executions: list[dict[str, Any]] = []
        reader = client.makefile("rb")
        while True:
            head = reader.read(8)
            size, code = struct.unpack("!II", head)
            if code not in _TEXTS:
                break
            client.sendall(b"N")
        rest = reader.read(size - 8)
        server = socket.create_connection((self.host, self.port))
        server.sendall(head + rest)
        if code == 196608:
            self.sessions.append(executions)
        threading.Thread(target=_copy, args=(server, client), daemon=True).start()
        statements: dict[bytes, tuple[str, list[int]]] = {}
        portals: dict[bytes, dict[str, Any]] = {}
        while kind := reader.read(1):
            (size,) = struct.unpack("!I", length := reader.read(4))
            body = reader.read(size - 4)
            _note(kind, body, statements, portals, executions)
            server.sendall(kind + length + body)
        server.close()


def _copy(server: socket.socket, client: socket.socket) -> None:
    try:
        while data := server.recv(65536):
            client.sendall(data)
    except OSError:
        pass
    client.close()


def _note(
    kind: bytes, body: bytes, statements: dict[bytes, tuple[str, list[int]]], portals: dict[bytes, dict[str, Any]],
    executions: list[dict[str, Any]],
) -> None:  # fmt: skip
    match kind:
        case b"Q":
            executions.append({"sql": body[:-1].decode()})
        case b"P":
            name, text, rest = body.split(b"\0", 2)
            count = int.from_bytes(rest[:2], "big")
            statements[name] = text.decode(), list(struct.unpack(f"!{count}I", rest[2 : 2 + 4 * count]))
        case b"B":
            portal, name, rest = body.split(b"\0", 2)
            (count,) = struct.unpack_from("!H", rest)
            formats = list(struct.unpack_from(f"!{count}H", rest, 2))
            at = 2 + 2 * count
            (count,) = struct.unpack_from("!H", rest, at)
            at += 2
            values: list[str | None] = []
            for _ in range(count):
                (size,) = struct.unpack_from("!i", rest, at)
                at += 4
                values.append(None if size < 0 else rest[at : at + size].hex())
                at += max(0, size)
            (count,) = struct.unpack_from("!H", rest, at)
            results = list(struct.unpack_from(f"!{count}H", rest, at + 2))
            text, types = statements[name]
            portals[portal] = {"sql": text, "types": types, "formats": formats, "values": values, "results": results}
        case b"E":
            name = body.split(b"\0", 1)[0]
            found = portals.get(name)
            if found is not None and (not executions or executions[-1] is not found):
                executions.append(found)
        case b"d":
            executions[-1]["copy"] = executions[-1].get("copy", "") + body.hex()
