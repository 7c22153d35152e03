"""What each stage of a run costs: one function per stage, all formulas of the plan's times in this file.

A stage's cost is the sum of forward passes in transformers, generation in vLLM, judging of responses and a fixed
part. `Speed.measured` measures what the machine needs for each; the constants are seconds on one quiet core.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rass_core.config import RassConfig
from rass_core.estimate.machine import (
    BOUNDARY_FIT_S,
    DRAW_S,
    ENDPOINT_S,
    NEAR_DUPLICATE_S,
    READ_BYTES_PER_S,
    TRAINING_START_S,
    TRAINING_STEP_S,
    WRITE_BYTES_PER_S,
    Cost,
    Machine,
)
from rass_core.languages.tags import lookup
from rass_core.mitigate.base import Effort, MitigationMethod
from rass_core.probe.settings import Prefixes
from rass_core.select.settings import N_HARMFUL

SHARE_OF_LIMIT = 0.7
"""Length of an answer / its limit of a few dozen tokens; real models mostly reach the limit, the lab's half of it."""
TYPICAL_ANSWER = 150
"""Tokens of an answer under a high limit."""
ELIGIBLE_SHARE = 0.3
"""Share of the written prompts that are benign, refused and no near-duplicates. Measured: a quarter in the lab."""
LEFT_PER_ALPHA = 0.6
"""Share of the selected prompts that still lack a helpful answer after one more strength."""
N_EXTENTS, N_TRIED, N_TRIED_ALPHAS = 4, 3, 2
"""Extents of an ablation, those tried on all prompts, and strengths tried by generation; as in `causal`."""
FIT_STEPS, FIT_BATCH, FIT_KINDS = 250, 32, 3
"""Steps, batch size and kinds of the learned direction's fit; as in `mitigate.learned_direction`."""


@dataclass(frozen=True)
class Counts:
    """What the stages work on, counted from the files or bounded by the configuration."""

    n_prompts: int
    mean_tokens: float
    """Mean tokens of a given prompt in the chat template."""
    per_language: Mapping[str, Mapping[str, int]]
    """language → label → number of given prompts."""
    validation: Mapping[str, Mapping[str, int]]
    """The same for the validation split."""
    prefixes: Mapping[str, Prefixes]
    opening_tokens: Callable[[str], int]
    """Length of an answer's opening in tokens."""
    n_read_layers: int
    """Blocks that the activations are taken from."""
    last_layer: int
    """The deepest of them."""
    n_positions: int
    instruction_tokens: float
    """Tokens of a request to write a prompt."""
    rubric_tokens: float
    """Tokens of a request to moderate a prompt; 0 if no model that RASS loads moderates."""
    n_evaluated: int = 0
    """Prompts that every variant is asked, and those in attacks."""


def answer_length(limit: int) -> float:
    """Return how long an answer with this limit is likely to be, in tokens."""
    return min(limit * SHARE_OF_LIMIT, TYPICAL_ANSWER)


