"""Layouts of payloads: where values are found, and that nothing else changes when they are replaced."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.sax import saxutils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.protocols.mq.copybook import Copybook, Item, parse
from grille.protocols.mq.documents import Delimited, Json, Xml
from grille.protocols.mq.headers import body_of
from grille.protocols.mq.payload import Field, Layout, LayoutError, Mismatch, Span, decoded, encoded

EBCDIC = [37, 273, 500, 1026, 1047, 1140]
ASCII = [367, 437, 819, 850, 858, 912, 923, 1208, 1252]

# The copybook and its length are an example of the JRecord project ("DTAR020").
SALES = """
000900*        DTAR020 IS THE OUTPUT FROM DTAB020 FROM THE IML
001000*        CENTRAL REPORTING SYSTEM
001500*        RECORD LENGTH IS 27.
001700        03  DTAR020-KCODE-STORE-KEY.
001800            05 DTAR020-KEYCODE-NO      PIC X(08).
001900            05 DTAR020-STORE-NO        PIC S9(03)   COMP-3.
002000        03  DTAR020-DATE               PIC S9(07)   COMP-3.
002100        03  DTAR020-DEPT-NO            PIC S9(03)   COMP-3.
002200        03  DTAR020-QTY-SOLD           PIC S9(9)    COMP-3.
002300        03  DTAR020-SALE-PRICE         PIC S9(9)V99 COMP-3.
"""

PAYMENT = """
       01  PAYMENT.
           05  HEADER.
               10  KIND            PIC X(4).
               10  FILLER          PIC X(2) VALUE 'v1'.
           05  DEBTOR.
               10  ACCOUNT         PIC X(16).
               10  CARD            PIC 9(16).
           05  CREDITOR.
               10  ACCOUNT         PIC X(16).
               10  TAX-NO          PIC S9(9) COMP-3.
           05  AMOUNT              PIC S9(9)V99 COMP-3.
           05  ENTRIES             PIC S9(4) USAGE IS BINARY.
           05  LINE-ITEM OCCURS 3 TIMES INDEXED BY IX.
               10  REFERENCE       PIC 9(9).
               10  PARTS           OCCURS 2 TIMES PIC X(3).
           05  TRAILER             PIC X(8).
           05  TRAILER-NUMBER REDEFINES TRAILER PIC 9(8).
               88  NOTHING         VALUE 0.
"""
FIELDS = [
    Field("debtor", "ACCOUNT OF DEBTOR"), Field("card", "card"), Field("creditor", "Account in Creditor of Payment"),
    Field("tax", "TAX-NO"), Field("reference", "REFERENCE"),
]  # fmt: skip


def payment(ccsid: int) -> bytes:
    text = lambda value: encoded(value, ccsid)  # noqa: E731
    lines = b"".join(text(f"{number:09d}") + text("abcdef") for number in (1, 2, 3))
    return (
        text("PAY v1") + text("DE4421".ljust(16)) + text("4929000000000007") + text("".ljust(16))
        + bytes.fromhex("123456789C") + bytes.fromhex("00000001234D") + bytes.fromhex("0003") + lines + text("00000042")
    )  # fmt: skip


def told(spans: Sequence[Span]) -> list[tuple[str, str]]:
    return [(span.field, span.value) for span in spans]


def swapped(layout: Layout, data: bytes, ccsid: int, **values: str) -> bytes:
    found = layout.find(data, ccsid)
    return layout.replaced(data, [(span, values.get(span.field, span.value)) for span in found], ccsid)


# character sets


@pytest.mark.parametrize("ccsid", EBCDIC)
def test_all_bytes_of_a_character_set_come_back(ccsid: int) -> None:
    raw = bytes(range(256))
    assert encoded(decoded(raw, ccsid), ccsid) == raw


def test_1047_is_037_but_for_six_characters() -> None:
    """IBM's code pages 01047 and 00037: brackets, circumflex, not sign, acute Y, diaeresis."""
    text = "[]^\xac\xdd\xa8"
    assert encoded(text, 1047) == bytes.fromhex("ADBD5FB0BABB")
    assert encoded(text, 37) == bytes.fromhex("BABBB05FADBD")
    raw = bytes(byte for byte in range(256) if byte not in bytes.fromhex("ADBD5FB0BABB"))
    assert decoded(raw, 1047) == decoded(raw, 37)


