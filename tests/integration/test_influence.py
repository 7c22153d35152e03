"""Projected gradients of refusal, read from real (tiny, random) checkpoints and checked against autograd."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from rass_core.errors import ActivationError, ConfigError, ModelError
from rass_core.models.causal_lm import decoder_blocks, load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.models.prefix_logprobs import prefix_log_odds
from rass_core.probe.settings import Prefixes
from rass_core.select import influence
from rass_core.select.influence import refusal_gradients
from tests.tiny_models import build

ARCHITECTURES = ("llama", "qwen2", "gemma2", "phi3", "gpt_neox", "mixtral")
OPENINGS = {
    "en": Prefixes(refusal=["I cannot", "No"], compliance=["Sure", "Yes"]),
    "de": Prefixes(refusal=["Das kann ich nicht"], compliance=["Das geht so", "Klar"]),
}
BRANCHED = Prefixes(refusal=["Nope", "Not so", "I can't"], compliance=["Now", "I can do", "I cook", "Yes"])
PROMPTS = [
    "How do I kill a process?",
    "Hi",
    "Wie töte ich einen Prozess, der nicht mehr antwortet?",
    "Tell me more of it.",
]
LANGUAGES = ["en", "en", "de", "fr"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ChatFormat]:
    model, tokenizer = load_causal_lm(str(build(request.param, tmp_path_factory.mktemp(request.param))))
    return model, ChatFormat(tokenizer)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ChatFormat]:
    model, tokenizer = load_causal_lm(str(build("llama", tmp_path_factory.mktemp("llama"))))
    return model, ChatFormat(tokenizer)


def exact(model: Any, chat: ChatFormat, prompt: str, prefixes: Prefixes) -> tuple[list[torch.Tensor], float]:
    """Return the gradient of every matrix of the blocks, (out, in), by autograd, and the log-odds."""
    matrices = [m for block in decoder_blocks(model) for m in block.modules() if isinstance(m, torch.nn.Linear)]
    scores = []
    # The tokens in which the prefixes differ, worked out by hand: "Das " begins both sides in German.
    for side, n_tokens in ((prefixes.refusal, 5), (prefixes.compliance, 5)):
        each = []
        for text in side:
            opening = chat.answer_ids(text)[: n_tokens if text.startswith("Das ") else 1]
            logits = model(torch.tensor([chat.ids(prompt) + opening])).logits[0].float().log_softmax(-1)
            start = len(chat.ids(prompt)) - 1
            each.append(sum(logits[start + k, token] for k, token in enumerate(opening)))
        scores.append(torch.stack(each).logsumexp(0))
    value = scores[0] - scores[1]
    weights = [matrix.weight for matrix in matrices]
    grads = torch.autograd.grad(value, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, grads, strict=True)], float(value.detach())


def assert_projections(model: Any, chat: ChatFormat, unread: Sequence[str]) -> None:
    """Compare every matrix with autograd's gradient; those named in part as unread hold 0."""
    found = refusal_gradients(model, chat, PROMPTS, LANGUAGES, OPENINGS, token_budget=256, seed=3)
    sides = influence._Projection(model, 3)._sides
    names = [
        f"{number}.{name}"
        for number, block in enumerate(decoder_blocks(model))
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    for number, (prompt, language) in enumerate(zip(PROMPTS, LANGUAGES, strict=True)):
        gradients, log_odds = exact(model, chat, prompt, OPENINGS.get(language, OPENINGS["en"]))
        assert found.log_odds[number] == pytest.approx(log_odds, abs=1e-4)
        blocks = found.vectors[number].reshape(len(sides), -1)
        for name, gradient, (into, out_of), got in zip(names, gradients, sides, blocks, strict=True):
            expected = (out_of.T @ gradient @ into).flatten().detach().numpy()
            if any(each in name for each in unread):
                expected = np.zeros_like(got)
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4, err_msg=name)


def test_they_are_the_projections_of_what_autograd_finds(loaded: tuple[Any, ChatFormat]) -> None:
    assert_projections(*loaded, unread=[])


def test_log_odds_are_those_of_the_openings(llama: tuple[Any, ChatFormat]) -> None:
    model, chat = llama
    found = refusal_gradients(model, chat, PROMPTS, ["de"] * 4, OPENINGS)
    refusal, compliance = (
        [chat.answer_ids(text)[:n] for text, n in side]
        for side in ([("Das kann ich nicht", 5)], [("Das geht so", 5), ("Klar", 1)])
    )
    ids = [chat.ids(prompt) for prompt in PROMPTS]
    np.testing.assert_allclose(found.log_odds, prefix_log_odds(model, ids, refusal, compliance), atol=1e-4)


