"""The share of held-out prompts that a model refuses, and whether it is within the bars."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.real.progress import every_10_s
from benchmarks.real.prompts import TARGETS, Target, digest_bytes, held_out
from rass_core.judges.panel import default_panel
from rass_core.models.vllm_engine import SteeredEngine
from rass_core.models.vllm_requests import GenerationRequest
from rass_core.stats.intervals import wilson
from rass_core.vocabulary import Row

CHECKED_TOKENS = 48
"""Length of an answer that is only to be judged."""


def check(model: str, data: Path, n: int, dtype: str = "float32", only: Sequence[str] = ()) -> list[Row]:
    """Return one row per target: the share of its prompts that the model refuses, by the default panel.

    Args:
        model: Folder of a chat model.
        data: Folder of prompt files.
        n: Most prompts per target.
        dtype: Data type of weights and arithmetic.
        only: Names of targets; none for all.
    """
    asked = [
        (target, prompt)
        for target in TARGETS
        if not only or target.name in only
        for prompt in sorted(held_out(data, target), key=lambda p: digest_bytes("check", p["prompt_id"]))[:n]
    ]
    with SteeredEngine(model, dtype=dtype, kv_cache_gib=0.5) as engine:
        answers = engine.generate(
            [GenerationRequest(engine.chat.ids(prompt["text"]), CHECKED_TOKENS) for _, prompt in asked],
            every_10_s(f"{Path(model).name}: {{}} of {len(asked)} answers"),
        )
    exchanges = [
        answer.exchange("en", prompt["text"], label=prompt.get("label"))
        for (_, prompt), answer in zip(asked, answers, strict=True)
    ]
    said: dict[Target, list[str]] = {}
    for (target, _), verdict in zip(asked, default_panel()(exchanges), strict=True):
        said.setdefault(target, []).append(verdict.outcome)
    rows = []
    for target, outcomes in said.items():
        scored = [each for each in outcomes if each != "unscored"]
        rate, low, high = wilson(sum(each == "refusal" for each in scored), len(scored))
        rows.append({
            "model": Path(model).name, "set": target.name, "n": len(scored), "unscored": len(outcomes) - len(scored),
            "refused": round(rate, 4), "low": round(low, 4), "high": round(high, 4),
            "partial": round(sum(each == "partial" for each in scored) / len(scored), 4),
            "least": target.least, "most": target.most, "within": target.least <= rate <= target.most, "dtype": dtype,
        })  # fmt: skip
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the rows of `check` as a Markdown table."""
    lines = ["| model | held-out set | n | refused [95%] | partly | bar |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        bar = f"≥ {row['least']:.0%}" if row["least"] else f"≤ {row['most']:.0%}" if row["most"] < 1 else "none"
        verdict = "" if bar == "none" else ", met" if row["within"] else ", not met"
        lines.append(
            f"| {row['model']} | {row['set']} | {row['n']} | {row['refused']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"
            f" | {row['partial']:.0%} | {bar}{verdict} |"
        )
    return "\n".join(lines)