def test_what_is_no_text() -> None:
    for data, ccsid in ((b"\xff", 1208), (b"a", 4711), (b"a", 0), (b"a", -1)):
        with pytest.raises(Mismatch):
            decoded(data, ccsid)
    with pytest.raises(Mismatch):
        encoded("\u20ac", 37)


# copybooks


def test_a_published_copybook() -> None:
    items = parse(SALES)
    assert items[0].size == 27
    assert [(item.name, item.offset, item.size, item.kind) for item in items[2:]] == [
        ("DTAR020-KEYCODE-NO", 0, 8, "text"), ("DTAR020-STORE-NO", 8, 2, "packed"), ("DTAR020-DATE", 10, 4, "packed"),
        ("DTAR020-DEPT-NO", 14, 2, "packed"), ("DTAR020-QTY-SOLD", 16, 5, "packed"),
        ("DTAR020-SALE-PRICE", 21, 6, "packed"),
    ]  # fmt: skip
    layout = Copybook(SALES, [Field("key", "DTAR020-KEYCODE-NO"), Field("date", "DTAR020-DATE")])
    # 69684558, store 20, 40118, department 280, 1 sold, 19.00 (the first record of that project's DTAR020.bin)
    record = bytes.fromhex("F6F9F6F8F4F5F5F8020C0040118C280C000000001C00000001900C")
    assert told(layout.find(record, 37)) == [("key", "69684558"), ("date", "0040118")]


@pytest.mark.parametrize(
    ("picture", "raw", "ccsid", "digits"),
    [  # IBM, Enterprise COBOL Programming Guide, "Formats for numeric data": +1234 and -1234
        ("S9(4)", "F1F2F3C4", 37, "1234"), ("S9(4)", "F1F2F3D4", 37, "1234"), ("9(4)", "F1F2F3F4", 37, "1234"),
        ("S9(4) SIGN LEADING", "C1F2F3F4", 37, "1234"), ("S9(4) SIGN LEADING", "D1F2F3F4", 37, "1234"),
        ("S9(4) SIGN TRAILING SEPARATE", "F1F2F3F44E", 37, "1234"),
        ("S9(4) SIGN IS LEADING SEPARATE CHARACTER", "60F1F2F3F4", 37, "1234"),
        ("S9(5) COMP-3", "12345C", 37, "12345"), ("S9(5) PACKED-DECIMAL", "12345D", 37, "12345"),
        ("9(5) USAGE IS COMP-3", "12345F", 37, "12345"), ("S9(4) COMP-3", "01234C", 37, "1234"),
        ("S9(4)", "31323334", 819, "1234"), ("S9(4)", "31323374", 819, "1234"),
        ("S9(4)", "31323344", 819, "1234"), ("S9(4)", "3132334D", 819, "1234"), ("S9(4)", "3132337B", 819, "1230"),
        ("S9(4)", "3132337D", 819, "1230"), ("S9(4) SIGN TRAILING SEPARATE", "313233342D", 819, "1234"),
    ],
)  # fmt: skip
def test_numbers_as_published(picture: str, raw: str, ccsid: int, digits: str) -> None:
    layout = Copybook(f"01 N PIC {picture}.", [Field("n", "N")])
    data = bytes.fromhex(raw)
    assert told(layout.find(data, ccsid)) == [("n", digits)]
    assert swapped(layout, data, ccsid) == data
    other = "98765"[: len(digits)]
    changed = swapped(layout, data, ccsid, n=other)
    assert told(layout.find(changed, ccsid)) == [("n", other)] and len(changed) == len(data)
    assert swapped(layout, changed, ccsid, n=digits) == data


