"""The boundary against statsmodels, scikit-learn, published properties and simulations."""

import time

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from rass_core.errors import ActivationError, BoundaryError, PromptError
from rass_core.lake.schema import TABLES
from rass_core.probe.boundary import Boundary, boundary_report, fit_boundary, fit_oracle_boundary
from tests.known_boundary import by_hand, prompts

SEPARATED = by_hand(
    [(-1.2, False, "harmless"), (-0.8, False, "harmless"), (-0.2, False, "pseudo_harmful"),
     (0.4, True, "pseudo_harmful"), (0.5, True, "pseudo_harmful"),
     (0.9, True, "harmful"), (1.1, True, "harmful")]
)  # fmt: skip


def test_boundary_on_many_prompts_is_that_of_other_libraries() -> None:
    margins, refused, labels, families = prompts(6000, 0.3, 3.0, seed=3, shares=(0.1, 0.7, 0.2))
    weights = np.array([6000 / (3 * (labels == label).sum()) for label in labels])
    boundary = fit_boundary(margins, refused, labels, families, n_bootstrap=4)
    glm = sm.GLM(refused.astype(float), sm.add_constant(margins), family=sm.families.Binomial(), freq_weights=weights)
    intercept, slope = glm.fit().params
    assert boundary.k == pytest.approx(slope, rel=0.005)
    assert boundary.b == pytest.approx(-intercept / slope, abs=0.002)
    model = LogisticRegression(C=np.inf).fit(margins[:, None], refused, sample_weight=weights)
    assert boundary.b == pytest.approx(-model.intercept_[0] / model.coef_[0, 0], abs=0.002)


def test_repeating_one_label_leaves_the_boundary_where_it_was() -> None:
    """Harmless prompts in plenty must not move b; unweighted they would."""
    margins, refused, labels, families = prompts(90, 0.2, 2.0, seed=4)
    index = np.concatenate([np.arange(90), np.tile(np.flatnonzero(labels == "harmless"), 40)])
    once = fit_boundary(margins, refused, labels, families, n_bootstrap=4)
    often = fit_boundary(margins[index], refused[index], labels[index], families[index], n_bootstrap=4)
    assert often.b == pytest.approx(once.b, abs=0.03)  # the penalty alone shrinks with n
    oracle = fit_oracle_boundary(margins, labels, families, n_bootstrap=4)
    oracle_often = fit_oracle_boundary(margins[index], labels[index], families[index], n_bootstrap=4)
    assert oracle_often.b == pytest.approx(oracle.b, abs=0.03)


def test_oracle_balances_harmful_and_benign() -> None:
    margins, _, labels, families = prompts(6000, 0.0, 1.0, seed=5, shares=(0.1, 0.2, 0.7))
    weights = np.select(
        [labels == "harmful", labels == "harmless"],
        [0.5 / (labels == "harmful").sum(), 0.25 / (labels == "harmless").sum()],
        0.25 / (labels == "pseudo_harmful").sum(),
    )
    model = LogisticRegression(C=np.inf).fit(margins[:, None], labels == "harmful", sample_weight=6000 * weights)
    oracle = fit_oracle_boundary(margins, labels, families, n_bootstrap=4)
    assert oracle.b == pytest.approx(-model.intercept_[0] / model.coef_[0, 0], abs=0.003)
    assert oracle.n_refused == (labels == "harmful").sum()


@pytest.mark.parametrize(
    ("refused", "reason"),
    [([False] * 7, "0 of 7 refused"), ([True] * 7, "7 of 7 refused"), ([True] * 3 + [False] * 4, "k = ")],
    ids=["none", "all", "falling"],
)
def test_a_boundary_that_is_not_identified_is_raised(refused: list[bool], reason: str) -> None:
    margins, _, labels, families = SEPARATED
    with pytest.raises(BoundaryError, match=reason):
        fit_boundary(margins, np.array(refused), labels, families)


def test_a_boundary_outside_the_margins_is_raised() -> None:
    margins, refused, labels, families = prompts(400, 4.0, 1.0, seed=6)
    with pytest.raises(BoundaryError, match="outside the margins"):
        fit_boundary(margins, refused, labels, families)


def test_margins_without_spread_are_raised() -> None:
    _, refused, labels, families = SEPARATED
    with pytest.raises(BoundaryError, match="margins"):
        fit_boundary(np.full(7, 0.3), refused, labels, families)


