"""The ways of choosing that are compared; all see the same candidates and pay for none of what they know."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rass_core.errors import SelectionError
from rass_core.select.quotas import Influence, LinearizedTraining, fill_quotas

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
    """Log-odds of refusal prefixes against compliance prefixes, nats."""
    distance: Array
    """Margin − b."""
    influence: Influence
    """What training on each does to the others and to the safety anchors."""
    harmful_texts: Sequence[str]
    """Known harmful prompts, from which keywords are drawn."""
    harmless_texts: Sequence[str]
    cells: Sequence[tuple[str, str]]
    """(language, category) of the quotas."""


def rass(pool: Pool, n: int, influence: Influence) -> Array:
    """Return what the project's selection keeps."""
    refused = np.flatnonzero(pool.refused)
    refused = refused[np.argsort(np.abs(pool.distance[refused]), kind="stable")]
    candidates = [pool.candidates[i] for i in refused]
    rows = [{"language": c.language, "category": c.category, "refusal": 1.0} for c in candidates]
    here = Influence(influence.vectors[refused], influence.log_odds[refused], influence.harmful)
    return refused[np.sort(fill_quotas(rows, here, pool.cells, n)[0])]


def meaningless(n: int, rng: np.random.Generator) -> Influence:
    """Return an influence without information: a choice by it is a random draw under the quotas."""
    return Influence(rng.standard_normal((n, 64), dtype=np.float32), np.ones(n), {})


def without_steps(pool: Pool, n: int) -> Array:
    """Return the refused prompts that would each do most as the only one, wherever they lie."""
    refused = np.flatnonzero(pool.refused)
    known = pool.influence
    here = Influence(known.vectors[refused], known.log_odds[refused], known.harmful)
    gains = LinearizedTraining(here, [pool.candidates[i].language for i in refused], np.ones(len(refused))).gains()
    return refused[np.argsort(-gains, kind="stable")[:n]]


def keywords(harmful: Sequence[str], harmless: Sequence[str], n: int = 60) -> set[str]:
    """Return the words that best separate harmful from harmless prompts, by smoothed log-odds."""
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
        found = rass(pool, n, pool.influence)
    elif method == "no_gradients":
        found = rass(pool, n, meaningless(len(everything), rng))
    elif method == "no_diversity":
        found = without_steps(pool, n)
    elif method == "no_harmful":
        found = rass(pool, n, replace(pool.influence, harmful={}))
    elif method == "deepest":
        found = refused[np.argsort(-pool.distance[refused], kind="stable")][:n]
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
ABLATIONS = (
    "no_steering", "no_rounds", "no_diversity", "no_gradients", "no_harmful", "no_safety", "deepest", "near_boundary",
)  # fmt: skip
