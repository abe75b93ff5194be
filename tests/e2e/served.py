"""A ``grille serve`` process of a test: started, listened to, and ended as an operator does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE = 30.0
"""Seconds after which something that must happen will not happen any more."""
WORKERS = 2


def until(condition: Callable[[], object], within: float = DEADLINE) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Served:
    """A node of `WORKERS` workers, and what is known of it from outside."""

    def __init__(self, config: Path) -> None:
        """Start it, and wait until every worker is ready.  Its log stands beside its configuration."""
        self.log = config.parent / "grille.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "grille", "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        (serving,) = self.said("serving", 1)
        self.port, self.admin_port = serving["port"], serving["admin_port"]
        until(self.ready)

    def said(self, message: str, count: int) -> list[dict[str, Any]]:
        """Wait until a message was logged so often."""

        def found() -> list[dict[str, Any]]:
            assert self.process.poll() is None, self.log.read_text()
            lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
            return [line for line in lines if line["message"] == message]

        until(lambda: len(found()) >= count)
        return found()

    def get(self, path: str) -> tuple[int, str]:
        """Ask the admin listener."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ready(self) -> bool:
        """Whether every worker is."""
        return self.get("/readyz")[0] == 200

    @property
    def workers(self) -> dict[int, int]:
        """The process id of each worker that serves now, by its number."""
        return {line["worker"]: line["pid"] for line in self.said("worker started", WORKERS)}

    def stop(self) -> None:
        """End it as an operator does, and look at what it leaves behind."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(DEADLINE) == 0
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert '"exception"' not in log, log
