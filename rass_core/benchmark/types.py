"""Candidates, items, cells and a built benchmark."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rass_core.benchmark.settings import MorbenchConfig
from rass_core.errors import SelectionError
from rass_core.text import digest, prompt_id


@dataclass(frozen=True)
class BenchmarkCandidate:
    """A prompt that may enter, with its place on the margin of every target model.

    Raises:
        SelectionError: An empty text, or margins and distances of different models, or not finite.
    """

    text: str
    language: str
    label: str
    category: str
    family: str
    source: str
    licence: str
    margins: Mapping[str, float]
    """model_id → m."""
    distances: Mapping[str, float]
    """model_id → m − b."""
    original: str | None = None
    """What it was translated from; None for a prompt written in its language."""
    original_language: str | None = None

    def __post_init__(self) -> None:
        if not self.text.strip() or not self.licence:
            raise SelectionError(f"candidate {self.prompt_id}: empty text or licence; leave the prompt out")
        if not self.margins or set(self.margins) != set(self.distances):
            raise SelectionError(f"candidate {self.prompt_id}: needs margin and distance of each model; probe them all")
        if not all(math.isfinite(value) for value in [*self.margins.values(), *self.distances.values()]):
            raise SelectionError(f"candidate {self.prompt_id}: a margin is not finite; probe the model again")
        if (self.original is None) != (self.original_language is None):
            raise SelectionError(f"candidate {self.prompt_id}: original and original_language go together; give both")

    @property
    def prompt_id(self) -> str:
        """Return the prompt's id."""
        return prompt_id(self.language, self.text)

    def near(self, width: float) -> tuple[str, ...]:
        """Return the models near whose boundary it lies."""
        return tuple(model for model in sorted(self.distances) if abs(self.distances[model]) <= width)


@dataclass(frozen=True)
class TrainedOn:
    """What models were trained on: nothing of it may enter."""

    prompt_ids: Collection[str] = ()
    families: Collection[str] = ()
    texts: Sequence[str] = ()
    """Their near-duplicates are kept out too."""


NO_TRAINING = TrainedOn()


@dataclass(frozen=True)
class BandPlace:
    """A benign prompt, and the model and stratum of the band that it represents."""

    benign: BenchmarkCandidate
    model_id: str
    stratum: int


@dataclass(frozen=True)
class Item:
    """A benign prompt near the boundary with its harmful contrast."""

    benign: BenchmarkCandidate
    contrast: BenchmarkCandidate
    model_id: str
    stratum: int
    near: tuple[str, ...]
    change: float

    @property
    def pair_id(self) -> str:
        """Return the digest of both prompts."""
        return digest("pair", self.benign.prompt_id, self.contrast.prompt_id)


@dataclass(frozen=True)
class BenchmarkCell:
    """One language × category with what it was to hold and holds."""

    language: str
    category: str
    wanted: tuple[int, ...]
    """Pairs a stratum."""
    filled: tuple[int, ...]
    n_benign: int
    """Candidates given, before any was left out."""
    n_contrasts: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason → benign prompts and contrasts that were struck for it."""

    @property
    def reason(self) -> str | None:
        """Say why it fell short, or None where it is filled."""
        if self.filled == self.wanted:
            return None
        short = [
            f"stratum {i} has {a} of {b}"
            for i, (a, b) in enumerate(zip(self.filled, self.wanted, strict=True))
            if a < b
        ]
        out = [f"{number} {reason}" for reason, number in sorted(self.left_out.items())]
        given = f"of {self.n_benign} benign candidates and {self.n_contrasts} contrasts"
        return f"{', '.join(short)}; {given}, left out: {', '.join(out) or 'none'}"


@dataclass(frozen=True)
class Benchmark:
    """Pairs, and how every cell came out."""

    items: tuple[Item, ...]
    cells: tuple[BenchmarkCell, ...]
    config: MorbenchConfig
    seed: int


Check = Callable[[Sequence[BenchmarkCandidate]], Sequence[str | None]]
"""Batch in, batch out: candidates → why each may not enter, None for those that may."""
IsIn = Callable[[str, str], bool | None]
"""Whether a text is in a language; None if that cannot be identified."""
