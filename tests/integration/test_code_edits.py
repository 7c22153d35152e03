"""Edits of a copy of the tree, between runs into one lake: a run computes again what uses the edited file alone."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from tasks.keys import PACKAGES
from tests.small_lab import N_PROMPTS, config_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(1500)  # two runs in one test, on a busy machine
COMPUTED = ("prompts", "responses", "verdicts", "activations", "directions", "boundaries", "margins", "evaluations")
STAGES = {"prompts", "responses", "activations", "directions", "boundaries", "steering check", "first tokens"}
"""Titles of the stages of `rass probe`."""
BENIGN, HARMFUL = "answering the given prompts", "answering the given prompts, harmful ones"
"""What lines of progress call the two parts of the stage `responses`."""
BOUNDARY, REPORT = "rass_core/probe/boundary.py", "rass_core/report/page.py"
PHRASES = "rass_core/judges/phrases/de.yaml"


class Run(NamedTuple):
    """What a run said and wrote."""

    lines: list[str]
    """Lines of standard error, without the time of day."""
    commits: Counter[str]
    """Table → commits that the run wrote."""
    rows: Counter[str]
    """Table → rows that the run wrote."""

    @property
    def held(self) -> set[str]:
        """Return the titles of the stages that the lake held."""
        return {line.removesuffix(": already in the lake") for line in self.lines if line.endswith("in the lake")}

    @property
    def computed(self) -> set[str]:
        """Return the titles of the stages that were computed."""
        return STAGES & {line.removesuffix(": started") for line in self.lines if line.endswith(": started")}

    def counted(self, what: str) -> int | None:
        """Return how many of something were done anew, None where nothing was."""
        found = [match[1] for line in self.lines if (match := re.match(rf"{re.escape(what)}: 0 of ([\d,]+)", line))]
        return sum(int(each.replace(",", "")) for each in found) if found else None


class Tree:
    """A copy of the code with a lake, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._code, self._lake = folder / "tree", folder / "lake"
        for package in (*PACKAGES, "flows"):
            shutil.copytree(ROOT / package, self._code / package, ignore=shutil.ignore_patterns("__pycache__"))
        self._config = config_of(folder)
        self._whole: dict[Path, bytes] = {}

    def edit(self, file: str, before: str, after: str) -> None:
        """Replace the first occurrence of a text in a file, until `restore`."""
        path = self._code / file
        text = path.read_text(encoding="utf-8")
        assert before in text, f"{file} has no {before!r}"
        self._whole.setdefault(path, path.read_bytes())
        path.write_text(text.replace(before, after, 1), encoding="utf-8")

    def restore(self) -> None:
        """Take back all edits."""
        for path, whole in self._whole.items():
            path.write_bytes(whole)
        self._whole.clear()

    def run(self) -> Run:
        """Run the probe of the copy into its lake."""
        before = self._files()
        command = [sys.executable, "-m", "flows.cli", "probe", str(self._config), "--lake", str(self._lake)]
        environment = {**os.environ, "PYTHONPATH": str(self._code)}
        done = subprocess.run(command, cwd=self._code, env=environment, capture_output=True, text=True, timeout=700)
        assert done.returncode == 0, done.stderr
        new = self._files() - before
        rows = Counter[str]()
        for path in new:
            rows[_table(path, self._lake)] += pq.read_metadata(path).num_rows
        commits = Counter(_table(path, self._lake) for path in new)
        return Run([re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in done.stderr.splitlines()], commits, rows)

    def _files(self) -> set[Path]:
        return set(self._lake.glob("*/run_id=*/shard=*/*.parquet"))


def _table(path: Path, lake: Path) -> str:
    return path.relative_to(lake).parts[0]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, Run]:
    """A copy of the tree, and its first run."""
    made = Tree(tmp_path_factory.mktemp("edits"))
    return made, made.run()


@pytest.fixture
def tree(copied: tuple[Tree, Run]) -> Iterator[Tree]:
    """The copy; edits are taken back at the end."""
    yield copied[0]
    copied[0].restore()


def test_docstrings_and_comments_compute_nothing_again(copied: tuple[Tree, Run], tree: Tree) -> None:
    first = copied[1]
    assert first.computed == STAGES and first.held == set(), "\n".join(first.lines)
    assert all(first.commits[table] for table in COMPUTED)
    tree.edit(REPORT, '"""', '"""Edited: ')
    tree.edit(BOUNDARY, '"""', '"""Edited: ')
    tree.edit(BOUNDARY, "\nfrom ", "\n# A comment.\nfrom ")
    again = tree.run()
    assert again.held == STAGES and again.computed == set(), "\n".join(again.lines)
    assert set(again.commits) == {"runs"}


def test_a_phrase_judges_again_and_asks_no_benign_prompt_again(copied: tuple[Tree, Run], tree: Tree) -> None:
    first = copied[1]
    tree.edit(PHRASES, "\nrefusal:\n", "\nrefusal:\n  - 'a phrase that no answer has'\n")
    again = tree.run()
    n_harmful = first.counted(HARMFUL)
    assert n_harmful and first.counted(BENIGN) == N_PROMPTS - n_harmful
    assert again.counted(BENIGN) is None, "answers that are stored are not asked for again"
    assert again.counted(HARMFUL) == n_harmful, "the text of these is not stored"
    assert again.counted("judging responses") == first.counted("judging responses") == N_PROMPTS - n_harmful
    assert again.rows["verdicts"] >= N_PROMPTS
    assert {"prompts", "activations"} <= again.held and not again.commits["activations"]
    assert again.rows["responses"] == n_harmful


def test_code_of_the_boundary_computes_boundaries_again_and_nothing_before(tree: Tree) -> None:
    tree.edit(BOUNDARY, "\nfrom ", "\nADDED = 1\nfrom ")
    again = tree.run()
    assert again.computed == {"boundaries"} and again.held == STAGES - {"boundaries"}, "\n".join(again.lines)
    assert {table for table, n in again.commits.items() if n} == {
        "boundaries", "margins", "harm_axes", "evaluations", "stages", "runs",
    }  # fmt: skip
