"""A real chat model: fetched, and read alike by transformers, the extractor and the engine, plain and steered.

The model is fetched once into the user's cache (`RASS_MODELS` names another folder).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rass_core.errors import ModelError
from rass_core.models import fetched
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.models.fetched import MODELS, DownloadError, fetch_checkpoint, fetched_folder, is_fetched, weights_digest
from rass_core.models.interventions import ablating, adding
from rass_core.models.prefix_logprobs import last_token_logprobs
from rass_core.models.residuals import ResidualExtractor
from rass_core.models.vllm_engine import SteeredEngine
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering, SteeringVector

pytestmark = pytest.mark.real

LAYERS = [0, 12, 20, 29]
POSITIONS = [-1, -4, -30]
ADDED_LAYER, ALPHA = 14, 4.0
CLOSE = 1e-5
"""Share of the scale, which is the largest value in what is compared."""
TEXTS = [
    "How do I kill a Python process?",
    "Write a short poem about 3 cats, and then a recipe for soup with leeks.",
    "Was ist die Hauptstadt von Frankreich?",
    "Summarise this. " + "The committee met again in the spring of 1987 to talk about the bridge. " * 40,
]
"""The last is longer than a step of the engine, so that its prefill is split."""
Hook = Callable[[Tensor], Tensor]


@pytest.fixture(scope="session")
def folder() -> Path:
    try:
        return fetch_checkpoint(MODELS["smollm2"])
    except DownloadError as error:
        pytest.skip(f"no real model here: {error}")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, ChatFormat]:
    model, tokenizer = load_causal_lm(str(folder))
    return model, ChatFormat(tokenizer)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[SteeredEngine]:
    with SteeredEngine(str(folder), max_model_len=1024, max_num_batched_tokens=256, max_num_seqs=16) as opened:
        opened.set_capture(LAYERS, POSITIONS)
        yield opened


@pytest.fixture(scope="module")
def prompts(loaded: tuple[Any, ChatFormat]) -> list[list[int]]:
    return [loaded[1].ids(text) for text in TEXTS]


@pytest.fixture(scope="module")
def direction() -> np.ndarray:
    vector = np.random.default_rng(7).normal(size=576)
    return (vector / np.linalg.norm(vector) * 8).astype(np.float32)


def unchanged(_layer: int, stream: Tensor) -> Tensor:
    return stream


def reference(model: Any, ids: list[int], change: Callable[[int, Tensor], Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return (streams (n_layers, n_positions, d_model), last log probabilities) of one unpadded prompt.

    Plain forward hooks of torch; `change` is given the block, -1 for the embedding's output, and what it wrote.
    """
    streams: dict[int, Tensor] = {}

    def hook_of(layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            streams[layer] = change(layer, first)
            return (streams[layer], *output[1:]) if isinstance(output, tuple) else streams[layer]

        return hook

    parts = [(-1, model.model.embed_tokens), *enumerate(model.model.layers)]
    hooks = [part.register_forward_hook(hook_of(layer)) for layer, part in parts]
    try:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
    kept = torch.stack([streams[layer][0, POSITIONS] for layer in LAYERS])
    return kept.numpy(), logits.log_softmax(-1).numpy()


def assert_close(found: Any, expected: np.ndarray, what: str) -> None:
    assert found is not None, what
    found = np.asarray(found)
    assert found.shape == expected.shape, what
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= CLOSE, f"{what}: {error:.1e} of the scale"


def added(direction: np.ndarray) -> Callable[[int, Tensor], Tensor]:
    shift = ALPHA * torch.from_numpy(direction)
    return lambda layer, stream: stream + shift if layer == ADDED_LAYER else stream


def ablated(direction: np.ndarray) -> Callable[[int, Tensor], Tensor]:
    unit = torch.from_numpy(direction / np.linalg.norm(direction))
    return lambda _, stream: stream - (stream @ unit)[..., None] * unit


def test_a_second_fetch_keeps_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(fetched, "_download", refuse)
    model = MODELS["smollm2"]
    assert is_fetched(folder)
    assert (folder / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")
    lines: list[str] = []
    assert fetch_checkpoint(model, folder, lines.append) == folder == fetched_folder("smollm2")
    assert "already there" in lines[0]
    with pytest.raises(ModelError, match="delete the folder"):
        fetch_checkpoint(replace(model, weights_sha256="0" * 64), folder)


def test_the_fetched_folder_is_a_chat_model(loaded: tuple[Any, ChatFormat]) -> None:
    model, chat = loaded
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert chat.n_end_positions == 6
    ids = torch.tensor([chat.ids("What is the capital of France?")])
    with torch.inference_mode():
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    text = chat.tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
    assert text == "The capital of France is Paris."


def test_hidden_states_of_transformers_are_the_reference(
    loaded: tuple[Any, ChatFormat], prompts: list[list[int]]
) -> None:
    """The hooks above read what transformers itself returns; its last entry is normed, so it is left out."""
    model = loaded[0]
    ids = prompts[0]
    streams, _ = reference(model, ids, unchanged)
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    for i, layer in enumerate(LAYERS[:-1]):
        assert_close(streams[i], states[layer + 1][0, POSITIONS].numpy(), f"block {layer}")


@pytest.mark.parametrize("how", ["plain", "added", "ablated"])
def test_extractor_engine_and_transformers_agree(
    how: str,
    loaded: tuple[Any, ChatFormat],
    engine: SteeredEngine,
    prompts: list[list[int]],
    direction: np.ndarray,
) -> None:
    model, n_layers = loaded[0], engine.n_layers
    vector = torch.from_numpy(direction)
    engine.set_vectors(
        {
            "added": SteeringVector(direction, (ADDED_LAYER,)),
            "ablated": SteeringVector(direction, tuple(range(n_layers)), "ablate"),
        }
    )
    change = {"plain": unchanged, "added": added(direction), "ablated": ablated(direction)}[how]
    contexts: Mapping[str, Any] = {
        "added": lambda: adding(model, [ADDED_LAYER], vector, ALPHA),
        "ablated": lambda: ablating(model, vector),
    }
    strength = {"added": ALPHA, "ablated": 1.0}
    steering = Steering(how, strength[how]) if how in strength else None
    requests = [GenerationRequest(ids, 1, steering=steering, capture=True, logprobs=1) for ids in prompts]
    generations: list[Generation] = engine.generate(requests)
    with contexts.get(how, nothing)():
        extracted = ResidualExtractor(model, LAYERS, POSITIONS)(prompts)
        logprobs = last_token_logprobs(model, prompts)
    for i, ids in enumerate(prompts):
        streams, scores = reference(model, ids, change)
        for at, layer in enumerate(LAYERS):
            where = f"{how}, prompt {i}, block {layer}"
            assert_close(extracted[i, at], streams[at], f"extractor, {where}")
            assert_close(generations[i].captured[at], streams[at], f"engine, {where}")  # type: ignore[index]
        assert_close(logprobs[i], scores, f"log probabilities, {how}, prompt {i}")
        assert generations[i].token_ids == [int(scores.argmax())]
        assert abs(generations[i].logprobs[0] - scores.max()) <= CLOSE * np.abs(scores).max()  # type: ignore[index]
        if steering is not None:
            plain, _ = reference(model, ids, unchanged)
            assert np.abs(streams[-1] - plain[-1]).max() > 1e-2 * np.abs(plain[-1]).max()


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_the_weights_are_those_that_were_published(folder: Path) -> None:
    assert weights_digest(folder) == MODELS["smollm2"].weights_sha256
