"""The configuration: one TOML file, decoded into these types, with errors that name the key, the value and the fix.

Every type's docstring and every field's comment is the configuration reference (docs/reference/configuration.md is
generated from this file).
"""

from __future__ import annotations

import base64
import difflib
import functools
import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from grille.policies.signature import Algorithm
from grille.proxy import secret_file
from grille.proxy.secret_file import Exposed
from grille.tokenization.ff3_1 import TWEAK_BYTES

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
MOST_WORKERS = 128
"""A cancel key has seven bits for its worker."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file: unknown keys are errors."""


class Listener(_Section, frozen=True, kw_only=True):
    """Where agents connect, and with which certificate Grille answers them."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` or ``::`` for all."""
    port: Port = 6432
    """0 lets the system choose; the start log names it."""
    certificate: Path
    """PEM file: Grille's own certificate chain (an X.509-SVID)."""
    key: Path
    """PEM file: its private key; must not be readable by others."""
    tls_minimum: Literal["1.2", "1.3"] = "1.3"
    """Oldest TLS version accepted."""
    handshake_timeout: Seconds = 10.0
    """How long TLS and startup may take together."""
    idle_message_timeout: Seconds = 30.0
    """How long half a message may take to become whole."""
    max_connections: Annotated[int, Meta(ge=1)] = 10_000
    """Agents' connections a worker; more are refused with 53300."""
    max_message_bytes: Annotated[int, Meta(ge=1024)] = 16 * 1024 * 1024
    """Largest message an agent may send; a larger one closes its connection."""
    max_statement_bytes: Annotated[int, Meta(ge=1024)] = 64 * 1024
    """Longest SQL text; a longer one is refused before it is parsed."""
    revocations: Path | None = None
    """File of agents that may not connect: a line for each SPIFFE ID (exact, or with ``/*`` at the end) or certificate
    (``sha256:`` and its hash).  It is looked at every second, and the sessions of who is new in it end."""


class TrustDomain(_Section, frozen=True, kw_only=True):
    """One SPIFFE trust domain whose agents may connect."""

    name: str
    """The trust domain without ``spiffe://``, like ``bank.example``."""
    bundle: Path
    """PEM file (or SPIFFE JWKS, .json) with the domain's CA certificates; never merged with another domain's."""


class Identity(_Section, frozen=True, kw_only=True):
    """One agent, or all agents below a path, and what the policy engine is told about it."""

    spiffe_id: str
    """Exact id, or a prefix that ends in ``/*``.  The longest match wins."""
    database: str = ""
    """Name of a [[databases]] entry; empty: the agent may connect to no database."""
    queue_manager: str = ""
    """Name of a [[queue_managers]] entry; empty: the agent may connect to no queue manager."""
    queue_manager_user: str = ""
    """Whom the queue manager is to take the agent for: a user id of at most 12 characters."""
    scopes: tuple[str, ...] = ()
    """What the agent may be used for, as words that the policy knows."""
    attributes: dict[str, str | int | bool] = {}
    """branch, tenant, geography, ...: part of the identity document that the policy sees."""


class Database(_Section, frozen=True, kw_only=True):
    """One upstream PostgreSQL database and the role that Grille uses there."""

    name: str
    """What [[identities]] call it; unique."""
    host: str
    """Host name, or the directory of a unix socket (absolute path)."""
    port: Port = 5432
    """Port; for a unix socket the number in its file name."""
    database: str
    """Name of the database on the server."""
    role: str
    """The login role; never chosen by an agent.  It needs no more than the agents' rights together."""
    password_file: Path | None = None
    """File whose first line is the role's password; must not be readable by others."""
    tls: Literal["verify-full", "off"] = "verify-full"
    """``off`` is accepted for unix sockets and loopback only."""
    ca: Path | None = None
    """PEM file: the CA of the server's certificate; without it, the system's CAs."""
    client_certificate: Path | None = None
    """PEM file: certificate that Grille shows the server, if the server asks for one."""
    client_key: Path | None = None
    """PEM file: its private key; must not be readable by others."""
    pool_size: Annotated[int, Meta(ge=1)] = 16
    """Upstream connections a worker; the server sees this many for each worker."""
    read_pipes: Annotated[int, Meta(ge=0)] = 2
    """Read-only connections a worker, besides ``pool_size``, on which bounded reads of many agents follow each other;
    0: every statement has a connection of its own."""
    connect_timeout: Seconds = 5.0
    """How long one upstream connection may take to open."""
    acquire_timeout: Seconds = 10.0
    """How long a statement may wait for a free connection; then 53300."""
    statement_timeout: Seconds = 60.0
    """Longest run of one statement; a decision's limit may shorten it."""
    catalog_poll: Seconds = 5.0
    """How often the catalogue is looked at for DDL."""
    functions: tuple[str, ...] = ()
    """Routines outside pg_catalog that agents may call: ``schema.name(type,type)``."""
    definitions: dict[str, str] = {}
    """SHA-256 of the definition of a view (``schema.view``) or listed routine (``schema.name(type,type)``) as it was
    approved.  While the database has another definition, nobody may use it; ``grille check`` prints which it has."""
    passthrough: bool = False
    """Let the policy give agents sessions that are carried unchanged: no row filter, mask or limit applies to them, and
    all that the role may do, they may.  Each holds one connection of the pool for its whole life."""


class Mq(_Section, frozen=True, kw_only=True):
    """Where IBM MQ clients connect, if [[queue_managers]] has any.  Certificate, TLS version, time-outs and revocations
    are those of [listener]."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` or ``::`` for all."""
    port: Port = 1414
    """0 lets the system choose; the start log names it."""
    channel: str = "GRILLE.SVRCONN"
    """Name of the server-connection channel that clients have to ask for."""
    max_connections: Annotated[int, Meta(ge=1)] = 1000
    """Agents' sockets a worker; more are refused."""
    conversations: Annotated[int, Meta(ge=0, le=999)] = 10
    """Most connections of one agent that share a socket (SHARECNV); 0: none do, and JMS has fewer functions."""
    max_message_bytes: Annotated[int, Meta(ge=1024, le=104_857_600)] = 4 * 1024 * 1024
    """Largest message; a larger one is refused by the client itself.  A worker may hold one for each conversation."""


