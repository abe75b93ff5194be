"""One region of a drill: what it finds out with its own keys about its own rows, and the digests that leave it.

A process of its own (``grille drill region``), asked over standard input and answering on standard output, a line of
JSON each; so a region can be another machine, behind ssh.  Values are decoded here only to be encoded again at once.
Primary keys stay here, in a file that only the owner reads.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, TextIO

import msgspec

from grille.protocols.postgres.copy import quoted_name
from grille.proxy import keys
from grille.proxy.authority import write_private
from grille.proxy.catalog import READ_FAILURES, connect
from grille.proxy.config import Config, ConfigError, Database
from grille.proxy.config import Transformation as Section
from grille.proxy.providers import Provider
from grille.tokenization.provider import ReadOnly, TokenizationError, TokenRequest, Unfit
from grille.tokenization.transformation import Template, tweak

_VIEWS: Final = ("v", "f")
"""And foreign tables: what they show is stored elsewhere."""
BUCKETS: Final = 4096
"""Parts of a table that have a sum each; a row's key says which."""
MOST_ROWS: Final = 50_000
"""Rows of differing buckets that are told one by one."""
CANARIES: Final = 16
KEY_BYTES: Final = 32
_BLOCKS: Final = 2048
"""Of a table, that are read between two notes of how far it came: 16 MiB."""
_MODULUS: Final = 1 << 256
_FOREVER: Final = 30 * 86400.0
_SHAPE: Final = """
SELECT c.oid, c.relkind::text AS kind, c.reltuples::float8 AS rows,
       pg_catalog.pg_relation_size(c.oid) / current_setting('block_size')::int AS blocks,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number
             WHERE i.indrelid = c.oid AND i.indisprimary ORDER BY k.place) AS key,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = ANY ('{r,p,m,v,f}')
"""
_SETTINGS: Final = (
    "SET datestyle = 'ISO'; SET timezone = 'UTC'; SET intervalstyle = 'postgres'; SET bytea_output = 'hex';"
)


class Ask(msgspec.Struct, frozen=True):
    """What the coordinator wants."""

    what: Literal["describe", "sums", "rows", "keep", "sample"]
    key: str = ""
    """The drill's key, 64 hexadecimal digits; with the first request."""
    table: str = ""
    """``database/schema.table``, of the configuration's name of the database."""
    buckets: tuple[int, ...] = ()
    rows: tuple[str, ...] = ()
    """keep: digests of keys."""
    count: int = 0


class Table(msgspec.Struct, frozen=True):
    """A table with tokenized columns."""

    columns: dict[str, str]
    """Transformation by column."""
    key: tuple[str, ...]
    """Columns of the primary key; none: rows are told apart by their tokens alone."""
    missing: tuple[str, ...] = ()
    """Columns of the configuration that it does not have."""


class Described(msgspec.Struct, frozen=True, tag="described"):
    """How this region is set up."""

    transformations: dict[str, dict[str, str]]
    """By name: what a token depends on besides the key, in words."""
    check_values: dict[str, str]
    """By transformation: a keyed digest of its key; none for a key that Vault holds."""
    canaries: dict[str, str]
    """By transformation: a keyed digest of the tokens of values that are the same everywhere."""
    tables: dict[str, Table]
    absent: tuple[str, ...]
    """Configured relations that are in no database."""


class Sums(msgspec.Struct, frozen=True, tag="sums"):
    """A table, by bucket: how many rows, and the sum of their keyed digests modulo 2 ** 256, hexadecimal."""

    rows: int
    buckets: list[str]
    taken_up: bool
    """It was counted by an earlier run, at least in part: in another snapshot."""


class Rows(msgspec.Struct, frozen=True, tag="rows"):
    """Keyed digests of key and of row, of the rows of some buckets; none if there are more than `MOST_ROWS`."""

    rows: list[tuple[str, str]]
    more: bool


class Sampled(msgspec.Struct, frozen=True, tag="sampled"):
    """By column: tokens that were decoded and encoded, and those that came back."""

    columns: dict[str, tuple[int, int]]


class Kept(msgspec.Struct, frozen=True, tag="kept"):
    """The keys of differing rows are in a file of the region."""

    path: str


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far the request under way is."""

    done: int
    of: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request could not be answered; the text is for operators and has no value."""

    problem: str


