"""Gradients of the log-odds of refusal as a worker: rows of `gradients`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rass_core.errors import LakeError
from rass_core.executor.base import Compute, Done, Tables
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Commit, Lake
from rass_core.lake.vectors import matrix, vector_column
from rass_core.models.chat import chat_of
from rass_core.models.identity import model_id
from rass_core.models.pool import ModelPool
from rass_core.models.settings import ModelConfig
from rass_core.probe.settings import Prefixes
from rass_core.select.influence import RefusalGradients, refusal_gradients


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
            return {"gradients": gradient_table(rows["prompt_id"].to_pylist(), name, found)}

        return compute


def gradient_table(prompt_ids: Sequence[str], model_id: str, found: RefusalGradients) -> pa.Table:
    """Return gradients as rows of `gradients`; vectors stay arrays, as lists they would take eight times the space."""
    columns = {
        "prompt_id": prompt_ids,
        "model_id": [model_id] * len(prompt_ids),
        "log_odds": found.log_odds,
        "vector": vector_column(found.vectors),
    }
    return pa.table(columns, TABLES["gradients"])


def read_gradients(lake: Lake, commits: Sequence[Commit], prompt_ids: Sequence[str]) -> RefusalGradients:
    """Return the gradients of prompts in the order of their ids, read a batch at a time.

    Args:
        lake: Holds the gradients.
        commits: Their rows of `gradients`.
        prompt_ids: Of the prompts; one may come twice.

    Raises:
        LakeError: The gradient of one of them is not there.
    """
    places = defaultdict[str, list[int]](list)
    for place, identity in enumerate(prompt_ids):
        places[identity].append(place)
    vectors, log_odds, there = np.zeros((len(prompt_ids), 0), np.float32), np.zeros(len(prompt_ids)), set[str]()
    for batch in lake.batches("SELECT prompt_id, log_odds, vector FROM gradients", commits):
        rows = [(row, identity) for row, identity in enumerate(batch["prompt_id"].to_pylist()) if identity in places]
        at = [place for _, identity in rows for place in places[identity]]
        of = [row for row, identity in rows for _ in places[identity]]
        read = matrix(batch["vector"])
        if not vectors.shape[1]:
            vectors = np.zeros((len(prompt_ids), read.shape[1]), np.float32)
        vectors[at], log_odds[at] = read[of], batch["log_odds"].to_numpy()[of]
        there.update(identity for _, identity in rows)
    if lacking := places.keys() - there:
        raise LakeError(
            f"gradients: none of prompt {min(lacking)}; delete the lake's commits of gradients and run again"
        )
    return RefusalGradients(vectors, log_odds)
