"""A judge that breaks down is an error, not a rate."""

from collections import Counter
from collections.abc import Sequence

from rass_core.errors import JudgeError
from rass_core.judges.verdict import Verdict

MAX_FAILED = 0.05
"""Share of responses or prompts on which a judge may fail before its word on the rest is not used either."""


class Failures:
    """Counts on how many a judge failed, over as many batches as there are.

    Args:
        n_all: Responses or prompts in all.
    """

    def __init__(self, n_all: int) -> None:
        self._n_all = n_all
        self._n_failed: Counter[str] = Counter()

    def add(self, name: str, verdicts: Sequence[Verdict]) -> None:
        """Count a batch of a judge's verdicts.

        Raises:
            JudgeError: It has failed on more than a twentieth of all, and not just once of several: how often, a
                reason, and what to do.
        """
        reasons = [verdict.reason for verdict in verdicts if verdict.has_failed]
        self._n_failed[name] += len(reasons)
        n = self._n_failed[name]
        # Of a few asked one may fail; of one asked it may not.
        if n > MAX_FAILED * self._n_all and (n > 1 or self._n_all == 1):
            raise JudgeError(
                f"{name}: failed on {n} of {self._n_all} ({reasons[0]}); nothing is counted from "
                "it. Mend it and run again, or leave it out of the configuration"
            )


def check_failures(name: str, verdicts: Sequence[Verdict]) -> None:
    """Raise where a judge or moderator failed too often on these.

    Raises:
        JudgeError: As `Failures.add`.
    """
    Failures(len(verdicts)).add(name, verdicts)
