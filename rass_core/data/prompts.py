"""Given prompts: read from files and data sets, checked, and brought into the table `prompts`."""

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from rass_core.data.cells import CHAT_COLUMNS, Said, class_name, key, label_of, plain, proposed_map, text_of
from rass_core.data.gathering import ROWS_HELD, FirstLabels, GatheredPrompts, GivenPrompt, sampled
from rass_core.data.readers import Batch, DataFile, class_names, find_files, numbered
from rass_core.data.records import message_of, repeated
from rass_core.data.sources import LONGEST_LABEL, PromptSource
from rass_core.errors import LanguageError, PromptError
from rass_core.lake.schema import TABLES
from rass_core.languages.tags import canonical_tag
from rass_core.text import prompt_id
from rass_core.vocabulary import LABELS


@dataclass(frozen=True)
class LoadedPrompts:
    """Rows of the table `prompts`, one a prompt_id, and how many rows were dropped for which reason."""

    table: pa.Table
    dropped: dict[str, int]
    n_shortened: int = 0
    """Conversations of which earlier turns are left out."""
    places: dict[str, str] = field(default_factory=dict)
    """Language → file and row of its first prompt."""

    def texts(self) -> Iterator[str]:
        """Yield the texts, a batch of them Python objects at a time."""
        for batch in self.table.to_batches(max_chunksize=ROWS_HELD):
            yield from batch["text"].to_pylist()


def load_prompts(sources: Sequence[PromptSource], max_characters: int = 20_000) -> LoadedPrompts:
    """Return the prompts of all sources: NFC, stripped, line breaks kept, in the order of the sources.

    Args:
        sources: Sources in order; the first of equal prompts (white space and case aside) is kept.
        max_characters: Longest prompt.

    Returns:
        Prompts in the schema of the table `prompts`; counts of 'empty', 'null' and 'duplicate' rows, and of those
        that a label_map leaves out, as 'label'. Empty is also what shows nothing, such as zero-width characters.

    Raises:
        PromptError: A source that cannot be read or lacks a column, a row without a valid language, label or
            text, a prompt with two labels, or a source without prompts.
    """
    dropped = {"empty": 0, "null": 0, "duplicate": 0}
    places: dict[str, str] = {}
    n_shortened = 0
    labels, kept = FirstLabels(), GatheredPrompts()
    for source in sources:
        prompts = GatheredPrompts()
        for file, place, prompt, has_earlier in _Reading(source, max_characters, dropped).prompts():
            labels.check(prompt, file, place)
            places.setdefault(prompt.language, place)
            dropped["duplicate"] += not prompts.add(prompt)
            n_shortened += has_earlier
        for batch in sampled(prompts.batches(), source.max_rows_per_cell):
            dropped["duplicate"] += kept.add_batch(batch)
    table = pa.Table.from_batches(kept.batches(), TABLES["prompts"])
    return LoadedPrompts(table, dropped, n_shortened, places)


