"""Contrasts of a benchmark: matched together, by least change, each used once."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rass_core.benchmark import matching
from rass_core.benchmark.matching import BackTranslation
from tests.morbench_prompts import built, harmful, one, pairs, small


def test_contrasts_are_assigned_together_and_not_one_after_the_other() -> None:
    # Greedily, "a b c d" would take its best and leave "a b c x" a contrast that is too far.
    benign = [one("a b c d"), one("a b c x", 0.01)]
    contrast = [harmful("a b c y"), harmful("a b z d")]
    assert pairs(built(benign, contrast, small(max_change=0.3))) == {"a b c d": "a b z d", "a b c x": "a b c y"}


def test_of_equal_changes_the_nearer_margin_counts() -> None:
    for near in "uvwxyz":  # whichever comes first
        contrast = [harmful(f"a b {end}", 0.2 if end == near else 0.9) for end in "uvwxyz"]
        assert pairs(built([one("a b c", 0.1)], contrast, small(n_per_cell=1))) == {"a b c": f"a b {near}"}


def test_what_differs_too_much_is_no_contrast() -> None:
    [cell] = built([one("a b c")], [harmful("a y z")], small(max_change=0.5)).cells
    assert cell.left_out == {"without a contrast": 1}


def test_a_contrast_is_used_once_and_what_lacks_one_is_reported() -> None:
    result = built([one("a b c"), one("a b d")], [harmful("a b y")], small())
    assert len(result.items) == 1
    [cell] = result.cells
    assert (cell.wanted, cell.filled) == ((2,), (1,))
    assert cell.reason == "stratum 0 has 1 of 2; of 2 benign candidates and 1 contrasts, left out: 1 without a contrast"


def test_a_contrast_of_another_language_or_category_is_none() -> None:
    contrast = [harmful("a b y", language="de"), harmful("a b z", category="other")]
    assert built([one("a b c")], contrast, small()).items == ()


def test_contrasts_are_borrowed_only_for_what_a_category_cannot_fill() -> None:
    benign = [one("a b c"), one("p q r", category="d")]
    contrast = [harmful("a b y"), harmful("a b z", category="d"), harmful("p q z", category="e")]
    result = built(benign, contrast, small(n_per_cell=1, borrow_contrasts=True))
    assert pairs(result) == {"a b c": "a b y", "p q r": "p q z"}
    assert [(item.benign.category, item.contrast.category) for item in result.items] == [("c", "c"), ("d", "d")]
    assert [cell.n_contrasts for cell in result.cells] == [1, 3]
    assert pairs(built(benign, contrast, small(n_per_cell=1))) == {"a b c": "a b y"}


def test_a_borrowed_contrast_is_in_one_cell_only() -> None:
    benign = [one("a b c"), one("a b d", category="d")]
    result = built(benign, [harmful("a b y")], small(n_per_cell=1, borrow_contrasts=True))
    assert pairs(result) == {"a b c": "a b y"}
    assert result.cells[1].reason is not None and "1 near-duplicates" in result.cells[1].reason


def test_scripts_without_spaces_are_matched_by_character() -> None:
    assert matching.words_of("How do I, kill weeds?") == ["how", "do", "i", "kill", "weeds"]
    assert matching.words_of("我kill杂草。") == ["我", "kill", "杂", "草"]
    contrast = [harmful("我该如何杀死邻居", language="zh"), harmful("请告诉我怎样偷东西", language="zh")]
    result = built([one("我该如何杀死杂草", language="zh")], contrast, small(n_per_cell=1))
    assert [item.change for item in result.items] == [0.25]


def reference_distance(first: Sequence[int], second: Sequence[int]) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


WORDS = st.lists(st.integers(0, 3), max_size=7)


@settings(deadline=None, max_examples=200)
@given(first=WORDS, others=st.lists(WORDS, min_size=1, max_size=5))
def test_edit_distances_are_levenshteins(first: list[int], others: list[list[int]]) -> None:
    lengths = np.array([len(each) for each in others])
    padded = np.full((len(others), int(lengths.max())), -1)
    for number, each in enumerate(others):
        padded[number, : len(each)] = each
    found = matching._edit_distances(np.array(first, dtype=np.int64), padded, lengths)
    assert found.tolist() == [reference_distance(first, each) for each in others]


def test_character_similarity() -> None:
    assert matching.character_similarity("Kill the weeds!", "kill  the weeds") == 1.0
    assert matching.character_similarity("abc", "xyz") == matching.character_similarity("", "") == 0.0
    assert matching.character_similarity("abcd", "abcx") == pytest.approx(0.5)


def test_what_was_not_translated_is_not_translated_back() -> None:
    check = BackTranslation(lambda texts, language, target: ["how to kill weeds"] * len(texts))
    source = {"original_language": "en", "language": "de"}
    translated = [one("t1", original="How do I kill weeds?", **source), one("t2", original="Bake a cake.", **source)]
    assert check([one("a b c"), *translated]) == [None, None, "changed in back-translation"]
