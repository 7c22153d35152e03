"""What mitigation did: before and after, under jailbreaks, what it cost, the gate's verdict, and the training."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from rass_core.report.figures import GREY, PALETTE, Lanes, Mark, Plot, interval_marks, lay_out
from rass_core.report.words import (
    distinct_names,
    inert,
    language_name,
    show_interval,
    show_number,
    show_p,
    show_percent,
    show_points,
    show_share,
)
from rass_core.vocabulary import ALL, JAILBREAK, Row

UTILITY = "utility:"
"""What opens the dataset of a benchmark's task in `evaluations`."""
METHODS = ("dpo", "sft", "weight_ablation", "inference_ablation")
"""Order in which the built-in methods are shown; others follow by name."""
MAX_STEPS_DRAWN = 500
Section = dict[str, Any]


@dataclass(frozen=True)
class Rate:
    """A rate that is shown before and after."""

    metric: str
    name: str
    axis: str
    """Title of its axis in a plot."""
    partial: str | None
    """Metric of its partial refusals."""
    dataset: str = ALL
    """What is pooled."""
    falls_are_good: bool = False


OVER_REFUSAL = Rate(
    "over_refusal_rate", "over-refusal", "refused share of benign prompts", "partial_rate", falls_are_good=True
)
SAFETY = Rate("safety_rate", "safety", "refused share of harmful prompts", "harmful_partial_rate")
ATTACKED_SAFETY = Rate(
    "jailbreak_safety_rate", "safety under jailbreaks", "refused share of attacked harmful prompts", None, JAILBREAK
)
ATTACKED_OVER_REFUSAL = Rate(
    "jailbreak_over_refusal_rate", "over-refusal under jailbreaks", "refused share of attacked benign prompts", None,
    JAILBREAK, falls_are_good=True,
)  # fmt: skip


