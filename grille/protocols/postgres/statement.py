"""SQL text to understood statements: parsing under limits, session commands, governed statements.

A governed statement (SELECT, INSERT, UPDATE, DELETE) goes on to `grille.protocols.postgres.analysis`.  A session
command is answered by the proxy.  Everything else is refused by kind (ST-05).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from postgast import PgQueryError, deparse, normalize, parse, scan
from postgast import pg_query_pb2 as pb

from grille.controls import Refusal
from grille.protocols.postgres import commands, copy
from grille.protocols.postgres.analysis import Analysis, Analyzer, Sensitive
from grille.protocols.postgres.commands import SessionCommand
from grille.protocols.postgres.copy import CopyOut
from grille.protocols.postgres.lexer import Lexed
from grille.protocols.postgres.purity import Purity
from grille.protocols.postgres.resolve import Resolver
from grille.protocols.postgres.tree import Node, kind_of, parsed, same_tree, walk

MAX_NESTING: Final = 100
"""Parentheses and brackets open at once; beyond it the text is not given to the parser."""

MAX_STATEMENTS: Final = 64
"""In one text: each is analyzed, decided and recorded on its own, and each event shows the whole text."""

MAX_OPERATORS: Final = 1000
"""Operator characters in one run; PostgreSQL's scanner needs quadratic time for nested comments without a space."""

_OPERATOR_RUN: Final = re.compile(r"[-~!@#^&|`?+*/%<>=]{" + str(MAX_OPERATORS + 1) + "}")

_SHALLOW: Final = 8192
"""Below it no text can nest deeply enough to overflow a stack of 8 MB (the parser takes some 400 bytes a level)."""
_MAX_CHAIN: Final = 4000
_OPENING: Final = frozenset({ord("("), ord("[")})
_CLOSING: Final = frozenset({ord(")"), ord("]")})
_RESETS: Final = frozenset({ord(","), ord(";"), pb.AND, pb.OR, pb.WHEN, pb.THEN, pb.ELSE})
_NESTING: Final = frozenset({pb.UNION, pb.INTERSECT, pb.EXCEPT, pb.JOIN})

GOVERNED: Final = frozenset({"select_stmt", "insert_stmt", "update_stmt", "delete_stmt"})

COMPARISONS: Final = frozenset({"=", "<>", "!=", "<", "<=", ">", ">="})

ARITHMETIC: Final = frozenset({"+", "-", "*"})

_REFUSED: Final = {
    "copy_stmt": "COPY",
    "listen_stmt": "LISTEN",
    "notify_stmt": "NOTIFY",
    "merge_stmt": "MERGE",
    "explain_stmt": "EXPLAIN",
    "lock_stmt": "LOCK",
    "call_stmt": "CALL",
    "do_stmt": "DO",
    "truncate_stmt": "TRUNCATE",
}
_HINTS: Final = {
    "copy_stmt": "Use COPY ... FROM STDIN to write, and COPY ... TO STDOUT to read.",
    "explain_stmt": 'A policy author runs: grille explain --config FILE --as SPIFFE_ID "SQL".',
    **dict.fromkeys(
        ("listen_stmt", "notify_stmt"),
        "A notification says to other sessions what no policy has seen; read the table again instead.",
    ),
    "merge_stmt": "Use INSERT, UPDATE or DELETE.",
}


class ParsedStatement(msgspec.Struct, frozen=True):
    """One statement of a text: a session command, or a tree to analyze."""

    command: SessionCommand | None
    node: Any
    """The statement's Node if `command` is None; used up by one analysis."""
    copy: CopyOut | None = None
    """The node is the query of a COPY TO STDOUT, whose rows are written so."""

    @property
    def action(self) -> str:
        """``select``, ``insert``, ``update``, ``delete`` or the session command's kind."""
        return self.command.kind if self.command is not None else kind_of(self.node).removesuffix("_stmt")


