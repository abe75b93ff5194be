"""What PREPARE, EXECUTE, DECLARE, FETCH and the settings functions are read as, and what is not read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from postgast import parse

from grille.controls import Refusal
from grille.protocols.postgres.commands import (
    ALL,
    DeclareCommand,
    ExecuteCommand,
    FetchCommand,
    PrepareCommand,
    SettingsCommand,
    declared,
    prepare,
)
from grille.protocols.postgres.statement import parse_text


def command(text: str) -> Any:
    (found,) = parse_text(text, limit=10_000)
    return found.command


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("PREPARE p AS SELECT 1", "SELECT 1"),
        ("prepare p as select 'as'", "select 'as'"),
        ('PREPARE "as" (int, "as") /* AS SELECT 2 */ AS -- AS\nINSERT INTO t VALUES ($1)', "INSERT INTO t VALUES ($1)"),
        ("PREPARE p AS WITH a AS (SELECT 1) SELECT * FROM a; ", "WITH a AS (SELECT 1) SELECT * FROM a"),
        ("DECLARE c CURSOR FOR SELECT 1 FOR UPDATE;", "SELECT 1 FOR UPDATE"),
        ("DECLARE \"for\" BINARY INSENSITIVE NO SCROLL CURSOR WITHOUT HOLD FOR SELECT 'ä'", "SELECT 'ä'"),
    ],
)
def test_the_statement_inside_is_the_agents_own_text(text: str, inner: str) -> None:
    found = command(text)
    assert found.text.removeprefix("-- AS\n") == inner
    assert text[found.offset : found.offset + len(found.text)] == found.text


def test_the_statement_inside_is_found_behind_others() -> None:
    text = "SELECT 'ä', 'PREPARE x AS'; PREPARE p AS SELECT 'ö'; DECLARE c CURSOR FOR SELECT 'ü'"
    found = [each.command for each in parse_text(text, limit=10_000)]
    assert isinstance(found[1], PrepareCommand)
    assert isinstance(found[2], DeclareCommand)
    for each in found[1:]:
        assert text[each.offset :].startswith(each.text)
    assert [each.text for each in found[1:]] == ["SELECT 'ö'", "SELECT 'ü'"]


@pytest.mark.parametrize("other", ["PREPARE p AS SELECT 2", "PREPARE p AS SELECT 1; SELECT 1", "PREPARE p"])
def test_a_statement_that_reads_otherwise_alone_is_refused(other: str) -> None:
    (raw,) = parse("PREPARE p AS SELECT 1").stmts
    with pytest.raises(Refusal) as refused:
        prepare(raw.stmt.prepare_stmt, raw, other)
    assert refused.value.control == "ST-07"


@given(st.text("as AS()'\"$1,;-/*\n", max_size=30), st.text("for FOR()'\"$1,;-/*\n", max_size=30))
def test_no_text_makes_the_inner_statement_another(name: str, rest: str) -> None:
    """Either the text is refused, or what is governed is what the grammar found inside."""
    for text in (f'PREPARE "{name}" {rest} AS SELECT 1', f'DECLARE "{name}" {rest} CURSOR FOR SELECT 1'):
        try:
            statements = parse_text(text, limit=10_000)
        except Refusal:
            continue
        for each in statements:
            if isinstance(each.command, PrepareCommand | DeclareCommand):
                assert len(parse(each.command.text).stmts) == 1


def test_types_of_prepare() -> None:
    found = command("PREPARE p (int, text[], varchar(5), s.mood) AS SELECT 1")
    assert found.types == (
        (("pg_catalog", "int4"), False), (("text",), True), (("pg_catalog", "varchar"), False), (("s", "mood"), False),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("1", "1"), ("-1", "-1"), ("+1", "1"), ("1.50", "1.50"), ("-.5", "-0.5"), ("1e3", "1000"), ("1e-2", "0.01"),
        ("99999999999999999999", "99999999999999999999"), ("'it''s'", "it's"), ("NULL", None), ("true", "true"),
        ("FALSE", "false"), ("'5'::int", "5"), ("'-5'::bigint", "-5"), ("5::numeric", "5"), ("'x'::text", "x"),
        ("'2026-01-31'::date", "2026-01-31"), ("DATE '2026-01-31'", "2026-01-31"), ("NULL::nosuch", None),
        ("'2026-01-31 10:00:00.5'::timestamp", "2026-01-31 10:00:00.5"), ("'t'::text::varchar", "t"),
        ("'2026-01-31 10:00:00+02'::timestamptz", "2026-01-31 10:00:00+02"), ("0x1F", "31"),
        ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ],
)  # fmt: skip
def test_arguments_of_execute(argument: str, value: str | None) -> None:
    assert command(f"EXECUTE p({argument})") == ExecuteCommand("execute", "p", arguments=(value,))


@pytest.mark.parametrize(
    "argument",
    [
        "1 + 1", "now()", "(SELECT 1)", "$1", "id", "-'5'", "+'5'", "+true", "ARRAY[1]", "' 5'::int", "'now'::date",
        "'5'::varchar(1)", "'{1}'::int[]", "'x'::evil.text", "'1'::regclass", "B'101'", "'NaN'::numeric", "'t'::bool",
        "CASE WHEN true THEN 1 END", "1e1000", "CURRENT_USER", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid",
    ],
)  # fmt: skip
def test_other_arguments_are_refused(argument: str) -> None:
    with pytest.raises(Refusal) as refused:
        command(f"EXECUTE p({argument})")
    assert refused.value.sqlstate == "0A000"
    assert refused.value.hint


@pytest.mark.parametrize(
    ("text", "most", "sql"),
    [
        ("FETCH c", None, "FETCH FORWARD 1 FROM u"),
        ("FETCH 5 FROM c", 3, "FETCH FORWARD 3 FROM u"),
        ("FETCH 2 FROM c", 3, "FETCH FORWARD 2 FROM u"),
        ("FETCH ALL c", None, "FETCH FORWARD ALL FROM u"),
        ("FETCH ALL c", 3, "FETCH FORWARD 3 FROM u"),
        ("FETCH BACKWARD ALL c", 3, "FETCH BACKWARD 3 FROM u"),
        ("FETCH -9 c", 3, "FETCH FORWARD -3 FROM u"),
        ("FETCH BACKWARD ALL c", None, "FETCH BACKWARD ALL FROM u"),
        ("FETCH LAST c", 3, "FETCH ABSOLUTE -1 FROM u"),
        ("FETCH RELATIVE 9 c", 3, "FETCH RELATIVE 9 FROM u"),
        ("MOVE ALL c", None, "MOVE FORWARD ALL FROM u"),
    ],
)
def test_fetch_is_sent_in_words_of_the_proxys_own(text: str, most: int | None, sql: str) -> None:
    found = command(text)
    assert isinstance(found, FetchCommand)
    assert found.name == "c"
    assert found.sql("u", most) == sql
    parse(sql)


def test_fetch_all_is_the_grammars_number() -> None:
    assert command("FETCH ALL c").count == ALL


@pytest.mark.parametrize("options", ["", "BINARY ", "SCROLL ", "NO SCROLL ", "INSENSITIVE ", "ASENSITIVE "])
def test_a_cursor_is_declared_with_its_options(options: str) -> None:
    found = command(f"DECLARE c {options}CURSOR FOR SELECT 1")
    assert found.binary == (options == "BINARY ")
    sql = declared("grille_c1", found.options, "SELECT a FROM public.t WHERE b = $1")
    assert (
        sql == f"DECLARE grille_c1 {options.removeprefix('ASENSITIVE ')}CURSOR FOR SELECT a FROM public.t WHERE b = $1"
    )


def test_what_does_not_read_back_is_not_declared() -> None:
    with pytest.raises(Refusal) as refused:
        declared("c", 0x110, "SELECT 1")
    assert refused.value.control == "ST-07"


def test_a_cursor_with_hold() -> None:
    found = command("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
    assert isinstance(found, DeclareCommand)
    assert found.hold
    assert declared("c", found.options, "SELECT 1") == "DECLARE c CURSOR WITH HOLD FOR SELECT 1"
    plain = command("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1")
    assert isinstance(plain, DeclareCommand)
    assert not plain.hold


def test_settings_by_function() -> None:
    found = command(
        "SELECT set_config('JIT', 'off', true) AS a, pg_catalog.current_setting('x', true), set_config('b','c','f')"
    )
    assert isinstance(found, SettingsCommand)
    assert [(c.column, c.name, c.value, c.local, c.missing_ok) for c in found.calls] == [
        ("a", "jit", "off", True, False), ("current_setting", "x", None, False, True),
        ("set_config", "b", "c", False, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "SELECT set_config('a', 'b', false), id FROM t", "SELECT set_config('a', 'b', false) FROM t", "SELECT 1",
        "SELECT set_config('a', $1, false)", "SELECT set_config('a', NULL, false)", "SELECT current_setting(1)",
        "SELECT current_setting('a') UNION SELECT current_setting('b')", "SELECT set_config('a', 'b', 'maybe')",
        "SELECT current_setting('a') WHERE false", "SELECT evil.set_config('a', 'b', false)", "VALUES (1)",
        "SELECT current_setting('a') || ''", "SELECT DISTINCT current_setting('a')", "SELECT set_config('a', 'b')",
        "SELECT current_setting(DISTINCT 'a')", "SELECT current_setting('a') LIMIT 0",
        "SELECT current_setting('a') FOR UPDATE",
    ],
)  # fmt: skip
def test_other_selects_go_on_as_statements(text: str) -> None:
    assert command(text) is None


def test_settings_of_one_text_are_bounded() -> None:
    assert command("SELECT " + ", ".join(["current_setting('a')"] * 65)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("COPY t TO PROGRAM 'x'", "program happens on the database's machine"),
        ("COPY t FROM '/etc/passwd'", "file happens on the database's machine"),
        ("COPY t FROM PROGRAM ''", "program happens on the database's machine"),
        ("LISTEN x", "LISTEN is not carried"),
        ("NOTIFY x, 'y'", "NOTIFY is not carried"),
        ("PREPARE TRANSACTION 'x'", "outlives its session"),
        ("ROLLBACK PREPARED 'x'", "outlives its session"),
        ("COMMIT AND CHAIN", "send BEGIN by itself"),
        ("CREATE TEMP TABLE x (a int)", "temporary table"),
        ("CREATE TEMPORARY TABLE x AS SELECT 1", "temporary table"),
        ("CREATE TABLE x (a int)", "CREATE is not carried"),
        ("SET CONSTRAINTS a DEFERRED", "named constraints"),
    ],
)
def test_a_refusal_says_what_and_why(text: str, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        command(text)
    assert words in refused.value.message
    assert refused.value.control == "ST-05"
