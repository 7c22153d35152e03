"""Which direction serves which role."""

from collections.abc import Sequence
from dataclasses import replace

from rass_core.probe.causal import AUC_TIE, MARGIN_KINDS
from rass_core.probe.geometry import Direction
from rass_core.probe.settings import ProbeConfig


def choose_roles(tried: Sequence[Direction], config: ProbeConfig) -> list[Direction]:
    """Return the directions with their roles and why they have them; every role goes to the direction best for it.

    `margin`: the best AUC among directions of `MARGIN_KINDS` that induce refusal and have an AUC, which needs their
    harmful mean above their harmless mean. `harm`: the same among harm directions; mitigation keeps it. `add`: induces
    most refusals in generated text, or by log-odds where none was generated. `ablate`: bypasses best at a KL of at
    most `max_kl`, and on at least `min_bypass` of the prompts. Where no direction induces refusal, `margin` goes to
    the best AUC, and its reason says so.
    """
    if not tried:
        return []
    roles: dict[int, dict[str, str]] = {id(d): {} for d in tried}
    for role, kinds in (("margin", MARGIN_KINDS), ("harm", ("harm",))):
        able = [d for d in tried if d.kind in kinds and d.induced]
        able = [d for d in able if d.off_scale is None] or able
        if able:
            chosen, why = _best_ruler(able, config)
            roles[id(chosen)][role] = why
    add = _best_added(tried)
    if add.induce_score is not None:
        roles[id(add)]["add"] = _why_added(add)
    ablated = [d for d in tried if d.kl is not None and d.kl <= config.max_kl]
    best = max(ablated or tried, key=lambda d: (round(d.bypass_score or 0.0, 2), d.auc or 0.0))
    unfit = None
    if ablated and (best.bypass_score or 0.0) >= config.min_bypass:
        roles[id(best)]["ablate"] = _ablation_in_words(best)
    elif best.kl is not None:
        unfit = (
            f"no ablation bypasses {config.min_bypass:.0%} at KL ≤ {config.max_kl:g}; best: {_ablation_in_words(best)}"
        )
    found = []
    for direction in tried:
        mine = roles[id(direction)]
        words = [direction.reason or "", direction.off_scale or ""]
        words += [f"{role}: {why}" for role, why in mine.items()]
        if unfit is not None and direction is best:
            words.append(unfit)
        found.append(replace(direction, roles=tuple(mine), reason="; ".join(filter(None, words)) or None))
    return found


def _best_added(tried: Sequence[Direction]) -> Direction:
    """Return the direction that induces most refusals in generated text, or by log-odds where none was generated.

    Shares that differ by about one answer are a tie. It goes to the direction whose ablation also takes refusal away,
    for that one moves more than the first words, then to the smaller strength.
    """
    generated = [d for d in tried if d.induce_generated is not None and d.n_generated]
    if generated:
        best = max(d.induce_generated or 0.0 for d in generated)
        near = [d for d in generated if (d.induce_generated or 0.0) >= best - 1.01 / (d.n_generated or 1)]
    else:
        best = max(round(d.induce_score or 0.0, 2) for d in tried)
        near = [d for d in tried if round(d.induce_score or 0.0, 2) == best]
    return max(
        near,
        key=lambda d: (
            round(d.full_ablation_bypass or 0.0, 1),
            d.induce_generated or 0.0,
            -(d.alpha or 0.0),
            d.induce_score or 0.0,
            d.auc or 0.0,
        ),
    )


def _best_ruler(able: Sequence[Direction], config: ProbeConfig) -> tuple[Direction, str]:
    """Return the direction with the best AUC among the causal ones, and why; ties go to the causal scores."""
    causal = [d for d in able if _most_induced(d) >= config.min_induce]
    best_auc = max((d.auc or 0.0) for d in causal or able)
    near_best = [d for d in causal or able if (d.auc or 0.0) >= best_auc - AUC_TIE]
    chosen = max(
        near_best,
        key=lambda d: (round(_most_induced(d) + (d.full_ablation_bypass or 0.0), 2), d.kind == "harm", d.auc or 0.0),
    )
    auc = "no AUC" if chosen.auc is None else f"AUC {chosen.auc:.2f}"
    if not causal:
        return chosen, f"{auc}; no direction induces refusal on {config.min_induce:.0%} of harmless prompts"
    return chosen, f"{auc}, best of {len(causal)} that induce refusal"


def _most_induced(direction: Direction) -> float:
    """Return the share of prompts that turn to refusal at the best strength."""
    return max(direction.induced.values(), default=0.0)


def _why_added(direction: Direction) -> str:
    by_odds = f"{direction.induce_score or 0.0:.0%} by log-odds, α = {direction.alpha:g}"
    if direction.induce_generated is None:
        return f"induces {by_odds}; not tried by generation"
    return f"induces {direction.induce_generated:.0%} of {direction.n_generated} generated answers, {by_odds}"


def _ablation_in_words(direction: Direction) -> str:
    layers = direction.ablate_layers or ()
    extent = (
        f"block {layers[0]}" if len(layers) == 1 else f"blocks {min(layers)}–{max(layers)}" if layers else "no block"
    )
    words = f"bypasses {direction.bypass_score or 0.0:.0%} at KL {direction.kl or 0.0:.2g} ({extent}, "
    words += f"strength {direction.ablate_strength or 0.0:g})"
    if direction.full_ablation_kl not in (None, direction.kl):
        words += f", full ablation has KL {direction.full_ablation_kl:.2g}"
    return words
