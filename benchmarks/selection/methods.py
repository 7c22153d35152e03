"""The ways of choosing that are compared; all see the same candidates and pay for none of what they know."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rass_core.config import SelectionConfig
from rass_core.errors import SelectionError
from rass_core.selection import fill_quotas

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Candidate:
    """A verified-benign prompt that may be trained on."""

    prompt_id: str
    text: str
    language: str
    category: str
    operator: str
    label: str
    steered: bool = False


@dataclass(frozen=True)
class Pool:
    """The candidates of one seed with what was measured on them; arrays have a row a candidate."""

    candidates: Sequence[Candidate]
    refused: Array
    """bool: what the judges say of the model's own answer."""
    log_odds: Array
    """Of a refusal's opening against a compliance's, nats."""
    distance: Array
    """Margin − b."""
    vectors: Array
    """Residual streams with the direction taken out, (n, d_model)."""
    harmful_texts: Sequence[str]
    """Known harmful prompts, from which keywords are drawn."""
    harmless_texts: Sequence[str]
    cells: Sequence[tuple[str, str, str]]
    """(language, category, operator) of the quotas."""


def rass(pool: Pool, n: int, config: SelectionConfig | None = None) -> Array:
    """Return what the project's selection keeps."""
    settings = (config or SelectionConfig()).model_copy(update={"size": n})
    near = np.flatnonzero(pool.refused & (np.abs(pool.distance) <= (settings.width or np.inf)))
    near = near[np.argsort(np.abs(pool.distance[near]), kind="stable")]
    rows = [
        {
            "prompt_id": c.prompt_id, "language": c.language, "category": c.category, "operator": c.operator,
            "distance": float(pool.distance[i]), "refusal": 1.0,
        }
        for i in near
        for c in [pool.candidates[i]]
    ]  # fmt: skip
    chosen, _ = fill_quotas(rows, pool.vectors[near], pool.cells, settings)
    return near[chosen]


def keywords(harmful: Sequence[str], harmless: Sequence[str], n: int = 60) -> set[str]:
    """Return the words that most tell harmful prompts from harmless ones, by smoothed log-odds."""
    counts = [Counter(word for text in side for word in set(words(text))) for side in (harmful, harmless)]
    seen = [word for word, count in counts[0].items() if count >= 3]
    odds = {
        word: np.log((counts[0][word] + 0.5) / (len(harmful) + 1))
        - np.log((counts[1][word] + 0.5) / (len(harmless) + 1))
        for word in seen
    }
    return set(sorted(odds, key=lambda word: (-odds[word], word))[:n])


def words(text: str) -> list[str]:
    """Return the words of a text; each Chinese character and each pair of them counts as one."""
    found = re.findall(r"[^\W\d_]+", text.lower())
    han = [run for word in found for run in re.findall(r"[\u4e00-\u9fff]+", word)]
    return found + [run[i : i + 2] for run in han for i in range(len(run) - 1)]


def choose(method: str, pool: Pool, n: int, seed: int) -> Array:
    """Return the indices of n candidates by a method; a pool that holds fewer gives all it has.

    Raises:
        SelectionError: An unknown method, or nothing to choose from.
    """
    rng = np.random.default_rng([seed, 1])
    refused = np.flatnonzero(pool.refused)
    everything = np.arange(len(pool.candidates))
    if method == "rass":
        found = rass(pool, n)
    elif method == "no_diversity":
        found = refused[np.argsort(-pool.distance[refused], kind="stable")][:n]
    elif method == "no_depth":
        found = rass(pool, n, SelectionConfig(depth_power=0.0))
    elif method == "near_boundary":
        found = refused[np.argsort(np.abs(pool.distance[refused]), kind="stable")][:n]
    elif method == "random_benign":
        found = rng.permutation(everything)[:n]
    elif method == "random_refused":
        found = rng.permutation(refused)[:n]
    elif method == "keyword":
        known = keywords(pool.harmful_texts, pool.harmless_texts)
        hit = [i for i in everything if known & set(words(pool.candidates[i].text))]
        found = rng.permutation(np.array(hit, dtype=int))[:n]
    elif method == "most_refused":
        found = refused[np.argsort(-pool.log_odds[refused], kind="stable")][:n]
    elif method == "uncertainty":
        found = everything[np.argsort(np.abs(pool.log_odds), kind="stable")][:n]
    elif method == "rewriting":
        plain = [i for i, c in enumerate(pool.candidates) if c.operator == "rewrite" and not c.steered]
        found = rng.permutation(np.array(plain, dtype=int))[:n]
    else:
        raise SelectionError(f"method {method!r}: it is one of {', '.join(MAIN + ABLATIONS)}")
    if not len(found):
        raise SelectionError(f"{method}: the pool of {len(pool.candidates)} holds nothing for it; enlarge it")
    return found


MAIN = (
    "rass", "random_benign", "random_refused", "keyword", "most_refused", "rewriting", "uncertainty",
)  # fmt: skip
ABLATIONS = ("no_steering", "no_rounds", "no_diversity", "no_depth", "near_boundary", "no_safety")
