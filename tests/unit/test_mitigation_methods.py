"""Mitigation methods: what a configuration may name, what a variant's folder keeps, and names of the version before."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from rass_core.config import RassConfig
from rass_core.errors import ActivationError, BoundaryError, ConfigError
from rass_core.mitigate.base import (
    MITIGATIONS,
    MethodSettings,
    MitigatedModel,
    MitigationContext,
    MitigationMethod,
    method_of,
)
from rass_core.mitigate.pairs import PreferencePair
from rass_core.mitigate.settings import MitigateConfig
from rass_core.mitigate.variant import mitigate
from rass_core.models.settings import ModelConfig
from rass_core.probe.geometry import Direction
from rass_core.report.mitigation import change_rows_shown
from tasks.keys import own_code

PAIR = PreferencePair("a", "over_refusal", "How?", "en", "So.", "No.")
HARM, FALSE_REFUSAL = np.array([0.0, 2.0, 0.0]), np.array([3.0, 1.0, 0.0])


class Recording(MitigationMethod[MethodSettings]):
    """Writes fixed weights, and counts how often."""

    n_calls = 0

    def apply(self, context: MitigationContext) -> MitigatedModel:
        type(self).n_calls += 1
        context.checkpoint.mkdir(exist_ok=True)
        (context.checkpoint / "model.safetensors").write_bytes(b"weights")
        return MitigatedModel(weights=context.checkpoint, losses=[2.0, 1.0], reason="as asked", harm_cosine=0.5)


class Elsewhere:
    pass


def context(folder: Path, **more: Any) -> MitigationContext:
    return MitigationContext([PAIR], ModelConfig(name="org/model"), None, folder, **more)  # type: ignore[arg-type]


def variants(*methods: Any, **section: Any) -> dict[str, MitigationMethod[Any]]:
    return MitigateConfig.model_validate({"methods": list(methods), **section}).variants()


def test_every_builtin_method_is_registered_under_the_name_of_its_module() -> None:
    assert MITIGATIONS.names() == ["dpo", "inference_ablation", "sft", "weight_ablation"]
    for name in MITIGATIONS.names():
        assert MITIGATIONS.find(name).build.__module__ == f"rass_core.mitigate.methods.{name}"


def test_a_method_takes_the_sections_settings_and_its_entrys_before_them() -> None:
    entries = ["dpo", {"kind": "sft", "training": {"epochs": 2.0}}, {"kind": "weight_ablation", "strength": 0.5}]
    section = {"training": {"epochs": 9.0, "beta": 0.3}, "strength": 0.75, "direction": "mean_difference"}
    found = variants(*entries, "inference_ablation", **section)
    assert list(found) == ["dpo", "sft", "weight_ablation", "inference_ablation"]
    assert [found[name].settings.training.epochs for name in ("dpo", "sft")] == [9.0, 2.0]
    assert found["sft"].settings.training.beta == 0.3, "only what the entry names is replaced"
    assert [found[name].settings.strength for name in ("weight_ablation", "inference_ablation")] == [0.5, 0.75]
    assert {name: method.direction for name, method in found.items()} == {
        "dpo": None, "sft": None, "weight_ablation": "mean_difference", "inference_ablation": "mean_difference",
    }  # fmt: skip
    assert found["weight_ablation"].shown_settings() == {"strength": 0.5, "direction": "mean_difference"}
    assert found["dpo"].shown_settings()["rank"] == 16


def test_efforts_are_those_of_the_training() -> None:
    training = {"epochs": 2.0, "batch_size": 8}
    dpo, sft = (method_of(name, training=training).effort(30) for name in ("dpo", "sft"))
    assert dpo is not None and sft is not None
    assert (dpo.n_steps, dpo.forward_passes, dpo.backward_passes) == (8, 4.0, 4.0)
    assert (sft.n_steps, sft.forward_passes, sft.backward_passes) == (8, 0.0, 2.0)
    assert dpo.how == "2 epochs over ≤ 30 pairs, 8 per step"
    assert Recording(MethodSettings(), "mine").effort(30) is None


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["ppo"], "unknown mitigation method 'ppo'; did you mean 'dpo'"),
        ([7], "needs the name of a method, or {kind: NAME, …}"),
        ([{"share": 1}], "needs the name of a method, or {kind: NAME, …}"),
        ([{"kind": "dpo", "strength": 1}], "methods: dpo: strength: not a setting of it; it takes training"),
        ([{"kind": "sft", "training": {"epochs": -1}}], "methods: sft: training.epochs: Input should be greater"),
        ([{"kind": "sft", "training": 3}], "methods: sft: training: "),
        (["dpo", {"kind": "dpo"}], "methods: one is listed twice"),
        ([f"{__name__}:Elsewhere"], "not one; extend rass_core.mitigate.base.MitigationMethod"),
        ([f"{__name__}:Nowhere"], "holds no class or function 'Nowhere'"),
    ],
)
def test_what_cannot_be_a_method_is_refused(methods: list[Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        variants(*methods)
    assert message in str(caught.value)


def test_names_of_the_version_before_are_read_with_one_warning_each(caplog: pytest.LogCaptureFixture) -> None:
    given = {"model": {"name": "m"}, "prompts": {"sources": [{"path": "p.csv"}]}}
    with caplog.at_level(logging.WARNING, "rass_core"):
        mitigate = {"methods": ["surgical", {"kind": "steer"}], "direction": "drawn"}
        old = RassConfig.model_validate({**given, "mitigate": mitigate}).mitigate
    assert old is not None
    assert list(old.variants()) == ["weight_ablation", "inference_ablation"]
    assert old.direction == "mean_difference"
    assert len(caplog.messages) == 3
    assert all("is now" in message for message in caplog.messages)
    assert MitigateConfig.model_validate(old.model_dump()) == old


def test_a_configuration_is_read_without_torch() -> None:
    code = (
        "import sys; from rass_core.mitigate.base import MITIGATIONS;"
        "from rass_core.mitigate.settings import MitigateConfig; MitigateConfig(methods=MITIGATIONS.names());"
        "print([name for name in ('torch', 'transformers', 'scipy', 'trl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_variant_is_made_once_and_again_where_its_files_are_gone(tmp_path: Path) -> None:
    method, here = Recording(MethodSettings(), "mine"), context(tmp_path / "mine")
    Recording.n_calls = 0
    made, digest = mitigate(method, here)
    assert mitigate(method, here) == (made, digest)
    assert Recording.n_calls == 1
    assert made.weights == here.checkpoint
    (here.checkpoint / "model.safetensors").write_bytes(b"cut o")
    assert mitigate(method, here) == (made, digest)
    (here.folder / "outcome.json").write_text(json.dumps({"digest": digest}), encoding="utf-8")
    mitigate(method, here)
    assert Recording.n_calls == 3


def test_inference_ablation_gives_the_part_orthogonal_to_harm(tmp_path: Path) -> None:
    harm = Direction("harm", "difference_in_means", 1, -1, HARM, roles=("harm",))
    method = method_of("inference_ablation", strength=0.4)
    here = context(tmp_path / "a", directions=[harm], false_refusal=FALSE_REFUSAL)
    made, _ = mitigate(method, here)
    assert made.ablated == pytest.approx([1.0, 0.0, 0.0])
    assert (made.weights, made.strength) == (None, 0.4)
    assert made.harm_cosine == pytest.approx(1 / np.sqrt(10))
    again, _ = mitigate(method, here)
    assert again.ablated == pytest.approx([1.0, 0.0, 0.0]) and again.strength == 0.4
    with pytest.raises(ActivationError, match="no false-refusal direction in the context"):
        mitigate(method, context(tmp_path / "b", directions=[harm]))
    with pytest.raises(BoundaryError, match="no direction has the role 'harm'"):
        mitigate(method, context(tmp_path / "c", false_refusal=FALSE_REFUSAL))


def test_the_probes_direction_is_the_one_at_the_place_of_harm() -> None:
    from rass_core.mitigate.false_refusal import false_refusal_direction

    def known(kind: str, layer: int, language: str | None = None, roles: tuple[str, ...] = ()) -> Direction:
        return Direction(kind, "difference_in_means", layer, -1, np.full(3, float(layer)), language, roles=roles)

    others = [known("false_refusal", 1), known("false_refusal", 2, "de"), known("harm", 2, roles=("harm",))]
    found = false_refusal_direction(
        "mean_difference", [*others, known("false_refusal", 2)], [PAIR], ModelConfig(name="m"), None  # type: ignore[arg-type]
    )  # fmt: skip
    assert found == pytest.approx([2.0, 2.0, 2.0])
    with pytest.raises(BoundaryError, match="set mitigate.direction to learned"):
        false_refusal_direction("mean_difference", others, [PAIR], ModelConfig(name="m"), None)  # type: ignore[arg-type]


def test_a_users_own_file_counts_in_a_stages_key() -> None:
    assert own_code(method_of("dpo")) == own_code(), "those of the project count elsewhere"
    assert own_code(Recording(MethodSettings(), "mine")) != own_code()


def test_the_report_shows_methods_that_it_does_not_know_after_those_it_knows() -> None:
    rows = [
        {"variant": name, "metric": "over_refusal_rate_change", "dataset": "all", "language": "all", "value": -0.1,
         "low": None, "high": None, "p_value": None}
        for name in ("ScaledAdapter", "surgical", "weight_ablation", "dpo")
    ]  # fmt: skip
    rows.append(rows[0] | {"variant": "base", "metric": "over_refusal_rate"})
    shown = [row["variant"] for row in change_rows_shown(rows)]
    assert shown == ["dpo", "weight_ablation", "ScaledAdapter", "surgical"]


def test_a_class_of_another_kind_is_no_method() -> None:
    with pytest.raises(ConfigError, match="not one; extend"):
        method_of(f"{__name__}:Elsewhere")
