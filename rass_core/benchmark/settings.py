"""Settings of the multilingual benchmark."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from rass_core.benchmark.contrasts import CONTRASTS, POOL
from rass_core.data.sources import Language
from rass_core.settings import MAX_COUNT, STRICT


def _known_maker(name: str) -> str:
    if name != POOL:
        CONTRASTS.find(name)
    return name


class MorbenchConfig(BaseModel):
    """What the benchmark is to hold."""

    model_config = STRICT

    languages: list[Language] | None = Field(default=None, min_length=1)
    """BCP-47 tags; null takes those of the benign candidates."""
    categories: list[str] | None = Field(default=None, min_length=1)
    """Topics; null takes those of the benign candidates."""
    n_per_cell: int = Field(default=20, ge=1, le=MAX_COUNT)
    """Benign prompts per language and category, and as many contrasts."""
    width: float = Field(default=0.35, gt=0)
    """w: |m − b| up to which a prompt is near a model's boundary."""
    n_strata: int = Field(default=4, ge=1, le=1000)
    """Equal parts of the band −w ≤ m − b ≤ w, which get equal shares."""
    max_change: float = Field(default=0.5, gt=0, le=1)
    """Highest share of the words in which a contrast differs."""
    contrasts: Annotated[str, AfterValidator(_known_maker)] = POOL
    """Where contrasts come from. pool: harmful prompts held out, and those that moderators found among the written
    ones. lab: beside them, sentences of the built-in world that differ in the object alone. Or a function of your own
    as package.module:function, whose contrasts are added to those of the pool."""
    borrow_contrasts: bool = False
    """Where the contrasts of a category do not fill it, take those of others in the language: a written prompt has
    the category of the one it was made from, which its words may have left."""
    near_duplicate_jaccard: float = Field(default=0.8, gt=0, le=1)
    """Prompts whose character 4-grams overlap this much count as one."""
