"""Directions against scikit-learn and closed forms, and every way to ask for the impossible."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from rass_core.errors import ActivationError
from rass_core.probe.directions import (
    DIRECTION_METHODS,
    cosine,
    difference_in_means,
    lda_direction,
    logistic_direction,
    margin,
    orthogonal_component,
    orthogonalise,
    pca_direction,
)


def classes(
    n_positive: int = 60, n_negative: int = 60, d_model: int = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussian clouds of correlated features, float32 as a model gives them."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d_model, d_model)) / np.sqrt(d_model)
    shift = 3.0 * rng.normal(size=d_model) / np.sqrt(d_model)
    positive = rng.normal(size=(n_positive, d_model)) @ mixing + shift + 5.0
    negative = rng.normal(size=(n_negative, d_model)) @ mixing + 5.0
    return positive.astype(np.float32), negative.astype(np.float32)


def test_difference_in_means_is_exact_in_float64() -> None:
    positive = np.full((3, 2), 0.1, np.float32)
    result = difference_in_means(positive, np.zeros((5, 2), np.float32))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, np.float64(np.float32(0.1)), rtol=1e-15)


@pytest.mark.parametrize("d_model", [8, 300])
def test_pca_direction_is_the_first_principal_component(d_model: int) -> None:
    positive, negative = classes(d_model=d_model)
    expected = PCA(1).fit(np.vstack([positive, negative]).astype(np.float64)).components_[0]
    result = pca_direction(positive, negative)
    assert abs(cosine(result, expected)) == pytest.approx(1.0, abs=1e-9)


def test_pca_direction_does_not_follow_the_larger_class() -> None:
    positive, negative = classes()
    repeated = np.vstack([negative] * 7)
    np.testing.assert_allclose(pca_direction(positive, repeated), pca_direction(positive, negative), rtol=1e-9)


@pytest.mark.parametrize("d_model", [8, 200])
def test_lda_direction_is_that_of_scikit_learn(d_model: int) -> None:
    positive, negative = classes(d_model=d_model)
    rows = np.vstack([positive, negative]).astype(np.float64)
    within = np.vstack([positive - positive.mean(0), negative - negative.mean(0)]).astype(np.float64)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=ledoit_wolf_shrinkage(within, assume_centered=True))
    model.fit(rows, np.repeat([1, 0], 60))
    assert cosine(lda_direction(positive, negative), model.coef_[0]) == pytest.approx(1.0, abs=1e-6)


def test_logistic_direction_orders_rows_as_the_standardised_regression() -> None:
    positive, negative = classes(40, 70)
    positive[:, 0] *= 1000.0
    negative[:, 0] *= 1000.0
    rows = np.vstack([positive, negative]).astype(np.float64)
    within = np.vstack([positive - positive.mean(0), negative - negative.mean(0)]).astype(np.float64)
    standard = (rows - rows.mean(0)) / within.std(0)
    model = LogisticRegression(class_weight="balanced", max_iter=2000).fit(standard, np.repeat([1, 0], [40, 70]))
    along = rows @ logistic_direction(positive, negative)
    assert np.corrcoef(along, model.decision_function(standard))[0, 1] == pytest.approx(1.0, abs=1e-9)


def test_logistic_direction_takes_a_constant_feature() -> None:
    positive, negative = classes()
    positive[:, 2] = negative[:, 2] = 4.0
    assert logistic_direction(positive, negative)[2] == 0.0


@pytest.mark.parametrize("name", DIRECTION_METHODS)
def test_every_method_points_up_at_the_length_of_the_shift(name: str) -> None:
    positive, negative = classes(50, 30)
    v = DIRECTION_METHODS[name](positive, negative)
    shift = positive.mean(0, np.float64) - negative.mean(0, np.float64)
    assert v.shape == (8,) and v.dtype == np.float64
    assert v @ shift > 0.0
    assert v @ v == pytest.approx(v @ shift)
    moved = margin(negative + v, v, positive.mean(0, np.float64), negative.mean(0, np.float64))
    assert moved.mean() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", DIRECTION_METHODS)
def test_every_method_leaves_its_arguments_alone(name: str) -> None:
    positive, negative = classes()
    before = positive.copy(), negative.copy()
    DIRECTION_METHODS[name](positive, negative)
    np.testing.assert_array_equal(positive, before[0])
    np.testing.assert_array_equal(negative, before[1])


@pytest.mark.parametrize("name", DIRECTION_METHODS)
@pytest.mark.parametrize(
    "positive",
    [
        np.empty((0, 3)),
        np.ones(3),
        np.ones((2, 4)),
        np.array([[1.0, np.nan, 0.0]]),
        np.array([[np.inf, 0.0, 0.0]]),
    ],
    ids=["empty", "flat", "wider", "nan", "inf"],
)
def test_every_method_refuses_rows_it_cannot_use(name: str, positive: np.ndarray) -> None:
    with pytest.raises(ActivationError):
        DIRECTION_METHODS[name](positive, np.zeros((2, 3)))


@pytest.mark.parametrize("name", ["pca", "logistic", "lda"])
def test_fitted_methods_refuse_classes_that_do_not_differ(name: str) -> None:
    rows = classes()[0]
    with pytest.raises(ActivationError, match=name):
        DIRECTION_METHODS[name](rows, rows)


def test_pca_direction_refuses_an_axis_across_the_shift() -> None:
    spread = np.array([[10.0, 0.0], [-10.0, 0.0]])
    with pytest.raises(ActivationError, match="do not differ along it"):
        pca_direction(spread + np.array([0.0, 1.0]), spread)


def test_lda_direction_of_single_rows_is_the_difference() -> None:
    np.testing.assert_allclose(lda_direction(np.array([[1.0, 2.0]]), np.zeros((1, 2))), [1.0, 2.0])


def test_margin_is_its_formula() -> None:
    x, v = np.array([[3.0, 1.0], [0.0, 9.0]]), np.array([2.0, 0.0])
    mean_positive, mean_negative = np.array([2.0, 5.0]), np.array([-2.0, 7.0])
    np.testing.assert_allclose(margin(x, v, mean_positive, mean_negative), [1.5, 0.0])


@pytest.mark.parametrize("v", [[-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], ids=["reversed", "across", "zero"])
def test_margin_refuses_a_denominator_that_is_not_positive(v: list[float]) -> None:
    with pytest.raises(ActivationError, match="need > 0"):
        margin(np.ones((2, 2)), np.array(v), np.array([1.0, 0.0]), np.array([-1.0, 0.0]))


def test_margin_refuses_vectors_of_another_model() -> None:
    with pytest.raises(ActivationError, match="one model"):
        margin(np.ones((2, 3)), np.ones(2), np.ones(3), np.zeros(3))


def test_orthogonalise_removes_the_direction_in_full() -> None:
    rng = np.random.default_rng(1)
    against = rng.normal(size=64)
    nearly_along = 1e6 * against + rng.normal(size=64)
    left = orthogonalise(nearly_along, against)
    assert abs(cosine(left, against)) < 1e-12
    np.testing.assert_allclose(orthogonalise(np.array([3.0, 4.0]), np.array([0.0, 9.0])), [3.0, 0.0])


@pytest.mark.parametrize("against", [[0.0, 0.0], [2.0, 4.0], [1.0]], ids=["zero", "same", "shape"])
def test_orthogonalise_refuses(against: list[float]) -> None:
    with pytest.raises(ActivationError):
        orthogonalise(np.array([1.0, 2.0]), np.array(against))


def test_cosine() -> None:
    assert cosine(np.array([1.0, 0.0]), np.array([2.0, 2.0])) == pytest.approx(0.5**0.5)
    assert cosine(np.array([1.0, 0.0]), np.array([-3.0, 0.0])) == -1.0
    with pytest.raises(ActivationError):
        cosine(np.zeros(2), np.ones(2))


@pytest.mark.parametrize("d_model", [6, 80])
def test_orthogonal_component_finds_the_largest_spread_beside_v(d_model: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, d_model)) * 0.1
    x[:, 0] += 100.0 * rng.normal(size=50)
    planted = 5.0 * rng.normal(size=50)
    x[:, 1] += planted
    v = np.eye(d_model)[0]
    component = orthogonal_component(x, v)
    assert abs(component.axis @ v) < 1e-12
    assert np.corrcoef(component.scores(x), planted)[0, 1] > 0.999
    rest = PCA(1).fit(np.delete(x, 0, axis=1))
    np.testing.assert_allclose(abs(component.scores(x)), abs(rest.transform(np.delete(x, 0, axis=1))[:, 0]), atol=1e-9)


def test_orthogonal_component_is_applied_to_new_rows_as_it_was_fitted() -> None:
    rng = np.random.default_rng(3)
    x, v = rng.normal(size=(30, 5)), rng.normal(size=5)
    component = orthogonal_component(x, v)
    np.testing.assert_allclose(component.scores(x[4:6]), component.scores(x)[4:6])
    np.testing.assert_allclose(component.scores(x + 7.0 * v), component.scores(x), atol=1e-9)
    with pytest.raises(ActivationError):
        component.scores(np.ones((2, 4)))


@pytest.mark.parametrize(
    ("x", "v"),
    [
        (np.ones((4, 3)), np.ones(3)),
        (np.arange(4.0)[:, None] * np.ones(3), np.ones(3)),
        (np.eye(3), np.zeros(3)),
    ],
    ids=["same rows", "only along v", "zero v"],
)
def test_orthogonal_component_refuses(x: np.ndarray, v: np.ndarray) -> None:
    with pytest.raises(ActivationError):
        orthogonal_component(x, v)
