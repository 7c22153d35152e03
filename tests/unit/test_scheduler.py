"""Planning of steered rounds: budgets, controls, the α controller and the bandit."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rass_core.generate.operators import OPERATORS, operator_of
from rass_core.generate.scheduler import (
    TRIAL,
    ArmStats,
    GenerationJob,
    Parent,
    Trial,
    alpha_costs,
    alpha_medians,
    choose_alphas,
    choose_writers,
    finalists,
    incoherent_alphas,
    schedule_round,
    schedule_trial,
    share_budget,
)
from rass_core.generate.settings import GenerateConfig
from rass_core.generate.writers import Writer

WHERE = ("rewrite", "assistant", "en", "refusing")
ASKED = Writer("assistant", "probe", 3)
IN_USERS_TURN = Writer("user", "harm_without_refusal", 2)
INSTRUCTED = ("rewrite", "trigger", "context", "recombine", "translate")
GRID = (-0.2, 0.2, 0.4, 0.6)


def parent(number: int, language: str = "en", label: str = "harmful", distance: float = 0.5) -> Parent:
    name = f"{language}-{label}-{number}-{distance}"
    return Parent(name, f"text {name}", language, label, "violence", f"family {number}", distance)


def seeds(languages: Sequence[str] = ("de", "en")) -> list[Parent]:
    labels = ("harmful", "harmless", "pseudo_harmful")
    places = [(language, label, side) for language in languages for label in labels for side in (-0.5, 0.5)]
    return [parent(n, language, label, side) for language, label, side in places for n in range(4)]


def row(alpha: float, distances: Sequence[float] = (), n: int = 8, n_coherent: int = 8, **other: Any) -> ArmStats:
    fields = {
        "operator": "rewrite",
        "role": "assistant",
        "language": "en",
        "side": "refusing",
        "n_accepted": 0,
        "n_tokens": 100,
    } | other
    return ArmStats(alpha=alpha, n_candidates=n, n_coherent=n_coherent, distances=tuple(distances), **fields)


def plan(number: int = 0, history: Sequence[ArmStats] = (), seed: int = 0, **settings: Any) -> list[GenerationJob]:
    return schedule_round(number, [ASKED], seeds(), [], history, GenerateConfig(**settings), seed)


@pytest.mark.parametrize("n", [8, 37, 400])
def test_the_budget_sums_up(n: int) -> None:
    assert len(plan(candidates_per_round=n)) == n
    history = [row(0.2, operator=name, n_accepted=k) for k, name in enumerate(OPERATORS.names())]
    assert len(plan(1, history, candidates_per_round=n)) == n


def test_the_first_round_is_shared_evenly_and_runs_the_grid() -> None:
    jobs = plan(candidates_per_round=400, alphas=list(GRID))
    arms = Counter((job.operator, job.language) for job in jobs)
    assert len(arms) == len(INSTRUCTED) * 2
    assert set(arms.values()) == {40}
    assert {job.alpha for job in jobs} == {0.0, *GRID}


def test_every_arm_and_side_has_its_control_share() -> None:
    by_place = defaultdict(list)
    for job in plan(candidates_per_round=390, control_share=0.3):
        by_place[job.operator, job.language, job.side].append(job.alpha)
    assert len(by_place) == len(INSTRUCTED) * 2 * 2
    for alphas in by_place.values():
        assert alphas.count(0.0) == math.ceil(0.3 * len(alphas))


def test_parents_fit_the_operator_the_language_and_the_side() -> None:
    survivors = [parent(9, "en", "pseudo_harmful", 0.1)]
    jobs = schedule_round(1, [ASKED], seeds(), survivors, [], GenerateConfig(), 0)
    used = {p.prompt_id for job in jobs for p in job.parents}
    assert survivors[0].prompt_id in used
    for job in jobs:
        operator = operator_of(job.operator)
        assert len({p.prompt_id for p in job.parents}) == operator.n_parents
        assert {p.side for p in job.parents} == {job.side}
        assert {p.label for p in job.parents} <= set(operator.seed_labels)
        for p in job.parents:
            assert (p.language == job.language) == (job.operator != "translate")


def test_arms_without_parents_are_left_out() -> None:
    few = [parent(1, label="harmful"), parent(2, label="pseudo_harmful")]
    jobs = schedule_round(0, [ASKED], few, [], [], GenerateConfig(candidates_per_round=50), 0)
    assert {job.operator for job in jobs} == {"rewrite", "context"}, "one parent is too few to recombine"
    assert len(jobs) == 50
    assert schedule_round(0, [ASKED], [], [], [], GenerateConfig(), 0) == []


def test_a_plan_is_determined_by_its_seed() -> None:
    assert plan(seed=1) == plan(seed=1)
    assert plan(seed=1) != plan(seed=2)
    first, second = plan(0), plan(1)
    assert {job.seed for job in first}.isdisjoint({job.seed for job in second})
    assert len({job.seed for job in first}) == len(first)


def test_the_best_alpha_takes_most_and_its_neighbours_the_rest() -> None:
    history = [row(a, [abs(a - 0.4) + 0.1] * 5) for a in GRID]
    assert Counter(choose_alphas(WHERE, 10, history, GRID)) == {0.4: 6, 0.3: 2, 0.5: 2}


def test_the_controller_converges_to_the_alpha_with_the_smallest_median() -> None:
    best, noise = 0.33, np.random.default_rng(0)
    history: list[ArmStats] = []
    for _ in range(12):
        for alpha, n in Counter(choose_alphas(WHERE, 40, history, GRID)).items():
            distances = np.abs(0.05 + abs(alpha - best) + 0.01 * noise.standard_normal(n))
            history.append(row(alpha, distances.tolist(), n=n, n_coherent=n))
    (favourite, n_favourite), *_ = Counter(choose_alphas(WHERE, 40, history, GRID)).most_common()
    assert abs(favourite - best) < 0.03
    assert n_favourite >= 24


def test_only_the_own_steered_offspring_counts() -> None:
    history = [row(0.2, [0.9] * 5), row(0.0, [0.0] * 9), row(0.6, [0.0] * 9, side="complying"), row(0.4, [0.0] * 3)]
    assert alpha_medians(WHERE, history) == {0.2: 0.9}


def test_an_incoherent_alpha_is_not_used_again() -> None:
    broken = row(0.6, [0.0] * 3 + [0.01], n=20, n_coherent=4)
    good = [row(0.2, [0.5] * 5), row(0.4, [0.3] * 5)]
    assert incoherent_alphas(WHERE, [broken, *good]) == {0.6}
    assert 0.6 not in choose_alphas(WHERE, 20, [broken, *good], GRID)
    assert set(choose_alphas(WHERE, 20, [broken], GRID)) == {-0.2, 0.2, 0.4}, "before there are medians, too"

    half_way = row(0.5, n=10, n_coherent=0)
    chosen = choose_alphas(WHERE, 20, [broken, half_way, *good], GRID)
    assert set(chosen) == {0.3, 0.4, 0.45}, "the search continues below what broke"


def test_where_every_alpha_breaks_the_text_a_gentler_one_is_tried() -> None:
    history = [row(a, n=10, n_coherent=0) for a in GRID]
    assert set(choose_alphas(WHERE, 4, history, GRID)) == {-0.1}
    history.append(row(-0.1, n=10, n_coherent=1))
    assert set(choose_alphas(WHERE, 4, history, GRID)) == {-0.05}


def test_the_bandit_moves_budget_to_the_better_arm() -> None:
    arms = [("rewrite", "assistant", "en"), ("trigger", "assistant", "en")]
    history = [row(0.2, n_accepted=60, n_tokens=10_000), row(0.2, operator="trigger", n_accepted=6, n_tokens=10_000)]
    shares = [share_budget(arms, history, 400, np.random.default_rng(seed)) for seed in range(20)]
    assert all(sum(share.values()) == 400 for share in shares)
    assert np.mean([share[arms[0]] for share in shares]) > 280
    assert min(share[arms[1]] for share in shares) >= 50, "a quarter is shared evenly"
    assert share_budget([], history, 400, np.random.default_rng(0)) == {}


def test_tokens_are_the_bandits_price() -> None:
    arms = [("rewrite", "assistant", "en"), ("trigger", "assistant", "en")]
    history = [row(0.2, n_accepted=30, n_tokens=10_000), row(0.2, operator="trigger", n_accepted=30, n_tokens=90_000)]
    shares = [share_budget(arms, history, 100, np.random.default_rng(seed)) for seed in range(10)]
    assert np.mean([share[arms[0]] for share in shares]) > 65


def test_every_arm_writes_in_a_role_that_its_operator_can_take() -> None:
    jobs = schedule_round(0, [IN_USERS_TURN, ASKED], seeds(), [], [], GenerateConfig(), 0)
    assert {job.operator for job in jobs} == set(OPERATORS.names())
    for job in jobs:
        assert job.writer.role in operator_of(job.operator).roles
        assert job.writer == (IN_USERS_TURN if job.writer.role == "user" else ASKED)


def test_parents_that_are_to_be_imitated_are_of_one_category() -> None:
    mixed = [replace(each, category=each.family) for each in seeds()]
    mixed += [replace(each, prompt_id=f"{each.prompt_id}-{n}") for each in mixed for n in range(3)]
    jobs = schedule_round(0, [IN_USERS_TURN], mixed, [], [], GenerateConfig(), 0)
    imitating = [job for job in jobs if job.operator == "imitate"]
    assert imitating
    assert all(len({parent.category for parent in job.parents}) == 1 for job in imitating)


def test_an_unsteered_writer_gets_no_alpha() -> None:
    jobs = schedule_round(0, [Writer("user", "none", None)], seeds(), [], [], GenerateConfig(), 0)
    assert {job.alpha for job in jobs} == {0.0}


def test_the_cells_of_a_trial_differ_in_nothing_but_the_writer() -> None:
    cells = [(IN_USERS_TURN, 0.5), (IN_USERS_TURN, 1.0), (Writer("user", "none", None), 0.0)]
    jobs = schedule_trial(cells, 30, seeds(), GenerateConfig(), 0)
    by_cell = defaultdict(list)
    for job in jobs:
        by_cell[job.writer, job.alpha].append((job.operator, job.parents, job.seed))
    assert len(by_cell) == 3
    first, *others = by_cell.values()
    assert len(first) == 10
    assert all(each == first for each in others)
    assert TRIAL < 0, "no round has its number"
    again = schedule_trial(cells, 30, seeds(), GenerateConfig(), 0, leg=1)
    assert {job.seed for job in again}.isdisjoint(job.seed for job in jobs), "a second leg writes other texts"


def trial(writer: Writer, accepted: int, requests: int = 8, tokens: int = 200, alpha: float = 0.5) -> Trial:
    return Trial(writer, alpha, 8, requests, accepted, tokens)


def test_the_trial_chooses_the_writer_that_gives_most_per_token() -> None:
    other = Writer("user", "content", 4)
    tried = [trial(IN_USERS_TURN, 2), trial(IN_USERS_TURN, 4, alpha=1.0), trial(other, 5), trial(other, 0, alpha=1.0)]
    assert choose_writers(tried) == [IN_USERS_TURN], "all its α together"
    assert choose_writers([trial(IN_USERS_TURN, 4, tokens=900), trial(other, 3)]) == [other], "tokens are the price"


def test_the_rate_at_one_block_is_drawn_towards_that_of_the_steering() -> None:
    lucky, elsewhere = Writer("user", "harm", 2), Writer("user", "harm", 3)
    steady, too = Writer("user", "content", 2), Writer("user", "content", 3)
    tried = [trial(lucky, 3, tokens=100), trial(elsewhere, 0, tokens=300), trial(steady, 3, tokens=110)]
    assert choose_writers([*tried, trial(too, 3, tokens=110)]) == [steady]
    assert choose_writers([*tried, trial(too, 0, tokens=300)]) == [lucky]


def test_the_steered_writers_that_did_best_write_once_more() -> None:
    best, good, poor = (Writer("user", "harm", layer) for layer in (1, 2, 3))
    tried = [trial(Writer("user", "none", None), 8, alpha=0.0), trial(poor, 0), trial(good, 4), trial(best, 6)]
    assert finalists(tried, 2) == [best, good]
    assert finalists(tried[:1], 2) == []


def test_a_role_that_gives_half_as_much_stays_and_a_worse_one_goes() -> None:
    declining = Writer("prefilled", "none", None)
    tried = [trial(IN_USERS_TURN, 6), trial(ASKED, 5), trial(declining, 0, requests=1)]
    assert choose_writers(tried) == [IN_USERS_TURN, ASKED]


def test_steering_that_brings_nothing_is_not_chosen() -> None:
    unsteered = Writer("user", "none", None)
    assert choose_writers([trial(unsteered, 4, alpha=0.0), trial(IN_USERS_TURN, 2)]) == [unsteered]
    assert choose_writers([trial(unsteered, 3, alpha=0.0), trial(IN_USERS_TURN, 3)]) == [unsteered], "at equal worth"


def test_without_accepted_prompts_requests_decide() -> None:
    assert choose_writers([trial(ASKED, 0, requests=1), trial(IN_USERS_TURN, 0, requests=8)]) == [IN_USERS_TURN]


def test_the_controller_can_go_by_what_is_accepted() -> None:
    history = [row(0.2, [0.1] * 8, n_accepted=1), row(0.4, [0.9] * 8, n_accepted=6), row(0.6, n=8, n_coherent=1)]
    assert set(alpha_costs(WHERE, history)) == {0.2, 0.4}, "an α that breaks the text is left out"
    chosen = Counter(choose_alphas(WHERE, 10, history, GRID, by_acceptance=True))
    assert chosen.most_common(1)[0][0] == 0.4
    assert Counter(choose_alphas(WHERE, 10, history, GRID)).most_common(1)[0][0] == 0.2


def test_families_are_parents_by_turns() -> None:
    given = [parent(n, label="pseudo_harmful", distance=0.5) for n in range(6)]
    crowd = [replace(parent(0, distance=0.6 + n), label="pseudo_harmful") for n in range(50)]
    writers = [IN_USERS_TURN]
    settings = GenerateConfig(candidates_per_round=120, operators=["begin"])
    jobs = schedule_round(1, writers, given, crowd, [], settings, seed=0)
    families = Counter(job.parents[0].family for job in jobs)
    assert len(families) == 6 and max(families.values()) - min(families.values()) <= 1
