"""Where over-refused prompts lie, AUCs with intervals, and which kind of misalignment the intervals show."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from rass_core.errors import BoundaryError
from rass_core.probe.boundary import BoundaryEstimate, boundary_report
from rass_core.probe.harm_types import Estimate
from rass_core.probe.misalignment import (
    BOTH,
    EARLY,
    NEITHER,
    OTHER_AXIS,
    auc_estimate,
    blocks_of,
    gap_estimate,
    is_misplaced,
    kind_of_misalignment,
    newcombe,
    paired_auc,
    share_estimates,
    split_over_refused,
)
from rass_core.stats.agreement import auc

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def scored(n: int, shift: float, seed: int = 0) -> Columns:
    """Scores, labels and two languages; harmful prompts lie `shift` higher."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(["harmful", "pseudo_harmful"], n)
    languages = rng.choice(["de", "en"], n)
    return rng.normal(size=n) + shift * (labels == "harmful"), labels, languages


def every(n: int) -> np.ndarray:
    return np.ones(n, bool)


def figure(low: float | None, high: float | None = 1.0, reason: str | None = None) -> Estimate:
    return (
        Estimate(low, low, high, 50, reason=reason) if low is not None else Estimate(None, None, None, 0, None, reason)
    )


# --- AUC over blocks ---------------------------------------------------------------------------


def test_one_block_is_the_plain_auc_with_ties_counting_half() -> None:
    scores, labels, _ = scored(80, 0.7)
    scores = np.round(scores, 1)
    blocks = blocks_of(scores, labels, np.zeros(80), every(80))
    assert paired_auc(blocks, np.ones((1, 80)))[0] == pytest.approx(auc(scores, labels == "harmful"))


def test_pairs_of_two_languages_are_not_compared() -> None:
    """A constant added to one language changes no AUC; over all pairs it would."""
    scores, labels, languages = scored(200, 1.0)
    moved = scores + 9.0 * (languages == "en")
    values = [
        paired_auc(blocks_of(each, labels, languages, every(200)), np.ones((1, 200)))[0] for each in (scores, moved)
    ]
    assert values[0] == pytest.approx(values[1])
    assert auc(moved, labels == "harmful") < values[0] - 0.1


def test_counts_are_copies_of_rows_and_no_pair_is_no_auc() -> None:
    scores, labels, _ = scored(30, 0.5)
    counts = np.random.default_rng(1).integers(0, 4, (3, 30)).astype(float)
    counts[2, labels == "harmful"] = 0.0
    found = paired_auc(blocks_of(scores, labels, np.zeros(30), every(30)), counts)
    for row in (0, 1):
        repeated = np.repeat(np.arange(30), counts[row].astype(int))
        assert found[row] == pytest.approx(auc(scores[repeated], labels[repeated] == "harmful"))
    assert np.isnan(found[2])


def test_the_interval_of_an_auc_covers_the_truth() -> None:
    """Two normals one apart: AUC 0.7602. Nominal coverage is 95%."""
    hits = 0
    for seed in range(60):
        scores, labels, _ = scored(80, 1.0, seed)
        found = auc_estimate(blocks_of(scores, labels, np.zeros(80), every(80)), np.arange(80), 200, seed)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.7602 <= found.high
    assert hits >= 52


def test_perfect_order_is_not_certainty() -> None:
    labels = np.repeat(["pseudo_harmful", "harmful"], 20)
    found = auc_estimate(blocks_of(np.arange(40.0), labels, np.zeros(40), every(40)), np.arange(40), 100, 0)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low is not None
    assert 0.75 < found.low < 0.97
    low, high = newcombe(0.0, 20, 20)
    assert (low, high) == pytest.approx((0.0, 1.0 - found.low), abs=1e-6)


def test_families_widen_the_interval() -> None:
    scores, labels, _ = scored(60, 0.8)
    repeated, families = np.repeat(np.arange(60), 8), np.repeat(np.arange(60), 8)
    blocks = blocks_of(scores[repeated], labels[repeated], np.zeros(480), every(480))
    by_family = auc_estimate(blocks, families, 300, 0)
    by_row = auc_estimate(blocks, np.arange(480), 300, 0)
    assert by_family.n_families == 60
    assert by_family.high - by_family.low > 1.8 * (by_row.high - by_row.low)  # type: ignore[operator]


