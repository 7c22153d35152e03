"""The probe: from data and what the model answered to directions, roles and margins.

ProbeData are split by family. Directions come from `train`; layer, position and α are chosen on
`validation`; boundaries and every figure that is reported come from `test`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from rass_core.errors import ActivationError, BoundaryError
from rass_core.languages.tags import lookup
from rass_core.probe import directions as geometry
from rass_core.probe.directions import OrthogonalComponent
from rass_core.probe.settings import Prefixes
from rass_core.stats.agreement import auc
from rass_core.stats.arrays import Array
from rass_core.text import digest

SPLITS = {"train": 0.4, "validation": 0.25, "test": 0.35}
MIN_SCALE_AUC = 0.75
"""Lowest AUC of harmful against harmless prompts along a direction that gives the margin."""


@dataclass(frozen=True)
class ProbeData:
    """The given prompts with what was measured on them; every array has one row per prompt."""

    prompt_ids: list[str]
    labels: np.ndarray[Any, Any]
    languages: np.ndarray[Any, Any]
    families: np.ndarray[Any, Any]
    refused: np.ndarray[Any, Any]
    """1.0 refusal, 0.0 another answer, NaN unscored."""
    activations: np.ndarray[Any, Any]
    """(n, n_layers, n_positions, d_model), float32."""
    layers: list[int]
    positions: list[int]
    seed: int

    @property
    def splits(self) -> np.ndarray[Any, Any]:
        """Return each prompt's split; a family lies wholly in one."""
        return np.array([split_of(family, self.seed) for family in self.families])

    def rows(self, layer: int, position: int) -> np.ndarray[Any, Any]:
        """Return the residual streams at one layer and position, (n, d_model)."""
        return self.activations[:, self.layers.index(layer), self.positions.index(position)]


class Means(NamedTuple):
    """The class means of one language at one layer and position, (d_model,) each."""

    harmful: Array
    harmless: Array


@dataclass(frozen=True)
class Direction:
    """A direction with where it was read and how it scored."""

    kind: str
    method: str
    layer: int
    position: int
    vector: Array
    language: str | None = None
    """None: drawn from all languages."""
    auc: float | None = None
    """On validation: how well its margin predicts refusal within pseudo_harmful, mean over languages."""
    alpha: float | None = None
    """Strength at which refusal is induced best."""
    induce_score: float | None = None
    """Share of harmless prompts whose log-odds turn to refusal when α·v is added, of those that comply otherwise."""
    induce_generated: float | None = None
    """Share of harmless prompts whose generated answer is a coherent refusal when α·v is added."""
    n_generated: int | None = None
    """Answers behind that share."""
    bypass_score: float | None = None
    """Share of harmful prompts whose log-odds turn from refusal when v is ablated, of those that refuse otherwise."""
    kl: float | None = None
    """Mean KL in nats on harmless prompts when v is ablated."""
    ablate_layers: tuple[int, ...] | None = None
    """Blocks after which v was ablated for these two; 0 includes the input of block 0."""
    ablate_strength: float | None = None
    """Strength λ of that ablation, 0 to 1."""
    full_ablation_bypass: float | None = None
    """bypass_score of ablating v in full at all blocks; unlike bypass_score it compares between directions."""
    full_ablation_kl: float | None = None
    """kl of ablating v in full at all blocks."""
    agreement: float | None = None
    """Cosine with the direction of all languages."""
    roles: tuple[str, ...] = field(default=())
    """What it was chosen for: margin, harm, add, ablate."""
    reason: str | None = None
    """Why it has these roles, or why a score is missing."""
    off_scale: str | None = None
    """Why it can give no margin."""
    induced: Mapping[float, float] = field(default_factory=dict)
    """α → induce_score, of directions that were tried."""

    def direction_id(self, model_id: str) -> str:
        """Return a digest of what the direction is."""
        numbers = self.vector.astype(np.float32).tobytes().hex()
        return digest("direction", model_id, self.kind, self.layer, self.position, self.language, numbers)


