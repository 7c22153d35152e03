"""YAML as people write it: read strictly where it could be misread, with the line of what is wrong.

Numbers and truth values are those of YAML 1.2: `no` is the text "no" and not false, `1e-3` is a number.
What YAML 1.1 would read as another number than it looks is an error: 010, 1_000, 1:30.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rass_core.errors import ConfigError
from rass_core.paths import input_file, short

MAX_BYTES = 10_000_000
"""A larger file is no configuration."""
MAX_VALUES = 200_000
"""Values of a file once its aliases are unfolded."""
MAX_DEPTH = 100
"""Levels of lists and mappings in each other."""

Place = tuple[str | int, ...]
"""Keys and numbers from the top of a file to a value."""

_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = ("str", "int", "float", "bool", "null")
_AMBIGUOUS = re.compile(r"[-+]?(?:0\d+|\d[\d,]*(?:_\d+)+(?:\.[\d_]*)?|\d+(?::[0-5]?\d)+(?:\.\d*)?|\d{1,3}(?:,\d{3})+)")
"""Plain values that readers of YAML take for different numbers, or for text."""


@dataclass(frozen=True)
class YamlFile:
    """What a file holds, and where."""

    path: Path
    content: Any
    lines: dict[Place, int]
    """Place → line, from 1."""

    def line(self, place: Place) -> int | None:
        """Return the line of a value, or of the nearest one around it; None for an empty file."""
        around = (place[:n] for n in range(len(place), -1, -1))
        return next((self.lines[each] for each in around if each in self.lines), None)

    def where(self, place: Place) -> str:
        """Return a place and its line as a message names them."""
        name, line = ".".join(map(str, place)), self.line(place)
        return name if line is None else f"{name} (line {line})"


class _Loader(yaml.SafeLoader):
    """A loader for plain data, with the numbers and truth values of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"{_PREFIX}{_tag}", re.compile(rf"^(?:{_pattern})$"), ["" if each == "\0" else each for each in _first]
    )


def read_yaml(name: str | Path, hint: str = "fix the path") -> YamlFile:
    """Return the content of a YAML file with one document.

    Args:
        name: As the user gave it.
        hint: What to do where it is missing.

    Raises:
        ConfigError: No such file, one that is no text or no YAML, a key that is there twice, or a value that could be
            read as another: each with its line.
    """
    path = input_file(name, hint=hint)
    return parse_yaml(_text_of(path), path)


