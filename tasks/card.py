"""The card of a mitigated model: what it is, what it learnt from, what was measured and what the gate says."""

import json
from collections.abc import Sequence
from typing import Any

from rass_core.lake.store import Commit
from rass_core.mitigate.card import ModelCard, write_card
from rass_core.mitigate.pairs import PreferencePair, counts
from rass_core.publish.release import artifact_of
from tasks.mitigate import Variant
from tasks.run import Run

SHOWN = {
    "over_refusal_rate": "over-refusal", "safety_rate": "safety", "jailbreak_safety_rate": "safety under jailbreaks",
    "harmless_compliance_rate": "harmless answered",
}  # fmt: skip


def write_cards(
    run: Run, variant: Variant, pairs: Sequence[PreferencePair], after: Commit, change: Commit, gate: Commit
) -> None:
    """Write the card into the variant's folder, in place of the one that its making left there."""
    word = run.read("gates", gate).to_pylist()[0]
    notes = ["It passed the gate."] if word["passed"] else ["**It did not pass the gate and is not to be published.**"]
    notes += [f"- {reason}" for reason in word["refusals"]]
    settings = json.loads(variant.facts["settings"])
    card = ModelCard(
        run.config.model.reference, variant.name, bool(variant.facts["is_adapter"]), settings, counts(pairs),
        _figures(run, variant, after, change), notes=["\n".join(notes)],
    )  # fmt: skip
    write_card(artifact_of(run.lake.path, variant.facts), card)


def _figures(run: Run, variant: Variant, after: Commit, change: Commit) -> list[dict[str, Any]]:
    """Return a row a language and rate: after, its interval, and by how much it changed."""
    rows = [row for row in run.read("evaluations", after, change).to_pylist() if row["variant"] == variant.name]
    at = {(row["metric"], row["language"]): row for row in rows if row["dataset"] in ("all", "jailbreak")}
    found: list[dict[str, Any]] = []
    for metric, name in SHOWN.items():
        for language in sorted({language for each, language in at if each == metric}, key=lambda x: (x != "all", x)):
            row, moved = at[metric, language], at.get((f"{metric}_change", language), {})
            found.append({
                "rate": name, "language": language, "value": row["value"], "low": row["low"], "high": row["high"],
                "change": moved.get("value"), "change low": moved.get("low"), "change high": moved.get("high"),
                "prompts": row["n"], "unscored": row["n_unscored"],
            })  # fmt: skip
    for metric in ("kl", "perplexity"):
        row = at.get((metric, "all"), {})
        found.append({
            "rate": metric, "language": "all", "value": row.get("value"), "low": row.get("low"),
            "high": row.get("high"), "prompts": row.get("n"),
        })  # fmt: skip
    return found
