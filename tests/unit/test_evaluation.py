"""Rates and their changes against figures worked out apart; KL and perplexity on tiny checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rass_core.errors import ActivationError, BoundaryError, ModelError
from rass_core.evaluate.metrics import METRICS, Outcome
from rass_core.evaluate.rates import change_rows, design_effect, measured_row, variant_rows
from rass_core.lake.schema import TABLES
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.perplexity import Answered, answer_perplexities, mean_kl, perplexity
from rass_core.stats.intervals import bootstrap_interval, wilson
from rass_core.stats.paired import paired_difference
from tests import tiny_models

SHORT = {"r": "refusal", "c": "compliance", "p": "partial", "u": "unscored"}


def outcomes(variant: str, letters: str, label: str = "harmful", **more: Any) -> list[Outcome]:
    """One prompt a letter; `families` maps a prompt's number to its family."""
    family_of = more.pop("family_of", str)
    start = more.pop("start", 0)
    settings = {"dataset": "held_out", "language": "en", **more}
    return [
        Outcome(
            variant=variant, label=label, prompt_id=f"{label}{settings['language']}{number}",
            family=f"{label}{family_of(number)}", outcome=SHORT[letter], n_tokens=10 + number, **settings,
        )
        for number, letter in enumerate(letters, start)
    ]  # fmt: skip


def find(rows: Sequence[dict[str, Any]], metric: str, dataset: str = "all", language: str = "all") -> dict[str, Any]:
    (found,) = (r for r in rows if (r["metric"], r["dataset"], r["language"]) == (metric, dataset, language))
    return found


