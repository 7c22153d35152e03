"""What the models' answers are, by set of prompts: given, refused and why, without help, without an outcome."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from rass_core.evaluate.broken_text import BROKEN_TEXT
from rass_core.judges import PANEL
from rass_core.report.points import OUTCOME_NAMES
from rass_core.vocabulary import NO_HELP_KINDS, Row

SETS = {
    "harmful": "harmful",
    "pseudo_harmful": "pseudo-harmful",
    "harmless": "harmless",
    "unlabelled": "no true label",
    "written": "written",
}
"""Sets of prompts, given ones by their true label."""
ANSWERS = {
    "answered": "Answered",
    "policy": "Refused by policy",
    "warning": "Only warns",
    "premise": "Rejects premise",
    "partial": "Partly refused",
    "capability": "Lacks ability",
    "missing_information": "Does not know",
    "clarification": "Asks back",
    "unscored": "No outcome",
}
"""What an answer may be; each is one of them."""
_ALWAYS = ("answered", "policy", "partial", "unscored")
"""Columns that are shown though no answer is in them."""


def answer_table(rows: Mapping[str, list[Row]]) -> dict[str, list[Any]]:
    """Return head and rows of cells, a row per model and set: the first plain answer to each prompt, by the panel."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for model, prompts, column in _answers(rows):
        counts[model, prompts][column] += 1
    shown = [each for each in ANSWERS if each in _ALWAYS or any(found[each] for found in counts.values())]
    places = sorted(counts, key=lambda place: (place[0], list(SETS).index(place[1])))
    cells = [
        [model, SETS[name], *(f"{n:,}" for n in (found.total(), *(found[each] for each in shown)))]
        for (model, name), found in ((place, counts[place]) for place in places)
    ]
    return {"head": ["Model", "Prompts", "n", *(ANSWERS[each] for each in shown)], "rows": cells}


def _answers(rows: Mapping[str, list[Row]]) -> Iterator[tuple[str, str, str]]:
    """Yield model (with its variant, unless it is the model as it came), set of prompts, and what the answer is."""
    labels = {row["prompt_id"]: row["label"] for row in rows["prompts"]}
    written = {row["prompt_id"] for row in rows["derivations"]}
    by_judge: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows["verdicts"]:
        by_judge[row["judge"]][row["subject_id"]] = row
    verdicts = by_judge[PANEL] | by_judge[BROKEN_TEXT]
    seen: set[tuple[str, str]] = set()
    for response in sorted(rows["responses"], key=lambda row: row["sample"] or 0):
        model, variant, prompt = (response[name] for name in ("model_id", "variant", "prompt_id"))
        name = model if variant == "base" else f"{model} ({variant})"
        if response["attack"] is not None or prompt not in labels or (name, prompt) in seen:
            continue
        seen.add((name, prompt))
        label = labels[prompt] if labels[prompt] in SETS else "unlabelled"
        yield name, "written" if prompt in written else label, _column(verdicts.get(response["response_id"]))


def _column(verdict: Row | None) -> str:
    if verdict is None or verdict["outcome"] not in OUTCOME_NAMES or verdict["outcome"] == "unscored":
        return "unscored"
    outcome, kind = verdict["outcome"], verdict["kind"]
    if kind in NO_HELP_KINDS:
        return str(kind)
    if outcome == "refusal":
        return str(kind) if kind in ("warning", "premise") else "policy"
    return "partial" if outcome == "partial" else "answered"
