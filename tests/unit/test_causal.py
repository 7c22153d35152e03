"""Which directions are tried, and which gets which role."""

from dataclasses import replace

import numpy as np
import pytest

from rass_core.models.packed import OpeningTree
from rass_core.probe.causal import (
    Screening,
    ablation_candidates,
    causal_candidates,
    generation_options,
    is_coherent_refusal,
    screening_candidates,
    with_generated,
)
from rass_core.probe.geometry import Direction, ProbeData, why_off_scale
from rass_core.probe.roles import choose_roles
from rass_core.probe.settings import ProbeConfig

CONFIG = ProbeConfig()


def drawn(kind: str = "harm", layer: int = 3, auc: float | None = 0.8, position: int = -1) -> Direction:
    return Direction(kind, "difference_in_means", layer, position, np.ones(4), auc=auc)


def tried(kind: str = "harm", layer: int = 3, auc: float | None = 0.8, **scores: object) -> Direction:
    known = {"alpha": 1.0, "induce_score": 0.9, "induced": {0.5: 0.2, 1.0: 0.9}, "bypass_score": 0.7, "kl": 0.05}
    known |= {"ablate_layers": (3,), "ablate_strength": 1.0, "full_ablation_bypass": 0.7, "full_ablation_kl": 0.05}
    return replace(drawn(kind, layer, auc), **(known | scores))  # type: ignore[arg-type]


def with_role(role: str, found: list[Direction]) -> Direction:
    (direction,) = [each for each in found if role in each.roles]
    return direction


def test_every_kind_and_spread_layers_are_screened_but_not_the_last_fifth() -> None:
    found = [
        drawn(kind, layer, auc=0.5 + 0.1 * (position == -2), position=position)
        for kind in ("harm", "refusal", "false_refusal", "pseudo_harm")
        for layer in range(10)
        for position in (-2, -1)
    ]
    chosen = screening_candidates(found, n_layers=10, n_screened=12)
    assert {d.kind for d in chosen} == {"harm", "refusal", "false_refusal"}
    assert sorted({d.layer for d in chosen}) == [0, 2, 5, 7]
    assert {d.position for d in chosen} == {-2} and len(chosen) == 12


def test_full_trials_go_to_the_best_by_auc_the_best_inducing_and_a_harm_direction() -> None:
    screened = [
        Screening(drawn("refusal", 1, 0.99), 1.0, 3.0, 0.1),
        Screening(drawn("refusal", 2, 0.98), 0.0, -3.0, 0.9),
        Screening(drawn("false_refusal", 3, None), 1.0, 9.0, 0.2),
        Screening(drawn("harm", 4, 0.6), 0.0, -5.0, 0.8),
    ]
    assert [d.layer for d in causal_candidates(screened, 3, 0.5)] == [1, 3, 4]
    assert [d.layer for d in ablation_candidates(screened, 2)] == [2, 4]


def test_the_margin_takes_the_best_auc_on_scale_and_mitigation_keeps_the_harm_direction() -> None:
    found = choose_roles(
        [
            tried("harm", 1, 0.85),
            tried("refusal", 2, 0.96),
            tried("refusal", 3, 0.99, off_scale="no margin: so"),
            tried("refusal", 4, 0.99, induced={1.0: 0.1}),
            tried("false_refusal", 5, 0.995),
        ],
        CONFIG,
    )
    assert with_role("margin", found).layer == 2
    assert "AUC 0.96" in (with_role("margin", found).reason or "")
    assert with_role("harm", found).layer == 1
    assert "no margin: so" in (found[2].reason or "")


def test_what_generated_text_shows_decides_what_is_added() -> None:
    odds, text = tried("harm", 1, induced={0.5: 1.0, 1.0: 1.0}, alpha=0.5), tried("refusal", 2, induced={1.0: 0.8})
    options = generation_options([text, odds], CONFIG)
    assert [(d.layer, alpha) for d, alpha in options] == [(1, 0.5), (1, 1.0), (2, 1.0)]
    found = choose_roles(with_generated([text, odds], options, [(5, 10), (6, 10), (9, 10)]), CONFIG)
    add = with_role("add", found)
    assert (add.layer, add.alpha, add.induce_generated, add.n_generated) == (2, 1.0, 0.9, 10)
    assert add.induce_score == 0.8 and "90% of 10 generated" in (add.reason or "")
    # Of equals the smaller strength.
    even = with_generated([odds], options[:2], [(6, 10), (6, 10)])
    assert even[0].alpha == 0.5
    # An answer that nobody could judge is no refusal rate.
    assert with_generated([odds], options[:1], [(0, 0)])[0].induce_generated is None


