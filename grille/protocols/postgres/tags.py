"""The command tag of a statement, read off its tree (CreateCommandTag of PostgreSQL's utility.c).

Two things are told apart that PostgreSQL's own tag does not: what is made for one session only has ``TEMP`` in its tag
(``CREATE TEMP TABLE``), and a VALUES list by itself is ``VALUES``.
"""

from __future__ import annotations

from typing import Any, Final

from postgast import pg_query_pb2 as pb

from grille.protocols.postgres.tree import Node, kind_of

_OBJECTS: Final = {
    "FDW": "FOREIGN DATA WRAPPER",
    "FOREIGN_SERVER": "SERVER",
    "LARGEOBJECT": "LARGE OBJECT",
    "MATVIEW": "MATERIALIZED VIEW",
    "OPCLASS": "OPERATOR CLASS",
    "OPFAMILY": "OPERATOR FAMILY",
    "STATISTIC_EXT": "STATISTICS",
    "TABCONSTRAINT": "TABLE",
    "DOMCONSTRAINT": "DOMAIN",
    "COLUMN": "TABLE",
    "ATTRIBUTE": "TYPE",
    "TSCONFIGURATION": "TEXT SEARCH CONFIGURATION",
    "TSDICTIONARY": "TEXT SEARCH DICTIONARY",
    "TSPARSER": "TEXT SEARCH PARSER",
    "TSTEMPLATE": "TEXT SEARCH TEMPLATE",
}

_TAGS: Final = {
    "alter_collation_stmt": "ALTER COLLATION",
    "alter_database_refresh_coll_stmt": "ALTER DATABASE",
    "alter_database_set_stmt": "ALTER DATABASE",
    "alter_database_stmt": "ALTER DATABASE",
    "alter_default_privileges_stmt": "ALTER DEFAULT PRIVILEGES",
    "alter_domain_stmt": "ALTER DOMAIN",
    "alter_enum_stmt": "ALTER TYPE",
    "alter_event_trig_stmt": "ALTER EVENT TRIGGER",
    "alter_extension_contents_stmt": "ALTER EXTENSION",
    "alter_extension_stmt": "ALTER EXTENSION",
    "alter_fdw_stmt": "ALTER FOREIGN DATA WRAPPER",
    "alter_foreign_server_stmt": "ALTER SERVER",
    "alter_op_family_stmt": "ALTER OPERATOR FAMILY",
    "alter_operator_stmt": "ALTER OPERATOR",
    "alter_policy_stmt": "ALTER POLICY",
    "alter_publication_stmt": "ALTER PUBLICATION",
    "alter_role_set_stmt": "ALTER ROLE",
    "alter_role_stmt": "ALTER ROLE",
    "alter_seq_stmt": "ALTER SEQUENCE",
    "alter_stats_stmt": "ALTER STATISTICS",
    "alter_subscription_stmt": "ALTER SUBSCRIPTION",
    "alter_system_stmt": "ALTER SYSTEM",
    "alter_table_move_all_stmt": "ALTER TABLESPACE",
    "alter_table_space_options_stmt": "ALTER TABLESPACE",
    "alter_tsconfiguration_stmt": "ALTER TEXT SEARCH CONFIGURATION",
    "alter_tsdictionary_stmt": "ALTER TEXT SEARCH DICTIONARY",
    "alter_type_stmt": "ALTER TYPE",
    "alter_user_mapping_stmt": "ALTER USER MAPPING",
    "call_stmt": "CALL",
    "check_point_stmt": "CHECKPOINT",
    "cluster_stmt": "CLUSTER",
    "comment_stmt": "COMMENT",
    "composite_type_stmt": "CREATE TYPE",
    "constraints_set_stmt": "SET CONSTRAINTS",
    "copy_stmt": "COPY",
    "create_am_stmt": "CREATE ACCESS METHOD",
    "create_cast_stmt": "CREATE CAST",
    "create_conversion_stmt": "CREATE CONVERSION",
    "create_domain_stmt": "CREATE DOMAIN",
    "create_enum_stmt": "CREATE TYPE",
    "create_event_trig_stmt": "CREATE EVENT TRIGGER",
    "create_extension_stmt": "CREATE EXTENSION",
    "create_fdw_stmt": "CREATE FOREIGN DATA WRAPPER",
    "create_foreign_server_stmt": "CREATE SERVER",
    "create_foreign_table_stmt": "CREATE FOREIGN TABLE",
    "create_op_class_stmt": "CREATE OPERATOR CLASS",
    "create_op_family_stmt": "CREATE OPERATOR FAMILY",
    "create_plang_stmt": "CREATE LANGUAGE",
    "create_policy_stmt": "CREATE POLICY",
    "create_publication_stmt": "CREATE PUBLICATION",
    "create_range_stmt": "CREATE TYPE",
    "create_role_stmt": "CREATE ROLE",
    "create_schema_stmt": "CREATE SCHEMA",
    "create_stats_stmt": "CREATE STATISTICS",
    "create_subscription_stmt": "CREATE SUBSCRIPTION",
    "create_table_space_stmt": "CREATE TABLESPACE",
    "create_transform_stmt": "CREATE TRANSFORM",
    "create_trig_stmt": "CREATE TRIGGER",
    "create_user_mapping_stmt": "CREATE USER MAPPING",
    "createdb_stmt": "CREATE DATABASE",
    "declare_cursor_stmt": "DECLARE CURSOR",
    "delete_stmt": "DELETE",
    "do_stmt": "DO",
    "drop_owned_stmt": "DROP OWNED",
    "drop_role_stmt": "DROP ROLE",
    "drop_subscription_stmt": "DROP SUBSCRIPTION",
    "drop_table_space_stmt": "DROP TABLESPACE",
    "drop_user_mapping_stmt": "DROP USER MAPPING",
    "dropdb_stmt": "DROP DATABASE",
    "execute_stmt": "EXECUTE",
    "explain_stmt": "EXPLAIN",
    "import_foreign_schema_stmt": "IMPORT FOREIGN SCHEMA",
    "index_stmt": "CREATE INDEX",
    "insert_stmt": "INSERT",
    "listen_stmt": "LISTEN",
    "load_stmt": "LOAD",
    "lock_stmt": "LOCK TABLE",
    "merge_stmt": "MERGE",
    "notify_stmt": "NOTIFY",
    "prepare_stmt": "PREPARE",
    "reassign_owned_stmt": "REASSIGN OWNED",
    "refresh_mat_view_stmt": "REFRESH MATERIALIZED VIEW",
    "reindex_stmt": "REINDEX",
    "rule_stmt": "CREATE RULE",
    "sec_label_stmt": "SECURITY LABEL",
    "truncate_stmt": "TRUNCATE TABLE",
    "unlisten_stmt": "UNLISTEN",
    "update_stmt": "UPDATE",
    "variable_show_stmt": "SHOW",
}

