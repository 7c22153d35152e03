"""Whether a query of a user only reads: COPY and EXPORT write anywhere, whatever connection they are given to."""

import re

import duckdb

from rass_core.errors import LakeError

_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
_PIVOTING = ("select", "with", "from", "pivot", "unpivot")
_FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(\w*)", flags=re.DOTALL)


def check_reads(sql: str) -> None:
    """Raise where a text is not one query that only reads.

    Raises:
        LakeError: No SQL, none or several statements, or one that could write.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise LakeError(f"query: {reason}") from error
    if len(statements) != 1:
        found = "several statements; ask one at a time" if statements else "no statement; ask one, such as SHOW TABLES"
        raise LakeError(f"query: {found}")
    what = _writes(sql, statements[0].type)
    if what is not None:
        raise LakeError(
            f"query: {what} could write, and only queries are answered; begin with SELECT, FROM, WITH, SHOW, DESCRIBE"
            " or SUMMARIZE, and write files with --format csv or json"
        )


def _writes(sql: str, kind: duckdb.StatementType) -> str | None:
    """Return what in a statement could write, None where nothing can."""
    if kind == duckdb.StatementType.EXPLAIN and re.search(r"\banaly[sz]e\b", sql, flags=re.IGNORECASE):
        return "EXPLAIN ANALYZE"  # it runs what it explains
    first = _FIRST_WORD.match(sql)
    # PIVOT is several statements to DuckDB; what begins so can only read.
    pivots = kind == duckdb.StatementType.MULTI and first is not None and first[1].casefold() in _PIVOTING
    return None if kind in _READING or pivots else kind.name.replace("_", " ")
