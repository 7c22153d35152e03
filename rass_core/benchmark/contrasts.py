"""Makers of harmful contrasts, which derive them from benign prompts, beside the harmful prompts at hand."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from rass_core.registry import Registry
from rass_core.text import digest, prompt_id

CONTRASTS = Registry("maker of contrasts", ["rass_core.benchmark", "rass_core.lab"], BaseModel)
"""Makers of contrasts; `build(text, language)` takes a benign prompt and returns a list of `Contrast`."""
POOL = "pool"
"""Setting under which nothing is made."""
CONTRASTS_EACH = 2
"""Contrasts that are measured per benign prompt; a maker may offer more."""


@dataclass(frozen=True)
class Contrast:
    """A harmful prompt that differs from a benign one in a few words."""

    text: str
    family: str
    """Names what it asks for: the unit of splits."""
    changed: str
    """What was put in; decides which of several are taken."""


def contrast_rows(maker: str, rows: Sequence[Mapping[str, Any]], known: Collection[str]) -> list[dict[str, Any]]:
    """Return harmful contrasts of benign prompts that are not known already, each once.

    Args:
        maker: One of CONTRASTS.
        rows: Benign prompts as in table `prompts`.
        known: prompt_ids.

    Returns:
        Rows with the category and licence of the prompt that each was made from.

    Raises:
        ConfigError: No such maker.
    """
    make = CONTRASTS.find(maker).build
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: str(row["prompt_id"])):
        made: list[Contrast] = make(row["text"], row["language"])
        for each in sorted(made, key=lambda each: digest(row["prompt_id"], each.changed))[:CONTRASTS_EACH]:
            identity = prompt_id(row["language"], each.text)
            if identity not in known:
                found.setdefault(identity, {
                    **row, "prompt_id": identity, "text": each.text, "label": "harmful", "source": "rass:contrast",
                    "family": each.family, "original": None, "original_language": None,
                })  # fmt: skip
    return list(found.values())
