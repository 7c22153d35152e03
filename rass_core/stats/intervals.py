"""Rates, agreement and their intervals; without data the result is never a number."""

import math

import numpy as np
import numpy.typing as npt

from rass_core.errors import BoundaryError
from rass_core.stats.agreement import auc, mid_ranks
from rass_core.stats.arrays import Array


def _deviate(level: float) -> float:
    """Return how many standard deviations around its mean hold a share of a normal variable."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2))


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float, float]:
    """Return a rate and its Wilson score interval, (value, low, high), each in [0, 1].

    Args:
        successes: Effective numbers, where items weigh differently, need not be whole.
        n: As successes.

    Raises:
        BoundaryError: n is 0 (a rate over nothing is not 0), or successes lies outside 0..n.

    Source: Wilson 1927, JASA 22(158).
    """
    if n <= 0 or not 0 <= successes <= n:
        raise BoundaryError(f"rate: {successes} of {n} is not a rate; need n >= 1 and 0 <= successes <= n")
    z = _deviate(level)
    value = successes / n
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (value * (1 - value) / n + z**2 / (4 * n**2)) ** 0.5
    # at 0 and n successes the ends are exact, rounding would leave them a hair outside
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return value, low, high


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
        seed: Seed of the resampling.

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


def auc_interval(scores: npt.ArrayLike, is_positive: npt.ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Return the AUC and its interval on the logit scale, (value, low, high), each in [0, 1].

    Where no pair, or every pair, is in the wrong order, DeLong's variance is 0. The interval is then Wilson's for
    that share among as many draws as the smaller class has items.

    Args:
        scores: (n,), finite; the items must be independent.
        is_positive: (n,), bool.

    Raises:
        BoundaryError: As `auc`.

    Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44(3); logit scale: Pepe 2003, section 5.2.
    """
    value = auc(scores, is_positive)
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(is_positive, dtype=bool)
    ranks = mid_ranks(values)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    above = (ranks[positive] - mid_ranks(values[positive])) / n_negative
    below = (ranks[~positive] - mid_ranks(values[~positive])) / n_positive
    variance = sum(float(np.var(each, ddof=1)) / each.size if each.size > 1 else np.inf for each in (above, below))
    if value in (0.0, 1.0) or not 0 < variance < np.inf:
        smaller = min(n_positive, n_negative)
        return wilson(value * smaller, smaller, level)
    reach = _deviate(level) * math.sqrt(variance) / (value * (1 - value))
    logit = math.log(value / (1 - value))
    low, high = (1 / (1 + math.exp(-(logit + each))) for each in (-reach, reach))
    return value, low, high


def difference_interval(
    first: tuple[float, float], second: tuple[float, float], level: float = 0.95
) -> tuple[float, float, float]:
    """Return the difference of two independent rates, first − second, and its score interval, each in [−1, 1].

    Args:
        first: (successes, n).
        second: The same.

    Raises:
        BoundaryError: As `wilson`.

    Source: Newcombe 1998, Statistics in Medicine 17(8), method 10.
    """
    (p, p_low, p_high), (q, q_low, q_high) = wilson(*first, level), wilson(*second, level)
    return (
        p - q,
        p - q - math.hypot(p - p_low, q_high - q),
        p - q + math.hypot(p_high - p, q - q_low),
    )
