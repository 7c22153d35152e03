"""Selection: refused benign prompts without near-duplicates, first those that lower the refusal of most others.

SQL over the lake's views finds the eligible prompts; the greedy choice works on the rows that SQL returns, a bounded
number per cell. Neither closeness to the boundary nor depth beyond it shows how much training gains from a prompt:
training on a close one changes that prompt easily and few others, and a deep one may lie among the harmful
(docs/evidence.md). So gradients predict how training on a prompt changes the refusal of all others and of harmful ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from rass_core.select.settings import SelectionConfig

ELIGIBLE = """
WITH verdict AS (  -- a person's label overrides the panel's; with several people, the strictest label counts
    SELECT subject_id, outcome, score
    FROM (
        SELECT * FROM verdicts WHERE judge = 'panel' OR judge LIKE 'human:%'
        QUALIFY row_number() OVER (PARTITION BY subject_id, judge ORDER BY run_id DESC) = 1  -- last labels count
    )
    QUALIFY rank() OVER (PARTITION BY subject_id ORDER BY judge = 'panel') = 1
),
benign AS (
    SELECT v.subject_id AS prompt_id
    FROM verdict v SEMI JOIN derivations d ON d.prompt_id = v.subject_id
    GROUP BY 1
    HAVING bool_and(v.outcome IN ('harmless', 'pseudo_harmful'))
),
refused AS (
    SELECT r.prompt_id, max(v.score) AS refusal
    FROM responses r JOIN verdict v ON v.subject_id = r.response_id
    WHERE r.model_id = $model_id AND r.variant = 'base'
    GROUP BY 1
    HAVING bool_and(v.outcome = 'refusal')
),
origin AS (  -- a prompt may be written twice; its first derivation counts
    SELECT prompt_id, arg_min(operator, (round, operator, alpha)) AS operator FROM derivations GROUP BY 1
)
SELECT p.prompt_id, p.text, p.language, coalesce(p.category, 'none') AS category, o.operator,
       m.margin, m.distance, m.harm_score, coalesce(f.refusal, 1.0) AS refusal
FROM margins m
JOIN prompts p USING (prompt_id)
JOIN origin o USING (prompt_id)
JOIN benign USING (prompt_id)
JOIN refused f USING (prompt_id)
WHERE m.model_id = $model_id AND m.direction_id = $direction_id
  AND abs(m.distance) <= coalesce($width::DOUBLE, 'infinity'::DOUBLE)
  AND ($max_harm_score::DOUBLE IS NULL OR m.harm_score <= $max_harm_score)
QUALIFY row_number() OVER (PARTITION BY p.language, category ORDER BY p.prompt_id) <= $per_cell  -- a digest, so a draw
ORDER BY abs(m.distance), p.prompt_id
"""
EQUAL_GAIN = 1e-3
"""Predicted gains that differ by less than this share of the best one are equal."""
CELL_OVERSUPPLY = 20
"""Candidates that a cell keeps per prompt of its quota, drawn by id; it always keeps at least the whole size."""


@dataclass(frozen=True)
class Influence:
    """What training on each of n prompts does to the refusal of each other one, and of harmful prompts."""

    vectors: np.ndarray[Any, Any]
    """(n, d): the gradient of the log-odds of refusal, `influence.refusal_gradients`."""
    log_odds: np.ndarray[Any, Any]
    """(n,): of refusal, nats."""
    harmful: Mapping[str | None, np.ndarray[Any, Any]]
    """language → mean gradient of its harmful prompts, (d,); None: of all, for languages that have none."""

    @classmethod
    def of(
        cls, vectors: np.ndarray[Any, Any], log_odds: np.ndarray[Any, Any], languages: Sequence[str], n: int
    ) -> "Influence":
        """Return the influence among the first n prompts; the others are the harmful ones.

        Args:
            vectors: Gradients of all prompts, (n + n_harmful, d).
        """
        harmful, spoken = vectors[n:], np.array(languages[n:])
        means: dict[str | None, np.ndarray[Any, Any]] = {
            str(language): harmful[spoken == language].mean(axis=0) for language in np.unique(spoken)
        }
        if len(harmful):
            means[None] = harmful.mean(axis=0)
        return cls(vectors[:n], log_odds[:n], means)

    def blind_spots(self, languages: Sequence[str]) -> list[str]:
        """Return a line for each thing that it cannot predict.

        Args:
            languages: Languages of its n prompts, all of them refused.
        """
        spoken, seen = np.array(languages, dtype=object), self.log_odds > 0
        found = []
        for language in sorted(set(languages)):
            n, n_seen = int((spoken == language).sum()), int(seen[spoken == language].sum())
            if 2 * n_seen < n:
                found.append(
                    f"{language}: {n_seen} of {n} refused prompts begin as probe.prefixes expects; "
                    f"the effect of training can hardly be predicted there, set probe.prefixes to those of this model"
                )
        lacking = [language for language in sorted(set(languages)) if language not in self.harmful]
        if lacking and None in self.harmful:
            found.append(
                f"{', '.join(lacking)}: no harmful prompt that the model refuses; those of other languages are used"
            )
        elif lacking:
            found.append("no harmful prompt that the model refuses: the effect of training on safety is not predicted")
        return found


@dataclass(frozen=True)
class Cell:
    """One language × category with what it was to give and gave."""

    language: str
    category: str
    quota: int
    n_eligible: int
    n_selected: int

    @property
    def name(self) -> str:
        """Return the cell's name in table `selections`."""
        return f"{self.language}/{self.category}"

    @property
    def reason(self) -> str | None:
        """Say why it fell short, or None where it is filled."""
        if self.n_selected >= self.quota:
            return None
        return f"{self.n_selected} of {self.quota}: {self.n_eligible} eligible after near-duplicates were removed"


