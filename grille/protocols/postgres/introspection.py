"""What an agent sees of the system catalogues: columns and functions by closed lists, rows by what its policy permits.

Three arrays go with a statement that reads them, as its last parameters: the OIDs of the relations that the agent may
read, the columns of these that it may not, and the OIDs of the types of the others (`VISIBLE`).  A catalogue relation
becomes a sub-select with a condition over them; a function that tells of the object with a given OID becomes a CASE
that asks first whether the object is among the visible ones, and else is NULL.  Built-in objects are always visible.

In a session of its own catalogue (`SessionPath`) the relations are governed like any other, and a function counts as a
read of the whole relation that it looks in.

Sources: PostgreSQL 18, chapters 53 (System Catalogs), 37 (The Information Schema), 9.27 (System Information Functions).
"""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec
from postgast import parse
from postgast import pg_query_pb2 as pb

from grille.protocols.postgres import tree
from grille.protocols.postgres.bare import bare
from grille.protocols.postgres.tree import Node

VISIBLE: Final = ((26, "relations"), (20, "hidden columns"), (26, "types"))
"""The arrays, each with the type of its elements.  A column is ``OID of its relation * 65536 + its number``."""
PARAMETER: Final = 1 << 20
"""The arrays are the parameters ``PARAMETER + 1`` and so on, until they get their numbers: no agent has so many."""
COLUMN_BITS: Final = 16

_NAME: Final = 19
_INT4: Final = 23
_VARCHAR: Final = 1043


_OBJECT: Final = "grille:object"


class Readable(msgspec.Struct, frozen=True):
    """A catalogue relation that agents may read."""

    columns: tuple[str, ...]
    """By allow-list; empty: all, as no row is shown.  With ``=NULL`` after its name: shown, but always NULL."""
    condition: str
    """Over the relation's columns and the arrays ``$1`` to ``$3``."""
    types: tuple[int, ...] = ()
    """Of the columns, where the snapshot does not hold the relation."""


def _hidden(relation: str, more: str = "true") -> str:
    """True if the relation has a hidden column ``h.number`` for which ``more`` holds."""
    return (
        "EXISTS (SELECT 1 FROM (SELECT (a.c & 65535)::pg_catalog.int2 AS number FROM pg_catalog.unnest($2) a(c)"  # noqa: S608
        f" WHERE a.c >> {COLUMN_BITS} = {relation}::pg_catalog.int8) h WHERE {more})"
    )


_WHOLE: Final = f"oid = ANY ($1) AND NOT {_hidden('oid')}"
_INDEX: Final = (
    "indrelid < 16384 OR (indrelid = ANY ($1) AND NOT "
    + _hidden("indrelid", "0 = ANY (indkey::pg_catalog.int2[]) OR indpred IS NOT NULL"
              " OR h.number = ANY (indkey::pg_catalog.int2[])") + ")"
)  # fmt: skip
_INDEXES: Final = f"SELECT indexrelid FROM pg_catalog.pg_index WHERE {_INDEX}"  # noqa: S608
_CLASS: Final = f"oid < 16384 OR oid = ANY ($1) OR oid = ANY ({_INDEXES})"
_ATTRIBUTE: Final = (
    "attnum > 0 AND NOT attisdropped AND (attrelid < 16384"
    " OR (attrelid = ANY ($1) AND attrelid::pg_catalog.int8 * 65536 + attnum <> ALL ($2))"
    f" OR attrelid = ANY ({_INDEXES}))"
)
_CONSTRAINT: Final = (
    "(conrelid <> 0 AND conrelid < 16384) OR (contypid <> 0 AND (contypid < 16384 OR contypid = ANY ($3)))"
    " OR (conrelid = ANY ($1) AND (confrelid = 0 OR confrelid = ANY ($1)) AND contype <> 't' AND NOT "
    + _hidden("conrelid", "conkey IS NULL OR contype = 'x' OR h.number = ANY (conkey)")
    + " AND NOT " + _hidden("confrelid", "h.number = ANY (confkey)") + ")"
)  # fmt: skip
_TYPE: Final = "(oid < 16384 AND typrelid < 16384) OR oid = ANY ($3)"
_NAMESPACE: Final = (
    "(oid < 16384 AND nspname !~ '^pg_toast') OR oid = ANY (SELECT relnamespace FROM pg_catalog.pg_class"
    " WHERE oid = ANY ($1)) OR oid = ANY (SELECT typnamespace FROM pg_catalog.pg_type WHERE oid = ANY ($3))"
)
_BUILT_IN: Final = "oid < 16384"