def split_of(family: str, seed: int) -> str:
    """Return train, validation or test for a family, the same wherever it is asked."""
    draw = int(hashlib.sha256(f"{seed}/{family}".encode()).hexdigest()[:8], 16) / 2**32
    for name, share in SPLITS.items():
        draw -= share
        if draw < 0:
            return name
    return "test"


def candidate_directions(data: ProbeData, methods: Sequence[str]) -> list[Direction]:
    """Return every direction of every method, layer and position, drawn from the train split.

    harm: harmful − harmless. refusal: refused − complied at equal true label, over the labels that
    hold both. false_refusal: refused − complied within pseudo_harmful, harm taken out in full. The
    baseline pseudo_harm is pseudo_harmful − harmless. What the data do not hold is left out.

    refusal and false_refusal have the length of the harm direction of the same place, so that one α is one distance
    for every kind: the difference between answers at equal label is a small part of that between labels.
    """
    train = data.splits == "train"
    found = []
    for layer in data.layers:
        for position in data.positions:
            rows = data.rows(layer, position).astype(np.float64)
            for method in methods:
                vectors = _vectors(
                    rows[train], data.labels[train], data.refused[train], geometry.DIRECTION_METHODS[method]
                )
                found += [Direction(kind, method, layer, position, vector) for kind, vector in vectors.items()]
    return found


def class_means(data: ProbeData, layer: int, position: int) -> dict[str, Means]:
    """Return language → class means of the train split; languages that lack a class are left out."""
    rows, train = data.rows(layer, position).astype(np.float64), data.splits == "train"
    means = {}
    for language in sorted(set(data.languages)):
        here = train & (data.languages == language)
        harmful, harmless = here & (data.labels == "harmful"), here & (data.labels == "harmless")
        if harmful.any() and harmless.any():
            means[language] = Means(rows[harmful].mean(axis=0), rows[harmless].mean(axis=0))
    return means


def margins(
    rows: np.ndarray[Any, Any], languages: Sequence[str], vectors: Mapping[str, Array], means: Mapping[str, Means]
) -> Array:
    """Return the margin of each row along its language's vector.

    NaN for languages without data, and for those in which the vector does not separate the classes.

    Args:
        rows: (n, d_model) at the direction's layer and position.
        languages: One per row.
        vectors: language → direction; the same for all where it is shared.
        means: language → class means.
    """
    result = np.full(len(rows), np.nan)
    for language in set(languages) & set(means):
        here = np.asarray(languages) == language
        try:
            measured = geometry.margin(rows[here], vectors[language], means[language].harmful, means[language].harmless)
        except ActivationError:  # the harmful mean does not lie above the harmless one: no scale, no margin
            continue
        result[here] = measured
    return result


def refusal_auc(data: ProbeData, direction: Direction, split: str = "validation") -> float:
    """Return how well the margin predicts refusal within pseudo_harmful, mean over languages.

    Raises:
        BoundaryError: No language has both refused and answered pseudo_harmful prompts.
    """
    means = class_means(data, direction.layer, direction.position)
    shared = dict.fromkeys(means, direction.vector)
    measured = margins(data.rows(direction.layer, direction.position), list(data.languages), shared, means)
    usable = (data.splits == split) & (data.labels == "pseudo_harmful")
    usable &= ~np.isnan(data.refused) & ~np.isnan(measured)
    scores = []
    for language in means:
        here = usable & (data.languages == language)
        if len(set(data.refused[here])) == 2:
            scores.append(auc(measured[here], data.refused[here] == 1.0))
    if not scores:
        raise BoundaryError("AUC: no language has both refused and answered pseudo_harmful prompts")
    return float(np.mean(scores))


def with_auc(data: ProbeData, found: Sequence[Direction]) -> list[Direction]:
    """Return the directions with their AUC, or with the reason why there is none."""
    scored = []
    for direction in found:
        try:
            scored.append(replace(direction, auc=refusal_auc(data, direction)))
        except BoundaryError as error:
            scored.append(replace(direction, reason=str(error)))
    return scored


