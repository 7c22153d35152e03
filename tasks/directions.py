"""Stage: directions, screened and tried, each with its roles → `directions`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rass_core.errors import BoundaryError
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.models.causal_lm import decoder_blocks
from rass_core.models.chat import chat_of
from rass_core.models.identity import model_id
from rass_core.models.settings import ModelConfig
from rass_core.models.vllm_requests import GenerationRequest, Steering, SteeringVector
from rass_core.probe import causal
from rass_core.probe import geometry as core
from rass_core.probe.causal import CausalPrompts, CausalTrial
from rass_core.probe.geometry import Direction, ProbeData
from rass_core.probe.roles import choose_roles
from tasks.probed import read_probe_data
from tasks.session import Session
from tasks.stage import MODEL_CODE, StageTables, stage
from tasks.steering import harmless_prompts, steered_outcomes


@stage(
    "directions",
    reads=["prompts", "responses", "verdicts", "activations"],
    writes=["directions"],
    settings=["probe", "judging", "seed"],
    code=[MODEL_CODE],
)
def find_directions(
    session: Session, model: ModelConfig, prompts: Commit, responses: Commit, activations: Commit
) -> StageTables:
    """Compute candidate directions, screen them, test the best by intervention and by generation, and assign roles."""
    settings = session.config.probe
    data = read_probe_data(session, prompts, responses, activations)
    found = core.with_auc(data, core.candidate_directions(data, settings.methods))
    tried = _tried(session, model, found, _causal_prompts(session, model, prompts, data))
    tried = [replace(d, off_scale=core.why_off_scale(data, d)) for d in tried]
    tried_ids = {id(d.vector) for d in tried}
    options = causal.generation_options(tried, settings)
    tried = causal.with_generated(tried, options, _generated(session, model, prompts, options))
    chosen = choose_roles(tried, settings)
    own = core.language_directions(data, next(d for d in chosen if "margin" in d.roles)).values()
    untried = [direction for direction in found if id(direction.vector) not in tried_ids]
    rows = [_row(d, model_id(model.reference)) for d in [*chosen, *untried, *own]]
    return {"directions": rows_table("directions", rows)}


def _tried(
    session: Session, model: ModelConfig, found: Sequence[Direction], prompts: Sequence[CausalPrompts]
) -> list[Direction]:
    """Return the directions that were tried on all causal prompts, by layer."""
    settings, causal_lm = session.config.probe, session.causal_lm(model)
    candidates = causal.screening_candidates(found, len(decoder_blocks(causal_lm)), settings.n_screened)
    layers = [direction.layer for direction in candidates]
    few = CausalTrial(causal_lm, causal.fewer(prompts, settings.n_screening_prompts), settings, layers)
    with session.progress("screening directions", len(candidates)) as done:
        screened = causal.screen(few, candidates, settings.max_kl, done)
    tried = causal.causal_candidates(screened, settings.n_causal_candidates, settings.min_induce)
    ablated = causal.ablation_candidates(screened, settings.n_ablation_candidates)
    full = CausalTrial(causal_lm, prompts, settings, [direction.layer for direction in [*tried, *ablated]])
    scored = {}
    with session.progress("trying directions", len(tried) + len(ablated)) as done:
        for direction in tried:
            scored[id(direction)] = full(direction)
            done(len(scored))
        for n, direction in enumerate(ablated, len(tried) + 1):
            before = scored.get(id(direction), direction)
            scored[id(direction)] = causal.search_ablation(few, full, before, settings)
            done(n)
    return sorted(scored.values(), key=lambda d: (d.layer, d.kind, d.position))


def _generated(
    session: Session, model: ModelConfig, prompts: Commit, options: Sequence[tuple[Direction, float]]
) -> list[tuple[int, int]]:
    """Return for each direction and strength how many of how many harmless validation prompts are now refused."""
    settings = session.config.probe
    n_languages = len(set(session.read("prompts", prompts)["language"].to_pylist()))
    rows = harmless_prompts(session, prompts, "validation", max(3, settings.n_generated_prompts // n_languages))
    if not options or not rows:
        return [(0, 0)] * len(options)
    engine = session.engine(model)
    engine.set_vectors({
        str(i): SteeringVector(d.vector.astype(np.float32), (d.layer,)) for i, (d, _) in enumerate(options)
    })  # fmt: skip
    requests = [
        GenerationRequest(engine.chat.ids(row["text"]), settings.max_new_tokens, steering=Steering(str(i), alpha))
        for i, (_, alpha) in enumerate(options)
        for row in rows
    ]
    with session.progress("steered answers", len(requests)) as done:
        answers = engine.generate(requests, done)
    outcomes = steered_outcomes(session, rows * len(options), answers)
    found = []
    for i in range(len(options)):
        here = outcomes[i * len(rows) : (i + 1) * len(rows)]
        found.append((here.count("refusal"), len(here) - here.count("unscored")))
    return found


def _causal_prompts(session: Session, model: ModelConfig, prompts: Commit, data: ProbeData) -> list[CausalPrompts]:
    """Return validation prompts of each language with its prefixes, as tokens."""
    settings, chat = session.config.probe, chat_of(model)
    rows = [
        row for row in sorted(session.read("prompts", prompts).to_pylist(), key=lambda row: row["prompt_id"])
        if core.split_of(row["family"], session.config.seed) == "validation"
    ]  # fmt: skip
    found = []
    for language in sorted({row["language"] for row in rows}):
        tokens = {
            label: [
                chat.ids(row["text"]) for row in rows if row["language"] == language and row["label"] == label
            ][: settings.n_causal_prompts]
            for label in ("harmful", "harmless")
        }  # fmt: skip
        prefixes = core.prefixes_of(language, settings.prefixes)
        if all(tokens.values()):
            found.append(CausalPrompts(
                tokens["harmful"], tokens["harmless"],
                [chat.answer_ids(text) for text in prefixes.refusal],
                [chat.answer_ids(text) for text in prefixes.compliance],
            ))  # fmt: skip
    if not found:
        raise BoundaryError("probe: no language has both harmful and harmless prompts; add the missing label")
    return found


def _row(direction: Direction, name: str) -> dict[str, Any]:
    return {
        "direction_id": direction.direction_id(name), "model_id": name, "kind": direction.kind,
        "method": direction.method, "language": direction.language, "layer": direction.layer,
        "position": direction.position, "vector": direction.vector.astype(np.float32).tolist(),
        "auc": direction.auc, "alpha": direction.alpha, "induce_score": direction.induce_score,
        "induce_generated": direction.induce_generated, "n_generated": direction.n_generated,
        "bypass_score": direction.bypass_score, "kl": direction.kl,
        "ablate_layers": None if direction.ablate_layers is None else list(direction.ablate_layers),
        "ablate_strength": direction.ablate_strength, "agreement": direction.agreement,
        "roles": list(direction.roles) or None, "reason": direction.reason,
    }  # fmt: skip