def test_a_tie_in_generated_text_goes_to_the_direction_that_carries_refusal() -> None:
    shallow = tried("refusal", 1, induce_generated=1.0, n_generated=15, full_ablation_bypass=0.2)
    carrying = tried("harm", 2, induce_generated=14 / 15, n_generated=15, full_ablation_bypass=1.0)
    assert with_role("add", choose_roles([shallow, carrying], CONFIG)).layer == 2
    worse = replace(carrying, induce_generated=12 / 15)
    assert with_role("add", choose_roles([shallow, worse], CONFIG)).layer == 1


def test_without_generation_log_odds_decide_what_is_added() -> None:
    found = choose_roles([tried("harm", 1), tried("refusal", 2, induce_score=0.95)], CONFIG)
    assert with_role("add", found).layer == 2
    assert "not tried by generation" in (with_role("add", found).reason or "")


def test_an_ablation_must_be_gentle_and_must_bypass() -> None:
    rough = tried("harm", 1, bypass_score=1.0, kl=3.1)
    gentle = tried("refusal", 2, bypass_score=0.8, kl=0.08, ablate_layers=(1, 2, 3), ablate_strength=0.5)
    found = choose_roles([rough, gentle], CONFIG)
    assert with_role("ablate", found).layer == 2
    assert "80% at KL 0.08 (blocks 1–3, strength 0.5)" in (found[1].reason or "")
    weak = replace(gentle, bypass_score=0.2, full_ablation_kl=3.1)
    found = choose_roles([rough, weak], CONFIG)
    assert not any("ablate" in each.roles for each in found)
    assert "no ablation bypasses 50% at KL ≤ 0.1" in (found[1].reason or "")
    assert "20% at KL 0.08" in (found[1].reason or "") and "full ablation has KL 3.1" in (found[1].reason or "")


def test_where_nothing_induces_refusal_the_margin_says_so() -> None:
    found = choose_roles(
        [tried("harm", 1, 0.8, induced={1.0: 0.1}), tried("refusal", 2, 0.9, induced={1.0: 0.2})], CONFIG
    )
    assert "no direction induces refusal on 50%" in (with_role("margin", found).reason or "")


@pytest.mark.parametrize(
    ("outcome", "text", "expected"),
    [
        ("refusal", "I'm sorry, but I can't help with that, because it would need facts about your bank that I", True),
        ("refusal", "I'm sorry, I'm sorry, I'm sorry, I'm sorry, I'm sorry, I'm sorry, I'm sorry, I'm sorry,", False),
        ("refusal", "  ", False),
        ("compliance", "Here is a recipe for soup.", False),
    ],
)
def test_a_refusal_in_broken_text_is_none(outcome: str, text: str, expected: bool) -> None:
    assert is_coherent_refusal(outcome, text) is expected


def test_a_direction_that_hardly_tells_harm_apart_gives_no_margin() -> None:
    draw = np.random.default_rng(0)
    labels = np.array(["harmful", "harmless"] * 100)
    streams = draw.normal(size=(200, 1, 1, 2)).astype(np.float32)
    streams[labels == "harmful", 0, 0, 0] += 4.0
    families = np.array([str(i) for i in range(200)])
    anchors = ProbeData(
        prompt_ids=list(families),
        labels=labels,
        languages=np.array(["en"] * 200),
        families=families,
        refused=np.zeros(200),
        activations=streams,
        layers=[0],
        positions=[-1],
        seed=0,
    )
    along = Direction("refusal", "difference_in_means", 0, -1, np.array([1.0, 0.0]))
    assert why_off_scale(anchors, along) is None
    assert "AUC" in (why_off_scale(anchors, replace(along, vector=np.array([0.0, 1.0]))) or "")
    assert "AUC 0.0" in (why_off_scale(anchors, replace(along, vector=np.array([-1.0, 0.0]))) or "")


def test_openings_share_their_beginnings() -> None:
    tree = OpeningTree([[1, 2, 3], [1, 2, 4], [1, 5], [6]])
    assert (tree.tokens, tree.parents, tree.depths) == ([1, 2], [-1, 0], [0, 1])
    assert tree.steps == [[(-1, 1), (0, 2), (1, 3)], [(-1, 1), (0, 2), (1, 4)], [(-1, 1), (0, 5)], [(-1, 6)]]
    assert tree.sees().tolist() == [[True, False], [True, True]]
