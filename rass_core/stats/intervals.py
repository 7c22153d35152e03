"""Rates, agreement and their intervals; nothing here ever stands in a number for no data."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rass_core.errors import BoundaryError

Array = npt.NDArray[np.float64]

MONTE_CARLO_DRAWS = 100_000
MIN_ADMISSIBLE_DRAWS = 200


def _ranks(values: npt.ArrayLike) -> Array:
    """Return the rank of each value, from 1 on, equal ones sharing the mean of theirs."""
    from scipy.stats import rankdata  # takes half a second, and the judges do without it

    return np.asarray(rankdata(values), dtype=np.float64)


def _deviate(level: float) -> float:
    """Return how many standard deviations around its mean hold a share of a normal variable."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2))


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
    rank_sum = float(_ranks(values)[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


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
        seed: Of the draws.

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
    ranks = _ranks(scores)
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
    ranks = _ranks(values)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    above = (ranks[positive] - _ranks(values[positive])) / n_negative
    below = (ranks[~positive] - _ranks(values[~positive])) / n_positive
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
