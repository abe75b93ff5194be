"""FF1 by itself: values of 16 digits in batches of 1,000 and alone, beside the ``ff3`` package and a plain loop.

Everybody turns the same texts into texts under AES-256 and a tweak of 7 bytes, and the contenders alternate within each
round, in a process of their own that is started in the build to be measured.  ``ff3`` is FF3-1, a related mode of eight
rounds in place of ten: there is no other FF1 on the package index.  The loop is FF1 as the standard writes it down.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from rich.console import Console
from rich.table import Table

from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.provider import TokenRequest
from grille.tokenization.transformation import FPE, Key, Template, Transformation, tweak
from loadtest import report
from loadtest.contenders import NotInstalled, build, grille_environment
from loadtest.report import Sample, Spread, percentile
from loadtest.scenarios import Options, RunFailed

BATCH = 1_000
DIGITS = 16
PATTERN = rf"(\d{{{DIGITS}}})"
DOMAIN = "card"
BATCHES = f"batches of {BATCH:,}"
ALONE = "alone"
DECIMALS = 3

Runs = dict[str, list[Sample]]


class Differ(Exception):
    """Two ways to the same tokens give others: there is nothing to compare."""


def compare(options: Options, console: Console) -> dict[str, Any]:
    """Run the scenario; the report, whose ``line`` is the contract's last line.

    Raises `NotInstalled` without the ``ff3`` package, `RunFailed` if the process that measures fails.
    """
    if importlib.util.find_spec("ff3") is None:
        raise NotInstalled("the ff3 package is not installed; it is in requirements-dev.lock")
    settings = {"rounds": options.rounds, "seconds": options.seconds}
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.ff1"], input=json.dumps(settings), env=grille_environment(options.plain),
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RunFailed("the values could not be encoded; the reason is above")
    told = json.loads(done.stdout)
    cases = {
        about: {who: [Sample(**sample) for sample in samples] for who, samples in runs.items()}
        for about, runs in told.items()
    }
    for about, runs in cases.items():
        console.print(table(about, runs))
    made = build(options.plain)
    return {
        "scenario": "ff1", "build": made, "unit": "values", "rounds": options.rounds, "seconds": options.seconds,
        "machine": {
            "cores": os.cpu_count(), "architecture": platform.machine(), "kernel": platform.release(),
            "python": platform.python_version(), "numpy": np.__version__,
        },
        "cases": {
            about: {
                "runs": {who: [dataclasses.asdict(sample) for sample in samples] for who, samples in runs.items()},
                "us": {who: dataclasses.asdict(_us(samples)) for who, samples in runs.items()},
            }
            for about, runs in cases.items()
        },
        "measured": True,
        "plot": report.plot(f"ff1: values a second, {made} build", cases),
        "line": line(cases, made),
    }  # fmt: skip


def line(cases: Mapping[str, Mapping[str, Sequence[Sample]]], made: str) -> str:
    """The contract's last line: microseconds a value that is encoded, and how many of ours the package's takes."""
    batches, alone = cases[BATCHES], cases[ALONE]
    return (
        f"ff1 us_batch={_us(batches['grille']).median:.{DECIMALS}f} us_single={_us(alone['grille']).median:.2f} "
        f"ratio_ff3={report.ratio(batches['grille'], batches['ff3']).median:.0f} build={made}"
    )


def table(about: str, runs: Mapping[str, Sequence[Sample]]) -> Table:
    """Microseconds a value: median over rounds (lowest..highest), and the ratio to ``grille`` in the same round."""
    made = Table(title=f"ff1: {DIGITS} digits, {about}", title_justify="left")
    made.add_column("contender", no_wrap=True)
    for heading in ("us a value", "CPU us a value", "to grille"):
        made.add_column(heading, justify="right")
    for who, samples in runs.items():
        made.add_row(
            who,
            _us(samples).text(DECIMALS),
            Spread.of([sample.cpu_us for sample in samples]).text(DECIMALS),
            report.ratio(runs["grille"], samples).text(2),
        )
    return made


def _us(samples: Sequence[Sample]) -> Spread:
    return Spread.of([sample.p50_us for sample in samples])


# In the process that measures


def loop(key: bytes, radix: int, tweak: bytes, numerals: Sequence[int]) -> list[int]:
    """Encryption with FF1 as algorithm 7 of SP 800-38G r1 has it, for tweaks and strings of one block each."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update
    n, t = len(numerals), len(tweak)
    u = n // 2
    v = n - u
    a, b = list(numerals[:u]), list(numerals[u:])
    width = ((radix**v - 1).bit_length() + 7) // 8
    d = 4 * ((width + 3) // 4) + 4
    p = bytes((1, 2, 1)) + radix.to_bytes(3, "big") + bytes((10, u % 256)) + n.to_bytes(4, "big") + t.to_bytes(4, "big")
    for i in range(10):
        m = u if i % 2 == 0 else v
        q = tweak + bytes((-t - width - 1) % 16) + bytes((i,)) + _number(b, radix).to_bytes(width, "big")
        r = bytes(16)
        for start in range(0, len(p + q), 16):
            r = aes(bytes(x ^ y for x, y in zip(r, (p + q)[start : start + 16], strict=True)))
        c = (_number(a, radix) + int.from_bytes(r[:d], "big")) % radix**m
        a, b = b, []
        for _ in range(m):
            c, numeral = divmod(c, radix)
            b.insert(0, numeral)
    return a + b


def _number(numerals: Sequence[int], radix: int) -> int:
    number = 0
    for numeral in numerals:
        number = number * radix + numeral
    return number


Step = tuple[int, Callable[[int], object]]
"""Values that one call takes, and the call."""


def steps() -> dict[str, dict[str, Step]]:
    """By case and contender.  Raises `Differ` if FF1's ways do not agree or a value does not come back."""
    from ff3 import FF3Cipher

    draw = random.Random(20_261_127)
    values = [f"{draw.randrange(10**DIGITS):0{DIGITS}d}" for _ in range(BATCH)]
    key = draw.randbytes(32)
    fpe = FPE(Key("card", 1, key), DOMAIN, Template(PATTERN, "digits"))
    tokens = [str(token) for token in fpe.encode(values)]
    plain = tweak(DOMAIN, 1)
    provider = EmbeddedProvider(
        [Transformation("card", "fpe", DOMAIN, "card", "digits", PATTERN)], [Key("card", 1, key)]
    )
    requests = [TokenRequest("card", value) for value in values]
    other = FF3Cipher(key.hex(), plain.hex())

    def looped(value: str) -> str:
        return "".join(map(str, loop(key, 10, plain, [int(digit) for digit in value])))

    if [looped(value) for value in values] != tokens or [fpe.encode([value])[0] for value in values] != tokens:
        raise Differ("a batch, a value alone and the standard's text do not give the same tokens")
    if fpe.decode(tokens) != values or [fpe.decode([token])[0] for token in tokens] != values:
        raise Differ("a token does not decode to its value")
    if other.decrypt(other.encrypt(values[0])) != values[0]:
        raise Differ("the ff3 package does not decrypt what it encrypted")
    few, many = 20, 200
    return {
        BATCHES: {
            "grille": (BATCH, lambda n: fpe.encode(values)),
            "grille, decode": (BATCH, lambda n: fpe.decode(tokens)),
            "grille, provider": (BATCH, lambda n: _run(provider.encode(requests))),
            "grille, one by one": (BATCH, lambda n: [fpe.encode([value]) for value in values]),
            "ff3": (few, lambda n: [other.encrypt(value) for value in _some(values, n, few)]),
            "loop": (few, lambda n: [looped(value) for value in _some(values, n, few)]),
        },
        ALONE: {
            "grille": (many, lambda n: [fpe.encode([value]) for value in _some(values, n, many)]),
            "grille, decode": (many, lambda n: [fpe.decode([token]) for token in _some(tokens, n, many)]),
            "grille, provider": (
                many, lambda n: [_run(provider.encode([request])) for request in _some(requests, n, many)]
            ),
            "ff3": (few, lambda n: [other.encrypt(value) for value in _some(values, n, few)]),
            "loop": (few, lambda n: [looped(value) for value in _some(values, n, few)]),
        },
    }  # fmt: skip


def _some(values: Sequence[Any], n: int, count: int) -> Sequence[Any]:
    start = n * count % len(values)
    return values[start : start + count]


def _run(answer: Any) -> Any:
    """What a coroutine that waits for nothing returns."""
    try:
        answer.send(None)
    except StopIteration as stop:
        return stop.value
    raise RunFailed("the embedded provider waits")


def measure(settings: Mapping[str, Any]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Samples by case and contender.  A sample's latencies are of one value, means over a call."""
    cases = steps()
    told: dict[str, dict[str, list[dict[str, float]]]] = {
        about: {who: [] for who in contenders} for about, contenders in cases.items()
    }
    order = [(about, who) for about, contenders in cases.items() for who in contenders]
    share = settings["seconds"] / len(order)
    for number in range(settings["rounds"]):
        for about, who in order if number % 2 == 0 else order[::-1]:
            count, call = cases[about][who]
            call(0)
            gc.collect()
            took: list[float] = []
            began, cpu = time.perf_counter(), time.process_time()
            while not took or time.perf_counter() - began < share:
                start = time.perf_counter_ns()
                call(len(took))
                took.append((time.perf_counter_ns() - start) / 1000 / count)
            used = time.process_time() - cpu
            ordered = sorted(took)
            told[about][who].append(
                {
                    "tps": 1e6 / statistics.median(ordered), "p50_us": percentile(ordered, 0.5),
                    "p95_us": percentile(ordered, 0.95), "p99_us": percentile(ordered, 0.99),
                    "cpu_us": used / len(took) / count * 1e6, "server_cpu_us": 0.0,
                    "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
            )  # fmt: skip
        sys.stderr.write(f"round {number + 1}/{settings['rounds']}\n")
    return told


if __name__ == "__main__":
    json.dump(measure(json.load(sys.stdin)), sys.stdout)