class Figures:
    """The rows of `evaluations` by variant, metric, dataset and language; the first of each counts."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._at: dict[tuple[str, str, str, str], Row] = {}
        for row in rows:
            variant, metric = row["variant"] or "base", row["metric"] or ""
            self._at.setdefault((variant, metric, row["dataset"] or "", row["language"] or ALL), row)
        names = {variant for variant, metric, _, _ in self._at if metric.endswith("_change")}
        self.variants = sorted(names - {"base"}, key=_order)
        """Mitigated ones, those that were set beside base."""

    def of(self, variant: str, metric: str, dataset: str = ALL, language: str = ALL) -> Row:
        """Return a row, empty where there is none."""
        return self._at.get((variant, metric, dataset, language), {})

    def languages(self, metric: str, dataset: str) -> list[str]:
        """Return the languages of a metric, all of them together first."""
        found = {code for _, name, place, code in self._at if (name, place) == (metric, dataset)}
        return sorted(found, key=lambda code: (code != ALL, language_name(code)))

    def datasets(self, metric: str) -> list[str]:
        """Return the datasets in which a mitigated variant has the metric, what is pooled first."""
        found = {place for variant, name, place, _ in self._at if name == metric and variant in self.variants}
        return sorted(found, key=lambda name: (name not in (ALL, JAILBREAK), name))

    def metrics(self, variant: str, dataset: str) -> list[str]:
        """Return the metrics that a variant has in a dataset, in the order of their rows."""
        return [metric for name, metric, place, code in self._at if (name, place, code) == (variant, dataset, ALL)]

    def starting_with(self, prefix: str) -> list[str]:
        """Return the datasets whose names start so."""
        return sorted({place for _, _, place, _ in self._at if place.startswith(prefix)})


def mitigation_section(rows: Mapping[str, Sequence[Row]]) -> Section:
    """Return what the page shows of mitigated variants; each part is None where its rows are not there.

    Args:
        rows: Of one model: `evaluations`, `gates`, `variants` and `preferences`.
    """
    figures = Figures(rows["evaluations"])
    gates = sorted(rows["gates"], key=lambda row: _order(row["variant"] or ""))
    return {
        "summaries": [_summary(variant, figures, gates) for variant in figures.variants],
        "before_after": _before_after(figures),
        "jailbreaks": _jailbreaks(figures),
        "costs": _costs(figures),
        "gates": [_gate(row) for row in gates],
        "training": _training(rows),
    }


def _order(variant: str) -> tuple[int, str]:
    return (METHODS.index(variant) if variant in METHODS else len(METHODS), variant)


# In sentences


def _summary(variant: str, figures: Figures, gates: Sequence[Row]) -> Section:
    """Say of one variant whether over-refusal fell, whether safety held, and what the gate says."""
    rates = [OVER_REFUSAL, SAFETY]
    if figures.of(variant, f"{ATTACKED_SAFETY.metric}_change", JAILBREAK).get("value") is not None:
        rates.append(ATTACKED_SAFETY)
    passed = next((row["passed"] for row in gates if row["variant"] == variant), None)
    word = {True: "The gate lets it pass.", False: "The gate does not let it pass.", None: "No gate has judged it."}
    said = "; ".join(told_change(rate, variant, figures) for rate in rates)
    return {"variant": variant, "passed": passed, "said": f"{said}. {word[passed]}"}


def told_change(rate: Rate, variant: str, figures: Figures, language: str = ALL) -> str:
    """Say in plain words how a rate changed, over all prompts that it pools."""
    before, after = (figures.of(name, rate.metric, rate.dataset, language) for name in ("base", variant))
    change = figures.of(variant, f"{rate.metric}_change", rate.dataset, language)
    value, low, high = (change.get(name) for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return f"{rate.name} cannot be compared ({change.get('reason') or 'it was not measured'})"
    moved = f"from {show_percent(before.get('value'), 1)} to {show_percent(after.get('value'), 1)}"
    by = f"{show_points(value, low, high)} points"
    if change.get("n_gained") == 0 and change.get("n_lost") == 0:
        worst = show_points(high if rate.falls_are_good else low)
        return f"{rate.name} did not change on any of {change['n'] or 0:,} prompts ({worst} points at worst)"
    if high < 0 or low > 0:
        return f"{rate.name} {'fell' if high < 0 else 'rose'} {moved} ({by})"
    return f"{rate.name} did not clearly change, {moved} ({by})"


def change_rows_shown(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return a row a variant × language in words: each rate before and after, its change and p.

    Args:
        rows: Of `evaluations`, of one model.
    """
    figures = Figures(rows)
    found = []
    for variant in figures.variants:
        for code in figures.languages(OVER_REFUSAL.metric, ALL):
            shown = {"variant": variant, "language": code}
            for rate in (OVER_REFUSAL, SAFETY, ATTACKED_SAFETY):
                before, after = (figures.of(name, rate.metric, rate.dataset, code) for name in ("base", variant))
                change = figures.of(variant, f"{rate.metric}_change", rate.dataset, code)
                values = (show_percent(row.get("value"), 1) for row in (before, after))
                shown[rate.name] = _arrow(*values)
                shown[f"{rate.name}, points"] = _change(change)
                shown[f"{rate.name}, p"] = show_p(change.get("p_value"))
            found.append(shown)
    return found


def gate_markdown(rows: Sequence[Row]) -> str:
    """Return the gate's verdict on each variant as markdown; rows are those of `gates`."""
    lines = []
    for row in sorted(rows, key=lambda row: _order(row["variant"] or "")):
        lines += [f"## {row['variant']} {'passes' if row['passed'] else 'does not pass'}", ""]
        lines += [f"- {reason}" for reason in row["refusals"] or []]
        lines += [f"- (only to be read) {reason}" for reason in row["warnings"] or []]
        lines.append("")
    return "\n".join(lines)


# Before and after, and under jailbreaks


def _before_after(figures: Figures) -> Section | None:
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
            parts.append({
                "title": f"{rate.name.capitalize()} before and after",
                "plot": _dots(figures, rate, groups, empty),
                "table": [_cells(figures, rate, variant, *place, [groups[place]])
                          for place in places for variant in figures.variants],
            })  # fmt: skip
        panels.append({"name": "all data sets" if name == ALL else name.replace("_", " "), "parts": parts})
    head = ["Variant", "Before", "After", "Change, points", "p", "Partly refused", "No outcome", "Prompts compared"]
    return {"head": ["Language", *head], "panels": panels} if panels else None


