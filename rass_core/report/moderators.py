"""The moderators' errors on given prompts, and what they mean for what is selected."""

from collections.abc import Mapping, Sequence
from typing import Any

from rass_core.errors import BoundaryError
from rass_core.judges.panel import PANEL
from rass_core.moderators import check
from rass_core.report.words import language_name, show_percent
from rass_core.vocabulary import ALL, Row

PRIORS = (0.1, 0.3, 0.5)
"""Shares of harmful prompts among the written ones for which the share among those that pass is shown."""
HEAD = (
    "Moderator",
    "Language",
    "Harmful called benign",
    "Pseudo-harmful called harmful",
    "Harmless called harmful",
    "AUC",
    "Unscored",
)


def is_about_moderators(row: Row) -> bool:
    """Return whether a row of `evaluations` is a moderator's figure."""
    return (row["metric"] or "").startswith("moderator_")


def moderators_section(rows: Mapping[str, list[Row]]) -> dict[str, Any] | None:
    """Return head and cells of the moderators' errors and what follows from them; None where none were measured."""
    found = [row for row in rows["evaluations"] if is_about_moderators(row)]
    if not found:
        return None
    places = dict.fromkeys((row["variant"], row["language"]) for row in found)
    members = {name for name, _ in places} - {PANEL}
    shown = [place for place in places if place[0] != PANEL or len(members) > 1]
    shown.sort(key=lambda place: (place[0] == PANEL, place[0], place[1] != ALL, place[1]))
    return {
        "head": list(HEAD),
        "n_least": check.MIN_PROMPTS,
        "rows": [_cells(found, *place) for place in shown],
        "shares": _shares(found),
        "estimate": _estimate(found, rows["rounds"]),
    }


def _cells(rows: Sequence[Row], name: str, language: str) -> list[str]:
    def row(metric: str, dataset: str | None = None) -> Row:
        return next(
            each
            for each in rows
            if (each["variant"], each["language"], each["metric"]) == (name, language, metric)
            and dataset in (None, each["dataset"])
        )

    auc, off = row(check.AUC), row(check.UNSCORED)
    return [
        "quorum" if name == PANEL else name,
        "all" if language == ALL else language_name(language),
        *(
            check.percent(each) if each["value"] is not None else "–"
            for each in (
                row(check.FALSE_BENIGN, "harmful"),
                row(check.FALSE_HARMFUL, "pseudo_harmful"),
                row(check.FALSE_HARMFUL, "harmless"),
            )
        ),
        "–" if auc["value"] is None else f"{auc['value']:.2f} [{auc['low']:.2f}, {auc['high']:.2f}], n = {auc['n']}",
        "–" if off["value"] is None else f"{round(off['value'] * off['n'])} of {off['n']}",
    ]


def _shares(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (share of harmful among written prompts, expected share among those that pass the quorum)."""
    shares = [(prior, check.harmful_share(prior, rows, PANEL)) for prior in PRIORS]
    return [(show_percent(prior), show_percent(share)) for prior, share in shares if share is not None]


def _estimate(rows: Sequence[Row], rounds: Sequence[Row]) -> str | None:
    """Return what this run's own pass rate says of the written prompts, or why it says nothing; None before rounds."""
    n_scored = sum(row["n_coherent"] or 0 for row in rounds)
    n_passed = sum(row["n_benign"] or 0 for row in rounds)
    if not n_scored:
        return None
    said = f"In this run {n_passed:,} of {n_scored:,} written prompts that were called benign or harmful passed."
    try:
        share, low, high = check.written_share(rows, PANEL, n_passed, n_scored, seed=0)
    except BoundaryError as error:
        return f"{said} How many of them are harmful cannot be estimated: {error}."
    passing = [check.harmful_share(each, rows, PANEL, scored=True) for each in (share, low, high)]
    if any(each is None for each in passing):
        return said
    value, least, most = (show_percent(each) for each in passing)
    return (
        f"{said} With the error rates above, an estimated {show_percent(share)} [{show_percent(low)}, "
        f"{show_percent(high)}] of these are harmful, and {value} [{least}, {most}] of those that passed. "
        "The second interval takes the error rates as known."
    )
