"""The lists of callable and leakproof functions, in the catalogues of real servers."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.purity import LEAKPROOF, LEAKPROOF_ADDED, PURE, VOLATILE, Purity
from grille.protocols.postgres.resolve import CLOSED_TYPES
from grille.proxy.demo.cluster import Cluster

# Rows of the bypass catalogue, and what is denied for the same reasons.
DENIED = {
    "D4 SQL in an argument": """
        query_to_xml table_to_xml schema_to_xml database_to_xml cursor_to_xml query_to_xmlschema table_to_xmlschema
        query_to_xml_and_xmlschema table_to_xml_and_xmlschema schema_to_xml_and_xmlschema cursor_to_xmlschema
        database_to_xml_and_xmlschema schema_to_xmlschema database_to_xmlschema ts_stat ts_rewrite
        dblink crosstab connectby xpath_table""",
    "D21 files and large objects": """
        pg_read_file pg_read_binary_file pg_ls_dir pg_stat_file pg_ls_logdir pg_ls_waldir pg_ls_tmpdir
        pg_ls_archive_statusdir lo_import lo_export lo_get lo_put lo_creat lo_create lo_from_bytea lo_unlink lo_open
        lo_close lo_lseek lo_tell lo_truncate loread lowrite""",
    "D22 raw pages and WAL": """
        get_raw_page pg_logical_slot_peek_changes pg_logical_slot_get_changes pg_logical_slot_peek_binary_changes
        pg_current_wal_lsn pg_walfile_name pg_switch_wal""",
    "D23 catalogue text": """
        pg_get_viewdef pg_get_functiondef pg_get_constraintdef pg_get_indexdef pg_get_triggerdef pg_get_ruledef
        pg_get_expr pg_get_partkeydef pg_get_statisticsobjdef pg_get_function_arguments pg_get_function_sqlbody
        pg_get_userbyid pg_get_serial_sequence pg_prepared_statement pg_cursor pg_stat_get_activity
        pg_stat_get_backend_activity pg_show_all_settings pg_show_all_file_settings pg_options_to_table
        pg_describe_object pg_identify_object obj_description col_description format_type pg_mcv_list_items""",
    "D25 and D26 roles and settings": """
        set_config current_setting pg_reload_conf row_security_active pg_has_role has_table_privilege
        has_column_privilege has_function_privilege has_schema_privilege has_database_privilege current_user
        session_user""",
    "D28 notification and locks": """
        pg_notify pg_listening_channels pg_notification_queue_usage pg_advisory_lock pg_advisory_xact_lock
        pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_xact_lock pg_advisory_unlock
        pg_advisory_unlock_all pg_lock_status""",
    "state": """
        setseed currval lastval nextval setval pg_export_snapshot pg_logical_emit_message pg_sequence_last_value
        txid_current txid_current_snapshot txid_status pg_current_xact_id pg_current_snapshot pg_xact_status
        pg_visible_in_snapshot mxid_age""",
    "time and processes": """
        pg_sleep pg_sleep_for pg_sleep_until pg_cancel_backend pg_terminate_backend pg_backend_pid pg_promote
        pg_blocking_pids pg_stat_reset""",
    "existence and sizes": """
        to_regclass to_regproc to_regtype to_regrole to_regnamespace regclass pg_table_is_visible pg_relation_size
        pg_total_relation_size pg_database_size pg_column_size pg_relation_is_updatable pg_partition_tree
        pg_stat_get_live_tuples pg_stat_get_numscans pg_relation_filepath pg_input_is_valid pg_input_error_info""",
    "server": "inet_server_addr inet_client_addr pg_postmaster_start_time pg_config pg_control_system",
    "large values": "repeat array_fill",
    "xml and records": "xpath xpath_exists xmlexists json_populate_record json_to_record",
}


@pytest.fixture(scope="module")
def catalog(server: Cluster, snapshot_of: Callable[[Cluster, str], Catalog]) -> Catalog:
    return snapshot_of(server, "postgres")


@pytest.mark.parametrize("reason", DENIED)
def test_denied_functions_are_not_callable(catalog: Catalog, reason: str) -> None:
    purity = Purity(catalog)
    names = set(DENIED[reason].split())
    found = {function.name for function in catalog.functions.values() if function.name in names}
    assert found
    assert not [f.name for f in catalog.functions.values() if f.name in names and purity.pure(f.oid)]


def test_no_name_of_these_families_is_callable(catalog: Catalog) -> None:
    purity = Purity(catalog)
    prefixes = ("lo_", "txid_", "has_", "to_reg", "pg_", "inet_client", "inet_server", "binary_upgrade", "ri_", "RI_")
    suffixes = (
        "_to_xml",
        "_to_xmlschema",
        "_privilege",
        "_description",
        "_is_visible",
        "_transfn",
        "_support",
        "typmodin",
    )
    callable_names = {f.name for f in catalog.functions.values() if purity.pure(f.oid)}
    odd = {name for name in callable_names if name.startswith(prefixes) or name.endswith(suffixes)}
    assert odd == {"pg_typeof", "pg_encoding_to_char", "pg_size_pretty"} | {
        name for name in odd if name.startswith("pg_lsn_")
    }


def test_every_callable_function_is_quiet(server: Cluster, catalog: Catalog) -> None:
    purity = Purity(catalog)
    volatile = {word.partition("(")[0] for word in PURE[VOLATILE].split()}
    with psycopg.connect(server.dsn()) as connection:
        owners = dict(connection.execute("SELECT oid::bigint, proowner::bigint FROM pg_proc").fetchall())
    for function in catalog.functions.values():
        if purity.pure(function.oid):
            assert function.schema == "pg_catalog"
            assert function.oid < 16384
            assert owners[function.oid] == 10
            assert not function.security_definer
            assert function.kind in "faw"
            assert function.volatility != "v" or function.name in volatile
    assert volatile == {"random", "random_normal", "clock_timestamp", "gen_random_uuid", "uuidv4", "uuidv7"}


def test_no_callable_function_takes_an_object_identifier(catalog: Catalog) -> None:
    purity = Purity(catalog)
    closed = {kind.oid for kind in catalog.types.values() if kind.schema == "pg_catalog" and kind.name in CLOSED_TYPES}
    closed |= {kind.oid for kind in catalog.types.values() if kind.element in closed}
    internal = {kind.oid for kind in catalog.types.values() if kind.name in ("internal", "cstring", "trigger")}
    taking = {
        (function.name, catalog.types[argument].name)
        for function in catalog.functions.values()
        if purity.pure(function.oid)
        for argument in function.arguments
        if argument in closed | internal
    }
    # Which text search configurations exist is no secret; access control items can be compared but not written.
    assert {name for name, kind in taking if kind != "regconfig"} == {"aclcontains", "aclitemeq"}
    assert {name for name, kind in taking if kind == "regconfig"} == {
        "phraseto_tsquery", "plainto_tsquery", "to_tsquery", "to_tsvector", "ts_headline", "websearch_to_tsquery",
    }  # fmt: skip


def test_every_entry_is_a_function_of_some_server(
    pg18: Cluster, snapshot_of: Callable[[Cluster, str], Catalog]
) -> None:
    catalog = snapshot_of(pg18, "postgres")
    purity = Purity(catalog)
    listed = {word.partition("(")[0] for text in PURE.values() for word in text.split() if "(" in word}
    assert listed - {f.name for f in catalog.functions.values() if purity.pure(f.oid)} == set()
    leakproof = {f.name for f in catalog.functions.values() if purity.leakproof(f.oid)}
    assert leakproof == LEAKPROOF | LEAKPROOF_ADDED


def test_every_leakproof_function_is_an_immutable_comparison(catalog: Catalog) -> None:
    purity = Purity(catalog)
    boolean = 16
    found = [function for function in catalog.functions.values() if purity.leakproof(function.oid)]
    assert len(found) > 200
    for function in found:
        assert function.volatility == "i"
        assert function.result == boolean
        assert purity.pure(function.oid)
        assert function.leakproof or function.name in LEAKPROOF_ADDED
    names = {function.name for function in found}
    for leaky in ("int4div", "textlike", "int4pl", "textregexeq", "jsonb_eq", "array_eq", "record_eq", "textcat"):
        assert leaky not in names


def test_a_mark_by_a_superuser_is_not_enough(
    pg18: Cluster, fresh_database: Callable[[Cluster], str], snapshot_of: Callable[[Cluster, str], Catalog]
) -> None:
    database = fresh_database(pg18)
    with psycopg.connect(pg18.dsn(database), autocommit=True) as connection:
        connection.execute("ALTER FUNCTION pg_catalog.textlike(text, text) LEAKPROOF")
        connection.execute("ALTER FUNCTION pg_catalog.texteq(text, text) NOT LEAKPROOF")
        connection.execute(
            "CREATE FUNCTION public.texteq(text, text) RETURNS bool LANGUAGE sql LEAKPROOF IMMUTABLE AS 'select true'"
        )
    catalog = snapshot_of(pg18, database)
    purity = Purity(catalog)
    for function in catalog.functions.values():
        if function.name in ("textlike", "texteq"):
            assert not purity.leakproof(function.oid)
        if function.schema == "public":
            assert not purity.pure(function.oid)


def test_configured_routines_by_exact_signature(
    pg18: Cluster, fresh_database: Callable[[Cluster], str], snapshot_of: Callable[[Cluster, str], Catalog]
) -> None:
    database = fresh_database(pg18)
    with psycopg.connect(pg18.dsn(database), autocommit=True) as connection:
        connection.execute("""
            CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('a');
            CREATE FUNCTION app.rate(int, text[]) RETURNS int LANGUAGE sql AS 'select 1';
            CREATE FUNCTION app.rate(bigint, text[]) RETURNS int LANGUAGE sql AS 'select 1';
            CREATE FUNCTION app.rate(app.mood) RETURNS int LANGUAGE sql AS 'select 1';
            CREATE FUNCTION app.rate() RETURNS int LANGUAGE sql AS 'select 1';
            CREATE PROCEDURE app.pay(int) LANGUAGE sql AS 'select 1';
        """)
    catalog = snapshot_of(pg18, database)

    def allowed(*functions: str) -> list[tuple[int, ...]]:
        purity = Purity(catalog, functions)
        return sorted(f.arguments for f in catalog.functions.values() if f.schema == "app" and purity.pure(f.oid))

    mood = next(kind.oid for kind in catalog.types.values() if kind.name == "mood")
    assert allowed() == []
    assert allowed("app.rate(integer, text[])") == [(23, 1009)]
    assert allowed("app.rate(int4,text[])", "app.rate( )") == [(), (23, 1009)]
    assert allowed("app.rate(app.mood)") == [(mood,)]
    assert allowed("app.rate(mood)") == []
    assert allowed("app.rate") == []
    assert allowed("app.pay(int4)") == []