def test_a_boundary_that_most_replicates_lose_is_raised() -> None:
    """Refusals that all but ignore the margin: the fit has a b, about half the replicates k <= 0."""
    margins, refused = np.linspace(-1, 1, 20), np.resize([False, True], 20)
    with pytest.raises(BoundaryError, match="of 500 bootstrap replicates do not identify b"):
        fit_boundary(margins, refused, np.repeat("pseudo_harmful", 20), np.arange(20))


def test_one_family_shows_no_spread() -> None:
    margins, refused, labels, _ = SEPARATED
    with pytest.raises(BoundaryError, match="1 prompt family"):
        fit_boundary(margins, refused, labels, np.zeros(7))


def test_inputs_that_make_no_sense_are_raised_by_kind() -> None:
    margins, refused, labels, families = SEPARATED
    with pytest.raises(ActivationError, match="1 margins are not finite"):
        boundary_report(np.array([np.nan, *margins[1:]]), refused, labels, families)
    with pytest.raises(ActivationError, match="shapes"):
        boundary_report(margins[1:], refused, labels, families)
    with pytest.raises(BoundaryError, match="bool"):
        boundary_report(margins, np.array(["refusal"] * 7), labels, families)
    with pytest.raises(PromptError, match="unsafe"):
        boundary_report(margins, refused, np.array(["unsafe"] * 7), families)


def test_separated_refusals_give_the_gap() -> None:
    boundary = fit_boundary(*SEPARATED)
    assert (boundary.b, boundary.b_low, boundary.b_high) == pytest.approx((0.1, -0.2, 0.4))
    assert boundary.k is None and boundary.separated
    assert (boundary.n, boundary.n_refused) == (7, 4)


def test_separated_replicates_spread_over_their_gap() -> None:
    draws = fit_boundary(*SEPARATED).draws.b
    assert draws.min() < 0.0 < 0.2 < draws.max()
    assert np.unique(draws).size > 400  # middles of gaps would be a dozen values


def test_separation_by_one_shared_margin_is_not_separation() -> None:
    rows = [
        (-1.0, False, "harmless"),
        (0.0, False, "pseudo_harmful"),
        (0.0, True, "pseudo_harmful"),
        (1.0, True, "harmful"),
    ]
    boundary = fit_boundary(*by_hand(rows * 3))
    assert not boundary.separated and boundary.k is not None
    assert boundary.b == pytest.approx(0.0, abs=1e-6)


def test_harm_and_refusal_separated_apart_give_a_misalignment() -> None:
    report = boundary_report(*SEPARATED)
    assert report.b_oracle == pytest.approx(0.7)
    assert report.misalignment == pytest.approx(0.6)
    assert report.misalignment_low is not None and report.misalignment_high is not None
    assert report.misalignment_low < 0.6 < report.misalignment_high
    assert report.auc == 1.0 and report.k is None and report.reason is None


def test_intervals_cover_the_truth() -> None:
    """95% nominal over 160 drawn sets, for b and for misalignment; binomial scatter is 2.8."""
    margins, _, labels, families = prompts(200_000, 0.0, 1.0, seed=7)
    oracle = fit_oracle_boundary(margins, labels, families, n_bootstrap=2).b
    covered = np.zeros(2)
    for seed in range(160):
        report = boundary_report(*prompts(120, -0.2, 4.0, seed=1000 + seed), n_bootstrap=200, seed=seed)
        assert report.b_low is not None and report.b_high is not None
        assert report.misalignment_low is not None and report.misalignment_high is not None
        covered += (
            report.b_low <= -0.2 <= report.b_high,
            report.misalignment_low <= oracle + 0.2 <= report.misalignment_high,
        )
    assert (covered >= 143).all() and (covered <= 160).all()
    assert covered.min() < 160


def test_families_widen_the_interval() -> None:
    margins, refused, labels, families = prompts(60, 0.2, 3.0, seed=8)
    repeated = [np.repeat(column, 5) for column in (margins, refused, labels, families)]
    clustered = fit_boundary(*repeated)
    alone = fit_boundary(*repeated[:3], np.arange(300))
    assert clustered.b_high - clustered.b_low > 1.5 * (alone.b_high - alone.b_low)


