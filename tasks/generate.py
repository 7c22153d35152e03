"""Stages that write prompts: the trial of the writers, and steered rounds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.generate.acceptance import NO_PROMPT, Bounds, Candidate, counts, yields
from rass_core.generate.cleaning import Cleaner, KnownPrompts
from rass_core.generate.judged_measuring import JudgedMeasureWorker
from rass_core.generate.measuring import MeasureWorker
from rass_core.generate.operators import ROLES, STEERINGS, operator_of
from rass_core.generate.scheduler import (
    TRIAL,
    ArmStats,
    GenerationJob,
    Parent,
    Trial,
    choose_writers,
    finalists,
    schedule_round,
    schedule_trial,
)
from rass_core.generate.settings import WriterConfig
from rass_core.generate.writers import Writer, WritingDirections, content_directions, whole_text
from rass_core.generate.writing import NOT_WRITTEN, AskingWorker, WriteWorker, Written, job_table
from rass_core.judges.workers import verdict_of
from rass_core.lake.store import Commit
from rass_core.models.answering import asked
from rass_core.models.causal_lm import decoder_blocks
from rass_core.models.identity import model_id
from rass_core.models.settings import ENDPOINT_PATIENCE
from rass_core.moderators.worker import ModerateWorker
from rass_core.probe.geometry import Direction, split_of
from rass_core.text import digest, prompt_id
from rass_core.vocabulary import BENIGN, Verdict
from tasks.answers import judge, say_cut_off
from tasks.probe import direction_with, directions_of, gauge_of, margin_scale, outcomes_of, read_probe_data
from tasks.session import Session, chat_of, table

TRAINED_SPLITS = ("train", "validation")
"""Given prompts of the test split stay out of what models are trained on."""
TRIED_DEPTHS = (0.4, 0.7)
"""Shares of the model's depth near which steerings are tried: where it has understood, and where it decides."""
N_FINALISTS = 3
"""Steered writers that write once more, beside the unsteered one, with half of the trial's budget for steerings."""
PLACE = ("margin", "orthogonal_score", "distance", "harm_score")
"""Columns of `margins` that say where a prompt lies."""
N_CONTENT_PROMPTS = 100
"""Prompts of each class, over all languages, from which the directions at the requests' words are drawn."""


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


@task(cache_policy=NO_CACHE)
def try_writers(session: Session, probed: Probed, splits: Sequence[str] = TRAINED_SPLITS) -> Commit | None:
    """Compare roles, then steerings in the best of them, by what comes of each; None where nothing is to be compared.

    Args:
        session: Whose target is measured.
        probed: What the probe measured.
        splits: Whose given prompts are parents.
    """
    settings, generator = session.config.generate, session.generator
    if given_writers(session, probed) is not None:
        return None

    def compute() -> Mapping[str, pa.Table]:
        add = direction_with("add", session, probed.generator_directions)
        n_layers = len(decoder_blocks(session.causal_lm(generator)))
        content = content_directions_of(session, probed, _content_layers(settings.writers, n_layers))
        directions = writing_directions(session, probed, content)
        bench = Workbench(session, probed, directions)
        seeds, known = seeds_of(session, probed, splits), known_prompts(session, [probed.prompts])
        tried: list[Candidate] = []

        def write(which: str, cells: Sequence[tuple[Writer, float]], n: int, leg: int = 0) -> list[Trial]:
            jobs = schedule_trial(cells, n, seeds, settings, session.config.seed, leg)
            tried.extend(bench.candidates(f"trial of the {which}", jobs, known, apart=True))
            return _trials(tried, bounds_of(session))

        n_role = settings.trial_candidates // 4
        n_steering = (settings.trial_candidates - n_role) // 2
        # Steerings are tried in the best role alone: spread over several, each would write too little to tell.
        role = choose_writers(write("roles", [(Writer(role, "none", None), 0.0) for role in _roles(session)], n_role))[
            0
        ].role
        cells = [
            (writer, alpha)
            for writer in _steered_writers(session, role, directions, n_layers, add.layer)
            for alpha in _tried_alphas(settings.alphas)
        ]
        best = finalists(write("steerings", cells, n_steering), N_FINALISTS)
        cells = [(Writer(role, "none", None), 0.0), *(cell for cell in cells if cell[0] in best)]
        chosen = choose_writers(write("best steerings", cells, n_steering, leg=1))
        for line in _verdict_lines(tried, chosen, bounds_of(session)):
            session.say(f"trial: {line}")
        rows = writer_rows(session, tried, chosen)
        drawn = [_direction_row(each, _generator_id(session)) for each in content.values()]
        return {
            **bench.tables(TRIAL, tried), "writers": table("writers", rows), "directions": table("directions", drawn)
        }  # fmt: skip

    inputs = [
        session.writing, session.moderating, session.judging, session.config.generator, session.config.seed, list(splits),
        session.config.select.near_duplicate_jaccard, bounds_of(session),
    ]  # fmt: skip
    return session.once("trial of the writers", [*probed.commits, *inputs], compute)


