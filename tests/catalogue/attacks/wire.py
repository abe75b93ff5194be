"""Attacks by messages and bytes."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from grille.protocols.postgres.messages import (
    BackendKeyData,
    Bind,
    CancelRequest,
    Close,
    CommandComplete,
    CopyData,
    CopyDone,
    DataRow,
    Describe,
    Execute,
    Flush,
    FunctionCall,
    GSSENCRequest,
    ParameterStatus,
    Parse,
    Query,
    ReadyForQuery,
    SSLRequest,
    StartupMessage,
    Sync,
)
from grille.proxy.authority import Authority, Issued, key_usage
from tests.catalogue.wire import Reply, Wire
from tests.catalogue.world import DEADLINE, World, clear_ssn, policy_data, ssn

SYNC = Sync()
OWN = "SELECT id FROM people WHERE id < 3 ORDER BY id"
OWN_ROWS = [(b"1",), (b"2",)]
ALIVE = Query(OWN)


def _alive(wire: Wire) -> None:
    reply = wire.ask(ALIVE)
    assert reply.rows == OWN_ROWS and not reply.closed, reply


def _ended(reply: Reply, control: str) -> None:
    """The connection was closed, with one error that names the control."""
    assert reply.closed and reply.denied(control) and not reply.rows, reply


# Startup


def startup_search_path(world: World) -> None:
    for given in (
        {"search_path": "evil"}, {"Search_Path": "evil, public"}, {"options": "-c search_path=evil"},
        {"options": "-csearch_path=evil"}, {"options": "--search-path=evil"}, {"options": "--search_path=evil"},
        {"options": "-c search\\_path=evil"}, {"options": "-c TimeZone=UTC -c search_path=evil"},
    ):  # fmt: skip
        with world.wire("a", **given) as wire:
            _ended(wire.hello, "ID-04")


def startup_parameters(world: World) -> None:
    for given in (
        {"role": "postgres"}, {"session_authorization": "postgres"}, {"row_security": "off"},
        {"session_replication_role": "replica"}, {"default_transaction_read_only": "off"},
        {"local_preload_libraries": "x"},
        {"options": "-c role=postgres"}, {"options": "-d5"}, {"options": "-c"}, {"options": "-W 0"}, {"grille.x": "1"},
        {"grille_row_check": "true"}, {"options": "-c grille_row_check=true"}, {"client_encoding": "SJIS"},
    ):  # fmt: skip
        with world.wire("a", **given) as wire:
            _ended(wire.hello, "ID-04")
    for given in ({"user": "postgres"}, {"database": "native"}, {"user": "b", "database": "visible"}):
        with world.wire("a", **given) as wire:
            assert not wire.hello.errors, wire.hello
            assert wire.ask(Query("SELECT current_user, current_database()")).rows == [(b"agent", b"whole")]
            _alive(wire)
    with world.wire("a", **{"_pq_.x": "1", "_pq_.replication": "database"}) as wire:
        assert "v" in wire.hello.kinds  # NegotiateProtocolVersion: neither option is known
        _alive(wire)


def replication(world: World) -> None:
    for value in ("true", "database", "on", "1", "yes"):
        with world.wire("a", replication=value) as wire:
            _ended(wire.hello, "WP-02")
    with world.wire("a", options="-c replication=database") as wire:
        _ended(wire.hello, "ID-04")


# Before TLS


def _silent_end(stream: socket.socket) -> bytes:
    """What comes until the other side closes."""
    stream.settimeout(DEADLINE)
    told = b""
    with contextlib.suppress(ConnectionError):
        while data := stream.recv(4096):
            told += data
    return told


def bytes_before_the_handshake(world: World) -> None:
    hello = StartupMessage({"user": "x"}).encode()
    for behind in (hello, b"\0", Query("SELECT 1").encode(), b"\x16\x03\x01"):
        with world.plain() as stream:
            stream.sendall(SSLRequest().encode() + behind)
            assert _silent_end(stream) == b""
    with world.plain() as stream:
        stream.sendall(GSSENCRequest().encode() + SSLRequest().encode() + hello)
        assert _silent_end(stream) in (b"N", b"")


def tls_downgrade(world: World) -> None:
    hello = StartupMessage({"user": "x"}).encode()
    with world.plain() as stream:
        stream.sendall(hello)
        told = _silent_end(stream)
        assert told[:1] == b"E" and b"[control ID-03" in told
    with world.plain() as stream:
        stream.sendall(GSSENCRequest().encode())
        assert stream.recv(1) == b"N"
        stream.sendall(hello)
        assert b"[control ID-03" in _silent_end(stream)
    with world.plain() as stream:
        stream.sendall(GSSENCRequest().encode())
        assert stream.recv(1) == b"N"
        stream.sendall(GSSENCRequest().encode())
        assert _silent_end(stream) == b""
    with world.plain() as stream:
        stream.sendall(SSLRequest().encode())
        assert stream.recv(1) == b"S"
        stream.sendall(SSLRequest().encode())
        assert b"R" not in _silent_end(stream)[:1]
    older = world.context("a")
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    _no_session(world, older)
    _no_session(world, world.context())  # without a certificate
    without = world.context("a")
    for protocols in ([], ["http/1.1"]):  # direct TLS
        if protocols:
            without.set_alpn_protocols(protocols)
        else:
            without = _context_without_alpn(world)
        assert _direct(world, without) == b""
    assert _direct(world, world.context("a"))[:1] == b"R"


def _context_without_alpn(world: World) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(world.bundle))
    certificate = world.certificates["a"]
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


def _direct(world: World, context: ssl.SSLContext) -> bytes:
    """The first bytes after a handshake without SSLRequest."""
    try:
        with context.wrap_socket(world.plain(), server_hostname="localhost") as stream:
            stream.settimeout(DEADLINE)
            stream.sendall(StartupMessage({"user": "x"}).encode())
            return stream.recv(4096)
    except (OSError, ssl.SSLError):
        return b""


def _no_session(world: World, context: ssl.SSLContext) -> Reply | None:
    """A handshake that fails, or a session that is refused at once."""
    try:
        with Wire.open(world.port, context, {}) as wire:
            assert wire.hello.closed and "Z" not in wire.hello.kinds, wire.hello
            return wire.hello
    except (OSError, ssl.SSLError):
        return None


def bytes_before_the_upstream_handshake(world: World) -> None:
    middle = world.middle
    forged = b"R\0\0\0\x08\0\0\0\0" + ReadyForQuery("I").encode()
    middle.struck.clear()
    middle.forge_before_tls = forged
    middle.drop()
    _until_struck(world, middle)
    _eventually_alive(world, "middle")


def _until_struck(world: World, middle: Any) -> None:
    """Ask until a new connection to the database was needed; no answer may hold anything but the agent's own rows."""
    deadline = time.monotonic() + DEADLINE
    while not middle.struck.is_set():
        assert time.monotonic() < deadline, "the database connection was never opened again"
        with contextlib.suppress(psycopg.Error), world.connect("middle") as connection:
            assert connection.execute(OWN).fetchall() == [(1,), (2,)]


