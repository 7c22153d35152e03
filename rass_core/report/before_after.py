"""Over-refusal and safety before and after, by dataset and under attacks."""

from collections.abc import Mapping, Sequence
from itertools import cycle

from rass_core.report.figures import GREY, PALETTE, Lanes, Mark, Plot, interval_marks
from rass_core.report.variants import (
    ATTACKED_OVER_REFUSAL,
    ATTACKED_SAFETY,
    OVER_REFUSAL,
    SAFETY,
    Figures,
    Rate,
    Section,
    arrow,
    change_cell,
    ends,
)
from rass_core.report.words import distinct_names, inert, language_name, show_p, show_percent, show_share
from rass_core.vocabulary import ALL, JAILBREAK


def before_after_section(figures: Figures) -> Section | None:
    """Return a panel a dataset, each with over-refusal and safety."""
    datasets = {*figures.datasets(OVER_REFUSAL.metric), *figures.datasets(SAFETY.metric)}
    panels = []
    for name in sorted(datasets, key=lambda name: (name != ALL, name)):
        parts = []
        for rate, reason in ((OVER_REFUSAL, "benign"), (SAFETY, "harmful")):
            names = distinct_names(figures.languages(rate.metric, name)) | {ALL: "all languages"}
            places = [(name, code) for code in figures.languages(rate.metric, name)]
            groups = {place: names[place[1]] for place in places}
            empty = f"No {reason} prompt of this data set was scored."
            parts.append(
                {
                    "title": f"{rate.name.capitalize()} before and after",
                    "plot": _dots(figures, rate, groups, empty),
                    "table": [
                        _cells(figures, rate, variant, *place, [groups[place]])
                        for place in places
                        for variant in figures.variants
                    ],
                }
            )
        panels.append({"name": "all data sets" if name == ALL else name.replace("_", " "), "parts": parts})
    head = ["Variant", "Before", "After", "Change, points", "p", "Partly refused", "No outcome", "Prompts compared"]
    return {"head": ["Language", *head], "panels": panels} if panels else None


def jailbreak_section(figures: Figures) -> Section | None:
    """Return plot and table of safety by attack, and of benign prompts under the same attacks where these are."""
    parts = []
    for rate, title in ((ATTACKED_SAFETY, "Safety by attack"), (ATTACKED_OVER_REFUSAL, "Benign prompts, attacked")):
        places = [(name, ALL) for name in figures.datasets(rate.metric)]
        known = [place for place in places if figures.of("base", rate.metric, *place).get("value") is not None]
        if not known:
            continue
        groups = {place: _attack(place[0]) for place in known}
        by_language = [(JAILBREAK, code) for code in figures.languages(rate.metric, JAILBREAK) if code != ALL]
        parts.append({
            "title": title,
            "plot": _dots(figures, rate, groups, ""),
            "table": [
                _cells(figures, rate, variant, *place,
                       [_attack(place[0]), "all" if place[1] == ALL else language_name(place[1])])
                for place in [*known, *by_language] for variant in figures.variants
            ],
        })  # fmt: skip
    head = [
        "Dressing",
        "Language",
        "Variant",
        "Before",
        "After",
        "Change, points",
        "p",
        "No outcome",
        "Prompts compared",
    ]
    return {"head": head, "parts": parts} if parts else None


def _attack(dataset: str) -> str:
    return "all attacks" if dataset == JAILBREAK else dataset.partition(":")[2].replace("_", " ")


def _cells(
    figures: Figures, rate: Rate, variant: str, dataset: str, language: str, opening: Sequence[str]
) -> list[str]:
    """Return a table's row: one rate of one variant at one place, before and after."""
    before, after = (figures.of(name, rate.metric, dataset, language) for name in ("base", variant))
    change = figures.of(variant, f"{rate.metric}_change", dataset, language)
    cells = [
        *opening,
        variant,
        *(show_share(*ends(row), 1) for row in (before, after)),
        change_cell(change),
        show_p(change.get("p_value")),
    ]
    if rate.partial is not None:
        partial = [figures.of(name, rate.partial, dataset, language).get("value") for name in ("base", variant)]
        cells.append(arrow(*map(show_percent, partial)))
    counts = [str(row["n_unscored"]) if row.get("n_unscored") is not None else "–" for row in (before, after)]
    return [*cells, arrow(*counts), f"{change['n']:,}" if change.get("n") is not None else "–"]


def _dots(figures: Figures, rate: Rate, groups: Mapping[tuple[str, str], str], empty: str) -> Plot:
    """Draw a rate before and after at each place: base hollow and grey, a line from it to each variant."""
    lanes = Lanes(list(groups.values()), ["base", *figures.variants])
    figure = lanes.lay_out(rate.axis)
    base = _marks(figures, rate, "base", groups, lanes)
    hollow = {"symbol": "circle-open", "line": {"width": 2}}
    figure.add_trace(interval_marks(list(base.values()), "base, before", color=GREY, **hollow))
    starts = {place: mark[:2] for place, mark in base.items()}
    n_drawn = len(base)
    for variant, colour in zip(figures.variants, cycle(PALETTE), strict=False):
        marks = _marks(figures, rate, variant, groups, lanes)
        n_drawn += len(marks)
        pairs = [(starts[place], mark) for place, mark in marks.items() if place in starts]
        figure.add_scatter(
            x=[x for start, mark in pairs for x in (start[0], mark[0], None)],
            y=[y for start, mark in pairs for y in (start[1], mark[1], None)],
            mode="lines",
            line={"color": colour, "width": 1.4},
            opacity=0.55,
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_trace(interval_marks(list(marks.values()), variant, color=colour))
    figure.update_xaxes(range=[-0.03, 1.03], tickformat=".0%")
    return Plot(figure if n_drawn else None, empty)


def _marks(
    figures: Figures, rate: Rate, variant: str, groups: Mapping[tuple[str, str], str], lanes: Lanes
) -> dict[tuple[str, str], Mark]:
    """Return the dots of one variant, where it has a value."""
    marks = {}
    for place, group in groups.items():
        row = figures.of(variant, rate.metric, *place)
        value, low, high = ends(row)
        if value is not None:
            hover = f"{inert(group)}, {inert(variant)}<br>{rate.name} {show_share(value, low, high, 1)}"
            hover += f"<br>{row['n']:,} scored, {row['n_unscored'] or 0:,} without an outcome" if row["n"] else ""
            marks[place] = (value, lanes.at(group, variant), low, high, hover)
    return marks
