"""Which built-in functions an agent may call, and which of them may run before a row filter.

Both lists are closed.  Each entry is a function of pg_catalog by name and argument types; a snapshot turns it into an
OID.  It counts only if the function is the server's own (its OID was assigned by initdb) and not SECURITY DEFINER.
Functions behind operators are listed like any other, so an operator is allowed if its function is.

Callable (`PURE`) is what reads nothing but its arguments, the clock or a random source: no side effect, no SQL in an
argument, no catalogue text, no session state, no system information.  Not on the list, and why:

* state that outlives the call or reaches other sessions: setseed, nextval, currval, lastval, setval, set_config,
  pg_notify, pg_advisory_* and pg_try_advisory_*, lo_*, loread, lowrite, pg_export_snapshot, pg_logical_emit_message,
  pg_replication_*, pg_create_*, pg_drop_*, pg_stat_reset*, pg_cancel_backend, pg_terminate_backend, pg_reload_conf;
* settings and identity: current_setting, current_user, session_user, current_schema(s), current_database,
  row_security_active, pg_backend_pid, inet_client_addr, inet_server_addr, pg_my_temp_schema, pg_listening_channels;
* transactions: txid_*, pg_current_xact_id*, pg_current_snapshot, pg_snapshot_*, pg_xact_*, pg_visible_in_snapshot,
  age(xid), mxid_age: they tell of other agents' work;
* time: pg_sleep, pg_sleep_for, pg_sleep_until hold a connection and help timing attacks;
* SQL in an argument: query_to_xml, table_to_xml, schema_to_xml, database_to_xml, cursor_to_xml and their *_xmlschema
  forms, ts_stat, ts_rewrite; of extensions dblink, crosstab, connectby, xpath_table;
* files, raw pages and the log: pg_read_file, pg_read_binary_file, pg_ls_*, pg_stat_file, pg_current_logfile,
  pg_logical_slot_*, pg_walfile_*, pg_current_wal_*, pg_relation_filepath, pg_config, pg_hba_file_rules;
* catalogue text: pg_get_*def, pg_get_expr, pg_get_userbyid, pg_describe_object, pg_identify_object*, obj_description,
  col_description, shobj_description, format_type, pg_options_to_table, pg_prepared_statement, pg_cursor,
  pg_show_all_settings, pg_mcv_list_items;
* existence and rights: to_reg*, has_*_privilege, pg_has_role, pg_*_is_visible, pg_relation_is_updatable,
  pg_input_is_valid and pg_input_error_info (they run the input function of a type named by text);
* sizes and statistics: pg_*_size, pg_column_*, pg_stat_get_*, pg_sequence_*, pg_partition_*, pg_lock_status;
* large values from small arguments: repeat, array_fill;
* XML: its parser is a library with a history, and xpath reads documents that this proxy does not follow;
* records with columns that this proxy does not follow: json_each, json_to_record, json_populate_record;
* input, output, support, transition, index, estimator, trigger and handler functions: never called by name.

Before a row filter (`LEAKPROOF`) may run only comparisons that tell nothing of their arguments but their result.  The
server's own mark (proleakproof) is required but not enough (a superuser can set it): an entry is on this list, is
built in, and is marked by the server, or is on `LEAKPROOF_ADDED` with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from grille.protocols.postgres.catalog import Catalog, Function

FIRST_NORMAL_OID: Final = 16384
"""OIDs below are assigned by initdb (transam.h)."""

PURE: Final[dict[str, str]] = {
    # Behind the comparison operators of built-in types: a value for two values, nothing else.
    "comparisons": """
    aclitemeq(aclitem,aclitem) array_eq(anyarray,anyarray) array_ge(anyarray,anyarray) array_gt(anyarray,anyarray)
    array_le(anyarray,anyarray) array_lt(anyarray,anyarray) array_ne(anyarray,anyarray) biteq(bit,bit) bitge(bit,bit)
    bitgt(bit,bit) bitle(bit,bit) bitlt(bit,bit) bitne(bit,bit) booleq(bool,bool) boolge(bool,bool) boolgt(bool,bool)
    boolle(bool,bool) boollt(bool,bool) boolne(bool,bool) box_above_eq(box,box) box_below_eq(box,box) box_eq(box,box)
    box_ge(box,box) box_gt(box,box) box_le(box,box) box_lt(box,box) bpchar_pattern_ge(bpchar,bpchar)
    bpchar_pattern_gt(bpchar,bpchar) bpchar_pattern_le(bpchar,bpchar) bpchar_pattern_lt(bpchar,bpchar)
    bpchareq(bpchar,bpchar) bpcharge(bpchar,bpchar) bpchargt(bpchar,bpchar) bpcharle(bpchar,bpchar)
    bpcharlt(bpchar,bpchar) bpcharne(bpchar,bpchar) byteaeq(bytea,bytea) byteage(bytea,bytea) byteagt(bytea,bytea)
    byteale(bytea,bytea) bytealt(bytea,bytea) byteane(bytea,bytea) cash_eq(money,money) cash_ge(money,money)
    cash_gt(money,money) cash_le(money,money) cash_lt(money,money) cash_ne(money,money) chareq(char,char)
    charge(char,char) chargt(char,char) charle(char,char) charlt(char,char) charne(char,char) cideq(cid,cid)
    circle_eq(circle,circle) circle_ge(circle,circle) circle_gt(circle,circle) circle_le(circle,circle)
    circle_lt(circle,circle) circle_ne(circle,circle) date_eq(date,date) date_eq_timestamp(date,timestamp)
    date_eq_timestamptz(date,timestamptz) date_ge(date,date) date_ge_timestamp(date,timestamp)
    date_ge_timestamptz(date,timestamptz) date_gt(date,date) date_gt_timestamp(date,timestamp)
    date_gt_timestamptz(date,timestamptz) date_le(date,date) date_le_timestamp(date,timestamp)
    date_le_timestamptz(date,timestamptz) date_lt(date,date) date_lt_timestamp(date,timestamp)
    date_lt_timestamptz(date,timestamptz) date_ne(date,date) date_ne_timestamp(date,timestamp)
    date_ne_timestamptz(date,timestamptz) enum_eq(anyenum,anyenum) enum_ge(anyenum,anyenum) enum_gt(anyenum,anyenum)
    enum_le(anyenum,anyenum) enum_lt(anyenum,anyenum) enum_ne(anyenum,anyenum) float48eq(float4,float8)
    float48ge(float4,float8) float48gt(float4,float8) float48le(float4,float8) float48lt(float4,float8)
    float48ne(float4,float8) float4eq(float4,float4) float4ge(float4,float4) float4gt(float4,float4)
    float4le(float4,float4) float4lt(float4,float4) float4ne(float4,float4) float84eq(float8,float4)
    float84ge(float8,float4) float84gt(float8,float4) float84le(float8,float4) float84lt(float8,float4)
    float84ne(float8,float4) float8eq(float8,float8) float8ge(float8,float8) float8gt(float8,float8)
    float8le(float8,float8) float8lt(float8,float8) float8ne(float8,float8) int24eq(int2,int4) int24ge(int2,int4)
    int24gt(int2,int4) int24le(int2,int4) int24lt(int2,int4) int24ne(int2,int4) int28eq(int2,int8) int28ge(int2,int8)
    int28gt(int2,int8) int28le(int2,int8) int28lt(int2,int8) int28ne(int2,int8) int2eq(int2,int2) int2ge(int2,int2)
    int2gt(int2,int2) int2le(int2,int2) int2lt(int2,int2) int2ne(int2,int2) int42eq(int4,int2) int42ge(int4,int2)
    int42gt(int4,int2) int42le(int4,int2) int42lt(int4,int2) int42ne(int4,int2) int48eq(int4,int8) int48ge(int4,int8)
    int48gt(int4,int8) int48le(int4,int8) int48lt(int4,int8) int48ne(int4,int8) int4eq(int4,int4) int4ge(int4,int4)
    int4gt(int4,int4) int4le(int4,int4) int4lt(int4,int4) int4ne(int4,int4) int82eq(int8,int2) int82ge(int8,int2)
    int82gt(int8,int2) int82le(int8,int2) int82lt(int8,int2) int82ne(int8,int2) int84eq(int8,int4) int84ge(int8,int4)
    int84gt(int8,int4) int84le(int8,int4) int84lt(int8,int4) int84ne(int8,int4) int8eq(int8,int8) int8ge(int8,int8)
    int8gt(int8,int8) int8le(int8,int8) int8lt(int8,int8) int8ne(int8,int8) interval_eq(interval,interval)
    interval_ge(interval,interval) interval_gt(interval,interval) interval_le(interval,interval)
    interval_lt(interval,interval) interval_ne(interval,interval) jsonb_eq(jsonb,jsonb) jsonb_ge(jsonb,jsonb)
    jsonb_gt(jsonb,jsonb) jsonb_le(jsonb,jsonb) jsonb_lt(jsonb,jsonb) jsonb_ne(jsonb,jsonb) line_eq(line,line)
    lseg_eq(lseg,lseg) lseg_ge(lseg,lseg) lseg_gt(lseg,lseg) lseg_le(lseg,lseg) lseg_lt(lseg,lseg) lseg_ne(lseg,lseg)
    macaddr8_eq(macaddr8,macaddr8) macaddr8_ge(macaddr8,macaddr8) macaddr8_gt(macaddr8,macaddr8)
    macaddr8_le(macaddr8,macaddr8) macaddr8_lt(macaddr8,macaddr8) macaddr8_ne(macaddr8,macaddr8)
    macaddr_eq(macaddr,macaddr) macaddr_ge(macaddr,macaddr) macaddr_gt(macaddr,macaddr) macaddr_le(macaddr,macaddr)
    macaddr_lt(macaddr,macaddr) macaddr_ne(macaddr,macaddr) multirange_adjacent_multirange(anymultirange,anymultirange)
    multirange_adjacent_range(anymultirange,anyrange) multirange_after_multirange(anymultirange,anymultirange)
    multirange_after_range(anymultirange,anyrange) multirange_before_multirange(anymultirange,anymultirange)
    multirange_before_range(anymultirange,anyrange) multirange_contains_multirange(anymultirange,anymultirange)
    multirange_contains_range(anymultirange,anyrange) multirange_eq(anymultirange,anymultirange)
    multirange_ge(anymultirange,anymultirange) multirange_gt(anymultirange,anymultirange)
    multirange_le(anymultirange,anymultirange) multirange_lt(anymultirange,anymultirange)
    multirange_ne(anymultirange,anymultirange) multirange_overright_multirange(anymultirange,anymultirange)
    multirange_overright_range(anymultirange,anyrange) nameeq(name,name) nameeqtext(name,text) namege(name,name)
    namegetext(name,text) namegt(name,name) namegttext(name,text) namele(name,name) nameletext(name,text)
    namelt(name,name) namelttext(name,text) namene(name,name) namenetext(name,text) network_eq(inet,inet)
    network_ge(inet,inet) network_gt(inet,inet) network_le(inet,inet) network_lt(inet,inet) network_ne(inet,inet)
    network_subeq(inet,inet) network_supeq(inet,inet) numeric_eq(numeric,numeric) numeric_ge(numeric,numeric)
    numeric_gt(numeric,numeric) numeric_le(numeric,numeric) numeric_lt(numeric,numeric) numeric_ne(numeric,numeric)
    oideq(oid,oid) oidge(oid,oid) oidgt(oid,oid) oidle(oid,oid) oidlt(oid,oid) oidne(oid,oid)
    oidvectoreq(oidvector,oidvector) oidvectorge(oidvector,oidvector) oidvectorgt(oidvector,oidvector)
    oidvectorle(oidvector,oidvector) oidvectorlt(oidvector,oidvector) oidvectorne(oidvector,oidvector)
    path_n_eq(path,path) path_n_ge(path,path) path_n_gt(path,path) path_n_le(path,path) path_n_lt(path,path)
    pg_lsn_eq(pg_lsn,pg_lsn) pg_lsn_ge(pg_lsn,pg_lsn) pg_lsn_gt(pg_lsn,pg_lsn) pg_lsn_le(pg_lsn,pg_lsn)
    pg_lsn_lt(pg_lsn,pg_lsn) pg_lsn_ne(pg_lsn,pg_lsn) point_eq(point,point) point_ne(point,point)
    pt_contained_circle(point,circle) range_adjacent_multirange(anyrange,anymultirange)
    range_after_multirange(anyrange,anymultirange) range_before_multirange(anyrange,anymultirange)
    range_contains_multirange(anyrange,anymultirange) range_eq(anyrange,anyrange) range_ge(anyrange,anyrange)
    range_gt(anyrange,anyrange) range_le(anyrange,anyrange) range_lt(anyrange,anyrange) range_ne(anyrange,anyrange)
    range_overright_multirange(anyrange,anymultirange) record_eq(record,record) record_ge(record,record)
    record_gt(record,record) record_image_eq(record,record) record_image_ge(record,record)
    record_image_gt(record,record) record_image_le(record,record) record_image_lt(record,record)
    record_image_ne(record,record) record_le(record,record) record_lt(record,record) record_ne(record,record)
    text_ge(text,text) text_gt(text,text) text_le(text,text) text_lt(text,text) text_pattern_ge(text,text)
    text_pattern_gt(text,text) text_pattern_le(text,text) text_pattern_lt(text,text) texteq(text,text)
    texteqname(text,name) textgename(text,name) textgtname(text,name) textlename(text,name) textltname(text,name)
    textne(text,text) textnename(text,name) tideq(tid,tid) tidge(tid,tid) tidgt(tid,tid) tidle(tid,tid) tidlt(tid,tid)
    tidne(tid,tid) time_eq(time,time) time_ge(time,time) time_gt(time,time) time_le(time,time) time_lt(time,time)
    time_ne(time,time) timestamp_eq(timestamp,timestamp) timestamp_eq_date(timestamp,date)
    timestamp_eq_timestamptz(timestamp,timestamptz) timestamp_ge(timestamp,timestamp) timestamp_ge_date(timestamp,date)
    timestamp_ge_timestamptz(timestamp,timestamptz) timestamp_gt(timestamp,timestamp) timestamp_gt_date(timestamp,date)
    timestamp_gt_timestamptz(timestamp,timestamptz) timestamp_le(timestamp,timestamp) timestamp_le_date(timestamp,date)
    timestamp_le_timestamptz(timestamp,timestamptz) timestamp_lt(timestamp,timestamp) timestamp_lt_date(timestamp,date)
    timestamp_lt_timestamptz(timestamp,timestamptz) timestamp_ne(timestamp,timestamp) timestamp_ne_date(timestamp,date)
    timestamp_ne_timestamptz(timestamp,timestamptz) timestamptz_eq(timestamptz,timestamptz)
    timestamptz_eq_date(timestamptz,date) timestamptz_eq_timestamp(timestamptz,timestamp)
    timestamptz_ge(timestamptz,timestamptz) timestamptz_ge_date(timestamptz,date)
    timestamptz_ge_timestamp(timestamptz,timestamp) timestamptz_gt(timestamptz,timestamptz)
    timestamptz_gt_date(timestamptz,date) timestamptz_gt_timestamp(timestamptz,timestamp)
    timestamptz_le(timestamptz,timestamptz) timestamptz_le_date(timestamptz,date)
    timestamptz_le_timestamp(timestamptz,timestamp) timestamptz_lt(timestamptz,timestamptz)
    timestamptz_lt_date(timestamptz,date) timestamptz_lt_timestamp(timestamptz,timestamp)
    timestamptz_ne(timestamptz,timestamptz) timestamptz_ne_date(timestamptz,date)
    timestamptz_ne_timestamp(timestamptz,timestamp) timetz_eq(timetz,timetz) timetz_ge(timetz,timetz)
    timetz_gt(timetz,timetz) timetz_le(timetz,timetz) timetz_lt(timetz,timetz) timetz_ne(timetz,timetz)
    tsquery_eq(tsquery,tsquery) tsquery_ge(tsquery,tsquery) tsquery_gt(tsquery,tsquery) tsquery_le(tsquery,tsquery)
    tsquery_lt(tsquery,tsquery) tsquery_ne(tsquery,tsquery) tsvector_eq(tsvector,tsvector)
    tsvector_ge(tsvector,tsvector) tsvector_gt(tsvector,tsvector) tsvector_le(tsvector,tsvector)
    tsvector_lt(tsvector,tsvector) tsvector_ne(tsvector,tsvector) uuid_eq(uuid,uuid) uuid_ge(uuid,uuid)
    uuid_gt(uuid,uuid) uuid_le(uuid,uuid) uuid_lt(uuid,uuid) uuid_ne(uuid,uuid) varbiteq(varbit,varbit)
    varbitge(varbit,varbit) varbitgt(varbit,varbit) varbitle(varbit,varbit) varbitlt(varbit,varbit)
    varbitne(varbit,varbit) xid8eq(xid8,xid8) xid8ge(xid8,xid8) xid8gt(xid8,xid8) xid8le(xid8,xid8) xid8lt(xid8,xid8)
    xid8ne(xid8,xid8) xideq(xid,xid) xideqint4(xid,int4) xidneq(xid,xid) xidneqint4(xid,int4)
    """,
    # Behind the arithmetic, bit and concatenation operators; they may raise on overflow or division.
    "arithmetic and concatenation": """
    aclcontains(_aclitem,aclitem) anytextcat(anynonarray,text) bitand(bit,bit) bitcat(varbit,varbit) bitnot(bit)
    bitor(bit,bit) bitshiftleft(bit,int4) bitshiftright(bit,int4) bitxor(bit,bit) byteacat(bytea,bytea)
    cash_div_cash(money,money) cash_div_flt4(money,float4) cash_div_flt8(money,float8) cash_div_int2(money,int2)
    cash_div_int4(money,int4) cash_div_int8(money,int8) cash_mi(money,money) cash_mul_flt4(money,float4)
    cash_mul_flt8(money,float8) cash_mul_int2(money,int2) cash_mul_int4(money,int4) cash_mul_int8(money,int8)
    cash_pl(money,money) dcbrt(float8) dpow(float8,float8) dsqrt(float8) float48div(float4,float8)
    float48mi(float4,float8) float48mul(float4,float8) float48pl(float4,float8) float4abs(float4)
    float4div(float4,float4) float4mi(float4,float4) float4mul(float4,float4) float4pl(float4,float4) float4um(float4)
    float4up(float4) float84div(float8,float4) float84mi(float8,float4) float84mul(float8,float4)
    float84pl(float8,float4) float8abs(float8) float8div(float8,float8) float8mi(float8,float8)
    float8mul(float8,float8) float8pl(float8,float8) float8um(float8) float8up(float8) flt4_mul_cash(float4,money)
    flt8_mul_cash(float8,money) int24div(int2,int4) int24mi(int2,int4) int24mul(int2,int4) int24pl(int2,int4)
    int28div(int2,int8) int28mi(int2,int8) int28mul(int2,int8) int28pl(int2,int8) int2_mul_cash(int2,money)
    int2abs(int2) int2and(int2,int2) int2div(int2,int2) int2mi(int2,int2) int2mod(int2,int2) int2mul(int2,int2)
    int2not(int2) int2or(int2,int2) int2pl(int2,int2) int2shl(int2,int4) int2shr(int2,int4) int2um(int2) int2up(int2)
    int2xor(int2,int2) int42div(int4,int2) int42mi(int4,int2) int42mul(int4,int2) int42pl(int4,int2)
    int48div(int4,int8) int48mi(int4,int8) int48mul(int4,int8) int48pl(int4,int8) int4_mul_cash(int4,money)
    int4abs(int4) int4and(int4,int4) int4div(int4,int4) int4mi(int4,int4) int4mod(int4,int4) int4mul(int4,int4)
    int4not(int4) int4or(int4,int4) int4pl(int4,int4) int4shl(int4,int4) int4shr(int4,int4) int4um(int4) int4up(int4)
    int4xor(int4,int4) int82div(int8,int2) int82mi(int8,int2) int82mul(int8,int2) int82pl(int8,int2)
    int84div(int8,int4) int84mi(int8,int4) int84mul(int8,int4) int84pl(int8,int4) int8_mul_cash(int8,money)
    int8abs(int8) int8and(int8,int8) int8div(int8,int8) int8mi(int8,int8) int8mod(int8,int8) int8mul(int8,int8)
    int8not(int8) int8or(int8,int8) int8pl(int8,int8) int8shl(int8,int4) int8shr(int8,int4) int8um(int8) int8up(int8)
    int8xor(int8,int8) numeric_abs(numeric) numeric_add(numeric,numeric) numeric_div(numeric,numeric)
    numeric_mod(numeric,numeric) numeric_mul(numeric,numeric) numeric_pl_pg_lsn(numeric,pg_lsn)
    numeric_power(numeric,numeric) numeric_sub(numeric,numeric) numeric_uminus(numeric) numeric_uplus(numeric)
    pg_lsn_mi(pg_lsn,pg_lsn) pg_lsn_mii(pg_lsn,numeric) pg_lsn_pli(pg_lsn,numeric) textanycat(text,anynonarray)
    textcat(text,text)
    """,
    # LIKE and regular expressions; slow patterns end at the statement's time limit.
    "patterns": """
    bpchariclike(bpchar,text) bpcharicnlike(bpchar,text) bpcharicregexeq(bpchar,text) bpcharicregexne(bpchar,text)
    bpcharlike(bpchar,text) bpcharnlike(bpchar,text) bpcharregexeq(bpchar,text) bpcharregexne(bpchar,text)
    bytealike(bytea,bytea) byteanlike(bytea,bytea) nameiclike(name,text) nameicnlike(name,text)
    nameicregexeq(name,text) nameicregexne(name,text) namelike(name,text) namenlike(name,text) nameregexeq(name,text)
    nameregexne(name,text) texticlike(text,text) texticnlike(text,text) texticregexeq(text,text)
    texticregexne(text,text) textlike(text,text) textnlike(text,text) textregexeq(text,text) textregexne(text,text)
    """,
    # Mathematics; factorial and the like end at the statement's time limit.
    "numbers": """
    abs(float4|float8|int2|int4|int8|numeric) acos(float8) acosd(float8) acosh(float8) asin(float8) asind(float8)
    asinh(float8) atan(float8) atan2(float8,float8) atan2d(float8,float8) atand(float8) atanh(float8) cbrt(float8)
    ceil(float8|numeric) ceiling(float8|numeric) chr(int4) cos(float8) cosd(float8) cosh(float8) cot(float8)
    cotd(float8) degrees(float8) div(numeric,numeric) erf(float8) erfc(float8) exp(float8|numeric) factorial(int8)
    floor(float8|numeric) gamma(float8) gcd(int4,int4|int8,int8|numeric,numeric)
    lcm(int4,int4|int8,int8|numeric,numeric) lgamma(float8) ln(float8|numeric) log(float8|numeric|numeric,numeric)
    log10(float8|numeric) min_scale(numeric) mod(int2,int2|int4,int4|int8,int8|numeric,numeric)
    pow(float8,float8|numeric,numeric) power(float8,float8|numeric,numeric) radians(float8)
    round(float8|numeric|numeric,int4) scale(numeric) sign(float8|numeric) sin(float8) sind(float8) sinh(float8)
    sqrt(float8|numeric) tan(float8) tand(float8) tanh(float8) to_bin(int4|int8) to_hex(int4|int8) to_oct(int4|int8)
    trim_scale(numeric)
    """,
    # Text and byte strings. Padding is bounded by PostgreSQL's 1 GB a value; repeat is left out because it has no use
    # that is worth a gigabyte.
    "text and bytes": """
    ascii(text) bit_count(bit|bytea) bit_length(bit|bytea|text) btrim(bytea,bytea|text|text,text) casefold(text)
    char_length(bpchar|text) character_length(bpchar|text) concat(any) concat_ws(text,any) convert_from(bytea,name)
    convert_to(text,name) crc32(bytea) crc32c(bytea) decode(text,text) encode(bytea,text) format(text|text,any)
    get_bit(bit,int4|bytea,int8) get_byte(bytea,int4) hashtext(text) hashtextextended(text,int8) initcap(text)
    is_normalized(text,text) left(text,int4) like_escape(bytea,bytea|text,text) lpad(text,int4|text,int4,text)
    ltrim(bytea,bytea|text|text,text) md5(bytea|text) normalize(text,text) octet_length(bit|bpchar|bytea|text)
    overlay(bit,bit,int4|bit,bit,int4,int4|bytea,bytea,int4|bytea,bytea,int4,int4|text,text,int4)
    overlay(text,text,int4,int4) parse_ident(text,bool) pi() pg_encoding_to_char(int4) pg_size_pretty(int8|numeric)
    position(bit,bit|bytea,bytea|text,text) quote_ident(text)
    quote_literal(anyelement|text) quote_nullable(anyelement|text)
    regexp_count(text,text|text,text,int4|text,text,int4,text)
    regexp_instr(text,text|text,text,int4|text,text,int4,int4|text,text,int4,int4,int4)
    regexp_instr(text,text,int4,int4,int4,text|text,text,int4,int4,int4,text,int4)
    regexp_like(text,text|text,text,text) regexp_match(text,text|text,text,text)
    regexp_matches(text,text|text,text,text)
    regexp_replace(text,text,text|text,text,text,int4|text,text,text,int4,int4|text,text,text,int4,int4,text)
    regexp_replace(text,text,text,text) regexp_split_to_array(text,text|text,text,text)
    regexp_split_to_table(text,text|text,text,text)
    regexp_substr(text,text|text,text,int4|text,text,int4,int4|text,text,int4,int4,text)
    regexp_substr(text,text,int4,int4,text,int4) replace(text,text,text) reverse(bytea|text) right(text,int4)
    rpad(text,int4|text,int4,text) rtrim(bytea,bytea|text|text,text) set_bit(bit,int4,int4|bytea,int8,int4)
    set_byte(bytea,int4,int4) sha224(bytea) sha256(bytea) sha384(bytea) sha512(bytea) similar_to_escape(text|text,text)
    split_part(text,text,int4) starts_with(text,text) string_to_array(text,text|text,text,text)
    string_to_table(text,text|text,text,text) strpos(text,text)
    substr(bytea,int4|bytea,int4,int4|text,int4|text,int4,int4)
    substring(bit,int4|bit,int4,int4|bytea,int4|bytea,int4,int4|text,int4|text,int4,int4|text,text|text,text,text)
    to_ascii(text|text,int4|text,name) to_number(text,text) translate(text,text,text) unistr(text)
    uuid_extract_timestamp(uuid) uuid_extract_version(uuid)
    """,
    # Calls that are casts between built-in types; none takes or gives an object identifier type.
    "conversions": """
    bit(bit,int4,bool|int4,int4|int8,int4) bool(int4|jsonb) bpchar(bpchar,int4,bool|char|name) bytea(int2|int4|int8)
    date(timestamp|timestamptz) float4(float8|int2|int4|int8|jsonb|numeric) float8(float4|int2|int4|int8|jsonb|numeric)
    int2(bytea|float4|float8|int4|int8|jsonb|numeric) int4(bit|bool|bytea|char|float4|float8|int2|int8|jsonb|numeric)
    int8(bit|bytea|float4|float8|int2|int4|jsonb|numeric|oid) interval(interval,int4|time) money(int4|int8|numeric)
    name(bpchar|text|varchar) numeric(float4|float8|int2|int4|int8|jsonb|money|numeric,int4) oid(int8)
    text(bool|bpchar|char|inet|name|xml) time(interval|time,int4|timestamp|timestamptz|timetz)
    timestamp(date|date,time|timestamp,int4|timestamptz)
    timestamptz(date|date,time|date,timetz|timestamp|timestamptz,int4) timetz(time|timestamptz|timetz,int4)
    varbit(varbit,int4,bool) varchar(name|varchar,int4,bool)
    """,
    # Dates and times; now() and the like tell the time of the statement, generate_series is bounded by the row limit.
    "dates and times": """
    age(timestamp|timestamp,timestamp|timestamptz|timestamptz,timestamptz)
    date_add(timestamptz,interval|timestamptz,interval,text)
    date_bin(interval,timestamp,timestamp|interval,timestamptz,timestamptz) date_mi(date,date)
    date_mi_interval(date,interval) date_mii(date,int4)
    date_part(text,date|text,interval|text,time|text,timestamp|text,timestamptz|text,timetz)
    date_pl_interval(date,interval) date_pli(date,int4) date_subtract(timestamptz,interval|timestamptz,interval,text)
    date_trunc(text,interval|text,timestamp|text,timestamptz|text,timestamptz,text) datetime_pl(date,time)
    datetimetz_pl(date,timetz) extract(text,date|text,interval|text,time|text,timestamp|text,timestamptz|text,timetz)
    generate_series(int4,int4|int4,int4,int4|int8,int8|int8,int8,int8|numeric,numeric|numeric,numeric,numeric)
    generate_series(timestamp,timestamp,interval|timestamptz,timestamptz,interval)
    generate_series(timestamptz,timestamptz,interval,text) integer_pl_date(int4,date) interval_div(interval,float8)
    interval_mi(interval,interval) interval_mul(interval,float8) interval_pl(interval,interval)
    interval_pl_date(interval,date) interval_pl_time(interval,time) interval_pl_timestamp(interval,timestamp)
    interval_pl_timestamptz(interval,timestamptz) interval_pl_timetz(interval,timetz) interval_um(interval)
    isfinite(date|interval|timestamp|timestamptz) justify_days(interval) justify_hours(interval)
    justify_interval(interval) make_date(int4,int4,int4) make_interval(int4,int4,int4,int4,int4,int4,float8)
    make_time(int4,int4,float8) make_timestamp(int4,int4,int4,int4,int4,float8)
    make_timestamptz(int4,int4,int4,int4,int4,float8|int4,int4,int4,int4,int4,float8,text)
    mul_d_interval(float8,interval) now()
    overlaps(time,interval,time,interval|time,interval,time,time|time,time,time,interval|time,time,time,time)
    overlaps(timestamp,interval,timestamp,interval|timestamp,interval,timestamp,timestamp)
    overlaps(timestamp,timestamp,timestamp,interval|timestamp,timestamp,timestamp,timestamp)
    overlaps(timestamptz,interval,timestamptz,interval|timestamptz,interval,timestamptz,timestamptz)
    overlaps(timestamptz,timestamptz,timestamptz,interval|timestamptz,timestamptz,timestamptz,timestamptz)
    overlaps(timetz,timetz,timetz,timetz) statement_timestamp() time_mi_interval(time,interval) time_mi_time(time,time)
    time_pl_interval(time,interval) timedate_pl(time,date) timestamp_mi(timestamp,timestamp)
    timestamp_mi_interval(timestamp,interval) timestamp_pl_interval(timestamp,interval)
    timestamptz_mi(timestamptz,timestamptz) timestamptz_mi_interval(timestamptz,interval)
    timestamptz_pl_interval(timestamptz,interval) timetz_mi_interval(timetz,interval)
    timetz_pl_interval(timetz,interval) timetzdate_pl(timetz,date)
    timezone(interval,timestamp|interval,timestamptz|interval,timetz|text,timestamp|text,timestamptz|text,timetz)
    timezone(timestamp|timestamptz|timetz)
    to_char(float4,text|float8,text|int4,text|int8,text|interval,text|numeric,text|timestamp,text)
    to_char(timestamptz,text) to_date(text,text) to_timestamp(float8|text,text) transaction_timestamp()
    """,
    # Arrays; array_fill is left out because it makes large values of small arguments.
    "arrays": """
    array_append(anycompatiblearray,anycompatible) array_cat(anycompatiblearray,anycompatiblearray)
    array_dims(anyarray) array_length(anyarray,int4) array_lower(anyarray,int4) array_ndims(anyarray)
    array_position(anycompatiblearray,anycompatible|anycompatiblearray,anycompatible,int4)
    array_positions(anycompatiblearray,anycompatible) array_prepend(anycompatible,anycompatiblearray)
    array_remove(anycompatiblearray,anycompatible) array_replace(anycompatiblearray,anycompatible,anycompatible)
    array_reverse(anyarray) array_sort(anyarray|anyarray,bool|anyarray,bool,bool)
    array_to_string(anyarray,text|anyarray,text,text) array_upper(anyarray,int4) arraycontained(anyarray,anyarray)
    arraycontains(anyarray,anyarray) arrayoverlap(anyarray,anyarray) cardinality(anyarray)
    generate_subscripts(anyarray,int4|anyarray,int4,bool) trim_array(anyarray,int4)
    width_bucket(anycompatible,anycompatiblearray|float8,float8,float8,int4|numeric,numeric,numeric,int4)
    """,
    # Ranges and multiranges.
    "ranges": """
    datemultirange(|_daterange|daterange) daterange(date,date|date,date,text)
    elem_contained_by_multirange(anyelement,anymultirange) elem_contained_by_range(anyelement,anyrange)
    int4multirange(|_int4range|int4range) int4range(int4,int4|int4,int4,text) int8multirange(|_int8range|int8range)
    int8range(int8,int8|int8,int8,text) isempty(anymultirange|anyrange) lower(anymultirange|anyrange|text)
    lower_inc(anymultirange|anyrange) lower_inf(anymultirange|anyrange) multirange(anyrange)
    multirange_contained_by_multirange(anymultirange,anymultirange)
    multirange_contained_by_range(anymultirange,anyrange) multirange_contains_elem(anymultirange,anyelement)
    multirange_intersect(anymultirange,anymultirange) multirange_minus(anymultirange,anymultirange)
    multirange_overlaps_multirange(anymultirange,anymultirange) multirange_overlaps_range(anymultirange,anyrange)
    multirange_overleft_multirange(anymultirange,anymultirange) multirange_overleft_range(anymultirange,anyrange)
    multirange_union(anymultirange,anymultirange) nummultirange(|_numrange|numrange)
    numrange(numeric,numeric|numeric,numeric,text) range_adjacent(anyrange,anyrange) range_after(anyrange,anyrange)
    range_before(anyrange,anyrange) range_contained_by(anyrange,anyrange)
    range_contained_by_multirange(anyrange,anymultirange) range_contains(anyrange,anyrange)
    range_contains_elem(anyrange,anyelement) range_intersect(anyrange,anyrange)
    range_merge(anymultirange|anyrange,anyrange) range_minus(anyrange,anyrange) range_overlaps(anyrange,anyrange)
    range_overlaps_multirange(anyrange,anymultirange) range_overleft(anyrange,anyrange)
    range_overleft_multirange(anyrange,anymultirange) range_overright(anyrange,anyrange) range_union(anyrange,anyrange)
    tsmultirange(|_tsrange|tsrange) tsrange(timestamp,timestamp|timestamp,timestamp,text)
    tstzmultirange(|_tstzrange|tstzrange) tstzrange(timestamptz,timestamptz|timestamptz,timestamptz,text)
    upper(anymultirange|anyrange|text) upper_inc(anymultirange|anyrange) upper_inf(anymultirange|anyrange)
    """,
    # Enums: the labels of a type that the agent has a value of.
    "enums": """
    enum_first(anyenum) enum_last(anyenum) enum_range(anyenum|anyenum,anyenum)
    """,
    # JSON. Documents of whole rows need a whole row as an argument, which is refused elsewhere.
    "json": """
    array_to_json(anyarray|anyarray,bool) json_array_element(json,int4) json_array_element_text(json,int4)
    json_array_elements(json) json_array_elements_text(json) json_array_length(json) json_build_array(|any)
    json_build_object(|any) json_extract_path(json,_text) json_extract_path_text(json,_text)
    json_object(_text|_text,_text) json_object_field(json,text) json_object_field_text(json,text)
    json_object_keys(json) json_strip_nulls(json|json,bool) json_typeof(json) jsonb_array_element(jsonb,int4)
    jsonb_array_element_text(jsonb,int4) jsonb_array_elements(jsonb) jsonb_array_elements_text(jsonb)
    jsonb_array_length(jsonb) jsonb_build_array(|any) jsonb_build_object(|any) jsonb_concat(jsonb,jsonb)
    jsonb_contained(jsonb,jsonb) jsonb_contains(jsonb,jsonb) jsonb_delete(jsonb,_text|jsonb,int4|jsonb,text)
    jsonb_delete_path(jsonb,_text) jsonb_exists(jsonb,text) jsonb_exists_all(jsonb,_text) jsonb_exists_any(jsonb,_text)
    jsonb_extract_path(jsonb,_text) jsonb_extract_path_text(jsonb,_text) jsonb_insert(jsonb,_text,jsonb,bool)
    jsonb_object(_text|_text,_text) jsonb_object_field(jsonb,text) jsonb_object_field_text(jsonb,text)
    jsonb_object_keys(jsonb) jsonb_path_exists(jsonb,jsonpath,jsonb,bool) jsonb_path_exists_opr(jsonb,jsonpath)
    jsonb_path_exists_tz(jsonb,jsonpath,jsonb,bool) jsonb_path_match(jsonb,jsonpath,jsonb,bool)
    jsonb_path_match_opr(jsonb,jsonpath) jsonb_path_match_tz(jsonb,jsonpath,jsonb,bool)
    jsonb_path_query(jsonb,jsonpath,jsonb,bool) jsonb_path_query_array(jsonb,jsonpath,jsonb,bool)
    jsonb_path_query_array_tz(jsonb,jsonpath,jsonb,bool) jsonb_path_query_first(jsonb,jsonpath,jsonb,bool)
    jsonb_path_query_first_tz(jsonb,jsonpath,jsonb,bool) jsonb_path_query_tz(jsonb,jsonpath,jsonb,bool)
    jsonb_pretty(jsonb) jsonb_set(jsonb,_text,jsonb,bool) jsonb_set_lax(jsonb,_text,jsonb,bool,text)
    jsonb_strip_nulls(jsonb|jsonb,bool) jsonb_typeof(jsonb) row_to_json(record|record,bool) to_json(anyelement)
    to_jsonb(anyelement)
    """,
    # Network addresses; the session's own (inet_client_addr, ...) are left out.
    "network": """
    abbrev(cidr|inet) broadcast(inet) family(inet) host(inet) hostmask(inet) inet_merge(inet,inet)
    inet_same_family(inet,inet) inetand(inet,inet) inetmi(inet,inet) inetmi_int8(inet,int8) inetnot(inet)
    inetor(inet,inet) inetpl(inet,int8) int8pl_inet(int8,inet) macaddr8_and(macaddr8,macaddr8) macaddr8_not(macaddr8)
    macaddr8_or(macaddr8,macaddr8) macaddr_and(macaddr,macaddr) macaddr_not(macaddr) macaddr_or(macaddr,macaddr)
    masklen(inet) netmask(inet) network(inet) network_overlap(inet,inet) network_sub(inet,inet) network_sup(inet,inet)
    set_masklen(cidr,int4|inet,int4) trunc(float8|macaddr|macaddr8|numeric|numeric,int4)
    """,
    # Points, lines, boxes, circles, paths and polygons.
    "geometry": """
    area(box|circle|path) bound_box(box,box) box(circle|point|point,point|polygon) box_above(box,box)
    box_add(box,point) box_below(box,box) box_center(box) box_contain(box,box) box_contain_pt(box,point)
    box_contained(box,box) box_distance(box,box) box_div(box,point) box_intersect(box,box) box_left(box,box)
    box_mul(box,point) box_overabove(box,box) box_overbelow(box,box) box_overlap(box,box) box_overleft(box,box)
    box_overright(box,box) box_right(box,box) box_same(box,box) box_sub(box,point) center(box|circle)
    circle(box|point,float8|polygon) circle_above(circle,circle) circle_add_pt(circle,point)
    circle_below(circle,circle) circle_center(circle) circle_contain(circle,circle) circle_contain_pt(circle,point)
    circle_contained(circle,circle) circle_distance(circle,circle) circle_div_pt(circle,point)
    circle_left(circle,circle) circle_mul_pt(circle,point) circle_overabove(circle,circle)
    circle_overbelow(circle,circle) circle_overlap(circle,circle) circle_overleft(circle,circle)
    circle_overright(circle,circle) circle_right(circle,circle) circle_same(circle,circle) circle_sub_pt(circle,point)
    close_ls(line,lseg) close_lseg(lseg,lseg) close_pb(point,box) close_pl(point,line) close_ps(point,lseg)
    close_sb(lseg,box) diagonal(box) diameter(circle) dist_bp(box,point) dist_bs(box,lseg) dist_cpoint(circle,point)
    dist_cpoly(circle,polygon) dist_lp(line,point) dist_ls(line,lseg) dist_pathp(path,point) dist_pb(point,box)
    dist_pc(point,circle) dist_pl(point,line) dist_polyc(polygon,circle) dist_polyp(polygon,point)
    dist_ppath(point,path) dist_ppoly(point,polygon) dist_ps(point,lseg) dist_sb(lseg,box) dist_sl(lseg,line)
    dist_sp(lseg,point) height(box) inter_lb(line,box) inter_sb(lseg,box) inter_sl(lseg,line) isclosed(path)
    ishorizontal(line|lseg|point,point) isopen(path) isparallel(line,line|lseg,lseg) isperp(line,line|lseg,lseg)
    isvertical(line|lseg|point,point) length(bit|bpchar|bytea|bytea,name|lseg|path|text|tsvector) line(point,point)
    line_distance(line,line) line_horizontal(line) line_interpt(line,line) line_intersect(line,line)
    line_parallel(line,line) line_perp(line,line) line_vertical(line) lseg(box|point,point) lseg_center(lseg)
    lseg_distance(lseg,lseg) lseg_horizontal(lseg) lseg_interpt(lseg,lseg) lseg_intersect(lseg,lseg) lseg_length(lseg)
    lseg_parallel(lseg,lseg) lseg_perp(lseg,lseg) lseg_vertical(lseg) npoints(path|polygon) on_pb(point,box)
    on_pl(point,line) on_ppath(point,path) on_ps(point,lseg) on_sb(lseg,box) on_sl(lseg,line) path(polygon)
    path_add(path,path) path_add_pt(path,point) path_contain_pt(path,point) path_distance(path,path)
    path_div_pt(path,point) path_inter(path,path) path_length(path) path_mul_pt(path,point) path_npoints(path)
    path_sub_pt(path,point) pclose(path) point(box|circle|float8,float8|lseg|polygon) point_above(point,point)
    point_add(point,point) point_below(point,point) point_distance(point,point) point_div(point,point)
    point_horiz(point,point) point_left(point,point) point_mul(point,point) point_right(point,point)
    point_sub(point,point) point_vert(point,point) poly_above(polygon,polygon) poly_below(polygon,polygon)
    poly_center(polygon) poly_contain(polygon,polygon) poly_contain_pt(polygon,point) poly_contained(polygon,polygon)
    poly_distance(polygon,polygon) poly_left(polygon,polygon) poly_npoints(polygon) poly_overabove(polygon,polygon)
    poly_overbelow(polygon,polygon) poly_overlap(polygon,polygon) poly_overleft(polygon,polygon)
    poly_overright(polygon,polygon) poly_right(polygon,polygon) poly_same(polygon,polygon)
    polygon(box|circle|int4,circle|path) popen(path) pt_contained_poly(point,polygon) radius(circle) slope(point,point)
    width(box)
    """,
    # Text search. A configuration is chosen by name; which configurations exist is no secret. ts_stat, ts_rewrite
    # (SQL in an argument), ts_debug, ts_parse, ts_lexize and ts_token_type (catalogue text) are left out.
    "text search": """
    array_to_tsvector(_text) numnode(tsquery) phraseto_tsquery(regconfig,text|text)
    plainto_tsquery(regconfig,text|text) querytree(tsquery) setweight(tsvector,char|tsvector,char,_text)
    strip(tsvector) to_tsquery(regconfig,text|text)
    to_tsvector(json|jsonb|regconfig,json|regconfig,jsonb|regconfig,text|text) ts_delete(tsvector,_text|tsvector,text)
    ts_filter(tsvector,_char)
    ts_headline(json,tsquery|json,tsquery,text|jsonb,tsquery|jsonb,tsquery,text|regconfig,json,tsquery)
    ts_headline(regconfig,json,tsquery,text|regconfig,jsonb,tsquery|regconfig,jsonb,tsquery,text)
    ts_headline(regconfig,text,tsquery|regconfig,text,tsquery,text|text,tsquery|text,tsquery,text)
    ts_match_qv(tsquery,tsvector) ts_match_tq(text,tsquery) ts_match_tt(text,text) ts_match_vq(tsvector,tsquery)
    ts_rank(_float4,tsvector,tsquery|_float4,tsvector,tsquery,int4|tsvector,tsquery|tsvector,tsquery,int4)
    ts_rank_cd(_float4,tsvector,tsquery|_float4,tsvector,tsquery,int4|tsvector,tsquery|tsvector,tsquery,int4)
    tsq_mcontained(tsquery,tsquery) tsq_mcontains(tsquery,tsquery) tsquery_and(tsquery,tsquery) tsquery_not(tsquery)
    tsquery_or(tsquery,tsquery) tsquery_phrase(tsquery,tsquery) tsvector_concat(tsvector,tsvector)
    tsvector_to_array(tsvector) unnest(anyarray|anymultirange|tsvector) websearch_to_tsquery(regconfig,text|text)
    """,
    # Aggregates; direct and ordered arguments count alike.
    "aggregates": """
    any_value(anyelement) array_agg(anyarray|anynonarray) avg(float4|float8|int2|int4|int8|interval|numeric)
    bit_and(bit|int2|int4|int8) bit_or(bit|int2|int4|int8) bit_xor(bit|int2|int4|int8) bool_and(bool) bool_or(bool)
    corr(float8,float8) count(|any) covar_pop(float8,float8) covar_samp(float8,float8) cume_dist(|any) dense_rank(|any)
    every(bool) json_agg(anyelement) json_agg_strict(anyelement) json_object_agg(any,any)
    json_object_agg_strict(any,any) json_object_agg_unique(any,any) json_object_agg_unique_strict(any,any)
    jsonb_agg(anyelement) jsonb_agg_strict(anyelement) jsonb_object_agg(any,any) jsonb_object_agg_strict(any,any)
    jsonb_object_agg_unique(any,any) jsonb_object_agg_unique_strict(any,any)
    max(anyarray|anyenum|bpchar|bytea|date|float4|float8|inet|int2|int4|int8|interval|money|numeric|oid|pg_lsn)
    max(record|text|tid|time|timestamp|timestamptz|timetz|xid8)
    min(anyarray|anyenum|bpchar|bytea|date|float4|float8|inet|int2|int4|int8|interval|money|numeric|oid|pg_lsn)
    min(record|text|tid|time|timestamp|timestamptz|timetz|xid8) mode(anyelement) percent_rank(|any)
    percentile_cont(_float8,float8|_float8,interval|float8,float8|float8,interval)
    percentile_disc(_float8,anyelement|float8,anyelement) range_agg(anymultirange|anyrange)
    range_intersect_agg(anymultirange|anyrange) rank(|any) regr_avgx(float8,float8) regr_avgy(float8,float8)
    regr_count(float8,float8) regr_intercept(float8,float8) regr_r2(float8,float8) regr_slope(float8,float8)
    regr_sxx(float8,float8) regr_sxy(float8,float8) regr_syy(float8,float8)
    stddev(float4|float8|int2|int4|int8|numeric) stddev_pop(float4|float8|int2|int4|int8|numeric)
    stddev_samp(float4|float8|int2|int4|int8|numeric) string_agg(bytea,bytea|text,text)
    sum(float4|float8|int2|int4|int8|interval|money|numeric) var_pop(float4|float8|int2|int4|int8|numeric)
    var_samp(float4|float8|int2|int4|int8|numeric) variance(float4|float8|int2|int4|int8|numeric)
    """,
    # Window functions.
    "windows": """
    first_value(anyelement) lag(anycompatible,int4,anycompatible|anyelement|anyelement,int4) last_value(anyelement)
    lead(anycompatible,int4,anycompatible|anyelement|anyelement,int4) nth_value(anyelement,int4) ntile(int4)
    row_number()
    """,
    # version() is sent by drivers when they connect and repeats the server_version of the startup; pg_typeof tells a
    # type that the agent wrote itself.
    "miscellaneous": """
    num_nonnulls(any) num_nulls(any) pg_typeof(any) version()
    """,
    # Volatile, and yet harmless: they read the clock or a random source, and change nothing that another statement
    # sees. The seed of random() cannot be set, because setseed is left out.
    "volatile": """
    clock_timestamp() gen_random_uuid() random(|int4,int4|int8,int8|numeric,numeric) random_normal(float8,float8)
    uuidv4() uuidv7(|interval)
    """,
}
"""By reason: ``name(types|types)`` for each function with its overloads, type names as in pg_type."""

VOLATILE: Final = "volatile"
"""The only group of `PURE` whose functions may be volatile."""

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
    network_eq network_ge network_gt network_le network_lt network_ne oideq oidge oidgt oidle oidlt oidne
    oidvectoreq oidvectorge oidvectorgt oidvectorle oidvectorlt oidvectorne pg_lsn_eq pg_lsn_ge pg_lsn_gt
    pg_lsn_le pg_lsn_lt pg_lsn_ne text_ge text_gt text_le text_lt text_pattern_ge text_pattern_gt
    text_pattern_le text_pattern_lt texteq texteqname textgename textgtname textlename textltname textne
    textnename tideq tidge tidgt tidle tidlt tidne time_eq time_ge time_gt time_le time_lt time_ne timestamp_eq
    timestamp_ge timestamp_gt timestamp_le timestamp_lt timestamp_ne timestamptz_eq timestamptz_ge
    timestamptz_gt timestamptz_le timestamptz_lt timestamptz_ne timetz_eq timetz_ge timetz_gt timetz_le
    timetz_lt timetz_ne uuid_eq uuid_ge uuid_gt uuid_le uuid_lt uuid_ne varbiteq varbitge varbitgt varbitle
    varbitlt varbitne xid8eq xid8ge xid8gt xid8le xid8lt xid8ne xideq xideqint4 xidneq xidneqint4
    """.split()
)
"""Names of the functions behind comparison operators that the server marks proleakproof, in 15 and 18 alike."""

