"""The scale on which prompts are placed: margin, orthogonal score, distance to the boundary, harm score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rass_core.probe.directions import OrthogonalComponent
from rass_core.probe.geometry import (
    Direction,
    Means,
    ProbeData,
    class_means,
    language_directions,
    margins,
    orthogonal_axis,
)
from rass_core.probe.harm_types import HarmAxis

Rows = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MarginScale:
    """What places a residual stream: the margin's direction, the class means and the orthogonal axis."""

    direction: Direction
    """That all languages share."""
    direction_id: str
    vectors: Mapping[str, Rows]
    """Language → the direction along which it is measured, (d_model,)."""
    means: Mapping[str, Means]
    axis: OrthogonalComponent

    @classmethod
    def of(
        cls, data: ProbeData, direction: Direction, direction_id: str, own: Mapping[str, Direction] | None = None
    ) -> "MarginScale":
        """Return the scale of a direction.

        Args:
            data: The given prompts, of whose train split the class means are.
            direction: With the role `margin`.
            direction_id: Its id in the tables.
            own: Languages with a direction of their own.

        Raises:
            ActivationError: The streams do not differ there.
        """
        means = class_means(data, direction.layer, direction.position)
        vectors = {language: (own or {}).get(language, direction).vector for language in means}
        return cls(direction, direction_id, vectors, means, orthogonal_axis(data, direction))

    @classmethod
    def chosen(cls, data: ProbeData, direction: Direction, model_id: str, per_language: bool) -> "MarginScale":
        """Return the scale of the direction that the probe chose, each language along its own one if so configured."""
        own = language_directions(data, direction) if per_language else {}
        return cls.of(data, direction, direction.direction_id(model_id), own)

    @property
    def layer(self) -> int:
        """Return the block that is read."""
        return self.direction.layer

    @property
    def position(self) -> int:
        """Return the token that is read, counted from the end."""
        return self.direction.position

    def margins(self, rows: Rows, languages: Sequence[str]) -> Rows:
        """Return the margin of each row, NaN for languages without given prompts of both classes."""
        return margins(rows, languages, self.vectors, self.means)


def placed(margin: float, orthogonal: float, b: float | None, harm_score: float = float("nan")) -> dict[str, Any]:
    """Return margin, orthogonal score, distance and harm score as columns, null where not measured."""
    known = None if np.isnan(margin) else float(margin)
    return {
        "margin": known, "orthogonal_score": orthogonal, "distance": None if known is None or b is None else known - b,
        "harm_score": None if np.isnan(harm_score) else float(harm_score),
    }  # fmt: skip


@dataclass(frozen=True)
class Gauge:
    """What measures a prompt from streams of two places: the scale of the margin, and the harm axis if there is one.

    `engine.set_capture(*gauge.places)` reads both places in one pass; `place` takes what was captured.
    """

    scale: MarginScale
    harm: HarmAxis | None

    @property
    def direction_id(self) -> str:
        """Return the id of the margin's direction."""
        return self.scale.direction_id

    @property
    def place_of_margin(self) -> tuple[int, int]:
        """Return layer and position at which the margin is read."""
        return self.scale.layer, self.scale.position

    @property
    def places(self) -> tuple[list[int], list[int]]:
        """Return the layers and the positions that are captured."""
        at = self._at
        return sorted({layer for layer, _ in at}), sorted({position for _, position in at})

    @property
    def _at(self) -> list[tuple[int, int]]:
        return [self.place_of_margin] + ([(self.harm.layer, self.harm.position)] if self.harm else [])

    def _captured_at(self, captured: Rows, at: tuple[int, int]) -> Rows:
        layers, positions = self.places
        return captured[..., layers.index(at[0]), positions.index(at[1]), :]

    def streams(self, captured: Rows) -> Rows:
        """Return the residual streams at the scale's place, (..., d_model), of all that was captured."""
        return self._captured_at(captured, self.place_of_margin)

    def place(self, captured: Rows, languages: Sequence[str], b: Mapping[str, float | None]) -> list[dict[str, Any]]:
        """Return each prompt's columns of table `margins`, see `placed`.

        Args:
            captured: (n, n_layers, n_positions, d_model), in the order of `places`.
            languages: One per row.
            b: language → boundary.
        """
        rows = self.streams(captured)
        measured, across = self.scale.margins(rows, languages), self.scale.axis.scores(rows)
        scores = np.full(len(captured), np.nan)
        if self.harm is not None:
            scores = self.harm.scores(self._captured_at(captured, self._at[1]), languages)
        return [
            placed(margin, float(orthogonal), b.get(language), float(score))
            for margin, orthogonal, language, score in zip(measured, across, languages, scores, strict=True)
        ]
