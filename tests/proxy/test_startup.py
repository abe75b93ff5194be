from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.audit.event import Chain
from grille.controls import Refusal
from grille.proxy.startup import (
    PROTOCOL_3_0,
    PROTOCOL_3_2,
    Settings,
    accept,
    check,
    cut_comment,
    parse_options,
    parse_trace,
)


def test_user_and_database_are_ignored_and_the_allow_list_is_kept() -> None:
    startup = accept(
        PROTOCOL_3_0,
        {
            "user": "postgres",
            "database": "template1",
            "application_name": "scorer",
            "client_encoding": "'utf-8'",
            "datestyle": "German",
            "TIMEZONE": "Europe/Paris",
            "options": r"-c IntervalStyle=iso_8601 --extra-float-digits=3"
            r" -c grille.trace=tool='refund\ desk',prompt_id=p1",
        },
    )
    assert startup.version == PROTOCOL_3_0
    assert startup.negotiate is None
    assert dict(startup.settings.values) == {
        "application_name": "scorer",
        "DateStyle": "German, DMY",
        "TimeZone": "Europe/Paris",
        "IntervalStyle": "iso_8601",
        "extra_float_digits": "3",
    }
    assert startup.chain == Chain(source="startup", trust="asserted", tool="refund desk", prompt_id="p1")
    assert "application_name" not in dict(startup.settings.for_server())


@pytest.mark.parametrize(
    ("parameters", "sqlstate", "says"),
    [
        ({"search_path": "evil"}, "42501", "search_path"),
        ({"options": "-c search_path=evil"}, "42501", "search_path"),
        ({"options": "-csearch-path=evil"}, "42501", "search_path"),
        ({"options": "--session_replication_role=replica"}, "42501", "session_replication_role"),
        ({"options": "-c role=boss"}, "42501", "role"),
        ({"options": "-B 100"}, "42501", "options"),
        ({"options": "-c"}, "42501", "no value"),
        ({"options": "--"}, "42501", "options"),
        ({"replication": "database"}, "0A000", "replication"),
        ({"replication": "true"}, "0A000", "replication"),
        ({"client_encoding": "SJIS"}, "22023", "UTF8"),
        ({"DateStyle": "ISO; drop"}, "22023", "DateStyle"),
        ({"DateStyle": "ISO, German"}, "22023", "DateStyle"),
        ({"TimeZone": "../../etc/passwd"}, "22023", "TimeZone"),
        ({"TimeZone": "UTC'"}, "22023", "TimeZone"),
        ({"extra_float_digits": "4"}, "22023", "extra_float_digits"),
        ({"IntervalStyle": "x"}, "22023", "IntervalStyle"),
        ({"grille.trace": "no pairs"}, "22023", "grille.trace"),
        ({"default_transaction_read_only": "off"}, "42501", "default_transaction_read_only"),
        ({"x'; --": "1"}, "42501", '"?"'),
    ],
)
def test_everything_else_is_refused_with_a_sentence_that_names_it(
    parameters: dict[str, str], sqlstate: str, says: str
) -> None:
    with pytest.raises(Refusal) as refused:
        accept(PROTOCOL_3_0, {"user": "u", **parameters})
    assert refused.value.fatal
    assert refused.value.sqlstate == sqlstate
    assert says in refused.value.message
    for value in parameters.values():
        assert value not in refused.value.message or len(value) < 5


def test_newer_minors_and_unknown_options_are_negotiated() -> None:
    assert accept(PROTOCOL_3_2, {"user": "u"}).negotiate is None
    newer = accept(0x0003_270F, {"user": "u", "_pq_.command_tag_format": "fast"})
    assert newer.version == PROTOCOL_3_2
    assert newer.negotiate == ("_pq_.command_tag_format",)
    assert accept(PROTOCOL_3_0, {"_pq_.x": "1"}).negotiate == ("_pq_.x",)
    with pytest.raises(Refusal, match="protocol 2"):
        accept(0x0002_0000, {})


def test_options_are_split_as_postgresql_splits_them() -> None:
    assert parse_options(r"-c a=b\ c\\d --x-y=z  -cq=") == [("a", "b c\\d"), ("x_y", "z"), ("q", "")]
    assert parse_options("") == []


@given(st.text())
def test_options_never_raise_anything_but_a_refusal(text: str) -> None:
    with contextlib.suppress(Refusal):
        parse_options(text)


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        ("iso", "ISO, MDY"),
        ("DMY", "ISO, DMY"),
        ("sql, european", "SQL, DMY"),
        ("Postgres,US", "Postgres, MDY"),
        ("german", "German, DMY"),
    ],
)
def test_date_style_is_reported_as_the_server_does(given: str, reported: str) -> None:
    assert check("DateStyle", given) == reported


def test_settings_that_equal_the_base_leave_no_trace_in_the_profile() -> None:
    settings = Settings().with_value("TimeZone", "Asia/Tokyo").with_value("DateStyle", "ISO, MDY")
    assert settings.for_server() == (("TimeZone", "Asia/Tokyo"),)
    assert settings.get("TimeZone") == "Asia/Tokyo"
    assert settings.with_value("TimeZone", None) == Settings()
    assert settings.get("unknown") is None


def test_a_trailing_sqlcommenter_comment_becomes_the_chain() -> None:
    text, chain = cut_comment("SELECT 1 /*traceparent='00-ab-cd-01',tool='export%20all',x='it\\'s'*/ ;")
    assert text == "SELECT 1"
    assert chain == Chain(
        source="comment", trust="asserted", traceparent="00-ab-cd-01", tool="export all", other={"x": "it's"}
    )


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "SELECT 1 /* plain comment */",
        "SELECT 1 /*a='b'*/ FROM t",
        "SELECT 'x /*a=''b''*/'",
        "SELECT 1 /*a='b' -- */",
        "SELECT 1 /*a='b'*/ x */",
        "SELECT 1 /*" + "a" * 5000 + "='b'*/",
    ],
)
def test_other_comments_stay_in_the_text(text: str) -> None:
    assert cut_comment(text) == (text, None)


def test_a_chain_is_bounded() -> None:
    with pytest.raises(Refusal):
        parse_trace(",".join(f"k{i}='v'" for i in range(40)), "setting")
    with pytest.raises(Refusal):
        parse_trace("tool='" + "x" * 5000 + "'", "setting")
    assert parse_trace("", "setting") == Chain()
