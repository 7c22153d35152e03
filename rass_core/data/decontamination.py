"""Proof that no evaluation prompt was trained on: by text, family, translation or near-duplicate."""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, get_args

from rass_core.errors import PromptError
from rass_core.text import normalise

Reason = Literal["text", "family", "translation", "near_duplicate"]
OVERLAP_REASONS: tuple[Reason, ...] = get_args(Reason)
"""text: the same words, whatever language they are filed under. family: variants of one prompt.
translation: the same `translation_group`. near_duplicate: most character 4-grams in common."""
ROUNDING = 1e-9
"""By so much sums of grams may be off; bounds take it to the safe side."""
_KEY_OF: dict[Reason, str] = {"family": "family", "translation": "translation_group"}


@dataclass(frozen=True)
class Overlap:
    """One evaluation prompt with the training prompt it repeats, and in what."""

    evaluation_id: str
    train_id: str
    """Where several are alike: the most similar, then the first id."""
    reason: Reason
    jaccard: float | None
    """Similarity of a near-duplicate; None for the other reasons."""
    n_train: int
    """Training prompts that are alike for this reason."""


class NearDuplicates:
    """Texts, and which of them a further one nearly repeats: the Jaccard similarity of character 4-grams is exact.

    Two texts of n and m grams that are alike share at least t·max(n, m) of them. So if the grams of all texts are put
    into one order, their first n − ⌈t·n⌉ + 1 and m − ⌈t·m⌉ + 1 have one in common (prefix filter, Chaudhuri et al.
    2006). Only these are indexed, rare grams first: few texts share one, and the time grows with the number of texts.
    """

    def __init__(self, threshold: float) -> None:
        """Take the similarity, in (0, 1], from which two texts count as one."""
        self._threshold = threshold
        self._id_of: dict[str, int] = {}
        """gram → its number."""
        self._n_texts = array("I")
        """By gram: texts that hold it."""
        self._place: list[tuple[int, int]] = []
        """By gram: its place in the order, (texts that held it when the order was made, number)."""
        self._grams: dict[int, array[int]] = {}
        self._size: dict[int, int] = {}
        self._holders: defaultdict[int, list[int]] = defaultdict(list)
        """gram → texts that have it among their first ones."""
        self._n_ordered = 1

    def add(self, number: int, text: str) -> None:
        """Keep a text under a number of its own."""
        ids = array("I", sorted(self._number(gram) for gram in _four_grams(text)))
        for each in ids:
            self._n_texts[each] += 1
        self._grams[number], self._size[number] = ids, len(ids)
        if len(self._grams) > 2 * self._n_ordered:
            self._order_anew()
        else:
            self._index(number)

    def like(self, text: str) -> dict[int, float]:
        """Return the similarity of each text kept that this one nearly repeats."""
        grams = _four_grams(text)
        known, n = {self._id_of[gram] for gram in grams if gram in self._id_of}, len(grams)
        shared_first = Counter[int]()
        # A gram that no text has comes first in the order.
        for gram in self._first(known, self._n_first(n) - (n - len(known))):
            shared_first.update(self._holders.get(gram, ()))
        least, found = cache(partial(self._least_first, n)), {}
        for number, n_first in shared_first.items():
            if n_first >= least(self._size[number]):
                shared = len(known.intersection(self._grams[number]))
                similarity = shared / (n + self._size[number] - shared)
                if similarity >= self._threshold:
                    found[number] = similarity
        return dict(sorted(found.items()))

    def _least_first(self, n: int, m: int) -> float:
        """Return how many of their first grams alike texts of n and m grams share at least; inf where none are alike.

        Behind its first ones, the text for which these end earlier in the order shares no more than it has there.
        """
        t = self._threshold
        if min(n, m) < t * max(n, m):
            return math.inf
        behind = max(n - self._n_first(n), m - self._n_first(m))
        return t / (1 + t) * (n + m) - behind - ROUNDING

    def _number(self, gram: str) -> int:
        """Return the number of a gram, a new one where it has none."""
        number = self._id_of.setdefault(gram, len(self._id_of))
        if number == len(self._place):
            self._n_texts.append(0)
            self._place.append((0, number))
        return number

    def _n_first(self, n: int) -> int:
        """Return how many grams of n are indexed; rounding errors may only add one."""
        return n - math.ceil(self._threshold * n - ROUNDING) + 1

    def _first(self, ids: Iterable[int], n: int) -> list[int]:
        """Return the first n grams in the order."""
        return sorted(ids, key=self._place.__getitem__)[: max(0, n)]

    def _index(self, number: int) -> None:
        ids = self._grams[number]
        for gram in self._first(ids, self._n_first(len(ids))):
            self._holders[gram].append(number)

    def _order_anew(self) -> None:
        """Order the grams by the number of texts that hold them now; done each time the texts have doubled."""
        self._n_ordered = len(self._grams)
        self._place = list(zip(self._n_texts, range(len(self._n_texts)), strict=True))
        self._holders.clear()
        for number in self._grams:
            self._index(number)