class QueueManager(_Section, frozen=True, kw_only=True):
    """One upstream IBM MQ queue manager, and the channel that Grille uses there."""

    name: str
    """The queue manager's own name: what [[identities]] call it, and what the policy calls the schema of its queues."""
    host: str
    """Host name."""
    port: Port = 1414
    """Of its listener."""
    channel: str
    """The server-connection channel of the queue manager."""
    tls: Literal["verify-full", "off"] = "verify-full"
    """``off`` is accepted for loopback only."""
    ca: Path | None = None
    """PEM file: the CA of the queue manager's certificate; without it, the system's CAs."""
    client_certificate: Path | None = None
    """PEM file: certificate that Grille shows the queue manager; its channel authentication records map it."""
    client_key: Path | None = None
    """PEM file: its private key; must not be readable by others."""
    connect_timeout: Seconds = 5.0
    """How long one connection to it may take to open."""


class LayoutField(_Section, frozen=True, kw_only=True):
    """One sensitive field of a layout."""

    name: str
    """What the policy calls it: ``queue manager/queue.name``; letters, digits, ``_`` and ``-``."""
    at: str
    """Where it is.  copybook: the name of an item, with ``OF`` and its group if one name is not enough.  json: a path,
    ``payer.accounts[].number``.  xml: a path of names without prefixes, ``Document/Payer/Account`` or
    ``Document/Payer/@account``.  delimited: the number of a column, or with ``header`` its name."""
    transformation: str | None = None
    """The queue has it tokenized under this transformation; without it the queue has it clear."""


class Layout(_Section, frozen=True, kw_only=True):
    """How messages of some queues are made up."""

    name: str
    """What [[queues]] call it; unique."""
    format: Literal["copybook", "json", "xml", "delimited"]
    """``copybook``: one fixed record of COBOL."""
    copybook: Path | None = None
    """copybook only: the file with the record."""
    ccsid: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Character set of payloads whose message does not say it; 0: such a message has not this layout."""
    separator: str = ","
    """delimited only: one character."""
    quote: str = '"'
    """delimited only: one character, or none."""
    header: bool = False
    """delimited only: the first line has the names of the columns."""
    fields: tuple[LayoutField, ...]
    """The sensitive fields; what is not named passes as it is."""


class Queue(_Section, frozen=True, kw_only=True):
    """A queue whose messages have a layout.  What is put there must have it, and what has it not is got by nobody."""

    name: str
    """``queue manager/queue``"""
    layout: str
    """Name of a [[layouts]] entry."""
    quarantine: str
    """Local queue of the queue manager to which a message is moved that has not the layout."""


class Transformation(_Section, frozen=True, kw_only=True):
    """How one kind of sensitive value becomes a token."""

    name: str
    """What [[columns]] call it; unique."""
    kind: Literal["fpe", "siv"]
    """``fpe``: FF1, keeps format and length.  ``siv``: AES-SIV (RFC 5297), for free text."""
    alphabet: Literal["digits", "lower", "upper", "alphanumeric", "text"] = "digits"
    """Characters that are encoded, and that a token is made of (fpe)."""
    template: str = ""
    """Regular expression with one group for each run of characters to encode; the rest is kept as it is."""
    token_domain: str
    """Columns that are to be joined share one."""
    key: str = ""
    """Name of a [[keys]] entry; only with ``provider = "embedded"``, which needs it."""
    provider: Literal["embedded", "vault"] = "embedded"
    """Who makes the tokens: Grille itself with a key that it holds, or the Transform engine of [vault] (``fpe`` only),
    where each transformation has a key of its own, so that no two can share a token domain."""
    version: Annotated[int, Meta(ge=1)] = 1
    """With ``provider = "vault"``: which of the transformation's keys.  It is part of the tweak, and from 2 on of the
    transformation's name in Vault (``NAME-v2``)."""
    check: str = ""
    """With ``provider = "vault"``: the token by which Vault's key is known; ``grille tokens setup`` prints it.  While
    Vault has another key, nothing is encoded or decoded; without it, another key is not noticed."""
    fpe_algorithm: Literal["ff1", "ff3-1"] = "ff1"
    """``ff3-1`` (withdrawn by NIST in 2025) reads what Vault made with it, and makes nothing: its columns can be
    selected, not written or searched."""
    tweak: str = ""
    """``ff3-1`` only, and required then: the 7 bytes, in base64, that Vault was given (``tweak_source = supplied``)."""


class Key(_Section, frozen=True, kw_only=True):
    """One tokenization key."""

    name: str
    """What [[transformations]] call it; unique."""
    version: Annotated[int, Meta(ge=1)] = 1
    """Part of the tweak: tokens of one version are not tokens of another."""
    file: Path | None = None
    """32 bytes (fpe) or 64 bytes (siv), hexadecimal; must not be readable by others.  Or ``environment``, or
    ``pkcs11``."""
    environment: str = ""
    """Name of the environment variable that holds the same digits, where a supervisor hands keys over like that."""
    pkcs11: str = ""
    """Label of a secret key on the token of [pkcs11], which is read when Grille starts.  With ``file`` too: an AES key
    that stays on the token and unwraps what the file holds (AES key wrap, RFC 3394)."""


class Pkcs11(_Section, frozen=True, kw_only=True):
    """The PKCS#11 token (an HSM) that holds keys; needs the extra ``pkcs11``."""

    module: Path | None = None
    """The token's library, like ``/usr/lib/softhsm/libsofthsm2.so``; it becomes part of Grille's processes, so it must
    not be writable by others."""
    token: str = ""
    """The label that the token was initialized with."""
    pin_file: Path | None = None
    """File whose first line is the user's PIN; must not be readable by others."""


