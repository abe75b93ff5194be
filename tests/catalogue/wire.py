"""A PostgreSQL client that sends any bytes it is told to."""

from __future__ import annotations

import socket
import ssl
from typing import Any, NamedTuple

from grille.protocols.postgres.messages import ErrorResponse, SSLRequest, StartupMessage, decode_data_row

DEADLINE = 20.0


class Reply(NamedTuple):
    """Messages up to ReadyForQuery, or to the end of the connection."""

    messages: list[tuple[str, bytes]]
    closed: bool

    @property
    def kinds(self) -> str:
        """One letter a message."""
        return "".join(kind for kind, _ in self.messages)

    @property
    def rows(self) -> list[tuple[bytes | None, ...]]:
        """The data rows."""
        return [decode_data_row(payload) for kind, payload in self.messages if kind == "D"]

    @property
    def errors(self) -> list[dict[str, str]]:
        """The fields of each ErrorResponse."""
        return [dict(ErrorResponse.decode(payload).fields) for kind, payload in self.messages if kind == "E"]

    def denied(self, control: str) -> bool:
        """One error, by this control."""
        return len(self.errors) == 1 and f"[control {control}" in self.errors[0]["M"]


class Wire:
    """One connection.  Use as a context manager."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.stream.settimeout(DEADLINE)
        self._buffer = b""
        self.hello = Reply([], False)

    @classmethod
    def open(cls, port: int, context: ssl.SSLContext, startup: dict[str, str]) -> Wire:
        """Connect, shake hands, send the startup message and read up to the first ReadyForQuery or the end."""
        plain = socket.create_connection(("localhost", port), DEADLINE)
        try:
            plain.sendall(SSLRequest().encode())
            assert plain.recv(1) == b"S"
            made = cls(context.wrap_socket(plain, server_hostname="localhost"))
        except BaseException:
            plain.close()
            raise
        made.send(StartupMessage({"user": "x", **startup}).encode())
        made.hello = made.reply()
        return made

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def send(self, *messages: Any) -> None:
        """Bytes, or messages of grille.protocols.postgres.messages."""
        self.stream.sendall(b"".join(m if isinstance(m, bytes) else m.encode() for m in messages))

    def ask(self, *messages: Any) -> Reply:
        """Send, and read the reply."""
        self.send(*messages)
        return self.reply()

    def reply(self) -> Reply:
        """Read up to ReadyForQuery, or to the end of the connection."""
        found: list[tuple[str, bytes]] = []
        while True:
            while len(self._buffer) < 5 or len(self._buffer) < 1 + int.from_bytes(self._buffer[1:5], "big"):
                try:
                    data = self.stream.recv(65536)
                except (ConnectionError, ssl.SSLError):
                    data = b""
                if not data:
                    return Reply(found, True)
                self._buffer += data
            size = 1 + int.from_bytes(self._buffer[1:5], "big")
            message, self._buffer = self._buffer[:size], self._buffer[size:]
            found.append((chr(message[0]), message[5:]))
            if message[:1] == b"Z":
                return Reply(found, False)
