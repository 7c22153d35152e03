"""Configurations: broken YAML, wrong keys and values, names that no file has."""

import os
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case

BASE = "model: {name: org/model}\nprompts: {sources: [{path: prompts.jsonl}]}\n"
LONG = "x" * 300


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("gone.yaml")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def plan(name: str, content: Any, *words: str) -> Case:
    """Return a case of `rass plan` on a configuration."""
    return Case(f"yaml: {name}", "plan {tmp}/c.yaml", ("c.yaml", *words), {"c.yaml": content})


def value(setting: str, *words: str) -> Case:
    """Return a case of a wrong setting beside good ones."""
    return plan(f"setting {setting[:60]}", f"{BASE}{setting}\n", *words)


ALIASES = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)

FILES = [
    plan("empty file", "", "holds no settings", "rass init"),
    plan("only comments", "# nothing\n# here\n", "holds no settings"),
    plan("only a document mark", "---\n", "holds no settings"),
    plan("only null", "null\n", "holds no settings"),
    plan("list at the top", "- a\n- b\n", "holds no settings"),
    plan("text at the top", "just a text\n", "holds no settings"),
    plan("number at the top", "42\n", "holds no settings"),
    plan("two documents", f"{BASE}---\nseed: 1\n", "line 3", "several documents"),
    plan("key twice at the top", f"{BASE}seed: 1\nseed: 2\n", "seed (line 4)", "already, on line 3"),
    plan("section twice", f"{BASE}probe: {{n_bootstrap: 100}}\nprobe: {{}}\n", "probe (line 4)", "on line 3"),
    plan("key twice in depth", "model: {name: a, name: b}\nprompts: {}\n", "model.name (line 1)", "already"),
    plan(
        "key twice in a list",
        "model: {name: m}\nprompts:\n  sources:\n  - path: a\n    label: harmful\n    label: harmless\n",
        "prompts.sources.0.label (line 6)",
        "on line 5",
    ),
    plan("key twice in other quotes", f"{BASE}seed: 1\n'seed': 2\n", "seed (line 4)", "already"),
    plan(
        "key twice in prefixes", f"{BASE}probe: {{prefixes: {{en: {{}}, en: {{}}}}}}\n", "probe.prefixes.en", "already"
    ),
    plan("3,000 brackets", "[" * 3000, "levels"),
    plan("3,000 brackets in a value", f"{BASE}name: {'[' * 3000}{']' * 3000}\n", "levels"),
    plan("3,000 braces", f"{BASE}name: {'{a: ' * 3000}1{'}' * 3000}\n", "levels"),
    plan("150 brackets", f"{BASE}name: {'[' * 150}{']' * 150}\n", "levels"),
    plan("3,000 levels of indentation", "".join(" " * n + f"k{n}:\n" for n in range(3000)), "levels"),
    plan("aliases that unfold", ALIASES, "aliases"),
    plan("alias that holds itself", "model: &m [*m]\n", "model", "(line 1)", "itself"),
    plan("alias that holds itself in a mapping", "model: &m {name: *m}\n", "model.name", "itself"),
    plan("unknown alias", f"{BASE}name: *nowhere\n", "line 3", "nowhere"),
    plan("tab", "model:\n\tname: m\n", "line 2", "spaces"),
    plan("open bracket", f"{BASE}name: [a\n", "cannot be read as YAML", "line"),
    plan("open quote", f'{BASE}name: "a\n', "cannot be read as YAML", "line"),
    plan("colon in a value", f"{BASE}name: a: b\n", "line 3", "quote"),
    plan("at sign", f"{BASE}name: @me\n", "line 3"),
    plan("percent sign", f"{BASE}name: %me\n", "line 3"),
    plan("wrong indentation", "model:\n  name: m\n dtype: float32\n", "line 3"),
    plan("placeholders that nobody filled", "model: {name: {{ model }}}\n", "line 1", "quote"),
    plan("a key that is a list", f"{BASE}? [a]\n: b\n", "line 3", "plain text"),
    plan("tag of Python", f"{BASE}name: !!python/object/apply:os.getcwd []\n", "line 3", "tag"),
    plan("tag of Python on a text", f"{BASE}name: !!python/name:os.system x\n", "(line 3)", "tag"),
    plan("own tag", f"{BASE}name: !env HOME\n", "name (line 3)", "!env", "tag"),
    plan("tag that does not fit", f"{BASE}seed: !!int many\n", "seed (line 3)", "many"),
    plan("date tag that does not fit", f"{BASE}name: !!timestamp 2026-99-99\n", "name (line 3)", "tag"),
    plan("merge of a number", f"{BASE}<<: 3\n", "line 3", "merg"),
    plan("binary file", bytes(range(256)), "line 2", "UTF-8"),
    plan("zip file", b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "line 1", "control character"),
    plan("zero bytes", b"\0" * 100, "control character", "YAML file"),
    plan("zero byte in a text", f"{BASE}name: 'a\0b'\n", "line 3", "control character"),
    plan("latin-1", f"{BASE}name: Grün\n".encode("latin-1"), "line 3", "UTF-8"),
    plan("utf-16 without a mark", BASE.encode("utf-16-le"), "line 1"),
    plan("half a character", f"{BASE}name: ü".encode()[:-1], "line 3", "UTF-8"),
    plan("JSON that is cut off", '{"model": {"name": "m"}, "prompts": {"sour', "line 1"),
    Case("yaml: a folder", "plan {tmp}", ("cannot be read", "a folder")),
    Case("yaml: missing", "plan {tmp}/none.yaml", ("none.yaml", "no such file", "rass init")),
    Case("yaml: missing folder", "plan {tmp}/a/b/none.yaml", ("a/b/none.yaml", "no such file")),
    Case("yaml: below a file", "plan {tmp}/c.yaml/d.yaml", ("c.yaml/d.yaml", "no such file"), {"c.yaml": BASE}),
    Case("yaml: dangling link", "plan {tmp}/c.yaml", ("c.yaml", "gone.yaml", "link"), {"c.yaml": link_to_nowhere}),
    Case("yaml: link to itself", "plan {tmp}/c.yaml", ("c.yaml",), {"c.yaml": link_to_itself}),
    Case("yaml: pipe", "plan {tmp}/c.yaml", ("c.yaml", "pipe or device"), {"c.yaml": os.mkfifo}),
    Case("yaml: device", "plan /dev/zero", ("/dev/zero", "pipe or device")),
    Case("yaml: name of 300 characters", ["plan", LONG], ("300 characters", "255 bytes")),
    Case("yaml: path of 5,000 characters", ["plan", "a/" * 2500 + "c.yaml"], ("5006 characters",)),
    Case("yaml: unknown user", "plan ~nosuchuser/c.yaml", ("~nosuchuser/c.yaml", "no user 'nosuchuser'")),
    Case("yaml: zero byte in the path", ["plan", "a\0b.yaml"], ("zero byte",)),
    Case("yaml: empty path", ["plan", ""], ("empty path",)),
    Case("yaml: line break in the path", ["plan", "a\nb.yaml"], ("no such file",)),
    Case("yaml: half a surrogate in the path", ["plan", "a\udcff.yaml"], ("no such file",)),
    plan("11 MB", "# " + "x" * 11_000_000, "larger"),
]

