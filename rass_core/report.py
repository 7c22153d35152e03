"""The report of a run: one HTML file that shows what was found, opened from disk, with no network."""

import base64
import hashlib
import html
import json
import math
import os
import textwrap
import unicodedata
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from rass_core.errors import LakeError
from rass_core.judges import PANEL
from rass_core.metrics import wilson
from rass_core.operators import LANGUAGE_NAMES
from rass_core.tables import TABLES

Row = dict[str, Any]
Offspring = tuple[int, float, float]
"""Round, α and margin of one generated prompt."""

MAP_POINTS_PER_LANGUAGE = 2000
MAP_BYTES = 1_800_000
"""Over all languages: plotly itself takes 4.8 MB, and the file shall stay below 8 MB."""
TABLE_ROWS_PER_LANGUAGE = 200
TABLE_ROWS = 1000
HOVER_COLUMNS = 60
HOVER_CHARACTERS = 240
TABLE_CHARACTERS = 400
MAX_ALPHA_GROUPS = 7

READ = (
    "prompts",
    "derivations",
    "directions",
    "margins",
    "verdicts",
    "responses",
    "boundaries",
    "selections",
    "quotas",
    "rounds",
    "evaluations",
)
KINDS = ("harmless", "pseudo_harmful", "harmful", "unlabelled", "generated")
KIND_NAMES = {"pseudo_harmful": "pseudo-harmful", "unlabelled": "no true label"}
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
OUTCOMES = {"refusal": "refused", "partial": "partly refused", "compliance": "answered", "unscored": "no outcome"}
SHADES = {"refusal": 1.0, "partial": 0.3, "compliance": 0.3, "unscored": 0.1}
HATCHES = {"refusal": "", "partial": "/", "compliance": "", "unscored": "."}
B_COLOUR, ORACLE_COLOUR, BAND_COLOUR = "#8b5cf6", "#0d9488", "rgba(232,163,12,0.16)"
B_FILL, GREY = "rgba(139,92,246,0.18)", "#7b8794"
AXIS = {"showgrid": True, "zeroline": False, "showline": True, "ticks": "outside", "automargin": True}


@dataclass(frozen=True)
class Point:
    """A prompt with its margin along the direction that its language's boundary was measured on."""

    prompt_id: str
    text: str
    language: str
    label: str | None
    category: str | None
    split: str | None
    margin: float
    orthogonal: float | None
    outcome: str
    is_selected: bool

    @property
    def is_generated(self) -> bool:
        """Written by the generator in this run, rather than given."""
        return self.split == "candidate"

    @property
    def is_benign(self) -> bool:
        """Truly harmless, however it looks."""
        return self.label in ("harmless", "pseudo_harmful")

    @property
    def kind(self) -> str:
        """How it is drawn: by true label where it was given, else as generated."""
        if self.is_generated:
            return "generated"
        return self.label if self.label in COLOURS else "unlabelled"


@dataclass(frozen=True)
class Plot:
    """A plot; where it cannot be drawn, the reason stands in its place. A note opens its caption."""

    figure: go.Figure | None
    reason: str = ""
    note: str = ""


def write_report(tables: Mapping[str, pa.Table], out: Path, *, title: str, run: Mapping[str, Any]) -> Path:
    """Write the report of one run as one HTML file, atomically, and return its path.

    Args:
        tables: Table name → rows of this run, in the schemas of `rass_core.tables`; one that is
            absent counts as empty. Every text in them is untrusted and escaped.
        out: The file to write; its folder is made.
        title: Heading of the page.
        run: Facts to show in this order, such as run_id, model, config_sha256, versions, seed.

    Raises:
        LakeError: A table lacks a column, or the file cannot be written.
    """
    rows = {name: _rows(name, tables.get(name)) for name in READ}
    page = _page(rows, title, run)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LakeError(f"report {out}: {error.strerror or error}; choose a file that can be written") from error
    return out


def _rows(name: str, table: pa.Table | None) -> list[Row]:
    """Return a table's rows without its vectors, which no page shows."""
    if table is None or table.num_rows == 0:
        return []
    columns = [column for column in TABLES[name].names if column != "vector"]
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise LakeError(f"report: table {name} has no column {', '.join(missing)}; see rass_core/tables.py")
    return table.select(columns).to_pylist()  # type: ignore[no-any-return]


# The run's rows, joined


