"""The vLLM engine against plain transformers: the same residual streams, the same steered answers."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rass_core.errors import ModelError, SteeringError
from rass_core.models.interventions import ablating, adding
from rass_core.models.vllm_engine import SteeredEngine
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering, SteeringVector
from rass_core.models.vllm_worker import HeldVector
from tests.tiny_models import D_MODEL, N_LAYERS, build
from tests.transformers_reference import N_NEW, STEERED, Reference

LAYERS = list(range(N_LAYERS))
POSITIONS = [-1, -2, -3, -4, -40]
SHARED_PREFIX = "All of these begin alike, with words enough to fill blocks of the prefix cache. "


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt_neox"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[SteeredEngine]:
    """An engine whose steps hold 64 tokens: most prompts are split, and steps mix many requests."""
    with SteeredEngine(str(folder), max_num_batched_tokens=64, max_num_seqs=16) as engine:
        yield engine


@pytest.fixture
def engine(loaded: SteeredEngine, vector: np.ndarray) -> SteeredEngine:
    """The same engine as a test expects to find it."""
    loaded.set_vectors({"d": SteeringVector(vector, STEERED)})
    loaded.set_capture(LAYERS, POSITIONS)
    return loaded


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def vector() -> np.ndarray:
    return np.random.default_rng(3).normal(size=D_MODEL).astype(np.float32)


def prompts(engine: SteeredEngine, n: int) -> list[list[int]]:
    """Return prompts of many lengths, half of them with a long beginning in common."""
    beginnings = ("", SHARED_PREFIX)
    return [engine.chat.ids(f"{beginnings[i % 2]}Number {i}: {'so ' * (10 + i % 9)}") for i in range(n)]


def steered(ids: list[int], alpha: float, **kwargs: Any) -> GenerationRequest:
    return GenerationRequest(ids, N_NEW, steering=Steering("d", alpha), logprobs=1, **kwargs)


def assert_same(answer: Generation, expected: tuple[list[int], list[float]]) -> None:
    assert answer.token_ids == expected[0]
    np.testing.assert_allclose(answer.logprobs, expected[1], atol=1e-3)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_captured_streams_equal_transformers(engine: SteeredEngine, reference: Reference, n: int) -> None:
    all_ids = prompts(engine, n)
    plain = [GenerationRequest(ids, 1) for ids in all_ids]
    engine.generate(plain)  # fills the prefix cache
    answers = engine.generate([replace(request, capture=True) for request in plain])
    assert n == 1 or max(map(len, all_ids)) > 64
    for ids, answer in zip(all_ids, answers, strict=True):
        _, streams = reference.forward(ids, np.zeros(D_MODEL, np.float32), 0.0)
        assert answer.captured is not None
        assert answer.captured.dtype == np.float32
        np.testing.assert_allclose(answer.captured, streams[:, POSITIONS], atol=1e-3)


def test_many_alphas_in_one_batch_equal_steered_transformers(
    engine: SteeredEngine, reference: Reference, vector: np.ndarray
) -> None:
    alphas = [-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]
    requests = [steered(ids, alpha) for ids, alpha in zip(prompts(engine, 6), alphas, strict=True)]
    requests += [GenerationRequest(requests[0].prompt_ids, N_NEW, logprobs=1)]
    together = engine.generate(requests)
    for request, alpha, answer in zip(requests, [*alphas, 0.0], together, strict=True):
        alone = engine.generate([request])[0]
        assert_same(answer, reference.greedy(request.prompt_ids, vector, alpha))
        assert (alone.token_ids, alone.text) == (answer.token_ids, answer.text)
        np.testing.assert_allclose(alone.logprobs, answer.logprobs, atol=1e-4)
    assert len({tuple(answer.token_ids) for answer in together}) > 3


def test_a_steered_capture_is_the_steered_stream(
    engine: SteeredEngine, reference: Reference, vector: np.ndarray
) -> None:
    ids = prompts(engine, 2)[1]
    _, streams = reference.forward(ids, vector, 1.5)
    requests = [GenerationRequest(ids, 1, capture=True), steered(ids, 1.5, capture=True)]
    plain, answer = engine.generate(requests)
    np.testing.assert_allclose(answer.captured, streams[:, POSITIONS], atol=1e-3)
    np.testing.assert_array_equal(answer.captured[0], plain.captured[0])
    assert np.abs(answer.captured[1] - plain.captured[1]).max() > 0.1


def test_alpha_zero_is_the_unsteered_model(engine: SteeredEngine) -> None:
    all_ids = [ids[:-7] + [40 + len(ids)] * 7 for ids in prompts(engine, 8)]  # in no cache yet
    zero = engine.generate([steered(ids, 0.0) for ids in all_ids])
    plain = engine.generate([GenerationRequest(ids, N_NEW, logprobs=1) for ids in all_ids])
    assert [answer.token_ids for answer in zero] == [answer.token_ids for answer in plain]
    for one, other in zip(zero, plain, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_the_prefix_cache_never_mixes(engine: SteeredEngine, reference: Reference, vector: np.ndarray) -> None:
    ids = engine.chat.ids("The very same prompt, long enough for several blocks of the cache. " * 3)
    for alpha in (1.0, 0.0, -1.0, 1.0):
        assert_same(engine.generate([steered(ids, alpha)])[0], reference.greedy(ids, vector, alpha))
        plain = engine.generate([GenerationRequest(ids, N_NEW, logprobs=1)])[0]
        assert_same(plain, reference.greedy(ids, vector, 0.0))
    engine.set_vectors({"d": SteeringVector(-2 * vector, STEERED)})  # another vector of the same name
    assert_same(engine.generate([steered(ids, 1.0)])[0], reference.greedy(ids, vector, -2.0))


def ablated(ids: list[int], strength: float, **kwargs: Any) -> GenerationRequest:
    return replace(steered(ids, strength, **kwargs), steering=Steering("out", strength))


def test_ablation_beside_all_else_equals_transformers(
    engine: SteeredEngine, reference: Reference, vector: np.ndarray
) -> None:
    """Mixed in one batch, every strength acts on its own request as `interventions.ablating` does."""
    removed = np.random.default_rng(5).normal(size=D_MODEL).astype(np.float32)
    unit = removed / np.linalg.norm(removed)
    vectors = {"d": SteeringVector(vector, STEERED), "out": SteeringVector(7 * removed, tuple(LAYERS), "ablate")}
    engine.set_vectors(vectors)
    kinds: list[tuple[float | None, float | None]] = [
        (None, None), (None, 1.0), (1.5, None), (None, 0.5), (None, 0.0), (None, 1.0), (-1.0, None), (None, 0.5),
    ]  # fmt: skip
    requests = [
        ablated(ids, strength, capture=i % 2 == 1)
        if strength is not None
        else steered(ids, alpha or 0.0, capture=alpha is None)
        for i, (ids, (alpha, strength)) in enumerate(zip(prompts(engine, len(kinds)), kinds, strict=True))
    ]
    requests[0] = replace(requests[0], steering=None)
    for request, (alpha, strength), answer in zip(requests, kinds, engine.generate(requests), strict=True):
        ids = request.prompt_ids
        plain = reference.forward(ids, vector, 0.0)[0]
        change = nullcontext() if strength is None else ablating(reference.model, torch.tensor(removed), strength)
        with change:
            assert_same(answer, reference.greedy(ids, vector, alpha or 0.0))
            logprobs, streams = reference.forward(ids, vector, alpha or 0.0)
        assert bool((logprobs - plain).abs().max() > 0.05) == bool(alpha or strength)
        if answer.captured is not None:
            np.testing.assert_allclose(answer.captured, streams[:, POSITIONS], atol=1e-3)
            along = np.abs(answer.captured @ unit).max()
            assert along < 1e-4 if strength == 1.0 else along > 0.1


def test_ablation_in_some_blocks_leaves_the_others(engine: SteeredEngine, vector: np.ndarray) -> None:
    engine.set_vectors({"out": SteeringVector(vector, STEERED, "ablate")})
    ids = prompts(engine, 2)[1]
    requests = [GenerationRequest(ids, 1, capture=True), ablated(ids, 0.5, capture=True)]
    plain, answer = engine.generate(requests)
    unit = vector / np.linalg.norm(vector)
    first = STEERED[0]
    np.testing.assert_array_equal(answer.captured[:first], plain.captured[:first])
    expected = plain.captured[first] - 0.5 * (plain.captured[first] @ unit)[:, None] * unit
    np.testing.assert_allclose(answer.captured[first], expected, atol=1e-4)
    assert np.abs(answer.captured[-1] @ unit).max() > 0.1


def test_the_prefix_cache_keeps_ablated_from_added(engine: SteeredEngine, reference: Reference) -> None:
    """The same name, bytes, layers and strength, so that they differ in the kind alone."""
    axis = np.eye(D_MODEL, dtype=np.float32)[5]
    ids = engine.chat.ids("Another prompt, asked again and again, that fills several blocks. " * 3)
    for kind in ("add", "ablate", "add"):
        engine.set_vectors({"d": SteeringVector(axis, tuple(LAYERS), kind)})
        answer = engine.generate([steered(ids, 1.0)])[0]
        fresh = engine.generate([steered(ids, 1.0, capture=True)])[0]  # reads no cache
        assert answer.token_ids == fresh.token_ids
        np.testing.assert_allclose(answer.logprobs, fresh.logprobs, atol=1e-4)
    with ablating(reference.model, torch.tensor(axis)):
        expected = reference.greedy(ids, axis, 0.0)
    engine.set_vectors({"d": SteeringVector(axis, tuple(LAYERS), "ablate")})
    assert_same(engine.generate([steered(ids, 1.0)])[0], expected)


def test_one_request_can_add_a_direction_and_ablate_another(
    engine: SteeredEngine, reference: Reference, vector: np.ndarray
) -> None:
    """Added first and ablated last, so that nothing is left along what is ablated."""
    removed = vector + np.random.default_rng(6).normal(size=D_MODEL).astype(np.float32)
    engine.set_vectors({"d": SteeringVector(vector, STEERED), "out": SteeringVector(removed, tuple(LAYERS), "ablate")})
    both = (Steering("out", 1.0), Steering("d", 1.5))
    plain, *asked = prompts(engine, 4)
    requests = [GenerationRequest(ids, N_NEW, steering=both, capture=True, logprobs=1) for ids in asked]
    answers = engine.generate([steered(plain, 1.0), *requests])
    assert_same(answers[0], reference.greedy(plain, vector, 1.0))
    for ids, answer in zip(asked, answers[1:], strict=True):
        with (
            ablating(reference.model, torch.tensor(removed)),
            adding(reference.model, STEERED, torch.tensor(vector), 1.5),
        ):
            assert_same(answer, reference.greedy(ids, vector, 0.0))
        assert np.abs(answer.captured @ (removed / np.linalg.norm(removed))).max() < 1e-4
    with pytest.raises(SteeringError, match="twice"):
        engine.generate([GenerationRequest(plain, 2, steering=[Steering("d", 1.0), Steering("d", 0.5)])])


def test_a_request_ends_at_its_own_stop_token(engine: SteeredEngine) -> None:
    ids = engine.chat.ids("hello")
    free = engine.generate([GenerationRequest(ids, N_NEW)])[0]
    at = max(i for i, token in enumerate(free.token_ids) if token not in free.token_ids[:i])
    stopped = engine.generate([GenerationRequest(ids, N_NEW, stop_token_ids=(free.token_ids[at],))])[0]
    assert stopped.token_ids == free.token_ids[: at + 1]
    assert stopped.finish_reason == "stop"


def test_a_seed_samples_the_same_in_any_batch(engine: SteeredEngine) -> None:
    requests = [steered(ids, 0.5, temperature=1.0, top_p=0.95, seed=i) for i, ids in enumerate(prompts(engine, 9))]
    counts: list[int] = []
    together = engine.generate(requests, progress=counts.append)
    assert engine.generate([requests[4]])[0].token_ids == together[4].token_ids
    assert counts == sorted(counts)
    assert counts[-1] == 9
    assert {answer.finish_reason for answer in together} <= {"stop", "length"}


def test_wrong_requests_are_refused(engine: SteeredEngine, vector: np.ndarray) -> None:
    ids = engine.chat.ids("hello")
    with pytest.raises(SteeringError, match="unknown direction 'other'"):
        engine.generate([GenerationRequest(ids, 2, steering=Steering("other", 1.0))])
    with pytest.raises(SteeringError, match="alpha nan"):
        engine.generate([steered(ids, float("nan"))])
    with pytest.raises(ModelError, match="the model takes 4095"):
        engine.generate([GenerationRequest(ids * 600, 2)])
    with pytest.raises(ModelError, match="empty prompt"):
        engine.generate([GenerationRequest([], 2)])
    with pytest.raises(SteeringError, match="no position -40"):
        engine.generate([GenerationRequest(ids, 2, capture=True)])
    with pytest.raises(SteeringError, match=r"need a finite \(64,\)"):
        engine.set_vectors({"d": SteeringVector(vector[1:], STEERED)})
    with pytest.raises(SteeringError, match="blocks of 0 … 3"):
        engine.set_vectors({"d": SteeringVector(vector, (4,))})
    with pytest.raises(SteeringError, match="a zero vector has no direction to ablate"):
        engine.set_vectors({"d": SteeringVector(0 * vector, STEERED, "ablate")})
    with pytest.raises(SteeringError, match="kind 'remove'; give one of"):
        engine.set_vectors({"d": SteeringVector(vector, STEERED, "remove")})  # type: ignore[arg-type]
    engine.set_vectors({"out": SteeringVector(vector, STEERED, "ablate")})
    for strength in (-0.1, 1.5):
        with pytest.raises(SteeringError, match="of an ablation; give 0"):
            engine.generate([ablated(ids, strength)])
    with pytest.raises(SteeringError, match="negative"):
        engine.set_capture([0], [0])
    assert engine.generate([GenerationRequest(ids, 2)])[0].n_prompt_tokens == len(ids)


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ModelError, match="no/such/model: no such folder"):
        SteeredEngine("no/such/model")


def remove_hooks(worker: Any) -> None:
    for module in worker.model_runner.model.modules():
        module._forward_hooks.clear()


def remove_first_hook(worker: Any) -> None:
    worker.model_runner.model.model.layers[0]._forward_pre_hooks.clear()


def forget_vectors(worker: Any) -> None:
    worker.rass_vectors.clear()


def keep_one_layer(worker: Any) -> None:
    held = worker.rass_vectors["d"]
    worker.rass_vectors["d"] = HeldVector(held.vector, frozenset(STEERED[:1]), held.is_ablated)


ADDED = SteeringVector(np.ones(D_MODEL, np.float32), STEERED)
ABLATED = SteeringVector(np.ones(D_MODEL, np.float32), tuple(LAYERS), "ablate")


@pytest.mark.parametrize(
    ("given", "sabotage", "message"),
    [
        (ADDED, remove_hooks, "0 of"),
        (ADDED, forget_vectors, "not known to the worker"),
        (ADDED, keep_one_layer, "in block 2"),
        (ABLATED, remove_hooks, "0 of .* in block 0"),
        (ABLATED, remove_first_hook, "0 of .* before block 0"),
    ],
)
def test_steering_that_does_not_happen_is_an_error(
    llama: Path, given: SteeringVector, sabotage: Callable[[Any], None], message: str
) -> None:
    with SteeredEngine(str(llama)) as engine:
        engine.set_vectors({"d": given})
        request = steered(engine.chat.ids("hello"), 1.0)
        engine.generate([request])
        engine._llm.collective_rpc(sabotage)
        with pytest.raises(SteeringError, match=message):
            engine.generate([request])
        with pytest.raises(ModelError, match="closed"):
            engine.generate([request])
