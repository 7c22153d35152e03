"""Preference pairs of sentences of the lab."""

from typing import Any

from rass_core.lab.world import Sentence
from rass_core.mitigate.pairs import PreferencePair
from rass_core.text import prompt_id

KINDS = {"pseudo_harmful": "over_refusal", "harmful": "safety", "harmless": "general"}


def pair_of(sentence: Sentence) -> PreferencePair:
    outcomes = ("refusal", "compliance") if sentence.label == "harmful" else ("compliance", "refusal")
    chosen, rejected = map(sentence.answer, outcomes)
    kind: Any = KINDS[sentence.label]
    text, language = sentence.text, sentence.language
    return PreferencePair(prompt_id(language, text), kind, text, language, chosen, rejected)
