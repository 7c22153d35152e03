"""Models as commands and engines meet them: the self-check, what is refused, and how long a prompt may be."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rass_core.errors import ModelError, SteeringError
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.self_check import SELF_CHECK, check_engine
from rass_core.models.vllm_engine import SteeredEngine, longest_request
from rass_core.models.vllm_requests import GenerationRequest
from rass_core.models.vllm_worker import SteeringExtension
from tests.tiny_models import build, tokenizer

FIGURES = [
    "stream_difference, plain",
    "logprob_difference, plain",
    "stream_difference, steered",
    "logprob_difference, steered",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts, whose tensors are stored otherwise than they are loaded."""
    return build("mixtral", tmp_path_factory.mktemp("models") / "mixtral")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[SteeredEngine]:
    with SteeredEngine(str(folder), kv_cache_gib=0.002) as loaded:
        yield loaded


def test_room_that_is_too_small_for_the_models_own_length_shortens_it(engine: SteeredEngine) -> None:
    """A token takes 1,024 bytes: 0.002 GiB hold 2,097 of them, the model takes 4,096."""
    assert 1500 < engine.max_model_len < 2098
    text = "so " * ((engine.max_model_len - 40) // 3)
    request = GenerationRequest(engine.chat.ids(text), 2)
    assert len(engine.generate([request])[0].token_ids) in (1, 2)
    assert longest_request(engine.chat, ["a", text], 2) == len(request.prompt_ids) + 2


def test_an_engine_that_agrees_passes_with_its_figures(engine: SteeredEngine, folder: Path) -> None:
    found = check_engine(engine, load_causal_lm(str(folder))[0], "float32")
    assert [figure.metric for figure in found.figures] == FIGURES
    assert all(0 <= figure.value < figure.limit / 10 for figure in found.figures)
    assert [row["dataset"] for row in found.rows("m")] == [SELF_CHECK] * 4
    assert "stream_difference, steered" in found.line()


def scaled(model: Any) -> None:
    """As where a scale was dropped from one projection."""
    model.model.layers[1].self_attn.o_proj.weight.data.mul_(8)


def soft_cap_dropped(model: Any) -> None:
    model.lm_head.weight.data.mul_(1.5)


@pytest.mark.parametrize(
    ("change", "named", "not_named"),
    [(scaled, "stream_difference, plain", "nothing"), (soft_cap_dropped, "logprob_difference, plain", "stream")],
)
def test_a_model_that_differs_stops_the_run_with_what_differs(
    change: Callable[[Any], None], named: str, not_named: str, engine: SteeredEngine, folder: Path
) -> None:
    model, _ = load_causal_lm(str(folder))
    change(model)
    with pytest.raises(ModelError, match="compute different values") as caught:
        check_engine(engine, model, "float32")
    assert named in str(caught.value)
    assert not_named not in str(caught.value)
    assert "(at most 0.0" in str(caught.value)


def test_steering_that_only_seems_to_happen_is_found(
    engine: SteeredEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accounts are kept, and nothing is added."""
    truly = SteeringExtension.rass_set_vectors

    def weakly(self: Any, vectors: Any) -> Any:
        return truly(
            self,
            {name: type(each)(np.zeros_like(each.vector), each.layers, each.kind) for name, each in vectors.items()},
        )

    monkeypatch.setattr(SteeringExtension, "rass_set_vectors", weakly)
    worker = engine._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    monkeypatch.setattr(type(worker), "rass_set_vectors", weakly)
    with pytest.raises((ModelError, SteeringError), match="steered") as caught:
        check_engine(engine, load_causal_lm(str(folder))[0], "float32")
    assert "plain" not in str(caught.value)


def test_recurrent_layers_are_refused_on_a_cpu(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "nemotron_h", hidden_size=64, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        intermediate_size=128, vocab_size=272, hybrid_override_pattern="M*M-", mamba_num_heads=4, mamba_head_dim=32,
        ssm_state_size=16, n_groups=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    load_causal_lm(str(tmp_path))
    if torch.cuda.is_available():
        pytest.skip("a GPU computes them")
    with pytest.raises(ModelError, match="NemotronHForCausalLM has recurrent or convolution layers"):
        SteeredEngine(str(tmp_path))


@pytest.mark.parametrize("command", ["evaluate", "probe"])
def test_a_command_refuses_a_model_before_it_writes(command: str, folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    marker = "import pathlib; pathlib.Path(__file__).with_name('marker').write_text('run')\n"
    (broken / "own.py").write_text(marker, encoding="utf-8")
    if command == "probe":
        content = json.loads((broken / "config.json").read_text(encoding="utf-8"))
        content |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
        (broken / "config.json").write_text(json.dumps(content), encoding="utf-8")
    else:
        tensors = load_file(broken / "model.safetensors")
        tensors.pop("model.layers.2.self_attn.o_proj.weight")
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    prompts, config = tmp_path / "prompts.jsonl", tmp_path / "config.yaml"
    rows = [{"text": f"How do I draw cloud {i}?", "label": "harmless", "language": "en"} for i in range(3)]
    prompts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = {"model": {"name": str(broken)}, "prompts": {"sources": [{"path": str(prompts)}]}}
    config.write_text(json.dumps(settings | {"lake": str(tmp_path / "lake")}), encoding="utf-8")
    arguments = ["--dataset", prompts, "--model", broken] if command == "evaluate" else [config]
    result = subprocess.run(
        [sys.executable, "-m", "flows.cli", command, *map(str, arguments)],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    said = [line for line in result.stderr.splitlines() if line.startswith("rass: ")][-1]
    assert result.returncode == 2, result.stderr
    expected = {"evaluate": "lacks 1 weights, such as model.layers.2.self_attn", "probe": "its own code (own.Own)"}
    assert expected[command] in said
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "lake").exists()
    assert not list(broken.rglob("marker"))
