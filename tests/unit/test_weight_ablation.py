"""The weight edit equals ablation by hooks, on every shape for which that can be so, and keeps harm."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from rass_core.errors import ActivationError, ConfigError, ModelError
from rass_core.mitigate import weight_ablation as module
from rass_core.mitigate.weight_ablation import removable, surgical, writers
from rass_core.models.causal_lm import decoder_blocks, load_causal_lm
from rass_core.models.interventions import ablating
from tests import tiny_models

EXACT = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gpt_neox", "gemma", "llama-tied", "llama-biased")
"""gpt_neox has biases and blocks whose halves run side by side; gemma scales its embedding and ties it."""
INEXACT = ("gemma2", "mixtral")
D = tiny_models.D_MODEL
TOKENS = torch.tensor([[(17 * i + 3) % 260 + 9 for i in range(24)]])
HARM, FALSE = (np.random.default_rng(seed).standard_normal(D) for seed in (0, 1))
UNIT = torch.from_numpy(removable(FALSE, HARM))


def build(name: str, folder: Path) -> Path:
    architecture, _, variant = name.partition("-")
    with pytest.MonkeyPatch.context() as patch:
        more = {"tied": {"tie_word_embeddings": True}, "biased": {"attention_bias": True, "mlp_bias": True}, "": {}}
        shape = tiny_models.ARCHITECTURES.get(architecture, {**tiny_models.ARCHITECTURES["llama"], "head_dim": 32})
        tied = {"tie_word_embeddings": True} if architecture == "gemma" else {}
        patch.setitem(tiny_models.ARCHITECTURES, architecture, {**shape, **tied, **more[variant]})
        tiny_models.build(architecture, folder)
    model, _ = load_causal_lm(str(folder))
    draw = torch.Generator().manual_seed(5)
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name or parameter_name.endswith("bias"):  # fresh ones are all 1 or 0: a mistake hides
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build(name, tmp_path_factory.mktemp(name)) for name in (*EXACT, *INEXACT)}


@contextmanager
def writing_less(model: Any, strength: float) -> Iterator[None]:
    """Hooks, written apart from the code under test: all that is put onto the stream loses λ of the component."""

    def less(_module: nn.Module, _args: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        changed = stream - strength * (stream @ UNIT.float())[..., None] * UNIT.float()
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    halves = ("self_attn", "attention", "mlp")
    inner = [half for block in decoder_blocks(model) for name, half in block.named_children() if name in halves]
    assert len(inner) == 2 * tiny_models.N_LAYERS
    with ExitStack() as hooks:
        for each in [model.get_input_embeddings(), *inner]:
            hooks.enter_context(each.register_forward_hook(less))
        yield


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def saved(folder: Path) -> Any:
    return load_causal_lm(str(folder))[0]


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("name", EXACT)
def test_the_checkpoint_answers_as_the_hooked_model_does(
    bases: dict[str, Path], tmp_path: Path, name: str, strength: float
) -> None:
    base = saved(bases[name])
    with writing_less(base, strength):
        expected = logits(base)
    surgical(str(bases[name]), 3 * FALSE, 2 * HARM, strength, tmp_path)
    torch.testing.assert_close(logits(saved(tmp_path)), expected, atol=2e-4, rtol=1e-4)
    assert (expected - logits(base)).abs().max() > 0.05


@pytest.mark.parametrize("name", EXACT)
def test_in_full_it_is_activation_ablation_that_sees_both_halves_of_a_block(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """`ablating` leaves an MLP what its own block's attention wrote; with that taken too, both agree."""
    base = saved(bases[name])
    with writing_less(base, 1.0), ablating(base, UNIT.float()):
        expected = logits(base)
    surgical(str(bases[name]), FALSE, HARM, 1.0, tmp_path)
    edited = saved(tmp_path)
    plain = logits(edited)
    torch.testing.assert_close(plain, expected, atol=2e-4, rtol=1e-4)
    with ablating(edited, UNIT.float()):  # nothing is left to ablate
        torch.testing.assert_close(logits(edited), plain, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("name", [name for name in EXACT if name not in ("gpt_neox", "llama-biased")])
def test_the_adapter_answers_as_the_checkpoint_does(
    bases: dict[str, Path], tmp_path: Path, name: str, strength: float
) -> None:
    from peft import PeftModel

    surgical(str(bases[name]), FALSE, HARM, strength, tmp_path / "checkpoint")
    surgery = surgical(str(bases[name]), FALSE, HARM, strength, tmp_path / "adapter", adapter=True)
    adapted = PeftModel.from_pretrained(saved(bases[name]), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(adapted), logits(saved(tmp_path / "checkpoint")), atol=2e-4, rtol=1e-4)
    assert surgery.is_adapter and (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["gpt_neox", "llama-biased"])
def test_no_adapter_where_biases_would_have_to_change(bases: dict[str, Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="has a bias, which no adapter changes"):
        surgical(str(bases[name]), FALSE, HARM, 1.0, tmp_path, adapter=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", INEXACT)
def test_what_no_weight_edit_can_do_is_refused(bases: dict[str, Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="block 0 writes to the residual stream through more than its"):
        surgical(str(bases[name]), FALSE, HARM, 1.0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_learnt_positions_are_noticed(bases: dict[str, Path]) -> None:
    model = saved(bases["llama"])
    hook = model.get_input_embeddings().register_forward_hook(lambda _m, _a, rows: rows + torch.randn(rows.shape))
    with pytest.raises(ModelError, match="more than the embedding enters"):
        writers(model)
    hook.remove()
    assert len(writers(model)) == 2 * tiny_models.N_LAYERS


def test_what_is_written_along_harm_stays_and_a_shared_head_does_too(bases: dict[str, Path], tmp_path: Path) -> None:
    surgery = surgical(str(bases["llama-tied"]), FALSE + HARM, HARM, 1.0, tmp_path)
    before, after = saved(bases["llama-tied"]), saved(tmp_path)
    harm = torch.from_numpy(HARM / np.linalg.norm(HARM)).float()
    for name, each in writers(before).items():
        edited = after.get_submodule(name).weight
        torch.testing.assert_close(harm @ edited, harm @ each.weight, atol=1e-5, rtol=1e-5)
        assert (UNIT.float() @ edited).abs().max() < 1e-5 < (UNIT.float() @ each.weight).abs().max()
    torch.testing.assert_close(after.get_output_embeddings().weight, before.get_output_embeddings().weight)
    assert not after.config.tie_word_embeddings and before.config.tie_word_embeddings
    assert surgery.harm_cosine == pytest.approx(
        np.dot(FALSE + HARM, HARM) / np.linalg.norm(FALSE + HARM) / np.linalg.norm(HARM)
    )
    assert surgery.n_matrices == 2 * tiny_models.N_LAYERS + 1


def test_nothing_is_saved_where_harm_would_be_removed(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ActivationError, match="nothing of v is left"):
        surgical(str(bases["llama"]), 2 * HARM, HARM, 1.0, tmp_path)
    monkeypatch.setattr(module, "orthogonalise", lambda v, _against: v)  # were the orthogonalisation broken
    with pytest.raises(ModelError, match="no model is saved without its harm direction"):
        surgical(str(bases["llama"]), HARM + FALSE, HARM, 1.0, tmp_path)
    monkeypatch.setattr(module, "removable", lambda v, _harm: v / np.linalg.norm(v))  # and its check too
    with pytest.raises(ModelError, match="changed what is written along the harm direction"):
        surgical(str(bases["llama"]), HARM + FALSE, HARM, 1.0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_makes_no_edit_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    for strength in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="strength"):
            surgical(str(bases["llama"]), FALSE, HARM, strength, tmp_path)
    with pytest.raises(ActivationError, match=r"has 64; use this model's own"):
        surgical(str(bases["llama"]), FALSE[:8], HARM[:8], 1.0, tmp_path)
    with pytest.raises(ActivationError, match="against is zero"):
        surgical(str(bases["llama"]), FALSE, np.zeros(D), 1.0, tmp_path)


def test_in_half_precision_it_is_the_same_but_for_rounding(bases: dict[str, Path], tmp_path: Path) -> None:
    surgical(str(bases["llama"]), FALSE, HARM, 1.0, tmp_path / "full")
    surgical(str(bases["llama"]), FALSE, HARM, 1.0, tmp_path / "half", dtype="bfloat16")
    full, half = saved(tmp_path / "full"), saved(tmp_path / "half")
    for (name, a), (_, b) in zip(full.named_parameters(), half.named_parameters(), strict=True):
        assert (a - b).abs().max() <= 0.02 * a.abs().max(), name


def test_the_card_names_the_base_but_not_where_it_lies(bases: dict[str, Path], tmp_path: Path) -> None:
    surgical(str(bases["llama"]), FALSE, HARM, 0.5, tmp_path / "a")
    surgical(str(bases["llama"]), FALSE, HARM, 0.5, tmp_path / "b", adapter=True)
    for folder in ("a", "b"):
        card = (tmp_path / folder / "README.md").read_text()
        header = yaml.safe_load(card.split("---\n")[1])
        assert header["base_model"] == bases["llama"].name and "surgical" in header["tags"]
        assert "| strength | 0.5 |" in card
        for file in (tmp_path / folder).glob("*.[jm]*"):
            assert str(bases["llama"].parent) not in file.read_text(errors="ignore"), file.name
