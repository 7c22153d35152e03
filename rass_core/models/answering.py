"""Answers of a model to prompts, greedy and perhaps steered, as rows of `responses`."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rass_core.executor.base import Compute, Done, Tables
from rass_core.lake.schema import TABLES
from rass_core.models.chat import ChatFormat, check_length
from rass_core.models.pool import ModelPool
from rass_core.models.settings import ModelConfig
from rass_core.models.vllm_engine import SteeredEngine
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering, SteeringVector
from rass_core.text import digest

ASKED = pa.schema([
    ("response_id", pa.string()), ("prompt_id", pa.string()), ("variant", pa.string()), ("attack", pa.string()),
    ("language", pa.string()), ("label", pa.string()), ("prompt", pa.string()), ("messages", pa.string()),
    ("opening", pa.string()),
])  # fmt: skip
"""What a model is asked. prompt: the request, as judges are shown it; messages: the conversation as JSON where it is
not the prompt alone; opening: words put into the model's mouth there, judged with its answer."""
IN_THINKING = "thinking"
"""`responses.finish_reason` of what ended within the model's thinking: there is no answer."""


def asked(columns: Mapping[str, Any]) -> pa.Table:
    """Return what a model is asked from columns of equal length; a column that is not given is null."""
    n = len(columns["response_id"])
    return pa.table({name: columns.get(name, pa.nulls(n)) for name in ASKED.names}).cast(ASKED)


def asked_alone(prompts: Iterable[pa.RecordBatch], model_id: str) -> Iterator[pa.RecordBatch]:
    """Yield rows of table `prompts` as a model is asked them, the prompt alone; rows of `ASKED`.

    Args:
        prompts: Batches of the table; a batch is read at a time.
        model_id: Of the model, part of the response ids.
    """
    for batch in prompts:
        ids = batch["prompt_id"].to_pylist()
        yield from asked({
            "response_id": [digest("response", model_id, prompt, "base", 0) for prompt in ids],
            "prompt_id": batch["prompt_id"], "variant": ["base"] * len(ids), "language": batch["language"],
            "label": batch["label"], "prompt": batch["text"],
        }).to_batches()  # fmt: skip


def token_ids(chat: ChatFormat, row: Mapping[str, Any]) -> list[int]:
    """Return the tokens that a model is given for a row of `ASKED`."""
    if row["messages"] is None:
        return chat.ids(row["prompt"])
    return chat.conversation_ids(json.loads(row["messages"]), row["opening"] or "")


@dataclass(frozen=True)
class AblatedDirection:
    """A direction that is taken out of the stream after every block while the model answers."""

    vector: np.ndarray[Any, Any]
    """(d_model,), unit length."""
    strength: float


@dataclass(frozen=True)
class AnswerWorker:
    """Answers what is asked (`ASKED`), and keeps the text: rows of `responses`."""

    model: ModelConfig
    max_new_tokens: int
    name: str
    """The model's id in the tables; that of the target also where a variant answers."""
    ablation: AblatedDirection | None = None

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__]

    def build(self, pool: ModelPool) -> Compute:
        """Return what answers a shard."""
        engine = pool.engine(self.model)

        def compute(rows: pa.Table, done: Done) -> Tables:
            given = rows.to_pylist()
            answers = answer(engine, given, self.max_new_tokens, self.ablation, done)
            return {"responses": response_table(self.name, given, answers, keep=True)}

        return compute


def answer(
    engine: SteeredEngine,
    rows: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    ablation: AblatedDirection | None,
    done: Done,
) -> list[Generation]:
    """Return the greedy answers to rows of `ASKED`, in order.

    Raises:
        ModelError: A conversation that does not fit the model.
    """
    steering = None
    if ablation is not None:
        everywhere = tuple(range(engine.n_layers))
        engine.set_vectors({"ablation": SteeringVector(ablation.vector.astype(np.float32), everywhere, "ablate")})
        steering = Steering("ablation", ablation.strength)
    requests = []
    for row in rows:
        ids = token_ids(engine.chat, row)
        check_length(ids, engine.max_model_len - max_new_tokens, f"prompt {row['prompt'][:40]!r}")
        requests.append(GenerationRequest(ids, max_new_tokens, steering=steering))
    return engine.generate(requests, done)


def response_table(name: str, rows: Sequence[Mapping[str, Any]], answers: Sequence[Generation], keep: bool) -> pa.Table:
    """Return answers as rows of `responses`; without their text where it is not to be kept."""
    found = [
        response_row({**row, "model_id": name}, each, keep)
        | {"finish_reason": IN_THINKING if each.is_cut_off else each.finish_reason}
        for row, each in zip(rows, answers, strict=True)
    ]
    return pa.Table.from_pylist(found, schema=TABLES["responses"])


def response_row(row: Mapping[str, Any], answer: Generation, keep: bool) -> dict[str, Any]:
    """Return an answer as a row of `responses`; without its text where it is not to be kept.

    Args:
        row: response_id, prompt_id, model_id, variant and attack.
        answer: What the model wrote.
        keep: Whether the text is kept.
    """
    return {
        "response_id": row["response_id"], "prompt_id": row["prompt_id"], "model_id": row["model_id"],
        "variant": row["variant"], "sample": 0, "attack": row["attack"], "text": answer.text if keep else None,
        "text_sha256": hashlib.sha256(answer.text.encode()).hexdigest(), "finish_reason": answer.finish_reason,
        "n_tokens": len(answer.token_ids),
    }  # fmt: skip
