"""Firth's logistic regression against its definition, its closed form and maximum likelihood."""

import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize
from scipy.special import expit

from rass_core.stats.firth import firth_logistic


def test_firth_maximises_the_weighted_penalised_likelihood() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.normal(2.0, 3.0, 40), rng.uniform(0.2, 3.0, 40)
    y = rng.random(40) < expit(0.4 * x - 1.0)

    def negative(beta: np.ndarray) -> float:
        p = expit(beta[0] + beta[1] * x)
        design = np.stack([np.ones(40), x], axis=1)
        information = (design.T * (weights * p * (1 - p))) @ design
        return float(-(weights * np.log(np.where(y, p, 1 - p))).sum() - 0.5 * np.linalg.slogdet(information)[1])

    best = minimize(negative, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    np.testing.assert_allclose(firth_logistic(x, y, weights[None])[0], best.x, atol=1e-5)


def test_firth_of_two_groups_has_the_published_closed_form() -> None:
    """With one binary covariate each group's rate is (s + 1/2) / (n + 1), also at s = 0."""
    x, y = np.repeat([0.0, 1.0], [5, 9]), np.zeros(14, bool)
    y[5:8] = True
    intercept, slope = firth_logistic(x, y, np.ones((1, 14)))[0]
    assert expit(intercept) == pytest.approx(0.5 / 6)
    assert expit(intercept + slope) == pytest.approx(3.5 / 10)


def test_firth_weights_count_copies() -> None:
    rng = np.random.default_rng(1)
    x, copies = rng.normal(size=25), rng.integers(0, 4, 25)
    y = rng.random(25) < expit(x)
    repeated = np.repeat(np.arange(25), copies)
    np.testing.assert_allclose(
        firth_logistic(x, y, copies[None].astype(float))[0],
        firth_logistic(x[repeated], y[repeated], np.ones((1, repeated.size)))[0],
        rtol=1e-6,
    )


def test_firth_is_finite_under_separation_and_for_one_outcome() -> None:
    x = np.linspace(-1, 1, 20)
    for y in (x > 0, x < 0, np.ones(20, bool), np.zeros(20, bool)):
        assert np.isfinite(firth_logistic(x, y, np.ones((1, 20)))).all()


def test_firth_sees_no_slope_in_one_value() -> None:
    assert np.isnan(firth_logistic(np.full(4, 0.7), np.array([1, 0, 1, 0], bool), np.ones((1, 4)))).all()


def test_firth_is_less_biased_than_maximum_likelihood() -> None:
    rng = np.random.default_rng(2)
    x = np.linspace(-2, 2, 40)
    design, firth, likelihood = sm.add_constant(x), [], []
    for _ in range(150):
        y = rng.random(40) < expit(1.5 * x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            likelihood.append(sm.GLM(y.astype(float), design, family=sm.families.Binomial()).fit().params[1])
        firth.append(firth_logistic(x, y, np.ones((1, 40)))[0, 1])
    assert abs(np.mean(firth) - 1.5) < 0.5 * abs(np.mean(likelihood) - 1.5)
    assert np.mean(firth) == pytest.approx(1.5, abs=0.15)
