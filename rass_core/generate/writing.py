"""Writing: what a generator writes for the jobs of a round, as rows of `generations`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from rass_core.executor.base import Compute, Done, Tables
from rass_core.generate.operators import instruction
from rass_core.generate.scheduler import GenerationJob
from rass_core.generate.writers import Writer, WritingDirections, request_of
from rass_core.lake.schema import TABLES
from rass_core.models.answering import IN_THINKING
from rass_core.models.chat import chat_of
from rass_core.models.chat_client import CutOff, NoAnswer
from rass_core.models.failures import Failures, no_verdict
from rass_core.models.pool import ModelPool
from rass_core.models.settings import EndpointConfig, ModelConfig
from rass_core.models.vllm_requests import SteeringVector
from rass_core.text import digest

JOBS = pa.schema([
    ("generation_id", pa.string()), ("operator", pa.string()), ("role", pa.string()), ("steering", pa.string()),
    ("layer", pa.int32()), ("alpha", pa.float64()), ("language", pa.string()), ("seed", pa.int64()),
    ("parents", pa.list_(pa.string())),
])  # fmt: skip
"""What is to be written; parents: the texts that a prompt is made from."""
NOT_WRITTEN = {"failed": "no answer", "declined": "declined", "filtered": "filtered"}
"""What became of an endpoint's answer → why there is no prompt (`generations.finish_reason`)."""


class Written(NamedTuple):
    """What a generator wrote for one job."""

    text: str
    n_tokens: int
    finish_reason: str
    """stop, length, thinking, or one of `NOT_WRITTEN`."""


def job_table(jobs: Sequence[GenerationJob]) -> pa.Table:
    """Return the jobs of a round as rows of `JOBS`, in order."""
    return pa.Table.from_pylist(
        [
            {
                "generation_id": digest("generation", i, job.seed, job.operator, job.language),
                "operator": job.operator, "role": job.writer.role, "steering": job.writer.kind,
                "layer": job.writer.layer, "alpha": job.alpha, "language": job.language, "seed": job.seed,
                "parents": [parent.text for parent in job.parents],
            }
            for i, job in enumerate(jobs)
        ],
        schema=JOBS,
    )  # fmt: skip


@dataclass(frozen=True)
class WriteWorker:
    """Writes jobs with a model, each with its own role, direction and α."""

    generator: ModelConfig
    name: str
    """The generator's id in the tables."""
    directions: WritingDirections
    written_by: str
    """Digest of the code of a user's own operators."""
    max_new_tokens: int
    temperature: float
    top_p: float
    instructions: Mapping[str, Mapping[str, str]] | None

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__, "rass_core.generate.operators"]

    def build(self, pool: ModelPool) -> Compute:
        """Return what writes a shard."""
        engine = pool.engine(self.generator)

        def compute(rows: pa.Table, done: Done) -> Tables:
            jobs = rows.to_pylist()
            writers = [Writer(job["role"], job["steering"], job["layer"]) for job in jobs]
            vectors: dict[str, SteeringVector] = {}
            for writer in dict.fromkeys(writers):
                vectors |= self.directions.vectors(writer, engine.n_layers)
            engine.set_vectors(vectors)
            requests = [
                request_of(
                    writer, engine.chat, job["operator"], job["language"], job["parents"], alpha=job["alpha"],
                    seed=job["seed"], max_new_tokens=self.max_new_tokens, temperature=self.temperature,
                    top_p=self.top_p, instructions=self.instructions,
                )
                for writer, job in zip(writers, jobs, strict=True)
            ]  # fmt: skip
            answers = engine.generate(requests, done)
            written = [
                Written(each.text, len(each.token_ids), IN_THINKING if each.is_cut_off else each.finish_reason)
                for each in answers
            ]
            return {"generations": _generations(self.name, jobs, written)}

        return compute


@dataclass(frozen=True)
class AskingWorker:
    """Lets an endpoint write jobs; its tokens are counted as the target's."""

    asking: Any
    """What the answers depend on of the endpoint's settings, and the digest of the code of a user's own operators."""
    target: ModelConfig
    instructions: Mapping[str, Mapping[str, str]] | None
    endpoint: EndpointConfig = field(compare=False)
    max_failed_share: float = field(compare=False)
    n_all: int = field(default=0, compare=False)
    """Jobs over all shards, of which the endpoint may fail on a share."""

    @property
    def code(self) -> list[str]:
        """Return the modules that its rows depend on."""
        return [__name__, "rass_core.generate.operators"]

    def build(self, pool: ModelPool) -> Compute:
        """Return what writes a shard."""
        endpoint, chat = pool.endpoint(self.endpoint), chat_of(self.target)
        failures = Failures(self.n_all, self.max_failed_share, "generate.max_failed_share")

        def compute(rows: pa.Table, done: Done) -> Tables:
            jobs = rows.to_pylist()
            asked = [instruction(job["operator"], job["language"], job["parents"], self.instructions) for job in jobs]
            answers = endpoint.draws(asked, [job["seed"] for job in jobs], done=done)
            missing = [no_verdict(answer, "generator") for answer in answers if isinstance(answer, NoAnswer)]
            failures.add(f"endpoint {endpoint.where}", missing)
            written = [
                Written("", 0, NOT_WRITTEN[answer.kind]) if isinstance(answer, NoAnswer)
                else Written(answer, len(chat.answer_ids(answer)), "length" if isinstance(answer, CutOff) else "stop")
                for answer in answers
            ]  # fmt: skip
            return {"generations": _generations(endpoint.model, jobs, written)}

        return compute


def _generations(name: str, jobs: Sequence[Mapping[str, Any]], written: Sequence[Written]) -> pa.Table:
    rows = [
        {key: job[key] for key in ("generation_id", "operator", "role", "steering", "layer", "alpha", "language")}
        | {"generator_id": name} | each._asdict()
        for job, each in zip(jobs, written, strict=True)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=TABLES["generations"])
