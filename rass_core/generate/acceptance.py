"""Written prompts on their way to being candidates: what each must pass, and what is counted of it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rass_core.generate.scheduler import GenerationJob
from rass_core.judges import PANEL, Verdict
from rass_core.vocabulary import BENIGN

NO_PROMPT = ("incoherent", "unscored")
"""What moderators say of a text that is then not measured."""


@dataclass(frozen=True)
class Bounds:
    """Where a prompt must lie to be accepted."""

    width: float | None
    """Most |m − b|; None sets no bound."""
    max_harm_score: float | None
    """Highest score on the harm axis; None sets no bound, else a prompt without a harm score is outside."""

    def hold(self, distance: float | None, harm_score: float | None) -> bool:
        """Return whether a prompt with this m − b and harm score lies within."""
        if self.max_harm_score is not None and (harm_score is None or harm_score > self.max_harm_score):
            return False
        return self.width is None or (distance is not None and abs(distance) <= self.width)


@dataclass
class Candidate:
    """A written prompt, or what was written in its place, on its way through the checks."""

    job: GenerationJob
    text: str
    prompt_id: str
    n_tokens: int
    """That were written for it; a list of requests counts them once."""
    dropped: str | None
    """Why it is no new prompt (`cleaning.REASONS`, or what the moderators call it); None where it is one."""
    moderated: Mapping[str, Verdict] | None = None
    """Votes on it: each moderator's and the panel's."""
    place: Mapping[str, Any] = field(default_factory=dict)
    """Its columns of table `margins`; empty where it was not measured."""
    answer: Any = None
    judged: Mapping[str, Verdict] | None = None
    """Votes on the target's answer: each judge's and the panel's."""

    @property
    def distance(self) -> float | None:
        """Return margin − b, None where that is not known."""
        return self.place.get("distance")

    @property
    def verdict(self) -> Verdict:
        """Return what the moderators say together."""
        if self.moderated is None:
            return Verdict("unscored", None, f"dropped: {self.dropped}")
        return self.moderated[PANEL]

    @property
    def is_request(self) -> bool:
        """Return whether it is a new request in the language asked for."""
        return self.dropped is None

    @property
    def is_refused(self) -> bool:
        """Return whether the target refuses it."""
        return self.judged is not None and self.judged[PANEL].outcome == "refusal"

    @property
    def is_benign(self) -> bool:
        """Return whether the moderators call it benign."""
        return self.is_request and self.verdict.outcome in BENIGN

    def lies_within(self, bounds: Bounds) -> bool:
        """Return whether it lies where a prompt may be accepted."""
        return bounds.hold(self.distance, self.place.get("harm_score"))

    def is_accepted(self, bounds: Bounds) -> bool:
        """Return whether it is a new request, benign, refused and within the bounds."""
        return self.is_benign and self.is_refused and self.lies_within(bounds)


def yields(model_id: str, number: int, candidates: Sequence[Candidate], bounds: Bounds) -> list[dict[str, Any]]:
    """Return what each (operator, role, language, side, α) wrote, as rows of `rounds`."""
    groups: dict[tuple[str, str, str, str, float], list[Candidate]] = defaultdict(list)
    for c in candidates:
        groups[c.job.operator, c.job.writer.role, c.job.language, c.job.side, c.job.alpha].append(c)
    rows = []
    for (operator, role, language, side, alpha), members in sorted(groups.items()):
        distances = [abs(c.distance) for c in members if c.is_benign and c.distance is not None]
        rows.append({
            "model_id": model_id, "round": number, "operator": operator, "role": role,
            "steering": members[0].job.writer.kind, "layer": members[0].job.writer.layer, "language": language,
            "side": side, "alpha": alpha, **counts(members, bounds),
            "median_abs_distance": float(np.median(distances)) if distances else None, "distances": distances,
            "reason": None if distances else "no benign offspring with a distance",
        })  # fmt: skip
    return rows


def counts(members: Sequence[Candidate], bounds: Bounds) -> dict[str, Any]:
    """Return how many of some candidates passed each check, and why the others were dropped."""
    dropped = Counter(c.dropped for c in members if c.dropped is not None)
    return {
        "n_candidates": len(members),
        "n_coherent": sum(c.answer is not None for c in members),
        "n_new": sum(c.is_request for c in members),
        "n_benign": sum(c.is_benign for c in members),
        "n_refused": sum(c.is_benign and c.is_refused for c in members),
        "n_accepted": sum(c.is_accepted(bounds) for c in members),
        "n_tokens": sum(c.n_tokens for c in members),
        "dropped": [{"reason": reason, "n": n} for reason, n in sorted(dropped.items())],
    }
