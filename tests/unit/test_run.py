"""A run keeps what its stages take, and says what it does before it does it."""

import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rass_core.errors import LakeError
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Lake
from rass_core.models.settings import ModelConfig
from tasks import run as module
from tasks.progress import Progress

MODEL = ModelConfig(name="some/model")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = io.StringIO()
    monkeypatch.setattr(module, "PROGRESS", Progress(Console(file=file, highlight=False)))
    monkeypatch.setattr(Run, "_log", lambda self, message: None)
    return file


@pytest.fixture
def run(tmp_path: Path, written: io.StringIO) -> Run:
    made = object.__new__(Run)
    made.__dict__ |= {
        "lake": Lake.open(tmp_path / "lake"), "run_id": "r", "commits": [], "stages": [], "_from_lake": None,
        "keys": {}, "_parts": [],
    }  # fmt: skip
    return made


def test_a_stage_says_that_it_begins_and_keeps_its_seconds_without_loads(run: Run, written: io.StringIO) -> None:
    said: list[str] = []

    def compute() -> Mapping[str, Any]:
        said.append(written.getvalue())
        with run.loading(MODEL, "vLLM"):
            time.sleep(0.2)
        return {"prompts": rows_table("prompts", [{"prompt_id": "a"}])}

    run.once("responses", [1], compute)
    assert said[0].endswith("responses: started\n")
    loading, stage = run.stages
    assert (loading.stage, stage.stage) == ("loading some/model in vLLM", "responses")
    assert loading.seconds >= 0.2 > loading.cpu_seconds
    assert stage.computed
    assert 0 < stage.seconds < time.monotonic()
    lines = [line.split(" ", 1)[1] for line in written.getvalue().splitlines()]
    assert lines[1] == "loading some/model in vLLM: started"
    assert lines[-1].startswith("responses: 1 prompts in ")

    run.once("responses", [1], compute)
    assert len(said) == 1, "the lake holds it"
    assert not run.stages[-1].computed
    assert written.getvalue().endswith("responses: already in the lake\n")


def test_the_load_is_not_counted_twice(run: Run) -> None:
    def compute() -> Mapping[str, Any]:
        with run.loading(MODEL, "vLLM"):
            time.sleep(0.3)
        return {"prompts": rows_table("prompts", [])}

    started = time.monotonic()
    run.once("responses", [2], compute)
    loading, stage = run.stages
    assert loading.seconds + stage.seconds <= time.monotonic() - started


def test_a_stage_that_only_reads_names_the_command(run: Run) -> None:
    with run.from_lake("rass probe"), pytest.raises(LakeError, match="run `rass probe` first"):
        run.once("responses", [3], dict)
    assert run.stages == []


def test_the_warnings_of_the_core_are_lines_of_the_run(run: Run, written: io.StringIO) -> None:
    logger, lines = logging.getLogger("rass_core.somewhere"), module._WarningLines(run)
    logging.getLogger("rass_core").addHandler(lines)
    try:
        logger.warning("%s: read one by one, which is slower", "model")
        logger.info("a detail")
    finally:
        logging.getLogger("rass_core").removeHandler(lines)
    (line,) = written.getvalue().splitlines()
    assert line.endswith("note: model: read one by one, which is slower")
