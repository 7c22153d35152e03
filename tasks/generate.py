"""Stage of one steered round: `prompts`, `derivations`, `responses`, `verdicts`, `margins`, `rounds`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.engine import GenerationRequest, Steering, SteeringVector
from rass_core.judges import PANEL, Exchange, Verdict
from rass_core.models import model_id
from rass_core.moderators import BENIGN
from rass_core.operators import instruction
from rass_core.probe import Direction, split_of
from rass_core.rounds import Parent, Slot, Yield, plan_round
from rass_core.store import Commit
from rass_core.tables import normalise, prompt_id
from tasks.probe import Gauge, Ruler, direction_with, read_anchors
from tasks.respond import answer_tables, verdict_row
from tasks.run import Run, table

TRAINED_SPLITS = ("train", "validation")
"""Given prompts of the test split stay out of what models are trained on."""


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


@dataclass
class Candidate:
    """A written prompt on its way through the checks."""

    slot: Slot
    text: str
    n_tokens: int
    moderated: Mapping[str, Verdict]
    """Who said what of it: each moderator and the panel."""
    prompt_id: str
    is_new: bool
    place: Mapping[str, Any] = field(default_factory=dict)
    """Its columns of table `margins`; empty where it was not measured."""
    answer: Any = None
    judged: Mapping[str, Verdict] | None = None
    """Who said what of the answer: each judge and the panel."""

    @property
    def distance(self) -> float | None:
        """Return margin − b, None where that is not known."""
        return self.place.get("distance")

    @property
    def verdict(self) -> Verdict:
        """Return what the moderators say together."""
        return self.moderated[PANEL]

    @property
    def is_refused(self) -> bool:
        """Tell whether the target refuses it."""
        return self.judged is not None and self.judged[PANEL].outcome == "refusal"

    @property
    def is_benign(self) -> bool:
        """Tell whether the moderator calls it benign."""
        return self.verdict.outcome in BENIGN

    def is_near_boundary(self, width: float) -> bool:
        """Tell whether it lies within the width of its language's boundary."""
        return self.distance is not None and abs(self.distance) <= width

    def is_accepted(self, width: float) -> bool:
        """Tell whether it is new, benign, refused and near the boundary."""
        return self.is_new and self.is_benign and self.is_refused and self.is_near_boundary(width)


@task(cache_policy=NO_CACHE, task_run_name="round-{number}")
def write_round(
    run: Run, number: int, probed: Probed, earlier: Sequence[Commit], splits: Sequence[str] = TRAINED_SPLITS
) -> Commit:
    """Write, check, re-encode unsteered, answer and judge the prompts of one round.

    Args:
        run: Whose target is measured.
        number: Of the round, from 0.
        probed: What the probe measured.
        earlier: Rounds before this one.
        splits: Whose given prompts are parents.
    """

    def compute() -> Mapping[str, pa.Table]:
        ruler = Ruler.of(
            run, read_anchors(run, probed.prompts, probed.responses, probed.activations), probed.directions
        )
        add = direction_with("add", run, probed.generator_directions)
        slots = plan_round(
            number, _seeds(run, probed, splits), _survivors(run, earlier), _history(run, earlier), run.config.generate,
            run.config.seed,
        )  # fmt: skip
        known = {
            row["prompt_id"] for commit in [probed.prompts, *earlier] for row in run.read("prompts", commit).to_pylist()
        }
        candidates = _moderated(run, slots, _written(run, number, slots, add), known)
        gauge = Gauge.of(run, ruler, probed.boundaries)
        _measure(run, number, candidates, gauge, _b(run, probed))
        return _tables(run, number, candidates, ruler, gauge, add)

    settings = [run.config.generate, run.moderating, run.judging, run.config.generator, run.config.seed, list(splits)]
    return run.once(f"round {number + 1}", [*probed.commits, *earlier, *settings], compute)


