"""Preference pairs in the formats that other trainers read, and as a Hugging Face dataset folder.

Same pairs in, same bytes out: rows keep the order in which they were given.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rass_core.errors import PromptError
from rass_core.mitigate.pairs import KINDS, PreferencePair, check_pairs, counts
from rass_core.text import markdown_table

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_MEANINGS = {
    "over_refusal": "a benign prompt that the model refused; chosen is its own helpful answer when steered off "
    "refusal, rejected its refusal",
    "safety": "a harmful prompt; chosen is the refusal, rejected no more than how a helpful answer would open",
    "general": "a harmless prompt; chosen is the model's own answer, which keeps it where it is",
}
_COLUMNS = {
    "prompt": "list of messages",
    "chosen": "list of messages",
    "rejected": "list of messages",
    "prompt_id": "digest of language and text",
    "kind": "kind of pair",
    "language": "of prompt and answers",
    "source": "where the prompt comes from",
    "licence": "of the prompt",
}


@dataclass(frozen=True)
class Origin:
    """Where a prompt comes from, as the table `prompts` has it."""

    source: str
    licence: str


@dataclass(frozen=True)
class DatasetCard:
    """What the README of a dataset folder says besides what the pairs show."""

    name: str
    model_id: str
    """The model that gave the answers: the pairs are aligned to its boundary and to no other's."""
    licence: str
    """Licence of the whole, in Hugging Face's spelling, such as cc-by-4.0 or other; that of the strictest source."""
    notes: Sequence[str] = ()
    """Sentences on what should be known before use."""


def export_trl(pairs: Sequence[PreferencePair], folder: Path, system_prompt: str | None = None) -> Path:
    """Write train.jsonl in TRL's conversational preference format, and return it.

    Args:
        system_prompt: The one under which the answers were given; None for none.

    Raises:
        PromptError: No pairs, or a prompt in two of them.
    """
    rows = [
        {
            "prompt": _asked(pair, system_prompt),
            "chosen": [_message("assistant", pair.chosen)],
            "rejected": [_message("assistant", pair.rejected)],
        }
        for pair in _checked(pairs)
    ]
    return _write_jsonl(folder / "train.jsonl", rows)


def export_axolotl(pairs: Sequence[PreferencePair], folder: Path, system_prompt: str | None = None) -> Path:
    """Write train.jsonl for axolotl's `chat_template.default` with `rl: dpo`, and dataset.yaml that names it.

    Args, returns, raises: As `export_trl`.
    """
    rows = [
        {
            "messages": _asked(pair, system_prompt),
            "chosen": _message("assistant", pair.chosen),
            "rejected": _message("assistant", pair.rejected),
        }
        for pair in _checked(pairs)
    ]
    path = _write_jsonl(folder / "train.jsonl", rows)
    dataset = {
        "path": path.name,
        "ds_type": "json",
        "split": "train",
        "type": "chat_template.default",
        "field_messages": "messages",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
        "message_property_mappings": {"role": "role", "content": "content"},
        "roles": {"user": ["user"], "assistant": ["assistant"], "system": ["system"]},
    }
    settings = yaml.safe_dump({"rl": "dpo", "datasets": [dataset]}, sort_keys=False)
    (folder / "dataset.yaml").write_text(
        f"# Put these lines into axolotl's configuration; path is relative to where it runs.\n{settings}",
        encoding="utf-8",
    )
    return path


def export_llama_factory(
    pairs: Sequence[PreferencePair], folder: Path, name: str = "rass", system_prompt: str | None = None
) -> Path:
    """Write name.json and the dataset_info.json that describes it, for LLaMA-Factory's `dataset_dir`.

    Args, returns, raises: As `export_trl`; name is what `dataset:` is set to there.
    """
    user, assistant = "human", "gpt"
    rows = [
        {
            "conversations": [{"from": user, "value": pair.prompt}],
            "chosen": {"from": assistant, "value": pair.chosen},
            "rejected": {"from": assistant, "value": pair.rejected},
            **({} if system_prompt is None else {"system": system_prompt}),
        }
        for pair in _checked(pairs)
    ]
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    if system_prompt is not None:
        columns["system"] = "system"
    entry = {"file_name": f"{name}.json", "formatting": "sharegpt", "ranking": True, "columns": columns}
    _write_json(folder / "dataset_info.json", {name: entry})
    return _write_json(folder / f"{name}.json", rows)


