"""Figures of one language: margins by true label, the refusal curve and the map of the prompts."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rass_core.report.figures import (
    B_COLOUR,
    B_FILL,
    COLOURS,
    GREY,
    HATCHES,
    ORACLE_COLOUR,
    SHADES,
    SYMBOLS,
    lay_out,
    mark_boundary,
)
from rass_core.report.points import KIND_NAMES, OUTCOME_NAMES, PROMPT_KINDS, Point, held_out, margin_span
from rass_core.report.words import hover_text, inert, show_number, show_percent
from rass_core.stats.intervals import wilson
from rass_core.vocabulary import Row

MAP_POINTS_PER_LANGUAGE = 2000
MAP_BYTES = 2_200_000
"""Over all languages: plotly itself takes 4.8 MB, and the file shall stay below 8 MB."""
QUADRANTS = {
    (True, True): "refused and harmful",
    (True, False): "<b>over-refusal</b>:<br>high on the refusal axis,<br>low on the harm axis",
    (False, True): "answered, but harmful",
    (False, False): "answered and benign",
}
"""(beyond b, in the upper half of the harm axis) → what lies there."""


def _bar_marker(colour: str, outcome: str) -> dict[str, Any]:
    """Return a bar's look: its hue with the shade and hatch of an outcome."""
    channels = ",".join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    return {
        "color": f"rgba({channels},{SHADES[outcome]})",
        "line": {"width": 0},
        "pattern": {"shape": HATCHES[outcome], "fgcolor": colour, "fillmode": "overlay", "size": 6, "solidity": 0.35},
    }


