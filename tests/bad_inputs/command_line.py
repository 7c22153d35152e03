"""The command line: options that are wrong, missing or contradictory, and places that nothing can be written to."""

import os
from pathlib import Path

from tests.bad_inputs.case import Case
from tests.bad_inputs.configurations import BASE

LONG = "x" * 300
RESPONSES = '{"response": "I cannot help with that.", "language": "en", "label": "refusal"}\n'
PROMPTS = "".join(
    f'{{"text": "How do I {verb} a {thing}?", "language": "en", "label": "{label}"}}\n'
    for verb, label in (("draw", "harmless"), ("kill", "pseudo_harmful"), ("harm", "harmful"))
    for thing in ("process", "portrait", "weed")
)
GOOD = {"c.yaml": BASE, "prompts.jsonl": PROMPTS, "in.jsonl": RESPONSES, "in.csv": "id,label\nx,harmless\n"}


def usage(command: str, *words: str) -> Case:
    """Return a case of a command line that is wrong whatever it is about."""
    return Case(f"usage: rass {command[:70]}", command, words, GOOD)


NEEDED = {
    "run": ("CONFIG.yaml", "rass run --help"), "probe": ("CONFIG.yaml", "rass probe --help"),
    "generate": ("CONFIG.yaml",), "select": ("CONFIG.yaml",), "morbench": ("CONFIG.yaml",), "plan": ("CONFIG.yaml",),
    "sql": ("query",), "publish": ("--to",), "evaluate": ("--dataset",), "evaluate --dataset d": ("--model",),
    "evaluate --model m": ("--dataset",), "judge score": ("FILE",), "judge score in.jsonl": ("--out",),
    "judge score --out o.csv": ("FILE",), "review export": ("--lake",),
    "review export --lake l": ("--what",), "review export --lake l --what prompts": ("--out",),
    "review import": ("FILE",), "review import in.csv": ("--lake",), "review import in.csv --lake l": ("--reviewer",),
    "model fetch": ("NAME",), "moderator train": ("--prompts",), "moderator train --prompts p": ("--out",),
    "moderator check": ("CONFIG.yaml",),
}  # fmt: skip
USAGE = [
    *(usage(command, "Missing", *words) for command, words in NEEDED.items()),
    usage("nosuch", "'nosuch'", "rass --help"),
    usage("rnu c.yaml", "'rnu'", "'run'"),
    usage("judge scor", "'scor'", "'score'"),
    usage("review exprot", "'exprot'", "'export'"),
    usage("model get", "'get'"),
    usage("--version", "--version"),
    usage("run c.yaml extra", "extra"),
    usage("run c.yaml --lak l", "--lak", "--lake"),
    usage("run c.yaml --seeds 3", "--seeds", "--seed"),
    usage("run c.yaml --out o", "--out"),
    usage("run c.yaml --lake", "--lake"),
    usage("run c.yaml --seed", "--seed"),
    usage("run c.yaml --seed x", "--seed", "rass run --help"),
    usage("run c.yaml --seed -1", "--seed"),
    usage("run c.yaml --seed 1.5", "--seed"),
    usage("run c.yaml --seed 1e400", "--seed"),
    usage("run c.yaml --seed nan", "--seed"),
    usage("run c.yaml --seed 4294967296", "--seed"),
    usage(f"plan c.yaml --seed {10**30}", "--seed"),
    usage("doctor x", "x"),
    usage("demo x", "x"),
    usage("demo --seed x", "--seed"),
    usage("compare --format yaml", "--format", "csv"),
    usage("compare lake", "lake"),
    usage("report lake", "lake"),
    usage("init rass.yaml", "rass.yaml"),
    usage("review export --lake l --what answers --out o.csv", "--what", "prompts"),
    usage("review export --lake l --what prompts --out o.csv --limit 0", "--limit"),
    usage("review export --lake l --what prompts --out o.csv --limit many", "--limit"),
    usage(f"review export --lake l --what prompts --out o.csv --limit {10**30}", "--limit"),
    usage("judge calibrate --labels in.jsonl --max-chars 0", "--max-chars"),
    usage("review export --lake l --what prompts --out o.csv --n 0", "--limit"),  # the name it had before
    usage("judge calibrate --labels in.jsonl --head 0", "--max-chars"),
    usage("judge calibrate --labels in.jsonl --seed -1", "--seed"),
    usage("judge calibrate", "--labels", "--lake"),
    usage("judge calibrate --labels in.jsonl --lake l", "--labels", "--lake"),
    usage("evaluate --dataset prompts.jsonl --model m --seed x", "--seed"),
    usage("moderator check c.yaml --limit 0", "--limit"),
    usage("moderator check c.yaml --n 0", "--limit"),
    usage("model fetch gpt", "gpt", "smollm2"),
    usage("model fetch smollm2 --to c.yaml", "c.yaml"),
    usage("model fetch smollm2 --to /sys/m", "/sys", "--to"),
    usage("model fetch smollm2 --to ~nosuchuser/m", "--to", "nosuchuser"),
    usage(f"model fetch smollm2 --to {LONG}", "255 bytes"),
]

