"""The report's section on moderators."""

from typing import Any

from rass_core.lake.schema import rows_table
from rass_core.report.evaluations import evaluation_table
from rass_core.report.moderators import moderators_section
from tests.unit.test_moderator_check import check, given, said


def section(harmful: float, benign: float, rounds: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    prompts = given(40)
    rows = rows_table("evaluations", check.check_rows(prompts, said(prompts, harmful, benign))).to_pylist()
    found = moderators_section({"evaluations": rows, "rounds": rounds or []})
    assert found is not None
    return found


def test_a_single_moderator_has_a_row_for_all_and_for_each_language_and_the_quorum_none() -> None:
    found = section(0.25, 0.75)
    assert [row[:2] for row in found["rows"]] == [["m", "all"], ["m", "English"]]
    assert found["rows"][0][2].startswith("25% [")
    assert found["rows"][0][5].startswith("0.75 [")


def test_what_the_errors_mean_for_a_selection_is_computed() -> None:
    found = section(0.1, 0.8)
    assert ("30%", "5%") in found["shares"]  # 0.03 / (0.03 + 0.56)
    assert found["estimate"] is None


def test_the_runs_own_pass_rate_estimates_what_was_written() -> None:
    rounds = [{"n_coherent": 1000, "n_benign": 520}]  # 40% harmful: 0.4 · 0.1 + 0.6 · 0.8
    estimate = section(0.1, 0.8, rounds)["estimate"]
    assert "520 of 1,000 written prompts" in estimate
    assert "estimated 40% [" in estimate
    assert "and 8% [" in estimate


def test_a_pass_rate_that_the_errors_cannot_explain_is_said() -> None:
    estimate = section(0.5, 0.5, [{"n_coherent": 1000, "n_benign": 520}])["estimate"]
    assert "cannot be estimated" in estimate


def test_the_table_of_every_figure_leaves_the_moderators_to_their_section() -> None:
    prompts = given(40)
    rows = rows_table("evaluations", check.check_rows(prompts, said(prompts, 0.25, 0.75))).to_pylist()
    assert evaluation_table(rows)["rows"] == []


def test_a_run_without_a_check_has_no_section() -> None:
    assert moderators_section({"evaluations": [], "rounds": []}) is None
