"""The harm axis on streams in which it is known where harm lies, and where only the style of sources does."""

from dataclasses import replace

import numpy as np
import pytest

from rass_core.probe.geometry import ProbeData
from rass_core.probe.harm_axis import measure_harm, n_steps
from rass_core.probe.harm_fit import MIN_FAMILIES, HarmData, fit_logistic
from rass_core.probe.harm_types import HarmAxis, HarmReport
from rass_core.vocabulary import ALL

D_MODEL = 24
LAYERS, POSITIONS = [3, 5], [-2, -1]
HARM_AT = (5, -2)
"""Where harm can be read; elsewhere there is noise."""


def planted(
    n: int = 320, shift: float = 3.0, languages: tuple[str, ...] = ("en",), seed: int = 0, style: float = 0.0
) -> tuple[ProbeData, list[str], np.ndarray]:
    """ProbeData, sources, and margins that know nothing of harm.

    Harm lies along the first coordinate at one place. With a style each class has sources of its own, known by other
    coordinates.
    """
    rng = np.random.default_rng(seed)
    labels = np.array(["harmful", "pseudo_harmful", "harmless", "pseudo_harmful"])[np.arange(n) % 4]
    spoken = np.array(languages)[np.arange(n) // 4 % len(languages)]
    streams = rng.normal(size=(n, 2, 2, D_MODEL)).astype(np.float32)
    streams[:, 1, 0, 0] += shift * (labels == "harmful")
    for number, language in enumerate(languages):
        streams[spoken == language] += 5.0 * number  # languages lie far apart
    sources = ["one"] * n
    if style:
        which = rng.integers(0, 2, n)
        sources = [f"{label}-{number}" for label, number in zip(labels, which, strict=True)]
        for place, source in enumerate(sorted(set(sources))):
            streams[np.array(sources) == source, :, :, 4 + place] += style
    ids = [f"{number:04d}" for number in range(n)]
    data = ProbeData(
        prompt_ids=ids,
        labels=labels,
        languages=spoken,
        families=np.array([f"family {number // 2}" for number in range(n)]),
        refused=np.zeros(n),
        activations=streams,
        layers=LAYERS,
        positions=POSITIONS,
        seed=0,
    )
    return data, sources, rng.normal(size=n)


def measured(data: ProbeData, sources: list[str], margins: np.ndarray) -> HarmReport:
    return measure_harm(data, sources, margins, lambda layer: margins, (3, -1), 100)


@pytest.fixture(scope="module")
def report() -> HarmReport:
    return measured(*planted())


def test_the_axis_is_found_where_harm_lies(report: HarmReport) -> None:
    assert report.axis is not None
    assert (report.axis.layer, report.axis.position) == HARM_AT
    vector = report.axis.vectors["en"]
    assert np.abs(vector).argmax() == 0
    assert vector[0] / np.linalg.norm(vector) > 0.75


def test_its_figures_are_those_of_the_planted_shift(report: HarmReport) -> None:
    """Two normals three apart have an AUC of 0.983; the margin knows nothing."""
    figures = report.figures["en"]
    assert figures.axis.value == pytest.approx(0.97, abs=0.03)
    assert figures.margin.low < 0.5 < figures.margin.high  # type: ignore[operator]
    assert figures.gap.low > 0.2  # type: ignore[operator]
    assert figures.axis.n == figures.gap.n
    assert figures.same_source.value == figures.axis.value, "there is one source"


def test_harm_scores_have_the_scale_of_a_margin(report: HarmReport) -> None:
    data = planted()[0]
    for label, middle in (("harmful", 1.0), ("pseudo_harmful", -1.0)):
        for split in ("train", "validation", "test"):
            here = (data.labels == label) & (data.splits == split)
            assert report.scores[here].mean() == pytest.approx(middle, abs=0.35)
    fitted = (data.labels == "harmful") & (data.splits != "test")
    assert report.scores[fitted].mean() == pytest.approx(1.0), "exactly so where the scale comes from"


def test_nothing_is_found_where_there_is_nothing() -> None:
    """24 columns separate noise in the rows of a fit; on others they must not."""
    values = []
    for seed in range(4):
        data, sources, margins = planted(200, 0.0, seed=seed)
        found = measured(data, sources, margins)
        fitted = (data.splits != "test") & (data.labels != "harmless")
        unseen = found.scores[fitted & np.isfinite(found.scores)]
        assert unseen.size == 0 or abs(np.corrcoef(unseen, data.labels[fitted] == "harmful")[0, 1]) < 0.35
        values.append(found.figures[ALL].axis.value)
    assert np.mean([value for value in values if value is not None]) == pytest.approx(0.5, abs=0.1)


def test_scores_of_a_family_do_not_depend_on_its_own_labels() -> None:
    """Out of fold: turning the labels of one family changes the scores of others, hardly those of its own."""
    data, sources, margins = planted(200, 1.0)
    before = measured(data, sources, margins)
    members = np.flatnonzero((data.families == "family 2") & (data.labels != "harmless"))
    in_sample = fit_logistic(  # what a fit that has seen them would do
        _data(data, margins), data.rows(*HARM_AT), np.flatnonzero(data.labels != "harmless"), 1e3
    )[0]
    assert data.splits[members[0]] != "test"
    assert before.axis is not None
    full = before.axis.scores(data.rows(before.axis.layer, before.axis.position), data.languages.tolist())
    assert not np.allclose(before.scores[members], full[members], atol=1e-6), (
        "these would come from a fit that saw them"
    )
    unfitted = data.labels == "harmless"
    np.testing.assert_allclose(before.scores[unfitted], full[unfitted], atol=1e-6)
    assert np.isfinite(in_sample).all()


def _data(data: ProbeData, margins: np.ndarray) -> HarmData:
    nothing = np.zeros(0, np.int64)
    return HarmData(
        labels=data.labels,
        languages=data.languages,
        families=data.families,
        sources=np.full(len(margins), "one"),
        fitting=nothing,
        folds=nothing,
        tested=np.zeros(len(margins), bool),
        n_bootstrap=50,
        seed=0,
        margins=margins,
    )


def test_languages_have_a_scale_each_and_share_the_axis() -> None:
    data, sources, margins = planted(480, languages=("de", "en"))
    found = measured(data, sources, margins)
    assert found.axis is not None
    assert set(found.figures) == {"de", "en", ALL}
    german, english = found.axis.vectors["de"], found.axis.vectors["en"]
    assert german @ english == pytest.approx(np.linalg.norm(german) * np.linalg.norm(english))
    for language in ("de", "en"):
        here = (data.languages == language) & (data.splits == "test") & (data.labels == "pseudo_harmful")
        assert found.scores[here].mean() == pytest.approx(-1.0, abs=0.5), "languages lie 5 deviations apart"
    assert np.isnan(found.axis.scores(data.rows(*HARM_AT)[:2], ["fr", "fr"])).all()


def test_style_of_sources_passes_for_harm_until_they_are_left_out() -> None:
    """Without harm in the streams only the style of the sources separates the classes."""
    data, sources, margins = planted(600, 0.0, style=4.0)
    figures = measured(data, sources, margins).figures[ALL]
    assert figures.axis.value > 0.95  # type: ignore[operator]
    assert figures.new_source.high < 0.75  # type: ignore[operator]
    assert figures.same_source.value is None
    assert "no source holds both classes" in str(figures.same_source.reason)


def test_harm_is_found_on_new_sources_too() -> None:
    data, sources, margins = planted(600, 3.0, style=1.0)
    figures = measured(data, sources, margins).figures[ALL]
    assert figures.new_source.value > 0.9  # type: ignore[operator]
    assert figures.new_source.n == figures.axis.n


def test_one_source_cannot_be_left_out_and_the_reason_names_it(report: HarmReport) -> None:
    found = report.figures["en"].new_source
    assert found.value is None
    assert "harmful: one; pseudo_harmful: one" in str(found.reason)


def test_ties_go_to_the_place_of_the_margin() -> None:
    data, sources, margins = planted()
    both = data.activations.copy()
    both[:, 0, 1] = both[:, 1, 0]  # layer 3, position −1 holds the same
    found = measured(replace(data, activations=both), sources, margins)
    assert found.axis is not None
    assert (found.axis.layer, found.axis.position) == (3, -1)


def test_every_layer_is_reported_and_progress_too() -> None:
    data, sources, margins = planted()
    seen: list[int] = []
    found = measure_harm(data, sources, margins, lambda layer: None, (3, -1), 50, seen.append)
    assert seen == list(range(1, n_steps(data) + 1))
    assert [each.layer for each in found.layers] == LAYERS
    by_layer = {each.layer: each.figures for each in found.layers}
    assert by_layer[5].axis.value == found.figures[ALL].axis.value
    assert by_layer[3].axis.value < 0.75  # type: ignore[operator]
    assert by_layer[3].margin.value is None
    assert found.cv_auc == pytest.approx(0.97, abs=0.03)


def test_wide_streams_give_what_narrow_ones_give() -> None:
    """More columns than rows take the other Gram matrix and the span of the rows; columns of zeros change nothing."""
    data, sources, margins = planted(160)
    wide = np.concatenate([data.activations, np.zeros((160, 2, 2, 400), np.float32)], axis=-1)
    narrow = measured(data, sources, margins)
    padded = measured(replace(data, activations=wide), sources, margins)
    np.testing.assert_allclose(padded.scores, narrow.scores, atol=2e-2)


def test_too_few_prompts_leave_the_margin_alone() -> None:
    data, sources, margins = planted(40)
    found = measured(data, sources, margins)
    assert found.axis is None
    assert f"need {MIN_FAMILIES}" in str(found.reason)
    assert np.isnan(found.scores).all()
    assert found.figures[ALL].axis.value is None
    assert found.figures[ALL].margin.value is not None


def test_an_axis_is_the_same_after_the_lake() -> None:
    report = measured(*planted())
    assert report.axis is not None
    rows = report.axis.columns("model")
    again = HarmAxis.of([*rows, {**rows[0], "chosen": False, "layer": 99}])
    assert again is not None
    streams = planted()[0].rows(*HARM_AT)
    languages = ["en"] * len(streams)
    np.testing.assert_allclose(again.scores(streams, languages), report.axis.scores(streams, languages), atol=1e-4)
    assert HarmAxis.of([{"chosen": False}]) is None
