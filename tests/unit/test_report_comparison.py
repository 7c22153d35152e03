"""Several models on one page: the page is about one, the others are shown beside it."""

from collections import defaultdict
from pathlib import Path

import pytest

from tests.report_pages import HOSTILE, TARGET, Rows, boundary, hovers, plausible, render, words

OTHER = "lab-permissive"


def two_models() -> Rows:
    """The target's rows, after those of another model that refuses much later and was asked the same."""
    rows = defaultdict(list, {name: list(found) for name, found in plausible(("en", "de")).items()})
    for name in ("margins", "directions", "responses", "selections", "rounds", "evaluations"):
        other = [{**row, "model_id": OTHER} for row in rows[name]]
        for row in other:
            row |= {"margin": 77.0, "response_id": "of another", "auc": 0.123, "value": 0.4321, "n_accepted": 9000}
        rows[name] = other + rows[name]
    rows["boundaries"] = [
        boundary("en", 0.91, 0.95, model_id=OTHER),
        boundary("de", None, None, model_id=OTHER, reason="2 of 150 refused"),
        *rows["boundaries"],
    ]
    for language in ("en", "de"):
        for model, value in ((TARGET, 0.62), (OTHER, 0.07)):
            rows["evaluations"].append({
                "model_id": model, "variant": "base", "dataset": "pseudo_harmful", "language": language,
                "metric": "over_refusal_rate", "value": value, "low": value - 0.05, "high": value + 0.05, "n": 80,
            })  # fmt: skip
    return rows


def test_the_page_is_about_the_target_alone(tmp_path: Path) -> None:
    page = render(two_models(), tmp_path)
    said = words(page)
    assert "The model refuses half the time at margin b = 0.31 [0.22, 0.40] in English." in said
    assert "320 prompts measured" in said
    assert "0.123" not in said
    assert "9,000" not in said
    assert "0.4321" not in said
    assert "margin 77" not in " ".join(hovers(page))
    assert f"The rest of this page is about {TARGET}." in said
    other = words(render(two_models(), tmp_path, target=OTHER))
    assert "The model refuses half the time at margin b = 0.91 [0.82, 1.00] in English." in other


def test_models_are_shown_side_by_side_and_a_null_says_why(tmp_path: Path) -> None:
    page = render(two_models(), tmp_path)
    said = words(page)
    assert f"English {TARGET} 0.31 [0.22, 0.40] 0.66 [0.60, 0.73] 0.35 [0.23, 0.47] – 62% [57, 67]" in said
    assert f"English {OTHER} 0.91 [0.82, 1.00] 0.95 [0.89, 1.02] 0.04 [−0.08, 0.16] – 7% [2, 12]" in said
    assert f"German {OTHER} – – – – 7% [2, 12] – – 150 2 of 150 refused" in said
    assert said.index(f"German {TARGET}") < said.index(f"German {OTHER}"), "the target first"
    figure = next(f for f in page.figures if any(t.get("name") == OTHER for t in f["data"]))
    ends = {
        (trace["name"], trace["marker"]["symbol"]): sorted(trace["x"])
        for trace in figure["data"]
        if trace["mode"] == "markers" and trace["x"] != [None]
    }
    assert ends[OTHER, "circle"] == [0.91]
    assert ends[OTHER, "diamond-open"] == [0.95]
    assert ends[TARGET, "circle"] == pytest.approx([0.31, 0.38])
    y = {t["name"]: t["y"][0] for t in figure["data"] if t["mode"] == "markers" and t["marker"]["symbol"] == "circle"}
    assert y[TARGET] != y[OTHER], "one does not hide the other"
    assert figure["layout"]["yaxis"]["ticktext"] == ["English", "German"]


def test_one_model_needs_no_comparison(tmp_path: Path) -> None:
    assert "Models side by side" not in words(render(plausible(), tmp_path))


def test_a_models_name_is_text(tmp_path: Path) -> None:
    rows = two_models()
    for found in rows.values():
        for row in found:
            if row.get("model_id") == OTHER:
                row["model_id"] = HOSTILE
    page = render(rows, tmp_path)
    assert [tag for tag, _ in page.elements].count("script") == 3
    names = [trace.get("name") or "" for figure in page.figures for trace in figure["data"]]
    assert any("&lt;/script" in name for name in names)
    assert not [name for name in names if "<" in name]
