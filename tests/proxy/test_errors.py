from __future__ import annotations

from pathlib import Path

import pytest

from grille.controls import CONTROLS, Refusal
from grille.proxy.errors import TEMPLATES, audit_text, missing_setting, refusal_fields, scrubbed_fields, sqlstate

ROOT = Path(__file__).parents[2]


def nobody(schema: str, relation: str, column: str) -> bool:
    return False


def everybody(schema: str, relation: str, column: str) -> bool:
    return True


SERVER = {
    "S": "FEHLER",
    "V": "ERROR",
    "C": "23505",
    "M": 'duplicate key value violates unique constraint "customers_ssn_key"',
    "D": "Key (ssn)=(123-45-6789) already exists.",
    "H": "hidden hint",
    "W": "SQL function hidden",
    "q": "SELECT hidden",
    "P": "17",
    "p": "3",
    "s": "public",
    "t": "customers",
    "c": "ssn",
    "d": "hidden_type",
    "n": "customers_ssn_key",
    "F": "nbtinsert.c",
    "L": "666",
    "R": "_bt_check_unique",
}


def test_a_server_error_keeps_its_sqlstate_and_no_word_of_its_own() -> None:
    fields = scrubbed_fields(SERVER, nobody)
    assert fields == {"S": "ERROR", "V": "ERROR", "C": "23505", "M": TEMPLATES["23505"]}


def test_names_of_permitted_objects_survive() -> None:
    fields = scrubbed_fields(SERVER, everybody)
    assert fields["n"] == "customers_ssn_key"
    assert (fields["s"], fields["t"], fields["c"]) == ("public", "customers", "ssn")
    assert not set(fields) & set("DHWqPpdFLR")
    assert "123-45-6789" not in repr(fields)


def test_the_column_of_a_null_violation_is_named_only_where_permitted() -> None:
    server = {"V": "ERROR", "C": "23502", "M": "x", "D": "Failing row contains (secret)", "s": "a", "t": "b", "c": "k"}
    assert '"k"' in scrubbed_fields(server, everybody)["M"]
    assert "k" not in {
        v for k, v in scrubbed_fields(server, lambda s, t, c: not c).items() if k not in ("S", "V", "C", "M")
    }


def test_unknown_and_odd_sqlstates_get_the_words_of_their_class() -> None:
    assert scrubbed_fields({"C": "22ZZZ", "M": "secret"}, everybody)["M"] == TEMPLATES["22000"]
    assert "secret" not in repr(scrubbed_fields({"C": "ABCDE", "M": "secret"}, everybody))
    assert sqlstate({}) == "XX000"
    assert sqlstate({"C": "42\n01"}) == "XX000"


def test_the_servers_words_go_to_the_audit_text_without_values() -> None:
    told = audit_text(SERVER)
    assert told.startswith(
        'M=duplicate key value violates unique constraint "customers_ssn_key"; s=public; t=customers; '
    )
    assert "123-45-6789" not in told


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('invalid input syntax for type integer: "secret"', 'invalid input syntax for type integer: "?"'),
        ('invalid input syntax for type integer: "a" secret "b"', 'invalid input syntax for type integer: "?"'),
        ('value "987654321" is out of range for type int4', 'value "?" is out of range for type int4'),
        ("invalid value 987-65 of 12.5e7", "invalid value ? of ?"),
        ('unterminated quoted string at or near "\'secret"', 'unterminated quoted string at or near "?"'),
        ("ung\xfcltiger Wert \xbbsecret\xab", 'ung\xfcltiger Wert "?"'),
        ('odd "secret', 'odd "?"'),
        ('null value in column "ssn" of relation "t1"', 'null value in column "ssn" of relation "t1"'),
        ('"ssn" is "secret" and "t1"', '"ssn" is "?" and "t1"'),
        ('value too long for type character varying(5)', 'value too long for type character varying(?)'),
        ("division by zero", "division by zero"),
    ],
)  # fmt: skip
def test_a_message_is_recorded_without_values(message: str, told: str) -> None:
    fields = {
        "C": "22P02",
        "M": message,
        "t": "t1",
        "c": "ssn",
        "D": "secret",
        "H": "secret",
        "W": "secret",
        "q": "secret",
    }
    assert audit_text(fields) == f"M={told}; t=t1; c=ssn"


def test_what_a_function_says_is_not_recorded() -> None:
    for more in (
        {"C": "P0001"},
        {"C": "22023", "R": "exec_stmt_raise"},
        {"C": "P0004", "R": "exec_stmt_assert"},
        {"C": "XX000", "R": "plperl_call_perl_func"},
        {"C": "38000"},
    ):
        assert "secret" not in audit_text({"M": "customer secret", **more})


def test_a_refusal_says_what_which_control_and_what_to_do() -> None:
    refusal = Refusal("AC-03", 'you may not read "customer_export"')
    refusal.decision_id = "d1"
    fields = refusal_fields(refusal)
    assert fields["M"] == 'you may not read "customer_export" [control AC-03, decision d1]'
    assert fields["C"] == "42501"
    assert fields["S"] == "ERROR"
    assert "decision id" in fields["H"]
    assert refusal_fields(Refusal("WP-02", "x", sqlstate="0A000", fatal=True, hint="y", position=3)) == {
        "S": "FATAL",
        "V": "FATAL",
        "C": "0A000",
        "M": "x [control WP-02]",
        "H": "y",
        "P": "3",
    }


def test_the_raising_settings_are_recognised_in_any_language() -> None:
    assert missing_setting({"C": "42704", "M": "unbekannter »grille_row_check«"}) == "grille_row_check"
    assert missing_setting({"C": "42704", "M": '"grille_catalogue_changed"'}) == "grille_catalogue_changed"
    assert missing_setting({"C": "42704", "M": "type x"}) is None
    assert missing_setting({"C": "22012", "M": "grille_row_check"}) is None


def test_every_sqlstate_and_control_has_an_anchor_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference" / "errors.md").read_text()
    missing = [name for name in (*TEMPLATES, *CONTROLS) if f'<a id="{name.lower()}"></a>' not in reference]
    assert missing == []