def test_batches_change_nothing_and_the_weights_stay_as_they_were(llama: tuple[Any, ChatFormat]) -> None:
    model, chat = llama
    before = {name: (weight.clone(), weight.requires_grad) for name, weight in model.named_parameters()}
    told: list[int] = []
    one = refusal_gradients(model, chat, PROMPTS, LANGUAGES, OPENINGS, token_budget=1, done=told.append)
    all_at_once = refusal_gradients(model, chat, PROMPTS, LANGUAGES, OPENINGS, token_budget=4096)
    np.testing.assert_allclose(one.vectors, all_at_once.vectors, rtol=1e-3, atol=1e-4)
    assert told == [1, 2, 3, 4]
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name][0])
        assert weight.requires_grad == before[name][1]
        assert weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_a_step_along_a_prompt_does_to_others_what_the_products_say(llama: tuple[Any, ChatFormat]) -> None:
    """The claim itself: real steps on every matrix, and by how much they move each log-odds."""
    model, chat = llama
    draw = np.random.default_rng(0)
    words = ["kill", "bake", "process", "bread", "how", "python", "stop", "the", "fast", "light"]
    prompts = [" ".join(draw.choice(words, 6)) for _ in range(16)]
    languages = ["en"] * 16
    found = refusal_gradients(model, chat, prompts, languages, OPENINGS)
    predicted, seen = [], []
    for number in range(4):
        gradients, _ = exact(model, chat, prompts[number], OPENINGS["en"])
        weights = [m.weight for b in decoder_blocks(model) for m in b.modules() if isinstance(m, torch.nn.Linear)]
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 1e-4 * gradient
        after = refusal_gradients(model, chat, prompts, languages, OPENINGS).log_odds
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight += 1e-4 * gradient
        seen.append((found.log_odds - after) / 1e-4)
        predicted.append(found.vectors @ found.vectors[number])
    assert np.corrcoef(np.ravel(predicted), np.ravel(seen))[0, 1] > 0.9
    assert np.ravel(predicted).mean() == pytest.approx(np.ravel(seen).mean(), rel=0.2)


def test_gpt2_keeps_its_matrices_the_other_way_round() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=272, n_embd=64, n_layer=2, n_head=2, n_positions=128)
    model = AutoModelForCausalLM.from_config(config).eval()
    projection = influence._Projection(model, 0)
    tree = influence._Tree(((40,),), ((60,),))
    vectors, log_odds = projection.of([[5, 6, 7], [8, 9]], tree, True, [0, 1])
    model(torch.tensor([[8, 9]])).logits[0, -1][[40, 60]].diff().backward()
    weight = model.transformer.h[0].attn.c_attn.weight
    into, out_of = projection._sides[0]
    expected = -(out_of.T @ weight.grad.T @ into).flatten()
    np.testing.assert_allclose(vectors[1][: influence.SIDE**2], expected.numpy(), rtol=1e-3, atol=1e-5)
    assert log_odds.shape == (2,)


class Shared(torch.nn.Module):
    """A layer that is handed the tokens of all prompts in one row, as shared experts and OPT's MLP are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(64, 64)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden.flatten(0, 1)).view_as(hidden)


class Routed(Shared):
    """An expert: it is handed some of them."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        written = hidden.flatten(0, 1).clone()
        mine = written[:, 0] > 0
        written[mine] = self.inner(written[mine])
        return written.view_as(hidden)


def with_mlp(folder: Path, mlp: torch.nn.Module) -> tuple[Any, ChatFormat]:
    """Return a model with another MLP in its second block."""
    model, tokenizer = load_causal_lm(str(build("llama", folder)))
    decoder_blocks(model)[1].mlp = mlp
    return model, ChatFormat(tokenizer)


def test_what_sees_all_tokens_in_one_row_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_projections(*with_mlp(tmp_path, Shared()), unread=[])


def test_what_mixes_some_tokens_of_prompts_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_projections(*with_mlp(tmp_path, Routed()), unread=["1.mlp.inner"])


