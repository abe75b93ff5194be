"""Outcomes by test name, what differs through Grille, and the files that say why it may."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["passed", "failed", "skipped"]
Results: TypeAlias = dict[str, Outcome]

DIVERGENCES: Final = Path(__file__).parent / "divergences"
REASONS: Final = {
    "passwords": "a password, SCRAM, GSS or channel binding is demanded or shown; agents show certificates",
    "replication": "a replication connection",
    "standby": "a second server that follows the first",
    "superuser-files": "COPY, large objects or functions that touch files of the server's host",
    "tls-wording": "the client's own words for a lost connection differ under TLS",
    "tls-client": "the client itself behaves otherwise under TLS: a relay that only ends TLS shows the same",
    "direct-connection": "the test opens a connection of its own, without TLS or past the proxy",
    "identity-decides": "database and role come from the certificate, not from the client",
    "proxy-answers": "Grille answers itself, by the protocol's rules, otherwise than this version of the server",
    "limit": "larger or longer than a configured limit",
    "intermittent": "fails now and then, directly as well or without a fault of the proxy that is known",
    "rewritten-text": "the server shows the statement that it was sent, which is not the client's own text",
    "denied-by-design": "refused with a documented reason of docs/reference/errors.md",
    "defect": "a fault of Grille that is known and not repaired yet",
}


class Divergence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One test that ends otherwise through Grille, and why."""

    test: str
    reason: str
    why: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    divergence: tuple[Divergence, ...] = ()


class Comparison(msgspec.Struct, frozen=True):
    """What differs: listed in the suite's file, or not explained."""

    listed: tuple[str, ...]
    unexplained: tuple[str, ...]
    """One line for each: the test and what is wrong."""


def divergences(suite: str, policy: str, directory: Path = DIVERGENCES) -> dict[str, Divergence]:
    """The file of one suite and policy, by test; empty if there is none.

    A governed run goes over the same wire, so what is listed for passthrough is listed for it
    too.  Raises ValueError for a file that is not of this form, an unknown reason, a missing
    explanation, a test listed twice.
    """
    path = directory / f"{suite}.{policy}.toml"
    found: dict[str, Divergence] = divergences(suite, "passthrough", directory) if policy == "governed" else {}
    if not path.exists():
        return found
    try:
        entries = msgspec.convert(tomllib.loads(path.read_text()), _File).divergence
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{path.name}: {error}") from None
    for entry in entries:
        if entry.reason not in REASONS:
            raise ValueError(f"{path.name}: {entry.test}: unknown reason {entry.reason!r}")
        if not entry.why.strip() or "\n" in entry.why:
            raise ValueError(f"{path.name}: {entry.test}: needs one line that explains it")
        if entry.test in found:
            raise ValueError(f"{path.name}: {entry.test} is listed twice")
        found[entry.test] = entry
    return found


def compare(direct: Results, through: Results, listed: Mapping[str, Divergence]) -> Comparison:
    """A test diverges unless it passes through Grille or ends there as it does directly.

    What is listed must diverge, except where the reason is ``intermittent``; a listed test
    that neither run has is stale.
    """
    explained, unexplained = [], []
    for test in sorted(direct.keys() | through.keys() | listed.keys()):
        before, after = direct.get(test, "absent"), through.get(test, "absent")
        diverges = after not in ("passed", before)
        entry = listed.get(test)
        if diverges and entry is not None:
            explained.append(test)
        elif diverges:
            unexplained.append(f"{test}: {before} directly, {after} through the proxy")
        elif entry is not None and (entry.reason != "intermittent" or before == after == "absent"):
            unexplained.append(f"{test}: listed as {entry.reason}, but {after} like directly ({before})")
    return Comparison(tuple(explained), tuple(unexplained))


def count(results: Results) -> str:
    """``P/T``: passed, and all that ran (skipped ones did not)."""
    outcomes = Counter(results.values())
    return f"{outcomes['passed']}/{outcomes['passed'] + outcomes['failed']}"
