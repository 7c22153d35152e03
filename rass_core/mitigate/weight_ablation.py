"""The false-refusal direction removed from a model's weights.

Every matrix that writes to the residual stream loses its component along the direction,
W ← W − λ·v·vᵀ·W, biases likewise, so that nothing ever writes there. The direction is first made
orthogonal to the harm direction, always in full: what separates harmful requests is kept.

`interventions.ablating` removes the component once per block; this also removes it between a block's
attention and its MLP, as Arditi et al. (2024, arXiv 2406.11717, section 4.1) do.

Source: Wang et al., "Surgical, Cheap, and Flexible" (2025, arXiv 2410.03415), whose λ weakens the
orthogonalisation; here λ is the share of the direction that is removed.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rass_core.errors import ActivationError, ConfigError, ModelError
from rass_core.mitigate.card import ModelCard, write_card
from rass_core.models.causal_lm import decoder_blocks, load_causal_lm, model_name, stream_of
from rass_core.models.identity import model_folder
from rass_core.models.loading import check_editable, save_checkpoint
from rass_core.probe.directions import Streams, cosine, orthogonalise
from rass_core.stats.arrays import Array

MAX_HARM_COSINE = 1e-6
"""Largest |cosine| of what is removed with the harm direction; double precision leaves 1e-16."""
_WRITERS = ("o_proj", "down_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "wo", "w2")
"""Names under which architectures keep what writes to the stream; whether there is more is measured."""
_N_PROBE_TOKENS = 8


@dataclass(frozen=True)
class AblatedWeights:
    """An edited model."""

    folder: Path
    """Checkpoint with tokenizer and card."""
    harm_cosine: float
    """Cosine of the given direction with the harm direction; the component along harm was kept."""
    n_matrices: int
    """Edited matrices, the embedding included."""


def ablate_weights(
    base: str, false_refusal_direction: Streams, harm_direction: Streams, strength: float, out: Path,
    dtype: str = "float32",
) -> AblatedWeights:  # fmt: skip
    """Write the model without the false-refusal direction, as an ordinary checkpoint.

    A head that shares the embedding's weights gets its own, unchanged: it reads the stream and
    does not write to it.

    Args:
        base: Folder or hub name of a causal language model.
        false_refusal_direction: (d_model,), its length does not matter.
        harm_direction: (d_model,), of the same model; it is left untouched.
        strength: λ, 1 removes the direction in full.
        out: Folder to write to.
        dtype: In which weights are loaded and saved; bfloat16 rounds the edit.

    Raises:
        ConfigError: λ outside (0, 1].
        ActivationError: Directions of another model, or nothing is left of the one.
        ModelError: A model whose blocks write otherwise than through these matrices, such as through
            norms after them (Gemma 2 and 3) or experts; or the edit would touch the harm direction.
    """
    if not 0.0 < strength <= 1.0:
        raise ConfigError(f"strength {strength}: λ is the share that is removed; give one above 0, at most 1")
    unit = removable(false_refusal_direction, harm_direction)
    check_editable(base)
    model, _ = load_causal_lm(base, dtype, device="cpu")
    d_model = model.config.get_text_config().hidden_size
    if unit.shape != (d_model,):
        raise ActivationError(f"directions: ({unit.size},), {model_name(model)} has {d_model}; use this model's own")
    edited = [model.get_input_embeddings(), *writers(model).values()]
    harm = torch.from_numpy(np.asarray(harm_direction, dtype=np.float64))
    _untie(model)
    for each in edited:
        _edit(each, torch.from_numpy(unit), harm / harm.norm(), strength)
    save_checkpoint(model, model_folder(base), out)
    ablated = AblatedWeights(
        folder=out, harm_cosine=cosine(false_refusal_direction, harm_direction), n_matrices=len(edited)
    )
    _write_card(base, ablated, strength)
    return ablated


def removable(false_refusal_direction: Streams, harm_direction: Streams) -> Array:
    """Return the unit vector (d_model,) that may be removed: orthogonal to the harm direction.

    Raises:
        ActivationError: As `directions.orthogonalise`.
        ModelError: It is not orthogonal; nothing with its harm direction removed is ever saved.
    """
    vector = orthogonalise(false_refusal_direction, harm_direction)
    left = abs(cosine(vector, harm_direction))
    if not left <= MAX_HARM_COSINE:
        raise ModelError(
            f"ablation: what would be removed lies along the harm direction (|cos| {left:.2g}); "
            "check both directions, no model is saved without its harm direction"
        )
    return np.asarray(vector / np.linalg.norm(vector))


@torch.no_grad()
def writers(model: Any) -> dict[str, nn.Linear]:
    """Return name → layer of all that writes to the residual stream but the embedding.

    They are found by name. A forward pass then checks that nothing else writes: the output of every block
    minus its input is the sum of their outputs, and the input of the first block is the embedding, times a
    constant at most.

    Raises:
        ModelError: Something else writes, so that no edit of these weights removes a direction.
    """
    blocks = list(decoder_blocks(model))
    names = {module: name for name, module in model.named_modules()}
    d_model = model.config.get_text_config().hidden_size
    found = [
        [each for each in block.modules() if isinstance(each, nn.Linear) and _writes(names[each], each, d_model)]
        for block in blocks
    ]
    tokens = torch.arange(_N_PROBE_TOKENS)[None] * 7 % model.config.get_text_config().vocab_size
    with _recording([*blocks, *(each for group in found for each in group)]) as seen:
        model(input_ids=tokens, use_cache=False)
    entered = seen[blocks[0]][0]
    _check_embedding(model, tokens, entered)
    for layer, (block, group) in enumerate(zip(blocks, found, strict=True)):
        given, put_out = seen[block]
        change = sum((seen[each][1] for each in group if each in seen), torch.zeros_like(put_out))
        if not torch.allclose(put_out - given, change, atol=_tolerance(model, put_out), rtol=0):
            raise ModelError(
                f"{model_name(model)}: block {layer} writes to the residual stream through more than its "
                f"{len(group)} projections (a norm after them, experts, a multiplier); its weights cannot be edited "
                "exactly: train with dpo or sft"
            )
    return {names[each]: each for group in found for each in group}


def _writes(name: str, module: nn.Linear, d_model: int) -> bool:
    return name.rpartition(".")[2] in _WRITERS and module.out_features == d_model


def _tolerance(model: Any, stream: Tensor) -> float:
    return 32 * torch.finfo(model.dtype).eps * float(stream.abs().max())


def _check_embedding(model: Any, tokens: Tensor, entered: Tensor) -> None:
    """Raise ModelError unless what enters the first block is the embedding, times a constant at most."""
    rows = model.get_input_embeddings().weight[tokens[0]].double()[None]
    scale = (rows * entered).sum() / rows.pow(2).sum()
    if not torch.allclose(entered, scale * rows, atol=_tolerance(model, entered), rtol=0):
        raise ModelError(
            f"{model_name(model)}: more than the embedding enters its first block (learnt positions, a norm); its "
            "weights cannot be edited exactly: train with dpo or sft"
        )


@contextmanager
def _recording(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Record what goes into these modules and what comes out, (1, n_tokens, d), float64."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        seen[module] = (given.double(), stream_of(output).double())

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(record, with_kwargs=True))
        yield seen


def _untie(model: Any) -> None:
    """Give a head that shares the embedding's weights a copy of its own."""
    head = model.get_output_embeddings()
    if head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr():
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


