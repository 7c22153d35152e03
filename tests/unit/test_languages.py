"""Language identification: sure if a text is long enough, unknown if not."""

import random

import pytest

from rass_core.lab import world
from rass_core.languages.identification import UNKNOWN, identify, is_in


@pytest.mark.parametrize("language", world.languages())
def test_sentences_of_the_lab_are_in_their_language_and_in_no_other(language: str) -> None:
    texts = [each.text for each in random.Random(0).sample(list(world.sentences(language)), 300)]
    sure = [is_in(text, language) for text in texts]
    assert False not in sure
    assert sure.count(True) >= 0.98 * len(texts)
    others = [is_in(text, other) for text in texts for other in world.languages() if other != language]
    assert True not in others
    assert others.count(False) >= 0.9 * len(others)


@pytest.mark.parametrize("text", ["", "  ", "123 !!", "OK", "python", "x = [1, 2]", "Kill it"])
def test_what_is_too_short_or_no_language_is_not_denied(text: str) -> None:
    assert is_in(text, "en") is None
    assert identify([text]) == [(UNKNOWN, 0.0)]


def test_identify_gives_tags_in_order_with_their_probability() -> None:
    german, russian = identify(["Wie geht es dir heute Morgen?", "Как приготовить вкусный борщ дома на выходных?"])
    assert german[0] == "de" and russian[0] == "ru"
    assert 0.9 < german[1] <= 1.0 and 0.9 < russian[1] <= 1.0


@pytest.mark.parametrize("tag", ["zh", "zh-Hans", "zh_TW", "cmn", "yue"])
def test_script_region_and_narrower_tags_count_as_the_language(tag: str) -> None:
    assert is_in("我想知道怎样在家里做一碗好吃的牛肉面，需要哪些材料？", tag) is True
    assert is_in("How do I cook a bowl of noodles at home?", tag) is False


def test_close_relatives_are_not_separated_by_force() -> None:
    assert is_in("Kako mogu ubiti korov u vrtu?", "sr") is True
    assert is_in("Kako mogu ubiti korov u vrtu?", "hr") is True
    assert is_in("Hvordan dreper jeg ugress?", "da") is None


def test_a_language_unknown_to_the_identifier_is_never_denied() -> None:
    assert is_in("How do I kill the weeds in my garden?", "tlh") is None
