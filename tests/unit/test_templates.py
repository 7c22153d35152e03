"""Chat templates that lose what they are given, that take unknown keywords, or that are several."""

from typing import Any

import pytest

from rass_core.errors import ModelError
from rass_core.models.chat import ChatFormat
from tests import tiny_models


@pytest.fixture
def tiny() -> Any:
    return tiny_models.tokenizer()


TURNS = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]
BEGIN, END = "<bos>{% for m in messages %}<{{ m.role }}>\n", "<end>\n{% endfor %}<assistant>\n"
PARTS = BEGIN + "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}" + END
MIXED = (
    BEGIN + "{% if m.role == 'system' %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part['text'] }}{% endfor %}{% endif %}" + END
)
IMAGES = (
    BEGIN + "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}" + END
)
FOLDED = (
    "<bos>{% if messages[0].role == 'system' %}{% set first = messages[0].content ~ '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}<{{ m.role }}>\n"
    "{% if loop.first and first is defined %}{{ first }}{% endif %}{{ m.content | trim }}" + END
)
LATE = (
    "<bos>{% for m in messages if m.role != 'system' %}<{{ m.role }}>\n"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}{{ m.content }}" + END
)
MARKED = BEGIN + "{% generation %}{{ m.content }}{% endgeneration %}{% if false %}{% break %}{% endif %}" + END


@pytest.mark.parametrize("template", [PARTS, MIXED, IMAGES, FOLDED, LATE, MARKED])
def test_contents_are_given_as_the_template_shows_them(tiny: Any, template: str) -> None:
    tiny.chat_template = template
    chat = ChatFormat(tiny, system_prompt="Be brief.")
    text = chat.text("  How do I kill a process?")
    assert text.count("How do I kill a process?") == text.count("Be brief.") == 1
    assert tiny.decode(chat.ids("  How do I kill a process?")) == text
    assert chat.conversation_text(TURNS).count("One?") == 1
    assert tiny.decode(chat.user_turn_ids(["Hi"])).endswith("<user>\nBe brief.\n" if template is LATE else "<user>\n")


def shown(change: str, where: str = "true") -> str:
    return BEGIN + f"{{% if {where} %}}{{{{ m.content{change} }}}}{{% else %}}{{{{ m.content }}}}{{% endif %}}" + END


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<bos><user>\nHello<end>\n<assistant>\n", "drops the user's text; fix chat_template"),
        (BEGIN + "{% for part in m.content %}{{ part.words }}{% endfor %}" + END, "drops the user's text"),
        (shown(" | upper"), "changes or cuts the user's text"),
        (shown(".lower()"), "changes or cuts the user's text"),
        (shown("[:2000]"), "changes or cuts the user's text"),
        (shown(" | truncate(300)"), "changes or cuts the user's text"),
        (shown(" | e"), "changes or cuts the user's text"),
        (shown(" | tojson"), "changes or cuts the user's text"),
        (shown(".replace('\n', ' ')"), "changes or cuts the user's text"),
        (shown(".split() | join(' ')"), "changes or cuts the user's text"),
        (shown(" | title"), "changes or cuts the user's text"),
        (shown(" ~ m.content"), "repeats the user's text"),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}" + END,
            "drops the system prompt; set",
        ),
        (shown("[:20]", "m.role == 'system'"), "changes or cuts the system prompt"),
        ("{{ raise_exception('no system role') }}", r"no system role; see model\.system_prompt"),
        ("<bos>{% for m in messages %}{{ m.content }", "cannot be read"),
    ],
)
def test_a_template_that_loses_something_is_an_error(tiny: Any, template: str, message: str) -> None:
    tiny.chat_template = template
    with pytest.raises(ModelError, match=message) as caught:
        ChatFormat(tiny, system_prompt="Be brief.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<bos><user>\n{{ messages[-1].content }}<end>\n<assistant>\n", "drops the user's earlier turns"),
        (shown("[:100]", "m.role == 'assistant'"), "changes or cuts the assistant's earlier answers"),
        ("{% for m in messages | reverse %}<{{ m.role }}>\n{{ m.content }}" + END, "another order"),
    ],
)
def test_earlier_turns_are_looked_at_where_there_are_some(tiny: Any, template: str, message: str) -> None:
    tiny.chat_template = template
    chat = ChatFormat(tiny)
    assert "Hi" in chat.text("Hi")
    with pytest.raises(ModelError, match=message):
        chat.conversation_ids(TURNS)
    with pytest.raises(ModelError, match=message):
        chat.user_turn_ids(["Hi"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"enable_thinkng": False},
            r"'enable_thinkng' .* did you mean 'enable_thinking'\? \(it knows enable_thinking\)",
        ),
        ({"reasoning_effort": "low"}, r"'reasoning_effort' of model\.template_kwargs \(it knows"),
        ({"tokenize": True}, "tokenize is set by RASS itself"),
        ({"messages": []}, "messages is set by RASS itself"),
        ({"m": 1}, "does not know the keyword 'm'"),
        ({"chat_template": "tool_use"}, "has one chat template; drop chat_template"),
    ],
)
def test_an_unknown_keyword_is_an_error(tiny: Any, kwargs: dict[str, Any], message: str) -> None:
    tiny.chat_template = tiny.chat_template.replace("message", "m").replace("ms", "messages")
    with pytest.raises(ModelError, match=message):
        ChatFormat(tiny, template_kwargs=kwargs)


def test_a_keyword_that_the_template_sets_by_default_is_known(tiny: Any) -> None:
    tiny.chat_template = "{% set effort = effort | default('low') %}{{ effort }}" + tiny.chat_template
    assert ChatFormat(tiny, template_kwargs={"effort": "high"}).text("Hi").startswith("high<bos>")


def test_one_of_several_templates_is_chosen_by_name(tiny: Any) -> None:
    other = tiny.chat_template.replace("<bos>", "<bos><system>")
    tiny.chat_template = {"default": tiny.chat_template, "rag": other}
    assert ChatFormat(tiny).text("Hi").startswith("<bos><user>")
    assert ChatFormat(tiny, template_kwargs={"chat_template": "rag"}).text("Hi").startswith("<bos><system><user>")
    with pytest.raises(ModelError, match=r"none called 'rga'; set .*\{chat_template: default\} \(or rag\)"):
        ChatFormat(tiny, template_kwargs={"chat_template": "rga"})
    tiny.chat_template = {"rag": other, "tool_use": other}
    with pytest.raises(ModelError, match=r"none of them is called default; set .*chat_template: rag"):
        ChatFormat(tiny)
