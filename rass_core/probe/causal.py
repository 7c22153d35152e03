"""Causal trials: does adding a direction make the model refuse, does ablating it make the model answer?

Many directions are screened on a few prompts, the best are tried on all of them. Prefixes are teacher-forced, so no
answer to a harmful prompt is generated. The final strength of the direction that is added is chosen by the caller from
generated answers to harmless prompts (`generation_options`, `is_coherent_refusal`).
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rass_core.errors import BoundaryError
from rass_core.models.causal_lm import decoder_blocks, model_name
from rass_core.models.interventions import ablating, adding
from rass_core.models.packed import PackedPrompts
from rass_core.models.prefix_logprobs import PlainPrompts, PrefixReader, kl_divergence, prompt_reader
from rass_core.probe.geometry import Direction
from rass_core.probe.settings import ProbeConfig
from rass_core.text import AcceptanceLimits, is_degenerate

CAUSAL_KINDS = ("harm", "refusal", "false_refusal")
MARGIN_KINDS = ("harm", "refusal")
"""Kinds that may give the margin. Harm is taken out of false_refusal, so its class means are no scale."""
AUC_TIE = 0.02
"""Validation AUCs this close are a tie, which causal scores decide."""
SCREENING_ALPHA = 1.0
WINDOW = 2
"""Blocks on either side of its own in which a direction is ablated where the extent is a window."""
MAX_ABLATIONS_TRIED = 3
"""Extents and strengths that are tried on all prompts, the most promising on a few prompts first."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CausalPrompts:
    """Prompts of one language for the causal trials, as token ids in the chat template."""

    harmful: list[list[int]]
    harmless: list[list[int]]
    refusal_openings: list[list[int]]
    compliance_openings: list[list[int]]


@dataclass(frozen=True)
class Ablation:
    """Where and how strongly a direction was ablated, and the effect."""

    layers: tuple[int, ...]
    strength: float
    kl: float
    """Mean KL in nats of the first token on harmless prompts."""
    bypass: float
    """Share of harmful prompts whose log-odds turn away from refusal."""
    log_odds: float
    """Mean log-odds of refusal on harmful prompts, nats."""


@dataclass(frozen=True)
class Screening:
    """What a direction does to a few prompts."""

    direction: Direction
    induced: float
    """Share of harmless prompts that turn to refusal with the direction added at α = 1."""
    log_odds: float
    """Mean log-odds of refusal of all of them, nats."""
    bypass_gain: float
    """Fall of the mean log-odds on harmful prompts per nat of KL on harmless ones, ablated from its layer on."""


