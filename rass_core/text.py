"""Text as it is compared and named: normal form, digests, ids."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def digest(*parts: object) -> str:
    """Return 16 hex digits that name these parts; equal parts give equal names anywhere."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]


def normalise(text: str) -> str:
    """Return the text in NFC with white space folded, as it is stored and compared."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def prompt_id(language: str, text: str) -> str:
    """Return the id of a prompt: the same wherever its text came from, case ignored."""
    return digest("prompt", language, normalise(text).casefold())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; bars and line breaks in a cell cannot break it."""
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in (columns, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(columns), *lines[1:]])


N_GRAM_CHARACTERS = 8
"""Long enough for words to repeat freely, short enough to see a loop; characters serve every script."""


@dataclass(frozen=True)
class AcceptanceLimits:
    """How far from the model's ordinary text a steered answer may lie."""

    repeated_share: float = 0.3
    """Highest share of character n-grams that stood in the answer before."""
    perplexity: float | None = None
    """Highest perplexity; see `perplexity_limit`. None looks at none."""


def repeated_share(text: str) -> float:
    """Return the share of the text's character n-grams that repeat an earlier one, 0 for a short text."""
    folded = normalise(text)
    n = len(folded) - N_GRAM_CHARACTERS + 1
    if n < 1:
        return 0.0
    return 1.0 - len({folded[start : start + N_GRAM_CHARACTERS] for start in range(n)}) / n


def is_degenerate(text: str, perplexity: float | None, limits: AcceptanceLimits) -> str | None:
    """Return why a text is broken, or None where it is not.

    Args:
        perplexity: Perplexity of the text under the unsteered model, None where not measured.
    """
    if not text.strip():
        return "empty"
    if repeated_share(text) > limits.repeated_share:
        return "repeats itself"
    # A perplexity that overflowed or is no number is no sign of good text.
    if limits.perplexity is not None and perplexity is not None and not perplexity <= limits.perplexity:
        return "perplexity"
    return None