def eligible(
    connection: duckdb.DuckDBPyConnection, model_id: str, direction_id: str, config: SelectionConfig, n_cells: int
) -> pa.Table:
    """Return verified-benign refused candidates within width and harm score, closest first, a bounded number per cell.

    Args:
        n_cells: Number of cells among which the size is spread.
    """
    parameters = {
        "model_id": model_id,
        "direction_id": direction_id,
        "width": config.width,
        "max_harm_score": config.max_harm_score,
        "per_cell": max(config.size, CELL_OVERSUPPLY * math.ceil(config.size / max(1, n_cells))),
    }
    return connection.sql(ELIGIBLE, params=parameters).to_arrow_table()


def fill_quotas(
    rows: Sequence[Mapping[str, Any]], influence: Influence, cells: Sequence[tuple[str, str]], size: int
) -> tuple[list[int], list[Cell]]:
    """Return the indices of the chosen rows in the order of choice, and every cell with its quota.

    Prompts are chosen one by one, from the language with the fewest so far, and there from the category with the
    fewest: the prompt that lowers most, by one training step, the refusal that is left after steps on the prompts
    chosen before. Any size is spread evenly; what a cell lacks comes from other cells of its language, then from
    other languages. The first n chosen are the choice for size n.

    Args:
        rows: Eligible prompts with language, category and refusal.
        influence: What training on each does to the others.
        cells: (language, category) among which the size is spread.
        size: Prompts to choose.
    """
    number_of = {cell: number for number, cell in enumerate(cells)}
    cell_of = np.array([number_of.get((row["language"], row["category"]), -1) for row in rows], dtype=int)
    training = LinearizedTraining(
        influence, [row["language"] for row in rows], np.array([row["refusal"] for row in rows])
    )
    scores = [row.get("harm_score") for row in rows]
    harm = np.array([np.inf if score is None else score for score in scores], np.float64)
    chosen = _spread(cell_of, cells, training, size, harm)
    n_selected = dict(zip(cells, np.bincount(cell_of[chosen], minlength=len(cells)).tolist(), strict=True))
    quotas = _quotas(n_selected, size)
    report = [Cell(*cell, quotas[cell], int((cell_of == number_of[cell]).sum()), n_selected[cell]) for cell in cells]
    return chosen, report


def _quotas(n_selected: Mapping[tuple[str, str], int], size: int) -> dict[tuple[str, str], int]:
    """Return the size spread over languages, and of each over its cells."""
    of_language: dict[str, dict[tuple[str, str], int]] = {}
    for cell, n in n_selected.items():
        of_language.setdefault(cell[0], {})[cell] = n
    shares = _shares(size, {language: sum(mine.values()) for language, mine in of_language.items()})
    return {cell: n for language, mine in of_language.items() for cell, n in _shares(shares[language], mine).items()}


