"""Training, ablation and export on real (tiny) checkpoints; what is trained is served."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import rass_core.lab
from rass_core.errors import ActivationError, ConfigError, ModelError, PromptError
from rass_core.lab import world
from rass_core.lab.prompts import held_out_sentences
from rass_core.lab.world import Sentence
from rass_core.mitigate import lora
from rass_core.mitigate.base import Progress, method_of
from rass_core.mitigate.card import ModelCard, write_card
from rass_core.mitigate.learned_direction import learned_direction
from rass_core.mitigate.lora import Training, end_of_answer, merge, micro_batch_size, tokenised
from rass_core.mitigate.pairs import PreferencePair
from rass_core.mitigate.settings import TrainingSettings
from rass_core.mitigate.weight_ablation import ablate_weights
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.probe.directions import cosine
from rass_core.publish.formats import (
    DatasetCard,
    Origin,
)
from rass_core.text import prompt_id
from tests import tiny_models

LAB = str(Path(rass_core.lab.__file__).parent / "weights" / "balanced")
KINDS = {"pseudo_harmful": "over_refusal", "harmful": "safety", "harmless": "general"}
QUICK = TrainingSettings(learning_rate=1e-3, epochs=2.0, batch_size=8, rank=8, alpha=16, checkpoint_steps=2)


def train(
    method: str, base: str, pairs: Sequence[PreferencePair], settings: TrainingSettings, out: Path,
    progress: Progress | None = None,
) -> Training:  # fmt: skip
    return lora.train(method_of(method, training=settings), base, pairs, out, progress=progress)


def pair_of(sentence: Sentence) -> PreferencePair:
    outcomes = ("refusal", "compliance") if sentence.label == "harmful" else ("compliance", "refusal")
    chosen, rejected = map(sentence.answer, outcomes)
    kind: Any = KINDS[sentence.label]
    text, language = sentence.text, sentence.language
    return PreferencePair(prompt_id(language, text), kind, text, language, chosen, rejected)


@pytest.fixture(scope="module")
def asked() -> list[Sentence]:
    return list(held_out_sentences({"pseudo_harmful": 60, "harmful": 40, "harmless": 24}))


@pytest.fixture(scope="module")
def lessons(asked: list[Sentence]) -> list[Sentence]:
    """Sentences of every second family: benign ones that sound dangerous, and the least dangerous harmful ones."""
    families = sorted({s.family for s in asked})
    half = [s for s in asked if families.index(s.family) % 2]
    return [s for s in half if s.label == "harmless" or (s.apparent_harm > 2.0 and s.apparent_harm < 6.5)]


@pytest.fixture(scope="module")
def pairs(lessons: list[Sentence]) -> list[PreferencePair]:
    return [pair_of(sentence) for sentence in lessons]


@pytest.fixture(scope="module")
def few(pairs: list[PreferencePair]) -> list[PreferencePair]:
    return [next(p for p in pairs if (p.kind, p.language) == (k, n)) for k in KINDS.values() for n in world.languages()]


@torch.no_grad()
def answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    chat, found = ChatFormat(tokenizer), []
    tokenizer.padding_side = "left"
    for start in range(0, len(prompts), 128):
        batch = tokenizer.pad({"input_ids": [chat.ids(p) for p in prompts[start : start + 128]]}, return_tensors="pt")
        tokens = model.generate(**batch, max_new_tokens=32, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        found += tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def with_adapter(base: str, adapter: Path) -> tuple[Any, Any]:
    from peft import PeftModel

    model, tokenizer = load_causal_lm(base)
    return PeftModel.from_pretrained(model, str(adapter)).eval(), tokenizer


def refused(model: Any, tokenizer: Any, sentences: Sequence[Sentence]) -> dict[str, float]:
    given = answers(model, tokenizer, [s.text for s in sentences])
    return {
        label: float(
            np.mean([a == s.answer("refusal") for a, s in zip(given, sentences, strict=True) if s.label == label])
        )
        for label in KINDS
    }


@pytest.fixture(scope="module", params=["dpo", "sft"])
def mitigated(
    request: pytest.FixtureRequest, pairs: list[PreferencePair], tmp_path_factory: pytest.TempPathFactory
) -> Training:
    settings = TrainingSettings(learning_rate=1e-3, beta=2.0, epochs=4.0)
    return train(request.param, LAB, pairs, settings, tmp_path_factory.mktemp(request.param))


def test_training_mitigates_families_it_has_not_seen(
    mitigated: Training, asked: list[Sentence], lessons: list[Sentence]
) -> None:
    taught = {s.family for s in lessons}
    unseen = [s for s in asked if s.family not in taught]
    before = refused(*load_causal_lm(LAB), unseen)
    after = refused(*with_adapter(LAB, mitigated.adapter), unseen)
    assert before["pseudo_harmful"] > 0.3 and before["harmful"] == 1.0
    assert after["pseudo_harmful"] <= 0.2 * before["pseudo_harmful"]
    assert after["harmful"] >= 0.99
    assert after["harmless"] == 0.0


def test_losses_are_reported_step_by_step_and_fall(mitigated: Training) -> None:
    steps, losses = zip(*mitigated.losses, strict=True)
    assert steps == tuple(range(1, len(steps) + 1))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


def test_the_adapter_has_a_card_and_names_no_path(mitigated: Training, pairs: list[PreferencePair]) -> None:
    card = (mitigated.adapter / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["base_model"] == "balanced" and header["library_name"] == "peft"
    assert f"{len(pairs)} pairs." in card and "Not evaluated yet." in card
    assert sum(sum(each.values()) for each in mitigated.counts.values()) == len(pairs)
    assert load_file(mitigated.adapter / "adapter_model.safetensors")
    for file in mitigated.adapter.iterdir():
        assert str(Path(LAB).parent).encode() not in file.read_bytes(), file.name


def test_merged_it_answers_as_with_its_adapter(mitigated: Training, asked: list[Sentence], tmp_path: Path) -> None:
    prompts = [s.text for s in asked[::7]]
    merge(LAB, mitigated.adapter, tmp_path)
    assert answers(*load_causal_lm(str(tmp_path)), prompts) == answers(*with_adapter(LAB, mitigated.adapter), prompts)
    with pytest.raises(ModelError, match="does not fit"):
        merge(LAB, tmp_path / "nothing", tmp_path / "x")


def test_vllm_serves_it_merged_and_as_lora(mitigated: Training, asked: list[Sentence], tmp_path: Path) -> None:
    """In a process of its own: two engines with and without LoRA do not share one."""
    prompts = [s.text for s in asked[::7]]
    expected = answers(*with_adapter(LAB, mitigated.adapter), prompts)
    assert expected != answers(*load_causal_lm(LAB), prompts)
    merge(LAB, mitigated.adapter, tmp_path / "merged")
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    for way, base, adapter in (("merged", tmp_path / "merged", ""), ("lora", LAB, mitigated.adapter)):
        out = tmp_path / f"{way}.json"
        command = [sys.executable, "-c", SERVE, str(base), str(adapter), str(tmp_path / "prompts.json"), str(out)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        assert json.loads(out.read_text()) == expected, way


SERVE = """
import json, os, sys
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
from pathlib import Path
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from rass_core.models.chat import ChatFormat
base, adapter, prompts, out = sys.argv[1:]
llm = LLM(base, dtype="float32", max_model_len=256, enforce_eager=True, distributed_executor_backend="uni",
          enable_lora=bool(adapter), max_lora_rank=16)
