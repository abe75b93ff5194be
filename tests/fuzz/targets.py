"""What is fuzzed: each target takes bytes, and either they are refused as documented, or the result is right."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import asyncpg
import postgast

from grille.controls import CONTROLS, Refusal
from grille.policies.decision import CachePolicy, ColumnObligation, Decision, FieldFilter, Limits
from grille.protocols.postgres import copy, copy_rows, tree
from grille.protocols.postgres.analysis import Sensitive
from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.framing import OVERSIZED, Frames, ProtocolViolation, StartupFrames, frontend_limits
from grille.protocols.postgres.lexer import cut, cut_places, tokenize
from grille.protocols.postgres.messages import Oversized, decode_frontend, decode_startup
from grille.protocols.postgres.state import ClientState, Event, State
from grille.proxy.catalog import read_catalog
from grille.proxy.config import Identity
from grille.proxy.demo.cluster import Cluster
from grille.proxy.enforcement import Enforcement, Prepared
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.transformation import Key, Transformation
from tests.catalogue.cases import Script
from tests.catalogue.rows import ROWS
from tests.differential.generator import script
from tests.differential.world import FILTERS, HERE
from tests.fuzz import mq
from tests.fuzz import payload as payloads
from tests.protocols.postgres.test_lexer import ATOMS, scanned

LIMITS: Final = frontend_limits(max_message_bytes=4096, max_statement_bytes=1024)
_KINDS: Final = bytes(LIMITS)


@dataclass(frozen=True)
class Target:
    """Something that is fuzzed."""

    name: str
    make: Callable[[random.Random], bytes]
    """An input."""
    check: Callable[[bytes], None]
    """Raises if the input is neither refused as documented nor answered rightly."""


# Framing, messages and the session's states


def _frame(source: random.Random) -> bytes:
    payload = source.randbytes(source.choice((0, 1, 2, 4, 5, 8, 13, 40)))
    if source.random() < 0.5:
        payload = source.choice(
            (b"a\0select 1\0\0\0", b"\0a\0" + bytes(6), b"\0\0\0\0\0", b"select 2\0", b"Sx\0", payload)
        )
    length = len(payload) + 4 if source.random() < 0.9 else source.choice((0, 3, 5, 1 << 20, (1 << 31) - 1, 1 << 31))
    return bytes([source.choice(_KINDS)]) + (length & 0xFFFFFFFF).to_bytes(4, "big") + payload


def _stream(source: random.Random) -> bytes:
    made = bytearray(b"".join(_frame(source) for _ in range(source.randint(1, 12))))
    for _ in range(source.choice((0, 0, 1, 3))):
        made[source.randrange(len(made))] = source.randrange(256)
    return bytes(made)


def _frames_of(data: bytes, size: int) -> list[Any]:
    """The messages, and at the end what was wrong."""
    frames, seen = Frames(LIMITS), []
    for start in range(0, len(data), size):
        frames.feed(data[start : start + size])
        try:
            for kind, payload in frames:
                seen.append((kind, bytes(payload) if isinstance(payload, bytes | bytearray) else payload))
        except ProtocolViolation as violation:
            return [*seen, (violation.sqlstate, str(violation))]
    return seen


def frames(data: bytes) -> None:
    """The same messages however the bytes arrive; each decodes, and encodes to itself, or is a violation."""
    whole = _frames_of(data, len(data) or 1)
    assert whole == _frames_of(data, 1) == _frames_of(data, 7), data
    client = ClientState()
    client.state = State.IDLE
    for kind, payload in whole:
        if not isinstance(kind, int):
            return
        try:
            message = Oversized(payload) if kind == OVERSIZED else decode_frontend(kind, payload)
            client.receive(message)
        except ProtocolViolation:
            return
        if kind != OVERSIZED:
            assert decode_frontend(kind, message.encode()[5:]) == message, message  # type: ignore[union-attr]
        if client.state in (State.ANSWERING, State.SKIPPING):
            client.state = State.IDLE
        if client.state is State.EXTENDED and data[:1] < b"\x80":
            client.happened(Event.FAILED)


# Rows of a COPY

FORMATS: Final = tuple(
    copy.into(postgast.parse(f"COPY t (a, b) FROM STDIN {options}").stmts[0].stmt.copy_stmt).options
    for options in (
        "", "(FORMAT csv)", "(FORMAT binary)", "(DELIMITER '|', NULL 'x')", "(HEADER)", "(FORMAT csv, HEADER match)",
        "(FORMAT csv, QUOTE '''', ESCAPE '\\', NULL 'x')", "(FORMAT csv, ESCAPE '\\', FORCE_NULL (a, b))",
        "(FORMAT csv, FORCE_NOT_NULL (a), FORCE_NULL (a, b))", "(FORMAT csv, HEADER, DELIMITER ';')",
    )
)  # fmt: skip
PARTS: Final = (
    b"a", b"b", b"x", b"\\", b"\\N", b"\\.", b"\t", b",", b"|", b"\n", b"\n", b"\n", b'"', b"'", b'"', b"\\\\", b"1",
    b"7", b";", b"\\x4", b"\\12", b"\xc3\xa9", b"x\tx\n", b"x,x\n", b"x|x\n", b"a,b\n", b"a\tb\n", b"\r", b"\r\n",
    b"\0",
)  # fmt: skip
BINARY: Final = (
    b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\0\2", b"\0\0\0\1x", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff", b"\0\1",
    b"\0\2\0\0\0\1x\0\0\0\0",
)  # fmt: skip


def _rows(source: random.Random) -> bytes:
    number = source.randrange(len(FORMATS))
    parts = BINARY if FORMATS[number].binary else PARTS
    data = b"".join(source.choice(parts) for _ in range(source.randrange(16)))
    if FORMATS[number].binary and source.random() < 0.8:
        data = BINARY[0] + data
    if source.random() < 0.1:
        data += source.randbytes(3)
    return bytes([number + len(FORMATS) * source.randrange(2)]) + data


def read_rows(options: copy.CopyIn, data: bytes, size: int, *, csv_marker: bool = False) -> list[Any]:
    """The rows in pieces of this size, and at the end what was wrong."""
    found: list[Any] = []
    reader = copy_rows.reader(options, ("a", "b"), largest=1 << 20, csv_marker=csv_marker)
    try:
        for start in range(0, len(data), size):
            for row in reader.feed(data[start : start + size]):
                found.append(row)
        found += reader.end()
    except Refusal as refusal:
        found.append((refusal.sqlstate, refusal.message))
    return found


def rows(data: bytes) -> None:
    """The same rows of two values however the bytes arrive, or the same reason why they are none."""
    old, number = divmod(data[0] if data else 0, len(FORMATS))
    options, data = FORMATS[number], data[1:]
    whole = read_rows(options, data, len(data) or 1, csv_marker=old > 0)
    for size in (1, 3, 7):
        assert read_rows(options, data, size, csv_marker=old > 0) == whole, data
    for row in whole[:-1]:
        assert isinstance(row, list) and len(row) == 2
    if whole and isinstance(whole[-1], tuple):
        assert whole[-1][0] in ("22P04", "54000")


def startup(data: bytes) -> None:
    """A startup packet, or a violation."""
    cutter = StartupFrames()
    cutter.feed(data)
    try:
        for payload in cutter:
            decode_startup(payload)
    except ProtocolViolation:
        return


def _startup(source: random.Random) -> bytes:
    code = source.choice((196608, 196610, 80877102, 80877103, 80877104, source.getrandbits(32)))
    body = source.choice((b"", b"user\0a\0\0", b"user\0a\0database\0b\0\0", source.randbytes(12)))
    length = 8 + len(body) if source.random() < 0.9 else source.getrandbits(32)
    return length.to_bytes(4, "big") + code.to_bytes(4, "big") + body


# The lexer


def _hostile(source: random.Random) -> bytes:
    glue = source.choice(("", "", " "))
    return glue.join(source.choices(ATOMS, k=source.randint(1, 10))).encode(errors="surrogatepass")


def lexer(data: bytes) -> None:
    """What the lexer takes, PostgreSQL's scanner cuts at the same places."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        assert cut(data) is None
        return
    lexed = tokenize(text)
    if lexed is None:
        return
    assert scanned(text) == list(lexed.tokens), text
    assert scanned(" ".join(lexed.tokens)) == list(lexed.tokens), text
    if cut(data) is not None:
        cut_places(data, lexed)


