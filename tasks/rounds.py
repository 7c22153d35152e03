"""Stages that write prompts: the trial of the writers, and steered rounds."""

from collections.abc import Sequence

from rass_core.generate.scheduler import (
    ArmStats,
    Parent,
    schedule_round,
)
from rass_core.generate.writers import Writer
from rass_core.lake.store import Commit
from rass_core.probe.geometry import Direction
from rass_core.vocabulary import BENIGN
from tasks.candidates import (
    CANDIDATE_SETTINGS,
    CANDIDATE_TABLES,
    TRAINED_SPLITS,
    Workbench,
    bounds_of,
    given_writers,
    known_prompts,
    parent_of,
    seeds_of,
    writing_directions,
)
from tasks.probed import Probed, directions_of, outcomes_of
from tasks.session import Session
from tasks.stage import MODEL_CODE, StageTables, stage

TRIED_DEPTHS = (0.4, 0.7)
"""Shares of the model's depth near which steerings are tried: where it has understood, and where it decides."""
N_FINALISTS = 3
"""Steered writers that write once more, beside the unsteered one, with half of the trial's budget for steerings."""
N_CONTENT_PROMPTS = 100
"""Prompts of each class, over all languages, from which the directions at the requests' words are drawn."""


@stage(
    "round {number}",
    reads=[*CANDIDATE_TABLES, "directions", "boundaries", "harm_axes", "writers"],
    writes=CANDIDATE_TABLES,
    settings=[*CANDIDATE_SETTINGS, "probe"],
    code=[MODEL_CODE],
    in_shards=True,
)
def write_round(
    session: Session, number: int, probed: Probed, trial: Commit | None, earlier: Sequence[Commit],
    splits: Sequence[str] = TRAINED_SPLITS,
) -> StageTables:  # fmt: skip
    """Write, clean, moderate, re-encode unsteered, answer and judge the prompts of one round.

    Args:
        session: Whose target is measured.
        number: Of the round, from 1.
        probed: What the probe measured.
        trial: That chose the writers; None where the configuration does.
        earlier: Rounds before this one.
        splits: Whose given prompts are parents.
    """
    before, index = [*([trial] if trial else []), *earlier], number - 1
    writers = given_writers(session, probed) if trial is None else _chosen_writers(session, trial)
    content = {} if trial is None else _content_of(session, trial)
    bench = Workbench(session, probed, writing_directions(session, probed, content))
    jobs = schedule_round(
        index, writers or [], seeds_of(session, probed, splits), _survivors(session, before),
        _history(session, earlier), session.config.generate, session.config.seed,
    )  # fmt: skip
    candidates = bench.candidates(f"round {number}", jobs, known_prompts(session, [probed.prompts, *before]))
    return bench.tables(index, candidates)


def _content_of(session: Session, trial: Commit) -> dict[int, Direction]:
    return {each.layer: each for each in directions_of(session, trial) if each.kind == "content"}


def _chosen_writers(session: Session, trial: Commit) -> list[Writer]:
    """Return the writers that the trial chose."""
    rows = [row for row in session.read("writers", trial).to_pylist() if row["chosen"]]
    return list(dict.fromkeys(Writer(row["role"], row["steering"], row["layer"]) for row in rows))


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
                found.append(parent_of(row, here))
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
