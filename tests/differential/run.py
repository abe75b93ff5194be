"""Runs scripts on both sides, and counts how the pairs of outcomes are judged."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from psycopg import pq

from tests.differential.compare import Verdict, judge
from tests.differential.generator import Script, script
from tests.differential.shrink import shrink
from tests.differential.wire import Outcome, Statement, ask, receive, send
from tests.differential.world import HERE, World

REGRESSIONS: Final = HERE / "regressions"
BAD: Final = ("leak", "wrong", "crash")
_BATCH: Final = 16
_VACUUM: Final = 20_000
"""Statements after which the dead rows of what was rolled back are removed."""
_REFUSED: Final = ("denied", "error")
_FOLLOWS: Final = ("25P02", "26000", "34000")
"""The transaction has failed, the prepared statement or the cursor is not there."""


@dataclass
class Tally:
    """What was counted."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Denials of what native row security answers, by control and reason."""
    examples: dict[str, int] = field(default_factory=dict)
    """The number of a script for each of them."""
    allowed: Counter[str] = field(default_factory=Counter)
    """Equal pairs that differ in an allowed way."""
    ended: Counter[str] = field(default_factory=Counter)
    """How the equal pairs ended: ``rows``, ``tag`` or an SQLSTATE."""
    found: list[tuple[Script, Verdict]] = field(default_factory=list)

    @property
    def statements(self) -> int:
        """How many were judged."""
        return self.counts.total()

    @property
    def bad(self) -> int:
        """Leaks, wrong answers and crashes."""
        return sum(self.counts[kind] for kind in BAD)

    def line(self) -> str:
        """The last line of a run."""
        c = self.counts
        return (
            f"differential statements={self.statements} equal={c['equal'] + c['agreed']} denied={c['denied']} "
            f"leaks={c['leak']} wrong={c['wrong']} crashes={c['crash']}"
        )


class Bench:
    """Sessions of a world's lanes, opened again when one is lost.  Use as a context manager."""

    def __init__(self, world: World, agent: str = "agent") -> None:
        """``agent``: ``agent``, or ``open`` for one to whom the policy gives all rows."""
        self.world = world
        self.agent = agent
        self._sessions: dict[str, pq.abc.PGconn] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._sessions.values():
            connection.finish()

    def session(self, name: str) -> pq.abc.PGconn:
        """``agent<lane>``, ``open<lane>`` and ``visible`` through Grille, ``native<lane>`` under row security."""
        connection = self._sessions.get(name)
        if connection is None or connection.status != pq.ConnStatus.OK or connection.pipeline_status:
            if connection is not None:
                connection.finish()
            native = name.removeprefix("native")
            connection = self.world.connect(name) if native == name else self.world.connect_native(int(native))
            self._sessions[name] = connection
        return connection

    def session_in_flight(self, name: str) -> pq.abc.PGconn:
        """The session on which a batch was sent."""
        return self._sessions[name]

    def alone(self, name: str, statements: Sequence[Statement]) -> list[Outcome]:
        """Run one script, and leave no transaction open."""
        connection = self.session(name)
        outcomes = ask(connection, statements, copies=not name.startswith("native"))
        if connection.status == pq.ConnStatus.OK and connection.transaction_status != pq.TransactionStatus.IDLE:
            connection.exec_(b"ROLLBACK")
        return outcomes

    def verdicts(self, wanted: Script, lane: int) -> list[Verdict]:
        """How each judged statement of the script compares, run by itself; a leak shows in the first verdict."""
        self.world.leaked(lane)
        ours = self.alone(f"{self.agent}{lane}", wanted.statements)
        native = self.alone(f"native{lane}", wanted.statements)
        found = self.judged(wanted, ours, native)
        if wanted.commits:
            self.settled(lane, found)
        seen = self.world.leaked(lane)
        if seen and found:
            found[0] = Verdict("leak", f"a function saw {seen[:3]}")
        return found

    def settled(self, lane: int, verdicts: list[Verdict]) -> None:
        """Compare and put back the tables of a lane; where nothing else differs, they may not."""
        if not self.world.settle(lane) and all(verdict.kind == "equal" for verdict in verdicts):
            verdicts[-1] = Verdict("wrong", "the tables differ afterwards")

    def judged(self, wanted: Script, ours: Sequence[Outcome], native: Sequence[Outcome]) -> list[Verdict]:
        """Judge until the transactions differ in what they did."""
        found = []
        for index, (statement, one, other) in enumerate(zip(wanted.statements, ours, native, strict=True)):
            if not statement.judged:
                if "lost" in (one.kind, other.kind):
                    found.append(Verdict("crash", one.message or other.message))
                    break
                continue

            if other.state in _FOLLOWS and one.kind in _REFUSED:
                continue  # the statement that it follows failed on both sides

            def visible(index: int = index) -> Outcome:
                steps = wanted.statements[: index + 1]
                if wanted.commits:
                    steps = [Statement("BEGIN", judged=False), *steps]
                return self.alone("visible", steps)[-1]

            verdict = judge(statement, one, other, visible)
            found.append(verdict._replace(ended=one.state or one.kind))
            if (one.kind in _REFUSED) != (other.kind in _REFUSED) or "lost" in (one.kind, other.kind):
                break
        return found


