"""One capture of two places gives margin and harm score alike to reading each place by itself."""

import numpy as np
import pytest

from rass_core.probe import geometry as core
from rass_core.probe.geometry import ProbeData
from rass_core.probe.harm_types import HarmAxis
from rass_core.probe.margin_scale import Gauge, MarginScale

LAYERS, POSITIONS = [2, 4], [-3, -1]


@pytest.fixture
def data() -> ProbeData:
    rng = np.random.default_rng(0)
    labels = np.array(["harmful", "harmless"] * 30)
    streams = rng.normal(size=(60, 2, 2, 6)).astype(np.float32)
    streams[labels == "harmful"] += 1.0
    ids = [f"{number:02d}" for number in range(60)]
    return ProbeData(
        prompt_ids=ids,
        labels=labels,
        languages=np.full(60, "en"),
        families=np.array(ids),
        refused=np.zeros(60),
        activations=streams,
        layers=LAYERS,
        positions=POSITIONS,
        seed=0,
    )


def ruler_at(data: ProbeData, layer: int, position: int) -> MarginScale:
    found = core.candidate_directions(data, ["difference_in_means"])
    here = next(d for d in found if (d.kind, d.layer, d.position) == ("harm", layer, position))
    return MarginScale.of(data, here, "d")


@pytest.mark.parametrize("axis_at", [(4, -3), (2, -1), (2, -3), (4, -1)])
def test_both_places_are_read_from_one_capture(data: ProbeData, axis_at: tuple[int, int]) -> None:
    scale = ruler_at(data, 4, -3)
    axis = HarmAxis(*axis_at, {"en": np.arange(6.0)}, {"en": 0.25})
    gauge = Gauge(scale, axis)
    layers, positions = gauge.places
    assert len(layers) == len({4, axis_at[0]})
    captured = np.stack([[data.rows(layer, position) for position in positions] for layer in layers], 0)
    captured = np.moveaxis(captured, 2, 0)
    places = gauge.place(captured, ["en"] * 60, {"en": 0.5})
    rows = data.rows(4, -3)
    np.testing.assert_array_equal(gauge.streams(captured), rows)
    np.testing.assert_allclose([place["margin"] for place in places], scale.margins(rows, ["en"] * 60))
    np.testing.assert_allclose([place["distance"] + 0.5 for place in places], [place["margin"] for place in places])
    expected = data.rows(*axis_at).astype(np.float64) @ np.arange(6.0) + 0.25
    np.testing.assert_allclose([place["harm_score"] for place in places], expected)


def test_without_an_axis_and_in_other_languages_the_score_is_null(data: ProbeData) -> None:
    gauge = Gauge(ruler_at(data, 2, -1), None)
    assert gauge.places == ([2], [-1])
    captured = data.rows(2, -1)[:2, None, None]
    assert [place["harm_score"] for place in gauge.place(captured, ["en", "en"], {})] == [None, None]
    axis = HarmAxis(2, -1, {"en": np.ones(6)}, {"en": 0.0})
    places = Gauge(ruler_at(data, 2, -1), axis).place(captured, ["en", "fr"], {})
    assert [place["harm_score"] is None for place in places] == [False, True]
    assert places[1]["margin"] is None