@pytest.mark.parametrize(
    ("picture", "raw", "ccsid"),
    [
        ("9(4)", "F1F2F3C4", 37), ("9(4)", "31323334", 37), ("9(4)", "F1F2F3F4", 819), ("9(4)", "F1F2F3FA", 37),
        ("9(4)", "40404040", 37), ("S9(4)", "F1F2F3E4", 37), ("S9(4)", "31323354", 819),
        ("S9(4) SIGN TRAILING SEPARATE", "F1F2F3F440", 37), ("S9(5) COMP-3", "123456", 37),
        ("S9(5) COMP-3", "1234AC", 37), ("S9(5) COMP-3", "12345A", 37), ("S9(4) COMP-3", "11234C", 37),
        ("S9(5) COMP-3", "404040", 37),
    ],
)  # fmt: skip
def test_what_is_no_number(picture: str, raw: str, ccsid: int) -> None:
    layout = Copybook(f"01 N PIC {picture}.", [Field("n", "N")])
    with pytest.raises(Mismatch, match="the field n "):
        layout.find(bytes.fromhex(raw), ccsid)


@pytest.mark.parametrize("ccsid", [*EBCDIC, *ASCII])
def test_a_record_with_tables(ccsid: int) -> None:
    layout = Copybook(PAYMENT, FIELDS)
    data = payment(ccsid)
    assert layout.size == len(data) == 120
    assert told(layout.find(data, ccsid)) == [
        ("debtor", "DE4421"), ("card", "4929000000000007"), ("creditor", ""), ("tax", "123456789"),
        ("reference", "000000001"), ("reference", "000000002"), ("reference", "000000003"),
    ]  # fmt: skip
    assert swapped(layout, data, ccsid) == data
    other = swapped(layout, data, ccsid, debtor="TOKEN", card="1" * 16, tax="987654321", reference="7" * 9)
    assert told(layout.find(other, ccsid))[:4] == [
        ("debtor", "TOKEN"), ("card", "1" * 16), ("creditor", ""), ("tax", "987654321"),
    ]  # fmt: skip
    assert (other[:6], other[59:67], other[-8:]) == (data[:6], data[59:67], data[-8:])
    with pytest.raises(Mismatch, match="longer than its 16"):
        swapped(layout, data, ccsid, debtor="x" * 17)
    with pytest.raises(Mismatch, match="not 16 digits"):
        swapped(layout, data, ccsid, card="1" * 15)
    for length in (0, 119, 121):
        with pytest.raises(Mismatch):
            layout.find((data + b"\0")[:length], ccsid)


@given(st.binary(min_size=120, max_size=120), st.sampled_from([37, 819]))
def test_any_bytes_are_a_record_or_a_mismatch(data: bytes, ccsid: int) -> None:
    layout = Copybook(PAYMENT, FIELDS)
    try:
        found = layout.find(data, ccsid)
    except Mismatch:
        return
    assert layout.replaced(data, [(span, span.value) for span in found], ccsid)[59:67] == data[59:67]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no item"), ("01 A PIC X(3)", "full stop"), ("A PIC X.", "level number"), ("50 A PIC X.", "not 01 to 49"),
        ("01 A PIC N(3).", "picture"), ("01 A PIC 9(3)P.", "picture"), ("01 A PIC Z9.", "picture"),
        ("01 A PIC X V.", "not read"), ("01 A.", "neither a picture"), ("01 A COMP.", "no picture"),
        ("01 A PIC X COMP-3.", "does not take"), ("01 A PIC S9(3)X.", "does not take"),
        ("01 A PIC 9(32).", "31 digits"),
        ("01 A. 05 B PIC X OCCURS 1 TO 9 TIMES DEPENDING ON C.", "fixed number"), ("01 A PIC X OCCURS 0.", "within"),
        ("01 A. 05 B PIC X. 05 C REDEFINES D PIC X.", "not beside"), ("01 A PIC X. 01 B PIC X.", "one record"),
        ("01 A PIC X. 05 B PIC X.", "items below it"), ("01 A. 05 B PIC X. 04 C PIC X.", "neighbours"),
        ("01 A PIC X SYNC.", "not read"), ("01 A PIC X JUST.", "another way"), ("01 A PIC X(9999999).", "longer"),
        ("01 A OCCURS 1000000. 05 B PIC X(1000).", "longer"), ("000100-    05 A PIC X.", "continued"),
        ("".join(f"{level:02} A{level}. " for level in range(1, 50)), "neither a picture"),
    ],
)  # fmt: skip
def test_what_is_no_copybook(text: str, told: str) -> None:
    with pytest.raises(LayoutError, match=told):
        parse(text)


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("NO-SUCH", "no item"), ("ACCOUNT", "2 items.*OF GROUP"), ("DEBTOR", "is group"), ("ENTRIES", "is binary"),
        ("KIND OF DEBTOR", "no item"), ("", "no item"),
    ],
)  # fmt: skip
def test_what_is_no_field(at: str, told: str) -> None:
    with pytest.raises(LayoutError, match=told):
        Copybook(PAYMENT, [Field("f", at)])
    with pytest.raises(LayoutError, match="shares bytes"):
        Copybook(PAYMENT, [Field("a", "TRAILER"), Field("b", "TRAILER-NUMBER")])


