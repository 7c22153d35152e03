"""The whole flow on the lab, as `rass demo` runs it, only smaller."""

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from flows.cli import DEMO_CONFIG
from rass_core.config import RassConfig, load_config
from rass_core.lab import world
from rass_core.store import Lake

FILLED = [
    "runs",
    "prompts",
    "derivations",
    "activations",
    "directions",
    "responses",
    "verdicts",
    "margins",
    "boundaries",
    "selections",
    "quotas",
    "evaluations",
    "rounds",
]


def small(lake: Path, seed: int = 0) -> RassConfig:
    config = load_config(DEMO_CONFIG, lake=str(lake), seed=seed)
    generate = config.generate.model_copy(update={"rounds": 2, "candidates_per_round": 200})
    return config.model_copy(update={"generate": generate})


def run(config: RassConfig) -> Lake:
    from flows.refresh import refresh

    refresh(config)
    return Lake.open(config.lake)


def selected(lake: Lake) -> list[dict[str, Any]]:
    return lake.query("SELECT prompt_id, rank FROM selections ORDER BY rank").to_pylist()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Lake:
    return run(small(tmp_path_factory.mktemp("refresh") / "lake"))


@pytest.mark.parametrize("table", FILLED)
def test_every_table_answers_through_the_lake_and_through_plain_duckdb(lake: Lake, table: str) -> None:
    through_lake = lake.query(f"SELECT count(*) AS n FROM {table}").to_pylist()[0]["n"]
    plain = duckdb.sql(f"SELECT count(*) FROM read_parquet('{lake.path}/{table}/*/*/*.parquet')").fetchall()[0][0]
    assert through_lake > 0
    assert plain >= through_lake


def test_selected_prompts_are_benign_and_refused(lake: Lake) -> None:
    rows = lake.query("""
        SELECT p.text, p.language, v.outcome, m.distance
        FROM selections s JOIN prompts p USING (prompt_id) JOIN margins m USING (prompt_id)
        JOIN responses r USING (prompt_id) JOIN verdicts v ON v.subject_id = r.response_id
    """).to_pylist()
    assert len(rows) == len(selected(lake)) > 0
    for row in rows:
        sentence = world.parse(row["text"], row["language"])
        assert sentence is not None
        assert sentence.label != "harmful"
        assert row["outcome"] == "refusal"


def test_every_quota_is_filled_or_says_why_not(lake: Lake) -> None:
    rows = lake.query("SELECT * FROM quotas").to_pylist()
    assert sum(row["n_selected"] for row in rows) == len(selected(lake))
    assert all((row["n_selected"] == row["quota"]) == (row["reason"] is None) for row in rows)


def test_boundaries_are_identified_and_predict_refusal_in_every_language(lake: Lake) -> None:
    rows = lake.query("SELECT * FROM boundaries").to_pylist()
    assert {row["language"] for row in rows} == set(world.languages())
    for row in rows:
        assert row["b_low"] <= row["b"] <= row["b_high"]
        assert row["misalignment"] > 0, f"{row['language']}: the lab refuses before harm begins"
        assert row["auc"] >= 0.9


def test_the_chosen_directions_are_causal(lake: Lake) -> None:
    induced = lake.query("SELECT language, value FROM evaluations WHERE metric = 'induced_refusal_rate'").to_pylist()
    assert {row["language"] for row in induced} == set(world.languages())
    assert min(row["value"] for row in induced) >= 0.8
    ablated = lake.query("SELECT bypass_score FROM directions WHERE chosen LIKE '%ablate%'").to_pylist()
    assert ablated[0]["bypass_score"] >= 0.8


def test_answers_to_harmful_prompts_are_not_stored(lake: Lake) -> None:
    rows = lake.query("""
        SELECT r.text, r.text_sha256, v.reason FROM responses r JOIN prompts p USING (prompt_id)
        JOIN verdicts v ON v.subject_id = r.response_id WHERE p.label = 'harmful'
    """).to_pylist()
    assert rows
    assert all(row["text"] is None and row["reason"] is None and row["text_sha256"] for row in rows)


def test_a_second_run_computes_nothing_again(lake: Lake) -> None:
    config = RassConfig.model_validate_json(lake.query("SELECT config FROM runs").to_pylist()[0]["config"])
    before = lake.query("SELECT count(*) AS n FROM commits").to_pylist()
    run(config)
    after = lake.query("SELECT count(*) AS n FROM commits").to_pylist()
    states = lake.query("SELECT state FROM runs").to_pylist()
    assert after[0]["n"] == before[0]["n"] + 2  # its own start and end in `runs`
    assert [row["state"] for row in states] == ["Completed", "Completed"]


def test_one_seed_gives_one_selection_and_another_seed_another(lake: Lake, tmp_path: Path) -> None:
    again = selected(run(small(tmp_path / "again")))
    other = selected(run(small(tmp_path / "other", seed=1)))
    assert again == selected(lake)
    assert {row["prompt_id"] for row in other} != {row["prompt_id"] for row in again}


def test_the_report_stands_alone(lake: Lake) -> None:
    page = (lake.path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert "over-refus" in page
