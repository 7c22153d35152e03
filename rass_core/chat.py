"""From a prompt to the tokens a chat model sees, and where the instruction ends."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from rass_core.errors import ModelError, PromptError

SHORT_ANSWER = "OK."
"""What the assistant said to earlier requests where only the requests matter."""
_SENTINEL = "wordsoftheuser"
_PROBES = ("alpha", "9 7 5 3", "Is it so?", "x\ny")


class ChatFormat:
    """One model's chat template, with the system prompt and thinking block of the config.

    Args:
        tokenizer: Any transformers tokenizer with a chat template.
        system_prompt: Put before every prompt; None for none.
        template_kwargs: Passed to the template, such as {"enable_thinking": False}.
        response_prefix: Text that opens every answer, such as an empty thinking block; it counts
            as part of the template, so that positions lie where the visible answer begins.

    Raises:
        ModelError: No chat template, or one that leaves no common ending.
    """

    def __init__(
        self,
        tokenizer: Any,
        system_prompt: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        response_prefix: str = "",
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"{getattr(tokenizer, 'name_or_path', 'tokenizer')}: no chat template; save one with the "
                "tokenizer (chat_template.jinja), RASS measures chat models at the template's end"
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})
        self.response_prefix = response_prefix
        self.n_end_positions = self._common_ending()

    def text(self, prompt: str) -> str:
        """Return the prompt in the template, up to where the model's answer begins."""
        return self.conversation_text([{"role": "user", "content": prompt}])

    def ids(self, prompt: str) -> list[int]:
        """Return the token ids of `text(prompt)`; the template writes its own special tokens."""
        return self.conversation_ids([{"role": "user", "content": prompt}])

    def conversation_text(self, messages: Sequence[Mapping[str, str]], response_prefix: str = "") -> str:
        """Return a conversation in the template, up to where the model's answer begins or goes on.

        Args:
            messages: Each with role (user, assistant; first perhaps system) and content, the user's last.
            response_prefix: Words put into the model's mouth, after the format's own prefix. The answer
                is what follows them; it is to be judged with them before it.

        Raises:
            PromptError: No message, the last one not the user's, or another role or key.
            ModelError: The template refuses the conversation.
        """
        turns = _checked_messages(messages)
        if self.system_prompt is not None:
            if turns[0]["role"] == "system":
                raise PromptError("messages: a system message, and one in model.system_prompt; drop one of the two")
            turns.insert(0, {"role": "system", "content": self.system_prompt})
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **self.template_kwargs
            )
        except Exception as error:  # a template may raise anything, jinja's own errors too
            raise ModelError(f"chat template: {error}; see model.system_prompt and model.template_kwargs") from error
        return str(rendered) + self.response_prefix + response_prefix

    def conversation_ids(self, messages: Sequence[Mapping[str, str]], response_prefix: str = "") -> list[int]:
        """Return the token ids of `conversation_text(messages, response_prefix)`."""
        text = self.conversation_text(messages, response_prefix)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def user_turn_ids(self, earlier: Sequence[str] = (), opening: str = "") -> list[int]:
        """Return the token ids of the template up to where the user's words begin or go on.

        A chat model that continues them writes what a user would say (Magpie, arXiv 2406.08464).

        Args:
            earlier: Requests that the user made before, each answered by `SHORT_ANSWER`.
            opening: First words of the request that is to be written.

        Raises:
            ModelError: The template refuses such a conversation, or does not show the user's words.
        """
        before, _ = self._around_user_words(earlier)
        return list(self.tokenizer(before + opening, add_special_tokens=False)["input_ids"])

    @cached_property
    def user_end_ids(self) -> tuple[int, ...]:
        """Return the token that the template puts behind the user's words, () where it is no special one."""
        _, after = self._around_user_words(())
        first = self.tokenizer(after, add_special_tokens=False)["input_ids"][:1]
        return tuple(token for token in first if token in set(self.tokenizer.all_special_ids) | self._control_ids)

    @cached_property
    def _control_ids(self) -> set[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {number for number, token in added.items() if token.special}

    def _around_user_words(self, earlier: Sequence[str]) -> tuple[str, str]:
        """Return what the template writes before and after the words of the last user's turn."""
        turns: list[dict[str, str]] = []
        for text in earlier:
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": SHORT_ANSWER}]
        rendered = self.conversation_text([*turns, {"role": "user", "content": _SENTINEL}])
        before, found, after = rendered.rpartition(_SENTINEL)
        if not found:
            raise ModelError("chat template: it does not show the user's words; change the template")
        return before, after

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer, as they follow the template."""
        return list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])

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
