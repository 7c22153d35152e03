"""The local executor: one shard after another in this process, which holds each model once."""

from collections.abc import Iterable, Iterator
from typing import Any

from rass_core.executor.base import EXECUTORS, Done, ExecutorSettings, Shard, Tables, Worker


@EXECUTORS.register("local")
class LocalExecutor:
    """Works in this process, with the models that it holds already.

    Args:
        settings: Settings of the configuration.
        pool: The models of this process.
    """

    def __init__(self, settings: ExecutorSettings, pool: Any) -> None:
        self._pool = pool

    def run(self, worker: Worker, shards: Iterable[Shard], done: Done) -> Iterator[tuple[Shard, Tables]]:
        """Yield each shard with its result, in order."""
        compute, n_done = None, 0
        for shard in shards:
            compute, before = compute or worker.build(self._pool), n_done

            def advanced(n: int, before: int = before) -> None:
                done(before + n)

            yield shard, compute(shard.rows, advanced)
            n_done += shard.rows.num_rows
            done(n_done)

    def close(self) -> None:
        """Nothing is held beside the models."""
