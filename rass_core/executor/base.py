"""What an executor is given and what it must do.

Code that uses a model is a `Worker`: built once per process, then called with one shard of rows after another. An
executor maps a worker over shards; the caller commits each shard as it arrives, so that an interrupted run continues
at the first missing shard.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
ROWS_AT_ONCE = 4096
"""Rows that are Python objects at a time where a table is read row by row."""


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

    def run(self, worker: Worker, shards: Iterable[Shard], done: Done) -> Iterator[tuple[Shard, Tables]]:
        """Yield each shard with its result, in any order, as soon as it is there.

        Args:
            worker: Is built at most once in each process, and only if there are shards.
            shards: Parts of the rows; taken one by one where the executor works so, such that they may be read from
                the lake meanwhile.
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


def cut(rows: pa.Table | Iterable[pa.RecordBatch], name: str, size: int) -> Iterator[pa.Table]:
    """Yield the rows in parts of about `size`, cut where a row's id says so; how they come in batches does not count.

    A row that is added or taken away changes the part that it is in and at most the next one: the others are found in
    the lake. No part has fewer than half of `size` rows but the last, none more than twice as many.

    Args:
        rows: Any, in their order; of batches, no more are held than make a part.
        name: Column of ids, text.
        size: Rows of a part, on the average.
    """
    least, held, n_held = max(1, size // 2), list[pa.RecordBatch](), 0
    one_in = size - least + 1
    for batch in rows.to_batches() if isinstance(rows, pa.Table) else rows:
        first = 0
        for i, identity in enumerate(_values(batch.column(name)), start=1):
            n = n_held + i - first
            is_end = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=4).digest()) % one_in == 0
            if (n >= least and is_end) or n >= 2 * size:
                yield pa.Table.from_batches([*held, batch.slice(first, i - first)])
                held, n_held, first = [], 0, i
        if first < batch.num_rows:
            held.append(batch.slice(first))
            n_held += batch.num_rows - first
    if held:
        yield pa.Table.from_batches(held)


def _values(column: pa.Array) -> Iterator[Any]:
    """Yield the values of a column, a few of them Python objects at a time."""
    for start in range(0, len(column), ROWS_AT_ONCE):
        yield from column.slice(start, ROWS_AT_ONCE).to_pylist()


def content(rows: pa.Table) -> str:
    """Return the digest of rows: equal values in equal order give equal digests, however they are stored."""
    digest = hashlib.sha256(json.dumps(rows.column_names).encode())
    for batch in rows.to_batches(max_chunksize=ROWS_AT_ONCE):
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