def check_size(text: str, limit: int) -> None:
    """Refuse a text that is too long, too deep or not one C string (ST-06, ST-01)."""
    if "\0" in text:
        raise Refusal("ST-01", "The statement contains a NUL character.", sqlstate="22021")
    if len(text) > limit:
        raise Refusal(
            "ST-06",
            f"The statement is longer than the limit of {limit} characters.",
            sqlstate="54000",
            hint="Pass long values as parameters, or split the statement.",
        )
    if any("/*" in run.group() for run in _OPERATOR_RUN.finditer(text)):
        raise too_deep()
    if text.count("(") + text.count("[") > MAX_NESTING:
        depth = 0
        for character in text:
            if character in "([":
                depth += 1
                if depth > MAX_NESTING:
                    raise too_deep()
            elif character in ")]":
                depth = max(depth - 1, 0)


def too_deep() -> Refusal:
    """The refusal for a statement that nests too deeply."""
    return Refusal(
        "ST-06",
        "The statement nests too deeply.",
        sqlstate="54001",
        hint="Split it, or join a temporary result with WITH.",
    )


def parse_text(text: str, *, limit: int) -> list[ParsedStatement]:
    """The statements of `text`; an empty text is one ``empty`` command.  Raises `Refusal`."""
    statements = raw_statements(text, limit=limit)
    if not statements:
        return [ParsedStatement(SessionCommand("empty"), None)]
    return [_governed(raw, text) for raw in statements]


def _governed(raw: Any, text: str) -> ParsedStatement:
    """What one statement of a governed session is.  Raises `Refusal`."""
    node = raw.stmt
    if kind_of(node) != "copy_stmt" or node.copy_stmt.filename or node.copy_stmt.is_program:
        return classify(raw, text)
    if node.copy_stmt.is_from:
        return ParsedStatement(copy.into(node.copy_stmt), None)
    query, options = copy.out(node.copy_stmt)
    return ParsedStatement(None, query, options)


def raw_statements(text: str, *, limit: int) -> list[Any]:
    """The RawStmts of `text`.  Raises `Refusal`."""
    check_size(text, limit)
    try:
        result = _parse(text)
    except PgQueryError as error:
        position = getattr(error, "cursorpos", None) or None
        raise Refusal(
            "ST-01",
            "PostgreSQL's grammar does not accept this statement.",
            sqlstate="42601",
            position=position,
            hint="Check the syntax near the reported position.",
        ) from None
    except RecursionError:
        raise too_deep() from None
    except Exception as error:
        if type(error).__name__ == "DecodeError":
            raise too_deep() from None
        raise
    if len(result.stmts) > MAX_STATEMENTS:
        raise Refusal(
            "ST-06",
            f"A text holds at most {MAX_STATEMENTS} statements.",
            sqlstate="54000",
            hint="Send it in parts, or insert several rows with one INSERT.",
        )
    return list(result.stmts)


def _parse(text: str) -> Any:
    """Parse `text`, unless its tree could be so deep that writing it would overflow the C stack."""
    if len(text) > _SHALLOW and _deep(text):
        raise too_deep()
    return parsed(text)


def _deep(text: str) -> bool:
    """True if an operator chain such as ``1+1+1+...`` is too long: its tree is as deep as the chain.

    Counts tokens since the last comma or AND, OR, WHEN, THEN, ELSE, in every open parenthesis together.  Set operations
    and joins nest across those, so they are counted alone.
    """
    counts = [0]
    total = nesting = 0
    for token in scan(text).tokens:
        kind = token.token
        if kind in _RESETS:
            total -= counts[-1]
            counts[-1] = 0
        elif kind in _OPENING:
            counts.append(0)
        elif kind in _CLOSING:
            if len(counts) > 1:
                total -= counts.pop()
        else:
            nesting += kind in _NESTING
            counts[-1] += 1
            total += 1
            if total > _MAX_CHAIN or nesting > _MAX_CHAIN:
                return True
    return False


