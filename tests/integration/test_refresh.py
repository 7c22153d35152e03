"""The whole flow on the lab, as `rass demo` runs it, only smaller."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from flows.cli import DEMO_CONFIG, app
from rass_core.config import RassConfig, load_config
from rass_core.errors import ModelError
from rass_core.judges.settings import JudgeConfig
from rass_core.lab import world
from rass_core.lake.store import Lake
from rass_core.probe.misalignment import EARLY
from rass_core.select.settings import N_HARMFUL
from tests.tiny_models import build

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
        WHERE v.judge = 'panel'
    """).to_pylist()
    assert len(rows) == len(selected(lake)) > 0
    for row in rows:
        sentence = world.parse(row["text"], row["language"])
        assert sentence is not None
        assert sentence.label != "harmful"
        assert row["outcome"] == "refusal"


def test_every_vote_is_a_row_beside_the_panels_verdict(lake: Lake) -> None:
    rows = lake.query("""
        SELECT judge, count(*) AS n, count(DISTINCT subject_id) AS subjects FROM verdicts GROUP BY judge
    """).to_pylist()
    n = {row["judge"]: row["n"] for row in rows}
    assert all(row["n"] == row["subjects"] for row in rows)
    assert set(n) == {"phrases", "classifier", "panel", "first_token", "oracle"}
    assert n["phrases"] == n["classifier"] == lake.query("SELECT count(*) AS n FROM responses").to_pylist()[0]["n"]
    assert n["panel"] == n["phrases"] + n["oracle"]
    stored = lake.query("""
        SELECT count(disagreement) AS n FROM verdicts v JOIN responses r ON r.response_id = v.subject_id
        WHERE judge = 'panel'
    """).to_pylist()
    assert stored[0]["n"] == n["phrases"], "the panel's disagreement is stored beside its verdict"


def test_the_first_tokens_agree_with_the_panel(lake: Lake) -> None:
    rows = lake.query("SELECT * FROM evaluations WHERE metric IN ('first_token_kappa', 'first_token_auc')").to_pylist()
    assert {(row["metric"], row["language"]) for row in rows} == {
        (metric, language) for metric in ("first_token_kappa", "first_token_auc") for language in world.languages()
    }
    assert min(row["value"] for row in rows) >= 0.9


def test_a_calibration_corrects_rates_and_recomputes_no_answer(lake: Lake, tmp_path: Path) -> None:
    from flows.probe import probe

    given = [sentence for language in world.languages() for sentence in islice(world.sentences(language), 40)]
    labels = [
        {"response": sentence.answer(label), "language": sentence.language, "label": label, "model": "another"}
        for sentence in given for label in ("refusal", "compliance")
    ]  # fmt: skip
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)), encoding="utf-8")
    file = tmp_path / "calibration.parquet"
    command = ["judge", "calibrate", "--labels", str(tmp_path / "labels.jsonl"), "--out", str(file)]
    assert CliRunner().invoke(app, command).exit_code == 0
    config = small(Path(lake.path))
    before = lake.query("SELECT count(*) AS n FROM commits").to_pylist()[0]["n"]
    probe(config.model_copy(update={"judge": JudgeConfig(calibration=str(file))}))
    rows = lake.query("""
        SELECT * FROM evaluations WHERE metric = 'over_refusal_rate' AND corrected IS NOT NULL
    """).to_pylist()
    assert {row["language"] for row in rows} == set(world.languages())
    for row in rows:
        assert row["corrected_low"] <= row["corrected"] <= row["corrected_high"]
        assert row["corrected"] == pytest.approx(row["value"], abs=0.05), "the judges hardly err on the lab"
        assert "measured on all models" in row["reason"]
    # Boundaries (4 tables) and steering check (1), each with its row of `stages`; the self-check, the run's start and
    # end: no answers among them.
    assert lake.query("SELECT count(*) AS n FROM commits").to_pylist()[0]["n"] == before + 10


def test_every_quota_is_filled_or_says_why_not(lake: Lake) -> None:
    rows = lake.query("SELECT * FROM quotas").to_pylist()
    assert sum(row["n_selected"] for row in rows) == len(selected(lake))
    assert sum(row["quota"] for row in rows) == 200
    assert all((row["n_selected"] < row["quota"]) == (row["reason"] is not None) for row in rows)
    assert all(row["n_eligible"] < row["quota"] for row in rows if row["reason"])


def test_the_selection_knows_the_harmful_prompts_of_every_language(lake: Lake) -> None:
    rows = lake.query("""
        SELECT language, count(DISTINCT prompt_id) AS n FROM gradients JOIN prompts USING (prompt_id)
        WHERE label = 'harmful' GROUP BY language
    """).to_pylist()
    assert {row["language"]: row["n"] for row in rows} == dict.fromkeys(world.languages(), N_HARMFUL)


