"""The demo's agents: real clients (psycopg, which is libpq) over mutual TLS.  What they say is scripted."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg


class Answer(NamedTuple):
    """What an agent got for one statement."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    tag: str
    sqlstate: str = ""
    message: str = ""
    hint: str = ""

    @property
    def refused(self) -> bool:
        """True if the answer is an error."""
        return bool(self.sqlstate)

    def column(self, name: str) -> list[Any]:
        """The values of one column."""
        position = self.columns.index(name)
        return [row[position] for row in self.rows]


class Agent:
    """One agent with its certificate and one connection.  Use as a context manager."""

    def __init__(self, title: str, spiffe_id: str, certificate: Path, bundle: Path, port: int) -> None:
        self.title = title
        self.spiffe_id = spiffe_id
        self._parameters = connection_parameters(certificate, bundle, port)
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def __enter__(self) -> Agent:
        self._connection = psycopg.connect(**self._parameters, connect_timeout=10, autocommit=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def ask(self, sql: str, parameters: Sequence[object] | None = None) -> Answer:
        """Send one statement, with bind parameters if they are given.  A lost connection raises psycopg's error."""
        if self._connection is None:
            raise RuntimeError("the agent is not connected")
        try:
            cursor = self._connection.execute(sql, parameters)
        except psycopg.Error as error:
            if self._connection.broken or error.sqlstate is None:
                raise
            about = error.diag
            return Answer((), (), "", error.sqlstate, about.message_primary or "", about.message_hint or "")
        columns = tuple(column.name for column in cursor.description or ())
        return Answer(columns, tuple(cursor.fetchall()) if columns else (), cursor.statusmessage or "")


def connection_parameters(certificate: Path, bundle: Path, port: int) -> dict[str, Any]:
    """What libpq needs for mutual TLS with the server's name checked.

    The user name is for libpq only: Grille takes database and role from the certificate's identity.
    """
    return {
        "host": "localhost",
        "hostaddr": "127.0.0.1",
        "port": port,
        "dbname": "bank",
        "user": certificate.stem,
        "sslmode": "verify-full",
        "sslcert": str(certificate),
        "sslkey": str(certificate.with_suffix(".key")),
        "sslrootcert": str(bundle),
    }


def traceparent() -> str:
    """A new W3C trace context."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def with_chain(sql: str, chain: Mapping[str, str]) -> str:
    """The statement with its call chain as a sqlcommenter comment: keys sorted, values URL-encoded."""
    pairs = ",".join(f"{name}='{quote(value, safe='')}'" for name, value in sorted(chain.items()))
    return f"{sql} /*{pairs}*/"
