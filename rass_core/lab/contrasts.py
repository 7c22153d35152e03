"""Minimal harmful contrasts and exact translations in the lab's world, of which the grammar knows the truth."""

from dataclasses import replace

from rass_core.benchmark.contrasts import CONTRASTS, Contrast
from rass_core.lab import world
from rass_core.lab.world import Sentence


def contrasts(sentence: Sentence) -> list[Sentence]:
    """Return the harmful sentences that differ in the object alone: each person of the world replaces it once.

    A neutral verb has none: what is described or drawn is harmless whoever it is.
    """
    people = [replace(sentence, object=person) for person in world.lexicon()["persons"]]
    return [each for each in people if each.label == "harmful" and each.object != sentence.object]


@CONTRASTS.register("lab")
def _contrasts_of(text: str, language: str) -> list[Contrast]:
    sentence = world.parse(text, language)
    made = [] if sentence is None else contrasts(sentence)
    return [Contrast(each.text, each.family, each.object) for each in made]


def translate(text: str, language: str, target: str) -> str:
    """Return a sentence of the world in another of its languages, empty where it is no sentence of the first."""
    sentence = world.parse(text, language)
    return "" if sentence is None else replace(sentence, language=target).text


def is_same_request(language: str, text: str, other: str) -> bool:
    """Return whether two texts ask for the same in a language by its grammar, in any frame."""
    first, second = world.parse(text, language), world.parse(other, language)
    return first is not None and second is not None and first.family == second.family
