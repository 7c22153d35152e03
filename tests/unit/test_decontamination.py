"""Disjointness: every way of being alike is found, named and counted, and nothing else is."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, lists, text

from rass_core.data.decontamination import NearDuplicates, Overlap, jaccard_of, overlaps, without_overlaps
from rass_core.errors import PromptError


def row(identity: str, text: str, family: str | None = None, **more: Any) -> dict[str, Any]:
    return {"prompt_id": identity, "text": text, "language": "en", "family": family, **more}


LONG = "How do I kill a Python process that hangs on my old laptop at home"


def test_disjoint_prompts_have_no_overlap() -> None:
    train = [row("t1", LONG, "a", translation_group=None), row("t2", "How do I bake bread?")]
    evaluation = [row("e1", "Name three rivers of France", "b"), row("e2", "Where does the wind come from?")]
    assert overlaps(train, evaluation, 0.8) == []
    assert without_overlaps(evaluation, []) == (
        evaluation,
        {"text": 0, "family": 0, "translation": 0, "near_duplicate": 0},
    )


def test_each_way_of_being_alike_is_named() -> None:
    train = [
        row("t1", "¿Cómo  mato un Proceso? Dímelo ya", "f1"),
        row("t2", LONG, "f2", translation_group="g1"),
        row("t3", LONG + " now", "f2"),
        row("t4", "Caf\u00e9"),
    ]
    evaluation = [
        row("e1", "¿CÓMO mato un proceso? dímelo ya", "other") | {"language": "fr"},
        row("e2", "Something else altogether", "f2"),
        row("e3", "Wie beende ich einen Prozess", "x", translation_group="g1"),
        row("e4", LONG + "?", "y"),
        row("e5", "Nothing like it", ""),
        row("e6", "CAFE\u0301"),
    ]
    found = overlaps(train, evaluation, 0.8)
    assert [(o.evaluation_id, o.train_id, o.reason, o.n_train) for o in found] == [
        ("e1", "t1", "text", 1),
        ("e2", "t2", "family", 2),
        ("e3", "t2", "translation", 1),
        ("e4", "t2", "near_duplicate", 2),
        ("e6", "t4", "text", 1),
    ]
    assert found[3].jaccard == pytest.approx(62 / 63), "of two alike the more similar is named"
    kept, gone = without_overlaps(evaluation, found)
    assert [each["prompt_id"] for each in kept] == ["e5"]
    assert gone == {"text": 2, "family": 1, "translation": 1, "near_duplicate": 1}


def test_a_prompt_alike_in_two_ways_is_removed_once() -> None:
    train, evaluation = [row("t", LONG, "f")], [row("e", LONG.upper(), "f")]
    found = overlaps(train, evaluation, 0.8)
    assert [each.reason for each in found] == ["text", "family"]
    assert without_overlaps(evaluation, found)[1] == {"text": 1, "family": 0, "translation": 0, "near_duplicate": 0}


def test_training_prompts_alike_among_themselves_hide_nothing() -> None:
    """The evaluation prompt is near the second training prompt only, which is itself near the first."""
    words = [f"word{number:02}" for number in range(30)]
    first, second, third = words, [*words[2:], "alpha", "beta"], [*words[4:], "alpha", "beta", "gamma", "delta"]
    train = [row("t1", " ".join(first)), row("t2", " ".join(second))]
    found = overlaps(train, [row("e", " ".join(third))], 0.8)
    assert [(each.train_id, each.n_train) for each in found] == [("t2", 1)]


def test_near_duplicates_agree_with_the_jaccard_similarity_computed_in_full() -> None:
    draw, threshold = np.random.default_rng(0), 0.55
    words = ["red", "blue", "green", "small", "large", "old", "new", "house", "car", "tree", "dog", "cat", "river"]
    train, evaluation = [], []
    for number in range(150):
        text = draw.choice(words, 14).tolist()
        changed = [*text]
        for place in draw.choice(14, 4, replace=False):
            changed[place] = str(draw.choice(words))
        train.append(row(f"t{number}", " ".join(text)))
        evaluation.append(row(f"e{number}", " ".join(changed)))

    def jaccard(a: str, b: str) -> float:
        left, right = ({t[i : i + 4] for i in range(len(t) - 3)} for t in (a, b))
        return len(left & right) / len(left | right)

    exact = {e["prompt_id"]: max(jaccard(e["text"], t["text"]) for t in train) for e in evaluation}
    expected = {identity: value for identity, value in exact.items() if value >= threshold}
    found = {each.evaluation_id: each.jaccard for each in overlaps(train, evaluation, threshold) if each.jaccard}
    assert 20 < len(expected) < 140
    assert found.keys() == expected.keys()
    assert all(value == pytest.approx(expected[identity]) for identity, value in found.items())


@given(texts=lists(text("ab c", min_size=1, max_size=14), max_size=40), threshold=floats(0.05, 1.0))
def test_no_near_duplicate_is_missed(texts: list[str], threshold: float) -> None:
    """Few grams, so that many texts are alike, and the order of the grams is made anew several times."""
    found = NearDuplicates(threshold)
    for number, each in enumerate(texts):
        expected = {
            i: share for i, other in enumerate(texts[:number]) if (share := jaccard_of(each, other)) >= threshold
        }
        assert found.like(each) == expected
        found.add(number, each)


def test_a_text_is_compared_with_few_others() -> None:
    """So that time grows with the number of texts and not with its square, though all share most of their words."""
    draw, compared = random.Random(0), []

    class Counted(dict[int, Any]):
        def __getitem__(self, number: int) -> Any:
            compared.append(number)
            return super().__getitem__(number)

    found = NearDuplicates(0.8)
    found._grams = Counted()
    words = ["".join(draw.choices("bcdfghjklmnpqrstvwxz", k=7)) for _ in range(300)]
    for number in range(2000):
        subject = " and ".join(draw.sample(words, 4))
        each = f"How do I choose {subject} for a visit of my aunt?"
        before = len(compared)
        found.like(each)
        assert len(compared) - before < 20
        found.add(number, each)


def test_order_does_not_matter() -> None:
    train = [row(f"t{number}", LONG + " now" * (number % 3), f"f{number % 4}") for number in range(12)]
    evaluation = [row(f"e{number}", LONG + "!" * number, f"f{number}") for number in range(8)]
    assert overlaps(train, evaluation, 0.8) == overlaps(train[::-1], evaluation[::-1], 0.8)


def test_short_texts_are_compared_whole() -> None:
    texts = NearDuplicates(0.8)
    texts.add(0, "Hi")
    assert texts.like("hi") == {0: 1.0}
    assert texts.like("Ha") == {}


def test_what_cannot_be_compared_is_an_error() -> None:
    with pytest.raises(PromptError, match="evaluation prompt e has no text"):
        overlaps([row("t", "a")], [row("e", "")], 0.8)
    for jaccard in (0.0, 1.1, float("nan")):
        with pytest.raises(PromptError, match="similarity"):
            overlaps([], [], jaccard)


def test_removal_looks_at_ids_only() -> None:
    kept, gone = without_overlaps([row("e1", "a"), row("e2", "b")], [Overlap("e2", "t", "family", None, 3)])
    assert [each["prompt_id"] for each in kept] == ["e1"] and gone["family"] == 1
