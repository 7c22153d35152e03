"""A lake as the version before wrote it: format 1, with the old names of columns and without digests of files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NEEDS = pa.list_(
    pa.struct([
        ("metric", pa.string()), ("language", pa.string()), ("tolerance", pa.float64()), ("n_least", pa.int64()),
        ("n_given", pa.int64()), ("n_seen", pa.int64()),
    ])
)  # fmt: skip


def _needs(needs: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    names = {"n_required": "n_least", "n_required_with_changes": "n_given", "n_effective": "n_seen"}
    return needs and [{names.get(name, name): value for name, value in need.items()} for need in needs]


OLD: dict[str, tuple[str, pa.Field, Callable[[Any], Any]]] = {
    "responses": ("attack", pa.field("dressing", pa.string()), lambda value: value),
    "margins": ("orthogonal_score", pa.field("orthogonal", pa.float64()), lambda value: value),
    "directions": ("roles", pa.field("chosen", pa.string()), lambda roles: roles and ",".join(roles)),
    "gates": ("needs", pa.field("needs", NEEDS), _needs),
}
"""Table → column, the same in format 1, and how its values were written there."""


def as_format_1(lake: Path) -> None:
    """Rewrite every file of a lake as format 1 has it."""
    (lake / "_lake.json").write_text(json.dumps({"format": 1}))
    (lake / "views.sql").write_text("-- of the version before\n")
    for path in lake.glob("*/run_id=*/shard=*/part-0.parquet"):
        is_schema = path.parts[-4] == "_schema"
        _rewrite(path, path.parts[-2].removeprefix("shard=") if is_schema else path.parts[-4])
    for path in lake.glob("_commits/*/*.parquet"):
        record = pq.ParquetFile(path).read().drop_columns(["sha256"])
        sizes = [(lake / name).stat().st_size for name in record["path"].to_pylist()]
        place = record.column_names.index("bytes")
        pq.write_table(record.set_column(place, "bytes", pa.array(sizes, pa.int64())), path)


def _rewrite(path: Path, table: str) -> None:
    if table in OLD:
        column, old, written = OLD[table]
        rows = pq.ParquetFile(path).read()
        values = pa.array([written(value) for value in rows[column].to_pylist()], old.type)
        pq.write_table(rows.set_column(rows.column_names.index(column), old, values), path)
