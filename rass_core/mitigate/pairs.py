"""Preference pairs, and the conditions on a steered answer before it may be the chosen one of a pair.

Pure functions: the caller has generated and judged the answer, identified its language and measured its
perplexity. Every answer that is not taken has one reason, and the reasons are counted.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rass_core.errors import PromptError
from rass_core.text import AcceptanceLimits, is_degenerate, normalise

Kind = Literal["over_refusal", "safety", "general"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""over_refusal: a benign prompt that was refused, chosen is the steered answer, rejected the refusal.
safety: a harmful prompt, chosen is the refusal. general: a harmless prompt, chosen is the model's own answer."""


@dataclass(frozen=True)
class PreferencePair:
    """One prompt with the answer that shall become likelier and the one that shall become less likely.

    Raises:
        PromptError: An unknown kind, an empty text, or both answers the same.
    """

    prompt_id: str
    kind: Kind
    prompt: str
    language: str
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PromptError(f"pair {self.prompt_id}: kind {self.kind!r}; it is one of {', '.join(KINDS)}")
        empty = [name for name in ("prompt", "chosen", "rejected") if not getattr(self, name).strip()]
        if empty:
            raise PromptError(f"pair {self.prompt_id}: {empty[0]} is empty; leave the prompt out")
        if normalise(self.chosen) == normalise(self.rejected):
            raise PromptError(f"pair {self.prompt_id}: chosen and rejected are the same; leave the prompt out")


@dataclass(frozen=True)
class SteeredAnswer:
    """An answer of the steered model, with all that decides whether it is taken."""

    text: str
    outcome: str
    """The panel's verdict: compliance, partial, refusal or unscored."""
    spoken: str | None
    """Language identified in it; None for an unknown one."""
    finish_reason: str = "stop"
    """The engine's: an answer that reached the limit of tokens has no end to learn."""
    perplexity: float | None = None
    """Under the model without steering; None if it was not measured, and then it does not count."""


def rejection(answer: SteeredAnswer, language: str, limits: AcceptanceLimits) -> str | None:
    """Return why an answer may not be the chosen one of a pair, or None where it may.

    Args:
        language: Language of the prompt; subtags do not matter.
    """
    broken = is_degenerate(answer.text, answer.perplexity, limits)
    if broken is not None:
        return broken
    if answer.finish_reason != "stop":
        return "cut off"
    if answer.outcome != "compliance":
        return f"judged {answer.outcome}"
    if answer.spoken is None:
        return "language unknown"
    if _primary(answer.spoken) != _primary(language):
        return f"answered in {_primary(answer.spoken)}"
    return None


def perplexity_limit(ordinary: Sequence[float], factor: float = 3.0) -> float:
    """Return the highest perplexity that an accepted answer may have.

    Args:
        ordinary: Perplexities of the model's own answers to harmless prompts.
        factor: Times the highest of them but the uppermost twentieth.

    Raises:
        PromptError: No perplexities.
    """
    if not ordinary:
        raise PromptError("perplexity limit: no answers to harmless prompts to compare with; give some")
    ranked = sorted(ordinary)
    return factor * ranked[math.ceil(0.95 * len(ranked)) - 1]


def counts(pairs: Sequence[PreferencePair]) -> dict[str, dict[str, int]]:
    """Return kind → language → number of pairs, both sorted, kinds without pairs left out."""
    found = {kind: Counter(pair.language for pair in pairs if pair.kind == kind) for kind in KINDS}
    return {kind: dict(sorted(by_language.items())) for kind, by_language in found.items() if by_language}


def check_pairs(pairs: Sequence[PreferencePair]) -> None:
    """Raise where pairs cannot be trained on.

    Raises:
        PromptError: No pairs, or a prompt in two of them.
    """
    if not pairs:
        raise PromptError("preferences: no pairs; select prompts and accept answers to them first")
    repeated = [prompt_id for prompt_id, n in Counter(pair.prompt_id for pair in pairs).items() if n > 1]
    if repeated:
        raise PromptError(f"preferences: prompt {min(repeated)} is in more than one pair; keep one of them")


def _primary(language: str) -> str:
    return language.replace("_", "-").split("-")[0].lower()
