"""Fits of the harm axis: the best layer, position and penalty, the weights, the scale of each language.

Features are centred per language at the midpoint of the class means, so that the axis never separates languages, and
divided by their spread. Places (layer, position) are compared by ridge regression in closed form, the best one gets a
logistic regression.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from rass_core.errors import BoundaryError
from rass_core.probe.geometry import ProbeData
from rass_core.probe.harm_types import HarmAxis, LayerPosition
from rass_core.probe.misalignment import blocks_of, paired_auc
from rass_core.stats.arrays import Array, Bools

CLASSES = ("harmful", "pseudo_harmful")
_N_FOLDS = 5
MIN_FAMILIES = 10
"""Prompt families of each class without which no axis is fitted."""
SCREENED_ROWS = 600
"""Prompts by which places are compared; as many of each class where there are enough."""
RIDGES = (0.1, 1.0, 10.0)
"""Candidate ridge penalties, in multiples of the mean eigenvalue of the features' Gram matrix."""
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Candidates for C of the logistic regression, whose features have unit spread."""
PLACE_TIE = 0.005
"""Cross-validated AUCs this close are a tie. Then the place of the margin is taken: its streams are read anyway."""


class _Features(NamedTuple):
    """How streams become features, from the rows of one fit."""

    centres: Mapping[str, Array]
    """language → midpoint of the class means, (d_model,)."""
    spread: Array
    """(d_model,)."""


@dataclass(frozen=True)
class HarmData:
    """The given prompts as the fits see them; every array has one row per prompt, `folds` one per row fitted on."""

    labels: npt.NDArray[np.str_]
    languages: npt.NDArray[np.str_]
    families: npt.NDArray[np.str_]
    sources: npt.NDArray[np.str_]
    fitting: npt.NDArray[np.int64]
    """Harmful and pseudo_harmful rows of train and validation."""
    folds: npt.NDArray[np.int64]
    """Fold of each row of `fitting`."""
    tested: Bools
    """(n,): harmful and pseudo_harmful rows of test."""
    n_bootstrap: int
    seed: int
    margins: Array = field(repr=False)


def rows_to_fit(given: ProbeData, wanted: Bools) -> npt.NDArray[np.int64]:
    """Return the rows to fit on: those of languages that hold both classes."""
    kept = np.zeros(len(wanted), bool)
    for language in np.unique(given.languages):
        here = wanted & (given.languages == language)
        if len(set(given.labels[here])) == 2:
            kept |= here
    for label in CLASSES:
        n_families = len(np.unique(given.families[kept & (given.labels == label)]))
        if n_families < MIN_FAMILIES:
            raise BoundaryError(
                f"no harm axis: {n_families} families of {label} prompts in languages with both classes, outside the "
                f"test split; need {MIN_FAMILIES}"
            )
    return np.flatnonzero(kept)


def harm_folds(data: HarmData, fitting: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of each row of `fitting`: families whole, languages and classes spread evenly."""
    strata = np.char.add(np.char.add(data.languages[fitting], "/"), data.labels[fitting])
    # A language with few prompts is spread by label alone; the split needs N_FOLDS of each stratum.
    names, counts = np.unique(strata, return_counts=True)
    rare = np.isin(strata, names[counts < _N_FOLDS])
    strata[rare] = data.labels[fitting][rare]
    if (np.unique(strata, return_counts=True)[1] < _N_FOLDS).any():
        strata = data.labels[fitting]
    found = np.zeros(len(fitting), np.int64)
    splitter = StratifiedGroupKFold(_N_FOLDS, shuffle=True, random_state=seed)
    for number, (_, held) in enumerate(splitter.split(strata, strata, data.families[fitting])):
        found[held] = number
    return found