def export_dataset(
    pairs: Sequence[PreferencePair],
    folder: Path,
    card: DatasetCard,
    origins: Mapping[str, Origin],
    system_prompt: str | None = None,
) -> Path:
    """Write a Hugging Face dataset folder, data/train-00000-of-00001.parquet and README.md, and return it.

    Its columns prompt, chosen and rejected are TRL's; who reads it needs nothing of ours.

    Args:
        origins: prompt_id → where its prompt comes from.
        system_prompt: As `export_trl`.

    Raises:
        PromptError: As `export_trl`, or a prompt without an origin: its licence would be unknown.
    """
    unknown = [pair.prompt_id for pair in _checked(pairs) if pair.prompt_id not in origins]
    if unknown:
        raise PromptError(f"dataset: prompt {min(unknown)} has no source and licence; give its origin or leave it out")
    rows = [
        {
            "prompt": _asked(pair, system_prompt),
            "chosen": [_message("assistant", pair.chosen)],
            "rejected": [_message("assistant", pair.rejected)],
            "prompt_id": pair.prompt_id,
            "kind": pair.kind,
            "language": pair.language,
            **asdict(origins[pair.prompt_id]),
        }
        for pair in pairs
    ]
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds = [messages if name in ("prompt", "chosen", "rejected") else pa.string() for name in _COLUMNS]
    schema = pa.schema(list(zip(_COLUMNS, kinds, strict=True)))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema), folder / "data" / "train-00000-of-00001.parquet", compression="zstd"
    )
    (folder / "README.md").write_text(_readme(pairs, card, origins), encoding="utf-8")
    return folder


def _readme(pairs: Sequence[PreferencePair], card: DatasetCard, origins: Mapping[str, Origin]) -> str:
    """Return the dataset card: a YAML header that the hub reads, then what a person should know."""
    by_kind = counts(pairs)
    languages = sorted({pair.language for pair in pairs})
    header = {
        "pretty_name": card.name,
        "license": card.licence,
        "language": sorted({each.split("-")[0] for each in languages}),
        "task_categories": ["text-generation"],
        "tags": ["preference", "dpo", "over-refusal", "safety"],
        "size_categories": [next((name for limit, name in _SIZES if len(pairs) < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    sources = {(origins[pair.prompt_id].source, origins[pair.prompt_id].licence) for pair in pairs}
    number = {key: sum(origins[p.prompt_id] == Origin(*key) for p in pairs) for key in sources}
    lines = [
        f"# {card.name}",
        f"{len(pairs)} preference pairs that reduce over-refusal in `{card.model_id}`. They lie at this model's own "
        "safety boundary; for another model, make new ones.",
        *card.notes,
        "## Pairs",
        markdown_table(
            ["kind", *languages], [[kind, *(n.get(each, 0) for each in languages)] for kind, n in by_kind.items()]
        ),
        "\n".join(f"- `{kind}`: {_MEANINGS[kind]}" for kind in KINDS if kind in by_kind),
        "## Columns",
        markdown_table(["column", "what it is"], list(_COLUMNS.items())),
        "## Sources and licences",
        markdown_table(["source", "licence", "pairs"], [[*key, number[key]] for key in sorted(sources)]),
    ]
    return "---\n" + yaml.safe_dump(header, sort_keys=False, allow_unicode=True) + "---\n\n" + "\n\n".join(lines) + "\n"


def _checked(pairs: Sequence[PreferencePair]) -> Sequence[PreferencePair]:
    check_pairs(pairs)
    return pairs


def _asked(pair: PreferencePair, system_prompt: str | None) -> list[dict[str, str]]:
    system = [] if system_prompt is None else [_message("system", system_prompt)]
    return [*system, _message("user", pair.prompt)]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # U+2028 and the like end a line for some readers; JSON may write them as escapes.
    lines = [
        json.dumps(row, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029") for row in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return path
