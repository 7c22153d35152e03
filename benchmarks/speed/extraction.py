"""Residual streams: against the loop that is usually published, and against the least that the forward itself takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.common import by_budget, compared, public_prompts, timed
from rass_core.models.causal_lm import decoder_blocks, load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.models.residuals import ResidualExtractor

N_PROMPTS, POSITIONS = 96, [-3, -2, -1]
LAYER_SHARE = 0.6
"""Depth of the block that is read: block 18 of 30."""
BATCH_SIZE, ROW = 32, 64


def measure(model_folder: Path, data_folder: Path) -> list[dict[str, Any]]:
    """Return one row per way of reading the same prompts; the least of two runs each, taken in turn."""
    model, tokenizer = load_causal_lm(str(model_folder))
    chat = ChatFormat(tokenizer)
    prompts = [chat.ids(text) for text in public_prompts(data_folder, N_PROMPTS)]
    layer = int(LAYER_SHARE * len(decoder_blocks(model)))
    extractor = ResidualExtractor(model, [layer], POSITIONS)
    ways = {
        "as published": lambda: published(model, prompts, layer),
        "budget alone": lambda: budget_alone(extractor, prompts),
        "bare forward": lambda: bare(model, prompts, layer),
        "now": lambda: extractor(prompts),
    }
    seconds: dict[str, float] = {}
    streams: dict[str, Tensor] = {}
    for _ in range(2):
        for way, compute in ways.items():
            took, streams[way] = timed(compute)
            seconds[way] = min(took, seconds.get(way, took))
    n_tokens = sum(map(len, prompts))
    return [
        compared(
            f"extraction, block {layer}: {way}",
            seconds[way],
            seconds["now"],
            None if way == "bare forward" else float((streams[way] - streams["now"]).abs().max()),
            tokens=n_tokens,
        )
        for way in ("as published", "budget alone", "bare forward")
    ]


@torch.no_grad()
def published(model: Any, prompts: Sequence[list[int]], layer: int) -> Tensor:
    """Return the streams by fixed batches in the given order, left padding and whole forwards with the LM head."""
    found = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
        found.append(output.hidden_states[layer + 1][:, POSITIONS])
    return torch.cat(found)[:, None]


def budget_alone(extractor: ResidualExtractor, prompts: Sequence[list[int]]) -> Tensor:
    """Return the streams by batches up to the token budget, however much of it is padding."""
    found = torch.empty(len(prompts), 1, len(POSITIONS), extractor.model.config.hidden_size)
    for batch in by_budget([len(prompt) for prompt in prompts], extractor.token_budget):
        found[batch] = extractor._rows([prompts[index] for index in batch])
    return found


class _Reached(Exception):
    """Leaves a forward."""


@torch.no_grad()
def bare(model: Any, prompts: Sequence[list[int]], layer: int) -> Tensor:
    """Run the same tokens as full rows up to the block and keep nothing: the limit without padding."""
    tokens = torch.tensor([token for prompt in prompts for token in prompt])
    rows = tokens[: len(tokens) // ROW * ROW].view(-1, ROW)

    def leave(*_: Any) -> None:
        raise _Reached

    with decoder_blocks(model)[layer].register_forward_hook(leave):
        for start in range(0, len(rows), BATCH_SIZE):
            try:
                model(input_ids=rows[start : start + BATCH_SIZE], use_cache=False)
            except _Reached:
                continue
    return torch.empty(0)