def _features(data: HarmData, streams: npt.NDArray[np.floating], rows: npt.NDArray[np.int64]) -> _Features:
    """Return centres and spread from the rows of one fit; languages that lack a class have no centre."""
    centres, centred = {}, []
    for language in np.unique(data.languages[rows]):
        mine = rows[data.languages[rows] == language]
        means = [
            streams[mine[data.labels[mine] == label]].mean(axis=0, dtype=np.float64)
            for label in CLASSES
            if (data.labels[mine] == label).any()
        ]
        if len(means) == 2:
            centres[str(language)] = (means[0] + means[1]) / 2
            centred.append(streams[mine] - centres[str(language)])
    if not centred:
        raise BoundaryError("no harm axis: no language holds both classes in a fit; add prompts")
    spread = np.concatenate(centred).std(axis=0)
    return _Features(centres, np.where(spread > 0, spread, 1.0))


def _design(
    data: HarmData, streams: npt.NDArray[np.floating], rows: npt.NDArray[np.int64], features: _Features
) -> tuple[Array, Bools, Array]:
    """Return features (n, d_model), classes and weights of the rows whose language has a centre.

    Inside a language both classes weigh the same.
    """
    rows = rows[np.isin(data.languages[rows], list(features.centres))]
    centres = np.stack([features.centres[language] for language in data.languages[rows]])
    is_harmful = data.labels[rows] == "harmful"
    weights = np.zeros(len(rows))
    for language in features.centres:
        here = data.languages[rows] == language
        for which in (here & is_harmful, here & ~is_harmful):
            weights[which] = here.sum() / (2 * which.sum())
    return (streams[rows] - centres) / features.spread, is_harmful, weights


