"""Intervals of rates and of means over families, against statsmodels and in simulations."""

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from rass_core.errors import BoundaryError
from rass_core.stats.intervals import bootstrap_interval, family_counts, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 40), (3, 7), (40, 40), (517, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_that_of_statsmodels(successes: int, n: int, level: float) -> None:
    expected = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    value, low, high = wilson(successes, n, level)
    assert value == successes / n
    assert (low, high) == pytest.approx(expected, abs=1e-12)
    assert 0.0 <= low <= value <= high <= 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_rate(successes: int, n: int) -> None:
    with pytest.raises(BoundaryError, match=f"{successes} of {n}"):
        wilson(successes, n)


def test_family_counts_draw_whole_families() -> None:
    families = np.array(["b", "a", "b", "c", "a", "b"])
    counts = family_counts(families, 50, seed=3)
    assert counts.shape == (50, 6)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    np.testing.assert_array_equal(counts[:, 1], counts[:, 4])
    np.testing.assert_array_equal(counts[:, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_array_equal(counts[:, ::-1], family_counts(families[::-1], 50, seed=3))
    assert not np.array_equal(counts, family_counts(families, 50, seed=4))


def test_bootstrap_interval_is_wider_when_rows_come_in_families() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=40), 10)
    value, low, high = bootstrap_interval(values, np.arange(400) // 10, seed=1)
    _, narrow_low, narrow_high = bootstrap_interval(values, np.arange(400), seed=1)
    assert value == pytest.approx(values.mean())
    assert low < value < high
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 40**0.5, rel=0.15)
    assert (narrow_high - narrow_low) < 0.5 * (high - low)


def test_bootstrap_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(5)
    families = np.arange(120) // 2
    covered = 0
    for seed in range(200):
        values = np.repeat(rng.normal(size=60), 2) + 0.3 * rng.normal(size=120)
        _, low, high = bootstrap_interval(values, families, seed, n_bootstrap=200)
        covered += low <= 0.0 <= high
    assert 178 <= covered <= 199  # 95% nominal; binomial scatter is 3 and small samples lose a little


@pytest.mark.parametrize(
    ("values", "families"),
    [([], []), ([1.0, 2.0], ["a", "a"]), ([1.0, np.nan], ["a", "b"]), ([1.0, 2.0], ["a"])],
)
def test_bootstrap_interval_refuses(values: list[float], families: list[str]) -> None:
    with pytest.raises(BoundaryError, match="bootstrap"):
        bootstrap_interval(values, families, seed=0)
