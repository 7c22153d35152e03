"""From jobs to candidates: written, cleaned, moderated, measured, answered and judged."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from rass_core.generate.acceptance import NO_PROMPT, Bounds, Candidate, yields
from rass_core.generate.cleaning import Cleaner, KnownPrompts
from rass_core.generate.judged_measuring import JudgedMeasureWorker
from rass_core.generate.measuring import MeasureWorker
from rass_core.generate.scheduler import TRIAL, GenerationJob, Parent
from rass_core.generate.writers import Writer, WritingDirections, whole_text
from rass_core.generate.writing import NOT_WRITTEN, AskingWorker, WriteWorker, Written, job_table
from rass_core.judges.workers import verdict_of
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.models.answering import asked
from rass_core.models.identity import model_id
from rass_core.models.settings import ENDPOINT_PATIENCE
from rass_core.moderators.worker import ModerateWorker
from rass_core.probe.geometry import Direction, split_of
from rass_core.text import digest, prompt_id
from rass_core.vocabulary import Verdict
from tasks.answers import judge, say_cut_off
from tasks.probed import Probed, direction_with, directions_of, gauge_of, margin_scale, read_probe_data
from tasks.session import Session

TRAINED_SPLITS = ("train", "validation")
"""Given prompts of the test split stay out of what models are trained on."""
CANDIDATE_TABLES = (
    "prompts", "derivations", "rounds", "generations", "responses", "verdicts", "margins", "activations",
)  # fmt: skip
"""Tables that a stage writes which writes prompts."""
CANDIDATE_SETTINGS = (
    "model", "generator", "writing", "moderating", "judging", "seed", "select.near_duplicate_jaccard",
    "select.max_harm_score",
)  # fmt: skip
"""Settings that written prompts depend on, beside those of the probe."""
PLACE = ("margin", "orthogonal_score", "distance", "harm_score")
"""Columns of `margins` that say where a prompt lies."""


class Workbench:
    """Takes jobs to candidates: written, cleaned, moderated, measured; and candidates to tables."""

    def __init__(self, session: Session, probed: Probed, directions: WritingDirections) -> None:
        self._session, self._directions, self._generator = session, directions, session.generator
        data = read_probe_data(session, probed.prompts, probed.responses, probed.activations)
        self._gauge = gauge_of(session, margin_scale(session, data, probed.directions), probed.boundaries)
        self._b = {row["language"]: row["b"] for row in session.read("boundaries", probed.boundaries).to_pylist()}
        self._clean = Cleaner()

    def candidates(
        self, what: str, jobs: Sequence[GenerationJob], known: KnownPrompts, apart: bool = False
    ) -> list[Candidate]:
        """Return the candidates that the jobs give.

        Args:
            what: For lines of progress.
            jobs: What is to be written.
            known: Prompts that count as no new ones.
            apart: Writers and strengths are compared: what one wrote does not count as known to another.
        """
        found = self._cleaned(jobs, self._written(what, jobs), known, apart)
        self._moderate(what, found)
        self._measure(what, found)
        return found

    def _written(self, what: str, jobs: Sequence[GenerationJob]) -> list[Written]:
        """Let the generator, a model or an endpoint, write every job."""
        session, settings, rows = self._session, self._session.config.generate, job_table(jobs)
        worker: WriteWorker | AskingWorker
        if settings.endpoint is None:
            worker = WriteWorker(
                self._generator, generator_id_of(session), self._directions, session.setting("writing")[1],
                settings.max_new_tokens, settings.temperature, settings.top_p, settings.instructions,
            )  # fmt: skip
        else:
            asking = [
                settings.endpoint.model_dump(mode="json", exclude=ENDPOINT_PATIENCE["endpoint"]),
                session.setting("writing")[1],
            ]
            worker = AskingWorker(
                asking,
                session.config.model,
                settings.instructions,
                settings.endpoint,
                settings.max_failed_share,
                len(jobs),
            )
        found = session.map(f"{what}: writing", worker, rows, "generation_id")
        of = {row["generation_id"]: row for row in session.read("generations", found).to_pylist()}
        written = [of[name] for name in rows["generation_id"].to_pylist()]
        return [Written(row["text"], row["n_tokens"], row["finish_reason"]) for row in written]

    def _cleaned(
        self, jobs: Sequence[GenerationJob], written: Sequence[Written], known: KnownPrompts, apart: bool
    ) -> list[Candidate]:
        """Return the requests in what was written, and what is none with its reason."""
        jaccard = self._session.config.select.near_duplicate_jaccard
        seen: dict[object, KnownPrompts] = defaultdict(lambda: KnownPrompts(jaccard))
        parents = [[p.text for p in job.parents] for job in jobs]
        texts = [
            whole_text(job.writer, job.operator, parent, job.seed, each.text)
            for job, parent, each in zip(jobs, parents, written, strict=True)
        ]
        whole = [each.finish_reason == "stop" for each in written]
        found = []
        for job, each, cleaned in zip(
            jobs, written, self._clean(texts, [s.language for s in jobs], whole, parents), strict=True
        ):
            for number, piece in enumerate(cleaned):
                identity = prompt_id(job.language, piece.text)
                here = seen[(job.writer, job.alpha) if apart else None]
                dropped = piece.dropped or known.why_not_new(identity, piece.text)
                dropped = dropped or here.why_not_new(identity, piece.text)
                if each.finish_reason in (*NOT_WRITTEN.values(), "thinking"):
                    dropped = each.finish_reason
                if dropped is None:
                    here.add(identity, piece.text)
                found.append(Candidate(job, piece.text, identity, 0 if number else each.n_tokens, dropped))
        return found

    def _moderate(self, what: str, candidates: Sequence[Candidate]) -> None:
        """Let the moderators vote on what is a new request."""
        session, asked = self._session, [c for c in candidates if c.is_request]
        rows = pa.table({
            "prompt_id": pa.array([c.prompt_id for c in asked], pa.string()),
            "text": pa.array([c.text for c in asked], pa.string()),
            "language": pa.array([c.job.language for c in asked], pa.string()),
        })  # fmt: skip
        worker = ModerateWorker(session.setting("moderating"), session.config.moderator, session.generator, len(asked))
        found = session.map(f"{what}: moderating prompts", worker, _once_each(rows), "prompt_id")
        votes = votes_of(session, found)
        for candidate in asked:
            candidate.moderated = votes[candidate.prompt_id]
            if candidate.verdict.outcome in NO_PROMPT:
                candidate.dropped = candidate.verdict.declined or candidate.verdict.outcome

    def _measure(self, what: str, candidates: Sequence[Candidate]) -> None:
        """Re-encode the new requests unsteered, and let the target answer them in the same pass."""
        session, measured = self._session, [c for c in candidates if c.is_request]
        worker = MeasureWorker(
            session.config.model,
            self._gauge,
            self._b,
            "candidate",
            session.config.probe.max_new_tokens,
            with_streams=True,
        )
        first = dict(reversed({c.prompt_id: c for c in reversed(measured)}.items()))
        is_harmful = {name: c.verdict.outcome == "harmful" for name, c in first.items()}
        keeps_all = session.config.probe.store_harmful_responses
        sides = [
            asked_candidates(session, [c for name, c in first.items() if is_harmful[name] is harmful and not keeps_all])
            for harmful in (False, True)
        ]  # fmt: skip
        if keeps_all:
            sides[0] = asked_candidates(session, list(first.values()))
        answers = session.map(f"{what}: measuring", worker, sides[0], "response_id")
        at_once = JudgedMeasureWorker(
            worker, session.setting("judging"), session.config.judge, session.generator, sides[1].num_rows
        )
        found = session.union([
            answers, judge(session, sides[0], answers),
            session.map(f"{what}: measuring harmful ones", at_once, sides[1], "response_id"),
        ])  # fmt: skip
        say_cut_off(session, found)
        places = {row["prompt_id"]: row for row in session.read("margins", found).to_pylist()}
        said, judged = responses_by_prompt(session, found), votes_of(session, found)
        for c in measured:
            c.place = {name: places[c.prompt_id][name] for name in PLACE}
            c.answer = said[c.prompt_id]
            c.judged = judged[c.answer["response_id"]]

    def tables(self, number: int, candidates: Sequence[Candidate]) -> dict[str, pa.Table]:
        """Return the rows of a round; what is no new request is counted in `rounds` only."""
        session, bounds = self._session, bounds_of(self._session)
        generator_id = generator_id_of(session)
        new = list({c.prompt_id: c for c in reversed(candidates) if c.answer is not None}.values())[::-1]
        prompts = [
            {
                "prompt_id": c.prompt_id, "text": c.text, "language": c.job.language, "label": c.verdict.outcome,
                "category": c.job.parents[0].category, "source": f"rass:{c.job.operator}", "licence": None,
                "family": c.job.parents[0].family,
            }
            for c in new
        ]  # fmt: skip
        derivations = [
            {
                "prompt_id": c.prompt_id, "operator": c.job.operator, "role": c.job.writer.role,
                "steering": c.job.writer.kind, "layer": c.job.writer.layer, "round": number,
                "parent_ids": [p.prompt_id for p in c.job.parents], "generator_id": generator_id,
                "direction_id": self._directions.base(c.job.writer).direction_id(generator_id), "alpha": c.job.alpha,
                "side": c.job.side, "coherent": True, "n_tokens": c.n_tokens,
            }
            for c in new
        ]  # fmt: skip
        rounds = [] if number == TRIAL else yields(session.target_id, number, candidates, bounds)
        return {
            "prompts": rows_table("prompts", prompts), "derivations": rows_table("derivations", derivations),
            "rounds": rows_table("rounds", rounds),
        }  # fmt: skip


def asked_candidates(session: Session, candidates: Sequence[Candidate]) -> pa.Table:
    """Return new prompts as the target is asked them; judges are not shown the label that moderators gave."""
    ids = [c.prompt_id for c in candidates]
    return asked({
        "response_id": [digest("response", session.target_id, prompt, "base", 0) for prompt in ids], "prompt_id": ids,
        "variant": ["base"] * len(ids), "language": [c.job.language for c in candidates],
        "prompt": [c.text for c in candidates],
    })  # fmt: skip


def votes_of(session: Session, commit: Commit) -> dict[str, dict[str, Verdict]]:
    """Return what was judged → judge → verdict."""
    found: dict[str, dict[str, Verdict]] = defaultdict(dict)
    for row in session.read("verdicts", commit).to_pylist():
        found[row["subject_id"]][row["judge"]] = verdict_of(row)
    return found


def responses_by_prompt(session: Session, commit: Commit) -> dict[str, dict[str, Any]]:
    """Return prompt_id → its row of `responses`."""
    return {row["prompt_id"]: row for row in session.read("responses", commit).to_pylist()}


def _once_each(rows: pa.Table) -> pa.Table:
    """Return the first row of each prompt."""
    first = {name: i for i, name in reversed(list(enumerate(rows["prompt_id"].to_pylist())))}
    return rows.take(sorted(first.values()))


def given_writers(session: Session, probed: Probed) -> list[Writer] | None:
    """Return the writers that the configuration names, or None where the trial has to choose."""
    writers = session.config.generate.writers
    if session.config.generate.endpoint is not None:
        return [Writer("assistant", "none", None)]
    if writers is None or session.config.generate.needs_trial:
        return None
    if not session.config.generate.is_steered:
        return [Writer(w.role, "none", None) for w in writers]
    add = direction_with("add", session, probed.generator_directions)
    blocks = {"none": None, "probe": add.layer}
    return [Writer(w.role, w.steering, blocks.get(w.steering, w.layer)) for w in writers]


def writing_directions(session: Session, probed: Probed, content: Mapping[int, Direction]) -> WritingDirections:
    """Return the generator's directions: at each block those of its last position."""
    found = directions_of(session, probed.generator_directions)
    method = session.config.probe.methods[0]
    of_kind: dict[str, dict[int, Direction]] = {"harm": {}, "refusal": {}}
    for direction in sorted(found, key=lambda each: each.position):
        if direction.kind in of_kind and direction.method == method and direction.language is None:
            of_kind[direction.kind][direction.layer] = direction
    return WritingDirections(
        direction_with("add", session, probed.generator_directions), of_kind["harm"], of_kind["refusal"], content
    )


