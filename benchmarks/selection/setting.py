"""What a setting hands to the runs of one seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.selection.methods import Candidate, Pool
from rass_core.mitigate.pairs import PreferencePair
from rass_core.mitigate.settings import TrainingSettings
from rass_core.models.chat import ChatFormat
from rass_core.probe.settings import Prefixes


@dataclass(frozen=True)
class Recipe:
    """How every run of a setting is trained, whatever was selected."""

    steps: int
    over_refusal: int
    """Pairs of this kind in every batch."""
    safety: int
    general: int
    settings: TrainingSettings


@dataclass(frozen=True)
class Question:
    """An evaluation prompt with its tokens."""

    prompt_id: str
    text: str
    language: str
    dataset: str
    ids: list[int]


@dataclass(frozen=True)
class Bench:
    """Model, candidates, anchors and evaluation of one seed."""

    model: Any
    chat: ChatFormat
    pool: Pool
    extra: dict[str, Pool]
    """Arm's name → candidates that were written otherwise."""
    anchors: Sequence[PreferencePair]
    """Safety and general pairs, the same for every method and n."""
    pair_of: Callable[[Candidate], PreferencePair]
    questions: Sequence[Question]
    prefixes: Mapping[str, Prefixes]
    """language → how the model's answers to its questions begin, all of them."""
    recipe: Recipe
    max_new_tokens: int
