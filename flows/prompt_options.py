"""Labelled prompts named on the command line: options for the settings of `prompts.sources`."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from rass_core.errors import ConfigError, PromptError
from rass_core.paths import short

TextColumnOption = Annotated[
    str | None, typer.Option(help="Column with the prompt or conversation; by default text, else messages.")
]
LanguageColumnOption = Annotated[
    str | None, typer.Option(help="Column with the language of a prompt; by default language.")
]
LabelColumnOption = Annotated[
    str | None, typer.Option(help="Column with harmful, harmless or pseudo_harmful; by default label.")
]
LabelMapOption = Annotated[
    str | None,
    typer.Option(
        "--label-map",
        metavar="MAP",
        help="Other labels and what they mean, as YAML: '{safe: harmless, unsafe: harmful, unclear: null}'; "
        "null leaves rows out.",
    ),
]
_OPTION = "--label-map"
_EXAMPLE = "'{safe: harmless, unsafe: harmful}'"


def read_label_map(text: str | None) -> dict[str, str | None]:
    """Return the map of `--label-map`, checked as `label_map` of a configuration; empty where it is not given.

    Raises:
        ConfigError: No mapping in YAML, a key that is there twice, or a value that is no label.
    """
    from pydantic import ValidationError

    from rass_core.data.sources import PromptSource
    from rass_core.yaml_file import parse_yaml

    if text is None:
        return {}
    given = parse_yaml(text, _OPTION).content
    if not isinstance(given, dict):
        raise ConfigError(f"{_OPTION} {short(text)}: not a mapping; write it like {_EXAMPLE}")
    try:
        return dict(PromptSource(path=_OPTION, label_map=given).label_map)
    except ValidationError as error:
        problem = error.errors()[0]
        value = "".join(f" {each}:" for each in problem["loc"][1:])
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{_OPTION}:{value} {message}; write it like {_EXAMPLE}") from error


def source_settings(label_map: str | None, language: str | None = None, **columns: str | None) -> dict[str, Any]:
    """Return settings of `prompts.sources` from options, without those that were not given.

    Raises:
        ConfigError: As `read_label_map`.
        LanguageError: An unknown language.
    """
    from rass_core.languages.tags import canonical_tag

    given = {**columns, "label_map": read_label_map(label_map), "language": language and canonical_tag(language)}
    return {name: value for name, value in given.items() if value}


@contextmanager
def naming_options(has_language: bool = False) -> Iterator[None]:
    """Let the errors of reading prompts name options of the command line in place of settings.

    Args:
        has_language: The command has `--language` for the language of all prompts.
    """
    try:
        yield
    except PromptError as error:
        raise PromptError(_with_options(str(error), has_language)) from error


def _with_options(message: str, has_language: bool) -> str:
    """Return the message of a configuration as that of a command: with `--label-map` for `label_map:`, and so on."""
    message = re.sub(r"label_map: (\{.*\})$", lambda found: f"{_OPTION} {shlex.quote(found[1])}", message)
    message = re.sub(r"(?<![\w'-])(text|language|label|family)_column(?![\w'])", r"--\1-column", message)
    message = message.removesuffix(" or label").replace("give the source a label, or such a map,", "give such a map,")
    if not has_language:
        return message.removesuffix(" or language").removesuffix(", or give the source a language")
    message = re.sub(" or language$", " or --language", message)
    return re.sub("give the source a language$", "give all prompts one with --language", message)
