"""Models side by side, from real lakes: which rows count, what a terminal shows, what is reported in one line."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rass_core.errors import LakeError
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Lake
from rass_core.report.side_by_side import COLUMNS, RATE_COLUMNS, beside, compare_models, told_side_by_side
from rass_core.text import digest
from rass_core.vocabulary import Row
from tests.report_pages import boundary


def rate(model: str, language: str, column: str, value: float, **changes: Any) -> Row:
    metric, dataset = RATE_COLUMNS[column]
    return {
        "model_id": model, "variant": "base", "dataset": dataset, "language": language, "metric": metric,
        "value": value, "low": value - 0.1, "high": value + 0.1, "n": 50, **changes,
    }  # fmt: skip


def probed(lake: Lake, run_id: str, boundaries: list[Row], evaluations: list[Row]) -> None:
    """Commit what a probe of one model writes."""
    rows = {"boundaries": boundaries, "evaluations": evaluations}
    lake.commit(
        run_id,
        digest(run_id, repr(boundaries)),
        {name: pa.Table.from_pylist(found, schema=TABLES[name]) for name, found in rows.items()},
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake.open(tmp_path / "lake")
    for model, b in (("careful", -0.3), ("lenient", 0.1)):
        probed(
            lake,
            f"run-{model}",
            [boundary("de", b, 0.4, model_id=model), boundary("en", b + 0.02, 0.4, model_id=model)],
            [
                rate(model, "de", "over_refusal", 0.6),
                rate(model, "de", "safety", 0.9),
                rate(model, "en", "band_share", 0.2),
                rate(model, "en", "over_refusal", 0.5, variant="dpo"),
                rate(model, "de", "over_refusal", 0.3),
            ],
        )
    return lake


def test_a_row_is_a_model_in_a_language_with_its_own_rates(lake: Lake) -> None:
    rows = compare_models(lake)
    assert [(row["model_id"], row["language"]) for row in rows] == [
        ("careful", "de"),
        ("careful", "en"),
        ("lenient", "de"),
        ("lenient", "en"),
    ]
    assert all(tuple(row) == COLUMNS for row in rows)
    german, english = rows[2], rows[3]
    assert (german["b"], german["b_oracle"], german["misalignment"]) == pytest.approx((0.1, 0.4, 0.3))
    assert (german["over_refusal"], german["over_refusal_low"], german["safety"]) == pytest.approx((0.6, 0.5, 0.9))
    assert (english["band_share"], english["over_refusal"], german["band_share"]) == (0.2, None, None)


def test_the_newest_commit_of_each_model_counts(lake: Lake) -> None:
    probed(
        lake,
        "a-later-run",
        [boundary("de", -0.9, 0.4, model_id="careful")],
        [rate("careful", "de", "over_refusal", 0.1)],
    )
    rows = compare_models(lake)
    assert [(row["model_id"], row["language"], round(row["b"], 2)) for row in rows] == [
        ("careful", "de", -0.9),
        ("lenient", "de", 0.1),
        ("lenient", "en", 0.12),
    ]
    assert [row["over_refusal"] for row in rows] == [0.1, 0.6, None]


def test_mitigated_variants_are_not_models(lake: Lake) -> None:
    probed(lake, "fix", [boundary("de", 0.7, 0.4, model_id="careful", variant="dpo")], [])
    assert compare_models(lake)[0]["b"] == -0.3
    rows = [boundary("de", 0.7, 0.4, model_id="m", variant="dpo"), boundary("de", 0.1, 0.4, model_id="m")]
    assert [row["b"] for row in beside(rows, [])] == [0.1]


def test_a_lake_without_two_models_is_reported_in_a_line(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path / "lake")
    with pytest.raises(LakeError, match="no boundary was measured there; `rass probe"):
        compare_models(lake)
    probed(lake, "run", [boundary("de", 0.1, 0.4, model_id="alone")], [])
    with pytest.raises(LakeError, match="has one model, alone, .* add others under `models:`"):
        compare_models(lake)


def test_the_lines_fit_a_terminal_and_a_null_says_why() -> None:
    why = "0 of 150 refused, so that no margin is one at which the model refuses half the time in this language"
    rows = beside(
        [
            boundary("en", -1.0, -0.5, model_id="careful@01234567"),
            boundary("de", None, 0.4, model_id="lenient@89abcdef", reason=why),
        ],
        [rate("lenient@89abcdef", "de", "over_refusal", 0.0), rate("careful@01234567", "en", "safety", 1.0)],
    )
    lines = told_side_by_side(rows)
    assert max(map(len, lines)) <= 80
    said = " ".join(" ".join(lines).split())
    assert f"lenient@89abcdef de not identified: {why}; over 0%, safe –" in said
    assert "en -1.00 [-1.09,-0.91] -0.50 [-0.56,-0.43] 0.50 [0.38,0.62] – – 100% 150" in said
