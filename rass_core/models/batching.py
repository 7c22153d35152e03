"""Batches of texts of like length within a budget of tokens, halved where memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from rass_core.errors import ActivationError

Computed = TypeVar("Computed")
MAX_PADDING = 0.1
"""Largest share of a batch's tokens that may be padding."""
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


def in_batches(
    lengths: Sequence[int],
    token_budget: int,
    compute: Callable[[list[int]], Computed],
    max_padding: float = MAX_PADDING,
) -> Iterator[tuple[list[int], Computed]]:
    """Yield (indices, what was computed of them), longest first.

    A batch that does not fit in memory is halved, and so are the later ones. A batch ends before its padding would
    exceed `max_padding` of its tokens: padding costs as much as text, and a budget alone does not limit it.

    Args:
        lengths: Tokens of each prompt, each at least 1.
        token_budget: Most tokens of a batch, padding included; a longer prompt runs alone.
        compute: Takes the indices of a batch.
        max_padding: Share of a batch's tokens, 0 to 1; 1 limits nothing.

    Raises:
        ActivationError: A single prompt that does not fit in memory.
    """
    waiting = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while waiting:
        longest = lengths[waiting[0]]
        indices = waiting[: max(1, token_budget // longest)]
        indices = indices[: _batch_size([lengths[index] for index in indices], max_padding)]
        try:
            computed = compute(indices)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(indices) == 1:
                raise ActivationError(
                    f"prompt {indices[0]} of {longest} tokens: out of memory on its own; "
                    "shorten it, or load the model in bfloat16 or on a larger device"
                ) from error
            token_budget = len(indices) // 2 * longest
        else:
            yield indices, computed
            waiting = waiting[len(indices) :]
            continue
        if torch.cuda.is_available():  # here, as the error above holds what the failed batch had computed
            torch.cuda.empty_cache()


def _batch_size(lengths: Sequence[int], max_padding: float) -> int:
    """Return how many of these prompts, longest first, share a batch without too much padding."""
    n_real = 0
    for n, length in enumerate(lengths):
        n_real += length
        if (n + 1) * lengths[0] * (1 - max_padding) > n_real:
            return n
    return len(lengths)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that the device has no memory left; torch has several such errors."""
    is_known_kind = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_known_kind or any(phrase in str(error) for phrase in _NO_MEMORY)


def right_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, each (n, longest); padding is token 0, masked."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids.to(device), mask.to(device)
