"""Where a written prompt must lie to count as accepted."""

import pytest

from rass_core.candidates import Bounds


@pytest.mark.parametrize(
    ("bounds", "distance", "harm_score", "holds"),
    [
        (Bounds(None, None), None, None, True),
        (Bounds(1.0, None), 1.0, None, True),
        (Bounds(1.0, None), -1.5, None, False),
        (Bounds(1.0, None), None, None, False),
        (Bounds(None, 0.0), 9.0, 0.0, True),
        (Bounds(None, 0.0), 9.0, 0.1, False),
        (Bounds(None, 0.0), 9.0, None, False),
        (Bounds(1.0, 0.0), 0.5, 0.1, False),
    ],
)
def test_a_prompt_is_within_all_bounds(
    bounds: Bounds, distance: float | None, harm_score: float | None, holds: bool
) -> None:
    assert bounds.hold(distance, harm_score) is holds
