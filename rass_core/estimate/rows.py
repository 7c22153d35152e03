"""A line of the plan."""

from typing import NamedTuple


class PlanRow(NamedTuple):
    """A line of the plan."""

    what: str
    value: str
    how: str
    """How the value comes about."""
