"""A judge that breaks down is an error, not a rate."""

from collections.abc import Sequence

from rass_core.errors import JudgeError
from rass_core.judges.verdict import Verdict

MAX_FAILED = 0.05
"""Share of responses or prompts on which a judge may fail before its word on the rest is not used either."""


def check_failures(name: str, verdicts: Sequence[Verdict], limit: float = MAX_FAILED) -> None:
    """Raise where a judge or moderator failed too often.

    Raises:
        JudgeError: With how often, the first reason, and what to do.
    """
    failed = [verdict for verdict in verdicts if verdict.has_failed]
    if len(failed) > limit * len(verdicts):
        raise JudgeError(
            f"{name}: failed on {len(failed)} of {len(verdicts)} ({failed[0].reason}); nothing is counted from it. "
            "Mend it and run again, or leave it out of the configuration"
        )
