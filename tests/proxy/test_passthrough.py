"""Passthrough sessions against a real PostgreSQL: message by message, and with psql, psycopg and asyncpg.

The policy's answers are scripted; enforcement, pool, recorder and server are the real ones.  TLS and the policy engine
are in tests/e2e/test_passthrough.py.  AC-08 and WP-05 are exercised here.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import random
import re
import shutil
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import errors

from grille.audit.event import Event
from grille.audit.spool import Spool
from grille.controls import Refusal
from grille.policies.decision import CachePolicy, ColumnObligation, Decision, Limits
from grille.policies.pdp import PolicyUnavailable
from grille.protocols.postgres.messages import (
    BackendKeyData,
    Bind,
    CancelRequest,
    Close,
    CopyData,
    CopyDone,
    CopyFail,
    Describe,
    ErrorResponse,
    Execute,
    Flush,
    FunctionCall,
    NoticeResponse,
    ParameterStatus,
    Parse,
    Query,
    StartupMessage,
    Sync,
    Terminate,
    decode_data_row,
)
from grille.protocols.postgres.state import State
from grille.proxy import passthrough
from grille.proxy.catalog import connect, read_catalog
from grille.proxy.config import Audit, Config, Database, Identity, Listener, Policy
from grille.proxy.demo.cluster import Cluster
from grille.proxy.enforcement import Enforcement
from grille.proxy.identity import Registry, parse_spiffe_id
from grille.proxy.recorder import Recorder
from grille.proxy.services import CancelTable, Services
from grille.proxy.session import Session
from grille.proxy.stream import ByteStream
from grille.proxy.telemetry import Metrics
from grille.proxy.upstream import UpstreamPool
from grille.tokenization.embedded import EmbeddedProvider

DEADLINE = 20.0
PSQL = shutil.which("psql")
SPIFFE_ID = "spiffe://bank.example/ns/test/sa/tool"
GRANTED = Decision(
    allow=True, control="AC-01", reason="a trusted tool", passthrough=True, filters={}, columns={}, limits=Limits(),
    locks=False, isolated=False, not_before=None, not_after=None, cache=CachePolicy(60),
)  # fmt: skip


class Policies:
    """The connect decision that a test wants; every statement is denied."""

    def __init__(self) -> None:
        self.decision = GRANTED
        self.revision = "1"
        self.fails = False
        self.asked: list[dict[str, Any]] = []

    def decide(self, document: bytes) -> Decision:
        self.asked.append(msgspec.json.decode(document)["operation"])
        if self.fails:
            raise PolicyUnavailable("stopped by the test")
        if self.asked[-1]["action"] == "connect":
            return self.decision
        return msgspec.structs.replace(GRANTED, allow=False, passthrough=False, reason="No statement is allowed.")


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
        self.key = BackendKeyData(0, b"")

    async def start(self, minor: int = 0, **parameters: str) -> list[tuple[str, bytes]]:
        self.writer.write(StartupMessage({"user": "x", "database": "y", **parameters}, minor=minor).encode())
        messages = await self.unit()
        for kind, payload in messages:
            if kind == "S":
                status = ParameterStatus.decode(payload)
                self.parameters[status.name] = status.value
            elif kind == "K":
                self.key = BackendKeyData.decode(payload)
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


def kinds(messages: list[tuple[str, bytes]]) -> str:
    return "".join(kind for kind, _ in messages)


def rows(messages: list[tuple[str, bytes]]) -> list[tuple[bytes | None, ...]]:
    return [decode_data_row(payload) for kind, payload in messages if kind == "D"]


def error(messages: list[tuple[str, bytes]]) -> dict[str, str]:
    return next(ErrorResponse.decode(payload).fields for kind, payload in messages if kind == "E")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def steady(condition: Callable[[], bool]) -> None:
    """Wait until something is so, and has been for 30 looks."""
    seen = 0

    def look() -> bool:
        nonlocal seen
        seen = seen + 1 if condition() else 0
        return seen == 30

    await until(look)


class World:
    """One worker's services over one database, and its listening port."""

    def __init__(self, services: Services, policies: Policies, recorder: Kept, dsn: str) -> None:
        self.services = services
        self.policies = policies
        self.recorder = recorder
        self.dsn = dsn
        self.port = 0
        self.sessions: dict[Session, asyncio.Task[None]] = {}
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return Client(reader, writer)

    async def client(self, minor: int = 0, **parameters: str) -> Client:
        client = await self.connect()
        await client.start(minor, **parameters)
        return client

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=x dbname=y sslmode=disable gssencmode=disable"

    async def psycopg(self, **options: Any) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self.conninfo, autocommit=True, **options)

    async def psql(self, script: str, conninfo: str = "") -> tuple[str, str]:
        """What psql says; the numbers of backends are made alike."""
        process = await asyncio.create_subprocess_exec(
            str(PSQL), conninfo or self.conninfo, "-X", "-A", "-t", "-v", "VERBOSITY=verbose",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(script.encode()), DEADLINE)
        return re.sub(r"PID \d+", "PID n", out.decode()), err.decode()

    def accept(self) -> ByteStream:
        stream = ByteStream()
        asyncio.get_running_loop().call_soon(self._serve, stream)
        return stream

    def _serve(self, stream: ByteStream) -> None:
        agent = Registry(self.services.config.identities).agent(
            parse_spiffe_id(SPIFFE_ID), not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
        )
        session = Session(stream, agent, self.services, "127.0.0.1:1")
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

    async def runs(self, fragment: str, state: str = "state = 'active'") -> None:
        sql = f"SELECT 1 FROM pg_stat_activity WHERE query LIKE '%{fragment}%' AND {state} AND pid <> pg_backend_pid()"
        await until(lambda: bool(self.direct(sql)))


MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def make_world(
    pg18: Cluster, fresh_database: Callable[[Cluster], str], tmp_path: Path
) -> AsyncIterator[MakeWorld]:
    made: list[tuple[World, asyncio.Server]] = []

    async def make(
        *, writes: str = "process", passthrough: bool = True, listener: dict[str, Any] | None = None, **database: Any
    ) -> World:
        name = fresh_database(pg18)
        upstream = Database(
            name="bank", host=pg18.host, port=pg18.port, database=name, role="postgres", tls="off",
            passthrough=passthrough, **database,
        )  # fmt: skip
        audit = Audit(directory=tmp_path, signing_key=tmp_path / "k", reads="process", writes=writes)  # type: ignore[arg-type]
        config = Config(
            listener=Listener(port=0, certificate=tmp_path / "c", key=tmp_path / "k", **(listener or {})),
            trust_domains=(),
            identities=(Identity(spiffe_id=SPIFFE_ID, database="bank"),),
            databases=(upstream,),
            policy=Policy(bundle=tmp_path / "b"),
            audit=audit,
        )
        reader = await connect(upstream)
        catalog = await read_catalog(reader)
        await reader.close()
        recorder = Kept(Spool(tmp_path / f"audit{len(made)}", 0, Ed25519PrivateKey.generate()), audit)
        recorder.events = []
        policies = Policies()

        async def refresh(database: str) -> None: ...

        services = Services(
            config=config,
            worker=1,
            workers=1,
            enforcement={
                "bank": Enforcement(
                    catalog=lambda: catalog,
                    pdp=lambda: policies,
                    provider=EmbeddedProvider([], []),
                    sensitive={},
                    passthrough=upstream.passthrough,
                )
            },
            pools={"bank": UpstreamPool(upstream)},
            recorder=recorder,
            metrics=Metrics(),
            cancels=CancelTable(1),
            server_version=lambda database: "18.6",
            refresh=refresh,
        )
        world = World(services, policies, recorder, pg18.dsn(name))
        server = await asyncio.get_running_loop().create_server(world.accept, "127.0.0.1", 0)
        world.port = server.sockets[0].getsockname()[1]
        world.direct("CREATE TABLE t (id int PRIMARY KEY, name text)")
        made.append((world, server))
        return world

    yield make
    for world, server in made:
        for writer in world.writers:
            writer.close()
        server.close()
        if world.sessions:
            await asyncio.wait(list(world.sessions.values()), timeout=DEADLINE)
        assert not world.sessions
        await asyncio.wait_for(world.services.pools["bank"].close(), DEADLINE)
        await world.recorder.close()


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    return await make_world()


# who gets one


async def test_the_policy_is_asked_once_about_the_session(world: World) -> None:
    client = await world.client()
    for _ in range(3):
        assert kinds(await client.query("SELECT 1")) == "TDCZ"
    assert world.policies.asked == [{"action": "connect", "relations": [], "functions": []}]


@pytest.mark.parametrize("change", [{"passthrough": False}, {"allow": False}])
async def test_without_the_decision_a_session_is_governed(world: World, change: dict[str, Any]) -> None:
    world.policies.decision = msgspec.structs.replace(GRANTED, **change)
    client = await world.client()
    assert error(await client.query("SELECT id FROM t"))["C"] == "42501"
    assert [asked["action"] for asked in world.policies.asked] == ["connect", "select"]


async def test_an_engine_that_fails_makes_a_governed_session(world: World) -> None:
    world.policies.fails = True
    client = await world.client()
    assert "AC-02" in error(await client.query("SELECT id FROM t"))["M"]


@pytest.mark.parametrize(
    "change",
    [
        {"filters": {"public.t": True}},
        {"columns": {"public.t.name": ColumnObligation("clear")}},
        {"limits": Limits(rows=1)},
        {"isolated": True},
    ],
)
async def test_passthrough_excludes_obligations(world: World, change: dict[str, Any]) -> None:
    world.policies.decision = msgspec.structs.replace(GRANTED, **change)
    fields = error(await (await world.connect()).start())
    assert (fields["S"], fields["C"]) == ("FATAL", "42501")
    assert "AC-05" in fields["M"]
    assert [event.name for event in world.recorder.events] == ["refused"]


async def test_ac_08_the_configuration_must_consent(make_world: MakeWorld) -> None:
    world = await make_world(passthrough=False)
    fields = error(await (await world.connect()).start())
    assert (fields["S"], fields["C"]) == ("FATAL", "42501")
    assert "AC-08" in fields["M"]