def _named(schema: str, name: str, more: str = "true") -> str:
    """True if a visible relation has this name."""
    return (
        "EXISTS (SELECT 1 FROM pg_catalog.pg_class r JOIN pg_catalog.pg_namespace s ON s.oid = r.relnamespace"  # noqa: S608
        f" WHERE r.oid = ANY ($1) AND s.nspname = {schema}::pg_catalog.name AND r.relname = {name}::pg_catalog.name"
        f" AND {more})"
    )


def _visible_constraint(key: str = "true") -> str:
    """True if a visible constraint has the names of this row of information_schema."""
    return (
        "EXISTS (SELECT 1 FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_namespace s ON s.oid = k.connamespace"  # noqa: S608
        f" JOIN (SELECT oid FROM pg_catalog.pg_constraint WHERE {_CONSTRAINT}) v ON v.oid = k.oid"
        " WHERE s.nspname = constraint_schema::pg_catalog.name AND k.conname = constraint_name::pg_catalog.name"
        f" AND {key})"
    )


_EMPTY: Final = """
    pg_auth_members pg_db_role_setting pg_depend pg_extension pg_foreign_data_wrapper pg_foreign_server
    pg_foreign_table pg_policy pg_tablespace pg_publication pg_publication_namespace pg_publication_rel pg_rewrite
    pg_roles pg_seclabel pg_sequence pg_sequences pg_shdescription pg_statistic_ext pg_trigger
"""
"""What tools ask about besides, and agents see no rows of: roles, policies, triggers, rules, definitions of views."""

