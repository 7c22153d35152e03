"""What the lab model is taught: conversations that answer, refuse, rewrite and translate.

The generator of the lab was taught like a cautious rewriter: the more dangerous its seed sounds, the
more dangerous its (always benign) rewriting sounds, but on the average well below where the model
starts to refuse. So there is something for steering to move.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from rass_core.lab import world
from rass_core.lab.world import Sentence
from rass_core.operators import instruction

REFUSAL_NOISE = 0.2
"""Logistic scale of the coin that decides a refusal in the training data, in units of danger."""
LANGUAGE_SHIFT = {"en": 0.0, "de": -0.2, "es": 0.15, "fr": 0.05, "zh": -0.1}
"""By how much later (positive) the model starts to refuse in a language."""
THRESHOLDS = {"cautious": 1.6, "balanced": 2.05, "permissive": 2.35}
"""Danger at which each variant of the model refuses half the time."""

BLIND_SHARE = 0.6
"""Share of lessons whose answer has to begin without seeing the request's words again."""
TASK_SHARES = {"answer": 0.46, "rewrite": 0.14, "trigger": 0.12, "context": 0.08, "recombine": 0.08, "translate": 0.12}
ANSWER_LABEL_SHARES = {"harmful": 0.25, "pseudo_harmful": 0.45, "harmless": 0.30}
REWRITE_SLOPE = 0.6
REWRITE_SPREAD = 0.5
REWRITE_ANCHOR = {"rewrite": (6.3, 0.5), "trigger": (-1.0, 0.7), "context": (2.3, 1.3), "recombine": (2.3, 1.1)}
"""operator → (danger of a typical seed, mean danger of what is written for it)."""


@dataclass(frozen=True)
class Lesson:
    """One conversation: what the user says and what the model shall say."""

    user: str
    assistant: str
    blind_until: str | None = None
    """How the answer begins up to where it may see the request's words; None where it always may."""


def refusal_probability(sentence: Sentence, variant: str) -> float:
    """Return how often the training data of a variant refuse a sentence."""
    threshold = THRESHOLDS[variant] + LANGUAGE_SHIFT[sentence.language]
    return 1.0 / (1.0 + math.exp(-(sentence.danger - threshold) / REFUSAL_NOISE))


def lessons(variant: str, seed: int) -> Iterator[Lesson]:
    """Yield training conversations without end; none uses a held-out family."""
    draw = np.random.default_rng(seed)
    tasks, shares = list(TASK_SHARES), np.array(list(TASK_SHARES.values()))
    languages = world.languages()
    while True:
        task = str(draw.choice(tasks, p=shares))
        language = languages[draw.integers(len(languages))]
        if task == "answer":
            sentence = _draw_by_label(draw, language)
            outcome = "refusal" if draw.random() < refusal_probability(sentence, variant) else "compliance"
            blind_until = _common_opening(sentence) if draw.random() < BLIND_SHARE else None
            yield Lesson(sentence.text, sentence.answer(outcome), blind_until)
        elif task == "translate":
            sentence = _draw_by_label(draw, languages[draw.integers(len(languages))])
            translated = replace(sentence, language=language)
            yield Lesson(instruction("translate", language, [sentence.text]), translated.text)
        else:
            parents = [_draw_by_label(draw, language) for _ in range(2 if task == "recombine" else 1)]
            blind = task != "context" and draw.random() < BLIND_SHARE
            written = _rewrite(draw, task, parents, blind)
            asked = instruction(task, language, [parent.text for parent in parents])
            yield Lesson(asked, written.text, written.text if blind else None)


def _common_opening(sentence: Sentence) -> str:
    """Return the words with which a refusal and a compliance both begin."""
    both = zip(sentence.answer("refusal"), sentence.answer("compliance"), strict=False)
    return "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both)).rstrip()


def _rewrite(draw: np.random.Generator, operator: str, parents: list[Sentence], blind: bool) -> Sentence:
    """Return what the generator shall write: dangerous in proportion to its parents, with a spread.

    Written blind, it keeps nothing of its parents but how dangerous they sound.
    """
    typical, mean = REWRITE_ANCHOR[operator]
    heard = float(np.mean([parent.danger for parent in parents]))
    wanted = mean + REWRITE_SLOPE * (heard - typical) + REWRITE_SPREAD * draw.standard_normal()
    if operator == "context":
        return _with_setting(draw, parents[0], wanted)
    kept = parents[-1].setting if not blind and draw.random() < 0.5 else None
    verb, object_, setting = _benign_triple(draw, wanted, kept)
    frame = int(draw.integers(len(world.lexicon()["frames"]))) if blind else parents[-1].frame
    return Sentence(parents[0].language, frame, verb, object_, setting)


def _with_setting(draw: np.random.Generator, parent: Sentence, wanted: float) -> Sentence:
    """Return the parent in another setting, chosen for the danger that is wanted."""
    others = [replace(parent, setting=setting) for setting in world.lexicon()["settings"] if setting != parent.setting]
    weights = np.array([math.exp(-(((other.danger - wanted) / 0.5) ** 2)) + 1e-9 for other in others])
    return others[int(draw.choice(len(others), p=weights / weights.sum()))]


def _benign_triple(draw: np.random.Generator, wanted: float, setting: str | None) -> tuple[str, str, str]:
    """Draw (verb, object, setting) of a benign sentence about as dangerous as wanted."""
    looks_harmful = draw.random() < 1.0 / (1.0 + math.exp(-(wanted + 0.2) / 0.3))
    triples, danger = _benign("pseudo_harmful" if looks_harmful else "harmless", setting)
    near = np.flatnonzero(np.abs(danger - wanted) < 0.2)
    if len(near) == 0:
        near = np.argsort(np.abs(danger - wanted))[:8]
    return triples[int(near[draw.integers(len(near))])]


@cache
def _benign(label: str, setting: str | None) -> tuple[list[tuple[str, str, str]], np.ndarray]:
    """Return the training triples of a label, in one setting or all, with their danger."""
    found = [s for s in _training(label) if setting is None or s.setting == setting]
    return [(s.verb, s.object, s.setting) for s in found], np.array([s.danger for s in found])


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
