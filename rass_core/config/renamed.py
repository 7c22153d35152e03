"""Keys and values of earlier versions: still read, each with a warning."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rass_core.errors import ConfigError
from rass_core.paths import short
from rass_core.yaml_file import Place, YamlFile

LOG = logging.getLogger(__name__)
RENAMED = {"probe.openings": "probe.prefixes"}
"""Old key → new key. `*` is any entry of a list or mapping; both sides have as many."""
_METHODS = {"surgical": "weight_ablation", "steer": "inference_ablation"}
_SOURCES = {"drawn": "mean_difference", "fitted": "learned"}
RENAMED_VALUES: dict[str, dict[str, str]] = {
    "mitigate.methods.*": _METHODS,
    "mitigate.methods.*.kind": _METHODS,
    "mitigate.direction": _SOURCES,
    "mitigate.methods.*.direction": _SOURCES,
}
"""Key as it is now → old value → new value. `methods.*` is each entry of a list."""


@dataclass(frozen=True)
class Renaming:
    """A key or value that a configuration names as an earlier version did."""

    old: Place
    new: Place
    """Where it is now; for a value the same place."""
    message: str
    """Says what the new name is."""


def use_new_names(given: Any, name: Callable[[Place], str] | None = None) -> tuple[Any, list[Renaming]]:
    """Return a configuration with the names of this version, and what was renamed.

    Args:
        given: As YAML or JSON holds it; not changed.
        name: Names a place in an error; by default its dotted key.

    Raises:
        ConfigError: An old key and its new one are both given.
    """
    content, found = _copied(given), []
    for old, new in RENAMED.items():
        for place in list(_places(content, old.split("."))):
            target = _target(place, old.split("."), new.split("."))
            if next(_places(content, target), None) is not None:
                where = (name or _dotted)(place)
                raise ConfigError(f"{where}: is now {_dotted(target)}, which is given too; leave {_dotted(place)} out")
            _put(content, target, _at(content, place[:-1]).pop(place[-1]))
            found.append(Renaming(place, target, f"`{_dotted(place)}` is now `{_dotted(target)}`; rename it"))
    for key, values in RENAMED_VALUES.items():
        for place in list(_places(content, key.split("."))):
            value = _at(content, place)
            if isinstance(value, str) and value in values:
                _put(content, place, values[value])
                message = f"`{_dotted(place)}`: `{value}` is now `{values[value]}`; rename it"
                found.append(Renaming(place, place, message))
    return content, found


def use_new_names_in_file(source: YamlFile) -> YamlFile:
    """Return the file of a configuration with the names of this version; one warning for each old one.

    Raises:
        ConfigError: An old key and its new one are both given, with the line of the old one.
    """
    shown = short(source.path)
    try:
        content, found = use_new_names(source.content, source.where)
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from error
    for each in found:
        LOG.warning("%s line %d: %s", shown, source.line(each.old), each.message)
        source = replace(source, lines=_moved(source.lines, each.old, each.new))
    return replace(source, content=content)


def add_old_names(schema: Any, resolve: Callable[[Any], Any]) -> None:
    """Let a JSON schema take old names too: Prefect checks the parameters of a deployment against it.

    Args:
        schema: Schema of the whole configuration; changed in place.
        resolve: Returns the schema that a reference names.
    """
    for old, new in RENAMED.items():
        *parents, key = old.split(".")
        for node in _schemas(resolve(schema), parents, resolve):
            node["properties"][key] = {"deprecated": True, "description": f"Now `{new}`."}
    for key, values in RENAMED_VALUES.items():
        for node in _schemas(resolve(schema), key.split("."), resolve):
            if "enum" in node:
                node["enum"] = [*node["enum"], *values]


def _places(content: Any, keys: Sequence[str | int], place: Place = ()) -> Iterator[Place]:
    """Yield the places of a configuration that a key names."""
    if not keys:
        yield place
    elif isinstance(content, dict):
        for key in list(content) if keys[0] == "*" else [keys[0]]:
            if key in content:
                yield from _places(content[key], keys[1:], (*place, key))
    elif isinstance(content, list):
        for number, entry in enumerate(content):
            if keys[0] in ("*", number):
                yield from _places(entry, keys[1:], (*place, number))


def _schemas(schema: Any, keys: Sequence[str], resolve: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield the JSON schemas of what a key names."""
    for each in schema.get("anyOf", [schema]):
        node = resolve(each)
        if not keys:
            yield node
            continue
        below = [node.get("items"), node.get("additionalProperties")] if keys[0] == "*" else []
        below.append(node.get("properties", {}).get(keys[0]))
        for child in below:
            if isinstance(child, dict):
                yield from _schemas(child, keys[1:], resolve)


def _target(place: Place, old: Sequence[str], new: Sequence[str]) -> Place:
    """Return where what is at a place of the old key belongs: with the same entries in place of each `*`."""
    entries = iter([part for part, key in zip(place, old, strict=True) if key == "*"])
    return tuple(next(entries) if key == "*" else key for key in new)


def _moved(lines: Mapping[Place, int], old: Place, new: Place) -> dict[Place, int]:
    """Return the lines of a file by today's places; those of the old places stay."""
    n = len(old)
    return {**lines, **{(*new, *place[n:]): line for place, line in lines.items() if place[:n] == old}}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _at(content: Any, place: Place) -> Any:
    for part in place:
        content = content[part]
    return content


def _put(content: Any, place: Place, value: Any) -> None:
    """Set what is at a place; sections on the way to it are made."""
    for part in place[:-1]:
        if isinstance(content, dict) and content.get(part) is None:
            content[part] = {}
        content = content[part]
    content[place[-1]] = value


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))
