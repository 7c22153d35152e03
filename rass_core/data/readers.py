"""Files of rows: Parquet, CSV, TSV, JSON and JSONL, the last four also as .gz; read a batch at a time.

Rows keep what their file says: Parquet its types, CSV its text, JSON its objects. Each has the number that an editor
shows: its first line in a text file, its place from 1 in Parquet or in a JSON array.
"""

import codecs
import csv
import glob
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.errors import PromptError, RassError

KINDS = (".parquet", ".csv", ".jsonl", ".json", ".tsv", ".ndjson")
ROWS_PER_BATCH = 500
"""Few, for a response may take 100 kB."""
LONGEST_FIELD = 1 << 30

Rows: TypeAlias = "pa.RecordBatch | list[dict[str, Any]]"
"""Arrow from Parquet and data sets, objects from text."""

_BUFFER_BYTES = 1 << 20
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""What a file begins with → its encoding; UTF-32 before UTF-16, whose mark begins its own."""
_PACKED = (".zip", ".zst", ".bz2", ".xz", ".7z", ".tar", ".tgz", ".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc")
"""Data that is not read: a folder that holds it would else be read in part."""
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json")
"""Files of data sets that describe them."""
_TEMPORARY = re.compile(r"[._~#]|.*(~|#|\.tmp|\.temp|\.bak|\.swp|\.part|\.crdownload)$", re.IGNORECASE)
"""Names of hidden and temporary files and folders."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a file, and where each stands in it."""

    rows: Rows
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
                f"{self.place} {number}: {column!r} cannot be read ({one_line(problem)}); fix it"
            ) from problem

    def lacking(self, column: str) -> list[int]:
        """Return the numbers of the rows that do not name a column."""
        if isinstance(self.rows, pa.RecordBatch):
            return []
        return [number for number, row in zip(self.numbers, self.rows, strict=True) if column not in row]


class DataFile:
    """A file of rows.

    Args:
        path: Of a known kind.
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
        return self.path.name[: -len(_ending(self.path))]

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
        """Tell whether there are rows in it; JSON may hold anything. What cannot be read counts as rows."""
        if self.kind != ".json":
            return True
        try:
            return len(_arrays(json.loads("".join(line for _, line in _lines(self.path, self.error))))) == 1
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
            return _csv_rows(self.path, self.error)
        return (_json_rows if self.kind == ".json" else _jsonl_rows)(self.path, self.error)

    @contextmanager
    def _parquet(self) -> Iterator[pq.ParquetFile]:
        try:
            # Through a buffer, for a row group may be as large as the file.
            with pq.ParquetFile(self.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self.error(f"{self.path}: cannot be read as Parquet ({one_line(error)}); fix the file") from error


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
        raise error(f"{pattern}: no such file, or none that is {', '.join(KINDS)}; fix the path")
    return [DataFile(path, error, _hive(path)) for path in paths]


def kind_of(path: Path, error: type[RassError] = PromptError) -> str:
    """Return the kind of a file by its ending, without .gz.

    Raises:
        RassError: None that is known.
    """
    kind = _ending(path).lower().removesuffix(".gz")
    if kind not in KINDS or (kind == ".parquet" and path.suffix.lower() == ".gz"):
        raise error(f"{path}: not one of {', '.join(KINDS)}, or of the text ones as .gz; convert or rename it")
    return kind


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


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that come more than once."""
    return [name for name, n in Counter(names).items() if n > 1]


