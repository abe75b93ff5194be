"""Makes a script that shows a difference as small as it can, part by part of its parse trees."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, TextIO

from postgast import parse
from postgast import pg_query_pb2 as pb

from grille.protocols.postgres import tree
from tests.differential.generator import Script

_ATTEMPTS: Final = 600
_DEPTH: Final = 60

# Only what leaves a whole tree, for the deparser.  Without an ORDER BY the answer would no longer be determined, so it
# stays.
_OPTIONAL: Final = frozenset(
    "where_clause having_clause limit_offset limit_count with_clause group_clause agg_filter returning_clause "
    "on_conflict_clause distinct_clause locking_clause over lateral".split()
)
_LISTS: Final = frozenset(
    "target_list from_clause group_clause values_lists ctes exprs items using_clause cols".split()
)
_EXPRESSIONS: Final = frozenset(
    "bool_expr a_expr func_call coalesce_expr case_expr type_cast null_test min_max_expr sub_link column_ref a_const "
    "a_indirection a_array_expr boolean_test param_ref".split()
)


def shrink(wanted: Script, shows: Callable[[Script], bool]) -> Script:
    """The smallest script found for which ``shows`` holds; `wanted` itself if nothing can be left out."""
    if not shows(wanted):
        return wanted  # it shows only among others, or not every time
    attempts = 0
    best = wanted
    smaller = True
    while smaller and attempts < _ATTEMPTS:
        smaller = False
        for trial in _trials(best):
            attempts += 1
            if attempts >= _ATTEMPTS:
                break
            if shows(trial):
                best, smaller = trial, True
                break
    return best


def _trials(wanted: Script) -> Iterator[Script]:
    """Scripts with one part less, larger parts first."""
    for index, statement in enumerate(wanted.statements):
        if statement.judged and sum(each.judged for each in wanted.statements) > 1:
            yield replace(wanted, statements=[*wanted.statements[:index], *wanted.statements[index + 1 :]])
    if len(wanted.statements) == 3 and wanted.statements[1].sql.startswith(("SELECT", "WITH", "(")):
        yield replace(wanted, statements=[wanted.statements[1]])
    for index, statement in enumerate(wanted.statements):
        if not statement.judged or statement.copy:
            continue
        for sql in _smaller(statement.sql):
            changed = statement._replace(sql=sql, ordered=())
            yield replace(wanted, statements=[*wanted.statements[:index], changed, *wanted.statements[index + 1 :]])


def _smaller(sql: str) -> list[str]:
    """Texts with one part of the tree left out, or replaced by a part of itself.

    The deparser is C, and ends its process on some trees that no text has: it runs in a child.
    """
    found: list[str] = []
    tried = 0
    while True:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                with os.fdopen(writer, "w") as out:
                    _write_smaller(sql, tried, out)
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            for line in lines:
                tried, text = json.loads(line)
                if text is not None:
                    found.append(text)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return list(dict.fromkeys(found))


def _write_smaller(sql: str, skipped: int, out: TextIO) -> None:
    """Write ``[number, text or null]`` for each change, a line before it is tried."""
    root = parse(sql).stmts[0].stmt
    for number, change in enumerate(_paths(root), 1):
        if number <= skipped:
            continue
        copy = pb.Node()
        copy.CopyFrom(root)
        change(copy)
        print(json.dumps([number, None]), file=out, flush=True)
        try:
            text = tree.text_of(copy)
        except Exception:  # the deparser does not take every tree
            continue
        if len(text) < len(sql):
            print(json.dumps([number, text]), file=out, flush=True)


def _paths(root: Any) -> Iterator[Callable[[Any], None]]:
    """Changes to a copy of the tree, from its root down."""
    queue: list[tuple[_Path, Any]] = [((), root)]
    while queue:
        where, message = queue.pop(0)
        if len(where) > _DEPTH:
            continue
        kind = message.DESCRIPTOR.name
        if kind == "SelectStmt" and message.op > pb.SETOP_NONE:
            yield _replaced(where, message.larg)
            yield _replaced(where, message.rarg)
        if kind == "Node":
            for part in _instead(message):
                yield _replaced(where, part)
        for descriptor, value in message.ListFields():
            name = descriptor.name
            if name in _OPTIONAL and not (name == "limit_count" and message.sort_clause):
                yield _cleared(where, name)
            if descriptor.message_type is None:
                continue
            if not descriptor.is_repeated:
                queue.append(((*where, name), value))
                continue
            least = 3 if kind == "BoolExpr" else 2
            for index, part in enumerate(value):
                if len(value) >= least and (
                    name in _LISTS or (name == "args" and kind in ("BoolExpr", "CaseExpr", "CoalesceExpr"))
                ):
                    yield _dropped(where, name, index)
                queue.append(((*where, (name, index)), part))


_Path = tuple[Any, ...]


def _at(root: Any, where: _Path) -> Any:
    for step in where:
        root = getattr(root, step) if isinstance(step, str) else getattr(root, step[0])[step[1]]
    return root


def _cleared(where: _Path, name: str) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        _at(root, where).ClearField(name)

    return change


def _dropped(where: _Path, name: str, index: int) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        del getattr(_at(root, where), name)[index]

    return change


def _replaced(where: _Path, part: Any) -> Callable[[Any], None]:
    replacement = type(part)()
    replacement.CopyFrom(part)

    def change(root: Any) -> None:
        _at(root, where).CopyFrom(replacement)

    return change


def _instead(node: Any) -> Iterator[Any]:
    """What can stand in the place of `node`: a side of a join, an operand of an expression."""
    kind = tree.kind_of(node)
    if kind == "join_expr":
        yield node.join_expr.larg
        yield node.join_expr.rarg
    if kind not in _EXPRESSIONS or kind in ("a_const", "column_ref", "param_ref"):
        return
    for descriptor, value in getattr(node, kind).ListFields():
        if descriptor.message_type is None or descriptor.name in ("subselect", "type_name", "agg_filter", "over"):
            continue
        for part in value if descriptor.is_repeated else (value,):
            if part.DESCRIPTOR.name == "Node" and tree.kind_of(part) in _EXPRESSIONS:
                yield part
