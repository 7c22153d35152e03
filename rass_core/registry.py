"""Registries: every kind of thing that a configuration chooses by name, built in or a user's own.

    JUDGES = Registry("judge", ["rass_core.judges"], JudgeSettings)

    @JUDGES.register("my_kind", MySettings)
    def build(settings: MySettings, context: JudgeContext) -> Judge: ...

A built-in kind is in the module of its name (`hf` in `rass_core.judges.hf`), its settings beside it. The module is
imported when a configuration first names the kind, so nobody waits for libraries that a run does not use. A user's
own kind is named `package.module:Class`.
"""

import difflib
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import InitErrorDetails, PydanticCustomError

from rass_core.errors import ConfigError

Settings = TypeVar("Settings", bound=BaseModel)
Build = Callable[..., Any]
BuildT = TypeVar("BuildT", bound=Build)
_REGISTRIES: dict[type[BaseModel], "Registry[Any]"] = {}
"""Settings that every kind has → the registry of the kinds."""


@dataclass(frozen=True)
class Entry(Generic[Settings]):
    """A registered kind."""

    name: str
    settings: type[Settings]
    """What a configuration may set; validated before anything is built."""
    build: Build
    """Makes the object; the registry's module documents the arguments."""
    by_default: bool = True
    """Whether a configuration that names no kinds takes it."""


