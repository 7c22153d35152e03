"""A small run to plan: its prompts, its configuration, a made-up speed, and the plan's rows and times."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from rass_core.config import RassConfig
from rass_core.estimate.machine import Speed
from rass_core.estimate.plan import Plan, plan_run
from rass_core.generate.operators import OPERATORS, operator_of

COUNTS = {("en", "harmful"): 5, ("en", "harmless"): 7, ("en", "pseudo_harmful"): 9, ("sw", "harmful"): 3}
N = sum(COUNTS.values())
ENDPOINT = {"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "judge"}}
SPEED = Speed(
    block_s=1e-4,
    backward_s=3e-4,
    head_s=1e-5,
    step_one_s=1e-3,
    step_full_s=2e-3,
    n_sequences=64,
    slowdown=1.0,
    device="a made-up machine",
)


def write_prompts(path: Path) -> Path:
    """Write prompts as in `COUNTS`, one of them twice, and an empty one."""
    rows = [
        {"text": f"{language} {label} {n}", "language": language, "label": label}
        for (language, label), count in COUNTS.items()
        for n in range(count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, rows[0], {**rows[0], "text": ""}]), encoding="utf-8")
    return path


def config(checkpoint: object, prompts: Path, **sections: Any) -> RassConfig:
    model = {"name": str(checkpoint)} | sections.pop("model", {})
    # One writer, so that no trial is needed.
    instructed = [name for name in OPERATORS.names() if operator_of(name).is_instructed]
    sections["generate"] = {"operators": instructed, "writers": [{"role": "assistant"}]} | sections.get("generate", {})
    return RassConfig.model_validate(
        {"model": model, "prompts": {"sources": [{"path": str(prompts)}]}, "lake": str(prompts.parent / "no" / "lake")}
        | sections
    )


def planned(configuration: RassConfig) -> dict[str, tuple[str, str]]:
    rows = plan_run(configuration).rows
    found = {row.what: (row.value, row.how) for row in rows}
    assert len(found) == len(rows)
    return found


def times(plan: Plan) -> dict[str, float]:
    """Return stage → its seconds, of all its parts."""
    found: defaultdict[str, float] = defaultdict(float)
    for stage in plan.stages:
        found[stage.stage] += stage.seconds
    return dict(found)
