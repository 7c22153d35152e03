"""The arithmetic of a run's time on a GPU counts the work of the plan, and nothing else."""

import pytest

from benchmarks.gpu_time import Gpu, Work, seconds, stages_at, work_of
from flows.cli import DEMO_CONFIG
from rass_core.config import load_config
from rass_core.estimate.machine import Speed


def test_the_work_counted_gives_the_plans_times() -> None:
    config = load_config(DEMO_CONFIG)
    work = work_of(config)
    n_layers = 6

    def speed(found: int) -> Speed:
        assert found == n_layers
        return Speed(
            block_s=2.0, backward_s=5.0, head_s=0.0, step_one_s=3.0, step_full_s=3.0, n_sequences=64, slowdown=0.0,
            device="test",
        )  # fmt: skip

    expected = n_layers * (2.0 * work.read + 5.0 * work.trained + 3.0 * work.steps)
    assert sum(stage.seconds for stage in stages_at(config, speed)) == pytest.approx(expected)
    assert min(work.read, work.trained, work.steps) > 0
    assert work.loads == 2


def test_a_run_takes_the_sum_of_computing_decoding_and_loading() -> None:
    gpu = Gpu(flops=1e12, bytes_per_s=1e12, flops_share=0.5, bytes_share=0.5)
    one_billion = 1e9
    assert seconds(Work(1000, 0, 0, 0), one_billion, gpu) == pytest.approx(2e9 * 1000 / 0.5e12)
    assert seconds(Work(0, 1000, 0, 0), one_billion, gpu) == pytest.approx(3 * 2e9 * 1000 / 0.5e12)
    assert seconds(Work(0, 0, 10, 0), one_billion, gpu) == pytest.approx(10 * (2e9 / 0.5e12 + 0.009))
    assert seconds(Work(0, 0, 0, 3), one_billion, gpu) == pytest.approx(3 * (8.0 + 2e9 / 500e6))
