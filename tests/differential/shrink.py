"""Makes a script that shows a difference as small as it can, part by part of its parse trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from postgast import parse
from postgast import pg_query_pb2 as pb

from grille.protocols.postgres import tree
from tests.differential.generator import Script
from tests.differential.wire import Statement

_ATTEMPTS: Final = 600
_DEPTH: Final = 40
_KEPT: Final = frozenset({"sort_clause", "agg_order", "order_clause", "limit_option"})
"""Without these the answer would no longer be determined."""


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
            yield Script([*wanted.statements[:index], *wanted.statements[index + 1 :]], wanted.number)
    if len(wanted.statements) == 3 and wanted.statements[1].sql.startswith(("SELECT", "WITH", "(")):
        yield Script([wanted.statements[1]], wanted.number)
    for index, statement in enumerate(wanted.statements):
        if not statement.judged:
            continue
        for sql in _smaller(statement.sql):
            changed = statement._replace(sql=sql, ordered=())
            yield Script([*wanted.statements[:index], changed, *wanted.statements[index + 1 :]], wanted.number)


def _smaller(sql: str) -> Iterator[str]:
    """Texts with one part of the tree left out, or replaced by a part of itself."""
    try:
        root = parse(sql).stmts[0].stmt
    except Exception:
        return
    seen = {sql}
    for path in _paths(root):
        copy = pb.Node()
        copy.CopyFrom(root)
        if not path(copy):
            continue
        try:
            text = tree.text_of(copy)
        except Exception:  # the deparser does not take every tree
            continue
        if text not in seen and len(text) < len(sql):
            seen.add(text)
            yield text


def _paths(root: Any) -> Iterator[Callable[[Any], bool]]:
    """Changes to a copy of the tree, from its root down."""
    queue: list[tuple[tuple[Any, ...], Any]] = [((), root)]
    while queue:
        where, message = queue.pop(0)
        if len(where) > _DEPTH:
            continue
        for descriptor, value in message.ListFields():
            name = descriptor.name
            if descriptor.message_type is None or name in _KEPT:
                continue
            if isinstance(value, pb.Node) or hasattr(value, "ListFields"):
                yield _cleared(where, name)
                if isinstance(value, pb.Node):
                    yield from _replaced((*where, name), value)
                queue.append(((*where, name), value))
            else:
                for index, part in enumerate(value):
                    yield _dropped(where, name, index)
                    if isinstance(part, pb.Node):
                        yield from _replaced((*where, (name, index)), part)
                    queue.append(((*where, (name, index)), part))


def _at(root: Any, where: tuple[Any, ...]) -> Any:
    for step in where:
        root = getattr(root, step) if isinstance(step, str) else getattr(root, step[0])[step[1]]
    return root


def _cleared(where: tuple[Any, ...], name: str) -> Callable[[Any], bool]:
    def change(root: Any) -> bool:
        _at(root, where).ClearField(name)
        return True

    return change


def _dropped(where: tuple[Any, ...], name: str, index: int) -> Callable[[Any], bool]:
    def change(root: Any) -> bool:
        del getattr(_at(root, where), name)[index]
        return True

    return change


def _replaced(where: tuple[Any, ...], node: Any) -> Iterator[Callable[[Any], bool]]:
    """`node` replaced by each Node directly below it."""
    below = [part for part in _nodes_below(node)]
    for part in below[:6]:
        replacement = pb.Node()
        replacement.CopyFrom(part)

        def change(root: Any, replacement: Any = replacement) -> bool:
            _at(root, where).CopyFrom(replacement)
            return True

        yield change


def _nodes_below(node: Any) -> Iterator[Any]:
    for _, message in node.ListFields():
        if not hasattr(message, "ListFields"):
            continue
        for descriptor, value in message.ListFields():
            if descriptor.message_type is None:
                continue
            if isinstance(value, pb.Node):
                yield value
            elif descriptor.message_type.name == "Node":
                yield from value
