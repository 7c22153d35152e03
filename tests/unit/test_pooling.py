"""Boundaries pooled over languages, against statsmodels and in simulations."""

import numpy as np
import pytest

from rass_core.errors import BoundaryError
from rass_core.probe.boundary import boundary_report
from rass_core.probe.pooling import pool_boundaries, pool_reports
from tests.known_boundary import prompts


def test_pooling_is_dersimonian_laird_and_shrinks() -> None:
    """Checked against statsmodels' random-effects mean and spread."""
    from statsmodels.stats.meta_analysis import combine_effects

    b, variance = np.array([0.1, 0.5, -0.3, 0.9]), np.array([0.01, 0.02, 0.03, 0.2])
    expected = combine_effects(b, variance, method_re="dl")
    pooled = pool_boundaries(
        {name: (b[i], variance[i], n) for i, (name, n) in enumerate(zip("abcd", [90, 90, 90, 20], strict=True))}
    )
    assert set(pooled) == {"d"}
    own = expected.tau2 / (expected.tau2 + 0.2)
    assert pooled["d"].own_weight == pytest.approx(own)
    assert pooled["d"].b == pytest.approx(own * 0.9 + (1 - own) * expected.mean_effect_re)
    assert pooled["d"].b_low < pooled["d"].b < pooled["d"].b_high
    assert pooled["d"].variance <= 0.2
    assert "20 prompts" in pooled["d"].reason


def test_pooling_languages_that_agree_gives_their_mean() -> None:
    pooled = pool_boundaries(dict.fromkeys("abcd", (0.2, 0.1, 10)))
    assert [part.b for part in pooled.values()] == pytest.approx([0.2] * 4)
    student_over_normal = 3.1824 / 1.9600  # 97.5% points, three degrees of freedom
    assert pooled["a"].variance == pytest.approx(0.1 / 4 * student_over_normal**2, rel=1e-3)


def test_pooling_lowers_the_error_and_covers() -> None:
    rng = np.random.default_rng(17)
    error, pooled_error, covered = 0.0, 0.0, 0
    for _ in range(300):
        truth = rng.normal(0.2, 0.3, 8)
        variance = np.array([0.01] * 7 + [0.15])
        b = truth + rng.normal(size=8) * np.sqrt(variance)
        pooled = pool_boundaries({str(i): (b[i], variance[i], 10 if i == 7 else 99) for i in range(8)})["7"]
        error += (b[7] - truth[7]) ** 2
        pooled_error += (pooled.b - truth[7]) ** 2
        covered += pooled.b_low <= truth[7] <= pooled.b_high
    assert pooled_error < 0.75 * error
    assert 274 <= covered <= 297  # 285 nominal, binomial scatter 3.8


@pytest.mark.parametrize(
    "estimates",
    [{"a": (0.1, 0.1, 9), "b": (0.1, 0.1, 9)}, {"a": (0.1, 0.1, 9), "b": (0.1, 0.1, 9), "c": (0.1, 0.0, 9)}],
)
def test_pooling_refuses(estimates: dict[str, tuple[float, float, int]]) -> None:
    with pytest.raises(BoundaryError, match="pool"):
        pool_boundaries(estimates)


def test_pooled_reports_keep_misalignment_the_difference() -> None:
    reports = {name: boundary_report(*prompts(200, 0.1, 4.0, seed=i)) for i, name in enumerate("abc")}
    reports["few"] = boundary_report(*prompts(30, 0.1, 4.0, seed=18))
    pooled = pool_reports(reports)
    assert all(pooled[name] == reports[name] for name in "abc")
    few = pooled["few"]
    assert few.b is not None and few.b_oracle is not None and few.misalignment is not None
    assert few.misalignment == pytest.approx(few.b_oracle - few.b)
    assert few.b_high - few.b_low < reports["few"].b_high - reports["few"].b_low
    assert few.misalignment_low < few.misalignment < few.misalignment_high
    width = reports["few"].misalignment_high - reports["few"].misalignment_low
    assert few.misalignment_high - few.misalignment_low < width
    assert few.reason is not None and "b pooled over 4" in few.reason and "b_oracle pooled" in few.reason


def test_pooled_misalignment_keeps_the_covariance_of_its_parts() -> None:
    """Where refusals follow harm, b* − b is surer than b and b* apart would make it."""
    reports = {}
    for i, n in enumerate([200, 200, 200, 30]):
        margins, _, labels, families = prompts(n, 0.0, 1.0, seed=20 + i)
        refused = labels == "harmful"
        refused[np.flatnonzero(labels == "pseudo_harmful")[: n // 25]] = True
        reports[str(i)] = boundary_report(margins + 0.8 * i, refused, labels, families)  # languages differ
    few = pool_reports(reports)["3"]
    half = (few.misalignment_high - few.misalignment_low) / 2
    apart = np.hypot(few.b_high - few.b_low, few.b_oracle_high - few.b_oracle_low) / 2
    assert half < 0.95 * apart


def test_reports_that_cannot_be_pooled_say_so() -> None:
    report = boundary_report(*prompts(30, 0.1, 4.0, seed=18))
    pooled = pool_reports({"a": report})["a"]
    assert pooled.b == report.b
    assert pooled.reason is not None and "not pooled: 1 languages" in pooled.reason
