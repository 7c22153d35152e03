"""Edits of a copy of the tree change the keys of what uses the edited file, and no others."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rass_core.lake.store import Lake
from tasks import keys
from tasks.keys import PACKAGES, files_of, input_key, stage_key

ROOT = Path(__file__).parents[2]
WORKERS = {
    "answers": "rass_core.models.answering",
    "streams": "rass_core.models.extracting",
    "writing": "rass_core.generate.writing",
    "measuring": "rass_core.generate.measuring",
    "gradients": "rass_core.select.gradients",
}
DIGESTS = f"""
import json
from tasks.keys import code_digest
from rass_core.judges.base import JUDGES
from rass_core.judges.settings import JudgeConfig
workers = {WORKERS!r}
found = {{name: code_digest((module,)) for name, module in workers.items()}}
found["verdicts"] = code_digest(("rass_core.judges.workers", *JUDGES.modules(JudgeConfig().members)))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    return folder


def added(file: Path) -> bytes:
    """Return a line that changes what a file means: a comment does not count in code."""
    return b"\nADDED = 1\n" if file.suffix == ".py" else b"\n# another line\n"


def digests(tree: Path) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS], env=environment, cwd=tree, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture
def changed_by(tree: Path) -> Callable[[str], set[str]]:
    """Return what depends on a file: which digests a line at its end changes."""
    before = digests(tree)

    def edit(name: str) -> set[str]:
        file = tree / name
        whole = file.read_bytes()
        try:
            file.write_bytes(whole + added(file))
            after = digests(tree)
        finally:
            file.write_bytes(whole)
        return {each for each in before if before[each] != after[each]}

    return edit


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("rass_core/report/page.py", set()),
        ("rass_core/publish/release.py", set()),
        ("rass_core/lake/store.py", set()),
        ("rass_core/lab/world.py", set()),
        ("tasks/report.py", set()),
        ("rass_core/judges/phrases/en.yaml", {"verdicts"}),
        ("rass_core/judges/classifier.py", {"verdicts"}),
        ("rass_core/judges/hf.py", set()),
        ("rass_core/generate/operators/base.py", {"writing"}),
        ("rass_core/select/influence.py", {"gradients"}),
        ("rass_core/models/vllm_engine.py", {*WORKERS, "verdicts"}),
    ],
)
def test_an_edit_computes_again_what_uses_it(
    file: str, expected: set[str], changed_by: Callable[[str], set[str]]
) -> None:
    assert changed_by(file) == expected


def test_comments_docstrings_and_layout_do_not_count(tmp_path: Path) -> None:
    def counted(text: str) -> bytes:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        file.write_text(text, encoding="utf-8")
        return keys._counted(file)

    plain = counted("def f(x):\n    return x + 1\n")
    commented = '"""A module."""\n# why\ndef f(x):\n    """Return more."""\n    return (x\n        + 1)\n'
    assert plain == counted(commented)
    assert plain != counted("def f(x):\n    return x + 2\n")
    assert counted("X = 'a'\n") != counted("X = 'b'\n"), "a text that is a value counts"


def test_data_counts_with_the_modules_beside_it() -> None:
    names = {path.name for path in files_of(["rass_core.judges.phrases", "rass_core.judges.classifier"])}
    assert {"de.yaml", "classifier.npz", "phrases.py"} <= names
    assert "page.css" not in names


def test_equal_rows_are_equal_inputs_whoever_wrote_them(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path / "lake")
    schema = {"prompts": pa.Table.from_pylist([], schema=lake.read("prompts").drop(["run_id"]).schema)}
    one, other = lake.commit("a", "aa", schema), lake.commit("b", "bb", schema)
    assert one.key != other.key
    assert input_key(one) == input_key(other)
    assert stage_key("x", [one], ["rass_core.text"]) == stage_key("x", [other], ["rass_core.text"])


def test_arrays_and_numbers_are_distinguished() -> None:
    values = [np.zeros(2), np.zeros(3), np.ones(2), np.zeros(2, np.float32), 0.0, [0.0, 0.0], None]
    assert len({input_key(value) for value in values}) == len(values)
