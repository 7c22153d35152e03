"""Stage: what each writer makes of the same prompts → `writers`, and the prompts that it wrote."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rass_core.generate.acceptance import Bounds, Candidate, counts
from rass_core.generate.operators import ROLES, STEERINGS, operator_of
from rass_core.generate.scheduler import TRIAL, Trial, choose_writers, finalists, schedule_trial
from rass_core.generate.settings import WriterConfig
from rass_core.generate.writers import Writer, WritingDirections, content_directions
from rass_core.lake.schema import rows_table
from rass_core.models.causal_lm import decoder_blocks
from rass_core.models.chat import chat_of
from rass_core.probe.geometry import Direction, split_of
from tasks.candidates import (
    CANDIDATE_SETTINGS,
    CANDIDATE_TABLES,
    TRAINED_SPLITS,
    Workbench,
    bounds_of,
    generator_id_of,
    known_prompts,
    seeds_of,
    writing_directions,
)
from tasks.probed import Probed, direction_with
from tasks.rounds import N_CONTENT_PROMPTS, N_FINALISTS, TRIED_DEPTHS
from tasks.session import Session
from tasks.stage import MODEL_CODE, StageTables, stage


@stage(
    "trial of the writers",
    reads=["prompts", "responses", "verdicts", "activations", "directions", "boundaries", "margins", "harm_axes"],
    writes=[*CANDIDATE_TABLES, "writers", "directions"],
    settings=[*CANDIDATE_SETTINGS, "probe"],
    code=[MODEL_CODE],
    in_shards=True,
)
def try_writers(session: Session, probed: Probed, splits: Sequence[str] = TRAINED_SPLITS) -> StageTables:
    """Compare roles, then steerings in the best of them, by the requests that each writes.

    Args:
        session: Whose target is measured.
        probed: What the probe measured.
        splits: Whose given prompts are parents.
    """
    settings, generator = session.config.generate, session.generator
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
    drawn = [_direction_row(each, generator_id_of(session)) for each in content.values()]
    return {
        **bench.tables(TRIAL, tried),
        "writers": rows_table("writers", rows),
        "directions": rows_table("directions", drawn),
    }


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
            session.causal_lm(generator), chat_of(generator), texts[0][:N_CONTENT_PROMPTS],
            texts[1][:N_CONTENT_PROMPTS], layers, session.config.probe.token_budget,
        )  # fmt: skip


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
    generator_id, bounds = generator_id_of(session), bounds_of(session)
    return [
        {
            "model_id": session.target_id, "generator_id": generator_id, "role": writer.role, "steering": writer.kind,
            "layer": writer.layer, "alpha": alpha, "chosen": writer in chosen, **counts(members, bounds),
        }
        for (writer, alpha), members in _cells(candidates).items()
    ]  # fmt: skip


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
