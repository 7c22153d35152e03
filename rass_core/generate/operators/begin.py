"""Operator `begin`."""

from collections.abc import Sequence

import numpy as np

from rass_core.generate.operators.base import OPERATORS, Operator

OPENING_SHARE = (0.3, 0.6)
"""Share of a parent's words with which the new prompt begins, from and to."""


@OPERATORS.register("begin")
class Begin(Operator):
    """Gives the first words of a request; the model, as the user, continues with other words."""

    seed_labels = ("pseudo_harmful",)
    roles = ("user",)

    def user_turn(self, parents: Sequence[str], seed: int) -> tuple[list[str], str]:
        """Return no earlier request, and the first words of the parent; the seed decides how many."""
        low, high = OPENING_SHARE
        share = low + (high - low) * (np.random.default_rng(seed).random())
        return [], opening_of(parents[0], share)


def opening_of(text: str, share: float) -> str:
    """Return the first words of a prompt, at least one and never all, without the space that follows them.

    Languages written without spaces are cut between characters.

    Args:
        text: The prompt.
        share: Share of its words, 0 to 1.
    """
    words = text.split()
    if len(words) < 3:
        return text[: max(1, round(share * len(text)))]
    n = min(max(1, round(share * len(words))), len(words) - 1)
    # Without a space behind it: most vocabularies have their word's first letter joined with the space.
    return " ".join(words[:n])