def campaign(
    bench: Bench,
    enough: Callable[[Tally], bool],
    seed: int,
    *,
    start: int = 0,
    progress: Callable[[Tally], None] | None = None,
    save: Path | None = None,
    source: Callable[[int], Script] | None = None,
) -> Tally:
    """Run scripts of `seed`, or of another ``source``, from number `start` on until there are enough.

    A batch is in flight on each lane while another is compared.  Differences are made small and, if ``save`` is a
    directory, written there.
    """
    tally = Tally()
    number, vacuumed = start, 0
    flying: dict[int, list[Script]] = {}
    told = time.monotonic()
    for lane in itertools.cycle(range(bench.world.lanes)):
        if lane in flying:
            _land(bench, lane, flying.pop(lane), tally, save)
        if progress and time.monotonic() - told > 10:
            told = time.monotonic()
            progress(tally)
        done, tired = enough(tally), tally.statements - vacuumed > _VACUUM
        if (done or tired) and flying:
            continue
        if done:
            return tally
        if tired:
            vacuumed = tally.statements
            bench.world.vacuum()
        flying[lane] = []
        while sum(len(each.statements) for each in flying[lane]) < _BATCH:
            flying[lane].append(script(seed, number) if source is None else source(number))
            number += 1
        for name in (f"{bench.agent}{lane}", f"native{lane}"):
            send(bench.session(name), _flat(flying[lane]))
    raise AssertionError


def _flat(batch: Sequence[Script]) -> list[Statement]:
    return [each for wanted in batch for each in wanted.statements if not _alone(wanted)]


def _alone(wanted: Script) -> bool:
    """Not for the pipeline: it has a simple Query, or the tables are compared after it."""
    return wanted.commits or any(each.simple for each in wanted.statements)


