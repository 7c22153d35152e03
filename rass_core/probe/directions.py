"""Directions in the residual stream, and where a prompt lies along them.

Rows are residual streams at one (layer, position), float64 inside whatever comes in. Every method
returns its direction at the length that makes α = 1 carry the negative class mean to the positive
one along it, `⟨v, v⟩ = ⟨μ₊ − μ₋, v⟩`: the length difference in means has of itself. So one α
means the same whatever the method, and positives always lie higher.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression

from rass_core.errors import ActivationError
from rass_core.stats.arrays import Array

Streams = npt.NDArray[np.floating]

MIN_SHRINKAGE = 1e-3
"""Ledoit-Wolf may answer 0 on a handful of rows, and the covariance would be singular."""
NEGLIGIBLE = 1e-10
"""Relative length below which what remains of a vector is rounding."""


def _rows(rows: Streams, name: str) -> Array:
    matrix = np.asarray(rows, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape or not np.isfinite(matrix).all():
        raise ActivationError(
            f"{name}: need finite residual streams (n >= 1, d_model), got {matrix.shape}; extract them again"
        )
    return matrix


def _vector(vector: Streams, name: str, d_model: int | None = None) -> Array:
    array = np.asarray(vector, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all() or d_model not in (None, array.size):
        raise ActivationError(
            f"{name}: need a finite vector ({d_model or 'd_model'},), got {array.shape}; "
            "use vectors and rows of one model and layer"
        )
    return array


def _pair(positive: Streams, negative: Streams) -> tuple[Array, Array]:
    high, low = _rows(positive, "positive"), _rows(negative, "negative")
    if high.shape[1] != low.shape[1]:
        raise ActivationError(
            f"positive and negative: d_model differs ({high.shape[1]} and {low.shape[1]}); "
            "use rows of one model and layer"
        )
    return high, low


def _to_length(direction: Array, shift: Array, method: str) -> Array:
    """Return the projection of the shift between the class means onto the direction's line."""
    length = np.linalg.norm(direction)
    if length == 0.0:
        raise ActivationError(f"{method}: the classes do not differ; give more rows or other classes")
    unit = direction / length
    along = unit @ shift
    if abs(along) <= NEGLIGIBLE * np.linalg.norm(shift):
        raise ActivationError(
            f"{method}: the class means do not differ along it; use another method, layer or position"
        )
    return np.asarray(along * unit)


def _first_component(centred: Array) -> Array:
    """Return the unit first principal axis (d_model,) of centred rows, sign free.

    It comes from the smaller Gram matrix, as d_model is often far above the number of rows.
    """
    n, d_model = centred.shape
    size = min(n, d_model) - 1
    gram = centred.T @ centred if d_model <= n else centred @ centred.T
    leading = scipy.linalg.eigh(gram, subset_by_index=[size, size])[1][:, 0]
    axis = leading if d_model <= n else centred.T @ leading
    length = np.linalg.norm(axis)
    return np.asarray(axis / length) if length > 0.0 else np.zeros(d_model)


def difference_in_means(positive: Streams, negative: Streams) -> Array:
    """Return mean(positive) - mean(negative).

    Args:
        positive: Rows of the class the direction points to, e.g. harmful, (n_positive, d_model).
        negative: Rows of the other class, (n_negative, d_model).

    Returns:
        (d_model,), float64, activation units; not normalised. Zero where the means agree.

    Raises:
        ActivationError: An empty class, unequal d_model, or a value that is not finite.

    Source: Arditi et al. 2024 (arXiv 2406.11717), section 2.3.
    """
    high, low = _pair(positive, negative)
    return np.asarray(high.mean(axis=0) - low.mean(axis=0))


def pca_direction(positive: Streams, negative: Streams) -> Array:
    """Return the first principal axis of both classes about the midpoint of their means.

    Each class has the same total weight, so unequal numbers do not turn the axis.

    Args, returns: As `difference_in_means`; length and sign as the module says.

    Raises:
        ActivationError: As there, or the axis does not separate the class means.

    Source: Zou et al. 2023 (arXiv 2310.01405), section 3.1, over classes rather than pairs.
    """
    high, low = _pair(positive, negative)
    shift = difference_in_means(high, low)
    midpoint = low.mean(axis=0) + shift / 2
    weighted = np.vstack([(high - midpoint) / np.sqrt(len(high)), (low - midpoint) / np.sqrt(len(low))])
    return _to_length(_first_component(weighted), shift, "pca")


