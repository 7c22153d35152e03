"""Stage: the best candidates under quotas → `selections`, `quotas`."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rass_core.data.decontamination import without_near_duplicates
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.lake.tables.mitigation import Quotas, Selections
from rass_core.select.anchors import first_per_language, nearest_anchors
from rass_core.select.gradients import GradientWorker, read_gradients
from rass_core.select.quotas import Influence, eligible, fill_quotas
from rass_core.select.settings import N_HARMFUL
from rass_core.text import digest
from tasks.probed import Probed, direction_with
from tasks.session import READ_PER_ANSWERED, Session
from tasks.stage import StageTables, stage

SHARE_OF_BUDGET = 4
"""A pass back keeps what every block computed, so a batch has the probe's tokens divided by this."""


def select_prompts(session: Session, probed: Probed, rounds: Sequence[Commit]) -> Commit:
    """Keep benign prompts that the target refuses, as people's labels of the lake allow."""
    return select_candidates(session, probed, rounds, session.reviews())


@stage(
    "selection",
    reads=[
        "prompts", "responses", "verdicts", "derivations", "directions", "boundaries", "margins",
    ],
    writes=["gradients", "selections", "quotas"],
    settings=["model", "select", "probe.prefixes", "probe.token_budget", "seed"],
    in_shards=True,
)  # fmt: skip
def select_candidates(
    session: Session, probed: Probed, rounds: Sequence[Commit], reviews: Sequence[Commit]
) -> StageTables:
    """Keep, of the benign prompts that the target refuses, those that help most in training, with a quota per cell."""
    settings = session.config.select
    direction_id = direction_with("margin", session, probed.directions).direction_id(session.target_id)
    wanted = _cells(session, probed)
    with session.lake.connect_to([probed.prompts, *rounds, *reviews]) as connection:
        found = eligible(connection, session.target_id, direction_id, settings, len(wanted))
    rows = found.to_pylist()
    rows = [rows[i] for i in without_near_duplicates([r["text"] for r in rows], settings.near_duplicate_jaccard)]
    languages = {language for language, _ in wanted}
    refused = nearest_anchors(session.lake, [*probed.commits, *rounds], "harmful", "refusal", session.config.seed)
    harmful = first_per_language(refused, dict.fromkeys(languages, N_HARMFUL))
    influence = _influence(session, rows, harmful)
    for line in influence.blind_spots([row["language"] for row in rows]):
        session.say(f"selection: {line}")
    chosen, cells = fill_quotas(rows, influence, wanted, settings.size)
    selection_id = digest("selection", *(commit.content for commit in [*rounds, *reviews]), settings.model_dump_json())
    selected = [
        Selections(
            selection_id=selection_id, prompt_id=rows[i]["prompt_id"], model_id=session.target_id, rank=rank,
            margin=rows[i]["margin"], distance=rows[i]["distance"], language=rows[i]["language"],
            category=rows[i]["category"], operator=rows[i]["operator"],
            cell=f"{rows[i]['language']}/{rows[i]['category']}",
        )
        for rank, i in enumerate(chosen, start=1)
    ]  # fmt: skip
    quotas = [
        Quotas(
            selection_id=selection_id, cell=cell.name, language=cell.language, category=cell.category,
            quota=cell.quota, n_eligible=cell.n_eligible, n_selected=cell.n_selected, reason=cell.reason,
        )
        for cell in cells
    ]  # fmt: skip
    short = sum(cell.n_selected < cell.quota for cell in cells)
    session.say(f"selected {len(selected)} of {settings.size} prompts; {short} of {len(cells)} quotas fell short")
    return {"selections": rows_table("selections", selected), "quotas": rows_table("quotas", quotas)}


def _influence(session: Session, rows: Sequence[Mapping[str, Any]], harmful: Sequence[Mapping[str, Any]]) -> Influence:
    """Return what training on each row would do to the others, by the gradients of the target."""
    everything = [*rows, *harmful]
    settings = session.config.probe
    worker = GradientWorker(
        session.config.model, settings.prefixes, settings.token_budget // SHARE_OF_BUDGET, session.config.seed
    )
    columns = ("prompt_id", "text", "language")
    asked = pa.table({name: pa.array([row[name] for row in everything], pa.string()) for name in columns})
    found = session.map("reading gradients of refusal", worker, asked, "prompt_id", READ_PER_ANSWERED)
    read = read_gradients(session.lake, [found], [row["prompt_id"] for row in everything])
    return Influence.of(read.vectors, read.log_odds, [row["language"] for row in everything], len(rows))


def _cells(session: Session, probed: Probed) -> list[tuple[str, str]]:
    """Return every language × category that the given prompts could lead to."""
    given = session.read("prompts", probed.prompts, columns=["language", "category"])
    return list(product(*(sorted({each or "none" for each in pc.unique(column).to_pylist()}) for column in given)))