@task(cache_policy=NO_CACHE, task_run_name="round-{number}")
def write_round(
    session: Session, number: int, probed: Probed, trial: Commit | None, earlier: Sequence[Commit],
    splits: Sequence[str] = TRAINED_SPLITS,
) -> Commit:  # fmt: skip
    """Write, clean, moderate, re-encode unsteered, answer and judge the prompts of one round.

    Args:
        session: Whose target is measured.
        number: Of the round, from 0.
        probed: What the probe measured.
        trial: That chose the writers; None where the configuration does.
        earlier: Rounds before this one.
        splits: Whose given prompts are parents.
    """
    before = [*([trial] if trial else []), *earlier]

    def compute() -> Mapping[str, pa.Table]:
        writers = given_writers(session, probed) if trial is None else _chosen_writers(session, trial)
        content = {} if trial is None else _content_of(session, trial)
        bench = Workbench(session, probed, writing_directions(session, probed, content))
        jobs = schedule_round(
            number, writers or [], seeds_of(session, probed, splits), _survivors(session, before), _history(session, earlier),
            session.config.generate, session.config.seed,
        )  # fmt: skip
        candidates = bench.candidates(f"round {number + 1}", jobs, known_prompts(session, [probed.prompts, *before]))
        return bench.tables(number, candidates)

    settings = [
        session.writing, session.moderating, session.judging, session.config.generator, session.config.seed, list(splits),
        session.config.select.near_duplicate_jaccard, bounds_of(session),
    ]  # fmt: skip
    return session.once(f"round {number + 1}", [*probed.commits, *before, *settings], compute)


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
        """Return what came of the jobs.

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
                self._generator, _generator_id(session), self._directions, session.writing[1], settings.max_new_tokens,
                settings.temperature, settings.top_p, settings.instructions,
            )  # fmt: skip
        else:
            asking = [settings.endpoint.model_dump(mode="json", exclude=ENDPOINT_PATIENCE["endpoint"]), session.writing[1]]
            worker = AskingWorker(
                asking, session.config.model, settings.instructions, settings.endpoint, settings.max_failed_share, len(jobs)
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
        worker = ModerateWorker(session.moderating, session.config.moderator, session.generator, len(asked))
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
            session.config.model, self._gauge, self._b, "candidate", session.config.probe.max_new_tokens, with_streams=True
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
        at_once = JudgedMeasureWorker(worker, session.judging, session.config.judge, session.generator, sides[1].num_rows)
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
        generator_id = _generator_id(session)
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
            "prompts": table("prompts", prompts), "derivations": table("derivations", derivations),
            "rounds": table("rounds", rounds),
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


def _generator_id(session: Session) -> str:
    endpoint = session.config.generate.endpoint
    return endpoint.model if endpoint is not None else model_id(session.generator.reference)


def _roles(session: Session) -> list[str]:
    """Return the roles that are compared: those the configuration names and its operators can take."""
    settings = session.config.generate
    named = {writer.role for writer in settings.writers} if settings.writers else set(ROLES)
    possible = {role for name in settings.operators for role in operator_of(name).roles}
    return [role for role in ROLES if role in named & possible]


def _steered_writers(
    session: Session, role: str, directions: WritingDirections, n_layers: int, probe_layer: int
) -> list[Writer]:
    """Return the steered writers of a role that are tried."""
    named = session.config.generate.writers
    wanted = [(w.steering, w.layer) for w in named if w.role == role] if named else [(k, None) for k in STEERINGS]
    found = []
    for kind, layer in wanted:
        if kind == "none":
            continue
        if kind == "probe":
            blocks = [probe_layer]
        elif layer is not None:
            blocks = [layer]
        else:
            blocks = _near(directions.blocks(kind), n_layers)
        found += [Writer(role, kind, block) for block in blocks]
    return list(dict.fromkeys(found))


def _near(blocks: Sequence[int], n_layers: int) -> list[int]:
    """Return the blocks nearest to the depths that are tried."""
    wanted = [share * (n_layers - 1) for share in TRIED_DEPTHS]
    return sorted({min(blocks, key=lambda block: (abs(block - place), block)) for place in wanted}) if blocks else []


def _content_layers(named: Sequence[WriterConfig] | None, n_layers: int) -> list[int]:
    """Return the blocks at which directions are read at the requests' own words."""
    tried = _near(range(n_layers), n_layers)
    if named is None:
        return tried
    wanted = [writer.layer for writer in named if writer.steering == "content"]
    return sorted({layer for layer in wanted if layer is not None} | set(tried if None in wanted else []))


