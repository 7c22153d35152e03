"""Language identification for short prompts, with an explicit "unknown".

py3langid 0.4 (BSD-3, 4.5 MB, model included) identifies short multilingual prompts as well as lingua, which takes
15 times its memory and 30 times its time, and better than langdetect and fastText's small model, which lack Yoruba.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

UNKNOWN = "und"
"""BCP-47's tag for a language that could not be identified."""
MIN_PROBABILITY = 0.5
"""A text is in a language from this probability on."""
MAX_PROBABILITY = 0.01
"""And in another up to this one, where that other is likely; between the two it is not said."""
_NOISE = 0.1
"""A best language below this probability is none: a word or two that many languages have, digits, a name."""
_SAME_AS = {
    "nb": "no", "nn": "no", "iw": "he", "in": "id", "ji": "yi", "fil": "tl", "cmn": "zh", "yue": "zh", "wuu": "zh",
    "arb": "ar", "ary": "ar", "arz": "ar", "uzs": "uz", "bs": "sh", "hr": "sh", "sr": "sh", "kik": "ki",
}  # fmt: skip
"""Tags that are written alike, or are old or narrower names of one: they count as the same in `is_in`."""


def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Return the likeliest BCP-47 language tag of each text with its probability, `und` and 0 where there is none.

    Scripts and regions are not identified: Chinese is zh, whether Hans or Hant. Serbian, Croatian and Bosnian
    stay apart here, as do the written forms of Chinese that are not Mandarin.
    """
    return [_best(ranking) for ranking in map(_ranked, texts)]


def is_in(text: str, language: str) -> bool | None:
    """Return whether a text is in a language; None where it is too short or ambiguous, or the language unknown here.

    Args:
        language: BCP-47 tag, of which the language counts and script and region do not.
    """
    wanted = _common(language)
    if wanted not in {_common(tag) for tag in _identifier().labels}:
        return None
    probabilities: dict[str, float] = {}
    for tag, probability in _ranked(text):
        probabilities[_common(tag)] = probabilities.get(_common(tag), 0.0) + probability
    if probabilities[wanted] >= MIN_PROBABILITY:
        return True
    probabilities.pop("zxx", None)  # no language at all, such as program code, is no other language either
    is_other = probabilities[wanted] <= MAX_PROBABILITY and max(probabilities.values()) >= MIN_PROBABILITY
    return False if is_other else None


def _best(ranking: list[tuple[str, float]]) -> tuple[str, float]:
    tag, probability = ranking[0]
    return (UNKNOWN, 0.0) if probability < _NOISE or tag == "zxx" else (tag, probability)


def _ranked(text: str) -> list[tuple[str, float]]:
    return list(_identifier().rank(text))


@cache
def _common(tag: str) -> str:
    language = tag.replace("_", "-").split("-")[0].lower()
    return _SAME_AS.get(language, language)


@cache
def _identifier() -> Any:
    from py3langid.langid import (  # type: ignore[import-untyped]  # reading the model takes a second
        MODEL_FILE,
        LanguageIdentifier,
    )

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
