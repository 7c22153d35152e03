"""A direction to take out that is fitted to preference pairs, where the one drawn from means does nothing.

What `surgical` does with it is the same edit of rank 1, held to the same orthogonality; but a
direction that was fitted is not training-free, and whoever shows its figures says so.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rass_core.activations import load_causal_lm
from rass_core.chat import ChatFormat
from rass_core.directions import Array, Rows
from rass_core.errors import ActivationError, ModelError, PromptError
from rass_core.mitigation.surgical import writers
from rass_core.mitigation.train import Progress, Tokens, end_of_answer, tokenised
from rass_core.preferences import KINDS, PreferencePair, check_pairs


def fitted_direction(
    base: str, pairs: Sequence[PreferencePair], harm_directions: Rows, steps: int = 250, batch_size: int = 32,
    learning_rate: float = 0.05, seed: int = 0, chat: ChatFormat | None = None, dtype: str = "float32",
    progress: Progress | None = None,
) -> Array:  # fmt: skip
    """Return the direction without which the model gives the chosen answers likeliest, (d_model,), unit length.

    Each step takes as many pairs of each kind, so that safety weighs as much as over-refusal.

    Args:
        base: Folder or hub name; its weights are not changed.
        pairs: Only their chosen answers are looked at; safety pairs are needed.
        harm_directions: (d_model,) or (n, d_model); the result is orthogonal to all of them.
        chat, dtype, progress: As `train` takes them.

    Raises:
        PromptError: No over_refusal or no safety pairs.
        ActivationError: Harm directions of another model, or so many that nothing is left.
        ModelError: As `writers`, or the loss is no number.
    """
    check_pairs(pairs)
    by_kind = {kind: [pair for pair in pairs if pair.kind == kind] for kind in KINDS}
    missing = [kind for kind in ("over_refusal", "safety") if not by_kind[kind]]
    if missing:
        raise PromptError(f"preferences: no {missing[0]} pairs; a direction fitted without them would unlearn refusing")
    model, tokenizer = load_causal_lm(base, dtype)
    chat = chat or ChatFormat(tokenizer)
    kept = _span(harm_directions, model.config.get_text_config().hidden_size).to(model.device)
    end = end_of_answer(chat, model)
    rows = {kind: tokenised(members, chat, end) for kind, members in by_kind.items() if members}
    model.requires_grad_(False)
    removal = _Removal(model)
    draw = random.Random(seed)
    free = torch.randn(len(kept), generator=torch.Generator().manual_seed(seed)).to(model.device).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=learning_rate)
    try:
        for step in range(steps):
            removal.unit = _orthogonal(free, kept)
            loss = torch.stack([
                _loss(model, draw.sample(members, min(batch_size, len(members)))) for members in rows.values()
            ]).sum()  # fmt: skip
            if not loss.isfinite():
                raise ModelError(f"fitting: the loss is {loss.item()} at step {step}; lower learning_rate")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if progress is not None:
                progress(step + 1, steps)
    finally:
        removal.remove()
    return np.asarray(_orthogonal(free.detach().double(), kept.double()).cpu().numpy())


class _Removal:
    """Takes the component along `unit` out of all that writes to the residual stream, differentiably."""

    unit: Tensor

    def __init__(self, model: nn.Module) -> None:
        written = [model.get_input_embeddings(), *writers(model).values()]  # type: ignore[operator]
        self._hooks = [each.register_forward_hook(lambda _m, _a, output: self._without(output)) for each in written]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _without(self, stream: Tensor) -> Tensor:
        unit = self.unit.to(stream)
        return stream - (stream @ unit)[..., None] * unit


def _span(harm_directions: Rows, d_model: int) -> Tensor:
    """Return an orthonormal basis of the harm directions, (d_model, n), float32."""
    rows = np.atleast_2d(np.asarray(harm_directions, dtype=np.float64))
    if rows.shape[1] != d_model or not np.isfinite(rows).all() or not rows.any(axis=1).all():
        raise ActivationError(
            f"harm directions: need finite (n, {d_model}), none zero, got {rows.shape}; use this model's"
        )
    basis, sizes, _ = np.linalg.svd(rows.T, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]
    if basis.shape[1] >= d_model:
        raise ActivationError(f"harm directions: they span all {d_model} dimensions, nothing is left; give fewer")
    return torch.tensor(basis, dtype=torch.float32)


def _orthogonal(free: Tensor, kept: Tensor) -> Tensor:
    left = free - kept @ (kept.T @ free)
    left = left - kept @ (kept.T @ left)  # once more: the first pass leaves rounding behind
    unit: Tensor = left / left.norm()
    return unit


def _loss(model: nn.Module, rows: Sequence[Tokens]) -> Tensor:
    """Return the mean negative log-probability of a token of the chosen answers, nats."""
    ids = [torch.tensor(row.prompt + row.chosen) for row in rows]
    labels = [torch.tensor([-100] * len(row.prompt) + row.chosen) for row in rows]
    device = next(model.parameters()).device
    tokens, mask, targets = (
        nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=value).to(device)
        for each, value in ((ids, 0), ([torch.ones_like(row) for row in ids], 0), (labels, -100))
    )
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=-100)
