"""MORBench: a balanced multilingual set of benign prompts near the boundary, each with a harmful contrast.

For every language × category, n benign prompts that lie near the boundary of at least one of several
target models, in equal shares over the strata of the band, and n harmful prompts that differ from
them as little as can be. What cannot be filled is reported, never filled with something else. The
same rows in any order and the same seed give the same bytes.

Source: reconstruction; of arXiv 2505.18325 only the abstract is public.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rass_core.benchmark.matching import Costs, choose_items, equal_shares, match_contrasts
from rass_core.benchmark.settings import MorbenchConfig
from rass_core.benchmark.types import (
    NO_TRAINING,
    Benchmark,
    BenchmarkCandidate,
    BenchmarkCell,
    Check,
    IsIn,
    Item,
    TrainedOn,
)
from rass_core.data.decontamination import NearDuplicates, without_near_duplicates
from rass_core.errors import SelectionError
from rass_core.languages import identification
from rass_core.text import digest, normalise
from rass_core.vocabulary import BENIGN


def build(
    benign: Iterable[BenchmarkCandidate], contrasts: Iterable[BenchmarkCandidate], config: MorbenchConfig, seed: int,
    training: TrainedOn = NO_TRAINING, check: Check | None = None, is_in: IsIn = identification.is_in,
) -> Benchmark:  # fmt: skip
    """Return the benchmark of these candidates; the order in which they are given is of no account.

    Args:
        benign: Verified benign prompts; those that lie near no model's boundary are left out.
        contrasts: Verified harmful prompts, near a boundary or not.
        config: Cells and sizes.
        seed: Decides among prompts that would do equally.
        training: What must not enter.
        check: Asked only about prompts about to enter, such as `BackTranslation`; None asks nothing.
        is_in: A prompt enters only where it is sure of the language.

    Raises:
        SelectionError: A wrong label, a prompt on both sides, or models that not every prompt has.
    """
    sides = _distinct(benign, seed), _distinct(contrasts, seed)
    _check_sides(*sides)
    left_out: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    pools = [_admitted(side, config, training, is_in, left_out) for side in sides]
    by_cell = [_grouped(side) for side in (*sides, _without_twins(pools[0], config, left_out), pools[1])]
    items: list[Item] = []
    cells: list[BenchmarkCell] = []
    for language in sorted(set(config.languages or [each.language for each in sides[0]])):
        keys = [(language, name) for name in sorted(set(config.categories or [each.category for each in sides[0]]))]
        found: dict[tuple[str, str], list[Item]] = {}
        struck: dict[tuple[str, str], dict[str, str]] = {}
        for key in keys:
            found[key], struck[key] = _fill(by_cell[2][key], by_cell[3][key], _entered(found), config, check)
        n_partners = {key: len(by_cell[1][key]) for key in keys}
        if config.borrow_contrasts:
            partners = [each for each in pools[1] if each.language == language]
            for key in [key for key in keys if len(found[key]) < config.n_per_cell]:
                others = {other: made for other, made in found.items() if other != key}
                found[key], struck[key] = _fill(by_cell[2][key], partners, _entered(others), config, check)
                n_partners[key] = sum(each.language == language for each in sides[1])
        for key in keys:
            reasons = left_out[key] + Counter(struck[key].values())
            filled = Counter(item.stratum for item in found[key])
            cells.append(
                BenchmarkCell(
                    language=key[0],
                    category=key[1],
                    wanted=equal_shares(config),
                    filled=tuple(filled[i] for i in range(config.n_strata)),
                    n_benign=len(by_cell[0][key]),
                    n_contrasts=n_partners[key],
                    left_out=dict(sorted(reasons.items())),
                )
            )
            items += [replace(item, contrast=replace(item.contrast, category=key[1])) for item in found[key]]
    return Benchmark(tuple(items), tuple(cells), config, seed)


def _entered(found: Mapping[tuple[str, str], Sequence[Item]]) -> list[str]:
    """Return the contrasts that stand in cells."""
    return [item.contrast.text for items in found.values() for item in items]


def _distinct(candidates: Iterable[BenchmarkCandidate], seed: int) -> list[BenchmarkCandidate]:
    """Return each prompt once, in an order that depends on the seed alone, not on the order of the input."""
    by_id: dict[str, BenchmarkCandidate] = {}
    for candidate in sorted(candidates, key=_canonical):
        by_id.setdefault(candidate.prompt_id, candidate)
    return [by_id[identity] for identity in sorted(by_id, key=lambda each: digest(seed, each))]


def _canonical(candidate: BenchmarkCandidate) -> str:
    positions = [sorted(each.items()) for each in (candidate.margins, candidate.distances)]
    return repr([value for name, value in vars(candidate).items() if name not in ("margins", "distances")] + positions)


def _check_sides(benign: Sequence[BenchmarkCandidate], contrasts: Sequence[BenchmarkCandidate]) -> None:
    for side, labels in ((benign, BENIGN), (contrasts, ("harmful",))):
        for candidate in side:
            if candidate.label not in labels:
                raise SelectionError(
                    f"candidate {candidate.prompt_id}: label {candidate.label!r}, needed is {' or '.join(labels)}; "
                    "move it to the other side"
                )
    both = {each.prompt_id for each in benign} & {each.prompt_id for each in contrasts}
    if both:
        raise SelectionError(f"candidate {min(both)}: given as benign and as harmful; decide which it is")
    models = {frozenset(each.distances) for each in (*benign, *contrasts)}
    if len(models) > 1:
        names = sorted(frozenset.union(*models) - frozenset.intersection(*models))
        raise SelectionError(f"candidates: only some have a margin of {', '.join(names)}; probe all prompts with it")


def _admitted(
    side: Sequence[BenchmarkCandidate],
    config: MorbenchConfig,
    training: TrainedOn,
    is_in: IsIn,
    left_out: dict[tuple[str, str], Counter[str]],
) -> list[BenchmarkCandidate]:
    """Return those that were not trained on and are surely in their language; of the benign, those near a boundary."""
    trained_on = _SeenInTraining(training, config.near_duplicate_jaccard)

    def reason(candidate: BenchmarkCandidate) -> str | None:
        if candidate.label in BENIGN and not candidate.near(config.width):
            return "near no boundary"
        if candidate in trained_on:
            return "trained on"
        spoken = is_in(candidate.text, candidate.language)
        return None if spoken else "in another language" if spoken is False else "of unsure language"

    reasons = [reason(candidate) for candidate in side]
    for candidate, why in zip(side, reasons, strict=True):
        if why is not None:
            left_out[_cell(candidate)][why] += 1
    return [candidate for candidate, why in zip(side, reasons, strict=True) if why is None]


def _without_twins(
    candidates: Sequence[BenchmarkCandidate], config: MorbenchConfig, left_out: dict[tuple[str, str], Counter[str]]
) -> list[BenchmarkCandidate]:
    """Return those that are no near-duplicate of one before."""
    kept = set(without_near_duplicates([normalise(each.text) for each in candidates], config.near_duplicate_jaccard))
    for number, candidate in enumerate(candidates):
        if number not in kept:
            left_out[_cell(candidate)]["near-duplicates"] += 1
    return [candidate for number, candidate in enumerate(candidates) if number in kept]


class _SeenInTraining:
    """Whether a prompt was trained on: by prompt, by family, or as a near-duplicate of a text."""

    def __init__(self, training: TrainedOn, threshold: float) -> None:
        self._identities, self._families = set(training.prompt_ids), set(training.families)
        self._near = NearDuplicates(threshold)
        for number, text in enumerate(training.texts):
            self._near.add(number, _folded(text))

    def __contains__(self, candidate: BenchmarkCandidate) -> bool:
        if candidate.prompt_id in self._identities or candidate.family in self._families:
            return True
        return bool(self._near.like(_folded(candidate.text)))


def _folded(text: str) -> str:
    return normalise(text).casefold()


def _cell(candidate: BenchmarkCandidate) -> tuple[str, str]:
    return candidate.language, candidate.category


def _grouped(side: Sequence[BenchmarkCandidate]) -> dict[tuple[str, str], list[BenchmarkCandidate]]:
    groups: dict[tuple[str, str], list[BenchmarkCandidate]] = defaultdict(list)
    for candidate in side:
        groups[_cell(candidate)].append(candidate)
    return groups


def _fill(
    pool: Sequence[BenchmarkCandidate],
    partners: Sequence[BenchmarkCandidate],
    entered: Sequence[str],
    config: MorbenchConfig,
    check: Check | None,
) -> tuple[list[Item], dict[str, str]]:
    """Choose, match and check until nothing is struck any more; return the pairs, and prompt_id → why struck.

    Near-duplicates among contrasts are struck only where both were to enter: what is least changed must be
    there to choose from.
    """
    struck: dict[str, str] = {}
    passed: set[str] = set()
    costs = Costs(partners)
    while True:
        chosen = choose_items([each for each in pool if each.prompt_id not in struck], config)
        free = [i for i, each in enumerate(partners) if each.prompt_id not in struck]
        pairs = match_contrasts(chosen, free, costs, config.max_change)
        matched = sorted((partners[j] for j in pairs.values()), key=lambda each: each.prompt_id)
        failed = dict.fromkeys(_twins(matched, entered, config.near_duplicate_jaccard), "near-duplicates")
        if check and not failed:
            asked = [each for each in [*(chosen[i].benign for i in pairs), *matched] if each.prompt_id not in passed]
            failed = {each.prompt_id: why for each, why in zip(asked, check(asked), strict=True) if why is not None}
            passed |= {each.prompt_id for each in asked} - set(failed)
        if not failed:  # a contrast may come free while others are struck: so what lacks one comes last
            failed = {p.benign.prompt_id: "without a contrast" for i, p in enumerate(chosen) if i not in pairs}
        if not failed:
            break
        struck |= failed
    items = [
        Item(
            benign=place.benign,
            contrast=partners[j],
            model_id=place.model_id,
            stratum=place.stratum,
            near=place.benign.near(config.width),
            change=round(float(costs.changes(place.benign)[j]), 6),
        )
        for place, j in ((chosen[i], j) for i, j in pairs.items())
    ]
    return sorted(items, key=lambda item: (item.stratum, item.pair_id)), struck


def _twins(matched: Sequence[BenchmarkCandidate], entered: Sequence[str], threshold: float) -> list[str]:
    """Return the ids of those that are a near-duplicate of one before or of a text that entered another cell."""
    texts = [normalise(text) for text in (*entered, *(each.text for each in matched))]
    kept = set(without_near_duplicates(texts, threshold))
    return [each.prompt_id for number, each in enumerate(matched, start=len(entered)) if number not in kept]