def _tried_alphas(alphas: Sequence[float]) -> list[float]:
    """Return a middle one and the largest of the positive strengths, or of all where none is positive."""
    usable = sorted(alpha for alpha in alphas if alpha > 0) or sorted(alphas, key=abs)
    return sorted({usable[(len(usable) - 1) // 2], usable[-1]})


def content_directions_of(session: Session, probed: Probed, layers: Sequence[int]) -> dict[int, Direction]:
    """Return block → the direction at the requests' own words, of the train split; none without both classes."""
    if not layers:
        return {}
    rows = sorted(session.read("prompts", probed.prompts).to_pylist(), key=lambda row: row["prompt_id"])
    rows = [row for row in rows if split_of(row["family"], session.config.seed) == "train"]
    texts = [[row["text"] for row in rows if row["label"] == label] for label in ("harmful", "harmless")]
    if not all(texts):
        return {}
    generator = session.generator
    with session.status("reading directions at the words of the requests"):
        return content_directions(
            session.causal_lm(generator), chat_of(generator), texts[0][:N_CONTENT_PROMPTS], texts[1][:N_CONTENT_PROMPTS],
            layers, session.config.probe.token_budget,
        )  # fmt: skip


def _content_of(session: Session, trial: Commit) -> dict[int, Direction]:
    return {each.layer: each for each in directions_of(session, trial) if each.kind == "content"}


def _direction_row(direction: Direction, name: str) -> dict[str, Any]:
    return {
        "direction_id": direction.direction_id(name), "model_id": name, "kind": direction.kind,
        "method": direction.method, "layer": direction.layer, "position": direction.position,
        "vector": direction.vector.astype(np.float32).tolist(),
    }  # fmt: skip


def _cells(candidates: Sequence[Candidate]) -> dict[tuple[Writer, float], list[Candidate]]:
    found: dict[tuple[Writer, float], list[Candidate]] = {}
    for each in candidates:
        found.setdefault((each.job.writer, each.job.alpha), []).append(each)
    return found


def _trials(candidates: Sequence[Candidate], bounds: Bounds) -> list[Trial]:
    """Return what each writer wrote at each α."""
    trials = []
    for (writer, alpha), members in _cells(candidates).items():
        n = counts(members, bounds)
        trials.append(Trial(writer, alpha, n["n_candidates"], n["n_new"], n["n_accepted"], n["n_tokens"]))
    return trials


def writer_rows(session: Session, candidates: Sequence[Candidate], chosen: Sequence[Writer]) -> list[dict[str, Any]]:
    """Return what each writer wrote at each α, as rows of `writers`."""
    generator_id, bounds = _generator_id(session), bounds_of(session)
    return [
        {
            "model_id": session.target_id, "generator_id": generator_id, "role": writer.role, "steering": writer.kind,
            "layer": writer.layer, "alpha": alpha, "chosen": writer in chosen, **counts(members, bounds),
        }
        for (writer, alpha), members in _cells(candidates).items()
    ]  # fmt: skip


def _chosen_writers(session: Session, trial: Commit) -> list[Writer]:
    """Return the writers that the trial chose."""
    rows = [row for row in session.read("writers", trial).to_pylist() if row["chosen"]]
    return list(dict.fromkeys(Writer(row["role"], row["steering"], row["layer"]) for row in rows))


def _verdict_lines(tried: Sequence[Candidate], chosen: Sequence[Writer], bounds: Bounds) -> list[str]:
    """Say what the trial saw of each writer and which were chosen."""
    lines = []
    for writer in dict.fromkeys(each.job.writer for each in tried):
        n = counts([each for each in tried if each.job.writer == writer], bounds)
        rate = 1000 * n["n_accepted"] / n["n_tokens"] if n["n_tokens"] else 0.0
        mark = "chosen: " if writer in chosen else ""
        lines.append(
            f"{mark}{writer.name}: {n['n_new']} of {n['n_candidates']} texts are new requests, {n['n_benign']} benign, "
            f"{n['n_accepted']} accepted, {rate:.1f} per 1,000 tokens"
        )
    return lines


def bounds_of(session: Session) -> Bounds:
    """Return where accepted prompts may lie: what the selection would not keep is no yield."""
    return Bounds(session.config.generate.width, session.config.select.max_harm_score)


def known_prompts(session: Session, commits: Sequence[Commit]) -> KnownPrompts:
    """Return the prompts that these commits hold; what the selection would count as one of them is no new one."""
    known = KnownPrompts(session.config.select.near_duplicate_jaccard)
    for commit in commits:
        for row in session.read("prompts", commit).to_pylist():
            known.add(row["prompt_id"], row["text"])
    return known


def seeds_of(session: Session, probed: Probed, splits: Sequence[str]) -> list[Parent]:
    """Return the given prompts that may be parents: those of these splits."""
    distance = {row["prompt_id"]: row["distance"] for row in session.read("margins", probed.boundaries).to_pylist()}
    rows = sorted(session.read("prompts", probed.prompts).to_pylist(), key=lambda row: row["prompt_id"])
    return [
        _parent(row, distance[row["prompt_id"]])
        for row in rows
        if distance[row["prompt_id"]] is not None and split_of(row["family"], session.config.seed) in splits
    ]


def _survivors(session: Session, earlier: Sequence[Commit]) -> list[Parent]:
    """Return the benign prompts of earlier rounds that may be parents: within the bounds; without a width, refused."""
    found, bounds = [], bounds_of(session)
    for commit in earlier:
        places = {row["prompt_id"]: row for row in session.read("margins", commit).to_pylist()}
        refused = {name for name, outcome in outcomes_of(session, commit).items() if outcome == "refusal"}
        for row in sorted(session.read("prompts", commit).to_pylist(), key=lambda row: row["prompt_id"]):
            here, harm = (places[row["prompt_id"]][column] for column in ("distance", "harm_score"))
            is_parent = row["label"] in BENIGN and here is not None and bounds.hold(here, harm)
            if is_parent and (bounds.width is not None or row["prompt_id"] in refused):
                found.append(_parent(row, here))
    return found


def _history(session: Session, earlier: Sequence[Commit]) -> list[ArmStats]:
    """Return what earlier rounds yielded."""
    return [
        ArmStats(
            row["operator"], row["role"], row["language"], row["side"], row["alpha"], row["n_candidates"],
            row["n_coherent"], row["n_accepted"], row["n_tokens"], tuple(row["distances"] or ()),
        )
        for commit in earlier
        for row in session.read("rounds", commit).to_pylist()
    ]  # fmt: skip


def _parent(row: Mapping[str, Any], distance: float) -> Parent:
    return Parent(
        row["prompt_id"], row["text"], row["language"], row["label"], row["category"], row["family"], distance
    )
