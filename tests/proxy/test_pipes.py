"""What a real server does on a shared pipe: the second lock under what the plans promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from grille.protocols.postgres.messages import Bind, ErrorResponse, Execute, Parse, Sync, decode_data_row
from grille.protocols.postgres.pipeline import Expectation, Request
from grille.proxy.config import Database
from grille.proxy.demo.cluster import Cluster
from grille.proxy.pipe import Pipe, SharedPipes, Turn
from grille.proxy.upstream import UpstreamLost

DEADLINE = 10.0


class Asked:
    """One unit of one statement, and what became of it."""

    def __init__(self) -> None:
        self.rows: list[tuple[bytes | None, ...]] = []
        self.code = ""
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def reply(self, kind: int, payload: bytes, item: int, message: bytes) -> None:
        if kind == ord("D"):
            self.rows.append(decode_data_row(message[5:]))
        elif kind == ord("E"):
            self.code = ErrorResponse.decode(payload).fields["C"]

    def finished(self, status: str) -> None:
        self.done.set_result(status)

    def lost(self, lost: UpstreamLost) -> None:
        self.done.set_result("lost")


def send(pipe: Pipe, text: str) -> Asked:
    asked = Asked()
    data = Parse("", text).encode() + Bind("", "").encode() + Execute("").encode() + Sync().encode()
    requests = (Request.PARSE, Request.BIND, Request.EXECUTE, Request.SYNC)
    pipe.send(asked, data, [Expectation(request) for request in requests])  # type: ignore[arg-type]
    return asked


async def ask(pipe: Pipe, text: str) -> Asked:
    asked = send(pipe, text)
    async with asyncio.timeout(DEADLINE):
        await asked.done
    return asked


class Place:
    """A database, its shared pipes and its owner's way in."""

    def __init__(self, database: Database, dsn: str) -> None:
        self.dsn = dsn
        self.pipes = SharedPipes(database, Turn(asyncio.get_running_loop()))

    async def pipe(self) -> Pipe:
        async with asyncio.timeout(DEADLINE):
            while (pipe := self.pipes.choose(())) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return pipe


@pytest.fixture
async def place(server: Cluster, fresh_database: Callable[[Cluster], str]) -> AsyncIterator[Place]:
    name = fresh_database(server)
    with psycopg.connect(server.dsn(name), autocommit=True) as owner:
        owner.execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
        owner.execute("INSERT INTO t VALUES (1, 'one')")
        owner.execute("CREATE SEQUENCE s")
    database = Database(
        name="bank", host=server.host, port=server.port, database=name, role="postgres", tls="off", read_pipes=1
    )
    place = Place(database, server.dsn(name))
    yield place
    await place.pipes.close()


WRITES = [
    "INSERT INTO public.t VALUES (2, 'two')",
    "SELECT nextval('public.s')",
    "SELECT * FROM public.t FOR UPDATE",
    "CREATE TABLE public.u (a int)",
    "WITH d AS (DELETE FROM public.t RETURNING id) SELECT * FROM d",
]


async def test_read_that_writes(place: Place) -> None:
    """The server itself refuses, whatever the plan said."""
    pipe = await place.pipe()
    for text in WRITES:
        assert (await ask(pipe, text)).code == "25006", text
    assert (await ask(pipe, "SELECT name FROM public.t")).rows == [(b"one",)]
    assert not pipe.lost


@pytest.mark.parametrize(
    "text",
    [
        "SELECT set_config('default_transaction_read_only', 'off', false)",
        "SELECT set_config('TimeZone', 'Asia/Tokyo', false)",
        "SET DateStyle = 'SQL'",
    ],
)
async def test_state_through_functions(place: Place, text: str) -> None:
    """A setting that is reported and changes ends the pipe before anything behind it is answered."""
    pipe = await place.pipe()
    changing, behind = send(pipe, text), send(pipe, "SELECT name FROM public.t")
    async with asyncio.timeout(DEADLINE):
        assert await behind.done == "lost"
    assert changing.done.done()
    assert pipe.lost


@pytest.mark.parametrize("text", ["BEGIN", "START TRANSACTION READ WRITE"])
async def test_begin_slips_through(place: Place, text: str) -> None:
    pipe = await place.pipe()
    begin, behind = send(pipe, text), send(pipe, "SELECT name FROM public.t")
    async with asyncio.timeout(DEADLINE):
        assert await begin.done == "lost"
        assert await behind.done == "lost"
    assert pipe.lost


async def test_implicit_transaction(place: Place) -> None:
    """An error ends its own unit only."""
    pipe = await place.pipe()
    asked = [send(pipe, text) for text in ("SELECT 1", "SELECT 1/0", "SELECT 3")]
    async with asyncio.timeout(DEADLINE):
        assert [await each.done for each in asked] == ["I"] * 3
    assert [(each.code, each.rows) for each in asked] == [("", [(b"1",)]), ("22012", []), ("", [(b"3",)])]


async def test_locks(place: Place) -> None:
    """Another's lock holds a unit, and all behind it, for a moment only."""
    pipe = await place.pipe()
    with psycopg.connect(place.dsn) as owner:
        owner.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        began = asyncio.get_running_loop().time()
        asked = [send(pipe, "SELECT name FROM public.t"), send(pipe, "SELECT 2")]
        async with asyncio.timeout(DEADLINE):
            assert [await each.done for each in asked] == ["I", "I"]
        assert asyncio.get_running_loop().time() - began < 5
    assert [each.code for each in asked] == ["55P03", ""]
    assert asked[1].rows == [(b"2",)]


async def test_slow(place: Place) -> None:
    pipe = await place.pipe()
    asked = [send(pipe, "SELECT pg_sleep(60)"), send(pipe, "SELECT 2")]
    async with asyncio.timeout(DEADLINE):
        assert [await each.done for each in asked] == ["I", "I"]
    assert [each.code for each in asked] == ["57014", ""]


async def test_unsolicited_messages(place: Place) -> None:
    """A reload changes nothing that is pinned; the end of the backend is told to every unit, and its text to none."""
    pipe = await place.pipe()
    with psycopg.connect(place.dsn, autocommit=True) as owner:
        owner.execute("ALTER SYSTEM SET DateStyle = 'SQL, DMY'")
        try:
            owner.execute("SELECT pg_reload_conf()")
            for _ in range(20):
                assert (await ask(pipe, "SELECT DATE '2026-01-02'")).rows == [(b"2026-01-02",)]
        finally:
            owner.execute("ALTER SYSTEM RESET DateStyle")
            owner.execute("SELECT pg_reload_conf()")
        assert not pipe.lost
        owner.execute("SELECT pg_terminate_backend(%s)", (pipe.connection.process_id,))
        asked = [send(pipe, "SELECT 1") for _ in range(3)]
        async with asyncio.timeout(DEADLINE):
            assert [await each.done for each in asked] == ["lost"] * 3
    assert not any(each.rows or each.code for each in asked)


async def test_catalogue_epoch(place: Place) -> None:
    """A notification is not asked for, so it ends the pipe."""
    pipe = await place.pipe()
    await ask(pipe, "LISTEN c")
    with psycopg.connect(place.dsn, autocommit=True) as owner:
        owner.execute("NOTIFY c")
    async with asyncio.timeout(DEADLINE):
        while not pipe.lost:
            await ask(pipe, "SELECT 1")
