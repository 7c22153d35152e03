"""The Ray executor: workers as an actor pool of Ray Data, on a cluster that is there or on one that it starts.

Every actor builds the worker once and holds its own models. An actor or a node that is lost is replaced, and the shards
it had are worked on again: they were not committed, so nothing is counted twice. Needs `pip install 'rass[ray]'`.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from rass_core.errors import ConfigError
from rass_core.executor.base import (
    EXECUTORS,
    Done,
    ExecutorSettings,
    Shard,
    Tables,
    Worker,
    from_bytes,
    to_bytes,
)

ROWS, RESULT, KEY = "rows", "result", "key"
"""Columns of the data set: a shard as bytes, its result as bytes, its key."""


class RayExecutorSettings(ExecutorSettings):
    """Work on a Ray cluster."""

    kind: Literal["ray"] = "ray"
    """ray: on a Ray cluster."""
    address: str | None = None
    """Address of the cluster, such as auto or ray://host:10001; null: RAY_ADDRESS, else a new local cluster."""
    n_workers: int = Field(default=1, ge=1, le=10_000)
    """Actors, each with its own copy of the models."""
    cpus_per_worker: float = Field(default=1.0, ge=0, le=4096)
    """Cores that an actor reserves."""
    gpus_per_worker: float = Field(default=0.0, ge=0, le=1024)
    """GPUs that an actor reserves."""


class _Actor:
    """Builds the worker once; called with batches of one shard."""

    def __init__(self, worker: Worker, new_pool: Callable[[], Any]) -> None:
        self._compute = worker.build(new_pool())

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        keys, results = list(batch[KEY]), []
        for packed in batch[ROWS]:
            tables = self._compute(from_bytes({ROWS: packed})[ROWS], lambda n: None)
            parts = to_bytes(tables)
            header = json.dumps({name: len(part) for name, part in parts.items()}).encode()
            results.append(len(header).to_bytes(8) + header + b"".join(parts.values()))
        return {KEY: keys, RESULT: results}


@EXECUTORS.register("ray", RayExecutorSettings)
class RayExecutor:
    """Works on actors of a Ray cluster.

    Args:
        settings: Settings of the configuration.
        pool: The models of this process, of which the actors' pools take the settings.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, settings: RayExecutorSettings, pool: Any) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("executor ray: Ray is not installed; run `pip install 'rass[ray]'`") from error
        self._ray, self._settings, self._new_pool = ray, settings, pool.blueprint()
        self._has_started = not ray.is_initialized()
        if self._has_started:
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            try:
                ray.init(
                    address=settings.address, include_dashboard=False, logging_level=logging.WARNING,
                    log_to_driver=False,
                )  # fmt: skip
            except (ConnectionError, ValueError, RuntimeError) as error:
                where = settings.address or "this machine"
                raise ConfigError(
                    f"executor.address {where}: no Ray cluster ({error}); start one or leave it out"
                ) from error

    def run(self, worker: Worker, shards: Iterable[Shard], done: Done) -> Iterator[tuple[Shard, Tables]]:
        """Yield each shard with its result, in the order in which they finish."""
        by_key = {shard.key: shard for shard in shards}
        if not by_key:
            return
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        given = [{KEY: key, ROWS: to_bytes({ROWS: shard.rows})[ROWS]} for key, shard in by_key.items()]
        n_workers = min(self._settings.n_workers, len(given))
        found = ray.data.from_items(given, override_num_blocks=len(given)).map_batches(
            _Actor, batch_size=1, fn_constructor_args=(worker, self._new_pool),
            compute=ray.data.ActorPoolStrategy(size=n_workers),
            num_cpus=self._settings.cpus_per_worker, num_gpus=self._settings.gpus_per_worker or None,
        )  # fmt: skip
        n_done = 0
        for row in found.iter_rows():
            shard, packed = by_key[row[KEY]], row[RESULT]
            n_done += shard.rows.num_rows
            yield shard, _unpacked(packed)
            done(n_done)

    def close(self) -> None:
        """Leave the cluster, and end it where this executor started it."""
        if self._has_started:
            self._ray.shutdown()


def _unpacked(packed: bytes) -> dict[str, Any]:
    n = int.from_bytes(packed[:8])
    header, at, parts = json.loads(packed[8 : 8 + n]), 8 + n, {}
    for name, length in header.items():
        parts[name] = packed[at : at + length]
        at += length
    return from_bytes(parts)