def why_off_scale(data: ProbeData, direction: Direction) -> str | None:
    """Return why a direction can give no margin, or None where it can.

    A margin is measured in units of the distance from the harmless to the harmful mean. Along a direction that hardly
    separates the two, that unit is mostly noise, and margins cannot be compared with others.
    """
    train = data.splits == "train"
    along = data.rows(direction.layer, direction.position).astype(np.float64) @ direction.vector
    for language in class_means(data, direction.layer, direction.position):
        here = train & (data.languages == language) & np.isin(data.labels, ["harmful", "harmless"])
        separation = auc(along[here], data.labels[here] == "harmful")
        if separation < MIN_SCALE_AUC:
            return (
                f"no margin: it separates harmful from harmless prompts with AUC {separation:.2f} in {language}, "
                f"{MIN_SCALE_AUC:g} is needed"
            )
    return None


def language_directions(data: ProbeData, shared: Direction) -> dict[str, Direction]:
    """Return language → the same kind of direction drawn from that language alone, with its agreement."""
    train, found = data.splits == "train", {}
    rows = data.rows(shared.layer, shared.position).astype(np.float64)
    for language in class_means(data, shared.layer, shared.position):
        here = train & (data.languages == language)
        own = _vectors(
            rows[here], data.labels[here], data.refused[here], geometry.DIRECTION_METHODS[shared.method]
        ).get(shared.kind)
        if own is not None:
            agreement = geometry.cosine(own, shared.vector)
            found[language] = Direction(
                shared.kind, shared.method, shared.layer, shared.position, own, language, agreement=agreement
            )
    return found


def orthogonal_axis(data: ProbeData, direction: Direction) -> OrthogonalComponent:
    """Return the axis along which the train split differs most once the direction is taken out."""
    rows = data.rows(direction.layer, direction.position)[data.splits == "train"]
    return geometry.orthogonal_component(rows, direction.vector)


def prefixes_of(language: str, known: Mapping[str, Prefixes]) -> Prefixes:
    """Return a language's answer prefixes, or the English ones."""
    return lookup(known, language) or known["en"]


def _vectors(
    rows: Array, labels: np.ndarray[Any, Any], refused: np.ndarray[Any, Any], draw: Callable[[Array, Array], Array]
) -> dict[str, Array]:
    """Return kind → vector from the rows given; kinds whose classes are missing or equal are left out."""
    harmful, harmless, pseudo = (labels == name for name in ("harmful", "harmless", "pseudo_harmful"))
    found: dict[str, Array] = {}

    def attempt(kind: str, compute: Callable[[], Array]) -> None:
        try:
            found[kind] = compute()
        except ActivationError:
            return

    attempt("harm", lambda: draw(rows[harmful], rows[harmless]))
    attempt("pseudo_harm", lambda: draw(rows[pseudo], rows[harmless]))
    mixed = [here for here in (harmful, harmless, pseudo) if {0.0, 1.0} <= set(refused[here])]
    if mixed:
        centred = np.concatenate([rows[here] - rows[here].mean(axis=0) for here in mixed])
        outcome = np.concatenate([refused[here] for here in mixed])
        attempt("refusal", lambda: draw(centred[outcome == 1.0], centred[outcome == 0.0]))
    if {0.0, 1.0} <= set(refused[pseudo]) and "harm" in found:
        attempt(
            "false_refusal",
            lambda: geometry.orthogonalise(
                draw(rows[pseudo & (refused == 1.0)], rows[pseudo & (refused == 0.0)]), found["harm"]
            ),
        )
    for kind in ("refusal", "false_refusal"):
        if kind in found and "harm" in found:
            found[kind] = found[kind] * (np.linalg.norm(found["harm"]) / np.linalg.norm(found[kind]))
    return found