@dataclass
class _Reading:
    """One source, read row by row."""

    source: PromptSource
    max_characters: int
    dropped: dict[str, int]
    n_rows: int = 0
    n_kept: int = 0
    languages: set[str] = field(default_factory=set)
    unknown: Counter[str | None] = field(default_factory=Counter)
    """Values of the label column that are no label."""
    first_unknown: str = ""

    def prompts(self) -> Iterator[tuple[str, str, GivenPrompt, bool]]:
        """Yield file, place and prompt of each row that is kept, and whether earlier turns of it are left out."""
        for file in _files(self.source):
            for place, row in _rows(file, self.source):
                self.n_rows += 1
                kept = self._prompt(file, place, row)
                if kept is not None:
                    self.n_kept += 1
                    yield file.name, place, *kept
        if self.unknown:
            raise PromptError(self._unknown_labels())
        if self.n_kept == 0:
            raise PromptError(
                f"{self.source.path or self.source.dataset}: no prompt among {self.n_rows} rows, languages"
                f" {', '.join(sorted(self.languages)) or 'none'}; leave the source out or change its languages"
                + (" or where" if self.source.where else "")
            )

    def _prompt(self, file: "DataFile | _HubRows", place: str, row: "_Row") -> tuple[GivenPrompt, bool] | None:
        """Return a row's prompt; None for what is dropped or not wanted."""
        said = text_of(row.text, self.max_characters, place)
        if not said.text:
            self._drop("null" if said.text is None else "empty")
            return None
        language = self.source.language or _language(row.language, place)
        self.languages.add(language)
        if not self.source.keeps(language):
            return None
        label = self.source.label or self._label(row, place)
        return None if label is None else (self._row(file, place, row, said, language, label), said.has_earlier)

    def _row(
        self, file: "DataFile | _HubRows", place: str, row: "_Row", said: Said, language: str, label: str
    ) -> GivenPrompt:
        identity = prompt_id(language, said.text or "")
        origin = self.source.source or file.stem
        family = plain(row.family, str(self.source.family_column), place)
        return GivenPrompt(
            prompt_id=identity,
            text=said.text or "",
            language=language,
            label=label,
            category=plain(row.category, str(self.source.category_column), place),
            source=origin,
            licence=self.source.licence,
            family=identity if family is None else f"{origin}/{family}",
        )

    def _label(self, row: "_Row", place: str) -> str | None:
        """Return the label of a row; an unknown one is reported at the end, with all others."""
        forms = [plain(value, self.source.label_column, place) for value in (row.label, row.label_number)]
        try:
            label = label_of(forms, self.source.label_map)
        except KeyError:
            self.first_unknown = self.first_unknown or place
            self.unknown[forms[0] and forms[0][:LONGEST_LABEL]] += 1
            return None
        if label is None:
            self._drop("label")
        return label

    def _drop(self, why: str) -> None:
        self.dropped[why] = self.dropped.get(why, 0) + 1

    def _unknown_labels(self) -> str:
        """Say which labels are none, how many rows have each, and what to write into the configuration."""
        common = self.unknown.most_common(10)
        counts = ", ".join(f"{value!r} {n:,}" for value, n in common)
        more = f" and {len(self.unknown) - len(common)} others" if len(self.unknown) > len(common) else ""
        advice = "name the label_column"
        if values := [value for value, _ in common if len(value or "") < LONGEST_LABEL]:
            advice = "fix them or give the source a label, or such a map, once you have checked it: "
            advice += f"label_map: {proposed_map(values)}"
        return (
            f"{self.first_unknown}: label {next(iter(self.unknown))!r}; it must be one of {', '.join(LABELS)}; rows "
            f"with others: {counts}{more}; {advice}"
        )


def _language(language: Any, place: str) -> str:
    written = plain(language, "language", place)
    if written is None:
        raise PromptError(f"{place}: no language; fill it in, or give the source a language")
    try:
        return canonical_tag(written)
    except LanguageError as error:
        raise PromptError(f"{place}: {error}, or give the source a language") from error


class _Row(NamedTuple):
    """The cells of one row that are read; None where there is no such column."""

    text: Any
    language: Any
    label: Any
    label_number: Any
    """The number of a class; else the label."""
    category: Any
    family: Any


@dataclass
class _HubRows:
    """A Hugging Face data set, read like a file."""

    source: PromptSource
    hive: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return str(self.source.dataset)

    @property
    def stem(self) -> str:
        """Its name without the owner."""
        return Path(self.name).stem

    @cached_property
    def _loaded(self) -> Any:
        import datasets  # takes seconds, and few sources need it

        try:
            return datasets.load_dataset(
                self.name,
                name=self.source.config_name,
                split=self.source.split,
                revision=self.source.commit(),
                trust_remote_code=False,
            )
        except Exception as error:  # the hub, the network, and loading scripts may raise anything
            raise PromptError(
                f"{self.name}: cannot be loaded ({message_of(error)}); see dataset, config_name and split"
            ) from error

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        return list(self._loaded.column_names)

    def class_names(self) -> dict[str, list[str]]:
        """Return column → names of its classes."""
        return class_names(self._loaded.features.arrow_schema)

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """Yield the rows."""
        try:
            tables = self._loaded.select_columns(list(columns)).with_format("arrow").iter(batch_size=8192)
            yield from numbered((batch for table in tables for batch in table.to_batches()), self.name)
        except PromptError:
            raise
        except Exception as error:  # files of the data set that are broken
            raise PromptError(f"{self.name}: cannot be read ({message_of(error)}); fetch the data set again") from error


def _files(source: PromptSource) -> Iterator[DataFile | _HubRows]:
    if source.dataset is not None:
        yield _HubRows(source)
        return
    files = find_files(str(source.path))
    are_json = {file.kind == ".json" for file in files}
    for file in files:
        # A data set's folder holds JSON that describes it.
        if len(are_json) == 1 or file.kind != ".json" or _has_prompts(file, source):
            yield file


