"""A model's chat template, tried with made-up texts before it is given real ones."""

import difflib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from functools import cached_property
from itertools import combinations
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rass_core.errors import ModelError

Message = Mapping[str, Any]

_OWN = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now"})
"""Variables that nobody may set by template_kwargs."""
_OF_TRANSFORMERS = frozenset({
    "conversation", "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation",
    "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
})  # fmt: skip
"""Arguments of `apply_chat_template` that are no words of the template."""
_DATES = frozenset({"strftime_now", "date_string"})
_CONTENT_CHARACTERS = 24_000
"""Length of the made-up texts: above the default longest prompt, so that a template that cuts texts is detected."""
_ALTERED = "Is IT \"So\"?  9 < 7 & 'x'\n\n\tÜber 你好 {y} %s \\n <b>é</b> "
"""What templates are known to change: case, spaces, lines, quotes, what HTML and JSON escape."""
_SHOWN = {"system": "the system prompt", "user": "the user's text", "assistant": "the assistant's earlier answers"}
_WAYS_OUT = {
    "system": "set model.system_prompt: null and put its words into the prompts",
    "user": "fix chat_template in the model's folder",
    "assistant": "fix chat_template in the model's folder, or leave out what needs several turns",
}


class ChatTemplate:
    """The template of a tokenizer, with the keywords and the date that it is given.

    Contents are given as text, or as a list of parts to a template that shows them only so.

    Args:
        tokenizer: Any transformers tokenizer with a chat template, or with several that have names.
        kwargs: Given to the template. `chat_template` chooses one of several by name.
        today: What the template takes for today; None for the day on which this is made.

    Attributes:
        name: Name of the model, for messages.
        date: Date that the template gets as today; None where it asks for none.

    Raises:
        ModelError: No template, one that cannot be read, or a keyword that it does not know.
    """

    def __init__(self, tokenizer: Any, kwargs: Mapping[str, Any], today: date | None = None) -> None:
        self.name = str(getattr(tokenizer, "name_or_path", "") or "tokenizer")
        self._tokenizer, self._kwargs = tokenizer, dict(kwargs)
        self._forms: dict[tuple[str, ...], frozenset[str]] = {}
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"{self.name}: no chat template; save one with the tokenizer (chat_template.jinja), RASS measures "
                "chat models at the template's end"
            )
        self.source = self._source()
        self._check_keywords()
        reads_date = bool(self.variables & _DATES - self._kwargs.keys())
        self.date = (today or datetime.now(UTC).astimezone().date()) if reads_date else None

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads and does not set itself."""
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])
        try:
            return frozenset(meta.find_undeclared_variables(environment.parse(self.source))) - set(environment.globals)
        except TemplateError as error:
            raise ModelError(f"{self.name}: chat template cannot be read ({error}); fix chat_template") from error

    @property
    def keywords(self) -> list[str]:
        """Names that template_kwargs may set."""
        return sorted(self.variables - _OWN - set(getattr(self._tokenizer, "special_tokens_map", {})))

    def with_keyword(self, name: str, value: Any) -> "ChatTemplate":
        """Return the same template with one more keyword."""
        return ChatTemplate(self._tokenizer, {**self._kwargs, name: value}, self.date)

    def render(self, turns: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the turns in the template.

        Args:
            turns: Each with role and content.
            add_generation_prompt: Go on to where the model's answer begins.

        Raises:
            ModelError: The template refuses such a conversation, or does not show all of it, as made-up texts prove.
        """
        roles = tuple(str(turn["role"]) for turn in turns)
        key = (*roles, str(add_generation_prompt))
        if key not in self._forms:
            self._forms[key] = self._form(roles, add_generation_prompt)
        return self._rendered(turns, self._forms[key], add_generation_prompt)

    def _source(self) -> str:
        """Return the text of the template that is used."""
        given, named = self._kwargs.get("chat_template"), self._tokenizer.chat_template
        if isinstance(named, dict) and given not in named and (given or "default" not in named):
            what = f"there is none called {given!r}" if given else "none of them is called default"
            raise ModelError(
                f"{self.name}: several chat templates, and {what}; "
                f"set model.template_kwargs: {{chat_template: {sorted(named)[0]}}} (or {', '.join(sorted(named)[1:])})"
            )
        if given and not isinstance(named, dict):
            raise ModelError(f"{self.name}: has one chat template; drop chat_template from model.template_kwargs")
        return str(named[given or "default"] if isinstance(named, dict) else named)

    def _check_keywords(self) -> None:
        unknown = sorted(self._kwargs.keys() - set(self.keywords) - {"chat_template"})
        if not unknown:
            return
        if unknown[0] in _OF_TRANSFORMERS | _OWN:
            raise ModelError(f"{self.name}: model.template_kwargs: {unknown[0]} is set by RASS itself; drop it")
        near = difflib.get_close_matches(unknown[0], self.keywords, n=1)
        knows = f"it knows {', '.join(self.keywords)}" if self.keywords else "it knows none"
        raise ModelError(
            f"{self.name}: the chat template does not know the keyword {unknown[0]!r} of model.template_kwargs"
            f"{f', did you mean {near[0]!r}?' if near else ''} ({knows})"
        )

    def _form(self, roles: tuple[str, ...], add_generation_prompt: bool) -> frozenset[str]:
        """Return the roles whose content is given in parts, so that all contents are shown whole, once, in order.

        Raises:
            ModelError: There is no such form.
        """
        texts = [_made_up(number) for number in range(len(roles))]
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        present = sorted(set(roles))
        problem = None
        for n in range(len(present) + 1):
            for parted in map(frozenset, combinations(present, n)):
                try:
                    why = _problem(self._rendered(turns, parted, add_generation_prompt), roles, texts)
                except ModelError as error:
                    problem = problem or error
                    continue
                if why is None:
                    return parted
                if n == 0:
                    problem = ModelError(f"{self.name}: the chat template {why}")
        raise problem or ModelError(f"{self.name}: the chat template shows no message")

    def _rendered(self, turns: Sequence[Message], parted: frozenset[str], add_generation_prompt: bool) -> str:
        given = [
            {**turn, "content": [{"type": "text", "text": turn["content"]}]} if turn["role"] in parted else dict(turn)
            for turn in turns
        ]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    given, tokenize=False, add_generation_prompt=add_generation_prompt, **self._today(), **self._kwargs
                )
            )
        except Exception as error:  # a template may raise anything, jinja's own errors too
            raise ModelError(
                f"{self.name}: chat template: {error}; see model.system_prompt and model.template_kwargs"
            ) from error

    def _today(self) -> dict[str, Any]:
        """Return the date that the template gets as today."""
        if self.date is None:
            return {}
        midnight = datetime.combine(self.date, time())
        told = {"strftime_now": midnight.strftime, "date_string": f"{midnight:%d %b %Y}"}
        return {name: value for name, value in told.items() if name in self.variables - self._kwargs.keys()}


