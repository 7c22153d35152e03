"""Batches of texts: like lengths together, within a budget, smaller where memory runs out."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rass_core.errors import ActivationError
from rass_core.models.batching import MAX_PADDING, in_batches
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.perplexity import Answered, answer_perplexities
from rass_core.models.prefix_logprobs import PlainPrompts
from tests.tiny_models import build


def test_a_batch_ends_before_padding_costs_too_much() -> None:
    lengths = random.Random(1).choices(range(30, 300), k=200)
    batches = [indices for indices, _ in in_batches(lengths, 4096, lambda indices: None)]
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        read = len(batch) * lengths[batch[0]]
        assert read <= 4096
        assert sum(lengths[i] for i in batch) >= (1 - MAX_PADDING) * read
    assert len(batches) < 30  # of 33,000 tokens


def test_padding_that_may_be_all_is_limited_by_the_budget_alone() -> None:
    batches = [indices for indices, _ in in_batches([50, 1, 1, 1, 20], 200, lambda _: None, max_padding=1.0)]
    assert batches == [[0, 4, 1, 2], [3]]


class Memory:
    """Holds batches of so many texts at most."""

    def __init__(self, n_fit: int) -> None:
        self.n_fit, self.tried = n_fit, list[int]()

    def __call__(self, n: int) -> None:
        self.tried.append(n)
        if n > self.n_fit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_batch_that_does_not_fit_is_halved_and_so_are_later_ones() -> None:
    memory = Memory(n_fit=3)
    found = list(in_batches([5] * 10, 50, lambda indices: memory(len(indices)) or indices[0]))
    assert memory.tried == [10, 5, 2, 2, 2, 2, 2]
    assert found == [([n, n + 1], n) for n in range(0, 10, 2)]


def test_a_text_that_does_not_fit_alone_is_named() -> None:
    memory = Memory(n_fit=0)
    with pytest.raises(ActivationError, match="prompt 1 of 9 tokens: out of memory on its own"):
        list(in_batches([5, 9], 50, lambda indices: memory(len(indices))))


ROWS = [Answered([1, 10 + i], [20 + i] * 6) for i in range(8)]
READERS: dict[str, Callable[[Any], Any]] = {
    "perplexity": lambda model: answer_perplexities(model, ROWS),
    "prefixes": lambda model: PlainPrompts(model, [list(row.prompt) for row in ROWS], [[9], [30, 31]]).read().prefixes,
    "first token": lambda model: PlainPrompts(model, [list(row.prompt) for row in ROWS]).read(True).first_token,
}


@pytest.mark.parametrize("reader", READERS)
def test_what_reads_a_model_survives_out_of_memory(reader: str, tmp_path: Any) -> None:
    model: nn.Module = load_causal_lm(str(build("llama", tmp_path)))[0]
    whole = READERS[reader](model)
    memory = Memory(n_fit=4)

    def check(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        if "past_key_values" not in inputs or not inputs["past_key_values"]:  # not a prefix after its prompts
            memory(len(inputs["input_ids"]))

    model.register_forward_pre_hook(check, with_kwargs=True)
    in_parts = READERS[reader](model)
    assert memory.tried == [8, 4, 4]
    torch.testing.assert_close(torch.as_tensor(in_parts), torch.as_tensor(whole), atol=1e-5, rtol=1e-5)