# Statements


class _Policy:
    revision = "1"

    def decide(self, document: bytes) -> Decision:
        return Decision(
            allow=True, control="AC-01", reason="", passthrough=False,
            filters={f"public.{name}": FieldFilter("eq", "tenant", "a") if name != "regions" else True
                     for name, (_, native) in FILTERS.items() if native},
            columns={"public.customers.name": ColumnObligation("mask:last4"),
                     "public.accounts.kind": ColumnObligation("token", "equality", "allow"),
                     "public.cards.score": ColumnObligation("deny")},
            limits=Limits(), locks=True, isolated=False, not_before=None, not_after=None, cache=CachePolicy(60),
        )  # fmt: skip


class Plans:
    """The plan builder over the catalogue of the differential's schema."""

    def __init__(self, cluster: Cluster) -> None:
        catalog = asyncio.run(self._catalog(cluster))
        policy: Any = _Policy()
        self.enforcement = Enforcement(
            catalog=lambda: catalog, pdp=lambda: policy,
            provider=EmbeddedProvider([Transformation("t", "siv", "t", "k", "text", "")], [Key("k", 1, bytes(64))]),
            sensitive={"public.customers.name": Sensitive(None, None), "public.accounts.kind": Sensitive("t", "t"),
                       "public.cards.score": Sensitive(None, None)},
            functions=("public.leak(integer)", "public.leak(text)"), max_statement=4096,
        )  # fmt: skip
        name = "spiffe://bank.example/fuzz"
        identity = Identity(spiffe_id=name, database="bank")
        self.agent: Agent = Registry([identity]).agent(parse_spiffe_id(name))
        self._governed = frozenset(name for name, (_, native) in FILTERS.items() if native)

    async def _catalog(self, cluster: Cluster) -> Catalog:
        connection = await asyncpg.connect(host=cluster.host, port=cluster.port, user="postgres", database="postgres")
        try:
            await connection.execute("DROP DATABASE IF EXISTS fuzz")
            await connection.execute("CREATE DATABASE fuzz")
        finally:
            await connection.close()
        connection = await asyncpg.connect(host=cluster.host, port=cluster.port, user="postgres", database="fuzz")
        try:
            await connection.execute((HERE / "schema.sql").read_text())
            return await read_catalog(connection)
        finally:
            await connection.close()

    def check(self, data: bytes) -> None:
        """Refused by a control that is documented, or a plan in which no governed relation stands unfiltered."""
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return
        try:
            self.enforcement.prepare(self.agent, text, simple=True).send(None)
            raise AssertionError(f"it waits: {text}")
        except StopIteration as done:
            prepared = done.value
        except Refusal as refusal:
            assert refusal.control in CONTROLS and len(refusal.sqlstate) == 5 and refusal.message, text
            return
        for one in prepared:
            self._filtered(one, text)

    def _filtered(self, prepared: Prepared, text: str) -> None:
        if prepared.plan is None:
            return
        (raw,) = postgast.parse(prepared.plan.sql).stmts
        for part in tree.walk(raw.stmt):
            if part.DESCRIPTOR.name != "SelectStmt":
                continue
            for item in part.from_clause:
                var = item.range_var
                if item.HasField("range_var") and var.schemaname == "public" and var.relname in self._governed:
                    assert part.HasField("where_clause") and len(part.from_clause) == 1, (text, prepared.plan.sql)
                    if var.relname != "regions":
                        columns = [c.fields[-1].string.sval for c in tree.walk(part.where_clause)
                                   if c.DESCRIPTOR.name == "ColumnRef"]  # fmt: skip
                        assert "tenant" in columns, (text, prepared.plan.sql)


