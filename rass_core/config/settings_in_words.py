"""Settings classes in words: each key with its type, bounds, default and sentences, as its class declares them."""

import datetime
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from rass_core.data.sources import Language
from rass_core.registry import registry_of

REQUIRED = PydanticUndefined
"""Default of a key that has none."""
_NOUNS: dict[Any, tuple[str, str]] = {
    int: ("whole number", "whole numbers"), float: ("number", "numbers"), str: ("text", "texts"),
    bool: ("`true` or `false`", "`true` or `false`"), datetime.date: ("date", "dates"), Path: ("folder", "folders"),
    Any: ("any value", "any values"), type(None): ("null", "null"), Language: ("language tag", "language tags"),
}  # fmt: skip
"""Type → one of it and several of it, in words."""
_BOUNDS = {
    "ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}",
    "min_length": "at least {} characters", "max_length": "at most {} characters",
}  # fmt: skip
"""Constraint → its words."""
NameModel = Callable[[type[BaseModel]], str]
"""Settings class → its name in words."""


@dataclass(frozen=True)
class Setting:
    """One key of a settings class."""

    name: str
    field: FieldInfo

    @property
    def text(self) -> str:
        """Return its sentences in one line."""
        return one_line(self.field.description)

    @property
    def default(self) -> Any:
        """Return its default as JSON holds it, or REQUIRED."""
        value = self.field.get_default(call_default_factory=True)
        return value if value is REQUIRED else _plain(value)

    @property
    def models(self) -> list[type[BaseModel]]:
        """Return the settings classes that it holds, as one, in a list or in a mapping."""
        return list(dict.fromkeys(_models(self.field.annotation)))

    @property
    def is_section(self) -> bool:
        """Return whether the key holds settings of one class, rather than a list or mapping of them."""
        return any(isinstance(arm, type) and issubclass(arm, BaseModel) for arm in _arms(self.field.annotation))

    def type_in_words(self, name_model: NameModel) -> str:
        """Return what the key takes, with its bounds."""
        return in_words(self.field.annotation, self.field.metadata, name_model)


def settings_of(model: type[BaseModel]) -> list[Setting]:
    """Return the keys of a settings class."""
    return [Setting(name, field) for name, field in model.model_fields.items()]


def kinds_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return kind → settings class for the base settings of a registry; empty for any other class."""
    registry = registry_of(model)
    return {} if registry is None else {kind: registry.find(kind).settings for kind in sorted(registry.names())}


def own_settings(model: type[BaseModel], base: type[BaseModel]) -> list[Setting]:
    """Return the keys that a kind adds to those of every kind."""
    return [setting for setting in settings_of(model) if setting.name not in base.model_fields]


def in_words(annotation: Any, metadata: Iterable[Any], name_model: NameModel, several: bool = False) -> str:
    """Return a type with its bounds in words, such as "whole number from 0 to 10"."""
    bounds = list(_constraints(metadata))
    if annotation in _NOUNS:
        return _NOUNS[annotation][several] + _bounds(bounds)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(args[0], [*args[1:], *bounds], name_model, several)
    if origin in (Union, types.UnionType):
        # Bounds of the whole are those of its first type: null has none.
        arms = [in_words(arm, () if number else bounds, name_model, several) for number, arm in enumerate(args)]
        return _either([arm for arm in arms if arm != "null"]) + (", or null" if "null" in arms else "")
    if origin is Literal:
        return ("any of " if several else "") + _either([f"`{flow(value)}`" for value in args])
    if origin is list:
        entries = in_words(args[0], (), name_model, several=True)
        return f"{'lists' if several else 'list'} of {_with_least(bounds, entries)}"
    if origin is tuple:
        return f"[{', '.join(in_words(arg, (), name_model) for arg in args)}]"
    if origin is dict:
        key, value = (in_words(arg, (), name_model) for arg in args)
        return f"{'mappings' if several else 'mapping'} from {key} to {value}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return name_model(annotation)
    raise TypeError(f"{annotation}: no words for this type; add them to settings_in_words")


def flow(value: Any) -> str:
    """Return a value as one line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[A-Za-z_][\w./*-]*", value) and yaml.safe_load(value) == value
        return value if is_plain else yaml.safe_dump(value, width=10**6, allow_unicode=True, default_style='"').strip()
    return "null" if value is None else str(value).lower()


def one_line(text: str | None) -> str:
    """Return a docstring in one line."""
    return " ".join((text or "").split())


def _plain(value: Any) -> Any:
    """Return a default as JSON holds it: of settings only what differs from their own defaults, and their kind."""
    if isinstance(value, BaseModel):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return kind | value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return to_jsonable_python(value)


def _arms(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union; another type alone."""
    if get_origin(annotation) is Annotated:
        return _arms(get_args(annotation)[0])
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return tuple(arm for each in get_args(annotation) for arm in _arms(each)) if is_union else (annotation,)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes that a type holds, at any depth."""
    if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for arg in get_args(annotation):
        yield from _models(arg)


def _constraints(metadata: Iterable[Any]) -> Iterator[Any]:
    """Yield what bounds a value; a Field of pydantic holds several."""
    for each in metadata:
        yield from each.metadata if isinstance(each, FieldInfo) else [each]


def _bounds(constraints: Iterable[Any]) -> str:
    """Return the bounds of a number or text, as they follow its noun."""
    bound = {name: getattr(each, name) for each in constraints for name in _BOUNDS if hasattr(each, name)}
    if bound == {"min_length": 1}:
        return " that is not empty"
    if bound.get("ge") is not None and bound.get("le") is not None:
        return f" from {_number(bound['ge'])} to {_number(bound['le'])}"
    words = [_BOUNDS[name].format(_number(bound[name])) for name in _BOUNDS if bound.get(name) is not None]
    return (" of " if words and words[0].startswith("at") else " ") + " and ".join(words) if words else ""


def _with_least(constraints: Iterable[Any], entries: str) -> str:
    """Return the entries of a list, and how many it needs."""
    least = max((each.min_length for each in constraints if getattr(each, "min_length", None)), default=0)
    return f"{least} or more {entries.removeprefix('any ')}" if least else entries


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