_TRANSACTION: Final = {
    pb.TRANS_STMT_BEGIN: "BEGIN",
    pb.TRANS_STMT_START: "START TRANSACTION",
    pb.TRANS_STMT_COMMIT: "COMMIT",
    pb.TRANS_STMT_ROLLBACK: "ROLLBACK",
    pb.TRANS_STMT_SAVEPOINT: "SAVEPOINT",
    pb.TRANS_STMT_RELEASE: "RELEASE",
    pb.TRANS_STMT_ROLLBACK_TO: "ROLLBACK",
    pb.TRANS_STMT_PREPARE: "PREPARE TRANSACTION",
    pb.TRANS_STMT_COMMIT_PREPARED: "COMMIT PREPARED",
    pb.TRANS_STMT_ROLLBACK_PREPARED: "ROLLBACK PREPARED",
}

_BY_OBJECT: Final = {
    "alter_function_stmt": ("ALTER", "objtype"),
    "alter_object_depends_stmt": ("ALTER", "object_type"),
    "alter_object_schema_stmt": ("ALTER", "object_type"),
    "alter_owner_stmt": ("ALTER", "object_type"),
    "alter_table_stmt": ("ALTER", "objtype"),
    "define_stmt": ("CREATE", "kind"),
    "drop_stmt": ("DROP", "remove_type"),
    "rename_stmt": ("ALTER", "rename_type"),
}


def tag_of(node: Node) -> str:
    """The command tag of one statement; empty for a node that is not known here."""
    kind = kind_of(node)
    if not kind:
        return ""
    message: Any = getattr(node, kind)
    if kind in _TAGS:
        return _TAGS[kind]
    if kind in _BY_OBJECT:
        verb, field = _BY_OBJECT[kind]
        value = getattr(message, field)
        if kind == "rename_stmt" and value in (pb.OBJECT_COLUMN, pb.OBJECT_ATTRIBUTE):
            value = message.relation_type
        return f"{verb} {_object(value)}"
    return _special(kind, message)


def _object(value: int) -> str:
    name = pb.ObjectType.Name(value).removeprefix("OBJECT_")
    return _OBJECTS.get(name) or name.replace("_", " ")


def _special(kind: str, message: Any) -> str:
    tag = ""
    if kind == "select_stmt":
        tag = "SELECT INTO" if message.HasField("into_clause") else "VALUES" if message.values_lists else "SELECT"
    elif kind == "transaction_stmt":
        tag = _TRANSACTION.get(message.kind, "")
    elif kind in ("create_stmt", "create_seq_stmt", "view_stmt"):
        field, words = {
            "create_stmt": ("relation", "TABLE"),
            "create_seq_stmt": ("sequence", "SEQUENCE"),
            "view_stmt": ("view", "VIEW"),
        }[kind]
        tag = f"CREATE {_temporary(getattr(message, field))}{words}"
    elif kind == "create_table_as_stmt":
        tag = f"CREATE {_temporary(message.into.rel)}{_object(message.objtype)} AS"
        tag = tag.replace("VIEW AS", "VIEW")
    elif kind == "create_function_stmt":
        tag = "CREATE PROCEDURE" if message.is_procedure else "CREATE FUNCTION"
    elif kind in ("grant_stmt", "grant_role_stmt"):
        tag = ("GRANT" if message.is_grant else "REVOKE") + (" ROLE" if kind == "grant_role_stmt" else "")
    elif kind == "variable_set_stmt":
        tag = "RESET" if message.kind in (pb.VAR_RESET, pb.VAR_RESET_ALL) else "SET"
    elif kind == "vacuum_stmt":
        tag = "VACUUM" if message.is_vacuumcmd else "ANALYZE"
    elif kind == "discard_stmt":
        tag = "DISCARD " + pb.DiscardMode.Name(message.target).removeprefix("DISCARD_")
    elif kind == "fetch_stmt":
        tag = "MOVE" if message.ismove else "FETCH"
    elif kind == "close_portal_stmt":
        tag = "CLOSE CURSOR" if message.portalname else "CLOSE CURSOR ALL"
    elif kind == "deallocate_stmt":
        tag = "DEALLOCATE ALL" if message.isall else "DEALLOCATE"
    return tag


def _temporary(var: Any) -> str:
    return "TEMP " if var.relpersistence == "t" else ""