def logistic_direction(positive: Streams, negative: Streams, inverse_penalty: float = 1.0) -> Array:
    """Return the weights of an L2-regularised logistic regression, classes balanced.

    It is fitted on features divided by their deviation within classes, so that a feature's unit
    does not decide how strongly it is shrunk (the deviation over both classes would shrink those
    that separate them); the weights are then put back into activation space, where `⟨x, v⟩`
    orders prompts as the regression does.

    Args: As `difference_in_means`, and inverse_penalty: > 0, small shrinks strongly.

    Returns:
        As `difference_in_means`; length and sign as the module says.

    Raises:
        ActivationError: As there, or the regression found no difference.
    """
    high, low = _pair(positive, negative)
    rows = np.vstack([high, low])
    scale = np.vstack([high - high.mean(axis=0), low - low.mean(axis=0)]).std(axis=0)
    scale[scale == 0.0] = 1.0
    is_positive = np.repeat([1, 0], [len(high), len(low)])
    model = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=2000)
    model.fit((rows - rows.mean(axis=0)) / scale, is_positive)
    return _to_length(model.coef_[0] / scale, difference_in_means(high, low), "logistic")


def lda_direction(positive: Streams, negative: Streams) -> Array:
    """Return Fisher's discriminant `Σ⁻¹(μ₊ − μ₋)` with a shrunken within-class covariance.

    Σ is drawn towards a multiple of the identity by the Ledoit-Wolf coefficient.

    Args, returns: As `difference_in_means`; length and sign as the module says.

    Raises:
        ActivationError: As there, or the class means agree.

    Source: Ledoit and Wolf 2004, J. Multivariate Analysis 88(2).
    """
    high, low = _pair(positive, negative)
    shift = difference_in_means(high, low)
    within = np.vstack([high - high.mean(axis=0), low - low.mean(axis=0)])
    n, d_model = within.shape
    mean_variance = float((within**2).sum() / (n * d_model))
    if mean_variance == 0.0:
        return _to_length(shift, shift, "lda")
    shrinkage = max(float(ledoit_wolf_shrinkage(within, assume_centered=True)), MIN_SHRINKAGE)
    ridge, scale = shrinkage * mean_variance, (1.0 - shrinkage) / n
    if d_model <= n:
        covariance = scale * within.T @ within + ridge * np.eye(d_model)
        solved = scipy.linalg.solve(covariance, shift, assume_a="pos")
    else:  # Woodbury: a system of n rows instead of d_model
        gram = scale * within @ within.T + ridge * np.eye(n)
        solved = shift - scale * within.T @ scipy.linalg.solve(gram, within @ shift, assume_a="pos")
    return _to_length(solved, shift, "lda")


DIRECTION_METHODS: dict[str, Callable[[Streams, Streams], Array]] = {
    "difference_in_means": difference_in_means,
    "pca": pca_direction,
    "logistic": logistic_direction,
    "lda": lda_direction,
}
"""What a configuration may name, each `(positive, negative) -> (d_model,)`."""


def cosine(u: Streams, v: Streams) -> float:
    """Return the cosine of two vectors (d_model,), in [-1, 1].

    Raises:
        ActivationError: Unequal shapes, a zero vector, or a value that is not finite.
    """
    left = _vector(u, "u")
    right = _vector(v, "v", left.size)
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    if lengths == 0.0:
        raise ActivationError("cosine: a zero vector has no direction; check the classes it came from")
    return float(np.clip(left @ right / lengths, -1.0, 1.0))


