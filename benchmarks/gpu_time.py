"""Estimate the time of a run on a GPU by the size of the model: `python -m benchmarks.gpu_time CONFIG.yaml`.

This is arithmetic, not a measurement. It counts the work that `rass plan` expects and divides it by the speed of a GPU:

    seconds = 2·P·(R + 3·T) / (u·F) + S·(2·P / (w·B) + s) + L·(l + 2·P / D)

- P: parameters, 2 bytes each.
- R: tokens read. T: tokens trained on; forward and backward together cost three forward passes.
- S: decode steps of vLLM. Each step reads all weights once and takes s seconds in the scheduler.
- L: model loads. Each takes l seconds and reads the weights from a disk at D bytes/s.
- F, B: peak FLOP/s and memory bytes/s of the GPU; u, w: the assumed shares of them that are reached.

The tokens of a prompt are those of the model in the configuration; other tokenizers differ by some 10%.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

from rass_core.config import RassConfig, load_config
from rass_core.estimate.machine import READ_BYTES_PER_S, STEP_S, VLLM_LOAD_S, Cost, Shape, Speed
from rass_core.estimate.plan import plan_run

BYTES_PER_PARAMETER = 2
N_SEQUENCES = 64
"""Requests that vLLM runs at a time, the default of model.max_num_seqs."""


@dataclass(frozen=True)
class Gpu:
    """Peak speed of a GPU, from its data sheet, and the assumed share of it that a run reaches."""

    name: str = "one H100 SXM, 80 GB"
    flops: float = 989e12
    """bfloat16, dense, per second."""
    bytes_per_s: float = 3.35e12
    flops_share: float = 0.3
    bytes_share: float = 0.6


@dataclass(frozen=True)
class Work:
    """The work of a run, independent of the size of the model."""

    read: float
    """Tokens through all blocks. A token through half of the blocks counts half."""
    trained: float
    """Tokens forward and backward through all blocks."""
    steps: float
    """Decode steps."""
    loads: int


def work_of(config: RassConfig) -> Work:
    """Count the work of a plan. The plan's times are linear in the machine's speed, so unit speeds count units."""
    read, trained, steps = (
        sum(stage.seconds for stage in stages_at(config, lambda n_layers, unit=unit: _speed(unit, n_layers)))
        for unit in ("read", "trained", "steps")
    )
    stages = stages_at(config, lambda n_layers: _speed("read", n_layers))
    return Work(read, trained, steps, sum(stage.stage.startswith("loading") for stage in stages))


def stages_at(config: RassConfig, speed: Callable[[int], Speed]) -> list[Cost]:
    """Return the stages of the plan on a machine of a given speed.

    Args:
        config: The run.
        speed: Number of decoder blocks → speed of the machine, in place of the measured one.
    """

    def given(shape: Shape, n_sequences: int, seconds: float = 0.0) -> Speed:
        return speed(shape.n_layers)

    with patch.object(Speed, "measured", given):
        return plan_run(config).stages


def _speed(unit: str, n_layers: int) -> Speed:
    """Return a machine on which one unit of one kind of work takes a second, and all other work nothing."""
    each = 1 / n_layers
    return Speed(
        block_s=each * (unit == "read"),
        backward_s=each * (unit == "trained"),
        head_s=0.0,
        step_one_s=each * (unit == "steps"),
        step_full_s=each * (unit == "steps"),
        n_sequences=N_SEQUENCES,
        slowdown=0.0,
        device="counting",
    )


def seconds(work: Work, parameters: float, gpu: Gpu) -> float:
    """Return the seconds of a run on one GPU."""
    weights = BYTES_PER_PARAMETER * parameters
    computing = 2 * parameters * (work.read + 3 * work.trained) / (gpu.flops_share * gpu.flops)
    decoding = work.steps * (weights / (gpu.bytes_share * gpu.bytes_per_s) + STEP_S)
    return computing + decoding + work.loads * (VLLM_LOAD_S + weights / READ_BYTES_PER_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration whose work is counted")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1.5, 3, 8, 14], help="billions of parameters")
    options = parser.parse_args()
    work, gpu = work_of(load_config(options.config)), Gpu()
    print(f"R = {work.read:,.0f}, T = {work.trained:,.0f}, S = {work.steps:,.0f}, L = {work.loads}; {gpu}")
    print("| parameters | minutes |\n| ---: | ---: |")
    for size in options.sizes:
        print(f"| {size:g} B | {seconds(work, size * 1e9, gpu) / 60:.0f} |")


if __name__ == "__main__":
    main()
