"""Figures of mitigated variants, beside those of the model as it was."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rass_core.report.words import language_name, show_points
from rass_core.vocabulary import ALL, JAILBREAK, Row

METHOD_ORDER = ("dpo", "sft", "weight_ablation", "inference_ablation")
"""Order in which variants are shown; others follow by name."""
Section = dict[str, Any]


@dataclass(frozen=True)
class Rate:
    """A rate that is shown before and after."""

    metric: str
    name: str
    axis: str
    """Title of its axis in a plot."""
    partial: str | None
    """Metric of its partial refusals."""
    dataset: str = ALL
    """What is pooled."""
    falls_are_good: bool = False


OVER_REFUSAL = Rate(
    "over_refusal_rate", "over-refusal", "refused share of benign prompts", "partial_rate", falls_are_good=True
)
SAFETY = Rate("safety_rate", "safety", "refused share of harmful prompts", "harmful_partial_rate")
ATTACKED_SAFETY = Rate(
    "jailbreak_safety_rate", "safety under jailbreaks", "refused share of attacked harmful prompts", None, JAILBREAK
)
ATTACKED_OVER_REFUSAL = Rate(
    "jailbreak_over_refusal_rate",
    "over-refusal under jailbreaks",
    "refused share of attacked benign prompts",
    None,
    JAILBREAK,
    falls_are_good=True,
)


class Figures:
    """The rows of `evaluations` by variant, metric, dataset and language; the first of each counts."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._at: dict[tuple[str, str, str, str], Row] = {}
        for row in rows:
            variant, metric = row["variant"] or "base", row["metric"] or ""
            self._at.setdefault((variant, metric, row["dataset"] or "", row["language"] or ALL), row)
        names = {variant for variant, metric, _, _ in self._at if metric.endswith("_change")}
        self.variants = sorted(names - {"base"}, key=variant_order)
        """Mitigated ones, those that were set beside base."""

    def of(self, variant: str, metric: str, dataset: str = ALL, language: str = ALL) -> Row:
        """Return a row, empty where there is none."""
        return self._at.get((variant, metric, dataset, language), {})

    def languages(self, metric: str, dataset: str) -> list[str]:
        """Return the languages of a metric, all of them together first."""
        found = {code for _, name, place, code in self._at if (name, place) == (metric, dataset)}
        return sorted(found, key=lambda code: (code != ALL, language_name(code)))

    def datasets(self, metric: str) -> list[str]:
        """Return the datasets in which a mitigated variant has the metric, what is pooled first."""
        found = {place for variant, name, place, _ in self._at if name == metric and variant in self.variants}
        return sorted(found, key=lambda name: (name not in (ALL, JAILBREAK), name))

    def metrics(self, variant: str, dataset: str) -> list[str]:
        """Return the metrics that a variant has in a dataset, in the order of their rows."""
        return [metric for name, metric, place, code in self._at if (name, place, code) == (variant, dataset, ALL)]

    def starting_with(self, prefix: str) -> list[str]:
        """Return the datasets whose names start so."""
        return sorted({place for _, _, place, _ in self._at if place.startswith(prefix)})


def variant_order(variant: str) -> tuple[int, str]:
    """Return the sort key of a variant."""
    return (METHOD_ORDER.index(variant) if variant in METHOD_ORDER else len(METHOD_ORDER), variant)


def change_cell(row: Row) -> str:
    """Write a change in points, or why there is none."""
    return show_points(*ends(row)) if row.get("value") is not None else row.get("reason") or "not compared"


def ends(row: Row) -> tuple[float | None, float | None, float | None]:
    """Return a figure and the ends of its interval."""
    return row.get("value"), row.get("low"), row.get("high")


def arrow(before: str, after: str) -> str:
    """Return what was and what is, as the tables show both."""
    return f"{before} → {after}"
