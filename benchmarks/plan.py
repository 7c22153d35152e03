"""Compare the plan with what a run took, stage by stage: `python -m benchmarks.plan CONFIG.yaml --lake LAKE`.

Run the configuration first, with a new lake: `rass run CONFIG.yaml --lake LAKE`. Seconds of the processor say what a
stage takes whatever else the machine does; set OMP_NUM_THREADS=1 for both commands, so that they count one core.
"""

import argparse
import math
import sys
from collections import defaultdict

from rass_core.config import RassConfig, load_config
from rass_core.errors import LakeError
from rass_core.estimate.machine import Cost
from rass_core.estimate.plan import plan_run
from rass_core.lake.store import Lake
from rass_core.units import duration

LONG_S = 5.0
"""Shorter stages are listed but not judged: a second more or less is a factor."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration that was run")
    parser.add_argument("--lake", required=True, help="lake of that run")
    arguments = parser.parse_args()
    config = load_config(arguments.config, lake=arguments.lake)
    slowdown, stages = planned(config)
    for line in table(stages, seen(Lake.open(arguments.lake, create=False)), slowdown):
        print(line)


def planned(config: RassConfig) -> tuple[float, list[Cost]]:
    """Return how much slower than quiet the machine is now, and the plan's stages."""
    found = plan_run(config)
    print(found.verdict, end="\n\n", file=sys.stderr)
    return found.slowdown, found.stages


def seen(lake: Lake) -> dict[str, tuple[float, float]]:
    """Return stage → (seconds, seconds of the processor) of what the runs of a lake computed."""
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    rows = lake.query("SELECT stages FROM runs WHERE flow <> 'review' AND stages IS NOT NULL").to_pylist()
    if not rows:
        raise LakeError(f"{lake.path}: no run with times; run the configuration again with a new lake")
    for stage in [stage for row in rows for stage in row["stages"] if stage["computed"]]:
        name = stage["stage"]
        if name.startswith("loading"):
            name = f"loading in {name.rsplit(' ', 1)[1]}"
        seconds, processor = found[name]
        found[name] = seconds + stage["seconds"], processor + stage["cpu_seconds"]
    return dict(found)


def table(stages: list[Cost], taken: dict[str, tuple[float, float]], slowdown: float) -> list[str]:
    """Return a Markdown table: a row per stage, and all that were both planned and seen."""
    plan: dict[str, float] = defaultdict(float)
    for stage in stages:
        plan[stage.stage] += stage.seconds / slowdown
    lines = [
        "| stage | planned, quiet core | seen, processor | planned ÷ seen | seen, wall clock |",
        "|---|--:|--:|--:|--:|",
    ]
    total = [0.0, 0.0, 0.0]
    for name in [*plan, *(name for name in taken if name not in plan)]:
        if name not in taken or name not in plan:
            here = f"{duration(plan[name])} | · " if name in plan else f"· | {duration(taken[name][1])} "
            lines.append(f"| {name} | {here}| · | · |")
            continue
        (wall, processor), expected = taken[name], plan[name]
        ratio = expected / processor if processor else math.nan
        is_judged = max(expected, processor) >= LONG_S
        mark = " **off**" if is_judged and not 0.5 <= ratio <= 2 else ""
        lines.append(
            f"| {name} | {duration(expected)} | {duration(processor)} | {ratio:.2f}{mark} | {duration(wall)} |"
        )
        total = [total[0] + expected, total[1] + processor, total[2] + wall]
    lines.append(
        f"| **all of these** | {duration(total[0])} | {duration(total[1])} | {total[0] / total[1]:.2f} | "
        f"{duration(total[2])} |"
    )
    return lines


if __name__ == "__main__":
    main()
