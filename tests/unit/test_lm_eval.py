"""Utility tasks as far as they go without lm-evaluation-harness."""

import sys
from typing import Any

import pytest
from pydantic import ValidationError

from rass_core.errors import ModelError
from rass_core.evaluate.lm_eval import HarnessTexts, UtilityScore, _scores, utility_rows
from rass_core.evaluate.settings import UtilityConfig
from rass_core.models.chat import ChatFormat
from rass_core.stats.intervals import wilson
from tests import tiny_models

ASKED = [{"role": "user", "content": "One?"}]
SYSTEM = {"role": "system", "content": "Choose."}


def score(value: float | None, stderr: float | None, n: int) -> UtilityScore:
    return UtilityScore("t", "acc", value, stderr, n, None)


def test_without_the_harness_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ModelError, match=r"pip install 'rass\[utility\]', or leave the utility tasks out"):
        utility_rows(None, ChatFormat(tiny_models.tokenizer()), "m", "base", UtilityConfig(tasks=["arc_easy"]))


def test_wrong_settings_are_refused(tmp_path: Any) -> None:
    for wrong in ({"tasks": []}, {"limit": 0}, {"batch_size": 0}, {"include_path": tmp_path / "none"}, {"taks": []}):
        with pytest.raises(ValidationError):
            UtilityConfig(**{"tasks": ["arc_easy"], **wrong})


def test_a_share_has_wilsons_interval_and_never_one_of_no_width() -> None:
    assert score(0.75, (0.75 * 0.25 / 39) ** 0.5, 40).interval == pytest.approx(wilson(30, 40)[1:])
    low, high = score(1.0, 0.0, 20).interval or (None, None)
    assert (low, high) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_other_metrics_have_the_normal_interval_or_none() -> None:
    assert score(12.0, 0.5, 40).interval == pytest.approx((11.02, 12.98), abs=1e-3)
    assert score(0.5, 0.01, 40).interval == pytest.approx((0.4804, 0.5196), abs=1e-4)
    assert score(12.0, None, 40).interval is None
    assert score(None, 0.1, 40).interval is None


def test_scores_are_read_from_the_harness_results() -> None:
    results = {
        "sums": {
            "name": "sums", "alias": "sums", "sample_len": 5,
            "exact_match,strict": 0.4, "exact_match_stderr,strict": 0.2,
            "exact_match,flexible": 0.6, "exact_match_stderr,flexible": "N/A",
        },
        "text": {"alias": "text", "sample_len": 5, "word_perplexity,none": float("inf"), "bleu,none": " "},
        "all": {
            "alias": "all", "sample_len": 9, "sample_count": {"acc,none": 4},
            "acc,none": 0.5, "acc_stderr,none": 0.1,
        },
    }  # fmt: skip
    found = {(s.task, s.metric): s for s in _scores(results)}
    assert set(found) == {
        ("sums", "exact_match/strict"), ("sums", "exact_match/flexible"), ("text", "word_perplexity"), ("all", "acc"),
    }  # fmt: skip
    assert found["sums", "exact_match/strict"] == UtilityScore("sums", "exact_match/strict", 0.4, 0.2, 5, None)
    flexible = found["sums", "exact_match/flexible"]
    assert (flexible.value, flexible.stderr) == (0.6, None) and "no interval" in (flexible.reason or "")
    assert found["text", "word_perplexity"].value is None
    assert found["text", "word_perplexity"].reason == "the harness gives inf over 5 items"
    assert found["all", "acc"].n == 4


def rendered(chat: ChatFormat, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    return HarnessTexts(chat).render(messages, add_generation_prompt).replace("\ufdd1", "")


def test_the_harness_speaks_in_the_chat_template() -> None:
    chat = ChatFormat(tiny_models.tokenizer(), None, {"enable_thinking": False})
    end = "<assistant>\n<think>\n</think>\n"
    assert rendered(chat, [SYSTEM, *ASKED]) == f"<bos><system>\nChoose.<end>\n<user>\nOne?<end>\n{end}"
    opened = [*ASKED, {"role": "assistant", "content": "The answer is"}]
    assert rendered(chat, opened, add_generation_prompt=False) == f"<bos><user>\nOne?<end>\n{end}The answer is"
    assert rendered(chat, []) == f"<bos><user>\n<end>\n{end}"
    assert opened[-1]["content"] == "The answer is"


def test_a_template_without_a_system_role_takes_its_words_with_the_question() -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tokenizer.chat_template
    )
    chat = ChatFormat(tokenizer)
    assert rendered(chat, [SYSTEM, *ASKED]) == "<bos><user>\nChoose.\n\nOne?<end>\n<assistant>\n"