VALUES = [
    # Numbers that are none, or absurd
    value("seed: 1e400", "seed (line 3)", "1e400", "finite"),
    value("seed: .inf", "seed (line 3)", ".inf", "finite"),
    value("seed: -.INF", "seed (line 3)", "finite"),
    value("seed: .nan", "seed (line 3)", ".nan", "finite"),
    value(f"seed: {10**30}", "seed (line 3)", "too large"),
    value("seed: 4294967296", "seed (line 3)", "less than or equal to 4294967295"),
    value(f"seed: {'9' * 5000}", "seed (line 3)", "5000 characters", "too large"),
    value("seed: -1", "seed (line 3)", "greater than or equal to 0", "-1"),
    value("seed: 1.5", "seed (line 3)", "whole number", "1.5"),
    value("seed: true", "seed (line 3)", "true and false are not numbers"),
    value("seed: yes", "seed (line 3)", "whole number"),
    value("seed: 010", "seed (line 3)", "010", "different numbers"),
    value("seed: 1_000", "seed (line 3)", "1_000", "different numbers"),
    value("seed: 1,000", "seed (line 3)", "1,000", "different numbers"),
    value("seed: 12:30", "seed (line 3)", "12:30", "different numbers"),
    value("seed: 0x", "seed (line 3)", "whole number"),
    value("seed: ten", "seed (line 3)", "whole number", "ten"),
    value("seed: ''", "seed (line 3)", "whole number"),
    value("seed: [1]", "seed (line 3)", "whole number"),
    value("seed: {a: 1}", "seed (line 3)", "whole number"),
    value("seed: 2026-01-01", "seed (line 3)", "whole number"),
    value("seed: 1 000", "seed (line 3)", "whole number"),
    value("seed: ٣٤x", "seed (line 3)", "whole number"),
    value("probe: {n_bootstrap: 49}", "probe.n_bootstrap (line 3)", "50"),
    value("probe: {n_bootstrap: 1000000000}", "probe.n_bootstrap", "100000"),
    value("probe: {n_bootstrap: false}", "probe.n_bootstrap", "true and false are not numbers"),
    value("probe: {layers: [true]}", "probe.layers.0", "true and false are not numbers"),
    value("probe: {layers: [1000000000]}", "probe.layers.0", "10000"),
    value("probe: {layers: []}", "probe.layers", "at least 1"),
    value("probe: {layers: 3}", "probe.layers", "a list"),
    value("probe: {layers: '3'}", "probe.layers", "a list"),
    value("probe: {layers: [1.5]}", "probe.layers.0", "whole number"),
    value("probe: {positions: [0]}", "probe.positions.0", "less than 0"),
    value("probe: {positions: [-1e300]}", "probe.positions.0"),
    value("probe: {methods: [means]}", "probe.methods.0", "difference_in_means"),
    value("probe: {methods: pca}", "probe.methods", "a list"),
    value("probe: {max_kl: 0}", "probe.max_kl", "greater than 0"),
    value("probe: {max_kl: true}", "probe.max_kl", "true and false are not numbers"),
    value("probe: {max_kl: 1e300}", "probe.max_kl", "1000"),
    value("probe: {min_bypass: 50}", "probe.min_bypass", "less than or equal to 1"),
    value("probe: {min_bypass: 50%}", "probe.min_bypass", "a number", "50%"),
    value("probe: {min_induce: '0,5'}", "probe.min_induce", "a number", "0,5"),
    value("probe: {alphas: [1e300]}", "probe.alphas.0", "1000"),
    value("probe: {alphas: ['.nan']}", "probe.alphas.0", "number"),
    value("probe: {alphas: 1.0}", "probe.alphas", "a list"),
    value("probe: {ablate_strengths: [0]}", "probe.ablate_strengths.0", "greater than 0"),
    value("probe: {max_new_tokens: 0}", "probe.max_new_tokens", "greater than or equal to 1"),
    value("probe: {max_new_tokens: 1000000000000}", "probe.max_new_tokens", "16777216"),
    value("probe: {per_language: 2}", "probe.per_language", "true or false"),
    value("probe: {per_language: maybe}", "probe.per_language", "true or false", "maybe"),
    value("probe: {prefixes: {en: {refusal: [], compliance: [a]}}}", "probe.prefixes.en.refusal", "at least 1"),
    value("probe: {prefixes: {en: {refusal: I cannot, compliance: [a]}}}", "probe.prefixes.en.refusal", "a list"),
    value("probe: {prefixes: {en: {refusal: [3], compliance: [a]}}}", "probe.prefixes.en.refusal.0", "quotes"),
    value("probe: {prefixes: [en]}", "probe.prefixes", "dictionary"),
    value("probe: [n_bootstrap]", "probe (line 3)", "dictionary"),
    value("probe: 3", "probe (line 3)", "dictionary"),
    value("probe: off", "probe (line 3)", "dictionary"),
    value("generate: {rounds: 0}", "generate.rounds", "greater than or equal to 1"),
    value("generate: {rounds: 1000000}", "generate.rounds", "1000"),
    value("generate: {candidates_per_round: 1.0e12}", "generate.candidates_per_round", "1000000"),
    value("generate: {control_share: 1}", "generate.control_share", "less than 1"),
    value("generate: {control_share: 0}", "generate.control_share", "greater than 0"),
    value("generate: {temperature: -1}", "generate.temperature", "greater than 0"),
    value("generate: {top_p: 1.5}", "generate.top_p", "less than or equal to 1"),
    value("generate: {alphas: [0]}", "generate", "control"),
    value("generate: {operators: [rewrit]}", "generate", "did you mean 'rewrite'?"),
    value("generate: {operators: ['my_operators:Mine']}", "generate.operators.0", "cannot be imported", "PYTHONPATH"),
    value("generate: {operators: rewrite}", "generate.operators", "a list"),
    value("generate: {operators: [rewrite, rewrite]}", "generate", "twice"),
    value("generate: {writers: []}", "generate.writers", "at least 1"),
    value("generate: {writers: [{role: helper}]}", "generate.writers.0.role", "assistant"),
    value("generate: {writers: [{role: user, steering: up}]}", "generate.writers.0.steering"),
    value("generate: {instructions: {rewrite: {en: Rewrite it}}}", "generate", "{a}"),
    value("generate: {endpoint: {model: m}}", "generate.endpoint.base_url", "missing"),
    value("generate: {endpoint: {base_url: 'http://h/v1', model: m, timeout_s: 0}}", "generate.endpoint.timeout_s"),
    value("generate: {width: 0}", "generate.width", "greater than 0"),
    value("judge: {members: []}", "judge.members", "at least 1"),
    value("judge: {members: [phrases]}", "judge.members.0", "dictionary"),
    value("judge: {members: {kind: phrases}}", "judge.members", "a list"),
    value("judge: {members: [{kind: phrase}]}", "judge.members.0.kind", "phrases"),
    value("judge: {members: [{}]}", "judge.members.0.kind", "missing"),
    value("judge: {members: [{kind: hf}]}", "judge.members.0", "model"),
    value("judge: {members: [{kind: phrases, model: m}]}", "judge.members.0", "model", "hf"),
    value("judge: {members: [{kind: phrases, weight: 0}]}", "judge.members.0.weight", "greater than 0"),
    value("judge: {members: [{kind: phrases, weight: 1e300}]}", "judge.members.0.weight"),
    value("judge: {members: [{kind: hf, model: m, template: t}]}", "judge.members.0", "refusal_pattern"),
    value(
        "judge: {members: [{kind: hf, model: m, template: '{response}', refusal_pattern: '(', compliance_pattern: b}]}",
        "judge.members.0",
        "refusal_pattern",
        "regular expression",
    ),
    value("moderator: {members: [{kind: hf, model: m, safe_pattern: '['}]}", "moderator.members.0", "safe_pattern"),
    value("moderator: {quorum: 2}", "moderator", "quorum", "1 members"),
    value("moderator: {members: [{kind: classifier, min_confidence: 0.4}]}", "moderator.members.0.min_confidence"),
    value("moderator: {members: [{kind: guess}]}", "moderator.members.0.kind", "oracle"),
    value("moderator: {check_prompts: -1}", "moderator.check_prompts", "0"),
    value("select: {size: 0}", "select.size", "1"),
    value("select: {size: 10000000}", "select.size", "1000000"),
    value("select: {near_duplicate_jaccard: 80}", "select.near_duplicate_jaccard", "1"),
    value("select: {max_harm_score: .inf}", "select.max_harm_score", "finite"),
    value("mitigate: {methods: []}", "mitigate.methods", "at least 1"),
    value("mitigate: {methods: [ppo]}", "mitigate.methods.0", "dpo"),
    value("mitigate: {methods: [dpo, dpo]}", "mitigate", "twice"),
    value("mitigate: {methods: [{kind: dpo, share: 1}]}", "mitigate", "dpo: share: not a setting", "training"),
    value("mitigate: {methods: ['my_methods:Mine']}", "mitigate.methods.0", "cannot be imported", "PYTHONPATH"),
    value("mitigate: {direction: up}", "mitigate.direction", "mean_difference"),
    value("mitigate: {strength: 2}", "mitigate.strength", "1"),
    value("mitigate: {training: {rank: 7}}", "mitigate.training.rank", "16"),
    value("mitigate: {training: {learning_rate: 100}}", "mitigate.training.learning_rate", "10"),
    value("mitigate: {training: {epochs: 1e9}}", "mitigate.training.epochs", "1000"),
    value("mitigate: {training: {target_modules: some}}", "mitigate.training.target_modules"),
    value("mitigate: {training: {target_modules: []}}", "mitigate.training.target_modules"),
    value("evaluate: {sources: {path: a}}", "evaluate.sources", "a list"),
    value("evaluate: {jailbreaks: {names: [dan]}}", "evaluate.jailbreaks", "dan"),
    value("evaluate: {utility: {tasks: []}}", "evaluate.utility.tasks", "at least 1"),
    value("evaluate: {utility: {tasks: [t], include_path: nowhere}}", "evaluate.utility.include_path"),
    value("evaluate: {n_kl: 1}", "evaluate.n_kl", "2"),
    value("gate: {max_safety_fall: 1}", "gate.max_safety_fall", "less than 1"),
    value("gate: {max_safety_fall: 1%}", "gate.max_safety_fall", "a number"),
    value("gate: {level: 95}", "gate.level", "less than 1"),
    value("morbench: {n_per_cell: 0}", "morbench.n_per_cell", "1"),
    value("morbench: {languages: []}", "morbench.languages", "at least 1"),
    value("morbench: {languages: en}", "morbench.languages", "a list"),
    value("morbench: {categories: [3]}", "morbench.categories.0", "quotes"),
    value("models: 3", "models", "a list"),
    value("models: {name: m}", "models", "a list"),
    value("models: [org/model]", "models.0", "dictionary"),
    value("models: [{dtype: float32}]", "models.0.name", "missing"),
    value("models: [null]", "models.0", "dictionary"),
    value("generator: org/model", "generator", "dictionary"),
    value("generator: []", "generator", "dictionary"),
    value("name: 3", "name (line 3)", "quotes"),
    value("name: [a]", "name (line 3)", "a text"),
    value("name: true", "name (line 3)", "a text"),
    value("lake: 3", "lake (line 3)", "a text"),
    value(f"lake: {LONG}", "lake (line 3)", "255 bytes"),
    value("lake: ~nosuchuser/lake", "lake (line 3)", "nosuchuser"),
    value('lake: "a\\0b"', "lake (line 3)", "zero byte"),
    value('lake: ""', "lake (line 3)", "empty path"),
    # Keys
    value("sed: 1", "unknown key 'sed'", "line 3", "'seed'"),
    value("Seed: 1", "unknown key 'Seed'", "'seed'"),
    value("probe: {n_bootstraps: 99}", "probe.n_bootstraps", "'n_bootstrap'"),
    value("probes: {}", "unknown key 'probes'", "'probe'"),
    value("xyzzy: 1", "unknown key 'xyzzy'", "known here"),
    value(f"{LONG}: 1", "unknown key", "300 characters"),
    value("1: x", "1"),
    value("true: x", "True"),
    value("null: x", "None"),
    value("'': x", "unknown key"),
    value("mitigate: {training: {learning_rat: 1}}", "mitigate.training.learning_rat", "'learning_rate'"),
    value("gate: {max_safety_drop: 0.1}", "gate.max_safety_drop", "'max_safety_fall'"),
    value("judge: {members: [{kind: llm, endpoint: {base_ur: x, model: m}}]}", "judge.members.0.endpoint.base_ur"),
    value("generator: {nmae: m}", "generator.nmae", "'name'"),
]