def test_an_auc_over_one_class_is_none_with_a_reason() -> None:
    found = auc_estimate(
        blocks_of(np.arange(4.0), np.repeat(["harmful"], 4), np.zeros(4), every(4)), np.arange(4), 50, 0
    )
    assert (found.value, found.low, found.n) == (None, None, 0)
    assert found.reason is not None
    one_family = blocks_of(np.arange(4.0), np.array(["harmful", "pseudo_harmful"] * 2), np.zeros(4), every(4))
    assert "1 prompt family" in str(auc_estimate(one_family, np.zeros(4), 50, 0).reason)


def test_the_gap_is_bootstrapped_jointly() -> None:
    """A score against itself plus a little: each AUC is uncertain, their difference is not."""
    scores, labels, _ = scored(100, 0.8)
    nearly = scores + 0.02 * np.random.default_rng(3).normal(size=100)
    parts = [blocks_of(each, labels, np.zeros(100), every(100)) for each in (scores, nearly)]
    gap = gap_estimate(parts[0], parts[1], np.arange(100), 300, 0)
    alone = auc_estimate(parts[0], np.arange(100), 300, 0)
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low <= 0 <= gap.high or abs(gap.value or 0) < 0.02
    assert gap.high - gap.low < 0.3 * (alone.high - alone.low)  # type: ignore[operator]


def test_the_gap_refuses_scores_of_different_prompts() -> None:
    scores, labels, _ = scored(40, 0.8)
    some = every(40)
    some[0] = False
    parts = [blocks_of(scores, labels, np.zeros(40), usable) for usable in (every(40), some)]
    with pytest.raises(BoundaryError, match="different prompts"):
        gap_estimate(parts[0], parts[1], np.arange(40), 50, 0)


# --- where over-refused prompts lie ------------------------------------------------------------