def test_items_say_where_they_are() -> None:
    reference = next(item for item in parse(PAYMENT) if item.name == "REFERENCE")
    assert isinstance(reference, Item)
    assert (reference.offset, reference.strides, reference.parents) == (67, ((3, 15),), ("PAYMENT", "LINE-ITEM"))


# JSON


DOCUMENT = b'{ "payer" : {"accounts":[{"number":"4929", "x":1.10},{"number":77}], "name":"J\\u00f6rg"},\n "n":null}'
JSON_FIELDS = [Field("account", "payer.accounts[].number"), Field("name", "payer.name"), Field("n", "n")]


@pytest.mark.parametrize("ccsid", [1208, 819, 37, 1047, 1252])
def test_a_document(ccsid: int) -> None:
    data = encoded(DOCUMENT.decode(), ccsid)
    layout = Json(JSON_FIELDS)
    assert told(layout.find(data, ccsid)) == [("account", "4929"), ("account", "77"), ("name", "J\xf6rg")]
    changed = layout.replaced(
        data, list(zip(layout.find(data, ccsid), ["a\"b", "78", "x\xe9"], strict=True)), ccsid
    )  # fmt: skip
    text = decoded(changed, ccsid)
    assert text == '{ "payer" : {"accounts":[{"number":"a\\"b", "x":1.10},{"number":78}], "name":"x\xe9"},\n "n":null}'
    with pytest.raises(Mismatch, match="not a number"):
        layout.replaced(data, [(layout.find(data, ccsid)[1], "78x")], ccsid)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1,]", '{"a"}', '{"a":1,}', "nul", "01", '"\t"', '{"payer":{}} x', '{"payer":{"name":true}}',
        '{"payer":{"name":["x"]}}', '{"payer":{"name":{}}}', '{"payer":[]}x', '{"payer":7}', '{"payer":{"accounts":7}}',
        '{"payer":{"name":"a","name":"b"}}', '{"payer":{"name":"a","n\\u0061me":"b"}}', '{"payer":{"accounts":[7]}}',
        "[" * 100 + "]" * 100, '"\\ud8', "{'n':1}", '{"n":NaN}', '{"n":1}{"n":2}',
        '{"payer":{"accounts":{"number":1}}}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_such_document(text: str) -> None:
    with pytest.raises(Mismatch):
        Json(JSON_FIELDS).find(text.encode(), 1208)


