"""Message selectors: the SQL-92 conditions of Jakarta Messaging, section 3.8, over the properties of a message."""

from __future__ import annotations

import contextlib
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

from tests.mq.wire import Descriptor

Value: TypeAlias = str | int | float | bool | None
Condition: TypeAlias = Callable[[Mapping[str, Value]], bool | None]
"""None where SQL says unknown."""
Term: TypeAlias = Callable[[Mapping[str, Value]], Value]

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*'|\"[^\"]*\")|(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)"
    r"|(?P<name>[A-Za-z_$][\w.$]*)|(?P<sign><>|<=|>=|[=<>(),+-]))"
)
_KEYWORDS: Final = frozenset("AND OR NOT IN LIKE ESCAPE BETWEEN IS NULL TRUE FALSE".split())
_HEADER: Final = 36
"""Bytes of MQRFH2 in front of its folders."""
_NUMBERS: Final = {"i1": int, "i2": int, "i4": int, "i8": int, "int": int, "r4": float, "r8": float}


class SelectorError(Exception):
    """The text is no selector."""


def parse(text: str) -> Condition:
    """The condition that a selector states.  Raises `SelectorError`."""
    parser = _Parser(text)
    condition = parser.either()
    if parser.next != "":
        raise SelectorError
    return condition


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                raise SelectorError
            at, kind, value = found.end(), found.lastgroup, found[found.lastgroup]
            self._tokens.append(("word", value.upper()) if value.upper() in _KEYWORDS else (kind, value))
        self._tokens.append(("end", ""))

    @property
    def next(self) -> str:
        """The keyword or sign that comes next, if it is one."""
        kind, value = self._tokens[0]
        return value if kind in ("word", "sign", "end") else "?"

    def _take(self, *wanted: str) -> bool:
        if self.next in wanted:
            self._tokens.pop(0)
            return True
        return False

    def _need(self, wanted: str) -> None:
        if not self._take(wanted):
            raise SelectorError

    def either(self) -> Condition:
        found = self._both()
        while self._take("OR"):
            found = _or(found, self._both())
        return found

    def _both(self) -> Condition:
        found = self._not()
        while self._take("AND"):
            found = _and(found, self._not())
        return found

    def _not(self) -> Condition:
        if self._take("NOT"):
            return _negated(self._not())
        if self._take("("):
            found = self.either()
            self._need(")")
            return found
        return self._comparison()

    def _comparison(self) -> Condition:
        left = self._term()
        if self.next in ("=", "<>", "<", ">", "<=", ">="):
            sign = self.next
            self._take(sign)
            return _compared(sign, left, self._term())
        if self._take("IS"):
            negated = self._take("NOT")
            self._need("NULL")
            return lambda row: (left(row) is None) is not negated
        negated = self._take("NOT")
        found: Condition
        if self._take("IN"):
            self._need("(")
            found = _compared("=", left, self._term())
            while self._take(","):
                found = _or(found, _compared("=", left, self._term()))
            self._need(")")
        elif self._take("BETWEEN"):
            low = self._term()
            self._need("AND")
            found = _and(_compared(">=", left, low), _compared("<=", left, self._term()))
        elif self._take("LIKE"):
            pattern, escape = self._term()({}), self._term()({}) if self._take("ESCAPE") else None
            found = _like(left, str(pattern), str(escape) if escape is not None else "")
        else:
            # A property that is a boolean is a condition of its own.
            return lambda row: value if isinstance(value := left(row), bool) else None
        return _negated(found) if negated else found

    def _term(self) -> Term:
        sign = -1 if self._take("-") else 1
        self._take("+")
        kind, value = self._tokens.pop(0)
        constant: Value
        if kind == "number":
            constant = sign * (float(value) if re.search("[.eE]", value) else int(value))
        elif kind == "text" and sign == 1:
            constant = value[1:-1].replace("''", "'")
        elif kind == "word" and value in ("TRUE", "FALSE"):
            constant = value == "TRUE"
        elif kind == "name" and sign == 1:
            return lambda row: row.get(value)
        else:
            raise SelectorError
        return lambda _row: constant