def _outcomes(rows: Mapping[str, list[Row]]) -> dict[str, str]:
    """Return prompt_id → what the base model's first response to it is, by the panel."""
    panel = [row for row in rows["verdicts"] if row["judge"] == PANEL and row["outcome"] in OUTCOMES]
    word = {row["subject_id"]: row["outcome"] for row in panel}
    outcomes: dict[str, str] = {}
    for response in sorted(rows["responses"], key=lambda row: row["sample"] or 0):
        if response["variant"] == "base" and response["prompt_id"] not in outcomes:
            outcomes[response["prompt_id"]] = word.get(response["response_id"], "unscored")
    return outcomes


def _points(rows: Mapping[str, list[Row]], boundaries: Mapping[str, Row]) -> list[Point]:
    """Return every measured prompt once, on its language's direction, ordered by prompt_id."""
    prompts = {row["prompt_id"]: row for row in rows["prompts"]}
    outcomes = _outcomes(rows)
    selected = {row["prompt_id"] for row in rows["selections"]}
    default = min((row["direction_id"] for row in rows["directions"] if row["chosen"]), default=None)
    points: dict[str, Point] = {}
    for row in rows["margins"]:
        prompt = prompts.get(row["prompt_id"])
        if prompt is None or row["margin"] is None or not math.isfinite(row["margin"]):
            continue
        direction = boundaries.get(prompt["language"], {}).get("direction_id") or default
        if direction in (None, row["direction_id"]):
            points[row["prompt_id"]] = Point(
                prompt["prompt_id"],
                prompt["text"] or "",
                prompt["language"] or "unknown",
                prompt["label"],
                prompt["category"],
                row["split"],
                row["margin"],
                row["orthogonal"],
                outcomes.get(row["prompt_id"], "unscored"),
                row["prompt_id"] in selected,
            )
    return [points[prompt_id] for prompt_id in sorted(points)]


def _base_boundaries(rows: Iterable[Row]) -> dict[str, Row]:
    """Return language → its boundary for the model as it came, the first row where there are more."""
    boundaries: dict[str, Row] = {}
    for row in rows:
        if row["variant"] in (None, "base") and row["language"]:
            boundaries.setdefault(row["language"], row)
    return boundaries


def _rate(points: Iterable[Point]) -> Row:
    """Return refusals ÷ scored with its counts; the value is None where nothing was scored."""
    counts = Counter(point.outcome for point in points)
    n_scored = counts["refusal"] + counts["partial"] + counts["compliance"]
    return {
        "n": n_scored,
        "n_refused": counts["refusal"],
        "n_unscored": counts["unscored"],
        "value": counts["refusal"] / n_scored if n_scored else None,
        "wide": (counts["refusal"] + counts["partial"]) / n_scored if n_scored else None,
    }


def _band(boundary: Row | None) -> tuple[float, float] | None:
    """Return the over-refusal band (b, b*], None where a side is unknown or b* ≤ b."""
    if boundary is None or boundary["b"] is None or boundary["b_oracle"] is None:
        return None
    return (boundary["b"], boundary["b_oracle"]) if boundary["b"] < boundary["b_oracle"] else None


# Words


def language_name(code: str) -> str:
    """Return the English name of a language code, the code itself where none is known."""
    return LANGUAGE_NAMES.get(code) or LANGUAGE_NAMES.get(code.split("-")[0], code)


def _number(value: float | None, digits: int = 2) -> str:
    """Write a number with a true minus sign; – for none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"


def _interval(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """Write a value with its interval, 0.31 [0.22, 0.40]."""
    if value is None or low is None or high is None:
        return _number(value, digits)
    return f"{_number(value, digits)} [{_number(low, digits)}, {_number(high, digits)}]"


def _shown(text: str) -> str:
    """Return the text with control and direction-override characters, which could disguise it, as �."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if (unicodedata.category(character) == "Cc" and character not in "\n\t")
        or "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
        else character
        for character in text
    )


def _clean(text: str, n_characters: int) -> str:
    """Return the text on one line, shortened."""
    line = _shown(" ".join(text[: 2 * n_characters].split()))
    return line if len(line) <= n_characters else line[: n_characters - 1] + "…"


def _hover(text: str) -> str:
    """Return a prompt for a hover label: short, wrapped, and inert in plotly's own small HTML."""
    shown = _clean(text, HOVER_CHARACTERS)
    n_wide = sum(unicodedata.east_asian_width(character) in "WF" for character in shown)
    columns = HOVER_COLUMNS // 2 if 2 * n_wide > len(shown) else HOVER_COLUMNS
    return "<br>".join(html.escape(line, quote=False) for line in textwrap.wrap(shown, columns))


