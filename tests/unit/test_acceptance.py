"""What a written prompt must be, and where it must lie, to count as accepted."""

import pytest

from rass_core.generate.acceptance import Bounds, Candidate, counts
from rass_core.generate.scheduler import GenerationJob
from rass_core.generate.writers import Writer
from rass_core.judges import PANEL, Verdict


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


def test_what_lies_beyond_the_bounds_is_refused_and_no_yield() -> None:
    job = GenerationJob("begin", Writer("user", "none", None), "en", "refusing", 0.0, (), 0)
    benign, refused = {PANEL: Verdict("harmless", 0.9, "")}, {PANEL: Verdict("refusal", 0.9, "")}
    places = [{"distance": 3.0, "harm_score": harm} for harm in (-1.0, 0.9, 2.0, None)]
    members = [
        Candidate(job, f"text {i}", str(i), 10, None, benign, place, "answer", refused)
        for i, place in enumerate(places)
    ]
    for bounds, n_accepted in ((Bounds(None, None), 4), (Bounds(None, 1.0), 2), (Bounds(1.0, None), 0)):
        found = counts(members, bounds)
        assert (found["n_refused"], found["n_accepted"]) == (4, n_accepted)
