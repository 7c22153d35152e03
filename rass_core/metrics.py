"""Rates, agreement and their intervals; nothing here ever stands in a number for no data."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from rass_core.errors import BoundaryError

Array = npt.NDArray[np.float64]


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
    rank_sum = float(rankdata(values)[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float, float]:
    """Return a rate and its Wilson score interval, (value, low, high), each in [0, 1].

    Raises:
        BoundaryError: n is 0 (a rate over nothing is not 0), or successes lies outside 0..n.

    Source: Wilson 1927, JASA 22(158).
    """
    if n <= 0 or not 0 <= successes <= n:
        raise BoundaryError(f"rate: {successes} of {n} is no rate; need n >= 1 and 0 <= successes <= n")
    z = float(norm.ppf(0.5 + level / 2))
    value = successes / n
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (value * (1 - value) / n + z**2 / (4 * n**2)) ** 0.5
    # at 0 and n successes the ends are exact, rounding would leave them a hair outside
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return value, low, high


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


def family_counts(families: npt.ArrayLike, n_bootstrap: int, seed: int) -> Array:
    """Return how often each row occurs in each cluster-bootstrap replicate, (n_bootstrap, n).

    Families, as many as there are, are drawn with replacement, each with all of its rows: variants
    of one prompt are not independent. Equal families and seed give equal replicates, whatever the
    order of the rows, so statistics of the same rows are bootstrapped jointly by sharing a seed.

    Raises:
        BoundaryError: Fewer than two families; drawing one again and again would show no spread.
    """
    names, family = np.unique(np.asarray(families), return_inverse=True)
    if names.size < 2:
        raise BoundaryError(f"bootstrap: {names.size} prompt family, need at least 2; add prompts")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(names.size, np.full(names.size, 1 / names.size), size=n_bootstrap)
    return drawn[:, family].astype(np.float64)


def bootstrap_interval(
    values: npt.ArrayLike, families: npt.ArrayLike, seed: int, n_bootstrap: int = 1000, level: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of values and its percentile interval over prompt families.

    Args:
        values: (n,), finite; 0/1 for a rate.
        families: (n,), the prompt family of each row.
        seed: Of the resampling.

    Returns:
        (value, low, high), units of values.

    Raises:
        BoundaryError: No values, one that is not finite, unequal lengths, fewer than two families.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or not rows.size or rows.shape != np.shape(families) or not np.isfinite(rows).all():
        raise BoundaryError(
            f"bootstrap: need finite values (n >= 1,), families alike, got {rows.shape}, {np.shape(families)}"
        )
    counts = family_counts(families, n_bootstrap, seed)
    low, high = np.quantile(counts @ rows / counts.sum(axis=1), [0.5 - level / 2, 0.5 + level / 2])
    return float(rows.mean()), float(low), float(high)
