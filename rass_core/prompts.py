"""Given prompts: read from files and data sets, checked, and brought into the table `prompts`."""

import csv
import difflib
import glob
import hashlib
import heapq
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rass_core.errors import ModelError, PromptError
from rass_core.models import hub_commit
from rass_core.tables import TABLES, prompt_id

LABELS = ("harmful", "harmless", "pseudo_harmful")
_LANGUAGE = r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*"

Values = Sequence[Any]
"""The cells of one row: text, language, label, category, family; None where there is no such column."""
Check = Callable[[Collection[str]], None]
"""Is told the columns that a file has, and raises where one is wanted that is not there."""


class PromptSource(BaseModel):
    """A file, folder, glob or Hugging Face data set with one prompt a row."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str | None = None
    """Parquet, CSV or JSONL file, a folder of them, or a glob."""
    dataset: str | None = None
    """Name of a Hugging Face data set, in place of path."""
    config_name: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    """Split of the data set."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of the data set; null takes its main branch. The commit found is kept with the run."""
    text_column: str = "text"
    """Column with the prompt."""
    language: str | None = Field(default=None, pattern=f"^{_LANGUAGE}$")
    """BCP-47 tag of all rows, such as en or zh-Hans; null takes it from language_column."""
    language_column: str = "language"
    """Column with the BCP-47 tag."""
    label: Literal["harmful", "harmless", "pseudo_harmful"] | None = None
    """True label of all rows; null takes it from label_column."""
    label_column: str = "label"
    """Column with the true label: harmful, harmless or pseudo_harmful."""
    category_column: str = "category"
    """Column with a topic, such as violence; it may be missing where it is not named."""
    licence: str | None = None
    """Licence of the prompts, kept with each."""
    source: str | None = None
    """Name kept with each prompt; null takes the file's or data set's."""
    family_column: str | None = None
    """Prompts of a source that share this value are one draw of the bootstrap; null: each is its own."""
    max_rows_per_cell: int | None = Field(default=None, ge=1)
    """Sample at most so many prompts a language and label, the same ones every time."""
    languages: list[str] | None = None
    """Keep only these languages; null keeps all."""

    @model_validator(mode="after")
    def _one_place(self) -> "PromptSource":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path or dataset")
        if self.revision is not None and self.dataset is None:
            raise ValueError("revision: a file has none; leave it out")
        return self

    def commit(self) -> str | None:
        """Return the data set's commit, as asked for where it cannot be looked up; None for a file or folder."""
        if self.dataset is None or Path(self.dataset).exists():
            return None
        try:
            return hub_commit(self.dataset, self.revision, "dataset")
        except ModelError:  # `datasets` keeps a cache of its own, which may hold it
            return self.revision


@dataclass(frozen=True)
class LoadedPrompts:
    """Rows of the table `prompts`, one a prompt_id, and how many rows were dropped for which reason."""

    table: pa.Table
    dropped: dict[str, int]


def load_prompts(sources: Sequence[PromptSource], max_characters: int = 20_000) -> LoadedPrompts:
    """Return the prompts of all sources: NFC, stripped, line breaks kept, in the order of the sources.

    Args:
        sources: Of equal prompts (white space and case aside) the first is kept.
        max_characters: Longest prompt.

    Returns:
        Prompts in the schema of the table `prompts`; counts of 'empty', 'null' and 'duplicate' rows.

    Raises:
        PromptError: A source that cannot be read or lacks a column, a row without a valid language, label or
            text, a prompt with two labels, or a source without prompts.
    """
    dropped = {"empty": 0, "null": 0, "duplicate": 0}
    first_labels: dict[str, tuple[str, str]] = {}
    kept: dict[str, _Prompt] = {}
    for source in sources:
        prompts: dict[str, _Prompt] = {}
        for file, place, prompt in _prompts(source, max_characters, dropped):
            label, first_file = first_labels.setdefault(prompt.prompt_id, (prompt.label, file))
            if label != prompt.label:
                raise PromptError(
                    f"{first_file} and {place}: {prompt.text[:60]!r} is {label} in the one and"
                    f" {prompt.label} in the other; give it one label"
                )
            if prompts.setdefault(prompt.prompt_id, prompt) is not prompt:
                dropped["duplicate"] += 1
        for prompt in _sample(prompts.values(), source.max_rows_per_cell):
            if kept.setdefault(prompt.prompt_id, prompt) is not prompt:
                dropped["duplicate"] += 1
    columns = list(zip(*kept.values(), strict=True)) or [()] * len(_Prompt._fields)
    return LoadedPrompts(pa.table(dict(zip(_Prompt._fields, columns, strict=True)), TABLES["prompts"]), dropped)


