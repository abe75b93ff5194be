"""Reads the catalogue snapshot of one upstream database, and notices when it changes.

The snapshot is read over asyncpg in one REPEATABLE READ transaction.  Changes are noticed by polling one cheap query
over the system catalogues, and on demand when the server's errors say that a plan is stale.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from typing import Any, Final

import asyncpg
import msgspec
from asyncpg.pgproto import pgproto

from grille.protocols.postgres.catalog import Cast, Catalog, Column, Function, Operator, Relation, Type, UniqueKey
from grille.proxy.config import Database

# A sum over (row, inserting transaction) of each catalogue: any committed insert, update or delete changes it, also one
# that commits after a later transaction did.  Temporary objects of other sessions are left out: they come and go.
_FINGERPRINT = """
WITH temporary AS (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_'),
     lasting AS (SELECT oid, xmin FROM pg_catalog.pg_class WHERE relpersistence <> 't')
SELECT pg_catalog.concat_ws(' ',
    (SELECT sum(hashint8extended(xmin::text::bigint, oid::bigint)) FROM lasting),
    (SELECT sum(hashint8extended(a.xmin::text::bigint, a.attrelid::bigint * 65536 + a.attnum))
     FROM pg_catalog.pg_attribute a JOIN lasting l ON l.oid = a.attrelid WHERE a.attnum > 0),
    (SELECT sum(hashint8extended(i.xmin::text::bigint, i.indexrelid::bigint))
     FROM pg_catalog.pg_index i JOIN lasting l ON l.oid = i.indrelid),
    (SELECT sum(hashint8extended(xmin::text::bigint, inhrelid::bigint * 65536 + inhseqno)) FROM pg_catalog.pg_inherits),
    (SELECT sum(hashint8extended(xmin::text::bigint, oid::bigint)) FROM pg_catalog.pg_trigger WHERE NOT tgisinternal),
    (SELECT sum(hashint8extended(xmin::text::bigint, oid::bigint)) FROM pg_catalog.pg_rewrite),
    (SELECT sum(hashint8extended(xmin::text::bigint, oid::bigint)) FROM pg_catalog.pg_proc),
    (SELECT sum(hashint8extended(xmin::text::bigint, oid::bigint)) FROM pg_catalog.pg_type
     WHERE typnamespace NOT IN (SELECT oid FROM temporary)),
    (SELECT sum(hashint8extended(xmin::text::bigint, rngtypid::bigint)) FROM pg_catalog.pg_range),
    (SELECT sum(hashint8extended(xmin::text::bigint, oid::bigint)) FROM pg_catalog.pg_constraint WHERE contypid <> 0),
    (SELECT sum(hashint8extended(xmin::text::bigint, oid::bigint)) FROM pg_catalog.pg_operator),
    (SELECT sum(hashint8extended(xmin::text::bigint, oid::bigint)) FROM pg_catalog.pg_cast),
    (SELECT sum(hashint8extended(xmin::text::bigint, oid::bigint)) FROM pg_catalog.pg_namespace
     WHERE oid NOT IN (SELECT oid FROM temporary)))
"""

_RELATIONS = """
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.reltype,
       ARRAY(SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid ORDER BY i.inhseqno)::bigint[],
       EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
       EXISTS (SELECT 1 FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'),
       CASE WHEN c.relkind IN ('v', 'm') THEN encode(sha256(convert_to(pg_get_viewdef(c.oid), 'UTF8')), 'hex')
            ELSE '' END,
       c.relrowsecurity
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_toast' AND n.nspname <> 'information_schema'
  AND c.relpersistence <> 't'
ORDER BY c.oid
"""
_COLUMNS = """
SELECT a.attrelid, a.attname, a.attnum, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef, a.attgenerated::text,
       a.attcollation,
       ARRAY(SELECT concat_ws('.', n.nspname, r.relname, b.attname)
             FROM (SELECT d.refobjid AS relation, d.refobjsubid AS number
                   FROM pg_catalog.pg_attrdef e JOIN pg_catalog.pg_depend d
                        ON (d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = e.oid)
                        OR (d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = e.adrelid
                            AND d.objsubid = e.adnum)
                   WHERE a.attgenerated <> '' AND e.adrelid = a.attrelid AND e.adnum = a.attnum
                     AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjsubid NOT IN (0, a.attnum)
                   UNION
                   SELECT k.confrelid, p.confkey
                   FROM pg_catalog.pg_constraint k, unnest(k.conkey, k.confkey) p(conkey, confkey)
                   WHERE k.contype = 'f' AND k.conrelid = a.attrelid AND p.conkey = a.attnum) s
                  JOIN pg_catalog.pg_attribute b ON b.attrelid = s.relation AND b.attnum = s.number
                  JOIN pg_catalog.pg_class r ON r.oid = s.relation
                  JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
             ORDER BY 1)
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
ORDER BY a.attrelid, a.attnum
"""
_KEYS = """
SELECT i.indrelid, c.relname, key.columns, key.operands
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
     CROSS JOIN LATERAL (
         SELECT array_agg(a.attname::text ORDER BY k.position) AS columns,
                array_agg(o.opcintype::bigint ORDER BY k.position) AS operands,
                bool_and(o.opcdefault AND o.oid < 16384 AND m.amname = 'btree' AND k.coll = a.attcollation) AS usual
         FROM unnest(i.indkey, i.indclass, i.indcollation) WITH ORDINALITY k(attnum, class, coll, position)
              JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
              JOIN pg_catalog.pg_opclass o ON o.oid = k.class
              JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod) key
WHERE i.indisunique AND i.indisvalid AND i.indisready AND i.indislive AND i.indimmediate AND NOT i.indisexclusion
  AND i.indpred IS NULL AND i.indexprs IS NULL AND key.usual
ORDER BY i.indrelid, NOT i.indisprimary, i.indexrelid
"""
_TYPES = """
SELECT t.oid, n.nspname, t.typname, t.typtype::text, t.typcategory::text, t.typispreferred,
       CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE 0::oid END, t.typarray, t.typbasetype, t.typrelid,
       coalesce(CASE t.typtype
           WHEN 'r' THEN (SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid)
           WHEN 'm' THEN (SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid) END, 0::oid),
       EXISTS (SELECT 1 FROM pg_catalog.pg_constraint o WHERE o.contypid = t.oid AND o.contype = 'c')
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname !~ '^pg_(toast_)?temp_'
ORDER BY t.oid
"""
_FUNCTIONS = """
SELECT p.oid, n.nspname, p.proname, p.prokind::text, p.proargtypes::oid[]::bigint[], p.pronargdefaults, p.provariadic,
       p.prorettype, p.proretset, p.provolatile::text, p.proleakproof, p.proisstrict, p.prosecdef,
       CASE WHEN n.nspname = 'pg_catalog' THEN ''
            ELSE encode(sha256(convert_to(concat_ws(' ', p.prosrc, p.probin, p.prosqlbody::text, p.prolang,
                                                    p.proconfig::text), 'UTF8')), 'hex') END
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname !~ '^pg_temp_'
ORDER BY p.oid
"""
_OPERATORS = """
SELECT o.oid, n.nspname, o.oprname, o.oprleft, o.oprright, o.oprresult, o.oprcode::oid,
       EXISTS (SELECT 1 FROM pg_catalog.pg_amop a JOIN pg_catalog.pg_am m ON m.oid = a.amopmethod
               WHERE a.amopopr = o.oid AND a.amopstrategy = 3 AND m.amname = 'btree' AND a.oid < 16384)
FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
WHERE n.nspname = 'pg_catalog'
ORDER BY o.oid
"""
_CASTS = """
SELECT castsource, casttarget, castfunc, castcontext::text, castmethod::text FROM pg_catalog.pg_cast ORDER BY oid
"""

READ_FAILURES: Final = (
    OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, pgproto.BufferError,
)  # fmt: skip
"""What `connect` and `read_catalog` raise when the server cannot be read.  The last two are what asyncpg makes of a
server that goes down while it logs in, or answers out of turn; they belong to none of the other families."""


async def connect(database: Database) -> asyncpg.Connection:
    """An asyncpg connection to the upstream database, for reading the catalogue."""
    options: dict[str, Any] = {}
    if database.tls == "verify-full":
        context = ssl.create_default_context(cafile=None if database.ca is None else str(database.ca))
        if database.client_certificate is not None and database.client_key is not None:
            context.load_cert_chain(database.client_certificate, database.client_key)
        options["ssl"] = context
    else:
        options["ssl"] = False
    if database.password_file is not None:
        options["password"] = database.password_file.read_text(encoding="utf-8").partition("\n")[0]
    return await asyncpg.connect(
        host=database.host,
        port=database.port,
        user=database.role,
        database=database.database,
        timeout=database.connect_timeout,
        command_timeout=60,
        server_settings={"application_name": "grille catalogue", "search_path": "pg_catalog"},
        **options,
    )


async def read_catalog(connection: asyncpg.Connection) -> Catalog:
    """Read a snapshot.  Raises asyncpg's errors."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        version = int(await connection.fetchval("SELECT pg_catalog.current_setting('server_version_num')"))
        name = await connection.fetchval("SELECT pg_catalog.current_database()")
        system = await _system_identifier(connection)
        rows = {
            key: await connection.fetch(query)
            for key, query in {
                "relations": _RELATIONS,
                "columns": _COLUMNS,
                "keys": _KEYS,
                "types": _TYPES,
                "functions": _FUNCTIONS,
                "operators": _OPERATORS,
                "casts": _CASTS,
            }.items()
        }
    # The loop serves agents meanwhile.
    return await asyncio.to_thread(_snapshot, system, version, name, rows)


def _snapshot(system: str, version: int, name: str, rows: dict[str, list[asyncpg.Record]]) -> Catalog:
    columns: dict[int, list[Column]] = {}
    for row in rows["columns"]:
        columns.setdefault(row[0], []).append(
            Column(row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], tuple(row[9]))
        )
    keys: dict[int, list[UniqueKey]] = {}
    for row in rows["keys"]:
        keys.setdefault(row[0], []).append(UniqueKey(row[1], tuple(row[2]), tuple(row[3])))
    relations = {}
    for row in rows["relations"]:
        relations[row[1], row[2]] = Relation(
            oid=row[0],
            schema=row[1],
            name=row[2],
            kind=row[3],
            row_type=row[4],
            columns=tuple(columns.get(row[0], ())),
            parents=tuple(row[5]),
            unique_keys=tuple(keys.get(row[0], ())),
            has_triggers=row[6],
            has_rules=row[7],
            definition_hash=row[8],
            row_security=row[9],
        )
    parts = (
        system,
        version,
        name,
        relations,
        {row[0]: Type(*row) for row in rows["types"]},
        {row[0]: Function(*(*row[:4], tuple(row[4]), *row[5:])) for row in rows["functions"]},
        {row[0]: Operator(*row) for row in rows["operators"]},
        {(row[0], row[1]): Cast(*row) for row in rows["casts"]},
    )
    encoded = msgspec.msgpack.encode(
        [
            system,
            version,
            name,
            sorted(relations.items()),
            *(sorted(part.items()) for part in parts[4:]),
        ]
    )
    return Catalog(hashlib.sha256(encoded).hexdigest()[:32], version, name, *parts[3:])


async def _system_identifier(connection: asyncpg.Connection) -> str:
    """Identifies the cluster and its timeline, so that a restored or failed-over server is another epoch.

    Empty where the role may not ask: then only what the databases contain tells servers apart.
    """
    try:
        async with connection.transaction():
            return str(
                await connection.fetchval(
                    "SELECT s.system_identifier || '/' || c.timeline_id "
                    "FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c"
                )
            )
    except asyncpg.InsufficientPrivilegeError:
        return ""


class CatalogWatch:
    """Keeps the snapshot of one database current.

    `refresh` compares a fingerprint of the system catalogues and reads a new snapshot if it differs, or if the
    connection is a new one.  It is called on a timer, and when the server says that a plan is stale.

    It sees every committed DDL that changes what a snapshot holds.  It does not see, because no snapshot holds them:
    rights, row security policies, enum labels, defaults' expressions, constraints of tables, comments, settings, and
    the bodies of trigger functions that are not called by name.
    """

    def __init__(self, database: Database, on_event: Callable[[str, str], None] | None = None) -> None:
        """`on_event(name, text)` is called with ``catalogue`` when a snapshot with another epoch is in force."""
        self._database = database
        self._on_event = on_event or (lambda name, text: None)
        self._snapshot: Catalog | None = None
        self._fingerprint = ""
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()
        self._begun = 0
        self._finished = 0

    @property
    def ready(self) -> bool:
        """True once a snapshot has been read."""
        return self._snapshot is not None

    @property
    def current(self) -> Catalog:
        """The snapshot in force.  Raises RuntimeError before the first one."""
        if self._snapshot is None:
            raise RuntimeError("the catalogue has not been read yet")
        return self._snapshot

    async def refresh(self) -> Catalog:
        """Read a new snapshot if anything changed; the old one stays in force if that fails.

        Calls that wait for one another share one look at the server.  Raises OSError or asyncpg's errors.
        """
        called = self._begun
        async with self._lock:
            if self._snapshot is not None and self._finished > called:
                return self._snapshot
            self._begun += 1
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect(self._database)
                    self._fingerprint = ""
                fingerprint = await self._connection.fetchval(_FINGERPRINT)
                before = self._snapshot
                if fingerprint != self._fingerprint or before is None:
                    self._snapshot = await read_catalog(self._connection)
                    self._fingerprint = fingerprint
            except BaseException:
                self._drop_connection()
                raise
            self._finished = self._begun
            if before is not None and self._snapshot is not None and before.epoch != self._snapshot.epoch:
                self._on_event("catalogue", f"epoch {self._snapshot.epoch}")
            return self.current

    async def close(self) -> None:
        """Close the connection."""
        self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.terminate()
