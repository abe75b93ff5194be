"""What a case is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from tests.catalogue.world import World

CONTROL: Final = re.compile(r"[A-Z]{2}-\d\d")
SQLSTATE: Final = re.compile(r"[0-9A-Z]{5}")


class _Word:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


SAME: Final = _Word("SAME")
"""It is answered, the same with the hidden rows and without them; the answer is not spelled out."""
NATIVE: Final = _Word("NATIVE")
"""As SAME, and the answer is that of native row security over masked values."""


@dataclass(frozen=True)
class Either:
    """One of several ends; servers differ."""

    ends: tuple[Any, ...]


def either(*ends: Expected) -> Either:
    """One of several ends; servers differ."""
    return Either(ends)


Expected: TypeAlias = Any
"""A control (``ST-05``: denied by it), a SQLSTATE of the database, a command tag, rows, `SAME` or `NATIVE`."""
Step: TypeAlias = tuple[str, Expected]
"""One text that the agent sends, and how it must end."""
Attack: TypeAlias = Callable[["World"], None]
"""An attack that is more than texts; raises AssertionError if it succeeds."""


@dataclass(frozen=True)
class Script:
    """Texts that the agent sends on one fresh session."""

    steps: tuple[Step, ...]
    tells: bool = False
    """The answer may tell that a hidden row exists, as native row security's does; the values stay hidden."""
    least: int = 0
    """The oldest major version of PostgreSQL that has the syntax."""
    simple_only: bool = False
    """It needs the simple protocol: several statements in one text."""


@dataclass(frozen=True)
class Row:
    """One row of the catalogue."""

    id: str
    title: str
    control: str
    """The control that stands against it, and so its entry in the threat model."""
    attempts: tuple[Script | Attack, ...]
    why: str = ""
    """Where the outcome is not the one that the row was written with: why."""


def row(
    identifier: str, title: str, control: str, *attempts: Step | Sequence[Step] | Script | Attack, why: str = ""
) -> Row:
    """A row; an attempt is one step, a list of steps, a `Script` or an `Attack`."""
    made: list[Script | Attack] = []
    for attempt in attempts:
        if isinstance(attempt, Script) or callable(attempt):
            made.append(attempt)
        elif isinstance(attempt, list):
            made.append(Script(tuple(attempt)))
        else:
            made.append(Script((attempt,)))  # type: ignore[arg-type]
    return Row(identifier, title, control, tuple(made), why)


def tells(*steps: Step) -> Script:
    """A script whose answer may show that a hidden row exists."""
    return Script(steps, tells=True)


def since(least: int, *steps: Step) -> Script:
    """A script for servers of this major version and newer; an older one must refuse it too."""
    return Script(steps, least=least)


def batch(*steps: Step) -> Script:
    """A script for the simple protocol alone."""
    return Script(steps, simple_only=True)
