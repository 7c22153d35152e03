"""What all figures share: colours, layout, and the lines that mark a boundary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from rass_core.report.points import over_refusal_band
from rass_core.report.words import inert, show_number
from rass_core.vocabulary import Row

COLOURS = {
    "harmless": "#2b86cc",
    "pseudo_harmful": "#e8a30c",
    "harmful": "#cf3f5b",
    "unlabelled": "#8d6e9f",
    "generated": "#7b8794",
}
SYMBOLS = {
    "harmless": "circle",
    "pseudo_harmful": "diamond",
    "harmful": "triangle-up",
    "unlabelled": "square",
    "generated": "pentagon",
}
SHADES = {"refusal": 1.0, "partial": 0.3, "compliance": 0.3, "unscored": 0.1}
HATCHES = {"refusal": "", "partial": "/", "compliance": "", "unscored": "."}
B_COLOUR, ORACLE_COLOUR, BAND_COLOUR = "#8b5cf6", "#0d9488", "rgba(232,163,12,0.16)"
B_FILL, GREY = "rgba(139,92,246,0.18)", "#7b8794"
PALETTE = ("#2b86cc", "#e07a1f", "#0d9488", "#cf3f5b", "#8b5cf6", "#b0623a", "#4c6a92", "#7c8b2d")
"""Colours of models and variants."""
AXIS = {"showgrid": True, "zeroline": False, "showline": True, "ticks": "outside", "automargin": True}


@dataclass(frozen=True)
class Plot:
    """A plot, or the reason why it cannot be drawn. A note opens its caption."""

    figure: go.Figure | None
    reason: str = ""
    note: str = ""


def lay_out(height: int, x: str, y: str, figure: go.Figure | None = None) -> go.Figure:
    """Lay a figure out; the page adds text and grid colours that suit its light or dark ground."""
    figure = figure if figure is not None else go.Figure()
    figure.update_layout(
        template={},
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        hovermode="closest",
        hoverlabel={"align": "left"},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1 + 24 / (height - 110),
            "yanchor": "bottom",
            "itemsizing": "constant",
        },
    )
    figure.update_xaxes(AXIS, title={"text": x, "standoff": 8})
    figure.update_yaxes(AXIS, title={"text": y, "standoff": 6})
    return figure


def mark_boundary(figure: go.Figure, boundary: Row | None, axis: str = "x") -> None:
    """Draw b, b* and the band between them across the whole figure, on its x or its y axis."""
    if boundary is None:
        return
    other = "y" if axis == "x" else "x"

    def shape(low: float, high: float, **style: Any) -> None:
        ends = {f"{axis}0": low, f"{axis}1": high, f"{axis}ref": axis, f"{other}0": 0, f"{other}1": 1}
        figure.add_shape(ends, **{f"{other}ref": "paper"}, **style)

    band = over_refusal_band(boundary)
    if band:
        shape(*band, type="rect", layer="below", line_width=0, fillcolor=BAND_COLOUR)
    lines = [("b", "b", B_COLOUR, "solid"), ("b_oracle", "b*", ORACLE_COLOUR, "dash")]
    known = [line for line in lines if boundary[line[0]] is not None]
    for column, name, colour, dash in known:
        value = boundary[column]
        shape(value, value, type="line", line={"color": colour, "width": 2.5, "dash": dash})
        # The two labels point away from each other, so that they stay apart where b is close to b*.
        is_low = value <= min(boundary[line[0]] for line in known) if len(known) > 1 else False
        is_low = is_low and not (name == "b*" and boundary["b"] == value)
        text = {
            "text": f"<b>{name} = {show_number(value)}</b>",
            "showarrow": False,
            "font": {"color": colour, "size": 12},
        }
        if axis == "x":
            figure.add_annotation(
                text, x=value, xref="x", y=1, yref="paper", yanchor="bottom", xanchor="right" if is_low else "left"
            )
        else:
            figure.add_annotation(
                text, y=value, yref="y", x=1, xref="paper", xanchor="right", yanchor="top" if is_low else "bottom"
            )


Mark = tuple[float, float, float | None, float | None, str]
"""x, y, both ends of x's interval, and a hover that is already inert."""


@dataclass(frozen=True)
class Lanes:
    """Rows of a dot plot: groups from top to bottom, within each a lane for each series."""

    groups: Sequence[str]
    """Names, untrusted; each once."""
    series: Sequence[str]

    def at(self, group: str, series: str) -> float:
        """Return the height of a lane; the middle of the first group is 0, of the second −1."""
        place = self.series.index(series) - (len(self.series) - 1) / 2
        return -self.groups.index(group) - 0.72 * place / len(self.series)

    def lay_out(self, x: str) -> go.Figure:
        """Return the empty figure: a line of text a group, every other one shaded."""
        figure = lay_out(130 + len(self.groups) * (14 + 17 * len(self.series)), x, "")
        for number in range(1, len(self.groups), 2):
            figure.add_shape(
                type="rect", x0=0, x1=1, xref="paper", y0=-number - 0.5, y1=-number + 0.5, layer="below",
                line_width=0, fillcolor="rgba(123,135,148,0.09)",
            )  # fmt: skip
        figure.update_yaxes(
            tickvals=[-float(number) for number in range(len(self.groups))],
            ticktext=[inert(name) for name in self.groups],
            range=[0.5 - len(self.groups), 0.5],
            showgrid=False,
            ticks="",
        )
        return figure


def interval_marks(rows: Sequence[Mark], name: str, **marker: Any) -> go.Scatter:
    """Return dots with their intervals along x.

    Args:
        rows: The dots.
        name: In the legend, untrusted.
        marker: Colour, symbol and the like.
    """
    return go.Scatter(
        x=[x for x, *_ in rows], y=[y for _, y, *_ in rows], mode="markers", name=inert(name),
        hovertext=[words for *_, words in rows], hoverinfo="text", marker={"size": 10, **marker},
        error_x={
            "array": [0 if high is None else high - x for x, _, _, high, _ in rows],
            "arrayminus": [0 if low is None else x - low for x, _, low, _, _ in rows],
            "symmetric": False, "color": marker["color"], "thickness": 1.6, "width": 4,
        },
    )  # fmt: skip
