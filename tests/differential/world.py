"""One PostgreSQL with both sides: databases behind Grille, and the same databases under native row security.

Lane `n` is an agent in database ``whole<n>`` through Grille, and the same agent in ``native<n>``, a copy with row
security.  What is written on one lane meets nobody else.  The agent ``visible`` is in a database without the hidden
rows: what it is told cannot depend on them.  To the agents ``open<n>`` the policy gives all rows: with them the
comparison must find leaks, else it sees nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import pq

from grille.proxy.authority import Authority, write_signing_key
from grille.proxy.demo.cluster import Cluster
from tests.catalogue.world import DEADLINE, TRUST_DOMAIN, section, stop, write_bundle

HERE: Final = Path(__file__).parent
FUNCTIONS: Final = tuple(
    f"public.{name}" for name in ("leak(integer)", "leak(text)", "sees(integer)", "sees(text)", "watches(integer)")
)
STATEMENT_SECONDS: Final = 5


def _field(column: str, operator: str, value: object) -> dict[str, Any]:
    return {"type": "field", "operator": operator, "field": column, "value": value}


def _all(operator: str, *parts: object) -> dict[str, Any]:
    return {"type": "compound", "operator": operator, "value": list(parts)}


_OWN: Final = _field("tenant", "eq", "a")
# Dear, so that whatever may run before a filter does.
_DEAR: Final = _all("or", _OWN, *(_field("tenant", "eq", name) for name in ("none", "no", "nobody", "nil")))
_DEAR_NATIVE: Final = "tenant = 'a' OR tenant = 'none' OR tenant = 'no' OR tenant = 'nobody' OR tenant = 'nil'"
FILTERS: Final[dict[str, tuple[Any, str]]] = {
    "regions": (True, "true"),
    "customers": (_DEAR, _DEAR_NATIVE),
    "accounts": (_DEAR, _DEAR_NATIVE),
    "cards": (_all("or", _OWN, _field("active", "eq", True)), "tenant = 'a' OR active = true"),
    "events": (_OWN, "tenant = 'a'"),
    "ledger": (_field("tenant", "in", ["a", "a2", "x", "y", "z"]), "tenant IN ('a', 'a2', 'x', 'y', 'z')"),
    "things": (
        _all("and", _field("tenant", "in", ["a", "a2"]), _all("not", _field("weight", "lt", 0))),
        "tenant IN ('a', 'a2') AND NOT (weight < 0)",
    ),
    "active_customers": (_DEAR, ""),
    "totals": (_DEAR, ""),
}
"""Relation -> its filter in the policy, and the same as a row security policy; a view's is that of its tables."""
TABLES: Final = tuple(name for name, (_, native) in FILTERS.items() if native)

_ODD_PLANS: Final = "enable_seqscan enable_hashjoin enable_hashagg enable_material".split()
"""Off on every second lane: small tables are read by index and joined in other ways."""


