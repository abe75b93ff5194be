"""``python -m tests.differential.columns``: two databases that differ in hidden cells only, and the same answers.

Each side is a PostgreSQL database with a Grille of its own in front.  Masked cells hold other values on each side, with
the same mask; tokenized ones hold the tokens of the same values under another key, so that they are renamed one to one.
Every generated statement must end alike on both, up to that renaming: rows, their order where it is promised, counts,
tags and errors.  Every hidden cell holds a word or number of its own, of which none may reach the agent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psycopg
from psycopg import pq

from grille.proxy.authority import Authority, write_private, write_signing_key
from grille.proxy.demo.cluster import Cluster, debian_binaries, embedded_binaries
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.provider import TokenRequest
from grille.tokenization.transformation import Key, Transformation
from tests.catalogue.world import DEADLINE, TRUST_DOMAIN, section, stop, write_bundle
from tests.differential.generator import Script, script
from tests.differential.shrink import shrink
from tests.differential.wire import Outcome, Statement, ask
from tests.differential.world import FILTERS, FUNCTIONS, HERE, settings

_BOTH: Final = "both_sides"
"""The database that both are copies of, so that their types have the same OIDs."""
SIDES: Final = ("west", "east")
TOKEN_DOMAIN: Final = "name"
TOKENIZED: Final = {"accounts.kind": "text", "events.name": "text", "ledger.name": "text"}
"""Stored as tokens of one domain; the agent reads them as tokens, and may compare them for equality."""
MASKED: Final = {
    "customers.name": ("mask:null", "'CANARY{side}' || id"),
    "customers.code": ("mask:redact", "'CANARY{side}c' || id"),
    "customers.amount": ("mask:null", "77{n}100000 + id"),
    "customers.data": ("mask:null", "jsonb_build_object('k', 'CANARY{side}j' || id)"),
    "things.name": ("mask:first1", "'CANARY{side}t' || id"),
    "ledger.amount": ("mask:null", "77{n}200000 + id"),
    "accounts.rate": ("deny", "77{n}300000 + id"),
}
"""Stored clear, other values on each side; what the agent gets of them, and what they hold."""
CANARIES: Final = (b"CANARY", b"77110", b"77210", b"77120", b"77220", b"77130", b"77230")
TRANSFORMATION: Final = Transformation(TOKEN_DOMAIN, "siv", TOKEN_DOMAIN, "siv", "text", "")


class Side:
    """One database and its Grille."""

    def __init__(self, name: str, cluster: Cluster, stack: contextlib.ExitStack, place: Path) -> None:
        self.name = name
        self._key = Key("siv", 1, bytes([SIDES.index(name) + 1]) * 64)
        self.tokens: dict[bytes, bytes] = {}
        """Token -> the clear value, which is the same on both sides."""
        place.mkdir()
        self._place = place
        self._fill(cluster)
        self.port = self._serve(cluster, stack)

    def _fill(self, cluster: Cluster) -> None:
        provider = EmbeddedProvider([TRANSFORMATION], [self._key])
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.name} TEMPLATE {_BOTH}")
        with psycopg.connect(cluster.dsn(self.name), autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            number = SIDES.index(self.name) + 1
            for column, (_, value) in MASKED.items():
                table, name = column.split(".")
                connection.execute(f"UPDATE {table} SET {name} = {value.format(side=self.name, n=number)}")
            for column in TOKENIZED:
                table, name = column.split(".")
                found = connection.execute(f"SELECT DISTINCT {name} FROM {table} WHERE {name} IS NOT NULL").fetchall()
                values = [value for (value,) in found]
                made = asyncio.run(provider.encode([TokenRequest(TOKEN_DOMAIN, value) for value in values]))
                connection.execute("CREATE TEMP TABLE renamed (clear text, token text)")
                for value, token in zip(values, made, strict=True):
                    assert isinstance(token, str)
                    self.tokens[token.encode()] = value.encode()
                    connection.execute("INSERT INTO renamed VALUES (%s, %s)", (value, token))
                connection.execute(f"UPDATE {table} SET {name} = token FROM renamed WHERE clear = {name}")
                connection.execute("DROP TABLE renamed")
            # Statistics would let the planner choose by hidden values, and with the plan the order of rows.
            connection.execute("VACUUM")

    def _serve(self, cluster: Cluster, stack: contextlib.ExitStack) -> int:
        authority = Authority(TRUST_DOMAIN)
        authority.write_bundle(self._place / "ca.pem")
        authority.issue_server().write(self._place, "grille")
        self._certificate = authority.issue("columns/agent").write(self._place, "agent")
        identity = f"spiffe://{TRUST_DOMAIN}/columns/agent"
        obligations = {
            **{f"public.{name}": {"read": read, "predicate": "deny", "write": "deny"}
               for name, (read, _) in MASKED.items()},
            **{f"public.{name}": {"read": "token", "predicate": "equality", "write": "deny"} for name in TOKENIZED},
        }  # fmt: skip
        data = {
            "base": {
                "allow": True, "control": "AC-01", "reason": "the differential's policy", "passthrough": False,
                "filters": {}, "columns": {}, "limits": {}, "locks": True, "isolated": False, "not_before": None,
                "not_after": None, "cache": {"ttl_seconds": 3600},
            },
            "raw": {}, "conflicting": "", "undefined": "", "agents": {identity: "agent"},
            "roles": {"agent": {"filters": {f"public.{name}": condition for name, (condition, native) in FILTERS.items()
                                            if native}, "columns": obligations}},
        }  # fmt: skip
        write_bundle(self._place / "policy.tar.gz", data, "0")
        write_signing_key(self._place / "signing.pem")
        write_private(self._place / "siv.hex", self._key.material.hex().encode())
        columns = [
            *(section("[[columns]]", {"name": f"public.{name}", "sensitivity": "pii"}) for name in MASKED),
            *(section("[[columns]]", {"name": f"public.{name}", "sensitivity": "pii", "transformation": TOKEN_DOMAIN})
              for name in TOKENIZED),
        ]  # fmt: skip
        (self._place / "grille.toml").write_text("\n".join([
            section("[listener]", {"port": 0, "certificate": "grille.pem", "key": "grille.key"}),
            section("[admin]", {"port": 0}),
            section("[process]", {"workers": 1, "drain_seconds": 1.0}),
            section("[[trust_domains]]", {"name": TRUST_DOMAIN, "bundle": "ca.pem"}),
            section("[[databases]]", {"name": "d", "host": cluster.host, "port": cluster.port, "database": self.name,
                                      "role": "postgres", "tls": "off", "functions": list(FUNCTIONS)}),
            section("[[identities]]", {"spiffe_id": identity, "database": "d"}),
            section("[[keys]]", {"name": "siv", "version": 1, "file": "siv.hex"}),
            section("[[transformations]]", {"name": TOKEN_DOMAIN, "kind": "siv", "token_domain": TOKEN_DOMAIN,
                                            "key": "siv", "alphabet": "text", "template": ""}),
            *columns,
            section("[policy]", {"bundle": "policy.tar.gz"}),
            section("[audit]", {"directory": "audit", "signing_key": "signing.pem", "reads": "process",
                                "writes": "process"}),
        ]))  # fmt: skip
        self.log = self._place / "grille.log"
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "grille", "serve", "--config", str(self._place / "grille.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        stack.callback(stop, process)
        deadline = time.monotonic() + DEADLINE
        while True:
            assert time.monotonic() < deadline and process.poll() is None, self.log.read_text()
            for line in self.log.read_text().splitlines():
                if '"serving"' in line:
                    return int(json.loads(line)["port"])
            time.sleep(0.02)

    def connect(self) -> pq.abc.PGconn:
        """A session of the agent."""
        conninfo = (
            f"host=localhost hostaddr=127.0.0.1 port={self.port} dbname=x user=x sslmode=verify-full "
            f"sslcert={self._certificate} sslkey={self._certificate.with_suffix('.key')} "
            f"sslrootcert={self._place / 'ca.pem'} gssencmode=disable connect_timeout=20"
        )
        deadline = time.monotonic() + DEADLINE
        while True:  # a node that has just started has not read the catalogue yet
            connection = pq.PGconn.connect(conninfo.encode())
            if connection.status == pq.ConnStatus.OK or b"ST-08" not in connection.error_message:
                return connection
            assert time.monotonic() < deadline, connection.error_message
            time.sleep(0.05)


class Pair:
    """Sessions of both sides."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self.sides = sides
        self._sessions: dict[str, pq.abc.PGconn] = {}

    def _session(self, side: Side) -> pq.abc.PGconn:
        found = self._sessions.get(side.name)
        if found is None or found.status != pq.ConnStatus.OK:
            if found is not None:
                found.finish()
            found = self._sessions[side.name] = side.connect()
            assert found.status == pq.ConnStatus.OK, found.error_message
        return found

    def close(self) -> None:
        for session in self._sessions.values():
            session.finish()

    def run(self, statements: Sequence[Statement]) -> list[list[Outcome]]:
        """What each side answers; nothing stays open."""
        answers = []
        for side in self.sides:
            session = self._session(side)
            answers.append(ask(session, statements))
            if session.status == pq.ConnStatus.OK and session.transaction_status != pq.TransactionStatus.IDLE:
                session.exec_(b"ROLLBACK")
        return answers

    def difference(self, statements: Sequence[Statement]) -> str:
        """What differs, or tells of a hidden cell; empty if nothing does."""
        return self.compared(statements, *self.run(statements))

    def compared(self, statements: Sequence[Statement], left: Sequence[Outcome], right: Sequence[Outcome]) -> str:
        """The same of answers that were given."""
        for statement, one, other in zip(statements, left, right, strict=True):
            for answer in (one, other):
                told = repr(answer).encode()
                if any(canary in told for canary in CANARIES):
                    return f"a hidden cell shows: {statement.sql}"
            if _ended(one) != _ended(other):
                return f"{_ended(one)} against {_ended(other)}: {statement.sql}"
            rows = [_clear(side, answer) for side, answer in zip(self.sides, (one, other), strict=True)]
            for column in statement.ordered if one.kind == "rows" else ():
                if [row[column] for row in rows[0]] != [row[column] for row in rows[1]]:
                    return f"another order: {statement.sql}"
            if sorted(rows[0], key=repr) != sorted(rows[1], key=repr):
                return f"other rows: {statement.sql}"
        return ""


