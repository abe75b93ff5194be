"""Sessions against a real PostgreSQL, spoken to message by message.

Decisions are scripted by the test (`Scripted`), so that each limit, hidden column and refusal can be had at will; the
pool, the recorder, the client state and the server are the real ones.  TLS and certificates are the listener's tests.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from grille.audit.event import Event
from grille.audit.spool import Spool
from grille.controls import Refusal
from grille.policies.decision import Limits
from grille.protocols.postgres.messages import (
    Bind,
    CancelRequest,
    Close,
    CopyFail,
    Describe,
    ErrorResponse,
    Execute,
    Flush,
    FunctionCall,
    Parse,
    Query,
    StartupMessage,
    Sync,
    Terminate,
    decode_data_row,
)
from grille.protocols.postgres.rewrite import Plan, Transform
from grille.protocols.postgres.statement import parse_text
from grille.proxy.catalog import read_catalog
from grille.proxy.config import Admin, Audit, Config, Database, Identity, Listener, Policy, Process
from grille.proxy.demo.cluster import Cluster
from grille.proxy.enforcement import Prepared, Understood
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.proxy.recorder import Recorder
from grille.proxy.services import CancelTable, Services
from grille.proxy.session import Session
from grille.proxy.shown import Shown
from grille.proxy.stream import ByteStream
from grille.proxy.telemetry import Metrics
from grille.proxy.upstream import PINNED, UpstreamPool

DEADLINE = 10.0
SPIFFE_ID = "spiffe://bank.example/ns/test/sa/agent"


class Scripted:
    """Allows every statement as it is, but for what a test sets by text."""

    def __init__(self) -> None:
        self.limits: dict[str, Limits] = {}
        self.plans: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, Refusal] = {}
        self.release_with: Callable[[list[list[bytes | None]]], list[list[bytes | None]]] = lambda rows: rows
        self.generation = 0

    async def connect(self, agent: Agent) -> None:
        """Every session is governed."""

    def type_oids(self, types: Sequence[tuple[tuple[str, ...], bool]]) -> tuple[int, ...]:
        return tuple({"int4": 23, "text": 25}[names[-1]] for names, _ in types)

    async def prepare(
        self, agent: Agent, text: str, types: Sequence[int] = (), *, simple: bool = False
    ) -> list[Prepared]:
        if text in self.refused:
            raise self.refused[text]
        found = []
        for statement, one in self._split(text):
            digest = hashlib.sha256(one.encode()).hexdigest().encode()
            understood = Understood(one, digest, tuple(types), statement.command, None, statement.action, False, one)
            if statement.command is not None:
                found.append(Prepared(statement.action, statement.command, None, (), Limits(), understood, None, False))
                continue
            count = max([one.count("$1") and 1, one.count("$2") and 2, len(types)])
            plan = Plan(
                sql=one,
                name=f"g{digest[:16].decode()}{self.generation}",
                parameter_types=tuple(types),
                client_parameters=count,
                literals=(),
                encode=(),
                injected=(),
                hidden_columns=0,
                swallow_rows=False,
                results=(),
                writes=statement.action != "select",
                row_check_plan=False,
                shared=True,
            )
            plan = msgspec.structs.replace(plan, **self.plans.get(one, {}))
            limits = self.limits.get(one, Limits())
            found.append(Prepared(statement.action, None, plan, (), limits, understood, None, False))
        return found

    @staticmethod
    def _split(text: str) -> list[tuple[Any, str]]:
        statements = parse_text(text, limit=1 << 20)
        if len(statements) == 1:
            return [(statements[0], text)]
        return list(zip(statements, [part.strip() for part in text.split(";") if part.strip()], strict=True))

    def is_current(self, prepared: Prepared) -> bool:
        return prepared.plan is None or prepared.plan.name.endswith(str(self.generation))

    def still_valid(self, verdict: object) -> None: ...

    async def bind(
        self, agent: Agent, prepared: Prepared, formats: Sequence[int], values: Sequence[bytes | None]
    ) -> tuple[list[int], list[bytes | None]]:
        return list(formats), list(values)

    async def release(
        self, agent: Agent, prepared: Prepared, rows: list[list[bytes | None]], formats: Sequence[int]
    ) -> list[list[bytes | None]]:
        return self.release_with(rows)


class Kept(Recorder):
    """Remembers what it kept."""

    events: list[Event]

    async def keep(self, event: Event) -> None:
        await super().keep(event)
        self.events.append(event)


class Client:
    """Messages in, messages out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.parameters: dict[str, str] = {}
        self.key = (0, b"")

    async def start(self, minor: int = 0, **parameters: str) -> list[tuple[str, bytes]]:
        self.writer.write(StartupMessage({"user": "x", **parameters}, minor=minor).encode())
        messages = await self.unit()
        for kind, payload in messages:
            if kind == "S":
                name, value, _ = payload.split(b"\0")
                self.parameters[name.decode()] = value.decode()
            elif kind == "K":
                self.key = (struct.unpack("!i", payload[:4])[0], payload[4:])
        return messages

    def send(self, *messages: Any) -> None:
        self.writer.write(b"".join(message.encode() for message in messages))

    async def message(self) -> tuple[str, bytes]:
        async with asyncio.timeout(DEADLINE):
            kind, length = struct.unpack("!ci", await self.reader.readexactly(5))
            return kind.decode(), await self.reader.readexactly(length - 4)

    async def unit(self) -> list[tuple[str, bytes]]:
        """Everything up to ReadyForQuery, or up to the end of the connection."""
        found = []
        while not found or found[-1][0] != "Z":
            try:
                found.append(await self.message())
            except asyncio.IncompleteReadError:
                found.append(("", b""))
                break
        return found

    async def ask(self, *messages: Any) -> list[tuple[str, bytes]]:
        self.send(*messages)
        return await self.unit()

    async def query(self, text: str) -> list[tuple[str, bytes]]:
        return await self.ask(Query(text))

    async def at_end(self) -> bool:
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read(1) == b""


def kinds(messages: list[tuple[str, bytes]]) -> str:
    return "".join(kind for kind, _ in messages)


def rows(messages: list[tuple[str, bytes]]) -> list[tuple[bytes | None, ...]]:
    return [decode_data_row(payload) for kind, payload in messages if kind == "D"]


def error(messages: list[tuple[str, bytes]]) -> dict[str, str]:
    return next(ErrorResponse.decode(payload).fields for kind, payload in messages if kind == "E")


def status(messages: list[tuple[str, bytes]]) -> str:
    return messages[-1][1].decode()