READABLE: Final[dict[tuple[str, str], Readable]] = {
    ("pg_catalog", name): Readable(tuple(columns.split()), condition)
    for name, (columns, condition) in {
        "pg_class": (
            "oid relname relnamespace reltype reloftype relowner relam reltablespace relhasindex relisshared"
            " relpersistence relkind relnatts relchecks relhasrules relhastriggers relhassubclass relrowsecurity"
            " relforcerowsecurity relispopulated relreplident relispartition reloptions"
            " relpartbound reltoastrelid=NULL relacl=NULL reltuples=NULL"
            " relpages=NULL",
            _CLASS,
        ),
        "pg_attribute": (
            "attrelid attname atttypid attlen attnum atttypmod attndims attbyval attalign attstorage attcompression"
            " attnotnull atthasdef attidentity attgenerated attisdropped attislocal attinhcount attcollation"
            " attstattarget attfdwoptions attoptions attacl=NULL",
            _ATTRIBUTE,
        ),
        "pg_attrdef": ("oid adrelid adnum adbin", f"adrelid = ANY ($1) AND NOT {_hidden('adrelid')}"),
        "pg_index": (
            "indexrelid indrelid indnatts indnkeyatts indisunique indnullsnotdistinct indisprimary indisexclusion"
            " indimmediate indisclustered indisvalid indcheckxmin indisready indislive indisreplident indkey"
            " indcollation indclass indoption indexprs indpred",
            _INDEX,
        ),
        "pg_constraint": (
            "oid conname connamespace contype condeferrable condeferred conenforced convalidated conrelid contypid"
            " conindid conparentid confrelid confupdtype confdeltype confmatchtype conislocal coninhcount"
            " connoinherit conperiod conkey confkey conpfeqop conppeqop conffeqop confdelsetcols conexclop conbin",
            _CONSTRAINT,
        ),
        "pg_inherits": ("inhrelid inhparent inhseqno inhdetachpending", "inhrelid = ANY ($1) AND inhparent = ANY ($1)"),
        "pg_partitioned_table": (
            "partrelid partstrat partnatts partattrs", f"partrelid = ANY ($1) AND NOT {_hidden('partrelid')}"
        ),
        "pg_namespace": ("oid nspname nspowner nspacl=NULL", _NAMESPACE),
        "pg_type": (
            "oid typname typnamespace typowner typlen typbyval typtype typcategory typispreferred typisdefined typdelim"
            " typrelid typsubscript typelem typarray typinput typoutput typreceive typsend typmodin typmodout"
            " typalign typstorage typnotnull typbasetype typtypmod typndims typcollation typdefault typacl=NULL",
            _TYPE,
        ),
        "pg_enum": ("oid enumtypid enumsortorder enumlabel", "enumtypid = ANY ($3)"),
        "pg_range": (
            "rngtypid rngsubtype rngmultitypid rngcollation rngsubopc", "rngtypid < 16384 OR rngtypid = ANY ($3)"
        ),
        "pg_description": (
            "objoid classoid objsubid description",
            "(objoid < 16384 AND classoid <> '1259'::pg_catalog.oid) OR (classoid = '1259'::pg_catalog.oid AND"
            " (objoid < 16384 OR (objoid = ANY ($1) AND objoid::pg_catalog.int8 * 65536 + objsubid <> ALL ($2))))"
            " OR (classoid = '1247'::pg_catalog.oid AND objoid = ANY ($3))",
        ),
        "pg_am": ("oid amname amhandler amtype", _BUILT_IN),
        "pg_cast": ("oid castsource casttarget castfunc castcontext castmethod", _BUILT_IN),
        "pg_collation": (
            "oid collname collnamespace collprovider collisdeterministic collencoding collcollate collctype",
            _BUILT_IN,
        ),
        "pg_language": ("oid lanname lanispl lanpltrusted", _BUILT_IN),
        "pg_opclass": (
            "oid opcmethod opcname opcnamespace opcfamily opcintype opcdefault opckeytype", _BUILT_IN
        ),
        "pg_operator": (
            "oid oprname oprnamespace oprkind oprcanmerge oprcanhash oprleft oprright oprresult oprcom oprnegate"
            " oprcode",
            _BUILT_IN,
        ),
        "pg_proc": (
            "oid proname pronamespace proowner prolang procost prorows provariadic prosupport prokind prosecdef"
            " proleakproof proisstrict proretset provolatile proparallel pronargs pronargdefaults prorettype"
            " proargtypes proallargtypes proargmodes proargnames proacl=NULL",
            _BUILT_IN,
        ),
        "pg_database": (
            "oid datname datdba encoding datlocprovider datistemplate datcollate datctype daticulocale datlocale"
            " daticurules datacl=NULL",
            "datname = pg_catalog.current_database()",
        ),
        "pg_tables": (
            "schemaname tablename tablespace hasindexes hasrules hastriggers rowsecurity",
            _named("schemaname", "tablename"),
        ),
        "pg_views": ("schemaname viewname", _named("schemaname", "viewname")),
        "pg_matviews": ("schemaname matviewname ispopulated", _named("schemaname", "matviewname")),
        **dict.fromkeys(_EMPTY.split(), ("", "false")),
    }.items()
} | {
    ("information_schema", name): Readable(
        tuple(column for column, _ in columns), condition, tuple(kind for _, kind in columns)
    )
    for name, (columns, condition) in {
        "schemata": (
            [("catalog_name", _NAME), ("schema_name", _NAME)],
            "EXISTS (SELECT 1 FROM pg_catalog.pg_class r JOIN pg_catalog.pg_namespace s ON s.oid = r.relnamespace"
            " WHERE r.oid = ANY ($1) AND s.nspname = schema_name::pg_catalog.name)",
        ),
        "tables": (
            [("table_catalog", _NAME), ("table_schema", _NAME), ("table_name", _NAME), ("table_type", _VARCHAR)],
            _named("table_schema", "table_name"),
        ),
        "views": (
            [("table_catalog", _NAME), ("table_schema", _NAME), ("table_name", _NAME)],
            _named("table_schema", "table_name"),
        ),
        "columns": (
            [
                *((n, _NAME) for n in ("table_catalog", "table_schema", "table_name", "column_name")),
                ("ordinal_position", _INT4), ("is_nullable", _VARCHAR), ("data_type", _VARCHAR),
                *((n, _INT4) for n in ("character_maximum_length", "character_octet_length", "numeric_precision",
                                       "numeric_precision_radix", "numeric_scale", "datetime_precision")),
                ("interval_type", _VARCHAR),
                *((n, _NAME) for n in ("domain_schema", "domain_name", "udt_catalog", "udt_schema", "udt_name")),
                ("is_identity", _VARCHAR), ("is_generated", _VARCHAR), ("is_updatable", _VARCHAR),
            ],
            _named("table_schema", "table_name",
                   "r.oid::pg_catalog.int8 * 65536 + ordinal_position::pg_catalog.int8 <> ALL ($2)"),
        ),
        "table_constraints": (
            [
                *((n, _NAME) for n in ("constraint_catalog", "constraint_schema", "constraint_name", "table_catalog",
                                       "table_schema", "table_name")),
                ("constraint_type", _VARCHAR), ("is_deferrable", _VARCHAR), ("initially_deferred", _VARCHAR),
            ],
            _named("table_schema", "table_name") + " AND " + _visible_constraint(),
        ),
        "key_column_usage": (
            [
                *((n, _NAME) for n in ("constraint_catalog", "constraint_schema", "constraint_name", "table_catalog",
                                       "table_schema", "table_name", "column_name")),
                ("ordinal_position", _INT4), ("position_in_unique_constraint", _INT4),
            ],
            _named("table_schema", "table_name") + " AND " + _visible_constraint(),
        ),
    }.items()
}  # fmt: skip
"""By schema and name."""

