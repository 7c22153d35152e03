"""Model cards: what a mitigated model is, what it learnt from and what was measured on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rass_core.models.identity import model_id, split_reference
from rass_core.text import markdown_table


@dataclass(frozen=True)
class ModelCard:
    """What stands in the README of an adapter or checkpoint."""

    base: str
    """Folder or hub name of the model that was mitigated."""
    method: str
    """dpo, sft or surgical."""
    is_adapter: bool
    settings: Mapping[str, Any]
    """Setting → value, as it was run."""
    data: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Kind of pair → language → number."""
    figures: Sequence[Mapping[str, Any]] = ()
    """Rows of a table, each column → value with the same columns; empty before the evaluation."""
    licence: str | None = None
    """Of the model that was mitigated, which binds this one too; None leaves the field out."""
    notes: Sequence[str] = ()
    """Sentences on what should be known before use."""


def base_name(base: str) -> str:
    """Return the name of a base model that a card may show: a folder's own name, not where it lies."""
    return Path(base).expanduser().name if Path(base).expanduser().is_dir() else split_reference(base)[0]


def write_card(folder: Path, card: ModelCard) -> Path:
    """Write the card as README.md, in place of one that is there."""
    header: dict[str, Any] = {"base_model": base_name(card.base), "pipeline_tag": "text-generation"}
    header["library_name"] = "peft" if card.is_adapter else "transformers"
    header["tags"] = ["over-refusal", "rass", card.method] + (["lora"] if card.is_adapter else [])
    if card.licence is not None:
        header["license"] = card.licence
    what = "adapter for" if card.is_adapter else "edit of"
    lines = [
        f"# {base_name(card.base)}, mitigated by {card.method}",
        f"A {card.method} {what} `{model_id(card.base)}`, trained or edited to refuse fewer benign requests.",
    ]
    lines += [*card.notes]
    if card.data:
        rows = [{"kind": kind, **by_language} for kind, by_language in card.data.items()]
        lines += ["## Data", f"{sum(sum(each.values()) for each in card.data.values())} pairs.", _table(rows)]
    measured = _table(card.figures) if card.figures else "Not evaluated yet."
    lines += ["## Figures", measured]
    lines += ["## Settings", _table([{"setting": name, "value": value} for name, value in card.settings.items()])]
    content = "---\n" + yaml.safe_dump(header, sort_keys=False, allow_unicode=True) + "---\n\n" + "\n\n".join(lines)
    path = folder / "README.md"
    path.write_text(content + "\n", encoding="utf-8")
    return path


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return markdown_table(columns, [[_cell(row.get(column)) for column in columns] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