class Vault(_Section, frozen=True, kw_only=True):
    """The Vault (Enterprise or HCP, with its Transform engine) of the transformations whose ``provider`` it is."""

    address: str = ""
    """Its address, like ``https://vault.example:8200``.  Without TLS on loopback only."""
    namespace: str = ""
    """Namespace of the engine and of the login method; empty: the root namespace."""
    mount: str = "transform"
    """Where the Transform engine is mounted."""
    role: str = "grille"
    """The engine's role that Grille uses; ``grille tokens setup`` makes it."""
    ca: Path | None = None
    """PEM file: the CA of Vault's certificate; without it, the system's CAs."""
    client_certificate: Path | None = None
    """PEM file: certificate (an X.509-SVID, say) that Grille shows Vault, also to log in by it (``auth = "cert"``)."""
    client_key: Path | None = None
    """PEM file: its private key; must not be readable by others."""
    auth: Literal["approle", "kubernetes", "jwt", "cert"] = "approle"
    """How Grille logs in."""
    auth_mount: str = ""
    """Where that method is mounted; empty: under its own name."""
    auth_role: str = ""
    """Its role (kubernetes, jwt; cert: empty for any)."""
    role_id_file: Path | None = None
    """approle: file whose first line is the role's id; must not be readable by others."""
    secret_id_file: Path | None = None
    """approle: file whose first line is the secret id; must not be readable by others."""
    jwt_file: Path | None = None
    """kubernetes, jwt: file with the token (of the service account, or a JWT-SVID), read anew for each login; must not
    be readable by others."""
    timeout: Seconds = 2.0
    """How long a statement waits for its tokens, with all attempts; then it is refused."""
    batch_values: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    """Most values in one request."""
    batch_bytes: Annotated[int, Meta(ge=4096, le=32 * 1024 * 1024)] = 1024 * 1024
    """Largest request; Vault's own limit is 32 MiB."""
    breaker_failures: Annotated[int, Meta(ge=1)] = 5
    """After so many attempts in a row without an answer, Vault is not asked for ``breaker_seconds``, and statements
    that need it are refused at once."""
    breaker_seconds: Seconds = 5.0
    """How long; then one request tries."""
    cache_entries: Annotated[int, Meta(ge=0)] = 0
    """Values and tokens kept in memory, encrypted, a worker, so that they need not be asked for again; 0 keeps none."""
    cache_seconds: Seconds = 60.0
    """How long each is kept: not longer than the login lasts under which it was got, so that a Vault that is away, or
    has revoked Grille's token, is missed after this time at the latest."""


class Column(_Section, frozen=True, kw_only=True):
    """One sensitive column."""

    name: str
    """``schema.relation.column``"""
    sensitivity: str = "sensitive"
    """A word for the audit event: pii, pci, ..."""
    transformation: str | None = None
    """Stored tokenized under this transformation; without it the column is stored clear and masked in SQL."""


class Policy(_Section, frozen=True, kw_only=True):
    """Where decisions come from."""

    bundle: Path | None = None
    """An OPA bundle (.tar.gz) built with ``opa build -t wasm``, evaluated in process; with ``bundle_url``, where the
    newest one is kept."""
    bundle_url: str = ""
    """Where the bundle is fetched from (http or https); needs ``verification_key``.  Empty: somebody else writes the
    file."""
    bundle_ca: Path | None = None
    """PEM file: the CA of the bundle server's certificate; without it, the system's CAs."""
    bundle_token_file: Path | None = None
    """File whose first line is the bearer token for the bundle server; must not be readable by others."""
    bundle_poll: Annotated[float, Meta(ge=1)] = 30.0
    """How often the bundle server is asked for a newer bundle."""
    verification_key: Path | None = None
    """PEM file: the public key that bundles must be signed with.  Without it, whoever can write the file makes the
    policy."""
    verification_algorithm: Algorithm = "RS256"
    """The only algorithm that a signature may have."""
    verification_scope: str = ""
    """The scope that a signature must have; empty: none."""
    server_url: str = ""
    """Instead of a bundle: the rule's address in the Data API of an OPA server, like
    ``http://127.0.0.1:8181/v1/data/grille/decision``.  Without TLS on loopback only."""
    server_ca: Path | None = None
    """PEM file: the CA of the OPA server's certificate; without it, the system's CAs."""
    server_token_file: Path | None = None
    """File whose first line is the bearer token for the OPA server; must not be readable by others."""
    entrypoint: str = "grille/decision"
    """The rule of a bundle that is asked, as given to ``opa build -e``."""
    timeout: Seconds = 0.25
    """Longest evaluation of one decision; then it denies."""
    reload_poll: Seconds = 1.0
    """How often the bundle file, or the OPA server's revision, is looked at; SIGHUP looks at once."""
    cache_entries: Annotated[int, Meta(ge=0)] = 100_000
    """Decisions kept in memory a worker; 0 keeps none."""


class Audit(_Section, frozen=True, kw_only=True):
    """Where evidence is kept."""

    directory: Path
    """Directory of the evidence; one chain below it for each worker."""
    signing_key: Path
    """PEM file: Ed25519 private key; must not be readable by others."""
    reads: Literal["process", "power", "strict"] = "power"
    """When a read's event is kept: ``process`` in the page cache, ``power`` after fdatasync, ``strict`` both
    intent and outcome."""
    writes: Literal["process", "power", "strict"] = "strict"
    """The same for writes."""
    block_events: Annotated[int, Meta(ge=1, le=65536)] = 1024
    """Most events in one sealed block."""
    block_milliseconds: Annotated[int, Meta(ge=1)] = 5
    """Longest wait before a block is sealed."""
    segment_bytes: Annotated[int, Meta(ge=4096)] = 64 * 1024 * 1024
    """Size at which the next file of a chain is begun."""


class Quotas(_Section, frozen=True, kw_only=True):
    """Limits of a decision that span statements: what all workers of this node remember, and what follows a limit that
    is reached.  Without a ``store`` nodes know nothing of each other: each allows the whole limit."""

    keys: Annotated[int, Meta(ge=1000, le=1_000_000_000)] = 1_000_000
    """Keys that are remembered for an hour, of all agents together, for ``distinct_keys_per_hour``: 24 bytes each.
    When there is no room, statements that would read more are refused."""
    cut_off: tuple[Literal["statements_per_minute", "concurrent", "distinct_keys_per_hour"], ...] = ()
    """An agent that reaches one of these limits loses its sessions, and gets no other, on this node, for
    ``cut_off_seconds``.  Empty: its statement is refused, and nothing more."""
    cut_off_seconds: Annotated[int, Meta(ge=1, le=31_536_000)] = 900
    """How long such an agent is kept out."""
    store: str = ""
    """A Redis or Valkey server in which all nodes count together, like ``rediss://quotas.example:6379/0``; a user may
    stand before the host, a password may not.  Without TLS (``redis://``) on loopback only, or ``unix:///path``."""
    store_ca: Path | None = None
    """PEM file: the CA of the store's certificate; without it, the system's CAs."""
    store_password_file: Path | None = None
    """File whose first line is the password for the store; must not be readable by others."""
    store_key_file: Path | None = None
    """File with 32 bytes as hexadecimal digits, the same on all nodes: under it the store has hashes instead of SPIFFE
    IDs and keys.  Needed with ``store``."""
    store_timeout: Seconds = 0.25
    """Longest wait for one answer of the store."""
    without_store: Literal["deny", "node"] = "deny"
    """While the store does not answer, statements under such a limit are refused, or each node counts for itself and
    allows the whole limit."""


