"""What lakes of older formats call by another name, and the SQL that reads it under today's.

Files of several formats may lie in one lake. The file without rows that each table has below `_schema` lists the old
columns beside today's, so that a query over a list of files binds whichever of them are in it.
"""

from dataclasses import dataclass

import pyarrow as pa

from rass_core.lake.schema import TABLES

FORMAT = 2
"""Format of lakes that are written now."""
OLDEST_FORMAT = 1
"""Oldest format that can be read. It has other names for the columns in `RENAMED`, and no digests of files."""


@dataclass(frozen=True)
class Renamed:
    """A column that an older format has under another name or in another form."""

    table: str
    column: str
    """As it is called today."""
    old: pa.Field
    """What older files hold; of today's name, it has today's fields too."""
    sql: str
    """Today's column from both; null where both are."""


_OLD_NEEDS = {"n_required": "n_least", "n_required_with_changes": "n_given", "n_effective": "n_seen"}
"""Field of a record of `gates.needs` → its name in format 1."""


def _needs() -> Renamed:
    record = TABLES["gates"].field("needs").type.value_type
    fields = [f"{name!r}: " + (f"coalesce(need.{name}, need.{old})" if old else f"need.{name}")
              for name, old in ((each.name, _OLD_NEEDS.get(each.name)) for each in record)]  # fmt: skip
    both = pa.struct([*record, *(pa.field(old, pa.int64()) for old in _OLD_NEEDS.values())])
    return Renamed(
        "gates", "needs", pa.field("needs", pa.list_(both)),
        f"list_transform(needs, lambda need: {{{', '.join(fields)}}})",
    )  # fmt: skip


RENAMED = (
    Renamed("responses", "attack", pa.field("dressing", pa.string()), "coalesce(attack, dressing)"),
    Renamed("margins", "orthogonal_score", pa.field("orthogonal", pa.float64()),
            "coalesce(orthogonal_score, orthogonal)"),
    Renamed("directions", "roles", pa.field("chosen", pa.string()), "coalesce(roles, string_split(chosen, ','))"),
    _needs(),
)  # fmt: skip


def stored_schema(table: str) -> pa.Schema:
    """Return the columns that files of a table have in any format."""
    schema = TABLES[table]
    for each in RENAMED:
        if each.table == table:
            known = schema.get_field_index(each.old.name)
            schema = schema.append(each.old) if known < 0 else schema.set(known, each.old)
    return schema


def column_sql(table: str, column: str) -> str:
    """Return the SQL of a column over files of any format, under today's name."""
    for each in RENAMED:
        if (each.table, each.column) == (table, column):
            return f'{each.sql} AS "{column}"'
    return f'"{column}"'
