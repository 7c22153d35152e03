"""Agreement and discrimination: kappa, AUC, calibration, rates corrected for a judge's errors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rass_core.errors import BoundaryError
from rass_core.stats.arrays import Array

MONTE_CARLO_DRAWS = 100_000
MIN_ADMISSIBLE_DRAWS = 200


def mid_ranks(values: npt.ArrayLike) -> Array:
    """Return the rank of each value, from 1 on, equal ones sharing the mean of theirs."""
    from scipy.stats import rankdata  # takes half a second, and the judges do without it

    return np.asarray(rankdata(values), dtype=np.float64)


def auc(scores: npt.ArrayLike, is_positive: npt.ArrayLike) -> float:
    """Return the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: (n,), finite.
        is_positive: (n,), bool.

    Raises:
        BoundaryError: Unequal lengths, a score that is not finite, or an empty class.
    """
    values = np.asarray(scores, dtype=np.float64)
    positive = np.asarray(is_positive, dtype=bool)
    if values.ndim != 1 or values.shape != positive.shape or not np.isfinite(values).all():
        raise BoundaryError(f"auc: need finite (n,) twice, got {values.shape} and {positive.shape}; align them")
    n_positive = int(positive.sum())
    n_negative = positive.size - n_positive
    if n_positive == 0 or n_negative == 0:
        raise BoundaryError(f"auc: {n_positive} of {positive.size} positive, need both classes; add prompts")
    rank_sum = float(mid_ranks(values)[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def rogan_gladen(
    successes: float,
    n: float,
    sensitivity: tuple[float, float],
    specificity: tuple[float, float],
    seed: int,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return a rate corrected for its judge's known errors, and the interval, (value, low, high), each in [0, 1].

    The rate is (judged rate + specificity − 1) / (sensitivity + specificity − 1), clipped. Its interval is
    that of Monte Carlo draws of the three rates from their Jeffreys posteriors, Beta(hits + ½, misses + ½),
    so it carries how little is known of the judge too.

    Args:
        successes: Positives by the judge, among the items whose rate is wanted.
        n: Number of these items.
        sensitivity: True positives that the judge found, and how many there were.
        specificity: True negatives that it took for negative, and how many there were.
        seed: Seed of the draws.

    Raises:
        BoundaryError: A rate over nothing, or sensitivity + specificity not clearly above 1: such a judge
            says nothing about the rate. Or a rate that such errors cannot explain.

    Source: Rogan and Gladen 1978, American Journal of Epidemiology 107(1).
    """
    counts = {"rate": (successes, n), "sensitivity": sensitivity, "specificity": specificity}
    for name, (hits, total) in counts.items():
        if total <= 0 or not 0 <= hits <= total:
            raise BoundaryError(f"corrected rate: {name} {hits:g} of {total:g} is not a rate; need n >= 1")
    rng = np.random.default_rng(seed)
    rate, found, cleared = (
        rng.beta(hits + 0.5, total - hits + 0.5, MONTE_CARLO_DRAWS) for hits, total in counts.values()
    )
    informed = found + cleared - 1
    share, sensible, specific = (hits / total for hits, total in counts.values())
    tail = 0.5 - level / 2
    if sensible + specific <= 1 or np.quantile(informed, tail) <= 0:
        raise BoundaryError(
            f"corrected rate: sensitivity {sensitivity[0]:g}/{sensitivity[1]:g} and specificity "
            f"{specificity[0]:g}/{specificity[1]:g} sum to about 1; label more responses, or take another judge"
        )
    drawn = ((rate + cleared - 1) / informed)[informed > 0]
    # Draws that no true rate could give are dropped: clipped, they would pile up at an end and feign certainty.
    drawn = drawn[(drawn >= 0) & (drawn <= 1)]
    if drawn.size < MIN_ADMISSIBLE_DRAWS:
        raise BoundaryError(
            f"corrected rate: {successes:g} of {n:g} cannot come from a judge of sensitivity {sensible:.2f} and "
            f"specificity {specific:.2f}; its errors here are others; calibrate on such responses"
        )
    low, high = np.quantile(drawn, [tail, 1 - tail])
    value = min(1.0, max(0.0, (share + specific - 1) / (sensible + specific - 1)))
    # the posteriors never quite reach 0 and 1, the value may
    return value, min(value, float(low)), max(value, float(high))


def reliability(scores: npt.ArrayLike, is_refused: npt.ArrayLike, n_bins: int = 10) -> Array:
    """Return what scores promise beside what they keep, in bins of about equal mass.

    Equal scores share a bin, so a judge with few different scores has fewer bins.

    Args:
        scores: (n,), in [0, 1]: how sure the judge is that a response is refused.
        is_refused: (n,), bool: whether it is.

    Returns:
        (bins, 3), by rising score: mean score, share refused, number of responses.

    Raises:
        BoundaryError: No scores, unequal lengths, or a score outside [0, 1].
    """
    promised, kept = np.asarray(scores, dtype=np.float64), np.asarray(is_refused, dtype=bool)
    if promised.ndim != 1 or not promised.size or promised.shape != kept.shape:
        raise BoundaryError(f"calibration: need scores (n >= 1,) twice, got {promised.shape} and {kept.shape}")
    if not ((promised >= 0) & (promised <= 1)).all():
        raise BoundaryError("calibration: a score lies outside [0, 1]; give the judge's scores as probabilities")
    bins = equal_mass_bins(promised, n_bins)
    used = np.unique(bins)
    return np.array([[promised[bins == i].mean(), kept[bins == i].mean(), (bins == i).sum()] for i in used])


def equal_mass_bins(scores: npt.ArrayLike, n_bins: int) -> npt.NDArray[np.int64]:
    """Return each score's bin, 0 to n_bins − 1, by its rank; equal scores share one."""
    ranks = mid_ranks(scores)
    bins: npt.NDArray[np.int64] = np.floor((ranks - 0.5) / ranks.size * n_bins).astype(np.int64)
    return bins


def expected_calibration_error(scores: npt.ArrayLike, is_refused: npt.ArrayLike, n_bins: int = 10) -> float:
    """Return the mean gap between a judge's scores and the shares refused at them, 0 to 1.

    Bins and errors are those of `reliability`. It is never below 0, so it leans high where a bin holds few.

    Source: Naeini, Cooper and Hauskrecht 2015, AAAI; bins of equal mass, as Nixon et al. 2019.
    """
    bins = reliability(scores, is_refused, n_bins)
    return float(np.abs(bins[:, 0] - bins[:, 1]) @ bins[:, 2] / bins[:, 2].sum())


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Return two judges' agreement beyond chance, at most 1, 0 at chance.

    Args:
        first: One judge's outcome per item.
        second: The other's, in the same order.

    Raises:
        BoundaryError: No items, unequal lengths, or both judges gave one same outcome throughout.

    Source: Cohen 1960, Educational and Psychological Measurement 20(1).
    """
    if len(first) != len(second) or not first:
        raise BoundaryError(f"kappa: need pairs of outcomes, got {len(first)} and {len(second)}; align them")
    outcomes, index = np.unique([*first, *second], return_inverse=True)
    left, right = index[: len(first)], index[len(first) :]
    shares = [np.bincount(side, minlength=outcomes.size) / len(first) for side in (left, right)]
    expected = float(shares[0] @ shares[1])
    if outcomes.size == 1:
        raise BoundaryError(f"kappa: both judges said {outcomes[0]!r} throughout; add items that differ")
    return (float((left == right).mean()) - expected) / (1 - expected)