_SETS: Final = {
    "relation": f"SELECT oid FROM pg_catalog.pg_class WHERE {_CLASS}",  # noqa: S608
    "whole": f"SELECT oid FROM pg_catalog.pg_class WHERE oid < 16384 OR ({_WHOLE})",  # noqa: S608
    "index": _INDEXES,
    "constraint": f"SELECT oid FROM pg_catalog.pg_constraint WHERE {_CONSTRAINT}",  # noqa: S608
    "type": f"SELECT oid FROM pg_catalog.pg_type WHERE {_TYPE}",  # noqa: S608
    "namespace": f"SELECT oid FROM pg_catalog.pg_namespace WHERE {_NAMESPACE}",  # noqa: S608
}
"""OIDs of visible objects; ``whole``: relations without a hidden column."""


class Lookup(msgspec.Struct, frozen=True):
    """A function that tells of an object in the catalogue."""

    argument: int
    """Which argument is the object's OID, or its name for `to_reg*`."""
    visible: str
    """Which of `_SETS` it must be in; ``built-in``: OIDs below 16384; ``class``: by the second argument, the name of a
    catalogue; ``nothing``: it tells agents nothing, the result is NULL, or false."""
    reads: tuple[str, ...]
    """The relations of pg_catalog that it looks in."""


def _lookups(table: str) -> dict[str, Lookup]:
    found = {}
    for line in table.split("\n"):
        if line.strip():
            signature, argument, visible, reads = line.split()
            found[signature] = Lookup(int(argument), visible, tuple(reads.split("+")))
    return found