def fitted(seed: int = 0, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray, BoundaryEstimate]:
    """Prompts that are refused from margin 0 on and truly harmful from about 0.6 on."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(["harmful", "harmless", "pseudo_harmful"], n)
    means = {"harmful": 1.2, "harmless": -1.0, "pseudo_harmful": 0.2}
    margins = np.array([means[label] for label in labels]) + 0.5 * rng.normal(size=n)
    refused = rng.random(n) < expit(6 * margins)
    families = np.arange(n) // 2
    return margins, refused & (labels != "harmful"), families, boundary_report(margins, refused, labels, families, 200)


def test_the_three_shares_are_those_counted_by_hand_and_sum_to_one() -> None:
    margins, over_refused, families, report = fitted()
    below, band, beyond = share_estimates([split_over_refused(margins, over_refused, families, report, 200, 0)])
    here = margins[over_refused]
    assert report.b is not None
    assert report.b_oracle is not None
    assert band.value == pytest.approx(((here > report.b) & (here <= report.b_oracle)).mean())
    assert beyond.value == pytest.approx((here > report.b_oracle).mean())
    assert below.value + band.value + beyond.value == pytest.approx(1.0)  # type: ignore[operator]
    assert band.n == over_refused.sum()


def test_the_interval_of_a_share_carries_the_uncertainty_of_the_boundaries() -> None:
    """With the replicates of b spread out, the interval grows though the counts do not change."""
    margins, over_refused, families, report = fitted()
    assert report.refusal is not None
    draws = report.refusal.draws
    apart = draws._replace(b=report.refusal.b + np.linspace(-1.0, 1.0, len(draws.b)))
    unsure = replace(report, refusal=replace(report.refusal, draws=apart))
    known, wide = (
        share_estimates([split_over_refused(margins, over_refused, families, each, 200, 0)])[1]
        for each in (report, unsure)
    )
    assert wide.value == known.value
    assert wide.low < known.low - 0.2  # type: ignore[operator]


def test_replicates_follow_a_pooled_boundary() -> None:
    margins, over_refused, families, report = fitted()
    assert report.b is not None
    pooled = replace(report, b=report.b + 0.3)
    below = share_estimates([split_over_refused(margins, over_refused, families, pooled, 200, 0)])[0]
    assert below.low < below.value < below.high  # type: ignore[operator]
    assert below.low > 0.1  # type: ignore[operator]


def test_languages_together_weigh_by_their_over_refused_prompts() -> None:
    splits = [split_over_refused(*fitted(seed, n), 200, 0) for seed, n in ((0, 400), (1, 100))]
    together = share_estimates(splits)[1]
    counts = sum(split.counts for split in splits)
    assert together.value == pytest.approx(counts[1] / counts.sum())
    assert together.n_families == sum(split.n_families for split in splits)


def test_no_over_refusal_and_no_boundary_are_raised() -> None:
    margins, over_refused, families, report = fitted()
    with pytest.raises(BoundaryError, match="no over-refused"):
        split_over_refused(margins, np.zeros_like(over_refused), families, report, 200, 0)
    nothing = boundary_report(margins, np.zeros(len(margins), bool), np.repeat("harmful", len(margins)), families, 50)
    with pytest.raises(BoundaryError, match="0 of 400 refused"):
        split_over_refused(margins, over_refused, families, nothing, 50, 0)


# --- the kinds ---------------------------------------------------------------------------------

SURE, UNSURE = Estimate(0.5, 0.3, 0.7, 50), Estimate(0.5, -0.1, 0.7, 50)
UNKNOWN = Estimate(None, None, None, 50)


@pytest.mark.parametrize(
    ("misalignment", "band", "beyond", "gap", "inside", "kind"),
    [
        (SURE, 0.6, 0.02, 0.00, 0.0, EARLY),
        (SURE, 0.02, 0.6, 0.30, 0.1, OTHER_AXIS),
        (SURE, 0.3, 0.3, 0.30, 0.1, BOTH),
        (SURE, 0.02, 0.02, 0.00, 0.0, NEITHER),
        (UNSURE, 0.6, 0.02, 0.00, 0.0, NEITHER),  # the misalignment may be chance
        (SURE, 0.05, 0.6, 0.30, 0.1, OTHER_AXIS),  # the band may hold next to nothing
        (SURE, 0.6, 0.02, 0.30, 0.1, EARLY),  # nothing lies beyond b*, whatever the gap
        (SURE, 0.02, 0.6, 0.04, 0.1, NEITHER),  # the gap may be small
        (SURE, 0.02, 0.6, 0.30, -0.01, NEITHER),  # inside a source there may be no gap
    ],
)
def test_the_kind_goes_by_the_lower_ends(
    misalignment: Estimate, band: float, beyond: float, gap: float, inside: float, kind: str
) -> None:
    found = kind_of_misalignment(misalignment, figure(band), figure(beyond), figure(gap), figure(inside))
    assert found[0] == kind
    assert (found[1] is None) == (kind != NEITHER)


def test_what_fell_short_is_said_with_its_interval() -> None:
    gap = Estimate(0.15, 0.012, 0.29, 87)
    kind, reason = kind_of_misalignment(SURE, figure(0.05), figure(0.6), gap, figure(-0.07))
    assert kind == NEITHER
    assert reason == (
        f"{EARLY}: share in the band 0.05 [0.05, 1.00] is not all above 0.1; "
        f"{OTHER_AXIS}: gap 0.15 [0.01, 0.29] is not all above 0.05, "
        "gap inside sources -0.07 [-0.07, 1.00] is not all above 0"
    )


def test_what_cannot_be_tested_is_said() -> None:
    unknown = figure(None, reason="b* is not identified")
    no_axis, no_source = figure(None, reason="no harm axis"), figure(None, reason="one source")
    kind, reason = kind_of_misalignment(UNKNOWN, unknown, unknown, no_axis, no_axis)
    assert kind is None
    assert "b* is not identified" in str(reason)
    assert "no harm axis" in str(reason)
    kind, reason = kind_of_misalignment(UNKNOWN, unknown, unknown, figure(0.3), no_source)
    assert kind == OTHER_AXIS
    assert "not tested inside a source: one source" in str(reason)
    kind, reason = kind_of_misalignment(SURE, figure(0.6), figure(0.2), no_axis, no_axis)
    assert kind == EARLY
    assert reason == f"{OTHER_AXIS}: not tested: no harm axis"


def test_a_model_that_over_refuses_nothing_has_neither_kind() -> None:
    nothing = figure(None, reason="no over-refused prompt in the test split")
    kind, _ = kind_of_misalignment(SURE, nothing, nothing, figure(0.3), figure(0.2))
    assert kind == NEITHER


def test_a_misplaced_prompt_is_refused_by_its_margin_and_benign_on_the_harm_axis() -> None:
    assert is_misplaced(0.5, 0.2, -0.4)
    assert not is_misplaced(0.1, 0.2, -0.4)
    assert not is_misplaced(0.5, 0.2, 0.1)
    assert not any(is_misplaced(*known) for known in ((None, 0.2, -1.0), (0.5, None, -1.0), (0.5, 0.2, None)))
