"""Paired differences: coverage by simulation, the exact ends, and the prompts a tolerance takes."""

import numpy as np
import pytest

from rass_core.errors import BoundaryError
from rass_core.stats.paired import n_for_tolerance, paired_difference


def test_no_change_is_not_certainty() -> None:
    z2 = 1.959964**2
    found = paired_difference(0, 0, 100)
    assert found.value == 0 and found.p_value == 1
    assert found.high == pytest.approx(z2 / (100 + z2), abs=1e-6)
    assert found.low == pytest.approx(-found.high)


def test_everything_changed() -> None:
    assert paired_difference(10, 0, 10).value == paired_difference(10, 0, 10).high == 1
    assert paired_difference(0, 10, 10).low == -1


def test_gains_and_losses_mirror() -> None:
    one, other = paired_difference(7, 2, 50), paired_difference(2, 7, 50)
    assert one.value == -other.value
    assert one.low == pytest.approx(-other.high)
    assert one.p_value == other.p_value


@pytest.mark.parametrize(("gain", "loss", "n"), [(0.05, 0.02, 200), (0.10, 0.10, 60), (0.0, 0.01, 400)])
def test_the_interval_covers_the_truth(gain: float, loss: float, n: int) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, [gain, loss, 1 - gain - loss], size=2000)
    found = [paired_difference(int(a), int(b), n) for a, b, _ in drawn]
    covered = np.mean([each.low <= gain - loss <= each.high for each in found])
    assert 0.92 <= covered <= 0.985, "a score interval is approximate where few change"


def test_the_prompts_a_tolerance_takes_are_just_enough() -> None:
    for tolerance in (0.01, 0.02, 0.1):
        n = n_for_tolerance(tolerance)
        assert paired_difference(0, 0, n).high <= tolerance < paired_difference(0, 0, n - 1).high
    assert n_for_tolerance(0.01) == 381


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 0, 0), (3, 3, 5), (-1, 0, 5)])
def test_impossible_counts_are_errors(gained: int, lost: int, n: int) -> None:
    with pytest.raises(BoundaryError, match="not a comparison"):
        paired_difference(gained, lost, n)


def test_a_tolerance_of_nothing_is_an_error() -> None:
    with pytest.raises(BoundaryError, match="tolerance"):
        n_for_tolerance(0.0)