def _eventually_alive(world: World, agent: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            with world.connect(agent) as connection:
                assert connection.execute(OWN).fetchall() == [(1,), (2,)]
            return
        except psycopg.Error:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# Certificates


def confused_identities(world: World) -> None:
    good = f"spiffe://{world.authority.trust_domain}/catalogue/a"
    uri = x509.UniformResourceIdentifier
    now = dt.datetime.now(dt.UTC)
    soon = now + dt.timedelta(days=1)
    other = Authority(world.authority.trust_domain)
    for number, (names, begin, end, authority) in enumerate(
        [
            ([uri(good), uri(good.replace("/a", "/b"))], now, soon, world.authority),
            ([uri(good), uri("https://bank.example/a")], now, soon, world.authority),
            ([x509.DNSName("a.bank.example")], now, soon, world.authority),
            ([uri("spiffe://other.example/catalogue/a")], now, soon, world.authority),
            ([uri("spiffe://bank.example/catalogue/../catalogue/a")], now, soon, world.authority),
            ([uri("spiffe://bank.example/catalogue/stranger")], now, soon, world.authority),
            ([uri(good)], now - dt.timedelta(days=2), now - dt.timedelta(days=1), world.authority),
            ([uri(good)], now, soon, other),
        ]
    ):
        issued = _issue(authority, names, begin - dt.timedelta(minutes=1), end)
        path = world.issue(f"confused{number}", issued)
        _no_session(world, world.context(certificate=path))


def _issue(authority: Authority, names: list[x509.GeneralName], begin: dt.datetime, end: dt.datetime) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return Issued(certificate, key)


# Framing


def lying_lengths(world: World) -> None:
    for length in (0, 3, -1, -2147483648, 2147483647, 1 << 21):
        with world.wire("a") as wire:
            wire.send(b"Q" + struct.pack("!i", length) + b"SELECT 1\0")
            reply = wire.reply()
            assert reply.closed and not reply.rows, (length, reply)
    with world.wire("a") as wire:  # a length that is longer than what follows
        wire.send(b"Q" + struct.pack("!i", 100) + b"SELECT 1\0")
        reply = wire.reply()
        assert reply.closed and not reply.rows, reply
    with world.wire("a") as wire:
        wire.send(b"\x80\0\0\0\x04")
        assert wire.reply().closed
    with world.plain() as stream:
        stream.sendall(struct.pack("!ii", 2147483647, 80877103))
        assert _silent_end(stream) == b""


def nul_in_a_text(world: World) -> None:
    for message in (
        b"Q" + struct.pack("!i", 4 + 33) + b"SELECT 1\0; SELECT id FROM people;\0"[:33],
        _message(b"Q", b"SELECT 1\0; SELECT id FROM secrets\0"),
        _message(b"P", b"s\0SELECT 1\0; SELECT 2\0\0\0"),
    ):
        with world.wire("a") as wire:
            reply = wire.ask(message, SYNC)
            assert reply.closed and not reply.rows, reply


def missing_terminators(world: World) -> None:
    for message in (
        _message(b"Q", b"SELECT 1"), _message(b"Q", b""), _message(b"Q", b"SELECT 1\0x"),
        _message(b"P", b"\0SELECT 1\0\0\0extra"), _message(b"P", b"\0SELECT 1"), _message(b"B", b"\0\0\0\0\0\x05"),
        _message(b"E", b"\0\0\0"), _message(b"S", b"x"), _message(b"C", b"Pname"),
    ):  # fmt: skip
        with world.wire("a") as wire:
            reply = wire.ask(message, SYNC)
            assert reply.closed and not reply.rows, (message, reply)


def _message(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("!i", 4 + len(payload)) + payload


def invalid_utf8(world: World) -> None:
    for text in (
        b"SELECT '\xff'",
        b"SELECT '\xc0\xa7 OR true --'",
        b"SELECT id FROM people WHERE name = '\x95\x5c' OR true",
    ):
        for message in (_message(b"Q", text + b"\0"), _message(b"P", b"\0" + text + b"\0\0\0")):
            with world.wire("a") as wire:
                reply = wire.ask(message, SYNC)
                assert not reply.rows and reply.errors, reply
    with world.wire("a") as wire:
        reply = wire.ask(
            Parse("", "SELECT id FROM people WHERE name = $1"), Bind("", "", (), (b"\xff",)), Execute(""), SYNC
        )
        assert not reply.rows and [e["C"] for e in reply.errors] == ["22021"], reply
        _alive(wire)


# Messages


def function_call(world: World) -> None:
    for oid in (2089, 1000000):  # to_hex(integer)
        with world.wire("a") as wire:
            reply = wire.ask(FunctionCall(oid, (1,), (b"\0\0\0\x01",), 0))
            assert reply.closed and reply.denied("WP-02") and reply.errors[0]["C"] == "0A000", reply


def second_statement_of_a_prepared_text(world: World) -> None:
    with world.wire("a") as wire:
        reply = wire.ask(Parse("", "SELECT 1; SELECT id FROM secrets"), Bind("", "", (), ()), Execute(""), SYNC)
        assert not reply.rows and len(reply.errors) == 1, reply
        _alive(wire)


def statement_names_are_each_sessions_own(world: World) -> None:
    text = "SELECT name FROM people WHERE id = $1::int"
    with world.wire("b") as other, world.wire("a") as wire:
        reply = other.ask(Parse("s1", text), Bind("", "s1", (), (b"77",)), Execute(""), SYNC)
        assert reply.rows == [(b"hidden 77",)]
        reply = wire.ask(Bind("", "s1", (), (b"77",)), Execute(""), SYNC)
        assert not reply.rows and reply.errors[0]["C"] == "26000", reply
        assert not wire.ask(Describe("S", "s1"), SYNC).rows
        reply = wire.ask(Parse("s1", text), Bind("", "s1", (), (b"77",)), Execute(""), SYNC)
        assert not reply.rows and not reply.errors, reply
        reply = wire.ask(Bind("", "s1", (), (b"3",)), Execute(""), SYNC)
        assert reply.rows == [(b"visible 3",)]
        for query in ("EXECUTE s1(77)", 'EXECUTE "s1"(77)'):
            assert not wire.ask(Query(query)).rows
        # The proxy's own upstream names are not an agent's either.
        names = [name for (name,) in world.owner("SELECT 'g' || md5(i::text) FROM generate_series(1, 3) i")]
        for name in names:
            assert wire.ask(Bind("", name, (), ()), Execute(""), SYNC).errors[0]["C"] == "26000"


def bind_behind_a_failed_parse(world: World) -> None:
    run = (Bind("", "s", (), ()), Execute(""), SYNC)
    for second in ("SELECT id FROM secrets", "SELECT nonsense FROM", OWN):
        with world.wire("a") as wire:
            assert wire.ask(Parse("s", "SELECT 'first'"), SYNC).kinds == "1Z"
            reply = wire.ask(Parse("s", second), *run)
            assert not reply.rows and len(reply.errors) == 1, reply
            assert wire.ask(*run).rows == [(b"first",)]
            wire.ask(Close("S", "s"), SYNC)
            reply = wire.ask(Parse("s", "SELECT id FROM secrets"), *run)
            assert reply.denied("ST-03") and not reply.rows
            assert wire.ask(*run).errors[0]["C"] == "26000"


def pipeline_behind_a_denial(world: World) -> None:
    with world.wire("a") as wire:
        wire.ask(Parse("", "SELECT 'old'"), SYNC)
        reply = wire.ask(
            Parse("", "SELECT id FROM secrets"), Bind("", "", (), ()), Describe("P", ""), Execute(""),
            Parse("t", OWN), Bind("", "t", (), ()), Execute(""), SYNC,
        )  # fmt: skip
        assert reply.denied("ST-03") and reply.kinds == "EZ", reply
        assert wire.ask(Bind("", "t", (), ()), Execute(""), SYNC).errors[0]["C"] == "26000"
        _alive(wire)


def suspended_portal_after_a_change(world: World) -> None:
    text = "SELECT id FROM people ORDER BY id"
    with world.wire("a") as wire, _changed(world) as change:
        wire.ask(Query("BEGIN"))
        reply = wire.ask(Parse("", text), Bind("p", "", (), ()), Execute("p", 2), SYNC)
        assert reply.rows == OWN_ROWS and "s" in reply.kinds
        assert wire.ask(Execute("p", 1), SYNC).rows == [(b"3",)]
        change()
        reply = wire.ask(Execute("p", 0), SYNC)
        assert not reply.rows and reply.denied("AC-01"), reply


def prepared_statement_after_a_change(world: World) -> None:
    with world.wire("a") as wire, _changed(world) as change:
        reply = wire.ask(Parse("s", OWN), Bind("", "s", (), ()), Execute(""), SYNC)
        assert reply.rows == OWN_ROWS
        wire.ask(Query(f"PREPARE q AS {OWN}"))
        assert wire.ask(Query("EXECUTE q")).rows == OWN_ROWS
        change()
        reply = wire.ask(Bind("", "s", (), ()), Execute(""), SYNC)
        assert not reply.rows and reply.denied("AC-01"), reply
        reply = wire.ask(Query("EXECUTE q"))
        assert not reply.rows and reply.denied("AC-01"), reply
        reply = wire.ask(ALIVE)
        assert not reply.rows and reply.denied("AC-01"), reply


@contextlib.contextmanager
def _changed(world: World) -> Iterator[Any]:
    """A change of the policy, after which agent A may do nothing; undone at the end."""

    def change() -> None:
        data = policy_data()
        data["agents"] = {name: role for name, role in data["agents"].items() if not name.endswith("/a")}
        world.put_in_force(data)

    try:
        yield change
    finally:
        world.put_in_force(policy_data())


def portals_end_with_their_transaction(world: World) -> None:
    with world.wire("a") as wire:
        wire.ask(Query("BEGIN"))
        wire.ask(Parse("", "SELECT id FROM people ORDER BY id"), Bind("p", "", (), ()), Execute("p", 1), SYNC)
        wire.ask(Query("COMMIT"))
        assert wire.ask(Execute("p", 0), SYNC).errors[0]["C"] == "34000"
        reply = wire.ask(Bind("q", "", (), ()), Execute("q", 1), SYNC)
        assert wire.ask(Execute("q", 0), SYNC).errors[0]["C"] == "34000", reply
        wire.ask(Query("SELECT 1"))
        _alive(wire)


def portals_are_each_sessions_own(world: World) -> None:
    text = "SELECT name FROM people WHERE id > 75 ORDER BY id"
    with world.wire("b") as other, world.wire("b") as twin, world.wire("a") as wire:
        for each in (other, twin, wire):
            each.ask(Query("BEGIN"))
        reply = other.ask(Parse("", text), Bind("p", "", (), ()), Execute("p", 1), SYNC)
        assert reply.rows == [(b"hidden 76",)]
        other.ask(Query(f"DECLARE c CURSOR FOR {text}"))
        for each in (wire, twin):
            for attempt in (Execute("p", 0), Describe("P", "p"), Execute("c", 0), Query("FETCH ALL FROM c")):
                reply = each.ask(attempt) if isinstance(attempt, Query) else each.ask(attempt, SYNC)
                assert not reply.rows and reply.errors[0]["C"] == "34000", (attempt, reply)
                each.ask(Query("ROLLBACK"))
                each.ask(Query("BEGIN"))
            each.ask(Close("P", "p"), SYNC)
        assert other.ask(Execute("p", 1), SYNC).rows == [(b"hidden 77",)]
        assert other.ask(Query("FETCH 1 FROM c")).rows == [(b"hidden 76",)]


def format_codes_that_no_plan_expects(world: World) -> None:
    for columns, codes in (
        ("name", ((2,), (-1,), (0, 0), (1, 1, 1))), ("name, ssn", ((0, 2), (1, 1, 0))), ("ssn, email, card", ((1, 0),)),
    ):  # fmt: skip
        for formats in codes:
            with world.wire("a") as wire:
                reply = wire.ask(
                    Parse("", f"SELECT {columns} FROM people WHERE id < 3"), Bind("", "", (), (), formats), Execute(""),
                    SYNC,
                )  # fmt: skip
                assert not reply.rows and [e["C"] for e in reply.errors] in (["08P01"], ["22023"]), (formats, reply)
                assert reply.closed or wire.ask(ALIVE).rows == OWN_ROWS
    text = "SELECT id FROM people WHERE id = $1::int"
    for given, values in (((2,), (b"77",)), ((1,), (b"77",)), ((1, 1), (b"\0\0\0\x4d",)), ((1,), (b"\0\0\0\x4d\0",))):
        with world.wire("a") as wire:
            reply = wire.ask(Parse("", text), Bind("", "", given, values), Execute(""), SYNC)
            assert not reply.rows and len(reply.errors) == 1, (given, values, reply)
            assert reply.closed or wire.ask(ALIVE).rows == OWN_ROWS


def a_commit_among_reads(world: World) -> None:
    """Reads are pipelined over read-only connections that agents share: a COMMIT there must not open them."""
    for between in ("COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "END", "SET TRANSACTION READ WRITE"):
        with world.wire("a") as wire, world.wire("b") as other:
            read = (Parse("", OWN), Bind("", "", (), ()), Execute(""))
            end = (Parse("", between), Bind("", "", (), ()), Execute(""))
            write = (Parse("", "DELETE FROM people WHERE id = 77"), Bind("", "", (), ()), Execute(""))
            wire.send(*read, *end, *read, SYNC, *read, *end, *write, SYNC)
            replies = [wire.reply(), wire.reply()]
            assert all(row in OWN_ROWS for reply in replies for row in reply.rows), (between, replies)
            wire.ask(Query(f"SELECT 1; {between}; DELETE FROM people WHERE id = 77"))
            wire.ask(Query("ROLLBACK"))
            _alive(wire)
            reply = wire.ask(Query("SELECT nextval('counter')"))
            assert not reply.rows and reply.errors, reply
            _alive_as_b(other)
    assert world.owner("SELECT count(*) FROM people WHERE id = 77") == [(1,)]


def copy_messages(world: World) -> None:
    with world.wire("a") as wire:
        reply = wire.ask(Query("COPY secrets FROM STDIN; SELECT 'after'"))
        assert reply.denied("ST-03") and "G" not in reply.kinds and not reply.rows
        _alive(wire)
    for stray in (CopyData(b"1\t0042\tx\n"), CopyDone()):
        with world.wire("a") as wire:
            wire.send(stray, ALIVE)
            reply = wire.reply()
            assert reply.closed or reply.rows == OWN_ROWS, reply
            assert world.owner("SELECT count(*) FROM fkc") == [(0,)]


def parameters_that_choose_an_object(world: World) -> None:
    for oid in (24, 2202, 2205, 2206, 4089, 4096, 3734):  # regproc, regclass, regtype, ...
        with world.wire("a") as wire:
            reply = wire.ask(Parse("", "SELECT $1", (oid,)), Bind("", "", (), (b"secrets",)), Execute(""), SYNC)
            assert not reply.rows and reply.denied("ST-04"), (oid, reply)
    for text in ("SELECT $1::regclass", "SELECT CAST($1 AS pg_catalog.regtype)", "SELECT $1::regproc"):
        for name in (b"secrets", b"nowhere", b"public.secrets", b"x.y.z", b'"', b"1"):
            with world.wire("a") as wire:
                reply = wire.ask(Parse("", text), Bind("", "", (), (name,)), Execute(""), SYNC)
                own = [(b"1",)] if text.endswith("regproc") else []  # the number of what is built in
                assert reply.rows in ([(None,)], own) or reply.errors[0]["C"] in ("42601", "42602", "0A000"), (
                    text,
                    name,
                    reply,
                )
    with world.wire("a") as wire:
        reply = wire.ask(Parse("", "SELECT $1::regprocedure"), Bind("", "", (), (b"secrets",)), Execute(""), SYNC)
        assert not reply.rows and reply.denied("ST-04"), reply


def parameters_in_sensitive_places(world: World) -> None:
    for text, values in (
        ("SELECT query_to_xml($1, true, true, '')", (b"select 1",)),
        ("SELECT set_config($1, $2, false)", (b"role", b"postgres")),
        ("SELECT current_setting('data_directory', $1)", (b"t",)),
        ("SELECT pg_sleep($1)", (b"1",)),
    ):
        with world.wire("a") as wire:
            reply = wire.ask(Parse("", text), Bind("", "", (), values), Execute(""), SYNC)
            assert not reply.rows and reply.denied("ST-04"), (text, reply)
    with world.wire("a") as wire:
        parse = Parse("", "SELECT current_setting($1)")
        assert wire.ask(parse, Bind("", "", (), (b"data_directory",)), Execute(""), SYNC).rows == [(None,)]
    with world.wire("a") as wire:
        reply = wire.ask(
            Parse("", "SELECT id FROM people ORDER BY id LIMIT $1"), Bind("", "", (), (b"2",)), Execute(""), SYNC
        )
        assert reply.rows == OWN_ROWS


def strings_stay_standard(world: World) -> None:
    head = "SELECT id FROM people WHERE name = "
    with world.wire("a") as wire:
        for _ in range(3):
            wire.ask(Query("SELECT public.turns('standard_conforming_strings', 'off')"))
            reply = wire.ask(Query(head + "'a\\' OR id = 3 --'"))
            assert reply.rows == [(b"3",)], reply
            assert not wire.ask(Query(head + "E'a\\' OR id = 3 --'")).rows
            assert wire.ask(Query("SELECT 'a\\b'")).rows == [(b"a\\b",)]


def changed_settings_end_the_connection(world: World) -> None:
    for name, value in (
        ("client_encoding", "LATIN1"), ("standard_conforming_strings", "off"), ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "German"), ("application_name", "hidden"),
    ):  # fmt: skip
        with world.wire("a") as wire:
            reply = wire.ask(Query(f"SELECT public.turns('{name}', '{value}')"))
            assert reply.denied("UP-01"), (name, reply)
        with world.wire("b") as other:
            assert other.ask(Query("SHOW TimeZone")).rows == [(b"UTC",)]
            assert other.ask(Query("SELECT timestamptz '2020-01-01 00:00:00'")).rows == [(b"2020-01-01 00:00:00+00",)]
    middle = world.middle
    for forged in (ParameterStatus("search_path", "evil"), ParameterStatus("is_superuser", "on")):
        _forged(world, forged.encode())
    _eventually_alive(world, "middle")
    assert middle.forge is None


def _forged(world: World, forged: bytes) -> None:
    """The database's next answer begins with these bytes: it must not reach the agent, nor leave the session open."""
    middle = world.middle
    with world.wire("middle") as wire:
        deadline = time.monotonic() + DEADLINE
        while wire.ask(ALIVE).rows != OWN_ROWS:  # the connections to the database are open
            assert time.monotonic() < deadline
        middle.struck.clear()
        middle.forge = (b"visible 3", forged)
        reply = wire.ask(Query("SELECT id, name FROM people WHERE id = 3"))
        assert middle.struck.is_set()
        told = b"".join(payload for _, payload in reply.messages)
        assert b"forged" not in told and b"evil" not in told, reply
        assert reply.closed or reply.errors or reply.rows == [(b"3", b"visible 3")], reply
    _eventually_alive(world, "middle")


def forged_server_messages(world: World) -> None:
    for forged in (
        b"D" + struct.pack("!i", 2147483647), b"D\0\0\0\x03", b"D" + struct.pack("!ih", 6, 32767), b"\xff\0\0\0\x04",
        DataRow((b"forged",)).encode(), CommandComplete("SELECT 1").encode() + ReadyForQuery("I").encode(),
        b"T" + struct.pack("!ih", 6, 9), b"A\0\0\0\x20forged", ReadyForQuery("T").encode(), b"G\0\0\0\x07\0\0\0",
        b"E\0\0\0\x0eMforged\0\0\0", b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x01",
    ):  # fmt: skip
        _forged(world, forged)


# Cancelling, and what is left behind


def cancel_requests(world: World) -> None:
    slow = "SELECT count(*) FROM generate_series(1, 3000000) a, generate_series(1, 1000) b"
    with world.wire("a") as wire, world.wire("b") as other:
        mine, theirs = (BackendKeyData.decode(_payload(w.hello, "K")) for w in (wire, other))
        assert mine.process_id != theirs.process_id and mine.secret != theirs.secret
        wire.send(Query(slow))
        for process_id, secret in (
            (mine.process_id, theirs.secret), (mine.process_id, bytes(len(mine.secret))),
            (theirs.process_id, mine.secret), (mine.process_id, mine.secret[:-1]), (0, b"\0\0\0\0"),
        ):  # fmt: skip
            _cancel(world, process_id, secret)
        _alive_as_b(other)  # nothing was cancelled, and nobody else's session feels it
        wire.stream.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            raise AssertionError(f"a forged cancel request was heard: {wire.reply()}")
        wire.stream.settimeout(DEADLINE)
        _cancel(world, mine.process_id, mine.secret)
        reply = wire.reply()
        assert [e["C"] for e in reply.errors] == ["57014"], reply
        _cancel(world, mine.process_id, mine.secret)  # replayed: nothing runs
        _alive(wire)
    _cancel(world, mine.process_id, mine.secret)
    with world.wire("b") as other:
        _alive_as_b(other)


def _alive_as_b(wire: Wire) -> None:
    assert wire.ask(Query("SELECT count(*) FROM people")).rows == [(b"81",)]


def _payload(reply: Reply, kind: str) -> bytes:
    return next(payload for each, payload in reply.messages if each == kind)


def _cancel(world: World, process_id: int, secret: bytes) -> None:
    with world.plain() as stream:
        stream.sendall(CancelRequest(process_id, secret).encode())
        assert _silent_end(stream) == b""


def nothing_is_left_behind(world: World) -> None:
    """Whatever a session did, the next one on the same connection to the database does not see it."""
    with world.wire("b") as other:
        for text in (
            "INSERT INTO old_prices VALUES (public.turns('search_path', 'evil, pg_catalog'), 1)",
            "INSERT INTO branches VALUES (public.turns('search_path', 'evil, pg_catalog'), 'x')",
            "SELECT public.turns('search_path', 'evil, pg_catalog')",
            "SET TimeZone = 'Asia/Tokyo'", "PREPARE q AS SELECT name FROM people", "BEGIN",
            "DECLARE c CURSOR FOR SELECT name FROM people ORDER BY id", "FETCH 1 FROM c",
            "SELECT public.turns('px.tenant', 'hidden')", "SELECT public.turns('statement_timeout', '1')",
        ):  # fmt: skip
            other.ask(Query(text))
    for _ in range(6):
        with world.wire("a") as wire:
            assert wire.ask(Query("SHOW TimeZone")).rows == [(b"UTC",)]
            assert wire.ask(Query("SELECT timestamptz '2020-01-01 00:00:00+00'")).rows == [(b"2020-01-01 00:00:00+00",)]
            assert wire.ask(Query("EXECUTE q")).errors[0]["C"] == "26000"
            assert wire.ask(Query("FETCH ALL FROM c")).errors[0]["C"] == "34000"
            wire.ask(Query("BEGIN"))
            reply = wire.ask(Query("SELECT count(*) FROM generate_series(1, 100000)"))
            assert reply.rows == [(b"100000",)], reply
            wire.ask(Query("COMMIT"))
            assert not wire.ask(Query("SELECT id FROM people WHERE lower(name) = 'hidden' OR branch = '0007'")).rows
            _alive(wire)
    world.restore()


def names_keep_their_meaning_within_a_transaction(world: World) -> None:
    """A listed function changes where names are looked up: the agent's next expression still means pg_catalog's."""
    turn = "SELECT public.turns('search_path', 'evil, pg_catalog')"
    ask = "SELECT lower(name) FROM people WHERE id = 3 AND branch = '0042' OR branch = '0007'"
    for begin in ("BEGIN", "BEGIN READ ONLY"):
        with world.wire("a") as wire:
            wire.ask(Query(begin))
            if wire.ask(Query(turn)).errors:
                continue  # the server reports the change, and the connection is gone
            assert wire.ask(Query(ask)).rows == [(b"visible 3",)]
            wire.ask(Query(f"DECLARE c CURSOR FOR {turn}"))
            assert wire.ask(Query("FETCH ALL FROM c")).rows == [(b"evil, pg_catalog",)]
            assert wire.ask(Query(ask)).rows == [(b"visible 3",)]
            reply = wire.ask(
                Parse("", turn),
                Bind("", "", (), ()),
                Execute(""),
                Parse("", ask),
                Bind("", "", (), ()),
                Execute(""),
                SYNC,
            )
            assert reply.rows == [(b"evil, pg_catalog",), (b"visible 3",)], reply
            wire.ask(Query("COMMIT"))
    with world.wire("a") as wire:
        reply = wire.ask(Query(f"{turn}; {ask}"))
        assert reply.errors or reply.rows == [(b"evil, pg_catalog",), (b"visible 3",)], reply


# Words


def words_of_errors(world: World) -> None:
    """What the server says of rows and values stays in the evidence."""
    with world.wire("a") as wire:
        for text, state in (
            ("SELECT name::int FROM people WHERE id = 3", "22P02"),
            ("INSERT INTO checked (id, branch, note) VALUES (5, '0042', 'x')", "23505"),
            ("INSERT INTO checked (id, branch, note) VALUES (500, '0042', NULL)", "23502"),
            (f"INSERT INTO people (id, branch, ssn) VALUES (500, '0042', '{clear_ssn(77)}')", "23505"),
        ):
            reply = wire.ask(Query(text))
            assert [e["C"] for e in reply.errors] == [state], reply
            fields = reply.errors[0]
            assert not {"D", "H", "W", "q", "p", "F", "L", "R"} & fields.keys(), fields
            for canary in world.canaries:
                assert canary not in str(fields).encode(), fields
            assert "visible 3" not in str(fields)


def nothing_hidden_in_the_log(world: World) -> None:
    """Clear values are in neither the log nor the evidence; hidden rows' values are not in the log."""
    with world.wire("a") as wire:
        assert wire.ask(Query(f"SELECT ssn FROM people WHERE ssn = '{clear_ssn(3)}'")).rows == [(ssn(3).encode(),)]
        wire.ask(
            Parse("", "SELECT id FROM people WHERE ssn = $1"),
            Bind("", "", (), (clear_ssn(4).encode(),)),
            Execute(""),
            SYNC,
        )
        wire.ask(Query("SELECT name::int FROM people WHERE id = 3"))
        wire.ask(Flush(), SYNC)
    log = world.log.read_bytes()
    assert b"visible 3" not in log and b"hidden 7" not in log
    files = [path for path in (world.directory / "audit").rglob("*") if path.is_file()]
    assert files
    kept = b"".join(path.read_bytes() for path in files)
    for value in (clear_ssn(3), clear_ssn(4)):
        assert value.encode() not in kept + log, value
    assert threading.main_thread().is_alive()
