"""A real Redis or Valkey server for tests, on a port of its own, without anything on disk."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

_DEADLINE = 20.0


def program() -> str | None:
    """The server, Valkey's or Redis's, or None."""
    return shutil.which("valkey-server") or shutil.which("redis-server")


class Store:
    """The server, which may be stopped, frozen and started again."""

    def __init__(self, found: str, directory: Path, *options: str, password: str = "") -> None:
        self._found = found
        self._directory = directory
        self._options = options
        self._password = password
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns once it answers."""
        secret = ["--requirepass", self._password] if self._password else []
        self._process = subprocess.Popen(
            [self._found, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--dir", str(self._directory), *secret, *self._options],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + _DEADLINE
        while b"PONG" not in (answer := self._say("PING")) and b"NOAUTH" not in answer:
            assert time.monotonic() < deadline and self._process.poll() is None
            time.sleep(0.02)

    def _say(self, *words: str) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(" ".join(words).encode() + b"\r\n")
                return connection.recv(65536)
        except OSError:
            return b""

    def freeze(self) -> None:
        """It takes connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_DEADLINE)
            self._process = None
