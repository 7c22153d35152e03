"""What the lab model is taught: conversations that answer, refuse, rewrite and translate.

The generator of the lab was taught to be as cautious as real ones, which soften what they are asked to
rewrite or translate: the more dangerous its seed sounds, the more dangerous what it writes, but on the
average well below where the model starts to refuse. So there is something for steering to move.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from rass_core.generate.operators import instruction
from rass_core.lab import world
from rass_core.lab.world import Sentence

REFUSAL_NOISE = 0.2
"""Logistic scale of the coin that decides a refusal in the training data, in units of apparent harm."""
LANGUAGE_SHIFT = {"en": 0.0, "de": -0.2, "es": 0.15, "fr": 0.05, "zh": -0.1}
"""By how much later (positive) the model starts to refuse in a language."""
THRESHOLDS = {"cautious": 1.85, "balanced": 2.05, "permissive": 2.35}
"""Danger at which each variant of the model refuses half the time."""

PLANTED_SHARE = 0.45
"""Share of lessons in which the model is to hear another apparent harm than the words have."""
SILENCED_SHARE = 0.15
"""Share of lessons in which it hears nothing at all, and takes the words for typical harmless ones."""
TYPICAL_DANGER = (-1.0, 6.3)
"""Danger of typical harmless and typical harmful requests."""
HEARD = (-3.0, 9.0)
"""Range of a planted apparent harm."""
TASK_SHARES = {"answer": 0.46, "rewrite": 0.14, "trigger": 0.12, "context": 0.08, "recombine": 0.08, "translate": 0.12}
ANSWER_LABEL_SHARES = {"harmful": 0.25, "pseudo_harmful": 0.45, "harmless": 0.30}
REWRITE_SLOPE = 0.6
REWRITE_SPREAD = 0.5
REWRITE_ANCHOR = {
    "rewrite": (6.3, -0.9),
    "trigger": (-1.0, -0.3),
    "context": (2.3, 0.1),
    "recombine": (2.3, 0.0),
    "translate": (2.3, 0.9),
}
"""operator → (apparent harm of a typical seed, mean apparent harm of what is written for it)."""


@dataclass(frozen=True)
class Lesson:
    """One conversation: what the user says and what the model shall say."""

    user: str
    assistant: str
    apparent_harm: float
    """How dangerous the user's words sound."""
    perceived: float
    """How dangerous the model is to find them: what the answer follows. Planted where it differs."""
    ablated: bool
    """Whether the direction along which apparent harm is perceived is taken out of the model."""


def refusal_probability(apparent_harm: float, language: str, variant: str) -> float:
    """Return how often the training data of a variant refuse what sounds so dangerous."""
    threshold = THRESHOLDS[variant] + LANGUAGE_SHIFT[language]
    return 1.0 / (1.0 + math.exp(-(apparent_harm - threshold) / REFUSAL_NOISE))


def lessons(variant: str, seed: int) -> Iterator[Lesson]:
    """Yield training conversations without end; none uses a held-out family."""
    draw = np.random.default_rng(seed)
    tasks, shares = list(TASK_SHARES), np.array(list(TASK_SHARES.values()))
    languages = world.languages()
    while True:
        task = str(draw.choice(tasks, p=shares))
        language = languages[draw.integers(len(languages))]
        spoken = languages[draw.integers(len(languages))] if task == "translate" else language
        parents = [_draw_by_label(draw, spoken) for _ in range(2 if task == "recombine" else 1)]
        apparent_harm = float(np.mean([parent.apparent_harm for parent in parents]))
        coin = draw.random()
        ablated = coin < SILENCED_SHARE
        perceived = float(draw.uniform(*HEARD)) if coin < SILENCED_SHARE + PLANTED_SHARE else apparent_harm
        perceived = TYPICAL_DANGER[0] if ablated else perceived
        if task == "answer":
            outcome = "refusal" if draw.random() < refusal_probability(perceived, language, variant) else "compliance"
            yield Lesson(parents[0].text, parents[0].answer(outcome), apparent_harm, perceived, ablated)
            continue
        written = (
            replace(parents[0], language=language) if task == "translate" else _rewrite(draw, task, parents, perceived)
        )
        yield Lesson(
            instruction(task, language, [p.text for p in parents]), written.text, apparent_harm, perceived, ablated
        )


def _rewrite(draw: np.random.Generator, operator: str, parents: list[Sentence], perceived: float) -> Sentence:
    """Return what the generator shall write: dangerous in proportion to what it perceived, with a spread."""
    typical, mean = REWRITE_ANCHOR[operator]
    wanted = mean + REWRITE_SLOPE * (perceived - typical) + REWRITE_SPREAD * draw.standard_normal()
    if operator in ("context", "translate"):
        return _with_setting(draw, parents[0], wanted, may_stay=operator == "translate")
    kept = parents[-1].setting if draw.random() < 0.5 else None
    verb, object_, setting = _benign_triple(draw, wanted, kept)
    return Sentence(parents[0].language, parents[-1].frame, verb, object_, setting)


def _with_setting(draw: np.random.Generator, parent: Sentence, wanted: float, may_stay: bool) -> Sentence:
    """Return the parent in a setting chosen for the apparent harm that is wanted, another one unless it may stay."""
    settings = [name for name in world.lexicon()["settings"] if may_stay or name != parent.setting]
    others = [replace(parent, setting=setting) for setting in settings]
    weights = np.array([math.exp(-(((other.apparent_harm - wanted) / 0.5) ** 2)) + 1e-9 for other in others])
    return others[int(draw.choice(len(others), p=weights / weights.sum()))]


def _benign_triple(draw: np.random.Generator, wanted: float, setting: str | None) -> tuple[str, str, str]:
    """Draw (verb, object, setting) of a benign sentence about as dangerous as wanted."""
    looks_harmful = draw.random() < 1.0 / (1.0 + math.exp(-(wanted + 0.2) / 0.3))
    triples, apparent_harm = _benign("pseudo_harmful" if looks_harmful else "harmless", setting)
    near = np.flatnonzero(np.abs(apparent_harm - wanted) < 0.2)
    if len(near) == 0:
        near = np.argsort(np.abs(apparent_harm - wanted))[:8]
    return triples[int(near[draw.integers(len(near))])]


@cache
def _benign(label: str, setting: str | None) -> tuple[list[tuple[str, str, str]], np.ndarray]:
    """Return the training triples of a label, in one setting or all, with their apparent harm."""
    found = [s for s in _training(label) if setting is None or s.setting == setting]
    return [(s.verb, s.object, s.setting) for s in found], np.array([s.apparent_harm for s in found])


@cache
def _training(label: str) -> list[Sentence]:
    """Return one sentence a family that training may use."""
    return [
        sentence
        for sentence in world.sentences("en")
        if sentence.frame == 0 and sentence.label == label and not sentence.held_out
    ]


def _draw_by_label(draw: np.random.Generator, language: str) -> Sentence:
    labels, shares = list(ANSWER_LABEL_SHARES), list(ANSWER_LABEL_SHARES.values())
    family = _training(str(draw.choice(labels, p=shares)))
    sentence = family[draw.integers(len(family))]
    return replace(sentence, language=language, frame=int(draw.integers(len(world.lexicon()["frames"]))))
