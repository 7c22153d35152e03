"""Residual streams of any causal language model that transformers can load.

`residual_stream[layer, position]` is what decoder block `layer` (0 is the first) puts out at a
token counted from the end of the prompt (-1 is its last). It is taken before the model's final
norm, so it differs from the last entry of transformers' `hidden_states`, which is normed.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rass_core.errors import ActivationError
from rass_core.lake.schema import TABLES
from rass_core.lake.vectors import vector_column
from rass_core.models.batching import in_batches, is_out_of_memory, right_padded
from rass_core.models.causal_lm import check_inference, chosen_blocks, model_name, stream_of

ROWS_PER_RECORD_BATCH = 2048
MIN_SHARED = 0.1
"""Least share of all tokens that a beginning common to all prompts must save for it to be computed once."""
SHARING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest relative difference between streams with and without sharing that passes for rounding, by dtype."""
_LOG = logging.getLogger(__name__)


class ResidualExtractor:
    """Reads the residual stream of prompts at chosen layers and positions.

    Prompts of similar length share a forward, padded on the right and masked; at most `MAX_PADDING` of its
    tokens are padding. It stops after the last block that is needed, so the LM head never runs. What all
    prompts begin with, the template's system prompt, is read once. A causal model's values do not depend on
    the tokens to the right, so no padding token need exist.

    Args:
        model: A causal LM in evaluation mode, such as `load_causal_lm` returns.
        layers: Decoder blocks, in the order in which they are to come out.
        positions: Tokens counted from the end of each prompt, all negative.
        token_budget: Most tokens of a batch, padding included; a longer prompt runs alone.

    Raises:
        ModelError: A layer that the model lacks, or a model in training mode.
        ActivationError: No position, or one that is not negative.
    """

    def __init__(self, model: Any, layers: Sequence[int], positions: Sequence[int], token_budget: int = 4096) -> None:
        check_inference(model)
        if not positions or max(positions) >= 0:
            raise ActivationError(f"positions {list(positions)}: count from the end, -1 is the last token")
        self.model = model
        self.layers, self.positions = list(layers), list(positions)
        self.token_budget = token_budget
        self._blocks = chosen_blocks(model, layers)

    def __call__(self, prompts: Sequence[list[int]]) -> Tensor:
        """Return the residual streams in the order of the prompts.

        Returns:
            (n, n_layers, n_positions, d_model), float32, on the CPU.

        Raises:
            ActivationError: As `batches`.
        """
        d_model = self.model.config.get_text_config().hidden_size
        streams = torch.empty(len(prompts), len(self.layers), len(self.positions), d_model)
        for indices, rows in self.batches(prompts):
            streams[indices] = rows
        return streams

    def batches(self, prompts: Sequence[list[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (indices into prompts, their residual streams) as they are computed, longest first.

        A batch that does not fit in memory is halved, and so are the later ones.

        Raises:
            ActivationError: A prompt too short for the positions, a single prompt that does not fit
                in memory, or a value that is not finite.
        """
        lengths = [len(prompt) for prompt in prompts]
        self._check_lengths(lengths)
        shared = self._shared_prefix(prompts)
        n_shared = 0 if shared is None else shared.n_tokens
        own = [prompt[n_shared:] for prompt in prompts]
        for indices, rows in in_batches(
            [length - n_shared for length in lengths],
            self.token_budget,
            lambda here: self._rows([own[i] for i in here], shared),
        ):
            self._check_finite(rows)
            yield indices, rows

    def _shared_prefix(self, prompts: Sequence[list[int]]) -> "_Shared | None":
        """Return the keys and values of the tokens with which all prompts begin, or None where they save little.

        They are the template's, such as its system prompt. In a causal model they depend on nothing that follows, so
        they are computed once. One prompt is read both ways; a model for which that differs shares nothing.
        """
        # What the first and the last share in order of their tokens, all share.
        pairs = zip(min(prompts, default=[]), max(prompts, default=[]), strict=False)
        n_equal = next((n for n, (one, other) in enumerate(pairs) if one != other), 0)
        n_shared = min(n_equal, min(map(len, prompts), default=0) + min(self.positions))
        if n_shared * len(prompts) < MIN_SHARED * sum(map(len, prompts)) or n_shared < 1:
            return None
        shortest = min(prompts, key=len)
        expected = self._rows([shortest])
        try:
            cache = DynamicCache(config=self.model.config)
            self._forward({"input_ids": torch.tensor([shortest[:n_shared]], device=self.model.device)}, cache)
            shared = _Shared(n_shared, cache)
            found = self._rows([shortest[n_shared:]] * 2, shared)
        except Exception as error:  # an architecture whose cache is of another kind may raise anything
            if is_out_of_memory(error):
                raise
            reason = f"its cache cannot be shared ({type(error).__name__})"
        else:
            difference = float((found - expected).norm() / expected.norm().clamp(min=1e-6))
            if difference <= SHARING_TOLERANCE.get(self.model.dtype, 1e-3):
                return shared
            reason = f"a shared cache gives other numbers (relative difference {difference:.2g})"
        _LOG.warning(
            "%s: the beginning of the template is computed again for each prompt: %s", model_name(self.model), reason
        )
        return None

    @torch.no_grad()
    def _rows(self, prompts: Sequence[list[int]], shared: "_Shared | None" = None) -> Tensor:
        """Run one batch behind the shared prefix; (n, n_layers, n_positions, d_model), float32, on the CPU."""
        ids, mask = right_padded(prompts, self.model.device)
        columns = mask.sum(dim=1, keepdim=True) + torch.tensor(self.positions, device=ids.device)
        cache = None
        if shared is not None:
            cache = copy.deepcopy(shared.cache)
            cache.batch_repeat_interleave(len(prompts))
            mask = torch.cat([mask.new_ones(len(prompts), shared.n_tokens), mask], dim=1)
        captured = self._forward({"input_ids": ids, "attention_mask": mask}, cache, columns)
        return torch.stack([captured[layer].cpu() for layer in self.layers], dim=1)

    @torch.no_grad()
    def _forward(
        self, inputs: dict[str, Tensor], cache: DynamicCache | None, columns: Tensor | None = None
    ) -> dict[int, Tensor]:
        """Run the model up to the last block that is needed; return layer → streams at the columns, if any."""
        last = max(self._blocks)
        captured: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for layer, block in self._blocks.items():

                def capture(_module: nn.Module, _args: Any, output: Any, layer: int = layer) -> None:
                    if columns is not None:
                        stream = stream_of(output)
                        rows = torch.arange(len(stream), device=stream.device)[:, None]
                        captured[layer] = stream[rows, columns.to(stream.device)].float()
                    if layer == last:
                        raise _AllCaptured

                hooks.enter_context(block.register_forward_hook(capture))
            with suppress(_AllCaptured):
                self.model(**inputs, past_key_values=cache, use_cache=cache is not None)
        return captured

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        shortest = min(lengths, default=0)
        if lengths and shortest < -min(self.positions):
            raise ActivationError(
                f"prompt {lengths.index(shortest)}: {shortest} tokens, position {min(self.positions)} was "
                "asked for; put the prompt in the chat template, or ask for fewer positions"
            )

    def _check_finite(self, rows: Tensor) -> None:
        bad = (~rows.isfinite().all(dim=-1)).nonzero()
        if len(bad):
            _, layer, position = bad[0].tolist()
            raise ActivationError(
                f"{model_name(self.model)}: a residual stream is not finite at layer {self.layers[layer]}, "
                f"position {self.positions[position]}; load it in float32 or bfloat16, and if that fails "
                "check its weights"
            )


def activation_batches(
    extractor: ResidualExtractor, prompt_ids: Sequence[str], prompts: Sequence[list[int]], model_id: str
) -> Iterator[pa.RecordBatch]:
    """Yield rows of the table `activations` as they are computed, for streaming to Parquet.

    Vectors are rounded to bfloat16, so that Parquet packs them in less than half the space; a batch has
    whole prompts, and about `ROWS_PER_RECORD_BATCH` rows at most.

    Args:
        prompt_ids: The id of each prompt.
        prompts: Their token ids in the chat template.

    Raises:
        ActivationError: As `ResidualExtractor.batches`, or unequal numbers of ids and prompts.
    """
    if len(prompt_ids) != len(prompts):
        raise ActivationError(f"activations: {len(prompt_ids)} prompt ids for {len(prompts)} prompts; pair them")
    cells = [(layer, position) for layer in extractor.layers for position in extractor.positions]
    n_prompts = max(1, ROWS_PER_RECORD_BATCH // len(cells))
    for indices, rows in extractor.batches(prompts):
        for start in range(0, len(indices), n_prompts):
            part = indices[start : start + n_prompts]
            vectors = rows[start : start + n_prompts].bfloat16().float().flatten(0, 2).numpy()
            ids = [prompt_ids[index] for index in part for _ in cells]
            layers, positions = zip(*(cells * len(part)), strict=True)
            columns = {
                "prompt_id": ids,
                "model_id": [model_id] * len(ids),
                "layer": layers,
                "position": positions,
                "vector": vector_column(vectors),
            }
            yield pa.record_batch(columns, schema=TABLES["activations"])


class _Shared(NamedTuple):
    """The tokens with which all prompts begin, as they were read once."""

    n_tokens: int
    cache: DynamicCache
    """Their keys and values, of a batch of one."""


class _AllCaptured(Exception):
    """Leaves a forward once the last block that is needed has run."""
