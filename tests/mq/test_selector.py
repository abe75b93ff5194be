"""Selectors: the rules of Jakarta Messaging 3.8, with their three truth values."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mq.selector import SelectorError, Value, parse, properties
from tests.mq.wire import Descriptor

ROW: dict[str, Value] = {"n": 5, "x": 2.5, "s": "it's", "t": "abc_d", "yes": True, "no": False, "Root.MQMD.Priority": 4}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("n = 5", True), ("n <> 5", False), ("n < 6 AND n >= 5", True), ("n > 5 OR x <= 2.5", True), ("n = 5.0", True),
        ("s = 'it''s'", True), ("s <> 'its'", True), ("s = 5", False), ("n = '5'", False), ("s > 'a'", False),
        ("n IN (1, 5)", True), ("s NOT IN ('a', 'b')", True), ("t IN ('a')", False), ("nothing IN ('a')", None),
        ("n BETWEEN 5 AND 7", True), ("n NOT BETWEEN 5 AND 7", False), ("n between 6 and 7", False),
        ("t LIKE 'abc%'", True), ("t LIKE 'a_c%d'", True), ("t LIKE 'abc!_d' ESCAPE '!'", True), ("t LIKE 'ab'", False),
        ("t NOT LIKE 'b%'", True), ("nothing LIKE 'a'", None), ("t LIKE 'abc!%d' ESCAPE '!'", False),
        ("nothing IS NULL", True), ("n IS NULL", False), ("n IS NOT NULL", True), ("nothing IS NOT NULL", False),
        ("nothing = 1", None), ("NOT nothing = 1", None), ("nothing = 1 OR n = 5", True),
        ("nothing = 1 AND n = 5", None), ("nothing = 1 AND n = 6", False), ("nothing <> 1", None), ("yes", True),
        ("no OR yes", True), ("yes AND no", False), ("yes = TRUE", True), ("no = FALSE", True), ("NOT yes", False),
        ("yes = 1", False), ("n = -5", False),
        ("n = +5", True), ("x = 25e-1", True), ("(n = 5 OR n = 6) AND no", False), ("n = 5 OR n = 6 AND no", True),
        ("Root.MQMD.Priority = 4", True), ("NOT (n = 5)", False),
    ],
)  # fmt: skip
def test_truth(text: str, wanted: bool | None) -> None:
    assert parse(text)(ROW) is wanted


@pytest.mark.parametrize(
    "text",
    ["", "n =", "n = = 5", "n = 5 AND", "(n = 5", "n = 5)", "n IN ()", "s = 'open", "n BETWEEN 1", "IS NULL", "n ! 5"],
)
def test_what_is_no_selector(text: str) -> None:
    with pytest.raises(SelectorError):
        parse(text)


@given(st.text(alphabet="n =<>()'AND ORIS1.,-%_", max_size=40))
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    try:
        condition = parse(text)
    except SelectorError:
        return
    assert condition(ROW) in (True, False, None)


@pytest.mark.parametrize(("order", "encoding"), [(">", 273), ("<", 546)])
def test_properties_of_a_message(order: str, encoding: int) -> None:
    folders = [
        b"<mcd><Msd>jms_text</Msd><Type>payment</Type></mcd>",
        b"<jms><Tms>1800000000000</Tms><Cid>c-1</Cid></jms>",
        b"<usr><colour>r&amp;d</colour><n dt='i4'>-7</n><flag dt='boolean'>1</flag><none xsi:nil='true'/></usr>",
        b"<usr><broken></usr>",
    ]
    body = b"".join(
        struct.pack(order + "i", len(each) + -len(each) % 4) + each + b" " * (-len(each) % 4) for each in folders
    )
    header = struct.pack(order + "4siiii8sii", b"RFH ", 2, 36 + len(body), encoding, 1208, b"MQSTR   ", 0, 1208)
    descriptor = Descriptor(
        0, 8, -1, 0, encoding, 1208, b"MQHRF2  ", 4, 1, b"\1" * 24, bytes(24), 0, b"", b"", b"", b"", b"", 28, b"", b"",
        b"", b"",
    )  # fmt: skip
    seen = properties(descriptor, header + body + b"payload")
    assert (seen["colour"], seen["n"], seen["flag"]) == ("r&d", -7, True)
    assert "none" not in seen
    assert (seen["JMSType"], seen["JMSCorrelationID"], seen["JMSTimestamp"]) == ("payment", "c-1", 1800000000000)
    assert (seen["JMSPriority"], seen["JMSDeliveryMode"]) == (4, "PERSISTENT")
    for length in range(len(header + body)):
        properties(descriptor, (header + body)[:length])
