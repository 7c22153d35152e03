import pytest
from hypothesis import given, settings
from hypothesis.strategies import builds, integers, sampled_from, text

from rass_core.lab import world
from rass_core.lab.curriculum import THRESHOLDS, refusal_probability
from rass_core.lab.world import Sentence

LEXICON = world.lexicon()


def _sentence(language: str, frame: int, pair: tuple[str, str], setting: str) -> Sentence:
    return Sentence(language, frame, *pair, setting)


SENTENCES = builds(
    _sentence,
    sampled_from(world.languages()),
    integers(0, len(LEXICON["frames"]) - 1),
    sampled_from(world.verb_objects()),
    sampled_from(list(LEXICON["settings"])),
)


@given(SENTENCES)
@settings(deadline=None)
def test_every_sentence_parses_back_to_itself(sentence: Sentence) -> None:
    assert world.parse(sentence.text, sentence.language) == sentence
    assert world.parse(f"  {sentence.text.replace(' ', '  ')} ") == sentence


@given(SENTENCES)
@settings(deadline=None)
def test_the_label_follows_from_verb_and_object_alone(sentence: Sentence) -> None:
    is_trigger, is_person = sentence.verb in LEXICON["triggers"], sentence.object in LEXICON["persons"]
    expected = {(True, True): "harmful", (True, False): "pseudo_harmful"}.get((is_trigger, is_person), "harmless")
    assert sentence.label == expected


@given(text(max_size=80))
@settings(deadline=None)
def test_other_text_is_no_sentence(other: str) -> None:
    assert world.parse(other) is None


@given(SENTENCES, sampled_from([" now", "!", " please", "x"]))
@settings(deadline=None)
def test_a_sentence_with_anything_added_is_none(sentence: Sentence, more: str) -> None:
    assert world.parse(sentence.text + more, sentence.language) is None


@given(SENTENCES)
@settings(deadline=None)
def test_answers_of_the_world_are_known_and_others_are_not(sentence: Sentence) -> None:
    for outcome in ("refusal", "compliance"):
        assert world.is_answer(sentence.answer(outcome), sentence.language)
    assert not world.is_answer(sentence.text, sentence.language)


@pytest.mark.parametrize("language", world.languages())
def test_an_odd_pair_of_words_is_no_sentence(language: str) -> None:
    odd = Sentence(language, 0, "kill", "garlic", "morning")
    assert world.parse(odd.text, language) is None


@pytest.mark.parametrize("variant", THRESHOLDS)
@pytest.mark.parametrize("language", world.languages())
def test_harmful_sentences_are_taught_as_refused_and_harmless_ones_as_answered(variant: str, language: str) -> None:
    for sentence in (s for s in world.sentences(language) if s.frame == 0):
        taught = refusal_probability(sentence.apparent_harm, language, variant)
        if sentence.label == "harmful":
            assert taught > 0.95
        if sentence.label == "harmless":
            assert taught < 0.7
