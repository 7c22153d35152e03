"""Stage: one variant of the model, mitigated by preference pairs → a folder below the lake's `models/`, `variants`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.lake.store import Commit
from rass_core.mitigate.base import DirectionSource, MitigatedModel, MitigationContext, MitigationMethod
from rass_core.mitigate.false_refusal import false_refusal_direction
from rass_core.mitigate.pairs import PreferencePair
from rass_core.mitigate.variant import mitigate
from rass_core.models.settings import ModelConfig
from rass_core.probe.directions import cosine
from rass_core.text import digest
from tasks.generate import Probed
from tasks.preferences import mitigating
from tasks.probe import direction_with, directions_of
from tasks.session import Session, chat_of, own_code, table, versions


@dataclass(frozen=True)
class Variant:
    """A model as it is evaluated: as given, or mitigated."""

    name: str
    model: ModelConfig
    """What is loaded."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Its row of `variants`; empty for the model as given."""
    ablated: np.ndarray[Any, Any] | None = None
    """Direction that is removed while it runs, (d_model,), unit length."""
    strength: float = 1.0
    commit: Commit | None = None


def as_given(session: Session) -> Variant:
    """Return the target itself."""
    return Variant("base", session.config.model)


@task(cache_policy=NO_CACHE, task_run_name="mitigate-{method.name}")
def mitigate_by(session: Session, method: MitigationMethod[Any], pairs: Sequence[PreferencePair], probed: Probed) -> Variant:
    """Mitigate over-refusal by one method; an interrupted training resumes from its last checkpoint."""
    source = method.direction
    direction = None if source is None else find_false_refusal_direction(session, source, pairs, probed)
    inputs = [
        method.name, session.target_id, session.config.model, method.settings, versions(*method.libraries),
        own_code(method), probed.directions, direction, [pair.__dict__ for pair in pairs],
    ]  # fmt: skip
    context = MitigationContext(
        pairs=pairs,
        model=session.config.model,
        chat=chat_of(session.config.model),
        folder=session.lake.path / "models" / f"{method.name}-{session.key(inputs)[:8]}",
        directions=directions_of(session, probed.directions),
        false_refusal=None if direction is None else _vector(session, direction),
        progress=session.progress,
        status=session.status,
    )
    session.say(f"{method.name}: {len(pairs)} pairs")

    def compute() -> Mapping[str, pa.Table]:
        return {"variants": table("variants", [_row(session, method, context, *mitigate(method, context))])}

    commit = session.once(method.name, inputs, compute)
    made, _ = mitigate(method, context)  # once more where the lake knows the variant but its folder is gone
    return Variant(
        name=method.name,
        model=session.config.model if made.weights is None else session.config.model.at(str(made.weights)),
        facts=session.read("variants", commit).to_pylist()[0],
        ablated=made.ablated,
        strength=made.strength,
        commit=commit,
    )


@task(cache_policy=NO_CACHE)
def find_false_refusal_direction(
    session: Session, source: DirectionSource, pairs: Sequence[PreferencePair], probed: Probed
) -> Commit:
    """Find the direction that ablation removes: the probe's own, or one learned from the pairs."""
    seed = mitigating(session).training.seed

    def compute() -> Mapping[str, pa.Table]:
        known = directions_of(session, probed.directions)
        model = session.config.model
        vector = false_refusal_direction(source, known, pairs, model, chat_of(model), seed, session.progress)
        row = {
            "direction_id": digest("direction", session.target_id, source, vector.tobytes().hex()),
            "model_id": session.target_id, "kind": "false_refusal", "method": source,
            "vector": vector.astype(np.float32).tolist(),
            "agreement": cosine(vector, direction_with("harm", session, probed.directions).vector),
            "reason": "its agreement is the cosine with the harm direction",
        }  # fmt: skip
        return {"directions": table("directions", [row])}

    inputs = [probed.directions, session.target_id, session.config.model, source, seed, [pair.__dict__ for pair in pairs]]
    return session.once("false-refusal direction", inputs, compute)


def _vector(session: Session, direction: Commit) -> np.ndarray[Any, Any]:
    return np.array(session.read("directions", direction).to_pylist()[0]["vector"], np.float64)


def _row(
    session: Session, method: MitigationMethod[Any], context: MitigationContext, made: MitigatedModel, content: str
) -> dict[str, Any]:
    """Return a variant's row of `variants`."""
    return {
        "model_id": session.target_id, "variant": method.name,
        "folder": context.folder.relative_to(session.lake.path).as_posix(), "is_adapter": made.adapter is not None,
        "digest": content, "settings": json.dumps(method.shown_settings()), "n_pairs": len(context.pairs),
        "n_too_long": made.n_too_long, "losses": list(made.losses), "harm_cosine": made.harm_cosine,
        "reason": made.reason,
    }  # fmt: skip
