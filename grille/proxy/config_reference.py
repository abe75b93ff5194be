"""docs/reference/configuration.md, written from the types of `grille.proxy.config`.

``python -m grille.proxy.config_reference`` writes the page anew; a test checks that it is current.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from grille.proxy.config import Config

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "configuration.md"

_HEAD = """# Configuration reference

Written from `grille/proxy/config.py` by `python -m grille.proxy.config_reference`; change it there.

One [TOML](https://toml.io) file. Relative paths are relative to the file. An unknown key is an error, and every error
names the key, the value and the fix. `grille check --config FILE` checks the file and everything it points at. Files
that hold secrets (private keys, passwords, tokenization keys) must belong to Grille's user or to root and must not be
readable by others: mode 0600, or 0640 if root owns them. A symbolic link may lead to one if nobody else can change the
link or a directory on the way. Times are in seconds.
"""


@functools.cache
def field_meanings(section: type[msgspec.Struct]) -> dict[str, str]:
    """The comment below each field of a configuration type, by field name."""
    body = next(node for node in ast.parse(inspect.getsource(section)).body if isinstance(node, ast.ClassDef)).body
    meanings: dict[str, str] = {}
    for statement, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = inspect.cleandoc(str(following.value.value))
            meanings[statement.target.id] = text
    return meanings


def page() -> str:
    """The whole page."""
    hints = get_type_hints(Config, include_extras=True)
    required = [field for field in msgspec.structs.fields(Config) if field.required]
    optional = [field for field in msgspec.structs.fields(Config) if not field.required]
    parts = [_HEAD]
    for field in [*required, *optional]:
        kind = hints[field.name]
        many = get_origin(kind) is tuple
        section = get_args(kind)[0] if many else kind
        title = f"[[{field.name}]]" if many else f"[{field.name}]"
        note = "At least one." if many and field.required else "Optional." if not field.required else ""
        about = " ".join([inspect.cleandoc(section.__doc__ or "").replace("``", "`"), note]).strip()
        parts.append(f"\n## `{title}`\n\n{about}\n\n{_table(section)}")
        for name, inner in _inner(section):
            about = inspect.cleandoc(inner.__doc__ or "").replace("``", "`")
            parts.append(f"\n### `{field.name}.{name}`\n\n{about}\n\n{_table(inner)}")
    return "".join(parts)


def _inner(section: type[msgspec.Struct]) -> list[tuple[str, type[msgspec.Struct]]]:
    """Keys of a section that are lists of tables."""
    kinds = get_type_hints(section, include_extras=True).items()
    inner = [(name, get_args(kind)[0]) for name, kind in kinds if get_origin(kind) is tuple]
    return [(name, kind) for name, kind in inner if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]


def _table(section: type[msgspec.Struct]) -> str:
    hints = get_type_hints(section, include_extras=True)
    meanings = field_meanings(section)
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(section):
        default = "required" if field.required else _default(field)
        meaning = " ".join(meanings.get(field.name, "").replace("``", "`").split()).replace("|", "\\|")
        lines.append(f"| `{field.name}` | {_type(hints[field.name])} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is None:
        return "none"
    value: Any = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, tuple):
        return "`[]`"
    return f"`{msgspec.json.encode(value).decode()}`"


def _type(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        base, *notes = get_args(kind)
        bounds = [f"{sign} {limit}" for note in notes if isinstance(note, Meta) for sign, limit in _bounds(note)]
        return f"{_type(base)} {', '.join(bounds)}".strip()
    if get_origin(kind) is Literal:
        return ", ".join(f"`{msgspec.json.encode(choice).decode()}`" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_type(get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "tables"
    if get_origin(kind) is dict:
        return f"table of {_type(get_args(kind)[1])}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_type(part) for part in get_args(kind) if part is not type(None))
    return {str: "text", int: "whole number", float: "number", bool: "true/false", Path: "path"}[kind]


def _bounds(note: Meta) -> list[tuple[str, float]]:
    pairs = (("≥", note.ge), (">", note.gt), ("≤", note.le), ("<", note.lt))
    return [(sign, limit) for sign, limit in pairs if limit is not None]


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
