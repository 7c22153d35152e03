"""What each stage of a run costs: one function per stage, all formulas of the plan's times in this file.

A stage's cost is made of forwards through a model in transformers, generation in vLLM, judged responses and a fixed
part. What the machine needs for each is measured by `Speed.measured`; the constants are seconds on one quiet core.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rass_core.config import Openings, RassConfig
from rass_core.languages.tags import lookup
from rass_core.units import size

VLLM_LOAD_S, TRANSFORMERS_LOAD_S = 8.0, 0.3
"""Imports and set-up; reading the weights comes on top."""
READ_BYTES_PER_S = 500e6
"""Weights from the disk into a model."""
WRITE_BYTES_PER_S = 40e6
"""Activations into Parquet, packed."""
STEP_S = 0.009
"""Of vLLM's scheduler and sampler in each step, whatever the model."""
JUDGE_S = 0.001
"""Of the phrases and the classifier for one response."""
ENDPOINT_S = 2.0
"""Assumed of an endpoint for one reply."""
TRAINING_START_S, TRAINING_STEP_S = 15.0, 0.05
"""Of trl's imports and merging, and of one optimiser step beside its passes."""
DRAW_S = 0.03
"""Of the directions of one place and language, with their AUCs."""
NEAR_DUPLICATE_S = 0.0008
"""Of the hashes of one written prompt."""
BOUNDARY_FIT_S = 0.0005
"""Of one bootstrap replicate of a language's boundary."""
PADDING = 1.15
"""Tokens with padding per token, in batches of prompts of similar length."""
SHARE_OF_LIMIT = 0.7
"""Answers with a limit of a few dozen tokens: those of real models mostly reach it, the lab's end at half of it."""
TYPICAL_ANSWER = 150
"""Tokens of an answer that may go on."""
ELIGIBLE_SHARE = 0.3
"""Of the written prompts: benign, refused and no near-duplicates. Seen: a quarter on the lab."""
LEFT_PER_ALPHA = 0.6
"""Share of the selected prompts that still lack a helpful answer after one more strength."""
N_EXTENTS, N_TRIED, N_TRIED_ALPHAS = 4, 3, 2
"""Extents of an ablation, those tried on all prompts, and strengths tried by generation; as in `causal`."""
N_HARMFUL = 40
"""Harmful prompts per language whose gradients the selection reads; as in its stage."""
HEAD_VALUES = 2**23
"""Logits that are computed at a time to measure the head."""
FIT_STEPS, FIT_BATCH, FIT_KINDS = 250, 32, 3
"""Of the fitted direction; as in `mitigation.fitting`."""


@dataclass(frozen=True)
class Shape:
    """What decides how long a model takes."""

    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    vocabulary: int
    n_parameters: int
    bytes_per_parameter: int
    dtype: str


@dataclass(frozen=True)
class Speed:
    """Seconds that a machine needs for one decoder block and the head of a model."""

    block_s: float
    """One block, forward, per token in a batch."""
    backward_s: float
    """One block, forward and back to its input, per token."""
    head_s: float
    """Logits and their log-softmax, per token."""
    step_one_s: float
    """One block, a decode step of a single sequence: the time to read its weights."""
    step_full_s: float
    """One block, a decode step of `n_sequences`."""
    n_sequences: int
    slowdown: float
    """Wall-clock time per processor time: above 1 where others use the cores too."""
    device: str

    @classmethod
    def measured(cls, shape: Shape, n_sequences: int, seconds: float = 0.25) -> "Speed":
        """Measure it on random weights of the model's width; takes about six times `seconds`."""
        return _measured(shape.d_model, shape.d_ff, shape.n_heads, shape.vocabulary, shape.dtype, n_sequences, seconds)

    def quiet(self, seconds: float) -> float:
        """Return what a measured time would be on a quiet machine."""
        return seconds / self.slowdown


@dataclass(frozen=True)
class Cost:
    """What a stage takes."""

    stage: str
    """As the run's log and column `stages` of table `runs` name it."""
    seconds: float
    """On this machine as busy as it is now, model loads left out."""
    what: str
    """Requests and tokens in words."""


