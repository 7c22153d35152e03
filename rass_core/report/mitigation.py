"""What mitigation did: before and after, under jailbreaks, what it cost, the gate's verdict, and the training."""

from collections.abc import Mapping, Sequence

from rass_core.evaluate.metrics import METRICS, Metric
from rass_core.report.before_after import before_after_section, jailbreak_section
from rass_core.report.training import training_section
from rass_core.report.variants import (
    ATTACKED_SAFETY,
    OVER_REFUSAL,
    SAFETY,
    Figures,
    Rate,
    Section,
    arrow,
    change_cell,
    ends,
    variant_order,
)
from rass_core.report.words import (
    language_name,
    show_interval,
    show_number,
    show_p,
    show_percent,
    show_points,
)
from rass_core.vocabulary import ALL, JAILBREAK, Row

UTILITY = "utility:"
"""What opens the dataset of a benchmark's task in `evaluations`."""
OTHER_METRICS = sorted((metric for metric in METRICS if metric.title), key=lambda metric: metric.counts is not None)
"""Metrics of the table of all else that changed, lengths first."""


def mitigation_section(rows: Mapping[str, Sequence[Row]]) -> Section:
    """Return what the page shows of mitigated variants; each part is None where its rows are not there.

    Args:
        rows: Rows of one model: `evaluations`, `gates`, `variants` and `preferences`.
    """
    figures = Figures(rows["evaluations"])
    gates = sorted(rows["gates"], key=lambda row: variant_order(row["variant"] or ""))
    return {
        "summaries": [_summary(variant, figures, gates) for variant in figures.variants],
        "before_after": before_after_section(figures),
        "jailbreaks": jailbreak_section(figures),
        "costs": _costs(figures),
        "gates": [_gate(row) for row in gates],
        "training": training_section(rows),
    }


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
    """Return one row per variant × language as text: each rate before and after, its change and p.

    Args:
        rows: Rows of `evaluations` of one model.
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
                shown[rate.name] = arrow(*values)
                shown[f"{rate.name}, points"] = change_cell(change)
                shown[f"{rate.name}, p"] = show_p(change.get("p_value"))
            found.append(shown)
    return found


def gate_markdown(rows: Sequence[Row]) -> str:
    """Return the gate's verdict on each variant as markdown; rows are those of `gates`."""
    lines = []
    for row in sorted(rows, key=lambda row: variant_order(row["variant"] or "")):
        lines += [f"## {row['variant']} {'passes' if row['passed'] else 'does not pass'}", ""]
        lines += [f"- {reason}" for reason in row["refusals"] or []]
        lines += [f"- (only to be read) {reason}" for reason in row["warnings"] or []]
        lines.append("")
    return "\n".join(lines)


def _costs(figures: Figures) -> Section | None:
    """Return one row per variant of what else changed."""
    if not figures.variants:
        return None
    tasks = figures.starting_with(UTILITY)
    head = ["Variant", "KL, nats per token", "Perplexity"]
    for metric in OTHER_METRICS:
        head += [metric.title or "", "Change" if metric.counts is None else "Change, points"]
    head += [name.removeprefix(UTILITY) for name in tasks]
    return {"head": head, "rows": [_cost_cells(figures, variant, tasks) for variant in figures.variants]}


def _cost_cells(figures: Figures, variant: str, tasks: Sequence[str]) -> list[str]:
    was = figures.of(variant, "perplexity_base").get("value", figures.of("base", "perplexity").get("value"))
    return [
        variant,
        _measured(figures.of(variant, "kl"), 4),
        arrow(show_number(was, 3), _measured(figures.of(variant, "perplexity"), 3)),
        *(cell for metric in OTHER_METRICS for cell in _metric_cells(figures, variant, metric)),
        *(_utility(figures, variant, task) for task in tasks),
    ]


def _metric_cells(figures: Figures, variant: str, metric: Metric) -> tuple[str, str]:
    """Return a metric before and after, and its change."""
    values = [figures.of(name, metric.name, metric.pooled).get("value") for name in ("base", variant)]
    change = figures.of(variant, f"{metric.name}_change", metric.pooled)
    if metric.counts is None:
        return arrow(*(show_number(value, 1) for value in values)), _measured(change, 2)
    return arrow(*(show_percent(value, 1) for value in values)), show_points(*ends(change))


def _measured(row: Row, digits: int) -> str:
    return show_interval(*ends(row), digits) if row.get("value") is not None else f"– ({_why(row)})"


def _utility(figures: Figures, variant: str, task: str) -> str:
    """Return a benchmark's metrics before and after; of one without a value the reason."""
    metrics = dict.fromkeys([*figures.metrics("base", task), *figures.metrics(variant, task)])
    told = []
    for metric in metrics:
        rows = [figures.of(name, metric, task) for name in ("base", variant)]
        scores = (show_interval(*ends(row), 3) if row.get("value") is not None else f"– ({_why(row)})" for row in rows)
        told.append(f"{metric} {arrow(*scores)}")
    return "; ".join(told)


def _why(row: Row) -> str:
    return row.get("reason") or "not measured"


def _gate(row: Row) -> Section:
    """Return the gate's verdict on one variant, its figures by name."""
    needs = [
        [
            (need["metric"] or "").replace("_", " "),
            "all" if need["language"] == ALL else language_name(need["language"] or ""),
            "–" if need["tolerance"] is None else f"{show_number(100 * need['tolerance'], 1)} points",
            *(
                "–" if need[name] is None else f"{need[name]:,}"
                for name in ("n_required", "n_required_with_changes", "n_effective")
            ),
            "–"
            if None in (need["n_effective"], need["n_required"])
            else "enough"
            if need["n_effective"] >= max(need["n_required"], need["n_required_with_changes"] or 0)
            else "too few",
        ]
        for need in row["needs"] or []
    ]
    return {
        "variant": row["variant"] or "–",
        "passed": row["passed"],
        "refusals": row["refusals"] or [],
        "warnings": row["warnings"] or [],
        "needs": needs,
    }
