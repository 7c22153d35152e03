"""Selection: benign prompts that the model refuses, near its boundary, without near-duplicates, in quotas.

What is eligible is said in SQL over the lake's views; the greedy choice inside a cell works on the
few rows that SQL leaves.
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
WHERE m.model_id = $model_id AND m.direction_id = $direction_id AND abs(m.distance) <= $width
QUALIFY row_number() OVER (
    PARTITION BY p.language, category, o.operator ORDER BY abs(m.distance), p.prompt_id
) <= $per_cell
ORDER BY abs(m.distance), p.prompt_id
"""
CELL_OVERSUPPLY = 50
"""Candidates a cell keeps for each prompt of its quota; the rest lie farther from the boundary."""


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
        if self.n_selected == self.quota:
            return None
        return f"{self.n_selected} of {self.quota}: {self.n_eligible} eligible after near-duplicates were removed"


def eligible(
    connection: duckdb.DuckDBPyConnection, model_id: str, direction_id: str, width: float, config: SelectionConfig
) -> pa.Table:
    """Return verified-benign refused candidates with |m − b| ≤ width, closest first, a bounded number a cell."""
    parameters = {
        "model_id": model_id, "direction_id": direction_id, "width": width,
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
    width: float, config: SelectionConfig,
) -> tuple[list[int], list[Cell]]:  # fmt: skip
    """Return the indices of the chosen rows, best first, and every cell with its quota.

    Args:
        rows: Eligible prompts with language, category, operator, distance and refusal.
        vectors: Their residual streams with the direction taken out, (n, d_model).
        cells: (language, category, operator) among which the size is spread evenly; the first cells
            take what does not divide.
        width: |m − b| at which closeness is zero.
        config: Size and diversity.
    """
    scale = float(np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).mean()) if len(rows) else 1.0
    closeness = np.array([1.0 - abs(row["distance"]) / width for row in rows])
    worth = 0.5 * closeness + 0.5 * np.array([row["refusal"] for row in rows])
    base, rest = divmod(config.size, max(1, len(cells)))
    chosen: list[int] = []
    report = []
    for number, cell in enumerate(cells):
        members = [i for i, row in enumerate(rows) if (row["language"], row["category"], row["operator"]) == cell]
        quota = base + (number < rest)
        picked = _spread(members, worth, vectors / (scale or 1.0), quota, config.diversity)
        chosen += picked
        report.append(Cell(*cell, quota, len(members), len(picked)))
    return sorted(chosen, key=lambda i: (abs(rows[i]["distance"]), rows[i]["prompt_id"])), report


def _spread(
    members: Sequence[int], worth: np.ndarray[Any, Any], vectors: np.ndarray[Any, Any], quota: int, diversity: float
) -> list[int]:
    """Pick greedily the row best in worth and distance to those picked (farthest-first, traded off)."""
    picked: list[int] = []
    left = list(members)
    nearest = np.full(len(worth), 1.0)
    while left and len(picked) < quota:
        scores = [(1 - diversity) * worth[i] + diversity * min(1.0, nearest[i]) for i in left]
        best = left.pop(int(np.argmax(scores)))
        picked.append(best)
        for i in left:
            nearest[i] = min(nearest[i], float(np.linalg.norm(vectors[i] - vectors[best])))
    return picked