def test_misalignment_is_bootstrapped_jointly() -> None:
    """Refusals that follow harm: b* and b move together, their difference less than either apart."""
    margins, _, labels, families = prompts(150, 0.0, 1.0, seed=9)
    refused = labels == "harmful"
    refused[np.flatnonzero(labels == "pseudo_harmful")[:6]] = True
    report = boundary_report(margins, refused, labels, families)
    assert report.refusal is not None and report.oracle is not None
    assert np.corrcoef(report.refusal.draws.b, report.oracle.draws.b)[0, 1] > 0.6
    assert report.misalignment == report.oracle.b - report.refusal.b
    expected = np.quantile(report.oracle.draws.b - report.refusal.draws.b, [0.025, 0.975])
    assert (report.misalignment_low, report.misalignment_high) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("side", [1, -1], ids=["none refused", "all refused"])
def test_unidentified_replicates_are_counted_and_widen_the_interval(side: int) -> None:
    """Two responses of 40 differ: 13% of the replicates miss both, so b may lie at their edge."""
    margins, differs = np.linspace(-2.0, 2.0, 40), np.zeros(40, bool)
    differs[[-1, -3]] = True
    refused = differs if side == 1 else ~differs[::-1]
    boundary = fit_boundary(margins, refused, np.repeat("pseudo_harmful", 40), np.arange(40))
    assert 50 < boundary.draws.n_unidentified < 200
    assert (boundary.draws.b == 2.0 * side).sum() >= 50
    assert (boundary.draws.b * side > 1.0).mean() > 0.95
    assert (boundary.b_high if side == 1 else boundary.b_low) == 2.0 * side


def test_the_seed_decides_the_interval() -> None:
    rows = prompts(80, 0.0, 3.0, seed=11)
    assert fit_boundary(*rows, seed=1) == fit_boundary(*rows, seed=1)
    assert fit_boundary(*rows, seed=1).b_low != fit_boundary(*rows, seed=2).b_low


def test_five_languages_take_seconds() -> None:
    rows = prompts(200, 0.1, 4.0, seed=12)
    boundary_report(*rows, n_bootstrap=2)
    start = time.process_time()
    for seed in range(5):
        boundary_report(*rows, n_bootstrap=500, seed=seed)
    assert time.process_time() - start < 6.0  # 0.7 s on a quiet core


def test_report_fills_every_column_of_its_table() -> None:
    columns = boundary_report(*prompts(200, 0.1, 4.0, seed=13)).columns()
    keys = {"model_id", "variant", "direction_id", "language", "kind", "kind_reason"}
    assert set(columns) | keys == set(TABLES["boundaries"].names)
    assert columns.pop("reason") is None
    assert None not in columns.values()


def test_report_takes_the_auc_within_pseudo_harmful() -> None:
    margins, refused, labels, families = prompts(300, 0.1, 2.0, seed=19)
    within = labels == "pseudo_harmful"
    report = boundary_report(margins, refused, labels, families, n_bootstrap=50)
    assert report.auc == pytest.approx(roc_auc_score(refused[within], margins[within]))


def test_report_says_why_a_part_is_missing_and_keeps_the_rest() -> None:
    margins, _, labels, families = prompts(100, 0.0, 3.0, seed=14)
    report = boundary_report(margins, np.zeros(100, bool), labels, families)
    assert report.b is report.b_low is report.k is report.misalignment is report.auc is None
    assert report.b_oracle is not None and report.b_oracle_low is not None
    assert report.reason is not None
    assert "0 of 100 refused" in report.reason and "pseudo_harmful: auc" in report.reason
    assert (report.n, report.n_refused) == (100, 0)


def test_report_without_harmful_prompts_has_no_oracle() -> None:
    margins, refused, labels, families = prompts(200, 0.0, 3.0, seed=15, shares=(0.0, 0.5, 0.5))
    report = boundary_report(margins, refused, labels, families)
    assert report.b is not None and report.b_oracle is None and report.misalignment is None
    assert report.reason is not None and "0 of 200 harmful" in report.reason


def test_two_groups_half_point() -> None:
    """A fit by hand: three of four refuse above, one of four below, half way between."""
    margins = np.repeat([-1.0, 1.0], 4)
    refused = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
    boundary: Boundary = fit_boundary(margins, refused, np.repeat("pseudo_harmful", 8), np.arange(8))
    assert boundary.b == pytest.approx(0.0, abs=1e-7)
    assert boundary.k == pytest.approx(logit(3.5 / 5))
