"""Before and after: rates with intervals, paired changes, and how far the model's ordinary text moved.

Rows are those of table `evaluations`. A paired change is the metric `<metric>_change`, after − before, over the
prompts scored under both variants. Nothing over nothing is null with a reason, never 0.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from math import floor
from typing import Any

import numpy as np

from rass_core.errors import BoundaryError
from rass_core.evaluate.metrics import METRICS, Metric, Outcome
from rass_core.models.perplexity import Measured
from rass_core.stats.arrays import Array
from rass_core.stats.intervals import bootstrap_interval, wilson
from rass_core.stats.paired import paired_difference
from rass_core.vocabulary import ALL, JAILBREAK, LABELS, OUTCOMES

Place = tuple[str, str]
"""(dataset, language)."""
Key = tuple[str, str]
"""(attack or nothing, prompt_id): what a response answers."""


def variant_rows(model_id: str, outcomes: Sequence[Outcome], seed: int, level: float = 0.95) -> list[dict[str, Any]]:
    """Return the metrics of one variant, for each dataset and over all, each language and over all.

    Intervals are Wilson's where every family has one prompt, else of a bootstrap over families.

    Args:
        outcomes: One for each (dataset, attack, prompt_id).
        seed: Seed of the bootstrap.

    Raises:
        BoundaryError: No outcomes, several variants, an outcome twice, an unknown one, or a reserved dataset.
    """
    variant = _only_variant(outcomes)
    rows = []
    for metric in METRICS:
        for place, found in sorted(_places(metric, outcomes).items()):
            scored = [(value, o.family) for o in found.values() if (value := metric.value(o)) is not None]
            row = _row(model_id, variant, place, metric.name, scored, len(found) - len(scored))
            rows.append(_filled(row, partial(_level_of, metric, scored, seed, level)))
    return rows


def change_rows(
    model_id: str, base: Sequence[Outcome], mitigated: Sequence[Outcome], seed: int, level: float = 0.95
) -> list[dict[str, Any]]:
    """Return by how much each metric changed from base to mitigated, over the prompts scored under both.

    Rates have Tango's interval and McNemar's p. Prompts of one family are not independent, so counts are
    divided by the design effect of the changes, and p compares families that gained with families that
    lost. If nothing changed, the design effect is unknown and taken as 1; the effective number
    may then be as low as n_families. Lengths have a bootstrap over families.

    Returns:
        Rows of `evaluations` that also carry n_families, n_effective, n_gained, n_lost and p_value;
        n_unscored are prompts not scored under both.

    Raises:
        BoundaryError: As variant_rows, or both variants of one name.
    """
    variant = _only_variant(mitigated)
    if _only_variant(base) == variant:
        raise BoundaryError(f"change: both sides are variant {variant!r}; compare two")
    rows = []
    for metric in METRICS:
        before, after = _places(metric, base), _places(metric, mitigated)
        for place in sorted({*before, *after}):
            left, right = before.get(place, {}), after.get(place, {})
            pairs = []
            for key in left.keys() & right.keys():
                old, new = metric.value(left[key]), metric.value(right[key])
                if old is not None and new is not None:
                    pairs.append((new - old, left[key].family))
            pairs.sort()
            n_unpaired = len(left.keys() | right.keys()) - len(pairs)
            row = _row(model_id, variant, place, f"{metric.name}_change", pairs, n_unpaired)
            rows.append(_filled(row, partial(_change_of, metric, pairs, seed, level)))
    return rows


def _only_variant(outcomes: Sequence[Outcome]) -> str:
    """Return the variant of outcomes that can be counted."""
    variants = sorted({o.variant for o in outcomes})
    if len(variants) != 1:
        raise BoundaryError(f"evaluation: variants {', '.join(variants) or 'none'}; give the outcomes of one")
    seen = Counter((o.dataset, o.attack or "", o.prompt_id) for o in outcomes)
    twice = min((key for key, count in seen.items() if count > 1), default=None)
    if twice:
        raise BoundaryError(f"evaluation: prompt {twice[2]} occurs twice in {twice[0]}; give one outcome for each")
    for o in outcomes:
        if o.outcome not in OUTCOMES or o.label not in LABELS:
            raise BoundaryError(
                f"evaluation: prompt {o.prompt_id}: {o.label!r}, {o.outcome!r} is not a label and outcome"
            )
        if ALL in (o.dataset, o.language) or o.dataset.partition(":")[0] == JAILBREAK:
            raise BoundaryError(f"evaluation: dataset {o.dataset!r}, language {o.language!r}: reserved; rename it")
    return variants[0]


def _places(metric: Metric, outcomes: Sequence[Outcome]) -> dict[Place, dict[Key, Outcome]]:
    """Return the outcomes that a metric looks at, by dataset and language; what is pooled is always there."""
    found: defaultdict[Place, dict[Key, Outcome]] = defaultdict(dict)
    found[metric.pooled, ALL] = {}
    for o in sorted(outcomes, key=lambda each: (each.dataset, each.attack or "", each.prompt_id)):
        if o.label in metric.labels and (o.attack is not None) == metric.attacked:
            for dataset in (metric.pooled, f"{JAILBREAK}:{o.attack}" if metric.attacked else o.dataset):
                for language in (o.language, ALL):
                    found[dataset, language].setdefault((o.attack or "", o.prompt_id), o)
    return dict(found)


def _row(
    model_id: str, variant: str, place: Place, metric: str, scored: Sequence[tuple[float, str]], n_unscored: int
) -> dict[str, Any]:
    return {
        "model_id": model_id, "variant": variant, "dataset": place[0], "language": place[1], "metric": metric,
        "value": None, "low": None, "high": None, "n": len(scored), "n_unscored": n_unscored,
        "n_families": len({family for _, family in scored}), "n_effective": None,
        "n_gained": None, "n_lost": None, "p_value": None, "reason": None,
    }  # fmt: skip


def _filled(row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if row["n"] == 0:
        n = row["n_unscored"]
        return row | {"reason": f"none of {n} prompts scored" if n else "no such prompts"}
    try:
        return row | measure()
    except BoundaryError as error:
        return row | {"reason": str(error)}


def _level_of(metric: Metric, scored: Sequence[tuple[float, str]], seed: int, level: float) -> dict[str, Any]:
    values, families = zip(*scored, strict=True)
    n_families = len(set(families))
    share = sum(values) / len(values)
    if metric.counts is None or (n_families > 1 and n_families < len(values) and 0 < share < 1):
        value, low, high = bootstrap_interval(values, families, seed, level=level)
    else:
        # Where all responses are alike a bootstrap shows no spread; the families still bound what is unseen.
        value, low, high = wilson(share * n_families, n_families, level)
    return {"value": value, "low": low, "high": high}


def _change_of(metric: Metric, pairs: Sequence[tuple[float, str]], seed: int, level: float) -> dict[str, Any]:
    values, families = zip(*pairs, strict=True)
    if metric.counts is None:
        value, low, high = bootstrap_interval(values, families, seed, level=level)
        return {"value": value, "low": low, "high": high}
    n, gained, lost = len(values), values.count(1.0), values.count(-1.0)
    n_effective = floor(n / design_effect(values, families) + 1e-9)
    # Effective counts are rounded outwards, so that an interval is never narrower than it should be.
    few_gained, few_lost = (count * n_effective // n for count in (gained, lost))
    many_gained = min(-(-gained * n_effective // n), n_effective - few_lost)
    many_lost = min(-(-lost * n_effective // n), n_effective - few_gained)
    net: Counter[str] = Counter()
    for value, family in pairs:
        net[family] += int(value)
    up, down = (sum(sign * change > 0 for change in net.values()) for sign in (1, -1))
    p_value = paired_difference(up, down, len(net)).p_value
    return {
        "value": (gained - lost) / n,
        "low": paired_difference(few_gained, many_lost, n_effective, level).low,
        "high": paired_difference(many_gained, few_lost, n_effective, level).high,
        "n_effective": n_effective, "n_gained": gained, "n_lost": lost, "p_value": p_value,
        "reason": f"McNemar p = {p_value:.2g}: {gained} gained, {lost} lost",
    }  # fmt: skip


def design_effect(values: Sequence[float], families: Sequence[str]) -> float:
    """Return how many times the variance of the mean is what independent rows would give.

    Between 1 and Σm²/n, m the rows of a family: the lower end where all values are equal, the upper
    where families are of one piece. The estimate is that of a cluster-robust variance.

    Raises:
        BoundaryError: No values.

    Source: Kish 1965, Survey Sampling, 5.4.
    """
    if not len(values):
        raise BoundaryError("design effect: no values; add prompts")
    rows: Array = np.asarray(values, dtype=np.float64)
    _, family, sizes = np.unique(np.asarray(families), return_inverse=True, return_counts=True)
    apart = rows - rows.mean()
    alone = float(apart @ apart)
    if sizes.size == rows.size or alone == 0:
        return 1.0
    most = float(sizes @ sizes) / rows.size
    if sizes.size == 1:
        return most
    together = np.bincount(family, weights=apart)
    # Both variances with their own small-sample factor.
    ratio = float(together @ together) * sizes.size / (sizes.size - 1) / (alone * rows.size / (rows.size - 1))
    return min(max(ratio, 1.0), most)


def measured_row(
    metric: str, measured: Measured, model_id: str, variant: str, dataset: str = ALL, language: str = ALL
) -> dict[str, Any]:
    """Return a row of `evaluations`, such as of `kl` or `perplexity`; each prompt is a family of its own."""
    values = {"value": measured.value, "low": measured.low, "high": measured.high, "n_effective": measured.n}
    scored = [(0.0, str(number)) for number in range(measured.n)]
    return _row(model_id, variant, (dataset, language), metric, scored, 0) | values
