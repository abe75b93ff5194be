"""What the proxy answers by itself: SHOW, and statements that drivers send on their own account.

These ask about the session, and the session ends at the proxy, so the proxy knows the answer and the database does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from grille.protocols.postgres.messages import CommandComplete, Field, RowDescription, encode_data_row

TEXT_OID: Final = 25
BOOL_OID: Final = 16
VOID_OID: Final = 2278


class Answer(msgspec.Struct, frozen=True):
    """A complete result: columns (none for a command without rows), rows in text form, and the command tag."""

    tag: str
    columns: tuple[tuple[str, int], ...] = ()
    """(name, type OID)"""
    rows: tuple[tuple[str | None, ...], ...] = ()
    parameters: tuple[int, ...] = ()
    """Type OIDs of parameters, whose values make no difference."""

    def description(self, formats: Sequence[int] = ()) -> bytes:
        """The RowDescription message; empty for a command without rows."""
        if not self.columns:
            return b""
        return RowDescription(
            tuple(
                Field(name, oid, 1 if oid == BOOL_OID else 4 if oid == VOID_OID else -1, format=_format(formats, n))
                for n, (name, oid) in enumerate(self.columns)
            )
        ).encode()

    def messages(self, formats: Sequence[int] = ()) -> bytes:
        """The DataRow and CommandComplete messages."""
        rows = b"".join(
            encode_data_row([_encode(value, self.columns[n][1], _format(formats, n)) for n, value in enumerate(row)])
            for row in self.rows
        )
        return rows + CommandComplete(self.tag).encode()


def _format(formats: Sequence[int], n: int) -> int:
    return 0 if not formats else formats[0] if len(formats) == 1 else formats[n]


def _encode(value: str | None, oid: int, format_code: int) -> bytes | None:
    """text and void look the same in both formats; bool does not."""
    if value is None:
        return None
    if oid == BOOL_OID and format_code == 1:
        return b"\1" if value == "t" else b"\0"
    return value.encode()


FIXED: Final[Mapping[str, str]] = {
    "bytea_output": "hex",
    "client_min_messages": "notice",
    "in_hot_standby": "off",
    "integer_datetimes": "on",
    "is_superuser": "off",
    "jit": "off",
    "lc_collate": "C",
    "lc_ctype": "C",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "max_identifier_length": "63",
    "search_path": "public",
    "server_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "xmloption": "content",
    "xmlbinary": "base64",
}
"""What SHOW answers for settings that no client can change, and the only value that SET accepts for them."""

REPORTED: Final = (
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
)
"""The settings that are told with ParameterStatus at startup."""


def show(name: str, value: str) -> Answer:
    """The answer to SHOW."""
    return Answer("SHOW", ((name, TEXT_OID),), ((value,),))


UNLOCKED: Final = Answer("SELECT 1", (("pg_advisory_unlock_all", VOID_OID),), (("",),))
"""No session holds an advisory lock here, so there is nothing to unlock."""

_PSYCOPG_TYPE: Final = (
    "select typname as name, oid, typarray as array_oid, oid::regtype::text as regtype, typdelim as delimiter"
    " from pg_type t where t.oid = to_regtype($1) order by t.oid"
)
"""psycopg's TypeInfo.fetch; SQLAlchemy asks it for hstore.  The answer is that there is no such type."""
_PSYCOPG_TYPE_COLUMNS: Final = tuple((name, TEXT_OID) for name in ("name", "oid", "array_oid", "regtype", "delimiter"))
_SPACE: Final = re.compile(r"\s+")


def normal_form(text: str) -> str:
    """A short statement in lower case with single spaces, for comparison with what drivers are known to send."""
    return _SPACE.sub(" ", text.strip().rstrip("; \t\r\n")).lower()


def may_answer(text: str) -> bool:
    """Whether `driver_answer` has an answer to this text."""
    return driver_answer(text, {"server_version": "", "database": "", "session_authorization": ""}) is not None


def driver_answer(text: str, known: Mapping[str, str]) -> Answer | None:
    """The answer to a statement that a driver sends by itself, or None if it is not one of them.

    ``known`` holds ``server_version``, ``database`` and ``session_authorization``.
    """
    if len(text) > 400:
        return None
    match normal_form(text):
        case "select version()" | "select pg_catalog.version()":
            version = f"PostgreSQL {known['server_version']} (behind Grille)"
            return Answer("SELECT 1", (("version", TEXT_OID),), ((version,),))
        case "select current_schema()" | "select current_schema" | "select pg_catalog.current_schema()":
            return Answer("SELECT 1", (("current_schema", TEXT_OID),), (("public",),))
        case "select current_database()" | "select pg_catalog.current_database()":
            return Answer("SELECT 1", (("current_database", TEXT_OID),), ((known["database"],),))
        case "select current_user" | "select session_user" | "select user" as normal:
            column = normal.partition(" ")[2]
            return Answer("SELECT 1", ((column, TEXT_OID),), ((known["session_authorization"],),))
        case "select pg_is_in_recovery()" | "select pg_catalog.pg_is_in_recovery()":
            return Answer("SELECT 1", (("pg_is_in_recovery", BOOL_OID),), (("f",),))
        case known_query if known_query == _PSYCOPG_TYPE:
            return Answer("SELECT 0", _PSYCOPG_TYPE_COLUMNS, (), (TEXT_OID,))
    return None