class Admin(_Section, frozen=True, kw_only=True):
    """Metrics and health."""

    host: str = "127.0.0.1"
    """Address of /metrics, /livez and /readyz.  They need no credentials: keep them where only you can reach them."""
    port: Port = 9187
    """0 lets the system choose; the start log names it."""


class Process(_Section, frozen=True, kw_only=True):
    """The process itself."""

    workers: Annotated[int, Meta(ge=0, le=MOST_WORKERS)] = 0
    """0: one a core."""
    drain_seconds: Seconds = 30.0
    """How long transactions in flight may take to finish after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""


class Config(_Section, frozen=True, kw_only=True, dict=True):
    """The whole file."""

    listener: Listener
    trust_domains: tuple[TrustDomain, ...]
    identities: tuple[Identity, ...]
    policy: Policy
    audit: Audit
    databases: tuple[Database, ...] = ()
    queue_managers: tuple[QueueManager, ...] = ()
    mq: Mq = Mq()
    queues: tuple[Queue, ...] = ()
    layouts: tuple[Layout, ...] = ()
    keys: tuple[Key, ...] = ()
    transformations: tuple[Transformation, ...] = ()
    columns: tuple[Column, ...] = ()
    pkcs11: Pkcs11 = Pkcs11()
    vault: Vault = Vault()
    admin: Admin = Admin()
    quotas: Quotas = Quotas()
    process: Process = Process()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the whole parsed document; part of every cache key."""
        return hashlib.sha256(encode(self)).hexdigest()


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong with a configuration."""

    key: str
    """Full path, like ``databases[0].port``; empty if the file as a whole is meant."""
    value: str
    """The value as the file has it, shortened; empty if it is absent."""
    what: str
    fix: str

    def __str__(self) -> str:
        subject = f"{self.key} = {self.value}" if self.value else self.key
        sentence = f"{self.what}. {self.fix}" if self.fix else self.what
        return f"{subject}: {sentence}" if subject else sentence


class ConfigError(Exception):
    """The configuration cannot be used; `problems` says all that was found, each with its fix."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


