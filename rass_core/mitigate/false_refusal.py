"""The false-refusal direction: what separates harmless prompts that are refused from those that are answered."""

from collections.abc import Sequence

import numpy as np

from rass_core.errors import BoundaryError
from rass_core.mitigate.base import DirectionSource, ShowProgress, no_progress
from rass_core.mitigate.learned_direction import learned_direction
from rass_core.mitigate.pairs import PreferencePair
from rass_core.models.chat import ChatFormat
from rass_core.models.settings import ModelConfig
from rass_core.probe.geometry import Direction
from rass_core.stats.arrays import Array


def false_refusal_direction(
    source: DirectionSource,
    known: Sequence[Direction],
    pairs: Sequence[PreferencePair],
    model: ModelConfig,
    chat: ChatFormat,
    seed: int = 0,
    progress: ShowProgress = no_progress,
) -> Array:
    """Return the false-refusal direction of a model, (d_model,).

    Args:
        source: mean_difference takes the probe's, learned fits one to the pairs.
        known: The probe's directions with their roles.
        pairs: For learned.
        model, chat: For learned: the model, and how it is spoken to.
        seed: For learned: of the first direction and of the order of pairs.
        progress: For learned: shows how many answers were read.

    Raises:
        BoundaryError: mean_difference, and the probe has none at the place of the harm direction.
        RassError: As `learned_direction`.
    """
    if source == "mean_difference":
        return _mean_difference(known)
    kept = [direction.vector for direction in known if direction.kind == "harm" and direction.roles]
    with progress("learning a direction", 1) as bar:
        return learned_direction(
            model.reference, pairs, np.array(kept), seed=seed, chat=chat, dtype=model.dtype, progress=bar
        )


def _mean_difference(known: Sequence[Direction]) -> Array:
    """Return the probe's false-refusal direction at the place of the harm direction."""
    places = [(each.layer, each.position) for each in known if "harm" in each.roles]
    for each in known:
        if each.kind == "false_refusal" and each.language is None and (each.layer, each.position) in places[:1]:
            return each.vector
    raise BoundaryError(
        "no false-refusal direction: the anchors hold no pseudo_harmful prompts that are refused beside some that are "
        "not; give more, or set mitigate.direction to learned"
    )
