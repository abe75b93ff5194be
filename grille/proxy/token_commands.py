"""The ``grille tokens`` commands: what they read, run and print."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TextIO

import msgspec

from grille.tokenization.ff1 import FF1

FAILED = 1
USAGE = 2
_SMALL, _LARGE = 8, 40
"""Batches that take the ways of `FF1` other than that for one value; the large one where a half is below 2**32."""
_TOLD_EVERY = 1.0
"""Seconds between two lines of progress."""


class Case(msgspec.Struct, frozen=True):
    """One published case, a line of JSON."""

    radix: int
    id: int
    key: str
    """In hexadecimal, like ``tweak``."""
    tweak: str
    msg: list[int]
    """Numerals, like ``ct``."""
    ct: list[int]
    result: Literal["valid", "invalid", "acceptable"]
    """invalid: to be refused; acceptable: refused or right."""
    flags: list[str] = []
    comment: str = ""


class Unusable(Exception):
    """A file that cannot be used; the message is for the user."""


class _Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The line before the cases that says where they are from."""

    source: str
    fields: str = ""


def run(chosen: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    """``vectors``; the exit status."""
    try:
        return vectors(chosen.file, out, err)
    except Unusable as error:
        print(f"grille: {error}", file=err)
        return USAGE


def vectors(path: Path, out: TextIO, err: TextIO) -> int:
    """Check FF1 against every case of a file; the exit status.  Raises `Unusable`, also for a file without a case."""
    ok = wrong = 0
    told = time.monotonic()
    for number, case in _cases(path):
        what = fault(case)
        if what:
            wrong += 1
            words = _on_one_line(", ".join([*case.flags, *filter(None, [case.comment])]))
            print(f"line {number}: radix {case.radix} id {case.id}{f' ({words})' if words else ''}: {what}", file=out)
        else:
            ok += 1
        if err.isatty() and time.monotonic() - told > _TOLD_EVERY:
            told = time.monotonic()
            print(f"\r{ok + wrong} cases", end="", file=err, flush=True)
    if err.isatty():
        print("\r", end="", file=err)
    if not ok + wrong:
        raise Unusable(f"{path}: has no case, so nothing was checked")
    print(f"vectors ok={ok} wrong={wrong}", file=out)
    return FAILED if wrong else 0


def fault(case: Case) -> str:
    """What FF1 does not do as the case demands, in both directions and in batches; empty if it does."""
    try:
        key, tweak = bytes.fromhex(case.key), bytes.fromhex(case.tweak)
        ff1 = FF1(key, case.radix)
        found = ff1.encrypt(case.msg, tweak)
    except ValueError as error:
        return f"is refused: {error}" if case.result == "valid" else ""
    if case.result == "invalid":
        return "is not refused"
    if found != case.ct:
        return "encrypts to something else"
    if ff1.decrypt(case.ct, tweak) != case.msg:
        return "does not decrypt"
    plain, cipher = ff1.halves(case.msg), ff1.halves(case.ct)
    fits = case.radix ** ((len(case.msg) + 1) // 2) <= 1 << 32
    for size in (_SMALL, _LARGE) if fits else (_SMALL,):
        if ff1.encrypt_halves(len(case.msg), [plain] * size, tweak) != [cipher] * size:
            return f"encrypts to something else in a batch of {size}"
        if ff1.decrypt_halves(len(case.ct), [cipher] * size, tweak) != [plain] * size:
            return f"does not decrypt in a batch of {size}"
    return ""


def _cases(path: Path) -> Iterator[tuple[int, Case]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or (number == 1 and _is_source(line)):
                    continue
                try:
                    case = msgspec.json.decode(line, type=Case)
                    bytes.fromhex(case.key), bytes.fromhex(case.tweak)
                except RecursionError:
                    raise Unusable(f"{path}, line {number}: is nested too deeply") from None
                except (ValueError, msgspec.DecodeError) as error:  # no key or tweak is repeated
                    raise Unusable(f"{path}, line {number}: {_on_one_line(str(error))}") from None
                yield number, case
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None


def _is_source(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=_Source)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _on_one_line(text: str) -> str:
    """Escapes what a terminal obeys or a reader does not see, so that a file can forge no line of the output."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
