"""True harm along the margin and along the harm axis: by layer, and per language."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from rass_core.probe.harm_types import HARM_METRICS
from rass_core.report.figures import B_COLOUR, GREY, ORACLE_COLOUR, Plot, lay_out
from rass_core.report.words import SHARE_METRICS, language_name, show_interval, show_number, show_share
from rass_core.vocabulary import Row

LINES = (
    ("auc", "harm axis", ORACLE_COLOUR, "circle", "solid"),
    ("same_source", "harm axis, inside one source", "#2b86cc", "diamond", "dot"),
    ("new_source", "harm axis, sources it has not seen", "#e8a30c", "square", "dot"),
    ("margin", "margin", B_COLOUR, "triangle-up", "solid"),
)
"""Column of `harm_axes`, name, colour, symbol and dash."""

HarmRows = Mapping[str, Mapping[str, Row]]
"""language → metric → row of `evaluations`."""


def harm_figures(evaluations: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Return what was measured of both kinds of misalignment, on the model as it came."""
    found: dict[str, dict[str, Row]] = {}
    dataset_of = dict.fromkeys(HARM_METRICS, "given") | dict.fromkeys(SHARE_METRICS, "pseudo_harmful")
    for row in evaluations:
        if row["variant"] == "base" and dataset_of.get(row["metric"], "") == row["dataset"]:
            found.setdefault(row["language"] or "all", {}).setdefault(row["metric"], row)
    return found


def harm_by_layer(rows: Sequence[Row]) -> Plot:
    """Return the AUC of true harm over layers, along the margin and along the harm axis."""
    layers = sorted((row for row in rows if not row["chosen"] and row["auc"] is not None), key=lambda row: row["layer"])
    if not layers:
        return Plot(
            None, next((row["reason"] for row in rows if row["reason"]), "No harm axis was fitted in this run.")
        )
    figure = lay_out(420, "layer (decoder block, 0 is the first)", "AUC of true harm")
    for column, name, colour, symbol, dash in LINES:
        shown = [row for row in layers if row[column] is not None]
        if shown:
            figure.add_trace(_line(shown, column, name, colour, symbol, dash))
    chosen = next((row for row in rows if row["chosen"]), None)
    if chosen is not None:
        figure.add_vline(chosen["layer"], line={"color": GREY, "width": 1.5})
        figure.add_annotation(
            text="<b>harm axis</b>",
            x=chosen["layer"],
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            font={"color": GREY, "size": 12},
        )
    figure.add_hline(0.5, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_xaxes(tickformat="d")
    return Plot(figure)


def _line(rows: Sequence[Row], column: str, name: str, colour: str, symbol: str, dash: str) -> go.Scatter:
    words = [
        f"{name}<br>layer {row['layer']}, AUC "
        f"{show_interval(row[column], row[f'{column}_low'], row[f'{column}_high'])}<br>{row['n']} prompts"
        + (f"<br>position {show_number(row['position'], 0)}" if column != "margin" else "")
        for row in rows
    ]
    return go.Scatter(
        x=[row["layer"] for row in rows], y=[row[column] for row in rows], mode="lines+markers", name=name,
        hovertext=words, hoverinfo="text", line={"color": colour, "width": 2, "dash": dash},
        marker={"color": colour, "size": 9, "symbol": symbol},
        error_y={
            "array": [row[f"{column}_high"] - row[column] for row in rows],
            "arrayminus": [row[column] - row[f"{column}_low"] for row in rows],
            "symmetric": False, "color": colour, "thickness": 1, "width": 3,
        },
    )  # fmt: skip


def misalignment_table(figures: HarmRows, boundaries: Sequence[Row]) -> dict[str, Any]:
    """Return head and cells: where over-refused prompts lie, how well harm is separated, and what that shows."""
    kinds = {row["language"]: row["kind"] for row in boundaries if row["variant"] in (None, "base")}
    head = ["Language", "Over-refused", "b or below", "In the band", "Beyond b*", "Harm AUC, margin"]
    head += ["harm axis", "inside one source", "new sources", "Gap", "Shown"]
    body = []
    for language, mine in sorted(figures.items(), key=lambda item: (item[0] != "all", item[0])):
        shares = [mine.get(metric) for metric in SHARE_METRICS]
        margin, axis, new_source, same_source, gap, _ = (mine.get(metric) for metric in HARM_METRICS)
        aucs = (margin, axis, same_source, new_source, gap)
        body.append(
            [
                language_name(language),
                _n(shares[0]),
                *("–" if row is None else show_share(row["value"], row["low"], row["high"]) for row in shares),
                *("–" if row is None else show_interval(row["value"], row["low"], row["high"]) for row in aucs),
                kinds.get(language) or "–",
            ]
        )
    return {"head": head, "rows": body}


def _n(row: Row | None) -> str:
    return "–" if row is None else str(row["n"])