LEAKPROOF_ADDED: Final = frozenset("numeric_eq numeric_ne numeric_lt numeric_le numeric_gt numeric_ge".split())
"""Not marked by the server, reviewed: cmp_numerics compares sign, weight and digits of two stored values, and raises
nothing for any of them, NaN and infinities included.  Without these, conditions on amounts would lose their index."""


class Purity:
    """The two lists as OIDs of one snapshot."""

    def __init__(self, catalog: Catalog, functions: Sequence[str] = ()) -> None:
        """`functions`: routines outside pg_catalog that the configuration lists, ``schema.name(type,type)``.

        Their types are named as in pg_type or as SQL spells them (``integer``, ``text[]``); types outside pg_catalog
        with their schema.
        """
        listed = {normal_signature(name) for name in functions} - {""}
        behind_operators = {operator.function for operator in catalog.operators.values()}
        pure, leakproof = set(), set()
        for function in catalog.functions.values():
            if function.schema != "pg_catalog" or function.oid >= FIRST_NORMAL_OID:
                if listed and function.kind == "f" and signature_of(catalog, function, qualified=True) in listed:
                    pure.add(function.oid)
                continue
            if function.security_definer or function.kind == "p":
                continue
            group = _GROUPS.get(signature_of(catalog, function))
            if group is not None and (function.volatility != "v" or group == VOLATILE):
                pure.add(function.oid)
            marked = function.leakproof and function.name in LEAKPROOF
            comparison = function.oid in behind_operators and function.volatility == "i" and function.oid in pure
            if comparison and (marked or function.name in LEAKPROOF_ADDED):
                leakproof.add(function.oid)
        self._pure, self._leakproof = frozenset(pure), frozenset(leakproof)
        self.quiet_casts = not any(
            cast.context == "i"
            and cast.function >= FIRST_NORMAL_OID
            and catalog.functions[cast.function].volatility == "v"
            for cast in catalog.casts.values()
        )
        """No conversion that an agent does not write runs a volatile function of the database's own."""

    def pure(self, oid: int) -> bool:
        """True if agents may call this function."""
        return oid in self._pure

    def leakproof(self, oid: int) -> bool:
        """True if this function may run before a row filter."""
        return oid in self._leakproof


