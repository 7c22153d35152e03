"""The time of each stage follows the settings and the speed of the machine."""

import re
from pathlib import Path
from typing import Any

import pytest

from rass_core.estimate import machine
from rass_core.estimate.machine import Shape, Speed
from rass_core.estimate.plan import plan_run
from rass_core.mitigate.base import MethodSettings, MitigatedModel, MitigationContext, MitigationMethod
from tasks import reference
from tasks.stage import STAGES
from tests import tiny_models
from tests.plan_runs import SPEED, config, times, write_prompts

QUICK = {"prompts", "moderators", "gate\\ of\\ .+"}
"""Titles of stages that take no time worth a line."""
BENCHMARK = {re.escape(name) for name in ("benchmark prompts", "benchmark margins", "back-translation")}
"""Those of `rass morbench`, which is not planned."""


@pytest.fixture(autouse=True)
def fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_measured", lambda *_: SPEED)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


def test_every_stage_of_the_run_has_a_time(checkpoint: Path, prompts: Path) -> None:
    reference.page()  # imports every stage
    short = {"rounds": 2, "candidates_per_round": 8}
    probing = ["responses", "activations", "directions", "boundaries", "steering check", "first tokens"]
    loads = {"loading in vLLM", "loading in transformers"}
    plain = times(plan_run(config(checkpoint, prompts, generate=short)))
    assert set(plain) == {*probing, "round 1", "round 2", "selection", *loads}
    assert all(seconds > 0 for seconds in plain.values())
    mitigated = times(
        plan_run(config(checkpoint, prompts, generate=short, mitigate={"methods": ["dpo", "weight_ablation"]}))
    )
    changed = {f"{what} {name}" for what in ("evaluation of", "change by") for name in ("dpo", "weight_ablation")}
    answered = {f"answers of {name}" for name in ("base", "dpo", "weight_ablation")}
    training = {"preferences", "false-refusal direction", "dpo", "weight_ablation"}
    assert set(mitigated) - set(plain) == {"evaluation of base", *training, *changed, *answered}
    # A stage is called the same in the plan, in the run's lines and in table `runs`.
    titles = [re.sub(r"\\\{.*?\\\}", ".+", re.escape(each.title)) for each in STAGES.values()]
    named = {*mitigated} - loads - {"dpo", "weight_ablation"}
    assert not [name for name in named if not any(re.fullmatch(title, name) for title in titles if title != ".+")]
    untimed = {title for title in titles if not any(re.fullmatch(title, name) for name in {*mitigated})}
    assert untimed - QUICK - BENCHMARK == {re.escape("trial of the writers")}, "give it a function in costs.py"


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
    assert speed.block_s > 0 and speed.backward_s > 0
    assert speed.step_full_s > 0 and speed.step_one_s > 0 and speed.head_s > 0
    assert speed.slowdown >= 1
    assert Speed.measured(shape, 16, seconds=0.001) is speed, "measured once"