def orthogonalise(v: Streams, against: Streams) -> Array:
    """Return v without its component along `against`, removed in full.

    Args:
        v: The direction to clean, (d_model,).
        against: The direction to remove, (d_model,), any length but 0.

    Returns:
        (d_model,), float64, units of v, orthogonal to `against`.

    Raises:
        ActivationError: Unequal shapes, a zero `against`, or nothing is left of v.
    """
    vector = _vector(v, "v")
    other = _vector(against, "against", vector.size)
    if not other.any():
        raise ActivationError("orthogonalise: against is zero; check the classes it came from")
    unit = other / np.linalg.norm(other)
    left = vector - (vector @ unit) * unit
    left -= (left @ unit) * unit  # once more: the first pass leaves rounding behind
    if np.linalg.norm(left) <= NEGLIGIBLE * np.linalg.norm(vector):
        raise ActivationError("orthogonalise: nothing of v is left; it points along `against`")
    return np.asarray(left)


def margin(x: Streams, v: Streams, mean_positive: Streams, mean_negative: Streams) -> Array:
    """Return `2⟨x − μ, v⟩ / ⟨μ₊ − μ₋, v⟩`, μ the midpoint of the class means.

    Args:
        x: Residual streams of prompts, (n, d_model).
        v: A direction, (d_model,); its length does not matter.
        mean_positive: μ₊, mean of the harmful class, of the prompts' own language or of all, (d_model,).
        mean_negative: μ₋, mean of the harmless class, (d_model,).

    Returns:
        (n,), float64, dimensionless: −1 at the harmless mean, +1 at the harmful mean.

    Raises:
        ActivationError: Unequal d_model, a value that is not finite, or a denominator that is
            not positive: along v the harmful mean does not lie above the harmless one.
    """
    rows = _rows(x, "x")
    direction = _vector(v, "v", rows.shape[1])
    high = _vector(mean_positive, "mean_positive", rows.shape[1])
    low = _vector(mean_negative, "mean_negative", rows.shape[1])
    denominator = float((high - low) @ direction)
    scale = float(np.linalg.norm(high - low) * np.linalg.norm(direction))
    if denominator <= NEGLIGIBLE * scale:
        raise ActivationError(
            f"margin: <mean_positive - mean_negative, v> is {denominator:.3g}, need > 0; "
            "use a direction along which the harmful mean lies above the harmless mean"
        )
    return np.asarray(2.0 * ((rows - (high + low) / 2) @ direction) / denominator)


@dataclass(frozen=True)
class OrthogonalComponent:
    """The axis along which prompts differ most once a direction is taken out of them."""

    centre: Array
    """(d_model,), mean of the rows it was fitted on."""
    axis: Array
    """(d_model,), unit length, orthogonal to the direction."""

    def scores(self, x: Streams) -> Array:
        """Return where rows (n, d_model), those it was fitted on or new ones, lie on the axis, (n,)."""
        rows = _rows(x, "x")
        _vector(self.axis, "axis", rows.shape[1])
        return np.asarray((rows - self.centre) @ self.axis)


def orthogonal_component(x: Streams, v: Streams) -> OrthogonalComponent:
    """Return the first principal component of what of the rows is orthogonal to v.

    Args:
        x: Residual streams, (n, d_model).
        v: The direction taken out first, (d_model,).

    Returns:
        The fitted axis, its largest loading positive; `.scores(x)` gives (n,), activation units.

    Raises:
        ActivationError: Wrong shapes, v is zero, or the rows do not differ beyond v.
    """
    rows = _rows(x, "x")
    direction = _vector(v, "v", rows.shape[1])
    if not direction.any():
        raise ActivationError("orthogonal_component: v is zero; check the classes it came from")
    unit = direction / np.linalg.norm(direction)
    centre = rows.mean(axis=0)
    centred = rows - centre
    rest = centred - np.outer(centred @ unit, unit)
    if np.linalg.norm(rest) <= NEGLIGIBLE * (np.linalg.norm(rows) or 1.0):
        raise ActivationError("orthogonal_component: the rows do not differ beyond v; give more prompts")
    axis = orthogonalise(_first_component(rest), unit)
    axis /= np.linalg.norm(axis)
    return OrthogonalComponent(centre, axis * np.sign(axis[np.abs(axis).argmax()]))
