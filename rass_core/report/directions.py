"""Where the margin is read: AUC by layer and position, and the directions that were chosen."""

from collections import defaultdict
from collections.abc import Sequence

import plotly.graph_objects as go

from rass_core.report.figures import B_COLOUR, GREY, Plot, lay_out
from rass_core.report.words import hover_text, inert, language_name, show_number
from rass_core.vocabulary import Row


def _auc_by_layer(directions: Sequence[Row]) -> go.Figure:
    """Draw AUC over layers, one line per position; filled was tried causally, named was chosen."""
    figure = lay_out(420, "layer (decoder block, 0 is the first)", "AUC within pseudo-harmful")
    positions = sorted({row["position"] for row in directions}, reverse=True)
    palette = ("#2b86cc", "#e8a30c", "#cf3f5b", "#0d9488", "#8b5cf6", "#7b8794", "#b0623a", "#4c6a92")
    symbols = ("circle", "diamond", "triangle-up", "square", "cross", "star", "triangle-down", "pentagon")
    for place, position in enumerate(positions):
        line = sorted((row for row in directions if row["position"] == position), key=lambda row: row["layer"])
        symbol, colour = symbols[place % 8], palette[place % 8]
        words = [
            f"layer {row['layer']}, position {show_number(position, 0)}<br>AUC {show_number(row['auc'], 3)}"
            + (f"<br>{hover_text(row['reason'])}" if row["reason"] else "")
            for row in line
        ]
        figure.add_scatter(
            x=[row["layer"] for row in line],
            y=[row["auc"] for row in line],
            mode="lines+markers",
            name=f"position {show_number(position, 0)}",
            hovertext=words,
            hoverinfo="text",
            line={"color": colour, "width": 2},
            marker={
                "size": 9,
                "color": colour,
                "symbol": [symbol + ("-open" if row["induce_score"] is None else "") for row in line],
            },
        )
    chosen: dict[tuple[int, float], list[str]] = defaultdict(list)
    for row in directions:
        if row["roles"]:
            chosen[row["layer"], row["auc"]] += row["roles"]
    for (layer, auc), roles in chosen.items():
        figure.add_annotation(
            text=f"<b>{inert(', '.join(dict.fromkeys(roles)))}</b>",
            x=layer,
            y=auc,
            ax=0,
            ay=-30,
            arrowhead=2,
            arrowcolor=B_COLOUR,
            font={"color": B_COLOUR, "size": 12},
        )
    figure.add_shape(
        type="line", x0=0, x1=1, xref="paper", y0=0.5, y1=0.5, line={"color": GREY, "width": 1, "dash": "dot"}
    )
    layers, scores = [row["layer"] for row in directions], [row["auc"] for row in directions]
    figure.update_xaxes(range=[min(layers) - 0.3, max(layers) + 0.3], tickformat="d")
    figure.update_yaxes(range=[min(0.48, *scores) - 0.02, max(scores) + 0.08])
    return figure


def direction_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the directions that were chosen."""
    return [
        [
            ", ".join(row["roles"]),
            row["kind"] or "",
            row["method"] or "",
            language_name(row["language"] or "shared"),
            str(row["layer"]),
            show_number(row["position"], 0),
            show_number(row["auc"], 3),
            show_number(row["alpha"]),
            show_number(row["induce_score"]),
            _generated(row),
            show_number(row["bypass_score"]),
            show_number(row["kl"], 3),
            _ablated(row),
            show_number(row["agreement"]),
            row["reason"] or "",
        ]
        for row in rows
        if row["roles"]
    ]


def _generated(row: Row) -> str:
    """Show the share of generated answers that refuse, with their number."""
    if row["induce_generated"] is None:
        return show_number(None)
    return f"{show_number(row['induce_generated'])} of {row['n_generated']}"


def _ablated(row: Row) -> str:
    """Show the blocks and the strength of the ablation."""
    layers = row["ablate_layers"]
    if not layers:
        return show_number(None)
    blocks = str(layers[0]) if len(layers) == 1 else f"{min(layers)}–{max(layers)}"
    return f"{blocks}, λ = {show_number(row['ablate_strength'])}"


def auc_plots(directions: Sequence[Row]) -> list[tuple[str, Plot]]:
    """Return (name, plot) for each kind, method and language of directions with an AUC."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in directions:
        if row["auc"] is not None and row["layer"] is not None and row["position"] is not None:
            groups[row["kind"] or "", row["method"] or "", row["language"] or ""].append(row)
    plots = []
    for (kind, method, code), rows in sorted(groups.items()):
        name = ", ".join(part.replace("_", " ") for part in (kind, method) if part)
        name += f" ({language_name(code)})" if code else ""
        plots.append((name, Plot(_auc_by_layer(rows))))
    return plots
