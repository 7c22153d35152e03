"""Residual streams of real (tiny, random) checkpoints against plain unpadded forwards."""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    DynamicCache,
    GPT2Config,
    OPTConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from rass_core.errors import ActivationError, ModelError
from rass_core.lake.schema import TABLES
from rass_core.models.causal_lm import decoder_blocks, load_causal_lm, logits_at
from rass_core.models.residuals import ResidualExtractor, activation_batches
from tests.tiny_models import build, tokenizer

ARCHITECTURES = ("llama", "qwen2", "gemma2", "mistral", "phi3", "gpt_neox", "mixtral")
LAYERS, POSITIONS = [2, 0, 3], [-1, -4]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_causal_lm(str(build(request.param, tmp_path_factory.mktemp(request.param))))[0]


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    return load_causal_lm(str(build("llama", tmp_path)))[0]


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(9, 260) for _ in range(length)] for length in lengths]


@torch.no_grad()
def plain_streams(model: Any, prompts: list[list[int]]) -> Tensor:
    """One unpadded forward a prompt; the last block by a hook, since transformers norms its entry."""
    rows, last = [], []
    with model.get_submodule(last_block_name(model)).register_forward_hook(lambda *a: last.append(a[2])):
        for prompt in prompts:
            hidden = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
            streams = [*hidden[1:-1], last[-1]]
            rows.append(torch.stack([streams[layer][0, POSITIONS] for layer in LAYERS]))
    return torch.stack(rows)


def last_block_name(model: Any) -> str:
    return "gpt_neox.layers.3" if model.config.model_type == "gpt_neox" else "model.layers.3"