class World:
    """Use as a context manager."""

    def __init__(self, cluster: Cluster, lanes: int = 1) -> None:
        self.cluster = cluster
        self.lanes = lanes
        self._stack = contextlib.ExitStack()
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="grille-differential-")))
        self.log = self.directory / "grille.log"
        self._owners: dict[str, psycopg.Connection[Any]] = {}
        self._read = 0
        self._seen: dict[str, set[str]] = {}
        """Role -> the hidden values that a function of its statements saw."""

    def __enter__(self) -> World:
        try:
            self._databases()
            self._serve()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _databases(self) -> None:
        roles = [f"{kind}{lane}" for lane in range(self.lanes) for kind in ("grille_app", "agent")]
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as connection:
            for role in roles:
                connection.execute(f"CREATE ROLE {role} LOGIN")
                connection.execute(f"ALTER ROLE {role} SET statement_timeout = '{STATEMENT_SECONDS}s'")
                if int(role[-1]) % 2:
                    for setting in _ODD_PLANS:
                        connection.execute(f"ALTER ROLE {role} SET {setting} = off")
            connection.execute("CREATE DATABASE whole0")
        with psycopg.connect(self.cluster.dsn("whole0")) as connection:
            connection.execute((HERE / "schema.sql").read_text())
            connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {', '.join(roles)}")
            connection.execute("CREATE SCHEMA backup")
            stored = self._stored(connection)
            for table in stored:
                connection.execute(f"CREATE TABLE backup.{table} AS TABLE ONLY public.{table}")
            rows = (f"SELECT '{table}', {table}::text FROM ONLY {table}" for table in stored)
            self._digest = (
                f"SELECT md5(string_agg(a || b, '|' ORDER BY a, b)) FROM ({' UNION ALL '.join(rows)}) r(a, b)"
            )
            self._untouched = connection.execute(self._digest).fetchall()
            again = (f"DELETE FROM ONLY {t}; INSERT INTO {t} SELECT * FROM backup.{t};" for t in stored)
            self._restore = f"BEGIN; SET LOCAL session_replication_role = replica; {' '.join(again)} COMMIT"
        copies = [f"whole{lane}" for lane in range(1, self.lanes)] + [f"native{lane}" for lane in range(self.lanes)]
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as connection:
            for name in (*copies, "visible"):
                connection.execute(f"CREATE DATABASE {name} TEMPLATE whole0")
        for name in ("whole0", *copies, "visible"):
            with psycopg.connect(self.cluster.dsn(name), autocommit=True) as connection:
                if name == "visible":
                    connection.execute("SET session_replication_role = replica")
                for table in TABLES:
                    condition = FILTERS[table][1]
                    if name == "visible":
                        connection.execute(f"DELETE FROM {table} WHERE ({condition}) IS NOT TRUE")
                    elif name.startswith("native"):
                        connection.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
                        connection.execute(f"CREATE POLICY own ON {table} USING ({condition})")
                connection.execute("VACUUM ANALYZE")

    def _stored(self, connection: psycopg.Connection[Any]) -> list[str]:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
        )
        return [name for (name,) in rows]

    def _serve(self) -> None:
        authority = Authority(TRUST_DOMAIN)
        authority.write_bundle(self.directory / "ca.pem")
        authority.issue_server().write(self.directory, "grille")
        agents = {f"{kind}{lane}": f"whole{lane}" for lane in range(self.lanes) for kind in ("agent", "open")}
        agents["visible"] = "visible"
        self._certificates = {
            name: authority.issue(f"differential/{name}").write(self.directory, name) for name in agents
        }
        ids = {name: f"spiffe://{TRUST_DOMAIN}/differential/{name}" for name in agents}
        decision = {
            "allow": True, "control": "AC-01", "reason": "the differential's policy", "passthrough": False,
            "filters": {}, "columns": {}, "limits": {}, "locks": True, "isolated": False, "not_before": None,
            "not_after": None, "cache": {"ttl_seconds": 3600},
        }  # fmt: skip
        filters = {f"public.{name}": condition for name, (condition, _) in FILTERS.items()}
        data = {
            "base": decision, "raw": {}, "conflicting": "", "undefined": "",
            "roles": {"agent": {"filters": filters, "columns": {}},
                      "open": {"filters": dict.fromkeys(filters, True), "columns": {}}},
            "agents": {value: "open" if name.startswith("open") else "agent" for name, value in ids.items()},
        }  # fmt: skip
        write_bundle(self.directory / "policy.tar.gz", data, "0")
        write_signing_key(self.directory / "signing.pem")
        config = self.directory / "grille.toml"
        sections = [
            section("[listener]", {"port": 0, "certificate": "grille.pem", "key": "grille.key"}),
            section("[admin]", {"port": 0}),
            section("[process]", {"workers": min(self.lanes, 2), "drain_seconds": 1.0}),
            section("[[trust_domains]]", {"name": TRUST_DOMAIN, "bundle": "ca.pem"}),
            *(section("[[databases]]", {
                "name": name, "host": self.cluster.host, "port": self.cluster.port, "database": name,
                "role": f"grille_app{lane}", "tls": "off", "functions": list(FUNCTIONS), "pool_size": 2,
                "read_pipes": 1,
              }) for name, lane in [*((f"whole{lane}", lane) for lane in range(self.lanes)), ("visible", 0)]),
            *(section("[[identities]]", {"spiffe_id": ids[name], "database": where}) for name, where in agents.items()),
            section("[policy]", {"bundle": "policy.tar.gz"}),
            section("[audit]", {"directory": "audit", "signing_key": "signing.pem", "reads": "process",
                                "writes": "process"}),
        ]  # fmt: skip
        config.write_text("\n".join(sections))
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "grille", "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._stack.callback(stop, process)
        self.port = 0
        deadline = time.monotonic() + DEADLINE
        while not self.port:
            assert time.monotonic() < deadline and process.poll() is None, self.log.read_text()
            for line in self.log.read_text().splitlines():
                if '"serving"' in line:
                    self.port = json.loads(line)["port"]
            time.sleep(0.02)
        for name in agents:
            self._until_answered(name)

    def _until_answered(self, agent: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while True:
            connection = self._opened(agent)
            answered = (
                connection.status == pq.ConnStatus.OK
                and connection.exec_(b"SELECT count(*) FROM regions").status == pq.ExecStatus.TUPLES_OK
            )
            message = connection.error_message
            connection.finish()
            if answered:
                return
            assert time.monotonic() < deadline, message
            time.sleep(0.05)

    # Sessions

    def until_the_end(self, undo: Callable[[], object]) -> None:
        """Call this when the world ends, before it stops."""
        self._stack.callback(undo)

    def connect(self, agent: str) -> pq.abc.PGconn:
        """A session of this agent through Grille, over mutual TLS."""
        return _connected(self._opened(agent))

    def _opened(self, agent: str) -> pq.abc.PGconn:
        certificate = self._certificates[agent]
        conninfo = (
            f"host=localhost hostaddr=127.0.0.1 port={self.port} dbname=x user=x sslmode=verify-full "
            f"sslcert={certificate} sslkey={certificate.with_suffix('.key')} sslrootcert={self.directory / 'ca.pem'} "
            "gssencmode=disable connect_timeout=10"
        )
        return pq.PGconn.connect(conninfo.encode())

    def connect_native(self, lane: int) -> pq.abc.PGconn:
        """The same agent under native row security."""
        return _connected(pq.PGconn.connect(self.cluster.dsn(f"native{lane}", f"agent{lane}").encode()))

    def owner(self, sql: str, database: str) -> list[tuple[Any, ...]]:
        """What the tables' owner does or sees, past Grille and row security."""
        connection = self._owners.get(database)
        if connection is None:
            connection = self._owners[database] = psycopg.connect(self.cluster.dsn(database), autocommit=True)
            self._stack.callback(connection.close)
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []

    def settle(self, lane: int) -> bool:
        """True if both databases of a lane hold the same rows; then put both back as they were."""
        names = (f"whole{lane}", f"native{lane}")
        digests = [self.owner(self._digest, name) for name in names]
        for name, digest in zip(names, digests, strict=True):
            if digest != self._untouched:
                self.owner(self._restore, name)
        return digests[0] == digests[1]

    def vacuum(self) -> None:
        """Remove the dead rows of what was rolled back; nothing may be in flight."""
        for lane in range(self.lanes):
            for kind in ("whole", "native"):
                self.owner("VACUUM", f"{kind}{lane}")

    def leaked(self, lane: int) -> list[str]:
        """The hidden values that reached a function on this lane through Grille since this was last asked.

        Without those that reached one under native row security as well, which evaluates WHERE of ON CONFLICT DO UPDATE
        before it looks at its policy.
        """
        if self.cluster.log.stat().st_size > self._read:
            with self.cluster.log.open("rb") as file:
                file.seek(self._read)
                text = file.read().decode(errors="replace")
                self._read = file.tell()
            for role, value in re.findall(r"^role=(\w+) .*leak:(.*)$", text, re.MULTILINE):
                self._seen.setdefault(role, set()).add(value)
        return sorted(self._seen.pop(f"grille_app{lane}", set()) - self._seen.pop(f"agent{lane}", set()))


def settings() -> tuple[str, ...]:
    """What the cluster must be started with: its log holds what `leak` reports, and little else."""
    return ("autovacuum=off", "log_min_messages=log", "log_line_prefix=role=%u ", "log_checkpoints=off",
            "timezone=UTC", "jit=off")  # fmt: skip


def _connected(connection: pq.abc.PGconn) -> pq.abc.PGconn:
    assert connection.status == pq.ConnStatus.OK, connection.error_message
    return connection
