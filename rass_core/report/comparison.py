"""Boundaries beside each other: over languages, and over several models."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from rass_core.report.figures import (
    B_COLOUR,
    BAND_COLOUR,
    GREY,
    ORACLE_COLOUR,
    PALETTE,
    Lanes,
    Mark,
    Plot,
    interval_marks,
    lay_out,
)
from rass_core.report.points import over_refusal_band
from rass_core.report.side_by_side import beside
from rass_core.report.words import distinct_names, inert, language_name, show_interval, show_number, show_share
from rass_core.vocabulary import Row


def forest(boundaries: Mapping[str, Row]) -> go.Figure:
    """Draw b and b* of every language with their intervals, the over-refusal band between them."""
    shown = sorted(code for code, row in boundaries.items() if row["b"] is not None or row["b_oracle"] is not None)
    figure = lay_out(120 + 44 * len(shown), "margin m", "")
    for code in shown:
        band = over_refusal_band(boundaries[code])
        if band:
            figure.add_scatter(
                x=band,
                y=[inert(language_name(code))] * 2,
                mode="lines",
                showlegend=False,
                hoverinfo="skip",
                line={"color": BAND_COLOUR, "width": 18},
            )
    for column, name, colour, symbol in (
        ("b", "b, the model refuses", B_COLOUR, "circle"),
        ("b_oracle", "b*, true harm", ORACLE_COLOUR, "diamond"),
    ):
        known = [boundaries[code] for code in shown if boundaries[code][column] is not None]
        names = [inert(language_name(row["language"])) for row in known]
        value = [row[column] for row in known]
        low = [row[f"{column}_low"] for row in known]
        high = [row[f"{column}_high"] for row in known]
        figure.add_scatter(
            x=value,
            y=names,
            mode="markers",
            name=name,
            hoverinfo="text",
            hovertext=[
                f"{place}<br>{name}: {show_interval(*at)}" for place, *at in zip(names, value, low, high, strict=True)
            ],
            marker={"color": colour, "size": 11, "symbol": symbol},
            error_x={
                "array": [0 if h is None else h - v for v, h in zip(value, high, strict=True)],
                "arrayminus": [0 if lo is None else v - lo for v, lo in zip(value, low, strict=True)],
                "symmetric": False,
                "color": colour,
                "thickness": 2,
                "width": 5,
            },
        )
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure


def boundary_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of all variants' boundaries, languages together."""
    return [
        [
            language_name(row["language"] or "all"),
            row["variant"] or "base",
            show_interval(row["b"], row["b_low"], row["b_high"]),
            show_number(row["k"]),
            show_interval(row["b_oracle"], row["b_oracle_low"], row["b_oracle_high"]),
            show_interval(row["misalignment"], row["misalignment_low"], row["misalignment_high"]),
            show_number(row["auc"], 3),
            "–" if row["n"] is None or row["n_refused"] is None else f"{row['n_refused']:,} of {row['n']:,}",
            row["reason"] or ("separated" if row["b"] is not None and row["k"] is None else ""),
        ]
        for row in sorted(rows, key=lambda row: (row["language"] or "", row["variant"] != "base", row["variant"] or ""))
    ]


def models_section(boundaries: Sequence[Row], evaluations: Sequence[Row], target: str) -> dict[str, Any] | None:
    """Return plot and table of several models, the target first; None where there are not several."""
    rows = beside(boundaries, evaluations)
    models = sorted({row["model_id"] for row in rows}, key=lambda name: (name != target, name))
    if len(models) < 2:
        return None
    has_any = any(row["b"] is not None or row["b_oracle"] is not None for row in rows)
    rows.sort(key=lambda row: (language_name(row["language"]), row["language"], models.index(row["model_id"])))
    return {
        "plot": Plot(
            _models_plot(rows, models) if has_any else None,
            "No model has an identified boundary in any language; the table gives the reasons.",
        ),
        "head": [
            "Language", "Model", "b", "b*", "Misalignment b* − b", "Band", "Over-refusal, pseudo-harmful",
            "harmless", "Safety", "n", "Remark",
        ],
        "rows": [_model_cells(row) for row in rows],
    }  # fmt: skip


def _model_cells(row: Row) -> list[str]:
    def measured(name: str) -> tuple[Any, Any, Any]:
        return row[name], row[f"{name}_low"], row[f"{name}_high"]

    return [
        language_name(row["language"]),
        row["model_id"],
        *(show_interval(*measured(name)) for name in ("b", "b_oracle", "misalignment")),
        *(show_share(*measured(name)) for name in ("band_share", "over_refusal", "over_refusal_harmless", "safety")),
        "–" if row["n"] is None else f"{row['n']:,}",
        row["reason"] or "",
    ]


def _mark(row: Row, column: str, name: str, language: str, lanes: Lanes) -> Mark:
    """Return a dot of the plot: where b or b* of one model in one language lies."""
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    hover = f"{inert(language)}, {inert(row['model_id'])}<br>{name} = {show_interval(value, low, high)}"
    return value, lanes.at(language, row["model_id"]), low, high, hover


def _models_plot(rows: Sequence[Row], models: Sequence[str]) -> go.Figure:
    """Draw b and b* of each model in each language, the band between them as a bar."""
    names = distinct_names(dict.fromkeys(row["language"] for row in rows))
    lanes = Lanes(list(names.values()), models)
    figure = lanes.lay_out("margin m")
    for model, colour in zip(models, cycle(PALETTE), strict=False):
        mine = [row for row in rows if row["model_id"] == model]
        for row in mine:
            band, y = over_refusal_band(row), lanes.at(names[row["language"]], model)
            if band:
                line = {"color": colour, "width": 9}
                figure.add_scatter(
                    x=band, y=[y, y], mode="lines", showlegend=False, hoverinfo="skip", line=line, opacity=0.22
                )
        for column, name, symbol in (("b", "b", "circle"), ("b_oracle", "b*", "diamond-open")):
            marks = [_mark(row, column, name, names[row["language"]], lanes) for row in mine if row[column] is not None]
            if marks or column == "b":
                figure.add_trace(interval_marks(marks, model, color=colour, symbol=symbol))
                figure.data[-1].showlegend = column == "b"
    for name, symbol in (("b", "circle"), ("b*", "diamond-open")):
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=name, marker={"color": GREY, "size": 10, "symbol": symbol}
        )
    return figure
