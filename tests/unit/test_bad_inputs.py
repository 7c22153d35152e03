"""Every bad input ends with one line and its exit code, and changes nothing; every odd but good one with its value."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rass_core.config import load_config
from rass_core.lake.store import Lake
from tests.bad_inputs import CASES
from tests.bad_inputs.case import Case, Ended, arguments, make, run, snapshot
from tests.bad_inputs.configurations import READ

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("RASS_MODELS", str(tmp_path / "fetched"))
    monkeypatch.delenv("RASS_TRACEBACK", raising=False)


def assert_one_line(ended: Ended, case: Case) -> None:
    assert "Traceback" not in ended.err + ended.out
    assert ended.code == case.code, ended.err or ended.out
    assert len(ended.lines) == 1, ended.err
    line = ended.lines[0]
    assert line.startswith("rass: "), line
    assert len(line) <= 1000, line
    for word in case.words:
        assert word in line, f"{word!r} not in {line!r}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_input_ends_as_it_must(case: Case, tmp_path: Path) -> None:
    make(tmp_path, case.files)
    before = snapshot(tmp_path)
    ended = run(arguments(case, tmp_path))
    if case.code:
        assert_one_line(ended, case)
        assert ended.out == "", "nothing is shown that could be taken for a result"
    else:
        assert ended.code == 0, ended.err
        assert "Traceback" not in ended.err
        for word in case.shows:
            assert word in ended.out, f"{word!r} not in {ended.out!r}"
    if not case.may_write:
        assert snapshot(tmp_path) == before
    if case.check is not None:
        case.check(tmp_path, ended.out)


@pytest.mark.parametrize(("name", "content", "setting", "expected"), READ, ids=lambda part: None)
def test_a_configuration_is_read_as_it_is_meant(
    tmp_path: Path, name: str, content: str | bytes, setting: str, expected: Any
) -> None:
    make(tmp_path, {"c.yaml": content})
    found: Any = load_config(tmp_path / "c.yaml")
    for part in setting.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == expected, name
    assert type(found) is type(expected), name


@pytest.mark.parametrize("words", [["run", "/gone.yaml"], ["sql", "SELECT 1", "--lake", "/gone"], ["judge", "scor"]])
def test_a_command_of_its_own_process_ends_so_too(words: list[str]) -> None:
    command = [sys.executable, "-m", "flows.cli", *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("rass: ") and ended.stderr.count("\n") == 1


def test_a_fault_of_rass_is_one_line_and_its_traceback_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Lake, "answer", lambda self, sql: {}["no such key"])
    Lake.open(tmp_path / "lake")
    command = ["sql", "SELECT 1", "--lake", str(tmp_path / "lake")]
    ended = run(command)
    (log,) = tmp_path.glob("rass-*.log")
    assert (ended.code, ended.out) == (70, "")
    assert ended.lines == [
        f"rass: internal error, a fault of RASS: KeyError: 'no such key'; its traceback is in {log}, please report it"
    ]
    assert "Traceback" in log.read_text(encoding="utf-8")
    monkeypatch.setenv("RASS_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run(command)


def test_the_table_is_long_and_each_case_has_a_name_of_its_own() -> None:
    assert len([case for case in CASES if case.code]) >= 400
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.words for case in CASES if case.code)