def _ended(outcome: Outcome) -> tuple[object, ...]:
    return outcome.kind, outcome.state, outcome.message, outcome.tag, outcome.names, outcome.types, len(outcome.rows)


def _clear(side: Side, outcome: Outcome) -> list[tuple[object, ...]]:
    """Rows with a token as what it stands for."""
    return [
        tuple(("token", side.tokens[value]) if value in side.tokens else value for value in row) for row in outcome.rows
    ]


def scripts(seed: int) -> Iterator[Script]:
    """Generated ones that leave nothing behind."""
    number = 0
    while True:
        found = script(seed, number)
        number += 1
        if not found.commits:
            found.statements = [_varied(each, number) for each in found.statements]
            yield found


def _varied(statement: Statement, number: int) -> Statement:
    """Now and then in the binary format, as COPY, or only explained."""
    if not statement.judged or statement.simple:
        return statement
    reads = statement.sql.startswith(("SELECT", "WITH", "VALUES"))
    if number % 8 == 1 and reads and not statement.types:
        return statement._replace(sql=f"COPY ({statement.sql}) TO STDOUT", simple=True)
    if number % 32 == 2 and reads:
        return statement._replace(sql=f"EXPLAIN {statement.sql}")
    return statement._replace(binary=number % 4 == 3)


