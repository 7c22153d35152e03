"""The disk and the memory that a run needs."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rass_core.config import RassConfig
from rass_core.estimate import costs
from rass_core.estimate.checkpoints import Checkpoint
from rass_core.estimate.rows import PlanRow
from rass_core.lake.files import files_at
from rass_core.units import size

BYTES_PER_VALUE = 1.37
"""Bytes of an activation in Parquet, rounded to bfloat16 first: byte stream split and zstd, measured."""
PROCESS_BYTES = 1.5e9
"""Memory of Python with torch, transformers, vLLM and Prefect, measured."""
KV_CACHE_BYTES = 0.25 * 2**30
"""Cache of vLLM on a CPU if the configuration names none."""


def disk_row(config: RassConfig, checkpoints: Sequence[Checkpoint], n_prompts: int) -> PlanRow:
    """Return the disk that the residual streams take, and whether the lake's disk has it."""
    total, parts = 0, []
    for checkpoint in checkpoints:
        n_layers = len(config.probe.layers or range(n_candidate_layers(checkpoint.shape.n_layers)))
        n_positions = len(config.probe.positions or checkpoint.chat.positions())
        parts.append(
            f"{n_prompts:,} prompts × {n_layers} layers × {n_positions} positions × {checkpoint.shape.d_model}"
        )
        total += n_prompts * n_layers * n_positions * checkpoint.shape.d_model
    survivors = config.generate.n_written
    total += survivors * checkpoints[0].shape.d_model
    free = shutil.disk_usage(_existing(files_at(config.lake).folder)).free
    parts.append(f"{survivors:,} candidates × {checkpoints[0].shape.d_model}")
    how = f"{' + '.join(parts)}, {BYTES_PER_VALUE} bytes per value"
    fits = "free" if total * BYTES_PER_VALUE < free else "free: NOT ENOUGH"
    return PlanRow("disk for activations", size(total * BYTES_PER_VALUE), f"{how}; {size(free)} {fits}")


def memory_row(config: RassConfig, checkpoints: Sequence[Checkpoint], n_prompts: int) -> PlanRow:
    """Return the peak of memory: the process, each model twice, and the largest of what the stages hold."""
    import torch

    target = checkpoints[0]
    shape, budget = target.shape, config.probe.token_budget
    models = sum(2 * each.shape.n_parameters * each.shape.bytes_per_parameter for each in checkpoints)
    cache = len(checkpoints) * (config.model.kv_cache_gib * 2**30 if config.model.kv_cache_gib else KV_CACHE_BYTES)
    layers = len(config.probe.layers or range(n_candidate_layers(shape.n_layers)))
    streams = 2 * n_prompts * layers * len(config.probe.positions or target.chat.positions()) * shape.d_model * 4
    logits = 3 * budget * shape.vocabulary * 4
    held: dict[str, float] = {"residual streams": streams, "logits of a batch": logits}
    if config.mitigate is not None and costs.trainings(config):
        settings = config.mitigate.training
        each = target.mean_tokens + costs.answer_length(config.mitigate.max_new_tokens)
        tokens = 2 * (settings.micro_batch_size or settings.batch_size) * each
        kept = 1 if settings.gradient_checkpointing else shape.n_layers
        weights = shape.n_parameters * shape.bytes_per_parameter
        held["training"] = weights + tokens * (kept * 16 * shape.d_model + 3 * shape.vocabulary) * 4
    largest = max(held, key=lambda name: held[name])
    total = PROCESS_BYTES + models + cache + held[largest]
    if torch.cuda.is_available():
        there = float(torch.cuda.get_device_properties(0).total_memory)
    else:
        there = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    fits = "" if total < there else ": NOT ENOUGH"
    how = (
        f"process {size(PROCESS_BYTES)}, models {size(models)}, vLLM's cache {size(cache)}, {largest} "
        f"{size(held[largest])}; {size(there)} in this machine{fits}"
    )
    return PlanRow("memory", size(total), how)


def n_candidate_layers(n_layers: int) -> int:
    """Return how many blocks are read: all but the last fifth."""
    return max(1, n_layers - n_layers // 5)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