class _Prompt(NamedTuple):
    """A row of the table `prompts`."""

    prompt_id: str
    text: str
    language: str
    label: str
    category: str | None
    source: str
    licence: str | None
    family: str


def _prompts(source: PromptSource, max_characters: int, dropped: dict[str, int]) -> Iterator[tuple[str, str, _Prompt]]:
    """Yield the file, the place in it and the prompt of each row that is kept; count what is dropped."""
    languages: set[str] = set()
    n_rows = n_kept = 0
    for file, unit, rows in _files(source):
        origin = source.source or Path(file).stem
        for number, (text, language, label, category, family) in rows:
            n_rows += 1
            place = f"{file} {unit} {number}"
            text = _checked_text(text, max_characters, place)
            if not text:
                dropped["null" if text is None else "empty"] += 1
                continue
            language = source.language or _checked_language(language, place)
            languages.add(language)
            if source.languages is not None and language not in source.languages:
                continue
            n_kept += 1
            identity = prompt_id(language, text)
            yield (
                file,
                place,
                _Prompt(
                    prompt_id=identity,
                    text=text,
                    language=language,
                    label=source.label or _checked_label(label, place),
                    category=None if category in (None, "") else str(category),
                    source=origin,
                    licence=source.licence,
                    family=identity if family in (None, "") else f"{origin}/{family}",
                ),
            )
    if n_kept == 0:
        raise PromptError(
            f"{source.path or source.dataset}: no prompt among {n_rows} rows, languages"
            f" {', '.join(sorted(languages)) or 'none'}; leave the source out or change its languages"
        )


def _checked_text(text: object, max_characters: int, where: str) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise PromptError(f"{where}: the text is of type {type(text).__name__}; name the text_column")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{where}: half a surrogate pair in the text; mend the file") from error
    text = unicodedata.normalize("NFC", text).strip()
    if len(text) > max_characters:
        raise PromptError(
            f"{where}: {len(text)} characters, more than max_characters {max_characters}; shorten or drop it"
        )
    return text


def _checked_language(language: object, where: str) -> str:
    if language is None or language == "":
        raise PromptError(f"{where}: no language; fill it in, or give the source a language")
    if not re.fullmatch(_LANGUAGE, str(language)):
        raise PromptError(f"{where}: language {language!r} is no BCP-47 tag; write it as en or zh-Hans")
    return str(language)


def _checked_label(label: object, where: str) -> str:
    if label not in LABELS:
        raise PromptError(f"{where}: label {label!r}; it must be one of {', '.join(LABELS)}")
    return str(label)


def _sample(prompts: Collection[_Prompt], max_per_cell: int | None) -> Iterable[_Prompt]:
    """Return in each language and label the prompts whose prompt_id has the smallest digest."""
    if max_per_cell is None:
        return prompts
    cells: dict[tuple[str, str], list[str]] = {}
    for prompt in prompts:
        cells.setdefault((prompt.language, prompt.label), []).append(prompt.prompt_id)
    chosen = {
        identity for identities in cells.values() for identity in heapq.nsmallest(max_per_cell, identities, key=_sha256)
    }
    return [prompt for prompt in prompts if prompt.prompt_id in chosen]


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _files(source: PromptSource) -> Iterator[tuple[str, str, Iterator[tuple[int, Values]]]]:
    """Yield the name of each file of a source or of its data set, what is counted in it, and its rows."""
    columns = [
        source.text_column,
        source.language_column if source.language is None else None,
        source.label_column if source.label is None else None,
        source.category_column,
        source.family_column,
    ]
    if source.dataset is not None:
        yield source.dataset, "row", _dataset_rows(source, columns)
        return
    for path in _paths(str(source.path)):

        def check(there: Collection[str], path: Path = path) -> None:
            _check_columns(source, str(path), there)

        unit = "row" if path.suffix.lower() == ".parquet" else "line"
        yield str(path), unit, _READERS[path.suffix.lower()](path, columns, check)


