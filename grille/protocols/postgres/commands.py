"""Statements about the session, its transaction, its prepared statements and its cursors.

What a command says is read into a closed form here.  The statement inside PREPARE and DECLARE is cut out of the agent's
own text, and must parse to the very tree that stands inside, so that it is governed as if it had been sent alone.

PostgreSQL documentation: PREPARE, EXECUTE, DECLARE, FETCH, MOVE, CLOSE.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec
from postgast import parse, scan
from postgast import pg_query_pb2 as pb

from grille.controls import Refusal
from grille.protocols.postgres import tree
from grille.protocols.postgres.tree import Node, kind_of, same_tree

ALL: Final = 2**63 - 1
"""``FETCH ALL``, as the grammar gives it (FETCH_ALL)."""

_SPACE: Final = " \t\r\n\f\v"
_BINARY: Final = 0x1
_ASENSITIVE: Final = 0x10
"""The default, by another name."""
_HOLD: Final = 0x20
_CURSOR_OPTIONS: Final = 0x1 | 0x2 | 0x4 | 0x8 | _HOLD | 0x100
"""BINARY, SCROLL, NO SCROLL, INSENSITIVE, and the planner's own FAST_PLAN (nodes/parsenodes.h)."""


class SessionCommand(msgspec.Struct, frozen=True):
    """A statement about the session or its transaction, answered by the proxy."""

    kind: str
    """``begin``, ``commit``, ``rollback``, ``savepoint``, ``release``, ``rollback_to``, ``set``, ``set_transaction``,
    ``set_constraints``, ``reset``, ``reset_all``, ``show``, ``settings``, ``discard``, ``deallocate``, ``prepare``,
    ``execute``, ``declare``, ``fetch``, ``close``, ``close_all``, ``unlisten``, ``unlock_all``, ``empty``, ``copy``
    (`grille.protocols.postgres.copy.CopyInCommand`)."""
    name: str = ""
    """Setting, savepoint, statement or cursor name; lower case for settings."""
    value: str = ""
    local: bool = False
    """SET LOCAL"""
    text: str = ""
    """For transaction control: the canonical SQL to send upstream, built from a closed set of options.
    For PREPARE and DECLARE: the statement inside, in the agent's own text."""


class PrepareCommand(SessionCommand, frozen=True):
    """``PREPARE name (types) AS text``"""

    types: tuple[tuple[tuple[str, ...], bool], ...] = ()
    """For each declared parameter the parts of its type's name, and whether it is an array."""
    offset: int = 0
    """Characters of the agent's text before `text`."""


class ExecuteCommand(SessionCommand, frozen=True):
    """``EXECUTE name (arguments)``"""

    arguments: tuple[str | None, ...] = ()
    """Values in text format."""


class DeclareCommand(SessionCommand, frozen=True):
    """``DECLARE name options CURSOR FOR text``"""

    options: int = 0
    """As in the parse tree, nothing but `_CURSOR_OPTIONS`."""
    offset: int = 0
    """Characters of the agent's text before `text`."""

    @property
    def hold(self) -> bool:
        """It outlives the transaction."""
        return bool(self.options & _HOLD)

    @property
    def binary(self) -> bool:
        """FETCH in the simple protocol gives binary values."""
        return bool(self.options & _BINARY)


class FetchCommand(SessionCommand, frozen=True):
    """``FETCH direction count FROM name`` and MOVE."""

    direction: str = "FORWARD"
    """FORWARD, BACKWARD, ABSOLUTE or RELATIVE"""
    count: int = 1
    """`ALL` for every row."""
    move: bool = False

    def sql(self, cursor: str, most: int | None = None) -> str:
        """The command for the server's cursor ``cursor`` (a name of the proxy's own), for at most ``most`` rows."""
        direction, count = self.direction, self.count
        if direction in ("FORWARD", "BACKWARD") and most is not None:
            if -most > count:
                count = -most
            count = min(count, most)
        rows = "ALL" if count == ALL else str(count)
        return f"{'MOVE' if self.move else 'FETCH'} {direction} {rows} FROM {cursor}"


class SettingCall(msgspec.Struct, frozen=True):
    """One ``current_setting('name')`` or ``set_config('name', 'value', local)``."""

    column: str
    """Name of the result column."""
    name: str
    """In lower case."""
    value: str | None
    """None: only read."""
    local: bool = False
    missing_ok: bool = False


