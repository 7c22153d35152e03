"""The moderators' errors on given prompts: rates, what stops a run, and what they mean for a selection."""

import pytest

from rass_core.judges import PANEL, Verdict
from rass_core.moderators import check
from rass_core.vocabulary import Row


def given(n: int, language: str = "en") -> list[Row]:
    return [
        {"prompt_id": f"{language}{label}{i}", "language": language, "label": label, "family": f"{label}{i}"}
        for label in check.LABELS for i in range(n)
    ]  # fmt: skip


def said(
    prompts: list[Row], harmful_passed: float, benign_passed: float, unscored: int = 0
) -> list[dict[str, Verdict]]:
    """Return verdicts that call these shares of each label benign, the first of each label unscored."""
    words = []
    for row in prompts:
        number = int(row["family"].removeprefix(row["label"]))
        n = sum(each["label"] == row["label"] and each["language"] == row["language"] for each in prompts)
        share = harmful_passed if row["label"] == "harmful" else benign_passed
        is_benign = number < round(share * n)
        outcome = "harmless" if is_benign else "harmful"
        score = 0.9 if is_benign else 0.1
        verdict = Verdict("unscored", None, "") if number < unscored else Verdict(outcome, score, "")
        words.append({"m": verdict, PANEL: verdict})
    return words


def figure(rows: list[Row], metric: str, dataset: str, language: str = "all", name: str = "m") -> Row:
    return next(
        row for row in rows
        if (row["variant"], row["metric"], row["dataset"], row["language"]) == (name, metric, dataset, language)
    )  # fmt: skip


def test_rates_are_over_what_was_scored_and_the_rest_is_counted() -> None:
    prompts = given(40)
    rows = check.check_rows(prompts, said(prompts, 0.25, 0.75, unscored=4))
    missed = figure(rows, check.FALSE_BENIGN, "harmful")
    assert (missed["value"], missed["n"], missed["n_unscored"]) == (pytest.approx(6 / 36), 36, 4)
    assert missed["low"] < missed["value"] < missed["high"]
    alarmed = figure(rows, check.FALSE_HARMFUL, "pseudo_harmful")
    assert alarmed["value"] == pytest.approx(10 / 36)
    assert figure(rows, check.PASSED, "harmful")["value"] == pytest.approx(6 / 40)
    assert figure(rows, check.UNSCORED, "all")["value"] == pytest.approx(12 / 120)
    youden = figure(rows, check.YOUDEN, "pseudo_harmful")
    assert youden["value"] == pytest.approx(26 / 40 - 6 / 40)


def test_what_a_moderator_declines_is_counted_apart() -> None:
    prompts = given(40)
    words = said(prompts, 0.25, 0.75, unscored=4)
    for word in words[:2]:
        word["m"] = Verdict("unscored", None, "", declined="filtered")
    rows = check.check_rows(prompts, words)
    assert figure(rows, check.DECLINED, "all")["value"] == pytest.approx(2 / 120)
    assert figure(rows, check.UNSCORED, "all")["value"] == pytest.approx(12 / 120)
    assert check.line(rows, "m").endswith("12 of 120 unscored, of these 2 declined or filtered")
    assert "declined" not in check.line(rows, PANEL)


def test_the_auc_takes_scores_of_harmful_and_pseudo_harmful_prompts() -> None:
    prompts = given(40)
    rows = check.check_rows(prompts, said(prompts, 0.0, 1.0))
    auc = figure(rows, check.AUC, "pseudo_harmful")
    assert (auc["value"], auc["high"], auc["n"]) == (1.0, 1.0, 80)
    assert 0.8 < auc["low"] < 1.0


def test_nothing_scored_is_null_with_a_reason_and_not_0() -> None:
    prompts = given(40)
    rows = check.check_rows(prompts, said(prompts, 0.5, 0.5, unscored=40))
    for metric in (check.FALSE_BENIGN, check.AUC):
        row = next(row for row in rows if row["metric"] == metric)
        assert row["value"] is None
        assert row["reason"]


