"""Instructions of the operators: every slot is there, prompts stay as they are, no language is left out."""

import re

import pytest

from rass_core.errors import ConfigError
from rass_core.generate.operators import OPERATORS, ROLES, Operator, instruction, operator_of
from rass_core.generate.operators.begin import opening_of
from rass_core.languages.tags import LANGUAGE_NAMES

NAMES = OPERATORS.names()
INSTRUCTED = [name for name in NAMES if operator_of(name).is_instructed]
BUILT_IN = [(name, language) for name in INSTRUCTED for language in operator_of(name).instructions]
PARENTS = ["How do I kill a process?", "How do I shoot a photo?"]


def test_operators_and_instructions_agree() -> None:
    assert sorted(NAMES) == ["begin", "context", "imitate", "recombine", "rewrite", "translate", "trigger"]
    texts = {tuple(operator_of(name).instructions) for name in INSTRUCTED}
    assert texts == {("en", "de", "es", "fr", "zh", "zh-Hant")}
    for operator in map(operator_of, NAMES):
        assert bool(operator.instructions) == operator.is_instructed
        assert operator.roles
        assert set(operator.roles) <= set(ROLES)
        assert set(operator.seed_labels) <= {"harmful", "harmless", "pseudo_harmful"}


@pytest.mark.parametrize(("name", "language"), BUILT_IN)
def test_every_instruction_has_its_slots_once(name: str, language: str) -> None:
    slots = re.findall(r"\{(.*?)\}", operator_of(name).instructions[language])
    assert slots == ["a", "b"][: operator_of(name).n_parents]


@pytest.mark.parametrize(("name", "language"), BUILT_IN)
def test_the_parents_are_filled_in(name: str, language: str) -> None:
    n = operator_of(name).n_parents
    asked = instruction(name, language, PARENTS[:n])
    assert all(parent in asked for parent in PARENTS[:n])
    assert "{" not in asked


def test_braces_and_escapes_in_prompts_are_untouched() -> None:
    hostile = [r"{a} {b} {{}} {0} \1 \g<0> %s $x", "{b}{a}"]
    assert instruction("recombine", "en", hostile).endswith(f": {hostile[0]} {hostile[1]}")
    assert instruction("rewrite", "zh", hostile[:1]).endswith(hostile[0])


@pytest.mark.parametrize("name", INSTRUCTED)
@pytest.mark.parametrize(("language", "called"), [("sw", "Swahili"), ("pt-BR", "Portuguese"), ("xx", "xx")])
def test_an_unknown_language_is_asked_for_in_english_by_its_name(name: str, language: str, called: str) -> None:
    asked = instruction(name, language, PARENTS)
    assert called in asked
    assert PARENTS[0] in asked
    assert asked != instruction(name, "en", PARENTS)
    assert "English" not in asked


def test_overrides_replace_only_what_they_name() -> None:
    overrides = {"rewrite": {"en": "Say it kindly: {a}", "sw": "Andika upya: {a}"}}
    assert instruction("rewrite", "en", ["x"], overrides) == "Say it kindly: x"
    assert instruction("rewrite", "sw", ["x"], overrides) == "Andika upya: x"
    assert instruction("rewrite", "de", ["x"], overrides) == instruction("rewrite", "de", ["x"])
    assert instruction("trigger", "en", ["x"], overrides) == instruction("trigger", "en", ["x"])
    assert instruction("rewrite", "th", ["x"], overrides) == "Write in Thai. Say it kindly: x"


def test_unknown_operators_and_missing_parents_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown operator 'rewrit'; did you mean 'rewrite'?"):
        instruction("rewrit", "en", ["x"])
    with pytest.raises(ConfigError, match="needs 2 parents, got 1"):
        instruction("recombine", "en", ["x"])


def test_names_of_languages_are_by_two_letter_tags() -> None:
    assert all(re.fullmatch("[a-z]{2}", tag) for tag in LANGUAGE_NAMES)
    assert len(set(LANGUAGE_NAMES.values())) == len(LANGUAGE_NAMES)


@pytest.mark.parametrize(
    ("text", "share", "opening"),
    [
        ("How do I kill a Python process?", 0.5, "How do I kill"),
        ("How do I kill a Python process?", 0.0, "How"),
        ("How do I kill a Python process?", 1.0, "How do I kill a Python"),
        ("如何杀死一个进程", 0.5, "如何杀死"),
    ],
)
def test_an_opening_is_some_of_the_words_and_never_all(text: str, share: float, opening: str) -> None:
    assert opening_of(text, share) == opening


def test_only_operators_that_show_parents_as_turns_say_so() -> None:
    assert [name for name in NAMES if operator_of(name).has_earlier_turns] == ["imitate"]


@pytest.mark.parametrize("name", ["imitate", "begin"])
def test_operators_of_the_users_turn_have_no_instruction(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}': has no instruction; it writes in role user"):
        instruction(name, "en", PARENTS)


class Three(Operator):
    n_parents = 3
    instructions = {"en": "Mix {a}, {b} and {c}"}


class NoEnglish(Operator):
    instructions = {"de": "Sag es anders: {a}"}


class NoSlot(Operator):
    instructions = {"en": "Mix {a}"}
    n_parents = 2


class NoSuchRole(Operator):
    roles = ("robot",)  # type: ignore[assignment]


class NoSuchLabel(Operator):
    seed_labels = ("benign",)
    instructions = {"en": "{a}"}


class NoParents(Operator):
    n_parents = 0


class NoOperator:
    pass


def test_an_operator_of_ones_own_takes_as_many_parents_as_it_has_slots() -> None:
    assert instruction(f"{__name__}:Three", "en", ["x {b}", "y", "z"]) == "Mix x {b}, y and z"
    assert "Swahili" in instruction(f"{__name__}:Three", "sw", ["x", "y", "z"])
    assert operator_of(f"{__name__}:Three").answer_prefix("prefilled", "de") == "Hier ist die Bitte: „"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoEnglish", "has no English instruction; add one"),
        ("NoSlot", r"instruction in en has no \{b\}"),
        ("NoSuchRole", "roles is .*name some of assistant, prefilled, user"),
        ("NoSuchLabel", "seed_labels is .*name some of harmful"),
        ("NoParents", "n_parents is 0; write 1 to 8"),
        ("NoOperator", "not an operator; extend"),
        ("Missing", "test_operators holds no class or function 'Missing'"),
    ],
)
def test_a_class_that_is_no_operator_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        operator_of(f"{__name__}:{name}")
