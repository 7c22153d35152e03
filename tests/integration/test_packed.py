"""Packed reading, and going on from remembered streams, give the numbers of plain reading in every architecture."""

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig

from rass_core.errors import ActivationError, ModelError, SteeringError
from rass_core.models import prefix_logprobs
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.interventions import ablating, adding
from rass_core.models.packed import PackedPrompts, attention_windows
from rass_core.models.prefix_logprobs import PlainPrompts, prefix_log_odds, prompt_reader
from rass_core.probe import causal
from rass_core.probe.geometry import Direction
from rass_core.probe.settings import ProbeConfig
from tests.tiny_models import ARCHITECTURES, build

DRAW = random.Random(1)
SHARED = [DRAW.randrange(9, 260) for _ in range(6)]
PROMPTS = [SHARED + [DRAW.randrange(9, 260) for _ in range(n)] for n in (7, 45, 3, 12, 45, 20, 60)]
OPENINGS = [[40, 41, 42], [40, 50], [77], [60, 61], [62, 63, 64, 65]]
REFUSALS, COMPLIANCES = OPENINGS[:3], OPENINGS[3:]
SHARPER = 25.0


@pytest.fixture(scope="module", params=ARCHITECTURES)
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_causal_lm(str(build(request.param, tmp_path_factory.mktemp(request.param))))[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_causal_lm(str(build("llama", tmp_path_factory.mktemp("llama"))))[0]


def direction(seed: int = 0) -> Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(seed))


def same(one: Tensor | None, other: Tensor | None) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("token_budget", "row_tokens"), [(4096, 4096), (150, 100), (1, 1)])
def test_packed_equals_plain(any_model: Any, token_budget: int, row_tokens: int) -> None:
    plain = PlainPrompts(any_model, PROMPTS, OPENINGS).read(first_token=True)
    reader = PackedPrompts(any_model, PROMPTS, OPENINGS, token_budget, row_tokens)
    packed = reader.read(first_token=True)
    same(packed.prefixes, plain.prefixes)
    same(packed.first_token, plain.first_token)
    assert reader.read().first_token is None
    assert isinstance(prompt_reader(any_model, PROMPTS, OPENINGS), PackedPrompts)


def test_going_on_from_a_block_equals_the_whole_model(any_model: Any) -> None:
    reader, vector = PackedPrompts(any_model, PROMPTS, OPENINGS, 150, 100), direction()
    assert reader.remember([0, 1, 2, 3]) == [0, 1, 2, 3]
    for layer in (0, 1, 3):
        with adding(any_model, [layer], vector, 1.5):
            resumed = reader.read(first_token=True, above=layer)
            plain = PlainPrompts(any_model, PROMPTS, OPENINGS).read(first_token=True)
        same(resumed.prefixes, plain.prefixes)
        same(resumed.first_token, plain.first_token)
    with ablating(any_model, vector, 0.5, [2, 3]):
        resumed = reader.read(above=1)
        plain = PlainPrompts(any_model, PROMPTS, OPENINGS).read()
    same(resumed.prefixes, plain.prefixes)
    unchanged = PlainPrompts(any_model, PROMPTS, OPENINGS).read()
    assert (plain.prefixes - unchanged.prefixes).abs().max() > 1e-3
    same(reader.read().prefixes, unchanged.prefixes)  # nothing is left behind


def test_a_change_below_is_not_overlooked(llama: Any) -> None:
    reader = PackedPrompts(llama, PROMPTS, OPENINGS)
    with pytest.raises(SteeringError, match="not remembered"):
        reader.read(above=2)
    reader.remember([2])
    with pytest.raises(SteeringError, match="a block below it was changed"), adding(llama, [1], direction(), 1.0):
        reader.read(above=2)


def test_rounding_to_three_digits_does_not_make_it_slow(llama: Any, caplog: pytest.LogCaptureFixture) -> None:
    rounding = copy.deepcopy(llama).bfloat16()
    with torch.no_grad():
        rounding.get_output_embeddings().weight.mul_(SHARPER)  # a trained model is surer, so its rounding shows
    assert isinstance(prompt_reader(rounding, PROMPTS, OPENINGS), PackedPrompts)
    prompts = causal.CausalPrompts(PROMPTS[:4], PROMPTS[4:], REFUSALS, COMPLIANCES)
    trial = causal.CausalTrial(rounding, [prompts], ProbeConfig(), [1])
    assert "slower" not in caplog.text
    nothing = Direction("harm", "mean", 1, -1, torch.ones(64).double().numpy())
    faint = replace(nothing, vector=1e-9 * nothing.vector)
    assert trial.kl(faint, [2], 0.0) == pytest.approx(0.0, abs=1e-6)


def test_streams_keep_to_their_memory(llama: Any) -> None:
    reader = PackedPrompts(llama, PROMPTS, OPENINGS)
    n_bytes = reader.n_tokens * 64 * 4
    small = PackedPrompts(llama, PROMPTS, OPENINGS, stream_bytes=2 * n_bytes)
    assert small.remember([3, 1, 2]) == [1, 2] and small.remembered == {1, 2}


