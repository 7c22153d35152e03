"""The public names of the package: there, and loaded only when used."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import rass_core


def defined(module: str) -> set[str]:
    """Return the classes and functions of a module, without importing it."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


@pytest.mark.parametrize("name", rass_core.__all__)
def test_a_public_name_is_defined_where_the_table_says(name: str) -> None:
    assert name in defined(f"rass_core.{rass_core._MODULES[name]}")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(rass_core.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: str(node.module).removeprefix("rass_core.")
        for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert imported == rass_core._MODULES
    assert sorted(rass_core.__all__) == sorted(imported)


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import rass_core\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))\n"
        "print(rass_core.load_config.__name__, 'torch' in sys.modules, 'Lake' in dir(rass_core))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.splitlines() == ["['rass_core']", "load_config False True"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'rass_core' has no attribute 'lod_config'"):
        _ = rass_core.lod_config  # type: ignore[attr-defined]