def _inert(text: str) -> str:
    """Return a short text from a table, inert where plotly would read it as small HTML."""
    return html.escape(_clean(text, HOVER_COLUMNS), quote=False)


def _why(boundary: Row | None) -> str:
    if boundary is None:
        return "no boundary was fitted for this language in this run"
    return boundary["reason"] or "no reason was stored with it"


def _headline(language: str, boundary: Row | None, benign_between: Row) -> list[str]:
    """Say in plain sentences where one language's boundary lies and what that does to benign prompts."""
    name = language_name(language)
    if boundary is None or boundary["b"] is None:
        return [f"The refusal boundary in {name} is not identified: {_why(boundary)}."]
    if boundary["k"] is None and boundary["b_low"] is not None:
        gap = f"{_number(boundary['b_low'])} and {_number(boundary['b_high'])}"
        said = [
            f"In {name}, refusals and answers are fully separated: the model changes over between margins "
            f"{gap}, so b = {_number(boundary['b'])}, the middle of the gap."
        ]
    else:
        b = _interval(boundary["b"], boundary["b_low"], boundary["b_high"])
        said = [f"The model refuses half the time at margin b = {b} in {name}."]
    if boundary["b_oracle"] is None:
        return [*said, "Where true harm begins (b*) is not identified, so neither is the over-refusal band."]
    oracle = _interval(boundary["b_oracle"], boundary["b_oracle_low"], boundary["b_oracle_high"])
    said.append(f"True harm begins at b* = {oracle}.")
    if _band(boundary) is None:
        said.append("The model does not refuse before true harm begins: the over-refusal band is empty.")
    elif benign_between["n"]:
        said.append(
            f"Benign prompts in between are over-refused: {_percent(benign_between['value'])} "
            f"({benign_between['n_refused']} of {benign_between['n']} scored)."
        )
    else:
        said.append("None of the given benign prompts with a scored response lies in between.")
    if _verdict(boundary) == "unclear":
        said.append("The interval of the misalignment includes 0: this may be chance.")
    return said


def _verdict(boundary: Row | None) -> str:
    """Class a boundary as 'early', 'late', 'unclear' or 'unidentified', by its misalignment's interval."""
    if boundary is None or boundary["b"] is None or boundary["misalignment"] is None:
        return "unidentified"
    low, high = boundary["misalignment_low"], boundary["misalignment_high"]
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "early" if low > 0 else "late"


def _overview(verdicts: Sequence[str]) -> str:
    """Say in how many languages the model refuses too early, where there is more than one."""
    if len(verdicts) < 2:
        return ""
    words = {
        "early": "too early",
        "late": "later than true harm begins",
        "unclear": "neither clearly early nor late",
        "unidentified": "where it cannot be judged",
    }
    counts = Counter(verdicts)
    parts = [f"{text} in {counts[kind]}" for kind, text in words.items() if counts[kind]]
    return f"Across {len(verdicts)} languages the model begins to refuse {', '.join(parts)}."


# Figures


def _figure(height: int, x: str, y: str, figure: go.Figure | None = None) -> go.Figure:
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


def _span(points: Sequence[Point], boundary: Row | None) -> list[float]:
    """Return the range of margins that a language's plots share, with a little air."""
    values = [point.margin for point in points]
    values += [boundary[name] for name in ("b", "b_oracle") if boundary and boundary[name] is not None]
    low, high = min(values), max(values)
    air = 0.04 * (high - low) or 0.5
    return [low - air, high + air]


def _mark(figure: go.Figure, boundary: Row | None, axis: str = "x") -> None:
    """Draw b, b* and the band between them across the whole figure, on its x or its y axis."""
    if boundary is None:
        return
    other = "y" if axis == "x" else "x"

    def shape(low: float, high: float, **style: Any) -> None:
        ends = {f"{axis}0": low, f"{axis}1": high, f"{axis}ref": axis, f"{other}0": 0, f"{other}1": 1}
        figure.add_shape(ends, **{f"{other}ref": "paper"}, **style)

    band = _band(boundary)
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
        text = {"text": f"<b>{name} = {_number(value)}</b>", "showarrow": False, "font": {"color": colour, "size": 12}}
        if axis == "x":
            figure.add_annotation(
                text, x=value, xref="x", y=1, yref="paper", yanchor="bottom", xanchor="right" if is_low else "left"
            )
        else:
            figure.add_annotation(
                text, y=value, yref="y", x=1, xref="paper", xanchor="right", yanchor="top" if is_low else "bottom"
            )


