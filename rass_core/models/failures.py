"""A judge that breaks down is an error, not a rate; one that declines to judge has not broken down."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from rass_core.errors import JudgeError
from rass_core.models.chat_client import NoAnswer, by_reason
from rass_core.vocabulary import Verdict

MAX_FAILED = 0.05
"""Share of responses or prompts on which a judge may fail before its word on the rest is not used either."""


class Failures:
    """Counts on how many a judge failed and what it declined, over as many batches as there are.

    Args:
        n_all: Responses or prompts in all.
        max_share: Share of them on which it may fail.
        setting: Name of that share in the configuration.
    """

    def __init__(self, n_all: int, max_share: float = MAX_FAILED, setting: str = "max_failed_share") -> None:
        self._n_all, self._max_share, self._setting = n_all, max_share, setting
        self._failed: dict[str, list[str]] = defaultdict(list)
        self._declined: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, name: str, verdicts: Sequence[Verdict]) -> None:
        """Count a batch of a judge's verdicts.

        Raises:
            JudgeError: It has failed on more than the share of all, and not just once of several: how often, for what
                reasons, and what to do.
        """
        self._failed[name] += [verdict.reason for verdict in verdicts if verdict.has_failed]
        self._declined[name].update(verdict.declined for verdict in verdicts if verdict.declined is not None)
        n = len(self._failed[name])
        # Of a few asked one may fail; of one asked it may not.
        is_more_than_chance = n > 1 or self._n_all == 1 or self._max_share == 0
        if n > self._max_share * self._n_all and is_more_than_chance:
            raise JudgeError(
                f"{name}: failed on {n} of {self._n_all} ({by_reason(self._failed[name])}), at most "
                f"{self._max_share:.0%} may fail ({self._setting}); nothing is counted from it. Repair it and run "
                "again, or leave it out of the configuration"
            )

    def lines(self, what: str) -> list[str]:
        """Return a line for each judge that gave no verdict on some.

        Args:
            what: Was judged, in the plural.
        """
        lines = []
        for name, failed in self._failed.items():
            parts = [f"{n} {why}" for why, n in sorted(self._declined[name].items())]
            parts += [f"{len(failed)} failed ({by_reason(failed)})"] if failed else []
            if parts:
                lines.append(f"{name}: no verdict on some of {self._n_all:,} {what}: {', '.join(parts)}")
        return lines


def check_failures(name: str, verdicts: Sequence[Verdict]) -> None:
    """Raise where a judge or moderator failed too often on these.

    Raises:
        JudgeError: As `Failures.add`.
    """
    Failures(len(verdicts)).add(name, verdicts)


def no_verdict(answer: NoAnswer, who: str) -> Verdict:
    """Return the verdict where there is no answer.

    Args:
        who: Was asked, judge or moderator.
    """
    if answer.kind == "failed":
        return Verdict("unscored", None, answer.reason, has_failed=True)
    declined = "filtered" if answer.kind == "filtered" else f"{who} declined"
    return Verdict("unscored", None, f"{declined}: {answer.reason}", declined=declined)