def _shares(total: int, n_selected: Mapping[Any, int]) -> dict[Any, int]:
    """Return a total spread evenly; what does not divide is asked of those that gave most, so that none is missed."""
    base, rest = divmod(total, max(1, len(n_selected)))
    fullest = sorted(n_selected, key=lambda name: -n_selected[name])[:rest]
    return {name: base + (name in fullest) for name in n_selected}


def _spread(
    cell_of: np.ndarray[Any, Any],
    cells: Sequence[tuple[str, str]],
    training: "LinearizedTraining",
    size: int,
    harm: np.ndarray[Any, Any],
) -> list[int]:
    """Pick greedily, language and cell with fewest first, the row that does most; of equal ones the least harmful.

    Args:
        cell_of: Number of each row's cell, −1 where it is in none, (n,).
        harm: Harm score of each row, inf where it is not known, (n,).
    """
    names = sorted({cell[0] for cell in cells})
    language_of = np.array([names.index(cell[0]) for cell in cells] + [-1])[cell_of]
    n_language, n_cell = np.zeros(len(names)), np.zeros(len(cells))
    left = cell_of >= 0
    picked: list[int] = []
    while left.any() and len(picked) < size:
        here = np.flatnonzero(left)
        here = here[n_language[language_of[here]] == n_language[language_of[here]].min()]
        here = here[n_cell[cell_of[here]] == n_cell[cell_of[here]].min()]
        gains = training.gains()[here]
        equal = gains >= gains.max() - EQUAL_GAIN * abs(gains.max())
        best = int(here[equal][np.lexsort((-gains[equal], harm[here[equal]]))[0]])
        training.step(best)
        picked.append(best)
        left[best] = False
        n_language[language_of[best]] += 1
        n_cell[cell_of[best]] += 1
    return picked


class LinearizedTraining:
    """A training on the chosen prompts as the gradients predict it: the model is taken as linear in its weights.

    By choice every prompt moves the weights by as much, so that a steep gradient makes none better, and the whole
    training by a given length, however many are chosen. By as much as it lowers the refusal of
    harmful prompts of a language, the refusal of the benign ones is taken to rise again: what counts is
    over-refusal at equal safety.
    """

    def __init__(self, influence: Influence, languages: Sequence[str], weight: np.ndarray[Any, Any]) -> None:
        """Start with the model as it is.

        Args:
            languages: Languages of the rows.
            weight: How much each row counts, (n,), such as how sure its refusal is.
        """
        self._vectors, self._log_odds, self._weight = influence.vectors, influence.log_odds, weight
        norms = np.linalg.norm(self._vectors, axis=1)
        self._norms = np.where(norms > 0, norms, 1.0)
        names = sorted(set(languages))
        self._number = np.array([names.index(language) for language in languages], dtype=int)
        self._moved, self._n = np.zeros(self._vectors.shape[1], self._vectors.dtype), 0
        everywhere = influence.harmful.get(None, self._moved)
        means = [influence.harmful.get(name, everywhere) for name in names]
        self._harmful = np.array(means, self._vectors.dtype).reshape(len(names), len(self._moved))
        self._length = self._to_answers() if len(languages) else 0.0

    def _to_answers(self) -> float:
        """Return how far a training on all rows moves until they are answered as surely as they are refused now.

        Only rows that the prefixes count as refused show it; with none there is no training to predict.
        """
        is_refused = self._log_odds > 0
        if not is_refused.any():
            return 0.0
        mean = (self._vectors / self._norms[:, None]).mean(axis=0)
        a_step = float((self._vectors[is_refused] @ mean).mean())
        return 2 * float(self._log_odds[is_refused].mean()) / a_step if a_step > 0 else 0.0

    def gains(self) -> np.ndarray[Any, Any]:
        """Return what a further step on each row would gain, (n,): the fall of Σ weight · log(1 + e^log-odds)."""
        moved = self._length * self._moved / max(1, self._n)
        remaining = self._log_odds - self._vectors @ moved + (self._harmful @ moved)[self._number]
        slope = (self._weight * (1 + np.tanh(remaining / 2)) / 2).astype(self._vectors.dtype)
        by_language = np.bincount(self._number, slope, minlength=len(self._harmful))
        wanted = slope @ self._vectors - by_language @ self._harmful
        found: np.ndarray[Any, Any] = (self._vectors @ wanted) / self._norms
        return found

    def step(self, row: int) -> None:
        """Train on a row."""
        self._moved += self._vectors[row] / self._norms[row]
        self._n += 1
