"""What an executor is given and what it must do.

Code that uses a model is a `Worker`: built once per process, then called with one shard of rows after another. An
executor maps a worker over shards; the caller commits each shard as it arrives, so that an interrupted run continues
at the first missing shard.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from pydantic import BaseModel, Field

from rass_core.registry import Registry
from rass_core.settings import MAX_COUNT, STRICT

Tables = Mapping[str, pa.Table]
"""Table of the lake → rows."""
Done = Callable[[int], None]
"""Called with the number of rows finished so far."""
Compute = Callable[[pa.Table, Done], Tables]


class Worker(Protocol):
    """What computes rows from rows with a model: settings that can be sent to another process.

    A frozen dataclass, say, of settings and arrays. Its rows depend on these, on the rows that it is given, and on the
    code that its module imports, and on nothing else: not on other shards, nor on how many there are. Fields that do
    not change a result are declared with `compare=False`.
    """

    @property
    def code(self) -> Sequence[str]:
        """Return the modules that its rows depend on, with all that these import."""
        ...

    def build(self, pool: Any) -> Compute:
        """Return what computes a shard.

        Args:
            pool: The models of the process (`rass_core.models.pool.ModelPool`), each loaded once.
        """
        ...


@dataclass(frozen=True)
class Shard:
    """A part of the rows of a stage."""

    key: str
    """Digest of all that determines its result."""
    rows: pa.Table


class Executor(Protocol):
    """Maps a worker over shards."""

    def run(self, worker: Worker, shards: Sequence[Shard], done: Done) -> Iterator[tuple[Shard, Tables]]:
        """Yield each shard with its result, in any order, as soon as it is there.

        Args:
            worker: Is built at most once in each process, and only if there are shards.
            shards: Parts of the rows.
            done: Called with the number of rows finished, over all shards.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds, such as a cluster that it started."""
        ...


class ExecutorSettings(BaseModel):
    """Where models work."""

    model_config = STRICT

    kind: str = "local"
    """local: in this process. ray: on a Ray cluster. Or your own, as package.module:Class."""
    rows_per_shard: int = Field(default=512, ge=1, le=MAX_COUNT)
    """Prompts that are worked on between two commits, on the average: a run that was stopped repeats no more."""


EXECUTORS: Registry[ExecutorSettings] = Registry("executor", ["rass_core.executor"], ExecutorSettings)
"""Kind → settings and (settings, pool) → Executor."""


def cut(rows: pa.Table, name: str, size: int) -> list[pa.Table]:
    """Return the rows in parts of about `size`, cut where a row's id says so.

    A row that is added or taken away changes the part that it is in and at most the next one: the others are found in
    the lake. No part has fewer than half of `size` rows but the last, none more than twice as many.

    Args:
        rows: Any.
        name: Column of ids, text.
        size: Rows of a part, on the average.
    """
    least, parts, first = max(1, size // 2), [], 0
    for i, identity in enumerate(rows.column(name).to_pylist(), start=1):
        n = i - first
        is_end = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=4).digest()) % (size - least + 1) == 0
        if (n >= least and is_end) or n >= 2 * size:
            parts.append(rows.slice(first, n))
            first = i
    if first < rows.num_rows:
        parts.append(rows.slice(first))
    return parts


def content(rows: pa.Table) -> str:
    """Return the digest of rows: equal values in equal order give equal digests, however they are stored."""
    digest = hashlib.sha256(json.dumps(rows.column_names).encode())
    for batch in rows.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            digest.update(json.dumps(row, default=str).encode() + b"\n")
    return digest.hexdigest()


def to_bytes(tables: Tables) -> dict[str, bytes]:
    """Return tables as bytes, to be sent to another process."""
    found = {}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        found[name] = sink.getvalue().to_pybytes()
    return found


def from_bytes(packed: Mapping[str, Any]) -> dict[str, pa.Table]:
    """Return the tables of `to_bytes`."""
    return {name: pa.ipc.open_stream(each).read_all() for name, each in packed.items()}
