"""What is damaged in a lake, said by naming the file."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.errors import LakeError
from rass_core.lake.commits import read_record
from rass_core.lake.files import LakeFiles
from rass_core.lake.views import error_line, quoted

REPAIR = "restore it, run the configuration again, or delete its commit record to do without"
"""What a damaged lake needs."""
UNREADABLE = (pa.ArrowException, OSError, KeyError)
"""Raised by a commit record that is damaged, or none."""
_OF_THE_QUERY = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, duckdb.ConversionException)
"""Errors that say nothing of the files."""


def check_whole(connection: duckdb.DuckDBPyConnection, lake: LakeFiles, tables: Collection[str]) -> None:
    """Raise where a damaged commit has rows of these tables that no other commit has.

    Raises:
        LakeError: Naming the file that is missing or damaged.
    """
    records = quoted(lake.path("_commits/*/*.parquet"))
    lost = connection.execute(
        f"SELECT run_id, path, bytes FROM read_parquet({records}) SEMI JOIN damaged USING (run_id, key)"
        f" ANTI JOIN commits USING (key) WHERE key IN (SELECT key FROM read_parquet({records})"
        " WHERE list_contains($tables, table_name)) ORDER BY run_id, path",
        {"tables": list(tables)},
    ).fetchall()
    for run_id, path, size in lost:
        file, found = lake.path(path), lake.size(path)
        if found is None:
            raise LakeError(f"{file}: missing, and without it the rows of run {run_id} would be left out; {REPAIR}")
        if found != size:
            was = f"damaged, it has {found:,} bytes in place of {size:,}"
            raise LakeError(f"{file}: {was}, and the rows of run {run_id} would be left out; {REPAIR}")


def what_is_wrong(lake: LakeFiles, key: str) -> str:
    """Return the file because of which a commit does not count, and why."""
    records = lake.names(f"_commits/*/{key}.parquet")
    if not records:
        return f"{lake.path('_commits')}: no commit record {key}.parquet"
    for record in records:
        try:
            _, commit = read_record(record, lake)
        except UNREADABLE:
            return f"{lake.path(record)}: an unreadable commit record"
        except IndexError:
            continue
        for path in commit.damaged():
            return f"{lake.path(path)}: missing or damaged"
    return f"{lake.path(records[0])}: a commit record without files"


@contextmanager
def naming(lake: LakeFiles, names: Iterable[str], advice: str = REPAIR) -> Iterator[None]:
    """Inside, name the file where one of these cannot be read: DuckDB does not always."""
    try:
        yield
    except LakeError as error:
        if not isinstance(error.__cause__, _OF_THE_QUERY):
            for name in names:
                try:
                    with lake.open(name) as file, pq.ParquetFile(file) as content:
                        content.read()
                except (pa.ArrowException, OSError) as broken:
                    raise LakeError(f"{lake.path(name)}: damaged ({error_line(broken)}); {advice}") from broken
        raise
