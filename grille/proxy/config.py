"""The configuration: one TOML file, decoded into these types, with errors that name the key, the value and the fix.

Every type's docstring and every field's comment is the configuration reference (docs/reference/configuration.md is
generated from this file).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file: unknown keys are errors."""


class Listener(_Section):
    """Where agents connect, and with which certificate Grille answers them."""

    host: str = "127.0.0.1"
    port: Port = 6432
    certificate: Path
    """PEM file: Grille's own certificate chain (an X.509-SVID)."""
    key: Path
    """PEM file: its private key; must not be readable by others."""
    tls_minimum: Literal["1.2", "1.3"] = "1.3"
    handshake_timeout: Seconds = 10.0
    idle_message_timeout: Seconds = 30.0
    """How long half a message may take to become whole."""
    max_connections: Annotated[int, Meta(ge=1)] = 10_000
    max_message_bytes: Annotated[int, Meta(ge=1024)] = 16 * 1024 * 1024
    max_statement_bytes: Annotated[int, Meta(ge=1024)] = 256 * 1024


class TrustDomain(_Section):
    """One SPIFFE trust domain whose agents may connect."""

    name: str
    bundle: Path
    """PEM file (or SPIFFE JWKS, .json) with the domain's CA certificates; never merged with another domain's."""


class Identity(_Section):
    """One agent, or all agents below a path, and what the policy engine is told about it."""

    spiffe_id: str
    """Exact id, or a prefix that ends in ``/*``.  The longest match wins."""
    database: str
    """Name of a [[databases]] entry."""
    scopes: tuple[str, ...] = ()
    attributes: dict[str, str | int | bool] = {}
    """branch, tenant, geography, ...: part of the identity document that the policy sees."""


class Database(_Section):
    """One upstream PostgreSQL database and the role that Grille uses there."""

    name: str
    host: str
    """Host name, or the directory of a unix socket (absolute path)."""
    port: Port = 5432
    database: str
    role: str
    password_file: Path | None = None
    """File whose first line is the role's password; must not be readable by others."""
    tls: Literal["verify-full", "off"] = "verify-full"
    """``off`` is accepted for unix sockets and loopback only."""
    ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    pool_size: Annotated[int, Meta(ge=1)] = 16
    connect_timeout: Seconds = 5.0
    acquire_timeout: Seconds = 10.0
    statement_timeout: Seconds = 60.0
    catalog_poll: Seconds = 5.0
    functions: tuple[str, ...] = ()
    """Routines outside pg_catalog that agents may call: ``schema.name(type,type)``."""
    open_schemas: tuple[str, ...] = ()
    """Schemas allowed whole: a missing name there is told as 42P01."""


class Transformation(_Section):
    """How one kind of sensitive value becomes a token."""

    name: str
    kind: Literal["fpe", "siv"]
    """``fpe``: FF1, keeps format and length.  ``siv``: AES-SIV (RFC 5297), for free text."""
    alphabet: Literal["digits", "lower", "upper", "alphanumeric", "text"] = "digits"
    template: str = ""
    """Regular expression with one group for each run of characters to encode; the rest is kept as it is."""
    token_domain: str
    """Columns that are to be joined share one."""
    key: str
    """Name of a [[keys]] entry."""


class Key(_Section):
    """One tokenization key."""

    name: str
    version: Annotated[int, Meta(ge=1)] = 1
    file: Path
    """32 bytes (fpe) or 64 bytes (siv), hexadecimal; must not be readable by others."""


class Column(_Section):
    """One sensitive column."""

    name: str
    """``schema.relation.column``"""
    sensitivity: str = "sensitive"
    transformation: str | None = None
    """Stored tokenized under this transformation; without it the column is stored clear and masked in SQL."""


class Policy(_Section):
    """Where decisions come from."""

    bundle: Path
    """An OPA bundle (.tar.gz) built with ``opa build -t wasm``."""
    entrypoint: str = "grille/decision"
    timeout: Seconds = 0.25
    reload_poll: Seconds = 1.0
    cache_entries: Annotated[int, Meta(ge=0)] = 100_000


class Audit(_Section):
    """Where evidence is kept."""

    directory: Path
    signing_key: Path
    """PEM file: Ed25519 private key; must not be readable by others."""
    reads: Literal["process", "power", "strict"] = "power"
    writes: Literal["process", "power", "strict"] = "strict"
    block_events: Annotated[int, Meta(ge=1, le=65536)] = 1024
    block_milliseconds: Annotated[int, Meta(ge=1)] = 5
    segment_bytes: Annotated[int, Meta(ge=4096)] = 64 * 1024 * 1024


class Admin(_Section):
    """Metrics and health."""

    host: str = "127.0.0.1"
    port: Port = 9187


class Process(_Section):
    """The process itself."""

    workers: Annotated[int, Meta(ge=0)] = 0
    """0: one a core."""
    drain_seconds: Seconds = 30.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Section):
    """The whole file."""

    listener: Listener
    trust_domains: tuple[TrustDomain, ...]
    identities: tuple[Identity, ...]
    databases: tuple[Database, ...]
    policy: Policy
    audit: Audit
    keys: tuple[Key, ...] = ()
    transformations: tuple[Transformation, ...] = ()
    columns: tuple[Column, ...] = ()
    admin: Admin = Admin()
    process: Process = Process()
