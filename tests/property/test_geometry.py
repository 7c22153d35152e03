"""What must hold whatever the numbers: of margins in their space, of boundaries over margins."""

import numpy as np
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, sampled_from
from scipy.special import expit
from scipy.stats import ortho_group

from rass_core.errors import BoundaryError
from rass_core.probe.boundary import boundary_report, fit_boundary
from rass_core.probe.directions import (
    DIRECTION_METHODS,
    cosine,
    difference_in_means,
    margin,
    orthogonal_component,
    orthogonalise,
)
from rass_core.stats.agreement import auc
from rass_core.stats.firth import firth_logistic
from rass_core.stats.intervals import wilson

seeds = integers(0, 9999)
methods = sampled_from(sorted(DIRECTION_METHODS))
each = settings(deadline=None, max_examples=30)


def clouds(seed: int, n: int, d_model: int) -> tuple[np.ndarray, np.ndarray]:
    """Harmful and harmless rows with a shift that no sampling noise undoes."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(size=d_model)
    shift *= 6.0 / np.linalg.norm(shift)
    return rng.normal(size=(n, d_model)) + shift, rng.normal(size=(n, d_model))


def margins_of(rows: np.ndarray, v: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    return margin(rows, v, positive.mean(axis=0), negative.mean(axis=0))


@each
@given(seed=seeds, n=integers(1, 8), d_model=integers(1, 16))
def test_a_planted_shift_is_recovered(seed: int, n: int, d_model: int) -> None:
    positive, base = clouds(seed, n, d_model)
    shift = positive[0] - base[0]
    np.testing.assert_allclose(difference_in_means(base + shift, base), shift, atol=1e-12)


@each
@given(seed=seeds, method=methods)
def test_every_method_finds_a_large_planted_shift(seed: int, method: str) -> None:
    rng = np.random.default_rng(seed)
    base, shift = rng.normal(size=(120, 5)), rng.normal(size=5)
    shift *= 20.0 / np.linalg.norm(shift)
    v = DIRECTION_METHODS[method](base + shift, rng.normal(size=(120, 5)))
    assert cosine(v, shift) > 0.9


@each
@given(seed=seeds, n=integers(8, 20), d_model=integers(2, 30), method=methods)
def test_class_means_have_margins_one_and_minus_one(seed: int, n: int, d_model: int, method: str) -> None:
    positive, negative = clouds(seed, n, d_model)
    means = np.stack([positive.mean(axis=0), negative.mean(axis=0)])
    v = DIRECTION_METHODS[method](positive, negative)
    np.testing.assert_allclose(margins_of(means, v, positive, negative), [1.0, -1.0], atol=1e-9)


@each
@given(seed=seeds, d_model=integers(2, 12), scale=floats(0.01, 100.0), length=floats(0.01, 100.0))
def test_margins_do_not_see_rotation_translation_or_scale(seed: int, d_model: int, scale: float, length: float) -> None:
    positive, negative = clouds(seed, 9, d_model)
    rng = np.random.default_rng(seed)
    rotation = ortho_group.rvs(d_model, random_state=rng)
    offset = rng.normal(size=d_model) * 10.0
    v = difference_in_means(positive, negative) + 0.1 * rng.normal(size=d_model)
    moved = [scale * rows @ rotation + offset for rows in (positive, negative)]
    np.testing.assert_allclose(
        margins_of(moved[0], length * v @ rotation, moved[0], moved[1]),
        margins_of(positive, v, positive, negative),
        atol=1e-7,
    )


@each
@given(seed=seeds, method=sampled_from(["difference_in_means", "pca", "lda"]), scale=floats(0.1, 10.0))
def test_directions_turn_with_the_space(seed: int, method: str, scale: float) -> None:
    """The logistic one does not: it standardises each feature of the basis it is given."""
    positive, negative = clouds(seed, 30, 6)
    rotation = ortho_group.rvs(6, random_state=np.random.default_rng(seed))
    moved = DIRECTION_METHODS[method](scale * positive @ rotation + 3.0, scale * negative @ rotation + 3.0)
    np.testing.assert_allclose(
        moved, scale * DIRECTION_METHODS[method](positive, negative) @ rotation, atol=1e-6 * scale
    )


@each
@given(seed=seeds, d_model=integers(2, 40))
def test_orthogonalise_is_full_and_done_once(seed: int, d_model: int) -> None:
    v, against = np.random.default_rng(seed).normal(size=(2, d_model))
    left = orthogonalise(v, against)
    assert abs(cosine(left, against)) < 1e-10
    np.testing.assert_allclose(orthogonalise(left, against), left, atol=1e-12)
    np.testing.assert_allclose(orthogonalise(v + 3.0 * against, -2.0 * against), left, atol=1e-9)


@each
@given(seed=seeds, d_model=integers(3, 20), alpha=floats(-50.0, 50.0))
def test_the_orthogonal_component_does_not_see_the_direction(seed: int, d_model: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    x, v = rng.normal(size=(15, d_model)), rng.normal(size=d_model)
    component = orthogonal_component(x, v)
    np.testing.assert_allclose(component.scores(x + alpha * v), component.scores(x), atol=1e-8)


# --- boundaries --------------------------------------------------------------------------------


MEANS = {"harmful": 1.0, "harmless": -1.0, "pseudo_harmful": 0.0}


def responses(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.resize(list(MEANS), n)
    margins = np.resize(list(MEANS.values()), n) + 0.5 * rng.normal(size=n)
    return margins, rng.random(n) < expit(3.0 * margins), labels, np.arange(n) // 2


@each
@given(seed=seeds)
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    rows = responses(seed)
    order = np.random.default_rng(seed).permutation(60)
    first = boundary_report(*rows, n_bootstrap=40).columns()
    second = boundary_report(*(column[order] for column in rows), n_bootstrap=40).columns()
    assert first.pop("reason") == second.pop("reason")
    np.testing.assert_allclose(list(first.values()), list(second.values()), atol=1e-6)  # type: ignore[arg-type]


@each
@given(seed=seeds, shift=floats(-5.0, 5.0), scale=floats(0.1, 10.0))
def test_the_boundary_moves_with_the_margins(seed: int, shift: float, scale: float) -> None:
    margins, *rest = responses(seed)
    first = fit_boundary(margins, *rest, n_bootstrap=40)
    second = fit_boundary(scale * margins + shift, *rest, n_bootstrap=40)
    expected = [scale * end + shift for end in (first.b, first.b_low, first.b_high)]
    np.testing.assert_allclose([second.b, second.b_low, second.b_high], expected, atol=1e-5 * scale)
    assert first.k is not None and second.k is not None
    np.testing.assert_allclose(second.k, first.k / scale, rtol=1e-5)


@each
@given(seed=seeds)
def test_swapped_refusals_swap_the_sign_of_k_and_are_refused(seed: int) -> None:
    margins, refused, labels, families = responses(seed)
    weights = np.ones((1, 60))
    np.testing.assert_allclose(
        firth_logistic(margins, ~refused, weights), -firth_logistic(margins, refused, weights), atol=1e-6
    )
    try:
        fit_boundary(margins, ~refused, labels, families, n_bootstrap=40)
    except BoundaryError as error:
        assert "k = " in str(error)
    else:
        raise AssertionError("a falling curve was taken for a boundary")


@each
@given(seed=seeds, n=integers(9, 40), cut=integers(2, 4))
def test_a_threshold_is_found_within_its_gap(seed: int, n: int, cut: int) -> None:
    margins = np.random.default_rng(seed).normal(size=n)
    threshold = np.sort(margins)[n - cut - 1]
    boundary = fit_boundary(margins, margins > threshold, np.resize(list(MEANS), n), np.arange(n), 200)
    assert boundary.separated and boundary.k is None
    assert boundary.b_low == threshold < boundary.b < boundary.b_high
    assert not ((margins > boundary.b_low) & (margins < boundary.b_high)).any()


@each
@given(seed=seeds, n=integers(2, 30))
def test_auc_turns_over_with_the_classes_and_sees_only_order(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    scores, is_positive = rng.integers(-3, 4, n), rng.permutation(np.arange(n) % 2 == 0)
    value = auc(scores, is_positive)
    assert 0.0 <= value <= 1.0
    np.testing.assert_allclose(auc(scores, ~is_positive), 1.0 - value)
    np.testing.assert_allclose(auc(np.exp(scores), is_positive), value)


@each
@given(n=integers(1, 500), share=floats(0.0, 1.0))
def test_wilson_holds_its_rate_and_mirrors(n: int, share: float) -> None:
    successes = round(share * n)
    value, low, high = wilson(successes, n)
    assert 0.0 <= low <= value <= high <= 1.0
    np.testing.assert_allclose(wilson(n - successes, n), (1.0 - value, 1.0 - high, 1.0 - low), atol=1e-12)