@cache
def _seeds() -> tuple[str, ...]:
    """Real statements: the catalogue's, and generated ones."""
    texts = [
        step[0] for row in ROWS for attempt in row.attempts if isinstance(attempt, Script) for step in attempt.steps
    ]
    texts += [statement.sql for number in range(0, 1600, 8) for statement in script(1, number).statements]
    return tuple(text for text in texts if len(text) < 2000)


@cache
def _words() -> tuple[str, ...]:
    found = {word for text in _seeds() for word in scanned(text) or ()}
    return tuple(sorted(found))


def _statement(source: random.Random) -> bytes:
    """A statement with tokens dropped, doubled, exchanged, or taken from another."""
    seeds = _seeds()
    text = source.choice(seeds)
    if source.random() < 0.1:
        return source.randbytes(source.randint(1, 40))
    tokens = scanned(text) or [text]
    for _ in range(source.choice((0, 1, 1, 1, 2, 4))):
        place = source.randrange(len(tokens))
        match source.randrange(5):
            case 0:
                del tokens[place]
            case 1:
                tokens.insert(place, source.choice(_words()))
            case 2:
                tokens[place] = source.choice(_words())
            case 3:
                other = scanned(source.choice(seeds)) or [""]
                start = source.randrange(len(other))
                tokens[place : place + source.randint(0, 6)] = other[start : start + source.randint(1, 12)]
            case _:
                tokens[place : place + 1] = ["(", tokens[place], ")"]
        if not tokens:
            return b""
    return " ".join(tokens).encode(errors="surrogatepass")


def targets(cluster: Cluster) -> tuple[Target, ...]:
    """All of them.  `cluster` is where the plan builder's catalogue is read from."""
    plans = Plans(cluster)
    return (
        Target("frames", _stream, frames),
        Target("startup", _startup, startup),
        Target("lexer", _hostile, lexer),
        Target("rows", _rows, rows),
        Target("mq", mq.make, mq.check),
        Target("payload", payloads.make, payloads.check),
        Target("statements", _statement, plans.check),
    )