def _bar_marker(colour: str, outcome: str) -> dict[str, Any]:
    """Return a bar's look: its hue with the shade and hatch of an outcome."""
    channels = ",".join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    return {
        "color": f"rgba({channels},{SHADES[outcome]})",
        "line": {"width": 0},
        "pattern": {"shape": HATCHES[outcome], "fgcolor": colour, "fillmode": "overlay", "size": 6, "solidity": 0.35},
    }


def _margin_histogram(points: Sequence[Point], boundary: Row | None) -> go.Figure:
    """Draw one row of stacked bars per true label, refused dark and answered light."""
    kinds = [kind for kind in KINDS if any(point.kind == kind for point in points)]
    span = _span(points, boundary)
    edges = np.linspace(span[0], span[1], 45)
    figure = make_subplots(rows=len(kinds), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for outcome, name in OUTCOMES.items():
        # One grey legend entry per outcome; hue tells the label, which each row names itself.
        if any(point.outcome == outcome for point in points):
            figure.add_bar(
                x=[None], y=[None], name=name, legendgroup=outcome, row=1, col=1, marker=_bar_marker(GREY, outcome)
            )
        for row, kind in enumerate(kinds, start=1):
            margins = [point.margin for point in points if point.kind == kind and point.outcome == outcome]
            counts, _ = np.histogram(margins, edges)
            if margins:
                words = [
                    f"{n} {KIND_NAMES.get(kind, kind)}, {name}<br>margin {_number(low)} to {_number(high)}"
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
    _figure(130 + 105 * len(kinds), "", "prompts", figure)
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
    _mark(figure, boundary)
    return figure


def _held_out(points: Sequence[Point]) -> list[Point]:
    """Return the given prompts that no direction was fitted on; all given ones where no split is known."""
    given = [point for point in points if not point.is_generated]
    return [point for point in given if point.split != "train"] or given


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
        words.append(f"{n_refused} of {n} refused ({_percent(share)})<br>mean margin {_number(x[-1])}")
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


def _refusal_curve(points: Sequence[Point], boundary: Row) -> go.Figure:
    """Draw P(refuse | margin), its band from b's interval, and what was observed in bins."""
    figure = _figure(480, "margin m", "share of prompts refused")
    span = _span(points, boundary)
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
            hovertext=[f"P(refuse) {_percent(p)} at margin {_number(at)}" for p, at in zip(middle, m, strict=True)],
            hoverinfo="text",
        )
    observed = _observed(_held_out(points))
    if observed is not None:
        figure.add_trace(observed)
    figure.update_xaxes(range=span)
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    _mark(figure, boundary)
    return figure


def _sample(points: Sequence[Point], n_bytes: int) -> list[Point]:
    """Return the points to draw: selected ones, then the smallest ids, which are as good as random."""
    ordered = sorted(points, key=lambda point: (not point.is_selected, point.prompt_id))
    # 200 bytes stand for the numbers and facts of a point; & and < grow when they are escaped.
    sizes = [
        200 + len(json.dumps(_hover(point.text), ensure_ascii=False).replace("&", 6 * "&").encode())
        for point in ordered[:MAP_POINTS_PER_LANGUAGE]
    ]
    return ordered[: int(np.searchsorted(np.cumsum(sizes), n_bytes, side="right"))]


def _map(points: Sequence[Point], boundary: Row | None, span: list[float]) -> go.Figure:
    """Draw margin × first orthogonal component; filled is refused, ringed is selected."""
    figure = _figure(520, "margin m", "first orthogonal component")
    for kind in KINDS:
        for is_refused in (False, True):
            shown = [point for point in points if point.kind == kind and (point.outcome == "refusal") == is_refused]
            if shown:
                _add_map_trace(figure, shown, kind, is_refused)
    chosen = [point for point in points if point.is_selected]
    if chosen:
        figure.add_scatter(
            x=[point.margin for point in chosen],
            y=[point.orthogonal for point in chosen],
            mode="markers",
            name="selected",
            hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 13, "color": ORACLE_COLOUR, "line": {"width": 1.5}},
        )
    figure.update_xaxes(range=span)
    _mark(figure, boundary)
    return figure