def model(name: str, setting: str, *words: str) -> Case:
    """Return a case of a wrong section `model`."""
    return plan(f"model {name}", f"model: {setting}\nprompts: {{sources: [{{path: prompts.jsonl}}]}}\n", *words)


def source(name: str, setting: str, *words: str) -> Case:
    """Return a case of a wrong prompt source."""
    return plan(f"source {name}", f"model: {{name: org/model}}\nprompts: {{sources: {setting}}}\n", *words)


SECTIONS = [
    plan("without a model", "prompts: {sources: [{path: p.jsonl}]}\n", "'model' is missing"),
    plan("without prompts", "model: {name: m}\n", "'prompts' is missing"),
    plan("model null", "model: null\nprompts: {sources: [{path: p.jsonl}]}\n", "'model' is missing"),
    plan("another tool's configuration", "base_model: m\ndatasets: []\n", "unknown key 'base_model'"),
    model("as a text", "org/model", "model (line 1)", "dictionary"),
    model("as a list", "[org/model]", "model (line 1)", "dictionary"),
    model("without a name", "{dtype: float32}", "'model.name' is missing"),
    model("name null", "{name: null}", "model.name (line 1)", "a text"),
    model("name a number", "{name: 7}", "model.name (line 1)", "quotes"),
    model("name empty", "{name: ''}", "model.name (line 1)", "empty"),
    model("name of blanks", "{name: '  '}", "model.name (line 1)", "empty"),
    model("name of 300 characters", f"{{name: {LONG}}}", "model.name (line 1)", "255 bytes"),
    model("name of an unknown user", "{name: ~nosuchuser/m}", "model.name (line 1)", "nosuchuser"),
    model("name with a zero byte", '{name: "a\\0b"}', "model.name (line 1)", "zero byte"),
    model("dtype", "{name: m, dtype: int8}", "model.dtype (line 1)", "bfloat16"),
    model("dtype fp16", "{name: m, dtype: fp16}", "model.dtype", "float16"),
    model("max_model_len", "{name: m, max_model_len: 8}", "model.max_model_len", "16"),
    model("max_model_len 10**30", f"{{name: m, max_model_len: {10**30}}}", "model.max_model_len", "too large"),
    model("gpu share of 45", "{name: m, gpu_memory_utilization: 45}", "model.gpu_memory_utilization", "1"),
    model("kv cache", "{name: m, kv_cache_gib: 0}", "model.kv_cache_gib", "greater than 0"),
    model("kv cache with a unit", "{name: m, kv_cache_gib: 2GiB}", "model.kv_cache_gib", "a number", "2GiB"),
    model("tensor_parallel_size", "{name: m, tensor_parallel_size: 0}", "model.tensor_parallel_size", "1"),
    model("template_kwargs", "{name: m, template_kwargs: [a]}", "model.template_kwargs", "dictionary"),
    model("template_kwargs no", "{name: m, template_kwargs: {enable_thinking: no}}", "model.template_kwargs", "false"),
    model("template_kwargs Off", "{name: m, template_kwargs: {a: Off}}", "model.template_kwargs", "true or false"),
    model("a fetched one that is not there", "{name: smollm2}", "smollm2", "rass model fetch"),
    plan("models that are not there", f"{BASE}models: [{{name: smollm2}}]\n", "models.0.name", "rass model fetch"),
    source("none", "[]", "prompts.sources (line 2)", "at least 1"),
    source("a text", "prompts.jsonl", "prompts.sources (line 2)", "a list"),
    source("a list of texts", "[prompts.jsonl]", "prompts.sources.0", "dictionary"),
    source("neither path nor dataset", "[{split: test}]", "prompts.sources.0", "either path or dataset"),
    source("both path and dataset", "[{path: a, dataset: b}]", "prompts.sources.0", "either path or dataset"),
    source("path a list", "[{path: [a, b]}]", "prompts.sources.0.path", "a text"),
    source("path of 300 characters", f"[{{path: {LONG}}}]", "prompts.sources.0.path", "255 bytes"),
    source("path of an unknown user", "[{path: ~nosuchuser/p.csv}]", "prompts.sources.0.path", "nosuchuser"),
    source("path with a zero byte", '[{path: "a\\0b"}]', "prompts.sources.0.path", "zero byte"),
    source("path empty", "[{path: ''}]", "prompts.sources.0.path", "empty"),
    source("label", "[{path: p, label: evil}]", "prompts.sources.0.label", "pseudo_harmful"),
    source("label a truth value", "[{path: p, label: false}]", "prompts.sources.0.label"),
    source("max_rows_per_cell", "[{path: p, max_rows_per_cell: 0}]", "prompts.sources.0.max_rows_per_cell", "1"),
    source("mistyped key", "[{path: p, licens: MIT}]", "prompts.sources.0.licens", "'licence'"),
    plan("prompts as a list", "model: {name: m}\nprompts: [{path: p}]\n", "prompts (line 2)", "dictionary"),
    plan("calibration of 300 characters", f"{BASE}judge: {{calibration: {LONG}}}\n", "judge.calibration", "255 bytes"),
    plan("weights of an unknown user",
         f"{BASE}moderator: {{members: [{{kind: classifier, weights: ~nosuchuser/w.npz}}]}}\n",
         "moderator.members.0.weights", "nosuchuser"),
    plan("hf judge of 300 characters", f"{BASE}judge: {{members: [{{kind: hf, model: {LONG}}}]}}\n",
         "judge.members.0.model", "255 bytes"),
    Case("yaml: prompts that are not there", "plan {tmp}/c.yaml", ("prompts.jsonl", "no such file"), {"c.yaml": BASE}),
]  # fmt: skip

