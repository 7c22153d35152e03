"""Stage: the best candidates under quotas → `selections`, `quotas`."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.selection import eligible, fill_quotas, without_near_duplicates
from rass_core.store import Commit
from rass_core.tables import digest
from tasks.generate import Probed
from tasks.probe import direction_with
from tasks.run import Run, table


@task(cache_policy=NO_CACHE)
def select_prompts(run: Run, probed: Probed, rounds: Sequence[Commit]) -> Commit:
    """Keep benign prompts that the target refuses, spread over the cells and over all that is refused."""
    settings = run.config.select
    reviews = run.reviews()

    def compute() -> Mapping[str, pa.Table]:
        direction = direction_with("margin", run, probed.directions)
        with run.lake.connect_to([probed.prompts, *rounds, *reviews]) as connection:
            found = eligible(connection, run.target_id, direction.direction_id(run.target_id), settings)
        rows = found.to_pylist()
        rows = [rows[i] for i in without_near_duplicates([r["text"] for r in rows], settings.near_duplicate_jaccard)]
        vector_of = {
            row["prompt_id"]: row["vector"] for commit in rounds for row in run.read("activations", commit).to_pylist()
        }
        unit = direction.vector / np.linalg.norm(direction.vector)
        vectors = np.array([vector_of[row["prompt_id"]] for row in rows], np.float64).reshape(-1, len(unit))
        vectors -= np.outer(vectors @ unit, unit)
        chosen, cells = fill_quotas(rows, vectors, _cells(run, probed), settings)
        selection_id = digest("selection", *(commit.key for commit in [*rounds, *reviews]), settings.model_dump_json())
        selected = [
            {
                "selection_id": selection_id, "prompt_id": rows[i]["prompt_id"], "model_id": run.target_id,
                "rank": rank, "margin": rows[i]["margin"], "distance": rows[i]["distance"],
                "language": rows[i]["language"], "category": rows[i]["category"], "operator": rows[i]["operator"],
                "cell": f"{rows[i]['language']}/{rows[i]['category']}/{rows[i]['operator']}",
            }
            for rank, i in enumerate(chosen, start=1)
        ]  # fmt: skip
        quotas = [
            {
                "selection_id": selection_id, "cell": cell.name, "language": cell.language, "category": cell.category,
                "operator": cell.operator, "quota": cell.quota, "n_eligible": cell.n_eligible,
                "n_selected": cell.n_selected, "reason": cell.reason,
            }
            for cell in cells
        ]  # fmt: skip
        short = sum(cell.n_selected < cell.quota for cell in cells)
        run.say(f"selected {len(selected)} of {settings.size} prompts; {short} of {len(cells)} quotas fell short")
        return {"selections": table("selections", selected), "quotas": table("quotas", quotas)}

    return run.once("selection", [*probed.commits, *rounds, *reviews, settings, run.config.generate], compute)


def _cells(run: Run, probed: Probed) -> list[tuple[str, str, str]]:
    """Return every language × category × operator that the given prompts could lead to."""
    rows = run.read("prompts", probed.prompts).to_pylist()
    languages = sorted({row["language"] for row in rows})
    categories = sorted({row["category"] or "none" for row in rows})
    return list(product(languages, categories, run.config.generate.operators))