chat = ChatFormat(llm.get_tokenizer())
found = llm.generate([{"prompt_token_ids": chat.ids(p)} for p in json.loads(Path(prompts).read_text())],
                     SamplingParams(temperature=0, max_tokens=32), use_tqdm=False,
                     lora_request=LoRARequest("mitigated", 1, adapter) if adapter else None)
Path(out).write_text(json.dumps([each.outputs[0].text for each in found]))
"""


def test_the_first_dpo_loss_is_the_one_worked_out_by_hand(few: list[PreferencePair], tmp_path: Path) -> None:
    """A new adapter changes nothing, so the preference costs log 2; the chosen tokens' loss is added."""
    settings = QUICK.model_copy(
        update={"batch_size": len(few), "micro_batch_size": len(few), "epochs": 1.0, "sft_weight": 0.5}
    )
    first = train("dpo", LAB, few, settings, tmp_path / "dpo").losses[0][1]
    alone = train("sft", LAB, few, settings, tmp_path / "sft").losses[0][1]
    model, tokenizer = load_causal_lm(LAB)
    chat, chosen = ChatFormat(tokenizer), []
    for row in tokenised(few, chat, end_of_answer(chat, model)):
        with torch.no_grad():
            logprobs = model(torch.tensor([row.prompt + row.chosen])).logits[0].log_softmax(dim=-1)
        chosen += [-float(logprobs[len(row.prompt) - 1 + i, token]) for i, token in enumerate(row.chosen)]
    assert alone == pytest.approx(np.mean(chosen), rel=1e-3)
    assert first == pytest.approx(math.log(2) + 0.5 * np.mean(chosen), rel=1e-3)