PLACES = [
    Case(f"{command}: {name}", [*line.split(), option, value], (option, *words), GOOD)
    for command, line in (("plan", "plan {tmp}/c.yaml"), ("run", "run {tmp}/c.yaml"), ("demo", "demo"))
    for option in ("--lake",)
    for name, value, words in (
        ("lake of 300 characters", LONG, ("255 bytes",)),
        ("lake of an unknown user", "~nosuchuser/lake", ("nosuchuser",)),
        ("lake with a zero byte", "a\0b", ("zero byte",)),
        ("empty lake", "", ("empty path",)),
        ("lake in a folder that takes no files", "/sys/lake", ("/sys",)),
        ("lake below a file", "{tmp}/c.yaml/lake", ("c.yaml",)),
    )
] + [
    Case(f"{command}: {name}", [*line.split(), "--lake", value], words, GOOD)
    for command, line in (("plan", "plan {tmp}/c.yaml"), ("probe", "probe {tmp}/c.yaml"), ("demo", "demo"))
    for name, value, words in (
        ("lake that is a file", "{tmp}/c.yaml", ("c.yaml: a file",)),
        ("lake with a pattern", "{tmp}/l[0]", ("pattern", "choose another folder")),
    )
]  # fmt: skip


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("gone/further")


def link_to_input(path: Path) -> None:
    path.symlink_to("in.jsonl")


def hard_link_to_input(path: Path) -> None:
    os.link(path.parent / "in.jsonl", path)


WRITERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "judge score": ("judge score {tmp}/in.jsonl --out", (".csv", ".parquet", ".jsonl")),
    "judge calibrate": ("judge calibrate --labels {tmp}/in.jsonl --out", (".parquet",)),
    "evaluate": ("evaluate --dataset {tmp}/prompts.jsonl --model org/m --out", (".csv", ".parquet", ".json")),
    "moderator train": ("moderator train --prompts {tmp}/prompts.jsonl --out", (".npz",)),
    "init": ("init --out", (".yaml",)),
}
"""Command → its line up to the file that is written, and the endings that it takes."""
OUTS = [
    Case(f"{command}: --out {name}", [*line.split(), value.replace("END", endings[0])], words, {**GOOD, **files})
    for command, (line, endings) in WRITERS.items()
    for name, value, words, files in (
        ("is a folder", "{tmp}/o.END".replace(".END", "END"), ("a folder", "--out"), {f"o{endings[0]}/x": ""}),
        ("in a folder that takes no files", "/sys/oEND", ("/sys", "--out"), {}),
        ("in a missing folder of one that takes none", "/proc/a/b/oEND", ("/proc", "--out"), {}),
        ("below a file", "{tmp}/c.yaml/oEND", ("c.yaml", "--out"), {}),
        ("is a device", "{tmp}/oEND", ("pipe or device", "--out"), {f"o{endings[0]}": os.mkfifo}),
        ("has 300 characters", f"{LONG}END", ("255 bytes",), {}),
        ("has 250 characters", f"{'x' * 240}END", ("too long a name", "--out"), {}),
        ("of an unknown user", "~nosuchuser/oEND", ("nosuchuser",), {}),
        ("with a zero byte", "a\0bEND", ("--out", "null byte"), {}),
        ("empty", "", ("a folder", "--out"), {}),
    )
]
ENDINGS = [
    Case(f"{command}: --out ends in {ending!r}", [*line.split(), f"{{tmp}}/o{ending}"], ("--out", endings[0]), GOOD)
    for command, (line, endings) in WRITERS.items()
    if command != "init"
    for ending in ("", ".txt", ".xlsx")
]
INPUTS = [
    Case("judge score: --out is the input", "judge score {tmp}/in.jsonl --out {tmp}/in.jsonl", ("input",), GOOD),
    Case("judge score: --out is the input, spelt otherwise", "judge score {tmp}/in.jsonl --out {tmp}/./in.jsonl",
         ("input",), GOOD),
    Case("judge score: --out is a link to the input", "judge score {tmp}/in.jsonl --out {tmp}/o.jsonl", ("input",),
         {**GOOD, "o.jsonl": link_to_input}),
    Case("judge score: --out is a hard link to the input", "judge score {tmp}/in.jsonl --out {tmp}/o.jsonl",
         ("input",), {**GOOD, "o.jsonl": hard_link_to_input}),
    Case("judge score: in place, relative", "judge score in.jsonl --out in.jsonl", ("input",), GOOD),
    Case("judge calibrate: --out is the labels", "judge calibrate --labels {tmp}/l.parquet --out {tmp}/l.parquet",
         ("input", "--out"), {"l.parquet": "x"}),
    Case("evaluate: --out is the data set", "evaluate --dataset {tmp}/p.csv --model org/m --out {tmp}/p.csv",
         ("input", "--out"), {"p.csv": "text,language,label\n"}),
    Case("moderator train: --out is the prompts", "moderator train --prompts {tmp}/p.npz --out {tmp}/p.npz",
         ("input", "--out"), {"p.npz": "x"}),
    Case("init: --out is there", "init --out {tmp}/c.yaml", ("c.yaml", "already there"), GOOD),
    Case("init: the default is there", "init", ("rass.yaml", "already there"), {"rass.yaml": ""}),
    Case("init: --out is a dangling link", "init --out {tmp}/o.yaml", ("o.yaml", "already there"),
         {"o.yaml": link_to_nowhere}),
    Case("init: --model of 300 characters", f"init --model {LONG}", ("--model", "255 bytes")),
    Case("init: --model empty", ["init", "--model", ""], ("--model", "empty")),
    Case("morbench: --out is a file", "morbench {tmp}/c.yaml --out {tmp}/in.csv", ("in.csv", "a file"), GOOD),
    Case("morbench: --out holds other things", "morbench {tmp}/c.yaml --out {tmp}/o", ("o: not a benchmark",),
         {**GOOD, "o/x": ""}),
    Case("morbench: --out cannot be written", "morbench {tmp}/c.yaml --out /sys/o", ("/sys",), GOOD),
    Case("morbench: --out of 300 characters", f"morbench {{tmp}}/c.yaml --out {LONG}", ("255 bytes",), GOOD),
    Case("morbench: --out of an unknown user", "morbench {tmp}/c.yaml --out ~nosuchuser/o", ("nosuchuser",), GOOD),
]  # fmt: skip
MAPPED = "text,language,label\na,en,safe\nb,en,unsafe\n"
MAPS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "none": (None, ("p.csv line 2", "'safe' 1, 'unsafe' 1", "--label-map '{safe: harmless, unsafe: harmful}'")),
    "half of it": ("{safe: harmless}", ("p.csv line 3", "'unsafe' 1", "--label-map '{unsafe: harmful}'")),
    "no label": ("{safe: benign}", ("--label-map: safe", "'harmful'", "write it like")),
    "broken": ("{safe", ("--label-map: line 1", "YAML")),
    "no mapping": ("safe=harmless", ("--label-map safe=harmless", "not a mapping")),
    "a list": ("[safe]", ("--label-map [safe]", "not a mapping")),
    "a key twice": ("{safe: harmless, safe: harmful}", ("--label-map", "safe", "already")),
    "a key twice, in other case": ("{safe: harmless, Safe: harmful}", ("--label-map", "'safe'", "twice")),
}
COMMANDS = ("moderator train --out {tmp}/o.npz --prompts {tmp}/p.csv", "evaluate --model ./none --dataset {tmp}/p.csv")
LABELLED = [
    Case(f"{command.split(' --')[0]}: label map: {name}",
         [*command.split(), *([] if given is None else ["--label-map", given])], words, {"p.csv": MAPPED})
    for command in COMMANDS for name, (given, words) in MAPS.items()
] + [
    Case(f"{command.split(' --')[0]}: file with {name}", command, words, {"p.csv": text})
    for command in COMMANDS
    for name, text, words in (
        ("no text column", "prompt,language,label\na,en,harmful\n", ("no column 'text'", "--text-column")),
        ("no language column", "text,lang,label\na,en,harmful\n", ("no column 'language'",)),
        ("no label column", "text,language,danger\na,en,harmful\n", ("no column 'label'", "--label-column")),
    )
]  # fmt: skip


def _initialised(folder: Path, out: str) -> None:
    from rass_core.config import load_config

    assert load_config(folder / "new" / "my.yaml").model.name == "org/größe: 1"


GENEROUS = [
    Case("init: folder that is missing is made", ["init", "--model", "org/größe: 1", "--out", "{tmp}/new/my.yaml"],
         code=0, may_write=True, check=_initialised),
]  # fmt: skip

CASES = [*USAGE, *PLACES, *OUTS, *ENDINGS, *INPUTS, *LABELLED, *GENEROUS]