def redacted(text: str) -> str:
    """`text` with every constant and comment removed; empty where that cannot be promised."""
    try:
        check_size(text, len(text))
        kinds = {kind_of(raw.stmt) for raw in _parse(text).stmts}
        if not kinds or not kinds <= GOVERNED:
            return ""
        shown = str(normalize(text))
        # Only a text that is written back from its tree has no comment in it.
        return str(deparse(parse(shown))) if "--" in shown or "/*" in shown else shown
    except Exception:
        return ""


def analyze(
    statement: ParsedStatement,
    resolver: Resolver,
    purity: Purity,
    sensitive: Mapping[str, Sensitive],
    parameter_types: Sequence[int],
) -> Analysis:
    """Understand one governed statement.  Raises `Refusal` with ``operation`` set."""
    analyzer = Analyzer(resolver, purity, sensitive, parameter_types, database=resolver.catalog.database)
    try:
        return analyzer.analyze(statement.node)
    except RecursionError:
        raise too_deep() from None


def classify(raw: Any, text: str) -> ParsedStatement:
    """What one statement of `text` is.  Raises `Refusal` ST-05 for one that is not carried."""
    node = raw.stmt
    kind = kind_of(node)
    if kind in GOVERNED:
        if _is_unlock_all(node):
            return ParsedStatement(SessionCommand("unlock_all"), None)
        settings = commands.settings(node) if kind == "select_stmt" else None
        return ParsedStatement(settings, None) if settings is not None else ParsedStatement(None, node)
    message = getattr(node, kind)
    command: SessionCommand | None = None
    if kind == "transaction_stmt":
        command = _transaction(message)
    elif kind == "variable_set_stmt":
        command = _set(message)
    elif kind == "variable_show_stmt":
        command = SessionCommand("show", message.name.lower())
    elif kind == "discard_stmt":
        names = {
            pb.DISCARD_ALL: "all",
            pb.DISCARD_PLANS: "plans",
            pb.DISCARD_SEQUENCES: "sequences",
            pb.DISCARD_TEMP: "temp",
        }
        command = SessionCommand("discard", names[message.target])
    elif kind == "deallocate_stmt":
        command = SessionCommand("deallocate", "" if message.isall else message.name)
    elif kind == "close_portal_stmt":
        command = SessionCommand("close", message.portalname) if message.portalname else SessionCommand("close_all")
    elif kind == "prepare_stmt":
        command = commands.prepare(message, raw, text)
    elif kind == "execute_stmt":
        command = commands.execute(message)
    elif kind == "declare_cursor_stmt":
        command = commands.declare(message, raw, text)
    elif kind == "fetch_stmt":
        command = commands.fetch(message)
    elif kind == "constraints_set_stmt":
        command = _set_constraints(message)
    elif kind == "unlisten_stmt":
        command = SessionCommand("unlisten")
    if command is None:
        raise _refused(kind, message)
    return ParsedStatement(command, None)


def _refused(kind: str, message: Any) -> Refusal:
    """Why a statement of this kind is not carried."""
    words = _REFUSED.get(kind, kind.removesuffix("_stmt").replace("_", " ").upper())
    sentence = f"{words} is not carried by this proxy."
    hint = _HINTS.get(kind)
    if kind == "copy_stmt" and (message.filename or message.is_program):
        what = "program" if message.is_program else "file"
        sentence = f"COPY to or from a {what} happens on the database's machine, and is not carried by this proxy."
    elif kind in ("create_stmt", "create_table_as_stmt"):
        var = message.relation if kind == "create_stmt" else message.into.rel
        if var.relpersistence == "t":
            sentence = "A temporary table is not carried by this proxy: nothing says what may be read from it."
            hint = "Use WITH, or keep the rows in your program."
    return Refusal("ST-05", sentence, sqlstate="0A000" if kind in _REFUSED else "42501", hint=hint)