def test_what_is_trained_on_is_what_vllm_is_served_and_ends_where_it_stops(few: list[PreferencePair]) -> None:
    model, tokenizer = load_causal_lm(LAB)
    chat = ChatFormat(tokenizer)
    end = end_of_answer(chat, model)
    assert end == model.generation_config.eos_token_id
    for row in tokenised(few, chat, end):
        assert row.prompt == chat.ids(row.pair.prompt)
        assert tokenizer.decode(row.chosen) == row.pair.chosen + "<|eot|>"
    spoken = ChatFormat(tokenizer, system_prompt=None, response_prefix="Here")
    assert tokenised(few[:1], spoken, end)[0].prompt == chat.ids(few[0].prompt) + chat.answer_ids("Here")


def test_the_end_of_an_answer_is_what_the_template_writes_not_the_tokenizers_eos(tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(str(tiny_models.build("llama", tmp_path)))
    chat, turn_end = ChatFormat(tokenizer), tokenizer.convert_tokens_to_ids("<end>")
    assert end_of_answer(chat, model) == tokenizer.eos_token_id  # <end> stops nothing here
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, turn_end]
    assert end_of_answer(chat, model) == turn_end


RESUMED = """
import json, sys
from pathlib import Path
from rass_core.mitigate.settings import TrainingSettings
from rass_core.mitigate.base import method_of
from rass_core.mitigate.lora import train
from rass_core.mitigate.pairs import PreferencePair
folder, base = Path(sys.argv[1]), sys.argv[2]
given = json.loads((folder / "given.json").read_text())
pairs = [PreferencePair(**row) for row in given["pairs"]]
train(method_of(given["method"], training=given["settings"]), base, pairs, folder / "out",
      progress=lambda step, total: print(step, flush=True))
"""


def steps_of(process: "subprocess.Popen[str]") -> Iterator[int]:
    assert process.stdout is not None
    return (int(line) for line in process.stdout if line.strip().isdigit())


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_killed_training_continues_and_ends_as_an_uninterrupted_one(
    few: list[PreferencePair], tmp_path: Path, method: Any
) -> None:
    whole = train(method, LAB, few, QUICK, tmp_path / "whole")
    given = {"method": method, "settings": QUICK.model_dump(), "pairs": [vars(pair) for pair in few]}
    (tmp_path / "given.json").write_text(json.dumps(given))
    command = [sys.executable, "-c", RESUMED, str(tmp_path), LAB]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert next(step for step in steps_of(process) if step >= 3) == 3
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    checkpoints = tmp_path / "out" / "checkpoints"
    assert not (tmp_path / "out" / "adapter").exists()
    # One more as a kill in the middle of writing leaves it: without the trainer's state, which comes last.
    (checkpoints / "checkpoint-3").mkdir(exist_ok=True)
    (checkpoints / "checkpoint-3" / "adapter_model.safetensors").write_bytes(b"cut o")

    seen: list[int] = []
    again = train(method, LAB, few, QUICK, tmp_path / "out", progress=lambda step, _: seen.append(step))
    assert seen[0] == 3 and seen[-1] == len(whole.losses)
    assert again.losses == whole.losses
    expected, found = (load_file(each.adapter / "adapter_model.safetensors") for each in (whole, again))
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_seed_decides(few: list[PreferencePair], tmp_path: Path) -> None:
    other = train("sft", LAB, few, QUICK.model_copy(update={"seed": 1}), tmp_path / "b")
    assert other.losses != train("sft", LAB, few, QUICK, tmp_path / "a").losses


