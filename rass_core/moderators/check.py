"""Errors of moderators on given labelled prompts, and whether they separate harmful from benign at all."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rass_core.errors import BoundaryError
from rass_core.stats.agreement import rogan_gladen
from rass_core.stats.intervals import auc_interval, difference_interval, wilson
from rass_core.text import digest
from rass_core.vocabulary import ALL, BENIGN, LABELS, Row, Verdict

MIN_PROMPTS = 20
"""Harmful prompts, and benign ones, below which a check does not decide whether a moderator is of use."""
LEAST_PER_LABEL = 40
"""Prompts of a label that are sampled over all languages, where there are so many."""
FALSE_BENIGN = "moderator_false_benign_rate"
FALSE_HARMFUL = "moderator_false_harmful_rate"
PASSED = "moderator_pass_rate"
UNSCORED = "moderator_unscored_share"
DECLINED = "moderator_declined_share"
AUC = "moderator_auc"
YOUDEN = "moderator_youden_j"

Cell = Mapping[str, Sequence[Verdict]]


def sample(prompts: Sequence[Row], n_per_cell: int, seed: int) -> list[Row]:
    """Return a balanced sample: up to n_per_cell prompts per language and label, the same for one seed.

    With few languages a cell gets more, up to `LEAST_PER_LABEL` per label. A family gives a second prompt only where
    a cell would else not be filled: a prompt and its translations are not independent.

    Args:
        prompts: Rows of the table `prompts`.
    """
    languages = sorted({row["language"] for row in prompts})
    size = max(n_per_cell, math.ceil(LEAST_PER_LABEL / max(1, len(languages))))
    ordered = sorted(prompts, key=lambda row: digest("moderator check", seed, row["prompt_id"]))
    taken: set[str] = set()
    found = []
    for language in languages:
        for label in LABELS:
            here = [row for row in ordered if row["language"] == language and row["label"] == label]
            chosen: list[Row] = []
            for is_repeat in (False, True):
                for row in here:
                    if len(chosen) < size and (row["family"] in taken) is is_repeat and row not in chosen:
                        chosen.append(row)
                        taken.add(row["family"])
            found += chosen
    return found


def check_rows(prompts: Sequence[Row], words: Sequence[Mapping[str, Verdict]]) -> list[Row]:
    """Return the errors of each moderator and of their quorum as rows of `evaluations`.

    `variant` is the moderator, `dataset` the true label. The false-benign rate is the share of harmful prompts called
    benign and the false-harmful rate that of benign prompts called harmful, both among prompts called either. The pass
    rate is the share called benign among all asked: only such prompts can be selected. Youden's J is the pass rate of
    the benign less that of the harmful. Language "all" is over the languages in which the moderator scores anything.

    Args:
        prompts: Rows of `prompts` with their true labels, (n,).
        words: Each moderator's verdict, and the quorum's, on each, (n,).
    """
    rows = []
    languages = sorted({row["language"] for row in prompts})
    for name in sorted({name for said in words for name in said}):
        pairs = [(row, said[name]) for row, said in zip(prompts, words, strict=True)]
        # languages that it does not read would dilute what it does in the others; they have rows of their own
        read = {row["language"] for row, verdict in pairs if _kind(verdict) is not None} or set(languages)
        for language in [ALL, *languages]:
            among = read if language == ALL else {language}
            cell = {
                label: [verdict for row, verdict in pairs if row["label"] == label and row["language"] in among]
                for label in LABELS
            }
            rows += [{"variant": name, "language": language, **row} for row in _cell_rows(cell)]
    return rows


def _cell_rows(cell: Cell) -> list[Row]:
    rows = []
    for label in LABELS:
        verdicts = cell[label]
        called = {kind: sum(kind == _kind(each) for each in verdicts) for kind in ("benign", "harmful")}
        n_scored = called["benign"] + called["harmful"]
        wrong, metric = ("benign", FALSE_BENIGN) if label == "harmful" else ("harmful", FALSE_HARMFUL)
        rows.append(_row(metric, label, n_scored, len(verdicts) - n_scored, _rate(called[wrong], n_scored)))
        rows.append(_row(PASSED, label, len(verdicts), None, _rate(called["benign"], len(verdicts))))
    everything = [each for label in LABELS for each in cell[label]]
    n_off = sum(_kind(each) is None for each in everything)
    rows.append(_row(UNSCORED, ALL, len(everything), None, _rate(n_off, len(everything))))
    n_declined = sum(each.declined is not None for each in everything)
    rows.append(_row(DECLINED, ALL, len(everything), None, _rate(n_declined, len(everything))))
    side = hard_side(cell)
    benign = [each for label in side for each in cell[label]]
    scored = [(each.score, is_benign) for is_benign, part in ((True, benign), (False, cell["harmful"]))
              for each in part if each.score is not None]  # fmt: skip
    values, positive = np.array([score for score, _ in scored]), np.array([kind for _, kind in scored], bool)
    name = "+".join(side)
    n = len(benign) + len(cell["harmful"])
    rows.append(_row(AUC, name, len(scored), n - len(scored), lambda: auc_interval(values, positive)))
    passed = [(sum(_kind(each) == "benign" for each in part), len(part)) for part in (benign, cell["harmful"])]
    rows.append(_row(YOUDEN, name, n, None, lambda: difference_interval(passed[0], passed[1])))
    return rows


def hard_side(cell: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Return the benign labels that harmful prompts are compared with: pseudo_harmful, where there are enough."""
    return ("pseudo_harmful",) if len(cell["pseudo_harmful"]) >= MIN_PROMPTS else ("pseudo_harmful", "harmless")


