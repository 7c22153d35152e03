"""The run's rows, joined: every measured prompt with its margin and what became of it."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rass_core.judges import PANEL
from rass_core.vocabulary import Row

Offspring = tuple[int, float, float]
"""Round, α and margin of one generated prompt."""

PROMPT_KINDS = ("harmless", "pseudo_harmful", "harmful", "unlabelled", "generated")
KIND_NAMES = {"pseudo_harmful": "pseudo-harmful", "unlabelled": "no true label"}
OUTCOME_NAMES = {"refusal": "refused", "partial": "partly refused", "compliance": "answered", "unscored": "no outcome"}
BASE = (None, "base")
"""Variants that are the model as it came."""


@dataclass(frozen=True)
class Point:
    """A prompt with its margin along the direction that its language's boundary was measured on."""

    prompt_id: str
    text: str
    language: str
    label: str | None
    category: str | None
    split: str | None
    margin: float
    orthogonal: float | None
    outcome: str
    is_selected: bool
    harm_score: float | None = None

    @property
    def is_generated(self) -> bool:
        """Written by the generator in this run, rather than given."""
        return self.split == "candidate"

    @property
    def is_benign(self) -> bool:
        """Truly harmless, however it looks."""
        return self.label in ("harmless", "pseudo_harmful")

    @property
    def kind(self) -> str:
        """How it is drawn: by true label where it was given, else as generated."""
        if self.is_generated:
            return "generated"
        return self.label if self.label in PROMPT_KINDS else "unlabelled"


def of_model(rows: Mapping[str, list[Row]], model_id: str) -> dict[str, list[Row]]:
    """Return the rows that are about one model, and those about none, such as prompts.

    Of `evaluations` also rows without a model: what was counted before any model was asked.
    """
    return {
        name: [
            row
            for row in found
            if row.get("model_id", model_id) in (model_id, None if name == "evaluations" else model_id)
        ]
        for name, found in rows.items()
    }


def base_outcomes(rows: Mapping[str, list[Row]]) -> dict[str, str]:
    """Return prompt_id → what the base model's first response to it is, as it is, by the panel."""
    panel = [row for row in rows["verdicts"] if row["judge"] == PANEL and row["outcome"] in OUTCOME_NAMES]
    word = {row["subject_id"]: row["outcome"] for row in panel}
    outcomes: dict[str, str] = {}
    for response in sorted(rows["responses"], key=lambda row: row["sample"] or 0):
        is_plain = response["variant"] == "base" and response["attack"] is None
        if is_plain and response["prompt_id"] not in outcomes:
            outcomes[response["prompt_id"]] = word.get(response["response_id"], "unscored")
    return outcomes


def read_points(rows: Mapping[str, list[Row]], boundaries: Mapping[str, Row]) -> list[Point]:
    """Return every measured prompt once, on its language's direction, ordered by prompt_id."""
    prompts = {row["prompt_id"]: row for row in rows["prompts"]}
    outcomes = base_outcomes(rows)
    selected = {row["prompt_id"] for row in rows["selections"]}
    with_roles = [row for row in rows["directions"] if row["roles"]]
    measuring = [row for row in with_roles if "margin" in row["roles"]]
    default = min((row["direction_id"] for row in measuring or with_roles), default=None)
    points: dict[str, Point] = {}
    for row in rows["margins"]:
        prompt = prompts.get(row["prompt_id"])
        if prompt is None or row["margin"] is None or not math.isfinite(row["margin"]):
            continue
        direction = boundaries.get(prompt["language"], {}).get("direction_id") or default
        if direction in (None, row["direction_id"]):
            points[row["prompt_id"]] = Point(
                prompt_id=prompt["prompt_id"],
                text=prompt["text"] or "",
                language=prompt["language"] or "unknown",
                label=prompt["label"],
                category=prompt["category"],
                split=row["split"],
                margin=row["margin"],
                orthogonal=row["orthogonal_score"],
                outcome=outcomes.get(row["prompt_id"], "unscored"),
                is_selected=row["prompt_id"] in selected,
                harm_score=row["harm_score"],
            )
    return [points[prompt_id] for prompt_id in sorted(points)]


def base_boundaries(rows: Iterable[Row]) -> dict[str, Row]:
    """Return language → its boundary for the model as it came, the first row where there are more."""
    boundaries: dict[str, Row] = {}
    for row in rows:
        if row["variant"] in BASE and row["language"]:
            boundaries.setdefault(row["language"], row)
    return boundaries


def refusal_rate(points: Iterable[Point]) -> Row:
    """Return refusals ÷ scored with its counts; the value is None where nothing was scored."""
    counts = Counter(point.outcome for point in points)
    n_scored = counts["refusal"] + counts["partial"] + counts["compliance"]
    return {
        "n": n_scored,
        "n_refused": counts["refusal"],
        "n_unscored": counts["unscored"],
        "value": counts["refusal"] / n_scored if n_scored else None,
        "wide": (counts["refusal"] + counts["partial"]) / n_scored if n_scored else None,
    }


def over_refusal_band(boundary: Row | None) -> tuple[float, float] | None:
    """Return the over-refusal band (b, b*], None where a side is unknown or b* ≤ b."""
    if boundary is None or boundary["b"] is None or boundary["b_oracle"] is None:
        return None
    return (boundary["b"], boundary["b_oracle"]) if boundary["b"] < boundary["b_oracle"] else None


def margin_span(points: Sequence[Point], boundary: Row | None) -> list[float]:
    """Return the range of margins that a language's plots share, with a little air."""
    values = [point.margin for point in points]
    values += [boundary[name] for name in ("b", "b_oracle") if boundary and boundary[name] is not None]
    low, high = min(values), max(values)
    air = 0.04 * (high - low) or 0.5
    return [low - air, high + air]


def held_out(points: Sequence[Point]) -> list[Point]:
    """Return the given prompts that no direction was fitted on; all given ones where no split is known."""
    given = [point for point in points if not point.is_generated]
    return [point for point in given if point.split != "train"] or given


def offspring_by_language(rows: Sequence[Row], points: Sequence[Point]) -> dict[str, list[Offspring]]:
    """Return language → (round, α, margin) of every derivation that was measured; no α counts as 0."""
    measured = {point.prompt_id: point for point in points}
    offspring: dict[str, list[Offspring]] = defaultdict(list)
    for row in rows:
        point = measured.get(row["prompt_id"])
        if point is not None and row["round"] is not None:
            offspring[point.language].append((row["round"], row["alpha"] or 0.0, point.margin))
    return offspring