def test_where_fields_are_not_nothing_is_found() -> None:
    for text in ('{"payer":null}', "[]", '{"other":{"name":"x"}}', '{"[]":{"number":1}}'):
        assert Json([Field("a", "payer.name"), Field("b", "list[].number")]).find(text.encode(), 1208) == []
    assert told(Json([Field("a", '["a.b"][]')]).find(b'{"a.b":["x",null,"y"]}', 1208)) == [("a", "x"), ("a", "y")]
    assert told(Json([Field("a", '["[]"]')]).find(b'{"[]":"x"}', 1208)) == [("a", "x")]
    for at in ("", "a..b", "a[0]", "a b", "[", '["x"'):
        with pytest.raises(LayoutError):
            Json([Field("a", at)])
    for fields in ([Field("a", "x"), Field("b", "x")], [Field("a", "x"), Field("b", "x.y")]):
        with pytest.raises(LayoutError):
            Json(fields)


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "[]", "é"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(trees, st.booleans(), st.sampled_from([None, 2]))
def test_any_document_is_read_as_the_library_reads_it(tree: object, ascii_only: bool, indent: int | None) -> None:
    data = json.dumps(tree, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    layout = Json([Field("f", "a.b"), Field("g", "b[].a")])
    try:
        found = layout.find(data, 1208)
    except Mismatch:
        return
    changed = layout.replaced(data, [(span, "9" if span.form == "number" else "new") for span in found], 1208)
    again = json.loads(changed)
    assert len(found) == str(again).count("'new'") + sum(span.form == "number" for span in found) or not found
    same = layout.replaced(data, [(span, span.value) for span in found], 1208)
    assert json.loads(same) == json.loads(data)
    if not found:
        assert same == data


@given(st.text(alphabet='{}[]",:\\ntrue0123.eE- ab', max_size=40))
def test_any_text_is_a_document_for_both_or_for_neither(text: str) -> None:
    try:
        json.loads(text, parse_constant=lambda _: 1 / 0)
        valid = True
    except (ValueError, ZeroDivisionError, RecursionError):
        valid = False
    try:
        Json([Field("f", "zz")]).find(text.encode(), 1208)
        ours = True
    except Mismatch as error:
        if "should be looked for" in str(error):
            return
        ours = False
    assert ours == valid


# delimited


# XML


MARKUP = (
    '<?xml version="1.0"?>\n<!-- Payer --><D:Document xmlns:D="urn:d">'
    '<Payer kind=\'x\' xmlns:p="urn:p" no = "12 &amp; 3">'
    "<D:Account>49<![CDATA[<&]]>&#50;9\xe9</D:Account><p:Account/><Account></Account>\n"
    "<Account><![CDATA[7]]></Account></Payer><Other no='5'>text <b/>Account</Other></D:Document>\n"
)
MARKUP_FIELDS = [Field("account", "Document/Payer/Account"), Field("number", "Document/Payer/@no")]


@pytest.mark.parametrize("ccsid", [1208, 819, 37, 1047, 1252])
def test_markup(ccsid: int) -> None:
    data = encoded(MARKUP, ccsid)
    layout = Xml(MARKUP_FIELDS)
    spans = layout.find(data, ccsid)
    assert told(spans) == [("number", "12 & 3"), ("account", "49<&29\xe9"), ("account", "7")]
    changed = decoded(layout.replaced(data, list(zip(spans, ["a'\"\n<", "]]>\xe9&", None], strict=True)), ccsid), ccsid)
    expected = MARKUP.replace("12 &amp; 3", "a&#39;&#34;&#10;&lt;").replace("<![CDATA[7]]>", "")
    assert changed == expected.replace("49<![CDATA[<&]]>&#50;9\xe9", "]]&gt;\xe9&amp;")
    with pytest.raises(Mismatch, match="does not have"):
        layout.replaced(data, [(spans[0], "\x00")], ccsid)
    rare = layout.replaced(data, [(spans[2], "\u4e2d\U0001f600")], ccsid)
    assert told(layout.find(rare, ccsid))[2] == ("account", "\u4e2d\U0001f600")


def test_line_ends_of_ebcdic_are_line_ends() -> None:
    lines = MARKUP.replace("\n", "\x85")
    layout = Xml(MARKUP_FIELDS)
    data = encoded(lines, 1047)
    assert told(layout.find(data, 1047)) == told(layout.find(encoded(MARKUP, 1208), 1208))
    spans = layout.find(data, 1047)
    assert decoded(layout.replaced(data, [(span, span.value) for span in spans], 1047), 1047).count("\x85") == 3
    again = layout.replaced(data, [(spans[1], "a\x85b")], 1047)
    assert told(layout.find(again, 1047))[1] == ("account", "a\x85b")
    with pytest.raises(Mismatch):
        layout.find(lines.encode(), 1208)


@pytest.mark.parametrize(
    "text",
    [
        "", "<Document>", "<Document/>x", "x<Document/>", "<Document/><Document/>", "<Other/>", "<document/>",
        "<!DOCTYPE Document><Document/>", "<!DOCTYPE Document [<!ENTITY a 'b'>]><Document>&a;</Document>",
        "<Document>&a;</Document>", "<Document><a:b/></Document>", "<Document a='1' a='2'/>", "<Document a=1/>",
        "<Document xmlns:a='u' xmlns:b='u' a:x='1' b:x='2'/>", "<Document>x<Payer/></Document>",
        "<Document><Payer>4929<Account/></Payer></Document>", "<Document><Payer><![CDATA[4929]]></Payer></Document>",
        "<Document><Payer><Account>49<b/>29</Account></Payer></Document>",
        "<Document><Payer><Account><Account>4929</Account></Account></Payer></Document>",
        "<Document><Payer><Account>49<!-- -->29</Account></Payer></Document>",
        "<Document><Payer><Account>49<?a b?>29</Account></Payer></Document>",
        "<?xml version='1.1'?><Document/>", "<?xml version='1.0' encoding='UTF-16'?><Document/>",
        "<?xml version='1.0' encoding='nonsense'?><Document/>", "<?xml version='1.0' encoding='IBM037'?><Document/>",
        "<?xml version='1.0' encoding='iso-8859-1'?><Document><a>\xe9</a></Document>",
        "<?xml version='1.0' encoding='rot13'?><Document/>", "<Document>\x01</Document>", "<Document>&#1;</Document>",
        "<Document>" + "<a>" * 100 + "</a>" * 100 + "</Document>", "<a>" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_such_markup(text: str) -> None:
    with pytest.raises(Mismatch) as caught:
        Xml(MARKUP_FIELDS).find(text.encode(), 1208)
    assert "4929" not in str(caught.value)


def test_a_declared_encoding_may_not_mean_other_text() -> None:
    layout = Xml(MARKUP_FIELDS)
    for name, ccsid, character in (
        ("UTF-8", 1208, "\xe9"), ("utf-8", 819, "e"), ("ISO-8859-1", 819, "\xe9"), ("us-ascii", 1208, "e"),
        ("IBM037", 37, "\xe9"), ("ibm-1047", 1047, "["), ("windows-1252", 1252, "\u20ac"),
    ):  # fmt: skip
        text = f'<?xml version="1.0" encoding="{name}"?><Document><a>{character}</a></Document>'
        assert layout.find(encoded(text, ccsid), ccsid) == []
        assert layout.find(encoded(text.replace(f' encoding="{name}"', ""), ccsid), ccsid) == []
    for name, ccsid, character in (("UTF-8", 819, "\xe9"), ("IBM037", 1047, "["), ("UTF-8", 37, "e")):
        with pytest.raises(Mismatch, match="another encoding"):
            layout.find(
                encoded(f'<?xml version="1.0" encoding="{name}"?><Document><a>{character}</a></Document>', ccsid), ccsid
            )


def test_paths_of_markup() -> None:
    text = b"<a xmlns='u' x='1'><b x='2' y='3'>4</b><c><b x='5'>6</b></c></a>"
    for fields, found in (
        ({"f": "a/b"}, [("f", "4")]), ({"f": "a/@x", "g": "a/c/b/@x"}, [("f", "1"), ("g", "5")]),
        ({"f": "a/b", "g": "a/b/@y", "h": "a/b/@x"}, [("h", "2"), ("g", "3"), ("f", "4")]), ({"f": "a/d"}, []),
    ):  # fmt: skip
        assert told(Xml([Field(name, at) for name, at in fields.items()]).find(text, 1208)) == found
    for at in ("", "/a", "a/", "a//b", "@x", "a/@x/b", "p:a", "a b", "a/@", "a[1]", "*"):
        with pytest.raises(LayoutError):
            Xml([Field("f", at)])
    for pair in ((Field("f", "a/b"), Field("g", "a/b")), (Field("f", "a/b"), Field("g", "a/b/c/@d"))):
        with pytest.raises(LayoutError):
            Xml(pair)


_elements = st.recursive(
    st.text(alphabet="12&<>\"' \n\xe9\u4e2d", max_size=6),
    lambda inner: st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "p:a"]),
            st.dictionaries(
                st.sampled_from(["a", "p:a", "q"]), st.text(alphabet="12&<'\" \n\xe9", max_size=4), max_size=2
            ),
            inner,
        ),
        max_size=3,
    ),
    max_leaves=12,
)


