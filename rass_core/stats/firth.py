"""Logistic regression with Firth's penalty, for few or separated observations."""

import numpy as np
from scipy.special import expit, log_expit

from rass_core.stats.arrays import Array, Bools

MAX_STEPS = 200
TOLERANCE = 1e-8


def _score(x: Array, outcome: Bools, weights: Array, beta: Array) -> tuple[Array, Array]:
    """Return penalised log-likelihood (r,) and Fisher step (r, 2) of r weighted fits at beta (r, 2)."""
    eta = beta[:, :1] + beta[:, 1:] * x
    p = expit(eta)
    information = weights * p * (1.0 - p)
    i00, i01, i11 = information.sum(axis=1), information @ x, information @ x**2
    with np.errstate(divide="ignore", invalid="ignore"):  # a fit of one value of x, or far too long a step
        determinant = i00 * i11 - i01**2
        value = (weights * log_expit(np.where(outcome, eta, -eta))).sum(axis=1) + 0.5 * np.log(determinant)
        inverse = np.stack([i11, -i01, i00]) / determinant
        # the leverage of all copies of a row together, as its weight counts copies
        leverage = information * (inverse.T @ np.stack([np.ones_like(x), 2.0 * x, x**2]))
        residual = weights * (outcome - p) + leverage * (0.5 - p)
        score = np.stack([residual.sum(axis=1), residual @ x])
        step = np.stack([(inverse[:2] * score).sum(axis=0), (inverse[1:] * score).sum(axis=0)], axis=1)
    return value, step


def firth_logistic(x: Array, outcome: Bools, weights: Array) -> Array:
    """Return intercept and slope of bias-reduced logistic fits, one per row of weights.

    The score is `Σ wᵢ(yᵢ − pᵢ)xᵢ + Σ hᵢ(½ − pᵢ)xᵢ`, h the leverages: the maximum of the likelihood
    times the root of the determinant of the information. It is finite under separation.

    Args:
        x: One covariate, (n,).
        outcome: (n,).
        weights: Copies of each row, not negative, (r, n).

    Returns:
        (r, 2), float64; nan where a fit sees a single value of x or does not converge.

    Source: Firth 1993, Biometrika 80(1); Heinze and Schemper 2002, Statistics in Medicine 21(16).
    """
    centre, scale = x.mean(), x.std()
    if scale == 0.0:
        return np.full((len(weights), 2), np.nan)
    z = (x - centre) / scale  # the fit follows x under shifts and scalings, steps then have one size
    beta, result = np.zeros((len(weights), 2)), np.full((len(weights), 2), np.nan)
    value, step = _score(z, outcome, weights, beta)
    rows = np.flatnonzero(np.isfinite(value) & np.isfinite(step).all(axis=1))
    for _ in range(MAX_STEPS):
        if rows.size == 0:
            break
        candidate = beta[rows] + step[rows]
        new_value, new_step = _score(z, outcome, weights[rows], candidate)
        better = new_value >= value[rows] - TOLERANCE  # False also for nan: the step is halved
        kept = rows[better]
        beta[kept], value[kept], step[kept] = candidate[better], new_value[better], new_step[better]
        step[rows[~better]] /= 2.0
        done = better & (np.abs(new_step).max(axis=1) < TOLERANCE)
        result[rows[done]] = beta[rows[done]]
        rows = rows[~done]
    result[:, 1] /= scale
    result[:, 0] -= result[:, 1] * centre
    return result