@contextlib.contextmanager
def pair(cluster: Cluster) -> Iterator[Pair]:
    """Both sides, running."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grille-columns-")))
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {_BOTH}")
        with psycopg.connect(cluster.dsn(_BOTH)) as connection:
            connection.execute((HERE / "schema.sql").read_text())
        made = Pair([Side(name, cluster, stack, directory / name) for name in SIDES])
        stack.callback(made.close)
        yield made


def campaign(made: Pair, count: int, seed: int, *, progress: bool = False) -> tuple[Counter[str], list[str]]:
    """Counts by how the left side ended, and what differed."""
    counts: Counter[str] = Counter()
    found: list[str] = []
    told = time.monotonic()
    for wanted in scripts(seed):
        if counts.total() >= count:
            break
        left, right = made.run(wanted.statements)
        for outcome, statement in zip(left, wanted.statements, strict=True):
            if statement.judged:
                counts["denied" if outcome.kind == "denied" else "answered"] += 1
        if what := made.compared(wanted.statements, left, right):
            smaller = shrink(wanted, lambda trial: bool(made.difference(trial.statements)))
            found.append(f"number {wanted.number}: {what}\n    " + "; ".join(each.sql for each in smaller.statements))
            print(found[-1], flush=True)
        if progress and time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{counts.total()} of {count} statements, differ={len(found)}", flush=True)
    return counts, found


def main() -> int:
    """Exit status 0 if nothing differed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential.columns", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--statements", type=int, default=5_000, metavar="N", help="how many to compare (5000)")
    parser.add_argument("--seed", type=int, default=1, help="of the generator (1)")
    parser.add_argument("--server", choices=("pg15", "pg18"), default="pg18")
    chosen = parser.parse_args()
    binaries = embedded_binaries() if chosen.server == "pg18" else debian_binaries(15)
    if binaries is None:
        print(f"{chosen.server} is not installed", file=sys.stderr)
        return 1
    with Cluster(binaries, settings=settings()) as cluster, pair(cluster) as made:
        counts, found = campaign(made, chosen.statements, chosen.seed, progress=True)
        exceptions = sum('"exception"' in side.log.read_text() for side in made.sides)
    print(f"columns statements={counts.total()} answered={counts['answered']} denied={counts['denied']} "
          f"differ={len(found)} exceptions={exceptions}")  # fmt: skip
    return 1 if found or exceptions else 0


if __name__ == "__main__":
    sys.exit(main())
