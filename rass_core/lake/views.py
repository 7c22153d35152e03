"""SQL over the lake: the views, and queries whose errors are one line."""

import re
from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from rass_core.errors import LakeError
from rass_core.lake.older import column_sql
from rass_core.lake.schema import DECLARED, TABLES, unknown_table

_NEWEST_OF = {"prompts": "prompt_id", "runs": "run_id"}
"""Tables whose view holds the newest row of each id."""
ADVICE = "restore it, or delete it to do without its rows"
"""What a commit record that cannot be read needs."""
VIEWS_HEAD = """\
-- Written by RASS. Start `duckdb -init views.sql` in this folder; `.read views.sql` takes in later commits.
"""


def views_sql(root: str) -> str:
    """Return the SQL that lists the files of whole commits and lays the views over them.

    Records come before the sizes: a commit made in between is then not taken for damaged. Where two runs
    raced for one key, the first counts.
    """
    no_record = f"error(filename || ': not a commit record; {ADVICE}')"
    statements = [
        f"""\
CREATE OR REPLACE TEMP TABLE commits AS
  SELECT * EXCLUDE (filename) REPLACE (coalesce({quoted(root)} || path, {no_record}) AS path)
  FROM read_parquet({quoted(root + "_commits/*/*.parquet")}, union_by_name = true, filename = true);
CREATE OR REPLACE TEMP TABLE damaged AS
  SELECT DISTINCT c.run_id, c.key FROM commits c
  LEFT JOIN (  -- DuckDB 1.5 puts ./ before what a relative glob finds
    SELECT regexp_replace(filename, '^[.]/', '') AS filename, size
    FROM read_blob({quoted(root + "*/run_id=*/shard=*/*.parquet")})) f
  ON f.filename = c.path WHERE f.size IS DISTINCT FROM c.bytes;
CREATE OR REPLACE TEMP TABLE commits AS
  SELECT * FROM commits ANTI JOIN damaged USING (run_id, key)
  QUALIFY rank() OVER (PARTITION BY key ORDER BY committed_at, run_id) = 1;
"""
    ]
    for table in TABLES:
        newest = ""
        if table in _NEWEST_OF:
            newest = (
                " LEFT JOIN (SELECT path AS filename, committed_at FROM commits) USING (filename)"
                f"\n  QUALIFY row_number() OVER (PARTITION BY {_NEWEST_OF[table]}"
                " ORDER BY committed_at DESC, filename) = 1"
            )
        statements.append(f"""\
SET VARIABLE files_{table} = (
  SELECT [{quoted(root + schema_path(table))}] || coalesce(list(path ORDER BY committed_at, path), [])
  FROM commits WHERE table_name = '{table}');
CREATE OR REPLACE TEMP VIEW "{table}" AS {rows_sql(table, f"getvariable('files_{table}')")}{newest};
""")
    return "".join(statements)


def comments_sql() -> str:
    """Return the SQL that says in DuckDB what each view and column holds; `duckdb_columns()` shows it."""
    statements = []
    for table in DECLARED.values():
        kind = "VIEW" if table.name in TABLES else "TABLE"
        statements.append(f'COMMENT ON {kind} "{table.name}" IS {quoted(table.sentence)};\n')
        statements += [
            f'COMMENT ON COLUMN "{table.name}"."{column.name}" IS {quoted(column.comment)};\n'
            for column in table.columns
        ]
    for name in TABLES:
        statements.append(f'COMMENT ON COLUMN "{name}"."run_id" IS \'Run that wrote the row.\';\n')
        statements.append(f'COMMENT ON COLUMN "{name}"."shard" IS \'Key of the commit that holds the row.\';\n')
    return "".join(statements)


def rows_sql(table: str, files: str) -> str:
    """Return the query for the rows of a table, with `run_id` and `shard`, in files of any format.

    Args:
        table: Table of the lake.
        files: A list of Parquet files as SQL, the table's file without rows among them.
    """
    columns = ", ".join(column_sql(table, name) for name in TABLES[table].names)
    return f"""\
SELECT {columns}, "run_id", "shard"
  FROM read_parquet({files}, union_by_name = true, filename = true, hive_partitioning = true,
    hive_types = {{'run_id': VARCHAR, 'shard': VARCHAR}})"""


def fetch(
    connection: duckdb.DuckDBPyConnection, sql: str, params: Mapping[str, object] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a query.

    Raises:
        LakeError: Whatever DuckDB has against it, such as a file that is no Parquet, in one line.
    """
    try:
        rows: list[dict[str, Any]] = connection.sql(sql, params=dict(params or {})).to_arrow_table().to_pylist()
    except duckdb.Error as error:
        raise LakeError(f"query: {error_line(error)}") from error
    return rows


def run_sql(connection: duckdb.DuckDBPyConnection, sql: str, what: str = "query") -> pa.Table:
    """Return the result of the last statement; without rows where it has none."""
    try:
        result = connection.sql(sql)
        return pa.table({}) if result is None else result.to_arrow_table()
    except duckdb.Error as error:
        unknown = re.search(r"Table with name (\S+) does not exist", str(error))
        message = unknown_table(unknown[1]) if unknown else error_line(error)
        raise LakeError(f"{what}: {message}") from error


def schema_path(table: str) -> str:
    """Return where the table's file without rows is; shaped as a data file, so that globs match both."""
    return f"_schema/run_id=_/shard={table}/part-0.parquet"


def quoted(text: object) -> str:
    """Return a string literal of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def error_line(error: BaseException) -> str:
    """Return the message up to the first blank line, without line breaks."""
    return " ".join(str(error).split("\n\n")[0].split())
