"""Models on the command line and in configurations: folders that are none, or broken."""

import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case

LONG = "x" * 300
PROMPTS = "".join(
    f'{{"text": "How do I {verb} a {thing}?", "language": "en", "label": "{label}"}}\n'
    for verb, label in (("draw", "harmless"), ("kill", "pseudo_harmful"), ("harm", "harmful"))
    for thing in ("process", "portrait", "weed")
)
CONFIG = "model: {name: org/m, dtype: float32}\nprompts: {sources: [{path: prompts.jsonl}]}\n"
GIVEN = {"c.yaml": CONFIG, "prompts.jsonl": PROMPTS}
COMMANDS = {
    "probe": "probe {tmp}/c.yaml --lake {tmp}/lake --model",
    "run": "run {tmp}/c.yaml --lake {tmp}/lake --model",
    "evaluate": "evaluate --dataset {tmp}/prompts.jsonl --out {tmp}/o.csv --model",
}

Change = Callable[[Path], object]


def model(*changes: Change) -> Change:
    """Return what copies the lab's model to a path, changed."""

    def make(path: Path) -> None:
        shutil.copytree(str(resources.files("rass_core.lab").joinpath("weights", "balanced")), path)
        for change in changes:
            change(path)

    return make


def without(*names: str) -> Change:
    return lambda path: [(path / name).unlink() for name in names]


def text(name: str, content: str | bytes) -> Change:
    return lambda path: (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str) -> Change:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-1000])


def config(**changes: Any) -> Change:
    def change(path: Path) -> None:
        content = json.loads((path / "config.json").read_text(encoding="utf-8")) | changes
        content = {key: value for key, value in content.items() if value is not None}
        (path / "config.json").write_text(json.dumps(content), encoding="utf-8")

    return change


def index(content: str) -> Change:
    """Put an index of shards in the place of the weights."""

    def change(path: Path) -> None:
        (path / "model.safetensors").unlink()
        (path / "model.safetensors.index.json").write_text(content, encoding="utf-8")

    return change


ADAPTER: dict[str, Any] = {"m/adapter_config.json": '{"base_model_name_or_path": null}'}

