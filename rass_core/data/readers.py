"""Files of rows: Parquet, CSV, TSV, JSON and JSONL, the last four also as .gz; read a batch at a time.

Rows keep what their file says: Parquet its types, CSV its text, JSON its objects. Each has the number that an editor
shows: its first line in a text file, its place from 1 in Parquet or in a JSON array.
"""

import glob
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.data.records import (
    FILE_ENDINGS,
    arrays_in,
    csv_records,
    csv_rows,
    ending_of,
    json_rows,
    jsonl_rows,
    kind_of,
    message_of,
    numbered_lines,
)
from rass_core.errors import PromptError, RassError

ROWS_PER_BATCH = 500
"""Few, for a response may take 100 kB."""

RowBatch: TypeAlias = "pa.RecordBatch | list[dict[str, Any]]"
"""Arrow from Parquet and data sets, objects from text."""

_BUFFER_BYTES = 1 << 20
_PACKED = (".zip", ".zst", ".bz2", ".xz", ".7z", ".tar", ".tgz", ".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc")
"""Data that is not read: a folder that holds it would else be read in part."""
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json")
"""Files of data sets that describe them."""
_TEMPORARY = re.compile(r"[._~#]|.*(~|#|\.tmp|\.temp|\.bak|\.swp|\.part|\.crdownload)$", re.IGNORECASE)
"""Names of hidden and temporary files and folders."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a file, and the place of each in it."""

    rows: RowBatch
    numbers: Sequence[int]
    place: str
    """Before the number of a row: the file and what is counted in it."""
    error: type[RassError] = PromptError

    def values(self, column: str) -> list[Any]:
        """Return a column; a row of JSON that lacks it has None.

        Raises:
            RassError: Arrow whose text is not UTF-8.
        """
        if not isinstance(self.rows, pa.RecordBatch):
            return [row.get(column) for row in self.rows]
        cells = self.rows.column(column)
        try:
            return cells.to_pylist()  # type: ignore[no-any-return]
        except (pa.ArrowException, ValueError):  # somewhere among them
            return [self._value(cell, number, column) for cell, number in zip(cells, self.numbers, strict=True)]

    def _value(self, cell: pa.Scalar, number: int, column: str) -> Any:
        try:
            return cell.as_py()
        except (pa.ArrowException, ValueError) as problem:
            raise self.error(
                f"{self.place} {number}: {column!r} cannot be read ({message_of(problem)}); fix it"
            ) from problem

    def lacking(self, column: str) -> list[int]:
        """Return the numbers of the rows that do not name a column."""
        if isinstance(self.rows, pa.RecordBatch):
            return []
        return [number for number, row in zip(self.numbers, self.rows, strict=True) if column not in row]