def test_boundaries_are_identified_and_predict_refusal_in_every_language(lake: Lake) -> None:
    rows = lake.query("SELECT * FROM boundaries").to_pylist()
    assert {row["language"] for row in rows} == set(world.languages())
    for row in rows:
        assert row["b_low"] <= row["b"] <= row["b_high"]
        assert row["misalignment"] > 0, f"{row['language']}: the lab refuses before harm begins"
        assert row["auc"] >= 0.9


def test_the_lab_refuses_too_early_along_the_axis_of_harm(lake: Lake) -> None:
    assert {row["kind"] for row in lake.query("SELECT kind FROM boundaries").to_pylist()} == {EARLY}
    # A run with a calibration wrote the same rows again.
    columns = "DISTINCT language, dataset, metric, value"
    rows = lake.query(f"SELECT {columns} FROM evaluations WHERE metric LIKE 'over_refused_%' AND value IS NOT NULL")
    for language in (*world.languages(), "all"):
        here = [row for row in rows.to_pylist() if row["language"] == language and row["dataset"] == "pseudo_harmful"]
        shares = [row["value"] for row in here]
        assert len(shares) == 3
        assert sum(shares) == pytest.approx(1.0)
    aucs = lake.query("SELECT metric, min(value) AS value FROM evaluations WHERE metric LIKE 'harm_auc_%' GROUP BY 1")
    lowest = {row["metric"]: row["value"] for row in aucs.to_pylist()}
    assert lowest["harm_auc_axis"] > 0.95
    assert lowest["harm_auc_margin"] > 0.9
    assert lowest["harm_auc_axis_new_source"] is None, "the lab is one source"


def test_generated_prompts_have_a_harm_score_that_follows_their_truth(lake: Lake) -> None:
    rows = lake.query("""
        SELECT m.harm_score, p.text, p.language FROM margins m JOIN prompts p USING (prompt_id)
        WHERE m.split = 'candidate'
    """).to_pylist()
    assert all(row["harm_score"] is not None for row in rows)
    truth = [(row["harm_score"], world.parse(row["text"], row["language"])) for row in rows]
    benign = [score for score, sentence in truth if sentence and sentence.label == "pseudo_harmful"]
    assert np.mean(np.array(benign) < 0) > 0.8, "their half of the axis"


def test_the_chosen_directions_are_causal(lake: Lake) -> None:
    induced = lake.query("SELECT language, value FROM evaluations WHERE metric = 'induced_refusal_rate'").to_pylist()
    assert {row["language"] for row in induced} == set(world.languages())
    assert min(row["value"] for row in induced) >= 0.8
    ablated = lake.query("SELECT bypass_score FROM directions WHERE list_contains(roles, 'ablate')").to_pylist()
    assert ablated[0]["bypass_score"] >= 0.8


def test_answers_to_harmful_prompts_are_not_stored(lake: Lake) -> None:
    rows = lake.query("""
        SELECT r.text, r.text_sha256, v.reason FROM responses r JOIN prompts p USING (prompt_id)
        JOIN verdicts v ON v.subject_id = r.response_id WHERE p.label = 'harmful'
    """).to_pylist()
    assert rows
    assert all(row["text"] is None and row["reason"] is None and row["text_sha256"] for row in rows)


def test_a_second_run_computes_nothing_again(lake: Lake) -> None:
    stored = lake.query("SELECT config FROM runs WHERE flow = 'refresh'").to_pylist()
    config = RassConfig.model_validate_json(stored[0]["config"])
    before = lake.query("SELECT count(*) AS n FROM commits").to_pylist()
    run(config)
    after = lake.query("SELECT count(*) AS n FROM commits").to_pylist()
    states = lake.query("SELECT state FROM runs WHERE flow = 'refresh'").to_pylist()
    assert after[0]["n"] == before[0]["n"] + 2  # its own start and end in `runs`
    assert [row["state"] for row in states] == ["Completed", "Completed"]


def test_every_run_keeps_the_seconds_of_its_stages(lake: Lake) -> None:
    row = lake.query("SELECT stages FROM runs ORDER BY started_at LIMIT 1").to_pylist()[0]
    stages = {stage["stage"]: stage for stage in row["stages"]}
    assert {"responses", "activations", "directions", "round 1", "round 2", "selection"} <= set(stages)
    loads = [name for name in stages if name.startswith("loading ")]
    assert {name.rsplit(" ", 1)[1] for name in loads} == {"vLLM", "transformers"}
    assert all(stage["computed"] and stage["seconds"] > 0 and stage["cpu_seconds"] >= 0 for stage in stages.values())
    run(small(lake.path))
    again = lake.query("SELECT stages FROM runs ORDER BY started_at DESC LIMIT 1").to_pylist()[0]["stages"]
    assert again and not any(stage["computed"] for stage in again)


