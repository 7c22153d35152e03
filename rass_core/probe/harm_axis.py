"""The harm axis: the linear probe that best separates harmful from pseudo_harmful prompts in the residual streams.

It shows what the model represents of harm, whether or not its refusal uses it. Splits are those of the probe:
layer, position and penalty are chosen by cross-validation over prompt families on train and validation, the axis is
fitted on these two, and every reported figure comes from the test split.

Features are centred per language at the midpoint of the class means, so that the axis never separates languages, and
divided by their spread. Places (layer, position) are compared by ridge regression in closed form, the best one gets a
logistic regression.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from rass_core.errors import BoundaryError
from rass_core.probe.geometry import ProbeData
from rass_core.probe.harm_types import HarmAxis, HarmFigures, HarmReport, LayerFigures, Place
from rass_core.probe.misalignment import Block, Estimate, auc_estimate, blocks_of, gap_estimate, paired_auc
from rass_core.stats.arrays import Array, Bools

Blocks = tuple[list[Block], str | None]
"""Prompts to compare, and why there are none."""

CLASSES = ("harmful", "pseudo_harmful")
N_FOLDS = 5
MIN_FAMILIES = 10
"""Prompt families of each class without which no axis is fitted."""
SCREENED_ROWS = 600
"""Prompts by which places are compared; as many of each class where there are enough."""
RIDGES = (0.1, 1.0, 10.0)
"""Candidate ridge penalties, in multiples of the mean eigenvalue of the features' Gram matrix."""
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Candidates for C of the logistic regression, whose features have unit spread."""
MAX_SOURCE_FITS = 200
"""Fits of pairs of sources left out, over all layers, above which only the chosen layer has them."""
AUC_TIE = 0.005
"""Cross-validated AUCs this close are a tie. Then the place of the margin is taken: its streams are read anyhow."""
NO_SHARED_SOURCE = "no source holds both classes in the test split"
ALL = "all"


class _Features(NamedTuple):
    """How streams become features, from the rows of one fit."""

    centres: Mapping[str, Array]
    """language → midpoint of the class means, (d_model,)."""
    spread: Array
    """(d_model,)."""


@dataclass(frozen=True)
class _Data:
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


def measure_harm(
    given: ProbeData,
    sources: Sequence[str],
    margins: Array,
    margin_at: Callable[[int], Array | None],
    prefer: Place,
    n_bootstrap: int,
    done: Callable[[int], None] = lambda n: None,
) -> HarmReport:
    """Find the harm axis, score every prompt on it, and compare it with the margin.

    Args:
        given: The given prompts.
        sources: Where each prompt comes from.
        margins: Of the prompts, (n,), NaN where unknown.
        margin_at: layer → margins along the direction of that layer that is like the chosen one, for the comparison
            by layer; None where there is none.
        prefer: Layer and position of the margin.
        n_bootstrap: Replicates of an interval.
        done: Called with the number of steps done so far, `n_steps(given)` in all.

    Returns:
        The report. Where no axis can be fitted, figures of the margin alone, and the reason.
    """
    splits = given.splits
    in_question = np.isin(given.labels, CLASSES)
    data = _Data(
        given.labels, given.languages, given.families, np.asarray(sources, np.str_),
        np.zeros(0, np.int64), np.zeros(0, np.int64), in_question & (splits == "test"), n_bootstrap, given.seed,
        margins,
    )  # fmt: skip
    try:
        fitting = _fittable(given, in_question & (splits != "test"))
        data = replace(data, fitting=fitting, folds=_folds(data, fitting, given.seed))
        return _with_axis(given, data, margin_at, prefer, done)
    except BoundaryError as error:
        return _without_axis(data, str(error))


def n_steps(given: ProbeData) -> int:
    """Return how many steps `measure_harm` reports: each place that it compares, then each layer."""
    return len(given.layers) * (len(given.positions) + 1)


def _with_axis(
    given: ProbeData,
    data: _Data,
    margin_at: Callable[[int], Array | None],
    prefer: Place,
    done: Callable[[int], None],
) -> HarmReport:
    compared = _compare_places(given, data, done)
    place = _best_place(compared, prefer)
    rows = given.rows(*place)
    unseen = {penalty: _out_of_fold(data, rows, penalty) for penalty in INVERSE_PENALTIES}
    aucs = {penalty: _cv_auc(data, scores) for penalty, scores in unseen.items()}
    best = max(INVERSE_PENALTIES, key=lambda penalty: (round(aucs[penalty], 3), -penalty))
    vector, features = _logistic(data, rows, data.fitting, best)
    axis = _calibrated(data, place, vector, features, unseen[best])
    scores = axis.scores(rows, given.languages.tolist())
    scores[data.fitting] = _on_scale(data, unseen[best])
    # AUCs need no scale, and leaving out languages that have none would leave out those where the axis fails.
    figures = _figures(data, rows @ vector, data.margins, _new_source_blocks(data, rows, best))
    lacking = sorted(set(given.languages) - set(axis.vectors))
    reason = None
    if lacking:
        reason = f"{', '.join(lacking)}: too few harmful or pseudo_harmful prompts, or they are not in order there"
    layers = list(_by_layer(given, data, compared, place, best, margin_at, done))
    return HarmReport(axis, scores, figures, layers, best, aucs[best], reason)


def _by_layer(
    given: ProbeData,
    data: _Data,
    compared: Mapping[Place, float],
    chosen: Place,
    inverse_penalty: float,
    margin_at: Callable[[int], Array | None],
    done: Callable[[int], None],
) -> Iterator[LayerFigures]:
    """Yield the figures of each layer's best position; sources are left out everywhere if that is not too much."""
    n_fits = len(given.layers) * len(_source_pairs(data))
    for number, layer in enumerate(given.layers, start=1):
        position = max(given.positions, key=lambda position: (compared[layer, position], position))
        position = chosen[1] if layer == chosen[0] else position
        rows = given.rows(layer, position)
        vector, _ = _logistic(data, rows, data.fitting, inverse_penalty)
        apart: Blocks = [], f"left out at the chosen layer only: {n_fits} fits"
        if n_fits <= MAX_SOURCE_FITS or layer == chosen[0]:
            apart = _new_source_blocks(data, rows, inverse_penalty)
        figures = _figures(data, rows @ vector, margin_at(layer), apart, only_all=True)[ALL]
        yield LayerFigures(layer, position, compared[layer, position], figures)
        done(len(compared) + number)