@torch.no_grad()
def _edit(module: nn.Module, removed: Tensor, harm: Tensor, strength: float) -> None:
    """Remove λ of the unit vector from what a layer or embedding writes, in place.

    Raises:
        ModelError: What it writes along the harm direction changed by more than rounding.
    """
    is_embedding = isinstance(module, nn.Embedding)
    for weight in (module.weight, getattr(module, "bias", None)):
        if weight is None:
            continue
        assert isinstance(weight, Tensor)
        # As rows of what is written, each (d_model,): an embedding's rows, a layer's columns, its bias.
        before = weight.double() if is_embedding or weight.ndim == 1 else weight.double().T
        after = before - strength * (before @ removed)[..., None] * removed
        rounded = after.to(weight.dtype)
        moved = ((rounded.double() - before) @ harm).abs().max()
        if not moved <= 4 * torch.finfo(weight.dtype).eps * before.norm():
            raise ModelError("ablation: the edit changed what is written along the harm direction; nothing is saved")
        weight.copy_(rounded if is_embedding or weight.ndim == 1 else rounded.T)


def _write_card(base: str, ablated: AblatedWeights, strength: float) -> None:
    note = (
        f"The false-refusal direction is removed from {ablated.n_matrices} matrices. Its cosine with the harm "
        f"direction was {ablated.harm_cosine:.2f}; it was made orthogonal to it first, in full."
    )
    card = ModelCard(
        base=base, method="weight_ablation", is_adapter=False, settings={"strength": strength}, notes=[note]
    )
    write_card(ablated.folder, card)