def _markup(tree: object) -> str:
    if isinstance(tree, str):
        return saxutils.escape(tree)
    assert isinstance(tree, list)
    parts = []
    for name, attributes, inner in tree:
        written = "".join(f" {key}={saxutils.quoteattr(value)}" for key, value in attributes.items())
        parts.append(f"<{name}{written}>{_markup(inner)}</{name}>")
    return "".join(parts)


@given(_elements, st.sampled_from([1208, 819, 37]))
def test_any_markup_is_read_as_the_library_reads_it(tree: object, ccsid: int) -> None:
    text = f'<r xmlns:p="urn:p">{_markup(tree)}</r>'
    try:
        data = encoded(text, ccsid)
    except Mismatch:
        return
    layout = Xml([Field("f", "r/a"), Field("g", "r/b/@a"), Field("h", "r/b/b")])
    found, why = None, ""
    try:
        found = layout.find(data, ccsid)
    except Mismatch as mismatch:
        why = str(mismatch)
    if found is None:
        assert "should be looked for" in why or "has an element in it" in why
        return
    names = {"a": ("a", "{urn:p}a"), "b": ("b",)}
    root = ElementTree.fromstring(text)
    top = [each for each in root if each.tag in names["a"]]
    deep = [each for each in root if each.tag == "b"]
    expected = [each.text for each in top if each.text]
    expected += [value for each in deep for key in names["a"] if (value := each.get(key))]
    expected += [inner.text for each in deep for inner in each if inner.tag == "b" and inner.text]
    assert sorted(span.value for span in found) == sorted(expected)
    numbers = itertools.count()
    new = [(span, f"new{next(numbers)}") for span in found]
    changed = decoded(layout.replaced(data, new, ccsid), ccsid)
    again = layout.find(encoded(changed, ccsid), ccsid)
    assert [span.value for span in again] == [value for _, value in new]
    same = decoded(layout.replaced(data, [(span, span.value) for span in found], ccsid), ccsid)
    assert ElementTree.canonicalize(same) == ElementTree.canonicalize(text)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x85"])
