"""Fit a harm classifier on labelled prompts, and measure its errors on sources left out of the fit."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from rass_core.errors import BoundaryError, JudgeError
from rass_core.languages.tags import primary
from rass_core.moderators.classifier import MAX_CHARACTERS, MIN_CONFIDENCE
from rass_core.moderators.harm_classifier import HarmClassifier, digests, ngram_counts, weighted
from rass_core.stats.agreement import equal_mass_bins
from rass_core.stats.arrays import Array
from rass_core.stats.intervals import auc_interval, wilson
from rass_core.text import digest
from rass_core.vocabulary import ALL

CLASS_SHARES = {"harmful": 0.5, "pseudo_harmful": 0.4, "harmless": 0.1}
"""Weight of each label within a language. pseudo_harmful counts most among the benign: it is the hard side."""
STRENGTH = 1.0
"""Inverse of the L2 penalty."""
MIN_PER_LABEL = 50
"""Least harmful and least pseudo_harmful prompts of a language: with one side only, the language itself decides."""
MIN_AUC = 0.6
"""A language is covered where the lower end of its AUC on sources left out is above this."""
FIGURES = (
    "n", "n_unscored", "false_benign", "false_benign_low", "false_benign_high", "false_harmful", "false_harmful_low",
    "false_harmful_high", "auc", "auc_low", "auc_high", "ece",
)  # fmt: skip
"""What is measured of a source or language."""
N_FOLDS = 5
"""Folds by family, where sources cannot be left out."""
Done = Callable[[int, int], None]
"""Called with the number of fits done and the number of all."""


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt with its true label."""

    text: str
    language: str
    """BCP-47 tag, of which the primary part counts."""
    label: str
    """harmful, pseudo_harmful or harmless."""
    source: str
    """Data set that it comes from; a translation has the source of its original."""
    family: str
    """Equal for a prompt and its translations; a family never is on both sides of a split."""


def usable(labelled: Sequence[LabelledPrompt]) -> list[LabelledPrompt]:
    """Return the prompts that a classifier can be fitted on: none too long, no language with one side only.

    Raises:
        JudgeError: No language has enough harmful and pseudo_harmful prompts.
    """
    short = [each for each in labelled if len(each.text) <= MAX_CHARACTERS]
    n = Counter((primary(each.language), each.label) for each in short)
    languages = {
        language for language, _ in n if min(n[language, "harmful"], n[language, "pseudo_harmful"]) >= MIN_PER_LABEL
    }
    if not languages:
        raise JudgeError(
            f"harm classifier: no language has {MIN_PER_LABEL} harmful and {MIN_PER_LABEL} pseudo_harmful prompts "
            f"of at most {MAX_CHARACTERS:,} characters; add prompts"
        )
    return [each for each in short if primary(each.language) in languages]


def train(labelled: Sequence[LabelledPrompt], done: Done | None = None) -> HarmClassifier:
    """Return the classifier of labelled prompts, calibrated and measured on sources left out.

    Sources are left out in turn as `folds_of` says, with all translations of their prompts. Languages in which the
    AUC is not clearly above chance are dropped, and the rest is fitted anew. Platt's scaling is fitted on the scores.

    Args:
        done: Called with the number of fits done and of all, again from 1 where a language is dropped.

    Raises:
        JudgeError: As `usable`, or no language has an AUC above chance.
    """
    labelled, rows = usable(labelled), []
    while True:
        counts = ngram_counts([each.text for each in labelled])
        scores = held_out_scores(labelled, counts, folds_of(labelled), done)
        weak = {row["language"]: row for row in _by_language(labelled, scores) if not (row["auc_low"] or 0) > MIN_AUC}
        if not weak:
            break
        rows += [{"source": ALL, **row, "covered": False} for row in weak.values()]
        labelled = [each for each in labelled if primary(each.language) not in weak]
        if not labelled:
            raise JudgeError(
                f"harm classifier: in no language an AUC above {MIN_AUC} on sources left out ("
                + ", ".join(f"{row['language']} {_shown(row)}" for row in rows)
                + "); add sources, best such as hold both harmful and pseudo_harmful prompts"
            )
    is_harmful, weights = is_(labelled, "harmful"), balance(labelled)
    seen = np.isfinite(scores)
    platt = LogisticRegression(C=1e3).fit(scores[seen, None], is_harmful[seen], weights[seen])
    slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    idf = inverse_document_frequency(counts)
    weighted_rows = weighted(counts, idf)
    harm = _logistic().fit(weighted_rows, is_harmful, weights)
    alarming, alarm = ~is_(labelled, "harmless"), None
    if not alarming.all():
        shares = dict.fromkeys(CLASS_SHARES, 1.0)
        alarm = _logistic().fit(weighted_rows, alarming, _balance_of(labelled, shares))
    texts, languages = [each.text for each in labelled], [each.language for each in labelled]
    measured = figures(labelled, expit(slope * scores + offset))
    return HarmClassifier(
        idf=idf,
        harm=slope * harm.coef_[0],
        harm_intercept=slope * float(harm.intercept_[0]) + offset,
        alarm=np.zeros(idf.size) if alarm is None else alarm.coef_[0],
        # without harmless prompts to compare with, all that is benign counts as pseudo_harmful
        alarm_intercept=1.0 if alarm is None else float(alarm.intercept_[0]),
        languages=frozenset(map(primary, languages)),
        known=np.unique(digests(texts, languages)),
        figures=[{**row, "covered": True} for row in measured] + rows,
    )


