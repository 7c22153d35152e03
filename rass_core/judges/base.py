"""What a judge is given, what it says, and what it must be."""

from collections.abc import Sequence
from typing import Protocol

from rass_core.vocabulary import Exchange, Verdict


class Judge(Protocol):
    """Batch in, batch out: responses → verdicts."""

    name: str
    languages: frozenset[str] | None
    """Primary tags of the languages it covers; None covers all."""
    tells_partial: bool
    """Whether it knows a partial refusal from a whole one."""

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return one verdict a response, in order."""
        ...
