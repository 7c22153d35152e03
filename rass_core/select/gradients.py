"""Gradients of the log-odds of refusal as a worker: rows of `gradients`."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from rass_core.executor.base import Compute, Done, Tables
from rass_core.lake.schema import TABLES
from rass_core.models.chat import chat_of
from rass_core.models.identity import model_id
from rass_core.models.pool import ModelPool
from rass_core.models.settings import ModelConfig
from rass_core.probe.settings import Prefixes
from rass_core.select.influence import refusal_gradients


@dataclass(frozen=True)
class GradientWorker:
    """Reads what training on each prompt (columns prompt_id, text, language) would change: rows of `gradients`."""

    model: ModelConfig
    prefixes: Mapping[str, Prefixes]
    token_budget: int
    seed: int
    """Seed of the projections: vectors of different seeds cannot be compared."""

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__]

    def build(self, pool: ModelPool) -> Compute:
        """Return what reads a shard."""
        causal_lm, chat, name = pool.causal_lm(self.model), chat_of(self.model), model_id(self.model.reference)

        def compute(rows: pa.Table, done: Done) -> Tables:
            texts, languages = rows["text"].to_pylist(), rows["language"].to_pylist()
            found = refusal_gradients(
                causal_lm, chat, texts, languages, self.prefixes, self.token_budget, self.seed, done
            )
            gradients = [
                {"prompt_id": identity, "model_id": name, "log_odds": odds, "vector": vector.tolist()}
                for identity, odds, vector in zip(
                    rows["prompt_id"].to_pylist(), found.log_odds.tolist(), found.vectors, strict=True
                )
            ]
            return {"gradients": pa.Table.from_pylist(gradients, schema=TABLES["gradients"])}

        return compute