def generator_id_of(session: Session) -> str:
    """Return the id of the model that writes, or the name of the endpoint's."""
    endpoint = session.config.generate.endpoint
    return endpoint.model if endpoint is not None else model_id(session.generator.reference)


def bounds_of(session: Session) -> Bounds:
    """Return where accepted prompts may lie: what the selection would not keep is no yield."""
    return Bounds(session.config.generate.width, session.config.select.max_harm_score)


def known_prompts(session: Session, commits: Sequence[Commit]) -> KnownPrompts:
    """Return the prompts that these commits hold; what the selection would count as one of them is no new one."""
    known = KnownPrompts(session.config.select.near_duplicate_jaccard)
    for commit in commits:
        for batch in session.read("prompts", commit, columns=["prompt_id", "text"]).to_batches():
            for row in batch.to_pylist():
                known.add(row["prompt_id"], row["text"])
    return known


def seeds_of(session: Session, probed: Probed, splits: Sequence[str]) -> list[Parent]:
    """Return the given prompts that may be parents: those of these splits."""
    distance = {row["prompt_id"]: row["distance"] for row in session.read("margins", probed.boundaries).to_pylist()}
    rows = sorted(session.read("prompts", probed.prompts).to_pylist(), key=lambda row: row["prompt_id"])
    return [
        parent_of(row, distance[row["prompt_id"]])
        for row in rows
        if distance[row["prompt_id"]] is not None and split_of(row["family"], session.config.seed) in splits
    ]


def parent_of(row: Mapping[str, Any], distance: float) -> Parent:
    """Return a row of `prompts` as a parent, with its distance from the boundary."""
    return Parent(
        row["prompt_id"], row["text"], row["language"], row["label"], row["category"], row["family"], distance
    )
