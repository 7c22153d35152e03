"""The training of the variants: losses, pairs, and why answers were not taken."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go

from rass_core.report.figures import PALETTE, Plot, lay_out
from rass_core.report.variants import Section, arrow, variant_order
from rass_core.report.words import inert, language_name, show_number, show_percent
from rass_core.vocabulary import Row

MAX_STEPS_DRAWN = 500


def training_section(rows: Mapping[str, Sequence[Row]]) -> Section | None:
    """Return loss curves, facts of each variant, the pairs they learnt from and why answers were not taken."""
    variants = sorted(rows["variants"], key=lambda row: variant_order(row["variant"] or ""))
    reasons = sorted(
        (
            (row["metric"].partition(":")[2].replace("_", " "), row["n"] or 0)
            for row in rows["evaluations"]
            if row["dataset"] == "preferences" and (row["metric"] or "").startswith("chosen_rejected:")
        ),
        key=lambda each: (-each[1], each[0]),
    )
    share = next((row for row in rows["evaluations"] if row["metric"] == "chosen_share"), None)
    if not variants and not rows["preferences"] and not reasons:
        return None
    trained = [row for row in variants if row["losses"]]
    return {
        "plot": Plot(_losses(trained) if trained else None, "No variant was trained by steps."),
        "variants": [_variant_cells(row) for row in variants],
        "pairs": _pair_table(rows["preferences"]),
        "reasons": [[why, f"{n:,}"] for why, n in reasons],
        "share": None
        if share is None or share["value"] is None
        else f"{show_percent(share['value'])} of {share['n'] or 0:,}",
    }


def _losses(variants: Sequence[Row]) -> go.Figure:
    """Draw the loss of each training over its steps."""
    figure = lay_out(380, "step", "loss")
    for row, colour in zip(variants, cycle(PALETTE), strict=False):
        losses = list(enumerate(row["losses"], start=1))
        shown = losses[:: max(1, -(-len(losses) // MAX_STEPS_DRAWN))]
        name = inert(row["variant"] or "–")
        figure.add_scatter(
            x=[step for step, _ in shown],
            y=[loss for _, loss in shown],
            mode="lines",
            name=name,
            hoverinfo="text",
            hovertext=[f"{name}, step {step} of {len(losses)}<br>loss {show_number(loss, 4)}" for step, loss in shown],
            line={"color": colour, "width": 2},
        )
    figure.update_yaxes(rangemode="tozero")
    return figure


def _variant_cells(row: Row) -> list[str]:
    losses = [loss for loss in row["losses"] or [] if loss is not None]
    return [
        row["variant"] or "–",
        *("–" if row[name] is None else f"{row[name]:,}" for name in ("n_pairs", "n_too_long")),
        f"{len(losses):,}" if losses else "–",
        arrow(show_number(losses[0], 3), show_number(losses[-1], 3)) if losses else "–",
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