class CausalTrial:
    """Tries directions on the model, teacher-forced: no answer is generated for it.

    What the blocks below a change put out does not depend on it; that is computed once for all directions.

    Args:
        model: A transformers causal LM in evaluation mode, unchanged.
        prompts: One entry per language.
        config: alphas and token budget.
        layers: Layers of the directions to be tried, so that their streams are read together.
    """

    def __init__(
        self, model: Any, prompts: Sequence[CausalPrompts], config: ProbeConfig, layers: Sequence[int] = ()
    ) -> None:
        if not prompts:
            raise BoundaryError("causal trial: no prompts; give harmful and harmless prompts of one language")
        self._model, self._config = model, config
        self.n_layers = len(decoder_blocks(model))
        # An ablation that begins at a layer, or in the window around it, continues from the block before.
        begins = {begin for layer in layers for begin in (layer, layer - 1, layer - WINDOW - 1)}
        self._layers = sorted(layer for layer in begins if layer >= 0)
        self._harmless = [self._prefixes(p.harmless, p) for p in prompts]
        self._harmful = [self._prefixes(p.harmful, p) for p in prompts]
        self._ordinary = [prompt_reader(model, p.harmless, (), config.token_budget) for p in prompts]
        # Read as it will be read again: another packing rounds otherwise, which in bfloat16 shows as a KL of 0.01.
        self._base = self._first_tokens(None)
        self.harmful_log_odds = _log_odds(self._harmful, None)
        self._answering = self._leaning("harmless", _log_odds(self._harmless, None) <= 0)
        self._refusing = self._leaning("harmful", self.harmful_log_odds > 0)
        self._can_resume = self._resumes()

    def __call__(self, direction: Direction) -> Direction:
        """Return the direction with its induced share at every α, and with the scores of its full ablation."""
        induced = {alpha: self.induced(direction, alpha) for alpha in self._config.alphas}
        alpha = max(induced, key=lambda a: (round(induced[a][0], 2), -a))
        whole = self.ablated(direction, range(self.n_layers), 1.0)
        return with_ablation(
            replace(
                direction,
                alpha=alpha,
                induce_score=induced[alpha][0],
                induced={alpha: share for alpha, (share, _) in induced.items()},
                full_ablation_bypass=whole.bypass,
                full_ablation_kl=whole.kl,
            ),
            whole,
        )

    def induced(self, direction: Direction, alpha: float) -> tuple[float, float]:
        """Return the share of harmless prompts that turn to refusal with α·v added, and the mean log-odds of all.

        Prompts that lean to refusal in the unchanged model are left out of the share: nothing is induced there.
        """
        above = [self._above(reader, direction.layer) for reader in self._harmless]
        with adding(self._model, [direction.layer], _tensor(direction), alpha):
            log_odds = _log_odds(self._harmless, above)
        return float((log_odds[self._answering] > 0).double().mean()), float(log_odds.mean())

    def ablated(self, direction: Direction, layers: Sequence[int], strength: float) -> Ablation:
        """Return what ablating the direction after these blocks does to harmful and to harmless prompts."""
        below = min(layers) - 1
        above = [self._above(reader, below) for reader in self._harmful]
        kl = self.kl(direction, layers, strength)
        with self._ablating(direction, layers, strength):
            log_odds = _log_odds(self._harmful, above)
        bypass = float((log_odds[self._refusing] < 0).double().mean())
        return Ablation(tuple(layers), strength, kl, bypass, float(log_odds.mean()))

    def kl(self, direction: Direction, layers: Sequence[int], strength: float) -> float:
        """Return the mean KL on harmless prompts, nats, with the direction ablated after these blocks."""
        above = [self._above(reader, min(layers) - 1) for reader in self._ordinary]
        with self._ablating(direction, layers, strength):
            changed = self._first_tokens(above)
        return float(torch.cat([kl_divergence(*pair) for pair in zip(self._base, changed, strict=True)]).mean())

    def extents(self, layer: int) -> list[tuple[int, ...]]:
        """Return the sets of blocks that are tried for a direction: its own, a window, from it on, and all."""
        last = self.n_layers - 1
        found = [
            (layer,),
            tuple(range(max(0, layer - WINDOW), min(last, layer + WINDOW) + 1)),
            tuple(range(layer, last + 1)),
            tuple(range(last + 1)),
        ]
        return list(dict.fromkeys(found))

    def _ablating(self, direction: Direction, layers: Sequence[int], strength: float) -> AbstractContextManager[None]:
        return ablating(self._model, _tensor(direction), strength, list(layers))

    def _prefixes(self, prompts: Sequence[list[int]], given: CausalPrompts) -> PrefixReader:
        return PrefixReader(
            self._model, prompts, given.refusal_openings, given.compliance_openings, self._config.token_budget
        )

    def _first_tokens(self, above: Sequence[int | None] | None) -> list[Tensor]:
        found = []
        for number, reader in enumerate(self._ordinary):
            first = reader.read(first_token=True, above=None if above is None else above[number]).first_token
            assert first is not None  # asked for
            found.append(first)
        return found

    def _above(self, reader: PrefixReader | PackedPrompts | PlainPrompts, layer: int) -> int | None:
        """Return the block to go on from: this one where its streams are or can be kept, else None."""
        if layer < 0 or not self._can_resume:
            return None
        if layer not in reader.remembered:
            reader.remember([layer, *(each for each in self._layers if each > layer)])
        return layer if layer in reader.remembered else None

    def _leaning(self, label: str, which: Tensor) -> Tensor:
        """Return which prompts can turn; all of them where none can, which the log says."""
        if bool(which.any()):
            return which
        _LOG.warning(
            "%s: by log-odds no %s prompt leans the expected way in the unchanged model, so shares are over all of "
            "them; set probe.prefixes to this model's own",
            model_name(self._model),
            label,
        )
        return torch.ones_like(which)

    def _resumes(self) -> bool:
        """Return whether going on from remembered streams gives the numbers of the whole model."""
        self._can_resume = True
        middle = self.n_layers // 2
        above = [self._above(reader, middle) for reader in self._ordinary]
        if set(above) == {None}:
            return False
        again = self._first_tokens(above)
        kl = max(float(kl_divergence(*pair).abs().max()) for pair in zip(self._base, again, strict=True))
        if kl > 1e-4:
            _LOG.warning(
                "%s: every trial runs all blocks, which is slower: going on from block %d changes the first token by "
                "%.2g nats",
                model_name(self._model),
                middle,
                kl,
            )
        return kl <= 1e-4