@pytest.mark.parametrize(("harmful", "benign"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.6, 0.4), (0.4, 0.5)])
def test_a_moderator_no_better_than_chance_is_of_no_use(harmful: float, benign: float) -> None:
    prompts = given(40)
    why, unknown = check.useless(check.check_rows(prompts, said(prompts, harmful, benign)), PANEL)
    assert unknown is None
    assert why is not None
    assert f"{round(40 * harmful)} of 40 harmful prompts benign" in why


def test_a_moderator_that_separates_is_of_use() -> None:
    prompts = given(40)
    assert check.useless(check.check_rows(prompts, said(prompts, 0.2, 0.7)), PANEL) == (None, None)


def test_easy_harmless_prompts_do_not_hide_that_pseudo_harmful_ones_are_not_separated() -> None:
    prompts = given(40)
    words = said(prompts, 0.0, 1.0)
    for row, word in zip(prompts, words, strict=True):
        if row["label"] == "pseudo_harmful":
            word[PANEL] = Verdict("harmful", 0.1, "")
    assert check.useless(check.check_rows(prompts, words), PANEL)[0] is not None


def test_a_moderator_that_scores_nothing_is_of_no_use_however_few_are_asked() -> None:
    prompts = given(5)
    rows = check.check_rows(prompts, said(prompts, 0.5, 0.5, unscored=5))
    assert "scores none of 15 prompts" in str(check.useless(rows, PANEL, "en")[0])


def test_a_language_that_a_moderator_does_not_read_does_not_count_against_it_in_the_others() -> None:
    prompts = given(40) + given(40, "de")
    words = said(prompts, 0.1, 0.8)
    for row, word in zip(prompts, words, strict=True):
        if row["language"] == "de":
            word["m"] = word[PANEL] = Verdict("unscored", None, "")
    rows = check.check_rows(prompts, words)
    assert figure(rows, check.YOUDEN, "pseudo_harmful")["value"] == pytest.approx(0.7)
    assert check.useless(rows, PANEL) == (None, None)
    assert "scores none of 120" in str(check.useless(rows, PANEL, "de")[0])


def test_few_prompts_decide_nothing() -> None:
    prompts = given(10)
    why, unknown = check.useless(check.check_rows(prompts, said(prompts, 1.0, 1.0)), PANEL)
    assert why is None
    assert unknown is not None
    assert "10 harmful and 20 benign" in unknown


def test_the_sample_is_balanced_repeatable_and_avoids_translations() -> None:
    prompts = given(100) + given(100, "de")
    sample = check.sample(prompts, 20, seed=1)
    assert len(sample) == 2 * 3 * 20
    assert len({row["family"] for row in sample}) == len(sample)
    assert sample == check.sample(prompts[::-1], 20, seed=1)
    assert sample != check.sample(prompts, 20, seed=2)
    assert len(check.sample(given(100), 20, seed=1)) == 3 * check.LEAST_PER_LABEL
    assert len(check.sample(given(5) + given(5, "de"), 20, seed=1)) == 30, "translations fill what is short"


def test_the_share_of_harmful_prompts_that_pass_is_bayes_rule() -> None:
    prompts = given(40)
    rows = check.check_rows(prompts, said(prompts, 0.1, 0.8))
    assert check.harmful_share(0.3, rows, "m") == pytest.approx(0.03 / (0.03 + 0.56))
    nothing = check.check_rows(prompts, said(prompts, 0.0, 0.0))
    assert check.harmful_share(0.3, nothing, "m") is None


def test_the_share_of_harmful_prompts_written_is_recovered_from_how_many_passed() -> None:
    prompts = given(200)
    rows = check.check_rows(prompts, said(prompts, 0.1, 0.8))
    n_passed = round(1000 * (0.4 * 0.1 + 0.6 * 0.8))
    share, low, high = check.written_share(rows, "m", n_passed, 1000, seed=0)
    assert share == pytest.approx(0.4, abs=0.01)
    assert low < 0.4 < high


def test_the_line_names_the_moderator_and_its_figures() -> None:
    prompts = given(40)
    line = check.line(check.check_rows(prompts, said(prompts, 0.25, 0.75)), "m")
    assert line.startswith("moderator m: harmful called benign 25% [")
    assert "pseudo_harmful called harmful 25%" in line
    assert "AUC 0.75" in line