def _is_unlock_all(node: Node) -> bool:
    """asyncpg's reset: ``SELECT pg_advisory_unlock_all()``; no session lock can exist here."""
    if kind_of(node) != "select_stmt" or len(node.select_stmt.target_list) != 1:
        return False
    value = node.select_stmt.target_list[0].res_target.val
    if kind_of(value) != "func_call" or node.select_stmt.from_clause:
        return False
    names = [part.string.sval for part in value.func_call.funcname]
    return names in (["pg_advisory_unlock_all"], ["pg_catalog", "pg_advisory_unlock_all"])


_TWO_PHASE: Final = "Two-phase commit is not carried by this proxy: a prepared transaction outlives its session."
_NOT_ALONE: Final = "AND CHAIN is not carried by this proxy: send BEGIN by itself."
_TRANSACTION_OPTIONS: Final = {"transaction_isolation", "transaction_read_only", "transaction_deferrable"}
_ISOLATION: Final = {"read uncommitted", "read committed", "repeatable read", "serializable"}


def _options(options: Sequence[Node]) -> str:
    """The options of BEGIN or SET TRANSACTION, in canonical text."""
    words = []
    for node in options:
        name = node.def_elem.defname
        constant = node.def_elem.arg.a_const
        if name == "transaction_isolation" and constant.sval.sval in _ISOLATION:
            words.append(f"ISOLATION LEVEL {constant.sval.sval.upper()}")
        elif name == "transaction_read_only":
            words.append("READ ONLY" if constant.ival.ival else "READ WRITE")
        elif name == "transaction_deferrable":
            words.append("DEFERRABLE" if constant.ival.ival else "NOT DEFERRABLE")
        else:
            raise Refusal("ST-05", "This transaction option is not carried by this proxy.", sqlstate="0A000")
    return ", ".join(words)


def _transaction(message: Any) -> SessionCommand:
    kind = message.kind
    if message.chain or message.gid:
        raise Refusal("ST-05", _NOT_ALONE if message.chain else _TWO_PHASE, sqlstate="0A000")
    name = message.savepoint_name
    quoted = '"' + name.replace('"', '""') + '"'
    if kind in (pb.TRANS_STMT_BEGIN, pb.TRANS_STMT_START):
        options = _options(message.options)
        return SessionCommand("begin", text=f"BEGIN {options}".strip())
    simple = {
        pb.TRANS_STMT_COMMIT: ("commit", "COMMIT"),
        pb.TRANS_STMT_ROLLBACK: ("rollback", "ROLLBACK"),
        pb.TRANS_STMT_SAVEPOINT: ("savepoint", f"SAVEPOINT {quoted}"),
        pb.TRANS_STMT_RELEASE: ("release", f"RELEASE SAVEPOINT {quoted}"),
        pb.TRANS_STMT_ROLLBACK_TO: ("rollback_to", f"ROLLBACK TO SAVEPOINT {quoted}"),
    }
    if kind not in simple:
        raise Refusal("ST-05", _TWO_PHASE, sqlstate="0A000")
    command, text = simple[kind]
    return SessionCommand(command, name, text=text)


def _set_constraints(message: Any) -> SessionCommand:
    if message.constraints:
        raise Refusal(
            "ST-05",
            "SET CONSTRAINTS of named constraints is not carried by this proxy.",
            sqlstate="0A000",
            hint="Use SET CONSTRAINTS ALL.",
        )
    when = "DEFERRED" if message.deferred else "IMMEDIATE"
    return SessionCommand("set_constraints", text=f"SET CONSTRAINTS ALL {when}")


