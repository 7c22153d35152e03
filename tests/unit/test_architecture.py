"""Imports go one way: flows → tasks → rass_core, and in rass_core from a package only to those below it."""

import ast
import tomllib
from pathlib import Path

import pytest

from flows.doctor import NEEDED

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"rass_core": {"prefect", "tasks", "flows", "tests"}, "tasks": {"flows", "tests"}, "flows": {"tests"}}
ORDER = (
    "errors", "units", "settings", "vocabulary", "text", "paths", "registry", "stats", "languages", "yaml_file",
    "lake", "executor", "models", "data", "probe", "judges",
    "select", "mitigate", "moderators", "generate", "benchmark",
    "evaluate", "report", "config", "publish", "estimate", "lab",
)  # fmt: skip
"""Packages and modules of rass_core; each imports only from those before it. A new one goes in after what it needs.
The lab is last: it registers what others use by name."""


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


def parts_imported(source: str) -> set[str]:
    """Return the packages and modules of rass_core that a module imports, anywhere in it."""
    paths = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            paths += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths += [f"{node.module}.{alias.name}" for alias in node.names]
    found = {path.split(".")[1] for path in paths if path.startswith("rass_core.")}
    return {name for name in found if not name.startswith("__")}


def part_of(module: Path) -> str:
    return module.relative_to(ROOT / "rass_core").with_suffix("").parts[0]


def test_the_order_names_every_package_of_the_core_once() -> None:
    there = {part_of(module) for module in (ROOT / "rass_core").rglob("*.py")} - {"__init__"}
    assert sorted(ORDER) == sorted(there), "ORDER: give a new package its place"


@pytest.mark.parametrize("part", ORDER)
def test_a_package_of_the_core_imports_only_from_those_before_it(part: str) -> None:
    allowed = set(ORDER[: ORDER.index(part) + 1])
    wrong = {
        str(module.relative_to(ROOT)): sorted(names)
        for module in sorted((ROOT / "rass_core").rglob("*.py"))
        if part_of(module) == part and (names := parts_imported(module.read_text(encoding="utf-8")) - allowed)
    }
    assert wrong == {}


def test_only_the_lab_imports_the_lab() -> None:
    modules = [path for package in FORBIDDEN for path in (ROOT / package).rglob("*.py")]
    outside = [path for path in modules if path.parent != ROOT / "rass_core" / "lab"]
    assert [path.name for path in outside if "lab" in parts_imported(path.read_text(encoding="utf-8"))] == []


def test_parts_of_the_core_are_seen_however_they_are_imported() -> None:
    source = """
import rass_core, rass_core.text
from rass_core import lab, __version__
def f():
    from rass_core.lake.store import Lake
    import rass_core.judges.panel as p
"""
    assert parts_imported(source) == {"text", "lab", "lake", "judges"}


def test_imports_inside_functions_are_seen() -> None:
    source = "def f():\n    if x:\n        from tasks.session import Session\n    import prefect.flows as p, os"
    assert imported(source) == {"tasks", "prefect", "os"}


def test_the_doctor_looks_for_the_versions_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(NEEDED) <= set(project["dependencies"])