@dataclass(frozen=True)
class Counts:
    """What the stages work on, counted from the files or bounded by the configuration."""

    n_prompts: int
    mean_tokens: float
    """Of a given prompt in the chat template."""
    per_language: Mapping[str, Mapping[str, int]]
    """language → label → number of given prompts."""
    validation: Mapping[str, Mapping[str, int]]
    """The same of the validation split."""
    openings: Mapping[str, Openings]
    opening_tokens: Callable[[str], int]
    """Length of an answer's opening in tokens."""
    n_read_layers: int
    """Blocks that the activations are taken from."""
    last_layer: int
    """The deepest of them."""
    n_positions: int
    instruction_tokens: float
    """Of a request to write a prompt."""
    rubric_tokens: float
    """Of a request to moderate one; 0 where no model of ours moderates."""
    n_evaluated: int = 0
    """Prompts that every variant is asked, and those in dressings."""


@dataclass
class Machine:
    """Turns work on one model into seconds."""

    shape: Shape
    speed: Speed
    config: RassConfig
    judge_s: float = field(init=False)

    def __post_init__(self) -> None:
        members = self.config.judge.members
        called = sum(1 for member in members if member.endpoint is not None)
        concurrency = max([m.endpoint.max_concurrency for m in members if m.endpoint is not None], default=1)
        self.judge_s = JUDGE_S * self.speed.slowdown + called * ENDPOINT_S / concurrency

    def fixed(self, seconds: float) -> float:
        """Return a constant of a quiet core as it is on this machine now."""
        return seconds * self.speed.slowdown

    def forward(self, tokens: float, n_logits: float = 0.0, n_blocks: int | None = None) -> float:
        """Return the seconds of forwards over so many tokens, with logits of so many."""
        n = self.shape.n_layers if n_blocks is None else n_blocks
        return PADDING * tokens * n * self.speed.block_s + n_logits * self.speed.head_s

    def backward(self, tokens: float, n_logits: float) -> float:
        """Return the seconds of a forward and a pass back over so many tokens."""
        return PADDING * tokens * self.shape.n_layers * self.speed.backward_s + 3 * n_logits * self.speed.head_s

    def generate(self, n: float, prompt_tokens: float, new_tokens: float) -> float:
        """Return the seconds of vLLM for n requests."""
        if n <= 0:
            return 0.0
        width = min(n, self.speed.n_sequences)
        steps = math.ceil(n / width) * new_tokens
        share = width / self.speed.n_sequences
        block = self.speed.step_one_s + (self.speed.step_full_s - self.speed.step_one_s) * share
        step = self.fixed(STEP_S) + self.shape.n_layers * block + width * self.speed.head_s
        return n * prompt_tokens * self.shape.n_layers * self.speed.block_s + steps * step

    def load(self, where: str) -> Cost:
        """Return the cost of loading the model in `vLLM` or `transformers`."""
        n_bytes = self.shape.n_parameters * self.shape.bytes_per_parameter
        start = VLLM_LOAD_S if where == "vLLM" else TRANSFORMERS_LOAD_S
        return Cost(f"loading in {where}", self.fixed(start + n_bytes / READ_BYTES_PER_S), _size_of(n_bytes))


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
    # One forward of harmful prompts, of harmless ones, and of harmless ones without openings: (tokens, logits).
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
    """Return (tokens, logits) of one reading of harmful prompts, of harmless ones, and of these without openings."""
    found = [[0.0, 0.0] for _ in range(3)]
    for language, by_label in counts.validation.items():
        harmful, harmless = (min(by_label.get(label, 0), most) for label in ("harmful", "harmless"))
        if not harmful or not harmless:
            continue
        read, predicted = _opening_work(counts, language)
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
    """Return the cost of the log-odds of the openings after every given prompt."""
    tokens = logits = 0.0
    for language, by_label in counts.per_language.items():
        n = sum(by_label.values())
        read, predicted = _opening_work(counts, language)
        tokens += n * (counts.mean_tokens + read)
        logits += n * (1 + predicted)
    return Cost("first tokens", machine.forward(tokens, logits), f"{tokens:,.0f} tokens, openings included")