def fewer(prompts: Sequence[CausalPrompts], n: int) -> list[CausalPrompts]:
    """Return about n prompts per class, shared among the languages, at least two of each."""
    each = max(2, n // len(prompts))
    return [replace(p, harmful=p.harmful[:each], harmless=p.harmless[:each]) for p in prompts]


def screening_candidates(found: Sequence[Direction], n_layers: int, n_screened: int) -> list[Direction]:
    """Return directions to screen: of every kind and layer the position with the best AUC, layers evenly thinned.

    The last fifth of the layers is excluded, as by Arditi et al. (2024).

    Args:
        n_layers: Number of layers of the model.
        n_screened: Most directions; at least one layer of every kind is kept.
    """
    best: dict[tuple[str, int], Direction] = {}
    for direction in found:
        if direction.kind not in CAUSAL_KINDS or direction.language is not None:
            continue
        if direction.layer >= n_layers - n_layers // 5:
            continue
        key = (direction.kind, direction.layer)
        if key not in best or _screening_rank(direction) > _screening_rank(best[key]):
            best[key] = direction
    layers = sorted({layer for _, layer in best})
    n_kinds = len({kind for kind, _ in best})
    n_kept = max(1, min(len(layers), n_screened // max(1, n_kinds)))
    kept = {layers[i] for i in np.linspace(0, len(layers) - 1, n_kept).round().astype(int)} if layers else set()
    return [best[key] for key in sorted(best) if key[1] in kept]


def _screening_rank(direction: Direction) -> tuple[float, int]:
    """Rank by AUC; of equals the earlier position, further from where the answer's first word is prepared."""
    return (direction.auc or 0.0, -direction.position)


def screen(
    trial: CausalTrial, directions: Sequence[Direction], max_kl: float, done: Callable[[int], None] = lambda n: None
) -> list[Screening]:
    """Return what each direction does to the few prompts of the trial, by layer.

    Args:
        max_kl: Highest KL of an ablated direction; below it more KL hardly counts.
        done: Called with the number of directions that are through.
    """
    base, found = float(trial.harmful_log_odds.mean()), []
    for direction in sorted(directions, key=lambda d: d.layer):
        share, log_odds = trial.induced(direction, SCREENING_ALPHA)
        onwards = trial.ablated(direction, range(direction.layer, trial.n_layers), 1.0)
        gain = (base - onwards.log_odds) / (onwards.kl + max_kl)
        found.append(Screening(direction, share, log_odds, gain))
        done(len(found))
    return found


def causal_candidates(screened: Sequence[Screening], n_candidates: int, min_induce: float) -> list[Direction]:
    """Return the directions for the full trials: half by AUC, for the margin, half by how they induce refusal.

    The best harm direction is always among them: mitigation keeps it.
    """

    def by_auc(each: Screening) -> tuple[bool, float, float]:
        return (each.induced >= min_induce, each.direction.auc or 0.0, each.log_odds)

    on_scale = sorted((s for s in screened if s.direction.kind in MARGIN_KINDS), key=by_auc, reverse=True)
    inducing = sorted(screened, key=lambda s: (s.induced, s.log_odds), reverse=True)
    harm = [s for s in on_scale if s.direction.kind == "harm"][:1]
    ranked = [*harm, *on_scale[: max(1, n_candidates // 2)], *inducing, *on_scale]
    unique = {id(s.direction): s.direction for s in ranked}
    return sorted(list(unique.values())[:n_candidates], key=lambda d: d.layer)


def ablation_candidates(screened: Sequence[Screening], n_candidates: int) -> list[Direction]:
    """Return the directions whose extent and strength of ablation are searched: most bypass for the least KL."""
    return [s.direction for s in sorted(screened, key=lambda s: -s.bypass_gain)[:n_candidates]]


def search_ablation(few: CausalTrial, full: CausalTrial, direction: Direction, config: ProbeConfig) -> Direction:
    """Return the direction with the extent and strength that bypass most at a KL of at most `max_kl`.

    On few prompts each extent gets its greatest strength within the bound; the most promising are tried on all.
    Where none is within the bound, the scores are those of the full ablation.

    Args:
        few, full: The same model on few and on all prompts.
        direction: With the scores of its full ablation, or without.
    """
    whole = full.ablated(direction, range(full.n_layers), 1.0)
    tried, promising = [whole], []
    for layers in few.extents(direction.layer):
        for strength in sorted(config.ablate_strengths, reverse=True):
            if few.kl(direction, layers, strength) <= config.max_kl:
                promising.append(few.ablated(direction, layers, strength))
                break
    promising.sort(key=lambda a: (a.bypass, -a.log_odds), reverse=True)
    for option in promising[:MAX_ABLATIONS_TRIED]:
        if option.layers != whole.layers or option.strength != whole.strength:
            tried.append(full.ablated(direction, option.layers, option.strength))
    gentle = [ablation for ablation in tried if ablation.kl <= config.max_kl]
    best = max(gentle, key=lambda a: (round(a.bypass, 2), -a.kl)) if gentle else whole
    return replace(with_ablation(direction, best), full_ablation_bypass=whole.bypass, full_ablation_kl=whole.kl)


def with_ablation(direction: Direction, ablation: Ablation) -> Direction:
    """Return the direction with this ablation and its scores."""
    return replace(
        direction,
        bypass_score=ablation.bypass,
        kl=ablation.kl,
        ablate_layers=ablation.layers,
        ablate_strength=ablation.strength,
    )


def generation_options(tried: Sequence[Direction], config: ProbeConfig) -> list[tuple[Direction, float]]:
    """Return the directions and strengths that are to be tried by generation: the best of each kind and layer.

    Of each, the strengths from the first on at which log-odds say that refusal is induced, or the best one.
    """
    ranked = sorted(
        (d for d in tried if d.induced),
        key=lambda d: (round(d.induce_score or 0.0, 2), -(d.alpha or 0.0), d.full_ablation_bypass or 0.0, d.auc or 0.0),
        reverse=True,
    )
    best: dict[tuple[str, int], Direction] = {}
    for direction in ranked:
        best.setdefault((direction.kind, direction.layer), direction)
    options = []
    for direction in list(best.values())[: config.n_generated_candidates]:
        inducing = [a for a, share in direction.induced.items() if a > 0 and share >= config.min_induce]
        options += [(direction, alpha) for alpha in sorted(inducing) or [direction.alpha or 1.0]]
    return options


def is_coherent_refusal(outcome: str, text: str) -> bool:
    """Return whether an answer is a refusal in coherent text.

    A refusal that was cut at the limit of tokens counts; one that repeats itself or is empty is broken text. The rule
    is that of accepted steered answers (`preferences.is_degenerate`).

    Args:
        outcome: The panel's verdict on the answer.
    """
    return outcome == "refusal" and is_degenerate(text, None, AcceptanceLimits()) is None


def with_generated(
    tried: Sequence[Direction], options: Sequence[tuple[Direction, float]], refused: Sequence[tuple[int, int]]
) -> list[Direction]:
    """Return the directions with the strength that made most generated answers refuse, the smallest of equals.

    Args:
        tried: Those of the options and others, which stay as they are.
        refused: For each option: (coherent refusals, answers that were judged).
    """
    chosen: dict[int, Direction] = {}
    for (direction, alpha), (n_refused, n) in zip(options, refused, strict=True):
        if n == 0:
            continue
        here = replace(
            direction, alpha=alpha, induce_score=direction.induced[alpha], induce_generated=n_refused / n, n_generated=n
        )
        before = chosen.get(id(direction))
        if before is None or (here.induce_generated or 0.0) > (before.induce_generated or 0.0):
            chosen[id(direction)] = here
    return [chosen.get(id(direction), direction) for direction in tried]


def _log_odds(readers: Sequence[PrefixReader], above: Sequence[int | None] | None) -> Tensor:
    starts = above or [None] * len(readers)
    return torch.cat([reader.log_odds(start) for reader, start in zip(readers, starts, strict=True)])


def _tensor(direction: Direction) -> Tensor:
    return torch.tensor(direction.vector, dtype=torch.float32)
