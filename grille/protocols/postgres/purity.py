"""Which built-in functions an agent may call, and which of them may run before a row filter.

Both lists are closed and are turned into OIDs in a snapshot: a function is on a list only if it is built in (its OID
was assigned by initdb), owned by pg_catalog, not SECURITY DEFINER, and has one of the names below.  A function that
is behind a built-in operator is callable if it is immutable or stable: no built-in operator has a side effect, reads
settings that an agent could change, or evaluates SQL.

Not on the list, and why:

* state: setseed, currval, lastval, nextval, setval, set_config, current_setting, pg_notify, pg_advisory_*, lo_*,
  txid_*, pg_current_xact_id, pg_export_snapshot, pg_sleep*;
* SQL in an argument: query_to_xml, table_to_xml, schema_to_xml, database_to_xml, cursor_to_xml, ts_stat, ts_rewrite;
* files, server and other sessions: pg_read_file, pg_ls_dir, pg_stat_*, pg_terminate_backend, inet_server_addr, ...;
* catalogue text and existence: pg_get_*def, pg_get_expr, has_*_privilege, to_reg*, obj_description, pg_*_is_visible,
  format_type, pg_relation_size, ...;
* unbounded memory or time from small arguments: repeat, lpad, rpad, array_fill;
* rows as documents, whose columns are not followed: row_to_json, to_json, to_jsonb, json_agg, json_build_* and
  format over whole rows are callable, because a whole row is refused as an argument before.

Volatile and yet on the list: random, gen_random_uuid and clock_timestamp, which neither read nor change data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from grille.protocols.postgres.catalog import Catalog, Function

FIRST_NORMAL_OID: Final = 16384
"""OIDs below are assigned by initdb (transam.h)."""

PURE: Final = frozenset(
    """
    abs acos acosd acosh asin asind asinh atan atan2 atan2d atand atanh cbrt ceil ceiling cos cosd cosh cot cotd
    degrees div erf erfc exp factorial floor gcd gamma lcm lgamma ln log log10 min_scale mod pi pow power radians
    random round scale sign sin sind sinh sqrt tan tand tanh trim_scale trunc width_bucket bit_count
    ascii btrim casefold char_length character_length chr concat concat_ws format initcap left length lower ltrim
    md5 normalize is_normalized octet_length bit_length overlay parse_ident position quote_ident quote_literal
    quote_nullable regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace
    regexp_split_to_array regexp_split_to_table regexp_substr replace reverse right rtrim similar_to_escape
    split_part starts_with string_to_array string_to_table strpos substr substring to_ascii to_bin to_hex to_oct
    translate unistr upper encode decode convert_from convert_to sha224 sha256 sha384 sha512 crc32 crc32c get_bit
    get_byte set_bit set_byte like_escape
    age clock_timestamp date_add date_bin date_part date_subtract date_trunc extract isfinite justify_days
    justify_hours justify_interval make_date make_interval make_time make_timestamp make_timestamptz now overlaps
    statement_timestamp timezone to_char to_date to_number to_timestamp transaction_timestamp
    array_append array_cat array_dims array_length array_lower array_ndims array_position array_positions
    array_prepend array_remove array_replace array_reverse array_sort array_to_string array_upper cardinality
    trim_array unnest generate_series generate_subscripts
    enum_first enum_last enum_range isempty lower_inc lower_inf range_merge upper_inc upper_inf
    json_array_length json_extract_path json_extract_path_text json_object json_strip_nulls json_typeof
    json_array_elements json_array_elements_text json_object_keys json_build_array json_build_object to_json
    array_to_json jsonb_array_length jsonb_extract_path jsonb_extract_path_text jsonb_object jsonb_strip_nulls
    jsonb_typeof jsonb_array_elements jsonb_array_elements_text jsonb_object_keys jsonb_build_array
    jsonb_build_object jsonb_insert jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array
    jsonb_path_query_first jsonb_pretty jsonb_set jsonb_set_lax to_jsonb
    num_nonnulls num_nulls gen_random_uuid uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7
    abbrev broadcast family host hostmask inet_merge inet_same_family masklen netmask network set_masklen
    to_tsquery to_tsvector plainto_tsquery phraseto_tsquery websearch_to_tsquery ts_rank ts_rank_cd ts_headline
    numnode querytree setweight strip tsvector_to_array array_to_tsvector
    hashtext hashtextextended version pg_typeof
    bool text int2 int4 int8 float4 float8 numeric date time timetz timestamp timestamptz interval bpchar varchar
    name bit varbit bytea
    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp cume_dist
    dense_rank every first_value json_agg json_agg_strict json_object_agg jsonb_agg jsonb_agg_strict
    jsonb_object_agg lag last_value lead max min mode nth_value ntile percent_rank percentile_cont percentile_disc
    range_agg range_intersect_agg rank regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx
    regr_sxy regr_syy row_number stddev stddev_pop stddev_samp string_agg sum var_pop var_samp variance
    """.split()
)
"""Names of built-in functions that agents may call, in every overload."""

VOLATILE: Final = frozenset({"random", "gen_random_uuid", "clock_timestamp", "uuidv4", "uuidv7"})
"""The volatile ones among them."""

LEAKPROOF: Final = frozenset(
    """
    biteq bitge bitgt bitle bitlt bitne booleq boolge boolgt boolle boollt boolne bpchar_pattern_ge
    bpchar_pattern_gt bpchar_pattern_le bpchar_pattern_lt bpchareq bpcharge bpchargt bpcharle bpcharlt bpcharne
    byteaeq byteage byteagt byteale bytealt byteane cash_eq cash_ge cash_gt cash_le cash_lt cash_ne chareq
    charge chargt charle charlt charne cideq circle_eq circle_ge circle_gt circle_le circle_lt circle_ne date_eq
    date_ge date_gt date_le date_lt date_ne float48eq float48ge float48gt float48le float48lt float48ne float4eq
    float4ge float4gt float4le float4lt float4ne float84eq float84ge float84gt float84le float84lt float84ne
    float8eq float8ge float8gt float8le float8lt float8ne int24eq int24ge int24gt int24le int24lt int24ne
    int28eq int28ge int28gt int28le int28lt int28ne int2eq int2ge int2gt int2le int2lt int2ne int42eq int42ge
    int42gt int42le int42lt int42ne int48eq int48ge int48gt int48le int48lt int48ne int4eq int4ge int4gt int4le
    int4lt int4ne int82eq int82ge int82gt int82le int82lt int82ne int84eq int84ge int84gt int84le int84lt
    int84ne int8eq int8ge int8gt int8le int8lt int8ne interval_eq interval_ge interval_gt interval_le
    interval_lt interval_ne lseg_eq lseg_ge lseg_gt lseg_le lseg_lt lseg_ne macaddr8_eq macaddr8_ge macaddr8_gt
    macaddr8_le macaddr8_lt macaddr8_ne macaddr_eq macaddr_ge macaddr_gt macaddr_le macaddr_lt macaddr_ne nameeq
    nameeqtext namege namegetext namegt namegttext namele nameletext namelt namelttext namene namenetext
    network_eq network_ge network_gt network_le network_lt network_ne numeric_eq numeric_ge numeric_gt
    numeric_le numeric_lt numeric_ne oideq oidge oidgt oidle oidlt oidne oidvectoreq oidvectorge oidvectorgt
    oidvectorle oidvectorlt oidvectorne pg_lsn_eq pg_lsn_ge pg_lsn_gt pg_lsn_le pg_lsn_lt pg_lsn_ne text_ge
    text_gt text_le text_lt text_pattern_ge text_pattern_gt text_pattern_le text_pattern_lt texteq texteqname
    textgename textgtname textlename textltname textne textnename tideq tidge tidgt tidle tidlt tidne time_eq
    time_ge time_gt time_le time_lt time_ne timestamp_eq timestamp_ge timestamp_gt timestamp_le timestamp_lt
    timestamp_ne timestamptz_eq timestamptz_ge timestamptz_gt timestamptz_le timestamptz_lt timestamptz_ne
    timetz_eq timetz_ge timetz_gt timetz_le timetz_lt timetz_ne uuid_eq uuid_ge uuid_gt uuid_le uuid_lt uuid_ne
    varbiteq varbitge varbitgt varbitle varbitlt varbitne xid8eq xid8ge xid8gt xid8le xid8lt xid8ne xideq
    xideqint4 xidneq xidneqint4
    """.split()
)
"""Comparison functions behind built-in operators that tell nothing of their arguments but their result: those that
PostgreSQL 15 and 18 both mark proleakproof, and numeric_{eq,ne,lt,le,gt,ge}, which compare digits and never raise
(the server does not mark them only because numeric may be toasted; review: design-review, section 3)."""


class Purity:
    """The two lists as OIDs of one snapshot."""

    def __init__(self, catalog: Catalog, functions: Sequence[str] = ()) -> None:
        """`functions`: routines outside pg_catalog that the configuration lists, ``schema.name(type,type)``."""
        behind_operators = {operator.function for operator in catalog.operators.values()}
        self._pure: set[int] = set()
        self._leakproof: set[int] = set()
        listed = {name.replace(" ", "") for name in functions}
        for function in catalog.functions.values():
            if function.schema != "pg_catalog" or function.oid >= FIRST_NORMAL_OID:
                if _signature(catalog, function) in listed and function.kind == "f":
                    self._pure.add(function.oid)
                continue
            if function.security_definer or function.kind == "p":
                continue
            quiet = function.volatility != "v"
            if (function.name in PURE and (quiet or function.name in VOLATILE)) or (
                function.oid in behind_operators and quiet
            ):
                self._pure.add(function.oid)
            if function.name in LEAKPROOF and function.oid in behind_operators and function.volatility == "i":
                self._leakproof.add(function.oid)

    def pure(self, oid: int) -> bool:
        """True if agents may call this function."""
        return oid in self._pure

    def leakproof(self, oid: int) -> bool:
        """True if this function may run before a row filter."""
        return oid in self._leakproof


def _signature(catalog: Catalog, function: Function) -> str:
    names = []
    for oid in function.arguments:
        kind = catalog.types[oid]
        names.append(kind.name if kind.schema == "pg_catalog" else f"{kind.schema}.{kind.name}")
    return f"{function.schema}.{function.name}({','.join(names)})"
