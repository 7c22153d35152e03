"""A false-refusal direction fitted to preference pairs, for models on which the difference in means does nothing.

It is removed by the same edit of rank 1, orthogonal to the same harm directions. Fitting it is training, so a
variant made with it is not training-free.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rass_core.errors import ActivationError, ModelError, PromptError
from rass_core.mitigate.base import Progress
from rass_core.mitigate.lora import Tokens, end_of_answer, tokenised
from rass_core.mitigate.pairs import KINDS, PreferencePair, check_pairs
from rass_core.mitigate.weight_ablation import writers
from rass_core.models.batching import in_batches
from rass_core.models.causal_lm import load_causal_lm, logits_at
from rass_core.models.chat import ChatFormat
from rass_core.probe.directions import Streams
from rass_core.stats.arrays import Array

Weighted = tuple[Tokens, float]


def learned_direction(
    base: str, pairs: Sequence[PreferencePair], harm_directions: Streams, *, steps: int = 250, batch_size: int = 32,
    learning_rate: float = 0.05, seed: int = 0, chat: ChatFormat | None = None, dtype: str = "float32",
    progress: Progress | None = None, token_budget: int = 512,
) -> Array:  # fmt: skip
    """Return the direction whose removal makes the chosen answers likeliest, (d_model,), unit length.

    Each step takes the same number of pairs of each kind, so that safety weighs as much as over-refusal. Its
    gradient is summed over micro-batches, so that memory does not grow with `batch_size`.

    Args:
        base: Folder or hub name; its weights are not changed.
        pairs: Only their chosen answers are read; safety pairs are required.
        harm_directions: (d_model,) or (n, d_model); the result is orthogonal to all of them.
        chat, dtype: As in `lora.train`.
        progress: Called with the answers read so far and the number that will be read in all.
        token_budget: Most tokens of a micro-batch, padding included; a longer pair runs alone.

    Raises:
        PromptError: No over_refusal or no safety pairs.
        ActivationError: Harm directions of another model, so many that nothing is left, or a pair that does not
            fit in memory.
        ModelError: As `writers`, or the loss is no number.
    """
    by_kind = _by_kind(pairs)
    model, tokenizer = load_causal_lm(base, dtype)
    chat = chat or ChatFormat(tokenizer)
    kept = _span(harm_directions, model.config.get_text_config().hidden_size).to(model.device)
    end = end_of_answer(chat, model)
    rows = [tokenised(members, chat, end) for members in by_kind]
    model.requires_grad_(False)
    removal = _Removal(model)
    draw = random.Random(seed)
    free = torch.randn(len(kept), generator=torch.Generator().manual_seed(seed)).to(model.device).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=learning_rate)
    total, n_read = steps * sum(min(batch_size, len(members)) for members in rows), 0
    try:
        for step in range(steps):
            drawn = _weighted([draw.sample(members, min(batch_size, len(members))) for members in rows])
            optimiser.zero_grad()

            def add_gradient(indices: list[int], drawn: list[Weighted] = drawn) -> float:
                removal.unit = _orthogonal(free, kept)
                loss = _loss(model, [drawn[index] for index in indices])
                loss.backward()  # type: ignore[no-untyped-call]
                return float(loss.detach())

            losses = []
            for indices, loss in in_batches([_n_tokens(row) for row, _ in drawn], token_budget, add_gradient):
                losses.append(loss)
                n_read += len(indices)
                if progress is not None:
                    progress(n_read, total)
            if not math.isfinite(sum(losses)):
                raise ModelError(f"direction: the loss is {sum(losses)} at step {step}; lower learning_rate")
            optimiser.step()
    finally:
        removal.remove()
    return np.asarray(_orthogonal(free.detach().double(), kept.double()).cpu().numpy())


def _by_kind(pairs: Sequence[PreferencePair]) -> list[list[PreferencePair]]:
    """Return the pairs of each kind that there is.

    Raises:
        PromptError: No over_refusal or no safety pairs.
    """
    check_pairs(pairs)
    by_kind = {kind: [pair for pair in pairs if pair.kind == kind] for kind in KINDS}
    for kind in ("over_refusal", "safety"):
        if not by_kind[kind]:
            raise PromptError(f"preferences: no {kind} pairs; a direction learned without them would unlearn refusing")
    return [members for members in by_kind.values() if members]


def _weighted(kinds: Sequence[Sequence[Tokens]]) -> list[Weighted]:
    """Return the pairs of all kinds, each with the weight of one of its tokens: those of a kind weigh 1 together."""
    return [(row, 1 / sum(len(each.chosen) for each in members)) for members in kinds for row in members]


def _n_tokens(row: Tokens) -> int:
    return len(row.prompt) + len(row.chosen)


class _Removal:
    """Removes the component along `unit` from all that writes to the residual stream, differentiably."""

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


def _span(harm_directions: Streams, d_model: int) -> Tensor:
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


def _loss(model: nn.Module, rows: Sequence[Weighted]) -> Tensor:
    """Return the weighted sum of the negative log-probabilities of the chosen answers' tokens, nats."""
    ids = [torch.tensor(row.prompt + row.chosen) for row, _ in rows]
    device = next(model.parameters()).device
    tokens, mask = (
        nn.utils.rnn.pad_sequence(each, batch_first=True).to(device)
        for each in (ids, [torch.ones_like(row) for row in ids])
    )
    # Where each token of an answer is predicted: one column before its own.
    places = [
        (number, column) for number, (row, _) in enumerate(rows)
        for column in range(len(row.prompt) - 1, _n_tokens(row) - 1)
    ]  # fmt: skip
    numbers, columns = torch.tensor(places, device=device).T
    weights = torch.tensor([weight for row, weight in rows for _ in row.chosen], device=device)
    logits = logits_at(model, numbers, columns, input_ids=tokens, attention_mask=mask)
    each = nn.functional.cross_entropy(logits.float(), tokens[numbers, columns + 1], reduction="none")
    return (each * weights).sum()