def parse_yaml(text: str, name: str | Path) -> YamlFile:
    """Return the content of a text of YAML.

    Args:
        text: One document.
        name: Named in the errors: the file that it is from, or an option.

    Raises:
        ConfigError: As `read_yaml`.
    """
    path = Path(name)
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return YamlFile(path, None, {})
        lines: dict[Place, int] = {}
        _check(loader, node, path, lines)
        return YamlFile(path, loader.construct_document(node), lines)
    except RecursionError as error:
        raise ConfigError(f"{short(path)}: more than {MAX_DEPTH} nested levels; fix its brackets") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{short(path)}: {_line_of(error)}cannot be read as YAML: {_reason(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _text_of(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 where its first bytes say so."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{short(path)}: cannot be read ({error.strerror}); fix its permissions") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{short(path)}: larger than {MAX_BYTES:,} bytes; name a configuration")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{short(path)}: line {line}: cannot be read as UTF-8; save it as UTF-8") from error
    strange = re.search("[\0-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
    if strange:
        line, code = text.count("\n", 0, strange.start()) + 1, ord(strange[0])
        raise ConfigError(
            f"{short(path)}: line {line}: a control character ({code:#04x}), so it is not text; name a YAML file"
        )
    return text


def _check(loader: Any, root: Any, path: Path, lines: dict[Place, int]) -> None:
    """Note the line of each value, and raise where one could be misread."""
    n = 0
    waiting: list[tuple[Any, Place, int, tuple[int, ...]]] = [(root, (), root.start_mark.line + 1, ())]
    while waiting:
        node, place, line, around = waiting.pop()
        n += 1
        where = f"{short(path)}: {_name(place)} (line {line})"
        lines.setdefault(place, line)
        if id(node) in around:
            raise ConfigError(f"{where}: contains itself through an alias (*); write it out")
        if n > MAX_VALUES or len(around) > MAX_DEPTH:
            much = f"{MAX_VALUES:,} values, aliases expanded" if n > MAX_VALUES else f"{MAX_DEPTH} nested levels"
            raise ConfigError(f"{where}: more than {much}; fix its brackets and aliases")
        if isinstance(node, yaml.ScalarNode):
            plain_tag = loader.resolve(yaml.ScalarNode, node.value, (True, False))
            _check_scalar(node, plain_tag, where)
            continue
        if node.tag not in (f"{_PREFIX}seq", f"{_PREFIX}map"):
            raise ConfigError(f"{where}: a tag, {short(node.tag)}; leave it out, RASS reads plain values")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, path, place)
        waiting += [(child, (*place, *key), at, (*around, id(node))) for key, at, child in _children(node)]


def _children(node: Any) -> Iterator[tuple[Place, int, Any]]:
    """Yield the values of a list or mapping with their place in it and the line of their key.

    What is merged in has the mapping's own place.
    """
    if isinstance(node, yaml.SequenceNode):
        yield from (((number,), child.start_mark.line + 1, child) for number, child in enumerate(node.value))
    else:
        for key, child in node.value:
            place = () if key.tag == f"{_PREFIX}merge" else (key.value,)
            yield place, key.start_mark.line + 1, child


def _check_keys(node: Any, path: Path, place: Place) -> None:
    """Raise where a key is there twice, or is no word."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            where = f"{short(path)}: line {line}"
            raise ConfigError(f"{where}: a key that is a list or mapping; write plain text, or quote what has brackets")
        if key.value in seen:
            where = f"{short(path)}: {_name((*place, key.value))} (line {line})"
            raise ConfigError(f"{where}: the key is there already, on line {seen[key.value]}; leave one out")
        seen[key.value] = line


def _check_scalar(node: Any, plain_tag: str, where: str) -> None:
    """Raise where a value is a number that readers of YAML take for another, or none to compute with."""
    shown = short(node.value)
    if not node.tag.startswith(_PREFIX) or node.tag[len(_PREFIX) :] not in _PLAIN_TAGS:
        tag = short(node.tag.replace(_PREFIX, "!!"))
        raise ConfigError(f"{where}: a tag, {tag}; leave it out, RASS reads plain values")
    if node.tag not in (f"{_PREFIX}str", plain_tag):
        raise ConfigError(f"{where}: {shown} is not {node.tag.removeprefix(_PREFIX)}; leave the tag out")
    if node.style is None and _AMBIGUOUS.fullmatch(node.value):
        raise ConfigError(f"{where}: {shown} is read as different numbers; write plain digits, or quote a text")
    if node.tag == f"{_PREFIX}int" and len(node.value) > 30:
        raise ConfigError(f"{where}: {shown} is too large a number; write a smaller one")
    if node.tag == f"{_PREFIX}float" and not math.isfinite(float(_plain(node.value))):
        raise ConfigError(f"{where}: {shown} is not a finite number; write one, or null for none")


def _plain(number: str) -> str:
    """Return a number of YAML as Python writes it."""
    return re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", number, flags=re.IGNORECASE)


def _name(place: Place) -> str:
    return short(".".join(map(str, place))) if place else "the file"


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f"line {mark.line + 1}: " if mark is not None else ""


def _reason(error: yaml.YAMLError) -> str:
    """Return what is wrong, without the excerpt of the file."""
    parts = [str(part) for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
    reason = " ".join((", ".join(parts) or str(error)).split())
    if "another document" in reason or "single document" in reason:
        return "several documents (---); keep one"
    if "'\\t'" in reason:
        return f"{reason}; indent with spaces, not with tabs"
    return f"{reason}; fix it, or quote a text with special characters"
