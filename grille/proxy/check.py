"""``grille check``: everything that a configuration points at, tried one by one."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import tempfile
from collections.abc import Sequence
from typing import Final, TextIO

from grille.controls import Refusal
from grille.policies.bundle import BundleReadError, read
from grille.policies.wasm import BundleError, WasmEngine
from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.definitions import definitions_of
from grille.protocols.postgres.purity import normal_signature
from grille.proxy import keys
from grille.proxy.catalog import READ_FAILURES, connect, read_catalog
from grille.proxy.config import Config, ConfigError, Database
from grille.proxy.mq_check import check_queue_manager
from grille.proxy.providers import vault_transformations
from grille.proxy.quota_store import connect as connect_store
from grille.proxy.report import Report
from grille.proxy.revocation import RevocationError, Revocations
from grille.proxy.tls import CertificateError, Certificates
from grille.proxy.upstream import UpstreamConnection
from grille.tokenization.provider import TokenizationError, TokenRequest

TEXT_LIKE: Final = "S"
"""pg_type.typcategory of text, varchar, char(n), name and domains over them."""


_SOON: Final = dt.timedelta(minutes=10)
_POWER: Final = """
SELECT rolsuper AS "superuser", rolbypassrls AS "BYPASSRLS", rolreplication AS "REPLICATION",
       rolcreaterole AS "CREATEROLE" FROM pg_catalog.pg_roles WHERE rolname = current_user
"""
_ENCRYPTION: Final = """
SELECT version || ' ' || cipher FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid() AND ssl
"""


async def check(config: Config, out: TextIO) -> int:
    """Print ``OK`` or ``FAIL`` for each item; 0 if none failed, else 1."""
    report = Report(out)
    report.ok("configuration", f"{len(config.identities)} identities, fingerprint {config.fingerprint[:16]}")
    _keys(config, report)
    await _vault(config, report)
    _certificate(config, report)
    _revocations(config, report)
    _audit(config, report)
    await _policy(config, report)
    await _quota_store(config, report)
    catalogs = [await _database(database, report) for database in config.databases]
    for manager in config.queue_managers:
        await check_queue_manager(config, manager, report)
    _columns(config, [catalog for catalog in catalogs if catalog is not None], len(catalogs), report)
    return report.close()


def _keys(config: Config, report: Report) -> None:
    for item, load in (("token keys", keys.token_provider), ("audit signing key", keys.signing_key)):
        try:
            load(config)
        except ConfigError as error:
            for problem in error.problems:
                report.fail(item, f"{problem.key} {problem.what}", problem.fix)
        else:
            report.ok(item)


async def _vault(config: Config, report: Report) -> None:
    """Log in, and have each transformation's example encoded and decoded, as statements have their values."""
    try:
        transformations = vault_transformations(config)
    except ConfigError as error:
        for problem in error.problems:
            report.fail("vault", f"{problem.key} {problem.what}", problem.fix)
        return
    if not transformations:
        return
    from grille.proxy.vault import VaultTransform  # its HTTP client takes a while to import

    vault = VaultTransform(config.vault, transformations)
    login = asyncio.create_task(vault.watch())
    try:
        for name, transformation in vault.transformations.items():
            item = f"vault transformation {name}"
            try:
                (token,) = await vault.encode([TokenRequest(name, transformation.example)])
                (value,) = await vault.decode([TokenRequest(name, str(token))])
            except TokenizationError as error:
                report.fail(item, str(error), "See that Vault is there and its engine as grille tokens setup shows.")
                continue
            if value != transformation.example:
                report.fail(item, "does not decode what it encodes", "See grille tokens setup.")
            elif not transformation.check:
                report.warn(item, f'works, but another key would not be noticed: give it check = "{token}"')
            else:
                report.ok(item, f"{config.vault.address}, key as in its check")
    finally:
        login.cancel()
        await asyncio.gather(login, return_exceptions=True)
        await vault.close()


async def _policy(config: Config, report: Report) -> None:
    path = config.policy.bundle
    if path is None:
        await _policy_server(config, report)
        return
    if config.policy.bundle_url:
        await _bundle_server(config, report)
        if not path.exists():
            return
    item = f"policy bundle {path}"
    try:
        bundle = read(path, keys.bundle_verification(config.policy))
        engine = WasmEngine(bundle, config.policy.entrypoint, timeout=config.policy.timeout)
    except ConfigError as error:
        for problem in error.problems:
            report.fail(item, f"{problem.key} {problem.what}", problem.fix)
    except (BundleReadError, BundleError) as error:
        fix = (
            f"Build it anew: opa build -t wasm -e {config.policy.entrypoint} --revision NAME -o bundle.tar.gz DIRECTORY"
        )
        report.fail(item, str(error), fix)
    else:
        report.ok(item, f"revision {engine.revision}, entrypoint {config.policy.entrypoint}")