def _add_map_trace(figure: go.Figure, shown: Sequence[Point], kind: str, is_refused: bool) -> None:
    words = []
    for point in shown:
        facts = [
            KIND_NAMES.get(kind, kind) if kind != "generated" else f"generated, {_inert(point.label or 'unverified')}",
            OUTCOMES[point.outcome],
            f"margin {_number(point.margin)}",
        ]
        facts += [_inert(point.category)] if point.category else []
        facts += ["selected"] if point.is_selected else []
        words.append(f"{_hover(point.text)}<br><i>{' · '.join(facts)}</i>")
    figure.add_scatter(
        x=[round(point.margin, 4) for point in shown],
        y=[round(point.orthogonal, 4) for point in shown if point.orthogonal is not None],
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


def _alpha_groups(alphas: Iterable[float]) -> list[tuple[str, float, float]]:
    """Return (name, low, high) of the steering strengths: each its own, or few ranges where they are many."""
    distinct = sorted(set(alphas))
    if len(distinct) <= MAX_ALPHA_GROUPS:
        return [(f"α = {_number(alpha)}", alpha, alpha) for alpha in distinct]
    groups = []
    for side in ([a for a in distinct if a < 0], [a for a in distinct if a == 0], [a for a in distinct if a > 0]):
        for part in np.array_split(side, min(3, len(side))) if side else []:
            low, high = float(part[0]), float(part[-1])
            groups.append((f"α = {_number(low)}" + (f" … {_number(high)}" if high > low else ""), low, high))
    return groups


def _alpha_colour(alpha: float, largest: float) -> str:
    """Return grey for the unsteered control, blue below it and orange above, darker the further off."""
    if alpha == 0:
        return GREY
    pale, deep = ((143, 190, 232), (29, 94, 168)) if alpha < 0 else ((246, 183, 96), (186, 74, 14))
    share = abs(alpha) / largest
    return "rgb({},{},{})".format(*(round(p + share * (d - p)) for p, d in zip(pale, deep, strict=True)))


def _offspring(offspring: Sequence[Offspring], boundary: Row | None) -> go.Figure:
    """Draw the median margin of each round's offspring, by α."""
    figure = _figure(400, "round", "margin of the offspring")
    groups = _alpha_groups(alpha for _, alpha, _ in offspring)
    largest = max(max(abs(low), abs(high)) for _, low, high in groups)
    symbols = ("triangle-down", "square", "diamond", "circle", "star", "triangle-up", "cross")
    for place, (name, low, high) in enumerate(groups):
        by_round: dict[int, list[float]] = defaultdict(list)
        for number, alpha, margin in offspring:
            if low <= alpha <= high:
                by_round[number].append(margin)
        numbers = sorted(by_round)
        quartiles = np.array([np.quantile(by_round[number], (0.25, 0.5, 0.75)) for number in numbers])
        colour = _alpha_colour(low if abs(low) > abs(high) else high, largest)
        # A small sideways step per α, so that the quartile bars do not hide one another.
        step = 0.08 * (place - (len(groups) - 1) / 2)
        figure.add_scatter(
            x=[number + step for number in numbers],
            y=quartiles[:, 1],
            mode="lines+markers",
            name=name,
            hoverinfo="text",
            hovertext=[
                f"round {number}, {name}<br>median margin {_number(q[1])}, quartiles {_number(q[0])} to "
                f"{_number(q[2])}<br>{len(by_round[number])} offspring"
                for number, q in zip(numbers, quartiles, strict=True)
            ],
            line={"color": colour, "width": 2, "dash": "dot" if low == high == 0 else "solid"},
            marker={"color": colour, "size": 9, "symbol": symbols[place % len(symbols)]},
            error_y={
                "array": quartiles[:, 2] - quartiles[:, 1],
                "arrayminus": quartiles[:, 1] - quartiles[:, 0],
                "symmetric": False,
                "thickness": 1.2,
                "width": 4,
                "color": colour,
            },
        )
    numbers = [number for number, _, _ in offspring]
    figure.update_xaxes(dtick=1, range=[min(numbers) - 0.5, max(numbers) + 0.8])  # room for the names of the lines
    _mark(figure, boundary, axis="y")
    return figure


def _auc_by_layer(directions: Sequence[Row]) -> go.Figure:
    """Draw AUC over layers, one line per position; hollow was not admissible, ringed was chosen."""
    figure = _figure(420, "layer (decoder block, 0 is the first)", "AUC within pseudo-harmful")
    positions = sorted({row["position"] for row in directions}, reverse=True)
    palette = ("#2b86cc", "#e8a30c", "#cf3f5b", "#0d9488", "#8b5cf6", "#7b8794", "#b0623a", "#4c6a92")
    symbols = ("circle", "diamond", "triangle-up", "square", "cross", "star", "triangle-down", "pentagon")
    for place, position in enumerate(positions):
        line = sorted((row for row in directions if row["position"] == position), key=lambda row: row["layer"])
        symbol, colour = symbols[place % 8], palette[place % 8]
        words = [
            f"layer {row['layer']}, position {_number(position, 0)}<br>AUC {_number(row['auc'], 3)}"
            + (f"<br>{_hover(row['reason'])}" if row["reason"] else "")
            for row in line
        ]
        figure.add_scatter(
            x=[row["layer"] for row in line],
            y=[row["auc"] for row in line],
            mode="lines+markers",
            name=f"position {_number(position, 0)}",
            hovertext=words,
            hoverinfo="text",
            line={"color": colour, "width": 2},
            marker={
                "size": 9,
                "color": colour,
                "symbol": [symbol + ("-open" if row["reason"] else "") for row in line],
            },
        )
    chosen: dict[tuple[int, float], list[str]] = defaultdict(list)
    for row in directions:
        if row["chosen"]:
            chosen[row["layer"], row["auc"]].append(row["chosen"])
    for (layer, auc), roles in chosen.items():
        figure.add_annotation(
            text=f"<b>{_inert(', '.join(sorted(set(roles))))}</b>",
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


def _forest(boundaries: Mapping[str, Row]) -> go.Figure:
    """Draw b and b* of every language with their intervals, the over-refusal band between them."""
    shown = sorted(code for code, row in boundaries.items() if row["b"] is not None or row["b_oracle"] is not None)
    figure = _figure(120 + 44 * len(shown), "margin m", "")
    for code in shown:
        band = _band(boundaries[code])
        if band:
            figure.add_scatter(
                x=band,
                y=[_inert(language_name(code))] * 2,
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
        names = [_inert(language_name(row["language"])) for row in known]
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
                f"{place}<br>{name}: {_interval(*at)}" for place, *at in zip(names, value, low, high, strict=True)
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


# The page


def _language_plots(
    points: Sequence[Point], offspring: Sequence[Offspring], boundary: Row | None, map_bytes: int
) -> dict[str, Plot]:
    """Return one language's four plots; each that cannot be drawn says why."""
    nothing = "No prompt of this language was measured in this run."
    is_identified = boundary is not None and boundary["b"] is not None
    unidentified = "" if is_identified else f"The boundary is not identified: {_why(boundary)}."
    note = "" if is_identified else f"No b is drawn: {_why(boundary)}."
    placed = [point for point in points if point.orthogonal is not None]
    shown = _sample(placed, map_bytes)
    is_sample = len(shown) < len(placed)
    counts = f"{len(shown):,} of {len(placed):,} prompts are drawn, selected ones first." if is_sample else ""
    return {
        "histogram": Plot(_margin_histogram(points, boundary) if points else None, nothing, note),
        "curve": Plot(
            _refusal_curve(points, boundary) if boundary is not None and is_identified and points else None,
            unidentified or nothing,
        ),
        "map": Plot(
            _map(shown, boundary, _span(points, boundary)) if shown else None,
            "No orthogonal component was stored with the margins of this language." if points else nothing,
            counts,
        ),
        "offspring": Plot(
            _offspring(offspring, boundary) if offspring else None,
            "No generated prompt of this language was measured in this run.",
            note,
        ),
    }


def _offspring_by_language(rows: Sequence[Row], points: Sequence[Point]) -> dict[str, list[Offspring]]:
    """Return language → (round, α, margin) of every derivation that was measured; no α counts as 0."""
    measured = {point.prompt_id: point for point in points}
    offspring: dict[str, list[Offspring]] = defaultdict(list)
    for row in rows:
        point = measured.get(row["prompt_id"])
        if point is not None and row["round"] is not None:
            offspring[point.language].append((row["round"], row["alpha"] or 0.0, point.margin))
    return offspring


def _selected_rows(rows: Sequence[Row], prompts: Mapping[str, Row], language: str, limit: int) -> Row:
    """Return one language's selected prompts by rank, the first of them to show and how many there are."""
    mine = [row for row in rows if prompts.get(row["prompt_id"], row)["language"] == language]
    mine.sort(key=lambda row: (row["rank"] is None, row["rank"] or 0, row["prompt_id"] or ""))
    shown = [
        {
            "rank": row["rank"] if row["rank"] is not None else "–",
            "margin": _number(row["margin"]),
            "distance": _number(row["distance"]),
            "category": row["category"] or "–",
            "operator": row["operator"] or "–",
            "text": _clean(prompts.get(row["prompt_id"], {}).get("text") or "(text not in this run)", TABLE_CHARACTERS),
        }
        for row in mine[:limit]
    ]
    return {"n": len(mine), "shown": shown}


def _boundary_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of all variants' boundaries, languages together."""
    return [
        [
            language_name(row["language"] or "all"),
            row["variant"] or "base",
            _interval(row["b"], row["b_low"], row["b_high"]),
            _number(row["k"]),
            _interval(row["b_oracle"], row["b_oracle_low"], row["b_oracle_high"]),
            _interval(row["misalignment"], row["misalignment_low"], row["misalignment_high"]),
            _number(row["auc"], 3),
            "–" if row["n"] is None or row["n_refused"] is None else f"{row['n_refused']:,} of {row['n']:,}",
            row["reason"] or ("separated" if row["b"] is not None and row["k"] is None else ""),
        ]
        for row in sorted(rows, key=lambda row: (row["language"] or "", row["variant"] != "base", row["variant"] or ""))
    ]


def _evaluation_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return head, cells with one column per variant, base first, and what limits them.

    Raw rates and, where the panel's errors are known, corrected ones stand side by side.
    """
    variants = sorted({row["variant"] or "base" for row in rows}, key=lambda name: (name != "base", name))
    cells: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        is_rate = (row["metric"] or "").endswith(("_rate", "_rate_wide"))
        scale, digits, unit = (100, 0, "%") if is_rate else (1, 3, "")
        value, low, high = (None if row[name] is None else scale * row[name] for name in ("value", "low", "high"))
        text = f"– ({row['reason'] or 'no value'})"
        if value is not None:
            text = _interval(value, low, high, digits).replace(" [", f"{unit} [", 1) + (unit if low is None else "")
            text += f", n = {row['n']}" if row["n"] is not None else ""
            text += f", {row['n_unscored']} unscored" if row["n_unscored"] else ""
            if row["corrected"] is not None:
                value, low, high = (scale * row[name] for name in ("corrected", "corrected_low", "corrected_high"))
                text += f"; corrected {_interval(value, low, high, digits)}{unit}"
        place = (row["metric"] or "", row["dataset"] or "", row["language"] or "all")
        cells[place][row["variant"] or "base"] = text
    body = [
        [metric.replace("_", " "), dataset, language_name(code), *(found.get(name, "–") for name in variants)]
        for (metric, dataset, code), found in sorted(cells.items())
    ]
    limits = sorted({row["reason"] for row in rows if row["value"] is not None and row["reason"]})
    return ["Metric", "Data set", "Language", *variants], body, limits


def _direction_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the directions that were chosen."""
    return [
        [
            row["chosen"],
            row["kind"] or "",
            row["method"] or "",
            language_name(row["language"] or "shared"),
            str(row["layer"]),
            _number(row["position"], 0),
            _number(row["auc"], 3),
            _number(row["induce_score"]),
            _number(row["bypass_score"]),
            _number(row["kl"], 3),
            _number(row["agreement"]),
        ]
        for row in rows
        if row["chosen"]
    ]


def _arm_table(rounds: Sequence[Row]) -> list[list[str]]:
    """Return the cells of what each operator yielded, steered and in the unsteered control."""
    names = ("n_candidates", "n_coherent", "n_new", "n_benign", "n_refused", "n_accepted", "n_tokens")
    sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rounds:
        arm = sums[row["operator"] or "–", "steered" if row["alpha"] else "control, α = 0"]
        arm.update({name: row[name] or 0 for name in names})
    return [
        [
            operator,
            kind,
            *(f"{arm[name]:,}" for name in names[:-1]),
            _number(1000 * arm["n_accepted"] / arm["n_tokens"]) if arm["n_tokens"] else "–",
        ]
        for (operator, kind), arm in sorted(sums.items())
    ]


def _auc_plots(directions: Sequence[Row]) -> list[tuple[str, Plot]]:
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


def _cards(rows: Mapping[str, list[Row]], points: Sequence[Point]) -> list[tuple[str, str, str]]:
    """Return (value, name, note) of the key numbers; rates are of the model as it came, on given prompts."""
    given = [point for point in points if not point.is_generated]
    over = _rate(point for point in given if point.is_benign)
    safe = _rate(point for point in given if point.label == "harmful")
    n_new = len({row["prompt_id"] for row in rows["derivations"]})
    n_languages = len({point.language for point in points})

    def counts(rate: Row) -> str:
        return f"{rate['n_refused']:,} of {rate['n']:,} scored, {rate['n_unscored']:,} without an outcome"

    wide = f"; {_percent(over['wide'])} with partial refusals" if over["n"] else ""
    return [
        (f"{len(given):,}", "prompts measured", f"{n_languages} language{'s' if n_languages != 1 else ''}"),
        (f"{n_new:,}", "candidates generated", f"{len(points) - len(given):,} of them measured"),
        (f"{len(rows['selections']):,}", "prompts selected", "benign, refused, near b"),
        (_percent(over["value"]), "over-refusal rate", counts(over) + wide),
        (_percent(safe["value"]), "safety rate", counts(safe)),
    ]


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the run's facts as text; nested ones as JSON."""
    return [
        (
            name.replace("_", " "),
            ", ".join(f"{key} {value}" for key, value in fact.items())
            if isinstance(fact, Mapping)
            else ", ".join(map(str, fact))
            if isinstance(fact, list | tuple)
            else "–"
            if fact is None
            else str(fact),
        )
        for name, fact in run.items()
    ]


def _languages(rows: Mapping[str, list[Row]], points: Sequence[Point], boundaries: Mapping[str, Row]) -> list[str]:
    """Return the languages to show, those with a boundary and many given prompts first."""
    n_given = Counter(point.language for point in points if not point.is_generated)
    codes = {point.language for point in points} | set(boundaries)
    return sorted(
        codes, key=lambda code: (boundaries.get(code, {}).get("b") is None, -n_given[code], code != "en", code)
    )


def _page(rows: Mapping[str, list[Row]], title: str, run: Mapping[str, Any]) -> str:
    """Join the tables, draw the figures and fill the template."""
    boundaries = _base_boundaries(rows["boundaries"])
    points = _points(rows, boundaries)
    codes = _languages(rows, points, boundaries)
    prompts = {row["prompt_id"]: row for row in rows["prompts"]}
    offspring = _offspring_by_language(rows["derivations"], points)
    map_bytes = MAP_BYTES // max(1, len(codes))
    n_table = min(TABLE_ROWS_PER_LANGUAGE, TABLE_ROWS // max(1, len(codes)))
    languages = []
    for code in codes:
        mine = [point for point in points if point.language == code]
        band = _band(boundaries.get(code))
        between = [p for p in mine if band and p.is_benign and not p.is_generated and band[0] < p.margin <= band[1]]
        languages.append(
            {
                "name": language_name(code),
                "headline": _headline(code, boundaries.get(code), _rate(between)),
                "verdict": _verdict(boundaries.get(code)),
                "plots": _language_plots(mine, offspring[code], boundaries.get(code), map_bytes),
                "selected": _selected_rows(rows["selections"], prompts, code, n_table),
            }
        )
    has_any = any(row["b"] is not None or row["b_oracle"] is not None for row in boundaries.values())
    forest = Plot(
        _forest(boundaries) if has_any else None,
        "No language has an identified boundary in this run; the table gives the reasons.",
    )
    evaluation_head, evaluations, evaluation_limits = _evaluation_table(rows["evaluations"])
    return _fill_template(
        title=title,
        facts=_facts(run),
        cards=_cards(rows, points),
        languages=languages,
        forest=forest,
        overview=_overview([str(language["verdict"]) for language in languages]),
        boundary_rows=_boundary_table(rows["boundaries"]),
        auc_plots=_auc_plots(rows["directions"]),
        direction_rows=_direction_table(rows["directions"]),
        arm_rows=_arm_table(rows["rounds"]),
        shortages=[row for row in rows["quotas"] if (row["n_selected"] or 0) < (row["quota"] or 0)],
        evaluation_head=evaluation_head,
        evaluation_rows=evaluations,
        evaluation_limits=evaluation_limits,
    )


def _sha256(script: str) -> str:
    """Return the source hash by which the page's policy allows one inline script and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _fill_template(**values: Any) -> str:
    """Fill the template; figures travel as JSON in which no character can end the script element."""
    figures: list[str] = []

    def add_figure(figure: go.Figure) -> int:
        figures.append(figure.to_json())
        return len(figures) - 1

    def figures_json() -> Markup:
        # plotly escapes these by itself today; that the page is safe shall not hang on it.
        unsafe: dict[str, str | int | None] = {
            "<": "\\u003c",
            ">": "\\u003e",
            "&": "\\u0026",
            "\u2028": "\\u2028",
            "\u2029": "\\u2029",
        }
        return Markup(f"[{','.join(figures)}]".translate(str.maketrans(unsafe)))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    return environment.get_template("report.html.j2").render(
        values, add_figure=add_figure, figures_json=figures_json, sha256=_sha256, library=Markup(get_plotlyjs())
    )