BROKEN: dict[str, tuple[Any, tuple[str, ...]]] = {
    "missing": (None, ("no such folder",)),
    "a file": ("weights", ("a file", "folder of a checkpoint")),
    "an empty folder": (lambda path: path.mkdir(), ("no config.json",)),
    "without config.json": (model(without("config.json")), ("no config.json",)),
    "with a broken config.json": (model(text("config.json", '{"model_type": ')), ("config.json", "JSON")),
    "with an empty config.json": (model(text("config.json", "")), ("config.json", "JSON")),
    "with a list in config.json": (model(text("config.json", "[]")), ("config.json", "not a JSON object")),
    "with bytes in config.json": (model(text("config.json", b"\xff\xfe\x00")), ("config.json", "JSON")),
    "with brackets in config.json": (model(text("config.json", "[" * 100_000)), ("config.json", "JSON")),
    "without an architecture": (model(config(model_type=None, architectures=None)), ("config.json", "model_type")),
    "without weights": (model(without("model.safetensors")), ("no weights", "save_pretrained")),
    "with weights cut off": (model(cut("model.safetensors")), ("model.safetensors", "its header says")),
    "with weights of 0 bytes": (model(text("model.safetensors", b"")), ("model.safetensors", "cut short")),
    "with other bytes as weights": (model(text("model.safetensors", b"\x55" * 999)), ("model.safetensors",)),
    "with a header that is none": (
        model(text("model.safetensors", b"\x02" + b"\0" * 7 + b"xx")),
        ("model.safetensors", "fetch the weights again"),
    ),
    "with a pointer as weights": (
        model(text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")),
        ("model.safetensors", "git-lfs pointer"),
    ),
    "with a shard missing": (
        model(index('{"weight_map": {"a": "model-2.safetensors"}}')),
        ("model-2.safetensors", "not there"),
    ),
    "with an index that is none": (model(index('{"weight_map": []}')), ("index.json", "weight_map")),
    "with a broken index": (model(index("{")), ("index.json", "JSON")),
}
FOLDERS = [
    Case(f"{command}: model {name}", f"{line} {{tmp}}/m", ("m", *words), GIVEN | ({"m": made} if made else {}))
    for command, line in COMMANDS.items()
    if command != "run"
    for name, (made, words) in BROKEN.items()
]
NAMES = [
    Case(f"{command}: model name {name}", [*line.split(), value], words, GIVEN)
    for command, line in COMMANDS.items()
    for name, value, words in (
        ("of 300 characters", LONG, ("--model", "255 bytes")),
        ("of an unknown user", "~nosuchuser/m", ("--model", "nosuchuser")),
        ("with a zero byte", "a\0b", ("--model", "zero byte")),
        ("empty", "", ("--model", "empty path")),
        ("with a blank", "my model", ("my model", "name of the hub")),
        ("of three parts", "a/b/c", ("a/b/c", "no such folder")),
        ("of an address", "https://huggingface.co/org/m", ("https://", "no such folder")),
        ("that was not fetched", "smollm2", ("smollm2", "rass model fetch")),
    )
]
# What transformers itself has to say of a folder.
TOKENIZERS = [
    Case(f"plan: model {name}", "plan {tmp}/c.yaml", words, GIVEN | {"c.yaml": CONFIG.replace("org/m", "m"), "m": made})
    for name, made, words in (
        ("of an unknown architecture", model(config(model_type="xyzzy")), ("m", "xyzzy")),
        ("without a tokenizer", model(without("tokenizer.json", "tokenizer_config.json")), ("m",)),
        ("with a broken tokenizer.json", model(text("tokenizer.json", "{")), ("m",)),
        ("with another JSON as tokenizer.json", model(text("tokenizer.json", '{"a": 1}')), ("m",)),
        ("without a chat template", model(without("chat_template.jinja")), ("m", "chat template")),
        ("with a broken chat template", model(text("chat_template.jinja", "{% for")), ("m", "template")),
        ("with a shape of text", model(config(hidden_size="wide")), ("m",)),
    )
]
EVALUATED = [
    Case("evaluate: hub name offline", f"{COMMANDS['evaluate']} org/not-here", ("org/not-here",), GIVEN),
    Case("evaluate: unknown architecture", f"{COMMANDS['evaluate']} {{tmp}}/m", ("m", "xyzzy"),
         GIVEN | {"m": model(config(model_type="xyzzy"))}),
    Case("evaluate: broken tokenizer.json", f"{COMMANDS['evaluate']} {{tmp}}/m", ("m", "tokenizer"),
         GIVEN | {"m": model(text("tokenizer.json", "{"))}),
    Case("evaluate: no chat template", f"{COMMANDS['evaluate']} {{tmp}}/m", ("m", "chat template"),
         GIVEN | {"m": model(without("chat_template.jinja"))}),
    Case("evaluate: the same model twice", f"{COMMANDS['evaluate']} {{tmp}}/m --model {{tmp}}/m", ("--model", "twice"),
         GIVEN | {"m": model()}),
    Case("evaluate: dtype", f"{COMMANDS['evaluate']} {{tmp}}/m --dtype int8", ("--dtype int8", "float32"),
         GIVEN | {"m": model()}),
    Case("evaluate: adapter without a base", f"{COMMANDS['evaluate']} {{tmp}}/m", ("m", "--base"), GIVEN | ADAPTER),
    Case("evaluate: adapter with a broken file", f"{COMMANDS['evaluate']} {{tmp}}/m", ("adapter_config.json",),
         GIVEN | {"m/adapter_config.json": "{"}),
    Case("evaluate: adapter without weights", f"{COMMANDS['evaluate']} {{tmp}}/m --base {{tmp}}/b", ("m", "no weights"),
         GIVEN | ADAPTER | {"b": model()}),
    Case("evaluate: base of 300 characters", f"{COMMANDS['evaluate']} {{tmp}}/m --base {LONG}", ("--base",),
         GIVEN | {"m": model()}),
    Case("evaluate: base empty", [*COMMANDS["evaluate"].split(), "{tmp}/m", "--base", ""], ("--base", "empty path"),
         GIVEN | {"m": model()}),
    Case("evaluate: base that is not there", f"{COMMANDS['evaluate']} {{tmp}}/m --base {{tmp}}/b", ("no such folder",),
         GIVEN | ADAPTER | {"m/adapter_model.safetensors": b"\x02" + b"\0" * 7 + b"{}"}),
    Case("evaluate: configuration with a key twice", f"{COMMANDS['evaluate']} {{tmp}}/m --config {{tmp}}/t.yaml",
         ("t.yaml", "already"), GIVEN | {"m": model(), "t.yaml": f"{CONFIG}seed: 1\nseed: 2\n"}),
    Case("evaluate: no such configuration", f"{COMMANDS['evaluate']} {{tmp}}/m --config {{tmp}}/no.yaml",
         ("no.yaml", "no such file"), GIVEN | {"m": model()}),
    Case("evaluate: no such language", f"{COMMANDS['evaluate']} {{tmp}}/m --language xx", ("xx", "BCP-47"),
         GIVEN | {"m": model()}),
    Case("evaluate: no prompt of that language", f"{COMMANDS['evaluate']} {{tmp}}/m --language yo",
         ("yo", "there are en"), GIVEN | {"m": model()}),
    Case("evaluate: no such family column", f"{COMMANDS['evaluate']} {{tmp}}/m --family-column fam", ("fam",),
         GIVEN | {"m": model()}),
]  # fmt: skip


def dataset(name: str, content: Any, *words: str, at: str = "d.jsonl") -> Case:
    """Return a case of `rass evaluate` on a data set that is wrong."""
    files = GIVEN | ({} if content is None else {at: content})
    return Case(
        f"evaluate: data set {name}", f"evaluate --dataset {{tmp}}/{at} --model org/m --out {{tmp}}/o.csv", words, files
    )


ROW = '{"text": "How?", "language": "en", "label": "harmless"}\n'
DATASETS = [
    dataset("missing", None, "d.jsonl", "no such folder or file"),
    dataset("empty", "", "d.jsonl", "no prompt"),
    dataset("of another kind", "x", "d.txt", at="d.txt"),
    dataset("of zero bytes, Parquet", b"", "d.parquet", at="d.parquet"),
    dataset("of other bytes, Parquet", b"PAR1" * 9, "d.parquet", at="d.parquet"),
    dataset("with a broken line", ROW + "{\n", "d.jsonl", "line 2"),
    dataset("with a list", "[1]\n", "d.jsonl", "line 1"),
    dataset("with an unknown label", ROW.replace("harmless", "evil"), "d.jsonl", "evil"),
    dataset("without a label", '{"text": "How?", "language": "en"}\n', "d.jsonl", "label"),
    dataset("without a text", '{"language": "en", "label": "harmful"}\n', "d.jsonl", "text"),
    dataset("without a language", '{"text": "How?", "label": "harmful"}\n', "d.jsonl", "language"),
    dataset("not in UTF-8", b'{"text": "\xff", "language": "en", "label": "harmful"}\n', "d.jsonl", "UTF-8"),
    dataset("with two labels for one prompt", ROW + ROW.replace("harmless", "harmful"), "d.jsonl", "one label"),
    dataset("an empty folder", lambda path: path.mkdir(), "d", at="d"),
    Case(
        "evaluate: data set of 300 characters", f"evaluate --dataset {LONG} --model org/m", ("--dataset", "255 bytes")
    ),
    Case(
        "evaluate: data set of an unknown user",
        "evaluate --dataset ~nosuchuser/d --model org/m",
        ("--dataset", "nosuchuser"),
    ),
]

CASES = [*FOLDERS, *NAMES, *TOKENIZERS, *EVALUATED, *DATASETS]
