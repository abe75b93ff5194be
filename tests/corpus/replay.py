"""Runs captured sessions through Grille as an agent, and on a database of their own as they were captured.

Grille goes first: what it denies is counted and not run on the other side.  In a transaction each statement stands
behind a savepoint, so that a denial does not end the session.  Statements about the catalogue are answered for the
agent that asks and are not compared; they must not name what the agent may not see.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import pq

CAPTURED: Final = Path(__file__).parent / "captured"
SOURCES: Final = tuple(sorted(path.stem for path in CAPTURED.glob("*.jsonl")))
HIDDEN: Final = (b"salaries", b"employee_payroll_number", b"gross_amount_secret", b"99999")
"""Names and a value of a table that the policy does not allow."""
_INTROSPECTION: Final = re.compile(
    r"\bpg_|information_schema|^\s*SHOW\b|current_schema|current_catalog|current_setting", re.IGNORECASE
)
_CONTROL: Final = re.compile(r"\[control ([A-Z]+-\d+)")
_TRANSACTION: Final = re.compile(
    r"^\s*(BEGIN|START|COMMIT|END|ROLLBACK|SAVEPOINT|RELEASE|ABORT|SET|DISCARD)\b", re.IGNORECASE
)


class Outcome(NamedTuple):
    """What came back for one execution."""

    sqlstate: str
    message: str
    tags: tuple[bytes, ...]
    rows: tuple[Any, ...]
    """The rows of all results, each a tuple of bytes or None, and the data of a COPY."""


@dataclass
class Tally:
    """What became of the executions of one source."""

    application: int = 0
    introspection: int = 0
    equal: int = 0
    answered: int = 0
    texts: set[str] = field(default_factory=set)
    denied: Counter[str] = field(default_factory=Counter)
    """Application statements, by control and message."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """Statements about the catalogue, by control and message."""
    different: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    """Answers that name what is hidden."""

    @property
    def share(self) -> float:
        """Of application statements that were denied."""
        return sum(self.denied.values()) / max(1, self.application)


def executions(source: str) -> list[list[dict[str, Any]]]:
    """The captured sessions of one source."""
    found: dict[int, list[dict[str, Any]]] = {}
    for line in (CAPTURED / f"{source}.jsonl").read_text(encoding="utf-8").splitlines():
        execution = json.loads(line)
        found.setdefault(execution["session"], []).append(execution)
    return list(found.values())


def run(connection: pq.abc.PGconn, execution: dict[str, Any]) -> Outcome:
    """Run one execution as it was captured, but for its portal's and its statement's name."""
    text = execution["sql"].encode()
    if "values" in execution:
        values = [None if value is None else bytes.fromhex(value) for value in execution["values"]]
        count = len(values)
        formats = execution["formats"]
        formats = [0] * count if not formats else formats * count if len(formats) == 1 else formats
        types = (execution["types"] + [0] * count)[:count]
        binary = pq.Format.BINARY if execution["results"][:1] == [1] else pq.Format.TEXT
        connection.send_query_params(text, values, types, formats, binary)
    else:
        connection.send_query(text)
    sqlstate, message, tags, rows = "", "", [], []
    while (result := connection.get_result()) is not None:
        match result.status:
            case pq.ExecStatus.COPY_IN:
                connection.put_copy_data(bytes.fromhex(execution.get("copy", "")))
                connection.put_copy_end()
                continue
            case pq.ExecStatus.COPY_OUT:
                while True:
                    size, data = connection.get_copy_data(0)
                    if size < 0:
                        break
                    rows.append(bytes(data))
                continue
            case pq.ExecStatus.FATAL_ERROR:
                sqlstate = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
                message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
                continue
        tags.append(result.command_status or b"")
        rows += [tuple(result.get_value(n, m) for m in range(result.nfields)) for n in range(result.ntuples)]
    return Outcome(sqlstate, message, tuple(tags), tuple(rows))


def replay(source: str, agent: str, owner: str) -> Tally:
    """Run a source's sessions: ``agent`` and ``owner`` are connection strings through Grille and around it."""
    tally = Tally()
    for session in executions(source):
        with psycopg.connect(agent, autocommit=True) as one, psycopg.connect(owner, autocommit=True) as other:
            for execution in session:
                _step(one.pgconn, other.pgconn, execution, tally)
    return tally


def _step(one: pq.abc.PGconn, other: pq.abc.PGconn, execution: dict[str, Any], tally: Tally) -> None:
    text = execution["sql"]
    tally.texts.add(text)
    about_catalogue = bool(_INTROSPECTION.search(text))
    guarded = one.transaction_status == pq.TransactionStatus.INTRANS and not _TRANSACTION.match(text)
    if guarded:
        _both(one, other, "SAVEPOINT corpus")
    given = run(one, execution)
    control = _CONTROL.search(given.message)
    reason = f"{control[1]} {given.message.partition(' [control')[0]}" if control else ""
    if about_catalogue:
        tally.introspection += 1
        if given.sqlstate:
            tally.unanswered[reason or f"{given.sqlstate} {given.message}"] += 1
        else:
            tally.answered += 1
        if any(name in repr(given).encode() for name in HIDDEN):
            tally.shown.append(text)
        if guarded:
            _both(one, other, "ROLLBACK TO corpus")
        elif _TRANSACTION.match(text):
            run(other, execution)
        return
    tally.application += 1
    if control:
        tally.denied[reason] += 1
        if guarded:
            _both(one, other, "ROLLBACK TO corpus")
        return
    wanted = run(other, execution)
    same = (given.sqlstate, given.tags) == (wanted.sqlstate, wanted.tags)
    if same and sorted(map(repr, given.rows)) == sorted(map(repr, wanted.rows)):
        tally.equal += 1
    else:
        tally.different.append(f"{text}\n  {execution.get('values')}\n  Grille {given}\n  direct {wanted}")
    if guarded and not given.sqlstate and not wanted.sqlstate:
        _both(one, other, "RELEASE corpus")


def _both(one: pq.abc.PGconn, other: pq.abc.PGconn, text: str) -> None:
    for connection in (one, other):
        outcome = run(connection, {"sql": text})
        assert not outcome.sqlstate, (text, outcome)


def table(tallies: dict[str, Tally]) -> str:
    """The result as a table."""
    lines = [f"{'source':20} texts  application  equal  denied  share  catalogue  answered"]
    for source, tally in tallies.items():
        denied = sum(tally.denied.values())
        lines.append(
            f"{source:20} {len(tally.texts):5} {tally.application:12} {tally.equal:6} {denied:7} {tally.share:6.1%} "
            f"{tally.introspection:10} {tally.answered:9}"
        )
    for source, tally in tallies.items():
        lines += [
            f"  {source}: {number} x {reason}" for reason, number in (tally.denied + tally.unanswered).most_common()
        ]
    return "\n".join(lines)
