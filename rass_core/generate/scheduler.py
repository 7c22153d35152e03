"""Steered rounds: which prompts are written next, by which operator and writer, and how hard they are steered.

A short trial chooses the writer of each role: what it is steered along, and after which block. In the rounds a
controller picks the α of each (operator, role, language, side), and a bandit moves budget between (operator, role,
language) arms. All read only the tables of what was written before, so a resumed run gives the rows of an
uninterrupted one.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rass_core.generate.operators import operator_of
from rass_core.generate.settings import GenerateConfig
from rass_core.generate.writers import Writer
from rass_core.text import digest

MIN_COHERENT_SHARE = 0.5
"""An α under which fewer of the written texts are coherent prompts is not used again."""
MIN_OFFSPRING = 4
"""Benign offspring from which a median is trusted."""
EXPLORED_SHARE = 0.4
"""Share of an arm's steered budget that goes to the neighbours of its best α."""
PRIOR_TOKENS = 2000.0
"""Weight of the bandit's prior: one accepted prompt in so many tokens."""
TRIAL_PRIOR_TOKENS = 200.0
"""The same for the trial, which writes little."""
REQUEST_WORTH = 0.1
"""What a new request counts in the trial, an accepted one being 1."""
TRIAL = -1
"""Number of the trial where rounds are counted from 0."""


@dataclass(frozen=True)
class Parent:
    """A prompt that new ones are made from."""

    prompt_id: str
    text: str
    language: str
    label: str
    category: str | None
    family: str
    distance: float

    @property
    def side(self) -> str:
        """Return the side of the boundary on which it lies."""
        return "refusing" if self.distance > 0 else "complying"


@dataclass(frozen=True)
class GenerationJob:
    """One prompt to be written."""

    operator: str
    writer: Writer
    language: str
    side: str
    alpha: float
    parents: tuple[Parent, ...]
    seed: int


@dataclass(frozen=True)
class ArmStats:
    """What one (operator, role, language, side, α) wrote in a round: a row of table `rounds`."""

    operator: str
    role: str
    language: str
    side: str
    alpha: float
    n_candidates: int
    n_coherent: int
    n_accepted: int
    n_tokens: int
    distances: Sequence[float] = field(default=())
    """|m − b| of its benign offspring."""


@dataclass(frozen=True)
class Trial:
    """What a writer wrote at one α: a row of table `writers`."""

    writer: Writer
    alpha: float
    n_candidates: int
    n_requests: int
    """New requests: what survived cleaning."""
    n_accepted: int
    n_tokens: int


Arm = tuple[str, str, str]
"""operator, role, language"""
Steerable = tuple[str, str, str, str]
"""operator, role, language, side"""


def schedule_round(
    number: int, writers: Sequence[Writer], seeds: Sequence[Parent], survivors: Sequence[Parent],
    history: Sequence[ArmStats], config: GenerateConfig, seed: int,
) -> list[GenerationJob]:  # fmt: skip
    """Return the prompts of a round: each arm's share of the budget, its control share unsteered.

    Args:
        number: Number of the round, from 0.
        writers: One per role.
        seeds: Given prompts, of the labels that operators start from.
        survivors: Benign prompts of earlier rounds that may be parents.
        history: What earlier rounds yielded.
        config: Operators, budget, alphas.
        seed: Seed of the run.
    """
    draw = np.random.default_rng([seed, number])
    by_role = {writer.role: writer for writer in writers}
    pools = _pools(seeds, survivors, config.operators, list(by_role))
    budget = share_budget(sorted(pools), history, config.candidates_per_round, draw)
    jobs = []
    for arm, n in budget.items():
        by_side, writer = pools[arm], by_role[arm[1]]
        for position, (side, pool) in enumerate(sorted(by_side.items())):
            n_side = n // len(by_side) + (position < n % len(by_side))
            n_control = n_side if writer.kind == "none" else math.ceil(n_side * config.control_share)
            alphas = [0.0] * n_control
            alphas += choose_alphas(
                (*arm, side), n_side - n_control, history, config.alphas, by_acceptance=config.width is None
            )
            first = _in_turn(pool, draw)
            jobs += [
                _job(number, index, arm, writer, side, alpha, next(first), pool, draw)
                for index, alpha in enumerate(alphas)
            ]
    return jobs