def csv_records(path: Path, error: type[RassError]) -> Iterator[tuple[int, list[str]]]:
    """Yield each record of CSV with the line on which it begins; an empty line is an empty record.

    The cells are separated by commas, semicolons or tabs, whichever the first line has most of outside of quotes.

    Raises:
        RassError: Not UTF-8 or UTF-16, or a quote that is wrong.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines = (line for _, line in _lines(path, error))
    first = next(lines, "")
    outside = re.sub(r'"(?:[^"]|"")*"?', "", first)
    delimiter = "\t" if kind_of(path, error) == ".tsv" else max(",;\t", key=outside.count)
    reader = csv.reader(itertools.chain([first] if first else [], lines), strict=True, delimiter=delimiter)
    begins = 1
    try:
        for cells in reader:
            yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as problem:
        said = "a quote in it is left open" if "unexpected end" in str(problem) else str(problem)
        raise error(
            f"{path} line {begins}: the row that begins there cannot be read as CSV ({said}); is a quote left open? "
            "Quotes within a text are doubled"
        ) from problem


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _ending(path: Path) -> str:
    """Return the ending, both of them where the last is .gz."""
    suffixes = path.suffixes
    return "".join(suffixes[-2:]) if path.suffix.lower() == ".gz" else path.suffix


def _inside(folder: Path, error: type[RassError]) -> list[Path]:
    """Return the files of a folder that are read."""
    inside = sorted(each.relative_to(folder) for each in folder.rglob("*") if each.is_file())
    found = []
    for each in inside:
        if any(_TEMPORARY.match(part) for part in each.parts) or each.name.lower() in _ABOUT:
            continue
        ending = _ending(each).lower()
        if each.suffix.lower() in _PACKED or ending == ".parquet.gz":
            raise error(f"{folder / each}: cannot be read, and the folder would be read in part; unpack or convert it")
        if ending.removesuffix(".gz") in KINDS:
            found.append(folder / each)
    return found


def _hive(path: Path) -> dict[str, str | None]:
    """Return the columns that folders named key=value give."""
    pairs = (part.split("=", 1) for part in path.parent.parts if re.fullmatch(r"\w[^=]*=[^=]*", part))
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, value in pairs}


def _csv_rows(path: Path, error: type[RassError]) -> Iterator[tuple[int, dict[str, Any]]]:
    records = ((number, cells) for number, cells in csv_records(path, error) if cells)
    _, header = next(records, (0, []))
    for number, cells in records:
        if len(cells) != len(header):
            raise error(f"{path} line {number}: {len(cells)} fields under {len(header)} columns; fix it")
        yield number, dict(zip(header, cells, strict=True))


def _jsonl_rows(path: Path, error: type[RassError]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path, error):
        if line.strip():
            yield number, _object(line, f"{path} line {number}", error)


def _object(line: str, place: str, error: type[RassError]) -> dict[str, Any]:
    try:
        row = json.loads(line.lstrip("\ufeff"), object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as problem:
        raise error(f"{place}: not JSON ({one_line(problem)}); write one object a line") from problem
    if not isinstance(row, dict):
        raise error(f"{place}: not a JSON object; write one object a line, or name the file .json")
    return row


def _json_rows(path: Path, error: type[RassError]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of an array, of the one array in an object, or of lines, as many a .json holds them."""
    text = "".join(line for _, line in _lines(path, error))
    if not text.strip():
        return
    try:
        content = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as problem:
        if str(problem).startswith("Extra data") and text.lstrip().startswith("{"):
            yield from _jsonl_rows(path, error)
            return
        raise error(f"{path}: not JSON ({one_line(problem)}); write an array of objects") from problem
    for number, row in enumerate(_array_in(content, path, error), start=1):
        if not isinstance(row, dict):
            raise error(f"{path} row {number}: not a JSON object; write an array of objects")
        yield number, row


def _array_in(content: Any, path: Path, error: type[RassError]) -> list[Any]:
    arrays = _arrays(content)
    if len(arrays) != 1:
        raise error(
            f'{path}: holds {len(arrays) or "no"} arrays of objects; write one array of objects, or {{"data": [...]}}'
        )
    return arrays[0]


def _arrays(content: Any) -> list[list[Any]]:
    """Return the array, or the arrays of objects in an object."""
    if isinstance(content, list):
        return [content]
    values = content.values() if isinstance(content, dict) else ()
    found = [value for value in values if isinstance(value, list) and all(isinstance(each, dict) for each in value)]
    return [value for value in found if value] or found


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the name {repeated([name for name, _ in pairs])[0]!r} is twice in one object")
    return found


def _lines(path: Path, error: type[RassError]) -> Iterator[tuple[int, str]]:
    """Yield the number of each line, from 1, and the line with its end."""
    number = 0
    try:
        with _opened(path) as file:
            head = file.peek(4096)[:4096]
            encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
            if encoding == "utf-8" and _is_unmarked_utf16(head):
                raise error(f"{path}: seems to be UTF-16 without its mark; save it as UTF-8")
            decoded = _utf8(file) if encoding.startswith("utf-8") else io.TextIOWrapper(file, encoding, newline="")
            for number, line in enumerate(decoded, start=1):
                yield number, line
    except UnicodeDecodeError as problem:
        raise error(f"{path} line {number + 1}: not {_undecoded(problem)}; save it as UTF-8") from problem
    except (OSError, EOFError, zlib.error) as problem:
        said = getattr(problem, "strerror", None) or one_line(problem)
        raise error(f"{path}: cannot be read ({said}); fix the file, its path or its permissions") from problem


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _utf8(file: Iterable[bytes]) -> Iterator[str]:
    """Yield lines, decoded one by one so that a wrong byte is found on its line; a lone CR ends one too."""
    start = 0
    for number, line in enumerate(file):
        try:
            text = line.decode("utf-8" if number else "utf-8-sig")
        except UnicodeDecodeError as problem:
            raise _moved(problem, start) from problem
        start += len(line)
        if "\r" in text[:-2]:
            yield from io.StringIO(text, newline="")
        else:
            yield text


def _moved(problem: UnicodeDecodeError, start: int) -> UnicodeDecodeError:
    """Return the error with the wrong byte's place in the whole file."""
    wrong = problem.object[problem.start : problem.start + 1]
    return UnicodeDecodeError("utf-8", wrong, 0, 1, f"byte 0x{wrong.hex()} at {start + problem.start:,} of the file")


def _undecoded(problem: UnicodeDecodeError) -> str:
    name = problem.encoding.upper().replace("UTF8", "UTF-8")
    guess = ""
    if name.startswith("UTF-8"):
        name, guess = "UTF-8", ", perhaps Windows-1252 or Latin-1"
    return f"{name} ({problem.reason}{guess})"


def _is_unmarked_utf16(head: bytes) -> bool:
    """Tell whether every other byte is mostly zero."""
    return len(head) >= 4 and max(head[0::2].count(0), head[1::2].count(0)) > len(head) // 4