def _has_prompts(file: DataFile, source: PromptSource) -> bool:
    return file.holds_rows() and bool({source.text_column, *CHAT_COLUMNS} & set(file.columns()))


def _rows(file: DataFile | _HubRows, source: PromptSource) -> Iterator[tuple[str, _Row]]:
    """Yield the place and the cells of each row that `where` wants.

    Raises:
        PromptError: A column that is wanted and not there, or there twice, or that some rows do not name.
    """
    in_file = file.columns()
    if not in_file:
        return
    there = list(dict.fromkeys([*in_file, *file.hive]))
    columns = _columns(source, file.name, there)
    needed = _check_columns(source, file.name, there, columns["text"])
    read = sorted({each for each in [*columns.values(), *source.where] if each in in_file})
    for name in repeated(in_file):
        if name in read:
            raise PromptError(f"{file.name}: two columns of the name {name!r}; rename one")
    names = file.class_names()
    for batch in file.batches(read):
        cells = {name: batch.values(name) for name in read}
        for name in there:
            if name not in in_file:
                cells[name] = [file.hive[name]] * len(batch.numbers)
        places = [f"{batch.place} {number}" for number in batch.numbers]
        wanted = [i for i, place in enumerate(places) if _is_wanted(source.where, cells, i, names, place)]
        _check_named(file, batch, [name for name in needed if name in in_file], wanted)
        for i in wanted:
            raw = {role: None if name not in cells else cells[name][i] for role, name in columns.items()}
            named = {role: class_name(value, names.get(str(columns[role]))) for role, value in raw.items()}
            yield places[i], _Row(**named, label_number=raw["label"])


def _columns(source: PromptSource, name: str, there: Collection[str]) -> dict[str, str | None]:
    """Return what is read → its column, None where it is not read from the rows."""
    text = source.text_column
    if text not in there and "text_column" not in source.model_fields_set:
        text = next((each for each in CHAT_COLUMNS if each in there), text)
    return {
        "text": text,
        "language": source.language_column if source.language is None else None,
        "label": source.label_column if source.label is None else None,
        "category": source.category_column if source.category_column in there else None,
        "family": source.family_column,
    }


def _check_columns(source: PromptSource, name: str, there: Collection[str], text: str | None) -> list[str]:
    """Return the columns that every row must name: needed, or named by the user.

    Raises:
        PromptError: One is not there.
    """
    needed = {"text_column": text, "family_column": source.family_column}
    if source.language is None:
        needed["language_column"] = source.language_column
    if source.label is None:
        needed["label_column"] = source.label_column
    if "category_column" in source.model_fields_set:
        needed["category_column"] = source.category_column
    needed |= {f"where.{column}": column for column in source.where}
    for setting, column in needed.items():
        if column is not None and column not in there:
            nearest = difflib.get_close_matches(column, there, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"set {setting}"
            if setting in ("language_column", "label_column"):
                hint += f" or {setting.removesuffix('_column')}"
            raise PromptError(f"{name}: no column {column!r} among {', '.join(there) or 'none'}; {hint}")
    return list(dict.fromkeys(column for column in needed.values() if column is not None))


def _is_wanted(
    where: Mapping[str, Sequence[str]],
    cells: Mapping[str, Sequence[Any]],
    i: int,
    names: Mapping[str, Sequence[str]],
    place: str,
) -> bool:
    """Return whether row i of the cells has one of the values wanted in each column; of a class, name or number."""
    for column, wanted in where.items():
        value = cells[column][i]
        if not {key(plain(each, column, place)) for each in (value, class_name(value, names.get(column)))} & set(
            wanted
        ):
            return False
    return True


def _check_named(file: DataFile | _HubRows, batch: Batch, needed: Sequence[str], wanted: Sequence[int]) -> None:
    """Raise where rows of JSON do not name a column that others do: they would be lost without a word.

    Raises:
        PromptError: Naming the first of them.
    """
    numbers = {batch.numbers[i] for i in wanted}
    for column in needed:
        lacking = [number for number in batch.lacking(column) if number in numbers]
        if lacking:
            first = next(row for row, number in zip(batch.rows, batch.numbers, strict=True) if number == lacking[0])
            n = sum(len(each.lacking(column)) for each in file.batches([column]))
            others = f" and {n - 1:,} more rows" if n > 1 else ""
            raise PromptError(
                f"{batch.place} {lacking[0]}{others}: no {column!r} among {', '.join(first) or 'nothing'},"
                f" which other rows have; give all rows the same names, or write null for what is missing"
            )
