"""Selection: benign prompts that the model refuses, spread from its boundary inwards, without near-duplicates.

What is eligible is said in SQL over the lake's views; the greedy choice works on the few rows that SQL leaves.
Prompts close to the boundary alone teach little: they are turned easily, and what is refused more deeply
stays refused (docs/evidence.md). So what is chosen covers all that is refused, with some weight on depth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from rass_core.config import SelectionConfig
from rass_core.disjoint import NearDuplicates

ELIGIBLE = """
WITH word AS (  -- a person's word outranks the panel's; of several people's, the strictest counts
    SELECT subject_id, outcome, score
    FROM (
        SELECT * FROM verdicts WHERE judge = 'panel' OR judge LIKE 'human:%'
        QUALIFY row_number() OVER (PARTITION BY subject_id, judge ORDER BY run_id DESC) = 1  -- last labels count
    )
    QUALIFY rank() OVER (PARTITION BY subject_id ORDER BY judge = 'panel') = 1
),
benign AS (
    SELECT v.subject_id AS prompt_id
    FROM word v SEMI JOIN derivations d ON d.prompt_id = v.subject_id
    GROUP BY 1
    HAVING bool_and(v.outcome IN ('harmless', 'pseudo_harmful'))
),
refused AS (
    SELECT r.prompt_id, max(v.score) AS refusal
    FROM responses r JOIN word v ON v.subject_id = r.response_id
    WHERE r.model_id = $model_id AND r.variant = 'base'
    GROUP BY 1
    HAVING bool_and(v.outcome = 'refusal')
),
origin AS (  -- a prompt may be written twice; its first derivation counts
    SELECT prompt_id, arg_min(operator, (round, operator, alpha)) AS operator FROM derivations GROUP BY 1
)
SELECT p.prompt_id, p.text, p.language, coalesce(p.category, 'none') AS category, o.operator,
       m.margin, m.distance, coalesce(f.refusal, 1.0) AS refusal
FROM margins m
JOIN prompts p USING (prompt_id)
JOIN origin o USING (prompt_id)
JOIN benign USING (prompt_id)
JOIN refused f USING (prompt_id)
WHERE m.model_id = $model_id AND m.direction_id = $direction_id
  AND abs(m.distance) <= coalesce($width::DOUBLE, 'infinity'::DOUBLE)
QUALIFY row_number() OVER (
    PARTITION BY p.language, category, o.operator ORDER BY p.prompt_id  -- a digest, so a draw
) <= $per_cell
ORDER BY abs(m.distance), p.prompt_id
"""
CELL_OVERSUPPLY = 50
"""Candidates a cell keeps for each prompt of its quota, drawn by id."""


@dataclass(frozen=True)
class Cell:
    """One language × category × operator with what it was to give and gave."""

    language: str
    category: str
    operator: str
    quota: int
    n_eligible: int
    n_selected: int

    @property
    def name(self) -> str:
        """Return the cell's name in table `selections`."""
        return f"{self.language}/{self.category}/{self.operator}"

    @property
    def reason(self) -> str | None:
        """Say why it fell short, or None where it is filled."""
        if self.n_selected >= self.quota:
            return None
        return f"{self.n_selected} of {self.quota}: {self.n_eligible} eligible after near-duplicates were removed"


def eligible(
    connection: duckdb.DuckDBPyConnection, model_id: str, direction_id: str, config: SelectionConfig
) -> pa.Table:
    """Return verified-benign refused candidates within the width, closest first, a bounded number a cell."""
    parameters = {
        "model_id": model_id, "direction_id": direction_id, "width": config.width,
        "per_cell": CELL_OVERSUPPLY * max(1, config.size // 10),
    }  # fmt: skip
    return connection.sql(ELIGIBLE, params=parameters).to_arrow_table()


def without_near_duplicates(texts: Sequence[str], threshold: float) -> list[int]:
    """Return the indices that stay: each text that is no near-duplicate of one kept before it."""
    kept, found = [], NearDuplicates(threshold)
    for number, text in enumerate(texts):
        if not found.like(text):
            found.add(number, text)
            kept.append(number)
    return kept


def fill_quotas(
    rows: Sequence[Mapping[str, Any]], vectors: np.ndarray[Any, Any], cells: Sequence[tuple[str, str, str]],
    config: SelectionConfig,
) -> tuple[list[int], list[Cell]]:  # fmt: skip
    """Return the indices of the chosen rows, best first, and every cell with its quota.

    One prompt after the other: from the language that has fewest, and there from the cell that has
    fewest, the one that is farthest from all chosen so far (farthest-first, which covers what is
    eligible; Gonzalez 1985), depth beyond the boundary times sureness of the refusal counting too.
    So any size is spread evenly, and what one cell cannot give, others of its language do, then other
    languages.

    Args:
        rows: Eligible prompts with language, category, operator, distance and refusal.
        vectors: Their residual streams, (n, d_model); in its units distances are measured.
        cells: (language, category, operator) among which the size is spread; the first cells' quotas
            hold what does not divide.
        config: Size, diversity, and the width at which depth is 1; without one it is the deepest row's.
    """
    width = config.width or max((abs(row["distance"]) for row in rows), default=0.0) or 1.0
    scale = float(np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).mean()) if len(rows) else 1.0
    depth = np.array([min(1.0, max(0.0, row["distance"] / width)) for row in rows])
    worth = depth * np.array([row["refusal"] for row in rows])
    number_of = {cell: number for number, cell in enumerate(cells)}
    cell_of = np.array([number_of.get((r["language"], r["category"], r["operator"]), -1) for r in rows], dtype=int)
    chosen = _spread(cell_of, cells, worth, vectors / (scale or 1.0), config)
    base, rest = divmod(config.size, max(1, len(cells)))
    report = [
        Cell(*cell, base + (k < rest), int((cell_of == k).sum()), int((cell_of[chosen] == k).sum()))
        for k, cell in enumerate(cells)
    ]
    return sorted(chosen, key=lambda i: (abs(rows[i]["distance"]), rows[i]["prompt_id"])), report


def _spread(
    cell_of: np.ndarray[Any, Any], cells: Sequence[tuple[str, str, str]], worth: np.ndarray[Any, Any],
    vectors: np.ndarray[Any, Any], config: SelectionConfig,
) -> list[int]:  # fmt: skip
    """Pick greedily, language and cell with fewest first, the row best in worth and distance to those picked.

    Args:
        cell_of: Number of each row's cell, −1 where it is in none, (n,).
    """
    names = sorted({cell[0] for cell in cells})
    language_of = np.array([names.index(cell[0]) for cell in cells] + [-1])[cell_of]
    n_language, n_cell = np.zeros(len(names)), np.zeros(len(cells))
    nearest, left = np.ones(len(worth)), cell_of >= 0
    picked: list[int] = []
    while left.any() and len(picked) < config.size:
        here = np.flatnonzero(left)
        here = here[n_language[language_of[here]] == n_language[language_of[here]].min()]
        here = here[n_cell[cell_of[here]] == n_cell[cell_of[here]].min()]
        best = int(here[np.argmax((1 - config.diversity) * worth[here] + config.diversity * nearest[here])])
        picked.append(best)
        left[best] = False
        n_language[language_of[best]] += 1
        n_cell[cell_of[best]] += 1
        away = np.linalg.norm(vectors - vectors[best], axis=1)
        nearest = np.minimum(nearest, away) if len(picked) > 1 else away
    return picked