async def _policy_server(config: Config, report: Report) -> None:
    from grille.proxy.policy_server import PolicyServer  # its HTTP client takes a while to import

    item = f"policy server {config.policy.server_url}"
    server = PolicyServer(config.policy)
    await server.look()
    await server.close()
    if server.problem:
        report.fail(item, server.problem, "See that it answers, and that server_url ends in the rule that decides.")
    else:
        report.ok(item, f"revision {server.revision}")


async def _bundle_server(config: Config, report: Report) -> None:
    from grille.proxy.bundle_fetch import BundleFetch, FetchError  # its HTTP client takes a while to import

    item = f"bundle server {config.policy.bundle_url.partition('?')[0]}"
    try:
        raw, _tag = await BundleFetch(config.policy).get()
    except FetchError as error:
        report.fail(item, str(error), "See that it answers, and that the bundle there is signed.")
    except ConfigError as error:
        for problem in error.problems:
            report.fail(item, f"{problem.key} {problem.what}", problem.fix)
    else:
        report.ok(item, f"a bundle of {len(raw)} bytes, signed with {config.policy.verification_algorithm}")


async def _quota_store(config: Config, report: Report) -> None:
    if not config.quotas.store:
        return
    from redis.exceptions import RedisError

    item = f"quota store {config.quotas.store}"
    try:
        keys.store_key(config)
        client = connect_store(config.quotas)
    except ConfigError as error:
        for problem in error.problems:
            report.fail(item, f"{problem.key} {problem.what}", problem.fix)
        return
    try:
        version = (await client.info("server"))["redis_version"]
        await client.eval("return redis.call('TIME')", 0)
    except (RedisError, OSError, TimeoutError) as error:
        report.fail(item, str(error), "See that it answers, and that its user may run scripts (EVAL, EVALSHA).")
    else:
        report.ok(item, f"version {version}")
    finally:
        await client.aclose()


def _certificate(config: Config, report: Report) -> None:
    """The listener's certificate and key, and the trust bundles, as the listener would load them."""
    item = f"certificate {config.listener.certificate}"
    try:
        certificates = Certificates(config.listener, config.trust_domains)
    except CertificateError as error:
        report.fail("certificates", str(error), "")
        return
    left = certificates.not_after - dt.datetime.now(dt.UTC)
    note = f"valid until {certificates.not_after:%Y-%m-%d %H:%M} UTC"
    if left < _SOON:
        report.warn(item, f"{note}: renew it soon")
    else:
        report.ok(item, note)
    for name, bundle in certificates.current.bundles.items():
        if bundle:
            report.ok(f"trust domain {name}", f"{len(bundle)} CA certificate{'s' if len(bundle) > 1 else ''}")
        else:
            report.warn(f"trust domain {name}", "its bundle is empty, so it distrusts everybody")


def _revocations(config: Config, report: Report) -> None:
    path = config.listener.revocations
    if path is None:
        return
    try:
        revocations = Revocations(path)
    except RevocationError as error:
        report.fail("revocations", str(error), "")
    else:
        report.ok(f"revocations {path}", f"{len(revocations)} entries")


def _audit(config: Config, report: Report) -> None:
    """A file is written to the audit directory, or to the nearest parent that exists, and removed."""
    directory = config.audit.directory
    place = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".grille-check-") as file:
            file.write(b"grille")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fix = f"Let this user write there (mkdir -p {directory}; chown ...), or change audit.directory."
        report.fail(f"audit directory {directory}", f"cannot be written ({error.strerror})", fix)
    else:
        report.ok(f"audit directory {directory}", "" if place == directory else "will be made")