def _without_axis(data: _Data, reason: str) -> HarmReport:
    nothing = Estimate(None, None, None, 0, reason=reason)
    figures = {
        language: HarmFigures(_margin_auc(data, data.margins, here), *[nothing] * 5)
        for language, here in _by_language(data)
    }
    return HarmReport(None, np.full(len(data.labels), np.nan), figures, reason=reason)


def _fittable(given: ProbeData, wanted: Bools) -> npt.NDArray[np.int64]:
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


def _folds(data: _Data, fitting: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    strata = np.char.add(np.char.add(data.languages[fitting], "/"), data.labels[fitting])
    # A language with few prompts is spread by label alone; the split needs N_FOLDS of each stratum.
    names, counts = np.unique(strata, return_counts=True)
    rare = np.isin(strata, names[counts < N_FOLDS])
    strata[rare] = data.labels[fitting][rare]
    if (np.unique(strata, return_counts=True)[1] < N_FOLDS).any():
        strata = data.labels[fitting]
    found = np.zeros(len(fitting), np.int64)
    splitter = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    for number, (_, held) in enumerate(splitter.split(strata, strata, data.families[fitting])):
        found[held] = number
    return found


# --- features and fits -------------------------------------------------------------------------


def _features(data: _Data, streams: npt.NDArray[np.floating], rows: npt.NDArray[np.int64]) -> _Features:
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
    data: _Data, streams: npt.NDArray[np.floating], rows: npt.NDArray[np.int64], features: _Features
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


def _ridge(
    data: _Data, streams: npt.NDArray[np.floating], rows: npt.NDArray[np.int64]
) -> tuple[Array, npt.NDArray[np.float64]]:
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


def _logistic(
    data: _Data, streams: npt.NDArray[np.floating], rows: npt.NDArray[np.int64], inverse_penalty: float
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


# --- choice on train and validation ------------------------------------------------------------


def _compare_places(given: ProbeData, data: _Data, done: Callable[[int], None]) -> dict[Place, float]:
    """Return the cross-validated AUC of every place, by the best of the ridges."""
    sample = _sample(data, given.prompt_ids)
    found: dict[Place, float] = {}
    for layer, position in product(given.layers, given.positions):
        streams = given.rows(layer, position)
        scores = np.full((len(RIDGES), len(streams)), np.nan)
        for fold in range(N_FOLDS):
            held = data.fitting[sample & (data.folds == fold)]
            vectors, _ = _ridge(data, streams, data.fitting[sample & (data.folds != fold)])
            scores[:, held] = vectors @ streams[held].T
        found[layer, position] = max(_cv_auc(data, each) for each in scores)
        done(len(found))
    return found


def _sample(data: _Data, prompt_ids: Sequence[str]) -> Bools:
    """Return which rows of `fitting` places are compared by: of each class those with the smallest ids."""
    kept = np.zeros(len(data.fitting), bool)
    labels = data.labels[data.fitting]
    order = np.argsort(np.asarray(prompt_ids)[data.fitting], kind="stable")
    of_class = [order[labels[order] == label] for label in CLASSES]
    fewest = min(len(rows) for rows in of_class)
    for rows in of_class:
        kept[rows[: max(SCREENED_ROWS // 2, SCREENED_ROWS - fewest)]] = True
    return kept


def _cv_auc(data: _Data, scores: Array) -> float:
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


def _best_place(compared: Mapping[Place, float], prefer: Place) -> Place:
    best = max(compared, key=lambda place: (compared[place], -place[0], place[1]))
    return prefer if compared.get(prefer, 0.0) >= compared[best] - AUC_TIE else best


def _out_of_fold(data: _Data, streams: npt.NDArray[np.floating], inverse_penalty: float) -> Array:
    """Return log-odds of harm (n,) from fits that have not seen the row's family; NaN for rows not fitted on."""
    found = np.full(len(streams), np.nan)
    for fold in range(N_FOLDS):
        held = data.fitting[data.folds == fold]
        vector, features = _logistic(data, streams, data.fitting[data.folds != fold], inverse_penalty)
        for language, centre in features.centres.items():
            here = held[data.languages[held] == language]
            found[here] = (streams[here] - centre) @ vector
    return found


# --- scale and figures -------------------------------------------------------------------------


def _scales(data: _Data, unseen: Array) -> dict[str, tuple[float, float]]:
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


def _on_scale(data: _Data, unseen: Array) -> Array:
    """Return out-of-fold log-odds of the rows fitted on as harm scores."""
    found = np.full(len(unseen), np.nan)
    for language, (factor, shift) in _scales(data, unseen).items():
        here = data.fitting[data.languages[data.fitting] == language]
        found[here] = factor * unseen[here] + shift
    return found[data.fitting]


def _calibrated(data: _Data, place: Place, vector: Array, features: _Features, unseen: Array) -> HarmAxis:
    scales = {name: scale for name, scale in _scales(data, unseen).items() if name in features.centres}
    return HarmAxis(
        *place,
        {name: factor * vector for name, (factor, _) in scales.items()},
        {name: shift - factor * float(features.centres[name] @ vector) for name, (factor, shift) in scales.items()},
    )


def _by_language(data: _Data) -> list[tuple[str, Bools]]:
    every = np.ones(len(data.languages), bool)
    return [(str(name), data.languages == name) for name in np.unique(data.languages)] + [(ALL, every)]


def _margin_auc(data: _Data, margins: Array, here: Bools) -> Estimate:
    blocks = blocks_of(margins, data.labels, data.languages, data.tested & here)
    return auc_estimate(blocks, data.families, data.n_bootstrap, data.seed)


def _figures(
    data: _Data, scores: Array, margins: Array | None, new_source: Blocks, only_all: bool = False
) -> dict[str, HarmFigures]:
    """Return the figures of the test split, per language and over all: pairs are always of one language."""
    apart, why_not = new_source
    known = np.full(len(scores), np.nan) if margins is None else margins
    origins = np.char.add(np.char.add(data.languages, "/"), data.sources)
    found = {}
    for name, here in _by_language(data):
        if only_all and name != ALL:
            continue
        tested = data.tested & here
        both = tested & np.isfinite(known) & np.isfinite(scores)
        mine = [block for block in apart if here[block.harmful].all()]

        def auc_of(blocks: list[Block], why: str | None = None) -> Estimate:
            found = auc_estimate(blocks, data.families, data.n_bootstrap, data.seed)
            return replace(found, reason=why) if why and not blocks else found

        def gap(groups: npt.NDArray[Any], usable: Bools, why: str | None = None) -> Estimate:
            parts = [blocks_of(each, data.labels, groups, usable) for each in (scores, known)]
            found = gap_estimate(parts[0], parts[1], data.families, data.n_bootstrap, data.seed)
            return replace(found, reason=why) if why and not parts[0] else found

        found[name] = HarmFigures(
            auc_of(blocks_of(known, data.labels, data.languages, tested)),
            auc_of(blocks_of(scores, data.labels, data.languages, tested)),
            auc_of(mine, why_not or "no pair of prompts from sources left out"),
            auc_of(blocks_of(scores, data.labels, origins, tested), NO_SHARED_SOURCE),
            gap(data.languages, both),
            gap(origins, both, NO_SHARED_SOURCE),
        )
    return found


def _source_pairs(data: _Data) -> list[tuple[str, str]]:
    """Return the sources of harmful and of pseudo_harmful test prompts, every pair."""
    of_class = (sorted(set(data.sources[data.tested & (data.labels == label)])) for label in CLASSES)
    return list(product(*of_class))


def _new_source_blocks(data: _Data, streams: npt.NDArray[np.floating], inverse_penalty: float) -> Blocks:
    """Return test prompts in blocks of one language and one pair of sources, scored by fits without both sources.

    A pair whose removal leaves too few families of a class is skipped; where that leaves none, the reason says so.
    """
    found: list[Block] = []
    pairs = _source_pairs(data)
    for pair in pairs:
        of_pair = np.zeros(len(data.labels), bool)
        for label, source in zip(CLASSES, pair, strict=True):
            of_pair |= data.tested & (data.labels == label) & (data.sources == source)
        kept = data.fitting[~np.isin(data.sources[data.fitting], pair)]
        families = [len(np.unique(data.families[kept[data.labels[kept] == label]])) for label in CLASSES]
        if min(families) < MIN_FAMILIES or not blocks_of(np.zeros(len(streams)), data.labels, data.languages, of_pair):
            continue
        try:
            vector, _ = _logistic(data, streams, kept, inverse_penalty)
        except BoundaryError:  # the classes that are left are in different languages
            continue
        found += blocks_of(streams @ vector, data.labels, data.languages, of_pair)
    if found:
        return found, None
    told = "; ".join(
        f"{label}: {', '.join(dict.fromkeys(names)) or 'none'}"
        for label, names in zip(CLASSES, zip(*pairs, strict=True), strict=False)
    )
    return [], f"sources cannot be left out: after a pair of them both classes must remain ({told})"
