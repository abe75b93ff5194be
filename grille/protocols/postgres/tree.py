"""Parse trees: building nodes, and comparing trees without their positions.

Nodes are the protobuf messages of libpg_query as `postgast` gives them (grammar of PostgreSQL 18).  Everything that
Grille adds to a statement is built here, schema-qualified, never as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from postgast import deparse, parse
from postgast import pg_query_pb2 as pb

Node = Any
"""A pg_query ``Node``: one of many kinds."""

POSITIONS: Final = frozenset(
    {"location", "stmt_location", "stmt_len", "list_start", "list_end", "rexpr_list_start", "rexpr_list_end"}
)
PARSER_VERSION_FIELD: Final = "version"


def kind_of(node: Node) -> str:
    """The kind of a ``Node``, e.g. ``select_stmt``; empty for an absent node."""
    return str(node.WhichOneof("node") or "")


def strip_positions(message: Any) -> None:
    """Remove every source position below `message`, in place."""
    if message.DESCRIPTOR.name == "Node":
        kind = message.WhichOneof("node")
        if kind:
            strip_positions(getattr(message, kind))
        return
    for field, value in message.ListFields():
        if field.name in POSITIONS:
            message.ClearField(field.name)
        elif field.message_type is not None:
            if field.is_repeated:
                for item in value:
                    strip_positions(item)
            else:
                strip_positions(value)


def same_tree(left: Any, right: Any) -> bool:
    """True if two parse results are equal up to source positions.  Both lose their positions."""
    strip_positions(left)
    strip_positions(right)
    return bool(left == right)


def without_positions(message: Any) -> bytes:
    """The message, serialized without source positions: equal for equal expressions."""
    copy = type(message)()
    copy.CopyFrom(message)
    strip_positions(copy)
    return bytes(copy.SerializeToString(deterministic=True))


def walk(message: Any) -> Iterator[Any]:
    """Every message at and below `message`, parents first."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            if field.is_repeated:
                for item in value:
                    yield from walk(item)
            else:
                yield from walk(value)


def text_of(statement: Node) -> str:
    """The SQL text of one statement node."""
    result = pb.ParseResult(version=180004)
    result.stmts.add().stmt.CopyFrom(statement)
    return str(deparse(result))


def parses_back(statement: Node, sql: str) -> bool:
    """True if `sql` parses to exactly `statement` (design: parse(deparse(tree)) == tree)."""
    again = parse(sql)
    if len(again.stmts) != 1:
        return False
    copy = pb.Node()
    copy.CopyFrom(statement)
    return same_tree(copy, again.stmts[0].stmt)


# Building


def string(value: str) -> Node:
    """A name part."""
    return pb.Node(string=pb.String(sval=value))


def column(*parts: str) -> Node:
    """A column reference: ``alias.column``."""
    return pb.Node(column_ref=pb.ColumnRef(fields=[string(part) for part in parts]))


def parameter(number: int) -> Node:
    """``$number``"""
    return pb.Node(param_ref=pb.ParamRef(number=number))


def text_constant(value: str) -> Node:
    """A quoted constant of unknown type."""
    return pb.Node(a_const=pb.A_Const(sval=pb.String(sval=value)))


def integer_constant(value: int) -> Node:
    """An integer constant."""
    return pb.Node(a_const=pb.A_Const(ival=pb.Integer(ival=value)))


def boolean_constant(value: bool) -> Node:
    """``true`` or ``false``"""
    return pb.Node(a_const=pb.A_Const(boolval=pb.Boolean(boolval=value)))


def null_constant() -> Node:
    """``NULL``"""
    return pb.Node(a_const=pb.A_Const(isnull=True))


def type_name(schema: str, name: str, *, modifiers: Sequence[int] = (), array: bool = False) -> Any:
    """A qualified type name."""
    return pb.TypeName(
        names=[string(schema), string(name)],
        typemod=-1,
        typmods=[integer_constant(modifier) for modifier in modifiers],
        array_bounds=[pb.Node(integer=pb.Integer(ival=-1))] if array else [],
    )


def cast(argument: Node, schema: str, name: str) -> Node:
    """``argument::schema.name``"""
    return pb.Node(type_cast=pb.TypeCast(arg=argument, type_name=type_name(schema, name)))


