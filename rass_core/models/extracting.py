"""Residual streams of prompts at chosen places, as rows of `activations`."""

from dataclasses import dataclass

import pyarrow as pa

from rass_core.executor.base import Compute, Done, Tables
from rass_core.lake.schema import TABLES
from rass_core.models.chat import chat_of
from rass_core.models.identity import model_id
from rass_core.models.pool import ModelPool
from rass_core.models.residuals import ResidualExtractor, activation_batches
from rass_core.models.settings import ModelConfig


@dataclass(frozen=True)
class ExtractWorker:
    """Reads the streams of prompts (columns prompt_id, text): rows of `activations`."""

    model: ModelConfig
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    token_budget: int

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__]

    def build(self, pool: ModelPool) -> Compute:
        """Return what reads a shard."""
        extractor = ResidualExtractor(
            pool.causal_lm(self.model), list(self.layers), list(self.positions), self.token_budget
        )
        chat, name = chat_of(self.model), model_id(self.model.reference)
        cells = len(self.layers) * len(self.positions)

        def compute(rows: pa.Table, done: Done) -> Tables:
            ids = [chat.ids(text) for text in rows["text"].to_pylist()]
            batches, n = [], 0
            for batch in activation_batches(extractor, rows["prompt_id"].to_pylist(), ids, name):
                batches.append(batch)
                n += batch.num_rows
                done(n // cells)
            return {"activations": pa.Table.from_batches(batches, TABLES["activations"])}

        return compute
