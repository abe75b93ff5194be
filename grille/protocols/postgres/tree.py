"""Parse trees: building nodes, and comparing trees without their positions.

Nodes are the protobuf messages of libpg_query as `postgast` gives them (grammar of PostgreSQL 18).  Everything that
Grille adds to a statement is built here, schema-qualified, never as text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from postgast import deparse, parse
from postgast import pg_query_pb2 as pb

from grille.protocols.postgres.bare import bare

Node = Any
"""A pg_query ``Node``: one of many kinds."""


@functools.lru_cache(maxsize=8)
def _serialized(text: str) -> bytes:
    return bytes(parse(text).SerializeToString())


def parsed(text: str) -> Any:
    """The parse result of a text, which is the caller's own; of the last texts it is remembered, since each step of
    understanding a statement reads it anew.  Raises PgQueryError.
    """
    return pb.ParseResult.FromString(_serialized(text))


def kind_of(node: Node) -> str:
    """The kind of a ``Node``, e.g. ``select_stmt``; empty for an absent node."""
    return str(node.WhichOneof("node") or "")


def same_tree(left: Any, right: Any) -> bool:
    """True if two parse results are equal up to source positions."""
    return bare(left) == bare(right)


def walk(message: Any) -> list[Any]:
    """Every message at and below `message`, parents first."""
    found: list[Any] = []
    _gather(message, found)
    return found


def _gather(message: Any, found: list[Any]) -> None:
    found.append(message)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.is_repeated:
            for item in value:
                _gather(item, found)
        else:
            _gather(value, found)


def text_of(statement: Node) -> str:
    """The SQL text of one statement node."""
    result = pb.ParseResult(version=180004)
    result.stmts.add().stmt.CopyFrom(statement)
    return str(deparse(result))


def parses_back(statement: Node, sql: str) -> bool:
    """True if `sql` parses to exactly `statement` (design: parse(deparse(tree)) == tree)."""
    again = parsed(sql)
    if len(again.stmts) != 1:
        return False
    return same_tree(statement, again.stmts[0].stmt)


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
