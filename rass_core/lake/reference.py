"""The dictionary of the tables as a page: `python -m rass_core.lake.reference > docs/tables.md`."""

import sys

from rass_core.lake.declaration import DeclaredColumn, DeclaredTable
from rass_core.lake.schema import DECLARED, TABLES
from rass_core.text import markdown_table as markdown_table

COMMAND = "python -m rass_core.lake.reference > docs/tables.md"
"""Renews the page."""
OF_EACH_ROW = "run_id, the run that wrote it, and shard, the key of its commit"
_HEAD = f"""\
# Tables

<!-- Generated from rass_core/lake/tables; do not edit. Renew: {COMMAND} -->

A lake is a folder of Parquet files with DuckDB views over them. `rass sql "QUERY"` answers a query, `rass tables NAME`
prints this dictionary in the terminal, and in DuckDB itself (`duckdb -init views.sql` in the lake's folder)
`SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'NAME'` shows it.

- Ids are digests: equal things have equal ids in every lake. Tables are joined by ids.
- Each row also has {OF_EACH_ROW}.
- A column may be null unless its type says `NOT NULL`.
- The unit `margin` is half the way from the mean of harmless to the mean of harmful prompts of a language, along the
  direction: −1 is the first mean, +1 the second. `α` counts lengths of the direction that is added.
"""


def page() -> str:
    """Return the page in Markdown."""
    names = [[f"[`{table.name}`](#{table.name})", table.sentence] for table in DECLARED.values()]
    parts = [_HEAD, markdown_table(["table", "one row is"], names), *map(_section, DECLARED.values())]
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def column_rows(table: DeclaredTable) -> list[tuple[str, str, str, str]]:
    """Return name, type, unit and meaning of each column, the fields of records after their column."""
    return [
        (each.name, _type(each), each.column.unit, each.column.meaning)
        for column in table.columns
        for each in column.flat()
    ]


def _type(column: DeclaredColumn) -> str:
    return column.sql_type if column.can_be_null else f"{column.sql_type} NOT NULL"


def _section(table: DeclaredTable) -> str:
    rows = [(f"`{name}`", kind, unit, meaning) for name, kind, unit, meaning in column_rows(table)]
    kind = "" if table.name in TABLES else "It is not stored: DuckDB reads it off the commit records."
    parts = [
        f"## {table.name}", table.sentence, *table.notes, *filter(None, [kind]),
        markdown_table(["column", "type", "unit", "meaning"], rows), f"```sql\n{table.example}\n```",
    ]  # fmt: skip
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