async def test_a_decision_holds_within_its_dates_only(world: World) -> None:
    world.policies.decision = msgspec.structs.replace(GRANTED, not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    assert "AC-04" in error(await (await world.connect()).start())["M"]


@pytest.mark.parametrize(
    ("change", "control"),
    [({"passthrough": False}, "AC-08"), ({"allow": False}, "AC-08"), ({"filters": {"public.t": True}}, "AC-05")],
)
async def test_ac_08_a_session_ends_when_the_policy_takes_its_consent_back(
    world: World, change: dict[str, Any], control: str
) -> None:
    client, other = await world.client(), await world.client()
    await client.query("LISTEN x")
    await client.query("BEGIN")
    world.policies.decision, world.policies.revision = msgspec.structs.replace(GRANTED, **change), "2"
    messages = await client.query("INSERT INTO t VALUES (1)")
    assert kinds(messages) == "E"
    assert (error(messages)["S"], error(messages)["C"]) == ("FATAL", "57P01")
    assert control in error(messages)["M"]
    assert world.direct("SELECT count(*) FROM t") == [(0,)]
    assert kinds(await other.query("SELECT 1")) == "E"
    await until(lambda: world.services.pools["bank"].counts.open == 0)


async def test_ac_08_nothing_unasked_reaches_a_session_without_consent(world: World) -> None:
    client = await world.client()
    await client.query("LISTEN x")
    world.policies.decision, world.policies.revision = msgspec.structs.replace(GRANTED, passthrough=False), "2"
    world.direct("NOTIFY x, 'not for you'")
    assert kinds(await client.unit()) == "E"


async def test_a_new_bundle_that_still_consents_is_recorded(world: World) -> None:
    client = await world.client()
    await client.query("SELECT 1")
    world.policies.revision = "2"
    await client.query("SELECT 2")
    first, second = world.statements()
    assert first.verdict is not None
    assert second.verdict is not None
    assert (first.verdict.revision, second.verdict.revision) == ("1", "2")
    assert first.verdict.id != second.verdict.id


# startup


async def test_the_client_sees_its_backend(world: World) -> None:
    client = await world.client(minor=2, options="-c search_path=a,b --intervalstyle=iso_8601", DateStyle="German")
    ((pid,),) = rows(await client.query("SELECT pg_backend_pid()"))
    assert client.key.process_id == int(pid or b"")
    assert len(client.key.secret) == 32
    assert client.parameters["DateStyle"] == "German, DMY"
    assert client.parameters["server_version"].startswith("18")
    settings = "SELECT current_setting('search_path'), current_setting('intervalstyle'), current_user"
    assert rows(await client.query(settings)) == [(b"a,b", b"iso_8601", b"postgres")]


async def test_notices_of_the_startup_are_passed_on(world: World) -> None:
    """To whom the connection belongs, and to nobody else."""
    connection = await psycopg.AsyncConnection.connect(world.dsn, autocommit=True)
    try:
        await connection.execute(
            "CREATE FUNCTION greet() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'welcome'; END $$;"
            "CREATE EVENT TRIGGER greet ON login EXECUTE FUNCTION greet()"
        )
        messages = await (await world.connect()).start()
        assert kinds(messages).rstrip("Z").endswith("NK")
        (notice,) = [NoticeResponse.decode(payload).fields for kind, payload in messages if kind == "N"]
        assert (notice["S"], notice["M"]) == ("NOTICE", "welcome")
        world.policies.decision = msgspec.structs.replace(GRANTED, passthrough=False)
        assert "N" not in kinds(await (await world.connect()).start())
    finally:
        await connection.execute("DROP EVENT TRIGGER greet")
        await connection.close()


async def test_a_setting_that_the_server_refuses_is_told_in_its_words(world: World) -> None:
    fields = error(await (await world.connect()).start(options="-c no_such_setting=1"))
    assert fields["M"] == 'unrecognized configuration parameter "no_such_setting"'
    assert fields["S"] == "FATAL"
    assert world.services.pools["bank"].counts.open == 0


async def test_replication_is_refused(world: World) -> None:
    fields = error(await (await world.connect()).start(replication="database"))
    assert (fields["S"], fields["C"]) == ("FATAL", "0A000")


async def test_the_call_chain_is_taken_out_of_the_startup(world: World) -> None:
    client = await world.client(**{"grille.trace": "tool='t1'"}, application_name="app")
    assert rows(await client.query("SHOW application_name")) == [(b"app",)]
    (event,) = world.statements()
    assert (event.chain.tool, event.chain.source, event.application) == ("t1", "startup", "app")


async def test_a_session_takes_one_place_of_the_pool_and_leaves_nothing(make_world: MakeWorld) -> None:
    world = await make_world(pool_size=1, acquire_timeout=0.2)
    client = await world.client()
    await client.query("SET search_path = nowhere")
    assert error(await (await world.connect()).start())["C"] == "53300"
    client.send(Terminate())
    await until(lambda: world.services.pools["bank"].counts.in_use == 0)
    assert world.services.pools["bank"].counts.idle == 0
    assert rows(await (await world.client()).query("SHOW search_path")) == [(b'"$user", public',)]


# messages

EXTENDED = (Parse("a", "SELECT $1::int"), Bind("p", "a", values=(b"7",)), Describe("P", "p"), Execute("p"), Sync())
SCRIPT: list[tuple[list[Any], str]] = [
    ([Query("SELECT 1; SELECT 2")], "TDCTDCZ"),
    ([Query("")], "IZ"),
    ([Query("SELEC 1")], "EZ"),
    ([*EXTENDED], "12TDCZ"),
    ([Describe("S", "a"), Close("S", "a"), Sync()], "tT3Z"),
    ([Parse("", "SELECT 1/(random()*0)::int"), Bind("", ""), Execute(""), Execute(""), Sync()], "12EZ"),
    ([Parse("", "nonsense"), Bind("", ""), Query("SELECT 1"), Sync()], "EZ"),
    ([Parse("", "SELECT generate_series(1, 5)"), Bind("", ""), Execute("", 2), Execute("", 2), Execute(""), Sync()],
     "12DDsDDsDCZ"),
    ([Query("COPY t FROM STDIN"), CopyData(b"1\ta\n2\t"), CopyData(b"b\n"), CopyDone()], "GCZ"),
    ([Query("COPY t TO STDOUT")], "HddcCZ"),
    ([Query("COPY t FROM STDIN"), CopyData(b"3\tc\n"), CopyFail("enough")], "GEZ"),
    ([Query("COPY t FROM STDIN"), CopyData(b"x\ty\n"), CopyData(b"4\td\n"), CopyDone()], "GEZ"),
    ([Query("COPY nowhere FROM STDIN"), CopyData(b"x\ty\n"), CopyDone()], "EZ"),
    ([Query("COPY t FROM STDIN; COPY t FROM STDIN"), CopyData(b"5\te\n"), CopyDone(), CopyData(b"6\tf\n"), CopyDone()],
     "GCGCZ"),
    ([Parse("", "COPY t FROM STDIN"), Bind("", ""), Execute(""), CopyData(b"7\tg\n"), CopyDone(), Sync()], "12GCZ"),
    ([Parse("", "COPY t FROM STDIN"), Bind("", ""), Execute(""), Sync(), CopyData(b"8\th\n"), Flush(), CopyDone(),
      Sync()], "12GCZ"),
    ([Parse("", "COPY t FROM STDIN"), Bind("", ""), Execute(""), CopyData(b"x\n"), CopyDone(), Sync()], "12GEZ"),
    ([Parse("", "COPY t TO STDOUT"), Bind("", ""), Execute(""), Sync()], "12HddddddcCZ"),
    ([CopyData(b"late"), CopyDone(), CopyFail("late"), Query("SELECT 1")], "TDCZ"),
    ([Query("BEGIN"), ], "CZ"),
    ([Query("SELECT 1/0")], "EZ"),
    ([Query("SELECT 1")], "EZ"),
    ([Query("ROLLBACK")], "CZ"),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
async def test_every_unit_is_answered_as_the_server_answers_it(world: World, size: int) -> None:
    """All at once: the client waits for nothing, whatever way its bytes are cut."""
    client = await world.client()
    stream = b"".join(message.encode() for unit, _ in SCRIPT for message in unit)

    async def write() -> None:
        for start in range(0, len(stream), size):
            client.writer.write(stream[start : start + size])
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    for unit, expected in SCRIPT:
        assert kinds(await client.unit()) == expected, unit
    await writing
    assert world.direct("SELECT string_agg(name, '' ORDER BY id) FROM t") == [("abefgh",)]


async def test_every_unit_is_answered_as_without_grille(world: World, pg18: Cluster) -> None:
    """The same bytes come back from a session that goes around, but for the backend's number."""

    async def play(client: Client) -> list[list[tuple[str, bytes]]]:
        await client.query("TRUNCATE t")
        return [await client.ask(*unit) for unit, _ in SCRIPT]

    through = await play(await world.client())
    reader, writer = await asyncio.open_unix_connection(f"{pg18.host}/.s.PGSQL.{pg18.port}")
    world.writers.append(writer)
    around = Client(reader, writer)
    name = psycopg.conninfo.conninfo_to_dict(world.dsn)["dbname"]
    await around.start(user="postgres", database=str(name))
    assert through == await play(around)


async def test_flush_is_answered_in_the_middle_of_a_unit(world: World) -> None:
    client = await world.client()
    client.send(Parse("", "SELECT 5"), Flush())
    assert (await client.message())[0] == "1"
    client.send(Bind("", ""), Execute(""), Flush())
    assert [(await client.message())[0] for _ in range(3)] == ["2", "D", "C"]
    client.send(Execute("nowhere"), Flush())
    assert (await client.message())[0] == "E"
    assert kinds(await client.ask(Parse("", "skipped"), Sync())) == "Z"


async def test_an_error_is_told_before_its_sync(world: World) -> None:
    client = await world.client()
    client.send(Parse("", "SELEC"))
    kind, payload = await client.message()
    assert (kind, ErrorResponse.decode(payload).fields["P"]) == ("E", "1")
    assert kinds(await client.ask(Sync())) == "Z"


async def test_a_sync_that_crosses_the_wish_for_data_is_void(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was read before the server's CopyInResponse and would leave after it: the server would not count it."""
    client = await world.client()
    (session,) = world.sessions
    no_cancel, calls = passthrough.PrivateConnection.no_cancel, iter(range(9))

    async def late(connection: passthrough.PrivateConnection) -> None:
        await no_cancel(connection)
        if next(calls) == 3:
            await until(lambda: session._state.state is State.COPY_IN_EXTENDED)

    monkeypatch.setattr(passthrough.PrivateConnection, "no_cancel", late)
    monkeypatch.setattr(passthrough, "_FORWARD_BYTES", 0)  # each message leaves by itself
    client.send(Parse("", "COPY t FROM STDIN"), Bind("", ""), Execute(""), Sync())
    assert kinds([await client.message() for _ in range(3)]) == "12G"
    assert kinds(await client.ask(CopyData(b"1\ta\n"), CopyDone(), Sync())) == "CZ"
    assert kinds(await client.query("SELECT 1")) == "TDCZ"


async def test_data_that_comes_while_its_failure_is_recorded_is_dropped(make_world: MakeWorld) -> None:
    world = await make_world(writes="strict")
    client = await world.client()
    for _ in range(5):
        client.send(Query("COPY t FROM STDIN"))
        assert (await client.message())[0] == "G"
        client.send(CopyData(b"bad\n" * 5000))
        answer = asyncio.create_task(client.unit())
        while not answer.done():
            client.send(CopyData(b"late\n"))
            await asyncio.sleep(0)
        assert kinds(answer.result()) == "EZ"
        client.send(CopyFail("seen"))
    assert kinds(await client.query("SELECT 1")) == "TDCZ"


async def test_copy_data_behind_what_is_no_copy_is_dropped(world: World) -> None:
    client = await world.client()
    assert kinds(await client.ask(Parse("", "SELECT 1"), Bind("", ""), Execute(""), CopyData(b"x"), Sync())) == "12DCZ"


@pytest.mark.parametrize("seed", range(20))
async def test_garbage_ends_the_session_and_its_backend(world: World, seed: int) -> None:
    client = await world.client()
    client.writer.write(b"\x01" + random.Random(seed).randbytes(200))
    messages = await client.unit()
    assert kinds(messages) == "E"
    assert (error(messages)["S"], error(messages)["C"]) == ("FATAL", "08P01")
    await until(lambda: world.services.pools["bank"].counts.open == 0)


@pytest.mark.parametrize("inside", [False, True])
async def test_what_is_not_carried_ends_the_session(world: World, inside: bool) -> None:
    client = await world.client()
    if inside:
        client.send(Query("COPY t FROM STDIN"))
        assert (await client.message())[0] == "G"
    messages = await client.ask(Query("SELECT 1") if inside else FunctionCall(1, (), (), 0))
    assert (error(messages)["S"], error(messages)["C"]) == ("FATAL", "08P01" if inside else "0A000")


async def test_what_is_too_large_fails_and_leaves_the_session_usable(make_world: MakeWorld) -> None:
    world = await make_world(listener={"max_statement_bytes": 1024, "max_message_bytes": 2048})
    client = await world.client()
    large = "SELECT '" + "x" * 2000 + "'"
    messages = await client.query(large)
    assert kinds(messages) == "EZ"
    assert error(messages)["C"] == "54000"
    messages = await client.ask(Parse("", "SELECT 1"), Parse("", large + " " * 300_000), Sync())
    assert kinds(messages) == "1EZ"
    assert "WP-03" in error(messages)["M"]
    messages = await client.ask(Parse("", "SELECT $1::text"), Bind("", "", values=(b"x" * 3000,)), Execute(""), Sync())
    assert kinds(messages) == "1EZ"
    assert kinds(await client.query("SELECT 1")) == "TDCZ"
    client.send(Query("COPY t FROM STDIN"))
    assert (await client.message())[0] == "G"
    assert error(await client.ask(CopyData(b"x" * 3000)))["S"] == "FATAL"


async def test_executions_before_one_sync_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passthrough, "MAX_EXECUTIONS", 3)
    client = await world.client()
    one = (Bind("", "s"), Execute(""))
    messages = await client.ask(Parse("s", "SELECT 1"), *one * 4, Sync())
    assert kinds(messages) == "1" + "2DC" * 3 + "2EZ"
    assert kinds(await client.ask(*one * 3, Sync())) == "2DC" * 3 + "Z"


# cancel, notifications, ends


async def test_wp_05_a_cancel_reaches_the_statement_of_its_key_only(world: World) -> None:
    client, other = await world.client(), await world.client()
    client.send(Query("SELECT pg_sleep(60)"))
    await world.runs("pg_sleep")
    cancels = world.services.cancels
    assert not cancels.cancel(client.key.process_id, other.key.secret)
    assert not cancels.cancel(other.key.process_id, client.key.secret)
    assert cancels.cancel(other.key.process_id, other.key.secret)  # it runs nothing
    request = await world.connect()
    request.writer.write(CancelRequest(client.key.process_id, client.key.secret).encode())
    messages = await client.unit()
    assert error(messages)["M"] == "canceling statement due to user request"
    assert kinds(await client.query("SELECT 1")) == "TDCZ"
    assert kinds(await other.query("SELECT 1")) == "TDCZ"


async def test_cancel_while_the_server_waits_for_data(world: World) -> None:
    client = await world.client()
    client.send(Query("COPY t FROM STDIN"))
    assert (await client.message())[0] == "G"
    client.send(CopyData(b"1\ta\n"))
    await world.runs("COPY t", "wait_event = 'ClientRead' AND state = 'active'")
    assert world.services.cancels.cancel(client.key.process_id, client.key.secret)
    assert error(await client.unit())["C"] == "57014"
    client.send(CopyData(b"2\tb\n"), CopyDone())
    assert kinds(await client.query("SELECT 1")) == "TDCZ"


def test_wp_05_the_same_process_id_of_two_servers_is_two_keys() -> None:
    class Running:
        cancelled = 0

        def cancel(self) -> None:
            self.cancelled += 1

    asked: list[int | None] = []
    table = CancelTable(1, lambda worker, number, secret: asked.append(worker))
    first, second = Running(), Running()
    one, two = table.add(first, 4, process_id=77), table.add(second, 32, process_id=77)
    assert one.process_id == two.process_id == 77
    assert table.cancel(77, two.secret)
    assert (first.cancelled, second.cancelled) == (0, 1)
    table.remove(two)
    assert not table.cancel(77, two.secret)
    assert asked == [None]  # whoever has that backend
    assert not table.cancel(77, two.secret, forwarded=True)
    assert asked == [None]
    assert table.cancel(77, one.secret)
    assert (first.cancelled, second.cancelled) == (1, 1)


async def test_notifications_and_settings_arrive_unasked(world: World) -> None:
    client, other = await world.client(), await world.client()
    await client.query("LISTEN x")
    await other.query("NOTIFY x, 'hello'")
    kind, payload = await client.message()
    assert kind == "A"
    assert struct.unpack("!i", payload[:4])[0] == other.key.process_id
    assert payload[4:] == b"x\0hello\0"
    assert kinds(await client.query("SET DateStyle = 'SQL, DMY'")) == "CSZ"
    assert kinds(await client.query("NOTIFY x")) == "CAZ"


async def test_a_notice_does_not_wait_for_its_statement(world: World) -> None:
    client, other = await world.client(), await world.client()
    await other.query("SELECT pg_advisory_lock(1)")
    client.send(Query("DO $$BEGIN RAISE NOTICE 'waits'; PERFORM pg_advisory_lock(1); END$$"))
    kind, payload = await client.message()
    assert (kind, ErrorResponse.decode(payload).fields["M"]) == ("N", "waits")
    await other.query("SELECT pg_advisory_unlock(1)")
    assert kinds(await client.unit()) == "CZ"
    intent, outcome = [event for event in world.statements() if event.intent or event.outcome.status == "intent"]  # type: ignore[union-attr]
    assert outcome.intent == intent.id


async def test_a_backend_that_ends_tells_its_client(world: World) -> None:
    client, busy = await world.client(), await world.client()
    busy.send(Query("SELECT pg_sleep(60)"))
    await world.runs("pg_sleep")
    for each in (client, busy):
        world.direct(f"SELECT pg_terminate_backend({each.key.process_id})")
        messages = await each.unit()
        assert kinds(messages) == ("E" if each is client else "TE")
        assert (error(messages)["S"], error(messages)["C"]) == ("FATAL", "57P01")
    (event,) = world.statements()
    assert event.outcome is not None
    assert (event.outcome.status, event.outcome.sqlstate) == ("unknown", "57P01")


async def test_a_backend_that_is_killed(world: World) -> None:
    client = await world.client()
    assert world.sessions
    session = next(iter(world.sessions))
    session._passthrough._connection.abort()  # type: ignore[union-attr]
    messages = await client.unit()
    assert (error(messages)["S"], error(messages)["C"]) == ("FATAL", "08006")


async def test_a_client_that_vanishes_takes_its_statement_along(world: World) -> None:
    client = await world.client()
    client.send(Query("SELECT pg_sleep(60)"))
    await world.runs("pg_sleep")
    client.writer.transport.abort()
    await until(lambda: not world.direct("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"))
    await until(lambda: world.services.pools["bank"].counts.open == 0)
    await until(lambda: len(world.statements()) == 1)
    outcome = world.statements()[0].outcome
    assert outcome is not None
    assert (outcome.status, outcome.sqlstate) in (("unknown", ""), ("error", "57014"))


async def test_a_drain_lets_a_transaction_finish(world: World) -> None:
    idle, busy = await world.client(), await world.client()
    await busy.query("BEGIN")
    for session in list(world.sessions):
        session.drain()
    assert error(await idle.unit())["C"] == "57P01"
    assert kinds(await busy.query("INSERT INTO t VALUES (1)")) == "CZ"
    assert kinds(await busy.query("COMMIT")) == "CZ"
    assert error(await busy.unit())["C"] == "57P01"
    assert world.direct("SELECT count(*) FROM t") == [(1,)]


# back-pressure


async def test_a_slow_reader_slows_the_server(world: World) -> None:
    client = await world.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    client.send(Query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"))
    waiting = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'COPY%' AND wait_event = 'ClientWrite'"
    await steady(lambda: bool(world.direct(waiting)))
    (session,) = world.sessions
    transport = session.stream._transport
    assert transport is not None
    assert transport.get_write_buffer_size() < 2_000_000
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    messages = await client.unit()
    assert kinds(messages) == "H" + "d" * 100_000 + "cCZ"


async def test_a_slow_server_slows_the_writer(world: World) -> None:
    client, other = await world.client(), await world.client()
    await other.query("BEGIN; LOCK TABLE t")
    await client.query("CREATE TEMP TABLE own (a text)")
    await client.query(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM 1 FROM t; RETURN NEW; END$$;"
        "CREATE TRIGGER slow BEFORE INSERT ON own FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    client.send(Query("COPY own FROM STDIN"))
    assert (await client.message())[0] == "G"
    row = CopyData(b"x" * 1000 + b"\n").encode()
    for _ in range(64):
        client.writer.write(row * 1000)
    left = 0

    def unchanged() -> bool:
        nonlocal left
        before, left = left, client.writer.transport.get_write_buffer_size()
        return before == left

    await steady(unchanged)
    assert left > 32_000_000
    await other.query("COMMIT")
    client.send(CopyDone())
    messages = await client.unit()
    assert messages[0] == ("C", b"COPY 64000\0")


# the record


def recorded(event: Event) -> tuple[Any, ...]:
    outcome = event.outcome
    assert outcome is not None
    return event.template, outcome.status, outcome.tag, outcome.sqlstate, outcome.rows


async def test_every_query_and_every_execute_has_one_event(world: World) -> None:
    client = await world.client()
    await client.query("SELECT 'secret' /* comment */")
    await client.query("CREATE ROLE nobody PASSWORD 'secret'; SELECT 1")
    await client.query("SELECT 1; INSERT INTO t VALUES (1, 'secret'), (2, 'b')")
    await client.query("SELECT 1/0")
    await client.ask(
        Parse("s", "SELECT id FROM t WHERE id >= $1", (23,)), Bind("", "s", values=(b"1",)), Execute("", 1),
        Execute(""), Execute("nowhere"), Execute("skipped"), Sync(),
    )  # fmt: skip
    await client.ask(Parse("s", "SELECT 'again'"), Bind("", "s"), Execute(""), Sync())
    await client.ask(Bind("", "s", values=(b"9",)), Execute(""), Sync())
    await client.query("COPY t TO STDOUT")
    world.direct("DROP ROLE nobody")
    assert [recorded(event) for event in world.statements()] == [
        ("SELECT $1", "ok", "SELECT 1", "", 1),
        ("", "ok", "CREATE ROLE; SELECT 1", "", 1),
        ("SELECT $1; INSERT INTO t VALUES ($2, $3), ($4, $5)", "ok", "SELECT 1; INSERT 0 2", "", 3),
        ("SELECT $1/$2", "error", "", "22012", 0),
        ("SELECT id FROM t WHERE id >= $1", "ok", "", "", 1),
        ("SELECT id FROM t WHERE id >= $1", "ok", "SELECT 1", "", 1),
        ("", "error", "", "34000", 0),
        ("SELECT $1", "error", "", "42P05", 0),
        ("SELECT id FROM t WHERE id >= $1", "ok", "SELECT 0", "", 0),
        ("", "ok", "COPY 2", "", 2),
    ]
    event = world.statements()[4]
    assert [value.type for value in event.values] == ["23"]
    assert event.verdict is not None
    assert (event.verdict.allow, event.verdict.control, event.verdict.reason) == (True, "AC-01", "a trusted tool")
    assert "secret" not in repr(world.recorder.events)
    connected = next(event for event in world.recorder.events if event.name == "connect")
    assert connected.verdict is not None
    assert connected.verdict.id == event.verdict.id


async def test_a_name_means_what_it_was_last_given(world: World) -> None:
    client = await world.client()
    await client.ask(Parse("s", "SELECT 1 AS one"), Sync())
    await client.query("DEALLOCATE s")
    await client.query("PREPARE s AS SELECT 2 AS two")
    await client.ask(Bind("", "s"), Execute(""), Sync())
    assert world.statements()[-1].template == ""


async def test_at_level_strict_the_intent_comes_first(make_world: MakeWorld) -> None:
    world = await make_world(writes="strict")
    client = await world.client()
    await client.ask(*EXTENDED)
    await client.ask(
        Parse("", "SELECT 1/(random()*0)::int"), Bind("", ""), Execute(""), Bind("", ""), Execute(""), Sync()
    )
    found = [(event.outcome.status, bool(event.intent)) for event in world.statements() if event.outcome]
    assert found == [("intent", False), ("ok", True), *[("intent", False)] * 2, ("error", True), ("error", True)]


async def test_a_large_result_is_streamed_after_its_intent(world: World) -> None:
    client = await world.client()
    client.send(Query("SELECT repeat('x', 1000) FROM generate_series(1, 30000)"))
    assert kinds([await client.message() for _ in range(500)]) == "T" + "D" * 499
    (intent,) = world.statements()
    assert intent.outcome is not None
    assert intent.outcome.status == "intent"
    assert kinds(await client.unit()) == "D" * 29_501 + "CZ"
    outcome = world.statements()[1]
    assert (outcome.intent, outcome.outcome.rows) == (intent.id, 30_000)  # type: ignore[union-attr]


@pytest.mark.parametrize("when", ["intent", "ok"])
async def test_au_01_what_cannot_be_recorded_is_not_answered(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    world = await make_world(writes="strict")
    client = await world.client()
    keep = world.recorder.keep

    async def broken(event: Event) -> None:
        if event.outcome is not None and event.outcome.status == when:
            raise Refusal("AU-01", "the audit trail cannot be written", sqlstate="58030")
        await keep(event)

    monkeypatch.setattr(world.recorder, "keep", broken)
    messages = await client.query("INSERT INTO t VALUES (1) RETURNING id")
    assert kinds(messages) == "E"
    assert (error(messages)["S"], error(messages)["C"]) == ("FATAL", "58030")
    assert world.direct("SELECT count(*) FROM t") == [(0 if when == "intent" else 1,)]


# real clients


@pytest.mark.skipif(PSQL is None, reason="psql is not installed")
async def test_psql_sees_what_it_sees_without_grille(world: World, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('1,"a,b"\n2,\n')
    script = rf"""
        TRUNCATE t;
        \copy t FROM '{tmp_path}/in.csv' CSV
        \copy t TO STDOUT
        \copy t TO '{tmp_path}/t.bin' BINARY
        CREATE TEMP TABLE own (LIKE t);
        \copy own FROM '{tmp_path}/t.bin' BINARY
        SELECT count(*) FROM own;
        BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 5); COMMIT; FETCH 2 FROM c; CLOSE c;
        PREPARE p(int) AS SELECT $1 + 1; EXECUTE p(41);
        LISTEN x; NOTIFY x, 'psql';
        BEGIN; PREPARE TRANSACTION 'two';
        SELECT FROM WHERE;
        COPY t FROM STDIN;
bad
\.
        SELECT 1 \; SELECT 2 \; SELECT 1/0 \; SELECT 3;
        VACUUM t;
        \d t
        \gdesc
        SELECT 'still here';
    """
    out, err = await world.psql(script)
    assert (out, err) == await world.psql(script, world.dsn)
    assert out.startswith("TRUNCATE TABLE\nCOPY 2\n1\ta,b\n2\t\\N\nCOPY 2\nCREATE TABLE\nCOPY 2\n2\nBEGIN\n")
    assert 'Asynchronous notification "x" with payload "psql" received' in out
    assert out.endswith("still here\n")
    assert "LINE 1: SELECT FROM WHERE;" in err


FORMATS = ["", "WITH (FORMAT csv)", "WITH (FORMAT binary)"]


@pytest.mark.parametrize("format_", FORMATS)
async def test_psycopg_copies_both_ways(world: World, format_: str) -> None:
    async with await world.psycopg() as connection:
        await connection.execute("INSERT INTO t SELECT n, repeat('é', n % 50) FROM generate_series(1, 20000) n")
        data = b""
        async with connection.cursor().copy(f"COPY t TO STDOUT {format_}") as copy:
            async for piece in copy:
                data += piece
        await connection.execute("CREATE TEMP TABLE own (LIKE t)")
        async with connection.cursor().copy(f"COPY own FROM STDIN {format_}") as copy:
            for start in range(0, len(data), 10_007):
                await copy.write(data[start : start + 10_007])
        cursor = await connection.execute("SELECT count(*) FROM own NATURAL JOIN t")
        assert await cursor.fetchone() == (20000,)
        with pytest.raises(errors.DataError):  # noqa: PT012
            async with connection.cursor().copy(f"COPY own FROM STDIN {format_}") as copy:
                for _ in range(1000):
                    await copy.write(b"bad" * 1000)
        with pytest.raises(KeyError):
            async with connection.cursor().copy(f"COPY own FROM STDIN {format_}") as copy:
                raise KeyError
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


async def test_psycopg_pipelines(world: World) -> None:
    async with await world.psycopg() as connection:
        async with connection.pipeline():
            for number in range(1000):
                await connection.execute("INSERT INTO t VALUES (%s, %s)", (number, "n"))
            cursor = await connection.execute("SELECT count(*) FROM t")
        assert await cursor.fetchone() == (1000,)
        with pytest.raises(errors.DivisionByZero):  # noqa: PT012
            async with connection.pipeline() as pipeline:
                good = await connection.execute("SELECT 1")
                await connection.execute("SELECT 1/0")
                await pipeline.sync()
        assert await good.fetchone() == (1,)


async def test_psycopg_speaks_another_encoding(world: World) -> None:
    async with await world.psycopg(client_encoding="latin1") as connection:
        await connection.execute("INSERT INTO t VALUES (1, 'h\u00e9')")
        cursor = await connection.execute('SELECT name AS "\u00e9" FROM t WHERE name = %s', ("h\u00e9",))
        assert await cursor.fetchone() == ("h\u00e9",)
    assert world.direct("SELECT name FROM t") == [("h\u00e9",)]


async def test_asyncpg(world: World) -> None:
    connection = await asyncpg.connect(host="127.0.0.1", port=world.port, user="x", database="y", ssl=False)
    try:
        made = await connection.copy_records_to_table("t", records=[(n, str(n)) for n in range(5000)])
        assert made == "COPY 5000"
        out = io.BytesIO()
        await connection.copy_from_query("SELECT * FROM t WHERE id < $1", 3, output=out, format="csv")
        assert out.getvalue() == b"0,0\n1,1\n2,2\n"
        out.seek(0)
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.copy_to_table("t", source=out, format="csv")
        async with connection.transaction():
            cursor = await connection.cursor("SELECT id FROM t ORDER BY id")
            assert [row[0] for row in await cursor.fetch(3)] == [0, 1, 2]
            assert await cursor.forward(10) == 10
        heard: asyncio.Queue[str] = asyncio.Queue()
        await connection.add_listener("x", lambda *message: heard.put_nowait(message[3]))
        world.direct("NOTIFY x, 'asyncpg'")
        assert await asyncio.wait_for(heard.get(), DEADLINE) == "asyncpg"
        with pytest.raises(asyncpg.QueryCanceledError):
            await connection.execute("SET statement_timeout = 50; SELECT pg_sleep(60)")
        await connection.reset()
    finally:
        await connection.close()