def _by_language(labelled: Sequence[LabelledPrompt], scores: Array) -> list[dict[str, Any]]:
    """Return the AUC of each language with its n, from scores of any scale."""
    languages, rows = np.array([primary(each.language) for each in labelled]), []
    for language in np.unique(languages):
        here = np.flatnonzero((languages == language) & np.isfinite(scores))
        row = errors([labelled[i] for i in here], expit(scores[here])) if here.size else {"auc": None, "auc_low": None}
        kept = {name: row[name] for name in ("auc", "auc_low", "auc_high") if name in row}
        rows.append({**dict.fromkeys(FIGURES), "language": str(language), "n": int(here.size), **kept})
    return rows


def _shown(row: dict[str, Any]) -> str:
    return "unknown" if row["auc"] is None else f"{row['auc']:.2f} [{row['auc_low']:.2f}, {row['auc_high']:.2f}]"


def held_out_scores(
    labelled: Sequence[LabelledPrompt], counts: csr_matrix, folds: Sequence[npt.NDArray[np.bool_]],
    done: Done | None = None,
) -> Array:  # fmt: skip
    """Return log-odds of harmful by classifiers that saw neither a prompt's fold nor its family, (n,).

    Args:
        counts: `ngram_counts` of the texts.
        folds: Each (n,), bool. A prompt in several folds has the mean of its scores. A prompt in none has NaN, and so
            have those of a fold without which one side is missing.
    """
    families = np.array([each.family for each in labelled])
    is_harmful = is_(labelled, "harmful")
    total, n_scores = np.zeros(len(labelled)), np.zeros(len(labelled))
    for number, fold in enumerate(folds, start=1):
        seen = np.flatnonzero(~fold & ~np.isin(families, families[fold]))
        if np.unique(is_harmful[seen]).size == 2:
            idf = inverse_document_frequency(counts[seen])
            weights = balance([labelled[i] for i in seen])
            model = _logistic().fit(weighted(counts[seen], idf), is_harmful[seen], weights)
            total[fold] += model.decision_function(weighted(counts[fold], idf))
            n_scores[fold] += 1
        if done is not None:
            done(number, len(folds))
    return np.where(n_scores > 0, total / np.maximum(n_scores, 1), np.nan)


def figures(labelled: Sequence[LabelledPrompt], harmful: Array) -> list[dict[str, Any]]:
    """Return errors by language and by source, as they are at the default `MIN_CONFIDENCE`.

    Args:
        harmful: Probability of harmful of each prompt, (n,); NaN where it was never left out.

    Returns:
        Rows with source and language ("all" for all), n, n_unscored; false_benign, false_harmful, auc (harmful
        against pseudo_harmful) with _low and _high; ece. What cannot be computed is None.
    """
    languages = np.array([primary(each.language) for each in labelled])
    sources = np.array([each.source for each in labelled])
    seen = np.isfinite(harmful)
    cells = [(ALL, ALL, seen)]
    cells += [(ALL, str(name), seen & (languages == name)) for name in np.unique(languages)]
    cells += [(str(name), ALL, seen & (sources == name)) for name in np.unique(sources)]
    found = []
    for source, language, here in cells:
        if here.any():
            chosen = [labelled[i] for i in np.flatnonzero(here)]
            found.append({"source": source, "language": language, **errors(chosen, harmful[here])})
    return found