def _written(run: Run, number: int, slots: Sequence[Slot], add: Direction) -> list[Any]:
    """Let the generator write every slot, each request with its own α."""
    settings, generator = run.config.generate, run.config.generator or run.config.model
    engine = run.engine(generator)
    engine.set_vectors({"add": SteeringVector(add.vector.astype(np.float32), (add.layer,))})
    requests = []
    for slot in slots:
        asked = instruction(slot.operator, slot.language, [p.text for p in slot.parents], settings.instructions)
        requests.append(GenerationRequest(
            engine.chat.ids(asked), settings.max_new_tokens, settings.temperature, settings.top_p, slot.seed,
            Steering("add", slot.alpha) if slot.alpha else None,
        ))  # fmt: skip
    with run.progress(f"round {number + 1}: writing", len(requests)) as done:
        return engine.generate(requests, done)


def _moderated(run: Run, slots: Sequence[Slot], written: Sequence[Any], known: set[str]) -> list[Candidate]:
    """Return the candidates with the moderator's verdicts; a prompt seen before is not new."""
    texts = [normalise(each.text) for each in written]
    complete = [bool(text) and each.finish_reason == "stop" for text, each in zip(texts, written, strict=True)]
    asked = [(text, slot.language) for text, slot, whole in zip(texts, slots, complete, strict=True) if whole]
    words = iter(run.quorum.words([text for text, _ in asked], [language for _, language in asked]))
    seen, candidates = set(known), []
    for text, slot, each, whole in zip(texts, slots, written, complete, strict=True):
        said = next(words) if whole else {PANEL: Verdict("incoherent", None, "empty, or cut off at the longest length")}
        identity = prompt_id(slot.language, text)
        candidates.append(Candidate(slot, text, len(each.token_ids), said, identity, whole and identity not in seen))
        if whole:
            seen.add(identity)
    return candidates


def _measure(
    run: Run, number: int, candidates: Sequence[Candidate], gauge: Gauge, b: Mapping[str, float | None]
) -> None:
    """Re-encode the coherent candidates unsteered, and let the target answer them in the same pass."""
    measured = [c for c in candidates if c.verdict.outcome not in ("incoherent", "unscored")]
    if not measured:
        return
    engine = run.engine(run.config.model)
    engine.set_capture(*gauge.places)
    requests = [
        GenerationRequest(engine.chat.ids(c.text), run.config.probe.max_new_tokens, capture=True) for c in measured
    ]
    with run.progress(f"round {number + 1}: measuring", len(requests)) as done:
        answers = engine.generate(requests, done)
    places = gauge.place(np.stack([answer.captured for answer in answers]), [c.slot.language for c in measured], b)
    judged = run.panel.judge([
        Exchange(answer.text, c.slot.language, c.text) for answer, c in zip(answers, measured, strict=True)
    ])  # fmt: skip
    for candidate, place, answer, said in zip(measured, places, answers, judged.words(), strict=True):
        candidate.place, candidate.answer, candidate.judged = place, answer, said


def _tables(
    run: Run, number: int, candidates: Sequence[Candidate], ruler: Ruler, gauge: Gauge, add: Direction
) -> dict[str, pa.Table]:
    """Return the rows of a round; what is no coherent prompt is counted in `rounds` only."""
    width, generator_id = run.config.generate.width, model_id((run.config.generator or run.config.model).name)
    coherent = [c for c in candidates if c.answer is not None]
    new = [c for c in coherent if c.is_new]
    prompts = [
        {
            "prompt_id": c.prompt_id, "text": c.text, "language": c.slot.language, "label": c.verdict.outcome,
            "category": c.slot.parents[0].category, "source": f"rass:{c.slot.operator}", "licence": None,
            "family": c.slot.parents[0].family,
        }
        for c in new
    ]  # fmt: skip
    derivations = [
        {
            "prompt_id": c.prompt_id, "operator": c.slot.operator, "round": number,
            "parent_ids": [p.prompt_id for p in c.slot.parents], "generator_id": generator_id,
            "direction_id": add.direction_id(generator_id), "alpha": c.slot.alpha, "side": c.slot.side,
            "coherent": True, "n_tokens": c.n_tokens,
        }
        for c in coherent
    ]  # fmt: skip
    margins = [
        {
            "prompt_id": c.prompt_id, "model_id": run.target_id, "direction_id": ruler.direction_id,
            "split": "candidate", **c.place,
        }
        for c in new
    ]  # fmt: skip
    # What the selection may keep; what is near and answered may become an anchor.
    survivors = [c for c in new if c.is_benign and (c.is_near_boundary(width) or c.is_refused)]
    activations = [
        {
            "prompt_id": c.prompt_id, "model_id": run.target_id, "layer": ruler.layer, "position": ruler.position,
            "vector": gauge.streams(c.answer.captured).tolist(),
        }
        for c in survivors
    ]  # fmt: skip
    answered = answer_tables(
        run, run.target_id, [{"prompt_id": c.prompt_id, "label": c.verdict.outcome} for c in new],
        [c.answer for c in new], [c.judged for c in new if c.judged],
    )  # fmt: skip
    moderated = [verdict_row(c.prompt_id, name, word) for c in new for name, word in c.moderated.items()]
    return {
        "prompts": table("prompts", prompts), "derivations": table("derivations", derivations),
        "responses": answered["responses"],
        "verdicts": pa.concat_tables([answered["verdicts"], table("verdicts", moderated)]),
        "margins": table("margins", margins), "activations": table("activations", activations),
        "rounds": table("rounds", _yields(run.target_id, number, candidates, width)),
    }  # fmt: skip