def _set(message: Any) -> SessionCommand:
    name = message.name.lower()
    if message.kind == pb.VAR_SET_MULTI:
        if name not in ("transaction", "session characteristics"):
            raise Refusal("ST-05", "This form of SET is not carried by this proxy.", sqlstate="0A000")
        return SessionCommand(
            "set_transaction",
            name,
            text=f"SET {name.upper()} "
            f"{'AS TRANSACTION ' if name.startswith('session') else ''}{_options(message.args)}",
        )
    if message.kind == pb.VAR_RESET_ALL:
        return SessionCommand("reset_all")
    if message.kind in (pb.VAR_RESET, pb.VAR_SET_DEFAULT):
        return SessionCommand("reset", name, local=message.is_local)
    if message.kind != pb.VAR_SET_VALUE:
        raise Refusal("ST-05", "This form of SET is not carried by this proxy.", sqlstate="0A000")
    values = []
    for node in message.args:
        if kind_of(node) != "a_const":
            raise Refusal("ST-05", f'This value of "{name}" is not carried by this proxy.', sqlstate="0A000")
        values.append(_constant_text(node.a_const))
    return SessionCommand("set", name, ", ".join(values), local=message.is_local)


def _constant_text(constant: Any) -> str:
    kind = constant.WhichOneof("val")
    if kind == "sval":
        return str(constant.sval.sval)
    if kind == "ival":
        return str(constant.ival.ival)
    if kind == "fval":
        return str(constant.fval.fval)
    if kind == "boolval":
        return "on" if constant.boolval.boolval else "off"
    return ""


# Templates


def template_positions(text: str, lexed: Lexed) -> tuple[frozenset[int], frozenset[int]]:
    """Which constants of `lexed` may become parameters, and which of these together with the minus before them
    (docs/decisions/0003-plans-from-templates.md).

    A constant may if it is the direct operand of a comparison, BETWEEN or IN with a bare column opposite, or a direct
    value in INSERT ... VALUES or UPDATE SET, or there a number beside + - * among bare columns and numbers; all others
    stay in the template.
    """
    by_offset = {constant.offset: index for index, constant in enumerate(lexed.constants)}
    signs = lexed.signs(text)
    tree = parsed(text)
    selects = (message for message in walk(tree) if message.DESCRIPTOR.name == "SelectStmt")
    repeated = {place for select in selects for place in _repeated(select)}
    wanted: set[int] = set()
    signed: set[int] = set()

    def offer(node: Node) -> None:
        if kind_of(node) != "a_const" or node.a_const.isnull:
            return
        if node.a_const.WhichOneof("val") not in ("ival", "fval", "sval"):
            return
        location = node.a_const.location
        if location in repeated:
            return
        index = by_offset.get(location)
        if index is None:
            index = signs.get(location)  # the grammar has made the minus a part of the number
            if index is None or lexed.constants[index].kind == "EDGE":
                return
            signed.add(index)
        if lexed.constants[index].kind != "EDGE":
            wanted.add(index)

    for message in walk(tree):
        name = message.DESCRIPTOR.name
        if name == "A_Expr":
            _offer_comparison(message, offer)
        elif name == "InsertStmt" and message.HasField("select_stmt"):
            for row in message.select_stmt.select_stmt.values_lists:
                for cell in row.list.items:
                    offer(cell)
        elif name == "UpdateStmt":
            for target in message.target_list:
                offer(target.res_target.val)
                _offer_arithmetic(target.res_target.val, offer)
    return frozenset(wanted), frozenset(signed)


def _repeated(select: Any) -> Iterator[int]:
    """Where the constants of expressions stand that PostgreSQL compares with each other.

    It compares those of GROUP BY with the select list, HAVING and ORDER BY, and those of DISTINCT with ORDER BY; two
    parameters are never the same expression.
    """
    keys = [*select.group_clause, *(key for key in select.distinct_clause if kind_of(key))]
    if select.distinct_clause:
        keys += [key.sort_by.node for key in select.sort_clause]
    if not any(_computed(key, select.target_list) for key in keys):
        return
    for clause in (keys, select.target_list, [select.having_clause], select.sort_clause, select.window_clause):
        for node in clause:
            yield from (part.location for part in walk(node) if part.DESCRIPTOR.name == "A_Const")