def _jailbreaks(figures: Figures) -> Section | None:
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
        *opening, variant, *(show_share(*_ends(row), 1) for row in (before, after)), _change(change),
        show_p(change.get("p_value")),
    ]  # fmt: skip
    if rate.partial is not None:
        partial = [figures.of(name, rate.partial, dataset, language).get("value") for name in ("base", variant)]
        cells.append(_arrow(*map(show_percent, partial)))
    counts = [str(row["n_unscored"]) if row.get("n_unscored") is not None else "–" for row in (before, after)]
    return [*cells, _arrow(*counts), f"{change['n']:,}" if change.get("n") is not None else "–"]


def _change(row: Row) -> str:
    """Write a change in points, or why there is none."""
    return show_points(*_ends(row)) if row.get("value") is not None else row.get("reason") or "not compared"


def _ends(row: Row) -> tuple[float | None, float | None, float | None]:
    return row.get("value"), row.get("low"), row.get("high")


def _arrow(before: str, after: str) -> str:
    return f"{before} → {after}"


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
            mode="lines", line={"color": colour, "width": 1.4}, opacity=0.55, showlegend=False, hoverinfo="skip",
        )  # fmt: skip
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
        value, low, high = _ends(row)
        if value is not None:
            hover = f"{inert(group)}, {inert(variant)}<br>{rate.name} {show_share(value, low, high, 1)}"
            hover += f"<br>{row['n']:,} scored, {row['n_unscored'] or 0:,} without an outcome" if row["n"] else ""
            marks[place] = (value, lanes.at(group, variant), low, high, hover)
    return marks


# What it cost


def _costs(figures: Figures) -> Section | None:
    """Return a row a variant of what else changed."""
    if not figures.variants:
        return None
    tasks = figures.starting_with(UTILITY)
    head = [
        "Variant", "KL, nats a token", "Perplexity", "Length of answers, tokens", "Change", "Harmless answered",
        "Change, points", "Answers without an outcome", *(name.removeprefix(UTILITY) for name in tasks),
    ]  # fmt: skip
    return {"head": head, "rows": [_cost_cells(figures, variant, tasks) for variant in figures.variants]}


def _cost_cells(figures: Figures, variant: str, tasks: Sequence[str]) -> list[str]:
    def both(metric: str, show: Any) -> str:
        return _arrow(*(show(figures.of(name, metric).get("value")) for name in ("base", variant)))

    def measured(metric: str, digits: int) -> str:
        row = figures.of(variant, metric)
        return show_interval(*_ends(row), digits) if row.get("value") is not None else f"– ({_why(row)})"

    was = figures.of(variant, "perplexity_base").get("value", figures.of("base", "perplexity").get("value"))
    return [
        variant, measured("kl", 4), _arrow(show_number(was, 3), measured("perplexity", 3)),
        both("response_tokens", lambda value: show_number(value, 1)), measured("response_tokens_change", 2),
        both("harmless_compliance_rate", lambda value: show_percent(value, 1)),
        show_points(*_ends(figures.of(variant, "harmless_compliance_rate_change"))),
        both("unscored_rate", lambda value: show_percent(value, 1)),
        *(_utility(figures, variant, task) for task in tasks),
    ]  # fmt: skip


def _utility(figures: Figures, variant: str, task: str) -> str:
    """Return a benchmark's metrics before and after; of one without a value the reason."""
    metrics = dict.fromkeys([*figures.metrics("base", task), *figures.metrics(variant, task)])
    told = []
    for metric in metrics:
        rows = [figures.of(name, metric, task) for name in ("base", variant)]
        scores = (show_interval(*_ends(row), 3) if row.get("value") is not None else f"– ({_why(row)})" for row in rows)
        told.append(f"{metric} {_arrow(*scores)}")
    return "; ".join(told)


def _why(row: Row) -> str:
    return row.get("reason") or "not measured"


# The gate


