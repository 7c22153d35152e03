"""The commented configuration that `rass init` writes: every key with its default and its sentences."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from rass_core.config import RassConfig
from rass_core.config.settings_in_words import REQUIRED, Setting, flow, kinds_of, one_line, own_settings, settings_of

WIDTH = 100
_COLUMN = 34
"""Where the sentences beside a value begin."""
_MOST_BESIDE = 3
"""Lines of sentences beside a value; more are above it."""
_HEAD = """\
# What RASS measures, writes and selects. `rass plan FILE` shows what a run will do, `rass run FILE`
# runs it. All keys with types and bounds: docs/config.md.
# A line that begins with # and no space is a setting, at its default where nothing else is said.
# Take away the # to set it, and the # of the key that it is indented under. A section without any
# key is as if it were not there.
"""
EXAMPLES: dict[str, Any] = {
    "prompts.sources.path": "prompts.parquet",
    "probe.prefixes": {"en": {"refusal": ["I cannot help with"], "compliance": ["Here is", "I can help with"]}},
    "generate.writers.role": "assistant",
    "generate.endpoint.base_url": "http://127.0.0.1:8000/v1",
    "generate.endpoint.model": "name-of-the-model",
    "judge.members.kind": "hf",
    "judge.members.model": "folder-or-name",
    "moderator.members.kind": "hf",
    "moderator.members.model": "folder-or-name",
    "moderator.members.safe_pattern": r"^\s*safe\b",
    "moderator.members.unsafe_pattern": r"^\s*unsafe\b",
    "moderator.members.controversial_pattern": "^controversial",
    "evaluate.utility.tasks": ["gsm8k"],
}
"""Key, without the kind of an entry → value shown in place of a default that does not exist or is too long."""
MORE_ENTRIES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "prompts.sources": [
        (
            "CSV with prompts of one language and label.",
            {"path": "harmless.csv", "text_column": "request", "language": "en", "label": "harmless"},
        ),
        (
            "JSONL with one object per line; * takes all files that match.",
            {"path": "seeds/*.jsonl", "text_column": "prompt", "language_column": "lang", "label": "harmful"},
        ),
        (
            "A data set of the Hugging Face hub.",
            {"dataset": "org/name", "split": "test", "language": "en", "label": "pseudo_harmful"},
        ),
    ],
    "generate.writers": [
        (
            "Operators imitate and begin need a writer of this role.",
            {"role": "user", "steering": "harm_without_refusal"},
        )
    ],
}
"""Key of a list → sentence and value of further entries."""


def starting_file(model_name: str, config: type[BaseModel] = RassConfig) -> str:
    """Return the text of a configuration with every key, the optional ones as comments.

    It is valid as it is, once its prompt file is there; so is each key without its #.

    Args:
        model_name: The target.
        config: The settings class.

    Raises:
        LookupError: A key without default has no example.
    """
    return _HEAD + "\n".join(_File({**EXAMPLES, "model.name": model_name}).whole(config)) + "\n"


class _File:
    """Writes the lines of a configuration.

    Args:
        examples: As EXAMPLES, with the name of the target.
    """

    def __init__(self, examples: dict[str, Any]) -> None:
        self._examples = examples
        self._places: dict[type[BaseModel], str] = {}
        """Settings class → key below which its keys are listed."""

    def whole(self, config: type[BaseModel]) -> Iterator[str]:
        """Yield the lines of all keys, a blank line around each section."""
        was_section = True
        for setting in settings_of(config):
            is_section = bool(setting.models)
            yield from [""] if is_section or was_section else []
            is_set = setting.is_section and setting.default is not None
            yield from self._key(setting, setting.name, "", is_set)
            was_section = is_section

    def _keys(self, settings: Sequence[Setting], below: str, indent: str, is_set: bool) -> Iterator[str]:
        """Yield the lines of some keys below another; those that must be given are set if it is."""
        for setting in settings:
            yield from self._key(setting, f"{below}.{setting.name}", indent, is_set and setting.default is REQUIRED)

    def _key(self, setting: Setting, place: str, indent: str, is_set: bool) -> Iterator[str]:
        """Yield the lines of a key: with its value, or with the keys or entries of a settings class that is new."""
        mark = indent if is_set else f"{indent}#"
        new = [model for model in setting.models if model not in self._places]
        if not new or place in self._examples:
            yield from self._value(setting, place, mark)
            return
        (model,) = new
        self._places[model] = place
        if setting.is_section:
            yield from [*_wrapped(setting.text, indent), f"{mark}{setting.name}:"]
            yield from self._keys(settings_of(model), place, f"{indent}  ", is_set)
            for kind, of_kind in kinds_of(model).items():
                own = own_settings(of_kind, model)
                yield from [f"{indent}  # With kind {kind}:"] if own else []
                yield from self._keys(own, place, f"{indent}  ", is_set=False)
            return
        entries = setting.default if isinstance(setting.default, list) else []
        which = f"the first {len(entries)}" if len(entries) > 1 else "the first"
        yield from _wrapped(f"{setting.text} By default {which}." if entries else setting.text, indent)
        yield f"{mark}{setting.name}:"
        yield from (f"{indent}  #- {flow(entry)}" for entry in entries)
        yield from self._entries(model, place, f"{indent}  ", is_set)

    def _entries(self, model: type[BaseModel], place: str, indent: str, is_set: bool) -> Iterator[str]:
        """Yield an entry of a list with all its keys; where there are kinds, one of each that has keys of its own.

        The first kind has the keys of every kind, too.
        """
        mark = indent if is_set else f"{indent}#"
        first, *others = settings_of(model)
        kinds = kinds_of(model)
        if not kinds:
            yield from self._value(first, f"{place}.{first.name}", f"{mark}- ")
            yield from self._keys(others, place, f"{indent}  ", is_set=False)
        for number, (kind, of_kind) in enumerate(kinds.items()):
            own = own_settings(of_kind, model)
            if number and not own:
                continue
            text = one_line(of_kind.__doc__) if number else first.text
            yield from _beside(f"{mark}- {first.name}: {flow(kind)}", text)
            yield from self._keys(own if number else [*others, *own], place, f"{indent}  ", is_set=False)
        for text, entry in MORE_ENTRIES.get(place, []):
            yield from [*_wrapped(text, indent), f"{indent}#- {flow(entry)}"]

    def _value(self, setting: Setting, place: str, mark: str) -> Iterator[str]:
        """Yield a key with its example or default, and its sentences."""
        sentences = [setting.text]
        sentences += [f"Settings as of {self._places[each]}." for each in setting.models if each in self._places]
        value = self._examples.get(place, setting.default)
        if value is REQUIRED:
            raise LookupError(f"{place}: has no default; add an example to EXAMPLES")
        if value != setting.default and setting.default not in (REQUIRED, None):
            sentences.append("(An example.)")
        yield from _beside(f"{mark}{setting.name}: {flow(value)}", " ".join(sentences))


def _beside(setting: str, text: str) -> Iterator[str]:
    """Yield a line with its sentences beside it; above it if they are too long for that."""
    column = max(_COLUMN, len(setting) + 2)
    lines = _lines(text, WIDTH - column - 2)
    if len(lines) == 1 or 1 < len(lines) <= (_MOST_BESIDE if column == _COLUMN else 0):
        yield f"{setting:<{column}}# {lines[0]}"
        yield from (f"{'':<{column}}# {line}" for line in lines[1:])
    else:
        yield from [*_wrapped(text, setting[: len(setting) - len(setting.lstrip())]), setting]


def _wrapped(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in _lines(text, WIDTH - len(indent) - 2)]


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(1, width), break_long_words=False, break_on_hyphens=False)
