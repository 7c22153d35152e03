"""Every figure of table `evaluations`, one column per variant."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rass_core.report.moderators import is_about_moderators
from rass_core.report.words import language_name, show_interval
from rass_core.vocabulary import Row


def evaluation_table(rows: Sequence[Row]) -> dict[str, Any]:
    """Return head, rows of cells with one column per variant, base first, and what limits them.

    The moderators' errors have a section of their own. Raw rates and, where the panel's errors are known, corrected
    ones stand side by side.
    """
    rows = [row for row in rows if not is_about_moderators(row)]
    variants = sorted({row["variant"] or "base" for row in rows}, key=lambda name: (name != "base", name))
    cells: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        is_rate = (row["metric"] or "").endswith(("refusal_rate", "_rate_wide"))
        scale, digits, unit = (100, 0, "%") if is_rate else (1, 3, "")
        value, low, high = (None if row[name] is None else scale * row[name] for name in ("value", "low", "high"))
        text = f"– ({row['reason'] or 'no value'})"
        if value is not None:
            text = show_interval(value, low, high, digits).replace(" [", f"{unit} [", 1) + (unit if low is None else "")
            text += f", n = {row['n']}" if row["n"] is not None else ""
            text += f", {row['n_unscored']} unscored" if row["n_unscored"] else ""
            if row["corrected"] is not None:
                value, low, high = (scale * row[name] for name in ("corrected", "corrected_low", "corrected_high"))
                text += f"; corrected {show_interval(value, low, high, digits)}{unit}"
        place = (row["metric"] or "", row["dataset"] or "", row["language"] or "all")
        cells[place][row["variant"] or "base"] = text
    body = [
        [metric.replace("_", " "), dataset, language_name(code), *(found.get(name, "–") for name in variants)]
        for (metric, dataset, code), found in sorted(cells.items())
    ]
    limits = sorted({row["reason"] for row in rows if row["value"] is not None and row["reason"]})
    return {"head": ["Metric", "Data set", "Language", *variants], "rows": body, "limits": limits}
