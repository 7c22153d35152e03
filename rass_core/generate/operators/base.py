"""What an operator is, and the registry of operators.

An operator is a class in a file of its own: what may go into a new prompt, in which roles the generator can write it,
and how the generator is asked, by language. `rass_core.generate.operators` holds the built-in ones; a user's own is
named `package.module:Class` in `generate.operators`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel

from rass_core.errors import ConfigError
from rass_core.languages.tags import english_name, lookup
from rass_core.registry import Registry
from rass_core.settings import STRICT
from rass_core.vocabulary import LABELS

Role = Literal["assistant", "prefilled", "user"]
ROLES: tuple[Role, ...] = get_args(Role)
"""assistant: an instruction asks the model for a prompt. prefilled: the same, and its answer is begun for it. user: it
writes in the user's turn of its own template, after parents as earlier turns or after a parent's first words."""
Steered = Literal["none", "probe", "harm", "harm_without_refusal", "harm_ablating_refusal", "content", "refusal"]
STEERINGS: tuple[Steered, ...] = get_args(Steered)
"""What is added while the model writes. probe: the direction that the probe chose to add. harm: harmful − harmless at
the template's end. harm_without_refusal: the same, orthogonal to the refusal direction. harm_ablating_refusal: harm,
with the refusal direction ablated in all blocks. content: harmful − harmless at the last words of the request.
refusal: refused − answered at equal label."""
SLOTS = "abcdefgh"
"""Letters of the slots in an instruction: {a} is the first parent."""


class OperatorSettings(BaseModel):
    """An operator has no settings; its class says all."""

    model_config = STRICT


OPERATORS = Registry("operator", ["rass_core.generate.operators"], OperatorSettings)


class Operator:
    """One way to make a new prompt from others.

    A subclass sets what differs:

        class Paraphrase(Operator):
            instructions = {"en": "Say this in other words. Write only the request: {a}"}
    """

    n_parents: ClassVar[int] = 1
    """How many prompts go into a new one."""
    seed_labels: ClassVar[tuple[str, ...]] = ("pseudo_harmful",)
    """Labels of the given prompts that it starts from."""
    takes_survivors: ClassVar[bool] = True
    """It also starts from benign prompts that earlier rounds wrote near the boundary."""
    shares_category: ClassVar[bool] = False
    """Its parents are all of one category."""
    crosses_languages: ClassVar[bool] = False
    """Its parents are in any language but that of the new prompt; else all are in that one."""
    roles: ClassVar[tuple[Role, ...]] = ("assistant", "prefilled")
    """Roles in which the generator can write it."""
    instructions: ClassVar[Mapping[str, str]] = {}
    """Language of the new prompt → what the generator is asked as an assistant, with a slot for each parent: {a}, {b},
    … English is required: a language without an instruction takes the English one, which then names the language."""
    prefixes: ClassVar[Mapping[str, str]] = {
        "en": 'Here is the request: "', "de": "Hier ist die Bitte: „", "es": "Aquí está la petición: «",
        "fr": "Voici la demande : « ", "zh": "请求如下：「", "zh-Hant": "請求如下：「",
    }  # fmt: skip
    """Language of the new prompt → how the answer begins in role prefilled; other languages take the English one."""

    @property
    def is_instructed(self) -> bool:
        """Return whether the generator is asked by an instruction."""
        return "assistant" in self.roles or "prefilled" in self.roles

    @property
    def has_earlier_turns(self) -> bool:
        """Return whether it may show parents as earlier turns of the chat."""
        return "user" in self.roles and bool(self.user_turn([""] * self.n_parents, 0)[0])

    def instruction(self, language: str, parents: Sequence[str], own: Mapping[str, str] | None = None) -> str:
        """Return what the generator is asked, in the language of the prompt that it shall write.

        A narrower tag takes its script's or language's instruction: zh-TW that of zh-Hant, zh-CN that of zh.

        Args:
            language: BCP-47 tag of the new prompt.
            parents: At least `n_parents` texts.
            own: Language → instruction, in place of the operator's.
        """
        known = {**self.instructions, **(own or {})}
        template = lookup(known, language)
        if template is None:
            name = english_name(language)
            english = known["en"].replace("into English", f"into {name}")
            template = english.replace("Write only", f"Write in {name}, and only")
            if name not in template:
                template = f"Write in {name}. {template}"
        # Parents are untrusted and may hold braces themselves: filled in one pass, never formatted.
        fill = dict(zip(SLOTS, parents, strict=False)) | ({"b": parents[0]} if len(parents) == 1 else {})
        return re.sub(rf"\{{([{SLOTS}])\}}", lambda slot: fill.get(slot.group(1), slot.group(0)), template)

    def user_turn(self, parents: Sequence[str], seed: int) -> tuple[list[str], str]:
        """Return what comes before the generator's words: the earlier requests, and the first words of the new one.

        Args:
            parents: Texts, as many as the operator takes.
            seed: Seed of random choices.
        """
        return list(parents), ""

    def answer_prefix(self, role: str, language: str) -> str:
        """Return the words with which the answer begins in a role, "" where it begins by itself."""
        if role != "prefilled":
            return ""
        return lookup(self.prefixes, language) or self.prefixes["en"]


@cache
def operator_of(name: str) -> Operator:
    """Return an operator.

    Args:
        name: Name of a built-in operator, or `package.module:Class`.

    Raises:
        ConfigError: No such operator, or a class that cannot be used as one.
    """
    build: Any = OPERATORS.find(name).build
    if not (isinstance(build, type) and issubclass(build, Operator)):
        raise ConfigError(f"operator {name!r}: not an operator; extend rass_core.generate.operators.Operator")
    operator = build()
    problem = _problem(operator)
    if problem is not None:
        raise ConfigError(f"operator {name!r}: {problem}")
    return operator


def instruction(
    operator: str, language: str, parents: Sequence[str], overrides: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """Return what the generator is asked for an operator.

    Args:
        operator: Its name.
        language: BCP-47 tag of the new prompt.
        parents: Texts, as many as the operator takes.
        overrides: operator → language → instruction, in place of its own.

    Raises:
        ConfigError: An unknown operator, one without an instruction, or too few parents for it.
    """
    found = operator_of(operator)
    if not found.is_instructed:
        raise ConfigError(f"operator {operator!r}: has no instruction; it writes in role {' or '.join(found.roles)}")
    if len(parents) < found.n_parents:
        raise ConfigError(f"operator {operator}: needs {found.n_parents} parents, got {len(parents)}")
    return found.instruction(language, parents, (overrides or {}).get(operator))


def missing_slot(operator: Operator, text: str) -> str | None:
    """Return the first slot that an instruction lacks, such as {a}; None where it has one for each parent."""
    slots = ("{" + letter + "}" for letter in SLOTS[: operator.n_parents])
    return next((slot for slot in slots if slot not in text), None)


def _problem(operator: Operator) -> str | None:
    """Return why an operator cannot be used, and what to do; None where it can."""
    if not 1 <= operator.n_parents <= len(SLOTS):
        return f"n_parents is {operator.n_parents}; write 1 to {len(SLOTS)}"
    unknown = [each for each in operator.seed_labels if each not in LABELS]
    if unknown or not (operator.seed_labels or operator.takes_survivors):
        return f"seed_labels is {operator.seed_labels!r}; name some of {', '.join(LABELS)}"
    if not operator.roles or not set(operator.roles) <= set(ROLES):
        return f"roles is {operator.roles!r}; name some of {', '.join(ROLES)}"
    if not operator.is_instructed:
        return None
    if "en" not in operator.instructions:
        return "has no English instruction; add one under 'en'"
    for language, text in operator.instructions.items():
        slot = missing_slot(operator, text)
        if slot is not None:
            return f"its instruction in {language} has no {slot}, where the prompt is put in"
    return None
