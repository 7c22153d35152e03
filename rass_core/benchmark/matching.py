"""Choosing items and matching each with its harmful contrast."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from rass_core.benchmark.settings import MorbenchConfig
from rass_core.benchmark.types import BandPlace, BenchmarkCandidate
from rass_core.stats.arrays import Array
from rass_core.text import digest, normalise

MARGIN_WEIGHT = 0.05
"""What a unit of margin between a prompt and its contrast costs, in changed share of the words: it decides among
contrasts that change equally much."""
MIN_SIMILARITY = 0.5
"""Lowest similarity of a prompt and its back-translation; fewer than 1 in 200 pairs of unrelated prompts reach it."""
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, kana and Han: scripts without spaces, of which each character counts as a word."""


class BackTranslation:
    """A `Check` that translates back what was translated, and compares that with the original.

    Args:
        translate: (texts, language, target) → the texts in the target language.
        is_same: (language, original, back) → whether both ask for the same, such as an oracle; by default
            their character n-grams decide, which see a lost sentence but not one word that turned.
    """

    def __init__(
        self,
        translate: Callable[[Sequence[str], str, str], Sequence[str]],
        is_same: Callable[[str, str, str], bool] | None = None,
    ) -> None:
        self._translate, self._is_same = translate, is_same or _is_similar

    def __call__(self, candidates: Sequence[BenchmarkCandidate]) -> list[str | None]:
        """Return the reason for each that does not come back as it was; what was not translated passes."""
        reasons: list[str | None] = [None] * len(candidates)
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, candidate in enumerate(candidates):
            if candidate.original_language is not None:
                groups[candidate.language, candidate.original_language].append(number)
        for (language, target), numbers in sorted(groups.items()):
            backs = self._translate([candidates[number].text for number in numbers], language, target)
            for number, back in zip(numbers, backs, strict=True):
                if not self._is_same(target, str(candidates[number].original), back):
                    reasons[number] = "changed in back-translation"
        return reasons


def character_similarity(first: str, second: str, n: int = 3) -> float:
    """Return the F1 of the character n-grams, spaces and case left out: 1 for the same text, 0 for nothing shared."""
    grams = []
    for text in (first, second):
        folded = re.sub(r"\W", "", normalise(text).casefold())
        size = min(n, max(1, len(folded)))
        grams.append(Counter(folded[i : i + size] for i in range(len(folded) - size + 1)))
    total = grams[0].total() + grams[1].total()
    return 2 * (grams[0] & grams[1]).total() / total if total else 0.0


def _is_similar(language: str, original: str, back: str) -> bool:
    return character_similarity(original, back) >= MIN_SIMILARITY


def equal_shares(config: MorbenchConfig) -> tuple[int, ...]:
    """Return the pairs that each stratum is to give; what does not divide goes to those nearest the boundary."""
    base, rest = divmod(config.n_per_cell, config.n_strata)
    inner = sorted(range(config.n_strata), key=lambda i: (abs(i - (config.n_strata - 1) / 2), i))[:rest]
    return tuple(base + (i in inner) for i in range(config.n_strata))


def choose_items(pool: Sequence[BenchmarkCandidate], config: MorbenchConfig) -> list[BandPlace]:
    """Return the prompts that fill the strata as far as possible, one per family, models taking turns."""
    strata: dict[int, dict[str, list[BenchmarkCandidate]]] = defaultdict(lambda: defaultdict(list))
    for candidate in pool:
        for model in candidate.near(config.width):
            share = (candidate.distances[model] + config.width) / (2 * config.width)
            strata[min(config.n_strata - 1, int(share * config.n_strata))][model].append(candidate)
    wanted = equal_shares(config)
    chosen: list[BandPlace] = []
    families: set[str] = set()

    def supply(stratum: int) -> tuple[int, int]:
        return len({each.family for candidates in strata[stratum].values() for each in candidates}), stratum

    # The poorest stratum first, so that a family goes where it is needed most.
    for stratum in sorted(strata, key=supply):
        places = [
            [BandPlace(each, model, stratum) for each in candidates]
            for model, candidates in sorted(strata[stratum].items())
        ]
        first, turns = len(chosen), Counter(place.model_id for place in chosen)
        # Who had fewest turns so far comes first; between equals the cell decides, so that no model always does.
        places.sort(key=lambda each: (turns[each[0].model_id], digest(each[0].benign.category, each[0].model_id)))
        for place in _in_turns(places, families):
            if len(chosen) - first == wanted[stratum]:
                break
            chosen.append(place)
    return chosen


