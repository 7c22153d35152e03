"""Before and after on the same prompts: the difference of two rates, its interval, and how many prompts it takes."""

from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist

from rass_core.errors import BoundaryError


@dataclass(frozen=True)
class PairedDifference:
    """How a rate changed between two variants that answered the same prompts."""

    value: float
    """Rate after − rate before."""
    low: float
    high: float
    gained: int
    """Prompts counted after and not before."""
    lost: int
    """Prompts counted before and not after."""
    n: int
    p_value: float
    """Exact McNemar: the chance of so lopsided a change where gains and losses are equally likely."""


def paired_difference(gained: int, lost: int, n: int, level: float = 0.95) -> PairedDifference:
    """Return the paired difference with Tango's score interval, which is honest where nothing changed.

    Raises:
        BoundaryError: No pairs, or more changes than pairs.

    Source: Tango 1998, Statistics in Medicine 17(8); McNemar 1947, Psychometrika 12(2).
    """
    if n <= 0 or min(gained, lost) < 0 or gained + lost > n:
        raise BoundaryError(f"paired difference: {gained} gained and {lost} lost of {n} is not a comparison")
    from scipy.stats import binomtest  # takes a second, and every command reads the gate's settings

    z = NormalDist().inv_cdf(0.5 + level / 2)
    value = (gained - lost) / n
    high = _limit(gained, lost, n, z)
    low = -_limit(lost, gained, n, z)
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return PairedDifference(value=value, low=low, high=high, gained=gained, lost=lost, n=n, p_value=p_value)


def n_for_tolerance(tolerance: float, level: float = 0.95) -> int:
    """Return how many prompts it takes that a rate that does not change at all is shown to change by at most this.

    Args:
        tolerance: Largest change of the rate, in (0, 1).
        level: Level of the two-sided interval whose far end must lie within the tolerance.

    Raises:
        BoundaryError: A tolerance outside (0, 1): none can be shown with any number of prompts.
    """
    if not 0 < tolerance < 1:
        raise BoundaryError(f"tolerance {tolerance:g}: must lie between 0 and 1; no number of prompts shows it")
    # Tango's limit without any change is z²/(n + z²).
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return ceil(z**2 * (1 - tolerance) / tolerance)


def _limit(gained: int, lost: int, n: int, z: float) -> float:
    """Return the upper limit of (gained − lost) / n: where the score statistic reaches z."""
    from scipy.optimize import brentq

    def excess(delta: float) -> float:
        return (gained - lost - n * delta) / sqrt(n * _variance(gained, lost, n, delta)) + z

    value = (gained - lost) / n
    if value >= 1:
        return 1.0
    return float(brentq(excess, value, 1 - 1e-12, xtol=1e-10))


def _variance(gained: int, lost: int, n: int, delta: float) -> float:
    """Return the variance of one pair's change under a true difference delta."""
    # The maximum-likelihood share of losses given delta solves a quadratic.
    b = -gained - lost + (2 * n - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    share = (sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    return max(2 * share + delta * (1 - delta), 1e-15)