TWICE = f"{BASE}seed: 1\nseed: 2\n"
EVERY_COMMAND = [
    Case(f"yaml in {command.split('{')[0].strip()}", command, ("c.yaml", "seed (line 4)", "already"), {"c.yaml": TWICE})
    for command in (
        "run {tmp}/c.yaml", "probe {tmp}/c.yaml", "generate {tmp}/c.yaml", "select {tmp}/c.yaml",
        "morbench {tmp}/c.yaml", "moderator check {tmp}/c.yaml",
    )
]  # fmt: skip

CASES = [*FILES, *VALUES, *SECTIONS, *EVERY_COMMAND]

READ: list[tuple[str, str | bytes, str, Any]] = [
    ("byte order mark", "\ufeff" + BASE, "seed", 0),
    ("utf-16 with a mark", f"{BASE}name: Grün\n".encode("utf-16"), "name", "Grün"),
    ("carriage returns", f"{BASE}seed: 5\n".replace("\n", "\r\n"), "seed", 5),
    ("JSON", '{"model": {"name": "m"}, "prompts": {"sources": [{"path": "p"}]}, "seed": 5}', "seed", 5),
    ("document mark", f"---\n{BASE}seed: 5\n...\n", "seed", 5),
    ("number in quotes", f"{BASE}seed: '5'\n", "seed", 5),
    ("whole number with a point", f"{BASE}seed: 5.0\n", "seed", 5),
    ("power of ten", f"{BASE}seed: 1e3\n", "seed", 1000),
    ("hexadecimal", f"{BASE}seed: 0x1f\n", "seed", 31),
    ("octal as YAML 1.2 writes it", f"{BASE}seed: 0o17\n", "seed", 15),
    ("small share", f"{BASE}probe: {{max_kl: 1e-3}}\n", "probe.max_kl", 0.001),
    ("fraction without a zero", f"{BASE}probe: {{max_kl: .5}}\n", "probe.max_kl", 0.5),
    ("yes", f"{BASE}probe: {{per_language: yes}}\n", "probe.per_language", True),
    ("Off", f"{BASE}probe: {{per_language: Off}}\n", "probe.per_language", False),
    (
        "false for a template",
        BASE.replace("org/model", "m, template_kwargs: {a: false}"),
        "model.template_kwargs",
        {"a": False},
    ),
    ("Norwegian", f"{BASE}morbench: {{languages: [en, no]}}\n", "morbench.languages", ["en", "no"]),
    ("date as a name", f"{BASE}name: 2026-01-01\n", "name", "2026-01-01"),
    ("digits in quotes", f"{BASE}name: '010'\n", "name", "010"),
    ("section without lines", f"{BASE}probe:\n# n_bootstrap: 99\n", "probe.n_bootstrap", 500),
    ("anchors", f"{BASE}models: [&m {{name: a/b}}, {{<<: *m, dtype: float32}}]\n", "models.1.dtype", "float32"),
    ("merge that is overridden", f"{BASE}models: [&m {{name: a/b}}, {{<<: *m, name: c}}]\n", "models.1.name", "c"),
    ("largest seed", f"{BASE}seed: 4294967295\n", "seed", 4294967295),
]
"""Name, configuration, setting, and the value that is read."""