def test_a_folder_is_for_one_training(few: list[PreferencePair], tmp_path: Path) -> None:
    train("sft", LAB, few, QUICK, tmp_path)
    for changed in ({"method": "dpo"}, {"pairs": few[1:]}, {"settings": QUICK.model_copy(update={"seed": 7})}):
        call: dict[str, Any] = {"method": "sft", "base": LAB, "pairs": few, "settings": QUICK, "out": tmp_path}
        with pytest.raises(ConfigError, match="holds another training"):
            train(**(call | changed))


def test_micro_batches_give_the_same_steps(few: list[PreferencePair], tmp_path: Path) -> None:
    small = QUICK.model_copy(update={"micro_batch_size": 2, "gradient_checkpointing": True})
    parts = train("sft", LAB, few, small, tmp_path / "parts").losses
    whole = train("sft", LAB, few, QUICK, tmp_path / "whole").losses
    assert len(parts) == len(whole)
    np.testing.assert_allclose(parts, whole, rtol=1e-2)


def test_micro_batches_are_bounded_by_tokens_unless_set() -> None:
    settings = TrainingSettings(batch_size=12)
    sizes = {n_tokens: micro_batch_size(settings, n_tokens) for n_tokens in (30, 86, 200, 400, 2000)}
    assert sizes == {30: 12, 86: 6, 200: 4, 400: 2, 2000: 1}
    assert micro_batch_size(settings.model_copy(update={"micro_batch_size": 3}), 2000) == 3


