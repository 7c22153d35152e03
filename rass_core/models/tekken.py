"""Mistral's own tokenizer format, `tekken.json` alone, behind what `ChatFormat` asks of any tokenizer.

The package mistral-common writes the template in code and has no template text. It renders a conversation, and
the text is read back here piece by piece: its control tokens as such, all between them as plain text.
"""

import logging
import re
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rass_core.errors import ModelError

TEMPLATE = "mistral_common"
"""Name in place of the template, which is code."""


def load_tekken(folder: Path) -> Any:
    """Return the tokenizer of a folder that has `tekken.json` and no other.

    Raises:
        ModelError: mistral-common is not installed, or cannot read the file.
    """
    if find_spec("mistral_common") is None:
        raise ModelError(
            f"{folder}: its only tokenizer is tekken.json; run `pip install mistral-common`, or put a tokenizer.json "
            "with a chat template beside it"
        )
    logging.getLogger("transformers.tokenization_mistral_common").setLevel(logging.ERROR)
    try:
        tokenizer = _tokenizer_class().from_pretrained(folder)
        tokenizer.chat_template, tokenizer.name_or_path = TEMPLATE, str(folder)
        return tokenizer
    except Exception as error:  # a broken file may raise anything
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{folder}: tekken.json cannot be read ({line}); fetch it again") from error


def _tokenizer_class() -> Any:
    from tokenizers import AddedToken
    from transformers.tokenization_mistral_common import MistralCommonBackend

    class TekkenTokenizer(MistralCommonBackend):  # type: ignore[misc]
        @cached_property
        def _control(self) -> dict[str, int]:
            """Return the text of each control token → its id."""
            return {str(self.convert_ids_to_tokens(number)): number for number in self.all_special_ids}

        @cached_property
        def _at_control(self) -> re.Pattern[str]:
            longest_first = sorted(self._control, key=len, reverse=True)
            return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

        @property
        def added_tokens_decoder(self) -> dict[int, Any]:
            return {number: AddedToken(text, special=True) for text, number in self._control.items()}

        def __call__(self, text: Any, *args: Any, split_special_tokens: bool = False, **kwargs: Any) -> Any:
            """Encode rendered text; control tokens in it are such, unless they are to be split like other text."""
            if not isinstance(text, str) or args or kwargs != {"add_special_tokens": False} or split_special_tokens:
                return super().__call__(text, *args, **kwargs)
            ids: list[int] = []
            for piece in self._at_control.split(text):
                known = self._control.get(piece)
                ids += [known] if known is not None else self._text_to_ids(piece, add_special_tokens=False)
            return {"input_ids": ids}

        def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
            """Render a conversation; a user's turn ends with the generation prompt, an answer with its end token."""
            kwargs.pop("add_generation_prompt", None)
            last = conversation[-1]
            if last["role"] != "assistant" or kwargs.get("tokenize", True):
                return super().apply_chat_template(conversation, **kwargs)
            return f"{super().apply_chat_template(conversation[:-1], **kwargs)}{last['content']}{self.eos_token}"

    return TekkenTokenizer