def _computed(key: Node, targets: Sequence[Node]) -> bool:
    """True if a key of GROUP BY or ORDER BY is more than a column, or names a place of the list that is more."""
    if kind_of(key) == "a_const" and key.a_const.WhichOneof("val") == "ival":
        number = key.a_const.ival.ival
        if not 1 <= number <= len(targets):
            return False
        key = targets[number - 1].res_target.val
    return kind_of(key) != "column_ref"


def _offer_arithmetic(node: Node, offer: Any) -> None:
    """Offer the numbers of a value that is computed from bare columns and numbers with + - * only.

    A number is a constant of its class's type wherever it stands, so the operators that PostgreSQL resolves are those
    for a parameter of this type.  What is computed from numbers alone stays, because PostgreSQL computes it when it
    plans: its overflow is an error even if no row is found.
    """
    order = [node]
    for one in order:  # grows: parents before what is below them
        if kind_of(one) == "a_expr":
            operation = one.a_expr
            known = operation.kind == pb.AEXPR_OP and len(operation.name) == 1
            if not known or operation.name[0].string.sval not in ARITHMETIC or not kind_of(operation.lexpr):
                return
            order += (operation.lexpr, operation.rexpr)
        elif kind_of(one) == "a_const":
            if one.a_const.WhichOneof("val") not in ("ival", "fval"):
                return
        elif kind_of(one) != "column_ref":
            return
    holds_column = [kind_of(one) == "column_ref" for one in order]
    below = len(order)
    for place in range(len(order) - 1, -1, -1):
        if kind_of(order[place]) == "a_expr":
            below -= 2
            holds_column[place] = holds_column[below] or holds_column[below + 1]
            if holds_column[place]:
                offer(order[below])
                offer(order[below + 1])


def _offer_comparison(message: Any, offer: Any) -> None:
    if message.kind in (pb.AEXPR_OP, pb.AEXPR_DISTINCT, pb.AEXPR_NOT_DISTINCT):
        if message.kind == pb.AEXPR_OP and message.name[-1].string.sval not in COMPARISONS:
            return
        if kind_of(message.lexpr) == "column_ref":
            offer(message.rexpr)
        if kind_of(message.rexpr) == "column_ref":
            offer(message.lexpr)
    elif kind_of(message.lexpr) == "column_ref" and (
        message.kind in (pb.AEXPR_IN, pb.AEXPR_BETWEEN, pb.AEXPR_NOT_BETWEEN)
    ):
        for item in message.rexpr.list.items:
            offer(item)


def same_with_parameters(
    text: str, template: str, lexed: Lexed, positions: frozenset[int], signed: frozenset[int] = frozenset()
) -> bool:
    """True if `template` is `text` with exactly the constants at `positions` replaced by parameters, tree for tree.

    With those that are `signed`, the minus before them has been replaced too, and is in the parameter's value.
    """
    original, replaced = parsed(text), parsed(template)
    values = [constant.value for constant in lexed.render(positions, signed)[2]]
    order = {index: number for number, index in enumerate(sorted(positions), start=1)}
    by_offset = {lexed.constants[index].offset: number for index, number in order.items() if index not in signed}
    by_offset |= {offset: order[index] for offset, index in lexed.signs(text).items() if index in signed}
    for message in walk(original):
        if message.DESCRIPTOR.name == "Node" and kind_of(message) == "a_const":
            number = by_offset.pop(message.a_const.location, None)
            if number is not None:
                if not _same_value(message.a_const, values[number - 1]):
                    return False
                message.CopyFrom(pb.Node(param_ref=pb.ParamRef(number=number)))
    return not by_offset and same_tree(original, replaced)


def _same_value(constant: Any, value: str) -> bool:
    """True if a parameter with this text has the value of the constant."""
    kind = constant.WhichOneof("val")
    if kind == "ival":
        return value.removeprefix("-").isdigit() and int(value) == constant.ival.ival
    return kind in ("fval", "sval") and value == _constant_text(constant)
