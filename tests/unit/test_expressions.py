"""The one expression for many finds what the many find, only sooner."""

import re
from importlib import resources

import pytest
import yaml

from rass_core.judges.expressions import branches, first_characters, union
from rass_core.judges.phrase_signals import covered
from rass_core.judges.visible_text import fold


def plain(expressions: list[str]) -> re.Pattern[str]:
    """Return the alternatives side by side, those at the edge of a word first."""
    parts = [branch for each in expressions for branch in branches(each)]
    return re.compile("|".join(f"(?:{each})" for each in sorted(parts, key=lambda each: not each.startswith(r"\b"))))


@pytest.mark.parametrize(
    ("expression", "characters"),
    [
        ("abc", "a"), ("a?bc", "ab"), ("a*", None), ("a{0,2}b", "ab"), ("a{2}b", "a"), ("", None), ("(?:a|)b", None),
        (r"\b(?:i(?:'m| am)|you) not", "iy"), (r"(?:very |so )?sorry", "vs"), ("(?:(?:a|b)?c|d)+e", "abcd"),
        ("[ab]c", "ab"), ("[^ab]c", None), ("[a-c]?d", "abcd"), (".{0,9}a", None), (r"\W*a", None), ("^a", None),
        (r"(?<![a-z])(?!no)n", "n"), (r"\(a|b", "("), ("(?P<name>a)b", None), ("[a-]b", None), (r"\Aa", None),
    ],
)  # fmt: skip
def test_first_characters(expression: str, characters: str | None) -> None:
    known = first_characters(branches(expression)[0])
    if characters is None:
        assert known is None
    else:
        told = re.compile(f"[{''.join(known or ())}]")
        assert {each for each in map(chr, range(33, 127)) if told.match(each)} == set(characters)


@pytest.mark.parametrize(
    ("expressions", "text"),
    [
        (["a|ab", "abc"], "xabc"), ([r"\bno\b", "on", "n"], "on no"), (["^no|so", "o"], "so no"),
        (["(?:very )?bad", r"\bvery"], "very bad"), ([r"[.!] so", "^so", r"\W*x"], "so. so x"),
        ([r"\b'm here", r"\bi"], "i'm here"), ([r"\d+ g", "[^a] g"], "12 g"), (["c(?=d)", r"(?<!a)b"], "ab cb cd"),
    ],
)  # fmt: skip
def test_it_finds_the_same(expressions: list[str], text: str) -> None:
    found = [each.span() for each in re.finditer(union(expressions), text)]
    assert found == [each.span() for each in plain(expressions).finditer(text)] != []


@pytest.mark.parametrize("language", sorted(covered()))
def test_it_finds_the_same_in_every_language(language: str) -> None:
    package = resources.files("rass_core.judges")
    phrases, examples = (
        yaml.safe_load(package.joinpath(f"{folder}/{language}.yaml").read_text(encoding="utf-8"))
        for folder in ("phrases", "examples")
    )
    texts = [fold(each).lower() for label in examples.values() for each in label[::5]]
    for section in ("refusal", "except", "helping", "premise"):
        fast, slow = re.compile(union(phrases[section])), plain(phrases[section])
        for text in texts:
            assert [each.span() for each in fast.finditer(text)] == [each.span() for each in slow.finditer(text)]
