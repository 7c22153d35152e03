"""The check of the moderators in a whole run: passed by the oracle, and stopping a run whose moderator is of no use."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import DEMO_CONFIG, app
from rass_core.errors import JudgeError
from rass_core.lake.store import Lake
from rass_core.moderators.harm_classifier import N_COLUMNS, HarmClassifier

LANGUAGES = ("en", "de", "fr", "es", "zh")


@pytest.fixture
def calls_all_benign(tmp_path: Path) -> Path:
    """Return a configuration of the lab whose moderator calls every prompt benign."""
    zeros = np.zeros(N_COLUMNS)
    HarmClassifier(
        idf=np.ones(N_COLUMNS), harm=zeros, harm_intercept=-3.0, alarm=zeros, alarm_intercept=1.0,
        languages=frozenset(LANGUAGES), known=np.zeros(0, np.uint64),
    ).save(tmp_path / "benign.npz")  # fmt: skip
    config = yaml.safe_load(Path(DEMO_CONFIG).read_text(encoding="utf-8"))
    config["moderator"] = {"members": [{"kind": "classifier", "weights": str(tmp_path / "benign.npz")}]}
    for source in config["prompts"]["sources"]:
        source["path"] = str(Path(DEMO_CONFIG).parent / source["path"])
    for section in ("model", "generator"):
        if config.get(section):
            config[section]["name"] = str(Path(DEMO_CONFIG).parent / config[section]["name"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_a_moderator_that_calls_everything_benign_stops_the_run_before_anything_is_written(
    prefect_server: None, tmp_path: Path, calls_all_benign: Path
) -> None:
    lake = tmp_path / "lake"
    result = CliRunner().invoke(app, ["run", str(calls_all_benign), "--lake", str(lake)])
    assert isinstance(result.exception, JudgeError)
    message = str(result.exception)
    assert "classifier:" in message
    assert "no better than chance" in message
    assert "moderator.members" in message
    tables = Lake.open(str(lake), create=False)
    assert not tables.query("SELECT * FROM responses").num_rows, "nothing was computed after the check"
    rows = tables.query(
        "SELECT value, low, n FROM evaluations WHERE metric = 'moderator_false_benign_rate' AND language = 'all'"
    ).to_pylist()
    assert rows
    assert all(row["value"] == 1.0 and row["low"] > 0.8 for row in rows)


def test_the_command_says_the_same_without_a_run(calls_all_benign: Path) -> None:
    result = CliRunner().invoke(app, ["moderator", "check", str(calls_all_benign)])
    assert isinstance(result.exception, JudgeError)
    assert "harmful called benign 100%" in result.stdout


def test_the_oracle_passes_and_the_command_prints_a_line_per_language() -> None:
    result = CliRunner().invoke(app, ["moderator", "check", DEMO_CONFIG])
    assert result.exit_code == 0, result.output
    assert "all: moderator oracle: harmful called benign 0%" in result.stdout
    assert "en: moderator oracle" in result.stdout