def schedule_trial(
    cells: Sequence[tuple[Writer, float]], n_candidates: int, seeds: Sequence[Parent], config: GenerateConfig,
    seed: int, leg: int = 0,
) -> list[GenerationJob]:  # fmt: skip
    """Return the prompts by which writers are compared: each (writer, α) has as many, from the same kinds of parents.

    Args:
        cells: Writers with the α at which each is tried.
        n_candidates: Prompts over all cells, at least one per cell.
        leg: Number of the trial's leg; each draws parents of its own.
    """
    pools = _pools(seeds, [], config.operators, sorted({writer.role for writer, _ in cells}))
    jobs = []
    for writer, alpha in cells:
        # Every cell of a role draws alike, so that cells differ in what is compared and not in their parents.
        draw = np.random.default_rng([seed, 1_000_003, leg] if leg else [seed, 1_000_003])
        places = [(arm, side) for arm in sorted(pools) if arm[1] == writer.role for side in sorted(pools[arm])]
        if not places:
            continue
        order = draw.permutation(len(places))
        first = {(arm, side): _in_turn(pools[arm][side], draw) for arm, side in places}
        for index in range(max(1, n_candidates // len(cells))):
            arm, side = places[int(order[index % len(places)])]
            jobs.append(_job(TRIAL, index, arm, writer, side, alpha, next(first[arm, side]), pools[arm][side], draw))
    return jobs


def choose_writers(tried: Sequence[Trial]) -> list[Writer]:
    """Return the best writer of each role that is worth its tokens, the best role first.

    A writer counts over all its α together. A role stays where it has at least half of the best one's rate; within a
    role a steered writer must do better than the unsteered one. Rates are accepted prompts per token, drawn towards
    those of the same steering at other blocks, since a trial writes little. So that a trial without any accepted
    prompt can decide too, new requests count a little.
    """
    best: dict[str, Writer] = {}
    scores = _scores(tried)
    for writer in _by_score(scores):
        best.setdefault(writer.role, writer)
    ranked = list(best.values())
    return [writer for writer in ranked if scores[writer] >= scores[ranked[0]] / 2]


def finalists(tried: Sequence[Trial], n: int) -> list[Writer]:
    """Return the n steered writers that did best, for a second trial: the first one wrote too little to decide."""
    return [writer for writer in _by_score(_scores(tried)) if writer.kind != "none"][:n]


def _by_score(scores: Mapping[Writer, float]) -> list[Writer]:
    """Return writers, the best first; of equals the unsteered one."""
    return sorted(scores, key=lambda each: (-scores[each], each.kind != "none", each.name))


def _scores(tried: Sequence[Trial]) -> dict[Writer, float]:
    """Return writer → accepted prompts per token, drawn towards the rate of its steering at all blocks."""
    prior = {
        kind: _worth([each for each in tried if _kind(each.writer) == kind]) for kind in map(_kind, _writers(tried))
    }
    scores: dict[Writer, float] = {}
    for writer in _writers(tried):
        worth, tokens = _worth([each for each in tried if each.writer == writer])
        of_kind, tokens_of_kind = prior[_kind(writer)]
        rate = (REQUEST_WORTH + of_kind) / (TRIAL_PRIOR_TOKENS + tokens_of_kind)
        scores[writer] = (worth + TRIAL_PRIOR_TOKENS * rate) / (tokens + TRIAL_PRIOR_TOKENS)
    return scores


def _writers(tried: Sequence[Trial]) -> list[Writer]:
    return list(dict.fromkeys(each.writer for each in tried))


def _kind(writer: Writer) -> tuple[str, str]:
    return writer.role, writer.kind


def _worth(tried: Sequence[Trial]) -> tuple[float, int]:
    """Return what was written in accepted prompts, new requests counting a little, and its tokens."""
    return sum(t.n_accepted + REQUEST_WORTH * t.n_requests for t in tried), sum(t.n_tokens for t in tried)


def share_budget(
    arms: Sequence[Arm], history: Sequence[ArmStats], n_candidates: int, draw: np.random.Generator
) -> dict[Arm, int]:
    """Return arm → candidates: Thompson sampling of accepted prompts per token, a quarter shared evenly.

    The rate of an arm has a Gamma posterior, its accepted prompts being a Poisson count over tokens.
    """
    if not arms:
        return {}
    accepted: dict[Arm, int] = defaultdict(int)
    tokens: dict[Arm, int] = defaultdict(int)
    for row in history:
        arm = row.operator, row.role, row.language
        accepted[arm] += row.n_accepted
        tokens[arm] += row.n_tokens
    rates = np.array([draw.gamma(1 + accepted[arm], 1 / (PRIOR_TOKENS + tokens[arm])) for arm in arms])
    shares = 0.25 / len(arms) + 0.75 * rates / rates.sum() if history else np.full(len(arms), 1 / len(arms))
    exact = shares * n_candidates
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: n_candidates - counts.sum()]:
        counts[index] += 1
    return {arm: int(n) for arm, n in zip(arms, counts, strict=True)}


def choose_alphas(
    where: Steerable, n: int, history: Sequence[ArmStats], grid: Sequence[float], by_acceptance: bool = False
) -> list[float]:
    """Return the α of n prompts of an operator, role, language and side.

    Before there is enough to go by, the grid in turn. Later the best α and, with a share of the
    budget, points half way to its neighbours, so that the search narrows. An α that broke the text
    is not used again; where all did, half the gentlest of them is.

    Args:
        by_acceptance: The best α has most accepted prompts per token; else offspring nearest to the boundary.
    """
    broken = incoherent_alphas(where, history)
    costs = alpha_costs(where, history) if by_acceptance else alpha_medians(where, history)
    if not costs:
        sound = [alpha for alpha in grid if alpha not in broken] or [min(broken, key=abs) / 2]
        return [sound[index % len(sound)] for index in range(n)]
    best = min(costs, key=lambda alpha: (costs[alpha], abs(alpha)))
    tried = sorted({*costs, *grid, *broken})
    at = tried.index(best)
    neighbours = [round((best + tried[i]) / 2, 3) for i in (at - 1, at + 1) if 0 <= i < len(tried)]
    neighbours = [alpha for alpha in neighbours if alpha != 0.0 and alpha not in {*costs, *broken}]
    n_explored = round(n * EXPLORED_SHARE) if neighbours else 0
    explored = [neighbours[index % len(neighbours)] for index in range(n_explored)]
    return explored + [best] * (n - n_explored)


def alpha_costs(where: Steerable, history: Sequence[ArmStats]) -> dict[float, float]:
    """Return α → tokens per accepted prompt, with a weak prior; incoherent and little-tried α are left out."""
    broken = incoherent_alphas(where, history)
    totals: dict[float, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in _steered(where, history):
        for i, number in enumerate((row.n_candidates, row.n_accepted, row.n_tokens)):
            totals[row.alpha][i] += number
    return {
        alpha: (TRIAL_PRIOR_TOKENS + n_tokens) / (1 + n_accepted)
        for alpha, (n, n_accepted, n_tokens) in totals.items()
        if n >= MIN_OFFSPRING and alpha not in broken
    }


def alpha_medians(where: Steerable, history: Sequence[ArmStats]) -> dict[float, float]:
    """Return α → median |m − b| of its benign offspring, incoherent and little-tried α left out."""
    broken = incoherent_alphas(where, history)
    distances: dict[float, list[float]] = defaultdict(list)
    for row in _steered(where, history):
        distances[row.alpha] += list(row.distances)
    return {
        alpha: float(np.median(values))
        for alpha, values in distances.items()
        if len(values) >= MIN_OFFSPRING and alpha not in broken
    }


def incoherent_alphas(where: Steerable, history: Sequence[ArmStats]) -> set[float]:
    """Return the α under which too few of the written texts were coherent prompts."""
    written: dict[float, int] = defaultdict(int)
    coherent: dict[float, int] = defaultdict(int)
    for row in _steered(where, history):
        written[row.alpha] += row.n_candidates
        coherent[row.alpha] += row.n_coherent
    return {alpha for alpha, n in written.items() if n >= MIN_OFFSPRING and coherent[alpha] < MIN_COHERENT_SHARE * n}


def _steered(where: Steerable, history: Sequence[ArmStats]) -> list[ArmStats]:
    return [row for row in history if (row.operator, row.role, row.language, row.side) == where and row.alpha != 0.0]


def _pools(
    seeds: Sequence[Parent], survivors: Sequence[Parent], operators: Sequence[str], roles: Sequence[str]
) -> dict[Arm, dict[str, list[Parent]]]:
    """Return arm → side → the parents it may draw from; arms without parents are left out."""
    languages = sorted({parent.language for parent in seeds})
    pools: dict[Arm, dict[str, list[Parent]]] = {}
    for name in operators:
        operator = operator_of(name)
        usable = [p for p in seeds if p.label in operator.seed_labels]
        usable += list(survivors) if operator.takes_survivors else []
        for language in languages:
            by_side: dict[str, list[Parent]] = defaultdict(list)
            for parent in usable:
                if (parent.language != language) == operator.crosses_languages:
                    by_side[parent.side].append(parent)
            enough = {side: pool for side, pool in by_side.items() if len(pool) >= operator.n_parents}
            if enough:
                pools.update({(name, role, language): enough for role in roles if role in operator.roles})
    return pools


def _in_turn(pool: Sequence[Parent], draw: np.random.Generator) -> Iterator[Parent]:
    """Yield parents without end, the families by turns: what one prompt led to is soon a crowd among the survivors."""
    families: dict[str, list[Parent]] = defaultdict(list)
    for parent in pool:
        families[parent.family].append(parent)
    while True:
        for index in draw.permutation(len(families)):
            members = list(families.values())[int(index)]
            yield members[int(draw.integers(len(members)))]


def _job(
    number: int, index: int, arm: Arm, writer: Writer, side: str, alpha: float, first: Parent, pool: Sequence[Parent],
    draw: np.random.Generator,
) -> GenerationJob:  # fmt: skip
    """Return the job that starts from one parent; an operator that takes more draws them from the pool."""
    name, _, language = arm
    operator = operator_of(name)
    n_parents = operator.n_parents
    if operator.shares_category:
        alike = [parent for parent in pool if parent.category == first.category]
        pool = alike if len(alike) >= n_parents else pool
    others = [parent for parent in pool if parent is not first]
    chosen = list(draw.choice(len(others), size=n_parents - 1, replace=False)) if n_parents > 1 else []
    # Its name is older than that of the class: another would draw other prompts from the same seed.
    seed = int(digest("slot", number, name, language, side, index, int(draw.integers(2**31)))[:8], 16) % 2**31
    return GenerationJob(name, writer, language, side, alpha, (first, *(others[int(i)] for i in chosen)), seed)