@pytest.mark.parametrize("ccsid", [1208, 37, 1047])
def test_lines(end: str, ccsid: int) -> None:
    text = end.join(['id,"name, full",card', '1,"O""Neil, J",4929', "2,,", '3,x,"4930"', ""])
    if ccsid == 1208 and end == "\x85":
        text = text.replace(end, "\n")
    data = encoded(text, ccsid)
    layout = Delimited([Field("card", "card"), Field("name", "name, full")], header=True)
    assert told(layout.find(data, ccsid)) == [("name", 'O"Neil, J'), ("card", "4929"), ("name", "x"), ("card", "4930")]
    assert swapped(layout, data, ccsid) == data
    changed = decoded(swapped(layout, data, ccsid, name='a"b', card="1,2"), ccsid)
    assert changed.count('"a""b"') == 2 and changed.count('"1,2"') == 2
    numbered = Delimited([Field("card", "3")])
    assert told(numbered.find(data, ccsid)) == [("card", "card"), ("card", "4929"), ("card", "4930")]
    with pytest.raises(Mismatch, match="not in the header"):
        Delimited([Field("x", "iban")], header=True).find(data, ccsid)


@pytest.mark.parametrize("text", ["1,2\n3", '1,"2', '1,"2"x\n', 'a"b,c', "1\n2"])
def test_what_are_no_such_lines(text: str) -> None:
    with pytest.raises(Mismatch):
        Delimited([Field("f", "2")]).find(text.encode(), 1208)


