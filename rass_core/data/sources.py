"""Where given prompts come from: files, hub data sets, their columns."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rass_core.data.cells import key, plain
from rass_core.data.records import repeated
from rass_core.errors import ModelError
from rass_core.languages.tags import canonical_tag, is_within
from rass_core.models.identity import hub_commit
from rass_core.settings import STRICT

LONGEST_LABEL = 40
"""Characters of a wrong label that are shown; what has as many is hardly a label."""
Label = Literal["harmful", "harmless", "pseudo_harmful"]


def _tag(written: Any) -> Any:
    # YAML reads the language code no as false.
    return "no" if written is False else canonical_tag(written) if isinstance(written, str) else written


Language = Annotated[str, BeforeValidator(_tag)]
"""A language in a configuration, as people write it; kept as its canonical BCP-47 tag."""


def _values(given: Any) -> Any:
    """Return a value or list of values of `where` as texts."""
    return [key(plain(each, "where", "where")) for each in (given if isinstance(given, list) else [given])]


def _mapped(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    keys = [key(plain(each, "label_map", "label_map")) for each in given]
    if twice := repeated(keys):
        raise ValueError(f"{twice[0]!r} is there twice, in different case; leave one out")
    return dict(zip(keys, given.values(), strict=True))


class PromptSource(BaseModel):
    """A file, folder, glob or Hugging Face data set with one prompt per row."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str | None = None
    """Parquet, CSV, TSV, JSON or JSONL file, the text ones also as .gz; a folder of them, or a glob."""
    dataset: str | None = None
    """Name of a Hugging Face data set, in place of path."""
    config_name: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    """Split of the data set."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of the data set; null takes its main branch. The commit found is kept with the run."""
    text_column: str = "text"
    """Column with the prompt, or with a conversation, of which the user's last turn is taken."""
    language: Language | None = None
    """BCP-47 tag of all rows, such as en or zh-Hans; null takes it from language_column."""
    language_column: str = "language"
    """Column with the language: a BCP-47 tag, a code or a name."""
    label: Label | None = None
    """True label of all rows; null takes it from label_column."""
    label_column: str = "label"
    """Column with the true label: harmful, harmless or pseudo_harmful."""
    label_map: Annotated[dict[str, Label | None], BeforeValidator(_mapped)] = Field(default_factory=dict)
    """Value of label_column → label, such as {safe: pseudo_harmful, "1": harmful}; null leaves such rows out."""
    where: dict[str, Annotated[list[str], BeforeValidator(_values)]] = Field(default_factory=dict)
    """Column → value or list of values: only such rows are read."""
    category_column: str | None = "category"
    """Column with a topic, such as violence; it may be missing where it is not named. null reads none."""
    licence: str | None = None
    """Licence of the prompts, kept with each."""
    source: str | None = None
    """Name kept with each prompt; null takes the file's or data set's."""
    family_column: str | None = None
    """Prompts of a source that share this value are one draw of the bootstrap; null: each is its own."""
    max_rows_per_cell: int | None = Field(default=None, ge=1)
    """Sample at most so many prompts per language and label, the same ones every time."""
    languages: list[Language] | None = None
    """Keep only these languages; pt keeps pt-BR too. null keeps all."""

    @model_validator(mode="after")
    def _one_place(self) -> "PromptSource":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path or dataset")
        if self.revision is not None and self.dataset is None:
            raise ValueError("revision: a file has none; leave it out")
        if self.label is not None and self.label_map:
            raise ValueError("label_map: label says it for all rows; leave one of them out")
        return self

    def keeps(self, language: str) -> bool:
        """Return whether prompts of a language are kept."""
        return self.languages is None or any(is_within(language, wanted) for wanted in self.languages)

    def commit(self) -> str | None:
        """Return the data set's commit, as asked for where it cannot be looked up; None for a file or folder."""
        if self.dataset is None or Path(self.dataset).exists():
            return None
        try:
            return hub_commit(self.dataset, self.revision, "dataset")
        except ModelError:  # `datasets` keeps a cache of its own, which may hold it
            return self.revision


class PromptsConfig(BaseModel):
    """The given prompts: harmful, harmless and pseudo_harmful ones in every language to be measured."""

    model_config = STRICT

    sources: list[PromptSource] = Field(min_length=1)
    """Files or Hugging Face datasets."""
    max_characters: int = Field(default=20_000, ge=1, le=100_000_000)
    """A longer prompt is an error rather than a silent cut."""
