"""Sizes of files and functions, and one meaning for each public name."""

import ast
import statistics
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("rass_core", "tasks", "flows")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MEDIAN_LINES = 400, 60, 12

LONG_FILES: set[str] = set()
"""Files that may be longer."""
LONG_FUNCTIONS: set[str] = set()
"""Functions that may be longer, `file:name`."""
_COMMAND = "a command of `rass` is called as the step that it runs"
_READER = "each reader of text has its own length"
_CLASSIFIER = "the classifiers of responses, prompts and requests are built alike and differ in size"
TWO_MEANINGS: dict[str, str] = {
    **dict.fromkeys(("evaluate", "export", "generate", "morbench", "probe", "publish", "report", "select"), _COMMAND),
    **dict.fromkeys(("HEAD_CHARACTERS", "LATE_CHARACTERS", "LONGEST_READ", "SHORT_CHARACTERS"), _READER),
    **dict.fromkeys(
        ("KNOWN", "N_COLUMNS", "N_FOLDS", "N_HASHED", "STRENGTH", "features", "shipped", "usable"), _CLASSIFIER
    ),
    "COMMAND": "renews a generated page",
    "Done": "of an executor, and of the training of moderators",
    "RECORD": "the columns of a commit record, and the file that records a variant",
    "RENAMED": "keys of a configuration, and columns of an older lake",
    "Rows": "of residual streams, and of a table",
    "Settings": "type variables of the registry and of the methods",
    "WIDTH": "of the starting file, and of a comparison in the terminal",
    "asked": "what a prompt asks for, and what a model is asked",
    "judge": "the command, and the step",
    "one_line": "a docstring in one line, and a text of the report",
    "page": "of calibration, and of tables",
    "whole_file": "the score file's errors are those of judges",
    "BATCH_SIZE": "of a judge's model, and of the lab's training",
    "Cell": "language × category of a selection, and a label's verdicts in the check of a moderator",
    "KINDS": "why a response gives no plain help, and what a preference pair is for",
    "LanguageColumnOption": "an option of two groups of commands, each with its help text",
    "N_SHOTS": "of the many-shot attack, in the evaluation and in the lab",
    "Outcome": "the outcome's type, and a prompt with its outcome in an evaluation",
    "Place": "where a rate is measured, and where a value is in a YAML file",
    "Progress": "the callback of a training, and the display in the terminal",
    "RUBRIC": "of judges, and of moderators",
    "What": "the command line's form of the review's type",
    "Writer": "a role that writes prompts, and a judge's model that writes its verdict",
    "check": "of a lake, and of moderators: two groups of commands",
    "check_installed": "each part says what it lacks",
    "counts": "of written prompts, and of preference pairs",
    "declines": "a model that was to judge, and a text that was to be a request",
    "false_refusal_direction": "the plan calls the cost of a stage as the stage",
    "main": "of three command lines",
    "notes_of": "on a run's templates, and on a benchmark",
    "train": "the lab's model, an adapter, a classifier, and the command for it",
}
"""Public names that several modules define, each with the reason."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*folders: str) -> list[str]:
    """Return the Python files of these folders."""
    found = (path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(map(str, found))


def parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def lengths(module: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each function with its lines, decorators left out, the docstring counted."""
    for node in ast.walk(module):
        if isinstance(node, Function):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def public_names(module: ast.Module) -> set[str]:
    """Return the functions, classes and constants that a module defines at its top."""
    found: set[str] = set()
    for node in module.body:
        if isinstance(node, (*Function.__args__, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {
                each.id
                for each in chain(*map(ast.walk, targets))
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
    return {name for name in found if not name.startswith("_")}


def test_no_file_is_long() -> None:
    long = {
        name
        for name in python_files(*PACKAGES, "tests", "benchmarks")
        if len((ROOT / name).read_text().splitlines()) > MAX_FILE_LINES
    }
    assert long == LONG_FILES, "split it by subject; what is short again leaves LONG_FILES"


def test_no_function_is_long() -> None:
    found = [(f"{file}:{name}", n) for file in python_files(*PACKAGES) for name, n in lengths(parsed(file))]
    assert len(found) > 1000
    assert {name for name, n in found if n > MAX_FUNCTION_LINES} == LONG_FUNCTIONS
    assert statistics.median(n for _, n in found) <= MAX_MEDIAN_LINES


def test_a_public_name_has_one_meaning() -> None:
    places = defaultdict(set)
    for file in python_files(*PACKAGES):
        for name in public_names(parsed(file)):
            places[name].add(file)
    several = {name: sorted(files) for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in several.items() if name not in TWO_MEANINGS} == {}, "rename one, or merge"
    assert set(TWO_MEANINGS) <= set(several), "these have one meaning again"
    assert all(TWO_MEANINGS.values())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(): pass\nclass C: x = 1\nA, b = 1, 2\nd: int = 3\n_e = 4\n", {"f", "C", "A", "b", "d"}),
        ("if x:\n    y = 1\nz.w = 2\nimport os\n", set()),
    ],
)
def test_public_names_are_those_at_the_top(source: str, names: set[str]) -> None:
    assert public_names(ast.parse(source)) == names


def test_a_functions_length_counts_its_docstring() -> None:
    source = '@decorated\ndef f():\n    """One.\n\n    Two.\n    """\n    def g():\n        return 1\n    return g\n'
    assert dict(lengths(ast.parse(source))) == {"f": 8, "g": 2}
