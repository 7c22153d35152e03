"""How many prompts of each label the splits of each language hold."""

from collections import Counter

import pyarrow as pa

from rass_core.config import RassConfig
from rass_core.data.prompts import LoadedPrompts
from rass_core.estimate.rows import PlanRow
from rass_core.vocabulary import LABELS

MIN_PER_SPLIT = 20
"""Prompts of a language and label in a split below which the plan warns."""
Splits = dict[str, dict[str, Counter[str]]]
"""language → split → label → number of prompts."""


def count_splits(config: RassConfig, prompts: pa.Table) -> Splits:
    """Return how many prompts of each label each split of each language holds."""
    from rass_core.probe.geometry import SPLITS, split_of  # brings torch

    found: Splits = {}
    for language, label, family in zip(
        *(prompts[name].to_pylist() for name in ("language", "label", "family")), strict=True
    ):
        here = found.setdefault(language, {name: Counter() for name in SPLITS})
        here[split_of(family, config.seed)][label] += 1
    return dict(sorted(found.items()))


def short_of(splits: Splits) -> str:
    """Say which languages have too few prompts of a label in a split."""
    short = [
        f"{language} ({', '.join(f'{n} {label} in {split}' for split, label, n in cells)})"
        for language, by_split in splits.items()
        if (
            cells := [
                (split, label, counts[label])
                for split, counts in by_split.items()
                for label in LABELS
                if counts[label] < MIN_PER_SPLIT
            ]
        )
    ]
    return f"TOO FEW prompts, below {MIN_PER_SPLIT}: {'; '.join(short)}" if short else "enough prompts of each label"


def prompt_rows(loaded: LoadedPrompts, splits: Splits) -> list[PlanRow]:
    """Return how many prompts are read and dropped, and how many each language has by label and split."""
    dropped = ", ".join(f"{n:,} {why}" for why, n in loaded.dropped.items() if n) or "none"
    how = f"read from the sources; dropped: {dropped}"
    if loaded.n_shortened:
        how += f"; {loaded.n_shortened:,} conversations without the turns before the user's last"
    rows = [PlanRow("prompts", f"{loaded.table.num_rows:,}", how)]
    for language, by_split in splits.items():
        here = sum(by_split.values(), Counter[str]())
        missing = [label for label in LABELS if here[label] == 0]
        how = "; ".join(
            f"{split} {'/'.join(str(counts[label]) for label in LABELS)}" for split, counts in by_split.items()
        )
        if missing:
            how = f"no {' and no '.join(missing)} ones: add them for a boundary in {language}"
        rows.append(PlanRow(f"prompts, {language}", ", ".join(f"{here[label]:,} {label}" for label in LABELS), how))
    return rows
