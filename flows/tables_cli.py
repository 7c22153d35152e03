"""The command `rass tables`: what the tables of a lake hold."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from rass_core.errors import LakeError

WIDE = 1000
"""Columns of a pipe: what reads it takes lines as they are."""
NARROWEST = 30
"""Least width of the last column; with less room it goes below the others."""


def tables(
    name: Annotated[str | None, typer.Argument(metavar="[TABLE]", help="A table; without it all are listed.")] = None,
) -> None:
    """List the tables of a lake, or explain the columns of one."""
    from rass_core.lake.schema import DECLARED, TABLES, unknown_table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    if name is None:
        _print(console, ["table", "one row is"], [(table.name, table.sentence) for table in DECLARED.values()])
        return
    if name not in DECLARED:
        raise LakeError(unknown_table(name))
    from rass_core.lake.reference import OF_EACH_ROW, column_rows

    table = DECLARED[name]
    for paragraph in (table.sentence, *table.notes):
        console.print(paragraph, end="\n\n")
    _print(console, ["column", "type", "unit", "meaning"], column_rows(table))
    if name in TABLES:
        console.print(f"\nEach row also has {OF_EACH_ROW}.")
    console.print(f'\nrass sql "{table.example}"', soft_wrap=True)


def _print(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose last column is text; in a narrow terminal that goes below the others."""
    widths = [max(len(row[place]) for row in (columns, *rows)) + 2 for place in range(len(columns) - 1)]
    if console.width - sum(widths) < NARROWEST:
        for *head, text in rows:
            console.print("  ".join(filter(None, head)), style="bold")
            console.print(Padding(text, (0, 0, 0, 2)))
        return
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for each in columns:
        shown.add_column(each, no_wrap=each is not columns[-1])
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