@pytest.mark.parametrize("token_budget", [1, 60, 200, 100_000])
def test_any_batch_equals_unpadded_single_forwards(any_model: Any, token_budget: int) -> None:
    prompts = prompts_of([4, 9, 9, 70, 5, 33, 12, 41, 7, 26, 9])
    random.Random(token_budget).shuffle(prompts)
    extracted = ResidualExtractor(any_model, LAYERS, POSITIONS, token_budget)(prompts)
    expected = plain_streams(any_model, prompts)
    assert extracted.dtype == torch.float32
    assert expected.std() > 0.1
    torch.testing.assert_close(extracted, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_shared", [7, 50])
def test_what_all_prompts_begin_with_is_read_once(any_model: Any, n_shared: int) -> None:
    """Also where it is longer than Gemma's window, here of 32 tokens."""
    beginning, read = prompts_of([n_shared])[0], list[tuple[int, ...]]()
    prompts = [beginning + rest for rest in prompts_of([6, 9, 5, 21, 4], seed=1)]
    expected = plain_streams(any_model, prompts)
    with decoder_blocks(any_model)[0].register_forward_pre_hook(lambda _m, args: read.append(args[0].shape[:2])):
        extracted = ResidualExtractor(any_model, LAYERS, POSITIONS)(prompts)
    torch.testing.assert_close(extracted, expected, atol=1e-4, rtol=0)
    tried = [(1, n_shared + 4), (1, n_shared), (2, 4)]  # the shortest prompt both ways; the beginning alone
    assert read == [*tried, (1, 21), (1, 9), (2, 6), (1, 4)]


def test_a_model_that_cannot_share_reads_whole_prompts(
    llama: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [prompts_of([20])[0] + rest for rest in prompts_of([6, 9, 5], seed=1)]
    expected = plain_streams(llama, prompts)

    class Forgetful(DynamicCache):
        def update(self, keys: Tensor, values: Tensor, *others: Any, **more: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(keys, values, *others, **more)
            return keys * 0.5, values

    class Broken(DynamicCache):
        def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            raise NotImplementedError

    for cache, reason in ((Forgetful, "gives other numbers"), (Broken, "NotImplementedError")):
        caplog.clear()
        monkeypatch.setattr("rass_core.models.residuals.DynamicCache", cache)
        torch.testing.assert_close(ResidualExtractor(llama, LAYERS, POSITIONS)(prompts), expected, atol=1e-4, rtol=0)
        assert reason in caplog.text


def test_composition_of_a_batch_does_not_matter(llama: Any) -> None:
    extractor = ResidualExtractor(llama, LAYERS, POSITIONS, 150)
    prompts = prompts_of([20, 8, 61, 5, 8, 30])
    whole = extractor(prompts)
    for seed in range(5):
        some = random.Random(seed).sample(range(6), k=1 + seed)
        torch.testing.assert_close(extractor([prompts[i] for i in some]), whole[some], atol=1e-4, rtol=0)


def test_it_stops_after_the_last_layer_and_never_runs_the_head(any_model: Any) -> None:
    ran: list[str] = []
    blocks = decoder_blocks(any_model)
    parts = {"last needed": blocks[1], "next": blocks[2], "head": any_model.get_output_embeddings()}
    handles = [part.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, part in parts.items()]
    ResidualExtractor(any_model, [0, 1], [-1])(prompts_of([9, 9]))
    for handle in handles:
        handle.remove()
    assert ran == ["last needed"]


def test_batches_keep_to_the_token_budget(llama: Any) -> None:
    shapes: list[tuple[int, int]] = []
    first = decoder_blocks(llama)[0]
    hook = first.register_forward_pre_hook(lambda _m, args: shapes.append(args[0].shape[:2]))
    prompts = prompts_of([10, 50, 12, 8, 11, 49, 9, 130])
    seen = [i for indices, _ in ResidualExtractor(llama, [0], [-1], 100).batches(prompts) for i in indices]
    hook.remove()
    assert sorted(seen) == list(range(8))
    assert shapes[0] == (1, 130)  # longer than the budget: alone
    assert all(n * width <= 100 for n, width in shapes[1:])
    assert shapes[1:] == [(2, 50), (3, 12), (2, 9)]  # 50 and 49; 12, 11 and 10; 9 and 8: a tenth may be padding


def test_the_head_reads_only_what_is_asked_for(any_model: Any) -> None:
    ids, seen = torch.tensor(prompts_of([12, 12])), list[tuple[int, ...]]()
    with torch.no_grad():
        whole = any_model(ids).logits
        with any_model.get_output_embeddings().register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape)):
            some = logits_at(any_model, torch.tensor([1, 0, 1]), torch.tensor([11, 3, 0]), input_ids=ids)
    torch.testing.assert_close(some, whole[[1, 0, 1], [11, 3, 0]], atol=1e-4, rtol=0)
    assert seen == [(1, 3, 64)]
    assert not any_model.get_output_embeddings()._forward_pre_hooks


class Memory:
    """A device on which only so many prompts fit: a real hook that raises the real error."""

    def __init__(self, model: Any, n_fit: int, error: Exception) -> None:
        self.n_fit, self.error, self.tried = n_fit, error, list[int]()
        decoder_blocks(model)[1].register_forward_pre_hook(self.check)

    def check(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.tried.append(len(args[0]))
        if len(args[0]) > self.n_fit:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_halves_the_batch_and_continues(llama: Any, error: Exception) -> None:
    prompts = prompts_of([29, 30, 28, 31, 30, 29, 30, 28, 31, 30, 29, 30])
    expected = plain_streams(llama, prompts)
    memory = Memory(llama, n_fit=3, error=error)
    extracted = ResidualExtractor(llama, LAYERS, POSITIONS, 100_000)(prompts)
    torch.testing.assert_close(extracted, expected, atol=1e-4, rtol=0)
    assert memory.tried[:3] == [12, 6, 3]
    assert sum(n for n in memory.tried if n <= 3) == len(prompts)


def test_a_prompt_too_large_for_memory_is_named(llama: Any) -> None:
    Memory(llama, n_fit=0, error=torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ActivationError, match="prompt 1 of 30 tokens: out of memory on its own"):
        ResidualExtractor(llama, [1], [-1])(prompts_of([8, 30, 9]))


def test_other_runtime_errors_are_not_taken_for_memory(llama: Any) -> None:
    memory = Memory(llama, n_fit=0, error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="multiplied"):
        ResidualExtractor(llama, [1], [-1])(prompts_of([30, 30, 29]))
    assert memory.tried == [3]


def test_a_value_that_is_not_finite_is_named(llama: Any) -> None:
    with torch.no_grad():
        next(decoder_blocks(llama)[2].parameters()).fill_(float("nan"))
    assert ResidualExtractor(llama, [0, 1], [-2, -1])(prompts_of([8, 9])).isfinite().all()
    where = f"{llama.name_or_path}: a residual stream is not finite at layer 2, position -2; load"
    with pytest.raises(ActivationError, match=re.escape(where)):
        ResidualExtractor(llama, [1, 2], [-2, -1])(prompts_of([8, 9]))


def test_what_cannot_be_read_is_refused(llama: Any) -> None:
    with pytest.raises(ActivationError, match="prompt 1: 3 tokens, position -4"):
        ResidualExtractor(llama, [0], [-4])(prompts_of([4, 3]))
    with pytest.raises(ActivationError, match="count from the end"):
        ResidualExtractor(llama, [0], [0])
    with pytest.raises(ModelError, match="it has 0 to 3"):
        ResidualExtractor(llama, [4], [-1])
    with pytest.raises(ModelError, match=r"call model.eval\(\)"):
        ResidualExtractor(llama.train(), [0], [-1])
    assert ResidualExtractor(llama.eval(), LAYERS, POSITIONS)([]).shape == (0, 3, 2, 64)


def test_record_batches_follow_the_table(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rass_core.models.residuals.ROWS_PER_RECORD_BATCH", 12)
    prompts = prompts_of([9, 30, 28, 5, 29])
    ids = [f"id{i}" for i in range(5)]
    extractor = ResidualExtractor(llama, LAYERS, POSITIONS, 100)
    batches = list(activation_batches(extractor, ids, prompts, "the-model"))
    assert [len(batch) for batch in batches] == [12, 6, 6, 6]  # 30, 29, 28 tokens share a forward
    table = pa.Table.from_batches(batches, TABLES["activations"])
    streams = extractor(prompts)
    for row in table.to_pylist():
        layer, position = LAYERS.index(row["layer"]), POSITIONS.index(row["position"])
        expected = streams[ids.index(row["prompt_id"]), layer, position].bfloat16().float()
        assert row["vector"] == expected.tolist()
        assert row["model_id"] == "the-model"
    assert len({(row["prompt_id"], row["layer"], row["position"]) for row in table.to_pylist()}) == 30
    with pytest.raises(ActivationError, match="4 prompt ids for 5 prompts"):
        next(activation_batches(extractor, ids[:4], prompts, "the-model"))


def test_streaming_computes_no_more_than_is_taken(llama: Any) -> None:
    extractor = ResidualExtractor(llama, [0], [-1], 20)
    stream: Iterator[Any] = activation_batches(extractor, ["a", "b", "c"], prompts_of([15, 16, 17]), "m")
    n_forwards: list[int] = []
    decoder_blocks(llama)[0].register_forward_pre_hook(lambda *_: n_forwards.append(1))
    next(stream)
    assert len(n_forwards) == 1


GPT2 = GPT2Config(vocab_size=272, n_embd=32, n_layer=3, n_head=2, initializer_range=0.3)
OPT = OPTConfig(
    vocab_size=272, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=3, num_attention_heads=2,
    ffn_dim=64, init_std=0.3,
)  # fmt: skip


@pytest.mark.parametrize("config", [GPT2, OPT], ids=["gpt2", "opt"])
def test_blocks_are_found_by_structure(config: Any) -> None:
    """GPT-2 names them `transformer.h`, OPT `model.decoder.layers`."""
    model = AutoModelForCausalLM.from_config(config).eval()
    prompts = prompts_of([6, 11, 8])
    extracted = ResidualExtractor(model, [0, 1], [-1])(prompts)
    for prompt, row in zip(prompts, extracted, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        expected = torch.stack([hidden[1][0, -1], hidden[2][0, -1]])
        torch.testing.assert_close(row[:, 0], expected, atol=1e-4, rtol=0)


def test_a_tower_and_experts_are_not_taken_for_the_blocks(llama: Any) -> None:
    blocks = decoder_blocks(llama)
    llama.add_module("tower", nn.ModuleList(nn.Linear(8, 8) for _ in blocks))
    for block in blocks:
        block.add_module("experts", nn.ModuleList(nn.Linear(512, 512) for _ in blocks))
    assert decoder_blocks(llama) is blocks
    llama.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="no list of 7 decoder blocks"):
        decoder_blocks(llama)


def test_an_attention_soft_cap_is_kept(tmp_path: Path) -> None:
    model, _ = load_causal_lm(str(build("gemma2", tmp_path)))
    prompt = prompts_of([12])
    before = ResidualExtractor(model, [0], [-1])(prompt)
    for block in decoder_blocks(model):
        block.self_attn.attn_logit_softcapping = 0.01
    assert (ResidualExtractor(model, [0], [-1])(prompt) - before).abs().max() > 1e-3


def test_models_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("missing", "encoder", "both", "headless")}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=272, **small)).save_pretrained(folders["encoder"])
    t5 = T5Config(vocab_size=272, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(folders["both"])
    AutoModel.from_pretrained(build("llama", tmp_path / "llama")).save_pretrained(folders["headless"])
    for name in ("encoder", "both", "headless"):
        tokenizer().save_pretrained(folders[name])
    reasons = {
        "missing": "no such folder",
        "encoder": "attend to later tokens",
        "both": "cannot be loaded",
        "headless": "lacks 1 weights, such as lm_head.weight",
    }
    for name, reason in reasons.items():
        with pytest.raises(ModelError, match=reason) as caught:
            load_causal_lm(folders[name])
        assert "\n" not in str(caught.value)
        assert folders[name] in str(caught.value)
    with pytest.raises(ModelError, match="dtype 'int4'"):
        load_causal_lm(folders["missing"], dtype="int4")


def test_a_half_precision_model_gives_float32(tmp_path: Path) -> None:
    model, _ = load_causal_lm(str(build("qwen2", tmp_path)), dtype="bfloat16")
    assert next(model.parameters()).dtype == torch.bfloat16
    assert ResidualExtractor(model, [3], [-1])(prompts_of([5, 9])).dtype == torch.float32