def tags(messages: list[tuple[str, bytes]]) -> list[str]:
    return [payload[:-1].decode() for kind, payload in messages if kind == "C"]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class World:
    """One worker's services over one database, and its listening port."""

    def __init__(self, services: Services, scripted: Scripted, recorder: Kept, agent: Agent, dsn: str) -> None:
        self.services = services
        self.scripted = scripted
        self.recorder = recorder
        self.agent = agent
        self.dsn = dsn
        self.port = 0
        self.refreshed = 0
        self.sessions: dict[Session, asyncio.Task[None]] = {}
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return Client(reader, writer)

    async def client(self, **parameters: str) -> Client:
        client = await self.connect()
        await client.start(**parameters)
        return client

    def accept(self) -> ByteStream:
        stream = ByteStream()
        asyncio.get_running_loop().call_soon(self._serve, stream)
        return stream

    def _serve(self, stream: ByteStream) -> None:
        session = Session(stream, self.agent, self.services, "127.0.0.1:1")
        task = asyncio.create_task(session.run())
        self.sessions[session] = task
        task.add_done_callback(lambda _: self.sessions.pop(session))

    def direct(self, sql: str) -> list[tuple[Any, ...]]:
        """What is really in the database."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def statements(self) -> list[Event]:
        return [event for event in self.recorder.events if event.kind == "statement"]

    @property
    def in_use(self) -> int:
        """Connections that sessions hold."""
        return self.services.pools["bank"].counts.in_use


MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def make_world(
    pg18: Cluster, fresh_database: Callable[[Cluster], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeWorld]:
    made: list[tuple[World, asyncio.Server]] = []

    async def make(
        *,
        reads: str = "process",
        writes: str = "process",
        listener: dict[str, Any] | None = None,
        database: dict[str, Any] | None = None,
        not_after: dt.timedelta = dt.timedelta(days=1),
    ) -> World:
        name = fresh_database(pg18)
        upstream = Database(
            name="bank", host=pg18.host, port=pg18.port, database=name, role="postgres", tls="off", **(database or {})
        )
        audit = Audit(directory=tmp_path, signing_key=tmp_path / "k", reads=reads, writes=writes)  # type: ignore[arg-type]
        config = Config(
            listener=Listener(port=0, certificate=tmp_path / "c", key=tmp_path / "k", **(listener or {})),
            trust_domains=(),
            identities=(Identity(spiffe_id=SPIFFE_ID, database="bank"),),
            databases=(upstream,),
            policy=Policy(bundle=tmp_path / "b"),
            audit=audit,
            admin=Admin(),
            process=Process(),
        )
        key = Ed25519PrivateKey.generate()
        recorder = Kept(Spool(tmp_path / f"audit{len(made)}", 0, key), audit)
        recorder.events = []
        scripted = Scripted()
        agent = Registry(config.identities).agent(
            parse_spiffe_id(SPIFFE_ID), cert_sha256="ab", serial="1", not_after=dt.datetime.now(dt.UTC) + not_after
        )
        pool = UpstreamPool(upstream)

        async def refresh(database: str) -> None:
            world.refreshed += 1
            scripted.generation += 1

        services = Services(
            config=config,
            worker=1,
            workers=1,
            enforcement={"bank": scripted},  # type: ignore[dict-item]
            pools={"bank": pool},
            recorder=recorder,
            metrics=Metrics(),
            cancels=CancelTable(1),
            server_version=lambda database: "18.6",
            refresh=refresh,
        )
        world = World(services, scripted, recorder, agent, pg18.dsn(name))
        # Scripted plans are not qualified, and upstream's search_path is pinned.
        monkeypatch.setitem(PINNED, "search_path", "public")
        server = await asyncio.get_running_loop().create_server(world.accept, "127.0.0.1", 0)
        world.port = server.sockets[0].getsockname()[1]
        world.direct("CREATE TABLE t (id int PRIMARY KEY, name text CHECK (name <> 'bad'))")
        world.direct("INSERT INTO t SELECT n, 'name' || n FROM generate_series(1, 1000) n")
        made.append((world, server))
        return world

    yield make
    for world, server in made:
        for writer in world.writers:
            writer.close()
        server.close()
        if world.sessions:
            _, late = await asyncio.wait(tuple(world.sessions.values()), timeout=DEADLINE)
            assert not late
        await world.services.pools["bank"].close()
        await world.recorder.close()


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    return await make_world()


# startup


async def test_startup_reports_and_gives_a_key(world: World) -> None:
    client = await world.connect()
    messages = await client.start(TimeZone="Asia/Tokyo", database="postgres", application_name="app")
    assert kinds(messages).startswith("RS")
    assert kinds(messages).endswith("KZ")
    assert client.parameters["TimeZone"] == "Asia/Tokyo"
    assert client.parameters["server_version"] == "18.6"
    assert client.parameters["is_superuser"] == "off"
    assert client.parameters["session_authorization"] == "ns/test/sa/agent"
    assert client.key[0] >> 23 & 0x7F == 1
    assert len(client.key[1]) == 4
    assert [event.name for event in world.recorder.events] == ["connect"]
    assert world.recorder.events[0].application == "app"
    assert rows(await client.query("SELECT current_setting('TimeZone')")) == [(b"Asia/Tokyo",)]


async def test_protocol_3_2_gets_a_long_key_and_newer_ones_are_negotiated(world: World) -> None:
    client = await world.connect()
    await client.start(minor=2)
    assert len(client.key[1]) == 32
    newer = await world.connect()
    messages = await newer.start(minor=9999, **{"_pq_.x": "1"})
    assert messages[0] == ("v", struct.pack("!ii", 0x0003_0002, 1) + b"_pq_.x\0")
    assert len(newer.key[1]) == 32


async def test_a_setting_that_is_not_allowed_ends_the_startup(world: World) -> None:
    client = await world.connect()
    messages = await client.start(search_path="evil")
    assert error(messages)["S"] == "FATAL"
    assert "search_path" in error(messages)["M"]
    assert "[control ID-04" in error(messages)["M"]
    assert await client.at_end()
    assert world.recorder.events[-1].name == "refused"


async def test_no_startup_message_in_time(make_world: MakeWorld) -> None:
    world = await make_world(listener={"handshake_timeout": 0.05})
    client = await world.connect()
    client.writer.write(b"\0\0")
    assert error(await client.unit())["M"].endswith("WP-04, decision " + world.recorder.events[-1].verdict.id + "]")  # type: ignore[union-attr]


# simple protocol


async def test_simple_query(world: World) -> None:
    client = await world.client()
    messages = await client.query("SELECT id, name FROM t WHERE id < 3 ORDER BY id")
    assert kinds(messages) == "TDDCZ"
    assert rows(messages) == [(b"1", b"name1"), (b"2", b"name2")]
    assert status(messages) == "I"
    (event,) = world.statements()
    assert event.outcome is not None
    assert (event.outcome.status, event.outcome.tag, event.outcome.rows) == ("ok", "SELECT 2", 2)
    assert event.stages["total"] >= event.stages["upstream"] > 0


async def test_several_statements_are_one_transaction(world: World) -> None:
    client = await world.client()
    messages = await client.query("SELECT 1; SELECT 2")
    assert kinds(messages) == "TDCTDCZ"
    messages = await client.query("INSERT INTO t VALUES (2000, 'x'); INSERT INTO t VALUES (1, 'double')")
    assert error(messages)["C"] == "23505"
    assert status(messages) == "I"
    assert world.direct("SELECT count(*) FROM t WHERE id = 2000") == [(0,)]


async def test_transactions_and_settings_within_one_text(world: World) -> None:
    client = await world.client()
    messages = await client.query("BEGIN; INSERT INTO t VALUES (7001, 'x'); SELECT 1/(id - 7001) FROM t; COMMIT")
    assert tags(messages) == ["BEGIN", "INSERT 0 1"]
    assert status(messages) == "E"
    messages = await client.query("ROLLBACK; SELECT 5")
    assert rows(messages) == [(b"5",)]
    assert status(messages) == "I"
    messages = await client.query(
        "BEGIN; INSERT INTO t VALUES (7001, 'x'); COMMIT; BEGIN; INSERT INTO t VALUES (7002, 'y')"
    )
    assert tags(messages) == ["BEGIN", "INSERT 0 1", "COMMIT", "BEGIN", "INSERT 0 1"]
    assert status(messages) == "T"
    assert kinds(await client.query("COMMIT; BEGIN")) == "CCZ"
    assert world.direct("SELECT count(*) FROM t WHERE id > 7000") == [(2,)]
    messages = await client.query("ROLLBACK; SET TimeZone = 'Asia/Tokyo'; SELECT current_setting('TimeZone') || ''")
    assert rows(messages) == [(b"Asia/Tokyo",)]
    messages = await client.query("INSERT INTO t VALUES (7003, 'z'); BEGIN; SELECT 1; ROLLBACK")
    assert tags(messages) == ["INSERT 0 1", "BEGIN", "SELECT 1", "ROLLBACK"]
    assert world.direct("SELECT count(*) FROM t WHERE id = 7003") == [(0,)]


async def test_an_unfinished_unit_after_its_commit_is_not_run_twice(world: World) -> None:
    """A plan that went stale behind a COMMIT must not repeat what was committed."""
    client = await world.client()
    await client.ask(Parse("s", "SELECT * FROM t WHERE id = 1"), Bind("", "s"), Execute(""), Sync())
    world.direct("ALTER TABLE t ADD COLUMN more int")
    unit = "BEGIN; INSERT INTO t VALUES (7004, 'x'); COMMIT; SELECT * FROM t WHERE id = 1"
    messages = await client.query(unit)
    assert world.direct("SELECT count(*) FROM t WHERE id = 7004") == [(1,)]
    assert tags(messages)[:3] == ["BEGIN", "INSERT 0 1", "COMMIT"]


async def test_an_empty_text(world: World) -> None:
    client = await world.client()
    assert kinds(await client.query("")) == "IZ"
    assert kinds(await client.query(" ; ")) == "IZ"
    assert kinds(await client.ask(Parse("", ""), Bind("", ""), Describe("P", ""), Execute(""), Sync())) == "12nIZ"


async def test_a_server_error_is_scrubbed_and_recorded(world: World) -> None:
    client = await world.client()
    messages = await client.query("INSERT INTO t VALUES (1, 'secret value')")
    fields = error(messages)
    assert fields["C"] == "23505"
    assert "D" not in fields
    assert "(1)" not in str(fields)
    (event,) = world.statements()
    assert event.outcome is not None
    assert event.outcome.error == (
        'M=duplicate key value violates unique constraint "t_pkey"; s=public; t=t; n=t_pkey; R=_bt_check_unique'
    )
    assert event.outcome.status == "error"
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


async def test_a_server_error_shows_where_in_the_client_s_own_text(world: World) -> None:
    client = await world.client()
    text = "SELECT 'ä', 'x'::int"
    assert error(await client.query(text))["P"] == "13"
    assert error(await client.ask(Parse("", text), Bind("", ""), Execute(""), Sync()))["P"] == "13"
    await client.query("BEGIN")
    assert error(await client.query(f"DECLARE c CURSOR FOR {text}"))["P"] == "34"
    await client.query("ROLLBACK")
    assert error(await client.query(f"PREPARE p AS {text}"))["P"] == "26"
    late = "SELECT 'ä', name::int FROM t WHERE id = 1"
    assert tags(await client.query(f"PREPARE p AS {late}")) == ["PREPARE"]
    assert "P" not in error(await client.query("EXECUTE p"))  # its text was sent at another time
    rewritten = "SELECT 'ä', 'x'::int WHERE id = 5"
    world.scripted.plans[rewritten] = {"sql": "SELECT 'ä', 'y'::int", "name": ""}
    assert "P" not in error(await client.query(rewritten))  # it lies in what the client did not write


async def test_a_refusal_is_told_recorded_and_leaves_the_connection_usable(world: World) -> None:
    client = await world.client()
    world.scripted.refused["SELECT * FROM secret"] = Refusal("AC-03", "you may not read it")
    messages = await client.query("SELECT * FROM secret")
    (event,) = world.statements()
    assert event.verdict is not None
    assert error(messages)["M"] == f"you may not read it [control AC-03, decision {event.verdict.id}]"
    assert error(messages)["H"]
    assert event.outcome is not None
    assert event.outcome.status == "denied"
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


# extended protocol


async def test_extended_protocol_with_both_formats(world: World) -> None:
    client = await world.client()
    messages = await client.ask(
        Parse("s", "SELECT id, name FROM t WHERE id = $1", (23,)),
        Describe("S", "s"),
        Bind("", "s", (1,), (struct.pack("!i", 7),), (1, 0)),
        Describe("P", ""),
        Execute(""),
        Sync(),
    )
    assert kinds(messages) == "1tT2TDCZ"
    assert rows(messages) == [(struct.pack("!i", 7), b"name7")]
    messages = await client.ask(Bind("", "s", (), (b"8",)), Execute(""), Sync())
    assert kinds(messages) == "2DCZ"
    assert rows(messages) == [(b"8", b"name8")]
    assert kinds(await client.ask(Close("S", "s"), Sync())) == "3Z"
    assert error(await client.ask(Bind("", "s"), Sync()))["C"] == "26000"
    types = [value.type for value in world.statements()[0].values]
    assert types == ["int4"]
    assert "name" not in str(world.statements()[0].values)


async def test_flush_answers_before_sync_and_frees_the_connection(world: World) -> None:
    client = await world.client()
    client.send(Parse("a", "SELECT $1::int", ()), Describe("S", "a"), Flush())
    assert [(await client.message())[0] for _ in range(3)] == ["1", "t", "T"]
    assert world.services.pools["bank"].counts.in_use == 0
    client.send(Bind("", "a", (), (b"5",)), Execute(""), Flush())
    assert [(await client.message())[0] for _ in range(3)] == ["2", "D", "C"]
    assert world.services.pools["bank"].counts.in_use == 1
    assert kinds(await client.ask(Sync())) == "Z"
    assert world.services.pools["bank"].counts.in_use == 0
    intent, outcome = world.statements()
    assert intent.outcome is not None
    assert intent.outcome.status == "intent"
    assert outcome.intent == intent.id


@pytest.mark.parametrize("text", ["SELECT * FROM secret", "SELECT nothing"])
async def test_an_error_is_told_at_flush_without_waiting_for_sync(world: World, text: str) -> None:
    client = await world.client()
    world.scripted.refused["SELECT * FROM secret"] = Refusal("AC-03", "no")
    client.send(Parse("", text), Describe("S", ""), Flush())
    assert (await client.message())[0] == "E"
    assert kinds(await client.ask(Sync())) == "Z"


async def test_pipeline_of_any_depth(world: World) -> None:
    client = await world.client()
    one = b"".join(
        message.encode() for message in (Parse("", "SELECT $1::int"), Bind("", "", (), (b"1",)), Execute(""), Sync())
    )
    client.writer.write(one * 300)
    for _ in range(300):
        assert kinds(await client.unit()) == "12DCZ"
    client.send(*[Query("SELECT 1")] * 50)
    for _ in range(50):
        assert kinds(await client.unit()) == "TDCZ"


async def test_an_error_skips_to_sync_and_undoes_the_unit(world: World) -> None:
    client = await world.client()
    messages = await client.ask(
        Parse("", "INSERT INTO t VALUES (3000, 'x')"),
        Bind("", ""),
        Execute(""),
        Parse("", "SELECT 1/0"),
        Bind("", ""),
        Execute(""),
        Parse("late", "SELECT 1"),
        Query("SELECT 2"),
        Sync(),
    )
    assert kinds(messages) == "12C1EZ"
    assert error(messages)["C"] == "22012"
    assert status(messages) == "I"
    assert error(await client.ask(Bind("", "late"), Sync()))["C"] == "26000"
    assert world.direct("SELECT count(*) FROM t WHERE id = 3000") == [(0,)]


async def test_a_refusal_behind_a_write_undoes_the_write(world: World) -> None:
    client = await world.client()
    world.scripted.refused["SELECT * FROM secret"] = Refusal("AC-03", "no")
    messages = await client.ask(
        Parse("", "INSERT INTO t VALUES (3001, 'x')"),
        Bind("", ""),
        Execute(""),
        Parse("", "SELECT * FROM secret"),
        Bind("", ""),
        Execute(""),
        Sync(),
    )
    assert kinds(messages) == "12CEZ"
    assert status(messages) == "I"
    assert world.direct("SELECT count(*) FROM t WHERE id = 3001") == [(0,)]


async def test_portals_are_suspended_and_resumed_within_a_transaction(world: World) -> None:
    client = await world.client()
    messages = await client.ask(
        Parse("", "SELECT id FROM t ORDER BY id"), Bind("p", ""), Execute("p", 2), Execute("p", 1), Sync()
    )
    assert kinds(messages) == "12DDsDsZ"
    assert error(await client.ask(Execute("p", 2), Sync()))["C"] == "34000"
    await client.query("BEGIN")
    assert kinds(await client.ask(Parse("", "SELECT id FROM t"), Bind("p", ""), Execute("p", 2), Sync())) == "12DDsZ"
    messages = await client.ask(Execute("p", 2), Sync())
    assert rows(messages) == [(b"3",), (b"4",)]
    assert kinds(await client.ask(Close("P", "p"), Sync())) == "3Z"
    assert error(await client.ask(Execute("p"), Sync()))["C"] == "34000"
    assert tags(await client.query("ROLLBACK")) == ["ROLLBACK"]


async def test_what_returns_no_rows_is_described_so(world: World) -> None:
    client = await world.client()
    insert = (Parse("i", "INSERT INTO t VALUES ($1, $2)", (23, 25)), Describe("S", "i"))
    messages = await client.ask(*insert, Bind("", "i", (), (b"3001", None)), Describe("P", ""), Execute(""), Sync())
    assert kinds(messages) == "1tn2nCZ"
    assert messages[1][1] == struct.pack("!hii", 2, 23, 25)
    for text in ("BEGIN", "SET TimeZone = 'UTC'", "ROLLBACK", "", "DISCARD ALL"):
        messages = await client.ask(Parse("", text), Describe("S", ""), Bind("", ""), Describe("P", ""), Sync())
        assert kinds(messages) == "1tn2nZ", text


async def test_a_portal_suspends_over_several_units_with_its_formats(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    client.send(
        Parse("s", "SELECT id, id FROM t ORDER BY id"), Bind("p", "s", (), (), (1, 0)), Execute("p", 1), Flush()
    )
    assert [(await client.message())[0] for _ in range(4)] == ["1", "2", "D", "s"]
    messages = await client.ask(Describe("P", "p"), Execute("p", 2), Execute("p", 997), Sync())
    assert kinds(messages) == "TDDs" + "D" * 997 + "sZ"
    assert rows(messages)[0] == (struct.pack("!i", 2), b"2")
    messages = await client.ask(Execute("p"), Sync())
    assert kinds(messages) == "CZ"
    assert status(messages) == "T"


async def test_an_error_in_a_suspended_portal_ends_it(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    text = "SELECT 1/(4 - id) FROM t ORDER BY id"
    assert kinds(await client.ask(Parse("", text), Bind("p", ""), Execute("p", 3), Sync())) == "12DDDsZ"
    messages = await client.ask(Execute("p", 3), Execute("p", 3), Query("SELECT 1"), Sync())
    assert kinds(messages)[0] == "E"
    assert error(messages)["C"] == "22012"


async def test_unknown_names_and_wrong_counts(world: World) -> None:
    client = await world.client()
    assert error(await client.ask(Bind("", "none"), Sync()))["C"] == "26000"
    assert error(await client.ask(Describe("S", "none"), Sync()))["C"] == "26000"
    assert error(await client.ask(Execute("none"), Sync()))["C"] == "34000"
    assert error(await client.ask(Describe("P", "none"), Sync()))["C"] == "34000"
    assert kinds(await client.ask(Parse("s", "SELECT $1::int"), Sync())) == "1Z"
    assert error(await client.ask(Parse("s", "SELECT 1"), Sync()))["C"] == "42P05"
    assert error(await client.ask(Bind("", "s"), Sync()))["C"] == "08P01"
    assert error(await client.ask(Bind("", "s", (), (b"1", b"2")), Sync()))["C"] == "08P01"
    messages = await client.ask(Bind("p", "s", (), (b"1",)), Bind("p", "s", (), (b"1",)), Sync())
    assert error(messages)["C"] == "42P03"
    assert kinds(await client.ask(Bind("", "s", (), (b"1",)), Execute(""), Sync())) == "2DCZ"


# transactions


async def test_an_empty_transaction_never_reaches_the_database(world: World) -> None:
    client = await world.client()
    assert status(await client.query("BEGIN")) == "T"
    assert tags(await client.query("COMMIT")) == ["COMMIT"]
    await client.query("BEGIN")
    assert tags(await client.query("ROLLBACK")) == ["ROLLBACK"]
    assert world.services.pools["bank"].counts.opened == 0


async def test_what_the_proxy_answers_itself_is_recorded_too(world: World) -> None:
    client = await world.client()
    for text in ("SET TimeZone = 'Asia/Tokyo'", "SHOW TimeZone", "BEGIN", "ROLLBACK", "SELECT version()"):
        await client.query(text)
    kept = [(event.outcome.status, event.outcome.tag) for event in world.statements() if event.outcome is not None]
    assert kept == [("ok", tag) for tag in ("SET", "SHOW", "BEGIN", "ROLLBACK", "SELECT 1")]
    assert world.statements()[-1].template == "SELECT version()"


async def test_commit_and_rollback(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN ISOLATION LEVEL SERIALIZABLE")
    assert status(await client.query("INSERT INTO t VALUES (4000, 'x')")) == "T"
    assert rows(await client.query("SELECT current_setting('transaction_isolation')")) == [(b"serializable",)]
    assert rows(await client.query("SHOW transaction_isolation")) == [(b"serializable",)]
    assert world.direct("SELECT count(*) FROM t WHERE id = 4000") == [(0,)]
    messages = await client.query("COMMIT")
    assert (tags(messages), status(messages)) == (["COMMIT"], "I")
    assert world.direct("SELECT count(*) FROM t WHERE id = 4000") == [(1,)]
    await client.query("BEGIN")
    await client.query("DELETE FROM t")
    assert tags(await client.query("ROLLBACK")) == ["ROLLBACK"]
    assert world.direct("SELECT count(*) FROM t") == [(1001,)]
    assert world.services.pools["bank"].counts.opened == 1


async def test_begin_in_the_same_unit_as_its_first_statement(world: World) -> None:
    client = await world.client()
    messages = await client.ask(
        Parse("", "BEGIN"), Bind("", ""), Describe("P", ""), Execute(""),
        Parse("", "SELECT 1"), Bind("", ""), Execute(""), Sync(),
    )  # fmt: skip
    assert (kinds(messages), status(messages)) == ("12nC12DCZ", "T")
    messages = await client.ask(
        Parse("", "SELECT 2"), Bind("", ""), Execute(""), Parse("", "COMMIT"), Bind("", ""), Execute(""), Sync()
    )
    assert (kinds(messages), tags(messages), status(messages)) == ("12DC12CZ", ["SELECT 1", "COMMIT"], "I")


async def test_a_failed_transaction_refuses_everything_but_its_end(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    assert status(await client.query("SELECT 1/0")) == "E"
    assert error(await client.query("SELECT 1"))["C"] == "25P02"
    assert error(await client.ask(Parse("", "SELECT 1"), Sync()))["C"] == "25P02"
    assert error(await client.query("SHOW TimeZone"))["C"] == "25P02"
    messages = await client.query("COMMIT")
    assert (tags(messages), status(messages)) == (["ROLLBACK"], "I")


@pytest.mark.parametrize("first", [True, False])
async def test_a_refusal_fails_the_transaction_as_an_error_does(world: World, first: bool) -> None:
    client = await world.client()
    world.scripted.refused["SELECT * FROM secret"] = Refusal("AC-03", "no")
    await client.query("BEGIN")
    if not first:
        await client.query("INSERT INTO t VALUES (5000, 'x')")
    assert status(await client.query("SELECT * FROM secret")) == "E"
    assert error(await client.query("SELECT 1"))["C"] == "25P02"
    messages = await client.query("COMMIT")
    assert (tags(messages), status(messages)) == (["ROLLBACK"], "I")
    assert world.direct("SELECT count(*) FROM t WHERE id = 5000") == [(0,)]
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


async def test_savepoints(world: World) -> None:
    client = await world.client()
    world.scripted.refused["SELECT * FROM secret"] = Refusal("AC-03", "no")
    assert error(await client.query("SAVEPOINT a"))["C"] == "25P01"
    await client.query("BEGIN")
    assert tags(await client.query("SAVEPOINT a")) == ["SAVEPOINT"]
    await client.query("INSERT INTO t VALUES (6000, 'x')")
    assert status(await client.query("SELECT * FROM secret")) == "E"
    messages = await client.query("ROLLBACK TO SAVEPOINT a")
    assert (tags(messages), status(messages)) == (["ROLLBACK"], "T")
    await client.query("INSERT INTO t VALUES (6001, 'x')")
    assert tags(await client.query("RELEASE SAVEPOINT a")) == ["RELEASE"]
    assert tags(await client.query("COMMIT")) == ["COMMIT"]
    assert world.direct("SELECT id FROM t WHERE id >= 6000") == [(6001,)]


async def test_warnings_as_postgresql_gives_them(world: World) -> None:
    client = await world.client()
    assert kinds(await client.query("COMMIT")) == "NCZ"
    await client.query("BEGIN")
    messages = await client.query("BEGIN")
    assert (kinds(messages), status(messages)) == ("NCZ", "T")


# settings


async def test_set_show_and_reset(world: World) -> None:
    client = await world.client()
    messages = await client.query("SET TimeZone = 'Asia/Tokyo'")
    assert kinds(messages) == "SCZ"
    assert rows(await client.query("SHOW timezone")) == [(b"Asia/Tokyo",)]
    assert rows(await client.query("SELECT current_setting('TimeZone')")) == [(b"Asia/Tokyo",)]
    assert kinds(await client.query("RESET timezone")) == "SCZ"
    assert rows(await client.query("SELECT current_setting('TimeZone')")) == [(b"UTC",)]
    await client.query("SET DateStyle = German")
    assert kinds(await client.query("RESET ALL")) == "SCZ"
    assert tags(await client.query("DISCARD ALL")) == ["DISCARD ALL"]
    assert error(await client.query("SET search_path = evil"))["C"] == "42501"
    assert error(await client.query("SHOW data_directory"))["C"] == "42704"
    assert error(await client.query("SET ROLE postgres"))["C"] == "42501"
    assert error(await client.query("SET SESSION AUTHORIZATION postgres"))["C"] == "42501"
    assert tags(await client.query("SET standard_conforming_strings = on")) == ["SET"]
    assert error(await client.query("SET standard_conforming_strings = off"))["C"] == "42501"
    assert tags(await client.query("SET extra_float_digits = 3")) == ["SET"]


async def test_a_zone_that_the_server_does_not_know_is_told_and_can_be_corrected(world: World) -> None:
    client = await world.client()
    await client.query("SET TimeZone = 'No/Where'")
    assert error(await client.query("SELECT 1"))["C"] == "22023"
    await client.query("SET TimeZone = 'UTC'")
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


async def test_set_within_a_transaction_is_undone_with_it(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    await client.query("SELECT 1")
    await client.query("SET TimeZone = 'Asia/Tokyo'")
    assert rows(await client.query("SELECT current_setting('TimeZone')")) == [(b"Asia/Tokyo",)]
    assert kinds(await client.query("SET LOCAL IntervalStyle = iso_8601")) == "SCZ"
    for text in ("SELECT current_setting('IntervalStyle')", "SELECT current_setting('IntervalStyle') || ''"):
        assert rows(await client.query(text)) == [(b"iso_8601",)]
    assert kinds(await client.query("ROLLBACK")) == "SCSZ"
    for end in ("", " || ''"):  # asked of the proxy, and of the database
        text = f"SELECT current_setting('TimeZone'){end}, current_setting('IntervalStyle'){end}"
        assert rows(await client.query(text)) == [(b"UTC", b"postgres")]


async def test_a_savepoint_keeps_the_settings_of_its_time(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    await client.query("SET TimeZone = 'Asia/Tokyo'")
    await client.query("SAVEPOINT a")
    await client.query("SET TimeZone = 'Europe/Paris'")
    await client.query("SET LOCAL IntervalStyle = iso_8601")
    assert kinds(await client.query("ROLLBACK TO a")) == "CSSZ"
    for end in ("", " || ''"):
        text = f"SELECT current_setting('TimeZone'){end}, current_setting('IntervalStyle'){end}"
        assert rows(await client.query(text)) == [(b"Asia/Tokyo", b"postgres")]
    await client.query("COMMIT")
    assert rows(await client.query("SHOW TimeZone")) == [(b"Asia/Tokyo",)]


async def test_settings_do_not_reach_another_session(world: World) -> None:
    first, second = await world.client(), await world.client()
    await first.query("SET TimeZone = 'Asia/Tokyo'")
    await first.query("SELECT 1")
    assert rows(await second.query("SELECT current_setting('TimeZone') || ''")) == [(b"UTC",)]


async def test_session_characteristics(world: World) -> None:
    client = await world.client()
    await client.query("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY")
    assert rows(await client.query("SHOW default_transaction_isolation")) == [(b"serializable",)]
    assert error(await client.query("INSERT INTO t VALUES (1001, 'x')"))["C"] == "25006"


async def test_the_reset_of_drivers(world: World) -> None:
    client = await world.client()
    text = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"
    messages = await client.query(text)
    assert tags(messages) == ["SELECT 1", "CLOSE CURSOR ALL", "UNLISTEN", "RESET"]
    assert world.services.pools["bank"].counts.opened == 0


async def test_trace_by_comment_setting_and_startup(world: World) -> None:
    client = await world.client(**{"grille.trace": "prompt_id='p0'"})
    await client.query("SELECT 1")
    await client.query("SET grille.trace = 'prompt_id=''p1'',tool=''t'''")
    await client.query("SELECT 1")
    await client.query("SELECT 1 /*prompt_id='p2',handler='h'*/")
    chains = [event.chain for event in world.statements() if event.template == "SELECT 1"]
    assert [(chain.source, chain.prompt_id) for chain in chains] == [
        ("startup", "p0"),
        ("setting", "p1"),
        ("comment", "p2"),
    ]
    assert chains[2].handler == "h"


# what is not carried


@pytest.mark.parametrize(
    "text",
    [
        "COPY t FROM '/tmp/t'", "COPY t TO '/tmp/t'", "COPY t FROM PROGRAM 'true'", "LISTEN x",
        "NOTIFY x", "EXPLAIN SELECT 1", "PREPARE TRANSACTION 'x'", "COMMIT PREPARED 'x'", "ROLLBACK PREPARED 'x'",
        "COMMIT AND CHAIN", "SET CONSTRAINTS t_name_check DEFERRED",
    ],
)  # fmt: skip
async def test_what_is_not_carried_is_refused_and_wedges_nothing(world: World, text: str) -> None:
    client = await world.client()
    assert error(await client.query(text))["C"] == "0A000"
    assert error(await client.ask(Parse("", text), Bind("", ""), Execute(""), Sync()))["C"] == "0A000"
    assert rows(await client.query("SELECT 1")) == [(b"1",)]
    await client.query("BEGIN")
    await client.query("SELECT 1")
    refused = await client.query(text)
    assert error(refused)["C"] == "0A000"
    assert status(refused) == "E"
    assert tags(await client.query("ROLLBACK")) == ["ROLLBACK"]
    assert rows(await client.query("SELECT 1")) == [(b"1",)]
    assert world.direct("SELECT gid FROM pg_prepared_xacts") == []


@pytest.mark.parametrize(
    "text",
    [
        "SET ROLE postgres", "SET ROLE NONE", "SET SESSION AUTHORIZATION postgres", "RESET SESSION AUTHORIZATION",
        "SELECT set_config('role', 'postgres', false)", "CREATE TEMP TABLE x (a int)", "SET row_security = off",
        "SET LOCAL client_min_messages = log",
        "CREATE TEMP TABLE x AS SELECT 1",
    ],
)  # fmt: skip
async def test_what_is_not_permitted_is_refused_and_wedges_nothing(world: World, text: str) -> None:
    client = await world.client()
    assert error(await client.query(text))["C"] == "42501"
    assert error(await client.ask(Parse("", text), Bind("", ""), Execute(""), Sync()))["C"] == "42501"
    assert kinds(await client.query(f"{text}; SELECT 2")) == "EZ"
    assert error(await client.query(f"INSERT INTO t VALUES (7000, 'x'); {text}; SELECT 2"))["C"] == "42501"
    assert world.direct("SELECT id FROM t WHERE id = 7000") == []
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


# prepared statements in SQL


async def test_prepare_execute_and_deallocate(world: World) -> None:
    client = await world.client()
    assert tags(await client.query("PREPARE p (int) AS SELECT id, name FROM t WHERE id = $1")) == ["PREPARE"]
    for number in (1, 2):
        messages = await client.query(f"EXECUTE p({number})")
        assert kinds(messages) == "TDCZ"
        assert rows(messages) == [(f"{number}".encode(), f"name{number}".encode())]
        assert tags(messages) == ["SELECT 1"]
    assert tags(await client.query("PREPARE w AS INSERT INTO t VALUES ($1, $2)")) == ["PREPARE"]
    assert tags(await client.query("EXECUTE w(2001, NULL); EXECUTE w(+2002, 'it''s')")) == ["INSERT 0 1"] * 2
    assert world.direct("SELECT * FROM t WHERE id > 2000 ORDER BY id") == [(2001, None), (2002, "it's")]
    assert error(await client.query("PREPARE p AS SELECT 1"))["C"] == "42P05"
    assert error(await client.query("EXECUTE p(1, 2)"))["C"] == "08P01"
    assert error(await client.query("EXECUTE p(1 + 1)"))["C"] == "0A000"
    assert tags(await client.query("DEALLOCATE p")) == ["DEALLOCATE"]
    assert error(await client.query("EXECUTE p(1)"))["C"] == "26000"
    assert error(await client.query("DEALLOCATE p"))["C"] == "26000"
    await client.ask(Parse("", "SELECT 6"), Sync())
    deallocate = (Parse("d", "DEALLOCATE ALL"), Bind("", "d"), Execute(""))
    messages = await client.ask(*deallocate, Bind("", ""), Execute(""), Sync())  # the unnamed one stays
    assert rows(messages) == [(b"6",)]
    assert tags(messages) == ["DEALLOCATE ALL", "SELECT 1"]
    assert error(await client.query("EXECUTE w(1, 'x')"))["C"] == "26000"
    shown = [(event.template, event.outcome.tag, len(event.values)) for event in world.statements() if event.outcome]
    assert ("INSERT INTO t VALUES ($1, $2)", "INSERT 0 1", 2) in shown


async def test_prepare_asks_the_database_what_it_thinks_of_the_statement(world: World) -> None:
    client = await world.client()
    wrong = "SELECT array_agg(name) = array_agg(id) FROM t"
    messages = await client.query(f"SELECT 1; PREPARE p AS {wrong}; SELECT 2")
    assert error(messages)["C"] == "42883"
    assert kinds(messages) == "TDCEZ"
    assert error(await client.query("EXECUTE p"))["C"] == "26000"
    (event,) = [event for event in world.statements() if event.template == wrong]
    assert event.outcome is not None
    assert (event.outcome.status, event.outcome.sqlstate) == ("error", "42883")
    await client.query("BEGIN")
    assert error(await client.query(f"PREPARE p AS {wrong}"))["C"] == "42883"
    assert error(await client.query("PREPARE p AS SELECT 1"))["C"] == "25P02"
    await client.query("ROLLBACK")
    assert tags(await client.query("PREPARE p AS SELECT 3; EXECUTE p")) == ["PREPARE", "SELECT 1"]


async def test_sql_and_protocol_share_the_names_of_statements(world: World) -> None:
    client = await world.client()
    await client.query("PREPARE s (int) AS SELECT name FROM t WHERE id = $1")
    messages = await client.ask(Describe("S", "s"), Bind("", "s", (0,), (b"5",)), Execute(""), Sync())
    assert kinds(messages) == "tT2DCZ"
    assert rows(messages) == [(b"name5",)]
    await client.ask(Parse("q", "SELECT name FROM t WHERE id = $1", (23,)), Sync())
    assert rows(await client.query("EXECUTE q(6)")) == [(b"name6",)]
    assert error(await client.query("PREPARE q AS SELECT 1"))["C"] == "42P05"
    assert error(await client.ask(Parse("s", "SELECT 1"), Sync()))["C"] == "42P05"
    await client.ask(Close("S", "s"), Sync())
    assert error(await client.query("EXECUTE s(1)"))["C"] == "26000"


async def test_execute_in_the_extended_protocol(world: World) -> None:
    client = await world.client()
    unit = (Parse("", "PREPARE p AS SELECT id FROM t WHERE id < $1 ORDER BY id"), Bind("", ""), Execute(""))
    again = (Parse("e", "EXECUTE p('4')"), Describe("S", "e"), Bind("", "e", (), (), (1,)), Describe("P", ""))
    messages = await client.ask(*unit, *again, Execute("", 2), Execute("", 2), Sync())
    assert kinds(messages) == "12C1tT2TDDsDCZ"
    assert rows(messages) == [(b"\0\0\0\1",), (b"\0\0\0\2",), (b"\0\0\0\3",)]
    assert messages[4][1] == b"\0\0"
    assert kinds(await client.ask(Parse("", "EXECUTE nobody"), Describe("S", ""), Sync())) == "1tnZ"
    assert error(await client.ask(Bind("", ""), Sync()))["C"] == "26000"


async def test_a_statement_prepared_in_sql_follows_the_policy(world: World) -> None:
    client = await world.client()
    await client.query("PREPARE p AS SELECT name FROM t WHERE id = 1")
    world.scripted.refused["SELECT name FROM t WHERE id = 1"] = Refusal("AC-01", "no longer")
    world.scripted.generation += 1
    assert error(await client.query("EXECUTE p"))["C"] == "42501"


async def test_statements_behind_an_error_do_nothing_to_the_session_either(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    await client.query("SAVEPOINT a")
    messages = await client.query("ROLLBACK TO missing; SET TimeZone = 'Asia/Tokyo'; PREPARE p AS SELECT 1")
    assert kinds(messages) == "EZ"
    await client.query("ROLLBACK")
    assert error(await client.query("EXECUTE p"))["C"] == "26000"
    assert rows(await client.query("SHOW TimeZone")) == [(b"UTC",)]


# cursors


@pytest.fixture
async def reader(world: World) -> Client:
    """In a transaction with a cursor over ten rows."""
    client = await world.client()
    await client.query("BEGIN")
    messages = await client.query("DECLARE c CURSOR FOR SELECT id FROM t WHERE id <= 10 ORDER BY id")
    assert kinds(messages) == "CZ"
    assert tags(messages) == ["DECLARE CURSOR"]
    return client


def numbers(messages: list[tuple[str, bytes]]) -> list[int]:
    return [int(row[0] or b"") for row in rows(messages)]


async def test_fetch_and_move(reader: Client) -> None:
    for text, tag, expected in [
        ("FETCH c", "FETCH 1", [1]),
        ("FETCH NEXT FROM c", "FETCH 1", [2]),
        ("FETCH FORWARD 2 FROM c", "FETCH 2", [3, 4]),
        ("MOVE 2 IN c", "MOVE 2", []),
        ("FETCH 2 FROM c", "FETCH 2", [7, 8]),
        ("FETCH ALL FROM c", "FETCH 2", [9, 10]),
        ("FETCH FORWARD ALL IN c", "FETCH 0", []),
        ("MOVE ALL FROM c", "MOVE 0", []),
    ]:
        messages = await reader.query(text)
        assert kinds(messages) == ("" if tag.startswith("MOVE") else "T") + "D" * len(expected) + "CZ", text
        assert (tags(messages), numbers(messages)) == ([tag], expected), text
    assert tags(await reader.query("CLOSE c")) == ["CLOSE CURSOR"]
    assert error(await reader.query("FETCH c"))["C"] == "34000"


async def test_a_cursor_that_scrolls(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    await client.query("DECLARE c SCROLL CURSOR FOR SELECT id FROM t WHERE id <= 10 ORDER BY id")
    for text, expected in [
        ("FETCH LAST c", [10]), ("FETCH PRIOR c", [9]), ("FETCH BACKWARD 2 c", [8, 7]), ("FETCH FIRST c", [1]),
        ("FETCH ABSOLUTE 5 c", [5]), ("FETCH RELATIVE -2 c", [3]), ("FETCH -2 c", [2, 1]), ("FETCH BACKWARD ALL c", []),
    ]:  # fmt: skip
        assert numbers(await client.query(text)) == expected, text
    await client.query("DECLARE d NO SCROLL CURSOR FOR SELECT 1")
    assert error(await client.query("FETCH PRIOR d"))["C"] == "55000"


async def test_a_cursor_in_the_extended_protocol(world: World) -> None:
    client = await world.client()
    text = "DECLARE c CURSOR FOR SELECT id FROM t WHERE id > $1 ORDER BY id"
    declare = (Parse("d", text, (23,)), Describe("S", "d"), Bind("", "d", (0,), (b"5",)), Describe("P", ""))
    messages = await client.ask(Parse("b", "BEGIN"), Bind("", "b"), Execute(""), *declare, Execute(""), Sync())
    assert kinds(messages) == "12C1tn2nCZ"
    assert messages[4][1] == b"\0\1\0\0\0\x17"
    assert tags(messages) == ["BEGIN", "DECLARE CURSOR"]
    fetch = (Parse("f", "FETCH 2 FROM c"), Describe("S", "f"), Bind("", "f", (), (), (1,)), Describe("P", ""))
    messages = await client.ask(*fetch, Execute(""), Bind("", "f"), Execute(""), Sync())
    assert kinds(messages) == "1tT2TDDC2DDCZ"
    assert rows(messages) == [(b"\0\0\0\6",), (b"\0\0\0\7",), (b"8",), (b"9",)]
    assert tags(messages) == ["FETCH 2", "FETCH 2"]
    await client.query("DECLARE wide CURSOR FOR SELECT id, name FROM t")
    for name, columns in (("c", 1), ("wide", 2)):  # the client uses one name again, and must not get the other's answer
        messages = await client.ask(Parse("g", f"FETCH 1 FROM {name}"), Describe("S", "g"), Close("S", "g"), Sync())
        assert kinds(messages) == "1tT3Z"
        assert messages[2][1][:2] == struct.pack("!h", columns)
    # A cursor is a portal, as psycopg expects when it describes one.
    messages = await client.ask(Describe("P", "c"), Execute("c", 1), Close("P", "c"), Sync())
    assert kinds(messages) == "TDs3Z"
    assert numbers(messages) == [10]
    assert error(await client.ask(Bind("", "f"), Sync()))["C"] == "34000"


async def test_a_binary_cursor(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    await client.query("DECLARE c BINARY CURSOR FOR SELECT id FROM t WHERE id = 7")
    messages = await client.query("FETCH ALL c")
    assert rows(messages) == [(b"\0\0\0\7",)]
    assert messages[0][1].endswith(b"\0\1")


async def test_names_and_places_of_cursors(world: World, reader: Client) -> None:
    assert error(await reader.query("DECLARE c CURSOR FOR SELECT 1"))["C"] == "42P03"
    await reader.query("ROLLBACK")
    assert error(await reader.query("FETCH c"))["C"] == "34000"
    assert error(await reader.query("CLOSE c"))["C"] == "34000"
    outside = error(await reader.query("DECLARE c CURSOR FOR SELECT 1"))
    assert outside["C"] == "25P01"
    assert "control WP-01" in outside["M"]
    assert status(await reader.query("CLOSE ALL")) == "I"
    await reader.query("BEGIN")
    await reader.query("DECLARE c CURSOR FOR SELECT 1")
    messages = await reader.query("CLOSE ALL")
    assert tags(messages) == ["CLOSE CURSOR ALL"]
    assert rows(await reader.query("SELECT name FROM pg_cursors WHERE name LIKE 'grille%'")) == []
    await reader.query("DECLARE c CURSOR FOR SELECT 2")
    assert numbers(await reader.query("FETCH c")) == [2]
    assert tags(await reader.query("COMMIT; BEGIN; DECLARE c CURSOR FOR SELECT 3; FETCH c; COMMIT"))[3] == "FETCH 1"


async def test_a_savepoint_takes_its_cursors_with_it(reader: Client) -> None:
    await reader.query("SAVEPOINT a")
    await reader.query("DECLARE d CURSOR FOR SELECT 4")
    await reader.query("ROLLBACK TO a")
    assert tags(await reader.query("DECLARE d CURSOR FOR SELECT 5")) == ["DECLARE CURSOR"]
    assert numbers(await reader.query("FETCH d")) == [5]
    assert numbers(await reader.query("FETCH c")) == [1]
    await reader.query("RELEASE a")
    assert numbers(await reader.query("FETCH c")) == [2]


async def test_cursors_are_cut_masked_limited_and_recorded(world: World) -> None:
    client = await world.client()
    query = "SELECT true AS hidden, id, name FROM t ORDER BY id"
    world.scripted.plans[query] = {"hidden_columns": 1, "results": (None, Transform(None, "null"))}
    world.scripted.limits[query] = Limits(rows=5)
    world.scripted.release_with = lambda found: [[row[0], None] for row in found]
    await client.query("BEGIN")
    await client.query(f"DECLARE c CURSOR FOR {query}")
    messages = await client.query("FETCH 3 FROM c")
    assert rows(messages) == [(b"1", None), (b"2", None), (b"3", None)]
    assert messages[0][1][:2] == b"\0\2"
    assert numbers(await client.query("FETCH 2 FROM c")) == [4, 5]
    refused = await client.query("FETCH ALL FROM c")
    assert error(refused)["C"] == "53400"
    assert kinds(refused) == "TEZ"
    assert [(event.outcome.tag, event.outcome.rows, event.outcome.status) for event in world.statements()[1:]] == [
        ("DECLARE CURSOR", 0, "ok"), ("FETCH 3", 3, "ok"), ("FETCH 2", 2, "ok"), ("", 1, "denied"),
    ]  # fmt: skip
    assert {event.template for event in world.statements()[1:]} == {query}


async def test_a_cursor_dies_with_the_policy_it_was_opened_under(world: World, reader: Client) -> None:
    assert numbers(await reader.query("FETCH c")) == [1]
    world.scripted.generation += 1
    refused = await reader.query("FETCH c")
    assert error(refused)["C"] == "34000"
    assert "ST-08" in error(refused)["M"]


HELD = "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM t WHERE id <= 10 ORDER BY id"


async def test_a_cursor_with_hold_outlives_its_transaction(world: World) -> None:
    client = await world.client()
    assert tags(await client.query(HELD)) == ["DECLARE CURSOR"]
    assert numbers(await client.query("FETCH 2 FROM h")) == [1, 2]
    await client.query("BEGIN; UPDATE t SET name = name WHERE id = 1; ROLLBACK")
    assert error(await client.query("SELECT 1/0"))["C"] == "22012"
    assert numbers(await client.query("FETCH 2 FROM h")) == [3, 4]
    assert numbers(await client.ask(Parse("", "FETCH h"), Bind("", ""), Execute(""), Sync())) == [5]
    assert tags(await client.query("DECLARE i CURSOR WITH HOLD FOR SELECT 7; CLOSE h; MOVE i")) == [
        "DECLARE CURSOR", "CLOSE CURSOR", "MOVE 1",
    ]  # fmt: skip
    assert error(await client.query("FETCH h"))["C"] == "34000"
    assert tags(await client.query("FETCH i; CLOSE i")) == ["FETCH 0", "CLOSE CURSOR"]
    assert rows(await client.query("SELECT name FROM pg_cursors WHERE name LIKE 'grille%'")) == []


async def test_a_cursor_with_hold_has_its_connection_until_it_is_closed(world: World) -> None:
    client = await world.client()
    for end in ("CLOSE h", "CLOSE ALL", "DISCARD ALL"):
        await client.query(HELD)
        assert world.in_use == 1
        await client.query("BEGIN")
        assert rows(await client.query("SELECT 1 FROM t WHERE id = 1")) == [(b"1",)]
        refused = error(await client.query("FETCH h"))
        assert (refused["C"], "outside of transaction blocks" in refused["M"]) == ("0A000", True)
        await client.query("ROLLBACK")
        assert world.in_use == 1
        assert numbers(await client.query("FETCH h")) == [1]
        assert kinds(await client.query(end)) == "CZ"
        assert world.in_use == 0
        assert error(await client.query("FETCH h"))["C"] == "34000"
    await client.query(HELD)
    assert world.in_use == 1
    client.writer.close()
    await until(lambda: world.in_use == 0)
    assert world.services.pools["bank"].counts.idle == 1  # what the cursor was on is not lent again


@pytest.mark.parametrize("unit", [f"{HELD}; SELECT 1/0", "DECLARE h CURSOR WITH HOLD FOR SELECT 1 / (id - 10) FROM t"])
async def test_a_cursor_with_hold_of_a_failed_unit_is_gone(world: World, unit: str) -> None:
    client = await world.client()
    assert error(await client.query(unit))["C"] == "22012"
    assert world.in_use == 0
    assert error(await client.query("FETCH h"))["C"] == "34000"
    assert tags(await client.query(f"{HELD}; FETCH h; CLOSE h")) == ["DECLARE CURSOR", "FETCH 1", "CLOSE CURSOR"]


async def test_a_cursor_with_hold_is_declared_outside_of_transactions(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    refused = error(await client.query(HELD))
    assert (refused["C"], "ST-05" in refused["M"]) == ("0A000", True)
    await client.query("ROLLBACK")
    assert world.in_use == 0


async def test_a_unit_with_a_cursor_with_hold_is_not_run_twice(world: World) -> None:
    client = await world.client()
    await client.query(HELD)
    unit = "FETCH h; SELECT * FROM t WHERE id = 1"
    assert tags(await client.query(unit)) == ["FETCH 1", "SELECT 1"]
    world.direct("ALTER TABLE t ADD COLUMN more int")
    assert error(await client.query(unit))["C"] == "0A000"
    assert numbers(await client.query("FETCH h")) == [3]
    assert tags(await client.query("CLOSE h")) == ["CLOSE CURSOR"]


async def test_a_cursor_with_hold_dies_with_its_terms_and_its_connection(world: World) -> None:
    client = await world.client()
    await client.query(HELD)
    await client.query("SET DateStyle = 'SQL, DMY'")
    refused = error(await client.query("FETCH h"))
    assert (refused["C"], "settings" in refused["M"]) == ("0A000", True)
    await client.query("RESET DateStyle")
    assert numbers(await client.query("FETCH h")) == [1]
    world.scripted.generation += 1
    assert "ST-08" in error(await client.query("FETCH h"))["M"]
    world.scripted.generation -= 1
    assert numbers(await client.query("FETCH h")) == [2]
    world.direct(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    assert error(await client.query("FETCH h"))["C"] == "08006"
    assert error(await client.query("FETCH h"))["C"] == "34000"
    assert world.in_use == 0


async def test_too_many_cursors(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grille.proxy.session.MAX_PORTALS", 2)
    client = await world.client()
    await client.query("BEGIN")
    messages = await client.query(
        "DECLARE a CURSOR FOR SELECT 1; DECLARE b CURSOR FOR SELECT 2; DECLARE c CURSOR FOR SELECT 3"
    )
    assert tags(messages) == ["DECLARE CURSOR"] * 2
    assert error(messages)["C"] == "53400"


# settings by function


async def test_settings_by_function_are_the_proxys(world: World) -> None:
    client = await world.client()
    messages = await client.query("SELECT current_setting('jit') AS cur, set_config('jit', 'off', false) AS new")
    assert rows(messages) == [(b"off", b"off")]
    assert b"cur\0" in messages[0][1]
    text = "SELECT pg_catalog.set_config('TimeZone', 'Asia/Tokyo', false)"
    messages = await client.ask(Parse("", text), Describe("S", ""), Bind("", ""), Execute(""), Sync())
    assert kinds(messages) == "1tT2SDCZ"
    assert rows(await client.query("SELECT current_setting('timezone')")) == [(b"Asia/Tokyo",)]
    assert rows(await client.query("SELECT current_setting('TimeZone') || ''")) == [(b"Asia/Tokyo",)]
    assert error(await client.query("SELECT set_config('search_path', 'x', false)"))["C"] == "42501"
    assert error(await client.query("SELECT current_setting('data_directory')"))["C"] == "42704"
    assert rows(await client.query("SELECT current_setting('data_directory', true)")) == [(None,)]


async def test_constraints_may_be_deferred(world: World) -> None:
    world.direct("CREATE TABLE d (a int UNIQUE DEFERRABLE)")
    client = await world.client()
    assert kinds(await client.query("SET CONSTRAINTS ALL DEFERRED")) == "NCZ"
    await client.query("BEGIN")
    assert tags(await client.query("SET CONSTRAINTS ALL DEFERRED")) == ["SET CONSTRAINTS"]
    assert tags(await client.query("INSERT INTO d VALUES (1), (1)")) == ["INSERT 0 2"]
    assert error(await client.query("SET CONSTRAINTS ALL IMMEDIATE"))["C"] == "23505"
    assert tags(await client.query("ROLLBACK")) == ["ROLLBACK"]


@pytest.mark.parametrize("message", [FunctionCall(1, (), (), 0), CopyFail("x")])
async def test_function_calls_and_copy_data_close_the_connection(world: World, message: Any) -> None:
    client = await world.client()
    messages = await client.ask(message)
    assert error(messages)["S"] == "FATAL"
    assert error(messages)["C"] == "0A000"
    assert await client.at_end()


async def test_replication_is_refused(world: World) -> None:
    client = await world.connect()
    assert error(await client.start(replication="database"))["C"] == "0A000"
    assert await client.at_end()


# hidden columns, transforms, limits


async def test_hidden_columns_are_cut_off(world: World) -> None:
    client = await world.client()
    text = "SELECT true AS hidden, id, name FROM t WHERE id <= 2 ORDER BY id"
    world.scripted.plans[text] = {"hidden_columns": 1}
    messages = await client.query(text)
    assert rows(messages) == [(b"1", b"name1"), (b"2", b"name2")]
    assert b"hidden" not in messages[0][1]
    messages = await client.ask(Parse("", text), Describe("S", ""), Bind("", "", (), (), (1, 0)), Execute(""), Sync())
    assert b"hidden" not in b"".join(payload for kind, payload in messages if kind == "T")
    assert rows(messages)[0] == (struct.pack("!i", 1), b"name1")


async def test_swallowed_rows_of_a_write(world: World) -> None:
    client = await world.client()
    text = "INSERT INTO t VALUES (7000, 'x') RETURNING true"
    world.scripted.plans[text] = {"hidden_columns": 1, "swallow_rows": True}
    messages = await client.query(text)
    assert (kinds(messages), tags(messages)) == ("CZ", ["INSERT 0 1"])
    text = "INSERT INTO t VALUES (7001, 'x') RETURNING true"
    world.scripted.plans[text] = {"hidden_columns": 1, "swallow_rows": True}
    messages = await client.ask(
        Parse("", text), Describe("S", ""), Bind("", ""), Describe("P", ""), Execute(""), Sync()
    )
    assert kinds(messages) == "1tn2nCZ"
    text = "INSERT INTO t SELECT n, 'x' FROM generate_series(7002, 7005) n RETURNING true"
    world.scripted.plans[text] = {"hidden_columns": 1, "swallow_rows": True}
    messages = await client.ask(Parse("", text), Bind("", ""), Execute("", 1), Sync())
    assert (kinds(messages), tags(messages)) == ("12CZ", ["INSERT 0 4"])


async def test_injected_parameters_are_not_described(world: World) -> None:
    client = await world.client()
    text = "SELECT $1::int"
    world.scripted.plans[text] = {"sql": "SELECT $1::int WHERE $2 = 'x'", "parameter_types": (23, 25)}
    messages = await client.ask(Parse("", text), Describe("S", ""), Sync())
    assert next(payload for kind, payload in messages if kind == "t") == struct.pack("!HI", 1, 23)


async def test_rows_are_transformed_in_batches(world: World) -> None:
    client = await world.client()
    text = "SELECT id, name FROM t ORDER BY id"
    world.scripted.plans[text] = {"results": (None, Transform("x", None))}
    sizes = []

    def release(batch: list[list[bytes | None]]) -> list[list[bytes | None]]:
        sizes.append(len(batch))
        return [[row[0], b"<" + (row[1] or b"") + b">"] for row in batch]

    world.scripted.release_with = release
    messages = await client.query(text)
    assert len(rows(messages)) == 1000
    assert rows(messages)[999] == (b"1000", b"<name1000>")
    assert sizes == [500, 500]
    assert world.statements()[0].outcome.decoded == 1000  # type: ignore[union-attr]


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_value_that_cannot_be_decoded_gives_no_row_and_undoes_a_write(world: World, transaction: bool) -> None:
    client = await world.client()
    text = "UPDATE t SET name = 'y' WHERE id = 1 RETURNING name"
    world.scripted.plans[text] = {"results": (Transform("x", None),)}

    def release(batch: list[list[bytes | None]]) -> list[list[bytes | None]]:
        raise Refusal("TK-01", "the provider does not answer", sqlstate="58000")

    world.scripted.release_with = release
    if transaction:
        await client.query("BEGIN")
    messages = await client.query(text)
    assert error(messages)["C"] == "58000"
    assert rows(messages) == []
    assert status(messages) == ("E" if transaction else "I")
    if transaction:
        assert tags(await client.query("COMMIT")) == ["ROLLBACK"]
    assert world.direct("SELECT name FROM t WHERE id = 1") == [("name1",)]


@pytest.mark.parametrize("transaction", [False, True])
async def test_more_rows_than_the_limit(world: World, transaction: bool) -> None:
    client = await world.client()
    world.scripted.limits["SELECT id FROM t"] = Limits(rows=10)
    world.scripted.limits["SELECT id FROM t LIMIT 10"] = Limits(rows=10)
    assert len(rows(await client.query("SELECT id FROM t LIMIT 10"))) == 10
    if transaction:
        await client.query("BEGIN")
        await client.query("SELECT 1")
    messages = await client.query("SELECT id FROM t")
    assert error(messages)["C"] == "53400"
    assert "AC-06" in error(messages)["M"]
    assert rows(messages) == []
    assert status(messages) == ("E" if transaction else "I")
    event = world.statements()[-1]
    assert event.outcome is not None
    assert event.outcome.status == "denied"


async def test_the_row_limit_spans_the_fetches_of_one_portal(world: World) -> None:
    client = await world.client()
    world.scripted.limits["SELECT id FROM t"] = Limits(rows=5)
    messages = await client.ask(
        Parse("", "SELECT id FROM t"), Bind("p", ""), Execute("p", 3), Execute("p", 3), Execute("p", 3), Sync()
    )
    assert error(messages)["C"] == "53400"
    assert len(rows(messages)) == 3


async def test_a_write_over_the_limit_is_undone(world: World) -> None:
    client = await world.client()
    world.scripted.limits["DELETE FROM t"] = Limits(rows=10)
    messages = await client.query("DELETE FROM t")
    assert error(messages)["C"] == "53400"
    assert world.direct("SELECT count(*) FROM t") == [(1000,)]
    world.scripted.limits["DELETE FROM t WHERE id < 5"] = Limits(rows=10)
    assert tags(await client.query("DELETE FROM t WHERE id < 5")) == ["DELETE 4"]
    assert world.direct("SELECT count(*) FROM t") == [(996,)]


async def test_more_bytes_than_the_limit(world: World) -> None:
    client = await world.client()
    world.scripted.limits["SELECT repeat('x', 1000) FROM t"] = Limits(bytes=5000)
    messages = await client.query("SELECT repeat('x', 1000) FROM t")
    assert error(messages)["C"] == "53400"
    assert rows(messages) == []
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


async def test_longer_than_the_limit(world: World) -> None:
    client = await world.client()
    world.scripted.limits["SELECT pg_sleep(60)"] = Limits(seconds=0.1)
    messages = await client.query("SELECT pg_sleep(60)")
    assert error(messages)["C"] == "57014"
    assert "AC-06" in error(messages)["M"]
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


async def test_statements_per_minute(world: World) -> None:
    client = await world.client()
    world.scripted.limits["SELECT 1"] = Limits(statements_per_minute=3)
    answers = [kinds(await client.query("SELECT 1")) for _ in range(4)]
    assert answers == ["TDCZ"] * 3 + ["EZ"]


async def test_concurrent_statements(world: World) -> None:
    first, second = await world.client(), await world.client()
    world.scripted.limits["SELECT pg_sleep(60)"] = Limits(concurrent=1)
    world.scripted.limits["SELECT 1"] = Limits(concurrent=1)
    first.send(Query("SELECT pg_sleep(60)"))
    asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    await until(lambda: bool(world.direct(asleep)))
    assert error(await second.query("SELECT 1"))["C"] == "53300"
    canceller = await world.connect()
    canceller.send(CancelRequest(*first.key))
    assert error(await first.unit())["C"] == "57014"
    assert kinds(await second.query("SELECT 1")) == "TDCZ"
    first.send(Query("SELECT pg_sleep(60)"))
    await until(lambda: bool(world.direct(asleep)))
    assert error(await second.query("SELECT 1"))["C"] == "53300"
    first.writer.close()  # what runs for a client that has left is cancelled
    await until(lambda: not world.services.quotas.running(SPIFFE_ID))
    assert kinds(await second.query("SELECT 1")) == "TDCZ"


# keys that an agent has read


async def counting(world: World, limit: int, *texts: str, **more: int) -> list[tuple[str, str]]:
    """Give these statements a limit of keys; the quotas that are reached, as they are told of."""
    database = world.services.config.databases[0]
    connection = await asyncpg.connect(
        host=database.host, port=database.port, user="postgres", database=database.database
    )
    catalog = await read_catalog(connection)
    await connection.close()
    world.services.shown = {"bank": Shown(lambda: catalog)}
    told: list[tuple[str, str]] = []
    world.services.on_quota = lambda agent, protocol, session, reached: told.append((agent.spiffe_id, reached.quota))
    for text in texts:
        world.scripted.limits[text] = Limits(distinct_keys_per_hour=limit, **more)
    return told


FIVE, SIX, SEVENTH = (
    "SELECT id, name FROM t WHERE id <= 5",
    "SELECT id, name FROM t WHERE id BETWEEN 2 AND 7",
    "SELECT id, name FROM t WHERE id = 7",
)


async def test_keys_are_counted_once_and_none_too_many_is_released(world: World) -> None:
    told = await counting(world, 5, FIVE, SIX, SEVENTH)
    client = await world.client()
    refused = await client.query(SIX)
    assert kinds(refused) == "TEZ"
    assert error(refused)["C"] == "53400"
    assert "more than the 5 different keys that you may read in an hour [control AC-06" in error(refused)["M"]
    assert error(refused)["H"].startswith("Ask for fewer rows, or try again in ")
    for _ in range(3):
        assert len(rows(await client.query(FIVE))) == 5
    assert error(await client.query(SEVENTH))["C"] == "53400"
    assert len(rows(await client.query(FIVE))) == 5
    assert told == [(SPIFFE_ID, "distinct_keys_per_hour")] * 2
    assert world.services.quotas.keys(SPIFFE_ID) == 5
    denied = [event for event in world.statements() if event.outcome is not None and event.outcome.status == "denied"]
    assert [event.outcome.rows for event in denied if event.outcome is not None] == [6, 1]


async def test_keys_are_counted_where_nobody_asks_for_a_description(world: World) -> None:
    await counting(world, 5, FIVE, SEVENTH)
    client = await world.client()
    for _ in range(2):
        assert kinds(await client.ask(Parse("", FIVE), Bind("", ""), Execute(""), Sync())) == "12" + "D" * 5 + "CZ"
    assert kinds(await client.ask(Parse("", SEVENTH), Bind("", ""), Execute(""), Sync())) == "12EZ"
    assert kinds(
        await client.ask(Parse("s", FIVE), Bind("", "s"), Execute(""), Bind("", "s"), Execute(""), Sync())
    ) == ("12" + "D" * 5 + "C2" + "D" * 5 + "CZ")
    assert world.services.quotas.keys(SPIFFE_ID) == 5


async def test_rows_that_show_no_key_count_each_time(world: World) -> None:
    text = "SELECT name FROM t WHERE id <= 2"
    await counting(world, 5, text)
    client = await world.client()
    answers = [kinds(await client.query(text)) for _ in range(3)]
    assert answers == ["TDDCZ", "TDDCZ", "TEZ"]


async def test_keys_are_counted_over_the_parts_of_a_result(world: World) -> None:
    text = "SELECT id FROM t ORDER BY id"
    await counting(world, 5, text)
    client = await world.client()
    client.send(Query("BEGIN"))
    await client.unit()
    await client.ask(Parse("", text), Bind("p", ""), Sync())
    assert kinds(await client.ask(Execute("p", 3), Sync())) == "DDDsZ"
    messages = await client.ask(Execute("p", 3), Sync())
    assert kinds(messages) == "EZ"
    assert status(messages) == "E"
    await client.query("ROLLBACK")
    await client.query("BEGIN")
    assert tags(await client.query(f"DECLARE c SCROLL CURSOR FOR {text}")) == ["DECLARE CURSOR"]
    assert tags(await client.query("FETCH 5 FROM c")) == ["FETCH 5"]
    assert tags(await client.query("FETCH BACKWARD 3 FROM c")) == ["FETCH 3"]
    assert error(await client.query("FETCH 5 FROM c"))["C"] == "53400"
    assert world.services.quotas.keys(SPIFFE_ID) == 5


async def test_a_write_that_shows_too_many_keys_is_undone(world: World) -> None:
    text = "UPDATE t SET name = 'new' WHERE id <= 6 RETURNING id"
    await counting(world, 5, text)
    client = await world.client()
    assert error(await client.query(text))["C"] == "53400"
    assert world.direct("SELECT count(*) FROM t WHERE name = 'new'") == [(0,)]
    await counting(world, 6, text)
    assert len(rows(await client.query(text))) == 6
    assert world.direct("SELECT count(*) FROM t WHERE name = 'new'") == [(6,)]


async def test_what_a_write_copies_is_counted_before_it_is_kept(world: World) -> None:
    """Else an agent could collect the table in one row, and read that."""
    text = "UPDATE t SET name = name || (SELECT u.name FROM t u WHERE u.id = 9) WHERE id = $1"
    await counting(world, 2, text)
    world.scripted.plans[text] = {"returns_rows": False}
    client = await world.client()
    unit = [Parse("", text, (23,)), Bind("", "", (), (b"1",)), Execute(""), Sync()]
    for _ in range(2):
        assert tags(await client.ask(*unit)) == ["UPDATE 1"]
    assert error(await client.ask(*unit))["C"] == "53400"
    assert world.direct("SELECT name FROM t WHERE id = 1") == [("name1" + 2 * "name9",)]


async def test_no_more_of_a_streamed_result_leaves_than_may_be_read(world: World) -> None:
    text = "SELECT id, repeat(name, 1000) FROM t"
    await counting(world, 700, text)
    client = await world.client()
    messages = await client.query(text)
    assert error(messages)["C"] == "53400"
    released = len(rows(messages))
    assert 100 < released <= 700
    assert world.services.quotas.keys(SPIFFE_ID) == released


async def test_a_statement_whose_keys_cannot_be_counted_does_not_run(world: World) -> None:
    text = "SELECT string_agg(name, ',') FROM t"
    await counting(world, 5, text, FIVE)
    client = await world.client()
    messages = await client.query(text)
    assert error(messages)["C"] == "42501"
    assert "cannot be counted: string_agg gathers the values of many rows in one" in error(messages)["M"]
    world.services.shown = {}
    assert "AC-05" in error(await (await world.client()).query(FIVE))["M"]


async def test_a_large_result_is_streamed_behind_an_intent(world: World) -> None:
    client = await world.client()
    text = "SELECT repeat('x', 10000) FROM t"
    messages = await client.query(text)
    assert len(rows(messages)) == 1000
    intent, outcome = world.statements()
    assert (intent.outcome.status, outcome.outcome.status) == ("intent", "ok")  # type: ignore[union-attr]
    assert outcome.intent == intent.id
    assert outcome.outcome.bytes > 10_000_000  # type: ignore[union-attr]


async def test_strict_writes_are_recorded_before_and_after(make_world: MakeWorld) -> None:
    world = await make_world(writes="strict")
    client = await world.client()
    await client.query("INSERT INTO t VALUES (8000, 'x')")
    assert [event.outcome.status for event in world.statements()] == ["intent", "ok"]  # type: ignore[union-attr]
    assert [event.level for event in world.statements()] == ["strict", "strict"]


async def test_a_slow_client_slows_the_server_and_not_the_memory(world: World) -> None:
    client = await world.client()
    client.send(Query("SELECT repeat('x', 100000) FROM t"))  # 100 MB
    await until(lambda: len(world.statements()) == 1)  # the intent: streaming has begun
    (session,) = world.sessions
    await backend_waits(world)
    assert len(session.relay.out) <= 2 * 1024 * 1024
    assert session.stream.extra("socket") is not None
    assert len(rows(await client.unit())) == 1000


async def backend_waits(world: World) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND query LIKE '%repeat%'"
    await until(lambda: bool(world.direct(waiting)))


async def test_a_long_unit_is_sent_in_parts(world: World) -> None:
    client = await world.client()
    one = b"".join(message.encode() for message in (Bind("", "s", (), (b"1",)), Execute("")))
    client.writer.write(Parse("s", "SELECT $1::int").encode() + one * 3000 + Sync().encode())
    messages = await client.unit()
    assert kinds(messages) == "1" + "2DC" * 3000 + "Z"
    assert len(world.statements()) >= 3000


async def test_too_many_executions_before_one_sync(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grille.proxy.session.MAX_EXECUTIONS", 3)
    client = await world.client()
    execute = (Bind("", "s"), Execute(""))
    messages = await client.ask(Parse("s", "INSERT INTO t SELECT max(id) + 1 FROM t"), *execute * 4, Sync())
    assert error(messages)["C"] == "54000"
    assert world.direct("SELECT count(*) FROM t") == [(1000,)]


@pytest.mark.parametrize("text", ["SHOW TimeZone", "SELECT version()"])
async def test_answers_of_the_proxy_count_as_executions(
    world: World, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("grille.proxy.session.MAX_EXECUTIONS", 3)
    client = await world.client()
    execute = (Bind("", "s"), Execute(""))
    assert error(await client.ask(Parse("s", text), *execute * 4, Sync()))["C"] == "54000"
    assert kinds(await client.ask(*execute * 3, Sync())) == "2DC2DC2DCZ"


async def test_too_much_prepared_text(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grille.proxy.session.MAX_STATEMENT_CHARACTERS", 100)
    client = await world.client()
    for _ in range(20):
        assert kinds(await client.ask(Parse("", "SELECT 1, 2, 3, 4"), Sync())) == "1Z"
    for name in "abcd":
        assert kinds(await client.ask(Parse(name, "SELECT 1, 2, 3, 4"), Sync())) == "1Z"
    assert error(await client.ask(Parse("e", "SELECT 1, 2, 3, 4"), Sync()))["C"] == "53400"
    assert tags(await client.query("DEALLOCATE ALL")) == ["DEALLOCATE ALL"]
    assert kinds(await client.ask(Parse("e", "SELECT 1, 2, 3, 4"), Sync())) == "1Z"


async def test_an_open_portal_dies_with_the_policy_it_was_opened_under(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    await client.ask(Parse("s", "SELECT id FROM t"), Bind("p", "s"), Execute("p", 1), Sync())
    world.scripted.generation += 1
    assert error(await client.ask(Execute("p", 1), Sync()))["C"] == "34000"
    await client.query("ROLLBACK")
    assert kinds(await client.ask(Bind("", "s"), Execute("", 1), Sync())) == "2DsZ"


# failures


async def test_row_checks_and_catalogue_changes(world: World) -> None:
    client = await world.client()
    text = "INSERT INTO t VALUES (9000, 'x') RETURNING pg_catalog.current_setting('grille_row_check')"
    world.scripted.plans[text] = {"row_check_plan": True, "swallow_rows": True, "hidden_columns": 1}
    messages = await client.query(text)
    assert error(messages)["C"] == "42501"
    assert "RO-02" in error(messages)["M"]
    assert world.direct("SELECT count(*) FROM t WHERE id = 9000") == [(0,)]
    text = "SELECT 1 WHERE current_setting('grille_catalogue_changed')::bool"
    messages = await client.query(text)
    assert "ST-08" in error(messages)["M"]
    assert world.refreshed == 1


@pytest.mark.parametrize("how", ["simple", "bind", "parse"])
async def test_a_changed_result_type_is_prepared_anew_once(world: World, how: str) -> None:
    client = await world.client()
    text = "SELECT * FROM t WHERE id = 1"
    assert len(rows(await client.query(text))[0]) == 2
    await client.ask(Parse("s", text), Sync())
    world.direct("ALTER TABLE t ADD COLUMN more int DEFAULT 5")
    if how == "bind":
        messages = await client.ask(Bind("", "s"), Describe("P", ""), Execute(""), Sync())
        assert kinds(messages) == "2TDCZ"
    elif how == "parse":
        messages = await client.ask(Parse("n", text), Bind("p", "n"), Describe("P", "p"), Execute("p"), Sync())
        assert kinds(messages) == "12TDCZ"
    else:
        messages = await client.query(text)
        assert kinds(messages) == "TDCZ"
    assert rows(messages) == [(b"1", b"name1", b"5")]
    assert world.refreshed == 1


@pytest.mark.parametrize("text", ["SELECT pg_sleep(60)", "UPDATE t SET name = 'z' WHERE pg_sleep(60) IS NOT NULL"])
async def test_upstream_dies_under_a_statement(world: World, text: str) -> None:
    client = await world.client()
    client.send(Query(text))
    await backend_runs(world, "pg_sleep(60)")
    world.direct(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%'"
        " AND pid <> pg_backend_pid()"
    )
    messages = await client.unit()
    assert error(messages)["C"] == "08006"
    assert status(messages) == "I"
    event = world.statements()[-1]
    assert event.outcome is not None
    assert event.outcome.status == ("unknown" if text.startswith("UPDATE") else "error")
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


@pytest.mark.parametrize("level", ["process", "strict"])
@pytest.mark.parametrize("extended", [False, True])
async def test_a_statement_that_never_reached_the_database_is_not_recorded_as_done(
    make_world: MakeWorld, level: str, extended: bool
) -> None:
    world = await make_world(writes=level, database={"pool_size": 1, "acquire_timeout": 0.05})
    holder, client = await world.client(), await world.client()
    await holder.query("BEGIN")
    await holder.query("SELECT 1")
    text = "INSERT INTO t VALUES (5000, 'x')"
    unit = [Parse("", text), Bind("", ""), Execute(""), Sync()] if extended else [Query(text)]
    messages = await client.ask(*unit)
    assert error(messages)["C"] == "53300"
    recorded = [(e.template, e.outcome.status, e.outcome.sqlstate) for e in world.statements() if e.outcome][2:]
    wanted = [(text, "intent", ""), ("", "denied", "53300"), (text, "denied", "53300")]
    assert recorded == (wanted if level == "strict" else [("", "denied", "53300")])
    if level == "strict":
        assert world.statements()[-1].intent == world.statements()[-3].id
    await holder.query("COMMIT")
    assert tags(await client.query("SELECT 2")) == ["SELECT 1"]


async def test_what_is_behind_an_error_is_not_recorded_as_done(world: World) -> None:
    """Also where the unit is sent in two parts, because a limit may still refuse the first statement."""
    world.scripted.limits["SELECT 1/0"] = Limits(rows=5)
    client = await world.client()
    unit = [Parse("", "SELECT 1/0"), Bind("", ""), Execute("")]
    unit += [Parse("", "INSERT INTO t VALUES (5000, 'x')"), Bind("", ""), Execute(""), Sync()]
    assert error(await client.ask(*unit))["C"] == "22012"
    assert [(e.template, e.outcome.status) for e in world.statements() if e.outcome] == [("SELECT 1/0", "error")]
    assert world.direct("SELECT count(*) FROM t") == [(1000,)]


async def test_upstream_dies_within_a_transaction(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    await client.query("INSERT INTO t VALUES (9001, 'x')")
    world.direct("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
    messages = await client.query("SELECT 1")
    assert error(messages)["C"] == "08006"
    assert status(messages) == "E"
    assert tags(await client.query("COMMIT")) == ["ROLLBACK"]
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


async def backend_runs(world: World, fragment: str) -> None:
    active = f"SELECT 1 FROM pg_stat_activity WHERE query LIKE '%{fragment}%' AND state = 'active'"
    await until(lambda: bool(world.direct(active + " AND pid <> pg_backend_pid()")))


async def test_an_audit_trail_that_cannot_be_written_answers_nothing(world: World) -> None:
    client = await world.client()
    await client.query("SELECT 1")

    async def broken(event: Event) -> None:
        raise Refusal("AU-01", "the audit trail cannot be written", sqlstate="58030")

    world.recorder.keep = broken  # type: ignore[method-assign]
    messages = await client.query("SELECT id FROM t")
    assert error(messages)["C"] == "58030"
    assert rows(messages) == []
    await client.query("BEGIN")
    assert status(await client.query("INSERT INTO t VALUES (9100, 'x')")) == "E"
    del world.recorder.keep  # type: ignore[method-assign]
    assert tags(await client.query("COMMIT")) == ["ROLLBACK"]
    assert rows(await client.query("SELECT 1")) == [(b"1",)]
    assert world.direct("SELECT count(*) FROM t WHERE id = 9100") == [(0,)]


# cancel, drain, expiry


@pytest.mark.parametrize("minor", [0, 2])
async def test_cancel_ends_the_statement_in_flight(world: World, minor: int) -> None:
    client = await world.connect()
    await client.start(minor=minor)
    other = await world.client()
    client.send(Query("SELECT pg_sleep(60)"))
    await backend_runs(world, "pg_sleep(60)")
    assert not world.services.cancels.cancel(client.key[0], b"0" * len(client.key[1]))
    assert not world.services.cancels.cancel(client.key[0] + 77, client.key[1])
    canceller = await world.connect()
    canceller.writer.write(CancelRequest(*client.key).encode())
    assert await canceller.at_end()
    messages = await client.unit()
    assert error(messages)["C"] == "57014"
    assert rows(await client.query("SELECT 1")) == [(b"1",)]
    assert world.services.pools["bank"].counts.opened == 1  # held until the cancel was over, then lent again
    assert rows(await other.query("SELECT 1")) == [(b"1",)]


async def test_cancel_of_an_idle_session_does_nothing(world: World) -> None:
    client = await world.client()
    await client.query("SELECT 1")
    assert world.services.cancels.cancel(*client.key)
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


def test_a_cancel_for_another_worker_is_forwarded() -> None:
    forwarded: list[tuple[int, int, bytes]] = []
    table = CancelTable(1, lambda worker, number, secret: forwarded.append((worker, number, secret)))
    other = 1 << 30 | 3 << 23 | 9
    assert not table.cancel(other, b"abcd")
    assert forwarded == [(3, other, b"abcd")]


async def test_drain(world: World) -> None:
    idle, busy = await world.client(), await world.client()
    await busy.query("BEGIN")
    await busy.query("INSERT INTO t VALUES (9200, 'x')")
    for session in tuple(world.sessions):
        session.drain()
    messages = await idle.unit()
    assert error(messages)["C"] == "57P01"
    assert await idle.at_end()
    assert rows(await busy.query("SELECT 1")) == [(b"1",)]
    assert tags(await busy.query("COMMIT")) == ["COMMIT"]
    assert error(await busy.unit())["C"] == "57P01"
    assert world.direct("SELECT count(*) FROM t WHERE id = 9200") == [(1,)]
    late = await world.connect()
    assert error(await late.start())["C"] == "57P01"


async def test_a_session_that_is_not_waited_for_is_told_so(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    await client.query("INSERT INTO t VALUES (9201, 'x')")
    for task in tuple(world.sessions.values()):
        task.cancel()
    assert error(await client.unit())["C"] == "57P01"
    await until(lambda: world.services.pools["bank"].counts.in_use == 0)
    assert world.direct("SELECT count(*) FROM t WHERE id = 9201") == [(0,)]


async def test_a_certificate_that_expires_ends_the_session(make_world: MakeWorld) -> None:
    world = await make_world(not_after=dt.timedelta(seconds=0.6))
    client = await world.client()
    await client.query("BEGIN")
    await client.query("SELECT 1")
    messages = await client.unit()
    assert error(messages)["C"] == "28000"
    assert "ID-06" in error(messages)["M"]
    assert await client.at_end()


async def test_a_client_that_leaves_in_a_transaction_leaves_nothing_behind(world: World) -> None:
    client = await world.client()
    await client.query("BEGIN")
    await client.query("INSERT INTO t VALUES (9300, 'x')")
    client.writer.close()
    await until(lambda: world.services.pools["bank"].counts.in_use == 0)
    assert world.direct("SELECT count(*) FROM t WHERE id = 9300") == [(0,)]
    await until(lambda: world.recorder.events[-1].name == "disconnect")


# bad input


async def test_half_a_message_then_silence(make_world: MakeWorld) -> None:
    world = await make_world(listener={"idle_message_timeout": 0.1})
    client = await world.client()
    client.writer.write(b"Q\0\0\0\x20SEL")
    messages = await client.unit()
    assert error(messages)["C"] == "08P01"
    assert "WP-04" in error(messages)["M"]
    assert await client.at_end()


async def test_a_message_that_trickles_in_is_ended_too(make_world: MakeWorld) -> None:
    world = await make_world(listener={"idle_message_timeout": 0.3})
    client = await world.client()
    client.writer.write(b"Q\0\0\1\0")
    begun = asyncio.get_running_loop().time()
    while not client.reader._buffer and asyncio.get_running_loop().time() < begun + DEADLINE:  # type: ignore[attr-defined]
        client.writer.write(b" ")
        await asyncio.sleep(0.02)  # slower than the message is long, faster than the time-out
    assert "WP-04" in error(await client.unit())["M"]


async def test_a_transaction_may_not_idle_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grille.proxy.session.IDLE_TRANSACTION_SECONDS", 0.1)
    client = await world.client()
    await client.query("BEGIN")
    await client.query("INSERT INTO t VALUES (9400, 'x')")
    assert error(await client.unit())["C"] == "25P03"
    await until(lambda: world.services.pools["bank"].counts.in_use == 0)
    assert world.direct("SELECT count(*) FROM t WHERE id = 9400") == [(0,)]


@pytest.mark.parametrize("extended", [False, True])
async def test_a_statement_of_64_mebibytes(world: World, extended: bool) -> None:
    client = await world.client()
    size = 64 * 1024 * 1024
    payload = b"SELECT '" + b"x" * size + b"'\0"
    if extended:
        client.writer.write(b"P" + struct.pack("!i", len(payload) + 7) + b"\0" + payload + b"\0\0" + Sync().encode())
    else:
        client.writer.write(b"Q" + struct.pack("!i", len(payload) + 4) + payload)
    messages = await client.unit()
    assert error(messages)["C"] == "54000"
    assert "WP-03" in error(messages)["M"]
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


async def test_ten_thousand_parentheses(world: World) -> None:
    client = await world.client()
    messages = await client.query("SELECT " + "(" * 10_000 + "1" + ")" * 10_000)
    assert error(messages)["C"].startswith("54")
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


@pytest.mark.parametrize(
    ("data", "sqlstate"),
    [
        (b"Q\0\0\0\x0eSELECT\0 1;\0", "08P01"),
        (b"Q\0\0\0\x0aSEL\xff\xfe\0", "22021"),
        (b"Q\0\0\0\x0aSELECT", "08P01"),
        (b"y\0\0\0\x04", "08P01"),
        (b"Q\x7f\xff\xff\xff", "08P01"),
        (b"Q\0\0\0\x03", "08P01"),
        (b"Q\xff\xff\xff\xff", "08P01"),
        (b"S\0\0\0\x05x", "08P01"),
        (b"B\0\0\0\x08\0\0\0\x05", "08P01"),
    ],
)  # fmt: skip
async def test_malformed_messages_close_the_connection(world: World, data: bytes, sqlstate: str) -> None:
    client = await world.client()
    client.writer.write(data)
    messages = await client.unit()
    assert error(messages)["S"] == "FATAL"
    assert error(messages)["C"] == sqlstate
    assert "Traceback" not in str(messages)
    assert await client.at_end()


async def test_65535_parameters(world: World) -> None:
    client = await world.client()
    messages = await client.ask(
        Parse("", "SELECT 1 WHERE $1 = 1", (23,) * 65_535), Bind("", "", (), (b"1",) * 65_535), Execute(""), Sync()
    )
    assert kinds(messages) == "12DCZ"
    messages = await client.ask(Parse("", "SELECT 1"), Bind("", "", (), (b"1",) * 65_535), Sync())
    assert error(messages)["C"] == "08P01"
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


async def test_a_format_code_that_does_not_exist_fails_its_unit_only(world: World) -> None:
    client = await world.client()
    messages = await client.ask(Parse("", "SELECT 1"), Bind("", "", (), (), (7,)), Execute(""), Sync())
    assert kinds(messages) == "1EZ"
    assert rows(await client.query("SELECT 1")) == [(b"1",)]


async def test_1600_result_columns(world: World) -> None:
    client = await world.client()
    messages = await client.query("SELECT " + ", ".join(f"{n} AS c{n}" for n in range(1600)))
    assert len(rows(messages)[0]) == 1600


async def test_messages_one_byte_at_a_time(world: World) -> None:
    client = await world.client()
    data = b"".join(
        message.encode() for message in (Parse("", "SELECT $1::int"), Bind("", "", (), (b"1",)), Execute(""), Sync())
    )
    for byte in data:
        client.writer.write(bytes((byte,)))
        await client.writer.drain()
    assert kinds(await client.unit()) == "12DCZ"


async def test_terminate(world: World) -> None:
    client = await world.client()
    client.send(Terminate())
    assert await client.at_end()


async def test_psycopg_runs_unchanged(world: World) -> None:
    """libpq over a plain socket: the e2e tests do the same over TLS."""
    dsn = f"host=127.0.0.1 port={world.port} sslmode=disable gssencmode=disable dbname=x user=x"
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("SELECT id, name FROM t WHERE id = %s", (5,))
        assert await cursor.fetchall() == [(5, "name5")]
        await connection.commit()
        async with connection.pipeline():
            for n in range(20):
                await connection.execute("INSERT INTO t VALUES (%s, %s)", (20_000 + n, "p"))
        await connection.rollback()
    assert world.direct("SELECT count(*) FROM t WHERE id >= 20000") == [(0,)]


async def test_only_plans_that_no_value_can_spoil_share_a_named_statement(world: World) -> None:
    """The rest is parsed each time, or named for the one agent that prepared it."""
    shared, own, names = "SELECT 1 AS a", "SELECT 2 AS b", "SELECT name FROM pg_prepared_statements ORDER BY 1"
    for text in (own, names):
        world.scripted.plans[text] = {"shared": False}
    for agent in ("a", "b"):
        world.agent = msgspec.structs.replace(world.agent, fingerprint=agent * 64)
        client = await world.client()
        for text in (shared, own):
            assert kinds(await client.query(text)) == "TDCZ"
            for name in ("", "s"):
                messages = await client.ask(Parse(name, text), Describe("S", name), Bind("", name), Execute(""), Sync())
                assert kinds(messages) == "1tT2DCZ"
                messages = await client.ask(Bind("", name), Execute(""), Sync())
                assert kinds(messages) == "2DCZ"
                assert rows(messages) == [(b"1" if text == shared else b"2",)]
            await client.ask(Close("S", "s"), Sync())
        found = [name.decode() for (name,) in rows(await client.query(names)) if name]
    plans = {text: (await world.scripted.prepare(world.agent, text))[0].plan for text in (shared, own)}
    assert len(found) == 3
    assert found[0].startswith("g")
    assert set(found) == {plans[shared].name, plans[own].name + "_" + 12 * "a", plans[own].name + "_" + 12 * "b"}


async def test_the_unnamed_statement_upstream_is_always_the_one_that_is_bound(world: World) -> None:
    first, other = "SELECT 1 AS a", "SELECT 2 AS b"
    for text in (first, other):
        world.scripted.plans[text] = {"shared": False}
    client = await world.client()
    messages = await client.ask(
        Parse("", first), Bind("p", ""), Parse("", other), Bind("", ""), Execute("p"), Execute(""), Sync()
    )
    assert kinds(messages) == "1212DCDCZ"
    assert rows(messages) == [(b"1",), (b"2",)]
    assert rows(await client.query(f"{first}; {other}; {other}; {first}")) == [(b"1",), (b"2",), (b"2",), (b"1",)]