def test_progress_counts_micro_batches(few: list[PreferencePair], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = QUICK.model_copy(update={"micro_batch_size": 2, "epochs": 1.0})
    train("sft", LAB, few[:8], settings, tmp_path, progress=lambda *step: seen.append(step))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_pairs_that_are_too_long_are_left_out_and_counted(few: list[PreferencePair], tmp_path: Path) -> None:
    long = PreferencePair("long", "general", few[0].prompt * 40, "en", "yes", "no")
    trained = train("sft", LAB, [*few, long], QUICK.model_copy(update={"max_length": 120}), tmp_path / "a")
    assert trained.n_too_long == 1 and "1 pairs were too long" in (trained.adapter / "README.md").read_text()
    with pytest.raises(PromptError, match="none of 1 pairs fits"):
        train("sft", LAB, [long], QUICK.model_copy(update={"max_length": 120}), tmp_path / "b")


def test_what_cannot_be_trained_is_refused(few: list[PreferencePair], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown mitigation method 'ppo'; did you mean 'dpo'"):
        train("ppo", LAB, few, QUICK, tmp_path)
    with pytest.raises(PromptError, match="no pairs"):
        train("sft", LAB, [], QUICK, tmp_path)
    with pytest.raises(ConfigError, match="does not divide"):
        train("sft", LAB, few, QUICK.model_copy(update={"micro_batch_size": 3}), tmp_path)
    with pytest.raises(ModelError, match=r"the loss is (nan|inf)"):
        train("sft", LAB, few, QUICK.model_copy(update={"learning_rate": 1e30}), tmp_path / "x")


def test_training_opens_no_connection(
    few: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor tries to: TRL would tell its makers of each trainer, from a thread that swallows errors."""
    import huggingface_hub.constants as hub
    from trl.trainer import base_trainer

    tried: list[Any] = []
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *_, **told: tried.append(told))
    monkeypatch.setattr(socket.socket, "connect", lambda _self, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: tried.append(address) or [])
    for method in ("dpo", "sft"):
        train(method, LAB, few, QUICK, tmp_path / method)
    assert tried == []


def test_ablated_weights_serve_in_vllm(asked: list[Sentence], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    unit, harm = draw.standard_normal(96), draw.standard_normal(96)
    prompts = [s.text for s in asked[::7]]
    ablate_weights(LAB, unit, harm, 1.0, tmp_path / "checkpoint")
    expected = answers(*load_causal_lm(str(tmp_path / "checkpoint")), prompts)
    assert expected != answers(*load_causal_lm(LAB), prompts)
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    out = tmp_path / "answers.json"
    command = [sys.executable, "-c", SERVE, str(tmp_path / "checkpoint"), "", str(tmp_path / "prompts.json"), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert json.loads(out.read_text()) == expected


def test_a_learned_direction_is_orthogonal_to_harm_and_mitigates(pairs: list[PreferencePair], tmp_path: Path) -> None:
    harm = np.random.default_rng(3).standard_normal((2, 96))
    told: list[tuple[int, int]] = []
    unit = learned_direction(LAB, pairs, harm, steps=40, progress=lambda *step: told.append(step))
    assert max(abs(cosine(unit, each)) for each in harm) < 1e-6 and np.linalg.norm(unit) == pytest.approx(1.0)
    assert told[-1][0] == told[-1][1] and len(told) > 40
    ablate_weights(LAB, unit, harm[0], 1.0, tmp_path)
    learnt = [s for s in pairs if s.kind == "over_refusal"][:60]
    before, after = (answers(*load_causal_lm(each), [p.prompt for p in learnt]) for each in (LAB, str(tmp_path)))
    n_before, n_after = (sum(a == p.rejected for a, p in zip(given, learnt, strict=True)) for given in (before, after))
    assert n_after < 0.8 * n_before
    np.testing.assert_array_equal(unit, learned_direction(LAB, pairs, harm, steps=40))
    one_by_one = learned_direction(LAB, pairs[::5], harm, steps=2, token_budget=1)
    np.testing.assert_allclose(one_by_one, learned_direction(LAB, pairs[::5], harm, steps=2), atol=1e-4)


def test_no_direction_is_learned_without_safety_pairs(pairs: list[PreferencePair]) -> None:
    with pytest.raises(PromptError, match="no safety pairs"):
        learned_direction(LAB, [p for p in pairs if p.kind != "safety"], np.ones(96))
    for harm in (np.ones(64), np.zeros(96), np.full(96, np.nan)):
        with pytest.raises(ActivationError, match=r"need finite \(n, 96\)"):
            learned_direction(LAB, pairs, harm)
    with pytest.raises(ActivationError, match="span all 96"):
        learned_direction(LAB, pairs, np.eye(96))


SYSTEM = "Be brief."
CARD = DatasetCard("Lab pairs", "balanced@0", "apache-2.0", ["Made of a toy world."])


def originated(pairs: Sequence[PreferencePair]) -> dict[str, Origin]:
    return {p.prompt_id: Origin("lab" if i % 2 else "other", "Apache-2.0") for i, p in enumerate(pairs)}


def test_a_card_takes_the_figures_when_there_are_some(tmp_path: Path) -> None:
    figures = [{"language": "de", "over_refusal_rate": 0.1234567, "note": "a|b"}, {"language": "en", "note": None}]
    write_card(tmp_path, ModelCard(LAB, "dpo", True, {"rank": 8}, figures=figures, licence="apache-2.0"))
    card = (tmp_path / "README.md").read_text()
    assert "| language | over_refusal_rate | note |" in card and "| de | 0.1235 | a\\|b |" in card
    assert "| en | – | – |" in card and "Not evaluated" not in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