def operator(name: str, left: Node, right: Node) -> Node:
    """``left OPERATOR(pg_catalog.name) right``"""
    return pb.Node(
        a_expr=pb.A_Expr(kind=pb.AEXPR_OP, name=[string("pg_catalog"), string(name)], lexpr=left, rexpr=right)
    )


def equals_any(left: Node, array: Node) -> Node:
    """``left OPERATOR(pg_catalog.=) ANY (array)``"""
    return pb.Node(
        a_expr=pb.A_Expr(kind=pb.AEXPR_OP_ANY, name=[string("pg_catalog"), string("=")], lexpr=left, rexpr=array)
    )


def function(name: str, *arguments: Node) -> Node:
    """``pg_catalog.name(arguments)``"""
    return pb.Node(
        func_call=pb.FuncCall(
            funcname=[string("pg_catalog"), string(name)], args=arguments, funcformat=pb.COERCE_EXPLICIT_CALL
        )
    )


def both(items: Sequence[Node]) -> Node:
    """The conjunction of `items`; nested conjunctions are flattened as the grammar does."""
    flat: list[Node] = []
    for item in items:
        if kind_of(item) == "bool_expr" and item.bool_expr.boolop == pb.AND_EXPR:
            flat.extend(item.bool_expr.args)
        else:
            flat.append(item)
    if len(flat) == 1:
        return flat[0]
    return pb.Node(bool_expr=pb.BoolExpr(boolop=pb.AND_EXPR, args=flat))


def either(items: Sequence[Node]) -> Node:
    """The disjunction of `items`."""
    flat: list[Node] = []
    for item in items:
        if kind_of(item) == "bool_expr" and item.bool_expr.boolop == pb.OR_EXPR:
            flat.extend(item.bool_expr.args)
        else:
            flat.append(item)
    if len(flat) == 1:
        return flat[0]
    return pb.Node(bool_expr=pb.BoolExpr(boolop=pb.OR_EXPR, args=flat))


def negation(item: Node) -> Node:
    """``NOT item``"""
    return pb.Node(bool_expr=pb.BoolExpr(boolop=pb.NOT_EXPR, args=[item]))


def is_true(item: Node) -> Node:
    """``item IS TRUE``"""
    return pb.Node(boolean_test=pb.BooleanTest(arg=item, booltesttype=pb.IS_TRUE))


def is_not_false(item: Node) -> Node:
    """``item IS NOT FALSE``"""
    return pb.Node(boolean_test=pb.BooleanTest(arg=item, booltesttype=pb.IS_NOT_FALSE))


def case(condition: Node, result: Node, otherwise: Node) -> Node:
    """``CASE WHEN condition THEN result ELSE otherwise END``"""
    when = pb.Node(case_when=pb.CaseWhen(expr=condition, result=result))
    return pb.Node(case_expr=pb.CaseExpr(args=[when], defresult=otherwise))


def target(value: Node, name: str = "") -> Node:
    """One item of a select list or RETURNING list."""
    return pb.Node(res_target=pb.ResTarget(name=name, val=value))


def relation(schema: str, name: str, *, only: bool = False, alias: str = "") -> Any:
    """A schema-qualified RangeVar."""
    var = pb.RangeVar(schemaname=schema, relname=name, inh=not only, relpersistence="p")
    if alias:
        var.alias.aliasname = alias
    return var


def subselect(targets: Sequence[Node], from_item: Node | None, where: Node | None, *, fence: bool) -> Any:
    """``SELECT targets [FROM from_item] [WHERE where] [OFFSET 0]`` as a SelectStmt."""
    select = pb.SelectStmt(
        target_list=targets,
        from_clause=[] if from_item is None else [from_item],
        op=pb.SETOP_NONE,
        limit_option=pb.LIMIT_OPTION_DEFAULT,
    )
    if where is not None:
        select.where_clause.CopyFrom(where)
    if fence:
        add_fence(select)
    return select


def add_fence(select: Any) -> None:
    """Give a SelectStmt an ``OFFSET 0``, so that no outer condition is pushed into it."""
    if not select.HasField("limit_offset") and not select.HasField("limit_count"):
        select.limit_offset.CopyFrom(integer_constant(0))
        select.limit_option = pb.LIMIT_OPTION_COUNT
