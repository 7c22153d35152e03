"""What the probe measured, as later stages read it from the lake."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rass_core.errors import BoundaryError
from rass_core.judges import PANEL
from rass_core.lake.store import Commit
from rass_core.probe.geometry import Direction, ProbeData
from rass_core.probe.harm_types import HarmAxis
from rass_core.probe.margin_scale import Gauge, MarginScale
from tasks.session import Session


@dataclass(frozen=True)
class Probed:
    """The commits of the probe, as later stages need them."""

    prompts: Commit
    responses: Commit
    activations: Commit
    directions: Commit
    boundaries: Commit
    generator_directions: Commit
    """Those of the target where it writes its own prompts."""

    @property
    def commits(self) -> list[Commit]:
        """Return what a stage depends on."""
        return [self.prompts, self.responses, self.directions, self.boundaries, self.generator_directions]


def margin_scale(session: Session, data: ProbeData, directions: Commit) -> MarginScale:
    """Return the scale of the direction with the role `margin`."""
    shared = direction_with("margin", session, directions)
    return MarginScale.chosen(data, shared, session.target_id, session.config.probe.per_language)


def gauge_of(session: Session, scale: MarginScale, boundaries: Commit) -> Gauge:
    """Return the gauge of a scale and the harm axis that the probe stored."""
    return Gauge(scale, HarmAxis.of(session.read("harm_axes", boundaries, where="chosen").to_pylist()))


def directions_of(session: Session, directions: Commit) -> list[Direction]:
    """Return the directions of a probe."""
    return [
        Direction(
            row["kind"], row["method"], row["layer"], row["position"], np.array(row["vector"], np.float64),
            **{name: row[name] for name in (
                "language", "auc", "alpha", "induce_score", "induce_generated", "n_generated", "bypass_score", "kl",
                "ablate_strength", "agreement", "reason",
            )},
            ablate_layers=None if row["ablate_layers"] is None else tuple(row["ablate_layers"]),
            roles=tuple(row["roles"] or ()),
        )
        for row in session.read("directions", directions).to_pylist()
    ]  # fmt: skip


def direction_with(role: str, session: Session, directions: Commit) -> Direction:
    """Return the chosen direction of a role."""
    for direction in directions_of(session, directions):
        if role in direction.roles:
            return direction
    raise BoundaryError(f"no direction has the role {role!r}; give harmful and harmless prompts and probe again")


def outcomes_of(session: Session, responses: Commit) -> dict[str, str]:
    """Return prompt_id → what the panel says of the answer."""
    return {prompt_id: row["outcome"] for prompt_id, row in panel_verdicts(session, responses).items()}


def panel_verdicts(session: Session, responses: Commit) -> dict[str, Mapping[str, Any]]:
    """Return prompt_id → the panel's row of `verdicts`."""
    verdicts = session.read("verdicts", responses, where=f"judge = '{PANEL}'").to_pylist()
    of_response = {row["subject_id"]: row for row in verdicts}
    answers = session.read("responses", responses, columns=["prompt_id", "response_id"])
    return {prompt: of_response[response] for prompt, response in zip(*answers.to_pydict().values(), strict=True)}


def read_probe_data(session: Session, prompts: Commit, responses: Commit, activations: Commit) -> ProbeData:
    """Return the given prompts with outcomes and residual streams, in the order of their ids."""
    given = session.read("prompts", prompts, columns=["prompt_id", "label", "language", "family"])
    rows = given.sort_by("prompt_id").to_pylist()
    answered = outcomes_of(session, responses)
    number = {"refusal": 1.0, "partial": 0.0, "compliance": 0.0, "unscored": np.nan}
    streams, layers, positions = _streams(session.read("activations", activations), [row["prompt_id"] for row in rows])
    return ProbeData(
        [row["prompt_id"] for row in rows],
        np.array([row["label"] for row in rows]), np.array([row["language"] for row in rows]),
        np.array([row["family"] for row in rows]), np.array([number[answered[row["prompt_id"]]] for row in rows]),
        streams, layers, positions, session.config.seed,
    )  # fmt: skip


def _streams(rows: pa.Table, prompt_ids: Sequence[str]) -> tuple[np.ndarray[Any, Any], list[int], list[int]]:
    """Return activations as (n, n_layers, n_positions, d_model) in the order of the ids, layers, positions."""
    layer, position = rows["layer"].to_numpy(), rows["position"].to_numpy()
    layers, positions = sorted(set(layer.tolist())), sorted(set(position.tolist()))
    number = {prompt_id: index for index, prompt_id in enumerate(prompt_ids)}
    vectors = rows["vector"].combine_chunks().values.to_numpy().reshape(len(rows), -1)
    streams = np.full((len(prompt_ids), len(layers), len(positions), vectors.shape[1]), np.nan, np.float32)
    index = np.array([number[prompt_id] for prompt_id in rows["prompt_id"].to_pylist()])
    streams[index, np.searchsorted(layers, layer), np.searchsorted(positions, position)] = vectors
    return streams, layers, positions