def without_near_duplicates(texts: Sequence[str], threshold: float) -> list[int]:
    """Return the indices that stay: each text that is no near-duplicate of one kept before it."""
    kept, found = [], NearDuplicates(threshold)
    for number, text in enumerate(texts):
        if not found.like(text):
            found.add(number, text)
            kept.append(number)
    return kept


def jaccard_of(text: str, other: str) -> float:
    """Return the Jaccard similarity of two texts' character 4-grams, 0 to 1, case ignored."""
    grams, others = _four_grams(text), _four_grams(other)
    return len(grams & others) / len(grams | others)


def overlaps(
    train: Sequence[Mapping[str, Any]], evaluation: Sequence[Mapping[str, Any]], jaccard: float
) -> list[Overlap]:
    """Return in what evaluation prompts repeat training prompts; empty proves the two disjoint.

    Args:
        train: Rows with prompt_id and text, and where known family and translation_group; a null one is alike to none.
        evaluation: The same.
        jaccard: Similarity of character 4-grams from which two prompts count as one, in (0, 1].

    Returns:
        At most one for each evaluation prompt and reason, by evaluation_id and the order of `OVERLAP_REASONS`;
        a prompt of the same text is not named a near-duplicate as well.

    Raises:
        PromptError: A prompt without text, or a similarity outside (0, 1].
    """
    if not 0 < jaccard <= 1:
        raise PromptError(f"disjoint: similarity {jaccard:g} is not in (0, 1]; 0.8 is usual")
    alike = _index(train, jaccard)
    found: dict[tuple[str, int], Overlap] = {}
    for text, rows in _by_text(evaluation, "evaluation").items():
        near = _near(text, alike)
        for row in rows:
            identity = str(row["prompt_id"])
            ids: dict[Reason, dict[str, float | None]] = {"text": dict.fromkeys(alike.ids.get(text, ()))}
            ids |= {
                reason: dict.fromkeys(alike.keys.get((reason, row.get(key)), ())) for reason, key in _KEY_OF.items()
            }
            ids["near_duplicate"] = {} if ids["text"] else near
            for order, reason in enumerate(OVERLAP_REASONS):
                if ids[reason]:
                    first, similarity = min(ids[reason].items(), key=lambda item: (-(item[1] or 0), item[0]))
                    found[identity, order] = Overlap(identity, first, reason, similarity, len(ids[reason]))
    return [found[key] for key in sorted(found)]


def without_overlaps(
    evaluation: Sequence[Mapping[str, Any]], found: Iterable[Overlap]
) -> tuple[list[Mapping[str, Any]], dict[Reason, int]]:
    """Return the evaluation rows that repeat nothing, in their order, and how many went for each reason.

    A row that overlaps in several ways is counted once, under the first of `OVERLAP_REASONS`.
    """
    first: dict[str, Reason] = {}
    for overlap in sorted(found, key=lambda each: OVERLAP_REASONS.index(each.reason)):
        first.setdefault(overlap.evaluation_id, overlap.reason)
    kept = [row for row in evaluation if str(row["prompt_id"]) not in first]
    gone = [first[str(row["prompt_id"])] for row in evaluation if str(row["prompt_id"]) in first]
    return kept, {reason: gone.count(reason) for reason in OVERLAP_REASONS}


@dataclass(frozen=True)
class _Trained:
    """Training prompts, to be found by each way of being alike."""

    ids: dict[str, list[str]]
    """normalised text → prompt ids."""
    texts: list[str]
    """The keys of ids, by their number in near."""
    near: NearDuplicates
    keys: dict[tuple[Reason, Any], list[str]]
    """(reason, family or translation group) → prompt ids."""


def _index(train: Sequence[Mapping[str, Any]], jaccard: float) -> _Trained:
    ids = {text: sorted({str(row["prompt_id"]) for row in rows}) for text, rows in _by_text(train, "training").items()}
    near = NearDuplicates(jaccard)
    for number, text in enumerate(ids):
        near.add(number, text)
    keys: defaultdict[tuple[Reason, Any], list[str]] = defaultdict(list)
    for row in train:
        for reason, key in _KEY_OF.items():
            if row.get(key) not in (None, ""):
                keys[reason, row[key]].append(str(row["prompt_id"]))
    return _Trained(ids, list(ids), near, dict(keys))


def _near(text: str, trained: _Trained) -> dict[str, float | None]:
    """Return training prompt id → similarity."""
    return {
        identity: similarity
        for number, similarity in trained.near.like(text).items()
        for identity in trained.ids[trained.texts[number]]
    }


def _by_text(rows: Sequence[Mapping[str, Any]], where: str) -> dict[str, list[Mapping[str, Any]]]:
    """Return normalised text → its rows."""
    found: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if not row["text"]:
            raise PromptError(
                f"disjoint: {where} prompt {row['prompt_id']} has no text; give it, it cannot be compared"
            )
        found[normalise(row["text"]).casefold()].append(row)
    return found


def _four_grams(text: str) -> set[str]:
    return {text[i : i + 4].casefold() for i in range(max(1, len(text) - 3))}
