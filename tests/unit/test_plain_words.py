"""Docs, docstrings, comments, help texts and errors use plain words. Run this file to list those that do not."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

_COUNTED = (
    "nats|rows?|prompts?|tokens?|files?|seconds?|numbers?|objects?|columns?|one|times?|pairs?|entry|steps?|weights?|"
    "yaml"
)
_EACH = (
    "language|token|cell|round|row|pair|label|class|layer|prompt|source|step|seed|variant|line|family|run|flow|stage|"
    "second|category|kind|matrix|gpu|answer|response|model"
)
PLAIN = {
    r"\bmend(s|ed|ing)?\b": "mitigate, repair",
    r"\btold\b|\btells\b|\btelling\b": "report, say, show, distinguish",
    r"\b(hangs?|hung) on\b": "depend on",
    r"\bstands\b|\bstand (in for|beside|behind|there)\b": "is, represent",
    r"\bby what\b": "name the thing",
    r"\b(judge|moderator|gate|panel|person|people|oracle|reviewer)('s|s') words?\b": "verdict, vote, label",
    r"\b(goes|went) on\b|\b(takes|taken) up\b": "continue, resume",
    r"\bwhat (comes|came) of\b": "the result",
    r"\banyhow\b": "anyway",
    rf"\b({_COUNTED}) an? ({_EACH})\b": "per",
}
"""Words of the project's old dialect → words that any reader knows."""
DATA = {
    "rass_core/judges/phrases.py": "tells something, then",  # a verdict's reason, which lakes hold
    "rass_core/moderators/llm.py": "The request stands between the marks",  # a prompt that models are asked
    "tests/unit/test_decontamination.py": "a Python process that hangs on my old laptop",  # a prompt that is compared
    "tests/unit/test_selection.py": "a Python process that hangs on my old laptop",
}
"""File → part of a line that is data and keeps its words."""
DOCSTRING = re.compile(r'^[rR]?"""Of\b')
"""A docstring that says whose something is before it says what it is."""
_WORDS = [(re.compile(pattern, re.IGNORECASE), hint) for pattern, hint in PLAIN.items()]
_TEXT = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
CODE = ("rass_core", "tasks", "flows", "benchmarks", "tests")
PAGES = ("*.md", "docs/*.md", "benchmarks/**/*.md")
OTHERS = ("Makefile", "pyproject.toml", "prefect.yaml", "configs/*.yaml", "rass_core/*.yaml", "rass_core/report/*.j2")


class Hit(NamedTuple):
    """A word that should be another one."""

    line: int
    found: str
    hint: str


def hits(text: str, first_line: int = 1) -> Iterator[Hit]:
    """Yield the words of the dialect in a text."""
    for pattern, hint in _WORDS:
        for match in pattern.finditer(text):
            yield Hit(first_line + text[: match.start()].count("\n"), match.group(), hint)


def hits_in_code(source: str) -> Iterator[Hit]:
    """Yield the words of the dialect in the comments and strings of a module; names in the code are left alone."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _TEXT:
            yield from hits(token.string, token.start[0])
            if DOCSTRING.match(token.string):
                yield Hit(token.start[0], '"""Of', "begin with what it is")


def files() -> Iterator[Path]:
    """Yield all files that people read, this one left out."""
    for folder in CODE:
        yield from sorted(path for path in (ROOT / folder).rglob("*.py") if path != Path(__file__))
    for pattern in (*PAGES, *OTHERS):
        yield from sorted(ROOT.glob(pattern))


def is_data(name: str, line: str) -> bool:
    """Return whether a line of a file is data, not prose."""
    return name in DATA and DATA[name] in line


def lines_found() -> Iterator[str]:
    """Yield `file:line: word: what to say instead` for each word of the dialect."""
    for path in files():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        for hit in sorted(hits_in_code(text) if path.suffix == ".py" else hits(text)):
            if not is_data(name, text.splitlines()[hit.line - 1]):
                yield f"{name}:{hit.line}: {hit.found!r}: {hit.hint}"


def test_every_file_uses_plain_words() -> None:
    assert list(lines_found()) == []


@pytest.mark.parametrize("name", DATA)
def test_data_that_keeps_its_words_is_still_there(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if is_data(name, line)]
    assert len(lines) == 1 and list(hits(lines[0])), "remove it from DATA"


def test_data_is_exempt_in_its_own_file_alone() -> None:
    name, text = next(iter(DATA.items()))
    assert is_data(name, f"    {text} …")
    assert not is_data(name, "it tells everything") and not is_data("rass_core/other.py", text)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("# the plan tells how long it takes\n", [1]),
        ('"""Fine.\n\nIt is told below."""\n', [3]),
        ("x = 1\nraise ValueError(f'{x}: stands elsewhere')\n", [2]),
        ('class A:\n    b: int\n    """Of the model."""\n', [3]),
        ("mended = told_apart(stands)  # recommended\n", []),
        ('"""Offspring."""\n', []),
    ],
)
def test_words_in_comments_and_strings_are_seen_with_their_line(source: str, lines: list[int]) -> None:
    assert [hit.line for hit in hits_in_code(source)] == lines


def test_words_on_a_page_are_seen_with_their_line() -> None:
    assert [hit.line for hit in hits("# Mending\n\nIt hangs on the seed.\nRecommended.")] == [1, 3]


if __name__ == "__main__":
    print(*lines_found(), sep="\n")
