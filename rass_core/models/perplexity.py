"""Perplexities of answers and the KL divergence between two models over them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rass_core.errors import ActivationError
from rass_core.models.batching import in_batches, right_padded
from rass_core.models.causal_lm import check_inference, model_name
from rass_core.models.prefix_logprobs import kl_divergence
from rass_core.stats.arrays import Array
from rass_core.stats.intervals import bootstrap_interval, family_counts

ROWS_OF_LOGITS = 64
"""Tokens compared at a time: in float64 a vocabulary of 150 000 takes 1.2 MB for each."""


@dataclass(frozen=True)
class Measured:
    """A figure over prompts with its interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Answered:
    """A prompt in the chat template and the base model's own answer to it, as token ids."""

    prompt: Sequence[int]
    answer: Sequence[int]


def perplexity(
    model: Any, answers: Sequence[Answered], seed: int, token_budget: int = 4096, level: float = 0.95
) -> Measured:
    """Return the perplexity of answers, exp of the mean surprise of their tokens, each after its prompt.

    Args:
        answers: For bare text the first token may be the prompt, which is only read.
        seed: Seed of the bootstrap over answers.
        token_budget: Most tokens of a batch, padding included.

    Raises:
        ModelError: A model in training mode.
        ActivationError: No answer, an empty prompt or answer, or a value that is not finite.
        BoundaryError: One answer: no interval.
    """
    surprise, n_tokens = _surprise(model, answers, token_budget)
    drawn = family_counts(np.arange(len(answers)), 1000, seed)
    low, high = _quantiles(np.exp(drawn @ surprise / (drawn @ n_tokens)), level)
    return Measured(float(np.exp(surprise.sum() / n_tokens.sum())), low, high, len(answers))


def answer_perplexities(model: Any, answers: Sequence[Answered], token_budget: int = 4096) -> list[float]:
    """Return the perplexity of each answer, exp of the mean surprise of its tokens after its prompt.

    Raises:
        ModelError: A model in training mode.
        ActivationError: An empty prompt or answer, or a value that is not finite.
    """
    if not answers:
        return []
    surprise, n_tokens = _surprise(model, answers, token_budget)
    return [float(value) for value in np.exp(np.minimum(surprise / n_tokens, 700.0))]


def _surprise(model: Any, rows: Sequence[Answered], token_budget: int) -> tuple[Array, Array]:
    """Return the summed surprise of each answer's tokens in nats, and how many there are."""
    surprise, n_tokens = np.zeros(len(rows)), np.array([len(row.answer) for row in rows], dtype=np.float64)
    for index, logits in _answer_logits(model, rows, token_budget):
        answer = torch.tensor(list(rows[index].answer), device=logits.device)
        surprise[index] = float(
            torch.nn.functional.cross_entropy(logits.float(), answer, reduction="none").double().sum()
        )
    _check_finite(model, surprise)
    return surprise, n_tokens


def mean_kl(
    base: Any, mitigated: Any, answers: Sequence[Answered], seed: int, token_budget: int = 4096, level: float = 0.95
) -> Measured:
    """Return KL(base ‖ mitigated) in nats per token, over every token of the base model's own answers.

    Each prompt counts with the mean over its answer's tokens; all prompts have the same weight.

    Args:
        answers: To harmless prompts, by the base model.
        seed: Seed of the bootstrap over prompts.
        token_budget: Most tokens of a batch, padding included.

    Raises:
        ModelError: A model in training mode.
        ActivationError: No prompt, an empty prompt or answer, unequal vocabularies, a value that is not finite.
        BoundaryError: One prompt: no interval.
    """
    values = np.zeros(len(answers))
    both = (_answer_logits(model, answers, token_budget) for model in (base, mitigated))
    for (index, before), (_, after) in zip(*both, strict=True):
        pieces = zip(before.split(ROWS_OF_LOGITS), after.split(ROWS_OF_LOGITS), strict=True)
        parts = [kl_divergence(*(piece.double().log_softmax(dim=-1).cpu() for piece in pair)) for pair in pieces]
        values[index] = float(torch.cat(parts).mean())
    _check_finite(mitigated, values)
    value, low, high = bootstrap_interval(values, np.arange(len(values)), seed, level=level)
    return Measured(value, low, high, len(values))


@torch.no_grad()
def _answer_logits(model: Any, rows: Sequence[Answered], token_budget: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each row's number and the logits that predict its answer's tokens, (n_answer, vocabulary).

    The order depends on lengths alone.
    """
    check_inference(model)
    if not rows or not all(len(row.prompt) and len(row.answer) for row in rows):
        raise ActivationError(
            f"{model_name(model)}: {len(rows)} rows, none may lack a prompt or an answer; leave it out"
        )
    lengths = [len(row.prompt) + len(row.answer) for row in rows]
    for indices, logits in in_batches(
        lengths, token_budget, lambda here: _batch_logits(model, [rows[i] for i in here]), max_padding=1.0
    ):
        yield from zip(indices, logits, strict=True)


def _batch_logits(model: Any, rows: Sequence[Answered]) -> list[Tensor]:
    """Return of each row the logits that predict its answer's tokens, (n_answer, vocabulary).

    Padding is on the right, where a causal model never looks.
    """
    ids, mask = right_padded([[*row.prompt, *row.answer] for row in rows], model.device)
    first = min(len(row.prompt) for row in rows) - 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=ids.shape[1] - first).logits
    starts = [len(row.prompt) - 1 - first for row in rows]
    return [each[start : start + len(row.answer)] for each, start, row in zip(logits, starts, rows, strict=True)]


def _quantiles(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def _check_finite(model: Any, values: Array) -> None:
    if not np.isfinite(values).all():
        raise ActivationError(
            f"{model_name(model)}: log-probabilities are not finite; load it in float32 or bfloat16, "
            "or see whether its training diverged"
        )
