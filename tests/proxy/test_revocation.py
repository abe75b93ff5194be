"""The file of who may not connect any more."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from grille.proxy.config import Identity
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.proxy.revocation import RevocationError, Revocations

HASH = "ab" * 32


def agent(path: str, cert_sha256: str = HASH) -> Agent:
    name = f"spiffe://bank.example/{path}"
    registry = Registry([Identity(spiffe_id=name, database="bank")])
    return registry.agent(parse_spiffe_id(name), cert_sha256=cert_sha256, not_after=dt.datetime.now(dt.UTC))


def listed(tmp_path: Path, text: str) -> Revocations:
    path = tmp_path / "revocations"
    path.write_text(text)
    return Revocations(path)


@pytest.mark.parametrize(
    ("entry", "path", "revoked"),
    [
        ("spiffe://bank.example/ns/fraud/sa/scorer", "ns/fraud/sa/scorer", True),
        ("spiffe://bank.example/ns/fraud/sa/scorer", "ns/fraud/sa/scorer2", False),
        ("spiffe://bank.example/ns/fraud/sa/scorer", "ns/fraud/sa", False),
        ("spiffe://bank.example/ns/fraud/*", "ns/fraud/sa/scorer", True),
        ("spiffe://bank.example/ns/fraud/*", "ns/fraud", False),
        ("spiffe://bank.example/ns/fraud/*", "ns/fraudulent/sa", False),
        ("spiffe://bank.example/*", "ns/fraud/sa/scorer", True),
        ("spiffe://other.example/*", "ns/fraud/sa/scorer", False),
        (f"sha256:{HASH}", "ns/fraud/sa/scorer", True),
        (f"sha256:{'ac' * 32}", "ns/fraud/sa/scorer", False),
        (f"  sha256:{HASH}  # stolen on Monday", "ns/fraud/sa/scorer", True),
        ("# spiffe://bank.example/*", "ns/fraud/sa/scorer", False),
        ("", "ns/fraud/sa/scorer", False),
    ],
)
def test_who_is_revoked(tmp_path: Path, entry: str, path: str, revoked: bool) -> None:
    assert listed(tmp_path, f"# list\n\n{entry}\n").revoked(agent(path)) is revoked


def test_without_a_file_nobody_is_revoked() -> None:
    none = Revocations(None)
    assert not none.poll()
    assert not none.revoked(agent("a"))


@pytest.mark.parametrize("line", ["bank.example/a", "sha256:12", f"SHA256:{HASH}", "spiffe://bank.example/a b", "*"])
def test_a_line_that_is_not_understood_is_told_at_the_start(tmp_path: Path, line: str) -> None:
    with pytest.raises(RevocationError, match="line 2 is not understood: write a SPIFFE ID"):
        listed(tmp_path, f"spiffe://bank.example/a\n{line}\n")


def test_a_file_that_is_missing_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RevocationError, match="cannot be read"):
        Revocations(tmp_path / "nothing")


def test_a_new_entry_holds_at_once_and_an_old_one_until_the_file_rests(tmp_path: Path) -> None:
    found = listed(tmp_path, "spiffe://bank.example/a\n")
    path = tmp_path / "revocations"
    path.write_text("spiffe://bank.example/b\n")
    assert found.poll()
    assert found.revoked(agent("a"))
    assert found.revoked(agent("b"))
    assert found.poll()
    assert not found.revoked(agent("a"))
    assert found.revoked(agent("b"))
    assert not found.poll()


def test_a_file_that_cannot_be_used_lets_nobody_in(tmp_path: Path) -> None:
    found = listed(tmp_path, "spiffe://bank.example/a\n")
    path = tmp_path / "revocations"
    path.unlink()
    for _ in range(3):
        found.poll()
        assert "cannot be read" in found.problem
        assert found.revoked(agent("a"))
    path.write_text("nonsense\nspiffe://bank.example/b\n")
    for _ in range(3):
        found.poll()
        assert "line 1" in found.problem
        assert found.revoked(agent("a"))
        assert found.revoked(agent("b"))
    path.write_text("# all may come back\n")
    found.poll()
    assert found.poll()
    assert not found.problem
    assert not found.revoked(agent("a"))
    assert not found.revoked(agent("b"))
