"""What training on one prompt does to the refusal of others, before any training is done.

A small step of training that answers prompt i changes the log-odds of refusing prompt j by about −η ∇ᵢ·∇ⱼ, with ∇ the
gradient of those log-odds with respect to the weights. Gradients are as large as the model, so that of each
weight matrix is kept as a small two-sided random projection, in which products stay the same on average (Choe et
al. 2024, arXiv 2405.13954; for choosing training data first Xia et al. 2024, arXiv 2402.04333).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rass_core.activations import check_inference, decoder_blocks, in_batches, model_name
from rass_core.chat import ChatFormat
from rass_core.config import Openings
from rass_core.errors import ActivationError, ModelError
from rass_core.interventions import told_apart
from rass_core.probe import openings_of

Found = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
SIDE = 8
"""Rows and columns to which the gradient of a weight matrix is projected."""


@dataclass(frozen=True)
class RefusalGradients:
    """How the refusal of n prompts hangs on the weights."""

    vectors: "np.ndarray[Any, Any]"
    """(n, n_matrices · SIDE²), float32: ∇ of the log-odds of refusal, projected; nats per unit of weight."""
    log_odds: "np.ndarray[Any, Any]"
    """(n,): that the answer opens with a refusal rather than with a compliance, nats."""


def refusal_gradients(
    model: Any, chat: ChatFormat, prompts: Sequence[str], languages: Sequence[str], openings: Mapping[str, Openings],
    token_budget: int = 1024, seed: int = 0, done: Callable[[int], None] = lambda n: None,
) -> RefusalGradients:  # fmt: skip
    """Return the projected gradient of each prompt's log-odds of refusal.

    Of every opening only the first tokens count by which it begins none of the other side's, mostly one, so that
    one pass forward and one back are enough. All weight matrices of the decoder blocks take part that see every
    token of every prompt; experts to which only some are routed do not.

    Args:
        model: A causal LM in evaluation mode; its weights stay as they are.
        chat: Its chat format.
        languages: Of the prompts.
        openings: language → openings; others use the English ones.
        token_budget: Most tokens of a batch, padding included; going back needs what every block computed.
        seed: Of the projections; gradients of different seeds have nothing to do with each other.
        done: Is told how many prompts are through.

    Raises:
        ConfigError: A side without openings, an empty one, or one that begins one of the other side.
        ModelError: A model in training mode, or without such matrices.
        ActivationError: A gradient that is not finite, or a single prompt that does not fit in memory.
    """
    check_inference(model)
    projection = _Projection(model, seed)
    vectors, log_odds = np.zeros((len(prompts), projection.width), np.float32), np.zeros(len(prompts))
    n_through = 0
    for language in sorted(set(languages)):
        known = openings_of(language, openings)
        tokens = [[chat.answer_ids(text) for text in side] for side in (known.refusal, known.compliance)]
        sides = [told_apart(*tokens), told_apart(*reversed(tokens))]
        here = [i for i, each in enumerate(languages) if each == language]
        ids = [chat.ids(prompts[i]) for i in here]
        # A prompt is read once with every stem.
        lengths = [sum(len(each) + len(stem) for stem in _stems(sides)) for each in ids]
        for batch, found in in_batches(lengths, token_budget, partial(projection.of, ids, sides)):
            rows = [here[i] for i in batch]
            vectors[rows], log_odds[rows] = found
            n_through += len(rows)
            done(n_through)
    if not np.isfinite(vectors).all():
        raise ActivationError(f"{model_name(model)}: a gradient is not finite; load it in float32 or bfloat16")
    return RefusalGradients(vectors, log_odds)


def _stems(sides: Sequence[Sequence[list[int]]]) -> list[tuple[int, ...]]:
    """Return the openings without their last tokens, each once; each is read after every prompt."""
    return sorted({tuple(opening[:-1]) for side in sides for opening in side})


class _Projection:
    """Projects the gradients of a model's weight matrices, prompt by prompt, while they are computed."""

    def __init__(self, model: Any, seed: int) -> None:
        blocks = decoder_blocks(model)
        self._model = model
        self._matrices = [m for block in blocks for m in block.modules() if isinstance(m, (nn.Linear, Conv1D))]
        if not self._matrices:
            raise ModelError(f"{model_name(model)}: no linear layers in its decoder blocks; influence needs some")
        draw = torch.Generator().manual_seed(seed)
        self._sides: list[tuple[Tensor, Tensor]] = []
        for matrix in self._matrices:
            n_in, n_out = matrix.weight.shape if isinstance(matrix, Conv1D) else reversed(matrix.weight.shape)
            into, out_of = (
                (torch.randn(n, SIDE, generator=draw) / SIDE**0.5).to(matrix.weight.device) for n in (n_in, n_out)
            )
            self._sides.append((into, out_of))
        self.width = len(self._matrices) * SIDE**2
        self._n_tokens = 0

    def of(self, prompts: Sequence[list[int]], sides: Sequence[Sequence[list[int]]], batch: Sequence[int]) -> Found:
        """Return the projected gradients of the prompts with these numbers, (n, width), and their log-odds, (n,)."""
        stems = _stems(sides)
        with self._reading(len(batch), len(stems)) as found, torch.enable_grad():
            log_odds = _log_odds(self._model, [prompts[i] for i in batch], stems, sides)
            log_odds.sum().backward()  # type: ignore[no-untyped-call]
        return found.cpu().numpy(), log_odds.detach().cpu().numpy()

    @contextmanager
    def _reading(self, n: int, n_stems: int) -> Iterator[Tensor]:
        """Yield a tensor, (n, width), that holds the projected gradients once a loss was taken back.

        The batch has n · n_stems rows, those of a prompt one after the other; their gradients are summed.
        """
        found = torch.zeros(n, self.width, device=self._model.device)
        weights = [weight for weight in self._model.parameters() if weight.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        # With no weight to learn, what the embedding puts out is where the graph begins.
        handles = [self._model.get_input_embeddings().register_forward_hook(self._begin)]
        for number, matrix in enumerate(self._matrices):
            place = found[:, number * SIDE**2 : (number + 1) * SIDE**2]
            handles.append(matrix.register_forward_hook(self._hook(place, self._sides[number], n_stems)))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
            for weight in weights:
                weight.requires_grad_(True)

    def _begin(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        output.requires_grad_()
        self._n_tokens = output.shape[0] * output.shape[1]

    def _hook(
        self, place: Tensor, sides: tuple[Tensor, Tensor], n_stems: int
    ) -> Callable[[nn.Module, Any, Tensor], None]:
        (into, out_of), n_rows = sides, len(place) * n_stems

        def hook(_module: nn.Module, args: Any, output: Tensor) -> None:
            if output[..., 0].numel() != self._n_tokens:
                return  # An expert: it sees some tokens of all prompts, mixed.
            read = (args[0].detach().float() @ into).view(n_rows, -1, SIDE)

            def add(gradient: Tensor) -> None:
                written = (gradient.float() @ out_of).view(n_rows, -1, SIDE)
                each = torch.einsum("ntp,ntq->npq", written, read).flatten(1)
                place.add_(each.view(len(place), n_stems, -1).sum(dim=1))

            output.register_hook(add)  # type: ignore[no-untyped-call]

        return hook


def _log_odds(
    model: Any, prompts: Sequence[list[int]], stems: Sequence[tuple[int, ...]], sides: Sequence[Sequence[list[int]]]
) -> Tensor:
    """Return the log-odds of refusal, (n,), with their graph."""
    rows = [torch.tensor([*prompt, *stem]) for prompt in prompts for stem in stems]
    ids, mask = (
        nn.utils.rnn.pad_sequence(each, batch_first=True).to(model.device)
        for each in (rows, [torch.ones_like(row) for row in rows])
    )
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    first = torch.tensor([len(prompt) - 1 for prompt in prompts], device=logits.device)
    number = torch.arange(len(prompts), device=logits.device) * len(stems)

    def logprob(opening: list[int]) -> Tensor:
        row = number + stems.index(tuple(opening[:-1]))
        read = [logits[row, first + k].float().log_softmax(-1)[:, token] for k, token in enumerate(opening)]
        return torch.stack(read).sum(dim=0)

    refusal, compliance = (torch.stack([logprob(each) for each in side]).logsumexp(dim=0) for side in sides)
    return refusal - compliance
