"""What stands before the payload of a message: MQRFH2 headers, with the message's properties.

Source: IBM MQ's reference, "MQRFH2 - Rules and formatting header 2".
"""

from __future__ import annotations

import struct
from typing import Final
from xml.parsers import expat

import msgspec

from grille.protocols.mq.payload import Mismatch

RFH2: Final = "MQHRF2"
_FIXED: Final = 36
_MOST_HEADERS: Final = 8
_MOST_FOLDERS: Final = 64
_OTHERS: Final = frozenset({"MQCICS", "MQIMS", "MQIMSVS", "MQDEAD", "MQXMIT", "MQHMDE", "MQHDIST", "MQHREF", "MQHWIH",
                            "MQADMIN", "MQPCF", "MQEVENT", "MQTRIG", "MQHRF", "MQHSAP"})  # fmt: skip
"""Formats of headers and commands that are not read."""


class Body(msgspec.Struct, frozen=True):
    """Where the payload is, and what is said of it."""

    at: int
    """Bytes of headers before it."""
    format: str
    ccsid: int
    encoding: int
    properties: dict[str, str]
    """``folder.name`` to value, of all folders."""


def body_of(data: bytes, format: str, ccsid: int, encoding: int) -> Body:
    """The payload behind the headers, which say what follows them as the descriptor does of the first.

    Raises `Mismatch` for a header that is not read, or not whole.
    """
    at = 0
    properties: dict[str, str] = {}
    for _ in range(_MOST_HEADERS):
        if format in _OTHERS:
            raise Mismatch(f"a header of format {format} is not read")
        if format != RFH2:
            return Body(at, format, ccsid, encoding, properties)
        order = "<" if encoding & 0xF == 2 else ">"
        if len(data) - at < _FIXED:
            raise Mismatch(f"a header ends before byte {at + _FIXED}")
        mark, version, length, encoding, inner, name, _, names = struct.unpack_from(f"{order}4sIIIi8sII", data, at)
        if mark != b"RFH " or version != 2 or not _FIXED <= length <= len(data) - at or length % 4:
            raise Mismatch(f"no MQRFH2 at byte {at}")
        _folders(data[at + _FIXED : at + length], order, names, properties)
        ccsid = inner if inner > 0 else ccsid  # MQCCSI_INHERIT
        format = name.decode("ascii", "replace").rstrip(" \0")
        at += length
    raise Mismatch(f"more than {_MOST_HEADERS} headers")


def _folders(data: bytes, order: str, ccsid: int, properties: dict[str, str]) -> None:
    at = 0
    for _ in range(_MOST_FOLDERS):
        if at == len(data):
            return
        if len(data) - at < 4:
            break
        (length,) = struct.unpack_from(f"{order}I", data, at)
        if length > len(data) - at - 4:
            break
        if ccsid not in (1208, 819, 367):
            raise Mismatch(f"properties in CCSID {ccsid} are not read")
        _properties(data[at + 4 : at + 4 + length], "utf-8" if ccsid == 1208 else "iso-8859-1", properties)
        at += 4 + length
    raise Mismatch("the folders of an MQRFH2 do not end where it does")


def _properties(folder: bytes, encoding: str, properties: dict[str, str]) -> None:
    path: list[str] = []
    text: list[str] = []
    parser = expat.ParserCreate(encoding)

    def refuse(*_: object) -> None:
        raise Mismatch("a folder of properties has a document type")

    def start(name: str, _: dict[str, str]) -> None:
        path.append(name)
        text.clear()
        if len(path) > 16 or len(properties) > 1000:
            raise Mismatch("a folder has more properties than are read")

    def end(_: str) -> None:
        if len(path) > 1:
            properties.setdefault(".".join(path), "".join(text))
        text.clear()
        path.pop()

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    try:
        parser.Parse(folder.rstrip(b" \0"), True)
    except expat.ExpatError:
        raise Mismatch("a folder of properties is not well-formed") from None
