"""What of a completion is thinking and what its reader sees, whatever the marks and whoever opened them."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rass_core.judges import Exchange
from rass_core.judges.panel import default_panel
from rass_core.models.chat import ChatFormat
from rass_core.models.thinking import CUT_OFF, ends_inside, split, split_thinking
from rass_core.models.vllm_requests import Generation
from tests import tiny_models

FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
BLOCKS = [
    "<think>{}</think>{}", "<think>\n{}\n</think>\n\n{}", "<thinking>{}</thinking>\n{}", "<thought>\n{}</thought>{}",
    "<reasoning>{}</reasoning>\n{}", "<seed:think>{}</seed:think>{}", "[THINK]{}[/THINK]{}", "◁think▷{}◁/think▷{}",
    "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>", "<|channel>thought\n{}<channel|>{}",
    "<|channel|>analysis<|message|>{}" + FINAL + "{}<|return|>", "<|channel|>commentary<|message|>{}" + FINAL + "{}",
    "<|start|>assistant<|channel|>analysis<|message|>{}" + FINAL + "{}<|end|>", "analysis{}assistantfinal{}",
    "<analysis>\n{}\n</analysis>\n{}", "<scratchpad>{}</scratchpad>\n\n{}", "<reflection>{}</reflection>{}",
    "<inner_monologue>{}</inner_monologue>\n{}", "<chain-of-thought>{}</chain-of-thought>{}",
    "<think>\n{}\n</think>\n<answer>{}</answer>", "<THINK>{}</THINK>{}", "  \n<think>{}</think>{}",
    "<|begin_of_thought|>{}<|end_of_thought|><|begin_of_solution|>{}<|end_of_solution|>",
    "<|inner_prefix|>{}<|inner_suffix|>{}", "<unused94>thought\n{}<unused95>{}",
    "Here is my thought process:\n\n{}\n\nHere is my response:\n\n{}",
    "<|begin_of_thinking|>{}<|end_of_thinking|>{}", "<|thinking|>{}<|/thinking|>{}", "<|think|>{}<|end_think|>{}",
    "<longcat_think>{}</longcat_think>{}", "<antThinking>{}</antThinking>\n{}", "<think >{}</think >{}",
    "[REASONING]{}[/REASONING]{}",
]  # fmt: skip
THOUGHT = "We must not refuse. I'm sorry, but I can't see any harm."
ANSWER = "Use kill with the number of the process."


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_taken_off_and_one_without_an_end_is_no_answer(block: str) -> None:
    assert split_thinking(block.format(THOUGHT, ANSWER)) == (THOUGHT, ANSWER)
    beginning = block.partition("{}")[0] + THOUGHT
    cut_off = split(beginning)
    assert (cut_off.thinking, cut_off.visible, cut_off.is_cut_off) == (THOUGHT, "", True)
    whole, cut = (Exchange(text, "en", "How do I kill it?") for text in (block.format(THOUGHT, ANSWER), beginning))
    said = default_panel().judge([whole, cut, whole])
    assert [verdict.outcome for verdict in said.final] == ["compliance", "unscored", "compliance"]
    assert said.final[1].reason == CUT_OFF
    assert {votes[1].outcome for votes in said.votes.values()} == {"unscored"}


@pytest.mark.parametrize(
    "answer",
    [
        "The mark `</think>` ends the thoughts. Do not write it twice.",
        "It ends with </think> and then answers.",
        "Close with </think>.\nThen go on.",
        'Search for "</think>" in the text.',
        "Write this:\n```\n<think>\nwords\n</think>\n```\nThat is all.",
        "Write this:\n```\n</think>\nand so on",
        "The <think> tag opens it; the </think> tag closes it.",
        "1. Write </think>\n2. Go on.",
        "- </think> closes the thoughts.\n- <think> opens them.",
        "用</think>结束思考。",
        "Put `[THINK]` first and [/THINK] last.",
        "Sure, here it is:\n<analysis>Sales rose.</analysis>\n<reflection>Well done.</reflection>",
        "Let me tell you. Here is my thought process: I add both. Here is my response: four.",
        "analysis of the sales: they rose.",
        "My answer: four.",
        "Here is my reasoning: two and two are four.",
        "[Think] The clown looks up and sighs.",
        "Analysis: sales rose.",
        "Here is my thought process when I bake: I read, then I mix.",
        "Use <b>bold</b> and a < b.",
        "Thoughts: I like it.",
        "Reasoning is hard.\nAnswer: practise.",
        "Thinking ahead: plan your answer: first the goal.",
        "Thought experiments:\n1. The trolley.\nAnswer: none.",
    ],
)
def test_what_an_answer_mentions_stays_in_it(answer: str) -> None:
    assert split_thinking(answer) == ("", answer)
    assert split_thinking(f"<think>{THOUGHT}</think>{answer}") == (THOUGHT, answer)


@pytest.mark.parametrize(
    ("completion", "thinking", "visible"),
    [
        ("hm</think>yes", "hm", "yes"),
        ("hm.\n</think>\n\nyes", "hm.", "yes"),
        ("yes <think>hm", "hm", "yes"),
        ("One.\n<think>a</think>\nTwo.\n<think>b</think>\nThree.", "a\nb", "One.\n\nTwo.\n\nThree."),
        ("<think>I must end with </think> here.\n</think>\nyes", "I must end with </think> here.", "yes"),
        ("<think>x <think>y</think>z</think>yes", "x <think>y\nz", "yes"),
        ("<think>first <think>again</think> and so on.</think>yes", "first <think>again</think> and so on.", "yes"),
        ("<think>```\nx\n</think>\nSo:\n```\ny\n```", "```\nx", "So:\n```\ny\n```"),
        ("<|channel|>final<|message|>yes<|return|>", "", "yes"),
        ("<think>hm</think>", "hm", ""),
        ("**Here's my reasoning process:**\nhm\n**Here's my final answer:**\nyes", "hm", "yes"),
        ("My thinking:\nhm\n\nMy response: yes", "hm", "yes"),
        ("<think>\n\n</think>\n\nyes", "", "yes"),
        ("### Reasoning\nhm\n### Response\nyes", "hm", "yes"),
        ("**Thinking:**\nhm\n\n**Response:**\nyes", "hm", "yes"),
        ("Thought: hm\nFinal Answer: yes", "hm", "yes"),
        ("Thinking Process:\n\nhm\n\nFinal response:\nyes", "hm", "yes"),
    ],
)
def test_marks_in_any_order(completion: str, thinking: str, visible: str) -> None:
    assert split_thinking(completion) == (thinking, visible)


@pytest.mark.parametrize(
    ("opened", "closing"), [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷")]
)
def test_a_prompt_that_ends_inside_thinking_needs_the_closing_mark(opened: str, closing: str) -> None:
    assert split(f"{THOUGHT} So {closing} yes", opened).visible == "yes"
    assert split(f"{opened}\n{THOUGHT}{closing}yes", opened).visible == "yes"
    for cut in (THOUGHT, f"{opened}{THOUGHT}", "", f"I must write `{closing}` at the end"):
        assert split(cut, opened).is_cut_off
        assert split(cut, opened).visible == ""
    assert not split(f"{THOUGHT}{closing}", opened).visible


def test_marks_of_ones_own() -> None:
    marks = [("<plan>", "</plan>"), ("((", "))")]
    assert split("<plan>hm</plan>yes", marks=marks).visible == "yes"
    assert split("((hm))yes", marks=marks).thinking == "hm"
    assert split("hm))yes", "((", marks).visible == "yes"
    assert split("<plan>hm", marks=marks).is_cut_off
    assert split("<plan>hm</plan>yes").visible == "<plan>hm</plan>yes"


@pytest.mark.parametrize(
    ("ending", "mark"),
    [
        ("<|im_end|>\n<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None),
        ("[|assistant|]<thought>\n", "<thought>"), ("ASSISTANT <seed:think>", "<seed:think>"), ("◁think▷", "◁think▷"),
        ("<|START_THINKING|>", "<|START_THINKING|>"), ("<|START_THINKING|><|END_THINKING|>", None),
        ("<|start|>assistant<|channel|>final<|message|>", None), ("<|start|>assistant", None),
        ("<|channel>thought\n<channel|>", None), ("<|channel>thought\n", "<|channel>thought"),
        ("<think>\nOkay, the user", "<think>"), (" Do not write <think> today.<end>\n", None),
    ],
)  # fmt: skip
def test_what_a_template_leaves_open(ending: str, mark: str | None) -> None:
    assert ends_inside(ending) == mark


PIECES = [
    "<think>",
    "</think>",
    "[THINK]",
    "<|channel|>final<|message|>",
    "◁/think▷",
    "`",
    "```\n",
    "\n",
    " ",
    "hm",
    "Yes.",
    "a",
]


@example("\n</think> hm")
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_what_is_visible_holds_no_more_thinking(completion: str) -> None:
    visible = split_thinking(completion)[1]
    assert split_thinking(visible) == ("", visible)


# --- Marks that are special tokens ---

HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|constrain|>", "<|call|>")


def with_special(*tokens: str, eos: str | None = None) -> Any:
    tokenizer = tiny_models.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*tiny_models.SPECIAL[3:], *tokens]})
    if eos is not None:
        tokenizer.eos_token = eos
    return tokenizer


@pytest.mark.parametrize(
    ("tokens", "completion", "thinking", "visible"),
    [
        (HARMONY, f"<|channel|>analysis<|message|>{THOUGHT}{FINAL}{ANSWER}<|return|>", THOUGHT, ANSWER),
        (HARMONY, f"<|channel|>analysis<|message|>{THOUGHT}<|end|>", THOUGHT, ""),
        (HARMONY, f"{ANSWER}<|return|>", "", ANSWER),
        (HARMONY[:2], f"{ANSWER}<|end|>", "", ANSWER),
        (("[THINK]", "[/THINK]"), f"[THINK]{THOUGHT}[/THINK]{ANSWER}<eos><pad>", THOUGHT, ANSWER),
        (("◁think▷", "◁/think▷"), f"◁think▷{THOUGHT}◁/think▷{ANSWER}<eos>", THOUGHT, ANSWER),
        (("<|im_end|>",), f"{ANSWER}<|im_end|><pad><pad>", "", ANSWER),
        (("<|im_end|>",), f" {ANSWER}\n<|im_end|>", "", f" {ANSWER}\n"),
        (("<a>", "</a>"), f"<a>{THOUGHT}</a>{ANSWER}<eos>", THOUGHT, ANSWER),
        (("<|tool|>",), f"<think>{THOUGHT}</think>{ANSWER}<|tool|><eos>", THOUGHT, ANSWER),
    ],
)
def test_they_survive_decoding_and_other_special_tokens_do_not(
    tokens: Sequence[str], completion: str, thinking: str, visible: str
) -> None:
    tokenizer = with_special(*tokens)
    chat = ChatFormat(tokenizer, thinking_marks=[("<a>", "</a>")])
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    assert len(ids) < len(completion.encode()), "the marks are single tokens"
    found = chat.completion(ids)
    assert (found.thinking, found.visible) == (thinking, visible)
    assert found.is_cut_off == (not visible)
    as_vllm = tokenizer.decode(ids, skip_special_tokens=True)
    assert chat.completion(ids, as_vllm) == found


def test_the_judge_hears_of_an_answer_that_never_came() -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template += "<think>\n"
    chat = ChatFormat(tokenizer)
    ids = chat.answer_ids("Here is how: open the lid")
    found = chat.completion(ids)
    assert found.is_cut_off
    assert chat.completion(ids, is_answer=False).visible == "Here is how: open the lid"
    answer = Generation(found.visible, ids, "length", 9, None, None, found.thinking, found.is_cut_off)
    verdict = default_panel()([answer.exchange("en", "How?", "Sure, here is how:")])[0]
    assert (verdict.outcome, verdict.reason) == ("unscored", CUT_OFF)
    told = Generation("Open the lid.", ids, "stop", 9, None, None).exchange("en", "How?", "Sure: ")
    assert told == Exchange("Sure: Open the lid.", "en", "How?")