def useless(rows: Sequence[Row], name: str, language: str = ALL) -> tuple[str | None, str | None]:
    """Return (why a moderator is of no use, why this cannot be decided); of both at most one.

    It is of no use where it scores nothing, or where the 95% interval of Youden's J reaches 0: at J = 0, what it passes
    holds as large a share of harmful prompts as what it is given.

    Args:
        rows: Rows of `check_rows`.
        name: Name of the moderator, or of the quorum.
    """
    youden = _find(rows, name, YOUDEN, None, language)
    off = _find(rows, name, UNSCORED, ALL, language)
    if off["value"] == 1:
        return f"scores none of {off['n']} prompts, so nothing that is written can be selected", None
    (n_harmful, harmful), (n_benign, benign) = pass_counts(rows, name, language)
    if min(harmful, benign) < MIN_PROMPTS:
        return None, (
            f"was checked on {harmful} harmful and {benign} benign prompts; {MIN_PROMPTS} of each are needed to say "
            "whether it is better than chance, add labelled prompts"
        )
    if youden["low"] > 0:
        return None, None
    return (
        f"calls {n_harmful} of {harmful} harmful prompts benign, and {n_benign} of {benign} "
        f"{youden['dataset'].replace('+', ' or ')} ones: no better than chance (Youden's J {youden['value']:.2f} "
        f"[{youden['low']:.2f}, {youden['high']:.2f}])"
    ), None


def line(rows: Sequence[Row], name: str, language: str = ALL) -> str:
    """Return a moderator's figures in one line."""
    benign, harmful = _find(rows, name, FALSE_BENIGN, "harmful", language), []
    parts = [f"harmful called benign {percent(benign)}"]
    for label in BENIGN[::-1]:
        harmful.append(_find(rows, name, FALSE_HARMFUL, label, language))
        if harmful[-1]["n"]:
            parts.append(f"{label} called harmful {percent(harmful[-1])}")
    auc = _find(rows, name, AUC, None, language)
    if auc["value"] is not None:
        parts.append(f"AUC {auc['value']:.2f} [{auc['low']:.2f}, {auc['high']:.2f}]")
    off = _find(rows, name, UNSCORED, ALL, language)
    if off["value"]:
        declined = round((_find(rows, name, DECLINED, ALL, language)["value"] or 0) * off["n"])
        apart = f", of these {declined} declined or filtered" if declined else ""
        parts.append(f"{round(off['value'] * off['n'])} of {off['n']} unscored{apart}")
    return f"moderator {name}: " + ", ".join(parts)


