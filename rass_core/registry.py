"""Registries: what a configuration names, the project's own kinds and a user's, one per file with its settings.

    JUDGES = Registry("judge", ["rass_core.judges"], JudgeSettings)

    @JUDGES.register("my_kind", MySettings)
    def build(settings: MySettings, context: JudgeContext) -> Judge: ...

A built-in kind lives in the module of its name (`hf` in `rass_core.judges.hf`), which is imported when the kind is
first asked for: nobody waits for libraries that a run does not use. A user's own is named `package.module:Class`.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from rass_core.errors import ConfigError

Settings = TypeVar("Settings", bound=BaseModel)
Build = Callable[..., Any]
BuildT = TypeVar("BuildT", bound=Build)


@dataclass(frozen=True)
class Entry(Generic[Settings]):
    """A registered kind."""

    name: str
    settings: type[Settings]
    """What a configuration may set; validated before anything is built."""
    build: Build
    """Settings and a context → the object."""


class Registry(Generic[Settings]):
    """What of one kind of thing there is to choose from.

    Args:
        what: What is registered, such as "judge", for messages.
        packages: Whose modules hold the built-in kinds, each in a module of its name.
        base: Settings that every kind has; those of a kind extend it.
    """

    def __init__(self, what: str, packages: Sequence[str], base: type[Settings]) -> None:
        self.what, self.base = what, base
        self._packages = packages
        self._entries: dict[str, Entry[Settings]] = {}

    def register(self, name: str, settings: type[Settings] | None = None) -> Callable[[BuildT], BuildT]:
        """Return a decorator that registers a class or function under a name.

        Args:
            name: By which a configuration asks for it.
            settings: Of this kind; by default those that every kind has.

        Raises:
            ConfigError: The name is taken by something else.
        """

        def decorate(build: BuildT) -> BuildT:
            known = self._entries.get(name)
            if known is not None and (known.build.__module__, known.build.__qualname__) != (
                build.__module__, build.__qualname__
            ):  # fmt: skip
                raise ConfigError(f"{self.what} {name!r}: registered by {known.build.__module__} already; rename one")
            self._entries[name] = Entry(name, settings or self.base, build)
            return build

        return decorate

    def find(self, name: str) -> Entry[Settings]:
        """Return what is registered under a name, or the class at `package.module:Class`.

        A class of a user's own may hold its settings as `Settings`; else it takes those that every kind has.

        Raises:
            ConfigError: Unknown, with the nearest name; or a path at which there is no such class.
        """
        if name not in self._entries:
            if ":" in name:
                self._entries[name] = self._own(name)
            else:
                self._import_module_of(name)
        if name not in self._entries:
            names = self.names()
            nearest = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(names)}"
            raise ConfigError(f"unknown {self.what} {name!r}; {hint}, or name your own as package.module:Class")
        return self._entries[name]

    def names(self) -> list[str]:
        """Return the names of all built-in kinds; imports every module that may hold one."""
        for package in self._packages:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{package}.{module.name}")
        return sorted(name for name in self._entries if ":" not in name)

    def _import_module_of(self, name: str) -> None:
        for package in self._packages:
            path = f"{package}.{name}"
            try:
                importlib.import_module(path)
            except ModuleNotFoundError as error:
                if error.name != path:  # something that the module itself needs
                    raise

    def _own(self, path: str) -> Entry[Settings]:
        module_name, _, attribute = path.partition(":")
        try:
            build = getattr(importlib.import_module(module_name), attribute)
        except ImportError as error:
            raise ConfigError(
                f"{self.what} {path!r}: cannot be imported ({error}); is its file on PYTHONPATH or beside you?"
            ) from error
        except AttributeError as error:
            raise ConfigError(
                f"{self.what} {path!r}: {module_name} holds no {attribute}; name what is in it"
            ) from error
        settings = getattr(build, "Settings", self.base)
        if not (isinstance(settings, type) and issubclass(settings, self.base)):
            raise ConfigError(f"{self.what} {path!r}: its Settings must extend {self.base.__name__}")
        return Entry(path, settings, build)