class DataFile:
    """A file of rows.

    Args:
        path: File of a known kind.
        error: Raised in place of whatever goes wrong.
        hive: Columns that the names of its folders give, such as language=de.
    """

    def __init__(
        self, path: Path, error: type[RassError] = PromptError, hive: dict[str, str | None] | None = None
    ) -> None:
        self.path, self.error, self.hive = path, error, hive or {}
        self.kind = kind_of(path, error)
        self.name = str(path)

    @property
    def unit(self) -> str:
        """What the numbers of rows count."""
        return "row" if self.kind in (".parquet", ".json") else "line"

    @property
    def stem(self) -> str:
        """The name without its endings."""
        return self.path.name[: -len(ending_of(self.path))]

    def columns(self) -> list[str]:
        """Return the names of the columns, for which JSON is read to its end; names may come twice.

        Raises:
            RassError: The file cannot be read.
        """
        if self.kind == ".parquet":
            return list(self.schema().names)
        if self.kind in (".csv", ".tsv"):
            return next((cells for _, cells in csv_records(self.path, self.error) if cells), [])
        return list(dict.fromkeys(name for _, row in self._objects() for name in row))

    def holds_rows(self) -> bool:
        """Return whether there are rows in it; JSON may hold anything. What cannot be read counts as rows."""
        if self.kind != ".json":
            return True
        try:
            return len(arrays_in(json.loads("".join(line for _, line in numbered_lines(self.path, self.error))))) == 1
        except (ValueError, RecursionError):
            return True

    def schema(self) -> pa.Schema:
        """Return the columns of Parquet with their types.

        Raises:
            RassError: The file cannot be read.
        """
        with self._parquet() as file:
            return file.schema_arrow

    def class_names(self) -> dict[str, list[str]]:
        """Return column → names of the classes that its numbers stand for, as `datasets` writes them to Parquet."""
        return class_names(self.schema()) if self.kind == ".parquet" else {}

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Batch]:
        """Yield the rows.

        Args:
            columns: Only these, which spares reading the others of Parquet.

        Raises:
            RassError: The file cannot be read.
        """
        if self.kind == ".parquet":
            with self._parquet() as file:
                batches = file.iter_batches(ROWS_PER_BATCH, columns=None if columns is None else list(columns))
                yield from numbered(batches, self.name, self.error)
            return
        rows = self._objects()
        while part := list(itertools.islice(rows, ROWS_PER_BATCH)):
            numbers = [number for number, _ in part]
            yield Batch([row for _, row in part], numbers, f"{self.name} {self.unit}", self.error)

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.kind in (".csv", ".tsv"):
            return csv_rows(self.path, self.error)
        return (json_rows if self.kind == ".json" else jsonl_rows)(self.path, self.error)

    @contextmanager
    def _parquet(self) -> Iterator[pq.ParquetFile]:
        try:
            # Through a buffer, for a row group may be as large as the file.
            with pq.ParquetFile(self.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self.error(f"{self.path}: cannot be read as Parquet ({message_of(error)}); fix the file") from error


def find_files(pattern: str, error: type[RassError] = PromptError) -> list[DataFile]:
    """Return the file, the files of the folder and of those within it, or those that match the glob; sorted.

    In a folder, hidden and temporary files and those of other kinds are passed over. Folders named key=value give a
    column.

    Raises:
        RassError: Nothing there, a file of an unknown kind, or a folder with data that cannot be read.
    """
    root = Path(pattern).expanduser()
    if root.is_dir():
        paths = _inside(root, error)
    else:
        found = [root] if root.exists() else sorted(map(Path, glob.glob(str(root), recursive=True)))
        paths = [path for each in found for path in (_inside(each, error) if each.is_dir() else [each])]
    if not paths:
        raise error(f"{pattern}: no such file, or none that is {', '.join(FILE_ENDINGS)}; fix the path")
    return [DataFile(path, error, _hive(path)) for path in paths]


def numbered(batches: Iterable[pa.RecordBatch], name: str, error: type[RassError] = PromptError) -> Iterator[Batch]:
    """Yield the Arrow batches of a file or data set with their rows counted from 1."""
    first = 1
    for batch in batches:
        yield Batch(batch, range(first, first + batch.num_rows), f"{name} row", error)
        first += batch.num_rows


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return column → names of its classes, from what `datasets` leaves in a schema."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
        return {
            name: list(feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # written by anybody, and only a help
        return {}


def _inside(folder: Path, error: type[RassError]) -> list[Path]:
    """Return the files of a folder that are read."""
    inside = sorted(each.relative_to(folder) for each in folder.rglob("*") if each.is_file())
    found = []
    for each in inside:
        if any(_TEMPORARY.match(part) for part in each.parts) or each.name.lower() in _ABOUT:
            continue
        ending = ending_of(each).lower()
        if each.suffix.lower() in _PACKED or ending == ".parquet.gz":
            raise error(f"{folder / each}: cannot be read, and the folder would be read in part; unpack or convert it")
        if ending.removesuffix(".gz") in FILE_ENDINGS:
            found.append(folder / each)
    return found


def _hive(path: Path) -> dict[str, str | None]:
    """Return the columns that folders named key=value give."""
    pairs = (part.split("=", 1) for part in path.parent.parts if re.fullmatch(r"\w[^=]*=[^=]*", part))
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, value in pairs}
