"""From a prompt to the tokens a chat model sees, and from the tokens it writes to what its reader sees."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any

from rass_core.errors import ModelError, PromptError
from rass_core.models.loading import load_tokenizer
from rass_core.models.settings import ModelConfig
from rass_core.models.templates import ChatTemplate
from rass_core.models.thinking import ThinkingSplit, closing_of, ends_inside, is_harmony_token, is_mark_token, split

SHORT_ANSWER = "OK."
"""What the assistant said to earlier requests where only the requests matter."""
_SENTINEL = "wordsoftheuser"
_PROBES = ("alpha", "9 7 5 3", "Is it so?", "x\ny")
_THINKING_KEYWORDS = ("enable_thinking", "thinking", "enable_reasoning", "reasoning", "think", "use_thinking")
"""Keywords by which templates are known to turn thinking off."""
_BREAK = "\ufdd0"
"""A code point that is no character: inside the text of a control token it keeps the text from becoming that token."""


class ChatFormat:
    """One model's chat template, with the system prompt and thinking block of the config.

    What users and models wrote never becomes a control token: such words are encoded as plain text.

    Args:
        tokenizer: Any transformers tokenizer with a chat template.
        system_prompt: Put before every prompt; None for none.
        template_kwargs: Passed to the template, such as {"enable_thinking": False}.
        response_prefix: Text that opens every answer, such as an empty thinking block; it counts
            as part of the template, so that positions lie where the visible answer begins.
        thinking_marks: Opening and closing marks of thinking beside the known ones.
        today: What the template takes for today, where it asks; None for the day on which this is made.

    Attributes:
        template: The chat template; `template.date` is the date that it gets, None if it asks for none.
        opens_thinking: Mark with which the prompt opens thinking and leaves it open; None where it does not.

    Raises:
        ModelError: No chat template, one that drops or alters the user's text or the system prompt or
            does not know a keyword, or one that leaves no common ending.
    """

    def __init__(
        self,
        tokenizer: Any,
        system_prompt: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        response_prefix: str = "",
        thinking_marks: Sequence[tuple[str, str]] = (),
        today: date | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})
        self.response_prefix = response_prefix
        self.thinking_marks = tuple((opening, closing) for opening, closing in thinking_marks)
        self.template = ChatTemplate(tokenizer, self.template_kwargs, today)
        self.opens_thinking = ends_inside(self._around_user_words(())[1], self.thinking_marks)
        self.n_end_positions = self._common_ending()

    @classmethod
    def configured(cls, tokenizer: Any, model: Any) -> "ChatFormat":
        """Return the format of a `ModelConfig`, whose template may open thinking only where that is allowed.

        Raises:
            ModelError: As the class itself, or the template opens thinking; the message says what to set.
        """
        chat = cls(
            tokenizer,
            model.system_prompt,
            model.template_kwargs,
            model.response_prefix,
            model.thinking_marks,
            model.date,
        )
        if chat.opens_thinking is not None and not model.allow_thinking:
            raise ModelError(
                f"{model.name}: every prompt ends inside thinking ({chat.opens_thinking}), so that thoughts would be "
                f"measured and answers cut off; set {chat._way_out_of_thinking()}, or model.allow_thinking: true and "
                "longer answers (probe.max_new_tokens)"
            )
        return chat

    def without_system_prompt(self) -> "ChatFormat":
        """Return the same format without a system prompt of its own."""
        return ChatFormat(
            self.tokenizer, None, self.template_kwargs, self.response_prefix, self.thinking_marks, self.template.date
        )

    def text(self, prompt: str) -> str:
        """Return the prompt in the template, up to where the model's answer begins."""
        return self.conversation_text(_alone(prompt))

    def ids(self, prompt: str) -> list[int]:
        """Return the token ids of `text(prompt)`; the template writes its own special tokens."""
        return self.conversation_ids(_alone(prompt))

    def conversation_text(self, messages: Sequence[Mapping[str, str]], response_prefix: str = "") -> str:
        """Return a conversation in the template, up to where the model's answer begins or continues.

        Args:
            messages: Each with role (user, assistant; first perhaps system) and content, the user's last.
            response_prefix: Words put into the model's mouth, after the format's own prefix. The answer
                is what follows them; it is to be judged with them before it.

        Raises:
            PromptError: No message, the last one not the user's, or another role or key.
            ModelError: The template refuses the conversation.
        """
        return _whole(self.guarded_conversation(messages)) + response_prefix

    def conversation_ids(self, messages: Sequence[Mapping[str, str]], response_prefix: str = "") -> list[int]:
        """Return the token ids of `conversation_text(messages, response_prefix)`.

        What the messages hold of control tokens is plain text. An ordinary conversation is encoded in one piece.

        Raises:
            PromptError: As conversation_text, or a control token that the tokenizer cannot write as plain text.
        """
        return self.guarded_ids(self.guarded_conversation(messages) + response_prefix)

    def guarded_conversation(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return a conversation in the template for `guarded_ids`, its texts guarded.

        Raises:
            PromptError, ModelError: As `conversation_text`.
        """
        turns = [{**turn, "content": self.guarded(turn["content"])} for turn in _checked_messages(messages)]
        if self.system_prompt is not None:
            if turns[0]["role"] == "system":
                raise PromptError("messages: a system message, and one in model.system_prompt; drop one of the two")
            turns.insert(0, {"role": "system", "content": self.system_prompt})
        return self.template.render(turns) + self.response_prefix

    def guarded(self, text: str) -> str:
        """Return a text with a break in the words of every control token, which keeps them plain text."""
        text = text.replace(_BREAK, "")
        return self._control_words.sub(lambda found: f"{found.group()[0]}{_BREAK}{found.group()[1:]}", text)

    def guarded_ids(self, text: str) -> list[int]:
        """Return the token ids of a rendered text; breaks leave none.

        Raises:
            PromptError: A control token that the tokenizer cannot write as plain text.
        """
        if _BREAK not in text:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not getattr(self.tokenizer, "is_fast", False):
            raise PromptError(f"{self.template.name}: a slow tokenizer cannot write control tokens as text; drop them")
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        covered = [text[start:end] for start, end in encoded["offset_mapping"]]
        kept = [token for token, part in zip(encoded["input_ids"], covered, strict=True) if _BREAK not in part]
        harmless = self.tokenizer(self._broken_words.sub("x", text), add_special_tokens=False)["input_ids"]
        is_torn = any(part.strip(_BREAK) for part in covered if _BREAK in part)
        if is_torn or self._n_control(kept) != self._n_control(harmless):
            words = ", ".join(sorted(set(self._broken_words.findall(text)))).replace(_BREAK, "")
            raise PromptError(f"{self.template.name}: cannot encode {words} as plain text; drop prompts that hold it")
        return kept

    def has_control_tokens(self, text: str) -> bool:
        """Return whether a text, as typed by a user, holds the words of a control token."""
        return self._control_words.search(text) is not None

    def user_turn_ids(self, earlier: Sequence[str] = (), opening: str = "") -> list[int]:
        """Return the token ids of the template up to where the user's words begin or go on.

        A chat model that continues them writes what a user would say (Magpie, arXiv 2406.08464).

        Args:
            earlier: Requests that the user made before, each answered by `SHORT_ANSWER`.
            opening: First words of the request that is to be written.

        Raises:
            ModelError: The template refuses such a conversation, or does not show all of it.
        """
        before, _ = self._around_user_words(earlier)
        return self.guarded_ids(before + self.guarded(opening))

    @cached_property
    def user_end_ids(self) -> tuple[int, ...]:
        """Return the token that the template puts behind the user's words, () where it is no special one."""
        _, after = self._around_user_words(())
        first = self.tokenizer(after, add_special_tokens=False)["input_ids"][:1]
        return tuple(token for token in first if token in set(self.tokenizer.all_special_ids) | self._control_ids)

    def completion(self, token_ids: Sequence[int], text: str | None = None, is_answer: bool = True) -> ThinkingSplit:
        """Take apart what the model wrote: its thinking, and what a user would see.

        Marks that are special tokens are read; of the others only the words count.

        Args:
            token_ids: As generated, with what ended it.
            text: The same without special tokens, where it is known already.
            is_answer: It follows the template's end; False for a prompt that the model continues.
        """
        opened = self.opens_thinking if is_answer else None
        plain = self.tokenizer.decode(token_ids, skip_special_tokens=True) if text is None else text
        if not self._mark_ids.intersection(token_ids):
            return split(plain, opened, self.thinking_marks)
        kept = [token for token in token_ids if token not in self._control_ids or token in self._mark_ids]
        marked = self.tokenizer.decode(kept, skip_special_tokens=False)
        found = split(marked, opened, self.thinking_marks)
        if found.visible == marked:  # marks of an answer that came without thinking
            return ThinkingSplit("", plain, False)
        return ThinkingSplit(
            self._special_words.sub("", found.thinking), self._special_words.sub("", found.visible), found.is_cut_off
        )

    def thinking_note(self, max_new_tokens: int) -> str | None:
        """Say where answers of so many tokens may end before the thinking does, None where nothing speaks for it."""
        advice = f"answers that {max_new_tokens} tokens cut off in thinking are unscored"
        if self.opens_thinking is not None:
            return f"every prompt ends inside thinking ({self.opens_thinking}); {advice}, raise probe.max_new_tokens"
        _, ending = self._around_user_words(())
        if split(ending, None, self.thinking_marks).visible != ending:  # it closes thinking
            return None
        if "<|channel|>" in self.template.source:
            prefix = json.dumps("<|channel|>final<|message|>")
            return f"the model writes channels and thinks first; {advice}, set model.response_prefix: {prefix}"
        for name in self._off_keywords():
            without = self.template.with_keyword(name, False).render(_alone(_SENTINEL))
            if without != self.template.render(_alone(_SENTINEL)):
                way = f"model.template_kwargs: {{{name}: false}}"
                return f"the model may think before it answers; {advice}, set {way} or raise probe.max_new_tokens"
        return None

    def notes(self, max_new_tokens: int, prompts: Iterable[str]) -> dict[str, str]:
        """Return what whoever starts a run should know: of thinking, of control tokens in prompts, of the date.

        Args:
            max_new_tokens: Length of an answer that is only to be judged.
            prompts: What users say.
        """
        n_typed, n_prompts = 0, 0
        for prompt in prompts:
            n_typed, n_prompts = n_typed + self.has_control_tokens(prompt), n_prompts + 1
        found = {
            "thinking": self.thinking_note(max_new_tokens),
            "control tokens": f"{n_typed:,} of {n_prompts:,} prompts hold some; they are encoded as plain text",
            "date": f"the template uses {self.template.date} as today's date; model.date sets another",
        }
        without = {"control tokens"} if not n_typed else set()
        without |= {"date"} if self.template.date is None else set()
        return {what: note for what, note in found.items() if note is not None and what not in without}

    def _way_out_of_thinking(self) -> str:
        """Return the setting under which prompts do not end inside thinking."""
        for name in self._off_keywords():
            ending = self.template.with_keyword(name, False).render(_alone(_SENTINEL)).rpartition(_SENTINEL)[2]
            if ends_inside(ending + self.response_prefix, self.thinking_marks) is None:
                return f"model.template_kwargs: {{{name}: false}}"
        closing = closing_of(str(self.opens_thinking), self.thinking_marks)
        if closing is None:
            return "model.response_prefix to what ends the thinking"
        prefix = json.dumps(f"{self.response_prefix}\n{closing}\n\n", ensure_ascii=False)
        return f"model.response_prefix: {prefix}"

    def _off_keywords(self) -> list[str]:
        known = set(self.template.keywords) - self.template_kwargs.keys()
        return [name for name in _THINKING_KEYWORDS if name in known]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {number for number, token in added.items() if token.special}
        return frozenset(special | set(self.tokenizer.all_special_ids))

    @cached_property
    def _special(self) -> dict[int, str]:
        """Special tokens, by id."""
        ids = sorted(self._control_ids)
        return dict(zip(ids, map(str, self.tokenizer.convert_ids_to_tokens(ids)), strict=True))

    @cached_property
    def _mark_ids(self) -> frozenset[int]:
        """Special tokens that are marks of thinking; what ends a channel is one only where there are channels."""
        has_channels = "<|channel|>" in self._special.values()
        return frozenset(
            number
            for number, token in self._special.items()
            if is_mark_token(token, self.thinking_marks) and (has_channels or not is_harmony_token(token))
        )

    @cached_property
    def _special_words(self) -> re.Pattern[str]:
        return _any_of(self._special.values())

    @cached_property
    def _control(self) -> list[str]:
        """Words of tokens that the template or the model's makers use for control.

        Not those of tokens such as `<b>` or four spaces, which are there for what users write.
        """
        added = {str(token) for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values()}
        control = {
            token
            for token in added
            if re.fullmatch(r"<\|.*\|>", token)
            or is_mark_token(token, self.thinking_marks)
            or (re.fullmatch(r"\W.*[^\W\d_].*\W", token) and token in self.template.source)
        }
        return sorted(word for word in {*control, *self._special.values()} if len(word) > 1)

    @cached_property
    def _control_words(self) -> re.Pattern[str]:
        return _any_of(self._control)

    @cached_property
    def _broken_words(self) -> re.Pattern[str]:
        return _any_of(f"{word[0]}{_BREAK}{word[1:]}" for word in self._control)

    def _n_control(self, ids: Sequence[int]) -> int:
        control = self._control_ids.union(self.tokenizer.convert_tokens_to_ids(self._control))
        return sum(token in control for token in ids)

    def _around_user_words(self, earlier: Sequence[str]) -> tuple[str, str]:
        """Return what the template writes before and after the words of the last user's turn."""
        turns: list[dict[str, str]] = []
        for text in earlier:
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": SHORT_ANSWER}]
        before, _, after = self.guarded_conversation([*turns, *_alone(_SENTINEL)]).rpartition(_SENTINEL)
        return before, after

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer, as they follow the template."""
        return self.guarded_ids(self.guarded(answer))

    def positions(self) -> list[int]:
        """Return the end-of-instruction positions, -n … -1."""
        return list(range(-self.n_end_positions, 0))

    def _common_ending(self) -> int:
        """Count the last tokens that every prompt shares: the end of the template."""
        endings = [self.ids(probe)[::-1] for probe in _PROBES]
        n_common = 0
        for tokens in zip(*endings, strict=False):
            if len(set(tokens)) > 1:
                break
            n_common += 1
        if n_common == 0:
            raise ModelError("chat template: two prompts share no last token; add a generation prompt to it")
        return min(n_common, min(map(len, endings)) - 1)


def _alone(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _whole(text: str) -> str:
    return text.replace(_BREAK, "")


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Return what finds any of the words, of two that begin alike the longer one."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")


def _checked_messages(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return a copy of the messages, or raise PromptError where they are no request to a chat model."""
    for i, message in enumerate(messages):
        roles = ("system", "user", "assistant") if i == 0 else ("user", "assistant")
        if message.keys() != {"role", "content"} or message["role"] not in roles:
            raise PromptError(
                f"messages: number {i} has keys {sorted(message)} and role {message.get('role')!r}; "
                f"give role ({', '.join(roles)}) and content"
            )
    if not messages or messages[-1]["role"] != "user":
        raise PromptError("messages: the last one must be the user's, which the model answers; add it")
    return [dict(message) for message in messages]


def check_length(ids: Sequence[int], max_length: int, what: str) -> None:
    """Raise ModelError where a prompt does not fit the model."""
    if len(ids) > max_length:
        raise ModelError(f"{what}: {len(ids)} tokens, the model takes {max_length}; shorten or drop it")


def chat_of(model: ModelConfig) -> ChatFormat:
    """Return the chat format of a model without loading its weights.

    Raises:
        ModelError: No tokenizer, no chat template, or one that cannot be used so.
    """
    return ChatFormat.configured(load_tokenizer(model.reference), model)
