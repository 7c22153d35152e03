"""Several models side by side: where each begins to refuse, and at what rates, by language."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rass_core.errors import LakeError
from rass_core.lake.store import Lake
from rass_core.lake.views import fetch
from rass_core.vocabulary import Row

RATE_COLUMNS = {
    "band_share": ("band_share", "given"),
    "over_refusal": ("over_refusal_rate", "pseudo_harmful"),
    "over_refusal_wide": ("over_refusal_rate_wide", "pseudo_harmful"),
    "over_refusal_harmless": ("over_refusal_rate", "harmless"),
    "safety": ("safety_rate", "harmful"),
    "over_refused_in_band": ("over_refused_in_band", "pseudo_harmful"),
    "over_refused_beyond": ("over_refused_beyond", "pseudo_harmful"),
    "harm_auc_margin": ("harm_auc_margin", "given"),
    "harm_auc_axis": ("harm_auc_axis", "given"),
}
"""Column → (metric, dataset) of the rows of `evaluations` that the probe writes."""
MEASURES = ("b", "b_oracle", "misalignment", *RATE_COLUMNS)
"""Each a column, with `_low` and `_high` beside it."""
COLUMNS = (
    "model_id",
    "language",
    *(name + end for name in MEASURES for end in ("", "_low", "_high")),
    "n",
    "n_refused",
    "reason",
    "kind",
)
WIDTH = 80
_LEGEND = (
    "b: margin where the model refuses half the time. b*: where true harm begins. misalignment: b* − b, above 0 it"
    " refuses too early. band: share of benign prompts between b and b*. over, safe: refused share of pseudo-harmful"
    " and of harmful prompts. n: prompts of the fit. In brackets 95% intervals."
)

_NEWEST = """
  SELECT model_id, run_id, shard FROM boundaries
  JOIN (SELECT DISTINCT run_id, key AS shard, committed_at FROM commits) USING (run_id, shard)
  WHERE variant = 'base' AND model_id IS NOT NULL
  QUALIFY row_number() OVER (PARTITION BY model_id ORDER BY committed_at DESC, shard) = 1
"""
_OF_NEWEST = "SEMI JOIN newest USING (model_id, run_id, shard) WHERE t.variant = 'base'"


def compare_models(lake: Lake) -> list[Row]:
    """Return one row per model × language, from the newest boundaries of each model that the lake holds.

    Returns:
        Rows with `COLUMNS`, by model and language; what was not measured is null, with the boundary's reason.

    Raises:
        LakeError: No boundary there, only one model's, or a damaged table.
    """
    lake.check_whole("boundaries", "evaluations")
    connection = lake.connect()
    boundaries, evaluations = (
        fetch(connection, f"WITH newest AS ({_NEWEST}) SELECT t.* FROM {table} t {_OF_NEWEST}")
        for table in ("boundaries", "evaluations")
    )
    names = sorted({row["model_id"] for row in boundaries})
    if not names:
        raise LakeError(f"{lake}: no boundary was measured there; `rass probe CONFIG.yaml` measures it")
    if len(names) == 1:
        raise LakeError(
            f"{lake}: has one model, {names[0]}, and nothing to compare it with; add others under `models:`"
            " and run `rass probe CONFIG.yaml`"
        )
    return beside(boundaries, evaluations)


def beside(boundaries: Iterable[Mapping[str, Any]], evaluations: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return one row per model × language, with `COLUMNS`, ordered by model and language.

    Args:
        boundaries: Rows of `boundaries`; those of mitigated variants are not looked at.
        evaluations: Rows of `evaluations`; the first of each model, language, metric and dataset counts.
    """
    rates: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in evaluations:
        if row["variant"] == "base":
            rates.setdefault((row["model_id"], row["language"], row["metric"], row["dataset"]), row)
    found: dict[tuple[str, str], Row] = {}
    for row in boundaries:
        model, language = row["model_id"], row["language"]
        if row["variant"] not in (None, "base") or model is None or language is None or (model, language) in found:
            continue
        values = {name: row[name] for name in COLUMNS if name in row}
        for column, place in RATE_COLUMNS.items():
            rate = rates.get((model, language, *place), {})
            values |= {
                column + end: rate.get(name) for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
        found[model, language] = {name: values[name] for name in COLUMNS}
    return [found[place] for place in sorted(found)]


def told_side_by_side(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rows as lines for a terminal, a heading a model, within 80 columns where names are not long."""
    head = ["", "b", "b*", "misalignment", "band", "over", "safe", "n"]
    cells = [head, *(_cells(row) for row in rows if row["b"] is not None)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    widths[0] = max([widths[0], *(len(row["language"]) for row in rows)])
    lines = [_line(head, widths)]
    for model, mine in groupby(rows, key=lambda row: row["model_id"]):
        lines.append(model)
        for row in mine:
            if row["b"] is not None:
                lines.append(_line(_cells(row), widths))
                continue
            language = row["language"].ljust(widths[0])
            rest = f"not identified: {row['reason'] or 'no reason was stored'}; "
            rest += f"over {_share(row['over_refusal'])}, safe {_share(row['safety'])}"
            lines += textwrap.wrap(f"{language} {rest}", WIDTH, subsequent_indent=" " * (len(language) + 1))
    return [*lines, "", *textwrap.wrap(_LEGEND, WIDTH)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["language"],
        *(_interval(row, name) for name in ("b", "b_oracle", "misalignment")),
        *(_share(row[name]) for name in ("band_share", "over_refusal", "safety")),
        "–" if row["n"] is None else str(row["n"]),
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        text.ljust(width) if place < 4 else text.rjust(width)
        for place, (text, width) in enumerate(zip(cells, widths, strict=True))
    )
    return " ".join([first, *rest]).rstrip()


def _interval(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f},{high:.2f}]"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"
