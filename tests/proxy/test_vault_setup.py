"""``grille tokens setup`` against a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grille.proxy.authority import write_private
from grille.proxy.cli import main
from grille.tokenization.vault import VaultTransformation
from tests.vault.server import Vault
from tests.vault.setting import ROLE, approle, config_file, transformation

Run = Callable[..., tuple[int, list[str], str]]
IBAN = (r"([A-Z]{8})-\d{2}", "upper")


@pytest.fixture
def vault() -> Iterator[Vault]:
    with Vault() as made:
        made.mount()
        yield made


@pytest.fixture
def run(vault: Vault, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    settings = approle(vault, tmp_path)
    write_private(tmp_path / "admin", vault.root.encode())

    def run(*options: str, made: tuple[VaultTransformation, ...] = (transformation(), transformation("iban", IBAN)),
            token: bool = True) -> tuple[int, list[str], str]:  # fmt: skip
        config = config_file(tmp_path, settings, *made)
        given = ["--token-file", str(tmp_path / "admin")] if token else []
        status = main(["tokens", "setup", "--config", str(config), *given, *options])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return run


def test_what_is_missing_is_shown_and_nothing_is_made(vault: Vault, run: Run) -> None:
    status, lines, err = run()
    assert (status, err) == (1, "")
    assert lines == [
        "+ alphabet grille-digits: 0123456789",
        "+ alphabet grille-upper: ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        r"+ template grille-ssn: (\d{3})-(\d{2})-(\d{4}) over grille-digits",
        r"+ template grille-iban: ([A-Z]{8})-\d{2} over grille-upper",
        "+ transformation ssn: fpe, template grille-ssn, tweak supplied, for the role grille",
        "+ transformation iban: fpe, template grille-iban, tweak supplied, for the role grille",
        "+ role grille: ssn, iban",
        "setup differences=7 applied=0",
    ]
    engine = vault.engine()
    assert not engine.alphabets
    assert not engine.transformations


def test_what_is_missing_is_made_and_then_there_is_no_difference(vault: Vault, run: Run) -> None:
    status, lines, _ = run("--apply")
    assert status == 0
    assert lines[-1] == "setup differences=0 applied=7"
    checks = [line.partition("give it check = ")[2].strip('"') for line in lines if "give it check" in line]
    assert len(checks) == 2
    made = (transformation(check=checks[0]), transformation("iban", IBAN, check=checks[1]))
    assert run(made=made) == (0, ["setup differences=0 applied=0"], "")
    assert vault.engine().transformations["ssn"]["tweak_source"] == "supplied"


def test_another_version_is_added_and_what_else_is_there_stays(vault: Vault, run: Run) -> None:
    run("--apply")
    engine = vault.engine()
    engine.roles[ROLE]["transformations"].append("somebody-elses")
    engine.transformations["iban"]["allowed_roles"] = ["other"]
    made = (transformation(version=2), transformation("iban", IBAN))
    status, lines, _ = run("--apply", made=made)
    assert status == 0
    assert "~ transformation iban: allowed_roles other, and grille" in lines
    assert "~ role grille: ssn, iban, somebody-elses, ssn-v2" in lines
    assert engine.roles[ROLE]["transformations"] == ["ssn", "iban", "somebody-elses", "ssn-v2"]
    assert engine.keys["ssn"] != engine.keys["ssn-v2"]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda engine: engine.alphabets["grille-digits"].update(alphabet="9876543210"), "! alphabet grille-digits is"),
        (lambda engine: engine.templates["grille-ssn"].update(pattern=r"(\d{9})"), "! template grille-ssn: pattern is"),
        (lambda engine: engine.templates["grille-ssn"].update(encode_format="$1"), "! template grille-ssn: encode_for"),
        (lambda engine: engine.transformations["ssn"].update(tweak_source="internal"), "! transformation ssn: tweak_s"),
        (
            lambda engine: engine.transformations["ssn"].update(type="masking", masking_character="*"),
            "! transformation ssn: t",
        ),
        (lambda engine: engine.transformations["ssn"].update(templates=["other"]), "! transformation ssn: template is"),
        (lambda engine: engine.transformations["ssn"].update(fpe_algorithm="ff3-1"), "! transformation ssn: its algor"),
        (
            lambda engine: engine.transformations["ssn"].pop("fpe_algorithm"),
            "! transformation ssn: its algorithm is FF3",
        ),
    ],
)
def test_what_stored_tokens_depend_on_is_told_and_not_changed(
    vault: Vault, run: Run, break_it: Callable[[object], object], words: str
) -> None:
    run("--apply")
    break_it(vault.engine())
    before = repr(vault.engine())
    status, lines, _ = run("--apply")
    assert status == 1
    assert any(line.startswith(words) for line in lines), lines
    assert lines[-1].startswith("setup differences=")
    assert repr(vault.engine()) == before


def test_another_key_than_that_of_the_check_is_a_difference(vault: Vault, run: Run) -> None:
    _, lines, _ = run("--apply")
    check = next(line for line in lines if line.startswith("transformation ssn: give it")).split('"')[1]
    made = (transformation(check=check),)
    assert run(made=made)[0] == 0
    vault.rekey("ssn")
    status, lines, _ = run(made=made)
    assert status == 1
    assert lines == ["! transformation ssn: its key is not that of its check", "setup differences=1 applied=0"]


def test_a_vault_that_cannot_be_used(vault: Vault, run: Run, tmp_path: Path) -> None:
    status, lines, err = run(token=False)  # the proxy's own login may encode and decode only
    assert (status, lines) == (2, [])
    assert "does not let this token administer" in err
    vault.faults.sealed = True
    assert run() == (2, [], "grille: Vault refuses (VaultDown)\n")
    vault.faults.sealed = False
    vault.down()
    status, _, err = run()
    assert status == 2
    assert err.startswith("grille: Vault does not answer (")
    (tmp_path / "admin").chmod(0o644)
    status, _, err = run()
    assert status == 2
    assert "chmod 600" in err
    assert vault.root not in err.replace(str(tmp_path), "")


def test_without_a_transformation_in_vault_there_is_nothing_to_set_up(run: Run) -> None:
    status, _, err = run(made=())
    assert status == 2
    assert "no transformation" in err
