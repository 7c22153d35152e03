"""The plan: what a run reads, asks for and needs, counted from files alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from rass_core.errors import JudgeError, PromptError
from rass_core.estimate import machine
from rass_core.estimate.plan import plan_run
from rass_core.estimate.resources import BYTES_PER_VALUE
from rass_core.units import duration
from tasks.inputs import read_given
from tests import tiny_models
from tests.plan_runs import ENDPOINT, SPEED, N, config, planned, times, write_prompts


@pytest.fixture(autouse=True)
def fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_measured", lambda *_: SPEED)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


def test_prompts_are_counted_by_language_and_label(checkpoint: Path, prompts: Path) -> None:
    rows = planned(config(checkpoint, prompts))
    assert rows["prompts"] == ("24", "read from the sources; dropped: 1 empty, 1 duplicate")
    value, how = rows["prompts, en"]
    assert value == "5 harmful, 9 pseudo_harmful, 7 harmless"
    by_split = [list(map(int, part.split()[1].split("/"))) for part in how.split("; ")]
    assert [sum(column) for column in zip(*by_split, strict=True)] == [5, 9, 7]
    value, how = rows["prompts, sw"]
    assert value == "3 harmful, 0 pseudo_harmful, 0 harmless"
    assert "no pseudo_harmful and no harmless ones" in how


def test_requests_and_tokens_are_upper_limits(checkpoint: Path, prompts: Path) -> None:
    settings: dict[str, Any] = {
        "probe": {"max_new_tokens": 10, "n_causal_prompts": 4},
        "generate": {"rounds": 2, "candidates_per_round": 30, "max_new_tokens": 20},
    }
    rows = planned(config(checkpoint, prompts, moderator={"members": [{"kind": "oracle"}]}, **settings))
    expected = {
        "answers to the given prompts": (N, 10),
        "steered answers": (4, 10),
        "prompts written": (60, 20),
        "prompts measured": (60, 10),
    }
    for what, (n, new) in expected.items():
        assert rows[what][0] == f"≤ {n:,} requests, ≤ {n * new:,} new tokens"
    n, new = sum(n for n, _ in expected.values()), sum(n * new for n, new in expected.values())
    assert rows["requests and new tokens in all"][0] == f"≤ {n:,} and ≤ {new:,}"
    assert rows["model loads"][0] == "2"
    assert "prompts moderated" not in rows

    by_model = planned(config(checkpoint, prompts, model={"max_model_len": 512}, **settings))
    value, how = by_model["prompts moderated"]
    assert value == "≤ 60 requests, ≤ 24,000 new tokens"
    assert "TOO LONG" in how, "by bytes the rubric does not fit into 512 tokens"
    judge = {"members": [{"kind": "phrases"}, {"kind": "llm", "n_attempts": 2, **ENDPOINT}]}
    n_judged = N + 4 + 60
    assert planned(config(checkpoint, prompts, judge=judge, **settings))["calls of the judge"][0] == f"≤ {2 * n_judged}"
    by_generator = planned(config(checkpoint, prompts, judge={"members": [{"kind": "llm"}]}, **settings))
    assert by_generator["responses judged"][0].startswith(f"≤ {n_judged} requests")
    by_endpoint = planned(config(checkpoint, prompts, moderator={"members": [ENDPOINT]}, **settings))
    assert by_endpoint["calls of the moderator"][0] == "≤ 60"
    assert by_endpoint["requests and new tokens in all"] == rows["requests and new tokens in all"]


def test_a_generator_of_its_own_answers_and_is_loaded_too(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    other = tiny_models.build("qwen2", tmp_path / "other")
    rows = planned(config(checkpoint, prompts, generator={"name": str(other)}))
    assert rows["model loads"][0] == "4"
    assert rows["answers of the generator"][0] == f"≤ {N} requests, ≤ {N * 48:,} new tokens"
    assert f"tokens of the prompts, {other}" in rows
    assert rows["disk for activations"][1].count(f"{N} prompts × 4 layers") == 2


def test_disk_follows_layers_positions_and_width(checkpoint: Path, prompts: Path) -> None:
    def disk(**probe: Any) -> tuple[str, str]:
        small = {"rounds": 1, "candidates_per_round": 8}
        return planned(config(checkpoint, prompts, probe=probe, generate=small))["disk for activations"]

    value, how = disk(layers=[1, 2], positions=[-1])
    assert value == f"{(N * 2 * 1 * 64 + 8 * 64) * BYTES_PER_VALUE / 1000:.3g} kB"
    assert "24 prompts × 2 layers × 1 positions × 64" in how
    assert "24 prompts × 4 layers × 4 positions × 64" in disk()[1], "a fifth of four layers is none"


def test_the_verdict_names_time_disk_memory_and_what_is_missing(checkpoint: Path, prompts: Path) -> None:
    plan = plan_run(config(checkpoint, prompts))
    assert "\n" not in plan.verdict
    time, disk, memory = (
        planned(config(checkpoint, prompts))[what][0] for what in ("time", "disk for activations", "memory")
    )
    assert plan.verdict.startswith(f"{time}, {disk} of disk, {memory} of memory; TOO FEW prompts, below 20: en (")
    assert "0 harmless in test" in plan.verdict.split("sw (")[1]
    assert time == f"about {duration(sum(times(plan).values()))}"


def test_enough_prompts_are_said_to_be_enough(checkpoint: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": f"{label} {n}", "language": "en", "label": label})
        for label in ("harmful", "harmless", "pseudo_harmful")
        for n in range(200)
    ]
    (tmp_path / "many.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert plan_run(config(checkpoint, tmp_path / "many.jsonl")).verdict.endswith("enough prompts of each label")


def test_prompts_that_cannot_be_read_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such file"):
        plan_run(config(checkpoint, tmp_path / "none.csv"))


def test_mitigation_and_further_models_are_planned(checkpoint: Path, prompts: Path) -> None:
    mitigate = {
        "methods": ["dpo", "inference_ablation"],
        "alphas": [0.5, 1.0],
        "training": {"epochs": 2.0, "batch_size": 8},
    }
    sections = {
        "models": [{"name": str(checkpoint)}],
        "mitigate": mitigate,
        "select": {"size": 10},
        "evaluate": {
            "sources": [{"path": str(prompts)}],
            "jailbreaks": {"names": ["suffix", "base64"], "n_prompts": 1},
        },
    }
    rows = planned(config(checkpoint, prompts, **sections))
    assert rows["model loads"][0] == "10"
    assert rows["training steps, dpo"][0] == "≤ 8", "2 epochs over 30 pairs, 8 a step"
    assert "training steps, inference_ablation" not in rows
    assert rows["answers of the further models"][0].startswith(f"≤ {N} requests")
    assert rows["answers to be learnt"][0].startswith("≤ 60 requests"), "10 × 2 strengths, 10 own, 30 anchors"
    how = rows["answers of the evaluation"][1]
    assert "3 variants × (" in how and "and 8 in attacks)" in how, "2 of either language in 2 attacks"
    plain = planned(config(checkpoint, prompts))
    assert not any("evaluation" in what or "training" in what for what in plain)


def test_a_language_without_a_judge_is_reported_and_stops_the_run(
    checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    given = config(checkpoint, prompts)
    found = plan_run(given)
    assert f"; NO JUDGE: language sw (first in {prompts} line 22): no judge of the panel covers it" in found.verdict
    assert ("judges", "NOT ENOUGH") in {(row.what, row.value) for row in found.rows}
    with pytest.raises(JudgeError, match="language sw .*line 22"):
        read_given(given)
    for judge in ({"uncovered": "unscored"}, {"members": [{"kind": "llm", **ENDPOINT}]}):
        allowed = config(checkpoint, prompts, judge=judge)
        assert "NO JUDGE" not in plan_run(allowed).verdict
        assert read_given(allowed).table.num_rows == N
    more = tmp_path / "more.csv"
    more.write_text("text\nBawo ni\n", encoding="utf-8")
    sources = [{"path": str(more), "language": "Yoruba", "label": "harmless"}]
    sections = {"evaluate": {"sources": sources}, "mitigate": {"methods": ["weight_ablation"]}}
    assert f"yo (first in {more} line 2)" in plan_run(config(checkpoint, prompts, **sections)).verdict


def test_conversations_that_are_cut_are_reported(checkpoint: Path, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How do I kill weeds?"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": turns, "language": "EN", "label": "harmless"}), encoding="utf-8")
    assert "1 conversations without the turns before" in planned(config(checkpoint, path))["prompts"][1]
