"""What the cells of a row say: the text of a prompt or conversation, its label, its other values as plain text."""

import ast
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from rass_core.errors import PromptError
from rass_core.vocabulary import LABELS

CHAT_COLUMNS = ("messages", "conversation", "conversations")
"""Read where there is no column `text` and none is named."""

_USERS = ("user", "human", "prompter")
_OUTER = " \t\r\n\f\v\u00a0\u3000\u200b\u2060\ufeff\u00ad"
"""Stripped at both ends: white space, and what shows nothing and means nothing there."""
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)
"""Characters that show nothing and are neither space nor format: fillers, joiners, variation selectors."""
_SAID = {
    "harmless": (
        "safe", "benign", "harmless", "0", "false", "no", "ok", "good", "non_toxic", "acceptable", "normal",
        "not_harmful", "non_harmful", "nonharmful", "not_toxic", "nontoxic", "non_jailbreak",
    ),
    "harmful": ("unsafe", "toxic", "harmful", "1", "true", "yes", "bad", "malicious", "jailbreak", "dangerous"),
    "pseudo_harmful": (
        "over_refusal", "overrefusal", "borderline", "pseudo", "pseudoharmful", "seemingly_harmful", "or_bench",
    ),
}  # fmt: skip
"""What others' labels may mean; only ever proposed."""


class Said(NamedTuple):
    """The text of a cell."""

    text: str | None
    """NFC, outer white space stripped; None for a null, empty where nothing is to be seen."""
    has_earlier: bool = False
    """Turns of a conversation came before it and are left out."""


def text_of(value: object, max_characters: int, place: str) -> Said:
    """Return the prompt of a cell; of a conversation, the last turn of the user.

    Args:
        value: A text, or turns as {role, content} or {from, value}, also written as JSON.
        max_characters: Longest prompt.
        place: Named in the errors.

    Raises:
        PromptError: Neither, no turn of a user, half a surrogate pair, a NUL character, or a text too long.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Said(None)
    has_earlier = False
    turns = _turns_in(value)
    if turns is not None:
        value, has_earlier = _last_of_user(turns, place)
    if not isinstance(value, str):
        raise PromptError(f"{place}: the text is of type {type(value).__name__}; name the text_column")
    check_characters(value, "the text", place)
    text = unicodedata.normalize("NFC", value).strip().strip(_OUTER)
    if not any(map(_shows, text)):
        return Said("")
    if len(text) > max_characters:
        raise PromptError(
            f"{place}: {len(text)} characters, more than max_characters {max_characters}; shorten or drop it, or "
            "raise prompts.max_characters"
        )
    return Said(text, has_earlier)


def plain(value: object, column: str, place: str) -> str | None:
    """Return a value as text: 1 for 1.0, true for True, a list's values with commas; None for null, NaN and empty.

    Raises:
        PromptError: An object, bytes, or half a surrogate pair.
    """
    if isinstance(value, list):
        return ", ".join(said for each in value if (said := plain(each, column, place)) is not None) or None
    if isinstance(value, dict | bytes | tuple):
        raise PromptError(f"{place}: {column!r} is of type {type(value).__name__}; name a column of plain values")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip().strip(_OUTER)
    check_characters(text, repr(column), place)
    return text or None


def check_characters(text: str, what: str, place: str) -> None:
    """Raise where a text holds what no file may: half a surrogate pair or NUL.

    Raises:
        PromptError: Naming the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{place}: half a surrogate pair in {what}; fix the file") from error
    if "\0" in text:
        raise PromptError(f"{place}: a NUL character in {what}; fix the file")


def class_name(value: Any, names: Sequence[str] | None) -> Any:
    """Return the name of the class with this number; -1 is no class."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if names is None or not is_number or value != int(value) or value >= len(names):
        return value
    return names[int(value)] if value >= 0 else None


def key(value: str | None) -> str:
    """Return a value of a file as `label_map` and `where` compare it: whatever its case, 1 for 1.0, empty for none."""
    text = (value or "").casefold()
    return re.sub(r"\A(-?\d+)\.0+\Z", r"\1", text)


def label_of(forms: Iterable[str | None], label_map: Mapping[str, str | None]) -> str | None:
    """Return the true label that a cell says; None where the map leaves the row out.

    Args:
        forms: The value of the cell, and of a class its number too.
        label_map: Keys as `key` returns them; it has precedence over the labels' own names.

    Raises:
        KeyError: None of them is a label.
    """
    forms = list(forms)
    for form in forms:
        if key(form) in label_map:
            return label_map[key(form)]
    for form in forms:
        if (label := key(form).replace("-", "_").replace(" ", "_")) in LABELS:
            return label
    raise KeyError(forms[0])


def proposed_map(values: Iterable[str | None]) -> str:
    """Return a label_map for values in one line of YAML; null where no label can be guessed."""
    proposal = {value or "": _guess(value or "") for value in values}
    shown = yaml.safe_dump(proposal, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return str(shown).strip().replace("? '' :", "'':")


def _guess(value: str) -> str | None:
    word = key(value).replace("-", "_").replace(" ", "_")
    return next((label for label, said in _SAID.items() if word in said), None)


def _shows(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CZ" and character not in _BLANK


def _turns_in(value: object) -> list[dict[str, Any]] | None:
    """Return the turns of a conversation; None where the value is none."""
    if isinstance(value, str):
        start = value.lstrip()[:2]
        value = _parsed(value) if start[:1] in "[{" and start else None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        return None
    is_chat = all(("role" in each and "content" in each) or ("from" in each and "value" in each) for each in value)
    return value if is_chat else None


def _parsed(text: str) -> object:
    """Return the value of a text that is JSON, or Python as `str` writes it; None if it is neither."""
    if not ("role" in text and "content" in text) and not ("from" in text and "value" in text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _last_of_user(turns: Sequence[dict[str, Any]], place: str) -> tuple[object, bool]:
    """Return the content of the user's last turn, and whether the user or the model spoke before."""
    roles = [str(turn.get("role", turn.get("from"))).strip().casefold() for turn in turns]
    last = max((i for i, role in enumerate(roles) if role in _USERS), default=None)
    if last is None:
        raise PromptError(f"{place}: no turn of a user among {', '.join(dict.fromkeys(roles))}; name another column")
    content = turns[last].get("content", turns[last].get("value"))
    return ("" if content is None else _parts_text(content, place)), last > 0


def _parts_text(content: object, place: str) -> object:
    """Return the text of a turn that may be given in parts."""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type", "object") if isinstance(part, dict) else type(part).__name__
            raise PromptError(f"{place}: a part of the turn is of type {kind}, not text; leave the row out")
        texts.append(text)
    return "\n".join(texts)