def test_a_batch_too_large_for_memory_is_halved(llama: tuple[Any, ChatFormat], monkeypatch: pytest.MonkeyPatch) -> None:
    model, chat = llama
    expected = refusal_gradients(model, chat, PROMPTS, LANGUAGES, OPENINGS)
    tried, read = [], influence._Projection.of

    def of(self: influence._Projection, prompts: Any, tree: Any, is_packed: bool, batch: list[int]) -> Any:
        tried.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(self, prompts, tree, is_packed, batch)

    monkeypatch.setattr(influence._Projection, "of", of)
    found = refusal_gradients(model, chat, PROMPTS, LANGUAGES, OPENINGS)
    np.testing.assert_allclose(found.vectors, expected.vectors, rtol=1e-3, atol=1e-4)
    assert tried[:2] == [1, 1], "one prompt is tried, packed and plainly"
    assert tried[2:] == [2, 1, 1, 1, 1], "two prompts of similar length do not fit; then each alone"


def test_each_prompt_is_read_once_where_the_window_allows(loaded: tuple[Any, ChatFormat]) -> None:
    model, chat = loaded
    trees = [influence._Tree.of(chat, OPENINGS["de"])] * 2
    prompts = [chat.ids("Hi"), chat.ids("Tell me more of it, and then of all the others")]
    packable = influence._packable(influence._Projection(model, 0), prompts, trees)
    assert packable == [True, model.config.model_type != "gemma2"], "the tiny Gemma looks 32 tokens back"


def test_packed_and_plain_readings_agree(loaded: tuple[Any, ChatFormat]) -> None:
    model, chat = loaded
    projection = influence._Projection(model, 1)
    tree = influence._Tree.of(chat, BRANCHED)
    assert len(tree.stems) > 1
    assert any(influence._extends(stem, prefix) for stem in tree.stems for prefix in tree.prefixes[1:])
    prompts = [chat.ids(text) for text in ("Hi", "Why?", "Oh")]
    packed, plain = (projection.of(prompts, tree, is_packed, [2, 0, 1]) for is_packed in (True, False))
    np.testing.assert_allclose(packed[1], plain[1], atol=1e-4)
    assert np.linalg.norm(packed[0] - plain[0]) < 1e-4 * np.linalg.norm(plain[0])


def test_a_model_that_cannot_be_read_packed_is_read_plainly(
    llama: tuple[Any, ChatFormat], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As linear attention would: prefixes that see each other, or a forward that takes no such mask."""
    model, chat = llama
    prefixes = {"en": BRANCHED, "de": OPENINGS["de"]}
    expected, packed = refusal_gradients(model, chat, PROMPTS, LANGUAGES, prefixes), influence._packed

    def blurred(*args: Any) -> Any:
        batch = packed(*args)
        n, _, width, _ = batch.inputs["attention_mask"].shape
        return batch._replace(inputs=batch.inputs | {"attention_mask": torch.ones(n, width, dtype=torch.long)})

    def refused(*args: Any) -> Any:
        raise TypeError("forward() got an unexpected keyword argument 'position_ids'")

    for broken, reason in ((blurred, "give other numbers"), (refused, "TypeError")):
        monkeypatch.setattr(influence, "_packed", broken)
        caplog.clear()
        found = refusal_gradients(model, chat, PROMPTS, LANGUAGES, prefixes)
        assert reason in caplog.text
        np.testing.assert_allclose(found.vectors, expected.vectors, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.log_odds, expected.log_odds, atol=1e-4)


def test_no_prompts_give_no_rows(llama: tuple[Any, ChatFormat]) -> None:
    model, chat = llama
    found = refusal_gradients(model, chat, [], [], OPENINGS)
    assert found.vectors.shape[0] == found.log_odds.shape[0] == 0
    assert found.vectors.shape[1] > 0


def test_bad_input_is_raised(llama: tuple[Any, ChatFormat], tmp_path: Path) -> None:
    model, chat = llama
    both = {"en": Prefixes(refusal=["I see"], compliance=["I see it"])}
    with pytest.raises(ConfigError, match="both"):
        refusal_gradients(model, chat, PROMPTS, LANGUAGES, both)
    broken, _ = load_causal_lm(str(build("llama", tmp_path)))
    with torch.no_grad():
        decoder_blocks(broken)[0].self_attn.q_proj.weight.fill_(float("inf"))
    with pytest.raises(ActivationError, match="not finite"):
        refusal_gradients(broken, chat, PROMPTS, LANGUAGES, OPENINGS)
    with pytest.raises(ModelError, match="training mode"):
        refusal_gradients(broken.train(), chat, PROMPTS, LANGUAGES, OPENINGS)
