"""``grille drill``: do tokens agree between regions?  Found out from digests; no value leaves its region.

Each region is a process of its own (`grille.proxy.drill_region`).  The key of the drill is new each time and known
to the regions for as long as it lasts, so what is told here cannot be compared with anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from grille.proxy import drill_report, keys
from grille.proxy.authority import write_private
from grille.proxy.config import ConfigError, load
from grille.proxy.drill_region import (
    BUCKETS,
    KEY_BYTES,
    Answer,
    Ask,
    Described,
    Failed,
    Kept,
    RegionError,
    Rows,
    Sampled,
    Sums,
)
from grille.proxy.drill_region import Progress as Done
from grille.proxy.drill_report import Compared, Finding, Report

KEY_FILE: Final = "drill.key"
_MOST_BUCKETS: Final = BUCKETS // 8
"""Differing ones, up to which the rows in them are compared one by one."""
_LINE: Final = 1 << 26
T = TypeVar("T")


class Drill:
    """One run."""

    def __init__(
        self,
        regions: Mapping[str, Sequence[str]],
        directory: Path,
        sample: int,
        err: TextIO,
        *,
        tables: Sequence[str] = (),
    ) -> None:
        """``regions``: the command of each, the first of which the others are compared with."""
        self._commands = regions
        self._directory = directory
        self._sample = sample
        self._tables = tables
        self._err = err
        self._bars: Progress | None = None

    async def run(self) -> Report:
        """Ask all regions, and compare.  Raises `RegionError`."""
        began = time.time()
        key = _drill_key(self._directory)
        console = Console(file=self._err)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as self._bars:
            async with contextlib.AsyncExitStack() as stack:
                regions = [
                    await stack.enter_async_context(_Process(name, command, self._told))
                    for name, command in self._commands.items()
                ]
                described = await _all(each.ask(Ask("describe", key=key), Described) for each in regions)
                names = list(self._commands)
                findings = _set_up(names, described)
                compared = []
                for table in sorted({table for each in described for table in each.tables}):
                    if self._tables and table not in self._tables and table.partition("/")[2] not in self._tables:
                        continue
                    compared.append(await self._table(table, regions, described, findings))
                if self._tables and not compared:
                    raise RegionError(f"no region has a table {' or '.join(self._tables)} with tokens")
        return Report(began, time.time(), tuple(names), tuple(compared), tuple(findings))

    async def _table(
        self, table: str, regions: Sequence[_Process], described: Sequence[Described], findings: list[Finding]
    ) -> Compared:
        having = [n for n, each in enumerate(described) if table in each.tables]
        for n, each in enumerate(regions):
            if n not in having:
                findings.append(Finding("missing-table", table, f"{each.name} does not have it", _MISSING))
        shapes = [described[n].tables[table] for n in having]
        if any(each != shapes[0] for each in shapes):
            findings.append(Finding("columns", table, "its tokenized columns or its primary key differ", _COLUMNS))
            return Compared(table, {}, (), 0)
        here = [regions[n] for n in having]
        sums = await _all(each.ask(Ask("sums", table=table), Sums) for each in here)
        rows = {each.name: told.rows for each, told in zip(here, sums, strict=True)}
        notes = tuple(
            f"{each.name}: counted by an earlier run, at least in part"
            for each, told in zip(here, sums, strict=True)
            if told.taken_up
        )
        different: set[int] = set()
        found = 0
        for other, told in zip(here[1:], sums[1:], strict=True):
            buckets = [n for n, (a, b) in enumerate(zip(sums[0].buckets, told.buckets, strict=True)) if a != b]
            different.update(buckets)
            if buckets:
                count, finding = await self._rows(table, here[0], other, buckets, rows)
                found += count
                findings.append(finding)
        if self._sample:
            sampled = await _all(each.ask(Ask("sample", table=table, count=self._sample), Sampled) for each in here)
            for each, answer in zip(here, sampled, strict=True):
                for column, (tried, same) in answer.columns.items():
                    if tried != same:
                        what = f"{each.name}: of {tried} sampled tokens {tried - same} do not come back once decoded"
                        findings.append(Finding("sample", f"{table}.{column}", what, _SAMPLE))
        self._say(f"{table}: {'agrees' if not different else f'{found} rows differ'}")
        return Compared(table, rows, drill_report.strip(different, BUCKETS), found, notes)

    async def _rows(
        self, table: str, one: _Process, other: _Process, buckets: Sequence[int], rows: Mapping[str, int]
    ) -> tuple[int, Finding]:
        """Which rows differ, by digests of their keys; the keys themselves stay in the regions."""
        if len(buckets) > _MOST_BUCKETS:
            least = max(len(buckets), *(abs(rows[one.name] - each) for each in rows.values()))
            what = f"{one.name} and {other.name}: {least} rows differ or more, in {len(buckets)} of {BUCKETS} parts"
            return least, Finding("rows", table, what, _WHOLE)
        ask = Ask("rows", table=table, buckets=tuple(buckets))
        here, there = await _all(each.ask(ask, Rows) for each in (one, other))
        if here.more or there.more:
            what = f"{one.name} and {other.name}: {len(buckets)} rows differ or more, in as many of {BUCKETS} parts"
            return len(buckets), Finding("rows", table, what, _WHOLE)
        only_here = Counter(here.rows) - Counter(there.rows)
        only_there = Counter(there.rows) - Counter(here.rows)
        keys_here, keys_there = {key for key, _ in only_here}, {key for key, _ in only_there}
        changed = keys_here & keys_there
        told = sorted(keys_here | keys_there)
        if not told:
            what = f"{one.name} and {other.name}: {len(buckets)} parts differed, and no row of them a moment later"
            return len(buckets), Finding("rows", table, what, _MOVING)
        kept = await _all(each.ask(Ask("keep", table=table, rows=tuple(told)), Kept) for each in (one, other))
        parts = [
            f"{len(keys)} {what}"
            for keys, what in (
                (changed, "with other tokens"),
                (keys_here - changed, f"in {one.name} only"),
                (keys_there - changed, f"in {other.name} only"),
            )
            if keys
        ]
        files = ", ".join(f"{each.name}: {where.path}" for each, where in zip((one, other), kept, strict=True))
        fix = f"{_ROWS} The keys of these rows are in a file of each region: {files}."
        what = f"{one.name} and {other.name}: rows {', '.join(parts)}"
        return len(told), Finding("rows", table, what, fix, tuple(told[: drill_report.MOST_TOLD]))

    def _say(self, line: str) -> None:
        if self._bars is not None and self._bars.disable:
            print(line, file=self._err, flush=True)

    def _told(self, region: str, ask: Ask, done: Done) -> None:
        """Move the bar of a request."""
        if self._bars is None or not done.of:
            return
        description = f"{region} {ask.table} {ask.what}"
        task = next((each for each in self._bars.tasks if each.description == description), None)
        number = task.id if task is not None else self._bars.add_task(description, total=done.of)
        self._bars.update(number, completed=done.done, total=done.of)


class _Process:
    """One region's process.  Use as an asynchronous context manager."""

    def __init__(self, name: str, command: Sequence[str], told: Any) -> None:
        self.name = name
        self._command = command
        self._told = told
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> _Process:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE
            )
        except OSError as error:
            raise RegionError(f"region {self.name}: {self._command[0]} cannot be run ({error.strerror})") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def ask(self, ask: Ask, kind: type[T]) -> T:
        """The answer.  Raises `RegionError`."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None  # noqa: S101
        with contextlib.suppress(ConnectionError):
            process.stdin.write(msgspec.json.encode(ask) + b"\n")
            await process.stdin.drain()
        while line := await process.stdout.readline():
            try:
                answer: Answer = msgspec.json.decode(line, type=Answer)
            except msgspec.DecodeError:
                raise RegionError(f"region {self.name} answers what is not understood") from None
            match answer:
                case Done():
                    self._told(self.name, ask, answer)
                case Failed(problem):
                    raise RegionError(f"region {self.name}: {problem}")
                case _ if isinstance(answer, kind):
                    return answer
                case _:
                    raise RegionError(f"region {self.name} answers what was not asked")
        raise RegionError(f"region {self.name} has ended; what it says is above")


def _set_up(names: Sequence[str], described: Sequence[Described]) -> list[Finding]:
    """What differs before a row is read."""
    findings = []
    first, name = described[0], names[0]
    for other_name, other in zip(names[1:], described[1:], strict=True):
        both = f"{name} and {other_name}"
        for each in sorted(first.transformations.keys() | other.transformations.keys()):
            one, two = first.transformations.get(each), other.transformations.get(each)
            if one is None or two is None:
                lacks = name if one is None else other_name
                findings.append(Finding("configuration", each, f"{lacks} has no such transformation", _CONFIGURATION))
                continue
            parts = [part for part in (one | two) if one.get(part) != two.get(part)]
            told = "; ".join(f"{part} {one.get(part)!r} and {two.get(part)!r}" for part in parts)
            if parts:
                findings.append(Finding("configuration", each, f"{both}: {told}", _CONFIGURATION))
            if first.check_values.get(each) != other.check_values.get(each):
                findings.append(Finding("key", each, f"{both}: the keys differ", _KEY))
            elif not parts and first.canaries[each] != other.canaries[each]:
                findings.append(Finding("canary", each, f"{both}: equal values have other tokens", _CANARY))
    for region, there in zip(names, described, strict=True):
        for relation in there.absent:
            findings.append(
                Finding("missing-table", relation, f"{region} is configured for it, and lacks it", _MISSING)
            )
        for table, shape in there.tables.items():
            for column in shape.missing:
                findings.append(Finding("columns", f"{table}.{column}", f"{region} has no such column", _COLUMNS))
    return findings


_CONFIGURATION: Final = "Give both regions the same [[transformations]] and key versions: tokens depend on all of it."
_KEY: Final = "One region has another key, or a stale one: bring the right one there, and tokenize anew what it wrote."
_CANARY: Final = "Keys of a Vault differ, or its tweak source is not supplied: compare the transformations there."
_MISSING: Final = "Restore the table there, or correct [[columns]]."
_COLUMNS: Final = "Bring schema and [[columns]] of the regions in line; the table was not compared."
_ROWS: Final = "Look at replication since the last drill, and copy these rows from the region that is right."
_WHOLE: Final = "So many rows differ that they are not told one by one: look for another key, configuration or state."
_MOVING: Final = "Writes were under way: drill again when replication has caught up."
_SAMPLE: Final = (
    "What is stored there was not made with this region's key and template: another version, or clear values."
)


async def _all(tasks: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(each) for each in tasks]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [each.result() for each in running]


def _drill_key(directory: Path) -> str:
    """The key of the run that is taken up, or a new one."""
    path = directory / KEY_FILE
    if path.exists():
        return path.read_text(encoding="ascii")
    key = os.urandom(KEY_BYTES).hex()
    write_private(path, key.encode())
    return key


def _signing_key(path: Path | None, configured: Sequence[str]) -> Ed25519PrivateKey:
    """That of the first region whose configuration is here, or the one given.  Raises ValueError and `ConfigError`."""
    if path is None and not configured:
        raise ValueError("no region's configuration is here: name the key that signs the report with --signing-key")
    if path is None:
        return keys.signing_key(load(Path(configured[0].partition("=")[2])))
    return keys.read_signing_key("--signing-key", path)


def commands(configured: Sequence[str], remote: Sequence[str], directory: Path) -> dict[str, list[str]]:
    """The command of each region, from ``NAME=FILE`` and ``NAME=COMMAND``.  Raises ValueError."""
    found: dict[str, list[str]] = {}
    for text, far in [*((each, False) for each in configured), *((each, True) for each in remote)]:
        name, given, rest = text.partition("=")
        if not given or not name.replace("-", "").replace("_", "").isalnum() or not rest:
            raise ValueError(f"{text} is not NAME={'COMMAND' if far else 'FILE'}")
        if name in found:
            raise ValueError(f"the region {name} is named twice")
        here = [sys.executable, "-m", "grille", "drill", "region", "--config", rest]
        found[name] = shlex.split(rest) if far else [*here, "--state", str(directory / f"region-{name}")]
    if len(found) < 2:
        raise ValueError("a drill takes two regions or more")
    return found


def run(chosen: Any, out: TextIO, err: TextIO) -> int:
    """``grille drill run``; the exit status.  The last line tells the verdict."""
    directory: Path = chosen.report
    try:
        regions = commands(chosen.region, chosen.remote, directory)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        begun = (directory / KEY_FILE).exists()
        if chosen.resume and not begun:
            raise ValueError(f"{directory} has no drill that could be taken up")
        if not chosen.resume and any(directory.iterdir()):
            raise ValueError(f"{directory} is not empty{'; --resume takes up its drill' if begun else ''}")
        key = _signing_key(chosen.signing_key, chosen.region)
    except (ValueError, OSError, ConfigError) as error:
        print(f"grille: {error}", file=err)
        return 2
    try:
        report = asyncio.run(Drill(regions, directory, chosen.sample, err, tables=chosen.table).run())
    except RegionError as error:
        print(f"grille: {error}", file=err)
        return 2
    drill_report.write(report, directory, key)
    (directory / KEY_FILE).unlink()
    for finding in report.findings:
        print(f"{finding.kind}: {finding.subject}: {finding.what}", file=out)
        print(f"    {finding.fix}", file=out)
    print(f"report: {directory / drill_report.PAGE}", file=out)
    print(report.line, file=out)
    return 1 if report.findings else 0
