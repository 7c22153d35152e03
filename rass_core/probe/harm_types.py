"""The harm axis and the figures about it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rass_core.stats.arrays import Array
from rass_core.text import digest

LayerPosition = tuple[int, int]
"""(layer, position)."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval; None has its reason."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Prompts behind the figure."""
    n_families: int | None = None
    reason: str | None = None

    def columns(self) -> dict[str, Any]:
        """Return the values under their column names in table `evaluations`."""
        return dict(vars(self))


@dataclass(frozen=True)
class HarmAxis:
    """The axis with the scale of each language: −1 mean of pseudo_harmful prompts, +1 mean of harmful ones."""

    layer: int
    position: int
    vectors: Mapping[str, Array]
    """language → (d_model,), `score = ⟨x, vector⟩ + intercept`. They differ in length only."""
    intercepts: Mapping[str, float]

    def scores(self, rows: npt.NDArray[np.floating], languages: Sequence[str]) -> Array:
        """Return the harm score of each row, NaN for languages without a scale.

        Args:
            rows: Residual streams at the axis' layer and position, (n, d_model).
            languages: One per row.
        """
        found = np.full(len(rows), np.nan)
        for language in set(languages) & set(self.vectors):
            here = np.asarray(languages) == language
            found[here] = rows[here].astype(np.float64) @ self.vectors[language] + self.intercepts[language]
        return found

    def columns(self, model_id: str) -> list[dict[str, Any]]:
        """Return a row of table `harm_axes` per language."""
        return [
            {
                "axis_id": digest("harm axis", model_id, self.layer, self.position, vector.tobytes().hex()),
                "model_id": model_id,
                "language": language,
                "layer": self.layer,
                "position": self.position,
                "vector": vector.astype(np.float32).tolist(),
                "intercept": self.intercepts[language],
                "chosen": True,
            }
            for language, vector in self.vectors.items()
        ]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "HarmAxis | None":
        """Return the axis that rows of table `harm_axes` hold, None where none was chosen."""
        chosen = [row for row in rows if row["chosen"]]
        if not chosen:
            return None
        return cls(
            chosen[0]["layer"],
            chosen[0]["position"],
            {row["language"]: np.array(row["vector"], np.float64) for row in chosen},
            {row["language"]: float(row["intercept"]) for row in chosen},
        )


class HarmFigures(NamedTuple):
    """How well true harm is separated, harmful against pseudo_harmful prompts of the test split."""

    margin: Estimate
    """AUC along the margin."""
    axis: Estimate
    """AUC along the harm axis; families are new to it."""
    new_source: Estimate
    """The same, but both prompts of a pair come from sources that the fit has not seen."""
    same_source: Estimate
    """AUC along the harm axis over pairs of one source, which the style of a source cannot separate."""
    gap: Estimate
    """AUC of the axis − AUC of the margin, on prompts that have both."""
    same_source_gap: Estimate
    """The same over pairs of one source."""


HARM_METRICS = (
    "harm_auc_margin",
    "harm_auc_axis",
    "harm_auc_axis_new_source",
    "harm_auc_axis_same_source",
    "harm_auc_gap",
    "harm_auc_gap_same_source",
)
"""Metrics of table `evaluations`, dataset `given`, in the order of `HarmFigures`."""


@dataclass(frozen=True)
class LayerFigures:
    """The best position of one layer: its cross-validated AUC, and figures of the test split over all languages."""

    layer: int
    position: int
    cv_auc: float
    figures: HarmFigures


@dataclass(frozen=True)
class HarmReport:
    """What is known of harm in the streams."""

    axis: HarmAxis | None
    scores: Array
    """(n,): harm score of every prompt, from fits that have not seen it; NaN where there is none."""
    figures: Mapping[str, HarmFigures]
    """language → figures, and `ALL`."""
    layers: Sequence[LayerFigures] = ()
    inverse_penalty: float | None = None
    """C of the logistic regression."""
    cv_auc: float | None = None
    """Cross-validated AUC of the axis on train and validation, which layer, position and C were chosen by."""
    reason: str | None = None
    """Why there is no axis, or for which languages none."""