def _in_turns(places: Sequence[Sequence[BandPlace]], families: set[str]) -> Iterator[BandPlace]:
    """Yield a place of each sequence in turn whose family is not among those seen, and adds it to them."""
    left = [iter(each) for each in places]
    while left:
        for source in list(left):
            place = next((each for each in source if each.benign.family not in families), None)
            if place is None:
                left.remove(source)
            else:
                families.add(place.benign.family)
                yield place


class Costs:
    """How far every contrast of a cell is from a benign prompt, worked out once a prompt."""

    def __init__(self, partners: Sequence[BenchmarkCandidate]) -> None:
        self._numbers: dict[str, int] = {}
        self._rows = [self._numbered(each.text) for each in partners]
        self._lengths = np.array([len(row) for row in self._rows], dtype=np.int64)
        self._words = np.full((len(partners), max(map(len, self._rows), default=0)), -1, dtype=np.int64)
        for number, row in enumerate(self._rows):
            self._words[number, : len(row)] = row
        self._models = sorted(partners[0].distances) if partners else []
        self._distances = np.array([[each.distances[model] for model in self._models] for each in partners])
        self._known: dict[str, Array] = {}

    def changes(self, candidate: BenchmarkCandidate) -> Array:
        """Return the share of words to change from a prompt to each contrast: edit distance ÷ the longer length."""
        if candidate.prompt_id not in self._known:
            words = self._numbered(candidate.text)
            edits = _edit_distances(np.array(words, dtype=np.int64), self._words, self._lengths)
            self._known[candidate.prompt_id] = edits / np.maximum(self._lengths, max(1, len(words)))
        return self._known[candidate.prompt_id]

    def gaps(self, candidate: BenchmarkCandidate) -> Array:
        """Return the difference in margin to each contrast, mean over the models."""
        here = np.array([candidate.distances[model] for model in self._models])
        gaps: Array = np.abs(self._distances - here).mean(axis=1)
        return gaps

    def _numbered(self, text: str) -> list[int]:
        return [self._numbers.setdefault(word, len(self._numbers)) for word in words_of(text)]


def words_of(text: str) -> list[str]:
    """Return the words of a text without case and punctuation; scripts without spaces give their characters."""
    words = re.findall(r"[^\s.,;:!?…¿¡。，、；：！？\"'’‘“”«»()（）「」]+", normalise(text).casefold())
    return [part for word in words for part in re.findall(rf"[{_UNSPACED}]|[^{_UNSPACED}]+", word)]


def _edit_distances(
    words: npt.NDArray[np.int64], others: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> Array:
    """Return Levenshtein's distance from one row of words to each other row, all rows at once."""
    columns = np.arange(others.shape[1] + 1)
    row = np.tile(columns, (len(others), 1))
    for number, word in enumerate(words, start=1):
        replaced = row[:, :-1] + (others != word)
        best = np.column_stack([np.full(len(others), number), np.minimum(replaced, row[:, 1:] + 1)])
        # An insertion costs 1 a column: the least of all columns to the left, each with its way here.
        row = np.minimum.accumulate(best - columns, axis=1) + columns
    distances: Array = row[np.arange(len(others)), lengths].astype(np.float64)
    return distances


def match_contrasts(
    chosen: Sequence[BandPlace], free: Sequence[int], costs: Costs, max_change: float
) -> dict[int, int]:
    """Return number of the chosen → number of its contrast: as many as can be, then the least cost in all."""
    if not chosen or not free:
        return {}
    changes = np.array([costs.changes(place.benign)[free] for place in chosen])
    gaps = np.array([costs.gaps(place.benign)[free] for place in chosen])
    cost = changes + MARGIN_WEIGHT * np.minimum(1.0, gaps)
    cost[changes > max_change] = (len(chosen) + 1) * (1.0 + MARGIN_WEIGHT)  # dearer than all others together
    rows, columns = linear_sum_assignment(cost)
    return {int(i): free[j] for i, j in zip(rows, columns, strict=True) if changes[i, j] <= max_change}
