"""A checkpoint in plain transformers, which the vLLM engine is compared with."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

STEERED = (1, 2)
N_NEW = 6


class Reference:
    """The same checkpoint in transformers: one unpadded prompt at a time, no cache."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def forward(self, ids: list[int], vector: np.ndarray, alpha: float) -> tuple[torch.Tensor, np.ndarray]:
        """Return the last token's log probabilities and the streams (n_layers, n_tokens, d_model)."""
        streams: list[np.ndarray] = []

        def after(layer: int, _module: Any, _inputs: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            if layer in STEERED:
                stream = stream + alpha * torch.from_numpy(vector)
            streams.append(stream[0].numpy())
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        blocks = self.model.base_model.layers
        hooks = [block.register_forward_hook(partial(after, i)) for i, block in enumerate(blocks)]
        try:
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        finally:
            for hook in hooks:
                hook.remove()
        return logits[0, -1].log_softmax(-1), np.stack(streams)

    def greedy(self, ids: list[int], vector: np.ndarray, alpha: float) -> tuple[list[int], list[float]]:
        """Return the greedy answer's tokens and their log probabilities, every token steered."""
        tokens: list[int] = []
        logprobs: list[float] = []
        while len(tokens) < N_NEW and (not tokens or tokens[-1] != self.model.config.eos_token_id):
            scores, _ = self.forward(ids + tokens, vector, alpha)
            tokens.append(int(scores.argmax()))
            logprobs.append(float(scores.max()))
        return tokens, logprobs
