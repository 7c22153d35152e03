"""Steered rounds: which prompts are written next, by which operator, and how hard they are steered.

A controller picks the α of each (operator, language, side); a bandit moves budget between
(operator, language) arms. Both see only the tables of earlier rounds, so a run that was stopped
goes on as if it had not been.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rass_core.config import GenerateConfig
from rass_core.operators import OPERATORS
from rass_core.tables import digest

MIN_COHERENT_SHARE = 0.5
"""An α under which fewer of the written texts are coherent prompts is not used again."""
MIN_OFFSPRING = 4
"""Benign offspring from which a median is trusted."""
EXPLORED_SHARE = 0.4
"""Share of an arm's steered budget that goes to the neighbours of its best α."""
PRIOR_TOKENS = 2000.0
"""Weight of the bandit's prior: one accepted prompt in so many tokens."""


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
class Slot:
    """One prompt to be written."""

    operator: str
    language: str
    side: str
    alpha: float
    parents: tuple[Parent, ...]
    seed: int


@dataclass(frozen=True)
class Yield:
    """What one (operator, language, side, α) wrote in a round: a row of table `rounds`."""

    operator: str
    language: str
    side: str
    alpha: float
    n_candidates: int
    n_coherent: int
    n_accepted: int
    n_tokens: int
    distances: Sequence[float] = field(default=())
    """|m − b| of its benign offspring."""


Arm = tuple[str, str]
Steerable = tuple[str, str, str]


def plan_round(
    number: int, seeds: Sequence[Parent], survivors: Sequence[Parent], history: Sequence[Yield],
    config: GenerateConfig, seed: int,
) -> list[Slot]:  # fmt: skip
    """Return the prompts of a round: each arm's share of the budget, its control share unsteered.

    Args:
        number: Of the round, from 0.
        seeds: Given prompts, of the labels that operators start from.
        survivors: Near-boundary benign prompts of earlier rounds.
        history: What earlier rounds yielded.
        config: Operators, budget, alphas.
        seed: Of the run.
    """
    draw = np.random.default_rng([seed, number])
    pools = _pools(seeds, survivors, config.operators)
    budget = share_budget(sorted(pools), history, config.candidates_per_round, draw)
    slots = []
    for arm, n in budget.items():
        by_side = pools[arm]
        for position, (side, pool) in enumerate(sorted(by_side.items())):
            n_side = n // len(by_side) + (position < n % len(by_side))
            n_control = math.ceil(n_side * config.control_share)
            alphas = [0.0] * n_control
            alphas += choose_alphas((*arm, side), n_side - n_control, history, config.alphas)
            slots += [_slot(number, index, arm, side, alpha, pool, draw) for index, alpha in enumerate(alphas)]
    return slots


def share_budget(
    arms: Sequence[Arm], history: Sequence[Yield], n_candidates: int, draw: np.random.Generator
) -> dict[Arm, int]:
    """Return arm → candidates: Thompson sampling of accepted prompts per token, a quarter shared evenly.

    The rate of an arm has a Gamma posterior, its accepted prompts being a Poisson count over tokens.
    """
    if not arms:
        return {}
    accepted: dict[Arm, int] = defaultdict(int)
    tokens: dict[Arm, int] = defaultdict(int)
    for row in history:
        accepted[row.operator, row.language] += row.n_accepted
        tokens[row.operator, row.language] += row.n_tokens
    rates = np.array([draw.gamma(1 + accepted[arm], 1 / (PRIOR_TOKENS + tokens[arm])) for arm in arms])
    shares = 0.25 / len(arms) + 0.75 * rates / rates.sum() if history else np.full(len(arms), 1 / len(arms))
    exact = shares * n_candidates
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: n_candidates - counts.sum()]:
        counts[index] += 1
    return {arm: int(n) for arm, n in zip(arms, counts, strict=True)}


def choose_alphas(where: Steerable, n: int, history: Sequence[Yield], grid: Sequence[float]) -> list[float]:
    """Return the α of n prompts of an operator, language and side.

    Before there is enough to go by, the grid in turn. Later the best α and, with a share of the
    budget, points half way to its neighbours, so that the search narrows. An α that broke the text
    is not used again; where all did, half the gentlest of them is.
    """
    medians, broken = alpha_medians(where, history), incoherent_alphas(where, history)
    if not medians:
        sound = [alpha for alpha in grid if alpha not in broken] or [min(broken, key=abs) / 2]
        return [sound[index % len(sound)] for index in range(n)]
    best = min(medians, key=lambda alpha: (medians[alpha], abs(alpha)))
    tried = sorted({*medians, *grid, *broken})
    at = tried.index(best)
    neighbours = [round((best + tried[i]) / 2, 3) for i in (at - 1, at + 1) if 0 <= i < len(tried)]
    neighbours = [alpha for alpha in neighbours if alpha != 0.0 and alpha not in {*medians, *broken}]
    n_explored = round(n * EXPLORED_SHARE) if neighbours else 0
    explored = [neighbours[index % len(neighbours)] for index in range(n_explored)]
    return explored + [best] * (n - n_explored)


def alpha_medians(where: Steerable, history: Sequence[Yield]) -> dict[float, float]:
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


def incoherent_alphas(where: Steerable, history: Sequence[Yield]) -> set[float]:
    """Return the α under which too few of the written texts were coherent prompts."""
    written: dict[float, int] = defaultdict(int)
    coherent: dict[float, int] = defaultdict(int)
    for row in _steered(where, history):
        written[row.alpha] += row.n_candidates
        coherent[row.alpha] += row.n_coherent
    return {alpha for alpha, n in written.items() if n >= MIN_OFFSPRING and coherent[alpha] < MIN_COHERENT_SHARE * n}


def _steered(where: Steerable, history: Sequence[Yield]) -> list[Yield]:
    return [row for row in history if (row.operator, row.language, row.side) == where and row.alpha != 0.0]


def _pools(
    seeds: Sequence[Parent], survivors: Sequence[Parent], operators: Sequence[str]
) -> dict[Arm, dict[str, list[Parent]]]:
    """Return arm → side → the parents it may draw from; arms without parents are left out."""
    languages = sorted({parent.language for parent in seeds})
    pools: dict[Arm, dict[str, list[Parent]]] = {}
    for name in operators:
        operator = OPERATORS[name]
        usable = [p for p in seeds if p.label in operator.seed_labels]
        usable += list(survivors) if operator.takes_survivors else []
        for language in languages:
            foreign = name == "translate"
            by_side: dict[str, list[Parent]] = defaultdict(list)
            for parent in usable:
                if (parent.language != language) == foreign:
                    by_side[parent.side].append(parent)
            enough = {side: pool for side, pool in by_side.items() if len(pool) >= operator.n_parents}
            if enough:
                pools[name, language] = enough
    return pools


def _slot(
    number: int, index: int, arm: Arm, side: str, alpha: float, pool: Mapping[int, Parent] | Sequence[Parent],
    draw: np.random.Generator,
) -> Slot:  # fmt: skip
    operator, language = arm
    chosen = draw.choice(len(pool), size=OPERATORS[operator].n_parents, replace=False)
    seed = int(digest("slot", number, *arm, side, index, int(draw.integers(2**31)))[:8], 16) % 2**31
    return Slot(operator, language, side, alpha, tuple(pool[int(i)] for i in chosen), seed)
