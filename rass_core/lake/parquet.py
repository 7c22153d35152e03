"""Tables as Parquet files, written a row group at a time."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rass_core.errors import LakeError
from rass_core.lake.commits import CommittedFile, file_sha256
from rass_core.lake.files import sync
from rass_core.lake.schema import TABLES, VECTOR
from rass_core.lake.views import error_line

ROWS_PER_GROUP = 32_768
VECTOR_ROWS_PER_GROUP = 2_048


def write_table(folder: Path, table: str, rows: pa.Table | Iterable[pa.RecordBatch], target: str) -> CommittedFile:
    """Stream rows into `folder/part-0.parquet`; the vectors' width is that of the first row group."""
    groups = _row_groups(table, rows.to_batches() if isinstance(rows, pa.Table) else rows)
    first = next(groups, TABLES[table].empty_table())
    schema = _file_schema(table, first)
    vectors = [name for name in schema.names if TABLES[table].field(name).type == VECTOR]
    folder.mkdir()
    file = folder / "part-0.parquet"
    n_rows = 0
    with pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in schema.names if name not in vectors],
        use_byte_stream_split=[f"{name}.list.element" for name in vectors],
    ) as writer:
        for group in itertools.chain([first], groups):
            try:
                writer.write_table(group.cast(schema).combine_chunks())  # bytes do not depend on how rows came in
            except pa.ArrowInvalid as error:
                raise LakeError(f"{table}: vectors of two widths in one commit; write one a width") from error
            n_rows += group.num_rows
    sync(file)
    return CommittedFile(table, f"{target}/{file.name}", n_rows, file.stat().st_size, file_sha256(file))


def _row_groups(table: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the rows in tables as long as a row group, the last one shorter, in the table's schema."""
    size = VECTOR_ROWS_PER_GROUP if VECTOR in TABLES[table].types else ROWS_PER_GROUP
    pending: list[pa.RecordBatch] = []
    n_pending = 0
    for batch in batches:
        rest = _cast(table, batch)
        while rest.num_rows:
            part = rest.slice(0, size - n_pending)
            rest = rest.slice(part.num_rows)
            pending.append(part)
            n_pending += part.num_rows
            if n_pending == size:
                yield pa.Table.from_batches(pending)
                pending, n_pending = [], 0
    if pending:
        yield pa.Table.from_batches(pending)


def _cast(table: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = TABLES[table]
    names = batch.schema.names
    missing = [name for name in schema.names if name not in names]
    extra = [name for name in names if name not in schema.names]
    if missing or extra or len(names) != len(schema.names):
        raise LakeError(
            f"{table}: missing columns {missing}, unknown columns {extra}, each of the others once;"
            f" give it {', '.join(schema.names)}"
        )
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            column = column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise LakeError(
                f"{table}.{field.name}: {column.type} does not fit {field.type} ({error_line(error)}); convert it"
            ) from error
        if field.type == VECTOR and column.flatten().null_count:
            raise LakeError(f"{table}.{field.name}: a null inside a vector; drop that row or fill it")
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _file_schema(table: str, group: pa.Table) -> pa.Schema:
    """Return the table's schema with vectors of the width that this row group has, if it has any."""
    schema = TABLES[table]
    for i, field in enumerate(schema):
        if field.type == VECTOR:
            width = pc.max(pc.list_value_length(group.column(field.name))).as_py()
            if width:
                schema = schema.set(i, field.with_type(pa.list_(VECTOR.value_field, width)))
    return schema
