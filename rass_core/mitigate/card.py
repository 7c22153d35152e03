"""Model cards: what a mitigated model is, which data it learnt from, and what was measured on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rass_core.models.identity import model_id, split_reference
from rass_core.text import markdown_table


@dataclass(frozen=True)
class ModelCard:
    """What the README of an adapter or checkpoint says."""

    base: str
    """Folder or hub name of the model that was mitigated."""
    method: str
    """Name of the variant."""
    is_adapter: bool
    settings: Mapping[str, Any]
    """Setting → value, as it was run."""
    data: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Kind of pair → language → number."""
    figures: Sequence[Mapping[str, Any]] = ()
    """Rows of a table, each column → value with the same columns; empty before the evaluation."""
    licence: str | None = None
    """Licence of the model that was mitigated, which binds this one too; None leaves the field out."""
    notes: Sequence[str] = ()
    """Sentences on what should be known before use."""


SHOWN = {
    "over_refusal_rate": "over-refusal", "safety_rate": "safety", "jailbreak_safety_rate": "safety under jailbreaks",
    "harmless_compliance_rate": "harmless answered",
}  # fmt: skip
"""Metrics that a card shows → their names on it."""


def gate_note(gate: Mapping[str, Any]) -> str:
    """Return what a card says of the gate.

    Args:
        gate: The variant's row of table `gates`.
    """
    verdict = "It passed the gate." if gate["passed"] else "**It did not pass the gate and is not to be published.**"
    return "\n".join([verdict, *(f"- {reason}" for reason in gate["refusals"])])


def figures_of(variant: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per metric and language: after, its interval, and its change; KL and perplexity last.

    Args:
        variant: Its name.
        rows: Rows of table `evaluations`.
    """
    at = {
        (row["metric"], row["language"]): row
        for row in rows
        if row["variant"] == variant and row["dataset"] in ("all", "jailbreak")
    }
    found: list[dict[str, Any]] = []
    for metric, name in SHOWN.items():
        for language in sorted({language for each, language in at if each == metric}, key=lambda x: (x != "all", x)):
            row, moved = at[metric, language], at.get((f"{metric}_change", language), {})
            found.append({
                "rate": name, "language": language, "value": row["value"], "low": row["low"], "high": row["high"],
                "change": moved.get("value"), "change low": moved.get("low"), "change high": moved.get("high"),
                "prompts": row["n"], "unscored": row["n_unscored"],
            })  # fmt: skip
    for metric in ("kl", "perplexity"):
        row = at.get((metric, "all"), {})
        found.append({
            "rate": metric, "language": "all", "value": row.get("value"), "low": row.get("low"),
            "high": row.get("high"), "prompts": row.get("n"),
        })  # fmt: skip
    return found


def base_name(base: str) -> str:
    """Return the name of a base model that a card may show: of a folder its own name, without its path."""
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
