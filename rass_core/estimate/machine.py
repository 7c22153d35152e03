"""What one piece of work costs on this machine, measured or assumed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rass_core.config import RassConfig
from rass_core.units import size

VLLM_LOAD_S, TRANSFORMERS_LOAD_S = 8.0, 0.3
"""Time of imports and set-up, without reading the weights."""
READ_BYTES_PER_S = 500e6
"""Speed of reading weights from the disk into a model."""
WRITE_BYTES_PER_S = 40e6
"""Speed of writing activations into packed Parquet."""
STEP_S = 0.009
"""Time of vLLM's scheduler and sampler per step, for any model."""
JUDGE_S = 0.001
"""Time of the phrases and the classifier per response."""
ENDPOINT_S = 2.0
"""Time of an endpoint per reply, assumed."""
TRAINING_START_S, TRAINING_STEP_S = 15.0, 0.05
"""Time of trl's imports and merging; time of one optimiser step without its passes."""
DRAW_S = 0.03
"""Time of the directions of one place and language, with their AUCs."""
NEAR_DUPLICATE_S = 0.0008
"""Time of the hashes of one written prompt."""
BOUNDARY_FIT_S = 0.0005
"""Time of one bootstrap replicate of a language's boundary."""
PADDING = 1.15
"""Tokens with padding per token, in batches of prompts of similar length."""
HEAD_VALUES = 2**23
"""Logits that are computed at a time to measure the head."""


@dataclass(frozen=True)
class Shape:
    """The sizes that determine how long a model takes."""

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


@dataclass
class Machine:
    """Turns work on one model into seconds."""

    shape: Shape
    speed: Speed
    config: RassConfig
    judge_s: float = field(init=False)

    def __post_init__(self) -> None:
        endpoints = [each.endpoint_asked for each in self.config.judge.members if each.endpoint_asked is not None]
        concurrency = max([endpoint.max_concurrency for endpoint in endpoints], default=1)
        self.judge_s = JUDGE_S * self.speed.slowdown + len(endpoints) * ENDPOINT_S / concurrency

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
    return Speed(
        block_s=block_s,
        backward_s=backward_s,
        head_s=head_s,
        step_one_s=step_one,
        step_full_s=step_full,
        n_sequences=n_sequences,
        slowdown=clock.slowdown,
        device=name,
    )


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
