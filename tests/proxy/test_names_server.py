"""Names of output columns that have none, against a real server (FigureColname)."""

from __future__ import annotations

import psycopg
import pytest
from postgast import parse

from grille.protocols.postgres.analysis import _figure_name
from grille.proxy.demo.cluster import Cluster

EXPRESSIONS = (
    "1", "a", "t.a", "(t).a", "arr[1]", "(t).arr[1]", "arr[1:2]", "(ARRAY[1])[1]", "1 + 1", "n + 1", "-n", "NOT b",
    "lower('x')", "pg_catalog.lower('x')", "'1'::int", "a::text", "'1'::pg_catalog.int4::text",
    "(n + 1)::numeric(5, 2)",
    "ARRAY[1]::bigint[]", "a COLLATE \"C\"", "('x' || 'y') COLLATE \"C\"", "coalesce(a, 'x')", "nullif(a, 'x')",
    "greatest(1, 2)", "least(1, 2)", "CASE WHEN b THEN a END", "CASE WHEN b THEN 1 ELSE 2 END",
    "CASE WHEN b THEN 'x' ELSE a END",
    "CASE WHEN b THEN 'x' ELSE (t).a END", "CASE WHEN b THEN 1 ELSE '2'::int END", "CASE WHEN b THEN 1 ELSE arr[1] END",
    "(CASE WHEN b THEN 1 END)::text", "(CASE WHEN b THEN 1 ELSE 2 END)::text",
    "(CASE WHEN b THEN 'x' ELSE a END)::text",
    "CASE WHEN b THEN 1 ELSE (SELECT 2) END", "CASE WHEN b THEN 1 ELSE (SELECT 2 AS z) END", "EXISTS (SELECT 1)",
    "ARRAY(SELECT 1)", "ARRAY[1]", "(SELECT a)", "(SELECT 1 AS z)", "(SELECT 1)", "(SELECT 1)::text", "1 IN (SELECT 2)",
    "ROW(1, 2)", "current_date", "current_user", "current_timestamp", "localtime", "grouping(a)", "count(*)",
    "a IS NULL",
    "b IS TRUE", "a LIKE 'x'", "a BETWEEN 'x' AND 'y'", "EXTRACT(year FROM now())", "position('a' IN 'b')",
    "trim('x')",
    "substring('x' FROM 1)", "overlay('x' PLACING 'y' FROM 1)", "date '2020-01-01'", "interval '1 day'", "true", "NULL",
)  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_output_is_called_as_the_server_calls_it(pg18: Cluster, expression: str) -> None:
    grouped = " GROUP BY a" if "grouping" in expression else ""
    text = f"SELECT {expression} FROM (SELECT 'x'::text, true, ARRAY[1], 5) t(a, b, arr, n){grouped}"
    with psycopg.connect(pg18.dsn()) as connection:
        description = connection.execute(text).description  # type: ignore[call-overload]
    assert description is not None
    assert _figure_name(parse(text).stmts[0].stmt.select_stmt.target_list[0].res_target.val) == description[0].name
