"""Stage: one variant of the model, mitigated by preference pairs → a folder below the lake's `models/`, `variants`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.mitigate.base import DirectionSource, MitigatedModel, MitigationContext, MitigationMethod
from rass_core.mitigate.false_refusal import false_refusal_direction
from rass_core.mitigate.pairs import PreferencePair
from rass_core.mitigate.variant import mitigate
from rass_core.models.chat import chat_of
from rass_core.models.settings import ModelConfig
from rass_core.probe.directions import cosine
from rass_core.text import digest
from tasks.preferences import mitigating
from tasks.probed import Probed, direction_with, directions_of
from tasks.session import Session
from tasks.stage import StageTables, stage


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

    @property
    def content(self) -> list[Any]:
        """Return what distinguishes it from another variant of its name, wherever its files are."""
        return [
            self.name,
            self.model.model_dump(mode="json", exclude={"name"}),
            self.facts.get("digest"),
            self.strength,
        ]


def as_given(session: Session) -> Variant:
    """Return the target itself."""
    return Variant("base", session.config.model)


def mitigate_by(
    session: Session, method: MitigationMethod[Any], pairs: Sequence[PreferencePair], probed: Probed
) -> Variant:
    """Mitigate over-refusal by one method; an interrupted training resumes from its last checkpoint."""
    source = method.direction
    direction = None if source is None else find_false_refusal_direction(session, source, pairs, probed.directions)
    session.say(f"{method.name}: {len(pairs)} pairs")
    commit = make_variant(session, method, pairs, probed.directions, direction)
    facts = session.read("variants", commit).to_pylist()[0]
    # Once more where the lake knows the variant but its folder is gone.
    context = _context(session, pairs, probed.directions, direction, session.lake.path / facts["folder"])
    made, _ = mitigate(method, context)
    return Variant(
        name=method.name,
        model=session.config.model if made.weights is None else session.config.model.at(str(made.weights)),
        facts=facts,
        ablated=made.ablated,
        strength=made.strength,
        commit=commit,
    )


@stage("{method.name}", reads=["directions"], writes=["variants"], settings=["model"])
def make_variant(
    session: Session, method: MitigationMethod[Any], pairs: Sequence[PreferencePair], directions: Commit,
    direction: Commit | None,
) -> StageTables:  # fmt: skip
    """Make the variant of one method in a folder below the lake's `models/`.

    Args:
        session: Whose target is mitigated.
        method: That makes it.
        pairs: What is to be learnt.
        directions: Those of the probe.
        direction: The false-refusal direction, None unless the method asks for it.
    """
    folder = session.lake.path / "models" / f"{method.name}-{session.running_key[:8]}"
    context = _context(session, pairs, directions, direction, folder)
    row = _row(session, method, context, *mitigate(method, context))
    return {"variants": rows_table("variants", [row])}


@stage(
    "false-refusal direction",
    reads=["directions"],
    writes=["directions"],
    settings=["model", "mitigate.training.seed"],
)
def find_false_refusal_direction(
    session: Session, source: DirectionSource, pairs: Sequence[PreferencePair], directions: Commit
) -> StageTables:
    """Find the direction that ablation removes: the probe's own, or one learned from the pairs."""
    known, model, seed = directions_of(session, directions), session.config.model, mitigating(session).training.seed
    vector = false_refusal_direction(source, known, pairs, model, chat_of(model), seed, session.progress)
    row = {
        "direction_id": digest("direction", session.target_id, source, vector.tobytes().hex()),
        "model_id": session.target_id, "kind": "false_refusal", "method": source,
        "vector": vector.astype(np.float32).tolist(),
        "agreement": cosine(vector, direction_with("harm", session, directions).vector),
        "reason": "its agreement is the cosine with the harm direction",
    }  # fmt: skip
    return {"directions": rows_table("directions", [row])}


def _context(
    session: Session, pairs: Sequence[PreferencePair], directions: Commit, direction: Commit | None, folder: Path
) -> MitigationContext:
    """Return what a method is given."""
    return MitigationContext(
        pairs=pairs,
        model=session.config.model,
        chat=chat_of(session.config.model),
        folder=folder,
        directions=directions_of(session, directions),
        false_refusal=None if direction is None else _vector(session, direction),
        progress=session.progress,
        status=session.status,
    )


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
