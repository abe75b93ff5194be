import asyncio
import datetime
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from grille.controls import Refusal
from grille.protocols.postgres.framing import ProtocolViolation
from grille.protocols.postgres.messages import (
    AUTHENTICATION_OK,
    Authentication,
    BackendKeyData,
    Bind,
    CommandComplete,
    ErrorResponse,
    Execute,
    Flush,
    NoticeResponse,
    ParameterStatus,
    Parse,
    ReadyForQuery,
    Sync,
    decode_data_row,
)
from grille.protocols.postgres.pipeline import Expectation, Request
from grille.proxy import upstream
from grille.proxy.config import Database
from grille.proxy.demo.cluster import Cluster, debian_binaries
from grille.proxy.upstream import PINNED, UpstreamConnection, UpstreamLost, UpstreamPool

DEADLINE = 10.0


ROLE = "upstream_test"


def sql(cluster: Cluster, text: str) -> str:
    """The first value of the last row that the superuser gets, or an empty string."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        cursor = connection.execute(text)
        row = cursor.fetchone() if cursor.description is not None else None
    return str(row[0]) if row is not None else ""


@pytest.fixture(scope="module")
def cluster(server: Cluster) -> Iterator[Cluster]:
    """Each server, with a role whose own settings would change what statements mean."""
    sql(server, f"create role {ROLE} login")
    for setting in ("standard_conforming_strings = off", "datestyle = 'German'", "search_path = public"):
        sql(server, f"alter role {ROLE} set {setting}")
    yield server
    sql(server, f"drop role {ROLE}")


@pytest.fixture
def database(cluster: Cluster) -> Database:
    return Database(
        name="bank",
        host=cluster.host,
        port=cluster.port,
        database="postgres",
        role=ROLE,
        tls="off",
        pool_size=2,
        statement_timeout=20.0,
    )


@asynccontextmanager
async def connected(database: Database, profile: upstream.Profile = ()) -> AsyncIterator[UpstreamConnection]:
    connection = await UpstreamConnection.open(database, profile)
    try:
        yield connection
    finally:
        connection.abort()
        async with asyncio.timeout(DEADLINE):
            await connection.wait_closed()


@asynccontextmanager
async def pooled(database: Database) -> AsyncIterator[UpstreamPool]:
    pool = UpstreamPool(database)
    try:
        yield pool
    finally:
        seen = [*pool._idle, *pool._in_use]
        pool.abort()
        async with asyncio.timeout(DEADLINE):
            for connection in seen:
                await connection.wait_closed()
            await asyncio.gather(*pool._discarding)


def unit(text: str) -> tuple[bytes, list[Expectation]]:
    messages = Parse("", text).encode() + Bind("", "").encode() + Execute("").encode() + Sync().encode()
    return messages, [Expectation(r) for r in (Request.PARSE, Request.BIND, Request.EXECUTE, Request.SYNC)]


async def start_sleeping(cluster: Cluster, connection: UpstreamConnection) -> None:
    """Returns when the server sleeps: a cancel request that overtakes its statement is lost."""
    parse = Parse("", "select pg_sleep(60)").encode() + Bind("", "").encode() + Flush().encode()
    expectations = unit("")[1]
    await connection.send(parse, expectations[:2])
    assert await all_replies(connection) == "12"
    await connection.send(Execute("").encode() + Sync().encode(), expectations[2:])

    async def asleep() -> bool:
        query = "select wait_event from pg_stat_activity where state = 'active' and pid ="
        return sql(cluster, f"{query} {connection.process_id}") == "PgSleep"

    await eventually(asleep)


async def run(connection: UpstreamConnection, text: str) -> list[tuple[str | None, ...]]:
    """The rows of one statement; its error is raised as ProtocolViolation of that SQLSTATE."""
    await connection.send(*unit(text))
    rows = []
    failure: ErrorResponse | None = None
    async with asyncio.timeout(DEADLINE):
        async for reply in connection.replies():
            if reply.kind == ord("D"):
                rows.append(tuple(v.decode() if v is not None else None for v in decode_data_row(reply.payload)))
            elif reply.kind == ord("E"):
                failure = ErrorResponse.decode(reply.payload)
    if failure is not None:
        raise ProtocolViolation(failure.message, sqlstate=failure.sqlstate)
    return rows


async def all_replies(connection: UpstreamConnection) -> str:
    """The kinds of all replies."""
    async with asyncio.timeout(DEADLINE):
        return "".join([chr(reply.kind) async for reply in connection.replies()])


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110  (the server's own state has no event to wait for)
            await asyncio.sleep(0)


# Opening


async def test_every_pinned_setting_holds_whatever_the_role_says(database: Database) -> None:
    async with connected(database) as connection:
        assert connection.transaction_status == "I"
        assert connection.process_id > 0
        for name, value in PINNED.items():
            assert await run(connection, f"show {name}") == [(value,)]
        assert await run(connection, "show statement_timeout") == [("20s",)]
        assert await run(connection, "select pg_backend_pid()::text, current_user::text") == [
            (str(connection.process_id), ROLE)
        ]
        assert connection.parameters["DateStyle"] == "ISO, MDY"


async def test_a_profile_overrides_the_pinned_settings(database: Database) -> None:
    profile = (("DateStyle", "ISO, DMY"), ("TimeZone", "Europe/Berlin"))
    async with connected(database, profile) as connection:
        assert await run(connection, "show timezone") == [("Europe/Berlin",)]
        assert connection.parameters["DateStyle"] == "ISO, DMY"


async def test_a_reload_of_the_server_does_not_touch_pinned_settings(cluster: Cluster, database: Database) -> None:
    async with connected(database) as connection:
        sql(cluster, "alter system set timezone = 'Asia/Tokyo'")
        try:
            before = sql(cluster, "select pg_conf_load_time()")
            sql(cluster, "select pg_reload_conf()")

            async def reloaded() -> bool:
                return sql(cluster, "select pg_conf_load_time()") != before

            await eventually(reloaded)
            assert await run(connection, "show timezone") == [("UTC",)]
        finally:
            sql(cluster, "alter system reset timezone")
            sql(cluster, "select pg_reload_conf()")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"database": "nowhere"}, "3D000"),
        ({"role": "stranger"}, "28000"),
        ({"host": "/nonexistent"}, "FileNotFoundError"),
    ],
)
async def test_a_failure_to_connect_is_told_without_details(
    database: Database, change: dict[str, str], reason: str
) -> None:
    values = {name: getattr(database, name) for name in database.__struct_fields__}
    with pytest.raises(Refusal) as caught:
        await UpstreamConnection.open(Database(**{**values, **change}))
    refusal = caught.value
    assert (refusal.control, refusal.sqlstate) == ("UP-01", "08006")
    assert refusal.message == "the database cannot be reached at the moment"
    assert refusal.detail_for_audit is not None
    assert reason in refusal.detail_for_audit
    for secret in (database.host, "nowhere", "stranger", "nonexistent"):
        assert secret not in refusal.message + (refusal.hint or "")


# Units


async def test_replies_come_with_what_they_answer(database: Database) -> None:
    async with connected(database) as connection:
        messages, expectations = unit("select generate_series(1, 2)")
        await connection.send(messages, expectations)
        assert connection.in_flight == 4
        seen = [(chr(reply.kind), reply.expectation) async for reply in connection.replies()]
        parse, bind, execute, sync = expectations
        assert seen == [("1", parse), ("2", bind), ("D", execute), ("D", execute), ("C", execute), ("Z", sync)]
        assert connection.in_flight == 0
        assert connection.reusable


async def test_an_error_ends_its_unit_and_the_next_one_works(database: Database) -> None:
    async with connected(database) as connection:
        with pytest.raises(ProtocolViolation) as caught:
            await run(connection, "select 1/0")
        assert caught.value.sqlstate == "22012"
        assert await run(connection, "select 1") == [("1",)]


async def test_the_transaction_status_follows_the_server(database: Database) -> None:
    async with connected(database) as connection:
        await run(connection, "begin")
        assert connection.transaction_status == "T"
        assert not connection.reusable
        with pytest.raises(ProtocolViolation):
            await run(connection, "select 1/0")
        assert connection.transaction_status == "E"
        await run(connection, "rollback")
        assert connection.transaction_status == "I"
        assert connection.reusable


async def test_a_large_result_arrives_whole(database: Database) -> None:
    async with connected(database) as connection:
        rows = await run(connection, "select repeat('x', 100000) from generate_series(1, 100)")
        assert [len(row[0] or "") for row in rows] == [100_000] * 100


# Prepared statements


async def run_prepared(
    connection: UpstreamConnection, name: str, text: str, *, fresh: bool = False
) -> tuple[str, str | None]:
    """What came back, as a string of message kinds, and the SQLSTATE of an error."""
    expectations: list[Expectation] = []
    messages = connection.prepare(name, text, (), expectations, fresh=fresh)
    messages += Bind("", name).encode() + Execute("").encode() + Sync().encode()
    expectations += [Expectation(r) for r in (Request.BIND, Request.EXECUTE, Request.SYNC)]
    await connection.send(messages, expectations)
    kinds, sqlstate = "", None
    async with asyncio.timeout(DEADLINE):
        async for reply in connection.replies():
            kinds += chr(reply.kind)
            if reply.kind == ord("E"):
                sqlstate = ErrorResponse.decode(reply.payload).sqlstate
    return kinds, sqlstate


async def names(connection: UpstreamConnection) -> set[str | None]:
    return {row[0] for row in await run(connection, "select name from pg_prepared_statements where name <> ''")}


async def test_a_statement_is_prepared_once(database: Database) -> None:
    async with connected(database) as connection:
        assert await run_prepared(connection, "g1", "select 1") == ("12DCZ", None)
        assert await run_prepared(connection, "g1", "select 1") == ("2DCZ", None)
        assert await names(connection) == {"g1"}


async def test_a_statement_used_twice_in_one_unit_is_prepared_once(database: Database) -> None:
    async with connected(database) as connection:
        expectations: list[Expectation] = []
        assert connection.prepare("g1", "select 1", (), expectations) != b""
        assert connection.prepare("g1", "select 1", (), expectations) == b""
        assert [e.request for e in expectations] == [Request.PARSE]
        assert all(e.ours for e in expectations)


async def test_a_unit_that_was_never_sent_leaves_nothing_behind(database: Database) -> None:
    async with connected(database) as connection:
        connection.prepare("g1", "select 1", (), [])
        assert await run_prepared(connection, "g1", "select 1") == ("12DCZ", None)


async def test_only_the_servers_acknowledgement_counts(database: Database) -> None:
    async with connected(database) as connection:
        assert await run_prepared(connection, "g1", "select nothing") == ("EZ", "42703")
        assert await run_prepared(connection, "g1", "select 1") == ("12DCZ", None)
        assert await names(connection) == {"g1"}


async def test_a_statement_under_way_is_not_prepared_again(database: Database) -> None:
    async with connected(database) as connection:
        first: list[Expectation] = []
        messages = connection.prepare("g1", "select 1", (), first) + Sync().encode()
        await connection.send(messages, [*first, Expectation(Request.SYNC)])
        assert connection.prepare("g1", "select 1", (), []) == b""
        assert await all_replies(connection) == "1Z"


async def test_the_statement_used_longest_ago_is_closed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "STATEMENT_LIMIT", 3)
    async with connected(database) as connection:
        for name in ("g1", "g2", "g3", "g1"):
            await run_prepared(connection, name, "select 1")
        assert await run_prepared(connection, "g4", "select 4") == ("312DCZ", None)
        assert await names(connection) == {"g1", "g3", "g4"}
        assert await run_prepared(connection, "g2", "select 2") == ("312DCZ", None)
        assert await names(connection) == {"g1", "g2", "g4"}


async def test_a_unit_with_more_statements_than_the_limit(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "STATEMENT_LIMIT", 2)
    async with connected(database) as connection:
        for name in ("g1", "g2"):
            await run_prepared(connection, name, "select 1")
        expectations: list[Expectation] = []
        messages = b""
        for name in ("g3", "g4", "g1", "g2"):
            messages += connection.prepare(name, "select 1", (), expectations) + Bind("", name).encode()
            expectations.append(Expectation(Request.BIND))
        expectations.append(Expectation(Request.SYNC))
        await connection.send(messages + Sync().encode(), expectations)
        assert await all_replies(connection) == "312312" + "1212" + "Z"


async def test_a_stale_plan_is_cured_by_preparing_anew(cluster: Cluster, database: Database) -> None:
    sql(cluster, f"create table stale (a int); grant select on stale to {ROLE}")
    try:
        async with connected(database) as connection:
            assert await run_prepared(connection, "g1", "select * from public.stale") == ("12CZ", None)
            sql(cluster, "alter table stale add b int")
            assert await run_prepared(connection, "g1", "select * from public.stale") == ("EZ", "0A000")
            assert await run_prepared(connection, "g1", "select * from public.stale", fresh=True) == ("312CZ", None)
    finally:
        sql(cluster, "drop table stale")


# Doubt


async def test_a_setting_that_changes_by_itself_ends_the_connection(database: Database) -> None:
    async with connected(database) as connection:
        with pytest.raises(UpstreamLost) as caught:
            await run(connection, "select set_config('TimeZone', 'Asia/Tokyo', false)")
        assert caught.value.sqlstate == "08006"
        assert "TimeZone" in (caught.value.detail_for_audit or "")
        assert "TimeZone" not in caught.value.message
        assert connection.lost
        for again in (connection.next_reply(), connection.send(*unit("select 1"))):
            with pytest.raises(UpstreamLost):
                await again


async def test_a_setting_may_change_after_it_was_unpinned(database: Database) -> None:
    async with connected(database) as connection:
        connection.unpin("timezone")
        await run(connection, "set timezone to 'Asia/Tokyo'")
        assert await run(connection, "show timezone") == [("Asia/Tokyo",)]
        assert not connection.reusable


async def test_a_backend_that_is_terminated_is_lost(cluster: Cluster, database: Database) -> None:
    async with connected(database) as connection:
        await start_sleeping(cluster, connection)
        sql(cluster, f"select pg_terminate_backend({connection.process_id})")
        with pytest.raises(UpstreamLost) as caught:
            await all_replies(connection)
        assert "57P01" in (caught.value.detail_for_audit or "")
        assert "administrator" not in caught.value.message


async def test_a_reply_that_nothing_asked_for_ends_the_connection(database: Database) -> None:
    async with connected(database) as connection:
        messages, expectations = unit("select 1")
        await connection.send(messages, expectations[:2])
        for kind in b"12":
            assert (await connection.next_reply()).kind == kind
        with pytest.raises(UpstreamLost) as caught:
            await asyncio.wait_for(connection.next_reply(), DEADLINE)
        assert "unexpected message 'D'" in (caught.value.detail_for_audit or "")


# Cancel


async def test_cancel_ends_what_runs_and_nothing_after_it(cluster: Cluster, database: Database) -> None:
    async with connected(database) as connection:
        for _ in range(10):
            await start_sleeping(cluster, connection)
            cancelling = asyncio.create_task(connection.cancel())
            async with asyncio.timeout(DEADLINE):
                assert await all_replies(connection) == "EZ"
                assert await run(connection, "select 'next'") == [("next",)]
                assert await cancelling
        assert connection.reusable


async def test_nothing_is_sent_while_a_cancel_is_under_way() -> None:
    """A scripted server holds the cancel connection open; the next unit must wait for its end."""
    server = Script(await_close=True)
    async with server.listening() as database, connected(database) as connection:
        cancelling = asyncio.create_task(connection.cancel())
        async with asyncio.timeout(DEADLINE):
            await server.cancel_seen.wait()
        sending = asyncio.create_task(connection.send(*unit("select 1")))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not sending.done()
        assert not connection.reusable
        server.let_go.set()
        async with asyncio.timeout(DEADLINE):
            assert await cancelling
            await sending
        assert server.cancelled == (4711, b"key!")


async def test_a_cancel_that_is_not_confirmed_taints_the_connection() -> None:
    server = Script(await_close=True)
    async with server.listening(connect_timeout=0.2) as database, connected(database) as connection:
        assert await connection.cancel() is False
        assert connection.dirty


async def test_a_cancel_that_was_lost_is_repeated_before_a_connection_is_given_up() -> None:
    error = ErrorResponse({"S": "ERROR", "C": "57014", "M": "canceled"}).encode()
    server = Script(at_second_cancel=error + ReadyForQuery("I").encode())
    async with server.listening() as database, pooled(database) as pool:
        connection = await pool.acquire()
        await connection.send(*unit("select 1"))
        pool.release(connection)
        async with asyncio.timeout(DEADLINE):
            await connection.wait_closed()
        assert server.cancels == 2
        assert connection.in_flight == 0


# Scripted servers: what no real one does


STARTED = (
    AUTHENTICATION_OK
    + b"".join(
        ParameterStatus(name, value).encode()
        for name, value in {**PINNED, "integer_datetimes": "on", "server_version": "18.0"}.items()
    )
    + BackendKeyData(4711, b"key!").encode()
    + ReadyForQuery("I").encode()
)
CANCEL_CODE = struct.pack("!i", 80877102)


class Script:
    """A server that answers the first message, and each one after it, with the next of its lines."""

    def __init__(self, *lines: bytes, await_close: bool = False, at_second_cancel: bytes = b"") -> None:
        self.lines = lines or (STARTED,)
        self.await_close = await_close
        self.at_second_cancel = at_second_cancel
        self.cancels = 0
        self.cancel_seen = asyncio.Event()
        self.let_go = asyncio.Event()
        self.cancelled: tuple[int, bytes] | None = None
        self.received = b""
        self.tasks: list[asyncio.Task[None]] = []
        self.writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def listening(self, **options: object) -> AsyncIterator[Database]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = {"name": "x", "host": "127.0.0.1", "port": port, "database": "d", "role": "r", "tls": "off"}
        try:
            yield Database(**{**settings, "connect_timeout": DEADLINE, **options})  # type: ignore[arg-type]
        finally:
            self.let_go.set()
            server.close()
            await server.wait_closed()
            for writer in self.writers:
                writer.close()
            await asyncio.gather(*self.tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        self.writers.append(writer)
        try:
            for line in self.lines:
                data = await reader.read(65536)
                if data[4:8] == CANCEL_CODE:
                    self.cancelled = struct.unpack("!i", data[8:12])[0], data[12:]
                    self.cancels += 1
                    self.cancel_seen.set()
                    if self.cancels == 2:
                        self.writers[0].write(self.at_second_cancel)
                    if self.await_close:
                        await self.let_go.wait()
                    return
                self.received += data
                writer.write(line)
            while data := await reader.read(65536):
                self.received += data
        except ConnectionError:
            pass
        finally:
            writer.close()


async def reason_of(server: Script, **options: object) -> str:
    async with server.listening(**options) as database:
        with pytest.raises(Refusal) as caught:
            await UpstreamConnection.open(database)
    assert (caught.value.control, caught.value.sqlstate) == ("UP-01", "08006")
    assert caught.value.message == "the database cannot be reached at the moment"
    return caught.value.detail_for_audit or ""


SASL = Authentication.sasl(["SCRAM-SHA-256"]).encode()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([Authentication(Authentication.CLEARTEXT_PASSWORD).encode()], "clear or md5"),
        ([Authentication(Authentication.MD5_PASSWORD, b"salt").encode()], "clear or md5"),
        ([Authentication(7).encode()], "authentication 7"),
        ([Authentication(Authentication.SASL_CONTINUE, b"r=x").encode()], "authentication 11"),
        ([Authentication(Authentication.SASL_FINAL, b"v=AAAA").encode()], "authentication 12"),
        ([Authentication.sasl(["SCRAM-SHA-1"]).encode()], "no SCRAM-SHA-256"),
        ([SASL, AUTHENTICATION_OK], "did not prove"),
        ([SASL, SASL], "authentication 10"),
        ([SASL, Authentication(Authentication.SASL_FINAL, b"v=AAAA").encode()], ""),
        ([ReadyForQuery("I").encode()], "during authentication"),
        ([b"!"], "invalid backend message type"),
        ([b"R\0\0\0\3"], "length"),
        ([b"R\x7f\xff\xff\xff"], "too long"),
        ([STARTED.replace(b"Z\0\0\0\5I", b"Z\0\0\0\5T")], "in a transaction"),
        ([STARTED.replace(b"standard_conforming_strings\0on", b"standard_conforming_string_\0on")], "None"),
        ([STARTED.replace(b"UTF8", b"SJIS")], "SJIS"),
        ([AUTHENTICATION_OK + ReadyForQuery("I").encode()], "no cancel key"),
        ([AUTHENTICATION_OK + CommandComplete("X").encode()], "during startup"),
        ([ErrorResponse({"S": "FATAL", "C": "53300", "M": "full"}).encode()], "53300: full"),
    ],
)
async def test_a_server_that_does_not_start_as_it_should_is_refused(
    lines: list[bytes], reason: str, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    assert reason in await reason_of(Script(*lines), password_file=password)


async def test_notices_at_startup_are_read_over() -> None:
    notice = NoticeResponse({"S": "WARNING", "C": "01000", "M": "old"}).encode()
    server = Script(notice + STARTED[:9] + notice + STARTED[9:])
    async with server.listening() as database, connected(database) as connection:
        assert connection.process_id == 4711


async def test_no_password_is_sent_to_a_server_that_asks_for_a_clear_one(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    server = Script(Authentication(Authentication.CLEARTEXT_PASSWORD).encode())
    await reason_of(server, password_file=password)
    assert b"secret" not in server.received
    assert b"p" not in server.received[-8:]


async def test_a_password_is_asked_for_and_none_is_configured() -> None:
    assert "no password_file" in await reason_of(Script(SASL))


async def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not ready within 0.2 s" in await reason_of(Script(b""), connect_timeout=0.2)


async def test_a_vanished_host_is_noticed_by_the_kernel() -> None:
    server = Script()
    async with server.listening() as database, connected(database) as connection:
        assert connection.stream.extra("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_a_server_that_closes_at_once() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(Refusal) as caught:
            await UpstreamConnection.open(
                Database(name="x", host="127.0.0.1", port=port, database="d", role="r", tls="off")
            )
    assert caught.value.sqlstate == "08006"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"N", "does not offer TLS"),
        (b"S" + AUTHENTICATION_OK, "more or other than one byte"),
        (b"E\0\0\0\5\0", "more or other than one byte"),
        (b"X", "more or other than one byte"),
    ],
)
async def test_nothing_may_come_in_clear_before_the_handshake(answer: bytes, reason: str) -> None:
    server = Script(answer, STARTED)
    assert reason in await reason_of(server, tls="verify-full")
    assert server.received == b"\0\0\0\x08\x04\xd2\x16\x2f"


async def test_half_a_reply_is_never_reused() -> None:
    half = b"".join((b"1\0\0\0\4", b"2\0\0\0\4", CommandComplete("SELECT 0").encode(), ReadyForQuery("I").encode()))
    server = Script(STARTED, half + b"N\0\0\0\x20half")
    async with server.listening() as database, connected(database) as connection:
        await run(connection, "select 1")
        assert not connection.reusable


# The pool


async def test_a_clean_connection_is_lent_again(database: Database) -> None:
    async with pooled(database) as pool:
        first = await pool.acquire()
        await run(first, "select 1")
        pool.release(first)
        assert await pool.acquire() is first
        counts = pool.counts
        assert (counts.open, counts.idle, counts.in_use, counts.waiting, counts.opened) == (1, 0, 1, 0, 1)
        pool.release(first)
        assert (pool.counts.idle, pool.counts.in_use) == (1, 0)


@pytest.mark.parametrize("leave", ["dirty", "transaction", "failed", "in flight", "lost"])
async def test_a_connection_that_is_not_clean_is_closed(cluster: Cluster, database: Database, leave: str) -> None:
    async with pooled(database) as pool:
        connection = await pool.acquire()
        if leave == "dirty":
            connection.dirty = True
        elif leave in ("transaction", "failed"):
            await run(connection, "begin")
            if leave == "failed":
                with pytest.raises(ProtocolViolation):
                    await run(connection, "select 1/0")
        elif leave == "in flight":
            await connection.send(*unit("select pg_sleep(60)"))
        else:
            connection.abort()
        process_id = connection.process_id
        pool.release(connection)
        assert (pool.counts.open, pool.counts.idle) == (0, 0)
        async with asyncio.timeout(DEADLINE):
            await connection.wait_closed()

        async def gone() -> bool:
            return sql(cluster, f"select count(*) from pg_stat_activity where pid = {process_id}") == "0"

        await eventually(gone)
        again = await pool.acquire()
        assert again is not connection
        assert await run(again, "select 1") == [("1",)]


async def test_a_dead_idle_connection_is_replaced(cluster: Cluster, database: Database) -> None:
    async with pooled(database) as pool:
        first = await pool.acquire()
        pool.release(first)
        sql(cluster, f"select pg_terminate_backend({first.process_id})")
        async with asyncio.timeout(DEADLINE):
            await first.wait_closed()
        second = await pool.acquire()
        assert second is not first
        assert await run(second, "select 1") == [("1",)]


async def test_places_are_given_in_the_order_they_were_asked_for(database: Database) -> None:
    async with pooled(database) as pool:
        lent = [await pool.acquire(), await pool.acquire()]
        order: list[int] = []

        async def borrow(number: int) -> None:
            connection = await pool.acquire()
            order.append(number)
            await run(connection, "select 1")
            pool.release(connection)

        borrowers = []
        for number in range(6):
            borrowers.append(asyncio.create_task(borrow(number)))
            await asyncio.sleep(0)
        assert pool.counts.waiting == 6
        pool.release(lent.pop())
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*borrowers)
        assert order == list(range(6))
        assert pool.counts.opened == 2
        pool.release(lent.pop())


async def test_no_free_place_in_time(database: Database) -> None:
    async with pooled(database) as pool:
        lent = [await pool.acquire(), await pool.acquire()]
        with pytest.raises(Refusal) as caught:
            await pool.acquire(0.01)
        assert (caught.value.control, caught.value.sqlstate) == ("UP-01", "53300")
        assert pool.counts.waiting == 0
        pool.release(lent.pop())
        pool.release(await pool.acquire(0.01))
        pool.release(lent.pop())


async def test_a_borrower_that_gives_up_takes_no_place(database: Database) -> None:
    async with pooled(database) as pool:
        lent = [await pool.acquire(), await pool.acquire()]
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for connection in lent:
            pool.release(connection)
        for connection in [await pool.acquire(0.1), await pool.acquire(0.1)]:
            pool.release(connection)


async def test_a_failed_connection_gives_its_place_back(database: Database) -> None:
    values = {name: getattr(database, name) for name in database.__struct_fields__}
    async with pooled(Database(**{**values, "database": "nowhere", "pool_size": 1})) as pool:
        for _ in range(3):
            with pytest.raises(Refusal) as caught:
                await pool.acquire(1.0)
            assert caught.value.sqlstate == "08006"
        assert pool.counts.failed == 3
        assert pool.counts.open == 0


async def test_everybody_who_waits_is_told_that_the_database_is_away(database: Database) -> None:
    """A place that a failed connection gives back goes to the next one, who finds out in turn."""
    values = {name: getattr(database, name) for name in database.__struct_fields__}
    async with pooled(Database(**{**values, "database": "nowhere", "pool_size": 2})) as pool:
        async with asyncio.timeout(DEADLINE):
            told = await asyncio.gather(*(pool.acquire() for _ in range(7)), return_exceptions=True)
        assert [refusal.sqlstate for refusal in told if isinstance(refusal, Refusal)] == ["08006"] * 7
        assert pool.counts.failed == 7
        assert pool.counts.waiting == 0


async def test_connections_are_lent_by_profile(database: Database) -> None:
    berlin = (("TimeZone", "Europe/Berlin"),)
    async with pooled(database) as pool:
        plain = await pool.acquire()
        pool.release(plain)
        local = await pool.acquire(profile=berlin)
        assert local is not plain
        assert await run(local, "show timezone") == [("Europe/Berlin",)]
        pool.release(local)
        assert await pool.acquire() is plain
        pool.release(plain)
        # The pool is full; the connection idle for longest makes room for a third profile.
        tokyo = await pool.acquire(profile=(("TimeZone", "Asia/Tokyo"),))
        assert pool.counts.open == 2
        assert local.lost
        assert not plain.lost
        pool.release(tokyo)


async def test_closing_waits_for_what_is_lent(database: Database) -> None:
    async with pooled(database) as pool:
        idle, lent = await pool.acquire(), await pool.acquire()
        pool.release(idle)
        closing = asyncio.create_task(pool.close())
        async with asyncio.timeout(DEADLINE):
            await idle.wait_closed()
        with pytest.raises(Refusal) as caught:
            await pool.acquire()
        assert (caught.value.control, caught.value.sqlstate) == ("OP-01", "57P01")
        assert not closing.done()
        assert await run(lent, "select 1") == [("1",)]
        pool.release(lent)
        async with asyncio.timeout(DEADLINE):
            await closing
            await lent.wait_closed()
        assert pool.counts.open == 0


async def test_a_borrower_that_waits_when_the_pool_closes_is_refused(database: Database) -> None:
    async with pooled(database) as pool:
        lent = [await pool.acquire(), await pool.acquire()]
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        for connection in lent:
            pool.release(connection)
        with pytest.raises(Refusal) as caught:
            async with asyncio.timeout(DEADLINE):
                await waiting
        assert caught.value.sqlstate == "57P01"
        await closing
        for connection in lent:
            await connection.wait_closed()


# TLS


class Pki(NamedTuple):
    directory: Path
    ca: Path
    issue: Callable[[str, str], tuple[Path, Path]]


def make_pki(directory: Path) -> Pki:
    now = datetime.datetime.now(datetime.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {directory.name}")])

    def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey, is_ca: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )

    def write(name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
        files = directory / f"{name}.crt", directory / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].touch(0o600)
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def issue(name: str, common_name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            if common_name == "127.0.0.1"
            else [x509.DNSName(common_name)]
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = build(subject, key, False).add_extension(address, critical=False)
        return write(name, builder.sign(ca_key, hashes.SHA384()), key)

    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    own = build(ca_name, ca_key, True).add_extension(usage, critical=True).sign(ca_key, hashes.SHA256())
    return Pki(directory, write("ca", own, ca_key)[0], issue)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def tls_cluster(pki: Pki) -> Iterator[Cluster]:
    binaries = debian_binaries(15)
    if binaries is None:
        pytest.skip("Debian's PostgreSQL 15 (the one with TLS) is not installed")
    certificate, key = pki.issue("server", "127.0.0.1")
    hba = [
        "hostssl all certified all cert",
        "hostssl all legacy all md5",
        "hostssl all clear all password",
        "host all all all scram-sha-256",
    ]
    with Cluster(binaries, tls=(certificate, key, pki.ca), hba=hba) as started:
        sql(started, f"create role {ROLE} login password 'p\u00e4ss'")
        sql(started, "create role certified login")
        sql(started, "create role clear login password 'secret'")
        sql(started, "set password_encryption = md5; create role legacy login password 'secret'")
        yield started


@pytest.fixture
def tls_database(tls_cluster: Cluster, pki: Pki, tmp_path: Path) -> Callable[..., Database]:
    password = tmp_path / "password"
    password.write_text("p\u00e4ss\nsecond line\n", encoding="utf-8")

    def make(**options: object) -> Database:
        settings = {
            "name": "bank",
            "host": "127.0.0.1",
            "port": tls_cluster.port,
            "database": "postgres",
            "role": ROLE,
            "password_file": password,
            "ca": pki.ca,
        }
        return Database(**{**settings, **options})  # type: ignore[arg-type]

    return make


async def tls_reason(database: Database) -> str:
    with pytest.raises(Refusal) as caught:
        await UpstreamConnection.open(database)
    assert caught.value.message == "the database cannot be reached at the moment"
    return caught.value.detail_for_audit or ""


async def test_tls_with_scram(tls_database: Callable[..., Database], tls_cluster: Cluster) -> None:
    async with connected(tls_database()) as connection:
        assert await run(
            connection, "select ssl::text, version from pg_catalog.pg_stat_ssl where pid = pg_backend_pid()"
        ) == [("true", "TLSv1.3")]
        await start_sleeping(tls_cluster, connection)
        assert await connection.cancel()
        assert "E" in await all_replies(connection)


async def test_tls_with_a_client_certificate(tls_database: Callable[..., Database], pki: Pki) -> None:
    certificate, key = pki.issue("client", "certified")
    settings = {"role": "certified", "password_file": None}
    async with connected(tls_database(client_certificate=certificate, client_key=key, **settings)) as connection:
        assert await run(connection, "select current_user::text") == [("certified",)]
    assert "28000" in await tls_reason(tls_database(**settings))


@pytest.mark.parametrize("role", ["legacy", "clear"])
async def test_md5_and_clear_passwords_are_not_sent(tls_database: Callable[..., Database], role: str) -> None:
    assert "clear or md5" in await tls_reason(tls_database(role=role))


async def test_a_wrong_password(tls_database: Callable[..., Database], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("guess")
    reason = await tls_reason(tls_database(password_file=wrong))
    assert "28P01" in reason
    assert "guess" not in reason


async def test_another_certificate_authority(
    tls_database: Callable[..., Database], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = make_pki(tmp_path_factory.mktemp("other"))
    assert "CERTIFICATE_VERIFY_FAILED" in await tls_reason(tls_database(ca=other.ca))


async def test_another_host_name(tls_database: Callable[..., Database]) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in await tls_reason(tls_database(host="localhost"))


async def test_someone_in_between_with_a_good_certificate_is_found_out(
    tls_database: Callable[..., Database], tls_cluster: Cluster, pki: Pki
) -> None:
    """SCRAM-SHA-256-PLUS: the relay's certificate is valid, but it is not the database's."""
    certificate, key = pki.issue("relay", "127.0.0.1")
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(certificate, key)
    connecting = ssl.create_default_context(cafile=pki.ca)
    tasks: list[asyncio.Task[None]] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        request = await reader.readexactly(8)
        writer.write(b"S")
        await writer.start_tls(accepting)
        there, back = await asyncio.open_connection("127.0.0.1", tls_cluster.port)
        back.write(request)
        assert await there.readexactly(1) == b"S"
        await back.start_tls(connecting, server_hostname="127.0.0.1")
        await asyncio.gather(copy(reader, back), copy(there, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        reason = await tls_reason(tls_database(port=server.sockets[0].getsockname()[1]))
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*tasks)
    assert "channel binding" in reason