async def _database(database: Database, report: Report) -> Catalog | None:
    """Connect as statements will be, then read the catalogue.  None if that fails."""
    item = f"database {database.name}"
    try:
        connection = await UpstreamConnection.open(database)
    except Refusal as refusal:
        reason = " ".join((refusal.detail_for_audit or refusal.message).split())
        report.fail(item, reason, _connection_fix(database, reason))
        return None
    version = connection.parameters.get("server_version", "?")
    connection.close()
    await connection.wait_closed()
    report.ok(
        item, f"PostgreSQL {version} at {database.host}:{database.port}, role {database.role}, {_transport(database)}"
    )
    try:
        reader = await connect(database)
    except READ_FAILURES as error:
        report.fail(f"{item} catalogue", _reason(error), _connection_fix(database, _reason(error)))
        return None
    try:
        catalog = await read_catalog(reader)
        power = await reader.fetchrow(_POWER)
        encryption = await reader.fetchval(_ENCRYPTION)
    except READ_FAILURES as error:
        report.fail(f"{item} catalogue", _reason(error), f"Let {database.role} read pg_catalog, as every role may.")
        return None
    finally:
        await reader.close()
    over = f", over {encryption}" if encryption else ""
    report.ok(f"{item} catalogue", f"{len(catalog.relations)} relations, epoch {catalog.epoch[:16]}{over}")
    if database.passthrough:
        report.warn(
            f"{item} passthrough",
            f"THE POLICY MAY OPEN IT UNFILTERED: a passthrough session is role {database.role} itself, without row "
            "filters, masks, tokens or limits. Set passthrough = false unless a tool needs it",
        )
    powers = [name for name, has in (power or {}).items() if has]
    if powers:
        report.warn(
            f"{item} role {database.role}", f"is {' and '.join(powers)}, and needs nothing of it: use a plain role"
        )
    _functions(database, catalog, report)
    return catalog


def _functions(database: Database, catalog: Catalog, report: Report) -> None:
    known = {f"{function.schema}.{function.name}" for function in catalog.functions.values()}
    found = dict(definitions_of(catalog))
    for routine in database.functions:
        digest = found.get(normal_signature(routine))
        if routine.partition("(")[0] not in known:
            report.fail(
                f"function {routine}", f"is not in {database.name}", "Correct databases.functions, or create it."
            )
        elif digest is not None and routine not in database.definitions:
            report.ok(f"function {routine}", f"definition {digest}")
    for name in database.definitions:
        digest = found.get(normal_signature(name) or name)
        if digest is None:
            report.fail(f"definition {name}", f"is not in {database.name}", "Correct databases.definitions.")
        elif digest != database.definitions[name].lower():
            report.fail(
                f"definition {name}",
                f"is {digest}, which is not the approved one: nobody may use it",
                "Look at what it does now; then write this value in databases.definitions.",
            )
        else:
            report.ok(f"definition {name}", "as approved")


def _columns(config: Config, catalogs: Sequence[Catalog], databases: int, report: Report) -> None:
    """Each sensitive column exists, and holds text if it is stored tokenized."""
    for column in config.columns if catalogs else ():
        schema, name, attribute = column.name.split(".")
        item = f"column {column.name}"
        found = [
            (catalog, known)
            for catalog in catalogs
            if (relation := catalog.relations.get((schema, name))) is not None
            and (known := relation.column(attribute)) is not None
        ]
        if not found and len(catalogs) < databases:
            report.fail(item, "was not found", "A database could not be read; see above.")
        elif not found:
            report.fail(item, "does not exist", "Correct columns.name (schema.relation.column), or create the column.")
        for catalog, known in found:
            kind = catalog.types[known.type_oid]
            if column.transformation is not None and kind.category != TEXT_LIKE:
                what = f"is {kind.name} in {catalog.database}, which cannot hold a token"
                report.fail(item, what, "Store it as text or varchar, or remove its transformation.")
            else:
                stored = f"tokenized by {column.transformation}" if column.transformation else "clear, masked in SQL"
                report.ok(item, f"{kind.name}, stored {stored}")


def _transport(database: Database) -> str:
    if database.host.startswith("/"):
        return "unix socket"
    if database.tls == "off":
        return "no TLS (loopback)"
    return "TLS verify-full" + (" with client certificate" if database.client_certificate is not None else "")


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _connection_fix(database: Database, reason: str) -> str:
    """What usually helps against this failure."""
    for signs, fix in (
        (("28P01", "ScramError", "InvalidPassword"), "Correct password_file, or set the role's password anew."),
        (("28000",), f"Let pg_hba.conf accept role {database.role} from here, by scram-sha-256 or cert."),
        (("3D000",), f"Create database {database.database}, or correct databases.database."),
        (
            ("CERTIFICATE_VERIFY_FAILED",),
            "Let ca be the CA of the server's certificate, and host a name that is in it.",
        ),
        (("does not offer TLS",), "Set ssl = on in postgresql.conf, or connect over a unix socket with tls off."),
        (("password_file",), "Add password_file to this [[databases]] entry."),
        (
            ("refused", "FileNotFound", "No such file", "not ready within", "gaierror"),
            "Start PostgreSQL, or correct host and port.",
        ),
    ):
        if any(sign in reason for sign in signs):
            return fix
    return "The server's log says more."
