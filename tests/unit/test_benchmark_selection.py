"""The benchmark of selection: its baselines, its table of runs, and what it computes from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.selection import methods, results, training
from benchmarks.selection.methods import Candidate, Pool
from benchmarks.selection.results import Row
from rass_core.errors import BoundaryError, LakeError, SelectionError
from rass_core.models.prefix_logprobs import told_apart
from rass_core.select.quotas import Influence

LOG_ODDS = [-3.0, -0.2, 0.1, 1.0, 2.0, 4.0]


@pytest.fixture
def pool() -> Pool:
    texts = ["bake bread", "kill time", "kill a process", "attack a problem", "burn a candle", "kill the lights"]
    candidates = [
        Candidate(f"c{i}", text, "en", "x", "rewrite" if i % 2 else "trigger", "pseudo_harmful", steered=i == 5)
        for i, text in enumerate(texts)
    ]
    gradients = np.eye(6)
    gradients[4] += 1.0
    return Pool(
        candidates=candidates,
        refused=np.array(LOG_ODDS) > 0,
        log_odds=np.array(LOG_ODDS),
        distance=np.array(LOG_ODDS) / 4,
        influence=Influence(gradients, np.array(LOG_ODDS), {"en": np.eye(6)[4] + np.eye(6)[5]}),
        harmful_texts=["kill him", "kill her now", "how to kill"],
        harmless_texts=["bake a cake", "paint a wall", "sing"],
        cells=[("en", "x")],
    )


@pytest.mark.parametrize(
    ("method", "n", "expected"),
    [
        ("most_refused", 2, {4, 5}),
        ("uncertainty", 2, {1, 2}),
        ("random_refused", 6, {2, 3, 4, 5}),
        ("random_benign", 6, {0, 1, 2, 3, 4, 5}),
        ("keyword", 6, {1, 2, 5}),
        ("rewriting", 6, {1, 3}),
        ("rass", 6, {2, 3, 4, 5}),
        ("rass", 1, {3}),
        ("no_harmful", 1, {4}),
        ("no_diversity", 2, {2, 3}),
        ("no_gradients", 6, {2, 3, 4, 5}),
        ("deepest", 2, {4, 5}),
        ("near_boundary", 2, {2, 3}),
    ],
)
def test_each_method_chooses_its_own(pool: Pool, method: str, n: int, expected: set[int]) -> None:
    assert set(methods.choose(method, pool, n, seed=0).tolist()) == expected


def test_a_draw_is_that_of_the_seed_and_a_larger_one_holds_it(pool: Pool) -> None:
    few, many = (methods.choose("random_benign", pool, n, seed=3).tolist() for n in (2, 4))
    assert many[:2] == few
    others = {tuple(methods.choose("random_benign", pool, 2, seed=seed).tolist()) for seed in range(8)}
    assert len(others) > 1


def test_without_gradients_any_refused_prompt_may_be_the_one(pool: Pool) -> None:
    assert {methods.choose("no_gradients", pool, 1, seed)[0] for seed in range(30)} == {2, 3, 4, 5}


def test_an_unknown_method_and_an_empty_pool_are_raised(pool: Pool) -> None:
    with pytest.raises(SelectionError, match="best"):
        methods.choose("best", pool, 2, seed=0)
    with pytest.raises(SelectionError, match="random_refused"):
        methods.choose("random_refused", replace(pool, refused=np.zeros(6, bool)), 2, seed=0)


def row(seed: int, method: str, n: int, dataset: str, refused: int, unscored: int = 0) -> Row:
    return Row(
        setting="lab",
        seed=seed,
        method=method,
        n=n,
        n_selected=n,
        dataset=dataset,
        n_prompts=100,
        n_refused=refused,
        n_refused_matched=refused // 2,
        n_unscored=unscored,
        seconds=1.0,
    )


def run(seed: int, method: str, n: int, refused: int) -> list[Row]:
    return [row(seed, method, n, d, refused) for d in ("harmful", "harmless", "pseudo_harmful")]


def test_the_table_comes_back_and_a_cut_off_run_is_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.csv"
    assert results.read(path) == []
    results.append(path, run(0, "rass", 25, 10))
    results.append(path, run(1, "rass", 25, 10)[:2])
    assert results.read(path) == run(0, "rass", 25, 10) + run(1, "rass", 25, 10)[:2]
    assert results.finished(results.read(path)) == {("lab", 0, "rass", 25)}
    assert results.rates(results.read(path), "lab", "rass", 25, "pseudo_harmful") == {0: 0.1}


def test_a_run_that_was_done_again_counts_once() -> None:
    rows = [row(0, "rass", 25, "pseudo_harmful", 90), *run(0, "rass", 25, 10)]
    assert results.rates(rows, "lab", "rass", 25, "pseudo_harmful") == {0: 0.1}


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(LakeError, match="columns"):
        results.read(path)


def test_unscored_answers_are_in_no_rate() -> None:
    rows = [row(0, "rass", 25, "pseudo_harmful", 10, unscored=50)]
    assert results.rates(rows, "lab", "rass", 25, "pseudo_harmful") == {0: 0.2}


def test_the_claim_is_paired_over_seeds_with_twice_as_many() -> None:
    rows = [r for seed in (0, 1, 2) for r in run(seed, "rass", 25, 10 + seed)]
    rows += [r for seed in (0, 1) for r in run(seed, "random_refused", 50, 20 + seed)]
    rows += [r for seed in (0, 1) for r in run(seed, "random_refused", 25, 90)]
    found = results.paired(rows, "lab", "pseudo_harmful", ("rass", 25), ("random_refused", 50))
    assert found == pytest.approx([-0.1, -0.1])
    told = results.compared(rows, "lab", ("rass", 1), ("random_refused", 2))
    assert "| 25 against 50 | 2 | -5.0 (-5.0 to -5.0) | -10.0 (-10.0 to -10.0) |" in told
    assert "| 50 against" not in told, "what was not run is left out"


def test_at_equal_safety_all_prompts_are_in_the_rate() -> None:
    rows = [row(0, "rass", 25, "pseudo_harmful", 40, unscored=50)]
    assert results.rates(rows, "lab", "rass", 25, "pseudo_harmful", matched=True) == {0: 0.2}


def test_runs_are_compared_at_the_untrained_models_safety() -> None:
    harmful = np.array([True, True, True, False, False, False] * 2)
    languages = np.array(["en"] * 6 + ["de"] * 6)
    one = np.array([3.0, 1.0, -2.0, 2.0, 0.0, -3.0])
    log_odds = np.concatenate([one, one + 20.0])

    def refused(n_en: int, n_de: int, log_odds: np.ndarray = log_odds) -> list[bool]:
        given = np.array([i < n for n in (n_en, n_de) for i in range(6)])
        return training.refused_at_safety(given, log_odds, harmful, languages).tolist()

    assert refused(2, 2) == [True, True, False, True, False, False] * 2, "each language by its own log-odds"
    assert refused(2, 2, log_odds - 10.0) == refused(2, 2), "a constant changes nothing"
    assert refused(3, 0) == [True, True, True, True, True, False] + [False] * 6


def test_openings_are_cut_where_they_begin_nothing_of_the_other_side() -> None:
    refusals, compliances = [[1, 2, 3], [4, 5, 6], [7]], [[4, 9, 9], [8, 8]]
    assert told_apart(refusals, compliances) == [[1], [4, 5], [7]]
    assert told_apart(compliances, refusals) == [[4, 9], [8]]


def test_every_method_is_set_against_rass_with_as_many_prompts() -> None:
    rows = [r for seed in (0, 1) for r in run(seed, "rass", 25, 10) + run(seed, "keyword", 25, 30 + 8 * seed)]
    told = results.against_each(rows, "lab", ["rass", "keyword", "uncertainty"], [25])
    assert told.splitlines()[2:] == ["| keyword | 2 | -12.0 (-37.4 to +13.4) |"]


def test_tables_go_between_the_marks_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"head\n{results.BEGIN}\nold\n{results.END}\ntail\n", encoding="utf-8")
    for _ in range(2):
        results.write_into(page, "new")
    assert page.read_text(encoding="utf-8") == f"head\n{results.BEGIN}\n\nnew\n\n{results.END}\ntail\n"
    page.write_text("head", encoding="utf-8")
    with pytest.raises(LakeError, match="tables"):
        results.write_into(page, "new")


def test_the_interval_is_students() -> None:
    assert results.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    with pytest.raises(BoundaryError, match="1 seeds"):
        results.interval([1.0])