LOOKUPS: Final = _lookups(
    """
    pg_table_is_visible(oid) 0 relation pg_class
    pg_type_is_visible(oid) 0 type pg_type
    pg_function_is_visible(oid) 0 built-in pg_proc
    pg_operator_is_visible(oid) 0 built-in pg_operator
    pg_opclass_is_visible(oid) 0 built-in pg_opclass
    pg_opfamily_is_visible(oid) 0 built-in pg_opfamily
    pg_collation_is_visible(oid) 0 built-in pg_collation
    pg_conversion_is_visible(oid) 0 built-in pg_conversion
    pg_ts_config_is_visible(oid) 0 built-in pg_ts_config
    pg_ts_dict_is_visible(oid) 0 built-in pg_ts_dict
    pg_ts_parser_is_visible(oid) 0 built-in pg_ts_parser
    pg_ts_template_is_visible(oid) 0 built-in pg_ts_template
    pg_statistics_obj_is_visible(oid) 0 nothing pg_statistic_ext
    pg_get_expr(pg_node_tree,oid) 1 whole pg_class+pg_attribute+pg_proc+pg_type
    pg_get_expr(pg_node_tree,oid,bool) 1 whole pg_class+pg_attribute+pg_proc+pg_type
    pg_get_indexdef(oid) 0 index pg_index+pg_class+pg_attribute
    pg_get_indexdef(oid,int4,bool) 0 index pg_index+pg_class+pg_attribute
    pg_get_constraintdef(oid) 0 constraint pg_constraint+pg_class+pg_attribute
    pg_get_constraintdef(oid,bool) 0 constraint pg_constraint+pg_class+pg_attribute
    pg_partition_ancestors(regclass) 0 nothing pg_inherits
    pg_get_partkeydef(oid) 0 whole pg_partitioned_table+pg_class+pg_attribute
    pg_get_partition_constraintdef(oid) 0 nothing pg_class
    pg_get_serial_sequence(text,text) 0 nothing pg_class+pg_depend
    pg_get_statisticsobjdef(oid) 0 nothing pg_statistic_ext
    pg_get_statisticsobjdef_columns(oid) 0 nothing pg_statistic_ext
    pg_get_statisticsobjdef_expressions(oid) 0 nothing pg_statistic_ext
    pg_get_triggerdef(oid) 0 nothing pg_trigger
    pg_get_triggerdef(oid,bool) 0 nothing pg_trigger
    pg_get_ruledef(oid) 0 nothing pg_rewrite
    pg_get_ruledef(oid,bool) 0 nothing pg_rewrite
    pg_get_viewdef(oid) 0 nothing pg_rewrite
    pg_get_viewdef(oid,bool) 0 nothing pg_rewrite
    pg_get_viewdef(oid,int4) 0 nothing pg_rewrite
    pg_get_viewdef(text) 0 nothing pg_rewrite
    pg_get_viewdef(text,bool) 0 nothing pg_rewrite
    pg_get_userbyid(oid) 0 nothing pg_authid
    pg_get_functiondef(oid) 0 nothing pg_proc
    pg_get_function_arguments(oid) 0 built-in pg_proc
    pg_get_function_identity_arguments(oid) 0 built-in pg_proc
    pg_get_function_arg_default(oid,int4) 0 built-in pg_proc
    pg_get_function_result(oid) 0 built-in pg_proc
    pg_get_function_sqlbody(oid) 0 nothing pg_proc
    format_type(oid,int4) 0 type pg_type
    obj_description(oid,name) 0 class pg_description
    obj_description(oid) 0 nothing pg_description
    col_description(oid,int4) 0 whole pg_description
    shobj_description(oid,name) 0 nothing pg_shdescription
    to_regclass(text) 0 relation pg_class
    to_regtype(text) 0 type pg_type
    to_regnamespace(text) 0 namespace pg_namespace
    pg_relation_is_publishable(regclass) 0 nothing pg_class
    pg_relation_size(regclass) 0 nothing pg_class
    pg_table_size(regclass) 0 nothing pg_class
    pg_indexes_size(regclass) 0 nothing pg_class
    pg_total_relation_size(regclass) 0 nothing pg_class
    pg_database_size(name) 0 nothing pg_database
    pg_database_size(oid) 0 nothing pg_database
    pg_tablespace_location(oid) 0 nothing pg_tablespace
    pg_is_other_temp_schema(oid) 0 nothing pg_namespace
    """
)
"""By signature, ``name(type,type)``.  Others that read the catalogue are refused."""

CLASSES: Final = {
    "pg_class": "relation",
    "pg_constraint": "constraint",
    "pg_namespace": "namespace",
    "pg_type": "type",
}
"""Sets of the objects of a catalogue, for obj_description; of other catalogues only what is built in."""


class RegType(msgspec.Struct, frozen=True):
    """A type of object identifiers: a cast to it turns a name or a number into an object, and shows its name."""

    visible: str
    by_name: str
    """The function that looks a name up, or empty: names are refused."""
    reads: str


REG_TYPES: Final[dict[int, RegType]] = {
    24: RegType("built-in", "to_regproc", "pg_proc"),
    2202: RegType("built-in", "", "pg_proc"),
    2203: RegType("built-in", "", "pg_operator"),
    2204: RegType("built-in", "", "pg_operator"),
    2205: RegType("relation", "to_regclass", "pg_class"),
    2206: RegType("type", "to_regtype", "pg_type"),
    3734: RegType("built-in", "", "pg_ts_config"),
    3769: RegType("built-in", "", "pg_ts_dict"),
    4089: RegType("namespace", "to_regnamespace", "pg_namespace"),
    4096: RegType("nothing", "", "pg_authid"),
    4191: RegType("built-in", "", "pg_collation"),
}
"""regproc, regprocedure, regoper, regoperator, regclass, regtype, regconfig, regdictionary, regnamespace, regrole,
regcollation."""


def column_number(relation: int, number: int) -> int:
    """A column as an element of the array of hidden columns."""
    return (relation << COLUMN_BITS) + number


