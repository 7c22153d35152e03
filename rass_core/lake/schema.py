"""The tables of the lake: what they are called, their columns, and rows as Arrow tables.

Every table is a folder of Parquet files; each row also carries `run_id` (the run that wrote it) and `shard` (the key of
its commit) from the folder names. Ids are digests, joins use ids, never order. A table is declared by a class of
`rass_core.lake.tables`; its schema, its checks, its comments in DuckDB and docs/tables.md follow from that.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from rass_core.lake.declaration import STRINGS, VECTOR, DeclaredTable
from rass_core.lake.tables.answers import Evaluations, Responses, Verdicts
from rass_core.lake.tables.mitigation import Gates, Gradients, Preferences, Quotas, Selections, Variants
from rass_core.lake.tables.probe import Activations, Boundaries, Directions, HarmAxes, Margins
from rass_core.lake.tables.prompts import Derivations, Generations, Prompts, Rounds, Writers
from rass_core.lake.tables.runs import Commits, Damaged, Runs, Stages

__all__ = ["DECLARED", "RECORD", "STRINGS", "TABLES", "VECTOR", "rows_table", "unknown_table"]

_ROWS = (
    Runs, Stages, Prompts, Generations, Derivations, Activations, Directions, Responses, Verdicts, Margins, HarmAxes,
    Boundaries, Gradients, Selections, Quotas, Preferences, Variants, Gates, Evaluations, Rounds, Writers,
)  # fmt: skip
"""In the order in which they are listed."""

_TABLES = tuple(map(DeclaredTable, _ROWS))
TABLES: dict[str, pa.Schema] = {table.name: table.schema for table in _TABLES}
"""Name → Arrow schema, of what a stage can write."""
DECLARED: dict[str, DeclaredTable] = {
    table.name: table for table in (*_TABLES, DeclaredTable(Commits), DeclaredTable(Damaged))
}
"""Name → declaration, of what a query can read."""
RECORD: pa.Schema = DeclaredTable(Commits).schema
"""Schema of a commit record."""


def rows_table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table of the lake; a column that a row lacks is null, what is no column is left out.

    Args:
        name: Name of the table.
        rows: Such as `Margins(prompt_id=…, margin=…)`, whose columns mypy checks; any mapping will do.
    """
    schema, found = TABLES[name], list(rows)
    columns = [pa.array([row.get(field.name) for row in found], field.type) for field in schema]
    return pa.table(columns, schema=schema)


def unknown_table(name: str) -> str:
    """Return the message for a table that does not exist, with the nearest name."""
    nearest = difflib.get_close_matches(name, TABLES, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(TABLES)}"
    return f"no table {name!r}; {hint}"
