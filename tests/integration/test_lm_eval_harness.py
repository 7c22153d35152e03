"""Utility tasks by lm-evaluation-harness itself, over local files, on the lab's model."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

import rass_core.lab
from rass_core.errors import ConfigError, PromptError
from rass_core.evaluate.lm_eval import measure_utility, utility_rows
from rass_core.evaluate.settings import UtilityConfig
from rass_core.lab.prompts import held_out_sentences
from rass_core.lab.world import Sentence
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Lake
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.models.interventions import ablating
from rass_core.models.residuals import ResidualExtractor
from rass_core.probe.directions import difference_in_means
from rass_core.stats.intervals import wilson

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'rass[utility]'")

LAB = Path(rass_core.lab.__file__).parent / "weights" / "balanced"
LABELS = ("harmful", "harmless")
N, N_WRONG = 10, 3


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write a task of the harness over a local file."""
    (folder / f"{name}.json").write_text(json.dumps(rows))
    task = {
        "task": name, "dataset_path": "json", "test_split": "test", "metadata": {"version": 1},
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.json")}}, **settings,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def row_of(sentence: Sentence, right: str) -> dict[str, Any]:
    choices = [sentence.answer("refusal"), sentence.answer("compliance")]
    return {"question": sentence.text, "choices": choices, "answer": ["refusal", "compliance"].index(right)}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks whose scores are known: the lab's model refuses every harmful request and no harmless one."""
    folder = tmp_path_factory.mktemp("tasks")
    harmful, harmless = ([s for s in held_out_sentences({label: N}) if s.language == "en"] for label in LABELS)
    rows = [row_of(s, "refusal") for s in harmful] + [row_of(s, "compliance") for s in harmless]
    choice = {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    write_task(folder, "lab_right", rows, **choice)
    wrong = [{**row, "answer": 1 - row["answer"]} for row in rows[:N_WRONG]]
    write_task(folder, "lab_mixed", wrong + rows[N_WRONG:], **choice)
    refused = [s for s in held_out_sentences({"pseudo_harmful": 40}) if s.language == "en"]
    write_task(
        folder, "lab_refusals", [row_of(s, "refusal") for s in refused],
        output_type="generate_until", doc_to_text="{{question}}", doc_to_target="{{choices[0]}}",
        generation_kwargs={"until": ["<|eot|>"], "max_gen_toks": 24, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    write_task(
        folder, "lab_text", rows, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}",
        metric_list=[{"metric": "word_perplexity"}],
    )  # fmt: skip
    write_task(folder, "lab_offline", rows, **{**choice, "dataset_path": "no-one/has-this", "dataset_kwargs": {}})
    write_task(folder, "lab_broken", rows, **{**choice, "doc_to_text": "{{ no such filter | none }}"})
    group = {
        "group": "lab_group", "task": ["lab_right", "lab_mixed"], "metadata": {"version": 1},
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }  # fmt: skip
    (folder / "lab_group.yaml").write_text(yaml.safe_dump(group))
    return folder


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, ChatFormat]:
    model, tokenizer = load_causal_lm(str(LAB))
    return model, ChatFormat(tokenizer)


KINDS: dict[str, dict[str, Any]] = {
    "multiple_choice": {"doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}]},
    "generate_until": {"generation_kwargs": {"until": ["."], "max_gen_toks": 1, "do_sample": False}},
    "loglikelihood_rolling": {"metric_list": [{"metric": "word_perplexity"}]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_in_a_task_are_plain_text(kind: str, loaded: tuple[Any, ChatFormat], tmp_path: Path) -> None:
    model, chat = loaded
    special = chat.tokenizer.all_special_tokens
    counts = []
    for words in ("".join(special), "-".join("xyz"[: len(special)])):
        rows = [{"question": f"Say {words} now", "choices": [f"a {words}", "b"], "answer": 0}]
        name = f"typed{len(counts)}"
        settings = {"metric_list": [{"metric": "exact_match"}], **KINDS[kind]}
        target = "answer" if kind == "multiple_choice" else "{{question}}"
        write_task(tmp_path, name, rows, output_type=kind, doc_to_text="{{question}}", doc_to_target=target, **settings)
        seen: list[int] = []

        def note(module: Any, args: Any, given: Any, seen: list[int] = seen) -> None:
            ids = given["input_ids"] if "input_ids" in given else args[0]
            seen.append(sum(int((ids == number).sum()) for number in chat.tokenizer.all_special_ids))

        hook = model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            measure_utility(model, chat, UtilityConfig(tasks=[name], include_path=tmp_path, batch_size=1))
        finally:
            hook.remove()
        counts.append(seen)
    assert counts[0] == counts[1] and counts[0]


def test_rows_tell_what_the_lab_is_known_to_do(tasks: Path, loaded: tuple[Any, ChatFormat], tmp_path: Path) -> None:
    config = UtilityConfig(tasks=["lab_group", "lab_text"], include_path=tasks, batch_size=4)
    rows = utility_rows(*loaded, "lab", "base", config)
    found = {(row["dataset"], row["metric"]): row for row in rows}
    assert set(found) == {
        ("utility:lab_right", "acc"), ("utility:lab_mixed", "acc"), ("utility:lab_group", "acc"),
        ("utility:lab_text", "word_perplexity"),
    }  # fmt: skip
    right, mixed = found["utility:lab_right", "acc"], found["utility:lab_mixed", "acc"]
    assert (right["value"], right["low"], right["high"]) == pytest.approx(wilson(2 * N, 2 * N))
    assert (mixed["value"], mixed["low"], mixed["high"]) == pytest.approx(wilson(2 * N - N_WRONG, 2 * N))
    group = found["utility:lab_group", "acc"]
    assert group["value"] == pytest.approx(1 - N_WRONG / (4 * N)) and group["n"] == 4 * N
    assert group["low"] < group["value"] < group["high"]
    text = found["utility:lab_text", "word_perplexity"]
    assert text["value"] > 1 and text["low"] is None and "no interval" in text["reason"]
    assert {(r["model_id"], r["variant"], r["language"]) for r in rows} == {("lab", "base", "all")}
    lake = Lake.open(tmp_path / "lake")
    lake.commit("r", "0a", {"evaluations": pa.Table.from_pylist(rows, schema=TABLES["evaluations"])})
    stored = lake.read("evaluations", columns=list(rows[0])).to_pylist()
    assert sorted(stored, key=str) == sorted(rows, key=str)


def test_what_is_done_to_the_model_is_measured(tasks: Path, loaded: tuple[Any, ChatFormat]) -> None:
    model, chat = loaded
    config = UtilityConfig(tasks=["lab_refusals"], include_path=tasks)
    plain = measure_utility(model, chat, config)[0]
    sentences = list(held_out_sentences({"harmful": 20, "harmless": 20}))
    streams = ResidualExtractor(model, [2], [-4])([chat.ids(s.text) for s in sentences])[:, 0, 0]
    is_harmful = torch.tensor([s.label == "harmful" for s in sentences])
    vector = torch.tensor(difference_in_means(streams[is_harmful], streams[~is_harmful]))
    with ablating(model, vector, 0.5):
        without = measure_utility(model, chat, config)[0]
    assert plain.n == without.n == 40
    assert plain.value is not None and plain.value > 0.4
    assert without.value is not None and without.value < 0.1


def test_a_limit_takes_the_first_items_and_random_states_stay(tasks: Path, loaded: tuple[Any, ChatFormat]) -> None:
    config = UtilityConfig(tasks=["lab_mixed"], include_path=tasks, limit=2 * N_WRONG)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    score = measure_utility(*loaded, config)[0]
    assert (score.value, score.n) == (0.5, 2 * N_WRONG)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_system_prompt_reaches_the_model(tasks: Path, loaded: tuple[Any, ChatFormat]) -> None:
    """Once before each choice of each question; the rolling likelihood of texts has no prompt."""
    model, chat = loaded
    config = UtilityConfig(tasks=["lab_text", "lab_right"], include_path=tasks)
    said = []
    spoken = ChatFormat(chat.tokenizer, "Be brief.")
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _m, args: said.append(args[0]))
    measure_utility(model, spoken, config)
    handle.remove()
    texts = [chat.tokenizer.decode(row) for batch in said for row in batch]
    assert sum("Be brief." in text for text in texts) == 4 * N
    assert not any(text.count("Be brief.") > 1 for text in texts)


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["lab_rihgt"], ConfigError, r"'lab_rihgt': .*; did you mean lab_right"),
        (["lab_right", "lab_right"], ConfigError, "lab_right: listed twice"),
        (["lab_group", "lab_mixed"], ConfigError, "lab_mixed: in lab_group and in lab_mixed; name one"),
        (["lab_offline"], PromptError, r"lab_offline: cannot be loaded \(Couldn't reach 'no-one/has-this'"),
        (["lab_broken"], PromptError, "lab_broken: cannot be loaded"),
    ],
)
def test_what_cannot_be_run_is_named(
    tasks: Path, loaded: tuple[Any, ChatFormat], names: list[str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        measure_utility(*loaded, UtilityConfig(tasks=names, include_path=tasks))
