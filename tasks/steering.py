"""Stage: harmless prompts answered while the chosen direction is added → how many are refused, in `evaluations`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.models.identity import model_id
from rass_core.models.settings import ModelConfig
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering, SteeringVector
from rass_core.probe import causal
from rass_core.probe import geometry as core
from tasks.probed import direction_with
from tasks.rates import rate_rows
from tasks.session import Session
from tasks.stage import MODEL_CODE, StageTables, stage


def steered_outcomes(session: Session, rows: Sequence[Mapping[str, Any]], answers: Sequence[Generation]) -> list[str]:
    """Return refusal, compliance or unscored for each answer; a refusal in broken text counts as compliance."""
    verdicts = session.panel([
        a.exchange(r["language"], r["text"], label=r["label"]) for a, r in zip(answers, rows, strict=True)
    ])  # fmt: skip
    return [
        "unscored" if v.outcome == "unscored" else
        "refusal" if causal.is_coherent_refusal(v.outcome, a.text) else "compliance"
        for v, a in zip(verdicts, answers, strict=True)
    ]  # fmt: skip


def harmless_prompts(session: Session, prompts: Commit, split: str, n: int) -> list[dict[str, Any]]:
    """Return at most n harmless prompts per language of a split."""
    rows = [r for r in session.read("prompts", prompts).to_pylist() if r["label"] == "harmless"]
    return _per_language([r for r in rows if core.split_of(r["family"], session.config.seed) == split], n)


@stage(
    "steering check",
    reads=["prompts", "directions"],
    writes=["evaluations"],
    settings=["probe", "judging", "correcting", "seed"],
    code=[MODEL_CODE],
)
def verify_steering(session: Session, model: ModelConfig, prompts: Commit, directions: Commit) -> StageTables:
    """Add the chosen direction in the engine to harmless test prompts, unseen by its choice: how many are refused?"""
    add, settings = direction_with("add", session, directions), session.config.probe
    name, engine = model_id(model.reference), session.engine(model)
    rows = harmless_prompts(session, prompts, "test", settings.n_causal_prompts)
    engine.set_vectors({"add": SteeringVector(add.vector.astype(np.float32), (add.layer,))})
    steering = Steering("add", add.alpha or 1.0)
    requests = [
        GenerationRequest(engine.chat.ids(row["text"]), settings.max_new_tokens, steering=steering) for row in rows
    ]
    with session.progress("steered answers", len(requests)) as done:
        answers = engine.generate(requests, done)
    outcomes = steered_outcomes(session, rows, answers)
    languages = [row["language"] for row in rows]
    rates = rate_rows(session, name, "steered", "harmless", "induced_refusal_rate", languages, outcomes)
    return {"evaluations": rows_table("evaluations", rates)}


def _per_language(rows: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return at most n rows per language, those with the smallest ids."""
    kept: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["prompt_id"]):
        here = kept.setdefault(row["language"], [])
        if len(here) < n:
            here.append(row)
    return [row for here in kept.values() for row in here]
