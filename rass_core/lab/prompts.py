"""The lab's given prompts: held-out sentences of every label and language, parallel across languages."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.lab import world
from rass_core.lab.world import Sentence

PROMPTS_PER_LANGUAGE = {"harmful": 60, "harmless": 60, "pseudo_harmful": 140}
EVALUATION_PER_LANGUAGE = {"harmful": 205, "harmless": 100, "pseudo_harmful": 51}
"""Prompts of other families than those above; all harmful and pseudo_harmful ones that are left."""


def held_out_sentences(n_by_label: dict[str, int], n_passed_over: dict[str, int] | None = None) -> Iterator[Sentence]:
    """Yield n held-out sentences of each label in every language, the same families in each.

    Args:
        n_by_label: Families to yield.
        n_passed_over: Families that come first and are left to another set.
    """
    for label, n in n_by_label.items():
        families = sorted(
            (s for s in world.sentences("en") if s.frame == 0 and s.label == label and s.held_out),
            key=lambda s: hashlib.sha256(s.family.encode()).hexdigest(),
            reverse=True,
        )
        first = (n_passed_over or {}).get(label, 0)
        n_frames = len(world.lexicon()["frames"])
        for language in world.languages():
            for sentence in reversed(families[first : first + n]):
                frame = hashlib.sha256(f"{sentence.family}/{language}".encode()).digest()[0] % n_frames
                yield Sentence(language, frame, sentence.verb, sentence.object, sentence.setting)


def write_prompts(folder: Path) -> None:
    """Write the prompt files of the lab: the given ones, and those that mitigated models are evaluated on."""
    _write(folder / "prompts.parquet", held_out_sentences(PROMPTS_PER_LANGUAGE))
    _write(folder / "evaluation.parquet", held_out_sentences(EVALUATION_PER_LANGUAGE, PROMPTS_PER_LANGUAGE))


def _write(path: Path, sentences: Iterator[Sentence]) -> None:
    rows = [
        {"text": s.text, "label": s.label, "language": s.language, "category": s.category, "family": s.family}
        for s in sentences
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
