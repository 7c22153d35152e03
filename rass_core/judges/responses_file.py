"""Files of responses: which columns hold what, read a batch at a time."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rass_core.data.readers import Batch, DataFile
from rass_core.data.records import message_of, repeated
from rass_core.errors import JudgeError, LanguageError
from rass_core.languages.tags import canonical_tag
from rass_core.vocabulary import LABELS, Exchange


@dataclass(frozen=True)
class Layout:
    """Which columns hold what."""

    response: str = "response"
    prompt: str | None = None
    """None: there is none, and judges that read it do without."""
    language_column: str | None = "language"
    """Column with BCP-47 tags; None where `language` says it for all rows."""
    language: str | None = None
    prompt_label: str | None = None
    """Column with the prompt's label: harmful, pseudo_harmful or harmless; None where there is none."""

    def columns(self) -> list[str]:
        """Return the columns that are read."""
        named = (self.response, self.prompt, self.language_column, self.prompt_label)
        return [each for each in named if each is not None]

    def exchanges(self, batch: Batch) -> list[Exchange]:
        """Return what the judges are given; a response that is null is empty.

        Raises:
            JudgeError: A row without a language, with an unknown one, or with a value that is no text.
        """
        if lacking := batch.lacking(self.response):
            raise JudgeError(f"{batch.place} {lacking[0]}: no {self.response!r}, which other rows have; fix it")
        responses = texts(batch, self.response)
        prompts = itertools.repeat(None) if self.prompt is None else texts(batch, self.prompt)
        labels = itertools.repeat(None) if self.prompt_label is None else _prompt_labels(batch, self.prompt_label)
        languages = self.languages(batch)
        return [
            Exchange(response or "", language, prompt, label)
            for response, language, prompt, label in zip(responses, languages, prompts, labels, strict=False)
        ]

    def languages(self, batch: Batch) -> list[str]:
        """Return the canonical tags of the rows.

        Raises:
            JudgeError: As `exchanges`.
        """
        if self.language_column is None:
            return [str(self.language)] * len(batch.numbers)
        written = texts(batch, self.language_column)
        return [_tag(each, f"{batch.place} {row}") for each, row in zip(written, batch.numbers, strict=True)]


def _tag(written: str | None, place: str) -> str:
    if not written or not written.strip():
        raise JudgeError(f"{place}: no language; fill it in, or give all one with --language")
    try:
        return canonical_tag(written)
    except LanguageError as error:
        raise JudgeError(f"{place}: {error}, or give all rows one with --language") from error


def _prompt_labels(batch: Batch, column: str) -> list[str | None]:
    """Return the labels of prompts; empty ones are unknown.

    Raises:
        JudgeError: An unknown label, with its row.
    """
    labels = [each.strip().lower() or None if each else None for each in texts(batch, column)]
    for number, label in zip(batch.numbers, labels, strict=True):
        if label not in (None, *LABELS):
            raise JudgeError(
                f"{batch.place} {number}: prompt label {label!r} is not one of {', '.join(LABELS)}; fix it, or "
                "name another column with --prompt-label-column"
            )
    return labels


def layout_of(
    source: "ResponsesFile", response: str = "response", prompt: str | None = None,
    language_column: str | None = None, language: str | None = None, prompt_label: str | None = None,
) -> Layout:  # fmt: skip
    """Return the layout of a file; unless named, `prompt` and `prompt_label` are taken if there, `language` must be.

    Raises:
        JudgeError: A column that is not there, a language given twice, or a text that is no language.
    """
    if language is not None and language_column is not None:
        raise JudgeError("--language and --language-column: give one of them")
    there = source.columns()
    if language is None and language_column is None:
        language_column = "language"
    wanted = {"--response-column": response, "--prompt-column": prompt, "--language-column": language_column,
              "--prompt-label-column": prompt_label}  # fmt: skip
    check_columns(source.path, there, wanted)
    if prompt is None and "prompt" in there:
        prompt = "prompt"
    if prompt_label is None and "prompt_label" in there:
        prompt_label = "prompt_label"
    tag = None if language is None else _tag(language, "--language")
    return Layout(response, prompt, language_column, tag, prompt_label)


class ResponsesFile(DataFile):
    """A file with one response a row.

    Raises:
        JudgeError: No such file, or none of the known kinds.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path).expanduser(), JudgeError)
        if not self.path.is_file():
            raise JudgeError(f"{self.path}: no such file; fix the path")

    def columns(self) -> list[str]:
        """Return the names of the columns, for which JSON is read to its end.

        Raises:
            JudgeError: The file cannot be read, or two columns have one name.
        """
        names = super().columns()
        if twice := repeated(names):
            raise JudgeError(f"{self.path}: two columns of one name, {twice[0]!r}, in {', '.join(names)}; rename one")
        return names

    def schema(self) -> pa.Schema:
        """Return the columns with the types that they take in Parquet.

        Raises:
            JudgeError: The file cannot be read, or a column of JSON holds several types.
        """
        if self.kind == ".parquet":
            return super().schema()
        names, is_text = self.columns(), self.kind in (".csv", ".tsv")
        schema = pa.schema([(name, pa.string() if is_text else pa.null()) for name in names])
        for batch in () if is_text else self.batches():
            for name in names:
                try:
                    part = pa.schema([(name, pa.array(batch.values(name)).type)])
                    schema = pa.unify_schemas([schema, part], promote_options="permissive")
                except (pa.ArrowException, UnicodeEncodeError) as error:
                    raise JudgeError(
                        f"{self.path}: column {name!r} does not fit Parquet ({message_of(error)}); write .jsonl instead"
                    ) from error
        return schema


def check_columns(path: Path, there: Sequence[str], wanted: Mapping[str, str | None]) -> None:
    """Raise where a column is not there.

    Args:
        path: Named in the error.
        there: The file's columns.
        wanted: Option that names a column → the column.

    Raises:
        JudgeError: With the nearest column that is there.
    """
    for option, column in wanted.items():
        if column is not None and column not in there:
            nearest = difflib.get_close_matches(column, there, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"name it with {option}"
            if option == "--language-column":
                hint += ", or give all rows one with --language"
            raise JudgeError(f"{path}: no column {column!r} among {', '.join(there) or 'none'}; {hint}")


def texts(batch: Batch, column: str) -> list[str | None]:
    """Return a column of text, halves of surrogate pairs replaced.

    Raises:
        JudgeError: Naming the row that holds something else.
    """
    # A value that is not itself is NaN, which pandas writes for what is missing.
    found = [None if value != value else value for value in batch.values(column)]
    for number, value in zip(batch.numbers, found, strict=True):
        if value is not None and not isinstance(value, str):
            raise JudgeError(
                f"{batch.place} {number}: {column!r} is of type {type(value).__name__}; name a text column"
            )
    return [value if value is None or value.isascii() else value.encode(errors="replace").decode() for value in found]
