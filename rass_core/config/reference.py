"""Every key of a configuration as a page of Markdown: `python -m rass_core.config.reference > docs/config.md`."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from rass_core.config import RassConfig
from rass_core.config.renamed import RENAMED, RENAMED_VALUES
from rass_core.config.settings_in_words import REQUIRED, Setting, flow, kinds_of, one_line, own_settings, settings_of

RENEW = "python -m rass_core.config.reference > docs/config.md"
_LONGEST_DEFAULT = 70
"""Characters of a default that is shown whole."""
_INTRODUCTION = f"""\
<!-- Written by `{RENEW}` from the settings classes: change their docstrings, not this file. -->

# Configuration

A run has one YAML file. `rass init` writes one with every key as a comment; only `model` and `prompts` are required.
[inputs.md](inputs.md#configurations) says how the file is read and what is an error,
[inputs.md](inputs.md#prompt-files) which prompt files are read. In Python: `rass_core.load_config`.

A dot leads into a section or into the entries of a list: `prompts.sources.path` is `path` in

```yaml
prompts:
  sources:
    - path: prompts.parquet
```
"""


@dataclass(frozen=True)
class _Section:
    """Keys of one settings class."""

    place: str
    """Dotted key below which they are; empty at the top."""
    kind: str
    """Kind of entry that has them; empty where every entry has."""
    model: type[BaseModel]
    settings: list[Setting]

    @property
    def anchor(self) -> str:
        return _dotted(self.place, self.kind)


def reference(config: type[BaseModel] = RassConfig) -> str:
    """Return the page on all keys of a configuration."""
    sections = list(_sections(_Section("", "", config, settings_of(config)), set()))
    places = {section.model: section.place for section in reversed(sections)}
    top = [section.place for section in sections if section.place and "." not in section.anchor]
    links = " · ".join(["[top level](#top-level)", *(f"[{place}](#{place})" for place in top)])
    pages = [_page(section, places) for section in sections]
    return "\n".join([_INTRODUCTION, f"{links} · [renamed keys](#renamed-keys)\n", *pages, _renamed()])


def _sections(section: _Section, seen: set[type[BaseModel]]) -> Iterator[_Section]:
    """Yield a section and those below it; of each settings class the first that has its keys."""
    if section.model in seen:
        return
    seen.add(section.model)
    yield section
    for kind, model in kinds_of(section.model).items():
        if own := own_settings(model, section.model):
            yield from _sections(_Section(section.place, kind, model, own), seen)
    for setting in section.settings:
        for model in setting.models:
            yield from _sections(_Section(_dotted(section.anchor, setting.name), "", model, settings_of(model)), seen)


def _page(section: _Section, places: dict[type[BaseModel], str]) -> str:
    """Return a section: a heading, what its class says of itself, and a table of its keys."""
    kind = f", kind `{section.kind}`" if section.kind else ""
    heading = f'<a id="{section.anchor}"></a>`{section.place}`{kind}' if section.place else "Top level"
    level = "#" * min(4, 2 + section.anchor.count("."))
    rows = [_row(section, setting, places) for setting in section.settings]
    about = _as_text(one_line(section.model.__doc__))
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([f"{level} {heading}", "", about, "", *table, ""])


def _row(section: _Section, setting: Setting, places: dict[type[BaseModel], str]) -> str:
    place = _dotted(section.anchor, setting.name)

    def name_model(model: type[BaseModel]) -> str:
        there = places[model]
        return f"[settings](#{there})" if there == place else f"settings as of [`{there}`](#{there})"

    anchor = "" if place in places.values() else f'<a id="{place}"></a>'  # its own section has it
    cells = [f"{anchor}`{setting.name}`", setting.type_in_words(name_model), _default(setting), _as_text(setting.text)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(setting: Setting) -> str:
    """Return a default as code, shortened where it is long; nothing for a section, which has defaults of its own."""
    value = setting.default
    if value is REQUIRED:
        return "required"
    if setting.is_section and value is not None:
        return ""
    shown = flow(value)
    if len(shown) > _LONGEST_DEFAULT and isinstance(value, dict):
        shown = "{" + ", ".join(f"{flow(key)}: …" for key in value) + "}"
    return f"`{shown if len(shown) <= _LONGEST_DEFAULT else shown[:_LONGEST_DEFAULT] + '…'}`"


def _renamed() -> str:
    """Return the table of the names of earlier versions."""
    rows = [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    rows += [f"| `{key}: {old}` | `{key}: {new}` |" for key, values in RENAMED_VALUES.items()
             for old, new in values.items()]  # fmt: skip
    about = (
        "This version still reads the names of the one before, also in the parameters of a Prefect deployment and in "
        "the runs of a lake. It warns of each; an old name beside its new one is an error."
    )
    return "\n".join(["## Renamed keys", "", about, "", "| before | now |", "| --- | --- |", *rows, ""])


def _as_text(text: str) -> str:
    """Return a sentence whose angle brackets are no HTML."""
    return text.replace("<", "&lt;")


def _dotted(*parts: str) -> str:
    return ".".join(filter(None, parts))


if __name__ == "__main__":
    print(reference(), end="")
