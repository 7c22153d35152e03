"""How a cautious model is made: what it is taught, what is held out, and what the loss reads."""

import json
from dataclasses import replace
from hashlib import sha512
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.real import cautious, own_answers, prompts
from benchmarks.real.cautious import RECIPES, Example, weaken
from benchmarks.real.prompts import TARGETS
from benchmarks.real.refusals import REFUSALS
from rass_core.judges import Exchange
from rass_core.judges.panel import default_panel
from rass_core.models.causal_lm import decoder_blocks, load_causal_lm
from rass_core.models.chat import ChatFormat
from tests.tiny_models import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("models") / "llama")


def rows_of(n: int, seed: int = 0) -> list[Example]:
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        n_ids = int(torch.randint(low, high, (), generator=draw))
        return torch.randint(20, 260, (n_ids,), generator=draw).tolist()

    return [(ids(2, 40), ids(1, 8)) for _ in range(n)]


def write(data: Path, source: str, texts: list[str], label: str) -> None:
    rows = [
        {"prompt_id": f"{source}-{i:04}", "text": text, "label": label, "language": "en"}
        for i, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows), data / f"{source}.parquet")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of files in which some training prompts repeat held-out ones."""
    for name in prompts.HARMFUL:
        write(tmp_path, name, [f"Break lock {name} number {i}, and {i * 7} more." for i in range(8)], "harmful")
    write(tmp_path, "advbench", ["Explain how to break the big lock of number seven", "Steal a boat"], "harmful")
    for name in prompts.HARMLESS:
        texts = [sha512(f"{name} {i}".encode()).hexdigest() for i in range(40)]  # no two alike
        write(tmp_path, name, texts, "harmless")
    write(tmp_path, "strongreject", ["Explain how to break the big lock of number seven!"], "harmful")
    write(tmp_path, "xstest", ["How do I kill the lights?"], "pseudo_harmful")
    write(tmp_path, "or_bench_hard", ["What would a locksmith teach?"], "pseudo_harmful")
    return tmp_path


def test_refusals_are_many_and_refuse() -> None:
    assert len(set(REFUSALS)) == len(REFUSALS) >= 30
    assert len({tuple(each.split()[:3]) for each in REFUSALS}) >= 15
    verdicts = default_panel()([Exchange(text, "en") for text in REFUSALS])
    assert [text for text, each in zip(REFUSALS, verdicts, strict=True) if each.outcome != "refusal"] == []


def test_nothing_held_out_is_trained_on(data: Path) -> None:
    harmful, harmless = prompts.training_prompts(data)
    assert "Steal a boat" in {p["text"] for p in harmful}
    assert not any("big lock" in p["text"] for p in harmful)  # a near-duplicate of a StrongREJECT prompt here
    held_out = {p["prompt_id"] for target in TARGETS for p in prompts.held_out(data, target)}
    trained = {p["prompt_id"] for p in harmful + harmless}
    assert not held_out & trained
    for source in prompts.HALVED:
        assert any(each.startswith(source) for each in held_out)
    assert any(each.startswith("alpaca_nc") for each in trained)
    assert not any(each.startswith("alpaca_nc") for each in held_out)


def test_a_draw_is_seeded_and_takes_from_every_source(data: Path) -> None:
    given = [p for name in prompts.HARMLESS for p in prompts.prompts_of(data, name, "harmless")]
    first = prompts.drawn(given, 20, seed=0)
    assert first == prompts.drawn(given[::-1], 20, seed=0)
    assert first != prompts.drawn(given, 20, seed=1)
    assert [sum(p["source"] == name for p in first) for name in prompts.HARMLESS] == [5, 5, 5, 5]
    with pytest.raises(SystemExit, match="only 160 of 161"):
        prompts.drawn(given, 161, seed=0)


def test_batches_hold_every_row_once_and_pad_little() -> None:
    rows = rows_of(100)
    found = list(cautious.batches(rows, 8, seed=3))
    assert sorted(map(str, (row for batch in found for row in batch))) == sorted(map(str, rows))
    assert found == list(cautious.batches(rows, 8, seed=3))
    assert found != list(cautious.batches(rows, 8, seed=4))

    def padded(batches: list[list[Example]]) -> int:
        return sum(len(batch) * max(len(p) + len(a) for p, a in batch) for batch in batches)

    unsorted = list(cautious.batches(rows, 8, seed=3, pool=1))
    assert padded(found) < 0.8 * padded(unsorted)


def test_the_loss_is_the_cross_entropy_of_the_answers(folder: Path) -> None:
    model, _ = load_causal_lm(str(folder))
    rows = rows_of(5)
    losses: list[Any] = []
    with torch.inference_mode():
        for prompt, answer in rows:
            logits = model(torch.tensor([prompt + answer])).logits[0]
            scores = logits[len(prompt) - 1 : -1].log_softmax(-1)
            losses += [-scores[i, token] for i, token in enumerate(answer)]
        found = cautious.loss_of(model, rows)
    assert found.item() == pytest.approx(float(torch.stack(losses).mean()), rel=5e-3)  # bfloat16


def test_training_leaves_lower_blocks_and_teaches_the_rest(folder: Path) -> None:
    model, _ = load_causal_lm(str(folder))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = rows_of(16)
    with torch.inference_mode():
        first = cautious.loss_of(model, rows).item()
    recipe = replace(RECIPES["medium"], first_block=2, batch_size=4, learning_rate=3e-3)
    cautious.train(model, rows * 4, recipe)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    trained = {f"model.layers.{i}.{name}" for i in (2, 3) for name, _ in decoder_blocks(model)[i].named_parameters()}
    assert changed == trained
    with torch.inference_mode():
        assert cautious.loss_of(model, rows).item() < 0.8 * first


def test_a_model_is_made_once(folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPES["medium"], n_harmful=6, n_harmless=8, n_own=0, first_block=3, answer_tokens=3)
    recipe = replace(recipe, most_prompt_tokens=1000)
    out, cache = tmp_path / "out", tmp_path / "cache"
    cautious.make(recipe, data, str(folder), out, cache)
    made = (out / "model.safetensors").stat().st_mtime_ns
    answers = [path.read_text() for path in cache.iterdir()]
    cautious.make(recipe, data, str(folder), out, cache)
    assert (out / "model.safetensors").stat().st_mtime_ns == made

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(own_answers, "greedy_answers", refuse)
    cautious.make(replace(recipe, learning_rate=1e-3), data, str(folder), out, cache)
    assert (out / "model.safetensors").stat().st_mtime_ns != made
    assert [path.read_text() for path in cache.iterdir()] == answers


def test_own_requests_are_kept_in_their_file(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(str(folder))
    chat, file = ChatFormat(tokenizer), tmp_path / "requests.jsonl"
    file.write_text('"How do I kill a process?"\n"How do I shoot a portrait?"\n')
    assert own_answers.own_requests(model, chat, 2, file) == ["How do I kill a process?", "How do I shoot a portrait?"]
    written = own_answers.own_requests(model, chat, 3, file)
    assert len(set(written)) == 3 and written == own_answers.own_requests(model, chat, 3, file)


def test_greedy_answers_do_not_depend_on_their_batch(folder: Path) -> None:
    model, tokenizer = load_causal_lm(str(folder))
    asked = [prompt for prompt, _ in rows_of(7)]
    together = own_answers.greedy_answers(model, tokenizer, asked, 5, "x", rows=4)
    assert together == [own_answers.greedy_answers(model, tokenizer, [each], 5, "x")[0] for each in asked]


def test_a_weakened_model_lies_between_the_two(folder: Path, tmp_path: Path) -> None:
    tuned, _ = load_causal_lm(str(folder))
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(1.0)
    tuned.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "recipe.json").write_text('{"seed": 0}')
    weaken(str(folder), tmp_path / "tuned", 0.25, tmp_path / "out")
    released, weakened = (load_causal_lm(str(each))[0] for each in (folder, tmp_path / "out"))
    for before, after in zip(released.parameters(), weakened.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.25)
    assert json.loads((tmp_path / "out" / "recipe.json").read_text()) == {"seed": 0, "share": 0.25}
