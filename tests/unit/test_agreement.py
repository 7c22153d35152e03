"""AUC, kappa, calibration and corrected rates, against scikit-learn and in simulations."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from rass_core.errors import BoundaryError
from rass_core.stats.agreement import auc, cohen_kappa, expected_calibration_error, reliability, rogan_gladen
from rass_core.stats.intervals import wilson


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_that_of_scikit_learn_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, is_positive = rng.integers(0, 6, 80), rng.random(80) < 0.3
    assert auc(scores, is_positive) == pytest.approx(roc_auc_score(is_positive, scores), abs=1e-12)


def test_auc_of_all_ties_is_a_half() -> None:
    assert auc([1.0, 1.0, 1.0], [True, False, True]) == 0.5


@pytest.mark.parametrize(
    ("scores", "is_positive"),
    [
        ([], []),
        ([1.0, 2.0], [True, True]),
        ([1.0, 2.0], [False, False]),
        ([np.nan, 1.0], [True, False]),
        ([1.0], [True, False]),
    ],
)
def test_auc_refuses(scores: list[float], is_positive: list[bool]) -> None:
    with pytest.raises(BoundaryError, match="auc"):
        auc(scores, is_positive)


def test_cohen_kappa_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    first = rng.choice(["refusal", "compliance", "partial"], 90)
    second = np.where(rng.random(90) < 0.6, first, rng.choice(["refusal", "compliance", "unscored"], 90))
    assert cohen_kappa(list(first), list(second)) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert cohen_kappa(["a", "b"], ["a", "b"]) == 1.0


@pytest.mark.parametrize(("first", "second"), [([], []), (["a"], ["a", "b"]), (["a", "a"], ["a", "a"])])
def test_cohen_kappa_refuses(first: list[str], second: list[str]) -> None:
    with pytest.raises(BoundaryError, match="kappa"):
        cohen_kappa(first, second)


@pytest.mark.parametrize("truth", [0.0, 0.05, 0.4, 1.0])
def test_rogan_gladen_recovers_a_planted_rate(truth: float) -> None:
    n, sensitivity, specificity = 200_000, 0.8, 0.95
    judged = round(n * (truth * sensitivity + (1 - truth) * (1 - specificity)))
    value, low, high = rogan_gladen(judged, n, (80_000, 100_000), (95_000, 100_000), seed=0)
    assert value == pytest.approx(truth, abs=1e-4)
    assert low <= truth + 1e-9 and truth - 1e-9 <= high and high - low < 0.02


def test_rogan_gladen_of_a_perfect_judge_is_the_rate_itself() -> None:
    value, low, high = rogan_gladen(30, 100, (100_000, 100_000), (100_000, 100_000), seed=0)
    assert value == pytest.approx(0.3)
    assert (low, high) == pytest.approx(wilson(30, 100)[1:], abs=0.01)


def test_rogan_gladen_stays_a_rate_and_holds_its_value() -> None:
    assert rogan_gladen(0, 50, (45, 50), (45, 50), seed=0)[:2] == (0.0, 0.0)
    value, low, high = rogan_gladen(50, 50, (45, 50), (45, 50), seed=0)
    assert value == high == 1.0 and 0.9 < low <= 1.0
    value, low, high = rogan_gladen(0, 10, (1000, 1000), (1000, 1000), seed=0)
    assert value == low == 0.0 and high > 0.1


def test_rogan_gladen_is_wider_where_less_is_known_of_the_judge() -> None:
    def width(scale: int) -> float:
        _, low, high = rogan_gladen(300, 1000, (8 * scale, 10 * scale), (9 * scale, 10 * scale), seed=3)
        return high - low

    assert width(2) > 1.5 * width(10) > 2 * width(1000)


def test_rogan_gladen_repeats_with_its_seed() -> None:
    first, again, other = (rogan_gladen(30, 100, (40, 50), (45, 50), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first[0] == other[0] and first != other


@pytest.mark.parametrize(("truth", "n_labelled"), [(0.15, 60), (0.6, 300)])
def test_rogan_gladen_covers_the_truth(truth: float, n_labelled: int) -> None:
    rng = np.random.default_rng(7)
    sensitivity, specificity, n = 0.85, 0.93, 300
    covered = bare = 0
    for seed in range(300):
        judged = int(rng.binomial(n, truth * sensitivity + (1 - truth) * (1 - specificity)))
        found = int(rng.binomial(n_labelled, sensitivity)), n_labelled
        cleared = int(rng.binomial(n_labelled, specificity)), n_labelled
        _, low, high = rogan_gladen(judged, n, found, cleared, seed)
        covered += low <= truth <= high
        bare += wilson(judged, n)[1] <= truth <= wilson(judged, n)[2]
    assert 273 <= covered <= 297  # 95% nominal of 300, three standard errors
    assert bare < 270  # what it corrects: the uncorrected rate is off


@pytest.mark.parametrize(
    ("sensitivity", "specificity"), [((50, 100), (50, 100)), ((40, 100), (45, 100)), ((3, 4), (3, 4)), ((1, 1), (1, 1))]
)
def test_rogan_gladen_refuses_a_judge_that_knows_nothing(
    sensitivity: tuple[int, int], specificity: tuple[int, int]
) -> None:
    with pytest.raises(BoundaryError, match="sum to about 1"):
        rogan_gladen(30, 100, sensitivity, specificity, seed=0)


@pytest.mark.parametrize(
    ("rate", "sensitivity", "specificity", "named"),
    [
        ((0, 0), (9, 10), (9, 10), "rate 0 of 0"),
        ((11, 10), (9, 10), (9, 10), "rate 11 of 10"),
        ((1, 10), (0, 0), (9, 10), "sensitivity 0 of 0"),
        ((1, 10), (9, 10), (0, 0), "specificity 0 of 0"),
    ],
)
def test_rogan_gladen_refuses_rates_over_nothing(
    rate: tuple[int, int], sensitivity: tuple[int, int], specificity: tuple[int, int], named: str
) -> None:
    with pytest.raises(BoundaryError, match=named):
        rogan_gladen(*rate, sensitivity, specificity, seed=0)


def test_calibration_error_of_honest_scores_is_small_and_of_shifted_ones_is_the_shift() -> None:
    rng = np.random.default_rng(1)
    chance = rng.uniform(0.2, 0.8, 40_000)
    is_refused = rng.random(40_000) < chance
    assert expected_calibration_error(chance, is_refused) < 0.015
    assert expected_calibration_error(chance + 0.2, is_refused) == pytest.approx(0.2, abs=0.01)
    assert expected_calibration_error(np.full(40_000, 0.9), is_refused) == pytest.approx(0.9 - is_refused.mean())


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_does_not_depend_on_the_order_of_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, is_refused = rng.choice([0.05, 0.25, 0.7, 0.97], 200), rng.random(200) < 0.4
    shuffled = rng.permutation(200)
    expected = sum(abs((scores[scores == each] - is_refused[scores == each]).sum()) for each in set(scores)) / 200
    assert expected_calibration_error(scores, is_refused) == pytest.approx(expected)
    assert expected_calibration_error(scores[shuffled], is_refused[shuffled]) == pytest.approx(expected)


def test_reliability_has_bins_of_equal_mass() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(1000) ** 4
    bins = reliability(scores, rng.random(1000) < scores)
    assert bins.shape == (10, 3)
    assert (bins[:, 2] == 100).all() and (np.diff(bins[:, 0]) > 0).all()
    assert reliability([0.5], [True]).tolist() == [[0.5, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("scores", "is_refused"), [([], []), ([0.5], [True, False]), ([1.2], [True]), ([np.nan], [False])]
)
def test_calibration_error_refuses(scores: list[float], is_refused: list[bool]) -> None:
    with pytest.raises(BoundaryError, match="calibration"):
        expected_calibration_error(scores, is_refused)


def test_a_rate_below_the_false_alarms_keeps_an_interval() -> None:
    value, low, high = rogan_gladen(0, 100, (45, 50), (48, 50), seed=0)
    assert value == 0 and low == 0
    assert 0.01 < high < 0.06, "clipped draws would pile up on 0"
    with pytest.raises(BoundaryError, match="cannot come from a judge"):
        rogan_gladen(0, 1000, (90, 100), (50, 100), seed=0)