def _yields(name: str, number: int, candidates: Sequence[Candidate], width: float) -> list[dict[str, Any]]:
    """Return what each (operator, language, side, α) wrote, as rows of `rounds`."""
    groups: dict[tuple[str, str, str, float], list[Candidate]] = defaultdict(list)
    for c in candidates:
        groups[c.slot.operator, c.slot.language, c.slot.side, c.slot.alpha].append(c)
    rows = []
    for (operator, language, side, alpha), members in sorted(groups.items()):
        benign = [c for c in members if c.is_benign]
        distances = [abs(c.distance) for c in benign if c.distance is not None]
        rows.append({
            "model_id": name, "round": number, "operator": operator, "language": language, "side": side, "alpha": alpha,
            "n_candidates": len(members), "n_coherent": sum(c.answer is not None for c in members),
            "n_new": sum(c.is_new for c in members), "n_benign": len(benign),
            "n_refused": sum(c.is_refused for c in benign),
            "n_accepted": sum(c.is_accepted(width) for c in members), "n_tokens": sum(c.n_tokens for c in members),
            "median_abs_distance": float(np.median(distances)) if distances else None, "distances": distances,
            "reason": None if distances else "no benign offspring with a distance",
        })  # fmt: skip
    return rows


def _seeds(run: Run, probed: Probed, splits: Sequence[str]) -> list[Parent]:
    """Return the given prompts that may be parents: those of these splits."""
    distance = {row["prompt_id"]: row["distance"] for row in run.read("margins", probed.boundaries).to_pylist()}
    rows = sorted(run.read("prompts", probed.prompts).to_pylist(), key=lambda row: row["prompt_id"])
    return [
        _parent(row, distance[row["prompt_id"]])
        for row in rows
        if distance[row["prompt_id"]] is not None and split_of(row["family"], run.config.seed) in splits
    ]


def _survivors(run: Run, earlier: Sequence[Commit]) -> list[Parent]:
    """Return the benign prompts of earlier rounds that lie near the boundary."""
    found = []
    for commit in earlier:
        distance = {row["prompt_id"]: row["distance"] for row in run.read("margins", commit).to_pylist()}
        for row in sorted(run.read("prompts", commit).to_pylist(), key=lambda row: row["prompt_id"]):
            here = distance[row["prompt_id"]]
            if row["label"] in BENIGN and here is not None and abs(here) <= run.config.generate.width:
                found.append(_parent(row, here))
    return found


def _history(run: Run, earlier: Sequence[Commit]) -> list[Yield]:
    """Return what earlier rounds yielded."""
    return [
        Yield(
            row["operator"], row["language"], row["side"], row["alpha"], row["n_candidates"], row["n_coherent"],
            row["n_accepted"], row["n_tokens"], tuple(row["distances"] or ()),
        )
        for commit in earlier
        for row in run.read("rounds", commit).to_pylist()
    ]  # fmt: skip


def _b(run: Run, probed: Probed) -> dict[str, float | None]:
    return {row["language"]: row["b"] for row in run.read("boundaries", probed.boundaries).to_pylist()}


def _parent(row: Mapping[str, Any], distance: float) -> Parent:
    return Parent(
        row["prompt_id"], row["text"], row["language"], row["label"], row["category"], row["family"], distance
    )
