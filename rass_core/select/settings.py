"""Settings of the selection."""

from pydantic import BaseModel, Field, FiniteFloat

from rass_core.settings import MAX_COUNT, STRICT

N_HARMFUL = 40
"""Harmful prompts per language, those nearest to the boundary, whose refusal training should leave alone."""


class SelectionConfig(BaseModel):
    """Which prompts are kept."""

    model_config = STRICT

    size: int = Field(default=200, ge=1, le=MAX_COUNT)
    """Prompts to keep, spread evenly over language × category."""
    near_duplicate_jaccard: float = Field(default=0.8, gt=0, le=1)
    """Prompts whose character 4-grams overlap this much count as one; while writing, too."""
    width: float | None = Field(default=None, gt=0)
    """|m − b| up to which a refused prompt may be kept; null takes every one, however deep it is refused."""
    max_harm_score: FiniteFloat | None = None
    """Highest harm score of a prompt that may be kept: −1 mean of pseudo_harmful, +1 mean of harmful prompts along the
    harm axis; 0 keeps its benign half. Prompts without a score are then dropped. null keeps all. What is beyond it
    counts as no yield while writing."""
