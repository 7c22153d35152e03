"""Chat templates: from a prompt to tokens, and where the instruction ends."""

from typing import Any

import pytest

from rass_core.chat import ChatFormat, check_length
from rass_core.errors import ModelError
from rass_core.lab.training import build_tokenizer
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


def test_the_system_prompt_stands_first(tiny: Any) -> None:
    chat = ChatFormat(tiny, system_prompt="Be brief.")
    assert chat.text("Hi") == "<bos><system>\nBe brief.<end>\n<user>\nHi<end>\n<assistant>\n"
    assert "system" not in ChatFormat(tiny).text("Hi")
    assert ChatFormat(tiny, system_prompt="").text("Hi").startswith("<bos><system>\n<end>")
    assert chat.n_end_positions == ChatFormat(tiny).n_end_positions == 4


def test_a_conversation_goes_on_from_its_last_turn_and_prefix(tiny: Any) -> None:
    chat = ChatFormat(tiny, system_prompt="Be brief.", response_prefix="<t>")
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Go on")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert chat.conversation_text(messages, "Sure,") == (
        "<bos><system>\nBe brief.<end>\n<user>\nHi<end>\n<assistant>\nYes?<end>\n<user>\nGo on<end>\n<assistant>\n<t>Sure,"
    )
    assert chat.conversation_ids(messages[:1]) == chat.ids("Hi")
    assert tiny.decode(chat.conversation_ids(messages, "Sure,")) == chat.conversation_text(messages, "Sure,")


def test_a_template_without_a_system_role_says_what_to_change(tiny: Any) -> None:
    tiny.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x<user>"
    )
    assert ChatFormat(tiny).text("Hi") == "x<user>"
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


def test_a_template_that_ends_in_the_prompt_is_refused(tiny: Any) -> None:
    tiny.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(ModelError, match="share no last token"):
        ChatFormat(tiny)


def test_too_long_a_prompt_is_refused() -> None:
    check_length([1] * 5, 5, "prompt p")
    with pytest.raises(ModelError, match="prompt p: 6 tokens, the model takes 5"):
        check_length([1] * 6, 5, "prompt p")
