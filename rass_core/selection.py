"""Selection: benign prompts that the model refuses, those that stand best for all of them, without near-duplicates.

What is eligible is said in SQL over the lake's views; the greedy choice works on the rows that SQL leaves, a bounded
number a cell. Prompts close to the boundary alone teach little: they are turned easily, and what is refused
more deeply stays refused. The deepest alone may all be of one kind. So those are chosen to which all that is
refused lies close, and what is refused more deeply counts more (docs/evidence.md).
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
MAX_CROWD = 4000
"""Eligible prompts for which the chosen ones are to stand; of more, as many are drawn. Any may be chosen."""
_CHUNK = 256
"""Rows whose gains are computed at a time."""


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
    """Return the indices of the chosen rows, closest to the boundary first, and every cell with its quota.

    One prompt after the other: from the language that has fewest, and there from the cell that has
    fewest, the one that most lowers the sum, over the eligible rows, of the squared distance to the
    nearest that was chosen times the row's weight: its depth beyond the boundary to a power, times the
    sureness of its refusal (greedy k-medoids). Any size is spread evenly, and what one cell cannot give,
    others of its language do, then other languages. Of more than MAX_CROWD rows the sum is over a draw.

    Args:
        rows: Eligible prompts with language, category, operator, distance and refusal.
        vectors: Their residual streams with the direction taken out, (n, d_model); distances are theirs.
        cells: (language, category, operator) among which the size is spread; the first cells' quotas
            hold what does not divide.
        config: Size and depth's power.
    """
    depth = np.array([max(0.0, row["distance"]) for row in rows])
    weight = depth**config.depth_power * np.array([row["refusal"] for row in rows])
    number_of = {cell: number for number, cell in enumerate(cells)}
    cell_of = np.array([number_of.get((r["language"], r["category"], r["operator"]), -1) for r in rows], dtype=int)
    chosen = _spread(cell_of, cells, weight, vectors, config.size)
    base, rest = divmod(config.size, max(1, len(cells)))
    report = [
        Cell(*cell, base + (k < rest), int((cell_of == k).sum()), int((cell_of[chosen] == k).sum()))
        for k, cell in enumerate(cells)
    ]
    return sorted(chosen, key=lambda i: (abs(rows[i]["distance"]), rows[i]["prompt_id"])), report


def _spread(
    cell_of: np.ndarray[Any, Any], cells: Sequence[tuple[str, str, str]], weight: np.ndarray[Any, Any],
    vectors: np.ndarray[Any, Any], size: int,
) -> list[int]:  # fmt: skip
    """Pick greedily, language and cell with fewest first, the row that stands for most of what no pick is close to.

    Args:
        cell_of: Number of each row's cell, −1 where it is in none, (n,).
        weight: How much each row counts, (n,).
    """
    names = sorted({cell[0] for cell in cells})
    language_of = np.array([names.index(cell[0]) for cell in cells] + [-1])[cell_of]
    n_language, n_cell = np.zeros(len(names)), np.zeros(len(cells))
    left, crowd = cell_of >= 0, _Crowd(vectors, weight)
    picked: list[int] = []
    while left.any() and len(picked) < size:
        here = np.flatnonzero(left)
        here = here[n_language[language_of[here]] == n_language[language_of[here]].min()]
        here = here[n_cell[cell_of[here]] == n_cell[cell_of[here]].min()]
        best = crowd.best_of(here)
        crowd.add(best)
        picked.append(best)
        left[best] = False
        n_language[language_of[best]] += 1
        n_cell[cell_of[best]] += 1
    return picked


class _Crowd:
    """The rows with how far each is from the nearest pick, and what each would gain if it were picked.

    A gain never rises with further picks, so that an old one is a bound, and only the highest are computed
    anew (Minoux 1978).
    """

    def __init__(self, vectors: np.ndarray[Any, Any], weight: np.ndarray[Any, Any]) -> None:
        """Start without picks.

        Args:
            vectors: (n, d).
            weight: (n,), none negative; where all are 0, all count alike.
        """
        n = len(vectors)
        self._vectors = vectors - vectors.mean(axis=0) if n else vectors
        self._squares = np.einsum("nd,nd->n", self._vectors, self._vectors)
        draw = np.random.default_rng(0).permutation(n)[:MAX_CROWD] if n > MAX_CROWD else np.arange(n)
        self._members, self._member_squares = self._vectors[draw], self._squares[draw]
        self._weight = weight[draw] if weight[draw].any() else np.ones(len(draw))
        # As if a pick lay farther away than any two rows are apart: the first is the one closest to all.
        self._nearest = np.full(len(draw), 4 * self._squares.max(initial=0.0))
        """Squared distance of each member to the nearest pick."""
        self._bound = np.full(n, np.inf)

    def best_of(self, rows: np.ndarray[Any, Any]) -> int:
        """Return the row that gains most; of equals the first."""
        bound, is_stale = self._bound[rows], np.ones(len(rows), dtype=bool)
        while is_stale[np.argmax(bound)]:
            stale = np.flatnonzero(is_stale)
            highest = stale[np.argsort(-bound[stale], kind="stable")[:_CHUNK]]
            bound[highest] = self._gains(rows[highest])
            is_stale[highest] = False
        self._bound[rows] = bound
        return int(rows[np.argmax(bound)])

    def add(self, row: int) -> None:
        """Pick a row."""
        self._nearest = np.minimum(self._nearest, self._distances(np.array([row]))[0])

    def _gains(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = np.maximum(self._nearest - self._distances(rows), 0.0) @ self._weight
        return found

    def _distances(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the squared distances of rows to the members of the crowd, (n rows, n members)."""
        products = self._vectors[rows] @ self._members.T
        squared: np.ndarray[Any, Any] = self._squares[rows, None] + self._member_squares - 2 * products
        return squared.clip(min=0.0)
