"""Adding and ablating directions in real (tiny, random) checkpoints, and what they are scored by."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from rass_core.errors import ActivationError, ConfigError, ModelError, SteeringError
from rass_core.models.causal_lm import decoder_blocks, load_causal_lm
from rass_core.models.interventions import ablating, adding
from rass_core.models.prefix_logprobs import kl_divergence, last_token_logprobs, prefix_log_odds
from rass_core.models.residuals import ResidualExtractor
from tests.tiny_models import build

ARCHITECTURES = ("llama", "qwen2", "gemma2", "mistral", "phi3", "gpt_neox", "mixtral")
REFUSALS = [[40, 41, 42], [40, 50], [77]]
COMPLIANCES = [[60, 61], [62, 63, 64, 65]]
DRAW = random.Random(1)
PROMPTS = [[DRAW.randrange(9, 260) for _ in range(n)] for n in (7, 45, 3, 12, 45, 20)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_causal_lm(str(build(request.param, tmp_path_factory.mktemp(request.param))))[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_causal_lm(str(build("llama", tmp_path_factory.mktemp("llama"))))[0]


def direction(seed: int = 0) -> Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(seed))


def all_streams(model: Any) -> Tensor:
    """(n_prompts, 4 layers, 3 positions, 64)."""
    return ResidualExtractor(model, range(4), [-3, -2, -1], 100)(PROMPTS)


@torch.no_grad()
def direct_logprob(model: Any, prompt: list[int], opening: list[int]) -> float:
    logprobs = model(torch.tensor([prompt + opening])).logits[0].double().log_softmax(dim=-1)
    return sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(opening))


def direct_log_odds(model: Any, prompt: list[int]) -> float:
    sides = [[direct_logprob(model, prompt, opening) for opening in side] for side in (REFUSALS, COMPLIANCES)]
    refusal, compliance = (torch.tensor(side, dtype=torch.float64).logsumexp(dim=0) for side in sides)
    return float(refusal - compliance)


def test_adding_shifts_the_block_by_alpha_times_the_vector(any_model: Any) -> None:
    vector, before = direction(), all_streams(any_model)
    with adding(any_model, [1], vector, -2.5):
        during = all_streams(any_model)
    torch.testing.assert_close(during[:, 0], before[:, 0])
    shift = (-2.5 * vector).expand_as(before[:, 1])
    torch.testing.assert_close(during[:, 1] - before[:, 1], shift, atol=1e-4, rtol=0)
    assert (during[:, 3] - before[:, 3]).abs().min(dim=-1).values.max() > 0
    torch.testing.assert_close(all_streams(any_model), before)


def test_adding_in_two_blocks_adds_twice(llama: Any) -> None:
    vector = direction()
    with adding(llama, [1, 2], vector, 0.5):
        both = all_streams(llama)
    with adding(llama, [1], vector, 0.5):
        first = all_streams(llama)
    torch.testing.assert_close(both[:, 1], first[:, 1])
    shift = (0.5 * vector).expand_as(both[:, 2])
    torch.testing.assert_close(both[:, 2] - first[:, 2], shift, atol=1e-4, rtol=0)


def test_ablating_leaves_no_component_in_any_block(any_model: Any) -> None:
    vector = 7 * direction(2)
    unit = vector / vector.norm()
    inputs: list[Tensor] = []
    before = all_streams(any_model)
    with ablating(any_model, vector):
        first = decoder_blocks(any_model)[0]
        reader = first.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
        during = all_streams(any_model)
        reader.remove()
    assert (before @ unit).abs().max() > 0.1
    assert (during @ unit).abs().max() < 1e-5
    assert max(float((stream @ unit).abs().max()) for stream in inputs) < 1e-5
    assert during.std() > 0.1
    torch.testing.assert_close(all_streams(any_model), before)


def test_ablating_removes_nothing_else(llama: Any) -> None:
    """The first block's output is that of the block on an input without the component, projected."""
    unit = direction(3) / direction(3).norm()
    seen: list[tuple[Tensor, Tensor]] = []
    block = decoder_blocks(llama)[0]
    reader = block.register_forward_hook(lambda _m, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        llama(torch.tensor(PROMPTS[:1]))
        with ablating(llama, unit):
            llama(torch.tensor(PROMPTS[:1]))
    reader.remove()
    (embedding, _), (given, put_out) = seen
    torch.testing.assert_close(given, embedding - (embedding @ unit)[..., None] * unit)
    torch.testing.assert_close(put_out @ unit, torch.zeros(put_out.shape[:2]), atol=1e-5, rtol=0)


def test_a_strength_removes_that_share_at_every_place(llama: Any) -> None:
    """Before the first block and after each: what is left along the vector is (1 - strength) of what came in."""
    unit = direction(4) / direction(4).norm()
    before, after = all_streams(llama), {}
    for strength in (0.0, 0.25, 1.0):
        with ablating(llama, 3 * unit, strength):
            after[strength] = all_streams(llama)
    torch.testing.assert_close(after[0.0], before)
    assert (after[1.0] @ unit).abs().max() < 1e-5
    block, seen = decoder_blocks(llama)[0], []
    with ablating(llama, unit, 0.25):
        put_out = block.register_forward_hook(lambda _m, _args, output: seen.append(output), prepend=True)
        given = block.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        embedded = llama.get_input_embeddings().register_forward_hook(lambda _m, _args, output: seen.append(output))
        with torch.no_grad():
            llama(torch.tensor(PROMPTS[:1]))
        for handle in (put_out, given, embedded):
            handle.remove()
    embedding, first_input, first_output = seen
    torch.testing.assert_close(first_input, embedding - 0.25 * (embedding @ unit)[..., None] * unit)
    expected = (first_output - 0.25 * (first_output @ unit)[..., None] * unit)[:, -3:]
    torch.testing.assert_close(after[0.25][:1, 0], expected)


def test_log_odds_equal_single_prompts_read_directly(any_model: Any) -> None:
    expected = torch.tensor([direct_log_odds(any_model, prompt) for prompt in PROMPTS], dtype=torch.float64)
    for token_budget in (1, 130, 100_000):
        odds = prefix_log_odds(any_model, PROMPTS, REFUSALS, COMPLIANCES, token_budget)
        assert odds.dtype == torch.float64
        torch.testing.assert_close(odds, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


def test_log_odds_count_positions_where_they_are_learned() -> None:
    """Rotary positions forgive a common shift by the padding; GPT-2's do not."""
    config = GPT2Config(vocab_size=272, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    expected = [direct_log_odds(model, prompt) for prompt in PROMPTS]
    odds = prefix_log_odds(model, PROMPTS, REFUSALS, COMPLIANCES)
    torch.testing.assert_close(odds, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


def test_log_odds_under_a_change_equal_the_changed_model_read_directly(any_model: Any) -> None:
    vector, plain = direction(), prefix_log_odds(any_model, PROMPTS, REFUSALS, COMPLIANCES)
    for change in (adding(any_model, [1], vector, 1.5), ablating(any_model, vector)):
        with change:
            odds = prefix_log_odds(any_model, PROMPTS, REFUSALS, COMPLIANCES)
            expected = [direct_log_odds(any_model, prompt) for prompt in PROMPTS]
        torch.testing.assert_close(odds, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)
        assert (odds - plain).abs().max() > 1e-2


def test_log_odds_rise_with_a_direction_that_writes_the_refusal_token(llama: Any) -> None:
    vector = llama.get_output_embeddings().weight[77].detach()
    plain = prefix_log_odds(llama, PROMPTS, [[77]], [[78]])
    with adding(llama, [3], vector, 5.0):
        assert (prefix_log_odds(llama, PROMPTS, [[77]], [[78]]) > plain).all()


def test_an_opening_that_another_begins_is_counted_once(llama: Any) -> None:
    once = prefix_log_odds(llama, PROMPTS, [[40]], COMPLIANCES)
    again = prefix_log_odds(llama, PROMPTS, [[40, 41], [40], [40]], COMPLIANCES)
    torch.testing.assert_close(again, once)
    for refusals in ([], [[]], [[60]], [[60, 61, 9]]):
        with pytest.raises(ConfigError, match="prefixes"):
            prefix_log_odds(llama, PROMPTS, refusals, COMPLIANCES)


def test_last_token_logprobs_equal_single_prompts(any_model: Any) -> None:
    logprobs = last_token_logprobs(any_model, PROMPTS, token_budget=100)
    with torch.no_grad():
        expected = [any_model(torch.tensor([prompt])).logits[0, -1].log_softmax(dim=-1) for prompt in PROMPTS]
    torch.testing.assert_close(logprobs, torch.stack(expected), atol=1e-4, rtol=0)


def test_kl_divergence_by_hand() -> None:
    base = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]).log()
    changed = torch.tensor([[0.25, 0.25, 0.5], [0.9, 0.1, 0.0]]).log()
    expected = torch.tensor([torch.tensor(2.0).log(), 0.0], dtype=torch.float64)
    torch.testing.assert_close(kl_divergence(base, changed), expected, atol=1e-6, rtol=0)
    with pytest.raises(ActivationError, match="KL: base is"):
        kl_divergence(base, changed[:1])


def test_kl_of_a_change_grows_with_alpha(llama: Any) -> None:
    base = last_token_logprobs(llama, PROMPTS)
    kl = []
    for alpha in (0.0, 0.5, 2.0):
        with adding(llama, [2], direction(), alpha):
            kl.append(float(kl_divergence(base, last_token_logprobs(llama, PROMPTS)).mean()))
    assert abs(kl[0]) < 1e-6 < kl[1] < kl[2]


def test_a_change_that_never_acted_raises(llama: Any) -> None:
    with pytest.raises(SteeringError, match=r"blocks \[0\] never ran"), adding(llama, [0], direction(), 1.0):
        pass
    with pytest.raises(SteeringError, match=r"blocks \[2, 3\] never ran"), ablating(llama, direction()):
        ResidualExtractor(llama, [1], [-1])(PROMPTS)


def test_an_error_inside_is_not_hidden_and_leaves_no_hook(llama: Any) -> None:
    before = all_streams(llama)
    for change in (adding(llama, [0], direction(), 1.0), ablating(llama, direction())):
        with pytest.raises(ZeroDivisionError), change:
            _ = 1 / 0
    torch.testing.assert_close(all_streams(llama), before)


def test_what_cannot_be_done_is_refused(llama: Any) -> None:
    for vector in (torch.ones(63), torch.ones(1, 64), torch.full((64,), float("nan"))):
        with pytest.raises(ActivationError, match=r"need finite \(64,\)"), ablating(llama, vector):
            pass
        with pytest.raises(ActivationError, match=r"need finite \(64,\)"), adding(llama, [0], vector, 1.0):
            pass
    with pytest.raises(ActivationError, match="zero vector"), ablating(llama, torch.zeros(64)):
        pass
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="give 0 .nothing. to 1"), ablating(llama, direction(), strength):
            pass
    with pytest.raises(ModelError, match="it has 0 to 3"), adding(llama, [-1], direction(), 1.0):
        pass
    with pytest.raises(ActivationError, match="has no tokens"):
        last_token_logprobs(llama, [[5], []])


def test_log_probabilities_that_are_no_numbers_raise(tmp_path: Path) -> None:
    broken, _ = load_causal_lm(str(build("llama", tmp_path)))
    with torch.no_grad():
        broken.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(ActivationError, match="not numbers"):
        last_token_logprobs(broken, PROMPTS)
    with pytest.raises(ActivationError, match="not numbers"):
        prefix_log_odds(broken, PROMPTS, REFUSALS, COMPLIANCES)