def errors(labelled: Sequence[LabelledPrompt], harmful: Array) -> dict[str, Any]:
    """Return n, n_unscored, false_benign, false_harmful, auc and ece of these prompts; None where not defined."""
    is_harmful = is_(labelled, "harmful")
    scored = np.maximum(harmful, 1 - harmful) >= MIN_CONFIDENCE
    called = harmful >= 0.5
    row: dict[str, Any] = {"n": len(labelled), "n_unscored": int((~scored).sum())}
    sides = {"false_benign": (is_harmful, ~called), "false_harmful": (~is_harmful, called)}
    for name, (side, wrong) in sides.items():
        row |= _named(name, partial(wilson, int((side & scored & wrong).sum()), int((side & scored).sum())))
    hard = is_harmful | is_(labelled, "pseudo_harmful")
    # a family counts once: its translations are no independent draws
    _, first = np.unique([each.family for each in labelled], return_index=True)
    once = np.isin(np.arange(len(labelled)), first) & hard
    row |= _named("auc", lambda: auc_interval(harmful[once], is_harmful[once]))
    both = 0 < is_harmful.sum() < is_harmful.size
    row["ece"] = calibration_error(harmful, is_harmful, balance(labelled)) if both else None
    return row


def calibration_error(harmful: Array, is_harmful: npt.NDArray[np.bool_], weights: Array, n_bins: int = 10) -> float:
    """Return the weighted expected calibration error, 0 to 1, in bins of about equal numbers of prompts."""
    bins = equal_mass_bins(harmful, n_bins)
    gaps = [abs(float(weights[bins == i] @ (harmful - is_harmful)[bins == i])) for i in np.unique(bins)]
    return sum(gaps) / float(weights.sum())


def inverse_document_frequency(counts: csr_matrix) -> Array:
    """Return log((1 + n) / (1 + prompts with it)) + 1 of each column, (N_COLUMNS,)."""
    n = np.bincount(counts.indices, minlength=counts.shape[1])
    return np.asarray(np.log((1 + counts.shape[0]) / (1 + n)) + 1, dtype=np.float64)


def is_(labelled: Sequence[LabelledPrompt], label: str) -> npt.NDArray[np.bool_]:
    """Return whether each prompt has a label, (n,)."""
    return np.array([each.label == label for each in labelled])


def balance(labelled: Sequence[LabelledPrompt]) -> Array:
    """Return the weight of each prompt, mean 1, (n,).

    In every language the labels have the same shares, so that the language itself says nothing of the label.
    Within a label, a source counts by the root of its size, and so does a language in the whole.
    """
    return _balance_of(labelled, CLASS_SHARES)


def _balance_of(labelled: Sequence[LabelledPrompt], shares: dict[str, float]) -> Array:
    cells = [(primary(each.language), each.label, each.source) for each in labelled]
    n_cell, n_language = Counter(cells), Counter(language for language, _, _ in cells)
    weights = np.array([n_cell[cell] ** -0.5 for cell in cells])
    of_label: Counter[tuple[str, str]] = Counter()
    for (language, label, _), weight in zip(cells, weights, strict=True):
        of_label[language, label] += float(weight)  # type: ignore[assignment]
    factors = np.array([
        shares[label] * n_language[language] ** 0.5 / of_label[language, label] for language, label, _ in cells
    ])  # fmt: skip
    weights = weights * factors
    return np.asarray(weights / weights.mean(), dtype=np.float64)


def folds_of(labelled: Sequence[LabelledPrompt]) -> list[npt.NDArray[np.bool_]]:
    """Return the folds of a left-out-source measurement, each (n,), bool; a source may be in several.

    Every fold holds both sides. Were a source of harmful prompts left out alone, the others would still hold every
    benign source, what is unknown would look harmful or benign as a whole, and scores of different folds could not
    be pooled. So a source of one label is left out together with one of each other label, in turn.
    """
    sources = np.array([each.source for each in labelled])
    labels: dict[str, set[str]] = {}
    for each in labelled:
        labels.setdefault(each.source, set()).add(each.label)
    both = sorted(name for name, found in labels.items() if "harmful" in found and len(found) > 1)
    sides = [
        sorted(name for name, found in labels.items() if name not in both and label in found and not found & before)
        for label, before in (("harmful", set()), ("pseudo_harmful", set()), ("harmless", {"pseudo_harmful"}))
    ]
    groups = [[name] for name in both]
    if sides[0] and (sides[1] or sides[2]):
        for number in range(max(map(len, sides))):
            groups.append([side[number % len(side)] for side in sides if side])
    elif len(both) > 1 or not both:
        groups += [[name] for name in labels if name not in both]
    if len(groups) < 2 or len(labels) > len({name for group in groups for name in group}):
        fold = np.array([int(digest("fold", each.family), 16) % N_FOLDS for each in labelled])
        return [fold == number for number in range(N_FOLDS) if (fold == number).any()]
    return [np.isin(sources, group) for group in groups]


def _named(name: str, compute: Callable[[], tuple[float, float, float]]) -> dict[str, float | None]:
    try:
        value, low, high = compute()
    except BoundaryError:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _logistic() -> LogisticRegression:
    return LogisticRegression(C=STRENGTH, tol=1e-3, max_iter=500)
