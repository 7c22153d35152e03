"""Measuring written prompts: where the target places them, unsteered, and what it answers, in one pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rass_core.executor.base import Compute, Done, Tables
from rass_core.lake.schema import TABLES
from rass_core.models.answering import response_table, token_ids
from rass_core.models.identity import model_id
from rass_core.models.pool import ModelPool
from rass_core.models.settings import ModelConfig
from rass_core.models.vllm_requests import Generation, GenerationRequest
from rass_core.probe.margin_scale import Gauge


@dataclass(frozen=True)
class MeasureWorker:
    """Places prompts (`models.answering.ASKED`) on the margin: rows of `margins`, and where kept of `responses`.

    Answers to prompts that moderators called harmful are judged at once (`generate.judged_measuring`), not kept.
    """

    model: ModelConfig
    gauge: Gauge
    b: Mapping[str, float | None]
    """Language → boundary."""
    split: str
    """Split in the rows of `margins`: candidate, benchmark."""
    max_new_tokens: int
    with_answers: bool = True
    """Keep what the target answers."""
    with_streams: bool = False
    """Keep the residual streams at the margin's place: rows of `activations`."""

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__]

    def build(self, pool: ModelPool) -> Compute:
        """Return what measures a shard."""
        engine = pool.engine(self.model)

        def compute(rows: pa.Table, done: Done) -> Tables:
            return self.tables(rows.to_pylist(), self.measured(engine, rows, done))

        return compute

    def measured(self, engine: Any, rows: pa.Table, done: Done) -> list[Generation]:
        """Return the answers, with the streams at the gauge's places.

        Raises:
            ModelError: A prompt that does not fit the model.
        """
        engine.set_capture(*self.gauge.places)
        requests = [
            GenerationRequest(token_ids(engine.chat, row), self.max_new_tokens, capture=True)
            for row in rows.to_pylist()
        ]
        answers: list[Generation] = engine.generate(requests, done)
        return answers

    def tables(self, rows: list[dict[str, Any]], answers: list[Generation], keep: bool = True) -> Tables:
        """Return the rows of the tables; answers without their text where it is not to be kept."""
        name, gauge = model_id(self.model.reference), self.gauge
        captured = np.stack([answer.captured for answer in answers if answer.captured is not None])
        places = gauge.place(captured, [row["language"] for row in rows], self.b)
        margins = [
            {"prompt_id": row["prompt_id"], "model_id": name, "direction_id": gauge.direction_id, "split": self.split}
            | place
            for row, place in zip(rows, places, strict=True)
        ]
        found = {"margins": pa.Table.from_pylist(margins, schema=TABLES["margins"])}
        if self.with_answers:
            found["responses"] = response_table(name, rows, answers, keep)
        if self.with_streams:
            layer, position = gauge.place_of_margin
            streams = [
                {"prompt_id": row["prompt_id"], "model_id": name, "layer": layer, "position": position,
                 "vector": stream.tolist()}
                for row, stream in zip(rows, gauge.streams(captured), strict=True)
            ]  # fmt: skip
            found["activations"] = pa.Table.from_pylist(streams, schema=TABLES["activations"])
        return found