def figures(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["value"], row["low"], row["high"]


def test_a_lack_is_no_refusal_by_policy_and_no_help() -> None:
    kinds = ("policy", None, "capability", "missing_information", None, "clarification", "premise", None)
    given = [replace(o, kind=kind) for o, kind in zip(outcomes("base", "rrrcccrp", "harmless"), kinds, strict=True)]
    rows = variant_rows("m", given, seed=0)
    assert find(rows, "over_refusal_rate")["value"] == 3 / 8, "policy, unknown and premise"
    assert find(rows, "over_refusal_rate_wide")["value"] == 4 / 8, "and the partial one"
    assert find(rows, "unhelpful_rate")["value"] == 7 / 8, "and three that lack something"
    harmful = [replace(o, kind=kind) for o, kind in zip(outcomes("base", "rrrcccrp"), kinds, strict=True)]
    assert find(variant_rows("m", harmful, seed=0), "safety_rate")["value"] == 4 / 8, "whatever the reason"


def test_rates_count_what_their_names_say() -> None:
    rows = variant_rows(
        "m",
        [
            *outcomes("base", "rrrrpcuu"), *outcomes("base", "rppccc", "pseudo_harmful"),
            *outcomes("base", "rcccc", "harmless"),
        ],
        seed=0,
    )  # fmt: skip
    expected = {
        "safety_rate": (4, 6, 2), "harmful_partial_rate": (1, 6, 2), "over_refusal_rate": (2, 11, 0),
        "over_refusal_rate_wide": (4, 11, 0), "partial_rate": (2, 11, 0), "harmless_compliance_rate": (4, 5, 0),
        "unscored_rate": (2, 19, 0),
    }  # fmt: skip
    for metric, (hits, n, n_unscored) in expected.items():
        for place in (("all", "all"), ("all", "en"), ("held_out", "all"), ("held_out", "en")):
            row = find(rows, metric, *place)
            assert figures(row) == pytest.approx(wilson(hits, n)), metric
            assert (row["n"], row["n_unscored"], row["reason"]) == (n, n_unscored, None)
    assert find(rows, "response_tokens")["value"] == 12.0, "over harmless prompts"
    assert {row["variant"] for row in rows} == {"base"}
    extra = {"n_families", "n_effective", "n_gained", "n_lost", "p_value"}
    assert set(rows[0]) - set(TABLES["evaluations"].names) <= extra


def test_nothing_over_nothing_is_null_with_its_reason() -> None:
    rows = variant_rows("m", outcomes("base", "uuu"), seed=0)
    for metric, reason in (("safety_rate", "none of 3 prompts scored"), ("over_refusal_rate", "no such prompts")):
        assert figures(find(rows, metric)) == (None, None, None)
        assert find(rows, metric)["reason"] == reason
    assert find(rows, "jailbreak_safety_rate", "jailbreak")["value"] is None
    assert not [row for row in rows if row["metric"] == "over_refusal_rate" and row["dataset"] == "held_out"]
    one = variant_rows("m", outcomes("base", "c", "harmless"), seed=0)
    assert find(one, "response_tokens")["value"] is None and "family" in find(one, "response_tokens")["reason"]


def test_dressed_prompts_are_apart_and_pooled() -> None:
    given = [
        *outcomes("base", "rr"), *outcomes("base", "rc", attack="suffix"), *outcomes("base", "cc", attack="frame"),
        *outcomes("base", "r", "harmless", attack="frame"),
    ]  # fmt: skip
    rows = variant_rows("m", given, seed=0)
    values = {
        r["dataset"]: r["value"] for r in rows if r["metric"] == "jailbreak_safety_rate" and r["language"] == "all"
    }
    assert values == {"jailbreak": 0.25, "jailbreak:suffix": 0.5, "jailbreak:frame": 0.0}
    assert find(rows, "safety_rate")["n"] == 2
    assert find(rows, "jailbreak_over_refusal_rate", "jailbreak")["value"] == 1.0
    assert find(rows, "over_refusal_rate")["value"] is None


def test_a_prompt_in_two_datasets_counts_once_over_all() -> None:
    given = [*outcomes("base", "rc"), *outcomes("base", "rcc", dataset="other")]
    rows = variant_rows("m", given, seed=0)
    assert [find(rows, "safety_rate", name)["n"] for name in ("held_out", "other", "all")] == [2, 3, 3]


def test_families_of_several_prompts_are_bootstrapped_together() -> None:
    given = outcomes("base", "rrrrccrrcccc", family_of=lambda number: number // 4)
    row = find(variant_rows("m", given, seed=3), "safety_rate")
    expected = bootstrap_interval([o.outcome == "refusal" for o in given], [o.family for o in given], 3)
    assert figures(row) == pytest.approx(expected)
    assert row["n_families"] == 3
    alike = find(variant_rows("m", outcomes("base", "r" * 12, family_of=lambda n: n // 4), seed=3), "safety_rate")
    assert figures(alike) == pytest.approx(wilson(3, 3)), "no spread is no certainty"


def test_a_change_is_paired_and_agrees_with_tango_and_mcnemar() -> None:
    base, mitigated = outcomes("base", "rrrrrccccu" * 10), outcomes("dpo", "rrrcrrccuc" * 10)
    row = find(change_rows("m", base, mitigated, seed=0), "safety_rate_change")
    expected = paired_difference(10, 10, 80)
    assert figures(row) == pytest.approx((0.0, expected.low, expected.high))
    assert (row["n"], row["n_unscored"], row["n_gained"], row["n_lost"]) == (80, 20, 10, 10)
    assert (row["variant"], row["p_value"], row["n_effective"]) == ("dpo", expected.p_value, 80)
    worse = find(change_rows("m", base, outcomes("dpo", "rrrccccccc" * 10), seed=0), "safety_rate_change")
    assert worse["value"] == pytest.approx(-20 / 90)
    assert worse["p_value"] == pytest.approx(2 * 0.5**20) and "0 gained, 20 lost" in worse["reason"]


def test_only_prompts_of_both_variants_are_compared() -> None:
    base, mitigated = outcomes("base", "rrrr"), outcomes("dpo", "cccc", start=2)
    row = find(change_rows("m", base, mitigated, seed=0), "safety_rate_change")
    assert (row["n"], row["value"], row["n_unscored"]) == (2, -1.0, 4)
    row = find(change_rows("m", base, outcomes("dpo", "cc", start=9), seed=0), "safety_rate_change")
    assert row["value"] is None and row["reason"] == "none of 6 prompts scored"


def test_order_does_not_matter_and_joins_are_by_id() -> None:
    draw = np.random.default_rng(0)
    letters = ["".join(draw.choice(list("rcpu"), 60)) for _ in range(2)]
    base, mitigated = (
        outcomes(name, each, family_of=lambda n: n % 20) for name, each in zip("ab", letters, strict=True)
    )
    assert change_rows("m", base, mitigated, 0) == change_rows("m", base[::-1], mitigated[7:] + mitigated[:7], 0)
    assert variant_rows("m", base, 0) == variant_rows("m", base[::-1], 0)


def test_families_that_change_together_widen_the_interval() -> None:
    """100 prompts of 20 families, 4 families lost: as much as 4 of 20, not 20 of 100."""
    base = outcomes("base", "r" * 100, family_of=lambda number: number // 5)
    together = outcomes("dpo", "c" * 20 + "r" * 80, family_of=lambda number: number // 5)
    row = find(change_rows("m", base, together, seed=0), "safety_rate_change")
    expected = paired_difference(0, 4, 20)
    assert figures(row) == pytest.approx((-0.2, expected.low, expected.high))
    assert row["p_value"] == expected.p_value
    apart = outcomes("dpo", "crrrr" * 20, family_of=lambda number: number // 5)
    row = find(change_rows("m", base, apart, seed=0), "safety_rate_change")
    assert row["low"] == pytest.approx(paired_difference(0, 20, 100).low)


def test_effective_counts_are_rounded_outwards() -> None:
    base = outcomes("base", "r" * 100, family_of=lambda number: number // 3)
    mitigated = outcomes("dpo", "cc" + "r" * 88 + "cc" + "r" * 7 + "c", family_of=lambda number: number // 3)
    row = find(change_rows("m", base, mitigated, seed=0), "safety_rate_change")
    n = row["n_effective"]
    assert 34 <= n < 100 and 5 * n % 100, "there is something to round"
    assert row["low"] == pytest.approx(paired_difference(0, 5 * n // 100 + 1, n).low)
    assert row["high"] == pytest.approx(paired_difference(0, 5 * n // 100, n).high)


def test_the_interval_covers_the_truth_where_families_change_together() -> None:
    draw, truth, covered = np.random.default_rng(1), -0.1, []
    for _ in range(300):
        is_lost = draw.random(40) < 0.15
        letters = "".join("c" if is_lost[n // 5] and draw.random() < 2 / 3 else "r" for n in range(200))
        base = outcomes("base", "r" * 200, family_of=lambda n: n // 5)
        rows = change_rows("m", base, outcomes("dpo", letters, family_of=lambda n: n // 5), seed=0)
        row = find(rows, "safety_rate_change")
        covered.append(row["low"] <= truth <= row["high"])
    assert 0.9 <= np.mean(covered) <= 0.995


def test_the_design_effect_has_its_ends() -> None:
    families = [str(number // 5) for number in range(500)]
    draw = np.random.default_rng(0)
    assert design_effect(draw.standard_normal(500), families) == pytest.approx(1, abs=0.3)
    assert design_effect(np.repeat(draw.standard_normal(100), 5), families) == pytest.approx(5, abs=0.1)
    assert design_effect([0.0] * 500, families) == 1
    assert design_effect([0.0, 1.0, 1.0], ["a"] * 3) == 3
    with pytest.raises(BoundaryError, match="no values"):
        design_effect([], [])


def test_what_cannot_be_counted_is_an_error() -> None:
    good = outcomes("base", "rc")
    for bad, message in (
        ([], "variants none"),
        ([*good, *outcomes("dpo", "r")], "variants base, dpo"),
        ([*good, good[0]], "occurs twice"),
        (outcomes("base", "r", dataset="all"), "reserved"),
        (outcomes("base", "r", dataset="jailbreak:x"), "reserved"),
        (outcomes("base", "r", "toxic"), "not a label"),
    ):
        with pytest.raises(BoundaryError, match=message):
            variant_rows("m", bad, seed=0)
    with pytest.raises(BoundaryError, match="both sides"):
        change_rows("m", good, good, seed=0)


def test_every_metric_has_its_change() -> None:
    base, mitigated = ([*outcomes(v, "rcpu" * 3), *outcomes(v, "rcpc" * 3, "harmless")] for v in ("base", "dpo"))
    names = {row["metric"] for row in change_rows("m", base, mitigated, seed=0)}
    assert names == {f"{metric.name}_change" for metric in METRICS}
    row = find(change_rows("m", base, mitigated, seed=0), "response_tokens_change")
    assert figures(row) == (0.0, 0.0, 0.0)


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "gemma2"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return [load_causal_lm(str(tiny_models.build(request.param, folder / str(seed), seed)))[0] for seed in (0, 1)]


def random_rows(n: int = 12) -> list[Answered]:
    draw = np.random.default_rng(0)
    return [
        Answered(
            draw.integers(9, 260, draw.integers(1, 15)).tolist(), draw.integers(9, 260, draw.integers(1, 90)).tolist()
        )
        for _ in range(n)
    ]


@torch.no_grad()
def logprobs(model: Any, row: Answered) -> torch.Tensor:
    """One row alone, without padding; (n_answer, vocabulary), float64."""
    logits = model(input_ids=torch.tensor([[*row.prompt, *row.answer]])).logits[0].double()
    return logits.log_softmax(-1)[len(row.prompt) - 1 : -1]


@pytest.mark.parametrize("token_budget", [1, 200, 4096])
def test_kl_is_that_of_every_token_of_the_answer(models: list[Any], token_budget: int) -> None:
    rows = random_rows()
    base, mitigated = models
    each = [
        torch.nn.functional.kl_div(logprobs(mitigated, row), logprobs(base, row), log_target=True, reduction="none")
        .sum(-1).mean().item()
        for row in rows
    ]  # fmt: skip
    found = mean_kl(base, mitigated, rows, seed=0, token_budget=token_budget)
    assert found.value == pytest.approx(np.mean(each), rel=1e-4)
    assert found.low < found.value < found.high and found.n == 12
    assert mean_kl(base, base, rows, seed=0, token_budget=token_budget).high == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("token_budget", [1, 4096])
def test_perplexity_is_that_of_the_tokens_pooled(models: list[Any], token_budget: int) -> None:
    rows = random_rows()
    each = [
        logprobs(models[0], row).gather(-1, torch.tensor(row.answer)[:, None]).sum().item() for row in rows
    ]  # fmt: skip
    found = perplexity(models[0], rows, seed=0, token_budget=token_budget)
    assert found.value == pytest.approx(np.exp(-sum(each) / sum(len(row.answer) for row in rows)), rel=1e-4)
    assert found.low < found.value < found.high
    alone = answer_perplexities(models[0], rows, token_budget)
    assert alone == pytest.approx([np.exp(-a / len(row.answer)) for a, row in zip(each, rows, strict=True)], rel=1e-4)
    assert answer_perplexities(models[0], []) == []


def test_what_cannot_be_read_is_an_error(models: list[Any]) -> None:
    base, mitigated = models
    for rows in ([], [Answered([], [9])], [Answered([9], [])]):
        with pytest.raises(ActivationError, match="rows"):
            mean_kl(base, mitigated, rows, seed=0)
    with pytest.raises(ActivationError, match="rows"):
        perplexity(base, [Answered([9], [])], seed=0)
    with pytest.raises(BoundaryError, match="at least 2"):
        mean_kl(base, mitigated, [Answered([9], [10])], seed=0)
    base.train()
    try:
        with pytest.raises(ModelError, match="training mode"):
            perplexity(base, [Answered([9], [10])], seed=0)
    finally:
        base.eval()


def test_a_diverged_model_is_an_error(tmp_path: Path) -> None:
    model, _ = load_causal_lm(str(tiny_models.build("llama", tmp_path)))
    whole, _ = load_causal_lm(str(tmp_path))
    model.lm_head.weight.data[9] = float("nan")
    with pytest.raises(ActivationError, match="not finite"):
        mean_kl(whole, model, random_rows(3), seed=0)
    with pytest.raises(ActivationError, match="not finite"):
        perplexity(model, random_rows(3), seed=0)


def test_a_measured_figure_is_a_row(models: list[Any]) -> None:
    row = measured_row("kl", mean_kl(*models, random_rows(4), seed=0), "m", "dpo")
    assert (row["metric"], row["dataset"], row["language"], row["n"], row["n_families"]) == ("kl", "all", "all", 4, 4)
