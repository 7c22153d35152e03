"""The lab's given prompts: held-out sentences of every label and language, parallel across languages."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.lab import world
from rass_core.lab.world import Sentence

PROMPTS_PER_LANGUAGE = {"harmful": 60, "harmless": 60, "pseudo_harmful": 140}


def held_out_sentences(n_by_label: dict[str, int]) -> Iterator[Sentence]:
    """Yield n held-out sentences of each label in every language, the same families in each."""
    for label, n in n_by_label.items():
        families = sorted(
            (s for s in world.sentences("en") if s.frame == 0 and s.label == label and s.held_out),
            key=lambda s: hashlib.sha256(s.family.encode()).hexdigest(),
        )
        n_frames = len(world.lexicon()["frames"])
        for language in world.languages():
            for sentence in families[-n:]:
                frame = hashlib.sha256(f"{sentence.family}/{language}".encode()).digest()[0] % n_frames
                yield Sentence(language, frame, sentence.verb, sentence.object, sentence.setting)


def write_prompts(path: Path) -> Path:
    """Write the prompt file of the lab."""
    rows = [
        {"text": s.text, "label": s.label, "language": s.language, "category": s.category, "family": s.family}
        for s in held_out_sentences(PROMPTS_PER_LANGUAGE)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    return path
