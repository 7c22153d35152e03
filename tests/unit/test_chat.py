"""Chat templates: from a prompt to tokens, and where the instruction ends."""

import re
from datetime import date
from typing import Any

import pytest
import yaml

from rass_core.errors import ModelError, PromptError
from rass_core.evaluate.attacks import BarePrompt, apply_attack
from rass_core.lab.training import build_tokenizer
from rass_core.models.chat import ChatFormat, check_length
from rass_core.models.settings import ModelConfig
from tests import tiny_models


@pytest.fixture(scope="module")
def lab() -> Any:
    return build_tokenizer()


@pytest.fixture
def tiny() -> Any:
    return tiny_models.tokenizer()


def test_the_labs_template_ends_in_four_tokens(lab: Any) -> None:
    chat = ChatFormat(lab)
    assert chat.n_end_positions == 4
    assert chat.positions() == [-4, -3, -2, -1]
    assert chat.text("How do I bake bread?") == "<|user|>How do I bake bread?<|eot|>\n<|assistant|><|reply|>"
    ending = lab.convert_ids_to_tokens(chat.ids("How do I bake bread?")[-4:])
    assert [ending[0], *ending[2:]] == ["<|eot|>", "<|assistant|>", "<|reply|>"]
    assert lab.decode(chat.ids("¿Qué? 你好 {x}")) == chat.text("¿Qué? 你好 {x}")


def test_a_tokenizer_without_a_template_is_refused(lab: Any) -> None:
    bare = tiny_models.tokenizer()
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template; save one"):
        ChatFormat(bare)


def test_the_system_prompt_comes_first(tiny: Any) -> None:
    chat = ChatFormat(tiny, system_prompt="Be brief.")
    assert chat.text("Hi") == "<bos><system>\nBe brief.<end>\n<user>\nHi<end>\n<assistant>\n"
    assert "system" not in ChatFormat(tiny).text("Hi")
    assert ChatFormat(tiny, system_prompt="").text("Hi").startswith("<bos><system>\n<end>")
    assert chat.n_end_positions == ChatFormat(tiny).n_end_positions == 4


def test_a_template_without_a_system_role_says_what_to_change(tiny: Any) -> None:
    tiny.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ messages[0].content }}<user>"
    )
    assert ChatFormat(tiny).text("Hi") == "Hi<user>"
    with pytest.raises(ModelError, match=r"no system role; see model\.system_prompt"):
        ChatFormat(tiny, system_prompt="Be brief.")


def test_a_thinking_block_extends_the_end_positions(tiny: Any) -> None:
    plain = ChatFormat(tiny)
    by_prefix = ChatFormat(tiny, response_prefix="<think>\n</think>\n")
    by_template = ChatFormat(tiny, template_kwargs={"enable_thinking": False})
    assert (plain.n_end_positions, by_prefix.n_end_positions, by_template.n_end_positions) == (4, 8, 8)
    assert by_prefix.ids("Hi") == by_template.ids("Hi")
    assert by_prefix.ids("Hi")[:-4] == plain.ids("Hi")


def test_a_prefix_of_words_extends_the_labs_end(lab: Any) -> None:
    prefix = "Here is how"
    assert ChatFormat(lab, response_prefix=prefix).n_end_positions == 4 + len(ChatFormat(lab).answer_ids(prefix))


def test_answers_follow_without_special_tokens(tiny: Any) -> None:
    chat = ChatFormat(tiny)
    assert tiny.decode(chat.ids("Hi") + chat.answer_ids(" Hello")) == chat.text("Hi") + " Hello"
    tiny.add_bos_token = True
    assert chat.ids("Hi").count(tiny.bos_token_id) == 1, "the template writes its own"


TURNS = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


def test_a_conversation_keeps_every_turn_and_opens_the_answer(tiny: Any) -> None:
    chat = ChatFormat(tiny, "Be brief.", {"enable_thinking": False}, response_prefix="(1) ")
    ids = chat.conversation_ids(TURNS, "Sure, here is how:")
    assert tiny.decode(ids) == (
        "<bos><system>\nBe brief.<end>\n<user>\nOne?<end>\n<assistant>\nTwo.<end>\n<user>\nThree?<end>\n"
        "<assistant>\n<think>\n</think>\n(1) Sure, here is how:"
    )
    assert tiny.decode(chat.conversation_ids(TURNS)) == tiny.decode(ids).removesuffix("Sure, here is how:")
    assert TURNS[0] == {"role": "user", "content": "One?"} and len(TURNS) == 3