class Registry(Generic[Settings]):
    """The kinds of one thing, such as the judges.

    Args:
        what: What is registered, such as "judge", for messages.
        packages: Packages whose modules register kinds.
        base: Settings that every kind has; those of a kind extend it. BaseModel where kinds have none.
    """

    def __init__(self, what: str, packages: Sequence[str], base: type[Settings]) -> None:
        self.what, self.base = what, base
        self._packages = packages
        self._entries: dict[str, Entry[Settings]] = {}
        self._is_complete = False
        if base is not BaseModel:
            _REGISTRIES[base] = self

    def register(
        self, name: str, settings: type[Settings] | None = None, *, by_default: bool = True
    ) -> Callable[[BuildT], BuildT]:
        """Return a decorator that registers a class or function under a name.

        Args:
            name: What a configuration calls the kind.
            settings: Settings of this kind; None for those that every kind has.
            by_default: Whether a configuration that names no kinds takes it.

        Raises:
            ConfigError: The name is taken by something else.
        """

        def decorate(build: BuildT) -> BuildT:
            known = self._entries.get(name)
            if known is not None and (known.build.__module__, known.build.__qualname__) != (
                build.__module__, build.__qualname__
            ):  # fmt: skip
                raise ConfigError(f"{self.what} {name!r}: registered by {known.build.__module__} already; rename one")
            self._entries[name] = Entry(name, settings or self.base, build, by_default)
            return build

        return decorate

    def find(self, name: str) -> Entry[Settings]:
        """Return what is registered under a name, or the class or function at `package.module:Class`.

        A user's own class may hold its settings as `Settings`; without them it has those that every kind has.

        Raises:
            ConfigError: Unknown, with the nearest name; or a path at which there is no such class.
        """
        if ":" in name:
            return self._own(name)
        if name not in self._entries:
            self._import_module_of(name)
        if name not in self._entries:
            names = sorted(self.names())
            nearest = difflib.get_close_matches(name, names, n=1)
            known = f"there are {', '.join(names)}, or name your own as package.module:Class"
            raise ConfigError(f"unknown {self.what} {name!r}; {f'did you mean {nearest[0]!r}?' if nearest else known}")
        return self._entries[name]

    def names(self) -> list[str]:
        """Return the names of all built-in kinds, by module and in the order in which a module registers them.

        What was imported before does not count: choices by default follow this order.
        """
        if not self._is_complete:
            for path in self._modules():
                importlib.import_module(path)
            self._is_complete = True
        return sorted(self._entries, key=lambda name: self._entries[name].build.__module__)

    def defaults(self) -> list[str]:
        """Return the names of the built-in kinds that a configuration without names takes, in the same order."""
        return [name for name in self.names() if self._entries[name].by_default]

    def settings(self, kind: str, **given: Any) -> Settings:
        """Return the settings of a kind, validated: `JUDGES.settings("phrases", weight=2.0)`.

        Raises:
            ConfigError: An unknown kind.
            ValidationError: A setting that the kind does not have, or a wrong value.
        """
        entry = self.find(kind)
        return entry.settings.model_validate(self._without_others(entry, {"kind": kind, **given}))

    def settings_of(self, section: Any) -> type[Settings]:
        """Return the class that validates a section of a configuration; the base class where its kind is unknown."""
        try:
            return self.find(self._kind_of(section)).settings
        except (ConfigError, AttributeError, TypeError):
            return self.base

    def validate(self, given: Any, read: ValidatorFunctionWrapHandler) -> Settings:
        """Validate a section of a configuration by the settings of its kind; for `pydantic.WrapValidator`."""
        section = dict(given) if isinstance(given, BaseModel) else given
        if not isinstance(section, Mapping):
            return self._read(given, read)
        kind = self._kind_of(section)
        if not isinstance(kind, str):
            return self._read({name: section[name] for name in section if name in self.base.model_fields}, read)
        try:
            entry = self.find(kind)
        except ConfigError as error:
            problem = PydanticCustomError("unknown_kind", "{message}", {"message": str(error)})
            details = InitErrorDetails(type=problem, loc=("kind",), input=None)
            raise ValidationError.from_exception_data(self.what, [details], hide_input=True) from error
        return entry.settings.model_validate(self._without_others(entry, section))

    def modules(self, members: Iterable[BaseModel]) -> list[str]:
        """Return the modules of the kinds that settings name; results depend on their code."""
        entries = [self.find(self._kind_of(dict(member))) for member in members]
        return sorted({entry.build.__module__ for entry in entries if ":" not in entry.name})

    def own_code(self, names: Iterable[str]) -> list[str]:
        """Return the digests of the files of the user's own kinds among these names; results depend on them."""
        modules = {name.partition(":")[0] for name in names if ":" in name and self.find(name)}
        files = [sys.modules[module].__file__ for module in sorted(modules)]
        return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file is not None]

    def _read(self, given: Any, read: ValidatorFunctionWrapHandler) -> Settings:
        """Let pydantic say what is wrong with a section that names no kind."""
        settings: Settings = read(given)
        return settings

    def _kind_of(self, section: Any) -> Any:
        return section.get("kind", self.base.model_fields["kind"].default)

    def _without_others(self, entry: Entry[Settings], section: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return a section without settings of other kinds that have their default value.

        Configurations that an earlier version stored name the settings of all kinds. A setting with another value is
        refused: RASS would silently run something else than was asked for.
        """
        kept = dict(section)
        for name in sorted(section.keys() - entry.settings.model_fields.keys(), key=str):
            kinds = {kind: self.find(kind).settings.model_fields for kind in sorted(self.names())}
            owners = {kind: fields[name] for kind, fields in kinds.items() if name in fields}
            if not owners:
                continue  # pydantic refuses it
            if all(section[name] != field.get_default(call_default_factory=True) for field in owners.values()):
                known = f"belongs to a member of kind {' or '.join(owners)}"
                raise ValueError(f"{name}: {known}, this member is {entry.name}; leave it out")
            del kept[name]
        return kept

    def _import_module_of(self, name: str) -> None:
        """Import the module that has the name of a kind; where there is none, every module that registers a kind."""
        path = next((path for path in self._modules() if path.rpartition(".")[2] == name), None)
        if path is None:
            self.names()
        else:
            importlib.import_module(path)

    def _modules(self) -> Iterator[str]:
        """Yield the paths of the modules that register a kind; others may import what takes seconds."""
        for package in self._packages:
            for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name):
                is_module = file.name.endswith(".py") and not file.name.startswith("_")
                if is_module and ".register(" in file.read_text(encoding="utf-8"):
                    yield f"{package}.{file.name.removesuffix('.py')}"

    def _own(self, path: str) -> Entry[Settings]:
        """Return the class or function of a user's own module, which may be in the current folder."""
        module_name, _, attribute = path.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last, so that it hides no installed module
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # somebody else's code may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            where = "the current folder or on PYTHONPATH"
            raise ConfigError(
                f"{self.what} {path!r}: cannot be imported ({reason}); is its file in {where}?"
            ) from error
        build = getattr(module, attribute, None)
        if not callable(build):
            raise ConfigError(
                f"{self.what} {path!r}: {module_name} holds no class or function {attribute!r}; name one that is in it"
            )
        settings = getattr(build, "Settings", self.base)
        if not (isinstance(settings, type) and issubclass(settings, self.base)):
            raise ConfigError(f"{self.what} {path!r}: its Settings must extend {self.base.__name__}")
        return Entry(path, settings, build)


def registry_of(settings: type[BaseModel]) -> Registry[Any] | None:
    """Return the registry whose kinds extend these settings; None for settings of one fixed form."""
    return _REGISTRIES.get(settings)