@functools.cache
def _parsed(sql: str) -> bytes:
    """A condition or query as a serialized Node, with every operator of pg_catalog named so."""
    query = sql.startswith("SELECT ")
    statement = parse(sql if query else f"SELECT WHERE {sql}").stmts[0].stmt
    node = statement if query else statement.select_stmt.where_clause
    for part in tree.walk(node):
        kind = part.DESCRIPTOR.name
        if kind == "ParamRef":
            part.number += PARAMETER
        names: Any = part.name if kind == "A_Expr" else part.oper_name if kind == "SubLink" else ()
        if len(names) == 1:
            names.insert(0, tree.string("pg_catalog"))
    return bare(node)


def condition(readable: Readable) -> Node:
    """The condition on the rows of a catalogue relation."""
    return pb.Node.FromString(_parsed(readable.condition))


def _on_path(catalogue: str, schema: str) -> str:
    """OIDs of what agents need not qualify."""
    return (
        f"SELECT r.oid FROM pg_catalog.{catalogue} r JOIN pg_catalog.pg_namespace s ON s.oid = r.{schema}"  # noqa: S608
        " WHERE s.nspname = ANY ('{pg_catalog,public}'::pg_catalog.name[])"
    )


def _as_agents_see(call: Node, value: Node) -> Node:
    """``call`` over ``value``, as if ``public`` were on the search path: upstream it is not."""
    if call.WhichOneof("node") != "func_call":
        return call
    text = tree.text_constant
    match name := call.func_call.funcname[-1].string.sval:
        case "pg_table_is_visible":
            return _among(value, _on_path("pg_class", "relnamespace"))
        case "pg_type_is_visible":
            return _among(value, _on_path("pg_type", "typnamespace"))
        case "format_type":
            return tree.function("regexp_replace", call, text("^public[.]"), text(""))
        case "pg_get_constraintdef":
            return tree.function("regexp_replace", call, text(" REFERENCES public[.]"), text(" REFERENCES "))
        case "to_regclass" | "to_regtype":
            dots = tree.function("strpos", value, text("."))
            bare = tree.operator("=", dots, tree.integer_constant(0))
            public = tree.function(name, tree.operator("||", text("public."), value))
            when = pb.Node(case_when=pb.CaseWhen(expr=bare, result=public))
            return pb.Node(coalesce_expr=pb.CoalesceExpr(args=[call, pb.Node(case_expr=pb.CaseExpr(args=[when]))]))
    return call


def _among(value: Node, query: str) -> Node:
    """``value = ANY (query)``"""
    link = pb.SubLink(
        sub_link_type=pb.ANY_SUBLINK,
        testexpr=value,
        oper_name=[tree.string("pg_catalog"), tree.string("=")],
        subselect=pb.Node.FromString(_parsed(query)),
    )
    return pb.Node(sub_link=link)


def guarded(visible: str, call: Node, argument: Node) -> Node:
    """``call`` if the object that ``argument``, a part of it, gives is in the set ``visible``; else NULL.

    ``(SELECT CASE WHEN o.v = ANY (visible) THEN f(o.v, ..) END FROM (SELECT argument OFFSET 0) o(v))``: the argument is
    evaluated once, and no name in it can mean something of ours.
    """
    named = call.WhichOneof("node") == "func_call" and call.func_call.funcname[-1].string.sval.startswith("to_reg")
    typed = tree.cast(argument, "pg_catalog", "text" if named else "oid")
    source = tree.subselect([tree.target(typed)], None, None, fence=True)
    inner = pb.Node(
        range_subselect=pb.RangeSubselect(
            subquery=pb.Node(select_stmt=source), alias=pb.Alias(aliasname=_OBJECT, colnames=[tree.string(_OBJECT)])
        )
    )
    value = tree.column(_OBJECT, _OBJECT)
    argument.CopyFrom(value)
    call = _as_agents_see(call, value)
    oid = tree.cast(call if named else value, "pg_catalog", "oid")
    if visible == "built-in":
        known = tree.operator("<", oid, tree.integer_constant(16384))
    else:
        known = _among(oid, _SETS[visible])
    case = pb.Node(case_expr=pb.CaseExpr(args=[pb.Node(case_when=pb.CaseWhen(expr=known, result=call))]))
    outer = tree.subselect([tree.target(case)], inner, None, fence=False)
    return pb.Node(sub_link=pb.SubLink(sub_link_type=pb.EXPR_SUBLINK, subselect=pb.Node(select_stmt=outer)))


def parameters(statement: Any) -> list[Any]:
    """The references to the arrays below ``statement``."""
    return [part for part in tree.walk(statement) if part.DESCRIPTOR.name == "ParamRef" and part.number > PARAMETER]