class SettingsCommand(SessionCommand, frozen=True):
    """A SELECT of nothing but `SettingCall`s: the proxy knows the session's settings, and the database does not."""

    calls: tuple[SettingCall, ...] = ()


def prepare(message: Any, raw: Any, text: str) -> PrepareCommand:
    """Read a PrepareStmt.  Raises `Refusal`."""
    types = []
    for node in message.argtypes:
        names = tuple(part.string.sval for part in node.type_name.names)
        types.append((names, bool(node.type_name.array_bounds)))
    inner, offset = _inside(raw, text, pb.AS, message.query)
    return PrepareCommand("prepare", message.name, text=inner, types=tuple(types), offset=offset)


def execute(message: Any) -> ExecuteCommand:
    """Read an ExecuteStmt.  Raises `Refusal` 0A000 for an argument that is not a constant."""
    return ExecuteCommand("execute", message.name, arguments=tuple(_argument(node) for node in message.params))


def declare(message: Any, raw: Any, text: str) -> DeclareCommand:
    """Read a DeclareCursorStmt.  Raises `Refusal`."""
    options = message.options & ~_ASENSITIVE
    if options & ~_CURSOR_OPTIONS:
        raise Refusal("ST-05", "This option of DECLARE CURSOR is not carried by this proxy.", sqlstate="0A000")
    inner, offset = _inside(raw, text, pb.FOR, message.query)
    return DeclareCommand("declare", message.portalname, text=inner, options=options, offset=offset)


def fetch(message: Any) -> FetchCommand:
    """Read a FetchStmt."""
    directions = {
        pb.FETCH_FORWARD: "FORWARD",
        pb.FETCH_BACKWARD: "BACKWARD",
        pb.FETCH_ABSOLUTE: "ABSOLUTE",
        pb.FETCH_RELATIVE: "RELATIVE",
    }
    return FetchCommand(
        "fetch",
        message.portalname,
        direction=directions[message.direction],
        count=message.how_many,
        move=message.ismove,
    )


def declared(name: str, options: int, sql: str) -> str:
    """``DECLARE name options CURSOR FOR sql``, built as a tree.  Raises `Refusal` ST-07 if it does not read back."""
    query = parse(sql).stmts[0].stmt
    statement = pb.Node(declare_cursor_stmt=pb.DeclareCursorStmt(portalname=name, options=options, query=query))
    try:
        text = tree.text_of(statement)
        same = tree.parses_back(statement, text)
    except Exception:  # the deparser's errors, and the limit on nesting of protobuf
        same = False
    if not same:
        raise Refusal(
            "ST-07", "The cursor's statement does not read back as it was checked.", sqlstate="0A000",
            hint="Write the statement in a simpler form.",
        )  # fmt: skip
    return text


def settings(node: Node) -> SettingsCommand | None:
    """A SELECT that only reads and changes settings, by constants; None for any other."""
    select = node.select_stmt
    if {field.name for field, _ in select.ListFields()} != {"target_list", "limit_option", "op"}:
        return None
    if select.op != pb.SETOP_NONE or not 1 <= len(select.target_list) <= 64:
        return None
    calls = [_setting_call(target.res_target) for target in select.target_list]
    found = tuple(call for call in calls if call is not None)
    return SettingsCommand("settings", calls=found) if len(found) == len(calls) else None


def _setting_call(target: Any) -> SettingCall | None:
    if kind_of(target.val) != "func_call" or target.indirection:
        return None
    call = target.val.func_call
    if {field.name for field, _ in call.ListFields()} - {"funcname", "args", "funcformat", "location"}:
        return None
    names = [part.string.sval for part in call.funcname]
    if len(names) == 2 and names[0] == "pg_catalog":
        del names[0]
    arguments = []
    for argument in call.args:
        if kind_of(argument) == "type_cast" and _type_name(argument.type_cast.type_name) == "bool":
            argument = argument.type_cast.arg
        if kind_of(argument) != "a_const" or argument.a_const.isnull:
            return None
        arguments.append(argument.a_const)
    kinds = [constant.WhichOneof("val") for constant in arguments]
    column = target.name or names[0]
    if names == ["current_setting"] and kinds in (["sval"], ["sval", "boolval"]):
        missing_ok = len(arguments) == 2 and arguments[1].boolval.boolval
        return SettingCall(column, arguments[0].sval.sval.lower(), None, missing_ok=missing_ok)
    if names == ["set_config"] and kinds in (["sval", "sval", "boolval"], ["sval", "sval", "sval"]):
        if kinds[2] == "sval" and arguments[2].sval.sval.lower() not in ("t", "f", "true", "false"):
            return None
        local = arguments[2].boolval.boolval or arguments[2].sval.sval.lower() in ("t", "true")
        return SettingCall(column, arguments[0].sval.sval.lower(), arguments[1].sval.sval, local=local)
    return None


