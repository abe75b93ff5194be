"""Payloads against layouts: a mismatch, or values that can be replaced without touching anything else."""

from __future__ import annotations

import functools
import random
from typing import Final

from grille.protocols.mq.copybook import Copybook, parse
from grille.protocols.mq.documents import Delimited, Json, Xml
from grille.protocols.mq.headers import body_of
from grille.protocols.mq.payload import Field, Layout, LayoutError, Mismatch, encoded
from tests.protocols.mq.test_payload import (
    DOCUMENT,
    FIELDS,
    JSON_FIELDS,
    MARKUP,
    MARKUP_FIELDS,
    PAYMENT,
    SALES,
    payment,
    rfh2,
)

_CCSIDS: Final = (37, 1047, 819, 1208, 500, 0, 4711)
_PIECES: Final = (
    b'"', b"{", b"[", b"\\u00", b",", b"\n", b" OCCURS 9 ", b"PIC 9(", b"<", b"9", b"<!--", b"]]>", b"&#", b"</",
)  # fmt: skip
_LINES: Final = b'id,"name, full",card\n1,"O""Neil",4929\n2,,\n'


@functools.cache
def _layouts() -> dict[int, Layout]:
    return {
        0: Copybook(PAYMENT, FIELDS), 1: Json(JSON_FIELDS), 2: Delimited([Field("card", "3"), Field("name", "2")]),
        3: Delimited([Field("card", "card")], header=True), 7: Xml(MARKUP_FIELDS),
    }  # fmt: skip


@functools.cache
def _seeds() -> tuple[bytes, ...]:
    head = rfh2(["<usr><traceparent>00-ab</traceparent><n dt='i4'>7</n></usr>"])
    markup = [
        MARKUP.encode(),
        encoded(MARKUP, 1047),
        MARKUP.replace(' version="1.0"', ' version="1.0" encoding="UTF-8"').encode(),
    ]
    return *markup, payment(37), payment(819), DOCUMENT, _LINES, head + DOCUMENT, PAYMENT.encode(), SALES.encode()


def make(source: random.Random) -> bytes:
    """A byte for the layout, one for the character set, then a payload."""
    data = bytearray(source.choice(_seeds()))
    for _ in range(source.choice((0, 1, 1, 2, 5))):
        at = source.randrange(len(data) + 1)
        match source.randrange(5):
            case 0:
                data[at : at + 1] = source.randbytes(1)
            case 1:
                data[at:at] = source.choice(_PIECES)
            case 2:
                del data[at : at + source.randint(1, 20)]
            case 3:
                data[at:at] = data[at : at + source.randint(1, 60)]
            case _:
                del data[at:]
    return bytes((source.choice((0, 1, 2, 3, 4, 5, 7)), source.randrange(len(_CCSIDS)))) + bytes(data)


def check(data: bytes) -> None:
    """Raises nothing but what a layout may."""
    if len(data) < 2:
        return
    how, ccsid, payload = data[0], _CCSIDS[data[1] % len(_CCSIDS)], data[2:]
    layout = _layouts().get(how)
    if layout is None:
        _others(how, ccsid, payload)
        return
    try:
        found = layout.find(payload, ccsid)
    except Mismatch:
        return
    places = [(span.start, span.end) for span in found]
    assert places == sorted(places) and all(0 <= start <= end <= len(payload) for start, end in places)
    changed = layout.replaced(payload, [(span, None) for span in found], ccsid)
    kept = [payload[a:b] for (_, a), (b, _) in zip([(0, 0), *places], [*places, (len(payload),) * 2], strict=True)]
    at = 0
    for piece in kept:
        at = changed.index(piece, at) + len(piece)
    try:
        layout.replaced(payload, [(span, span.value) for span in found], ccsid)
    except Mismatch:
        assert any("\n" in span.value or "\r" in span.value or "\x85" in span.value for span in found)


def _others(how: int, ccsid: int, payload: bytes) -> None:
    if how == 4:
        try:
            body = body_of(payload, "MQHRF2", ccsid, 273)
        except Mismatch:
            return
        assert 0 <= body.at <= len(payload)
        return
    try:
        items = parse(payload.decode("latin-1"))
    except LayoutError:
        return
    assert all(item.offset >= 0 and item.offset + item.size <= items[0].size * items[0].occurs for item in items)