def _ridge(data: HarmData, streams: npt.NDArray[np.floating], rows: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Return weights (len(RIDGES), d_model) of weighted ridge regressions of the class, in units of the streams.

    They come from the smaller one of the two Gram matrices.
    """
    features = _features(data, streams, rows)
    x, is_harmful, weights = _design(data, streams, rows, features)
    root = np.sqrt(weights)[:, None]
    x, y = x * root, np.where(is_harmful, 1.0, -1.0) * root[:, 0]
    is_wide = x.shape[0] < x.shape[1]
    gram = x @ x.T if is_wide else x.T @ x
    right = y if is_wide else x.T @ y
    unit = float(np.trace(gram)) / len(gram) or 1.0
    found = []
    for ridge in RIDGES:
        solved = scipy.linalg.solve(gram + ridge * unit * np.eye(len(gram)), right, assume_a="pos")
        found.append((x.T @ solved if is_wide else solved) / features.spread)
    return np.stack(found), features.spread


def fit_logistic(
    data: HarmData, streams: npt.NDArray[np.floating], rows: npt.NDArray[np.int64], inverse_penalty: float
) -> tuple[Array, _Features]:
    """Return the weights (d_model,) of a logistic regression in units of the streams, with its features."""
    features = _features(data, streams, rows)
    x, is_harmful, weights = _design(data, streams, rows, features)
    # The penalty sees lengths only, so the fit may run in the span of the rows: n columns instead of d_model.
    basis = scipy.linalg.qr(x.T, mode="economic")[0] if x.shape[0] < x.shape[1] else None
    model = LogisticRegression(C=inverse_penalty, max_iter=1000)
    model.fit(x if basis is None else x @ basis, is_harmful, sample_weight=weights)
    solved = model.coef_[0] if basis is None else basis @ model.coef_[0]
    return solved / features.spread, features


def compare_places(given: ProbeData, data: HarmData, done: Callable[[int], None]) -> dict[LayerPosition, float]:
    """Return the cross-validated AUC of every place, by the best of the ridges."""
    sample = _sample(data, given.prompt_ids)
    found: dict[LayerPosition, float] = {}
    for layer, position in product(given.layers, given.positions):
        streams = given.rows(layer, position)
        scores = np.full((len(RIDGES), len(streams)), np.nan)
        for fold in range(_N_FOLDS):
            held = data.fitting[sample & (data.folds == fold)]
            vectors, _ = _ridge(data, streams, data.fitting[sample & (data.folds != fold)])
            scores[:, held] = vectors @ streams[held].T
        found[layer, position] = max(cv_auc_of(data, each) for each in scores)
        done(len(found))
    return found


def _sample(data: HarmData, prompt_ids: Sequence[str]) -> Bools:
    """Return which rows of `fitting` places are compared by: of each class those with the smallest ids."""
    kept = np.zeros(len(data.fitting), bool)
    labels = data.labels[data.fitting]
    order = np.argsort(np.asarray(prompt_ids)[data.fitting], kind="stable")
    of_class = [order[labels[order] == label] for label in CLASSES]
    fewest = min(len(rows) for rows in of_class)
    for rows in of_class:
        kept[rows[: max(SCREENED_ROWS // 2, SCREENED_ROWS - fewest)]] = True
    return kept


def cv_auc_of(data: HarmData, scores: Array) -> float:
    """Return the AUC over pairs of one fold and language: scores of different fits are not compared."""
    usable = np.zeros(len(scores), bool)
    usable[data.fitting] = True
    folds = np.full(len(scores), -1)
    folds[data.fitting] = data.folds
    groups = np.unique(np.char.add(data.languages, folds.astype(np.str_)), return_inverse=True)[1]
    blocks = blocks_of(scores, data.labels, groups, usable)
    if not blocks:
        raise BoundaryError("no harm axis: no fold holds both classes of a language; add prompts")
    return float(paired_auc(blocks, np.ones((1, len(scores))))[0])


def best_place(compared: Mapping[LayerPosition, float], prefer: LayerPosition) -> LayerPosition:
    """Return the place with the highest AUC, or the preferred one where it ties."""
    best = max(compared, key=lambda place: (compared[place], -place[0], place[1]))
    return prefer if compared.get(prefer, 0.0) >= compared[best] - PLACE_TIE else best


def out_of_fold(data: HarmData, streams: npt.NDArray[np.floating], inverse_penalty: float) -> Array:
    """Return log-odds of harm (n,) from fits that have not seen the row's family; NaN for rows not fitted on."""
    found = np.full(len(streams), np.nan)
    for fold in range(_N_FOLDS):
        held = data.fitting[data.folds == fold]
        vector, features = fit_logistic(data, streams, data.fitting[data.folds != fold], inverse_penalty)
        for language, centre in features.centres.items():
            here = held[data.languages[held] == language]
            found[here] = (streams[here] - centre) @ vector
    return found


def _scales(data: HarmData, unseen: Array) -> dict[str, tuple[float, float]]:
    """Return language → factor and shift that bring out-of-fold log-odds to −1 and +1 at the class means.

    Languages whose harmful mean does not lie above the other have none.
    """
    found = {}
    for language in np.unique(data.languages[data.fitting]):
        mine = data.fitting[data.languages[data.fitting] == language]
        classes = [unseen[mine[data.labels[mine] == label]] for label in ("pseudo_harmful", "harmful")]
        low, high = (each[np.isfinite(each)] for each in classes)
        if low.size and high.size and high.mean() > low.mean():
            factor = 2.0 / (high.mean() - low.mean())
            found[str(language)] = (float(factor), float(-factor * (high.mean() + low.mean()) / 2))
    return found


def on_scale(data: HarmData, unseen: Array) -> Array:
    """Return out-of-fold log-odds of the rows fitted on as harm scores."""
    found = np.full(len(unseen), np.nan)
    for language, (factor, shift) in _scales(data, unseen).items():
        here = data.fitting[data.languages[data.fitting] == language]
        found[here] = factor * unseen[here] + shift
    return found[data.fitting]


def calibrated(data: HarmData, place: LayerPosition, vector: Array, features: _Features, unseen: Array) -> HarmAxis:
    """Return the axis with the scale of each language that out-of-fold log-odds give.

    Args:
        vector: Weights of the logistic regression, (d_model,).
        features: Those of its fit.
        unseen: Out-of-fold log-odds, (n,).
    """
    scales = {name: scale for name, scale in _scales(data, unseen).items() if name in features.centres}
    return HarmAxis(
        *place,
        {name: factor * vector for name, (factor, _) in scales.items()},
        {name: shift - factor * float(features.centres[name] @ vector) for name, (factor, shift) in scales.items()},
    )