Answer = Described | Sums | Rows | Sampled | Kept | Progress | Failed


class RegionError(Exception):
    """A region cannot be measured; the text is for operators."""


def serve(config: Config, state: Path, asked: TextIO, out: TextIO) -> int:
    """Answer requests until there are no more; the exit status."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)

    def say(answer: Answer) -> None:
        out.write(msgspec.json.encode(answer).decode() + "\n")
        out.flush()

    async def run() -> None:
        region: Region | None = None
        try:
            while line := await asyncio.to_thread(asked.readline):
                ask = msgspec.json.decode(line, type=Ask)
                try:
                    if region is None:
                        region = Region(config, state, bytes.fromhex(ask.key), say)
                    say(await region.answer(ask))
                except (RegionError, ConfigError, TokenizationError) as error:
                    say(Failed(" ".join(str(error).split())))
                except READ_FAILURES as error:
                    what = f"{ask.table} cannot be read" if ask.table else "the database cannot be read"
                    say(Failed(f"{what} ({type(error).__name__})"))
        finally:
            if region is not None:
                await region.close()

    asyncio.run(run())
    return 0


class Region:
    """What is asked of one region."""

    def __init__(self, config: Config, state: Path, key: bytes, say: Callable[[Answer], None]) -> None:
        """``key``: the drill's, 32 bytes.  Raises `ConfigError` and `RegionError`."""
        if len(key) != KEY_BYTES:
            raise RegionError(f"the drill's key has not {KEY_BYTES} bytes")
        self._config = config
        self._state = state
        self._key = key
        self._say = say
        self._provider = Provider(config)
        self._watch: asyncio.Task[None] | None = None
        if self._provider.vault is not None:
            self._watch = asyncio.get_running_loop().create_task(self._provider.vault.watch())
        self._tables: dict[str, Table] = {}
        self._there: set[str] = set()
        """Relations that are there; of views the tables are compared."""
        self._keys: dict[str, dict[str, bytes]] = {}
        """By table: what the digests of keys stand for, of the rows that were told last."""

    async def close(self) -> None:
        """Let go of the provider."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._provider.close()

    async def answer(self, ask: Ask) -> Answer:
        """Raises `RegionError`, `TokenizationError` and asyncpg's errors."""
        match ask.what:
            case "describe":
                return await self._describe()
            case "sums":
                return await self._sums(ask.table)
            case "rows":
                return await self._rows(ask.table, frozenset(ask.buckets))
            case "keep":
                return self._keep(ask.table, ask.rows)
            case "sample":
                return await self._sample(ask.table, ask.count)

    def digest(self, purpose: str, data: bytes, size: int = 32) -> bytes:
        """Under the drill's key, which no later drill has: two reports tell nothing of each other."""
        return hashlib.blake2b(data, key=self._key, digest_size=size, person=purpose.encode()).digest()

    # how it is set up

    async def _describe(self) -> Described:
        materials = keys.materials(self._config)
        transformations, check_values, canaries = {}, {}, {}
        for each in self._config.transformations:
            material = materials.get(each.key) if each.provider == "embedded" else None
            version = next((key.version for key in self._config.keys if key.name == each.key), each.version)
            transformations[each.name] = _terms(each, version)
            if material is not None:
                check_values[each.name] = self.digest("key", material, 8).hex()
            canaries[each.name] = self.digest("canary", await self._canaries(each)).hex()
        await self._find_tables()
        wanted = {column.name.rpartition(".")[0] for column in self._config.columns if column.transformation}
        return Described(transformations, check_values, canaries, self._tables, tuple(sorted(wanted - self._there)))

    async def _canaries(self, section: Section) -> bytes:
        """Tokens of values that are the same in every region: the template's example, its token, and so on."""
        value = Template(section.template, section.alphabet).example if section.kind == "fpe" else "canary"
        tokens = []
        provider = self._provider.tokens
        for number in range(CANARIES):
            asked = [TokenRequest(section.name, value if section.kind == "fpe" else f"{value} {number}")]
            try:
                (answer,) = await provider.encode(asked)
            except ReadOnly:
                (answer,) = await provider.decode(asked)
            if isinstance(answer, Unfit):
                raise RegionError(f"the transformation {section.name}: a canary has no token ({answer.reason})")
            tokens.append(answer)
            value = answer if section.kind == "fpe" else value
        return "\0".join(tokens).encode()

    async def _find_tables(self) -> None:
        wanted: dict[str, dict[str, str]] = {}
        for column in self._config.columns:
            if column.transformation is not None:
                relation, _, name = column.name.rpartition(".")
                wanted.setdefault(relation, {})[name] = column.transformation
        self._tables.clear()
        for database in self._config.databases:
            connection = await connect(database)
            try:
                for relation, columns in sorted(wanted.items()):
                    shape = await connection.fetchrow(_SHAPE, *relation.split(".", 1))
                    if shape is not None:
                        self._there.add(relation)
                    if shape is not None and shape["kind"] not in _VIEWS:
                        there = {name: to for name, to in sorted(columns.items()) if name in shape["columns"]}
                        missing = tuple(sorted(columns.keys() - there.keys()))
                        self._tables[f"{database.name}/{relation}"] = Table(there, tuple(shape["key"]), missing)
            finally:
                await connection.close()

    # its rows

    def _place(self, table: str) -> tuple[Database, str, str]:
        """Database, schema and name."""
        name, _, relation = table.partition("/")
        schema, _, bare = relation.partition(".")
        return next(each for each in self._config.databases if each.name == name), schema, bare

    async def _read(
        self, table: str, take: Callable[[bytes], None], first: int, done: Callable[[int, int], None]
    ) -> None:
        """Give each row to ``take``, in one snapshot: its key and its tokens, as COPY writes them.

        ``first``: the block to begin at; ``done`` is told behind some blocks which is next and how many there are.
        """
        database, schema, bare = self._place(table)
        columns = ", ".join(map(quoted_name, (*self._tables[table].key, *self._tables[table].columns)))
        source = f"SELECT {columns} FROM {quoted_name(schema)}.{quoted_name(bare)}"  # noqa: S608  (names, and quoted)
        rest = b""

        async def arrived(data: bytes) -> None:
            nonlocal rest
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            for line in lines:
                take(line)

        connection = await connect(database)
        try:
            await connection.execute(_SETTINGS)
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                shape = await connection.fetchrow(_SHAPE, schema, bare)
                if shape is None:
                    raise RegionError(f"{table} is not there any more")
                blocks = int(shape["blocks"]) if shape["kind"] != "p" else 0
                for begin in range(first, max(blocks, first + 1), _BLOCKS):
                    end = begin + _BLOCKS
                    where = f"ctid >= '({begin},0)'::tid" + (f" AND ctid < '({end},0)'::tid" if end < blocks else "")
                    query = f"{source} WHERE {where}" if blocks else source
                    await connection.copy_from_query(query, output=arrived, timeout=_FOREVER)
                    done(min(end, blocks), blocks)
        finally:
            await connection.close()

    def _telling(self, table: str) -> Callable[[bytes], tuple[bytes, bytes]]:
        """From a line to its key and the key's digest; without a primary key the line is the key."""
        tokens = len(self._tables[table].columns)
        keyed = bool(self._tables[table].key)
        made = hashlib.blake2b(key=self._key, digest_size=16, person=b"row key")

        def tell(line: bytes) -> tuple[bytes, bytes]:
            key = line.rsplit(b"\t", tokens)[0] if keyed else line
            digest = made.copy()
            digest.update(key)
            return key, digest.digest()

        return tell

    async def _sums(self, table: str) -> Sums:
        note = self._state / f"{hashlib.sha256(table.encode()).hexdigest()[:24]}.json"
        shape = self._tables[table]
        database, _, _ = self._place(table)
        what = (table, shape.key, sorted(shape.columns), database.host, database.port, database.database)
        mark = self.digest("mark", repr(what).encode(), 16).hex()
        sums, rows, first = [0] * BUCKETS, 0, 0
        taken_up = False
        if note.exists():
            kept = json.loads(note.read_bytes())
            if kept["mark"] == mark:
                sums, rows, first, taken_up = [int(each, 16) for each in kept["sums"]], kept["rows"], kept["next"], True
                if kept["done"]:
                    return Sums(rows, kept["sums"], taken_up=True)
        tell, made = self._telling(table), hashlib.blake2b(key=self._key, digest_size=32, person=b"row")

        def take(line: bytes) -> None:
            nonlocal rows
            rows += 1
            bucket = int.from_bytes(tell(line)[1][:2], "big") % BUCKETS
            digest = made.copy()
            digest.update(line)
            sums[bucket] = (sums[bucket] + int.from_bytes(digest.digest(), "big")) % _MODULUS

        def done(following: int, blocks: int) -> None:
            told = [f"{each:064x}" for each in sums]
            kept = {"mark": mark, "sums": told, "rows": rows, "next": following, "done": following >= blocks}
            write_private(note, json.dumps(kept).encode())
            self._say(Progress(following, blocks))

        await self._read(table, take, first, done)
        return Sums(rows, [f"{each:064x}" for each in sums], taken_up=taken_up)

    async def _rows(self, table: str, buckets: frozenset[int]) -> Rows:
        found: list[tuple[str, str]] = []
        names = self._keys[table] = {}
        tell = self._telling(table)
        more = False

        def take(line: bytes) -> None:
            nonlocal more
            key, named = tell(line)
            if int.from_bytes(named[:2], "big") % BUCKETS in buckets and not more:
                found.append((named.hex(), self.digest("row", line, 16).hex()))
                names[named.hex()] = key
                more = len(found) > MOST_ROWS

        await self._read(table, take, 0, lambda following, blocks: self._say(Progress(following, blocks)))
        if more:
            names.clear()
        return Rows([] if more else found, more)

    def _keep(self, table: str, rows: Sequence[str]) -> Kept:
        """Write down which rows these are, for who works in this region."""
        path = self._state / "differing-rows.jsonl"
        columns = list(self._tables[table].key or self._tables[table].columns)
        known = self._keys.get(table, {})
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  (its mode is to be there from the beginning)
            for each in rows:
                if each in known:
                    values = known[each].decode("utf-8", "replace").split("\t")
                    line = {"table": table, "row": each, "key": dict(zip(columns, values, strict=False))}
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        return Kept(str(path))

    async def _sample(self, table: str, count: int) -> Sampled:
        """Decode some tokens and encode what comes out; it goes no further than that."""
        database, schema, bare = self._place(table)
        told: dict[str, tuple[int, int]] = {}
        connection = await connect(database)
        try:
            shape = await connection.fetchrow(_SHAPE, schema, bare)
            if shape is None:
                raise RegionError(f"{table} is not there any more")
            share = 100.0 if shape["rows"] < 100 * count else max(0.001, min(100.0, 2000.0 * count / shape["rows"]))
            for column, transformation in self._tables[table].columns.items():
                quoted = quoted_name(column)
                found = await connection.fetch(
                    f"SELECT {quoted}::text FROM {quoted_name(schema)}.{quoted_name(bare)} "  # noqa: S608
                    f"TABLESAMPLE SYSTEM ({share:f}) WHERE {quoted} <> '' ORDER BY pg_catalog.random() LIMIT {count:d}",
                    timeout=_FOREVER,
                )
                told[column] = await self._round(transformation, [str(row[0]) for row in found])
        finally:
            await connection.close()
        return Sampled(told)

    async def _round(self, transformation: str, tokens: Sequence[str]) -> tuple[int, int]:
        if not tokens:
            return 0, 0
        provider = self._provider.tokens
        values = await provider.decode([TokenRequest(transformation, token) for token in tokens])
        pairs = [
            (token, value) for token, value in zip(tokens, values, strict=True) if not isinstance(value, Unfit)
        ]  # fmt: skip
        try:
            again = await provider.encode([TokenRequest(transformation, value) for _, value in pairs]) if pairs else ()
        except ReadOnly:
            return len(tokens), len(pairs)
        return len(tokens), sum(token == each for (token, _), each in zip(pairs, again, strict=True))


def _terms(section: Section, version: int) -> dict[str, str]:
    terms = {"kind": section.kind, "template": section.template, "token domain": section.token_domain,
             "key version": str(version)}  # fmt: skip
    if section.kind == "fpe":
        supplied = section.tweak or tweak(section.token_domain, version).hex()
        terms |= {"alphabet": section.alphabet, "algorithm": section.fpe_algorithm, "tweak": supplied}
    return terms