def _paths(pattern: str) -> list[Path]:
    """Return the file, the files of the folder, or those that match, sorted."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = (file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in _READERS)
        paths = sorted(path / file for file in inside if not any(part[0] in "._" for part in file.parts))
    else:
        paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not paths:
        raise PromptError(f"{pattern}: no such file, or none that is {', '.join(_READERS)}; mend the path")
    for path in paths:
        if path.suffix.lower() not in _READERS:
            raise PromptError(f"{path}: not one of {', '.join(_READERS)}; convert it")
    return paths


def _check_columns(source: PromptSource, name: str, there: Collection[str]) -> None:
    """Raise PromptError where a column is needed, or named by the user, and not there."""
    needed = {"text_column": source.text_column, "family_column": source.family_column}
    if source.language is None:
        needed["language_column"] = source.language_column
    if source.label is None:
        needed["label_column"] = source.label_column
    if "category_column" in source.model_fields_set:
        needed["category_column"] = source.category_column
    for setting, column in needed.items():
        if column is not None and column not in there:
            nearest = difflib.get_close_matches(column, there, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"set {setting}"
            if setting in ("language_column", "label_column"):
                hint += f" or {setting.removesuffix('_column')}"
            raise PromptError(f"{name}: no column {column!r} among {', '.join(there) or 'none'}; {hint}")


def _parquet_rows(path: Path, columns: Sequence[str | None], check: Check) -> Iterator[tuple[int, Values]]:
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            check(there)
            wanted = sorted({column for column in columns if column is not None and column in there})
            yield from _batch_rows(file.iter_batches(columns=wanted), columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read as Parquet ({_line(error)}); mend the file") from error


def _batch_rows(
    batches: Iterable[pa.RecordBatch | pa.Table], columns: Sequence[str | None]
) -> Iterator[tuple[int, Values]]:
    numbers = itertools.count(1)
    for batch in batches:
        missing = [None] * batch.num_rows
        there = batch.schema.names
        cells = [batch[column].to_pylist() if column in there else missing for column in columns]
        for values in zip(*cells, strict=True):
            yield next(numbers), values


def _csv_rows(path: Path, columns: Sequence[str | None], check: Check) -> Iterator[tuple[int, Values]]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        check(header)
        positions = [header.index(column) if column in header else None for column in columns]
        for cells in reader:
            if cells and len(cells) != len(header):
                raise PromptError(
                    f"{path} line {reader.line_num}: {len(cells)} fields under {len(header)} columns; mend it"
                )
            if cells:
                yield reader.line_num, [None if i is None else cells[i] for i in positions]
    except csv.Error as error:
        raise PromptError(f"{path} line {reader.line_num}: {error}; is a quote left open?") from error


def _jsonl_rows(path: Path, columns: Sequence[str | None], check: Check) -> Iterator[tuple[int, Values]]:
    is_checked = False
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{path} line {number}: not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise PromptError(f"{path} line {number}: not a JSON object; write one object a line")
        if not is_checked:
            check(row)
            is_checked = True
        yield number, [row.get(column) for column in columns]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number of each line, from 1, and the line with its end."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} line {number}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror}; mend the path or its permissions") from error


def _dataset_rows(source: PromptSource, columns: Sequence[str | None]) -> Iterator[tuple[int, Values]]:
    import datasets  # takes seconds, and few sources need it

    try:
        rows = datasets.load_dataset(
            source.dataset, name=source.config_name, split=source.split, revision=source.commit(),
            trust_remote_code=False,
        )  # fmt: skip
        _check_columns(source, str(source.dataset), rows.column_names)
        yield from _batch_rows(rows.with_format("arrow").iter(batch_size=8192), columns)
    except PromptError:
        raise
    except Exception as error:  # the hub, the network, and loading scripts may raise anything
        raise PromptError(
            f"{source.dataset}: cannot be loaded ({_line(error)}); see dataset, config_name and split"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_READERS: dict[str, Callable[[Path, Sequence[str | None], Check], Iterator[tuple[int, Values]]]] = {
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
}
