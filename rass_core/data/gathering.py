"""Given prompts as they are read: kept as Arrow, the first of each id, a number of each cell."""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from rass_core.errors import PromptError
from rass_core.lake.schema import TABLES

ROWS_HELD = 4096
"""Prompts that are Python objects at a time; the others are Arrow."""


class GivenPrompt(NamedTuple):
    """A row of the table `prompts`."""

    prompt_id: str
    text: str
    language: str
    label: str
    category: str | None
    source: str
    licence: str | None
    family: str


@dataclass
class FirstLabels:
    """The label that each prompt has where it comes first."""

    said: dict[str, tuple[str, str]] = field(default_factory=dict)
    """prompt_id → label, file."""
    known: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """Each label and file, once for all prompts that have them."""

    def check(self, prompt: GivenPrompt, file: str, place: str) -> None:
        """Note the label of a prompt.

        Raises:
            PromptError: It had another one before.
        """
        here = (prompt.label, file)
        label, first_file = self.said.setdefault(prompt.prompt_id, self.known.setdefault(here, here))
        if label != prompt.label:
            raise PromptError(
                f"{first_file} and {place}: {prompt.text[:60]!r} is {label} in the one and"
                f" {prompt.label} in the other; give it one label"
            )


class GatheredPrompts:
    """Prompts as Arrow, the first one of each id; only the last few are Python objects."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._batches: list[pa.RecordBatch] = []
        self._last: list[GivenPrompt] = []

    def add(self, prompt: GivenPrompt) -> bool:
        """Return whether the prompt is new."""
        if prompt.prompt_id in self._ids:
            return False
        self._ids.add(prompt.prompt_id)
        self._last.append(prompt)
        if len(self._last) == ROWS_HELD:
            self._pack()
        return True

    def add_batch(self, batch: pa.RecordBatch) -> int:
        """Take the prompts of a batch, each id once in it; return how many are there already."""
        ids = batch["prompt_id"].to_pylist()
        is_new = [identity not in self._ids for identity in ids]
        self._ids.update(ids)
        self._batches.append(batch.filter(pa.array(is_new, pa.bool_())))
        return is_new.count(False)

    def batches(self) -> list[pa.RecordBatch]:
        """Return all, in the order in which they came."""
        self._pack()
        return self._batches

    def _pack(self) -> None:
        if self._last:
            schema = TABLES["prompts"]
            columns = zip(*self._last, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
            self._last = []


def sampled(batches: Sequence[pa.RecordBatch], max_per_cell: int | None) -> Sequence[pa.RecordBatch]:
    """Return in each language and label the prompts whose prompt_id has the smallest digest."""
    if max_per_cell is None:
        return batches
    cells: dict[tuple[str, str], list[str]] = {}
    for batch in batches:
        languages, labels, ids = (batch[name].to_pylist() for name in ("language", "label", "prompt_id"))
        for language, label, identity in zip(languages, labels, ids, strict=True):
            cells.setdefault((language, label), []).append(identity)
    chosen = pa.array(
        [each for ids in cells.values() for each in heapq.nsmallest(max_per_cell, ids, key=_sha256)], pa.string()
    )
    return [batch.filter(pc.is_in(batch["prompt_id"], chosen)) for batch in batches]


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