_SPELLINGS: Final = {
    "bigint": "int8",
    "bit varying": "varbit",
    "boolean": "bool",
    "character varying": "varchar",
    "character": "bpchar",
    "decimal": "numeric",
    "double precision": "float8",
    "int": "int4",
    "integer": "int4",
    "real": "float4",
    "smallint": "int2",
    "time with time zone": "timetz",
    "time without time zone": "time",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
}


def signature_of(catalog: Catalog, function: Function, *, qualified: bool = False) -> str:
    """``name(type,type)`` with types named as in pg_type; with `qualified` also the schema.  Empty if it has none."""
    names = []
    for oid in function.arguments:
        kind = catalog.types.get(oid)
        if kind is None:
            return ""
        element = catalog.types.get(kind.element) if qualified and kind.element and kind.name.startswith("_") else None
        shown = element or kind
        schema = "" if shown.schema == "pg_catalog" else f"{shown.schema}."
        names.append(f"{schema}{shown.name}{'[]' if element is not None else ''}")
    name = f"{function.schema}.{function.name}" if qualified else function.name
    return f"{name}({','.join(names)})"


def normal_signature(signature: str) -> str:
    """A configured routine with its types spelled as in pg_type."""
    name, parenthesis, rest = signature.strip().partition("(")
    if not parenthesis:
        return ""
    types = []
    for part in rest.removesuffix(")").split(",") if rest.removesuffix(")").strip() else []:
        words = " ".join(part.split())
        array = words.endswith("[]")
        bare = words.removesuffix("[]").strip().removeprefix("pg_catalog.")
        types.append(_SPELLINGS.get(bare, bare) + ("[]" if array else ""))
    return f"{name.strip()}({','.join(types)})"


def _read(table: dict[str, str]) -> dict[str, str]:
    """Each signature of the table -> its group."""
    return {
        f"{name}({types})": group
        for group, text in table.items()
        for name, overloads in re.findall(r"(\w+)\(([^)]*)\)", text)
        for types in overloads.split("|")
    }


_GROUPS: Final = _read(PURE)