def load(path: Path) -> Config:
    """Read, decode and cross-check one file.  Relative paths in it are relative to it.

    Raises `ConfigError`; nothing is opened but the file itself.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        problem = Problem("", "", f"cannot be read ({error.strerror})", "Give the path of a configuration file.")
        raise ConfigError(str(path), [problem]) from None
    except UnicodeDecodeError:
        problem = Problem("", "", "is not UTF-8 text", "Save the file as UTF-8.")
        raise ConfigError(str(path), [problem]) from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem = Problem("", "", f"is not TOML: {error}", "Correct that line; text needs quotes, tables are [[name]].")
        raise ConfigError(str(path), [problem]) from None
    config = decode(document, base=path.absolute().parent, source=str(path))
    problems = tuple(_problems(config))
    if problems:
        raise ConfigError(str(path), problems)
    return config


def decode(document: Any, *, base: Path, source: str) -> Config:
    """Plain data to `Config`, without the checks that look at the machine.  Raises `ConfigError`."""

    def path_of(kind: type, value: object) -> object:
        if kind is not Path:
            raise NotImplementedError(kind)
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError("Expected `path`")
        return base / value

    try:
        return msgspec.convert(document, Config, dec_hook=path_of)
    except msgspec.ValidationError as error:
        raise ConfigError(source, [_explain(str(error), document)]) from None


def encode(config: Config) -> bytes:
    """Canonical JSON of the whole document; `decode` reads it back."""
    return msgspec.json.encode(config, enc_hook=str, order="sorted")


# errors of decoding

_FIXES = {
    "str": "Write text in quotes.",
    "path": "Write a file name in quotes.",
    "int": "Write a whole number without quotes.",
    "float": "Write a number without quotes.",
    "array": "Write a list in square brackets, or tables as [[name]].",
    "object": "Write a table: [name] and lines of key = value.",
    "bool | int | str": "Write text, a whole number, or true or false.",
}


def _explain(message: str, document: object) -> Problem:
    """A sentence of msgspec to a `Problem`."""
    sentence, _, where = message.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    name = re.search(r"field `([^`]*)`", sentence)
    section = _type_at(path)
    if name is not None:
        key = f"{path}.{name[1]}".lstrip(".")
        if "missing" in sentence:
            return Problem(key, "", "is missing", f"Add it: {_meaning(section, name[1])}")
        known = section.__struct_fields__ if section is not None else ()
        close = difflib.get_close_matches(name[1], known, 1)
        fix = f"Did you mean {close[0]}?" if close else f"Remove it, or use one of: {', '.join(known)}."
        return Problem(key, _shown(_value_at(document, key)), "is not a key that Grille knows", fix)
    value = _value_at(document, path)
    if path.endswith("[...]") and isinstance(value, dict):
        # the decoder does not name the key of a table of free keys; attributes is the only one
        wrong = next((key for key, item in value.items() if not isinstance(item, (str, int, bool))), "...")
        path, value = f"{path[:-5]}.{wrong}", value.get(wrong)
    wanted = re.match(r"Expected `([^`]*)`", sentence)
    if sentence.startswith("Invalid enum value"):
        parent, _, last = path.rpartition(".")
        choices = _choices(_type_at(parent), last)
        return Problem(path, _shown(value), "is not one of the choices", f"Use one of: {', '.join(choices)}.")
    what = sentence[0].lower() + sentence[1:].replace("`", "")
    return Problem(path, _shown(value), what, _FIXES.get(wanted[1] if wanted else "", "Correct the value."))


def _steps(path: str) -> Iterator[str | int]:
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
        yield name if name else (int(index) if index.isdigit() else index)


def _value_at(document: Any, path: str) -> object:
    for step in _steps(path):
        try:
            document = document[step]
        except (LookupError, TypeError):
            return document if step == "..." else None
    return document


def _type_at(path: str) -> type[msgspec.Struct] | None:
    """The section of the configuration that a path leads to."""
    kind: msgspec.inspect.Type = msgspec.inspect.type_info(Config)
    for step in _steps(path):
        if isinstance(kind, msgspec.inspect.StructType) and isinstance(step, str):
            found = [field.type for field in kind.fields if field.name == step]
            if not found:
                return None
            kind = found[0]
        elif isinstance(kind, msgspec.inspect.VarTupleType):
            kind = kind.item_type
    return kind.cls if isinstance(kind, msgspec.inspect.StructType) else None


def _choices(section: type[msgspec.Struct] | None, name: str) -> list[str]:
    if section is None:
        return []
    for field in msgspec.structs.fields(section):
        if field.name == name and hasattr(field.type, "__args__"):
            return [str(choice) for choice in field.type.__args__]
    return []


def _meaning(section: type[msgspec.Struct] | None, name: str) -> str:
    from grille.proxy.config_reference import field_meanings

    meaning = field_meanings(section).get(name, "") if section is not None else ""
    return meaning.replace("``", "").partition("\n")[0] or f"{name} = ..."


def _shown(value: object) -> str:
    if value is None:
        return ""
    text = f'"{value}"' if isinstance(value, str) else ("a table" if isinstance(value, dict) else repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


# cross-checks

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SPIFFE_ID = re.compile(r"spiffe://(?P<domain>[a-z0-9._-]{1,255})(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)*(?P<all>/\*)?")
_ROUTINE = re.compile(r"[^.()\s]+\.[^.()\s]+\([^()]*\)")
_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#\s]*)?(\?[^#\s]*)?")
_STORE = re.compile(r"rediss?://([^:@/?#\s]+@)?[^:@/?#\s\[\]]+(:\d+)?(/\d*)?|unix:///[^?#\s]+")
_MQ_NAME = re.compile(r"[A-Za-z0-9./_%]{1,48}")
_CHANNEL = re.compile(r"[A-Za-z0-9./_%]{1,20}")
_FIELD = re.compile(r"[A-Za-z0-9_-]+")
_USER = re.compile(r"[A-Za-z0-9._-]{1,12}")
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


def _problems(config: Config) -> Iterator[Problem]:
    """Everything that is wrong with a decoded configuration."""
    yield from _listener(config)
    yield from _identities(config)
    yield from _databases(config)
    yield from _queue_managers(config)
    yield from _tokens(config)
    yield from _vault(config)
    yield from _policy(config.policy)
    yield from _quota_store(config.quotas)
    yield from _secret("audit.signing_key", config.audit.signing_key)
    if config.audit.directory.exists() and not config.audit.directory.is_dir():
        yield Problem("audit.directory", f'"{config.audit.directory}"', "is not a directory", "Name a directory.")


def _policy(policy: Policy) -> Iterator[Problem]:
    if policy.server_url:
        yield from _policy_server(policy)
        return
    if policy.bundle is None:
        yield Problem("policy.bundle", "", "is missing", "Name a bundle, or give the server_url of an OPA server.")
    elif not policy.bundle_url:
        yield from _file("policy.bundle", policy.bundle)
    if policy.bundle_url:
        if not _URL.fullmatch(policy.bundle_url):
            fix = "Give it like https://bundles.example/grille/bundle.tar.gz, without user and password."
            yield Problem("policy.bundle_url", _shown(policy.bundle_url), "is not an http or https address", fix)
        if policy.verification_key is None:
            fix = "Name the public key that bundles are signed with: opa build --bundle --signing-key ..."
            yield Problem("policy.verification_key", "", "is missing, and bundle_url needs it", fix)
    if policy.verification_key is not None:
        yield from _file("policy.verification_key", policy.verification_key)
    if policy.bundle_ca is not None:
        yield from _file("policy.bundle_ca", policy.bundle_ca)
    if policy.bundle_token_file is not None:
        yield from _secret("policy.bundle_token_file", policy.bundle_token_file)


def _policy_server(policy: Policy) -> Iterator[Problem]:
    for name in ("bundle", "bundle_url", "verification_key"):
        if getattr(policy, name):
            what = "cannot be combined with server_url"
            yield Problem(f"policy.{name}", _shown(str(getattr(policy, name))), what, "Decide for one of them.")
    found = _URL.fullmatch(policy.server_url)
    if not found or "?" in policy.server_url:
        fix = "Give it like http://127.0.0.1:8181/v1/data/grille/decision, without user and password."
        yield Problem("policy.server_url", _shown(policy.server_url), "is not an http or https address", fix)
    elif not policy.server_url.startswith("https:") and not _LOOPBACK.fullmatch(
        urlsplit(policy.server_url).hostname or ""
    ):
        fix = "Use https: whoever can change an answer on its way makes the policy."
        yield Problem("policy.server_url", _shown(policy.server_url), "has no TLS and is not on loopback", fix)
    if policy.server_ca is not None:
        yield from _file("policy.server_ca", policy.server_ca)
    if policy.server_token_file is not None:
        yield from _secret("policy.server_token_file", policy.server_token_file)


def _quota_store(quotas: Quotas) -> Iterator[Problem]:
    if not quotas.store:
        for name in ("store_ca", "store_password_file", "store_key_file"):
            if getattr(quotas, name) is not None:
                yield Problem(f"quotas.{name}", "", "is given without a store", "Give quotas.store too, or remove it.")
        return
    if not _STORE.fullmatch(quotas.store):
        fix = "Give it like rediss://quotas.example:6379/0 or unix:///run/valkey.sock, without a password."
        yield Problem("quotas.store", _shown(quotas.store), "is not the address of a Redis or Valkey server", fix)
    elif quotas.store.startswith("redis:") and not _LOOPBACK.fullmatch(urlsplit(quotas.store).hostname or ""):
        fix = "Use rediss: whoever can change an answer on its way decides about limits."
        yield Problem("quotas.store", _shown(quotas.store), "has no TLS and is not on loopback", fix)
    if quotas.store_key_file is None:
        fix = "Make one for all nodes: openssl rand -hex 32"
        yield Problem("quotas.store_key_file", "", "is missing, and store needs it", fix)
    else:
        yield from _secret("quotas.store_key_file", quotas.store_key_file)
    if quotas.store_ca is not None:
        yield from _file("quotas.store_ca", quotas.store_ca)
    if quotas.store_password_file is not None:
        yield from _secret("quotas.store_password_file", quotas.store_password_file)


def _listener(config: Config) -> Iterator[Problem]:
    yield from _file("listener.certificate", config.listener.certificate)
    yield from _secret("listener.key", config.listener.key)
    if config.listener.revocations is not None:
        yield from _file("listener.revocations", config.listener.revocations)


def _identities(config: Config) -> Iterator[Problem]:
    domains = [domain.name for domain in config.trust_domains]
    for section, entries in (("trust_domains", domains), ("identities", config.identities)):
        if not entries:
            yield Problem(section, "[]", "is empty, so nobody could connect", f"Add one [[{section}]] entry.")
    yield from _duplicates("trust_domains", "name", domains)
    for number, domain in enumerate(config.trust_domains):
        if not _TRUST_DOMAIN.fullmatch(domain.name):
            fix = 'Use lower-case letters, digits, ".", "_" and "-", without spiffe://, like bank.example.'
            yield Problem(f"trust_domains[{number}].name", _shown(domain.name), "is not a SPIFFE trust domain", fix)
        yield from _file(f"trust_domains[{number}].bundle", domain.bundle)
    yield from _duplicates("identities", "spiffe_id", [identity.spiffe_id for identity in config.identities])
    for number, identity in enumerate(config.identities):
        key = f"identities[{number}].spiffe_id"
        match = _SPIFFE_ID.fullmatch(identity.spiffe_id)
        if match is None or identity.spiffe_id == f"spiffe://{match['domain']}":
            fix = 'Write spiffe://TRUST-DOMAIN/PATH, exact or with "/*" at the end.'
            yield Problem(key, _shown(identity.spiffe_id), "is not a SPIFFE ID", fix)
        elif match["domain"] not in domains:
            yield Problem(
                key, _shown(identity.spiffe_id), f"is in no configured trust domain ({_list(domains)})",
                f'Add a [[trust_domains]] entry named "{match["domain"]}", or correct the id.',
            )  # fmt: skip
        places = (
            ("database", "databases", [database.name for database in config.databases]),
            ("queue_manager", "queue_managers", [manager.name for manager in config.queue_managers]),
        )
        for name, section, known in places:
            if getattr(identity, name):
                yield from _reference(f"identities[{number}].{name}", getattr(identity, name), section, known)
        if not identity.database and not identity.queue_manager:
            fix = "Name a [[databases]] entry, or a [[queue_managers]] entry as queue_manager, or both."
            yield Problem(f"identities[{number}].database", "", "is missing", fix)
        user = identity.queue_manager_user
        if identity.queue_manager and not _USER.fullmatch(user):
            key = f"identities[{number}].queue_manager_user"
            fix = "Write the user id that the queue manager's authority records know: 1 to 12 letters, digits, . _ -"
            yield Problem(key, _shown(user), "is not a user id" if user else "is missing", fix)


def _queue_managers(config: Config) -> Iterator[Problem]:
    names = [manager.name for manager in config.queue_managers]
    yield from _duplicates("queue_managers", "name", names)
    if not _CHANNEL.fullmatch(config.mq.channel):
        fix = "Use at most 20 letters, digits and . / _ %"
        yield Problem("mq.channel", _shown(config.mq.channel), "is not the name of a channel", fix)
    for number, manager in enumerate(config.queue_managers):
        prefix = f"queue_managers[{number}]"
        if not manager.host:
            yield Problem(f"{prefix}.host", '""', "is empty", "Give it a value.")
        if not _MQ_NAME.fullmatch(manager.name):
            fix = "Use at most 48 letters, digits and . / _ %"
            yield Problem(f"{prefix}.name", _shown(manager.name), "is not the name of a queue manager", fix)
        if not _CHANNEL.fullmatch(manager.channel):
            fix = "Use at most 20 letters, digits and . / _ %"
            yield Problem(f"{prefix}.channel", _shown(manager.channel), "is not the name of a channel", fix)
        if manager.tls == "off" and not _LOOPBACK.fullmatch(manager.host):
            fix = 'Set tls = "verify-full" and ca, or use loopback.'
            yield Problem(f"{prefix}.tls", '"off"', f"sends data in clear to {manager.host}", fix)
        yield from _upstream_files(prefix, manager)
    yield from _queues(config, names)


def _queues(config: Config, managers: list[str]) -> Iterator[Problem]:
    layouts = [layout.name for layout in config.layouts]
    transformations = [transformation.name for transformation in config.transformations]
    yield from _duplicates("queues", "name", [queue.name for queue in config.queues])
    yield from _duplicates("layouts", "name", layouts)
    for number, queue in enumerate(config.queues):
        manager = next((name for name in managers if queue.name.startswith(f"{name}/")), None)
        if manager is None or not _MQ_NAME.fullmatch(queue.name.removeprefix(f"{manager}/")):
            fix = f"Write one of {_list(managers)}, a slash, and the name of a queue."
            yield Problem(f"queues[{number}].name", _shown(queue.name), "does not name a queue", fix)
        if not _MQ_NAME.fullmatch(queue.quarantine) or queue.name == f"{manager}/{queue.quarantine}":
            fix = "Name a local queue of the same queue manager, another one."
            yield Problem(f"queues[{number}].quarantine", _shown(queue.quarantine), "cannot be the quarantine", fix)
        yield from _reference(f"queues[{number}].layout", queue.layout, "layouts", layouts)
    for number, layout in enumerate(config.layouts):
        prefix = f"layouts[{number}]"
        if (layout.copybook is None) == (layout.format == "copybook"):
            what = "is missing" if layout.copybook is None else "is for another format"
            yield Problem(f"{prefix}.copybook", "", what, 'It goes with format = "copybook".')
        elif layout.copybook is not None:
            yield from _file(f"{prefix}.copybook", layout.copybook)
        yield from _duplicates(f"{prefix}.fields", "name", [field.name for field in layout.fields])
        for place, field in enumerate(layout.fields):
            if not _FIELD.fullmatch(field.name):
                fix = "Use letters, digits, _ and -"
                yield Problem(f"{prefix}.fields[{place}].name", _shown(field.name), "is not a name", fix)
            if field.transformation is not None:
                key = f"{prefix}.fields[{place}].transformation"
                yield from _reference(key, field.transformation, "transformations", transformations)


def _databases(config: Config) -> Iterator[Problem]:
    if not config.databases and not config.queue_managers:
        yield Problem("databases", "[]", "is empty", "Add one [[databases]] or [[queue_managers]] entry.")
    yield from _duplicates("databases", "name", [database.name for database in config.databases])
    for number, database in enumerate(config.databases):
        prefix = f"databases[{number}]"
        socket = database.host.startswith("/")
        for name in ("name", "host", "database", "role"):
            if not getattr(database, name):
                yield Problem(f"{prefix}.{name}", '""', "is empty", "Give it a value.")
        if socket and database.tls != "off":
            fix = 'Set tls = "off": PostgreSQL has no TLS on unix sockets; the directory\'s permissions guard it.'
            yield Problem(f"{prefix}.tls", _shown(database.tls), "cannot be had on a unix socket", fix)
        if database.tls == "off" and not socket and not _LOOPBACK.fullmatch(database.host):
            fix = 'Set tls = "verify-full" and ca, or use a unix socket or loopback.'
            what = f"sends data in clear to {database.host}"
            yield Problem(f"{prefix}.tls", '"off"', what, fix)
        if database.password_file is not None:
            yield from _secret(f"{prefix}.password_file", database.password_file)
        yield from _upstream_files(prefix, database)
        for position, routine in enumerate(database.functions):
            if not _ROUTINE.fullmatch(routine):
                fix = "Write schema.name(type,type), with () for none."
                yield Problem(f"{prefix}.functions[{position}]", _shown(routine), "does not name one routine", fix)


def _upstream_files(prefix: str, upstream: Database | QueueManager) -> Iterator[Problem]:
    for name in ("ca", "client_certificate"):
        if getattr(upstream, name) is not None:
            yield from _file(f"{prefix}.{name}", getattr(upstream, name))
    if upstream.client_key is not None:
        yield from _secret(f"{prefix}.client_key", upstream.client_key)
    if (upstream.client_certificate is None) != (upstream.client_key is None):
        absent = "client_key" if upstream.client_key is None else "client_certificate"
        yield Problem(f"{prefix}.{absent}", "", "is missing", "client_certificate and client_key go together.")


def _tokens(config: Config) -> Iterator[Problem]:
    keys = [key.name for key in config.keys]
    names = [transformation.name for transformation in config.transformations]
    yield from _duplicates("keys", "name", keys)
    yield from _duplicates("transformations", "name", names)
    yield from _duplicates("columns", "name", [column.name for column in config.columns])
    for number, key in enumerate(config.keys):
        if key.pkcs11 and key.environment:
            fix = "Decide for one of them."
            yield Problem(
                f"keys[{number}].environment", "", "is given twice: as an environment variable and by pkcs11", fix
            )
        elif not key.pkcs11 and (key.file is None) != bool(key.environment):
            fix = "Name the file of the key, or the environment variable that holds it."
            what = "is missing" if key.file is None else "is given twice: as a file and as an environment variable"
            yield Problem(f"keys[{number}].file", "", what, fix)
        elif key.file is not None:
            yield from _secret(f"keys[{number}].file", key.file)
        elif key.environment and key.environment not in os.environ:
            fix = "Set it for Grille's process, or name a file instead."
            yield Problem(f"keys[{number}].environment", _shown(key.environment), "is not set", fix)
    if any(key.pkcs11 for key in config.keys):
        yield from _token(config.pkcs11)
    for number, transformation in enumerate(config.transformations):
        if transformation.provider == "embedded":
            yield from _reference(f"transformations[{number}].key", transformation.key, "keys", keys)
        yield from _old_algorithm(f"transformations[{number}]", transformation)
        try:
            re.compile(transformation.template)
        except re.error as error:
            key_name = f"transformations[{number}].template"
            fix = "Correct the expression; in TOML, single quotes keep backslashes."
            yield Problem(key_name, _shown(transformation.template), f"is not a regular expression ({error})", fix)
    for number, column in enumerate(config.columns):
        parts = column.name.split(".")
        if len(parts) != 3 or not all(parts):
            fix = "Write schema.relation.column."
            yield Problem(f"columns[{number}].name", _shown(column.name), "does not name one column", fix)
        if column.transformation is not None:
            yield from _reference(f"columns[{number}].transformation", column.transformation, "transformations", names)


def _token(token: Pkcs11) -> Iterator[Problem]:
    for name in ("module", "token", "pin_file"):
        if not getattr(token, name):
            yield Problem(f"pkcs11.{name}", "", "is missing, and a key names pkcs11", "Give it in [pkcs11].")
    if token.module is not None:
        yield from _secret("pkcs11.module", token.module, public=True)
    if token.pin_file is not None:
        yield from _secret("pkcs11.pin_file", token.pin_file)


def _old_algorithm(prefix: str, transformation: Transformation) -> Iterator[Problem]:
    if transformation.fpe_algorithm == "ff1":
        if transformation.tweak:
            fix = 'Remove it, or say fpe_algorithm = "ff3-1"; the tweak of ff1 comes from token_domain and key version.'
            yield Problem(f"{prefix}.tweak", _shown(transformation.tweak), "is for ff3-1 only", fix)
        return
    if transformation.kind != "fpe":
        fix = 'Remove it, or say kind = "fpe".'
        yield Problem(f"{prefix}.fpe_algorithm", '"ff3-1"', "is an algorithm of fpe", fix)
    if transformation.provider != "embedded":
        fix = 'Remove it, or provider = "vault": Vault makes tokens with FF1.'
        yield Problem(f"{prefix}.fpe_algorithm", '"ff3-1"', 'cannot be combined with provider = "vault"', fix)
    if len(supplied_tweak(transformation)) != TWEAK_BYTES:
        fix = f"Give the {TWEAK_BYTES} bytes in base64, as Vault was given them."
        yield Problem(f"{prefix}.tweak", _shown(transformation.tweak), f"is not {TWEAK_BYTES} bytes in base64", fix)


def supplied_tweak(transformation: Transformation) -> bytes:
    """The bytes of ``tweak``; none if it is not base64."""
    try:
        return base64.b64decode(transformation.tweak, validate=True)
    except ValueError:
        return b""


_VAULT = re.compile(r"https?://[^/?#@\s]+/?")
_VAULT_PATH = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_VAULT_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_LOGIN_FILES = {
    "approle": ("role_id_file", "secret_id_file"),
    "kubernetes": ("jwt_file",),
    "jwt": ("jwt_file",),
    "cert": ("client_certificate", "client_key"),
}


def _vault(config: Config) -> Iterator[Problem]:
    """The [vault] section, and what is said of it elsewhere."""
    vault = config.vault
    domains: dict[str, str] = {}
    for number, transformation in enumerate(config.transformations):
        key = f"transformations[{number}]"
        name, domain = transformation.name, transformation.token_domain
        if transformation.provider == "embedded":
            for field in ("version", "check"):
                if getattr(transformation, field) not in (1, ""):
                    what = 'is for provider = "vault" only'
                    yield Problem(f"{key}.{field}", _shown(getattr(transformation, field)), what, "Remove it.")
            if domains.setdefault(domain, "") != "":
                yield from _shared_domain(key, domain, domains[domain])
            continue
        if not vault.address:
            yield Problem("vault.address", "", f'is missing, and the transformation "{name}" needs it',
                          "Give it like https://vault.example:8200.")  # fmt: skip
        if transformation.kind != "fpe":
            fix = 'Use kind = "fpe", or provider = "embedded" for free text.'
            yield Problem(f"{key}.kind", _shown(transformation.kind), "is not made by Vault", fix)
        if transformation.key:
            fix = 'Remove it: the key is in Vault. Or remove provider = "vault".'
            yield Problem(f"{key}.key", _shown(transformation.key), 'cannot be combined with provider = "vault"', fix)
        if not _VAULT_NAME.fullmatch(name):
            fix = 'Use letters, digits, "_", "-" and "."; it is part of an address.'
            yield Problem(f"{key}.name", _shown(name), "cannot be a transformation's name in Vault", fix)
        if domain in domains:
            yield from _shared_domain(key, domain, domains[domain])
        domains[domain] = name
    if vault.address:
        yield from _vault_section(vault)


def _shared_domain(key: str, domain: str, other: str) -> Iterator[Problem]:
    what = f'is also that of "{other}", which has a key of its own in Vault' if other else "is also made by Grille"
    fix = "Let all columns of one token domain name the same transformation."
    yield Problem(f"{key}.token_domain", _shown(domain), what, fix)


def _vault_section(vault: Vault) -> Iterator[Problem]:
    if not _VAULT.fullmatch(vault.address):
        fix = "Give it like https://vault.example:8200, without a path, user or password."
        yield Problem("vault.address", _shown(vault.address), "is not an http or https address", fix)
    elif not vault.address.startswith("https:") and not _LOOPBACK.fullmatch(urlsplit(vault.address).hostname or ""):
        fix = "Use https: values and Grille's token go there."
        yield Problem("vault.address", _shown(vault.address), "has no TLS and is not on loopback", fix)
    for name in ("namespace", "mount", "role", "auth_mount"):
        value = getattr(vault, name)
        form = _VAULT_NAME if name == "role" else _VAULT_PATH
        if not form.fullmatch(value) and (value or name in ("mount", "role")):
            fix = 'Use letters, digits, "_", "-" and ".", without "/" at the ends.'
            yield Problem(f"vault.{name}", _shown(value), "cannot be a part of an address", fix)
    if vault.auth in ("kubernetes", "jwt") and not vault.auth_role:
        yield Problem("vault.auth_role", "", f'is missing, and auth = "{vault.auth}" needs it', "Name its role.")
    for name in _LOGIN_FILES[vault.auth]:
        if getattr(vault, name) is None:
            yield Problem(f"vault.{name}", "", f'is missing, and auth = "{vault.auth}" needs it', "Name the file.")
    if (vault.client_certificate is None) != (vault.client_key is None) and vault.auth != "cert":
        absent = "client_key" if vault.client_key is None else "client_certificate"
        yield Problem(f"vault.{absent}", "", "is missing", "client_certificate and client_key go together.")
    for name in ("ca", "client_certificate"):
        if getattr(vault, name) is not None:
            yield from _file(f"vault.{name}", getattr(vault, name))
    for name in ("client_key", "role_id_file", "secret_id_file", "jwt_file"):
        if getattr(vault, name) is not None:
            yield from _secret(f"vault.{name}", getattr(vault, name))


def _reference(key: str, value: str, section: str, known: list[str]) -> Iterator[Problem]:
    if value not in known:
        close = difflib.get_close_matches(value, known, 1)
        fix = f'Did you mean "{close[0]}"?' if close else f'Add a [[{section}]] entry with name = "{value}".'
        yield Problem(key, _shown(value), f"names no entry of {section} ({_list(known)})", fix)


def _duplicates(section: str, field: str, names: list[str]) -> Iterator[Problem]:
    for number, name in enumerate(names):
        first = names.index(name)
        if first != number:
            what = f"is already the {field} of {section}[{first}]"
            yield Problem(f"{section}[{number}].{field}", _shown(name), what, "Remove or rename one of them.")


def _file(key: str, path: Path) -> Iterator[Problem]:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        yield Problem(key, f'"{path}"', what, "Create it, or correct the path (relative to the configuration).")
    elif not os.access(path, os.R_OK):
        yield Problem(key, f'"{path}"', "cannot be read by this user", "Change its owner or its mode.")


def _secret(key: str, path: Path, *, public: bool = False) -> Iterator[Problem]:
    """A file that nobody else may read or exchange; its group may read it if root owns it (mounted secrets)."""
    found = list(_file(key, path))
    yield from found
    if found:
        return
    try:
        secret_file.check(path, public=public)
    except Exposed as exposed:
        yield Problem(key, f'"{path}"', exposed.what, exposed.fix)
    except OSError as error:
        yield Problem(key, f'"{path}"', f"cannot be read ({error.strerror})", "Change its owner or its mode.")


def _list(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "there is none"
