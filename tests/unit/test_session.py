"""A session computes a stage once, holds it to its declaration, and says what it does before it does it."""

import io
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rass_core.config import RassConfig
from rass_core.errors import LakeError
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Lake
from rass_core.models.settings import ModelConfig
from tasks import recording
from tasks import session as module
from tasks.keys import stage_key
from tasks.progress import Progress
from tasks.reference import COMMAND, page
from tasks.session import Session
from tasks.stage import STAGES, DeclaredSettings, Stage

MODEL = ModelConfig(name="some/model")
ROWS = {"prompts": rows_table("prompts", [{"prompt_id": "a"}])}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = io.StringIO()
    monkeypatch.setattr(module, "PROGRESS", Progress(Console(file=file, highlight=False)))
    monkeypatch.setattr(Session, "_log", lambda self, message: None)
    return file


@pytest.fixture
def session(tmp_path: Path, written: io.StringIO) -> Session:
    config = RassConfig.model_validate({"model": {"name": "some/model"}, "prompts": {"sources": [{"path": "p.csv"}]}})
    made = object.__new__(Session)
    made.__dict__ |= {
        "lake": Lake.open(tmp_path / "lake"), "run_id": "r", "commits": [], "stages": [], "_from_lake": None,
        "keys": {}, "whole_config": config,
    }  # fmt: skip
    return made


def declared(compute: Callable[..., Any], **declaration: Any) -> Stage[Any]:
    """Return a stage that writes `prompts`, as if a module of the project declared it."""
    compute.__module__ = "rass_core.text"
    known = {"title": "responses", "reads": (), "writes": ("prompts",), "settings": (), "code": ()}
    return Stage(compute, **known | declaration)


def test_a_stage_says_that_it_begins_and_keeps_its_seconds_without_loads(
    session: Session, written: io.StringIO
) -> None:
    said: list[str] = []

    def compute(session: Session, number: int) -> Mapping[str, Any]:
        said.append(written.getvalue())
        with session.loading(MODEL, "vLLM"):
            time.sleep(0.2)
        return ROWS

    respond = declared(compute)
    respond(session, 1)
    assert said[0].endswith("responses: started\n")
    loading, stage = session.stages
    assert (loading.stage, stage.stage) == ("loading some/model in vLLM", "responses")
    assert loading.seconds >= 0.2 > loading.cpu_seconds
    assert stage.computed
    assert 0 < stage.seconds < time.monotonic()
    lines = [line.split(" ", 1)[1] for line in written.getvalue().splitlines()]
    assert lines[1] == "loading some/model in vLLM: started"
    assert lines[-1].startswith("responses: 1 prompts in ")

    respond(session, 1)
    assert len(said) == 1, "the lake holds it"
    assert not session.stages[-1].computed
    assert written.getvalue().endswith("responses: already in the lake\n")

    respond(session, 2)
    assert len(said) == 2, "another input"


def test_the_load_is_not_counted_twice(session: Session) -> None:
    def compute(session: Session) -> Mapping[str, Any]:
        with session.loading(MODEL, "vLLM"):
            time.sleep(0.3)
        return ROWS

    started = time.monotonic()
    declared(compute)(session)
    loading, stage = session.stages
    assert loading.seconds + stage.seconds <= time.monotonic() - started


def test_a_stage_that_is_only_read_names_the_command(session: Session) -> None:
    with session.from_lake("rass probe"), pytest.raises(LakeError, match="run `rass probe` first"):
        declared(lambda session: ROWS)(session)
    assert session.stages == []


def test_a_run_that_computes_nothing_names_the_last_one_that_did(session: Session) -> None:
    respond = declared(lambda session, number: ROWS)
    respond(session, 1)
    session.run_id, session.stages, session.commits = "second", [], []
    respond(session, 2)
    assert session.unchanged_since() is None, "it computed something"
    session.run_id, session.stages, session.commits = "third", [], []
    respond(session, 1)
    assert session.unchanged_since() == "r"
    respond(session, 2)
    assert session.unchanged_since() == "second"


def test_a_declared_setting_decides_and_no_other(session: Session) -> None:
    seeds: list[int] = []

    def compute(session: Session) -> Mapping[str, Any]:
        seeds.append(session.config.seed)
        return ROWS

    stage = declared(compute, settings=("seed",))
    stage(session)
    for update, n_computed in (({"name": "other"}, 1), ({"seed": 7}, 2)):
        session.whole_config = session.whole_config.model_copy(update=update)
        stage(session)
        assert len(seeds) == n_computed, update


@pytest.mark.parametrize(
    ("compute", "declaration", "message"),
    [
        (lambda session: session.config.seed, {}, "reads the setting seed"),
        (lambda session: session.config.probe.layers, {"settings": ("probe.positions",)}, "reads the setting layers"),
        (lambda session: session.read("margins"), {}, "reads the table margins"),
        (lambda session: ROWS, {"writes": ("margins",)}, "writes the table prompts"),
    ],
)
def test_a_stage_is_held_to_its_declaration(
    session: Session, compute: Callable[..., Any], declaration: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        declared(compute, **declaration)(session)
    assert session.config.seed == 0, "outside stages everything can be read"
    assert session.lake.read("prompts").num_rows == 0


def test_what_is_declared_can_be_read(session: Session) -> None:
    def compute(session: Session) -> Mapping[str, Any]:
        assert session.config.probe.layers == session.whole_config.probe.layers
        assert session.config.select == session.whole_config.select
        assert isinstance(session.config.probe, DeclaredSettings)
        return {"prompts": session.read("prompts")}

    declared(compute, settings=("probe.layers", "select"))(session)


def test_every_declared_setting_and_table_is_one(session: Session) -> None:
    import flows.morbench
    import flows.refresh  # noqa: F401 - all flows, with their stages

    tables = set(module.TABLES)
    assert len(STAGES) > 15
    for stage in STAGES.values():
        assert {*stage.reads, *stage.writes} <= tables, stage.name
        for name in stage.settings:
            if name not in module.DERIVED:
                session.setting(name)
        stage_key(stage.name, [], stage.counted_code)


def test_the_page_of_the_stages_is_current() -> None:
    written = (Path(__file__).parents[2] / "docs" / "stages.md").read_text(encoding="utf-8")
    assert written == page(), f"docs/stages.md is not what the declarations say; renew it: {COMMAND}"


def test_the_warnings_of_the_core_are_lines_of_the_run(session: Session, written: io.StringIO) -> None:
    logger, lines = logging.getLogger("rass_core.somewhere"), recording._WarningLines(session)
    logging.getLogger("rass_core").addHandler(lines)
    try:
        logger.warning("%s: read one by one, which is slower", "model")
        logger.info("a detail")
    finally:
        logging.getLogger("rass_core").removeHandler(lines)
    (line,) = written.getvalue().splitlines()
    assert line.endswith("note: model: read one by one, which is slower")
