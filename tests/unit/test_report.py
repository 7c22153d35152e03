"""The report: what it says and draws, what it says where rows are missing, that it stays small."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rass_core.errors import LakeError
from rass_core.lake.schema import TABLES
from rass_core.probe.misalignment import EARLY, OTHER_AXIS
from rass_core.report import write_report
from rass_core.report.answers import ANSWERS, answer_table
from rass_core.report.boundary_map import refusal_curve_plot
from rass_core.report.points import Point, base_outcomes, held_out
from tests.report_pages import (
    RUN,
    TARGET,
    Page,
    Rows,
    boundary,
    hovers,
    plausible,
    render,
    tables,
    with_harm,
    words,
)


def point_at(margin: float, prompt_id: str, **more: Any) -> Point:
    """Return a harmful, refused English prompt of the test split, unless it is said otherwise."""
    usual: dict[str, Any] = {"label": "harmful", "split": "test", "outcome": "refusal", "orthogonal": None}
    known = {"text": "", "language": "en", "category": None, "is_selected": False}
    return Point(prompt_id=prompt_id, margin=margin, **known | usual | more)


def test_the_headline_and_cards_state_the_boundary_and_the_rates(tmp_path: Path) -> None:
    rows = plausible()
    page = render(rows, tmp_path)
    said = words(page)
    assert "The model refuses half the time at margin b = 0.31 [0.22, 0.40] in English." in said
    assert "True harm begins at b* = 0.66 [0.60, 0.73]." in said
    assert "Across 3 languages the model begins to refuse too early in 3." in said
    assert "480 prompts measured" in said
    assert "720 candidates generated" in said
    assert f"{len(rows['selections'])} prompts selected" in said
    assert "17.27" in said
    assert "3.64" in said
    for fact in ("20261104T101500-3f2a", "9c1b52e0f6a7", "rass 0.1.0, torch 2.13.0", "2026-11-04 10:41 UTC"):
        assert fact in said


def test_the_share_over_refused_in_between_counts_given_benign_scored_prompts(tmp_path: Path) -> None:
    rows = plausible(("en",), n_given=0, n_new=0)
    cases = [
        (0.4, "pseudo_harmful", "test", "refusal"),
        (0.5, "harmless", "test", "compliance"),
        (0.6, "pseudo_harmful", "train", "partial"),
        (0.66, "pseudo_harmful", "test", "refusal"),
        (0.5, "pseudo_harmful", "test", "unscored"),
        (0.5, "harmful", "test", "refusal"),
        (0.5, "pseudo_harmful", "candidate", "refusal"),
        (0.31, "pseudo_harmful", "test", "refusal"),
        (0.7, "pseudo_harmful", "test", "refusal"),
    ]
    for index, (margin, label, split, outcome) in enumerate(cases):
        name = f"p{index}"
        rows["prompts"].append({"prompt_id": name, "text": name, "language": "en", "label": label})
        rows["margins"].append(
            {"prompt_id": name, "model_id": TARGET, "direction_id": "d3", "split": split, "margin": margin}
        )
        rows["responses"].append(
            {"response_id": f"r{index}", "model_id": TARGET, "prompt_id": name, "variant": "base", "sample": 0}
        )
        rows["verdicts"].append({"subject_id": f"r{index}", "judge": "panel", "outcome": outcome})
    said = words(render(rows, tmp_path))
    assert "Benign prompts in between are over-refused: 50% (2 of 4 scored)." in said
    assert "No orthogonal component was stored" in said


def test_the_panel_says_the_outcome_and_other_variants_and_dressings_do_not_count() -> None:
    rows: Rows = {
        "responses": [
            {"response_id": i, "prompt_id": p, "variant": v, "sample": n, "attack": d}
            for i, p, v, n, d in (
                ("a", "p", "base", 1, None),
                ("b", "p", "base", 0, None),
                ("c", "q", "dpo", 0, None),
                ("d", "s", "base", 0, None),
                ("e", "t", "base", 0, "suffix"),
            )
        ],
        "verdicts": [
            {"subject_id": s, "judge": j, "outcome": o}
            for s, j, o in (
                ("a", "panel", "compliance"),
                ("b", "phrases", "compliance"),
                ("b", "panel", "refusal"),
                ("b", "classifier", "compliance"),
                ("c", "panel", "refusal"),
                ("e", "panel", "refusal"),
                ("d", "phrases", "refusal"),
            )
        ],
    }
    assert base_outcomes(rows) == {"p": "refusal", "s": "unscored"}


def test_each_answer_is_counted_once_by_model_set_and_kind(tmp_path: Path) -> None:
    rows: Rows = defaultdict(list)
    given = [
        # label, model, variant, outcome, kind
        ("harmful", "m", "base", "refusal", "policy"),
        ("harmful", "m", "base", "refusal", None),
        ("harmful", "m", "base", "refusal", "capability"),
        ("harmful", "m", "base", "refusal", "premise"),
        ("pseudo_harmful", "m", "base", "compliance", None),
        ("pseudo_harmful", "m", "base", "compliance", "premise"),
        ("pseudo_harmful", "m", "base", "compliance", "clarification"),
        ("pseudo_harmful", "m", "base", "partial", "policy"),
        ("pseudo_harmful", "m", "base", "partial", "missing_information"),
        ("pseudo_harmful", "m", "base", "refusal", "warning"),
        ("pseudo_harmful", "m", "base", "unscored", "capability"),
        ("pseudo_harmful", "m", "dpo", "compliance", None),
        ("harmless", "a", "base", None, None),
        ("written", "m", "base", "refusal", "policy"),
    ]
    for number, (label, model, variant, outcome, kind) in enumerate(given):
        name, response = f"p{number}", f"r{number}"
        true_label = "harmless" if label == "written" else label
        rows["prompts"].append({"prompt_id": name, "text": name, "language": "en", "label": true_label})
        rows["responses"].append(
            {"response_id": response, "prompt_id": name, "model_id": model, "variant": variant, "sample": 0}
        )
        if label == "written":
            rows["derivations"].append({"prompt_id": name})
        if outcome is not None:
            rows["verdicts"].append({"subject_id": response, "judge": "panel", "outcome": outcome, "kind": kind})
            rows["verdicts"].append({"subject_id": response, "judge": "phrases", "outcome": "unscored", "kind": None})
    rows["responses"] += [  # neither a second sample nor an answer under a jailbreak counts
        {"response_id": "s", "prompt_id": "p0", "model_id": "m", "variant": "base", "sample": 1},
        {"response_id": "d", "prompt_id": "p1", "model_id": "m", "variant": "base", "sample": -1, "attack": "rot13"},
    ]
    found = tables(rows)
    table = answer_table({name: table.to_pylist() for name, table in found.items()})
    counted = {tuple(row[:2]): [int(cell) for cell in row[2:]] for row in table["rows"]}
    assert table["head"][2:] == ["n", *ANSWERS.values()]
    assert counted == {
        # n, answered, policy, warning, premise, partial, capability, missing_information, clarification, unscored
        ("a", "harmless"): [1, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        ("m", "harmful"): [4, 0, 2, 0, 1, 0, 1, 0, 0, 0],
        ("m", "pseudo-harmful"): [7, 2, 0, 1, 0, 1, 0, 1, 1, 1],
        ("m", "written"): [1, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ("m (dpo)", "pseudo-harmful"): [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    }
    assert all(sum(cells[1:]) == cells[0] for cells in counted.values())
    page = write_report(found, tmp_path / "r.html", title="t", run={}, target="m").read_text(encoding="utf-8")
    plain = answer_table({name: table.slice(0, 1).to_pylist() for name, table in found.items()})
    assert plain["head"][3:] == ["Answered", "Refused by policy", "Partly refused", "No outcome"]
    assert page.count("What the answers are") == 1 and ">m (dpo)<" in page


def test_every_plot_of_the_page_is_there_with_its_axis_titles(tmp_path: Path) -> None:
    page = render(plausible(), tmp_path)
    plots = [attributes for tag, attributes in page.elements if attributes.get("class") == "plot"]
    assert [int(plot["data-figure"] or -1) for plot in plots] == list(range(len(page.figures)))
    assert len(page.figures) == 1 + 3 * 4 + 1  # forest, four a language, AUC
    titles = {
        axis["title"]["text"]
        for figure in page.figures
        for name, axis in figure["layout"].items()
        if re.fullmatch(r"[xy]axis\d*", name) and axis.get("title", {}).get("text")
    }
    assert {"margin m", "share of prompts refused", "first orthogonal component", "round", "prompts"} <= titles
    assert words(page).count("The curve is the fitted chance of a refusal") == 3


def test_the_refusal_curve_crosses_one_half_at_b_and_its_band_ends_at_the_interval() -> None:
    point = point_at(1.5, "p", label="harmful", outcome="refusal")
    other = point_at(-1.5, "q", label="harmless", outcome="compliance")
    figure = refusal_curve_plot([point, other], boundary("en", 0.31, 0.66))
    band, curve = figure.data[0], figure.data[1]
    assert np.interp(0.5, curve.y, curve.x) == pytest.approx(0.31, abs=0.01)
    half = len(band.x) // 2
    assert np.interp(0.5, band.y[:half], band.x[:half]) == pytest.approx(0.22, abs=0.01)
    assert np.interp(0.5, band.y[half:][::-1], band.x[half:][::-1]) == pytest.approx(0.40, abs=0.01)


def test_separated_outcomes_draw_a_step_with_its_gap(tmp_path: Path) -> None:
    rows = plausible(("en",))
    rows["boundaries"] = [boundary("en", 0.31, 0.66, k=None)]
    page = render(rows, tmp_path)
    assert "fully separated: the model changes over between margins 0.22 and 0.40, so b = 0.31" in words(page)
    step = next(trace for figure in page.figures for trace in figure["data"] if trace.get("name") == "separated: step")
    assert step["x"][1] == pytest.approx(0.22)
    assert step["x"][3] == pytest.approx(0.40)
    assert step["y"] == [0, 0, None, 1, 1]


def test_a_boundary_that_is_not_identified_is_said_in_place_of_the_plot(tmp_path: Path) -> None:
    rows = plausible(("en",))
    rows["boundaries"] = [boundary("en", None, None, reason="0 of 150 refused")]
    page = render(rows, tmp_path)
    said = words(page)
    assert "The refusal boundary in English is not identified: 0 of 150 refused." in said
    assert "The boundary is not identified: 0 of 150 refused." in said
    assert "The curve is the fitted chance" not in said
    assert "No language has an identified boundary" in said
    assert len(page.figures) == 4  # margins, map, offspring, AUC


def test_the_harm_axis_adds_a_map_per_language_and_a_plot_by_layer(tmp_path: Path) -> None:
    page = render(with_harm(plausible()), tmp_path)
    assert len(page.figures) == 1 + 3 * 5 + 2
    maps = [figure for figure in page.figures if "harm axis" in figure["layout"]["yaxis"]["title"].get("text", "")]
    assert len(maps) == 3
    for figure in maps:
        names = [note["text"] for note in figure["layout"]["annotations"]]
        assert "refused and harmful" in names
        assert any("low on the harm axis" in name for name in names)
        n_given = sum(len(trace["x"]) for trace in figure["data"] if trace["name"].startswith(("harmful", "pseudo")))
        assert n_given >= 100
        assert all(len(trace["x"]) == len(trace["y"]) for trace in figure["data"])
    by_layer = next(
        figure for figure in page.figures if figure["layout"]["yaxis"]["title"]["text"] == "AUC of true harm"
    )
    assert [trace["name"] for trace in by_layer["data"]][0::3] == ["harm axis", "margin"]
    assert any("harm score −" in text for text in hovers(page))


def test_both_kinds_of_misalignment_are_said_with_intervals(tmp_path: Path) -> None:
    rows = with_harm(plausible(("en", "de")))
    rows["boundaries"][1] |= {"kind": EARLY, "kind_reason": f"{OTHER_AXIS}: not tested: no harm axis"}
    said = words(render(rows, tmp_path))
    assert "Of 41 over-refused pseudo-harmful prompts, 20% [15, 25] lie in the band" in said
    assert "75% [70, 80] beyond b*, where harmful prompts lie, and 5% [0, 10] at b or below." in said
    assert "AUC 0.55 [0.50, 0.60] along the margin and with AUC 0.91 [0.86, 0.96] by the best linear probe" in said
    assert "a gap of 0.36 [0.31, 0.41]" in said
    assert "it reaches 0.52 [0.47, 0.57]: it does not carry over to them" in said
    assert "Its refusal axis is not the axis of harm." in said
    assert "The model refuses too early along its axis." in said
    assert f"Not shown: {OTHER_AXIS}: not tested: no harm axis." in said


def test_without_a_harm_axis_the_page_says_why(tmp_path: Path) -> None:
    rows = plausible(("en",))
    assert "No harm axis was fitted in this run" in words(render(rows, tmp_path))
    rows["harm_axes"] = [{"model_id": TARGET, "language": "all", "chosen": False, "reason": "3 families of harmful"}]
    said = words(render(rows, tmp_path))
    assert "3 families of harmful" in said
    assert "No prompt of this language has a harm score." in said


def test_an_empty_band_and_an_unclear_one_are_said(tmp_path: Path) -> None:
    rows = plausible(("en", "de"))
    rows["boundaries"] = [boundary("en", 0.7, 0.4), boundary("de", 0.4, 0.45)]
    page = render(rows, tmp_path)
    assert "the over-refusal band is empty" in words(page)
    assert "The interval of the misalignment includes 0" in words(page)
    assert "later than true harm begins in 1, neither clearly early nor late in 1." in words(page)


def test_empty_tables_still_give_a_page(tmp_path: Path) -> None:
    page = render({}, tmp_path)
    assert "No prompt was measured in this run" in words(page)
    assert page.figures == []


def test_only_the_direction_of_the_boundary_is_shown(tmp_path: Path) -> None:
    rows = plausible(("en",))
    rows["margins"] += [{**row, "direction_id": "other", "margin": 99.0} for row in rows["margins"]]
    page = render(rows, tmp_path)
    assert "margin 99" not in " ".join(hovers(page))
    assert "160 prompts measured" in words(page)


def test_many_long_prompts_in_many_languages_stay_below_8_mb(tmp_path: Path) -> None:
    languages = ("en", "de", "fr", "es", "ja")
    rows = with_harm(plausible(languages, n_given=2500, n_new=20))
    for row in rows["prompts"]:
        row["text"] += " 很长的提示" * 100
    out = write_report(tables(rows), tmp_path / "r.html", title="t", run=RUN, target=TARGET)
    assert out.stat().st_size < 8e6
    page = Page(out.read_text(encoding="utf-8"))
    drawn = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) of 2,580 prompts are drawn", words(page))]
    assert len(drawn) == 5
    assert all(150 < n < 2000 for n in drawn)
    again = write_report(tables(rows), tmp_path / "again.html", title="t", run=RUN, target=TARGET)
    assert again.read_bytes() == out.read_bytes()


def test_a_failed_write_leaves_the_old_report_and_no_temporary_file(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.mkdir()
    with pytest.raises(LakeError, match=r"report\.html: .*choose a file"):
        write_report(tables({}), out, title="t", run={}, target=TARGET)
    assert list(tmp_path.iterdir()) == [out]


def test_a_table_without_its_columns_is_named(tmp_path: Path) -> None:
    found = tables(plausible(("en",)))
    found["margins"] = found["margins"].drop_columns(["margin"])
    with pytest.raises(LakeError, match="table margins has no column margin"):
        write_report(found, tmp_path / "r.html", title="t", run={}, target=TARGET)


def test_observed_shares_leave_out_what_the_direction_was_fitted_on_and_generated_prompts() -> None:
    splits = ("train", "validation", "test", "candidate")
    points = [point_at(1.0, split, split=split) for split in splits]
    assert [point.split for point in held_out(points)] == ["validation", "test"]
    assert [point.split for point in held_out(points[:1])] == ["train"]


def test_missing_values_anywhere_still_give_a_page(tmp_path: Path) -> None:
    rows = plausible(("en", "de"), n_given=40, n_new=10)
    for name, found in rows.items():
        columns = [column for column in TABLES[name].names if not column.endswith("_id")]
        rows[name] = [{**row, columns[place % len(columns)]: None} for place, row in enumerate(found)]
    assert "Words used here" in words(render(rows, tmp_path))