def _made_up(number: int) -> str:
    """Return a text that is like no other, and that a template which alters texts will alter."""
    filling = "word " * (_CONTENT_CHARACTERS // 5)
    return f"Begin{number}q {_ALTERED}{filling}End{number}q."


def _problem(rendered: str, roles: Sequence[str], texts: Sequence[str]) -> str | None:
    """Say what a template does not show as it should, None where all is right."""
    folded = rendered.lower()
    turns = list(enumerate(zip(roles, texts, strict=True)))
    for number, (role, text) in sorted(turns, key=lambda turn: turn[1][0] != "user"):  # the worst first
        n = rendered.count(text)
        if n == 1:
            continue
        is_earlier = role == "user" and number < len(roles) - 1
        what = "the user's earlier turns" if is_earlier else _SHOWN.get(role, role)
        does = "drops" if f"begin{number}q" not in folded else "repeats" if n else "changes or cuts"
        return f"{does} {what}; {_WAYS_OUT['assistant' if is_earlier else role]}"
    # The system prompt may stand anywhere, such as in the last user's turn.
    places = [rendered.index(text) for role, text in zip(roles, texts, strict=True) if role != "system"]
    return None if places == sorted(places) else f"puts the turns in another order; {_WAYS_OUT['assistant']}"


class _Generation(Extension):
    """The tag `generation` of transformers, which marks the assistant's words."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))