def _negated(one: Condition) -> Condition:
    return lambda row: None if (value := one(row)) is None else not value


def _and(one: Condition, other: Condition) -> Condition:
    def both(row: Mapping[str, Value]) -> bool | None:
        values = one(row), other(row)
        return False if False in values else None if None in values else True

    return both


def _or(one: Condition, other: Condition) -> Condition:
    return _negated(_and(_negated(one), _negated(other)))


def _compared(sign: str, left: Term, right: Term) -> Condition:
    def compared(row: Mapping[str, Value]) -> bool | None:
        one, other = left(row), right(row)
        if one is None or other is None:
            return None
        # Different types are never equal, and have no order; a boolean is not a number.
        if type(one) is not type(other) and (isinstance(one, str | bool) or isinstance(other, str | bool)):
            return False
        if sign in ("=", "<>"):
            return (one == other) is (sign == "=")
        if isinstance(one, str) or isinstance(other, str):
            return False
        return {"<": one < other, ">": one > other, "<=": one <= other, ">=": one >= other}[sign]

    return compared


def _like(left: Term, pattern: str, escape: str) -> Condition:
    expression, letters = "", iter(pattern)
    for letter in letters:
        if letter == escape:
            expression += re.escape(next(letters, ""))
        else:
            expression += {"%": ".*", "_": "."}.get(letter, re.escape(letter))
    compiled = re.compile(expression, re.DOTALL)
    return lambda row: None if (value := left(row)) is None else compiled.fullmatch(str(value)) is not None


def properties(descriptor: Descriptor, data: bytes) -> dict[str, Value]:
    """What a selector can name: fields of MQMD, and the folders of an MQRFH2 in front of the message."""
    found: dict[str, Value] = {
        "JMSPriority": descriptor.priority,
        "JMSDeliveryMode": "PERSISTENT" if descriptor.persistence == 1 else "NON_PERSISTENT",
        "JMSMessageID": "ID:" + descriptor.msg_id.hex(),
        "JMSCorrelationID": "ID:" + descriptor.correl_id.hex(),
        "Root.MQMD.Priority": descriptor.priority,
        "Root.MQMD.Persistence": descriptor.persistence,
        "Root.MQMD.MsgId": "0x" + descriptor.msg_id.hex().upper(),
        "Root.MQMD.CorrelId": "0x" + descriptor.correl_id.hex().upper(),
    }
    if descriptor.format != b"MQHRF2  " or len(data) < _HEADER or data[:4] != b"RFH ":
        return found
    order = "<i" if descriptor.encoding & 2 else ">i"
    (end,) = struct.unpack_from(order, data, 8)
    at = _HEADER
    while at + 4 <= min(end, len(data)):
        (length,) = struct.unpack_from(order, data, at)
        text = data[at + 4 : at + 4 + length].decode(errors="replace").strip(" \0")
        at += 4 + max(length, 0)
        # A folder may name the type of a null value with a prefix that it does not declare.
        with contextlib.suppress(ET.ParseError, ValueError):
            found.update(_folder(ET.fromstring(re.sub(r"\bxsi:nil=", "nil=", text))))
    for name, place in (("JMSType", "mcd.Type"), ("JMSCorrelationID", "jms.Cid"), ("JMSTimestamp", "jms.Tms")):
        if place in found:
            value = str(found[place])
            found[name] = int(value) if name == "JMSTimestamp" and value.isdecimal() else value
    return found


def _folder(folder: ET.Element) -> Iterator[tuple[str, Value]]:
    prefix = "" if folder.tag == "usr" else f"{folder.tag}."
    for each in folder:
        value, kind = each.text or "", each.get("dt", "string")
        if each.get("nil") != "true":
            typed = _NUMBERS[kind](value) if kind in _NUMBERS else value == "1" if kind == "boolean" else value
            yield prefix + each.tag, typed