def test_separators() -> None:
    assert told(Delimited([Field("f", "2")], "|", "").find(b'a|"b\nc|', 1208)) == [("f", '"b')]
    with pytest.raises(Mismatch, match="separator"):
        swapped(Delimited([Field("f", "2")], "|", ""), b"a|b", 1208, f="x|y")
    for arguments in (("", '"'), (";;", '"'), (",", ","), ("\n", '"')):
        with pytest.raises(LayoutError):
            Delimited([], *arguments)
    for fields in ([Field("f", "0")], [Field("f", "x")], [Field("f", "1"), Field("g", "1")]):
        with pytest.raises(LayoutError):
            Delimited(fields)


printed = st.text(st.characters(exclude_characters="\r\x85"), max_size=4)


@given(st.lists(st.lists(printed, min_size=3, max_size=3), min_size=1, max_size=4))
def test_any_lines_written_by_the_library(rows: list[list[str]]) -> None:
    import csv
    import io

    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    try:
        data = encoded(out.getvalue(), 1208)
    except Mismatch:
        return
    layout = Delimited([Field("f", "2")])
    try:
        found = layout.find(data, 1208)
    except Mismatch:
        assert any("\n" in value for row in rows for value in row)
        return
    assert [span.value for span in found] == [row[1] for row in rows if row[1]]
    assert layout.replaced(data, [(span, span.value) for span in found], 1208) == data


# headers


def rfh2(folders: Sequence[str], order: str = ">", following: tuple[str, int, int] = ("MQSTR", 1208, 273)) -> bytes:
    parts = b""
    for folder in folders:
        raw = folder.encode()
        raw += b" " * (-len(raw) % 4)
        parts += struct.pack(f"{order}I", len(raw)) + raw
    name, ccsid, encoding = following
    return struct.pack(
        f"{order}4sIIIi8sII", b"RFH ", 2, 36 + len(parts), encoding, ccsid, name.encode().ljust(8), 0, 1208
    ) + parts  # fmt: skip


def test_headers_say_what_follows_them() -> None:
    for order, encoding in ((">", 273), ("<", 546)):
        first = rfh2(["<mcd><Msd>jms_text</Msd></mcd>"], order, ("MQHRF2", 1208, encoding))
        second = rfh2(["<usr><traceparent>00-ab</traceparent><n dt='i4'>7</n></usr>"], order, ("MQSTR", 37, 785))
        body = body_of(first + second + b"data", "MQHRF2", 1208, encoding)
        assert (body.at, body.format, body.ccsid, body.encoding) == (len(first + second), "MQSTR", 37, 785)
        assert body.properties == {"mcd.Msd": "jms_text", "usr.traceparent": "00-ab", "usr.n": "7"}
    assert body_of(b"x", "", 37, 785).at == 0
    inherited = body_of(rfh2([], following=("", -2, 273)), "MQHRF2", 500, 273)
    assert (inherited.ccsid, inherited.format) == (500, "")


def test_headers_that_are_not_read() -> None:
    whole = rfh2(["<usr><a>1</a></usr>"])
    for length in range(len(whole)):
        with pytest.raises(Mismatch):
            body_of(whole[:length], "MQHRF2", 1208, 273)
    for name in ("MQIMS", "MQCICS", "MQDEAD", "MQADMIN"):
        with pytest.raises(Mismatch, match="is not read"):
            body_of(whole, name, 1208, 273)
    for folder in ("<usr>", "<!DOCTYPE a><usr/>", "<a>&x;</a>", "<a><b></a></b>", "<a/><b/>"):
        with pytest.raises(Mismatch):
            body_of(rfh2([folder]), "MQHRF2", 1208, 273)
    with pytest.raises(Mismatch, match="more than 8"):
        body_of(rfh2([], following=("MQHRF2", 1208, 273)) * 9, "MQHRF2", 1208, 273)
    lying = bytearray(whole)
    for at in (8, 36):
        for value in (0, 3, 35, 1 << 20, (1 << 32) - 1):
            struct.pack_into(">I", lying, at, value)
            with pytest.raises(Mismatch):
                body_of(bytes(lying), "MQHRF2", 1208, 273)
        lying = bytearray(whole)