def _inside(raw: Any, text: str, keyword: int, query: Node) -> tuple[str, int]:
    """The statement behind the first ``keyword`` of one command of ``text``, and where in ``text`` it begins."""
    data = text.encode()
    start = raw.stmt_location
    command = data[start : start + raw.stmt_len] if raw.stmt_len else data[start:]
    begin = next((token.end for token in scan(command.decode()).tokens if token.token == keyword), None)
    inner = command[begin:].decode() if begin is not None else ""
    again = parse(inner)
    if begin is None or len(again.stmts) != 1 or not same_tree(query, again.stmts[0].stmt):
        raise Refusal("ST-07", "The statement inside this command does not read alone as it does here.",
                      sqlstate="0A000", hint="Send the statement by itself.")  # fmt: skip
    stripped = inner.lstrip(_SPACE)
    return stripped.rstrip(_SPACE), len(data[: start + begin].decode()) + len(inner) - len(stripped)


_NUMBER: Final = re.compile(r"-?(?:[0-9]{1,1000}\.?[0-9]{0,1000}|\.[0-9]{1,1000})(?:[eE][+-]?[0-9]{1,3})?")
_CANONICAL: Final = {
    **dict.fromkeys(("int2", "int4", "int8"), re.compile(r"0|-?[1-9][0-9]{0,18}")),
    "numeric": re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?"),
    "bool": re.compile(r"true|false"),
    **dict.fromkeys(("text", "varchar"), re.compile(r"[\s\S]*")),
    "uuid": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "date": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "timestamp": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{0,5}[1-9])?"),
    "timestamptz": re.compile(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{0,5}[1-9])?[+-][0-9]{2}(?::[0-9]{2})?"
    ),
}
"""Texts that a cast to the type would write as they are, so that the cast may be left out."""


def _argument(node: Node) -> str | None:
    """A constant, its sign and its cast, as the text of a value."""
    kind = kind_of(node)
    if kind == "a_const":
        return _constant(node.a_const)
    if kind == "a_expr" and node.a_expr.kind == pb.AEXPR_OP and not node.a_expr.HasField("lexpr"):
        sign = [part.string.sval for part in node.a_expr.name]
        if sign == ["+"] and kind_of(node.a_expr.rexpr) == "a_const":
            constant = node.a_expr.rexpr.a_const
            if constant.WhichOneof("val") in ("ival", "fval"):
                return _constant(constant)
    if kind == "type_cast":
        value = _argument(node.type_cast.arg)
        form = _CANONICAL.get(_type_name(node.type_cast.type_name))
        if value is None or (form is not None and form.fullmatch(value)):
            return value
    raise Refusal(
        "ST-05",
        "An argument of EXECUTE that is not a plain constant is not carried by this proxy.",
        sqlstate="0A000",
        hint="Write each argument as a quoted constant, without a cast: it is read as its parameter's type.",
    )


def _constant(constant: Any) -> str | None:
    if constant.isnull:
        return None
    kind = constant.WhichOneof("val")
    if kind == "sval":
        return str(constant.sval.sval)
    if kind == "ival":
        return str(constant.ival.ival)
    if kind == "boolval":
        return "true" if constant.boolval.boolval else "false"
    if kind == "fval" and _NUMBER.fullmatch(constant.fval.fval):
        return f"{Decimal(constant.fval.fval):f}"
    raise Refusal(
        "ST-05", "This form of constant is not carried by this proxy.", sqlstate="0A000",
        hint="Write it as a decimal number or in quotes.",
    )  # fmt: skip


def _type_name(name: Any) -> str:
    """The name of a built-in type without modifiers; empty for any other."""
    parts: Sequence[str] = [part.string.sval for part in name.names]
    if name.typmods or name.array_bounds or name.setof or name.pct_type:
        return ""
    if len(parts) == 2 and parts[0] == "pg_catalog":
        return parts[1]
    return parts[0] if len(parts) == 1 else ""
