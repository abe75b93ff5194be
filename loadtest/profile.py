"""Where the microseconds go: Grille alone under load, sampled from outside, function by function."""

from __future__ import annotations

import collections
import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from loadtest.compare import variants
from loadtest.contenders import NotInstalled, build, stage
from loadtest.report import Sample
from loadtest.scenarios import SCENARIOS, Options

RATE = 250
"""Samples a second of each process."""
SHOWN = 60
"""Functions in each list."""

WAITING = ("_worker (concurrent/futures/thread.py)", "_do_waitpid (asyncio/unix_events.py)", "select (selectors.py)")
"""Where a thread waits in C code: py-spy does not always see that it does."""

Stack = tuple[tuple[str, ...], int]
"""Functions from the outermost to the innermost, and how often this was seen."""


def profile(options: Options, console: Console, sampler: str | None = None) -> str:
    """Run a scenario's first case against Grille while a sampler looks on; the report.

    Raises `NotInstalled` without py-spy and without perf, `RunFailed` if Grille cannot run the scenario.
    """
    scenario = SCENARIOS[options.scenario]
    if not scenario.cases:
        raise NotInstalled(f"{options.scenario} has no script to run alone; profile p1 or p2, say")
    program = sampler or shutil.which("py-spy") or shutil.which("perf")
    if program is None:
        raise NotInstalled("neither py-spy (pip install py-spy) nor perf is installed; --sampler names one elsewhere")
    case = scenario.cases[0]
    level = options.level or scenario.level
    choices = variants(scenario, level)
    variant = next((one for one in choices if one.name in options.only), choices[0])
    with stage(
        branches=scenario.branches, pool_size=scenario.pool_size, workers=options.workers, plain=options.plain
    ) as scene:
        grille = scene.grille(variant)
        case.run(scene, grille, 1)
        alone = case.run(scene, grille, options.seconds)
        console.print(f"without a sampler: {_figures(alone)}", highlight=False)
        with _sampling(program, grille.pids(), scene.directory) as recordings:
            watched = case.run(scene, grille, options.seconds)
        stacks = [stack for path in recordings for stack in _read(program, path)]
    return (
        f"{options.scenario}: {case.about}; {variant.name}, level {level}, {build(options.plain)} build, "
        f"{options.workers} worker(s)\nwithout a sampler: {_figures(alone)}\nwith {Path(program).name}: "
        f"{_figures(watched)}\n{text_report(stacks, alone.cpu_us)}"
    )


def _figures(sample: Sample) -> str:
    return f"{sample.tps:.0f} a second, {sample.cpu_us:.1f} us of the proxy's CPU a statement"


@contextlib.contextmanager
def _sampling(program: str, pids: list[int], directory: Path) -> Iterator[list[Path]]:
    """Sample these processes while the body runs; the files are whole when it has ended."""
    if Path(program).name == "perf":
        paths = [directory / "perf.data"]
        command = [program, "record", "-q", "-e", "cpu-clock", "-F", str(RATE), "-g", "-o", str(paths[0]), "-p"]
        commands = [[*command, ",".join(str(pid) for pid in pids)]]
    else:
        paths = [directory / f"stacks.{pid}" for pid in pids]
        command = [program, "record", "--rate", str(RATE), "--format", "raw", "--duration", "unlimited"]
        commands = [
            [*command, "--pid", str(pid), "--output", str(path)] for pid, path in zip(pids, paths, strict=True)
        ]  # fmt: skip
    running = [
        subprocess.Popen(each, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for each in commands
    ]
    try:
        yield paths
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        failures = [process.communicate()[1].decode(errors="replace") for process in running]
    if not any(path.exists() for path in paths):
        raise NotInstalled(f"{program} recorded nothing: {' '.join(' '.join(failures).split())[-500:]}")


def _read(program: str, path: Path) -> list[Stack]:
    """The stacks of one recording; a process that did nothing has none."""
    if not path.exists():
        return []
    if Path(program).name != "perf":
        return folded(path.read_text(errors="replace").splitlines())
    result = subprocess.run(
        [program, "script", "-i", str(path), "-F", "comm,ip,sym"], capture_output=True, check=True
    )  # fmt: skip
    return scripted(result.stdout.decode(errors="replace"))


def folded(lines: Iterable[str]) -> list[Stack]:
    """py-spy's raw format, ``outer;inner COUNT`` a line, without threads that wait.  Other lines are left out."""
    found = []
    for text in lines:
        names, _, count = text.strip().rpartition(" ")
        if names and count.isdecimal() and not re.sub(r":\d+\)$", ")", names).endswith(WAITING):
            found.append((tuple(re.sub(r":\d+\)$", ")", name) for name in names.split(";")), int(count)))
    return found


def scripted(text: str) -> list[Stack]:
    """``perf script -F comm,ip,sym``: samples parted by an empty line, the innermost function first."""
    found = []
    for block in text.split("\n\n"):
        names = [" ".join(line.split()[1:]) for line in block.splitlines()[1:] if line.strip()]
        if names:
            found.append((tuple(reversed(names)), 1))
    return found


def text_report(stacks: Iterable[Stack], cpu_us: float) -> str:
    """Functions by their own samples, then by samples in them and in what they call, as shares and microseconds."""
    own: collections.Counter[str] = collections.Counter()
    within: collections.Counter[str] = collections.Counter()
    for names, count in stacks:
        own[names[-1]] += count
        within.update(dict.fromkeys(names, count))
    total = own.total()
    if not total:
        return "no samples\n"
    parts = [f"{total} samples\n"]
    for title, counter in (("by itself", own), ("with what it calls", within)):
        parts.append(f"\n{title}\n share  us a statement  function\n")
        parts += [
            f"{count / total:6.1%}  {count / total * cpu_us:14.2f}  {name}\n"
            for name, count in counter.most_common(SHOWN)
        ]
    return "".join(parts)