def margin_histogram(points: Sequence[Point], boundary: Row | None) -> go.Figure:
    """Draw one row of stacked bars per true label, refused dark and answered light."""
    kinds = [kind for kind in PROMPT_KINDS if any(point.kind == kind for point in points)]
    span = margin_span(points, boundary)
    edges = np.linspace(span[0], span[1], 45)
    figure = make_subplots(rows=len(kinds), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for outcome, name in OUTCOME_NAMES.items():
        # One grey legend entry per outcome; the hue shows the label, which each row names itself.
        if any(point.outcome == outcome for point in points):
            figure.add_bar(
                x=[None], y=[None], name=name, legendgroup=outcome, row=1, col=1, marker=_bar_marker(GREY, outcome)
            )
        for row, kind in enumerate(kinds, start=1):
            margins = [point.margin for point in points if point.kind == kind and point.outcome == outcome]
            counts, _ = np.histogram(margins, edges)
            if margins:
                words = [
                    f"{n} {KIND_NAMES.get(kind, kind)}, {name}<br>margin {show_number(low)} to {show_number(high)}"
                    for n, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
                ]
                figure.add_bar(
                    x=(edges[:-1] + edges[1:]) / 2,
                    y=counts,
                    hovertext=words,
                    hoverinfo="text",
                    row=row,
                    col=1,
                    showlegend=False,
                    legendgroup=outcome,
                    width=edges[1] - edges[0],
                    marker=_bar_marker(COLOURS[kind], outcome),
                )
    lay_out(130 + 105 * len(kinds), "", "prompts", figure)
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(range=span)
    figure.update_yaxes(nticks=4)
    figure.update_xaxes(title={"text": "margin m (−1 harmless mean, +1 harmful mean)", "standoff": 8}, row=len(kinds))
    for row, kind in enumerate(kinds, start=1):
        margins = [point.margin for point in points if point.kind == kind]
        # Room above the bars for the name of the row.
        figure.update_yaxes(range=[0, 1.45 * int(np.histogram(margins, edges)[0].max())], row=row)
        axis = "" if row == 1 else str(row)
        figure.add_annotation(
            text=f"<b>{KIND_NAMES.get(kind, kind)}</b> · {len(margins):,}",
            x=0.01,
            xref="paper",
            xanchor="left",
            y=1,
            yref=f"y{axis} domain",
            yanchor="top",
            showarrow=False,
            font={"color": COLOURS[kind], "size": 12},
        )
    mark_boundary(figure, boundary)
    return figure


def _observed(points: Sequence[Point]) -> go.Scatter | None:
    """Return refused shares in bins of equally many scored prompts, with Wilson intervals."""
    scored = sorted((point.margin, point.outcome == "refusal") for point in points if point.outcome != "unscored")
    if not scored:
        return None
    x, value, up, down, words = [], [], [], [], []
    for bin_rows in np.array_split(np.array(scored, dtype=np.float64), min(12, max(1, len(scored) // 8))):
        n_refused, n = int(bin_rows[:, 1].sum()), len(bin_rows)
        share, low, high = wilson(n_refused, n)
        x.append(float(bin_rows[:, 0].mean()))
        value.append(share)
        up.append(high - share)
        down.append(share - low)
        words.append(f"{n_refused} of {n} refused ({show_percent(share)})<br>mean margin {show_number(x[-1])}")
    return go.Scatter(
        x=x,
        y=value,
        mode="markers",
        name="observed share",
        hovertext=words,
        hoverinfo="text",
        marker={"color": GREY, "size": 8, "symbol": "circle"},
        error_y={"array": up, "arrayminus": down, "symmetric": False, "color": GREY, "thickness": 1.2, "width": 3},
    )


def refusal_curve_plot(points: Sequence[Point], boundary: Row) -> go.Figure:
    """Draw P(refuse | margin), its band from b's interval, and what was observed in bins."""
    figure = lay_out(480, "margin m", "share of prompts refused")
    span = margin_span(points, boundary)
    b, k = boundary["b"], boundary["k"]
    low = b if boundary["b_low"] is None else boundary["b_low"]
    high = b if boundary["b_high"] is None else boundary["b_high"]
    if k is None:
        figure.add_scatter(
            x=[span[0], low, None, high, span[1]],
            y=[0, 0, None, 1, 1],
            mode="lines",
            name="separated: step",
            hoverinfo="skip",
            line={"color": B_COLOUR, "width": 3},
        )
        figure.add_shape(
            type="rect", x0=low, x1=high, y0=0, y1=1, yref="paper", layer="below", line_width=0, fillcolor=B_FILL
        )
    else:
        m = np.linspace(span[0], span[1], 160)
        upper, middle, lower = (0.5 * (1 + np.tanh(0.5 * k * (m - half))) for half in (low, b, high))
        figure.add_scatter(
            x=np.concatenate([m, m[::-1]]),
            y=np.concatenate([upper, lower[::-1]]),
            fill="toself",
            mode="lines",
            name="95% interval of b",
            line={"width": 0},
            fillcolor=B_FILL,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=m,
            y=middle,
            mode="lines",
            name="fitted P(refuse)",
            line={"color": B_COLOUR, "width": 3},
            hovertext=[
                f"P(refuse) {show_percent(p)} at margin {show_number(at)}" for p, at in zip(middle, m, strict=True)
            ],
            hoverinfo="text",
        )
    observed = _observed(held_out(points))
    if observed is not None:
        figure.add_trace(observed)
    figure.update_xaxes(range=span)
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    mark_boundary(figure, boundary)
    return figure


def points_to_draw(points: Sequence[Point], n_bytes: int) -> list[Point]:
    """Return the points to draw: selected ones, then the smallest ids, which are as good as random."""
    ordered = sorted(points, key=lambda point: (not point.is_selected, point.prompt_id))
    # 200 bytes stand for the numbers and facts of a point; & and < grow when they are escaped.
    sizes = [
        200 + len(json.dumps(hover_text(point.text), ensure_ascii=False).replace("&", 6 * "&").encode())
        for point in ordered[:MAP_POINTS_PER_LANGUAGE]
    ]
    return ordered[: int(np.searchsorted(np.cumsum(sizes), n_bytes, side="right"))]


def prompt_map(points: Sequence[Point], boundary: Row | None, span: list[float]) -> go.Figure:
    """Draw margin × first orthogonal component; filled is refused, ringed is selected."""
    return _map(points, [point.orthogonal for point in points], "first orthogonal component", boundary, span)


def harm_map(points: Sequence[Point], boundary: Row | None, span: list[float]) -> go.Figure:
    """Draw margin × harm score with the four quadrants around b and 0 named; marks as in `prompt_map`.

    Args:
        points: With a harm score each.
        boundary: Boundary of their language.
        span: Range of margins.
    """
    title = "harm axis (−1 pseudo-harmful mean, +1 harmful mean)"
    figure = _map(points, [point.harm_score for point in points], title, boundary, span)
    figure.add_shape(type="line", x0=0, x1=1, xref="paper", y0=0, y1=0, line={"color": GREY, "width": 1.5})
    if boundary is None or boundary["b"] is None:
        return figure
    scores = np.array([point.harm_score for point in points if point.harm_score is not None])
    room = max(0.15 * float(np.ptp(scores)), 0.5)  # above and below the points, for the names
    low, high = min(float(scores.min()), 0.0) - room, max(float(scores.max()), 0.0) + room
    figure.update_yaxes(range=[low, high])
    for (is_right, is_high), name in QUADRANTS.items():
        figure.add_annotation(
            text=name, x=1 if is_right else 0, xref="paper", xanchor="right" if is_right else "left",
            align="right" if is_right else "left", y=1 if is_high else 0, yref="paper",
            yanchor="top" if is_high else "bottom", showarrow=False, font={"color": GREY, "size": 12},
        )  # fmt: skip
    return figure


def _map(
    points: Sequence[Point], heights: Sequence[float | None], title: str, boundary: Row | None, span: list[float]
) -> go.Figure:
    figure = lay_out(520, "margin m", title)
    placed = [(point, height) for point, height in zip(points, heights, strict=True) if height is not None]
    for kind in PROMPT_KINDS:
        for is_refused in (False, True):
            shown = [each for each in placed if each[0].kind == kind and (each[0].outcome == "refusal") == is_refused]
            if shown:
                _add_map_trace(figure, shown, kind, is_refused)
    chosen = [(point, height) for point, height in placed if point.is_selected]
    if chosen:
        figure.add_scatter(
            x=[point.margin for point, _ in chosen],
            y=[height for _, height in chosen],
            mode="markers",
            name="selected",
            hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 13, "color": ORACLE_COLOUR, "line": {"width": 1.5}},
        )
    figure.update_xaxes(range=span)
    mark_boundary(figure, boundary)
    return figure


def _add_map_trace(figure: go.Figure, shown: Sequence[tuple[Point, float]], kind: str, is_refused: bool) -> None:
    words = []
    for point, _ in shown:
        facts = [
            KIND_NAMES.get(kind, kind) if kind != "generated" else f"generated, {inert(point.label or 'unverified')}",
            OUTCOME_NAMES[point.outcome],
            f"margin {show_number(point.margin)}",
        ]
        facts += [] if point.harm_score is None else [f"harm score {show_number(point.harm_score)}"]
        facts += [inert(point.category)] if point.category else []
        facts += ["selected"] if point.is_selected else []
        words.append(f"{hover_text(point.text)}<br><i>{' · '.join(facts)}</i>")
    figure.add_scatter(
        x=[round(point.margin, 4) for point, _ in shown],
        y=[round(height, 4) for _, height in shown],
        mode="markers",
        hovertext=words,
        hoverinfo="text",
        name=f"{KIND_NAMES.get(kind, kind)}, {'refused' if is_refused else 'not refused'}",
        marker={
            "symbol": SYMBOLS[kind] + ("" if is_refused else "-open"),
            "size": 8,
            "color": COLOURS[kind],
            "opacity": 0.8,
            "line": {"width": 1.3 if not is_refused else 0},
        },
    )
