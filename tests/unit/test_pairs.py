"""Which answers may be chosen, and what a pair is."""

import math

import pytest

from rass_core.errors import PromptError
from rass_core.mitigate.pairs import PreferencePair, SteeredAnswer, check_pairs, counts, perplexity_limit, rejection
from rass_core.text import AcceptanceLimits, is_degenerate, repeated_share

GOOD = "Open the task manager, choose the process and end it; save your work before you do."
GOOD_ZH = "打开任务管理器，选中那个进程然后结束它；动手之前请先保存你的工作，以免丢失数据。"
LIMITS = AcceptanceLimits(perplexity=20.0)


def answer(text: str = GOOD, outcome: str = "compliance", spoken: str | None = "en", **more: object) -> SteeredAnswer:
    return SteeredAnswer(text, outcome, spoken, **more)  # type: ignore[arg-type]


def pair(prompt_id: str = "a", kind: str = "safety", **changed: str) -> PreferencePair:
    given = {"prompt": "p", "language": "en", "chosen": "yes", "rejected": "no"} | changed
    return PreferencePair(prompt_id, kind, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [GOOD, GOOD_ZH, "Yes.", "", "1. Wash it.\n2. Dry it.\n3. Fold it.\n4. Put it away."])
def test_ordinary_text_hardly_repeats_itself(text: str) -> None:
    assert repeated_share(text) < 0.15


@pytest.mark.parametrize("loop", ["the plan and ", "好的，", "aaaa", "Sure, here is how to do that. "])
def test_a_loop_repeats_itself_in_every_script(loop: str) -> None:
    assert repeated_share(loop * 40) > 0.8
    assert repeated_share(GOOD + " " + loop * 40) > 0.3


def test_repetition_counts_ngrams_by_hand() -> None:
    assert repeated_share("abcdefgh") == 0.0
    assert repeated_share("abcdefghabcdefgh") == pytest.approx(1 - 8 / 9)  # 9 windows, the last one repeats the first


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (answer(), None),
        (answer(spoken="en-GB"), None),
        (answer(perplexity=20.0), None),
        (answer(""), "empty"),
        (answer(" \n"), "empty"),
        (answer("no no " * 40), "repeats itself"),
        (answer(perplexity=20.1), "perplexity"),
        (answer(perplexity=math.inf), "perplexity"),
        (answer(perplexity=math.nan), "perplexity"),
        (answer(finish_reason="length"), "cut off"),
        (answer(outcome="refusal"), "judged refusal"),
        (answer(outcome="partial"), "judged partial"),
        (answer(outcome="unscored"), "judged unscored"),
        (answer(spoken=None), "language unknown"),
        (answer(spoken="de"), "answered in de"),
    ],
)
def test_each_rejection_has_its_reason(given: SteeredAnswer, reason: str | None) -> None:
    assert rejection(given, "en", LIMITS) == reason


def test_a_perplexity_that_was_not_measured_or_not_limited_is_not_looked_at() -> None:
    assert is_degenerate(GOOD, None, LIMITS) is None
    assert is_degenerate(GOOD, 1e9, AcceptanceLimits()) is None
    assert is_degenerate(GOOD, 1e9, LIMITS) == "perplexity"


def test_the_limit_follows_the_ordinary_answers_but_not_their_outliers() -> None:
    ordinary = [1.0 + i / 100 for i in range(100)]
    assert perplexity_limit([*ordinary[:-1], 1e9], factor=2.0) == pytest.approx(2 * 1.94)
    assert perplexity_limit([3.0], factor=2.0) == 6.0
    with pytest.raises(PromptError, match="no answers"):
        perplexity_limit([])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "saftey"}, "kind 'saftey'"),
        ({"chosen": " "}, "chosen is empty"),
        ({"rejected": ""}, "rejected is empty"),
        ({"prompt": ""}, "prompt is empty"),
        ({"chosen": "No  way", "rejected": "No way "}, "are the same"),
    ],
)
def test_what_is_no_pair_is_refused(changed: dict[str, str], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        pair(**changed)


def test_pairs_are_counted_by_kind_and_language_and_each_prompt_once() -> None:
    pairs = [pair("a"), pair("b", language="de"), pair("c", "over_refusal"), pair("d", "over_refusal")]
    assert counts(pairs) == {"over_refusal": {"en": 2}, "safety": {"de": 1, "en": 1}}
    check_pairs(pairs)
    with pytest.raises(PromptError, match="prompt a is in more than one"):
        check_pairs([*pairs, pair("a", "general")])
    with pytest.raises(PromptError, match="no pairs"):
        check_pairs([])
