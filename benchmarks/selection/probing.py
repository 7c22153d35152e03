"""What every method may know of the candidates: refusals, log-odds, margins and gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.selection.methods import Candidate
from rass_core.mitigate.pairs import PreferencePair
from rass_core.models.causal_lm import decoder_blocks
from rass_core.models.chat import ChatFormat
from rass_core.models.prefix_logprobs import prefix_log_odds
from rass_core.models.residuals import ResidualExtractor
from rass_core.probe import causal
from rass_core.probe import geometry as core
from rass_core.probe.boundary import BoundaryEstimate, boundary_report
from rass_core.probe.geometry import Direction, ProbeData
from rass_core.probe.roles import choose_roles
from rass_core.probe.settings import Prefixes, ProbeConfig
from rass_core.select.influence import refusal_gradients
from rass_core.select.quotas import Influence


@dataclass(frozen=True)
class MarginScale:
    """The direction by which margins are measured, with each language's class means and boundary."""

    direction: Direction
    means: dict[str, core.Means]
    boundaries: dict[str, BoundaryEstimate]

    def streams(self, model: Any, prompts: Sequence[list[int]]) -> np.ndarray[Any, Any]:
        """Return the residual streams at the direction's layer and position, (n, d_model), float64."""
        extractor = ResidualExtractor(model, [self.direction.layer], [self.direction.position], 16384)
        return extractor(prompts)[:, 0, 0].numpy().astype(np.float64)

    def margins(self, streams: np.ndarray[Any, Any], languages: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return the margin of each prompt."""
        return core.margins(streams, languages, dict.fromkeys(self.means, self.direction.vector), self.means)


def probe(
    model: Any, chat: ChatFormat, rows: Sequence[dict[str, str]], refused: np.ndarray[Any, Any], prefixes: Prefixes,
    seed: int,
) -> MarginScale:  # fmt: skip
    """Measure direction and boundaries on data, by the project's probe.

    Args:
        rows: ProbeData of all three labels with prompt_id, text, label, language and family.
        refused: 1.0 refused, 0.0 answered, (n,).
    """
    layers, positions = list(range(len(decoder_blocks(model)))), chat.positions()
    ids = [chat.ids(row["text"]) for row in rows]
    streams = ResidualExtractor(model, layers, positions, 16384)(ids).numpy()
    columns = {name: np.array([row[name] for row in rows]) for name in ("label", "language", "family")}
    data = ProbeData(
        prompt_ids=[row["prompt_id"] for row in rows],
        labels=columns["label"],
        languages=columns["language"],
        families=columns["family"],
        refused=refused,
        activations=streams,
        layers=layers,
        positions=positions,
        seed=seed,
    )
    config = ProbeConfig()
    found = core.with_auc(data, core.candidate_directions(data, config.methods))
    prompts = [
        causal.CausalPrompts(
            *[
                [ids[i] for i in np.flatnonzero((data.splits == "validation") & (columns["label"] == label))][
                    : config.n_causal_prompts
                ]
                for label in ("harmful", "harmless")
            ],
            *[[chat.answer_ids(text) for text in side] for side in (prefixes.refusal, prefixes.compliance)],
        )
    ]
    candidates = causal.screening_candidates(found, len(layers), config.n_screened)
    few = causal.CausalTrial(model, causal.fewer(prompts, config.n_screening_prompts), config)
    screened = causal.screen(few, candidates, config.max_kl)
    candidates = causal.causal_candidates(screened, config.n_causal_candidates, config.min_induce)
    trial = causal.CausalTrial(model, prompts, config)
    scored = [replace(trial(each), off_scale=core.why_off_scale(data, each)) for each in candidates]
    tried = choose_roles(scored, config)
    direction = next(each for each in tried if "margin" in each.roles)
    means = core.class_means(data, direction.layer, direction.position)
    measured = core.margins(
        data.rows(direction.layer, direction.position),
        columns["language"].tolist(),
        dict.fromkeys(means, direction.vector),
        means,
    )
    boundaries = {}
    for language in means:
        here = (data.splits == "test") & (columns["language"] == language)
        boundaries[language] = boundary_report(
            measured[here], refused[here] == 1.0, columns["label"][here], columns["family"][here], 100, seed
        )
    return MarginScale(direction, means, boundaries)


def log_odds(model: Any, prompts: Sequence[list[int]], chat: ChatFormat, prefixes: Prefixes) -> np.ndarray[Any, Any]:
    """Return the log-odds of refusal of each prompt, nats, (n,)."""
    sides = [[chat.answer_ids(text) for text in side] for side in (prefixes.refusal, prefixes.compliance)]
    return prefix_log_odds(model, prompts, *sides, token_budget=16384).numpy()


def influence(
    model: Any, chat: ChatFormat, candidates: Sequence[Candidate], data: Sequence[PreferencePair],
    prefixes: Mapping[str, Prefixes], seed: int,
) -> Influence:  # fmt: skip
    """Return what training on each candidate does to the others and to the safety data."""
    harmful = [anchor for anchor in data if anchor.kind == "safety"]
    languages = [each.language for each in (*candidates, *harmful)]
    texts = [candidate.text for candidate in candidates] + [anchor.prompt for anchor in harmful]
    found = refusal_gradients(model, chat, texts, languages, prefixes, token_budget=4096, seed=seed)
    return Influence.of(found.vectors, found.log_odds, languages, len(candidates))
