"""Prompts of known label that the target answers as it should: a training must leave these answers alone."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rass_core.lake.store import Commit
from rass_core.probe.geometry import split_of
from rass_core.vocabulary import Row
from tasks.probed import Probed, outcomes_of
from tasks.session import Session


def anchors(session: Session, probed: Probed, rounds: Sequence[Commit], label: str, word: str) -> list[Row]:
    """Return rows of `prompts` of a label that are so answered, nearest to the boundary first, none of the test split.

    Args:
        word: What the panel says of the answer: refusal, compliance.
    """
    answered: dict[str, str] = {}
    for commit in [probed.responses, *rounds]:
        answered |= outcomes_of(session, commit)
    margins = session.read("margins", probed.boundaries, *rounds).to_pylist()
    distance = {row["prompt_id"]: row["distance"] for row in margins}
    found = {
        row["prompt_id"]: row for row in session.read("prompts", probed.prompts, *rounds).to_pylist()
        if row["label"] == label and answered.get(row["prompt_id"]) == word
        and distance.get(row["prompt_id"]) is not None and split_of(row["family"], session.config.seed) != "test"
    }  # fmt: skip
    return sorted(found.values(), key=lambda row: (abs(distance[row["prompt_id"]]), row["prompt_id"]))


def first_of_each(rows: Sequence[Row], n_of: Mapping[str, int]) -> list[Row]:
    """Return the first n rows of each language."""
    taken: Counter[str] = Counter()
    found = []
    for row in rows:
        if taken[row["language"]] < n_of.get(row["language"], 0):
            taken[row["language"]] += 1
            found.append(row)
    return found