def test_a_model_without_attention_is_read_plainly(caplog: pytest.LogCaptureFixture) -> None:
    config = MambaConfig(vocab_size=272, hidden_size=64, num_hidden_layers=4, state_size=4)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    reader = prompt_reader(model, PROMPTS, OPENINGS)
    assert isinstance(reader, PlainPrompts)
    assert "read one by one, which is slower" in caplog.text
    with torch.no_grad():
        logprobs = model(torch.tensor([PROMPTS[0] + OPENINGS[4]])).logits[0].double().log_softmax(dim=-1)
    by_hand = sum(logprobs[len(PROMPTS[0]) - 1 + i, token] for i, token in enumerate(OPENINGS[4]))
    torch.testing.assert_close(reader.read().prefixes[0, 4], by_hand, atol=1e-3, rtol=0)


def test_other_numbers_make_it_plain(
    llama: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = prefix_log_odds(llama, PROMPTS, REFUSALS, COMPLIANCES)
    monkeypatch.setattr(prefix_logprobs, "_longest_checked", {})
    monkeypatch.setattr(prefix_logprobs, "_unpackable", {})
    # As if every token saw only its neighbour: a mask that this model does not have.
    monkeypatch.setattr("rass_core.models.packed.attention_windows", lambda model: {"full_attention": 2})
    same(prefix_log_odds(llama, PROMPTS, REFUSALS, COMPLIANCES), expected)
    assert "packed rows differ by" in caplog.text
    assert isinstance(prompt_reader(llama, PROMPTS, OPENINGS), PlainPrompts)


def test_kinds_of_layers(llama: Any, tmp_path: Path) -> None:
    assert attention_windows(llama) == {"full_attention": None}
    gemma = load_causal_lm(str(build("gemma2", tmp_path)))[0]
    assert attention_windows(gemma) == {"full_attention": None, "sliding_attention": 32}
    gemma.config.get_text_config().layer_types = ["linear_attention"] * 4
    with pytest.raises(ModelError, match="linear_attention"):
        attention_windows(gemma)


def test_empty_prompts_are_refused(llama: Any) -> None:
    for prompts in ([], [[5], []]):
        with pytest.raises(ActivationError, match="prompts"):
            PackedPrompts(llama, prompts)


@pytest.mark.parametrize("packed", [True, False])
def test_trials_agree_with_reading_by_hand(any_model: Any, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr(causal, "prompt_reader", PlainPrompts)
        monkeypatch.setattr(prefix_logprobs, "prompt_reader", PlainPrompts)
    prompts = [causal.CausalPrompts(PROMPTS[:4], PROMPTS[3:], REFUSALS, COMPLIANCES)]
    trial = causal.CausalTrial(any_model, prompts, ProbeConfig(alphas=[0.5, 4.0]), [1])
    given = Direction("harm", "difference_in_means", 1, -1, 3 * direction().double().numpy())
    vector = torch.tensor(given.vector).float()
    found = trial(given)
    answering = prefix_log_odds(any_model, PROMPTS[3:], REFUSALS, COMPLIANCES) <= 0
    refusing = prefix_log_odds(any_model, PROMPTS[:4], REFUSALS, COMPLIANCES) > 0
    answering, refusing = (each if each.any() else ~each for each in (answering, refusing))
    for alpha in (0.5, 4.0):
        with adding(any_model, [1], vector, alpha):
            odds = prefix_log_odds(any_model, PROMPTS[3:], REFUSALS, COMPLIANCES)
        assert found.induced[alpha] == float((odds[answering] > 0).double().mean())
        assert trial.induced(given, alpha)[1] == pytest.approx(float(odds.mean()), abs=1e-4)
    base = prefix_logprobs.last_token_logprobs(any_model, PROMPTS[3:])
    for layers, strength in ((range(4), 1.0), ((2, 3), 0.5), ((0,), 0.25)):
        ablation = trial.ablated(given, layers, strength)
        with ablating(any_model, vector, strength, list(layers)):
            odds = prefix_log_odds(any_model, PROMPTS[:4], REFUSALS, COMPLIANCES)
            changed = prefix_logprobs.last_token_logprobs(any_model, PROMPTS[3:])
        assert ablation.log_odds == pytest.approx(float(odds.mean()), abs=1e-4)
        assert ablation.bypass == float((odds[refusing] < 0).double().mean())
        assert ablation.kl == pytest.approx(float(prefix_logprobs.kl_divergence(base, changed).mean()), abs=1e-5)
    assert (found.ablate_layers, found.ablate_strength) == ((0, 1, 2, 3), 1.0)


def test_the_search_keeps_to_the_bound(llama: Any) -> None:
    prompts = [causal.CausalPrompts(PROMPTS[:4], PROMPTS[3:], REFUSALS, COMPLIANCES)]
    given = Direction("harm", "difference_in_means", 1, -1, direction().double().numpy())
    trial = causal.CausalTrial(llama, prompts, ProbeConfig(), [1])
    whole = trial.ablated(given, range(4), 1.0)

    def search(max_kl: float) -> Direction:
        found = causal.search_ablation(trial, trial, given, ProbeConfig(max_kl=max_kl))
        assert found.kl is not None and found.full_ablation_kl == pytest.approx(whole.kl)
        return found

    bounded = search(whole.kl / 4)
    assert bounded.kl <= whole.kl / 4 and bounded.ablate_strength * len(bounded.ablate_layers) < 4
    # Nothing within the bound: the scores are those of the full ablation.
    nothing = search(1e-9)
    assert nothing.kl == nothing.full_ablation_kl and nothing.ablate_layers == (0, 1, 2, 3)
    best = max(trial.ablated(given, layers, 1.0).bypass for layers in trial.extents(1))
    assert search(1000.0).bypass_score == pytest.approx(best, abs=0.005)
