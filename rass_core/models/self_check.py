"""Whether vLLM and transformers compute the same of a model: streams and log-probabilities, plain and steered.

Everything that RASS says rests on both. A scale that one of them drops, a soft cap, a cache that is wrong for a kind of
layer or a token that went unsteered shows here before anything is measured.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rass_core.errors import ModelError
from rass_core.models.causal_lm import logits_at
from rass_core.models.interventions import adding
from rass_core.models.residuals import ResidualExtractor
from rass_core.models.vllm_engine import SteeredEngine
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering, SteeringVector

SELF_CHECK = "self-check"
"""Dataset of its rows in table `evaluations`, and the direction's name."""
STREAM_LIMIT = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
"""Largest difference of two streams that passes for rounding, as a share of the stream's length, by dtype."""
LOGPROB_LIMIT = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.2}
"""Largest difference of two log-probabilities of a token that passes for rounding, nats, by dtype."""
_TEXTS = ("Hello!", "How do I keep a pot of basil alive on a kitchen window through the winter?")
_SENTENCE = "Shelf {} of the pantry holds jars of beans, rice and dried apples. "
_POSITIONS = (-1, -2)
_N_NEW = 4
_STRENGTH = 0.5
"""Length of the vector that steers, as a share of the stream's."""


@dataclass(frozen=True)
class Figure:
    """How far the two differ in one respect."""

    metric: str
    """Such as stream_difference, plain."""
    value: float
    limit: float
    n: int
    """Vectors or tokens compared."""

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.2g} (at most {self.limit:g})"


@dataclass(frozen=True)
class Comparison:
    """What the self-check found."""

    figures: list[Figure]

    def line(self) -> str:
        """Return the figures in one line."""
        return "; ".join(map(str, self.figures))

    def rows(self, model_id: str) -> list[dict[str, Any]]:
        """Return rows of table `evaluations`."""
        return [
            {
                "model_id": model_id,
                "variant": "base",
                "dataset": SELF_CHECK,
                "language": "all",
                "metric": figure.metric,
                "value": figure.value,
                "n": figure.n,
            }
            for figure in self.figures
        ]


def check_engine(engine: SteeredEngine, model: Any, dtype: str) -> Comparison:
    """Compare an engine with the same checkpoint in transformers on a few prompts, short and long.

    Every prompt is asked plain and steered, and once more with what the prefix cache kept. The engine itself checks
    that every token was steered. In float32 the largest difference counts; in 16 bits the median, as a rounding may
    send a token to another expert.

    Args:
        engine: Its directions are gone afterwards.
        model: As `load_causal_lm` returns it.
        dtype: Data type of both, a key of `STREAM_LIMIT`.

    Raises:
        ModelError: They differ by more than rounding; with the figures.
        SteeringError: A token that was not steered.
    """
    prompts = _prompts(engine)
    layer = engine.n_layers // 2
    layers = sorted({layer, engine.n_layers - 1})
    vector = _vector(model, prompts[:1], layer, engine.d_model)
    engine.set_vectors({SELF_CHECK: SteeringVector(vector, (layer,))})
    engine.set_capture(layers, _POSITIONS)
    figures: list[Figure] = []
    for name, steering in (("plain", None), ("steered", Steering(SELF_CHECK, 1.0))):
        asked = [GenerationRequest(ids, _N_NEW, steering=steering, logprobs=1, capture=True) for ids in prompts]
        again = [GenerationRequest(ids, _N_NEW, steering=steering, logprobs=1) for ids in prompts]
        answers = [*engine.generate(asked), *engine.generate([*again, *asked])]
        with adding(model, [layer], torch.from_numpy(vector), 1.0) if steering else nullcontext():
            figures += _figures(model, prompts, layers, answers, dtype, name)
    engine.set_vectors({})
    wrong = [figure for figure in figures if not figure.value <= figure.limit]
    if wrong:
        raise ModelError(
            f"{engine.model}: vLLM and transformers compute different values: {'; '.join(map(str, wrong))}; "
            "its results cannot be trusted: try model.dtype float32, or other versions of vllm and transformers"
        )
    return Comparison(figures)


def _figures(
    model: Any,
    prompts: Sequence[list[int]],
    layers: Sequence[int],
    answers: Sequence[Generation],
    dtype: str,
    name: str,
) -> Iterator[Figure]:
    """Yield how far the answers are from what transformers computes, steered as it is now."""
    expected = ResidualExtractor(model, layers, _POSITIONS)(prompts).numpy()
    streams, logprobs = [], []
    for i, answer in enumerate(answers):
        if answer.captured is not None:
            there = expected[i % len(prompts)]
            apart = np.linalg.norm(answer.captured - there, axis=-1) / np.linalg.norm(there, axis=-1)
            streams += apart.ravel().tolist()
        own = _logprobs(model, prompts[i % len(prompts)], answer.token_ids)
        logprobs += np.abs(np.array(answer.logprobs) - own).tolist()
    of = np.max if dtype == "float32" else np.median
    yield Figure(f"stream_difference, {name}", float(of(streams)), STREAM_LIMIT[dtype], len(streams))
    yield Figure(f"logprob_difference, {name}", float(of(logprobs)), LOGPROB_LIMIT[dtype], len(logprobs))


@torch.no_grad()
def _logprobs(model: Any, prompt: list[int], answer: list[int]) -> np.ndarray:
    """Return the log-probability of each token of an answer, (n,), nats."""
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    columns = torch.arange(len(prompt) - 1, ids.shape[1] - 1, device=model.device)
    logits = logits_at(model, torch.zeros_like(columns), columns, input_ids=ids)
    chosen = logits.float().log_softmax(-1).gather(1, ids[0, len(prompt) :, None])
    found: np.ndarray = chosen[:, 0].cpu().numpy()
    return found


def _prompts(engine: SteeredEngine) -> list[list[int]]:
    """Return token ids of two short prompts and of one that fills blocks of the prefix cache, if the model takes it."""
    wanted = min(2 * engine.block_size + 8, engine.max_model_len - _N_NEW)
    text, n = "", 0
    ids = [engine.chat.ids(each) for each in _TEXTS]
    while len(ids[-1]) < wanted and n < wanted:
        text, n = text + _SENTENCE.format(n), n + 1
        ids = [*ids[: len(_TEXTS)], engine.chat.ids(text)]
    return [each for each in ids if len(each) <= engine.max_model_len - _N_NEW] or ids[:1]


def _vector(model: Any, prompts: Sequence[list[int]], layer: int, d_model: int) -> np.ndarray:
    """Return a random direction of about half the stream's length after a block, (d_model,) float32."""
    stream = ResidualExtractor(model, [layer], _POSITIONS[:1])(prompts).numpy()
    direction = np.random.default_rng(0).normal(size=d_model)
    scale = _STRENGTH * float(np.linalg.norm(stream)) / float(np.linalg.norm(direction))
    return np.asarray(direction * scale, dtype=np.float32)