def percent(row: Row) -> str:
    """Return a rate with its interval and n, in percent."""
    if row["value"] is None:
        return "unknown"
    return f"{100 * row['value']:.0f}% [{100 * row['low']:.0f}, {100 * row['high']:.0f}] of {row['n']}"


def harmful_share(
    prior: float, rows: Sequence[Row], name: str, language: str = ALL, *, scored: bool = False
) -> float | None:
    """Return the expected share of harmful prompts among those called benign, by Bayes' rule; None where unknown.

    prior × p_harmful ÷ (prior × p_harmful + (1 − prior) × p_benign), where p are the pass rates of harmful prompts
    and of the benign ones that Youden's J compares them with. It holds as far as the written prompts of each kind
    are moderated like the given ones.

    Args:
        prior: Share of harmful prompts among those asked, 0 to 1.
        scored: Take prior and pass rates over the prompts called benign or harmful in place of all asked.
    """
    harmful, benign = pass_counts(rows, name, language, scored=scored)
    if not harmful[1] or not benign[1]:
        return None
    bad, good = prior * harmful[0] / harmful[1], (1 - prior) * benign[0] / benign[1]
    return bad / (bad + good) if bad + good else None


def pass_counts(
    rows: Sequence[Row], name: str, language: str = ALL, *, scored: bool = False
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (called benign, asked) of the harmful prompts, and of the benign ones they are compared with.

    Args:
        scored: Count the prompts called benign or harmful in place of all asked.
    """
    labels = _find(rows, name, YOUDEN, None, language)["dataset"].split("+")
    found = []
    for label in ("harmful", *labels):
        passed = _find(rows, name, PASSED, label, language)
        n_passed = round((passed["value"] or 0) * passed["n"])
        metric = FALSE_BENIGN if label == "harmful" else FALSE_HARMFUL
        found.append((n_passed, _find(rows, name, metric, label, language)["n"] if scored else passed["n"]))
    return found[0], (sum(hits for hits, _ in found[1:]), sum(n for _, n in found[1:]))


def written_share(
    rows: Sequence[Row], name: str, n_passed: int, n_scored: int, seed: int
) -> tuple[float, float, float]:
    """Return the estimated share of harmful prompts among written ones, and its interval, each in [0, 1].

    Args:
        n_passed: Written prompts called benign.
        n_scored: Written prompts called benign or harmful.

    Raises:
        BoundaryError: The pass rates cannot explain how many passed, or are too alike.

    Source: Rogan and Gladen 1978, as `rass_core.stats.intervals.rogan_gladen`.
    """
    harmful, benign = pass_counts(rows, name, scored=True)
    blocked = (harmful[1] - harmful[0], harmful[1])
    value, low, high = rogan_gladen(n_passed, n_scored, benign, blocked, seed)
    return 1 - value, 1 - high, 1 - low


def _kind(verdict: Verdict) -> str | None:
    if verdict.outcome in BENIGN:
        return "benign"
    return "harmful" if verdict.outcome == "harmful" else None


def _rate(hits: int, n: int) -> Callable[[], tuple[float, float, float]]:
    return lambda: wilson(hits, n)


def _row(
    metric: str, dataset: str, n: int, n_unscored: int | None, compute: Callable[[], tuple[float, float, float]]
) -> Row:
    row: Row = {"metric": metric, "dataset": dataset, "n": n, "n_unscored": n_unscored}
    try:
        value, low, high = compute()
    except BoundaryError as error:
        return row | {"value": None, "low": None, "high": None, "reason": str(error)}
    return row | {"value": value, "low": low, "high": high, "reason": None}


def _find(rows: Sequence[Row], name: str, metric: str, dataset: str | None = None, language: str = ALL) -> Row:
    return next(
        row for row in rows
        if (row["variant"], row["metric"], row["language"]) == (name, metric, language)
        and dataset in (None, row["dataset"])
    )  # fmt: skip
