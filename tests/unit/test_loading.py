"""What is wrong with a checkpoint is found before it is loaded, whoever loads it."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mistral_common import tokens
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, MistralCommonBackend

from rass_core.errors import ModelError
from rass_core.mitigate import lora
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.models.checkpoint import stored_tensors
from rass_core.models.loading import check_editable, checked_folder, load_tokenizer, n_parameters, save_checkpoint
from tests.tiny_models import ARCHITECTURES, build

WEIGHTS = "model.safetensors"
UP = "model.layers.2.mlp.up_proj.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("whole")

    def made(architecture: str) -> Path:
        target = folder / architecture
        return target if target.exists() else build(architecture, target)

    return made


@pytest.fixture
def copied(whole: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda architecture: Path(shutil.copytree(whole(architecture), tmp_path / "model"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_whole_checkpoint_of_any_architecture_passes(architecture: str, whole: Callable[[str], Path]) -> None:
    folder = whole(architecture)
    assert checked_folder(str(folder)) == folder
    assert n_parameters(folder) == sum(each.numel() for each in load_file(folder / WEIGHTS).values())


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: each for name, each in tensors.items() if not any(part in name for part in parts)}


def beside(suffix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {f"{UP}{suffix}": torch.ones(1)}


def stored_as(dtype: torch.dtype, name: str = UP) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name].to(dtype)}


@pytest.mark.parametrize(
    ("architecture", "change", "words"),
    [
        ("llama", without(UP), f"lacks 1 weights, such as {UP}"),
        ("llama", without("lm_head"), "lacks 1 weights, such as lm_head.weight"),
        ("llama", without("layers.3."), "lacks 9 weights"),
        ("gemma2", without("embed_tokens"), "lacks"),
        ("mixtral", without("experts.2.w1"), "do not fit together, one is missing"),
        ("mixtral", without("layers.1.block_sparse_moe.experts.3."), "asks for"),
        ("llama", beside("_scale"), "1 scales or packed weights"),
        ("llama", beside("_scale_inv"), "scales or packed"),
        ("llama", lambda tensors: tensors | {"model.layers.0.mlp.up_proj.input_scale": torch.ones(1)}, "scales"),
        ("llama", lambda tensors: tensors | {"model.layers.0.mlp.up_proj.qzeros": torch.ones(1)}, "scales"),
        ("llama", lambda tensors: tensors | {"model.layers.0.mlp.up_proj.weight.absmax": torch.ones(1)}, "scales"),
        *(
            ("llama", lambda tensors, end=end: tensors | {f"model.norm.{end}": torch.ones(1)}, "scales")
            for end in (
                "scale_weight", "weight_scale_2",
                "wscale", "qscale_weight", "weight_quantizer._amax", "quantized_weight",
                "weight.quant_state.bitsandbytes__nf4",
            )
        ),
        ("mixtral", lambda tensors: tensors | {f"{n}_scale": torch.ones(1) for n in tensors if ".w1" in n}, "scales"),
        ("llama", stored_as(torch.float8_e4m3fn), "stored as F8_E4M3"),
        ("llama", stored_as(torch.float8_e5m2, "lm_head.weight"), "stored as F8_E5M2"),
        ("llama", stored_as(torch.int8), "stored as I8"),
        ("llama", stored_as(torch.int32), "stored as I32"),
        ("llama", lambda tensors: tensors | {UP: tensors[UP].T.contiguous()}, "has shape (64, 128), config.json asks"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_the_architectures_are_refused(
    architecture: str, change: Callable[[Tensors], Tensors], words: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(architecture)
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    assert_refused(folder, words)


def assert_refused(folder: Path, words: str) -> None:
    for load in (checked_folder, load_causal_lm):
        with pytest.raises(ModelError) as caught:
            load(str(folder))
        message = str(caught.value)
        assert words in message
        assert str(folder) in message
        assert "\n" not in message


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def sharded(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="200KB")


def no_second_shard(folder: Path) -> None:
    sharded(folder)
    next(folder.glob("model-00002-of-*")).unlink()


def cut_second_shard(folder: Path) -> None:
    sharded(folder)
    shard = next(folder.glob("model-00002-of-*"))
    shard.write_bytes(shard.read_bytes()[:-1])


def misplaced(folder: Path) -> None:
    sharded(folder)
    index = folder / f"{WEIGHTS}.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    first, *_, last = sorted(set(content["weight_map"].values()))
    content["weight_map"] = {name: last if place == first else place for name, place in content["weight_map"].items()}
    index.write_text(json.dumps(content), encoding="utf-8")


def two_sets(folder: Path) -> None:
    kept = (folder / WEIGHTS).read_bytes()
    sharded(folder)
    (folder / WEIGHTS).write_bytes(kept)


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(content | changes), encoding="utf-8")

    return change


def quantised_without_scales(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {UP: tensors[UP].to(torch.float8_e4m3fn)}, folder / WEIGHTS, metadata={"format": "pt"})
    configured(quantization_config={"quant_method": "fp8"})(folder)


def pickled(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(without(UP)(tensors), folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, f"{WEIGHTS}: cannot be read (has "),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "cut short or no safetensors file"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 99), "cut short or no safetensors file"),
        (lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "consolidated.safetensors"), "there is consolidated"),
        (no_second_shard, "shard model-00002-of-"),
        (cut_second_shard, "model-00002-of-"),
        (misplaced, "where model.safetensors.index.json has it"),
        (two_sets, "holds both model.safetensors and model.safetensors.index.json"),
        (pickled, f"lacks 1 weights, such as {UP}"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter beside"),
        (configured(num_hidden_layers=5), "lacks 9 weights"),
        (configured(intermediate_size=64), "asks for"),
        (configured(model_type="nothing"), "cannot be loaded as a causal language model"),
        (configured(model_type="bert"), "lacks"),
        (quantised_without_scales, "no scale is stored beside"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json in it"),
    ],
)
def test_damaged_and_ambiguous_folders_are_refused(
    change: Callable[[Path], object], words: str, copied: Callable[[str], Path]
) -> None:
    folder = copied("llama")
    change(folder)
    assert_refused(folder, words)


def test_a_folder_that_is_damaged_later_is_checked_again(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    checked_folder(str(folder))
    cut(folder)
    assert_refused(folder, "cannot be read")


def test_shards_a_pickle_and_a_tied_head_are_whole(copied: Callable[[str], Path]) -> None:
    folder = copied("gemma2")
    assert "lm_head.weight" not in stored_tensors(folder)
    expected = n_parameters(folder)
    sharded(folder)
    checked_folder(str(folder))
    assert n_parameters(folder) == expected
    tensors = {name: each for file in folder.glob("model-*.safetensors") for name, each in load_file(file).items()}
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    checked_folder(str(folder))
    assert n_parameters(folder) == expected


def test_other_unused_tensors_are_warned_of(copied: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = copied("llama")
    tensors = load_file(folder / WEIGHTS) | {"score.weight": torch.ones(2, 64)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    checked_folder(str(folder))
    assert "1 tensors are not used, such as score.weight" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_refused(value: float, copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    tensors = load_file(folder / WEIGHTS)
    tensors[UP][3, 5] = value
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"weight {UP} is not finite"):
        load_causal_lm(str(folder))


def test_a_causal_model_is_no_classifier(whole: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks 1 weights, such as score\.weight, it is not a trained classifier"):
        checked_folder(str(whole("llama")), "classifier")
    config = AutoConfig.from_pretrained(whole("llama"), num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "classifier")
    checked_folder(str(tmp_path / "classifier"), "classifier")


MARKER = "import pathlib; pathlib.Path(__file__).with_name('marker').write_text('run')\n"


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("config.json", {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}),
        ("config.json", {"AutoModelForCausalLM": "someone/model--own.OwnForCausalLM"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.OwnTokenizer", None]}),
        ("processor_config.json", {"AutoProcessor": "own.OwnProcessor"}),
        (None, None),
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "own"])
def test_a_folders_own_code_is_never_run_nor_asked_about(
    file: str | None, auto_map: object, model_type: str, copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("llama")
    configured(model_type=model_type)(folder)
    (folder / "own.py").write_text(MARKER, encoding="utf-8")
    if file is None:
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(MARKER, encoding="utf-8")
    else:
        content = json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps(content | {"auto_map": auto_map}), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    for load in (checked_folder, load_causal_lm, load_tokenizer):
        with pytest.raises(ModelError, match="its own code .*, which is never run"):
            load(str(folder))
    assert sys.stdin.read() == "y\n" * 9, "nothing was asked"
    assert not list(folder.rglob("marker"))


def test_code_that_transformers_has_by_that_name_is_not_needed(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    (folder / "own.py").write_text(MARKER, encoding="utf-8")
    configured(auto_map={"AutoConfig": "own.LlamaConfig", "AutoModelForCausalLM": "own.LlamaForCausalLM"})(folder)
    assert type(load_causal_lm(str(folder))[0]).__module__.startswith("transformers.")
    assert not list(folder.rglob("marker"))


def test_a_changed_model_keeps_every_file_that_is_no_weight(copied: Callable[[str], Path], tmp_path: Path) -> None:
    base = copied("llama")
    others = {
        "processor_config.json": "{}", "preprocessor_config.json": '{"size": 3}', "tokenizer.model": "\0\1",
        "tekken.json": "{}", "additional_chat_templates/tools.jinja": "x", "LICENSE": "free", "special.txt": "a",
    }  # fmt: skip
    for name, content in others.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(content, encoding="utf-8")
    # Of the kind that transformers loads with a warning and refuses to save.
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}', encoding="utf-8")
    for name in ("README.md", "own.py", "model.gguf", "optimizer.pt"):
        (base / name).write_text("", encoding="utf-8")
    model, _ = load_causal_lm(str(base))
    save_checkpoint(model, base, tmp_path / "out")
    for name in [*others, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes(), name
    assert not {"README.md", "own.py", "model.gguf", "optimizer.pt"} & {
        file.name for file in (tmp_path / "out").iterdir()
    }
    load_causal_lm(str(tmp_path / "out"))


def test_a_quantised_model_is_refused_before_it_is_trained(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("llama")
    check_editable(str(folder))
    configured(quantization_config={"quant_method": "awq"})(folder)
    with pytest.raises(ModelError, match="quantised, a changed copy cannot be saved"):
        lora.merge(str(folder), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("layers.1."), "the adapter lacks 4 tensors"),
        (lambda t: t | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(2, 64)}, "unknown"),
        (lambda t: {name.replace("base_model.model.", "module."): each for name, each in t.items()}, "adapter"),
    ],
)
def test_an_adapter_that_does_nothing_to_some_layers_is_refused(
    change: Callable[[Tensors], Tensors], words: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base, adapter = copied("llama"), tmp_path / "adapter"
    model, _ = load_causal_lm(str(base))
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(adapter)
    lora.merge(str(base), adapter, tmp_path / "merged")
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=words):
        lora.merge(str(base), adapter, tmp_path / "other")
    assert not (tmp_path / "other").exists()


TEKKEN = Path(tokens.__file__).parents[1] / "data" / "tekken_240911.json"


@pytest.fixture(scope="module")
def tekken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tekken")
    shutil.copy(TEKKEN, folder / "tekken.json")
    (folder / "config.json").write_text('{"model_type": "mistral"}', encoding="utf-8")
    return folder


def test_a_tekken_folder_has_the_template_of_its_own_package(tekken: Path) -> None:
    tokenizer, theirs = load_tokenizer(str(tekken)), MistralCommonBackend.from_pretrained(tekken)
    for system in (None, "Be brief."):
        chat = ChatFormat(tokenizer, system)
        for text in ("Why?", "two  blanks\n\n and é", "なぜ", "a" * 500):
            asked = [{"role": "user", "content": text}]
            messages = asked if system is None else [{"role": "system", "content": system}, *asked]
            assert chat.ids(text) == theirs.apply_chat_template(messages, return_dict=False), text
    assert chat.n_end_positions >= 1
    assert tokenizer.convert_ids_to_tokens(list(chat.user_end_ids)) == ["[/INST]"]
    end = lora.end_of_answer(ChatFormat(tokenizer), type("Model", (), {"generation_config": None})())
    assert end == tokenizer.eos_token_id
    plain = tokenizer("[INST]", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("[INST]") not in plain


def test_without_its_package_a_tekken_folder_says_the_way_out(tekken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rass_core.models.tekken.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"tekken0: its only tokenizer is tekken\.json; run `pip install mistral-common`"
    ):
        load_tokenizer(str(tekken))


def test_a_broken_tekken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}', encoding="utf-8")
    (tmp_path / "tekken.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"tekken\.json cannot be read") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
