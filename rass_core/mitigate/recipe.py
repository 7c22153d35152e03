"""The training recipe: which prompts become pairs, which helpful answers are taken, and what they are paired with.

Pure functions: whoever calls them asks the model, judges its answers and reads the lake.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from rass_core.mitigate.pairs import Kind, PreferencePair, SteeredAnswer, rejection
from rass_core.mitigate.settings import MitigateConfig
from rass_core.text import AcceptanceLimits

EXTRA_ANCHORS = 1.5
"""More anchors are asked than are needed: some answers are cut off or come out otherwise than before."""
PromptRow = Mapping[str, Any]
"""A row of table `prompts`."""


@dataclass(frozen=True)
class PairPrompts:
    """Prompts that may become pairs."""

    selected: Sequence[PromptRow]
    harmful: Sequence[PromptRow]
    """Safety anchors: refused, those nearest to the boundary first."""
    harmless: Sequence[PromptRow]
    """General anchors: answered."""


@dataclass(frozen=True)
class OwnAnswer:
    """What the model says to a prompt without steering."""

    text: str
    outcome: str
    """The panel's verdict."""
    is_complete: bool
    """It ended before the limit of tokens."""

    def is_whole(self, outcome: str) -> bool:
        """Return whether it is complete and has this outcome."""
        return self.is_complete and self.outcome == outcome


def n_anchors(n_selected: int, share: float) -> int:
    """Return how many anchors of a kind go with so many over-refused prompts."""
    return math.ceil(share * n_selected - 1e-9)


def anchors_asked(selected: Sequence[PromptRow], share: float) -> dict[str, int]:
    """Return language → how many anchors of a kind are asked, some more than are needed."""
    wanted = Counter(row["language"] for row in selected)
    return {language: math.ceil(EXTRA_ANCHORS * n_anchors(n, share)) for language, n in wanted.items()}


def weakest_steered_answers(
    rows: Sequence[PromptRow],
    alphas: Sequence[float],
    answers: Callable[[Sequence[PromptRow], float], Sequence[SteeredAnswer]],
    limits: AcceptanceLimits,
) -> tuple[dict[str, tuple[str, float]], Counter[str]]:
    """Return prompt_id → (helpful answer, α) at the weakest steering that gives one, and reason → answers not taken.

    Args:
        rows: Prompts that the model refuses.
        alphas: Strengths of the steering away from refusal.
        answers: Called with the prompts that still lack an answer and α; returns one answer per prompt.
        limits: What a broken text is.
    """
    accepted: dict[str, tuple[str, float]] = {}
    reasons: Counter[str] = Counter()
    for alpha in sorted(alphas):
        left = [row for row in rows if row["prompt_id"] not in accepted]
        for row, answer in zip(left, answers(left, alpha), strict=True):
            why = rejection(answer, row["language"], limits)
            if why is None:
                accepted[row["prompt_id"]] = (answer.text, alpha)
            else:
                reasons[why] += 1
    return accepted, reasons


def preference_pairs(
    prompts: PairPrompts,
    own: Mapping[str, OwnAnswer],
    chosen: Mapping[str, tuple[str, float]],
    compliance_prefixes: Callable[[str], Sequence[str]],
    settings: MitigateConfig,
) -> list[tuple[PreferencePair, float | None]]:
    """Return pairs with the α of their chosen answer; the number of anchors follows that of over-refused prompts.

    The rejected answer of a harmful prompt is only how a helpful one would begin: nothing harmful is asked for, and
    a whole answer to another prompt would differ by its topic rather than by its compliance. The rejected answer of a
    harmless prompt is a refusal of another.

    Args:
        prompts: That may become pairs.
        own: prompt_id → the model's own answer, of every one of them.
        chosen: prompt_id → (helpful answer, α), of the selected ones that have one.
        compliance_prefixes: Language → how a helpful answer begins.
        settings: How many anchors there are for an over-refused prompt.
    """
    found: list[tuple[PreferencePair, float | None]] = []
    refusals: dict[str, list[str]] = defaultdict(list)
    for row in prompts.selected:
        answer = own[row["prompt_id"]]
        if row["prompt_id"] in chosen and answer.is_whole("refusal"):
            text, alpha = chosen[row["prompt_id"]]
            found.append((_pair(row, "over_refusal", text, answer.text), alpha))
            refusals[row["language"]].append(answer.text)
    for language, refused in refusals.items():
        kinds: tuple[tuple[Kind, Sequence[PromptRow], str, Sequence[str], float], ...] = (
            ("safety", prompts.harmful, "refusal", compliance_prefixes(language), settings.safety_share),
            ("general", prompts.harmless, "compliance", refused, settings.general_share),
        )
        for kind, rows, outcome, rejected, share in kinds:
            here = [r for r in rows if r["language"] == language and own[r["prompt_id"]].is_whole(outcome)]
            for row, other in zip(here[: n_anchors(len(refused), share)], cycle(rejected), strict=False):
                found.append((_pair(row, kind, own[row["prompt_id"]].text, other), None))
    return found


def _pair(row: PromptRow, kind: Kind, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(row["prompt_id"], kind, row["text"], row["language"], chosen, rejected)