def test_one_turn_is_the_prompt_alone(tiny: Any, lab: Any) -> None:
    for chat in (ChatFormat(tiny, "Be brief.", response_prefix="So: "), ChatFormat(lab)):
        assert chat.conversation_ids([{"role": "user", "content": "How do I bake bread?"}]) == chat.ids(
            "How do I bake bread?"
        )


def test_a_dressed_prompt_is_put_as_the_lab_has_learned_it(lab: Any) -> None:
    shots = [("How do I bake bread?", "Take flour.")]
    many = apply_attack("many_shot", BarePrompt("Hi", "en", tuple(shots)))
    prefilled = apply_attack("prefilled_answer", BarePrompt("Hi", "en"))
    chat = ChatFormat(lab)
    assert chat.conversation_text(many.messages(), many.response_prefix) == (
        "<|user|>How do I bake bread?<|eot|>\n<|assistant|><|reply|>Take flour.<|eot|>\n"
        "<|user|>Hi<|eot|>\n<|assistant|><|reply|>"
    )
    ids = chat.conversation_ids(prefilled.messages(), prefilled.response_prefix)
    assert ids == chat.ids("Hi") + chat.answer_ids("Sure, here is how:")
    assert ChatFormat(lab).n_end_positions == 4


def test_a_system_message_of_the_conversations_own(tiny: Any) -> None:
    own = [{"role": "system", "content": "Be kind."}, *TURNS]
    assert ChatFormat(tiny).conversation_text(own).startswith("<bos><system>\nBe kind.<end>\n<user>\nOne?")
    with pytest.raises(PromptError, match=r"one in model\.system_prompt; drop one"):
        ChatFormat(tiny, "Be brief.").conversation_text(own)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the last one must be the user's"),
        (TURNS[:2], "the last one must be the user's"),
        ([{"role": "tool", "content": "x"}], r"number 0 .*role 'tool'; give role \(system, user, assistant\)"),
        ([*TURNS, {"role": "system", "content": "x"}], r"number 3 .*give role \(user, assistant\)"),
        ([{"role": "user", "text": "x"}], r"number 0 has keys \['role', 'text'\]"),
    ],
)
def test_what_is_no_conversation_is_refused(tiny: Any, messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        ChatFormat(tiny).conversation_ids(messages)


def test_a_template_that_ends_in_the_prompt_is_refused(tiny: Any) -> None:
    tiny.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(ModelError, match="share no last token"):
        ChatFormat(tiny)


def test_too_long_a_prompt_is_refused() -> None:
    check_length([1] * 5, 5, "prompt p")
    with pytest.raises(ModelError, match="prompt p: 6 tokens, the model takes 5"):
        check_length([1] * 6, 5, "prompt p")


def test_the_users_turn_ends_where_the_users_words_begin(lab: Any, tiny: Any) -> None:
    chat = ChatFormat(tiny, system_prompt="Be brief.")
    text = "<bos><system>\nBe brief.<end>\n<user>\nHi<end>\n<assistant>\nOK.<end>\n<user>\n"
    assert tiny.decode(chat.user_turn_ids(["Hi"])) == text
    assert tiny.decode(chat.user_turn_ids(["Hi"], "How do")) == f"{text}How do"
    assert tiny.convert_ids_to_tokens(list(chat.user_end_ids)) == ["<end>"]
    assert lab.decode(ChatFormat(lab).user_turn_ids()) == "<|user|>"
    assert lab.convert_ids_to_tokens(list(ChatFormat(lab).user_end_ids)) == ["<|eot|>"]


def test_a_prefix_of_the_answer_is_no_part_of_the_users_turn(tiny: Any) -> None:
    chat = ChatFormat(tiny, response_prefix="<think>\n</think>\n")
    assert chat.user_turn_ids(["Hi"]) == ChatFormat(tiny).user_turn_ids(["Hi"])


def test_where_the_template_puts_a_word_behind_the_users_there_is_no_end_token(tiny: Any) -> None:
    tiny.chat_template = "<bos><user>\n{{ messages[-1].content }} END\n<assistant>\n"
    assert ChatFormat(tiny).user_end_ids == ()


def configured(tokenizer: Any, **settings: Any) -> ChatFormat:
    return ChatFormat.configured(tokenizer, ModelConfig(name="some/model", **settings))


@pytest.mark.parametrize(
    ("ending", "way"),
    [
        ("<think>\n", r'model\.response_prefix: "\\n</think>\\n\\n"'),
        (
            "{% if enable_thinking | default(true) %}<think>\n{% endif %}",
            r"template_kwargs: \{enable_thinking: false\}",
        ),
        ("{% if thinking is not defined or thinking %}<think>\n{% endif %}", r"template_kwargs: \{thinking: false\}"),
        ("{% if reasoning %}x{% endif %}<|START_THINKING|>", r'response_prefix: "\\n<\|END_THINKING\|>'),
        ("◁think▷", r'response_prefix: "\\n◁/think▷\\n\\n"'),
        ("<|channel|>analysis<|message|>", r"response_prefix: .*<\|channel\|>final<\|message\|>"),
        ("<plan>", r'response_prefix: "\\n</end of plan>'),
    ],
)
def test_a_template_that_opens_thinking_says_what_to_set(tiny: Any, ending: str, way: str) -> None:
    tiny.chat_template = tiny_models.CHAT_TEMPLATE.partition("{% if enable")[0] + ending + "{% endif %}"
    marks = [("<plan>", "</end of plan>")]
    with pytest.raises(
        ModelError, match=r"some/model: every prompt ends inside thinking .* set model\." + ""
    ) as caught:
        configured(tiny, thinking_marks=marks)
    assert re.search(way, str(caught.value))
    setting = re.search(r"set model\.(\w+): (.*), or model\.allow_thinking: true", str(caught.value))
    assert setting is not None
    mitigated = configured(tiny, thinking_marks=marks, **{setting[1]: yaml.safe_load(setting[2])})
    assert mitigated.opens_thinking is None
    assert configured(tiny, thinking_marks=marks, allow_thinking=True).opens_thinking is not None
    assert "raise probe.max_new_tokens" in str(
        configured(tiny, thinking_marks=marks, allow_thinking=True).thinking_note(48)
    )


def test_a_prefix_that_opens_thinking_is_found_too(tiny: Any) -> None:
    with pytest.raises(ModelError, match=r'inside thinking \(<think>\).*response_prefix: "<think>\\n</think>\\n\\n"'):
        configured(tiny, response_prefix="<think>")


def test_what_may_think_is_noted(tiny: Any) -> None:
    assert "{enable_thinking: false}" in str(configured(tiny).thinking_note(48))
    assert configured(tiny, template_kwargs={"enable_thinking": False}).thinking_note(48) is None
    assert configured(tiny, response_prefix="<think>\n\n</think>\n\n").thinking_note(48) is None
    tiny.chat_template = tiny.chat_template.replace("enable_thinking", "verbose")
    assert configured(tiny).thinking_note(48) is None
    assert configured(tiny).notes(48, ["Hi", "<end>", "a<end>"]) == {
        "control tokens": "2 of 3 prompts hold some; they are encoded as plain text"
    }
    tiny.chat_template = tiny.chat_template.replace("<assistant>", "{# <|channel|>final #}<|start|>assistant")
    assert "<|channel|>final<|message|>" in str(configured(tiny).thinking_note(48))


@pytest.mark.parametrize(
    "asks",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}",
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}",
    ],
)
def test_the_template_is_told_one_date(tiny: Any, asks: str) -> None:
    tiny.chat_template = asks + tiny_models.CHAT_TEMPLATE
    chat = configured(tiny, date="2026-11-28")
    assert chat.text("Hi").startswith("28 Nov 2026<bos>")
    assert chat.template.date == date(2026, 11, 28)
    assert "2026-11-28" in chat.notes(48, [])["date"]
    assert chat.without_system_prompt().text("Hi") == chat.text("Hi")
    assert ChatFormat(tiny).template.date is not None
    tiny.chat_template = tiny_models.CHAT_TEMPLATE
    assert configured(tiny, date="2026-11-28").template.date is None


def test_a_date_by_keyword_has_precedence(tiny: Any) -> None:
    tiny.chat_template = "{{ date_string }}" + tiny_models.CHAT_TEMPLATE
    chat = configured(tiny, date="2026-11-28", template_kwargs={"date_string": "26 Jul 2024"})
    assert chat.text("Hi").startswith("26 Jul 2024<bos>")
    assert chat.template.date is None
