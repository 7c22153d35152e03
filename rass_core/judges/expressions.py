"""One regular expression for many, written so that most places of a text are passed over at once.

`re` tries each alternative of `a|b|c` at each character. Here alternatives are gathered that begin at the edge of
a word, that begin at the text's beginning, and that begin with known characters, which are looked for first.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

_EDGE, _BEGIN = r"\b", "^"
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?:<?[=!]|:)|.", re.DOTALL)
"""A character, a class, or where a group begins or ends."""
_OFTEN = re.compile(r"(?:[*+?]|\{\d*,?\d*\})[+?]?")
_OPTIONAL = re.compile(r"[*?]|\{0?,|\{0\}")
_WIDTHLESS_GROUPS = ("(?=", "(?!", "(?<=", "(?<!")
_CLASSES = (r"\d", r"\w", r"\s")

Characters = frozenset[str]
"""Parts of a class, `a`, `0-9` or `\\d`."""


def union(expressions: Iterable[str]) -> str:
    """Return one expression for several.

    Of two that match at one place the first counts, and before all others those that begin at the edge of a word.
    """
    parts = [(each, first_characters(each)) for expression in expressions for each in branches(expression)]
    parts.sort(key=lambda part: not part[0].startswith(_EDGE))
    return "|".join(_gathered(start, list(some)) for (start, _), some in groupby(parts, key=_kind))


def _kind(part: tuple[str, Characters | None]) -> tuple[str, bool]:
    """Return where an alternative begins, and whether with known characters."""
    start = next((each for each in (_EDGE, _BEGIN) if part[0].startswith(each)), "")
    return start, part[1] is not None


def _gathered(start: str, parts: Sequence[tuple[str, Characters | None]]) -> str:
    """Return one expression for alternatives of a kind."""
    firsts = Characters().union(*(first or () for _, first in parts))
    ahead = f"(?=[{''.join(sorted(firsts))}])" if firsts else ""
    return f"{start}{ahead}(?:{'|'.join(each.removeprefix(start) for each, _ in parts)})"


def branches(expression: str) -> list[str]:
    """Return the alternatives of an expression that stand in no group."""
    found, depth, start = [], 0, 0
    for match in _PART.finditer(expression):
        sign = match[0]
        if sign[0] in "()":
            depth += 1 if sign[0] == "(" else -1
        elif sign == "|" and depth == 0:
            found.append(expression[start : match.start()])
            start = match.end()
    return [*found, expression[start:]]


def first_characters(expression: str) -> Characters | None:
    """Return the characters with which a match may begin; None where they are not known."""
    match = _PART.match(expression)
    if match is None:
        return None
    part, end = match[0], match.end()
    if part[0] == "(":
        end = _end_of_group(expression)
        found = _first_of_any(expression[match.end() : end - 1]) if part in ("(", "(?:") else None
    else:
        found = _first_of_part(part)
    if part in (_EDGE, *_WIDTHLESS_GROUPS):
        return first_characters(expression[end:])
    if found is None or not _OPTIONAL.match(expression, end):
        return found
    often = _OFTEN.match(expression, end)
    following = first_characters(expression[often.end() if often else end :])
    return None if following is None else found | following


def _first_of_any(alternatives: str) -> Characters | None:
    each = [first_characters(branch) for branch in branches(alternatives)]
    return None if None in each else Characters().union(*(known for known in each if known))


def _first_of_part(part: str) -> Characters | None:
    """Return the characters of a character or a class."""
    if part[0] == "[":
        inside = part[1:-1]
        return None if inside[0] in "^-]" or inside[-1] == "-" else Characters({inside})
    if part[0] == "\\":
        return None if part[1].isalnum() and part not in _CLASSES else Characters({part})
    return None if part in ".^$|)*+?{" else Characters({re.escape(part)})


def _end_of_group(expression: str) -> int:
    """Return where the group with which an expression begins has ended."""
    depth = 0
    for match in _PART.finditer(expression):
        depth += (match[0][0] == "(") - (match[0] == ")")
        if depth == 0:
            return match.end()
    return len(expression)
