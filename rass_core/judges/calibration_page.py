"""The page beside a calibration: one HTML file that shows it, opened from disk, with no network."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from rass_core.judges.calibration import Labelled
from rass_core.judges.panel import PANEL
from rass_core.stats.agreement import reliability
from rass_core.vocabulary import ALL, SCORED, Verdict

_COLOURS = ("#2b86cc", "#e8a30c", "#8b5cf6", "#0d9488", "#8d6e9f", "#7b8794")
_MISSED, _ALARMS = "#cf3f5b", "#2b86cc"
_COLUMNS = {
    "n": "n", "n_unscored": "unscored", "accuracy": "accuracy %", "kappa": "κ", "missed": "missed refusals %",
    "false_alarms": "false alarms %", "ece": "ECE",
}  # fmt: skip
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Calibration of the judges</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1000px; margin: 2rem auto; padding: 0 1rem }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; white-space: nowrap }}
td, th {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e4e7eb }}
td:first-child, th:first-child {{ text-align: left }}
small {{ color: #616e7c }}
td small {{ display: block; min-width: 14rem; white-space: normal; text-align: left }}
</style></head><body>
<h1>Calibration of the judges</h1>
<p>{facts}</p>
<h2>What a score promises, and what it keeps</h2>
{reliability}
<p><small>Each mark is about a tenth of the responses, placed at their mean score; on the dotted line, of those with a
score of 0.7 seven in ten are refused, in whole or in part. Equal scores share a mark.</small></p>
<h2>Errors of the panel by language</h2>
{errors}
<p><small>Missed refusals: share of the responses labelled refusal or partial that the panel took for answered. False
alarms: share of those labelled compliance that it took for refused. Bars are 95% intervals.</small></p>
{tables}
</body></html>
"""


def page(table: pa.Table, labelled: Labelled, verdicts: Mapping[str, Sequence[Verdict]], source: str) -> str:
    """Return the page of a calibration.

    Args:
        table: What `calibrate` returned.
        labelled: The truth.
        verdicts: Judge → its verdicts, in the order of the labels.
        source: What was judged, in words.
    """
    rows = table.to_pylist()
    by_language = [row for row in rows if row["judge"] == PANEL and row["model"] == row["family"] == ALL]
    by_model = [row for row in rows if row["judge"] == PANEL and row["language"] == ALL and row["model"] != ALL]
    by_judge = [row for row in rows if row["language"] == row["model"] == row["family"] == ALL]
    counts = ", ".join(f"{list(labelled.labels).count(label):,} {label}" for label in SCORED)
    tables = [
        _table(name, key, chosen)
        for name, key, chosen in (
            ("language", "language", by_language), ("model", "model", by_model), ("judge", "judge", by_judge)
        )
        if chosen
    ]  # fmt: skip
    first = _plot(_reliability(labelled, verdicts), with_script=True)
    return _PAGE.format(
        facts=html.escape(f"{len(labelled.labels):,} labelled responses of {source}: {counts}."),
        reliability=first,
        errors=_plot(_errors(by_language), with_script=False),
        tables="\n".join(tables),
    )


def _reliability(labelled: Labelled, verdicts: Mapping[str, Sequence[Verdict]]) -> go.Figure:
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#9aa5b1"}, hoverinfo="skip", showlegend=False
    )
    for number, (judge, given) in enumerate(verdicts.items()):
        pairs = zip(given, labelled.labels, strict=True)
        known = [(verdict.score, label != "compliance") for verdict, label in pairs if verdict.score is not None]
        if not known:
            continue
        bins = reliability([score for score, _ in known], [is_refused for _, is_refused in known])
        figure.add_scatter(
            x=bins[:, 0], y=bins[:, 1], mode="lines+markers", name=html.escape(judge), customdata=bins[:, 2],
            line={"color": _COLOURS[number % len(_COLOURS)], "width": 3 if judge == PANEL else 1.5},
            marker={"size": 6 + 10 * np.sqrt(bins[:, 2] / bins[:, 2].max())},
            hovertemplate="mean score %{x:.2f}, refused %{y:.0%}, n = %{customdata:,}",
        )  # fmt: skip
    figure.update_layout(height=460, xaxis_title="score", yaxis_title="share refused", yaxis_tickformat=".0%")
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure


def _errors(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    figure = go.Figure()
    languages = [row["language"] for row in rows]
    for name, said, colour, shift in (
        ("missed", "missed refusals", _MISSED, -0.15), ("false_alarms", "false alarms", _ALARMS, 0.15)
    ):  # fmt: skip
        known = [(i + shift, row) for i, row in enumerate(rows) if row[name] is not None]
        values = [row[name] for _, row in known]
        ends = [[(row[f"{name}_{end}"], row[name]) for _, row in known] for end in ("low", "high")]
        figure.add_scatter(
            x=values, y=[place for place, _ in known], mode="markers", name=said,
            marker={"color": colour, "size": 9}, customdata=[row["language"] for _, row in known],
            error_x={"type": "data", "symmetric": False, "thickness": 1.5, "width": 3,
                     "arrayminus": [0 if low is None else value - low for low, value in ends[0]],
                     "array": [0 if high is None else high - value for high, value in ends[1]]},
            hovertemplate="%{customdata}: %{x:.1%}",
        )  # fmt: skip
    figure.update_layout(height=max(220, 120 + 28 * len(rows)), xaxis_tickformat=".0%")
    figure.update_xaxes(range=[-0.01, 1.01], side="top")
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=languages, autorange="reversed", zeroline=False)
    return figure


def _plot(figure: go.Figure, with_script: bool) -> str:
    figure.update_layout(
        template="plotly_white", margin={"l": 60, "r": 20, "t": 50, "b": 80}, font={"size": 13},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
    )  # fmt: skip
    return str(figure.to_html(
        full_html=False, include_plotlyjs=with_script, config={"displayModeBar": False, "responsive": True}
    ))  # fmt: skip


def _table(name: str, key: str, rows: Iterable[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{each}</th>" for each in (name, *_COLUMNS.values(), ""))
    body = "".join(
        f"<tr><td>{html.escape(str(row[key]))}</td>"
        + "".join(f"<td>{shown(row, column)}</td>" for column in _COLUMNS)
        + f"<td><small>{html.escape(row['reason'] or '')}</small></td></tr>\n"
        for row in rows
    )
    return f'<h2>By {name}</h2>\n<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def shown(row: Mapping[str, Any], column: str) -> str:
    """Return a cell as people read it, with its interval: 0.86 [.81, .91], rates in percent, – for none."""
    value, low, high = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    if column.startswith("n"):
        return f"{value:,}"
    if column == "ece":
        return f"{value:.3f}"
    if column == "kappa":
        ends = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]".replace("0.", ".")
        return f"{value:.2f}{ends}".replace("-", "−")
    return f"{100 * value:.1f}" + ("" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]")
