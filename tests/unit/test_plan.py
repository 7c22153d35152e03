"""The plan: what a run will do, counted from files alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rass_core.config import RassConfig
from rass_core.errors import JudgeError, ModelError, PromptError
from rass_core.estimate import machine
from rass_core.estimate.machine import Shape, Speed
from rass_core.estimate.plan import Plan, plan_run
from rass_core.estimate.resources import BYTES_PER_VALUE
from rass_core.generate.operators import OPERATORS, operator_of
from rass_core.mitigate.base import MethodSettings, MitigatedModel, MitigationContext, MitigationMethod
from rass_core.models.chat import ChatFormat
from rass_core.units import duration
from tasks.inputs import read_given
from tests import tiny_models

COUNTS = {("en", "harmful"): 5, ("en", "harmless"): 7, ("en", "pseudo_harmful"): 9, ("sw", "harmful"): 3}
N = sum(COUNTS.values())
ENDPOINT = {"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "judge"}}


SPEED = Speed(
    block_s=1e-4,
    backward_s=3e-4,
    head_s=1e-5,
    step_one_s=1e-3,
    step_full_s=2e-3,
    n_sequences=64,
    slowdown=1.0,
    device="a made-up machine",
)


@pytest.fixture(autouse=True)
def fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_measured", lambda *_: SPEED)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"text": f"{language} {label} {n}", "language": language, "label": label}
        for (language, label), count in COUNTS.items()
        for n in range(count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, rows[0], {**rows[0], "text": ""}]), encoding="utf-8")
    return path


def config(checkpoint: object, prompts: Path, **sections: Any) -> RassConfig:
    model = {"name": str(checkpoint)} | sections.pop("model", {})
    # One writer, so that no trial is needed.
    instructed = [name for name in OPERATORS.names() if operator_of(name).is_instructed]
    sections["generate"] = {"operators": instructed, "writers": [{"role": "assistant"}]} | sections.get("generate", {})
    return RassConfig.model_validate(
        {"model": model, "prompts": {"sources": [{"path": str(prompts)}]}, "lake": str(prompts.parent / "no" / "lake")}
        | sections
    )


def planned(configuration: RassConfig) -> dict[str, tuple[str, str]]:
    rows = plan_run(configuration).rows
    found = {row.what: (row.value, row.how) for row in rows}
    assert len(found) == len(rows)
    return found


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


def test_tokens_are_those_of_the_chat_template(checkpoint: Path, prompts: Path) -> None:
    chat = ChatFormat(tiny_models.tokenizer())
    texts = {json.loads(line)["text"] for line in prompts.read_text(encoding="utf-8").splitlines()} - {""}
    lengths = [len(chat.ids(text)) for text in texts]
    value, how = planned(config(checkpoint, prompts))[f"tokens of the prompts, {checkpoint}"]
    assert value == str(sum(lengths))
    assert f"longest {max(lengths)}" in how
    assert "TOO LONG" not in how
    short = config(checkpoint, prompts, model={"max_model_len": max(lengths)})
    assert f"TOO LONG for the model's {max(lengths)}" in planned(short)[f"tokens of the prompts, {checkpoint}"][1]


def test_a_large_set_is_sampled(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"text": f"text {n:05}", "language": "en", "label": "harmless"}) for n in range(1201)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines), encoding="utf-8")
    n_tokenised = 0
    ids = ChatFormat.ids

    def counted(self: ChatFormat, prompt: str) -> list[int]:
        nonlocal n_tokenised
        n_tokenised += prompt.startswith("text ")
        return ids(self, prompt)

    monkeypatch.setattr(ChatFormat, "ids", counted)
    rows = planned(config(checkpoint, tmp_path / "many.jsonl"))
    assert 400 <= n_tokenised <= 500
    each = len(ids(ChatFormat(tiny_models.tokenizer()), "text 00000"))
    assert rows[f"tokens of the prompts, {checkpoint}"][0] == f"{1201 * each:,}"


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


def times(plan: Plan) -> dict[str, float]:
    found: dict[str, float] = {}
    for stage in plan.stages:
        found[stage.stage] = found.get(stage.stage, 0.0) + stage.seconds
    return found


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


def test_every_stage_of_the_run_has_a_time(checkpoint: Path, prompts: Path) -> None:
    short = {"rounds": 2, "candidates_per_round": 8}
    probing = ["responses", "activations", "directions", "boundaries", "steering check", "first tokens"]
    loads = {"loading in vLLM", "loading in transformers"}
    plain = times(plan_run(config(checkpoint, prompts, generate=short)))
    assert set(plain) == {*probing, "round 1", "round 2", "selection", *loads}
    assert all(seconds > 0 for seconds in plain.values())
    mitigated = times(
        plan_run(config(checkpoint, prompts, generate=short, mitigate={"methods": ["dpo", "weight_ablation"]}))
    )
    more = {f"{what} {name}" for what in ("evaluation of", "change by") for name in ("dpo", "weight_ablation")}
    assert set(mitigated) - set(plain) == {"preferences", "false-refusal direction", "evaluation of base", "dpo",
                                           "weight_ablation", *more}  # fmt: skip


def test_a_trial_of_the_writers_is_counted(checkpoint: Path, prompts: Path) -> None:
    every = {"rounds": 1, "candidates_per_round": 30, "trial_candidates": 70, "max_new_tokens": 20, "writers": None}
    plan = plan_run(config(checkpoint, prompts, generate=every))
    assert times(plan)["trial of the writers"] > times(plan)["round 1"]
    written = next(row for row in plan.rows if row.what == "prompts written")
    assert written.value == "≤ 100 requests, ≤ 2,000 new tokens"


def test_times_follow_the_settings(checkpoint: Path, prompts: Path) -> None:
    def of(**sections: Any) -> dict[str, float]:
        return times(plan_run(config(checkpoint, prompts, **sections)))

    one, two = (of(probe={"n_causal_candidates": n, "alphas": [1.0]}) for n in (1, 2))
    assert two["directions"] > one["directions"]
    more = of(probe={"n_causal_candidates": 1, "alphas": [1.0, 2.0]})
    assert more["directions"] > one["directions"]
    few, many = (of(generate={"rounds": 1, "candidates_per_round": n}) for n in (64, 640))
    assert 5 < many["round 1"] / few["round 1"] < 11
    assert many["selection"] > few["selection"]
    assert many["responses"] == few["responses"]
    means, learned = (
        of(mitigate={"methods": ["weight_ablation"], "direction": each}) for each in ("mean_difference", "learned")
    )
    assert learned["false-refusal direction"] > 10 * means["false-refusal direction"]


def test_a_busy_machine_makes_everything_slower(
    checkpoint: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = times(plan_run(config(checkpoint, prompts)))
    busy = Speed(
        block_s=1e-3,
        backward_s=3e-3,
        head_s=1e-4,
        step_one_s=1e-2,
        step_full_s=2e-2,
        n_sequences=64,
        slowdown=10.0,
        device="a busy machine",
    )
    monkeypatch.setattr(machine, "_measured", lambda *_: busy)
    plan = plan_run(config(checkpoint, prompts))
    assert plan.slowdown == 10.0
    for stage, seconds in times(plan).items():
        assert seconds == pytest.approx(10 * quiet[stage])
    assert "10 % of a core" in {row.what: row for row in plan.rows}["time"].how


def test_the_speed_of_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shape = Shape(
        n_layers=2,
        d_model=64,
        d_ff=128,
        n_heads=2,
        vocabulary=200,
        n_parameters=100_000,
        bytes_per_parameter=4,
        dtype="float32",
    )
    speed = Speed.measured(shape, 16, seconds=0.001)
    assert 0 < speed.block_s < speed.backward_s
    assert speed.step_full_s > 0 and speed.step_one_s > 0 and speed.head_s > 0
    assert speed.slowdown >= 1
    assert Speed.measured(shape, 16, seconds=0.001) is speed, "measured once"


def test_a_hub_model_that_is_not_here_is_said_to_be_unknown(prompts: Path) -> None:
    rows = planned(config("no-such-org/no-such-model", prompts))
    value, how = rows["tokens of the prompts, no-such-org/no-such-model"]
    assert (value, "not in the cache" in how) == ("not known", True)
    assert rows["disk for activations"][0] == rows["time"][0] == rows["memory"][0] == "not known"
    assert rows["answers to the given prompts"][0] == f"≤ {N} requests, ≤ {N * 48:,} new tokens"


def copied(checkpoint: Path, target: Path) -> Path:
    shutil.copytree(checkpoint, target)
    return target


def test_models_that_cannot_run_are_refused(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        plan_run(config(tmp_path / "none", prompts))
    with pytest.raises(ModelError, match=r"no config\.json"):
        plan_run(config(prompts.parent, prompts))
    with pytest.raises(ModelError, match="neither a folder nor a name of the hub"):
        plan_run(config("a name with blanks", prompts))

    bare = copied(checkpoint, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        plan_run(config(bare, prompts))

    unweighted = copied(checkpoint, tmp_path / "unweighted")
    (unweighted / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights in it"):
        plan_run(config(unweighted, prompts))
    (unweighted / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        plan_run(config(unweighted, prompts))

    broken = copied(checkpoint, tmp_path / "broken")
    (broken / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read") as caught:
        plan_run(config(broken, prompts))
    assert "\n" not in str(caught.value)


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


def test_what_has_no_known_time_is_named(checkpoint: Path, prompts: Path) -> None:
    judge = {"members": [{"kind": "phrases"}, {"kind": "hf", "model": "some/judge"}]}
    plan = plan_run(config(checkpoint, prompts, judge=judge))
    assert "some parts are not in the time" in plan.verdict
    assert "WITHOUT some/judge" in {row.what: row for row in plan.rows}["time"].how
    assert "not in the time" not in plan_run(config(checkpoint, prompts)).verdict


class Unmeasured(MitigationMethod[MethodSettings]):
    def apply(self, context: MitigationContext) -> MitigatedModel:
        return MitigatedModel()


def test_a_users_own_method_is_planned_without_its_time(checkpoint: Path, prompts: Path) -> None:
    plan = plan_run(config(checkpoint, prompts, mitigate={"methods": ["sft", f"{__name__}:Unmeasured"]}))
    assert times(plan)["Unmeasured"] == 0
    assert times(plan)["evaluation of Unmeasured"] == times(plan)["evaluation of sft"] > 0
    rows = {row.what: row.how for row in plan.rows}
    assert "for each of sft, Unmeasured once" in rows["model loads"]
    assert "WITHOUT Unmeasured" in rows["time"]
    assert "training steps, sft" in rows and "training steps, Unmeasured" not in rows


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
