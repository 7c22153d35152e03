"""The reference of all keys and the file of `rass init`: both follow from the settings classes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from rass_core.config import RassConfig, load_config, reference, settings_in_words, starting_file
from rass_core.registry import Registry

ROOT = Path(__file__).parents[2]
SETTING = re.compile(r"^( *)#(?=\S)")
"""Begin of a setting that is a comment; prose has a space after the #."""
OUTSIDE = {
    "prompts.sources", "probe.prefixes", "generate.writers", "generate.endpoint", "judge.members", "moderator.members",
    "mitigate", "evaluate.utility",
}  # fmt: skip
"""Keys that the file shows with an example, for their default is null, a list, or too long."""


def starting() -> list[str]:
    return starting_file.starting_file("org/my: model").splitlines()


def read(folder: Path, lines: list[str]) -> RassConfig:
    path = folder / "rass.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return load_config(path)


def classes(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a settings class and all below it, those of each kind too."""
    yield model
    for setting in settings_in_words.settings_of(model):
        for below in setting.models:
            for each in (below, *settings_in_words.kinds_of(below).values()):
                yield from classes(each)


KEYS = {key for model in classes(RassConfig) for key in model.model_fields}


def changed(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Yield the keys in which two configurations differ."""
    for key in one:
        here = f"{place}.{key}".strip(".")
        if isinstance(one[key], dict) and isinstance(other[key], dict) and here not in OUTSIDE:
            yield from changed(one[key], other[key], here)
        elif one[key] != other[key]:
            yield here


def units(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each key below a section, with all that is below it."""
    begins = [number for number, line in enumerate(lines) if re.match(r"(?:#|  #)\w", line)]
    for begin in begins:
        indent = SETTING.match(lines[begin])
        assert indent is not None
        end = begin + 1
        while end < len(lines) and (lines[end].startswith(f"{indent[1]} ") or lines[end].startswith(f"{indent[1]}# ")):
            end += 1
        yield begin, end


def test_the_starting_file_is_valid_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "prompts.parquet").touch()
    config = read(tmp_path, starting())
    assert config.model.name == "org/my: model"
    smallest = {
        "model": {"name": "org/my: model"},
        "prompts": {"sources": [{"path": str(tmp_path / "prompts.parquet")}]},
    }
    assert config == RassConfig.model_validate(smallest)


def test_every_line_of_the_starting_file_fits(tmp_path: Path) -> None:
    assert max(map(len, starting())) <= 100
    assert len(starting()) < 400


def test_the_starting_file_shows_every_key_once_per_class() -> None:
    text = "\n".join(starting())
    assert {key for key in KEYS if not re.search(rf"\b{key}:", text)} == set()
    assert text.count("#gpu_memory_utilization:") == 1


def test_all_keys_of_the_starting_file_hold_the_defaults_or_are_examples(tmp_path: Path) -> None:
    whole = [SETTING.sub(r"\1", line) for line in starting()]
    # Who writes at an endpoint has no writers of its own.
    without = [line for line in whole if not re.match(r"  writers:|    - \{?role:|      (?:steering|layer):", line)]
    found = read(tmp_path, without)
    defaults = read(tmp_path, starting())
    assert set(changed(found.model_dump(mode="json"), defaults.model_dump(mode="json"))) == OUTSIDE - {
        "generate.writers"
    }
    for section in ("judge", "moderator"):
        default = getattr(defaults, section).members
        assert getattr(found, section).members[: len(default)] == default
    assert found.mitigate == type(found.mitigate)()
    assert [source.path or source.dataset for source in found.prompts.sources] == [
        "prompts.parquet", "harmless.csv", "seeds/*.jsonl", "org/name",
    ]  # fmt: skip


def test_each_key_of_the_starting_file_is_valid_alone(tmp_path: Path) -> None:
    lines = starting()
    found = list(units(lines))
    assert len(found) > 80
    for begin, end in found:
        above = next(number for number in range(begin, -1, -1) if re.match(r"#?\w", lines[number]))
        shown = [
            SETTING.sub(r"\1", line) if begin <= number < end or number == above else line
            for number, line in enumerate(lines)
        ]
        read(tmp_path, shown)


def test_the_reference_is_current() -> None:
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == reference.reference(), f"docs/config.md is not current; renew it with `{reference.RENEW}`"


def test_the_reference_describes_every_key_and_its_links_lead_somewhere() -> None:
    text = reference.reference()
    assert {key for key in KEYS if f"`{key}` |" not in text} == set()
    anchors = re.findall(r'<a id="([^"]+)">', text)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - {"top-level", "renamed-keys"} <= set(anchors)
    for file in re.findall(r"\]\(([\w-]+\.md)", text):
        assert (ROOT / "docs" / file).exists()


def test_every_key_has_sentences() -> None:
    silent = {
        f"{model.__name__}.{setting.name}"
        for model in classes(RassConfig)
        for setting in settings_in_words.settings_of(model)
        if not setting.text
    }
    assert silent == set()


def test_every_settings_class_that_others_extend_has_its_kinds() -> None:
    for model in set(classes(RassConfig)):
        extending = {each for each in model.__subclasses__() if each.__module__.startswith("rass_core.")}
        assert extending <= set(settings_in_words.kinds_of(model).values()), model


class Member(BaseModel):
    """A member."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: str
    """Which one."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of its vote."""


class Dice(Member):
    """Throws dice."""

    sides: Literal[6, 20] = 6
    """Sides of the dice."""


class Settings(BaseModel):
    """All settings."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    members: list[Member] = [Member(kind="coin"), Dice(kind="dice", sides=20)]
    """Who votes."""
    limits: dict[str, int | None] | None = None
    """Limits by name."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Registry("member", [], Member)
    found.register("coin")(Member)
    found.register("dice", Dice)(Dice)
    found.register("drum")(list)
    monkeypatch.setattr(settings_in_words, "registry_of", lambda model: found if model is Member else None)


def test_registered_kinds_are_described_with_the_keys_of_their_own(registry: None) -> None:
    text = reference.reference(Settings)
    assert (
        "| `members` | list of [settings](#members) | `[{kind: coin}, {kind: dice, sides: 20}]` | Who votes. |" in text
    )
    assert '### <a id="members.dice"></a>`members`, kind `dice`\n\nThrows dice.\n' in text
    assert text.count("`weight` | number above 0 | `1.0` | Weight of its vote.") == 1
    assert '| <a id="members.dice.sides"></a>`sides` | `6` or `20` | `6` | Sides of the dice. |' in text
    assert "`limits` | mapping from text to whole number, or null, or null | `null` |" in text


def test_registered_kinds_are_entries_of_the_starting_file(registry: None) -> None:
    lines = [line.split(" # ")[0].rstrip() for line in starting_file.starting_file("m", Settings).splitlines()]
    first = lines.index("#members:")
    assert lines[first - 1] == "# Who votes. By default the first 2."
    assert [line for line in lines[first + 1 :] if line] == [
        "  #- {kind: coin}",
        "  #- {kind: dice, sides: 20}",
        "  #- kind: coin",
        "    #weight: 1.0",
        "  #- kind: dice",
        "    #sides: 6",
        "#limits: null",
    ]


def test_a_required_key_without_an_example_is_an_error() -> None:
    class Needy(BaseModel):
        needed: int

    with pytest.raises(LookupError, match="needed: has no default; add an example to EXAMPLES"):
        starting_file.starting_file("m", Needy)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("org/name", "org/name"), ("no", '"no"'), ("2026-01-01", '"2026-01-01"'), ("a: b", '"a: b"'), ("", '""'),
        (r"^\s*safe\b", r'"^\\s*safe\\b"'), ("größe 1", '"größe 1"'), (None, "null"), (True, "true"), (1.0, "1.0"),
        ({"en": ["I cannot", 2]}, '{en: ["I cannot", 2]}'),
    ],
)  # fmt: skip
def test_values_are_written_as_yaml(value: Any, text: str) -> None:
    assert settings_in_words.flow(value) == text
