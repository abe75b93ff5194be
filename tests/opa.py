"""A real OPA server for tests: ``opa run --server`` with the demo's policy."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grille.policies

_REGO = Path(grille.policies.__file__).parent / "rego"
_DEADLINE = 20.0


class Opa:
    """The server, on a port of its own, with its decision log."""

    def __init__(self, program: str, directory: Path) -> None:
        self._program = program
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = ""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Of the rule that decides."""
        return f"http://127.0.0.1:{self.port}/v1/data/grille/decision"

    def start(self, revision: str) -> None:
        """Serve the policy under this revision; returns once it answers."""
        sources = self._directory / "policy"
        shutil.rmtree(sources, ignore_errors=True)
        shutil.copytree(_REGO, sources, ignore=shutil.ignore_patterns("*_test.rego"))
        (sources / ".manifest").write_text(json.dumps({"revision": revision, "roots": [""]}))
        command = [self._program, "run", "--server", "--addr", f"127.0.0.1:{self.port}", "--bundle", "policy",
                   "--log-format", "json", "--set", "decision_logs.console=true"]  # fmt: skip
        process = self._process = subprocess.Popen(
            command, cwd=self._directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, args=(process,))
        self._reader.start()
        deadline = time.monotonic() + _DEADLINE
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health?bundles", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, self.log
                assert process.poll() is None, self.log
                time.sleep(0.02)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            for line in stream:
                self.log += line

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is None or self._reader is None:
            return
        self._process.terminate()
        self._process.wait(_DEADLINE)
        self._reader.join(_DEADLINE)
        self._process = None

    def decided(self) -> set[str]:
        """The ids of its decisions."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return {line["decision_id"] for line in lines if "decision_id" in line}