def _land(bench: Bench, lane: int, batch: Sequence[Script], tally: Tally, save: Path | None) -> None:
    count = len(_flat(batch))
    names = (f"{bench.agent}{lane}", f"native{lane}")
    answers = [receive(bench.session_in_flight(name), count) for name in names]
    offset = 0
    results = []
    for wanted in batch:
        if _alone(wanted):
            ours, native = (bench.alone(name, wanted.statements) for name in names)
        else:
            width = len(wanted.statements)
            ours, native = (answer[offset : offset + width] for answer in answers)
            offset += width
        verdicts = bench.judged(wanted, ours, native)
        if wanted.commits:
            bench.settled(lane, verdicts)
        results.append((wanted, verdicts))
    lost = any(_kind(verdicts) == "crash" for _, verdicts in results)
    if bench.world.leaked(lane):
        results = _each_alone(
            bench, lane, results, Verdict("leak", "a function saw a hidden value, in this batch only")
        )
    elif lost:  # the scripts behind the one that lost the connection are lost with it
        results = _each_alone(bench, lane, results, Verdict("crash", "a connection was lost, in this batch only"))
    for wanted, verdicts in results:
        _count(tally, wanted, verdicts)
        bad = next((verdict for verdict in verdicts if verdict.kind in BAD), None)
        if bad is None:
            continue
        smaller = shrink(wanted, lambda trial: _kind(bench.verdicts(trial, lane)) == bad.kind)  # noqa: B023
        tally.found.append((smaller, bad))
        print(f"{bad.kind}: number {wanted.number}: {bad.detail}", flush=True)
        for statement in smaller.statements:
            print(f"    {statement.sql}  {statement.values or ''}", flush=True)
        if save is not None:
            write(save, smaller, bad)


_Judged = list[tuple[Script, list[Verdict]]]


def _each_alone(bench: Bench, lane: int, results: _Judged, otherwise: Verdict) -> _Judged:
    """Judge each script by itself; what shows only in the batch is the first script's."""
    again = [(wanted, bench.verdicts(wanted, lane)) for wanted, _ in results]
    if not any(_kind(verdicts) == otherwise.kind for _, verdicts in again):
        again[0][1][:1] = [otherwise]
    return again


def _kind(verdicts: Sequence[Verdict]) -> str:
    return next((verdict.kind for verdict in verdicts if verdict.kind in BAD), "")


def _count(tally: Tally, wanted: Script, verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        tally.counts[verdict.kind] += 1
        if verdict.kind == "denied":
            tally.reasons[_reason(verdict.detail)] += 1
            tally.examples.setdefault(_reason(verdict.detail), wanted.number)
        elif verdict.kind == "equal":
            tally.ended[verdict.ended] += 1
            if verdict.detail:
                tally.allowed[verdict.detail] += 1


def _reason(detail: str) -> str:
    """The control and its words, without the names between quotation marks."""
    return '"..."'.join(part for n, part in enumerate(detail.split('"')) if n % 2 == 0)


# Regressions


def write(directory: Path, wanted: Script, verdict: Verdict) -> Path:
    """Keep a difference as a file that the ordinary tests run: it must not be one any more."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{verdict.kind}-{wanted.number}.json"
    content: dict[str, Any] = {
        "found": f"{verdict.kind}: {verdict.detail}",
        "statements": [_as_json(statement) for statement in wanted.statements],
    }
    if wanted.commits:
        content["commits"] = True
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _as_json(statement: Statement) -> dict[str, Any]:
    content: dict[str, Any] = {"sql": statement.sql}
    if statement.types:
        content["parameters"] = [
            [kind, None if value is None else value.decode()]
            for kind, value in zip(statement.types, statement.values, strict=True)
        ]
    if statement.ordered:
        content["ordered"] = list(statement.ordered)
    for name in ("simple", "judged", "fails", "copy", "data", "binary"):
        if getattr(statement, name) != Statement._field_defaults[name]:
            content[name] = getattr(statement, name)
    return content


def read(path: Path) -> Script:
    """A script that was kept."""
    content = json.loads(path.read_text())
    statements = [
        Statement(
            each["sql"],
            tuple(kind for kind, _ in each.get("parameters", ())),
            tuple(None if value is None else value.encode() for _, value in each.get("parameters", ())),
            tuple(each.get("ordered", ())),
            each.get("simple", False),
            each.get("judged", True),
            each.get("fails", False),
            each.get("copy", ""),
            each.get("data", ""),
            each.get("binary", False),
        )
        for each in content["statements"]
    ]
    return Script(statements, commits=content.get("commits", False))