def round_of(machine: Machine, writer: Machine, counts: Counts, number: int) -> Cost:
    """Return the cost of one round, 0 being the trial of the writers: writing, moderating, measuring, judging."""
    config = machine.config
    n, limit = config.generate.candidates_per_round, config.generate.max_new_tokens
    if number == 0:
        n = config.generate.trial_candidates
    length = answer_length(limit)
    seconds = writer.generate(n, counts.instruction_tokens, length)
    asked = sum(m.n_samples for m in config.moderator.members if m.kind == "llm" and m.endpoint is None)
    seconds += writer.generate(asked * n, counts.rubric_tokens, 12)
    for member in config.moderator.members:
        if member.endpoint is not None:
            seconds += member.n_samples * n * ENDPOINT_S / member.endpoint.max_concurrency
    template = max(counts.mean_tokens - length, 0.5 * counts.mean_tokens)
    measured = template + length
    seconds += machine.generate(n, measured, answer_length(config.probe.max_new_tokens)) + n * machine.judge_s
    moderated = f", {asked * n:,} moderated by the writer" if asked else ""
    name = f"round {number}" if number else "trial of the writers"
    return Cost(name, seconds + machine.fixed(0.5), f"{n:,} written, ≤ {limit} tokens each{moderated}")


def selection(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of the gradients: each prompt is read once, all openings behind it, forward and back."""
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


def false_refusal_direction(machine: Machine, counts: Counts) -> Cost:
    """Return the cost of the direction that surgical and steer take out; nothing where it is drawn."""
    settings = machine.config.mitigate
    assert settings is not None
    if settings.direction == "drawn":
        return Cost("false-refusal direction", machine.fixed(0.5), "drawn from the probe's means")
    batch = min(FIT_BATCH, machine.config.select.size) * FIT_KINDS
    each = counts.mean_tokens + answer_length(settings.max_new_tokens)
    tokens = FIT_STEPS * batch * each
    return Cost("false-refusal direction", machine.backward(tokens, tokens), f"{FIT_STEPS} steps of {batch} answers")


def training(machine: Machine, counts: Counts, method: str) -> Cost:
    """Return the cost of one variant: the steps of an adapter, or the edit of the weights."""
    settings = machine.config.mitigate
    assert settings is not None
    if method not in ("dpo", "sft"):
        seconds = machine.fixed(2.0 + 3 * machine.shape.n_parameters * 4 / READ_BYTES_PER_S)
        return Cost(method, seconds if method == "surgical" else machine.fixed(0.5), "no training")
    n = n_pairs(machine.config)
    steps = math.ceil(settings.training.epochs * math.ceil(n / settings.training.batch_size))
    each = counts.mean_tokens + answer_length(settings.max_new_tokens)
    tokens = settings.training.epochs * n * each
    if method == "dpo":  # two answers a pair, and the model as given reads both as well
        seconds = machine.backward(2 * tokens, 2 * tokens) + machine.forward(2 * tokens, 2 * tokens)
    else:
        seconds = machine.backward(tokens, tokens)
    seconds += machine.fixed(TRAINING_START_S + steps * TRAINING_STEP_S)
    return Cost(method, seconds, f"≤ {steps:,} steps over ≤ {n:,} pairs")


def evaluation(machine: Machine, counts: Counts, variant: str) -> Cost:
    """Return the cost of a variant's answers, judged, with their perplexities under the model as given."""
    limit, n = machine.config.probe.max_new_tokens, counts.n_evaluated
    length = answer_length(limit)
    scored = n / 2 * (1 if variant == "base" else 1.5)
    seconds = machine.generate(n, counts.mean_tokens, length) + n * machine.judge_s
    seconds += machine.forward(scored * (counts.mean_tokens + length), scored * length)
    return Cost(f"evaluation of {variant}", seconds, f"{n:,} prompts, ≤ {limit} new tokens each")


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
    yield evaluation(machine, counts, "base")
    if {"surgical", "steer"} & set(config.mitigate.methods):
        yield false_refusal_direction(machine, counts)
    for method in config.mitigate.methods:
        yield training(machine, counts, method)
        if method != "steer":
            yield machine.load("vLLM")
        yield evaluation(machine, counts, method)
        yield machine.load("transformers")
        yield change(machine, counts, method)


def _opening_work(counts: Counts, language: str) -> tuple[float, float]:
    """Return (tokens read after a prompt, tokens whose logits are computed) for all openings of a language.

    Every opening is padded to the longest, and its last token is only predicted.
    """
    known = _openings_of(language, counts.openings)
    lengths = [counts.opening_tokens(text) for text in (*known.refusal, *known.compliance)]
    padded = len(lengths) * (max(lengths) - 1)
    return float(padded), float(padded)


def _stem_tokens(counts: Counts, language: str) -> float:
    """Return the tokens of the openings that are read after each prompt.

    Openings are read as far as they differ from the other side, and share what they begin with: about one each.
    """
    known = _openings_of(language, counts.openings)
    return float(len({text.split(" ")[0] for text in (*known.refusal, *known.compliance)}))


def _openings_of(language: str, known: Mapping[str, Openings]) -> Openings:
    return lookup(known, language) or known["en"]


def _size_of(n_bytes: float) -> str:
    return f"{size(n_bytes)} of weights"


@cache
def _measured(
    d_model: int, d_ff: int, n_heads: int, vocabulary: int, dtype: str, n_sequences: int, seconds: float
) -> Speed:
    """Time a decoder block and a head made of plain torch, about so many seconds each."""
    import torch
    from torch.nn import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype)
    d_head = max(d_model // n_heads, 1)

    def weights(*shape: int) -> Any:
        return torch.randn(*shape, device=device, dtype=kind) / shape[-1] ** 0.5

    qkv, out = weights(3 * n_heads * d_head, d_model), weights(d_model, n_heads * d_head)
    gate, up, down = weights(d_ff, d_model), weights(d_ff, d_model), weights(d_model, d_ff)
    head = weights(vocabulary, d_model)

    def normed(stream: Any) -> Any:
        return stream * torch.rsqrt(stream.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(stream.dtype)

    def block(stream: Any) -> Any:
        n, length, _ = stream.shape
        split = functional.linear(normed(stream), qkv).view(n, length, 3, n_heads, d_head).permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=length > 1)
        stream = stream + functional.linear(read.transpose(1, 2).reshape(n, length, -1), out)
        inner = normed(stream)
        return stream + functional.linear(
            functional.silu(functional.linear(inner, gate)) * functional.linear(inner, up), down
        )

    batch, one, full = weights(8, 64, d_model), weights(1, 1, d_model), weights(n_sequences, 1, d_model)
    n_rows = max(16, min(512, HEAD_VALUES // vocabulary))
    rows = weights(n_rows, d_model)
    leaf = weights(8, 64, d_model).requires_grad_()

    def back() -> None:
        torch.autograd.grad(block(leaf).float().sum(), leaf)

    with torch.no_grad():
        clock = _Clock(torch, device, seconds)
        block_s = clock(lambda: block(batch)) / 512
        head_s = clock(lambda: functional.linear(rows, head).float().log_softmax(-1)) / n_rows
        step_one, step_full = clock(lambda: block(one)), clock(lambda: block(full))
    backward_s = clock(back) / 512
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return Speed(block_s, backward_s, head_s, step_one, step_full, n_sequences, clock.slowdown, name)


class _Clock:
    """Times calls, and how far the process gets less than its cores."""

    def __init__(self, torch: Any, device: str, seconds: float) -> None:
        self._torch, self._device, self._seconds = torch, device, seconds
        self._wall = self._busy = 0.0

    @property
    def slowdown(self) -> float:
        """Return wall-clock time per processor time of one thread, at least 1."""
        return max(1.0, self._wall / max(self._busy, 1e-9))

    def __call__(self, call: Callable[[], Any]) -> float:
        """Return the mean seconds of a call."""
        call()
        self._wait()
        n, started, cpu = 0, time.perf_counter(), time.thread_time()
        while (taken := time.perf_counter() - started) < self._seconds or n < 3:
            call()
            self._wait()
            n += 1
        self._wall += taken
        self._busy += time.thread_time() - cpu
        return taken / n

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()
