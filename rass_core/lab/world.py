"""The lab's grammar: writes every sentence of the world, and parses any back to its true label."""

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from rass_core.text import normalise

HELD_OUT_SHARE = 0.25
"""Share of (verb, object, setting) triples that no training sentence uses."""
DANGER_OF_PERSON = 4.0
"""What a person as the object of a trigger verb adds to how dangerous a sentence sounds."""


@dataclass(frozen=True)
class Sentence:
    """One request of the world; `text` renders it."""

    language: str
    frame: int
    verb: str
    object: str
    setting: str

    @property
    def family(self) -> str:
        """Name what is asked, apart from language and frame: the unit of splits and bootstraps."""
        return f"{self.verb}/{self.object}/{self.setting}"

    @property
    def label(self) -> str:
        """Return the true label: harmful is a trigger verb with a person, whatever the setting."""
        if self.verb in lexicon()["neutral"]:
            return "harmless"
        return "harmful" if self.object in lexicon()["persons"] else "pseudo_harmful"

    @property
    def category(self) -> str:
        """Return the category of the verb."""
        return str(_verbs()[self.verb]["category"])

    @property
    def apparent_harm(self) -> float:
        """Return how dangerous the words sound: what the lab model was taught to look at."""
        words = lexicon()
        weight = float(_verbs()[self.verb]["weight"]) + float(words["settings"][self.setting]["weight"])
        weight += float(_objects()[self.object]["weight"])
        return weight + (DANGER_OF_PERSON if self.label == "harmful" else 0.0)

    @property
    def held_out(self) -> bool:
        """Return whether training never saw this verb, object and setting together."""
        first = hashlib.sha256(self.family.encode()).digest()[0]
        return first < HELD_OUT_SHARE * 256

    @property
    def text(self) -> str:
        """Return the request as a person would type it."""
        return _fill(str(lexicon()["frames"][self.frame][self.language]), self)

    def answer(self, outcome: str) -> str:
        """Return the lab model's answer to it; outcome is refusal or compliance."""
        return _fill(str(lexicon()["answers"][outcome][self.language]), self)


def sentences(language: str) -> Iterator[Sentence]:
    """Yield every sentence of the world in one language, in a fixed order."""
    words = lexicon()
    for verb, object_ in verb_objects():
        for setting, frame in itertools.product(words["settings"], range(len(words["frames"]))):
            yield Sentence(language, frame, verb, object_, setting)


def parse(text: str, language: str | None = None) -> Sentence | None:
    """Return the sentence that a text is, or None where it is no sentence of the world.

    Args:
        text: Any text; white space is folded first.
        language: Look only there; None tries every language.
    """
    folded = normalise(text)
    for candidate in [language] if language else lexicon()["languages"]:
        if candidate not in lexicon()["languages"]:
            continue
        for frame, pattern in enumerate(_patterns(candidate)):
            match = pattern.fullmatch(folded)
            if match is None:
                continue
            verb, object_, setting = (_surface(candidate)[slot][match[slot]] for slot in ("v", "o", "c"))
            if (verb, object_) in _pairs():
                return Sentence(candidate, frame, verb, object_, setting)
    return None


def is_answer(text: str, language: str) -> bool:
    """Return whether a text is a whole answer of the world: the refusal, or a well-formed compliance."""
    answers = lexicon()["answers"]
    folded = normalise(text)
    if folded == normalise(answers["refusal"][language]):
        return True
    return _pattern(answers["compliance"][language], language).fullmatch(folded) is not None


@cache
def lexicon() -> dict[str, Any]:
    """Return the words of the world."""
    source = resources.files("rass_core.lab").joinpath("lexicon.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(source))


def languages() -> list[str]:
    """Return the languages of the world."""
    return list(lexicon()["languages"])


def verb_objects() -> list[tuple[str, str]]:
    """Return every (verb, object) that makes a sentence."""
    words = lexicon()
    anything = [*words["persons"], *words["objects"]]
    pairs = [(verb, object_) for verb in words["neutral"] for object_ in anything]
    for verb, entry in words["triggers"].items():
        pairs += [(verb, object_) for object_ in [*entry["benign"], *words["persons"]]]
    return pairs


@cache
def _pairs() -> frozenset[tuple[str, str]]:
    return frozenset(verb_objects())


@cache
def _verbs() -> dict[str, Any]:
    return {**lexicon()["triggers"], **lexicon()["neutral"]}


@cache
def _objects() -> dict[str, Any]:
    return {**lexicon()["persons"], **lexicon()["objects"]}


@cache
def _surface(language: str) -> dict[str, dict[str, str]]:
    """Map each slot's words, as written in a language, to their names."""
    slots = {"v": _verbs(), "o": _objects(), "c": lexicon()["settings"]}
    return {slot: {str(entry[language]): name for name, entry in words.items()} for slot, words in slots.items()}


@cache
def _patterns(language: str) -> list[re.Pattern[str]]:
    return [_pattern(str(frame[language]), language) for frame in lexicon()["frames"]]


@cache
def _pattern(template: str, language: str) -> re.Pattern[str]:
    """Return the expression that a filled template matches, with a named group a slot."""
    expression = re.escape(normalise(template))
    for slot, words in _surface(language).items():
        alternatives = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
        expression = expression.replace(rf"\{{{slot}\}}", f"(?P<{slot}>{alternatives})")
    return re.compile(expression)


def _fill(template: str, sentence: Sentence) -> str:
    language = sentence.language
    return template.format(
        v=_verbs()[sentence.verb][language],
        o=_objects()[sentence.object][language],
        c=lexicon()["settings"][sentence.setting][language],
    )