def test_one_seed_gives_one_selection_and_another_seed_another(lake: Lake, tmp_path: Path) -> None:
    again = selected(run(small(tmp_path / "again")))
    other = selected(run(small(tmp_path / "other", seed=1)))
    assert again == selected(lake)
    assert {row["prompt_id"] for row in other} != {row["prompt_id"] for row in again}


def test_a_generator_of_its_own_is_steered_by_its_own_direction(prefect_server: None, tmp_path: Path) -> None:
    config = small(tmp_path / "two")
    generate = config.generate.model_copy(update={"rounds": 1, "candidates_per_round": 60})
    name = str(Path(DEMO_CONFIG).parent / "weights" / "permissive")
    generator = config.model.model_copy(update={"name": name})
    lake = run(config.model_copy(update={"generator": generator, "generate": generate}))
    added = lake.query("SELECT model_id FROM directions WHERE list_contains(roles, 'add') ORDER BY 1").to_pylist()
    assert [row["model_id"].split("@")[0] for row in added] == ["balanced", "permissive"]
    written = lake.query("SELECT DISTINCT generator_id FROM derivations").to_pylist()
    assert [row["generator_id"].split("@")[0] for row in written] == ["permissive"]
    measured = lake.query("SELECT DISTINCT model_id FROM margins").to_pylist()
    assert [row["model_id"].split("@")[0] for row in measured] == ["balanced"]


def test_a_model_that_refuses_nothing_gets_a_report_that_says_so(prefect_server: None, tmp_path: Path) -> None:
    config = small(tmp_path / "untrained")
    checkpoint = build("qwen2", tmp_path / "qwen2")
    model = config.model.model_copy(update={"name": str(checkpoint), "max_model_len": None})
    lake = run(config.model_copy(update={"model": model}))
    rows = lake.query("SELECT * FROM boundaries").to_pylist()
    assert {row["language"] for row in rows} == set(world.languages())
    for row in rows:
        assert row["b"] is None
        assert row["misalignment"] is None
        assert row["reason"].startswith(f"0 of {row['n']} refused")
    assert lake.query("SELECT count(*) AS n FROM derivations").to_pylist()[0]["n"] == 0
    assert lake.query("SELECT state FROM runs").to_pylist()[0]["state"] == "Completed"
    assert "0 of" in (lake.path / "report.html").read_text(encoding="utf-8")


def test_a_broken_model_ends_the_run_in_one_clear_line(prefect_server: None, tmp_path: Path) -> None:
    config = small(tmp_path / "broken")
    checkpoint = build("llama", tmp_path / "llama")
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({**weights, name: torch.full_like(weights[name], torch.nan)}, checkpoint / "model.safetensors")
    model = config.model.model_copy(update={"name": str(checkpoint), "max_model_len": None})
    with pytest.raises(ModelError, match="is not finite"):
        run(config.model_copy(update={"model": model}))
    states = Lake.open(config.lake).query("SELECT state, note FROM runs").to_pylist()
    assert states[0]["state"] == "Failed"
    assert "not finite" in states[0]["note"]


def test_the_report_stands_alone(lake: Lake) -> None:
    page = (lake.path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert "over-refus" in page


def test_a_trial_compares_the_writers_and_the_rounds_use_what_it_chose(prefect_server: None, tmp_path: Path) -> None:
    config = small(tmp_path / "trial")
    changed = {"writers": None, "operators": ["rewrite", "context", "imitate"], "rounds": 1, "candidates_per_round": 40}
    lake = run(config.model_copy(update={"generate": config.generate.model_copy(update=changed)}))
    tried = lake.query("SELECT * FROM writers").to_pylist()
    assert {row["role"] for row in tried if row["steering"] == "none"} == {"assistant", "prefilled", "user"}
    assert {row["steering"] for row in tried} >= {"probe", "harm", "harm_without_refusal", "content", "refusal"}
    for row in tried:
        assert row["n_candidates"] == row["n_new"] + sum(each["n"] for each in row["dropped"])
    chosen = {(row["role"], row["steering"], row["layer"]) for row in tried if row["chosen"]}
    used = lake.query("SELECT DISTINCT role, steering, layer FROM rounds").to_pylist()
    assert chosen
    assert {tuple(row.values()) for row in used} <= chosen
    written = lake.query("SELECT round, count(*) AS n FROM derivations GROUP BY 1 ORDER BY 1").to_pylist()
    assert [row["round"] for row in written] == [-1, 0]
    twice = lake.query("SELECT prompt_id FROM prompts WHERE source LIKE 'rass:%' GROUP BY 1 HAVING count(*) > 1")
    assert twice.num_rows == 0
    content = lake.query("SELECT layer FROM directions WHERE kind = 'content'").to_pylist()
    assert {row["layer"] for row in content} <= {row["layer"] for row in tried}
