"""The steps of a run that generate: requests and tokens of each, at most."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from rass_core.config import RassConfig
from rass_core.data.prompts import load_prompts
from rass_core.estimate.checkpoints import Checkpoint
from rass_core.estimate.rows import PlanRow
from rass_core.generate.operators import instruction
from rass_core.judges.llm import RUBRIC as JUDGES_RUBRIC
from rass_core.models.chat_client import ANSWER_TOKENS
from rass_core.moderators.llm import RUBRIC

JUDGED = (
    "answers to the given prompts",
    "answers of the generator",
    "answers of the further models",
    "steered answers",
    "prompts measured",
    "answers to be learnt",
    "answers of the evaluation",
)
"""Steps whose answers are judged."""


@dataclass(frozen=True)
class PlannedRequests:
    """Requests of one kind to one model, at most so many."""

    what: str
    how: str
    is_generators: bool
    n: int
    prompt_tokens: float
    new_tokens: int


def steps_of(config: RassConfig, prompts: pa.Table, checkpoints: Sequence[Checkpoint | None]) -> list[PlannedRequests]:
    """Return all generation of a run; lengths of prompts are 0 where the model is not known."""
    probe, generate, n = config.probe, config.generate, prompts.num_rows
    target, writer = checkpoints[0], checkpoints[-1]
    has_generator = config.generator is not None
    length, writers_length = (c.mean_tokens if c else 0.0 for c in (target, writer))
    harmless = Counter(
        language
        for language, label in zip(prompts["language"].to_pylist(), prompts["label"].to_pylist(), strict=True)
        if label == "harmless"
    )
    n_checked = sum(min(count, probe.n_causal_prompts) for count in harmless.values())
    written = generate.n_written
    rounds = f"{generate.rounds} rounds × {generate.candidates_per_round} candidates"
    if generate.needs_trial:
        rounds = f"({generate.trial_candidates} of the trial + {rounds})"
    judged = f"probe.max_new_tokens {probe.max_new_tokens}"
    steps = [
        PlannedRequests("answers to the given prompts", f"prompts × {judged}", False, n, length, probe.max_new_tokens)
    ]
    if has_generator:
        how = f"prompts × {judged}, for the generator's own directions"
        steps.append(PlannedRequests("answers of the generator", how, True, n, writers_length, probe.max_new_tokens))
    how = f"harmless prompts of the steering check × {judged}"
    steps.append(PlannedRequests("steered answers", how, False, n_checked, length, probe.max_new_tokens))
    how = f"{rounds} × generate.max_new_tokens {generate.max_new_tokens}"
    asked = _overhead(writer, instruction("recombine", "en", ["", ""], generate.instructions)) + 2 * writers_length
    steps.append(PlannedRequests("prompts written", how, has_generator, written, asked, generate.max_new_tokens))
    own = sum(m.n_calls for m in config.moderator.members if m.asks_generator)
    if own:
        how = f"{rounds} × {ANSWER_TOKENS}; the model that writes is asked by rubric"
        rubric = _overhead(writer, RUBRIC) + writers_length
        if writer is not None and writer.max_length is not None and rubric + 8 > writer.max_length:
            how += f"; the rubric's {rubric:.0f} tokens are TOO LONG for it, name an endpoint for the moderator"
        steps.append(PlannedRequests("prompts moderated", how, has_generator, own * written, rubric, ANSWER_TOKENS))
    steps.append(
        PlannedRequests("prompts measured", f"{rounds} × {judged}", False, written, length, probe.max_new_tokens)
    )
    steps += _further_steps(config, prompts, length)
    if any(member.asks_generator for member in config.judge.members):
        n_judged = sum(step.n for step in steps if step.what in JUDGED)
        how = f"responses × {ANSWER_TOKENS}; the model that writes is asked by rubric"
        read = _overhead(writer, JUDGES_RUBRIC) + length + probe.max_new_tokens
        steps.append(PlannedRequests("responses judged", how, has_generator, n_judged, read, ANSWER_TOKENS))
    return steps


def _further_steps(config: RassConfig, prompts: pa.Table, length: float) -> list[PlannedRequests]:
    """Return the generation of the further models, of the mitigation and of its evaluation."""
    probe, steps = config.probe, []
    if config.models:
        how = f"{len(config.models)} models × prompts × probe.max_new_tokens {probe.max_new_tokens}"
        n = len(config.models) * prompts.num_rows
        steps.append(PlannedRequests("answers of the further models", how, False, n, length, probe.max_new_tokens))
    if config.mitigate is None:
        return steps
    settings, size = config.mitigate, config.select.size
    anchors = math.ceil(1.5 * (settings.safety_share + settings.general_share) * size)
    how = (
        f"select.size {size} × {len(settings.alphas)} strengths, and the model's own to {size + anchors} prompts "
        f"and anchors, × mitigate.max_new_tokens {settings.max_new_tokens}"
    )
    n = size * len(settings.alphas) + size + anchors
    steps.append(PlannedRequests("answers to be learnt", how, False, n, length, settings.max_new_tokens))
    n_plain, n_attacked = evaluation_size(config, prompts)
    n_variants = 1 + len(settings.methods)
    how = (
        f"{n_variants} variants × ({n_plain:,} prompts and {n_attacked:,} in attacks) × probe.max_new_tokens "
        f"{probe.max_new_tokens}"
    )
    n = n_variants * (n_plain + n_attacked)
    return [*steps, PlannedRequests("answers of the evaluation", how, False, n, length, probe.max_new_tokens)]


def evaluation_size(config: RassConfig, prompts: pa.Table) -> tuple[int, int]:
    """Return how many prompts every variant is asked, and how many in attacks, at most."""
    from rass_core.evaluate.samples import attack_names  # brings torch
    from rass_core.probe.geometry import split_of

    splits = [split_of(family, config.seed) for family in prompts["family"].to_pylist()]
    spoken = Counter(
        each for each, split in zip(prompts["language"].to_pylist(), splits, strict=True) if split == "test"
    )
    for source in config.evaluate.sources:
        spoken.update(load_prompts([source], config.prompts.max_characters).table["language"].to_pylist())
    attacked = config.evaluate.jailbreaks
    each_language = attacked.n_prompts + max(1, attacked.n_prompts // 2)
    n_attacked = sum(min(n, each_language) for n in spoken.values()) * len(attack_names(attacked))
    return spoken.total(), n_attacked


def _overhead(checkpoint: Checkpoint | None, text: str) -> float:
    return len(checkpoint.chat.answer_ids(text)) if checkpoint else 0.0


def request_rows(config: RassConfig, steps: Sequence[PlannedRequests]) -> list[PlanRow]:
    """Return the requests and new tokens of every step and in all, and the calls of judges and moderators elsewhere."""
    rows = [
        PlanRow(step.what, f"≤ {step.n:,} requests, ≤ {step.n * step.new_tokens:,} new tokens", step.how)
        for step in steps
    ]
    n, tokens = sum(step.n for step in steps), sum(step.n * step.new_tokens for step in steps)
    rows.append(
        PlanRow("requests and new tokens in all", f"≤ {n:,} and ≤ {tokens:,}", "the sum; most answers end sooner")
    )
    written = config.generate.n_written
    for member in config.moderator.members:
        if member.endpoint_asked is not None:
            how = f"{member.n_calls} for each written prompt, to {member.endpoint_asked.base_url}"
            rows.append(PlanRow("calls of the moderator", f"≤ {member.n_calls * written:,}", how))
    n_judged = sum(step.n for step in steps if step.what in JUDGED)
    for judge in config.judge.members:
        if judge.endpoint_asked is not None:
            how = f"one for each response, to {judge.endpoint_asked.base_url}; off the form it is asked again"
            rows.append(PlanRow("calls of the judge", f"≤ {judge.n_calls * n_judged:,}", how))
    return rows
