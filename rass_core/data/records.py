"""Records of text files: CSV, JSON and JSON lines, read a part at a time."""

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rass_core.errors import PromptError, RassError

FILE_ENDINGS = (".parquet", ".csv", ".jsonl", ".json", ".tsv", ".ndjson")
LONGEST_FIELD = 1 << 30
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""What a file begins with → its encoding; UTF-32 before UTF-16, whose mark begins its own."""


def kind_of(path: Path, error: type[RassError] = PromptError) -> str:
    """Return the kind of a file by its ending, without .gz.

    Raises:
        RassError: None that is known.
    """
    kind = ending_of(path).lower().removesuffix(".gz")
    if kind not in FILE_ENDINGS or (kind == ".parquet" and path.suffix.lower() == ".gz"):
        raise error(f"{path}: not one of {', '.join(FILE_ENDINGS)}, or of the text ones as .gz; convert or rename it")
    return kind


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
    lines = (line for _, line in numbered_lines(path, error))
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


def message_of(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def ending_of(path: Path) -> str:
    """Return the ending, both of them where the last is .gz."""
    suffixes = path.suffixes
    return "".join(suffixes[-2:]) if path.suffix.lower() == ".gz" else path.suffix


def csv_rows(path: Path, error: type[RassError]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the cells by column of each record of a CSV or TSV file."""
    records = ((number, cells) for number, cells in csv_records(path, error) if cells)
    _, header = next(records, (0, []))
    for number, cells in records:
        if len(cells) != len(header):
            raise error(f"{path} line {number}: {len(cells)} fields under {len(header)} columns; fix it")
        yield number, dict(zip(header, cells, strict=True))


def jsonl_rows(path: Path, error: type[RassError]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank."""
    for number, line in numbered_lines(path, error):
        if line.strip():
            yield number, _object(line, f"{path} line {number}", error)


def _object(line: str, place: str, error: type[RassError]) -> dict[str, Any]:
    try:
        row = json.loads(line.lstrip("\ufeff"), object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as problem:
        raise error(f"{place}: not JSON ({message_of(problem)}); write one object per line") from problem
    if not isinstance(row, dict):
        raise error(f"{place}: not a JSON object; write one object per line, or name the file .json")
    return row


def json_rows(path: Path, error: type[RassError]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of an array, of the one array in an object, or of lines, as many a .json holds them."""
    text = "".join(line for _, line in numbered_lines(path, error))
    if not text.strip():
        return
    try:
        content = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as problem:
        if str(problem).startswith("Extra data") and text.lstrip().startswith("{"):
            yield from jsonl_rows(path, error)
            return
        raise error(f"{path}: not JSON ({message_of(problem)}); write an array of objects") from problem
    for number, row in enumerate(_array_in(content, path, error), start=1):
        if not isinstance(row, dict):
            raise error(f"{path} row {number}: not a JSON object; write an array of objects")
        yield number, row


def _array_in(content: Any, path: Path, error: type[RassError]) -> list[Any]:
    arrays = arrays_in(content)
    if len(arrays) != 1:
        raise error(
            f'{path}: holds {len(arrays) or "no"} arrays of objects; write one array of objects, or {{"data": [...]}}'
        )
    return arrays[0]


def arrays_in(content: Any) -> list[list[Any]]:
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


def numbered_lines(path: Path, error: type[RassError]) -> Iterator[tuple[int, str]]:
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
        said = getattr(problem, "strerror", None) or message_of(problem)
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
    """Return whether every other byte is mostly zero."""
    return len(head) >= 4 and max(head[0::2].count(0), head[1::2].count(0)) > len(head) // 4