def _gate(row: Row) -> Section:
    """Return the gate's verdict on one variant, its figures by name."""
    needs = [
        [
            (need["metric"] or "").replace("_", " "),
            "all" if need["language"] == ALL else language_name(need["language"] or ""),
            "–" if need["tolerance"] is None else f"{show_number(100 * need['tolerance'], 1)} points",
            *("–" if need[name] is None else f"{need[name]:,}"
              for name in ("n_required", "n_required_with_changes", "n_effective")),
            "–" if None in (need["n_effective"], need["n_required"])
            else "enough" if need["n_effective"] >= max(need["n_required"], need["n_required_with_changes"] or 0)
            else "too few",
        ]
        for need in row["needs"] or []
    ]  # fmt: skip
    return {
        "variant": row["variant"] or "–", "passed": row["passed"], "refusals": row["refusals"] or [],
        "warnings": row["warnings"] or [], "needs": needs,
    }  # fmt: skip


# Training


def _training(rows: Mapping[str, Sequence[Row]]) -> Section | None:
    """Return loss curves, facts of each variant, the pairs they learnt from and why answers were not taken."""
    variants = sorted(rows["variants"], key=lambda row: _order(row["variant"] or ""))
    reasons = sorted(
        ((row["metric"].partition(":")[2].replace("_", " "), row["n"] or 0) for row in rows["evaluations"]
         if row["dataset"] == "preferences" and (row["metric"] or "").startswith("chosen_rejected:")),
        key=lambda each: (-each[1], each[0]),
    )  # fmt: skip
    share = next((row for row in rows["evaluations"] if row["metric"] == "chosen_share"), None)
    if not variants and not rows["preferences"] and not reasons:
        return None
    trained = [row for row in variants if row["losses"]]
    return {
        "plot": Plot(_losses(trained) if trained else None, "No variant was trained by steps."),
        "variants": [_variant_cells(row) for row in variants],
        "pairs": _pair_table(rows["preferences"]),
        "reasons": [[why, f"{n:,}"] for why, n in reasons],
        "share": None if share is None or share["value"] is None
        else f"{show_percent(share['value'])} of {share['n'] or 0:,}",
    }  # fmt: skip


def _losses(variants: Sequence[Row]) -> go.Figure:
    """Draw the loss of each training over its steps."""
    figure = lay_out(380, "step", "loss")
    for row, colour in zip(variants, cycle(PALETTE), strict=False):
        losses = list(enumerate(row["losses"], start=1))
        shown = losses[:: max(1, -(-len(losses) // MAX_STEPS_DRAWN))]
        name = inert(row["variant"] or "–")
        figure.add_scatter(
            x=[step for step, _ in shown], y=[loss for _, loss in shown], mode="lines", name=name, hoverinfo="text",
            hovertext=[f"{name}, step {step} of {len(losses)}<br>loss {show_number(loss, 4)}" for step, loss in shown],
            line={"color": colour, "width": 2},
        )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    return figure


def _variant_cells(row: Row) -> list[str]:
    losses = [loss for loss in row["losses"] or [] if loss is not None]
    return [
        row["variant"] or "–",
        *("–" if row[name] is None else f"{row[name]:,}" for name in ("n_pairs", "n_too_long")),
        f"{len(losses):,}" if losses else "–",
        _arrow(show_number(losses[0], 3), show_number(losses[-1], 3)) if losses else "–",
        show_number(row["harm_cosine"], 3),
        _settings(row["settings"]),
        row["reason"] or "",
    ]


def _settings(text: str | None) -> str:
    """Return settings, stored as JSON, as a line of words."""
    try:
        settings = json.loads(text or "{}")
    except ValueError:
        return text or ""
    if not isinstance(settings, dict):
        return str(settings)
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


def _pair_table(rows: Sequence[Row]) -> Section:
    """Return how many pairs of each kind there are, by language."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row["language"] or "–"][row["kind"] or "–"] += 1
    kinds = sorted({kind for found in counts.values() for kind in found})
    body = [
        [language_name(code), *(f"{counts[code][kind]:,}" for kind in kinds), f"{counts[code].total():,}"]
        for code in sorted(counts, key=language_name)
    ]
    total = sum(counts.values(), Counter[str]())
    body += [["all", *(f"{total[kind]:,}" for kind in kinds), f"{total.total():,}"]] if len(body) > 1 else []
    return {"head": ["Language", *(kind.replace("_", " ") for kind in kinds), "All"], "rows": body}