def responses(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of the answers to the given prompts."""
    n, limit = counts.n_prompts, machine.config.probe.max_new_tokens
    seconds = machine.generate(n, counts.mean_tokens, answer_length(limit)) + n * machine.judge_s
    return Cost("responses", seconds, f"{n:,} prompts of {counts.mean_tokens:.0f} tokens, ≤ {limit} new ones each")


def activations(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of reading the residual streams, up to the deepest block that is read."""
    tokens, values = counts.n_prompts * counts.mean_tokens, counts.n_prompts * counts.n_read_layers * counts.n_positions
    written = values * machine.shape.d_model * 4 / WRITE_BYTES_PER_S
    seconds = machine.forward(tokens, n_blocks=counts.last_layer + 1) + machine.fixed(written)
    what = f"{tokens:,.0f} tokens through {counts.last_layer + 1} of {machine.shape.n_layers} blocks, {values:,} rows"
    return Cost("activations", seconds, what)


def directions(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of drawing directions, of the screening, of the full trials and of the steered answers."""
    probe = machine.config.probe
    n_kinds = 3
    n_screened = min(probe.n_screened, n_kinds * counts.n_read_layers)
    n_full = min(probe.n_causal_candidates, n_screened)
    n_ablated = min(probe.n_ablation_candidates, n_screened)
    # One forward of harmful prompts, of harmless ones, and of harmless ones without prefixes: (tokens, logits).
    few, full = (_trial_work(counts, n) for n in (probe.n_screening_prompts, probe.n_causal_prompts))
    ablations = n_full + n_ablated * (1 + N_TRIED)
    extents = N_EXTENTS * (len(probe.ablate_strengths) + 1) / 2
    # A change leaves the blocks below it as they were: about half are read again.
    screened = 0.5 * n_screened
    work: list[tuple[tuple[tuple[float, float], ...], tuple[float, float, float]]] = [
        (few, (1.0, 1.0, 1.0)),
        (full, (1.0, 1.0, 1.0)),
        (few, (screened, screened, screened)),
        (full, (ablations, 0.5 * n_full * len(probe.alphas), ablations)),
        (few, (n_ablated * N_EXTENTS, 0.0, n_ablated * extents)),
    ]
    seconds = tokens = 0.0
    for forwards, shares in work:
        for (read, predicted), share in zip(forwards, shares, strict=True):
            seconds += machine.forward(share * read, share * predicted)
            tokens += share * read
    places = counts.n_read_layers * counts.n_positions
    drawn = DRAW_S * places * len(counts.per_language) + 2e-9 * counts.n_prompts * places * machine.shape.d_model
    n_answers = min(probe.n_generated_candidates, n_full) * N_TRIED_ALPHAS * probe.n_generated_prompts
    seconds += machine.generate(n_answers, counts.mean_tokens, answer_length(probe.max_new_tokens))
    what = (
        f"{n_screened} screened, {n_full} tried, {n_ablated} ablated: {tokens:,.0f} tokens; {n_answers} steered answers"
    )
    return Cost("directions", seconds + machine.fixed(drawn), what)


def _trial_work(counts: Counts, most: int) -> tuple[tuple[float, float], ...]:
    """Return (tokens, logits) of one reading of harmful prompts, of harmless ones, and of these without prefixes."""
    found = [[0.0, 0.0] for _ in range(3)]
    for language, by_label in counts.validation.items():
        harmful, harmless = (min(by_label.get(label, 0), most) for label in ("harmful", "harmless"))
        if not harmful or not harmless:
            continue
        read, predicted = _prefix_work(counts, language)
        for place, n, more, logits in (
            (0, harmful, read, predicted),
            (1, harmless, read, predicted),
            (2, harmless, 0, 0),
        ):
            found[place][0] += n * (counts.mean_tokens + more)
            found[place][1] += n * (1 + logits)
    return tuple((tokens, logits) for tokens, logits in found)


def boundaries(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of the margins and the bootstrapped boundaries."""
    n = machine.config.probe.n_bootstrap * len(counts.per_language)
    return Cost("boundaries", machine.fixed(0.5 + n * BOUNDARY_FIT_S), f"{n:,} bootstrap fits")


def steering_check(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of the steered answers to harmless prompts."""
    probe = machine.config.probe
    n = sum(min(by_label.get("harmless", 0), probe.n_causal_prompts) for by_label in counts.per_language.values())
    seconds = machine.generate(n, counts.mean_tokens, answer_length(probe.max_new_tokens)) + n * machine.judge_s
    return Cost("steering check", seconds, f"{n:,} prompts, ≤ {probe.max_new_tokens} new tokens each")


def first_tokens(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of the log-odds of the prefixes after every given prompt."""
    tokens = logits = 0.0
    for language, by_label in counts.per_language.items():
        n = sum(by_label.values())
        read, predicted = _prefix_work(counts, language)
        tokens += n * (counts.mean_tokens + read)
        logits += n * (1 + predicted)
    return Cost("first tokens", machine.forward(tokens, logits), f"{tokens:,.0f} tokens, prefixes included")


def round_of(machine: Machine, writer: Machine, counts: Counts, number: int) -> Cost:
    """Return the cost of one round, 0 being the trial of the writers: writing, moderating, measuring, judging."""
    config = machine.config
    n, limit = config.generate.candidates_per_round, config.generate.max_new_tokens
    if number == 0:
        n = config.generate.trial_candidates
    length = answer_length(limit)
    seconds = writer.generate(n, counts.instruction_tokens, length)
    asked = sum(m.n_calls for m in config.moderator.members if m.asks_generator)
    seconds += writer.generate(asked * n, counts.rubric_tokens, 12)
    for member in config.moderator.members:
        if member.endpoint_asked is not None:
            seconds += member.n_calls * n * ENDPOINT_S / member.endpoint_asked.max_concurrency
    template = max(counts.mean_tokens - length, 0.5 * counts.mean_tokens)
    measured = template + length
    seconds += machine.generate(n, measured, answer_length(config.probe.max_new_tokens)) + n * machine.judge_s
    moderated = f", {asked * n:,} moderated by the writer" if asked else ""
    name = f"round {number}" if number else "trial of the writers"
    return Cost(name, seconds + machine.fixed(0.5), f"{n:,} written, ≤ {limit} tokens each{moderated}")


def selection(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of the gradients: each prompt is read once, all prefixes behind it, forward and back."""
    config = machine.config
    n_written = config.generate.n_written
    languages = list(counts.per_language)
    n_harmful = sum(min(N_HARMFUL, by_label.get("harmful", 0)) for by_label in counts.per_language.values())
    n = ELIGIBLE_SHARE * n_written + n_harmful
    stem_tokens = sum(_stem_tokens(counts, language) for language in languages) / len(languages)
    tokens = n * (counts.mean_tokens + stem_tokens)
    seconds = machine.backward(tokens, n * (1 + stem_tokens)) + machine.fixed(NEAR_DUPLICATE_S * n_written)
    return Cost("selection", seconds, f"gradients of about {n:,.0f} prompts, {tokens:,.0f} tokens")


def preferences(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of the model's own answers and of the steered ones, with their perplexities."""
    config, settings = machine.config, machine.config.mitigate
    assert settings is not None
    n_selected, length = config.select.size, answer_length(settings.max_new_tokens)
    anchors = math.ceil(1.5 * (settings.safety_share + settings.general_share) * n_selected)
    steered = n_selected * sum(LEFT_PER_ALPHA**k for k in range(len(settings.alphas)))
    seconds = machine.generate(n_selected + anchors, counts.mean_tokens, length)
    for k in range(len(settings.alphas)):
        seconds += machine.generate(n_selected * LEFT_PER_ALPHA**k, counts.mean_tokens, length)
    scored = steered + anchors / 2
    seconds += machine.forward(scored * (counts.mean_tokens + length), scored * length)
    n = n_selected + anchors + steered
    return Cost(
        "preferences", seconds + n * machine.judge_s, f"about {n:,.0f} answers, ≤ {settings.max_new_tokens} tokens"
    )


def false_refusal_direction(machine: Machine, counts: Counts, source: str) -> Cost:
    """Return the cost of the direction that ablation removes; hardly any where it is the probe's own."""
    settings = machine.config.mitigate
    assert settings is not None
    if source == "mean_difference":
        return Cost("false-refusal direction", machine.fixed(0.5), "the probe's difference in means")
    batch = min(FIT_BATCH, machine.config.select.size) * FIT_KINDS
    each = counts.mean_tokens + answer_length(settings.max_new_tokens)
    tokens = FIT_STEPS * batch * each
    return Cost("false-refusal direction", machine.backward(tokens, tokens), f"{FIT_STEPS} steps of {batch} answers")


def mitigation(machine: Machine, counts: Counts, method: MitigationMethod[Any]) -> Cost:
    """Return the cost of one variant: the steps of a training, or an edit; nothing where a method does not say."""
    settings = machine.config.mitigate
    assert settings is not None
    n = n_pairs(machine.config)
    effort = method.effort(n)
    if effort is None:
        return Cost(method.name, 0.0, "not known: the method does not say what it computes")
    if not effort.n_steps:
        edit_s = 2.0 + 3 * machine.shape.n_parameters * 4 / READ_BYTES_PER_S
        return Cost(method.name, machine.fixed(edit_s if effort.writes_weights else 0.5), effort.how)
    tokens = n * (counts.mean_tokens + answer_length(settings.max_new_tokens))
    seconds = machine.backward(effort.backward_passes * tokens, effort.backward_passes * tokens)
    if effort.forward_passes:
        seconds += machine.forward(effort.forward_passes * tokens, effort.forward_passes * tokens)
    seconds += machine.fixed(TRAINING_START_S + effort.n_steps * TRAINING_STEP_S)
    return Cost(method.name, seconds, f"≤ {effort.n_steps:,} steps over ≤ {n:,} pairs")


def sample_answers(machine: Machine, counts: Counts, variant: str) -> Cost:
    """Return the cost of a variant's answers, judged."""
    limit, n = machine.config.probe.max_new_tokens, counts.n_evaluated
    seconds = machine.generate(n, counts.mean_tokens, answer_length(limit)) + n * machine.judge_s
    return Cost(f"answers of {variant}", seconds, f"{n:,} prompts, ≤ {limit} new tokens each")


def evaluation(machine: Machine, counts: Counts, variant: str) -> Cost:
    """Return the cost of the perplexities of a variant's answers under the model as given."""
    length = answer_length(machine.config.probe.max_new_tokens)
    scored = counts.n_evaluated / 2 * (1 if variant == "base" else 1.5)
    seconds = machine.forward(scored * (counts.mean_tokens + length), scored * length)
    return Cost(f"evaluation of {variant}", seconds, f"perplexities of {scored:,.0f} answers")


def change(machine: Machine, counts: Counts, variant: str) -> Cost:
    """Return the cost of KL and perplexities: two models read the ordinary answers twice each."""
    n, length = machine.config.evaluate.n_kl, answer_length(machine.config.probe.max_new_tokens)
    seconds = machine.forward(4 * n * (counts.mean_tokens + length), 6 * n * length)
    return Cost(f"change by {variant}", seconds + machine.fixed(3.0), f"{n:,} answers read by both models")


def n_pairs(config: RassConfig) -> int:
    """Return how many preference pairs there can be."""
    settings = config.mitigate
    assert settings is not None
    return math.ceil(config.select.size * (1 + settings.safety_share + settings.general_share))


def all_stages(machine: Machine, writer: Machine, counts: Counts, has_generator: bool) -> Iterator[Cost]:
    """Yield the cost of every stage in the order of the run, model loads beside them."""
    config = machine.config
    yield machine.load("vLLM")
    yield responses(machine, counts)
    yield machine.load("transformers")
    yield activations(machine, counts)
    yield directions(machine, counts)
    yield boundaries(machine, counts)
    if has_generator:
        yield writer.load("vLLM")
        yield responses(writer, counts)
        yield writer.load("transformers")
        yield activations(writer, counts)
        yield directions(writer, counts)
    yield steering_check(machine, counts)
    yield first_tokens(machine, counts)
    for _ in config.models:  # their folders are not read: taken to be as large as the target
        yield from (machine.load("vLLM"), responses(machine, counts), machine.load("transformers"))
        yield from (activations(machine, counts), directions(machine, counts), boundaries(machine, counts))
        yield from (steering_check(machine, counts), first_tokens(machine, counts))
    for number in range(0 if config.generate.needs_trial else 1, config.generate.rounds + 1):
        yield round_of(machine, writer, counts, number)
    yield selection(machine, counts)
    if config.mitigate is None:
        return
    yield preferences(machine, counts)
    yield from (sample_answers(machine, counts, "base"), evaluation(machine, counts, "base"))
    methods = config.mitigate.variants().values()
    for source in sorted({method.direction for method in methods if method.direction is not None}):
        yield false_refusal_direction(machine, counts, source)
    for method in methods:
        effort = method.effort(n_pairs(config))
        yield mitigation(machine, counts, method)
        if effort is None or effort.writes_weights:
            yield machine.load("vLLM")
        yield from (sample_answers(machine, counts, method.name), evaluation(machine, counts, method.name))
        yield machine.load("transformers")
        yield change(machine, counts, method.name)


def _prefix_work(counts: Counts, language: str) -> tuple[float, float]:
    """Return (tokens read after a prompt, tokens whose logits are computed) for all prefixes of a language.

    Every opening is padded to the longest, and its last token is only predicted.
    """
    known = _prefixes_of(language, counts.prefixes)
    lengths = [counts.opening_tokens(text) for text in (*known.refusal, *known.compliance)]
    padded = len(lengths) * (max(lengths) - 1)
    return float(padded), float(padded)


def _stem_tokens(counts: Counts, language: str) -> float:
    """Return the tokens of the prefixes that are read after each prompt.

    Prefixes are read as far as they differ from the other side, and share what they begin with: about one each.
    """
    known = _prefixes_of(language, counts.prefixes)
    return float(len({text.split(" ")[0] for text in (*known.refusal, *known.compliance)}))


def _prefixes_of(language: str, known: Mapping[str, Prefixes]) -> Prefixes:
    return lookup(known, language) or known["en"]


def trainings(config: RassConfig) -> list[tuple[str, Effort]]:
    """Return the variants that are trained by steps, with what that computes."""
    if config.mitigate is None:
        return []
    efforts = {name: method.effort(n_pairs(config)) for name, method in config.mitigate.variants().items()}
    return [(name, effort) for name, effort in efforts.items() if effort is not None and effort.n_steps]
