"""One Grille in front of one PostgreSQL, with the catalogue's data, policy and agents.

Two databases hold the same tables, one with the hidden rows and one without them: what an agent is told must not
depend on which of them it is connected to.  A third one is under PostgreSQL's own row security, over values that are
masked already: it is the oracle for rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import psycopg

from grille.protocols.postgres.definitions import definitions_of
from grille.proxy.authority import Authority, Issued, write_private, write_signing_key
from grille.proxy.catalog import read_catalog
from grille.proxy.demo.cluster import Cluster
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.masking import apply
from grille.tokenization.provider import TokenRequest
from grille.tokenization.transformation import Key, Transformation
from tests.bundles import replace, with_data
from tests.catalogue.middle import Middle
from tests.catalogue.wire import Wire

_Told = TypeVar("_Told")
HERE: Final = Path(__file__).parent
DEADLINE: Final = 30.0
TRUST_DOMAIN: Final = "bank.example"
BRANCH, OTHER_BRANCH = "0042", "0007"
KEY: Final = bytes(range(32))
TRANSFORMATIONS: Final = (
    Transformation(name="ssn", kind="fpe", token_domain="ssn", key="fpe", alphabet="digits", template=r"(\d{9})"),
    Transformation(name="card", kind="fpe", token_domain="card", key="fpe", alphabet="digits", template=r"(\d{16})"),
)
COLUMNS: Final = {
    "public.people.ssn": "ssn",
    "public.people.card": "card",
    "public.people.email": None,
    "public.people.pin": None,
    "public.accounts.owner_ssn": "ssn",
    "public.fkc.ssn": "ssn",
    "public.derived.email": None,
    "public.contacts.email": None,
    "public.drift.email": None,
}
"""Sensitive columns, and the transformation of those that are stored tokenized."""
FUNCTIONS: Final = (
    "public.leak(integer)", "public.leak(text)", "public.sets(integer)", "public.turns(text,text)",
    "public.redefined(integer)", "public.raises(text,text,text,text)",
)  # fmt: skip

AGENTS: Final = {
    "a": ("whole", BRANCH),
    "visible": ("visible", BRANCH),
    "b": ("whole", OTHER_BRANCH),
    "nobody": ("whole", BRANCH),
    "middle": ("middle", BRANCH),
    "slow": ("slow", BRANCH),
    "switcher": ("switch", BRANCH),
    "quoted": ("whole", 'z", "allow": true, "x": "'),
    "undefined": ("whole", BRANCH),
    "conflicting": ("whole", BRANCH),
    "no-filters": ("whole", BRANCH),
    "empty-filters": ("whole", BRANCH),
    "null-filter": ("whole", BRANCH),
    "open-filter": ("whole", BRANCH),
    "quoted-field": ("whole", BRANCH),
    "number-for-text": ("whole", BRANCH),
    "unknown-key": ("whole", BRANCH),
    "no-columns": ("whole", BRANCH),
}
"""Name -> database and branch."""

_ROLE: Final[dict[str, Any]] = {
    "filters": {
        **dict.fromkeys(
            ("public.people", "public.accounts", "public.part", "public.checked", "public.derived", "public.contacts",
             "public.letters", "public.drift", "public.loose", "public.swap", "public.fkc", "public.watched",
             "public.ruled"),
            "own branch",
        ),
        "public.branches": True,
        "public.all_notes": True,
        "public.kinds": True,
        "public.old_prices": {"type": "field", "operator": "eq", "field": "branch", "value": BRANCH},
    },
    "columns": {
        "public.people.ssn": {"read": "mask:last4", "predicate": "equality", "write": "allow"},
        "public.people.card": {"read": "mask:null", "predicate": "deny", "write": "deny"},
        "public.people.email": {"read": "mask:email", "predicate": "deny", "write": "deny"},
        "public.accounts.owner_ssn": {"read": "mask:last4", "predicate": "equality", "write": "allow"},
        "public.derived.email": {"read": "mask:email", "predicate": "deny", "write": "deny"},
        "public.contacts.email": {"read": "mask:email", "predicate": "deny", "write": "deny"},
        "public.drift.email": {"read": "mask:email", "predicate": "deny", "write": "deny"},
    },
}  # fmt: skip
_BASE: Final[dict[str, Any]] = {
    "allow": True, "control": "AC-01", "reason": "the catalogue's policy", "passthrough": False, "filters": {},
    "columns": {}, "limits": {}, "locks": True, "isolated": False, "not_before": None, "not_after": None,
    "cache": {"ttl_seconds": 60},
}  # fmt: skip
_FIELD: Final = {"type": "field", "operator": "eq", "field": "branch", "value": BRANCH}
_RAW: Final = {
    "no-filters": {key: value for key, value in _BASE.items() if key != "filters"},
    "empty-filters": _BASE,
    "null-filter": {**_BASE, "filters": {"public.people": None}},
    "open-filter": {**_BASE, "filters": {"public.people": True}},
    "quoted-field": {**_BASE, "filters": {"public.people": {**_FIELD, "field": 'branch" = "branch" OR "id'}}},
    "number-for-text": {**_BASE, "filters": {"public.people": {**_FIELD, "value": "0042' OR 'a' = 'a"}}},
    "unknown-key": {**_BASE, "filters": {"public.people": _FIELD}, "except": ["public.people"]},
    "no-columns": {**_BASE, "filters": {"public.people": _FIELD}},
}
"""Answers that stand in the data as they are."""


def clear_ssn(number: int) -> str:
    """The clear value behind ``people.ssn`` of row `number`."""
    return f"1{number:04d}{number:04d}"


def ssn(number: int) -> str:
    """What agent A sees of it."""
    return str(apply("last4", clear_ssn(number)))


def clear_card(number: int) -> str:
    """The clear value behind ``people.card`` of row `number`."""
    return f"4000{number:04d}8888{number:04d}"


def policy_data() -> dict[str, Any]:
    """The data document of the bundle; a test may change its copy and put it in force."""
    agents = dict.fromkeys(("a", "visible", "b", "middle", "slow", "switcher", "quoted"), "agent")
    return copy.deepcopy(
        {
            "base": _BASE,
            "roles": {"agent": _ROLE},
            "agents": {_spiffe_id(name): role for name, role in agents.items()},
            "raw": {_spiffe_id(name): answer for name, answer in _RAW.items()},
            "conflicting": _spiffe_id("conflicting"),
            "undefined": _spiffe_id("undefined"),
        }
    )


def write_bundle(path: Path, data: dict[str, Any], revision: str) -> None:
    """The committed bundle (its policy.wasm is OPA's) with this data document."""
    replace(path, with_data((HERE / "policy.tar.gz").read_bytes(), data, revision))


def _spiffe_id(name: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/catalogue/{name}"


_WRITTEN: Final = (
    "people kid accounts old_prices fkc checked watched ruled contacts letters drift loose swap secrets branches"
).split()
_RESTORE: Final = "".join(
    f"DELETE FROM ONLY public.{name}; INSERT INTO public.{name} SELECT * FROM backup.{name};" for name in _WRITTEN
)
_WITHOUT_HIDDEN_ROWS: Final = "".join(
    f"DELETE FROM public.{name} WHERE branch <> '{BRANCH}';"
    for name in ("people", "accounts", "part", "checked", "derived", "contacts", "drift", "loose", "swap")
)
_NATIVE: Final = "people accounts part checked derived old_prices".split()


class World:
    """Use as a context manager."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._stack = contextlib.ExitStack()
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="grille-catalogue-")))
        self.authority = Authority(TRUST_DOMAIN)
        self.bundle = self.directory / "ca.pem"
        self.log = self.directory / "grille.log"
        self.policy = self.directory / "policy.tar.gz"
        self.certificates: dict[str, Path] = {}
        self._owners: dict[str, psycopg.Connection[Any]] = {}
        self._sessions: dict[str, psycopg.Connection[Any]] = {}
        self._read = 0
        self._revision = 0
        self.canaries: list[bytes] = []
        """What must not reach agent A: clear values, tokens, words of hidden rows."""
        self.version = 0
        """Major version of the server."""

    def __enter__(self) -> World:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # Start

    def _start(self) -> None:
        self.authority.write_bundle(self.bundle)
        self.server = self.authority.issue_server().write(self.directory, "grille")
        for name in AGENTS:
            self.certificates[name] = self.authority.issue(f"catalogue/{name}").write(self.directory, name)
        self._databases()
        write_bundle(self.policy, policy_data(), "0")
        self.middle = self._stack.enter_context(Middle(self.cluster, self.server))
        config = self.directory / "grille.toml"
        write_private(self.directory / "fpe.hex", KEY.hex().encode())
        write_signing_key(self.directory / "signing.pem")
        config.write_text(self._config())
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "grille", "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._stack.callback(stop, process)
        self.port = 0
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline and not self.port:
            assert process.poll() is None, self.log.read_text()
            for line in self.log.read_text().splitlines():
                if '"serving"' in line:
                    fields = json.loads(line)
                    self.port, self.admin_port = fields["port"], fields["admin_port"]
            time.sleep(0.02)
        assert self.port, self.log.read_text()
        for name in ("a", "visible", "middle", "slow", "switcher"):
            self._until_answered(name)

    def _until_answered(self, name: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                with self.connect(name) as connection:
                    connection.execute("SELECT count(*) FROM branches")
                return
            except psycopg.Error:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _databases(self) -> None:
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as connection:
            self.version = connection.info.server_version // 10000
            for role in ("grille_app", "native_agent"):
                connection.execute(f"CREATE ROLE {role} LOGIN")  # type: ignore[arg-type]
            for name in ("whole", "visible", "native", "switch", "restored"):
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        people = self._people()
        for name in ("whole", "visible", "native", "switch", "restored"):
            with psycopg.connect(self.cluster.dsn(name)) as connection:
                self._load(connection, people, masked=name == "native")
                if name == "native":
                    for table in _NATIVE:
                        connection.execute(
                            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; "  # type: ignore[arg-type]
                            f"CREATE POLICY own ON {table} TO native_agent USING (branch = '{BRANCH}');"
                        )
                if name == "visible":
                    connection.execute(_WITHOUT_HIDDEN_ROWS)  # type: ignore[arg-type]
                    connection.execute("DELETE FROM secrets")
                connection.execute("CREATE SCHEMA backup")
                for table in _WRITTEN:
                    connection.execute(
                        f"CREATE TABLE backup.{table} AS TABLE ONLY public.{table}"  # type: ignore[arg-type]
                    )
            with psycopg.connect(self.cluster.dsn(name), autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
        self.native = psycopg.connect(self.cluster.dsn("native", "native_agent"))
        self._stack.callback(self.native.close)

    def _people(self) -> list[tuple[Any, ...]]:
        """Rows of people, as they are stored."""
        provider = EmbeddedProvider(list(TRANSFORMATIONS), [Key("fpe", 1, KEY)])
        numbers = range(1, 101)
        wanted = [TokenRequest("ssn", clear_ssn(n)) for n in numbers]
        wanted += [TokenRequest("card", clear_card(n)) for n in numbers]
        tokens = [str(token) for token in asyncio.run(provider.encode(wanted))]
        self.canaries = [value.encode() for n in numbers for value in (clear_ssn(n), clear_card(n))]
        self.canaries += [token.encode() for token in tokens]
        self.canaries += [b"u%d@bank" % n for n in numbers]
        self.canaries += [b"hidden %d" % n for n in numbers]
        self.canaries += [
            b"hidden-",
            b"hidden k",
            b"hidden i",
            b"hidden n",
            b"clear1@",
            b"clear4@",
            b"Clear1@",
            b"leak:",
        ]
        rows = []
        for n in numbers:
            seen = n <= 20
            note = "open" if seen else "hidden-secret" if n <= 60 else None
            rows.append(
                (n, BRANCH if seen else OTHER_BRANCH, f"{'visible' if seen else 'hidden'} {n}", tokens[n - 1],
                 tokens[99 + n], f"u{n}@bank.example", 1000 + n, note, 1 if seen else 0, 10 if seen else 10**9)
            )  # fmt: skip
        return rows

    def _load(self, connection: psycopg.Connection[Any], people: list[tuple[Any, ...]], *, masked: bool) -> None:
        connection.execute((HERE / "schema.sql").read_text())  # type: ignore[arg-type]
        shown = people
        if masked:
            shown = [(*p[:3], ssn(p[0]), None, f"{p[5][0]}***@bank.example", None, *p[7:]) for p in people]
        with connection.cursor().copy(
            "COPY people (id, branch, name, ssn, card, email, pin, note, score, amount) FROM STDIN"
        ) as copying:
            for person in shown:
                copying.write_row(person)
        connection.execute("UPDATE ONLY people SET opened = date '2020-01-01' + id")
        connection.execute(
            "INSERT INTO accounts SELECT id, id, branch, CASE WHEN id <= 20 THEN 'giro' ELSE 'hidden kind' END, "
            "CASE WHEN id <= 20 THEN 5 ELSE 0 END, ssn FROM ONLY people"
        )
        connection.execute(
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO grille_app, native_agent; "
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO grille_app, native_agent; "
            "REVOKE ALL ON secrets, v, mv, kid, part_1, part_2 FROM native_agent; "
            "GRANT USAGE ON SCHEMA evil TO grille_app; GRANT ALL ON evil.people TO grille_app"
        )

    def _config(self) -> str:
        def database(name: str, real: str, **more: object) -> str:
            entries: dict[str, object] = {
                "name": name, "host": self.cluster.host, "port": self.cluster.port, "database": real,
                "role": "grille_app", "tls": "off", "catalog_poll": 0.2, "functions": list(FUNCTIONS),
                "pool_size": 4, "read_pipes": 1, "definitions": self._approved(real), **more,
            }  # fmt: skip
            return section("[[databases]]", entries)

        middle = {"host": "localhost", "port": self.middle.port, "tls": "verify-full", "ca": str(self.bundle)}
        sections = [
            section("[listener]", {"port": 0, "certificate": "grille.pem", "key": "grille.key",
                                    "max_message_bytes": 1 << 20,
                                    "idle_message_timeout": 1.0, "handshake_timeout": 5.0}),
            section("[admin]", {"port": 0}),
            section("[process]", {"workers": 1, "drain_seconds": 1.0}),
            section("[[trust_domains]]", {"name": TRUST_DOMAIN, "bundle": "ca.pem"}),
            database("whole", "whole"),
            database("visible", "visible"),
            database("switch", "switch"),
            database("slow", "whole", catalog_poll=3600.0),
            database("middle", "whole", **middle),
            section("[[keys]]", {"name": "fpe", "file": "fpe.hex"}),
            *(section("[[transformations]]", {"name": t.name, "kind": t.kind, "alphabet": t.alphabet,
                                               "template": t.template, "token_domain": t.token_domain, "key": t.key})
              for t in TRANSFORMATIONS),
            *(section("[[columns]]", {"name": name} | ({"transformation": kind} if kind else {}))
              for name, kind in COLUMNS.items()),
            *(section("[[identities]]", {"spiffe_id": _spiffe_id(name), "database": where})
              + f"attributes = {{ branch = {json.dumps(branch)} }}\n"
              for name, (where, branch) in AGENTS.items()),
            section("[policy]", {"bundle": "policy.tar.gz", "reload_poll": 0.1}),
            section("[audit]", {"directory": "audit", "signing_key": "signing.pem", "reads": "process",
                                 "writes": "process"}),
        ]  # fmt: skip
        return "\n".join(sections)

    def _approved(self, database: str) -> dict[str, str]:
        """The definitions of one view and one routine, as they are now."""

        async def read() -> dict[str, str]:
            connection = await asyncpg.connect(
                host=self.cluster.host, port=self.cluster.port, user="grille_app", database=database,
                server_settings={"search_path": "pg_catalog"},
            )  # fmt: skip
            try:
                return dict(definitions_of(await read_catalog(connection)))
            finally:
                await connection.close()

        found = asyncio.run(read())
        return {name: found[name] for name in ("public.kinds", "public.redefined(int4)")}

    # What a case needs

    def connect(self, agent: str) -> psycopg.Connection[Any]:
        """A session of this agent through Grille."""
        certificate = self.certificates[agent]
        return psycopg.connect(
            host="localhost", hostaddr="127.0.0.1", port=self.port, dbname="x", user="x", sslmode="verify-full",
            sslcert=str(certificate), sslkey=str(certificate.with_suffix(".key")), sslrootcert=str(self.bundle),
            gssencmode="disable", autocommit=True, connect_timeout=10,
        )  # fmt: skip

    def on_session(
        self, agent: str, texts: Sequence[str], run: Callable[[psycopg.Connection[Any], Sequence[str]], _Told]
    ) -> _Told:
        """Run on a fresh session, or for a single query, which leaves nothing behind, on one that did only such."""
        if len(texts) > 1 or not re.match(r"\(*(SELECT|WITH|VALUES|TABLE|INSERT|UPDATE|DELETE)\b", texts[0]):
            with self.connect(agent) as connection:
                return run(connection, texts)
        kept = self._sessions.pop(agent, None)
        if kept is None or kept.closed:
            kept = self.connect(agent)
            self._stack.callback(kept.close)
        told = run(kept, texts)
        self._sessions[agent] = kept
        return told

    def context(self, agent: str | None = None, certificate: Path | None = None) -> ssl.SSLContext:
        """The agent's side of mutual TLS; without either, no certificate is shown."""
        context = ssl.create_default_context(cafile=str(self.bundle))
        context.set_alpn_protocols(["postgresql"])
        chain = self.certificates[agent] if agent is not None else certificate
        if chain is not None:
            context.load_cert_chain(chain, chain.with_suffix(".key"))
        return context

    def wire(self, agent: str, **startup: str) -> Wire:
        """A session of this agent, message by message."""
        return Wire.open(self.port, self.context(agent), startup)

    def plain(self) -> socket.socket:
        """A TCP connection on which nothing was said yet."""
        return socket.create_connection(("localhost", self.port), DEADLINE)

    def issue(self, name: str, issued: Issued) -> Path:
        """Write a certificate of the test's own."""
        return issued.write(self.directory, name)

    def owner(self, sql: str, database: str = "whole") -> list[tuple[Any, ...]]:
        """What the tables' owner does or sees, past Grille."""
        connection = self._owners.get(database)
        if connection is None or connection.closed:
            connection = psycopg.connect(self.cluster.dsn(database), autocommit=True)
            self._owners[database] = connection
            self._stack.callback(connection.close)
        cursor = connection.execute(sql)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def disown(self, *databases: str) -> None:
        """Close the owner's connections to these."""
        for database in databases:
            if database in self._owners:
                self._owners.pop(database).close()

    def settled(self, agent: str) -> None:
        """Wait until Grille has looked at the catalogue of this agent's database since the owner's last DDL."""
        database = AGENTS[agent][0]
        line = f'"the catalogue changed","worker":0,"database":"{database}"'
        seen = self.log.read_text().count(line)
        marker = f"CREATE OR REPLACE FUNCTION backup.marker() RETURNS int LANGUAGE sql AS 'SELECT {seen}'"
        self.owner(marker, database)
        deadline = time.monotonic() + DEADLINE
        while self.log.read_text().count(line) == seen:
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.02)

    def restore(self) -> None:
        """Put every table back."""
        for database in ("whole", "visible"):
            self.owner(f"BEGIN; SET LOCAL session_replication_role = replica; {_RESTORE} COMMIT", database)

    def leaked(self) -> set[str]:
        """Hidden values that `leak` reported since it was last asked."""
        with self.cluster.log.open("rb") as file:
            file.seek(self._read)
            text = file.read().decode(errors="replace")
            self._read = file.tell()
        seen = re.findall(r"WARNING:  leak:(.*)", text)
        return {s for s in seen if "hidden" in s or (s.isdigit() and (20 < int(s) <= 100 or int(s) in (777,)))}

    def put_in_force(self, data: dict[str, Any]) -> None:
        """Replace the policy's data and wait until it decides."""
        self._revision += 1
        write_bundle(self.policy, data, f"r{self._revision}")
        self.await_log(f"r{self._revision}")

    def await_log(self, text: str) -> None:
        """Wait until Grille's log holds it."""
        deadline = time.monotonic() + DEADLINE
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.02)


def settings() -> tuple[str, ...]:
    """What the cluster must be started with."""
    return ("autovacuum=off", "log_error_verbosity=terse")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def section(header: str, entries: dict[str, object]) -> str:
    return header + "\n" + "".join(f"{name} = {_value(value)}\n" for name, value in entries.items())


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {json.dumps(each)}" for name, each in value.items()) + " }"
    return json.dumps(value)
