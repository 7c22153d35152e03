"""Generation and selection: offspring over the rounds, what the operators yielded, selected prompts."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from rass_core.report.figures import GREY, lay_out, mark_boundary
from rass_core.report.points import Offspring
from rass_core.report.words import one_line, show_number
from rass_core.vocabulary import Row

TABLE_CHARACTERS = 400
MAX_ALPHA_GROUPS = 7


def _alpha_groups(alphas: Iterable[float]) -> list[tuple[str, float, float]]:
    """Return (name, low, high) of the steering strengths: each its own, or few ranges where they are many."""
    distinct = sorted(set(alphas))
    if len(distinct) <= MAX_ALPHA_GROUPS:
        return [(f"α = {show_number(alpha)}", alpha, alpha) for alpha in distinct]
    groups = []
    for side in ([a for a in distinct if a < 0], [a for a in distinct if a == 0], [a for a in distinct if a > 0]):
        for part in np.array_split(side, min(3, len(side))) if side else []:
            low, high = float(part[0]), float(part[-1])
            groups.append((f"α = {show_number(low)}" + (f" … {show_number(high)}" if high > low else ""), low, high))
    return groups


def _alpha_colour(alpha: float, largest: float) -> str:
    """Return grey for the unsteered control, blue below it and orange above, darker the further off."""
    if alpha == 0:
        return GREY
    pale, deep = ((143, 190, 232), (29, 94, 168)) if alpha < 0 else ((246, 183, 96), (186, 74, 14))
    share = abs(alpha) / largest
    return "rgb({},{},{})".format(*(round(p + share * (d - p)) for p, d in zip(pale, deep, strict=True)))


def offspring_plot(offspring: Sequence[Offspring], boundary: Row | None) -> go.Figure:
    """Draw the median margin of each round's offspring, by α."""
    figure = lay_out(400, "round", "margin of the offspring")
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
                f"{round_name(number)}, {name}<br>median margin {show_number(q[1])}, quartiles {show_number(q[0])} to "
                f"{show_number(q[2])}<br>{len(by_round[number])} offspring"
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
    numbers = sorted({number for number, _, _ in offspring})
    figure.update_xaxes(
        tickvals=numbers,
        ticktext=[round_name(number).removeprefix("round ") for number in numbers],
        range=[numbers[0] - 0.5, numbers[-1] + 0.8],  # room for the names of the lines
    )
    mark_boundary(figure, boundary, axis="y")
    return figure


def round_name(number: int) -> str:
    """Name a round as the terminal does: counted from 1, the trial of the writers before them."""
    return "trial" if number < 0 else f"round {number + 1}"


def selected_rows(rows: Sequence[Row], prompts: Mapping[str, Row], language: str, limit: int) -> Row:
    """Return one language's selected prompts by rank, the first of them to show and how many there are."""
    mine = [row for row in rows if prompts.get(row["prompt_id"], row)["language"] == language]
    mine.sort(key=lambda row: (row["rank"] is None, row["rank"] or 0, row["prompt_id"] or ""))
    shown = [
        {
            "rank": row["rank"] if row["rank"] is not None else "–",
            "margin": show_number(row["margin"]),
            "distance": show_number(row["distance"]),
            "category": row["category"] or "–",
            "operator": row["operator"] or "–",
            "text": one_line(
                prompts.get(row["prompt_id"], {}).get("text") or "(text not in this run)", TABLE_CHARACTERS
            ),
        }
        for row in mine[:limit]
    ]
    return {"n": len(mine), "shown": shown}


COUNTED = ("n_candidates", "n_new", "n_benign", "n_refused", "n_accepted")
"""Columns of `rounds` and `writers` that the page shows."""


def arm_table(rounds: Sequence[Row]) -> list[list[str]]:
    """Return the cells of what each operator yielded, steered and in the unsteered control."""
    sums: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for row in rounds:
        steering = steering_name(row["steering"], row["layer"]) if row["alpha"] else "control, α = 0"
        arm = sums[row["operator"] or "–", row["role"] or "–", steering]
        arm.update({name: row[name] or 0 for name in (*COUNTED, "n_tokens")})
    return [[*names, *_counts(arm)] for names, arm in sorted(sums.items())]


def writer_table(writers: Sequence[Row]) -> list[list[str]]:
    """Return the cells of what each role and steering yielded in the trial, all its α together, the chosen first."""
    sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    alphas: dict[tuple[str, str], set[float]] = defaultdict(set)
    chosen = set()
    for row in writers:
        key = (row["role"] or "–", steering_name(row["steering"], row["layer"]))
        sums[key].update({name: row[name] or 0 for name in (*COUNTED, "n_tokens")})
        alphas[key].add(row["alpha"] or 0.0)
        if row["chosen"]:
            chosen.add(key)
    return [
        ["yes" if key in chosen else "", *key, ", ".join(map(show_number, sorted(alphas[key]))), *_counts(sums[key])]
        for key in sorted(sums, key=lambda each: (each not in chosen, each))
    ]


def drop_table(rounds: Sequence[Row], writers: Sequence[Row]) -> list[list[str]]:
    """Return the cells of why written texts were dropped, by role, the commonest reason first."""
    written: Counter[str] = Counter()
    dropped: Counter[tuple[str, str]] = Counter()
    for row in [*rounds, *writers]:
        role = row["role"] or "–"
        written[role] += row["n_candidates"] or 0
        for each in row["dropped"] or []:
            dropped[role, each["reason"]] += each["n"]
    return [
        [role, reason, f"{n:,}", f"{n / written[role]:.0%}" if written[role] else "–"]
        for (role, reason), n in sorted(dropped.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    ]


def steering_name(steering: str | None, layer: int | None) -> str:
    """Name a steering in words, with the block after which it is added."""
    name = (steering or "–").replace("_", " ")
    return name if layer is None else f"{name}, block {layer}"


def _counts(arm: Counter[str]) -> list[str]:
    rate = show_number(1000 * arm["n_accepted"] / arm["n_tokens"]) if arm["n_tokens"] else "–"
    return [*(f"{arm[name]:,}" for name in COUNTED), rate]
