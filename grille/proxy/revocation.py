"""Who may not connect any more: a file that is looked at while Grille runs.

One entry a line: a SPIFFE ID, all below a path (``spiffe://bank.example/ns/fraud/*``), or one certificate
(``sha256:`` and the 64 hexadecimal digits of its DER form, as audit events have it).  ``#`` begins a comment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from grille.proxy.identity import Agent, parse_spiffe_id
from grille.proxy.tls import file_state

MAX_BYTES: Final = 16 * 1024 * 1024
_CERTIFICATE: Final = re.compile(r"sha256:[0-9a-f]{64}")


class RevocationError(Exception):
    """The file cannot be used.  The text names the file, the line and the fix."""


class Revocations:
    """The entries of the file as it is now.

    A new entry is in force at the next `poll`; one that is taken out is forgotten only when the file was the same at
    two looks, so that a file that is being written anew lets nobody in.  A file that cannot be read, or holds a line
    that is not understood, leaves the entries in force and adds those of the other lines.
    """

    def __init__(self, path: Path | None) -> None:
        """Reads the file; without one nobody is revoked.  Raises `RevocationError`."""
        self._path = path
        self._seen: object = None
        self._settled = True
        self.problem = ""
        """What is wrong with the file; empty if it can be used."""
        self._entries: frozenset[str] = frozenset()
        if path is not None:
            self._seen = file_state(path)
            self._entries, self.problem = _read(path)
            if self.problem:
                raise RevocationError(self.problem)

    def __len__(self) -> int:
        return len(self._entries)

    def poll(self) -> bool:
        """Look at the file; True if who is revoked, or `problem`, has changed."""
        path = self._path
        if path is None:
            return False
        state = file_state(path)
        if state == self._seen and self._settled:
            return False
        found, problem = _read(path)
        before = (self._entries, self.problem)
        self._settled = state == self._seen
        self._seen = state
        self._entries = found if self._settled and not problem else self._entries | found
        self.problem = problem
        return before != (self._entries, self.problem)

    def revoked(self, agent: Agent) -> bool:
        """Whether this agent, or its certificate, may not connect any more."""
        entries = self._entries
        if not entries:
            return False
        if agent.spiffe_id in entries or f"sha256:{agent.cert_sha256}" in entries:
            return True
        path = agent.spiffe_id
        while (cut := path.rfind("/")) > len("spiffe://"):
            path = path[:cut]
            if f"{path}/*" in entries:
                return True
        return False


def _read(path: Path) -> tuple[frozenset[str], str]:
    """The entries that are understood, and what is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        return frozenset(), f"{path} cannot be read ({error.strerror}): correct its path or its mode"
    if len(data) > MAX_BYTES:
        return frozenset(), f"{path} is larger than {MAX_BYTES} bytes: take out what has expired"
    found = set()
    problem = ""
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if _understood(entry):
            found.add(entry)
        else:
            fix = "write a SPIFFE ID, exact or with /* at the end, or sha256: and 64 hexadecimal digits"
            problem = problem or f"{path}, line {number} is not understood: {fix}"
    return frozenset(found), problem


def _understood(entry: str) -> bool:
    if _CERTIFICATE.fullmatch(entry):
        return True
    try:
        parse_spiffe_id(entry.removesuffix("/*"))
    except ValueError:
        return False
    return True
