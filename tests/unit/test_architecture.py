"""Imports go one way: flows → tasks → rass_core; the core knows no Prefect."""

import ast
import tomllib
from pathlib import Path

import pytest

from flows.doctor import NEEDED

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"rass_core": {"prefect", "tasks", "flows", "tests"}, "tasks": {"flows", "tests"}, "flows": {"tests"}}


def imported(source: str) -> set[str]:
    """Return the top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    wrong = {
        str(module.relative_to(ROOT)): sorted(names)
        for module in modules
        if (names := imported(module.read_text(encoding="utf-8")) & FORBIDDEN[package])
    }
    assert wrong == {}


def test_imports_inside_functions_are_seen() -> None:
    source = "def f():\n    if x:\n        from tasks.run import Run\n    import prefect.flows as p, os"
    assert imported(source) == {"tasks", "prefect", "os"}


def test_the_doctor_looks_for_the_versions_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(NEEDED) <= set(project["dependencies"])
