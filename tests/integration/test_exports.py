"""Exports of preference pairs, read by the programs that they are for."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from rass_core.errors import PromptError
from rass_core.lab import world
from rass_core.lab.prompts import held_out_sentences
from rass_core.mitigate.pairs import PreferencePair
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.publish.formats import (
    DatasetCard,
    Origin,
    export_axolotl,
    export_dataset,
    export_llama_factory,
    export_trl,
)
from tests import tiny_models
from tests.lab_pairs import KINDS, pair_of

SYSTEM = "Be brief."
CARD = DatasetCard("Lab pairs", "balanced@0", "apache-2.0", ["Made of a toy world."])


@pytest.fixture(scope="module")
def few() -> list[PreferencePair]:
    """A pair of each kind in each language."""
    return [pair_of(sentence) for sentence in held_out_sentences(dict.fromkeys(KINDS, 1))]


def originated(pairs: Sequence[PreferencePair]) -> dict[str, Origin]:
    return {p.prompt_id: Origin("lab" if i % 2 else "other", "Apache-2.0") for i, p in enumerate(pairs)}


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_trl_reads_what_is_exported_for_it(few: list[PreferencePair], tmp_path: Path, system: str | None) -> None:
    """TRL's own preparation takes the rows; in its tokens the conversation reads as ours does."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, is_conversational

    odd = PreferencePair("odd", "general", 'line\u2028end "quoted" \\ 😀\n', "zh", "a\nb", "c\u2029")
    base = tiny_models.build("llama", tmp_path / "model")
    model, tokenizer = load_causal_lm(str(base))
    export_trl([*few, odd], tmp_path / "trl", system)
    text = (tmp_path / "trl" / "train.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(few) + 1  # some readers end a line at U+2028 too
    rows = load_dataset(
        "json", data_files=str(tmp_path / "trl" / "train.jsonl"), cache_dir=str(tmp_path), split="train"
    )
    assert len(rows) == len(few) + 1 and is_conversational(rows[0])
    assert rows[-1]["prompt"][-1]["content"] == odd.prompt and rows[-1]["rejected"][0]["content"] == odd.rejected
    arguments = DPOConfig(str(tmp_path / "out"), report_to=[], bf16=False, use_cpu=True)
    prepared = DPOTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer).train_dataset
    chat = ChatFormat(tokenizer, system_prompt=system)
    for row, pair in zip(prepared, [*few, odd], strict=True):
        assert row["prompt_ids"] == chat.ids(pair.prompt)
        assert tokenizer.decode(row["chosen_ids"]).startswith(pair.chosen)


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_llama_factory_finds_every_column_that_it_is_given(
    few: list[PreferencePair], tmp_path: Path, system: str | None
) -> None:
    """As its documentation has it: sharegpt, ranking, the last turn before the answers is the user's."""
    from datasets import load_dataset

    export_llama_factory(few, tmp_path, "mine", system)
    entry = json.loads((tmp_path / "dataset_info.json").read_text())["mine"]
    assert entry["formatting"] == "sharegpt" and entry["ranking"] is True
    file = str(tmp_path / entry["file_name"])
    for row, pair in zip(
        load_dataset("json", data_files=file, cache_dir=str(tmp_path), split="train"), few, strict=True
    ):
        told = {name: row[column] for name, column in entry["columns"].items()}
        assert told["messages"] == [{"from": "human", "value": pair.prompt}]
        assert (told["chosen"], told["rejected"]) == tuple(
            {"from": "gpt", "value": a} for a in (pair.chosen, pair.rejected)
        )
        assert told.get("system") == system


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_axolotl_finds_every_field_that_its_settings_name(
    few: list[PreferencePair], tmp_path: Path, system: str | None
) -> None:
    from datasets import load_dataset

    export_axolotl(few, tmp_path, system)
    settings = yaml.safe_load((tmp_path / "dataset.yaml").read_text())
    (entry,) = settings["datasets"]
    assert settings["rl"] == "dpo" and entry["type"] == "chat_template.default"
    rows = load_dataset(entry["ds_type"], data_files=str(tmp_path / entry["path"]), cache_dir=str(tmp_path))[
        entry["split"]
    ]
    for row, pair in zip(rows, few, strict=True):
        turns = [{"role": "system", "content": system}] if system else []
        assert row[entry["field_messages"]] == [*turns, {"role": "user", "content": pair.prompt}]
        assert row[entry["field_chosen"]] == {"role": "assistant", "content": pair.chosen}
        assert row[entry["field_rejected"]] == {"role": "assistant", "content": pair.rejected}


def test_the_dataset_folder_loads_by_its_card_and_names_licences(few: list[PreferencePair], tmp_path: Path) -> None:
    from datasets import load_dataset
    from huggingface_hub import DatasetCard as HubCard

    origins = originated(few)
    export_dataset(few, tmp_path / "set", CARD, origins, SYSTEM)
    rows = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path), split="train")
    assert [row["prompt_id"] for row in rows] == [pair.prompt_id for pair in few]
    assert rows[0]["prompt"] == [{"role": "system", "content": SYSTEM}, {"role": "user", "content": few[0].prompt}]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": few[0].chosen}] and rows[0]["licence"] == "Apache-2.0"
    card = HubCard.load(tmp_path / "set" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.language == sorted(world.languages())
    assert card.data.size_categories == ["n<1K"]
    for kind in KINDS.values():
        assert f"| {kind} | 1 | 1 | 1 | 1 | 1 |" in card.text
    assert f"| lab | Apache-2.0 | {len(few) // 2} |" in card.text and "Made of a toy world." in card.text


def test_exports_are_the_same_bytes_again(few: list[PreferencePair], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        export_trl(few, tmp_path / folder / "trl")
        export_axolotl(few, tmp_path / folder / "axolotl")
        export_llama_factory(few, tmp_path / folder / "llama")
        export_dataset(few, tmp_path / folder / "set", CARD, originated(few))
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.*") if file.is_file())
    assert len(files) == 7
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_a_prompt_of_unknown_licence_is_not_exported(few: list[PreferencePair], tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=f"prompt {few[0].prompt_id} has no source and licence"):
        export_dataset(few, tmp_path / "x", CARD, {p.prompt_id: Origin("lab", "MIT") for p in few[1:]})
    assert not (tmp_path / "x").exists()
