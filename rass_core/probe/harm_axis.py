"""The harm axis: the linear probe that best separates harmful from pseudo_harmful prompts in the residual streams.

It shows what the model represents of harm, whether or not its refusal uses it. Splits are those of the probe:
layer, position and penalty are chosen by cross-validation over prompt families on train and validation, the axis is
fitted on these two (see `harm_fit`), and every reported figure comes from the test split.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from rass_core.errors import BoundaryError
from rass_core.probe.geometry import ProbeData
from rass_core.probe.harm_fit import (
    CLASSES,
    INVERSE_PENALTIES,
    MIN_FAMILIES,
    HarmData,
    best_place,
    calibrated,
    compare_places,
    cv_auc_of,
    fit_logistic,
    harm_folds,
    on_scale,
    out_of_fold,
    rows_to_fit,
)
from rass_core.probe.harm_types import Estimate, HarmFigures, HarmReport, LayerFigures, LayerPosition
from rass_core.probe.misalignment import Block, auc_estimate, blocks_of, gap_estimate
from rass_core.stats.arrays import Array, Bools
from rass_core.vocabulary import ALL

Blocks = tuple[list[Block], str | None]
"""Prompts to compare, and why there are none."""

MAX_SOURCE_FITS = 200
"""Fits of pairs of sources left out, over all layers, above which only the chosen layer has them."""
NO_SHARED_SOURCE = "no source holds both classes in the test split"


def measure_harm(
    given: ProbeData,
    sources: Sequence[str],
    margins: Array,
    margin_at: Callable[[int], Array | None],
    prefer: LayerPosition,
    n_bootstrap: int,
    done: Callable[[int], None] = lambda n: None,
) -> HarmReport:
    """Find the harm axis, score every prompt on it, and compare it with the margin.

    Args:
        given: The given prompts.
        sources: Where each prompt comes from.
        margins: Margins of the prompts, (n,), NaN where unknown.
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
    data = HarmData(
        labels=given.labels,
        languages=given.languages,
        families=given.families,
        sources=np.asarray(sources, np.str_),
        fitting=np.zeros(0, np.int64),
        folds=np.zeros(0, np.int64),
        tested=in_question & (splits == "test"),
        n_bootstrap=n_bootstrap,
        seed=given.seed,
        margins=margins,
    )
    try:
        fitting = rows_to_fit(given, in_question & (splits != "test"))
        data = replace(data, fitting=fitting, folds=harm_folds(data, fitting, given.seed))
        return _with_axis(given, data, margin_at, prefer, done)
    except BoundaryError as error:
        return _without_axis(data, str(error))


def n_steps(given: ProbeData) -> int:
    """Return how many steps `measure_harm` reports: each place that it compares, then each layer."""
    return len(given.layers) * (len(given.positions) + 1)


def _with_axis(
    given: ProbeData,
    data: HarmData,
    margin_at: Callable[[int], Array | None],
    prefer: LayerPosition,
    done: Callable[[int], None],
) -> HarmReport:
    compared = compare_places(given, data, done)
    place = best_place(compared, prefer)
    rows = given.rows(*place)
    unseen = {penalty: out_of_fold(data, rows, penalty) for penalty in INVERSE_PENALTIES}
    aucs = {penalty: cv_auc_of(data, scores) for penalty, scores in unseen.items()}
    best = max(INVERSE_PENALTIES, key=lambda penalty: (round(aucs[penalty], 3), -penalty))
    vector, features = fit_logistic(data, rows, data.fitting, best)
    axis = calibrated(data, place, vector, features, unseen[best])
    scores = axis.scores(rows, given.languages.tolist())
    scores[data.fitting] = on_scale(data, unseen[best])
    # AUCs need no scale, and leaving out languages that have none would leave out those where the axis fails.
    figures = _figures(data, rows @ vector, data.margins, _new_source_blocks(data, rows, best))
    lacking = sorted(set(given.languages) - set(axis.vectors))
    reason = None
    if lacking:
        reason = f"{', '.join(lacking)}: too few harmful or pseudo_harmful prompts, or they are not in order there"
    layers = list(_by_layer(given, data, compared, place, best, margin_at, done))
    return HarmReport(axis, scores, figures, layers=layers, inverse_penalty=best, cv_auc=aucs[best], reason=reason)


def _by_layer(
    given: ProbeData,
    data: HarmData,
    compared: Mapping[LayerPosition, float],
    chosen: LayerPosition,
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
        vector, _ = fit_logistic(data, rows, data.fitting, inverse_penalty)
        apart: Blocks = [], f"left out at the chosen layer only: {n_fits} fits"
        if n_fits <= MAX_SOURCE_FITS or layer == chosen[0]:
            apart = _new_source_blocks(data, rows, inverse_penalty)
        figures = _figures(data, rows @ vector, margin_at(layer), apart, only_all=True)[ALL]
        yield LayerFigures(layer, position, compared[layer, position], figures)
        done(len(compared) + number)


def _without_axis(data: HarmData, reason: str) -> HarmReport:
    nothing = Estimate(None, None, None, 0, reason=reason)
    figures = {
        language: HarmFigures(_margin_auc(data, data.margins, here), *[nothing] * 5)
        for language, here in _by_language(data)
    }
    return HarmReport(None, np.full(len(data.labels), np.nan), figures, reason=reason)


def _by_language(data: HarmData) -> list[tuple[str, Bools]]:
    every = np.ones(len(data.languages), bool)
    return [(str(name), data.languages == name) for name in np.unique(data.languages)] + [(ALL, every)]


def _margin_auc(data: HarmData, margins: Array, here: Bools) -> Estimate:
    blocks = blocks_of(margins, data.labels, data.languages, data.tested & here)
    return auc_estimate(blocks, data.families, data.n_bootstrap, data.seed)


def _figures(
    data: HarmData, scores: Array, margins: Array | None, new_source: Blocks, only_all: bool = False
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
            margin=auc_of(blocks_of(known, data.labels, data.languages, tested)),
            axis=auc_of(blocks_of(scores, data.labels, data.languages, tested)),
            new_source=auc_of(mine, why_not or "no pair of prompts from sources left out"),
            same_source=auc_of(blocks_of(scores, data.labels, origins, tested), NO_SHARED_SOURCE),
            gap=gap(data.languages, both),
            same_source_gap=gap(origins, both, NO_SHARED_SOURCE),
        )
    return found


def _source_pairs(data: HarmData) -> list[tuple[str, str]]:
    """Return the sources of harmful and of pseudo_harmful test prompts, every pair."""
    of_class = (sorted(set(data.sources[data.tested & (data.labels == label)])) for label in CLASSES)
    return list(product(*of_class))


def _new_source_blocks(data: HarmData, streams: npt.NDArray[np.floating], inverse_penalty: float) -> Blocks:
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
            vector, _ = fit_logistic(data, streams, kept, inverse_penalty)
        except BoundaryError:  # the classes that are left are in different languages
            continue
        found += blocks_of(streams @ vector, data.labels, data.languages, of_pair)
    if found:
        return found, None
    said = "; ".join(
        f"{label}: {', '.join(dict.fromkeys(names)) or 'none'}"
        for label, names in zip(CLASSES, zip(*pairs, strict=True), strict=False)
    )
    return [], f"sources cannot be left out: after a pair of them both classes must remain ({said})"
